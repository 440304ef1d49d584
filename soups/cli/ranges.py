"""Understand what a search may change: --range NAME=LOW:HIGH, for all members, and --range-each, for each of them."""

from collections.abc import Mapping, Sequence
from typing import Any

from soups import merging
from soups.cli.merge_options import COMMAND_LINE, naming_options
from soups.cli.show import tell
from soups.merging.job import is_member, kind_of
from soups.merging.methods import VOCABULARIES
from soups.merging.selecting import with_settings
from soups.merging.values import check
from soups.merging.yaml_text import dump_yaml
from soups.names import check_name
from soups.recipes._search import Axis, ranged

RANGES = (
    (
        "--range",
        {"nargs": "+", "action": "extend", "default": [], "metavar": "NAME=LOW:HIGH"}
        | {"help": "values of a setting; also NAME=LOW:HIGH:log, NAME=A,B,C, for a grid NAME=LOW:HIGH:NUMBER"},
    ),
    (
        "--range-each",
        {"nargs": "+", "action": "extend", "default": [], "metavar": "NAME=LOW:HIGH"}
        | {"help": "the same for a setting of members, such as weight: each member gets a value of its own"},
    ),
)
_EACH = "--range-each"


def parse_ranges(options, recipe: Any, where: str) -> tuple[dict[str, Any], list[Axis]]:
    """Return a recipe whose models are mappings, and an axis for each number or choice that is searched.

    `recipe`: what stands in a recipe file, or was made from options; `where`: which of them.

    Raises:
        ValueError: no range; one that is none, or of a setting that the method does not have, that is a file, has two
            ranges or a value beside one; what `merging.parse_recipe` says of the recipe.
    """
    texts = [("--range", text) for text in options.range] + [(_EACH, text) for text in options.range_each]
    if not texts:
        raise ValueError("nothing to search: give --range NAME=LOW:HIGH, such as --range density=0.1:0.9")
    definition = _definition(recipe, where)
    axes = [_axis(option, text, definition, options.by) for option, text in texts]
    names = [axis.name for axis in axes]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"{twice[0]} has two ranges: give it one")
    recipe = _with_mappings(recipe)
    if where == COMMAND_LINE:
        _check_no_value(recipe, names)
    tried = dump_yaml(with_settings(recipe, {axis.name: axis.at(0) for axis in axes}))
    with naming_options():
        job = merging.parse_recipe(tried, where=where)
    for axis in axes:
        _check_effect(axis, job, where)
    count = sum(is_member(job, source) for source in job.slices[0].sources)
    for (option, text), axis in zip(texts, axes, strict=True):
        if count > 1 and not axis.of_member and axis.name in definition.of_member:
            tell(f"{option} {text} tries one value for all members; {_EACH} {text} tries one for each")
    return recipe, [axis for one in axes for axis in [one] * (count if one.of_member else 1)]


def _definition(recipe, where):
    method, vocabulary = None, None
    if isinstance(recipe, Mapping):
        method, vocabulary = recipe.get("merge_method"), recipe.get("vocabulary") or "mergekit"
    if not isinstance(method, str) or vocabulary not in VOCABULARIES:
        merging.parse_recipe(dump_yaml(recipe), where=where)  # says what is wrong with it
    return merging.find_method(method, vocabulary, "merge_method")


def _axis(option, text, definition, by) -> Axis:
    name, equals, values = text.partition("=")
    name = check_name(name.strip().replace("-", "_"), definition.settings, f"setting of {definition.name}")
    if not equals or not values.strip():
        raise ValueError(f"{option} {text}: a range is NAME=LOW:HIGH, such as {name}=0.1:0.9")
    if name in definition.files:
        raise ValueError(f"{option} {text}: {name} is a file, which has no range")
    if option == _EACH and name not in definition.of_member:
        raise ValueError(f"{option} {text}: {name} has one value for the whole merge: give --range {text}")
    default, of_member = definition.settings[name], option == _EACH
    if "," in values or ":" not in values:
        return Axis(name, values=_choices(f"{option} {text}", values, kind_of(default)), of_member=of_member)
    if kind_of(default) in (bool, str):
        choices = "true,false" if kind_of(default) is bool else "A,B"
        raise ValueError(f"{option} {text}: {name} is not a number: list its values, {name}={choices}")
    numbers = [merging.load_yaml(part) for part in values.split(":")]
    try:
        axis = ranged(name, numbers, default if type(default) is int else 0.0, of_member=of_member)
    except ValueError as error:
        raise ValueError(f"{option} {text}: {error}") from error
    if by == "grid" and not axis.number:
        raise ValueError(f"{option} {text}: a grid needs the number of its values, {text}:5, or a list of them")
    return axis


def _choices(text, values, kind):
    found = [merging.load_yaml(value) for value in values.split(",")]
    for value in found:
        try:
            check(value, text, kind)
        except ValueError as error:
            raise ValueError(f"{error}; a range is LOW:HIGH, several values are A,B,C") from error
    if len(found) < 2 or len(set(found)) < len(found):
        raise ValueError(f"{text}: give several values, each once, or two ends, LOW:HIGH")
    return tuple(found)


def _with_mappings(recipe):
    """Return a recipe in which each of the models is a mapping."""
    models = recipe.get("models")
    if not isinstance(models, Sequence) or isinstance(models, str):
        return dict(recipe)
    return {**recipe, "models": [{"model": model} if isinstance(model, str) else model for model in models]}


def _check_no_value(recipe, names):
    for scope in (recipe, *recipe["models"]):
        if given := [name for name in names if name in scope["parameters"]]:
            raise ValueError(f"{given[0]} has a value and a range: give one of them")


def _check_effect(axis, job, where):
    """Look whether a setting is nowhere given for a part of the merge, where a value of the whole would not hold."""
    if axis.of_member:
        if job.slices[0].sources[0].layers is not None:
            raise ValueError(f"{where}: {_EACH} {axis.name} needs models, not slices")
        return
    if job.parameters.get(axis.name) != axis.at(0) or any(axis.name in scope for scope in job.scopes[1:]):
        raise ValueError(
            f"{where}: {axis.name} is also set for parts of the merge, where a range has no effect: remove those values"
        )
