"""Time the greedy soup over 72 checkpoints of CLIP ViT-B/32 against the published scheme, in PyTorch and in JAX.

    python scripts/benchmarks/greedy_clip.py --torch-python PATH/bin/python [--members 72] [--out FILE]

For each candidate the published code reads its file of 456 MB whole, copies two state dicts and mixes a third from
them, builds the classifier anew, decodes and resizes all held-out images again, and evaluates. "PyTorch" does that with
torch.load, open_clip's network and a data loader of two workers; "same program" with this library's reader and compiled
network, so that its ratio is one of schemes and not of frameworks. All must choose the same ingredients.

PyTorch writes the checkpoints, in an environment of its own. 72 files of 456 MB are 33 GB: here 6 files are linked
under 72 names, so that twelve names hold the same weights and all reading is from the system's cache, which favours the
published scheme. Weights and images are drawn, image i is labelled by what file i mod 6 says of it, and the order of
the members is drawn too: what a candidate costs does not depend on how good it is.

Compiling is not timed, nor are the start of PyTorch and its imports.
"forward" is the median time of one evaluation with weights and images on the device, once for each member: what no
scheme can save.
"""

import argparse
import contextlib
import json
import os
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile
import time

import _common
import jax
import numpy as np
import PIL.Image
from peers.ours_models import REQUIREMENTS, Case

from soups.data import center_crop, compose, decode, folder_source, resize_shorter, to_channels
from soups.evaluate import Evaluator, accuracy
from soups.formats import open_checkpoint
from soups.models.architectures import architecture
from soups.models.import_weights import import_weights, imported_members
from soups.recipes.speculative import greedy_speculative

ARCH, FILES, BATCH = "clip-vit-b32", 6, 32
RATIO_GOAL, SHARE_GOAL = 5.0, 0.8
TEXT = r"model\.(positional_embedding|text_projection|logit_scale|token_embedding|ln_final)"
APPLY = architecture(ARCH).apply_fn(1000)
TRANSFORM = compose(resize_shorter(224), center_crop(224), to_channels(3))
MAKER = pathlib.Path(__file__).parent / "peers" / "make_clip_files.py"
PEER = MAKER.with_name("theirs_greedy.py")
HOW = f"""This benchmark needs the interpreter of an environment with PyTorch:
    python -m venv torch-venv
    torch-venv/bin/pip install {" ".join(REQUIREMENTS)}
    python scripts/benchmarks/greedy_clip.py --torch-python torch-venv/bin/python"""


def main():
    """Make checkpoints and images, run both schemes for each number of images, print a table and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--torch-python", help="interpreter with PyTorch")
    parser.add_argument("--members", type=int, default=72)
    parser.add_argument("--images", type=int, nargs="+", default=[2, 4, 64])
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--out", default="runs/benchmarks/greedy_clip.json")
    options = parser.parse_args()
    if not options.torch_python:
        sys.exit(HOW)
    with tempfile.TemporaryDirectory(prefix="greedy_clip_") as folder:
        folder = pathlib.Path(folder)
        paths = make_members(folder, options)
        rows = [compare(paths, make_images(folder, count), options) for count in options.images]
    report(rows, options)


def make_members(folder, options):
    """Link a few real files under many names."""
    subprocess.run([options.torch_python, MAKER, folder, str(FILES)], check=True)
    paths = [folder / f"model_{index}.pt" for index in range(options.members)]
    for index, path in enumerate(paths):
        os.link(folder / f"file_{index % FILES}.pt", path)
    return paths


def make_images(folder, count):
    """Draw JPEG files of the usual size of ImageNet's, in a folder for each label; give it and the labels in use."""
    rng, pictures = np.random.default_rng(count), []
    for _ in range(count):
        coarse = PIL.Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8)).resize((500, 375))
        fine = np.asarray(coarse, np.float32) + rng.normal(scale=12, size=(375, 500, 3))
        pictures.append(PIL.Image.fromarray(np.clip(fine, 0, 255).astype(np.uint8)))
    seen = np.stack([TRANSFORM(np.asarray(picture)) for picture in pictures]).astype(np.float32) / 255
    labels = np.zeros(count, int)
    for index in range(min(FILES, count)):
        logits = APPLY(import_weights(folder / f"file_{index}.pt", ARCH), seen[index::FILES])
        labels[index::FILES] = np.asarray(logits).argmax(1)
    for index, (picture, label) in enumerate(zip(pictures, labels, strict=True)):
        path = folder / f"images_{count}" / f"{label:04d}" / f"{index:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path, quality=90)
    return folder / f"images_{count}", np.unique(labels)


def decoded(images):
    """Decode all images; a folder source numbers the folders it finds, the network's classes are their names."""
    folder, classes = images
    dataset = decode(folder_source(folder), TRANSFORM, num_threads=os.cpu_count())
    return dataset.images, classes[dataset.labels]


class Held:
    """Hold decoded images as the evaluator wants them."""

    class_groups = None

    def __init__(self, images):
        self.images, self.labels = decoded(images)


