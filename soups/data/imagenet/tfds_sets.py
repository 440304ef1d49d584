"""Open sets that TFDS prepared in the order of the released folders: by class, then by file name."""

import dataclasses
import json
import pathlib
from collections.abc import Iterable, Sequence

import numpy as np
import xxhash

from soups import state
from soups.data.dataset import Source
from soups.data.imagenet.layouts import layout
from soups.data.sources import UnreadableImage, View, tfds_source

_READ_AT_ONCE = 256  # records; some 30 MB


def label_names(name: str, data_dir) -> tuple[str, ...]:
    """Return the labels of a prepared set."""
    return _source(name, data_dir).class_names


def open_tfds(name: str, data_dir, classes: Sequence[str], cache_dir=None) -> View:
    """Open a prepared set as a view sorted by class and file name, with `files` as "class/file".

    Labels become places among `classes`, which are the set's labels in any order. TFDS keeps the names with the images,
    so all of the set is read once to learn them (140 GB for the training images); `cache_dir` keeps them for the next
    time.
    """
    source = _source(name, data_dir)
    folder = pathlib.Path(data_dir, layout(name).tfds[0])
    shards = sorted((path.relative_to(folder).as_posix(), path.stat().st_size) for path in folder.glob("*/*"))
    stamp = xxhash.xxh3_128_hexdigest(json.dumps(shards).encode())
    labels, files = _cached_index(source, None if cache_dir is None else pathlib.Path(cache_dir, f"{stamp}.json"))
    labels = np.array([classes.index(label) for label in source.class_names], np.int32)[labels]
    named = _Named(source, [f"{classes[label]}/{file}" for label, file in zip(labels, files, strict=True)], stamp)
    order = np.lexsort((files, labels))
    return View(named, order, labels[order], tuple(classes))


@dataclasses.dataclass(frozen=True, eq=False)
class _Named:
    source: Source
    files: list[str]
    data: str

    @property
    def class_names(self):
        return self.source.class_names

    def __len__(self):
        return len(self.source)

    def __getitem__(self, index):
        try:
            return self.source[index]
        except UnreadableImage as error:
            raise UnreadableImage(f"{self.files[index]}, {error}") from error

    def name(self, index: int) -> str:
        return self.files[index]

    def stamp(self, indices: Iterable[int]) -> str:
        text = "\n".join([self.data, *(self.files[index] for index in indices)])
        return xxhash.xxh3_128_hexdigest(text.encode())


def _source(name, data_dir):
    return tfds_source(*layout(name).tfds, data_dir=data_dir, upright=False)  # as the published numbers are made


def _cached_index(source, path):
    if path is not None and path.exists():
        try:
            kept = state.read(path, {"labels": list, "files": list})
        except ValueError as error:
            raise ValueError(f"{error}; delete it, and the names are read again") from error
        return np.array(kept["labels"], np.int32), np.array(kept["files"])
    labels, files = _index(source.records)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        state.write(path, {"labels": labels.tolist(), "files": files.tolist()})
    return labels, files


def _index(records):
    labels, files = np.empty(len(records), np.int32), []
    for start in range(0, len(records), _READ_AT_ONCE):
        block = records.__getitems__(range(start, min(start + _READ_AT_ONCE, len(records))))
        labels[start : start + len(block)] = [record["label"] for record in block]
        files += [record["file_name"].decode().rpartition("/")[2] for record in block]
    return labels, np.array(files)
