"""Every figure is drawn from what is there, is not blank, and keeps its labels and outliers in order."""

import io
import itertools
import math

import numpy as np
import pytest
from matplotlib.collections import LineCollection
from matplotlib.markers import MarkerStyle
from matplotlib.path import Path
from PIL import Image

from soups import report
from soups.report import draw_lines, draw_reliability, draw_rows, draw_weights, figures, labels, style

OF_ROWS = ["overview", "scatter", "by_split", "hyper_parameters"]
OF_CURVES = ["number_of_models", "wise_ft", "losses", "loss_plane", "barriers_angles", "advantage", "reliability"]
OF_DIGITS = OF_ROWS + OF_CURVES


@pytest.fixture(autouse=True)
def look():
    with style.look():
        yield


@pytest.fixture
def results(results):
    return report.check(results)


def pixels(content):
    with Image.open(io.BytesIO(content)) as image:
        return np.asarray(image.convert("RGB"), np.float64)


def is_whole(content):
    """Say whether something is drawn in a PNG and nothing is cut off at the border."""
    image = pixels(content)
    border = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
    return (image < 200).any(axis=-1).mean() > 0.005 and (border == 255).all()


@pytest.mark.parametrize("name", OF_DIGITS)
def test_figure_is_written_and_whole(reported, name):
    _, directory, paths = reported
    png, svg = (directory / "figures" / f"{name}.{ending}" for ending in ("png", "svg"))
    assert {png, svg} <= set(paths) and is_whole(png.read_bytes())
    assert pixels(png.read_bytes()).shape[1] in (1400, 920)
    text = svg.read_text(encoding="utf-8")
    assert "<svg" in text and "<script" not in text


def test_nothing_but_the_rows(results):
    """A study that has main rows alone gets the figures of rows, without an error in any other."""
    rows = [row for row in results["rows"] if row["group"] == "main"]
    results |= {"rows": rows, "members": {}, "pairs": [], "curves": []}
    drawn = [plan.name for plan in figures.PLANS.values() if plan.draw(results) is not None]
    assert drawn == ["overview", "scatter", "by_split"]


def test_one_row_on_one_split(results):
    row = next(row for row in results["rows"] if row["name"] == "EMA")
    results |= {"rows": [row | {"metrics": {"test": row["metrics"]["test"]}}], "splits": {"test": {"role": "test"}}}
    results |= {"members": {}, "pairs": [], "curves": []}
    assert [plan.name for plan in figures.PLANS.values() if plan.draw(results) is not None] == ["overview"]


def test_numbers_that_are_missing_everywhere(results):
    """Results of which every number is null are drawn or left out, but never an error."""
    for row in results["rows"]:
        row["metrics"] = {split: dict.fromkeys(found) for split, found in row["metrics"].items()}
    for pair in results["pairs"]:
        pair["values"] = dict.fromkeys(pair["values"])
    for curve in results["curves"]:
        if curve["kind"] == "plane":
            curve["values"] = [[None] * len(row) for row in curve["values"]]
    for members in results["members"].values():
        for member in members:
            member["losses"] = [None, None]
    figures.draw_all(results)


def test_a_figure_of_ones_own_is_drawn_last(results, monkeypatch):
    monkeypatch.setattr(figures, "PLANS", dict(figures.PLANS))

    @report.figure("Seeds", "One for each.", seeds="There are {}.")
    def seeds(found):
        drawn, ((axes,),) = style.panels()
        axes.plot(found["seeds"])
        return drawn

    for name in OF_DIGITS:
        del figures.PLANS[name]
    (drawn,) = figures.draw_all(results)
    assert (drawn.name, drawn.title, drawn.caption) == ("seeds", "Seeds", "One for each. There are 3.")

    def scatter(found):
        raise AssertionError

    figures.PLANS["scatter"] = figures.Plan("scatter", "", draw_rows.scatter, "", "")
    with pytest.raises(ValueError, match=r"there is a figure 'scatter' already, in soups\.report\.draw_rows"):
        report.figure("", "")(scatter)


