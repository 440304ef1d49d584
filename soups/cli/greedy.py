"""Make a greedy soup of models with your own evaluation.

soups greedy --members 'runs/*' --eval 'python my_eval.py {model}' --out OUT
soups greedy --members POOL --where 'seed<3' --eval mine.py:score --out OUT

Members are tried from the best score down; one stays if the average with it
scores better. Each average is written in the form of OUT, and its path takes
the place of {model}; the last number that the command prints is the score. A
function, module:function or file.py:function, takes the path and returns the
score. OUT is the soup, and its record has all scores.

The same command goes on where it was stopped and evaluates nothing twice. To
add members, give another OUT and the same --work (by default OUT.greedy).

Wortsman et al., "Model soups", 2022, arXiv 2203.05482.
"""

from soups.cli import merge_options, selection
from soups.cli.options import Parser
from soups.merging.selecting import greedy
from soups.names import count_of

_USAGE = "%(prog)s --members MODEL ... --eval COMMAND --out OUT [OPTION ...]"
_ACCEPT = (
    "--accept",
    {"choices": ("gt", "ge"), "default": "gt", "help": "take what is better (gt, the default), or not worse (ge)"},
)


def main(arguments: list[str], run) -> int:
    """Choose, write the soup, and return the exit code."""
    options = parser(run.prog).parse(arguments)
    if not options.members or not options.out:
        raise ValueError("say what is averaged and where to: --members MODEL ... --out OUT")
    merge_options.settle_format(options)
    evaluate, mode = selection.evaluation_of(options), selection.mode_of(options)
    merge_options.choose_members(options)
    fields = {name: getattr(options, name) for name in ("dtype", "out_dtype", "tokenizer_source")}
    fields = {name: value for name, value in fields.items() if value} | ({"insist": True} if options.insist else {})
    check, kind = selection.check_of(options), selection.kind_of(options)
    with selection.trials(options, run, evaluate, options.out, "greedy", kind=kind) as trials:
        found = greedy(
            trials,
            options.members,
            mode=mode,
            accept=options.accept,
            fields=fields,
            check=check,
        )
        rows = [
            (step["member"], step["alone"], step["score"], step["accepted"], step["reason"]) for step in found.steps
        ]
        number = len(found.recipe["models"])
        title = f"{number} of {count_of(len(options.members), 'member')} {'is' if number == 1 else 'are'} averaged, "
        title += "in the order in which they were tried"
        selection.present(found, trials.work, title, ("member", "alone", "with it", "taken", "why not"), rows)
        selection.write(options, run, trials, found)
    return 0


def parser(prog: str) -> Parser:
    """Return the parser of the options."""
    known = merge_options.arguments_of("")
    insist = [(name, settings) for name, settings in known["what is merged"] if name == "--insist"]
    (_, place), (out, _), *written = known["what is written"]  # which is no word of its own here
    groups = {
        "what is averaged": [*merge_options.MEMBERS, *insist],
        "how it is chosen": [*selection.EVALUATION, _ACCEPT],
        "what is written": [(out, {**place, "nargs": None}), *written, *selection.WORK],
        "how": [selection.THREADS_OPTION],
    }
    return merge_options.parser_of(prog, __doc__, _USAGE, groups)
