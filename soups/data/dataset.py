"""Hold decoded images: a `Dataset` is one split in memory, a `Task` all that an experiment trains and tests on."""

import collections
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np

from soups.data.images import UnreadableImage, memory_held
from soups.data.splits import check_disjoint
from soups.data.transforms import Transform
from soups.names import differences, few, refuse

ClassGroups = tuple[tuple[int, ...], ...]
_INVALID = "not a valid dataset"


class Source(Protocol):
    """Describe what every source can do: `len`, `source[i]` and `class_names`; any random-access object will do.

    `source[i]` is {"image": uint8 [H, W, C], "label": int}, decoded when it is read. A `Dataset` is a source too. A
    source of a set that has other classes than the model has `class_groups` besides, as a `Dataset` has them.
    """

    class_names: tuple[str, ...]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict: ...


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """Keep one split decoded in memory; a ValueError lists what is not as stated here.

    Attributes:
        images: uint8 [N, H, W, C].
        labels: indices into `class_names`, integers [N] of any width, which are kept as int32.
        class_names: at least two.
        class_groups: for a set that has other classes than the model: group g lists the outputs of the model whose
            maximum is the logit of class g. None: output g is class g. (ImageNet-R has 200 groups of one output each,
            ObjectNet 113 groups over 125 outputs.)
    """

    images: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]
    class_groups: ClassGroups | None = None

    def __post_init__(self):
        kept = {"images": self.images, "labels": self.labels}
        lists = [name for name, value in kept.items() if not isinstance(value, np.ndarray)]
        refuse(_INVALID, [f"{name} must be a NumPy array: soups.data.as_dataset takes other forms" for name in lists])
        refuse(_INVALID, _array_problems(self.images, self.labels) or _class_problems(self))
        object.__setattr__(self, "labels", self.labels.astype(np.int32, copy=False))  # none is out of its range

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict:
        return {"image": self.images[index], "label": int(self.labels[index])}

    def take(self, indices: Sequence[int] | np.ndarray) -> "Dataset":
        """Copy the examples at `indices`, in that order."""
        return dataclasses.replace(self, images=self.images[indices], labels=self.labels[indices])


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
    """Bundle all data of an experiment; shifts are test sets from other distributions, by name.

    `facts` are what a file that is made from the data should tell of them, as JSON can hold it, such as licences.

    `train` may be a source that is not decoded; it is then read only by a loader and not compared with the others. A
    ValueError lists all sets whose classes or image shapes do not fit, and splits that overlap; shifts may share
    images with the test set, and with no other.
    """

    name: str
    class_names: tuple[str, ...]
    train: Dataset | Source
    held_out: Dataset
    test: Dataset
    shifts: Mapping[str, Dataset]
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        sets = {"train": self.train, "held_out": self.held_out, "test": self.test}
        shifts = {f"shift {name!r}": dataset for name, dataset in self.shifts.items()}
        refuse(f"the sets of task {self.name!r} do not fit together", self._problems(sets | shifts))
        check_disjoint(**{name: data for name, data in sets.items() if isinstance(data, Dataset)})
        known = {name: data for name, data in sets.items() if isinstance(data, Dataset) and name != "test"}
        for name, data in shifts.items():  # which may be of the images of the test set
            check_disjoint(**known, **({name: data} if isinstance(data, Dataset) else {}))

    def _problems(self, sets):
        yield from class_name_problems(self.class_names)
        for name, data in sets.items():
            is_shift, shape = name.startswith("shift "), self.test.images.shape[1:]
            groups = data.class_groups if is_shift else None
            if groups is None and tuple(data.class_names) != tuple(self.class_names):
                how = differing(data.class_names, self.class_names) or "the same ones in another order"
                hint = "; give class_groups, which say which outputs they are" * is_shift
                yield f"{name} has other classes than the task: {how}{hint}"
            if groups and (largest := max(map(max, groups))) >= len(self.class_names):
                number = len(self.class_names)
                yield f"{name} has a class group with output {largest}, but the task has only {number} classes"
            if isinstance(data, Dataset) and data.images.shape[1:] != shape:
                yield f"{name} has images of shape {list(data.images.shape[1:])}, test has {list(shape)}"


def as_dataset(data: Any, class_names: Sequence[str] | None = None) -> Dataset:
    """Return data that a user holds in memory as a dataset, or say what it would have to be; nothing is guessed.

        as_dataset({"image": images, "label": labels})
        as_dataset((images, labels), class_names=["cat", "dog"])

    `data`: a `Dataset`, which is returned, or images uint8 [N, H, W, C] or gray [N, H, W] with integer labels [N].
    Where no `class_names` are given they are "0", "1", … up to the largest label, and there must be a 0. Anything else,
    such as floats in [0, 1], labels [N, 1] or one-hot, is a ValueError that says what would be right.
    """
    if isinstance(data, Dataset):
        return data
    images, labels = map(np.asarray, pair_of(data))
    images = images[..., None] if images.ndim == 3 else images
    problems = _array_problems(images, labels)
    if class_names is None and not problems:
        class_names = [str(number) for number in range(int(labels.max()) + 1)]
        if labels.min() > 0:
            problems = [f"labels count from 0, but these are {labels.min()} to {labels.max()}: give the class_names"]
    refuse(_INVALID, problems)
    return Dataset(images, labels, tuple(class_names))


