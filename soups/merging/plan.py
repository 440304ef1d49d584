"""Plan a merge from headers alone: what each tensor of the output is made of, or every reason why it cannot be."""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping

import numpy as np

from soups import tree
from soups.engine import BLOCK, Recipe
from soups.formats import Checkpoint
from soups.formats.tensors import separator
from soups.merging import buffers, stacks, ties
from soups.merging.alignment import aligned
from soups.merging.comparing import Findings, kind_of, leaf_of, settle_copied
from soups.merging.lora import open_with_lora
from soups.merging.meaning import check_meaning, mixed_dtypes, widest
from soups.merging.recipe_file import Job, members_of, odd_filters, settings_at
from soups.merging.tokenizers import Aligned, align
from soups.merging.values import Place, is_constant
from soups.names import bounded, shown
from soups.recipes import _select

_DEPTH = 64  # of nested dicts
_LONGEST = 255  # bytes of a folder's name
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
        leaves = {leaf_of(self.checkpoints[model], tensor) for model, tensor in used}
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


def plan(job: Job, open_model: Callable[[str], Checkpoint], located: Mapping[str, str] | None = None) -> Plan:
    """Compare all headers and return the plan.

    `located`: where models are that the job calls otherwise, such as those of a record that was made elsewhere.

    Raises:
        ValueError: every tensor that is missing, extra, or of another shape or kind, in one message; layers that do not
            exist; `only` that matches no name; values that differ between tensors, of a method that looks at the whole
            model.
        ValueError, FileNotFoundError: as `open_with_lora`, `check_meaning`, `align` and `aligned`.
        CheckpointError: as `open_model`.
    """
    located = located or {}
    models = {model: open_with_lora(located.get(model, model), open_model) for model in job.models}
    models = {model: ties.written_out(checkpoint, _in_cut_layers(job)) for model, checkpoint in models.items()}
    models = ties.share_heads(models)
    said = check_meaning(job, models)
    checkpoints, tokenizer = align(job.tokenizer, models, job.base)
    if job.align is not None:
        checkpoints = aligned(checkpoints, job.models[0], job.align, job.seed)
    checkpoints |= {file: open_model(located.get(file, file)) for file in job.files}
    names = dict.fromkeys(name for model in models.values() for name in model.leaves)
    notes = [*job.notes, *odd_filters(job, names), *said, *(tokenizer.notes if tokenizer else ())]
    notes += [note for checkpoint in checkpoints.values() for note in checkpoint.notes]
    outputs, found = _outputs(job, checkpoints)
    outputs = settle_copied(outputs, checkpoints, job.base, found)
    found.check()
    _check_regexes(job, outputs)
    if any(output.recipe and output.recipe.scope == "model" for output in outputs):
        _check_constant(job)
    if not (job.out_dtype or job.dtype):
        notes += mixed_dtypes(outputs, checkpoints)
    made = {output.name for output in outputs}
    tied = checkpoints[job.models[0]].aliases
    aliases = {alias: name for alias, name in tied.items() if name in made and alias not in made}
    return Plan(job, tuple(outputs), checkpoints, aliases, tokenizer, tuple(dict.fromkeys([*notes, *found.notes()])))


def check_places(plan: Plan, *, escaped: bool = False) -> None:
    """Look whether each tensor has a place of its own where names become nested dicts, as Orbax and pools have them.

    `escaped`: tensors lie in folders of other names where theirs could be none, as in pools.

    Raises:
        ValueError: a name that is also the beginning of others, or whose keys joined with "." are those of another, or
            which Orbax cannot give to a folder; all of them in one message.
    """
    names = [output.name for output in plan.outputs]
    mark = separator(names)
    lines, folders, places = [], {}, {}
    for name in [name for name in names if name.count(mark) < _DEPTH]:
        for found in re.finditer(re.escape(mark), name):
            folders.setdefault(name[: found.start()], name)
    for name in names:
        first = places.setdefault(name.replace(mark, "."), name)
        if name in folders:
            lines.append(f"  ~ {shown(name)} would be a tensor, and a dict with {shown(folders[name])}")
        elif first != name:
            lines.append(f"  ~ {shown(first)} and {shown(name)} would have one place")
        elif not all(name.split(mark)):
            lines.append(f"  ~ {shown(name)} has a part without a name")
        elif name.count(mark) >= _DEPTH:
            lines.append(f"  ~ {shown(name)} has more than {_DEPTH} parts")
        elif not escaped and (re.search(r"[\\\0]", name) or len(name.encode()) > _LONGEST):
            lines.append(
                f"  ~ {shown(name)} would be a folder, whose name has no backslash and at most {_LONGEST} bytes"
            )
    if lines:
        raise ValueError(f"these tensors have no place of their own in nested dicts:\n{bounded(lines)}")


