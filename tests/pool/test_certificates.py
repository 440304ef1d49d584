"""Test certificates: what they let into a pool and out of it, what is kept, and what is said of a regression."""

import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from soups import Pool, PoolCorruptionError, state
from soups.cli import main
from soups.formats import open_checkpoint, write_safetensors
from soups.merging import CertificateError, admit, certify, release, remake

# counts its calls, so that a test sees what is measured again
SCRIPT = """
import sys
from soups.formats import open_checkpoint

with open({calls!r}, "a") as file:
    file.write("x")
print("entry", open_checkpoint(sys.argv[1]).read("w")[int(sys.argv[2])])
"""


class House:
    """Hold a pool whose certificates read entries of the weights, and count what they measure."""

    def __init__(self, folder):
        self.path, self.calls, self.script = folder / "pool", folder / "calls", folder / "entry.py"
        self.script.write_text(SCRIPT.format(calls=str(self.calls)))

    @property
    def pool(self):
        return Pool(self.path)

    def command(self, entry):
        return f"{sys.executable} {self.script} {{model}} {entry}"

    def count(self):
        with self.calls.open("a") as file:
            file.write("x")

    def measured(self):
        return len(self.calls.read_text()) if self.calls.exists() else 0


def weights(*values):
    return {"w": np.array(values, np.float32)}


@pytest.fixture
def house(tmp_path, monkeypatch, quick_start):
    monkeypatch.setenv("PYTHONPATH", quick_start["PYTHONPATH"])
    return House(tmp_path)


@pytest.fixture
def functions(house):
    """Return certificates that are functions: of all members the first entry, of b the second."""

    def first(params):
        house.count()
        return float(params["w"][0])

    def second(params):
        house.count()
        return {"error": float(params["w"][1])}

    house.pool.certificates.add("first", first, at_least=0.5)
    house.pool.certificates.add("second", second, metric="error", at_most=0.25, of=["b"])
    return {"first": first, "second": second}


def test_certificates_are_kept_and_read_again(house):
    house.pool.certificates.add("x", "python e.py {model}", at_least=1)
    house.pool.certificates.add("y", "e.py:f", metric="loss", at_most=0.5, of=["a", "b"])
    house.pool.certificates.add("x", "python e.py {model}", at_least=1.0)  # the same once more
    found = house.pool.certificates
    assert list(found) == ["x", "y"] and found["x"].bound == "at least 1" and found["y"].bound == "at most 0.5"
    assert found["y"].metric == "loss" and found["y"].of == ("a", "b")
    assert [one.name for one in found.of(["c"])] == ["x"] and [one.name for one in found.of(["c", "a"])] == ["x", "y"]
    assert found["x"].holds(1) and not found["x"].holds(0.99) and not found["x"].holds(float("nan"))
    assert found["y"].holds(0.5) and not found["y"].holds(0.51) and not found["y"].holds(float("nan"))
    house.pool.certificates.remove("x")
    assert list(house.pool.certificates) == ["y"]


@pytest.mark.parametrize(
    ("name", "evaluate", "bounds", "message"),
    [
        ("", "a {model}", {"at_least": 1}, "the name of a certificate must be printable text, not ''"),
        ("a", "a {model}", {}, "certificate 'a' needs one finite bound: at_least or at_most"),
        ("a", "a {model}", {"at_least": 1, "at_most": 2}, "needs one finite bound"),
        ("a", "a {model}", {"at_least": float("nan")}, "needs one finite bound"),
        ("a", 3, {"at_least": 1}, "is measured by a text or a function, not 3"),
        ("x", "a {model}", {"at_least": 2}, "the pool has another certificate 'x', at least 1 by 'a {model}'"),
    ],
)
def test_certificates_without_sense_are_refused(house, name, evaluate, bounds, message):
    house.pool.certificates.add("x", "a {model}", at_least=1)
    with pytest.raises(ValueError) as refused:
        house.pool.certificates.add(name, evaluate, **bounds)
    assert message in str(refused.value) and list(house.pool.certificates) == ["x"]


