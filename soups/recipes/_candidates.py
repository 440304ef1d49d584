"""Make the candidates that a greedy selection decides on: the soup of today with one more member."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from soups import tree
from soups.lazy import is_jax, jax, jit, jnp
from soups.recipes.averages import running_mean


class Growing(NamedTuple):
    """Hold a soup that grows: the mean of `count` members, in float32 or wider. Each change makes a new object."""

    mean: tree.Tree | None = None
    count: int = 0


class Candidate(NamedTuple):
    """Hold a soup with one more member, its weights as they would be returned, and its score, NaN until it is known.

    A member that cannot be added leaves nothing but the `reason`.
    """

    soup: Growing | None
    params: tree.Tree | None
    reason: str | None = None
    score: float = math.nan


class Candidates:
    """Make candidates from members, on a device or where the members are, and score them one at a time."""

    def __init__(
        self, members: Mapping[str, tree.Tree], score: Callable[[tree.Tree], float], device: jax.Device | None = None
    ):
        self._members = members
        self._score = score
        self._device = device
        self._first = None

    def scored(self, names: Sequence[str], soup: Growing) -> Candidate:
        """Return the candidate of `names[0]` with its score; the next question is about `names[1]`, or another soup."""
        candidate = self.unscored(names[0], soup)
        return candidate if candidate.reason else candidate._replace(score=self._score(candidate.params), params=None)

    def unscored(self, name: str, soup: Growing) -> Candidate:
        """Return the candidate of a member."""
        member = self._read(name)
        if self._device is not None:
            member = jax.device_put(member, self._device)
        mean, nonfinite = _mean_with(soup, member) if soup.count else (tree.widen(member), tree.nonfinite_names(member))
        if nonfinite:
            return Candidate(None, None, f"NaN or infinity in {', '.join(nonfinite)}")
        if not soup.count:
            return Candidate(Growing(mean, 1), member)
        # no copy where nothing is cast: it would cost as much as reading the member
        params = jax.tree.map(lambda x, like: x if x.dtype == like.dtype else x.astype(like.dtype), mean, member)
        return Candidate(Growing(mean, soup.count + 1), params)

    def finished(self, soup: Growing) -> tree.Tree:
        """Return the weights of a soup in the dtypes of the members."""
        return tree.cast_like(soup.mean, self._first)

    def _read(self, name):
        member = self._members[name]
        if self._first is None:
            self._first = member
        tree.check_same_structure([self._first, member], ["the first ingredient", f"member {name}"])
        return member


def _mean_with(soup, member):
    """Return the mean with one more member, and the names of the member's leaves that hold NaN or infinity."""
    leaves = jax.tree.leaves((soup.mean, member))
    if not all(is_jax(leaf) and tree.is_float(leaf) for leaf in leaves):
        try:
            return running_mean(soup.mean, member, soup.count), []
        except tree.NonFiniteError:
            if bad := tree.nonfinite_names(member):
                return None, bad
            raise
    mean, finite = _compiled_mean_with(soup.mean, member, soup.count)
    return mean, [name for name, flag in tree.flatten(jax.device_get(finite)).items() if not flag]


@jit()
def _compiled_mean_with(mean, member, count):
    """Read and write each leaf once, where operation by operation would pass over the memory six times."""
    finite = jax.tree.map(lambda leaf: jnp.isfinite(leaf).all(), member)
    return running_mean(mean, member, count), finite
