"""State which encoders of texts are compared with those of transformers, and compute them with soups."""

import dataclasses
import pathlib

import jax
import numpy as np

from soups.models import import_temperature, import_text_tower, import_weights, similarity, text_features
from soups.models.architectures import Architecture, architecture
from soups.models.efficientnet_lite import Stage

SMALL = {"width": 8, "depth": 2, "mlp_dim": 16, "num_heads": 2, "vocabulary_size": 24, "context_length": 10}
KINDS = {
    "transformers BERT": "bert-base-uncased",
    "transformers BERT MLM": "bert-base-uncased-mlm",
    "transformers MiniLM": "minilm-l6",
    "transformers RoBERTa": "roberta-base-classifier",
    "transformers RoBERTa MLM": "roberta-base-mlm",
    "transformers DeBERTa": "deberta-v3-base",
    "transformers DeBERTa MLM": "deberta-v3-base-mlm",
    "released DeBERTa MLM": "deberta-v3-small-mlm",
    "transformers T5": "t5-base",
    "transformers T5 1.1": "t5-v1_1-base",
    "transformers ALIGN": "align-base",
    "transformers ALIGN text": "align-base",
}
# strides of 2 at even and odd lengths, one of them padded alike on both sides
ALIGN_PLAN = (Stage(16, 1, 3, 1, 1), Stage(24, 1, 5, 2, 6), Stage(40, 2, 5, 2, 6))
ALIGN_SMALL = {"width_multiplier": 0.25, "depth_multiplier": 1.0, "symmetric": (2,), "plan": ALIGN_PLAN}


T5_SMALL = {"width": 8, "depth": 2, "mlp_dim": 16, "num_heads": 2, "head_dim": 3, "vocabulary_size": 24}
T5_SMALL |= {"context_length": 10, "buckets": 8, "distance": 7}


