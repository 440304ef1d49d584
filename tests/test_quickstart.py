"""The scripts say what comes before they set anything up, which they do once."""

import pathlib
import shutil
import subprocess

import pytest

from soups.cli.run import read_config

ROOT = pathlib.Path(__file__).parents[1]
# stands for an interpreter: it knows its version, copies itself into an "environment", and says what else it is to do
PYTHON = """#!/usr/bin/env bash
case "$*" in
  *print*) echo py313 ;;
  *version_info*) ;;
  "-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
  *) echo "python $*" ;;
esac
"""


@pytest.fixture
def start(tmp_path):
    """Return a function that starts a script of a fresh clone, where no Python does anything, and gives its lines."""
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts", ignore=shutil.ignore_patterns("benchmarks"))
    for name in ("requirements.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    python = tmp_path / "python"
    python.write_text(PYTHON)
    python.chmod(0o755)

    def run(name, *words):
        environment = {"PATH": "/usr/bin:/bin", "PYTHON": str(python)}
        command = ["bash", tmp_path / "scripts" / name, *words]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd="/")
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    return run


def test_a_first_start_says_what_comes_before_it_sets_up(start):
    said = start("quickstart.sh", "--config.seeds=2")
    (setting_up,) = (number for number, line in enumerate(said) if line.startswith("python -m pip install"))
    before = " ".join(said[:setting_up])
    assert before.startswith("First .venv/py313 is set up: ") and "which takes a minute or more, once." in before
    config = read_config(ROOT / "configs" / "digits.py")
    minutes, members, images = config["about"]["minutes"], config["sweep"]["members"], config["task"]["num_train"]
    assert f"about {minutes} minutes a seed on two idle cores" in before  # as the run itself says for its seeds
    assert f"{members} times on {images} handwritten digits" in before
    run = "python scripts/run.py --config configs/digits.py --config.seeds=2"
    end = "  source .venv/py313/bin/activate   # for the commands of soups in this shell"
    assert said[setting_up + 1 :] == [run, end]
    assert start("quickstart.sh", "--config.seeds=2") == [run, end]  # nothing is set up again, and the run speaks first


def test_the_script_of_recycling_draws_its_sets_once(start, tmp_path):
    said = start("recycling.sh")
    config = read_config(ROOT / "configs" / "recycling" / "domainbed.py")
    assert f"about {config['about']['minutes']} minutes" in " ".join(said)
    build = "python scripts/build_domains.py runs/domains"
    run = "python scripts/run.py --config configs/recycling/domainbed.py --workdir runs/recycling"
    run += " --config.data_dir=runs/domains"
    assert said[-2:] == [build, run]
    (tmp_path / "runs" / "domains").mkdir(parents=True)
    (tmp_path / "runs" / "domains" / "LICENCES.md").touch()
    assert start("recycling.sh", "--config.seeds=3") == [f"{run} --config.seeds=3"]


def test_the_script_of_texts_brings_encoder_and_tasks_once(start, tmp_path):
    said = start("text.sh")
    config = read_config(ROOT / "configs" / "text" / "localize_and_stitch.py")
    assert f"about {config['about']['minutes']} minutes" in " ".join(said).replace("\n", " ")
    assert "84 MB" in " ".join(said)
    run = "python scripts/run.py --config configs/text/localize_and_stitch.py --workdir runs/many_tasks"
    run += " --config.data_dir=runs/texts"
    assert said[-2:] == ["python scripts/build_text_tasks.py runs/texts", run]
    (tmp_path / "runs" / "texts" / "longer").mkdir(parents=True)
    (tmp_path / "runs" / "texts" / "longer" / "train.tsv").touch()
    assert start("text.sh", "--config.seeds=3")[-1] == f"{run} --config.seeds=3"
