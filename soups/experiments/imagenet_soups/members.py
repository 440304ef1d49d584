"""Open the members of a run: those of a pool, or checkpoint files that are read in place."""

import dataclasses
import glob
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from soups import tree
from soups.models.architectures import architecture
from soups.models.import_weights import imported_members
from soups.pool import Pool
from soups.progress import say


@dataclasses.dataclass(frozen=True, kw_only=True)
class Members:
    """Hold members by name in their natural order (model_2 before model_10), each read when it is asked for.

    Attributes:
        trees: the weights: a pool, or a mapping that imports files in place.
        origins: for each, what tells whether it is still the same: digest, or path, size and time of the file.
        hyperparameters: of those members that know them.
    """

    trees: Mapping[str, tree.Tree]
    origins: dict[str, dict[str, Any]]
    hyperparameters: dict[str, dict[str, Any]]

    @property
    def names(self) -> list[str]:
        """List the names."""
        return list(self.origins)


def open_members(config: Mapping[str, Any], num_classes: int) -> Members:
    """Open `config.pool` or the files of `config.models` (a glob), and compare them with the architecture.

    Raises:
        ValueError: not one of both is given; two files of one stem; weights of another structure or head.
        FileNotFoundError: no pool there, or no file that fits the glob.
    """
    if bool(config["pool"]) == bool(config["models"]):
        raise ValueError("give either pool, the directory of a pool, or models, a glob of checkpoint files")
    if config["pool"]:
        return _of_pool(Pool(config["pool"], must_exist=True), config["arch"], num_classes)
    return _of_files(config["models"], config["arch"], num_classes)


def natural(names: Sequence[str]) -> list[str]:
    """Sort names with their numbers as numbers: a shell lists model_10 before model_2."""
    return sorted(names, key=lambda name: [(int(n or 0), text) for n, text in re.findall(r"(\d+)|(\D+)", name)])


def _of_pool(pool, arch, num_classes):
    names = natural(pool.usable.names)
    if len(names) < 2:
        raise ValueError(f"the pool {pool.path} has {len(names)} finite members, but soups need two")
    if left_out := [name for name in pool if name not in names]:
        say(f"left out, because they hold NaN or infinity: {', '.join(left_out)}")
    _check_structure(pool.structure, arch, num_classes, f"pool {pool.path}")
    records = {name: pool.record(name)["metadata"] for name in names}
    known = {name: record.get("hparams") or record.get("config") or {} for name, record in records.items()}
    return Members(
        trees=pool.select(names), origins={name: {"digest": pool.digest(name)} for name in names}, hyperparameters=known
    )


def _of_files(pattern, arch, num_classes):
    paths = [pathlib.Path(path) for path in glob.glob(str(pathlib.Path(pattern).expanduser()))]
    if len(paths) < 2:
        raise FileNotFoundError(f"models={pattern!r} fits {len(paths)} files, but soups need two")
    by_name = {path.stem: path.absolute() for path in paths}
    trees = imported_members(paths, arch)
    names = natural(list(by_name))
    for name in names:  # files are mapped, so that this reads little more than their headers
        _check_structure(trees[name], arch, num_classes, str(by_name[name]))
    return Members(trees=trees, origins={name: _file(by_name[name]) for name in names}, hyperparameters={})


def _check_structure(found, arch, num_classes, label):
    expected = architecture(arch).abstract(num_classes)
    tree.check_same_structure([expected, found], labels=[f"{arch} with {num_classes} classes", label])


def _file(path):
    status = path.stat()
    return {"file": str(path), "size": status.st_size, "modified_ns": status.st_mtime_ns}
