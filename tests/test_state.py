"""Test that JSON state is read as it was written, or refused by name."""

import errno
import json
import os
import subprocess
import sys

import pytest

from soups import state

VALUE = {"result": {"rows": [1, 0.1 + 0.2, None, True, "ä\n"], "empty": {}}, "seconds": 1.5}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "a.json"


def test_what_was_written_is_read_and_any_program_reads_it(path):
    assert state.write(path, VALUE | {"pair": (1, 2)}) == state.read(path) == VALUE | {"pair": [1, 2]}
    found = json.loads(path.read_text())
    assert len(found.pop("checksum")) == 32 and found == VALUE | {"pair": [1, 2]}
    assert os.listdir(path.parent) == ["a.json"]


def test_every_flipped_bit_byte_cut_and_addition_is_named(path):
    state.write(path, VALUE)
    content = path.read_bytes()
    damaged = [content[:place] + bytes([content[place] ^ (1 << bit)]) + content[place + 1 :]
               for place in range(len(content)) for bit in range(8)]  # fmt: skip
    damaged += [content[:place] for place in range(len(content))] + [content + b"\n", content * 2]
    for bad in damaged:
        path.write_bytes(bad)
        with pytest.raises(ValueError, match=r"a\.json does not have the bytes that were written"):
            state.read(path)


def resealed(text):
    return state.seal(text.encode())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "does not begin with a checksum"),
        (b'{"result": 1, "seconds": 2}', "does not begin with a checksum, so it .* an older soups"),
        (b"\x00\xff" * 1000, "does not begin with a checksum"),
        (resealed('"result": 1, "seconds": "1"}'), "state of another kind: its 'seconds' is str"),
        (resealed('"seconds": 1}'), "state of another kind: its 'result' is not there"),
        (resealed('"a": ' + "[" * 100_000 + "]" * 100_000 + "}"), "nested deeper than 64"),
        (resealed('"a": ' + "[" * 64 + "]" * 64 + "}"), "nested deeper than 64"),
        (resealed('"a": 1, "a": 2}'), "'a' appears twice"),
        (resealed('"checksum": "", "a": 2}'), "'checksum' appears twice"),
        (resealed("1"), "not valid JSON"),
        (resealed('"a": ' + "9" * 5000 + "}"), "not valid JSON: Exceeds the limit"),
        (resealed(r'"a": "\ud800"}'), "not valid JSON"),
    ],
)  # fmt: skip
def test_what_is_no_state(content, message, path):
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"a\.json .*{message}"):
        state.read(path, {"result": object, "seconds": (int, float)})


def test_what_is_no_file(path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"a\.json"):
        state.read(path)
    os.mkfifo(path.with_name("pipe"))
    for odd in (path.parent, path.with_name("pipe")):
        with pytest.raises(ValueError, match="is not a file"):
            state.read(odd)
    state.write(path, VALUE)
    monkeypatch.setattr(state, "_LARGEST", 20)
    with pytest.raises(ValueError, match=r"a\.json has \d+ bytes, more than 20"):
        state.read(path)


DEEP = []
for _ in range(2000):
    DEEP = [DEEP]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"a": float("nan")}, "Out of range float"),
        ({"a": float("inf")}, "Out of range float"),
        ({"a": object()}, "not JSON serializable"),
        ({"a": "\udc80"}, "surrogates not allowed"),
        ({1: "a", "1": "b"}, "'1' appears twice"),
        ({"checksum": 1}, "'checksum' appears twice"),
        ({"a": DEEP}, "nested deeper than 64|recursion"),
        ({}, "not valid JSON"),
    ],
)
def test_what_cannot_be_written_leaves_the_old_file(value, message, path):
    state.write(path, VALUE)
    with pytest.raises(ValueError, match=rf"a\.json cannot be written as JSON: .*({message})"):
        state.write(path, value)
    assert state.read(path) == VALUE and os.listdir(path.parent) == ["a.json"]


def test_a_full_disk_is_named(path, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"cannot write .*a\.json: No space left on device"):
        state.write(path, VALUE)


def test_lines():
    record = {"kind": "candidate", "score": float("inf"), "member": "ä"}
    line = state.sealed_line(record)
    assert line.endswith(b"}\n") and line.count(b"\n") == 1 and state.unsealed_line(line[:-1], "line 1") == record
    for bad in (line, line[:-2], line.replace(b"candidate", b"candidatf")):
        with pytest.raises(ValueError, match="line 1 does not have the bytes"):
            state.unsealed_line(bad, "line 1")


def test_the_command_seals_what_was_changed_by_hand(path, capsys):
    state.write(path, VALUE)
    path.write_text(path.read_text().replace("1.5", "2.5"))
    other = path.with_name("b.json")
    other.write_text(json.dumps({"a": 1}))
    assert state.main([str(path), str(other)]) == 0
    assert state.read(path) == VALUE | {"seconds": 2.5} and state.read(other) == {"a": 1}
    other.write_bytes(b"\xff{")
    capsys.readouterr()
    assert state.main([str(other)]) == 2
    assert capsys.readouterr().err.startswith("error: ") and other.read_bytes() == b"\xff{"


def test_the_command_runs_without_jax(path):
    path.write_text('{"a": 1}')
    program = f"""
import sys, runpy
sys.argv = ["state", {str(path)!r}]
try:
    runpy.run_module("soups.state", run_name="__main__")
except SystemExit as end:
    assert not end.code and "jax" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
    assert state.read(path) == {"a": 1}
