"""Merge to an object store as the tensors are made: no folder of this machine holds the output meanwhile.

OUT/model-00001-of-00002.safetensors     each shard when it is complete, then the other files, and last the index
.OUT.unfinished/                         the plan, and notes on finished shards, until all is there
.OUT.lock                                the lease of the process that merges
"""

import json
import sys
from collections.abc import Mapping
from typing import Any

from soups.files import replace_file
from soups.formats.write_far import FarWriter
from soups.merging import run
from soups.merging.places import held_place, unfinished
from soups.merging.planning import Plan
from soups.merging.record import RECORD, record, record_beside, write_record
from soups.stores import StorePath


def merge_to_store(
    plan: Plan,
    out: StorePath,
    *,
    threads: int,
    shard_bytes: int | None,
    files: Mapping[str, "run.File"],
    chosen: Mapping[str, Any] | None,
    progress: "run.Progress",
) -> StorePath:
    """Merge into a folder of a store, or without `shard_bytes` into one file; else as `merge_to_folder`."""
    single = shard_bytes is None
    with held_place(plan, out, "file" if single else "huggingface") as place:
        state = unfinished(place)
        digests = _begin(plan, place, state, shard_bytes or sys.maxsize)
        options = {"metadata": run.metadata(plan), "single": single}
        with FarWriter(place, state, run.specs(plan), shard_bytes=shard_bytes or sys.maxsize, **options) as writer:
            run.write_shards(plan, writer, state, digests, threads, progress)
            made = run.with_files(place, files, record(plan, digests, chosen))
            note = record_beside(place) if single else place / RECORD
            write_record(note, made, note.parent)
            writer.finish()
        state.delete_below()
    return place


def _begin(plan, place, state, shard_bytes):
    """Return the digests of what went into the shards that are there; what is of another merge is deleted."""
    identity, digests = run.identity(plan, shard_bytes), run.known_digests(state)
    finished = any(path.name.endswith(".done") for path in state.iterdir())
    there = run.read_state(state / run.PLAN)
    if there != identity or bool(digests) < finished or not run.still_same(plan, digests):
        if there is not None:  # else nothing of a merge is there
            place.delete_below()
        state.delete_below()
        digests = {}
    replace_file(state / run.PLAN, json.dumps(identity))
    return digests
