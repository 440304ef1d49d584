"""Test reading Orbax checkpoints of older and newer versions, steps of training, and Flax's files; and damaged ones."""

import json
import logging
import os
import pathlib
import shutil
import subprocess
import sys
import time
import zipfile
from unittest import mock

import ml_dtypes
import numpy as np
import orbax.checkpoint
import pytest
from orbax.checkpoint import v1

from soups.formats import CheckpointError
from soups.formats.orbax import load_checkpoint, open_leaves, open_orbax, save_checkpoint
from soups.formats.orbax_steps import is_orbax

DATA = pathlib.Path(__file__).parent / "data"  # make_with_orbax.py wrote these
VERSIONS = ["0.4.8", "0.9.1"]


def params(shift=0):
    """Return what make_with_orbax.py stores."""
    return {
        "dense/kernel": np.arange(24, dtype=np.float32).reshape(4, 6) + shift,
        "dense/bias": np.arange(6, dtype=np.float16) + shift,
        "blocks/0/scale": (np.arange(3) + shift).astype(ml_dtypes.bfloat16),
        "blocks/1/zeros": np.zeros(5, np.float32),
        "temperature": np.float32(2.5 + shift),
        "count": np.asarray(3),
        "rate": np.asarray(0.5),
    }


def state(shift):
    return {name: leaf for name, leaf in params(shift).items() if name not in ("count", "rate")}


