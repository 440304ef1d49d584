"""Carry a plan out: stream every tensor through its recipe into files that are there whole or not at all."""

import errno
import functools
import json
import os
import pathlib
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import xxhash

from soups import engine, tree
from soups.files import PathLike, any_path, cannot_write, replace_file, sync_folder
from soups.formats import Checkpoint, Writer, open_checkpoint
from soups.formats.folder import SINGLE
from soups.formats.hub import cached_model
from soups.formats.mapping import hash_files
from soups.formats.npz import write_npz
from soups.formats.tensors import nested
from soups.formats.weights import ALL
from soups.formats.write_far import FarWriter
from soups.lazy import orbax
from soups.merging import bands
from soups.merging.origin import NO_KEYS, innermost, is_named, kept_files
from soups.merging.places import check_place, held_place, split_member, sweep_unfinished, unfinished
from soups.merging.planning import Output, Plan
from soups.merging.record import (
    FORMAT,
    RECORD,
    Digests,
    changed_files,
    read_record,
    record,
    record_beside,
    write_record,
)
from soups.merging.sources import open_model, split_pool
from soups.stores import StorePath, is_store
from soups.workers import NUMBER, as_done, in_threads

THREADS = NUMBER  #: how many tensors are worked on at a time by default
FAR_THREADS = 8  #: and where they are read from a store, or written to one
Progress = Callable[[int], None]
File = bytes | str | pathlib.Path | Callable[[dict], str]
PLAN, _DIGESTS = "plan.json", "digests.json"


def merge_to_folder(
    plan: Plan,
    out: PathLike,
    *,
    threads: int = THREADS,
    shard_bytes: int = 5_000_000_000,
    files: Mapping[str, File] | None = None,
    chosen: Mapping[str, Any] | None = None,
    progress: Progress = lambda bytes_written: None,
) -> pathlib.Path | StorePath:
    """Merge into a folder of safetensors files and return its path, which appears only when it is complete.

    On an object store the shards appear one by one, and last the index by which they are read.

    A merge that was killed goes on with the shards that are not finished, if the recipe is the same and what went into
    the others has the same content. Random methods draw by the place of an element, so threads, blocks and restarts
    change nothing.

    Args:
        plan: from `soups.merging.plan`.
        out: a path where nothing is yet.
        threads: that compute side by side; forked processes where that is safe and there is much to do.
        shard_bytes: largest size of one file.
        files: further files of the folder by name, such as its config: text or bytes, the path of what is copied, or
            a function of the record of the merge. The record has their digests.
        chosen: what the record says of how this recipe was chosen, such as the evaluations.
        progress: called with the number of bytes written since the last call.

    Raises:
        FileExistsError: something is at `out`.
        BlockingIOError: another merge writes there.
        ValueError: as `check_place`; NaN or infinity in a member, with its name and the tensor's; tensors that are not
            floats and differ; a merged tensor that overflows.
        CheckpointError: an input changed since it was planned.
        OSError: the disk is full or cannot be written to.
    """
    if isinstance(far := any_path(out), StorePath):
        from soups.merging.streaming import merge_to_store

        options = {"threads": threads, "files": files or {}, "chosen": chosen, "progress": progress}
        return merge_to_store(plan, far, shard_bytes=shard_bytes, **options)
    with held_place(plan, out) as place:
        folder = _write_folder(plan, place, threads, shard_bytes, files or {}, chosen, progress, place)
        os.rename(folder, place)
    return place


