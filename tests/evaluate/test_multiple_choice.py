"""Score answers as lm-evaluation-harness does: against what it recorded, and by hand with a network of two tokens.

The record is that of `scripts/benchmarks/parity_multiple_choice.py --record`.
"""

import itertools
import json
import math
import pathlib

import jax.numpy as jnp
import numpy as np
import pytest

from soups.data import Question, read_arc, read_mmlu, read_truthful_qa
from soups.evaluate import ChoiceScorer, choice_metrics, choice_values
from soups.models import decoder_of, import_weights
from soups.models.text_tokenizer import text_tokenizer

RECORDED = pathlib.Path(__file__).parent / "recorded" / "choices"
THEIRS = json.loads((RECORDED / "theirs.json").read_text())
SUBJECTS = ("abstract_algebra", "marketing")


def recorded_questions():
    """Return the questions of each task."""
    made = {"arc": read_arc(RECORDED / "arc.jsonl", read_arc(RECORDED / "shots.jsonl"))}
    made |= {name: read_mmlu(RECORDED / "mmlu", shots=2, subjects=[name]) for name in SUBJECTS}
    return made | {name: read_truthful_qa(RECORDED / "mc_task.json", name) for name in ("mc1", "mc2")}


@pytest.fixture(scope="module")
def found():
    """Return what the recorded network makes of each task: its questions and their log-likelihoods."""
    questions, model = recorded_questions(), RECORDED / "model"
    arch, tokenize = decoder_of(model), text_tokenizer(model, length=4)
    asked = [question for each in questions.values() for question in each]
    options = {"end": tokenize.special["end"], "max_length": 96, "batch_size": 16}
    scorer = ChoiceScorer(arch.apply_fn(None), tokenize.numbers, asked, **options)
    logs = iter(scorer(import_weights(model, arch)))
    return {name: (each, [next(logs) for _ in each]) for name, each in questions.items()}


