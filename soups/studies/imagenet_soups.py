"""Evaluate a pool on ImageNet and its shifts, cook soups from it, and report, read from top to bottom."""

import contextlib
import functools
from typing import Any

import jax

from soups.data.imagenet import SETS
from soups.names import check_name
from soups.studies import published
from soups.studies.given import OnImageNet, open_run
from soups.studies.kitchen import slug
from soups.studies.study import Study, check_fields

FIELDS = {
    "": "study name seed data_dir cache_dir arch pool models sets cook",
    "evaluate": "batch_size precision members_dtype",
    "greedy": "random_orders",
    "learned": "learning_rate epochs batch_size",
    "wise_ft": "base member alphas",
}
COOK = ("uniform", "greedy", "learned", "ensembles", "wise_ft")
KINDS = {
    "precision": ("float32", "tensorfloat32", "bfloat16"),
    "members_dtype": ("auto", "float32", "bfloat16"),
}


def _check(config):
    check_fields(config, FIELDS)
    chosen = {"set": (config["sets"], SETS), "recipe in cook": (config["cook"], COOK)}
    chosen |= {kind: ([config["evaluate"][kind]], known) for kind, known in KINDS.items()}
    for kind, (names, known) in chosen.items():
        for name in names:
            check_name(name, known, kind)
    if missing := {"held_out", "imagenet"} - set(config["sets"]):
        raise ValueError(f"sets must have {' and '.join(sorted(missing))}: one selects, the other reports")
    if "wise_ft" in config["cook"] and not config["wise_ft"]["alphas"]:
        raise ValueError("wise_ft.alphas must hold at least one number, from the base (0) to the member (1)")
    if not config["data_dir"]:
        raise ValueError("data_dir is missing: the directory that holds imagenet/ and the shifts")


def _scenes(config, workdir) -> list[OnImageNet]:
    return [open_run(config, workdir)]


def _cook(scene: OnImageNet) -> dict[str, Any]:
    config, kitchen, histories = scene.config, scene.kitchen, {}
    cook, rows = config["cook"], _single_rows(kitchen)
    if "uniform" in cook:
        rows.append(scene.cooked("uniform_soup", kitchen.uniform_row))
    if "greedy" in cook:
        for title, order in ({"greedy soup": None} | kitchen.random_orders(config["greedy"]["random_orders"])).items():
            row, histories[title] = scene.cooked(slug(title), functools.partial(kitchen.greedy_row, title, order))
            rows.append(row)
    for per in ("model", "leaf") if "learned" in cook else ():
        make = functools.partial(kitchen.learned_row, per, **config["learned"])
        row, losses = scene.cooked(f"learned_per_{per}", make, "learned")
        rows.append(row)
        histories[row["name"]] = losses
    if "ensembles" in cook:
        made, histories["greedy ensemble"] = scene.cooked("ensembles", kitchen.ensemble_rows)
        rows += made
    if "wise_ft" in cook:
        rows += scene.cooked("wise_ft", lambda: _path_rows(kitchen, config["wise_ft"]), "wise_ft")
    members = [row | {"ingredients": {name: 1.0}, "num_ingredients": 1} for name, row in kitchen.member_rows.items()]
    return _described(scene, rows + members, histories)


def _single_rows(kitchen):
    """Name the best member on the held-out set, the best on the shifts (which nobody could choose), and the mean."""
    best, mean, *_ = kitchen.single_rows()
    oracle = []
    if kitchen.shifts:
        scores = {name: row["metrics"]["shift_mean"]["accuracy"] for name, row in kitchen.member_rows.items()}
        oracle = [kitchen.named_row(kitchen.best(scores), "best member on the shifts")]
    return [best, *oracle, mean]


def _path_rows(kitchen, config):
    base = config["base"] or next(iter(kitchen.members))
    others = {name: score for name, score in kitchen.scores.items() if name != base}
    member = config["member"] or kitchen.best(others)
    return kitchen.path_rows(kitchen.members[base], config["alphas"], called=base, member=member)


def _described(scene, rows, histories):
    kitchen, known = scene.kitchen, scene.kitchen.members.hyperparameters
    sizes = {name: len(data) for name, data in kitchen.splits.items()}
    beside = published.beside(scene.config["arch"], sizes, kitchen.names, rows)
    known = {**known, **beside.hyperparameters}
    return {
        "splits": kitchen.described_splits,
        "rows": beside.rows,
        "members": [one | {"config": known.get(one["name"], {})} for one in kitchen.described_members],
        "histories": histories,
        "notes": scene.notes + beside.notes,
        "facts": {"the data": scene.facts, **beside.facts},
    }


@contextlib.contextmanager
def _precision(config):
    # not JAX's own context, which other threads do not see
    before = jax.config.jax_default_matmul_precision
    jax.config.update("jax_default_matmul_precision", config["evaluate"]["precision"])
    try:
        yield
    finally:
        jax.config.update("jax_default_matmul_precision", before)


run = Study(
    check=_check,
    scenes=_scenes,
    cook=_cook,
    within=_precision,
    packages=("pillow",),
    folders=("soups",),
    changeable=("cook", "greedy", "learned", "wise_ft"),
)
