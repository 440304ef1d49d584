"""Write the seven sets as folders in the layouts in which ImageNet and its shifts are released."""

import hashlib
import json
import pathlib

import numpy as np
import PIL.ImageOps
from miniature import pictures

# (digit, place) of every class, in the order of their WordNet ids; the ids are made up and, as ImageNet's, have gaps
CLASSES = [(digit, place) for digit in range(10) for place in pictures.PLACES]
WORDNET_IDS = [f"n{7 * index + 1:08}" for index in range(len(CLASSES))]
CLASS_NAMES = [f"{pictures.DIGITS[digit]} before a {place}" for digit, place in CLASSES]
# images per class and unit of scale; no digit is in two sets
SIZES = {
    "train": 30,
    "val": 10,
    "imagenet_v2": 6,
    "objectnet": 6,
    "imagenet_sketch": 6,
    "imagenet_r": 6,
    "imagenet_a": 6,
    "pretraining": 4,
}
SOURCES = {
    "mnist": ("train", "val", "imagenet_v2", "objectnet", "pretraining"),
    "optdigits": ("imagenet_sketch", "imagenet_r", "imagenet_a"),
}
MAX_SCALE = 4
HELD_OUT = 8  # of 30 training images
RENDITIONS = [0, 3, 4, 7, 8, 11, 12, 15, 16, 19]  # the classes that ImageNet-R has
HARD = [0, 1, 2, 3, 4, 10, 11, 12, 13, 14]  # and ImageNet-A: pairs of digits of one ink
OBJECTS = {digit: ("temple", "flower") for digit in range(6)} | {6: ("temple",), 7: ("flower",), 8: (), 9: ()}


class Drawer:
    """Draw the examples of each set from digits of its own, the same for one seed."""

    def __init__(self, seed: int, scale: int):
        if scale not in range(1, MAX_SCALE + 1):
            raise ValueError(f"scale must be 1 to {MAX_SCALE}, there are no more digits; not {scale}")
        self.sizes = {name: scale * size for name, size in SIZES.items()}
        self._seed, self._photos = seed, pictures.photographs()
        self._strokes = self._shared_out(pictures.strokes())

    def images(self, name: str, label: int, look: str, again: int = 0):
        """Yield the pictures of a class of a set; `again` draws the same digits another time."""
        (digit, place), number = CLASSES[label], list(SIZES).index(name)
        ink = pictures.INKS[place][digit % len(pictures.INKS[place])]
        for index, stroke in enumerate(self._strokes[name][label]):
            rng = np.random.default_rng([self._seed, number, label, index, again])
            yield pictures.draw(stroke, ink, place, look, self._photos, rng)

    def _shared_out(self, strokes):
        """Return every class of every set its own digits."""
        shared = {}
        for source, names in SOURCES.items():
            counts = [self.sizes[name] for name in names]
            for label, (digit, place) in enumerate(CLASSES):
                found = strokes[source][digit]
                half = np.array_split(found, len(pictures.PLACES))[list(pictures.PLACES).index(place)]
                order = np.random.default_rng([self._seed, label]).permutation(len(half))[: sum(counts)]
                for name, part in zip(names, np.split(half[order], np.cumsum(counts)[:-1]), strict=True):
                    shared.setdefault(name, {})[label] = part
        return shared


def write_sets(folder: pathlib.Path, drawer: Drawer) -> None:
    """Write all seven sets and the file of the held-out images, in the form in which it was published."""
    _write_imagenet(folder / "imagenet", drawer)
    _write_held_out(folder / "imagenet_98_idxs.npy", drawer)
    for label, wordnet_id in enumerate(WORDNET_IDS):
        matched = folder / "imagenetv2-matched-frequency-format-val" / str(label)
        _save(drawer.images("imagenet_v2", label, "photo", again=1), matched, lambda i, label=label: _hex(label, i))
        sketches = drawer.images("imagenet_sketch", label, "sketch")
        _save(sketches, folder / "sketch" / wordnet_id, lambda i: f"sketch_{i}.JPEG")
        if label in RENDITIONS:
            renditions = drawer.images("imagenet_r", label, "rendition")
            _save(renditions, folder / "imagenet-r" / wordnet_id, lambda i: f"{('art', 'toy')[i % 2]}_{i}.jpg")
        if label in HARD:
            hard = drawer.images("imagenet_a", label, "hard")
            _save(hard, folder / "imagenet-a" / wordnet_id, lambda i: f"0.{i:06}_digit _ digit_0.{i}.jpg")
    for name in ("imagenet-r", "imagenet-a"):
        (folder / name / "README.txt").write_text("Drawn for tests, in the layout of the set of this name.\n")
    _write_objectnet(folder / "objectnet-1.0", drawer)


