"""Test merges into one file: .safetensors and .npz, with names and numbers as NumPy reads them."""

import json
import signal
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest

from soups import merging
from soups.cli import main
from soups.formats import open_checkpoint, write_safetensors
from soups.formats.npz import write_npz
from soups.merging.record import record_beside

NAMES = ("params/img/Transformer/encoderblock_0/kernel", "params/img/pos_embedding", "params/t", "params/b.c")


def big_vision(path, seed):
    """Write a checkpoint as big_vision does, and give its arrays."""
    rng = np.random.default_rng(seed)
    arrays = {
        NAMES[0]: rng.normal(size=(3, 4, 2)).astype("f4"),
        NAMES[1]: rng.normal(size=(1, 5, 4)).astype(ml_dtypes.bfloat16),
        NAMES[2]: np.float32(rng.normal()),
        NAMES[3]: rng.normal(size=7).astype("f2"),
    }
    np.savez(path, **{name: a.view("V2") if a.dtype == ml_dtypes.bfloat16 else a for name, a in arrays.items()})
    return arrays


@pytest.fixture
def members(tmp_path):
    """Return the arrays of the files a.npz and b.npz."""
    return [big_vision(tmp_path / f"{name}.npz", seed) for seed, name in enumerate("ab")]


@pytest.fixture
def merge(tmp_path, capsys):
    """Return a function that averages a.npz and b.npz by the command and returns (exit code, output, errors)."""

    def run(out, *words, members=("a.npz", "b.npz")):
        paths = [str(tmp_path / name) for name in members]
        code = main(["merge", "--method", "uniform", "--members", *paths, "--out", str(out), *words])
        return code, *capsys.readouterr()

    return run


def mean(members, name):
    arrays = [np.asarray(arrays[name]) for arrays in members]
    return np.mean([array.astype("f8") for array in arrays], 0).astype("f4").astype(arrays[0].dtype)


def test_npz_files_become_one_that_numpy_reads(members, merge, tmp_path):
    out = tmp_path / "new" / "c.npz"
    code, printed, err = merge(out)
    assert (code, err) == (0, "") and f"wrote {out}" in printed
    with np.load(out) as found:
        assert set(found) == set(NAMES)
        for name in NAMES:
            expected = mean(members, name)
            stored = found[name].view(ml_dtypes.bfloat16) if found[name].dtype.kind == "V" else found[name]
            assert stored.dtype == expected.dtype
            np.testing.assert_array_equal(stored, expected, strict=True)
    assert sorted(file.name for file in out.parent.iterdir()) == ["c.npz", "c.npz.merge.json"]
    assert merge(tmp_path / "again.npz")[0] == 0
    assert (tmp_path / "again.npz").read_bytes() == out.read_bytes()


def test_one_safetensors_file_is_written_however_large(members, merge, tmp_path):
    assert merge(tmp_path / "c.safetensors", "--shard-size", "10B")[0] == 0
    found = open_checkpoint(tmp_path / "c.safetensors")
    assert set(found.leaves) == set(NAMES)
    for name in NAMES:
        np.testing.assert_array_equal(np.asarray(found.read(name)), mean(members, name))


def test_files_become_a_folder_and_recipes_a_file(members, merge, tmp_path, capsys):
    assert merge(tmp_path / "folder")[0] == 0
    assert set(open_checkpoint(tmp_path / "folder").leaves) == set(NAMES)
    recipe = tmp_path / "recipe.yml"
    recipe.write_text(f"{{merge_method: passthrough, models: [{tmp_path / 'folder'}]}}")
    assert main(["merge", str(recipe), str(tmp_path / "back.npz")]) == 0, capsys.readouterr().err
    np.testing.assert_array_equal(np.load(tmp_path / "back.npz")[NAMES[0]], mean(members, NAMES[0]))


@pytest.mark.parametrize("name", ["c.npz", "c.safetensors"])
def test_a_file_is_verified_by_its_record(members, merge, tmp_path, name, capsys):
    out = tmp_path / name
    merge(out)
    assert main(["merge", "--verify", str(out)]) == 0
    content = bytearray(out.read_bytes())
    at = content.rfind(np.asarray(mean(members, NAMES[3])).tobytes())
    content[at] ^= 1
    out.write_bytes(content)
    assert main(["merge", "--verify", str(out)]) == 1
    assert f"{NAMES[3]} differs from element 0 on" in capsys.readouterr().out
    record_beside(out).unlink()
    assert main(["merge", "--verify", str(out)]) == 2
    assert f"has no record of a merge: no {name}.merge.json" in capsys.readouterr().err