def test_a_notebook_shows_one_figure(results):
    drawn = report.draw(results, "scatter")
    content, look = drawn._repr_png_()
    assert is_whole(content) and look == {"width": pixels(content).shape[1] // 2}  # sharp on fine screens
    assert repr(drawn) == f"<{figures.PLANS['scatter'].title}>"  # and no bytes
    with pytest.raises(ValueError, match=r"unknown figure 'scater' \(did you mean 'scatter'\?\)"):
        report.draw(results, "scater")
    with pytest.raises(ValueError, match="have nothing that the figure 'loss_plane' shows"):
        report.draw(results | {"curves": []}, "loss_plane")


def test_captions_say_which_seeds_are_shown(reported):
    page = (reported[1] / "report.html").read_text(encoding="utf-8")
    assert "from the line at 0, the best member, of the same seed" in page
    for name, said in {
        "number_of_models": "Whiskers: 95 % intervals over 3 seeds.",
        "wise_ft": "bands: 95 % intervals",
        "loss_plane": "Shown: the first of 3 seeds.",
    }.items():
        assert said in page.partition(f'id="figure-{name}"')[2].partition("</figure>")[0]


# --- Gains ------------------------------------------------------------------------------------------------------------


def texts(figure):
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def test_gains_have_their_intervals(results):
    axes = draw_rows.overview(results).axes[0]
    rows = report.rows_table(results)
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == [row.name for row in rows]
    greedy = next(row for row in rows if row.name == "greedy soup")
    ends = [tuple(segment[:, 0]) for found in axes.collections for segment in getattr(found, "get_segments", list)()]
    gain = greedy.gain["test"]
    expected = (100 * (gain.mean - gain.half), 100 * (gain.mean + gain.half))
    assert any(found == pytest.approx(expected) for found in ends)
    start = -100 * next(row for row in rows if row.name == "start weights").gain["test"].mean
    assert f" ◂ −{start:.1f}" in texts(axes.figure)  # off the axis


def test_an_interval_that_leaves_the_axis_has_an_arrow_there(results):
    results |= {"seeds": [0, 1], "rows": [row for row in results["rows"] if row["seed"] < 2]}
    axes = draw_rows.overview(results).axes[0]
    (low, high), expected = axes.get_xlim(), set()
    for place, row in enumerate(report.rows_table(results)):
        mean, half = 100 * row.gain["test"].mean, 100 * row.gain["test"].half
        if low <= mean <= high:
            expected |= {(edge, place) for edge, out in ((low, mean - half < low), (high, mean + half > high)) if out}
    points = {tuple(point) for found in axes.collections for point in found.get_offsets()}
    assert expected and {point for point in points if point[0] in (low, high)} == expected


def test_gains_of_several_networks_have_a_panel_each(results):
    rows = [row for row in results["rows"] if row["name"] in ("best member", "uniform soup") and row["group"] == "main"]
    results["rows"] = [row | {"of": {"network": n, "models": k}} for row in rows for n in "ab" for k in (2, 5)]
    titles = [axes.get_title(loc="left") for axes in draw_rows.overview(results).axes]
    assert titles == ["a\nof 5 members", "b\nof 5 members"]


def test_split_by_split_shows_gains_with_better_in_blue(results):
    rows = [row for row in report.rows_table(results) if row.name != "best member"]
    image = draw_rows.by_split(results).axes[0].images[0]
    splits = [*results["splits"]["shift_mean"]["mean_of"], "shift_mean"]
    expected = [[100 * row.gain[split].mean for split in splits] for row in rows]
    np.testing.assert_allclose(image.get_array(), expected)
    bold = [text.get_fontweight() == "bold" for text in image.axes.texts]
    sure = [abs(row.gain[split].mean) > row.gain[split].half for row in rows for split in splits]
    assert bold == sure and 0 < sum(bold) < len(bold)
    results["metrics"] = {"accuracy": {"title": "error", "better": "lower", "percent": True}}
    np.testing.assert_allclose(draw_rows.by_split(results).axes[0].images[0].get_array(), -np.array(expected))


# --- Outliers ---------------------------------------------------------------------------------------------------------


def test_outliers_do_not_squash_the_scatter(results):
    axes = draw_rows.scatter(results).axes[0]
    rows = [row for row in report.rows_table(results) if row.kind == "soup"]
    low, high = axes.get_xlim()
    assert low > 90 and high - low < 10  # start at 51 %, probe at 86 %, worst member at 74 %
    assert all(low < 100 * row.metrics["test"]["accuracy"].mean < high for row in rows)
    (foot,) = axes.figure.texts
    text = foot.get_text().replace("\u00a0", " ").replace("\n", " ")
    assert "start weights 50." in text and "worst member" in text and "3 of 69 members" in text


@pytest.mark.parametrize("name", ["best member", "worst member"])
def test_only_the_best_member_is_a_star(results, name):
    results["rows"] = [row for row in results["rows"] if row["name"] in (name, "greedy soup", "best member")]
    for row in results["rows"]:  # the worst lies within the axes
        row["metrics"]["test"]["accuracy"] = max(row["metrics"]["test"]["accuracy"], 0.9)
    axes = draw_rows.scatter(results).axes[0]
    shapes = [len(found.get_paths()[0].vertices) for found in axes.collections if len(found.get_offsets()) == 1]
    star, cross = (len(MarkerStyle(marker).get_path().vertices) for marker in "*X")
    assert shapes.count(star) == 1 and shapes.count(cross) == (name == "worst member")


def test_members_of_all_seeds_are_moved_to_one_best_member(results):
    axes = draw_rows.scatter(results).axes[0]
    dots = next(found.get_offsets() for found in axes.collections if len(found.get_offsets()) == 69)
    places = {}
    for row in results["rows"]:
        if row["group"] == "member" or (row["name"] == "best member" and row["group"] == "main"):
            found = [row["metrics"][split]["accuracy"] for split in ("test", "shift_mean")]
            places.setdefault((row["seed"], row["group"]), []).append(found)
    best = np.array([places[seed, "main"][0] for seed in (0, 1, 2)])
    moved = [np.array(places[seed, "member"]) - best[seed] + best.mean(axis=0) for seed in (0, 1, 2)]
    np.testing.assert_allclose(dots, 100 * np.concatenate(moved), rtol=1e-9)


def test_whiskers_of_the_scatter_are_whole(results):
    axes = draw_rows.scatter(results).axes[0]
    ends = np.concatenate([np.concatenate(lines.get_segments()) for lines in axes.collections if _is_lines(lines)])
    inside = np.array([style.inside(axes, *end) for end in ends]).reshape(-1, 2)
    assert inside.any() and (inside[:, 0] == inside[:, 1]).all()


def _is_lines(found):
    return isinstance(found, LineCollection) and len(found.get_segments())


def test_diverged_members_are_crosses_not_limits(results):
    axes = draw_rows.hyper_parameters(results).axes[0]
    assert axes.get_title(loc="left") == "learning rate" and axes.get_xscale() == "log"
    assert axes.get_ylim()[0] > 90
    crosses = axes.collections[-1].get_offsets()
    assert len(crosses) == 6  # in each of 3 seeds one diverged and one is at 74 %


def test_a_few_settings_that_are_no_choices_are_places_on_an_axis(results):
    for name in ("0", "1", "2"):
        results["members"][name] = [m for m in results["members"][name] if m["name"] in ("member_000", "member_001")]
    figure = draw_rows.hyper_parameters(results)
    rates = figure.axes[0]
    assert rates.get_title(loc="left") == "learning rate"
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in rates.get_xticklabels() if text.get_text()]
    assert len(boxes) > 1 and not any(a.overlaps(b) for a, b in itertools.pairwise(boxes))


