"""Make tasks of two sources of digits: the same images with other labels, from either source, turned, or corrupted."""

import dataclasses
import zlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from soups.data import Dataset, Task, corrupt, decode, split_indices, tfds_source
from soups.data.digits import set_apart
from soups.data.transforms import compose, resize, to_channels
from soups.names import check_name

MNIST, OPTDIGITS = "mnist_5k", "optdigits"
CORRUPTIONS = ("none", "noise", "blur", "contrast", "occlusion", "impulse_noise")
SEVERITY = 3
_SPLITS = ("train", "held_out", "test")
_FIXED_SEED = 0  # of the test images: the same in every repetition

Sources = Mapping[str, Dataset]
Make = Callable[[Sources, np.random.Generator], tuple[np.ndarray, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Kind:
    """State a task: its classes, and how images and labels are made from one split of both sources."""

    classes: tuple[str, ...]
    make: Make


def tasks_from_digits(
    names: Sequence[str],
    *,
    image_size: int,
    num_train: int,
    num_held_out: int,
    num_test: int,
    num_pretraining: int,
    seed: int,
    data_dir=None,
) -> tuple[dict[str, Task], Dataset]:
    """Return the tasks by name, and a dataset of digits to pre-train on, which has no image of any task.

    Each source is split alike, so all tasks have the same numbers of images, uint8 [N, image_size, image_size, 1]. The
    images to pre-train on are drawn from what is left of both. `seed` draws everything but the test images.

    Raises:
        ValueError: fewer than two tasks, a task that is named twice or is unknown, or more images than a source has.
    """
    if len(names) < 2:
        raise ValueError(f"at least two tasks are needed, not {len(names)}; choose from {', '.join(TASKS)}")
    if len(set(names)) < len(names):
        raise ValueError(f"a task is named twice: {', '.join(names)}")
    for name in names:
        check_name(name, TASKS, "task")
    sizes = {"train": num_train, "held_out": num_held_out, "test": num_test}
    parts = {name: _parts(name, image_size, sizes, seed, data_dir) for name in (MNIST, OPTDIGITS)}
    tasks = {name: _task(name, parts, seed) for name in names}
    rest = [part["left"] for part in parts.values()]
    images, labels = (np.concatenate([getattr(one, field) for one in rest]) for field in ("images", "labels"))
    left = Dataset(images, labels, rest[0].class_names)
    return tasks, left.take(split_indices(left.labels, {"pretraining": num_pretraining}, seed)["pretraining"])


def _parts(source, image_size, sizes, seed, data_dir):
    every = decode(tfds_source(source, "train", data_dir=data_dir), compose(resize(image_size), to_channels(1)))
    if sum(sizes.values()) >= len(every):
        needed = f"{sum(sizes.values())} images are needed of {source}, and more to pre-train on"
        raise ValueError(f"{needed}: it has {len(every)}")
    test, rest = set_apart(every, "test", sizes["test"])
    drawn = split_indices(rest.labels, {name: size for name, size in sizes.items() if name != "test"}, seed)
    left = np.setdiff1d(np.arange(len(rest)), np.concatenate(list(drawn.values())))
    return {"test": test, "left": rest.take(left)} | {n: rest.take(at) for n, at in drawn.items()}


def _task(name, parts, seed):
    kind, splits = TASKS[name], {}
    for split in _SPLITS:
        draws = [_FIXED_SEED if split == "test" else seed, zlib.crc32(f"{name}/{split}".encode())]
        images, labels = kind.make({s: part[split] for s, part in parts.items()}, np.random.default_rng(draws))
        splits[split] = Dataset(images, labels.astype(np.int32), kind.classes)
    return Task(name=name, class_names=kind.classes, shifts={}, **splits)


def _relabelled(source: str, of_digit: Sequence[int], classes: Sequence[str]) -> Kind:
    """Keep a source's images and say for each digit what its label is."""
    table = np.asarray(of_digit)
    return Kind(tuple(classes), lambda sources, _: (sources[source].images, table[sources[source].labels]))


def _which_source(sources, rng):
    """Take half of the images from either source."""
    count = len(sources[MNIST])
    labels = rng.permutation(np.arange(count) % 2)
    columns = (slice(None), *[None] * 3)
    return np.where(labels[columns], sources[OPTDIGITS].images, sources[MNIST].images), labels


def _rotated(sources, rng):
    images = sources[MNIST].images
    labels = rng.permutation(np.arange(len(images)) % 4)
    turned = np.stack([np.rot90(images, quarters, axes=(1, 2)) for quarters in range(4)])
    return turned[labels, np.arange(len(images))], labels


def _corrupted(sources, rng):
    dataset = sources[MNIST]
    labels = rng.permutation(np.arange(len(dataset)) % len(CORRUPTIONS))
    images, seed = dataset.images.copy(), int(rng.integers(2**31))
    for label, family in enumerate(CORRUPTIONS[1:], start=1):
        chosen = np.flatnonzero(labels == label)
        images[chosen] = corrupt(dataset.take(chosen), family, SEVERITY, seed).images
    return images, labels


_DIGITS = tuple(map(str, range(10)))

TASKS = {
    "digit": _relabelled(MNIST, range(10), _DIGITS),
    "parity": _relabelled(MNIST, [digit % 2 for digit in range(10)], ("even", "odd")),
    "loops": _relabelled(MNIST, (1, 0, 0, 0, 1, 0, 1, 0, 2, 1), ("none", "one", "two")),
    "magnitude": _relabelled(MNIST, [int(digit >= 5) for digit in range(10)], ("below 5", "5 and above")),
    "optdigits": _relabelled(OPTDIGITS, range(10), _DIGITS),
    "source": Kind((MNIST, OPTDIGITS), _which_source),
    "rotation": Kind(("0°", "90°", "180°", "270°"), _rotated),
    "corruption": Kind(CORRUPTIONS, _corrupted),
}