@pytest.mark.parametrize("task", THEIRS["log_likelihoods"])
def test_log_likelihoods_are_those_of_the_harness(found, task):
    for ours, theirs in zip(found[task][1], THEIRS["log_likelihoods"][task], strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("task", [*THEIRS["log_likelihoods"], "grouped"])
def test_metrics_are_those_of_the_harness(found, task):
    parts = [found[name] for name in (SUBJECTS if task == "grouped" else [task])]
    ours = choice_metrics(*([*itertools.chain(*lists)] for lists in zip(*parts, strict=True)))
    ours = ours | {"acc": ours["mc2"], "acc_stderr": ours["mc2_stderr"]} if task == "mc2" else ours
    expected = {name.removesuffix(",none"): value for name, value in THEIRS["results"][task].items()}
    assert {"acc", "acc_stderr"} <= expected.keys() <= ours.keys()
    assert {name: ours[name] for name in expected} == pytest.approx(expected, abs=1e-5)


# --- By hand ----------------------------------------------------------------------------------------------------------

LETTERS = " abcdef"
TABLE = np.log(np.random.default_rng(0).dirichlet(np.ones(7), 7))  # of the next letter by the last one
END = 6


def numbers(texts):
    return [[LETTERS.index(letter) for letter in text] for text in texts]


def pair_logits(params, inputs):
    last = jnp.take_along_axis(inputs["tokens"], inputs["at"], axis=1)
    return params[last]


def scores(questions, **options):
    scorer = ChoiceScorer(pair_logits, numbers, questions, end=END, **options)
    return scorer(jnp.asarray(TABLE, jnp.float32))


def by_hand(context, answer):
    """Return Σ log p of the letters of an answer, each behind the one before it."""
    whole = numbers([context + answer])[0]
    return sum(TABLE[a, b] for a, b in zip(whole[len(context) - 1 : -1], whole[len(context) :], strict=True))


def test_an_answer_is_scored_behind_its_context_and_a_blank():
    asked = [Question("abc", ("de", "d", "abcde"), (0,)), Question("e", ("a",), (0,))]
    for batch_size in (1, 3):
        found = scores(asked, batch_size=batch_size)
        expected = [[by_hand(one.context, f" {choice}") for choice in one.choices] for one in asked]
        assert [len(one) for one in found] == [3, 1] and found[0].dtype == np.float64
        for ours, theirs in zip(found, expected, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-5)


def test_blanks_at_the_end_of_a_context_count_for_the_answer():
    (found,) = scores([Question("ab  ", ("c",), (0,))])
    np.testing.assert_allclose(found, [by_hand("ab", "   c")], rtol=1e-5)


def test_an_empty_context_is_the_end():
    (found,) = scores([Question("", ("a", "bc"), (0,))])
    expected = [by_hand("f", " a"), by_hand("f", " bc")]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_the_left_is_cut_off():
    long, seen = "abcd" * 10, []

    def watched(params, inputs):
        seen.append(inputs["tokens"].shape)
        return pair_logits(params, inputs)

    scorer = ChoiceScorer(watched, numbers, [Question(long, ("ef", "e"), (0,))], end=END, max_length=5, batch_size=1)
    (found,) = scorer(jnp.asarray(TABLE, jnp.float32))
    np.testing.assert_allclose(found, [by_hand(long, " ef"), by_hand(long, " e")], rtol=1e-5)
    assert seen == [(1, 16)]


def test_answers_share_the_row_of_their_context():
    lengths = []

    def watched(params, inputs):
        lengths.append(inputs["tokens"].shape)
        return pair_logits(params, inputs)

    asked = [Question("ab" * 20, ("c", "d", "e", "f"), (0,))] * 3
    scorer = ChoiceScorer(watched, lambda texts: numbers([text.replace(" ", "") for text in texts]), asked, end=END)
    scorer(jnp.asarray(TABLE, jnp.float32))
    assert lengths == [(8, 48)]  # 3 rows of 40 tokens, padded to few shapes


@pytest.mark.parametrize(
    ("questions", "options", "message"),
    [
        ([], {}, "there are no questions"),
        ([Question("a", (), ())], {}, "a question has no choices"),
        ([Question("a", ("b", "cdef"), (0,))], {"max_length": 4}, "answer 2 to question 1 has 5 tokens, more than 4"),
        ([Question("a", ("b",), (0,))], {"batch_size": 0}, "batch_size"),
        ([Question("a", ("b",), (0,))], {"max_length": 0.5}, "max_length"),
    ],
)
def test_what_cannot_be_scored_is_an_error(questions, options, message):
    with pytest.raises(ValueError, match=message):
        ChoiceScorer(pair_logits, numbers, questions, end=END, **options)


def test_an_answer_without_a_token_is_an_error():
    with pytest.raises(ValueError, match="answer 1 to question 1 has no token"):
        ChoiceScorer(pair_logits, lambda texts: [[1]] * len(texts), [Question("a", ("b",), (0,))], end=END)


def test_the_values_of_a_question():
    question = Question("?", ("éé", "abcd", "a"), (1, 2))
    values = choice_values(question, np.array([-2.1, -4.0, -3.0]))
    p = np.exp([-2.1, -4.0, -3.0])
    # by characters −1.05, −1, −3; by bytes −0.525, −1, −3
    assert values == {"acc": 0.0, "acc_norm": 1.0, "acc_bytes": 0.0, "mc2": pytest.approx(p[1:].sum() / p.sum())}
    assert (
        choice_values(Question("?", ("a", "b"), (0,)), np.array([-1.0, -1.0]))["acc"] == 1.0
    )  # the first of equal ones
    far = choice_values(Question("?", ("a", "b"), (0,)), np.array([-2000.0, -2001.0]))["mc2"]
    assert far == pytest.approx(1 / (1 + math.exp(-1)))


def test_errors_are_pooled_over_groups(rng):
    sizes = {"a": 5, "b": 9}
    values = {name: rng.integers(0, 2, size) for name, size in sizes.items()}
    asked = [Question("?", ("x", "y"), (int(right),), name) for name, each in values.items() for right in each]
    found = choice_metrics(asked, [np.array([0.0, 1.0])] * len(asked))
    variance = sum((size - 1) * np.var(values[name], ddof=1) for name, size in sizes.items()) / (14 - 2)
    assert found["acc"] == pytest.approx(np.mean(np.concatenate([*values.values()])))
    assert found["acc_stderr"] == pytest.approx(math.sqrt(variance / 14))
    assert math.isnan(choice_metrics(asked[:1], [np.zeros(2)])["acc_stderr"])
