"""Test what the study of many tasks adds to the library: scores, heads, and methods put together there."""

import dataclasses

import jax
import numpy as np
import pytest

from soups import tree
from soups.data import array_source
from soups.models import ViT
from soups.models.many_heads import (
    UNUSED,
    ManyHeads,
    bundled,
    head_logits,
    probed_head,
    stacked,
    unstacked,
)
from soups.studies.task_methods import METHODS, agreeing, why_not
from soups.studies.tasks import normalised_score

FIELDS = {"patch_size": 4, "width": 8, "depth": 1, "mlp_dim": 8, "num_heads": 2, "pool_type": "gap"}


@pytest.fixture(scope="module")
def networks():
    return ManyHeads(make=lambda count: ViT(count, **FIELDS), num_classes=3, image_shape=(8, 8, 1))


@dataclasses.dataclass(frozen=True)
class Weights:
    """Hold what methods need that take no examples."""

    base: dict
    members: dict
    seed: int = 0


@pytest.fixture
def kit(rng):
    """Return three members around a base, with a leaf of queries."""
    shapes = {"dense/kernel": (6, 4), "dense/bias": (4,), "query/kernel": (6, 2, 3), "query/bias": (2, 3)}

    def draw(scale):
        leaves = {name: (scale * rng.normal(size=shape)).astype(np.float32) for name, shape in shapes.items()}
        return {"block": {n: {k: leaves[f"{n}/{k}"] for k in ("kernel", "bias")} for n in ("dense", "query")}}

    base = draw(1.0)
    members = {name: tree.add_scaled(base, draw(size)) for name, size in (("a", 0.1), ("b", 0.2), ("c", 0.4))}
    return Weights(base, members)


def flat(weights):
    """Return weights as one float64 array."""
    return np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(weights)]).astype(np.float64)


def vectors(kit):
    """Return the task vectors."""
    return {name: flat(member) - flat(kit.base) for name, member in kit.members.items()}


def test_normalised_score_is_the_mean_of_the_ratios():
    of_members = {"a": 0.8, "b": 0.5}
    assert normalised_score({"a": 0.4, "b": 0.6}, of_members) == pytest.approx((0.5 + 1.2) / 2)


def test_a_head_knows_the_classes_it_was_fitted_on(rng):
    for number in (2, 3):
        labels = np.arange(90) % number
        centres = 4 * rng.normal(size=(number, 8))
        features = (centres[labels] + 0.1 * rng.normal(size=(90, 8))).astype(np.float32)
        head = probed_head(features, labels, 4)
        logits = head_logits(features, head)
        np.testing.assert_array_equal(logits.argmax(1), labels)
        np.testing.assert_array_equal(logits[:, number:], UNUSED)


def test_joint_logits_are_those_of_each_task(networks, rng):
    params = jax.jit(lambda key: networks.single.init(key, np.zeros((1, 8, 8, 1), np.float32)))(jax.random.key(0))[
        "params"
    ]
    trunk = {name: part for name, part in params.items() if name != "head"}
    heads = {
        name: {"kernel": rng.normal(size=(8, 3)).astype(np.float32), "bias": rng.normal(size=3).astype(np.float32)}
        for name in ("a", "b")
    }
    data = {name: array_source(rng.integers(0, 256, (5, 8, 8, 1), np.uint8), np.arange(5) % 3) for name in heads}
    bundle = bundled(data.values())
    np.testing.assert_array_equal(bundle["label"][:, 1], data["b"].labels)
    inputs = bundle["image"].astype(np.float32) / 255
    joint = jax.jit(networks.joint_logits)({**trunk, "head": stacked(heads)}, inputs)
    for index, (name, dataset) in enumerate(data.items()):
        batch = {"image": dataset.images.astype(np.float32) / 255, "head": heads[name]}
        alone = jax.jit(networks.task_logits)(trunk, batch)
        np.testing.assert_allclose(joint[:, index], alone, rtol=1e-5, atol=1e-5)
        features = jax.jit(networks.features)(trunk, batch["image"])
        np.testing.assert_allclose(head_logits(np.asarray(features), heads[name]), alone, rtol=1e-5, atol=1e-5)
    for name, head in unstacked(stacked(heads), heads).items():
        np.testing.assert_array_equal(head["kernel"], heads[name]["kernel"])


def test_weights_by_length(kit):
    found = vectors(kit)
    lengths = {name: np.sqrt(sum(x * x for x in vector)) for name, vector in found.items()}
    total = sum(1 / length for length in lengths.values())
    expected = flat(kit.base) + sum(vector / lengths[name] / total for name, vector in found.items())
    np.testing.assert_allclose(flat(METHODS["weighted"].merge(kit, None)), expected, rtol=1e-5, atol=1e-6)


def test_tall_masks_give_each_task_a_trunk(kit):
    found = vectors(kit)
    merged = METHODS["tall_masks"].merge(kit, None, threshold=0.5)
    total = sum(found.values())
    for name, vector in found.items():
        kept = np.array([abs(t) >= 0.5 * abs(s - t) for t, s in zip(vector, total, strict=True)])
        np.testing.assert_allclose(flat(merged.trunks[name]), flat(kit.base) + kept * total, rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(flat(merged.masks[name]), kept)


def test_adamerging_pp_takes_trimmed_vectors_of_the_elected_signs(kit):
    found = vectors(kit)
    trimmed = {}
    for name, vector in found.items():
        least = np.sort(np.abs(vector))[::-1][int(0.5 * len(vector))]  # the published count keeps one more
        trimmed[name] = np.where(np.abs(vector) >= least, vector, 0.0)
    sign = np.sign(sum(trimmed.values()))
    members = {name: tree.sub(member, kit.base) for name, member in kit.members.items()}
    for name, vector in agreeing(members, 0.5).items():
        expected = np.where(np.sign(trimmed[name]) == sign, trimmed[name], 0.0)
        np.testing.assert_allclose(flat(vector), expected, atol=1e-6)


def test_attention_is_merged_as_matrices(kit):
    merged = METHODS["iso_c"].merge(kit, None, scale=0.5)["block"]["query"]["kernel"]
    start = kit.base["block"]["query"]["kernel"].astype(np.float64)
    total = sum(member["block"]["query"]["kernel"] - start for member in kit.members.values()).reshape(6, 6)
    u, values, v = np.linalg.svd(total)
    np.testing.assert_allclose(merged, start + 0.5 * values.mean() * (u @ v).reshape(6, 2, 3), rtol=1e-4, atol=1e-5)


def test_a_method_for_two_members_says_why_it_is_left_out():
    assert why_not(METHODS["slerp"], 2) == ""
    assert why_not(METHODS["slerp"], 8) == "merges exactly 2 members, but there are 8"
