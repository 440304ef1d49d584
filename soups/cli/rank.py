"""Score models with your own evaluation, the best first.

soups rank --members 'runs/*/model' --eval 'python my_eval.py {model}'
soups rank --members POOL --where 'seed<3' --eval mine.py:score --metric loss

A folder with model.safetensors (with --format file: a .safetensors file) is
evaluated where it is. Any other member is written in that form for its
evaluation, and removed afterwards. The same command goes on where it was
stopped and evaluates nothing twice, even if there are more members. Scores and
tables are in ranking, or --work DIR; soups greedy --work DIR uses them.
"""

from soups.cli import merge_options, selection
from soups.cli.options import Parser
from soups.merging.selecting import rank
from soups.names import count_of

_KINDS = {"huggingface": "huggingface", "file": ".safetensors", "orbax": "orbax"}
_FORMAT = (
    "--format",
    {"choices": list(_KINDS), "default": "huggingface", "help": "format of {model} (default: huggingface)"},
)
_USAGE = "%(prog)s --members MODEL ... --eval COMMAND [OPTION ...]"


def main(arguments: list[str], run) -> int:
    """Evaluate, print the ranking, and return the exit code."""
    options = parser(run.prog).parse(arguments)
    if not options.members:
        raise ValueError("say what is ranked: --members MODEL ...")
    evaluate, mode = selection.evaluation_of(options), selection.mode_of(options)
    merge_options.choose_members(options)
    with selection.trials(options, run, evaluate, None, "ranking", kind=_KINDS[options.format]) as trials:
        found = rank(trials, options.members, mode=mode)
        rows = [(place, step["member"], step["score"], step["reason"]) for place, step in enumerate(found.steps, 1)]
        title = f"{count_of(len(rows), 'member')}, the best first"
        selection.present(found, trials.work, title, ("", "member", "score", ""), rows)
    run.made(*(step["member"] for step in found.steps))
    return 0


def parser(prog: str) -> Parser:
    """Return the parser of the options."""
    groups = {
        "what is ranked": merge_options.MEMBERS,
        "how it is evaluated": [*selection.EVALUATION, _FORMAT],
        "what is written": selection.WORK,
        "how": [selection.THREADS_OPTION],
    }
    return merge_options.parser_of(prog, __doc__, _USAGE, groups)
