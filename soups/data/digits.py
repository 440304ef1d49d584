"""Make the task of the default experiment: real handwritten digits from two sources, no download."""

from collections.abc import Mapping, Sequence

import numpy as np

from soups.data.dataset import Dataset, Task, decode
from soups.data.glyphs import printed_digits
from soups.data.shifts import check_corruption, corrupt
from soups.data.sources import tfds_source
from soups.data.splits import check_disjoint, split_indices
from soups.data.transforms import compose, resize, to_channels
from soups.files import PathLike
from soups.names import check_name

_OTHER = {"mnist_5k": "optdigits", "optdigits": "mnist_5k"}
_FIXED_SEED = 0  # of what reports: test set, shifts and pre-training are the same in every repetition


def digits_task(
    *,
    target: str = "mnist_5k",
    image_size: int,
    num_train: int,
    num_held_out: int,
    num_test: int,
    shifts: Mapping[str, Sequence[int]] | None = None,
    num_shifted: int | None = None,
    natural_shift_size: int = 1,
    printed: bool = False,
    fixed_test: bool = True,
    seed: int = 0,
    data_dir: PathLike | None = None,
) -> tuple[Task, dict[str, Dataset]]:
    """Return the task on one source of digits, and the other source to pre-train on as {"train": …, "test": …}.

    `target` is "mnist_5k" (5,000 images) or "optdigits" (1,797). Images are gray, uint8 [N, image_size, image_size, 1].
    The shifts are named "family/severity", for the families and severities in `shifts`, made from `num_shifted` images
    of the test set (default: all); the one named like the other source is natural: `natural_shift_size` images of that
    source, kept out of pre-training (`pretrain["test"]`). With `printed` there is another natural one, "printed", the
    digits of `printed_digits`. `seed` draws train and held-out, and everything else too unless `fixed_test`. Whose
    images they are, and under which licences, is in docs/glyphs.md.

    An unknown target, family or severity, and more images than a source has are a ValueError.
    """
    check_name(target, _OTHER, "source of digits")
    levels = [(family, severity) for family, severities in (shifts or {}).items() for severity in severities]
    for family, severity in levels:
        check_corruption(family, severity)

    to_task = compose(resize(image_size), to_channels(1))
    own = decode(tfds_source(target, "train", data_dir=data_dir), to_task)
    other = decode(tfds_source(_OTHER[target], "train", data_dir=data_dir), to_task)
    drawn_with = _FIXED_SEED if fixed_test else seed
    test, rest = set_apart(own, "test", num_test, drawn_with)
    natural, pretraining = set_apart(other, "natural shift", natural_shift_size, drawn_with)
    parts = split_indices(rest.labels, {"train": num_train, "held_out": num_held_out}, seed)
    check_disjoint(pretraining=pretraining, natural_shift=natural)

    some = test if num_shifted is None else _some(test, num_shifted)
    corrupted = {f"{name}/{severity}": corrupt(some, name, severity, drawn_with) for name, severity in levels}
    others = {_OTHER[target]: natural} | ({"printed": printed_digits(image_size)} if printed else {})
    task = Task(
        name=target,
        class_names=own.class_names,
        train=rest.take(parts["train"]),
        held_out=rest.take(parts["held_out"]),
        test=test,
        shifts={**corrupted, **others},
    )
    return task, {"train": pretraining, "test": natural}


def set_apart(dataset: Dataset, name: str, size: int, seed: int = _FIXED_SEED) -> tuple[Dataset, Dataset]:
    """Split off a part, by default the same one for all seeds of a study, and return it and the rest."""
    chosen = split_indices(dataset.labels, {name: size}, seed)[name]
    rest = np.setdiff1d(np.arange(len(dataset)), chosen)
    if not rest.size:
        raise ValueError(f"{name} takes all {len(dataset)} images: nothing is left to train on")
    return dataset.take(chosen), dataset.take(rest)


def _some(test, size):
    """Return as many images of the test set, of all classes alike."""
    return test if size == len(test) else set_apart(test, "num_shifted", size)[0]
