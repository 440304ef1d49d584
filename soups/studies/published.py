"""Know the published numbers, and tell which of them a run's own are to be set beside."""

import functools
import json
import pathlib
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

_SHIFTS = ("imagenet_v2", "imagenet_sketch", "imagenet_r", "objectnet", "imagenet_a")
TITLES = {
    "held_out": "held-out",
    "imagenet": "ImageNet",
    "imagenet_v2": "V2",
    "imagenet_sketch": "Sketch",
    "imagenet_r": "R",
    "objectnet": "ObjectNet",
    "imagenet_a": "A",
    "shift_mean": "mean of shifts",
}


@functools.cache
def published() -> Mapping[str, Any]:
    """Return all published numbers with their sources, as published.json has them."""
    return json.loads(pathlib.Path(__file__).with_name("published.json").read_text(encoding="utf-8"))


def published_pool(arch: str, sets: Mapping[str, int], members: Collection[str]) -> str | None:
    """Say whether a run is about published files, on sets of the published numbers of images.

    Returns:
        "soups" for the 72 members of model soups, "wise_ft" for the pair of ViT-L/14, else None.
    """
    known, pair = published(), published()["wise_ft"]
    if any(size != known["sets"][name] for name, size in sets.items()):
        return None
    if arch == "clip-vit-b32" and set(members) == set(known["members"]):
        return "soups"
    return "wise_ft" if arch == "clip-vit-l14" and set(members) == {pair["base"], pair["member"]} else None


class Beside(NamedTuple):
    """Hold the rows of a run with the published numbers, and what else results tell of these."""

    rows: list[Mapping]
    notes: Sequence[str] = ()
    facts: Mapping[str, Any] = {}
    hyperparameters: Mapping[str, Any] = {}


def beside(arch: str, sets: Mapping[str, int], members: Collection[str], rows: Sequence[Mapping]) -> Beside:
    """Set the published numbers beside the rows of a run that is about the published files; else leave them alone."""
    pool = published_pool(arch, sets, members)
    if pool is None:
        return Beside(list(rows), [])
    rows = [row | {"published": counterparts(pool, row)} for row in rows]
    known = {name: published()["members"][name]["hyperparameters"] for name in members} if pool == "soups" else {}
    return Beside(rows, notes_beside(rows), {"sources of the published numbers": published()["sources"]}, known)


def counterparts(pool: str, row: Mapping) -> dict[str, dict[str, Any]]:
    """Return by split what was published for a row, as docs/results.md describes it; nothing where nothing was.

    `exact`: it is a number of images; then `tolerance` is how many images two machines have differed by, if known.
    """
    exact, rounded = _counterpart(row) if pool == "soups" else ({}, _of_pair(row))
    found = {}
    for split in (split for split in row["metrics"] if split in exact or split in rounded):
        in_images = split in exact and split in published()["sets"]
        tolerance = published()["tolerance"].get(split) if in_images else None
        found[split] = {"value": exact.get(split, rounded.get(split)), "exact": in_images, "tolerance": tolerance}
    return found


def notes_beside(rows: Sequence[Mapping]) -> list[str]:
    """Say how far the members are from the published ones, and whether the greedy soup took the same."""
    found = [(row, split, known, _images(row, split, known)) for row, split, known in _exact(rows)]
    said = []
    if found:
        judged = [(images, known["tolerance"]) for *_, known, images in found if known["tolerance"]]
        within = sum(abs(images) <= tolerance for images, tolerance in judged)
        row, split, _, worst = max(found, key=lambda one: abs(one[-1]))
        said.append(
            f"Of the {len(judged)} accuracies of members whose spread between machines is known, {within} are within "
            f"it; the largest difference from the published is {worst:+d} images, {row['name']} on {TITLES[split]}."
        )
    for row in (row for row in rows if row["name"] == "greedy soup" and row.get("published")):
        theirs, ours = published()["greedy_ingredients"], list(row["ingredients"])
        same = "the same as published" if ours == theirs else f"published: {', '.join(theirs)}"
        said.append(f"The greedy soup took {', '.join(ours)}; {same}.")
    return said


def _exact(rows):
    members = (row for row in rows if row["group"] == "member")
    return ((row, s, known) for row in members for s, known in row.get("published", {}).items() if known["exact"])


def _images(row, split, known):
    return round((row["metrics"][split]["accuracy"] - known["value"]) * published()["sets"][split])


def fractions(correct) -> dict[str, float]:
    """Turn published numbers of images into fractions by set, and their plain mean over the five shifts."""
    sizes = published()["sets"]
    found = {name: count / size for (name, size), count in zip(sizes.items(), correct, strict=True)}
    return found | {"shift_mean": float(np.mean([found[shift] for shift in _SHIFTS]))}


def _counterpart(row):
    """Return the exact and the rounded published accuracies of a row of the 72 members, by column."""
    known = published()
    name = row["name"]
    if row["kind"] == "member":
        return fractions(known["members"][next(iter(row["ingredients"]))]["correct"]), {}
    if name in known["soups"]:
        return fractions(known["soups"][name]), {}
    if name == "mean member":
        every = [fractions(member["correct"]) for member in known["members"].values()]
        return {}, {column: float(np.mean([found[column] for found in every])) for column in every[0]}
    paper = known["paper"].get(re.sub(r" \d+$", "", name))
    return {}, dict(zip(("imagenet", "shift_mean"), np.array(paper) / 100, strict=True)) if paper else {}


def _of_pair(row):
    """Return the published accuracies of one place between the zero-shot and the fine-tuned ViT-L/14."""
    pair = published()["wise_ft"]
    if row["kind"] not in ("member", "interpolation"):
        return {}
    alpha = row["ingredients"].get(pair["member"], 0.0)
    if alpha not in pair["alpha"]:
        return {}
    place = pair["alpha"].index(alpha)
    return {column: pair[column][place] / 100 for column in ("imagenet", "imagenet_r")}
