"""Say which tensors of torchvision's residual networks of bottlenecks are which weights."""

from soups.models.architectures import Architecture
from soups.models.bottleneck_resnet import EXPANSION
from soups.models.tables import parts
from soups.models.tables.parts import Table

COUNTERS = r".*\.num_batches_tracked"
STATISTICS = {"weight": "params/{}/scale", "bias": "params/{}/bias"}
STATISTICS |= {"running_mean": "batch_stats/{}/mean", "running_var": "batch_stats/{}/var"}


def torchvision(arch: Architecture) -> Table:
    """Return the table of torchvision's names, which timm shares."""
    model, channels = arch.features, arch.features.width
    table = _conv_norm("conv1", "bn1", "stem", 7, 3, channels)
    for stage, count in enumerate(model.blocks):
        for index in range(count):
            width = model.width * 2**stage
            theirs, ours = f"layer{stage + 1}.{index}.", f"stage_{stage}_{index}"
            table |= _conv_norm(f"{theirs}conv1", f"{theirs}bn1", f"{ours}/first", 1, channels, width)
            table |= _conv_norm(f"{theirs}conv2", f"{theirs}bn2", f"{ours}/second", 3, width, width)
            table |= _conv_norm(f"{theirs}conv3", f"{theirs}bn3", f"{ours}/third", 1, width, EXPANSION * width)
            if index == 0:
                adapt = (f"{theirs}downsample.0", f"{theirs}downsample.1", f"{ours}/shortcut")
                table |= _conv_norm(*adapt, 1, channels, EXPANSION * width)
            channels = EXPANSION * width
    return table


def _conv_norm(conv, norm, ours, size, inputs, outputs):
    table = parts.convolution(f"{conv}.weight", f"params/{ours}/conv/kernel", size, inputs, outputs)
    for theirs, name in STATISTICS.items():
        table |= parts.as_it_is(f"{norm}.{theirs}", (outputs,), name.format(f"{ours}/norm"))
    return table
