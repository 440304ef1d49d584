"""Carry a plan out: stream every tensor through its recipe into files that are there whole or not at all."""

import concurrent.futures
import contextlib
import ctypes
import dataclasses
import errno
import functools
import json
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator

import ml_dtypes
import numpy as np
import xxhash

from soups import engine, tree
from soups.files import cannot_write, replace_file
from soups.formats import Checkpoint, Writer
from soups.formats.weights import ALL
from soups.merging.lock import one_at_a_time
from soups.merging.plan import Output, Plan, check_places
from soups.merging.sources import open_model
from soups.pool import Pool, save_checkpoint

FORMAT = "soups.merge/1"
THREADS = engine.THREADS
Progress = Callable[[int], None]
Digests = dict[str, list[list[str]]]  # by output: model, tensor and digest of all that went in


@one_at_a_time
def merge_to_folder(
    plan: Plan,
    out,
    *,
    threads: int = THREADS,
    shard_bytes: int = 5_000_000_000,
    files: dict[str, bytes | str] | None = None,
    progress: Progress = lambda bytes_written: None,
) -> pathlib.Path:
    """Merge into a folder of safetensors files and give its path, which appears only when it is complete.

    A merge that was killed goes on with the shards that are not finished, if recipe and inputs are the same. Random
    methods draw by the place of an element, so threads, blocks and restarts change nothing.

    Args:
        plan: from `soups.merging.plan`.
        out: a path where nothing is yet.
        threads: that compute side by side.
        shard_bytes: largest size of one file.
        files: further files of the folder by name, such as its config.
        progress: called with the number of bytes written since the last call, from any thread.

    Raises:
        FileExistsError: something is at `out`.
        BlockingIOError: another merge writes there.
        ValueError: NaN or infinity in a member, with its name and the tensor's; tensors that are not floats and differ;
            a merged tensor that overflows.
        CheckpointError: an input changed since it was planned.
        OSError: the disk is full or cannot be written to.
    """
    out = pathlib.Path(out).absolute()
    if out.exists():
        raise FileExistsError(f"{out} exists: a merge is written to a new place")
    folder = _unfinished(out, plan, shard_bytes)
    outputs = {output.name: output for output in plan.outputs}
    specs = {name: (output.shape, output.dtype) for name, output in outputs.items()}
    # tied tensors are noted as torch's helper of the format does it
    metadata = {"format": "pt", **plan.aliases}
    known, shared = folder / "digests.json", _measure_model(plan)
    digests: Digests = json.loads(known.read_text()) if known.exists() else {}
    with Writer(folder, specs, shard_bytes=shard_bytes, metadata=metadata) as writer:

        def make(name):
            for start, block in merged_blocks(plan, outputs[name], shared, digests):
                writer.write(name, block, start)
                progress(block.nbytes)

        for shard, names in writer.shards.items():
            if writer.is_done(shard):
                progress(sum(outputs[name].nbytes for name in names))
                continue
            run_in_threads(make, names, threads)
            replace_file(known, json.dumps(digests))  # before the shard counts as finished
            writer.finish_shard(shard)
        writer.finish()
    for name, content in (files or {}).items():
        replace_file(folder / name, content)
    replace_file(folder / "merge.json", json.dumps(record(plan, digests), indent=1) + "\n")
    for helper in ("digests.json", "plan.json"):
        (folder / helper).unlink(missing_ok=True)
    os.rename(folder, out)
    return out