def pair_of(data: Any, what: str = "the data", *, others: bool = False) -> tuple[Any, Any]:
    """Return inputs and targets, however they come: wherever the library takes examples, it takes all of these.

    `data`: a pair (inputs, targets), {"image": inputs, "label": targets}, or what has `images` and `labels`, such as a
    `Dataset`. Anything else, such as a source that is not decoded, is a ValueError, which calls it `what`. With
    `others` a mapping may have more entries, which are left out.
    """
    if hasattr(data, "images") and hasattr(data, "labels"):
        return data.images, data.labels
    if isinstance(data, Mapping):
        missing, extra = {"image", "label"} - data.keys(), data.keys() - {"image", "label"}
        if missing or (extra and not others):
            lines = differences(missing, extra)
            raise ValueError("\n".join([f'the keys of {what} must be "image" and "label":', *lines]))
        return data["image"], data["label"]
    if isinstance(data, tuple | list) and len(data) == 2:
        return tuple(data)
    if hasattr(data, "class_names"):
        raise ValueError(f"{what} must be decoded, which soups.data.decode does, not a {type(data).__name__}")
    raise ValueError(
        f'{what} must be a pair (inputs, labels), {{"image": inputs, "label": labels}} or have images and labels, '
        f"not a {type(data).__name__}"
    )


_SEEN = 64  # examples


def unscaled(inputs: Any) -> bool:
    """Say whether inputs are images as floats up to 255, which networks that expect [0, 1] take without a word.

    Known by the first 64 examples: of images [N, H, W, C] none is negative and one is above 16; of gray ones, which
    other data may resemble, [N, H, W], all are whole numbers and one is 255.
    """
    shape = getattr(inputs, "shape", ())
    floats = isinstance(kind := getattr(inputs, "dtype", None), np.dtype) and np.issubdtype(kind, np.floating)
    if len(shape) not in (3, 4) or not floats:
        return False
    first = np.asarray(inputs[:_SEEN])
    low, high = (first.min(), first.max()) if first.size else (0, 0)
    if len(shape) == 4:
        return bool(low >= 0 and 16 < high <= 255)
    return bool(low >= 0 and high == 255 and (first == np.rint(first)).all())


def decode(
    source: Source,
    transform: Transform | None = None,
    *,
    indices: Sequence[int] | np.ndarray | None = None,
    num_threads: int | None = None,
) -> Dataset:
    """Read and transform each example once, on threads, and keep the results in memory.

    `indices` picks examples, in that order; None means all. `num_threads`: None leaves the number to Python. Images of
    different shapes after the transform are a ValueError.
    """
    indices = range(len(source)) if indices is None else [int(index) for index in indices]
    if len(indices) == 0:
        raise ValueError("there is nothing to decode: the source or the list of indices is empty")
    with ThreadPoolExecutor(num_threads) as pool:
        examples = pool.map(lambda index: read_example(source, index, transform), indices)
        images, labels = stack_examples(examples, len(indices))
    return Dataset(images, labels, tuple(source.class_names), getattr(source, "class_groups", None))


def project_logits(logits: np.ndarray, class_groups: ClassGroups | None) -> np.ndarray:
    """Turn the logits [..., K] of a model into those of a dataset's classes [..., G].

    Logit g is the maximum over the outputs in group g; `class_groups=None` gives the logits back. A group that names an
    output the model does not have is a ValueError.
    """
    if class_groups is None:
        return logits
    flat = np.concatenate([np.asarray(group) for group in class_groups])
    if flat.max() >= logits.shape[-1]:
        raise ValueError(f"class groups name output {flat.max()}, but there are only {logits.shape[-1]} logits")
    starts = np.cumsum([0, *(len(group) for group in class_groups[:-1])])
    return np.maximum.reduceat(logits[..., flat], starts, axis=-1)


def read_example(source: Source, index: int, transform: Transform | None) -> tuple[np.ndarray, int]:
    """Return one example as (image, label), transformed and checked to be uint8 [H, W, C], else a ValueError.

    An `UnreadableImage` names what cannot be read, or what the transform refuses.
    """
    if transform is not None and not callable(transform):
        raise ValueError(f"transform must be a function of an image, not a {type(transform).__name__}")
    with memory_held():
        example = source[index]
        try:
            image = example["image"] if transform is None else transform(example["image"])
        except ValueError as error:
            raise UnreadableImage(f"{example_name(source, index)}: {error}") from error
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3:
        found = f"{image.dtype} {list(image.shape)}" if isinstance(image, np.ndarray) else f"a {type(image).__name__}"
        raise ValueError(f"image {index} must be uint8 [H, W, C], not {found}")
    return image, int(example["label"])