def test_an_unknown_certificate_is_not_removed(house):
    house.pool.certificates.add("first", "a {model}", at_least=1)
    with pytest.raises(ValueError, match=r"unknown certificate 'frist' \(did you mean 'first'\?\)"):
        house.pool.certificates.remove("frist")


def test_certificates_of_another_kind_are_refused(house):
    house.pool.certificates.add("first", "a {model}", at_least=1)
    for value, message in [
        ({"format": "soups.certificates/2", "certificates": []}, "this version reads 'soups.certificates/1'"),
        ({"format": "soups.certificates/1", "certificates": [{"name": "x", "of": []}]}, "evaluation"),
        ({"format": "soups.certificates/1", "certificates": ["x"]}, "certificates of the pool cannot be read"),
        ({"certificates": []}, "its 'format' is not there"),
    ]:
        state.write(house.path / "certificates.json", value)
        with pytest.raises(PoolCorruptionError, match=re.escape(message)):
            house.pool.certificates  # noqa: B018


def test_members_enter_if_all_of_their_certificates_hold(house, functions):
    admit(house.pool, "a", weights(0.6, 9), {"seed": 1}, functions=functions)
    assert house.pool.record("a")["metadata"] == {"seed": 1} and house.measured() == 1
    with pytest.raises(CertificateError) as refused:
        admit(house.pool, "b", weights(0.4, 0.5), functions=functions)
    assert str(refused.value) == (
        "'b' is not added, for certificates do not hold:\n"
        "  'b': first is 0.4, must be at least 0.5\n"
        "  'b': second is 0.5, must be at most 0.25"
    )
    assert house.pool.names == ["a"] and house.measured() == 3
    with pytest.raises(CertificateError):  # measured already
        admit(house.pool, "b", weights(0.4, 0.5), functions=functions)
    assert house.measured() == 3
    with pytest.raises(ValueError, match="already has a member 'a'"):
        admit(house.pool, "a", weights(0.6, 9), functions=functions)


def test_scores_are_measured_once_for_weights_and_measure(house):
    house.pool.certificates.add("first", house.command(0), metric="entry", at_least=0.5)
    house.pool.add("a", weights(0.6, 0))
    for _ in range(2):
        assert certify(house.pool, ["a"]) == {"a": {"first": pytest.approx(0.6)}}
        assert house.measured() == 1
    house.pool.certificates.remove("first")
    house.pool.certificates.add("first", house.command(0), metric="entry", at_least=0.7)  # another bound alone
    certify(house.pool, ["a"])
    assert house.measured() == 1
    house.pool.add("twin", weights(0.6, 0))
    certify(house.pool, ["twin"])
    assert house.measured() == 1
    house.pool.remove("a")
    house.pool.add("a", weights(0.8, 0))
    assert certify(house.pool, ["a"])["a"]["first"] == pytest.approx(0.8)
    assert house.measured() == 2
    house.script.write_text(house.script.read_text() + "# another script\n")
    certify(house.pool, ["a"])
    assert house.measured() == 3


def test_a_function_is_called_again_when_its_source_changes(house):
    house.pool.add("a", weights(0.6, 0))

    def score(params):
        return params["w"][0]

    first = score

    def score(params):
        return params["w"][1]

    house.pool.certificates.add("score", first, at_least=0)
    assert certify(house.pool, ["a"], functions={"score": first})["a"]["score"] == pytest.approx(0.6)
    assert certify(house.pool, ["a"], functions={"score": score})["a"]["score"] == 0


