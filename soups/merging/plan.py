"""Plan a merge from headers alone: what each tensor of the output is made of, or every reason why it cannot be."""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping

import numpy as np

from soups import tree
from soups.merging.recipe_file import Job, Slice, Source, members_of, settings_at
from soups.merging.values import Place, is_constant
from soups.names import did_you_mean
from soups.pool.formats import Checkpoint
from soups.recipes import _select
from soups.recipes._leafwise import BLOCK, Recipe

_LAYER = re.compile(
    r"(?:(?<=^)|(?<=[./]))(?P<kind>layers|layer|h|blocks|block|resblocks|encoderblock)(?P<joint>[._])(?P<number>\d+)(?=[./])"
)
_FIRST = ("embed", "wte", "wpe", "patch", "position", "cls_token", "class_embedding")  # before the layers
OTHER = 200e6  # bytes: the interpreter, libraries and headers


@dataclasses.dataclass(frozen=True)
class Output:
    """State how one tensor of the output is made.

    Attributes:
        name, shape, dtype: of the output.
        members: (model, tensor) of each member.
        base: (model, tensor) or None.
        recipe: None for a tensor that is copied because it is the same in all.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    members: tuple[tuple[str, str], ...]
    base: tuple[str, str] | None
    recipe: Recipe | None

    @property
    def size(self) -> int:
        """Count the elements."""
        return math.prod(self.shape)


@dataclasses.dataclass(frozen=True)
class Plan:
    """Hold the outputs in the order in which they are made, and what the work will need."""

    job: Job
    outputs: tuple[Output, ...]
    checkpoints: Mapping[str, Checkpoint]
    aliases: Mapping[str, str]

    @property
    def read_bytes(self) -> int:
        """Count the bytes of all tensors that go in, each once."""
        used = {pair for output in self.outputs for pair in (*output.members, *([output.base] if output.base else []))}
        return sum(self.checkpoints[model].leaves[name].nbytes for model, name in used)

    @property
    def write_bytes(self) -> int:
        """Count the bytes of the output's tensors."""
        return sum(output.size * output.dtype.itemsize for output in self.outputs)

    def memory(self, threads: int) -> float:
        """Estimate the private memory in bytes; mapped files come beside it and are given back when memory is short."""
        largest = max((output.size for output in self.outputs if output.recipe), default=0)
        inputs = max(len(output.members) for output in self.outputs) + 1
        whole = any(output.recipe and output.recipe.unit == "leaf" for output in self.outputs)
        block = 4 * (largest if whole else BLOCK) * (3 * inputs + 4)
        return OTHER + threads * (block + 4 * min(largest, _select.GATHERED))


def plan(job: Job, open_model: Callable[[str], Checkpoint]) -> Plan:
    """Compare all headers and give the plan.

    Raises:
        ValueError: every tensor that is missing, extra, or of another shape, in one message; layers that do not exist;
            per-layer values of a method that looks at the whole model.
        CheckpointError: as `open_model`.
    """
    checkpoints = {model: open_model(model) for model in job.models}
    lines, outputs = [], []
    for name, part, pairs, place in _outputs(job, checkpoints, lines):
        made = _output(job, checkpoints, name, part, pairs, place, lines)
        if made is not None:
            outputs.append(made)
    if lines:
        shown = lines[:50] + ([f"  ... and {len(lines) - 50} more"] if len(lines) > 50 else [])
        raise ValueError("these models cannot be merged:\n" + "\n".join(shown))
    if any(output.recipe and output.recipe.scope == "model" for output in outputs):
        _check_constant(job)
        outputs = _share_recipe(outputs)
    first = checkpoints[job.models[0]]
    made = {output.name for output in outputs}
    aliases = {alias: name for alias, name in first.aliases.items() if name in made}
    return Plan(job, tuple(outputs), checkpoints, aliases)


def _outputs(job, checkpoints, lines):
    """Give (output name, slice, [(source, tensor)], place) of each tensor of the output, in file order."""
    if job.slices[0].sources[0].layers is None:
        yield from _whole_models(job, checkpoints, lines)
    else:
        yield from _layers(job, checkpoints, lines)


def _whole_models(job, checkpoints, lines):
    part = job.slices[0]
    reference = checkpoints[job.base or part.sources[0].model]
    count = _num_layers(reference)
    everywhere = {source.model: checkpoints[source.model] for source in part.sources}
    for model, checkpoint in everywhere.items():
        extra = [name for name in checkpoint.leaves if name not in reference.leaves]
        lines += [f"  + {model}: {name} is extra{did_you_mean(name, reference.leaves)}" for name in extra]
    for name in reference.leaves:
        pairs = [(source, name) for source in part.sources]
        yield name, part, pairs, Place(name, _depth(name, 0, count))


