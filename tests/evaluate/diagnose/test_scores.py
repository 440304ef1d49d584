"""Scores, barriers and soups, and the verdicts that they decide."""

import itertools
import math

import numpy as np
import pytest
from findings import flat, kinds, the

from soups import tree, uniform
from soups.evaluate.diagnose import diagnose
from soups.pool import Pool


def test_a_permuted_copy_has_to_be_aligned(rng, nets, base, accuracy):
    order = rng.permutation(16)
    a, b = nets.near(base, 0.02), nets.permuted(nets.near(base, 0.02), order)
    found = diagnose([a, b], evaluate=accuracy)
    assert found.verdict == "align first" and found.keep == [] and found.leave_out == {}
    expected = (accuracy(a) + accuracy(b)) / 2 - accuracy(tree.lerp(a, b, 0.5))
    assert expected > 0.2
    np.testing.assert_allclose(found.barriers, [[0, expected], [expected, 0]], rtol=1e-12)
    np.testing.assert_array_equal(found.scores, [accuracy(a), accuracy(b)])
    assert the(found, "barrier").severity == "problem" and the(found, "start").severity == "warning"
    back = nets.permuted(b, np.argsort(order))
    assert diagnose([a, back], evaluate=accuracy).verdict == "average"


def test_one_member_behind_a_barrier(nets, base, family, accuracy):
    members = {"other": nets.permuted(nets.near(base, 0.02)), **family}
    found = diagnose(members, base=base, evaluate=accuracy)
    assert found.verdict == "average some" and list(found.leave_out) == ["other"]
    assert "barrier" in found.leave_out["other"]
    assert found.soup_scores == {
        "all": accuracy(uniform(members)),
        "keep": accuracy(uniform(family)),
    }
    assert found.tolerance == pytest.approx(0.05 * np.median(found.scores))


def test_the_better_of_two_equal_basins_is_kept(nets, base, accuracy):
    order = np.roll(np.arange(16), 5)
    worse = [nets.permuted(nets.near(base, step), order) for step in (0.1, 0.11)]
    better = [nets.near(base, 0.01), nets.near(base, 0.01)]
    found = diagnose([*worse, *better], evaluate=accuracy)
    assert found.scores[:2].max() < found.scores[2:].min()
    assert found.keep == ["2", "3"] and found.verdict == "average some"


def test_barriers_decide_against_angles(rng, base, family, accuracy):
    # far away in directions that no unit sees: a family by its scores
    def padded(member, index):
        idle = np.zeros((8, 400), np.float32)
        idle[index % 8] = 3 * rng.normal(size=400)
        return {**member, "idle": {"kernel": idle}}

    members = {name: padded(member, index) for index, (name, member) in enumerate(family.items())}
    assert diagnose(members).verdict == "align first"
    found = diagnose(members, evaluate=accuracy)
    assert found.verdict == "average" and the(found, "start").severity == "warning"


def test_a_member_far_off_without_a_barrier_stays(nets, base, family):
    members = {**family, "far": nets.near(base, 0.7)}
    assert diagnose(members, base=base).verdict == "average some"
    found = diagnose(members, base=base, evaluate=lambda p: 0.9)
    assert found.verdict == "average"
    assert the(found, "far").members == ("far",) and the(found, "far").severity == "warning"


def test_each_further_member_is_measured_with_the_most_central(nets, base, accuracy):
    members = {f"m{index}": nets.near(base, 0.03) for index in range(7)}
    members["other"] = nets.permuted(nets.near(base, 0.05))
    calls = []
    found = diagnose(members, evaluate=lambda p: calls.append(p) or accuracy(p), max_members=4, points=3)
    # 8 members, 6 pairs and 4 more, 3 points each, 2 soups
    assert len(calls) == 8 + (6 + 4) * 3 + 2
    assert found.leave_out.keys() == {"other"} and "pairs" in kinds(found)
    measured = ~np.isnan(found.barriers) & ~np.eye(8, dtype=bool)
    assert measured.sum() == 2 * 10 and measured.any(axis=1).all()
    assert sorted(measured.sum(axis=1)) == [1, 1, 1, 1, 3, 3, 3, 7]
    assert "pairs" not in kinds(diagnose(members, evaluate=accuracy, points=1))


