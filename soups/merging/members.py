"""Choose members by path, by pattern, and from pools by name or by what is known of them."""

import dataclasses
import fnmatch
import glob
import operator
import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from soups.files import any_path
from soups.merging.sources import is_pool, split_pool
from soups.names import did_you_mean, few, shown
from soups.stores import is_store

_OPERATORS = {"<=": operator.le, ">=": operator.ge, "!=": operator.ne, "==": operator.eq}
_OPERATORS |= {"<": operator.lt, ">": operator.gt, "=": operator.eq}
_MAGIC = re.compile(r"[*?]|\[[^]]+\]")
_PLAIN = r"[^<>=!\s](?:[^<>=!]*[^<>=!\s])?"
_CONDITION = re.compile(rf"""\s*({_PLAIN})\s*([<>=!]=|[<>=])\s*({_PLAIN}|'.*'|".*")\s*""", re.DOTALL)
_WORDS = {"true": True, "false": False, "null": None, "none": None}


def chosen_members(words: Sequence[str], where: Sequence[str] = ()) -> tuple[list[str], list[str]]:
    """Return references to the models that words choose, and sentences on those that are left out.

        chosen_members(["runs/*/model", "pool:b*"], ["learning_rate<1e-3", "metrics.accuracy>=0.9"])

    Args:
        words: each a path; a pattern of paths, behind which may stand what stands behind a path (:NAME, @TREE,
            +LORA, a pattern too); POOL, for all of its members; POOL:NAME; or POOL:PATTERN. What is there goes before
            what a pattern would mean. A model that several patterns choose is there once. Of the members that a pool
            or a pattern chooses, those that hold NaN or infinity are left out.
        where: conditions on the metadata and metrics of members of pools: a name, one of < <= > >= = !=, and a value.
            All of them must hold. A name has as much of what it lies in as is needed, such as "config.seed". A member
            that lacks the value, or has one of another kind, is left out.

    Raises:
        ValueError: a pattern that chooses nothing; what is no condition; conditions on what is no member of a pool; a
            name that no member has, or that may mean several values: all are listed; conditions that hold for none.
        FileNotFoundError, PoolCorruptionError: as `soups.Pool`.
    """
    conditions, pools = [_Condition.parse(text) for text in where], _Pools()
    found: list[str] = []
    for word in words:
        models, before = _expanded(word, pools), set(found)
        if not models:
            raise ValueError(f"nothing matches '{shown(word)}'{pools.names_at(word)}")
        found += models if models == [word] else [model for model in models if model not in before]
    lost = few(map(shown, pools.nonfinite))
    notes = [f"left out, because they hold NaN or infinity: {lost}"] if pools.nonfinite else []
    if not conditions:
        return found, notes
    kept = _filtered(found, conditions, pools)
    chosen = set(kept)
    left_out = [shown(model) for model in found if model not in chosen]
    notes += [f"left out, because {' and '.join(where)} does not hold: {few(left_out)}"] if left_out else []
    return kept, notes


class _Pools:
    """Open each pool once, and collect the members that are left out."""

    def __init__(self):
        self._pools, self.nonfinite = {}, []

    def __getitem__(self, path):
        from soups.pool import Pool  # what merges files alone needs no JAX

        if path not in self._pools:
            self._pools[path] = Pool(path, must_exist=True)
        return self._pools[path]

    def members(self, path, pattern="*") -> list[str]:
        """Return the members of a pool whose names match a pattern."""
        names = [name for name in self[path] if fnmatch.fnmatchcase(name, pattern)]
        finite = self[path].select(names).usable
        self.nonfinite += [f"{path}:{name}" for name in names if name not in finite]
        return [f"{path}:{name}" for name in names if name in finite]

    def names_at(self, word) -> str:
        """Return what there is in the pool that a word names, the end of a sentence."""
        path = word if is_pool(word) else split_pool(word)[0]
        if self.nonfinite:
            return f" but members that hold NaN or infinity: {few(map(shown, self.nonfinite))}"
        return f"; {path} has: {few(map(shown, self[path])) or 'no members'}" if is_pool(path) else ""


