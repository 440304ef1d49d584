"""Open a checkpoint: one file, of a kind told by its first bytes or else its name, or a folder of Hugging Face."""

import collections
import dataclasses
import importlib
import os
import pathlib
from typing import TypeVar

from soups.files import PathLike, any_path, meant_path
from soups.formats.hub import cached_model, how_to_complete, is_blob, not_cached
from soups.formats.tensors import SUFFIXES, Checkpoint, CheckpointError, Header, listed, short
from soups.formats.text import check_file, check_stand_in, read_json
from soups.formats.weights import check_no_moments, left_out, weights_by_name
from soups.stores import Copies, StorePath

Path = TypeVar("Path", pathlib.Path, StorePath)

START = 512  # bytes
SINGLE = ("model.safetensors", "pytorch_model.bin")


def open_checkpoint(path: PathLike, tree: str | None = None, *, dequantise: bool = False) -> Checkpoint:
    """Read the headers of a checkpoint, and nothing of its tensors.

    `path`: a file, recognised by its first bytes and then by its name: .safetensors; a torch file (.pt, .pth, .bin,
    .ckpt, .pth.tar), of today's zip format or the older one, read without torch and without executing its pickle; .npz;
    or .gguf. Or a folder with model.safetensors, model.safetensors.index.json and its shards, pytorch_model.bin, or
    pytorch_model.bin.index.json and its shards, looked for in this order. Or the id of a model of the Hugging Face hub,
    org/name or org/name@revision, that is in the local cache; nothing is downloaded.

    All of these may lie on an object store, s3://BUCKET/NAME and gs://BUCKET/NAME: see `soups.formats.far`.

    `tree`: the keys of the tensors that are taken, joined with "/", or "." for all. Without it the weights of a torch
    file or an .npz are taken, as `soups.formats.weights` decides, and all of the others.

    `dequantise`: a quantised GGUF is read as the float32 numbers that its codes stand for, to start a network from
    them. Without it such a file is an error: the average of codes is no code, and what is merged keeps its precision.

    The names of nested mappings of a torch file are joined with ".". It may be a TorchScript archive, as OpenAI's CLIP
    is: its code is not read, and its modules' tensors have the names of its state_dict; a tensor that is neither
    parameter nor buffer cannot be told from those and is given too. Tensors that share all their elements are one leaf
    and aliases; NumPy arrays of numbers among them are tensors too.

    Raises:
        FileNotFoundError: nothing there; of a model of the hub it says how to download it.
        ValueError: another URL, or no path.
        OSError: what a store did not do.
        UnsafeCheckpointError: a pickle that names more than tensors need; nothing of it is executed.
        CheckpointError: a file of an unknown kind, or one that is damaged, truncated or unreadable; a Git LFS pointer
            or a web page in place of the file; a quantised GGUF; an index that does not fit its shards; a link or an
            index entry that leads out of the folder (the blobs of a Hugging Face cache are allowed). File and tensor
            are named.
    """
    path = any_path(cached_model(str(path)))
    try:
        if isinstance(path, StorePath):
            return _open_far(path, tree, dequantise)
        if path.is_dir():
            return _open_folder(path, tree, read_header)
        return _combine(path, {path: read_header(path, tree, dequantise)})
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"no checkpoint at {path}: {error}{meant_path(path) or not_cached(str(path))}"
        ) from error
    except OSError as error:
        if isinstance(path, StorePath):
            raise
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error


def _open_far(path, tree, dequantise):
    from soups.formats.far import far, far_header

    weights = Copies()

    def read(file, *options):
        return far_header(file, lambda place: read_header(place, *options), weights)

    if path.suffix in SUFFIXES:
        return far(_combine(path, {path: read(path, tree, dequantise)}), path, weights)
    if not path.is_dir():
        raise FileNotFoundError("nothing is there")
    return far(_open_folder(path, tree, read), path, weights)


def _is_there(path):
    return path.is_file() if isinstance(path, StorePath) else os.path.lexists(path)


def _open_folder(folder, tree, read):
    for name in SINGLE:
        if _is_there(file := folder / name):
            return _combine(folder, {file: read(inside(folder, name), tree)})
        if _is_there(folder / f"{name}.index.json"):
            return _open_shards(folder, inside(folder, f"{name}.index.json"), tree, read)
    files = sorted(file.name for file in folder.iterdir() if file.suffix in SUFFIXES)
    there = f"; open one of its files by name: {listed(files)}" if files else _models_inside(folder)
    expected = ", ".join(f"{name}, {name}.index.json" for name in SINGLE)
    raise CheckpointError(f"{folder} holds none of {expected}{there or how_to_complete(folder)}")


