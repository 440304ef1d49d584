"""Run a study: its config, its workdir and lock, its seeds and stages, and the results in the end.

A study says in a file of its own what its members are and what is cooked of them; all that it needs to be killed and to
go on is here.
"""

import contextlib
import dataclasses
import datetime
import functools
import json
import os
import pathlib
import platform
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from importlib import metadata
from typing import Any

import jax

import soups
from soups import state, tree
from soups.arguments import check_within
from soups.files import PathLike, any_path, from_here, locked, replace_file, sweep_unfinished
from soups.lazy import report
from soups.merging.sources import is_pool
from soups.names import did_you_mean
from soups.pool import Pool
from soups.processes import on_first_process
from soups.progress import say
from soups.stores import StorePath

PACKAGES = ("jax", "flax", "optax", "orbax-checkpoint", "numpy")  # whose versions all results tell
ALWAYS_CHANGEABLE = ("about", "seeds")  # sections that nothing depends on which is made for one seed
NOTES = (
    "created",
    "contents",
    "members_dtype",
    "versions",
)  # the ends of stages' names that only note what was found


@contextlib.contextmanager
def held(directory: PathLike) -> Iterator[None]:
    """Hold the lock of a workdir, a file in it that says who holds it; that of a killed process is free.

    Of several JAX processes the first one holds it for all.

    Raises:
        BlockingIOError: another run works there; the message says which process, where and since when.
        ValueError: a URL of no store, what is not a path, a path that is not UTF-8, or a pool; a folder with a
            config.json that no run wrote, such as that of a model.
        NotADirectoryError: it is a file, or lies in one.
        OSError: the workdir cannot be written.
    """
    place = _place(directory)
    _ = report.write_report  # what a report needs is missed now, and not after the run
    with contextlib.ExitStack() as stack:
        on_first_process(lambda: _hold(place, stack))
        _check_own(place / "config.json")
        yield


