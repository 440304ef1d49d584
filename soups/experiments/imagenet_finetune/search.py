"""Draw the hyper-parameters of the members, and turn a name of augmentation into what is done to the images.

The search is that of Wortsman et al., "Model soups", 2022, arXiv 2203.05482, appendix J.2.1; where the ranges of
configs/imagenet come from is said there.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from soups.data.random_transforms import (
    RandomTransform,
    compose_random,
    rand_augment,
    random_flip,
    random_resized_crop,
)
from soups.experiments.search_space import choices
from soups.train import search

MINIMAL = "minimal"


def draw_members(config: Mapping[str, Any], seed: int) -> list[dict[str, Any]]:
    """Draw the members of `config.sweep`; the first ones of a longer search are those of a shorter one."""
    return search.random(
        config["members"],
        seed,
        **choices(config, epochs=search.integers),
        augmentation=_augmentation(config),
        seed=search.integers(0, 2**31 - 1),
    )


def augmentation(name: str, image_size: int) -> RandomTransform:
    """Return the random transform of training images: "minimal" crops 90 to 100 %, a policy as timm's augments.

    A policy, such as "rand-m9-n2", comes after a random crop of 8 to 100 % and a flip.

    Raises:
        ValueError: neither "minimal" nor a policy that `rand_augment` knows.
    """
    if name == MINIMAL:
        return random_resized_crop(image_size, scale=(0.9, 1.0))
    return compose_random(random_resized_crop(image_size), random_flip(), rand_augment(name))


def _augmentation(config) -> Callable[[np.random.Generator], str]:
    magnitude, operations = search.integers(*config["magnitude"]), search.integers(*config["operations"])

    def draw(generator):
        minimal = generator.uniform() < config["minimal"]
        policy = f"rand-m{magnitude(generator)}-n{operations(generator)}"
        return MINIMAL if minimal else policy

    return draw