def merge_to_file(
    plan: Plan,
    out: PathLike,
    *,
    threads: int = THREADS,
    chosen: Mapping[str, Any] | None = None,
    progress: Progress = lambda bytes_written: None,
) -> pathlib.Path | StorePath:
    """Merge into one file, .safetensors or .npz as its name ends, and return its path; it is there whole or not at all.

    The record lies beside it, in OUT.merge.json. It is written as a folder first, so that a merge that was killed goes
    on; an .npz takes twice its size on the disk meanwhile. An .npz has no place for tied tensors: they are there once.

    Raises:
        FileExistsError, BlockingIOError, ValueError, CheckpointError, OSError: as `merge_to_folder`.
    """
    if isinstance(far := any_path(out), StorePath):
        from soups.merging.streaming import merge_to_store

        options = {"threads": threads, "files": {}, "chosen": chosen, "progress": progress}
        return merge_to_store(plan, far, shard_bytes=None, **options)
    with held_place(plan, out, "file") as place:
        folder = _write_folder(plan, place, threads, sys.maxsize, {}, chosen, progress, place.parent)
        single = _as_npz(folder, plan) if place.suffix == ".npz" else folder / SINGLE[0]
        os.replace(folder / RECORD, record_beside(place))
        os.rename(single, place)
        sync_folder(place.parent)
        shutil.rmtree(folder)
    return place


def _as_npz(folder, plan):
    """Write what was merged as an .npz beside it, and return its path; the end lets go of the file, for Windows."""
    merged = open_checkpoint(folder / SINGLE[0])
    return write_npz(folder / "model.npz", {output.name: merged.read(output.name) for output in plan.outputs})


def _write_folder(plan, out, threads, shard_bytes, files, chosen, progress, around):
    """Return the unfinished folder of an output, with all that belongs into it; its record will lie in `around`."""
    folder, digests = _unfinished(out, plan, shard_bytes)
    with Writer(folder, specs(plan), shard_bytes=shard_bytes, metadata=metadata(plan)) as writer:
        write_shards(plan, writer, folder, digests, threads, progress, fork=plan.worth_processes)
        writer.finish()
        made = with_files(folder, files, record(plan, digests, chosen))
        write_record(folder / RECORD, made, around)
        writer.forget()  # last: until here a killed merge goes on with what is finished
    for helper in (_DIGESTS, PLAN):
        (folder / helper).unlink(missing_ok=True)
    return folder


def specs(plan: Plan) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """Return shape and dtype of each tensor of the output."""
    return {output.name: (output.shape, output.dtype) for output in plan.outputs}


def metadata(plan: Plan) -> dict[str, str]:
    """Return the metadata of the output's files: tied tensors are noted as torch's helper of the format does it."""
    return {"format": "pt", **plan.aliases}


def write_shards(
    plan: Plan,
    writer: Writer | FarWriter,
    notes: pathlib.Path | StorePath,
    digests: Digests,
    threads: int,
    progress: Progress,
    *,
    fork: bool = False,
) -> None:
    """Merge into the shards that are not finished; `digests` gets those of what went in, which a folder keeps."""
    outputs, shared = {output.name: output for output in plan.outputs}, measure_model(plan)

    def make(name):
        found = {}
        for start, block in merged_blocks(plan, outputs[name], shared, found):
            writer.write(name, block, start)
        return name, found, writer.written(name)

    for shard, names in writer.shards.items():
        if writer.is_done(shard) and all(name in digests for name in names):
            progress(sum(outputs[name].nbytes for name in names))
            continue
        for name, found, written in as_done(make, names, threads, fork=fork):
            digests |= found
            writer.note_written(name, written)
            progress(outputs[name].nbytes)
        write_digests(notes, digests)  # before the shard counts as finished
        writer.finish_shard(shard)


def with_files(folder: pathlib.Path | StorePath, files: Mapping[str, File], made: dict) -> dict:
    """Write further files, which may be functions of the record, and return the record with their digests."""
    for name, content in files.items():
        replace_file(folder / name, content(made) if callable(content) else content)
    return made | ({"files": {name: hash_files(folder / name) for name in sorted(files)}} if files else {})


def merge_to_orbax(
    plan: Plan,
    out: PathLike,
    *,
    threads: int = THREADS,
    chosen: Mapping[str, Any] | None = None,
    progress: Progress = lambda bytes_merged: None,
) -> pathlib.Path:
    """Merge into an Orbax checkpoint and return its path, which appears only when it is complete.

    The output is in memory until it is saved. Names become nested dicts at each "/", or at each "." where no name has
    a "/". The record lies beside the checkpoint's own files, in merge.json. `chosen`: as for `merge_to_folder`.

    Raises:
        FileExistsError, BlockingIOError, ValueError, CheckpointError, OSError: as `merge_to_folder`.
    """
    with held_place(plan, out, "orbax") as place:
        merged, made = merge_in_memory(plan, threads, chosen, progress)
        orbax.save_checkpoint(begin_orbax(place, plan.write_bytes), nested(merged))
        finish_orbax(place, made)
    return place


