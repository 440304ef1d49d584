import json
import math
import os
import re

import jax
import numpy as np
import pytest

import soups

RNG = np.random.default_rng(5)
MEMBERS = {f"m{i}": {"w": RNG.normal(size=6).astype(np.float32)} for i in range(8)}
TARGET = np.mean([m["w"] for m in MEMBERS.values()], axis=0, dtype=np.float64) + 0.1


def evaluate(params):
    return -float(np.sum((params["w"].astype(np.float64) - TARGET) ** 2))


def oracle(order, scores, strict=True):
    """Run recipe 1 of the paper with explicit sums in float64."""
    chosen, best, accepted = [], -math.inf, []
    for name in order:
        mean = np.mean([MEMBERS[n]["w"] for n in [*chosen, name]], axis=0, dtype=np.float64)
        score = -float(np.sum((mean - TARGET) ** 2))
        ok = score > best if strict else score >= best
        accepted.append(ok)
        if ok:
            chosen, best = [*chosen, name], score
    return chosen, best, accepted


def best_first():
    scores = {name: evaluate(m) for name, m in MEMBERS.items()}
    return sorted(scores, key=scores.get, reverse=True), scores


def test_equals_the_paper_written_out():
    order, scores = best_first()
    chosen, best, accepted = oracle(order, scores)
    soup = soups.greedy(MEMBERS, evaluate)
    assert 1 < len(chosen) < 8  # both decisions occur
    assert list(soup.ingredients) == chosen
    assert [step["accepted"] for step in soup.history] == accepted
    np.testing.assert_allclose(soup.score, best, rtol=1e-5)
    np.testing.assert_allclose(soup.params["w"], np.mean([MEMBERS[n]["w"] for n in chosen], axis=0), rtol=1e-5)
    assert sum(soup.ingredients.values()) == pytest.approx(1.0)


def test_given_order_is_followed():
    order = ["m3", "m0", "m7", "m1"]
    chosen, _, _ = oracle(order, None)
    assert list(soups.greedy(MEMBERS, evaluate, order=order).ingredients) == chosen
    assert list(soups.greedy(MEMBERS, evaluate, order=[3, 0, 7, 1]).ingredients) == chosen


def test_given_scores_save_evaluations_and_reads():
    _, scores = best_first()
    reads, evaluations = [], []

    class Counting(dict):
        def __getitem__(self, name):
            reads.append(name)
            return super().__getitem__(name)

    soups.greedy(Counting(MEMBERS), lambda p: evaluations.append(1) or evaluate(p), scores=scores)
    assert sorted(reads) == sorted(MEMBERS)  # each once
    assert len(evaluations) == len(MEMBERS) - 1  # the first is trusted, as in the published code


def test_ties_try_the_later_listed_first():
    members = {name: {"w": np.float32([0])} for name in "abcd"}
    soup = soups.greedy(members, lambda p: 1.0, scores={"a": 0.5, "b": 1.0, "c": 1.0, "d": 0.5})
    assert [step["member"] for step in soup.history] == ["c", "b", "d", "a"]


def test_accept_ge_takes_equals_and_gt_does_not():
    members = [{"w": np.float32([0])}] * 3
    assert len(soups.greedy(members, lambda p: 1.0, accept="ge").ingredients) == 3
    assert len(soups.greedy(members, lambda p: 1.0, accept="gt").ingredients) == 1


def test_mode_min_and_metric():
    soup = soups.greedy(MEMBERS, lambda p: {"loss": -evaluate(p), "accuracy": 0.0}, metric="loss", mode="min")
    assert list(soup.ingredients) == list(soups.greedy(MEMBERS, evaluate).ingredients)
    assert soup.score == pytest.approx(-soups.greedy(MEMBERS, evaluate).score)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "maximum"}, "unknown mode 'maximum'"),
        ({"accept": ">"}, "unknown rule to accept by '>'"),
        ({"order": ["m0", "mm1"]}, "unknown member 'mm1' .did you mean 'm1'"),
        ({"order": ["m0", "m0"]}, "twice"),
        ({"scores": {"m0": 1.0}}, "scores must be given by the names of the members:\n  - m1 is missing"),
        ({"scores": [1.0]}, "8 members need 8 values of scores, but 1"),
        ({"metric": "accuracy"}, "returns a number"),
    ],
)
def test_wrong_options_are_explained(options, message):
    with pytest.raises(ValueError, match=message):
        soups.greedy(MEMBERS, evaluate, **options)


def test_metric_names_are_checked():
    with pytest.raises(ValueError, match="choose one with metric=: accuracy, nll"):
        soups.greedy(MEMBERS, lambda p: {"accuracy": 1.0, "nll": 0.0})
    with pytest.raises(ValueError, match=r"unknown metric 'acuracy' .did you mean 'accuracy'"):
        soups.greedy(MEMBERS, lambda p: {"accuracy": 1.0}, metric="acuracy")


def test_diverged_members_are_left_out_and_recorded():
    members = MEMBERS | {"bad": {"w": np.full(6, np.nan, np.float32)}}
    soup = soups.greedy(members, evaluate)
    assert list(soup.ingredients) == list(soups.greedy(MEMBERS, evaluate).ingredients)
    (step,) = [step for step in soup.history if step["member"] == "bad"]
    assert not step["accepted"]
    assert step["reason"] == "NaN or infinity in w"


def test_all_diverged_is_an_error():
    with pytest.raises(ValueError, match="no member is finite"):
        soups.greedy({"a": {"w": np.float32([np.inf])}}, evaluate)


class Killed(Exception):
    pass


