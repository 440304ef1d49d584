"""Keep and merge a sharded pool over two processes; started twice by test_two_processes_merge.py: ID PORT FOLDER."""

import json
import pathlib
import shutil
import sys

import jax
import numpy as np
import yaml
from orbax.checkpoint import v1 as ocp

import soups
from soups import merging
from soups.merging.sharded import leaf_sharding, merge_sharded, merged_leaves
from soups.processes import on_first_process

SHAPES = {"layer/kernel": (64, 32), "layer/half": (6,), "layer/whole": (5,), "steps": (3,)}
MEMBERS = ("base", "a", "b", "c")
METHODS = {"ties": {"density": 0.5}, "linear": {}, "tsv_merge": {}}


def make_member(seed):
    """Return the weights of a member by name, the base's for seed 0."""
    rng, base = np.random.default_rng(seed), np.random.default_rng(0)
    leaves = {name: base.standard_normal(shape, np.float32) for name, shape in SHAPES.items()}
    leaves = {name: leaf + 0.3 * rng.standard_normal(leaf.shape, np.float32) for name, leaf in leaves.items()}
    return leaves | {"steps": np.arange(3)}


def make_plan(method, model):
    """Plan a merge of the three members; `model` gives the path of one by its name."""
    recipe = {
        "merge_method": method,
        "vocabulary": "published",
        "models": [{"model": model(name)} for name in MEMBERS[1:]],
        "parameters": METHODS[method],
    }
    recipe |= {"base_model": model("base")} if method != "linear" else {}
    return merging.plan(merging.parse_recipe(yaml.safe_dump(recipe)), merging.open_model)


def keep_members(folder):
    """Add the members to a pool in the shards of a merge, and write the base as Orbax does by default."""
    pool = soups.Pool(folder / "pool")
    for seed, name in enumerate(MEMBERS):
        leaves = make_member(seed)
        for leaf in ("layer/kernel", "layer/half"):  # the others stay NumPy arrays
            sharding = leaf_sharding(leaves[leaf].shape, "element", jax.devices())
            leaves[leaf] = jax.make_array_from_callback(leaves[leaf].shape, sharding, leaves[leaf].__getitem__)
        if name == "base":
            ocp.save(folder / "foreign", {leaf.replace("/", "_"): array for leaf, array in leaves.items()})
        pool.add(name, {"layer": {leaf[6:]: leaves.pop(leaf) for leaf in list(leaves) if "/" in leaf}, **leaves})
    return pool


def without_shards_of_the_other(folder, process, pool):
    """Copy the pool as it is on a host of its own, which has the files of this process's shards only."""
    mine = folder / f"pool{process}"
    shutil.copytree(pool.path, mine)
    for kernel in mine.glob("members/*/state/layer.kernel"):
        for row in range(8):
            if row // 4 != process:
                (kernel / f"{row}.0").unlink()
    for half in mine.glob("members/*/state/layer.half"):
        (half / f"{1 - process}").unlink()
    return mine


def main():
    """Do what each of the two processes does."""
    process, port, folder = int(sys.argv[1]), sys.argv[2], pathlib.Path(sys.argv[3])
    jax.config.update("jax_num_cpu_devices", 4)
    jax.distributed.initialize(f"localhost:{port}", num_processes=2, process_id=process)
    pool, read = keep_members(folder), {}
    for method in METHODS:
        counts = read.setdefault(method, [])
        merge_sharded(make_plan(method, lambda name: f"{pool.path}:{name}"), folder / method, progress=counts.append)
    alone = without_shards_of_the_other(folder, process, pool)
    merge_sharded(make_plan("ties", lambda name: f"{alone}:{name}"), folder / "alone")
    counts = read.setdefault("foreign", [])
    foreign = merged_leaves(make_plan("linear", lambda name: f"{folder}/foreign"), progress=counts.append)
    shards = {str(shard.index[0].start): np.asarray(shard.data) for shard in foreign["layer_kernel"].addressable_shards}
    np.savez(folder / f"foreign{process}.npz", **shards)
    on_first_process(lambda: flip_a_bit(pool))
    try:
        merge_sharded(make_plan("ties", lambda name: f"{pool.path}:{name}"), folder / "corrupt")
    except ValueError as error:
        read["error"] = f"{type(error).__name__}: {error}"
    (folder / f"read{process}.json").write_text(json.dumps(read))
    on_first_process(lambda: None)  # the first one serves the other: it must not end before


def flip_a_bit(pool):
    """Damage a file of the second process's shards."""
    chunk = pool.path / pool.record("b")["path"] / "state" / "layer.kernel" / "6.0"
    chunk.write_bytes(bytes([chunk.read_bytes()[0] ^ 1]) + chunk.read_bytes()[1:])


if __name__ == "__main__":
    main()
