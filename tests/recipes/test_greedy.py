import functools
import json
import math
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import soups
from soups.pool import Pool
from soups.recipes._scores import NotFiniteError

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
        ({"mode": "maximum"}, "mode must be"),
        ({"accept": ">"}, "unknown rule to accept by '>'"),
        ({"order": ["m0", "mm1"]}, "unknown member 'mm1' .did you mean 'm1'"),
        ({"order": ["m0", "m0"]}, "twice"),
        ({"scores": {"m0": 1.0}}, "scores must be given by the names of the members:\n  - m1 is missing"),
        ({"scores": [1.0]}, "8 members need 8 values of scores, but 1"),
        ({"scores": dict.fromkeys(MEMBERS, math.nan)}, "no member .* has a score: m0: its score is nan; m1: its"),
        ({"scores": dict.fromkeys(MEMBERS, "best")}, "scores must be numbers, not 'best'"),
        ({"metric": "accuracy"}, "returns a single number"),
        (
            {"metric": "acuracy"},
            r"say whether a higher or a lower 'acuracy' is better \(did you mean 'accuracy'\?\): mode='max'",
        ),
        ({"order": []}, "order is empty: list the members"),
        ({"order": [8]}, "unknown member '8'"),
        ({"order": [-1]}, "unknown member '-1'"),
        ({"order": [1.5]}, "unknown member '1.5'"),
        ({"order": "m0"}, "order must be a sequence of members, not 'm0'"),
        ({"order": {"m0", "m1"}}, "order must be a sequence of members, not {'m"),
        ({"order": 1}, "order must be a sequence of members, not 1"),
    ],
)
def test_wrong_options_are_explained(options, message):
    with pytest.raises(ValueError, match=message):
        soups.greedy(MEMBERS, evaluate, **options)


def test_a_metric_that_an_evaluator_does_not_have():
    def measured(params):
        return {"cost": evaluate(params)}

    measured.modes = {"cost": "min"}
    with pytest.raises(ValueError, match=r"^unknown metric 'acc'; there are: cost$"):
        soups.greedy(MEMBERS, measured, metric="acc")


def search(members, evaluate, **options):
    return soups.evolve(soups.linear, members, evaluate, weights=(0.0, 1.0), budget=8, **options)


def speculative(members, evaluate, **options):
    return soups.greedy_speculative(members, lambda trees: list(map(evaluate, trees)), width=3, **options)


SELECTIONS = [soups.greedy, speculative, search]


@pytest.mark.parametrize("choose", SELECTIONS)
@pytest.mark.parametrize("metric", ["nll", "brier", "ece", "mse", "perplexity", "test/nll", "accuracy", "f1"])
def test_the_direction_of_a_known_metric_is_known(choose, metric):
    sign = 1.0 if metric in ("accuracy", "f1") else -1.0
    found = choose(MEMBERS, lambda params: {metric: sign * evaluate(params)}, metric=metric)
    expected = choose(MEMBERS, evaluate)
    assert found.score == sign * expected.score
    assert found.ingredients == expected.ingredients
    asked = choose(MEMBERS, lambda params: {metric: -sign * evaluate(params)}, metric=metric, mode="max")
    assert asked.ingredients == choose(MEMBERS, lambda params: -sign * evaluate(params)).ingredients


class WithDirections:
    def __init__(self):
        self.modes = {"regret": "min"}

    def __call__(self, params):
        return {"regret": -evaluate(params)}

    def many(self, candidates):
        return [self(params) for params in candidates]


def test_an_evaluator_may_know_the_directions_of_its_metrics():
    measure, expected = WithDirections(), soups.greedy(MEMBERS, evaluate)
    assert soups.greedy(MEMBERS, measure, metric="regret").ingredients == expected.ingredients
    found = soups.greedy_speculative(MEMBERS, measure.many, width=3, metric="regret")
    assert found.ingredients == expected.ingredients


@pytest.mark.parametrize("choose", [soups.greedy, speculative])
@pytest.mark.parametrize("lost", [math.inf, -math.inf, math.nan, NotFiniteError])
def test_one_member_without_a_finite_score_is_left_out_and_recorded(choose, lost):
    def measure(params):
        if params["w"][0] < 100:
            return evaluate(params)
        if lost is NotFiniteError:
            raise NotFiniteError("logits of 3 of 4 examples hold NaN or infinity")
        return lost

    far = {"w": np.float32([1e6, 0, 0, 0, 0, 0])}
    members = {"far": far} | MEMBERS
    expected = choose(MEMBERS, evaluate)
    shown = "nan" if lost is NotFiniteError else str(lost)
    for mode, sign in (("max", 1), ("min", -1)):
        found = choose(members, lambda params, sign=sign: sign * measure(params), mode=mode)
        assert found.ingredients == expected.ingredients
        (step,) = [step for step in found.history if step["member"] == "far"]
        assert not step["accepted"] and step["reason"].replace("-", "") == f"its score is {shown}".replace("-", "")
    scores = {name: measure(MEMBERS[name]) for name in MEMBERS} | {"far": math.inf}
    assert choose(members, measure, scores=scores).ingredients == expected.ingredients
    assert next(iter(choose(members, measure, order=["far", "m3", "m1"]).ingredients)) == "m3"


def many(members, evaluate):
    return soups.greedy_speculative(members, evaluate, width=3)


