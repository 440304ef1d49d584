"""Test what a merged folder holds beside its tensors: config, tokenizer, recipe, model card."""

import dataclasses
import json
import os

import numpy as np
import pytest
import yaml

from soups import merging
from soups.formats import write_safetensors
from soups.merging.tokenizers import Aligned


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
    assert f"```yaml\n{text}```" in found["README.md"].decode()


def test_the_config_counts_the_layers_of_slices(small, models):
    slices = [{"sources": [{"model": models["a"], "layer_range": span}]} for span in ([0, 2], [1, 3], [0, 3])]
    files = merging.folder_files(small.plan({"merge_method": "passthrough", "slices": slices}))
    assert json.loads(files["config.json"])["num_hidden_layers"] == 7


def test_a_published_recipe_has_its_paper_on_the_card(small, models):
    recipe = {"vocabulary": "published", "merge_method": "ties", "base_model": models["base"], "models": [models["a"]]}
    files = merging.folder_files(small.plan(recipe))
    assert "TIES-Merging: resolving interference" in small.card(small.plan(recipe))
    assert yaml.safe_load(files["recipe.yml"]) == small.plain(recipe)


def test_the_tokenizer_is_that_of_the_base_or_of_the_model_named(small, models, recipe):
    def tokenizer(source):
        return merging.folder_files(small.plan(recipe | {"tokenizer_source": source}))["tokenizer.json"].read_bytes()

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


# --- All other files of the base ---

BESIDE = {
    **{"modules.json": "[]", "1_Pooling/config.json": "{}", "config_sentence_transformers.json": "{}"},
    **{"modeling_own.py": "x = 1\n", "own/inner/code.py": "", "LICENSE": "free", "processor_config.json": "{}"},
    **{"preprocessor_config.json": "{}", "generation_config.json": "{}", "chat_template.jinja": "{{ x }}"},
    **{"additional_chat_templates/tool.jinja": "{{ y }}", "spiece.model": "\x0a\x05\x0a\x03<s>", "vocab.txt": "a\n"},
}
LEFT_OUT = [
    *["pytorch_model.bin", "model.onnx", "tf_model.h5", "flax_model.msgpack", "model-q4.gguf", "optimizer.pt"],
    *["rng_state.pth", "training_args.bin", "trainer_state.json", "2_Dense/model.safetensors", ".gitattributes"],
    *["events.out.tfevents.1", "adapter_config.json", "original/consolidated.00.pth"],
]
PASSED = [".git/HEAD", ".cache/x", "__pycache__/x.pyc", "checkpoint-500/config.json", "onnx/model.json", "runs/x"]


def fill(folder, names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(BESIDE.get(name, "x"))


@pytest.fixture
def base(small, recipe, tmp_path):
    """Return the folder of a base to put files into, which `recipe` names."""
    recipe["models"][0]["model"] = small.write_model(tmp_path / "own", small.tensors(0))
    return tmp_path / "own"


def test_other_files_of_the_base_are_copied_and_weights_are_not(small, recipe, base, tmp_path):
    fill(base, [*BESIDE, *LEFT_OUT, *PASSED])
    plan = small.plan(recipe)
    merging.merge_to_folder(plan, tmp_path / "out", files=merging.folder_files(plan))
    there = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file()}
    made = {"README.md", "config.json", "merge.json", "mergekit_config.yml", "model.safetensors", "tokenizer.json"}
    assert there == made | set(BESIDE)
    for name, content in BESIDE.items():
        assert (tmp_path / "out" / name).read_text() == content
    (note,) = merging.folder_notes(plan)
    assert note.startswith(f"not copied from {base}: ")
    expected = {*LEFT_OUT, *(f"{name.partition('/')[0]}/" for name in PASSED)}
    assert len(expected) == 20 and set(note.partition(": ")[2].split(", ")) == expected


def test_what_a_merge_writes_itself_is_not_taken_from_the_base(small, recipe, base):
    fill(base, ["README.md", "merge.json", "recipe.yml", "mergekit_config.yml"])
    plan = small.plan(recipe)
    files = merging.folder_files(plan)
    assert set(files) == {"README.md", "config.json", "mergekit_config.yml", "tokenizer.json"}
    assert "A merge of 2 models" in small.card(plan) and files["mergekit_config.yml"] == plan.job.text
    assert merging.folder_notes(plan) == []


def test_shards_and_their_index_are_no_other_files(small, models, recipe, tmp_path):
    small.merge({"merge_method": "passthrough", "models": [models["a"]]}, tmp_path / "sharded", shard_bytes=300)
    recipe["models"][0]["model"] = tmp_path / "sharded"
    plan = small.plan(recipe)
    assert set(merging.folder_files(plan)) == {"README.md", "mergekit_config.yml"}
    assert merging.folder_notes(plan) == []


