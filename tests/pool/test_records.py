"""Test that records are trusted in nothing: damage, links and what no pool writes are errors that name the file."""

import json
import os
import pathlib
import random

import jax
import numpy as np
import pytest
import xxhash
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from soups.pool import Pool, PoolCorruptionError

LEAVES = {"a": {"w": np.arange(6, dtype=np.float32).reshape(2, 3)}, "b": np.ones(2, np.float32)}


@pytest.fixture
def pool(tmp_path):
    """Return a pool of two members, with a directory beside it that nobody may touch."""
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").write_text("kept")
    pool = Pool(tmp_path / "pool")
    for name in ("one", "two"):
        pool.add(name, LEAVES, {"seed": 1}, metrics={"held_out": 0.5}, base="start")
    return pool


def _seal(fields):
    lines = ",\n".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in fields.items())
    rest = (lines + "}\n").encode()
    return b'{"checksum": "%s",\n' % xxhash.xxh3_128_hexdigest(rest).encode() + rest


def _record(pool, name):
    (file,) = (pool.path / "records").glob(f"*-{pathlib.Path(pool.record(name)['path']).name}.json")
    record = json.loads(file.read_text())
    del record["checksum"]
    return file, record


def _make_old(path):
    """Make a pool of the first format of one of the second: all records in the manifest."""
    pool = Pool(path)
    records = {name: pool.record(name) for name in pool}
    for record in records.values():
        del record["empty"]
    (path / "manifest.json").write_bytes(_seal({"format": "soups.pool/1", "base": "start", "members": records}))
    for file in (path / "records").iterdir():
        file.unlink()
    (path / "records").rmdir()
    return records


def _use(pool_path):
    """Do all that reads a pool, and the changes that touch the member "one"."""
    pool = Pool(pool_path)
    assert pool.verify().keys() >= {"one", "two"}
    assert pool.base == "start"
    assert pool.usable.names == pool.names
    for name in pool:
        assert pool[name].keys() == {"a", "b"}
        pool.load(name, like=pool.structure)
        tensors = pool.tensors(name)
        tensors.map("b")
        assert tensors.sizes
    pool.sweep_orphans()
    pool.update_metrics("one", {"shift": 1})
    pool.remove("one")


# --- The first format ------------------------------------------------------------------------------------------------


def test_an_old_pool_is_read_and_its_first_change_converts_it(pool):
    records = _make_old(pool.path)
    old = Pool(pool.path)
    assert old.names == ["one", "two"]
    assert {name: old.record(name) for name in old} == records
    assert old.verify() == {"one": [], "two": []}
    assert not (pool.path / "records").exists()
    reader = Pool(pool.path)
    old.add("three", LEAVES, base="start")
    assert reader.names == ["one", "two"]
    assert reader["two"]["b"].tolist() == [1, 1]
    assert reader.update_metrics("two", {"shift": 2}) == {"held_out": 0.5, "shift": 2}
    assert reader.names == old.names == Pool(pool.path).names == ["one", "two", "three"]
    assert Pool(pool.path).record("one") == records["one"]
    assert json.loads((pool.path / "manifest.json").read_text())["format"] == "soups.pool/2"
    _use(pool.path)


def test_what_a_killed_conversion_left_is_made_anew(pool):
    records = _make_old(pool.path)
    (pool.path / "records").mkdir()
    (pool.path / "records" / "00000001-other-0123.json").write_text("half a")
    old = Pool(pool.path)
    assert old.names == ["one", "two"]
    old.remove("one")
    assert Pool(pool.path).names == ["two"]
    assert Pool(pool.path).record("two") == records["two"]


def test_another_format_is_an_error_in_words(pool):
    (pool.path / "manifest.json").write_bytes(_seal({"format": "soups.pool/3"}))
    with pytest.raises(ValueError, match=r"has format 'soups\.pool/3'; this version reads"):
        Pool(pool.path)


# --- What is lost ----------------------------------------------------------------------------------------------------


