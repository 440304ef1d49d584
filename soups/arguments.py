"""Take what users give: members as a sequence of trees, a mapping by name or a pool, and what is given for each."""

from __future__ import annotations

import inspect
import logging
import math
import re
import sys
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence, Set
from typing import Any, TypeAlias, TypeVar

import numpy as np

from soups import tree
from soups.lazy import is_jax, jax, jnp
from soups.names import bounded, check_name, differences, few, shown

Members = Iterable[tree.Tree] | Mapping[str, tree.Tree]
Trees = Sequence[tree.Tree] | Mapping[str, tree.Tree]  # one beside each member
T = TypeVar("T")
PerMember: TypeAlias = T | Sequence[T] | Mapping[str, T]  # one value, one for each member, or by their names

logger = logging.getLogger("soups")
# names of parts of one network: Linen's collections, layers that are numbered, Haiku's paths
_PART = re.compile(
    r"params|batch_stats|.*/~/.*|(.*/)?[a-z]*(dense|conv|embed|linear|norm|block|layer|attention)[a-z]*_\d+",
    re.IGNORECASE,
)
# names that are those of parts if all are such, for a member may be called by what was tuned in it
_PARTS = re.compile(
    r"((text|vision|image|audio|token|position)_)?(encoder|decoder|backbone|trunk|head|classifier|embedder|embeddings?|"
    r"layers?|blocks?|stages?|features|linear|dense|conv|norm|bn|attention|attn|mlp|fc|query|key|value|out)_?\d*",
    re.IGNORECASE,
)
_NAMED = 8  # members of a sentence
_KINDS = {bool: "True or False", int: "a whole number", float: "a finite number", str: "text"}


def as_mapping(members: Members, *, remark: bool = True) -> Mapping[str, tree.Tree]:
    """Return members by name; those of a sequence are called "0", "1", ...; the errors are those of `by_name`.

    A pool's non-finite members are left out, with a warning that names them; with `remark` another names those that are
    `repeated`, for which a caller that hands them on has looked already.
    """
    usable = getattr(members, "usable", members)
    if usable is not members and len(usable) < len(members):
        left_out = [name for name in members if name not in usable]
        if not usable:
            raise ValueError(f"all {len(left_out)} members of {members} diverged: each holds NaN or infinity")
        logger.warning("left out, because they hold NaN or infinity: %s", ", ".join(left_out))
    named = by_name(usable)
    for sentence in _news_of(usable) if remark else ():
        logger.warning("%s", sentence)
    return named


def repeated(contents: Mapping[str, Hashable], bases: Iterable[Hashable] = ()) -> list[str]:
    """Return sentences on members that count several times, and on bases among them: none is averaged without a word.

    Args:
        contents: by member what its weights are known by, such as a digest; equal ones are the same weights.
        bases: names of bases, or what their weights are known by.
    """
    alike, bases = defaultdict(list), set(bases)
    for name, content in contents.items():
        alike[content].append(name)
    sentences = [
        f"members with the same weights, each of which counts: {few(map(shown, names), _NAMED)}"
        for names in alike.values()
        if len(names) > 1
    ]
    found = [shown(name) for name, content in contents.items() if name in bases or content in bases]
    return [*sentences, *([f"the base counts as a member: {few(found, _NAMED)}"] if found else [])]


def no_member(base: str) -> str:
    """Return the sentence on a model that is named both as the base and among the members: it is left out of these."""
    return f"{shown(base)} is the base and not a member"


