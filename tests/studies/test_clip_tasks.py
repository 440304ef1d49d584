"""Merge tiny CLIPs of several image sets: fine-tuned here, or given as files; a ninth set; wrong configs."""

import gzip
import json
import pathlib

import jax
import numpy as np
import pytest
from PIL import Image

from soups import Pool
from soups.data.clip_sets import CLIP_SETS
from soups.models.architectures import architecture
from soups.models.import_weights import import_weights
from soups.plugins import load_plugin
from soups.report import load_results
from soups.studies import clip_tasks

ROOT = pathlib.Path(__file__).parents[2]
ARCH = "clip-vit-mini"
FOLDERS = {"MNIST": ("0", "1", "2"), "EuroSAT": ("Forest", "River"), "DTD": ("banded", "dotted")}


def draw(folder, classes, count, rng):
    for number, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for index in range(count):
            pixels = rng.integers(0, 100, (32, 32, 3)) + 60 * number
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{index}.png")


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """Return a folder with sets, a random CLIP and its vocabulary."""
    folder, rng = tmp_path_factory.mktemp("sets"), np.random.default_rng(0)
    for name, classes in FOLDERS.items():
        draw(folder / CLIP_SETS[name].train, classes, 12, rng)
        draw(folder / CLIP_SETS[name].test, classes, 6, rng)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "tests"))
        from miniature import tensors, torch_zip

        network = architecture(ARCH)
        text = tensors.text_tensors(514, network.text.width, network.text.depth, network.feature_dim, rng)
        for name in ("start", "MNIST", "EuroSAT"):
            image = tensors.random_weights(network.abstract(None), rng)
            torch_zip.write_state_dict(folder / f"{name}.pt", tensors.clip_tensors(image, text))
    (folder / "bpe_simple_vocab_16e6.txt.gz").write_bytes(gzip.compress(b"#version: 0.2\n"))
    return folder


def small(data_dir, **changes):
    config = json.loads(json.dumps(load_plugin(ROOT / "configs" / "clip_tasks.py").get_config().to_dict()))
    config |= {"arch": ARCH, "tasks": ["MNIST", "EuroSAT"], "ninth": "DTD", "data_dir": str(data_dir)}
    config |= {"start": str(data_dir / "start.pt"), "tokenizer": str(data_dir)}
    config |= {"splits": {"most": 12, "most_held_out": 6, "most_test": 10}, "examples": {"few": 4, "batch_size": 4}}
    config["methods"] = {"uniform": {}, "localize_dataless": {"density": [0.1]}, "emr": {}}
    return config | changes


def rows_of(workdir):
    return {row["name"]: row["metrics"] for row in load_results(workdir)["rows"]}


def test_given_members_are_merged_under_heads_of_names(data_dir, tmp_path):
    clip_tasks.run(small(data_dir, members=str(data_dir / "{task}.pt")), tmp_path / "given")
    rows, pool, merged = rows_of(tmp_path / "given"), Pool(tmp_path / "given/pool"), Pool(tmp_path / "given/merged")
    assert [*rows] == [
        *("base with the members' heads", "zero-shot CLIP", "individual members"),
        *("uniform soup", "Localize-and-Stitch, dataless", "EMR"),
    ]
    assert rows["base with the members' heads"] == rows["zero-shot CLIP"]
    trunks = [import_weights(data_dir / f"{name}.pt", ARCH) for name in ("MNIST", "EuroSAT")]
    mean = jax.tree.map(lambda a, b: (a + b) / 2, *trunks)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), merged["seed0_uniform"], mean)
    head = pool["seed0_EuroSAT"]["head"]
    assert head["kernel"].shape == (64, 3) and head["bias"].tolist() == [0.0, 0.0, -30.0]
    np.testing.assert_allclose(np.linalg.norm(head["kernel"][:, :2], axis=0), 100.0, rtol=1e-5)
    assert all(0 <= metrics["DTD"]["accuracy"] <= 1 for metrics in rows.values())
    splits = load_results(tmp_path / "given")["splits"]
    assert splits["DTD"]["role"] == "shift" and splits["DTD"]["examples"] == 10


def test_members_are_fine_tuned_where_none_are_given_and_heads_stay(data_dir, tmp_path, undrawn):
    tune = {"learning_rate": 1e-3, "weight_decay": 0.0, "epochs": 1, "batch_size": 6}
    config = small(data_dir, finetune=tune, joint={"learning_rates": [1e-3], "batch_size": 3}, ninth=None)
    config["methods"] = {"uniform": {}}
    clip_tasks.run(config, tmp_path / "tuned")
    pool, joint = Pool(tmp_path / "tuned" / "pool"), Pool(tmp_path / "tuned" / "joint")
    assert [*rows_of(tmp_path / "tuned")][3:] == ["multi-task learning", "uniform soup"]
    for index, name in enumerate(("MNIST", "EuroSAT")):
        member, start = pool[f"seed0_{name}"], joint["seed0_probed"]
        np.testing.assert_array_equal(member["head"]["kernel"], start["head"]["kernel"][index])
        assert np.any(member["embedding"]["kernel"] != start["embedding"]["kernel"])
    np.testing.assert_array_equal(joint["seed0_joint_0"]["head"]["kernel"], joint["seed0_probed"]["head"]["kernel"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": ["MNIST"]}, "config.tasks must name at least two sets"),
        ({"ninth": "MNIST"}, "and config.ninth none of them"),
        ({"tasks": ["MNIST", "CIFAR"]}, "unknown set in config.tasks or config.ninth 'CIFAR'"),
        ({"members": None}, "config must have either members, files of fine-tuned encoders, or a section finetune"),
        ({"members": "one.pt"}, "config.members must be a path with {task} in it"),
        ({"arch": "vit-b16"}, "config.arch 'vit-b16' has no text tower"),
    ],
)
def test_configs_that_cannot_run_are_errors(data_dir, tmp_path, changes, message):
    config = small(data_dir, members=str(data_dir / "{task}.pt")) | changes
    with pytest.raises(ValueError, match=message):
        clip_tasks.run(config, tmp_path / "run")
