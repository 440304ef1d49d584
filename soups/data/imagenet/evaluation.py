"""Make the sets to evaluate on: every image decoded once, square and uint8, mapped from a file."""

import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from soups.data.dataset import Dataset
from soups.data.imagenet.decoded import DecodedSet, check_space, corrupt_lines, decode_once, decoded_set, open_decoded
from soups.data.imagenet.held_out import BY_NAME
from soups.data.imagenet.layouts import INDEX_FILE, SETS
from soups.data.imagenet.opening import held_out_kind, imagenet_sources
from soups.data.sources import UnreadableImage
from soups.files import PathLike, local_path
from soups.names import check_name
from soups.processes import all_or_none, on_first_process

PUBLISHED_SIZES = {"held_out": 26_000, "imagenet": 50_000, "imagenet_v2": 10_000, "imagenet_sketch": 50_889}
PUBLISHED_SIZES |= {"imagenet_r": 30_000, "objectnet": 18_574, "imagenet_a": 7_500}
OBJECTNET_BORDER = 2  # pixels, red


@dataclasses.dataclass(frozen=True, eq=False)
class EvaluationSet(Dataset):
    """Keep a set decoded.

    Attributes:
        digest: of all pixels, labels and class groups.
        notes: sentences that a report of numbers on this set must carry.
    """

    digest: str = ""
    notes: tuple[str, ...] = ()

    def take(self, indices: Sequence[int] | np.ndarray) -> Dataset:
        """Copy the examples at `indices`, in that order; digest and notes are about all of them and stay behind."""
        return Dataset(self.images[indices], self.labels[indices], self.class_names, self.class_groups)


def evaluation_sets(
    data_dir: PathLike,
    cache_dir: PathLike,
    *,
    image_size: int,
    sets: Sequence[str] = SETS,
    progress: Callable | None = None,
    on_corrupt: str = "raise",
    crop_objectnet_border: bool = False,
) -> dict[str, EvaluationSet]:
    """Open sets with all images decoded, uint8 [N, S, S, 3], S = `image_size`; what is not in `cache_dir` is decoded.

    The images are read-only memory maps of the cache; `soups.data.imagenet.decoded` has its format and the transform.
    A set takes N · S² · 3 bytes: 3.9 GB for the 26,000 held-out images at 224 pixels. A run that is killed goes on
    where it was. Every byte is checked when a set is opened. `progress(what, total, unit)` is a context that gives the
    function `advance(n)`, such as `soups.progress.progress`. `on_corrupt="count"` leaves out images that
    cannot be read and says so in `notes`. `crop_objectnet_border` cuts ObjectNet's red border, 2 pixels; the published
    numbers are without that, though the code that made them was meant to cut it.

    With several JAX processes all of them must call it, with a `cache_dir` that all of them see: the first one decodes.

    Raises:
        FileNotFoundError, ValueError: as `imagenet_sources`; a broken cache, named with its images; images that cannot
            be read, all listed when everything else is decoded.
        OSError: the disk has too little space for the sets.
    """
    check_name(on_corrupt, ("raise", "count"), "way with corrupt images")
    cache_dir = local_path(cache_dir)
    sources = all_or_none(lambda: imagenet_sources(data_dir, sets, cache_dir=cache_dir))
    borders = {"objectnet": OBJECTNET_BORDER} if crop_objectnet_border else {}
    places = {
        name: decoded_set(name, source, cache_dir, image_size=image_size, border=borders.get(name, 0))
        for name, source in sources.items()
    }
    on_first_process(lambda: _decode_all(places, cache_dir, progress, on_corrupt))
    return all_or_none(lambda: {name: _evaluation_set(data_dir, name, one, on_corrupt) for name, one in places.items()})


def count_notes(datasets: Mapping[str, Dataset]) -> list[str]:
    """List what makes numbers on these sets differ from published ones: other counts, images left out, another split.

    `datasets`: by name, as `evaluation_sets` gives them.
    """
    notes = []
    for name, dataset in datasets.items():
        if len(dataset) != (published := PUBLISHED_SIZES.get(name, len(dataset))):
            notes.append(f"{name} has {len(dataset):,} images, the published set has {published:,}")
        notes += [f"{name}: {note}" for note in getattr(dataset, "notes", ())]
    return notes


def _decode_all(places, cache_dir, progress, on_corrupt):
    cache_dir.mkdir(parents=True, exist_ok=True)
    waiting = {name: one for name, one in places.items() if not one.is_finished}
    check_space(list(waiting.values()))
    problems, nothing = [], contextlib.nullcontext(lambda number: None)
    for name, one in waiting.items():
        with progress(f"decode {name}", len(one.source), "images") if progress else nothing as advance:
            try:
                decode_once(one, advance, on_corrupt)
            except UnreadableImage as error:
                problems.append(f"{name}: {error}")
    if problems:
        raise ValueError("\n".join(problems))


def _evaluation_set(data_dir, name, one: DecodedSet, on_corrupt):
    content = open_decoded(one)
    if content.faults and on_corrupt == "raise":
        raise ValueError(f"{name}: {corrupt_lines(content.faults)}")
    notes = []
    if content.faults:
        notes.append(f"{len(content.faults)} images cannot be read and are left out: {'; '.join(content.faults)}")
    if name == "held_out" and held_out_kind(data_dir) == BY_NAME:
        notes.append(f"chosen by file name, because {INDEX_FILE} is missing: not the images of the published soups")
    if one.border:
        notes.append(f"a border of {one.border} pixels is cut off, the published numbers are without that")
    source = one.source
    labels = (content.labels, source.class_names, source.class_groups)
    return EvaluationSet(content.images, *labels, content.digest, tuple(notes))
