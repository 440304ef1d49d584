"""Test that numbers are written as JSON lines, and by the packages that are asked for, each with its own words."""

import json
import shutil
import sys
import types

import jax
import numpy as np
import pytest

from soups import state, writers
from soups.lazy import MissingExtraError
from soups.writers import FILE, open_writer


def lines(directory):
    found = [json.loads(line) for line in (directory / FILE).read_text().splitlines()]
    assert all(record.pop("time") > 1.7e9 for record in found if "step" in record)
    return found


def refused(directory, also):
    with open_writer(directory, also):
        pytest.fail("it was opened")


class Recorder:
    """Take what a writer is given; a writer of CLU looks like this."""

    def __init__(self, log):
        self._log = log

    def __getattr__(self, name):
        return lambda *given, **named: self._log.append((name, *given, named) if named else (name, *given))


@pytest.fixture
def packages(monkeypatch):
    """Stand in for tensorboardX and wandb, and give the lists of what they were told."""
    told = {"tensorboardX": [], "wandb": []}

    def summary_writer(*given, **named):
        told["tensorboardX"].append(("SummaryWriter", *given, named))
        return Recorder(told["tensorboardX"])

    def init(**named):
        told["wandb"].append(("init", named))
        run = Recorder(told["wandb"])
        run.config = Recorder(told["wandb"])
        return run

    monkeypatch.setitem(sys.modules, "tensorboardX", types.SimpleNamespace(SummaryWriter=summary_writer))
    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    return told


def test_json_lines_are_always_written_and_can_be_followed(tmp_path):
    with open_writer(tmp_path / "a" / "run") as writer:
        writer.write_hparams({"learning_rate": 1e-3, "optimizer": len})
        assert not (tmp_path / "a" / "run" / FILE).exists()  # a run that has no step left changes nothing
        writer.write_scalars(0, {"loss": jax.numpy.float32(0.5), "rate": np.float64(1)})
        assert lines(tmp_path / "a" / "run") == [
            {"hparams": {"learning_rate": 1e-3, "optimizer": "<built-in function len>"}},
            {"step": 0, "loss": 0.5, "rate": 1.0},
        ]
        writer.write_scalars(np.int32(1), {"loss": float("nan"), "rate": -np.inf})
        writer.flush()
    assert lines(tmp_path / "a" / "run")[2:] == [{"step": 1, "loss": None, "rate": None}]


@pytest.mark.parametrize("torn", [b"", b'{"step": 3, "lo'])
def test_what_a_killed_run_wrote_after_its_checkpoint_is_replaced(torn, tmp_path):
    def write(steps, hparams):
        with open_writer(tmp_path) as writer:
            writer.write_hparams(hparams)
            for step in steps:
                writer.write_scalars(step, {"loss": 10 * len(steps) + step})

    write(range(3), {"seed": 0})
    with open(tmp_path / FILE, "ab") as file:
        file.write(torn)
    write([], {"seed": 0})
    write([2, 3], {"seed": 0})
    first = [{"hparams": {"seed": 0}}, {"step": 0, "loss": 30}, {"step": 1, "loss": 31}]
    assert lines(tmp_path) == [*first, {"step": 2, "loss": 22}, {"step": 3, "loss": 23}]
    write([1], {"seed": 1})
    assert lines(tmp_path) == [*first[:2], {"hparams": {"seed": 1}}, {"step": 1, "loss": 11}]
    write([0], {"seed": 2})
    assert lines(tmp_path) == [{"hparams": {"seed": 2}}, {"step": 0, "loss": 10}]


@pytest.mark.parametrize("line", ["{", "[1]", '{"loss": 1}', '{"step": "1"}', "\0" * 40, "[" * 100_000])
def test_a_damaged_line_is_named(line, tmp_path):
    (tmp_path / FILE).write_text('{"step": 0}\n' + line + '\n{"step": 2}\n')
    with (
        open_writer(tmp_path) as writer,
        pytest.raises(ValueError, match=rf"line 2 of {tmp_path / FILE} (is not|has no)"),
    ):
        writer.write_scalars(1, {"loss": 1})


def test_writers_of_ones_own_get_the_same_and_are_closed(tmp_path):
    log = []
    with pytest.raises(ZeroDivisionError), open_writer(tmp_path, [Recorder(log)]) as writer:
        writer.write_scalars(3, {"loss": np.float32(2)})
        writer.write_hparams({"seed": 1})
        writer.flush()
        raise ZeroDivisionError
    assert log == [("write_scalars", 3, {"loss": 2.0}), ("write_hparams", {"seed": 1}), ("flush",), ("close",)]


