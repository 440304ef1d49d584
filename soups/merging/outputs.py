"""Write what was chosen, where the same choice may have written before."""

import os

from soups.files import any_path
from soups.merging.folder import folder_files
from soups.merging.places import check_place, split_member
from soups.merging.planning import Plan
from soups.merging.record import note_record, read_record, record_beside
from soups.merging.run import merge_to_file, merge_to_folder, merge_to_orbax, merge_to_pool
from soups.merging.selecting import Selection
from soups.merging.trials import Trials, remove
from soups.stores import StorePath


def check_output(plan: Plan, out: str, kind: str, identity: str | None) -> None:
    """Look whether `write_output` can write there, before any work; `kind` as of `check_place`.

    `identity`: of the choice; None where that is not known yet.

    Raises:
        FileExistsError: what is there was not written by this choice.
        ValueError, OSError: as `check_place`.
    """
    if _record_of(out, identity) is None:
        try:
            check_place(plan, out, kind)
        except FileExistsError as error:
            raise FileExistsError(
                f"{out} exists, but was made by something else: give another --out; the same --work keeps the scores"
            ) from error


def write_output(
    trials: Trials, selection: Selection, out: str, kind: str, *, shard_bytes: int = 5_000_000_000
) -> bool:
    """Merge by the best recipe into an output whose record says how it was chosen; False if it is there already.

    What the same choice wrote there, when it had seen less, is replaced: it is there until the new one is complete, but
    for the moment in which they change places; on a store and in a pool it is removed first. Of one that is still the
    best the record is written anew, but in a pool.

    Raises:
        FileExistsError, ValueError, CheckpointError, OSError: as `merge_to_folder`.
    """
    plan, there = trials.plan(selection.recipe), _record_of(out, selection.identity)
    if there is not None and there["recipe"] == plan.job.text:
        if kind != "pool" and there["chosen"] != selection.record:
            note_record(any_path(out), {**there, "chosen": selection.record})
        return False
    options = {"threads": trials.threads, "chosen": selection.record}
    if kind == "pool":
        if there is not None:
            _remove_member(*split_member(out))
        merge_to_pool(plan, out, files=folder_files(plan), **options)
        return True
    path = any_path(out).absolute()
    better = path.with_name(f".better.{path.name}")
    if isinstance(path, StorePath):
        remove(path)
        there = None
    else:
        remove(better)  # of one that was killed
    fresh = path if there is None else better
    if kind == "huggingface":
        merge_to_folder(plan, fresh, shard_bytes=shard_bytes, files=folder_files(plan), **options)
    else:
        (merge_to_orbax if kind == "orbax" else merge_to_file)(plan, fresh, **options)
    if there is not None:
        _put(fresh, path)
    return True


def _put(fresh, path):
    if path.is_dir():
        remove(path)
        os.rename(fresh, path)
    else:  # the record last: while it is the old one, the same command merges again
        os.replace(fresh, path)
        os.replace(record_beside(fresh), record_beside(path))


def _record_of(out, identity) -> dict | None:
    """Return the record of what the choice of this identity wrote, or None."""
    try:
        found = read_record(out)
    except FileNotFoundError:
        return None
    chosen = found.get("chosen")
    ours = isinstance(chosen, dict) and "identity" in chosen and identity in (None, chosen["identity"])
    return found if ours else None


def _remove_member(pool: str, name: str) -> None:
    from soups.pool import Pool

    Pool(pool).remove(name)