@dataclasses.dataclass(frozen=True)
class TextCase:
    """Hold one comparison, as `ours_models.Case` does: the kind of network, the architecture, and how many texts."""

    kind: str
    arch: Architecture
    classes: int = 3
    count: int = 4

    of_text, trained = False, False

    @property
    def name(self) -> str:
        """Return the name of its weights, a folder."""
        return f"{self.kind}-{self.arch.name}".replace(" ", "-")

    def described(self, folder: pathlib.Path) -> dict:
        """Describe the network in plain values for the peer."""
        encoder = self.arch.features
        fields = ("width", "depth", "mlp_dim", "num_heads", "vocabulary_size", "context_length", "num_segments")
        fields += ("activation", "norm_epsilon", "position_offset", "buckets")
        case = {"name": self.name, "kind": self.kind, "classes": self.classes, "seed": 0}
        return case | {field: getattr(encoder, field) for field in fields}

    def inputs(self) -> np.ndarray:
        """Draw tokens, mask and segments of texts of different lengths, as one int32 [3, B, T]."""
        encoder, rng = self.arch.features, np.random.default_rng(0)
        length = min(encoder.context_length, 128)
        tokens = rng.integers(3, encoder.vocabulary_size, (self.count, length))
        ends = np.array([length, *rng.integers(2, length, self.count - 1)])[:, None]
        mask = np.arange(length)[None] < ends
        segments = (np.arange(length)[None] >= ends // 2) & mask & (encoder.num_segments > 1)
        # transformers count the positions of RoBERTa by its number of padding
        padding = max(encoder.position_offset - 1, 0)
        return np.stack([np.where(mask, tokens, padding), mask, segments]).astype(np.int32)

    def ours(self, path: pathlib.Path, inputs: np.ndarray) -> np.ndarray:
        """Import the peer's weights and give what the network computes; padding is zero."""
        params = import_weights(path, self.arch)
        apply = jax.jit(self.arch.apply_fn(self.classes if "head" in params else None))
        mask = inputs[1].astype(bool)
        found = np.asarray(apply(params, {"tokens": inputs[0], "mask": mask, "segments": inputs[2]}))
        return np.where(mask[..., None], found, 0) if found.ndim == 3 else found


@dataclasses.dataclass(frozen=True)
class T5Case(TextCase):
    """Hold one comparison of a T5, whose third input is what the decoder is given."""

    def described(self, folder: pathlib.Path) -> dict:
        """Describe the network in plain values for the peer."""
        fields = ("width", "depth", "mlp_dim", "num_heads", "head_dim", "vocabulary_size", "gated", "buckets")
        case = {"name": self.name, "kind": self.kind, "classes": None, "seed": 0}
        return case | {field: getattr(self.arch.features, field) for field in (*fields, "distance")}

    def inputs(self) -> np.ndarray:
        """Draw tokens and mask of texts of different lengths, and other texts, as one int32 [3, B, T]."""
        network, rng = self.arch.features, np.random.default_rng(0)
        length = min(network.context_length, 200)  # longer than all distances that have buckets
        tokens, written = rng.integers(3, network.vocabulary_size, (2, self.count, length))
        mask = np.arange(length)[None] < np.array([length, *rng.integers(2, length, self.count - 1)])[:, None]
        written[:, 0] = 0
        return np.stack([np.where(mask, tokens, 0), mask, written]).astype(np.int32)

    def ours(self, path: pathlib.Path, inputs: np.ndarray) -> np.ndarray:
        """Import the peer's weights and give the logits of the texts that are written."""
        given = {"tokens": inputs[0], "mask": inputs[1].astype(bool), "decoder_tokens": inputs[2]}
        return np.asarray(jax.jit(self.arch.apply_fn(None))(import_weights(path, self.arch), given))


@dataclasses.dataclass(frozen=True)
class AlignCase(TextCase):
    """Hold one comparison of ALIGN: the features of images, or the logits of texts with images of the seed 1."""

    of_text = property(lambda self: self.kind.endswith("text"))

    def described(self, folder: pathlib.Path) -> dict:
        """Describe the network in plain values for the peer."""
        image, text = self.arch.features, self.arch.text
        case = {"name": self.name, "kind": self.kind, "seed": 0, "image_size": self.arch.image_size}
        case |= {"plan": image.plan, "symmetric": image.symmetric, "projection": text.projection_size}
        case |= {name: getattr(image, name) for name in ("width_multiplier", "depth_multiplier")}
        fields = ("width", "depth", "mlp_dim", "num_heads", "vocabulary_size", "context_length", "num_segments")
        return case | {"text": {field: getattr(text, field) for field in (*fields, "activation", "norm_epsilon")}}

    def images(self, seed: int) -> np.ndarray:
        """Draw images in [0, 1]."""
        shape = (self.count, self.arch.image_size, self.arch.image_size, 3)
        return np.random.default_rng(seed).random(shape, np.float32)

    def inputs(self) -> np.ndarray:
        """Draw images, or tokens, mask and segments."""
        texts = dataclasses.replace(self.arch, features=self.arch.text)
        return TextCase(self.kind, texts, count=5).inputs() if self.of_text else self.images(0)

    def ours(self, path: pathlib.Path, inputs: np.ndarray) -> np.ndarray:
        """Import the peer's weights and give features of images, or logits of texts."""
        apply = jax.jit(self.arch.apply_fn(None))
        images = apply(import_weights(path, self.arch), self.images(1) if self.of_text else inputs)
        if not self.of_text:
            return np.asarray(images)
        given = {"tokens": inputs[0], "mask": inputs[1].astype(bool), "segments": inputs[2]}
        texts = text_features(import_text_tower(path, self.arch), given, arch=self.arch)
        return np.asarray(similarity(images, texts, import_temperature(path)).per_text)


def case_of(kind: str, arch: Architecture) -> TextCase:
    """Return the comparison of a kind of network."""
    return {"t5": T5Case, "align": AlignCase}.get(arch.family, TextCase)(kind, arch)


def real_cases() -> list[TextCase]:
    """Return the comparisons at the published sizes."""
    return [case_of(kind, architecture(name)) for kind, name in KINDS.items()]


def small_cases() -> list[TextCase]:
    """Return the comparisons of encoders so small that their files can lie beside the tests."""
    return [case_of(kind, small(architecture(name))) for kind, name in KINDS.items()]


def small(arch: Architecture) -> Architecture:
    """Shrink an encoder to about 2,000 weights."""
    if arch.family == "align":
        features, text = arch.features.clone(**ALIGN_SMALL), arch.text.clone(**SMALL, projection_size=16)
        return dataclasses.replace(arch, image_size=29, feature_dim=16, features=features, text=text)
    if arch.family == "t5":
        return dataclasses.replace(arch, feature_dim=T5_SMALL["width"], features=arch.features.clone(**T5_SMALL))
    changed = {} if arch.features.representation_size is None else {"representation_size": SMALL["width"]}
    changed |= {} if arch.features.buckets is None else {"buckets": 6}
    features = arch.features.clone(**SMALL, **changed)
    return dataclasses.replace(arch, feature_dim=SMALL["width"], features=features)
