"""Test that tokens are read from whatever file has them, and compared before rows are summed."""

import json
import shutil

import numpy as np
import pytest

from soups import merging
from soups.formats import write_safetensors
from soups.merging.vocabulary import read_vocabulary

TOKENS = ["<unk>", "a", "b", "▁c"]


def varint(number):
    made = b""
    while number > 127:
        made, number = made + bytes([number & 127 | 128]), number >> 7
    return made + bytes([number])


def field(number, content):
    return varint(number << 3 | 2) + varint(len(content)) + content


def pieces(tokens):
    """Return the bytes of a model of sentencepiece: pieces with text, score and kind, then settings of its trainer."""
    scored = [field(1, token.encode()) + b"\x15\0\0\x80\xbf" + b"\x18\x01" for token in tokens]
    return b"".join(field(1, piece) for piece in scored) + field(2, b"\x0a\x03abc") + field(3, b"x" * 300)


def numbered(tokens):
    return json.dumps({token: number for number, token in enumerate(tokens)}).encode()


def hugging_face(tokens):
    return json.dumps({"model": {"vocab": json.loads(numbered(tokens))}, "added_tokens": []}).encode()


KINDS = {
    "tokenizer.json": hugging_face,
    "vocab.json": numbered,
    "vocab.txt": lambda tokens: "".join(f"{token}\n" for token in tokens).encode(),
    "tokenizer.model": pieces,
    "spiece.model": pieces,
    "spm.model": pieces,
    "sentencepiece.bpe.model": pieces,
}


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_are_read_from_any_file(tmp_path, kind):
    (tmp_path / kind).write_bytes(KINDS[kind](TOKENS))
    (tmp_path / "tokenizer_config.json").write_text('{"added_tokens_decoder": {"5": {"content": "<s>"}}}')
    if kind != "tokenizer.json":
        (tmp_path / "added_tokens.json").write_text('{"<t>": 6}')
    expected = {token: number for number, token in enumerate(TOKENS)} | {"<s>": 5}
    assert read_vocabulary(tmp_path).tokens == expected | ({} if kind == "tokenizer.json" else {"<t>": 6})


@pytest.fixture
def planned(small, tmp_path):
    """Return a function that plans a merge of models with these files instead of a tokenizer.json."""

    def make(of_base, of_a, **more):
        for name, files in (("base", of_base), ("a", of_a)):
            shutil.rmtree(tmp_path / name, ignore_errors=True)
            small.write_model(tmp_path / name, small.tensors(name == "a"), {"vocab_size": 10})
            (tmp_path / name / "tokenizer.json").unlink()
            for file, content in files.items():
                (tmp_path / name / file).write_bytes(content)
        members = [{"model": tmp_path / name, "parameters": {"weight": 1}} for name in ("base", "a")]
        return small.plan({"merge_method": "linear", "models": members, **more})

    return make


@pytest.mark.parametrize("kind", KINDS)
def test_other_tokens_are_refused_whatever_file_has_them(planned, kind):
    swapped = ["<unk>", "b", "a", "▁c"]
    with pytest.raises(
        ValueError, match=r"vocabulary of .*a is not that of .*base: 2 of its numbers stand for other"
    ) as e:
        planned({kind: KINDS[kind](TOKENS)}, {kind: KINDS[kind](swapped)})
    assert "1 for 'b' instead of 'a'" in str(e.value) and "tokenizer_source: base, union" in str(e.value)
    assert "--insist" in str(e.value)


@pytest.mark.parametrize("kind", KINDS)
def test_further_tokens_of_one_model_are_in_rows_of_their_own_which_is_said(planned, tmp_path, kind):
    (note,) = planned({kind: KINDS[kind](TOKENS)}, {kind: KINDS[kind]([*TOKENS, "d"])}).notes
    assert note == (
        f"the tokenizer of {tmp_path / 'base'}, which the output gets, lacks 1 tokens of {tmp_path / 'a'}, "
        "such as 'd': tokenizer_source: union keeps them"
    )
    assert planned({kind: KINDS[kind]([*TOKENS, "d"])}, {kind: KINDS[kind](TOKENS)}).notes == ()


@pytest.mark.parametrize("other", [kind for kind in KINDS if kind not in ("tokenizer.json", "sentencepiece.bpe.model")])
def test_the_same_tokens_in_other_files_are_the_same(planned, other):
    assert planned({"tokenizer.json": hugging_face(TOKENS)}, {other: KINDS[other](TOKENS)}).notes == ()


def test_rows_of_fairseq_are_compared_with_their_like_only(planned):
    with pytest.raises(ValueError, match="number their rows in different ways"):
        planned({"tokenizer.json": hugging_face(TOKENS)}, {"sentencepiece.bpe.model": pieces(TOKENS)})


