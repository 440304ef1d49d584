"""Run a network, with one set of weights or with several side by side, over a dataset."""

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from soups import tree
from soups.arguments import check_takes, check_within
from soups.arrays import refusal
from soups.data import project_logits
from soups.evaluate import classification
from soups.evaluate._examples import Examples
from soups.evaluate.cache import LogitCache
from soups.evaluate.measures import CLASS_METRICS, Metric, chosen_metrics
from soups.journal import content_digest
from soups.names import bounded
from soups.partition import axes_of, check_mesh, constrained, joined
from soups.recipes._scores import NotFiniteError, number

# inputs up to this size stay on the devices; where these tell how much memory they have, up to this part of it
_RESIDENT_BYTES, _RESIDENT_PART = 2**30, 1 / 16


class Evaluator:
    """Measure any weights of one network on one dataset: `evaluator(params)` gives its metrics.

        evaluator = Evaluator(apply_fn, task.test)                            # accuracy, nll, brier, ece
        evaluator = Evaluator(apply_fn, (inputs, targets), metrics=["mse", "r2"])
        evaluator = Evaluator(apply_fn, data, metrics={"cost": Metric(my_cost, "min")}, width=8)
        evaluator.many(candidates)                                            # eight at once

    The inputs are decoded once, by the dataset, and moved to the devices once if they take at most 1 GiB or a sixteenth
    of the devices' memory, else batch by batch. Evaluators of the same `apply_fn` and shapes share one program,
    whatever the weights. Batches are of one size; the last is padded, and every example counts once.

    With a `width` the devices are the rows of a mesh ("member", "data"): every network is copied to one row, and each
    batch is sharded over the columns, so that one program runs all rows in step and the inputs are read once. A round
    of fewer networks than rows computes the last of them again.

    Args:
        apply_fn: `apply_fn(params, inputs) -> outputs`, mostly logits [B, C], each example on its own (BatchNorm in
            inference mode). Outputs are any pytree of arrays [B, ...].
        dataset: inputs and targets, pytrees of arrays [N, ...], in any of the forms of `soups.data.pair_of`; its
            `class_groups`, if it has any, are for each class of the dataset the indices of the network's outputs that
            mean it, whose largest is its logit.
        metrics: names of ready-made metrics (see `soups.evaluate.METRICS`), or functions `(outputs, targets) -> float`
            by name, those of which the direction is not known as `Metric(function, "min")`; default: those of
            `soups.evaluate.metrics`.
        keep: `keep(outputs, targets)`, compiled with the network: what is kept of a batch's outputs for the metrics,
            such as `token_scores` where logits [B, T, vocabulary] would fill the memory.
        batch_size: the most examples in one step, over all devices; rounded up to a multiple of them.
        mesh: shards the batch over its axis "data"; over several processes, each reads and computes its own part of
            every batch and gets all outputs. None computes on one device.
        width: how many networks `many` runs at once, each on a group of devices; divides the number of devices of each
            process.
        devices: those to divide into groups; default all.
        preprocess: `preprocess(inputs) -> inputs`, compiled with the network; default: uint8 to float32 in [0, 1].
        cache, key: keep the outputs of each network, an array or arrays by name, on disk, by a digest of its weights
            and by `key`, which must say what the data and the network are.

    Attributes:
        labels: the targets of the dataset.
        modes: "max" or "min" for each metric, whichever is better.
        forward_passes: how many examples went through the network until now, without padding and repetitions.

    Raises:
        ValueError: an empty dataset, or one whose inputs, labels and class groups do not fit together; without a
            `preprocess` images of a dataset that are not uint8, images that are floats up to 255, and inputs that hold
            NaN or infinity; unknown metrics, or no metrics for targets that are not classes; a mesh without an axis
            "data", or together with a width; a width that does not divide the number of devices; a batch size below 1;
            a cache without a key.
    """

    def __init__(
        self,
        apply_fn: Callable,
        dataset: Any,
        *,
        metrics: Sequence[str] | Mapping[str, Callable | Metric] | None = None,
        keep: Callable | None = None,
        batch_size: int = 1000,
        mesh: Mesh | None = None,
        width: int | None = None,
        devices: Sequence[jax.Device] | None = None,
        preprocess: Callable | None = None,
        cache: LogitCache | None = None,
        key: str | None = None,
    ):
        self._metrics = chosen_metrics(classification.NAMES if metrics is None else metrics)
        self._at_once = metrics is None
        self.modes = {name: metric.mode for name, metric in self._metrics.items()}
        self._classes = any(metric in CLASS_METRICS for metric in self._metrics.values())
        how = {"preprocessed": preprocess is not None, "as_usual": preprocess is None or preprocess is unit_range}
        self._examples = Examples(dataset, classes=self._classes, **how)
        self.labels = self._examples.targets
        self.forward_passes = 0
        batch_size = check_within("batch_size", batch_size, "[1, inf)", whole=True)
        _check_settings(mesh, width, devices, cache, key)
        check_takes("apply_fn", apply_fn, "params, inputs")
        for name, function, given in (("preprocess", preprocess, "inputs"), ("keep", keep, "outputs, targets")):
            if function is not None:
                check_takes(name, function, given)
        self.mesh = mesh if width is None else _grouped(width, devices)
        self._rows, self._side_by_side = width or 1, width is not None
        # even batches: 1,500 examples make two of 750, not 1,000 and a half-empty one
        count = len(self._examples)
        shards = 1 if self.mesh is None else self.mesh.shape["data"]
        self._batch = math.ceil(count / math.ceil(count / batch_size) / shards) * shards
        self._starts = range(0, count, self._batch)
        self._data = self._examples.inputs, self.labels if keep else None
        self._resident = None
        network = _Network(apply_fn, preprocess or unit_range, keep, self._classes)
        self._program = functools.partial(_forward, network=network, mesh=self.mesh, side_by_side=self._side_by_side)
        self._cache, self._key = cache, key

    def __call__(self, params: tree.Tree) -> dict[str, float]:
        """Return the metrics of the network with weights `params`.

        Raises:
            ValueError: as `logits`.
            NotFiniteError: a ValueError: outputs that hold NaN or infinity.
        """
        return self.measured(self.logits(params))

    def many(self, networks: Sequence[tree.Tree]) -> list[dict[str, float]]:
        """Return the metrics of the network with each of several weights, `width` of them at once.

        All metrics of a network whose outputs hold NaN or infinity are NaN, so that the others' are not lost.

        Raises:
            ValueError: as `logits`; weights whose structures differ.
        """
        return [self._measured_or_nan(outputs) for outputs in self._outputs(networks)]

    def logits(self, params: tree.Tree) -> Any:
        """Return the outputs of all examples in their order, class groups applied: mostly float32 [N, classes].

        Raises:
            ValueError: for classification: outputs that are not [batch, classes], or have fewer classes than the labels
                or the class groups need.
        """
        return self.many_logits([params])[0]

    def many_logits(self, networks: Sequence[tree.Tree]) -> list[Any]:
        """Return for each of several weights what `logits` gives, `width` of them at once.

        Raises:
            ValueError: as `logits`; weights whose structures differ.
        """
        return list(self._outputs(networks))

    def measured(self, outputs: Any) -> dict[str, float]:
        """Return the metrics of outputs that `logits` gave, or of the mean of several networks'.

        Raises:
            NotFiniteError: a ValueError: they hold NaN or infinity.
        """
        if self._at_once:
            return classification.metrics(outputs, self.labels)
        found = {name: metric.function(outputs, self.labels) for name, metric in self._metrics.items()}
        return {name: number(value, f"the metric {name!r} must give a number, not") for name, value in found.items()}

    def _measured_or_nan(self, outputs):
        try:
            return self.measured(outputs)
        except NotFiniteError:
            return dict.fromkeys(self.modes, math.nan)

    def _outputs(self, networks):
        if not isinstance(networks, Sequence):
            raise ValueError(f"several networks must be a list of their weights, not a {type(networks).__name__}")
        for params in networks:
            check_weights(params)
        if self._rows > 1 and len(networks) > 1:
            tree.check_same_structure(networks)
        for start in range(0, len(networks), self._rows):
            side_by_side = networks[start : start + self._rows]
            yield from self._computed(side_by_side) if self._cache is None else self._kept(side_by_side)

    def _kept(self, networks):
        keys = [(content_digest(params), self._key) for params in networks]
        lacking = {key: params for key, params in zip(keys, networks, strict=True) if key not in self._cache}
        fresh = dict(zip(lacking, self._computed(list(lacking.values())), strict=True)) if lacking else {}

        def compute(key, params):  # what is there but damaged is not among the fresh ones
            return fresh[key] if key in fresh else self._computed([params])[0]

        pairs = zip(keys, networks, strict=True)
        return [self._cache.get(key, functools.partial(compute, key, params)) for key, params in pairs]

    def _computed(self, networks):
        params = self._placed(networks)
        gathered = None if self.mesh is None else tuple(map(_gathered, jax.tree.leaves(params)))
        parts, previous = [], None
        for batch in self._batches():
            current = self._program(params, batch, gathered=gathered)
            if self._classes:
                self._examples.check_classes(jax.tree.leaves(current)[0].shape[-1])
            # fetch one step late: the device computes meanwhile, and at most two batches are in flight
            if previous is not None:
                parts.append(self._fetched(previous))
            previous = current
        parts.append(self._fetched(previous))
        count = len(self._examples)
        self.forward_passes += len(networks) * count
        return [
            jax.tree.map(lambda *part, row=row: np.concatenate([rows[row] for rows in part])[:count], *parts)
            for row in range(len(networks))
        ]

    def _fetched(self, outputs):
        return jax.tree.map(lambda leaf: project_logits(np.asarray(leaf), self._examples.groups), outputs)

    def _placed(self, networks):
        if self.mesh is None:
            # a program takes NumPy's arrays in a tenth of the time, but would for each batch again
            return networks[0] if len(self._starts) == 1 else jax.device_put(networks[0])
        if self._side_by_side:
            filled = [*networks, *[networks[-1]] * (self._rows - len(networks))]
            return jax.tree.map(self._stacked, *filled)
        devices, everywhere = set(self.mesh.devices.flat), NamedSharding(self.mesh, PartitionSpec())

        def place(leaf):
            if isinstance(leaf, jax.Array) and leaf.sharding.device_set == devices:
                return leaf  # sharded weights stay sharded
            if jax.process_count() == 1:
                return jax.device_put(leaf, everywhere)
            host = np.asarray(leaf)  # device_put would send it to all processes, to see whether theirs is the same
            return jax.make_array_from_callback(host.shape, everywhere, lambda index: host[index])

        return jax.tree.map(place, networks[0])

    def _stacked(self, *leaves):
        """Put one leaf of each network on the devices of its row: [rows, ...], sharded over the rows."""
        parts = [
            jax.device_put(leaf[None], device)
            for leaf, row in zip(leaves, self.mesh.devices, strict=True)
            for device in row
            if device.process_index == jax.process_index()
        ]
        sharding = NamedSharding(self.mesh, PartitionSpec("member"))
        return jax.make_array_from_single_device_arrays((len(leaves), *leaves[0].shape), sharding, parts)

    def _batches(self) -> Iterator[Any]:
        devices = jax.local_devices()[:1] if self.mesh is None else list(self.mesh.devices.flat)
        parts = 1 if self.mesh is None else self.mesh.shape["data"]
        if sum(leaf.nbytes for leaf in jax.tree.leaves(self._data)) > resident_bytes(devices, parts):
            return map(self._batch_at, self._starts)
        if self._resident is None:
            self._resident = [self._batch_at(start) for start in self._starts]
        return iter(self._resident)

    def _batch_at(self, start):
        return jax.tree.map(lambda leaf: self._part_of(leaf, start), self._data)

    def _part_of(self, leaf, start) -> jax.Array:
        if self.mesh is None:
            return jax.device_put(self._padded(leaf, start, self._batch))
        sharding = NamedSharding(self.mesh, PartitionSpec("data"))
        # only what this process's devices take: images may be decoded as they are read
        own = sharding.addressable_devices_indices_map((self._batch,)).values()
        first = min(rows.indices(self._batch)[0] for (rows,) in own)
        last = max(rows.indices(self._batch)[1] for (rows,) in own)
        rows = self._padded(leaf, start + first, last - first)

        def part(index):
            low, high, _ = index[0].indices(self._batch)
            return rows[low - first : high - first]

        return jax.make_array_from_callback((self._batch, *rows.shape[1:]), sharding, part)

    def _padded(self, leaf, start, count):
        first = min(start, len(self._examples) - 1)  # one at least is read, for its shape
        rows = np.asarray(leaf[first : start + count])[start - first :]
        if len(rows) == count:
            return rows  # as they lie in memory or in a mapped file
        return np.pad(rows, [(0, count - len(rows))] + [(0, 0)] * (rows.ndim - 1))


