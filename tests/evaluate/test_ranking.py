"""Rankings of models and their regret, against NumPy and SciPy."""

import itertools
import math

import numpy as np
import pytest
import scipy

from soups.evaluate import gains, rank_by_score, rank_by_similarity, rank_greedily, regret, split_half


@pytest.fixture
def members(rng):
    return {name: {"w": rng.normal(size=(3, 4)), "b": {"c": rng.normal(size=5)}} for name in "abcd"}


@pytest.fixture
def base(rng):
    return {"w": rng.normal(size=(3, 4)), "b": {"c": rng.normal(size=5)}}


def vector(weights, base):
    return np.concatenate([(weights["w"] - base["w"]).ravel(), weights["b"]["c"] - base["b"]["c"]])


def test_gains_are_differences(rng):
    scores, start = rng.normal(size=(5, 7)), rng.normal(size=7)
    expected = [[scores[m, t] - start[t] for t in range(7)] for m in range(5)]
    np.testing.assert_array_equal(gains(scores, start), expected)
    for wrong in (scores[0], scores[:, :6], scores[:0]):
        with pytest.raises(ValueError, match=r"scores \[M, T\] and those of the base"):
            gains(wrong, start)
    scores[2, 3] = np.nan
    with pytest.raises(ValueError, match="NaN or infinity"):
        gains(scores, start)


def test_scores_rank_the_best_first_and_nan_last():
    scores = {"a": 0.5, "nan": math.nan, "b": 0.75, "c": 0.5, "worst": -math.inf}
    assert rank_by_score(scores)[:3] == ["b", "a", "c"]
    assert set(rank_by_score(scores)[3:]) == {"worst", "nan"}


def test_similarity_to_a_target_is_the_cosine_of_task_vectors(members, base, rng):
    like = {"w": rng.normal(size=(3, 4)), "b": {"c": rng.normal(size=5)}}
    target = vector(like, base)

    def cosine(name):
        own = vector(members[name], base)
        return own @ target / np.linalg.norm(own) / np.linalg.norm(target)

    assert rank_by_similarity(members, base, like) == sorted(members, key=cosine, reverse=True)
    assert rank_by_similarity({"a": members["a"]}, base, like) == ["a"]


def test_similarity_to_the_others_is_the_cosine_with_their_mean_direction(members, base):
    units = {name: vector(own, base) / np.linalg.norm(vector(own, base)) for name, own in members.items()}

    def cosine(name):
        mean = sum(unit for other, unit in units.items() if other != name)
        return units[name] @ mean / np.linalg.norm(mean)

    assert rank_by_similarity(members, base) == sorted(members, key=cosine, reverse=True)


def test_similarity_needs_directions(members, base):
    with pytest.raises(ValueError, match="these equal the base: b"):
        rank_by_similarity({"a": members["a"], "b": base}, base)
    with pytest.raises(ValueError, match="nothing to compare 1 members with"):
        rank_by_similarity({"a": members["a"]}, base)
    with pytest.raises(ValueError, match="a member is called 'like'"):
        rank_by_similarity({"a": members["a"], "like": members["b"]}, base, members["c"])
    with pytest.raises(ValueError, match="missing"):
        rank_by_similarity({"a": members["a"], "b": {"w": members["b"]["w"]}}, base)


def test_a_set_grows_by_the_best_each_time(rng):
    names, asked = list("abcde"), []
    table = {subset: rng.normal() for size in range(1, 6) for subset in itertools.combinations(names, size)}

    def value(subset):
        asked.append(subset)
        return table[subset]

    order = rank_greedily(names, value)
    assert sorted(order) == names and len(asked) == len(set(asked)) == 15
    for size in range(5):
        before = set(order[:size])
        found = {new: table[tuple(sorted({*before, new}))] for new in names if new not in before}
        assert order[size] == max(found, key=found.get)
    assert rank_greedily(names, table.get, 2) == order[:2]
    assert rank_greedily("ab", lambda subset: math.nan if subset == ("a",) else 0.0) == ["b", "a"]
    for size in (0, 6):
        with pytest.raises(ValueError, match=r"size must be in \[1, 5\]"):
            rank_greedily(names, table.get, size)
    with pytest.raises(ValueError, match="given twice"):
        rank_greedily("aa", table.get)


def test_regret_is_what_the_best_has_more(rng):
    values = {subset: rng.normal() for subset in itertools.combinations("abcd", 2)}
    best = max(values, key=values.get)
    for subset, value in values.items():
        assert regret(values, reversed(subset)) == max(values.values()) - value
    assert regret(values, best) == 0
    assert regret({"a": 0.5, "ab": 0.75}, "a") == 0.25  # of single models
    with pytest.raises(ValueError, match="unknown choice"):
        regret(values, ["a"])
    with pytest.raises(ValueError, match="twice, in a different order"):
        regret({("a", "b"): 1.0, ("b", "a"): 2.0}, ("a", "b"))
    with pytest.raises(ValueError, match="NaN or infinity"):
        regret({"a": math.nan, "b": 1.0}, "b")


def test_halves_of_the_tasks_agree_as_spearman_says(rng):
    scores = rng.normal(size=(9, 1)) + rng.normal(size=(9, 6))
    halves = [set(half) for half in itertools.combinations(range(6), 3)]
    every = [
        scipy.stats.spearmanr(scores[:, list(half)].mean(1), scores[:, list({*range(6)} - half)].mean(1)).statistic
        for half in halves
    ]
    error = np.std(every) / np.sqrt(2000)  # of the mean over random halves
    assert abs(split_half(scores, splits=2000) - np.mean(every)) < 5 * error
    order = np.random.default_rng(3).permutation(6)
    first, second = (scores[:, part].mean(1) for part in (order[:3], order[3:]))
    expected = scipy.stats.spearmanr(first, second).statistic
    assert split_half(scores, splits=1, seed=3) == pytest.approx(expected, rel=1e-12)
    same = np.arange(5.0)[:, None] + np.arange(4.0)
    assert split_half(same) == pytest.approx(1)
    for wrong in (same[:1], same[:, :1], same[0]):
        with pytest.raises(ValueError, match="at least 2 models on 2 tasks"):
            split_half(wrong)
    with pytest.raises(ValueError, match="there is no order"):
        split_half(np.ones((3, 4)))
