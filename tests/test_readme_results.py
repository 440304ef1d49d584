"""The README says of the results that are kept what they say, and claims only what their intervals allow."""

import json
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
from scipy import stats

from soups import report, state
from soups.cli.run import read_config

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


CHANGES = ["--config.seeds=10", "--config.random_head.members=16", "--config.data_dir=/data"]


def made(version, changes=(), seeds=10, first=0, config=()):
    """Give results of ten seeds with these gains, whole as a run writes them."""
    rng = np.random.default_rng(first)
    gains = GAINS | dict(changes)
    splits = {"held_out": {"role": "held_out", "examples": 500}, "test": {"role": "test", "examples": 1000}}
    splits |= {name: {"role": "shift", "examples": 1000} for name in ("noise", "blur")}
    splits["shift_mean"] = {"role": "shift", "mean_of": ["noise", "blur"]}
    rows = []
    for seed in range(first, first + seeds):
        level = rng.uniform(0.8, 0.9)
        for name, (test, shift, spread) in gains.items():
            off = spread * (2 * (seed % 2) - 1)
            values = {"held_out": 0, "test": test + off, "noise": shift + off - 1, "blur": shift + off + 1}
            found = {s: {"accuracy": level + value / 100, "nll": 0.3, "ece": 0.04} for s, value in values.items()}
            found["shift_mean"] = {"accuracy": level + (shift + off) / 100, "brier": 0.2}
            rows.append({"seed": seed, "name": name, "kind": "soup", "group": "main", "metrics": found,
                         "cost": {"inference": 16 if name == "ensemble" else 1, "selection": 5}})  # fmt: skip
    head = {"schema": report.results.SCHEMA, "experiment": "digits", "created": "2026-01-01T00:00:00+00:00"}
    settings = read_config(str(ROOT / "configs" / "digits.py"), [*CHANGES, f"--config.first_seed={first}", *config])
    settings["about"] = {"shows": "It shows soups."}
    head |= {"config": settings, "device": "cpu x2", "seeds": list(range(first, first + seeds))}
    return head | {"versions": {"python": version, "jax": "0.10.2"}, "splits": splits, "rows": rows}


@pytest.fixture
def keep(tmp_path):
    """Give a function that keeps results of a run."""

    def keep_one(results, figures=()):
        state.write(page.place_of(results, tmp_path), page.trimmed(report.check(results), dict(figures)))

    return keep_one


@pytest.fixture
def runs(keep, tmp_path):
    """Give a function that keeps results of two interpreters, the second with other gains, and reads them again."""

    def both(changes=()):
        keep(made("3.11.9"))
        keep(made("3.13.1", changes, first=10))
        return page.load(tmp_path)

    return both


def test_the_readme_says_what_is_kept():
    text, runs = (ROOT / "README.md").read_text(encoding="utf-8"), page.load()
    assert text.count(page.BEGIN) == text.count(page.END) == 1
    assert text == page.updated(text, runs), "run python scripts/readme_results.py write"
    block = text.partition(page.BEGIN)[2].partition(page.END)[0]
    if not runs:
        assert "the table is of an earlier version of the code" in block and not page.KEPT.exists()
        return
    assert list(runs) == ["Python 3.11", "Python 3.13"]
    assert all(len(one["seeds"]) >= 10 and one["facts"]["run"]["command"] in block for one in runs.values())
    kept = {name: found for one in runs.values() for name, found in one["facts"]["figures"].items()}
    shown = re.findall(r"!\[.*?\]\(docs/figures/(\w+)\.png\)", block)
    assert shown and all(page.digest(page.FIGURES / f"{name}.png") == kept[name] for name in shown)
    assert (page.KEPT / "README.md").read_text(encoding="utf-8") == page.seeds_page(runs)


def test_gains_and_intervals_are_those_of_scipy(runs):
    found = page.gain(runs()["Python 3.11"], "uniform soup", "shift")
    values = [2.6 - 0.3, 2.6 + 0.3] * 5
    np.testing.assert_allclose(100 * np.array(found.values), values)
    low, high = stats.t.interval(0.95, 9, np.mean(values), stats.sem(values))
    np.testing.assert_allclose(100 * np.array([found.mean - found.half, found.mean + found.half]), [low, high])
    over = page.gain(runs()["Python 3.11"], "ensemble", "test", "greedy soup")
    np.testing.assert_allclose(100 * np.array(over.values), -1.8, atol=1e-9)


def test_a_claim_needs_intervals_on_one_side_of_zero(runs):
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
    # one interpreter is not enough
    assert f"**{'reached by seeds 10–19 alone' if done else 'missed'}**" in page.bar_sentence(bar, others)
    assert ("**reached**" in page.bar_sentence(bar, others | {"again": others["Python 3.13"]})) is done


