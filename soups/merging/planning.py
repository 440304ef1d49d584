"""Plan a merge from headers alone: what each tensor of the output is made of, or every reason why it cannot be."""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping

import numpy as np

from soups import tree
from soups.engine import BLOCK, Recipe
from soups.formats import Checkpoint
from soups.formats.tensors import leaf_of
from soups.merging import bands, buffers, stacks, ties
from soups.merging.alignment import aligned
from soups.merging.comparing import Findings, kind_of, settle_copied
from soups.merging.job import Job, is_member, odd_filters, settings_at
from soups.merging.lora import local_notes, open_with_lora
from soups.merging.meaning import check_meaning, mixed_dtypes, widest
from soups.merging.methods import build, find_method, is_ours
from soups.merging.origin import share_names
from soups.merging.repeated import bases_of, places, repeated
from soups.merging.tokenizers import Aligned, align
from soups.merging.values import Place, is_constant
from soups.names import shown
from soups.recipes import _select
from soups.recipes.regmean import gram_sizes
from soups.workers import may_fork

# bytes: of a process, of a header, and of JAX and TensorStore
PROCESS, HEADER, LIBRARIES = 30e6, 2500, 200e6
_OTHER_ROWS = (
    "; tokenizer_source: base, union or a model would give all one vocabulary",
    "; rows are of tokens where there are as many as vocab_size in config.json says",
)
FORKED = 2**26  # bytes that go into a merge that processes are worth their start for


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
    def sources(self) -> list[tuple[str, str]]:
        """List (model, tensor) of all that goes in: the members, what is beside them, the base."""
        return [*self.members, *([self.base] if self.base else [])]

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
    merged as a matter of course: what is left out, taken from the first member, tied or untied. `repeated`: those of
    them that say which members count several times, and that a base is a member.
    """

    job: Job
    outputs: tuple[Output, ...]
    checkpoints: Mapping[str, Checkpoint]
    aliases: Mapping[str, str]
    tokenizer: Aligned | None = None
    notes: tuple[str, ...] = ()
    repeated: tuple[str, ...] = ()

    @property
    def read_bytes(self) -> int:
        """Count the bytes of all tensors that go in, each once."""
        used = {pair for output in self.outputs for pair in output.sources}
        leaves = {leaf_of(self.checkpoints[model], tensor) for model, tensor in used}
        return sum(leaf.nbytes for leaf in leaves)

    @property
    def write_bytes(self) -> int:
        """Count the bytes of the output's tensors."""
        return sum(output.nbytes for output in self.outputs)

    @property
    def worth_processes(self) -> bool:
        """Say whether processes may do what threads else do; what a user's file imports may have threads of its own."""
        return self.read_bytes >= FORKED and is_ours(self.job.definition)

    def memory(self, threads: int, *, orbax: bool = False) -> float:
        """Estimate the private memory in bytes; mapped files come beside it and are given back when memory is short.

        `orbax`: what is merged is in memory until Orbax saves it.
        """
        return self.program(threads, orbax) + self._work(threads) + (self.write_bytes if orbax else 0)

    def program(self, threads: int, orbax: bool = False) -> float:
        """Estimate the private memory of the program and its headers alone."""
        headers = HEADER * sum(len(checkpoint.leaves) for checkpoint in self.checkpoints.values())
        if orbax or not may_fork():
            return PROCESS + LIBRARIES + headers
        return PROCESS * (1 + self.worth_processes * min(threads, len(self.outputs))) + headers

    def _work(self, threads):
        merged = [output for output in self.outputs if output.recipe]
        largest = max((output.size for output in merged), default=0)
        inputs = max(len(output.members) for output in self.outputs) + 1
        whole = any(output.recipe.unit == "leaf" for output in merged)
        block = 4 * (largest if whole else BLOCK) * (3 * inputs + 4) + self._making(merged)
        block += 32 * largest if self.job.align else 0  # a tensor of both models, in float64 and in order
        if any(output.recipe.scope == "model" for output in merged):  # it is measured once
            ranked = 4 * min(sum(output.size for output in merged), _select.GATHERED)
            return max(ranked, threads * block)
        measures = whole or any(output.recipe.measure is not Recipe.measure for output in merged)
        return threads * (block + measures * 4 * min(2 * largest, _select.GATHERED))

    def _making(self, outputs):
        """Count the bytes of the inputs that are made when they are read, of the tensor with the most."""
        return max((bands.making(self.checkpoints, output) for output in outputs), default=0)


