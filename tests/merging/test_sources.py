"""Test that pool members and Orbax checkpoints are merged as files are, and that the output may be one."""

import json
import shutil

import jax
import ml_dtypes
import numpy as np
import orbax.checkpoint
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from orbax.checkpoint import v1 as ocp

import soups
from soups import merging
from soups.cli import main
from soups.formats import CheckpointError, open_checkpoint, write_safetensors
from soups.pool import Pool, load_checkpoint, save_checkpoint


def weights(seed):
    rng = np.random.default_rng(seed)
    return {
        "layer": {"kernel": rng.standard_normal((40, 30), np.float32), "bias": rng.standard_normal(30, np.float32)},
        "head": {"kernel": rng.standard_normal((30, 4), np.float32).astype(ml_dtypes.bfloat16)},
    }


BASE, MEMBERS = weights(0), [weights(seed) for seed in (1, 2, 3)]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sources")
    pool = Pool(folder / "pool")
    for index, member in enumerate(MEMBERS):
        pool.add(f"m{index}", member)
    pool.add("diverged", jax.tree.map(lambda leaf: np.full_like(leaf, np.nan), BASE))
    save_checkpoint(folder / "base", BASE)
    return folder


def merge_py(*arguments):
    return main(["merge", *map(str, arguments)])


def same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


def test_pool_members_and_orbax_to_either_format(models, tmp_path):
    members = [f"{models}/pool:m{index}" for index in range(3)]
    command = ["--method", "ties", "--density", "0.5", "--base", models / "base", "--members", *members]
    expected = soups.ties(MEMBERS, base=BASE, density=0.5)
    assert merge_py(*command, "--out", tmp_path / "folder") == 0
    there = open_checkpoint(tmp_path / "folder")
    same({name: there.read(name) for name in there.leaves}, soups.tree.flatten(expected))
    assert merge_py("--verify", tmp_path / "folder") == 0
    assert merge_py(*command, "--out", tmp_path / "orbax", "--format", "orbax") == 0
    same(load_checkpoint(tmp_path / "orbax"), expected)
    assert json.loads((tmp_path / "orbax" / "merge.json").read_text())["method"] == "ties"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "orbax"]
    # what was made is an input again
    assert merge_py("--method", "passthrough", "--members", tmp_path / "orbax", "--out", tmp_path / "copy") == 0
    copied = open_checkpoint(tmp_path / "copy")
    same({name: copied.read(name) for name in copied.leaves}, soups.tree.flatten(expected))


# --- Orbax checkpoints, leaf by leaf ---


@pytest.fixture
def tree(mesh):
    """Return what other programs store too: lists, scalars, arrays in shards."""
    kernel = jax.device_put(MEMBERS[0]["layer"]["kernel"], NamedSharding(mesh, P("pool", "data")))
    return {"layers": [{"kernel": kernel}, {"kernel": MEMBERS[0]["head"]["kernel"]}], "step": np.array(7), "empty": {}}


def save_as_versions_before_did(path, tree):
    with orbax.checkpoint.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(path, tree)


@pytest.mark.parametrize("save", [save_checkpoint, ocp.save, save_as_versions_before_did])
def test_any_orbax_checkpoint_is_read_leaf_by_leaf(save, tree, tmp_path):
    save(tmp_path / "orbax", tree)
    model = merging.open_model(tmp_path / "orbax")
    expected = soups.tree.flatten(jax.tree.map(np.asarray, tree))
    assert {name: (leaf.shape, leaf.dtype) for name, leaf in model.leaves.items()} == {
        name: (leaf.shape, leaf.dtype) for name, leaf in expected.items()
    }
    same({name: model.read(name) for name in model.leaves}, expected)
    part = (slice(7, 21), slice(10, 30))
    np.testing.assert_array_equal(model.read("layers/0/kernel", part), expected["layers/0/kernel"][part])


def test_leaves_that_lie_raw_are_mapped_and_others_are_not_looked_for(models, tmp_path):
    shutil.copytree(models / "base", tmp_path / "base")
    model = merging.open_model(tmp_path / "base")
    shutil.rmtree(tmp_path / "base" / "state" / "head.kernel")  # what is mapped stays until it is let go
    bias = model.read("layer/bias")
    assert not bias.flags.owndata and not bias.flags.writeable
    np.testing.assert_array_equal(bias, BASE["layer"]["bias"])


