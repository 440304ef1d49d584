"""Run a network over a dataset."""

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from soups import tree
from soups.data import project_logits
from soups.evaluate.classification import metrics
from soups.partition import axes_of, constrained, joined

# images up to this size stay on the devices; where these tell how much memory they have, up to this part of it
_RESIDENT_BYTES, _RESIDENT_PART = 2**30, 1 / 16


class Evaluator:
    """Measure any weights of one network on one dataset: `evaluator(params)` gives the metrics of `metrics`.

    The images are decoded once, by the dataset, and moved to the devices once if they take at most 1 GiB or a sixteenth
    of the devices' memory, else batch by batch. Evaluators of the same `apply_fn` and shapes share one program,
    whatever the weights. Batches are of one size; the last is padded, and every example counts once.

    Args:
        apply_fn: `apply_fn(params, inputs) -> logits [B, C]`, each example on its own (BatchNorm in inference mode).
        dataset: has `images` [N, ...], `labels` [N] and `class_groups`: None, or for each class of the dataset the
            indices of the network's outputs that mean it, whose largest is its logit.
        batch_size: the most examples in one step, over all devices; rounded up to a multiple of them.
        mesh: shards the batch over its axis "data"; over several processes, each reads and computes its own part of
            every batch and gets all logits. None computes on one device.
        preprocess: `preprocess(images) -> inputs`, compiled with the network; default: uint8 to float32 in [0, 1].

    Attributes:
        labels: the labels of the dataset, [N].
        forward_passes: how many examples went through the network until now, without padding.

    Raises:
        ValueError: a dataset that is empty or whose labels, images and class groups do not fit; images that are not
            uint8 without a `preprocess`; a mesh without an axis "data"; a batch size below 1.
    """

    def __init__(
        self,
        apply_fn: Callable,
        dataset: Any,
        *,
        batch_size: int = 1000,
        mesh: Mesh | None = None,
        preprocess: Callable | None = None,
    ):
        self.labels = np.asarray(dataset.labels)
        self.forward_passes = 0
        self._images = dataset.images
        self._resident = None
        self._mesh = mesh
        self._groups = dataset.class_groups
        _check_dataset(self._images, self.labels, self._groups)
        _check_settings(self._images, batch_size, mesh, preprocess)
        used = self.labels if self._groups is None else np.concatenate(self._groups)
        self._outputs_needed = max(int(used.max()) + 1, 2)
        # even batches: 1,500 examples make two of 750, not 1,000 and a half-empty one
        steps = math.ceil(len(self.labels) / batch_size)
        shards = 1 if mesh is None else mesh.shape["data"]
        self._batch = math.ceil(len(self.labels) / steps / shards) * shards
        self._starts = range(0, len(self.labels), self._batch)
        self._program = functools.partial(_forward, apply_fn=apply_fn, preprocess=preprocess or _unit_range, mesh=mesh)

    def __call__(self, params: tree.Tree) -> dict[str, float]:
        """Return the metrics of the network with weights `params`.

        Raises:
            ValueError: as `logits`, or logits that hold NaN or infinity.
        """
        return metrics(self.logits(params), self.labels)

    def logits(self, params: tree.Tree) -> np.ndarray:
        """Return the logits of all examples in their order, class groups applied: float32 [N, classes of the dataset].

        Raises:
            ValueError: the network's output is not [batch, classes] or has fewer classes than the labels or the class
                groups need.
        """
        params = self._place(params)
        gathered = None if self._mesh is None else tuple(map(_gathered, jax.tree.leaves(params)))
        rows, previous = [], None
        for images in self._batches():
            current = self._program(params, images, gathered=gathered)
            if current.shape[1] < self._outputs_needed:
                what = "labels" if self._groups is None else "class groups"
                raise ValueError(
                    f"the network gives {current.shape[1]} classes, but the {what} need at least {self._outputs_needed}"
                )
            # fetch one step late: the device computes meanwhile, and at most two batches are in flight
            if previous is not None:
                rows.append(self._fetch(previous))
            previous = current
        rows.append(self._fetch(previous))
        self.forward_passes += len(self.labels)
        return np.concatenate(rows)[: len(self.labels)]

    def _fetch(self, logits) -> np.ndarray:
        return project_logits(np.asarray(logits), self._groups)

    def _place(self, params):
        if self._mesh is None:
            return jax.device_put(params)
        devices, everywhere = set(self._mesh.devices.flat), NamedSharding(self._mesh, PartitionSpec())

        def place(leaf):
            if isinstance(leaf, jax.Array) and leaf.sharding.device_set == devices:
                return leaf  # sharded weights stay sharded
            if jax.process_count() == 1:
                return jax.device_put(leaf, everywhere)
            host = np.asarray(leaf)  # device_put would send it to all processes, to see whether theirs is the same
            return jax.make_array_from_callback(host.shape, everywhere, lambda index: host[index])

        return jax.tree.map(place, params)

    def _batches(self) -> Iterator[jax.Array]:
        devices = jax.local_devices()[:1] if self._mesh is None else list(self._mesh.devices.flat)
        if self._images.nbytes > resident_bytes(devices, 1 if self._mesh is None else self._mesh.shape["data"]):
            return map(self._batch_at, self._starts)
        if self._resident is None:
            self._resident = [self._batch_at(start) for start in self._starts]
        return iter(self._resident)

    def _batch_at(self, start) -> jax.Array:
        if self._mesh is None:
            return jax.device_put(self._padded(start, self._batch))
        sharding = NamedSharding(self._mesh, PartitionSpec("data"))
        # only what this process's devices take: images may be decoded as they are read
        own = sharding.addressable_devices_indices_map((self._batch,)).values()
        first = min(rows.indices(self._batch)[0] for (rows,) in own)
        last = max(rows.indices(self._batch)[1] for (rows,) in own)
        images = self._padded(start + first, last - first)

        def part(index):
            low, high, _ = index[0].indices(self._batch)
            return images[low - first : high - first]

        return jax.make_array_from_callback((self._batch, *images.shape[1:]), sharding, part)

    def _padded(self, start, count):
        first = min(start, len(self.labels) - 1)  # one at least is read, for its shape
        images = np.asarray(self._images[first : start + count])[start - first :]
        if len(images) == count:
            return images  # as they lie in memory or in a mapped file
        return np.pad(images, [(0, count - len(images))] + [(0, 0)] * (images.ndim - 1))


