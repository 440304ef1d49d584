"""Look where a merge is written to before any work, and let one merge at a time write to a place."""

import contextlib
import glob
import os
import pathlib
import re
from collections.abc import Iterator
from typing import TypeVar

from soups import tree
from soups.files import PathLike, any_path, local_path, locked, remove_unfinished
from soups.formats.npz import check_npz
from soups.formats.orbax_steps import TREE_METADATA
from soups.formats.tensors import SUFFIXES, nested, separator
from soups.lazy import jax, orbax
from soups.merging.lora import CONFIG
from soups.merging.origin import innermost
from soups.merging.planning import Plan
from soups.merging.record import is_record, record_beside
from soups.merging.sources import in_pool, is_pool, split_pool
from soups.names import bounded, shown
from soups.stores import StorePath

Path = pathlib.Path | StorePath
AnyPath = TypeVar("AnyPath", pathlib.Path, StorePath)

FILES = (".safetensors", ".npz")  # the ends of names of outputs that are one file
_OF_FILES = {*SUFFIXES, ".h5", ".hdf5", ".keras", ".msgpack", ".npy", ".onnx", ".pb", ".pickle", ".pkl", ".tflite"}
_DEPTH = 64  # of nested dicts
_LONGEST = 255  # bytes of a folder's name


