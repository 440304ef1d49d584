"""Make rows of tokens of texts with their answers, from which a language model learns the answers."""

import json
from collections.abc import Callable, Sequence

import numpy as np

from soups.arguments import check_within
from soups.data.lengths import round_up
from soups.files import PathLike, any_path
from soups.formats.text import numbered_lines, read_text

TEMPLATE = "### Instruction:\n{instruction}\n\n### Response:\n"


def answer_rows(
    numbers: Callable[[Sequence[str]], Sequence[Sequence[int]]],
    pairs: Sequence[tuple[str, str]],
    *,
    end: int,
    length: int,
    padding: int = 0,
) -> dict[str, np.ndarray]:
    """Return {"tokens": int32 [N, T], "mask": bool [N, T], "learned": bool [N, T]} of pairs (text, answer).

        answer_rows(tokenize.numbers, [("2 + 2 =", " 4")], end=tokenize.special["end"], length=64)

    A row is the tokens of text and answer as one, and the end; those of the answer and the end are learned. Of longer
    rows the left is cut off. T is the smallest of `soups.data.LENGTHS` that holds the longest row, `length` at most.

    `numbers`: from texts to the numbers of their tokens, as `TextTokenizer.numbers`.

    Raises:
        ValueError: no pairs, an empty answer, or a length below 2.
    """
    check_within("length", length, "[2, inf)", whole=True)
    if not pairs:
        raise ValueError("there are no pairs of a text and its answer")
    if empty := [number for number, (_, answer) in enumerate(pairs, 1) if not answer.strip()]:
        raise ValueError(f"the answer of pair {empty[0]} is empty")
    before = [len(row) for row in numbers([text for text, _ in pairs])]
    rows = [[*row, end] for row in numbers([text + answer for text, answer in pairs])]
    longest = max(map(len, rows))
    shape = len(rows), min(round_up(longest), length)
    tokens, learned = np.full(shape, padding, np.int32), np.zeros(shape, bool)
    mask = np.zeros(shape, bool)
    for number, (row, begin) in enumerate(zip(rows, before, strict=True)):
        cut = max(0, len(row) - shape[1])
        tokens[number, : len(row) - cut], mask[number, : len(row) - cut] = row[cut:], True
        learned[number, max(0, begin - cut) : len(row) - cut] = True
    return {"tokens": tokens, "mask": mask, "learned": learned}


def read_instructions(path: PathLike, template: str = TEMPLATE) -> list[tuple[str, str]]:
    """Read pairs of an instruction and its response: Alpaca's .json, or .jsonl with an object in each line.

    An object has "instruction" or "prompt", and "output" or "response"; an "input" that is not empty follows the
    instruction after an empty line. `template`: what stands around "{instruction}".

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: an object without these; the file and its number are named.
    """
    path, made = any_path(path), []
    text = read_text(path)
    try:
        items = [json.loads(line) for _, line in numbered_lines(text)] if path.suffix == ".jsonl" else json.loads(text)
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    for number, item in enumerate(items if isinstance(items, list) else [None], 1):
        item = item if isinstance(item, dict) else {}
        asked, answer = (item.get(a, item.get(b)) for a, b in (("instruction", "prompt"), ("output", "response")))
        if not isinstance(asked, str) or not isinstance(answer, str) or not answer.strip():
            raise ValueError(f"{path}, number {number}: it needs an instruction and an output that is not empty")
        asked += f"\n\n{item['input']}" if item.get("input") else ""
        made.append((template.replace("{instruction}", asked), answer))
    return made
