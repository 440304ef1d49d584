"""Run the multi-task experiment, small, from start to report; go on with it; configure it wrongly."""

import json
import pathlib

import jax
import numpy as np
import pytest

from soups import Pool, tree
from soups.models.many_heads import split_head
from soups.plugins import importable, load_plugin
from soups.studies import multi_task

_CONFIG = pathlib.Path(__file__).parents[2] / "configs" / "digits_tasks.py"
TASKS = ("parity", "source", "rotation")
METHODS = {
    "uniform": {},
    "slerp": {"scope": ["leaf"]},
    "task_arithmetic": {"scale": [0.0, 0.3, 1.0]},
    "regmean": {"alpha": [0.9]},
    "localize_and_stitch": {"density": [0.2], "epochs": [1], "learning_rate": [1e6], "l1_strength": [1.0]},
    "emr": {},
}


def small_config(data_dir):
    """Return configs/digits_tasks.py with everything small."""
    config = load_plugin(_CONFIG).get_config().to_dict()
    config["data_dir"] = str(data_dir)
    config["tasks"] |= {"image_size": 14, "num_train": 64, "num_held_out": 40, "num_test": 50, "num_pretraining": 64}
    config["tasks"]["names"] = list(TASKS)
    config["model"] |= {"width": 16, "depth": 1, "mlp_dim": 16, "num_heads": 2}
    config["pretrain"]["epochs"] = 2
    config["finetune"] |= {"epochs": 3, "batch_size": 32, "learning_rate": 3e-3}
    config["joint"] = {"learning_rates": [1e-3, 3e-3], "batch_size": 16}
    config["examples"] = {"few": 8, "batch_size": 8}
    return config | {"methods": METHODS}


@pytest.fixture(scope="module")
def finished(digits_dir, tmp_path_factory):
    """Return the config and the directory of a finished run, and its results."""
    directory, config = tmp_path_factory.mktemp("tasks"), small_config(digits_dir)
    paths = multi_task.run(config, directory)
    assert all(pathlib.Path(path).exists() for path in paths)
    return config, directory, json.loads((directory / "results.json").read_text())


def rows_of(finished):
    return {row["name"]: row for row in finished[2]["rows"]}


def test_every_row_is_there(finished):
    assert list(rows_of(finished)) == [
        "base with the members' heads",
        "linear probes of the base",
        "individual members",
        "multi-task learning",
        "uniform soup",
        "task arithmetic",
        "RegMean",
        "Localize-and-Stitch",
        "EMR",
    ]
    assert finished[2]["notes"] == ["Left out: SLERP merges exactly 2 members, but there are 3."]
    for name in ("report.html", "figures/overview.png", "figures/by_split.png", "figures/masks.png"):
        assert (finished[1] / name).stat().st_size > 1000


def test_rows_follow_from_the_pools(finished):
    _, directory, _ = finished
    pool, merged = Pool(directory / "pool"), Pool(directory / "merged")
    trunks = [tree.flatten(split_head(pool[f"seed0_{task}"])[0]) for task in TASKS]
    for name, leaf in tree.flatten(merged["seed0_uniform"]).items():
        expected = np.mean([trunk[name].astype(np.float64) for trunk in trunks], axis=0)
        np.testing.assert_allclose(leaf, expected, rtol=1e-5, atol=1e-6)
    record = merged.record("seed0_emr_parity")["metadata"]
    assert record["digests"]["rotation"] == pool.digest("seed0_rotation")


def test_masks_alone_and_stitched(finished):
    _, directory, results = finished
    (masks,), tasks = [curve for curve in results["curves"] if curve["name"] == "Localize-and-Stitch"], TASKS
    base = split_head(Pool(directory / "bases")["seed0_start"])[0]
    stitched = Pool(directory / "merged")["seed0_localize_and_stitch"]
    changed = sum(np.count_nonzero(a != b) for a, b in zip(*map(jax.tree.leaves, (base, stitched)), strict=True))
    sizes = [masks["percent"][task] * results["facts"]["Trunk"]["parameters"] / 100 for task in tasks]
    assert 0.9 * max(sizes) <= changed <= sum(sizes) + 1  # no more than the union of the masks
    assert set(masks["alone"]) == set(tasks)


