"""Train a linear probe, by logistic regression on features of a frozen trunk, and fine-tune from it (LP-FT)."""

import dataclasses
import inspect
import math
import os
import re
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from soups import tree
from soups.arguments import check_takes, check_within
from soups.arrays import is_array, refusal
from soups.data.dataset import decode, pair_of, read_example
from soups.data.transforms import Transform
from soups.evaluate.cache import LogitCache
from soups.evaluate.classification import accuracy
from soups.evaluate.evaluator import Evaluator
from soups.files import local_path
from soups.journal import Journal
from soups.names import check_name, few, refuse
from soups.partition import check_mesh
from soups.pool import digest
from soups.train import checks
from soups.train.classification import Classification
from soups.train.loop import fit, training_of
from soups.train.sharding import on_devices
from soups.train.step import FIELDS, Training

STRENGTHS = tuple(float(f"1e{power}") for power in range(-7, 3))  # C of Kumar et al., from strong to weak decay
_CHUNK = 4096  # examples whose logits are held at a time


def extract_features(
    apply_fn: Callable,
    params: tree.Tree,
    dataset: Any,
    *,
    transform: Transform | None = None,
    preprocess: Callable | None = None,
    batch_size: int = 1000,
    mesh: Mesh | None = None,
    cache: LogitCache | None = None,
    key: Sequence[str] | None = None,
) -> np.ndarray:
    """Return the features of all examples in their order, float32 [N, D].

    Args:
        apply_fn: `apply_fn(params, inputs) -> features [B, D]`, such as that of an architecture without a head.
        dataset: with `images`, uint8 [N, H, W, C] in memory or mapped; or a source, which is decoded batch by batch.
        transform: of the images of a source, to one shape.
        preprocess, batch_size, mesh: as of `soups.evaluate.Evaluator`, whose errors this has.
        cache, key: keep the features on disk; the key holds all that decides them: digests of the weights and the data.
    """
    if cache is not None and not key:
        raise ValueError("a cache needs a key=, such as the digests of the weights and of the data")
    # features belong to no class: labels, which the evaluator compares with the number of outputs, say nothing here
    images = dataset.images if hasattr(dataset, "images") else _DecodedImages(dataset, transform)
    unlabelled = types.SimpleNamespace(images=images, labels=np.zeros(len(images), np.int32), class_groups=None)

    def compute():
        options = {"preprocess": preprocess, "batch_size": batch_size, "mesh": mesh}
        return Evaluator(apply_fn, unlabelled, **options).logits(params)

    return compute() if cache is None else cache.get(key, compute)


def probe_on_features(
    features: np.ndarray,
    labels: np.ndarray,
    *,
    num_classes: int,
    strengths: Sequence[float] = STRENGTHS,
    held_out: tuple[np.ndarray, np.ndarray] | None = None,
    max_iterations: int = 200,
    mesh: Mesh | None = None,
    on_strength: Callable[[dict[str, float]], None] = lambda row: None,
    journal: str | os.PathLike | None = None,
) -> dict[str, np.ndarray]:
    """Fit a head to features [N, D] by logistic regression: {"kernel" [D, C], "bias" [C]} in float32.

    Minimises C Σ_i −log softmax(Wᵀx_i + b)[y_i] + |W|²/2 by L-BFGS for one strength C after the other, from small to
    large, each from the head of the last; the head with the highest held-out accuracy is given (of equals the first).
    The features are scaled by one mean and one standard deviation, which go back into the head.

    Args:
        strengths: the values of C.
        held_out: features and labels that choose among several strengths.
        max_iterations: of L-BFGS, for each strength.
        mesh: shards the examples over its axis "data".
        on_strength: called with each {"strength", "loss" (mean), "iterations", "accuracy" (held-out, or NaN)}.
        journal: a file for the head of each strength; the same call after a crash fits no strength twice.

    Raises:
        ValueError: features, labels and `num_classes` that do not fit together; features that are not finite, or all
            equal; strengths that are not positive; several strengths without `held_out`; a journal of another probe.
        OSError: the journal cannot be written; its path is in the message.

    Kumar et al., "Fine-tuning can distort pretrained features and underperform out-of-distribution", 2022, arXiv
    2202.10054, as their code does.
    """
    if not isinstance(strengths, Sequence):
        raise ValueError(f"strengths must be a sequence of positive numbers, not {strengths!r:.200}")
    max_iterations = check_within("max_iterations", max_iterations, "[1, inf)", whole=True)
    num_classes = check_within("num_classes", num_classes, "[2, inf)", whole=True)
    _check(features, labels, num_classes, strengths, held_out)
    check_mesh(mesh, "data")
    features, labels = np.asarray(features), np.asarray(labels)
    mean, scale = float(np.mean(features, dtype=np.float64)), float(np.std(features, dtype=np.float64))
    header = {"recipe": "linear probe", "num_classes": num_classes, "strengths": sorted(strengths)}
    if journal is not None:  # hashing the features takes a while
        header |= {"max_iterations": max_iterations, "data": digest({"x": features, "y": labels})}
    log = Journal(journal, header)
    measured = _objective(features, labels, num_classes, mean, scale, mesh)
    flat = np.zeros((features.shape[1] + 1) * num_classes)
    best, best_score = None, -math.inf
    for strength in sorted(strengths):
        done = log.replay("strength", strength)
        if done is None:
            flat, row = _fit(measured, flat, num_classes, strength * len(labels), max_iterations)
            done = log.write({"kind": "strength", "member": strength, "row": row, "head": flat.tolist()})
        flat, row = np.asarray(done["head"]), done["row"]
        kernel, bias = flat.reshape(-1, num_classes)[:-1] / scale, flat[-num_classes:]
        bias = bias - mean * kernel.sum(axis=0)
        head = {"kernel": kernel.astype(np.float32), "bias": bias.astype(np.float32)}
        score = math.nan
        if held_out is not None:
            score = accuracy(held_out[0] @ head["kernel"] + head["bias"], held_out[1])
        on_strength({"strength": strength, **row, "accuracy": score})
        if best is None or score > best_score:
            best, best_score = head, score
    return best


