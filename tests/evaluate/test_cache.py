"""The cache of outputs: what is kept, told apart, damaged, refused."""

import numpy as np
import pytest

from soups import evaluate


def test_the_cache_computes_once(tmp_path, rng):
    logits, calls = rng.normal(size=(5, 3)).astype(np.float32), []

    def compute():
        calls.append(1)
        return logits

    for _ in range(2):
        cache = evaluate.LogitCache(tmp_path / "deep" / "logits")
        for _ in range(2):
            np.testing.assert_array_equal(cache.get(("9f3a", "digits/test"), compute), logits)
    assert len(calls) == 1
    (entry,) = (tmp_path / "deep" / "logits").iterdir()
    np.testing.assert_array_equal(np.load(entry), logits)  # a plain .npy to others


def test_keys_are_told_apart(tmp_path):
    cache = evaluate.LogitCache(tmp_path)
    keys = ["a", ("a", "b"), ("a-b",), ("a/b",), ("a_b",), ("x" * 300, "1"), ("x" * 300, "2")]
    for number, key in enumerate(keys):
        cache.get(key, lambda number=number: np.array([number]))
    for number, key in enumerate(keys):
        assert cache.get(key, lambda: np.array([-1])) == [number]


@pytest.mark.parametrize("damage", ["truncate", "flip", "empty"])
def test_a_damaged_entry_is_computed_again(tmp_path, caplog, damage):
    cache = evaluate.LogitCache(tmp_path)
    cache.get("key", lambda: np.arange(100.0))
    (entry,) = tmp_path.iterdir()
    content = bytearray(entry.read_bytes())
    if damage == "flip":
        content[-100] ^= 4
    else:
        del content[len(content) // 2 if damage == "truncate" else 0 :]
    entry.write_bytes(content)
    np.testing.assert_array_equal(cache.get("key", lambda: np.ones(2)), np.ones(2))
    assert "is corrupted" in caplog.text
    np.testing.assert_array_equal(cache.get("key", lambda: np.zeros(2)), np.ones(2))


def test_arrays_by_name_are_kept(tmp_path):
    arrays = {"file": np.arange(3.0), "sum/0": np.array([True]), "": np.zeros((0, 2), np.int8)}
    for compute in (lambda: arrays, lambda: pytest.fail("computed twice")):
        found = evaluate.LogitCache(tmp_path).get("key", compute)
        assert list(found) == list(arrays)
        for name, array in arrays.items():
            np.testing.assert_array_equal(found[name], array, strict=True)


@pytest.mark.parametrize("value", [(np.ones(2), np.ones(2)), {"a": {"b": np.ones(2)}}, {0: np.ones(2)}, [1.0], None])
def test_what_would_not_come_back_as_it_was_is_refused(tmp_path, value):
    with pytest.raises(ValueError, match="only one array, or arrays by name, can be kept on disk, not"):
        evaluate.LogitCache(tmp_path).get("key", lambda: value)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_computation_leaves_nothing(tmp_path):
    cache = evaluate.LogitCache(tmp_path)
    with pytest.raises(RuntimeError, match="out of memory"):
        cache.get("key", lambda: (_ for _ in ()).throw(RuntimeError("out of memory")))
    assert list(tmp_path.iterdir()) == []


def test_a_cache_needs_a_directory(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FileExistsError, match="file"):
        evaluate.LogitCache(tmp_path / "file")