def begin_orbax(out: pathlib.Path, nbytes: int) -> pathlib.Path:
    """Return the path to save the checkpoint at that becomes `out`, where nothing that was killed is left.

    Raises:
        OSError: there are no `nbytes` left on the disk; Orbax would go on writing after it found that out.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    sweep_unfinished(out)
    if (free := shutil.disk_usage(out.parent).free) < nbytes:
        raise OSError(
            errno.ENOSPC, f"{os.strerror(errno.ENOSPC)}: {nbytes} bytes are needed, {free} are left", str(out)
        )
    return unfinished(out)


def finish_orbax(out: pathlib.Path, made: dict) -> None:
    """Add the record to a saved checkpoint and let it appear."""
    write_record(unfinished(out) / RECORD, made, out)
    os.rename(unfinished(out), out)


def merge_to_pool(
    plan: Plan,
    out: str,
    *,
    threads: int = THREADS,
    files: Mapping[str, File] | None = None,
    chosen: Mapping[str, Any] | None = None,
    progress: Progress = lambda bytes_merged: None,
) -> dict:
    """Merge into the member POOL:NAME and return its record; it is there whole or not at all.

    The output is in memory until it is saved. Names become nested dicts as in `merge_to_orbax`; those that they were,
    and the `files` of `merge_to_folder`, are kept with the member, so that it is merged and exported as such a folder.
    What `merge.json` says of other outputs is in the member's metadata as "merge". Its base is that of the pool if all
    that was merged is of this pool.

    Raises:
        ValueError: as `check_place` and `merge_to_folder`.
        CheckpointError, OSError: as `merge_to_folder`.
    """
    from soups.pool import Pool

    check_place(plan, out, "pool")
    path, name = split_member(out)
    merged, made = merge_in_memory(plan, threads, chosen, progress)
    pool = Pool(path)
    own = all(split_pool(model)[0] == path for model in plan.job.models)
    kept = kept_with(plan, files or {}, made)
    return pool.add(name, nested(merged), {"merge": made}, base=pool.base if own else None, files=kept)


def kept_with(
    plan: Plan, files: Mapping[str, File], made: Mapping[str, Any], keys: Mapping[str, Iterable[str]] = NO_KEYS
) -> dict[str, File]:
    """Return what a pool keeps with a merged member: names, ties, and files, which may be functions of the record."""
    files = {name: content(made) if callable(content) else content for name, content in files.items()}
    named = is_named(plan.checkpoints[plan.job.models[0]])
    names = [output.name for output in plan.outputs] if named else None
    return kept_files(names, files, keys=keys, aliases=plan.aliases) if named or files else {}


def merge_in_memory(
    plan: Plan,
    threads: int = THREADS,
    chosen: Mapping[str, Any] | None = None,
    progress: Progress = lambda bytes_merged: None,
) -> tuple[dict[str, np.ndarray], dict]:
    """Return the merged tensors by name, and the record of the merge; errors are those of `merge_to_folder`."""
    shared, digests = measure_model(plan), {}
    merged = {output.name: np.empty(output.shape, output.dtype) for output in plan.outputs}

    def make(output):
        flat = merged[output.name].reshape(-1)
        for start, block in merged_blocks(plan, output, shared, digests):
            flat[start : start + block.size] = block
            progress(block.nbytes)

    in_threads(make, plan.outputs, threads)
    return merged, record(plan, digests, chosen)


def verify_output(
    plan: Plan, out: PathLike, *, threads: int = THREADS, progress: Progress = lambda bytes_compared: None
) -> list[str]:
    """Merge again and list what in an output is not what its recipe and its inputs give, bit for bit.

    `out`: a folder, a file, an Orbax checkpoint, or POOL:NAME. Inputs that are not those of its record, by their
    digests, are named too, and so are files of a folder that are not those that were written. What was merged on
    devices may differ where a compiler rounds otherwise than NumPy.

    Raises:
        FileNotFoundError: there is no record, as `read_record`.
        CheckpointError: as `open_model`, of the output.
        ValueError: as `merge_to_folder`.
    """
    found, there = read_record(out), open_model(f"{cached_model(str(out))}@{ALL}")
    shared, digests = measure_model(plan), {}
    names = {output.name: output.name for output in plan.outputs}
    if (not isinstance(there, Checkpoint) or there.keys) and not getattr(there, "named", False):
        names = {leaf: name for name, leaf in tree.flatten(nested({name: name for name in names})).items()}
    different = [f"{name} is extra" for name in there.leaves if name not in names.values()]
    different += changed_files(found, there.path)

    def compare(place):
        output, inputs = plan.outputs[place], {}
        expected, first = _stored(there, names[output.name], output), None
        for start, block in merged_blocks(plan, output, shared, inputs):
            if expected is not None and first is None:
                first = _first_difference(expected[start : start + block.size], block, start)
        if expected is None:
            return output.nbytes, inputs, f"{output.name} is missing, or has another shape or dtype"
        return output.nbytes, inputs, None if first is None else f"{output.name} differs from element {first} on"

    for nbytes, inputs, problem in as_done(compare, range(len(plan.outputs)), threads, fork=plan.worth_processes):
        digests |= inputs
        different += [problem] if problem else []
        progress(nbytes)
    stored, now = found["inputs"], record(plan, digests)["inputs"]
    changed = [model for model in now if stored.get(model, {}).get("digest") != now[model]["digest"]]
    return sorted(different) + [f"{model} is not the model that was merged: its tensors changed" for model in changed]


def _leaf(plan, output, digests):
    """Return what the engine makes one tensor of the output from; `digests` gets those of all tensors that went in."""
    pairs = output.sources
    models = [plan.checkpoints[model] for model, _ in pairs]

    def read():
        # torch files may hold a tensor in any order of its axes
        arrays = side_by_side(
            [functools.partial(model.map, tensor) for model, (_, tensor) in zip(models, pairs, strict=True)], models
        )
        return [np.ascontiguousarray(array).reshape(array.shape) for array in arrays]

    def passed(found):
        for model, (_, tensor), digest in zip(models, pairs, found, strict=True):
            model.check_leaf(tensor, digest)
        digests[output.name] = [[*pair, digest] for pair, digest in zip(pairs, found, strict=True)]

    labels = [f"{model}: {tensor}" for model, tensor in pairs]
    has_base = output.base is not None
    return engine.Leaf(output.name, output.shape, output.dtype, output.recipe, read, labels, has_base, passed)


def merged_blocks(plan: Plan, output: Output, shared, digests: Digests) -> Iterator[tuple[int, np.ndarray]]:
    """Return (first element, merged elements [n]) of one tensor of the output, block after block.

    `shared`: what the recipe measured, if its scope is the model.
    """
    leaf, at_least = _leaf(plan, output, digests), plan.job.dtype or np.float32
    cut = bands.cut(plan.checkpoints, output)
    if len(cut) == 1:
        return engine.blocks(leaf, shared, at_least)
    return bands.blocks(leaf, cut, _reader(plan, output), shared, at_least)


def _reader(plan, output):
    """Return what reads a band of all that a tensor of the output is made of."""
    models = [plan.checkpoints[model] for model, _ in output.sources]

    def read(band):
        reads = [
            functools.partial(model.read, tensor, (band, ...))
            for model, (_, tensor) in zip(models, output.sources, strict=True)
        ]
        return side_by_side(reads, models)

    return read


def threads_for(plan: Plan, out: PathLike) -> int:
    """Return how many tensors are worked on at a time by default: more where threads wait for a store."""
    return max(THREADS, FAR_THREADS) if is_store(out) or _is_far(plan.checkpoints.values()) else THREADS


def _is_far(models):
    return any(isinstance(getattr(model, "directory", None), StorePath) for model in map(innermost, models))


def side_by_side(reads, models):
    """Return what each function reads, all of them at a time where they wait for a store."""
    if _is_far(models):
        return in_threads(lambda read: read(), reads, len(reads))
    return [read() for read in reads]


def measure_model(plan: Plan) -> Any:
    """Measure what a method of scope "model" needs, over all tensors."""
    outputs = [output for output in plan.outputs if output.recipe]
    if not outputs or outputs[0].recipe.scope != "model":
        return None
    leaves = []
    for output in outputs:
        cut = bands.cut(plan.checkpoints, output)
        leaves += bands.banded(_leaf(plan, output, {}), cut, _reader(plan, output))
    return engine.measure_model(leaves, plan.job.dtype or np.float32)


def _stored(there, name, output):
    """Return the elements of a tensor that was written, or None if it is not as planned."""
    leaf = there.leaves.get(name)
    if leaf is None or (leaf.shape, leaf.dtype) != (output.shape, output.dtype):
        return None
    return there.read(name).reshape(-1)


def _first_difference(a, b, start):
    if a.tobytes() == b.tobytes():
        return None
    different = (np.ascontiguousarray(x).view(np.uint8).reshape(-1, x.dtype.itemsize) for x in (a, b))
    return start + int(np.flatnonzero(np.not_equal(*different).any(axis=1))[0])


# --- Going on ---------------------------------------------------------------------------------------------------------


def _unfinished(out, plan, shard_bytes):
    """Return the folder that the merge is made in, and the digests of what went into the shards that are there.

    An earlier folder is gone on with if it is of the same recipe and what went into its shards has not changed, by its
    content; else it is begun anew.
    """
    folder = unfinished(out)
    wanted, digests = identity(plan, shard_bytes), known_digests(folder)
    finished = any(folder.glob("*.done"))
    same = read_state(folder / PLAN) == wanted and bool(digests) >= finished and still_same(plan, digests)
    if folder.exists() and not same:
        shutil.rmtree(folder)
        digests = {}
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(folder, error) from error
    replace_file(folder / PLAN, json.dumps(wanted))
    return folder, digests


def identity(plan: Plan, shard_bytes: int) -> dict[str, Any]:
    """Return what an unfinished output must be of to be gone on with."""
    outputs = [[output.name, list(output.shape), str(output.dtype)] for output in plan.outputs]
    return {"format": FORMAT, "shard_bytes": shard_bytes, "job": repr(plan.job), "outputs": outputs}


def read_state(path: pathlib.Path | StorePath) -> Any:
    """Return what is in a file of JSON; None if it is not whole."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None


def known_digests(folder: pathlib.Path | StorePath) -> Digests:
    """Return the digests of what went into the shards of an unfinished output."""
    state = read_state(folder / _DIGESTS)
    whole = isinstance(state, dict) and state.get("xxh3_128") == _digest_of_json(state.get("digests"))
    return state["digests"] if whole else {}


def write_digests(folder: pathlib.Path | StorePath, digests: Digests) -> None:
    """Write down the digests of what went into the shards so far."""
    replace_file(folder / _DIGESTS, json.dumps({"xxh3_128": _digest_of_json(digests), "digests": digests}))


def _digest_of_json(value):
    return xxhash.xxh3_128_hexdigest(json.dumps(value, sort_keys=True).encode())


def still_same(plan: Plan, digests: Digests) -> bool:
    """Say whether all that went into finished shards has the content that it had."""
    pairs = {(model, tensor): digest for found in digests.values() for model, tensor, digest in found}

    def same(pair):
        (model, tensor), digest = pair
        checkpoint = plan.checkpoints.get(model)
        if checkpoint is None or tensor not in {*checkpoint.leaves, *checkpoint.aliases}:
            return False
        return bands.digest_of(checkpoint, tensor) == digest

    return all(in_threads(same, pairs.items()))
