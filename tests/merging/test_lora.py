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
    """Give a function that writes an adapter: matrices by module (outputs, inputs), settings, further tensors."""

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
        return folder, {key.removeprefix("base_model.model."): x.astype(np.float64) for key, x in leaves.items()}

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


def test_alpha_may_be_that_of_a_pattern(models, trees, adapter):
    folder, leaves = adapter(
        {Q.format(0): (6, 6), Q.format(1): (6, 6)}, rank=3, r=8, alpha_pattern={r"layers\.1\..*q_proj": 12.0}
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
    assert "* a+lora\n* b+lora" in (tmp_path / "out" / "README.md").read_text()
    assert (tmp_path / "out" / "tokenizer.json").exists()
    assert merging.verify_output(small.plan(recipe), tmp_path / "out") == []


def test_a_tied_tensor_gets_the_adapter_of_either_name(small, tmp_path, write_torch, adapter):
    leaves = {"embed.weight": np.ones((4, 4), np.float32)}
    write_torch(tmp_path / "tied.pt", leaves, {"head.weight": "embed.weight"})
    folder, given = adapter({"head": (4, 4)})
    view = opened(tmp_path / "tied.pt", folder)
    near(view.read("embed.weight"), 1 + product(given, "head", 3.0))
    np.testing.assert_array_equal(view.read("head.weight"), view.read("embed.weight"))


# --- References ---


def test_references(tmp_path):
    assert split_reference("a/b+c/d") == ("a/b", "c/d") and split_reference("a") == ("a", None)
    assert split_reference("pool:a+b") == ("pool:a+b", None)
    (tmp_path / "a+b").mkdir()
    assert split_reference(str(tmp_path / "a+b")) == (str(tmp_path / "a+b"), None)
    assert split_reference(f"{tmp_path}/a+b+lora") == (f"{tmp_path}/a+b", "lora")
    assert model_reference({"model": {"path": "a"}, "lora": {"path": "b"}}, "x") == "a+b"
    assert model_reference({"model": {"path": "a"}, "lora": None}, "x") == "a"
    with pytest.raises(ValueError, match=r"x: a model is a path, or path\+lora, not 3"):
        model_reference(3, "x")


# --- Mistakes ---


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"peft_type": "IA3"}, "adapter_config.json: peft_type must be 'LORA', not 'IA3'"),
        ({"use_dora": True}, "adapter_config.json: DoRA: not supported; merge this adapter into its model first"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights 'pissa_niter_4' changes the model"),
        ({"lora_alpha": None}, "lora_alpha must be a number, not None"),
        ({"alpha_pattern": {"q": "x"}}, "lora_alpha must be a number, not 'x'"),
    ],
)
def test_adapters_of_another_kind_are_refused(models, adapter, settings, message):
    with pytest.raises(ValueError, match=message):
        opened(models["a"], adapter({Q.format(0): (6, 6)}, **settings)[0])


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
        "  ~ base_model.model.lm_head.weight has shape [11, 6] instead of [10, 6]",
    }


def test_what_is_not_there_is_named(models, adapter, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no adapter_config.json in .*nowhere: a LoRA is a folder that PEFT"):
        opened(models["a"], tmp_path / "nowhere")
    folder, _ = adapter({Q.format(0): (6, 6)})
    with pytest.raises(FileNotFoundError, match="no checkpoint at nowhere"):
        opened("nowhere", folder)
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"holds neither adapter_model.safetensors nor adapter_model.bin"):
        opened(models["a"], folder)
    (folder / "adapter_config.json").write_text("{")
    with pytest.raises(ValueError, match=r"adapter_config.json is not JSON"):
        opened(models["a"], folder)