@pytest.mark.parametrize("survived", [0, 3, 8, 9, 12, 14])
def test_goes_on_from_its_journal_with_the_same_bits(survived, tmp_path):
    whole = soups.greedy(MEMBERS, evaluate)
    left = survived

    def dies(params):
        nonlocal left
        if left == 0:
            raise Killed
        left -= 1
        return evaluate(params)

    path = tmp_path / "greedy.jsonl"
    with pytest.raises(Killed):
        soups.greedy(MEMBERS, dies, journal=path)
    path.write_text(path.read_text() + '{"kind": "candi')  # the crash cut a line off
    calls = []
    soup = soups.greedy(MEMBERS, lambda p: calls.append(1) or evaluate(p), journal=path)
    assert len(calls) == 15 - survived  # 8 single scores and 7 candidates, nothing twice
    assert soup.history == whole.history
    np.testing.assert_array_equal(soup.params["w"], whole.params["w"])


def test_journal_of_another_selection_is_refused(tmp_path):
    soups.greedy(MEMBERS, evaluate, journal=tmp_path / "j")
    with pytest.raises(ValueError, match="belongs to another selection"):
        soups.greedy(MEMBERS, evaluate, accept="ge", journal=tmp_path / "j")


@pytest.mark.parametrize("content", ["loss 0.1\n", "[1]\n"])
def test_a_file_that_is_no_journal_is_refused_and_stays(content, tmp_path):
    (tmp_path / "losses.txt").write_text(content)
    with pytest.raises(ValueError, match="losses.txt belongs .*\n.*no line of a journal: '" + re.escape(content[:3])):
        soups.greedy(MEMBERS, evaluate, journal=tmp_path / "losses.txt")
    assert (tmp_path / "losses.txt").read_text() == content


def test_a_full_disk_names_the_journal(tmp_path, monkeypatch):
    path = tmp_path / "greedy.jsonl"
    with open("/dev/full", "w") as full, monkeypatch.context() as patched:
        flushed = []  # first the journal's header, then its records
        patched.setattr(os, "fsync", lambda _: _write_to(full) if flushed else flushed.append(1))
        with pytest.raises(OSError, match=r"cannot write .*greedy\.jsonl: No space left on device"):
            soups.greedy(MEMBERS, evaluate, journal=path)
    soup = soups.greedy(MEMBERS, evaluate, journal=path)
    assert soup.history == soups.greedy(MEMBERS, evaluate).history


def _write_to(full):
    os.write(full.fileno(), b"x")  # fails as the kernel does


def test_record_is_json():
    record = soups.greedy(MEMBERS, evaluate).record()
    assert json.loads(json.dumps(record))["recipe"]["name"] == "greedy"
    assert "params" not in record


def on_a_device(members, evaluate, device):
    return soups.greedy({name: jax.device_put(member, device) for name, member in members.items()}, evaluate)


def put_on_a_device(members, evaluate, device):
    return soups.greedy(members, evaluate, device=device)


def speculatively_on_a_device(members, evaluate, device):
    def evaluate_many(candidates):
        return list(map(evaluate, candidates))

    return soups.greedy_speculative(members, evaluate_many, width=2, device=device)


@pytest.mark.parametrize("mix", [on_a_device, put_on_a_device, speculatively_on_a_device])
@pytest.mark.parametrize("others", [{}, {"n": np.int32([7])}])
def test_members_are_mixed_on_a_device_and_give_the_same_soup(mix, others):
    rng, device = np.random.default_rng(5), jax.devices()[2]

    def member():  # as mapped files give them: some axes lie in another order in memory
        plain, cube, few = (rng.normal(size=size).astype(np.float32) for size in [(3, 4), (2, 1, 5), ()])
        return {"w": plain, "t": plain.T[::2].copy().T, "k": cube.transpose(2, 0, 1), "one": few, **others}

    members = {f"m{i}": member() for i in range(6)}
    members["m2"]["t"][1, 1] = np.inf
    seen = []

    def evaluate(params):
        seen.extend(jax.tree.leaves(params))
        return -sum(float(np.square(np.asarray(params[name], np.float64) - 0.1).sum()) for name in ("w", "t", "k"))

    expected = soups.greedy(members, evaluate)
    assert not any(isinstance(leaf, jax.Array) for leaf in seen)
    seen.clear()
    found = mix(members, evaluate, device)
    placed = [leaf for leaf in seen if leaf.dtype == np.float32]  # an integer is the same in all
    assert placed and all(leaf.devices() == {device} for leaf in placed)
    assert list(found.ingredients) == list(expected.ingredients) and len(found.ingredients) > 1
    assert [step["reason"] for step in found.history] == [step["reason"] for step in expected.history]
    assert "NaN or infinity in t" in [step["reason"] for step in found.history]
    for name, leaf in expected.params.items():
        assert found.params[name].shape == leaf.shape
        assert found.params[name].dtype == leaf.dtype
        np.testing.assert_allclose(found.params[name], leaf, rtol=1e-6, atol=1e-7)


def test_a_soup_is_a_pytree_of_its_weights_and_may_be_a_member():
    members = [{"w": np.float32([1.0, 2.0])}, {"w": np.float32([3.0, 4.0])}]
    soup = soups.greedy(members, lambda params: -float(params["w"][0]))
    assert [leaf.tolist() for leaf in jax.tree.leaves(soup)] == [[1.0, 2.0]]
    doubled = jax.jit(lambda soup: jax.tree.map(lambda leaf: 2 * leaf, soup))(soup)
    assert doubled.params["w"].tolist() == [2.0, 4.0]
    assert doubled.record() == soup.record()
    np.testing.assert_array_equal(soups.uniform([soup, members[1]])["w"], [2.0, 3.0])
