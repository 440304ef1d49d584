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
import digits_pages as pages  # noqa: E402
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
    """Return results of ten seeds with these gains, whole as a run writes them."""
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
    """Return a function that keeps results of a run."""

    def keep_one(results, figures=(), repeat=False):
        state.write(page.place_of(results, tmp_path, repeat), page.trimmed(report.check(results), dict(figures)))

    return keep_one


@pytest.fixture
def runs(keep, tmp_path):
    """Return a function that keeps results of two interpreters, the second with other gains, and reads them again."""

    def both(changes=()):
        keep(made("3.11.9"))
        keep(made("3.13.1", changes, first=10))
        return page.load(tmp_path)

    return both


def test_the_readme_says_what_is_kept():
    text, runs = (ROOT / "README.md").read_text(encoding="utf-8"), page.load()
    again = page.load_repeat(runs)
    assert all(
        text.count(mark) == 1 for name in ("figure", "results") for mark in (f"<!-- {name} -->", f"<!-- /{name} -->")
    )
    assert text == page.updated(text, runs, again), "run python scripts/readme_results.py write"
    assert list(runs) == ["Python 3.11", "Python 3.13"] and all(len(one["seeds"]) >= 10 for one in runs.values())
    whole = (page.KEPT / "README.md").read_text(encoding="utf-8")
    assert whole == pages.results_page(runs, again)
    assert all(one["facts"]["run"]["command"] in whole for one in runs.values())


def test_the_pages_show_the_figures_that_were_kept():
    kept = {name: found for one in page.load().values() for name, found in one["facts"]["figures"].items()}
    for path, folder in [(ROOT / "README.md", "docs/figures"), (page.KEPT / "README.md", "../figures")]:
        shown = re.findall(rf"!\[.*?\]\({folder}/(\w+)\.png\)", path.read_text(encoding="utf-8"))
        assert shown and all(pages.digest(page.FIGURES / f"{name}.png") == kept[name] for name in shown)


def test_gains_and_intervals_are_those_of_scipy(runs):
    found = pages.gain(runs()["Python 3.11"], "uniform soup", "shift")
    values = [2.6 - 0.3, 2.6 + 0.3] * 5
    np.testing.assert_allclose(100 * np.array(found.values), values)
    low, high = stats.t.interval(0.95, 9, np.mean(values), stats.sem(values))
    np.testing.assert_allclose(100 * np.array([found.mean - found.half, found.mean + found.half]), [low, high])
    over = pages.gain(runs()["Python 3.11"], "ensemble", "test", "greedy soup")
    np.testing.assert_allclose(100 * np.array(over.values), -1.8, atol=1e-9)


def test_a_claim_needs_intervals_on_one_side_of_zero(runs):
    claim = pages.Claim("soups are better", "greedy soup", "test")
    both = pages.sentence(claim, runs())
    assert both.startswith("Soups are better: +0.80 [+0.65, +0.95] (10 of 10 seeds) on Python 3.11; +0.80 [")
    # 0.3 ± 1 · t / √10 holds 0: on one interpreter, then a contrary one
    doubt = pages.sentence(claim, runs({"greedy soup": (0.3, 2.0, 1.0)}))
    assert doubt.startswith("It is not shown that soups are better; no effect can be claimed: +0.80 [+0.65, +0.95]")
    assert "+0.30 [−0.45, +1.05] (5 of 10 seeds) on Python 3.13." in doubt
    assert "no effect can be claimed" in pages.sentence(claim, runs({"greedy soup": (-0.8, 2.0, 0.2)}))
    contrary = pages.sentence(pages.Claim("ensembles are better than single networks", "ensemble", "test"), runs())
    assert contrary.startswith("Ensembles are worse than single networks: −1.00 [")
    alone = dict(list(runs().items())[:1])
    assert "no effect can be claimed" in pages.sentence(claim, alone)