def example_name(source: Source, index: int) -> str:
    """Return what a source calls an example, such as its file."""
    return source.name(index) if hasattr(source, "name") else f"image {index}"


def stack_examples(examples: Iterable[tuple[np.ndarray, int]], count: int) -> tuple[np.ndarray, np.ndarray]:
    """Stack `count` (image, label) pairs into uint8 [N, H, W, C] and int32 [N].

    The pairs are taken one by one, so that no second copy of all images is ever in memory.
    """
    labels = np.empty(count, np.int32)
    for row, (image, label) in enumerate(examples):
        if row == 0:
            images = np.empty((count, *image.shape), np.uint8)
        if image.shape != images.shape[1:]:
            raise ValueError(
                f"images have different shapes, {list(images.shape[1:])} and {list(image.shape)}: give a transform "
                "that brings them to one, such as compose(resize_shorter(224), center_crop(224), to_channels(3))"
            )
        images[row], labels[row] = image, label
    return images, labels


def _array_problems(images, labels):
    problems = []
    if images.dtype != np.uint8 or images.ndim != 4:
        wrong = f"images must be uint8 [N, H, W, C], not {images.dtype} {list(images.shape)}"
        problems.append(wrong + _remedy_of_images(images))
    if not np.issubdtype(labels.dtype, np.integer) or labels.ndim != 1:
        wrong = f"labels must be integers [N], not {labels.dtype} {list(labels.shape)}"
        problems.append(wrong + _remedy_of_labels(labels))
    if images.ndim and labels.ndim and len(images) != len(labels):
        problems.append(f"there are {len(images)} images, but {len(labels)} labels")
    if 0 in images.shape:
        problems.append(f"images of shape {list(images.shape)} are empty")
    return problems


def _remedy_of_images(images):
    """Say how images become bytes, as far as their numbers tell what they are."""
    if images.dtype == np.uint8 or not images.size or not np.issubdtype(images.dtype, np.number):
        return ""
    low, high = images.min(), images.max()
    whole = np.issubdtype(images.dtype, np.integer) or bool((images == np.rint(images)).all())
    if whole and 1 < high <= 255 and low >= 0:
        return ": give images.astype(numpy.uint8)"
    if low >= 0 and high <= 1:
        return ": give numpy.rint(255 * images).astype(numpy.uint8); the library divides bytes by 255 itself"
    return f" from {low:.3g} to {high:.3g}: give the original bytes, and let apply_fn normalise them by mean and std"


def _remedy_of_labels(labels):
    if labels.ndim == 2 and labels.shape[1] == 1:
        return ": give labels[:, 0]"
    if labels.ndim == 2 and labels.size and (labels.sum(1) == 1).all() and np.isin(labels, (0, 1)).all():
        return ": give labels.argmax(1)"
    if labels.ndim == 1 and labels.dtype.kind == "f" and (labels == np.rint(labels)).all():
        return ": give labels.astype(int)"
    return ""


def _class_problems(dataset):
    count = len(dataset.class_names)
    problems = class_name_problems(dataset.class_names)
    problems += _range_problems(dataset.labels, count)
    if dataset.class_groups is not None:
        if len(dataset.class_groups) != count:
            problems.append(f"there are {len(dataset.class_groups)} class groups for {count} classes")
        if any(len(group) == 0 or min(group) < 0 for group in dataset.class_groups):
            problems.append("each class group must list at least one output of the model, counted from 0")
    return problems


def class_name_problems(names: Sequence[str]) -> list[str]:
    """Return what is wrong with the names of classes: fewer than two, or one that appears twice."""
    twice = [str(name) for name, number in collections.Counter(names).items() if number > 1]
    problems = [f"there must be at least 2 classes, not {len(names)}"] * (len(names) < 2)
    return problems + [f"class_names holds {few(map(repr, twice))} more than once"] * bool(twice)


def _range_problems(labels, count):
    outside = np.flatnonzero((labels < 0) | (labels >= count))
    if not outside.size:
        return []
    first = outside[0]
    return [f"{outside.size} labels are not in 0..{count - 1}, the first is labels[{first}] = {labels[first]}"]


def differing(names: Iterable[str], expected: Iterable[str]) -> str:
    """Say which classes are missing (-) and which are there besides (+), of each the first ten; nothing if none."""
    parts = {"-": {*expected} - {*names}, "+": {*names} - {*expected}}
    return "; ".join(f"{sign} {few(sorted(map(str, part)), 10)}" for sign, part in parts.items() if part)
