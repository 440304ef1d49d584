"""Test references to models with adapters, and adapters against float64 written from the formula."""

import json

import ml_dtypes
import numpy as np
import pytest

from soups import merging
from soups.formats import open_checkpoint, write_safetensors
from soups.merging.lora import model_reference, open_with_lora, split_reference

RANK, ALPHA = 2, 6.0
Q = "model.layers.{}.self_attn.q_proj"
UP = "model.layers.{}.mlp.up_proj"


@pytest.fixture
def adapter(tmp_path):
    """Return a function that writes an adapter: matrices by module (outputs, inputs), settings, further tensors."""

    def write(modules, *, name="lora", rank=RANK, tensors=None, **config):
        folder, rng = tmp_path / name, np.random.default_rng(9)
        folder.mkdir()
        leaves = {}
        for module, (outputs, inputs) in modules.items():
            leaves[f"base_model.model.{module}.lora_A.weight"] = rng.normal(size=(rank, inputs)).astype(np.float32)
            leaves[f"base_model.model.{module}.lora_B.weight"] = rng.normal(size=(outputs, rank)).astype(np.float32)
        leaves |= {f"base_model.model.{key}": array for key, array in (tensors or {}).items()}
        write_safetensors(folder / "adapter_model.safetensors", leaves)
        config = {"peft_type": "LORA", "r": rank, "lora_alpha": ALPHA, **config}
        (folder / "adapter_config.json").write_text(json.dumps(config))
        return folder, {
            key.removeprefix("base_model.model."): x.astype(np.result_type(x, np.float64)) for key, x in leaves.items()
        }

    return write


def opened(model, folder):
    return open_with_lora(f"{model}+{folder}", open_checkpoint)


def product(leaves, module, scale):
    return scale * leaves[f"{module}.lora_B.weight"] @ leaves[f"{module}.lora_A.weight"]


def near(array, expected):
    np.testing.assert_allclose(array, expected, rtol=0, atol=1e-6 * np.abs(expected).max())


@pytest.mark.parametrize(("settings", "scale"), [({}, ALPHA / RANK), ({"use_rslora": True}, ALPHA / RANK**0.5)])
def test_an_adapter_adds_the_scaled_product(models, trees, adapter, settings, scale):
    folder, leaves = adapter({Q.format(0): (6, 6), UP.format(2): (8, 6)}, **settings)
    view = opened(models["a"], folder)
    changed = {f"{Q.format(0)}.weight", f"{UP.format(2)}.weight"}
    assert set(view.changed) == changed and list(view.leaves) == list(open_checkpoint(models["a"]).leaves)
    for name, array in trees["a"].items():
        module = name.removesuffix(".weight")
        expected = array.astype(np.float64) + (product(leaves, module, scale) if name in changed else 0)
        near(view.read(name), expected)
    untouched = f"{Q.format(1)}.weight"
    np.testing.assert_array_equal(view.read(untouched), trees["a"][untouched])
    files = {path.name for path in view.sizes}
    assert files == {"model.safetensors", "adapter_model.safetensors", "adapter_config.json"}


def test_modules_may_share_a_matrix(models, trees, adapter):
    folder, leaves = adapter({Q.format(0): (6, 6), Q.format(1): (6, 6)})
    a, shared = (f"{Q.format(layer)}.lora_A.weight" for layer in (0, 1))
    arrays = {f"base_model.model.{name}": x.astype(np.float32) for name, x in leaves.items() if name != shared}
    notes = {f"base_model.model.{shared}": f"base_model.model.{a}"}
    write_safetensors(folder / "adapter_model.safetensors", arrays, metadata=notes)
    leaves[shared] = leaves[a]
    for layer in (0, 1):
        name = f"{Q.format(layer)}.weight"
        expected = trees["a"][name] + product(leaves, Q.format(layer), ALPHA / RANK)
        near(opened(models["a"], folder).read(name), expected)


def test_alpha_may_be_that_of_a_pattern(models, trees, adapter):
    folder, leaves = adapter(
        {Q.format(0): (6, 6), Q.format(1): (6, 6)},
        rank=3,
        r=8,
        rank_pattern={"q_proj": 3},
        alpha_pattern={r"layers\.1\..*q_proj": 12.0},
    )
    view = opened(models["a"], folder)
    for layer, alpha in ((0, ALPHA), (1, 12.0)):
        name = f"{Q.format(layer)}.weight"
        near(view.read(name), trees["a"][name] + product(leaves, Q.format(layer), alpha / 3))


