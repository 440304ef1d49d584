"""Test the command line of pools."""

import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

from soups.cli import main
from soups.pool import Pool

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def cli(monkeypatch, capsys):
    """Give a function that runs one command and returns (exit code, output, errors)."""
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments):
        code = main(["pool", *map(str, arguments)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def pool(tmp_path):
    """Give a pool of a good member and one that diverged."""
    pool = Pool(tmp_path / "pool")
    kernel = np.ones((20, 50), np.float32)
    pool.add("good", {"dense": {"kernel": kernel}}, {"seed": 3}, metrics={"held_out": {}, "held_out_accuracy": 0.875})
    pool.add("bad[red]", {"dense": {"kernel": kernel * np.nan}})
    return pool


def test_list_shows_what_distinguishes_members(cli, pool):
    code, out, err = cli("list", pool.path)
    assert (code, err) == (0, "")
    row = next(line for line in out.splitlines() if "good" in line)
    assert all(part in row for part in ("ok", "1,000", "0.004", "held_out_accuracy 0.875", pool.digest("good")[:12]))
    row = next(line for line in out.splitlines() if "bad[red]" in line)
    assert "non-finite" in row


def test_show_prints_the_record_and_the_leaves(cli, pool):
    code, out, _ = cli("show", pool.path, "good", "bad[red]")
    assert code == 0
    for part in ("metadata.seed", "versions.jax", pool.digest("good"), "dense/kernel", "(20, 50)", "NaN or infinity"):
        assert part in out


def test_verify_exits_with_1_when_something_is_wrong(cli, pool):
    assert cli("verify", pool.path)[0] == 0
    file = pool.path / pool.record("good")["path"] / "state" / "dense.kernel" / "0.0"
    content = bytearray(file.read_bytes())
    content[77] ^= 4
    file.write_bytes(content)
    code, out, _ = cli("verify", pool.path)
    assert code == 1
    assert "state/dense.kernel/0.0 (leaf dense/kernel) does not have the bytes" in out
    assert cli("verify", pool.path, "bad[red]")[0] == 0


def test_add_and_remove(cli, pool, tmp_path):
    ocp.save(tmp_path / "checkpoint", {"dense": {"kernel": np.full((20, 50), 2, np.float32)}})
    code, out, err = cli("add", pool.path, "new", tmp_path / "checkpoint", "--metadata", '{"seed": 5}')
    assert (code, err) == (0, "")
    assert "added new: 1,000 parameters, ok" in out
    changed = Pool(pool.path)
    assert changed["new"]["dense"]["kernel"].tolist() == [[2.0] * 50] * 20
    assert changed.record("new")["metadata"] == {"seed": 5}
    assert cli("remove", pool.path, "good", "new")[:2] == (0, "removed good\nremoved new\n")
    assert Pool(pool.path).names == ["bad[red]"]


def test_user_errors_are_one_line_and_2(cli, pool, tmp_path):
    for arguments, message in [
        (("list", tmp_path / "none"), "there is no pool at"),
        (("show", pool.path, "god"), "did you mean 'good'?"),
        (("remove", pool.path, "good", "god"), "no member 'god'"),
        (("add", pool.path, "new", tmp_path / "none"), "there is no checkpoint directory"),
        (("add", pool.path, "new", tmp_path, "--metadata", "{seed}"), "--metadata is not JSON"),
    ]:
        code, out, err = cli(*arguments)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert err.startswith("soups pool: ")
        assert message in err
    assert "good" in Pool(pool.path)


def test_the_script_runs_by_itself(pool):
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "pool.py", "show", pool.path, "xyz"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines() == [f"pool.py: no member 'xyz' in the pool {pool.path}, which has 2 members"]
