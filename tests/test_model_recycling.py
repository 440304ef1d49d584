"""Numbers of tables as IBM's model recycling has them, on made-up ones, against NumPy and SciPy."""

import csv
import itertools

import numpy as np
import pytest
import scipy


@pytest.fixture(scope="module", name="script")
def model_recycling(script):
    """Return the script as a module."""
    return script("model_recycling")


@pytest.fixture
def made(tmp_path):
    """Return a table of 12 models: 3 with permuted columns, 2 of which only the probe is known."""
    random = np.random.default_rng(5)
    base = np.linspace(20, 95, 6)
    quality = random.normal(size=12)
    scores = base + quality[:, None] + random.normal(size=(12, 6))
    probes = 50 + quality + random.normal(size=12)
    rows = scores.copy()
    for row in (1, 4, 7):
        rows[row] = rows[row, ::-1]
    path = tmp_path / "tiny_table.csv"
    with open(path, "w", newline="") as file:
        out = csv.writer(file)
        out.writerow(["", "model_name", "avg", "mnli_lp", *(f"task{number}" for number in range(6))])
        out.writerow([0, "tiny", base.mean(), "", *base])
        for number, row in enumerate(rows):
            cells = [""] * 6 if number in (3, 10) else row
            out.writerow(
                [number + 1, f"model{number}", "" if number in (3, 10) else row.mean(), probes[number], *cells]
            )
    return path, base, scores, probes


def test_the_numbers_of_a_table(script, made):
    path, base, scores, probes = made
    tested = [0, 1, 2, 4, 5, 6, 7, 8, 9, 11]
    clean = [0, 2, 5, 6, 8, 9, 11]
    gained = scores[clean] - base
    mean, probe = gained.mean(1), probes[clean]
    halves = [list(half) for half in itertools.combinations(range(6), 3)]
    split = [
        scipy.stats.spearmanr(gained[:, half].mean(1), np.delete(gained, half, 1).mean(1)).statistic for half in halves
    ]
    found = script.measure(path)
    assert list(found) == list(script.COLUMNS)
    assert (found["models"], found["tested"], found["permuted"]) == (12, 10, 3)
    assert found["spearman"] == pytest.approx(scipy.stats.spearmanr(probe, mean).statistic)
    assert found["top by probe"] == pytest.approx(mean[np.argsort(-probe)[:5]].mean())
    assert found["top"] == pytest.approx(np.sort(mean)[-5:].mean())
    assert found["regret"] == pytest.approx(mean.max() - mean[probe.argmax()])
    assert abs(found["split half"] - np.mean(split)) < 5 * np.std(split) / np.sqrt(1000)
    assert found["improved"] == (gained[mean.argmax()] > 0).sum()
    assert found["better %"] == pytest.approx(100 * (scores[tested].mean(1) > base.mean()).mean())


def test_a_line_for_each_table_is_printed(script, made, capsys):
    assert script.main([str(made[0])]) == 0
    names, numbers = (line.split("\t") for line in capsys.readouterr().out.splitlines())
    assert names == ["base", *script.COLUMNS] and numbers[:4] == ["tiny", "12", "10", "3"]


def test_what_is_no_table_is_refused(script, made, tmp_path, capsys):
    lines = made[0].read_text().splitlines()
    for text, message in [
        (lines[2:], "its columns must be"),
        ([lines[0], *lines[2:]][:4], "models have all scores in the columns of their tasks; 5 are needed"),
        ([lines[0], lines[5]], "its first row must be the pre-trained model"),
        ([*lines[:3], "9,x,1,2,3,4,many,6,7,8"], "could not convert string to float: 'many'"),
    ]:
        (tmp_path / "other.csv").write_text("\n".join(text))
        assert script.main([str(tmp_path / "other.csv")]) == 2
        err = capsys.readouterr().err
        assert err.startswith(f"model_recycling.py: {tmp_path / 'other.csv'}: ") and message in err
    assert script.main([str(tmp_path / "gone.csv")]) == 2
