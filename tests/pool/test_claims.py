"""Let threads make the members of one pool as processes do: a lock that one of them holds keeps out the others too."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter

import numpy as np
import pytest

from soups import Pool, leases, presence
from soups.pool import claims, making

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
    assert not making.folder_of(pool.path).exists()


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


# --- Leases ---


@pytest.fixture
def elsewhere(monkeypatch):
    """Return what lets a block run as on another host."""

    @contextlib.contextmanager
    def there():
        with monkeypatch.context() as patch:
            patch.setattr(leases, "described", lambda: presence.described() | {"place": "elsewhere", "pid": 1})
            patch.setattr(leases.Lease, "_renewing", lambda self: None)
            yield

    return there


def test_the_claim_of_a_maker_elsewhere_that_went_silent_is_taken_over(tmp_path, elsewhere, monkeypatch):
    monkeypatch.setattr(leases, "SECONDS", 0.6)
    monkeypatch.setattr(leases, "_WHOLE", 0.0)
    with elsewhere():
        dead, pool = making.Maker(tmp_path / "pool"), Pool(tmp_path / "pool")
        assert dead.claim("a")
    with making.making(pool.path) as maker:
        assert not maker.claim("a")
        time.sleep(0.4)
        dead.lease.renew()
        time.sleep(0.4)
        assert not maker.claim("a")  # which it had renewed
        time.sleep(0.4)
        assert maker.claim("a")
        assert dead.claims["a"].lost and not maker.claims["a"].lost
        dead.release("a")
        with making.making(pool.path) as third:
            assert not third.claim("a")  # what was lost took nothing away


def test_the_claim_of_a_killed_process_of_this_machine_is_free_at_once(tmp_path, quick_start):
    work = "from soups.pool import making\nimport pathlib, os, signal, sys\n"
    work += "maker = making.Maker(pathlib.Path(sys.argv[1]))\n"
    work += "assert maker.claim('a')\nos.kill(os.getpid(), signal.SIGKILL)"
    for _ in range(3):  # the second one is the heir of the first
        assert subprocess.run([sys.executable, "-c", work, tmp_path / "pool"], env=quick_start).returncode == -9
    with making.making(tmp_path / "pool") as maker:
        assert maker.claim("a") and not maker.claim("a")
        maker.release("a")
        assert maker.claim("a")
    assert not making.folder_of(tmp_path / "pool").exists()


def test_a_claim_that_a_killed_process_had_not_written_yet_ends(tmp_path, monkeypatch):
    with making.making(tmp_path / "pool") as maker:
        assert maker.claim("a")
        place = maker.claims["a"].path
        maker.release("a")
        place.touch()
        assert not maker.claim("a")
        os.utime(place, (time.time() - 60,) * 2)
        assert maker.claim("a")


def test_who_saw_a_dead_claim_that_was_since_given_back_does_not_take_it(tmp_path, monkeypatch):
    """One looks at what a dead process left; another takes it, gives it back, and a third takes it anew."""
    path, look = tmp_path / "a.claim", leases._look
    with monkeypatch.context() as patch:
        patch.setattr(leases.Lease, "_renewing", lambda self: None)
        leases.take(path, "pool", "process")
    monkeypatch.setattr(leases, "has_ended", lambda there: there["since"] == "dead")
    path.write_text(path.read_text().replace(json.loads(path.read_text())["since"], "dead"))
    third = []

    def slow(place):
        found = look(place)
        monkeypatch.setattr(leases, "_look", look)
        leases.take(path, "pool", "process").end()
        third.append(leases.take(path, "pool", "process"))
        return found

    monkeypatch.setattr(leases, "_look", slow)
    with pytest.raises(BlockingIOError, match="another process is writing to pool"):
        leases.take(path, "pool", "process")
    assert [place.name for place in tmp_path.iterdir()] == ["a.claim"]
    third[0].end()


@pytest.mark.parametrize("moment", ["create_file", "_look", "_now"])
def test_the_folder_of_the_makers_may_vanish_while_another_process_claims(moment, tmp_path, elsewhere, monkeypatch):
    """The last of the others takes the folder away just before each of the steps of a claim."""
    with elsewhere():
        other = making.Maker(tmp_path / "pool")
        assert other.claim("a")
    step, vanished = getattr(leases, moment), []

    def without_folder(*arguments):
        if not vanished:
            vanished.append(shutil.rmtree(other.folder))
        return step(*arguments)

    monkeypatch.setattr(leases, "_clocks", {})
    monkeypatch.setattr(leases, moment, without_folder)
    with making.making(tmp_path / "pool") as maker:
        assert maker.claim("a") and vanished
        maker.lease.renew()
        with making.making(tmp_path / "pool") as third:
            assert not third.claim("a")
        assert [one["pid"] for one in making.makers(tmp_path / "pool")] == [os.getpid()]


def test_one_of_many_that_claim_at_once_has_it(tmp_path):
    pool, both, won = tmp_path / "pool", threading.Barrier(8), []

    def claim(index):
        with making.making(pool) as maker:
            both.wait()
            for name in NAMES * 3:
                if maker.claim(name):
                    won.append((index, name))
            both.wait()

    threads = [threading.Thread(target=claim, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(name for _, name in won) == NAMES
    assert not making.folder_of(pool).exists()


def test_who_makes_what_is_told(tmp_path):
    pool = tmp_path / "pool"
    with making.making(pool, {"a": 10, "b": 20}) as maker:
        assert maker.claim("a")
        making.note(pool, "a", 3, 10, 0.5)
        maker.lease.renew()
        (one,) = making.makers(pool)
        assert one["planned"] == {"a": 10, "b": 20} and one["pid"] == os.getpid()
        assert one["members"]["a"]["step"] == 3 and one["members"]["a"]["loss"] == 0.5
    assert making.makers(pool) == []
