r"""Search the settings of a merge with your own evaluation.

soups search --method ties --base B --members A C --range density=0.1:0.9 \
      --eval 'python my_eval.py {model}' --budget 50 --out OUT
soups search RECIPE.yml OUT --range-each weight=0:1 --eval my_eval.py:score

Each candidate is written in the form of OUT, and its path takes the place of
{model}; the last number that the command prints is the score. A function,
module:function or file.py:function, takes the path and returns the score. OUT
is the best merge, and its record has all scores.

The same command goes on where it was stopped and evaluates nothing twice; a
larger --budget extends the search. Scores, tables and a plot are in OUT.search,
or --work DIR.
"""

from soups import merging
from soups.cli import merge_options, selection
from soups.cli.merge_options import choose_members, recipe_text
from soups.cli.ranges import RANGES, parse_ranges
from soups.merging.selecting import search
from soups.names import count_of
from soups.recipes._search import STRATEGIES, loss

_USAGE = """%(prog)s RECIPE.yml OUT --range NAME=LOW:HIGH --eval COMMAND
                    [OPTION ...]
       %(prog)s --method METHOD [--base MODEL] --members MODEL ...
                    --out OUT --range NAME=LOW:HIGH --eval COMMAND [OPTION ...]"""
_SEARCH = (
    *RANGES,
    ("--by", {"choices": STRATEGIES, "default": STRATEGIES[0], "help": "how: CMA-ES (default), random, or a grid"}),
    ("--budget", {"type": int, "default": 50, "metavar": "N", "help": "how many candidates (default: 50)"}),
    ("--population", {"type": int, "metavar": "N", "help": "candidates in a generation of CMA-ES"}),
)


def main(arguments: list[str], run) -> int:
    """Search, write the best merge, and return the exit code."""
    options, settings = parse(arguments, run.prog)
    evaluate, mode = selection.evaluation_of(options), selection.mode_of(options)
    choose_members(options)
    text, where = recipe_text(options, settings)
    recipe, axes = parse_ranges(options, merging.load_yaml(text, where), where)
    check, kind = selection.check_of(options), selection.kind_of(options)
    with selection.trials(options, run, evaluate, options.out, "search", kind=kind, seed=options.seed) as trials:
        found = search(
            trials,
            recipe,
            axes,
            by=options.by,
            budget=options.budget,
            mode=mode,
            population=options.population,
            check=check,
        )
        _present(found, axes, mode, trials.work)
        selection.write(options, run, trials, found)
    return 0


def parse(words: list[str], prog: str) -> tuple:
    """Return the options, and the settings of the method that are not searched."""
    return merge_options.parse(words, prog, __doc__, _groups, _USAGE)


def _groups(only):
    known = merge_options.arguments_of(only)
    return {
        "what is merged": known["what is merged"],
        "what is searched": _SEARCH,
        "how candidates are evaluated": selection.EVALUATION,
        "what is written": [*known["what is written"], *selection.WORK],
        "how": [selection.THREADS_OPTION],
    }


def _present(found, axes, mode, work):
    """Print the best candidates, and write all of them and a plot."""
    names = _columns(found.recipe, axes)
    candidates = [
        (number, *_values(step["settings"], axes), step["score"], step["reason"])
        for number, step in enumerate(found.steps)
    ]
    best_first = sorted(candidates, key=lambda row: loss(row[-2], mode))
    title = f"{count_of(len(candidates), 'candidate')}, the best first"
    selection.present(found, work, title, ("candidate", *names, "score", ""), best_first)
    logarithmic = {name for name, axis in zip(names, axes, strict=True) if axis.logarithmic}
    columns = dict(zip(names, zip(*(row[1:-2] for row in candidates), strict=True), strict=True))
    selection.plot(work, columns, [row[-2] for row in candidates], mode, logarithmic)


def _columns(recipe, axes):
    """Return the names of what is searched: of an axis of a member with the member's."""
    models = [model["model"] for model in recipe["models"]] if any(axis.of_member for axis in axes) else []
    own = {axis.name: [other for other in axes if other.name == axis.name] for axis in axes if axis.of_member}
    names = []
    for axis in axes:
        members = models
        if axis.of_member and len(models) > len(own[axis.name]):
            members = [model for model in models if model != recipe.get("base_model")]
        place = sum(name.startswith(f"{axis.name} of ") for name in names)
        names.append(f"{axis.name} of {members[place]}" if axis.of_member else axis.name)
    return names


def _values(settings, axes):
    lists = {name: iter(value) for name, value in settings.items() if isinstance(value, list)}
    return [next(lists[axis.name]) if axis.of_member else settings[axis.name] for axis in axes]
