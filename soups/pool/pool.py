"""Keep fine-tuned members with their configurations, metrics and digests in a directory."""

import collections
import contextlib
import copy
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from soups import arguments
from soups import tree as tree_lib
from soups.files import PathLike, any_path, meant_path, replace_file, sync_files, sync_folder
from soups.formats.text import parse_json
from soups.lazy import jax
from soups.names import MOST, bounded, count_of, did_you_mean
from soups.pool import _describe, _manifest, _paths, _record
from soups.pool._member import KEPT, Member, nested
from soups.pool.certificates import Certificates
from soups.processes import on_first_process
from soups.stores import StorePath
from soups.tree import Tree


class Pool(Mapping):
    """Hold members by name: a mapping from names to nested dicts of read-only NumPy arrays, read when asked for.

    A pool is a directory, or a folder of an object store, with one record and one Orbax checkpoint for each member.
    Adding is atomic, and any number of processes may add at once. A `Pool` shows the members there were when it was
    opened or last changed through it; `refresh` shows what others have added. Every byte that is read is compared with
    the digests in the records: what differs is a PoolCorruptionError that names the file and its leaf. A name that is
    not there is a KeyError. With several JAX processes all of them must call what changes a pool.

    Args:
        path: the directory, or s3://BUCKET/NAME or gs://BUCKET/NAME; one that does not exist is an empty pool, and is
            made by the first `add`.
        must_exist: a pool must be there already.

    Raises:
        FileNotFoundError: with `must_exist`, there is no pool at `path`.
        NotADirectoryError: `path` is a file, or leads through one.
        PoolCorruptionError: the manifest or a record is not what was written; each such file is named.
        ValueError: another URL; a pool whose format this version does not know.
    """

    def __init__(self, path: PathLike, *, must_exist: bool = False):
        self.path = any_path(path).absolute()
        above = () if isinstance(self.path, StorePath) else (self.path, *self.path.parents)
        if file := next((place for place in above if place.is_file()), None):
            raise NotADirectoryError(f"a pool is a directory, but {file} is a file")
        if must_exist and not _manifest.exists(self.path):
            raise FileNotFoundError(f"there is no pool at {self.path}{meant_path(self.path)}")
        self._records = _manifest.Records(self.path)  # the views have the same: a change is seen through all
        self._selected = None
        self.told: set[str] = set()  # sentences of `repeated` that were said, of this pool and its views

    @property
    def names(self) -> list[str]:
        """List the names in the order in which the members were added (of a view: were selected)."""
        return list(self._records if self._selected is None else self._selected)

    @property
    def usable(self) -> "Pool":
        """Return a view of the members all of whose numbers are finite."""
        return self._view([name for name in self.names if self._record(name)["status"] == "ok"])

    def select(self, names: Sequence[str]) -> "Pool":
        """Return a view of some members, in the order of `names`.

        Raises:
            ValueError: a name that the pool does not have, or one given twice; the first are listed.
        """
        missing = [name for name in names if name not in self]
        unknown = [self._unknown(name) if at < MOST else name for at, name in enumerate(missing)]
        twice = [f"{name!r} is selected twice" for name, count in collections.Counter(names).items() if count > 1]
        if unknown or twice:
            raise ValueError(bounded(unknown + twice))
        return self._view(names)

    @property
    def structure(self) -> Tree:
        """Return nested dicts of jax.ShapeDtypeStruct, which all members share; an empty pool has none (ValueError)."""
        if not self.names:
            raise ValueError(f"the pool {self.path} has no {'' if self._selected is None else 'selected '}members")
        record = self._record(self.names[0])
        return nested(record, {name: _describe.abstract(entry) for name, entry in record["leaves"].items()})

    @property
    def base(self) -> str | None:
        """Return what all members were fine-tuned from, if they agree and it was said."""
        bases = {self._record(name)["base"] for name in self.names}
        return bases.pop() if len(bases) == 1 else None

    @property
    def certificates(self) -> Certificates:
        """Return what must hold of the members and of every soup that is released, as it is kept now."""
        return Certificates(self.path, self._records.locked)

    @property
    def releases(self) -> "Pool":
        """Return the pool of the soups that were released: "1", "2", …, of which the last is the released one."""
        return Pool(self.path / "releases")

    def record(self, name: str) -> dict:
        """Return all that the pool says of a member; changing it changes nothing."""
        return copy.deepcopy(self._record(name))

    def metrics(self, name: str) -> dict:
        """Return the metrics of a member."""
        return copy.deepcopy(self._record(name)["metrics"])

    def digest(self, name: str) -> str:
        """Return the digest of a member's names, dtypes, shapes and numbers, the same however it is sharded."""
        return self._record(name)["digest"]

    def repeated(self) -> list[str]:
        """Return sentences on members with the same weights, and on bases among the members; none where all is well.

        ["members with the same weights, each of which counts: a, b", "the base counts as a member: start"]
        """
        bases = {self._record(name)["base"] for name in self.names} - {None}
        return arguments.repeated({name: self.digest(name) for name in self.names}, bases)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)

    def __contains__(self, name: object) -> bool:
        return name in self._records and (self._selected is None or name in self._selected)

    def __repr__(self) -> str:
        return f"Pool({str(self.path)!r}: {count_of(len(self), 'member')})"

    # two pools are not compared by loading all that is in them
    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def __getitem__(self, name: str) -> Tree:
        """Return nested dicts of read-only NumPy arrays, mapped from the files."""
        return self._member(name).load()

    def load(self, name: str, *, like: Tree) -> Tree:
        """Restore a member as JAX arrays straight into shardings, in the structure of `like`.

        `like`: any pytree of jax.ShapeDtypeStruct with shardings, or of arrays, with the names of the member's leaves;
        a leaf without a sharding goes to the first device.

        Raises:
            ValueError: a `like` with other names, shapes or dtypes than the member; a dtype that JAX is not set to hold
                (float64).
        """
        member = self._member(name)
        wanted = _paths.by_exact_name(like)
        tree_lib.check_same_structure([_describe.recorded_shapes(member.record), wanted], [f"member {name}", "like"])
        wanted = {leaf: _with_sharding(abstract) for leaf, abstract in wanted.items()}
        if isinstance(self.path, pathlib.Path):  # of a store each leaf is compared when it is read
            member.check()
        restored = _describe.restore(member, wanted)
        return jax.tree.unflatten(jax.tree.structure(like), [restored[leaf] for leaf in wanted])

    def tensors(self, name: str) -> Member:
        """Return a member's leaves by name, each read when it is asked for, as the engine streams them."""
        return self._member(name)

    def verify(self, names: Sequence[str] | None = None) -> dict[str, list[str]]:
        """Compare every file with its digest: the problems of each member, none where all is well.

        Without `names` all members are read, and directories that belong to no member are listed too, under their own
        names.
        """
        members = [self._member(name) for name in (self.names if names is None else names)]
        problems = {member.name: member.problems() for member in members}
        if names is None:
            unowned = "belongs to no member: a process was killed while it added or removed one"
            problems |= {orphan: [unowned] for orphan in self._records.orphans()}
        return problems

    def add(
        self,
        name: str,
        params: Tree,
        metadata: Mapping | None = None,
        *,
        metrics: Mapping | None = None,
        base: str | None = None,
        files: Mapping[str, bytes | str | pathlib.Path] | None = None,
    ) -> dict:
        """Write a new member and give its record. It is there whole or not at all, even if the process is killed.

        A member that holds NaN or infinity is kept, with the status "non-finite".

        Args:
            params: any pytree of NumPy or JAX arrays, sharded or not, with the names of the pool's first member.
            metadata: what should be known of it (configuration, seed, ...), anything JSON can hold.
            metrics: what was measured on it; see `update_metrics`.
            base: the name or digest of the weights it was fine-tuned from.
            files: what is kept with it, by name, such as a config: bytes, text, or the path of what is copied.
                `tensors(name).kept()` gives them back.

        Raises:
            ValueError: a name that is taken; names, shapes or dtypes that are not those of the other members; leaves
                that a pool cannot hold; a file's name that leads elsewhere. All problems are listed.
            OSError: the disk is full or cannot be written to.
        """
        self._check_whole_pool("add")
        given = facts(name, metadata, metrics, base)
        files = {KEPT + file: content for file, content in (files or {}).items()}
        for file in files:
            _record.check_file(file)
        flat = _paths.flatten(params, f"member {name!r}")
        with _explained(f"cannot add member {name!r} to the pool {self.path}"), contextlib.ExitStack() as stack:
            directory = on_first_process(lambda: self._reserve(name, flat, stack))
            with _describe.staged(self.path / directory) as folder:
                _describe.save(folder, flat)
                return self._changed(lambda: self._enter(name, directory, folder, flat, given, files))

    def update_metrics(self, name: str, metrics: Mapping) -> dict:
        """Add to the metrics of a member, anything JSON can hold, replacing those of the same name, and give all."""
        self._check_known(name)
        metrics = as_json(metrics, "metrics")

        def update():
            with self._changing(name) as record:
                self._records.write(name, {**record, "metrics": {**record["metrics"], **metrics}})

        self._changed(update)
        return self.metrics(name)

    def remove(self, name: str) -> None:
        """Delete the record of a member, then its files."""
        self._check_whole_pool("remove")
        self._check_known(name)

        def remove():
            with self._changing(name) as record:
                directory = _record.directory(self.path, record["path"])
                self._records.delete(name)
            if directory.is_dir():  # else it was lost, and its record was all that there was
                _manifest.delete(directory)

        self._changed(remove)

    def refresh(self) -> bool:
        """Look which members there are now, and say whether they are others than before."""
        before = list(self._records)
        self._records.refresh()
        return list(self._records) != before

    def sweep_orphans(self) -> list[str]:
        """Delete what killed processes left, nothing that a living one is writing, and list it."""
        return on_first_process(self._records.sweep)

    def _record(self, name):
        self._check_known(name)
        return self._records[name]

    def _check_known(self, name):
        if name not in self:
            raise KeyError(self._unknown(name))

    def _member(self, name):
        record = self._record(name)
        return Member(name, _record.directory(self.path, record["path"]), record)

    def _view(self, names):
        view = copy.copy(self)
        view._selected = dict.fromkeys(names)
        return view

    def _unknown(self, name):
        hint = did_you_mean(name, self.names)
        return f"no member {name!r} in the pool {self.path}, which has {count_of(len(self), 'member')}{hint}"

    def _check_whole_pool(self, action):
        if self._selected is not None:
            raise ValueError(f"this is a view of some members: {action} on Pool({str(self.path)!r}) itself")

    def _check_addition(self, name, flat):
        if name in self._records:
            raise ValueError(f"the pool {self.path} already has a member {name!r}: choose another name, or remove it")
        if (first := next(iter(self._records), None)) is not None:
            expected = _describe.recorded_shapes(self._records[first])
            tree_lib.check_same_structure([expected, _describe.shapes(flat)], [f"member {first}", f"member {name}"])

    def _reserve(self, name, flat, stack):
        self._records.refresh()
        self._check_addition(name, flat)
        return stack.enter_context(_manifest.reserved(self.path, name))

    def _enter(self, name, directory, folder, flat, given, files):
        for file, content in files.items():
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            replace_file(folder / file, content)
        described = _describe.describe(folder, flat)
        record = {"path": directory, **given, **_describe.provenance(), **described}
        if isinstance(self.path, StorePath):
            _describe.upload(folder, self.path / directory, described["files"])
        else:
            sync_files(folder)  # a record must not outlive its member when the power goes
            sync_folder(folder.parent)
        with self._records.locked():
            _manifest.check_reserved(self.path, directory)
            self._check_addition(name, flat)  # again: others may have added since
            self._records.write(name, record)
        return record

    def _changed(self, function):
        result = on_first_process(function)
        if jax.process_index():
            self._records.refresh()  # what the first process has changed
        return result

    @contextlib.contextmanager
    def _changing(self, name):
        with _explained(f"cannot change the pool {self.path}"), self._records.locked():
            if name not in self._records:
                raise KeyError(f"member {name!r} was removed from the pool {self.path} by another process")
            yield self._records[name]