def resident_bytes(devices: Sequence[jax.Device], parts: int) -> int:
    """Return the size up to which inputs stay on devices that each hold one of so many parts of them."""
    own = [device for device in devices if device.process_index == jax.process_index()]
    limits = [(device.memory_stats() or {}).get("bytes_limit", 0) for device in own]
    return max(_RESIDENT_BYTES, int(parts * min(limits) * _RESIDENT_PART))


class _Network(NamedTuple):
    """Turn weights and a batch into outputs; equal ones are one program."""

    apply_fn: Callable
    preprocess: Callable
    keep: Callable | None
    classes: bool

    def __call__(self, params, batch):
        inputs, targets = batch
        count = len(jax.tree.leaves(inputs)[0])
        outputs = self.apply_fn(params, self.preprocess(inputs))
        outputs = self.keep(outputs, targets) if self.keep else outputs
        shapes = [leaf.shape for leaf in jax.tree.leaves(outputs)]
        if self.classes and (len(shapes) != 1 or len(shapes[0]) != 2 or shapes[0][0] != count):
            raise ValueError(f"the network must give logits [{count}, classes], not of shape {_listed(shapes)}")
        if any(jnp.issubdtype(leaf.dtype, jnp.complexfloating) for leaf in jax.tree.leaves(outputs)):
            raise ValueError("the network must give real numbers, but some of its outputs are complex")
        if any(shape[:1] != (count,) for shape in shapes):
            raise ValueError(f"{count} examples need outputs [{count}, ...], not of shape {_listed(shapes)}")
        return jax.tree.map(_in_float32, outputs)


