"""Keep a set decoded: a file of raw pixels, written once, mapped by every evaluation, checked when it is opened.

A finished set is a folder with `images.bin` (uint8 [N, S, S, 3], row after row, nothing else) and `record.json` (the
count, the xxh3 of every block of 1,000 images, the files left out). It grows in a folder of the same name with
".unfinished", where `blocks.jsonl` lists the blocks that are done: a run that was killed decodes only the others. The
name has a digest of all that the pixels depend on, so other files, another size or another crop have another folder.
"""

import contextlib
import dataclasses
import errno
import json
import os
import pathlib
import shutil
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import xxhash

from soups import state
from soups.data.dataset import read_example
from soups.data.sources import UnreadableImage, View
from soups.data.transforms import center_crop, compose, resize_shorter, to_channels
from soups.files import cannot_write, lock

BLOCK = 1000  # images
_JOURNAL = "blocks.jsonl"
_SCHEMA = "soups.decoded/1"  # another one when the pixels of the same files change


@dataclasses.dataclass(frozen=True)
class DecodedSet:
    """Say where a set is kept decoded, or will be: `folder` is new for other files, sizes and crops.

    Attributes:
        source: its images become RGB; the shorter side is resized to `image_size` (bicubic, by Pillow, antialiased),
            then the central square is cut: the evaluation transform of CLIP and of the published soups.
        folder: of the finished set.
        image_size: pixels, S.
        border: pixels cut off on all four sides before that.
    """

    source: View
    folder: pathlib.Path
    image_size: int
    border: int = 0

    @property
    def is_finished(self) -> bool:
        """Say whether the set was decoded to its end."""
        return (self.folder / "record.json").exists()

    @property
    def num_bytes(self) -> int:
        """Count the bytes of all images."""
        return len(self.source) * self.image_size**2 * 3

    @property
    def unfinished(self) -> pathlib.Path:
        """Return the folder in which the set grows."""
        return self.folder.with_name(f"{self.folder.name}.unfinished")


class Content(NamedTuple):
    """Hold what a finished set has: images uint8 [N, S, S, 3], labels int32 [N], faults of the files left out."""

    images: np.memmap
    labels: np.ndarray
    faults: list[str]
    digest: str


def decoded_set(name: str, source: View, cache_dir, *, image_size: int, border: int = 0) -> DecodedSet:
    """Name the folder of a set in `cache_dir` by all that its pixels depend on; of files only the sizes are read."""
    depends = [_SCHEMA, name, image_size, border, BLOCK, source.stamp(), xxhash.xxh3_64_hexdigest(source.labels)]
    key = xxhash.xxh3_64_hexdigest(json.dumps(depends).encode())
    return DecodedSet(source, pathlib.Path(cache_dir, f"{name}-{image_size}px-{key}"), image_size, border)


def check_space(sets: list[DecodedSet]) -> None:
    """Raise an OSError, with both numbers, if the disk has less space than what is still to be written."""
    if not sets:
        return
    begun = (one.unfinished / "images.bin" for one in sets)
    written = sum(getattr(file.stat(), "st_blocks", 0) * 512 for file in begun if file.exists())  # Windows says nothing
    needed = sum(one.num_bytes for one in sets) - written
    parent = sets[0].folder.parent
    if needed > (free := shutil.disk_usage(parent).free):
        text = f"the decoded sets need {needed / 1e9:.1f} GB in {parent}, but only {free / 1e9:.1f} GB are free"
        raise OSError(errno.ENOSPC, text)


def decode_once(one: DecodedSet, advance: Callable[[int], None], on_corrupt: str = "raise") -> None:
    """Decode a set on threads, unless that was done; processes that ask at the same time wait for the first.

    `advance(n)` hears of every n images done. `on_corrupt="count"` leaves out images that cannot be read, which the
    record names; otherwise an `UnreadableImage` lists all of them when the others are decoded.
    """
    with _alone(one.folder):
        if one.is_finished:
            return
        corrupt = _write_blocks(one, advance)
        if corrupt and (on_corrupt == "raise" or len(corrupt) == len(one.source)):
            raise UnreadableImage(corrupt_lines(corrupt.values()))
        _finish(one, corrupt)


def open_decoded(one: DecodedSet) -> Content:
    """Map a finished set, read-only.

    Every byte is compared with the digests, at the speed of the disk or of the memory; a broken file is a ValueError
    that names it and the images at fault, and a set that is not finished here a FileNotFoundError.
    """
    if not one.is_finished:
        where = f"there is no decoded set {one.folder}"
        raise FileNotFoundError(
            f"{where}; with several hosts the first one decodes, and all must see the same cache_dir"
        )
    record = _record(one)
    path = one.folder / "images.bin"
    shape = (record["count"], one.image_size, one.image_size, 3)
    if path.stat().st_size != (expected := int(np.prod(shape))):
        raise ValueError(f"{path}: it has {path.stat().st_size} bytes, not {expected}; {_remedy(one)}")
    images = np.memmap(path, np.uint8, "r", shape=shape)
    with ThreadPoolExecutor() as pool:
        digests = list(pool.map(_digest, (images[start:stop] for start, stop in _blocks(len(images)))))
    broken = [number for number, digest in enumerate(digests) if digest != record["digests"][number]]
    if broken:
        where = ", ".join(f"{number * BLOCK}..{min((number + 1) * BLOCK, len(images)) - 1}" for number in broken[:10])
        raise ValueError(f"{path}: images {where} are not what was written ({len(broken)} blocks); {_remedy(one)}")
    left_out = [int(index) for index in record["left_out"]]
    labels = np.delete(one.source.labels, left_out)
    digest = _digest(json.dumps([digests, _digest(labels), one.source.class_groups]).encode())
    return Content(images, labels, list(record["left_out"].values()), digest)


