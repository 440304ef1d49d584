"""Open a published file, find out whose names it has, compare it with their table, and make weights of it."""

import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from soups.formats import open_checkpoint
from soups.formats.tensors import Checkpoint, short
from soups.models.architectures import Architecture
from soups.models.load_npz import read_leaves
from soups.models.tables.layouts import Layout
from soups.models.tables.parts import Table
from soups.names import did_you_mean

OPEN_CLIP = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")  # in its folders
MOST_EXTRA = 50  # names in a message
PARALLEL = "module."  # before all names that torch's data-parallel wrappers save
LOGITS = "lm_head.weight"  # which torch saves once more where it is the matrix of the embeddings
OLD_NORMS = re.compile(r"(?<=\.LayerNorm\.)(gamma|beta)$")  # as TensorFlow called what torch calls weight and bias


class Unread:
    """Stand for a tensor that is not mapped but made when it is asked for."""

    def __init__(self, checkpoint: Checkpoint, name: str):
        leaf = checkpoint.leaves[checkpoint.aliases.get(name, name)]
        self.shape, self.dtype, self.ndim, self._read = leaf.shape, leaf.dtype, len(leaf.shape), checkpoint.read
        self._name = name

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """Make the tensor."""
        return self._read(self._name)


def open_tensors(path) -> dict[str, Any]:
    """Return the tensors of a file or folder by name: mapped and not read yet, or `Unread`."""
    path = pathlib.Path(path)
    if path.suffix == ".npz":
        return read_leaves(path)
    path = next((path / name for name in OPEN_CLIP if (path / name).is_file()), path)
    checkpoint = open_checkpoint(path, dequantise=True)
    tied = {*checkpoint.aliases, *checkpoint.aliases.values()} & {LOGITS}
    names = [name for name in (*checkpoint.leaves, *checkpoint.aliases) if name not in tied]
    wrapped = all(name.startswith(PARALLEL) for name in names)
    given = {name: (Unread(checkpoint, name) if checkpoint.making(name) else checkpoint.read(name)) for name in names}
    return {_modern(name.removeprefix(PARALLEL) if wrapped else name): tensor for name, tensor in given.items()}


def _modern(name):
    return OLD_NORMS.sub(lambda found: {"gamma": "weight", "beta": "bias"}[found[0]], name)


def find_layout(tensors: Mapping[str, np.ndarray], layouts: Sequence[Layout], wanted: Architecture, path) -> Layout:
    """Return the layout whose sign is among the tensors; a ValueError if none is, or it is of another architecture."""
    found = next((one for one in layouts if one.sign in tensors), None)
    fitting = " or ".join(dict.fromkeys(f"{one.owner} names" for one in layouts if wanted.family in one.families))
    if found is None:
        some = ", ".join(short(name) for name in list(tensors)[:3])
        raise ValueError(f"{path} has unknown names ({some}, ...): {wanted.name} needs {fitting}")
    if wanted.family not in found.families:
        raise ValueError(f"{path} has {found.owner} names, but {wanted.name} needs {fitting}")
    return found


def mismatches(tensors: Mapping[str, np.ndarray], table: Table, left_out: str) -> list[str]:
    """List what the tensors lack ("-"), have besides the table and `left_out` ("+"), or have otherwise ("~")."""
    lines = [f"  - {name} is missing" for name in table if name not in tensors]
    extra = [name for name in tensors if name not in table and not re.fullmatch(left_out, name)]
    # a hostile file may have a million names
    lines += [f"  + {short(name)} is extra{did_you_mean(name[:200], table)}" for name in extra[:MOST_EXTRA]]
    if len(extra) > MOST_EXTRA:
        lines.append(f"  + {len(extra) - MOST_EXTRA} more are extra")
    for name, part in table.items():
        if name in tensors and tensors[name].shape != part.shape:
            lines.append(f"  ~ {name} has shape {tensors[name].shape} instead of {part.shape}")
        elif name in tensors and not jnp.issubdtype(tensors[name].dtype, jnp.floating):
            lines.append(f"  ~ {name} has dtype {tensors[name].dtype}, which is not a float")
    return lines


def convert(tensors: Mapping[str, np.ndarray], table: Table) -> dict[str, np.ndarray]:
    """Return the weights of a table by name, in float32: views of the tensors wherever they are float32 already."""
    leaves = {}
    for name, part in table.items():
        tensor = np.asarray(tensors[name])
        for ours, give in part.gives.items():
            leaf = give(tensor)
            if leaf.dtype != np.float32 or not leaf.flags.aligned:  # the order of the axes in memory stays
                leaf = np.array(leaf, np.float32, order="K")
            leaves[ours] = leaves[ours] + leaf if ours in leaves else leaf
    return leaves