def plan(job: Job, open_model: Callable[[str], Checkpoint], located: Mapping[str, str] | None = None) -> Plan:
    """Compare all headers and return the plan.

    `located`: where models are that the job calls otherwise, such as those of a record that was made elsewhere.

    Raises:
        ValueError: tensors that are missing, extra, or of another shape or kind, all of them in one message; layers
            that do not exist; an `only` that matches no name; values that differ between tensors, for a method that
            looks at the whole model.
        ValueError, FileNotFoundError: as `open_with_lora`, `check_meaning`, `align` and `aligned`.
        CheckpointError: as `open_model`.
    """
    located = located or {}
    models = {model: open_with_lora(located.get(model, model), open_model) for model in job.models}
    twice = repeated(job, places(models), bases_of(models))
    opened = share_names(models | {file: open_model(located.get(file, file)) for file in job.files})
    models = {model: opened[model] for model in models}
    models = {model: ties.written_out(checkpoint, _in_cut_layers(job)) for model, checkpoint in models.items()}
    models = ties.share_heads(models)
    said = check_meaning(job, models)
    checkpoints, tokenizer = align(job.tokenizer, models, job.base)
    if job.align is not None:
        checkpoints = aligned(checkpoints, job.models[0], job.align, job.seed)
    checkpoints |= {file: opened[file] for file in job.files}
    names = (name for model in models.values() for name in model.leaves)
    notes = [*job.notes, *twice, *odd_filters(job, names), *said, *(tokenizer.notes if tokenizer else ())]
    notes += [note for model in job.models if model not in located for note in local_notes(model)]
    notes += [note for checkpoint in checkpoints.values() for note in checkpoint.notes]
    planner = _Planner(job, checkpoints)
    found, outputs = planner.found, settle_copied(planner.outputs(), checkpoints, job.base, planner.found)
    found.check()
    _check_regexes(job, outputs, checkpoints[job.models[0]].leaves)
    if any(output.recipe and output.recipe.scope == "model" for output in outputs):
        _check_constant(job)
    if not (job.out_dtype or job.dtype):
        notes += mixed_dtypes([output for output in outputs if output.name in planner.mixed], checkpoints)
    made = {output.name for output in outputs}
    tied = checkpoints[job.models[0]].aliases
    aliases = {alias: name for alias, name in tied.items() if name in made and alias not in made}
    notes = tuple(dict.fromkeys([*notes, *found.notes()]))
    return Plan(job, tuple(outputs), checkpoints, aliases, tokenizer, notes, tuple(twice))


def _in_cut_layers(job):
    """Say of a tied tensor whether it must be one of its own, for the layers that it ties are put elsewhere."""
    return lambda alias: job.slices[0].sources[0].layers is not None and stacks.layer_of(alias) is not None