def test_no_claim_of_the_list_is_written_over_zero(runs):
    found = runs({name: (0.05, 0.05, 1.0) for name in GAINS if name != "best member"})
    said = [pages.sentence(claim, found) for claim in pages.CLAIMS]
    assert all("no effect can be claimed" in text for text in said)
    assert all(text in pages.results_page(found) for text in said)
    block = pages.readme_block(found)
    assert "every interval of both sets lies above 0" not in block
    shown = [text for claim, text in zip(pages.CLAIMS, said, strict=True) if not claim.of_probe]
    assert all(text in block for text in shown) and "**LP-FT is not shown to help.**\n" in block


def test_the_readme_sums_up_what_holds(runs):
    block = pages.readme_block(runs())
    assert (
        "* The greedy and uniform soups are better than the best member, in distribution and on the shifts: every"
        in block
    )
    # 0.1 ± 0.8 · t / √10 in distribution holds 0; 1.0 on the shifts does not
    assert "* It is not shown that in distribution the learned soup is better than the best member" in block
    assert "* On the shifts the learned soup" not in block
    one = runs({"greedy soup": (0.8, 0.0, 0.2)})
    assert "* The uniform soup is better than the best member" in pages.readme_block(one)


@pytest.mark.parametrize(
    ("gains", "said"),
    [
        # points in distribution and on the shifts, then those of the soup on the shifts, over those from a random head
        ((0.3, 0.2, 0.5), "**LP-FT helped.** In distribution members from the linear probe are better than the same"),
        ((0.3, -0.2, 0.5), "**LP-FT helped in part.** In distribution members from the linear probe are better than"),
        (
            (-0.3, -0.2, -0.5),
            "**LP-FT did not help.** In distribution members from the linear probe are worse than the",
        ),
    ],
)
def test_whether_the_probe_helped_follows_from_the_intervals(keep, tmp_path, gains, said):
    test, shift, soup = gains
    changes = {
        "mean member": (test, shift, 0.1),
        "random head mean member": (0.0, 0.0, 0.0),
        "uniform soup": (0.4, 2.6 + soup, 0.1),
        "random head uniform soup": (0.4, 2.6, 0.0),
    }
    keep(made("3.11.9", changes))
    keep(made("3.13.1", changes, first=10))
    assert pages.probe_sentence(page.load(tmp_path)).startswith(said)


def test_how_many_demands_were_met_is_counted(runs):
    assert pages.bars_sentence(runs()) == "4 of 4 demands that were made before the runs were reached in both sets."
    some = pages.bars_sentence(runs({"greedy soup": (0.4, 2.0, 0.1)}))
    assert some.startswith(
        "3 of 4 demands that were made before the runs were reached in both sets. Not in both: greedy"
    )
    assert "**reached by seeds 0–9 alone**, +0.80 [" in some


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
    bar = next(bar for bar in pages.BARS if (bar.row, bar.split) == (row, split))
    found = pages.gain(runs({row: gains})["Python 3.13"], row, split)
    assert pages.reached(bar, found) is done
    others = {"Python 3.13": runs({row: gains})["Python 3.13"]}
    # one interpreter is not enough
    assert f"**{'reached by seeds 10–19 alone' if done else 'missed'}**" in pages.bar_sentence(bar, others)
    assert ("**reached**" in pages.bar_sentence(bar, others | {"again": others["Python 3.13"]})) is done


def test_the_blocks_stand_between_their_marks_and_have_the_tables(runs):
    marks = "before\n<!-- figure -->\n<!-- /figure -->\n<!-- results -->\nformer\n<!-- /results -->\nafter"
    text = page.updated(marks, runs())
    figure = "before\n<!-- figure -->\n\n<!-- /figure -->\n"
    lead = "10 seeds, twice, of what `bash scripts/quickstart.sh` runs once."
    assert text.startswith(f"{figure}<!-- results -->\n{lead} It shows soups.\n\n```bash\n")
    assert text.endswith("\n<!-- /results -->\nafter") and "former" not in text
    assert "| gain, seeds 0–9 | gain, seeds 10–19 |" in text
    rows = [line for line in text.splitlines() if line.startswith("| ")][2:]
    assert [row.split(" | ")[0].removeprefix("| ") for row in rows] == list(pages.IN_README)
    assert rows[1].count("+0.80 ± 0.15 (10/10)") == rows[1].count("+2.00 ± 0.15 (10/10)") == 2
    assert rows[1].endswith("| 1 |") and rows[4].endswith("| 16 |")
    assert page.updated("as it is", {}) == "as it is"


