"""Say which tensors of Hugging Face's ALIGN files are which weights."""

from soups.models.architectures import Architecture
from soups.models.efficientnet_lite import STEM, rounded
from soups.models.tables import bert, parts
from soups.models.tables.parts import COUNTERS, Part, Table

# what one of the towers does without
ALIGN_TEXT = rf"text_model\..*|text_projection\.(weight|bias)|temperature|{COUNTERS}"
ALIGN_IMAGE = r"vision_model\..*|temperature|text_model\.(embeddings\.position_ids|pooler\.dense\.(weight|bias))"


def image(arch: Architecture) -> Table:
    """Return the table of the image tower."""
    tower, top, number = arch.features, "vision_model.embeddings", 0
    narrow = rounded(STEM * tower.width_multiplier)
    table = parts.conv_norm(f"{top}.convolution", f"{top}.batchnorm", "stem", 3, 3, narrow)
    for index, stage in enumerate(tower.stages()):
        for place in range(stage.blocks):
            theirs, ours = f"vision_model.encoder.blocks.{number}", f"stage_{index}_{place}"
            table |= _block(theirs, ours, narrow, stage, max(1, int(narrow * tower.squeeze)))
            narrow, number = stage.width, number + 1
    return table


def text(arch: Architecture) -> Table:
    """Return the table of the text tower, a BERT whose first token is projected."""
    tower = arch.text
    whole = bert.trunk(tower, "text_model.")
    return whole | parts.linear("text_projection", "projection", (tower.width,), (tower.projection_size,))


def _block(theirs, ours, narrow, stage, reduced) -> Table:
    wide, table = stage.expansion * narrow, {}
    if stage.expansion > 1:
        names = (f"{theirs}.expansion.expand_conv", f"{theirs}.expansion.expand_bn")
        table |= parts.conv_norm(*names, f"{ours}/expand", 1, narrow, wide)
    names = (f"{theirs}.depthwise_conv.depthwise_conv", f"{theirs}.depthwise_conv.depthwise_norm")
    table |= parts.conv_norm(*names, f"{ours}/depthwise", stage.size, 1, wide)
    table |= _dense(f"{theirs}.squeeze_excite.reduce", f"params/{ours}/excite/reduce", wide, reduced)
    table |= _dense(f"{theirs}.squeeze_excite.expand", f"params/{ours}/excite/expand", reduced, wide)
    names = (f"{theirs}.projection.project_conv", f"{theirs}.projection.project_bn")
    return table | parts.conv_norm(*names, f"{ours}/project", 1, wide, stage.width)


def _dense(name, ours, inputs, outputs) -> Table:
    """Take a convolution of one pixel with a bias as a dense layer."""
    kernel = Part((outputs, inputs, 1, 1), {f"{ours}/kernel": lambda weight: weight.reshape(weight.shape[:2]).T})
    return {f"{name}.weight": kernel} | parts.as_it_is(f"{name}.bias", (outputs,), f"{ours}/bias")