def test_a_lost_chunk_is_an_error_and_not_zeros(tree, tmp_path):
    save_checkpoint(tmp_path / "orbax", tree)
    model = merging.open_model(tmp_path / "orbax")
    (tmp_path / "orbax" / "state" / "layers.0.kernel" / "2.1").unlink()
    with pytest.raises(ValueError, match=r"layers\.0\.kernel cannot be read: .*missing"):
        model.read("layers/0/kernel")
    here = (slice(0, 20), slice(0, 30))  # in other chunks
    np.testing.assert_array_equal(model.read("layers/0/kernel", here), MEMBERS[0]["layer"]["kernel"][here])


def test_a_damaged_orbax_checkpoint_is_named(models, tree, tmp_path):
    shutil.copytree(models / "base", tmp_path / "short")
    bias = tmp_path / "short" / "state" / "layer.bias" / "0"
    bias.write_bytes(bias.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"layer\.bias/0 has 119 bytes instead of 120"):
        merging.open_model(tmp_path / "short")
    bias.with_name(".zarray").unlink()
    with pytest.raises(CheckpointError, match=r"layer\.bias cannot be opened: .*zarray"):
        merging.open_model(tmp_path / "short")
    (tmp_path / "short" / "state" / "_METADATA").write_text("{}")
    with pytest.raises(CheckpointError, match="_METADATA is damaged, or not as Orbax writes it"):
        merging.open_model(tmp_path / "short")
    ocp.save(tmp_path / "text", tree | {"name": "x"})
    assert merging.open_model(tmp_path / "text").notes == ("left out: 'name'",)


def test_processes_share_out_what_they_compare_with_digests(tree, tmp_path):
    pool = Pool(tmp_path / "pool")
    pool.add("m", {"sharded": tree["layers"][0]["kernel"], "a": np.ones(3), "b": np.ones(3), "c": np.ones(3)})
    state = pool.path / pool.record("m")["path"] / "state"
    finders = {}
    for file in sorted(state.glob("*/[0-9]*")):
        content = file.read_bytes()
        file.write_bytes(bytes([content[0] ^ 1]) + content[1:])
        for process in range(2):
            try:
                merging.open_model(f"{pool.path}:m").check(process, 2)
            except soups.PoolCorruptionError:
                finders.setdefault(file.relative_to(state).as_posix(), []).append(process)
        file.write_bytes(content)
    # 4 x 2 shards: the first two rows of them are the first process's
    rows = {f"sharded/{row}.{column}": [row // 2] for row in range(4) for column in range(2)}
    assert finders == {**rows, "a/0": [0], "b/0": [1], "c/0": [0]}


# --- Files ---


def test_names_with_dots_become_nested(tmp_path):
    leaves = {"model.a.weight": np.ones(3, np.float32), "model.b": np.zeros(2, np.float32)}
    write_safetensors(tmp_path / "a.safetensors", leaves)
    command = ["--method", "linear", "--members", tmp_path / "a.safetensors", "--format", "orbax"]
    assert merge_py(*command, "--out", tmp_path / "out") == 0
    same(
        load_checkpoint(tmp_path / "out"),
        {"model": {"a": {"weight": np.ones(3, np.float32)}, "b": np.zeros(2, np.float32)}},
    )
    assert merge_py(*command, "--out", tmp_path / "out") == 2  # it is there already


def test_headers_alone_are_read_until_a_leaf_is(models):
    model = merging.open_model(f"{models}/pool:m0")
    assert {name: (leaf.shape, leaf.dtype.name) for name, leaf in model.leaves.items()} == {
        "head/kernel": ((30, 4), "bfloat16"),
        "layer/bias": ((30,), "float32"),
        "layer/kernel": ((40, 30), "float32"),
    }
    assert sum(leaf.nbytes for leaf in model.leaves.values()) == 4 * (1200 + 30) + 2 * 120
    np.testing.assert_array_equal(model.read("layer/bias"), MEMBERS[0]["layer"]["bias"])


@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        ("pool:m9", ValueError, r"unknown member of .*pool 'm9'; there are: diverged, m0, m1, m2"),
        ("pool:diverged", ValueError, r"pool:diverged holds NaN or infinity in 'head/kernel', 'layer/bias', 'layer"),
        ("pool", CheckpointError, r"is a pool: name a member, such as .*pool:m0"),
        ("nothing", FileNotFoundError, "no checkpoint at .*nothing"),
    ],
)
def test_errors(models, model, error, message):
    with pytest.raises(error, match=message):
        merging.open_model(f"{models}/{model}")