def test_the_page_has_every_row_and_seed(runs):
    text = pages.results_page(runs())
    command = "bash scripts/quickstart.sh --config.seeds=10 {}--config.random_head.members=16\n"
    first, second = command.format(""), command.format("--config.first_seed=10 ")
    assert f"```bash\nPYTHON=python3.11 {first}PYTHON=python3.13 {second}```" in text
    assert "none in common: seeds 0–9 on Python 3.11 (cpu x2) and seeds 10–19 on Python 3.13 (cpu x2). The" in text
    table = text.partition("## Every row")[2].partition("## What")[0]
    assert all(f"\n| {name} | " in table for name in GAINS)
    assert "### Python 3.13: shift mean" in text and "| uniform soup | +2.30 | +2.90 |" in text
    assert "## The same seeds" not in text


def test_a_repetition_on_the_other_interpreter_stands_beside_the_first(runs, keep, tmp_path):
    found = runs()
    assert page.load_repeat(found, tmp_path) is None
    again = made(
        "3.13.1",
        {"greedy soup": (0.75, 2.0, 0.2), "uniform soup": (0.4, 2.9, 0.3)},
        config=["--config.random_head.members=0"],
    )
    again["rows"] = [row for row in again["rows"] if not row["name"].startswith("random head")]
    keep(again, repeat=True)
    assert (tmp_path / "py313_seeds0-9.json").exists() and page.load(tmp_path) == found
    kept = page.load_repeat(found, tmp_path)
    said = "Seeds 0–9 again on Python 3.13.1, jax 0.10.2: the mean gains of these rows move by at most 0.05 points in "
    assert f" {said}distribution and 0.30 on the shifts. [All rows" in pages.readme_block(found, kept)
    text = pages.results_page(found, kept).partition("## The same seeds on the other interpreter")[2]
    assert "|  | test, Python 3.11 | test, Python 3.13 | shift mean, Python 3.11 | shift mean, Python 3.13 |" in text
    (row,) = (line for line in text.splitlines() if line.startswith("| greedy soup | +0.80 ±"))
    assert row.count("+0.75 ± 0.15 (10/10)") == 1 and row.count("+2.00 ± 0.15 (10/10)") == 2
    assert "random head" not in text.partition("## Figures")[0]
    assert "### Python 3.13, seeds 0–9: test" in text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": "3.11.9"}, "no results of another interpreter than Python 3.11 have seeds 0–9$"),
        ({"first": 5}, "no results of another interpreter than Python 3.13 have seeds 5–14$"),
        ({"config": ["--config.sweep.members=8"]}, "of Python 3.11 and of its repetition differ in sweep.members$"),
    ],
)
def test_what_repeats_no_run_is_refused(runs, changes, message):
    with pytest.raises(ValueError, match=message):
        page.check_repeat(made(**{"version": "3.13.1"} | changes), runs())


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
    for name in pages.SHOWN:
        (tmp_path / f"{name}.png").write_bytes(name.encode())
    digests = {name: pages.digest(tmp_path / f"{name}.png") for name in ("scatter", "loss_plane")}
    keep(made("3.11.9"))
    keep(made("3.13.1", first=10), digests)
    lines = "\n".join(pages.figure_lines(page.load(tmp_path), folder=tmp_path))
    assert lines.count("![") == 2 and "number_of_models" not in lines
    assert "test accuracy; seeds 10–19, Python 3.13.*" in lines
    assert "through the linear probe and two members; seed 10, Python 3.13.*" in lines
    (tmp_path / "scatter.png").write_bytes(b"another")
    assert "scatter" not in "\n".join(pages.figure_lines(page.load(tmp_path), folder=tmp_path))


def test_what_is_missing_is_said(tmp_path):
    state.write(tmp_path / "results.json", made("3.11.9", seeds=1))
    for words in (["collect", tmp_path], ["collect", tmp_path / "nowhere"]):
        done = subprocess.run(
            [sys.executable, ROOT / "scripts" / "readme_results.py", *words], capture_output=True, text=True, cwd=ROOT
        )
        assert done.returncode == 1 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
