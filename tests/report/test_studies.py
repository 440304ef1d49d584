"""The report of every kind of study that is not like that of digits: many tasks, independent networks, ImageNet."""

import copy
import math

import numpy as np
import pytest

from soups import report, state
from soups.report import draw_lines, draw_rows, draw_weights, figures, style, tables, words
from soups.report.page import page

TASKS = ("parity", "loops")
# name, kind, family, accuracies on the tasks
METHODS = [
    ("base with the members' heads", "start", "baselines", (0.6, 0.5)),
    ("individual members", "members", "baselines", (0.9, 0.8)),
    ("multi-task learning", "joint", "baselines", (0.85, 0.85)),
    ("uniform soup", "soup", "averages", (0.7, 0.6)),
    ("TIES <b>", "soup", "task vectors", (0.55, 0.5)),
    ("Localize-and-Stitch", "soup", "masks", (0.8, 0.7)),
    ("EMR", "masked", "trunk for each task", (0.88, 0.8)),
]
HEAD = {
    "schema": report.results.SCHEMA,
    "created": "2025-01-02T03:04:05+00:00",
    "config": {"seeds": 2},
    "versions": {"soups": "0.1.0"},
    "device": "cpu x2",
    "seeds": [0, 1],
}


def of_tasks():
    """Return results of two tasks and seven methods, with the masks of one."""
    splits = {"test": {"role": "test", "mean_of": list(TASKS)}}
    splits |= {task: {"role": "test", "examples": 50} for task in TASKS}
    rows, curves = [], []
    for seed in HEAD["seeds"]:
        for name, kind, family, accuracies in METHODS:
            found = dict(zip(TASKS, np.array(accuracies) - 0.02 * seed, strict=True))
            scores = [found[task] / (own - 0.02 * seed) for task, own in zip(TASKS, METHODS[1][3], strict=True)]
            metrics = {"test": {"accuracy": np.mean(list(found.values())), "normalised": np.mean(scores)}}
            metrics |= {task: {"accuracy": value} for task, value in found.items()}
            row = {"seed": seed, "name": name, "kind": kind, "group": "main", "family": family, "metrics": metrics}
            row["cost"] = {"seconds": 0.2 + seed, "bytes": 8000 if kind == "members" else 4000, "labelled": 0}
            rows.append(row | ({"settings": {"density": 0.2}} if family != "baselines" else {}))
        jaccard = {a: {b: 1.0 if a == b else 0.2 + 0.1 * seed for b in TASKS} for a in TASKS}
        sizes = {"percent": {"parity": 10.0, "loops": 20.0 + seed}, "alone": dict.fromkeys(TASKS, 0.8)}
        curves.append({"seed": seed, "kind": "masks", "name": "Localize-and-Stitch", **sizes, "jaccard": jaccard})
    return HEAD | {"experiment": "tasks", "splits": splits, "rows": rows, "curves": curves,
                   "reference": "individual members", "notes": ["Left out: SLERP."]}  # fmt: skip


LAMBDAS = [0.0, 0.25, 0.5, 0.75, 1.0]
HEIGHTS = {"naive": 2.0, "weight": 0.3, "activation": 0.2}


def of_networks(pairs=3):
    """Return results of two kinds of networks of two widths each, with soups of one width."""
    rng, found, rows = np.random.default_rng(0), [], []
    for seed in HEAD["seeds"]:
        for kind, units in (("MLP", 8), ("MLP", 16), ("CNN", 4), ("CNN", 8)):
            for pair in range(pairs):
                for matching, height in HEIGHTS.items():
                    for statistics in ("as averaged", "re-estimated")[: 1 + (kind == "CNN")]:
                        of = {"network": f"{kind} {units}-{units}", "units": units, "matching": matching}
                        nll = 0.1 + height * 4 * np.array(LAMBDAS) * (1 - np.array(LAMBDAS)) + rng.uniform(0, 0.02, 5)
                        line = {"nll": nll.tolist(), "accuracy": np.exp(-nll).tolist()}
                        values = {"test barrier (NLL)": height + rng.uniform(), "test barrier (accuracy)": height / 4}
                        found.append({"seed": seed, "a": f"{2 * pair}", "b": f"{2 * pair + 1}", "values": values,
                                      "of": of | {"statistics": statistics}, "lambdas": LAMBDAS,
                                      "path": {"train": line, "test": line}})  # fmt: skip
        for network in ("MLP 16-16", "CNN 8-8"):
            for size in (2, 5):
                for name, kind in (("mean member", "members"), ("best member", "member"), ("ensemble", "ensemble"),
                                   ("uniform soup", "soup"), ("MergeMany, repaired", "soup")):  # fmt: skip
                    metrics = {split: {"accuracy": rng.uniform(), "nll": rng.uniform()} for split in ("test", "train")}
                    row = {"seed": seed, "name": name, "kind": kind, "group": "main", "metrics": metrics}
                    rows.append(row | {"of": {"network": network, "models": size}})
    splits = {"test": {"role": "test", "examples": 1500}, "train": {"role": "train", "examples": 3000}}
    return HEAD | {"experiment": "rebasin", "splits": splits, "rows": rows, "pairs": found}


