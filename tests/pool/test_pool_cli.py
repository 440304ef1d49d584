"""Test the command line of pools."""

import json
import os
import pathlib
import struct
import subprocess
import sys

import flax
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

from soups.cli import main
from soups.formats import write_safetensors
from soups.pool import Pool

ROOT = pathlib.Path(__file__).parents[2]
DATA = ROOT / "tests" / "formats" / "data"


@pytest.fixture
def cli(monkeypatch, capsys):
    """Return a function that runs one command and returns (exit code, output, errors)."""
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments):
        return main(["pool", *map(str, arguments)]), *capsys.readouterr()

    return run


@pytest.fixture
def pool(tmp_path):
    """Return a pool of a good member and one that diverged."""
    pool = Pool(tmp_path / "pool")
    kernel = np.ones((20, 50), np.float32)
    pool.add("good", {"dense": {"kernel": kernel}}, {"seed": 3}, metrics={"held_out": {}, "held_out_accuracy": 0.875})
    pool.add("bad[red]", {"dense": {"kernel": kernel * np.nan}})
    return pool


def test_list_shows_what_distinguishes_members(cli, pool):
    code, out, err = cli("list", pool.path)
    assert (code, err) == (0, "")
    row = next(line for line in out.splitlines() if "good" in line)
    assert all(part in row for part in ("ok", "1,000", "0.004", "held_out_accuracy 0.875", pool.digest("good")[:12]))
    row = next(line for line in out.splitlines() if "bad[red]" in line)
    assert "non-finite" in row


def test_show_prints_the_record_and_the_leaves(cli, pool):
    code, out, _ = cli("show", pool.path, "good", "bad[red]")
    assert code == 0
    for part in ("metadata.seed", "versions.jax", pool.digest("good"), "dense/kernel", "(20, 50)", "NaN or infinity"):
        assert part in out


def test_verify_exits_with_1_when_something_is_wrong(cli, pool):
    assert cli("verify", pool.path)[0] == 0
    file = pool.path / pool.record("good")["path"] / "state" / "dense.kernel" / "0.0"
    content = bytearray(file.read_bytes())
    content[77] ^= 4
    file.write_bytes(content)
    code, out, _ = cli("verify", pool.path)
    assert code == 1
    assert "state/dense.kernel/0.0 (leaf dense/kernel) does not have the bytes" in out
    assert cli("verify", pool.path, "bad[red]")[0] == 0


def test_add_and_remove(cli, pool, tmp_path):
    ocp.save(tmp_path / "checkpoint", {"dense": {"kernel": np.full((20, 50), 2, np.float32)}})
    code, out, err = cli("add", pool.path, "new", tmp_path / "checkpoint", "--metadata", '{"seed": 5}')
    assert (code, err) == (0, "")
    assert "added new: 1,000 parameters, ok" in out
    changed = Pool(pool.path)
    assert changed["new"]["dense"]["kernel"].tolist() == [[2.0] * 50] * 20
    assert changed.record("new")["metadata"] == {"seed": 5}
    assert cli("remove", pool.path, "good", "new")[:2] == (0, "removed good\nremoved new\n")
    assert Pool(pool.path).names == ["bad[red]"]


def _npz(path, leaves):
    np.savez(path, **leaves)


def _gguf(path, leaves):
    infos, data = b"", b""
    for name, leaf in leaves.items():
        shape = struct.pack(f"<{leaf.ndim}Q", *reversed(leaf.shape))
        infos += struct.pack("<Q", len(name)) + name.encode() + struct.pack("<I", leaf.ndim) + shape
        infos += struct.pack("<IQ", 0, len(data))
        data += leaf.tobytes() + b"\0" * (-leaf.nbytes % 32)
    header = b"GGUF" + struct.pack("<IQQ", 3, len(leaves), 0) + infos
    path.write_bytes(header + b"\0" * (-len(header) % 32) + data)


def _hugging_face(path, leaves):
    path.mkdir()
    (path / "config.json").write_text("{}")
    write_safetensors(path / "model.safetensors", leaves)


def _flax(path, leaves):
    path.write_bytes(flax.serialization.msgpack_serialize(flax.traverse_util.unflatten_dict(leaves, sep=".")))


def _orbax(path, leaves):
    ocp.save(path, flax.traverse_util.unflatten_dict(leaves, sep="."))


def _member(path, leaves):
    pool, _, name = str(path).partition(":")
    Pool(pool).add(name, flax.traverse_util.unflatten_dict(leaves, sep="."))


WRITERS = {
    "x.safetensors": write_safetensors,
    "x.npz": _npz,
    "x.gguf": _gguf,
    "folder": _hugging_face,
    "x.msgpack": _flax,
    "orbax": _orbax,
    "other:member": _member,
}


