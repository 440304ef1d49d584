"""Merge into a member of a pool."""

from soups import tree
from soups.lazy import jax
from soups.merging import run
from soups.merging.plan import Plan, check_places
from soups.pool import Pool


def split_member(out: str) -> tuple[str, str]:
    """Return pool and name of POOL:NAME.

    Raises:
        ValueError: it is not of this form.
    """
    pool, _, name = str(out).rpartition(":")
    if not pool or not name:
        raise ValueError(f"a member of a pool is POOL:NAME, not {str(out)!r}")
    return pool, name


def check_pool(plan: Plan, out: str) -> None:
    """Look whether the output fits into the pool, before any work.

    Raises:
        ValueError: a name that is taken, or a pool of other names, shapes or dtypes, all of them in one message; as
            `check_places`.
    """
    check_places(plan, escaped=True)
    path, name = split_member(out)
    pool = Pool(path)
    if name in pool:
        raise ValueError(f"{path} has a member {name!r}: a merge is written under a new name")
    if len(pool):
        specs = {output.name: jax.ShapeDtypeStruct(output.shape, output.dtype) for output in plan.outputs}
        tree.check_same_structure([pool.structure, run.nested(specs)], [path, name])


def merge_to_pool(
    plan: Plan, out: str, *, threads: int = run.THREADS, progress: run.Progress = lambda bytes_merged: None
) -> dict:
    """Merge into the member POOL:NAME and give its record; it is there whole or not at all.

    The output is in memory until it is saved. Names become nested dicts as in `merge_to_orbax`. What `merge.json` says
    of other outputs is in the member's metadata as "merge". Its base is that of the pool if all that was merged is of
    this pool.

    Raises:
        ValueError: as `check_pool` and `merge_to_folder`.
        CheckpointError, OSError: as `merge_to_folder`.
    """
    check_pool(plan, out)
    path, name = split_member(out)
    merged, made = run.merge_in_memory(plan, threads, progress)
    pool = Pool(path)
    own = all(model.rpartition(":")[0] == path for model in plan.job.models)
    return pool.add(name, merged, {"merge": made}, base=pool.base if own else None)