def test_the_worst_of_several_points(base, accuracy, nets):
    a, b = nets.near(base, 0.02), nets.permuted(nets.near(base, 0.02))
    found = diagnose([a, b], evaluate=accuracy, points=3)
    drops = [(1 - t) * accuracy(a) + t * accuracy(b) - accuracy(tree.lerp(a, b, t)) for t in (0.25, 0.5, 0.75)]
    assert found.barriers[0, 1] == pytest.approx(max(drops), rel=1e-12)


def test_a_loss_in_a_mapping(nets, base, accuracy):
    def evaluate(params):
        return {"loss": 1.01 - accuracy(params), "accuracy": accuracy(params)}

    a, b = nets.near(base, 0.02), nets.permuted(nets.near(base, 0.02))
    by_loss = diagnose([a, b], evaluate=evaluate, metric="loss")
    by_accuracy = diagnose([a, b], evaluate=evaluate, metric="accuracy")
    assert by_loss.verdict == by_accuracy.verdict == "align first"
    np.testing.assert_allclose(by_loss.barriers, by_accuracy.barriers, rtol=1e-9)


def test_a_weak_member_and_one_without_a_score(family, accuracy):
    def evaluate(params):
        if np.shares_memory(params["Dense_0"]["kernel"], family["m1"]["Dense_0"]["kernel"]):
            raise ValueError("logits hold NaN")
        return 0.1 if params is family["m4"] else accuracy(params)

    found = diagnose(family, evaluate=evaluate)
    assert found.leave_out["m1"] == "it has no score" and "logits hold NaN" in the(found, "score").what
    assert the(found, "weak").members == ("m4",) and "it scores 0.1" in found.leave_out["m4"]
    assert found.verdict == "average some" and found.keep == ["m0", "m2", "m3", "m5"]
    assert np.isnan(found.scores[1]) and np.isnan(found.barriers[4]).all()


def test_an_infinite_score_is_none(family):
    found = diagnose(family, evaluate=lambda p: math.inf if p is family["m2"] else 1.0, mode="min")
    assert found.leave_out == {"m2": "it has no score"} and math.isnan(found.scores[2])
    assert found.verdict == "average some"


def test_a_path_without_a_score_is_a_barrier(family):
    ends = {id(member) for member in family.values()}
    found = diagnose(family, evaluate=lambda p: 0.9 if id(p) in ends else math.nan)
    assert np.isinf(found.barriers[0, 1]) and found.verdict == "align first"
    assert found.record()["barriers"][0][1] is None


def test_a_soup_worse_than_each_of_its_members(family):
    members = {name: family[name] for name in ("m0", "m1", "m2")}
    center = flat(uniform(members))
    found = diagnose(members, evaluate=lambda p: 0.2 if np.linalg.norm(flat(p) - center) < 1e-3 else 0.9)
    assert found.barriers.max() == 0
    assert found.verdict == "do not average" and found.keep == []
    assert the(found, "soup").severity == "problem" and "soups.greedy" in the(found, "soup").advice
    behind = diagnose(members, evaluate=lambda p: 0.9 if np.linalg.norm(flat(p) - center) < 1e-3 else 0.91)
    assert behind.verdict == "average" and the(behind, "soup").severity == "warning"


def test_a_pool_with_scores(family, accuracy, tmp_path):
    pool = Pool(tmp_path / "pool")
    for name, member in itertools.islice(family.items(), 3):
        pool.add(name, member)
    found = diagnose(pool, evaluate=accuracy)
    expected = diagnose({name: family[name] for name in pool}, evaluate=accuracy)
    assert found.record() == expected.record()
