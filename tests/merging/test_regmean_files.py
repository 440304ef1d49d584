"""Test RegMean on files: Gram matrices beside the members, kernels as torch and as Flax keep them."""

import numpy as np
import pytest

from soups import merging
from soups.formats import write_safetensors
from soups.pool import save_checkpoint

KERNELS = {"model.layers.0.mlp.up_proj.weight": 6, "model.layers.2.self_attn.q_proj.weight": 6}
WEIGHTS = {"a": 1.0, "b": 3.0, "c": 0.5}


def gram(rng, size):
    inputs = rng.normal(size=(40, size)) @ rng.normal(size=(size, size))
    return (inputs.T @ inputs / 40).astype(np.float32)


def regression(kernels, grams, shares, alpha):
    """Solve the normal equations for kernels [in, out] in float64, as they are printed."""
    left, right = 0, 0
    for kernel, g, share in zip(kernels, grams, shares, strict=True):
        g = g.astype(np.float64)
        g = share * np.where(np.eye(len(g)), g, alpha * g)
        left, right = left + g, right + g @ kernel.astype(np.float64)
    return np.linalg.inv(left) @ right


@pytest.fixture(scope="module")
def grams(tmp_path_factory):
    """Return (path, arrays) of the Gram matrices of the models a, b and c."""
    root, rng = tmp_path_factory.mktemp("grams"), np.random.default_rng(5)
    arrays = {x: {name: gram(rng, size) for name, size in KERNELS.items()} for x in "abc"}
    return {x: (write_safetensors(root / f"{x}.safetensors", arrays[x]), arrays[x]) for x in "abc"}


def test_regresses_kernels_that_have_gram_matrices_and_averages_the_others(small, run, trees, grams):
    files = {x: str(grams[x][0]) for x in "abc"}
    merged = run("regmean", base=None, vocabulary="published", parameters={"alpha": 0.7}, grams=files, weight=WEIGHTS)
    for name in merged:
        leaves = [trees[x][name] for x in "abc"]
        if name in KERNELS:
            measured = [grams[x][1][name] for x in "abc"]
            expected = regression([leaf.T for leaf in leaves], measured, WEIGHTS.values(), 0.7).T
        else:
            expected = np.average(np.asarray(leaves, np.float64), axis=0, weights=list(WEIGHTS.values()))
        small.near(merged[name], expected)
    assert set(merged) == set(trees["a"])


def test_kernels_of_flax_have_their_inputs_first(tmp_path):
    rng = np.random.default_rng(0)
    members = [{"dense": {"kernel": rng.normal(size=(2, 3, 4)).astype(np.float32)}} for _ in range(2)]
    grams = [gram(rng, 6) for _ in range(2)]
    entries = []
    for index, (member, measured) in enumerate(zip(members, grams, strict=True)):
        save_checkpoint(tmp_path / f"member{index}", member)
        save_checkpoint(tmp_path / f"grams{index}", {"dense": {"kernel": measured}})
        own = {"grams": str(tmp_path / f"grams{index}")}
        entries.append({"model": str(tmp_path / f"member{index}"), "parameters": own})
    recipe = {
        "vocabulary": "published",
        "merge_method": "regmean",
        "models": entries,
        "parameters": {"inputs": "first"},
    }
    plan = merging.plan(merging.parse_recipe(repr(recipe)), merging.open_model)
    merging.merge_to_folder(plan, tmp_path / "out")
    merged = merging.open_model(str(tmp_path / "out")).read("dense/kernel")
    expected = regression([m["dense"]["kernel"].reshape(6, 4) for m in members], grams, [1, 1], 0.9)
    np.testing.assert_allclose(merged.reshape(6, 4), expected, atol=1e-6 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model.layers.0.mlp.up_proj.wieght": np.eye(6)}, r"\+ .*bad.safetensors: .*up_proj.wieght is extra"),
        (
            {"model.layers.0.mlp.up_proj.weight": None},
            r"- .*bad.safetensors: .*up_proj.weight is missing, others have it",
        ),
        ({"model.layers.0.mlp.up_proj.weight": np.eye(8)}, r"has shape \[8, 8\].* its inputs last .* in = 6"),
        ({"model.norm.weight": np.eye(6)}, r"model.norm.weight of shape \[6\] is not a kernel"),
        ({"model.layers.0.mlp.up_proj.weight": np.full((6, 6), np.nan)}, "bad.safetensors: .* holds NaN"),
    ],
)
def test_gram_matrices_that_do_not_fit_are_named(run, grams, tmp_path, change, message):
    arrays = {name: np.asarray(g, np.float32) for name, g in (grams["b"][1] | change).items() if g is not None}
    files = {"a": str(grams["a"][0]), "b": str(write_safetensors(tmp_path / "bad.safetensors", arrays))}
    with pytest.raises(ValueError, match=message):
        run("regmean", "ab", base=None, vocabulary="published", grams=files)


def test_settings_that_cannot_be_are_errors(run, grams):
    files = {x: str(grams[x][0]) for x in "ab"}

    def refused(message, **options):
        with pytest.raises(ValueError, match=message):
            run("regmean", "ab", base=None, vocabulary="published", grams=files, **options)

    refused(r"alpha must be in \[0, 1\], not 1.5", parameters={"alpha": 1.5})
    refused("place of the inputs 'lats'", parameters={"inputs": "lats"})
    refused("weights must be finite, not negative", weight={"a": 0, "b": 0})
