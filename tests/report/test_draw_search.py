"""The figure of a search: what can be told apart on it, and what lies on nothing."""

import numpy as np

from soups.report import style
from soups.report.draw_rows import _shared
from soups.report.draw_search import draw_search


def labels(axis):
    axis.figure.draw_without_rendering()
    return [tick.get_text() for tick in axis.get_ticklabels() if tick.get_text()]


def test_members_are_told_apart_by_the_ends_of_their_names():
    names = [f"weight of runs/a-sweep-with-a-long-name/{index}/model" for index in range(2)]
    figure = draw_search({name: [0.1, 0.9] for name in names} | {"density": [0.1, 0.9]}, [1.0, 2.0], "min")
    candidates, first, second, density = figure.axes
    shown = [axes.get_xlabel() for axes in (first, second, density)]
    assert shown[0].endswith("/0/model") and shown[1].endswith("/1/model") and shown[2] == "density"
    assert all(name.startswith("weight of …") and len(name) == 32 for name in shown[:2])
    assert candidates.get_ylabel() == "score; lower is better"
    assert draw_search({"density": [1.0]}, [1.0], "max").axes[0].get_ylabel() == "score"


def test_one_candidate_has_a_whole_number_and_choices_do_not_run_together():
    kinds = ["magnitude_pruning", "random_pruning", "none"]
    with style.look():
        figure = draw_search({"kind": kinds}, [1.0, np.nan, 2.0], "max")
    candidates, kind = figure.axes
    assert sum(map(len, labels(kind.xaxis))) <= 32 and candidates.get_title(loc="left") == "1 without a finite score"
    places = draw_search({"density": [0.5]}, [0.7], "max").axes[0].get_xticks()
    assert 0 in places and (places == np.rint(places)).all()


def test_rows_at_one_place_share_the_begin_of_their_names():
    assert _shared(["WiSE-FT, α by held-out", "WiSE-FT, α = 0.5"]) == "WiSE-FT, α by held-out; α = 0.5"
    assert _shared(["greedy soup", "best member"]) == "greedy soup = best member"
    assert _shared(["learned soup, per leaf"]) == "learned soup, per leaf"
