"""Open members that were made elsewhere, of a pool or in checkpoint files that are read in place, and their data."""

import dataclasses
import glob
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote

import jax

import soups
from soups import tree
from soups.data.imagenet import count_notes, evaluation_sets, held_out_kind, imagenet_sources
from soups.data.imagenet.layouts import locate
from soups.models.architectures import Architecture
from soups.models.import_weights import imported_members
from soups.names import check_name
from soups.pool import Pool, digest, kept_dtype, prefetched
from soups.processes import all_or_none
from soups.progress import progress, say
from soups.studies.kitchen import Kitchen
from soups.studies.named import architecture_of
from soups.studies.published import TITLES
from soups.studies.study import OneSeed, Scene, Workdir


class Given(Mapping):
    """Hold members by name in their natural order (model_2 before model_10), each read when it is asked for.

    Args:
        trees: the weights: a pool, or a mapping that imports files in place.
        origins: for each, what tells whether it is still the same: digest, or path, size and time of the file.
        hyperparameters: of those members that know them.
    """

    mixed_dtype = "float32"  # in which what `at_once` gives is mixed

    def __init__(
        self,
        trees: Mapping[str, tree.Tree],
        origins: Mapping[str, dict[str, Any]],
        hyperparameters: Mapping[str, dict[str, Any]],
    ):
        self.trees, self._origins, self.hyperparameters = trees, origins, hyperparameters
        self.dtype: str | None = None
        self._read, self._stage, self._fresh = trees, None, None

    def read_ahead(self, ahead: int, dtype: str, stage: Callable) -> "Given":
        """Read so many members ahead, and keep in memory what it holds, in a dtype; digests are kept as stages.

        With another dtype than float32 all that is made of members is of weights rounded to it.
        """
        self.dtype = None if dtype == "float32" else dtype
        self._read, self._stage = prefetched(self.trees, ahead=ahead, dtype=self.dtype), stage
        return self

    def __getitem__(self, name: str) -> tree.Tree:
        fresh, self._fresh = self._fresh, None
        return fresh[1] if fresh and fresh[0] == name else self._read[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._origins)

    def __len__(self) -> int:
        return len(self._origins)

    def digest(self, name: str) -> str:
        """Return the content digest of a member; it is read for that once, unless its file has changed since.

        Raises:
            ValueError: the member holds NaN or infinity.
        """
        if self.dtype is None and isinstance(self.trees, Pool):
            return self.trees.digest(name)
        return self._stage(f"member_{quote(name, safe='')}", lambda: self._digest(name), self._origins[name])

    def _digest(self, name):
        member = self._read[name]
        if bad := tree.nonfinite_names(member):
            raise ValueError(f"NaN or infinity in member {name}: {', '.join(bad)}; import into a pool leaves it out")
        self._fresh = name, member  # which is most likely asked for next
        return digest(member)

    def at_once(self, names: Sequence[str]) -> dict[str, tree.Tree]:
        """Return members as those who need all at once want them: in mapped files, or in memory in the narrow dtype."""
        return {name: self._read.as_kept(name) if self.dtype else self.trees[name] for name in names}

    def uniform(self, names: Sequence[str]) -> tree.Tree:
        """Return the mean of members, with one at a time in memory."""
        if isinstance(self.trees, Pool) and self.dtype is None:
            return soups.uniform(self.trees.select(names))  # streamed through its files
        mean = None
        for count, name in enumerate(names):
            mean = soups.running_mean(mean, self[name], count) if count else tree.widen(self[name])
        return mean


def open_members(config: Mapping[str, Any], num_classes: int) -> Given:
    """Open `config.pool` or the files of `config.models` (a glob), and compare them with the architecture.

    Raises:
        ValueError: both or neither of the two are given; two files have the same stem; weights have another structure
            or head than the architecture.
        FileNotFoundError: there is no such pool, or fewer than two files match the glob.
    """
    if bool(config["pool"]) == bool(config["models"]):
        raise ValueError("give either pool, the directory of a pool, or models, a glob of checkpoint files")
    arch = architecture_of(config["arch"])
    if config["pool"]:
        return _of_pool(Pool(config["pool"], must_exist=True), arch, num_classes)
    return _of_files(config["models"], arch, num_classes)


def natural(names: Sequence[str]) -> list[str]:
    """Sort names with their numbers as numbers: a shell lists model_10 before model_2."""
    return sorted(names, key=lambda name: [(int(n or 0), text) for n, text in re.findall(r"(\d+)|(\D+)", name)])


def _of_pool(pool, arch, num_classes):
    names = natural(pool.usable.names)
    if len(names) < 2:
        raise ValueError(f"the pool {pool.path} has {len(names)} finite members, but soups need at least two")
    if left_out := [name for name in pool if name not in names]:
        say(f"left out, because they hold NaN or infinity: {', '.join(left_out)}")
    _check_structure(pool.structure, arch, num_classes, f"pool {pool.path}")
    records = {name: pool.record(name)["metadata"] for name in names}
    known = {name: record.get("hparams") or record.get("config") or {} for name, record in records.items()}
    return Given(pool.select(names), {name: {"digest": pool.digest(name)} for name in names}, known)


