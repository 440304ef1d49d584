"""Make rows of texts and answers, by hand, and read instructions."""

import json

import numpy as np
import pytest

from soups.data import answer_rows, read_instructions

LETTERS = "_abcdef "


def numbers(texts):
    return [[LETTERS.index(letter) for letter in text] for text in texts]


def test_answers_and_the_end_are_learned():
    rows = answer_rows(numbers, [("ab", " c"), ("a", " def")], end=9, length=32, padding=8)
    assert {name: (array.shape, array.dtype.name) for name, array in rows.items()} == {
        "tokens": ((2, 16), "int32"),
        "mask": ((2, 16), "bool"),
        "learned": ((2, 16), "bool"),
    }
    assert rows["tokens"][0, :6].tolist() == [1, 2, 7, 3, 9, 8] and rows["mask"].sum(axis=1).tolist() == [5, 6]
    assert [np.flatnonzero(row).tolist() for row in rows["learned"]] == [[2, 3, 4], [1, 2, 3, 4, 5]]


def test_the_left_of_long_rows_is_cut_off():
    rows = answer_rows(numbers, [("abcdef", " ab")], end=9, length=5)
    assert rows["tokens"].tolist() == [[6, 7, 1, 2, 9]] and rows["learned"].tolist() == [
        [False, True, True, True, True]
    ]
    rows = answer_rows(numbers, [("ab", " abcdef")], end=9, length=4)
    assert rows["tokens"].tolist() == [[4, 5, 6, 9]] and rows["learned"].all()


@pytest.mark.parametrize(
    ("pairs", "length", "message"),
    [
        ([], 8, "there are no pairs"),
        ([("a", "b"), ("a", " ")], 8, "the answer of pair 2 is empty"),
        ([("a", "b")], 1, "length"),
    ],
)
def test_what_is_no_row_is_an_error(pairs, length, message):
    with pytest.raises(ValueError, match=message):
        answer_rows(numbers, pairs, end=9, length=length)


def test_instructions_of_both_forms(tmp_path):
    items = [{"instruction": "Add.", "input": "1 2", "output": "3"}, {"prompt": "Say {x}", "response": "x"}]
    (tmp_path / "a.json").write_text(json.dumps(items))
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, items)))
    expected = [("<Add.\n\n1 2>", "3"), ("<Say {x}>", "x")]
    for name in ("a.json", "a.jsonl"):
        assert read_instructions(tmp_path / name, "<{instruction}>") == expected
    assert read_instructions(tmp_path / "a.json")[1][0] == "### Instruction:\nSay {x}\n\n### Response:\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("no", "is not JSON"),
        ("{}", "number 1: it needs an instruction and an output"),
        ('[{"instruction": "a", "output": "b"}, {"instruction": "a", "output": " "}]', "number 2: it needs"),
        ('[{"instruction": 1, "output": "b"}]', "number 1: it needs"),
    ],
)
def test_broken_instructions_are_errors(tmp_path, content, message):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        read_instructions(tmp_path / "a.json")
