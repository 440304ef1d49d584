"""The loss of networks that predict numbers, and the head that a linear fit to features gives them."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from soups import tree
from soups.arguments import check_within
from soups.arrays import is_array, is_complex
from soups.data import pair_of


@dataclasses.dataclass(frozen=True)
class Regression:
    """Measure a network that predicts one number by its mean squared error: a loss for `soups.train.fit`.

        loss = Regression(architecture("minilm-l6").train_apply_fn(1))

    A batch is {"image": inputs, "label": floats [B]} or a pair of both; inputs may be arrays by name, such as tokens
    with their mask. The network gives [B, 1] or [B].

    Attributes:
        train_apply: from weights, inputs and key to numbers, or to (numbers, weights with their updated statistics).

    Raises:
        ValueError: in training labels that are no floats or not finite, and outputs of another shape.
    """

    train_apply: Callable[[tree.Tree, Any, jax.Array], Any]

    def check(self, batch: Any, hyperparameters: Mapping[str, Any]) -> dict[str, Any]:
        """Return the inputs and the labels of a batch, or of all data in memory; a ValueError if they do not fit."""
        inputs, labels = pair_of(batch, "a batch", others=True)
        if not hasattr(labels, "dtype") or not jnp.issubdtype(labels.dtype, jnp.floating) or labels.ndim != 1:
            found = f"{labels.dtype} {list(labels.shape)}" if hasattr(labels, "dtype") else type(labels).__name__
            raise ValueError(f"labels must be numbers, floats [B], not {found}")
        known = getattr(labels, "is_fully_addressable", True) and not isinstance(labels, jax.core.Tracer)
        if known and not np.isfinite(labels).all():
            raise ValueError("labels must be finite numbers")
        return {"image": inputs, "label": labels}

    def __call__(self, params: tree.Tree, batch: Mapping[str, Any], key: jax.Array) -> tuple[jax.Array, tree.Tree]:
        """Return the mean squared error and the weights with updated statistics; a ValueError if shapes differ."""
        result = self.train_apply(params, batch["image"], key)
        outputs, updated = result if isinstance(result, tuple) else (result, params)
        labels_B = batch["label"]
        if outputs.shape not in (labels_B.shape, (*labels_B.shape, 1)):
            raise ValueError(f"labels {list(labels_B.shape)} need one output each, not outputs {list(outputs.shape)}")
        left_B = outputs.reshape(labels_B.shape).astype(jnp.float32) - labels_B
        return jnp.square(left_B).mean(), updated


def ridge_on_features(
    features: np.ndarray,
    labels: np.ndarray,
    *,
    strengths: Sequence[float] = (1e-2, 1e-1, 1.0),
    held_out: tuple[np.ndarray, np.ndarray] | None = None,
) -> dict[str, np.ndarray]:
    """Fit a head to features [N, D] and numbers [N]: {"kernel" [D, 1], "bias" [1]} in float32.

    Minimises C · mean (xᵀw + b − y)² + |w|² for each strength C, of features divided by their standard deviation, and
    exactly; the head with the smallest held-out error is given. As `probe_on_features` does for classes.

    A ValueError for features and labels that do not fit together or are not finite, strengths that are not positive,
    and several of them without `held_out`.
    """
    x, y = _numbers("features", features, labels)
    if not isinstance(strengths, Sequence | np.ndarray):
        raise ValueError(f"strengths must be a sequence of positive numbers, not {strengths!r:.200}")
    for strength in strengths:
        check_within("strengths", strength, "(0, inf)")
    if not len(strengths) or (len(strengths) > 1 and held_out is None):
        raise ValueError("one strength is needed, or several and held_out, which chooses among them")
    if held_out is not None:
        held_out = _numbers("held_out", *pair_of(held_out, "held_out"))
        if held_out[0].shape[1:] != x.shape[1:]:
            raise ValueError(f"held_out has features {list(held_out[0].shape)}, not [N, {x.shape[1]}]")
    mean, scale, middle = x.mean(axis=0), x.std() or 1.0, y.mean()
    values, vectors = np.linalg.eigh((x - mean).T @ (x - mean) / scale**2 / len(x))
    moment = vectors.T @ ((x - mean).T @ (y - middle) / scale / len(x))
    best, least = None, np.inf
    for strength in strengths:
        weights = vectors @ (moment / (np.maximum(values, 0) + 1 / strength)) / scale
        bias = middle - mean @ weights
        left = 0.0 if held_out is None else np.square(held_out[0] @ weights + bias - held_out[1]).mean()
        if best is None or left < least:
            best, least = {"kernel": weights[:, None].astype(np.float32), "bias": np.float32([bias])}, left
    return best


def _numbers(what, features, labels):
    given = [np.asarray(one) for one in (features, labels)]
    if all(is_array(one) and not is_complex(one) for one in given):
        x, y = (one.astype(np.float64) for one in given)
        if x.ndim == 2 and y.shape == x.shape[:1] and len(y) and np.isfinite(x).all() and np.isfinite(y).all():
            return x, y
    found = " and ".join(f"{one.dtype} {list(one.shape)}" for one in given)
    raise ValueError(f"{what}: features [N, D] and numbers [N], all finite, are needed, not {found}")
