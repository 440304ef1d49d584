"""One door for what enters training: settings, hyper-parameters, weights and data, checked before long work."""

import dataclasses
import functools
import inspect
import math
import numbers
import types
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np
import xxhash

from soups import tree
from soups.arguments import check_takes
from soups.data import pair_of
from soups.names import bounded, check_name, few

REQUIRED = inspect.Parameter.empty
# what every run has, whatever its loss and its optimizer take
RUN = {"seed": 0, "epochs": 1.0, "num_steps": 0, "warmup_fraction": 0.1, "warmup_steps": 0.0, "sam_radius": 0.0}

_NOT_NEGATIVE = (lambda x: x >= 0, "a finite number at least 0")
_FRACTION = (lambda x: 0 <= x <= 1, "a number between 0 and 1")
_PART = (lambda x: 0 <= x < 1, "a number at least 0 and below 1")
_POSITIVE = (lambda x: x > 0, "a finite number above 0")
_RANGES = {
    "learning_rate": _NOT_NEGATIVE,
    "weight_decay": _NOT_NEGATIVE,
    "label_smoothing": _FRACTION,
    "mixup": _NOT_NEGATIVE,
    "augment_operations": (lambda x: x in (0, 1, 2), "0, 1 or 2"),
    "augment_magnitude": (lambda x: 0 <= x <= 20, "a number between 0 and 20"),
    "sam_radius": _NOT_NEGATIVE,
    "warmup_fraction": _FRACTION,
    "warmup_steps": _NOT_NEGATIVE,
    "epochs": _POSITIVE,
    "num_steps": (lambda x: x >= 1 and x == int(x), "at least 1 and a whole number"),
    "seed": (lambda x: 0 <= x < 2**31 and x == int(x), "a whole number from 0 to 2**31 - 1"),
    "clip_norm": _POSITIVE,
    "ema_decay": _PART,
    "ema_decays": _PART,
    "swa_start": _PART,
    "accumulate": (lambda x: x >= 1 and x == int(x), "at least 1 and a whole number"),
    "save_every": (lambda x: x >= 1 and x == int(x), "at least 1 and a whole number"),
    "batch_size": (lambda x: x >= 1 and x == int(x), "at least 1 and a whole number"),
}


def number(name: str, value: Any) -> None:
    """See that a setting is a finite number in the range of its name.

    Raises:
        ValueError: it is not.
    """
    fits, words = _RANGES.get(name, (lambda _: True, "a finite number"))
    value = value.item() if getattr(value, "ndim", None) == 0 else value
    plain = isinstance(value, numbers.Real) and not isinstance(value, bool | np.bool_)
    if not plain or not math.isfinite(value) or not fits(value):
        raise ValueError(f"{name} must be {words}, not {value!r:.200}")


def takes(function: Callable, skip: int = 0) -> dict[str, Any]:
    """Return the numbers that a function takes by name, with their defaults, `REQUIRED` where it has none.

    `skip`: parameters at its beginning that are something else. One whose default is no number is a setting of the
    function that no member changes.
    """
    try:
        parameters = list(inspect.signature(function).parameters.values())[skip:]
    except (TypeError, ValueError):  # a function in C says nothing of itself
        return {}
    named = [one for one in parameters if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)]
    return {one.name: one.default for one in named if one.name != "mask" and _is_number(one.default)}


def takes_mask(function: Callable) -> bool:
    """Say whether a function that makes an optimizer takes the leaves that decay."""
    return "mask" in inspect.signature(function).parameters


def is_transformation(optimizer: Any) -> bool:
    """Say whether an optimizer is an optax transformation, not a function that makes one."""
    return hasattr(optimizer, "init") and hasattr(optimizer, "update")