@pytest.mark.parametrize("reference", ["file:///bucket/model", "hf://org/model@params", "https://x.org/pool:m0"])
def test_urls_are_refused(reference):
    with pytest.raises(ValueError, match="is a URL: give a local path"):
        merging.open_model(reference)


def test_a_tree_is_chosen_behind_an_at(models, tmp_path):
    ocp.save(tmp_path / "state", {"params": BASE, "ema": MEMBERS[0], "step": np.array(7)})
    with pytest.raises(CheckpointError, match=r"several trees that could be the weights: .*'ema'"):
        merging.open_model(tmp_path / "state")
    for tree, expected in (("params", BASE), ("ema", MEMBERS[0])):
        model = merging.open_model(f"{tmp_path}/state@{tree}")
        same({name: model.read(name) for name in model.leaves}, soups.tree.flatten(expected))
        assert len(model.notes) == 1 and "'step'" in model.notes[0]
    write_safetensors(tmp_path / "x.safetensors", {"a.b": np.ones(2, np.float32), "c": np.ones(1, np.float32)})
    assert list(merging.open_model(f"{tmp_path}/x.safetensors@a").leaves) == ["b"]
    shutil.copytree(models / "base", tmp_path / "state@ema")  # what exists goes first
    model = merging.open_model(f"{tmp_path}/state@ema")
    same({name: model.read(name) for name in model.leaves}, soups.tree.flatten(BASE))
    with pytest.raises(ValueError, match=r"pool:m0@a: a member of a pool is a single tree"):
        merging.open_model(f"{models}/pool:m0@a")


def test_a_flipped_bit_in_a_pool_is_named(tmp_path):
    pool = Pool(tmp_path / "pool")
    pool.add("m0", MEMBERS[0])
    file = max((tmp_path / "pool" / pool.record("m0")["path"]).rglob("*"), key=lambda path: path.stat().st_size)
    content = bytearray(file.read_bytes())
    content[100] ^= 1
    file.write_bytes(content)
    with pytest.raises(soups.PoolCorruptionError, match="layer/kernel"):
        merging.open_model(f"{tmp_path}/pool:m0").read("layer/kernel")


def test_an_output_of_several_trees_is_verified_whole(tmp_path):
    trees = {"params": BASE, "ema": MEMBERS[0]}
    save_checkpoint(tmp_path / "a", trees)
    command = ["--method", "linear", "--members", f"{tmp_path}/a@.", "--out"]
    assert merge_py(*command, tmp_path / "orbax", "--format", "orbax") == 0
    same(load_checkpoint(tmp_path / "orbax"), trees)
    assert merge_py("--verify", tmp_path / "orbax") == 0
    assert merge_py(*command, f"{tmp_path}/pool:m", "--format", "pool") == 0
    assert merge_py("--verify", f"{tmp_path}/pool:m") == 0


@pytest.mark.parametrize("name", ["a:b", "a@b", "a@.", "../a", "a+b", ":"])
def test_a_member_of_any_name_is_an_input_and_an_output(tmp_path, name):
    pool = Pool(tmp_path / "pool")
    pool.add(name, MEMBERS[0])
    command = ["--method", "passthrough", "--members", f"{tmp_path}/pool:{name}", "--format", "pool", "--out"]
    assert merge_py(*command, f"{tmp_path}/pool:{name}{name}") == 0
    assert merge_py("--verify", f"{tmp_path}/pool:{name}{name}") == 0
    record = Pool(tmp_path / "pool").record(name + name)
    assert [entry["path"] for entry in record["metadata"]["merge"]["inputs"].values()] == [f"{tmp_path}/pool:{name}"]
    assert [path.name for path in tmp_path.iterdir()] == ["pool"]
