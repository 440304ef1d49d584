"""Cook soups from anyone's members and report on them."""

import datetime
import os
import pathlib
import platform
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from typing import Any

import jax
import numpy as np

import soups
from soups import arguments, state, tree
from soups.experiments.workdir import held
from soups.files import local_path
from soups.names import did_you_mean
from soups.processes import on_first_process
from soups.recipes import METHODS
from soups.report import write_report
from soups.report.results import SCHEMA
from soups.studies import curves
from soups.studies.kitchen import Examples, Kitchen, Row, best_of, slug, unit_range

#: what is cooked unless something else is asked for; "wise_ft" where there is a base
RECIPES = ("uniform", "greedy", "learned", "wise_ft", "ensemble")


def cook(
    members: Mapping[str, tree.Tree] | Sequence[tree.Tree],
    apply_fn: Callable,
    *,
    workdir: str | os.PathLike,
    held_out: Any,
    test: Any,
    shifts: Mapping[str, Any] | None = None,
    base: tree.Tree | None = None,
    recipes: Sequence[Any] | Mapping[str, Any] | None = None,
    preprocess: Callable | None = None,
    batch_size: int = 500,
    mesh: jax.sharding.Mesh | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Measure members, cook soups from them and write `results.json`, `report.html`, figures and the soups to a folder.

        results = soups.cook(
            soups.Pool("runs/mine/pool"), model.apply, base=start, workdir="runs/mine",
            held_out=(images_a, labels_a), test=(images_b, labels_b), shifts={"night": (images_c, labels_c)},
            recipes=["uniform", "greedy", "wise_ft", ("ties", {"density": 0.2})],
        )
        best = soups.Pool("runs/mine/soups")["greedy_soup"]

    The same call goes on where an earlier one was killed, and computes nothing twice; other members, data or settings
    in the same folder repeat what depends on them.

    Args:
        members: a pool, or a mapping or sequence of pytrees; those with NaN or infinity are left out.
        apply_fn: `apply_fn(params, inputs) -> logits [B, C]`, each example on its own.
        workdir: the folder.
        held_out: inputs [N, ...] and integer labels [N] that select; a pair, or anything with `images` and `labels`.
        test: the same for the report.
        shifts: the same for test sets from other distributions, by name.
        base: the weights that the members were fine-tuned from, for "wise_ft" and the methods that need them.
        recipes: "uniform", "greedy", "learned", "learned_per_leaf", "wise_ft" (the path from the base to the best
            member), "ensemble" (all, and greedy), any merging method by its name, a pair of one with its settings, or
            `function(members) -> weights`; a mapping gives titles. Default: `RECIPES`.
        preprocess: `preprocess(inputs) -> inputs`, compiled with the network. Default: uint8 becomes float32 in [0, 1],
            all else stays.
        batch_size: the most examples in one step.
        mesh: shards batches over its axis "data".
        seed: of the batches of learned soups.

    Returns:
        What `results.json` holds; docs/results.md describes it.

    Raises:
        ValueError: fewer than two usable members, splits that do not fit the network, unknown recipes, or those that
            need a base that is not given; all of them are listed.
        OSError: the folder cannot be written, or another run works there.
    """
    members = members if isinstance(members, Mapping) else arguments.as_mapping(members)
    wanted = _wanted(recipes, base)
    splits = {
        name: _examples(name, data) for name, data in {"held_out": held_out, "test": test, **(shifts or {})}.items()
    }
    directory = local_path(workdir).absolute()
    kitchen = Kitchen(
        members=members,
        apply_fn=apply_fn,
        held_out=splits.pop("held_out"),
        test=splits.pop("test"),
        shifts=splits,
        directory=directory,
        seed=seed,
        batch_size=batch_size,
        mesh=mesh,
        preprocess=preprocess or unit_range,
    )
    if len(kitchen.names) < 2:
        raise ValueError(f"soups need two members whose numbers are finite; {len(kitchen.names)} of {len(members)} are")
    with held(directory):
        rows, figures, histories = _rows(kitchen, base, wanted)
        results = _results(kitchen, list(wanted), rows, figures, histories)
        on_first_process(lambda: _write(directory, results))
    return results


# --- What is asked for ------------------------------------------------------------------------------------------------

_OWN = ("uniform", "greedy", "learned", "learned_per_leaf", "wise_ft", "ensemble")


def _wanted(given, base) -> dict[str, Any]:
    """Return what is cooked by title: the name of one of our own, a method with its settings, or a function."""
    if given is None:
        given = [name for name in RECIPES if name != "wise_ft" or base is not None]
    titled = given.items() if isinstance(given, Mapping) else ((_title(one), one) for one in given)
    wanted, problems = {}, []
    for title, one in titled:
        found = one if callable(one) or one in _OWN else _method(one, base, problems)
        if one == "wise_ft" and base is None:
            problems.append("wise_ft needs a base")
        if title in wanted:
            problems.append(f"{title!r} is asked for twice: give titles, {{title: recipe}}")
        wanted[str(title)] = found
    if problems or not wanted:
        raise ValueError("\n".join(problems) or "no recipes were asked for")
    return wanted


def _title(one):
    if isinstance(one, str):
        return one
    if callable(one):
        return getattr(one, "__name__", "soup").strip("<>")
    name, settings = one if isinstance(one, tuple) and len(one) == 2 and isinstance(one[1], Mapping) else (one, {})
    return ", ".join([str(name), *(f"{key} = {value}" for key, value in settings.items())])


def _method(one, base, problems):
    name, settings = (one, {}) if isinstance(one, str) else one if _is_pair(one) else (None, None)
    if name not in METHODS:
        known = [*_OWN, *METHODS]
        problems.append(
            f"unknown recipe {one!r}: a recipe is a name, (name, settings) or a function"
            + (did_you_mean(name, known) if name else "")
        )
        return None
    method = METHODS[name]
    if method.base in ("required", "first") and base is None:
        problems.append(f"{name} needs a base")
    unknown = [key for key in settings if key not in method.defaults]
    problems += [f"{name} has no setting {key!r}{did_you_mean(key, method.defaults)}" for key in unknown]
    return method, dict(settings)


def _is_pair(one):
    return isinstance(one, list | tuple) and len(one) == 2 and isinstance(one[0], str) and isinstance(one[1], Mapping)


def _examples(name, data) -> Examples:
    if all(hasattr(data, part) for part in ("images", "labels")):
        return data
    if not isinstance(data, list | tuple) or len(data) != 2:
        raise ValueError(f"{name} is a pair of inputs [N, ...] and labels [N], not a {type(data).__name__}")
    return Examples(data[0], np.asarray(data[1]))


# --- Rows -------------------------------------------------------------------------------------------------------------


def _rows(kitchen, base, wanted) -> tuple[list[Row], dict[str, Any], dict[str, Any]]:
    members = kitchen.single_rows()
    rows, figures, histories = [], {}, {}
    if base is not None:
        rows.append(kitchen.row("base", "start", kitchen.logits(base), {}))
    for title, one in wanted.items():
        made, curve, history = _cooked(kitchen, base, title, one)
        rows += made
        figures |= curve
        histories |= history
    named = {row["name"]: row for row in rows}
    shown = {"best member": kitchen.members[best_of(kitchen.scores)]}
    shown |= {title: kitchen.kept[slug(title)] for title in ("uniform soup", "greedy soup") if title in named}
    figures["reliability"] = curves.reliability_diagrams(kitchen, shown)
    if {"uniform", "greedy"} <= wanted.keys():
        figures["number_of_models"] = curves.number_of_models(kitchen, _counts(len(kitchen.names)))
    return members[:3] + rows + members[3:], figures, histories


def _cooked(kitchen, base, title, one):
    if one == "uniform":
        return [kitchen.uniform_row()], {}, {}
    if one == "greedy":
        row, history = kitchen.greedy_row()
        return [row], {}, {row["name"]: history}
    if one in ("learned", "learned_per_leaf"):
        row, history = kitchen.learned_row("leaf" if one.endswith("leaf") else "model")
        return [row], {}, {row["name"]: history}
    if one == "wise_ft":
        rows, curve = kitchen.path_rows(base, [place / 10 for place in range(11)])
        return rows, {"wise_ft": curve}, {}
    if one == "ensemble":
        rows, history = kitchen.ensemble_rows()
        return rows, {}, {"greedy ensemble": history}
    return [kitchen.merged_row(title, one, base)], {}, {}


def _counts(number):
    return [count for count in (1, 2, 3, 4, 6, 8, 12, 16, 20, 32, 48, 64) if count < number]


# --- Results ----------------------------------------------------------------------------------------------------------


def _results(kitchen, asked, rows, figures, histories) -> dict[str, Any]:
    seed = str(kitchen.seed)
    versions = {package: metadata.version(package) for package in ("jax", "numpy", "orbax-checkpoint")}
    return {
        "schema": SCHEMA,
        "experiment": kitchen.directory.name,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "config": {"recipes": asked, "batch_size": kitchen.batch_size, "seed": kitchen.seed},
        "versions": {"soups": soups.__version__, "python": platform.python_version()} | versions,
        "device": f"{jax.devices()[0].device_kind} x{jax.device_count()}",
        "seeds": [kitchen.seed],
        "splits": {
            "held_out": len(kitchen.held_out.labels),
            "test": len(kitchen.test.labels),
            "shifts": {name: len(data.labels) for name, data in kitchen.shifts.items()},
        },
        "rows": rows,
        "curves": {seed: figures},
        "histories": {seed: histories},
    }


def _write(directory: pathlib.Path, results) -> None:
    state.write(directory / "results.json", results)
    write_report(directory)
