"""Test the tables, sentences, figures and page of the experiment on independent networks, on made-up results."""

import copy
import io
import json
import math

import numpy as np
import pytest
from matplotlib.image import imread
from rich.console import Console

from soups.report import style
from soups.report.rebasin import draw
from soups.report.rebasin.page import page, write_rebasin_report
from soups.report.rebasin.tables import (
    check_rebasin,
    conclusions,
    path_rows,
    print_rebasin_table,
    soup_rows,
)

LAMBDAS = [0.0, 0.25, 0.5, 0.75, 1.0]
HEIGHTS = {"naive": 2.0, "weight": 0.3, "activation": 0.2}


def path(rng, height):
    bow = 4 * np.asarray(LAMBDAS) * (1 - np.asarray(LAMBDAS))
    values = {}
    for split, extra in (("train", 0.0), ("test", 0.1)):
        nll = 0.1 + extra + height * bow + rng.uniform(0, 0.02, 5)
        values[split] = {"nll": nll.tolist(), "accuracy": np.exp(-nll).tolist()}
    barrier = {split: {"nll": height + rng.uniform(), "accuracy": height / 4 + rng.uniform()} for split in values}
    return values | {"barrier": barrier}


def make_results(seeds=2, pairs=3):
    rng = np.random.default_rng(0)
    networks = {}
    for kind, widths in (("mlp", (8, 16)), ("cnn", (4, 8))):
        for width in widths:
            known = {"kind": kind, "widths": [width, width], "members": 6, "parameters": 99}
            networks[f"{kind}_{width}"] = known | {"batch_norm": kind == "cnn"}
    made = {"pairs": [], "soups": []}
    for seed in range(seeds):
        for name, network in networks.items():
            for pair in range(pairs):
                for matching, height in HEIGHTS.items():
                    paths = {"plain": path(rng, height)}
                    if network["batch_norm"]:
                        paths["repaired"] = path(rng, height / 4)
                    made["pairs"].append({
                        "seed": seed, "network": name, "pair": pair, "matching": matching, "seconds": rng.uniform(),
                        "moved_units": 0.9, "unchanged": {"largest_difference": 1e-6, "largest_logit": 10.0},
                        "paths": paths,
                    })  # fmt: skip
        for name in ("mlp_16", "cnn_8"):
            for size in (2, 5):
                for soup, repaired in (("mean member", False), ("best member", False), ("ensemble", False),
                                       ("uniform soup", False), ("uniform soup", True),
                                       ("aligned to the first", False), ("aligned to the first", True)):  # fmt: skip
                    metrics = {
                        split: {"accuracy": rng.uniform(), "nll": rng.uniform()}
                        for split in ("train", "held_out", "test")
                    }
                    row = {"seed": seed, "network": name, "size": size, "name": soup, "repaired": repaired}
                    made["soups"].append(row | {"metrics": metrics})
    return {
        "schema": "soups.rebasin/1",
        "experiment": "rebasin",
        "created": "2025-01-02T03:04:05+00:00",
        "config": {"seeds": seeds, "paths": {"pairs": pairs, "points": 5}},
        "versions": {"soups": "0.1.0"},
        "device": "cpu x2",
        "seeds": list(range(seeds)),
        "splits": {"train": 3000, "held_out": 500, "test": 1500},
        "lambdas": LAMBDAS,
        "networks": networks,
        **made,
        "timings": {"seed0_mlp_8_training": 1.5},
    }


@pytest.fixture(scope="module")
def results():
    return make_results()


@pytest.fixture(scope="module")
def written(results, tmp_path_factory):
    directory = tmp_path_factory.mktemp("report")
    return directory, write_rebasin_report(results, directory)


def printed(results):
    console = Console(file=io.StringIO(), width=250)
    print_rebasin_table(results, console)
    return console.file.getvalue()


def test_barriers_are_aggregated_over_pairs_and_seeds(results):
    rows = path_rows(results)
    assert len(rows) == 2 * 3 + 2 * 3 * 2
    for row in rows:
        values, middles = [], []
        for pair in results["pairs"]:
            if pair["network"] == row["network"] and pair["matching"] == row["matching"]:
                values.append(pair["paths"][row["path"]]["barrier"]["test"]["nll"])
                middles.append(pair["paths"][row["path"]]["train"]["accuracy"][2])
        assert row["pairs"] == len(values) == 6
        mean = sum(values) / 6
        deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / 5)
        assert row["barrier"]["test"]["nll"] == pytest.approx((mean, deviation))
        assert row["middle"]["train"]["accuracy"].mean == pytest.approx(sum(middles) / 6)
        assert row["difference"] == pytest.approx(1e-7)


def test_soups_are_aggregated_over_seeds(results):
    rows = {(row["network"], row["name"], row["repaired"]): row["sizes"] for row in soup_rows(results)}
    assert len(rows) == 2 * 7
    values = [
        row["metrics"]["test"]["accuracy"]
        for row in results["soups"]
        if (row["network"], row["name"], row["size"], row["repaired"]) == ("cnn_8", "uniform soup", 5, True)
    ]
    assert len(values) == 2
    found = rows["cnn_8", "uniform soup", True][5]["accuracy"]
    assert found.mean == pytest.approx(sum(values) / 2)
    assert found.deviation == pytest.approx(abs(values[0] - values[1]) / math.sqrt(2))