def test_links_are_followed_inside_the_folder_and_to_blobs_of_the_hub_only(small, recipe, tmp_path):
    snapshot = tmp_path / "models--own--model" / "snapshots" / "main"
    small.write_model(snapshot, small.tensors(0))
    recipe["models"][0]["model"] = snapshot
    blobs = snapshot.parent.parent / "blobs"
    blobs.mkdir()
    (blobs / ("0" * 40)).write_text("blob")
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "key").write_text("key")
    fill(snapshot, ["LICENSE"])
    links = {"a.txt": snapshot / "LICENSE", "b.txt": blobs / ("0" * 40), "c.txt": tmp_path / "secret" / "key"}
    links |= {"d.txt": tmp_path / "nothing", "e": tmp_path / "secret", "f": snapshot}
    for name, target in links.items():
        (snapshot / name).symlink_to(target)
    os.mkfifo(snapshot / "pipe")
    plan = small.plan(recipe)
    merging.merge_to_folder(plan, tmp_path / "out", files=merging.folder_files(plan))
    found = small.content(tmp_path / "out")
    assert found["a.txt"] == b"free" and found["b.txt"] == b"blob" and not (tmp_path / "out" / "a.txt").is_symlink()
    assert not {"c.txt", "d.txt", "e", "f", "pipe"} & set(found)
    (note,) = merging.folder_notes(plan)
    out = "(a link that leads out of the folder)"
    for text in (f"c.txt {out}", f"d.txt {out}", "e/ (a link)", "f/ (a link)", "pipe (not a file)"):
        assert text in note


def test_pointers_and_names_that_no_one_can_print_are_said(small, recipe, base):
    (base / "preprocessor.dat").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n")
    (base / "\x1b[31m.bin").write_text("")
    (note,) = merging.folder_notes(small.plan(recipe))
    assert "preprocessor.dat (a Git LFS pointer: run git lfs pull)" in note and "\x1b" not in note and "x1b" in note


def test_the_tokenizer_of_another_model_is_copied_whole_and_nothing_else_of_it(small, models, recipe, base, tmp_path):
    other = small.write_model(tmp_path / "other", small.tensors(1), tokenizer='{"b": 0}')
    recipe["models"][1]["model"] = other
    fill(base, ["vocab.txt", "LICENSE", "chat_template.jinja"])
    fill(other, ["spiece.model", "generation_config.json", "tokenization_own.py"])
    plan = small.plan(recipe | {"insist": True})
    plan = dataclasses.replace(plan, tokenizer=Aligned(str(other), {}, 0))
    files = merging.folder_files(plan)
    assert {name: file.parent for name, file in files.items() if hasattr(file, "parent")} == {
        **{"tokenizer.json": other, "spiece.model": other, "tokenization_own.py": other, "LICENSE": base}
    }


def test_the_tokenizer_of_an_adapter_goes_before_its_models(small, models, tmp_path):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 1, "lora_alpha": 1}')
    module = "base_model.model.model.layers.0.self_attn.q_proj"
    halves = {f"{module}.lora_A.weight": np.ones((1, 6)), f"{module}.lora_B.weight": np.ones((6, 1))}
    write_safetensors(adapter / "adapter_model.safetensors", halves)
    recipe = {"merge_method": "passthrough", "models": [{"model": f"{models['a']}+{adapter}"}]}
    assert merging.folder_files(small.plan(recipe))["tokenizer.json"].parent == models["a"]
    fill(adapter, ["vocab.txt", "README.md"])
    files = merging.folder_files(small.plan(recipe))
    assert files["vocab.txt"].parent == adapter and "tokenizer.json" not in files and "config.json" in files


def test_the_folder_of_a_single_file_without_config_is_not_searched(small, models, recipe, tmp_path):
    recipe["models"][0]["model"] = tmp_path / "x.safetensors"
    recipe["models"][0]["model"].write_bytes((models["base"] / "model.safetensors").read_bytes())
    fill(tmp_path, ["letter.txt"])
    plan = small.plan(recipe)
    assert set(merging.folder_files(plan)) == {"README.md", "mergekit_config.yml"}


@pytest.mark.parametrize("direct", [True, False])
def test_files_of_an_orbax_checkpoint_are_its_tensors(direct, small, models, recipe, tmp_path):
    made = small.plan({"merge_method": "passthrough", "models": [models["a"]]})
    merging.merge_to_orbax(made, tmp_path / "steps" / "1")
    (tmp_path / "steps" / "1" / "beside").write_text("")
    path = tmp_path / "steps" / ("1" if direct else "")
    recipe["models"][0]["model"] = recipe["models"][1]["model"] = str(path)
    plan = merging.plan(merging.parse_recipe(yaml.safe_dump(small.plain(recipe))), merging.open_model)
    assert set(merging.folder_files(plan)) == {"README.md", "mergekit_config.yml"}
