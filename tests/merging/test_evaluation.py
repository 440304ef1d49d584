"""Test that a user's evaluation gives its score, or a clear error."""

import math
import shlex
import subprocess
import sys
import time

import pytest
from processes import await_end

from soups.merging.evaluation import EvaluationError, evaluation


@pytest.fixture
def ask(tmp_path):
    """Return a function that evaluates a model by a command, here a file of text that is printed."""

    def run(text, command="cat {model}", **options):
        model = tmp_path / "model [a] é"
        model.write_text(text)
        return evaluation(command, **options)(model, tmp_path / "printed" / "0")

    return run


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("0.81", 0.81),
        ("accuracy 0.5\nthen 0.75\n", 0.75),
        ("loss: -1.5e-3", -1.5e-3),
        ("[0.1,0.2]", 0.2),
        ("{'accuracy': .5}", 0.5),
        ("85.3%", 85.3),
        ("1,234.5", 1234.5),
        ("0.7 (took 3.2s, v2 of model_3, at 1.2.3)", 0.7),
        ("score=7.", 7.0),
        ("\x1b[32m0.9\x1b[0m\n", 0.9),
        ("5 \N{MINUS SIGN}0.25", -0.25),
        ("+3", 3.0),
        ("-inf", -math.inf),
        ("1.0\nInfinity", math.inf),
        ("information: 0.5", 0.5),
        ("0.5\n" + "no digits\n" * 1000, 0.5),
        ("\udcff0.5 0.6".encode(errors="surrogateescape").decode("latin-1"), 0.6),
    ],
)
def test_the_last_number_is_the_score(ask, text, score):
    assert ask(text) == score


def test_nan_is_a_score_too(ask):
    assert math.isnan(ask("0.5 NaN"))


@pytest.mark.parametrize(
    ("text", "metric", "score"),
    [
        ("accuracy: 0.8, loss: 0.4", "accuracy", 0.8),
        ('{"accuracy": 0.8, "accuracy_norm": 0.9}', "accuracy", 0.8),
        ("accuracy = 0.1\naccuracy = 0.2\n3", "accuracy", 0.2),
        ("|hellaswag|  1|none|acc     |↑|0.55|±|0.005|\n|||acc_norm|↑|0.66|±|0.005|", "acc", 0.55),
        ("|hellaswag|  1|none|acc     |↑|0.55|±|0.005|\n|||acc_norm|↑|0.66|±|0.005|", "acc_norm", 0.66),
        ("f(x): -2 f(x)2: 3", "f(x)", -2.0),
        ("held-out/loss -1e9", "held-out/loss", -1e9),
    ],
)
def test_a_metric_is_the_last_number_behind_its_name(ask, text, metric, score):
    assert ask(text, metric=metric) == score


@pytest.mark.parametrize("name", ["candidates/0", "3 é [1]/12"])
@pytest.mark.parametrize(
    ("program", "score"),
    [
        ("print('evaluated', path)", None),
        ("print(0.25, path)", 0.25),
        ("print(json.dumps({'acc': 0.25, 'model': path, 'real': os.path.realpath(path)}))", 0.25),
        ("print(0.25, os.path.realpath(path) + '/part-00001-of-00002.safetensors')", 0.25),
        ("print(path, 0.25, sep=',')", 0.25),
        ("print('score of', path + '/model.safetensors', ': 0.25')", 0.25),
        ("print(path + '0', 5)", 5.0),  # another folder, whose name begins alike
    ],
)
def test_digits_of_the_path_are_no_score(tmp_path, program, score, name):
    (tmp_path / "real" / name).mkdir(parents=True)
    (tmp_path / "link").symlink_to("real")
    ask = evaluation(
        shlex.join([sys.executable, "-ISc", f"import json, os, sys; path = sys.argv[1]; {program}", "{model}"])
    )
    if score is None:
        with pytest.raises(EvaluationError, match="the evaluation prints no number to its output"):
            ask(tmp_path / "link" / name, tmp_path / "printed")
    else:
        assert ask(tmp_path / "link" / name, tmp_path / "printed") == score


@pytest.mark.parametrize(
    ("command", "options", "message"),
    [
        ("cat {model}", {"metric": "f1"}, "the evaluation prints no number behind 'f1' to its output: cat "),
        ("true {model}", {}, "prints no number to its output: true "),
        ("true {model}", {}, "it prints nothing"),
        ("sh -c 'echo 1; echo why >&2; exit 3' {model}", {}, "the evaluation failed with exit code 3: sh -c "),
        ("sh -c 'echo 1; echo why >&2; exit 3' {model}", {}, "\n  why"),
        ("sh -c 'seq 9; exit 1' {model}", {}, "\n  5\n  6\n  7\n  8\n  9"),
        ("sh -c 'kill -9 $$' {model}", {}, "the evaluation was ended by SIGKILL"),
        ("sleep 60 {model}", {"timeout": 0.2}, "the evaluation failed with exit code 1"),
        ("sh -c 'sleep 60' {model}", {"timeout": 0.2}, "the evaluation took longer than --timeout 0.2: sh -c "),
    ],
)
def test_an_evaluation_without_a_score_is_explained(ask, command, options, message):
    with pytest.raises(EvaluationError) as error:
        ask("loss 0.3\x1b[2J", command, **options)
    assert message in str(error.value)


def test_what_is_printed_is_kept_and_shown_as_escapes(ask, tmp_path):
    with pytest.raises(EvaluationError, match=r"\\x07"):
        ask("1", r"sh -c 'printf \\007; exit 1' {model}")
    assert (tmp_path / "printed" / "0.out").read_bytes() == b"\x07"


