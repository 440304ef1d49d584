"""Test that merging on eight devices gives what one device gives, and moves nothing but statistics between them."""

import dataclasses
import json
import math
import re

import jax
import ml_dtypes
import numpy as np
import pytest
import yaml

from soups import merging
from soups.files import locked
from soups.formats import write_safetensors
from soups.formats.view import View
from soups.merging.run import merge_to_orbax
from soups.merging.sharded import leaf_sharding, merge_sharded, merged_leaves
from soups.pool import Pool, PoolCorruptionError, load_checkpoint

SHAPE = (64, 32)
METHODS = {
    f"{vocabulary} {name}": (vocabulary, name)
    for vocabulary in ("published", "mergekit")
    for name in merging.methods_of(vocabulary)
}
OTHER_SCOPES = {"published karcher, model": "model"}


def weights(seed, shapes):
    base, rng = np.random.default_rng(0), np.random.default_rng(seed)
    made = {name: base.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    return {name: np.abs(leaf + 0.3 * rng.standard_normal(leaf.shape, np.float32)) for name, leaf in made.items()}


def write(folder, shapes):
    for seed, name in enumerate(("base", "a", "b", "c")):
        leaves = {**weights(seed, shapes), "steps": np.arange(3)}
        write_safetensors(folder / f"{name}.safetensors", leaves)
        grams = {leaf: array.T @ array for leaf, array in leaves.items() if array.ndim == 2}
        write_safetensors(folder / f"grams_{name}.safetensors", grams)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Return models of two leaves for each vocabulary; those of mergekit's, which are done leaf by leaf, have one."""
    leaves = {"published": {"one": SHAPE, "two": SHAPE}, "mergekit": {"one": SHAPE}}
    return {name: write(tmp_path_factory.mktemp(name), shapes) for name, shapes in leaves.items()}


@pytest.fixture(scope="module")
def programs():
    """Share what was compiled: some methods are the same in both vocabularies."""
    return Programs()


def value(name, default, index=None):
    """Return a value for a setting of a method: its default, but other weights for each member and few steps."""
    if name in ("weight", "density", "select_topk"):
        return (0.5 if default is merging.REQUIRED else 0.5 * default) * [1.0, 0.5, 0.75][index or 0]
    if default is merging.REQUIRED:
        return 0.3
    return min(default, 5) if type(default) is int else default


def planned(folder, vocabulary, name, paths=None, **parameters):
    """Plan a merge of as many members as the method takes, three at most."""
    paths = paths or {model: str(folder / f"{model}.safetensors") for model in ("base", "a", "b", "c")}
    method = merging.find_method(name, vocabulary)

    def given(settings, model, index=None):
        start = "grams_" if method.grams else ""
        files = {name: str(folder / f"{start}{model}.safetensors") for name in method.files if name in settings}
        return {name: value(name, default, index) for name, default in settings.items() if name not in files} | files

    members = [
        {"model": paths[model], "parameters": given(method.of_member, model, index)}
        for index, model in enumerate(["a", "b", "c"][: method.members[1]])
    ]
    recipe = {
        "merge_method": name,
        "vocabulary": vocabulary,
        "models": members,
        "parameters": given(method.of_merge, "base") | parameters,
    }
    recipe |= {"base_model": paths["base"]} if method.base in ("required", "first") else {}
    return merging.plan(merging.parse_recipe(yaml.safe_dump(recipe)), merging.open_model)


def streamed(plan, out):
    """Return the leaves that one process streams with NumPy."""
    merge_to_orbax(plan, out)
    return {name: leaf for name, leaf in load_checkpoint(out).items() if name != "steps"}


def near(merged, expected):
    # devices compute in float32, the host in float64: 1e-6 is 16 roundings of the largest element
    wide = np.asarray(expected, np.float64)
    np.testing.assert_allclose(np.asarray(merged, np.float64), wide, rtol=0, atol=1e-6 * np.abs(wide).max())


def moved_bytes(text):
    """Count the bytes of the results of each instruction of a compiled program that sends something, by its kind."""
    moved = {}
    kinds = "all-reduce|all-gather|all-to-all|collective-permute|collective-broadcast|reduce-scatter|ragged-all-to-all"
    for shapes, kind in re.findall(rf"= (.*?) ({kinds})(?:-start)?\(", text):
        sizes = [
            math.prod(map(int, filter(None, dims.split(",")))) * max(1, int(bits or 8) // 8)
            for bits, dims in re.findall(r"[a-z]+(\d*)\[([\d,]*)\]", shapes)
        ]
        moved.setdefault(kind, []).append(sum(sizes))
    return moved


def adds_floats(text):
    """Say whether a compiled program adds up floats over devices, whose order changes the last bits."""
    reducers = re.findall(r"= [^\n]*f\d+\[[^\n]* all-reduce(?:-start)?\([^\n]*to_apply=%?([\w.-]+)", text)
    bodies = [re.search(rf"^%?{re.escape(name)} \(.*?^\}}", text, re.M | re.S) for name in set(reducers)]
    return any(" add(" in body[0] for body in bodies)


class Programs(dict):
    """Keep compiled programs, and what those that were called do."""

    def __init__(self):
        self.called, self.seen = [], {}

    def __getitem__(self, key):
        self.called.append(key)
        return super().__getitem__(key)

    def looked_at(self):
        """Return (bytes that it moves, whether it adds floats) of each program that was called since the last time."""
        for key in self.called:
            if key not in self.seen:
                text = self.get(key).as_text()
                self.seen[key] = moved_bytes(text), adds_floats(text)
        found, self.called = [self.seen[key] for key in self.called], []
        return found


def test_moved_leaves_would_be_seen():
    sharded = jax.device_put(np.ones(SHAPE, np.float32), leaf_sharding(SHAPE, "element", jax.devices()))
    whole = leaf_sharding((), "element", jax.devices())
    text = jax.jit(lambda leaf: leaf + 1, out_shardings=whole).lower(sharded).compile().as_text()
    assert moved_bytes(text) == {"all-gather": [4 * math.prod(SHAPE)]}


@pytest.mark.parametrize("case", [*METHODS, *OTHER_SCOPES])
def test_eight_devices_give_what_one_gives_and_move_statistics_only(case, folders, programs, tmp_path):
    vocabulary, name = METHODS[case.partition(",")[0]]
    scope = {"scope": OTHER_SCOPES[case]} if case in OTHER_SCOPES else {}
    plan = planned(folders[vocabulary], vocabulary, name, **scope)
    programs.looked_at()
    eight = merged_leaves(plan, programs=programs)
    looked_at = programs.looked_at()
    np.testing.assert_array_equal(eight.pop("steps"), np.arange(3))
    expected = streamed(plan, tmp_path / "out")
    if any(output.recipe and output.recipe.unit == "leaf" for output in plan.outputs):  # on the host
        assert not looked_at
        for leaf, array in eight.items():
            np.testing.assert_array_equal(array, expected[leaf])
        return
    adding = any(adds for _, adds in looked_at)
    one = {} if adding else merged_leaves(plan, devices=jax.devices()[:1], programs=programs)
    for leaf, array in eight.items():
        assert array.sharding.shard_shape(array.shape) == (SHAPE[0] // 8, SHAPE[1])
        near(array, expected[leaf])
        if one:  # the same program, so the same bits
            np.testing.assert_array_equal(array, one[leaf])
    for moved, _ in looked_at:
        # sums, counts and extremes, and whether leaves are finite; one after the other for the bits of a threshold
        assert set(moved) == {"all-reduce"}
        assert max(moved["all-reduce"]) < 4 * math.prod(SHAPE) / 100


def test_leaves_of_odd_shapes_are_divided_as_far_as_they_go(programs, tmp_path):
    shapes = {"matrix": (6, 4), "vector": (7,), "scalar": ()}
    read, plan = [], planned(write(tmp_path, shapes), "mergekit", "ties")
    merged = merged_leaves(plan, programs=programs, progress=read.append)
    assert sum(read) == plan.read_bytes  # shards that several devices hold were read once
    expected = streamed(plan, tmp_path / "out")
    for leaf in shapes:
        near(merged[leaf], expected[leaf])


def test_tensors_that_are_made_are_made_once(tmp_path, programs):
    made, plan = [], planned(write(tmp_path, {"one": SHAPE}), "published", "passthrough")
    (model,) = plan.checkpoints

    def make(name):
        made.append(name)
        return np.full(SHAPE, 2.0, np.float32)

    checkpoint = plan.checkpoints[model]
    view = View(checkpoint, {"one": checkpoint.leaves["one"]}, make, checkpoint.sizes)
    merged = merged_leaves(dataclasses.replace(plan, checkpoints={model: view}), programs=programs)
    np.testing.assert_array_equal(merged["one"], 2.0)
    assert made == ["one"]


@pytest.mark.parametrize(
    ("shape", "unit", "shard"),
    [
        ((64, 32), "element", (8, 32)),
        ((64, 32), "row", (8, 32)),
        ((2, 32), "element", (1, 8)),
        ((2, 32), "row", (1, 32)),
        ((6, 3, 12), "element", (3, 3, 3)),
        ((32,), "row", (32,)),
        ((7,), "element", (7,)),
        ((), "element", ()),
    ],
)
def test_shards(shape, unit, shard):
    assert leaf_sharding(shape, unit, jax.devices()).shard_shape(shape) == shard


def test_any_number_of_devices():
    assert leaf_sharding((12, 5), "element", jax.devices()[:6]).shard_shape((12, 5)) == (2, 5)
    assert leaf_sharding((12, 5), "element", jax.devices()[:5]).shard_shape((12, 5)) == (12, 1)


def test_leaves_with_the_same_program_share_it(folders):
    programs = {}
    merged_leaves(planned(folders["published"], "published", "magmax"), programs=programs)
    assert len(programs) == 1  # of two leaves


def test_pool_to_orbax_with_the_record_of_the_streamed_merge(tmp_path, programs):
    pool = Pool(tmp_path / "pool")
    for seed, name in enumerate(("base", "a", "b", "c")):
        leaves = weights(seed, {"one": SHAPE, "two": (5,)})
        if name == "b":  # stored in shards
            leaves["one"] = jax.device_put(leaves["one"], leaf_sharding(SHAPE, "element", jax.devices()))
        pool.add(name, {"layer": leaves, "steps": np.arange(3)})
    paths = {name: f"{pool.path}:{name}" for name in pool}
    plan = planned(None, "published", "ties", paths)
    (tmp_path / ".sharded.unfinished.orbax-checkpoint-tmp").mkdir()  # as a killed merge leaves it
    merge_sharded(plan, tmp_path / "sharded", programs=programs)
    merge_to_orbax(plan, tmp_path / "streamed")
    sharded, expected = load_checkpoint(tmp_path / "sharded"), load_checkpoint(tmp_path / "streamed")
    assert jax.tree.structure(sharded) == jax.tree.structure(expected)
    assert jax.tree.map(lambda a, b: (a.dtype, a.tobytes()) == (b.dtype, b.tobytes()), sharded, expected)
    records = [json.loads((tmp_path / name / "merge.json").read_text()) for name in ("sharded", "streamed")]
    assert records[0] == records[1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pool", "sharded", "streamed"]
    with pytest.raises(FileExistsError, match="sharded exists"):
        merge_sharded(plan, tmp_path / "sharded")
    with locked(tmp_path / "other"), pytest.raises(BlockingIOError, match=r"another merge is writing to .*other"):
        merge_sharded(plan, tmp_path / "other")


def test_files_have_the_digests_of_the_streamed_merge(folders, tmp_path, programs):
    plan = planned(folders["published"], "published", "linear")
    merge_sharded(plan, tmp_path / "sharded", programs=programs)
    merge_to_orbax(plan, tmp_path / "streamed")
    records = [json.loads((tmp_path / name / "merge.json").read_text()) for name in ("sharded", "streamed")]
    assert records[0] == records[1]


def test_a_corrupt_pool_is_an_error_before_anything_is_written(tmp_path):
    pool = Pool(tmp_path / "pool")
    for seed, name in enumerate(("base", "a", "b", "c")):
        pool.add(name, weights(seed, {"one": SHAPE}))
    chunk = tmp_path / "pool" / pool.record("b")["path"] / "state" / "one" / "0.0"
    chunk.write_bytes(b"\1" + chunk.read_bytes()[1:])
    plan = planned(None, "published", "linear", {name: f"{pool.path}:{name}" for name in pool})
    with pytest.raises(PoolCorruptionError, match=r"'b' is corrupted.*leaf one"):
        merge_sharded(plan, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["pool"]


def broken(folder, **leaves):
    """Write three members of one leaf, and give the plan of their sum."""
    models = []
    for name, leaf in leaves.items():
        write_safetensors(folder / f"{name}.safetensors", {"w": leaf})
        models.append({"model": str(folder / f"{name}.safetensors"), "parameters": {"weight": 1.0}})
    recipe = {"merge_method": "linear", "models": models, "parameters": {"normalize": False}, "out_dtype": "float16"}
    return merging.plan(merging.parse_recipe(yaml.safe_dump(recipe)), merging.open_model)


ONES = np.ones(8, np.float32)


@pytest.mark.parametrize(
    ("leaves", "message"),
    [
        ({"a": ONES, "b": ONES * np.nan}, r"b\.safetensors: w holds NaN or infinity; leave it out"),
        ({"a": ONES * 3e38, "b": ONES * 3e38}, "the merged tensor w overflows, though no member does"),
        ({"a": ONES * 6e4, "b": ONES * 6e4}, "the merged tensor w overflows float16: choose a wider out_dtype"),
        ({"a": np.arange(3), "b": np.ones(3, int)}, r"w does not hold floats and is copied, so it must be the same"),
        ({"a": ONES.astype(np.float64), "b": ONES}, "float64 on devices needs jax_enable_x64"),
        ({"a": ONES[:0], "b": ONES[:0]}, "cannot store tensors without elements: w"),
    ],
)
def test_errors(leaves, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        merge_sharded(broken(tmp_path, **leaves), tmp_path / "out")
    assert not [path for path in tmp_path.iterdir() if path.suffix != ".safetensors"]


def test_negative_fisher_information_is_an_error(tmp_path):
    leaves = {"a": ONES, "b": ONES, "fisher_a": ONES, "fisher_b": -ONES}
    for name, leaf in leaves.items():
        write_safetensors(tmp_path / f"{name}.safetensors", {"w": leaf})
    models = [
        {"model": f"{tmp_path}/{x}.safetensors", "parameters": {"fisher": f"{tmp_path}/fisher_{x}.safetensors"}}
        for x in "ab"
    ]
    recipe = {"merge_method": "fisher", "vocabulary": "published", "models": models}
    plan = merging.plan(merging.parse_recipe(yaml.safe_dump(recipe)), merging.open_model)
    with pytest.raises(ValueError, match=r"fisher_b\.safetensors: w holds .* a negative number, which Fisher") as error:
        merged_leaves(plan)
    assert "fisher_a" not in str(error.value)


def test_bfloat16_members_and_names_with_dots(tmp_path):
    leaves = [weights(seed, {"w": (16,)})["w"].astype(ml_dtypes.bfloat16) for seed in (1, 2)]
    merge_sharded(broken(tmp_path, a=leaves[0], b=leaves[1]), tmp_path / "out")
    expected = (leaves[0].astype(np.float32) + leaves[1].astype(np.float32)).astype(np.float16)
    np.testing.assert_array_equal(load_checkpoint(tmp_path / "out")["w"], expected)
