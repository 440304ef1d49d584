"""Run the recipes of docs/launch as far as that goes without their clusters: what they start must parse."""

import json
import os
import pathlib
import re
import subprocess
import sys

import pytest
import yaml

from soups.cli.run import parser

LAUNCH = pathlib.Path(__file__).parents[1] / "docs" / "launch"
SHIM = """#!{python}
import json, os, sys
open(os.environ["HEARD"], "a").write(json.dumps(sys.argv[1:]) + "\\n")
sys.exit(int(os.environ.get("CODE", 0)))
"""


@pytest.fixture
def launch(tmp_path):
    """Return a function that runs a script, with programs that do what the cluster's do, and gives the commands."""
    (tmp_path / "bin").mkdir()
    programs = {
        "soups": SHIM.format(python=sys.executable),
        "gcloud": '#!/bin/bash\nfor word; do case "$word" in --command=*) bash -c "${word#--command=}";; esac; done\n',
        "srun": '#!/bin/bash\nexec "$@"\n',
        "scontrol": '#!/bin/bash\necho "[\\"$*\\"]" >> "$HEARD"\n',
        "ssh": '#!/bin/bash\nbash -c "$2"\n',
    }
    for name, text in programs.items():
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)

    def run(script, *words, code=0, **variables):
        heard = tmp_path / "heard"
        heard.unlink(missing_ok=True)
        known = {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "HEARD": str(heard), "HOME": str(tmp_path)}
        words = ["bash", LAUNCH / script, "digits", str(tmp_path / "my run"), *words]
        done = subprocess.run(words, env=known | variables, capture_output=True, text=True, timeout=60)
        assert done.returncode == code, done.stderr
        return [json.loads(line) for line in heard.read_text().splitlines()] if heard.exists() else done.stdout

    return run


def options(words):
    """Return what the command line makes of a command, without the changes of the config."""
    assert words[0] == "run"
    return parser("soups run").parse([word for word in words[1:] if not word.startswith("--config.")])


CHANGE = "--config.sweep.members=2"


def test_a_slice_runs_one_command_on_all_workers(launch, tmp_path):
    known = {"TPU": "mine", "ZONE": "here", "SOUPS": "soups"}
    (words,) = launch("tpu_pod.sh", CHANGE, **known)
    found = options(words)
    assert (found.config, found.workdir, found.coordinator) == ("digits", str(tmp_path / "my run"), "auto")
    assert CHANGE in words
    dry = launch("tpu_pod.sh", DRY_RUN="1", **known)
    assert "tpu-vm ssh mine --zone=here --worker=all" in dry and "soups run" in dry


def test_slurm_starts_a_task_on_each_node_and_queues_again_what_was_told_to_end(launch):
    (words,) = launch("slurm.sbatch", CHANGE)
    assert options(words).coordinator == "auto"
    words, again = launch("slurm.sbatch", code=143, CODE="143", SLURM_JOB_ID="7")
    assert options(words) and again == ["requeue 7"]
    assert len(launch("slurm.sbatch", code=2, CODE="2", SLURM_JOB_ID="7")) == 1  # an error is none


def test_an_array_joins_the_run_of_its_first_task(launch, tmp_path):
    (first,) = launch("slurm_array.sbatch", CHANGE, SLURM_ARRAY_TASK_ID="0")
    assert not options(first).join
    (tmp_path / "my run").mkdir()
    (tmp_path / "my run" / "config.json").touch()
    (other,) = launch("slurm_array.sbatch", SLURM_ARRAY_TASK_ID="3", WAIT="0.1")
    assert options(other).join


def test_each_host_is_a_process(launch):
    found = [options(words) for words in launch("ssh.sh", CHANGE, HOSTS="a b c")]
    assert {one.coordinator for one in found} == {"a:8476"} and {one.processes for one in found} == {3}
    assert sorted(one.process for one in found) == [0, 1, 2]
    launch("ssh.sh", code=2, HOSTS="a b", CODE="2")
    assert launch("ssh.sh", HOSTS="a b", DRY_RUN="1").count("ssh ") == 2


def test_a_job_of_kubernetes_gives_each_pod_its_process():
    service, job = yaml.safe_load_all((LAUNCH / "kubernetes.yaml").read_text())
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    words = [word.replace("$(JOB_COMPLETION_INDEX)", "3") for word in container["command"]]
    found = options(words[1:])
    assert found.processes == job["spec"]["completions"] == job["spec"]["parallelism"] and found.process == 3
    host = re.fullmatch(r"(.+)-0\.(.+):8476", found.coordinator)
    assert host[1] == job["metadata"]["name"] and host[2] == service["metadata"]["name"] == pod["subdomain"]
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}
    assert pod["terminationGracePeriodSeconds"] > 30
    (mount,) = container["volumeMounts"]
    assert found.workdir.startswith(mount["mountPath"]) and mount["name"] == pod["volumes"][0]["name"]


def test_all_recipes_are_tested():
    assert {path.name for path in LAUNCH.iterdir()} == {
        *("kubernetes.yaml", "slurm.sbatch", "slurm_array.sbatch", "ssh.sh", "tpu_pod.sh"),
    }
