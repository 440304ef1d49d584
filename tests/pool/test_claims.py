"""Let threads make the members of one pool as processes do: a lock that one of them holds keeps out the others too."""

import threading
from collections import Counter

import numpy as np
import pytest

from soups import Pool
from soups.pool import claims

NAMES = ["a", "b", "c", "d", "e"]


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    """Look at once what others have made."""
    monkeypatch.setattr(claims, "_SECONDS", 0.01)


def weights(name):
    return {"w": np.full(3, NAMES.index(name), np.float32)}


def test_no_member_is_made_twice_and_each_maker_waits_for_the_last(tmp_path):
    made, both = Counter(), threading.Barrier(2)

    def make():
        pool = Pool(tmp_path / "pool")
        both.wait()
        for mine in claims.claims(pool, NAMES, most=2):
            for name in mine:
                made[name] += 1
                pool.add(name, weights(name))
        assert set(pool) == set(NAMES)

    threads = [threading.Thread(target=make) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made == dict.fromkeys(NAMES, 1)


def test_what_another_has_claimed_is_left_to_it_and_taken_where_it_gives_up(tmp_path):
    pool, other = Pool(tmp_path / "pool"), Pool(tmp_path / "pool")
    with claims.claimed(other, NAMES, 2) as theirs:
        with claims.claimed(pool, NAMES, 9) as mine:
            assert theirs == ["a", "b"] and mine == ["c", "d", "e"]
        other.add("a", weights("a"))
    with claims.claimed(pool, NAMES, 9) as mine:
        assert mine == ["b", "c", "d", "e"]
    assert not [path for path in tmp_path.iterdir() if path.suffix == ".lock"]


def test_a_member_that_another_makes_is_waited_for(tmp_path):
    pool, other, begun = Pool(tmp_path / "pool"), Pool(tmp_path / "pool"), threading.Event()

    def make():
        with claims.claimed(other, ["c"]):
            begun.set()
            other.add("c", weights("c"))

    thread = threading.Thread(target=make)
    thread.start()
    begun.wait()
    found = claims.made_once(pool, "c", lambda: pytest.fail("made twice"), {})
    thread.join()
    np.testing.assert_array_equal(found["w"], [2, 2, 2])
    np.testing.assert_array_equal(claims.made_once(pool, "d", lambda: weights("d"), {"seed": 1})["w"], [3, 3, 3])
