"""Compare CLIP's text tower with what open_clip and transformers computed, from files that they wrote."""

import dataclasses
import pathlib

import jax
import numpy as np
import pytest

from soups import tree
from soups.models.clip_text import import_text_tower, text_features, text_tower

RECORDED = pathlib.Path(__file__).parent / "recorded" / "models"
OPEN_CLIP, HF_CLIP = RECORDED / "open_clip-open-clip-vit-b32.safetensors", RECORDED / "transformers-CLIP-clip-vit-mini"
EXPECTED = {
    OPEN_CLIP: ("open-clip-vit-b32", RECORDED / "open_clip-text-open-clip-vit-b32.safetensors.logits.npz"),
    HF_CLIP: ("clip-vit-mini", RECORDED / "transformers-CLIP-text-clip-vit-mini.logits.npz"),
}


@pytest.fixture
def params(small):
    """Return the text tower that open_clip wrote."""
    return import_text_tower(OPEN_CLIP, small("open-clip-vit-b32"))


@pytest.mark.parametrize("file", EXPECTED)
def test_features_equal_those_of_the_program_that_wrote_the_file(small, file):
    name, recorded = EXPECTED[file]
    arch = small(name)
    params = import_text_tower(file, arch)
    with np.load(recorded) as theirs:
        found = jax.jit(lambda params, tokens: text_features(params, tokens, arch=arch))(params, theirs["inputs"])
        error = np.abs(np.asarray(found, np.float64) - theirs["float64"]).max() / np.abs(theirs["float64"]).max()
    assert found.dtype == np.float32 and error <= 1e-5


def test_what_stands_behind_the_end_is_not_seen(small, params):
    arch = small("open-clip-vit-b32")
    texts = np.array([[18, 3, 4, 19, 0, 0, 0, 0], [18, 5, 19, 0, 0, 0, 0, 0]], np.int32)
    other = np.where(texts == 0, 7, texts)
    features = text_features(params, texts, arch=arch)
    np.testing.assert_allclose(text_features(params, other, arch=arch), features, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(text_features(params, texts[:, :4], arch=arch), features, rtol=1e-5, atol=1e-6)
    before = np.array([[17, 3, 4, 19, 0, 0, 0, 0]], np.int32)
    assert not np.allclose(text_features(params, before, arch=arch), features[:1], atol=1e-2)


def test_the_vocabulary_is_as_large_as_that_of_the_file(small, params):
    arch = small("open-clip-vit-b32")
    larger = dataclasses.replace(arch, text=arch.text.clone(vocabulary_size=49408))
    again = import_text_tower(OPEN_CLIP, larger)
    tree.check_same_structure([params, again])
    assert again["token_embedding"]["embedding"].shape == (20, 16)


def test_features_are_not_normalised(small, params):
    features = text_features(params, np.array([[18, 3, 19]], np.int32), arch=small("open-clip-vit-b32"))
    assert abs(np.linalg.norm(features) - 1) > 0.1


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (np.zeros((1, 9), np.int32), r"T from 1 to 8, not \(1, 9\)"),
        (np.zeros(8, np.int32), r"tokens must be \[B, T\]"),
        (np.zeros((1, 8), np.float32), "tokens must be integers, but they are float32"),
    ],
)
def test_other_tokens_are_errors(small, params, tokens, message):
    with pytest.raises(ValueError, match=message):
        text_features(params, tokens, arch=small("open-clip-vit-b32"))


def test_files_and_architectures_without_a_text_tower_are_errors(small):
    with pytest.raises(ValueError, match="'vit-b16' has no text tower"):
        text_tower("vit-b16")
    with pytest.raises(ValueError, match="unknown names"):
        import_text_tower(RECORDED / "timm-timm-vit-ti16.safetensors", small("clip-vit-mini"))
    with pytest.raises(ValueError, match=r"(?s)text tower of clip-vit-mini:.*transformer.resblocks.1.* is missing"):
        arch = small("clip-vit-mini")
        import_text_tower(OPEN_CLIP, dataclasses.replace(arch, text=arch.text.clone(depth=2)))