def resident_bytes(devices: Sequence[jax.Device], parts: int) -> int:
    """Return the size up to which images stay on devices that each hold one of so many parts of them."""
    own = [device for device in devices if device.process_index == jax.process_index()]
    limits = [(device.memory_stats() or {}).get("bytes_limit", 0) for device in own]
    return max(_RESIDENT_BYTES, int(parts * min(limits) * _RESIDENT_PART))


# Static arguments instead of a closure for each evaluator: twenty shifts of one test set then share one compilation.
@functools.partial(jax.jit, static_argnames=("apply_fn", "preprocess", "mesh", "gathered"))
def _forward(params, images, *, apply_fn, preprocess, mesh, gathered):
    if gathered is not None:
        leaves, structure = jax.tree.flatten(params)
        pairs = zip(leaves, gathered, strict=True)
        params = jax.tree.unflatten(
            structure, [leaf if where is None else constrained(leaf, where) for leaf, where in pairs]
        )
    logits = apply_fn(params, preprocess(images))
    if logits.ndim != 2 or len(logits) != len(images):
        raise ValueError(f"the network must give logits [{len(images)}, classes], not of shape {logits.shape}")
    logits = logits.astype(jnp.float32)
    if mesh is None:
        return logits
    # replicated, so that every process holds the logits of all
    return jax.lax.with_sharding_constraint(logits, NamedSharding(mesh, PartitionSpec()))


def _gathered(leaf):
    """Return the sharding of a weight in use if it is cut over "data": else XLA would gather the rows of the batch."""
    sharding = leaf.sharding
    if isinstance(sharding, NamedSharding) and "data" in axes_of(sharding.spec):
        return joined(sharding, {"data"})
    return None


def _unit_range(images):
    return images.astype(jnp.float32) / 255


def _check_dataset(images, labels, groups):
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"labels must be integers [N], not {labels.dtype} of shape {labels.shape}")
    problems = []
    if len(images) != len(labels):
        problems.append(f"{len(images)} images have {len(labels)} labels")
    if not len(labels):
        problems.append("it has no examples")
    elif labels.min() < 0:
        problems.append(f"its labels go down to {labels.min()}, but classes count from 0")
    if groups is not None:
        problems += _group_problems(labels, groups)
    if problems:
        raise ValueError("the dataset cannot be evaluated: " + "; ".join(problems))


def _group_problems(labels, groups):
    if len(groups) < 2:
        yield f"class_groups has {len(groups)} classes: at least two are needed"
    elif len(labels) and labels.max() >= len(groups):
        yield f"its labels go up to {labels.max()}, but class_groups has {len(groups)} classes"
    for number, group in enumerate(groups):
        if not group or min(group) < 0:
            yield f"group {number} of class_groups must list outputs of the network, not {group}"


def _check_settings(images, batch_size, mesh, preprocess):
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, not {batch_size}")
    if mesh is not None and "data" not in mesh.axis_names:
        raise ValueError(f"the mesh needs an axis 'data'; it has {', '.join(map(repr, mesh.axis_names))}")
    if preprocess is None and images.dtype != np.uint8:
        raise ValueError(f"images of dtype {images.dtype} need a preprocess: the default is for uint8")
