"""Test plans: gradients over layers, slices, ties, dtypes, and every difference of headers in one message."""

import dataclasses
import re

import ml_dtypes
import numpy as np
import pytest
import yaml

from soups import merging
from soups.engine import BLOCK
from soups.formats import write_safetensors
from soups.merging import planning
from soups.merging.planning import Plan
from soups.recipes import _select

bfloat16 = np.dtype(ml_dtypes.bfloat16)


@pytest.fixture
def two(tmp_path, small):
    """Return a function that writes base and member from changes to the same tensors, and a recipe to add them."""

    def make(**changes):
        for name in ("base", "a"):
            leaves = small.tensors(name == "a") | changes.get(name, {})
            small.write_model(tmp_path / name, {n: leaf for n, leaf in leaves.items() if leaf is not None})
        return {
            "merge_method": "task_arithmetic",
            "base_model": tmp_path / "base",
            "models": [{"model": tmp_path / "a", "parameters": {"weight": 1}}],
        }

    return make


def weights(*values):
    return np.array(values, np.float32)


# --- Values by place ---


def linear(models, weight, **more):
    """Return the sum of weight · a, so that each tensor shows its weight."""
    member = {"model": models["a"], "parameters": {"weight": weight}}
    return {"merge_method": "linear", "models": [member], "parameters": {"normalize": False}} | more


def factors(merged, tensors):
    return {name: float(np.median(merged[name] / tensors[name])) for name in tensors if name != "model.position_ids"}


def test_a_gradient_goes_over_the_layers_and_other_tensors_stand_at_its_begin(models, small, tmp_path):
    found = factors(small.merge(linear(models, [1, 3, 4]), tmp_path / "out"), small.tensors(1))
    by_layer = {"layers.0.": 1, "layers.1.": 3, "layers.2.": 4}
    for name, factor in found.items():
        expected = next((value for layer, value in by_layer.items() if layer in name), 1)
        assert factor == pytest.approx(expected, rel=1e-6), name


def test_filters_choose_by_name(models, small, tmp_path):
    rules = [{"filter": "mlp", "value": [2, 4]}, {"filter": "lm_head", "value": 5}, {"value": 7}]
    found = factors(small.merge(linear(models, rules), tmp_path / "out"), small.tensors(1))
    assert found["model.layers.1.mlp.up_proj.weight"] == pytest.approx(3, rel=1e-6)
    assert found["lm_head.weight"] == pytest.approx(5, rel=1e-6)
    assert found["model.layers.2.self_attn.q_proj.weight"] == pytest.approx(7, rel=1e-6)


def test_a_filter_that_leaves_a_required_value_out_is_an_error_before_any_output(models, small, tmp_path):
    recipe = linear(models, [{"filter": "mlp", "value": 1}])
    with pytest.raises(ValueError, match=r"no value of 'weight' of .*a applies to tensor"):
        small.merge(recipe, tmp_path / "out")
    assert not list(tmp_path.iterdir())


# --- Slices ---


def test_passthrough_stacks_layers(models, small, tmp_path):
    recipe = {
        "merge_method": "passthrough",
        "slices": [
            {"sources": [{"model": models["a"], "layer_range": [0, 2]}]},
            {"sources": [{"model": models["b"], "layer_range": [1, 3], "parameters": {"scale": 0.5}}]},
        ],
    }
    merged = small.merge(recipe, tmp_path / "out", files=True)
    a, b = small.tensors(1), small.tensors(2)
    assert set(merged) == {*small.shapes(layers=4), "model.position_ids"}
    for name, array in merged.items():
        expected = a.get(name)
        for to, layer in ((2, 1), (3, 2)):
            if f"layers.{to}." in name:
                expected = np.float32(0.5) * b[name.replace(f"layers.{to}.", f"layers.{layer}.")]
        if name in ("model.norm.weight", "lm_head.weight"):
            expected = b[name]  # of the last slice
        # a source's own scale holds for what follows its layers too
        if name in ("model.norm.weight", "lm_head.weight"):
            expected = np.float32(0.5) * expected
        np.testing.assert_array_equal(array, expected, err_msg=name)


