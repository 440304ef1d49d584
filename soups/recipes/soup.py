"""Record what a soup was made from."""

import dataclasses
from typing import Any

from soups import tree


@dataclasses.dataclass(frozen=True, kw_only=True)
class Soup:
    """Hold a soup's weights and the record that is enough to make it again.

    Attributes:
        params: the weights, in the structure and dtypes of the members.
        recipe: the name of the recipe and its settings.
        ingredients: weight of each member that went in, by name.
        history: every decision or loss that led to it, in order.
        score: held-out score of the soup, where the recipe has one.
        leaf_weights: weight of each ingredient for each leaf, where a recipe has one per leaf and member.
        temperature: what the recipe learned to multiply the logits with.
        digests: content digest of each ingredient, where the members come from a pool.
    """

    params: tree.Tree
    recipe: dict[str, Any]
    ingredients: dict[str, float]
    history: list[Any]
    score: float | None = None
    leaf_weights: dict[str, dict[str, float]] | None = None
    temperature: float = 1.0
    digests: dict[str, str] = dataclasses.field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        """Give everything but the weights, ready for JSON."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        del fields["params"]
        return fields


def digests(members, names) -> dict[str, str]:
    """Give the content digests of members that know them (those of a pool)."""
    return {name: members.digest(name) for name in names} if hasattr(members, "digest") else {}