def _with_sharding(leaf):
    if jax.dtypes.canonicalize_dtype(leaf.dtype) != leaf.dtype:
        raise ValueError(f"JAX holds {leaf.dtype} only with jax_enable_x64; pool[name] gives NumPy arrays without it")
    sharding = getattr(leaf, "sharding", None) or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def facts(name: Any, metadata: Any, metrics: Any, base: Any) -> dict[str, Any]:
    """Return what a record says of a member beside its weights; a ValueError for what cannot be in one."""
    if not isinstance(name, str) or not name or not name.isprintable():
        raise ValueError(f"a member's name must be a non-empty printable string, not {name!r}")
    if base is not None and not isinstance(base, str):
        raise ValueError(f"base must be the name or the digest of weights, not {base!r:.200}")
    return {
        "metadata": as_json({} if metadata is None else metadata, "metadata"),
        "metrics": as_json({} if metrics is None else metrics, "metrics"),
        "base": base,
    }


def as_json(values: Mapping, what: str) -> dict[str, Any]:
    """Return a dict as JSON will hold it; a ValueError says that it cannot."""
    if not isinstance(values, Mapping):
        raise ValueError(f"{what} must be a dict, not {type(values).__name__}")
    try:
        return parse_json(json.dumps(dict(values), default=_plain), what)  # as it will be read back
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{what} must be something that JSON can hold: {error}") from error


def _plain(value):
    if isinstance(value, (np.generic, np.ndarray, jax.Array)):
        return value.tolist()
    raise TypeError(f"{value!r:.100} is a {type(value).__name__}")


@contextlib.contextmanager
def _explained(what):
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, f"{what}: {error.strerror or error}", error.filename) from error
