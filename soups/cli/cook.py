"""Cook soups from the members of a pool, measure them on your data, and report.

soups cook POOL --apply my_model:apply_fn --held-out my_data:held_out \\
             --test my_data:test --shift dark=my_data:dark --workdir runs/mine

MODULE:NAME is something of yours; modules in this folder are found first.
--apply names apply_fn(params, inputs) -> outputs, or a Linen module; it is not
needed where the pool says which architecture its members have. A split is a
pair (inputs, labels), {"image": inputs, "label": labels} or a Dataset of
soups.data, or a function that returns one of these: the held-out split selects,
test and shifts report.

A RECIPE is uniform, greedy, learned, learned_per_leaf, wise_ft (from the base
to the best member), ensemble, a merging method (soups merge --methods) with its
settings, as in ties:density=0.2:scale=1, or a MODULE:NAME that makes weights
from {name: weights}. Learned soups have settings too: learned:epochs=20,
learning_rate and batch_size. By default: uniform, greedy, learned and ensemble,
and with a base wise_ft. Commas may stand between several, as in uniform,greedy.

DIR gets results.json, report.html, tables, figures, and the soups as a pool.
The same command goes on where it was stopped, and repeats no finished work.
"""

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from soups import tree
from soups.arguments import no_member
from soups.cli import about
from soups.cli.options import Parser, place_argument
from soups.cli.pool import read_checkpoint
from soups.cli.show import tell
from soups.files import same_place
from soups.merging import load_yaml
from soups.merging.sources import split_pool
from soups.plugins import importable, made, named
from soups.pool import Pool
from soups.recipes.declare import METHODS
from soups.studies.cook import cook

_OWN, _PATH = {"metavar": "MODULE:NAME"}, {"type": place_argument}
_FUNCTIONS = {
    "loss": "loss(outputs, targets) of learned soups, if outputs are not logits of classes",
    "preprocess": "preprocess(inputs), compiled with the network; default: uint8 to [0, 1]",
    "reestimate": "reestimate(params), which gives averaged weights BatchNorm statistics",
}


def main(arguments: list[str], run) -> int:
    """Cook what is asked for and return the exit code."""
    options = parser(run.prog).parse(arguments)
    run.less_memory = "a smaller --batch-size needs less"
    run.go_on = f"the same command goes on with {options.workdir}"
    with importable("."):
        members, base = _members(Pool(options.pool, must_exist=True), options.base)
        given = {name: getattr(options, name) for name in _FUNCTIONS}
        cook(
            members,
            _apply_fn(members, options.apply),
            workdir=options.workdir,
            held_out=made(options.held_out, "--held-out"),
            test=made(options.test, "--test"),
            shifts=_shifts(options.shift),
            base=base,
            recipes=options.recipes and [_recipe(one) for word in options.recipes for one in _COMMA.split(word)],
            metrics=options.metrics and [one for word in options.metrics for one in word.split(",")],
            batch_size=options.batch_size,
            seed=options.seed,
            **{name: named(own, {}, f"--{name}") for name, own in given.items() if own},
        )
    run.made(about.report_of(options.workdir))
    return 0


def _members(pool: Pool, base: str | None) -> tuple[Pool, tree.Tree | None]:
    """Return the members, without the one that is the base, which is said, and the weights of the base."""
    if base is None:
        return pool, None
    base = _name_in(pool, base)
    if base in pool:
        tell(no_member(base))
        return pool.select([name for name in pool if name != base]), pool[base]
    try:
        return pool, read_checkpoint(base)
    except FileNotFoundError as error:
        raise ValueError(f"--base {base} is not a member of {pool.path}, and {error}") from error


def _name_in(pool, base):
    """Return the name of a member that is given as POOL:NAME, as it would be elsewhere; anything else as it is."""
    path, name = split_pool(base)
    return name if name in pool and same_place(path, pool.path) else base


