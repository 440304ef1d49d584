"""Soups of networks with BatchNorm get statistics of their own, or a word that they have none."""

import jax
import numpy as np
import pytest
from flax import linen as nn

import soups
from soups import models
from soups.data import Dataset
from soups.evaluate import Evaluator
from soups.studies.examples import Examples
from soups.studies.kitchen import Kitchen
from soups.studies.members import reestimation


class Net(nn.Module):
    """Be a linear classifier on normalised inputs; only the first norm is ever trained."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.BatchNorm(use_running_average=not train)(x.reshape(len(x), -1))
        return nn.Dense(3)(nn.BatchNorm(use_running_average=True)(x))


@pytest.fixture(scope="module")
def kit():
    """Return images, labels, two members and the network."""
    rng = np.random.default_rng(0)
    data = Dataset(
        rng.integers(0, 256, (90, 2, 2, 1), np.uint8), rng.integers(0, 3, 90).astype(np.int32), ("a", "b", "c")
    )
    start = models.init(Net(), jax.random.key(0), (2, 2, 1))
    members = {
        name: jax.tree.map(lambda leaf: leaf + np.abs(rng.normal(size=leaf.shape)).astype(np.float32), start)
        for name in ("a", "b")
    }
    return data, members, models.Network.of(Net())


def kitchen(kit, folder, **options):
    data, members, network = kit
    examples = Examples(data.images, data.labels)
    return Kitchen(
        members=members,
        apply_fn=network.apply,
        held_out=examples,
        test=examples,
        shifts={},
        directory=folder,
        **options,
    )


def test_statistics_are_those_of_the_training_images(kit):
    data, members, network = kit
    found = reestimation(network, data, 40)(members["a"])
    inputs = data.images.reshape(90, 4).astype(np.float64) / 255
    np.testing.assert_allclose(found["batch_stats"]["BatchNorm_0"]["mean"], inputs.mean(0), rtol=1e-4)
    np.testing.assert_allclose(found["batch_stats"]["BatchNorm_0"]["var"], inputs.var(0), rtol=1e-4)
    np.testing.assert_array_equal(  # frozen: none can be measured
        found["batch_stats"]["BatchNorm_1"]["var"], members["a"]["batch_stats"]["BatchNorm_1"]["var"]
    )


def test_every_soup_gets_statistics_of_its_own(kit, tmp_path, capsys):
    data, members, network = kit
    settle = reestimation(network, data, 40)
    own, plain = kitchen(kit, tmp_path, reestimate=settle), kitchen(kit, tmp_path / "plain")
    accuracy = {name: Evaluator(network.apply, data)(made)["accuracy"] for name, made in {
        "mean": settle(soups.uniform(members)), "as averaged": soups.uniform(members), "b": members["b"]
    }.items()}  # fmt: skip
    assert own.uniform_row()["metrics"]["test"]["accuracy"] == accuracy["mean"]
    assert plain.uniform_row()["metrics"]["test"]["accuracy"] == accuracy["as averaged"]
    made = settle(soups.wise_ft(members["b"], base=members["a"], alpha=0.3))
    rows = {r["of"]["alpha"]: r for r in own.path_rows(members["a"], [0.3, 1.0], member="b") if r["group"] == "curve"}
    assert rows[0.3]["metrics"]["test"]["accuracy"] == Evaluator(network.apply, data)(made)["accuracy"]
    assert rows[1.0]["metrics"]["test"]["accuracy"] == accuracy["b"]
    _, history = own.greedy_row()
    assert history[1]["score"] == accuracy["mean"]
    plain.greedy_row()
    assert capsys.readouterr().out.count("BatchNorm statistics") == 1