def training(settings: Any) -> None:
    """Check the settings of a `soups.train.Training`.

    Raises:
        ValueError: a loss or an optimizer that is none; a number out of its range; rules that are not pairs of a regex
            and a number, or are for the decay of an optimizer that has its own; an average's decay named twice.
    """
    taken = takes(settings.loss, skip=3) if callable(settings.loss) else {}
    check_takes("loss", settings.loss, "params, batch, key", **taken)
    if not callable(settings.optimizer) and not is_transformation(settings.optimizer):
        raise ValueError(
            "optimizer must be an optax transformation, or a function of hyper-parameters that makes one, not a "
            f"{type(settings.optimizer).__name__}"
        )
    for name in ("clip_norm", "ema_decay", "swa_start", "accumulate"):
        if (value := getattr(settings, name)) is not None:
            number(name, value)
    for decay in settings.ema_decays:
        number("ema_decays", decay)
    if len(set(settings.ema_decays)) < len(settings.ema_decays):
        raise ValueError(f"ema_decays names a decay twice: {settings.ema_decays}")
    for rule in settings.learning_rate_rules or ():
        if len(rule) != 2 or not _is_number(rule[1]) or not 0 <= rule[1] < math.inf:
            raise ValueError(f"learning_rate_rules are pairs (regex, multiplier at least 0), not {rule!r:.200}")
    if settings.decay_rules is not None and is_transformation(settings.optimizer):
        raise ValueError("decay_rules cannot change a finished optimizer: give a function that takes `mask`")