def by_name(members: Members) -> Mapping[str, tree.Tree]:
    """Return members by name as `as_mapping` does, with those of a pool that are not finite.

    A ValueError where there are none, and where one tree is given, or the leaves of one.
    """
    if _is_array(members) or isinstance(members, str | bytes) or not isinstance(members, Iterable):
        raise ValueError(f"members must be a sequence or mapping of trees, or a pool, not {_kind(members)}")
    if not isinstance(members, Mapping):
        members = {str(index): member for index, member in enumerate(members)}
    if not len(members):
        raise ValueError(_none_of(members))
    # what JAX takes apart lies in memory; members of other mappings are read when they are asked for
    if hasattr(members, "usable") or tree.sorting(jax.tree_util.all_leaves, [members]):
        return members
    if any(member is None for member in members.values()):
        raise ValueError("members must be trees, but one of them is None")
    if arrays := [name for name, member in members.items() if _is_array(member)]:
        raise ValueError(
            f"members must be trees, but {', '.join(map(repr, arrays[:5]))} are arrays, as if this were one tree: "
            "give a list of trees, or {name: tree}"
        )
    parts = [name for name in members if _PART.fullmatch(str(name))]
    parts = parts or [name for name in members if all(_PARTS.fullmatch(str(other)) for other in members)]
    if parts:
        raise ValueError(
            f"members must be trees, but {', '.join(map(repr, parts[:5]))} are named like the parts of one tree: "
            "give a list of trees, or {name: tree}"
        )
    return {name: member.params if getattr(member, "is_soup", False) else member for name, member in members.items()}


def per_member(values: Any, members: Iterable[str], kind: str) -> list[Any]:
    """Return one value for each member, from a single value, several in their order, or a mapping by their names.

    A ValueError if they are not one for each member, or are a set, which has no order; `kind` names them in it.
    """
    members = list(members)
    if isinstance(values, Mapping):
        by_name = {str(name): value for name, value in values.items()}  # those of a sequence are called "0", "1", ...
        names = dict.fromkeys(map(str, members))
        if by_name.keys() != names.keys():
            lines = differences([n for n in names if n not in by_name], [n for n in by_name if n not in names])
            raise ValueError(f"{kind} must be given by the names of the members:\n{bounded(lines)}")
        return [by_name[name] for name in names]
    if isinstance(values, Set):
        raise ValueError(
            f"{kind} must be given in the order of the members or by their names, not as a set, which has no order"
        )
    if isinstance(values, str | bytes) or not isinstance(values, Iterable) or not getattr(values, "ndim", 1):
        return [values] * len(members)
    # each number of an array on a device would be a program of its own
    values = list(np.asarray(values) if is_jax(values) and not tree.traced(values) and values.ndim == 1 else values)
    if len(values) != len(members):
        raise ValueError(f"{len(members)} members need {len(members)} values of {kind}, but {len(values)} were given")
    return values


def setting(value: Any, default: Any, name: str) -> Any:
    """Return a setting of the same kind as its default: a finite number, a whole number, a boolean, or text.

    Numbers may be traced, or arrays without axes. If the default is of no such kind, the value is returned as it is.
    Something else is a ValueError about `name`.
    """
    kind = type(default)
    if kind not in _KINDS or (tree.traced(value) and np.shape(value) == ()):
        return value
    # random keys of JAX have no dtype of NumPy, and are no number
    number = value.item() if getattr(value, "ndim", None) == 0 and isinstance(value.dtype, np.dtype) else value
    if kind is str:
        fits = isinstance(number, str)
    elif kind is bool:
        fits = isinstance(number, int | float) and number in (0, 1)  # as some programs write them
    else:
        fits = isinstance(number, int | float) and not isinstance(number, bool) and abs(number) <= sys.float_info.max
    if not fits or (kind is int and number != int(number)):
        raise ValueError(f"{name} must be {_KINDS[kind]}, not {value!r:.200}")
    return kind(number) if kind in (bool, int) else number


def place_of(member: str | int, names: Sequence[str]) -> int:
    """Return the index of a member that is given by its name or its index; a ValueError if there is none."""
    is_index = isinstance(member, int | np.integer) and not isinstance(member, bool)
    if is_index and 0 <= member < len(names) and str(member) not in names:
        return int(member)
    return list(names).index(check_name(str(member), names, "member"))


def check_weights(weights: Sequence[Any]) -> Sequence[Any]:
    """Return weights by whose sum an average divides; a ValueError if one is negative or infinite, or all are zero."""
    if not tree.traced(weights):
        numbers = np.asarray([float(weight) for weight in weights])
        if not np.isfinite(numbers).all() or (numbers < 0).any() or not numbers.any():
            raise ValueError(f"weights must be finite, not negative and not all zero, but they are {numbers.tolist()}")
    return weights