def _models_inside(folder):
    """Return a hint on the folders of a local folder that hold weights, such as those that a training has left."""
    if isinstance(folder, StorePath):
        return ""
    known = [end for name in SINGLE for end in (name, f"{name}.index.json")]
    found = [inner.name for inner in folder.iterdir() if any(os.path.lexists(inner / name) for name in known)]
    return f"; there are models in it: name one of {listed(sorted(found))}" if found else ""


def _open_shards(folder, index, tree, read):
    shards = _read_index(index)
    missing = [name for name in shards if not (folder / name).exists()]
    for name in shards:
        inside(folder, name)
    if missing:
        raise CheckpointError(f"{index} names shards that do not exist: {listed(missing)}{how_to_complete(folder)}")
    headers = {folder / name: read(inside(folder, name)) for name in shards}
    lines = []
    for name, expected in shards.items():
        header = headers[folder / name]
        found = {leaf.name for leaf in header.leaves}
        if lacking := sorted(expected - found - set(header.aliases)):
            lines.append(f"  - {name} lacks {listed(lacking)}")
        if extra := sorted(found - expected):
            lines.append(f"  + {name} also holds {listed(extra)}")
    if lines:
        raise CheckpointError(f"{index} does not fit its shards:\n" + "\n".join(lines))
    whole = _combine(folder, headers)
    if tree is None:
        return whole
    leaves, aliases, left = weights_by_name(whole.leaves.values(), whole.aliases, folder, tree)
    leaves = {leaf.name: leaf for leaf in leaves}
    return dataclasses.replace(whole, leaves=leaves, aliases=aliases, notes=(*whole.notes, *left_out(left)))


def _read_index(index):
    """Return the names of each shard's tensors, shard after shard."""
    content = read_json(index)
    weight_map = content.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(x, str) for x in weight_map.values()):
        raise CheckpointError(f"{index} must have a weight_map from tensors to files")
    shards = collections.defaultdict(set)
    for name, file in weight_map.items():
        shards[file].add(name)
    return {file: shards[file] for file in sorted(shards)}


def inside(folder: Path, name: str) -> Path:
    """Return the path of a file of a folder."""
    parts = pathlib.PurePath(name).parts
    if not parts or "\0" in name or os.path.isabs(name) or ".." in parts:
        raise CheckpointError(f"{folder}: the index names {short(name)}, which is not a file of this folder")
    if isinstance(folder, StorePath):  # which has no links
        return folder / name
    path, root = folder / name, pathlib.Path(os.path.realpath(folder))
    target = pathlib.Path(os.path.realpath(path))
    if not target.is_relative_to(root) and not is_blob(target):
        raise CheckpointError(f"{path} is a link that leads out of its folder, to {target}")
    return path


def _combine(path, headers):
    leaves, metadata, aliases, notes = {}, {}, {}, []
    for file, header in headers.items():
        for name in [leaf.name for leaf in header.leaves] + list(header.aliases):
            if name in leaves or name in aliases:
                raise CheckpointError(f"{path}: tensor {short(name)} is in two files")
        leaves |= {leaf.name: leaf for leaf in header.leaves}
        aliases |= header.aliases
        metadata = header.metadata | metadata
        if header.ignored:
            notes.append(f"left out of {file.name}: {listed(header.ignored)}")
    sizes = {file: header.size for file, header in headers.items()}
    return Checkpoint(path, leaves, metadata, aliases, sizes, tuple(notes))


def read_header(path: pathlib.Path | StorePath, tree: str | None = None, dequantise: bool = False) -> Header:
    """Return what a file of any kind holds, without reading a tensor.

    `tree`: the keys of the tensors that are taken, joined with "/", or "." for all; else the weights are, as
    `soups.formats.weights` decides for torch files and .npz. `dequantise`: as of `open_checkpoint`.
    """
    kind = _kind_of(path)
    read = importlib.import_module(f"soups.formats.{kind}").read_header
    if kind == "torch_file":
        return read(path, tree)
    header = read(path, dequantise) if kind == "gguf" else read(path)
    if tree is None and kind != "npz":
        check_no_moments((leaf.name for leaf in header.leaves), path)
        return header
    leaves, aliases, left = weights_by_name(header.leaves, header.aliases, path, tree)
    return header._replace(leaves=leaves, aliases=aliases, ignored=[*header.ignored, *left])


def _kind_of(path):
    if isinstance(path, StorePath) and path.suffix == ".safetensors":
        return "safetensors"
    size = check_file(path)
    with path.open("rb") as file:
        return _kind(file, path, size)


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
        raise CheckpointError(f"{path} is of an unknown kind, by its first bytes and by its name; known are {known}")
    return SUFFIXES[path.suffix]