def test_a_slice_merges_other_layers_with_gradients_of_its_own(models, small, tmp_path):
    sources = [{"model": models[x], "layer_range": span} for x, span in (("a", [1, 3]), ("b", [0, 2]))]
    rules = [{"filter": "layers.0.mlp", "value": 0.25}, {"value": [0, 1]}]
    recipe = {
        "merge_method": "slerp",
        "base_model": models["a"],
        "slices": [{"sources": sources, "parameters": {"t": rules}}],
    }
    merged = small.merge(recipe, tmp_path / "out")
    a, b = small.tensors(1), small.tensors(2)
    name = "model.layers.{}.mlp.up_proj.weight"
    np.testing.assert_array_equal(merged[name.format(1)], b[name.format(1)])  # t = 1 at the last layer
    attention = "model.layers.{}.self_attn.q_proj.weight"
    np.testing.assert_array_equal(merged[attention.format(0)], a[attention.format(1)])  # t = 0 at the first
    np.testing.assert_array_equal(merged["lm_head.weight"], a["lm_head.weight"])
    # a filter of the merge looks for the name of the output
    start, end = a[name.format(1)].astype(np.float64), b[name.format(0)].astype(np.float64)
    cosine = np.sum(start * end) / np.linalg.norm(start) / np.linalg.norm(end)
    omega = np.arccos(cosine)
    expected = (np.sin(0.75 * omega) * start + np.sin(0.25 * omega) * end) / np.sin(omega)
    np.testing.assert_allclose(merged[name.format(0)], expected, rtol=0, atol=1e-6 * np.abs(expected).max())


def test_a_filter_of_a_member_looks_for_its_own_name_of_a_tensor(models, small, tmp_path):
    rules = [{"filter": "layers.2.", "value": 3}, {"value": 1}]
    source = {"model": models["a"], "layer_range": [2, 3], "parameters": {"weight": rules}}
    recipe = {"merge_method": "linear", "slices": [{"sources": [source]}], "parameters": {"normalize": False}}
    merged = small.merge(recipe, tmp_path / "out")
    name = "model.layers.{}.mlp.up_proj.weight"
    np.testing.assert_array_equal(merged[name.format(0)], np.float32(3) * small.tensors(1)[name.format(2)])


def test_layers_that_do_not_exist_are_named(models, small):
    sources = [{"model": models["a"], "layer_range": [1, 4], "parameters": {"weight": 1}}]
    with pytest.raises(ValueError, match=r"~ .*a has 3 layers, not 4"):
        small.plan({"merge_method": "linear", "slices": [{"sources": sources}]})


def test_a_method_over_the_whole_model_takes_the_same_settings_everywhere(models, small):
    recipe = {
        "vocabulary": "published",
        "merge_method": "ties",
        "base_model": models["base"],
        "models": [models["a"], models["b"]],
        "parameters": {"density": [0.1, 0.5]},
    }
    with pytest.raises(ValueError, match="ties looks at the whole model, so density cannot differ between tensors"):
        small.plan(recipe)
    small.plan(recipe | {"parameters": {"density": [0.1, 0.5], "scope": "leaf"}})
    slices = [{"sources": [{"model": models["a"], "layer_range": span}]} for span in ([0, 1], [1, 3])]
    del recipe["models"]
    with pytest.raises(ValueError, match="ties looks at the whole model, so it cannot merge slices: give scope: leaf"):
        small.plan(recipe | {"slices": slices, "parameters": {}})


def test_no_scope_is_advised_to_a_method_that_has_none(models, small):
    recipe = {"vocabulary": "published", "merge_method": "della", "base_model": models["base"]}
    recipe |= {"models": [models["a"], models["b"]], "parameters": {"density": [0.4, 0.5]}}
    with pytest.raises(ValueError, match=r"della looks at the whole model, so density .* give one number$"):
        small.plan(recipe)


# --- Differences ---