def test_a_release_is_the_merge_of_members_and_can_be_made_again(house, functions, tmp_path):
    for name, values in {"a": (0.6, 0.5), "b": (0.8, 0.1), "c": (0.7, 0.3)}.items():
        admit(house.pool, name, weights(*values), functions=functions)
    with pytest.raises(ValueError, match="has released no soup"):
        certify(house.pool, functions=functions)
    record = release(house.pool, ["b", "c"], functions=functions)
    np.testing.assert_allclose(house.pool.releases["1"]["w"], [0.75, 0.2], rtol=1e-6)
    assert record["metadata"]["ingredients"] == {name: house.pool.digest(name) for name in "bc"}
    assert record["metrics"] == {"first": pytest.approx(0.75), "second": pytest.approx(0.2)}
    assert certify(house.pool, functions=functions) == {"release 1": record["metrics"]}
    measured = house.measured()
    assert release(house.pool, ["b", "c"], functions=functions) == record and house.measured() == measured
    with pytest.raises(CertificateError) as refused:  # 0.3 of all three
        release(house.pool, functions=functions)
    assert str(refused.value) == (
        "no soup is released, for certificates do not hold:\n"
        "  the soup of 'a', 'b', 'c': second is 0.3, must be at most 0.25 (release 1: 0.2)"
    )
    assert house.pool.releases.names == ["1"]
    scaled = release(house.pool, ["a", "c"], "linear", settings={"weight": 1.0}, functions=functions)
    assert house.pool.releases.names == ["1", "2"] and scaled["metrics"] == {"first": pytest.approx(0.65)}
    for number in (1, 2):
        place = remake(house.pool, number, tmp_path / f"again{number}")
        assert open_checkpoint(place).read("w").tobytes() == house.pool.releases[str(number)]["w"].tobytes()


def test_ingredients_must_hold_too(house, functions):
    house.pool.add("a", weights(0.4, 0))  # without being asked for its certificates
    house.pool.add("b", weights(0.8, 0))
    with pytest.raises(CertificateError, match=r"ingredient 'a': first is 0\.4, must be at least 0.5"):
        release(house.pool, functions=functions)
    assert not house.pool.releases.names


def test_the_pool_may_move_and_the_release_is_made_again(house, functions, tmp_path):
    for name, values in {"base": (0.5, 0), "a": (0.6, 0.5), "c": (0.8, 0.1)}.items():
        house.pool.add(name, weights(*values))
    release(house.pool, None, "task_arithmetic", base="base", settings={"scale": 0.5}, functions=functions)
    record = house.pool.releases.record("1")
    assert list(record["metadata"]["ingredients"]) == ["a", "c"]
    os.rename(house.path, tmp_path / "moved")
    moved = Pool(tmp_path / "moved")
    place = remake(moved, "1", tmp_path / "again")
    assert open_checkpoint(place).read("w").tobytes() == moved.releases["1"]["w"].tobytes()
    moved.remove("base")
    moved.remove("a")
    moved.add("a", weights(0.6, 0.4))
    with pytest.raises(ValueError) as refused:
        remake(moved, 1, tmp_path / "never")
    lines = str(refused.value).splitlines()
    assert lines[0] == f"release 1 cannot be made again from {moved.path}:"
    assert "  'base' is not a member any more" in lines and any("'a' has other weights" in line for line in lines)
    assert not (tmp_path / "never").exists()
    with pytest.raises(ValueError, match=r"unknown release '7'; there are: 1"):
        remake(moved, 7, tmp_path / "never")


def test_a_base_outside_that_changed_is_named(house, functions, tmp_path):
    from soups.formats import write_safetensors

    write_safetensors(tmp_path / "base.safetensors", weights(0.5, 0))
    house.pool.add("a", weights(0.6, 0.5))
    house.pool.add("c", weights(0.8, 0.5))
    base = str(tmp_path / "base.safetensors")
    release(house.pool, None, "task_arithmetic", base=base, settings={"scale": 0.75}, functions=functions)
    write_safetensors(tmp_path / "base.safetensors", weights(0.25, 0))
    with pytest.raises(ValueError) as refused:
        remake(house.pool, 1, tmp_path / "again")
    assert "is not release 1, bit for bit" in str(refused.value) and f"{base} has changed since" in str(refused.value)
    assert "w differs" in str(refused.value)
    assert main(["pool", "log", str(house.path), "--remake", "1", str(tmp_path / "once more")]) == 1  # a check failed
    assert main(["pool", "log", str(house.path), "--remake", "7", str(tmp_path / "never")]) == 2


