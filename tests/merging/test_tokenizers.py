"""Test one vocabulary for models of different tokenizers, against rows looked up token by token."""

import json

import numpy as np
import pytest

from soups import merging
from soups.engine import BLOCK
from soups.merging.tokenizers import Row, Rule, parse_rule
from soups.merging.vocabulary import read_vocabulary

WIDTH = 3
# in this order: tokens of the model, then added ones; "pad" models have rows without a token
TOKENS = {
    "base": (["a", "b", "c"], ["<s>"], 4),
    "one": (["a", "c", "b"], ["<s>", "<one>"], 6),
    "two": (["a", "b", "d"], ["<two>", "<s>"], 5),
}
TABLES = ("model.embed_tokens.weight", "lm_head.weight")


def entry(token, number):
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {"id": number, "content": token, **flags}


def write(folder, small, tokens, added, rows, seed, tied=False):
    numbers = {token: number for number, token in enumerate([*tokens, *added])}
    rng = np.random.default_rng(seed)
    leaves = {name: rng.normal(size=(rows, WIDTH)).astype(np.float32) for name in TABLES}
    leaves["model.norm.weight"] = rng.normal(size=WIDTH).astype(np.float32)
    leaves["model.position_embeddings"] = rng.normal(size=(rows, WIDTH)).astype(np.float32)[:2]
    content = {
        "version": "1.0",
        "added_tokens": [entry(token, numbers[token]) for token in added],
        "model": {"type": "BPE", "vocab": {token: numbers[token] for token in tokens}, "merges": []},
    }
    small.write_model(folder, leaves, {"vocab_size": rows}, json.dumps(content))
    return numbers, leaves


@pytest.fixture
def different(small, tmp_path):
    """Return {name: (numbers of tokens, leaves)} of three models with other vocabularies, written to folders."""
    return {
        name: write(tmp_path / name, small, *given, seed) for seed, (name, given) in enumerate(TOKENS.items(), start=1)
    }


def recipe(tmp_path, weights=(0.5, 1.0, 2.0), base=True, **fields):
    entries = [
        {"model": str(tmp_path / name), "parameters": {"weight": weight}}
        for name, weight in zip(TOKENS, weights, strict=True)
    ]
    given = {"merge_method": "linear", "models": entries, "parameters": {"normalize": False}, **fields}
    return given | ({"base_model": str(tmp_path / "base")} if base else {})


def row_of(token, model, table, different, *, base, stand_in=None):
    """Return the row that a model has for a token of the output: the house rules, written out."""
    numbers, leaves = different[model]
    having = [name for name in TOKENS if token in different[name][0]]
    if model in having:
        return leaves[table][numbers[token]].astype(np.float64)
    if stand_in is not None:
        return stand_in
    having = ["base"] if base and "base" in having else having
    rows = [different[name][1][table][different[name][0][token]].astype(np.float64) for name in having]
    return np.mean(rows, axis=0) if rows else np.zeros(WIDTH)


def expected(tokens, table, different, weights=(0.5, 1.0, 2.0), base=True):
    return np.array(
        [
            sum(w * row_of(t, m, table, different, base=base) for w, m in zip(weights, TOKENS, strict=True))
            for t in tokens
        ]
    )


def near(array, wanted):
    np.testing.assert_allclose(array, wanted, rtol=0, atol=1e-6 * np.abs(wanted).max())


