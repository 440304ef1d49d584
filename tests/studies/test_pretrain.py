"""Train one network, measure it, and export its weights: the study of configs/glyphs.py, with everything small."""

import json
import pathlib
import shutil

import jax
import matplotlib
import numpy as np
import pytest

from soups import Pool, state, tree
from soups.cli.run import read_config
from soups.data import Dataset, Task, glyphs_task
from soups.formats import open_checkpoint
from soups.formats.mapping import hash_files
from soups.formats.tensors import nested
from soups.models import glyph_vit, pretrained
from soups.pool import digest
from soups.report import load_results
from soups.studies import pretrain

CONFIG = pathlib.Path(__file__).parents[2] / "configs" / "glyphs.py"


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """Return the config of the package's network for fonts that matplotlib brings along, and a small network."""
    fonts, shipped = tmp_path_factory.mktemp("fonts"), pathlib.Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    # words whose digests lie in test, in held-out, and in train
    for word, of in {"word19": "DejaVuSans", "word0": "DejaVuSerif", "word6": "DejaVuSansMono"}.items():
        shutil.copy(shipped / f"{of}.ttf", fonts / f"{word}-400.ttf")
    families = {path.stem: {path.name: hash_files(path)} for path in fonts.iterdir()}
    lines = [{"family": name, "licence": "OFL-1.1", "files": files} for name, files in families.items()]
    state.write(fonts / "fonts.json", {"families": lines})
    config = read_config(str(CONFIG), [f"--config.task.fonts={fonts}"])
    config["task"] |= {"held_out": 0.3, "test": 0.3}
    config["model"] |= {"width": 16, "depth": 1, "mlp_dim": 16, "num_heads": 2}
    config["pretrain"] |= {"batch_size": 31, "epochs": 30, "augment_magnitude": 1.0}
    return config


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory):
    """Return the directory of a finished run."""
    workdir = tmp_path_factory.mktemp("runs") / "glyphs"
    pretrain.run(config, workdir)
    return workdir


def test_a_run_measures_the_network_and_what_it_exports(config, finished):
    results = load_results(finished)
    rows = {row["name"]: row["metrics"] for row in results["rows"] if row["group"] == "main"}
    assert list(rows) == ["start weights", "trained network", "exported, float16"]
    assert rows["start weights"]["test"]["accuracy"] < 0.1 < rows["trained network"]["test"]["accuracy"]
    assert abs(rows["exported, float16"]["test"]["nll"] - rows["trained network"]["test"]["nll"]) < 0.01
    assert results["reference"] == "trained network" and (finished / "report.html").exists()


def test_the_file_is_the_network_rounded_and_says_what_it_is(config, finished):
    path = finished / "weights.safetensors"
    opened, trained = open_checkpoint(path), tree.flatten(Pool(finished / "pool")["network"])
    assert opened.leaves.keys() == trained.keys()
    for name, leaf in trained.items():
        np.testing.assert_array_equal(opened.read(name), np.asarray(leaf).astype(np.float16))
    about = opened.metadata
    assert about["licences_of_fonts"] == '{"OFL-1.1": 3}'
    assert json.loads(about["pretrain"]) == config["pretrain"] | {"seed": 0}
    assert json.loads(about["task_settings"]) == {"held_out": 0.3, "test": 0.3, "image_size": 28}
    assert json.loads(about["class_names"])[:11] == [*"0123456789A"] and json.loads(about["network"])["width"] == 16
    assert not any(config["task"]["fonts"] in value for value in about.values())  # no path of the machine
    facts = load_results(finished)["facts"]["Exported"]["weights.safetensors"]
    tensors = digest(nested({name: np.asarray(opened.read(name)) for name in opened.leaves}))
    file = {"dtype": "float16", "bytes": path.stat().st_size, "xxh3_128": hash_files(path)}
    assert facts == file | {"tensors_xxh3_128": tensors}


