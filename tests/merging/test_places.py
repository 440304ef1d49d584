"""Test where merges are written to: places are checked by every door, and one merge at a time writes to each."""

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import types

import numpy as np
import pytest

from soups import Pool, merging
from soups.files import locked
from soups.formats import orbax
from soups.merging.places import check_names, split_member

SINKS = {
    "folder": merging.merge_to_folder,
    "file": lambda plan, out, **options: merging.merge_to_file(plan, out and f"{out}.npz", **options),
    "orbax": merging.merge_to_orbax,
    "sharded": merging.merge_sharded,
    "pool": lambda plan, out, **options: merging.merge_to_pool(plan, f"{out}:soup", **options),
}


@pytest.fixture
def recipe(models):
    return {"merge_method": "passthrough", "models": [models["a"]]}


def weights(*values):
    return np.array(values, np.float32)


# --- Every sink is a door ---


@pytest.mark.parametrize("sink", SINKS)
@pytest.mark.parametrize(
    ("out", "error", "message"),
    [
        ("hf://bucket/model", ValueError, "'hf://bucket/model.*' is a URL"),
        ("{model}/out", ValueError, "would lie inside the model .*m0.*: choose a place beside it"),
        ("{model}/deep/er/out", ValueError, "would lie inside the model"),
        ("{link}/out", ValueError, "would lie inside the model"),
        ("{adapter}/out", ValueError, r"would lie inside the model .*m0\+.*lora"),
        (
            "{file}/out",
            NotADirectoryError,
            "a pool is a directory, but .*file is a file|cannot write .*file is not a folder",
        ),
        (
            "{file}/deep/out",
            NotADirectoryError,
            "a pool is a directory, but .*file is a file|cannot write .*not a folder",
        ),
        ("", ValueError, "is not a path: it is empty|a member of a pool is written as POOL:NAME"),
    ],
)
def test_wrong_places_are_errors_before_any_work(linear_of, small, tmp_path, write_lora, sink, out, error, message):
    given = linear_of({"w.weight": np.ones((4, 4), np.float32)})
    model = given["models"][0]["model"]
    places = {"model": model, "link": tmp_path / "link", "file": tmp_path / "file", "adapter": write_lora("w", 4)}
    places["link"].symlink_to(model)
    places["file"].write_text("")
    given["models"][0]["model"] = f"{model}+{places['adapter']}"
    plan, before = small.plan(given), sorted(tmp_path.rglob("*"))
    with pytest.raises(error, match=message):
        SINKS[sink](plan, out.format(**places), progress=pytest.fail)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("sink", [sink for sink in SINKS if sink != "pool"])
@pytest.mark.parametrize("place", ["out", "members/out", "members/deep/er/out"])
def test_a_place_inside_a_pool_would_be_swept(linear_of, small, tmp_path, sink, place):
    Pool(tmp_path / "pool").add("a", {"w": weights(1)})
    plan = small.plan(linear_of({"w": weights(1)}))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match=r"would lie inside the pool .*pool: --format pool writes a member"):
        SINKS[sink](plan, tmp_path / "pool" / place, progress=pytest.fail)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("sink", [sink for sink in SINKS if sink not in ("pool", "file")])
@pytest.mark.parametrize("there", ["file", "model", "link", "dangling"])
def test_what_is_there_stays(recipe, linear_of, small, tmp_path, sink, there):
    plan = small.plan(linear_of({"w": weights(1)}))
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to("m0")
    (tmp_path / "dangling").symlink_to("nowhere")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(FileExistsError, match=" exists: choose a new path for the merge"):
        SINKS[sink](plan, tmp_path / there.replace("model", "m0"), progress=pytest.fail)
    assert sorted(tmp_path.rglob("*")) == before and (tmp_path / "file").read_text() == "mine"


def test_a_pool_that_does_not_fit_is_an_error_before_any_work(linear_of, small, tmp_path):
    pool = tmp_path / "pool"
    Pool(pool).add("a", {"head": {"bias": weights(1)}})
    other = {"merge_method": "passthrough", "models": [small.write_model(tmp_path / "other", {"w": weights(1)}, {})]}
    with pytest.raises(ValueError, match="has a member 'a': choose a new name for the merge"):
        merging.merge_to_pool(small.plan(linear_of({"head.bias": weights(1)})), f"{pool}:a", progress=pytest.fail)
    text = f"{{merge_method: passthrough, models: ['{pool}:a']}}"
    member = merging.plan(merging.parse_recipe(text), merging.open_model)
    with pytest.raises(ValueError, match="would lie inside the model"):
        merging.merge_to_folder(member, pool / Pool(pool).record("a")["path"] / "out", progress=pytest.fail)
    with pytest.raises(ValueError, match=r"soup: head/bias is missing"):
        merging.merge_to_pool(small.plan(other), f"{pool}:soup", progress=pytest.fail)
    for wrong in ("pool", "pool:", ":soup"):
        with pytest.raises(ValueError, match=f"a member of a pool is written as POOL:NAME, not '{wrong}'"):
            split_member(wrong)


@pytest.mark.parametrize("call", [merging.read_record, merging.open_model, merging.read_recipe])
def test_urls_are_refused_where_something_is_read(call):
    with pytest.raises(ValueError, match="'hf://bucket/model' is a URL"):
        call("hf://bucket/model")


