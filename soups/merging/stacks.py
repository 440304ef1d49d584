"""Find the stacks of layers of a model by the names of its tensors, and cut the one that slices mean."""

import collections
import re
from collections.abc import Iterable, Iterator, Mapping

from soups.merging.job import Job, Slice
from soups.merging.values import Place

_LAYER = re.compile(
    r"(?:(?<=^)|(?<=[./]))(?P<kind>layers|layer|h|blocks|block|resblocks|encoderblock)(?P<joint>[._])(?P<number>\d+)(?=[./])"
)
_FIRST = ("embed", "shared", "wte", "wpe", "patch", "position", "cls_token", "class_embedding")  # before the layers


def layer_of(name: str) -> tuple[str, int] | None:
    """Return the stack of a tensor and the number of its layer: ("model.layers", 3); None outside all layers."""
    found = _LAYER.search(name)
    return (name[: found.end("kind")], int(found["number"])) if found else None


def count_layers(names: Iterable[str]) -> dict[str, int]:
    """Return the number of layers of each stack."""
    counts: dict[str, int] = {}
    for stack, number in filter(None, map(layer_of, names)):
        counts[stack] = max(counts.get(stack, 0), number + 1)
    return counts


def depth(name: str, counts: Mapping[str, int], first: int = 0) -> float:
    """Return how deep in its stack of `counts` layers, of which `first` is the first, a tensor lies: 0 to 1."""
    if (found := layer_of(name)) is None:
        return 0.0
    stack, number = found
    return (number - first) / (counts[stack] - 1) if counts[stack] > 1 else 1.0


def cut_stack(part: Slice, names: Iterable[str]) -> str:
    """Return the stack that a slice is cut from, of a model with tensors of these names.

    Raises:
        ValueError: the model has several stacks and the slice does not say which; or it has none of this name.
    """
    model, counts = part.sources[0].model, count_layers(names)
    wanted = part.stack or ""
    fitting = [stack for stack in counts if not wanted or f"{stack}.".startswith((f"{wanted}.", f"{wanted}/"))]
    if len(fitting) == 1:
        return fitting[0]
    if not counts:
        raise ValueError(f"{model} has no layers to cut: no tensor is called like layers.0.*, h.0.* or block.0.*")
    there = ", ".join(f"{stack} ({number} layers)" for stack, number in list(counts.items())[:20])
    wrong = f"no stack of layers {wanted!r}; it has" if not fitting else "several stacks of layers"
    raise ValueError(
        f"{model} has {wrong}: {there}. Say which one a slice is cut from, such as stack: {next(iter(counts))}"
    )


def output_layers(job: Job, checkpoints: Mapping) -> dict[str, list[tuple[str, int]]]:
    """Return, by stack that is cut, (model, layer) of the first source of each of its layers in the output."""
    cut: dict[str, list[tuple[str, int]]] = {}
    for part in job.slices if job.slices[0].sources[0].layers else []:
        source = part.sources[0]
        stack = cut_stack(part, checkpoints[source.model].leaves)
        cut.setdefault(stack, []).extend((source.model, layer) for layer in range(*source.layers))
    return cut


def sliced(job: Job, checkpoints: Mapping, lines: list[str]) -> Iterator[tuple]:
    """Yield (output name, slice, [(source, tensor)], place) of each tensor of a merge of slices.

    What lies outside the layers: embeddings come from the first slice of their stack, or of all where they belong to
    none, the rest from the last; a stack that is not cut comes from the first slice, with all that belongs to it.
    What is wrong goes into `lines`.
    """
    reference = checkpoints[job.base or job.slices[0].sources[0].model]
    parts: dict[str, list[Slice]] = {}
    for part in job.slices:
        parts.setdefault(cut_stack(part, checkpoints[part.sources[0].model].leaves), []).append(part)
    before, after = [], []
    branches = _branches(count_layers(reference.leaves))
    for name in reference.leaves:
        if (found := layer_of(name)) and found[0] in parts:
            continue
        stack = next((branches[start] for start in _beginnings(name) if start in branches), None)
        begins = any(word in name.lower() for word in _FIRST) or (stack is not None and stack not in parts)
        of_stack = parts.get(stack, job.slices)
        (before if begins else after).append((name, of_stack[0 if begins else -1]))
    yield from (_outside(name, part) for name, part in before)
    for stack, its_parts in parts.items():
        yield from _layers(stack, its_parts, checkpoints, lines)
    yield from (_outside(name, part) for name, part in after)


def _outside(name, part):
    return name, part, [(source, name) for source in part.sources], Place(name)


def _layers(stack, parts, checkpoints, lines):
    at, by_layer = 0, {}
    for part in parts:
        first, end = part.sources[0].layers
        for source in part.sources:
            if source.model not in by_layer:
                by_layer[source.model] = _by_layer(checkpoints[source.model].leaves, stack)
            if source.layers[1] > (count := max(by_layer[source.model], default=-1) + 1):
                lines.append(f"  ~ {source.model} has {count} layers, not {source.layers[1]}")
        found = by_layer[part.sources[0].model]
        for number in sorted(number for number in found if first <= number < end):
            for name in found[number]:
                pairs = [(source, _at_layer(name, source.layers[0] + number - first)) for source in part.sources]
                made = _at_layer(name, at + number - first)
                yield made, part, pairs, Place(made, depth(name, {stack: end - first}, first))
        at += end - first


def _by_layer(names, stack):
    found = {}
    for name in names:
        if (place := layer_of(name)) and place[0] == stack:
            found.setdefault(place[1], []).append(name)
    return found


def _at_layer(name, number):
    return _LAYER.sub(lambda found: f"{found['kind']}{found['joint']}{number}", name, count=1)


def _branches(stacks):
    """Return by the shortest beginning of a stack's name that no other stack shares, where all that belongs to it lies.

    A single stack has none: what lies beside it belongs to the whole model.
    """
    shared = collections.Counter(start for stack in stacks for start in _beginnings(stack))
    if len(stacks) < 2:
        return {}
    return {next(start for start in _beginnings(stack) if shared[start] == 1): stack for stack in stacks}


def _beginnings(name):
    return [name[: found.start()] for found in re.finditer(r"[./]|$", name)]
