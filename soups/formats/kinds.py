"""Find out what kind of file a checkpoint is, by its first bytes and then by its name, and read its header."""

import importlib
import pathlib

from soups.formats.tensors import CheckpointError, Header
from soups.formats.text import check_file, check_stand_in
from soups.formats.weights import check_no_moments, weights_by_name

# the modules that read them; each is imported when such a file is met
SUFFIXES = {".safetensors": "safetensors", ".gguf": "gguf", ".npz": "npz"}
SUFFIXES |= dict.fromkeys((".pt", ".pth", ".bin", ".ckpt", ".tar"), "torch_file")  # .pth.tar is a usual name
START = 512  # bytes


def read_header(path: pathlib.Path, tree: str | None = None) -> Header:
    """Return what a file of any kind holds, without reading a tensor.

    `tree`: the keys of the tensors that are taken, joined with "/", or "." for all; else the weights are, as
    `soups.formats.weights` decides for torch files and .npz.
    """
    size = check_file(path)
    with open(path, "rb") as file:
        kind = _kind(file, path, size)
    read = importlib.import_module(f"soups.formats.{kind}").read_header
    if kind == "torch_file":
        return read(path, tree)
    header = read(path)
    if tree is None and kind != "npz":
        check_no_moments((leaf.name for leaf in header.leaves), path)
        return header
    leaves, aliases, left = weights_by_name(header.leaves, header.aliases, path, tree)
    return header._replace(leaves=leaves, aliases=aliases, ignored=[*header.ignored, *left])


def _kind(file, path, size):
    start = file.read(START)
    # first: the length of its header may be any bytes
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= size - 8:
        return "safetensors"
    if start[:4] == b"GGUF":
        return "gguf"
    if start[:4] in (b"PK\3\4", b"PK\5\6"):
        from soups.formats.archive import read_entries

        names = read_entries(file, path)
        arrays = path.suffix == ".npz" or any(name.endswith(".npy") for name in names)
        return "npz" if arrays and not any(name.endswith("data.pkl") for name in names) else "torch_file"
    if start[:1] == b"\x80" and start[1:2] <= b"\5":
        return "torch_file"
    check_stand_in(path, start)
    if path.suffix not in SUFFIXES:
        known = ", ".join(SUFFIXES)
        raise CheckpointError(f"{path} is of no kind that is known, by its first bytes or its name: {known}")
    return SUFFIXES[path.suffix]