class _Planner:
    """Work out what each output of a job is made of, and collect in `found` why it cannot be made."""

    def __init__(self, job, checkpoints):
        self.job, self.checkpoints, self.found = job, checkpoints, Findings(job.models[0], job.only_tensors)
        self.mixed: set[str] = set()  # outputs whose inputs differ in their dtype
        self._recipes, self._settings = {}, {}

    def outputs(self):
        """Return the outputs in file order."""
        if self.job.slices[0].sources[0].layers is None:
            places = self._whole_models()
        else:
            places = stacks.sliced(self.job, self.checkpoints, self.found.lines)
        made = [self._output(*place) for place in places if not self.found.leave_out(place[0])]
        return [output for output in made if output is not None]

    def _whole_models(self):
        """Return (output name, slice, [(source, tensor)], place) of each tensor of the reference, in file order."""
        (part,) = self.job.slices
        reference = self.checkpoints[self.job.base or part.sources[0].model]
        counts = stacks.count_layers(reference.leaves)
        for model in dict.fromkeys([*(source.model for source in part.sources), *self.job.files]):
            self.found.compare_names(reference, model, self.checkpoints[model])
        for name in reference.leaves:
            pairs = [(source, name) for source in part.sources]
            yield name, part, pairs, Place(name, stacks.depth(name, counts))

    def _output(self, name, part, pairs, place):
        job, base = self.job, None
        if job.base is not None:
            # the base's layer is that of the base among the sources, or the same layer as the first source's
            base = (job.base, next((tensor for source, tensor in pairs if source.model == job.base), pairs[0][1]))
        own = [(source, tensor) for source, tensor in pairs if is_member(job, source)]
        members = tuple((source.model, tensor) for source, tensor in own)
        leaves = self._leaves([*([base] if base else []), *members])
        if copied := self._copied(name, members, leaves):
            return copied
        if not self._alike(leaves):
            return None
        like = leaves[members[0]]
        if not (tree.is_float(like) and math.prod(like.shape)):
            return self._made(name, members, base, leaves)
        own = [self._settings_at(part, source, tensor, place.depth) for source, tensor in own]
        shared = self._settings_at(part, None, name, place.depth)
        files = self._files(shared, own, base, members)
        if job.definition.grams:
            files, wrong = self._grams(files, like, shared["inputs"])
            self.found.lines += wrong
            if wrong:
                return None
        elif files and not self._alike({members[0]: like} | self._leaves(files)):
            return None
        if tree.is_complex(like) and not job.definition.takes_complex:
            self.found.lines.append(
                f"  ~ {shown(name)} is complex, but {job.method} needs to order or compare elements"
            )
        return self._made(name, members, base, leaves, files, (own, shared))

    def _made(self, name, members, base, leaves, files=(), settings=None):
        """Return an output, with the base where the method takes it: as the first member, beside them, or nowhere."""
        takes = self.job.definition.base
        if takes == "first":
            members = (base, *members)
        base = base if takes in ("optional", "required") else None
        dtypes = dict.fromkeys(leaves[pair].dtype for pair in (*members, *([base] if base else [])))
        if len(dtypes) > 1 and settings:
            self.mixed.add(name)
        recipe = self._recipe(name, *settings, base is not None) if settings else None
        like = leaves[members[0]]
        return Output(name, tuple(like.shape), self._dtype(like, dtypes), members + files, base, recipe)

    def _copied(self, name, members, leaves):
        """Return the output of what one model alone decides, or None."""
        job, there = self.job, [pair for pair, leaf in leaves.items() if leaf]
        if members[0] in there and job.keep_first is not None and re.fullmatch(job.keep_first, name):
            pair, why = members[0], f"taken from the first member by keep_first {job.keep_first!r}"
        elif 0 < len(there) < len(leaves) and buffers.carries_nothing(self.checkpoints[there[0][0]], there[0][1]):
            pair, why = there[0], f"taken from {there[0][0]}, because others lack it and it carries no information"
        else:
            return None
        self.found.tell(why, name)
        leaf = leaves[pair]
        return Output(name, leaf.shape, self._dtype(leaf, [leaf.dtype]), (pair,), None, None)

    def _leaves(self, pairs):
        return {pair: leaf_of(self.checkpoints[pair[0]], pair[1]) for pair in pairs}

    def _dtype(self, like, dtypes):
        """Return the dtype of an output: what a recipe says holds for floats, and for complex numbers of them."""
        asked = self.job.out_dtype or self.job.dtype
        if not tree.is_float(like):
            return np.dtype(like.dtype)
        if tree.is_complex(like) and asked:
            return np.dtype(np.complex128 if asked == np.float64 else np.complex64)
        return np.dtype(asked or widest(dtypes))

    def _settings_at(self, part, source, tensor, depth):
        """Return `settings_at`, worked out once where it is the same for all tensors.

        Filters look for the member's own name of a tensor, those of the merge for that of the output.
        """
        key = id(part), id(source)
        if key not in self._settings:
            scopes = [self.job.parameters, part.parameters, *([source.parameters] if source else [])]
            same = all(is_constant(value) for scope in scopes for value in scope.values())
            self._settings[key] = settings_at(self.job, part, source, Place(tensor, depth)) if same else None
        return self._settings[key] or settings_at(self.job, part, source, Place(tensor, depth))

    def _recipe(self, name, own, shared, has_base):
        """Return the recipe for these settings, the one that other tensors with the same settings have."""
        key = (*(tuple(settings.values()) for settings in [*own, shared]), has_base)
        if key not in self._recipes:
            self._recipes[key] = build(self.job.definition, own, shared, has_base, name)
        return self._recipes[key]

    def _files(self, shared, own, base, members):
        """Return (file, tensor) of what goes in beside the members: what belongs to the base first."""
        found = []
        for name in self.job.definition.files:
            scopes = [*([(shared, base)] if name in shared else []), *zip(own, members, strict=True)]
            found += [(settings[name], tensor) for settings, (_, tensor) in scopes if name in settings]
        return tuple(found)

    def _grams(self, files, like, inputs):
        """Return the Gram matrices that there are for a kernel, and what is wrong with them."""
        found = {pair: leaf for pair, leaf in self._leaves(files).items() if leaf is not None}
        missing = [pair for pair in files if pair not in found]
        lines = [f"  - {file}: {tensor} is missing, others have it" for file, tensor in missing]
        sizes = gram_sizes(like.shape, inputs)
        for (file, tensor), leaf in found.items():
            if len(like.shape) < 2:
                lines.append(
                    f"  ~ {file}: {tensor} of shape {list(like.shape)} is not a kernel, so it has no Gram matrix"
                )
            elif leaf.shape not in [(size, size) for size in sizes]:
                wanted = f"[in, in] with in = {' or '.join(map(str, sizes))}"
                lines.append(
                    f"  ~ {file}: the Gram matrix of {tensor} has shape {list(leaf.shape)}, but a kernel "
                    f"{list(like.shape)} with its inputs {inputs} needs {wanted}"
                )
        return tuple(found), lines if found else []

    def _alike(self, leaves):
        """Say whether tensors are alike; note how they differ from the first, the base if there is one."""
        like, alike = None, True
        for (model, tensor), leaf in leaves.items():
            if leaf is None:
                self.found.miss(model, tensor)
            elif leaf.shape != (like := like or leaf).shape:
                vocabulary = len(leaf.shape) > 1 and leaf.shape[1:] == like.shape[1:]
                hint = _OTHER_ROWS[self.job.tokenizer is not None] if vocabulary else ""
                what = f"has shape {list(leaf.shape)} instead of {list(like.shape)}{hint}"
                self.found.lines.append(f"  ~ {model}: {shown(tensor)} {what}")
            elif leaf.dtype != like.dtype and kind_of(leaf) != kind_of(like):
                self.found.lines.append(f"  ~ {model}: {shown(tensor)} has dtype {leaf.dtype} instead of {like.dtype}")
            else:
                continue
            alike = False
        return alike


def _check_regexes(job, outputs, leaves):
    names = [output.name for output in outputs]
    merged = [output.name for output in outputs if output.recipe]
    fields = {
        "only_tensors": (job.only_tensors, names),
        "keep_first": (job.keep_first, names),
        "only": (job.parameters.get("only") if merged else None, merged),
    }
    for field, (regex, among) in fields.items():
        if regex is not None and not any(re.fullmatch(regex, name) for name in among):
            one = next(iter(among), next(iter(leaves), None))
            called = f"; one is called {shown(one)!r}" if one else ""
            raise ValueError(f"{field}: {regex!r} does not match the whole name of any tensor{called}")


def _check_constant(job):
    varying = sorted({name for scope in job.scopes for name, value in scope.items() if not is_constant(value)})
    by_leaf = "scope" in find_method(job.method, job.vocabulary).defaults
    if varying:
        raise ValueError(
            f"{job.method} looks at the whole model, so {', '.join(varying)} cannot differ between tensors: "
            f"give one number{', or scope: leaf' if by_leaf else ''}"
        )
    if len(job.slices) > 1:
        hint = ": give scope: leaf" if by_leaf else ""
        raise ValueError(f"{job.method} looks at the whole model, so it cannot merge slices{hint}")