@pytest.mark.parametrize("base", [True, False])
@pytest.mark.parametrize(
    ("source", "tokens"),
    [
        ("base", ["a", "b", "c", "<s>"]),
        ("one", ["a", "c", "b", "<s>", "<one>"]),
        ("union", ["a", "b", "c", "<s>", "<one>", "d", "<two>"]),
    ],
)
def test_rows_follow_the_tokens(different, small, tmp_path, source, tokens, base):
    named = str(tmp_path / source) if source in TOKENS and source != "base" else source
    merged = small.merge(recipe(tmp_path, base=base, tokenizer_source=named), tmp_path / "out", files=True)
    for table in TABLES:
        assert merged[table].dtype == np.float32
        near(merged[table], expected(tokens, table, different, base=base))
    norms = [leaves["model.norm.weight"].astype(np.float64) for _, leaves in different.values()]
    near(merged["model.norm.weight"], 0.5 * norms[0] + norms[1] + 2 * norms[2])
    assert merged["model.position_embeddings"].shape == (2, WIDTH)
    there = read_vocabulary(tmp_path / "out")
    assert there.tokens == {token: number for number, token in enumerate(tokens)}
    assert json.loads((tmp_path / "out" / "config.json").read_text())["vocab_size"] == len(tokens)


def test_a_union_keeps_what_the_tokens_are_like(different, small, tmp_path):
    config = {"added_tokens_decoder": {"3": {"content": "<s>", "special": True}}, "model_max_length": 8}
    for name in TOKENS:
        (tmp_path / name / "tokenizer_config.json").write_text(json.dumps(config if name == "base" else {}))
    (tmp_path / "base" / "added_tokens.json").write_text('{"<s>": 3}')
    files = merging.folder_files(small.plan(recipe(tmp_path, tokenizer_source="union")))
    (tmp_path / "base" / "vocab.json").write_text("{}")
    (note,) = merging.folder_notes(small.plan(recipe(tmp_path, tokenizer_source="union")))
    assert note == "the output's tokens are those of its tokenizer.json; vocab.json has one model's"
    content = json.loads(files["tokenizer.json"])
    assert content["model"] == json.loads((tmp_path / "base" / "tokenizer.json").read_text())["model"]
    assert [(x["content"], x["id"], x["special"]) for x in content["added_tokens"]] == [
        *[("<s>", 3, True), ("<one>", 4, True)],
        *[("d", 5, False), ("<two>", 6, True)],  # a token of another model's own becomes an added one
    ]
    decoder = json.loads(files["tokenizer_config.json"])
    assert decoder["model_max_length"] == 8 and decoder["added_tokens_decoder"]["6"]["content"] == "<two>"
    assert json.loads(files["added_tokens.json"]) == {"<s>": 3, "<one>": 4, "d": 5, "<two>": 6}


def test_tokens_have_sources_of_their_own(different, small, tmp_path):
    one, two = str(tmp_path / "one"), str(tmp_path / "two")
    tokens = {
        "<one>": {"source": {"kind": "zero"}},
        "<two>": {"source": {"kind": "model_token", "model": one, "token": "b"}},
        "d": {"source": two, "force": True},
        "<s>": {"source": {"kind": "model_token", "model": one, "token_id": 4}, "force": True},
    }
    block = {"source": "union", "tokens": tokens, "pad_to_multiple_of": 8}
    merged = small.merge(recipe(tmp_path, tokenizer=block), tmp_path / "out", files=True)
    order = ["a", "b", "c", "<s>", "<one>", "d", "<two>"]
    for table in TABLES:
        rows = {name: leaves[table].astype(np.float64) for name, (_, leaves) in different.items()}
        wanted = expected(order, table, different)
        wanted[order.index("<one>")] = 1.0 * rows["one"][4]
        wanted[order.index("<two>")] = (0.5 + 1.0) * rows["one"][2] + 2.0 * rows["two"][3]
        wanted[order.index("d")] = 3.5 * rows["two"][2]
        wanted[order.index("<s>")] = 3.5 * rows["one"][4]
        near(merged[table], np.concatenate([wanted, wanted.mean(axis=0)[None]]))
    assert json.loads((tmp_path / "out" / "config.json").read_text())["vocab_size"] == 8


