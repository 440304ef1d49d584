"""Put many heads on one trunk: a head for each task, all padded to the same classes, so that tasks share programs."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from numpy.typing import ArrayLike

from soups import tree
from soups.lazy import extra
from soups.models import functional

with extra("data"):
    from sklearn.linear_model import LogisticRegression

UNUSED = -30.0  # bias of a class that a task does not have: its probability is 1e-13, its gradient nothing to Adam


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ManyHeads:
    """Hold the functions of one network; they are the same objects for all tasks and seeds, so each compiles once.

    A trunk is a tree of weights without "head"; a head is {"kernel": [D, C], "bias": [C]}. What of a network is the
    same in all members may come in batches as "fixed", as the head of a task does.

    Attributes:
        make: from a number of classes to a Linen module without state, whose last layer is a `Dense` named "head".
        num_classes: C, of every head.
        image_shape: [H, W, channels]; of a network that takes arrays by name a batch of them.
        mean, std: as of `soups.models.apply_fn`.
    """

    make: Callable[[int], nn.Module]
    num_classes: int
    image_shape: Sequence[int] | Mapping[str, ArrayLike]
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None

    def __post_init__(self):
        if "params" in self._shapes or set(self._shapes.get("head", ())) != {"kernel", "bias"}:
            raise ValueError(
                "a network of many tasks must have no state, such as BatchNorm's, and end with a Dense named 'head' "
                f"with a bias; this one has {', '.join(self._shapes)}"
            )

    @functools.cached_property
    def _shapes(self):
        return jax.eval_shape(lambda key: functional.init(self.single, key, self.image_shape), jax.random.key(0))

    @property
    def width(self) -> int:
        """Return the number of features, D."""
        return self._shapes["head"]["kernel"].shape[0]

    @property
    def zero_head(self) -> tree.Tree:
        """Return a head that gives each class the same probability."""
        shape = self.width, self.num_classes
        return {"kernel": np.zeros(shape, np.float32), "bias": np.zeros(shape[1], np.float32)}

    @property
    def single(self) -> nn.Module:
        """Return the module of a trunk with one head."""
        return self.make(self.num_classes)

    def features(self, trunk: tree.Tree, inputs: jax.Array) -> jax.Array:
        """Return features [B, D] of inputs [B, H, W, channels], or by name [B, ...]."""
        identity = {"kernel": jnp.eye(self.width, dtype=jnp.float32), "bias": jnp.zeros(self.width, jnp.float32)}
        return functional.apply_fn(self.make(self.width), self.mean, self.std)({**trunk, "head": identity}, inputs)

    def logits(self, params: tree.Tree, inputs: jax.Array) -> jax.Array:
        """Return logits [B, C] of a trunk with the head of one task."""
        return functional.apply_fn(self.single, self.mean, self.std)(params, inputs)

    def task_logits(self, trunk: tree.Tree, batch: Mapping[str, Any]) -> jax.Array:
        """Return logits [B, C] of one task; its head comes in the batch, so that one program is for all tasks."""
        return self.logits(_whole(trunk, batch), batch["image"])

    def task_loss(self, trunk: tree.Tree, batch: Mapping[str, Any]) -> jax.Array:
        """Return the mean cross-entropy on a batch of one task."""
        logits = self.task_logits(trunk, batch)
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean()

    def joint_logits(self, params: tree.Tree, inputs: jax.Array) -> jax.Array:
        """Return logits [B, T, C] of a trunk with the heads of T tasks, from one input for each: see `bundled`."""
        trunk, head = split_head(params)
        features = self.features(trunk, self._apart(inputs)).reshape(-1, len(head["bias"]), self.width)
        return jnp.einsum("btd,tdc->btc", features, head["kernel"]) + head["bias"][None]

    def _apart(self, inputs):
        """Return the inputs of all tasks one below the other."""
        if isinstance(inputs, Mapping):
            return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), inputs)
        count, height, width, channels = inputs.shape
        own = self.image_shape[-1]
        apart = jnp.moveaxis(inputs.reshape(count, height, width, channels // own, own), -2, 1)
        return apart.reshape(-1, height, width, own)

    def joint_loss(self, trunk: tree.Tree, batch: Mapping[str, Any], temperature: jax.Array) -> jax.Array:
        """Return the mean cross-entropy on a batch of all tasks."""
        logits = temperature * self.joint_logits(_whole(trunk, batch), batch["image"])
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean()


def _whole(trunk, batch):
    return {**batch.get("fixed", {}), **trunk, "head": batch["head"]}


def split_head(params: tree.Tree) -> tuple[tree.Tree, tree.Tree]:
    """Split into (trunk, head)."""
    return {name: part for name, part in params.items() if name != "head"}, params["head"]


def bundled(datasets) -> dict[str, np.ndarray]:
    """Lay equally many examples of T tasks together: "image" uint8 [N, H, W, T · channels], "label" int32 [N, T].

    Inputs by name, such as tokens, become [N, T, ...].
    """
    if len(counts := {len(dataset) for dataset in datasets}) > 1:
        raise ValueError(
            f"tasks that are trained together need equally many examples, not {', '.join(map(str, counts))}"
        )
    inputs = [dataset.images for dataset in datasets]
    named = isinstance(inputs[0], Mapping)
    images = jax.tree.map(lambda *own: np.stack(own, 1), *inputs) if named else np.concatenate(inputs, axis=-1)
    return {"image": images, "label": np.stack([dataset.labels for dataset in datasets], axis=1)}


def stacked(heads: Mapping[str, tree.Tree]) -> tree.Tree:
    """Stack heads to {"kernel": [T, D, C], "bias": [T, C]}."""
    return jax.tree.map(lambda *leaves: np.stack(leaves), *heads.values())


def unstacked(head: tree.Tree, names) -> dict[str, tree.Tree]:
    """Undo `stacked`."""
    return {name: jax.tree.map(lambda leaf, at=index: leaf[at], head) for index, name in enumerate(names)}


def probed_head(features: np.ndarray, labels: np.ndarray, num_classes: int) -> tree.Tree:
    """Fit a head [D, num_classes] on features [N, D] by logistic regression; classes without labels are `UNUSED`."""
    model = LogisticRegression(max_iter=5000).fit(features.astype(np.float64), labels)
    kernel, bias = np.zeros((features.shape[1], num_classes), np.float32), np.full(num_classes, UNUSED, np.float32)
    if len(model.classes_) == 2:  # of two classes it keeps the difference
        kernel[:, model.classes_[1]], bias[model.classes_] = model.coef_[0], (0.0, model.intercept_[0])
    else:
        kernel[:, model.classes_], bias[model.classes_] = model.coef_.T, model.intercept_
    return {"kernel": kernel, "bias": bias}


def padded(head: tree.Tree, count: int) -> tree.Tree:
    """Return a head with `UNUSED` classes behind its own, so that there are `count`."""
    missing = count - len(head["bias"])
    kernel = np.pad(np.asarray(head["kernel"]), ((0, 0), (0, missing)))
    return {"kernel": kernel, "bias": np.pad(np.asarray(head["bias"]), (0, missing), constant_values=UNUSED)}


def head_logits(features: np.ndarray, head: tree.Tree) -> np.ndarray:
    """Return logits [N, C] on the host."""
    return features @ np.asarray(head["kernel"]) + np.asarray(head["bias"])
