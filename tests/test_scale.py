"""See that the page about large members has the numbers of its script, whose formulas are right on a small case."""

import importlib.util
import pathlib
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture(scope="module")
def scale():
    """Return the script as a module."""
    place = ROOT / "scripts" / "benchmarks"
    sys.path.insert(0, str(place))
    try:
        spec = importlib.util.spec_from_file_location("scale", place / "scale.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(place))
    return module


def test_formulas_are_right_on_a_small_case(scale):
    for name, (says, counted) in scale.small_cases().items():
        # what the compiler counts depends on its version; arrays and calls do not
        assert counted == pytest.approx(says, rel=0.3 if name.startswith("FLOPs") else 0.005), name


def test_the_page_has_the_numbers_of_the_script(scale):
    page = (ROOT / "docs" / "scale.md").read_text()
    assert scale.tables()[1] in page
