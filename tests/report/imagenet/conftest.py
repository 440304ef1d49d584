"""Make results that look like those of the run on the published members."""

import pytest

from soups.report.imagenet.published import fractions, published


def make_row(name, kind, group, correct, ingredients, passes=1):
    """Give a row with these numbers of images classified rightly."""
    found = fractions(correct)
    mean = found.pop("shift_mean")
    row = {"name": name, "kind": kind, "group": group, "ingredients": ingredients}
    row |= {"num_ingredients": len(ingredients), "accuracy": found, "shift_mean": mean, "passes": passes}
    return row


@pytest.fixture(scope="session")
def published_results():
    """Give results that are exactly the published ones, with a learned soup and a path besides."""
    known = published()
    members = {name: member["correct"] for name, member in known["members"].items()}
    equal = dict.fromkeys(members, 1 / 72)
    chosen = dict.fromkeys(known["greedy_ingredients"], 0.2)
    main = [
        make_row("best member", "member", "main", members["model_43"], {"model_43": 1.0}),
        make_row("best member on the shifts", "member", "main", members["model_61"], {"model_61": 1.0}),
        make_row("uniform soup", "soup", "main", known["soups"]["uniform soup"], equal),
        make_row("greedy soup", "soup", "main", known["soups"]["greedy soup"], chosen),
        make_row("learned soup", "soup", "main", known["soups"]["greedy soup"], equal) | {"temperature": 1.25},
        make_row("ensemble", "ensemble", "main", known["soups"]["ensemble"], equal, passes=72),
    ]
    ends = members["model_0"], members["model_43"]
    path = [
        make_row(
            f"WiSE-FT, α = {alpha:g}",
            "interpolation",
            "curve",
            [round((1 - alpha) * a + alpha * b) for a, b in zip(*ends, strict=True)],
            {"model_0": 1 - alpha, "model_43": alpha},
        )
        for alpha in (0.0, 0.5, 1.0)
    ]
    steps = [{"member": name, "score": 0.83, "accepted": True, "num_ingredients": 1} for name in chosen]
    return {
        "schema": "soups.imagenet/1",
        "experiment": "clip",
        "created": "2025-01-02T03:04:05+00:00",
        "config": {"arch": "clip-vit-b32", "seed": 0},
        "versions": {"soups": "0.1.0"},
        "device": "cpu x2",
        "num_classes": 1000,
        "sets": {name: {"examples": size, "classes": 1000} for name, size in known["sets"].items()},
        "held_out": "published",
        "notes": [],
        "hyperparameters": {},
        "rows": main + path + [make_row(name, "member", "member", c, {name: 1.0}) for name, c in members.items()],
        "histories": {"greedy soup": steps, "learned soup": [0.9, 0.8, 0.7]},
        "timings": {"uniform_soup": 1.5},
    }