@pytest.mark.parametrize(
    ("step", "scalars", "message"),
    [
        (1.5, {"loss": 1.0}, "step must be a whole number, not 1.5"),
        ("a", {"loss": 1.0}, "step must be a whole number, not 'a'"),
        (0, {"step": 9.0}, "a scalar cannot be called 'step', which each line has itself"),
        (0, {"loss": None}, "the scalar 'loss' must be a number, not None"),
        (0, {"loss": np.ones(3)}, "the scalar 'loss' must be a number, not array"),
        (0, [1.0], "scalars must be a mapping from names to numbers, not a list"),
    ],
)
def test_what_is_no_step_or_no_number_is_named_and_not_written(step, scalars, message, tmp_path):
    with open_writer(tmp_path) as writer:
        with pytest.raises(ValueError, match=message):
            writer.write_scalars(step, scalars)
        with pytest.raises(ValueError, match="hyper-parameters must be a mapping, not a list"):
            writer.write_hparams([1])
    assert not (tmp_path / FILE).exists()


@pytest.mark.parametrize(
    ("also", "message"),
    [
        ("tensorboard", r"also must be a list of writers, such as \['tensorboard'\], not 'tensorboard'"),
        (None, "also must be a list of writers"),
        ([3], "a writer needs the methods write_scalars, write_hparams, flush, close, which 3 lacks"),
    ],
)
def test_what_is_no_writer_is_named(also, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        refused(tmp_path, also)


def test_hyper_parameters_are_json_whatever_they_are(tmp_path):
    with open_writer(tmp_path) as writer:
        writer.write_hparams(
            {"rate": np.float32(0.5), "sizes": np.arange(2), "limit": np.inf, "of": {"bad": (np.nan,)}}
        )
        writer.write_scalars(0, {"loss": 1.0})
    assert lines(tmp_path)[0] == {"hparams": {"rate": 0.5, "sizes": [0, 1], "limit": None, "of": {"bad": [None]}}}


@pytest.mark.parametrize(("first", "purge"), [(0, None), (5, 5)])
def test_tensorboard(first, purge, packages, tmp_path):
    with open_writer(tmp_path, ["tensorboard"]) as writer:
        writer.write_hparams({"seed": 1})
        writer.write_scalars(first, {"loss": 0.5, "rate": 1})
        writer.flush()
    assert packages == {
        "tensorboardX": [
            ("SummaryWriter", str(tmp_path / "tensorboard"), {"purge_step": purge}),
            ("add_text", "hyper-parameters", '{"seed": 1}', 0),
            ("add_scalar", "loss", 0.5, first),
            ("add_scalar", "rate", 1.0, first),
            ("flush",),
            ("close",),
        ],
        "wandb": [],
    }


def test_weights_and_biases_goes_on_with_the_same_run(packages, tmp_path):
    for first in (0, 2):
        with open_writer(tmp_path / "member_00", ["wandb"]) as writer:
            writer.write_hparams({"seed": 1})
            writer.write_scalars(first, {"loss": 0.5})
    run = state.read(tmp_path / "member_00" / "wandb.json")["id"]
    begun = ("init", {"dir": str(tmp_path / "member_00"), "name": "member_00", "id": run, "resume": "allow"})
    told = [[begun, ("update", {"seed": 1}, {"allow_val_change": True}), ("log", {"loss": 0.5}, {"step": step}),
             ("finish",)] for step in (0, 2)]  # fmt: skip
    assert packages == {"tensorboardX": [], "wandb": told[0] + told[1]}


@pytest.mark.parametrize(("name", "package"), writers._PACKAGES.items())
def test_a_package_that_is_not_installed_is_named_before_anything_is_written(name, package, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=rf'{package} is not installed: pip install "soups\[{name}\]"'):
        refused(tmp_path / "run", [name])
    assert not (tmp_path / "run").exists()


def test_a_package_is_imported_only_when_it_is_asked_for(tmp_path, monkeypatch):
    for package in writers._PACKAGES.values():
        monkeypatch.setitem(sys.modules, package, None)
    with open_writer(tmp_path) as writer:
        writer.write_scalars(0, {"loss": 1})
    with pytest.raises(ValueError, match=r"unknown metric writer 'tensorbord' \(did you mean 'tensorboard'\?\)"):
        refused(tmp_path, ["tensorbord"])


def test_another_process_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    log = []
    with open_writer(tmp_path / "run", ["tensorboard", Recorder(log)]) as writer:
        writer.write_scalars(0, {"loss": 1})
    assert not log and not (tmp_path / "run").exists()


def test_a_file_that_cannot_be_written_is_named(tmp_path):
    with open_writer(tmp_path / "run") as writer:
        writer.write_scalars(0, {"loss": 1})
        shutil.rmtree(tmp_path / "run")
        with pytest.raises(OSError, match=r"cannot write .*run/metrics\.jsonl: No such file"):
            writer.write_scalars(1, {"loss": 1})
