"""Test the tables, sentences, figures and the page of an ImageNet run."""

import copy
import html
import io

import numpy as np
import pytest
from matplotlib.image import imread
from rich.console import Console

from soups import state
from soups.report import report_again, style
from soups.report.imagenet import draw
from soups.report.imagenet.page import page, write_imagenet_report
from soups.report.imagenet.tables import print_imagenet_table, sentences


def printed(results):
    console = Console(file=io.StringIO(), width=250)
    print_imagenet_table(results, console)
    return console.file.getvalue()


def named(results, name):
    return next(row for row in results["rows"] if row["name"] == name)


def small(results):
    """Give the results of another pool: four members on two sets."""
    rows = [row for row in results["rows"] if row["group"] != "member"]
    rows += [row for row in results["rows"] if row["group"] == "member"][:4]
    sets = {name: {"examples": 100, "classes": 20} for name in ("held_out", "imagenet")}
    return results | {"rows": [row | {"shift_mean": None} for row in rows], "sets": sets}


@pytest.fixture(scope="module")
def written(published_results, tmp_path_factory):
    directory = tmp_path_factory.mktemp("report")
    return directory, write_imagenet_report(published_results, directory)


def test_each_number_stands_beside_its_difference(published_results):
    results = copy.deepcopy(published_results)
    named(results, "greedy soup")["accuracy"]["imagenet"] += 3 / 50_000
    named(results, "uniform soup")["accuracy"]["imagenet_a"] -= 7 / 7_500
    text = printed(results)
    assert "ImageNet ±4" in text and " Sketch " in text and "Sketch ±" not in text
    assert "81.03 +3 " in text
    assert "29.08 −7!" in text
    assert "81.03 +0.14p" in text  # the learned soup, of which the paper has two decimals
    assert "within it; the largest difference is +0 images" in text


def test_sentences_compare_soups_with_the_best_member_and_ingredients_with_the_published(published_results):
    said = sentences(published_results)
    assert said[0].startswith("72 members were measured on: held-out 26,000, ImageNet 50,000")
    assert said[0].endswith("chosen by the published index file.")
    assert "ImageNet: the highest soup in hindsight is greedy soup with 81.03 %, +0.64 points from" in said[1]
    assert "mean of shifts: the highest soup in hindsight is uniform soup with 51.58 %, +3.61 points from" in said[2]
    assert "Of the 432 accuracies" in said[3] and "432 are within it" in said[3]
    assert said[4] == "The greedy soup took model_43, model_44, model_32, model_47, model_50; the same as published."


def test_sentences_say_what_did_not_help_and_what_differs(published_results):
    results = copy.deepcopy(published_results) | {"held_out": "by file name"}
    for name in ("uniform soup", "greedy soup", "learned soup"):
        named(results, name)["accuracy"]["imagenet"] = 0.5
    named(results, "greedy soup")["ingredients"] = {"model_43": 1.0}
    said = " ".join(sentences(results))
    assert "by file name, not as published" in said
    assert "no soup is above it" in said
    assert "The greedy soup took model_43; published: model_43, model_44, model_32, model_47, model_50." in said


def test_another_pool_has_no_published_numbers(published_results):
    results = small(published_results) | {"notes": ["imagenet has 100 images, the published set has 50,000"]}
    text = printed(results)
    assert "published set has 50,000" in text and "!" not in text and "greedy soup took" not in text
    assert "mean of shifts" not in text
    assert draw.scatter(results) is None


def test_page_is_whole_and_has_the_numbers(published_results, written, tag_reader):
    directory, paths = written
    assert paths == [str(directory / name) for name in ("report.html", "figures/imagenet.png", "figures/wise_ft.png")]
    text = (directory / "report.html").read_text(encoding="utf-8")
    tag_reader.feed(text)
    assert tag_reader.open == []
    assert {"results", "figures", "wise-ft", "beside", "members", "selection", "run"} <= tag_reader.ids
    assert text.count("<tr>") > 72 + 7 + 6
    assert "rand-m12-n1" in text and "leovewc" in text  # hyper-parameters and sources of the published members
    assert "Logits are multiplied by 1.25." in text and "0.0139" in text  # the weights of the learned soup are shown
    for sentence in sentences(published_results):
        assert html.escape(sentence, quote=True) in text
    for path in paths[1:]:
        image = imread(path)
        assert image.shape[1] > 700 and image[..., :3].std() > 0.05


def test_the_same_results_give_the_same_bytes_again(published_results, written, tmp_path):
    state.write(tmp_path / "results.json", published_results)
    for old, new in zip(written[1], report_again(tmp_path), strict=True):
        with open(old, "rb") as one:
            assert one.read() == new.read_bytes()


def test_texts_are_escaped(published_results):
    evil = '<script>alert("1")</script>'
    results = small(published_results) | {"experiment": evil, "notes": [evil], "device": evil}
    text = page(results, [])
    assert "<script>alert" not in text and text.count("<script>") == 1


def test_stale_figures_go(published_results, tmp_path):
    (tmp_path / "figures").mkdir()
    for name in ("imagenet", "mine"):
        (tmp_path / "figures" / f"{name}.png").write_bytes(b"old")
    write_imagenet_report(small(published_results), tmp_path)
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {"wise_ft.png", "mine.png"}


def test_members_and_soups_are_drawn_at_their_places_and_the_published_ones_hollow(published_results):
    results = copy.deepcopy(published_results)
    named(results, "greedy soup")["accuracy"]["imagenet"] = 0.82
    with style.look():
        axes = draw.scatter(results).axes[0]
    places = [tuple(np.round(point, 3)) for found in axes.collections for point in found.get_offsets()]
    assert (82.0, 50.863) in places  # ours
    assert (81.026, 50.863) in places  # published
    assert len(places) == 2 * 72 + 2 * 6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r | {"schema": "soups.results/1"}, "schema 'soups.results/1', not 'soups.imagenet/1'"),
        (lambda r: {k: v for k, v in r.items() if k not in ("sets", "notes")}, "missing: sets, notes"),
        (lambda r: r | {"rows": [{**r["rows"][0], "accuracy": {}}]}, "rows\\[0\\].accuracy.held_out"),
    ],
)
def test_other_results_are_refused(published_results, change, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        write_imagenet_report(change(published_results), tmp_path)
    assert list(tmp_path.iterdir()) == []
