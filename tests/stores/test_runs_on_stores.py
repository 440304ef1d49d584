"""Test runs whose workdirs lie on object stores: they go on after a kill, with the results of a run in a folder."""

import os
import pathlib
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest

import soups
from soups.cli import main, run
from soups.formats import open_checkpoint, write_safetensors
from soups.journal import Journal, records
from soups.report import figures, load_results
from soups.stores import store_path
from soups.studies.study import held

OWN = """
import numpy as np
from soups.studies.study import Scene, Study

rng = np.random.default_rng(0)
kernel = rng.normal(size=(10, 3))

def apply(params, inputs):
    return inputs @ params["kernel"]

def split(number):
    inputs = rng.normal(size=(number, 10)).astype(np.float32)
    return inputs, (inputs @ kernel).argmax(axis=1)

held_out, test = split(50), split(60)

def members(scene):
    scene.kept(scene.workdir.pool("pool"), "a", lambda: {"kernel": kernel.astype(np.float32)})

def cook(scene):
    members(scene)
    row = {"seed": 0, "name": "a", "kind": "member", "group": "main", "metrics": {"test": {"accuracy": 1.0}}}
    split = {"role": "test", "examples": 60, "title": "test"}
    return {"splits": {"test": split}, "rows": [row | {"ingredients": {"a": 1.0}}], "members": []}

def scenes(config, workdir):
    return [Scene(config=config, workdir=workdir, seed=0)]

run = Study(check=lambda config: None, scenes=scenes, cook=cook, folders=["pool"], members=members)
"""
CONFIG = """
def get_config():
    return {"study": "own:run", "name": "mine", "size": 1}
"""
WORDS = ("--apply", "own:apply", "--held-out", "own:held_out", "--test", "own:test", "--recipes", "uniform,greedy,dare")
CHILD = "import sys; from soups.cli import main; sys.exit(main(sys.argv[1:]))"