def test_table_has_every_row_with_its_spread(results):
    text = printed(results)
    for row in path_rows(results):
        found = row["barrier"]["test"]["nll"]
        assert f"{found.mean:.3f} ±{found.deviation:.3f}" in text
    for title in (
        "MLP 8-8",
        "CNN 8-8",
        "weight, statistics re-estimated",
        "aligned to the first, repaired",
        "5 models",
    ):
        assert title in text
    assert "over 6 disjoint pairs, 3 of each seed" in text


def test_sentences_name_the_lowest_barrier_and_what_did_not_help(results):
    results = copy.deepcopy(results)
    for pair in results["pairs"]:
        values = {"naive": 1.0, "weight": 1.5, "activation": 0.25}
        for found in pair["paths"].values():
            found["barrier"]["test"]["nll"] = values[pair["matching"]]
        if pair["matching"] == "weight" and pair["pair"] > 0:
            pair["paths"]["plain"]["barrier"]["test"]["nll"] = 0.5
    sentence = conclusions(results)[0]
    assert sentence.startswith("MLP 8-8: the barrier on the test set is 1.000 ±0.000 without matching")
    assert "at its lowest 0.250 ±0.000 with activation" in sentence
    assert sentence.endswith("for every pair: weight left 2 of 6 no lower, the highest at 1.500.")
    assert "naive left" not in " ".join(conclusions(results))


def test_sentence_of_soups_has_the_highest_and_what_it_is_compared_with(results):
    results = copy.deepcopy(results)
    levels = {
        "mean member": 0.9,
        "best member": 0.95,
        "ensemble": 0.96,
        "uniform soup": 0.2,
        "aligned to the first": 0.8,
    }
    for row in results["soups"]:
        row["metrics"]["test"]["accuracy"] = levels[row["name"]] + 0.05 * row["repaired"]
    (sentence,) = (text for text in conclusions(results) if text.startswith("CNN 8-8, soups of 5"))
    assert "the highest is aligned to the first, repaired with 85.00" in sentence
    assert "−5.00 points from the mean member" in sentence and "the ensemble has 96.00" in sentence


def test_report_is_written_and_the_same_again(results, written, tmp_path):
    directory, paths = written
    names = ["report.html", "figures/paths.png", "figures/width.png", "figures/soups.png"]
    assert paths == [str(directory / name) for name in names]
    again = write_rebasin_report(json.loads(json.dumps(results)), tmp_path)
    for old, new in zip(paths, again, strict=True):
        with open(old, "rb") as one, open(new, "rb") as other:
            assert one.read() == other.read()
    for name in names[1:]:
        image = imread(directory / name)
        assert image.shape[1] > 700 and image[..., :3].std() > 0.05


def test_page_is_whole_and_has_the_numbers(results, written, tag_reader):
    text = (written[0] / "report.html").read_text(encoding="utf-8")
    tag_reader.feed(text)
    assert tag_reader.open == [] and {"figures", "paths", "soups", "run"} <= tag_reader.ids
    assert text.count("data:image/png;base64") == 3 and "http" not in text.replace("http://www.w3.org", "")
    for row in path_rows(results):
        assert f"{row['barrier']['train']['nll'].mean:.3f} <small" in text
    for sentence in conclusions(results):
        assert sentence in text


def test_texts_are_escaped(results):
    evil = '<script>alert("1")</script>'
    text = page(results | {"experiment": evil, "device": evil, "versions": {evil: evil}}, [])
    assert "<script>alert" not in text and text.count("<script>") == 1


def test_figures_without_data_are_left_out_and_stale_ones_go(results, tmp_path):
    (tmp_path / "figures").mkdir()
    for name in ("soups", "width", "mine"):
        (tmp_path / "figures" / f"{name}.png").write_bytes(b"old")
    less = results | {"soups": [], "networks": {"mlp_8": results["networks"]["mlp_8"]}}
    less["pairs"] = [pair for pair in results["pairs"] if pair["network"] == "mlp_8"]
    names = ("report.html", "figures/paths.png")
    assert write_rebasin_report(less, tmp_path) == [str(tmp_path / name) for name in names]
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {"paths.png", "mine.png"}
    assert 'id="soups"' not in (tmp_path / "report.html").read_text()


def test_barriers_are_drawn_at_their_widths(results):
    with style.look():
        figure = draw.width(results)
    axes = figure.axes[0]
    line = dict(zip(HEIGHTS, axes.lines, strict=True))["weight"]
    rows = [row for row in path_rows(results) if row["matching"] == "weight" and row["network"].startswith("mlp")]
    assert list(line.get_xdata()) == [8, 16]
    np.testing.assert_allclose(line.get_ydata(), [row["barrier"]["test"]["nll"].mean for row in rows])
    dots = np.concatenate([found.get_offsets() for found in axes.collections])
    assert len(dots) == 3 * 2 * 6  # matchings, widths, pairs


def test_one_seed_has_no_spread_of_soups():
    text = printed(make_results(seeds=1))
    assert "over 3 disjoint pairs" in text and "nan" not in text
    assert " ± " not in printed(make_results(seeds=1, pairs=1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r | {"schema": "soups.results/1"}, "schema 'soups.results/1', not 'soups.rebasin/1'"),
        (lambda r: {k: v for k, v in r.items() if k not in ("pairs", "lambdas")}, "missing: lambdas, pairs"),
    ],
)
def test_other_results_are_refused(results, change, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        check_rebasin(change(results))
    with pytest.raises(ValueError, match=message):
        write_rebasin_report(change(results), tmp_path)
    assert list(tmp_path.iterdir()) == []