@pytest.mark.parametrize("source", ["base", "union", "one"])
def test_tokens_that_no_vocabulary_has_are_added_with_the_rows_of_their_rules(different, small, tmp_path, source):
    like = {"kind": "model_token", "model": str(tmp_path / "two"), "token": "d"}
    tokens = {"<new>": {"source": like}, "<zero>": {"source": {"kind": "zero"}}}
    block = {"source": str(tmp_path / "one") if source == "one" else source, "tokens": tokens}
    made = small.plan(recipe(tmp_path, tokenizer=block))
    origin = tmp_path / ("one" if source == "one" else "base")
    note = f"added to the vocabulary of {origin}, because the recipe has a rule for them: '<new>', '<zero>'"
    assert note in made.notes
    merged = small.merge(recipe(tmp_path, tokenizer=block), tmp_path / "out", files=True)
    before = {"base": 4, "one": 5, "union": 7}[source]
    there = read_vocabulary(tmp_path / "out")
    assert there.size == before + 2 and (there.tokens["<new>"], there.tokens["<zero>"]) == (before, before + 1)
    for table in TABLES:
        near(merged[table][before], 3.5 * different["two"][1][table][2].astype(np.float64))
        assert not merged[table][before + 1].any()


def test_a_tied_table_is_changed_once(small, tmp_path, write_torch):
    for name, (tokens, added, rows) in TOKENS.items():
        _, leaves = write(tmp_path / name, small, tokens, added, rows, 1)
        (tmp_path / name / "model.safetensors").unlink()
        del leaves["lm_head.weight"]
        write_torch(tmp_path / name / "pytorch_model.bin", leaves, {"lm_head.weight": "model.embed_tokens.weight"})
    merged = small.merge(recipe(tmp_path, tokenizer_source="union"), tmp_path / "out")
    assert merged["model.embed_tokens.weight"].shape == (7, WIDTH) and "lm_head.weight" not in merged


def test_a_merge_with_another_vocabulary_can_be_verified_and_says_its_memory(different, small, tmp_path):
    made = small.plan(recipe(tmp_path, tokenizer_source="union"))
    merging.merge_to_folder(made, tmp_path / "out", files=merging.folder_files(made))
    assert merging.verify_output(small.plan(recipe(tmp_path, tokenizer_source="union")), tmp_path / "out") == []
    tables = 3 * (2 * 4 * 7 * WIDTH)  # of each model two arrays of the union's rows
    assert made.memory(1) == made.program(1) + 4 * BLOCK * (3 * 4 + 4) + tables


def test_equal_vocabularies_change_nothing(small, tmp_path):
    leaves = {name: write(tmp_path / name, small, *TOKENS["one"], seed)[1] for seed, name in enumerate(TOKENS)}
    (tmp_path / "two" / "tokenizer_config.json").write_text('{"model_max_length": 9}')
    for source in ("base", "union", str(tmp_path / "two"), None):
        made = small.plan(recipe(tmp_path, tokenizer_source=source))
        assert not any(hasattr(checkpoint, "changed") for checkpoint in made.checkpoints.values())
        assert made.write_bytes == sum(leaf.nbytes for leaf in leaves["base"].values())
        files = merging.folder_files(made)
        assert json.loads(files["config.json"])["vocab_size"] == 6  # with the row that no token has


# --- Without a rule ---


def test_other_tokens_of_the_same_number_need_a_rule(small, tmp_path):
    for name, tokens in {"base": ["a", "b", "c"], "one": ["a", "b"], "two": ["a", "d", "c"]}.items():
        write(tmp_path / name, small, tokens, [], 4, 1)
    with pytest.raises(ValueError, match=r"the vocabulary of .*two is not that of .*base: 1 of its numbers") as error:
        small.plan(recipe(tmp_path))
    assert "1 for 'd' instead of 'b'" in str(error.value) and "tokenizer_source: base, union" in str(error.value)


