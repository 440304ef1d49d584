"""Compare the tensors of models before they are merged: what is wrong in one message, what is left out in notes."""

import collections
import dataclasses
import re
from collections.abc import Iterable, Mapping

import numpy as np

from soups import tree
from soups.formats import Tensors
from soups.formats.tensors import leaf_of, listed
from soups.merging import buffers, ties
from soups.names import LEGEND, beginnings, bounded, differences, few, shown

COMPARED = 1 << 26  # bytes of integers in all models; if there are more, they are compared when they are merged


@dataclasses.dataclass
class Findings:
    """Collect what is wrong with the models, line by line, and what is done with tensors without harm."""

    reference: str  # the model with which all are compared
    only: str | None = None  # a regex of the whole names of tensors that are merged; others are left out
    lines: list[str] = dataclasses.field(default_factory=list)
    _missing: dict[str, list[str]] = dataclasses.field(default_factory=lambda: collections.defaultdict(list))
    _extra: dict[str, list[str]] = dataclasses.field(default_factory=lambda: collections.defaultdict(list))
    _told: dict[str, list[str]] = dataclasses.field(default_factory=lambda: collections.defaultdict(list))

    def miss(self, model: str, tensor: str) -> None:
        """Note that a model lacks a tensor."""
        self._missing[model].append(tensor)

    def tell(self, sentence: str, tensor: str) -> None:
        """Note what is done with a tensor; those with the same sentence are listed together."""
        self._told[sentence].append(tensor)

    def leave_out(self, tensor: str) -> bool:
        """Say whether a tensor is not among those that are merged, and note it."""
        if out := self.only is not None and not re.fullmatch(self.only, tensor):
            self.tell(f"left out by only_tensors {self.only!r}", tensor)
        return out

    def notes(self) -> list[str]:
        """Return the sentences for the user."""
        return [f"{sentence}: {listed(dict.fromkeys(tensors), 5)}" for sentence, tensors in self._told.items()]

    def check(self) -> None:
        """Raise a ValueError that lists what is wrong, if anything is."""
        lines = []
        for model in dict.fromkeys([*self._missing, *self._extra]):
            lines += differences(dict.fromkeys(self._missing[model]), self._extra[model], model)
            lines += self._trees(model)
        if lines := [*lines, *self.lines]:
            raise ValueError(
                f"these models cannot be merged; compared with {self.reference} ({LEGEND}):\n{bounded(lines)}"
            )

    def _trees(self, model):
        """Return a line with the trees that have the same names, where names differ in how they begin."""
        pairs = beginnings(self._missing[model], self._extra[model])
        starts = dict.fromkeys(start for old, new in pairs for start in ((self.reference, old), (model, new)))
        trees = [shown(f"{name}@{start[:-1]}") for name, start in starts if start and "@" not in name]
        return [f"    MODEL@NAME takes the names below one of these: {few(trees)}"] if trees else []

    def compare_names(self, reference: Tensors, model: str, checkpoint: Tensors) -> None:
        """Note the tensors that a model has and the reference lacks: extra, or left out without harm."""
        for name in checkpoint.leaves:
            if name in reference.leaves or self.leave_out(name):
                continue
            if kept := reference.aliases.get(name):
                if checkpoint.aliases.get(kept) == name:
                    continue  # tied in both, whichever of the names each file keeps
                if ties.same(checkpoint, name, kept):
                    self.tell(f"left out of {model}, where it equals what {reference.path} ties it to", name)
                else:
                    self.lines.append(
                        f"  + {model}: {shown(name)} is extra: {reference.path} has it tied to {shown(kept)}"
                    )
            elif buffers.carries_nothing(checkpoint, name):
                self.tell(f"left out of {model}, because others lack it and it carries no information", name)
            else:
                self._extra[model].append(name)


def kind_of(leaf) -> str:
    """Return what may be mixed with what: floats with floats, complex numbers with complex ones, others with like."""
    return ("complex" if tree.is_complex(leaf) else "float") if tree.is_float(leaf) else str(leaf.dtype)


def settle_copied(outputs: Iterable, checkpoints: Mapping[str, Tensors], base: str | None, found: Findings) -> list:
    """Return the outputs, of which those that are copied have one source where that needs no comparison any more.

    Integers must be the same in all models, but for counters, which are the first member's; of floats, buffers that
    all models have alike are copied, such as masks of −inf. The tensors are read, unless they are large.
    """
    outputs, result = list(outputs), []
    copied = [output for output in outputs if output.recipe is None and len(output.sources) > 1 and output.size]
    small = sum(len(output.sources) * output.size * output.dtype.itemsize for output in copied) <= COMPARED
    for output in outputs:
        copies = output.recipe is None
        pairs = list(dict.fromkeys(output.sources)) if copies or buffers.is_buffer(output.name) else ()
        if len(pairs) < 2 or not output.size:
            result.append(output)
            continue
        first = next((pair for pair in output.members if pair[0] != base), pairs[0])
        pairs = list(dict.fromkeys([first, *pairs]))
        if copies:
            result.append(_of_integers(output, checkpoints, pairs, small, found))
        else:
            alike = _nbytes(checkpoints, pairs) <= buffers.LARGEST and not _different(checkpoints, pairs)
            result.append(_alone(output, first) if alike else output)
    return result


def _of_integers(output, checkpoints, pairs, small, found):
    """Return a copied output with its first source if it is a counter; note what differs."""
    other = _different(checkpoints, pairs) if small else None
    if tree.is_counter(output.name):
        if other or not small:
            found.tell("counters, which are the first member's", output.name)
        return _alone(output, pairs[0])
    if other:
        found.lines.append(
            f"  ~ tensor {shown(output.name)} does not hold floats and is copied, so it must be the same in all "
            f"models: {other} differs from {pairs[0][0]}; keep_first takes it from the first member"
        )
    return output


def _alone(output, pair):
    return dataclasses.replace(output, members=(pair,), base=None, recipe=None)


def _nbytes(checkpoints, pairs):
    return sum(leaf_of(checkpoints[model], tensor).nbytes for model, tensor in pairs)


def _different(checkpoints, pairs):
    """Return the first model whose tensor is not that of the first pair, by digests where these are known."""
    (model, tensor), *others = pairs
    array = None
    for other, its in others:
        digests = [checkpoints[m].digests.get(t) for m, t in ((model, tensor), (other, its))]
        if None not in digests:
            if digests[0] != digests[1]:
                return other
            continue
        array = np.asarray(checkpoints[model].read(tensor)) if array is None else array
        if not np.array_equal(array, np.asarray(checkpoints[other].read(its))):
            return other
    return None