def test_records_without_a_manifest_or_a_manifest_without_records_are_no_empty_pool(pool):
    manifest = (pool.path / "manifest.json").read_bytes()
    (pool.path / "manifest.json").unlink()
    with pytest.raises(PoolCorruptionError, match=r"manifest\.json is missing, though there are records"):
        Pool(pool.path)
    (pool.path / "manifest.json").write_bytes(manifest)
    (pool.path / "records").rename(pool.path / "elsewhere")
    with pytest.raises(PoolCorruptionError, match=r"records, which holds .*, is missing"):
        Pool(pool.path)


def test_all_damaged_records_are_named_at_once_and_the_rest_can_be_read_without_them(pool):
    files = [_record(pool, name)[0] for name in pool]
    for file in files:
        file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(PoolCorruptionError) as error:
        Pool(pool.path)
    assert all(str(file) in str(error.value) for file in files)
    files[0].unlink()
    with pytest.raises(PoolCorruptionError, match=files[1].name):
        Pool(pool.path)


def test_a_lost_member_can_be_removed(pool):
    directory = pool.path / pool.record("one")["path"]
    directory.rename(directory.with_name("moved"))
    assert Pool(pool.path).verify()["one"] == ["the whole directory is missing"]
    pool.remove("one")
    assert Pool(pool.path).names == ["two"]


def test_strays_of_killed_writers_are_swept(pool):
    stray = pool.path / "records" / f"00000009-x-0.json.{'0' * 32}.unfinished"
    stray.write_text("half")
    assert Pool(pool.path).names == ["one", "two"]
    pool.sweep_orphans()
    assert not stray.exists()


# --- Links and places ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    ["../precious", "members/../../precious", "/etc", "members", "members/", "members/..", "records/x", "", 3, None],
)
@pytest.mark.parametrize("old", [False, True])
def test_a_path_that_leads_elsewhere_is_refused(pool, tmp_path, path, old):
    if old:
        records = _make_old(pool.path)
        records["one"]["path"] = path
        (pool.path / "manifest.json").write_bytes(_seal({"format": "soups.pool/1", "base": None, "members": records}))
    else:
        file, record = _record(pool, "one")
        file.write_bytes(_seal({**record, "path": path}))
    with pytest.raises(PoolCorruptionError, match=r"(manifest|one-\w+)\.json is .*its path is not members/NAME"):
        _use(pool.path)
    assert (tmp_path / "precious" / "file").read_text() == "kept"


def test_a_record_never_names_the_directory_of_another_member(pool):
    file, record = _record(pool, "one")
    file.write_bytes(_seal({**record, "path": pool.record("two")["path"]}))
    with pytest.raises(PoolCorruptionError, match="is the record of another member"):
        Pool(pool.path).remove("one")
    file.rename(file.with_name(f"00000007-{pathlib.Path(pool.record('two')['path']).name}.json"))
    with pytest.raises(PoolCorruptionError, match="name the same directory"):
        Pool(pool.path)


def test_a_copied_record_does_not_give_a_name_twice(pool):
    file, record = _record(pool, "one")
    file.with_name("00000009-copy-0123.json").write_bytes(_seal(record))
    with pytest.raises(PoolCorruptionError, match="are both records of 'one'"):
        Pool(pool.path)


@pytest.mark.parametrize("place", ["members", "records", "member"])
def test_no_link_is_followed(pool, tmp_path, place):
    path = pool.path / (pool.record("one")["path"] if place == "member" else place)
    path.rename(tmp_path / "moved")
    before = sorted((tmp_path / "moved").rglob("*"))
    path.symlink_to(tmp_path / "moved")
    uses = {
        "read": lambda: Pool(pool.path)["one"],
        "remove": lambda: Pool(pool.path).remove("one"),
        "verify": lambda: Pool(pool.path).verify(),
        "sweep": lambda: Pool(pool.path).sweep_orphans(),
        "add": lambda: Pool(pool.path).add("three", LEAVES),
    }
    for use, function in uses.items():
        if place == "member" and use in ("sweep", "add"):
            function()
            continue
        with pytest.raises(PoolCorruptionError, match=f"{path} is a symbolic link"):
            function()
    assert sorted((tmp_path / "moved").rglob("*")) == before


def test_a_stray_link_among_the_members_is_swept_and_not_followed(pool, tmp_path):
    (pool.path / "members" / "stray").symlink_to(tmp_path / "precious")
    assert pool.verify()["members/stray"]
    assert pool.sweep_orphans() == ["members/stray"]
    assert (tmp_path / "precious" / "file").read_text() == "kept"


