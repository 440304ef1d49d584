"""Test what a merged folder holds beside its tensors: config, tokenizer, recipe, model card."""

import json

import pytest
import yaml

from soups import merging


@pytest.fixture
def recipe(models):
    return {
        "merge_method": "linear",
        "models": [{"model": models[x], "parameters": {"weight": 1}} for x in ("base", "a")],
    }


def test_the_folder_has_config_tokenizer_recipe_and_card(small, models, recipe, tmp_path):
    text = f"# mine\n{yaml.safe_dump(small.plain(recipe))}out_dtype: bfloat16 # half\n"
    plan = small.plan(text)
    merging.merge_to_folder(plan, tmp_path / "out", files=merging.folder_files(plan))
    found = small.content(tmp_path / "out")
    expected = {"README.md", "config.json", "merge.json", "mergekit_config.yml", "model.safetensors", "tokenizer.json"}
    assert set(found) == expected
    config = json.loads(found["config.json"])
    assert config == {"num_hidden_layers": 3, "torch_dtype": "bfloat16", "dtype": "bfloat16"}
    assert found["tokenizer.json"] == (models["base"] / "tokenizer.json").read_bytes()
    assert found["mergekit_config.yml"].decode() == text
    card = found["README.md"].decode()
    _, front, rest = card.split("---\n", 2)
    assert yaml.safe_load(front)["base_model"] == ["base", "a"] and "merge" in yaml.safe_load(front)["tags"]
    assert f"```yaml\n{text}```" in rest and "method `linear` (mergekit semantics)" in rest


def test_the_config_counts_the_layers_of_slices(small, models):
    slices = [{"sources": [{"model": models["a"], "layer_range": span}]} for span in ([0, 2], [1, 3], [0, 3])]
    files = merging.folder_files(small.plan({"merge_method": "passthrough", "slices": slices}))
    assert json.loads(files["config.json"])["num_hidden_layers"] == 7


def test_a_published_recipe_has_its_paper_on_the_card(small, models):
    recipe = {"vocabulary": "published", "merge_method": "ties", "base_model": models["base"], "models": [models["a"]]}
    files = merging.folder_files(small.plan(recipe))
    assert "Yadav et al. 2023, 2306.01708" in (card := files["README.md"].decode()) and "* base (base)" in card
    assert yaml.safe_load(files["recipe.yml"]) == small.plain(recipe)


def test_the_tokenizer_is_that_of_the_base_or_of_the_model_named(small, models, recipe):
    def tokenizer(source):
        return merging.folder_files(small.plan(recipe | {"tokenizer_source": source}))["tokenizer.json"]

    for source in ("base", "union", None, str(models["a"])):
        assert tokenizer(source) == b'{"a": 0}'


def test_single_files_need_no_config(small, models, recipe, tmp_path):
    for item, name in zip(recipe["models"], ("base", "a"), strict=True):
        item["model"] = tmp_path / f"{name}.safetensors"
        item["model"].write_bytes((models[name] / "model.safetensors").read_bytes())
    assert set(merging.folder_files(small.plan(recipe))) == {"README.md", "mergekit_config.yml"}


@pytest.mark.parametrize(
    ("content", "message"), [("{", "config.json is not valid JSON"), ("[]", "is not a JSON object")]
)
def test_a_damaged_config_is_named(small, recipe, tmp_path, content, message):
    broken = small.write_model(tmp_path / "broken", small.tensors(0))
    (broken / "config.json").write_text(content)
    recipe["models"][0]["model"] = broken
    with pytest.raises(ValueError, match=message):
        merging.folder_files(small.plan(recipe))
