"""Test the command that runs studies: its config, its errors, and studies of a user's own."""

import subprocess
import sys
import textwrap

import pytest

from soups.cli import main, run
from soups.cli.run import read_config

CONFIG = """
from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

def get_config():
    config = ConfigDict({"study": "my_study:run", "members": 3, "rate": 0.1, "quick": False, "title": "one"})
    config.sweep = ConfigDict({"epochs": (1, 2), "names": ["a"], "anything": None})
    config.data_dir = placeholder(str)
    return config
"""


@pytest.fixture
def config(tmp_path):
    """Return a function that writes a config and gives its path."""

    def write(text=CONFIG, name="mine.py"):
        (tmp_path / name).write_text(textwrap.dedent(text))
        return str(tmp_path / name)

    return write


@pytest.fixture
def told(monkeypatch, capsys):
    """Return a function that runs the command here, with JAX as it is, and gives its code and what it complains of."""
    monkeypatch.setattr(run, "preferred", lambda environ: {})

    def command(*words):
        return main(["run", *words]), capsys.readouterr().err

    return command


def test_a_config_is_read_with_its_changes(config):
    changes = ["members=5", "rate=1", "quick=true", "title=2", "data_dir=/data", "sweep.epochs=(3, 4)"]
    changes += ["sweep.names=['b', 'c']", "sweep.anything=text"]
    found = read_config(config(), [f"--config.{change}" for change in changes])
    sweep = {"epochs": (3, 4), "names": ["b", "c"], "anything": "text"}
    fields = {"members": 5, "rate": 1.0, "quick": True, "title": "2", "data_dir": "/data", "sweep": sweep}
    assert found == {"name": "mine", "study": "my_study:run", **fields}
    assert read_config(config(), ["--config.sweep.epochs=3"])["sweep"]["epochs"] == (3,)
    assert read_config(config())["data_dir"] is None


def test_a_dict_is_a_config_and_older_ones_name_an_experiment(config):
    text = "def get_config():\n    return {'name': 'x', 'experiment': 'rebasin', 'task': {'size': 3}}\n"
    assert read_config(config(text)) == {"name": "x", "study": "rebasin", "task": {"size": 3}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("sweep.epoch=3", "unknown option --config.sweep.epoch (did you mean --config.sweep.epochs?); fields of"),
        ("membres=3", "unknown option --config.membres (did you mean --config.members?); fields of the config: "),
        ("=3", "unknown option --config.; fields of the config: data_dir, members, quick, "),
        ("members.a=3", "unknown option --config.members.a"),
        ("members", "--config.members needs a value: --config.members=VALUE"),
        ("members=2.5", "--config.members must be an int, not '2.5'"),
        ("rate=fast", "--config.rate must be a float, not 'fast'"),
        ("quick=perhaps", "--config.quick must be a bool, not 'perhaps'"),
        ("sweep.epochs=(1", "--config.sweep.epochs must be a tuple, not '(1'"),
        ("sweep.names=3", "--config.sweep.names must be a list, not '3'"),
        ("sweep=3", "config.sweep is a section: change one of its fields, anything, epochs, names"),
    ],
)
def test_a_change_that_does_not_fit_is_named(config, change, message):
    with pytest.raises(ValueError) as error:
        read_config(config(), [f"--config.{change}"])
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = (", "line 1: SyntaxError"),
        ("import no_such_module_at_all", "line 1: ModuleNotFoundError: No module named 'no_such_module_at_all'"),
        ("x = 1", "has no function get_config()"),
        ("get_config = 3", "has no function get_config()"),
        ("def get_config():\n    return {}['a']", "mine.py, line 2: KeyError: 'a'"),
        ("def get_config(size):\n    return {}", "get_config() missing 1 required positional argument: 'size'"),
        ("def get_config():\n    return 3", "must return an ml_collections.ConfigDict or a dict, not a int"),
        ("def get_config():\n    return {'a': {'b': print}}", "config.a.b holds a builtin_function_or_method"),
        ("def get_config():\n    return {'a': {1, 2}}", "config.a holds a set"),
    ],
)
def test_a_config_that_cannot_be_read_is_one_message(config, told, text, message):
    code, err = told("--config", config(text))
    assert code == 2 and err.startswith("soups run: ") and message in err and "Traceback" not in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--config", "{tmp}/none.py"], "--config: no file at {tmp}/none.py"),
        (["--config", "{tmp}"], "--config: no file at {tmp}"),
        (["--config", "gs://bucket/a.py"], "is a URL"),
        ([], "missing: --config (see --help)"),
        (["digits"], "'digits' does not belong to any option: a config is given as --config digits"),
        (["--config", "{config}", "--confg.members=3"], "unknown option --confg.members (did you mean --config?)"),
        (["--config", "{config}", "--wokrdir=x"], "unknown option --wokrdir (did you mean --workdir?)"),
        (["--config", "{config}", "--process=0"], "--processes and --process go together"),
        (["--config", "{config}", "--processes=2", "--process=0"], "need --coordinator HOST:PORT"),
        (["--config", "{config}", "--coordinator=localhost:1"], "several hosts need --coordinator HOST:PORT"),
        (["--config", "{config}", "--config.study=rebasn"], "unknown config.study 'rebasn' (did you mean 'rebasin'?)"),
        (["--config", "{config}", "--config.study=rebasin", "--join"], "study rebasin cannot be joined"),
    ],
)
def test_words_that_do_not_fit_are_one_message(config, told, tmp_path, words, message):
    places = {"tmp": tmp_path, "config": config()}
    code, err = told(*[word.format(**places) for word in words])
    assert code == 2 and message.format(**places) in err and err.count("\n") == 1


@pytest.mark.parametrize("option", ["--verbose", "-v", "--debug"])
def test_tracebacks_are_shown_on_demand(config, told, option):
    code, err = told("--config", config("def get_config():\n    return {}['a']"), option)
    assert code == 2 and "Traceback" in err and err.splitlines()[-1].startswith("soups run: --config: get_config of ")


def test_what_is_proposed_after_a_run_names_its_workdir_whole(config, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(run, "preferred", lambda environ: {})
    monkeypatch.chdir(tmp_path)
    config("def run(config, workdir):\n    pass\n", "quiet_study.py")
    about = "{'study': 'quiet_study:run', 'seeds': 1, 'about': {'command': 'bash run.sh'}}"
    assert main(["run", "--config", config(f"def get_config():\n    return {about}\n"), "--workdir", "there"]) == 0
    assert f"  bash run.sh --workdir={tmp_path / 'there'} --config.seeds=10   #" in capsys.readouterr().out


def test_a_study_of_ones_own_runs_from_anywhere_and_says_how_to_go_on(config, tmp_path, quick_start):
    lines = ["import os, signal, jax, my_helper", "def run(config, workdir):"]
    lines += ["    print(my_helper.TEXT, workdir, config['members'], jax.device_count())"]
    lines += ["    os.kill(os.getpid(), signal.SIGTERM)"]
    config("\n".join(lines), "my_study.py")
    config("TEXT = 'helped'", "my_helper.py")
    (tmp_path / "elsewhere").mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "soups", "run", "--config", config(), "--config.members=7"],
        env=quick_start | {"XLA_FLAGS": "--xla_force_host_platform_device_count=3"},
        cwd=tmp_path / "elsewhere",
        capture_output=True,
        text=True,
    )
    assert done.stderr == "soups run: stopped; the same command goes on with runs/mine\n"
    assert (done.returncode, done.stdout) == (143, "helped runs/mine 7 3\n")