def of_imagenet():
    """Return results of one seed on a test set and two shifts, beside published numbers, with a path."""
    names = {"imagenet": "ImageNet", "imagenet_r": "R", "objectnet": "ObjectNet"}
    splits = {
        n: {"role": "test" if n == "imagenet" else "shift", "examples": 500, "title": t} for n, t in names.items()
    }
    splits["shift_mean"] = {"role": "shift", "mean_of": ["imagenet_r", "objectnet"], "title": "mean of shifts"}
    rows = []
    for index, (name, kind, group) in enumerate([
        ("best member", "member", "main"), ("uniform soup", "soup", "main"), ("ensemble", "ensemble", "main"),
        ("model_0", "member", "member"), ("model_1", "member", "member"), ("0", "interpolation", "curve"),
        ("1", "interpolation", "curve")]):  # fmt: skip
        metrics = {split: {"accuracy": 0.7 + 0.02 * index - 0.1 * (split != "imagenet")} for split in splits}
        row = {"seed": 3, "name": name, "kind": kind, "group": group, "metrics": metrics}
        row["published"] = {
            "imagenet": {"value": metrics["imagenet"]["accuracy"] - 0.01, "exact": True, "tolerance": 4},
            "shift_mean": {"value": metrics["shift_mean"]["accuracy"], "exact": False},
        }
        rows.append(row | ({"of": {"alpha": float(name)}} if group == "curve" else {}))
    return HEAD | {"experiment": "clip", "seeds": [3], "splits": splits, "rows": rows}


STUDIES = {
    "tasks": (of_tasks, ["overview", "by_split", "masks"]),
    "rebasin": (of_networks, ["overview", "number_of_models", "paths", "width"]),
    "imagenet": (of_imagenet, ["overview", "scatter", "by_split", "wise_ft"]),
}


@pytest.fixture(params=STUDIES)
def study(request):
    """Return the results of a study and the names of its figures."""
    make, names = STUDIES[request.param]
    return report.check(make()), names


@pytest.fixture(autouse=True)
def look():
    with style.look():
        yield


def test_a_study_gets_its_figures_its_page_and_its_table(study, tag_reader, tmp_path, capsys):
    results, names = study
    state.write(tmp_path / "results.json", results)
    paths = report.write_report(tmp_path)
    saved = ("table", "test_sets")[: 1 + (results["experiment"] == "tasks")]
    tables = [f"{name}.{ending}" for name in saved for ending in ("csv", "tex")]
    kept = [f"figures/{name}.{ending}" for name in names for ending in ("png", "svg")]
    assert [str(path.relative_to(tmp_path)) for path in paths] == ["report.html", *kept, *tables]
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    tag_reader.feed(text)
    assert tag_reader.open == [] and text.count("<figure") == len(names)
    report.print_table(results)
    printed = capsys.readouterr().out
    for row in report.rows_table(results):
        assert row.name in printed
        mean = row.metrics[next(iter(results["splits"]))]["accuracy"].mean
        assert f"{100 * mean:.2f}" in printed


def test_gains_of_tasks_are_against_the_members():
    results = report.check(of_tasks())
    uniform = tables.row_named(report.rows_table(results), "uniform soup")
    assert uniform.gain["parity"].mean == pytest.approx(-0.2)
    scores = [0.7 / 0.9, 0.6 / 0.8, 0.68 / 0.88, 0.58 / 0.78]
    assert uniform.metrics["test"]["normalised"].mean == pytest.approx(np.mean(scores))
    table = tables.main_table(results)
    assert table.heads[:2] == ["", "family"] and "normalised %" in table.heads and "size" in table.heads
    # EMR stores more than one trunk, so it is not among those that stand out
    best = [row[0].text for row in table.rows if row[table.heads.index("test %")].look == "best"]
    assert best == ["multi-task learning"]
    assert (
        "no soup is better than the individual members: the best is Localize-and-Stitch" in words.sentences(results)[1]
    )


def test_many_methods_are_drawn_with_the_best_first_behind_the_baselines():
    figure = draw_rows.overview(report.check(of_tasks()))
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert names[:3] == [name for name, *_ in METHODS[:3]]
    assert names[3:] == ["EMR", "Localize-and-Stitch", "uniform soup", "TIES <b>"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "baselines", "averages", "task vectors", "masks", "trunk for each task"]  # fmt: skip


def test_settings_and_notes_of_tasks_are_on_the_page():
    text = page(report.check(of_tasks()), [])
    assert "density 0.2" in text and "Left out: SLERP." in text and "TIES &lt;b&gt;" in text and "<b>" not in text


