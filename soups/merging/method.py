"""State what a merging method is to a recipe file: its settings, and how they become a recipe."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from soups import tree
from soups.engine import Recipe

REQUIRED = object()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
    """State how a recipe file's settings become a recipe.

    Attributes:
        build: from the settings of each member (one dict each) and those of the merge to the recipe.
        of_member: settings that each member has, with their defaults; REQUIRED has none.
        of_merge: settings of the whole merge, with their defaults.
        files: those of the settings that are paths of checkpoints with the same tensors, such as Fisher diagonals; a
            part has their arrays behind the members', those of the merge first.
        grams: the files have Gram matrices [in, in] instead, under the names of the kernels that they belong to.
        idle: settings that are taken and change nothing, with the reason.
        base: "required", "optional", "none", or "first": then the base is the first of the members.
        members: smallest and largest number of members, the base not counted.
        summary: one line.
        paper: authors, year and arXiv id.
    """

    build: Callable[[list[dict[str, Any]], dict[str, Any], bool], Recipe]
    of_member: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    of_merge: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    files: tuple[str, ...] = ()
    grams: bool = False
    idle: Mapping[str, str] = dataclasses.field(default_factory=dict)
    base: str = "none"
    members: tuple[int, int] = (1, 10**6)
    summary: str = ""
    paper: str = ""

    @property
    def settings(self) -> dict[str, Any]:
        """Give all settings with their defaults."""
        return {**self.of_merge, **self.of_member}


def weights_of(members: list[dict[str, Any]]) -> list[float]:
    """List the weights of the members."""
    return [member["weight"] for member in members]


def linear_recipe(weights, normalize: bool) -> Recipe:
    """Give the recipe Σ_i w_i θ_i, divided by Σ_i w_i with `normalize`."""
    if normalize and abs(sum(weights)) < 1e-8:
        raise ValueError(f"weights that sum to zero cannot be normalized: {list(weights)}")
    shares = [weight / sum(weights) if normalize else weight for weight in weights]
    return Recipe(lambda part, _: tree.mix(part.leaves, shares))


def passthrough_recipe(scale=1.0) -> Recipe:
    """Give the recipe that copies its only member, times a scale."""
    return Recipe(lambda part, _: part.leaves[0] * tree.scalar(scale, part.leaves[0]))
