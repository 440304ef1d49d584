"""Merge checkpoints into one, in the memory of a few blocks.

    python scripts/merge.py RECIPE.yml OUT
    python scripts/merge.py --method ties --density 0.2 --base B --members A C D --out OUT
    python scripts/merge.py --verify OUT
    python scripts/merge.py --methods

A recipe file is mergekit's, and its methods do what they do there. With --method they do what their papers say, and
every setting of the method is an option. Models are safetensors files, folders of Hugging Face, torch files, Orbax
checkpoints, or members of a pool, POOL:NAME. OUT is a folder of Hugging Face, or with --format orbax a checkpoint.
Everything is compared by the files' headers first; --dry-run stops there. OUT appears when it is complete; the same
command goes on with a merge that was killed.
"""

import argparse
import contextlib
import json
import pathlib
import re
import sys
import threading
import time

import rich.console
import rich.markup
import rich.table
import yaml

from soups import merging
from soups.experiments.progress import progress
from soups.names import check_name

SUFFIXES = {"B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}
BYTES_PER_SECOND = 1e9  # of reading and writing together, for the estimate of time


def main(arguments: list[str] | None = None) -> int:
    """Merge, verify or list, and give the exit code: 0, 1 if `--verify` found something, 2 if it cannot be done."""
    console = rich.console.Console(soft_wrap=True)
    try:
        options, settings = _options(arguments)
        if options.methods:
            return list_methods(console)
        if options.verify:
            return verify(options, console)
        return merge(options, settings, console)
    except (ValueError, OSError) as error:
        print(f"merge.py: {error}", file=sys.stderr)
        return 2


def merge(options, settings, console) -> int:
    """Plan, say what will happen, and do it."""
    text, where = _recipe_text(options, settings)
    out = pathlib.Path(options.out)
    if out.exists():
        raise FileExistsError(f"{out} exists: a merge is written to a new place")
    job = merging.parse_recipe(text, where=where, seed=options.seed)
    plan = merging.plan(job, merging.open_model)
    threads, shard_bytes, files = _threads(plan, options), _size(options.shard_size), merging.folder_files(plan)
    describe(plan, threads, _memory(plan, options, threads), out, console)
    if options.dry_run:
        return 0
    begin = time.monotonic()
    with _advance("merging", plan.write_bytes) as advance:
        if options.format == "orbax":
            merging.merge_to_orbax(plan, out, threads=threads, progress=advance)
        else:
            merging.merge_to_folder(plan, out, threads=threads, shard_bytes=shard_bytes, files=files, progress=advance)
    console.print(f"wrote {rich.markup.escape(str(out))} in {time.monotonic() - begin:.1f} s")
    return 0


def describe(plan, threads, memory, out, console) -> None:
    """Print what will be read and written, how, and what it needs."""
    job = plan.job
    table = rich.table.Table(title=f"{job.method}, as in {_SEMANTICS[job.vocabulary]}", title_justify="left")
    for column in ("model", "", "tensors", "GB", "settings"):
        table.add_column(column)
    for model in job.models:
        leaves = plan.checkpoints[model].leaves
        own = {
            name: value
            for part in job.slices
            for s in part.sources
            if s.model == model
            for name, value in s.parameters.items()
        }
        table.add_row(
            rich.markup.escape(model),
            "base" if model == job.base else "",
            f"{len(leaves):,}",
            f"{sum(leaf.nbytes for leaf in leaves.values()) / 1e9:.3g}",
            rich.markup.escape(", ".join(f"{name} {value}" for name, value in own.items())),
        )
    console.print(table)
    defaults = {**job.definition.of_merge, **job.definition.of_member}
    known = {name: job.parameters.get(name, default) for name, default in defaults.items()}
    shown = ", ".join(f"{name} {value}" for name, value in known.items() if value is not merging.REQUIRED)
    console.print(rich.markup.escape(f"settings: {shown or 'none'}"))
    if plan.aliases:
        tied = ", ".join(f"{alias} = {name}" for alias, name in plan.aliases.items())
        console.print(rich.markup.escape(f"tied, written once: {tied}"))
    if copied := [output.name for output in plan.outputs if output.recipe is None]:
        more = f" and {len(copied) - 5} more" if len(copied) > 5 else ""
        console.print(rich.markup.escape(f"copied, not merged: {', '.join(copied[:5])}{more}"))
    seconds = (plan.read_bytes + plan.write_bytes) / BYTES_PER_SECOND
    console.print(
        f"reads {plan.read_bytes / 1e9:.3g} GB, writes {plan.write_bytes / 1e9:.3g} GB "
        f"to {rich.markup.escape(str(out))}; "
        f"about {memory / 1e6:.0f} MB of memory with {threads} threads, about {max(1, seconds):.0f} s"
    )


def verify(options, console) -> int:
    """Merge a finished folder again and compare it bit for bit."""
    note = pathlib.Path(options.verify) / "merge.json"
    if not note.is_file():
        raise FileNotFoundError(f"{options.verify} is not a folder that this program wrote: no merge.json")
    record = json.loads(note.read_text())
    plan = merging.plan(merging.parse_recipe(record["recipe"], seed=record["seed"]), merging.open_model)
    with _advance("verifying", plan.write_bytes) as advance:
        different = merging.verify_folder(plan, options.verify, threads=_threads(plan, options), progress=advance)
    text = "\n".join(different) or f"{options.verify} is what its recipe and its models give, bit for bit"
    console.print(rich.markup.escape(text))
    return 1 if different else 0


def list_methods(console) -> int:
    """Print the methods of both vocabularies with their settings."""
    for vocabulary, methods in (("published", merging.PUBLISHED), ("mergekit", merging.MERGEKIT)):
        table = rich.table.Table(title=f"methods, as in {_SEMANTICS[vocabulary]}", title_justify="left")
        for column in ("method", "base", "settings and defaults", "what it does", "paper"):
            table.add_column(column)
        for name, method in methods.items():
            known = {**method.of_merge, **method.of_member}
            settings = ", ".join(n if d is merging.REQUIRED else f"{n} {d}" for n, d in known.items())
            table.add_row(name, method.base, settings, method.summary, method.paper)
        console.print(table)
    return 0


_SEMANTICS = {"published": "the papers", "mergekit": "mergekit"}


def _recipe_text(options, settings):
    if options.recipe:
        if settings:
            raise ValueError(f"settings belong into the recipe file: {', '.join(settings)}")
        if not pathlib.Path(options.recipe).is_file():
            raise FileNotFoundError(f"no recipe file at {options.recipe}")
        return pathlib.Path(options.recipe).read_text(), options.recipe
    method = merging.PUBLISHED[check_name(options.method, merging.PUBLISHED, "method")]
    for name in settings:
        check_name(name, [*method.of_merge, *method.of_member], f"setting of {options.method}")
    lists = {name: value for name, value in settings.items() if isinstance(value, list)}
    for name, values in lists.items():
        if name not in method.of_member or len(values) != len(options.members):
            raise ValueError(f"--{name}: one value, or one for each of the {len(options.members)} members")
    recipe = {
        "vocabulary": "published",
        "merge_method": options.method,
        "models": [
            {"model": model, "parameters": {name: values[index] for name, values in lists.items()}}
            for index, model in enumerate(options.members)
        ],
        "parameters": {name: value for name, value in settings.items() if name not in lists},
    }
    recipe |= {
        key: value
        for key, value in (("base_model", options.base), ("dtype", options.dtype), ("out_dtype", options.out_dtype))
        if value is not None
    }
    return yaml.safe_dump(recipe, sort_keys=False), "the command line"


def _options(arguments):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", nargs="?", help="a recipe file")
    parser.add_argument("place", nargs="?", metavar="OUT", help="the folder to write")
    parser.add_argument("--method")
    parser.add_argument("--base")
    parser.add_argument("--members", nargs="+", default=[])
    parser.add_argument("--out")
    parser.add_argument("--dtype")
    parser.add_argument("--out_dtype", "--out-dtype")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--memory", help="the most private memory that may be used, such as 2GB")
    parser.add_argument("--shard-size", default="5GB")
    parser.add_argument("--format", choices=("huggingface", "orbax"), default="huggingface")
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--verify", metavar="OUT", help="merge again and compare")
    parser.add_argument("--methods", action="store_true", help="list the methods")
    words, settings = _split(sys.argv[1:] if arguments is None else arguments, parser)
    options = parser.parse_args(words)
    options.out = options.out or options.place
    if options.methods or options.verify:
        return options, {}
    if bool(options.recipe) == bool(options.method):
        raise ValueError("give a recipe file, or --method with --members and --out (see --help)")
    if not options.out or (options.method and not options.members):
        raise ValueError("say what is merged and where to: RECIPE OUT, or --method, --members and --out")
    return options, settings


def _split(words, parser):
    """Take --name value [value ...] of names that the parser does not know out: they are settings of the method."""
    known = {option for action in parser._actions for option in action.option_strings}
    kept, settings, values = [], {}, None
    for word in words:
        name, _, value = word.partition("=")
        if word.startswith("--"):
            values = None if name in known else settings.setdefault(name[2:].replace("-", "_"), [])
            word = value if values is not None else word
        if values is None:
            kept.append(word)
        elif word:
            values.append(merging.load_yaml(word))
    if empty := [name for name, values in settings.items() if not values]:
        raise ValueError(f"--{empty[0]} needs a value")
    return kept, {name: values[0] if len(values) == 1 else values for name, values in settings.items()}


def _threads(plan, options):
    threads = merging.THREADS if options.threads is None else options.threads
    if threads < 1:
        raise ValueError(f"--threads must be at least 1, not {threads}")
    if options.memory:
        limit = _size(options.memory)
        while threads > 1 and _memory(plan, options, threads) > limit:
            threads -= 1
        if (needed := _memory(plan, options, threads)) > limit:
            raise ValueError(f"this merge needs about {needed / 1e6:.0f} MB of memory, more than {options.memory}")
    return threads


def _memory(plan, options, threads):
    return plan.memory(threads) + (plan.write_bytes if options.format == "orbax" else 0)


def _size(text):
    found = re.fullmatch(r"([0-9.]+)\s*([kMGT]?B)?", text, re.IGNORECASE)
    factors = {suffix.upper(): factor for suffix, factor in SUFFIXES.items()}
    try:
        return int(float(found[1]) * factors[(found[2] or "B").upper()])
    except (TypeError, ValueError):
        raise ValueError(f"{text!r} is not a size; 2GB is one, with {', '.join(SUFFIXES)}") from None


@contextlib.contextmanager
def _advance(what, total):
    """Show bytes as megabytes, from any thread, in steps that a person can read."""
    if total < 1e8:  # what is done at once needs no bar
        yield lambda number: None
        return
    lock, done, shown = threading.Lock(), 0, 0
    with progress(what, round(total / 1e6), "MB") as advance:

        def add(number):
            nonlocal done, shown
            with lock:
                done += number
                if done - shown * 1e6 >= total / 20 or done == total:
                    advance(round(done / 1e6) - shown)
                    shown = round(done / 1e6)

        yield add


if __name__ == "__main__":
    sys.exit(main())
