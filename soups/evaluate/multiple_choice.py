"""Let language models choose among answers by the probability of their tokens, as lm-evaluation-harness scores them.

Gao et al., "A framework for few-shot language model evaluation", 2021, https://github.com/EleutherAI/lm-evaluation-harness.
"""

import collections
import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from soups.arguments import check_within
from soups.data.lengths import LENGTHS, round_up
from soups.tree import Tree

_LONGEST = 1024  # tokens of a row with several answers


class Asked(Protocol):
    """Be a question: `soups.data.Question`, or what has the same."""

    context: str
    choices: Sequence[str]
    right: Sequence[int]
    group: str


class Request(NamedTuple):
    """Hold the tokens of one answer and of what stands before it."""

    question: int
    choice: int
    before: tuple[int, ...]
    answer: tuple[int, ...]


class Row(NamedTuple):
    """Hold a row of the network: the begin that some answers share, and each of them in a segment of its own."""

    before: tuple[int, ...]
    requests: list[Request]

    @property
    def length(self) -> int:
        """Return how many tokens the network sees; the last one of an answer is only foretold."""
        return len(self.before) + sum(len(request.answer) - 1 for request in self.requests)

    @property
    def targets(self) -> int:
        """Return how many tokens are foretold."""
        return sum(len(request.answer) for request in self.requests)


class ChoiceScorer:
    """Score the answers to questions: `scorer(params)` gives the log-likelihoods of each question's answers.

        scorer = ChoiceScorer(arch.apply_fn(None), tokenize.numbers, questions, end=tokenize.special["end"])
        choice_metrics(questions, scorer(params))                # {"acc": ..., "acc_stderr": ..., "acc_norm": ...}

    The score of an answer is Σ log p of its tokens behind the context and a blank. Blanks at the end of a context count
    for the answer; the tokens are those of the whole text, cut where the context alone would end; behind an empty
    context stands `end`; of what is longer than `max_length` the left is cut off. Answers to one question run in one
    row and share its context, which changes nothing but rounding; an answer of one token costs none of its own.

    Args:
        apply_fn: `apply(params, inputs) -> logits [B, K, V]` behind the tokens `inputs["at"]`, with inputs as
            `soups.models.Decoder` takes them.
        numbers: from texts to the numbers of their tokens, without special ones, as `TextTokenizer.numbers`.
        questions: each with a context, choices and the numbers of the right ones.
        end: the token that stands for an empty context, of begin or end.
        max_length: the most tokens that the network sees of a context with an answer.
        batch_size: rows that run at once.

    Raises:
        ValueError: no questions, one without choices, an empty answer, or an answer longer than `max_length`.
    """

    def __init__(
        self,
        apply_fn: Callable,
        numbers: Callable[[Sequence[str]], Sequence[Sequence[int]]],
        questions: Sequence[Asked],
        *,
        end: int,
        max_length: int = 1024,
        batch_size: int = 8,
    ):
        check_within("batch_size", batch_size, "[1, inf)", whole=True)
        check_within("max_length", max_length, "[1, inf)", whole=True)
        self._counts = [len(question.choices) for question in questions]
        if not questions or not all(self._counts):
            raise ValueError("there are no questions" if not questions else "a question has no choices")
        rows = _rows(_requests(numbers, questions, end, max_length))
        self._batches = [_arrays(batch, batch_size) for batch in _batches(rows, batch_size)]
        self._program = jax.jit(_program(apply_fn))

    def __call__(self, params: Tree) -> list[np.ndarray]:
        """Return for each question the log-likelihoods of its choices, float64 [C]."""
        found = [np.zeros(count) for count in self._counts]
        waiting = [(rows, self._program(params, inputs, targets)) for rows, inputs, targets in self._batches]
        for rows, logs in waiting:
            for row, line in zip(rows, np.asarray(logs, np.float64), strict=False):
                at = 0
                for request in row.requests:
                    found[request.question][request.choice] = line[at : at + len(request.answer)].sum()
                    at += len(request.answer)
        return found


def choice_metrics(questions: Sequence[Asked], log_likelihoods: Sequence[np.ndarray]) -> dict[str, float]:
    """Return "acc", "acc_norm", "acc_bytes" and "mc2" with their standard errors, "acc_stderr", ..., of all questions.

    acc: the likeliest answer is a right one; TruthfulQA's mc1 is the same. acc_norm and acc_bytes: the likeliest for
    its number of characters, or bytes. mc2: Σ p of the right answers / Σ p of all. Of equal ones the first counts. The
    standard error is that of a mean, the sample's standard deviation / √n. Questions of several groups are weighed
    alike, and their error is pooled over the groups: √(Σ (n − 1) s² / (N − G) / N).
    """
    groups = collections.defaultdict(list)
    for question, logs in zip(questions, log_likelihoods, strict=True):
        groups[question.group].append(choice_values(question, logs))
    made = {}
    for name in ("acc", "acc_norm", "acc_bytes", "mc2"):
        values = [np.array([one[name] for one in group]) for group in groups.values()]
        made |= {name: float(np.concatenate(values).mean()), f"{name}_stderr": _standard_error(values)}
    return made