def _expanded(word, pools) -> list[str]:
    """Return the models that a word chooses: itself where no pattern is in it."""
    any_path(word)
    pool, name = split_pool(word)
    if is_pool(word):
        return pools.members(word)
    if os.path.lexists(word) or not _MAGIC.search(word):
        return [word]
    if is_pool(pool):
        return [word] if name in pools[pool] else pools.members(pool, name)
    if is_store(word):
        raise ValueError(f"'{shown(word)}': patterns on stores choose members of pools alone: name each path")
    if paths := _paths(word):
        return [model for path in paths for model in (pools.members(path) if is_pool(path) else [path])]
    for mark in "+@:":
        before, _, behind = word.rpartition(mark)
        paths = _paths(before)
        if mark == "+" and paths:
            return [f"{path}+{adapter}" for path in paths for adapter in _paths(behind)]
        if mark == "@" and paths:
            return [f"{path}@{behind}" for path in paths]
        if mark == ":" and any(map(is_pool, paths)):
            return [model for path in paths if is_pool(path) for model in _expanded(f"{path}:{behind}", pools)]
    return []


def _paths(pattern) -> list[str]:
    """Return the paths that match a pattern, in their order; one that is there, or is no pattern, as it is."""
    if os.path.lexists(pattern) or (pattern and not _MAGIC.search(pattern)):
        return [pattern]
    return sorted(glob.glob(pattern, recursive=True))


@dataclasses.dataclass(frozen=True)
class _Condition:
    """Hold a condition: the name of a value, how it is compared, and with what."""

    text: str
    name: str
    compare: Callable[[Any, Any], bool]
    value: Any

    @classmethod
    def parse(cls, text):
        if not (found := _CONDITION.fullmatch(text)):
            raise ValueError(
                f"--where takes a name, one of {' '.join(_OPERATORS)}, and a value, such as 'learning_rate<1e-3' or "
                f"'name=\"a=b\"', not {text!r:.200}"
            )
        return cls(text, found[1], _OPERATORS[found[2]], _value(found[3]))

    def holds(self, value) -> bool:
        """Say whether it holds of a value; numbers are compared with numbers, and the like with the like."""
        numbers = all(isinstance(one, int | float) and not isinstance(one, bool) for one in (value, self.value))
        if not numbers and type(value) is not type(self.value):
            return self.compare is operator.ne
        try:
            return self.compare(value, self.value)
        except TypeError:  # nothing is more or less than null
            return False


def _value(text):
    """Return a number, true, false or null, else the text, without quotes around it."""
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        return text[1:-1]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _filtered(models, conditions, pools) -> list[str]:
    """Return the members for which all conditions hold."""
    known = {}
    for model in models:
        pool, name = split_pool(model)
        if not is_pool(pool):
            what = "--where chooses among members of pools by their metadata and metrics"
            raise ValueError(f"{what}: {model} is not a member of a pool")
        record = pools[pool].record(name)
        known[model] = dict(_values({kind: record[kind] for kind in ("metadata", "metrics")}))
    there = list(dict.fromkeys(name for values in known.values() for name in values))
    whole = {condition: _whole_name(condition, there) for condition in conditions}

    def holds(model):
        values = known[model]
        return all(name in values and condition.holds(values[name]) for condition, name in whole.items())

    kept = [model for model in models if holds(model)]
    if not kept:
        texts = " and ".join(condition.text for condition in conditions)
        seen = [f"{name} is {few(dict.fromkeys(map(_shown_value, _seen(known, name))), 8)}" for name in whole.values()]
        raise ValueError(f"--where: {texts} holds for none of {len(models)} members; {'; '.join(dict.fromkeys(seen))}")
    return kept


def _seen(known, name):
    return [values[name] for values in known.values() if name in values]


def _shown_value(value):
    return shown(value) if isinstance(value, str) else f"{value!r:.40}"


def _values(value, name=""):
    """Yield the whole name and the value of each number, boolean, null and text."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _values(inner, f"{name}.{key}" if name else key)
    elif value is None or isinstance(value, bool | int | float | str):
        yield name, value


def _whole_name(condition, there):
    """Return the whole name that is meant by a condition."""
    name = condition.name
    found = [name] if name in there else [whole for whole in there if whole.endswith(f".{name}")]
    if len(found) == 1:
        return found[0]
    if found:
        raise ValueError(f"--where: {name} may mean {' or '.join(map(shown, found))}: write more of the name")
    short = dict.fromkeys(whole.partition(".")[2] for whole in there)
    choices = f"there are: {few(map(shown, short))}" if short else "nothing is known of these members"
    last = [whole.rpartition(".")[2] for whole in there]
    raise ValueError(f"--where: no member has '{shown(name)}'{did_you_mean(name, [*short, *last])}; {choices}")
