"""Open a checkpoint: one file, or a folder in the layout of Hugging Face."""

import collections
import dataclasses
import os
import pathlib

from soups.formats import safetensors, torch_file
from soups.formats.tensors import Checkpoint, CheckpointError, listed, short
from soups.formats.text import read_json
from soups.formats.weights import ALL, left_out, weights_by_path

TORCH_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt")
SINGLE = ("model.safetensors", "pytorch_model.bin")


def open_checkpoint(path: str | os.PathLike, tree: str | None = None) -> Checkpoint:
    """Read the headers of a checkpoint, and nothing of its tensors.

    `path`: a .safetensors file; a torch file (.pt, .pth, .bin, .ckpt), of today's zip format or the older one, read
    without torch and without executing its pickle; or a folder with model.safetensors, model.safetensors.index.json
    and its shards, pytorch_model.bin, or pytorch_model.bin.index.json and its shards, looked for in this order. Of a
    torch file the mapping with the weights is taken, as `soups.formats.weights` decides, or that of the keys `tree`;
    the names of nested mappings are joined with ".". Of other files `tree` takes the names that begin with it. A torch
    file may be a TorchScript archive, as OpenAI's CLIP is: its code is not read, and its modules' tensors have the
    names of its state_dict; a tensor that is neither parameter nor buffer cannot be told from those and is given too.
    Tensors that share all their elements are one leaf and aliases.

    Raises:
        FileNotFoundError: nothing there.
        UnsafeCheckpointError: a pickle that names more than tensors need; nothing of it is executed.
        CheckpointError: a file of another kind, damaged or truncated; an index that does not fit its shards; a link or
            an index entry that leads out of the folder (the blobs of the same Hugging Face cache are allowed). File and
            tensor are named. As `soups.formats.weights.weights`.
    """
    path = pathlib.Path(path)
    if path.is_dir():
        return _open_folder(path, tree)
    if not path.exists():
        raise FileNotFoundError(f"no checkpoint at {path}")
    if path.suffix not in (".safetensors", *TORCH_SUFFIXES):
        raise CheckpointError(f"{path}: a checkpoint's name ends with .safetensors or {', '.join(TORCH_SUFFIXES)}")
    return _open_file(path, path, tree)


def _open_file(path, file, tree):
    if file.suffix in TORCH_SUFFIXES:
        return _combine(path, [file], {file: _header(file, tree)})
    return _part(_combine(path, [file], {file: _header(file)}), tree)


def _part(checkpoint, tree):
    """Take the tensors whose names begin with the keys of a tree, without these."""
    if tree in (None, ALL):
        return checkpoint
    names = [*checkpoint.leaves, *checkpoint.aliases]
    mark = "/" if any("/" in name for name in names) else "."
    found, left = weights_by_path([tuple(name.split(mark)) for name in names], checkpoint.path, tree.replace(mark, "/"))
    leaves, aliases, first = {}, {}, {}
    for keys, old in found.items():
        name, kept = mark.join(keys), checkpoint.aliases.get(mark.join(old), mark.join(old))
        if kept in first:
            aliases[name] = first[kept]
        else:
            first[kept] = name
            leaves[name] = dataclasses.replace(checkpoint.leaves[kept], name=name)
    notes = (*checkpoint.notes, *left_out(left))
    return dataclasses.replace(checkpoint, leaves=leaves, aliases=aliases, notes=notes)


def _open_folder(folder, tree):
    for name in SINGLE:
        if (folder / name).exists():
            return _open_file(folder, _inside(folder, name), tree)
        if (folder / f"{name}.index.json").exists():
            return _part(_open_shards(folder, _inside(folder, f"{name}.index.json")), tree)
    files = sorted(file.name for file in folder.iterdir() if file.suffix in (".safetensors", *TORCH_SUFFIXES))
    there = f"; open one of its files by name: {listed(files)}" if files else ""
    expected = ", ".join(f"{name}, {name}.index.json" for name in SINGLE)
    raise CheckpointError(f"{folder} holds none of {expected}{there}")


def _open_shards(folder, index):
    shards = _read_index(index)
    missing = [name for name in shards if not (folder / name).exists()]
    for name in shards:
        _inside(folder, name)
    if missing:
        raise CheckpointError(f"{index} names shards that are not there: {listed(missing)}")
    headers = {folder / name: _header(_inside(folder, name)) for name in shards}
    lines = []
    for name, expected in shards.items():
        leaves, _, aliases, _ = headers[folder / name]
        found = {leaf.name for leaf in leaves}
        if lacking := sorted(expected - found - set(aliases)):
            lines.append(f"  - {name} lacks {listed(lacking)}")
        if extra := sorted(found - expected):
            lines.append(f"  + {name} holds also {listed(extra)}")
    if lines:
        raise CheckpointError(f"{index} does not fit its shards:\n" + "\n".join(lines))
    return _combine(folder, list(headers), headers)


def _read_index(index):
    """Give the names of each shard's tensors, shard after shard."""
    content = read_json(index)
    weight_map = content.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(x, str) for x in weight_map.values()):
        raise CheckpointError(f"{index} must have a weight_map from tensors to files")
    shards = collections.defaultdict(set)
    for name, file in weight_map.items():
        shards[file].add(name)
    return {file: shards[file] for file in sorted(shards)}


def _inside(folder, name):
    """Give the path of a file of the folder; neither its name nor its links may lead elsewhere."""
    parts = pathlib.PurePath(name).parts
    if not parts or "\0" in name or os.path.isabs(name) or ".." in parts:
        raise CheckpointError(f"{folder}: the index names {short(name)}, which is not a file of this folder")
    path, root = folder / name, pathlib.Path(os.path.realpath(folder))
    target = pathlib.Path(os.path.realpath(path))
    if not any(target.is_relative_to(allowed) for allowed in (root, *_blobs(root))):
        raise CheckpointError(f"{path} is a link that leads out of its folder, to {target}")
    return path


def _blobs(root):
    # the cache of Hugging Face: <model>/snapshots/<revision>/... links to <model>/blobs/<digest>
    return [place.parent.parent / "blobs" for place in (root, *root.parents) if place.parent.name == "snapshots"]


def _header(path, tree=None):
    if not path.is_file():
        raise CheckpointError(f"{path} is not a file")
    if path.suffix == ".safetensors":
        leaves, metadata, size = safetensors.read_header(path)
        names = {leaf.name for leaf in leaves}
        # torch's helper of the format notes the tied tensors that it leaves out in the metadata
        aliases = {name: kept for name, kept in metadata.items() if kept in names and name not in names}
        return leaves, metadata, aliases, size
    if path.suffix in TORCH_SUFFIXES:
        return torch_file.read_header(path, tree)
    raise CheckpointError(f"{path} is neither a .safetensors nor a torch file")


def _combine(path, files, headers):
    leaves, metadata, aliases, sizes, notes = {}, {}, {}, {}, []
    for file in files:
        found, strings, tied, sizes[file] = headers[file]
        for name in [leaf.name for leaf in found] + list(tied):
            if name in leaves or name in aliases:
                raise CheckpointError(f"{path}: tensor {short(name)} is in two files")
        leaves |= {leaf.name: leaf for leaf in found}
        aliases |= tied
        if file.suffix == ".safetensors":
            metadata = strings | metadata
        elif "ignored" in strings:
            notes.append(f"left out of {file.name}: {strings['ignored']}")
    return Checkpoint(path, leaves, metadata, aliases, sizes, tuple(notes))
