"""Run the README's Python as it stands."""

import pathlib
import re

import jax
import pytest

README = (pathlib.Path(__file__).parents[1] / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_there_are_two_examples():
    assert len(BLOCKS) == 2


@pytest.mark.parametrize("code", BLOCKS, ids=["library", "own model"])
def test_example_runs(code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):  # as on a user's machine
        exec(compile(code, "README.md", "exec"), names)
    if "streamed" in names:
        assert (names["streamed"]["w"] == names["soup"]["w"]).all()
    else:
        assert 0.0 <= names["best"].score <= 1.0
