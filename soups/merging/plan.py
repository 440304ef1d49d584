"""Plan a merge from headers alone: what each tensor of the output is made of, or every reason why it cannot be."""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping

import numpy as np

from soups import tree
from soups.engine import BLOCK, Recipe
from soups.formats import Checkpoint
from soups.merging import stacks
from soups.merging.alignment import aligned
from soups.merging.lora import open_with_lora
from soups.merging.meaning import check_meaning, mixed_dtypes, widest
from soups.merging.recipe_file import Job, members_of, odd_filters, settings_at
from soups.merging.tokenizers import Aligned, align
from soups.merging.values import Place, is_constant
from soups.names import did_you_mean
from soups.recipes import _select

OTHER = 200e6  # bytes: the interpreter, libraries and headers


@dataclasses.dataclass(frozen=True)
class Output:
    """State how one tensor of the output is made.

    Attributes:
        name, shape, dtype: of the output.
        members: (model, tensor) of each member, then of each file that the method takes beside them.
        base: (model, tensor) or None.
        recipe: None for a tensor that is copied because it is the same in all, or empty.
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

    @property
    def nbytes(self) -> int:
        """Count the bytes."""
        return self.size * self.dtype.itemsize


@dataclasses.dataclass(frozen=True)
class Plan:
    """Hold the outputs in the order in which they are made, and what the work will need.

    `aliases`: names that are tied to an output, as in the base; such a tensor is written once. `tokenizer`: what the
    output's folder needs of it, if the recipe says which one it has. `notes`: sentences for the user about what is not
    merged as a matter of course: what is left out, taken from the first member, tied or untied.
    """

    job: Job
    outputs: tuple[Output, ...]
    checkpoints: Mapping[str, Checkpoint]
    aliases: Mapping[str, str]
    tokenizer: Aligned | None = None
    notes: tuple[str, ...] = ()

    @property
    def read_bytes(self) -> int:
        """Count the bytes of all tensors that go in, each once."""
        used = {pair for output in self.outputs for pair in (*output.members, *([output.base] if output.base else []))}
        leaves = {_leaf(self.checkpoints[model], tensor) for model, tensor in used}
        return sum(leaf.nbytes for leaf in leaves)

    @property
    def write_bytes(self) -> int:
        """Count the bytes of the output's tensors."""
        return sum(output.nbytes for output in self.outputs)

    def memory(self, threads: int) -> float:
        """Estimate the private memory in bytes; mapped files come beside it and are given back when memory is short."""
        merged = [output for output in self.outputs if output.recipe]
        largest = max((output.size for output in merged), default=0)
        inputs = max(len(output.members) for output in self.outputs) + 1
        whole = any(output.recipe.unit == "leaf" for output in merged)
        block = 4 * (largest if whole else BLOCK) * (3 * inputs + 4) + max(map(self._making, merged), default=0)
        block += 32 * largest if self.job.align else 0  # a tensor of both models, in float64 and in order
        if any(output.recipe.scope == "model" for output in merged):  # it is measured once
            ranked = 4 * min(sum(output.size for output in merged), _select.GATHERED)
            return OTHER + max(ranked, threads * block)
        return OTHER + threads * (block + 4 * min(2 * largest, _select.GATHERED))

    def _making(self, output):
        """Count the bytes of the inputs of a tensor that are made when they are read."""
        pairs = [(self.checkpoints[model], tensor) for model, tensor in (*output.members, *filter(None, [output.base]))]
        return sum(model.making(tensor) for model, tensor in pairs)


