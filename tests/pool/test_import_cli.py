"""Test the import of published weights into a pool by the command line."""

import json
import os
import pathlib

import numpy as np
import pytest
from miniature import tensors, torch_zip

from soups.cli import main
from soups.models.architectures import architecture
from soups.models.import_weights import import_weights
from soups.pool import Pool

ROOT = pathlib.Path(__file__).parents[2]
ARCH = "clip-vit-mini"


@pytest.fixture
def cli(monkeypatch, capsys):
    """Return a function that runs `soups pool import` and returns (exit code, output, errors)."""
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments):
        arch = [] if "--arch" in arguments else ["--arch", ARCH]
        return main(["pool", "import", *arch, *map(str, arguments)]), *capsys.readouterr()

    return run


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """Return a function that writes a published file of random weights, and gives its tensors."""
    rng = np.random.default_rng(0)
    text = tensors.text_tensors(520, 64, 2, 64, rng)

    def write(path, seed, num_classes=20):
        abstract = architecture(ARCH).abstract(num_classes)
        params = tensors.random_weights(abstract, np.random.default_rng(seed))
        named = tensors.classifier_tensors(params, text)
        torch_zip.write_state_dict(path, named)
        return named

    return write


@pytest.fixture
def files(tmp_path, published):
    """Return three published files; the last is the second again."""
    for index, seed in enumerate((0, 1, 1)):
        published(tmp_path / f"model_{index}.pt", seed)
    return [tmp_path / f"model_{index}.pt" for index in range(3)]


def test_members_have_the_numbers_of_the_files_and_say_where_they_are_from(cli, tmp_path, files):
    (tmp_path / "hparams.json").write_text(json.dumps({f"model_{i}": {"lr": 10.0**-i} for i in range(4)}))
    code, out, err = cli("--pool", tmp_path / "pool", "--hparams", tmp_path / "hparams.json", *files)
    assert (code, err) == (0, "")
    assert "model_1: " in out and "(2/3)" in out
    assert "the same weights: model_1 = model_2" in out
    pool = Pool(tmp_path / "pool")
    assert pool.names == ["model_0", "model_1", "model_2"]
    metadata = pool.record("model_1")["metadata"]
    assert metadata["arch"] == ARCH
    assert metadata["hparams"] == {"lr": 0.1}
    assert metadata["source"]["file"] == str(files[1])
    assert metadata["source"]["size"] == files[1].stat().st_size
    expected = import_weights(files[1], ARCH)
    np.testing.assert_array_equal(pool["model_1"]["head"]["kernel"], expected["head"]["kernel"])
    np.testing.assert_array_equal(pool["model_1"]["embedding"]["kernel"], expected["embedding"]["kernel"])


def test_what_is_there_is_left_and_the_rest_is_imported(cli, tmp_path, files):
    assert cli("--pool", tmp_path / "pool", *files[:2])[0] == 0
    before = [Pool(tmp_path / "pool").record(name) for name in ("model_0", "model_1")]
    os.utime(files[0])  # of another time, but with the same bytes
    code, out, _ = cli("--pool", tmp_path / "pool", *files)
    assert code == 0
    assert "2 of 3 are there already" in out
    assert "model_2: " in out and "model_0: " not in out
    assert [Pool(tmp_path / "pool").record(name) for name in ("model_0", "model_1")] == before


def test_a_member_from_another_file_is_not_taken_for_this_one(cli, tmp_path, files, published):
    assert cli("--pool", tmp_path / "pool", files[0])[0] == 0
    before = files[0].stat()
    published(files[0], seed=7)
    os.utime(files[0], ns=(before.st_atime_ns, before.st_mtime_ns))  # of the same size and time
    code, _, err = cli("--pool", tmp_path / "pool", *files)
    assert code == 2
    assert "has a member 'model_0' that is not" in err
    assert Pool(tmp_path / "pool").names == ["model_0"]


def test_all_headers_are_checked_before_anything_is_imported(cli, tmp_path, files, published):
    named = published(files[1], seed=3)
    del named["model.visual.proj"]
    named["model.visual.ln_pre.weight"] = np.ones(7, np.float32)
    torch_zip.write_state_dict(files[1], named)
    files[2].write_bytes(files[2].read_bytes()[:1000])
    code, _, err = cli("--pool", tmp_path / "pool", *files)
    assert code == 2
    for part in (
        f"{files[1]} does not hold",
        "- model.visual.proj is missing",
        "~ model.visual.ln_pre.weight has shape (7,)",
        f"{files[2]} is not a whole zip archive",
    ):
        assert part in err
    assert not (tmp_path / "pool").exists()


def test_heads_of_other_classes_than_the_pool_are_refused(cli, tmp_path, files, published):
    assert cli("--pool", tmp_path / "pool", files[0])[0] == 0
    published(tmp_path / "other.pt", seed=0, num_classes=10)
    code, _, err = cli("--pool", tmp_path / "pool", tmp_path / "other.pt")
    assert code == 2
    assert "head/kernel" in err
    assert Pool(tmp_path / "pool").names == ["model_0"]


def test_user_errors_come_before_any_work(cli, tmp_path, files, published):
    (tmp_path / "again").mkdir()
    published(tmp_path / "again" / "model_0.pt", seed=5)
    (tmp_path / "few.json").write_text('{"model_0": {}}')
    (tmp_path / "broken.json").write_text("{")
    for arguments, message in [
        ((*files, tmp_path / "again" / "model_0.pt"), "two files would be member 'model_0'"),
        ((*files, tmp_path / "none.pt"), "none.pt"),
        (("--hparams", tmp_path / "few.json", *files), "does not give the hyper-parameters of model_1, model_2"),
        (("--hparams", tmp_path / "broken.json", *files), "is not valid JSON"),
        (("--num_classes", 7, *files), "classes, not 7"),
        (("--arch", "clip-vit-mimi", *files), "did you mean 'clip-vit-mini'?"),
    ]:
        code, out, err = cli("--pool", tmp_path / "pool", *arguments)
        assert (code, out) == (2, "")
        assert err.startswith("soups pool: ") and message in err
    assert not (tmp_path / "pool").exists()
