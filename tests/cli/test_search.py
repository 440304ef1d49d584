"""Test the commands that choose by a user's own evaluation: what they print and write, and that they go on."""

import csv
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import yaml
from processes import await_end

import soups
from soups.cli import main
from soups.formats import open_checkpoint, write_safetensors

RNG = np.random.default_rng(7)
BASE, STEPS = RNG.normal(size=24).astype(np.float32), RNG.normal(size=(3, 24)).astype(np.float32)
TARGET = BASE + np.float32(0.6) * STEPS[0] + np.float32(0.4) * STEPS[1]
MINE = """
import sys
import numpy as np
from soups.formats import open_checkpoint

def distance(path):
    return float(np.square(open_checkpoint(path).read("w") - open_checkpoint("target").read("w")).sum())

if __name__ == "__main__":
    print("warming up 3 times")
    print("distance:", distance(sys.argv[1]), "after 2s")
"""
HELD = """
import os, sys, time
open("calls", "a").write("another\\n")
while os.path.exists("hold") and open("calls").read().count("another") == 3:
    time.sleep(0.01)
with open(sys.argv[1] + "/model.safetensors", "rb") as file:
    print(file.read()[-1])
"""
MERGE = ["--method", "task_arithmetic", "--base", "base", "--members", "m0", "m1", "m2"]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Work in a folder with a base, members, a pool of them, and evaluations."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("PYTHONPATH", str(pathlib.Path(soups.__file__).parents[1]))
    for name, weights in [
        ("base", BASE),
        ("target", TARGET),
        *((f"m{i}", BASE + step) for i, step in enumerate(STEPS)),
    ]:
        write_safetensors(name, {"w": weights})
    (tmp_path / "mine.py").write_text(MINE)
    (tmp_path / "held.py").write_text(HELD)
    yield tmp_path
    os.environ.pop("JAX_PLATFORMS", None)


@pytest.fixture
def run(place, capsys):
    """Return a function that runs a command and returns (exit code, output, errors)."""

    def call(*words):
        code = main([str(word) for word in words])
        return code, *capsys.readouterr()

    return call


def test_a_search_by_a_command(run, place):
    words = [
        "search",
        *MERGE,
        "--range",
        "scale=0:2",
        "--metric",
        "distance",
        "--lower",
        "--budget",
        3,
        "--out",
        "best",
    ]
    code, printed, err = run(*words, "--eval", f"{sys.executable} mine.py {{model}}")
    assert (code, err) == (0, "")
    lines = printed.splitlines()
    assert [line.partition(": scale ")[0] for line in lines[:3]] == ["0", "1", "2"] and " s, the best so far" in printed
    assert "3 candidates, the best first" in lines and lines[-1].startswith("wrote best, with the score ")
    result = json.loads(pathlib.Path("best.search/search.json").read_text())
    best = open_checkpoint("best").read("w").astype(np.float64)
    assert result["score"] == pytest.approx(np.square(best - TARGET).sum(), rel=1e-5)
    assert result["score"] == min(step["score"] for step in result["steps"]) and result["metric"] == "distance"
    rows = list(csv.DictReader(pathlib.Path("best.search/search.csv").read_text().splitlines()))
    assert [float(row["score"]) for row in rows] == sorted(step["score"] for step in result["steps"])
    assert pathlib.Path("best.search/search.png").read_bytes()[:4] == b"\x89PNG"
    assert "</svg>" in pathlib.Path("best.search/search.svg").read_text()
    assert json.loads(pathlib.Path("best/merge.json").read_text())["chosen"] == {
        name: value for name, value in result.items() if name != "best"
    }
    assert yaml.safe_load(pathlib.Path("best/recipe.yml").read_text()) == result["best"]
    assert run("merge", "--verify", "best")[0] == 0
    assert not pathlib.Path("best.search/candidates").exists()
    assert "warming up" in pathlib.Path("best.search/printed/2.out").read_text()
    code, printed, _ = run(*words, "--eval", f"{sys.executable} mine.py {{model}}")
    assert code == 0 and printed.startswith("3 scores are in best.search already\n3 candidates")
    assert "already there: best" in printed


