"""One door for what enters training: settings, hyper-parameters, weights and data, checked before long work."""

import dataclasses
import functools
import inspect
import math
import types
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np
import xxhash

from soups import tree
from soups.arguments import check_takes, check_within
from soups.arrays import refusal
from soups.data import pair_of
from soups.names import bounded, check_name, few

REQUIRED = inspect.Parameter.empty
# what every run has, whatever its loss and its optimizer take
RUN = {"seed": 0, "epochs": 1.0, "num_steps": 0, "warmup_fraction": 0.1, "warmup_steps": 0.0, "sam_radius": 0.0}

_RANGES = dict.fromkeys(("learning_rate", "weight_decay", "mixup", "sam_radius", "warmup_steps"), "[0, inf)")
_RANGES |= dict.fromkeys(("label_smoothing", "warmup_fraction"), "[0, 1]") | {"augment_magnitude": "[0, 20]"}
_RANGES |= dict.fromkeys(("ema_decay", "ema_decays", "swa_start"), "[0, 1)")
_RANGES |= dict.fromkeys(("epochs", "clip_norm"), "(0, inf)")
_COUNTS = dict.fromkeys(("accumulate", "save_every", "batch_size"), "[1, inf)")
_MOST = 2**31 - 1  # of what programs hold as int32
_WHOLE = _COUNTS | {"num_steps": "[1, inf)", "augment_operations": "[0, 2]", "seed": f"[0, {_MOST}]"}

NUMBERS = {*_RANGES, *_WHOLE}  # that have a range
_EITHER = (
    ("num_steps", "epochs", "how long to train"),
    ("warmup_steps", "warmup_fraction", "how long to warm up"),
)


def number(name: str, value: Any) -> int | float:
    """Return a setting that is a finite number in the range of its name, or raise a ValueError."""
    found = check_within(name, value, _WHOLE.get(name) or _RANGES.get(name, "(-inf, inf)"), whole=name in _WHOLE)
    if name in _COUNTS and not isinstance(value, int | np.integer):
        raise ValueError(f"{name} must be an integer, not {value!r}")
    return found


def callbacks(**given: tuple[Any, str]) -> None:
    """See that functions of the caller's can be called, each given with its arguments; a ValueError if not."""
    for name, (function, arguments) in given.items():
        if function is not None:
            check_takes(name, function, arguments)


def length(hyperparameters: Any, steps: Any, epochs: Any) -> dict[str, Any]:
    """Return a member's hyper-parameters with how long it is trained; a ValueError if both say so."""
    if not isinstance(hyperparameters, Mapping | None):
        raise ValueError(f"hyperparameters must be a mapping, not {hyperparameters!r:.200}")
    if steps is not None and epochs is not None:
        raise ValueError(f"steps={steps} and epochs={epochs} both say how long to train: give one of them")
    given = {"num_steps": steps, "epochs": epochs}
    return dict(hyperparameters or {}) | {name: value for name, value in given.items() if value is not None}


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
    return hasattr(optimizer, "init") and hasattr(optimizer, "update") and not isinstance(optimizer, type)


def training(settings: Any) -> None:
    """Check the settings of a `soups.train.Training`; a ValueError says which of them is wrong."""
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
    if not isinstance(settings.sam, bool | np.bool_):
        raise ValueError(f"sam must be True or False, not {settings.sam!r:.200}")
    if not isinstance(settings.ema_decays, tuple | list):
        raise ValueError(f"ema_decays must be a sequence, such as (0.99, 0.999), not {settings.ema_decays!r:.200}")
    for decay in settings.ema_decays:
        number("ema_decays", decay)
    if len(set(settings.ema_decays)) < len(settings.ema_decays):
        raise ValueError(f"ema_decays names a decay twice: {settings.ema_decays}")
    for name in ("learning_rate_rules", "decay_rules"):
        if not isinstance(rules := getattr(settings, name), tuple | list | None):
            raise ValueError(f"{name} must be a sequence of pairs, not {rules!r:.200}")
    for rule in settings.learning_rate_rules or ():
        if not _is_pair(rule) or not _is_number(rule[1]) or not 0 <= rule[1] < math.inf:
            raise ValueError(f"learning_rate_rules must be pairs (regex, multiplier of at least 0), not {rule!r:.200}")
    for rule in settings.decay_rules or ():
        if not _is_pair(rule) or not isinstance(rule[1], bool):
            raise ValueError(f"decay_rules must be pairs (regex, True or False), not {rule!r:.200}")
    if settings.decay_rules is not None and is_transformation(settings.optimizer):
        raise ValueError("decay_rules cannot change a finished optimizer: give a function that takes `mask`")


