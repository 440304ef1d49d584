"""Records say where models lie as it is seen from the output, and find them again."""

import json
import shutil

import numpy as np
import pytest

from soups.cli import main
from soups.formats import write_safetensors
from soups.merging.record import _located, _seen_from, read_record


@pytest.mark.parametrize(
    ("reference", "seen"),
    [
        ("{top}/a", "../a"),
        ("{top}/deep/er/a.pt@ema/params", "../deep/er/a.pt@ema/params"),
        ("{top}/pool:a b", "../pool:a b"),
        ("{top}/a+{top}/lora", "../a+../lora"),
        ("{top}/out/inner", "./inner"),
        ("org/name@0123456789abcdef", "org/name@0123456789abcdef"),
        ("/elsewhere/a", "/elsewhere/a"),
    ],
)
def test_a_place_is_seen_from_the_output_and_found_again(tmp_path, reference, seen):
    reference = reference.format(top=tmp_path)
    assert _seen_from(tmp_path / "out", reference) == seen
    assert _located(tmp_path / "out", seen, "") == reference


def test_what_moves_together_is_found_and_what_a_recipe_names(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in "ab":
        write_safetensors(name, {"w": np.float32([ord(name)])})
    assert main(["merge", "--method", "uniform", "--members", "a", "b", "--out", "runs/out"]) == 0
    text = (tmp_path / "runs" / "out" / "merge.json").read_text()
    assert [entry["path"] for entry in json.loads(text)["inputs"].values()] == ["../../a", "../../b"]
    assert str(tmp_path) not in text
    paths = [entry["path"] for entry in read_record("runs/out")["inputs"].values()]
    assert paths == [f"{tmp_path}/a", f"{tmp_path}/b"]
    shutil.copytree("runs", "all/runs")
    for name in "ab":
        shutil.copy(name, "all")
    shutil.move("runs/out", "out")
    assert main(["merge", "--verify", "out"]) == 0  # a and b are there by their names in the recipe
    monkeypatch.chdir(tmp_path / "all" / "runs")
    assert main(["merge", "--verify", "out"]) == 0
    (tmp_path / "all" / "a").unlink()
    capsys.readouterr()
    assert main(["merge", "--verify", "out"]) == 2 and f"{tmp_path}/all/a" in capsys.readouterr().err


@pytest.mark.parametrize("out", ["nosuch", "nowhere/nosuch", "nosuch:member"])
def test_nothing_at_a_path_is_called_so(tmp_path, monkeypatch, out):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=f"there is nothing at {out}"):
        read_record(out)
