"""Read recipe files: mergekit's YAML as it is, or the same job from a command line."""

import dataclasses
import functools
import os
from collections import defaultdict
from collections.abc import Mapping

import numpy as np
from ml_dtypes import bfloat16

from soups.files import PathLike, local_path
from soups.formats.text import read_text
from soups.merging.alignment import parse_rules
from soups.merging.job import Job, Slice, Source, is_member, kind_of
from soups.merging.lora import absolute_reference, model_reference
from soups.merging.methods import VOCABULARIES, find_method, methods_of
from soups.merging.tokenizers import parse_rule
from soups.merging.values import brief, check, is_constant
from soups.merging.yaml_text import LARGEST, load_yaml
from soups.names import MOST, check_name, count_of, did_you_mean, few, pattern, shown
from soups.recipes.declare import REQUIRED

DTYPES = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(bfloat16),
    "float64": np.dtype(np.float64),
}
_SHORT = {"fp16": "float16", "half": "float16", "bf16": "bfloat16", "fp32": "float32", "fp64": "float64"}
KEYS = (
    "merge_method",
    "models",
    "slices",
    "base_model",
    "align",
    "modules",
    "parameters",
    "dtype",
    "out_dtype",
    "tokenizer_source",
    "tokenizer",
    "chat_template",
    "vocabulary",
    "insist",
    "keep_first",
    "only_tensors",
)
ALONE = ("karcher", "multislerp")  # of one member they are that member


def read_recipe(path: PathLike, *, seed: int = 0) -> Job:
    """Read a recipe file in mergekit's YAML.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: the file has more than 1 MB, or is not text, as in `soups.formats.text.read_text`.
        ValueError: `path` is a URL; the text is not YAML, or not a recipe, as in `parse_recipe`.
    """
    return parse_recipe(read_text(local_path(path), limit=LARGEST), where=str(path), seed=seed)


def parse_recipe(text: str, *, where: str = "the recipe", seed: int = 0) -> Job:
    """Understand a recipe in mergekit's YAML.

    The methods are mergekit's, unless the recipe says "vocabulary: published": then they are this library's. Fields and
    parameters that mergekit ignores are ignored, which `notes` says, unless they look mistyped, such as "weigth"; of
    the published methods they are errors.

    Raises:
        ValueError: text that is not YAML; an unknown or missing field, method or parameter, with the closest name; a
            value of the wrong type; more or fewer models than the method takes; what this library does not support.
    """
    given = load_yaml(text, where)
    if not isinstance(given, Mapping):
        raise ValueError(f"{where} must be a mapping with merge_method and models or slices")
    vocabulary = check_name(given.get("vocabulary") or "mergekit", VOCABULARIES, f"vocabulary of {where}")
    ignored = _Ignored(where) if vocabulary == "mergekit" else None
    given = _of_module(_fields(given, KEYS, where, ignored), where, ignored)
    job = _alone(_with_base_notes(_job(given, vocabulary, text, seed, where, ignored)))
    if job.align and job.files:
        raise ValueError(f"{where}: align would not permute the units in {job.files[0]}: align its model first")
    _check_models(job, where)
    _check_required(job, where)
    return job


def _job(given, vocabulary, text, seed, where, ignored):
    method = given.get("merge_method")
    if method is None:
        raise ValueError(f"{where} has no merge_method{_beside(ignored.notes('') if ignored else ())}")
    if not isinstance(method, str):
        raise ValueError(f"{where}: merge_method must be the name of a method, not {brief(method)}")
    definition = find_method(method, vocabulary, "merge_method")
    slices, base = _slices(given, definition, where, ignored)
    for field in ("keep_first", "only_tensors"):
        if field in given:
            pattern(given[field], f"{where}: {field}")
    if not -(1 << 63) <= seed < 1 << 63:
        raise ValueError(f"the seed of {where} must be a whole number that fits in 64 bits, not {seed}")
    if vocabulary == "mergekit" and "models" in given and definition.base == "none":
        slices = (_with_base(slices[0], base),)
    job = Job(
        method=method,
        vocabulary=vocabulary,
        slices=slices,
        base=base,
        parameters=_parameters(given.get("parameters"), definition, f"{where}: parameters", ignored),
        dtype=_dtype(given, "dtype", where),
        out_dtype=_dtype(given, "out_dtype", where),
        align=parse_rules(given.get("align"), where),
        chat_template=_chat_template(given.get("chat_template"), where),
        seed=seed,
        insist=_insist(given, where),
        keep_first=given.get("keep_first"),
        only_tensors=given.get("only_tensors"),
        text=text,
        notes=(*(ignored.notes(method) if ignored else ()), *_module_notes(given)),
    )
    return dataclasses.replace(job, tokenizer=parse_rule(given, job.models, where))