def plan(job: Job, open_model: Callable[[str], Checkpoint]) -> Plan:
    """Compare all headers and give the plan.

    Raises:
        ValueError: every tensor that is missing, extra, or of another shape or kind, in one message; layers that do not
            exist; `only` that matches no name; values that differ between tensors, of a method that looks at the whole
            model.
        ValueError, FileNotFoundError: as `open_with_lora`, `check_meaning`, `align` and `aligned`.
        CheckpointError: as `open_model`.
    """
    models = {model: open_with_lora(model, open_model) for model in job.models}
    said = check_meaning(job, models)
    checkpoints, tokenizer = align(job.tokenizer, models, job.base)
    if job.align is not None:
        checkpoints = aligned(checkpoints, job.models[0], job.align, job.seed)
    checkpoints |= {file: open_model(file) for file in job.files}
    names = dict.fromkeys(name for model in models.values() for name in model.leaves)
    lines, outputs, notes = [], [], [*job.notes, *odd_filters(job, names), *said]
    notes += [note for checkpoint in checkpoints.values() for note in checkpoint.notes]
    for name, part, pairs, place in _outputs(job, checkpoints, lines):
        made = _output(job, checkpoints, name, part, pairs, place, lines)
        if made is not None:
            outputs.append(made)
    if lines:
        shown = lines[:50] + ([f"  ... and {len(lines) - 50} more"] if len(lines) > 50 else [])
        raise ValueError("these models cannot be merged:\n" + "\n".join(shown))
    _check_only(job, outputs)
    if any(output.recipe and output.recipe.scope == "model" for output in outputs):
        _check_constant(job)
        outputs = _share_recipe(outputs)
    if not (job.out_dtype or job.dtype):
        notes += mixed_dtypes(outputs, checkpoints)
    first = checkpoints[job.models[0]]
    made = {output.name for output in outputs}
    aliases = {alias: name for alias, name in first.aliases.items() if name in made}
    return Plan(job, tuple(outputs), checkpoints, aliases, tokenizer, tuple(dict.fromkeys(notes)))


def _outputs(job, checkpoints, lines):
    """Give (output name, slice, [(source, tensor)], place) of each tensor of the output, in file order."""
    if job.slices[0].sources[0].layers is None:
        yield from _whole_models(job, checkpoints, lines)
    else:
        yield from stacks.sliced(job, checkpoints, lines)


def _whole_models(job, checkpoints, lines):
    part = job.slices[0]
    reference = checkpoints[job.base or part.sources[0].model]
    counts = stacks.count_layers(reference.leaves)
    for model in dict.fromkeys([*(source.model for source in part.sources), *job.files]):
        checkpoint = checkpoints[model]
        lines += [line for name in checkpoint.leaves if (line := _extra(reference, model, checkpoint, name))]
    for name in reference.leaves:
        pairs = [(source, name) for source in part.sources]
        yield name, part, pairs, Place(name, stacks.depth(name, counts))


def _output(job, checkpoints, name, part, pairs, place, lines):
    base = None
    if job.base is not None:
        # the base's layer is that of the base among the sources, or the same layer as the first source's
        base = (job.base, next((tensor for source, tensor in pairs if source.model == job.base), pairs[0][1]))
    merged = members_of(job, part)
    wanted = [(source, tensor) for source, tensor in pairs if source in merged]
    members = tuple((source.model, tensor) for source, tensor in wanted)
    like = next((leaf for model, tensor in members if (leaf := _leaf(checkpoints[model], tensor))), None)
    mixed = like is not None and tree.is_float(like) and math.prod(like.shape)
    # filters look for the member's own name of a tensor, those of the merge for that of the output
    own = [settings_at(job, part, source, Place(tensor, place.depth)) for source, tensor in wanted if mixed]
    shared = settings_at(job, part, None, place) if mixed else {}
    files = _files(job, shared, own, base, members)
    alike = [*([base] if base else []), *members, *([] if job.definition.grams else files)]
    different = _differences(checkpoints, dict.fromkeys(alike))
    if job.definition.grams and like is not None:
        files, wrong = _grams(checkpoints, files, like, shared.get("inputs"))
        different += wrong
    if different:
        lines += different
        return None
    if job.definition.base == "first":
        members, base = (base, *members), None
    elif job.definition.base == "none":
        base = None
    recipe = job.definition.build(own, shared, base is not None) if mixed else None
    used = [
        leaf.dtype for pair in [*members, *([base] if base else [])] if (leaf := _leaf(checkpoints[pair[0]], pair[1]))
    ]
    dtype = (job.out_dtype or job.dtype or widest(used)) if tree.is_float(like) else like.dtype
    return Output(name, tuple(like.shape), np.dtype(dtype), members + files, base, recipe)


def _files(job, shared, own, base, members):
    """Give (file, tensor) of what goes in beside the members: what belongs to the base first."""
    of_base = [(shared[name], base[1]) for name in job.definition.files if name in shared]
    of_members = [
        (settings[name], tensor)
        for name in job.definition.files
        for settings, (_, tensor) in zip(own, members, strict=False)
        if name in settings
    ]
    return (*of_base, *of_members)


