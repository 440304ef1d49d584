"""Average one run densely over the valley of its validation loss."""

import jax
import numpy as np

from soups import tree
from soups.arguments import check_within


class Swad:
    """Choose, while a run goes on, the stretch of it whose weights are averaged: SWAD.

        swad = Swad()
        fit(loss, start, data, steps=300, save_every=20, swa_start=0.0,
            on_checkpoint=lambda step, made: swad.add(step, validate(made["params"]), made["averages"]["swa"]))
        weights = swad.average()

    With losses l_1, l_2, ... at the checkpoints the stretch begins with the first segment i, the steps that end at
    checkpoint i, for which l_i = min(l_i, ..., l_{i+n−1}), n = `converge`. It ends before the first `tolerance`
    checkpoints in a row whose losses all are above `rate` · mean(l_i, ..., l_{i+n−1}), or with the run. Where no
    segment begins it, it is the last one. The average is that of the weights after each step of it.

    Raises:
        ValueError: numbers out of range; checkpoints that are not in order; a loss that is not finite; an average
            before the first checkpoint.

    Cha et al., "SWAD: Domain generalization by seeking flat minima", 2021, arXiv 2102.08604, algorithm 1.
    """

    def __init__(self, converge: int = 3, tolerance: int = 6, rate: float = 1.3):
        self._converge = check_within("converge", converge, "[1, inf)", whole=True)
        self._tolerance = check_within("tolerance", tolerance, "[1, inf)", whole=True)
        self._rate = check_within("rate", rate, "[1, inf)")
        self._steps, self._losses, self._means = [0], [], {}
        self._first = self._last = None

    @property
    def stretch(self) -> tuple[int, int]:
        """Return the numbers of steps between which the weights are averaged, as far as is known by now."""
        if not self._losses:
            raise ValueError("there is nothing to average before the first checkpoint")
        end = len(self._losses) - 1
        first = end if self._first is None else self._first
        return self._steps[first], self._steps[(end if self._last is None else self._last) + 1]

    def add(self, step: int, loss: float, mean: tree.Tree) -> None:
        """Take the validation loss after so many steps, and the mean of the weights after each step until then."""
        check_within("step", step, "(-inf, inf)", whole=True)
        if not step > self._steps[-1]:
            raise ValueError(f"checkpoints must come in order, but step {step} came after {self._steps[-1]}")
        check_within(f"the validation loss after step {step}", loss, "(-inf, inf)")
        if self._last is not None:
            return
        self._steps.append(step)
        self._losses.append(float(loss))
        self._means[step] = jax.device_get(mean)
        recent = self._losses[-self._converge :]
        if self._first is None:
            if len(recent) == self._converge and np.argmin(recent) == 0:
                self._first, self._bound = len(self._losses) - self._converge, self._rate * np.mean(recent)
        elif len(self._losses) - self._first > self._tolerance and min(self._losses[-self._tolerance :]) > self._bound:
            self._last = len(self._losses) - self._tolerance - 1
        self._forget()

    def average(self) -> tree.Tree:
        """Return the mean of the weights after each step of the stretch, in float32 or wider."""
        begin, end = self.stretch
        if not begin:
            return self._means[end]
        return mean_between(begin, self._means[begin], end, self._means[end])

    def _forget(self):
        """Drop the means that no stretch can begin or end with any more."""
        needed = {*self._steps[-max(self._converge, self._tolerance) - 1 :], *self.stretch}
        self._means = {step: mean for step, mean in self._means.items() if step in needed}


def mean_between(begin: int, before: tree.Tree, end: int, until: tree.Tree) -> tree.Tree:
    """Return the mean of the weights after the steps from `begin` + 1 to `end`, of the means from step 1 to either."""

    def leaf(early, late):
        if not np.issubdtype(np.asarray(late).dtype, np.inexact):
            return late
        total = end * np.asarray(late, np.float64) - begin * np.asarray(early, np.float64)
        return (total / (end - begin)).astype(late.dtype)

    return jax.tree.map(leaf, before, until)
