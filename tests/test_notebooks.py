"""Every notebook of docs/notebooks runs, at a small size, and its saved outputs are those of its code."""

import json
import os
import re
import sys

import jax
import pytest

NOTEBOOKS = ("own_model", "merge_and_search", "real_images")
# a path of some machine, or what a terminal would show of a problem
UNWANTED = re.compile(r"(?<![\w.:/])/(?:home|root|tmp|usr|var|work|Users)\b|\w*Warning\b|Traceback|\x1b")


@pytest.fixture
def notebooks(script):
    """Return the script that writes the outputs."""
    return script("notebooks")


@pytest.fixture
def load(notebooks):
    """Return a function from the name of a notebook to its content."""
    return lambda name: json.loads((notebooks.FOLDER / f"{name}.ipynb").read_text(encoding="utf-8"))


def test_every_notebook_is_tested(notebooks):
    assert {path.stem for path in notebooks.FOLDER.glob("*.ipynb")} == set(NOTEBOOKS)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_every_cell_runs_at_a_small_size(load, notebooks, name, tmp_path, digits_dir, quick_start, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for variable in ("PYTHONPATH", "XLA_FLAGS"):  # of the commands that a notebook runs
        monkeypatch.setenv(variable, quick_start.get(variable, ""))
    monkeypatch.setenv("SOUPS_NOTEBOOKS", "small")
    monkeypatch.setenv("TFDS_DATA_DIR", str(digits_dir))
    monkeypatch.setattr("soups.report.page.draw_all", lambda results: [])  # those that are shown are drawn
    import matplotlib
    import matplotlib.pyplot as plt

    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    names = {"__name__": "notebook"}
    try:
        with matplotlib.rc_context({"backend": "agg"}), as_for_users():
            for number, code in enumerate(notebooks.code_cells(load(name)), 1):
                exec(compile(code, f"{name}.ipynb, code cell {number}", "exec"), names)
    finally:
        plt.close("all")
    assert names["SMALL"] is True and os.listdir(tmp_path)


def as_for_users():
    """Return the context in which JAX promotes as it does for users."""
    import contextlib

    stack = contextlib.ExitStack()
    stack.enter_context(jax.numpy_rank_promotion("allow"))
    stack.enter_context(jax.numpy_dtype_promotion("standard"))
    return stack


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_saved_outputs_are_those_of_the_code(load, notebooks, name):
    notebook = load(name)
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    how = f"run python scripts/notebooks.py docs/notebooks/{name}.ipynb"
    assert notebook["metadata"].get("code_sha256") == notebooks.digest(notebook), how
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1)), how
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert {output["output_type"] for output in outputs} <= {"stream", "display_data", "execute_result"}
    assert {output["name"] for output in outputs if output["output_type"] == "stream"} == {"stdout"}
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 2
    text = "".join("".join(output.get("text", output.get("data", {}).get("text/plain", ""))) for output in outputs)
    assert not UNWANTED.search(text), UNWANTED.search(text)


def test_other_code_has_another_digest(load, notebooks):
    notebook = load(NOTEBOOKS[0])
    before = notebooks.digest(notebook)
    next(cell for cell in notebook["cells"] if cell["cell_type"] == "markdown")["source"] = ["text may change"]
    assert notebooks.digest(notebook) == before
    next(cell for cell in notebook["cells"] if cell["cell_type"] == "code")["source"].append("\n")
    assert notebooks.digest(notebook) != before
