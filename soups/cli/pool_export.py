"""Write members of a pool back as the models that they came from."""

import os
import pathlib

from soups import merging
from soups.cli.merge_options import settle_format
from soups.cli.show import advance, parse_size, say, tell
from soups.merging.config import FILE as CONFIG
from soups.merging.members import chosen_members
from soups.merging.origin import files_of, innermost, is_named
from soups.merging.record import FORMAT, note_record, record
from soups.merging.sources import in_pool, split_pool
from soups.merging.yaml_text import dump_yaml
from soups.names import few, shown


def export_members(options, run) -> int:
    """Write each member that is not there yet, and return 0."""
    settle_format(options)
    if (shard_bytes := parse_size(options.shard_size)) < 1:
        raise ValueError(f"--shard-size must be at least one byte, not {options.shard_size}")
    members, notes = chosen_members(options.members, options.where)
    for note in notes:
        tell(note)
    plans = {out: _plan(member) for out, member in _places(members, options).items()}
    missing = {out: plan for out, plan in plans.items() if not _is_there(plan, out)}
    for out, plan in missing.items():
        merging.check_place(plan, out, options.format)
    for out in [out for out in plans if out not in missing]:
        say(f"{out} is there already")
    run.go_on = "the same command goes on with what is not there yet"
    for out, plan in missing.items():
        _write(plan, out, options.format, shard_bytes)
        say(f"wrote {out}")
        run.made(out)
    return 0


def _places(members, options):
    """Return the member that each place gets: OUT, or of several members the places of their names in OUT."""
    for member in members:
        if not in_pool(member):
            raise ValueError(
                f"{member} is not a member of a pool: write POOL:NAME for one member, POOL for all of them"
            )
    if len(members) == 1:
        return {options.out: members[0]}
    if options.format == "file":
        raise ValueError(f"{options.out} would be one file, but {len(members)} members are chosen: give a folder")
    places = {}
    for member in members:
        name = split_pool(member)[1]
        if pathlib.PurePath(name).name != name or "\\" in name:
            raise ValueError(f"member {shown(name)!r} cannot be a folder in {options.out}: export it alone")
        if (place := os.path.join(options.out, name)) in places:
            raise ValueError(f"{places[place]} and {member} would both be {place}: export them one by one")
        places[place] = member
    return places


def _plan(member):
    # copied bit for bit, whatever its tensors mean
    recipe = {"vocabulary": "published", "merge_method": "passthrough", "models": [{"model": member}]}
    recipe |= {"keep_first": "(?s:.*)", "insist": True}
    return merging.plan(merging.parse_recipe(dump_yaml(recipe)), merging.open_model)


def _is_there(plan, out):
    """Say whether a place has what was exported from the same member, or is the same soup."""
    if not os.path.lexists(out):
        return False
    try:
        found = merging.read_record(out)
    except (OSError, ValueError):
        return False  # so that what is there is said to be in the way
    digests = {
        output.name: [[model, tensor, plan.checkpoints[model].digests.get(tensor)] for model, tensor in output.sources]
        for output in plan.outputs
    }
    made = [record(plan, digests), *_soup(plan)]
    return any(all(found[key] == one[key] for key in ("recipe", "inputs")) for one in made)


def _soup(plan):
    """Return the record of the merge that a member was made by, if it was."""
    (checkpoint,) = plan.checkpoints.values()
    made = innermost(checkpoint).record["metadata"].get("merge")
    return [made] if isinstance(made, dict) and made.get("format") == FORMAT else []


def _write(plan, out, kind, shard_bytes):
    (member,) = plan.job.models
    checkpoint = plan.checkpoints[member]
    files = files_of(checkpoint)
    _tell_unknown(member, checkpoint, files, kind)
    if kind != "huggingface" and files:
        tell(f"{out} holds tensors alone; not written: {few(map(shown, sorted(files)))}")
    with advance("exporting", plan.write_bytes) as progress:
        if kind == "huggingface":
            merging.merge_to_folder(plan, out, shard_bytes=shard_bytes, files=files, progress=progress)
        else:
            sink = merging.merge_to_orbax if kind == "orbax" else merging.merge_to_file
            sink(plan, out, progress=progress)
    for made in _soup(plan):  # by which the soup is made again, and not its copy
        beside = {name: value for name, value in merging.read_record(out).items() if name == "files"}
        note_record(pathlib.Path(out), made | beside)


def _tell_unknown(member, checkpoint, files, kind):
    config = [] if CONFIG in files or kind != "huggingface" else [CONFIG]
    if not is_named(checkpoint):
        what = ", ".join(["what its tensors were called", *config])
        tell(f"{member} came from no file, so this is not known: {what}; the names are those of the pool")
    elif config:
        tell(f"{member} came with no {CONFIG}, so there is none in the folder")
