"""Say what a merge will do, and which methods there are."""

import shutil
import textwrap

from soups import merging
from soups.cli.show import amount, printable, say, table, tell
from soups.names import few

BYTES_PER_SECOND = 1e9  # of reading and writing together, for the estimate of time
_SEMANTICS = {"published": "the papers", "mergekit": "mergekit"}


def describe(plan, out, needed: str) -> None:
    """Print what will be read and written, how, and what it needs."""
    job, definition = plan.job, plan.job.definition
    title = f"{job.method}, as in {_SEMANTICS[job.vocabulary]}"
    title += (f": {definition.summary}" if definition.summary else "") + (
        f" ({definition.paper})" * bool(definition.paper)
    )
    columns = ("model", "", "tensors", "size", "settings")
    table(title, columns, [row for pair in plan.checkpoints.items() for row in _rows(job, *pair)], ("tensors", "size"))
    known = {name: job.parameters.get(name, default) for name, default in definition.settings.items()}
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


def list_methods() -> int:
    """Print the methods of both vocabularies with their settings."""
    for vocabulary, where in (("published", "--method NAME"), ("mergekit", "in recipe files")):
        say(f"methods, as in {_SEMANTICS[vocabulary]} ({where}):\n")
        for name, method in merging.methods_of(vocabulary).items():
            settings = [n if d is merging.REQUIRED else f"{n} {d}" for n, d in method.settings.items()]
            # "first": it is where the method begins
            base = "required" if method.base == "first" else method.base
            _entry(name, method.summary, f"base {base}; {', '.join(settings) or 'no settings'}", method.paper)
        say("")
    say("not made from checkpoints alone, or under another name:\n")
    for name, reason in merging.ELSEWHERE.items():
        _entry(name, reason)
    return 0


def _entry(name, *lines):
    width = max(40, shutil.get_terminal_size().columns - 1)
    wrapped = [part for line in lines if line for part in textwrap.wrap(printable(line), width - 22)]
    heads = [f"  {printable(name):<19} "] + [" " * 22] * (len(wrapped) - 1)
    print("\n".join(head + line for head, line in zip(heads, wrapped, strict=True)))