def test_all_differences_are_in_one_message_before_any_output(two, small, tmp_path):
    recipe = two(
        a={
            "model.norm.weight": None,
            "model.norm.wieght": np.zeros(6, np.float32),
            "model.layers.0.mlp.up_proj.weight": np.zeros((6, 8), np.float32),
            "model.layers.1.norm.bias": np.zeros(6, np.int32),
            "lm_head.weight": np.zeros((12, 6), np.float32),
        }
    )
    # where one member lacks a tensor the others are still compared
    b = small.write_model(tmp_path / "b", small.tensors(0) | {"model.norm.weight": np.zeros(7, np.float32)})
    recipe["models"].append({"model": b, "parameters": {"weight": 1}})
    with pytest.raises(ValueError, match="these models cannot be merged") as error:
        small.merge(recipe, tmp_path / "out")
    a = str(tmp_path / "a")
    assert set(str(error.value).splitlines()[1:]) == {
        f"  - {a}: model.norm.weight is missing (did you mean 'model.norm.wieght'?)",
        f"  + {a}: model.norm.wieght is extra (did you mean 'model.norm.weight'?)",
        f"  ~ {a}: model.layers.0.mlp.up_proj.weight has shape [6, 8] instead of [8, 6]",
        f"  ~ {a}: model.layers.1.norm.bias has dtype int32 instead of float32",
        f"  ~ {a}: lm_head.weight has shape [12, 6] instead of [10, 6]"
        "; tokenizer_source: base, union or a model would give all one vocabulary",
        f"  ~ {b}: model.norm.weight has shape [7] instead of [6]",
    }
    assert {path.name for path in tmp_path.iterdir()} == {"base", "a", "b"}


def test_names_that_begin_otherwise_say_which_trees_have_the_same(tmp_path, small):
    weights = {name: np.ones(2, np.float32) for name in ("a/w", "b/w", "head/w")}
    for name, start in {"whole": "params/", "bare": "", "older": "opt/target/"}.items():
        np.savez(tmp_path / f"{name}.npz", **{f"{start}{leaf}": array for leaf, array in weights.items()})

    def recipe(*names):
        models = [{"model": str(tmp_path / name)} for name in names]
        return {"merge_method": "linear", "models": models, "parameters": {"weight": 1}}

    whole, bare, older = (tmp_path / f"{name}.npz" for name in ("whole", "bare", "older"))
    for names, line, trees in (
        (("whole.npz", "bare.npz"), f"~ {bare}: 3 names do not begin with 'params/'", f"{whole}@params"),
        (("bare.npz", "whole.npz"), f"~ {whole}: 3 names begin with 'params/', such", f"{whole}@params"),
        (
            ("whole.npz", "older.npz"),
            f"~ {older}: 3 names begin with 'opt/target/' instead of 'params/'",
            f"{whole}@params, {older}@opt/target",
        ),
    ):
        with pytest.raises(ValueError, match=re.escape(line)) as error:
            small.plan(recipe(*names))
        assert str(error.value).splitlines()[2:] == [f"    MODEL@NAME takes the names below one of these: {trees}"]
    text = yaml.safe_dump(recipe("whole.npz@params", "older.npz@opt/target"))
    made = merging.plan(merging.parse_recipe(text), merging.open_model)
    assert [output.name for output in made.outputs] == list(weights)


def test_a_name_that_both_have_is_not_meant(two, small):
    with pytest.raises(ValueError, match="cannot be merged") as error:
        small.plan(two(a={"model.layers.1.mlp.up_proj.weight": None}))
    assert "is missing" in str(error.value) and "did you mean" not in str(error.value)


def test_a_long_list_of_differences_is_cut(two, small):
    recipe = two(a={f"extra.{number}": np.zeros(1, np.float32) for number in range(60)})
    with pytest.raises(ValueError, match="and 40 more"):
        small.plan(recipe)


# --- dtypes ---


NARROW = ("linear", "task_arithmetic", "ties", "dare_ties", "della", "breadcrumbs", "sce", "model_stock", "karcher")


