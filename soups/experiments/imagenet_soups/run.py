"""Evaluate a pool on ImageNet and its shifts, cook soups from it, and report, read from top to bottom."""

import contextlib
import functools
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax

from soups.data.imagenet import SETS, count_notes, evaluation_sets, held_out_kind, imagenet_sources
from soups.data.imagenet.layouts import locate
from soups.evaluate import LogitCache
from soups.experiments.imagenet_soups import cooking, published
from soups.experiments.imagenet_soups.members import open_members
from soups.experiments.imagenet_soups.setting import Setting, accuracy_of
from soups.models.architectures import architecture
from soups.names import check_name
from soups.pool import kept_dtype
from soups.processes import all_or_none
from soups.progress import progress
from soups.studies.kitchen import chosen_on_path, slug
from soups.studies.measuring import best_of
from soups.studies.study import Study, check_fields

FIELDS = {
    "": ("study", "name", "seed", "data_dir", "cache_dir", "arch", "pool", "models", "sets", "cook"),
    "evaluate": ("batch_size", "precision", "members_dtype"),
    "greedy": ("random_orders",),
    "learned": ("learning_rate", "epochs", "batch_size"),
    "wise_ft": ("base", "member", "alphas"),
}
COOK = ("uniform", "greedy", "learned", "ensembles", "wise_ft")
PRECISIONS = ("float32", "tensorfloat32", "bfloat16")
MEMBERS_DTYPES = ("auto", "float32", "bfloat16")
HELD_OUT = {
    "published": "The held-out images are chosen by the published index file.",
    "by file name": "The held-out images are chosen by file name, not as published.",
}
ROUNDED = "every member was rounded to {}, so that the memory holds all; the published numbers are of float32"


def run(config: Mapping[str, Any], directory: str | os.PathLike) -> list[str]:
    """Run the whole study in `directory`, or what of it is not finished there, and give the paths it wrote.

    The same command after a crash goes on where it was: no member and no candidate that was measured is measured again.
    Several JAX processes run it together, with one directory that all of them see.

    Raises:
        ValueError: a directory made with another config, unknown names in it, members that do not fit the architecture
            or the classes of the data, a corrupt image; all before the first member is measured.
        FileNotFoundError: no data, pool or files there; all that is missing is listed.
        OSError: the directory cannot be written, another run works there, or the disk is full.
    """
    _check(config)
    with _matmul_precision(config["evaluate"]["precision"]):
        return _STUDY(config, directory)


def _cook(setting: Setting) -> dict[str, Any]:
    rows, histories = _rows(setting)
    config, facts, notes = setting.config, setting.facts, setting.notes
    sizes = {name: len(data) for name, data in setting.datasets.items()}
    names, hyperparameters, more = setting.members.names, setting.members.hyperparameters, {}
    if pool := published.published_pool(config["arch"], sizes, names):
        rows = [row | {"published": published.counterparts(pool, row)} for row in rows]
        notes = notes + published.notes_beside(rows)
        more = {"sources of the published numbers": published.published()["sources"]}
        if pool == "soups":
            hyperparameters = {name: published.published()["members"][name]["hyperparameters"] for name in names}
    digests = {row["name"]: row["digest"] for row in rows if row["group"] == "member"}
    return {
        "splits": _splits(sizes),
        "rows": rows,
        "members": [{"name": n, "config": hyperparameters.get(n, {}), "digest": digests[n]} for n in names],
        "histories": histories,
        "notes": notes,
        "facts": {"the data": facts, **more},
    }


def _splits(sizes):
    roles = {"held_out": "held_out", "imagenet": "test"}
    titles = published.TITLES
    found = {n: {"role": roles.get(n, "shift"), "examples": size, "title": titles[n]} for n, size in sizes.items()}
    if shifts := [name for name in sizes if name not in roles]:
        found["shift_mean"] = {"role": "shift", "mean_of": shifts, "title": titles["shift_mean"]}
    return found


def _check(config):
    check_fields(config, FIELDS)
    for name in config["sets"]:
        check_name(name, SETS, "set")
    for name in config["cook"]:
        check_name(name, COOK, "recipe in cook")
    check_name(config["evaluate"]["precision"], PRECISIONS, "precision")
    check_name(config["evaluate"]["members_dtype"], MEMBERS_DTYPES, "members_dtype")
    if missing := {"held_out", "imagenet"} - set(config["sets"]):
        raise ValueError(f"sets must have {' and '.join(sorted(missing))}: one selects, the other reports")
    if "wise_ft" in config["cook"] and not config["wise_ft"]["alphas"]:
        raise ValueError("wise_ft.alphas must have at least one place between base (0) and member (1)")
    if not config["data_dir"]:
        raise ValueError("data_dir is missing: the directory that holds imagenet/ and the shifts")