def _grams(checkpoints, files, like, inputs):
    """Give the Gram matrices that there are for a kernel, and what is wrong with them."""
    found = {pair: leaf for pair in files if (leaf := _leaf(checkpoints[pair[0]], pair[1])) is not None}
    lines = [
        f"  - {file}: {tensor} is missing, others have it" for file, tensor in files if (file, tensor) not in found
    ]
    ends = [1] if inputs == "last" else range(1, len(like.shape))
    sizes = [math.prod(like.shape[end:] if inputs == "last" else like.shape[:end]) for end in ends]
    for (file, tensor), leaf in found.items():
        if len(like.shape) < 2:
            lines.append(f"  ~ {file}: {tensor} of shape {list(like.shape)} is no kernel and has no Gram matrix")
        elif leaf.shape not in [(size, size) for size in sizes]:
            lines.append(
                f"  ~ {file}: the Gram matrix of {tensor} has shape {list(leaf.shape)}, but a kernel "
                f"{list(like.shape)} with its inputs {inputs} needs [in, in] with in = {' or '.join(map(str, sizes))}"
            )
    return tuple(found), lines if found else []


def _differences(checkpoints, pairs):
    """List how tensors differ from the first that is there: the base's, or the first member's."""
    lines, like = [], None
    for model, tensor in pairs:
        leaf = _leaf(checkpoints[model], tensor)
        if leaf is None:
            others = checkpoints[next(iter(pairs))[0]].leaves
            extra = [name for name in checkpoints[model].leaves if name not in others]
            lines.append(f"  - {model}: {tensor} is missing{did_you_mean(tensor, extra)}")
            continue
        like = like or leaf
        if leaf.shape != like.shape:
            vocabulary = len(leaf.shape) > 1 and leaf.shape[1:] == like.shape[1:]
            hint = "; tokenizer_source: base, union or a model would give all one vocabulary" if vocabulary else ""
            lines.append(f"  ~ {model}: {tensor} has shape {list(leaf.shape)} instead of {list(like.shape)}{hint}")
        elif leaf.dtype != like.dtype and not (tree.is_float(leaf) and tree.is_float(like)):
            lines.append(f"  ~ {model}: {tensor} has dtype {leaf.dtype} instead of {like.dtype}")
    return lines


def _leaf(checkpoint, tensor):
    return checkpoint.leaves.get(checkpoint.aliases.get(tensor, tensor))


def _extra(reference, model, checkpoint, name):
    if name in reference.leaves:
        return ""
    tied = {name, *(alias for alias, kept in checkpoint.aliases.items() if kept == name)}
    if name in reference.aliases:
        # tied in both, whichever of the names each file keeps
        kept = reference.aliases[name]
        return "" if kept in tied else f"  + {model}: {name} is extra: {reference.path} has it tied to {kept}"
    missing = [leaf for leaf in reference.leaves if leaf not in checkpoint.leaves]
    return f"  + {model}: {name} is extra{did_you_mean(name, missing)}"


def _check_only(job, outputs):
    merged = [output.name for output in outputs if output.recipe]
    only = job.parameters.get("only", ".*")
    if merged and not any(re.fullmatch(only, name) for name in merged):
        raise ValueError(f"only: {only!r} is the whole name of no tensor; one is called {merged[0]!r}")


def _check_constant(job):
    scopes = [job.parameters, *(part.parameters for part in job.slices)]
    scopes += [source.parameters for part in job.slices for source in part.sources]
    varying = sorted({name for scope in scopes for name, value in scope.items() if not is_constant(value)})
    if varying:
        raise ValueError(
            f"{job.method} looks at the whole model, so {', '.join(varying)} cannot differ between tensors: "
            "give one number, or scope: leaf"
        )
    if len(job.slices) > 1:
        raise ValueError(f"{job.method} looks at the whole model, so it cannot merge slices: give scope: leaf")


def _share_recipe(outputs):
    shared = next(output.recipe for output in outputs if output.recipe)
    return [dataclasses.replace(o, recipe=shared) if o.recipe else o for o in outputs]