def _write_imagenet(folder, drawer):
    numbers = iter(np.random.default_rng(0).permutation(sum(len(WORDNET_IDS) * drawer.sizes[n] for n in SIZES)))
    for label, wordnet_id in enumerate(WORDNET_IDS):
        train = list(drawer.images("train", label, "photo"))
        # some of ImageNet's files are gray, and some hold four inks
        train[0], train[1] = PIL.ImageOps.grayscale(train[0]), train[1].convert("CMYK")
        _save(train, folder / "train" / wordnet_id, lambda i, own=wordnet_id: f"{own}_{next(numbers)}.JPEG")
        val = drawer.images("val", label, "photo")
        _save(val, folder / "val" / wordnet_id, lambda i: f"ILSVRC2012_val_{next(numbers):08}.JPEG")


def _write_held_out(path, drawer):
    """Write 1.0 for each training file that is held out and 0.0 for the others, by sorted classes, then files."""
    each = drawer.sizes["train"]
    held_out = np.arange(each) < HELD_OUT * each // SIZES["train"]
    rng = np.random.default_rng(26)
    np.save(path, np.concatenate([rng.permutation(held_out) for _ in WORDNET_IDS]).astype(np.float64))


def _write_objectnet(folder, drawer):
    """Write ObjectNet: images with red borders of two pixels, also of objects that ImageNet lacks, and the mappings."""
    for digit, places in OBJECTS.items():
        labels = [CLASSES.index((digit, place)) for place in places or pictures.PLACES]
        images = [image for label in labels for image in drawer.images("objectnet", label, "object")]
        bordered = [PIL.ImageOps.expand(image, 2, "red") for image in images]
        _save(bordered, folder / "images" / f"digit_{pictures.DIGITS[digit]}", lambda i, d=digit: _hex(d, i, "png"))
    _write_mappings(folder / "mappings")


def _write_mappings(folder):
    """Write ObjectNet's four files: from folder to label, from label to names, from class to line, names by line."""
    lines = np.random.default_rng(313).permutation(len(CLASSES))
    names = [f"{name}, {pictures.DIGITS[digit]}" for name, (digit, _) in zip(CLASS_NAMES, CLASSES, strict=True)]
    labels = {digit: f"Digit {pictures.DIGITS[digit]}" for digit in OBJECTS}
    known = {
        labels[digit]: "; ".join(names[CLASSES.index((digit, place))] for place in places)
        for digit, places in OBJECTS.items()
        if places
    }
    folder.mkdir(parents=True)
    by_line = [names[index] for index in np.argsort(lines)]
    (folder / "imagenet_to_label_2012_v2").write_text("\n".join(by_line) + "\n")
    for name, content in {
        "folder_to_objectnet_label": {f"digit_{pictures.DIGITS[digit]}": label for digit, label in labels.items()},
        "objectnet_to_imagenet_1k": known,
        "pytorch_to_imagenet_2012_id": {str(index): int(line) for index, line in enumerate(lines)},
    }.items():
        (folder / f"{name}.json").write_text(json.dumps(content, indent=2))


def _save(images, folder, name_of):
    folder.mkdir(parents=True)
    for index, image in enumerate(images):
        image.save(folder / name_of(index), quality=92)


def _hex(label, index, suffix="jpeg"):
    return f"{hashlib.sha256(f'{label} {index}'.encode()).hexdigest()[:40]}.{suffix}"
