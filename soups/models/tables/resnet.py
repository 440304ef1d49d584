"""Say which tensors of torchvision's residual networks of bottlenecks are which weights."""

from soups.models.architectures import Architecture
from soups.models.bottleneck_resnet import EXPANSION
from soups.models.tables import parts
from soups.models.tables.parts import Table


def torchvision(arch: Architecture) -> Table:
    """Return the table of torchvision's names, which timm shares."""
    model, channels = arch.features, arch.features.width
    table = parts.conv_norm("conv1", "bn1", "stem", 7, 3, channels)
    for stage, count in enumerate(model.blocks):
        for index in range(count):
            width = model.width * 2**stage
            theirs, ours = f"layer{stage + 1}.{index}.", f"stage_{stage}_{index}"
            table |= parts.conv_norm(f"{theirs}conv1", f"{theirs}bn1", f"{ours}/first", 1, channels, width)
            table |= parts.conv_norm(f"{theirs}conv2", f"{theirs}bn2", f"{ours}/second", 3, width, width)
            table |= parts.conv_norm(f"{theirs}conv3", f"{theirs}bn3", f"{ours}/third", 1, width, EXPANSION * width)
            if index == 0:
                adapt = (f"{theirs}downsample.0", f"{theirs}downsample.1", f"{ours}/shortcut")
                table |= parts.conv_norm(*adapt, 1, channels, EXPANSION * width)
            channels = EXPANSION * width
    return table