@pytest.fixture(scope="module", params=VERSIONS)
def written(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("orbax")
    with zipfile.ZipFile(DATA / f"orbax-{request.param}.zip") as archive:
        archive.extractall(folder)
    return folder


@pytest.fixture
def copied(written, tmp_path):
    """Return a copy that may be damaged."""
    return pathlib.Path(shutil.copytree(written, tmp_path / "copied"))


def same(tensors, expected):
    assert set(tensors.leaves) == set(expected)
    for name, values in expected.items():
        read, leaf = tensors.read(name), tensors.leaves[name]
        assert read.shape == leaf.shape == values.shape
        assert read.dtype == leaf.dtype and (name in ("count", "rate") or read.dtype == values.dtype)
        assert leaf.nbytes == read.nbytes
        np.testing.assert_array_equal(read.astype(np.float64), values.astype(np.float64))


# --- What Orbax and Flax wrote ---


@pytest.mark.parametrize(
    ("place", "note"),
    [("ocdbt", ("left out: 'note'",)), ("plain", ()), ("aggregate", ())],
    ids=lambda value: str(value),
)
def test_all_layouts(place, note, written):
    prefix = "" if place == "aggregate" else "params/"
    tensors = open_orbax(written / place)
    same(tensors, {prefix + name: leaf for name, leaf in params().items()})
    assert tensors.notes == note and is_orbax(written / place)
    part = (slice(1, 3), slice(2, 6))
    np.testing.assert_array_equal(tensors.read(f"{prefix}dense/kernel", part), params()["dense/kernel"][part])
    assert tensors.making(f"{prefix}dense/kernel") > 0
    assert all(size == file.stat().st_size for file, size in tensors.sizes.items()) and tensors.sizes


@pytest.mark.parametrize("place", ["aggregate", "plain", "manager/checkpoint_10/default", "items/5/params"])
def test_checkpoints_are_loaded_whole(place, written):
    loaded, leaves = load_checkpoint(written / place), open_leaves(written / place)
    for name in leaves.leaves:
        node = loaded
        for key in name.split("/"):
            node = node[int(key) if isinstance(node, list) else key]
        np.testing.assert_array_equal(node, leaves.read(name))


def test_the_newest_finished_step_of_a_manager(copied):
    root = copied / "manager"
    (root / "checkpoint_11.orbax-checkpoint-tmp-1733").mkdir()
    (root / "checkpoint_12").mkdir()  # nothing is in it yet
    tensors = open_orbax(root)
    same(tensors, state(10))
    assert tensors.notes[0] == "the newest finished step of 2 is taken: 'checkpoint_10'"
    assert tensors.notes[1:] == ("left out: 'step', 'opt_state'",)
    same(open_orbax(root / "checkpoint_10"), state(10))
    same(open_orbax(root / "checkpoint_10" / "default"), state(10))
    same(open_orbax(root / "checkpoint_9"), {"a": np.arange(3, dtype=np.float32)})


@pytest.mark.parametrize("tree", ["params", "default/params"])
def test_a_tree_of_a_state_is_chosen(tree, written):
    tensors = open_orbax(written / "manager", tree)
    same(tensors, state(10))
    assert "opt_state" in tensors.notes[1]
    moments = open_orbax(written / "manager", "opt_state/0/mu")
    same(moments, {name: np.zeros_like(leaf) for name, leaf in state(10).items()})
    assert {name.partition("/")[0] for name in open_orbax(written / "manager", ".").leaves} == {
        "params",
        "opt_state",
        "step",
    }
    with pytest.raises(CheckpointError, match=r"has no tree 'ema'; there are: .*'params'"):
        open_orbax(written / "manager", "ema")


def test_the_parts_of_a_step_are_trees(copied):
    tensors = open_orbax(copied / "items")
    same(tensors, {"a": np.arange(3, dtype=np.float32)})
    assert tensors.notes == ("the newest finished step of 1 is taken: '5'", "left out: 'opt_state'")
    shutil.copytree(copied / "items" / "5" / "params", copied / "items" / "5" / "ema_params")
    with pytest.raises(CheckpointError, match=r"several trees that could be the weights: .*'ema_params'"):
        open_orbax(copied / "items")
    same(open_orbax(copied / "items", "ema_params"), {"a": np.arange(3, dtype=np.float32)})


def test_parts_are_not_guessed(copied):
    step = copied / "items" / "5"
    (step / "opt_state").rename(step / "state")
    (step / "params").rename(step / "other")
    assert open_orbax(step).notes == ("left out: 'other'",)
    for name, named in (("ema", "'ema', 'state'"), ("first", "'first', 'second'")):
        (step / "other").rename(step / name)
        if name == "first":
            (step / "state").rename(step / "second")
        with pytest.raises(CheckpointError, match=f"several trees that could be the weights: {named}; choose one"):
            open_orbax(step)
        same(open_orbax(step, name), {"a": np.arange(3, dtype=np.float32)})
        (step / name).rename(step / "other")


def test_steps_of_two_kinds_are_not_guessed(copied):
    shutil.copytree(copied / "items" / "5", copied / "manager" / "5")
    with pytest.raises(
        CheckpointError, match=r"several kinds of steps: name one of '5', 'checkpoint_9', 'checkpoint_10'"
    ):
        open_orbax(copied / "manager")


def test_a_file_of_flax_is_mapped(written):
    for path in (written / "flax" / "checkpoint_7", written / "flax"):
        tensors = open_orbax(path)
        same(tensors, state(7))
        assert all(tensors.making(name) == 0 for name in tensors.leaves)
        assert tensors.notes[-1] == "left out: 'step', 'opt_state'"
        assert not tensors.read("dense/kernel").flags.writeable


def test_a_folder_of_hugging_face_in_flax(written, tmp_path):
    shutil.copy(written / "flax" / "checkpoint_7", tmp_path / "flax_model.msgpack")
    (tmp_path / "config.json").write_text("{}")
    same(open_orbax(tmp_path), state(7))
    same(
        open_orbax(tmp_path / "flax_model.msgpack", "params/dense"),
        dense := {name.removeprefix("dense/"): leaf for name, leaf in state(7).items() if name.startswith("dense/")},
    )
    assert len(dense) == 2


@pytest.mark.parametrize("content", [b"", b"PK\3\4", b"\x80\2}.", b"text"])
def test_other_files_with_numbers_are_not_flax(content, tmp_path):
    (tmp_path / "checkpoint_7").write_bytes(content)
    assert not is_orbax(tmp_path / "checkpoint_7")


def test_paths_with_dots_links_and_from_here(written, tmp_path, monkeypatch):
    (tmp_path / "link").symlink_to(written / "ocdbt")
    monkeypatch.chdir(tmp_path)
    for path in (written / "plain" / ".." / "ocdbt", "link", os.path.relpath(written / "ocdbt")):
        same(open_orbax(path), {f"params/{name}": leaf for name, leaf in params().items()})


def test_zarr3_is_read(tmp_path):
    tree = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": {"c": np.float32(1.5)}}
    handler = orbax.checkpoint.PyTreeCheckpointHandler(use_zarr3=True)
    for place, ocdbt in (("files", False), ("database", True)):
        handler = orbax.checkpoint.PyTreeCheckpointHandler(use_zarr3=True, use_ocdbt=ocdbt)
        orbax.checkpoint.Checkpointer(handler).save(tmp_path / place, tree)
        same(open_orbax(tmp_path / place), {"a": tree["a"], "b/c": tree["b"]["c"]})


def test_what_t5x_names_is_found(tmp_path):
    save_checkpoint(tmp_path / "saved", {"x": np.arange(3.0)})
    root = tmp_path / "checkpoint_5"
    (root / "target.w").parent.mkdir()
    shutil.copytree(tmp_path / "saved" / "state" / "x", root / "target.w")
    spec = {"driver": "zarr", "kvstore": {"driver": "file", "path": "target.w"}}
    (root / "checkpoint").write_bytes(
        packed({"version": 3, "optimizer": {"target": {"w": spec}, "state": {"step": 1}}})
    )
    same(open_orbax(root), {"w": np.arange(3.0)})


def packed(value):
    """Pack small values with MessagePack."""
    if isinstance(value, dict):
        return bytes([0x80 | len(value)]) + b"".join(packed(key) + packed(item) for key, item in value.items())
    return bytes([value]) if isinstance(value, int) else bytes([0xD9, len(value)]) + value.encode()


# --- What is wrong ---


def test_unfinished_checkpoints_are_said_to_be(copied):
    (copied / "ocdbt" / "manifest.ocdbt").unlink()
    with pytest.raises(CheckpointError, match="was not finished"):
        open_orbax(copied / "ocdbt")
    (copied / "new" / "3.orbax-checkpoint-tmp-17").mkdir(parents=True)
    with pytest.raises(CheckpointError, match=r"no finished .*; unfinished: '3\.orbax-checkpoint-tmp-17'"):
        open_orbax(copied / "new")
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        open_orbax(copied / "nothing")


HEADERS = {
    "a huge chunk": ({"chunks": [2**40, 6]}, "claims chunks of"),
    "a negative shape": ({"shape": [-4, 6]}, "a shape whose sizes are not non-negative integers"),
    "a huge shape": ({"shape": [2**40, 6], "chunks": [2**40, 6]}, "claims 26388279066624 bytes; all files have"),
    "an impossible shape": ({"shape": [2**62, 6]}, "a shape of more than 2.63 bytes"),
    "many chunks": ({"shape": [2**20, 6], "chunks": [1, 1]}, "claims more than 65536 chunks"),
    "chunks without elements": ({"chunks": [0, 6]}, "chunks of"),
    "another rank": ({"chunks": [4]}, "chunks of"),
    "a number that is none": ({"shape": [4.0, 6]}, "a shape whose sizes are not non-negative integers"),
    "a structured dtype": ({"dtype": [["a", "<f4"]]}, "only numbers and booleans are read"),
    "text": ({"dtype": "<U4"}, "only numbers and booleans are read"),
    "an unknown codec": ({"compressor": {"id": "evil"}}, "an unknown compressor"),
    "a codec that is no mapping": ({"compressor": "zstd"}, "damaged, or not as Zarr has it"),
    "a filter": ({"filters": [{"id": "delta"}]}, "has filters"),
    "another order": ({"order": "X"}, "not of Zarr's format 2"),
    "another separator": ({"dimension_separator": "../../"}, "has the separator"),
    "no shape": ({"shape": None}, "a shape whose sizes are not non-negative integers"),
    "another dtype than its bytes": ({"dtype": "<f8"}, "cannot be|claims|claims chunks"),
}


@pytest.mark.parametrize(("change", "message"), HEADERS.values(), ids=HEADERS)
def test_headers_of_arrays_are_checked(change, message, copied):
    path = copied / "plain" / "params.dense.kernel" / ".zarray"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CheckpointError, match=message):
        open_orbax(copied / "plain").read("params/dense/kernel")