def test_layers_stored_the_other_way_round_get_the_transpose(models, trees, adapter):
    folder, leaves = adapter({UP.format(0): (6, 8)}, fan_in_fan_out=True)
    name = f"{UP.format(0)}.weight"  # [8, 6], as if [inputs, outputs]
    near(opened(models["a"], folder).read(name), trees["a"][name] + product(leaves, UP.format(0), 3.0).T)


def test_embeddings_convolutions_and_tensors_saved_whole(small, tmp_path, adapter):
    rng = np.random.default_rng(1)

    def draw(*shape):
        return rng.normal(size=shape).astype(np.float32)

    base = {
        "embed.weight": draw(10, 4),
        "conv.weight": draw(5, 3, 2, 2),
        "norm.bias": draw(4),
        "head.weight": draw(2, 4),
    }
    model = small.write_model(tmp_path / "model", base)
    given = {
        "embed.lora_embedding_A": draw(2, 10),
        "embed.lora_embedding_B": draw(4, 2),
        "conv.lora_A.weight": draw(2, 3, 2, 2),
        "conv.lora_B.weight": draw(5, 2, 1, 1),
        "norm.bias": draw(4),
        "head.weight": draw(2, 4),
    }
    view = opened(model, adapter({}, tensors=given)[0])
    wide = {name: array.astype(np.float64) for name, array in given.items()}
    embedded = np.einsum("rn,dr->nd", wide["embed.lora_embedding_A"], wide["embed.lora_embedding_B"])
    near(view.read("embed.weight"), base["embed.weight"] + 3.0 * embedded)
    convolved = np.einsum("or,rihw->oihw", wide["conv.lora_B.weight"][:, :, 0, 0], wide["conv.lora_A.weight"])
    near(view.read("conv.weight"), base["conv.weight"] + 3.0 * convolved)
    np.testing.assert_array_equal(view.read("norm.bias"), given["norm.bias"])
    np.testing.assert_array_equal(view.read("head.weight"), given["head.weight"])


def test_the_model_may_lack_the_modules_around_it(small, tmp_path, adapter):
    # as a language model's trunk alone, of which the adapter knows the whole
    model = small.write_model(tmp_path / "model", {"h.0.attn.weight": np.zeros((4, 4), np.float32)})
    folder, leaves = adapter({"transformer.h.0.attn": (4, 4)})
    near(opened(model, folder).read("h.0.attn.weight"), product(leaves, "transformer.h.0.attn", 3.0))


def test_a_narrow_model_is_rounded_once_after_the_merge(small, tmp_path, adapter):
    narrow = {
        name: leaf.astype(ml_dtypes.bfloat16) for name, leaf in small.tensors(1).items() if leaf.dtype == np.float32
    }
    model = small.write_model(tmp_path / "narrow", narrow)
    folder, leaves = adapter({Q.format(0): (6, 6)})
    recipe = {"merge_method": "linear", "models": [{"model": f"{model}+{folder}", "parameters": {"weight": 1}}]}
    merged = small.merge(recipe, tmp_path / "out", files=True)
    name = f"{Q.format(0)}.weight"
    wide = narrow[name].astype(np.float32) + product(leaves, Q.format(0), 3.0).astype(np.float32)
    assert merged[name].dtype == ml_dtypes.bfloat16
    near(merged[name].astype(np.float64), wide.astype(ml_dtypes.bfloat16).astype(np.float64))


def test_a_recipe_merges_models_with_adapters(small, models, trees, tmp_path, adapter):
    folder, leaves = adapter({Q.format(1): (6, 6)})
    nested = {"model": {"path": str(models["a"]), "revision": None}, "lora": {"path": str(folder), "revision": None}}
    entries = [{"model": m, "parameters": {"weight": 1}} for m in (nested, f"{models['b']}+{folder}")]
    recipe = {"merge_method": "task_arithmetic", "base_model": models["base"], "models": entries}
    made = small.plan(recipe)
    merging.merge_to_folder(made, tmp_path / "out", files=merging.folder_files(made))
    name, merged = f"{Q.format(1)}.weight", small.read(tmp_path / "out")
    delta = product(leaves, Q.format(1), 3.0)
    wide = {x: trees[x][name].astype(np.float64) for x in trees}
    near(merged[name], wide["a"] + wide["b"] - wide["base"] + 2 * delta)
    assert made.memory(1) - small.plan(
        recipe | {"models": [{**entries[0], "model": models["a"]}, *entries[1:]]}
    ).memory(1) == pytest.approx(2 * 4 * 36)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| `a` + `lora` | member |" in card and "| `b` + `lora` | member |" in card
    assert (tmp_path / "out" / "tokenizer.json").exists()
    assert merging.verify_output(small.plan(recipe), tmp_path / "out") == []


