"""Carry a plan out: stream every tensor through its recipe into files that are there whole or not at all."""

import concurrent.futures
import contextlib
import ctypes
import dataclasses
import functools
import json
import os
import pathlib
import shutil
import threading
from collections.abc import Callable, Iterator

import numpy as np
import xxhash

from soups.files import replace_file
from soups.merging.plan import Output, Plan
from soups.pool.formats import Writer
from soups.recipes import _leafwise

FORMAT = "soups.merge/1"
THREADS = _leafwise.THREADS
Progress = Callable[[int], None]


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
        ValueError: NaN or infinity in a member, with its name and the tensor's; tensors that are not floats and differ.
        CheckpointError: an input changed since it was planned.
        OSError: the disk is full or cannot be written to.
    """
    out = pathlib.Path(out).absolute()
    if out.exists():
        raise FileExistsError(f"{out} exists: a merge is written to a new place")
    folder = _unfinished(out, plan)
    outputs = {output.name: output for output in plan.outputs}
    specs = {name: (output.shape, output.dtype) for name, output in outputs.items()}
    digests = _Digests(folder / "digests.json")
    shared = _measure_model(plan)
    with Writer(folder, specs, shard_bytes=shard_bytes, metadata={"format": "pt"}) as writer:
        for shard, names in writer.shards.items():
            if writer.is_done(shard) and digests.knows(names):
                progress(sum(_nbytes(outputs[name]) for name in names))
                continue

            def make(name):
                for start, block in merged_blocks(plan, outputs[name], shared, digests.of(name)):
                    writer.write(name, block, start)
                    progress(block.nbytes)

            run_in_threads(make, names, threads)
            digests.keep(names)
            writer.finish_shard(shard)
        writer.finish()
    for name, content in (files or {}).items():
        replace_file(folder / name, content)
    replace_file(folder / "merge.json", json.dumps(record(plan, digests), indent=1) + "\n")
    for helper in ("digests.json", "plan.json"):
        (folder / helper).unlink(missing_ok=True)
    os.rename(folder, out)
    return out


def verify_folder(plan: Plan, folder, *, threads: int = THREADS, progress: Progress = lambda size: None):
    """Merge again and list the tensors of a folder that are not what its recipe and inputs give, bit for bit."""
    from soups.pool.formats import open_checkpoint

    there = open_checkpoint(folder)
    shared, different = _measure_model(plan), []

    def compare(output):
        if output.name not in there.leaves:
            different.append(f"{output.name} is missing")
            return
        stored = np.ascontiguousarray(there.read(output.name)).reshape(-1)
        for start, block in merged_blocks(plan, output, shared, {}):
            here = stored[start : start + block.size]
            if here.dtype != block.dtype or here.tobytes() != np.ascontiguousarray(block).tobytes():
                different.append(f"{output.name} differs from element {start} on")
                return
            progress(block.nbytes)

    run_in_threads(compare, plan.outputs, threads)
    return sorted(different) + [
        f"{name} is extra" for name in there.leaves if name not in {o.name for o in plan.outputs}
    ]


def merged_blocks(plan: Plan, output: Output, shared, digests: dict) -> Iterator[tuple[int, np.ndarray]]:
    """Give (first element, merged elements [n]) of one tensor of the output, block after block.

    `digests` is filled with the digest of every tensor that went in.
    """
    pairs = [*output.members, *([output.base] if output.base else [])]
    arrays = [plan.checkpoints[model].read(tensor) for model, tensor in pairs]
    hashes = {pair: xxhash.xxh3_128() for pair in pairs}
    if output.recipe is None:
        yield from _copied(output, pairs, arrays, hashes)
    else:
        yield from _merged(output, pairs, arrays, hashes, shared)
    digests.update({pair: hash_.hexdigest() for pair, hash_ in hashes.items()})


def record(plan: Plan, digests) -> dict:
    """Give what is needed to make the same merge again: recipe, versions, and a digest of each input's tensors."""
    import soups

    job = plan.job
    inputs = {model: {"path": str(plan.checkpoints[model].path), **digests.summary(model)} for model in job.models}
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