def test_tokens_in_rows_that_others_do_not_use_need_none(small, tmp_path):
    for name, tokens in {"base": ["a", "b"], "one": ["a", "b", "c"], "two": ["a"]}.items():
        write(tmp_path / name, small, tokens, [], 4, 1)
    assert small.plan(recipe(tmp_path)).tokenizer is None


def test_tables_of_other_sizes_need_a_rule(different, small, tmp_path):
    for name in TOKENS:
        (tmp_path / name / "tokenizer.json").unlink()
    with pytest.raises(
        ValueError, match=r"shape \[6, 3\] instead of \[4, 3\]; tokenizer_source: base, union or a model"
    ):
        small.plan(recipe(tmp_path))


# --- Mistakes ---


def test_tokenizers_that_cannot_be_understood_are_named(different, small, tmp_path):
    def refused(message, **fields):
        with pytest.raises(ValueError, match=message):
            small.plan(recipe(tmp_path, **{"tokenizer_source": "union", **fields}))

    tokens = {"<no>": {"source": str(tmp_path / "one")}}
    refused("the row of '<no>': .*one has no token '<no>'", tokenizer_source=None, tokenizer={"tokens": tokens})
    tokens = {"a": {"source": {"kind": "model_token", "model": str(tmp_path / "one"), "token": "d"}, "force": True}}
    refused("the row of 'a': .*one has no token 'd'", tokenizer_source=None, tokenizer={"tokens": tokens})
    tokens["a"]["source"] = {"kind": "model_token", "model": str(tmp_path / "one"), "token_id": 5}
    refused("the row of 'a': .*one has no token number 5", tokenizer_source=None, tokenizer={"tokens": tokens})
    tokens["a"]["source"] = str(tmp_path / "one")
    (tmp_path / "one" / "config.json").write_text('{"vocab_size": 77}')
    refused(r"one has no tensor with a row for each of the tokens that its config.json counts")
    (tmp_path / "one" / "config.json").write_text("{}")
    refused(r"one has no vocab_size in its config.json")
    (tmp_path / "one" / "tokenizer.json").write_text('{"model": {}}')
    refused(r"one/tokenizer.json has no model with a vocab")
    for tokens in (
        '{"model": {"vocab": [3]}}',
        '{"model": {"vocab": {}}, "added_tokens": [3]}',
    ):
        (tmp_path / "one" / "tokenizer.json").write_text(tokens)
        refused(r"one/tokenizer.json has tokens that are not as Hugging Face writes them")
    decoder = {"added_tokens_decoder": {"x": {"content": "a"}}}
    (tmp_path / "one" / "tokenizer_config.json").write_text(json.dumps(decoder))
    for tokens in ('{"model": {"vocab": {}}}', '{"model": {"vocab": {"a": "x"}}}'):
        (tmp_path / "one" / "tokenizer.json").write_text(tokens)
        refused(r"one/tokenizer.json has 'x' as the number of the token 'a'")
    (tmp_path / "one" / "tokenizer.json").write_text("[]")
    refused(r"one/tokenizer.json is not a JSON object")
    (tmp_path / "one" / "tokenizer.json").write_text("{")
    refused(r"one/tokenizer.json is not valid JSON")
    (tmp_path / "one" / "tokenizer.json").unlink()
    refused(r"no tokenizer.json, vocab.json, vocab.txt in .*one, so the numbers of its tokens are not known")


def test_the_vocabulary_of_a_unigram_model_is_a_list(tmp_path):
    content = {"model": {"type": "Unigram", "vocab": [["<unk>", 0.0], ["a", -1.5]]}, "added_tokens": [entry("<s>", 2)]}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    (tmp_path / "tokenizer_config.json").write_text('{"added_tokens_decoder": {"3": {"content": "<t>"}}}')
    found = read_vocabulary(tmp_path)
    assert found.tokens == {"<unk>": 0, "a": 1, "<s>": 2, "<t>": 3} and found.size == 4