def test_a_release_is_taken_from_a_merge_of_members_alone(house, functions, tmp_path, capsys):
    for name, values in {"a": (0.6, 0.5), "c": (0.8, 0.1)}.items():
        house.pool.add(name, weights(*values))
    out = str(tmp_path / "merged")
    arguments = ["--method", "linear", "--weight", "1", "3", "--members", f"{house.path}:a", f"{house.path}:c"]
    assert main(["merge", *arguments, "--out", out]) == 0
    record = release(house.pool, source=out, functions=functions)
    assert record["metadata"]["merge"]["method"] == "linear"
    assert house.pool.releases["1"]["w"].tobytes() == open_checkpoint(out).read("w").tobytes()
    house.pool.remove("c")
    house.pool.add("c", weights(0.9, 0.1))
    with pytest.raises(ValueError, match=r"was merged from other weights:\n.*:c has changed since"):
        release(house.pool, source=out, functions=functions)
    stranger = str(tmp_path / "stranger")
    assert main(["merge", "--method", "uniform", "--members", f"{house.path}:a", out, "--out", stranger]) == 0
    with pytest.raises(ValueError, match="merged is not a member of"):
        release(house.pool, source=stranger, functions=functions)


def test_a_soup_of_other_tensors_is_not_released(house, functions, tmp_path):
    for name in "ac":
        house.pool.add(name, weights(0.6, 0.5) | {"b": np.ones(2, np.float32)})
    out = str(tmp_path / "part")
    members = [f"{house.path}:a", f"{house.path}:c"]
    assert main(["merge", "--method", "uniform", "--only-tensors", "w", "--members", *members, "--out", out]) == 0
    with pytest.raises(ValueError, match=r"must have the tensors of 'a':\n  - b is missing"):
        release(house.pool, source=out, functions=functions)


def test_what_cannot_be_certified_is_said(house, functions, tmp_path):
    with pytest.raises(ValueError, match="unknown certificate 'third'"):
        certify(house.pool, ["a"], functions={"third": functions["first"]})
    house.pool.add("a", weights(0.6, 0))
    with pytest.raises(ValueError, match="no member 'c'"):
        certify(house.pool, ["c"], functions=functions)
    with pytest.raises(ValueError, match=r"certificate 'first' of 'a': .*first is a function: give it in Python"):
        certify(house.pool, ["a"])
    with pytest.raises(ValueError, match=r"certificate 'first' of 'a': .*failed: .*KeyError"):
        certify(house.pool, ["a"], functions={"first": lambda params: params["v"]})
    nowhere = {}
    exec("def nowhere(params): return 1", nowhere)
    with pytest.raises(ValueError, match="which identifies its scores, cannot be read"):
        certify(house.pool, ["a"], functions={"first": nowhere["nowhere"]})
    house.pool.certificates.add("gone", "no-such-program {model}", at_least=0)
    with pytest.raises(ValueError, match="certificate 'gone': --eval: there is no program"):
        certify(house.pool, ["a"], functions=functions)
    with pytest.raises(ValueError, match="has no certificates"):
        certify(Pool(tmp_path / "empty"), ["a"])


def test_a_score_that_is_no_number_does_not_hold_and_is_kept(house):
    house.pool.certificates.add("first", house.command(0), metric="entry", at_most=0.5)
    house.pool.add("a", weights(np.nan, 0))
    for _ in range(2):
        assert np.isnan(certify(house.pool, ["a"])["a"]["first"])
    assert house.measured() == 1


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_damage_of_any_file_is_named(house, functions):
    house.pool.add("a", weights(0.6, 0.1))
    release(house.pool, functions=functions)
    result = next((house.path / "certified").glob("*.json"))
    record = next((house.path / "releases" / "records").iterdir())
    array = next((house.path / "releases" / "members").glob("*/state/w/0"))
    house.calls.unlink()
    for file, read in [
        (result, lambda: certify(house.pool, ["a"], functions=functions)),
        (house.path / "certificates.json", lambda: house.pool.certificates),
        (record, lambda: certify(house.pool, functions=functions)),
        (array, lambda: house.pool.releases["1"]),
    ]:
        whole = file.read_bytes()
        flip(file)
        with pytest.raises(PoolCorruptionError) as damaged:
            read()
        assert file.name in str(damaged.value)
        file.write_bytes(whole)
        read()
    other = result.with_name(result.name.replace(house.pool.digest("a"), house.pool.digest("a")[::-1]))
    os.rename(result, other)
    house.pool.releases.refresh()
    assert certify(house.pool, ["a"], functions=functions) and house.measured() == 1


