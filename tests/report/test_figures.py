"""Every figure is drawn from what is there, is not blank, and keeps its labels and outliers in order."""

import io
import math

import numpy as np
import pytest
from PIL import Image

from soups.report import draw_accuracy, draw_reliability, draw_weights, figures, labels, style

NAMES = [plan.name for plan in figures.PLANS]
NEEDS = {
    "number_of_models": "number_of_models",
    "wise_ft": "wise_ft",
    "plane": "loss_plane",
    "reliability": "reliability",
    "diversity": "advantage",
}


@pytest.fixture(autouse=True)
def look():
    with style.look():
        yield


def pixels(png):
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"), np.float64)


@pytest.mark.parametrize("name", NAMES)
def test_figure_is_written_and_not_blank(reported, name):
    _, directory, paths = reported
    path = directory / "figures" / f"{name}.png"
    assert path in paths
    image = pixels(path.read_bytes())
    assert image.shape[1] in (1400, 920) and image.shape[0] >= 500
    assert (image < 200).any(axis=-1).mean() > 0.005
    # nothing is cut off at the border
    border = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
    assert (border == 255).all()


@pytest.mark.parametrize(("curve", "name"), NEEDS.items())
def test_a_missing_curve_leaves_its_figure_out(results, curve, name):
    for found in results["curves"].values():
        del found[curve]
    plan = next(plan for plan in figures.PLANS if plan.name == name)
    assert plan.draw(results) is None


def test_no_curves_and_no_pool(results):
    results |= {"curves": {}, "pool": {}}
    drawn = [plan.name for plan in figures.PLANS if plan.draw(results) is not None]
    assert drawn == ["scatter"]


def test_one_heat_map_where_only_angles_are_there(results):
    for found in results["curves"].values():
        del found["barriers"]
    figure = draw_weights.barriers_angles(results)
    assert [axes.get_title(loc="left") for axes in figure.axes if axes.images] == ["Angle of task vectors in degrees"]


def test_captions_say_which_seeds_are_shown(results):
    assert figures._seeds_sentence(figures.FIRST, [0, 1]) == "Shown: the first of 2 seeds."
    assert "one standard deviation over 3 seeds" in figures._seeds_sentence(figures.SPREAD, [0, 1, 2])
    assert figures._seeds_sentence(figures.FIRST, [0]) == ""


# --- Outliers ---------------------------------------------------------------------------------------------------------


def test_outliers_do_not_squash_the_scatter(results):
    axes = draw_accuracy.scatter(results).axes[0]
    shown = [row for row in results["rows"] if row["seed"] == 0 and row["kind"] == "soup"]
    low, high = axes.get_xlim()
    assert low > 90 and high - low < 10  # start at 51 %, probe at 86 %, worst member at 74 %
    assert all(low < 100 * row["metrics"]["test"]["accuracy"] < high for row in shown)
    (foot,) = axes.figure.texts
    text = foot.get_text().replace("\u00a0", " ").replace("\n", " ")
    assert "start weights 51.0 %" in text and "worst member" in text and "1 of 23 members" in text


def test_diverged_members_are_crosses_not_limits(results):
    figure = draw_accuracy.hyper_parameters(results)
    axes = figure.axes[0]
    assert axes.get_title(loc="left") == "learning rate" and axes.get_xscale() == "log"
    assert axes.get_ylim()[0] > 90
    crosses = axes.collections[-1].get_offsets()
    assert len(crosses) == 6  # in each of 3 seeds one diverged and one is at 74 %


def test_wise_ft_leaves_a_far_base_out_and_says_so(results):
    for found in results["curves"].values():
        for split, low in (("held_out", 0.1), ("test", 0.1), ("shift_mean", 0.1)):
            found["wise_ft"][split][0] = low
    right = draw_accuracy.wise_ft(results).axes[1]
    assert right.get_xlim()[0] > 50
    assert any("α = 0 at 10.0 %, 10.0 %" in text.get_text() for text in right.texts)


def test_robust_limits():
    values = [*np.linspace(96, 97, 20), 10.0, math.nan]
    low, high = style.robust_limits(values)
    assert 95 < low < 96 and 97 < high < 98
    assert style.robust_limits(values, keep=[50.0])[0] < 50
    assert style.robust_limits([3.0, 3.0]) == (2.5, 3.5)
    assert style.robust_limits([math.nan]) == (0.0, 1.0)


def test_levels_of_the_plane_are_geometric_where_errors_span_decades():
    levels, _ = draw_weights._levels(np.geomspace(1, 100, 400).reshape(20, 20))
    np.testing.assert_allclose(np.diff(np.log(levels)), np.log(levels[1] / levels[0]))
    np.testing.assert_allclose(levels[-1], np.percentile(np.geomspace(1, 100, 400), 95))
    levels, _ = draw_weights._levels(np.linspace(10, 11, 400).reshape(20, 20))
    np.testing.assert_allclose(np.diff(levels), levels[1] - levels[0])


# --- Lines ------------------------------------------------------------------------------------------------------------


def test_line_over_seeds_is_the_mean_over_common_counts(results):
    for found in results["curves"].values():
        last = found["number_of_models"]
        for name in ("uniform soup", "greedy soup", "ensemble", "best so far"):
            last[name]["test"] = last[name]["test"][:20]
    curves = [found["number_of_models"] for found in results["curves"].values()]
    _, ((axes,),) = style.panels()
    mean, deviation = draw_accuracy._line_over_seeds(axes, curves, [1, 4, 20], "ensemble", "test", 0.0)
    expected = 100 * np.array([found["ensemble"]["test"] for found in curves])[:, [0, 3, 19]]
    np.testing.assert_allclose(mean, expected.mean(axis=0))
    np.testing.assert_allclose(deviation, expected.std(axis=0, ddof=1))


def test_seeds_with_other_counts_share_what_they_have_in_common(results):
    last = results["curves"]["1"]["number_of_models"]
    last["counts"] = last["counts"][:-3]
    for name in ("uniform soup", "greedy soup", "ensemble", "best so far"):
        last[name] = {split: values[:-3] for split, values in last[name].items()}
    axes = draw_accuracy.number_of_models(results).axes[0]
    assert axes.lines[0].get_xdata()[-1] == last["counts"][-1]


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
