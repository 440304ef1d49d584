"""Write the numbers of a run while it goes on: as JSON lines always, for TensorBoard and Weights & Biases on demand.

    with open_writer("runs/mine", ["tensorboard"]) as writer:
        soups.train.fit(..., on_step=lambda step, loss: writer.write_scalars(step, {"loss": loss}))

A writer is whatever has these four methods of `clu.metric_writers.MetricWriter`, so a writer of CLU is one too.
"""

import contextlib
import functools
import importlib
import json
import math
import os
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol

from soups import state
from soups.arguments import check_within
from soups.files import append, local_path, replace_file
from soups.lazy import extra, jax
from soups.names import check_name
from soups.recipes._scores import number

FILE = "metrics.jsonl"  #: where JSON lines go, in the directory of a run
_METHODS = "write_scalars", "write_hparams", "flush", "close"
_PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb"}


class Writer(Protocol):
    """Describe what takes numbers: a step, counted from 0, and scalars by name."""

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Write the numbers of a step."""

    def write_hparams(self, hparams: Mapping[str, Any]) -> None:
        """Write what the run was started with."""

    def flush(self) -> None:
        """Bring to the disk or the server what was written."""

    def close(self) -> None:
        """Flush, and write no more."""


@contextlib.contextmanager
def open_writer(directory: str | os.PathLike, also: Iterable[str | Writer] = ()) -> Iterator[Writer]:
    """Open `directory/metrics.jsonl`, and more writers, as one; of several JAX processes the first one writes.

    A run that goes on after it was killed writes from a step that it has written before: what is there from its first
    step on is replaced. `directory`: of one run, such as a member of a sweep; it is made. `also`: "tensorboard" and
    "wandb" (each imported only then, and writing below `directory`), or writers of one's own.

    A ValueError for what is no writer or a name that none has, for a damaged file, and for steps and numbers that are
    none; a MissingExtraError for a package that is not installed; an OSError if the directory cannot be written; the
    first and the last also from the writer.
    """
    directory = local_path(directory)
    if isinstance(also, str) or not isinstance(also, Iterable):
        raise ValueError(f"also must be a list of writers, such as ['tensorboard'], not {also!r:.200}")
    also = list(also)
    for writer in also:
        if not isinstance(writer, str) and not all(callable(getattr(writer, name, None)) for name in _METHODS):
            raise ValueError(f"a writer needs the methods {', '.join(_METHODS)}, which {writer!r:.200} lacks")
    if jax.process_index():
        also, kinds = [], []
    else:
        packages = {name: _package(name) for name in also if isinstance(name, str)}
        kinds = [functools.partial(_KINDS[name], package, directory) for name, package in packages.items()]
        kinds.append(functools.partial(_JsonLines, directory / FILE))
        directory.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        own = [writer for writer in also if not isinstance(writer, str)]
        for writer in own:
            stack.callback(writer.close)
        yield _All(own, kinds, stack)


class _All:
    """Hand everything to several writers, most of which are opened when the first step is known."""

    def __init__(self, writers, kinds, stack):
        self._writers, self._kinds, self._stack, self._hparams = writers, kinds, stack, []

    def write_scalars(self, step, scalars):
        step = check_within("step", step, "(-inf, inf)", whole=True)
        if not isinstance(scalars, Mapping):
            raise ValueError(f"scalars must be a mapping from names to numbers, not a {type(scalars).__name__}")
        if taken := [name for name in ("step", "time", "hparams") if name in scalars]:
            raise ValueError(f"a scalar cannot be called {taken[0]!r}, which each line has itself")
        scalars = {name: number(value, f"the scalar {name!r} must be a number, not") for name, value in scalars.items()}
        self._open(step)
        for writer in self._writers:
            writer.write_scalars(step, scalars)

    def write_hparams(self, hparams):
        if not isinstance(hparams, Mapping):
            raise ValueError(f"hyper-parameters must be a mapping, not a {type(hparams).__name__}")
        for writer in self._writers:
            writer.write_hparams(hparams)
        self._hparams += [hparams] if self._kinds else []

    def _open(self, first_step):
        kinds, self._kinds = self._kinds, []
        for kind in kinds:
            writer = kind(first_step)
            self._stack.callback(writer.close)
            self._writers.append(writer)
            for hparams in self._hparams:
                writer.write_hparams(hparams)

    def flush(self):
        for writer in self._writers:
            writer.flush()

    def close(self):
        """Leave it to the context that opened them."""


class _JsonLines:
    """Write {"step": 0, "time": seconds since 1970, name: value, ...} a line; null is a number that is not finite."""

    def __init__(self, path, first_step):
        self._path = path
        kept = list(_lines_before(path, first_step))
        self._known = {line for line in kept if line.startswith(b'{"hparams"')}
        replace_file(path, b"".join(kept))

    def write_scalars(self, step, scalars):
        finite = {name: value if math.isfinite(value) else None for name, value in scalars.items()}
        # opened each time, so that it can be followed, and no line is lost
        append(self._path, _line({"step": step, "time": round(time.time(), 3), **finite}))

    def write_hparams(self, hparams):
        line = _line({"hparams": _plain(hparams)})
        if line not in self._known:
            append(self._path, line)

    def flush(self):
        pass

    def close(self):
        pass


class _TensorBoard:
    def __init__(self, package, directory, first_step):
        self._events = package.SummaryWriter(str(directory / "tensorboard"), purge_step=first_step or None)

    def write_scalars(self, step, scalars):
        for name, value in scalars.items():
            self._events.add_scalar(name, value, step)

    def write_hparams(self, hparams):
        self._events.add_text("hyper-parameters", json.dumps(_plain(hparams)), 0)

    def flush(self):
        self._events.flush()

    def close(self):
        self._events.close()


class _WeightsAndBiases:
    """Log to one run of Weights & Biases for a directory; project and entity are those of its environment variables."""

    def __init__(self, package, directory, first_step):
        path = directory / "wandb.json"
        if not path.exists():
            state.write(path, {"id": uuid.uuid4().hex})
        run = state.read(path, {"id": str})["id"]
        self._run = package.init(dir=str(directory), name=directory.name, id=run, resume="allow")

    def write_scalars(self, step, scalars):
        self._run.log(dict(scalars), step=step)

    def write_hparams(self, hparams):
        self._run.config.update(dict(hparams), allow_val_change=True)

    def flush(self):
        pass

    def close(self):
        self._run.finish()


_KINDS = {"tensorboard": _TensorBoard, "wandb": _WeightsAndBiases}


def _package(name):
    package = _PACKAGES[check_name(name, _PACKAGES, "metric writer")]
    with extra(name):
        return importlib.import_module(package)


def _line(record):
    return json.dumps(record, allow_nan=False).encode() + b"\n"


def _plain(value):
    """Return what JSON can hold: NumPy's and JAX's numbers as Python's, null if not finite, all else as text."""
    if isinstance(value, Mapping):
        return {str(name): _plain(one) for name, one in value.items()}
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def _lines_before(path, first_step):
    """Yield the lines of a killed run that stay; only its last one can be torn."""
    lines = path.read_bytes().split(b"\n")[:-1] if first_step and path.exists() else []
    for place, line in enumerate(lines, 1):
        record = state.parsed(line.decode("utf-8", "replace"), f"line {place} of {path}")
        if "hparams" not in record and not isinstance(record.get("step"), int):
            raise ValueError(f"line {place} of {path} has no step: it is damaged, remove the file")
        if "hparams" in record or record["step"] < first_step:
            yield line + b"\n"
