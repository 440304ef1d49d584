"""Test recipe files: mergekit's YAML as it is, and every mistake in it."""

import textwrap

import numpy as np
import pytest
from ml_dtypes import bfloat16

from soups.merging import parse_recipe, read_recipe
from soups.merging.job import odd_filters, settings_at
from soups.merging.methods import methods_of
from soups.merging.recipe_file import KEYS, _fields, _Ignored, _parameters
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


def two(**fields):
    fields = {"merge_method": "linear", "models": "[{model: a, parameters: {weight: 1}}]"} | fields
    return "\n".join(f"{name}: {value}" for name, value in fields.items() if value is not None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "the recipe is not YAML"),
        ("merge_method: ties\nmerge_method: linear", "the recipe is not YAML: 'merge_method' appears twice"),
        ("- a", "the recipe must be a mapping with merge_method"),
        (
            two(vocabulary="published", merge_metod="ties"),
            r"unknown field of the recipe 'merge_metod' \(did you mean 'merge_method'\?\)",
        ),
        (two(merge_method=None), "the recipe has no merge_method$"),
        (
            two(merge_method=None, merge_metod="ties"),
            r"unknown field of the recipe 'merge_metod' \(did you mean 'merge_method'\?\)",
        ),
        (two(merge_method="[ties]"), r"merge_method must be the name of a method, not \['ties'\]"),
        (two(modules="[a]"), "modules must be a mapping from names to models or slices"),
        (two(modules="{text: {models: [a]}}"), "either models or slices or modules"),
        (two(models=None, modules="{text: {models: [a]}, vision: {models: [b]}}"), r"different ways \(text, vision\)"),
        (two(merge_method="dare-ties"), r"unknown merge_method 'dare-ties' \(did you mean 'dare_ties'\?\)"),
        (two(vocabulary="mergkit"), r"unknown vocabulary of the recipe 'mergkit' \(did you mean 'mergekit'\?\)"),
        (two(slices="[]"), "either models or slices"),
        (two(models=None), "either models or slices"),
        (two(models="[]"), "models must be a list with at least one entry"),
        (two(models="a"), "models must be a list with at least one entry"),
        (two(models="[{modl: a}]"), "every entry needs a model, not"),
        (
            two(vocabulary="published", models="[{model: a, parameter: {}}]"),
            r"'parameter' \(did you mean 'parameters'\?\)",
        ),
        (two(models="[{model: a, layer_range: [0, 1]}]"), "layer_range belongs to the sources of slices"),
        (
            two(parmeters="{normalize: true}"),
            r"unknown field of the recipe 'parmeters' \(did you mean 'parameters'\?\)",
        ),
        (two(dtypes="float16"), r"unknown field of the recipe 'dtypes' \(did you mean 'dtype'\?\)"),
        (
            two(models="[{model: a, parameter: {weight: 1}}]"),
            r"field of an entry .* 'parameter' \(did you mean",
        ),
        (two(parameters="{weigth: 1}"), r"no parameter 'weigth' \(did you mean 'weight'\?\)"),
        (two(models="[{model: 3}]"), "a model must be a path, or path[+]lora, not 3"),
        (two(base_model="3"), "base_model: a model must be a path, or path[+]lora, not 3"),
        (two(dtype="bf16"), r"unknown dtype of the recipe 'bf16' \(did you mean"),
        (two(out_dtype="int8"), "unknown out_dtype of the recipe 'int8'"),
        (
            two(chat_template="llama3"),
            "chatml, or the text of a Jinja template, not 'llama3'",
        ),
        (two(chat_template="[a]"), "chat_template must be auto, chatml"),
        (two(align="[['(', null]]"), r"align\[0\]: the first entry must be a regular expression, not '\('"),
        (two(align=f"[['{'(' * 5000}', null]]"), r"align\[0\]: the first entry must be a regular expression"),
        (two(align="[['a{99999999999}', null]]"), r"align\[0\]: the first entry must be a regular expression"),
        (two(tokenizer_source="unoin"), r"unknown tokenizer_source of the recipe 'unoin' \(did you mean 'union'\?\)"),
        (two(models="[a]"), "linear needs a value of 'weight' for a"),
        (two(models="[{model: a, parameters: 3}]"), "parameters of a must be a mapping, not 3"),
        (
            two(models="[{model: a, parameters: {wieght: 1}}]"),
            r"parameters of a: the method has no parameter 'wieght' \(did you mean 'weight'\?\)",
        ),
        (
            two(vocabulary="published", models="[{model: a, parameters: {wieght: 1}}]"),
            r"no parameter 'wieght' \(did you mean 'weight'\?\)",
        ),
        (two(vocabulary="published", parameters="{density: 1}"), "no parameter 'density'; it has: normalize, weight"),
        (two(vocabulary="published", merge_method="fisher", parameters="{favor: 1}"), "no parameter 'favor'; floor"),
        (two(models="[{model: a, parameters: {weight: x}}]"), "parameters of a.weight must be a number, not 'x'"),
        (
            two(vocabulary="published", models="[{model: a, parameters: {weight: 1, normalize: true}}]"),
            "parameters of a: 'normalize' applies to all models",
        ),
        (two(merge_method="slerp", models="[a, b]", base_model="a"), "slerp needs a value of t"),
        (two(merge_method="ties"), "ties needs a base_model"),
        (two(merge_method="slerp", models="[a, b]"), "slerp needs a base_model"),
        (
            two(merge_method="slerp", models="[a, b]", base_model="c"),
            r"slerp needs 1 member beside the base, .* 2",
        ),
        (
            two(vocabulary="published", merge_method="ties", models="[a]", base_model="a"),
            r"ties needs at least 1 member beside the base",
        ),
        (two(merge_method="passthrough", models="[a, b]"), "passthrough needs 1 member"),
        (
            two(merge_method="passthrough", models="[a]", base_model="b"),
            r"passthrough needs 1 member, but there are 2, with the base_model b$",
        ),
        (two(models=None, slices="[a]"), "every slice needs sources, not 'a'"),
        (
            two(vocabulary="published", models=None, slices="[{sources: [], par: 1}]"),
            "unknown field of a slice of the recipe 'par'",
        ),
        (
            two(models=None, slices="[{sources: [{model: a, layer_range: [0, 1]}], base_model: b}]", base_model="a"),
            "slices with a base_model of their own are not supported: a, b",
        ),
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
    with pytest.raises(ValueError, match=r"linear: no value of 'weight' of a applies to tensor x\.norm"):
        settings_at(job, part, part.sources[0], Place("x.norm"))


