"""Carry a plan out on all devices of all processes: each holds a shard of every leaf, and only statistics move."""

from __future__ import annotations

import contextlib
import functools
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from soups import engine
from soups.files import PathLike
from soups.formats.tensors import leaf_of, nested
from soups.formats.view import View
from soups.lazy import jax, jnp, orbax
from soups.merging.bands import digest_of
from soups.merging.places import held_place
from soups.merging.planning import Plan
from soups.merging.record import Digests, record
from soups.merging.run import Progress, begin_orbax, finish_orbax, merged_blocks
from soups.processes import on_all_processes, on_first_process
from soups.workers import in_threads

Programs = dict[tuple, Any]  # compiled programs


def merge_sharded(
    plan: Plan,
    out: PathLike,
    *,
    devices: Sequence[jax.Device] | None = None,
    programs: Programs | None = None,
    progress: Progress = lambda bytes_read: None,
) -> pathlib.Path:
    """Merge into an Orbax checkpoint on all devices and give its path, which appears only when it is complete.

    With several processes all of them must call it, with `out` in a folder that they share. The numbers, names and
    record are those of `merge_to_orbax`: the same bits, but for what a compiler rounds otherwise than NumPy. The output
    is saved in its shards, one chunk for each. A merge that was killed begins anew.

    First every input that is no member of a pool is hashed for the record, and every file of those that are is compared
    with its digest, each by one process; then each process reads its own shards alone.

    Args:
        plan, out: as `merge_to_folder`.
        devices, programs, progress: as `merged_leaves`.

    Raises:
        FileExistsError, BlockingIOError, OSError: as `merge_to_folder`.
        ValueError: as `check_place` and `merged_leaves`; a tensor without elements, which Orbax does not store.
        PoolCorruptionError, CheckpointError: an input is damaged, or changed since it was planned.
    """
    _check_dtypes(plan)
    if empty := [output.name for output in plan.outputs if not output.size]:
        raise ValueError(f"Orbax cannot store tensors without elements: {', '.join(empty)}")
    with contextlib.ExitStack() as held:
        place = pathlib.Path(on_first_process(lambda: str(held.enter_context(held_place(plan, out, "orbax")))))
        digests = _digests(plan)
        merged = merged_leaves(plan, devices=devices, programs=programs, progress=progress)
        unfinished = on_first_process(lambda: str(begin_orbax(place, plan.write_bytes)))
        orbax.save_checkpoint(pathlib.Path(unfinished), nested(merged))
        on_first_process(lambda: finish_orbax(place, record(plan, digests)))
    return place


def merged_leaves(
    plan: Plan,
    *,
    devices: Sequence[jax.Device] | None = None,
    programs: Programs | None = None,
    progress: Progress = lambda bytes_read: None,
) -> dict[str, jax.Array | np.ndarray]:
    """Merge into arrays by name that are sharded over all devices, as `leaf_sharding` says.

    Every process reads the shards of its own devices, after it has compared its share of the files of a pool's members
    with their digests: those of its shards, where a member is stored in such shards. Methods of scope "leaf" have the
    inputs of one leaf after the other in memory, those of scope "model" all inputs, sharded. What needs a leaf whole,
    as singular vectors do, is done on the host by every process, as `merge_to_folder` does it; such leaves and those
    that are copied are NumPy arrays, and are read whole by all.

    Args:
        plan: from `soups.merging.plan`, the same on all processes.
        devices: of all processes; all there are by default.
        programs: keeps what was compiled; leaves whose programs are the same, in this or another merge with the same
            dict, share one.
        progress: called with the number of bytes that this process has read since the last call.

    Raises:
        ValueError: NaN or infinity in a member, negative Fisher information, with the name of model and tensor; tensors
            that are not floats and differ; a merged tensor that overflows; float64, unless JAX is set to hold it.
        PoolCorruptionError, CheckpointError: an input is damaged, or changed since it was planned.
    """
    _check_dtypes(plan)
    _check_files(plan)
    devices = tuple(jax.devices() if devices is None else devices)
    programs = {} if programs is None else programs
    merged, looked_at = {}, {}
    restored, measured = _measure_model(plan, devices, programs, progress)
    for output in plan.outputs:
        if output.recipe is None or output.recipe.unit == "leaf":
            merged[output.name] = _on_host(plan, output, progress)
            continue
        inputs = restored.pop(output.name, None) or _restore(plan, output, devices, progress)
        sharding = leaf_sharding(output.shape, output.recipe.unit, devices)
        merge = functools.partial(_merge, plan.job, output)
        shardings = (sharding, _everywhere(devices))
        merged[output.name], looked_at[output.name] = _run(programs, merge, shardings, inputs, measured)
        del inputs  # else they would be held while those of the next leaf are read
    _check_finite(plan, jax.device_get(looked_at))
    return merged


