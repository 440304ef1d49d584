"""Run the three commands of the published soups as a user types them, on the miniature; kill and repeat them."""

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import PIL.Image
import pytest
from imagenet_small import MAIN_ROWS

from soups import Pool, tree
from soups.data.imagenet import SETS
from soups.evaluate import accuracy
from soups.train.loop import losses_path

ROOT = pathlib.Path(__file__).parents[1]

pytestmark = pytest.mark.slow

ARCH = "clip-vit-mini"
NAMES = [f"model_{index}" for index in range(12)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return the folder of all runs; they share the decoded sets in it."""
    return tmp_path_factory.mktemp("commands")


@pytest.fixture(scope="module")
def start(quick_start):
    """Return a function that starts a script of this project with its arguments, in a group of processes of its own."""

    def starting(script, *arguments):
        command = [sys.executable, ROOT / "scripts" / script, *map(str, arguments)]
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "start_new_session": True}
        return subprocess.Popen(command, cwd=ROOT, env=quick_start | {"COLUMNS": "200"}, **options)

    return starting


@pytest.fixture(scope="module")
def run(start):
    """Return a function that runs a script to its end, and gives what it printed."""

    def running(script, *arguments):
        process = start(script, *arguments)
        try:
            printed, _ = process.communicate(timeout=300)
        finally:
            _end(process)
        assert process.returncode == 0, printed[-3000:]
        return printed

    return running


@pytest.fixture(scope="module")
def kill_when(start):
    """Return a function that starts a script and kills it with SIGKILL once `reached()`; its workers must end alone."""

    def killing(reached, script, *arguments):
        process, deadline = start(script, *arguments), time.monotonic() + 200
        try:
            while not reached():
                assert process.poll() is None, f"it ended before it could be killed: {process.stdout.read()[-3000:]}"
                assert time.monotonic() < deadline, "it did not get there in time"
                time.sleep(0.002)
            process.kill()
            process.communicate(timeout=20)  # its workers have the same output open
        finally:
            _end(process)

    return killing


def _end(process):
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@pytest.fixture(scope="module")
def imported(run, miniature, folder):
    """Return the imported pool, and what the import printed."""
    files = [miniature / "models" / f"{name}.pt" for name in sorted(NAMES)]  # in the order of a shell
    hparams = miniature / "models" / "hparam_info.json"
    printed = run("pool.py", "import", "--arch", ARCH, "--pool", folder / "pool", "--hparams", hparams, *files)
    return Pool(folder / "pool"), printed


@pytest.fixture(scope="module")
def soups_arguments(miniature, folder):
    return [
        "--config=configs/imagenet/clip_vit_b32_soups.py",
        f"--config.data_dir={miniature / 'data'}",
        f"--config.arch={ARCH}",
        f"--config.pool={folder / 'pool'}",
        "--config.evaluate.batch_size=100",
        "--config.greedy.random_orders=1",
        "--config.learned.epochs=1",
        "--config.learned.batch_size=16",
        "--config.wise_ft.alphas=(0.0, 0.5, 1.0)",
    ]


@pytest.fixture(scope="module")
def cooked(run, imported, soups_arguments, folder):
    """Return the directory of a finished run, and what it printed."""
    return folder / "soups", run("run.py", *soups_arguments, f"--workdir={folder / 'soups'}")


@pytest.fixture(scope="module")
def results(cooked):
    return json.loads((cooked[0] / "results.json").read_text())


@pytest.fixture(scope="module")
def finetune_arguments(miniature):
    return [
        "--config=configs/imagenet/clip_vit_b32_finetune.py",
        f"--config.data_dir={miniature / 'data'}",
        f"--config.arch={ARCH}",
        f"--config.start={miniature / 'clip' / 'clip-vit-mini.pt'}",
        "--config.probe.strengths=(1.0, 100.0)",
        "--config.probe.max_iterations=20",
        "--config.sweep.members=2",
        "--config.sweep.epochs=(1, 1)",
        "--config.sweep.learning_rate=(1e-4, 1e-3)",
        "--config.finetune.batch_size=64",
        "--config.finetune.num_workers=1",
        "--config.finetune.num_threads=2",
        "--config.finetune.save_every=2",
        "--config.evaluate.batch_size=100",
    ]


@pytest.fixture(scope="module")
def finetuned(run, finetune_arguments, folder):
    """Return the directory of a finished fine-tuning, and what it printed."""
    return folder / "finetune", run("run.py", *finetune_arguments, f"--workdir={folder / 'finetune'}")


# --- The import -------------------------------------------------------------------------------------------------------


def test_all_members_are_imported_with_their_hyperparameters(imported, miniature):
    pool, printed = imported
    assert sorted(pool) == sorted(NAMES)
    published = json.loads((miniature / "models" / "hparam_info.json").read_text())
    assert {name: pool.record(name)["metadata"]["hparams"] for name in pool} == published
    assert "(12/12)" in printed and "the same weights: model_4 = model_5" in printed


# --- Evaluating and cooking -------------------------------------------------------------------------------------------


def test_every_row_has_every_set(results):
    main = [row for row in results["rows"] if row["group"] == "main"]
    members = [row for row in results["rows"] if row["group"] == "member"]
    curve = [row for row in results["rows"] if row["group"] == "curve"]
    assert [row["name"] for row in main] == MAIN_ROWS
    assert [row["name"] for row in members] == NAMES
    assert [row["ingredients"]["model_0"] for row in curve] == [1.0, 0.5, 0.0]
    for row in results["rows"]:
        assert list(row["metrics"]) == [*SETS, "shift_mean"]
        assert all(0 < found["accuracy"] <= 1 for found in row["metrics"].values())
    greedy = next(row for row in main if row["name"] == "greedy soup")
    assert set(greedy["ingredients"]) <= set(NAMES)
    assert sum(greedy["ingredients"].values()) == pytest.approx(1)
    assert [member["name"] for member in results["members"]["0"]] == NAMES


def test_the_report_and_its_figures_show_all_of_it(cooked, results):
    workdir, printed = cooked
    page = (workdir / "report.html").read_text()
    for name in (row["name"] for row in results["rows"]):
        assert name in page
    for name in MAIN_ROWS:
        assert name in printed
    assert os.path.relpath(workdir / "report.html", ROOT) in printed
    drawn = ("overview", "scatter", "by_split", "wise_ft", "hyper_parameters")
    assert page.count("data:image/svg+xml;base64,") == len(drawn)
    for name in drawn:
        with PIL.Image.open(workdir / "figures" / f"{name}.png") as image:
            pixels = np.asarray(image.convert("RGB"))
        assert min(pixels.shape[:2]) > 300
        background = (pixels == pixels[0, 0]).all(axis=-1).mean()
        assert background < 0.99
        assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 20


def test_the_same_command_measures_nothing_again(run, cooked, soups_arguments):
    workdir, _ = cooked
    before = (workdir / "results.json").read_bytes()
    made = {path: path.stat().st_mtime_ns for part in ("stages", "logits") for path in (workdir / part).rglob("*")}
    run("run.py", *soups_arguments, f"--workdir={workdir}")
    assert (workdir / "results.json").read_bytes() == before
    assert {path: path.stat().st_mtime_ns for path in made} == made


def test_kill_9_and_the_same_command_give_the_same_rows(kill_when, run, results, soups_arguments, folder):
    workdir = folder / "killed_soups"
    arguments = ["run.py", *soups_arguments, f"--workdir={workdir}"]
    stages, finished = workdir / "stages", {}

    def steps_learned():
        return sum(path.read_text().count("\n") - 1 for path in workdir.glob("journals/learned_soup-*.jsonl"))

    moments = [
        (lambda: len(list(workdir.glob("logits/*.npy"))) > 2 * len(SETS) * 4, "uniform_soup"),  # among the members
        (lambda: steps_learned() == 1, "learned_per_model"),  # after a step of it
        ((stages / "ensembles.json").exists, "wise_ft"),  # on the path
    ]
    for reached, still_missing in moments:
        kill_when(reached, *arguments)
        assert not (stages / f"{still_missing}.json").exists()
        finished |= {path: path.stat().st_mtime_ns for path in stages.glob("*.json")}
    printed = run(*arguments)
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    assert "measuring: 12/12 members" in printed and "greedy soup" not in printed.partition("soups · ")[0]
    again = json.loads((workdir / "results.json").read_text())
    for part in results.keys() - {"created", "timings", "checksum"}:
        assert again[part] == results[part]


# --- Fine-tuning ------------------------------------------------------------------------------------------------------


def test_the_pool_has_the_probe_and_the_members(finetuned):
    workdir, printed = finetuned
    pool = Pool(workdir / "pool")
    assert list(pool) == ["member_00", "member_01", "member_02"]
    assert all(pool.record(name)["status"] == "ok" for name in pool)
    first, second = (tree.flatten(pool[name]) for name in ("member_01", "member_02"))
    assert all(leaf.dtype == np.float32 for leaf in first.values())
    assert not any(np.array_equal(first[name], second[name]) for name in first)
    assert f"--config.pool={os.path.relpath(workdir, ROOT)}/pool --config.wise_ft.base=member_00" in printed


def test_kill_9_in_the_middle_of_a_member_gives_the_same_pool(kill_when, run, finetuned, finetune_arguments, folder):
    workdir = folder / "killed_finetune"
    arguments = ["run.py", *finetune_arguments, f"--workdir={workdir}"]
    training = workdir / "pool.training" / "group_member_02"

    def begun():
        losses = losses_path(training, "member_02")
        return losses.exists() and losses.read_text().count("\n") >= 2

    kill_when(begun, *arguments)
    assert list(Pool(workdir / "pool")) == ["member_00", "member_01"]
    run(*arguments)
    pools = [Pool(path / "pool") for path in (finetuned[0], workdir)]
    there, here = ({name: pool.digest(name) for name in pool} for pool in pools)
    assert here == there


# --- Predicting -------------------------------------------------------------------------------------------------------


def test_logits_of_a_member_and_of_a_soup_have_the_reported_accuracy(run, miniature, cooked, results, folder):
    images = miniature / "data" / "imagenet" / "val"
    classes = sorted(path.name for path in images.iterdir())
    for pool, member, row in [
        (folder / "pool", "model_2", "model_2"),
        (cooked[0] / "soups", "greedy_soup", "greedy soup"),
    ]:
        out = folder / f"{member}.npz"
        run("predict.py", "--pool", pool, "--member", member, "--images", images, "--out", out)
        found = np.load(out)
        labels = np.array([classes.index(name.split("/")[0]) for name in found["files"]])
        expected = next(one for one in results["rows"] if one["name"] == row)["metrics"]["imagenet"]["accuracy"]
        # batches of another size, so an image may change sides
        assert accuracy(found["logits"], labels) == pytest.approx(expected, abs=1.01 / len(labels))