def notes(text):
    return "\n".join(parse_recipe(text).notes)


def test_what_mergekit_ignores_is_ignored_and_said():
    members = "[{model: a, parameters: {weight: 0.6}}, {model: b, parameters: {weight: 0.4}}]"
    job = parse_recipe(two(merge_method="slerp", base_model="a", models=members, parameters="{t: 0.35, densty: 1}"))
    assert job.parameters == {"t": 0.35} and all(not source.parameters for source in job.slices[0].sources)
    assert job.notes == (
        "'weight' is ignored: slerp has no such parameter (in parameters of a, parameters of b)",
        "'densty' is ignored: slerp has no such parameter (in parameters)",
    )
    of_model = two(models="[{model: a, parameters: {weight: 1, normalize: false}, x-y: 1}]", dtype_in="float16")
    assert notes(of_model) == (
        "the recipe has 'dtype_in', which is ignored (did you mean 'dtype'?)\n"
        "an entry of the recipe: models has 'x-y', which is ignored\n"
        "'normalize' is ignored: linear takes it for all models at once (in parameters of a)"
    )
    assert parse_recipe(of_model).parameters == {}


@pytest.mark.parametrize("method", ["linear", "slerp", "ties", "karcher", "passthrough", "sce", "model_stock"])
def test_whatever_mergekit_knows_anywhere_is_no_slip(method):
    every = {name for one in methods_of("mergekit").values() for name in one.settings}
    known = methods_of("mergekit")[method]
    for name in every - known.settings.keys():
        assert _parameters({name: 1}, known, "", _Ignored("")) == {}
    for place in (("model", "parameters"), ("sources", "parameters", "base_model", "stack"), ("models", "parameters")):
        assert _fields(dict.fromkeys(KEYS, 1), place, "", _Ignored("")).keys() <= set(place)


def test_what_is_said_of_a_base_without_effect_is_said():
    listed = "[{model: a, parameters: {weight: 2, density: 1}}, {model: b, parameters: {weight: 1}}]"
    note = "weight, density of a is ignored: it is the base itself"
    for vocabulary in ("mergekit", "published"):
        assert notes(two(vocabulary=vocabulary, merge_method="ties", base_model="a", models=listed)) == note
        assert notes(two(merge_method="ties", base_model="c", models=listed, vocabulary=vocabulary)) == ""
    unused = "uses no base: only the files beside the tensors of c are taken"
    published = two(vocabulary="published", merge_method="uniform", base_model="c", models="[a, b]")
    assert notes(published) == f"uniform {unused}" and notes(published.replace("[a, b]", "[a, c]")) == ""
    cut = "[{sources: [{model: a, layer_range: [0, 1]}]}]"
    assert notes(two(merge_method="passthrough", models=None, slices=cut, base_model="c")) == f"passthrough {unused}"


