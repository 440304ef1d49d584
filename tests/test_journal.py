"""Test that a journal goes on from what is whole and refuses what is damaged."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from soups import pool, state
from soups.journal import Journal, content_digest

RECORDS = [{"kind": "candidate", "member": f"m{index}", "score": 0.1 * index, "accepted": True} for index in range(3)]


def written(path):
    journal = Journal(path, {"recipe": "greedy"})
    for record in RECORDS:
        journal.write(record)
    return path.read_bytes()


def replayed(path):
    journal = Journal(path, {"recipe": "greedy"})
    return [journal.replay("candidate", record["member"]) for record in RECORDS]


def test_what_was_written_is_replayed(tmp_path):
    written(tmp_path / "j")
    assert replayed(tmp_path / "j") == RECORDS


def test_a_flip_anywhere_is_an_error_with_the_path(tmp_path):
    content = written(tmp_path / "j")
    for place in range(len(content)):
        for bit in (1, 16, 128):
            damaged = bytearray(content)
            damaged[place] ^= bit
            (tmp_path / "j").write_bytes(bytes(damaged))
            if place == len(content) - 1:  # as if the last line was cut off: its decision is made again
                assert replayed(tmp_path / "j") == [*RECORDS[:-1], None]
            else:
                with pytest.raises(ValueError, match=rf"line \d of journal {tmp_path}/j does not have the bytes"):
                    replayed(tmp_path / "j")


def test_a_last_line_that_was_cut_off_is_dropped(tmp_path):
    content = written(tmp_path / "j")
    for cut in range(1, len(content.splitlines(keepends=True)[-1]) + 1, 7):
        (tmp_path / "j").write_bytes(content[:-cut])
        assert replayed(tmp_path / "j") == [*RECORDS[:-1], None]
    (tmp_path / "j").write_bytes(b"")
    assert replayed(tmp_path / "j") == [None] * 3


def test_the_newest_record_alone_is_kept(tmp_path):
    journal = Journal(tmp_path / "j", {"recipe": "learned"})
    for record in RECORDS:
        journal.keep(record)
    assert len((tmp_path / "j").read_bytes().splitlines()) == 2
    assert Journal(tmp_path / "j", {"recipe": "learned"}).newest() == RECORDS[-1]


def test_a_journal_of_something_else_is_refused_with_all_differences(tmp_path):
    Journal(tmp_path / "j", {"recipe": "greedy", "members": ["a"], "score": float("nan")}).write(RECORDS[0])
    Journal(tmp_path / "j", {"recipe": "greedy", "members": ["a"], "score": float("nan")})
    with pytest.raises(ValueError, match="was written by a different call") as error:
        Journal(tmp_path / "j", {"recipe": "greedy", "members": ["b"], "metric": "nll", "score": float("nan")})
    assert "members: ['a'] there, ['b'] here" in str(error.value)
    assert "metric: (absent) there, nll here" in str(error.value) and "score" not in str(error.value)


@pytest.mark.parametrize("rest", ["", '{"kind": "candi'])
def test_a_journal_without_a_record_is_of_whoever_comes_next(tmp_path, rest):
    Journal(tmp_path / "j", {"recipe": "greedy", "metric": "mistyped"})
    with open(tmp_path / "j", "a") as file:  # the crash cut a line off
        file.write(rest)
    Journal(tmp_path / "j", {"recipe": "greedy"}).write(RECORDS[0])
    assert replayed(tmp_path / "j")[0] == RECORDS[0]


@pytest.mark.parametrize("line", ["[1]", "null", "{", "[" * 100_000, '{"kind": "candidate"}', "\\ud800", "\xff"])
def test_a_line_that_is_no_record_is_named(line, tmp_path):
    first = state.sealed_line({"recipe": "greedy"})
    (tmp_path / "j").write_bytes(first + line.encode() + b"\n")
    with pytest.raises(ValueError, match=r"line 2 of journal .*j does not have the bytes .*\n.*Cut the file off"):
        replayed(tmp_path / "j")
    (tmp_path / "j").write_bytes(line.encode() + b"\n" + first)
    with pytest.raises(ValueError, match=r"line 1 of journal .*j does not have the bytes .*\nRemove it"):
        replayed(tmp_path / "j")


def test_what_is_no_journal(tmp_path):
    with pytest.raises(ValueError, match="is not a file"):
        Journal(tmp_path, {"recipe": "greedy"})


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", ">f4", "int8", "bool", "complex64"])
def test_the_digest_is_that_of_a_pool(rng, dtype):
    leaf = rng.normal(size=(3, 4)).astype(jnp.bfloat16 if dtype == "bfloat16" else dtype)
    params = {"b": {"kernel": leaf, "none": np.zeros((0, 2), leaf.dtype)}, "a": [leaf.T, leaf[0, 0][()]]}
    assert content_digest(params) == pool.digest(params)
    on_device = jax.tree.map(lambda array: jnp.asarray(array, array.dtype.newbyteorder("=")), params)
    assert content_digest(on_device) == content_digest(params)


@pytest.mark.parametrize(
    "change",
    [
        lambda params: {**params, "w": params["w"] + 1},
        lambda params: {**params, "w": params["w"].reshape(3, 2)},
        lambda params: {**params, "w": params["w"].astype(np.float64)},
        lambda params: {**params, "key": jax.random.key(1)},
        lambda params: {**params, "act": jax.nn.gelu},
        lambda params: {**params, "rate": 0.2},
        lambda params: {("v" if name == "w" else name): leaf for name, leaf in params.items()},
    ],
)
def test_whatever_a_tree_holds_counts(change):
    def params():
        return {"w": np.ones((2, 3), np.float32), "key": jax.random.key(0), "act": jax.nn.relu, "rate": 0.1}

    assert content_digest(params()) == content_digest(params()) != content_digest(change(params()))
