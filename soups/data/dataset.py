"""Hold decoded images: a `Dataset` is one split in memory, a `Task` all that an experiment trains and tests on."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import numpy as np

from soups.data.splits import check_disjoint
from soups.data.transforms import Transform

ClassGroups = tuple[tuple[int, ...], ...]


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
    """Keep one split decoded in memory.

    Attributes:
        images: uint8 [N, H, W, C].
        labels: int32 [N], indices into `class_names`.
        class_names: at least two.
        class_groups: for a set that has other classes than the model: group g lists the outputs of the model whose
            maximum is the logit of class g. None: output g is class g. (ImageNet-R has 200 groups of one output each,
            ObjectNet 113 groups over 125 outputs.)

    Raises:
        ValueError: no examples, wrong dtypes or shapes, fewer than two classes, a label without a class, or groups that
            are empty or not one for each class.
    """

    images: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]
    class_groups: ClassGroups | None = None

    def __post_init__(self):
        if problems := _array_problems(self.images, self.labels) or _class_problems(self):
            raise ValueError("not a valid dataset:\n" + "\n".join(f"  {problem}" for problem in problems))

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict:
        return {"image": self.images[index], "label": int(self.labels[index])}

    def take(self, indices) -> "Dataset":
        """Copy the examples at `indices`, in that order."""
        return dataclasses.replace(self, images=self.images[indices], labels=self.labels[indices])


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
    """Bundle all data of an experiment; shifts are test sets from other distributions, by name.

    `train` may be a source that is not decoded; it is then read only by a loader and not compared with the others.

    Raises:
        ValueError: fewer than two classes, splits that overlap, or sets whose classes or image shapes do not fit; all
            such sets are listed.
    """

    name: str
    class_names: tuple[str, ...]
    train: Dataset | Source
    held_out: Dataset
    test: Dataset
    shifts: Mapping[str, Dataset]

    def __post_init__(self):
        sets = {"train": self.train, "held_out": self.held_out, "test": self.test}
        shifts = {f"shift {name!r}": dataset for name, dataset in self.shifts.items()}
        problems = [f"there must be at least 2 classes, not {len(self.class_names)}"] * (len(self.class_names) < 2)
        problems += [_names_problem(name, data, self.class_names) for name, data in sets.items()]
        problems += [_shift_problem(name, data, self.class_names) for name, data in shifts.items()]
        decoded = {name: data for name, data in (sets | shifts).items() if isinstance(data, Dataset)}
        shape = self.test.images.shape[1:]
        problems += [
            f"{name} has images of shape {list(data.images.shape[1:])}, test has {list(shape)}"
            for name, data in decoded.items()
            if data.images.shape[1:] != shape
        ]
        if problems := [problem for problem in problems if problem]:
            lines = "\n".join(f"  {problem}" for problem in problems)
            raise ValueError(f"the sets of task {self.name!r} do not fit together:\n{lines}")
        check_disjoint(**{name: data for name, data in sets.items() if name in decoded})


def decode(
    source: Source, transform: Transform | None = None, *, indices=None, num_threads: int | None = None
) -> Dataset:
    """Read and transform each example once, on threads, and keep the results in memory.

    `indices` picks examples, in that order; None means all. `num_threads`: None leaves the number to Python.

    Raises:
        ValueError: images of different shapes after the transform, or any that `Dataset` raises.
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

    Logit g is the maximum over the outputs in group g; `class_groups=None` gives the logits back.

    Raises:
        ValueError: a group that names an output the model does not have.
    """
    if class_groups is None:
        return logits
    flat = np.concatenate([np.asarray(group) for group in class_groups])
    if flat.max() >= logits.shape[-1]:
        raise ValueError(f"class groups name output {flat.max()}, but there are only {logits.shape[-1]} logits")
    starts = np.cumsum([0, *(len(group) for group in class_groups[:-1])])
    return np.maximum.reduceat(logits[..., flat], starts, axis=-1)


def read_example(source: Source, index: int, transform: Transform | None) -> tuple[np.ndarray, int]:
    """Return one example as (image, label), transformed and checked to be uint8 [H, W, C]."""
    example = source[index]
    image = example["image"] if transform is None else transform(example["image"])
    if image.dtype != np.uint8 or image.ndim != 3:
        raise ValueError(f"image {index} must be uint8 [H, W, C], not {image.dtype} {list(image.shape)}")
    return image, int(example["label"])


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
        problems.append(f"images must be uint8 [N, H, W, C], not {images.dtype} {list(images.shape)}")
    if labels.dtype != np.int32 or labels.ndim != 1:
        problems.append(f"labels must be int32 [N], not {labels.dtype} {list(labels.shape)}")
    if len(images) != len(labels):
        problems.append(f"there are {len(images)} images, but {len(labels)} labels")
    if 0 in images.shape:
        problems.append(f"there is nothing in images of shape {list(images.shape)}")
    return problems


def _class_problems(dataset):
    count = len(dataset.class_names)
    problems = [f"there must be at least 2 classes, not {count}"] * (count < 2)
    outside = np.flatnonzero((dataset.labels < 0) | (dataset.labels >= count))
    if outside.size:
        first = outside[0]
        problems.append(
            f"{outside.size} labels are not in 0..{count - 1}, the first is labels[{first}] = {dataset.labels[first]}"
        )
    if dataset.class_groups is not None:
        if len(dataset.class_groups) != count:
            problems.append(f"there are {len(dataset.class_groups)} class groups for {count} classes")
        if any(len(group) == 0 or min(group) < 0 for group in dataset.class_groups):
            problems.append("each class group must list at least one output of the model, counted from 0")
    return problems


def _names_problem(name: str, data: Source, class_names: Sequence[str]):
    if tuple(data.class_names) != tuple(class_names):
        return f"{name} has other classes than the task: {_differing(data.class_names, class_names)}"
    return None


def _shift_problem(name: str, data: Dataset, class_names: Sequence[str]):
    if data.class_groups is None:
        problem = _names_problem(name, data, class_names)
        return f"{problem}; class_groups would say which outputs they are" if problem else None
    largest = max(max(group) for group in data.class_groups)
    if largest >= len(class_names):
        return f"{name} has a class group with output {largest}, but the task has only {len(class_names)} classes"
    return None


def _differing(names, expected):
    missing = [name for name in expected if name not in names]
    extra = [name for name in names if name not in expected]
    parts = [f"{sign} {', '.join(map(str, part[:10]))}" for sign, part in (("-", missing), ("+", extra)) if part]
    return "; ".join(parts) or "the same ones in another order"