@pytest.mark.parametrize("method", ["slerp", "nearswap", "ties"])
def test_a_member_that_is_the_base_is_told(method):
    with pytest.raises(ValueError, match=r"but there are 0: a is the base itself$"):
        parse_recipe(two(vocabulary="published", merge_method=method, base_model="a", models="[a]"))


def test_fields_of_modules_are_known_or_said():
    modules = "{text: {models: [a], tokenizer_source: union}}"
    said = notes(two(models=None, merge_method="passthrough", modules=modules))
    assert said.startswith("module text of the recipe has 'tokenizer_source', which is ignored")
    with pytest.raises(ValueError, match="unknown field of module text of the recipe 'tokenizer_source'"):
        parse_recipe(two(vocabulary="published", models=None, merge_method="passthrough", modules=modules))


def test_notes_are_bounded():
    many = parse_recipe(two(parameters=repr({f"x{i}": 1 for i in range(100)}))).notes
    assert len(many) == 21 and many[-1] == "80 more are ignored"
    entries = [{"model": f"m{i}", "parameters": {"t": 1}} for i in range(9)]
    assert "(in parameters of m0, parameters of m1, parameters of m2 and 6 more)" in notes(
        two(merge_method="karcher", models=repr(entries))
    )


def test_null_is_absent():
    job = parse_recipe(
        two(slices="null", parameters="null", tokenizer="null", tokenizer_source="~", modules="null", dtype="null")
        + "\nchat_template:\nout_dtype:\nalign:\nbase_model:\n"
    )
    assert (job.parameters, job.tokenizer, job.chat_template, job.base) == ({}, None, None, None)
    slices = "[{sources: [{model: a, layer_range: [0, 1], parameters: null}], parameters: null, base_model: null}]"
    assert len(parse_recipe(two(merge_method="passthrough", models="null", slices=slices)).slices) == 1


def test_anchors_and_merge_keys_beside_the_fields():
    job = parsed("""
        x-common: &common {weight: 0.5, density: 0.3}
        merge_method: ties
        base_model: base
        models:
          - {model: a, parameters: *common}
          - {model: b, parameters: {<<: *common, weight: 2}}
    """)
    _, b = job.slices[0].sources
    assert b.parameters == {"weight": 2, "density": 0.3}
    assert job.notes == ("the recipe has 'x-common', which is ignored",)


@pytest.mark.parametrize("method", ["karcher", "linear"])
def test_an_unlisted_base_is_a_member_of_methods_without_a_base(method):
    job = parse_recipe(two(merge_method=method, models="[a, b]", base_model="c", parameters="{weight: 1, x: 0}"))
    assert [source.model for source in job.slices[0].sources] == ["a", "b", "c"]
    listed = parse_recipe(two(merge_method=method, models="[c, b]", base_model="c", parameters="{weight: 1}"))
    assert [source.model for source in listed.slices[0].sources] == ["c", "b"]


def test_an_unlisted_base_of_linear_needs_a_shared_weight():
    with pytest.raises(ValueError, match="linear needs a value of 'weight' for c"):
        parse_recipe(two(base_model="c"))


@pytest.mark.parametrize("recipe", [{"merge_method": "karcher"}, {"merge_method": "multislerp", "base_model": "b"}])
def test_one_member_is_copied(recipe):
    job = parse_recipe(two(**recipe))
    assert (job.method, [source.model for source in job.slices[0].sources]) == ("passthrough", ["a"])
    assert job.notes[-1] == f"{recipe['merge_method']} of one member is that member: it is copied"


def test_gradients_of_whole_numbers_are_rounded_and_of_booleans_chosen():
    job = parse_recipe(two(merge_method="karcher", models="[a, b]", parameters="{max_iter: [1, 5.0], tol: [1, 5]}"))
    found = [settings_at(job, job.slices[0], None, Place("x", depth)) for depth in (0, 0.75, 1)]
    assert [(value["max_iter"], value["tol"]) for value in found] == [(1, 1), (4, 4), (5, 5)]
    assert type(found[-1]["max_iter"]) is int
    job = parse_recipe(two(parameters="{normalize: [false, true]}"))
    found = [settings_at(job, job.slices[0], None, Place("x", depth))["normalize"] for depth in (0, 0.75, 1)]
    assert found == [False, False, True]


def test_modules_that_are_merged_alike_are_the_models():
    entry = "{models: [{model: a, parameters: {weight: 1}}], parameters: {normalize: false}}"
    job = parse_recipe(two(models=None, modules=f"{{text: {entry}, vision: {entry}}}", parameters="{normalize: true}"))
    assert (job.models, job.parameters) == (["a"], {"normalize": False})
    assert job.notes == ("the modules text, vision are merged in the same way, so the whole model is merged at once",)


