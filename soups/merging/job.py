"""Hold what a merge is: its slices, their sources, and the settings that hold for each tensor of them."""

import dataclasses
import functools
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from soups.merging.alignment import Rules
from soups.merging.methods import find_method
from soups.merging.tokenizers import Rule
from soups.merging.values import Place, Value, resolve, stacked
from soups.names import shown
from soups.recipes.declare import REQUIRED, Method


@dataclasses.dataclass(frozen=True)
class Source:
    """Name a model, its own parameters, and the layers that are taken from it (all: None)."""

    model: str
    parameters: Mapping[str, Value]
    layers: tuple[int, int] | None = None


@dataclasses.dataclass(frozen=True)
class Slice:
    """Hold what is merged into consecutive layers of the output.

    `stack`: name, or its beginning, of the stack of layers that is cut; None: the only one.
    """

    sources: tuple[Source, ...]
    parameters: Mapping[str, Value] = dataclasses.field(default_factory=dict)
    stack: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """State a merge completely.

    Attributes:
        method: a name of the vocabulary.
        vocabulary: "mergekit" or "published".
        slices: what is merged; one slice without layers is a merge of whole models.
        base: path of the base, or None.
        parameters: those of the whole merge.
        dtype, out_dtype: of the arithmetic, where wider than float32, and of the output; None: the members'.
        align: how the units of the models are permuted to match those of the first; None: not at all.
        tokenizer: which vocabulary the output has; None: all models must have one, and the base's files are copied.
        chat_template: "auto", the one that most models have; "chatml"; its text; None: the tokenizer's own.
        seed: of random methods.
        insist: whether models are merged though their config or vocabulary says that they mean other things.
        keep_first: a regex of the whole names of tensors that are the first member's; None: none but counters.
        only_tensors: a regex of the whole names of tensors that are merged and written; None: all.
        text: the recipe as it was given.
        notes: sentences about what of the recipe has no effect.
    """

    method: str
    vocabulary: str
    slices: tuple[Slice, ...]
    base: str | None = None
    parameters: Mapping[str, Value] = dataclasses.field(default_factory=dict)
    dtype: np.dtype | None = None
    out_dtype: np.dtype | None = None
    align: Rules | None = None
    tokenizer: Rule | None = None
    chat_template: str | None = None
    seed: int = 0
    insist: bool = False
    keep_first: str | None = None
    only_tensors: str | None = None
    text: str = ""
    notes: tuple[str, ...] = ()

    @functools.cached_property
    def definition(self) -> Method:
        """Return the method's entry in its vocabulary."""
        return find_method(self.method, self.vocabulary)

    @property
    def models(self) -> list[str]:
        """List the paths of the models that are merged, the base first, each once."""
        sources = [source.model for part in self.slices for source in part.sources]
        return list(dict.fromkeys(([self.base] if self.base else []) + sources))

    @property
    def scopes(self) -> list[Mapping[str, Value]]:
        """List the parameters of the merge, of its slices and of their sources."""
        sources = [source.parameters for part in self.slices for source in part.sources]
        return [self.parameters, *(part.parameters for part in self.slices), *sources]

    @property
    def files(self) -> list[str]:
        """List the paths of what else is read, such as Fisher diagonals, each once."""
        found = [scope[name] for scope in self.scopes for name in self.definition.files if name in scope]
        return list(dict.fromkeys(found))


def is_member(job: Job, source: Source) -> bool:
    """Say whether a source is merged: what is named as the base is none, but where mergekit's method has no base.

    Layers of slices are taken from any model.
    """
    beside = job.definition.base == "none" and (job.vocabulary == "mergekit" or source.layers is not None)
    return beside or source.model != job.base


def settings_at(job: Job, part: Slice, source: Source | None, place: Place) -> dict[str, Any]:
    """Return the scalars that hold for one tensor: of a member, or without `source` of the merge.

    A source's own value goes before the slice's, that before the whole merge's, that before the default.
    """
    defaults = job.definition.of_merge if source is None else job.definition.of_member
    scopes = [*([source.parameters] if source else []), part.parameters, job.parameters]
    found = {}
    for name, default in defaults.items():
        values = (resolve(scope[name], place, kind_of(default)) for scope in scopes if name in scope)
        found[name] = next((value for value in values if value is not None), default)
        if found[name] is REQUIRED:
            of = "" if source is None else f" of {source.model}"
            raise ValueError(f"{job.method}: no value of {name!r}{of} applies to tensor {place.name}")
    if source is None and "seed" in defaults and not any("seed" in scope for scope in scopes):
        found["seed"] = job.seed
    return found


def odd_filters(job: Job, names: Iterable[str]) -> list[str]:
    """Return a sentence for each filter that is part of none of these tensors' names, or chooses among experts."""
    lists = [value for scope in job.scopes for value in scope.values() if isinstance(value, list)]
    rules = [rule for value in lists for rule in value if isinstance(rule, Mapping)]
    filters = dict.fromkeys(rule["filter"] for rule in rules if rule.get("filter") not in (None, "*"))
    if not filters:
        return []
    names = list(dict.fromkeys(names))
    experts = {name: whole for name in names if (whole := stacked(name)) != name}
    everything = "\n".join([*names, *experts.values()])
    whole = re.search(r"\S*\bexperts[./][a-z_]\S*", everything)
    hint = f"; the experts are one tensor, {whole[0]}, in which a filter cannot choose" if whole else ""
    sentences = []
    for text in filters:
        if text not in everything:
            unused = f"the filter {shown(text)!r} is not part of any tensor's name"
            sentences.append(unused + (hint if "expert" in text and not experts else ""))
        elif found := [name for name, whole in experts.items() if text in name and text not in whole]:
            tells = f"the filter {shown(text)!r} tells experts and their matrices apart, such as {found[0]}"
            sentences.append(f"{tells}; mergekit, which stacks them, does not")
    return sentences


def kind_of(default: Any) -> type:
    """Return the kind of a setting's values, of bool, str, int and float, from its default."""
    return type(default) if isinstance(default, bool | str | int) else float