def test_masks_are_averaged_over_seeds():
    axes = draw_weights.masks(report.check(of_tasks())).axes
    assert [bar.get_width() for bar in axes[0].patches] == pytest.approx([10.0, 20.5])
    assert float(axes[1].images[0].get_array()[0, 1]) == pytest.approx(0.25)


def test_barriers_are_drawn_at_their_widths():
    results = report.check(of_networks())
    axes = draw_lines.width(results).axes[0]
    line = dict(zip(HEIGHTS, axes.lines, strict=True))["weight"]
    pairs = [pair for pair in results["pairs"] if pair["of"]["matching"] == "weight" and "MLP" in pair["of"]["network"]]
    expected = [np.mean([p["values"]["test barrier (NLL)"] for p in pairs if p["of"]["units"] == w]) for w in (8, 16)]
    assert list(line.get_xdata()) == [8, 16]
    np.testing.assert_allclose(line.get_ydata(), expected)
    dots = np.concatenate([found.get_offsets() for found in axes.collections])
    assert len(dots) == 3 * 2 * 6 and dots[:, 1].min() > axes.get_ylim()[0]  # matchings, widths, pairs


def test_paths_of_the_widest_network_of_each_kind_with_a_band_over_pairs():
    results = report.check(of_networks())
    figure = draw_lines.paths(results)
    titles = [axes.get_title(loc="left") for axes in figure.axes[:3]]
    assert titles == ["MLP 16-16\nas averaged", "CNN 8-8\nas averaged", "CNN 8-8\nre-estimated"]
    pairs = [p for p in results["pairs"] if p["of"]["network"] == "MLP 16-16" and p["of"]["matching"] == "naive"]
    lines = np.array([pair["path"]["test"]["nll"] for pair in pairs])
    np.testing.assert_allclose(figure.axes[0].lines[1].get_ydata(), lines.mean(axis=0))
    band = figure.axes[0].collections[0].get_paths()[0].vertices[:, 1]
    assert band.max() == pytest.approx((lines.mean(axis=0) + lines.std(axis=0, ddof=1)).max())


def test_pairs_of_networks_are_one_row_for_each_matching():
    table = tables.pair_table(report.check(of_networks()))
    assert table.heads[:4] == ["network", "units", "matching", "statistics"] and len(table.rows) == 2 * 3 + 2 * 3 * 2


def test_published_places_are_hollow():
    axes = draw_rows.scatter(report.check(of_imagenet())).axes[0]
    places = [tuple(np.round(point, 3)) for found in axes.collections for point in found.get_offsets()]
    assert {(72.0, 62.0), (71.0, 62.0)} <= set(places)  # the uniform soup, here and as published
    assert len(places) == 2 * 5


def test_every_shift_is_drawn_along_the_path_where_they_are_few():
    axes = draw_lines.wise_ft(report.check(of_imagenet())).axes[0]
    drawn = [line for line in axes.lines if len(line.get_xdata()) == 2 and list(line.get_xdata()) == [0.0, 1.0]]
    assert len(drawn) == 4
    assert {text.get_text() for text in axes.texts} == {"ImageNet", "R", "ObjectNet", "mean of shifts"}


def test_every_registered_figure_is_of_some_study():
    of_digits = {"overview", "scatter", "by_split", "hyper_parameters", "number_of_models", "wise_ft", "losses"}
    of_digits |= {"loss_plane", "barriers_angles", "advantage", "reliability"}
    of_recycling = {"diversity", "barriers", "shares", "starts"}
    assert figures.PLANS.keys() == of_digits.union(of_recycling, *(names for _, names in STUDIES.values()))


ODD = [None, 0, -1, 1e308, math.nan, "", "x" * 200, "<b>", "main", [], {}, True, [1], {"a": 1}, 2**70, "test"]


def places_of(found, places):
    """List every place of nested objects and lists: the holder and its key."""
    items = found.items() if isinstance(found, dict) else enumerate(found) if isinstance(found, list) else ()
    for key, value in list(items):
        places.append((found, key))
        places_of(value, places)
    return places


@pytest.mark.parametrize("name", STUDIES)
def test_odd_results_are_refused_in_words_or_reported(name, rng):
    refused = 0
    for _ in range(60):
        results = copy.deepcopy(STUDIES[name][0]())
        places = places_of(results, [])
        holder, key = places[rng.integers(len(places))]
        if rng.random() < 0.3:
            del holder[key]
        else:
            holder[key] = copy.deepcopy(ODD[rng.integers(len(ODD))])
        try:
            results = report.check(results)
        except ValueError as error:
            refused += 1
            assert "is not a complete soups.results/2 file" in str(error) or "has schema" in str(error)
        else:
            page(results, [])
    assert 10 < refused < 60
