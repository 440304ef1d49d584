"""Make sets of domains, a network and a config that are small, for the tests of the studies of recycling."""

import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.typing import Dtype
from ml_collections import ConfigDict
from PIL import Image

from soups.formats.orbax import save_checkpoint
from soups.models import functional
from soups.models.architectures import Architecture
from soups.plugins import load_plugin

_CONFIGS = pathlib.Path(__file__).parents[2] / "configs" / "recycling"
SIZE, HALF = 12, (0.5, 0.5, 0.5)
STYLES = {"dark": (40, 200), "light": (220, 120), "noisy": (90, 210), "tinted": (150, 60)}  # ground, figure


class Net(nn.Module):
    """Make 8 features of one convolution, under the batch norm that a pre-trained network has."""

    num_classes: int | None
    momentum: float = 0.9
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, images, train=False):
        x = nn.Conv(8, (4, 4), strides=4)(images)
        x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=self.momentum)(x))
        x = x.reshape(len(x), -1)
        x = nn.Dense(8)(x)
        return x if self.num_classes is None else nn.Dense(self.num_classes, name="head")(x)


def net() -> Architecture:
    """Return the network as a config names it."""
    return Architecture("small", "small", SIZE, HALF, HALF, 8, Net(None))


def write_start(path):
    """Keep weights that the members start from."""
    save_checkpoint(path, jax.device_get(functional.init(Net(None), jax.random.key(0), (SIZE, SIZE, 3))))


def write_set(folder, domains, classes, count=12, seed=0):
    """Write a set whose class is where a square is, and whose domain is how it is drawn."""
    rng = np.random.default_rng(seed)
    for domain in domains:
        ground, figure = STYLES[domain]
        for number, name in enumerate(classes):
            place = folder / domain / name
            place.mkdir(parents=True)
            for index in range(count):
                image = np.full((SIZE, SIZE, 3), ground, np.int64)
                top, left = 6 * (number // 2), 6 * (number % 2)
                image[top : top + 6, left : left + 6, : 1 if domain == "tinted" else 3] = figure
                image += rng.integers(-60 if domain == "noisy" else -15, 16, image.shape)
                Image.fromarray(np.clip(image, 0, 255).astype(np.uint8)).save(place / f"{index}.png")


def write_all(folder):
    """Write a set of three domains, two auxiliary ones and start weights to a folder."""
    write_set(folder / "squares", ["dark", "light", "noisy"], ["a", "b", "c"])
    write_set(folder / "more", ["dark", "tinted"], ["x", "y"], seed=1)
    write_set(folder / "others", ["light", "noisy"], ["p", "q", "r", "s"], seed=2)
    write_start(folder / "start")


def config_of(name, data_dir) -> ConfigDict:
    """Return a config of `configs/recycling` with all that it has in common with its siblings made small."""
    config = load_plugin(_CONFIGS / f"{name}.py").get_config()
    sys.modules.setdefault("small_domains", sys.modules[__name__])  # whose network the config names
    config.data_dir, config.dataset, config.auxiliary = str(data_dir), "squares", ("more", "others")
    config.image_size = SIZE
    config.model.update(arch="small_domains:net", start=str(data_dir / "start"), frozen_stages=0)
    config.runs.update(members=min(3, config.runs.members), steps=6, evaluate_every=2, batch_size=4, mode="sequential")
    config.runs.learning_rate_factor = 2.0
    config.auxiliary_runs.steps = 4
    if "members" in config.auxiliary_runs:
        config.auxiliary_runs.members = 1
    return config
