"""Test that a run trains by any loss, and that one that is killed goes on to the same weights, to the bit."""

import dataclasses
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import chex
import jax
import killed_run
import numpy as np
import pytest
from jax.sharding import AxisType

from soups import tree
from soups.pool import digest
from soups.train import fit, param_shardings

ROOT = pathlib.Path(__file__).parents[2]
SCRIPT = pathlib.Path(__file__).with_name("killed_run.py")
STEPS, SAVE_EVERY = killed_run.STEPS, killed_run.SAVE_EVERY


def run(directory, training=killed_run.TRAINING, data=None, params=None, **options):
    given = {"save_every": SAVE_EVERY} | {name: options.pop(name) for name in list(options) if name in KEYWORDS}
    params = killed_run.start_weights() if params is None else params
    hyperparameters = killed_run.HYPERPARAMETERS | options
    data = killed_run.make_loader(hyperparameters["seed"]) if data is None else data
    return fit(training, params, data, hyperparameters=hyperparameters, directory=directory, **given)


KEYWORDS = ("save_every", "mesh", "shardings", "on_step")


class NoBatches:
    """Refuse to be read: a finished run needs no data."""

    def __iter__(self):
        raise AssertionError


def losses(directory):
    lines = map(json.loads, (directory / "losses.jsonl").read_text().splitlines())
    return [{"step": line["step"], "loss": line["loss"]} for line in lines]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Return the directory and the final state of a run that nothing interrupted."""
    directory = tmp_path_factory.mktemp("whole")
    return directory, jax.device_get(run(directory))


def test_a_killed_run_goes_on_to_the_same_bits(whole, tmp_path):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    killed = subprocess.run([sys.executable, SCRIPT, tmp_path, "8"], env=environment, timeout=300)
    assert killed.returncode == -signal.SIGKILL
    assert sorted(path.name for path in tmp_path.glob("step_*")) == ["step_00000003", "step_00000006"]
    assert len(losses(tmp_path)) == 7  # the eighth was not known yet; two of these are after the last checkpoint
    (tmp_path / "step_00000009.unfinished").mkdir()
    with (tmp_path / "losses.jsonl").open("a") as file:
        file.write('{"step": 7, "lo')
    seen = []
    state = run(tmp_path, on_step=lambda index, loss: seen.append(index))
    assert seen == list(range(6, STEPS))
    chex.assert_trees_all_equal(jax.device_get(state), whole[1])
    assert losses(tmp_path) == losses(whole[0])
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(path.name for path in whole[0].iterdir())


def test_it_trains_as_the_plain_loop(whole):
    batches = iter(killed_run.make_loader(killed_run.HYPERPARAMETERS["seed"]))
    expected = run(None, data=batches)
    chex.assert_trees_all_equal(whole[1], jax.device_get(expected))


def test_members_share_one_compilation(whole, tmp_path):
    traced = []

    def network(params, images, key):
        traced.append(images.shape)
        return killed_run.network(params, images, key)

    training = dataclasses.replace(killed_run.TRAINING, loss=dataclasses.replace(killed_run.LOSS, train_apply=network))
    first = run(tmp_path / "first", training)
    chex.assert_trees_all_equal(jax.device_get(first), whole[1])
    once = len(traced)
    run(tmp_path / "second", training, learning_rate=1e-4, seed=6)
    assert len(traced) == once > 0
    assert training.begin._cache_size() == 1


def test_losses_are_written_for_every_step(whole):
    lines = losses(whole[0])
    assert [line["step"] for line in lines] == list(range(STEPS))
    assert 0.1 < lines[0]["loss"] < 3


def test_a_finished_run_is_read_and_not_repeated(whole):
    before = (whole[0] / "losses.jsonl").read_bytes()
    state = run(whole[0], data=NoBatches())
    chex.assert_trees_all_equal(jax.device_get(state), whole[1])
    assert (whole[0] / "losses.jsonl").read_bytes() == before


def test_a_sharded_run_goes_on_to_the_same_bits(whole, tmp_path):
    mesh = jax.make_mesh((1, 2, 4), ("pool", "data", "model"), axis_types=(AxisType.Auto,) * 3)
    shardings = param_shardings(killed_run.start_weights(), mesh, min_size=64)
    options = {"mesh": mesh, "shardings": shardings}
    first = run(tmp_path / "a", **options)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    shutil.rmtree(tmp_path / "b" / f"step_{STEPS:08d}")  # as if killed before the last checkpoint
    again = run(tmp_path / "b", **options)
    chex.assert_trees_all_equal(jax.device_get(again), jax.device_get(first))
    kernel = again["params"]["hidden"]["kernel"]
    assert kernel.addressable_shards[0].data.size == kernel.size / 8
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), first["params"], whole[1]["params"]
    )


def test_a_loss_that_is_not_finite_is_null(tmp_path):
    params = killed_run.start_weights()
    params["head"]["bias"] = np.float32([3e38, -3e38, 0])
    run(tmp_path, params=params, num_steps=1)
    assert losses(tmp_path) == [{"step": 0, "loss": None}]


def test_another_run_in_the_directory_is_an_error(whole):
    training = dataclasses.replace(killed_run.TRAINING, clip_norm=2.0)
    params = tree.map_with_names(
        lambda name, leaf: leaf[:4] if name == "hidden/kernel" else leaf, killed_run.start_weights()
    )
    with pytest.raises(ValueError, match="holds a run that was begun with something else") as error:
        run(whole[0], training, NoBatches(), params, learning_rate=0.02)
    assert str(error.value).splitlines()[1:-1] == [
        "  training.clip_norm: 1.0 there, 2.0 now",
        "  hyperparameters.learning_rate: 0.029999999329447746 there, 0.019999999552965164 now",
        "  weights.hidden/kernel: float32[48, 16] there, float32[4, 16] now",
        f"  digest.start: {digest({'start': killed_run.start_weights()})} there, {digest({'start': params})} now",
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"save_every": 0}, "save_every must be at least 1, not 0"),
        ({"learning_rat": 1}, "unknown hyper-parameter 'learning_rat'"),
        ({"data": [killed_run.first_batch()]}, "a list_iterator, cannot be resumed: it needs get_state and set_state"),
        ({"data": killed_run.make_loader(5, 5)}, "a batch of 5 cannot be cut into accumulate=2"),
    ],
)
def test_what_cannot_be_run(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        run(tmp_path, **options)


def test_steps_are_needed(tmp_path):
    with pytest.raises(ValueError, match="batches that have no length need a number of steps"):
        fit(killed_run.TRAINING, killed_run.start_weights(), NoBatches(), directory=tmp_path)


def test_batches_that_end_early_are_an_error(tmp_path, whole):
    class Short:
        def __iter__(self):
            return self

        def __next__(self):
            raise StopIteration

        def get_state(self):
            return {}

        def set_state(self, state):
            """Take nothing."""

    with pytest.raises(ValueError, match=f"the batches ended after 0 of {STEPS} steps"):
        run(tmp_path, data=Short())


def test_shardings_of_another_mesh_are_an_error(tmp_path, mesh):
    other = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    shardings = param_shardings(killed_run.start_weights(), other)
    with pytest.raises(ValueError, match="the shardings are not all on the given mesh"):
        run(tmp_path, mesh=mesh, shardings=shardings)


def test_several_processes_need_a_mesh(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(ValueError, match="2 processes need a mesh"):
        run(tmp_path)


def test_a_directory_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        run(tmp_path / "file" / "run")
