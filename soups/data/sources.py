"""Open images as sources: random access to {"image": uint8 [H, W, C], "label": int}, decoded when it is read."""

import io
import os
import pathlib

import numpy as np
import PIL.Image

from soups.data.dataset import Dataset, Source
from soups.data.transforms import from_pil
from soups.names import check_name

_EXTENSIONS = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}


def array_source(images: np.ndarray, labels, class_names=None) -> Dataset:
    """Make a dataset of arrays: uint8 [N, H, W, C] or gray [N, H, W], and N integer labels.

    Without `class_names` the classes are "0", "1", … up to the largest label.

    Raises:
        ValueError: labels that are not integers, or any that `Dataset` raises.
    """
    images, labels = np.asarray(images), np.asarray(labels)
    if not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"labels must be integers, not {labels.dtype}")
    if class_names is None:
        class_names = map(str, range(int(labels.max(initial=-1)) + 1))
    images = images[..., None] if images.ndim == 3 else images
    return Dataset(images, labels.astype(np.int32), tuple(class_names))


def folder_source(path) -> Source:
    """Open a folder of images laid out as class/file.

    Classes are the folders, sorted by name; examples are sorted by class, then by file name. Hidden files and files
    without the extension of an image are left out. Gray and RGB files are given as they are, all others as RGB.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: fewer than two classes, or classes without images; when an example is read: a broken file.
    """
    path = pathlib.Path(path)
    class_names = _folders(path)
    files = [_images(path / name) for name in class_names]
    empty = [name for name, found in zip(class_names, files, strict=True) if not found]
    if empty:
        raise ValueError(
            f"{path}: no images right in the class folders {', '.join(empty[:10])} ({len(empty)} of "
            f"{len(class_names)}); the layout must be class/file (for domain/class/file there is domain_folder_sources)"
        )
    if len(class_names) < 2:
        raise ValueError(f"{path}: there must be at least 2 class folders, found {class_names}")
    return _FolderSource(files, class_names)


def domain_folder_sources(path) -> dict[str, Source]:
    """Open a folder laid out as domain/class/file, as DomainBed's sets are: one source for each domain.

    Raises:
        FileNotFoundError: no such folder, or no domains in it.
        ValueError: domains with different classes; for each it lists what is missing. And as `folder_source`.
    """
    path = pathlib.Path(path)
    domains = _folders(path)
    if not domains:
        raise FileNotFoundError(f"{path}: no domain folders in it; the layout must be domain/class/file")
    classes = {domain: _folders(path / domain) for domain in domains}
    union = sorted(set().union(*classes.values()))
    missing = {domain: [name for name in union if name not in found] for domain, found in classes.items()}
    lines = [f"  {domain} lacks {', '.join(names)}" for domain, names in missing.items() if names]
    if lines:
        raise ValueError(f"{path}: the domains must have the same class folders, but\n" + "\n".join(lines))
    return {domain: folder_source(path / domain) for domain in domains}


def tfds_source(name: str, split: str, *, data_dir=None, image_key: str = "image", label_key: str = "label") -> Source:
    """Open a split of a TFDS set, such as ("cifar10", "train[:80%]"), without TensorFlow.

    The set must be prepared as ArrayRecord in `data_dir` (None: $TFDS_DATA_DIR or ~/tensorflow_datasets);
    only the project's own sets, "mnist_5k" and "optdigits", are prepared here, on first use. Images are decoded by
    Pillow, so that they are the same on every machine.

    Raises:
        FileNotFoundError: the set is not prepared; says how to do it.
        ValueError: an unknown set, split or key, a set prepared in another format, or labels that are not classes.
    """
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
    return _TfdsSource(
        builder.as_data_source(split, decoders=decoders), image_key, label_key, features[label_key].names
    )


class _FolderSource:
    def __init__(self, files, class_names):
        self.class_names = tuple(class_names)
        self._paths = [path for found in files for path in found]
        self._labels = np.repeat(np.arange(len(files)), [len(found) for found in files])

    def __len__(self):
        return len(self._paths)

    def __getitem__(self, index):
        return {"image": _decode(self._paths[index], self._paths[index]), "label": int(self._labels[index])}


class _TfdsSource:
    def __init__(self, records, image_key, label_key, class_names):
        self.class_names = tuple(class_names)
        self._records, self._image_key, self._label_key = records, image_key, label_key

    def __len__(self):
        return len(self._records)

    def __getitem__(self, index):
        if not 0 <= index < len(self):
            raise IndexError(f"{index} is not among the {len(self)} examples")
        record = self._records[index]
        image = record[self._image_key]
        image = _decode(io.BytesIO(image), f"example {index}") if isinstance(image, bytes) else image
        return {"image": image, "label": int(record[self._label_key])}


def _decode(file, where):
    try:
        with PIL.Image.open(file) as image:
            return from_pil(image)
    except (OSError, ValueError) as error:
        raise ValueError(f"{where}: cannot be read as an image ({error})") from error


def _folders(path):
    if not path.is_dir():
        raise FileNotFoundError(f"{path}: no such folder")
    return sorted(entry.name for entry in os.scandir(path) if entry.is_dir() and not entry.name.startswith("."))


def _images(path):
    names = (entry.name for entry in os.scandir(path) if entry.is_file() and not entry.name.startswith("."))
    return [os.path.join(path, name) for name in sorted(names) if os.path.splitext(name)[1].lower() in _EXTENSIONS]


def _prepared_builder(name, data_dir):
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
