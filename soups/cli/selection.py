"""Share what `soups search`, `greedy` and `rank` have in common: an evaluation, a folder of work, tables."""

import contextlib
import csv
import io
import json
import os
from collections.abc import Iterator, Sequence

from soups.arguments import check_within
from soups.cli.options import place_argument
from soups.cli.show import parse_size, say, table, tell
from soups.files import replace_file
from soups.lazy import MissingExtraError, extra
from soups.merging.evaluation import Command, Evaluation, evaluation
from soups.merging.outputs import check_output, write_output
from soups.merging.places import FILES
from soups.merging.run import THREADS
from soups.merging.selecting import Check, Selection
from soups.merging.trials import Trials, held_work
from soups.names import count_of
from soups.recipes._scores import direction
from soups.recipes._search import loss

_MOST = 20  # rows of a table
_SWITCH = {"action": "store_true"}
EVALUATION = (
    (
        "--eval",
        {"metavar": "COMMAND"}
        | {"help": "'python my_eval.py {model}', whose last printed number is the score, or module:function"},
    ),
    (
        "--metric",
        {"metavar": "NAME", "help": "the score is the last number after this name, or a function's value of it"},
    ),
    ("--lower", _SWITCH | {"help": "lower is better (default: what is known of the metric, else higher)"}),
    ("--higher", _SWITCH | {"help": "higher is better"}),
    ("--timeout", {"type": float, "metavar": "SECONDS", "help": "how long an evaluation may take"}),
)
WORK = (
    (
        "--work",
        {"type": place_argument, "metavar": "DIR", "help": "for scores and tables, a folder or s3://… or gs://…"},
    ),
    ("--keep", _SWITCH | {"help": "keep the candidates, in DIR/candidates"}),
    ("--keep-scores", _SWITCH | {"help": "keep scores from before the evaluation's scripts changed"}),
)
THREADS_OPTION = ("--threads", {"type": int, "metavar": "N", "help": "how many tensors to work on at a time"})


def mode_of(options) -> str:
    """Return "max" or "min"; a ValueError if that is not known of the metric, or both were asked for."""
    if options.lower and options.higher:
        raise ValueError("give one of --lower and --higher")
    mode = "min" if options.lower else "max" if options.higher else None
    try:
        return direction(options.metric, mode)
    except ValueError:
        raise ValueError(f"--metric {options.metric}: say which is better, --lower or --higher") from None


def evaluation_of(options) -> Evaluation:
    """Return the evaluation that is asked for; call it before JAX is imported."""
    if not options.eval:
        raise ValueError("say how models are evaluated: --eval 'python my_eval.py {model}', or --eval module:function")
    found = evaluation(options.eval, options.metric, options.timeout)
    if isinstance(found, Command):
        os.environ["JAX_PLATFORMS"] = "cpu"  # what this process does needs no accelerator, which the command may need
    return found


@contextlib.contextmanager
def trials(options, run, evaluate: Evaluation, out: str | None, work: str, **settings) -> Iterator[Trials]:
    """Hold the folder of work and yield the trials there; by default it is `work`, behind the output's name if any."""
    threads = THREADS if options.threads is None else check_within("--threads", options.threads, "[1, inf)", whole=True)
    mode, losses = mode_of(options), []

    def report(what, score, seconds):
        better = bool(losses) and loss(score, mode) < min(losses)
        losses.append(loss(score, mode))
        say(f"{what}: {score:.6g} in {seconds:.1f} s{', the best so far' if better else ''}")

    if out:
        store, mark, place = out.rstrip("/").rpartition("://")
        drive, place = os.path.splitdrive(place)
        work = f"{store}{mark}{drive}{place.replace(':', '.')}.{work}"
    with held_work(options.work or work, out) as place:
        settings |= {"threads": threads, "keep": options.keep, "keep_scores": options.keep_scores, "report": report}
        settings |= {"tell": tell}
        made = Trials(place, evaluate, **settings)
        losses += [loss(score, mode) for score in made.scores]
        if losses:
            verb = "is" if len(losses) == 1 else "are"
            tell(f"{count_of(len(losses), 'score')} {verb} in {options.work or work} already")
        run.go_on = "the same command goes on where it was"
        yield made
        run.go_on = ""


def kind_of(options) -> str:
    """Return how candidates are written: as the output, but for one in a pool."""
    if options.format == "file":
        return next((end for end in FILES if options.out.endswith(end)), FILES[0])
    return "orbax" if options.format == "orbax" else "huggingface"


def check_of(options) -> Check:
    """Return what looks whether the output can be written."""
    parse_size(options.shard_size or "5GB")
    return lambda plan, identity: check_output(plan, options.out, options.format, identity)


def write(options, run, trials: Trials, found: Selection) -> None:
    """Write the best, and say so."""
    made = write_output(trials, found, options.out, options.format, shard_bytes=parse_size(options.shard_size or "5GB"))
    better = {"max": "higher", "min": "lower"}[mode_of(options)]
    say(f"{'wrote' if made else 'already there:'} {options.out}, with the score {found.score:.6g} ({better} is better)")
    run.made(options.out)


def present(selection: Selection, work, title: str, columns: Sequence[str], rows: Sequence[Sequence]) -> None:
    """Print rows, and write all of them and the record of the selection into files of its name, CSV and JSON."""
    name, cells = selection.asked["recipe"], [[_cell(value) for value in row] for row in rows]
    numbers = [head for head, *column in zip(columns, *rows, strict=True) if any(type(v) is float for v in column)]
    table(title, columns, cells[:_MOST], numbers)
    if len(rows) > _MOST:
        tell(f"{len(rows) - _MOST} more {'is' if len(rows) == _MOST + 1 else 'are'} in {name}.csv")
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([columns, *rows])
    replace_file(work / f"{name}.csv", text.getvalue().encode(errors="backslashreplace"))
    best = {"best": selection.recipe} if selection.recipe else {}
    replace_file(work / f"{name}.json", json.dumps({**selection.record, **best}, indent=1) + "\n")


def plot(work, columns, scores, mode: str, logarithmic) -> None:
    """Draw scores over what was tried, into search.png and search.svg."""
    try:
        with extra("report"):
            from soups.report.draw_search import draw_search
            from soups.report.style import look, rendered
    except MissingExtraError as error:
        tell(f"without a plot: {error}")
        return
    with look():
        figure = draw_search(columns, scores, mode, logarithmic)
        for kind in ("png", "svg"):
            replace_file(work / f"search.{kind}", rendered(figure, kind))


def _cell(value):
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.6g}" if isinstance(value, float) else "" if value is None else value
