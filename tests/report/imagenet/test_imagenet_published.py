"""Test the published numbers against what else is known of them, and the differences of a run from them."""

import copy

import numpy as np
import pytest

from soups.report.imagenet.published import differences, fractions, member_differences, published, published_pool

SETS = ("held_out", "imagenet", "imagenet_v2", "imagenet_sketch", "imagenet_r", "objectnet", "imagenet_a")
# percent, from the tables of the repository and of the paper
KNOWN = {
    "model_0": (78.081, 75.574, 64.09, 40.529, 62.237, 42.317, 26.573, 47.149),
    "model_43": (83.050, 80.386, 68.44, 44.511, 60.627, 42.619, 23.640, 47.967),
    "model_61": (80.512, 78.110, 66.90, 43.811, 63.820, 47.222, 31.613, 50.673),
    "uniform soup": (82.704, 79.972, 68.51, 47.706, 66.540, 45.951, 29.173, 51.576),
    "greedy soup": (83.977, 81.026, 69.55, 47.775, 64.203, 44.896, 27.893, 50.863),
    "ensemble": (83.812, 81.188, 69.50, 46.338, 65.377, 45.801, 27.360, 50.875),
}
ORDER = (
    "43 44 69 48 63 27 34 60 54 70 32 57 24 46 42 49 47 50 45 3 9 59 56 6 17 26 10 25 19 51 40 21 36 30 53 13 "
    "29 58 67 61 52 22 38 62 11 7 8 28 15 20 12 1 66 37 68 33 14 64 2 55 35 23 65 16 41 18 71 39 5 4 31 0"
)


def correct_of(name):
    known = published()
    return known["soups"][name] if name in known["soups"] else known["members"][name]["correct"]


def row_of(name, correct, kind="member", group="member", ingredients=None):
    found = fractions(correct)
    mean = found.pop("shift_mean")
    ingredients = ingredients or {name: 1.0}
    row = {"name": name, "kind": kind, "group": group, "ingredients": ingredients, "num_ingredients": len(ingredients)}
    return row | {"accuracy": found, "shift_mean": mean, "passes": 1}


@pytest.mark.parametrize("name", KNOWN)
def test_numbers_are_the_published_percentages(name):
    found = fractions(correct_of(name))
    for column, percent in zip((*SETS, "shift_mean"), KNOWN[name], strict=True):
        assert 100 * found[column] == pytest.approx(percent, abs=0.00051), column


def test_all_members_are_there_with_means_and_order_of_the_published_run():
    members = {name: fractions(member["correct"]) for name, member in published()["members"].items()}
    assert list(members) == [f"model_{index}" for index in range(72)]
    assert 100 * np.mean([m["imagenet"] for m in members.values()]) == pytest.approx(77.93, abs=0.005)
    assert 100 * np.mean([m["shift_mean"] for m in members.values()]) == pytest.approx(46.69, abs=0.005)
    ascending = sorted(members, key=lambda name: members[name]["held_out"])
    assert [name.removeprefix("model_") for name in ascending[::-1]] == ORDER.split()
    assert members["model_4"] == members["model_5"]


def test_hyper_parameters_have_the_published_counts():
    found = [m["hyperparameters"] for m in published()["members"].values()]
    assert found[0] == {"info": "LP initialization"}
    epochs = [one["epochs"] for one in found[1:]]
    counts = {4: 8, 5: 7, 6: 4, 7: 4, 8: 2, 9: 6, 10: 6, 11: 6, 12: 8, 13: 5, 14: 7, 15: 5, 16: 3}
    assert {epoch: epochs.count(epoch) for epoch in counts} == counts
    assert sum(one["aug"] is None for one in found[1:]) == 27
    assert sum(one["mix"] == 0 for one in found[1:]) == sum(one["smoothing"] == 0 for one in found[1:]) == 39