def test_a_damaged_member_is_named_and_gets_no_score(house, functions):
    house.pool.add("a", weights(0.6, 0.1))
    flip(next((house.path / "members").glob("*/state/w/0")))
    with pytest.raises(PoolCorruptionError, match="member 'a' is corrupted"):
        certify(house.pool, ["a"], functions=functions)
    assert house.measured() == 0 and not list((house.path / "certified").glob("*.json"))


def test_a_score_of_other_weights_is_damage(house, functions):
    house.pool.add("a", weights(0.6, 0.1))
    house.pool.add("c", weights(0.7, 0.1))
    certify(house.pool, ["a", "c"], functions=functions)
    a, c = (next((house.path / "certified").glob(f"*{house.pool.digest(name)}.json")) for name in "ac")
    c.write_bytes(a.read_bytes())
    with pytest.raises(PoolCorruptionError, match="has the score of other weights"):
        certify(house.pool, ["c"], functions=functions)


def _hold(path, holding, let_go):
    from soups.merging import releasing

    with releasing._Certifying(Pool(path), {}, print):
        holding.set()
        let_go.wait(60)


def test_two_at_once_exclude_each_other(house):
    house.pool.certificates.add("first", house.command(0), at_least=0.5)
    house.pool.add("a", weights(0.6, 0.1))
    context = multiprocessing.get_context("spawn")
    holding, let_go = context.Event(), context.Event()
    other = context.Process(target=_hold, args=(house.path, holding, let_go))
    other.start()
    assert holding.wait(120)
    for blocked in (
        lambda: certify(house.pool, ["a"]),
        lambda: admit(house.pool, "b", weights(1, 1)),
        lambda: release(house.pool),
    ):
        with pytest.raises(BlockingIOError, match="another certification is writing to"):
            blocked()
    let_go.set()
    other.join()
    certify(house.pool, ["a"])