def _in_cut_layers(job):
    """Say of a tied tensor whether it must be one of its own, for the layers that it ties are put elsewhere."""
    return lambda alias: job.slices[0].sources[0].layers is not None and stacks.layer_of(alias) is not None


def _outputs(job, checkpoints):
    """Return the outputs in file order, and what was found on the way."""
    outputs, found, recipes = [], Findings(job.only_tensors), {}
    if job.slices[0].sources[0].layers is None:
        places = _whole_models(job, checkpoints, found)
    else:
        places = stacks.sliced(job, checkpoints, found.lines)
    for name, part, pairs, place in places:
        if not found.leave_out(name) and (made := _output(job, checkpoints, name, part, pairs, place, found, recipes)):
            outputs.append(made)
    return outputs, found


def _whole_models(job, checkpoints, found):
    """Return (output name, slice, [(source, tensor)], place) of each tensor of the reference, in file order."""
    part = job.slices[0]
    reference = checkpoints[job.base or part.sources[0].model]
    counts = stacks.count_layers(reference.leaves)
    for model in dict.fromkeys([*(source.model for source in part.sources), *job.files]):
        found.compare_names(reference, model, checkpoints[model])
    for name in reference.leaves:
        pairs = [(source, name) for source in part.sources]
        yield name, part, pairs, Place(name, stacks.depth(name, counts))


def _output(job, checkpoints, name, part, pairs, place, found, recipes):
    base = None
    if job.base is not None:
        # the base's layer is that of the base among the sources, or the same layer as the first source's
        base = (job.base, next((tensor for source, tensor in pairs if source.model == job.base), pairs[0][1]))
    merged = members_of(job, part)
    wanted = [(source, tensor) for source, tensor in pairs if source in merged]
    members = tuple((source.model, tensor) for source, tensor in wanted)
    if copied := _copied(job, checkpoints, name, members, [*([base] if base else []), *members], found):
        return copied
    if not _compare(checkpoints, dict.fromkeys([*([base] if base else []), *members]), found):
        return None
    like = leaf_of(checkpoints[members[0][0]], members[0][1])
    mixed = tree.is_float(like) and math.prod(like.shape)
    # filters look for the member's own name of a tensor, those of the merge for that of the output
    own = [settings_at(job, part, source, Place(tensor, place.depth)) for source, tensor in wanted if mixed]
    shared = settings_at(job, part, None, place) if mixed else {}
    files = _files(job, shared, own, base, members)
    if job.definition.grams:
        files, wrong = _grams(checkpoints, files, like, shared.get("inputs"))
        found.lines += wrong
        if wrong:
            return None
    elif not _compare(checkpoints, dict.fromkeys([members[0], *files]), found):
        return None
    if job.definition.base == "first":
        members, base = (base, *members), None
    elif job.definition.base == "none":
        base = None
    if mixed and tree.is_complex(like) and not job.definition.takes_complex:
        found.lines.append(f"  ~ {shown(name)} is complex, and {job.method} orders or compares elements")
    recipe = _recipe(job, own, shared, base, recipes) if mixed else None
    dtype = _dtype(job, checkpoints, [*members, *([base] if base else [])])
    return Output(name, tuple(like.shape), dtype, members + files, base, recipe)