def test_insisting_merges_row_by_row_and_says_so(planned):
    made = planned({"vocab.txt": b"a\nb\n"}, {"vocab.txt": b"b\na\n"}, insist=True)
    assert len(made.notes) == 1 and "merged because of insist, although the vocabulary of" in made.notes[0]


@pytest.mark.parametrize("file", ["tekken.json", "qwen.tiktoken", "source.spm", "vocab-src.json", "dict.txt"])
def test_files_that_are_not_understood_must_be_equal(planned, small, tmp_path, file):
    assert planned({file: b"{}1"}, {file: b"{}1"}).notes == ()
    (tmp_path / "a" / file).write_bytes(b"{}2")
    members = [{"model": tmp_path / name, "parameters": {"weight": 1}} for name in ("base", "a")]
    with pytest.raises(ValueError, match=rf"cannot be compared: .*{file} does not tell them"):
        small.plan({"merge_method": "linear", "models": members})


def test_files_that_are_not_understood_say_the_same_whatever_else_their_folders_have(planned):
    files = {"tekken.json": b"{}1"}
    assert planned(files | {"tokenizer_config.json": b'{"a": 1}'}, files | {"tokenizer_config.json": b"{}"}).notes == ()


def test_models_are_compared_with_each_other_not_only_with_the_first(planned, small, tmp_path):
    planned({"vocab.txt": b"a\n"}, {"vocab.txt": b"a\nb\n"})
    third = small.write_model(tmp_path / "third", small.tensors(2), {"vocab_size": 10})
    (third / "tokenizer.json").unlink()
    (third / "vocab.txt").write_bytes(b"a\nc\n")
    members = [{"model": tmp_path / name, "parameters": {"weight": 1}} for name in ("base", "a", "third")]
    with pytest.raises(ValueError, match=r"third is not that of .*a: 1 of its numbers .* 1 for 'c' instead of 'b'"):
        small.plan({"merge_method": "linear", "models": members})


def test_the_tokens_of_an_adapter_lie_beside_it(planned, small, tmp_path):
    planned({"vocab.txt": b"a\n"}, {"vocab.txt": b"a\n"})
    config = {"peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": ["q_proj"]}
    for name in "xy":
        (tmp_path / name).mkdir()
        (tmp_path / name / "adapter_config.json").write_text(json.dumps(config))
        module = "base_model.model.model.layers.0.self_attn.q_proj"
        arrays = {f"{module}.lora_A.weight": np.ones((1, 6)), f"{module}.lora_B.weight": np.ones((6, 1))}
        write_safetensors(tmp_path / name / "adapter_model.safetensors", arrays)
        (tmp_path / name / "vocab.txt").write_text(f"a\n{name}\n")
    members = [{"model": f"{tmp_path / 'base'}+{tmp_path / name}", "parameters": {"weight": 1}} for name in "xy"]
    with pytest.raises(ValueError, match=r"1 of its numbers stand for other tokens, 1 for 'y' instead of 'x'"):
        small.plan({"merge_method": "linear", "models": members})


def test_models_without_tokenizer_are_taken_as_they_are_and_named(planned, tmp_path):
    (note,) = planned({"vocab.txt": b"a\n"}, {}).notes
    assert note == f"no tokenizer to compare with that of {tmp_path / 'base'}: {tmp_path / 'a'}"


def test_models_without_any_tokenizer_need_none(planned):
    assert planned({}, {}).notes == ()


DAMAGED = {
    "tokenizer.model": [
        b"\0",
        b"\xff" * 40,
        b"\x0a",
        field(1, b"\x0a\x02\xff\xff"),
        field(2, b"x"),
        b"\x0a" + varint(1 << 60),
    ],
    "vocab.json": [
        b"[]",
        b"{",
        b'{"a": "x"}',
        b'{"a": -1}',
        b'{"a": 1e99}',
        b'{"a": 99999999999}',
        b'{"eng": {"a": 0}}',
    ],
    "vocab.txt": [b"\xff\xfe\xff", b"\0", b"<s> 100\n</s> 20\n"],
    "tokenizer.json": [
        *[b"{}", b'{"model": {}}', b'{"model": {"vocab": [3]}}', b'{"model": {"vocab": [[[], 0]]}}', b"[" * 10**5],
        *[b'{"model": {"vocab": {}}, "added_tokens": 3}', b'{"model": {"vocab": {}}, "added_tokens": {"x": 3}}'],
        *[b'{"model": {"vocab": {}}, "added_tokens": [{"content": [], "id": 1}]}'],
        *[b'{"model": {"vocab": {}}, "added_tokens": [{"content": "x", "id": "1"}]}'],
        *[b'{"model": {"vocab": {"x": true}}}', b"version https://git-lfs.github.com/spec/v1\n"],
    ],
}