def corrupt_lines(faults: Collection[str]) -> str:
    """List what is wrong with images that cannot be read."""
    lines = "\n".join(f"  {fault}" for fault in faults)
    return f'{len(faults)} images cannot be read (on_corrupt="count" leaves them out, and says so):\n{lines}'


def _write_blocks(one, advance):
    """Decode the blocks that are not done yet; give the index and the fault of each corrupt image."""
    path, corrupt = one.unfinished / "images.bin", {}
    one.unfinished.mkdir(exist_ok=True)
    path.touch()
    os.truncate(path, one.num_bytes)
    done = _finished_blocks(one)
    try:
        with open(path, "r+b") as file, open(one.unfinished / _JOURNAL, "ab") as journal, ThreadPoolExecutor() as pool:
            for number, (start, stop) in enumerate(_blocks(len(one.source))):
                if number not in done:
                    corrupt |= _write_block(one, number, file, journal, pool)
                advance(stop - start)
            os.fsync(file.fileno())
    except OSError as error:
        raise cannot_write(path, error) from error
    return corrupt


def _write_block(one, number, file, journal, pool):
    start, stop = _blocks(len(one.source))[number]
    pixels, faults = _decode_block(one, pool, start, stop)
    file.seek(start * one.image_size**2 * 3)
    file.write(pixels)
    file.flush()
    if not faults:  # otherwise it is tried again the next time
        # a line of its own, even after one that was cut off
        journal.write(b"\n" + state.sealed_line({"block": number, "digest": _digest(pixels)}))
        journal.flush()
    return faults


def _decode_block(one, pool, start, stop):
    pixels = np.zeros((stop - start, one.image_size, one.image_size, 3), np.uint8)
    cut, side = one.border, one.image_size

    def inner(image):
        return image[cut : image.shape[0] - cut, cut : image.shape[1] - cut]

    transform = compose(inner, resize_shorter(side), center_crop(side), to_channels(3))

    def decode(row):
        try:
            pixels[row], _ = read_example(one.source, start + row, transform)
        except UnreadableImage as error:
            return start + row, str(error)

    return pixels, dict(filter(None, pool.map(decode, range(stop - start))))


def _finished_blocks(one):
    """Find the blocks that the journal lists and whose pixels are still those."""
    journal = one.unfinished / _JOURNAL
    images = np.memmap(one.unfinished / "images.bin", np.uint8, "r", shape=(len(one.source), one.image_size**2 * 3))
    digests = {}
    for line in journal.read_bytes().split(b"\n") if journal.exists() else ():
        with contextlib.suppress(ValueError):  # a line that a killed process cut off, or a damaged one: not done
            entry = state.unsealed_line(line, journal)
            digests[entry["block"]] = entry["digest"]
    blocks = _blocks(len(images))
    return {number for number, digest in digests.items() if digest == _digest(images[slice(*blocks[number])])}


def _finish(one, corrupt):
    """Close the gaps that corrupt images leave, write the record and give the folder its name."""
    path = one.unfinished / "images.bin"
    images = np.memmap(path, np.uint8, "r+", shape=(len(one.source), one.image_size, one.image_size, 3))
    kept = np.setdiff1d(np.arange(len(images)), list(corrupt))
    if corrupt:
        (one.unfinished / _JOURNAL).unlink(missing_ok=True)  # the blocks are about to move
        for place, index in enumerate(kept):
            images[place] = images[index]
        images.flush()
    digests = [_digest(images[start:stop]) for start, stop in _blocks(len(kept))]
    del images
    os.truncate(path, len(kept) * one.image_size**2 * 3)
    left_out = {str(index): corrupt[index] for index in sorted(corrupt)}
    record = {"schema": _SCHEMA, "count": len(kept), "digests": digests, "left_out": left_out}
    state.write(one.unfinished / "record.json", record)
    (one.unfinished / _JOURNAL).unlink(missing_ok=True)
    os.replace(one.unfinished, one.folder)


def _record(one):
    """Return what the record says, if it is of these images."""
    fields = {"count": int, "digests": list, "left_out": dict}
    try:
        record = state.read(one.folder / "record.json", fields)
    except ValueError as error:
        raise ValueError(f"{error}; {_remedy(one)}") from error
    count, left_out = record["count"], record["left_out"]
    if len(record["digests"]) != len(_blocks(count)) or count + len(left_out) != len(one.source):
        raise ValueError(f"{one.folder / 'record.json'} belongs to other images; {_remedy(one)}")
    return record


@contextlib.contextmanager
def _alone(folder):
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.with_name(f".{folder.name}.lock"), "ab") as file:
        lock(file)
        yield


def _blocks(count):
    return [(start, min(start + BLOCK, count)) for start in range(0, count, BLOCK)]


def _digest(pixels):
    return xxhash.xxh3_128_hexdigest(pixels)


def _remedy(one):
    return f"delete {one.folder} to decode the set again"