def diagnose(members, evaluate):
    return soups.diagnose(members, evaluate=evaluate)


@pytest.mark.parametrize("choose", [soups.greedy, many, search, diagnose])
@pytest.mark.parametrize("evaluate", ["accuracy", lambda: 1.0, lambda params, images: 1.0], ids=["text", "none", "two"])
def test_what_is_no_function_of_weights_is_explained(choose, evaluate):
    members = {name: {"w": np.full(2, value, np.float32)} for name, value in {"a": 1, "b": 2}.items()}
    message = r"^evaluate(_many)? (must be a function|is called as) evaluate(_many)?\(params\)"
    with pytest.raises(ValueError, match=message):
        choose(members, evaluate)


@pytest.mark.parametrize("choose", SELECTIONS)
def test_a_score_that_is_no_number_is_explained(choose):
    with pytest.raises(ValueError, match="a score must be a number, but evaluate gives array"):
        choose(MEMBERS, lambda params: params["w"])


def learned(members, evaluate, journal=None):
    return soups.learned(members, lambda params, batch, scale: abs(params["w"]).sum(), [0, 1], journal=journal)


@pytest.mark.parametrize("choose", [*SELECTIONS, learned])
@pytest.mark.parametrize("kind", ["by name", "in a list", "in a pool"])
def test_a_journal_knows_its_members_by_their_weights(choose, kind, tmp_path):
    def given(members, place):
        if kind == "in a pool":
            pool = Pool(tmp_path / place)
            for name, member in members.items():
                pool.add(name, member)
            return pool
        return members if kind == "by name" else list(members.values())

    changed = {**MEMBERS, "m2": {"w": MEMBERS["m2"]["w"] + np.float32(1e-3)}}
    before, path = given(MEMBERS, "before"), tmp_path / "journal"
    choose(before, evaluate, journal=path)
    calls = []
    choose(before, lambda params: calls.append(1) or evaluate(params), journal=path)
    assert not calls  # the same members, read anew
    name = "2" if kind == "in a list" else "m2"
    with pytest.raises(ValueError, match=f"was written by a different call:\n  digests of {name}: .* there, .* here\n"):
        choose(given(changed, "after"), evaluate, journal=path)


def test_a_journal_of_a_search_knows_the_base_and_what_is_fixed(tmp_path):
    def choose(density, base):
        recipe = functools.partial(soups.ties, density=density)
        settings = {"scale": (0.0, 2.0)}
        soups.evolve(recipe, MEMBERS, evaluate, base=base, settings=settings, budget=2, journal=tmp_path / "j")

    zero, one = ({"w": np.full(6, value, np.float32)} for value in (0, 1))
    choose(0.5, zero)
    choose(0.5, {"w": jnp.zeros(6, jnp.float32)})
    with pytest.raises(ValueError, match="a different call:\n  base: "):
        choose(0.5, one)
    with pytest.raises(ValueError, match=r"a different call:\n  fixed of density: 0.5 there, 0.25 here"):
        choose(0.25, zero)


def test_a_journal_whose_scores_hold_nan_is_gone_on_with(tmp_path):
    scores = {name: math.nan if name == "m1" else evaluate(member) for name, member in MEMBERS.items()}
    first, again = (soups.greedy(MEMBERS, evaluate, scores=scores, journal=tmp_path / "j") for _ in range(2))
    assert repr(first.record()) == repr(again.record()) and "m1" not in again.ingredients


def test_metric_names_are_checked():
    with pytest.raises(ValueError, match="choose one with metric=: accuracy, nll"):
        soups.greedy(MEMBERS, lambda p: {"accuracy": 1.0, "nll": 0.0})
    with pytest.raises(ValueError, match=r"unknown metric 'acuracy' .did you mean 'accuracy'"):
        soups.greedy(MEMBERS, lambda p: {"accuracy": 1.0}, metric="acuracy", mode="max")


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
    with pytest.raises(ValueError, match="was written by a different call"):
        soups.greedy(MEMBERS, evaluate, accept="ge", journal=tmp_path / "j")


@pytest.mark.parametrize("content", ["loss 0.1\n", "[1]\n"])
def test_a_file_that_is_no_journal_is_refused_and_stays(content, tmp_path):
    (tmp_path / "losses.txt").write_text(content)
    with pytest.raises(ValueError, match=r"line 1 of journal .*losses\.txt does not have the bytes"):
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
        # on the device a mean is a sum in float32, of at most 6 members of sizes below 4
        np.testing.assert_allclose(found.params[name], leaf, rtol=0, atol=6 * 2**-24 * 4)


def test_a_soup_is_a_pytree_of_its_weights_and_may_be_a_member():
    members = [{"w": np.float32([1.0, 2.0])}, {"w": np.float32([3.0, 4.0])}]
    soup = soups.greedy(members, lambda params: -float(params["w"][0]))
    assert [leaf.tolist() for leaf in jax.tree.leaves(soup)] == [[1.0, 2.0]]
    doubled = jax.jit(lambda soup: jax.tree.map(lambda leaf: 2 * leaf, soup))(soup)
    assert doubled.params["w"].tolist() == [2.0, 4.0]
    assert doubled.record() == soup.record()
    np.testing.assert_array_equal(soups.uniform([soup, members[1]])["w"], [2.0, 3.0])
