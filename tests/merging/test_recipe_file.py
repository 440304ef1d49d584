"""Test recipe files: mergekit's YAML as it is, and every mistake in it."""

import textwrap

import numpy as np
import pytest
from ml_dtypes import bfloat16

from soups.merging import parse_recipe, read_recipe
from soups.merging.recipe_file import load_yaml, settings_at
from soups.merging.values import Place


def parsed(text, **options):
    return parse_recipe(textwrap.dedent(text), **options)


TIES = """
    merge_method: ties
    base_model: base
    models:
      - model: base
      - model: a
        parameters:
          density: [1, 0.7, 0.1]
          weight: 1.0
      - model: b
        parameters:
          density: 0.5
          weight: [0, 0.3, 0.7, 1]
      - model: c
        parameters:
          weight:
            - filter: mlp
              value: 0.5
            - value: 0
    parameters:
      normalize: true
      int8_mask: 1.0
      density: 0.33
    dtype: float16
    out_dtype: bfloat16
"""


def test_reads_a_recipe_as_mergekit_writes_it(tmp_path):
    job = parsed(TIES)
    assert (job.method, job.vocabulary, job.base, job.models) == ("ties", "mergekit", "base", ["base", "a", "b", "c"])
    assert (job.dtype, job.out_dtype) == (np.float16, bfloat16)
    assert job.text == textwrap.dedent(TIES)
    (part,) = job.slices
    _, a, b, c = part.sources
    place = Place("model.layers.1.mlp.up", 0.5)
    assert settings_at(job, part, a, place) == {"weight": 1.0, "density": 0.7}
    assert settings_at(job, part, b, place) == {"weight": 0.5, "density": 0.5}
    assert settings_at(job, part, c, place) == {"weight": 0.5, "density": 0.33}
    assert settings_at(job, part, c, Place("model.norm"))["weight"] == 0
    merge = settings_at(job, part, None, place)
    assert merge == {"normalize": True, "rescale": False, "lambda": 1.0, "seed": 0, "int8_mask": 1.0}
    (tmp_path / "recipe.yml").write_text(job.text)
    assert read_recipe(tmp_path / "recipe.yml") == job


SLICES = """
    merge_method: {method}
    base_model: a
    slices:
      - sources:
          - model: a
            layer_range: [0, 2]
          - model: b
            layer_range: [1, 3]
            parameters: {{weight: 1}}
        parameters: {{density: 0.5, lambda: 2.0}}
      - sources:
          - {{model: a, layer_range: [2, 3]}}
          - {{model: b, layer_range: [0, 1]}}
    parameters: {{weight: 7, density: 0.25, seed: 5}}
"""


def test_a_source_goes_before_its_slice_and_that_before_the_merge():
    job = parsed(SLICES.format(method="dare_ties"), seed=3)
    first, second = job.slices
    assert [source.layers for part in job.slices for source in part.sources] == [(0, 2), (1, 3), (2, 3), (0, 1)]
    assert settings_at(job, first, first.sources[1], Place("x")) == {"weight": 1, "density": 0.5}
    assert settings_at(job, second, second.sources[1], Place("x")) == {"weight": 7, "density": 0.25}
    assert settings_at(job, first, None, Place("x"))["lambda"] == 2.0
    assert settings_at(job, second, None, Place("x"))["lambda"] == 1.0
    assert settings_at(job, second, None, Place("x"))["seed"] == 5
    of_slice = parsed(
        SLICES.format(method="dare_ties").replace("lambda: 2.0", "seed: 9").replace(", seed: 5", ""), seed=3
    )
    assert [settings_at(of_slice, part, None, Place("x"))["seed"] for part in of_slice.slices] == [9, 3]


def test_published_methods_have_defaults_of_their_papers():
    job = parsed("{vocabulary: published, merge_method: ties, base_model: b, models: [a, {model: c}]}")
    (part,) = job.slices
    assert settings_at(job, part, part.sources[0], Place("x")) == {"weight": 1.0, "density": 0.2}
    assert settings_at(job, part, None, Place("x")) == {"scale": 1.0, "normalize": True, "scope": "model"}


def test_models_may_be_nested_as_mergekit_prints_them():
    job = parsed("{merge_method: passthrough, models: [{model: {model: {path: a, revision: null}}}]}")
    assert job.models == ["a"]


def test_numbers_with_an_exponent_are_numbers():
    assert load_yaml("{a: 1e-5, b: -2E+3, c: 1.5e2, d: 1e5x, e: 0x1e}") == {
        **{"a": 1e-5, "b": -2000.0, "c": 150.0, "d": "1e5x", "e": 30}
    }


