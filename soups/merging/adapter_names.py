"""Find the tensors of a model that an adapter's names mean: PEFT's own names, or with other modules around them."""

import collections
import re
from collections.abc import Iterable, Mapping

from soups.names import MOST, did_you_mean, shown

PREFIX = "base_model.model."
PART = re.compile(
    r"(?P<module>.+)\.(?P<kind>lora_(?:embedding_)?[AB])(?:\.(?!weight$|bias$)(?P<adapter>[^.]+))?(?:\.weight)?$"
)
# factors whose product is what is meant, as PEFT, kohya, diffusers, LyCORIS, XLabs and Flax's networks call them
_FACTOR = re.compile(
    r"(?<![a-z])lora(_embedding)?\d*[._/]?(down|up|mid|[ab])($|[._/])|(hada|lokr)_[wt][12]($|[._])|vera_lambda_[bd]$",
    re.IGNORECASE,
)
# a vision-language model's modules today and in the files that its class still reads
_SPELLINGS = (
    ("model.language_model.", "language_model.model."),
    ("model.language_model.", "model."),
    ("lm_head.", "language_model.lm_head."),
    ("model.vision_tower.", "vision_tower."),
    ("model.visual.", "visual."),
    ("model.multi_modal_projector.", "multi_modal_projector."),
)


def is_factor(name: str) -> bool:
    """Say whether a tensor is one of the factors of an adapter, by whatever program."""
    return any(word in name.lower() for word in ("lora", "hada_", "lokr_", "vera_")) and bool(_FACTOR.search(name))


def sort_parts(names: Iterable[str], lines: list[str]) -> tuple[dict[str, dict[str, str]], dict[str, str]]:
    """Return ({module: {kind of matrix: tensor}}, {tensor saved whole: the model's own name for it}) of an adapter.

    PEFT's wrappers are no part of the model's names: `base_layer` around what an adapter changes, `modules_to_save`
    around what was trained whole, `original_module` beside it, which is the model's tensor as it was. `lines` takes
    what is not understood.
    """
    matrices, whole = collections.defaultdict(dict), {}
    for stored in names:
        name = stored.removeprefix(PREFIX)
        found = PART.match(name) if "lora_" in name else None
        if found and found["kind"] in matrices[found["module"]]:
            twice = matrices[found["module"]][found["kind"]]
            lines.append(f"  ? {shown(twice)} and {shown(stored)}: several adapters in one file are not supported")
        elif found:
            matrices[found["module"]][found["kind"]] = stored
        elif "lora_" in name:
            lines.append(f"  ? {shown(stored)}: not supported")
        elif ".original_module." not in name:
            whole[stored] = re.sub(r"\.modules_to_save\.(?:[^.]+\.)?(?=[^.])|\.base_layer\.", ".", name)
    return {module: kinds for module, kinds in matrices.items() if kinds}, whole


def find_tensors(names: Iterable[str], known: Mapping[str, str], model: str, lines: list[str]) -> dict[str, str]:
    """Return the model's tensor for each name, and in `lines` the names that have none, or several.

    A name is the model's own, or another spelling of a vision-language model's; else all others lack the same modules
    at their begin, or have the same more, as a language model's trunk has. `known`: all names of the model, with the
    tensors that they mean.
    """
    names = list(dict.fromkeys(names))
    found = {name: known[name] for name in names if name in known}
    for name in [name for name in names if name not in found]:
        spelled = {known[other] for other in _spellings(name) if other in known}
        if len(spelled) == 1:
            found[name] = spelled.pop()
        elif spelled:
            lines.append(f"  ? {shown(name)} could be {' or '.join(sorted(map(shown, spelled)))} of {model}")
            found[name] = None
    rest = [name for name in names if name not in found]
    ways = _ways(rest, known)
    placed = {name for targets in ways.values() for name in targets}
    fitting = [way for way, targets in ways.items() if len(targets) == len(placed)]
    if ways and len(fitting) != 1:
        examples = [f"{shown(next(iter(ways[way].values())))} ({_told(way)})" for way in sorted(ways)[:4]]
        lines.append(
            f"  ? {len(placed)} names of the adapter could be those of several modules of {model}; "
            f"{shown(min(placed))} and others like it, of {' or '.join(examples)}"
        )
        return {}
    found |= ways[fitting[0]] if fitting else {}
    gone = [name for name in rest if name not in found]
    hints = [did_you_mean(name, known) for name in gone[:MOST]] + [""] * len(gone[MOST:])
    lines += [f"  - {model} has no tensor {shown(n)}{hint}" for n, hint in zip(gone, hints, strict=True)]
    return {name: target for name, target in found.items() if target is not None}


def _spellings(name):
    for pair in _SPELLINGS:
        for old, new in (pair, pair[::-1]):
            if name.startswith(old):
                yield new + name.removeprefix(old)


def _ways(names, known):
    """Return {(more at the begin of the adapter's names, more at the begin of the model's): {name: tensor}}."""
    ways = collections.defaultdict(dict)
    for name in names:
        for rest in _rests(name):
            if rest in known:
                ways[name.removesuffix(rest), ""][name] = known[rest]
    wanted = set(names)
    for name in known if wanted else ():
        for rest in _rests(name):
            if rest in wanted:
                ways["", name.removesuffix(rest)][rest] = known[name]
    return ways


def _rests(name):
    parts = name.split(".", 8)
    return [".".join(parts[start:]) for start in range(1, len(parts) - 1)]


def _told(way):
    return f"without {shown(way[0])!r}" if way[0] else f"after {shown(way[1])!r}"
