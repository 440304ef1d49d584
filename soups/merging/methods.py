"""Find merging methods by name, as published or as mergekit does them, and build their recipes."""

from __future__ import annotations

import contextlib
import dataclasses
import traceback

from soups.engine import Recipe
from soups.merging.mergekit import MERGEKIT
from soups.names import did_you_mean, shown
from soups.recipes.declare import ELSEWHERE, METHODS, Method
from soups.recipes.declare import REQUIRED as REQUIRED

VOCABULARIES = ("published", "mergekit")
_ALIGN = "comes before a merge: --align SPEC with any method"
_OTHERS = {  # what people may call what has another name here, or is not a method
    **dict.fromkeys(("rebasin", "git_rebasin"), _ALIGN),
    **dict.fromkeys(("average", "mean", "model_soup", "soup", "uniform_soup"), "is called uniform here"),
}


def methods_of(vocabulary: str) -> dict[str, Method]:
    """Return the methods that recipe files of a vocabulary, "published" or "mergekit", may name."""
    if vocabulary == "mergekit":
        return MERGEKIT
    return {name: method for name, method in METHODS.items() if not method.only_in_python}


def find_method(name: str, vocabulary: str, kind: str = "method") -> Method:
    """Return a method of a vocabulary.

    Raises:
        ValueError: there is no method of this name; the message has the closest one, says that the other vocabulary has
            it, or says what a method needs that cannot be used on checkpoints alone.
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


def build(method: Method, own: list[dict], shared: dict, has_base: bool, tensor: str) -> Recipe:
    """Return the recipe of a method with its settings at a tensor, as `Method.build`; errors name both.

    What a user's own function raises, here or later in its recipe, is a ValueError with the place in its file.

    Raises:
        ValueError: settings that the method does not allow.
    """
    with _told(method, [tensor]):
        recipe = method.build(own, shared, has_base)
    return recipe if is_ours(method) else _guarded(recipe, method)


def is_ours(method: Method) -> bool:
    """Say whether a method is this library's own, not of a user's file."""
    return method.function.__module__.startswith("soups.")


def _guarded(recipe, method):
    """Return the recipe of a user's method, of which every error says where it came from."""
    at, reading = [""], []  # the tensor that is measured, and what was raised when its members were read

    def followed(parts):
        try:
            for part in parts:
                at[0] = part.name
                yield part
        except Exception as error:
            reading.append(error)
            raise

    def measure(parts):
        with _told(method, at, reading):
            return recipe.measure(lambda: followed(parts()))

    def merge(part, measured):
        with _told(method, [part.name]):
            return recipe.merge(part, measured)

    return dataclasses.replace(recipe, merge=merge, measure=measure)


@contextlib.contextmanager
def _told(method, tensor, others=()):
    """Name the method and the tensor in what a method raises; faults of this library's own are not hidden."""
    try:
        yield
    except Exception as error:
        ours = is_ours(method)
        if error in others or isinstance(error, MemoryError) or (ours and not isinstance(error, ValueError)):
            raise
        what = str(error) if ours else f"{type(error).__name__}: {error}{_place(error, method)}"
        raise ValueError(f"{method.name} of {shown(tensor[0])}: {what}") from error


def _place(error, method):
    file = method.function.__code__.co_filename
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    return f" ({file}, line {lines[-1]})" if lines else ""
