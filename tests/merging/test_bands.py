"""Test that tensors in chunks are merged band by band: the same numbers and records, in the memory of a few chunks."""

import json

import jax
import numpy as np
import pytest

from soups import merging
from soups.formats import open_checkpoint, write_safetensors
from soups.formats.orbax import save_checkpoint
from soups.merging import bands
from soups.pool import Pool

SHAPES = {"a/kernel": (16, 24), "a/bias": (8,), "b": (40, 4, 3), "c": (7, 5)}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Return a folder of a base and two members: safetensors; Orbax checkpoints and a pool, in eight rows of chunks."""
    root, rng = tmp_path_factory.mktemp("bands"), np.random.default_rng(0)
    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    pool = Pool(root / "pool")
    for name in ("base", "one", "two"):
        flat = {leaf: rng.normal(size=shape).astype(np.float32) for leaf, shape in SHAPES.items()}
        write_safetensors(root / f"{name}.safetensors", flat)
        rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
        split = {leaf: jax.device_put(x, rows) if len(x) % 8 == 0 else x for leaf, x in flat.items()}
        tree = {"a": {"kernel": split["a/kernel"], "bias": split["a/bias"]}, "b": split["b"], "c": split["c"]}
        save_checkpoint(root / name, tree)
        pool.add(name, tree)
    return root


def planned(root, where, method, **parameters):
    """Plan a merge of the models of that place, such as "pool:{}"."""
    base, *models = (f"{root}/{where.format(name)}" for name in ("base", "one", "two"))
    recipe = {"vocabulary": "published", "merge_method": method, "base_model": base, "models": list(map(str, models))}
    return merging.plan(merging.parse_recipe(json.dumps(recipe | {"parameters": parameters})), merging.open_model)


SAME = [("ties", {}), ("ties", {"scope": "model"}), ("dare", {}), ("della", {}), ("magmax", {})]
ROUNDED = [("nuslerp", {"scope": "row"}), ("model_stock", {}), ("tsv_merge", {})]


@pytest.mark.parametrize(("method", "settings"), SAME + ROUNDED, ids=str)
@pytest.mark.parametrize("place", ["{}", "pool:{}"], ids=["orbax", "pool"])
def test_bands_change_nothing(checkpoints, tmp_path, monkeypatch, method, settings, place):
    monkeypatch.setattr(bands, "BAND", 1)
    chunked = planned(checkpoints, place, method, **settings)
    whole = planned(checkpoints, "{}.safetensors", method, **settings)
    pieces = {output.name: len(bands.cut(chunked.checkpoints, output)) for output in chunked.outputs}
    axes = {"element": 1, "row": 2, "leaf": 9}  # that a tensor must have to be cut
    expected = {
        output.name: 8 if output.shape[0] % 8 == 0 and len(output.shape) >= axes[output.recipe.unit] else 1
        for output in chunked.outputs
    }
    assert pieces == expected
    results = []
    for plan, name in ((chunked, "chunked"), (whole, "whole")):
        merging.merge_to_folder(plan, tmp_path / name)
        found = open_checkpoint(tmp_path / name)
        results.append({leaf: np.array(found.read(leaf)) for leaf in found.leaves})
    for leaf, array in results[1].items():
        if (method, settings) in SAME:
            np.testing.assert_array_equal(results[0][leaf], array)
        else:
            np.testing.assert_allclose(results[0][leaf], array, rtol=1e-6, atol=1e-6)
    records = [merging.read_record(tmp_path / name)["inputs"] for name in ("chunked", "whole")]
    digests = [[entry["digest"] for entry in record.values()] for record in records]
    assert digests[0] == digests[1]


def test_memory_is_that_of_bands(checkpoints, monkeypatch):
    made = planned(checkpoints, "{}", "ties")
    (kernel,) = (output for output in made.outputs if output.name == "a/kernel")
    assert bands.making(made.checkpoints, kernel) == 3 * 3 * kernel.nbytes  # three inputs, each with two blocks
    monkeypatch.setattr(bands, "BAND", 1)
    assert bands.making(made.checkpoints, kernel) == 3 * (kernel.nbytes // 8 + 2 * kernel.nbytes)