def check_within(name: str, value: Any, interval: str, *, whole: bool = False) -> Any:
    """Return a number that lies in an interval such as "(0, 1]" or "[1, inf)", or that is traced.

    A ValueError if it lies outside, is not a finite number, or with `whole` not a whole one.
    """
    bounds = interval[1:-1].split(", ")
    low, high = map(float, bounds)
    number = setting(value, 0 if whole else 0.0, name)
    if tree.traced(number):
        return number
    if not low <= number <= high or (number == low and interval[0] == "(") or (number == high and interval[-1] == ")"):
        open_above = f"{'above' if interval[0] == '(' else 'at least'} {bounds[0]}"
        raise ValueError(f"{name} must be {f'in {interval}' if high < math.inf else open_above}, not {value}")
    return number


def check_takes(name: str, function: Any, given: str, **more: Any) -> None:
    """See that a user's function can be called with the arguments `given`, such as "params, batch", and `more` by name.

    A ValueError if it cannot; nothing is known of functions in C.
    """
    if not callable(function):
        raise ValueError(f"{name} must be a function {name}({given}), not a {type(function).__name__}")
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return
    try:
        signature.bind(*given.split(", "), **more)
    except TypeError as error:
        raise ValueError(f"{name} is called as {name}({given}), but takes {signature}: {error}") from None


def check_loss(value: Any) -> Any:
    """Return what a loss returned, one float number, traced or not; a ValueError if it is something else."""
    number = _is_array(value) or isinstance(value, bool | int | float | complex)
    if not number or np.shape(value) != () or not jnp.issubdtype(jnp.result_type(value), jnp.floating):
        raise ValueError(f"a loss must return one float, such as a mean, not {_kind(value)}")
    return value


def check_logits(value: Any) -> Any:
    """Return what an `apply_fn` returned, logits [B, C]; a ValueError if it is something else."""
    if not _is_array(value) or len(value.shape) != 2:
        raise ValueError(f"apply_fn must give logits [B, C], but it gave {_kind(value)}")
    return value


def check_batches(batches: Any) -> Any:
    """Return batches as they are given, a list or another iterable of them.

    A ValueError for what is no iterable, and for one array or one mapping, which is rather a batch than batches.
    """
    iterable = isinstance(batches, Iterable) or hasattr(batches, "__getitem__")
    if not iterable or _is_array(batches) or isinstance(batches, Mapping | str | bytes):
        raise ValueError(f"batches must be a list or another iterable of batches, not {_kind(batches)}: give [batch]")
    return batches


def shares(weights: Sequence[Any]) -> list[Any]:
    """Return weights of any size divided by their sum, which must not be zero; traced ones are not checked."""
    parts = weights if tree.traced(weights) else balanced(weights)
    total = sum(parts)
    if not tree.traced(weights) and abs(total) < 1e-8:
        raise ValueError(f"weights that sum to zero cannot be normalized: {list(weights)}")
    return [part / total for part in parts]


def balanced(weights: Sequence[float]) -> list[float]:
    """Return weights times a power of two, which is exact, so that the largest is about 1."""
    exponent = max(math.frexp(weight)[1] for weight in weights)
    return [math.ldexp(weight, -exponent) for weight in weights]


def _news_of(given):
    """Return what `repeated` finds: in a pool, each sentence once; in a mapping, where one tree has several names."""
    if hasattr(given, "repeated"):
        fresh = [sentence for sentence in given.repeated() if sentence not in given.told]
        given.told.update(fresh)
        return fresh
    return repeated({name: id(tree) for name, tree in given.items()}) if isinstance(given, dict) else []


def _none_of(members):
    at = ""
    if hasattr(members, "usable"):
        at = f"the pool {members.path} is empty: " if members.path.exists() else f"there is no pool at {members.path}: "
    return f"{at}no members were given: at least one (finite) member is needed"


def _kind(value):
    name = type(value).__name__
    return f"{value.dtype}{list(value.shape)}" if _is_array(value) else f"a{'n' * (name[0] in 'aeiou')} {name}"


def _is_array(value):
    return hasattr(value, "shape") and hasattr(value, "dtype")