# --- Data and members: every check before any long work ---------------------------------------------------------------


def _settings(config, workdir) -> list[Setting]:
    arch = architecture(config["arch"])
    num_classes, members = all_or_none(lambda: _members(config))
    cache_dir = pathlib.Path(config["cache_dir"] or workdir.path.parent / "decoded")  # which other runs share
    datasets = evaluation_sets(
        config["data_dir"], cache_dir, image_size=arch.image_size, sets=config["sets"], progress=progress
    )
    wanted, held_out = config["evaluate"]["members_dtype"], held_out_kind(config["data_dir"])
    # a run that goes on must not change it, however much memory is free by then
    dtype = wanted if wanted != "auto" else workdir.stage("members_dtype", lambda: kept_dtype(members.trees))
    setting = Setting(
        config=config,
        workdir=workdir,
        seed=config["seed"],
        members=members,
        members_dtype=dtype,
        datasets=datasets,
        apply_fn=arch.apply_fn(num_classes=num_classes),
        results=workdir.pool("soups"),
        cache=LogitCache(workdir.path / "logits"),
        facts={
            "num_classes": num_classes,
            "sets": {n: {"examples": len(data), "classes": len(data.class_names)} for n, data in datasets.items()},
            "held_out": held_out,
            "members_dtype": dtype,
        },
        notes=[HELD_OUT[held_out], *count_notes(datasets), *([] if dtype == "float32" else [ROUNDED.format(dtype)])],
    )
    return [setting]


def _members(config):
    locate(config["data_dir"], config["sets"])  # all that is missing in one error
    num_classes = len(imagenet_sources(config["data_dir"], ["imagenet"])["imagenet"].class_names)
    members = open_members(config, num_classes)
    _check_path(config["wise_ft"], members.names)
    return num_classes, members


def _check_path(config, names):
    for name in filter(None, (config["base"], config["member"])):
        check_name(name, names, "member in wise_ft")
    if config["member"] == (config["base"] or names[0]):
        raise ValueError(f"wise_ft leads from {config['member']} to itself: give another base or member")


# --- Rows: each stage is kept as JSON, so a finished one is not repeated ----------------------------------------------


def _rows(setting):
    cook, stage = setting.config["cook"], setting.workdir.stage
    members, rows, histories = _members_and_means(setting)
    digests = {name: row["digest"] for name, row in members.items()}
    if "learned" in cook:
        for per in ("model", "leaf"):
            row, history = stage(f"learned_per_{per}", lambda per=per: cooking.learned_row(setting, digests, per))
            rows, histories[row["name"]] = [*rows, row], history
    if "ensembles" in cook:
        made, histories["greedy ensemble"] = stage("ensembles", lambda: cooking.ensemble_rows(setting, digests))
        rows += made
    if "wise_ft" in cook:
        rows += _path(setting, members)
    return rows + list(members.values()), histories


def _members_and_means(setting):
    """Measure the members, then make the uniform and the greedy soups."""
    cook, stage = setting.config["cook"], setting.workdir.stage
    members = cooking.member_rows(setting)
    digests = {name: row["digest"] for name, row in members.items()}
    rows, histories = cooking.single_rows(setting, members), {}
    if "uniform" in cook:
        rows.append(stage("uniform_soup", lambda: cooking.uniform_row(setting, digests)))
    for title, order in cooking.greedy_orders(setting, list(members)).items() if "greedy" in cook else ():
        made = functools.partial(cooking.greedy_row, setting, members, title, order)
        row, histories[title] = stage(slug(title), made)
        rows.append(row)
    return members, rows, histories


def _path(setting, members):
    config = setting.config["wise_ft"]
    base, alphas = config["base"] or next(iter(members)), config["alphas"]
    others = {name: accuracy_of(row, "held_out") for name, row in members.items() if name != base}
    member = config["member"] or best_of(others)
    rows = [
        setting.workdir.stage(f"wise_ft_{alpha:g}", lambda alpha=alpha: cooking.path_row(setting, base, member, alpha))
        for alpha in alphas
    ]
    return chosen_on_path(rows) + rows


@contextlib.contextmanager
def _matmul_precision(name):
    # not JAX's own context, which other threads do not see
    before = jax.config.jax_default_matmul_precision
    jax.config.update("jax_default_matmul_precision", name)
    try:
        yield
    finally:
        jax.config.update("jax_default_matmul_precision", before)


_STUDY = Study(
    check=_check,
    scenes=_settings,
    cook=_cook,
    packages=("jax", "flax", "optax", "orbax-checkpoint", "numpy", "pillow"),
    folders=("soups",),
)