def test_the_block_stands_between_its_marks_and_has_the_table(runs):
    text = page.updated(f"before\n{page.BEGIN}\nformer\n{page.END}\nafter", runs())
    command = "bash scripts/quickstart.sh --config.seeds=10 {}--config.random_head.members=16\n"
    first, second = command.format(""), command.format("--config.first_seed=10 ")
    commands = f"```bash\nPYTHON=python3.11 {first}PYTHON=python3.13 {second}```"
    assert text.startswith(f"before\n{page.BEGIN}\nIt shows soups.\n\n{commands}\n")
    assert "none in common, seeds 0–9 on Python 3.11 and cpu x2; seeds 10–19 on Python 3.13 and cpu x2: the" in text
    assert "| gain, seeds 0–9 | gain, seeds 10–19 |" in text
    assert text.endswith(f"\n{page.END}\nafter") and "former" not in text
    line = next(line for line in text.splitlines() if line.startswith("| greedy soup"))
    assert line.count("+0.80 ± 0.15 (10/10)") == line.count("+2.00 ± 0.15 (10/10)") == 2 and line.endswith("| 1 |")
    seeds = page.seeds_page(runs())
    assert "## Python 3.13: shift mean" in seeds and "| uniform soup | +2.30 | +2.90 |" in seeds
    assert page.updated("as it is", {}) == "as it is"


def test_what_is_kept_is_small_and_whole(runs, tmp_path):
    (path, _) = sorted(tmp_path.glob("*.json")) if runs() else ()
    kept = json.loads(path.read_text())
    assert set(kept["splits"]) == {"held_out", "test", "shift_mean"} and "/data" not in path.read_text()
    assert all(set(row["metrics"]["test"]) == {"accuracy", "ece"} for row in kept["rows"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": "3.12.1", "first": 5}, "the runs must have different seeds, but share 5, 6, 7, 8, 9$"),
        ({"seeds": 9, "first": 10}, "the results have 9 seeds, but 10 are needed"),
        ({"config": ["--config.random_head.members=8"], "first": 10}, "3.13 differ in random_head.members$"),
    ],
)
def test_runs_that_do_not_belong_together_are_refused(keep, tmp_path, changes, message):
    keep(made("3.11.9"))
    keep(made(**{"version": "3.13.1"} | changes))
    with pytest.raises(ValueError, match=message):
        page.load(tmp_path)


def test_a_run_that_is_not_of_the_experiment_is_refused(tmp_path):
    with pytest.raises(ValueError, match="of the experiment 'rebasin', not of 'digits'"):
        page.check_run(made("3.11.9") | {"experiment": "rebasin"})
    with pytest.raises(ValueError, match=r"of several versions: python 3\.11\.7, 3\.13\.0$"):
        page.check_run(made("3.11.7, 3.13.0"))
    with pytest.raises(ValueError, match=r"differs from configs/digits\.py in sweep\.members$"):
        page.command_of(made("3.11.9", config=["--config.sweep.members=8"]))
    without = made("3.11.9")
    del without["config"]["greedy"]
    with pytest.raises(ValueError, match=r"differs from configs/digits\.py in greedy\.random_orders$"):
        page.command_of(without)
    state.write(tmp_path / "py311.json", page.trimmed(report.check(made("3.13.1"))))
    with pytest.raises(ValueError, match=r"py311\.json has results of Python 3\.13\.1"):
        page.load(tmp_path)


def test_only_figures_that_were_kept_with_the_results_are_shown(keep, tmp_path):
    for name in page.SHOWN:
        (tmp_path / f"{name}.png").write_bytes(name.encode())
    digests = {name: page.digest(tmp_path / f"{name}.png") for name in ("scatter", "loss_plane")}
    keep(made("3.11.9"))
    keep(made("3.13.1", first=10), digests)
    lines = "\n".join(page.figure_lines(page.load(tmp_path), tmp_path))
    assert lines.count("![") == 2 and "number_of_models" not in lines
    assert "test accuracy; seeds 10–19, Python 3.13.*" in lines
    assert "through the linear probe and two members; seed 10, Python 3.13.*" in lines
    (tmp_path / "scatter.png").write_bytes(b"another")
    assert "scatter" not in "\n".join(page.figure_lines(page.load(tmp_path), tmp_path))


def test_what_is_missing_is_said(tmp_path):
    state.write(tmp_path / "results.json", made("3.11.9", seeds=1))
    for words in (["collect", tmp_path], ["collect", tmp_path / "nowhere"]):
        done = subprocess.run(
            [sys.executable, ROOT / "scripts" / "readme_results.py", *words], capture_output=True, text=True, cwd=ROOT
        )
        assert done.returncode == 1 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