@pytest.fixture
def room(tmp_path, monkeypatch):
    """Work in a folder with a network, data and a study of one's own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(figures, "PLANS", dict(list(figures.PLANS.items())[:1]))
    (tmp_path / "own.py").write_text(OWN)
    (tmp_path / "mine.py").write_text(CONFIG)
    return tmp_path


def comparable(results):
    """Return what must be the same of each run: all but the times."""
    return {name: part for name, part in results.items() if name not in ("created", "timings")}


def test_what_was_killed_goes_on_and_is_what_a_folder_gets(room, folder, proxy, quick_start, capsys):
    rng, pool, workdir, process = np.random.default_rng(1), f"{folder}/pool", f"{folder}/run", None
    for name in "abc":
        weights = {"kernel": rng.normal(size=(10, 3)).astype(np.float32)}
        soups.Pool(pool).add(name, weights)
        soups.Pool("pool").add(name, weights)

    def kill(method, path):
        if process and method == "PUT" and "/run/soups/records/" in path:
            process.kill()
            return True
        return False

    words, environ = ["cook", *WORDS, "--base", "a"], {**quick_start, **os.environ}
    proxy.fails = kill
    process = subprocess.Popen([sys.executable, "-c", CHILD, *words, pool, "--workdir", workdir], env=environ)
    assert process.wait() == -signal.SIGKILL
    proxy.mend()
    place = store_path(workdir)
    made = {path: path.stat().version for path in (place / "logits").sizes()}
    assert made and not (place / "results.json").exists()
    with jax.numpy_rank_promotion("allow"):  # as on a user's machine
        assert main([*words, pool, "--workdir", workdir]) == 0
        said = capsys.readouterr().out
        assert main([*words, "pool", "--workdir", "run"]) == 0
    assert f"Report: {workdir}/report.html" in said and f"All in {workdir}: results.json, report.html" in said
    assert all(path.stat().version == version for path, version in made.items())  # which were not made again
    assert comparable(load_results(workdir)) == comparable(load_results("run"))
    there = {path.relative_to(place) for path in place.sizes()}
    here = {path.relative_to(room / "run").as_posix() for path in (room / "run").rglob("*") if path.is_file()}
    parts = ("stages", "journals", "logits", "figures", "report.html", "table.csv", "results.json")
    assert {name for name in there if name.startswith(parts)} == {name for name in here if name.startswith(parts)}
    assert not [name for name in there if ".lock" in name]
    assert main(["report", "--quiet", workdir]) == 0 and f"{workdir}/report.html" in capsys.readouterr().out


def test_a_study_runs_is_joined_and_held(room, folder, capsys, monkeypatch):
    monkeypatch.setattr(run, "preferred", lambda environ: {})  # JAX has begun
    words, workdir = ["run", "--config", "mine.py", "--workdir", f"{folder}/run"], f"{folder}/run"
    assert main([*words, "--join"]) == 2 and "has no run to join" in capsys.readouterr().err
    with held(workdir):
        assert main(words) == 2
        assert f"another run is writing to {workdir}: process" in capsys.readouterr().err
    assert not store_path(workdir).exists()
    assert main(words) == 0 and main([*words, "--join"]) == 0
    assert f"all members are in {workdir}" in capsys.readouterr().out
    assert soups.Pool(f"{workdir}/pool").names == ["seed0_a"]
    assert main([*words, "--config.size=2"]) == 2
    assert f"the workdir {workdir} was made with another config:\n  size: 1 there, 2 now" in capsys.readouterr().err
    assert main(["run", "--config", "mine.py", "--workdir", f"{workdir}/pool"]) == 2
    assert f"the workdir {workdir}/pool is a pool: choose another" in capsys.readouterr().err
    assert main(["run", "--config", "mine.py", "--workdir", f"{workdir}/results.json/a"]) == 0  # a name like any other


@pytest.fixture
def models(room):
    """Return folders of models and an evaluation, which notes its calls."""
    (room / "mine.py").write_text(
        "from soups.formats import open_checkpoint\n"
        "def distance(path):\n"
        "    with open('calls', 'a') as file:\n"
        "        file.write('one\\n')\n"
        "    return float(((open_checkpoint(path).read('w') - 1.6) ** 2).sum())\n"
    )
    for number in range(3):
        write_safetensors(f"m{number}.safetensors", {"w": np.arange(4, dtype=np.float32) * number})
    return [f"m{number}.safetensors" for number in range(3)]


def calls():
    return pathlib.Path("calls").read_text().count("one")


def test_choices_go_on_and_are_those_of_a_folder(models, folder, capsys):
    words = ["--members", *models, "--eval", "mine.py:distance", "--lower"]
    greedy = ["greedy", *words, "--out"]
    assert main([*greedy, f"{folder}/soup.safetensors"]) == 0 and main([*greedy, "soup.safetensors"]) == 0
    once = calls()
    capsys.readouterr()
    assert main([*greedy, f"{folder}/soup.safetensors"]) == 0 and calls() == once
    assert f"scores are in {folder}/soup.safetensors.greedy already" in capsys.readouterr().out
    here, there = open_checkpoint("soup.safetensors"), open_checkpoint(f"{folder}/soup.safetensors")
    assert here.read("w").tobytes() == there.read("w").tobytes()
    work = store_path(f"{folder}/soup.safetensors.greedy")
    assert {path.name for path in work.iterdir()} == {"scores.jsonl", "greedy.csv", "greedy.json"}
    search = ["search", "--method", "linear", *words, "--range-each", "weight=0.1:1", "--by", "random", "--out"]
    for budget in ("2", "12"):  # of which a later one is better, and takes the place of the first
        for out in (f"{folder}/best.safetensors", "best.safetensors"):
            assert main([*search, out, "--budget", budget]) == 0
    assert (store_path(folder) / "best.safetensors.search/search.png").is_file()
    here, there = open_checkpoint("best.safetensors"), open_checkpoint(f"{folder}/best.safetensors")
    assert here.read("w").tobytes() == there.read("w").tobytes()
    assert main(["merge", "--quiet", "--verify", f"{folder}/best.safetensors"]) == 0
    assert main([*greedy, "other.safetensors", "--work", f"{folder}/work", "--keep"]) == 2
    assert "--keep: candidates are evaluated on this machine" in capsys.readouterr().err
    assert main([*greedy, f"{folder}/a/out.safetensors", "--work", f"{folder}/a"]) == 2
    assert "would lie one inside the other" in capsys.readouterr().err


def test_journals_go_on(either):
    path = store_path(either) / "decisions.jsonl"
    journal = Journal(path, {"recipe": "greedy"})
    journal.write({"kind": "score", "member": "a", "score": 1.0})
    journal.write({"kind": "score", "member": "b", "score": 2.0})
    again = Journal(str(path), {"recipe": "greedy"})
    assert again.replay("score", "a")["score"] == 1.0 and again.replay("score", "b")["score"] == 2.0
    again.keep({"kind": "best"})
    assert records(path) == [{"recipe": "greedy"}, {"kind": "best"}]
    with pytest.raises(ValueError, match=r"decisions\.jsonl was written by a different call"):
        Journal(path, {"recipe": "learned"})
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(ValueError, match=r"line 2 of journal .*decisions\.jsonl"):
        Journal(path, {"recipe": "greedy"})
