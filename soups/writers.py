"""Write the numbers of a run while it goes on: as JSON lines always, for TensorBoard and Weights & Biases on demand.

    with open_writer("runs/mine/member_00", ["tensorboard"]) as writer:
        writer.write_scalars(0, {"loss": 2.3})

A writer is whatever has these four methods of `clu.metric_writers.MetricWriter`, so a writer of CLU is one too.
"""

import contextlib
import importlib
import json
import math
import os
import pathlib
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol

from soups import state
from soups.files import cannot_write, replace_file
from soups.lazy import jax
from soups.names import check_name

FILE = "metrics.jsonl"
_PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb"}


class Writer(Protocol):
    """Describe what takes numbers: a step, counted from 0, and scalars by name."""

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None: ...

    def write_hparams(self, hparams: Mapping[str, Any]) -> None: ...

    def flush(self) -> None: ...

    def close(self) -> None: ...


@contextlib.contextmanager
def open_writer(
    directory: str | os.PathLike, also: Iterable[str | Writer] = (), *, first_step: int = 0
) -> Iterator[Writer]:
    """Open `directory/metrics.jsonl`, and more writers, as one; of several JAX processes the first one writes.

    Args:
        directory: of one run, such as a member of a sweep; it is made.
        also: "tensorboard", "wandb" (each imported only then, and writing below `directory`), or writers of one's own.
        first_step: what a killed run has written from this step on is cut off, for it comes again.

    Raises:
        ValueError: a name that no writer has, a package that is not installed, a file that is damaged.
        OSError: the directory cannot be written; from the writer too.
    """
    directory = pathlib.Path(directory)
    with contextlib.ExitStack() as stack:
        writers = _opened(directory, list(also), first_step) if jax.process_index() == 0 else []
        for writer in writers:
            stack.callback(writer.close)
        yield _All(writers)


class _All:
    """Give everything to several writers."""

    def __init__(self, writers):
        self._writers = writers

    def write_scalars(self, step, scalars):
        scalars = {name: float(value) for name, value in scalars.items()}
        for writer in self._writers:
            writer.write_scalars(step, scalars)

    def write_hparams(self, hparams):
        for writer in self._writers:
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
        replace_file(path, b"".join(_lines_before(path, first_step)))

    def write_scalars(self, step, scalars):
        finite = {name: value if math.isfinite(value) else None for name, value in scalars.items()}
        self._write({"step": int(step), "time": round(time.time(), 3), **finite})

    def write_hparams(self, hparams):
        self._write({"hparams": dict(hparams)})

    def _write(self, record):
        try:
            with open(self._path, "a", encoding="utf-8") as file:  # so that it can be followed, and no line is lost
                file.write(json.dumps(record, default=str) + "\n")
        except OSError as error:
            raise cannot_write(self._path, error) from error

    def flush(self):
        pass

    def close(self):
        pass


class _TensorBoard:
    def __init__(self, package, directory, first_step):
        self._events = package.SummaryWriter(str(directory / "tensorboard"), purge_step=first_step or None)

    def write_scalars(self, step, scalars):
        for name, value in scalars.items():
            self._events.add_scalar(name, value, int(step))

    def write_hparams(self, hparams):
        self._events.add_text("hyper-parameters", json.dumps(dict(hparams), default=str), 0)

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
        self._run.log(dict(scalars), step=int(step))

    def write_hparams(self, hparams):
        self._run.config.update(dict(hparams), allow_val_change=True)

    def flush(self):
        pass

    def close(self):
        self._run.finish()


_KINDS = {"tensorboard": _TensorBoard, "wandb": _WeightsAndBiases}


def _opened(directory, also, first_step):
    packages = {name: _package(name) for name in also if isinstance(name, str)}  # all checks before anything is written
    directory.mkdir(parents=True, exist_ok=True)
    writers = [_JsonLines(directory / FILE, first_step)]
    for one in also:
        writers.append(_KINDS[one](packages[one], directory, first_step) if isinstance(one, str) else one)
    return writers


def _package(name):
    package = _PACKAGES[check_name(name, _PACKAGES, "metric writer")]
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
        raise ValueError(
            f"the metric writer {name!r} needs {package}, which is not installed: pip install {package}"
        ) from error


def _lines_before(path, first_step):
    """Yield the lines of a killed run that stay; only its last one can be torn."""
    lines = path.read_bytes().split(b"\n")[:-1] if first_step and path.exists() else []
    for number, line in enumerate(lines, 1):
        record = state.parsed(line.decode("utf-8", "replace"), f"line {number} of {path}")
        if "hparams" in record or _step(record, number, path) < first_step:
            yield line + b"\n"


def _step(record, number, path):
    if not isinstance(record.get("step"), int):
        raise ValueError(f"line {number} of {path} has no step: it is damaged, remove the file")
    return record["step"]
