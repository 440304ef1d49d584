"""Compare ALIGN's towers with what transformers computed, from a folder that it wrote.

The recorded folder and outputs are those of `scripts/benchmarks/parity_encoders.py --sizes small --record`.
"""

import json
import math
import pathlib
import re
import shutil

import jax
import numpy as np
import pytest

from soups import models, tree
from soups.models import functional
from soups.models.align import SHARDING_RULES, similarity
from soups.models.architectures import architecture
from soups.models.import_weights import check_weights, import_weights
from soups.train import param_shardings

RECORDED = pathlib.Path(__file__).parent / "recorded" / "models"
FOLDER = RECORDED / "transformers-ALIGN-align-base"


@pytest.fixture(scope="module")
def images(small):
    """Return the small architecture, its weights and the compiled image tower."""
    arch = small("align-base")
    return arch, import_weights(FOLDER, arch), jax.jit(arch.apply_fn(None))


@pytest.fixture(scope="module")
def texts(small):
    """Return the weights of the text tower, its function, inputs, and the recorded logits of texts with images."""
    arch = small("align-base")
    with np.load(RECORDED / "transformers-ALIGN-text-align-base.logits.npz") as theirs:
        tokens, mask, segments = theirs["inputs"]
        expected = theirs["float64"]
    inputs = {"tokens": tokens, "mask": mask.astype(bool), "segments": segments}
    features = jax.jit(lambda params, inputs: models.text_features(params, inputs, arch=arch))
    return models.import_text_tower(FOLDER, arch), features, inputs, expected


def test_features_of_images_equal_those_of_transformers(images):
    arch, params, apply = images
    tree.check_same_structure([arch.abstract(None), params])
    with np.load(RECORDED / f"{FOLDER.name}.logits.npz") as theirs:
        found = np.asarray(apply(params, theirs["inputs"]), np.float64)
        assert np.abs(found - theirs["float64"]).max() <= 1e-5 * np.abs(theirs["float64"]).max()
    np.testing.assert_allclose(np.linalg.norm(found, axis=-1), 1, rtol=1e-6)


def test_logits_of_texts_equal_those_of_transformers(images, texts):
    arch, params, apply = images
    text_params, features, inputs, expected = texts
    shapes = jax.eval_shape(lambda key: functional.init(arch.text, key, inputs), jax.random.key(0))
    tree.check_same_structure([shapes, text_params])
    drawn = np.random.default_rng(1).random((4, 29, 29, 3), np.float32)  # as the benchmark draws them
    found = similarity(apply(params, drawn), features(text_params, inputs), models.import_temperature(FOLDER))
    assert found.per_text.shape == expected.shape == (5, 4)
    assert np.abs(np.asarray(found.per_text, np.float64) - expected).max() <= 1e-5 * np.abs(expected).max()
    np.testing.assert_array_equal(found.per_image, found.per_text.T)


def test_padding_of_texts_is_not_seen(texts):
    params, features, inputs, _ = texts
    expected, mask = features(params, inputs), inputs["mask"]
    other = {**inputs, "tokens": np.where(mask, inputs["tokens"], 7)}
    np.testing.assert_array_equal(features(params, other), expected)
    moved = {**inputs, "tokens": np.where(mask, 3 + inputs["tokens"] % 20, inputs["tokens"])}
    assert (np.abs(np.asarray(features(params, moved)) - expected).max(axis=1) > 1e-3).all()


def test_similarities_are_cosines_over_the_temperature():
    rng = np.random.default_rng(0)
    images, texts = rng.normal(size=(3, 4)), rng.normal(size=(2, 4))
    found = similarity(images.astype(np.float32), texts.astype(np.float32), 0.05)
    norms = np.linalg.norm(images, axis=1)[:, None] * np.linalg.norm(texts, axis=1)
    np.testing.assert_allclose(found.per_image, images @ texts.T / norms / 0.05, rtol=1e-5)


