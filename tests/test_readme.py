"""Run the Python of the README and of the documentation as it stands."""

import pathlib
import re

import jax
import numpy as np
import pytest

import soups
from soups.recipes import METHODS
from soups.report import figures

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def declared():
    """Forget the methods that pages declare."""
    before = dict(METHODS)
    yield
    for name in METHODS.keys() - before:
        del METHODS[name]


def blocks(page):
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)


def run(code, names):
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):  # as on a user's machine
        exec(compile(code, "example", "exec"), names)
    return names


def test_the_readme_is_one_page():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 128


def test_eight_lines(capsys):
    names = run(blocks("README.md")[0], {})
    assert "average" in capsys.readouterr().out and names["best"].ingredients
    assert not np.array_equal(names["merged"]["w"], names["soup"]["w"])


def test_own_model_in_ten_lines(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(figures, "PLANS", dict(list(figures.PLANS.items())[:1]))  # tests of `cook` draw all
    assert len(names := run(blocks("README.md")[1], {})) and len(names["pool"]) == 4
    assert pathlib.Path("runs/mine/report.html").exists()
    assert "greedy_soup" in soups.Pool("runs/mine/soups")


def test_page_on_the_library(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    tour, merging, method, model = (run(code, {"__name__": "example"}) for code in blocks("docs/library.md"))
    np.testing.assert_array_equal(tour["streamed"]["w"], tour["soup"]["w"])
    out = capsys.readouterr().out
    assert "average" in out and "[ 0.03, -0.01,  0.  ]" in out and method["base"]["w"].shape == (3,)
    assert not np.array_equal(merging["merged"]["w"], merging["own"]["w"])
    assert 0.0 <= model["best"].score <= 1.0


def test_page_on_evaluating(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = {}
    for code in blocks("docs/evaluating.md"):
        run(code, names)
    assert "ece_equal_width" in capsys.readouterr().out
    np.testing.assert_allclose(names["logits"], names["inputs"] @ names["networks"][0]["w"], rtol=1e-5, atol=1e-5)
    first, again = (jax.tree.leaves(names[name]["batch_stats"]) for name in ("params", "again"))
    for one, other in zip(first, again, strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-5, atol=1e-5)


def test_page_on_training(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    for code in blocks("docs/training.md"):
        run(code, names)
    assert len(names["pool"]) == 4 and names["soup"]["w"].shape == (4,)
    assert names["made"]["losses"].shape == (20,) and np.abs(names["made"]["probe"]["head"]["kernel"]).max() > 0.1


def test_page_on_merging(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    for code in blocks("docs/merging.md"):
        run(code, names)
    assert names


def test_page_on_adding_a_method():
    names = {}
    for code in blocks("docs/adding_a_method.md"):
        run(code, names)
    assert METHODS["median"] is names["median"].method


def test_the_table_of_methods_is_that_of_the_declarations(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "scripts" / "benchmarks")
    import method_tables

    page = method_tables.PAGE.read_text()
    assert page == method_tables.page(), "run python scripts/benchmarks/method_tables.py"
    assert page != method_tables.put(page, "methods", [["function"]])