def test_a_search_of_a_recipe_file_by_a_function(run, place):
    models = ["m0", {"model": "m1", "parameters": {"weight": 0.5}}, "base"]
    recipe = {
        "merge_method": "ties",
        "models": models,
        "base_model": "base",
        "parameters": {"density": 0.5, "weight": 1},
    }
    pathlib.Path("recipe.yml").write_text(yaml.safe_dump(recipe))
    words = ["search", "recipe.yml", "out", "--range-each", "weight=0.1:2:log", "--range", "density=0.2,0.6,1.0"]
    words += [
        "normalize=true,false",
        "--by",
        "random",
        "--budget",
        4,
        "--lower",
        "--eval",
        "mine.py:distance",
        "--keep",
    ]
    code, printed, err = run(*words)
    assert (code, err) == (0, ""), err
    assert "weight of m0" in printed and "weight of m1" in printed and "weight of base" not in printed
    best = yaml.safe_load(pathlib.Path("out/mergekit_config.yml").read_text())
    assert {"weight"} == best["models"][0]["parameters"].keys() and best["models"][2] == {"model": "base"}
    assert best["parameters"]["density"] in (0.2, 0.6, 1.0) and isinstance(best["parameters"]["normalize"], bool)
    assert len(list(pathlib.Path("out.search/candidates").iterdir())) == 4
    assert run("merge", "--verify", "out")[0] == 0


def test_a_grid_and_a_seed(run, place):
    words = ["search", *MERGE, "--lower", "--eval", "mine.py:distance", "--out", "out"]
    code, printed, _ = run(*words, "--range", "scale=0.2:1:5", "--by", "grid")
    assert code == 0 and "5 candidates" in printed and "\n1            0.4" in printed
    code, printed, _ = run(*words[:-1], "random", "--range", "scale=0:2", "--by", "random", "--budget", 2, "--seed", 5)
    assert code == 0 and f"0: scale {2 * np.random.default_rng([5, 0]).random():.4g}: " in printed


@pytest.mark.parametrize(("method", "name", "said"), [("linear", "weight", True), ("task_arithmetic", "scale", False)])
def test_one_range_for_all_members_points_to_one_for_each(run, place, method, name, said):
    base = ["--base", "base"] if method == "task_arithmetic" else []
    words = ["--method", method, *base, "--members", "m0", "m1", "--range", f"{name}=0.5:1", "--budget", "1"]
    _, out, _ = run("search", *words, "--out", "out", *GOOD)
    told = "--range weight=0.5:1 tries one value for all members; --range-each weight=0.5:1 tries one for each\n"
    assert out.startswith(told) == said and ("--range-each" in out) == said


def test_greedy_and_rank_of_a_pool(run, place):
    pool = soups.Pool("pool")
    for index, step in enumerate(STEPS):
        pool.add(f"m{index}", {"w": BASE + step}, {"config": {"learning_rate": 10.0**-index}})
    pool.add("far", {"w": BASE + 9}, {"config": {"learning_rate": 1.0}})
    chosen = ["--members", "pool:m*", "pool", "--where", "learning_rate>0.01", "--lower", "--eval", "mine.py:distance"]
    code, printed, err = run("rank", *chosen)
    assert (code, err) == (0, "") and "left out, because learning_rate>0.01 does not hold: pool:m2" in printed
    ranking = json.loads(pathlib.Path("ranking/rank.json").read_text())["steps"]
    expected = {f"pool:m{i}": float(np.square(BASE + STEPS[i] - TARGET).sum()) for i in (0, 1)}
    assert [step["member"] for step in ranking] == [*sorted(expected, key=expected.get), "pool:far"]
    np.testing.assert_allclose([s["score"] for s in ranking[:2]], sorted(expected.values()), rtol=1e-5)
    code, printed, err = run("greedy", *chosen, "--out", "pool:soup", "--format", "pool", "--work", "ranking")
    assert (code, err) == (0, "") and "3 scores are in ranking already" in printed
    assert "2 of 3 members are averaged, in the order in which they were tried" in printed
    np.testing.assert_allclose(soups.Pool("pool")["soup"]["w"], BASE + STEPS[:2].mean(0), rtol=1e-6)
    assert soups.Pool("pool").record("soup")["metadata"]["merge"]["chosen"]["recipe"] == "greedy"
    assert run("merge", "--verify", "pool:soup")[0] == 0
    rows = list(csv.DictReader(pathlib.Path("ranking/greedy.csv").read_text().splitlines()))
    assert [row["taken"] for row in rows] == ["True", "True", "False"]
    # what is already in the folder of work is known to another output too
    code, printed, err = run("greedy", *chosen, "--out", "soup", "--work", "ranking", "--dtype", "float16")
    assert (code, err) == (0, "") and open_checkpoint("soup").read("w").dtype == np.float16


