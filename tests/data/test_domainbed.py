"""DomainBed's draws and selection against numbers that its own code gives (b93c22a) and DiWA's (4bfe468)."""

import numpy as np
import pytest

from soups.data import random_hyperparameters, seed_hash, split_positions


def test_seeds_are_domainbeds():
    assert [seed_hash(0, 0), seed_hash(0, 1), seed_hash(1, 0), seed_hash(2, 3)] == [
        894182419,
        1514274641,
        785910682,
        1709828778,
    ]
    assert seed_hash("VLCS", "ERM", [1, 2], 1, 0) == 360234358  # the seed of a run
    assert seed_hash(np.int64(2), np.int32(3)) == seed_hash(2, 3)


def test_splits_are_domainbeds():
    train, held_out = split_positions(20, 0, 0)
    assert held_out.tolist() == [7, 6, 10, 17]
    assert sorted([*train, *held_out]) == list(range(20))
    assert split_positions(20, 0, 1)[1].tolist() == [3, 1, 0, 17]
    assert [len(part) for part in split_positions(9, 0, 0)] == [8, 1]
    with pytest.raises(ValueError, match=r"held_out must be in \(0, 1\), not 1"):
        split_positions(20, 0, 0, held_out=1.0)


A, B = 1e-4, 1e-6
MILD = [
    (0.5, 3, A), (0.5, 1, B), (0, 3, B), (0, 1, B), (0.5, 3, A), (0.1, 3, A), (0.1, 1, A), (0.1, 5, A), (0.5, 5, B),
    (0.5, 5, B), (0, 5, B), (0.5, 3, A), (0.5, 5, B), (0, 5, B), (0, 3, A), (0.5, 1, A), (0.1, 5, A), (0, 5, B),
    (0, 3, B),
]  # fmt: skip


@pytest.mark.parametrize("seed", range(1, 20))
def test_mild_hyperparameters_are_diwas(seed):
    dropout, rate, decay = MILD[seed - 1]
    assert random_hyperparameters(seed) == {
        "learning_rate": [1e-5, 3e-5, 5e-5][rate // 2],
        "weight_decay": decay,
        "dropout": dropout,
        "batch_size": 32,
    }


def test_original_hyperparameters_are_domainbeds():
    assert random_hyperparameters(1, ranges="original") == {
        "learning_rate": 2.7028930742148706e-05,
        "weight_decay": 4.4832883881609976e-04,
        "dropout": 0.5,
        "batch_size": 39,
    }
    sizes = [
        random_hyperparameters(seed, ranges="original", dataset="DomainNet")["batch_size"] for seed in range(1, 40)
    ]
    assert min(sizes) >= 8 and 26 < max(sizes) < 32
    default = {"learning_rate": 5e-5, "weight_decay": 0, "dropout": 0, "batch_size": 32}
    assert random_hyperparameters(0) == random_hyperparameters(0, 2, ranges="original") == default
    assert random_hyperparameters(1, 1, ranges="original") != random_hyperparameters(1, 0, ranges="original")


@pytest.mark.parametrize(
    ("seed", "options", "says"),
    [(-1, {}, "seed must be at least 0"), (1.5, {}, "seed must be a whole number"), (1, {"ranges": "wild"}, "'wild'")],
)
def test_draws_that_do_not_exist_are_refused(seed, options, says):
    with pytest.raises(ValueError, match=says):
        random_hyperparameters(seed, **options)