def hyperparameters(settings: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """Fill in what a member's hyper-parameters leave out; a ValueError for one that is wrong, unknown or missing."""
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
            _check_holds(name, number(name, value), known[name], settings.dtypes[name])
    for one, other, what in _EITHER:
        own = other in given and known[other] == RUN[other] != given[other]  # not that of a whole set of defaults
        if given.get(one) and own:
            raise ValueError(f"{one}={given[one]} and {other}={given[other]} both say {what}: give one of them")
    if (completed["sam_radius"] > 0) != settings.sam:
        raise ValueError(f"Training(sam={settings.sam}) does not fit sam_radius={completed['sam_radius']}")
    return completed


def weights(settings: Any, params: tree.Tree, members: Iterable[Mapping[str, Any]]) -> None:
    """Check start weights for members with these hyper-parameters: arrays, and where some shall decay one that does."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    if not leaves:
        raise ValueError("the start weights have no leaves")
    wrong = [
        f"  {jax.tree_util.keystr(path, simple=True, separator='/')} is a {type(leaf).__name__}"
        for path, leaf in leaves
        if not (hasattr(leaf, "shape") and hasattr(leaf, "dtype"))
    ]
    if wrong:
        raise ValueError(f"start weights must be arrays; numpy.asarray makes arrays of numbers:\n{bounded(wrong)}")
    wrong = [f"  {name} {why}" for name, leaf in tree.flatten(params).items() if (why := refusal(leaf))]
    if wrong:
        raise ValueError(f"start weights cannot be trained on:\n{bounded(wrong)}")
    narrow = [
        f"  {name} is {leaf.dtype}: give .astype('float32'), or freeze it by learning_rate_rules"
        for name, leaf in tree.flatten(settings.trained(params)).items()
        if leaf.dtype.itemsize < 2
    ]
    if narrow:
        raise ValueError(f"floats of less than 16 bits cannot be trained:\n{bounded(narrow)}")
    if not any(settings.decays(params)) and any(member.get("weight_decay") for member in members):
        raise ValueError(
            'weight_decay is given, but no trained leaf decays: choose some by decay_rules, such as ((".*", True),)'
        )


def held(params: tree.Tree) -> None:
    """See that start weights are there, not shapes and dtypes alone, or raise a ValueError."""
    if abstract := [name for name, leaf in tree.flatten(params).items() if isinstance(leaf, jax.ShapeDtypeStruct)]:
        raise ValueError(
            f"there is no checkpoint to go on from, so start weights must be arrays; these are not: {few(abstract, 3)}"
        )


def finite(params: tree.Tree, data: Any) -> None:
    """Raise a ValueError that names the leaves of start weights and data in memory with NaN or infinity."""
    given = {"start weights": params} | ({"data": data} if is_arrays(data) else {})
    wrong = [f"  {name or 'the array'} of the {what}" for what, of in given.items() for name in not_finite(of)]
    if wrong:
        raise ValueError(f"NaN or infinity, with which training would fail, in\n{bounded(wrong)}")


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

    A ValueError without a batch size, for leaves that are no arrays of one length, a batch larger than the data, and
    what the loss says of its data.
    """
    if batch_size is None:
        raise ValueError("data in memory need a batch_size")
    number("batch_size", batch_size)
    lengths = _lengths(data)
    if len(set(lengths.values())) > 1:
        raise ValueError(f"the arrays of the data have different numbers of examples: {lengths}")
    if not (count := next(iter(lengths.values()))):
        raise ValueError("the data are empty: there is no example to learn from")
    if not batch_size <= count:
        raise ValueError(f"a batch must have between 1 and {count} examples (all there are), not {batch_size}")
    return [batch(settings, data, member) for member in members][-1]


def batch(settings: Any, given: tree.Tree, member: Mapping[str, Any]) -> tree.Tree:
    """Return a batch, or all data in memory, as the loss takes it: one that has a method `check` says what fits."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(given):
        if why := refusal(leaf):
            raise ValueError(f"{jax.tree_util.keystr(path, simple=True, separator='/') or 'the array'} {why}")
    check = getattr(settings.loss, "check", None)
    return given if check is None else check(given, member)


def opened(data: Any) -> Any:
    """Return data as a run takes them: of a dataset its images and labels, {"image", "label"}.

    A ValueError for a source that is not decoded, for what holds no examples, and where labels are groups of the
    network's classes.
    """
    if data is None or isinstance(data, str | bytes | int | float):
        raise ValueError(f"data must be arrays, or an iterable of batches, not {data!r:.200}")
    if isinstance(data, Iterable) or not (hasattr(data, "labels") or hasattr(data, "class_names")):
        return data
    if getattr(data, "class_groups", None) is not None:
        raise ValueError("labels of a dataset with class_groups are not the network's classes: it cannot be trained on")
    return dict(zip(("image", "label"), pair_of(data), strict=True))


def is_arrays(data: Any) -> bool:
    """Say whether data are arrays in memory, not batches: a mapping, a tuple, another container that JAX knows, or one.

    A list of arrays, which may be either, is a ValueError.
    """
    if isinstance(data, list) and data and all(hasattr(one, "shape") for one in data):
        raise ValueError(
            "a list of arrays could be batches or the parts of one: give a tuple (images, labels) of arrays in memory, "
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


def _check_holds(name, value, default, dtype):
    """See that a dtype holds a finite number as it is: a fraction would be cut off without a word."""
    whole = np.issubdtype(dtype, np.integer)
    if whole and value != int(value):
        raise ValueError(f"{name} must be a whole number, as its default {default} is, not {value}")
    if abs(value) > (_MOST if whole else float(np.finfo(dtype).max)):
        raise ValueError(f"{name}={value} is larger than {np.dtype(dtype)} can hold")


def _lengths(data):
    leaves = tree.flatten(data)
    if not leaves:
        raise ValueError("the data have no arrays")
    if wrong := [name for name, leaf in leaves.items() if not getattr(leaf, "ndim", 0)]:
        parts = data.items() if isinstance(data, Mapping) else enumerate(data) if isinstance(data, tuple) else ()
        lists = [str(name) for name, part in parts if isinstance(part, list)]
        hint = f": make arrays of the lists {few(lists)} with numpy.asarray" if lists else ""
        raise ValueError(
            f"data in memory must be arrays with one row for each example; these are not: "
            f"{few([name or 'the whole' for name in wrong], 3)}{hint}"
        )
    return {name: len(leaf) for name, leaf in leaves.items()}


def _is_pair(rule):
    return isinstance(rule, tuple | list) and len(rule) == 2


def _is_number(value):
    return value is REQUIRED or (isinstance(value, int | float | np.number) and not isinstance(value, bool))
