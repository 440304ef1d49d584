"""Test the command that makes a zero-shot classifier from a CLIP file, a vocabulary and names."""

import functools
import gzip
import pathlib

import jax
import numpy as np
import pytest

from soups import tree
from soups.cli import main
from soups.models.architectures import architecture
from soups.models.clip_text import import_text_tower, text_features
from soups.models.clip_tokenizer import clip_tokenizer
from soups.models.import_weights import import_weights
from soups.pool import load_checkpoint

ROOT = pathlib.Path(__file__).parents[2]
ARCH = "clip-vit-mini"
NAMES, TEMPLATES = ("tench", "crane bird", "toilet paper"), ("a photo of a {}.", "many {} here")
VOCABULARY = 512 + 2 + 2  # the bytes, two merges, the ends


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """Return a function that runs the command on a random CLIP and returns (exit code, output, errors)."""
    monkeypatch.syspath_prepend(str(ROOT / "tests"))
    from miniature import tensors, torch_zip

    network, rng = architecture(ARCH), np.random.default_rng(0)
    text = tensors.text_tensors(VOCABULARY, network.text.width, network.text.depth, network.feature_dim, rng)
    image = tensors.random_weights(network.abstract(None), rng)
    torch_zip.write_state_dict(tmp_path / "clip.pt", tensors.clip_tensors(image, text))
    merges = "#version: 0.2\nc r\na n\n"
    (tmp_path / "bpe_simple_vocab_16e6.txt.gz").write_bytes(gzip.compress(merges.encode()))
    (tmp_path / "names.txt").write_text("\n".join(NAMES) + "\n\n")
    (tmp_path / "templates.txt").write_text("\n".join(TEMPLATES))

    def run(**changes):
        options = {"arch": ARCH, "clip": "clip.pt", "tokenizer": ".", "out": "out", "batch-size": "4"}
        options |= {"classes": "names.txt", "templates": "templates.txt"} | changes
        paths = {name: str(tmp_path / value) for name, value in options.items() if name not in ("arch", "batch-size")}
        given = [part for name, value in (options | paths).items() for part in (f"--{name}", value)]
        return main(["zero-shot", *given]), *capsys.readouterr()

    return run


def test_the_classifier_is_the_image_tower_under_the_head_of_the_texts(command, tmp_path):
    code, out, err = command()
    assert (code, err) == (0, "")
    assert out.splitlines()[-1] == f"wrote {tmp_path / 'out'}: clip-vit-mini, 3 classes from 2 templates"
    made = load_checkpoint(tmp_path / "out")
    image = import_weights(tmp_path / "clip.pt", ARCH)
    tree.check_same_structure([architecture(ARCH).abstract(3), made])
    for name, leaf in tree.flatten(image).items():
        np.testing.assert_array_equal(tree.flatten(made)[name], leaf)

    # all prompts in one call and at full length: the command cuts them to the longest
    tower = import_text_tower(tmp_path / "clip.pt", ARCH)
    tokens = clip_tokenizer(tmp_path)([form.replace("{}", name) for name in NAMES for form in TEMPLATES])
    features = np.asarray(jax.jit(functools.partial(text_features, arch=ARCH))(tower, tokens), np.float64)
    features /= np.sqrt((features**2).sum(axis=1))[:, None]
    means = features.reshape(3, 2, -1).mean(axis=1)
    expected = 100 * means / np.sqrt((means**2).sum(axis=1))[:, None]
    np.testing.assert_allclose(made["head"]["kernel"], expected.T, atol=1e-4)
    np.testing.assert_array_equal(made["head"]["bias"], np.zeros(3))


def test_what_cannot_be_done_is_one_line(command, tmp_path):
    (tmp_path / "taken").mkdir()
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "latin.txt").write_text("pâté", "latin-1")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "bpe_simple_vocab_16e6.txt.gz").write_bytes(gzip.compress(b"#version: 0.2\n"))
    for changes, message in (
        ({"out": "taken"}, "taken exists: choose a new path for the checkpoint"),
        ({"classes": "latin.txt"}, "latin.txt is not text in UTF-8"),
        ({"templates": "latin.txt"}, "latin.txt is not text in UTF-8"),
        ({"classes": "absent.txt"}, "absent.txt is not there"),
        ({"templates": "taken"}, "taken is a directory"),
        ({"classes": "empty.txt"}, "a zero-shot head needs class names, but none were given"),
        ({"templates": "names.txt"}, "a template needs one {} for the name of the class, which these lack: 'tench'"),
        ({"tokenizer": "other"}, f"other has 514 tokens, but {tmp_path / 'clip.pt'} has {VOCABULARY}"),
        ({"tokenizer": "taken"}, "taken has no vocabulary"),
        ({"clip": "absent.pt"}, "absent.pt"),
        ({"arch": "clip-vit-min"}, "did you mean 'clip-vit-mini'?"),
    ):
        code, _, err = command(**changes)
        assert code == 2
        assert err.startswith("soups zero-shot: ") and message in err
        assert not (tmp_path / "out").exists()
