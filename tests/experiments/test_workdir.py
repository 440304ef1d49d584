"""Test that what is finished is kept, and that a directory of another run is refused."""

import errno
import json
import os

import pytest

from soups.experiments.workdir import Workdir, check_fields, write_json

CONFIG = {"seeds": 1, "sweep": {"members": 24, "learning_rate": (1e-4, 1e-2)}}


def test_a_stage_is_computed_once(tmp_path):
    calls = []
    for _ in range(2):
        workdir = Workdir(tmp_path, CONFIG)
        assert workdir.stage("soups", lambda: calls.append(1) or {"accuracy": 0.1 + 0.2}) == {"accuracy": 0.1 + 0.2}
    assert calls == [1]
    assert list(workdir.seconds("so")) == ["ups"]


def test_a_stage_that_fails_leaves_nothing(tmp_path):
    workdir = Workdir(tmp_path, CONFIG)
    with pytest.raises(ZeroDivisionError):
        workdir.stage("soups", lambda: 1 / 0)
    assert workdir.stage("soups", lambda: 5) == 5


def test_another_config_lists_all_differences(tmp_path):
    Workdir(tmp_path, CONFIG)
    other = {"seeds": 3, "sweep": {"members": 24, "learning_rate": (1e-4, 1e-3)}, "extra": True}
    with pytest.raises(ValueError, match="another config") as error:
        Workdir(tmp_path, other)
    message = str(error.value)
    assert "seeds: 1 there, 3 now" in message
    assert "sweep.learning_rate: [0.0001, 0.01] there, [0.0001, 0.001] now" in message
    assert "extra: (absent) there, True now" in message
    assert "members" not in message


def test_a_path_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="cannot be written"):
        Workdir(tmp_path / "file" / "run", CONFIG)


def test_write_json_leaves_the_old_file_when_it_fails(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="Out of range float"):
        write_json(path, {"a": float("nan")})  # not JSON
    assert json.loads(path.read_text()) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_named_and_leaves_nothing(tmp_path, monkeypatch):
    workdir = Workdir(tmp_path, CONFIG)

    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"cannot write .*soups\.json: No space left on device") as error:
        workdir.stage("soups", lambda: 5)
    assert error.value.errno == errno.ENOSPC
    assert list((tmp_path / "stages").iterdir()) == []
    monkeypatch.undo()
    assert workdir.stage("soups", lambda: 5) == 5


def test_fields_are_all_checked_at_once():
    fields = {"": ("seeds",), "sweep": ("members", "epochs")}
    check_fields({"seeds": 1, "sweep": {"members": 2, "epochs": 3}}, fields)
    with pytest.raises(ValueError) as error:
        check_fields({"sede": 1, "sweep": {"membres": 2, "epochs": 3}}, fields)
    message = str(error.value)
    assert "+ sede is unknown" in message
    assert "+ sweep.membres is unknown (did you mean 'sweep.members'?)" in message
    assert "- seeds is missing" in message
    assert "- sweep.members is missing" in message