def test_what_takes_too_long_is_ended_with_all_that_it_started(ask, tmp_path):
    alive = tmp_path / "alive"
    begin = time.monotonic()
    with pytest.raises(EvaluationError, match="took longer"):
        ask("", f"sh -c 'trap \"\" TERM; (sleep 2; touch {alive}) & wait' {{model}}", timeout=0.2)
    assert time.monotonic() - begin < 2
    time.sleep(1.2)
    assert not alive.exists()


def test_no_shell_sees_the_command(ask, tmp_path):
    assert ask("0.5", "echo '$HOME;' `id` > {model} 0.25") == 0.25
    assert (tmp_path / "model [a] é").read_text() == "0.5"
    assert (tmp_path / "printed" / "0.out").read_text().startswith("$HOME; `id` > /")


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        (
            "python my_eval.py",
            {},
            r"--eval needs \{model\}, where the path of a model will stand: 'python my_eval.py \{mod",
        ),
        ("my_eval.py", {}, r"--eval needs \{model\}"),
        ("", {}, r"--eval needs \{model\}.*'python my_eval.py \{model\}'"),
        ("cat '{model}", {}, "--eval is not a command: No closing quotation"),
        ("no_such_program {model}", {}, "--eval: there is no program 'no_such_program'"),
        ("./no_such_program {model}", {}, "--eval: there is no program './no_such_program'"),
        ("no_such_module:score", {}, "--eval 'no_such_module:score': no module 'no_such_module' in .* or installed"),
        ("json:lods", {}, r"there is no function 'lods' in .*json.*did you mean 'loads'\?"),
        ("nowhere.py:score", {}, "--eval: no file at nowhere.py"),
        ("mine.py:scoer", {}, r"--eval: there is no function 'scoer' in mine.py \(did you mean 'score'\?\)"),
        ("broken.py:score", {}, "--eval: broken.py, line 2: NameError"),
        ("mine.py:score", {"timeout": 1}, "--timeout is for commands"),
        ("cat {model}", {"timeout": 0}, "--timeout must be a number of seconds above 0, not 0"),
        ("cat {model}", {"timeout": math.nan}, "--timeout must be a number of seconds above 0, not nan"),
    ],
)
def test_an_evaluation_that_cannot_be_is_refused_before_any_work(tmp_path, monkeypatch, text, options, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text("def score(path):\n    return 1\n")
    (tmp_path / "broken.py").write_text("\nnot_there\n")
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        evaluation(text, **options)


def test_functions(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "beside_of_evaluation.py").write_text("def number():\n    return 0.5\n")
    body = "import pathlib, beside_of_evaluation as beside\n"
    body += "def score(path):\n    assert path[0] == '/'\n"
    body += "    return beside.number() * len(pathlib.Path(path).read_text())\n"
    body += "def many(path):\n    return {'loss': 1, 'accuracy': 0.5}\n"
    body += "def fails(path):\n    return 1 / 0\n"
    body += "def says(path):\n    return 'much'\n"
    (tmp_path / "my_scores_of_models.py").write_text(body)
    (tmp_path / "model").write_text("four")

    def ask(function, metric=None):
        return evaluation(function, metric)(tmp_path / "model", tmp_path / "0")

    assert ask("my_scores_of_models.py:score") == 2.0 == ask("my_scores_of_models:score")
    assert ask("my_scores_of_models:many", "loss") == 1.0
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path / "sub")
    assert ask("../my_scores_of_models.py:score") == 2.0
    for function, metric, message in [
        ("fails", None, r"--eval .*fails failed: .*my_scores_of_models.py, line 8: ZeroDivisionError"),
        ("says", None, "a score must be a number, but evaluate gives 'much'"),
        ("many", None, "several metrics: choose one with metric=: loss, accuracy"),
        ("many", "los", r"unknown metric 'los' \(did you mean 'loss'\?\)"),
        ("score", "loss", "evaluate returns a single number, not a mapping of metrics"),
    ]:
        with pytest.raises(ValueError, match=message):
            ask(f"../my_scores_of_models.py:{function}", metric)


def test_scripts_are_known_by_their_content_and_other_files_are_not(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").write_text("#!/bin/sh\necho 1\n")
    (tmp_path / "run").chmod(0o755)
    (tmp_path / "my.py").write_text("print(1)\n")
    (tmp_path / "log.txt").write_text("")
    command = f"./run my.py log.txt {sys.executable} {{model}}"
    before = evaluation(command).identity
    assert list(before["scripts"]) == ["./run", "my.py"] and before["evaluation"] == command
    (tmp_path / "my.py").write_text("print(2)\n")
    (tmp_path / "log.txt").write_text("more")
    after = evaluation(command, metric="f1").identity
    assert after["scripts"]["./run"] == before["scripts"]["./run"] and after["metric"] == "f1"
    assert after["scripts"]["my.py"] != before["scripts"]["my.py"]
    (tmp_path / "of_function_of_mine.py").write_text("def score(path):\n    return 1\n")
    assert list(evaluation("of_function_of_mine:score").identity["scripts"]) == ["of_function_of_mine.py"]


@pytest.mark.skipif(sys.platform != "linux", reason="only there the kernel does it")
def test_an_evaluation_ends_with_the_process_that_asked(tmp_path, quick_start):
    """What is killed cannot end what it started, so the kernel does."""
    code = f"""
import pathlib
from soups.merging.evaluation import evaluation
evaluation("sh -c 'echo $$ > {tmp_path}/pid; exec sleep 60' {{model}}")(pathlib.Path("m"), pathlib.Path("{tmp_path}/0"))
"""
    process = subprocess.Popen([sys.executable, "-c", code], env=quick_start)
    deadline = time.monotonic() + 20
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text().strip():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.kill()
    process.wait()
    await_end(int((tmp_path / "pid").read_text()))