# Static arguments instead of a closure for each evaluator: twenty shifts of one test set then share one compilation.
@functools.partial(jax.jit, static_argnames=("network", "mesh", "side_by_side", "gathered"))
def _forward(params, batch, *, network, mesh, side_by_side, gathered):
    """Return the outputs [networks, B, ...], replicated, so that every process holds all of them."""

    def of_row(params, batch):
        outputs = network(jax.tree.map(lambda leaf: leaf[0], params), batch)
        return jax.tree.map(lambda leaf: leaf[None], outputs)

    if side_by_side:
        row, data, both = PartitionSpec("member"), PartitionSpec("data"), PartitionSpec("member", "data")
        outputs = jax.shard_map(of_row, mesh=mesh, in_specs=(row, data), out_specs=both, check_vma=False)(params, batch)
    else:
        leaves, structure = jax.tree.flatten(params)
        pairs = zip(leaves, gathered or [None] * len(leaves), strict=True)
        leaves = [leaf if where is None else constrained(leaf, where) for leaf, where in pairs]
        outputs = jax.tree.map(lambda leaf: leaf[None], network(jax.tree.unflatten(structure, leaves), batch))
    if mesh is None:
        return outputs
    everywhere = NamedSharding(mesh, PartitionSpec())
    return jax.tree.map(lambda leaf: jax.lax.with_sharding_constraint(leaf, everywhere), outputs)