def test_wise_ft_leaves_a_far_base_out_and_says_so(results):
    for row in results["rows"]:
        if row.get("of") == {"alpha": 0.0}:
            row["metrics"] = {split: {"accuracy": 0.1} for split in row["metrics"]}
    right = draw_lines.wise_ft(results).axes[1]
    assert right.get_xlim()[0] > 50
    assert any("α = 0 at 10.0, 10.0" in text.get_text() for text in right.texts)
    results["metrics"] = {"accuracy": {"title": "correlation", "better": "higher"}}
    right = draw_lines.wise_ft(results).axes[1]
    assert any("α = 0 at 0.100, 0.100" in text.get_text() for text in right.texts)


@pytest.mark.parametrize("draw", [draw_rows.hyper_parameters, draw_lines.number_of_models])
@pytest.mark.parametrize("shifts", [True, False])
def test_axes_of_an_error_mirror_those_of_the_accuracy(results, draw, shifts):
    results["splits"] = results["splits"] if shifts else {"test": {"role": "test"}}
    shown = draw(results).axes
    for row in results["rows"]:
        row["metrics"] = {split: {"accuracy": 1 - found["accuracy"]} for split, found in row["metrics"].items()}
    results["metrics"] = {"accuracy": {"title": "error", "better": "lower", "percent": True}}
    best = 0 if draw is draw_lines.number_of_models else 100  # gains are mirrored at 0
    for one, other in zip(shown, draw(results).axes, strict=True):
        np.testing.assert_allclose(other.get_ylim(), best - np.array(one.get_ylim())[::-1], rtol=1e-6)
        for before, after in zip(one.collections, other.collections, strict=True):
            assert len(before.get_offsets()) == len(after.get_offsets())


