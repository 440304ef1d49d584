"""The README says of the results that are kept what they say, and claims only what their intervals allow."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from scipy import stats

from soups import report, state

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "scripts"))
import readme_results as page  # noqa: E402

# gains over the best member in points: mean on test and on the shifts, and how far seeds lie from it
GAINS = {
    "best member": (0.0, 0.0, 0.0),
    "uniform soup": (0.4, 2.6, 0.3),
    "greedy soup": (0.8, 2.0, 0.2),
    "learned soup": (0.1, 1.0, 0.8),
    "ensemble": (-1.0, 3.5, 0.2),
    "mean member": (-0.5, -1.0, 0.1),
    "random head mean member": (-0.4, -1.5, 0.1),
    "random head uniform soup": (0.2, 2.0, 0.3),
}


def made(version, changes=(), seeds=10):
    """Give results of ten seeds with these gains, whole as a run writes them."""
    rng = np.random.default_rng(0)
    gains = GAINS | dict(changes)
    splits = {"held_out": {"role": "held_out", "examples": 500}, "test": {"role": "test", "examples": 1000}}
    splits |= {name: {"role": "shift", "examples": 1000} for name in ("noise", "blur")}
    splits["shift_mean"] = {"role": "shift", "mean_of": ["noise", "blur"]}
    rows = []
    for seed in range(seeds):
        level = rng.uniform(0.8, 0.9)
        for name, (test, shift, spread) in gains.items():
            off = spread * (2 * (seed % 2) - 1)
            values = {"held_out": 0, "test": test + off, "noise": shift + off - 1, "blur": shift + off + 1}
            found = {s: {"accuracy": level + value / 100, "nll": 0.3, "ece": 0.04} for s, value in values.items()}
            found["shift_mean"] = {"accuracy": level + (shift + off) / 100, "brier": 0.2}
            rows.append({"seed": seed, "name": name, "kind": "soup", "group": "main", "metrics": found,
                         "cost": {"inference": 16 if name == "ensemble" else 1, "selection": 5}})  # fmt: skip
    head = {"schema": report.results.SCHEMA, "experiment": "digits", "created": "2026-01-01T00:00:00+00:00"}
    head |= {"config": {"about": {"shows": "It shows soups."}}, "device": "cpu x2", "seeds": list(range(seeds))}
    return head | {"versions": {"python": version, "jax": "0.10.2"}, "splits": splits, "rows": rows}


@pytest.fixture
def runs(tmp_path):
    """Give a function that keeps results of two interpreters, the second with other gains, and reads them again."""

    def keep(changes=(), seeds=10):
        for version, those in (("3.11.9", ()), ("3.13.1", changes)):
            found = report.check(made(version, those, seeds))
            state.write(tmp_path / f"digits-py{version[:4].replace('.', '')}.json", page.trimmed(found))
        return page.load(tmp_path)

    return keep


def test_the_readme_says_what_is_kept():
    text, runs = (ROOT / "README.md").read_text(encoding="utf-8"), page.load()
    assert text.count(page.BEGIN) == text.count(page.END) == 1
    assert text == page.updated(text, runs), "run python scripts/readme_results.py write"
    if runs:
        assert (page.KEPT / "README.md").read_text(encoding="utf-8") == page.seeds_page(runs)


def test_gains_and_intervals_are_those_of_scipy(runs):
    found = page.gain(runs()["Python 3.11"], "uniform soup", "shift")
    values = [2.6 - 0.3, 2.6 + 0.3] * 5
    np.testing.assert_allclose(100 * np.array(found.values), values)
    low, high = stats.t.interval(0.95, 9, np.mean(values), stats.sem(values))
    np.testing.assert_allclose(100 * np.array([found.mean - found.half, found.mean + found.half]), [low, high])
    over = page.gain(runs()["Python 3.11"], "ensemble", "test", "greedy soup")
    np.testing.assert_allclose(100 * np.array(over.values), -1.8, atol=1e-9)


def test_a_claim_needs_an_interval_beyond_its_bound_on_both(runs):
    claim = page.Claim("soups are better", "greedy soup", "test")
    both = page.sentence(claim, runs())
    assert both.startswith("Soups are better: +0.80 [+0.65, +0.95] (10 of 10 seeds) on Python 3.11; +0.80 [")
    # 0.3 ± 1 · t / √10 holds 0: on one interpreter, then a contrary one
    doubt = page.sentence(claim, runs({"greedy soup": (0.3, 2.0, 1.0)}))
    assert doubt.startswith("It is not shown that soups are better; no effect can be claimed: +0.80 [+0.65, +0.95]")
    assert "+0.30 [−0.45, +1.05] (5 of 10 seeds) on Python 3.13." in doubt
    assert "no effect can be claimed" in page.sentence(claim, runs({"greedy soup": (-0.8, 2.0, 0.2)}))
    contrary = page.sentence(page.Claim("ensembles are better", "ensemble", "test"), runs())
    assert contrary.startswith("It does not hold that ensembles are better, but the contrary: −1.00 [")
    below = page.Claim("ensembles are worse", "ensemble", "test", above=False)
    assert page.sentence(below, runs()).startswith("Ensembles are worse: ")
    assert "no effect" in page.sentence(claim._replace(bound=0.7), runs())
    alone = dict(list(runs().items())[:1])
    assert "no effect can be claimed" in page.sentence(claim, alone)


def test_no_claim_of_the_list_is_written_over_zero(runs):
    found = runs({name: (0.05, 0.05, 1.0) for name in GAINS if name != "best member"})
    said = [page.sentence(claim, found) for claim in page.CLAIMS]
    assert all("no effect can be claimed" in text for text in said)
    assert all(text in page.block(found) for text in said)


@pytest.mark.parametrize(
    ("row", "split", "gains", "done"),
    [
        ("greedy soup", "test", (0.6, 0, 0.1), True),
        ("greedy soup", "test", (0.4, 0, 0.1), False),
        ("greedy soup", "shift", (0, 1.6, 1.5), True),
        ("greedy soup", "shift", (0, 1.6, 1.7), False),  # half of the signs are wrong
        ("uniform soup", "test", (0.0, 0, 0.0), True),
        ("uniform soup", "test", (-0.1, 0, 0.0), False),
        ("uniform soup", "test", (0.1, 0, 0.2), False),
        ("uniform soup", "shift", (0, 2.1, 0.1), True),
    ],
)
def test_the_bar_is_what_was_demanded(runs, row, split, gains, done):
    bar = next(bar for bar in page.BARS if (bar.row, bar.split) == (row, split))
    found = page.gain(runs({row: gains})["Python 3.13"], row, split)
    assert page.reached(bar, found) is done
    others = {"Python 3.13": runs({row: gains})["Python 3.13"]}
    assert "**missed**" in page.bar_sentence(bar, others)  # one interpreter is not enough
    assert ("**reached**" in page.bar_sentence(bar, others | {"again": others["Python 3.13"]})) is done


def test_the_block_stands_between_its_marks_and_has_the_table(runs):
    text = page.updated(f"before\n{page.BEGIN}\nformer\n{page.END}\nafter", runs())
    assert text.startswith(f"before\n{page.BEGIN}\n`{page.COMMAND}`, cpu x2. It shows soups.\n")
    assert text.endswith(f"\n{page.END}\nafter") and "former" not in text
    line = next(line for line in text.splitlines() if line.startswith("| greedy soup"))
    assert line.count("+0.80 ± 0.15 (10/10)") == line.count("+2.00 ± 0.15 (10/10)") == 2 and line.endswith("| 1 |")
    seeds = page.seeds_page(runs())
    assert "## Python 3.13: shift mean" in seeds and "| uniform soup | +2.30 | +2.90 |" in seeds
    assert page.updated("as it is", {}) == "as it is"


def test_what_is_kept_is_small_and_whole(runs, tmp_path):
    (path, _) = sorted(tmp_path.glob("*.json")) if runs() else ()
    kept = json.loads(path.read_text())
    assert set(kept["splits"]) == {"held_out", "test", "shift_mean"} and kept["facts"]["run"]["command"] == page.COMMAND
    assert all(set(row["metrics"]["test"]) == {"accuracy", "nll", "ece"} for row in kept["rows"])


def test_what_is_missing_is_said(tmp_path):
    state.write(tmp_path / "results.json", made("3.11.9", seeds=1))
    for words in (["collect", tmp_path], ["collect", tmp_path / "nowhere"]):
        done = subprocess.run(
            [sys.executable, ROOT / "scripts" / "readme_results.py", *words], capture_output=True, text=True, cwd=ROOT
        )
        assert done.returncode == 1 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
