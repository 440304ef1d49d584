"""Test the command line that writes logits for a folder of images."""

import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest
from miniature import tensors, torch_zip

from soups.cli import main
from soups.models.architectures import architecture
from soups.pool import Pool

ARCH = "clip-vit-mini"


@pytest.fixture
def cli(capsys):
    """Return a function that runs `soups predict` and returns (exit code, output, errors)."""

    def run(*arguments):
        return main(["predict", *map(str, arguments)]), *capsys.readouterr()

    return run


@pytest.fixture(scope="module")
def params():
    return tensors.random_weights(architecture(ARCH).abstract(20), np.random.default_rng(0))


@pytest.fixture
def pool(tmp_path, params):
    pool = Pool(tmp_path / "pool")
    pool.add("known", params, {"arch": ARCH})
    pool.add("soup", {**params, "head": {**params["head"], "bias": np.arange(20, dtype=np.float32)}})
    return pool.path


@pytest.fixture
def images(tmp_path):
    """Return a folder of five images of several kinds in folders of folders, and files that are none."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "images"
    for name, shape in {
        "b.png": (40, 33, 3),
        "a/z.JPEG": (32, 64, 3),
        "a/deep/y.jpg": (50, 50),
        "c.png": (32, 32, 3),
        "a.b.bmp": (36, 90, 3),
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(rng.integers(0, 256, shape, np.uint8)).save(folder / name)
    (folder / "notes.txt").write_text("no image")
    (folder / ".hidden.png").write_text("no image")
    return folder


def by_pillow(path):
    """Resize and crop as the published preprocessing does, with Pillow alone."""
    with PIL.Image.open(path) as image:
        image = image.convert("RGB")
    short, (width, height) = min(image.size), image.size
    image = image.resize((32 * width // short, 32 * height // short), PIL.Image.Resampling.BICUBIC)
    left, top = round((image.width - 32) / 2), round((image.height - 32) / 2)
    return np.asarray(image.crop((left, top, left + 32, top + 32)), np.float32) / 255


def test_logits_are_those_of_the_images_in_the_order_of_their_names(cli, pool, images, params, tmp_path):
    out = tmp_path / "logits.npz"
    code, _, err = cli("--pool", pool, "--member", "known", "--images", images, "--out", out, "--batch_size", 2)
    assert (code, err) == (0, "")
    written = np.load(out)
    assert written["files"].tolist() == ["a.b.bmp", "a/deep/y.jpg", "a/z.JPEG", "b.png", "c.png"]
    assert written["corrupt"].tolist() == []
    inputs = jnp.stack([by_pillow(images / name) for name in written["files"]])
    expected = architecture(ARCH).apply_fn(20)(params, inputs)
    assert written["logits"].dtype == np.float32
    np.testing.assert_allclose(written["logits"], expected, rtol=1e-4, atol=1e-5)


def test_a_file_of_weights_and_a_soup_of_named_architecture(cli, pool, images, params, tmp_path):
    text = tensors.text_tensors(520, 64, 2, 64, np.random.default_rng(1))
    weights = torch_zip.write_state_dict(tmp_path / "w.pt", tensors.classifier_tensors(params, text))
    common = ("--images", images, "--arch", ARCH)
    assert cli("--weights", weights, "--out", tmp_path / "file.npz", *common)[0] == 0
    assert cli("--pool", pool, "--member", "soup", "--out", tmp_path / "soup.npz", *common)[0] == 0
    file, soup = np.load(tmp_path / "file.npz")["logits"], np.load(tmp_path / "soup.npz")["logits"]
    np.testing.assert_allclose(soup - file, np.tile(np.arange(20.0), (5, 1)), atol=1e-4)


def test_an_architecture_of_ones_own_is_found_in_this_folder(cli, images, params, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_architecture.py").write_text(
        f"from soups.models.architectures import architecture\ndef mine():\n    return architecture({ARCH!r})\n"
    )
    pool = Pool(tmp_path / "own")
    pool.add("member", params, {"arch": "own_architecture:mine"})
    assert cli("--pool", pool.path, "--member", "member", "--images", images, "--out", tmp_path / "own.npz")[0] == 0
    assert np.load(tmp_path / "own.npz")["logits"].shape == (5, 20)


def test_corrupt_images_are_named_and_left_out(cli, pool, images, tmp_path):
    (images / "a" / "z.JPEG").write_bytes((images / "a" / "z.JPEG").read_bytes()[:300])
    out = tmp_path / "logits.npz"
    code, _, err = cli("--pool", pool, "--member", "known", "--images", images, "--out", out)
    assert code == 1
    assert "soups predict: a/z.JPEG is left out: " in err
    written = np.load(out)
    assert written["corrupt"].tolist() == ["a/z.JPEG"]
    assert (len(written["files"]), len(written["logits"])) == (4, 4)


def test_user_errors_are_one_message_and_no_file(cli, pool, images, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "x.png").write_text("no image")
    known = ("--pool", pool, "--member", "known")
    for arguments, message in [
        ((*known, "--images", images, "--batch-size", 0), "--batch-size must be at least 1, not 0"),
        ((*known, "--images", tmp_path / "none"), "there is no folder"),
        ((*known, "--images", tmp_path / "empty"), "holds no images"),
        ((*known, "--images", tmp_path / "broken"), "none of its 1 images can be read"),
        (("--pool", pool, "--member", "knwon", "--images", images), "did you mean 'known'?"),
        (("--pool", pool, "--images", images), "--pool POOL needs --member NAME"),
        (("--pool", pool, "--member", "soup", "--images", images), "give --arch"),
        ((*known, "--arch", "clip-vit-b32", "--images", images), "differ in structure from clip-vit-b32"),
        ((*known, "--arch", "clip-vit-b33", "--images", images), "did you mean"),
        (("--weights", tmp_path / "w.pt", "--images", images), "needs --arch"),
        (("--weights", tmp_path / "w.pt", "--arch", ARCH, "--images", images), "w.pt"),
    ]:
        code, _, err = cli(*arguments, "--out", tmp_path / "out.npz")
        assert code == 2
        assert err.startswith("soups predict: ") and message in err
    assert not (tmp_path / "out.npz").exists()
    for out in (tmp_path, tmp_path / "none" / "out.npz"):
        code, _, err = cli(*known, "--images", images, "--out", out)
        assert (code, err) == (2, f"soups predict: --out {out}: name a file in an existing folder\n")
