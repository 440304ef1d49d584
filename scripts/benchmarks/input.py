"""Measure the training input: images per second of each part, of threads and processes, and how long a step waits.

    python scripts/benchmarks/input.py [--images DIR] [--count 512] [--repeats 3] [--out FILE]

DIR is a folder of class/file; without it 500 x 375 JPEG files are cut out of the two photographs of scikit-learn. First
one thread reads them with more and more of the augmentation: images per second of one core. Then the loader with
threads and processes, against the former scheme, one thread for each batch, written out here. Last, two networks train
from the loader and from one batch in memory: the share of the time that a step waits for its batch is the input's.
"""

import argparse
import contextlib
import functools
import pathlib
import tempfile
import time

import _common
import jax
import numpy as np
import PIL.Image

from soups import models
from soups.data import batch_indices, folder_source, loader, to_channels
from soups.data.dataset import read_example, stack_examples
from soups.data.random_transforms import compose_random, rand_augment, random_flip, random_resized_crop
from soups.train import Classification, Training

SIZE = 224
CROP, FLIP, AUGMENT = random_resized_crop(SIZE), random_flip(), rand_augment("rand-m9-n2")
STAGES = {
    "decode": lambda image, rng: image,
    "+ random crop": CROP,
    "+ flip": compose_random(CROP, FLIP),
    "+ RandAugment": compose_random(CROP, FLIP, AUGMENT),
}
NETWORKS = {
    "ViT 64x3 / 32": {"width": 64, "depth": 3, "mlp_dim": 128, "num_heads": 2},
    "ViT-Ti / 32": {"width": 192, "depth": 12, "mlp_dim": 768, "num_heads": 3},
}


