"""The loss of classifiers: cross-entropy with label smoothing, mixup and augmentation on the device."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from numpy.typing import ArrayLike

from soups import tree
from soups.data import pair_of, unscaled
from soups.train.augment import mixup, rand_augment

_ROUNDED = 0.02  # by which sums of probabilities may differ from 1, rounded to two digits as they may be
TrainApply = Callable[[tree.Tree, jax.Array, jax.Array], Any]


def unit_range(images: jax.Array) -> jax.Array:
    """Return uint8 images as float32 in [0, 1]."""
    return images.astype(jnp.float32) / 255.0


@dataclasses.dataclass(frozen=True)
class Classification:
    """Measure a classifier by its cross-entropy: a loss for `soups.train.fit` and `soups.train.sweep`.

        loss = Classification(soups.models.train_apply_fn(model), num_classes=10)

    A batch is {"image": [B, ...], "label": int [B]} or a pair of both, with float targets [B, classes] that sum to 1
    for soft labels; a network that gives [B, T, classes] has labels [B, T]. With `preprocess=None` images may be arrays
    by name, such as tokens with their mask. Its hyper-parameters: `label_smoothing`, `mixup`, and for images
    [B, H, W, C] `augment_operations` and `augment_magnitude`, see `soups.train.augment`.

    Attributes:
        train_apply: from weights, inputs and key to logits, or to (logits, weights with their updated statistics).
        num_classes: of the targets.
        preprocess: from what a batch holds to the network's inputs. By default uint8 images become floats in [0, 1];
            None takes inputs as they are, such as features or tokens.

    Raises:
        ValueError: fewer than two classes. In training: images, labels or logits that do not fit.
    """

    train_apply: TrainApply
    num_classes: int
    preprocess: Callable[[jax.Array], jax.Array] | None = unit_range

    optional = ("augment_operations", "augment_magnitude")  # the hyper-parameters without which programs do less

    def __post_init__(self):
        if not isinstance(self.num_classes, int | np.integer) or self.num_classes < 2:
            raise ValueError(f"num_classes must be a whole number, at least 2, not {self.num_classes!r}")

    def check(self, batch: Any, hyperparameters: Mapping[str, Any]) -> dict[str, Any]:
        """Return the image and the label of a batch, or of all data in memory; a ValueError if they do not fit."""
        images, labels = pair_of(batch, "a batch", others=True)
        named = isinstance(images, Mapping) and self.preprocess is None  # such as tokens with their mask
        arrays = [*images.values(), labels] if named else [images, labels]
        if wrong := [one for one in arrays if not (hasattr(one, "dtype") and hasattr(one, "shape"))]:
            raise ValueError(f"images and labels of a batch must be arrays, not a {type(wrong[0]).__name__}")
        if not named:
            self._check_images(images, hyperparameters)
        elif changed := [name for name in ("augment_operations", "mixup") if hyperparameters.get(name)]:
            raise ValueError(f"inputs by name, such as tokens, cannot be mixed or augmented ({changed[0]})")
        self._check_labels(labels)
        return {"image": images, "label": labels}

    def _check_images(self, images, hyperparameters):
        if self.preprocess is unit_range and images.dtype != np.uint8:
            loud = not isinstance(images, jax.core.Tracer) and unscaled(images)
            fitting = "give images.astype(np.uint8), for these go up to 255, or" if loud else "give"
            raise ValueError(
                f"images must be bytes (uint8, 0 to 255), not {images.dtype}, because they are divided by 255: "
                f"{fitting} Classification(preprocess=None) for inputs that are as the network wants them"
            )
        if self.preprocess is None and images.dtype == np.uint8:
            raise ValueError(
                "bytes (uint8) would enter the network without being divided by 255: leave out preprocess=None"
            )
        if hyperparameters.get("augment_operations") and images.ndim != 4:
            raise ValueError(f"only images [B, H, W, C] can be augmented, not {list(images.shape)}")
        if hyperparameters["mixup"] and self.preprocess is None and not jnp.issubdtype(images.dtype, jnp.floating):
            raise ValueError(f"only inputs that are floats can be mixed (mixup), not {images.dtype}")

    def _check_labels(self, labels):
        soft = jnp.issubdtype(labels.dtype, jnp.floating)
        if not soft and not jnp.issubdtype(labels.dtype, jnp.integer):
            raise ValueError(f"labels must be whole numbers, or float targets, not {labels.dtype}")
        if soft and labels.shape[-1:] != (self.num_classes,):
            wrong = f"not {labels.dtype} {list(labels.shape)}"
            whole = ", or whole numbers: give labels.astype(int), without NaN," if labels.ndim == 1 else ","
            raise ValueError(f"targets must be [N, {self.num_classes}]{whole} {wrong}")
        if not getattr(labels, "is_fully_addressable", True) or not labels.size:
            return
        low, high = np.min(labels), np.max(labels)  # NaN if there is one
        if soft and not 0 <= low <= high < np.inf:
            raise ValueError(f"targets must be finite and not negative, but they go from {low} to {high}")
        if soft and (off := np.abs((sums := np.sum(labels, axis=-1, dtype=np.float32)) - 1)).max() > _ROUNDED:
            raise ValueError(
                f"targets must be the probabilities of one class, which sum to 1 in each row, but one sums to "
                f"{sums.flat[off.argmax()]:.4g}: where an example has several labels, write a loss of your own"
            )
        # inside a program a label out of bounds has no target, which is no error there
        if not soft and not 0 <= low <= high < self.num_classes:
            raise ValueError(f"labels must be 0 to {self.num_classes - 1}, but they go from {low} to {high}")

    def prepare(
        self,
        batch: Any,
        keys: tuple[jax.Array, jax.Array],
        *,
        label_smoothing: ArrayLike = 0.0,
        mixup: ArrayLike = 0.0,
        augment_operations: ArrayLike = 0,
        augment_magnitude: ArrayLike = 0.0,
    ) -> dict[str, jax.Array]:
        """Return inputs and targets [B, classes] of a whole batch, transformed and mixed."""
        images, labels = pair_of(batch, "a batch", others=True)
        images = images if self.preprocess is None else self.preprocess(images)
        if not isinstance(augment_operations, int):  # it is the default where no member is augmented
            images = rand_augment(keys[0], images, augment_operations, augment_magnitude)
        targets = soft_targets(labels, self.num_classes, label_smoothing)
        if not isinstance(images, Mapping) and jnp.issubdtype(images.dtype, jnp.floating):
            images, targets = _mixed(keys[1], images, targets, mixup)
        return {"image": images, "target": targets}

    def __call__(
        self, params: tree.Tree, batch: Mapping[str, jax.Array], key: jax.Array
    ) -> tuple[jax.Array, tree.Tree]:
        """Return the mean cross-entropy and the weights with updated statistics; a ValueError if shapes differ."""
        result = self.train_apply(params, batch["image"], key)
        logits, updated = result if isinstance(result, tuple) else (result, params)
        if logits.shape != batch["target"].shape:
            raise ValueError(
                f"the logits are {list(logits.shape)}, but the labels make targets {list(batch['target'].shape)}: "
                "labels are whole numbers [B] (not [B, 1]), and the network must have num_classes outputs"
            )
        return optax.softmax_cross_entropy(logits.astype(jnp.float32), batch["target"]).mean(), updated


_mixed = mixup


def soft_targets(labels: jax.Array, num_classes: int, label_smoothing) -> jax.Array:
    """Return targets [B, classes], (1 − s) onehot + s / classes; float labels are targets already, smoothed alike."""
    floats = jnp.issubdtype(labels.dtype, jnp.floating)
    targets = labels.astype(jnp.float32) if floats else jax.nn.one_hot(labels, num_classes, dtype=jnp.float32)
    return targets * (1.0 - label_smoothing) + label_smoothing / num_classes