@one_at_a_time
def merge_to_orbax(
    plan: Plan, out, *, threads: int = THREADS, progress: Progress = lambda bytes_merged: None
) -> pathlib.Path:
    """Merge into an Orbax checkpoint and give its path, which appears only when it is complete.

    The output is in memory until it is saved. Names become nested dicts at each "/", or at each "." where no name has
    a "/". The record lies beside the checkpoint's own files, in merge.json.

    Raises:
        FileExistsError, BlockingIOError, ValueError, CheckpointError, OSError: as `merge_to_folder`.
    """
    check_places(plan)
    out = pathlib.Path(out).absolute()
    if out.exists():
        raise FileExistsError(f"{out} exists: a merge is written to a new place")
    merged, made = merge_in_memory(plan, threads, progress)
    unfinished = out.with_name(f".{out.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    save_checkpoint(unfinished, merged)
    replace_file(unfinished / "merge.json", json.dumps(made, indent=1) + "\n")
    os.rename(unfinished, out)
    return out


def merge_in_memory(plan: Plan, threads: int, progress: Progress) -> tuple[dict, dict]:
    """Merge into nested dicts of NumPy arrays, and give them and the record.

    Raises:
        ValueError, CheckpointError: as `merge_to_folder`.
    """
    shared, digests = _measure_model(plan), {}
    merged = {output.name: np.empty(output.shape, output.dtype) for output in plan.outputs}

    def make(output):
        flat = merged[output.name].reshape(-1)
        for start, block in merged_blocks(plan, output, shared, digests):
            flat[start : start + block.size] = block
            progress(block.nbytes)

    run_in_threads(make, plan.outputs, threads)
    return nested(merged), record(plan, digests)


def verify_output(
    plan: Plan, out, *, threads: int = THREADS, progress: Progress = lambda bytes_compared: None
) -> list[str]:
    """Merge again and list what in an output is not what its recipe and its inputs give, bit for bit.

    `out`: a folder, an Orbax checkpoint, or POOL:NAME. Inputs that are not those of its record, by their digests, are
    named too. What was merged on devices may differ where a compiler rounds otherwise than NumPy.

    Raises:
        FileNotFoundError: there is no record, as `read_record`.
        CheckpointError: as `open_model`, of the output.
        ValueError: as `merge_to_folder`.
    """
    stored, there = read_record(out)["inputs"], open_model(f"{out}@{ALL}")
    shared, digests = _measure_model(plan), {}
    names = {output.name: output.name for output in plan.outputs}
    if not isinstance(there, Checkpoint):
        names = {leaf: name for name, leaf in tree.flatten(nested({name: name for name in names})).items()}
    different = [f"{name} is extra" for name in there.leaves if name not in names.values()]

    def compare(output):
        expected, first = _stored(there, names[output.name], output), None
        for start, block in merged_blocks(plan, output, shared, digests):
            if expected is not None and first is None:
                first = _first_difference(expected[start : start + block.size], block, start)
            progress(block.nbytes)
        if expected is None:
            different.append(f"{output.name} is missing, or of another shape or dtype")
        elif first is not None:
            different.append(f"{output.name} differs from element {first} on")

    run_in_threads(compare, plan.outputs, threads)
    now = record(plan, digests)["inputs"]
    changed = [model for model in now if stored.get(model, {}).get("digest") != now[model]["digest"]]
    return sorted(different) + [f"{model} is not the model that was merged: its tensors changed" for model in changed]


def read_record(out) -> dict:
    """Give the record of a merge: of a folder or an Orbax checkpoint, or of a member POOL:NAME.

    Raises:
        FileNotFoundError: this program did not write it.
    """
    if (note := pathlib.Path(out) / "merge.json").is_file():
        return json.loads(note.read_text())
    pool, _, name = str(out).rpartition(":")
    members = Pool(pool) if pool else {}
    if name in members and "merge" in members.record(name)["metadata"]:
        return members.record(name)["metadata"]["merge"]
    raise FileNotFoundError(f"{out} has no record of a merge: no merge.json, nor is it a member POOL:NAME with one")


def merged_blocks(plan: Plan, output: Output, shared, digests: Digests) -> Iterator[tuple[int, np.ndarray]]:
    """Give (first element, merged elements [n]) of one tensor of the output, block after block.

    `shared`: what the recipe measured, if its scope is the model. After the last block `digests` has the digests of
    all tensors that went in.
    """
    pairs, arrays = _inputs(plan, output)
    hashes = [xxhash.xxh3_128() for _ in pairs]
    if output.recipe is None:
        yield from _copied(output, pairs, arrays, hashes)
    else:
        yield from _merged(plan, output, pairs, arrays, hashes, shared)
    digests[output.name] = [[*pair, digest.hexdigest()] for pair, digest in zip(pairs, hashes, strict=True)]


def record(plan: Plan, digests: Digests) -> dict:
    """Give what is needed to make the same merge again: recipe, versions, and a digest of each input's tensors."""
    import soups

    job = plan.job
    inputs = {
        model: {"path": str(plan.checkpoints[model].path), **_summary(digests, model)} for model in plan.checkpoints
    }
    return {
        "format": FORMAT,
        "method": job.method,
        "vocabulary": job.vocabulary,
        "seed": job.seed,
        "recipe": job.text,
        "inputs": inputs,
        "versions": {"soups": soups.__version__, "numpy": np.__version__},
    }


def run_in_threads(function, items, threads: int) -> None:
    """Call `function` with each item, several at a time; the first error ends all."""
    _keep_freed_blocks()
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        futures = [pool.submit(_quiet, function, item) for item in items]
        try:
            for future in concurrent.futures.as_completed(futures):
                future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


@functools.cache
def _keep_freed_blocks() -> None:
    # glibc gives the memory of every freed block back to the kernel, which then clears it page by page for the next
    # one: ten times the cost of the arithmetic. So it keeps up to 256 MB, and maps only what is larger than 8 MB.
    with contextlib.suppress(OSError, AttributeError):  # another C library does as it likes
        libc = ctypes.CDLL(None)
        trim_threshold, top_pad, mmap_threshold = -1, -2, -3
        libc.mallopt(trim_threshold, 2**28)
        libc.mallopt(top_pad, 2**26)
        libc.mallopt(mmap_threshold, 2**23)


def _quiet(function, item):
    with np.errstate(all="ignore"):  # what is not finite is an error with a name, below
        function(item)


def _inputs(plan, output):
    pairs = [*output.members, *([output.base] if output.base else [])]
    # torch files may hold a tensor in any order of its axes
    return pairs, [np.ascontiguousarray(plan.checkpoints[model].read(tensor)) for model, tensor in pairs]


def _parts(plan, output, pairs, arrays, checked: set[int]) -> Iterator[engine.Part]:
    """Give the parts of a tensor, looked at when they are first gone through: no statistic is made of a NaN."""
    number = len(output.members)
    base = arrays[number] if output.base else None
    for part in engine.parts(output.name, arrays[:number], base, output.recipe.unit):
        if part.start not in checked:
            _check_members(pairs, part)
            checked.add(part.start)
        yield _in_float64(part) if plan.job.dtype == np.float64 else part


def _in_float64(part):
    base = None if part.base is None else part.base.astype(np.float64)
    return dataclasses.replace(part, leaves=[leaf.astype(np.float64) for leaf in part.leaves], base=base)


def _merged(plan, output, pairs, arrays, hashes, shared):
    recipe, checked = output.recipe, set()

    def parts():
        return _parts(plan, output, pairs, arrays, checked)

    measured = shared if recipe.scope == "model" else recipe.measure(parts)
    flat = [array.reshape(-1) for array in arrays]
    for part in parts():
        # a whole leaf may have files of other sizes beside it
        here = slice(None) if recipe.unit == "leaf" else slice(part.start, part.start + part.leaves[0].size)
        for digest, array in zip(hashes, flat, strict=True):
            digest.update(array[here].view(np.uint8))
        block = recipe.merge(part, measured).reshape(-1)
        narrow = engine.narrow(block, output.dtype)
        _check_result(output, block, narrow)
        yield part.start, narrow


def _check_members(pairs, part):
    # a NaN makes the sum NaN; comparisons, as in TIES, would pass over it
    seen = [*part.leaves, *([] if part.base is None else [part.base])]
    if not np.isfinite(sum(engine.total(np, array) for array in seen)):
        for (model, tensor), array in zip(pairs, seen, strict=True):
            if not np.isfinite(array).all():
                raise ValueError(f"{model}: {tensor} holds NaN or infinity; leave this model out")


def _check_result(output, block, narrow):
    if not np.isfinite(engine.total(np, block)) and not np.isfinite(block).all():
        raise ValueError(f"the merged tensor {output.name} overflows, though no member does")
    if narrow.dtype.itemsize < block.dtype.itemsize:
        limit = float(ml_dtypes.finfo(narrow.dtype).max)
        if max(block.max(), -block.min()) > limit and not np.isfinite(narrow).all():
            raise ValueError(f"the merged tensor {output.name} overflows {narrow.dtype}: choose a wider out_dtype")


def _copied(output, pairs, arrays, hashes):
    flat = [array.reshape(-1) for array in arrays]
    for pair, digest, array in zip(pairs, hashes, flat, strict=True):
        digest.update(array.view(np.uint8))
        if not np.array_equal(array, flat[0]):
            raise ValueError(
                f"tensor {output.name} is not of floats and is copied, so it must be the same in all models: "
                f"{pair[0]} differs from {pairs[0][0]}"
            )
    yield 0, engine.narrow(flat[0], output.dtype)


def _measure_model(plan):
    """Measure what a method of scope "model" needs, over all tensors."""
    outputs = [output for output in plan.outputs if output.recipe is not None]
    if not outputs or outputs[0].recipe.scope != "model":
        return None
    checked = {output.name: set() for output in outputs}

    def parts():
        for output in outputs:
            yield from _parts(plan, output, *_inputs(plan, output), checked[output.name])

    with np.errstate(all="ignore"):
        return outputs[0].recipe.measure(parts)


def _summary(digests, model):
    """Give how many tensors of a model went in, and one digest of them all."""
    tensors = sorted(
        {(tensor, digest) for found in digests.values() for name, tensor, digest in found if name == model}
    )
    return {"tensors": len(tensors), "digest": xxhash.xxh3_128_hexdigest(json.dumps(tensors).encode())}


def nested(leaves):
    """Give nested dicts of leaves by name: names are cut at each "/", or at each "." where no name has a "/"."""
    separator = "/" if any("/" in name for name in leaves) else "."
    top = {}
    for name, leaf in leaves.items():
        *folders, last = name.split(separator)
        functools.reduce(lambda node, key: node.setdefault(key, {}), folders, top)[last] = leaf
    return top


def _stored(there, name, output):
    """Give the elements of a tensor that was written, or None if it is not as planned."""
    leaf = there.leaves.get(name)
    if leaf is None or (leaf.shape, leaf.dtype) != (output.shape, output.dtype):
        return None
    return there.read(name).reshape(-1)


def _first_difference(a, b, start):
    if a.tobytes() == b.tobytes():
        return None
    different = (np.ascontiguousarray(x).view(np.uint8).reshape(-1, x.dtype.itemsize) for x in (a, b))
    return start + int(np.flatnonzero(np.not_equal(*different).any(axis=1))[0])


def _unfinished(out, plan, shard_bytes):
    """Give the folder that the merge is made in: an earlier one of the same merge, or a new one."""
    folder = out.with_name(f".{out.name}.unfinished")
    sizes = {file: size for checkpoint in plan.checkpoints.values() for file, size in checkpoint.sizes.items()}
    files = {str(file.absolute()): [size, file.stat().st_mtime_ns] for file, size in sizes.items()}
    identity = {
        "format": FORMAT,
        "shard_bytes": shard_bytes,
        "text": plan.job.text,
        "job": repr(plan.job),
        "files": files,
        "outputs": [[output.name, list(output.shape), str(output.dtype)] for output in plan.outputs],
    }
    note = folder / "plan.json"
    if folder.exists() and not (note.exists() and json.loads(note.read_text()) == identity):
        shutil.rmtree(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:  # what should be a folder above it is a file
        raise cannot_write(folder, NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))) from error
    except OSError as error:
        raise cannot_write(folder, error) from error
    replace_file(note, json.dumps(identity))
    return folder