def leaf_sharding(shape: tuple[int, ...], unit: str, devices: Sequence[jax.Device]) -> jax.sharding.NamedSharding:
    """Divide a leaf evenly over as many of the devices as its shape allows, the first axes first.

    `unit`: what stays whole, as of a `Recipe`: an "element", or a "row", whose axis, the last, is not divided.
    """
    mesh = _mesh(tuple(devices))
    left, spec = list(mesh.axis_names), []
    for size in shape[:-1] if unit == "row" else shape:
        taken = []
        for name in list(left):
            if size % mesh.shape[name] == 0:
                size //= mesh.shape[name]
                taken.append(name)
                left.remove(name)
        spec.append(tuple(taken) or None)
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec))


@functools.cache
def _mesh(devices):
    # an axis for each prime factor, so that a leaf may be divided along several of its own
    factors, rest = [], len(devices)
    for factor in range(2, rest + 1):
        while rest % factor == 0:
            factors.append(factor)
            rest //= factor
    factors = factors or [1]
    names = tuple(f"shards_{index}" for index in range(len(factors)))
    automatic = (jax.sharding.AxisType.Auto,) * len(factors)
    return jax.sharding.Mesh(np.reshape(devices, factors), names, axis_types=automatic)


def _everywhere(devices):
    return jax.sharding.NamedSharding(_mesh(devices), jax.sharding.PartitionSpec())


# --- Reading ----------------------------------------------------------------------------------------------------------


def _restore(plan, output, devices, progress):
    """Return (the members' arrays, the base's or None), sharded."""
    sharding = leaf_sharding(output.shape, output.recipe.unit, devices)

    def array(model, tensor):
        checkpoint = plan.checkpoints[model]
        whole = functools.cache(lambda: checkpoint.read(tensor))  # what is made when it is read is made once
        made = isinstance(checkpoint, View) and checkpoint.aliases.get(tensor, tensor) in checkpoint.changed
        read_part = (lambda index: whole()[index]) if made else functools.partial(checkpoint.read, tensor)

        @functools.cache  # devices that hold the same shard share what was read
        def read(*bounds):
            part = np.ascontiguousarray(read_part(tuple(slice(*bound) for bound in bounds)))
            progress(part.nbytes)
            return part.reshape([end - start for start, end in bounds])  # that of a scalar has gained an axis

        def shard(index):
            return read(*(part.indices(size)[:2] for part, size in zip(index, output.shape, strict=True)))

        return jax.make_array_from_callback(output.shape, sharding, shard)

    return [array(*pair) for pair in output.members], array(*output.base) if output.base else None


def _on_host(plan, output, progress):
    whole = np.empty(output.shape, output.dtype)
    with np.errstate(all="ignore"):  # what is not finite is an error with a name
        for start, block in merged_blocks(plan, output, None, {}):
            whole.reshape(-1)[start : start + block.size] = block
    progress(sum(leaf_of(plan.checkpoints[model], tensor).nbytes for model, tensor in output.sources))
    return whole


def _check_files(plan):
    process, processes = jax.process_index(), jax.process_count()
    on_all_processes(lambda: [model.check(process, processes) for model in plan.checkpoints.values()])


