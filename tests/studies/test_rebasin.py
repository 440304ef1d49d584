"""Run the experiment on independent networks, small; lose some of its work; configure it wrongly."""

import copy
import json
import pathlib
import shutil

import jax
import numpy as np
import pytest

from soups import Pool, models
from soups.data import digits_task
from soups.models.permutation_specs import permutation_spec
from soups.plugins import importable, load_plugin
from soups.report import load_results
from soups.studies import rebasin

MLP, CNN = "MLP 7", "CNN 4"
CONFIG = pathlib.Path(__file__).parents[2] / "configs" / "rebasin.py"


def default_config():
    return load_plugin(CONFIG).get_config().to_dict()


def small_config(data_dir=None):
    config = default_config()
    config["data_dir"] = None if data_dir is None else str(data_dir)
    config["task"] |= {"image_size": 8, "num_train": 80, "num_held_out": 60, "num_test": 60}
    config["training"]["batch_size"] = 20
    config["paths"] = {"pairs": 1, "points": 3}
    config["matching"]["examples"] = 60
    config["straight_through"] |= {"steps": 3, "batch_size": 20}
    config["evaluate"] = {"batch_size": 60, "train_examples": 60}
    mlp, cnn = config["networks"]["mlp_256"], config["networks"]["cnn_32"]
    mlp |= {"widths": (7,), "members": 2, "epochs": 8, "learning_rate": 0.03, "soup_sizes": (2,)}
    cnn |= {"widths": (4,), "members": 2, "epochs": 3, "soup_sizes": (), "matchings": ("naive", "weight")}
    config["networks"] = {"mlp": mlp, "cnn": cnn}
    return config


@pytest.fixture(scope="module")
def made(digits_dir, tmp_path_factory):
    """Return the directory and the results of a finished run, and the paths that it gave."""
    directory = tmp_path_factory.mktemp("rebasin") / "run"
    paths = rebasin.run(small_config(digits_dir), directory)
    return directory, json.loads((directory / "results.json").read_text()), paths


def data_of(digits_dir, seed=0):
    sizes = {"image_size": 8, "num_train": 80, "num_held_out": 60, "num_test": 60}
    return digits_task(target="mnist_5k", **sizes, shifts={}, natural_shift_size=1, seed=seed, data_dir=digits_dir)[0]


def mlp_metrics(params, dataset):
    """Compute the network in float64, and its accuracy and NLL by a loop over the examples."""
    x = dataset.images.reshape(len(dataset), -1) / 255.0
    x = np.maximum(x @ np.float64(params["layer_0"]["kernel"]) + params["layer_0"]["bias"], 0)
    logits = x @ np.float64(params["head"]["kernel"]) + params["head"]["bias"]
    losses, right = [], []
    for row, label in zip(logits, dataset.labels, strict=True):
        losses.append(np.log(np.exp(row - row.max()).sum()) + row.max() - row[label])
        right.append(row.argmax() == label)
    return {"accuracy": np.mean(right), "nll": np.mean(losses)}


def pair_of(results, network, matching, statistics="as averaged"):
    of = {"network": network, "matching": matching, "statistics": statistics}
    (pair,) = (pair for pair in results["pairs"] if pair["of"].items() >= of.items())
    return pair


def soup_of(results, size, name):
    (row,) = (row for row in results["rows"] if (row["of"]["models"], row["name"]) == (size, name))
    return row["metrics"]


def test_everything_is_there(made):
    directory, results, paths = made
    networks = results["facts"]["Networks"]
    assert list(networks) == ["mlp", "cnn"]
    assert networks["mlp"]["parameters"] == 64 * 7 + 7 + 7 * 10 + 10
    found = {(pair["of"]["network"], pair["of"]["matching"]) for pair in results["pairs"]}
    methods = ("naive", "weight", "activation", "straight_through")
    assert found == {*((MLP, method) for method in methods), (CNN, "naive"), (CNN, "weight")}
    soups = ("uniform soup", "aligned to the first", "MergeMany")
    names = {"mean member", "best member", "ensemble", *soups, *(f"{name}, repaired" for name in soups)}
    assert {row["name"] for row in results["rows"]} == names and len(results["rows"]) == len(names)
    assert {"mlp_training", "mlp_pair_0_weight", "mlp_soups_of_2"} <= set(results["timings"]["0"])
    for path in ("results.json", "report.html", "figures/overview.png", "figures/paths.png", "pools"):
        assert str(directory / path) in paths and (directory / path).exists()


def test_members_differ_from_the_first_step_on(made):
    directory, _, _ = made
    pool = Pool(directory / "pools" / "mlp")
    kernels = [np.asarray(pool[name]["layer_0"]["kernel"]) for name in pool]
    assert len(kernels) == 2
    cosine = np.vdot(kernels[0], kernels[1]) / (np.linalg.norm(kernels[0]) * np.linalg.norm(kernels[1]))
    assert abs(cosine) < 0.5  # from one start they would still be close after so few steps
    assert len({pool.record(name)["metadata"]["config"]["seed"] for name in pool}) == 2


