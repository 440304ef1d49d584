"""Merge checkpoints into one, in the memory of a few blocks.

soups merge --method ties --density 0.2 --base B --members A C D --out OUT
soups merge RECIPE.yml OUT           a mergekit recipe, as it is
soups merge --method ties --help     the settings of a method
soups merge --methods ties           what it does; without a name, all methods
soups merge --verify OUT

With --method a method does what its paper says, and each of its settings is an
option. In a recipe file it does what it does in mergekit.

A MODEL is a file of safetensors, torch, NumPy or GGUF, a folder in the layout
of Hugging Face, an Orbax checkpoint, a member of a pool, POOL:NAME, or the id
of a downloaded model of the hub, ORG/NAME; MODEL+LORA is one with an adapter
of PEFT. Members may also be 'runs/*/model', POOL for all members of a pool, or
'POOL:a*'; --where chooses among those of pools. OUT becomes a folder in the
layout of Hugging Face, or one file if it ends in .safetensors or .npz; with
--format orbax a checkpoint, with --format pool a member, POOL:NAME. The headers
of all files are compared first; --dry-run stops there. OUT appears when it is
complete, and the same command goes on with a merge that was stopped.

--align takes a YAML file, a list of [regex, axes], with the name of the
permutation of each axis.

--format orbax --sharded merges on all devices, each with its shards of every
tensor. On several hosts give the same command on each: with --coordinator auto
on a TPU pod or under SLURM, elsewhere with --coordinator HOST:PORT
--processes 4 --process 0 (to 3).
"""

import contextlib
import io
import time

from soups import merging
from soups.allocator import keep_freed_blocks
from soups.cli.merge_options import choose_members, naming_options, parse, recipe_text
from soups.cli.methods import SEMANTICS, describe_methods, list_methods
from soups.cli.options import connect
from soups.cli.show import advance, amount, parse_size, say, table, tell
from soups.formats.orbax_steps import is_orbax
from soups.names import few
from soups.progress import is_first

BYTES_PER_SECOND = 1e9  # of reading and writing together, for the estimate of time
IN_MEMORY = ("orbax", "pool")  # formats that are written when all is merged
GO_ON = "the same command goes on where it was"
BEGIN_ANEW = "nothing was written, and the same command begins anew"


def main(arguments: list[str], run) -> int:
    """Merge, verify or list, and return the exit code."""
    options, settings = parse(arguments, run.prog, __doc__)
    if options.methods is not None:
        return describe_methods(options.methods, run) if options.methods else list_methods(run)
    keep_freed_blocks()
    if options.verify:
        return verify(options, run)
    connect(options)
    # of several processes one tells what all of them do
    with contextlib.nullcontext() if is_first() else contextlib.redirect_stdout(io.StringIO()):
        return merge(options, settings, run)


def merge(options, settings, run) -> int:
    """Plan, say what will happen, and do it."""
    choose_members(options)
    text, where = recipe_text(options, settings)
    if (shard_bytes := parse_size(options.shard_size or "5GB")) < 1:
        raise ValueError(f"--shard-size must be at least one byte, not {options.shard_size}")
    with naming_options():
        job = merging.parse_recipe(text, where=where, seed=options.seed)
    plan = merging.plan(job, merging.open_model)
    out, threads = options.out, _threads(plan, options)
    merging.check_place(plan, out, options.format)
    describe(plan, out, _needed(plan, options, threads))
    files = merging.folder_files(plan) if options.format in ("huggingface", "pool") else {}
    if files:
        own = ["merge.json"] if options.format == "huggingface" else []
        tell(f"beside the tensors: {', '.join(sorted([*files, *own]))}")
        for note in merging.folder_notes(plan):
            tell(note)
    if options.format != "huggingface":
        _tell_ignored(plan, options)
    if options.dry_run:
        return 0
    begin, run.go_on = time.monotonic(), BEGIN_ANEW if options.format in IN_MEMORY else GO_ON
    with advance("merging", plan.read_bytes if options.sharded else plan.write_bytes) as progress:
        if options.sharded:
            merging.merge_sharded(plan, out, progress=progress)
        elif options.format == "huggingface":
            merging.merge_to_folder(plan, out, threads=threads, shard_bytes=shard_bytes, files=files, progress=progress)
        else:
            sinks = {"file": merging.merge_to_file, "orbax": merging.merge_to_orbax, "pool": merging.merge_to_pool}
            beside = {"files": files} if options.format == "pool" else {}
            sinks[options.format](plan, out, threads=threads, progress=progress, **beside)
    run.go_on = ""
    say(f"wrote {out} in {time.monotonic() - begin:.1f} s")
    for note in merging.read_record(out).get("notes", ()):
        if note not in plan.notes:  # it was known only when all was read
            tell(note)
    run.made(out)
    return 0


