"""Test that what is finished is kept, and that a directory of another run is refused."""

import errno
import os
import re
import subprocess
import sys

import numpy as np
import pytest

from soups import Pool, state
from soups.report import load_results
from soups.studies.study import Scene, Study, Workdir, check_fields, held, with_defaults

CONFIG = {"seeds": 1, "size": 1, "sweep": {"members": 24, "learning_rate": (1e-4, 1e-2)}}


def test_a_stage_is_computed_once(tmp_path):
    calls = []
    for _ in range(2):
        workdir = Workdir(tmp_path, CONFIG)
        assert workdir.stage("soups", lambda: calls.append(1) or {"accuracy": 0.1 + 0.2}) == {"accuracy": 0.1 + 0.2}
    assert calls == [1]
    assert list(workdir.seconds("so")) == ["ups"]


def test_a_stage_that_fails_leaves_nothing(tmp_path):
    workdir = Workdir(tmp_path, CONFIG)
    with pytest.raises(ZeroDivisionError):
        workdir.stage("soups", lambda: 1 / 0)
    assert workdir.stage("soups", lambda: 5) == 5


def test_another_config_lists_all_differences(tmp_path):
    Workdir(tmp_path, CONFIG).stage("soups", lambda: 5)
    other = {"seeds": 3, "size": 2, "sweep": {"members": 24, "learning_rate": (1e-4, 1e-3)}, "extra": True}
    with pytest.raises(ValueError, match="another config") as error:
        Workdir(tmp_path, other)
    message = str(error.value)
    assert "size: 1 there, 2 now" in message
    assert "sweep.learning_rate: [0.0001, 0.01] there, [0.0001, 0.001] now" in message
    assert "extra: (absent) there, True now" in message
    assert "members" not in message and "seeds" not in message  # more seeds keep what is there


@pytest.mark.parametrize("made", [None, "stage", "member", "other file"])
def test_a_config_that_failed_is_replaced_as_long_as_nothing_is_computed(made, tmp_path):
    workdir = Workdir(tmp_path, CONFIG)
    pool = workdir.pool("pools/mlp")
    assert workdir.stage("seed0_contents", lambda: "old") == "old"
    if made == "stage":
        workdir.stage("seed0_start_weights", lambda: None)
    elif made == "member":
        pool.add("start", {"w": np.ones(2)})
    elif made:
        (tmp_path / "logits").mkdir()
        (tmp_path / "logits" / "a.npy").write_bytes(b"")
    if made:
        with pytest.raises(ValueError, match="was made with another config"):
            Workdir(tmp_path, CONFIG | {"size": 2})
    workdir = Workdir(tmp_path, CONFIG | {"size": 1 if made else 2})
    assert workdir.stage("seed0_contents", lambda: "new") == ("old" if made else "new")
    assert state.read(tmp_path / "config.json")["size"] == (1 if made else 2)


def test_a_result_that_json_cannot_hold_leaves_nothing(tmp_path):
    workdir = Workdir(tmp_path, CONFIG)
    with pytest.raises(ValueError, match=r"soups\.json cannot be written as JSON: Out of range float"):
        workdir.stage("soups", lambda: float("nan"))
    assert workdir.stage("soups", lambda: 5) == 5


@pytest.mark.parametrize("file", ["config.json", "stages/soups.json"])
def test_state_that_is_damaged_or_of_another_kind_is_named(file, tmp_path):
    def again():
        workdir = Workdir(tmp_path, CONFIG)
        return [lambda: workdir.stage("soups", lambda: 6), lambda: workdir.seconds("so")]

    Workdir(tmp_path, CONFIG).stage("soups", lambda: 5)
    path = tmp_path / file
    content = path.read_bytes()
    for place in range(0, len(content), 5):
        path.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
        for number in range(2):
            with pytest.raises(ValueError, match=rf"{path} does not have the bytes that were written"):
                again()[number]()
    state.write(path, {"result": 5})
    with pytest.raises(ValueError, match=r"its 'seconds' is not there|made with another config"):
        again()[0]()


def run(function, directory):
    with held(directory):
        function(directory)