@pytest.mark.parametrize(
    "metadata",
    [
        "[]",
        "{}",
        '{"tree_metadata": []}',
        '{"tree_metadata": {"a": 1}}',
        '{"tree_metadata": {"a": {"key_metadata": [{"key": ".."}], "value_metadata": {"value_type": "scalar"}}}}',
        '{"tree_metadata": {"a": {"key_metadata": [{"key": "/etc"}], "value_metadata": {"value_type": "scalar"}}}}',
        '{"tree_metadata": {"a": {"key_metadata": [], "value_metadata": {"value_type": "scalar"}}}}',
        '{"tree_metadata": {"a": {"key_metadata": 7, "value_metadata": null}}}',
        "[" * 100_000,
        '{"tree_metadata": ' + '{"a": ' * 100_000,
    ],
    ids=range(10),
)
def test_descriptions_of_trees_are_checked(metadata, copied):
    (copied / "plain" / "_METADATA").write_text(metadata)
    (copied / "plain" / "checkpoint").unlink(missing_ok=True)
    with pytest.raises(CheckpointError, match="plain"):
        open_orbax(copied / "plain")


def test_two_leaves_of_one_name(copied):
    path = copied / "plain" / "_METADATA"
    storage = json.loads(path.read_text())
    leaf = storage["tree_metadata"]["('params', 'dense', 'bias')"]
    twice = {**leaf, "key_metadata": [{"key": "params", "key_type": 2}, {"key": "dense/bias", "key_type": 2}]}
    storage["tree_metadata"]["twice"] = twice
    path.write_text(json.dumps(storage))
    with pytest.raises(CheckpointError, match="two tensors have the same name"):
        open_orbax(copied / "plain")