class _Ignored:
    """Collect what mergekit ignores: names, with the places where they stand."""

    def __init__(self, where):
        self.where, self.fields, self.parameters = where, {}, defaultdict(list)

    def notes(self, method):
        fields = [f"{where} has {shown(name)!r}, which is ignored{hint}" for (where, name), hint in self.fields.items()]
        parameters = []
        for (name, reason), places in self.parameters.items():
            parameters.append(f"{shown(name)!r} is ignored: {method} {reason} (in {few(dict.fromkeys(places), 3)})")
        notes = fields + parameters
        left = len(notes) - MOST
        rest = [f"{left} more {'is' if left == 1 else 'are'} ignored"] if left > 0 else []
        return (*notes[:MOST], *rest)


def _fields(given, known, where, ignored):
    """Return the fields that are not null. Of an unknown one tell `ignored`, or where there is none refuse it."""
    for key in given:
        if key not in known:
            if ignored is None or _is_slip(key, known, KEYS):
                check_name(key, known, f"field of {where}")
            ignored.fields[where, key] = did_you_mean(key, known)
    return {key: value for key, value in given.items() if key in known and value is not None}


def _is_slip(name, known, elsewhere) -> bool:
    """Say whether a name, which mergekit would ignore, is one that is known with a letter or two amiss."""
    return isinstance(name, str) and name not in elsewhere and bool(did_you_mean(name, known, like=0.8))


@functools.cache
def _parameters_of_mergekit():
    return {name for method in methods_of("mergekit").values() for name in method.settings}


def _parameters(given, definition, scope, ignored, of_source=False):
    """Return the checked parameters of a scope; those that the method does not have there are ignored or refused."""
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise ValueError(f"{scope} must be a mapping, not {brief(given)}")
    known, found = definition.settings, {}
    for name, value in given.items():
        elsewhere = of_source and name in definition.of_merge and name not in definition.of_member
        value = [value] if isinstance(value, Mapping) else value  # one filter alone
        if name in known and not elsewhere:
            _check_value(name, value, definition, f"{scope}.{name}")
            found[name] = value
        elif ignored and not _is_slip(name, known, _parameters_of_mergekit()):
            reason = (
                "takes it for all models at once" if elsewhere else f"has no such parameter{did_you_mean(name, known)}"
            )
            ignored.parameters[name, reason].append(scope.removeprefix(f"{ignored.where}: "))
        elif elsewhere:
            raise ValueError(f"{scope}: {name!r} applies to all models: give it among the parameters of the merge")
        else:
            gone = definition.gone.get(name)
            hint = f"; {gone}" if gone else did_you_mean(name, known) or f"; it has: {', '.join(known) or 'none'}"
            raise ValueError(f"{scope}: the method has no parameter {name!r}{hint}")
    return found


def _check_value(name, value, definition, where):
    check(value, where, str if name in definition.files else kind_of(definition.settings[name]))
    if name in definition.files and not is_constant(value):
        raise ValueError(f"{where} must be one path, the same for all tensors, not {brief(value)}")
    if name == "only":
        pattern(value, where)


def _of_module(given, where, ignored):
    """Return the recipe with `models` or `slices` of its modules, where one definition holds for them all."""
    modules = given.get("modules")
    if not modules:
        return given
    if not isinstance(modules, Mapping) or not all(isinstance(module, Mapping) for module in modules.values()):
        raise ValueError(f"{where}: modules must be a mapping from names to models or slices, not {brief(modules)}")
    if "models" in given or "slices" in given:
        raise ValueError(f"{where} must have either models or slices or modules")
    fields = ("models", "slices", "parameters")
    modules = {name: _fields(one, fields, f"module {shown(name)} of {where}", ignored) for name, one in modules.items()}
    first, *others = modules.values()
    names = ", ".join(map(shown, list(modules)[:MOST]))
    if any(other != first for other in others):
        raise ValueError(
            f"{where}: modules that are merged in different ways ({names}) are not supported: "
            "give models and parameters with filters for the tensors of each module"
        )
    shared = given.get("parameters") or {}
    own = first.get("parameters") or {}
    if not isinstance(shared, Mapping) or not isinstance(own, Mapping):
        raise ValueError(f"{where}: parameters must be a mapping")
    return given | first | {"parameters": shared | own}


