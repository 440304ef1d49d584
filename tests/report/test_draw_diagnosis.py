"""The figure of a diagnosis shows what was measured, and names whom to leave out."""

import dataclasses
import io
import math

import matplotlib
import numpy as np
import pytest
from PIL import Image

from soups.evaluate.diagnose import diagnose
from soups.report import style
from soups.report.draw_diagnosis import draw_diagnosis


@pytest.fixture
def members(rng):
    base = {"a": {"kernel": rng.normal(size=(20, 20))}, "b": {"kernel": rng.normal(size=(20, 20))}}

    def near(step):
        return {m: {"kernel": base[m]["kernel"] + step * rng.normal(size=(20, 20))} for m in base}

    members = {f"run_{index}": near(0.1) for index in range(4)}
    return base, {"run_far": near(0.9), "run_nan": {m: {"kernel": np.full((20, 20), np.nan)} for m in base}, **members}


def score(params):
    return 0.9 - 0.2 * float(abs(params["a"]["kernel"][0, 0]))


def texts(figure):
    """List all words of a figure."""
    return [text.get_text() for text in figure.findobj(matplotlib.text.Text) if text.get_text()]


def titles(figure):
    return [axes.get_title(loc="left") for axes in figure.axes if axes.get_title(loc="left")]


def pixels(figure):
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return np.asarray(Image.open(buffer).convert("RGB"), np.float64)


def is_whole(image):
    """Say whether something is drawn and nothing is cut off at the border."""
    border = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
    return (image < 200).any(axis=-1).mean() > 0.005 and (border == 255).all()


def test_angles_and_norms(members):
    base, weights = members
    diagnosis = diagnose(weights, base=base)
    figure = draw_diagnosis(diagnosis)
    assert titles(figure) == ["Angle between task vectors", "Distance from the base"]
    matrix = figure.axes[0].images[0].get_array()
    order = [2, 3, 4, 5, 0]  # those to leave out last, the one that is NaN not at all
    expected = np.degrees(np.arccos(diagnosis.cosines[np.ix_(order, order)]))
    off = ~np.eye(5, dtype=bool)
    np.testing.assert_allclose(np.asarray(matrix)[off], expected[off], rtol=1e-12)
    assert np.ma.getmaskarray(matrix).diagonal().all()
    dots = figure.axes[1].collections[0].get_offsets()
    np.testing.assert_allclose(dots[:, 0], diagnosis.relative_norms[order], rtol=1e-12)
    labels = figure.axes[0].get_yticklabels()
    assert [label.get_text() for label in labels] == ["0", "1", "2", "3", "far"]
    assert [label.get_color() == style.ALARM for label in labels] == [False] * 4 + [True]
    assert "Average some: average 4 of 6 members" in texts(figure)
    foot = next(text for text in texts(figure) if text.startswith("Leave out: "))
    assert "run_nan" in foot and "run_far" in foot
    image = pixels(figure)
    assert image.shape[1] == 1400 and is_whole(image)


def test_without_a_base(members):
    figure = draw_diagnosis(diagnose(members[1]))
    assert titles(figure) == ["Angle between weights", "Distance to the others"]


def test_barriers_and_scores(members):
    base, weights = members
    diagnosis = diagnose(weights, base=base, evaluate=score)
    figure = draw_diagnosis(diagnosis)
    assert titles(figure)[2:] == ["Barrier between members", "Score"]
    barriers = next(axes for axes in figure.axes if axes.get_title(loc="left") == "Barrier between members")
    order = [index for index, name in enumerate(diagnosis.names) if name in diagnosis.keep]
    expected = diagnosis.barriers[np.ix_(order, order)]
    shown = barriers.images[0].get_array()[: len(order), : len(order)]
    off = ~np.eye(len(order), dtype=bool)
    np.testing.assert_array_equal(np.asarray(shown)[off], expected[off])
    assert any(f"{diagnosis.soup_scores['keep']:.4g}" in text for text in texts(figure))
    assert is_whole(pixels(figure))


def test_a_path_without_a_score(members):
    ends = {id(member) for member in members[1].values()}
    diagnosis = diagnose(members[1], evaluate=lambda p: 0.9 if id(p) in ends else math.nan)
    figure = draw_diagnosis(diagnosis)
    assert "∞" in texts(figure) and any(text.startswith("Align first") for text in texts(figure))
    assert is_whole(pixels(figure))


def test_many_members_bear_no_numbers(rng):
    many = diagnose([{"w": rng.normal(size=(4, 9)) + 9} for _ in range(70)])
    figure = draw_diagnosis(many)
    assert not figure.axes[0].texts and "70 members" in figure.axes[0].get_ylabel()
    assert figure.get_figheight() < 7


def test_names_are_no_formulas_and_cut_where_long(members):
    base, weights = members
    odd = {"a$x$": weights["run_0"], "b" * 200: weights["run_1"], "$": weights["run_nan"]}
    figure = draw_diagnosis(diagnose(odd, base=base))
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["a$x$", "b" * 23 + "…"]
    assert is_whole(pixels(figure))


def test_nothing_to_compare_gives_words(members):
    diagnosis = diagnose({"run_nan": members[1]["run_nan"], "text": {"w": "x"}})
    figure = draw_diagnosis(diagnosis)
    assert not figure.axes
    words = "\n".join(texts(figure))
    assert words.startswith("Do not average") and "run_nan (it holds NaN" in words and "text (" in words
    assert is_whole(pixels(figure))


def test_a_long_list_of_reasons_is_cut(members):
    base, weights = members
    reasons = {f"bad_{index}": "it is bad " * 20 for index in range(30)}
    diagnosis = dataclasses.replace(diagnose(weights, base=base), leave_out=reasons)
    foot = next(text for text in texts(draw_diagnosis(diagnosis)) if text.startswith("Leave out: "))
    assert foot.replace("\u00a0", " ").endswith("and 22 more") and len(foot) < 900


def test_equal_members_have_no_angle_to_draw(members):
    base, _ = members
    figure = draw_diagnosis(diagnose([base, base], base=base))
    assert is_whole(pixels(figure))