def hyperparameters(settings: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """Fill in what a member's hyper-parameters leave out.

    Raises:
        ValueError: a name that neither the run, the loss nor the optimizer takes, with the closest one; one that has to
            be given; a number out of its range; a SAM radius without `Training(sam=True)`, or the reverse.
    """
    known = settings.hyperparameters
    for name in given:
        if name not in known and is_transformation(settings.optimizer):
            raise ValueError(
                f"unknown hyper-parameter {name!r}: the optimizer is a finished transformation, which takes none; give "
                "the function that makes it, such as optimizer=optax.adamw"
            )
        check_name(name, known, "hyper-parameter")
    completed = known | dict(given)
    if missing := [name for name, value in completed.items() if value is REQUIRED]:
        raise ValueError(f"the loss or the optimizer needs a number for {', '.join(missing)}")
    for name, value in completed.items():
        if name != "num_steps" or name in given:  # it may follow from the data
            number(name, value)
    if (completed["sam_radius"] > 0) != settings.sam:
        raise ValueError(f"Training(sam={settings.sam}) does not fit sam_radius={completed['sam_radius']}")
    return completed


def weights(settings: Any, params: tree.Tree, members: Iterable[Mapping[str, Any]]) -> None:
    """Check start weights for members with these hyper-parameters.

    Raises:
        ValueError: leaves that are no arrays, or none; rules that do not fit their names; decay of no leaf.
    """
    leaves = jax.tree_util.tree_leaves_with_path(params)
    if not leaves:
        raise ValueError("the start weights have no leaves")
    wrong = [
        f"  {jax.tree_util.keystr(path, simple=True, separator='/')} is a {type(leaf).__name__}"
        for path, leaf in leaves
        if not (hasattr(leaf, "shape") and hasattr(leaf, "dtype"))
    ]
    if wrong:
        raise ValueError(f"start weights are arrays; make arrays of numbers with numpy.asarray:\n{bounded(wrong)}")
    if not any(settings.decays(params)) and any(member.get("weight_decay") for member in members):
        raise ValueError('no trained leaf decays: say with decay_rules which do, such as ((".*", True),)')


def finite(params: tree.Tree, data: Any) -> None:
    """Check that start weights and data in memory hold neither NaN nor infinity; batches are not looked at.

    Raises:
        ValueError: they do; all such leaves are named.
    """
    given = {"start weights": params} | ({"data": data} if is_arrays(data) else {})
    wrong = [f"  {name or 'the array'} of the {what}" for what, of in given.items() for name in not_finite(of)]
    if wrong:
        raise ValueError(f"NaN or infinity, from which nothing can be learnt, in\n{bounded(wrong)}")


def not_finite(given: tree.Tree) -> list[str]:
    """List the names of the float leaves with NaN or infinity, of those that are there and whole on this process."""
    leaves = {name: leaf for name, leaf in tree.flatten(given).items() if hasattr(leaf, "__array__")}
    whole = {
        name: leaf
        for name, leaf in leaves.items()
        if tree.is_float(leaf) and getattr(leaf, "is_fully_addressable", True)
    }
    # on a CPU NumPy sees what JAX holds, and needs no program for each shape
    return tree.nonfinite_names(jax.tree.map(np.asarray, whole) if jax.default_backend() == "cpu" else whole)


def arrays(settings: Any, data: tree.Tree, batch_size: int | None, members: Iterable[Mapping[str, Any]]) -> tree.Tree:
    """Return data in memory as the loss takes it, for members with these hyper-parameters.

    Raises:
        ValueError: no batch size, leaves that are no arrays of one length, a batch larger than the data, and what the
            loss says of its data.
    """
    if batch_size is None:
        raise ValueError("data in memory need a batch_size")
    number("batch_size", batch_size)
    lengths = _lengths(data)
    if len(set(lengths.values())) > 1:
        raise ValueError(f"the data differ in number: {lengths}")
    if not (count := next(iter(lengths.values()))):
        raise ValueError("the data are empty: there is no example to learn from")
    if not batch_size <= count:
        raise ValueError(f"a batch must have between 1 and {count} examples (all there are), not {batch_size}")
    return [batch(settings, data, member) for member in members][-1]


def batch(settings: Any, given: tree.Tree, member: Mapping[str, Any]) -> tree.Tree:
    """Return a batch, or all data in memory, as the loss takes it: one that has a method `check` says what fits.

    Raises:
        ValueError: what that method says.
    """
    check = getattr(settings.loss, "check", None)
    return given if check is None else check(given, member)


def opened(data: Any) -> Any:
    """Return data as a run takes them: of a dataset its images and labels, {"image", "label"}.

    Raises:
        ValueError: a source that is not decoded; a dataset whose labels are groups of the network's classes.
    """
    if isinstance(data, Iterable) or not (hasattr(data, "labels") or hasattr(data, "class_names")):
        return data
    if getattr(data, "class_groups", None) is not None:
        raise ValueError("labels of a dataset with class_groups are not the network's classes: it cannot be trained on")
    return dict(zip(("image", "label"), pair_of(data), strict=True))


def is_arrays(data: Any) -> bool:
    """Say whether data are arrays in memory, not batches: a mapping, a tuple, another container that JAX knows, or one.

    Raises:
        ValueError: a list of arrays, which may be either.
    """
    if isinstance(data, list) and data and all(hasattr(one, "shape") for one in data):
        raise ValueError(
            "a list of arrays may be batches or the parts of one: give a tuple (images, labels) of arrays in memory, "
            "or an iterator over batches, such as iter(...)"
        )
    if isinstance(data, list) or callable(data):
        return False
    return isinstance(data, Mapping | tuple) or hasattr(data, "shape") or not isinstance(data, Iterable)


def described(value: Any, known: tuple[int, ...] = ()) -> Any:
    """Return settings in plain JSON: of a function its name, and what it and those within it hold of plain values.

    So two optimizers of other rates differ, and two losses of networks of other widths. What cannot be compared is
    there by the name of its kind.
    """
    if value is None or isinstance(value, str | int | float | bool):
        return value
    if id(value) in known or isinstance(value, type):
        return getattr(value, "__qualname__", type(value).__qualname__)
    inner = functools.partial(described, known=(*known, id(value)))
    if isinstance(value, np.ndarray | np.generic):
        return [str(value.dtype), list(value.shape), xxhash.xxh3_64_hexdigest(np.ascontiguousarray(value))]
    if isinstance(value, Mapping):
        return {str(name): inner(one) for name, one in value.items()}
    if isinstance(value, functools.partial):
        return [inner(value.func), inner(value.args), inner(value.keywords)]
    if isinstance(value, types.MethodType):
        return [inner(value.__func__), inner(value.__self__)]
    if isinstance(value, types.FunctionType):
        cells = [cell.cell_contents for cell in value.__closure__ or () if cell != types.CellType()]
        held = [*cells, *(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).items()]
        return [value.__qualname__, *map(inner, held)]  # a module may be __main__ or not
    if dataclasses.is_dataclass(value):
        fields = {field.name: inner(getattr(value, field.name, None)) for field in dataclasses.fields(value)}
        return {"kind": type(value).__qualname__, **fields}
    return [*map(inner, value)] if isinstance(value, tuple | list) else type(value).__qualname__


def _lengths(data):
    leaves = tree.flatten(data)
    if not leaves:
        raise ValueError("the data have no arrays")
    if wrong := [name for name, leaf in leaves.items() if not getattr(leaf, "ndim", 0)]:
        parts = data.items() if isinstance(data, Mapping) else enumerate(data) if isinstance(data, tuple) else ()
        lists = [str(name) for name, part in parts if isinstance(part, list)]
        hint = f": make arrays of the lists {few(lists)} with numpy.asarray" if lists else ""
        raise ValueError(f"data in memory are arrays with one row for each example, but not {few(wrong, 3)}{hint}")
    return {name: len(leaf) for name, leaf in leaves.items()}


def _is_number(value):
    return value is REQUIRED or (isinstance(value, int | float | np.number) and not isinstance(value, bool))