def test_what_is_there_stays(members, merge, tmp_path):
    for name in ("a.npz", "link.npz"):
        (tmp_path / "link.npz").is_symlink() or (tmp_path / "link.npz").symlink_to("nowhere")
        code, _, err = merge(tmp_path / name)
        assert code == 2 and f"{name} exists: choose a new path for the merge" in err
    (tmp_path / "c.npz.merge.json").write_text("mine")
    code, _, err = merge(tmp_path / "c.npz")
    assert code == 2 and "c.npz.merge.json exists, where the record of c.npz is written" in err
    assert (tmp_path / "c.npz.merge.json").read_text() == "mine" and not (tmp_path / "c.npz").exists()


def test_a_record_that_a_killed_merge_left_is_written_again(members, merge, tmp_path):
    merge(tmp_path / "c.npz")
    before = record_beside(tmp_path / "c.npz").read_bytes()
    (tmp_path / "c.npz").unlink()
    assert merge(tmp_path / "c.npz")[0] == 0
    assert record_beside(tmp_path / "c.npz").read_bytes() == before


KILLED = """
import os, signal, sys
from soups import merging
from soups.formats import npz
write = npz.np.lib.format.write_array
def once(file, array, **options):
    write(file, array, **options)
    os.kill(os.getpid(), signal.SIGKILL)
npz.np.lib.format.write_array = once
text = "{merge_method: linear, models: [%s]}" % ", ".join(
    "{model: %s, parameters: {weight: 1}}" % model for model in sys.argv[2:]
)
merging.merge_to_file(merging.plan(merging.parse_recipe(text), merging.open_model), sys.argv[1])
"""


def test_a_killed_merge_leaves_no_file_and_the_same_command_ends_it(members, merge, tmp_path):
    out, paths = tmp_path / "c.npz", [tmp_path / "a.npz", tmp_path / "b.npz"]
    done = subprocess.run([sys.executable, "-c", KILLED, out, *paths])
    assert done.returncode == -signal.SIGKILL and not out.exists() and not record_beside(out).exists()
    assert merge(out)[0] == 0 and set(np.load(out)) == set(NAMES)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_what_an_npz_cannot_hold_is_an_error_before_any_work(merge, tmp_path, capsys):
    leaves = {"a": np.zeros(2, ml_dtypes.float8_e4m3fn), "b\nc": np.zeros(2, np.float32)}
    write_safetensors(tmp_path / "a.safetensors", leaves)
    code, _, err = merge(tmp_path / "c.npz", members=["a.safetensors"])
    assert code == 2 and "a: dtype float8_e4m3fn" in err and "b\\nc: a name there is printable" in err
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]
    with pytest.raises(ValueError, match="npz file cannot hold:\n  a: dtype float8_e4m3fn"):
        write_npz(tmp_path / "x.npz", {"a": leaves["a"]})


def test_other_suffixes_and_formats_are_refused(members, merge, tmp_path):
    plan = merging.plan(
        merging.parse_recipe(f"{{merge_method: passthrough, models: [{tmp_path / 'a.npz'}]}}"), merging.open_model
    )
    with pytest.raises(ValueError, match="bin: a file that a merge writes ends in"):
        merging.merge_to_file(plan, tmp_path / "c.bin")
    code, _, err = merge(tmp_path / "c.npz", "--format", "huggingface")
    assert code == 2 and "c.npz would be a folder" in err


def test_a_full_disk_names_the_file(members, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np.lib.format, "write_array", full)
    with pytest.raises(OSError, match=r"cannot write .*x.npz: No space left on device"):
        write_npz(tmp_path / "x.npz", {"a": np.zeros(2)})
    assert not [path for path in tmp_path.iterdir() if "x.npz" in path.name]


def test_the_record_says_where_the_members_lie(members, merge, tmp_path):
    merge(tmp_path / "c.npz")
    record = json.loads(record_beside(tmp_path / "c.npz").read_text())
    assert [entry["path"] for entry in record["inputs"].values()] == ["./a.npz", "./b.npz"]
    found = merging.read_record(tmp_path / "c.npz")["inputs"].values()
    assert [entry["path"] for entry in found] == [f"{tmp_path}/a.npz", f"{tmp_path}/b.npz"]
