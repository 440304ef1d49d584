"""Watch pools in which members are made, as far as their makers tell."""

import time

import numpy as np
import pytest

from soups import Pool
from soups.cli import main
from soups.cli.pool_watch import Line, seconds_left, status, summary
from soups.pool import making


def weights(value=0.0):
    return {"w": np.full(3, value, np.float32)}


def test_each_member_has_its_line(tmp_path, capsys):
    pool = Pool(tmp_path / "pool")
    pool.add("a", weights(), {"losses": [2.0, 0.5]})
    pool.add("odd", weights(np.nan))
    with making.making(pool.path, {"a": 10, "b": 10, "c": 30, "odd": 10}) as maker:
        assert maker.claim("b")
        making.note(pool.path, "b", 2, 10, 1.25)
        maker.members["b"]["first"][1] -= 2.0  # as if two steps took two seconds
        maker.members["b"]["first"][0] = 0
        maker.lease.renew()
        assert main(["pool", "watch", "--once", str(pool.path)]) == 0
        out = capsys.readouterr().out
        found = status(pool, making.makers(pool.path), time.time() + 60)
    wanted = f"{pool.path}: 2/4 members made, 1 being made, 1 steps/s, ETA "
    said = " ".join(out.split())  # the first line is broken where the path is long
    assert said.startswith(wanted) and 38 <= int(said.removeprefix(wanted).split()[0]) <= 39
    rows = {line.split()[0]: line.split() for line in out.splitlines() if line.strip()}
    assert rows["a"][1:] == ["made", "0.5"] and rows["c"][1:] == ["waiting", "0/30"]
    assert rows["odd"][1] == "made," and rows["b"][1:3] == ["being", "made"] and rows["b"][-3:] == ["2/10", "1.25", "1"]
    assert {line.name: line.status for line in found}["b"].startswith("silent for 6")


def test_it_ends_when_all_are_made(tmp_path, capsys):
    pool = Pool(tmp_path / "pool")
    pool.add("a", weights())
    assert main(["pool", "watch", str(pool.path), "--every", "0.01"]) == 0
    assert capsys.readouterr().out == "1/1 member made, 0 being made\n"
    assert main(["pool", "watch", str(pool.path), "--every", "0"]) == 2
    assert "--every must be a number of seconds above 0, not 0" in capsys.readouterr().err
    assert main(["pool", "watch", str(tmp_path / "none")]) == 2


@pytest.mark.parametrize(
    ("lines", "left"),
    [
        ([Line("a", "made")], 0.0),
        ([Line("a", "waiting", steps=10)], None),  # no rate yet
        ([Line("a", "being made", step=5, rate=1.0)], None),  # no steps
        ([Line("a", "being made", "", 5, 10, None, 1.0), Line("b", "waiting", steps=20)], 25.0),
        ([Line("a", "being made", "", 5, 10, None, 0.5), Line("b", "waiting")], 30.0),  # b as long as a
        ([Line("a", "silent for 60 s", "", 5, 10), Line("b", "being made", "", 0, 10, None, 1.5)], 10.0),
    ],
)
def test_the_time_to_go_is_that_of_the_steps_that_are_left(lines, left):
    assert seconds_left(lines) == left
    assert ("unknown" in summary(lines)) == (left is None)