def test_a_tied_tensor_gets_the_adapter_of_either_name(small, tmp_path, write_torch, adapter):
    leaves = {"embed.weight": np.ones((4, 4), np.float32)}
    write_torch(tmp_path / "tied.pt", leaves, {"head.weight": "embed.weight"})
    folder, given = adapter({"head": (4, 4)})
    view = opened(tmp_path / "tied.pt", folder)
    near(view.read("embed.weight"), 1 + product(given, "head", 3.0))
    np.testing.assert_array_equal(view.read("head.weight"), view.read("embed.weight"))


# --- What PEFT stores ---


def normal(*shape, seed=3):
    return np.random.default_rng(seed + sum(shape)).normal(size=shape).astype(np.float32)


def delta(leaves, module, scale=ALPHA / RANK):
    b, a = (leaves[f"{module}.lora_{x}.weight"].astype(np.float64) for x in "BA")
    return scale * np.einsum("or,ri->oi", b, a)


GPT2 = {
    "transformer.wte.weight": normal(10, 4),
    "transformer.h.0.attn.c_attn.weight": normal(4, 12),
    "transformer.h.0.attn.c_proj.weight": normal(4, 4),
    "transformer.h.0.mlp.c_fc.weight": normal(4, 16),
    "transformer.h.0.mlp.c_proj.weight": normal(16, 4),
    "lm_head.weight": normal(10, 4, seed=5),
}


@pytest.mark.parametrize("flag", [True, False])
@pytest.mark.parametrize("turned", [True, False])
def test_each_weight_gets_the_product_as_it_is_stored(small, tmp_path, adapter, flag, turned):
    """Conv1D beside Linear in one adapter; the square weight is stored as its neighbours are."""
    given = {n: x.T.copy() if "c_" in n and not turned else x for n, x in GPT2.items()}
    model = small.write_model(tmp_path / "model", given)
    sizes = {"attn.c_attn": (12, 4), "attn.c_proj": (4, 4), "mlp.c_fc": (16, 4), "mlp.c_proj": (4, 16)}
    modules = {f"transformer.h.0.{x}": size for x, size in sizes.items()}
    folder, leaves = adapter(modules | {"lm_head": (10, 4)}, fan_in_fan_out=flag)
    view = opened(model, folder)
    for module in modules:
        added = delta(leaves, module)
        near(view.read(f"{module}.weight"), given[f"{module}.weight"] + (added.T if turned else added))
    near(view.read("lm_head.weight"), given["lm_head.weight"] + delta(leaves, "lm_head"))


@pytest.mark.parametrize(
    ("module", "flag", "turned"),
    [("h.c_proj", True, True), ("h.c_proj", False, None), ("h.query", True, None), ("h.query", False, False)],
)
def test_a_square_weight_that_nothing_tells_of_is_an_error(small, tmp_path, adapter, module, flag, turned):
    weight = normal(4, 4)
    model = small.write_model(tmp_path / "model", {f"{module}.weight": weight})
    folder, leaves = adapter({module: (4, 4)}, fan_in_fan_out=flag)
    if turned is None:
        with pytest.raises(ValueError, match=rf"{module}: B A fits the square weight \[4, 4\] in both directions"):
            opened(model, folder)
    else:
        added = delta(leaves, module)
        near(opened(model, folder).read(f"{module}.weight"), weight + (added.T if turned else added))


