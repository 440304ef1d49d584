"""Share what every benchmark needs: fair timing, a description of the machine, a table and a JSON file."""

import importlib.metadata
import json
import os
import pathlib
import platform
import statistics
import time
from collections.abc import Callable

import jax
import rich.console
import rich.table

from soups.files import replace_file

PACKAGES = ("jax", "flax", "optax", "orbax-checkpoint", "numpy")


def machine() -> dict:
    """Describe where the numbers come from: cpu, cores, platform, devices, versions."""
    return {
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "platform": f"{platform.system()} {platform.machine()}",
        "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind} ({jax.default_backend()})",
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in PACKAGES},
        },
    }


def measure(callables: dict[str, Callable], repeats: int = 3) -> dict[str, list[float]]:
    """Time every callable `repeats` times, taking turns; give the wall seconds by name.

    They alternate so that a machine that gets busier or hotter is unfair to none of them. What a callable
    returns is waited for (`jax.block_until_ready`) inside its time. Nothing is warmed up: call the callables
    once before, if compilation should not count.
    """
    seconds = {name: [] for name in callables}
    for _ in range(repeats):
        for name, function in callables.items():
            start = time.perf_counter()
            jax.block_until_ready(function())
            seconds[name].append(time.perf_counter() - start)
    return seconds


def summarize(seconds: list[float]) -> dict:
    """Return {"median", "min", "max", "all"} of a list of seconds."""
    return {"median": statistics.median(seconds), "min": min(seconds), "max": max(seconds), "all": seconds}


def write(path, record: dict) -> None:
    """Write `record` as JSON to `path`, replacing the file whole, and make the folders on the way."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, json.dumps(record, indent=2) + "\n")


def table(title: str, columns: list[str], rows: list[list]) -> None:
    """Print a table; floats get three significant digits."""
    drawn = rich.table.Table(title=title, title_justify="left")
    for index, column in enumerate(columns):
        drawn.add_column(column, justify="right" if index else "left")
    for row in rows:
        drawn.add_row(*[f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in row])
    rich.console.Console().print(drawn)


def _cpu_name() -> str:
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "unknown"
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")


def settings(options) -> dict:
    """Return the options of a run without the places on the machine that it ran on."""
    return {name: value for name, value in vars(options).items() if name not in ("out", "output")}