def check_place(plan: Plan, out: PathLike, kind: str = "huggingface") -> Path:
    """Return the path that a merge is written to; of POOL:NAME the pool's.

    `kind`: "huggingface", "file", "orbax" or "pool".

    Raises:
        FileExistsError: something is already there, or, for a file, where its record is to be written.
        ValueError: a URL of another kind than s3:// and gs://, or text that is not a path; what is not written to
            stores; a folder that is named like a file of weights, or a file that is not named like one that can be
            written; tensors that an .npz cannot hold; a place inside one of the inputs or inside a pool; POOL:NAME with
            another kind than "pool", or a kind "pool" without POOL:NAME; a pool that already has such a member, or
            whose members have other names, shapes or dtypes; names of tensors that have no place in nested dicts.
        NotADirectoryError, PermissionError: nothing can be made there.
    """
    path = any_path(split_member(out)[0] if kind == "pool" else out)
    if isinstance(path, StorePath):
        return _check_far(plan, path, out, kind)
    if kind != "pool" and in_pool(out):
        raise ValueError(f"{out} would be a folder beside the pool: --format pool writes a member")
    if kind == "file":
        _check_file(plan, path)
    elif kind != "huggingface":
        orbax.check_path(local_path(out))
        check_names(plan, escaped=kind == "pool")
    if kind == "pool":
        _check_pool(plan, *split_member(out))
    elif os.path.lexists(path):
        raise FileExistsError(f"{out} exists: choose a new path for the merge")
    elif path.suffix.lower() in _OF_FILES and kind == "huggingface":
        files = f", and files that end in {' or '.join(FILES)}"
        raise ValueError(f"{out} would be a folder: a merge writes folders, such as {path.stem}{files}")
    real = pathlib.Path(os.path.realpath(path))
    for model, checkpoint in plan.checkpoints.items():
        if any(pathlib.Path(os.path.realpath(folder)) in (real, *real.parents) for folder in _folders(checkpoint)):
            raise ValueError(f"{out} would lie inside the model {model}: choose a place beside it")
    pools = [pool for pool in real.parents if (pool / "manifest.json").is_file() and (pool / "members").is_dir()]
    if pools and kind != "pool":  # which would sweep it away with what killed writers left there
        raise ValueError(f"{out} would lie inside the pool {pools[0]}: --format pool writes a member, POOL:NAME")
    there = next(place for place in path.absolute().parents if os.path.lexists(place))
    if not there.is_dir():
        raise NotADirectoryError(f"cannot write {path}: {there} is not a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise PermissionError(f"cannot write {path}: there is no permission to write in {there}")
    return path


@contextlib.contextmanager
def held_place(plan: Plan, out: PathLike, kind: str = "huggingface") -> Iterator[Path]:
    """Yield the absolute path of a new output, where no other merge writes meanwhile.

    Raises:
        BlockingIOError: another merge writes there.
        FileExistsError, ValueError, OSError: as `check_place`.
    """
    path = check_place(plan, out, kind).absolute()
    with locked(path):
        # the merge that held it has just ended
        if os.path.lexists(path) if isinstance(path, pathlib.Path) else _is_taken(path):
            raise FileExistsError(f"{out} exists: choose a new path for the merge")
        try:
            yield path
        except BaseException:
            if kind == "orbax":
                sweep_unfinished(path)
            raise


def _check_far(plan, path, out, kind):
    if kind == "orbax":
        raise ValueError(f"{out}: Orbax checkpoints are not written to a store: give a folder, a file or POOL:NAME")
    if kind != "pool" and in_pool(out):
        raise ValueError(f"{out} would be a folder beside the pool: --format pool writes a member")
    if kind == "pool":
        check_names(plan, escaped=True)
        _check_pool(plan, *split_member(out))
        return path
    if kind == "file" and path.suffix != FILES[0]:
        raise ValueError(f"{path}: a file on a store must end in {FILES[0]}")
    if kind != "file" and path.suffix.lower() in _OF_FILES:
        raise ValueError(
            f"{out} would be a folder: on a store a merge writes folders, and files that end in {FILES[0]}"
        )
    if not path.name:
        raise ValueError(f"{out} is a whole bucket: name a folder in it")
    if _is_taken(path):
        raise FileExistsError(f"{out} exists: choose a new path for the merge")
    for model, checkpoint in plan.checkpoints.items():
        if getattr(innermost(checkpoint), "directory", None) in (path, *path.parents):
            raise ValueError(f"{out} would lie inside the model {model}: choose a place beside it")
    if pools := [pool for pool in path.parents if pool.name and is_pool(pool)]:
        raise ValueError(f"{out} would lie inside the pool {pools[0]}: --format pool writes a member, POOL:NAME")
    return path


def _is_taken(path):
    """Say whether something else than an output that is gone on with is at a path of a store."""
    return path.exists() and not any(True for _ in unfinished(path).iterdir())


def unfinished(out: AnyPath) -> AnyPath:
    """Return the path beside an output at which it lies until it is complete."""
    return out.with_name(f".{out.name}.unfinished")


def sweep_unfinished(out: pathlib.Path) -> None:
    """Remove what is left of an output that was not completed, also under the names that Orbax gives it."""
    for left in out.parent.glob(f"{glob.escape(unfinished(out).name)}*"):
        remove_unfinished(left)


def split_member(out: PathLike) -> tuple[str, str]:
    """Return pool and name of POOL:NAME.

    Raises:
        ValueError: `out` does not have this form.
    """
    pool, name = split_pool(out)
    if not pool or not name:
        raise ValueError(f"a member of a pool is written as POOL:NAME, not {str(out)!r}")
    return pool, name


def check_names(plan: Plan, *, escaped: bool = False) -> None:
    """Look whether each tensor has a place of its own where names become nested dicts, as Orbax and pools have them.

    `escaped`: tensors lie in folders of other names where theirs could be none, as in pools.

    Raises:
        ValueError: a name that is also the beginning of other names; names that become equal when their keys are joined
            with "."; a name that Orbax cannot give to a folder. All are listed in one message.
    """
    names = [output.name for output in plan.outputs]
    mark, lines, folders, places = separator(names), [], {}, {}
    for name in [name for name in names if name.count(mark) < _DEPTH]:
        for found in re.finditer(re.escape(mark), name):
            folders.setdefault(name[: found.start()], name)
    for name in names:
        first = places.setdefault(name.replace(mark, "."), name)
        if name in folders:
            lines.append(f"  ~ {shown(name)} would be both a tensor and the dict that holds {shown(folders[name])}")
        elif first != name:
            lines.append(f"  ~ {shown(first)} and {shown(name)} would have the same place")
        elif not all(name.split(mark)):
            lines.append(f"  ~ {shown(name)} has a part without a name")
        elif name.count(mark) >= _DEPTH:
            lines.append(f"  ~ {shown(name)} has more than {_DEPTH} parts")
        elif not escaped and name.replace(mark, ".") in (".", "..", TREE_METADATA):
            lines.append(f"  ~ {shown(name)} is the name of a folder that means something else to Orbax")
        elif not escaped and (re.search(r"[\\\0]", name) or len(name.encode()) > _LONGEST):
            lines.append(
                f"  ~ {shown(name)} would be a folder, but has a backslash, a null character or over {_LONGEST} bytes"
            )
    if lines:
        raise ValueError(f"these tensors have no place of their own in nested dicts:\n{bounded(lines)}")


def _check_file(plan, path):
    if path.suffix not in FILES:
        raise ValueError(f"{path}: a file that a merge writes ends in {' or '.join(FILES)}")
    if path.suffix == ".npz":
        check_npz({output.name: output.dtype for output in plan.outputs})
    if os.path.lexists(note := record_beside(path)) and not is_record(note):
        raise FileExistsError(f"{note} exists, where the record of {path.name} is written: choose another name")


def _folders(checkpoint):
    """Return the folders of a model and of its adapters."""
    adapters = [file.parent for file in checkpoint.sizes if file.name == CONFIG]
    return [folder for folder in (checkpoint.path, *adapters) if folder.is_dir()]


def _check_pool(plan, path, name):
    from soups.pool import Pool

    pool = Pool(path)
    if name in pool:
        raise ValueError(f"{path} has a member {name!r}: choose a new name for the merge")
    if len(pool):
        specs = {output.name: jax.ShapeDtypeStruct(output.shape, output.dtype) for output in plan.outputs}
        tree.check_same_structure([pool.structure, nested(specs)], [f"the members of {path}", f"member {name}"])