def _gathered(leaf):
    """Return the sharding of a weight in use if it is cut over "data": else XLA would gather the rows of the batch."""
    sharding = leaf.sharding
    if isinstance(sharding, NamedSharding) and "data" in axes_of(sharding.spec):
        return joined(sharding, {"data"})
    return None


def _in_float32(leaf):
    return leaf.astype(jnp.float32) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf


def check_weights(params: tree.Tree) -> None:
    """See that weights can be computed with, or raise a ValueError that names the leaves that cannot."""
    leaves = jax.tree.leaves(params)
    if params is None:
        raise ValueError("weights must be a tree of arrays, not None")
    if any(map(_unfit, leaves)):
        found = {name: _unfit(leaf) for name, leaf in tree.flatten(params).items()}
        lines = [f"  {name or 'the whole'} {why}" for name, why in found.items() if why]
        raise ValueError(f"weights must be arrays of numbers:\n{bounded(lines)}")


def _unfit(leaf):
    if isinstance(leaf, jax.Array | np.ndarray | np.generic | bool | int | float | complex):
        return refusal(leaf)
    return f"is a {type(leaf).__name__}"


def unit_range(inputs: Any) -> Any:
    """Turn uint8 into float32 in [0, 1], in any pytree; all else stays, but images of other integers: a ValueError."""
    return jax.tree.map(_in_unit_range, inputs)


