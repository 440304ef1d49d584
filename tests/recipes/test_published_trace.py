"""The greedy soup of the 72 published models: from their scores, the published order and the five accepted."""

import json
import pathlib

import numpy as np
import pytest

import soups
from soups.recipes.speculative import greedy_speculative

TRACE = json.loads(pathlib.Path(__file__).with_name("published_trace.json").read_text())
SCORES = TRACE["held_out_accuracy"]
ACCEPTED = {step["member"]: step["score"] for step in TRACE["accepted"]}
PLACE = {step["place"]: step["score"] for step in TRACE["best_rejected"]}
ONE_IMAGE = 1 / TRACE["num_images"]

# member i is a unit vector: the nonzero elements of a mean are its ingredients
MEMBERS = {name: {"w": np.eye(72, dtype=np.float32)[i]} for i, name in enumerate(SCORES)}


def published_score(params):
    """Look an average up in the published run; a rejected candidate that it gives no score for ties with the soup."""
    inside = [name for name in TRACE["order"] if params["w"][list(SCORES).index(name)]]
    np.testing.assert_allclose(params["w"][params["w"] > 0], 1 / len(inside), rtol=1e-6)
    *soup, candidate = inside
    place = TRACE["order"].index(candidate)
    if soup != [name for name in ACCEPTED if TRACE["order"].index(name) < place]:
        return 1.0  # speculation on a soup that it turned out not to be: it must not count
    return ACCEPTED.get(candidate) or PLACE.get(place) or ACCEPTED[soup[-1]]


def one_by_one():
    scores = SCORES | {TRACE["order"][0]: TRACE["accepted"][0]["score"]}
    return soups.greedy(MEMBERS, published_score, scores=scores)


def at_once(width):
    scores = SCORES | {TRACE["order"][0]: TRACE["accepted"][0]["score"]}
    rounds = []

    def evaluate_many(candidates):
        rounds.append(len(candidates))
        return [published_score(candidate) for candidate in candidates]

    return greedy_speculative(MEMBERS, evaluate_many, width=width, scores=scores), rounds


def test_the_trace():
    soup = one_by_one()
    assert [step["member"] for step in soup.history] == TRACE["order"]
    assert {step["member"]: step["score"] for step in soup.history if step["accepted"]} == ACCEPTED
    assert soup.ingredients == dict.fromkeys(["model_43", "model_44", "model_32", "model_47", "model_50"], 0.2)
    assert round(soup.score * TRACE["num_images"]) == 21834
    assert soup.score == pytest.approx(TRACE["greedy_soup_held_out_accuracy"], abs=1e-7)
    assert sum(step["accepted"] is False for step in soup.history[18:]) == 54


@pytest.mark.parametrize("width", [4, 8])
def test_the_trace_with_several_at_once(width):
    soup, rounds = at_once(width)
    assert soup.record() == one_by_one().record()
    # acceptances at 1, 10, 16 and 17 begin rounds at 1, 2, (6,) 10, 11, (15,) 17 and 18; 54 candidates are left then
    assert len(rounds) == {4: 21, 8: 12}[width]


def test_the_order_is_that_of_the_published_scores():
    """Sort independently: equal scores later-listed first, as model_5 before its duplicate model_4."""
    ranked = sorted(enumerate(SCORES), key=lambda item: (-SCORES[item[1]], -item[0]))
    assert [name for _, name in ranked] == TRACE["order"]
    assert SCORES["model_4"] == SCORES["model_5"]
    assert TRACE["order"].index("model_5") + 1 == TRACE["order"].index("model_4")


def test_the_two_runs_agree_to_two_images():
    """Compare the recorded run's start with the released result of the same model."""
    best = TRACE["accepted"][0]
    assert abs(best["score"] - SCORES[best["member"]]) < 2.5 * ONE_IMAGE
    assert max(PLACE.values()) < TRACE["accepted"][-1]["score"]