def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(pool):
    file = pool.path / pool.record("one")["path"] / "state" / "b" / "0"
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(PoolCorruptionError, match="state/b/0"):
        pool["one"]
    record, _ = _record(pool, "two")
    record.unlink()
    os.mkfifo(record)
    with pytest.raises(PoolCorruptionError, match=record.name):
        Pool(pool.path)


# --- What no pool writes ---------------------------------------------------------------------------------------------

WRONG = [None, True, -1, 1 << 70, 1.5, "", "text", "../x", [], [1], {}, {"a": 1}, {"key": []}, [["a"]], "f4", "object"]


def _places(node, path=()):
    """List the paths of all nodes of a JSON value."""
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    return [path, *(place for key, child in children for place in _places(child, (*path, key)))]


def _replaced(node, path, value):
    if not path:
        return value
    copy = dict(node) if isinstance(node, dict) else list(node)
    copy[path[0]] = _replaced(node[path[0]], path[1:], value)
    return copy


def _without(node, path):
    copy = dict(node) if isinstance(node, dict) else list(node)
    if len(path) == 1:
        del copy[path[0]]
    else:
        copy[path[0]] = _without(node[path[0]], path[1:])
    return copy


@pytest.mark.parametrize("seed", range(3))
def test_a_wrong_type_under_a_right_checksum_is_an_error_that_names_the_file_or_none(pool, seed):
    rng = random.Random(seed)
    file, record = _record(pool, "one")
    original = file.read_bytes()
    places = [place for place in _places(record) if place and place[0] not in ("metadata", "metrics", "versions")]
    for place in places:
        for fields in (_without(record, place), _replaced(record, place, rng.choice(WRONG))):
            file.write_bytes(_seal(fields))
            try:
                pool = Pool(pool.path)
                for name in pool:
                    pool.record(name)
                    pool.load(name, like={"a": {"w": LEAVES["a"]["w"]}, "b": LEAVES["b"]})
                    pool.tensors(name).read("b")
                    assert pool[name].keys() == {"a", "b"}
            except ValueError as error:
                named = isinstance(error, PoolCorruptionError) or "differ in structure" in str(error)
                assert named, (place, error)
                assert len(str(error)) < 3000
    file.write_bytes(original)
    _use(pool.path)


@pytest.mark.parametrize(
    "content",
    [b"", b"{}", b"[]\n", b"null", b"\xff\xfe" * 50, b"[" * 100_000, b'{"checksum": "x",\n"name": 1}', b"\0" * 99],
)
@pytest.mark.parametrize("pattern", ["manifest.json", "records/*-one-*.json"])
def test_any_bytes_in_a_record_are_an_error_that_names_it(pool, pattern, content):
    (file,) = pool.path.glob(pattern)
    rest = content.partition(b"\n")[2] or content
    sealed = b'{"checksum": "%s",\n' % xxhash.xxh3_128_hexdigest(rest).encode() + rest
    for damaged in (content, sealed):
        file.write_bytes(damaged)
        with pytest.raises(ValueError, match=file.name):
            _use(pool.path)


def test_truncated_files_are_named(pool):
    for file in [pool.path / "manifest.json", _record(pool, "two")[0]]:
        content = file.read_bytes()
        for size in range(0, len(content), max(1, len(content) // 40)):
            file.write_bytes(content[:size])
            with pytest.raises(PoolCorruptionError, match=file.name):
                Pool(pool.path)
        file.write_bytes(content)


def test_a_record_whose_shapes_are_not_those_of_its_files_is_noticed(pool, mesh):
    shards = jax.device_put(np.ones((4, 8), np.float32), NamedSharding(mesh, P("pool", "data")))
    pool = Pool(pool.path.with_name("other"))
    pool.add("one", {"a": shards, "b": np.ones(6, np.float32)})
    file, record = _record(pool, "one")
    for leaf, shape in (("a", [8, 4]), ("b", [5])):
        file.write_bytes(_seal(_replaced(record, ("leaves", leaf, "shape"), shape)))
        with pytest.raises(PoolCorruptionError, match=rf"member 'one'(?s:.*)\(?leaf {leaf}"):
            Pool(pool.path)["one"]