_SETTINGS = [
    name for name, one in inspect.signature(probe_on_features).parameters.items() if one.kind == one.KEYWORD_ONLY
]


def lp_ft(
    loss: Callable[..., Any] | Training,
    params: tree.Tree,
    data: Any,
    *,
    head: str,
    probe: Mapping[str, Any],
    features: Callable | None = None,
    batch_size: int | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Train the head alone, then all weights from there; give what `fit` gives, and as "probe" the probed weights.

        made = lp_ft(loss, start, data, head="head", probe={"learning_rate": 1e-2}, epochs=3, batch_size=64)

    Args:
        loss, params, data, batch_size: as of `soups.train.fit`.
        head: the place of the head in the weights, such as "head" or "params/head", or with "/.*" behind it the regex
            for the names of its leaves, as elsewhere.
        probe: the hyper-parameters of the head's training by the same loss; with `features` the settings of
            `probe_on_features`, such as {"strengths": (1.0,)}.
        features: `features(params, inputs) -> [N, D]`, of a `soups.train.Classification` and data in memory: the head
            {"kernel", "bias"} is then fitted to features, which are made once, of inputs that its `preprocess` made.
        options: all else of `soups.train.fit`, for the fine-tuning; a directory keeps both stages.

    Raises:
        ValueError: no such head; `features` without a `Classification` or without data in memory; or as `fit` and
            `probe_on_features`.

    Kumar et al., "Fine-tuning can distort pretrained features and underperform out-of-distribution", 2022, arXiv
    2202.10054.
    """
    if not isinstance(head, str) or not isinstance(probe, Mapping):
        raise ValueError(f"head must be a string and probe a mapping, not {head!r:.100} and {probe!r:.100}")
    head = head.removesuffix("/.*")
    if not any(name.startswith(f"{head}/") for name in tree.names(params)):
        raise ValueError(
            f"head must be a place in the weights, such as 'head' or 'head/.*': none of the leaves is below {head!r}: "
            f"{few(tree.names(params), 5)}"
        )
    directory = options.pop("directory", None)
    places = [None, None] if directory is None else [local_path(directory) / stage for stage in ("probe", "all")]
    training = training_of(loss, {name: options.pop(name) for name in list(options) if name in FIELDS})
    data = checks.opened(data)
    if features is None:
        rules = ((re.escape(head) + "/.*", 1.0), (".*", 0.0))
        alone = dataclasses.replace(training, learning_rate_rules=rules)
        sizes = {"batch_size": batch_size, "directory": places[0]}
        probed = jax.device_get(fit(alone, params, data, hyperparameters=probe, **sizes)["params"])
    else:
        if not isinstance(training.loss, Classification) or not checks.is_arrays(data):
            raise ValueError("a probe on features needs a soups.train.Classification and data in memory")
        for name in probe:
            check_name(name, _SETTINGS, "setting of a probe on features")
        checks.finite(params, data)
        check_takes("features", features, "params, inputs")
        images, labels = map(np.asarray, pair_of(data, others=True))
        inputs = training.loss.preprocess or (lambda given: given)  # as the network gets them in training
        found = extract_features(features, params, types.SimpleNamespace(images=images), preprocess=inputs)
        settings = {"num_classes": training.loss.num_classes, **probe}
        probed = with_head(params, head, probe_on_features(found, labels, **settings))
    made = fit(training, probed, data, batch_size=batch_size, directory=places[1], **options)
    return made | {"probe": probed}


def with_head(params: tree.Tree, place: str, head: tree.Tree | None) -> tree.Tree:
    """Replace the head, which is at a place such as "params/head"; None takes it out."""
    outer, _, inner = place.partition("/")
    rest = {name: part for name, part in params.items() if name != outer}
    new = with_head(params[outer], inner, head) if inner else head
    return rest if new is None else rest | {outer: new}


class _DecodedImages:
    """See the images of a source as an array, of which each slice is decoded when it is asked for."""

    def __init__(self, source, transform):
        self._source, self._transform = source, transform
        first, _ = read_example(source, 0, transform)
        self.dtype, self.nbytes = first.dtype, first.nbytes * len(source)

    def __len__(self):
        return len(self._source)

    def __getitem__(self, rows):
        return decode(self._source, self._transform, indices=range(*rows.indices(len(self)))).images


def _check(features, labels, num_classes, strengths, held_out):
    sets = {"the features": (features, labels)}
    sets |= {} if held_out is None else {"held_out": pair_of(held_out, "held_out")}
    problems = [problem for name, pair in sets.items() for problem in _problems(name, *pair, num_classes)]
    widths = {name: np.shape(pair[0])[1:] for name, pair in sets.items()}
    if held_out is not None and widths["held_out"] != widths["the features"]:
        problems.append(f"held_out has features {list(np.shape(held_out[0]))}, not [N, {np.shape(features)[-1]}]")
    if not strengths or not all(isinstance(one, int | float | np.number) and 0 < one < math.inf for one in strengths):
        problems.append(f"strengths must be positive numbers, not {tuple(strengths)}")
    if len(strengths) > 1 and held_out is None:
        problems.append(f"{len(strengths)} strengths need held_out to choose among them")
    refuse("a probe cannot be fitted", problems)


def _problems(name, features, labels, num_classes):
    if why := refusal(features) or refusal(labels):
        yield f"one of {name} and labels {why}"
        return
    features, labels = np.asarray(features), np.asarray(labels)
    if not is_array(features) or features.dtype.kind == "c":
        yield f"{name} must be real numbers, not {features.dtype}"
        return
    if features.ndim != 2 or labels.shape != features.shape[:1] or not len(labels):
        yield f"{name} must be [N, D] with labels [N], not {list(features.shape)} with {list(labels.shape)}"
        return
    if not np.issubdtype(labels.dtype, np.integer) or not 0 <= labels.min() <= labels.max() < num_classes:
        yield f"labels of {name} must be integers from 0 to {num_classes - 1}"
    if not np.isfinite(features).all():
        yield f"{name} hold NaN or infinity"
    elif features.min() == features.max():
        yield f"{name} are all equal"


def _objective(features, labels, num_classes, mean, scale, mesh):
    """Return the function from a head [D + 1, C] (the bias last) to its mean loss and the gradient, on the device."""
    count, width = features.shape
    shards = 1 if mesh is None else mesh.shape["data"]
    chunk = min(_CHUNK, math.ceil(count / shards)) * shards
    chunks = math.ceil(count / chunk)
    padding = chunks * chunk - count
    x = np.pad((np.asarray(features, np.float32) - np.float32(mean)) / np.float32(scale), ((0, padding), (0, 0)))
    y = np.pad(np.asarray(labels, np.int32), (0, padding), constant_values=-1)  # no class: its row of one-hot is zero
    x, y = x.reshape(chunks, chunk, width), y.reshape(chunks, chunk)
    if mesh is not None:
        x, y = on_devices((x, y), NamedSharding(mesh, P(None, "data")))
    else:
        x, y = jnp.asarray(x), jnp.asarray(y)

    def loss_of(head, x, y):
        logits = jnp.matmul(x, head[:-1], precision="highest") + head[-1:]
        losses = -jnp.sum(jax.nn.log_softmax(logits) * jax.nn.one_hot(y, num_classes), axis=-1)
        return losses.sum() / count, losses

    def measure(head, x, y):
        def take(total, part):
            (_, losses), gradient = jax.value_and_grad(loss_of, has_aux=True)(head, *part)
            return total + gradient, losses

        return jax.lax.scan(take, jnp.zeros_like(head), (x, y))

    measure = jax.jit(measure, out_shardings=None if mesh is None else NamedSharding(mesh, P()))

    def measured(head):
        gradient, losses = measure(np.asarray(head, np.float32), x, y)
        # summed in float32 the losses would be too coarse for the last steps of a line search
        return np.asarray(losses, np.float64).sum() / count, np.asarray(gradient, np.float64)

    return measured


def _fit(measured, flat, num_classes, weight, max_iterations):
    """Minimise mean loss + |W|² / (2 weight) from the head `flat`; weight = C N."""

    def objective(flat):
        head = flat.reshape(-1, num_classes)
        loss, gradient = measured(head)
        penalised = np.concatenate([head[:-1], np.zeros((1, num_classes))])
        return loss + (penalised**2).sum() / (2 * weight), (gradient + penalised / weight).ravel()

    options = {"maxiter": max_iterations, "gtol": 1e-7, "ftol": 1e-14}
    found = scipy.optimize.minimize(objective, flat, jac=True, method="L-BFGS-B", options=options)
    return found.x, {"loss": measured(found.x.reshape(-1, num_classes))[0], "iterations": int(found.nit)}