def test_robust_limits():
    values = [*np.linspace(96, 97, 20), 10.0, math.nan]
    low, high = style.robust_limits(values)
    assert 95 < low < 96 and 97 < high < 98
    assert style.robust_limits(values, keep=[50.0])[0] < 50
    assert style.robust_limits([3.0, 3.0]) == (2.5, 3.5)
    low, high = style.robust_limits([*[0.0] * 12, 1.0, 1.0, 2.0, -1.0, -1.0, -40.0])
    assert -2 < low < -1 and 2 < high < 3
    assert style.robust_limits([math.nan]) == (0.0, 1.0)


# --- The plane --------------------------------------------------------------------------------------------------------


def test_levels_of_the_plane_are_geometric_where_errors_span_decades():
    levels, _ = draw_weights._levels(np.geomspace(1, 100, 400).reshape(20, 20))
    np.testing.assert_allclose(np.diff(np.log(levels)), np.log(levels[1] / levels[0]))
    np.testing.assert_allclose(levels[-1], np.percentile(np.geomspace(1, 100, 400), 95))
    levels, _ = draw_weights._levels(np.linspace(10, 11, 400).reshape(20, 20))
    np.testing.assert_allclose(np.diff(levels), levels[1] - levels[0])


def test_the_plane_goes_through_what_was_measured_and_has_no_lines(results, rng):
    error, x, y = rng.uniform(2, 9, (5, 4)), np.arange(4.0), np.arange(5.0)
    fine_x, fine_y, fine = draw_weights._smooth(x, y, error, np.array([0.0, 10.0]))
    np.testing.assert_allclose(fine[::40, ::54], error, atol=1e-12)
    assert fine.shape == (161, 163) and fine_x[54] == pytest.approx(1.0) and fine_y[-1] == 4.0
    assert not [line for line in draw_weights.loss_plane(results).axes[0].lines if len(line.get_xdata()) > 2]


# --- Lines ------------------------------------------------------------------------------------------------------------


def test_gains_over_the_best_so_far_have_whole_intervals(results):
    figure = draw_lines.number_of_models(results)
    for axes, split in zip(figure.axes, ("test", "shift_mean"), strict=True):
        rows = [row for row in results["rows"] if "models" in row.get("of", ())]
        found, best = (
            100 * np.array([row["metrics"][split]["accuracy"] for row in rows if row["name"] == name]).reshape(3, -1)
            for name in ("ensemble", "best on held-out")
        )
        mean, half = (found - best).mean(axis=0), 4.302653 * (found - best).std(axis=0, ddof=1) / np.sqrt(3)
        drawn = [line for line in axes.lines if line.get_color() == style.SERIES["ensemble"]]
        np.testing.assert_allclose(drawn[0].get_ydata(), mean)
        segments = np.concatenate([np.array(whiskers.get_segments()) for whiskers in axes.collections])
        ends = np.stack([mean - half, mean + half], axis=-1)
        assert (np.abs(segments[:, None, :, 1] - ends).max(axis=-1).min(axis=0) < 1e-5).all()
        low, high = axes.get_ylim()
        assert low < segments[..., 1].min() and segments[..., 1].max() < high


def test_number_of_models_of_several_networks_is_enlarged_below(results):
    rows = []
    for network in ("MLP 8", "CNN 4"):
        for size, level in ((2, 0.2), (5, 0.3)):
            for name, more in (("mean member", 0.6), ("MergeMany", 0.0), ("MergeMany, repaired", 0.55)):
                row = {
                    "seed": 0,
                    "name": name,
                    "kind": "soup",
                    "group": "main",
                    "of": {"network": network, "models": size},
                }
                rows.append(row | {"metrics": {"test": {"accuracy": level + more}}})
    results |= {"rows": rows, "seeds": [0], "splits": {"test": {"role": "test"}}}
    figure = draw_lines.number_of_models(results)
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["MLP 8", "CNN 4", "", ""]
    assert figure.axes[0].get_ylim()[0] < 20 and figure.axes[2].get_ylim()[0] > 50
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["mean member", "MergeMany", "MergeMany, repaired"]