def _recipe(job, own, shared, base, recipes):
    """Return the recipe for these settings, the one that other tensors with the same settings have."""
    key = (*(tuple(settings.values()) for settings in [*own, shared]), base is None)
    if key not in recipes:
        recipes[key] = job.definition.build(own, shared, base is not None)
    return recipes[key]


def _copied(job, checkpoints, name, members, pairs, found):
    """Return the output of what one model alone decides, or None."""
    there = [pair for pair in pairs if leaf_of(checkpoints[pair[0]], pair[1])]
    kept = job.keep_first is not None and re.fullmatch(job.keep_first, name)
    if kept and members[0] in there:
        pair, why = members[0], f"taken from the first member by keep_first {job.keep_first!r}"
    elif 0 < len(there) < len(pairs) and buffers.carries_nothing(checkpoints[there[0][0]], there[0][1]):
        pair, why = there[0], f"taken from {there[0][0]}, for others lack it and it carries nothing"
    else:
        return None
    found.tell(why, name)
    return Output(
        name, leaf_of(checkpoints[pair[0]], pair[1]).shape, _dtype(job, checkpoints, [pair]), (pair,), None, None
    )


def _dtype(job, checkpoints, pairs):
    """Return the dtype of an output: what the recipe says holds for floats, and for complex numbers made of such."""
    used = [leaf.dtype for model, tensor in pairs if (leaf := leaf_of(checkpoints[model], tensor))]
    like = leaf_of(checkpoints[pairs[0][0]], pairs[0][1])
    asked = job.out_dtype or job.dtype
    if not tree.is_float(like):
        return np.dtype(like.dtype)
    if tree.is_complex(like) and asked:
        return np.dtype(np.complex128 if asked == np.float64 else np.complex64)
    return np.dtype(asked or widest(used))


def _files(job, shared, own, base, members):
    """Return (file, tensor) of what goes in beside the members: what belongs to the base first."""
    of_base = [(shared[name], base[1]) for name in job.definition.files if name in shared]
    of_members = [
        (settings[name], tensor)
        for name in job.definition.files
        for settings, (_, tensor) in zip(own, members, strict=False)
        if name in settings
    ]
    return (*of_base, *of_members)


def _grams(checkpoints, files, like, inputs):
    """Return the Gram matrices that there are for a kernel, and what is wrong with them."""
    found = {pair: leaf for pair in files if (leaf := leaf_of(checkpoints[pair[0]], pair[1])) is not None}
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


def _compare(checkpoints, pairs, found):
    """Say whether tensors are alike; how they differ from the first that is there, the base's or the first member's."""
    like, whole = None, True
    for model, tensor in pairs:
        leaf = leaf_of(checkpoints[model], tensor)
        if leaf is None:
            found.miss(model, tensor)
        elif leaf.shape != (like := like or leaf).shape:
            vocabulary = len(leaf.shape) > 1 and leaf.shape[1:] == like.shape[1:]
            hint = "; tokenizer_source: base, union or a model would give all one vocabulary" if vocabulary else ""
            what = f"has shape {list(leaf.shape)} instead of {list(like.shape)}{hint}"
            found.lines.append(f"  ~ {model}: {shown(tensor)} {what}")
        elif leaf.dtype != like.dtype and kind_of(leaf) != kind_of(like):
            found.lines.append(f"  ~ {model}: {shown(tensor)} has dtype {leaf.dtype} instead of {like.dtype}")
        else:
            continue
        whole = False
    return whole


def _check_regexes(job, outputs):
    names = [output.name for output in outputs]
    merged = [output.name for output in outputs if output.recipe]
    fields = {
        "only_tensors": (job.only_tensors, names),
        "keep_first": (job.keep_first, names),
        "only": (job.parameters.get("only") if merged else None, merged),
    }
    for field, (regex, among) in fields.items():
        if regex is not None and not any(re.fullmatch(regex, name) for name in among):
            one = next(iter(among), next((name for name in outputs), None))
            called = f"; one is called {shown(one)!r}" if one else ""
            raise ValueError(f"{field}: {regex!r} is the whole name of no tensor{called}")


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
