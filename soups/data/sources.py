"""Open images as sources: random access to {"image": uint8 [H, W, C], "label": int}, decoded when it is read."""

import dataclasses
import io
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import xxhash
from numpy.typing import ArrayLike

from soups.data.dataset import ClassGroups, Dataset, Source, as_dataset, class_name_problems, example_name
from soups.data.images import UnreadableImage as UnreadableImage
from soups.data.images import is_image, read_image, text_names
from soups.files import PathLike, any_path
from soups.lazy import extra
from soups.names import check_name, few
from soups.stores import StorePath


def array_source(images: np.ndarray, labels: ArrayLike, class_names: Sequence[str] | None = None) -> Dataset:
    """Make a dataset of arrays: uint8 [N, H, W, C] or gray [N, H, W], and N integer labels, as `as_dataset`."""
    return as_dataset((images, labels), class_names)


def folder_source(path: PathLike, folders: Sequence[str] | None = None, *, upright: bool = True) -> Source:
    """Open a folder of images laid out as class/file.

    Classes are the folders, sorted by name, or the named `folders` in the order given; examples are sorted by class,
    then by file name. Hidden files and files without the extension of an image are left out. Gray and RGB files are
    given as they are, all others as RGB; `upright` turns those of a camera that was held otherwise, as EXIF says. The
    source also has `files`, "class/file" of each example, and `labels`.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: a URL of no store; fewer than two classes; classes without images; a name that is not UTF-8. When an
            example is read: a broken file.
    """
    path = any_path(path)
    class_names = class_folders(path) if folders is None else list(folders)
    files = [text_names(path / name, filter(is_image, _scanned(path / name)[1])) for name in class_names]
    empty = [name for name, found in zip(class_names, files, strict=True) if not found]
    if empty:
        raise ValueError(
            f"{path}: no images directly in the class folders {', '.join(empty[:10])} ({len(empty)} of "
            f"{len(class_names)}); the layout must be class/file (for domain/class/file use domain_folder_sources)"
        )
    if len(class_names) < 2:
        raise ValueError(f"{path}: there must be at least 2 class folders, found {class_names}")
    if problems := class_name_problems(class_names):
        raise ValueError(f"{path}: {problems[0]}")
    return _FolderSource(path, class_names, files, upright)


def class_folders(path) -> list[str]:
    """List the folders in a folder by name, without hidden ones."""
    path = any_path(path)
    if not path.is_dir():
        raise FileNotFoundError(f"{path}: no such folder")
    return text_names(path, (name for name in _scanned(path)[0] if not name.startswith(".")))


def _scanned(path):
    """Return the names of the folders in a folder, and those of the files."""
    if isinstance(path, StorePath):
        return path.scan()
    entries = list(os.scandir(path))
    return [[entry.name for entry in entries if kind(entry)] for kind in (os.DirEntry.is_dir, os.DirEntry.is_file)]


def domain_folder_sources(path: PathLike) -> dict[str, Source]:
    """Open a folder laid out as domain/class/file, as DomainBed's sets are: one source for each domain.

    Raises:
        FileNotFoundError: no such folder, or no domains in it.
        ValueError: domains with different classes; for each, what is missing is listed. Also as `folder_source`.
    """
    path = any_path(path)
    domains = class_folders(path)
    if not domains:
        raise FileNotFoundError(f"{path}: no domain folders in it; the layout must be domain/class/file")
    classes = {domain: class_folders(path / domain) for domain in domains}
    union = sorted(set().union(*classes.values()))
    missing = {domain: [name for name in union if name not in found] for domain, found in classes.items()}
    lacking = [f"{domain} lacks {few(names, 10)}" for domain, names in missing.items() if names]
    if lacking:
        raise ValueError(f"{path}: the domains must have the same class folders, but {few(lacking, 10)}")
    return {domain: folder_source(path / domain) for domain in domains}


def tfds_source(
    name: str,
    split: str,
    *,
    data_dir: PathLike | None = None,
    image_key: str = "image",
    label_key: str = "label",
    upright: bool = True,
) -> Source:
    """Open a split of a TFDS set, such as ("cifar10", "train[:80%]"), without TensorFlow.

    The set must be prepared as ArrayRecord in `data_dir` (None: $TFDS_DATA_DIR or ~/tensorflow_datasets);
    only the project's own sets, "mnist_5k" and "optdigits", are prepared here, on first use. Images are decoded by
    Pillow, so that they are the same on every machine; `upright` as of `folder_source`.

    Raises:
        FileNotFoundError: the set is not prepared; the message says how to do it.
        ValueError: an unknown set, split or key; a set that is prepared in another format; labels that are not classes.
    """
    with extra("data"):
        import tensorflow_datasets as tfds

    from soups.data import builders  # it imports TFDS

    builder = builders.prepare(name, data_dir) if name in builders.BUILDERS else _prepared_builder(name, data_dir)
    features = builder.info.features
    for key in (image_key, label_key):
        check_name(key, features, f"feature of TFDS set {name!r}:")
    if not isinstance(features[label_key], tfds.features.ClassLabel):
        raise ValueError(f"feature {label_key!r} of TFDS set {name!r} is not a class label: {features[label_key]}")
    encoded = [key for key, feature in features.items() if isinstance(feature, tfds.features.Image)]
    decoders = {key: tfds.decode.SkipDecoding() for key in encoded}
    records = builder.as_data_source(split, decoders=decoders)
    return _TfdsSource(records, image_key, label_key, features[label_key].names, upright)