def test_naive_path_is_what_numpy_computes(made, digits_dir):
    directory, results, _ = made
    pool, test = Pool(directory / "pools" / "mlp"), data_of(digits_dir).test
    a, b = pool["seed0_00"], pool["seed0_01"]
    path = pair_of(results, MLP, "naive")["path"]["test"]
    for place, weight in enumerate((0.0, 0.5, 1.0)):
        mixed = {
            layer: {kind: (1 - weight) * np.float64(a[layer][kind]) + weight * b[layer][kind] for kind in a[layer]}
            for layer in a
        }
        expected = mlp_metrics(mixed, test)
        assert path["accuracy"][place] == pytest.approx(expected["accuracy"], abs=1e-9)
        assert path["nll"][place] == pytest.approx(expected["nll"], rel=1e-5)


def test_matching_keeps_the_function_of_both_ends(made):
    _, results, _ = made
    for pair in results["pairs"]:
        naive = pair_of(results, pair["of"]["network"], "naive", pair["of"]["statistics"])
        assert naive["values"]["moved units"] == naive["values"]["change of a logit"] == 0
        assert pair["values"]["change of a logit"] < 1e-5
        for end in (0, -1):
            assert pair["path"]["test"]["nll"][end] == pytest.approx(naive["path"]["test"]["nll"][end], rel=1e-4)
    assert pair_of(results, MLP, "weight")["values"]["moved units"] > 0


def test_only_networks_with_batch_norm_have_repaired_paths(made):
    _, results, _ = made
    assert {p["of"]["statistics"] for p in results["pairs"] if p["of"]["network"] == MLP} == {"as averaged"}
    plain, repaired = (pair_of(results, CNN, "weight", kind) for kind in ("as averaged", "re-estimated"))
    assert plain["path"]["train"]["nll"] != repaired["path"]["train"]["nll"]


def test_soup_of_two_is_the_middle_of_their_path(made):
    _, results, _ = made
    for name, matching in (("uniform soup", "naive"), ("aligned to the first", "weight")):
        path = pair_of(results, MLP, matching)["path"]
        # with one hidden layer weight matching is one assignment problem, so both ways find the same
        for split in ("train", "test"):
            for metric in ("accuracy", "nll"):
                assert soup_of(results, 2, name)[split][metric] == pytest.approx(path[split][metric][1], rel=1e-4)
    assert soup_of(results, 2, "uniform soup, repaired") != soup_of(results, 2, "uniform soup")


def test_baselines_are_what_numpy_computes(made, digits_dir):
    directory, results, _ = made
    pool, task = Pool(directory / "pools" / "mlp"), data_of(digits_dir)
    members = [pool[f"seed0_0{index}"] for index in range(2)]
    test = [mlp_metrics(params, task.test) for params in members]
    held_out = [mlp_metrics(params, task.held_out)["accuracy"] for params in members]
    mean = soup_of(results, 2, "mean member")["test"]
    assert mean["accuracy"] == pytest.approx(np.mean([m["accuracy"] for m in test]))
    assert mean["nll"] == pytest.approx(np.mean([m["nll"] for m in test]), rel=1e-5)
    best = soup_of(results, 2, "best member")
    assert best["held_out"]["accuracy"] == pytest.approx(max(held_out))
    assert best["test"]["accuracy"] == pytest.approx(test[int(np.argmax(held_out))]["accuracy"])


def test_lost_work_is_done_again_to_the_bit_and_nothing_else(made, digits_dir, tmp_path):
    directory, results, _ = made
    again = tmp_path / "again"
    shutil.copytree(directory, again)
    Pool(again / "pools" / "mlp").remove("seed0_01")
    lost = ("seed0_mlp_training", "seed0_mlp_pair_0_weight", "seed0_mlp_soups_of_2", "seed0_mlp_members")
    for name in lost:
        (again / "stages" / f"{name}.json").unlink()
    kept = {path: path.stat().st_mtime_ns for path in (again / "stages").iterdir()}
    rebasin.run(small_config(digits_dir), again)
    there = json.loads((again / "results.json").read_text())
    for pair in (*there["pairs"], *results["pairs"]):
        del pair["values"]["seconds"]
    assert there["pairs"] == results["pairs"] and there["rows"] == results["rows"]
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


# --- The config ---