def _of_files(pattern, arch, num_classes):
    paths = [pathlib.Path(path) for path in glob.glob(str(pathlib.Path(pattern).expanduser()))]
    if len(paths) < 2:
        raise FileNotFoundError(f"models={pattern!r} matches {len(paths)} files, but soups need at least two")
    by_name = {path.stem: path.absolute() for path in paths}
    trees = imported_members(paths, arch)
    names = natural(list(by_name))
    for name in names:  # files are mapped, so that this reads little more than their headers
        _check_structure(trees[name], arch, num_classes, str(by_name[name]))
    return Given(trees, {name: _file(by_name[name]) for name in names}, {})


def _check_structure(found, arch: Architecture, num_classes, label):
    labels = [f"{arch.name} with {num_classes} classes", label]
    tree.check_same_structure([arch.abstract(num_classes), found], labels=labels)


def _file(path):
    status = path.stat()
    return {"file": str(path), "size": status.st_size, "modified_ns": status.st_mtime_ns}


# --- A run on ImageNet ---------------------------------------------------------------------------------------------

HELD_OUT = {
    "published": "The held-out images are chosen by the published index file.",
    "by file name": "The held-out images are chosen by file name, not as published.",
}
ROUNDED = "every member was rounded to {}, so that the memory holds all; the published numbers are of float32"


@dataclasses.dataclass(frozen=True, kw_only=True)
class OnImageNet(OneSeed):
    """Hold the kitchen of the one seed, and what results tell of the data."""

    kitchen: Kitchen
    facts: Mapping[str, Any]
    notes: list[str]

    def cooked(self, name: str, make, *sections: str) -> Any:
        """Return a stage that is made again where members, or these sections of the config, change."""
        settings = {section: self.config[section] for section in sections}
        return self.stage(name, make, {"members": self.kitchen.digests, **settings})


def open_run(config: Mapping[str, Any], workdir: Workdir) -> OnImageNet:
    """Open the data and the members of a run, with every check before any long work.

    Raises:
        ValueError, FileNotFoundError: as `open_members`; data that is missing or broken; names in config.wise_ft.
    """
    arch = architecture_of(config["arch"])
    num_classes, members = all_or_none(lambda: _members(config))
    cache_dir = workdir.shared(config["cache_dir"], "decoded")
    sets = evaluation_sets(
        config["data_dir"], cache_dir, image_size=arch.image_size, sets=config["sets"], progress=progress
    )
    wanted, held_out = config["evaluate"]["members_dtype"], held_out_kind(config["data_dir"])
    # a run that goes on must not change it, however much memory is free by then
    dtype = wanted if wanted != "auto" else workdir.stage("members_dtype", lambda: kept_dtype(members.trees))
    sizes = {name: {"examples": len(data), "classes": len(data.class_names)} for name, data in sets.items()}
    scene = Scene(config=config, workdir=workdir, seed=config["seed"])
    kitchen = Kitchen(
        members=members.read_ahead(max(2, jax.local_device_count()), dtype, workdir.stage),
        apply_fn=arch.apply_fn(num_classes=num_classes),
        held_out=sets["held_out"],
        test=sets["imagenet"],
        test_name="imagenet",
        shifts={name: data for name, data in sets.items() if name not in ("held_out", "imagenet")},
        titles=TITLES,
        directory=workdir.path,
        seed=scene.seed,
        batch_size=config["evaluate"]["batch_size"],
        mesh=scene.data_mesh,
        device=jax.devices()[0] if scene.data_mesh is None else None,
        keep="members" if "ensembles" in config["cook"] else "none",
        per_class=False,
        about={"arch": config["arch"]},
    )
    facts = {"num_classes": num_classes, "sets": sizes, "held_out": held_out, "members_dtype": dtype}
    notes = [HELD_OUT[held_out], *count_notes(sets), *([] if dtype == "float32" else [ROUNDED.format(dtype)])]
    return OnImageNet(config=config, workdir=workdir, seed=scene.seed, kitchen=kitchen, facts=facts, notes=notes)


def _members(config):
    locate(config["data_dir"], config["sets"])  # all that is missing in one error
    num_classes = len(imagenet_sources(config["data_dir"], ["imagenet"])["imagenet"].class_names)
    members, path = open_members(config, num_classes), config["wise_ft"]
    for name in filter(None, (path["base"], path["member"])):
        check_name(name, list(members), "member in wise_ft")
    if path["member"] == (path["base"] or next(iter(members))):
        raise ValueError(f"wise_ft would go from {path['member']} to itself: give another base or member")
    return num_classes, members