def two(**fields):
    fields = {"merge_method": "linear", "models": "[{model: a, parameters: {weight: 1}}]"} | fields
    return "\n".join(f"{name}: {value}" for name, value in fields.items() if value is not None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "the recipe is not YAML"),
        ("merge_method: ties\nmerge_method: linear", "the recipe is not YAML: 'merge_method' stands there twice"),
        ("- a", "the recipe must be a mapping with merge_method"),
        (two(merge_metod="ties"), r"unknown field of the recipe 'merge_metod' \(did you mean 'merge_method'\?\)"),
        (two(modules="{}"), "'modules' is not supported"),
        (two(merge_method=None), "the recipe has no merge_method"),
        (two(merge_method="dare-ties"), r"unknown merge_method 'dare-ties' \(did you mean 'dare_ties'\?\)"),
        (two(vocabulary="mergkit"), r"unknown vocabulary of the recipe 'mergkit' \(did you mean 'mergekit'\?\)"),
        (two(slices="[]"), "either models or slices"),
        (two(models=None), "either models or slices"),
        (two(models="[]"), "models must be a list with at least one entry"),
        (two(models="a"), "models must be a list with at least one entry"),
        (two(models="[{modl: a}]"), "every entry has a model, not"),
        (two(models="[{model: a, parameter: {}}]"), r"'parameter' \(did you mean 'parameters'\?\)"),
        (two(models="[{model: a, layer_range: [0, 1]}]"), "unknown field of an entry of .* 'layer_range'"),
        (two(models="[{model: 3}]"), "a model is a path, or path[+]lora, not 3"),
        (two(base_model="3"), "base_model: a model is a path, or path[+]lora, not 3"),
        (two(dtype="bf16"), r"unknown dtype of the recipe 'bf16' \(did you mean"),
        (two(out_dtype="int8"), "unknown out_dtype of the recipe 'int8'"),
        (two(chat_template="chatml"), "chat_template is not supported"),
        (two(tokenizer_source="unoin"), r"unknown tokenizer_source of the recipe 'unoin' \(did you mean 'union'\?\)"),
        (two(models="[a]"), "linear needs a value of 'weight' for a"),
        (two(models="[{model: a, parameters: 3}]"), "parameters of a must be a mapping, not 3"),
        (two(models="[{model: a, parameters: {wieght: 1}}]"), r"no parameter 'wieght' \(did you mean 'weight'\?\)"),
        (two(parameters="{density: 1}"), "parameters: linear has no parameter 'density'; it has: normalize, weight"),
        (two(models="[{model: a, parameters: {weight: x}}]"), "parameters of a.weight must be a number, not 'x'"),
        (
            two(models="[{model: a, parameters: {weight: 1, normalize: true}}]"),
            "parameters of a: 'normalize' holds for all models",
        ),
        (two(merge_method="slerp", models="[a, b]", base_model="a"), "slerp needs a value of t"),
        (two(merge_method="ties"), "ties needs a base_model"),
        (two(merge_method="slerp", models="[a, b]"), "slerp needs a base_model"),
        (
            two(merge_method="slerp", models="[a, b]", base_model="c"),
            r"slerp needs 1 member\(s\) beside the base, .* 2",
        ),
        (two(merge_method="ties", models="[a]", base_model="a"), r"ties needs at least 1 member\(s\) beside the base"),
        (two(merge_method="karcher", models="[a]"), "karcher needs at least 2 member"),
        (two(merge_method="passthrough", models="[a, b]"), "passthrough needs 1 member"),
        (two(models=None, slices="[a]"), "every slice has sources, not 'a'"),
        (two(models=None, slices="[{sources: [], par: 1}]"), r"unknown field of a slice 'par'"),
        (two(models=None, slices="[{sources: []}]"), "sources must be a list with at least one entry"),
        (two(models=None, slices="[{sources: [{model: a}]}]"), r"layer_range of a must be \[first, end\], not None"),
        (two(models=None, slices="[{sources: [{model: a, layer_range: [2, 1]}]}]"), r"must be \[first, end\]"),
        (
            two(
                models=None,
                slices="[{sources: [{model: a, layer_range: [0, 2]}, {model: b, layer_range: [0, 1]}]}]",
            ),
            r"must have equally many layers, not a \[0, 2\], b \[0, 1\]",
        ),
    ],
)
def test_mistakes_are_named(text, message):
    with pytest.raises(ValueError, match=message):
        parse_recipe(text)


def test_a_mistake_names_the_file(tmp_path):
    path = tmp_path / "r.yml"
    path.write_text("merge_method: linear")
    with pytest.raises(ValueError, match=r"r.yml must have either models or slices"):
        read_recipe(path)
    with pytest.raises(FileNotFoundError, match=r"x.yml"):
        read_recipe(tmp_path / "x.yml")


def test_filters_that_leave_a_tensor_without_a_required_value_are_named():
    job = parse_recipe(two(models="[{model: a, parameters: {weight: [{filter: mlp, value: 1}]}}]"))
    (part,) = job.slices
    assert settings_at(job, part, part.sources[0], Place("x.mlp"))["weight"] == 1
    with pytest.raises(ValueError, match=r"linear: no value of 'weight' of a holds for tensor x\.norm"):
        settings_at(job, part, part.sources[0], Place("x.norm"))
