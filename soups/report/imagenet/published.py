"""Know the published numbers, and tell which of them a run's own are to be set beside."""

import functools
import json
import pathlib
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from soups.report.imagenet.results import columns_of, rows_of, value

_SHIFTS = ("imagenet_v2", "imagenet_sketch", "imagenet_r", "objectnet", "imagenet_a")


class Difference(NamedTuple):
    """Hold a published accuracy and how far a run's own is from it.

    Attributes:
        published: a fraction.
        points: ours − published, in percent points.
        images: the same in images of the set; None where the published number is rounded or a mean.
        tolerance: how many images two machines have differed by; None where that is not known.
    """

    published: float
    points: float
    images: int | None
    tolerance: int | None

    @property
    def outside(self) -> bool:
        """Say whether it is more than what is known between machines."""
        return self.images is not None and self.tolerance is not None and abs(self.images) > self.tolerance


@functools.cache
def published() -> Mapping[str, Any]:
    """Return all published numbers with their sources, as published.json has them."""
    return json.loads(pathlib.Path(__file__).with_name("published.json").read_text(encoding="utf-8"))


def published_pool(results: Mapping) -> str | None:
    """Say whether a run is about published files, on data of the published sizes.

    Returns:
        "soups" for the 72 members of model soups, "wise_ft" for the pair of ViT-L/14, else None.
    """
    sizes = published()["sets"]
    if any(found["examples"] != sizes[name] for name, found in results["sets"].items()):
        return None
    names = {row["name"] for row in rows_of(results, "member")}
    if results["config"]["arch"] == "clip-vit-b32" and names == set(published()["members"]):
        return "soups"
    pair = published()["wise_ft"]
    return (
        "wise_ft" if results["config"]["arch"] == "clip-vit-l14" and names == {pair["base"], pair["member"]} else None
    )


def differences(results: Mapping, row: Mapping) -> dict[str, Difference]:
    """Return the differences of a row from its published counterpart, by column; none where there is no counterpart."""
    pool = published_pool(results)
    if pool is None:
        return {}
    exact, rounded = _counterpart(row) if pool == "soups" else ({}, _of_pair(row))
    found = {}
    for column in columns_of(results):
        if column in exact or column in rounded:
            theirs = exact.get(column, rounded.get(column))
            points = 100 * (value(row, column) - theirs)
            count = published()["sets"].get(column)
            images = round(points / 100 * count) if column in exact and count else None
            found[column] = Difference(
                theirs, points, images, published()["tolerance"].get(column) if images is not None else None
            )
    return found


def member_differences(results: Mapping) -> dict[str, dict[str, Any]]:
    """Summarise the differences of all members, by set.

    Each has "mean" and "largest" (in images, with its sign), "member" (that of the largest), "tolerance", "outside" and
    "members" (how many).
    """
    found = [(row["name"], differences(results, row)) for row in rows_of(results, "member")]
    summary = {}
    for column in columns_of(results):
        images = {name: of[column].images for name, of in found if column in of and of[column].images is not None}
        if images:
            worst = max(images, key=lambda name: abs(images[name]))
            summary[column] = {
                "mean": float(np.mean(list(images.values()))),
                "largest": images[worst],
                "member": worst,
                "tolerance": published()["tolerance"][column],
                "outside": sum(of[column].outside for _, of in found),
                "members": len(images),
            }
    return summary


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