def _in_unit_range(leaf):
    if leaf.dtype == jnp.uint8:
        return leaf.astype(jnp.float32) / 255
    if leaf.ndim == 4 and jnp.issubdtype(leaf.dtype, jnp.integer):
        raise ValueError(f"images {list(leaf.shape)} of dtype {leaf.dtype} need a preprocess: the default is for uint8")
    return leaf


def _grouped(width, devices) -> Mesh:
    own = {}
    for device in jax.devices() if devices is None else devices:
        own.setdefault(device.process_index, []).append(device)
    if width < 1 or any(len(some) % width for some in own.values()):
        numbers = ", ".join(str(len(some)) for some in own.values())
        raise ValueError(f"{width} groups do not divide the devices of each process ({numbers})")
    # a part of every process in every group, so that each of them gets all outputs
    rows = [[device for some in own.values() for device in np.array_split(some, width)[row]] for row in range(width)]
    return Mesh(np.array(rows), ("member", "data"), axis_types=(AxisType.Auto,) * 2)


def _listed(shapes):
    return ", ".join(map(str, shapes)) or "()"


def _check_settings(mesh, width, devices, cache, key):
    if width is not None and (isinstance(width, bool) or not isinstance(width, int | np.integer)):
        raise ValueError(f"width must be an integer, not {width!r:.200}")
    check_mesh(mesh, "data")
    if mesh is not None and width is not None:
        raise ValueError("give a mesh for one network at a time, or a width for several, not both")
    if not (
        devices is None
        or (isinstance(devices, Sequence | np.ndarray) and all(isinstance(d, jax.Device) for d in devices))
    ):
        raise ValueError(f"devices must be a list of them, such as jax.devices()[:2], not {devices!r:.200}")
    if not isinstance(cache, LogitCache | None):
        raise ValueError(f"cache must be a soups.evaluate.LogitCache, not a {type(cache).__name__}")
    if cache is not None and not (isinstance(key, str) and key):
        raise ValueError("a cache needs a key=, a string such as a network's name and a digest of the data")