def _layers(job, checkpoints, lines):
    reference = checkpoints[job.base or job.slices[0].sources[0].model]
    others = [name for name in reference.leaves if not _LAYER.search(name)]
    for name in [name for name in others if any(word in name.lower() for word in _FIRST)]:
        part = job.slices[0]
        yield name, part, [(source, name) for source in part.sources], Place(name)
    at = 0
    for part in job.slices:
        first, end = part.sources[0].layers
        for source in part.sources:
            if source.layers[1] > (count := _num_layers(checkpoints[source.model])):
                lines.append(f"  ~ {source.model} has {count} layers, not {source.layers[1]}")
        for offset in range(end - first):
            in_layer = [n for n in checkpoints[part.sources[0].model].leaves if _layer(n) == first + offset]
            for name in in_layer:
                pairs = [(source, _at_layer(name, source.layers[0] + offset)) for source in part.sources]
                yield _at_layer(name, at + offset), part, pairs, Place(name, _depth(name, first, end - first))
        at += end - first
    for name in [name for name in others if not any(word in name.lower() for word in _FIRST)]:
        part = job.slices[-1]
        yield name, part, [(source, name) for source in part.sources], Place(name)


def _output(job, checkpoints, name, part, pairs, place, lines):
    tensors = {}
    base_pair = None
    if job.base is not None:
        # the base's layer is that of the base among the sources, or the same layer as the first source's
        own = next((tensor for source, tensor in pairs if source.model == job.base), pairs[0][1])
        base_pair = (job.base, own)
    wanted = members_of(job, part)
    members = tuple((source.model, tensor) for source, tensor in pairs if source in wanted)
    for model, tensor in [*members, *([base_pair] if base_pair else [])]:
        leaf = checkpoints[model].leaves.get(checkpoints[model].aliases.get(tensor, tensor))
        if leaf is None:
            lines.append(f"  - {model}: {tensor} is missing{did_you_mean(tensor, checkpoints[model].leaves)}")
            return None
        tensors[model, tensor] = leaf
    reference = next(iter(tensors.values()))
    for (model, tensor), leaf in tensors.items():
        if leaf.shape != reference.shape:
            hint = "; give all models one vocabulary first" if leaf.shape[1:] == reference.shape[1:] else ""
            lines.append(f"  ~ {model}: {tensor} has shape {list(leaf.shape)} instead of {list(reference.shape)}{hint}")
            return None
    floats = tree.is_float(reference)
    if job.definition.base == "first":
        members, base_pair = (base_pair, *members), None
    elif job.definition.base == "none":
        base_pair = None
    recipe = _recipe(job, part, wanted, place, base_pair is not None) if floats else None
    dtype = (job.out_dtype or job.dtype or reference.dtype) if floats else reference.dtype
    return Output(name, tuple(reference.shape), np.dtype(dtype), members, base_pair, recipe)


def _recipe(job: Job, part: Slice, members: list[Source], place: Place, has_base: bool) -> Recipe:
    of_members = [settings_at(job, part, source, place) for source in members]
    return job.definition.build(of_members, settings_at(job, part, None, place), has_base)


def _check_constant(job):
    scopes = [job.parameters, *(part.parameters for part in job.slices)]
    scopes += [source.parameters for part in job.slices for source in part.sources]
    varying = sorted({name for scope in scopes for name, value in scope.items() if not is_constant(value)})
    if varying:
        raise ValueError(
            f"{job.method} looks at the whole model, so {', '.join(varying)} cannot differ between tensors: "
            "give one number, or scope: leaf"
        )


def _share_recipe(outputs):
    shared = next(output.recipe for output in outputs if output.recipe)
    return [dataclasses.replace(o, recipe=shared) if o.recipe else o for o in outputs]


def _layer(name):
    found = _LAYER.search(name)
    return int(found["number"]) if found else None


def _num_layers(checkpoint):
    return max((layer for name in checkpoint.leaves if (layer := _layer(name)) is not None), default=-1) + 1


def _depth(name, first, count):
    layer = _layer(name)
    if layer is None:
        return 0.0
    return (layer - first) / (count - 1) if count > 1 else 1.0


def _at_layer(name, number):
    return _LAYER.sub(lambda found: f"{found['kind']}{found['joint']}{number}", name, count=1)