def test_the_shipped_tensors_have_the_digest_that_is_written_down():
    opened = open_checkpoint(pretrained.WEIGHTS)
    tensors = digest(nested({name: np.asarray(opened.read(name)) for name in opened.leaves}))
    assert f"`{tensors}`" in (CONFIG.parents[1] / "docs" / "glyphs.md").read_text()


def test_weights_that_a_dtype_does_not_have_are_refused():
    params = {"head": {"kernel": np.array([1.0, -70_000.0], np.float32)}}
    with pytest.raises(ValueError, match=r"head/kernel has weights of 70,000, which is too large for float16: give"):
        pretrain.narrowed(params, "float16")
    assert pretrain.narrowed(params, "bfloat16")["head"]["kernel"].astype(float).tolist() == [1.0, -70144.0]


def own_task():
    """Return a task of a user's, whose setting `fonts` is no folder."""

    def part(seed):
        images = np.random.default_rng(seed).integers(0, 256, (8, 7, 7, 1)).astype(np.uint8)
        return Dataset(images, np.arange(8, dtype=np.int32) % 2, ("a", "b"))

    return Task("own", ("a", "b"), part(0), part(1), part(2), {}, facts={"source": "dice"})


def test_a_task_of_ones_own_says_what_it_wants(config, tmp_path, monkeypatch, undrawn):
    monkeypatch.setattr(pretrain, "task_of", lambda section, **_: (own_task(), None))
    sections = {"task": {"name": "own", "fonts": "no folder"}, "export": {"dtype": "bfloat16"}}
    pretrain.run(
        config | sections | {"pretrain": config["pretrain"] | {"batch_size": 4, "epochs": 1}}, tmp_path / "run"
    )
    about = open_checkpoint(tmp_path / "run" / "weights.safetensors").metadata
    assert about["source"] == '"dice"' and about["task_settings"] == "{}" and "licences_of_fonts" not in about


def test_the_file_is_what_the_package_can_ship(config, finished, monkeypatch):
    monkeypatch.setattr(pretrained, "WEIGHTS", finished / "weights.safetensors")
    monkeypatch.setattr(pretrained, "DIGEST", hash_files(finished / "weights.safetensors"))
    network, test = glyph_vit(), glyphs_task(**{k: v for k, v in config["task"].items() if k != "name"}).test
    params = network.init(jax.random.key(0), (28, 28, 1))
    logits = network.apply(params, test.images.astype(np.float32) / 255)
    said = json.loads(open_checkpoint(pretrained.WEIGHTS).metadata["accuracy"])["test"]
    np.testing.assert_allclose(np.mean(np.argmax(logits, 1) == test.labels), said, atol=1e-4)


def test_the_same_call_trains_nothing_again(config, finished, monkeypatch, undrawn):
    before = (finished / "weights.safetensors").read_bytes()
    (finished / "weights.safetensors").unlink()
    monkeypatch.setattr("soups.train.sweeps.in_programs", None)
    pretrain.run(config, finished)
    assert (finished / "weights.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"export": {"dtype": "float61"}}, "unknown config.export.dtype 'float61' .did you mean 'float16'"),
        ({"export": {"dtpe": "float16"}}, "export.dtpe is unknown .did you mean 'export.dtype'"),
        ({"export": {"command": "other"}}, "export.command is unknown"),
        ({"seed": "x"}, "config.seed must be a whole number from 0 to 4294967295, not 'x'"),
        ({"seed": -1}, "config.seed must be a whole number from 0 to 4294967295, not -1"),
        ({"task": {"name": "glyphs"}}, "config.task: fonts is missing"),
        ({"task": {"name": "glyphs", "fonts": None}}, "scripts/fetch_fonts.py FOLDER downloads openly licensed ones"),
    ],
)
def test_a_config_that_cannot_be_run_is_refused(config, tmp_path, section, message):
    with pytest.raises(ValueError, match=message):
        pretrain.run(config | section, tmp_path / "run")