def test_losses_are_those_of_the_first_seed(results):
    axes = draw_lines.losses(results).axes[0]
    strong, faint = axes.lines[::2], axes.lines[1::2]
    assert len(strong) == len(faint) == 24 and axes.get_yscale() == "log"
    losses = results["members"]["0"][3]["losses"]
    np.testing.assert_allclose(faint[3].get_ydata(), losses)
    tenth = round(len(losses) / 10)
    np.testing.assert_allclose(strong[3].get_ydata()[[0, -1]], [losses[0], np.mean(losses[-tenth:])])


def test_calibration_error_of_bins():
    bins = [
        {"confidence": 0.6, "accuracy": 0.5, "count": 10},
        {"confidence": 0.9, "accuracy": 0.95, "count": 30},
        {"confidence": 0.0, "accuracy": 0.0, "count": 0},
    ]
    assert draw_reliability.calibration_error(bins) == pytest.approx((10 * 0.1 + 30 * 0.05) / 40)


# --- Labels -----------------------------------------------------------------------------------------------------------


def test_labels_do_not_overlap_in_a_crowd(rng):
    figure, ((axes,),) = style.panels()
    points = 0.5 + 0.05 * rng.normal(size=(14, 2))
    axes.scatter(*points.T)
    axes.set(xlim=(0, 1), ylim=(0, 1))
    style.freeze_layout(figure)
    texts = [f"a soup of kind {i}" for i in range(14)]
    labels.place_labels(axes, points, texts, ["black"] * 14)
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in axes.texts]
    assert [text.get_text() for text in axes.texts] == texts
    frame = axes.get_window_extent()
    for i, box in enumerate(boxes):
        assert frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1
        assert not any(box.overlaps(other) for other in boxes[:i])


def test_labels_keep_off_whiskers_and_paths_even_of_what_lies_far_off_or_nowhere(rng):
    figure, ((axes,),) = style.panels()
    points = 0.5 + 0.15 * rng.normal(size=(9, 2))
    lines = [(point - reach, point + reach) for point in points for reach in ((0.06, 0), (0, 0.06))]
    lines += [((0.1, 0.9), (1e12, 0.9)), ((0.3, 0.1), (np.nan, 0.2)), ((5.0, 5.0), (5.0, 6.0))]
    axes.set(xlim=(0, 1), ylim=(0, 1))
    style.freeze_layout(figure)
    labels.place_labels(axes, points, [f"soup {i}" for i in range(9)], ["black"] * 9, lines=lines)
    boxes = [text.get_window_extent() for text in axes.texts]
    for line in lines[:-2]:
        drawn = Path(axes.transData.transform(np.clip(line, -1, 9)))
        assert not any(drawn.intersects_bbox(box, filled=False) for box in boxes)


def test_line_end_labels_are_spread_out_and_stay_near():
    wanted = np.array([0.0, 1.0, 2.0, 50.0])
    places = labels._spread_out(wanted, 10.0)
    assert (np.diff(places) >= 10 - 1e-9).all()
    np.testing.assert_allclose(places, [-9.0, 1.0, 11.0, 50.0])


def test_short_names():
    assert style.short_names(["member_003", "member_011"]) == ["003", "011"]
    assert style.short_names(["alpha", "alto"]) == ["alpha", "alto"]
    assert style.short_names(["member_003"]) == ["member_003"]
    assert style.short_names(["member_1", "member_12"]) == ["1", "12"]


@pytest.mark.parametrize("count", [2, 5, 28, 90])
def test_names_along_an_axis_do_not_run_together(results, count):
    members = [member for found in results["members"].values() for member in found]
    names = [f"rand-m{index}-n{index % 3}" for index in range(min(count, len(members)))]
    for index, member in enumerate(members):
        # as of imported members: names, a number that is often 0, and one of a few
        member["config"] = {"aug": names[index % count], "mix": max(0, index % 7 - 3) / 9, "epochs": 4 + index % 3}
    figure = draw_rows.hyper_parameters(results)
    figure.draw_without_rendering()
    shown = dict(zip(("aug", "mix", "epochs"), figure.axes, strict=False))
    written = [[text for text in axes.get_xticklabels() if text.get_text()] for axes in shown.values()]
    assert [text.get_text() for text in written[0]] == names[:: math.ceil(len(names) / len(written[0]))]
    assert all(text.get_fontsize() > 4 for text in written[0])
    for texts in written:
        boxes = [text.get_window_extent() for text in texts]
        assert len(boxes) > 1 and not any(a.overlaps(b) for a, b in itertools.pairwise(boxes))
