"""Make small architectures, whose recorded files and logits were made by other programs, and write files of them."""

import dataclasses

import numpy as np
import pytest

from soups.formats import write_safetensors
from soups.models.architectures import Architecture, architecture
from soups.models.efficientnet_lite import Stage


@pytest.fixture(scope="session")
def small():
    """Shrink an architecture as scripts/benchmarks/parity_models.py and parity_encoders.py do, by name."""

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


@pytest.fixture
def write(tmp_path):
    """Write tensors as a .safetensors file and give its path."""

    def write_file(tensors, name="model.safetensors"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        write_safetensors(path, {key: np.ascontiguousarray(tensor) for key, tensor in tensors.items()})
        return path

    return write_file