@pytest.mark.parametrize(("file", "content"), [(file, content) for file, all_ in DAMAGED.items() for content in all_])
def test_damaged_files_are_errors_that_name_them(planned, file, content):
    with pytest.raises(ValueError, match=file.replace(".", r"\.")) as error:
        planned({file: KINDS[file](TOKENS)}, {file: content})
    assert len(str(error.value)) < 3000 and str(error.value).replace("\n", "").isprintable()


def test_a_model_of_sentencepiece_cut_anywhere_is_read_or_refused(tmp_path):
    whole = pieces(TOKENS)
    for number in range(len(whole)):
        (tmp_path / "tokenizer.model").write_bytes(whole[:number] or b"\0")
        try:
            found = read_vocabulary(tmp_path).tokens
        except ValueError:
            continue
        assert list(found) == TOKENS[: len(found)]


@pytest.mark.parametrize("content", ['{"added_tokens_decoder": []}', '{"added_tokens_decoder": {"x": 3}}', "[]"])
def test_a_damaged_config_of_a_tokenizer_is_an_error(planned, content):
    files = {"vocab.txt": b"a\n"}
    with pytest.raises(ValueError, match="cannot be compared"):
        planned(files, files | {"tokenizer_config.json": content.encode()})


# --- Rows ---


@pytest.mark.parametrize("kind", ["vocab.json", "vocab.txt"])
def test_rows_follow_the_tokens_of_these_files_too(planned, small, tmp_path, kind):
    order = [5, 3, 1, 0, 2, 4, 9, 8, 7, 6]
    tokens = [f"t{number}" for number in range(10)]
    files = {kind: KINDS[kind](tokens)}, {kind: KINDS[kind]([tokens[number] for number in order])}
    made = planned(*files, tokenizer_source="base", parameters={"normalize": False})
    merging.merge_to_folder(made, tmp_path / "out", files=merging.folder_files(made))
    merged = small.read(tmp_path / "out")["model.embed_tokens.weight"]
    one, other = (small.tensors(seed)["model.embed_tokens.weight"].astype(np.float64) for seed in (0, 1))
    np.testing.assert_allclose(merged, one + other[np.argsort(order)], rtol=1e-6)
    assert (tmp_path / "out" / kind).read_bytes() == files[0][kind]


def test_a_union_is_written_as_a_tokenizer_json(planned):
    with pytest.raises(ValueError, match=r"no tokenizer.json in .*base, which a vocabulary with added tokens needs"):
        planned({"vocab.txt": b"a\nb\n"}, {"vocab.txt": b"b\na\n"}, tokenizer_source="union")


def test_pieces_promise_no_rows(planned):
    with pytest.raises(
        ValueError,
        match=r"in .*base, so the numbers of its tokens are not known; tokenizer.model does not",
    ):
        planned({"tokenizer.model": pieces(TOKENS)}, {"tokenizer.model": pieces(["x"])}, tokenizer_source="base")


def test_tokens_without_a_row_are_refused_until_a_rule_says_what_they_get(planned):
    tokens = [f"t{number}" for number in range(12)]
    one, other = {"vocab.json": numbered(tokens)}, {"vocab.json": numbered(tokens[:3])}
    with pytest.raises(ValueError, match=r"2 tokens have no row in any model.* 't10', 't11'; say which row they get"):
        planned(one, other, tokenizer_source="base")


def test_a_rule_gives_them_rows(planned):
    tokens = [f"t{number}" for number in range(12)]
    one, other = {"vocab.json": numbered(tokens)}, {"vocab.json": numbered(tokens[:3])}
    rules = {"t10": {"source": {"kind": "zero"}}, "t11": {"source": {"kind": "zero"}}}
    made = planned(one, other, tokenizer={"source": "base", "tokens": rules})
    assert {output.name: output.shape for output in made.outputs}["lm_head.weight"] == (12, 6)


def test_other_settings_of_a_tokenizer_cost_nothing(planned, monkeypatch):
    def refuse(folder, **_):
        raise AssertionError(f"{folder} is read")

    monkeypatch.setattr("soups.merging.vocabulary.read_vocabulary", refuse)
    files = {"tokenizer.json": hugging_face(TOKENS)}
    made = planned(
        files | {"tokenizer_config.json": b'{"chat_template": "x"}'}, files | {"tokenizer_config.json": b"{}"}
    )
    assert made.notes == ()
