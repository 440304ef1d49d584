"""Load the network that the package ships: a small ViT that tells rendered characters apart (docs/glyphs.md)."""

import json
import os
import pathlib
from collections.abc import Sequence

import numpy as np

from soups.formats import open_checkpoint
from soups.formats.tensors import nested
from soups.models.network import Network
from soups.models.vit import ViT
from soups.shipped import shipped
from soups.tree import Tree

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