@pytest.mark.parametrize(
    "command",
    [
        ["search", *MERGE, "--range", "scale=0:2", "--budget", "5", "--out", "out"],
        ["greedy", "--members", "m0", "m1", "m2", "--out", "out"],
        ["rank", "--members", "m0", "m1", "m2", "base", "--work", "out.rank"],
    ],
    ids=lambda words: words[0],
)
def test_a_command_that_was_killed_goes_on(run, place, quick_start, command):
    words = [*command, "--eval", f"{sys.executable} held.py {{model}}"]
    pathlib.Path("hold").touch()
    (work,) = {"search": ["out.search"], "greedy": ["out.greedy"], "rank": ["out.rank"]}[command[0]]

    def calls():
        return pathlib.Path("calls").read_text().count("\n") if pathlib.Path("calls").exists() else 0

    process = subprocess.Popen([sys.executable, "-m", "soups", *words], env=quick_start, start_new_session=True)
    deadline = time.monotonic() + 60
    while calls() < 3:  # two scores are known, and the third is being made
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    pathlib.Path("hold").unlink()
    made = calls()
    journal = pathlib.Path(work, "scores.jsonl")
    assert journal.read_text().count("\n") == made
    with open(journal, "a") as file:  # as if the power had gone in the middle of a line
        file.write('{"checksum": "')
    code, printed, err = run(*words)
    assert (code, err) == (0, "") and f"{made - 1} scores are in {work} already" in printed
    again = calls()
    first = {path.name: path.read_bytes() for path in pathlib.Path(work).glob(f"{command[0]}.*")}
    assert run(*words)[0] == 0 and calls() == again
    assert first == {path.name: path.read_bytes() for path in pathlib.Path(work).glob(f"{command[0]}.*")}
    pathlib.Path(work).rename("before")  # the same without a kill
    if "out" in command:
        os.rename("out", "out_before")
    assert run(*words)[0] == 0 and calls() == again + (again - 1)
    last = {path.name: path.read_bytes() for path in pathlib.Path(work).glob(f"{command[0]}.*")}
    assert first == last
    if "out" in command:
        assert pathlib.Path("out/merge.json").read_bytes() == pathlib.Path("out_before/merge.json").read_bytes()


