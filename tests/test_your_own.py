"""Run docs/your_own.md as a reader would, block by block in an empty folder."""

import pathlib
import re

import jax
import numpy as np
import pages
import pytest

from soups import Pool
from soups.report import figures, load_results
from soups.studies.finetune_and_soup import FIELDS

PAGE = pathlib.Path(__file__).parents[1] / "docs" / "your_own.md"
SECTIONS = pages.sections(PAGE)


@pytest.fixture
def follow(tmp_path, monkeypatch, quick_start):
    """Return a function that runs a section of the page in an empty folder, and gives the names of its Python."""
    monkeypatch.chdir(tmp_path)
    # all are drawn where a command runs, and in the tests of `cook`
    monkeypatch.setattr(figures, "PLANS", dict(list(figures.PLANS.items())[:1]))
    environment = pages.environment(tmp_path, quick_start)

    def run(title):
        names = {"__name__": "reader"}
        with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):  # as for users
            return names | {"printed": pages.follow(SECTIONS[title], title, names, environment)}

    return run


def accuracy(results):
    return {row["name"]: row["metrics"]["test"]["accuracy"] for row in results["rows"]}


def test_a_folder_of_images(follow):
    printed = follow("A folder of images")["printed"]
    assert "greedy soup" in printed and "runs/my_config/report.html" in printed
    found = accuracy(load_results("runs/my_config"))
    assert found["greedy soup"] > 0.7 and {"start weights", "ensemble"} <= found.keys()
    assert len(Pool("runs/my_config/pool")) == 4


def test_the_table_of_a_config_has_every_section_of_the_study():
    rows = re.findall(r"^\| `(\w+)` \| .* \| (.*) \|$", SECTIONS["A folder of images"], re.M)
    listed = {section: set(re.findall(r"`(\w+)`", fields)) for section, fields in rows}
    known = {section: set(fields.replace("?", "").split()) for section, fields in FIELDS.items() if section}
    known = {section.removesuffix("?"): fields for section, fields in known.items()}
    ranges = {"learning_rate", "weight_decay", "label_smoothing", "mixup", "augment_operations", "augment_magnitude"}
    assert listed == known | {"sweep": known["sweep"] - ranges}  # which it calls ranges of hyper-parameters


def test_arrays(follow):
    names = follow("Arrays")
    found = accuracy(names["results"])
    assert found["greedy soup"] > 0.8 and found["base"] < found["best member"] and "ties, density = 0.3" in found
    assert pathlib.Path("digits/report.html").exists()
    images, labels = names["split"]("test")
    logits = np.asarray(names["apply_fn"](names["weights"], images.astype(np.float32) / 255))
    assert (logits.argmax(1) == labels).mean() == pytest.approx(found["greedy soup"])


def test_text(follow):
    found = accuracy(follow("Text")["results"])
    assert found["greedy soup"] > 0.9
    assert pathlib.Path("reviews/report.html").exists()


def test_numbers(follow):
    found = {row["name"]: row["metrics"]["test"] for row in follow("Numbers")["results"]["rows"]}
    assert found["greedy soup"]["r2"] > 0.2 and found["greedy soup"]["mse"] < found["worst member"]["mse"]
    assert "learned soup" in found and load_results("patients")["metric"] == "mse"


def test_every_section_is_followed():
    assert list(SECTIONS) == ["A folder of images", "Arrays", "Text", "Numbers", "And beyond"]
    assert not pages.BLOCK.search(SECTIONS["And beyond"])