def _apply_fn(members: Pool, reference: str | None) -> Callable:
    if reference is None:
        return _of_architecture(members)
    found, linen = named(reference, {}, "--apply"), sys.modules.get("flax.linen")
    if isinstance(found, type):
        raise ValueError(
            f"--apply {reference} is a class: name a module that is made of it, or apply_fn(params, inputs)"
        )
    if linen is None or not isinstance(found, linen.Module):
        return found
    from soups.models import apply_fn

    return apply_fn(found)


def _of_architecture(members: Pool) -> Callable:
    from soups.studies.named import architecture_of_member, num_classes_of

    where = f"the pool {members.path}"
    if not members:
        raise ValueError(f"{where} has no members")
    found = {name: architecture_of_member(members, name, "give --apply") for name in members}
    (first, arch), *others = found.items()
    for name, other in others:
        if other.name != arch.name:
            differ = f"{first!r} is {arch.name}, {name!r} is {other.name}"
            raise ValueError(f"members differ in architecture, {differ}: give --apply")
    classes = num_classes_of(members.structure, where)
    tree.check_same_structure([arch.abstract(classes), members.structure], [arch.name, where], dtypes=False)
    return arch.apply_fn(classes)


def _shifts(words: Sequence[str]) -> dict[str, Any]:
    shifts = {}
    for word in words:
        name, equals, reference = word.partition("=")
        if not (name and equals):
            raise ValueError(f"--shift {word}: a name is needed, as in --shift night=my_data:night")
        if name in shifts:
            raise ValueError(f"--shift {name} is given twice: give another name")
        shifts[name] = made(reference, f"--shift {name}")
    return shifts


_COMMA = re.compile(r",(?![^\[{]*[\]}])")  # between recipes, not in a list of YAML


def _recipe(word: str) -> str | tuple[str, Mapping[str, Any]] | Callable:
    """Return a recipe as `soups.cook` takes it: a name, a name with its settings, or a function."""
    name, colon, rest = word.partition(":")
    if not colon:
        return name
    if "=" not in rest and name not in (*METHODS, "learned", "learned_per_leaf"):
        return named(word, {}, "--recipes")
    settings = {}
    for setting in rest.split(":"):
        key, _, value = setting.partition("=")
        if not key:
            raise ValueError(f"--recipes {word}: {setting!r} is not a setting, as in {name}:density=0.2")
        if not value:
            raise ValueError(f"--recipes {word}: setting {key!r} needs a value, as in {name}:{key}=0.2")
        settings[key] = load_yaml(value, f"--recipes {word}: {key}")
    return name, settings


_USAGE = """%(prog)s POOL --held-out MODULE:NAME --test MODULE:NAME --workdir DIR
                  [OPTION ...]"""


def parser(prog: str) -> Parser:
    """Return the parser of the options."""
    parser = Parser(prog=prog, usage=_USAGE, description=__doc__)
    for name, settings in {
        "pool": {"metavar": "POOL", **_PATH, "help": "the pool of the members"},
        "--apply": _OWN | {"help": "the network"},
        "--held-out": _OWN | {"required": True, "help": "the split that selects"},
        "--test": _OWN | {"required": True, "help": "the split that reports"},
        "--shift": {
            **{"action": "append", "default": [], "metavar": "NAME=MODULE:NAME"},
            "help": "a test set from another distribution; may be repeated",
        },
        "--workdir": {"metavar": "DIR", "required": True, **_PATH, "help": "the folder of the run"},
        "--base": {"metavar": "NAME", **_PATH, "help": "the member or checkpoint that the others were fine-tuned from"},
        "--recipes": {"nargs": "+", "metavar": "RECIPE", "help": "what to cook; default: see above"},
        "--metrics": {
            "nargs": "+",
            "metavar": "NAME",
            "help": "such as mse r2; the first selects; default: accuracy ...",
        },
        **{f"--{name}": _OWN | {"help": text} for name, text in _FUNCTIONS.items()},
        "--batch-size": {"type": int, "default": 500, "metavar": "N", "help": "examples at once; default: 500"},
        "--seed": {
            "type": int,
            "default": 0,
            "metavar": "N",
            "help": "seed of the batches of learned soups; default: 0",
        },
    }.items():
        parser.add_argument(name, **settings)
    return parser
