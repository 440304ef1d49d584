"""Merge checkpoints into one, in the memory of a few blocks.

    python scripts/merge.py RECIPE.yml OUT
    python scripts/merge.py --method ties --density 0.2 --base B --members A C D --out OUT
    python scripts/merge.py --verify OUT
    python scripts/merge.py --methods

A recipe file is mergekit's, and its methods do what they do there. With --method they do what their papers say, and
every setting of the method is an option. Models are safetensors files, folders of Hugging Face, torch files, Orbax
checkpoints, or members of a pool, POOL:NAME; MODEL+LORA is a model with an adapter of PEFT. OUT is a folder of Hugging
Face, with --format orbax a checkpoint, with --format pool a member POOL:NAME. Everything is compared by the files'
headers first; --dry-run stops there. OUT appears when it is complete; the same command goes on with a merge that was
killed.

--align SPEC permutes the units of independently trained networks first; SPEC names the permutation of each axis.

--format orbax --sharded merges on all devices, each with its shards of every tensor. On several hosts, the same command
on each: --coordinator auto on a TPU pod or under SLURM, elsewhere --coordinator HOST:PORT --processes 4 --process 0.
"""

import argparse
import contextlib
import pathlib
import re
import sys
import threading
import time

import jax
import rich.console
import rich.markup
import rich.table
import yaml

from soups import merging
from soups.experiments.progress import progress
from soups.merging.into_pool import check_pool, merge_to_pool
from soups.merging.methods import find_method
from soups.merging.published import ELSEWHERE
from soups.merging.sharded import merge_sharded
from soups.names import check_name

