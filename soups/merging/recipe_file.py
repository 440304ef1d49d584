"""Read recipe files: mergekit's YAML as it is, or the same job from a command line."""

import dataclasses
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import yaml
from ml_dtypes import bfloat16

from soups.merging.alignment import Rules, parse_rules
from soups.merging.lora import model_reference
from soups.merging.methods import REQUIRED, VOCABULARIES, Method, find_method
from soups.merging.tokenizers import Rule, parse_rule
from soups.merging.values import Place, Value, check, is_constant, resolve
from soups.names import check_name, did_you_mean

DTYPES = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(bfloat16),
    "float64": np.dtype(np.float64),
}
KEYS = (
    "merge_method",
    "models",
    "slices",
    "base_model",
    "align",
    "parameters",
    "dtype",
    "out_dtype",
    "tokenizer_source",
    "tokenizer",
    "chat_template",
    "vocabulary",
    "insist",
)


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
        seed: of random methods.
        insist: whether models are merged though their config or vocabulary says that they mean other things.
        text: the recipe as it was given.
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
    seed: int = 0
    insist: bool = False
    text: str = ""

    @property
    def definition(self) -> Method:
        """Give the method's entry in its vocabulary."""
        return VOCABULARIES[self.vocabulary][self.method]

    @property
    def models(self) -> list[str]:
        """List the paths of the models that are merged, the base first, each once."""
        sources = [source.model for part in self.slices for source in part.sources]
        return list(dict.fromkeys(([self.base] if self.base else []) + sources))

    @property
    def files(self) -> list[str]:
        """List the paths of what else is read, such as Fisher diagonals, each once."""
        scopes = [self.parameters, *(source.parameters for part in self.slices for source in part.sources)]
        return list(dict.fromkeys(scope[name] for scope in scopes for name in self.definition.files if name in scope))


def read_recipe(path, *, seed: int = 0) -> Job:
    """Read a recipe file in mergekit's YAML.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not YAML, or what `parse_recipe` says.
    """
    return parse_recipe(pathlib.Path(path).read_text(), where=str(path), seed=seed)