def test_temperatures_are_read_of_clip_too(write):
    assert models.import_temperature(FOLDER) == pytest.approx(0.07)
    scale = np.float32(math.log(100))
    assert models.import_temperature(write({"logit_scale": scale.reshape(1)})) == pytest.approx(0.01)
    with pytest.raises(ValueError, match="has no temperature: a single number named temperature or logit_scale"):
        models.import_temperature(write({"weight": np.ones(2, np.float32)}))


def test_blocks_are_dropped_in_training_alone(images):
    arch, params, _ = images

    def draws(program):
        jaxpr = str(jax.make_jaxpr(program)(params, np.zeros((2, 29, 29, 3), np.float32)))
        return re.findall(r"random_bits\[[^]]*shape=\(([\d, ]+)\)", jaxpr)

    train = arch.train_apply_fn(None, drop_connect=0.2)
    assert draws(arch.apply_fn(None, drop_connect=0.2)) == []
    assert draws(lambda p, x: train(p, x, jax.random.key(0))[0]) == ["2, 4, 4, 16"]  # the one block with a shortcut


def test_heads_start_at_zero_and_statistics_can_be_frozen(images):
    arch, params, _ = images
    headed = import_weights(FOLDER, arch, num_classes=3)
    assert not headed["params"]["head"]["kernel"].any()
    train = jax.jit(arch.train_apply_fn(3, frozen_statistics=True, remat=True))
    drawn = np.random.default_rng(0).random((2, 29, 29, 3), np.float32)
    logits, same = train(headed, drawn, jax.random.key(0))
    assert logits.shape == (2, 3) and not logits.any()
    jax.tree.map(np.testing.assert_array_equal, same["batch_stats"], params["batch_stats"])


def test_weights_are_sharded_by_the_rules(images):
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    _, params, apply = images
    shardings = param_shardings(params, mesh, SHARDING_RULES)
    cut = {name for name, leaf in tree.flatten(shardings).items() if "model" in str(leaf.spec)}
    assert "params/stage_2_1/project/conv/kernel" in cut and "params/stage_2_1/depthwise/conv/kernel" not in cut
    drawn = np.random.default_rng(0).random((2, 29, 29, 3), np.float32)
    np.testing.assert_allclose(apply(jax.device_put(params, shardings), drawn), apply(params, drawn), atol=1e-6)


def changed(tmp_path, part, **fields):
    """Copy the folder, with other values in a part of its config.json."""
    copy = tmp_path / "copy"
    shutil.copytree(FOLDER, copy)
    config = json.loads((copy / "config.json").read_text())
    config[part] |= fields
    (copy / "config.json").write_text(json.dumps(config))
    return copy


@pytest.mark.parametrize(
    ("part", "fields", "message"),
    [
        ("vision_config", {"depthwise_padding": []}, "says vision_config.depthwise_padding [], but align-base has [2]"),
        ("vision_config", {"strides": [1, 1, 2]}, "says vision_config.strides [1, 1, 2], but"),
        ("vision_config", {"hidden_act": "relu"}, "says vision_config.hidden_act relu"),
        ("text_config", {"num_attention_heads": 4}, "says text_config.num_attention_heads 4, but align-base has 2"),
    ],
)
def test_configs_of_another_computation_are_errors(small, tmp_path, part, fields, message):
    folder = changed(tmp_path, part, **fields)
    for read in (check_weights, models.import_text_tower):
        with pytest.raises(ValueError, match=re.escape(message)):
            read(folder, small("align-base"))


def test_files_of_another_network_are_errors(small):
    with pytest.raises(ValueError, match="Hugging Face's ALIGN names, but clip-vit-mini needs"):
        check_weights(FOLDER, small("clip-vit-mini"))
    with pytest.raises(ValueError, match="but align-base needs Hugging Face's ALIGN names"):
        models.import_text_tower(RECORDED / "transformers-CLIP-clip-vit-mini", small("align-base"))


def test_towers_have_the_published_number_of_weights():
    arch = architecture("align-base")
    weights = arch.abstract(None)
    assert (tree.count(weights["params"]), tree.count(weights["batch_stats"])) == (62_143_440, 305_600)
    assert arch.feature_dim == arch.features.feature_dim == arch.text.projection_size == 640