def test_the_folder_of_a_model_is_no_workdir(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ValueError, match=rf"the workdir {tmp_path} is not that of a run: .*config.json does not have"):
        run(lambda _: pytest.fail("it ran"), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_a_second_run_is_told_who_holds_the_workdir(tmp_path):
    place = tmp_path / "new" / "run"

    def second(directory):
        with pytest.raises(BlockingIOError) as error:
            run(lambda _: pytest.fail("it ran"), directory)
        assert re.search(
            rf"another run is writing to {place}: process {os.getpid()} on {os.uname().nodename}, since \d{{4}}-\d\d-",
            str(error.value),
        )

    run(second, place)
    assert not place.exists()  # nothing was kept in it
    run(lambda directory: None, place)  # it is free again
    with pytest.raises(ZeroDivisionError):
        run(lambda directory: 1 / 0, place)
    run(lambda directory: None, place)


def test_the_lock_of_a_killed_run_is_free_and_what_it_left_is_swept(tmp_path):
    program = f"""
import os, signal, pathlib
from soups.files import locked
with locked(pathlib.Path({str(tmp_path)!r}), pathlib.Path({str(tmp_path)!r}, ".lock"), "run"):
    os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", program], timeout=60).returncode == -9
    assert (tmp_path / ".lock").read_text().startswith("process ")
    (tmp_path / "stages").mkdir()
    (tmp_path / "stages" / f"soups.json.{'0' * 32}.unfinished").write_text("{")
    run(lambda directory: Workdir(directory, CONFIG), tmp_path)
    assert os.listdir(tmp_path / "stages") == []


@pytest.mark.parametrize("begin", [lambda path: run(lambda _: None, path), lambda path: Workdir(path, CONFIG)])
@pytest.mark.parametrize(("name", "lies"), [("file", "is a file"), ("file/run", "run lies in .*file, which is a file")])
def test_a_workdir_that_is_a_file_or_lies_in_one_is_named(begin, name, lies, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match=rf"the workdir .*{lies}: choose another workdir"):
        begin(tmp_path / name)
    assert (tmp_path / "file").read_text() == ""


@pytest.mark.parametrize("begin", [lambda path: run(lambda _: None, path), lambda path: Workdir(path, CONFIG)])
@pytest.mark.parametrize(
    ("name", "message"), [("a\udcff", r"the workdir b'.*/a\\xff' is not UTF-8"), ("hf://bucket/run", "is a URL")]
)
def test_a_workdir_that_no_report_can_name_is_refused(begin, name, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        begin(name)
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("begin", [lambda path: run(lambda _: None, path), lambda path: Workdir(path, CONFIG)])
def test_a_workdir_that_is_a_pool_is_refused_instead_of_waiting_for_its_own_lock(begin, tmp_path):
    pool = Pool(tmp_path / "pool")
    pool.add("a", {"w": np.ones(2)})
    before = sorted(tmp_path.rglob("*"))
    (tmp_path / "link").symlink_to(pool.path)
    for place in (pool.path, tmp_path / "link"):
        with pytest.raises(ValueError, match=r"the workdir .* is a pool: choose another workdir, such as .*cooked"):
            begin(place)
    assert sorted(tmp_path.rglob("*")) == sorted([*before, tmp_path / "link"])


def study_of(made, factor=lambda: 1.0):
    """Return a study of as many seeds as its config says, whose rows count the weights that it made."""

    def scenes(config, workdir):
        return [Scene(config=config, workdir=workdir, seed=seed) for seed in range(config["seeds"])]

    def row(scene, name, group, **more):
        value = float(
            scene.kept(scene.workdir.pool("pool"), name, lambda: made.append(name) or {"w": np.ones(2)})["w"][0]
        )
        metrics = {"test": {"accuracy": factor() * value / (1 + scene.seed)}}
        return {"seed": scene.seed, "name": name, "kind": "soup", "group": group, "metrics": metrics, **more}

    def cook(scene):
        rows = [scene.stage("a soup", lambda: row(scene, "soup", "main"))]
        points = scene.figure(
            "curve",
            ["counts"],
            lambda counts: [row(scene, f"of {count}", "curve", of={"models": count}) for count in counts],
        )
        return {
            "splits": {"test": {"role": "test"}},
            "rows": rows + points,
            "histories": {"soup": [scene.seed]},
            "facts": {"Seeds": {f"seed {scene.seed}": "done"}},
            "notes": ["There are two."],
        }

    return Study(
        check=lambda config: check_fields(config, {"": "name seeds", "figures": "counts"}),
        scenes=scenes,
        cook=cook,
        packages=["jax"],
        folders=["pool"],
        changeable=["figures"],
    )


def test_a_study_cooks_every_seed_goes_on_and_repeats_what_a_figure_needs(tmp_path, undrawn, monkeypatch):
    made, config = [], {"name": "mine", "seeds": 2, "figures": {"counts": [1]}}
    paths = study_of(made)(config, tmp_path)
    written = ("results.json", "report.html", "table.csv", "table.tex", "pool")
    assert paths == [str(tmp_path / name) for name in written]
    results = load_results(tmp_path)
    assert [(row["seed"], row["name"], row["metrics"]["test"]["accuracy"]) for row in results["rows"]] == [
        (seed, name, 1 / (1 + seed)) for seed in (0, 1) for name in ("soup", "of 1")
    ]
    assert results["seeds"] == [0, 1] and results["histories"] == {"0": {"soup": [0]}, "1": {"soup": [1]}}
    assert results["notes"] == ["There are two."] and list(results["facts"]["Seeds"]) == ["seed 0", "seed 1"]
    assert [sorted(stages) for stages in results["timings"].values()] == [["a_soup", "curve"]] * 2
    study_of(made, factor=lambda: 1 / 0)(config, tmp_path)
    assert load_results(tmp_path) == results and made == ["soup", "of 1"] * 2
    study_of(made)(config | {"figures": {"counts": [1, 2]}}, tmp_path)
    assert made[4:] == ["of 2"] * 2
    study_of(made)(config | {"seeds": 3, "about": {"rows": ["soup"]}}, tmp_path)  # what is there is kept
    assert made[6:] == ["soup", "of 1"] and load_results(tmp_path)["seeds"] == [0, 1, 2]
    monkeypatch.setattr("platform.python_version", lambda: "3.99.0")  # another interpreter goes on
    study_of(made)(config | {"seeds": 3}, tmp_path)
    assert load_results(tmp_path)["versions"]["python"] == results["versions"]["python"]
    study_of(made)(config | {"seeds": 4}, tmp_path)
    assert load_results(tmp_path)["versions"]["python"] == results["versions"]["python"] + ", 3.99.0"


def test_a_full_disk_is_named_and_leaves_nothing(tmp_path, monkeypatch):
    workdir = Workdir(tmp_path, CONFIG)

    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"cannot write .*soups\.json: No space left on device") as error:
        workdir.stage("soups", lambda: 5)
    assert error.value.errno == errno.ENOSPC
    assert list((tmp_path / "stages").iterdir()) == []
    monkeypatch.undo()
    assert workdir.stage("soups", lambda: 5) == 5


def test_fields_are_all_checked_at_once():
    fields = {"": "seeds", "sweep": "members epochs"}
    check_fields({"seeds": 1, "sweep": {"members": 2, "epochs": 3}}, fields)
    with pytest.raises(ValueError) as error:
        check_fields({"sede": 1, "sweep": {"membres": 2, "epochs": 3}}, fields)
    message = str(error.value)
    assert "+ sede is unknown" in message
    assert "+ sweep.membres is unknown (did you mean 'sweep.members'?)" in message
    assert "- seeds is missing" in message
    assert "- sweep.members is missing" in message


def test_what_is_optional_may_be_left_out_alone_or_with_its_section():
    fields = {"": "name seeds?", "sweep": "members epochs?", "sam?": "radius members"}
    check_fields({"name": "x", "sweep": {"members": 2}}, fields)
    with pytest.raises(ValueError) as error:
        check_fields({"sweep": {"epochs": 3}, "sam": {"members": 2}}, fields)
    assert str(error.value).splitlines()[1:] == [
        "  - name is missing",
        "  - sam.radius is missing",
        "  - sweep.members is missing",
    ]


def test_what_a_config_leaves_out_is_filled_in_sections_too():
    defaults = {"seeds": 1, "greedy": {"orders": 0}, "sweep": {"mode": "auto", "epochs": 2}}
    filled = with_defaults({"name": "x", "sweep": {"epochs": 3}}, defaults)
    assert filled == {"name": "x", "seeds": 1, "greedy": {"orders": 0}, "sweep": {"mode": "auto", "epochs": 3}}
    assert defaults["sweep"] == {"mode": "auto", "epochs": 2}


@pytest.mark.parametrize(
    ("section", "field", "value", "message"),
    [
        ("pretrain", "learning_rate", -1, "learning_rate must be at least 0, not -1"),
        ("probe", "epochs", "2", "epochs must be a finite number, not '2'"),
        ("finetune", "clip_norm", 0, "clip_norm must be above 0, not 0"),
        ("finetune", "members_per_program", 0, "members_per_program must be at least 1, not 0"),
        ("sam", "radius", 0, "radius must be above 0, not 0"),
        ("sam", "members", 1.5, "members must be a whole number, not 1.5"),
        ("trajectory", "swa_start", 5, r"swa_start must be in \[0, 1\), not 5"),
        ("greedy", "random_orders", -1, "random_orders must be at least 0, not -1"),
        ("learned", "learning_rate", 0, "learning_rate must be above 0, not 0"),
        ("wise_ft", "alphas", (), r"alphas must be a list of numbers, not \(\)"),
        ("figures", "counts", "12", "counts must be a list of numbers, not '12'"),
        ("figures", "barrier_ts", [2.0], r"barrier_ts must be in \[0, 1\], not 2.0"),
        ("figures", "plane_points", 1, "plane_points must be at least 2, not 1"),
        ("finetune", "ema_decays", [1.0], r"ema_decays must be in \[0, 1\), not 1.0"),
    ],
)
def test_numbers_that_a_later_step_would_refuse_are_named_before_the_first(section, field, value, message):
    fields = {"": "name", f"{section}?": f"{field}?"}
    check_fields({"name": "x", section: {field: None}}, fields)  # left to its default
    with pytest.raises(ValueError, match=rf"  ~ {section}\.{message}$"):
        check_fields({"name": "x", section: {field: value}}, fields)


@pytest.mark.parametrize("size", [0, -1, 2.5, "3", True])
def test_sizes_of_batches_without_a_sense_are_named_in_every_section(size):
    fields = {"": "batch_size", "finetune": "batch_size", "runs?": "batch_size?", "evaluate?": "batch_size"}
    check_fields({"batch_size": 1, "finetune": {"batch_size": 2}, "runs": {"batch_size": 0}}, fields)
    check_fields({"batch_size": 1, "finetune": {"batch_size": 2}, "runs": {"batch_size": None}}, fields)
    with pytest.raises(ValueError) as error:
        check_fields({"batch_size": size, **{name: {"batch_size": size} for name in ("finetune", "evaluate")}}, fields)
    assert str(error.value).splitlines()[1:] == [
        f"  ~ {name}batch_size must be a whole number, at least 1, not {size!r}"
        for name in ("", "finetune.", "evaluate.")
    ]
    if size != 0:
        with pytest.raises(ValueError, match=r"runs\.batch_size must be a whole number, at least 0"):
            check_fields({"batch_size": 1, "finetune": {"batch_size": 1}, "runs": {"batch_size": size}}, fields)


@pytest.mark.parametrize("seeds", [0, 2.5, "3", True, None])
def test_seeds_and_sections_without_a_sense_are_named(seeds):
    fields = {"": "seeds", "sweep": "members"}
    with pytest.raises(ValueError) as error:
        check_fields({"seeds": seeds, "sweep": 3}, fields)
    assert f"~ seeds must be a whole number, at least 1, not {seeds!r}" in str(error.value)
    assert "~ sweep must be a section, not 3" in str(error.value)
