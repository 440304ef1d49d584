"""Make small architectures, whose recorded files and logits were made by other programs, and write files of them."""

import dataclasses

import jax
import numpy as np
import pytest
from recorded_texts import CLASSES, FIELDS, NAMES, RECORDED

from soups.formats import write_safetensors
from soups.models.architectures import Architecture, architecture
from soups.models.decoder import Decoder
from soups.models.efficientnet_lite import Stage
from soups.models.import_weights import import_weights


@pytest.fixture(scope="session")
def small():
    """Shrink an architecture as scripts/benchmarks/parity_{models,encoders,decoders}.py do, by name."""

    def shrink(name: str) -> Architecture:
        arch = architecture(name)
        if arch.family == "align":
            plan = (Stage(16, 1, 3, 1, 1), Stage(24, 1, 5, 2, 6), Stage(40, 2, 5, 2, 6))
            fields = {"width_multiplier": 0.25, "depth_multiplier": 1.0, "symmetric": (2,), "plan": plan}
            sizes = {"width": 8, "depth": 2, "mlp_dim": 16, "num_heads": 2, "vocabulary_size": 24, "context_length": 10}
            parts = {"features": arch.features.clone(**fields), "text": arch.text.clone(**sizes, projection_size=16)}
            return dataclasses.replace(arch, image_size=29, feature_dim=16, **parts)
        if arch.family == "t5":
            sizes = {"width": 8, "depth": 2, "mlp_dim": 16, "num_heads": 2, "head_dim": 3, "vocabulary_size": 24}
            sizes |= {"context_length": 10, "buckets": 8, "distance": 7}
            return dataclasses.replace(arch, feature_dim=8, features=arch.features.clone(**sizes))
        if isinstance(arch.features, Decoder):
            sizes = {"width": 16, "depth": 2, "mlp_dim": 32, "num_heads": 4, "vocabulary_size": 24}
            sizes |= {"context_length": 10}
            return dataclasses.replace(arch, feature_dim=16, features=arch.features.clone(**sizes))
        if arch.image_size is None:
            pooled = {} if arch.features.representation_size is None else {"representation_size": 8}
            sizes = {"width": 8, "depth": 2, "mlp_dim": 16, "num_heads": 2, "vocabulary_size": 24, "context_length": 10}
            sizes |= {} if arch.features.buckets is None else {"buckets": 6}
            return dataclasses.replace(arch, feature_dim=8, features=arch.features.clone(**sizes, **pooled))
        if arch.family == "torchvision":
            features = arch.features.clone(blocks=(1, 2, 1, 1), width=2)
            return dataclasses.replace(arch, image_size=64, feature_dim=64, features=features)
        if arch.text is None:
            features = arch.features.clone(patch_size=4, width=16, depth=2, mlp_dim=32, num_heads=2)
            return dataclasses.replace(arch, image_size=12, feature_dim=16, features=features)
        features = arch.features.clone(patch_size=4, width=16, depth=2, mlp_dim=64, num_heads=2, projection_size=8)
        text = arch.text.clone(width=16, depth=1, num_heads=2, projection_size=8, vocabulary_size=20, context_length=8)
        return dataclasses.replace(arch, image_size=12, feature_dim=8, features=features, text=text)

    return shrink


@pytest.fixture(scope="session")
def arch_of(small):
    """Return a function from a recorded folder of `recorded_texts` to its small architecture."""

    def build(folder):
        arch = small(NAMES[folder])
        return dataclasses.replace(arch, features=arch.features.clone(**FIELDS.get(folder, {})))

    return build


@pytest.fixture(scope="session")
def case(arch_of):
    """Return a function from a recorded folder to its architecture, weights, compiled network, inputs and outputs."""
    known = {}

    def load(folder):
        if folder not in known:
            arch = arch_of(folder)
            third = "decoder_tokens" if arch.family == "t5" else "segments"
            with np.load(RECORDED / f"{folder}.logits.npz") as theirs:
                inputs = dict(zip(("tokens", "mask", third), theirs["inputs"], strict=False))
                expected = theirs["float64"]
            inputs["mask"] = inputs["mask"].astype(bool)
            params, apply = import_weights(RECORDED / folder, arch), jax.jit(arch.apply_fn(CLASSES.get(folder)))
            known[folder] = arch, params, apply, inputs, expected
        return known[folder]

    return load


@pytest.fixture
def write(tmp_path):
    """Write tensors as a .safetensors file and give its path."""

    def write_file(tensors, name="model.safetensors"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        write_safetensors(path, {key: np.ascontiguousarray(tensor) for key, tensor in tensors.items()})
        return path

    return write_file
