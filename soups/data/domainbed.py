"""Draw what DomainBed draws, and select and report as it does: splits, hyper-parameters, selection, tables.

Gulrajani and Lopez-Paz, "In search of lost domain generalization", 2020 (arXiv 2007.01434), its repository at b93c22a;
the mild ranges are those of DiWA (Rame et al., 2022, arXiv 2205.09739).
"""

import dataclasses
import hashlib
from typing import Any

import numpy as np

from soups.arguments import check_within
from soups.names import check_name


@dataclasses.dataclass(frozen=True)
class KnownSet:
    """Say where a set lies, what its domains are called in tables, and every how many steps it is evaluated."""

    folder: str
    environments: tuple[str, ...]
    evaluate_every: int = 300


#: DomainBed's sets of photographs and drawings; domains in the order of their folders' names
SETS = {
    "PACS": KnownSet("PACS", ("A", "C", "P", "S")),
    "VLCS": KnownSet("VLCS", ("C", "L", "S", "V")),
    "OfficeHome": KnownSet("office_home", ("A", "C", "P", "R")),
    "TerraIncognita": KnownSet("terra_incognita", ("L100", "L38", "L43", "L46")),
    "DomainNet": KnownSet("domain_net", ("clip", "info", "paint", "quick", "real", "sketch"), 1000),
}
RANGES = ("mild", "original")


def seed_hash(*values: Any) -> int:
    """Return the seed that DomainBed makes of some values: the MD5 of their tuple's text, modulo 2³¹."""
    plain = tuple(value.item() if isinstance(value, np.generic) else value for value in values)
    return int(hashlib.md5(str(plain).encode(), usedforsecurity=False).hexdigest(), 16) % 2**31


def split_positions(count: int, trial_seed: int, environment: int, held_out: float = 0.2) -> tuple[np.ndarray, ...]:
    """Return the places of `count` examples that are trained on and those that are held out, in the order drawn.

    They are DomainBed's "in" and "out" of an environment's number: the share `held_out`, rounded down, of a shuffle.
    """
    check_within("held_out", held_out, "(0, 1)")
    places = np.arange(count)
    np.random.RandomState(seed_hash(trial_seed, environment)).shuffle(places)
    size = int(count * held_out)
    return places[size:], places[:size]


def random_hyperparameters(
    seed: int, trial_seed: int = 0, *, ranges: str = "mild", dataset: str | None = None
) -> dict[str, float | int]:
    """Return `learning_rate`, `weight_decay`, `dropout` and `batch_size` (for each domain) of one of a sweep's runs.

    Seed 0 gives the defaults: 5e-5, 0, 0, 32. `ranges`: "mild" draws a learning rate of 1e-5, 3e-5 or 5e-5, a weight
    decay of 1e-4 or 1e-6 and a dropout of 0, 0.1 or 0.5, "original" a learning rate of 10^U(-5, -3.5), a weight decay
    of 10^U(-6, -2), the same dropouts and a batch of 2^U(3, 5.5), of DomainNet 2^U(3, 5), rounded down.

    Raises:
        ValueError: a negative seed, or one that is not whole; unknown ranges.
    """
    check_within("seed", seed, "[0, inf)", whole=True)
    check_within("trial_seed", trial_seed, "[0, inf)", whole=True)
    check_name(ranges, RANGES, "ranges of hyper-parameters:")
    drawn = {"learning_rate": 5e-5, "weight_decay": 0.0, "dropout": 0.0, "batch_size": 32}
    if seed == 0:
        return drawn

    def stream(name):  # each name has a generator of its own, so that no other draw changes it
        return np.random.RandomState(seed_hash(seed_hash(seed, trial_seed), name))

    drawn["dropout"] = float(stream("resnet_dropout").choice([0.0, 0.1, 0.5]))
    if ranges == "mild":
        drawn["learning_rate"] = float(stream("lr").choice([1e-5, 3e-5, 5e-5]))
        drawn["weight_decay"] = float(stream("weight_decay").choice([1e-4, 1e-6]))
        return drawn
    drawn["learning_rate"] = float(10 ** stream("lr").uniform(-5, -3.5))
    drawn["weight_decay"] = float(10 ** stream("weight_decay").uniform(-6, -2))
    drawn["batch_size"] = int(2 ** stream("batch_size").uniform(3, 5 if dataset == "DomainNet" else 5.5))
    return drawn