def compare(paths, images, options):
    """Run all schemes in turns; give their seconds and what they are made of."""
    order = [paths[place].stem for place in np.random.default_rng(1).permutation(len(paths))]
    chosen, parts = {}, {"same program": [], "PyTorch": []}

    def ours(order=order):
        evaluate = Evaluator(APPLY, Held(images), batch_size=BATCH)

        def evaluate_many(candidates):
            return [accuracy(evaluate.logits(params), evaluate.labels) for params in candidates]

        members = imported_members(paths, ARCH)
        soup = greedy_speculative(members, evaluate_many, width=1, order=order, device=jax.devices()[0])
        chosen["soups"] = (tuple(soup.ingredients), soup.score)

    def published():
        *found, spent = published_scheme(paths, images, order)
        chosen["same program"] = tuple(found)
        parts["same program"].append(spent)

    def pytorch():
        *found, spent = torch_scheme(options.torch_python, paths, images[0], order)
        chosen["PyTorch"] = tuple(found)
        parts["PyTorch"].append(spent)

    held = Held(images)
    evaluate = Evaluator(APPLY, held, batch_size=BATCH)
    params = jax.device_put(import_weights(paths[0], ARCH))
    ours(order[:3])  # compiles the network, which "same program" runs too, and the mixing
    single = _common.measure({"forward": lambda: evaluate.logits(params)}, 7)["forward"]
    seconds = _common.measure({"soups": ours, "same program": published, "PyTorch": pytorch}, options.repeats)
    if len(set(chosen.values())) > 1:
        raise SystemExit(f"the schemes chose differently: {chosen}")
    spent = {
        scheme: {name: statistics.median(part[name] for part in found) for name in found[0]}
        for scheme, found in parts.items()
    }
    return {
        "images": len(held.labels),
        "results": {name: _common.summarize(times) for name, times in seconds.items()},
        "parts": spent,
        "forward_once": _common.summarize(single),
        "num_ingredients": len(chosen["soups"][0]),
    }


def torch_scheme(python, paths, images, order):
    """Let PyTorch choose; give the ingredients, their score and the seconds of each part. Its start is not timed."""
    folder, files = paths[0].parent, {path.stem: str(path) for path in paths}
    given = {"case": Case("released", architecture(ARCH)).described(folder), "images": str(images)}
    given |= {"checkpoints": [files[name] for name in order], "batch_size": BATCH}
    (folder / "greedy.json").write_text(json.dumps(given))
    done = subprocess.run([python, PEER, folder], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"PyTorch failed: {done.stderr}")
    found = json.loads(done.stdout)
    return tuple(found["ingredients"]), found["score"], found["parts"]


def published_scheme(paths, images, order):
    """Choose as the published code does; give the ingredients, their score and the seconds of each part."""
    files = {path.stem: path for path in paths}
    spent = dict.fromkeys(("reload", "copy and mix", "decode", "build and evaluate"), 0.0)
    soup, best, ingredients = None, -1.0, []
    for name in order:
        with timed(spent, "reload"):
            new = whole_file(files[name])
        with timed(spent, "copy and mix"):
            count = len(ingredients)
            old, new = jax.tree.map(np.copy, soup or new), jax.tree.map(np.copy, new)
            shares = np.float32(count / (count + 1)), np.float32(1 / (count + 1))
            candidate = jax.tree.map(lambda x, y, s=shares: x * s[0] + y * s[1], old, new)
        with timed(spent, "decode"):
            held = Held(images)
        with timed(spent, "build and evaluate"):
            evaluate = Evaluator(APPLY, held, batch_size=BATCH)
            score = accuracy(evaluate.logits(jax.tree.map(np.copy, candidate["network"])), held.labels)
        if score > best:
            soup, best, ingredients = candidate, score, [*ingredients, name]
    return tuple(ingredients), best, spent


def whole_file(path):
    """Read all of a file into memory: the network, and what is left of the text tower, which is mixed as well."""
    checkpoint = open_checkpoint(path)
    text = {name: np.array(checkpoint.read(name)) for name in checkpoint.leaves if re.match(TEXT, name)}
    return {"network": jax.tree.map(np.array, import_weights(path, ARCH)), "text": text}


@contextlib.contextmanager
def timed(spent, part):
    """Add the seconds of the block to a part."""
    start = time.perf_counter()
    yield
    spent[part] += time.perf_counter() - start


def report(rows, options):
    """Print the table and write the JSON."""
    shown = []
    for row in rows:
        ours, same = (row["results"][name]["median"] for name in ("soups", "same program"))
        theirs = sum(row["parts"]["PyTorch"].values())
        forward = options.members * row["forward_once"]["median"]
        row |= {"ratio": theirs / ours, "ratio_same_program": same / ours}
        row |= {"forward": forward, "forward_share": forward / ours}
        shown.append([row["images"], ours, theirs, row["ratio"], same, row["ratio_same_program"]])
        shown[-1] += [forward, row["forward_share"]]
        for scheme, parts in row["parts"].items():
            print(f"{scheme}, seconds: " + ", ".join(f"{part} {value:.1f}" for part, value in parts.items()))
    title = f"Greedy soup over {options.members} checkpoints of {ARCH}; goals: ratio {RATIO_GOAL}, share {SHARE_GOAL}"
    heads = ["images", "soups s", "PyTorch s", "ratio", "same program s", "ratio", "forward s", "share of ours"]
    _common.table(title, heads, shown)
    record = {
        "benchmark": "greedy_clip",
        "what": __doc__.splitlines()[0],
        "rows": rows,
        "goals": {"ratio": RATIO_GOAL, "forward_share": SHARE_GOAL},
        "repeats": options.repeats,
        "settings": {"members": options.members, "files": FILES, "batch": BATCH},
        "machine": _common.machine(),
    }
    _common.write(options.out, record)


if __name__ == "__main__":
    main()