def _merged(output, pairs, arrays, hashes, shared):
    recipe, number = output.recipe, len(output.members)
    base = arrays[number] if output.base else None
    arrays = [np.ascontiguousarray(array) for array in arrays]

    def parts():
        return _leafwise.parts(output.name, arrays[:number], base, recipe.unit)

    measured = shared if recipe.scope == "model" else recipe.measure(parts)
    flat = [array.reshape(-1) for array in arrays]
    for part in parts():
        block = recipe.merge(part, measured).reshape(-1)
        raw = slice(part.start, part.start + block.size)
        for pair, array in zip(pairs, flat, strict=True):
            hashes[pair].update(array[raw].view(np.uint8))
        _check_finite(output, pairs, part, block)
        yield part.start, _leafwise.narrow(block, output.dtype)


def _check_finite(output, pairs, part, block):
    # a NaN makes the sum NaN; comparisons, as in TIES, would pass over it
    seen = [*part.leaves, *([] if part.base is None else [part.base])]
    if not np.isfinite(np.sum([np.sum(array) for array in seen])):
        for (model, tensor), array in zip(pairs, seen, strict=True):
            if not np.isfinite(array).all():
                raise ValueError(f"{model}: {tensor} holds NaN or infinity; leave this model out")
    if not np.isfinite(np.sum(block)) and not np.isfinite(block).all():
        raise ValueError(f"the merged tensor {output.name} overflows, though no member does")


def _copied(output, pairs, arrays, hashes):
    flat = [np.ascontiguousarray(array).reshape(-1) for array in arrays]
    for pair, array in zip(pairs, flat, strict=True):
        hashes[pair].update(array.view(np.uint8))
        if not np.array_equal(array, flat[0]):
            raise ValueError(
                f"tensor {output.name} is not of floats and is copied, so it must be the same in all models: "
                f"{pair[0]} differs from {pairs[0][0]}"
            )
    yield 0, flat[0]


def _measure_model(plan):
    """Measure what a method of scope "model" needs, over all tensors."""
    outputs = [output for output in plan.outputs if output.recipe is not None]
    if not outputs or outputs[0].recipe.scope != "model":
        return None

    def parts():
        for output in outputs:
            arrays = [np.ascontiguousarray(plan.checkpoints[m].read(t)) for m, t in output.members]
            base = plan.checkpoints[output.base[0]].read(output.base[1]) if output.base else None
            yield from _leafwise.parts(output.name, arrays, base, output.recipe.unit)

    with np.errstate(all="ignore"):
        return outputs[0].recipe.measure(parts)


@dataclasses.dataclass
class _Digests:
    """Keep the digests of input tensors, output by output, on the disk with the shards that are finished."""

    path: pathlib.Path
    _known: dict = dataclasses.field(default_factory=dict)
    _lock: threading.Lock = dataclasses.field(default_factory=threading.Lock)

    def __post_init__(self):
        if self.path.exists():
            self._known = json.loads(self.path.read_text())

    def knows(self, names) -> bool:
        return all(name in self._known for name in names)

    def of(self, name) -> dict:
        """Give the mapping that one output's digests are put into."""
        digests = self

        class Filled(dict):
            def update(self, found):
                with digests._lock:
                    digests._known[name] = [[*pair, digest] for pair, digest in found.items()]

        return Filled()

    def keep(self, names) -> None:
        replace_file(
            self.path, json.dumps({name: self._known[name] for name in self._known if name in set(names) or True})
        )

    def summary(self, model: str) -> dict:
        """Give how many tensors of a model went in and one digest of them all."""
        tensors = sorted({(t, d) for entries in self._known.values() for m, t, d in entries if m == model})
        return {"tensors": len(tensors), "digest": xxhash.xxh3_128_hexdigest(json.dumps(tensors).encode())}


def _unfinished(out, plan):
    """Give the folder that the merge is made in: an earlier one of the same merge, or a new one."""
    out.parent.mkdir(parents=True, exist_ok=True)
    folder = out.with_name(f".{out.name}.unfinished")
    files = {str(f): f.stat().st_mtime_ns for c in plan.checkpoints.values() for f in sorted(c.sizes)}
    identity = {
        "text": plan.job.text,
        "job": repr(plan.job),
        "files": files,
        "outputs": [[output.name, list(output.shape), str(output.dtype)] for output in plan.outputs],
    }
    note = folder / "plan.json"
    if folder.exists() and not (note.exists() and json.loads(note.read_text()) == identity):
        shutil.rmtree(folder)
    folder.mkdir(exist_ok=True)
    replace_file(note, json.dumps(identity))
    return folder


def _nbytes(output):
    return output.size * output.dtype.itemsize