def test_the_wrappers_of_peft_are_no_part_of_names(models, trees, adapter):
    q, up = Q.format(0), UP.format(1)
    saved = {
        "lm_head.base_layer.weight": normal(10, 6),
        "lm_head.lora_A.weight": normal(2, 6),
        "lm_head.lora_B.weight": normal(10, 2),
        "model.embed_tokens.modules_to_save.default.weight": normal(10, 6, seed=7),
        "model.embed_tokens.original_module.weight": trees["a"]["model.embed_tokens.weight"],
        "model.layers.0.norm.base_layer.bias": normal(6),
        f"{q}.lora_A.default.weight": normal(2, 6, seed=8),
        f"{q}.lora_B.default.weight": normal(6, 2, seed=9),
        f"{up}.lora_A": normal(2, 6, seed=10),
        f"{up}.lora_B": normal(8, 2, seed=11),
    }
    view = opened(models["a"], adapter({}, tensors=saved)[0])
    of = {name.replace(".default", ""): x.astype(np.float64) for name, x in saved.items()}
    of |= {f"{up}.lora_{x}.weight": of[f"{up}.lora_{x}"] for x in "AB"}
    near(view.read("lm_head.weight"), of["lm_head.base_layer.weight"] + delta(of, "lm_head"))
    near(view.read("model.embed_tokens.weight"), of["model.embed_tokens.modules_to_save.weight"])
    near(view.read("model.layers.0.norm.bias"), of["model.layers.0.norm.base_layer.bias"])
    for module in (q, up):
        near(view.read(f"{module}.weight"), trees["a"][f"{module}.weight"] + delta(of, module))
    assert len(view.changed) == 5


def test_alphas_go_by_the_first_pattern_that_ends_a_name(models, trees, adapter):
    patterns = {"proj": 100.0, "0.self_attn.q_proj": 12.0, "q_proj": 4.0, "k_proj|up_proj": 8.0}
    modules = {Q.format(0): (6, 6), Q.format(1): (6, 6), UP.format(0): (8, 6)}
    folder, leaves = adapter(modules, alpha_pattern=patterns, use_rslora=True)
    for module, alpha in zip(modules, (12.0, 4.0, 8.0), strict=True):
        near(
            opened(models["a"], folder).read(f"{module}.weight"),
            trees["a"][f"{module}.weight"] + delta(leaves, module, alpha / RANK**0.5),
        )


def test_several_adapters_add(models, trees, adapter):
    (first, one), (second, other) = (adapter({Q.format(0): (6, 6)}, name=name) for name in ("one", "other"))
    name = f"{Q.format(0)}.weight"
    expected = trees["a"][name] + delta(one, Q.format(0)) + delta(other, Q.format(0))
    near(opened(f"{models['a']}+{first}", second).read(name), expected)
    third, _ = adapter({}, name="third", tensors={name: normal(6, 6)})
    with pytest.raises(ValueError, match=rf"{name} is saved whole, but another adapter changes {name} too"):
        opened(f"{models['a']}+{first}", third)


# --- Several parts for one tensor ---


@pytest.fixture
def tied(small, tmp_path, write_torch):
    """Return models whose head is their embedding: noted by the file, by shared storage, by config.json alone."""
    weight = normal(5, 4)
    path = tmp_path / "noted"
    path.mkdir()
    write_safetensors(
        path / "model.safetensors", {"embed_tokens.weight": weight}, {"lm_head.weight": "embed_tokens.weight"}
    )
    write_torch(tmp_path / "shared.pt", {"embed_tokens.weight": weight}, {"lm_head.weight": "embed_tokens.weight"})
    said = small.write_model(tmp_path / "said", {"embed_tokens.weight": weight}, {"tie_word_embeddings": True})
    return {"noted": path, "shared": tmp_path / "shared.pt", "said": said}, weight


@pytest.mark.parametrize("kind", ["noted", "shared", "said"])
def test_two_parts_for_one_tied_tensor_are_both_named(tied, adapter, kind):
    models, _ = tied
    saved = {"embed_tokens.weight": normal(5, 4, seed=1), "lm_head.weight": normal(5, 4, seed=2)}
    folder, _ = adapter({}, tensors=saved)
    clash = "embed_tokens.weight and base_model.model.lm_head.weight would all change embed_tokens.weight"
    with pytest.raises(ValueError, match=f"{clash}, which the model ties to 'lm_head.weight': untie the model first"):
        opened(models[kind], folder)
    low_rank, _ = adapter({"lm_head": (5, 4)}, name="b", tensors={"embed_tokens.weight": normal(5, 4, seed=4)})
    with pytest.raises(ValueError, match=r"lm_head and base_model.model.embed_tokens.weight would all change"):
        opened(models[kind], low_rank)


