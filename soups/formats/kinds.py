"""Find out what kind of file a checkpoint is, by its first bytes and then by its name, and read its header."""

import pathlib

from soups.formats import gguf, npz, safetensors, torch_file
from soups.formats.archive import read_entries
from soups.formats.tensors import CheckpointError, Header
from soups.formats.text import check_file, check_stand_in
from soups.formats.weights import weights_by_name

_TORCH = torch_file.read_header
SUFFIXES = {".safetensors": safetensors.read_header, ".gguf": gguf.read_header, ".npz": npz.read_header}
SUFFIXES |= dict.fromkeys((".pt", ".pth", ".bin", ".ckpt", ".tar"), _TORCH)  # .pth.tar is a usual name
START = 512  # bytes


def read_header(path: pathlib.Path, tree: str | None = None) -> Header:
    """Return what a file of any kind holds, without reading a tensor.

    `tree`: the keys of the tensors that are taken, joined with "/", or "." for all; else the weights are, as
    `soups.formats.weights` decides for torch files and .npz.

    Raises:
        FileNotFoundError: nothing is there.
        UnsafeCheckpointError: its pickle asks for more than tensors.
        CheckpointError: not a file, damaged, or of no kind that is known; as `weights`.
        OSError: it cannot be read.
    """
    size = check_file(path)
    with open(path, "rb") as file:
        read = _reader(file, path, size)
    if read is _TORCH:
        return read(path, tree)
    header = read(path)
    if tree is None and read is not npz.read_header:
        return header
    leaves, aliases, left = weights_by_name(header.leaves, header.aliases, path, tree)
    return header._replace(leaves=leaves, aliases=aliases, ignored=[*header.ignored, *left])


def _reader(file, path, size):
    start = file.read(START)
    # first: the length of its header may be any bytes
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= size - 8:
        return safetensors.read_header
    if start[:4] == b"GGUF":
        return gguf.read_header
    if start[:4] in (b"PK\3\4", b"PK\5\6"):
        names = read_entries(file, path)
        arrays = path.suffix == ".npz" or any(name.endswith(".npy") for name in names)
        return npz.read_header if arrays and not any(name.endswith("data.pkl") for name in names) else _TORCH
    if start[:1] == b"\x80" and start[1:2] <= b"\5":
        return _TORCH
    check_stand_in(path, start)
    if path.suffix not in SUFFIXES:
        known = ", ".join(SUFFIXES)
        raise CheckpointError(f"{path} is of no kind that is known, by its first bytes or its name: {known}")
    return SUFFIXES[path.suffix]
