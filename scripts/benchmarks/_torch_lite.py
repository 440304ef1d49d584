"""Train EfficientNet-Lite0 in PyTorch, on command: run by train_lite_torch.py with an interpreter that has torch.

`_torch_serve.serve` says what it reads, says and obeys.
"""

import torch
import torch.nn.functional as F
from _torch_serve import serve, stepper
from torch import nn

CHECKED_STEPS = 2  # Adam makes much of rounding: its first steps are signs of gradients


class ConvNorm(nn.Module):
    """A convolution, padded as TensorFlow's SAME, and a BatchNorm of frozen statistics."""

    def __init__(self, inputs, outputs, size, stride, groups=1):
        super().__init__()
        self.size, self.stride = size, stride
        # at stride 1 both sides are padded alike, which the convolution does itself
        padding = size // 2 if stride == 1 else 0
        self.conv = nn.Conv2d(inputs, outputs, size, stride, padding, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(outputs, eps=1e-3)

    def forward(self, x):
        """Map [B, C, H, W] to [B, outputs, ⌈H/stride⌉, ⌈W/stride⌉]."""
        if self.stride > 1:
            sides = []
            for length in (x.shape[-1], x.shape[-2]):
                total = max((-(-length // self.stride) - 1) * self.stride + self.size - length, 0)
                sides += [total // 2, total - total // 2]
            x = F.pad(x, sides)
        return self.norm(self.conv(x))


class Block(nn.Module):
    """An inverted bottleneck."""

    def __init__(self, inputs, width, size, stride, expansion):
        super().__init__()
        inside = inputs * expansion
        self.expand = ConvNorm(inputs, inside, 1, 1) if expansion > 1 else None
        self.depthwise = ConvNorm(inside, inside, size, stride, inside)
        self.project = ConvNorm(inside, width, 1, 1)

    def forward(self, x):
        """Map [B, C, H, W] to [B, width, ⌈H/stride⌉, ⌈W/stride⌉]."""
        y = x if self.expand is None else F.relu6(self.expand(x))
        y = self.project(F.relu6(self.depthwise(y)))
        return x + y if x.shape == y.shape else y


class Lite(nn.Module):
    """The network of soups.models.EfficientNetLite for bytes."""

    def __init__(self, settings):
        super().__init__()
        self.mean, self.std = settings["mean"], settings["std"]
        channels, blocks = settings["stem"], {}
        self.stem = ConvNorm(3, channels, 3, 2)
        for index, (width, count, size, stride, expansion) in enumerate(settings["stages"]):
            for block in range(count):
                fields = (channels, width, size, stride if block == 0 else 1, expansion)
                blocks[f"stage_{index}_{block}"], channels = Block(*fields), width
        self.blocks = nn.ModuleDict(blocks)
        self.top = ConvNorm(channels, settings["top"], 1, 1)
        self.head = nn.Linear(settings["top"], settings["num_classes"])

    def forward(self, images):
        """Map bytes [B, 3, H, W] to logits [B, classes]."""
        x = (images.float() / 255 - self.mean) / self.std
        x = F.relu6(self.stem(x))
        for block in self.blocks.values():
            x = block(x)
        return self.head(F.relu6(self.top(x)).mean((2, 3)))


def load(model, weights):
    """Copy soups' weights into the model, and freeze the statistics."""
    with torch.no_grad():
        for name, module in model.named_modules():
            place = name.removeprefix("blocks.").replace(".", "/")
            if isinstance(module, ConvNorm):
                kernel = torch.tensor(weights[f"params/{place}/conv/kernel"])
                module.conv.weight.copy_(kernel.permute(3, 2, 0, 1))
                names = {"weight": "params/{}/norm/scale", "bias": "params/{}/norm/bias"}
                names |= {"running_mean": "batch_stats/{}/norm/mean", "running_var": "batch_stats/{}/norm/var"}
                for theirs, ours in names.items():
                    getattr(module.norm, theirs).copy_(torch.tensor(weights[ours.format(place)]))
        model.head.weight.copy_(torch.tensor(weights["params/head/kernel"]).T)
        model.head.bias.copy_(torch.tensor(weights["params/head/bias"]))
    return model.eval()  # there is no dropout: only the BatchNorms know a mode


def tasks(file, settings, *, compiled, channels_last):
    """Return the task of a variant."""
    model = load(Lite(settings), file)
    images, labels = torch.tensor(file["images"]).permute(0, 3, 1, 2), torch.tensor(file["labels"]).long()
    layout = torch.channels_last if channels_last else torch.contiguous_format
    model, images = model.to(memory_format=layout), images.contiguous(memory_format=layout)
    optimizer = torch.optim.Adam(model.parameters(), lr=settings["learning_rate"], fused=True)
    forward = torch.compile(model) if compiled else model
    return {"train": stepper(lambda: F.cross_entropy(forward(images), labels), optimizer)}


if __name__ == "__main__":
    variants = {
        "torch": {"compiled": False, "channels_last": False},
        "torch, channels last": {"compiled": False, "channels_last": True},
        "torch.compile": {"compiled": True, "channels_last": True},
    }
    serve(tasks, variants, CHECKED_STEPS)
