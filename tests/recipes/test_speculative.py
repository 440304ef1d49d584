"""Speculative selection is the greedy one: the same decisions, bits and journals, in the rounds of the scheme."""

import math
import time
import zlib

import jax.numpy as jnp
import numpy as np
import pytest

import soups
from soups.recipes.speculative import greedy_speculative

WIDTHS = (1, 2, 3, 8, 20)


def make_members(rng, count=12, dtype=np.float32):
    members = {f"m{i}": {"w": rng.normal(size=4).astype(dtype), "n": np.int32([7])} for i in range(count)}
    for name in rng.choice(list(members), 2, replace=False):
        members[str(name)]["w"][1] = np.nan
    return members


def lottery(seed):
    """Return an evaluate whose scores are random functions of the weights: few levels, so ties; now and then NaN."""

    def evaluate(params):
        drawn = zlib.crc32(np.asarray(params["w"], np.float64).tobytes() + bytes([seed])) % 11
        return math.nan if drawn == 0 else float(drawn // 2)

    return evaluate


class Rounds(list):
    """Evaluate many at once, and keep the sizes of the rounds."""

    def __init__(self, evaluate, die_at=None):
        self._evaluate = evaluate
        self._die_at = die_at

    def __call__(self, candidates):
        if len(self) == self._die_at:
            raise Killed
        self.append(len(candidates))
        return [self._evaluate(candidate) for candidate in candidates]


class Killed(Exception):
    pass


def rounds_of_the_scheme(history, width, trusted):
    """Count by the scheme in words: `width` candidates of one soup at once, again from behind each that is accepted."""
    sizes, position, empty = [], 0, True
    while position < len(history):
        left = [i for i in range(position, len(history)) if "NaN" not in (history[i]["reason"] or "")]
        taken = left[:1] if empty else left[:width]
        if not taken:
            break
        if not (empty and trusted):
            sizes.append(len(taken))
        accepted = [i for i in taken if history[i]["accepted"]]
        empty = empty and not accepted
        position = (accepted or taken[-1:])[0] + 1
    return sizes


def same(soup, other):
    assert repr(soup.record()) == repr(other.record())  # a NaN is not itself, but it is written alike
    for name, leaf in other.params.items():
        assert soup.params[name].dtype == leaf.dtype
        np.testing.assert_array_equal(soup.params[name], leaf)


def settings(rng, names):
    """Draw how a selection is asked for."""
    scores = {name: float(rng.integers(4)) for name in names}
    order = [str(name) for name in rng.permutation(names)[: rng.integers(3, len(names) + 1)]]
    choice = [{"scores": scores}, {"order": order}, {}][rng.integers(3)]
    return {"accept": str(rng.choice(["gt", "ge"])), "mode": str(rng.choice(["max", "min"])), **choice}


@pytest.mark.parametrize("seed", range(24))
def test_the_same_soup_history_and_journal(seed, tmp_path):
    rng = np.random.default_rng(seed)
    members, evaluate = make_members(rng, dtype=[np.float32, jnp.bfloat16][seed % 2]), lottery(seed)
    asked = settings(rng, list(members))
    one_by_one = soups.greedy(members, evaluate, journal=tmp_path / "greedy", **asked)
    for width in WIDTHS:
        rounds = Rounds(evaluate)
        same(greedy_speculative(members, rounds, width=width, journal=tmp_path / str(width), **asked), one_by_one)
        assert (tmp_path / str(width)).read_text() == (tmp_path / "greedy").read_text()
        if "scores" in asked or "order" in asked:
            assert rounds == rounds_of_the_scheme(one_by_one.history, width, "scores" in asked)


def test_both_decisions_ties_and_nan_occur_in_these_lotteries():
    accepted, rejected, undecided = 0, 0, 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        history = soups.greedy(make_members(rng), lottery(seed), accept="ge").history
        accepted += sum(step["accepted"] for step in history) - 1
        rejected += sum(not step["accepted"] and not math.isnan(step["score"]) for step in history)
        undecided += sum(math.isnan(step["score"]) and step["reason"] == "its score is nan" for step in history)
    assert min(accepted, rejected, undecided) > 20


def test_single_scores_are_evaluated_at_once(rng):
    members = make_members(rng)
    rounds = Rounds(lottery(1))
    greedy_speculative(members, rounds, width=4, order=None)
    assert rounds[:3] == [4, 4, 2]  # ten of the twelve are finite


def test_few_evaluations_are_wasted():
    members = {f"m{i}": {"w": np.float32([i == j for j in range(72)])} for i in range(72)}
    wanted = {0, 1, 10, 16, 17}

    def evaluate(params):
        inside = set(np.flatnonzero(params["w"]))
        return float(len(inside & wanted) - len(inside - wanted))

    rounds = Rounds(evaluate)
    soup = greedy_speculative(members, rounds, width=8, scores=[float(-i) for i in range(72)])
    assert [int(name[1:]) for name in soup.ingredients] == sorted(wanted)
    assert rounds == [8] * 11 + [6]  # from candidate 1, 2, 10, 11, 17, then 18, 26, ..., 66
    assert len(rounds) <= math.ceil(71 / 8) + 4


@pytest.mark.parametrize("width", [1, 3])
@pytest.mark.parametrize("goes_on", ["greedy", "speculative"])
def test_goes_on_from_a_journal_cut_anywhere(goes_on, width, tmp_path, rng):
    members, evaluate, path = make_members(rng), lottery(3), tmp_path / "journal"
    whole = greedy_speculative(members, Rounds(evaluate), width=width, accept="ge", journal=path)
    lines = path.read_text().splitlines(keepends=True)
    assert sum(step["accepted"] for step in whole.history) > 2
    for kept in range(1, len(lines) + 1):
        path.write_text("".join(lines[:kept]) + '{"kind": "candi')
        rounds = Rounds(evaluate)
        if goes_on == "greedy":
            soup = soups.greedy(members, lambda params, rounds=rounds: rounds([params])[0], accept="ge", journal=path)
        else:
            soup = greedy_speculative(members, rounds, width=width, accept="ge", journal=path)
        same(soup, whole)
        assert path.read_text() == "".join(lines)
    assert rounds == []


@pytest.mark.parametrize("survived", range(5))
def test_killed_in_a_round_it_goes_on_after_the_last_decision(survived, tmp_path, rng):
    members, evaluate, path = make_members(rng), lottery(3), tmp_path / "journal"
    order = {"order": list(members), "accept": "ge"}
    whole = soups.greedy(members, evaluate, **order)
    before, after = Rounds(evaluate, die_at=survived), Rounds(evaluate)
    with pytest.raises(Killed):
        greedy_speculative(members, before, width=3, journal=path, **order)
    same(greedy_speculative(members, after, width=3, journal=path, **order), whole)
    assert [*before, *after] == rounds_of_the_scheme(whole.history, 3, trusted=False)  # no round twice


def test_members_are_read_once_though_their_candidates_are_stale(rng):
    members, reads = make_members(rng), []

    class Counting(dict):
        def __getitem__(self, name):
            reads.append(name)
            time.sleep(0.003)  # so that acceptances find threads that read
            return super().__getitem__(name)

    rounds = Rounds(lambda params: 1.0)
    soup = greedy_speculative(Counting(members), rounds, width=5, scores=dict.fromkeys(members, 1.0), accept="ge")
    assert len(soup.ingredients) == 10
    assert rounds == [5, 5, 5, 5, 5, 4, 3, 2, 1]  # all are accepted, so all but the first of a round are stale
    assert sorted(reads) == sorted(members)


def test_metrics_are_picked_by_name(rng):
    members, evaluate = make_members(rng), lottery(5)

    def both(candidates):
        return [{"score": evaluate(candidate), "zero": 0.0} for candidate in candidates]

    same(
        greedy_speculative(members, both, width=4, metric="score"),
        soups.greedy(members, lambda params: both([params])[0], metric="score"),
    )


def test_candidates_are_evaluated_in_the_dtypes_in_which_they_are_returned(rng):
    members, seen = make_members(rng, dtype=jnp.bfloat16), set()

    def evaluate(params):
        seen.add(params["w"].dtype)
        return 1.0

    soup = greedy_speculative(members, Rounds(evaluate), width=3, accept="ge")
    soups.greedy(members, evaluate, accept="ge")
    assert seen == {soup.params["w"].dtype} == {np.dtype(jnp.bfloat16)}


# --- Bad input ---


def test_wrong_use_is_explained(rng):
    members = make_members(rng)
    with pytest.raises(ValueError, match="width must be at least 1, not 0"):
        greedy_speculative(members, Rounds(lottery(0)), width=0)
    with pytest.raises(ValueError, match="evaluate_many gave 1 scores for 4 candidates"):
        greedy_speculative(members, lambda candidates: [1.0], width=4)
    with pytest.raises(ValueError, match="mode must be 'max' or 'min', not 'most'"):
        greedy_speculative(members, Rounds(lottery(0)), width=4, mode="most")
    with pytest.raises(ValueError, match="unknown member 'm99'"):
        greedy_speculative(members, Rounds(lottery(0)), width=4, order=["m99"])
    with pytest.raises(ValueError, match="choose one with metric=: accuracy"):
        greedy_speculative(members, lambda candidates: [{"accuracy": 1.0}] * len(candidates), width=4)


def test_a_member_of_another_structure_is_named(rng):
    members = make_members(rng)
    members["m5"] = {"w": np.zeros(5, np.float32), "n": np.int32([7])}
    with pytest.raises(ValueError, match=r"m5: w has shape \(5,\) instead of \(4,\)"):
        greedy_speculative(members, Rounds(lottery(0)), width=4, order=["m1", "m2", "m5", "m3"])


def test_no_finite_member_is_an_error():
    members = {name: {"w": np.float32([np.inf])} for name in "abc"}
    with pytest.raises(ValueError, match="no member is finite and has a score: a: NaN or infinity in w; b"):
        greedy_speculative(members, Rounds(lottery(0)), width=2)


def test_an_error_of_reading_arrives(rng):
    class Broken(dict):
        def __getitem__(self, name):
            if name == "m4":
                raise OSError("the disk is gone")
            return super().__getitem__(name)

    with pytest.raises(OSError, match="the disk is gone"):
        greedy_speculative(Broken(make_members(rng)), Rounds(lottery(0)), width=3)
