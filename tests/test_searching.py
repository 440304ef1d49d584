"""Follow docs/searching.md as a reader would, section after section in one empty folder."""

import json
import pathlib

import numpy as np
import pages

from soups import Pool
from soups.formats import open_checkpoint

PAGE = pathlib.Path(__file__).parents[1] / "docs" / "searching.md"


def mse(path):
    data = np.load("held_out.npz")
    return float(np.square(data["x"] @ open_checkpoint(path).read("w") - data["y"]).mean())


def chosen(out):
    return json.loads(pathlib.Path(out, "merge.json").read_text())["chosen"]


def test_the_page_is_followed(tmp_path, monkeypatch, quick_start):
    monkeypatch.chdir(tmp_path)
    shell, names = pages.environment(tmp_path, quick_start), {"__name__": "reader"}
    sections = pages.sections(PAGE)
    printed = {title: pages.follow(text, title, names, shell) for title, text in sections.items()}
    assert list(printed) == [
        *("Models and an evaluation", "Score the members", "Make a greedy soup", "Search settings"),
        *("Which members", "What is written"),
    ]
    members = {f"runs/{run}/model": mse(f"runs/{run}/model") for run in range(5)}
    ranking = json.loads(pathlib.Path("ranking/rank.json").read_text())["steps"]
    assert [step["member"] for step in ranking] == sorted(members, key=members.get)
    assert "5 scores are in ranking already" in printed["Make a greedy soup"]
    assert chosen("soup")["score"] == mse("soup") < min(members.values())
    assert "soup is what its recipe and its models give, bit for bit" in printed["Make a greedy soup"]
    assert "12 candidates, the best first" in printed["Search settings"]
    assert "24 candidates, the best first" in printed["Search settings"]
    assert chosen("best")["score"] == mse("best") < mse("base.safetensors") and len(chosen("best")["steps"]) == 24
    assert pathlib.Path("best.search/search.png").exists()
    record = Pool("pool").record("chosen")["metadata"]["merge"]
    assert {step["member"] for step in record["chosen"]["steps"]} == {"pool:b0", "pool:b1"}


def test_the_files_and_operators_of_the_page_are_those_that_there_are():
    from soups.merging.members import _OPERATORS
    from soups.merging.trials import JOURNAL

    text = PAGE.read_text()
    assert f"`{JOURNAL}`" in text and "`< <= > >= = !=`" in text
    assert {"<", "<=", ">", ">=", "=", "!="} == _OPERATORS.keys() - {"=="}
