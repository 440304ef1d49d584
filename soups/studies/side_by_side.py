"""Train the runs of a course: each from weights of its own, as many side by side as there are lanes."""

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from soups import tree
from soups.data.domainbed import seed_hash
from soups.pool.claims import claims
from soups.pool.making import note
from soups.train import Swad
from soups.train.loop import prepared, run
from soups.train.swad import mean_between

if TYPE_CHECKING:
    from soups.studies.courses import Course

Settings = Mapping[int, Mapping[str, Any]]


def turns(course: "Course", names: Mapping[int, str], settings: Settings) -> Iterator[list[int]]:
    """Yield the runs that are trained side by side, until the members of these names are all in the pool.

    There are as many as there are lanes, with batches of one size. Other processes may make some: see `claims`.
    """
    runs = {name: index for index, name in names.items()}
    for mine in claims(course.pools["pool"], runs, course.placements["all"].count):
        by_size = {}
        for index in map(runs.get, mine):
            by_size.setdefault(settings[index]["batch_size"], []).append(index)
        yield from by_size.values()


def with_trained_heads(
    course: "Course", starts: Mapping[int, tree.Tree], settings: Settings, steps: int
) -> dict[int, tree.Tree]:
    """Return start weights whose heads alone were trained."""
    batches = lambda seed, size: course.batches(seed_hash(seed, "head"), size)  # noqa: E731
    state, _ = _run(course, "head", starts, settings, steps, batches)
    return {index: course.placements["head"].take(state, lane)["params"] for lane, index in enumerate(starts)}


def trained(
    course: "Course",
    starts: Mapping[int, tree.Tree],
    settings: Settings,
    steps: int,
    names: Mapping[int, str],
    *,
    last: bool,
) -> dict[int, dict[str, Any]]:
    """Return what each run leaves: "pool", its weights, the averages "ma" and "swad", and "losses", means over parts.

    Those who watch the pool are told of each step, by the `names` of the members. The weights of a run are those of
    the checkpoint that is best on held-out data, or of the `last` step.
    """
    placement, evaluate_every = course.placements["all"], course.config["runs"]["evaluate_every"]
    swad, first, best = {i: Swad() for i in starts}, {}, dict.fromkeys(starts, (-1.0, None))

    def checkpoint(step, state):
        state = {part: value for part, value in state.items() if part != "optimizer"}
        for lane, index in enumerate(starts):
            made = placement.take(state, lane)
            (score, loss), mean = course.validated(made["params"]), made["averages"]["swa"]
            swad[index].add(step, loss, mean)
            first.setdefault(index, (step, mean))
            if score > best[index][0]:
                best[index] = score, made["params"]

    def on_step(index, losses):
        for name, loss in losses.items():
            note(course.pools["pool"].path, names[int(name)], index + 1, steps, loss)

    options = {"save_every": evaluate_every, "on_checkpoint": checkpoint, "on_step": on_step}
    state, losses = _run(course, "all", starts, settings, steps, course.batches, **options)
    found = {}
    for lane, index in enumerate(starts):
        made, (step, early) = placement.take(state, lane), first[index]
        mean, parts = made["averages"]["swa"], np.array_split(np.float64(losses[str(index)]), min(20, steps))
        found[index] = {
            "pool": made["params"] if last else best[index][1],
            "ma": mean_between(step, early, steps, mean) if step < steps else mean,
            "swad": swad[index].average(),
            "losses": [float(part.mean()) for part in parts],
        }
    return found


def _run(course, kind: str, starts, settings, steps: int, batches: Callable[[int, int], Any], **options):
    """Train runs from their starts; return what is left of the state, and the losses by their names."""
    placement, names = course.placements[kind], {str(index): index for index in starts}
    seeds = {name: seed_hash(course.prefix, index) for name, index in names.items()}
    members = {
        name: {
            "num_steps": steps,
            "seed": seeds[name],
            "rate": settings[index]["learning_rate"],
            "weight_decay": settings[index]["weight_decay"],
            "dropout": settings[index]["dropout"],
        }
        for name, index in names.items()
    }
    one = next(iter(starts.values()))
    _, members = prepared(placement.training, one, iter(()), members, None)
    feed = lambda name, *_: batches(seeds[name], settings[names[name]]["batch_size"])  # noqa: E731
    return run(placement, one, members, feed, starts={n: starts[index] for n, index in names.items()}, **options)