def test_a_base_of_all_slices_is_the_base():
    part = "{sources: [{model: a, layer_range: [0, 1]}, {model: b, layer_range: [0, 1]}], base_model: a}"
    job = parse_recipe(two(merge_method="slerp", models=None, slices=f"[{part}, {part}]", parameters="{t: 0.5}"))
    assert job.base == "a"


@pytest.mark.parametrize("dtype", ["bfloat16", "torch.bfloat16"])
def test_dtypes_as_mergekit_spells_them(dtype):
    assert parse_recipe(two(dtype=dtype)).dtype == bfloat16


@pytest.mark.parametrize("template", ["auto", "chatml", "'{{ messages[0].content }}'"])
def test_chat_templates(template):
    assert parse_recipe(two(chat_template=template)).chat_template == template.strip("'")


def test_filters_that_match_nothing_are_said():
    rules = "[{filter: mlp, value: 1}, {filter: experts.3, value: 2}, {filter: 'norm ', value: 3}, {value: 4}]"
    job = parse_recipe(two(models=f"[{{model: a, parameters: {{weight: {rules}}}}}]"))
    assert odd_filters(job, ["l.0.mlp.experts.gate_up_proj", "l.1.mlp.experts.gate_up_proj", "norm"]) == [
        "the filter 'experts.3' is not part of any tensor's name; the experts are one tensor, "
        "l.0.mlp.experts.gate_up_proj, in which a filter cannot choose",
        "the filter 'norm ' is not part of any tensor's name",
    ]
    assert odd_filters(job, ["l.0.mlp.experts.3.up", "norm "]) == []
    assert odd_filters(job, ["l.0.mlp.experts.3.up_proj.weight", "norm "]) == [
        "the filter 'experts.3' tells experts and their matrices apart, such as l.0.mlp.experts.3.up_proj.weight; "
        "mergekit, which stacks them, does not"
    ]


def test_the_base_alone_is_copied():
    job = parse_recipe(two(merge_method="ties", models="[a]", base_model="a"))
    assert (job.method, [source.model for source in job.slices[0].sources]) == ("passthrough", ["a"])
    assert job.notes == ("ties of no member is the base: it is copied",)


def test_one_filter_need_not_be_a_list():
    job = parse_recipe(two(parameters="{weight: {filter: mlp, value: [1, 2]}, normalize: {value: false}}"))
    assert settings_at(job, job.slices[0], None, Place("x"))["normalize"] is False
    assert job.parameters["weight"] == [{"filter": "mlp", "value": [1, 2]}]


def test_an_unlisted_base_is_merged(models, small, tmp_path):
    base, a = str(models["base"]), str(models["a"])
    recipe = {"merge_method": "linear", "base_model": base, "parameters": {"weight": 1}}
    merged = small.merge(recipe | {"models": [{"model": a, "parameters": {"weight": 3}}]}, tmp_path / "linear")
    name = "model.layers.1.mlp.up_proj.weight"
    expected = (3 * small.tensors(1)[name].astype(np.float64) + small.tensors(0)[name]) / 4
    small.near(merged[name], expected)
    recipe = {"merge_method": "karcher", "base_model": base}
    unlisted = small.merge(recipe | {"models": [{"model": a}]}, tmp_path / "unlisted")
    listed = small.merge(recipe | {"models": [{"model": a}, {"model": base}]}, tmp_path / "listed")
    assert all(np.array_equal(unlisted[name], listed[name]) for name in listed)


def test_one_member_comes_out_as_it_is(models, small, tmp_path):
    merged = small.merge({"merge_method": "karcher", "models": [{"model": str(models["a"])}]}, tmp_path / "out")
    assert all(np.array_equal(merged[name], leaf) for name, leaf in small.tensors(1).items())


def test_the_plan_has_the_notes(models, small):
    weight = [{"filter": "mpl", "value": 2}, {"value": 1}]
    entry = {"model": str(models["a"]), "parameters": {"weight": weight, "t": 0.5}}
    assert small.plan({"merge_method": "linear", "models": [entry], "name": "mine"}).notes == (
        "the recipe has 'name', which is ignored",
        f"'t' is ignored: linear has no such parameter (in parameters of {models['a']})",
        "the filter 'mpl' is not part of any tensor's name",
    )


@pytest.mark.parametrize("seed", [1 << 63, -(1 << 63) - 1, 10**30])
def test_a_seed_has_64_bits(seed):
    with pytest.raises(ValueError, match="the seed of the recipe must be a whole number that fits in 64 bits, not "):
        parse_recipe("{merge_method: linear, models: [{model: a, parameters: {weight: 1}}]}", seed=seed)