def _module_notes(given):
    names = ", ".join(map(shown, list(given.get("modules") or ())[:MOST]))
    return [f"the modules {names} are merged in the same way, so the whole model is merged at once"] if names else []


def _slices(given, definition, where, ignored):
    """Return the slices and the base."""
    if ("models" in given) == ("slices" in given):
        raise ValueError(f"{where} must have either models or slices")
    base = given.get("base_model")
    bases = [] if base is None else [model_reference(base, f"{where}: base_model")]
    if "models" in given:
        items = _list(given, "models", where)
        sources = [_source(item, f"{where}: models", definition, ignored, layers=False) for item in items]
        return (Slice(tuple(sources if ignored else _base_by_one_name(sources, *bases))),), *(bases or [None])
    slices = []
    for index, item in enumerate(_list(given, "slices", where)):
        place = f"{where}: slices[{index}]"
        if not isinstance(item, Mapping) or "sources" not in item:
            raise ValueError(f"{where}: every slice needs sources, not {brief(item)}")
        item = _fields(item, ("sources", "parameters", "base_model", "stack"), f"a slice of {where}", ignored)
        if "base_model" in item:
            bases.append(model_reference(item["base_model"], f"{place}.base_model"))
        slices.append(_slice(item, place, definition, ignored))
    if len(set(bases)) > 1:
        raise ValueError(f"{where}: slices with a base_model of their own are not supported: {', '.join(bases[:MOST])}")
    return tuple(slices), bases[0] if bases else None


def _base_by_one_name(sources, base=None):
    """Return the sources, with the name of the base for those that lie where it does, such as ./base and base."""
    place = os.path.realpath(absolute_reference(base)) if base is not None else None
    same = [base is not None and os.path.realpath(absolute_reference(source.model)) == place for source in sources]
    return [
        dataclasses.replace(source, model=base) if is_base else source
        for source, is_base in zip(sources, same, strict=True)
    ]


def _with_base(part, base):
    """Make a base that is not listed the last of the models, as mergekit does."""
    unlisted = base is not None and base not in [source.model for source in part.sources]
    return dataclasses.replace(part, sources=(*part.sources, Source(base, {}))) if unlisted else part


def _slice(item, place, definition, ignored):
    items = _list(item, "sources", place)
    sources = tuple(_source(source, f"{place}.sources", definition, ignored, layers=True) for source in items)
    if len({source.layers[1] - source.layers[0] for source in sources}) > 1:
        ranges = ", ".join(f"{source.model} {list(source.layers)}" for source in sources[:MOST])
        raise ValueError(f"{place}: the sources of a slice must have equally many layers, not {ranges}")
    if not isinstance(stack := item.get("stack"), str | None):
        raise ValueError(f"{place}: stack must be the name of a stack of layers, not {brief(stack)}")
    return Slice(sources, _parameters(item.get("parameters"), definition, f"{place}.parameters", ignored), stack)


def _source(item, where, definition, ignored, *, layers):
    if isinstance(item, str):
        item = {"model": item}
    if not isinstance(item, Mapping) or "model" not in item:
        raise ValueError(f"{where}: every entry needs a model, not {brief(item)}")
    if not layers and item.get("layer_range") is not None:  # mergekit would merge all layers without a word
        raise ValueError(f"{where}: layer_range belongs to the sources of slices, not to models")
    known = ("model", "parameters", *(["layer_range"] if layers else []))
    item = {"model": None} | _fields(item, known, f"an entry of {where}", ignored)
    model, chosen = model_reference(item["model"], where), item.get("layer_range")
    if layers:
        whole = isinstance(chosen, list) and len(chosen) == 2 and all(type(end) is int for end in chosen)
        if not whole or not 0 <= chosen[0] < chosen[1]:
            raise ValueError(f"{where}: layer_range of {model} must be [first, end], not {brief(chosen)}")
    scope = f"{where.partition(': ')[0]}: parameters of {model}"
    parameters = _parameters(item.get("parameters"), definition, scope, ignored, of_source=True)
    return Source(model, parameters, tuple(chosen) if layers else None)


