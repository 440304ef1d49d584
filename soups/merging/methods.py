"""Find merging methods by name: in this library's words, as published, and in mergekit's, as mergekit does them."""

from soups.merging.mergekit import MERGEKIT as MERGEKIT
from soups.merging.method import REQUIRED as REQUIRED
from soups.merging.method import Method as Method
from soups.merging.published import ELSEWHERE, PUBLISHED
from soups.names import did_you_mean

VOCABULARIES = {"published": PUBLISHED, "mergekit": MERGEKIT}


def find_method(name: str, vocabulary: str, kind: str = "method") -> Method:
    """Give a method of a vocabulary.

    Raises:
        ValueError: it has none of this name; the message has the closest one, says that the other vocabulary has it, or
            what a method needs that cannot be used on checkpoints alone.
    """
    methods = VOCABULARIES[vocabulary]
    if name not in methods:
        if vocabulary == "published" and name in MERGEKIT:
            raise ValueError(f"{kind} {name!r} is one of mergekit's: put it into a recipe file, as mergekit has them")
        if vocabulary == "mergekit" and name in PUBLISHED:
            raise ValueError(f"{kind} {name!r} is not one of mergekit's: add vocabulary: published to the recipe")
        if name in ELSEWHERE:
            raise ValueError(f"{kind} {name!r} {ELSEWHERE[name]}")
        hint = did_you_mean(name, methods)
        raise ValueError(f"unknown {kind} {name!r}{hint}; soups merge --methods lists all")
    return methods[name]