class Workdir:
    """Hold the directory of one run: its config, and the results of its stages as JSON.

    `changeable`: sections of the config that may differ from those of the run that is gone on with, as the number of
    seeds may; stages that depend on them name them as their settings. `join`: another process runs there, and this one
    writes nothing but members.

    Until something is computed, another config takes the place of one that failed.

    Of several JAX processes the first one reads and writes; all must make the same calls.

    Raises:
        ValueError: the directory was made with another config, and the differences are listed; or its record of the
            config is damaged.
        OSError: it cannot be written.
    """

    def __init__(self, path: PathLike, config: Mapping[str, Any], changeable: Collection[str] = (), join: bool = False):
        self.path = _place(path)
        free, config = {*changeable, *ALWAYS_CHANGEABLE}, json.loads(json.dumps(config))
        on_first_process(lambda: self._join(config, free) if join else self._open(config, free))

    def _join(self, config, changeable):
        if not (self.path / "config.json").exists():
            raise ValueError(f"{self.path} has no run to join: start it without --join")
        self._compare(config, changeable)

    def _open(self, config, changeable):
        try:
            (self.path / "stages").mkdir(parents=True, exist_ok=True)
            replace_file(self.path / "stages" / ".probe", b"").unlink()
        except OSError as error:
            raise _unusable(self.path, error) from error
        if isinstance(self.path, pathlib.Path):
            sweep_unfinished(self.path / "stages")  # what a killed run left
        path = self.path / "config.json"
        if not path.exists() or not self._begun():
            for note in (self.path / "stages").glob("*.json"):
                note.unlink()
            state.write(path, config)
            return
        self._compare(config, changeable)
        state.write(path, config)

    def _compare(self, config, changeable):
        there, here = (
            _flat({name: value for name, value in one.items() if name not in changeable})
            for one in (state.read(self.path / "config.json"), config)
        )
        lines = [
            f"  {name}: {there.get(name, '(absent)')} there, {here.get(name, '(absent)')} now"
            for name in sorted(there.keys() | here.keys())
            if there.get(name) != here.get(name)
        ]
        if lines:
            raise ValueError(
                f"the workdir {self.path} was made with another config:\n" + "\n".join(lines) + "\n"
                "Use another workdir, or remove this one."
            )

    def _begun(self):
        """Say whether anything is there that was computed; a run that failed before may be mended by another config."""
        files = (file for file in self.path.rglob("[!.]*") if file.parent != self.path)
        return any(
            file.is_file()
            and not (file.stem.endswith(NOTES) if file.parent.name == "stages" else file.name == "manifest.json")
            for file in files
        )

    def stage(self, name: str, compute: Callable[[], Any], settings: Any = None) -> Any:
        """Return the JSON result of a stage: read if it is finished, else computed, by all processes, and kept.

        `settings`: those of sections that may change; with others than it was made with it is computed again.

        Raises:
            ValueError: what was kept is damaged (the file is named), or the result cannot be written as JSON.
        """
        path = self.path / "stages" / f"{name}.json"
        if not on_first_process(lambda: self._is_made(path, settings)):
            start = time.monotonic()
            result = compute()
            kept = {"result": result, "seconds": round(time.monotonic() - start, 2), "settings": settings}
            on_first_process(lambda: state.write(path, kept))
        # read back even when just made, so a resumed run sees exactly the same
        return on_first_process(lambda: _stage(path)["result"])

    def _is_made(self, path, settings):
        if not path.exists():
            return False
        return settings is None or _stage(path).get("settings") == json.loads(json.dumps(settings))

    def timed(self, name: str, make: Callable[[], Any]) -> Any:
        """Return what a stage makes and keeps by itself, as in a pool, where it finds it; only its time is kept."""
        made = []
        self.stage(name, lambda: made.append(make()))
        return made[0] if made else make()

    def pool(self, name: str) -> Pool:
        """Open a pool in the workdir, without what a killed run left half-written."""
        pool = Pool(self.path / name)
        pool.sweep_orphans()
        return pool

    def shared(self, given: str | None, name: str) -> pathlib.Path:
        """Return a folder of this machine that other runs share: what is given, else one beside the workdir."""
        beside = pathlib.Path("runs") if isinstance(self.path, StorePath) else self.path.parent
        return pathlib.Path(given or beside / name)

    def head(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Return what all results begin with: config, when and on what it ran."""
        return {
            "schema": report.results.SCHEMA,
            "experiment": config["name"],
            "created": self.stage("created", lambda: datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")),
            "config": dict(config),
            "device": f"{jax.devices()[0].device_kind} x{jax.device_count()}",
        }

    def finish(self, results: Mapping[str, Any], *folders: str, short: bool = False) -> list[str]:
        """Write the results and their report, say what was seen, and list what was written, with folders of the run.

        Of a config that names rows in its section "about" the table is of these alone; a `short` one is of ten.

        Raises:
            ValueError: results that are not complete: stages of an earlier version of soups, or an error of a study.
        """
        place = self.path / "results.json"
        checked = report.check(results, place)
        state.write(place, results)
        paths = [place, *report.write_report(self.path), *(self.path / name for name in folders)]
        rows = report.leading(checked) if short else checked["config"].get("about", {}).get("rows", ())
        report.print_table(checked, names=rows)
        say("\n".join(["", *report.sentences(checked), ""]))
        for ending, what in ((".png", "Figure"), (".html", "Report")):
            if found := [path for path in paths if path.suffix == ending]:
                say(f"{what}: {from_here(found[0])}")
        places = dict.fromkeys(pathlib.PurePath(path.relative_to(self.path)).parts[0] for path in paths)
        say(f"All in {from_here(self.path)}: {', '.join(places)}")
        return [str(path) for path in paths]

    def seconds(self, prefix: str) -> dict[str, float]:
        """Return the time of each finished stage whose name begins with `prefix`, without it; notes take none."""
        return on_first_process(lambda: self._seconds(prefix))

    def _seconds(self, prefix):
        paths = sorted((self.path / "stages").glob(f"{prefix}*.json"), key=lambda path: path.stat().st_mtime_ns)
        timed = (path for path in paths if not path.stem.endswith(NOTES))
        return {path.stem.removeprefix(prefix): _stage(path)["seconds"] for path in timed}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scene:
    """Hold what the stages of one seed share; a study adds its data, network and pools."""

    config: Mapping[str, Any]
    workdir: Workdir
    seed: int

    @property
    def prefix(self) -> str:
        """Return what the names of all begin with that this seed keeps."""
        return f"seed{self.seed}_"

    def name(self, name: str) -> str:
        """Return the name under which something of this seed is kept."""
        return self.prefix + name.replace(" ", "_")

    @functools.cached_property
    def data_mesh(self) -> jax.sharding.Mesh | None:
        """Return a mesh with all devices on the axis "data", or None for a single device."""
        devices = jax.devices()
        if len(devices) == 1:
            return None
        return jax.make_mesh((len(devices),), ("data",), axis_types=(jax.sharding.AxisType.Auto,), devices=devices)

    def stage(self, name: str, compute: Callable[[], Any], settings: Any = None) -> Any:
        """Return the JSON result of a stage of this seed: see `Workdir.stage`."""
        return self.workdir.stage(self.name(name), compute, settings)

    def timed(self, name: str, make: Callable[[], Any]) -> Any:
        """Return what a stage of this seed keeps by itself: see `Workdir.timed`."""
        return self.workdir.timed(self.name(name), make)

    def figure(self, name: str, fields: Sequence[str], compute: Callable[..., Any]) -> Any:
        """Return a stage that is made again where these fields of the section "figures", which it is given, change."""
        settings = {field: self.config["figures"][field] for field in fields}
        return self.stage(name, lambda: compute(*settings.values()), settings)

    def kept(self, pool: Pool, name: str, make: Callable[[], tree.Tree]) -> tree.Tree:
        """Return weights of this seed from a pool, made and added if they are not there."""
        if self.name(name) not in pool:
            pool.add(self.name(name), make(), {"seed": self.seed})
        return pool[self.name(name)]


class OneSeed(Scene):
    """Hold what the stages of a study share that has one seed: it alone has the workdir."""

    @property
    def prefix(self) -> str:
        """Return nothing."""
        return ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Study:
    """State a study, and run it: called with a config and a directory it gives the paths that it wrote.

        run = Study(check=check, scenes=scenes, cook=cook, packages=["jax"], folders=["pool", "soups"])
        run(config, "runs/mine")

    The same call after a crash goes on where it was and gives the same rows to the bit. Several JAX processes run it
    together, with one directory that all of them see.

    Attributes:
        check: raises a ValueError for a config that cannot be run.
        scenes: from a config and a `Workdir` to the scenes, mostly one for each seed; makes every check that is left,
            for none of them is cooked before.
        cook: from a scene to its part of the results: lists are joined, "members" and "histories" are of its seed,
            "facts" are merged, and all else is the same in all scenes.
        packages: whose versions the results tell, beside `PACKAGES`.
        folders: those in the workdir that a user is told of.
        changeable: sections of the config that may change: see `Workdir`.
        within: from a config to a context that all runs in.
        members: makes all members of a scene that are not there, which other processes may do at the same time: where a
            study has it, `run(config, directory, join=True)` makes what members are left, and nothing else.

    Raises:
        ValueError: a config that cannot be run, or a directory made with another one.
        OSError: the directory cannot be written, another run works there, or the disk is full.
    """

    check: Callable[[Mapping[str, Any]], None]
    scenes: Callable[[Mapping[str, Any], Workdir], Sequence[Scene]]
    cook: Callable[[Any], Mapping[str, Any]]
    packages: Sequence[str] = ()
    folders: Sequence[str] = ()
    changeable: Collection[str] = ()
    within: Callable[[Mapping[str, Any]], contextlib.AbstractContextManager] = contextlib.nullcontext
    members: Callable[[Any], None] | None = None

    def __call__(self, config: Mapping[str, Any], directory: PathLike, *, join: bool = False) -> list[str]:
        """Run the whole study in `directory`, or what of it is not finished there."""
        with contextlib.nullcontext() if join else held(directory), contextlib.ExitStack() as stack:
            self.check({name: section for name, section in config.items() if name != "about"})
            stack.enter_context(self.within(config))
            workdir = Workdir(directory, config, self.changeable, join)
            scenes = self.scenes(config, workdir)
            if join:
                for scene in scenes:
                    self.members(scene)
                say(f"all members are in {from_here(workdir.path)}")
                return []
            results = workdir.head(config) | {"seeds": list(dict.fromkeys(s.seed for s in scenes))}
            # those that a seed begins with: another interpreter may go on with the run
            begun = [scene.stage("versions", lambda: versions(self.packages)) for scene in scenes]
            results["versions"] = {name: ", ".join(dict.fromkeys(one[name] for one in begun)) for name in begun[0]}
            for scene in scenes:
                _add(results, str(scene.seed), self.cook(scene))
            results["timings"] = {str(scene.seed): workdir.seconds(scene.prefix) for scene in scenes}
            return on_first_process(lambda: workdir.finish(results, *self.folders))


def versions(packages: Sequence[str] = ()) -> dict[str, str]:
    """Return the versions of this library, the interpreter and the packages that all studies use, and of some more."""
    found = {"soups": soups.__version__, "python": platform.python_version()}
    return found | {package: metadata.version(package) for package in (*PACKAGES, *packages)}


def _add(results, seed, outcome):
    for part, found in outcome.items():
        if part in ("members", "histories"):
            results.setdefault(part, {})[seed] = found
        elif part == "facts":
            for heading, facts in found.items():
                results.setdefault(part, {}).setdefault(heading, {}).update(facts)
        elif isinstance(found, list):
            there = results.setdefault(part, [])
            there += found if part != "notes" else [note for note in found if note not in there]
        else:
            results[part] = found


def check_fields(config: Mapping[str, Any], fields: Mapping[str, str]) -> None:
    """Raise one ValueError that lists every field of a config that is unknown or missing, with the closest known name.

    It lists numbers that cannot be, too, such as those of seeds and rates, before anything is computed.

    `fields` has the names of the fields of each section in one text, those of the top level under "". What ends in "?",
    a field or a whole section, may be left out.
    """
    sections = {section.removesuffix("?"): names.split() for section, names in fields.items()}
    left_out = {name.removesuffix("?") for name in fields if name.endswith("?")} - config.keys()
    known, needed = set(), set()
    for section, names in sections.items():
        whole = [f"{section}.{name}".removeprefix(".") for name in names]
        known |= {name.removesuffix("?") for name in whole}
        needed |= {name for name in whole if section not in left_out and not name.endswith("?")}
    given, lines = set(config) - set(sections), []
    for section in sorted(sections.keys() & config.keys()):
        if isinstance(config[section], Mapping):
            given |= {f"{section}.{name}" for name in config[section]}
        else:
            lines.append(f"  ~ {section} must be a section, not {config[section]!r:.200}")
    for name in sorted(given - known):
        lines.append(f"  + {name} is unknown{did_you_mean(name, known | sections.keys())}")
    numbers = {name: (config.get(name, least), least) for name, least in {"seeds": 1, "first_seed": 0}.items()}
    for section, names in sections.items():
        one = config.get(section) if section else config
        for field, least in {"batch_size": 1, "batch_size?": 0}.items():  # one that may be left out may be 0, for none
            if field in names and isinstance(one, Mapping) and one.get("batch_size") is not None:
                numbers[f"{section}.batch_size".removeprefix(".")] = (one["batch_size"], least)
    for name, (number, least) in numbers.items():
        if isinstance(number, bool) or not isinstance(number, int) or number < least:
            lines.append(f"  ~ {name} must be a whole number, at least {least}, not {number!r:.200}")
    lines += _wrong_numbers(config, sections)
    lines += [f"  - {name} is missing" for name in sorted(needed - given)]
    if lines:
        raise ValueError("the fields of the config are not those of its study:\n" + "\n".join(lines))


# numbers of configs that training does not know, or of which there are several
_NUMBERS = {"members_per_program": "[1, inf)", "random_orders": "[0, inf)", "plane_points": "[2, inf)"}
_NUMBERS |= {"plane_examples": "[1, inf)", "pairs_members": "[2, inf)"}
_SEVERAL = {"alphas": "(-inf, inf)", "barrier_ts": "[0, 1]", "counts": "[1, inf)", "ema_decays": "[0, 1)"}
_RANGES = ("sweep", "runs")  # sections whose numbers are drawn between two


def _wrong_numbers(config, sections) -> list[str]:
    """List the numbers of a config that no step could take, by which a run would end only when it came to that step."""
    lines = []
    for section, names in sections.items():
        one = config.get(section) if section else None
        for field in map(str, one if isinstance(one, Mapping) and section not in _RANGES else ()):
            optional = f"{field}?" in names or field == "clip_norm"
            if not (one[field] is None and optional):
                try:
                    _check_number(section, field, one[field])
                except ValueError as error:
                    lines.append(f"  ~ {section}.{error}")
    return lines


def _check_number(section, field, value):
    from soups.train import checks  # not needed to cook

    if field in _SEVERAL:
        if not isinstance(value, tuple | list) or (not value and field in ("alphas", "barrier_ts")):
            raise ValueError(f"{field} must be a list of numbers, not {value!r:.200}")
        for part in value:
            check_within(field, part, _SEVERAL[field], whole=field == "counts")
    elif field in _NUMBERS:
        check_within(field, value, _NUMBERS[field], whole=True)
    elif field == "radius":
        check_within(field, value, "(0, inf)")
    elif field == "members" and section == "sam":
        check_within(field, value, "[0, inf)", whole=True)
    elif section == "learned" and field == "learning_rate":
        check_within(field, value, "(0, inf)")
    elif field in checks.NUMBERS and field != "batch_size":
        checks.number(field, value)


def with_defaults(config: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config with what it leaves out, in sections too."""
    sections = {name: one | config.get(name, {}) for name, one in defaults.items() if isinstance(one, Mapping)}
    return {**defaults, **config, **sections}


def _place(path):
    place = any_path(path).absolute()
    try:
        str(place).encode()
    except UnicodeEncodeError:  # no report could name it
        raise ValueError(f"the workdir {os.fsencode(str(place))!r} is not UTF-8: choose another workdir") from None
    above = () if isinstance(place, StorePath) else place.parents
    if file := next((part for part in (place, *above) if part.is_file()), None):
        lies = "is a file" if file == place else f"lies in {file}, which is a file"
        raise NotADirectoryError(f"the workdir {place} {lies}: choose another workdir")
    if is_pool(place):  # whose lock would be that of the run, which then waits for itself
        raise ValueError(f"the workdir {place} is a pool: choose another workdir, such as {place.parent / 'cooked'}")
    return place


def _check_own(path):
    """Raise a ValueError for a config that no run wrote, as a folder of a model has one, or that is damaged."""
    if path.exists():
        try:
            state.read(path)
        except ValueError as error:
            raise ValueError(f"the workdir {path.parent} is not that of a run: {error}") from error


def _hold(place, stack):
    try:
        if not place.exists():  # a run that is refused leaves none
            stack.callback(_remove_if_empty, place)
        stack.enter_context(locked(place, place / ".lock", "run"))
    except BlockingIOError:
        raise
    except OSError as error:
        raise _unusable(place, error) from error


def _remove_if_empty(place):
    with contextlib.suppress(OSError):
        place.rmdir()


def _unusable(place, error):
    return OSError(f"the workdir {place} cannot be written: {error}; choose another workdir")


def _stage(path):
    return state.read(path, {"result": object, "seconds": (int, float)})


def _flat(config, prefix=""):
    flat = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat
