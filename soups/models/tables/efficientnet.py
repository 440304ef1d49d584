"""Say which tensors of EfficientNet-PyTorch's files are which weights."""

from soups.models.architectures import Architecture
from soups.models.efficientnet_lite import STEM, TOP
from soups.models.tables import parts
from soups.models.tables.parts import Table


def efficientnet_pytorch(arch: Architecture) -> Table:
    """Return the table of EfficientNet-PyTorch's names, which the packages of Lite networks share."""
    table, channels, number = parts.conv_norm("_conv_stem", "_bn0", "stem", 3, 3, STEM), STEM, 0
    for index, stage in enumerate(arch.features.stages()):
        for block in range(stage.blocks):
            theirs, ours, inside = f"_blocks.{number}.", f"stage_{index}_{block}/", stage.expansion * channels
            if stage.expansion > 1:
                table |= parts.conv_norm(f"{theirs}_expand_conv", f"{theirs}_bn0", f"{ours}expand", 1, channels, inside)
            depthwise = (f"{theirs}_depthwise_conv", f"{theirs}_bn1", f"{ours}depthwise")
            table |= parts.conv_norm(*depthwise, stage.size, 1, inside)
            project = (f"{theirs}_project_conv", f"{theirs}_bn2", f"{ours}project")
            table |= parts.conv_norm(*project, 1, inside, stage.width)
            channels, number = stage.width, number + 1
    return table | parts.conv_norm("_conv_head", "_bn1", "top", 1, channels, TOP)