@pytest.mark.parametrize("kind", ["noted", "shared", "said"])
def test_what_is_saved_twice_or_as_it_was_is_no_second_part(tied, adapter, kind):
    models, weight = tied
    new = normal(5, 4, seed=1)
    folder, _ = adapter({}, tensors={"embed_tokens.weight": new, "lm_head.weight": new})
    np.testing.assert_array_equal(opened(models[kind], folder).read("embed_tokens.weight"), new)
    frozen = {"embed_tokens.weight": weight, "lm_head.base_layer.weight": weight}
    folder, leaves = adapter({"lm_head": (5, 4)}, name="b", tensors=frozen)
    view = opened(models[kind], folder)
    near(view.read("embed_tokens.weight"), weight + delta(leaves, "lm_head"))
    assert view.notes == (f"{folder}: lm_head changes both embed_tokens.weight and 'lm_head.weight', which are tied",)


# --- References ---


def test_references(tmp_path):
    assert split_reference("a/b+c/d") == ("a/b", "c/d") and split_reference("a") == ("a", None)
    assert split_reference("pool:a+b") == ("pool:a+b", None)
    (tmp_path / "a+b").mkdir()
    assert split_reference(str(tmp_path / "a+b")) == (str(tmp_path / "a+b"), None)
    assert split_reference(f"{tmp_path}/a+b+lora") == (f"{tmp_path}/a+b", "lora")
    assert model_reference({"model": {"path": "a"}, "lora": {"path": "b"}}, "x") == "a+b"
    assert model_reference({"model": {"path": "a"}, "lora": None}, "x") == "a"
    assert model_reference({"model": {"path": "org/a", "revision": "main"}}, "x") == "org/a@main"
    assert model_reference({"model": {"path": ".", "revision": "main"}}, "x") == "."  # as a folder has one alone
    with pytest.raises(ValueError, match=r"x: a model must be a path, or path\+lora, not 3"):
        model_reference(3, "x")


# --- Mistakes ---


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"peft_type": "IA3"}, "adapter_config.json: peft_type must be 'LORA', not 'IA3'"),
        ({"use_dora": True}, "adapter_config.json: DoRA: not supported; merge this adapter into its model first"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights 'pissa_niter_4' changes the model"),
        ({"lora_alpha": None}, "lora_alpha must be a number, not None"),
        ({"lora_alpha": True}, "lora_alpha must be a number, not True"),
        ({"lora_alpha": float("nan")}, "lora_alpha must be a number, not nan"),
        ({"lora_alpha": 10**400}, "lora_alpha must be a number, not 1000"),
        ({"alpha_pattern": {"q": "x"}}, "lora_alpha must be a number, not 'x'"),
        ({"alpha_pattern": ["q"]}, r"alpha_pattern must map names of modules to numbers, not \['q'\]"),
        ({"alpha_pattern": {"q(": 2}}, r"a name in alpha_pattern must be a regular expression, not 'q\('"),
        ({"rank_pattern": ["q"]}, r"rank_pattern must map names of modules to numbers, not \['q'\]"),
        ({"rank_pattern": {"q(": 2}}, r"a name in rank_pattern must be a regular expression, not 'q\('"),
        *(({"r": r}, f"q_proj has matrices of rank 2, but adapter_config.json says {r!r}") for r in (8, 0, "2")),
        ({"rank_pattern": {"q_proj": 4}}, "q_proj has matrices of rank 2, but adapter_config.json says 4: they do not"),
        ({"use_rslora": "yes"}, "use_rslora must be true or false, not 'yes'"),
        ({"fan_in_fan_out": 1}, "fan_in_fan_out must be true or false, not 1"),
        ({"peft_type": ["LORA"]}, r"peft_type must be 'LORA', not \['LORA'\]"),
    ],
)
def test_adapters_of_another_kind_are_refused(models, adapter, settings, message):
    with pytest.raises(ValueError, match=message):
        opened(models["a"], adapter({Q.format(0): (6, 6)}, **settings)[0])