@pytest.mark.parametrize("name", WRITERS)
def test_weights_of_every_format_are_added(name, cli, tmp_path):
    leaves = {"dense.kernel": np.arange(6, dtype=np.float32).reshape(2, 3), "dense.bias": np.ones(3, np.float32)}
    WRITERS[name](tmp_path / name, leaves)
    assert cli("add", tmp_path / "pool", "new", tmp_path / name)[::2] == (0, "")
    added = Pool(tmp_path / "pool")["new"]
    assert set(added) == {"dense"} and set(added["dense"]) == {"kernel", "bias"}
    for key, leaf in added["dense"].items():
        np.testing.assert_array_equal(leaf, leaves[f"dense.{key}"])
        assert leaf.dtype == np.float32
    assert cli("export", f"{tmp_path}/pool:new", tmp_path / "out.npz")[::2] == (0, "")
    mark = (
        "/" if name in ("x.msgpack", "orbax", "other:member") else "."
    )  # where a tree has no names, they are those of the pool
    with np.load(tmp_path / "out.npz") as exported:
        assert {key: exported[key].tolist() for key in exported} == {
            key.replace(".", mark): leaf.tolist() for key, leaf in leaves.items()
        }


def test_weights_of_a_torch_file_are_added_and_what_is_left_out_is_said(cli, tmp_path):
    code, out, _ = cli("add", tmp_path / "pool", "new", DATA / "training.pt")
    assert code == 0 and "left out of training.pt: 'optimizer', 'epoch', 'name'\n" in out
    with np.load(DATA / "training.npz") as expected:
        added = flax.traverse_util.flatten_dict(Pool(tmp_path / "pool")["new"], sep=".")
        assert set(added) == set(expected)
        for key, values in expected.items():
            np.testing.assert_array_equal(added[key], values)


def test_keys_that_hold_a_slash_stay_keys_and_tied_tensors_are_named(cli, tmp_path):
    ocp.save(tmp_path / "haiku", {"linear/~/w": {"b": np.ones(3, np.float32)}})
    assert cli("add", tmp_path / "pool", "new", tmp_path / "haiku")[0] == 0
    assert set(Pool(tmp_path / "pool")["new"]) == {"linear/~/w"}
    write_safetensors(tmp_path / "tied.safetensors", {"a": np.ones(3, np.float32)}, {"b": "a"})
    code, out, _ = cli("add", tmp_path / "tied", "new", tmp_path / "tied.safetensors")
    assert code == 0 and "b is tied to a and not added\n" in out


def test_a_tree_of_several_is_chosen(cli, tmp_path):
    ocp.save(tmp_path / "both", {"params": {"w": np.ones(3)}, "ema_params": {"w": np.zeros(3)}})
    code, out, err = cli("add", tmp_path / "pool", "new", tmp_path / "both")
    assert (code, out) == (2, "") and "several trees that could be the weights: 'ema_params', 'params'" in err
    assert cli("add", tmp_path / "pool", "new", f"{tmp_path / 'both'}@ema_params")[0] == 0
    assert Pool(tmp_path / "pool")["new"]["w"].tolist() == [0, 0, 0]


def test_adapters_are_added_to_their_model_alone(cli, tmp_path):
    write_safetensors(tmp_path / "model.safetensors", {"q.weight": np.ones((2, 2), np.float32)})
    leaves = {f"base_model.model.q.lora_{x}.weight": np.ones((2, 2), np.float32) for x in "AB"}
    (tmp_path / "lora").mkdir()
    write_safetensors(tmp_path / "lora" / "adapter_model.safetensors", leaves)
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2}
    (tmp_path / "lora" / "adapter_config.json").write_text(json.dumps(config))
    for alone in ("lora", "lora/adapter_model.safetensors"):
        code, _, err = cli("add", tmp_path / "pool", "new", tmp_path / alone)
        assert code == 2 and "give MODEL+" in err
    assert cli("add", tmp_path / "pool", "new", f"{tmp_path}/model.safetensors+{tmp_path}/lora")[0] == 0
    assert Pool(tmp_path / "pool")["new"]["q"]["weight"].tolist() == [[3.0, 3.0]] * 2


def test_names_without_a_place_in_a_pool_are_an_error(cli, tmp_path):
    write_safetensors(tmp_path / "a.safetensors", {"a": np.ones(1, np.float32), "a.b": np.ones(1, np.float32)})
    code, _, err = cli("add", tmp_path / "pool", "new", tmp_path / "a.safetensors")
    assert code == 2 and "a.safetensors: 'a/b' lies inside another leaf" in err


def test_user_errors_are_one_line_and_2(cli, pool, tmp_path):
    for arguments, message in [
        (("list", tmp_path / "none"), "there is no pool at"),
        (("show", pool.path, "god"), "did you mean 'good'?"),
        (("remove", pool.path, "good", "god"), "no member 'god'"),
        (("add", pool.path, "new", tmp_path / "none"), "no checkpoint at"),
        (("export", f"{pool.path}:god", tmp_path / "out"), "did you mean 'good'?"),
        (("export", f"{pool.path}:bad[red]", tmp_path / "out"), "bad[red] holds NaN or infinity in 'dense/kernel'"),
        (("add", pool.path, "new", tmp_path, "--metadata", "{seed}"), "--metadata is not valid JSON"),
    ]:
        code, out, err = cli(*arguments)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert err.startswith("soups pool: ")
        assert message in err
    assert "good" in Pool(pool.path)


def test_the_script_runs_by_itself(pool):
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "pool.py", "show", pool.path, "xyz"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines() == [f"pool.py: no member 'xyz' in the pool {pool.path}, which has 2 members"]