@pytest.mark.parametrize("field", ["dtype", "out_dtype"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("method", NARROW)
def test_a_narrow_dtype_is_that_of_the_output_alone(two, small, tmp_path, method, dtype, field):
    narrow = np.dtype(bfloat16 if dtype == "bfloat16" else dtype)
    two(base=small.tensors(0, narrow), a=small.tensors(1, narrow))
    small.write_model(tmp_path / "b", small.tensors(2, narrow))
    recipe = {"merge_method": method, "models": [{"model": tmp_path / x, "parameters": {"weight": 0.3}} for x in "ab"]}
    recipe |= {"base_model": tmp_path / "base"} if method not in ("linear", "karcher") else {}
    wide = small.merge(recipe | {"out_dtype": "float32"}, tmp_path / "wide")
    merged = small.merge(recipe | {field: dtype}, tmp_path / "narrow")
    for name, leaf in merged.items():
        if wide[name].dtype == np.float32:
            assert leaf.dtype == narrow
            np.testing.assert_array_equal(leaf, wide[name].astype(narrow), err_msg=name)


def test_arithmetic_is_in_float32_and_rounded_once(two, small, tmp_path):
    values = {"base": [256.0, 1.0], "a": [1.0, 1.0078125]}
    recipe = two(**{name: {"model.norm.bias": np.array(value, bfloat16)} for name, value in values.items()})
    recipe["models"][0]["parameters"] = {"weight": 0.3}
    merged = small.merge(recipe, tmp_path / "out")
    base, member = (np.array(values[name], np.float32) for name in ("base", "a"))
    expected = (base + np.float32(0.3) * (member - base)).astype(bfloat16)
    assert merged["model.norm.bias"].dtype == bfloat16
    np.testing.assert_array_equal(merged["model.norm.bias"], expected)


@pytest.mark.parametrize(
    ("fields", "dtype"),
    [
        *[({}, np.float32), ({"dtype": "bfloat16"}, bfloat16), ({"out_dtype": "float16"}, np.float16)],
        *[({"dtype": "float64"}, np.float64), ({"dtype": "float64", "out_dtype": "float32"}, np.float32)],
    ],
)
def test_the_output_has_the_dtype_asked_for(two, small, tmp_path, fields, dtype):
    recipe = two(**{x: {"empty": np.zeros((0, 3), np.float32)} for x in ("base", "a")}) | fields
    recipe["models"][0]["parameters"] = {"weight": 0.3}
    merged = small.merge(recipe, tmp_path / "out")
    base, member = small.tensors(0), small.tensors(1)
    wide = np.float64 if fields.get("dtype") == "float64" else np.float32
    for name in small.shapes():
        start, end = base[name].astype(wide), member[name].astype(wide)
        np.testing.assert_array_equal(merged[name], (start + wide(0.3) * (end - start)).astype(dtype))
        assert merged[name].dtype == dtype
    assert merged["model.position_ids"].dtype == np.int64
    assert merged["empty"].dtype == dtype and merged["empty"].shape == (0, 3)


# --- Other files ---


def test_torch_files_and_sharded_folders_mix(small, models, tmp_path, write_torch):
    recipe = {"merge_method": "passthrough", "models": [models["a"]]}
    small.merge(recipe, tmp_path / "sharded", shard_bytes=300)
    assert len(list((tmp_path / "sharded").glob("model-*.safetensors"))) > 3
    write_torch(tmp_path / "b.pt", small.tensors(2))
    (tmp_path / "folder").mkdir()
    write_torch(tmp_path / "folder" / "pytorch_model.bin", small.tensors(3))
    write_safetensors(tmp_path / "base.safetensors", small.tensors(0))

    def ties(base, *members):
        parameters = {"weight": 1, "density": 0.5}
        return {"merge_method": "ties", "base_model": base, "models": list(members), "parameters": parameters}

    mixed = ties(*(tmp_path / name for name in ("base.safetensors", "sharded", "b.pt", "folder")))
    merged = small.merge(mixed, tmp_path / "mixed")
    expected = small.merge(ties(*models.values()), tmp_path / "expected")
    for name, array in expected.items():
        np.testing.assert_array_equal(merged[name], array)


# --- What is copied, left out or kept ---


@pytest.mark.parametrize("name", ["bn.num_batches_tracked", "step", "a/global_step", "ema.num_updates"])
def test_counters_are_those_of_the_first_member_and_that_is_said(linear_of, small, tmp_path, name):
    recipe = linear_of(*({"w": weights(1), name: np.asarray(number)} for number in (7, 9)))
    assert small.plan(recipe).notes == (f"counters, which are the first member's: {name!r}",)
    assert small.merge(recipe, tmp_path / "out")[name] == 7


def test_the_base_is_no_member(linear_of, small, tmp_path):
    recipe = linear_of(*({"w": weights(1), "step": np.asarray(number)} for number in (7, 9, 8)))
    base, *members = recipe["models"]
    recipe |= {"merge_method": "task_arithmetic", "base_model": base["model"], "models": members}
    assert small.merge(recipe, tmp_path / "out")["step"] == 9


def test_integers_that_differ_are_all_named_by_the_plan_and_may_be_kept(linear_of, small, tmp_path):
    models = [{"w": weights(i), "codes": np.array([i]), "more.codes": np.array([0, i])} for i in (3, 5)]
    recipe = linear_of(*models)
    with pytest.raises(ValueError, match="cannot be merged") as error:
        small.plan(recipe)
    for name in ("codes", "more.codes"):
        assert f"tensor {name} does not hold floats and is copied" in str(error.value)
    assert "keep_first takes it from the first member" in str(error.value)
    recipe["keep_first"] = ".*codes|w"
    merged = small.merge(recipe, tmp_path / "out")
    assert all(np.array_equal(merged[name], models[0][name]) for name in models[0])
    assert small.plan(recipe).notes == (
        "taken from the first member by keep_first '.*codes|w': 'codes', 'more.codes', 'w'",
    )


def test_what_is_kept_may_have_other_shapes_in_others(linear_of, small, tmp_path):
    recipe = linear_of({"w": weights(1), "head": weights(1, 2)}, {"w": weights(3), "head": weights(1, 2, 3)})
    merged = small.merge(recipe | {"keep_first": "head"}, tmp_path / "out")
    assert merged["w"] == 2 and list(merged["head"]) == [1, 2]


def test_only_some_tensors_are_merged_and_the_others_are_named(linear_of, small, tmp_path):
    models = [{"model.w": weights(i), "opt.m": weights(i), f"opt.{i}": weights(i)} for i in (1, 3)]
    recipe = linear_of(*models, only_tensors=r"model\..*")
    assert small.plan(recipe).notes == ("left out by only_tensors 'model\\\\..*': 'opt.3', 'opt.m', 'opt.1'",)
    assert small.merge(recipe, tmp_path / "out") == {"model.w": weights(2)}


@pytest.mark.parametrize("field", ["keep_first", "only_tensors"])
def test_a_regex_must_be_one_and_match(linear_of, small, field):
    recipe = linear_of({"w": weights(1)}, {"w": weights(2)})
    with pytest.raises(ValueError, match=f"{field}: 'v' does not match the whole name of any tensor; one is"):
        small.plan(recipe | {field: "v"})
    for wrong in ("(", 3, ["w"]):
        with pytest.raises(ValueError, match=f"{field} must be a regular expression"):
            small.plan(recipe | {field: wrong})


# --- Complex numbers ---


@pytest.mark.parametrize(
    ("asked", "dtype"),
    [(None, np.complex64), ("bfloat16", np.complex64), ("float16", np.complex64), ("float64", np.complex128)],
)
@pytest.mark.parametrize("field", ["dtype", "out_dtype"])
def test_complex_tensors_stay_complex_whatever_dtype_is_asked_for(linear_of, small, asked, dtype, field):
    recipe = linear_of(*({"w": np.array([i + 2j, 1], np.complex64), "x": weights(i)} for i in (1, 3)))
    made = {output.name: output.dtype for output in small.plan(recipe | ({field: asked} if asked else {})).outputs}
    assert made["w"] == dtype and made["x"] == (bfloat16 if asked == "bfloat16" else np.dtype(asked or "float32"))


def test_complex_numbers_are_averaged_with_their_imaginary_part(linear_of, small, tmp_path):
    recipe = linear_of(*({"w": np.array([i + 2j, 1 - i * 1j], np.complex64)} for i in (1, 3)), out_dtype="float32")
    np.testing.assert_array_equal(small.merge(recipe, tmp_path / "out")["w"], np.array([2 + 2j, 1 - 2j], np.complex64))


def test_complex_and_real_are_two_kinds(linear_of, small):
    recipe = linear_of({"w": weights(1)}, {"w": np.array([1j], np.complex64)})
    with pytest.raises(ValueError, match="w has dtype complex64 instead of float32"):
        small.plan(recipe)


@pytest.mark.parametrize(
    "method", ["ties", "della", "breadcrumbs", "sce", "nearswap", "arcee_fusion", "ram", "dare_ties", "karcher"]
)
def test_methods_that_order_or_compare_refuse_complex_tensors_by_name(linear_of, small, method):
    recipe = linear_of(*({"w": np.array([i + 2j], np.complex64)} for i in (1, 2, 3)))
    base, *members = recipe["models"]
    members = members[: 1 if method in ("nearswap", "arcee_fusion") else 2]
    recipe |= {"merge_method": method, "base_model": base["model"], "models": members}
    recipe["parameters"] = {"t": 0.5} if method == "nearswap" else {}
    with pytest.raises(ValueError, match=f"w is complex, but {method} needs to order or compare elements"):
        small.plan(recipe)


# --- What it will need ---


def test_memory_grows_with_blocks_and_what_is_ranked(models, small):
    recipe = {
        "merge_method": "ties",
        "base_model": models["base"],
        "models": [models["a"], models["b"]],
        "parameters": {"weight": 1, "density": 0.5},
    }
    made = small.plan(recipe)
    block = 4 * BLOCK * (3 * 3 + 4)

    def memory(threads, size, plan=made):
        outputs = [dataclasses.replace(output, shape=(size,)) for output in plan.outputs]
        changed = Plan(plan.job, tuple(outputs), plan.checkpoints, plan.aliases)
        return changed.memory(threads) - changed.program(threads)

    assert memory(1, 1000) == block + 8000 and memory(3, 1000) == 3 * (block + 8000)
    assert memory(2, 10**10) == 2 * (block + 4 * _select.GATHERED)
    linear = small.plan({**recipe, "merge_method": "linear", "parameters": {"weight": 1}})  # the base is a member too
    assert memory(2, 10**10, linear) == 2 * 4 * BLOCK * (3 * 4 + 4)
    published = small.plan({**recipe, "vocabulary": "published", "parameters": {}})
    ranked = sum(output.recipe is not None for output in made.outputs)
    assert memory(1, 10**6, published) == 4 * 10**6 * ranked
    whole = small.plan({**recipe, "vocabulary": "published", "merge_method": "iso_c", "parameters": {}})
    assert memory(1, 10**6, whole) == 4 * 10**6 * (3 * 3 + 4) + 8 * 10**6


def test_weights_that_cancel_in_one_layer_are_named_with_its_tensor(models, small):
    a, b = models["a"], models["b"]
    entries = [{"model": a, "parameters": {"weight": 1}}, {"model": b, "parameters": {"weight": [1, -1, 1]}}]
    with pytest.raises(ValueError, match=r"linear of model.layers.1.self_attn.q_proj.weight: .*sum"):
        small.plan({"merge_method": "linear", "models": entries})


def test_the_program_needs_what_it_imports_and_forks(models, small, monkeypatch):
    members = [{"model": models[name], "parameters": {"weight": 1}} for name in "ab"]
    made = small.plan({"merge_method": "linear", "models": members})
    headers = planning.HEADER * sum(len(checkpoint.leaves) for checkpoint in made.checkpoints.values())
    saved = planning.PROCESS + planning.LIBRARIES + headers
    assert made.program(2) == made.program(2, orbax=True) == saved  # the tests import JAX
    assert made.memory(2, orbax=True) == made.memory(2) + made.write_bytes
    monkeypatch.setattr(planning, "may_fork", lambda: True)
    assert made.program(2) == planning.PROCESS + headers and made.program(2, orbax=True) == saved
    monkeypatch.setattr(planning, "FORKED", made.read_bytes)
    assert made.program(2) == 3 * planning.PROCESS + headers
    assert made.program(99) == (1 + len(made.outputs)) * planning.PROCESS + headers