@pytest.mark.parametrize("sink", ["orbax", "sharded"])
def test_a_full_disk_is_found_before_orbax_writes(linear_of, small, tmp_path, sink, monkeypatch):
    plan = small.plan(linear_of({"w": weights(1, 2, 3)}))
    monkeypatch.setattr(shutil, "disk_usage", lambda place: types.SimpleNamespace(free=11))
    with pytest.raises(OSError, match=r"No space left on device: 12 bytes are needed, 11 are left: .*out"):
        SINKS[sink](plan, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["m0"]


@pytest.mark.parametrize("sink", ["orbax", "sharded"])
def test_what_orbax_could_not_finish_is_swept(linear_of, small, tmp_path, sink, monkeypatch):
    def fail(path, tree):
        path.with_name(f"{path.name}.orbax-checkpoint-tmp").mkdir()
        raise OSError("the disk is gone")

    monkeypatch.setattr(orbax, "save_checkpoint", fail)
    with pytest.raises(OSError, match="the disk is gone"):
        SINKS[sink](small.plan(linear_of({"w": weights(1)})), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["m0"]


# --- Names that become nested dicts ---


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("a", "a.b"), "a would be both a tensor and the dict that holds a.b"),
        (("x/a", "x/a/b/c"), "x/a would be both a tensor and the dict that holds x/a/b/c"),
        (("x/a.b", "x/a/b"), "x/a.b and x/a/b would have the same place"),
        (("a..b", "c"), "a..b has a part without a name"),
        ((".".join("a" * 100), "c"), "has more than 64 parts"),
    ],
)
def test_names_that_lose_a_tensor_in_nested_dicts_are_an_error(linear_of, small, tmp_path, names, message):
    made = small.plan(linear_of(*({name: weights(i) for name in names} for i in (1, 2))))
    with pytest.raises(ValueError, match=message):
        check_names(made)
    for sink, out in ((merging.merge_to_orbax, tmp_path / "out"), (merging.merge_to_pool, f"{tmp_path}/pool:soup")):
        with pytest.raises(ValueError, match=message):
            sink(made, out)


@pytest.mark.parametrize("name", ["a\\b", "a\0b", "a" * 256, "é" * 128, "/".join(["a" * 99] * 3)])
def test_names_that_no_folder_can_have_go_into_pools_alone(linear_of, small, tmp_path, name):
    made = small.plan(linear_of({name: weights(1), "c": weights(2)}))
    with pytest.raises(ValueError, match="would be a folder, but has a backslash, a null character or over 255 bytes"):
        merging.merge_to_orbax(made, tmp_path / "out")
    merging.merge_to_pool(made, f"{tmp_path}/pool:soup")
    np.testing.assert_array_equal(merging.open_model(f"{tmp_path}/pool:soup").read(name), weights(1))


@pytest.mark.parametrize("name", [".", "..", "_METADATA"])
def test_names_of_orbax_and_of_the_system_go_into_pools_alone(linear_of, small, tmp_path, name):
    made = small.plan(linear_of({name: weights(1), "c/../../d": weights(2)}))
    with pytest.raises(
        ValueError, match=f"'?{re.escape(name)}'? is the name of a folder that means something else to Orbax"
    ):
        merging.merge_to_orbax(made, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m0"]
    merging.merge_to_pool(made, f"{tmp_path}/pool:soup")
    np.testing.assert_array_equal(merging.open_model(f"{tmp_path}/pool:soup").read(name), weights(1))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m0", "pool"]


@pytest.mark.parametrize("names", [("a.b", "a.c.d", "e"), ("x/a.b", "x/a.c"), ("a", "a.b", "c/d"), ("a" * 255,)])
def test_names_with_places_pass(linear_of, small, names):
    check_names(small.plan(linear_of({name: weights(1) for name in names})))


# --- One at a time ---


HOLD = """
import pathlib, sys, time
from soups.files import locked
with locked(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Yield a process that holds the lock of `out`."""
    command = [sys.executable, "-c", HOLD, str(tmp_path / "out")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_the_second_says_who_holds_the_place_and_a_killed_one_holds_nothing(holder, recipe, small, tmp_path):
    with pytest.raises(
        BlockingIOError, match=rf"another merge is writing to .*: process {holder.pid} on \S+, since \d"
    ):
        small.merge(recipe, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    small.merge(recipe, tmp_path / "other")
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    assert (tmp_path / ".out.lock").exists()  # but nobody holds it
    small.merge(recipe, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "out"]


def test_a_failed_merge_leaves_the_place_free(recipe, small, tmp_path):
    def fail(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        small.merge(recipe, tmp_path / "out", progress=fail)
    assert not (tmp_path / ".out.lock").exists()
    small.merge(recipe, tmp_path / "out")


def test_threads_take_turns_without_ever_being_two(tmp_path):
    inside, most, refused = [], [], []

    def work():
        for _ in range(200):
            try:
                with locked(tmp_path / "out"):
                    inside.append(1)
                    most.append(len(inside))
                    inside.pop()
            except BlockingIOError:
                refused.append(1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(most) + len(refused) == 800 and max(most) == 1
