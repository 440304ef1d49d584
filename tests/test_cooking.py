"""Follow docs/cooking.md as a reader would, block by block in an empty folder."""

import inspect
import pathlib
import re
import sys

import jax
import numpy as np
import pages
import pytest

import soups
from soups.cli.cook import parser
from soups.formats import open_checkpoint
from soups.report import figures, load_results
from soups.studies.cook import _OWN

PAGE = pathlib.Path(__file__).parents[1] / "docs" / "cooking.md"
SECTIONS = pages.sections(PAGE)


def table(title):
    """Return the rows of the table in a section, without its head: lists of cells."""
    rows = [line for line in SECTIONS[title].splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in row.strip().strip("|").split("|")] for row in rows[1:]]


def accuracies(directory):
    return {row["name"]: row["metrics"]["test"]["accuracy"] for row in load_results(directory)["rows"]}


@pytest.fixture
def followed(tmp_path, monkeypatch, quick_start):
    """Follow the page, and give what was printed in each section and the names of its Python."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(figures, "PLANS", dict(list(figures.PLANS.items())[:1]))  # all are drawn by the command
    shell, names = pages.environment(tmp_path, quick_start | {"COLUMNS": "120"}), {"__name__": "reader"}
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):  # as for users
        yield {title: pages.follow(text, title, names, shell) for title, text in SECTIONS.items()}, names
    for module in ("my_model", "my_data"):
        sys.modules.pop(module)


def test_the_page_is_followed(followed):
    printed, names = followed
    test, pool = sys.modules["my_data"].test, soups.Pool("pool")

    def accuracy(*members):
        kernel = np.mean([pool[name]["kernel"] for name in members], axis=0)
        return np.mean((test[0] @ kernel).argmax(axis=1) == test[1])

    found, again = accuracies("cooked"), accuracies("cooked_too")
    assert {"geometric_median", "ties, density = 0.3"} == again.keys() - found.keys()
    for rows in (found, again):
        expected = {"uniform soup": accuracy(*"abcde"), "base": accuracy("base"), "worst member": accuracy("e")}
        assert {name: rows[name] for name in expected} == pytest.approx(expected, abs=2e-3)  # of close calls
        assert rows["greedy soup"] > rows["best member"] > rows["uniform soup"]
    shown = re.search(r"```text\n(.*?)```", SECTIONS["On the command line"], re.DOTALL)[1]
    heads = [re.split(r"\s{2,}", line.strip())[0] for line in shown.splitlines()[2:]]
    assert len(heads) == 10 and [line.strip() for line in shown.splitlines()[:1]] == [
        line.strip() for line in printed["On the command line"].splitlines() if "dark gain" in line
    ]
    assert heads == re.findall(rf"^ ({'|'.join(map(re.escape, heads))})  ", printed["On the command line"], re.M)
    np.testing.assert_array_equal(open_checkpoint("greedy.safetensors").read("kernel"), names["weights"]["kernel"])
    for place, _ in table("What comes out"):
        assert all(pathlib.Path("cooked", name).exists() for name in re.findall(r"`(\S+?)`", place)), place


def test_the_table_of_what_goes_in_has_every_argument_and_option():
    given = [re.findall(r"`(.*?)`", " ".join(cells[:2])) for cells in table("What goes in")]
    words = {word for cells in given for word in cells}
    options = {option for action in parser("soups cook")._actions for option in action.option_strings}
    common = {"-h", "--help", "-q", "--quiet", "-v", "--verbose"}
    assert words == inspect.signature(soups.cook).parameters.keys() | {"POOL"} | (options - common)


def test_the_table_of_what_is_cooked_has_every_recipe_of_its_own():
    words = {word for cells in table("What is cooked") for word in re.findall(r"`(.*?)`", cells[0])}
    assert words == {*_OWN, "ties:density=0.3:scale=1", "my_model:half"}