def test_only_the_published_members_on_sets_of_the_published_sizes_are_recognised(published_results):
    assert published_pool(published_results) == "soups"
    fewer = copy.deepcopy(published_results)
    fewer["sets"]["imagenet_a"]["examples"] = 7499
    assert published_pool(fewer) is None
    assert differences(fewer, fewer["rows"][0]) == {}
    other = copy.deepcopy(published_results)
    next(row for row in other["rows"] if row["group"] == "member")["name"] = "mine"
    assert published_pool(other) is None
    assert published_pool(published_results | {"config": {"arch": "clip-vit-b16"}}) is None


def test_differences_are_counted_in_images_and_compared_with_what_machines_differ_by(published_results):
    correct = list(correct_of("model_7"))
    correct[1], correct[2], correct[3] = correct[1] + 4, correct[2] - 3, correct[3] + 9
    found = differences(published_results, row_of("model_7", correct))
    assert (found["imagenet"].images, found["imagenet"].tolerance, found["imagenet"].outside) == (4, 4, False)
    assert (found["imagenet_v2"].images, found["imagenet_v2"].outside) == (-3, True)
    assert (found["imagenet_sketch"].images, found["imagenet_sketch"].tolerance) == (9, None)
    assert not found["imagenet_sketch"].outside
    assert found["imagenet"].points == pytest.approx(100 * 4 / 50_000)
    assert found["shift_mean"].images is None
    assert found["shift_mean"].points == pytest.approx(100 * (-3 / 10_000 + 9 / 50_889) / 5)


def test_a_soup_from_the_paper_alone_has_two_rounded_counterparts(published_results):
    for name, (top, shifts) in {
        "learned soup": (80.89, 51.07),
        "greedy soup, random order 2": (80.79, 51.30),
        "greedy ensemble": (81.90, 49.44),
    }.items():
        found = differences(published_results, row_of(name, correct_of("greedy soup"), "soup", "main"))
        assert set(found) == {"imagenet", "shift_mean"}
        assert found["imagenet"].published == pytest.approx(top / 100)
        assert found["shift_mean"].points == pytest.approx(50.863 - shifts, abs=0.001)
        assert found["imagenet"].images is None and not found["imagenet"].outside


def test_the_best_member_is_compared_with_the_same_member(published_results):
    best = row_of("best member", correct_of("model_43"), group="main", ingredients={"model_43": 1.0})
    assert [one.images for one in differences(published_results, best).values()] == [0] * 7 + [None]
    path = row_of(
        "WiSE-FT, α = 0.5", correct_of("model_43"), "interpolation", "main", {"model_0": 0.5, "model_43": 0.5}
    )
    assert differences(published_results, path) == {}


def test_members_are_summarised_by_set(published_results):
    results = copy.deepcopy(published_results)
    members = {row["name"]: row for row in results["rows"] if row["group"] == "member"}
    members["model_3"]["accuracy"]["imagenet"] += 6 / 50_000
    members["model_9"]["accuracy"]["imagenet"] -= 2 / 50_000
    summary = member_differences(results)
    assert list(summary) == list(SETS)
    found = summary["imagenet"]
    assert (found["largest"], found["member"], found["outside"], found["members"]) == (6, "model_3", 1, 72)
    assert found["mean"] == pytest.approx(4 / 72)
    assert summary["objectnet"]["largest"] == 0


def test_the_pair_of_wise_ft_has_its_own_counterparts():
    names = ("zero-shot-vit-l14", "checkpoint-4-vit-l14")
    sizes = {name: {"examples": size, "classes": 1000} for name, size in published()["sets"].items()}
    rows = [row_of(name, correct_of("model_0")) for name in names]
    results = {"config": {"arch": "clip-vit-l14"}, "sets": sizes, "rows": rows}
    assert published_pool(results) == "wise_ft"
    assert differences(results, rows[0])["imagenet"].published == pytest.approx(0.755)
    assert differences(results, rows[1])["imagenet_r"].published == pytest.approx(0.843)
    place = row_of("", correct_of("model_0"), "interpolation", "curve", {names[0]: 0.25, names[1]: 0.75})
    assert {name: one.published for name, one in differences(results, place).items()} == pytest.approx(
        {"imagenet": 0.86, "imagenet_r": 0.874}
    )
    place["ingredients"] = {names[0]: 0.5, names[1]: 0.5}
    assert differences(results, place) == {}