def _dtype(given, name, where):
    value = given.get(name)
    if value is None:
        return None
    name, value = f"{name} of {where}", str(value).removeprefix("torch.")
    if value in _SHORT:
        raise ValueError(f"unknown {name} {value!r} (did you mean {_SHORT[value]!r}?)")
    return DTYPES[check_name(value, DTYPES, name)]


def _chat_template(value, where):
    if value is None or value in ("auto", "chatml") or (isinstance(value, str) and "{" in value):
        return value
    raise ValueError(
        f"{where}: chat_template must be auto, chatml, or the text of a Jinja template, not {brief(value)}"
    )


def _insist(given, where):
    if type(insist := given.get("insist", False)) is not bool:
        raise ValueError(f"{where}: insist must be true or false, not {brief(insist)}")
    return insist


def _list(given, name, where):
    if not isinstance(given.get(name), list) or not given[name]:
        raise ValueError(f"{where}: {name} must be a list with at least one entry")
    return given[name]


def _members_of(job, part):
    return [source for source in part.sources if is_member(job, source)]


def _with_base_notes(job):
    """Return the job with notes on what it says of its base without effect."""
    listed = [source for part in job.slices for source in part.sources if source.model == job.base]
    given = dict.fromkeys(name for source in listed if not is_member(job, source) for name in source.parameters)
    notes = [f"{few(given)} of {job.base} is ignored: it is the base itself"] if given else []
    if job.base and job.definition.base == "none" and not listed:
        notes.append(f"{job.method} uses no base: only the files beside the tensors of {job.base} are taken")
    return dataclasses.replace(job, notes=(*job.notes, *notes))


def _beside(notes):
    return f" ({'; '.join(notes)})" if notes else ""


def _alone(job):
    """Return the job as a copy where a method that mergekit has for a single model too has but one."""
    members = [_members_of(job, part) for part in job.slices]
    low, high = job.definition.members
    copied = None
    if job.vocabulary == "mergekit" and job.method in ALONE and all(len(of_part) == 1 for of_part in members):
        copied = "one member is that member"
    if job.vocabulary == "mergekit" and job.base and (low, high > 1) == (1, True) and not any(members):
        copied, members = "no member is the base", [part.sources[:1] for part in job.slices]
    if copied is None:
        return job
    slices = [dataclasses.replace(part, sources=tuple(m)) for part, m in zip(job.slices, members, strict=True)]
    note = f"{job.method} of {copied}: it is copied"
    return dataclasses.replace(job, method="passthrough", slices=tuple(slices), notes=(*job.notes, note))


def _check_models(job, where):
    needs = job.definition.base
    if needs in ("required", "first") and job.base is None:
        raise ValueError(f"{where}: {job.method} needs a base_model (--base)")
    low, high = job.definition.members
    for part in job.slices:
        number = len(_members_of(job, part))
        if not low <= number <= high:
            wanted = "at least " * (low != high) + count_of(low, "member")
            beside = " beside the base" if needs in ("required", "first") else ""
            counted = f", with the base_model {job.base}" if not beside and job.base else ""
            counted += f": {job.base} is the base itself" if len(part.sources) > number else ""
            raise ValueError(f"{where}: {job.method} needs {wanted}{beside}, but there are {number}{counted}")


def _check_required(job, where):
    of_merge, of_member = job.definition.of_merge, job.definition.of_member
    for part in job.slices:
        shared = {**job.parameters, **part.parameters}
        if wrong := [n for n in job.definition.files if n in part.parameters or (n not in of_merge and n in shared)]:
            raise ValueError(f"{where}: {wrong[0]!r} is a file of each model; it belongs to the model's parameters")
        if missing := [name for name, default in of_merge.items() if default is REQUIRED and name not in shared]:
            raise ValueError(f"{where}: {job.method} needs a value of {', '.join(missing)}")
        for source in _members_of(job, part):
            for name, default in of_member.items():
                if default is REQUIRED and name not in source.parameters and name not in shared:
                    raise ValueError(
                        f"{where}: {job.method} needs a value of {name!r} for {source.model}{_beside(job.notes)}"
                    )