def test_a_signal_ends_it_and_what_it_started(place, quick_start):
    words = ["rank", "--members", "m0", "--eval", "sh -c 'echo $$ > pid; exec sleep 60' {model}"]
    process = subprocess.Popen(
        [sys.executable, "-m", "soups", *words], env=quick_start, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 60
    while not pathlib.Path("pid").exists() or not pathlib.Path("pid").read_text().endswith("\n"):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (130, "soups rank: stopped; the same command goes on where it was\n")
    await_end(int(pathlib.Path("pid").read_text()))


SCALE, GOOD = ["--range", "scale=0:1"], ["--eval", "mine.py:distance", "--lower"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([*GOOD], "nothing to search: give --range NAME=LOW:HIGH"),
        ([*SCALE], "say how models are evaluated: --eval 'python my_eval.py {model}', or --eval module:function"),
        ([*SCALE, "--eval", "python mine.py"], "stand: 'python mine.py {model}'"),
        ([*SCALE, "--eval", "python mine.py {Model}"], "stand: 'python mine.py {model}'"),
        ([*SCALE, "--eval", "mine.py"], "stand: 'python mine.py {model}', or 'mine.py:FUNCTION'"),
        ([*GOOD, "--range", "scael=0:1"], "unknown setting of task_arithmetic 'scael' (did you mean 'scale'?)"),
        ([*GOOD, "--range", "scale"], "--range scale: a range is NAME=LOW:HIGH, such as scale=0.1:0.9"),
        ([*GOOD, "--range", "scale="], "--range scale=: a range is NAME=LOW:HIGH"),
        ([*GOOD, "--range", "scale=1"], "--range scale=1: give several values, each once, or two ends, LOW:HIGH"),
        ([*GOOD, "--range", "scale=1,1"], "give several values, each once"),
        ([*GOOD, "--range", "scale=1:0"], "--range scale=1:0: the range of scale needs finite ends, the lower first"),
        ([*GOOD, "--range", "scale=1:1"], "the range of scale needs finite ends, the lower first"),
        ([*GOOD, "--range", "scale=0:1:log"], "and above 0 on a log scale"),
        ([*GOOD, "--range", "scale=0:nan"], "an end of the range of scale must be a finite number, not 'nan'"),
        ([*GOOD, "--range", "scale=0:x"], "an end of the range of scale must be a finite number, not 'x'"),
        ([*GOOD, "--range", "scale=a,b"], "--range scale=a,b must be "),
        ([*GOOD, *SCALE, *["--range", "scale=0:2"]], "scale has two ranges: give it one"),
        ([*GOOD, *SCALE, "--scale", "0.5"], "scale has a value and a range: give one of them"),
        ([*GOOD, "--range-each", "scale=0:1"], "scale has one value for the whole merge: give --range scale=0:1"),
        ([*GOOD, *SCALE, "--range-each", "weight=0:1", "--weight", "1", "2", "3"], "weight has a value and a range"),
        ([*GOOD, *SCALE, "--by", "grid"], "a grid needs the number of its values, scale=0:1:5, or a list of them"),
        (
            [*GOOD, "--range", "scale=0:1:9", "--by", "grid", "--budget", "8"],
            "a grid of 9 candidates is more than the budget of 8",
        ),
        ([*GOOD, "--range", "scale=0:1:9"], "a number of values, as for scale, is for a grid"),
        ([*GOOD, *SCALE, "--by", "bayes"], "unknown value of --by 'bayes'; there are: cma, grid, random"),
        ([*GOOD, *SCALE, "--budget", "0"], "budget must be at least 1, not 0"),
        ([*GOOD, *SCALE, "--seed", "-1"], "seed must be in [0, 4294967295], not -1"),
        ([*GOOD, *SCALE, "--threads", "0"], "--threads must be at least 1, not 0"),
        ([*GOOD, *SCALE, "--higher"], "give one of --lower and --higher"),
        ([*GOOD[:2], *SCALE, "--metric", "zork"], "--metric zork: say which is better, --lower or --higher"),
        ([*GOOD, *SCALE, "--timeout", "5"], "--timeout is for commands"),
        ([*GOOD, *SCALE, "--work", "out/work"], "--work out/work and --out out would lie one inside the other"),
        ([*GOOD, *SCALE, "--work", "m0"], "m0 exists and has no scores.jsonl"),
        ([*GOOD, *SCALE, "--shard-size", "big"], "'big' is not a size"),
        ([*GOOD, *SCALE, "--format", "pool"], "a member of a pool is written as POOL:NAME, not 'out'"),
        ([*GOOD, *SCALE, "--densty", "1"], "unknown option --densty"),
        ([*GOOD, *SCALE, "--dry-run"], "unknown option --dry-run"),
    ],
)
def test_what_cannot_be_searched_is_one_line_and_leaves_nothing(run, place, words, message):
    before = sorted(place.rglob("*"))
    code, _, err = run("search", *MERGE, "--out", "out", *words)
    assert code == 2 and message in err and err.count("\n") == 1 and err.startswith("soups search: ")
    assert [path for path in sorted(place.rglob("*")) if "__pycache__" not in path.parts] == before