def choice_values(question: Asked, log_likelihoods: np.ndarray) -> dict[str, float]:
    """Return what one question counts for each of the metrics of `choice_metrics`."""
    logs, right = np.asarray(log_likelihoods, np.float64), list(question.right)
    lengths = {"acc": [1] * len(logs), "acc_norm": [len(choice) for choice in question.choices]}
    lengths["acc_bytes"] = [len(choice.encode()) for choice in question.choices]
    values = {name: float(np.argmax(logs / np.array(each)) in right) for name, each in lengths.items()}
    shares = np.exp(logs - logs.max())
    return values | {"mc2": float(shares[right].sum() / shares.sum())}


def _standard_error(groups):
    """Return the pooled standard error of the mean; NaN where no group has two values."""
    count, free = sum(map(len, groups)), sum(len(group) - 1 for group in groups)
    if not free:
        return math.nan
    squares = sum(float(np.square(group - group.mean()).sum()) for group in groups)
    return math.sqrt(squares / free / count)


# --- Rows -------------------------------------------------------------------------------------------------------------


def _requests(numbers, questions, end, max_length) -> list[Request]:
    pairs = []
    for number, question in enumerate(questions):
        context = question.context.rstrip()
        blanks = question.context[len(context) :]
        pairs += [(number, at, context, f"{blanks} {choice}") for at, choice in enumerate(question.choices)]
    contexts = {context: () for _, _, context, _ in pairs if context}
    contexts = dict(zip(contexts, map(tuple, numbers(list(contexts))), strict=True)) if contexts else {}
    whole = numbers([context + answer for _, _, context, answer in pairs])
    made = []
    for (number, at, context, _), tokens in zip(pairs, whole, strict=True):
        cut = len(contexts.get(context, ()))
        tokens = tuple(tokens)
        if not cut:  # the token that stands for nothing, unless the answer begins with it
            tokens, cut = tokens if tokens[:1] == (end,) else (end, *tokens), 1
        before, answer = tokens[:cut], tokens[cut:]
        if not 0 < len(answer) <= max_length:
            kind = "no token" if not answer else f"{len(answer)} tokens, more than {max_length}"
            raise ValueError(f"answer {at + 1} to question {number + 1} has {kind}")
        before = before[max(0, len(tokens) - max_length - 1) :]
        made.append(Request(number, at, before, answer))
    return made


def _rows(requests) -> list[Row]:
    """Put answers to a question that stand behind the same tokens into one row, unless it gets too long."""
    rows = {}
    for request in requests:
        key = request.question, request.before
        row = rows.get(key, [Row(request.before, [])])[-1]
        if row.requests and row.length + len(request.answer) > _LONGEST:
            row = Row(request.before, [])
            rows[key].append(row)
        rows.setdefault(key, [row])
        row.requests.append(request)
    return [row for found in rows.values() for row in found]


def _batches(rows, batch_size):
    """Cut rows into batches of rows of nearly the same length, the longest first."""
    rows = sorted(rows, key=lambda row: (-row.length, -row.targets))
    return [rows[at : at + batch_size] for at in range(0, len(rows), batch_size)]


def _arrays(rows: list[Row], batch_size: int) -> tuple[list[Row], dict[str, np.ndarray], np.ndarray]:
    """Return rows with their inputs and the tokens that are foretold, padded to one of a few shapes."""
    length, width = (_round(max(found)) for found in zip(*((row.length, row.targets) for row in rows), strict=True))
    tokens, segments = np.zeros((2, batch_size, length), np.int32)
    mask = np.zeros((batch_size, length), bool)
    at, targets = np.zeros((2, batch_size, width), np.int32)
    for number, row in enumerate(rows):
        tokens[number, : len(row.before)], end, place = row.before, len(row.before), 0
        for segment, request in enumerate(row.requests, 1):
            inside, outside = end + len(request.answer) - 1, place + len(request.answer)
            tokens[number, end:inside], segments[number, end:inside] = request.answer[:-1], segment
            at[number, place:outside] = [len(row.before) - 1, *range(end, inside)]
            targets[number, place:outside] = request.answer
            end, place = inside, outside
        mask[number, :end] = True
    return rows, {"tokens": tokens, "mask": mask, "segments": segments, "at": at}, targets


def _round(length):
    return round_up(length) if length <= LENGTHS[-1] else -(-length // 128) * 128


def _program(apply_fn):
    def logs(params: Tree, inputs: Mapping[str, jax.Array], targets_BxK: jax.Array) -> jax.Array:
        logits_BxKxV = apply_fn(params, inputs)
        chosen_BxK = jnp.take_along_axis(logits_BxKxV, targets_BxK[..., None], axis=-1)[..., 0]
        return chosen_BxK - jax.nn.logsumexp(logits_BxKxV, axis=-1)

    return logs