def _tell_ignored(plan, options):
    out, tokenizer = options.out, plan.tokenizer and plan.tokenizer.files
    beside = {"chat_template": plan.job.chat_template, "the tokenizer": tokenizer}
    unwritten = [name for name, given in beside.items() if given and options.format != "pool"]
    if unwritten:
        tell(f"{out} holds tensors alone; not written: {', '.join(unwritten)}")
    if options.shard_size:
        tell(f"--shard-size has no effect on {out}, which has no shards")
    if options.sharded and options.threads is not None:
        tell("--threads has no effect with --sharded")


def verify(options, run) -> int:
    """Merge a finished output again and compare it bit for bit."""
    plan = merging.plan_again(merging.read_record(options.verify))
    with advance("verifying", plan.write_bytes) as progress:
        different = merging.verify_output(plan, options.verify, threads=_threads(plan, options), progress=progress)
    run.made(*different)
    say("\n".join(different) or f"{options.verify} is what its recipe and its models give, bit for bit")
    if different and is_orbax(options.verify):
        say("if it was merged with --sharded: the last bits may differ where a device rounds otherwise than NumPy")
    return 1 if different else 0


def _threads(plan, options):
    threads = merging.threads_for(plan, options.out or "") if options.threads is None else options.threads
    if threads < 1:
        raise ValueError(f"--threads must be at least 1, not {threads}")
    if options.memory:
        limit = parse_size(options.memory)
        while threads > 1 and _memory(plan, options, threads) > limit:
            threads -= 1
        if (needed := _memory(plan, options, threads)) > limit:
            raise ValueError(f"this merge needs about {needed / 1e6:.0f} MB of memory, more than {options.memory}")
    return threads


def _needed(plan, options, threads):
    if options.sharded:
        import jax

        return f"on {jax.device_count()} devices"
    return f"about {_memory(plan, options, threads) / 1e6:.0f} MB of memory with {threads} threads"


def _memory(plan, options, threads):
    return plan.memory(threads, orbax=options.format in IN_MEMORY)


def describe(plan, out, needed: str) -> None:
    """Print what will be read and written, how, and what it needs."""
    job, definition = plan.job, plan.job.definition
    title = f"{job.method}, as in {SEMANTICS[job.vocabulary]}"
    title += f": {definition.summary}" if definition.summary else ""
    title += f" ({definition.paper})" if definition.paper else ""
    columns = ("model", "", "tensors", "size", "settings")
    table(title, columns, [row for pair in plan.checkpoints.items() for row in _rows(job, *pair)], ("tensors", "size"))
    known = {**definition.settings, **({"seed": job.seed} if "seed" in definition.settings else {}), **job.parameters}
    known = {name: known[name] for name in definition.settings}
    shown = ", ".join(f"{name} {value}" for name, value in known.items() if value is not merging.REQUIRED)
    tell(f"settings: {shown or 'none'}")
    for name, reason in definition.idle.items():
        if job.parameters.get(name):
            tell(f"{name} has no effect here: {reason}")
    if plan.tokenizer and plan.tokenizer.rows:
        source = plan.tokenizer.source + (", with what others have beside it" if plan.tokenizer.files else "")
        tell(f"vocabulary: that of {source}; {plan.tokenizer.rows:,} rows")
    if plan.aliases:
        tell(f"tied, written once: {few((f'{alias} = {name}' for alias, name in plan.aliases.items()), 5)}")
    if copied := [output.name for output in plan.outputs if output.recipe is None]:
        tell(f"copied, not merged: {few(copied, 5)}")
    for note in plan.notes:
        tell(note)
    seconds = max(1, (plan.read_bytes + plan.write_bytes) / BYTES_PER_SECOND)
    sizes = f"reads {amount(plan.read_bytes)}, writes {amount(plan.write_bytes)}"
    tell(f"{sizes} to {out}; {needed}, about {seconds:.0f} s")


def _rows(job, model, checkpoint):
    """Return a row for each time that a model is merged, of several slices for each of its settings."""
    sources = [source for part in job.slices for source in part.sources if source.model == model]
    own = [", ".join(f"{name} {value}" for name, value in source.parameters.items()) for source in sources] or [""]
    own = dict.fromkeys(own) if len(job.slices) > 1 else own
    beside = "Gram matrices" if job.definition.grams else "Fisher"
    role = "base" if model == job.base else "" if model in job.models else beside
    size = amount(sum(leaf.nbytes for leaf in checkpoint.leaves.values()))
    return [(model, role, f"{len(checkpoint.leaves):,}", size, settings) for settings in own]
