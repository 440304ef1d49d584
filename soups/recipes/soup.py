"""Record what a soup was made from."""

import dataclasses
import functools
from typing import Any, ClassVar

from soups import tree
from soups.lazy import jax


@dataclasses.dataclass(frozen=True, kw_only=True)
class Soup:
    """Hold a soup's weights and the record that is enough to make it again; a pytree, whose leaves are the weights."""

    params: tree.Tree  #: the weights, in the structure and dtypes of the members
    recipe: dict[str, Any]  #: the name of the recipe and its settings
    ingredients: dict[str, float]  #: weight of each member that went in, by name
    history: list[Any]  #: every decision or loss that led to it, in order
    score: float | None = None  #: held-out score of the soup, where the recipe has one
    leaf_weights: dict[str, dict[str, float]] | None = None  #: by leaf and ingredient, where a recipe has such
    temperature: float = 1.0  #: what the recipe learned to multiply the logits with
    #: content digest of each ingredient, where the members come from a pool
    digests: dict[str, str] = dataclasses.field(default_factory=dict)
    is_soup: ClassVar[bool] = True  # where trees are taken, a soup stands for its params

    def __post_init__(self):
        _register()

    def record(self) -> dict[str, Any]:
        """Return everything but the weights, ready for JSON."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        del fields["params"]
        return fields


class _Record:
    """Make what a soup has beside its weights a part of the structure of a pytree."""

    def __init__(self, soup):
        self.fields = soup.record()

    def __eq__(self, other):
        return isinstance(other, _Record) and self.fields == other.fields

    def __hash__(self):
        return hash(tuple(self.fields["ingredients"]))


@functools.cache
def _register():
    key = jax.tree_util.GetAttrKey("params")
    jax.tree_util.register_pytree_with_keys(
        Soup,
        lambda soup: ([(key, soup.params)], _Record(soup)),
        lambda record, children: Soup(params=children[0], **record.fields),
    )


def digests(members, names) -> dict[str, str]:
    """Return the content digests of members where they are known, as those of a pool are."""
    return {name: members.digest(name) for name in names} if hasattr(members, "digest") else {}