def parse_recipe(text: str, *, where: str = "the recipe", seed: int = 0) -> Job:
    """Understand a recipe in mergekit's YAML.

    The methods are mergekit's, unless the recipe says "vocabulary: published": then they are this library's.

    Raises:
        ValueError: not YAML; an unknown or missing field, method or parameter, with the closest name; a value of
            another kind; numbers of models that do not fit the method; what this library does not do.
    """
    try:
        given = load_yaml(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{where} is not YAML: {error}") from error
    if not isinstance(given, Mapping):
        raise ValueError(f"{where} must be a mapping with merge_method and models or slices")
    for key in given:
        if key == "modules":
            raise ValueError(f"{where}: 'modules' is not supported: merge each part by a recipe of its own")
        check_name(key, KEYS, f"field of {where}")
    if "merge_method" not in given:
        raise ValueError(f"{where} has no merge_method")
    vocabulary = check_name(given.get("vocabulary", "mergekit"), VOCABULARIES, f"vocabulary of {where}")
    method = given["merge_method"]
    find_method(method, vocabulary, "merge_method")
    if ("models" in given) == ("slices" in given):
        raise ValueError(f"{where} must have either models or slices")
    if "models" in given:
        slices = (
            Slice(tuple(_source(item, f"{where}: models", layers=False) for item in _list(given, "models", where))),
        )
    else:
        slices = tuple(_slice(item, where) for item in _list(given, "slices", where))
    for name in ("dtype", "out_dtype"):
        if given.get(name) is not None:
            check_name(given[name], DTYPES, f"{name} of {where}")
    if type(insist := given.get("insist", False)) is not bool:
        raise ValueError(f"{where}: insist must be true or false, not {insist!r}")
    base = given.get("base_model")
    job = Job(
        method=method,
        vocabulary=vocabulary,
        slices=slices,
        base=None if base is None else model_reference(base, f"{where}: base_model"),
        parameters=given.get("parameters") or {},
        dtype=DTYPES.get(given.get("dtype")),
        out_dtype=DTYPES.get(given.get("out_dtype")),
        align=parse_rules(given.get("align"), where),
        seed=seed,
        insist=insist,
        text=text,
    )
    if given.get("chat_template") not in (None, "auto"):
        raise ValueError(f"{where}: chat_template is not supported: the tokenizer's own is kept")
    job = dataclasses.replace(job, tokenizer=parse_rule(given, job.models, where))
    if job.align and job.files:
        raise ValueError(f"{where}: align would leave the units of {job.files[0]} as they are: align its model before")
    _check_models(job, where)
    _check_parameters(job, where)
    return job


def load_yaml(text: str) -> Any:
    """Read YAML, with 1e-5 a number too, which YAML 1.1 takes for text, and no key twice.

    Raises:
        yaml.YAMLError: not YAML, or a key that stands there twice.
    """
    return yaml.load(text, _Loader)


class _Loader(yaml.SafeLoader):
    def construct_mapping(self, node, deep=False):
        keys = [key.value for key, _ in node.value]
        if twice := [key for key in keys if keys.count(key) > 1]:
            raise yaml.constructor.ConstructorError(None, None, f"{twice[0]!r} stands there twice", node.start_mark)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def settings_at(job: Job, part: Slice, source: Source | None, place: Place) -> dict[str, Any]:
    """Give the scalars that hold for one tensor: of a member, or without `source` of the merge.

    A source's own value goes before the slice's, that before the whole merge's, that before the default.
    """
    defaults = job.definition.of_merge if source is None else job.definition.of_member
    scopes = (
        [part.parameters, job.parameters] if source is None else [source.parameters, part.parameters, job.parameters]
    )
    found = {}
    for name, default in defaults.items():
        values = (resolve(scope[name], place) for scope in scopes if name in scope)
        found[name] = next((value for value in values if value is not None), default)
        if found[name] is REQUIRED:
            of = "" if source is None else f" of {source.model}"
            raise ValueError(f"{job.method}: no value of {name!r}{of} holds for tensor {place.name}")
    if source is None and "seed" in defaults and not any("seed" in scope for scope in scopes):
        found["seed"] = job.seed
    return found


def members_of(job: Job, part: Slice) -> list[Source]:
    """List the sources that are merged: all but the base, unless the method has no base."""
    if job.definition.base == "none" or job.base is None:
        return list(part.sources)
    return [source for source in part.sources if source.model != job.base]


def _check_models(job, where):
    needs = job.definition.base
    if needs in ("required", "first") and job.base is None:
        raise ValueError(f"{where}: {job.method} needs a base_model (--base)")
    low, high = job.definition.members
    for part in job.slices:
        number = len(members_of(job, part))
        if not low <= number <= high:
            wanted = f"{low}" if low == high else f"at least {low}"
            beside = " beside the base" if needs in ("required", "first") else ""
            raise ValueError(f"{where}: {job.method} needs {wanted} member(s){beside}, but there are {number}")


def _check_parameters(job, where):
    of_merge = job.definition.of_merge
    _check_scope(job, job.parameters, f"{where}: parameters")
    for index, part in enumerate(job.slices):
        _check_scope(job, part.parameters, f"{where}: slices[{index}].parameters")
        for source in part.sources:
            scope = f"{where}: parameters of {source.model}"
            _check_scope(job, source.parameters, scope)
            if wrong := [name for name in source.parameters if name in of_merge]:
                raise ValueError(f"{scope}: {wrong[0]!r} holds for all models; it belongs to the merge's parameters")
        shared = {**job.parameters, **part.parameters}
        if wrong := [
            name
            for name in job.definition.files
            if name in part.parameters or (name not in of_merge and name in shared)
        ]:
            raise ValueError(f"{where}: {wrong[0]!r} is a file of each model; it belongs to the model's parameters")
        missing = [n for n, d in of_merge.items() if d is REQUIRED and n not in {**job.parameters, **part.parameters}]
        if missing:
            raise ValueError(f"{where}: {job.method} needs a value of {', '.join(missing)}")
    for part in job.slices:
        for source in members_of(job, part):
            for name, default in job.definition.of_member.items():
                if default is REQUIRED and not any(
                    name in s for s in (source.parameters, part.parameters, job.parameters)
                ):
                    raise ValueError(f"{where}: {job.method} needs a value of {name!r} for {source.model}")


def _check_scope(job, parameters, scope):
    known = job.definition.settings
    if not isinstance(parameters, Mapping):
        raise ValueError(f"{scope} must be a mapping, not {parameters!r}")
    for name, value in parameters.items():
        if name not in known:
            hint = did_you_mean(name, known) or f"; it has: {', '.join(known) or 'none'}"
            raise ValueError(f"{scope}: {job.method} has no parameter {name!r}{hint}")
        check(value, f"{scope}.{name}", str if name in job.definition.files else _kind(known[name]))
        if name in job.definition.files and not is_constant(value):
            raise ValueError(f"{scope}.{name} is one path for all tensors, not {value!r}")
        if name == "only":
            _check_regex(value, f"{scope}.{name}")


def _check_regex(value, where):
    try:
        re.compile(value)
    except (re.error, TypeError) as error:
        raise ValueError(f"{where} must be a regex, the same for all tensors, not {value!r}: {error}") from error


def _kind(default):
    if isinstance(default, bool):
        return bool
    if isinstance(default, str):
        return str
    return int if isinstance(default, int) else float


def _slice(item, where):
    if not isinstance(item, Mapping) or "sources" not in item:
        raise ValueError(f"{where}: every slice has sources, not {item!r}")
    for key in item:
        check_name(key, ("sources", "parameters", "stack"), "field of a slice")
    if not isinstance(stack := item.get("stack"), str | None):
        raise ValueError(f"{where}: stack must be the name of a stack of layers, not {stack!r}")
    sources = tuple(_source(source, f"{where}: sources", layers=True) for source in _list(item, "sources", where))
    lengths = {source.layers[1] - source.layers[0] for source in sources}
    if len(lengths) > 1:
        ranges = ", ".join(f"{source.model} {list(source.layers)}" for source in sources)
        raise ValueError(f"{where}: the sources of a slice must have equally many layers, not {ranges}")
    return Slice(sources, item.get("parameters") or {}, stack)


def _source(item, where, *, layers):
    if isinstance(item, str):
        item = {"model": item}
    if not isinstance(item, Mapping) or "model" not in item:
        raise ValueError(f"{where}: every entry has a model, not {item!r}")
    for key in item:
        check_name(key, ("model", "parameters", *(["layer_range"] if layers else [])), f"field of an entry of {where}")
    chosen = item.get("layer_range")
    if layers:
        whole = isinstance(chosen, list) and len(chosen) == 2 and all(type(end) is int for end in chosen)
        if not whole or not 0 <= chosen[0] < chosen[1]:
            raise ValueError(f"{where}: layer_range of {item['model']} must be [first, end], not {chosen!r}")
    return Source(
        model_reference(item["model"], where), item.get("parameters") or {}, tuple(chosen) if chosen else None
    )


def _list(given, name, where):
    if not isinstance(given[name], list) or not given[name]:
        raise ValueError(f"{where}: {name} must be a list with at least one entry")
    return given[name]