def test_settings_are_chosen_on_held_out_data(finished):
    rows = rows_of(finished)
    arithmetic, base = rows["task arithmetic"], rows["base with the members' heads"]
    assert arithmetic["settings"]["scale"] in (0.0, 0.3, 1.0)
    assert arithmetic["cost"]["search_points"] == 3
    # a scale of 0 is the base, so the best of the three is no worse
    held_out = [row["metrics"]["held_out"]["accuracy"] for row in (arithmetic, base)]
    assert held_out[0] >= held_out[1] - 1e-9
    assert held_out[0] == pytest.approx(np.mean([arithmetic["metrics"][f"{t}, held-out"]["accuracy"] for t in TASKS]))


def test_scores_are_relative_to_the_members(finished):
    rows = rows_of(finished)
    accuracy = {name: [row["metrics"][task]["accuracy"] for task in TASKS] for name, row in rows.items()}
    assert rows["individual members"]["metrics"]["test"]["normalised"] == 1.0
    for name, row in rows.items():
        ratios = np.array(accuracy[name]) / accuracy["individual members"]
        expected = {"accuracy": np.mean(accuracy[name]), "normalised": ratios.mean()}
        assert row["metrics"]["test"] == pytest.approx(expected)


def test_costs(finished):
    rows, trunk = rows_of(finished), finished[2]["facts"]["Trunk"]
    size, masks = trunk["bytes"], -(-trunk["parameters"] // 8)
    assert size == 4 * trunk["parameters"]
    stored = {name: row["cost"]["bytes"] for name, row in rows.items()}
    assert stored["individual members"] == 3 * size
    assert stored["uniform soup"] == stored["Localize-and-Stitch"] == stored["multi-task learning"] == size
    assert stored["EMR"] == 2 * size + 3 * masks
    taken = {name: (row["cost"]["labelled"], row["cost"]["unlabelled"]) for name, row in rows.items()}
    assert taken["uniform soup"] == (0, 0)
    assert taken["RegMean"] == (0, 3 * 8)
    assert taken["Localize-and-Stitch"] == (3 * 8, 0)
    assert taken["multi-task learning"] == (3 * 64, 0)


def test_finished_work_is_not_repeated(finished):
    config, directory, _ = finished
    kept = {path: path.read_bytes() for path in (directory / "stages").iterdir()}
    (directory / "stages" / "seed0_method_uniform.json").unlink()
    multi_task.run(config, directory)
    for path, content in kept.items():
        if path.stem == "seed0_method_uniform":
            again, before = json.loads(path.read_bytes())["result"], json.loads(content)["result"]
            assert again | {"cost": 0} == before | {"cost": 0}
        else:
            assert path.read_bytes() == content


OWN = """
import flax.linen as nn, numpy as np
from soups.data import Dataset, Task

def dataset(seed, count, classes):
    images = np.random.default_rng(seed).integers(0, 256, (count, 6, 6, 3))
    labels = (images[:, :3].mean((1, 2, 3)) > images[:, 3:].mean((1, 2, 3))).astype(np.int32) % len(classes)
    return Dataset(images.astype(np.uint8), labels, classes)

def tasks(seed, count=20):
    classes = {"upper": ("no", "yes"), "lower": ("a", "b", "c")}
    parts = {name: [dataset(seed + 7 * n + 50 * len(of), count, of) for n in range(3)] for name, of in classes.items()}
    return {name: Task(name, classes[name], *parts[name], {}) for name in classes}, dataset(1000, 30, ("x", "y"))

def unequal():
    made, earlier = tasks(0)
    return made | {"more": Task("more", ("x", "y"), *[dataset(n, 30, ("x", "y")) for n in range(3)], {})}, earlier

def one():
    made, earlier = tasks(0)
    return {"upper": made["upper"]}, earlier

class Net(nn.Module):
    num_classes: int
    width: int = 5

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(self.width, name="first")(x.reshape(len(x), -1)))
        return nn.Dense(self.num_classes, name="head")(nn.relu(nn.Dense(4, name="second")(x)))

class Normalised(Net):
    @nn.compact
    def __call__(self, x, train=False):
        x = nn.BatchNorm(use_running_average=not train)(x.reshape(len(x), -1))
        return nn.Dense(self.num_classes, name="head")(x)
"""


def test_tasks_and_a_network_of_ones_own_and_other_methods(finished, tmp_path, undrawn):
    (tmp_path / "own_tasks.py").write_text(OWN)
    config, directory = dict(finished[0]), tmp_path / "run"
    config |= {
        "tasks": "own_tasks:tasks",
        "model": {"name": "own_tasks:Net", "width": 6},
        "finetune": config["finetune"] | {"batch_size": 10},
    }
    config["methods"] = {"uniform": {}, "regmean_pp": {"alpha": [0.9]}, "task_arithmetic": {"scale": [0.0]}}
    with importable(tmp_path):
        multi_task.run(config, directory)
        results = json.loads((directory / "results.json").read_text())
        assert results["facts"]["Tasks"]["lower"] == {"classes": ["a", "b", "c"], "train": 20}
        assert results["facts"]["Trunk"]["parameters"] == (6 * 6 * 3 + 1) * 6 + (6 + 1) * 4
        base = split_head(Pool(directory / "bases")["seed0_start"])[0]
        jax.tree.map(np.testing.assert_array_equal, Pool(directory / "merged")["seed0_task_arithmetic"], base)
        stages = {path: path.stat().st_mtime_ns for path in (directory / "stages").iterdir()}
        others = config["methods"] | {"task_arithmetic": {"scale": [1.0]}, "ties": {}}
        multi_task.run(config | {"methods": others}, directory)
        changed = [path.stem for path, made in stages.items() if path.stat().st_mtime_ns != made]
        assert changed == ["seed0_method_task_arithmetic"]
        rows = {row["name"]: row for row in json.loads((directory / "results.json").read_text())["rows"]}
        assert "TIES" in rows and rows["task arithmetic"]["settings"] == {"scale": 1.0}
        again = Pool(directory / "merged").record("seed0_task_arithmetic")["metadata"]["settings"]
        assert again == {"scale": 1.0}
        for number, (changes, message) in enumerate(
            (
                ({"tasks": "own_tasks:one"}, "must return a pair: a mapping of at least two soups.data.Task by name"),
                ({"tasks": "own_tasks:unequal"}, "trained together need equally many examples, not"),
                ({"model": "own_tasks:Normalised"}, "must have no state, such as BatchNorm's"),
                ({"model": "own_tasks:Nte"}, "did you mean 'Net'"),
            )
        ):
            with pytest.raises(ValueError, match=message):
                multi_task.run(config | changes, tmp_path / str(number))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"methods": {"tise": {}}}, r"unknown method 'tise' \(did you mean 'ties'\?\)"),
        (
            {"methods": {"ties": {"densty": [1.0]}}},
            r"unknown setting of method ties 'densty' \(did you mean 'density'\?\)",
        ),
        ({"methods": {"ties": {"density": [0.5], "scale": []}}}, "method ties needs at least one value of: scale"),
        ({"methods": {}}, "the config has no methods"),
        ({"joint": {"learning_rate": [1e-3], "batch_size": 8}}, r"joint\.learning_rate is unknown \(did you mean"),
        ({"tasks": {"names": ["digit"]}}, "at least two tasks"),
        ({"examples": {"few": 4, "batch_size": 8}}, r"examples\.few: 8 there, 4 now"),
    ],
    ids=["method", "setting", "no value", "no methods", "field", "one task", "another config"],
)
def test_what_users_do_wrong(finished, change, message, tmp_path):
    config, directory, _ = finished
    if "tasks" in change:
        change = {"tasks": config["tasks"] | change["tasks"]}
    with pytest.raises(ValueError, match=message):
        multi_task.run(config | change, directory if "examples" in change else tmp_path)