RECIPES = {
    "own": {"models": [{"model": "m0", "parameters": {"density": 0.5}}, "m1"]},
    "slices": {
        "slices": [{"sources": [{"model": "m0", "layer_range": [0, 1]}, {"model": "m1", "layer_range": [0, 1]}]}]
    },
    "module": {"modules": {"x": {"models": ["m0", "m1"], "parameters": {"density": 0.5}}}},
}


@pytest.mark.parametrize(
    ("recipe", "option", "message"),
    [
        ("own", "--range", "density is also set for parts of the merge, where a range has no effect"),
        ("module", "--range", "density is also set for parts of the merge, where a range has no effect"),
        ("slices", "--range-each", "--range-each density needs models, not slices"),
        ("missing", "--range", "no recipe file at missing.yml"),
        ("list", "--range", "list.yml must be a mapping"),
        ("method", "--range", "unknown merge_method 'tise' (did you mean 'ties'?)"),
        ("nothing", "--range", "nothing.yml has no merge_method"),
        ("vocabulary", "--range", "unknown vocabulary of vocabulary.yml 'x'"),
    ],
)
def test_recipe_files_in_which_a_range_would_not_hold(run, place, recipe, option, message):
    fields = {"merge_method": "ties", "base_model": "base", "parameters": {"weight": 1, "density": 0.5}}
    texts = {name: yaml.safe_dump(fields | own) for name, own in RECIPES.items()}
    texts |= {"list": "[1]", "method": "merge_method: tise", "nothing": "models: [m0]"}
    texts |= {"vocabulary": "{merge_method: ties, vocabulary: x}"}
    for name, text in texts.items():
        pathlib.Path(f"{name}.yml").write_text(text)
    code, _, err = run("search", f"{recipe}.yml", "out", option, "density=0.1:0.9", *GOOD)
    assert code == 2 and message in err and err.startswith("soups search: ")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["greedy", "--members", "m0", *GOOD], "say what is averaged and where to: --members MODEL ... --out OUT"),
        (["greedy", "--out", "out", *GOOD], "say what is averaged"),
        (["greedy", "--members", "m*", "m0", "m0", "--out", "out", *GOOD], "m0 is given twice: a member counts once"),
        (["greedy", "--members", "x*", "--out", "out", *GOOD], "nothing matches 'x*'"),
        (
            ["greedy", "--members", "m0", "--out", "m1", *GOOD],
            "m1 exists, but was made by something else: give another --out",
        ),
        (
            ["greedy", "--members", "m0", "--out", "o", *GOOD, "--accept", "lt"],
            "unknown value of --accept 'lt'",
        ),
        (
            ["greedy", "--members", "m0", "--out", "o", "--where", "a<1", *GOOD],
            "--where chooses among members of pools",
        ),
        (["greedy", "--members", "m0", "odd", "--out", "o", *GOOD], "odd: w has shape [3] instead of [24]"),
        (["rank", *GOOD], "say what is ranked: --members MODEL ..."),
        (["rank", "--members", "m0"], "say how models are evaluated"),
        (["rank", "--members", "nowhere", *GOOD], "no checkpoint at nowhere"),
        (["rank", "--members", "m0", "--out", "o", *GOOD], "unknown option --out"),
    ],
)
def test_what_cannot_be_chosen_from_is_one_error(run, place, words, message):
    write_safetensors("odd", {"w": np.zeros(3, np.float32)})
    before = sorted(place.rglob("*"))
    code, _, err = run(*words)
    assert code == 2 and message in err and err.startswith(f"soups {words[0]}: ")
    assert [path for path in sorted(place.rglob("*")) if "__pycache__" not in path.parts] == before


def test_the_evaluation_has_the_environment_of_the_command(run, place, monkeypatch):
    monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
    monkeypatch.setenv("JAX_PLATFORMS", "tpu,gpu")
    show = "sh -c 'echo ${OPENBLAS_NUM_THREADS:-7} ${JAX_PLATFORMS}; test $JAX_PLATFORMS = tpu,gpu' {model}"
    assert run("rank", "--members", "m0", "--eval", show)[0] == 0
    assert pathlib.Path("ranking/printed/0.out").read_text() == "7 tpu,gpu\n"
