"""Find merging methods by name: in this library's words, as published, and in mergekit's, as mergekit does them."""

from __future__ import annotations

from soups.merging.mergekit import MERGEKIT
from soups.names import did_you_mean
from soups.recipes.declare import ELSEWHERE, METHODS, Method
from soups.recipes.declare import REQUIRED as REQUIRED

VOCABULARIES = ("published", "mergekit")
_ALIGN = "comes before a merge: --align SPEC with any method"
_OTHERS = {"rebasin": _ALIGN, "git_rebasin": _ALIGN}  # what people may call what is no method here


def methods_of(vocabulary: str) -> dict[str, Method]:
    """Return the methods that recipe files of a vocabulary, "published" or "mergekit", may name."""
    if vocabulary == "mergekit":
        return MERGEKIT
    return {name: method for name, method in METHODS.items() if not method.only_in_python}


def find_method(name: str, vocabulary: str, kind: str = "method") -> Method:
    """Return a method of a vocabulary.

    Raises:
        ValueError: it has none of this name; the message has the closest one, says that the other vocabulary has it, or
            what a method needs that cannot be used on checkpoints alone.
    """
    methods = methods_of(vocabulary)
    if name in methods:
        return methods[name]
    elsewhere = ELSEWHERE | _OTHERS
    if vocabulary == "published" and name in MERGEKIT:
        raise ValueError(f"{kind} {name!r} is one of mergekit's: put it into a recipe file, as mergekit has them")
    if vocabulary == "mergekit" and name in methods_of("published"):
        raise ValueError(f"{kind} {name!r} is not one of mergekit's: add vocabulary: published to the recipe")
    if name in elsewhere:
        raise ValueError(f"{kind} {name!r} {elsewhere[name]}")
    raise ValueError(f"unknown {kind} {name!r}{did_you_mean(str(name), methods)}; soups merge --methods lists all")