def main():
    """Run the three parts, print tables and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", help="a folder of class/file instead of the photographs")
    parser.add_argument("--count", type=int, default=512, help="number of images")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=12, help="batches of each measurement")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", default="runs/benchmarks/input.json")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="input_") as folder:
        source = folder_source(options.images or make_images(pathlib.Path(folder), options.count))
        record = {
            "benchmark": "input",
            "what": __doc__.splitlines()[0],
            "images": describe(source, options),
            "one_core": one_core(source, options),
            "loader": loaders(source, options),
            "training": training(source, options),
            "repeats": options.repeats,
            "machine": _common.machine(),
        }
    _common.write(options.out, record)


def make_images(folder, count):
    """Write 500 x 375 parts of two photographs as JPEG files of quality 90, in two class folders."""
    from sklearn.datasets import load_sample_images

    photographs, rng = load_sample_images().images, np.random.default_rng(0)
    for index in range(count):
        photograph = photographs[index % 2]
        top, left = rng.integers(photograph.shape[0] - 375), rng.integers(photograph.shape[1] - 500)
        path = folder / str(index % 2) / f"{index:05d}.jpg"
        path.parent.mkdir(exist_ok=True)
        PIL.Image.fromarray(photograph[top : top + 375, left : left + 500]).save(path, quality=90)
    return folder


def describe(source, options):
    """Say what is read: how many images, of what mean size, and what they are made of."""
    shapes = np.array([source[index]["image"].shape[:2] for index in range(0, len(source), max(1, len(source) // 50))])
    made = {} if options.images else {"made_of": "two photographs of scikit-learn, quality 90"}
    return {"count": len(source), "mean_height_width": shapes.mean(0).tolist(), **made}


def one_core(source, options):
    """Time the stages of the augmentation in one thread, in seconds of CPU, in which nothing else has a part."""
    count = min(options.count, len(source))
    seconds = {name: [] for name in STAGES}
    for _ in range(options.repeats):
        for name, transform in STAGES.items():
            seconds[name].append(_seconds_of_cpu(source, count, transform))
    summaries = {name: _common.summarize(times) for name, times in seconds.items()}
    rows = [[name, count / s["median"], count / s["max"], count / s["min"]] for name, s in summaries.items()]
    _common.table("One core, images/s", ["", "median", "lowest", "highest"], rows)
    return {name: {"images_per_second": rate, "seconds": summaries[name]} for name, rate, *_ in rows}


def _seconds_of_cpu(source, count, transform):
    rng, to_rgb, start = np.random.default_rng(0), to_channels(3), time.thread_time()
    for index in range(count):
        transform(to_rgb(source[index]["image"]), rng)
    return time.thread_time() - start


def loaders(source, options):
    """Time the loader with threads and processes, and the former scheme, in turns."""
    settings = {"transform": to_channels(3), "random_transform": STAGES["+ RandAugment"]}
    make = functools.partial(loader, source, options.batch, seed=0, **settings)
    schemes = {f"{count} threads": functools.partial(make, num_threads=count) for count in (0, 1, 2, 8)}
    schemes |= {f"{count} workers": functools.partial(make, num_threads=2, num_workers=count) for count in (1, 2)}
    schemes["8 threads, each a batch"] = functools.partial(_batch_per_thread, source, options.batch, 8, **settings)
    runs = {name: [] for name in schemes}
    for _ in range(options.repeats):
        for name, scheme in schemes.items():
            runs[name].append(_drain(scheme(), options.steps))
    results = {}
    for name, measured in runs.items():
        parts = zip(*measured, strict=True)
        results[name] = dict(zip(("first_batch", "all_batches"), map(_common.summarize, parts), strict=True))
        results[name]["images_per_second"] = options.steps * options.batch / results[name]["all_batches"]["median"]
    rows = [[name, one["images_per_second"], one["first_batch"]["median"]] for name, one in results.items()]
    title = f"Loader, batches of {options.batch}; workers have 2 threads each"
    _common.table(title, ["", "images/s", "first batch s"], rows)
    return {"batch": options.batch, "steps": options.steps, "schemes": results}


def _drain(batches, steps):
    """Return the seconds until the first batch is there, and until all are: reading ahead gives nobody a head start."""
    start = time.perf_counter()
    with contextlib.closing(iter(batches)) as iterator:
        next(iterator)
        first = time.perf_counter() - start
        for _ in range(steps - 1):
            next(iterator)
        return first, time.perf_counter() - start


def _batch_per_thread(source, batch_size, num_threads, transform, random_transform):
    """Return the batches of the former scheme: each read by one thread, `num_threads` of them at once."""
    import grain

    order = batch_indices(len(source), batch_size, 100, seed=0)

    def read(step):
        rng = np.random.default_rng(step)
        augment = lambda image: random_transform(transform(image), rng)  # noqa: E731
        images, labels = stack_examples((read_example(source, int(i), augment) for i in order[step]), batch_size)
        return {"image": images, "label": labels, "index": order[step]}

    options = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=num_threads)
    return grain.MapDataset.range(len(order)).map(read).to_iter_dataset(options)


def training(source, options):
    """Measure the share of the time that training steps wait for the loader, and the time of steps that need not."""
    settings = {"seed": 0, "transform": to_channels(3), "random_transform": STAGES["+ RandAugment"]}
    results = {}
    for name, sizes in NETWORKS.items():
        network = models.ViT(num_classes=len(source.class_names), patch_size=32, **sizes)
        step = _stepper(network)
        with contextlib.closing(iter(loader(source, options.batch, **settings))) as iterator:
            batch = next(iterator)
            step(batch)  # compiles
            rounds = [_waiting(step, iterator, options.steps) for _ in range(options.repeats)]
        waits, totals = (np.array(values) for values in zip(*rounds, strict=True))
        memory = _common.measure({"step": lambda step=step, batch=batch: step(batch)}, 3 * options.repeats)["step"]
        results[name] = {
            "share_waiting": _common.summarize((waits / totals).tolist()),
            "images_per_second": options.steps * options.batch / float(np.median(totals)),
            "images_per_second_in_memory": options.batch / _common.summarize(memory)["median"],
        }
    rows = [
        [name, one["share_waiting"]["median"], one["images_per_second"], one["images_per_second_in_memory"]]
        for name, one in results.items()
    ]
    title = f"Training, {SIZE} pixels, batch {options.batch}, float32, 8 threads"
    _common.table(title, ["", "share waiting", "images/s", "images/s in memory"], rows)
    return results


def _stepper(network):
    """Return a function that takes one training step and waits for its end."""
    trained = Training(loss=Classification(models.train_apply_fn(network), network.num_classes), clip_norm=1.0)
    hyperparameters = trained.numbers(trained.hyperparameters | {"num_steps": 10**6})
    take, state = trained.step, trained.begin(models.init(network, jax.random.key(0), (SIZE, SIZE, 3)), hyperparameters)
    state = jax.tree.map(jax.numpy.array, state)

    def step(batch):
        nonlocal state
        state, loss = take(state, {"image": batch["image"], "label": batch["label"]}, hyperparameters)
        return jax.block_until_ready(loss)

    return step


def _waiting(step, iterator, steps):
    """Return the seconds that `steps` steps wait for their batches, and the seconds of all."""
    waited, start = 0.0, time.perf_counter()
    for _ in range(steps):
        moment = time.perf_counter()
        batch = next(iterator)
        waited += time.perf_counter() - moment
        step(batch)
    return waited, time.perf_counter() - start


if __name__ == "__main__":
    main()
