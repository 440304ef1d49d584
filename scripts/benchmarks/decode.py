"""Measure how fast evaluation sets are decoded: images per second of a core, and of this machine.

    python scripts/benchmarks/decode.py [--images 300] [--repeats 3] [--out FILE]

The images are drawn: 500 x 375 pixels, JPEG of quality 95, about as long as those of ImageNet are on average (110 kB).
They become 224 x 224 as the published evaluation has it. (ObjectNet's files are larger PNG: not measured.) "set" is the
whole of it, threads, digests and the file included. The file is then opened again, with all digests checked: from the
page cache, so it is the speed of hashing. Rates of a core are by the seconds that the process had a processor, of all
threads together: they are of use on a busy machine too, where those by the clock are too low. The best repeat counts.
"""

import argparse
import os
import pathlib
import tempfile
import time

import _common
import numpy as np
import PIL.Image

from soups.data import center_crop, compose, folder_source, resize_shorter, to_channels
from soups.data.imagenet.decoded import decode_once, decoded_set, open_decoded
from soups.data.sources import View

SIZE = 224
SETS = {"held_out": 26_000, "all seven": 192_963}


def main():
    """Draw the images, measure, print and write."""
    options = _options()
    with tempfile.TemporaryDirectory(prefix="decode_") as folder:
        view, mean_bytes = draw(pathlib.Path(folder, "images"), options.images)
        seconds = measure(view, pathlib.Path(folder), options.repeats)
    machine = _common.machine()
    rates = {
        name: {clock: len(view) / min(values) for clock, values in clocks.items()} for name, clocks in seconds.items()
    }
    per_second = rates["set"]["wall"]
    record = {
        "machine": machine,
        "pillow": PIL.__version__,
        "load_average": os.getloadavg()[0],
        "images": len(view),
        "mean_bytes": mean_bytes,
        "seconds": seconds,
        "images_per_second": {name: rate["wall"] for name, rate in rates.items()},
        "images_per_second_of_a_core": {name: rate["processor"] for name, rate in rates.items()},
        "minutes_on_this_machine": {name: count / per_second / 60 for name, count in SETS.items()},
        "opening_gb_per_second": rates["open"]["wall"] * SIZE**2 * 3 / 1e9,
    }
    rows = [[name, rate["wall"], rate["processor"]] for name, rate in rates.items()]
    title = f"{len(view)} JPEGs of {mean_bytes / 1000:.0f} kB on {machine['cores']} cores"
    _common.table(title, ["images/s", "by the clock", "of a core"], rows)
    _common.write(options.out, record)


def draw(folder: pathlib.Path, count: int) -> tuple[View, float]:
    """Draw photographs of a kind, with edges and grain, so that their JPEG has the usual length; give its mean too."""
    rng = np.random.default_rng(0)
    lengths = []
    for number in range(count):
        coarse = PIL.Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        edges = PIL.Image.fromarray(rng.integers(0, 256, (47, 63, 3), dtype=np.uint8)).resize((500, 375), 0)
        smooth = np.asarray(coarse.resize((500, 375), PIL.Image.Resampling.BICUBIC), np.float32)
        pixels = 0.8 * smooth + 0.2 * np.asarray(edges, np.float32) + rng.normal(0, 5, (375, 500, 1))
        path = folder / f"class_{number % 2}" / f"{number:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, quality=95)
        lengths.append(path.stat().st_size)
    source = folder_source(folder)
    return View(source, np.arange(count), source.labels, source.class_names), float(np.mean(lengths))


def measure(view: View, folder: pathlib.Path, repeats: int) -> dict[str, dict[str, list[float]]]:
    """Time reading and decoding, the transform after it, a whole set into a new cache, and opening that."""
    transform = compose(resize_shorter(SIZE), center_crop(SIZE), to_channels(3))
    seconds = {}
    for repeat in range(repeats):
        one = decoded_set("drawn", view, folder / f"cache_{repeat}", image_size=SIZE)
        stages = {
            "decode, one thread": lambda: [view[index]["label"] for index in range(len(view))],
            "decode and resize, one thread": lambda: [transform(view[i]["image"]).shape for i in range(len(view))],
            "set": lambda one=one: decode_once(one, lambda number: None),
            "open": lambda one=one: open_decoded(one),
        }
        for name, function in stages.items():
            wall, processor = time.perf_counter(), time.process_time()
            function()
            clocks = seconds.setdefault(name, {"wall": [], "processor": []})
            clocks["wall"].append(time.perf_counter() - wall)
            clocks["processor"].append(time.process_time() - processor)
    return seconds


def _options():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", default="docs/benchmarks/decode.json", help="JSON file for the results")
    return parser.parse_args()


if __name__ == "__main__":
    main()