def _digests(plan: Plan) -> Digests:
    """Return the digests of all tensors that go in; of those that no pool knows a process hashes its share."""
    process, processes = jax.process_index(), jax.process_count()
    pairs = {output.name: output.sources for output in plan.outputs}
    known = {name: dict(model.digests) for name, model in plan.checkpoints.items()}
    unknown = sorted({pair for used in pairs.values() for pair in used if pair[1] not in known.get(pair[0], {})})

    def hashed(pair):
        model, tensor = pair
        return [*pair, digest_of(plan.checkpoints[model], tensor)]

    for found in on_all_processes(lambda: in_threads(hashed, unknown[process::processes])):
        for model, tensor, digest in found:
            known.setdefault(model, {})[tensor] = digest
    return {name: [[model, tensor, known[model][tensor]] for model, tensor in used] for name, used in pairs.items()}


# --- Computing --------------------------------------------------------------------------------------------------------


def _measure_model(plan, devices, programs, progress):
    """Return the inputs of all outputs and what a recipe of scope "model" measures on them; {} and None without one."""
    outputs = [output for output in plan.outputs if output.recipe is not None]
    if not outputs or outputs[0].recipe.scope != "model":
        return {}, None
    restored = {output.name: _restore(plan, output, devices, progress) for output in outputs}

    def measure(inputs):
        parts = [_part(output, plan.job.dtype, *inputs[output.name]) for output in outputs]
        return outputs[0].recipe.measure(lambda: iter(parts))

    return restored, _run(programs, measure, _everywhere(devices), restored)


def _merge(job, output, inputs, measured):
    """Return the merged leaf and, as a few booleans, whether inputs, merged leaf and its cast are as they should be."""
    part, recipe = _part(output, job.dtype, *inputs), output.recipe
    measured = measured if recipe.scope == "model" else recipe.measure(lambda: iter([part]))
    wide = recipe.merge(part, measured)
    narrow = wide.astype(output.dtype)
    arrays = [*inputs[0], *([] if inputs[1] is None else [inputs[1]])]
    fine = [jnp.isfinite(array).all() for array in [*arrays, wide, narrow]] + [~jnp.isinf(wide).any()]
    # what recipes themselves look at, they do not look at when they are traced
    for place, (model, _) in enumerate(output.members):
        if model not in job.models:
            fine[place] &= (arrays[place] >= 0).all()
    return narrow, fine


def _part(output, dtype, leaves, base):
    (part,) = engine.parts(output.name, leaves, base, output.recipe.unit, dtype or np.float32)
    return part


def _run(programs, function, shardings, *arguments):
    """Compile a function, unless that was done under another name, and call it."""
    lowered = jax.jit(function, out_shardings=shardings).lower(*arguments)
    key = (lowered.as_text(), jax.tree.structure(arguments), lowered.out_tree, shardings)
    if key not in programs:
        programs[key] = lowered.compile()
    return programs[key](*arguments)


# --- Checking ---------------------------------------------------------------------------------------------------------


def _check_dtypes(plan):
    wide = np.dtype(np.float64)
    used = {output.dtype for output in plan.outputs if output.recipe} | {plan.job.dtype}
    pairs = [pair for output in plan.outputs if output.recipe for pair in output.sources]
    used |= {leaf_of(plan.checkpoints[model], tensor).dtype for model, tensor in pairs}
    if wide in used and not jax.config.jax_enable_x64:
        raise ValueError("float64 on devices needs jax_enable_x64; without it merge on the host")


def _check_finite(plan, looked_at):
    lines = ["these models cannot be merged:"]
    for output in [output for output in plan.outputs if output.name in looked_at]:
        *inputs, wide, narrow, no_infinity = looked_at[output.name]
        bad = [pair for pair, fine in zip(output.sources, inputs, strict=True) if not fine]
        if bad:
            lines += [f"  {model}: {tensor} holds {_blame(plan.job, model)}" for model, tensor in bad]
        elif not wide:
            what = "holds NaN" if no_infinity else "overflows"
            lines.append(f"  the merged tensor {output.name} {what}, though no member does")
        elif not narrow:
            lines.append(f"  the merged tensor {output.name} overflows {output.dtype}: choose a wider out_dtype")
    if len(lines) > 1:
        raise ValueError("\n".join(lines))


def _blame(job, model):
    if model in job.models:
        return "NaN or infinity; leave it out"
    return "NaN, infinity or a negative number, which Fisher information cannot be"
