"""Load released big_vision and AugReg checkpoints (.npz) into the ViT of this library."""

import math
import pathlib
import re

import numpy as np

from soups import tree
from soups.files import PathLike
from soups.formats import CheckpointError, open_checkpoint
from soups.formats.tensors import listed, nested
from soups.tree import Tree

# older checkpoints number the modules of a block by call, and keep the position embedding in the encoder
RENAMES = (
    (r"(.*/encoderblock_\d+)/LayerNorm_2/(.*)", r"\1/LayerNorm_1/\2"),
    (r"(.*/encoderblock_\d+)/MultiHeadDotProductAttention_1/(.*)", r"\1/MultiHeadDotProductAttention_0/\2"),
    (r"(.*/encoderblock_\d+)/MlpBlock_3/(.*)", r"\1/MlpBlock_0/\2"),
    (r"Transformer/(?:posembed_input/)?pos_embedding", r"pos_embedding"),
)


def load_big_vision(path: PathLike, like: Tree, *, keep: str | None = None, part: str | None = None) -> Tree:
    """Read the weights of a ViT from an .npz file with names such as "params/Transformer/encoder_norm/scale".

    `like`: weights of the network to load into, as from `soups.models.init`; the result has its structure and dtypes.
    `keep`: a regex of leaves that are taken from `like` instead of the file, such as "head/.*" for another number of
    classes. `part`: the network to take from a file of several, such as "img" for the image tower of SigLIP. The first
    AugReg releases (Steiner et al., 2021, arXiv:2106.10270) have older names, which are translated.

    A ValueError for another file, a `part` or a `keep` that it does not have; it lists names or shapes other than those
    of `like`: "-" the file lacks, "+" it has more.
    """
    # copies: what is mapped may lie unaligned
    leaves = {name: np.array(leaf) for name, leaf in read_leaves(path, part).items()}
    if keep is not None:
        kept = tree.flatten(tree.select(like, keep))
        leaves = {name: leaf for name, leaf in leaves.items() if not re.fullmatch(keep, name)} | kept
    loaded = nested(leaves)
    tree.check_same_structure([like, loaded], ["like", pathlib.Path(path).name], dtypes=False)
    return tree.cast_like(loaded, like)


def read_leaves(path, part: str | None = None) -> dict[str, np.ndarray]:
    """Map the weights of a ViT from an .npz file, by today's names; arguments and errors as in `load_big_vision`."""
    try:
        file = open_checkpoint(path)
    except CheckpointError as error:
        raise ValueError(f"{path} is not an .npz file of arrays: {error}") from error
    leaves = {name: file.read(name) for name in file.leaves}
    prefixes = ("params/", "opt/target/") if part is None else (f"params/{part}/", f"{part}/")
    for prefix in prefixes:
        if inside := {name.removeprefix(prefix): leaf for name, leaf in leaves.items() if name.startswith(prefix)}:
            return _renamed(inside)
    if part is not None:
        tops = sorted({name.removeprefix("params/").split("/")[0] for name in leaves})
        raise ValueError(f"{path} has no part {part!r}, only {listed(tops)}")
    return _renamed(leaves)


def _renamed(leaves):
    for pattern, replacement in RENAMES:
        leaves = {re.sub(f"^{pattern}$", replacement, name): leaf for name, leaf in leaves.items()}
    position = leaves.get("pos_embedding")
    tokens = position.shape[1] if position is not None and position.ndim == 3 else 0
    if tokens and "cls" in leaves and math.isqrt(tokens - 1) ** 2 == tokens - 1:
        # older networks added a position to the class token too: the sum of both is its value today
        leaves["cls"] = leaves["cls"] + position[:, :1]
        leaves["pos_embedding"] = position[:, 1:]
    return leaves
