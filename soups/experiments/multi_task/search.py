"""Choose each method's settings on held-out data, and make its row of the results."""

import statistics
import time
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np

import soups
from soups import tree
from soups.experiments.multi_task.members import Tasks, Trunks, members_of, trunk_of
from soups.experiments.multi_task.methods import METHODS, Kit, Merged
from soups.experiments.multi_task.networks import bundled
from soups.progress import say
from soups.train import search

Row = dict[str, Any]


def normalised_score(accuracies: Mapping[str, float], of_members: Mapping[str, float]) -> float:
    """Return the mean over the tasks of the accuracy divided by that of the task's own member."""
    return statistics.fmean(accuracies[task] / of_members[task] for task in of_members)


def baseline_row(
    scene: Tasks,
    title: str,
    kind: str,
    trunks: Trunks,
    heads: Mapping[str, tree.Tree],
    of_members: Mapping[str, float],
    **cost,
) -> Row:
    """Make the row of trunks that no method merged."""
    held_out = scene.accuracies(trunks, heads, "held_out")
    return _row(scene, title, kind, "baselines", trunks, heads, held_out, of_members, cost=cost)


def test_accuracies(row: Row, tasks: Iterable[str]) -> dict[str, float]:
    """Return the test accuracy of a row on each task."""
    return {task: row["metrics"][task]["accuracy"] for task in tasks}


def method_row(scene: Tasks, kit: Kit, name: str, choices: Mapping[str, Any], of_members: Mapping[str, float]) -> Row:
    """Merge with every combination of settings, and give the row of the best on held-out data; keep its trunks.

    Seconds are those of what is prepared and of the chosen merge; of the whole search they stand apart.
    """
    method, started = METHODS[name], time.monotonic()
    prepared, preparing = _timed(lambda: method.prepare(kit))
    best, points = None, search.grid(**choices)
    for setting in points:
        merged, seconds = _timed(lambda setting=setting: method.merge(kit, prepared, **setting))
        merged = merged if isinstance(merged, Merged) else Merged(merged)
        merged = jax.device_get(merged)
        held_out = scene.accuracies(merged.trunks, kit.heads, "held_out")
        score = statistics.fmean(held_out.values())
        if best is None or score > best[0]:
            best = score, merged, held_out, setting, seconds
    _, merged, held_out, setting, seconds = best
    _keep(scene, name, merged.trunks, setting)
    cost = {
        "seconds": preparing + seconds,
        "search_seconds": time.monotonic() - started,
        "search_points": len(points),
        "bytes": _bytes(kit.base, method.dense, len(kit.members) if method.masked else 0),
        "labelled": _examples(scene, method.labelled),
        "unlabelled": _examples(scene, method.unlabelled),
    }
    kind = "masked" if method.family == "trunk for each task" else "soup"
    row = _row(scene, method.title, kind, method.family, merged.trunks, kit.heads, held_out, of_members, cost)
    score = row["metrics"]["test"]["normalised"]
    say(f"{method.title}: {100 * score:.1f} % of the members, {cost['search_seconds']:.1f} s")
    row |= {"method": name, "settings": setting}
    return row | ({"masks": _mask_record(scene, kit, merged.masks)} if merged.masks else {})


def kit_of(scene: Tasks, base: tree.Tree) -> Kit:
    """Put together what one seed's methods work on."""
    members, heads = members_of(scene)
    few, size = scene.config["examples"]["few"], scene.config["examples"]["batch_size"]
    inputs = {task: _unit(data.train.images) for task, data in scene.tasks.items()}
    held_out = bundled([task.held_out for task in scene.tasks.values()])
    held_out = {"image": _unit(held_out["image"]), "label": held_out["label"]}
    return Kit(
        networks=scene.networks,
        base=base,
        members=members,
        heads=heads,
        few={
            task: {"image": images[:few], "label": scene.tasks[task].train.labels[:few]}
            for task, images in inputs.items()
        },
        unlabelled={task: _batches(images, size) for task, images in inputs.items()},
        held_out=[
            {"image": image, "label": label}
            for image, label in zip(_batches(held_out["image"], size), _batches(held_out["label"], size), strict=True)
        ],
        score=lambda trunk: statistics.fmean(scene.accuracies(trunk, heads, "held_out").values()),
        seed=scene.seed,
    )


def trunk_bytes(trunk: tree.Tree) -> int:
    """Count the bytes of a trunk."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(trunk))


def _row(scene, title, kind, family, trunks, heads, held_out, of_members, cost) -> Row:
    test = scene.accuracies(trunks, heads, "test")
    mean = {"accuracy": statistics.fmean(test.values()), "normalised": normalised_score(test, of_members or test)}
    metrics = {"test": mean, "held_out": {"accuracy": statistics.fmean(held_out.values())}}
    metrics |= {task: {"accuracy": found} for task, found in test.items()}
    metrics |= {f"{task}, held-out": {"accuracy": found} for task, found in held_out.items()}
    row = {"seed": scene.seed, "name": title, "kind": kind, "group": "main", "family": family}
    return row | {"metrics": metrics, "cost": cost}


def _mask_record(scene, kit, masks):
    """Measure the masks: sizes, overlaps, and the accuracy of each member where only what is in its mask is added."""
    alone = {task: soups.stitch([kit.members[task]], [mask], base=kit.base) for task, mask in masks.items()}
    return soups.mask_overlap(masks) | {"alone": scene.accuracies(alone, kit.heads, "test")}


def _timed(make):
    start = time.monotonic()
    made = jax.block_until_ready(make())
    return made, time.monotonic() - start


def _keep(scene, name, trunks, setting):
    """Keep the merged trunks with what is needed to make them again."""
    digests = {task: scene.pool.digest(scene.name(task)) for task in scene.tasks}
    record = {"recipe": name, "settings": setting, "digests": digests, "soups": soups.__version__}
    each = {task: trunk_of(trunks, task) for task in scene.tasks}
    one = len({id(trunk) for trunk in each.values()}) == 1
    for label, trunk in ({name: trunks} if one else {f"{name}_{task}": trunk for task, trunk in each.items()}).items():
        if scene.name(label) not in scene.merged:
            scene.merged.add(scene.name(label), trunk, record)


def _bytes(base, dense, masks):
    return dense * trunk_bytes(base) + masks * -(-tree.count(base) // 8)


def _examples(scene, which):
    per_task = {"": 0, "few": scene.config["examples"]["few"]}
    sizes = per_task | {split: scene.config["tasks"][f"num_{split}"] for split in ("train", "held_out")}
    return len(scene.tasks) * sizes[which]


def _unit(images):
    return images.astype(np.float32) / np.float32(255)


def _batches(array, size):
    return [array[start : start + size] for start in range(0, len(array) - size + 1, size)]
