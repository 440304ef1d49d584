"""Test tensors that are one by a model's class: written once, and shared by those that lack a head."""

import numpy as np
import pytest

from soups.formats import open_checkpoint, write_safetensors


def test_tied_tensors_are_written_once_whichever_name_a_file_keeps(small, tmp_path, write_torch):
    base, member = small.tensors(0), small.tensors(1)
    for leaves in (base, member):
        del leaves["lm_head.weight"]
    write_torch(tmp_path / "base.pt", base, {"lm_head.weight": "model.embed_tokens.weight"})
    kept = {"lm_head.weight": member["model.embed_tokens.weight"]} | member
    del kept["model.embed_tokens.weight"]
    write_torch(tmp_path / "a.pt", kept, {"model.embed_tokens.weight": "lm_head.weight"})
    recipe = {
        "merge_method": "linear",
        "models": [{"model": tmp_path / f"{x}.pt", "parameters": {"weight": 1}} for x in ("base", "a")],
    }
    made = small.plan(recipe)
    assert made.aliases == {"lm_head.weight": "model.embed_tokens.weight"}
    assert made.read_bytes == 2 * made.write_bytes == 2 * sum(leaf.nbytes for leaf in base.values())
    small.merge(recipe, tmp_path / "out")
    there = open_checkpoint(tmp_path / "out")
    assert there.aliases == made.aliases and set(there.leaves) == set(base)
    expected = (base["model.embed_tokens.weight"] + member["model.embed_tokens.weight"]) * np.float32(0.5)
    np.testing.assert_allclose(there.read("lm_head.weight"), expected, rtol=1e-6)


def test_a_member_that_is_not_tied_as_the_base_is_named(small, tmp_path, write_torch, models):
    base = small.tensors(0)
    del base["lm_head.weight"]
    write_torch(tmp_path / "base.pt", base, {"lm_head.weight": "model.embed_tokens.weight"})
    recipe = {"merge_method": "linear", "models": [{"model": m} for m in (tmp_path / "base.pt", models["a"])]}
    with pytest.raises(ValueError, match=r"\+ .*a: lm_head.weight is extra: .*base.pt has it tied to model.embed_tok"):
        small.plan(recipe | {"parameters": {"weight": 1}})


HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


def test_a_head_that_equals_what_another_ties_it_to_does_not_block(small, tmp_path, write_torch):
    base, member = small.tensors(0), small.tensors(1)
    del base[HEAD]
    write_torch(tmp_path / "base.pt", base, {HEAD: EMBEDDING})
    member[HEAD] = member[EMBEDDING]
    model = small.write_model(tmp_path / "a", member)
    recipe = {"merge_method": "linear", "models": [{"model": m} for m in (tmp_path / "base.pt", model)]}
    made = small.plan(recipe | {"parameters": {"weight": 1}})
    assert made.aliases == {HEAD: EMBEDDING}
    assert f"left out of {model}, where it equals what {tmp_path / 'base.pt'} ties it to: '{HEAD}'" in made.notes


@pytest.mark.parametrize("config", [{"tie_word_embeddings": True}, {}, None], ids=["said", "by default", "no config"])
@pytest.mark.parametrize("lacks", [0, 1])
def test_a_head_that_one_model_lacks_is_its_embedding(small, tmp_path, config, lacks):
    models = [small.tensors(seed) for seed in (1, 2)]
    for leaves in models:
        leaves[HEAD] = leaves[EMBEDDING]
    del models[lacks][HEAD]
    for index, leaves in enumerate(models):
        small.write_model(tmp_path / f"m{index}", leaves, config)
        if config is None:
            (tmp_path / f"m{index}" / "config.json").unlink()
    recipe = {"merge_method": "linear", "models": [{"model": tmp_path / f"m{i}"} for i in (0, 1)]}
    merged = small.merge(recipe | {"parameters": {"weight": 1}}, tmp_path / "out")
    expected = np.mean([leaves[EMBEDDING].astype(np.float64) for leaves in models], axis=0)
    np.testing.assert_allclose(merged[EMBEDDING], expected, rtol=1e-6, atol=1e-7)
    assert (HEAD in merged) == (lacks == 1)
    if lacks == 1:
        np.testing.assert_array_equal(merged[HEAD], merged[EMBEDDING])


def test_a_head_of_its_own_is_missing_where_the_config_says_so(small, tmp_path):
    models = [small.tensors(seed) for seed in (1, 2)]
    models[1].pop(HEAD)
    paths = [small.write_model(tmp_path / f"m{i}", x, {"tie_word_embeddings": False}) for i, x in enumerate(models)]
    recipe = {"merge_method": "linear", "models": [{"model": x, "parameters": {"weight": 1}} for x in paths]}
    with pytest.raises(ValueError, match=f"{HEAD} is missing"):
        small.plan(recipe)


def test_tensors_that_share_elements_are_written_each_unless_the_class_ties_them(small, tmp_path, write_torch):
    leaves = {EMBEDDING: np.ones((4, 2), np.float32), "blocks.0.w": np.ones((2, 2), np.float32)}
    write_torch(tmp_path / "a.pt", leaves, {HEAD: EMBEDDING, "blocks.1.w": "blocks.0.w"})
    recipe = {"merge_method": "passthrough", "models": [tmp_path / "a.pt"]}
    made = small.plan(recipe)
    assert made.aliases == {HEAD: EMBEDDING} and "'blocks.1.w'" in made.notes[0]
    merged = small.merge(recipe, tmp_path / "out")
    assert set(merged) == {*leaves, "blocks.1.w"}
    np.testing.assert_array_equal(merged["blocks.1.w"], merged["blocks.0.w"])


def test_tied_layers_survive_slices(small, tmp_path):
    layers = {f"layers.{i}.w": np.full((2, 2), i, np.float32) for i in (0, 1)}
    path = tmp_path / "model"
    path.mkdir()
    write_safetensors(path / "model.safetensors", layers, {"layers.2.w": "layers.0.w"})
    source = {"model": path, "layer_range": [1, 3]}
    merged = small.merge({"merge_method": "passthrough", "slices": [{"sources": [source]}]}, tmp_path / "out")
    assert {name: array[0, 0] for name, array in merged.items()} == {"layers.0.w": 1, "layers.1.w": 0}
