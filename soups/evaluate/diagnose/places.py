"""Judge where members lie in weight space: copies, other starts, members far off, and which modules moved."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from soups import tree
from soups.evaluate.diagnose.report import ALIGN, Book, listed
from soups.evaluate.diagnose.structure import Trees
from soups.evaluate.geometry import (
    OUTLIER_Z,
    Gram,
    agreement_with_others,
    cosines,
    measure,
    off_diagonal,
    robust_z,
    spread,
    together,
)

# Two members this parallel are one run saved twice; runs with other seeds are far from it (0.1 to 0.9)
NEAR_COSINE = 0.9999
# sqrt(2 (1 − NEAR_COSINE)) is 0.014: without a base, the same judgement from distances relative to the median one
NEAR_DISTANCE = 0.01
# Fine-tuning moves weights by some percent of their norm, in tiny networks by half of it. Weights of another start are
# orthogonal to the base: then |τ| is 1.4 times |base| where the norms are equal, and beyond 1 whatever they are.
FAR_START = 1.0
# The same limit between two members: each |base| away from it, at right angles, they have the cosine 1/2
SAME_START_COSINE = 0.5
# A learning rate much too high moves weights by more than the papers' sweeps do among themselves
FAR_NORM = 5.0
# Norms and cosines of a few members can be nearly the same, and then a robust z-score beyond its limit would blame
# trifles: it takes a factor of 2, or a difference of 0.1, as well
OUTLIER_NORM, OUTLIER_COSINE = 2.0, 0.1
# Directions at random have cosines of ±1/sqrt(n), n being the number of weights; four times that is not chance
CHANCE = 4.0


def look(
    book: Book, trees: Trees, base: tree.Tree | None, modules: Mapping[str, str], measured: bool
) -> dict[str, Any]:
    """Write down what the weights say; give "names", "norms", "relative_norms", "cosines" and "modules".

    `modules`: the module of each leaf. Only members that add nothing (copies, the base) are left out if barriers will
    be `measured`: they decide then.
    """
    names = list(trees)
    parts = measure(list(trees.values()), base, modules)
    total = sum((m + r for m, r in parts.values()), Gram(np.zeros((len(names) + 1,) * 2)))
    matrices = sum((m for m, _ in parts.values()), Gram(np.zeros((len(names) + 1,) * 2)))
    kernels = matrices if matrices.matrix.any() else total
    size = sum(int(np.prod(leaf.shape)) for name, leaf in tree.flatten(trees[names[0]]).items() if name in modules)
    judge = _Judge(book, names, total, base is not None, measured, CHANCE / np.sqrt(max(size, 1)))
    left = judge.not_the_base()
    left = judge.without_copies(left, trees)
    left = judge.of_one_start(left, kernels)
    left = judge.not_far(left)
    judge.remark_outliers(left)
    modules = judge.modules(left, parts)
    judge.remark_modules(left, modules, kernels)
    return {
        "names": names,
        "norms": judge.moved,
        "relative_norms": _over(judge.moved, total.reference),
        "cosines": judge.cosines,
        "modules": modules,
    }


def remark_foreign_modules(book: Book, trees: Trees, modules: Mapping[str, str]) -> None:
    """Look for modules drawn anew among the leaves that the base does not have, such as heads."""
    judge = _Judge(book, list(trees), Gram(np.zeros((len(trees) + 1,) * 2)), False, True, 0.0)
    members = list(trees.values())
    judge.remark_modules(range(len(members)), judge.modules(range(len(members)), measure(members, None, modules)), None)


class _Judge:
    """Know the members' inner products, and judge those whose indices are given; each judgement gives who is left."""

    def __init__(self, book, names, total, has_base, measured, chance):
        self.book, self.names, self.total, self.has_base, self.measured = book, names, total, has_base, measured
        self.chance = chance
        self.moved = spread(total, has_base)
        self.cosines = cosines(total.deviations if has_base else total.weights)

    def not_the_base(self):
        """Leave out members that are the base."""
        everyone = range(len(self.names))
        still = [i for i in everyone if self.has_base and self.moved[i] == 0]
        if still:
            reasons = {self.names[i]: "it has the weights of the base" for i in still}
            advice = "it only pulls the average back to the base; was the wrong checkpoint saved?"
            self.book.out("base member", "a member has the weights of the base", reasons, advice)
        return [i for i in everyone if i not in still]

    def without_copies(self, left, trees):
        """Leave out exact copies, and warn of near ones."""
        near = self._near(left)
        copies, alike = {}, {}
        for place, i in enumerate(left):
            twins = [j for j in left[:place] if near[j, i] and self.names[j] not in copies]
            exact = next((j for j in twins if _equal(trees[self.names[j]], trees[self.names[i]])), None)
            if exact is not None:
                copies[self.names[i]] = f"it is an exact copy of {self.names[exact]}"
            elif twins:
                alike.setdefault(self.names[twins[0]], []).append(self.names[i])
        if copies:
            advice = "each copy gives its member more weight; use soups.weighted if that is meant"
            self.book.out("copy", "exact copies of other members", copies, advice)
        for first, others in alike.items():
            advice = "they count twice in an average and add nothing to it: keep one"
            self.book.add("warning", "near copy", "nearly the same weights", [first, *others], advice)
        return [i for i in left if self.names[i] not in copies]

    def _near(self, left):
        distances = self.total.distances
        # float32 weights that differ by rounding alone
        near = distances <= 1e-6 * np.sqrt(np.diag(self.total.weights))
        if self.has_base:
            return near | (self.cosines > NEAR_COSINE)
        among = off_diagonal(distances[np.ix_(left, left)])
        return near | (distances < NEAR_DISTANCE * (np.median(among) if among.size else 0.0))

    def of_one_start(self, left, kernels):
        """Keep those of the base; if fewer than two are, the largest group of members that are like each other."""
        if len(left) < 2:
            return left
        beyond = kernels.norms > FAR_START * kernels.reference
        family = [i for i in left if self.has_base and not beyond[i]]
        of_base = len(family) >= 2
        if not of_base:
            alike = cosines(kernels.weights)[np.ix_(left, left)]
            family = [left[i] for i in together(alike < SAME_START_COSINE)]
        if len(family) < 2:
            return self._no_family(left)
        if self.has_base and not of_base:
            what = "the members are like each other, but not like the base"
            advice = "task vectors from it mean nothing: give the weights that they were fine-tuned from"
            self.book.add("warning", "base", what, [self.names[i] for i in family], advice)
        others = [i for i in left if i not in family]
        like = kernels.norms / kernels.reference if of_base else None
        return self._decide(
            "start",
            others,
            left,
            "weights of another start, as it seems, or lost by a learning rate much too high",
            self._reasons(others, like),
        )

    def _reasons(self, others, relative):
        if relative is None:
            return {i: "its weights are not like those of the others: another start?" for i in others}
        return {i: f"it is {relative[i]:.2g} times the base's norm away from the base: another start?" for i in others}

    def _no_family(self, left):
        everyone = [self.names[i] for i in left]
        what = "no two members have similar weights: each seems to have a start of its own"
        self.book.add("warning" if self.measured else "problem", "start", what, everyone, ALIGN)
        self.book.apart = not self.measured
        return left

    def not_far(self, left):
        """Leave out members far beyond the others."""
        if len(left) < 3:
            return left
        moved = self._moved(left)
        middle = np.median(moved)
        far = {i: value / middle for i, value in zip(left, moved, strict=True) if value > FAR_NORM * middle > 0}
        reasons = {i: f"it lies {times:.2g} times as far as the median member" for i, times in far.items()}
        return self._decide("far", far, left, f"more than {FAR_NORM:g} times as far as the median member", reasons)

    def _moved(self, left):
        return spread(self.total.select(left), self.has_base)

    def _decide(self, kind, found, left, what, reasons):
        """Leave those found out; if barriers will be measured only warn, and let these decide."""
        if not found:
            return left
        advice = ALIGN if kind == "start" else "its learning rate was probably too high; measure it with evaluate="
        reasons = {self.names[i]: reason for i, reason in reasons.items()}
        if self.measured:
            self.book.add("warning", kind, what, reasons, "the measured barriers decide")
        else:
            self.book.out(kind, what, reasons, advice)
        return [i for i in left if i not in found]

    def remark_outliers(self, left):
        """Warn of members that pull against the others, or are unlike them in length or direction."""
        if len(left) < 3:
            return
        cosine = self.cosines[np.ix_(left, left)]
        least = max(OUTLIER_COSINE, self.chance)
        if self.has_base:
            advice = "it undoes what they learned: check its data and labels"
            self._remark("against", left, _against(cosine, least), "task vector against the mean of the others", advice)
        if len(left) < 4:
            return
        moved = np.log(np.maximum(self._moved(left), np.finfo(np.float64).tiny))
        unlike = np.abs(moved - np.median(moved)) > np.log(OUTLIER_NORM)
        unlike &= np.abs(robust_z(moved)) > OUTLIER_Z
        what = "moved much farther, or much less, than the others"
        self._remark("outlier", left, unlike, what, "check its learning rate and number of steps")
        mean = off_diagonal(cosine).mean(axis=1)
        lonely = (robust_z(mean) < -OUTLIER_Z) & (mean < np.median(mean) - least)
        self._remark("outlier", left, lonely, "points elsewhere than the others", "measure it with evaluate=")

    def _remark(self, kind, left, mask, what, advice):
        if mask.any():
            found = [self.names[i] for i, hit in zip(left, mask, strict=True) if hit]
            self.book.add("warning", kind, what, found, advice)

    def modules(self, left, parts):
        """Return for each module {"name", "drift", "share", "cosine"}, over the members that are left."""
        grams = {name: (m + r).select(left) for name, (m, r) in parts.items()}
        moved = {name: spread(gram, self.has_base) for name, gram in grams.items()}
        total = sum(float(np.sum(m**2)) for m in moved.values())
        return [
            {
                "name": name,
                "drift": float(np.median(_over(moved[name], gram.reference))) if left else np.nan,
                "share": float(np.sum(moved[name] ** 2)) / total if total else 0.0,
                "cosine": _median_cosine(parts[name][0].select(left)),
            }
            for name, gram in grams.items()
        ]

    def remark_modules(self, left, modules, kernels):
        """Name modules whose matrices differ as if drawn anew for each member, in members that are else alike."""
        alike = kernels is None or _median_cosine(kernels.select(left)) >= SAME_START_COSINE
        # a module that is zero in the base has no direction there: it may well have been trained into several
        anew = [m["name"] for m in modules if m["cosine"] < SAME_START_COSINE and not np.isnan(m["drift"])]
        if alike and anew and len(left) > 1:
            what = f"weights as if drawn anew for each member, in: {listed(anew)}"
            advice = "averages of such weights are noise: start all members from one head, or average only the rest"
            self.book.add("warning", "drawn anew", what, (), advice)
        if kernels is not None and len(modules) > 1 and any(module["share"] for module in modules):
            most = max(modules, key=lambda module: module["share"])
            own = max(modules, key=lambda module: np.nan_to_num(module["drift"]))
            what = f"{100 * most['share']:.0f} % of the movement is in {most['name']}"
            what += f"; relative to its own norm {own['name']} moved most, by {own['drift']:.2g}"
            self.book.add("note", "drift", what)


def _against(cosine, least):
    """Mark who points against the others, the worst first: then it no longer makes others look so."""
    found = np.zeros(len(cosine), bool)
    while (~found).sum() > 2:
        rest = np.flatnonzero(~found)
        agreement = agreement_with_others(cosine[np.ix_(rest, rest)])
        if agreement.min() >= -least:
            break
        found[rest[np.argmin(agreement)]] = True
    return found


def _median_cosine(gram):
    pairs = off_diagonal(cosines(gram.weights))
    return float(np.median(pairs)) if pairs.size and gram.matrix.any() else float("nan")


def _over(values, reference):
    return values / reference if reference else np.full(len(values), np.nan)


def _equal(a, b):
    first, second = tree.flatten(a), tree.flatten(b)
    return all(np.array_equal(np.asarray(leaf), np.asarray(second[name])) for name, leaf in first.items())
