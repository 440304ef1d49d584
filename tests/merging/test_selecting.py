"""Test searches, greedy soups and rankings of models on disk on problems whose answers are known."""

import json
import math
import re

import numpy as np
import pytest

import soups
from soups.formats import open_checkpoint, write_safetensors
from soups.merging.evaluation import evaluation
from soups.merging.outputs import check_output, write_output
from soups.merging.record import plan_again, read_record
from soups.merging.run import verify_output
from soups.merging.selecting import greedy, rank, search
from soups.merging.trials import Trials, digests_of, held_work
from soups.recipes._search import Axis

RNG = np.random.default_rng(5)
BASE = RNG.normal(size=(6, 7)).astype(np.float32)
STEPS = RNG.normal(size=(4, 6, 7)).astype(np.float32)
NAMES = ["a", "b", "c", "d"]


class Counting:
    """Be an evaluation: minus the squared distance to a target, and how often it was asked."""

    def __init__(self, target, limit=math.inf, script="1", metric=None):
        self.target, self.limit, self.calls = np.asarray(target, np.float64), limit, 0
        self.identity = {"evaluation": "distance", "metric": metric, "scripts": {"e.py": script}}

    def of(self, weights):
        return -float(np.sum((np.asarray(weights, np.float64) - self.target) ** 2))

    def __call__(self, model, log):
        if self.calls == self.limit:
            raise KeyboardInterrupt
        self.calls += 1
        return self.of(open_checkpoint(model).read("w"))


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Work in a folder with a base and members, safetensors files, and a pool of the same members."""
    monkeypatch.chdir(tmp_path)
    write_safetensors("base", {"w": BASE})
    for name, step in zip(NAMES, STEPS, strict=True):
        write_safetensors(name, {"w": BASE + step})
    return tmp_path


def members(count=4):
    return {name: {"w": BASE + step} for name, step in zip(NAMES[:count], STEPS, strict=False)}


def recipe(method="task_arithmetic", names="abc", **parameters):
    models = [{"model": name} for name in names]
    made = {"vocabulary": "published", "merge_method": method, "models": models, "parameters": parameters}
    return made | {"base_model": "base"}


def mixed(*weights):
    """Return the base plus the first steps by these weights, in float64."""
    return BASE.astype(np.float64) + np.tensordot(weights, STEPS[: len(weights)].astype(np.float64), 1)


def trials(place, evaluate, name="work", **options):
    return Trials(place / name, evaluate, **options)


def by_cma(made, axes, given=None, **options):
    return search(made, given or recipe(), axes, **{"by": "cma", "budget": 30, "mode": "max"} | options)


SCALE = [Axis("scale", 0.0, 2.0)]
EACH = [Axis("weight", -1.0, 1.0, of_member=True)] * 3


def test_the_best_scale_is_that_of_least_squares(place):
    target = mixed(0.9, 0.6, 0.3)
    along = STEPS[:3].astype(np.float64).sum(0)
    best = float(((target - BASE) * along).sum() / (along**2).sum())
    found = by_cma(trials(place, Counting(target)), SCALE)
    assert found.recipe["parameters"]["scale"] == pytest.approx(best, abs=0.05)
    assert found.score == max(step["score"] for step in found.steps) and len(found.steps) == 30


def test_the_best_weights_of_members_are_found(place):
    found = by_cma(trials(place, Counting(mixed(0.7, -0.4))), EACH[:2], recipe(names="ab", scale=1.0), budget=60)
    weights = [model["parameters"]["weight"] for model in found.recipe["models"]]
    np.testing.assert_allclose(weights, [0.7, -0.4], atol=0.05)


def test_a_search_is_that_of_weights_in_memory(place):
    evaluate = Counting(mixed(0.9, 0.6, 0.3))
    found = by_cma(trials(place, evaluate, seed=3), [*SCALE, *EACH], budget=25)
    settings = {"scale": (0.0, 2.0)}
    soup = soups.evolve(
        soups.task_arithmetic,
        members(3),
        lambda tree: evaluate.of(tree["w"]),
        base={"w": BASE},
        settings=settings,
        weights=(-1.0, 1.0),
        budget=25,
        seed=3,
    )
    flat = [(step["settings"]["scale"], step["settings"]["weight"], step["score"]) for step in found.steps]
    assert flat == [(step["scale"], step["weights"], step["score"]) for step in soup.history]


def test_a_grid_tries_all_and_random_ones_depend_on_seed_and_number_alone(place):
    evaluate = Counting(mixed(1, 1, 1))
    axes = [Axis("density", 0.2, 1.0, number=2), Axis("scale", 0.1, 10.0, logarithmic=True, number=3)]
    axes.append(Axis("normalize", values=(True, False)))
    found = by_cma(trials(place, evaluate), axes, recipe("ties"), by="grid")
    tried = [tuple(step["settings"].values()) for step in found.steps]
    assert tried == [(d, s, n) for d in (0.2, 1.0) for s in (0.1, 1.0, 10.0) for n in (True, False)]
    few = by_cma(trials(place, evaluate, "r"), SCALE, by="random", budget=4)
    many = by_cma(trials(place, evaluate, "s"), SCALE, by="random", budget=9)
    assert many.steps[:4] == few.steps and len({step["settings"]["scale"] for step in many.steps}) == 9
    other = by_cma(trials(place, evaluate, "t", seed=1), SCALE, by="random", budget=4)
    assert other.steps != few.steps


def test_a_whole_number_stays_one_and_what_was_tried_is_not_tried_again(place):
    evaluate = Counting(mixed(1, 1, 1))
    axes = [Axis("seed", 0, 2, whole=True)]
    found = by_cma(trials(place, evaluate), axes, recipe("dare", density=0.5), by="random", budget=20)
    assert {step["settings"]["seed"] for step in found.steps} == {0, 1, 2} and evaluate.calls == 3


@pytest.mark.parametrize("survived", [0, 6])
def test_a_search_goes_on_evaluates_nothing_twice_and_continues(place, survived):
    target = mixed(0.9, 0.6, 0.3)
    whole = by_cma(trials(place, Counting(target), "whole"), SCALE, budget=12)
    with pytest.raises(KeyboardInterrupt):
        by_cma(trials(place, Counting(target, survived)), SCALE, budget=8)
    again = Counting(target)
    assert by_cma(trials(place, again), SCALE, budget=8).steps == whole.steps[:8]
    assert by_cma(trials(place, again), SCALE, budget=12).steps == whole.steps
    assert again.calls == 12 - survived
    # a score belongs to content: other names and another place change nothing
    for name in ("base", *NAMES):
        (place / name).rename(place / f"moved_{name}")
    moved = recipe(names=["moved_a", "moved_b", "moved_c"]) | {"base_model": "moved_base"}
    assert by_cma(trials(place, again), SCALE, moved, budget=12).steps == whole.steps
    assert again.calls == 12 - survived
    write_safetensors("moved_b", {"w": BASE})  # but other content does
    by_cma(trials(place, again), SCALE, moved, budget=2)
    assert again.calls == 14 - survived


def test_a_candidate_that_is_not_finite_is_the_worst_and_its_reason_is_kept(place):
    for name in "bc":
        write_safetensors(name, {"w": np.float32([3e38])})
    write_safetensors("base", {"w": np.float32([0])})
    evaluate = Counting([1e38])
    axes = [Axis("scale", 0.1, 1.9, number=4)]
    found = by_cma(trials(place, evaluate), axes, recipe(names="bc"), by="grid")
    assert [math.isfinite(step["score"]) for step in found.steps] == [True, False, False, False]
    record = json.loads(json.dumps(found.record, allow_nan=False))
    assert record["steps"][1]["score"] is None
    assert [step["reason"] is None for step in found.steps] == [True, False, False, False]
    with pytest.raises(ValueError, match="none of the 2 candidates has a finite score"):
        by_cma(trials(place, evaluate), [Axis("scale", values=(1.3, 1.9))], recipe(names="bc"), by="grid")


def test_greedy_is_that_of_weights_in_memory(place):
    evaluate = Counting(mixed(0.4, 0.3, 0.0, 0.3))
    for accept in ("gt", "ge"):
        found = greedy(trials(place, evaluate), NAMES, mode="max", accept=accept)
        soup = soups.greedy(members(), lambda tree: evaluate.of(tree["w"]), accept=accept)
        assert found.recipe["models"] == list(soup.ingredients) and 1 < len(soup.ingredients) < 4
        kept = [{name: value for name, value in step.items() if name != "alone"} for step in found.steps]
        assert [step | {"score": 0} for step in kept] == [step | {"score": 0} for step in soup.history]
        np.testing.assert_allclose([s["score"] for s in kept], [s["score"] for s in soup.history], rtol=1e-5)
        alone = {step["member"]: step["alone"] for step in found.steps}
        assert alone == {name: evaluate.of(tree["w"]) for name, tree in members().items()}


@pytest.mark.parametrize("survived", [0, 5])
def test_greedy_goes_on_also_with_more_members_and_from_a_ranking(place, survived):
    target = mixed(0.4, 0.3, 0.0, 0.3)
    counted = Counting(target)
    whole = greedy(trials(place, counted, "whole"), NAMES, mode="max")
    with pytest.raises(KeyboardInterrupt):
        greedy(trials(place, Counting(target, survived)), NAMES, mode="max")
    again = Counting(target)
    assert greedy(trials(place, again), NAMES, mode="max") == whole
    assert again.calls == counted.calls - survived
    ranked = Counting(target)
    best = rank(trials(place, ranked, "r"), NAMES[:3], mode="max").steps[0]
    assert best["member"] == whole.steps[0]["member"] and ranked.calls == 3
    assert greedy(trials(place, ranked, "r"), NAMES, mode="max") == whole and ranked.calls == counted.calls


def test_a_member_that_holds_nan_is_left_out_with_the_reason(place):
    write_safetensors("b", {"w": np.full((6, 7), np.nan, np.float32)})
    found = greedy(trials(place, Counting(mixed(0.5, 0, 0.5))), NAMES[:3], mode="max")
    assert found.recipe["models"] == ["a", "c"] or found.recipe["models"] == ["c", "a"]
    assert found.steps[-1]["member"] == "b" and "b: w holds NaN or infinity" in found.steps[-1]["reason"]
    ranking = rank(trials(place, Counting(mixed(1)), "r"), ["b", "a"], mode="max")
    assert [step["member"] for step in ranking.steps] == ["a", "b"] and "NaN" in ranking.steps[1]["reason"]


def test_ranks_models_of_other_kinds_by_a_metric_of_which_less_is_better(place):
    soups.Pool("pool").add("m", {"w": np.ones(3, np.float32)})
    np.savez("n.npz", w=np.zeros(3, np.float32))
    (place / "folder").mkdir()
    write_safetensors("folder/model.safetensors", {"w": np.full(3, 3, np.float32)})
    seen = []

    class Mean(Counting):
        def __call__(self, model, log):
            seen.append(model)
            return float(open_checkpoint(model).read("w").mean())

    found = rank(trials(place, Mean(0)), ["folder", "pool:m", "n.npz"], mode="min")
    assert [tuple(step.values())[:2] for step in found.steps] == [("n.npz", 0.0), ("pool:m", 1.0), ("folder", 3.0)]
    assert str(seen[0]) == "folder" and all(path.parent.name == "candidates" for path in seen[1:])
    assert not (place / "work" / "candidates").exists()
    rank(trials(place, Mean(0), "kept", keep=True), ["pool:m"], mode="min")
    assert open_checkpoint(place / "kept" / "candidates" / "0").read("w").tolist() == [1, 1, 1]


def test_digests_are_those_of_a_pool(place):
    tree = {"x": {"w": BASE, "n": np.arange(3)}}
    record = soups.Pool("pool").add("m", tree)
    write_safetensors("file", {"x/w": BASE, "x/n": np.arange(3)})
    assert digests_of(["pool:m", "file"]) == {"pool:m": record["digest"], "file": record["digest"]}


@pytest.mark.parametrize("kind", ["huggingface", "orbax", "pool", ".safetensors", ".npz"])
def test_the_output_is_the_best_with_a_record_and_is_replaced_by_a_better_one(place, kind):
    out = "pool:best" if kind == "pool" else f"best{kind if kind[0] == '.' else ''}"
    sink = "file" if kind[0] == "." else kind
    target = mixed(0.9, 0.6, 0.3)

    def run(budget, axes=SCALE):
        made = trials(place, Counting(target), kind="huggingface" if kind == "pool" else kind)
        made.evaluation.__class__ = Reading if kind == "orbax" else Counting
        found = by_cma(made, axes, budget=budget, check=lambda plan, identity: check_output(plan, out, sink, identity))
        return found, write_output(made, found, out, sink)

    (first, wrote), (_, again) = run(3), run(3)
    assert wrote and not again
    (best, better) = run(20)
    assert better and best.score > first.score
    record = read_record(out)
    assert record["chosen"]["score"] == best.score and len(record["chosen"]["steps"]) == 20
    assert record["chosen"]["evaluation"] == "distance" and not verify_output(plan_again(record), out)
    assert sorted(path.name for path in place.glob(".b*")) == [] and not (place / "work" / "candidates").exists()
    with pytest.raises(
        (FileExistsError, ValueError), match=r"exists, but was made by something else|has a member 'best'"
    ):
        run(2, [Axis("scale", 0.0, 1.0)])


class Reading(Counting):
    def __call__(self, model, log):
        from soups.merging import open_model

        self.calls += 1
        return self.of(open_model(model).read("w"))


def test_one_process_works_in_a_folder_that_is_its_own(place):
    (place / "full").mkdir()
    (place / "full" / "thesis.tex").write_text("")
    with (
        held_work("work", "out"),
        pytest.raises(BlockingIOError, match="another search is writing"),
        held_work("work"),
    ):
        pass
    for work, out, error, message in [
        ("full", None, FileExistsError, "full exists and has no scores.jsonl"),
        ("a", None, FileExistsError, "a exists and has no scores.jsonl"),
        ("out/work", "out", ValueError, "would lie one inside the other"),
        ("work", "work/out", ValueError, "would lie one inside the other"),
        (".", "out", ValueError, "would lie one inside the other"),
        ("hf://a/b", None, ValueError, "is a URL"),
    ]:
        with pytest.raises(error, match=message), held_work(work, out):
            pass
    assert (place / "full" / "thesis.tex").exists()


def test_scores_of_another_evaluation_are_refused_or_kept_when_only_scripts_changed(place):
    by_cma(trials(place, Counting(mixed(1))), SCALE, budget=2)
    changed = Counting(mixed(1), script="2")
    with pytest.raises(ValueError, match=r"e.py has changed since the scores in .*/scores.jsonl were made: --keep-sc"):
        trials(place, changed)
    by_cma(trials(place, changed, keep_scores=True), SCALE, budget=2)
    by_cma(trials(place, changed), SCALE, budget=2)
    assert changed.calls == 0
    with pytest.raises(ValueError, match="was written by a different call:\n  metric: None there, loss here"):
        trials(place, Counting(mixed(1), script="2", metric="loss"))


def test_an_evaluation_that_never_gave_a_score_may_be_replaced(place):
    with pytest.raises(KeyboardInterrupt):
        by_cma(trials(place, Counting(mixed(1), limit=0, metric="mistyped")), SCALE, budget=2)
    assert (place / "work" / "scores.jsonl").exists()
    mended = Counting(mixed(1), script="2")
    by_cma(trials(place, mended), SCALE, budget=2)
    assert mended.calls == 2


@pytest.mark.parametrize(
    ("given", "axes", "refused", "reason"),
    [
        (
            recipe("linear", "ab") | {"base_model": None},
            [Axis("weight", 0.0, 1.0, number=2, of_member=True)] * 2,
            [True, False, False, False],
            r"weights that sum to zero",
        ),
        (
            recipe("linear", "ab") | {"base_model": None},
            [Axis("weight", values=(-1, 1), of_member=True)] * 2,
            [False, True, True, False],
            r"weights that sum to zero",
        ),
        (
            recipe("della"),
            [Axis("density", 0.1, 0.7, number=2), Axis("epsilon", 0.05, 0.2, number=2)],
            [False, True, False, False],
            r"density ± epsilon must lie in \(0, 1\], but they are 0.1 ± 0.2",
        ),
    ],
)
def test_settings_that_a_method_does_not_take_together_have_no_score_but_a_reason(place, given, axes, refused, reason):
    found = by_cma(trials(place, Counting(mixed(0.5, 0.5))), axes, given, by="grid")
    assert [math.isnan(step["score"]) for step in found.steps] == refused
    assert re.search(reason, found.steps[refused.index(True)]["reason"])
    assert [step["reason"] is None for step in found.steps] == [not out for out in refused]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget": 0}, "budget must be at least 1, not 0"),
        ({"population": 1}, "population must be at least 2, not 1"),
        ({"by": "random", "population": 3}, "population is for CMA-ES: a search by random takes none"),
        ({"by": "bayes"}, "unknown way to search 'bayes'"),
        ({"by": "grid"}, "a grid needs to know how many values of scale it tries"),
        (
            {"by": "grid", "axes": [Axis("scale", 0, 1, number=8)] * 2},
            "8 × 8 = 64 candidates is more than the budget of",
        ),
        (
            {"axes": [Axis("scale", 0, 1, number=8)]},
            "a number of values, as for scale, is for a grid: a search by cma takes none",
        ),
        ({"given": recipe("ties"), "axes": [Axis("density", 0.5, 1.5)]}, r"density must be in \(0, 1\], not 1.5"),
    ],
)
def test_what_cannot_be_searched_is_refused_before_any_work(place, options, message):
    evaluate = Counting(BASE)
    with pytest.raises(ValueError, match=message):
        by_cma(trials(place, evaluate), options.pop("axes", SCALE), options.pop("given", None), **options)
    assert not evaluate.calls and not (place / "work").exists()


def test_what_an_evaluation_lacks_is_said_of_the_candidate(place):
    with pytest.raises(
        ValueError, match=r"^0: scale 1.57: the evaluation failed with exit code 1: false .*/candidates/0"
    ):
        by_cma(trials(place, evaluation("false {model}")), SCALE)
    assert not (place / "work" / "candidates").exists()
    with pytest.raises(ValueError, match=r"^a: the evaluation prints no number"):
        greedy(trials(place, evaluation("true {model}"), "w"), NAMES, mode="max")
    with pytest.raises(ValueError, match=r"^b is given twice: a member counts once"):
        rank(trials(place, Counting(BASE), "x"), ["a", "b", "b"], mode="max")
