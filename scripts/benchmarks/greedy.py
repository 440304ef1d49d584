"""Time the greedy soup over 72 small members against the published scheme written out.

    python scripts/benchmarks/greedy.py [--members 72] [--images 1500] [--repeats 3] [--out FILE]

For each candidate the published code loads its checkpoint, builds the average of two models in new memory, makes the
dataset anew, decodes and resizes all held-out images again, and evaluates. That is written out here, with Orbax for the
checkpoints, a thread for each core for the images, and the same compiled network. A second baseline keeps the decoded
images and reloads the members only. All three must choose the same ingredients by the same scores. The members are one
small ViT fine-tuned for a few epochs, plus noise: what they cost to load and to run does not depend on how they were
made.
"""

import argparse
import os
import pathlib
import statistics
import tempfile
import time

import _common
import jax
import numpy as np
import PIL.Image

import soups
from soups import models
from soups.data import center_crop, compose, decode, digits_task, folder_source, resize_shorter, to_channels
from soups.evaluate import Evaluator, accuracy
from soups.pool import load_checkpoint
from soups.train import Classification, sweep

GOAL = 5.0
BATCH = 250
MODEL = models.ViT(num_classes=10, patch_size=7, width=64, depth=3, mlp_dim=128, num_heads=4)
APPLY = models.apply_fn(MODEL)
TRANSFORM = compose(resize_shorter(28), center_crop(28), to_channels(1))  # the published one, for small gray images


def main():
    """Make members and images, run the three schemes in turns, print a table and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--members", type=int, default=72)
    parser.add_argument("--images", type=int, default=1500)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", default="runs/benchmarks/greedy.json")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="greedy_") as folder:
        pool, images = _prepare(pathlib.Path(folder), options)
        report(*_compare(pool, images, options.repeats), options)


def _prepare(folder, options):
    """Fill a pool with members and a folder with held-out PNG files."""
    sizes = {"num_train": 500, "num_held_out": options.images, "num_test": 10, "natural_shift_size": 10}
    task, _ = digits_task(image_size=28, shifts={}, **sizes)
    for index in range(options.images):
        path = folder / "images" / str(task.held_out.labels[index]) / f"{index:05d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(task.held_out.images[index, ..., 0]).save(path)
    loss = Classification(models.train_apply_fn(MODEL), 10)
    start = models.init(MODEL, jax.random.key(0), (28, 28, 1))
    data = {"image": task.train.images, "label": task.train.labels}
    members = [{"learning_rate": 2e-3, "epochs": 10}]
    (made,) = sweep(loss, start, data, members, batch_size=50, clip_norm=1.0).values()
    pool, rng = soups.Pool(folder / "pool"), np.random.default_rng(0)
    for index in range(options.members):
        noisy = jax.tree.map(lambda leaf: leaf + 0.02 * rng.standard_normal(leaf.shape, np.float32), made)
        pool.add(f"member_{index:02d}", noisy)
    return pool, folder / "images"


def _decoded(images, **options):
    return decode(folder_source(images), TRANSFORM, **options)


def _compare(pool, images, repeats):
    evaluator = Evaluator(APPLY, _decoded(images), batch_size=BATCH)
    scores = {name: evaluator(pool[name])["accuracy"] for name in pool}  # the published code reads them from a file
    forward = jax.jit(lambda params, inputs: APPLY(params, inputs))
    spent = {"reload": [], "decode": [], "forward": []}
    chosen = {}

    def ours():
        dataset = _decoded(images)  # once, inside the time
        evaluate = Evaluator(APPLY, dataset, batch_size=BATCH)
        soup = soups.greedy(pool, lambda params: accuracy(evaluate.logits(params), dataset.labels), scores=scores)
        chosen["soups"] = (tuple(soup.ingredients), soup.score)

    def published(again):
        def run():
            times, dataset = dict.fromkeys(spent, 0.0), _decoded(images)
            order = sorted(scores, key=scores.get)[::-1]
            mean, best, ingredients = _load(pool, order[0]), scores[order[0]], [order[0]]
            for name in order[1:]:
                moments = [time.perf_counter()]
                count, member = len(ingredients), _load(pool, name)
                old = jax.tree.map(np.copy, mean)
                candidate = jax.tree.map(lambda a, b, n=count: a * (n / (n + 1)) + b * (1 / (n + 1)), old, member)
                moments.append(time.perf_counter())
                if again:
                    dataset = _decoded(images, num_threads=os.cpu_count())
                moments.append(time.perf_counter())
                score = _evaluate(forward, candidate, dataset)
                moments.append(time.perf_counter())
                for part, seconds in zip(times, np.diff(moments), strict=True):
                    times[part] += seconds
                if score > best:
                    mean, best, ingredients = candidate, score, [*ingredients, name]
            if again:
                for part, seconds in times.items():
                    spent[part].append(seconds)
            chosen["published" if again else "half-way"] = (tuple(ingredients), best)

        return run

    schemes = {"soups": ours, "decoded once": published(False), "published scheme": published(True)}
    ours()  # compile
    _evaluate(forward, pool[next(iter(pool))], _decoded(images))
    seconds = _common.measure(schemes, repeats)
    if len(set(chosen.values())) > 1:
        raise SystemExit(f"the schemes chose differently: {chosen}")
    return seconds, {part: statistics.median(times) for part, times in spent.items()}, len(chosen["soups"][0])


def _load(pool, name):
    return load_checkpoint(pool.path / pool.record(name)["path"])


def _evaluate(forward, params, dataset):
    logits = [
        np.asarray(forward(params, dataset.images[start : start + BATCH].astype(np.float32) / 255))
        for start in range(0, len(dataset), BATCH)
    ]
    return accuracy(np.concatenate(logits), dataset.labels)


def report(seconds, parts, num_ingredients, options):
    """Print the table and write the JSON."""
    summaries = {name: _common.summarize(times) for name, times in seconds.items()}
    ours = summaries["soups"]["median"]
    rows = [[name, s["median"], s["min"], s["max"], s["median"] / ours] for name, s in summaries.items()]
    title = f"Greedy soup over {options.members} members, {options.images} held-out images"
    _common.table(title, ["", "median s", "min", "max", "to soups"], rows)
    ratio = summaries["published scheme"]["median"] / ours
    print("published scheme, seconds: " + ", ".join(f"{part} {value:.2f}" for part, value in parts.items()))
    print(f"{num_ingredients} ingredients, the same by all; ratio {ratio:.1f}, goal {GOAL}")
    record = {
        "benchmark": "greedy",
        "what": __doc__.splitlines()[0],
        "results": summaries,
        "published_parts": parts,
        "num_ingredients": num_ingredients,
        "ratio": ratio,
        "goal": GOAL,
        "repeats": options.repeats,
        "settings": {"members": options.members, "images": options.images, "batch": BATCH},
        "machine": _common.machine(),
    }
    _common.write(options.out, record)


if __name__ == "__main__":
    main()
