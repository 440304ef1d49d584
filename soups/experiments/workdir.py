"""Keep what a run has finished, so that the same command goes on where it was."""

import contextlib
import datetime
import functools
import json
import os
import platform
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from importlib import metadata
from typing import Any

import jax

import soups
from soups import state
from soups.files import local_path, locked, replace_file, sweep_unfinished
from soups.names import did_you_mean
from soups.processes import on_first_process
from soups.progress import say
from soups.report import check, print_table, write_report
from soups.report.results import SCHEMA


@contextlib.contextmanager
def held(directory: str | os.PathLike) -> Iterator[None]:
    """Hold the lock of a workdir, a file in it that says who holds it; that of a killed process is free.

    Of several JAX processes the first one holds it for all.

    Raises:
        BlockingIOError: another run works there; the message says which process, where and since when.
        ValueError: no path of this machine, or one that is not UTF-8.
        OSError: the workdir cannot be written.
    """
    place = _place(directory)
    with contextlib.ExitStack() as stack:
        on_first_process(lambda: _hold(place, stack))
        yield


def one_at_a_time(run: Callable) -> Callable:
    """Wrap a function of (config, directory) so that it holds the lock of the directory while it runs."""

    @functools.wraps(run)
    def alone(config, directory):
        with held(directory):
            return run(config, directory)

    return alone


class Workdir:
    """Hold the directory of one run: its config, and the results of its stages as JSON.

    `changeable`: sections of the config that may differ from those of the run that is gone on with; stages that depend
    on them name them as their settings.

    Of several JAX processes the first one reads and writes; all must make the same calls.

    Raises:
        ValueError: the directory was made with another config (the differences are listed), or what it says is damaged.
        OSError: it cannot be written.
    """

    def __init__(self, path: str | os.PathLike, config: Mapping[str, Any], changeable: Collection[str] = ()):
        self.path = _place(path)
        on_first_process(lambda: self._open(json.loads(json.dumps(config)), changeable))

    def _open(self, config, changeable):
        try:
            (self.path / "stages").mkdir(parents=True, exist_ok=True)
            replace_file(self.path / "stages" / ".probe", b"").unlink()
        except OSError as error:
            raise _unusable(self.path, error) from error
        sweep_unfinished(self.path / "stages")  # what a killed run left
        path = self.path / "config.json"
        if not path.exists():
            state.write(path, config)
            return
        there, here = (
            _flat({name: value for name, value in one.items() if name not in changeable})
            for one in (state.read(path), config)
        )
        lines = [
            f"  {name}: {there.get(name, '(absent)')} there, {here.get(name, '(absent)')} now"
            for name in sorted(there.keys() | here.keys())
            if there.get(name) != here.get(name)
        ]
        if lines:
            raise ValueError(
                f"the workdir {self.path} was made with another config:\n" + "\n".join(lines) + "\n"
                "Use another --workdir, or remove this one."
            )
        state.write(path, config)

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

    def head(self, config: Mapping[str, Any], packages: Sequence[str]) -> dict[str, Any]:
        """Return what the results of every experiment begin with: its config, when and on what it ran."""
        versions = {"soups": soups.__version__, "python": platform.python_version()}
        return {
            "schema": SCHEMA,
            "experiment": config["name"],
            "created": self.stage("created", lambda: datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")),
            "config": dict(config),
            "versions": versions | {package: metadata.version(package) for package in packages},
            "device": f"{jax.devices()[0].device_kind} x{jax.device_count()}",
        }

    def finish(self, results: Mapping[str, Any], *folders: str) -> list[str]:
        """Write the results and their report, print the table, and list what was written, with folders of the run.

        Raises:
            ValueError: results that are not complete: stages of an earlier version of soups, or an error of a study.
        """
        place = self.path / "results.json"
        checked = check(results, place)
        state.write(place, results)
        paths = [place, *write_report(self.path), *(self.path / name for name in folders)]
        print_table(checked)
        for path in dict.fromkeys(path.parent if path.parent.name == "figures" else path for path in paths):
            say(os.path.relpath(path))
        return [str(path) for path in paths]

    def seconds(self, prefix: str) -> dict[str, float]:
        """Return the time of each finished stage whose name begins with `prefix`, without it."""
        return on_first_process(lambda: self._seconds(prefix))

    def _seconds(self, prefix):
        paths = sorted((self.path / "stages").glob(f"{prefix}*.json"), key=lambda path: path.stat().st_mtime_ns)
        return {path.stem.removeprefix(prefix): _stage(path)["seconds"] for path in paths}


def check_fields(config: Mapping[str, Any], fields: Mapping[str, Sequence[str]]) -> None:
    """Raise one ValueError that lists every field of a config that is unknown or missing, with the closest known name.

    `fields` names the fields of each section; those of the top level stand under "".
    """
    known = {f"{section}.{name}".removeprefix(".") for section, names in fields.items() for name in names}
    given = set(config) - set(fields)
    for section in fields.keys() & config.keys():
        given |= {f"{section}.{name}" for name in config[section]}
    lines = []
    for name in sorted(given - known):
        lines.append(f"  + {name} is unknown{did_you_mean(name, known)}")
    lines += [f"  - {name} is missing" for name in sorted(known - given)]
    if lines:
        raise ValueError("the config has other fields than the experiment:\n" + "\n".join(lines))


def _place(path):
    place = local_path(path).absolute()
    try:
        str(place).encode()
    except UnicodeEncodeError:  # no report could name it
        raise ValueError(f"the workdir {os.fsencode(place)!r} is not UTF-8: choose another --workdir") from None
    return place


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
    return OSError(f"the workdir {place} cannot be written: {error}; choose another --workdir")


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
