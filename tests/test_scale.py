"""See that the page about large members has the numbers of its script, whose formulas are right on a small case."""

import pathlib

import pytest

from soups.plugins import importable, load_plugin

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture(scope="module")
def scale():
    """Return the script as a module."""
    place = ROOT / "scripts" / "benchmarks"
    with importable(place):
        return load_plugin(place / "scale.py")


def test_formulas_are_right_on_a_small_case(scale):
    for name, (says, counted) in scale.small_cases().items():
        # what the compiler counts depends on its version; arrays and calls do not
        assert counted == pytest.approx(says, rel=0.3 if name.startswith("FLOPs") else 0.005), name


def test_the_page_has_the_numbers_of_the_script(scale):
    page = (ROOT / "docs" / "scale.md").read_text()
    assert scale.tables()[1] in page
