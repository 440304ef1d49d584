"""Make the candidates that a greedy selection decides on: the soup of today with one more member."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax

from soups import tree
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
    """Make candidates from members and score them one at a time."""

    def __init__(self, members: Mapping[str, tree.Tree], score: Callable[[tree.Tree], float]):
        self._members = members
        self._score = score
        self._first = None

    def scored(self, names: Sequence[str], soup: Growing) -> Candidate:
        """Give the candidate of `names[0]` with its score; the next question is about `names[1]`, or another soup."""
        candidate = self.unscored(names[0], soup)
        return candidate if candidate.reason else candidate._replace(score=self._score(candidate.params), params=None)

    def unscored(self, name: str, soup: Growing) -> Candidate:
        """Give the candidate of a member.

        Raises:
            ValueError: the member has another structure than the first that was read.
        """
        member = self._read(name)
        if nonfinite := tree.nonfinite_names(member):
            return Candidate(None, None, f"NaN or infinity in {', '.join(nonfinite)}")
        if not soup.count:
            return Candidate(Growing(tree.widen(member), 1), member)
        mean = running_mean(soup.mean, member, soup.count)
        return Candidate(Growing(mean, soup.count + 1), _in_dtypes_of(member, mean))

    def finished(self, soup: Growing) -> tree.Tree:
        """Give the weights of a soup in the dtypes of the members."""
        return tree.cast_like(soup.mean, self._first)

    def _read(self, name):
        member = self._members[name]
        if self._first is None:
            self._first = member
        tree.check_same_structure([self._first, member], ["of the first ingredient", name])
        return member


def _in_dtypes_of(member, mean):
    # no copy where nothing is cast: it would cost as much as reading the member
    return jax.tree.map(lambda x, like: x if x.dtype == like.dtype else x.astype(like.dtype), mean, member)