def test_rules():
    models = ["a", "b"]
    assert parse_rule({}, models, "r") is None
    assert parse_rule({"tokenizer_source": "b"}, models, "r") == Rule("b")
    assert parse_rule({"tokenizer": {}}, models, "r") == Rule("union")
    zero, other = {"source": {"kind": "zero"}}, {"source": {"kind": "model_token", "model": "b", "token_id": 3}}
    block = {"source": "base", "tokens": {"x": zero, "y": other, "z": {"source": "a", "force": True}}}
    assert parse_rule({"tokenizer": block}, models, "r").rows == {
        **{"x": Row(), "y": Row("b", 3), "z": Row("a", None, True)}
    }


def token(value):
    return {"tokenizer": {"tokens": {"x": value}}}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"tokenizer_source": "unoin"}, r"unknown tokenizer_source of r 'unoin' \(did you mean 'union'\?\)"),
        ({"tokenizer_source": "base", "tokenizer": {}}, "tokenizer_source and tokenizer are two ways to say the same"),
        ({"tokenizer": "union"}, "tokenizer of r must be a mapping, not 'union'"),
        ({"tokenizer": {"sources": "base"}}, r"unknown field of tokenizer of r 'sources' \(did you mean 'source'\?\)"),
        ({"tokenizer": {"pad_to_multiple_of": 1.5}}, "pad_to_multiple_of must be a whole number above 0, not 1.5"),
        ({"tokenizer": {"tokens": ["x"]}}, "tokens must be a mapping from tokens to their sources"),
        (token("a"), "'x' must be a mapping with source, not 'a'"),
        (token({"source": "a", "forced": True}), r"'forced' \(did you mean 'force'\?\)"),
        (token({"source": "a", "force": 1}), "force must be true or false, not 1"),
        (token({"source": "c"}), "unknown source of tokenizer of r: 'x' 'c'"),
        (
            token({"source": {"kind": "zeros"}}),
            r"unknown kind of tokenizer of r: 'x' 'zeros' \(did you mean 'zero'\?\)",
        ),
        (token({"source": {"kind": "model_token", "model": "a"}}), "give either token or token_id"),
        (
            token({"source": {"kind": "model_token", "model": "a", "token": ["x"]}}),
            "token must be a text, not ",
        ),
        (token({"source": {"kind": "model_token", "model": "a", "token_id": {}}}), "token_id must be a whole number"),
        (token({"source": {"kind": "model_token", "model": "a", "token_id": True}}), "token_id must be a whole number"),
        (token({"source": {"kind": "model_token", "model": "c", "token": "y"}}), "unknown model of tokenizer of r"),
    ],
)
def test_rules_that_are_none_are_named(given, message):
    with pytest.raises(ValueError, match=message):
        parse_rule(given, ["a", "b"], "r")


def test_a_union_leaves_out_tokens_without_a_row(small, tmp_path):
    base, _ = write(tmp_path / "base", small, ["a", "b"], ["<s>"], 3, 1)
    write(tmp_path / "more", small, ["a", "b"], ["<s>", "<unused>"], 3, 2)
    entries = [{"model": str(tmp_path / name), "parameters": {"weight": 1}} for name in ("base", "more")]
    recipe = {"merge_method": "linear", "models": entries, "tokenizer_source": "union"}
    made = small.plan(recipe)
    assert "the union leaves out tokens without a row in any model: '<unused>'" in made.notes
    assert {output.name: output.shape for output in made.outputs}["lm_head.weight"] == (3, WIDTH)
    merging.merge_to_folder(made, tmp_path / "out", files=merging.folder_files(made))
    assert read_vocabulary(tmp_path / "out").tokens == base
    rules = {"<unused>": {"source": {"kind": "zero"}}}
    ruled = small.plan(recipe | {"tokenizer_source": None, "tokenizer": {"source": "union", "tokens": rules}})
    assert {output.name: output.shape for output in ruled.outputs}["lm_head.weight"] == (4, WIDTH)