def test_the_default_config_can_be_run():
    rebasin.check_config(default_config())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["paths"].update(pair=3), r"paths.pair is unknown \(did you mean 'paths.pairs'"),
        (lambda c: c["networks"]["mlp"].pop("epochs"), "networks.mlp.epochs is missing"),
        (
            lambda c: c["networks"]["cnn"].update(kind="cnm"),
            r"unknown config\.networks\.cnn\.kind 'cnm' .did you mean 'cnn'",
        ),
        (lambda c: c["networks"]["mlp"].update(matchings=("wieght",)), "did you mean 'weight'"),
        (lambda c: c["paths"].update(pairs=2), "networks.mlp: 2 members, but the pairs and the soups need 4"),
        (lambda c: c["networks"]["mlp"].update(soup_sizes=(2, 9)), "2 members, but the pairs and the soups need 9"),
        (lambda c: c["networks"]["mlp"].update(soup_sizes=(1,)), "a soup has at least 2 members, not 1"),
        (lambda c: c["paths"].update(points=4), "paths.points must be odd, .* not 4"),
        (lambda c: c.update(seeds=0), "seeds must be a whole number, at least 1, not 0"),
        (lambda c: c.update(networks={}), "at least one is needed"),
        (lambda c: c["networks"].update({"m/p": c["networks"]["mlp"]}), "'m/p' becomes part of file names"),
        (lambda c: c["matching"].update(examples=81), "matching.examples must be 1 to task.num_train = 80, not 81"),
    ],
)
def test_a_config_that_cannot_be_run_is_one_error_before_any_work(change, message, tmp_path):
    config = copy.deepcopy(small_config())
    change(config)
    with pytest.raises(ValueError, match=message):
        rebasin.run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_members_that_diverged_stop_the_run(digits_dir, tmp_path):
    config = small_config(digits_dir)
    del config["networks"]["cnn"]
    config["networks"]["mlp"] |= {"learning_rate": 3e38}
    with pytest.raises(ValueError, match=r"diverged: seed0_00, seed0_01; lower networks\.mlp\.learning_rate"):
        rebasin.run(config, tmp_path / "run")


def test_more_images_than_there_are(digits_dir, tmp_path):
    config = small_config(digits_dir)
    config["task"]["num_train"] = 6000
    with pytest.raises(ValueError, match="6000"):
        rebasin.run(config, tmp_path / "run")


def test_another_config_in_the_same_directory(made, digits_dir):
    directory, _, _ = made
    config = small_config(digits_dir)
    config["straight_through"]["steps"] = 4
    with pytest.raises(ValueError, match=r"straight_through\.steps: 3 there, 4 now"):
        rebasin.run(config, directory)


OWN = """
import flax.linen as nn, numpy as np
from soups.data import Dataset, Task

CLASSES = ("a", "b", "c")

def dataset(seed, count):
    images = np.random.default_rng(seed).integers(0, 256, (count, 6, 6, 1))
    return Dataset(images.astype(np.uint8), (np.arange(count) % 3).astype(np.int32), CLASSES)

def task(seed):
    return Task("own", CLASSES, dataset(seed, 40), dataset(100, 30), dataset(200, 30), {})

class Unruly(nn.Module):
    num_classes: int
    widths: tuple

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(self.widths[0], name="hidden")(x.reshape(len(x), -1)))
        return nn.Dense(self.num_classes, name="head")(x)

class Net(Unruly):
    def permutation_rules(self, residual):
        rows = [("hidden/kernel", (None, "hidden")), ("hidden/bias", ("hidden",))]
        return [*rows, ("head/kernel", ("hidden", None)), ("head/bias", (None,))]
"""


def test_data_and_networks_of_ones_own_and_paths_of_other_lengths(tmp_path, undrawn):
    (tmp_path / "own_units.py").write_text(OWN)
    config = small_config() | {"task": "own_units:task", "evaluate": {"batch_size": 30, "train_examples": 40}}
    config |= {"straight_through": {"steps": 2, "batch_size": 20, "learning_rate": 1.0}, "matching": {"examples": 40}}
    own = config["networks"]["mlp"] | {"kind": "own_units:Net", "epochs": 1}
    config["networks"] = {"mine": own}
    with importable(tmp_path):
        rebasin.run(config, tmp_path / "run")
        results = load_results(tmp_path / "run")
        assert {pair["of"]["network"] for pair in results["pairs"]} == {"NET 7"}
        moved = {pair["of"]["matching"]: pair["values"]["moved units"] for pair in results["pairs"]}
        assert moved["naive"] == 0 < moved["weight"] and len(moved) == 4
        stages = {path: path.stat().st_mtime_ns for path in (tmp_path / "run" / "stages").iterdir()}
        rebasin.run(config | {"paths": {"pairs": 1, "points": 5}}, tmp_path / "run")
        again = [path.stem for path, made in stages.items() if path.stat().st_mtime_ns != made]
        assert sorted(again) == sorted(f"seed0_mine_pair_0_{matching}" for matching in moved)
        assert {len(pair["lambdas"]) for pair in load_results(tmp_path / "run")["pairs"]} == {5}
        config["networks"] = {"mine": own | {"kind": "own_units:Unruly"}}
        with pytest.raises(ValueError, match="no permutation spec for Unruly"):
            rebasin.run(config, tmp_path / "other")


def test_permutations_are_called_as_the_modules_whose_activations_are_matched():
    for model, shape in ((models.MLP(10, widths=(7, 6)), (8, 8, 1)), (models.ConvNet(10, widths=(4, 5)), (8, 8, 1))):
        params = models.init(model, jax.random.key(0), shape)
        axes = {axis for entry in permutation_spec(model, params).values() for axis in entry if axis}
        tops = set(params.get("params", params)) - {"head"}
        assert axes == tops