@dataclasses.dataclass(frozen=True, eq=False)
class View:
    """See a source's examples in another order, with other labels and classes; a source too.

    Attributes:
        source: has `files` besides, the name of each example, and `stamp`.
        indices: int64 [N], example i of the view is example `indices[i]` of the source.
        labels: int32 [N], indices into `class_names`.
        class_names: as of any source.
        class_groups: as of a `Dataset`.
    """

    source: Source
    indices: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]
    class_groups: ClassGroups | None = None

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> dict:
        return {"image": self.source[int(self.indices[index])]["image"], "label": int(self.labels[index])}

    def name(self, index: int) -> str:
        """Return what an error calls an example."""
        return example_name(self.source, int(self.indices[index]))

    @property
    def files(self) -> list[str]:
        """List the name of each example."""
        return [self.source.files[index] for index in self.indices]

    def take(self, indices: np.ndarray) -> "View":
        """Return the view of the examples at `indices`, in that order."""
        return dataclasses.replace(self, indices=self.indices[indices], labels=self.labels[indices])

    def stamp(self) -> str:
        """Digest the names and sizes of the files: other data has another stamp. Nothing is read."""
        return self.source.stamp(self.indices)


class _FolderSource:
    def __init__(self, path, folders, files, upright):
        self.class_names = tuple(folders)
        self.files = [f"{folder}/{name}" for folder, names in zip(folders, files, strict=True) for name in names]
        self.labels = np.repeat(np.arange(len(files), dtype=np.int32), [len(names) for names in files])
        self._path, self._upright = path, upright

    def __len__(self):
        return len(self.files)

    def __getitem__(self, index):
        image = read_image(self._path / self.files[index], self.name(index), upright=self._upright)
        return {"image": image, "label": int(self.labels[index])}

    def name(self, index: int) -> str:
        return str(self._path / self.files[index])

    def stamp(self, indices: Iterable[int]) -> str:
        files = [self.files[index] for index in indices]
        with ThreadPoolExecutor(16) as pool:  # on a network's disk each size takes a while
            sizes = pool.map(lambda file: (self._path / file).stat().st_size, files)
            lines = [f"{file} {size}\n" for file, size in zip(files, sizes, strict=True)]
        return xxhash.xxh3_128_hexdigest("".join(lines).encode())


class _TfdsSource:
    def __init__(self, records, image_key, label_key, class_names, upright):
        self.class_names = tuple(class_names)
        self.records = records  # as TFDS gives them, with images still encoded
        self._image_key, self._label_key, self._upright = image_key, label_key, upright

    def __len__(self):
        return len(self.records)

    def __getitem__(self, index):
        if not 0 <= index < len(self):
            raise IndexError(f"there is no example {index}: the {len(self)} examples count from 0")
        record = self.records[index]
        image = record[self._image_key]
        if isinstance(image, bytes):
            image = read_image(io.BytesIO(image), f"example {index}", upright=self._upright)
        return {"image": image, "label": int(record[self._label_key])}


def _prepared_builder(name, data_dir):
    with extra("data"):
        import tensorflow_datasets as tfds

    from soups.data import builders

    try:
        builder = tfds.builder(name, data_dir=data_dir)
    except tfds.core.DatasetNotFoundError:
        known = {*builders.BUILDERS, *tfds.list_builders(with_community_datasets=False)}
        check_name(name.split("/")[0].split(":")[0], known, "TFDS set")
        raise
    if not builder.is_prepared():
        raise FileNotFoundError(
            f"TFDS set {name!r} is not prepared in {builder.data_dir}. Most sets need TensorFlow for that (never to be "
            f"read): run `tfds build {name} --file_format=array_record` in an environment that has it, then copy the "
            "folder there"
        )
    # Parquet would be read without a word, but whole: TFDS 4.9 ignores the slice in "train[:80%]" there
    if builder.info.file_format != tfds.core.FileFormat.ARRAY_RECORD:
        raise ValueError(
            f"TFDS set {name!r} in {builder.data_dir} is stored as {builder.info.file_format.value}, but only "
            "array_record has random access to slices: prepare it again, in another data_dir, with "
            "--file_format=array_record"
        )
    return builder
