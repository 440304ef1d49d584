"""State how a network is trained on a task of texts and measured: by classes, by numbers, or by the words it writes."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from soups.data import TextDataset
from soups.evaluate import METRICS, Metric
from soups.models.architectures import Architecture
from soups.models.t5 import word_scores
from soups.train import Classification, Regression, TextToText, Training


def mrpc_score(outputs: Any, targets: Any) -> float:
    """Return the mean of accuracy and F1, by which GLUE measures MRPC and QQP."""
    return (METRICS["accuracy"].function(outputs, targets) + METRICS["f1"].function(outputs, targets)) / 2


#: the score of a task by the name of its folder, as GLUE has it; Spearman's correlation of numbers, else the accuracy
SCORES = {"cola": METRICS["matthews"].function, "mrpc": mrpc_score, "qqp": mrpc_score}


class Form(NamedTuple):
    """Say how T5 was taught a task of GLUE: the texts' names, in which order, and the words of labels."""

    prefix: str
    names: tuple[str, ...]
    words: Mapping[str, str] = {}
    order: tuple[int, ...] = (0, 1)


FORMS = {
    "cola": Form("cola", ("sentence",), {"0": "unacceptable", "1": "acceptable"}),
    "sst-2": Form("sst2", ("sentence",), {"0": "negative", "1": "positive"}),
    "mrpc": Form("mrpc", ("sentence1", "sentence2"), {"0": "not_equivalent", "1": "equivalent"}),
    "qqp": Form("qqp", ("question1", "question2"), {"0": "not_duplicate", "1": "duplicate"}),
    "qnli": Form("qnli", ("question", "sentence")),
    "rte": Form("rte", ("sentence1", "sentence2")),
    "mnli": Form("mnli", ("premise", "hypothesis"), order=(1, 0)),
}


def form_of(name: str, paired: bool) -> Form:
    """Return how T5 reads a task: as it was taught those of GLUE, others in the same way by the name of the folder."""
    own = Form(name.lower(), ("sentence1", "sentence2") if paired else ("sentence",))
    return FORMS.get(name.lower(), own)


def read_texts(name: str, data: TextDataset) -> list[str]:
    """Return what T5 is given of each example, such as "rte sentence1: … sentence2: …"."""
    form, columns = form_of(name, data.second is not None), [data.texts]
    columns += [] if data.second is None else [data.second]
    if len(form.names) != len(columns):
        raise ValueError(f"task {name} has {len(columns)} texts in a line, but T5 reads {', '.join(form.names)}")
    order = [place for place in form.order if place < len(columns)]
    rows = zip(*(columns[place] for place in order), strict=True)
    return [
        " ".join([form.prefix, *(f"{form.names[place]}: {text}" for place, text in zip(order, row, strict=True))])
        for row in rows
    ]


def words_of(name: str, class_names: Sequence[str], paired: bool) -> list[str]:
    """Return the words that T5 writes for classes; labels that no word is known for stand for themselves."""
    known = form_of(name, paired).words
    return [known.get(label, label) for label in class_names]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Way:
    """Hold how a network is trained on a task and measured; `loss` is that of learned soups, by default of classes."""

    apply_fn: Callable
    training: Training
    metrics: Mapping[str, Metric]
    loss: Callable | None = None


def metrics_of(name: str, *, numbers: bool) -> dict[str, Metric]:
    """Return the metrics of a task, "score" first."""
    if numbers:
        return {"score": Metric(METRICS["spearman"].function, "max")} | {
            one: METRICS[one] for one in ("pearson", "mse")
        }
    score = SCORES.get(name.lower(), METRICS["accuracy"].function)
    return {"score": Metric(score, "max")} | {one: METRICS[one] for one in ("accuracy", "nll", "ece")}


# one for all seeds, so that their programs are shared


@functools.cache
def of_classes(name: str, arch: Architecture, classes: int, dropout: float, frozen: str | None) -> Way:
    """Return the way of a classifier with a head."""
    loss = Classification(arch.train_apply_fn(classes, dropout=dropout), classes, preprocess=None)
    training, metrics = _training(loss, frozen), metrics_of(name, numbers=False)
    return Way(apply_fn=arch.apply_fn(classes), training=training, metrics=metrics)


@functools.cache
def of_numbers(name: str, arch: Architecture, dropout: float, frozen: str | None) -> Way:
    """Return the way of a network that predicts a number."""
    apply = arch.apply_fn(1)

    def numbers(params, inputs):
        return apply(params, inputs)[:, 0]

    training = _training(Regression(arch.train_apply_fn(1, dropout=dropout)), frozen)
    return Way(apply_fn=numbers, training=training, metrics=metrics_of(name, numbers=True), loss=squared_error)


@functools.cache
def of_words(name: str, arch: Architecture, words: tuple, dropout: float, frozen: str | None) -> Way:
    """Return the way of a network that writes the words of classes, `words` their tokens."""
    tokens = jnp.asarray(words, jnp.int32)
    loss = TextToText(arch.train_apply_fn(None, dropout=dropout), jax.device_get(tokens))
    scores = word_scores(arch.apply_fn(None), jax.device_get(tokens))
    return Way(apply_fn=scores, training=_training(loss, frozen), metrics=metrics_of(name, numbers=False))


def squared_error(outputs: jax.Array, targets: jax.Array) -> jax.Array:
    """Return the mean squared error."""
    return jnp.square(outputs - targets).mean()


def _training(loss, frozen):
    return Training(loss=loss, learning_rate_rules=None if frozen is None else ((frozen, 0.0), (".*", 1.0)))