SMALL = [
    "plain/_METADATA",
    "plain/params.dense.kernel/.zarray",
    "plain/params.dense.kernel/0.0",
    "ocdbt/manifest.ocdbt",
]
SMALL += ["ocdbt/_METADATA", "ocdbt/ocdbt.process_0/manifest.ocdbt", "aggregate/checkpoint", "flax/checkpoint_7"]


@pytest.mark.parametrize("file", SMALL)
def test_damage_of_any_kind_ends_in_words(file, copied):
    path = copied / file
    if not path.exists():  # newer versions have no such file
        assert file == "aggregate/checkpoint"
        return
    root = copied / file.partition("/")[0]
    content, rng = path.read_bytes(), np.random.default_rng(0)
    for trial in range(60):
        damaged = bytearray(content)
        for at in rng.integers(len(content), size=rng.integers(1, 4)):
            damaged[at] = rng.integers(256)
        path.write_bytes(damaged[: rng.integers(len(damaged))] if trial % 3 == 0 else damaged)
        begin = time.monotonic()
        try:
            tensors = open_orbax(root)
            for name in tensors.leaves:
                tensors.read(name)
        except CheckpointError as error:
            assert str(copied) in str(error) and len(str(error)) < 5000
        assert time.monotonic() - begin < 5


# --- Effects and costs ---


def test_saving_leaves_the_loggers_as_they_were(tmp_path):
    filters = list(logging.getLogger("absl").filters)
    save_checkpoint(tmp_path / "a", {"x": np.ones(3)})
    assert logging.getLogger("absl").filters == filters
    assert list(open_leaves(tmp_path / "a").leaves) == ["x"]


def test_threads_of_a_save_that_was_stopped_stay_quiet(tmp_path, monkeypatch, caplog):
    logger = logging.getLogger("absl")
    monkeypatch.setattr(logger, "filters", list(logger.filters))
    monkeypatch.setattr(sys, "unraisablehook", mock.Mock())
    told = sys.unraisablehook
    monkeypatch.setattr(v1, "save", mock.Mock(side_effect=KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(tmp_path / "a", {"x": np.ones(3)})
    logger.warning("Skipping merge of OCDBT checkpoints")
    logger.warning("another")
    assert [record.getMessage() for record in caplog.records] == ["another"]
    for message in ("Event loop is closed", "another"):
        sys.unraisablehook(mock.Mock(exc_value=RuntimeError(message)))
    told.assert_called_once()


def test_a_disk_that_fills_is_one_error(tmp_path):
    code = f"""
import pathlib, resource, sys
import numpy as np
from soups.formats.orbax import save_checkpoint
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
hook = sys.unraisablehook
leaves = {{f"l{{i}}": np.ones((300, 256), np.float32) for i in range(8)}}
try:
    save_checkpoint(pathlib.Path({str(tmp_path / "a")!r}), leaves)
except OSError as error:
    print(error)
assert sys.unraisablehook is hook
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == f"[Errno 27] cannot write {tmp_path / 'a'}: File too large\n" and done.stderr == ""


def test_reading_a_part_reads_only_its_chunks(copied):
    folder = copied / "plain" / "params.dense.kernel"
    for chunk in ("0.1", "1.0", "1.1"):
        (folder / chunk).unlink()
    tensors = open_orbax(copied / "plain")
    part = (slice(0, 2), slice(0, 3))
    np.testing.assert_array_equal(tensors.read("params/dense/kernel", part), params()["dense/kernel"][part])
    with pytest.raises(CheckpointError, match=r"params\.dense\.kernel cannot be read: .*missing"):
        tensors.read("params/dense/kernel")