def test_a_killed_release_goes_on(house, tmp_path):
    """Kill it while the third score is measured: the two before are not measured again."""
    for entry in range(3):
        house.pool.certificates.add(f"entry {entry}", house.command(entry), at_least=0.1)
    slow = house.script.read_text()
    waiting = tmp_path / "waiting"
    house.script.write_text(
        slow + f"import pathlib, time\nif sys.argv[2] == '2' and not pathlib.Path({str(tmp_path / 'go')!r}).exists():\n"
        f"    pathlib.Path({str(waiting)!r}).touch()\n    time.sleep(100)\n"
    )
    house.pool.add("a", weights(0.6, 0.4, 0.2))
    command = [sys.executable, "-m", "soups", "pool", "release", str(house.path)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        begin = time.monotonic()
        while not waiting.exists():
            assert process.poll() is None and time.monotonic() - begin < 120
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
    assert house.measured() == 3 and not house.pool.releases.names
    assert (house.path / "certified" / "candidate").exists()
    (tmp_path / "go").touch()
    assert subprocess.run(command, stdout=subprocess.DEVNULL).returncode == 0
    assert house.measured() == 4  # the soup of one member has its weights
    assert house.pool.releases.names == ["1"] and not (house.path / "certified" / "candidate").exists()


# --- The command line -------------------------------------------------------------------------------------------------


@pytest.fixture
def cli(monkeypatch, capsys, house):
    """Return a function that runs one command on the pool and returns (exit code, output, errors)."""
    monkeypatch.setenv("COLUMNS", "250")

    def run(command, *arguments):
        return main(["pool", command, str(house.path), *map(str, arguments)]), *capsys.readouterr()

    return run


def test_commands_certify_release_and_log(cli, house, tmp_path):
    (tmp_path / "score.py").write_text(
        "from soups.formats import open_checkpoint\n\n\ndef second(path):\n    "
        "return open_checkpoint(path).read('w')[1]\n"
    )
    first = ("--add", "first", "--eval", house.command(0), "--metric", "entry", "--at-least", 0.5)
    code, out, err = cli("certify", *first)
    assert (code, err) == (0, "") and "at least 0.5" in out
    code, out, _ = cli(
        "certify", "--add", "second", "--eval", f"{tmp_path}/score.py:second", "--at-most", 1, "--of", "b"
    )
    assert code == 0 and "second" in out
    for name, values in {"a": (0.6, 2), "b": (0.75, 0.5), "bad": (0.25, 0)}.items():
        write_safetensors(tmp_path / f"{name}.safetensors", weights(*values))
    assert cli("add", "a", tmp_path / "a.safetensors", "--certified")[0] == 0
    code, out, err = cli("add", "b", tmp_path / "b.safetensors", "--certified")
    assert (code, err) == (0, "")
    assert "'b': first is 0.75, must be at least 0.5: holds\n'b': second is 0.5, must be at most 1: holds\n" in out
    assert cli("release", "--members", "b")[:2] == (
        0,
        "'b': first is 0.75, must be at least 0.5: holds\n'b': second is 0.5, must be at most 1: holds\n"
        "the soup of 'b': first is 0.75, must be at least 0.5: holds\n"
        "the soup of 'b': second is 0.5, must be at most 1: holds\nreleased 1: b\n",
    )
    code, _, err = cli("add", "bad", tmp_path / "bad.safetensors", "--certified")
    assert code == 1 and "'bad': first is 0.25, must be at least 0.5 (release 1: 0.75)" in err
    code, _, err = cli("release", "--members", "[ab]")
    assert code == 1 and "second is 1.25, must be at most 1 (release 1: 0.5)" in err
    assert cli("release", "--members", "a", "b", "--method", "linear", "--weight", 0.5)[0] == 1
    assert cli("release", "--members", "a", "b", "--method", "linear", "--weigth", 0.5)[0] == 2
    assert cli("certify")[0] == 0
    code, out, _ = cli("certify", "a", "b")
    assert code == 0 and out.count("holds") == 3
    assert cli("certify", "--remove", "second")[0] == 0
    code, out, _ = cli("release")
    assert code == 0 and out.endswith("released 2: a, b\n")
    assert cli("release")[1].endswith("already there: 2: a, b\n")
    code, out, _ = cli("log")
    lines = out.splitlines()
    assert code == 0 and len(lines) == 5 and "2 releases" in lines[0]
    digests = {name: house.pool.digest(name)[:12] for name in "ab"}
    assert f"b ({digests['b']})" in lines[3] and "first 0.75 (at least 0.5), second 0.5 (at most 1)" in lines[3]
    assert f"a ({digests['a']}), b ({digests['b']})" in lines[4] and "uniform" in lines[4]
    code, out, _ = cli("log", "--remake", 1, tmp_path / "again")
    assert (code, out) == (0, f"wrote {tmp_path / 'again'}, which is release 1 bit for bit\n")
    assert open_checkpoint(tmp_path / "again").read("w").tobytes() == house.pool.releases["1"]["w"].tobytes()
    house.pool.add("worse", weights(0.25, 0))
    code, out, err = cli("certify", "worse")
    assert (code, err) == (1, "") and "'worse': first is 0.25, must be at least 0.5: fails" in out


def test_releases_are_members_of_a_pool_to_other_commands(cli, house, tmp_path, capsys):
    house.pool.add("a", weights(0.6, 2))
    assert cli("release")[0] == 0
    assert main(["pool", "verify", f"{house.path}/releases"]) == 0
    out = str(tmp_path / "out")
    assert main(["merge", "--method", "uniform", "--members", f"{house.path}/releases:1", "--out", out]) == 0
    assert open_checkpoint(out).read("w").tolist() == house.pool["a"]["w"].tolist()
    assert house.pool.names == ["a"] and not house.pool.verify()["a"]


WHOLE = """
import pathlib
from soups.formats import open_checkpoint

def score(path):
    found, folder = open_checkpoint(path), pathlib.Path(path)
    with open("seen", "a") as file:
        print(*sorted(found.leaves), *found.aliases.items(), *sorted(one.name for one in folder.iterdir()), file=file)
    return (folder / "config.json").read_text().count("own")
"""


def test_evaluations_are_given_the_model_that_a_member_came_from(cli, house, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "whole.py").write_text(WHOLE)
    house.pool.certificates.add("whole", "whole.py:score", at_least=1)
    for value, name in enumerate("ab"):
        (tmp_path / name).mkdir()
        leaves = {"model.embed.weight": np.full((3, 2), value, np.float32), "model.norm": np.ones(2, np.float32)}
        write_safetensors(tmp_path / name / "model.safetensors", leaves, {"lm_head.weight": "model.embed.weight"})
        (tmp_path / name / "config.json").write_text('{"model_type": "own"}')
        (tmp_path / name / "tokenizer.json").write_text("{}")
        assert cli("add", name, tmp_path / name, "--certified")[0] == 0
    assert cli("release")[0] == 0
    shutil.rmtree(house.path / "certified")  # so that all is measured again, as it lies in the pool
    assert cli("certify")[0] == cli("certify", "a")[0] == 0
    seen = (tmp_path / "seen").read_text().splitlines()
    tensors = "model.embed.weight model.norm ('lm_head.weight', 'model.embed.weight')"
    files = "config.json model.safetensors tokenizer.json"
    soup = f"{tensors} README.md {files.replace(' tok', ' recipe.yml tok')}"
    assert seen == [f"{tensors} {files}"] * 2 + [soup] * 2 + [f"{tensors} {files}"]


def test_mistakes_are_one_line_and_2(cli, house):
    house.pool.add("a", weights(0.6, 2))
    for arguments, message in [
        (("certify", "--add", "x", "--at-least", 1), "say how the score is measured"),
        (("certify", "--add", "x", "--eval", "a {model}"), "needs one finite bound"),
        (("certify", "--eval", "a {model}"), "describe a new certificate: give --add NAME"),
        (("certify", "a", "--remove", "x"), "give one of --add, --remove and members"),
        (("certify", "--remove", "x"), "unknown certificate 'x'"),
        (("certify", "a"), "has no certificates"),
        (("release", "--from", "out", "--members", "a"), "--from takes its recipe from what it names"),
        (("release", "--members", "x*"), "nothing matches"),
        (("release", "--members", "x"), "no member 'x'"),
        (("release", "--method", "ties"), "ties needs --base"),
        (
            ("release", "--settings", "{x}"),
            "unknown option --settings; each setting of --method is an option",
        ),
        (("release", "--method", "ties", "--base", "a", "--density", "x"), ": --density must be a number, not 'x'"),
        (("release", "--density", "1"), "unknown option --density; settings of a method belong beside --method"),
        (("release", "--method", "linear", "--weihgt", "1"), "unknown option --weihgt (did you mean --weight?)"),
        (
            ("release", "--method", "linear", "--density", "1"),
            "linear has no setting density; it has normalize",
        ),
        (("release", "--method", "unifrom"), "did you mean 'uniform'?"),
        (("log", "--remake", 3, "out"), "has no releases yet"),
        (("release", "--method", "ties", "--density", "0.2", "0.3"), "'0.3' does not belong to any option"),
    ]:
        code, out, err = cli(*arguments)
        assert (code, out, err.count("\n")) == (2, "", 1), (arguments, err)
        assert err.startswith("soups pool: ") and message in err