SUFFIXES = {"B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}
BYTES_PER_SECOND = 1e9  # of reading and writing together, for the estimate of time


def main(arguments: list[str] | None = None) -> int:
    """Merge, verify or list, and give the exit code: 0, 1 if `--verify` found something, 2 if it cannot be done."""
    console = rich.console.Console(soft_wrap=True)
    try:
        options, settings = _options(arguments)
        _connect(options)
        console.quiet = bool(options.coordinator) and jax.process_index() > 0
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
    out = options.out if options.format == "pool" else pathlib.Path(options.out)
    if options.format != "pool" and out.exists():
        raise FileExistsError(f"{out} exists: a merge is written to a new place")
    job = merging.parse_recipe(text, where=where, seed=options.seed)
    plan = merging.plan(job, merging.open_model)
    if options.format == "pool":
        check_pool(plan, out)
    threads, shard_bytes, files = _threads(plan, options), _size(options.shard_size), merging.folder_files(plan)
    needed = f"about {_memory(plan, options, threads) / 1e6:.0f} MB of memory with {threads} threads"
    describe(plan, f"on {jax.device_count()} devices" if options.sharded else needed, out, console)
    if options.format == "huggingface":
        console.print(rich.markup.escape(f"beside the tensors: {', '.join(sorted([*files, 'merge.json']))}"))
    if options.dry_run:
        return 0
    begin = time.monotonic()
    with _advance("merging", plan.read_bytes if options.sharded else plan.write_bytes) as advance:
        if options.sharded:
            merge_sharded(plan, out, progress=advance)
        elif options.format == "pool":
            merge_to_pool(plan, out, threads=threads, progress=advance)
        elif options.format == "orbax":
            merging.merge_to_orbax(plan, out, threads=threads, progress=advance)
        else:
            merging.merge_to_folder(plan, out, threads=threads, shard_bytes=shard_bytes, files=files, progress=advance)
    console.print(f"wrote {rich.markup.escape(str(out))} in {time.monotonic() - begin:.1f} s")
    return 0


def describe(plan, needed, out, console) -> None:
    """Print what will be read and written, how, and what it needs."""
    job = plan.job
    summary, paper = job.definition.summary, job.definition.paper
    title = f"{job.method}, as in {_SEMANTICS[job.vocabulary]}"
    title += (f": {summary}" if summary else "") + (f" ({paper})" if paper else "")
    table = rich.table.Table(title=title, title_justify="left")
    for column in ("model", "", "tensors", "size", "settings"):
        table.add_column(column)
    beside = "Gram matrices" if job.definition.grams else "Fisher"
    for model, checkpoint in plan.checkpoints.items():
        own = {
            name: value
            for part in job.slices
            for s in part.sources
            if s.model == model
            for name, value in s.parameters.items()
        }
        table.add_row(
            rich.markup.escape(model),
            "base" if model == job.base else "" if model in job.models else beside,
            f"{len(checkpoint.leaves):,}",
            _amount(sum(leaf.nbytes for leaf in checkpoint.leaves.values())),
            rich.markup.escape(", ".join(f"{name} {value}" for name, value in own.items())),
        )
    console.print(table)
    known = {name: job.parameters.get(name, default) for name, default in job.definition.settings.items()}
    shown = ", ".join(f"{name} {value}" for name, value in known.items() if value is not merging.REQUIRED)
    console.print(rich.markup.escape(f"settings: {shown or 'none'}"))
    for name, reason in job.definition.idle.items():
        if job.parameters.get(name):
            console.print(f"{name} has no effect here: {reason}")
    if plan.tokenizer and plan.tokenizer.rows:
        source = plan.tokenizer.source + (", with what others have beside it" if plan.tokenizer.files else "")
        console.print(rich.markup.escape(f"vocabulary: that of {source}; {plan.tokenizer.rows:,} rows"))
    if plan.aliases:
        tied = ", ".join(f"{alias} = {name}" for alias, name in plan.aliases.items())
        console.print(rich.markup.escape(f"tied, written once: {tied}"))
    if copied := [output.name for output in plan.outputs if output.recipe is None]:
        more = f" and {len(copied) - 5} more" if len(copied) > 5 else ""
        console.print(rich.markup.escape(f"copied, not merged: {', '.join(copied[:5])}{more}"))
    seconds = (plan.read_bytes + plan.write_bytes) / BYTES_PER_SECOND
    console.print(
        f"reads {_amount(plan.read_bytes)}, writes {_amount(plan.write_bytes)} to {rich.markup.escape(str(out))}; "
        f"{needed}, about {max(1, seconds):.0f} s"
    )


def verify(options, console) -> int:
    """Merge a finished output again and compare it bit for bit."""
    record = merging.read_record(options.verify)
    plan = merging.plan(merging.parse_recipe(record["recipe"], seed=record["seed"]), merging.open_model)
    with _advance("verifying", plan.write_bytes) as advance:
        different = merging.verify_output(plan, options.verify, threads=_threads(plan, options), progress=advance)
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
            settings = ", ".join(n if d is merging.REQUIRED else f"{n} {d}" for n, d in method.settings.items())
            # "first": it is where the method begins
            base = "required" if method.base == "first" else method.base
            table.add_row(name, base, settings, method.summary, method.paper)
        console.print(table)
    table = rich.table.Table(title="not made from checkpoints alone, or under another name", title_justify="left")
    for column in ("method", ""):
        table.add_column(column)
    for name, reason in ELSEWHERE.items():
        table.add_row(name, reason)
    console.print(table)
    return 0


_SEMANTICS = {"published": "the papers", "mergekit": "mergekit"}


def _recipe_text(options, settings):
    fields = {"base_model": options.base, "dtype": options.dtype, "out_dtype": options.out_dtype}
    fields |= {"tokenizer_source": options.tokenizer_source, "align": _align(options)}
    fields = {name: value for name, value in fields.items() if value is not None}
    if options.recipe:
        if elsewhere := [*settings, *fields, *(["models"] if options.members else [])]:
            raise ValueError(f"settings belong into the recipe file: {', '.join(elsewhere)}")
        if not pathlib.Path(options.recipe).is_file():
            raise FileNotFoundError(f"no recipe file at {options.recipe}")
        return pathlib.Path(options.recipe).read_text(), options.recipe
    method = find_method(options.method, "published")
    for name in settings:
        check_name(name, method.settings, f"setting of {options.method}")
    # a file belongs to one member, even if there is but one
    own = [name for name in settings if name in method.files and name in method.of_member]
    lists = {name: values for name, values in settings.items() if isinstance(values, list) or name in own}
    lists = {name: values if isinstance(values, list) else [values] for name, values in lists.items()}
    for name, values in lists.items():
        if name not in method.of_member or len(values) != len(options.members):
            one = "one value" if name in own else "one value, or one"
            raise ValueError(f"--{name}: {one} for each of the {len(options.members)} members")
    recipe = {
        "vocabulary": "published",
        "merge_method": options.method,
        "models": [
            {"model": model, "parameters": {name: values[index] for name, values in lists.items()}}
            for index, model in enumerate(options.members)
        ],
        "parameters": {name: value for name, value in settings.items() if name not in lists},
    }
    return yaml.safe_dump(recipe | fields, sort_keys=False), "the command line"


def _align(options):
    if options.align is None:
        return None
    if not pathlib.Path(options.align).is_file():
        raise FileNotFoundError(f"--align: no file at {options.align}")
    return merging.load_yaml(pathlib.Path(options.align).read_text())


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
    parser.add_argument("--tokenizer_source", "--tokenizer-source", help="base, union or a model")
    parser.add_argument(
        "--align", metavar="SPEC", help="YAML, a list of [regex, axes]: permute units to match the first"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--memory", help="the most private memory that may be used, such as 2GB")
    parser.add_argument("--shard-size", default="5GB")
    parser.add_argument("--format", choices=("huggingface", "orbax", "pool"), default="huggingface")
    parser.add_argument("--sharded", action="store_true", help="merge on all devices")
    parser.add_argument("--coordinator", help="HOST:PORT of the first host, or auto")
    parser.add_argument("--processes", type=int, help="how many there are")
    parser.add_argument("--process", type=int, help="which of them this is, from 0")
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
    if options.sharded and options.format != "orbax":
        raise ValueError("--sharded writes an Orbax checkpoint: add --format orbax")
    if options.sharded and options.memory:
        raise ValueError("--memory is of a merge on the host: with --sharded all devices share what the models need")
    if options.coordinator and not options.sharded:
        raise ValueError("--coordinator needs --sharded: several hosts merge what each of them has shards of")
    return options, settings


def _connect(options):
    if (options.processes is None) != (options.process is None):
        raise ValueError("--processes and --process go together: how many there are, and which of them this is")
    if options.coordinator == "auto":
        jax.distributed.initialize()
    elif (options.coordinator is None) != (options.processes is None):
        raise ValueError("several hosts need --coordinator HOST:PORT, --processes and --process")
    elif options.coordinator:
        jax.distributed.initialize(options.coordinator, options.processes, options.process)


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
    return plan.memory(threads) + (0 if options.format == "huggingface" else plan.write_bytes)


def _amount(number):
    unit = next((unit for unit in reversed(SUFFIXES) if number >= SUFFIXES[unit]), "B")
    return f"{number / SUFFIXES[unit]:.3g} {unit}"


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