def test_an_adapter_without_tensors_is_an_error(models, adapter):
    folder, _ = adapter({Q.format(0): (6, 6)})
    (folder / "adapter_model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    with pytest.raises(ValueError, match="it holds no tensors"):
        opened(models["a"], folder)


def test_matrices_beside_what_is_saved_in_their_place_are_an_error(models, adapter):
    folder, _ = adapter({"lm_head": (10, 6)}, tensors={"lm_head.modules_to_save.weight": normal(10, 6)})
    with pytest.raises(ValueError, match=r"lm_head and .*modules_to_save.weight would all change lm_head.weight"):
        opened(models["a"], folder)


def test_matrices_that_do_not_fit_are_all_named(models, adapter):
    extra = {
        f"{Q.format(1)}.lora_A.weight": np.zeros((2, 6), np.float32),
        f"{Q.format(2)}.lora_magnitude_vector": np.zeros(6, np.float32),
        "lm_head.weight": np.zeros((11, 6), np.float32),
    }
    folder, _ = adapter({Q.format(0): (6, 7), "model.layers.0.self_attn.k_proj": (6, 6)}, tensors=extra)
    with pytest.raises(ValueError, match=r"lora does not fit .*a:") as error:
        opened(models["a"], folder)
    q = Q.format(0)
    assert set(str(error.value).splitlines()[1:]) == {
        f"  ~ {q}: B [6, 2] times A [2, 7] does not fit the weight [6, 6]",
        f"  - {models['a']} has no tensor model.layers.0.self_attn.k_proj.weight (did you mean '{q}.weight'?)",
        f"  - {Q.format(1)} has lora_A, not both of lora_A, lora_B",
        f"  ? base_model.model.{Q.format(2)}.lora_magnitude_vector: not supported",
        "  ~ base_model.model.lm_head.weight has shape [11, 6] instead of [10, 6]: "
        "the adapter was trained with 1 more tokens; give the model as many rows first",
    }


def test_what_is_not_there_is_named(models, adapter, tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"no adapter_config.json in .*nowhere: a LoRA must be a folder that PEFT"
    ):
        opened(models["a"], tmp_path / "nowhere")
    folder, _ = adapter({Q.format(0): (6, 6)})
    with pytest.raises(FileNotFoundError, match="no checkpoint at nowhere"):
        opened("nowhere", folder)
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"holds neither adapter_model.safetensors nor adapter_model.bin"):
        opened(models["a"], folder)
    (folder / "adapter_config.json").write_text("{")
    with pytest.raises(ValueError, match=r"adapter_config.json is not valid JSON"):
        opened(models["a"], folder)


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_model.bin"])
def test_an_adapter_is_no_model(models, adapter, name, write_torch):
    folder, leaves = adapter({Q.format(0): (6, 6)}, base_model_name_or_path="org/name")
    if name.endswith("bin"):
        write_torch(folder / name, {key: array.astype(np.float32) for key, array in leaves.items()})
        (folder / "adapter_model.safetensors").unlink()
    for place in (folder, folder / name):
        with pytest.raises(ValueError, match=rf"{folder} is an adapter: give MODEL\+{folder}, .*trained on org/name"):
            open_with_lora(str(place), open_checkpoint)


def test_two_adapters_in_one_file_are_named(models, adapter):
    given = {f"{Q.format(0)}.lora_A.{name}.weight": np.zeros((2, 6), np.float32) for name in ("x", "y")}
    with pytest.raises(ValueError, match=r"lora_A.x.weight and .*lora_A.y.weight: several adapters in one file"):
        opened(models["a"], adapter({}, tensors=given)[0])


def test_many_names_that_are_not_there_are_counted(models, adapter):
    folder, _ = adapter({f"no.{i}.such": (2, 2) for i in range(50)})
    with pytest.raises(ValueError, match="and 30 more") as error:
        opened(models["a"], folder)
    assert len(str(error.value).splitlines()) == 22


@pytest.mark.parametrize(
    ("a", "b"), [((), ()), ((2,), (6,)), ((0, 6), (6, 0)), ((2, 6, 1), (6, 2)), ((2, 6, 1), (6,)), ((6,), (6, 2, 1))]
)
def test_matrices_of_any_shape_are_an_error_in_words(models, adapter, a, b):
    q = Q.format(0)
    given = {f"{q}.lora_A.weight": np.zeros(a, np.float32), f"{q}.lora_B.weight": np.zeros(b, np.float32)}
    with pytest.raises(ValueError, match=f"{q}: B .* times A .* does not fit the weight"):
        opened(models["a"], adapter({}, tensors=given)[0])


@pytest.mark.parametrize("dtype", [np.int64, np.complex64])
def test_what_is_not_of_real_floats_is_an_error(models, adapter, dtype):
    q = Q.format(0)
    given = {f"{q}.lora_A.weight": np.ones((2, 6), dtype), f"{q}.lora_B.weight": np.ones((6, 2), np.float32)}
    folder, _ = adapter({}, tensors=given | {f"{Q.format(1)}.weight": np.ones((6, 6), dtype)})
    with pytest.raises(ValueError, match=f"{q}: weight, A and B must hold real floats, not float32, ") as error:
        opened(models["a"], folder)
    assert f"{Q.format(1)}.weight has dtype {np.dtype(dtype)} instead of float32" in str(error.value)
