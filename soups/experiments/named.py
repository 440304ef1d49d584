"""Make the task and the network that a config names, and see that they are what a study takes."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from soups.data import Dataset, Task
from soups.models import Network
from soups.plugins import blamed, called, named
from soups.pool import digest
from soups.studies.measuring import program_digest

TASKS = {"digits": "soups.data:digits_task"}
NETWORKS = {
    "convnet": "soups.models:ConvNet",
    "mlp": "soups.models:MLP",
    "resnet": "soups.models:ResNet",
    "vit": "soups.models:ViT",
}


def task_of(section: str | Mapping[str, Any], *, seed: int, data_dir: str | None) -> tuple[Task, Dataset | None]:
    """Return the task of `config.task` and the images to pre-train on, if it has some.

    The section is a name or "module:function", or holds one as "name" (default: "digits") beside the settings that it
    is called with. A function that takes `seed` or `data_dir` is given them. It returns a `soups.data.Task`, or a pair
    of one and {"train": Dataset} to pre-train on.

    Raises:
        ValueError: no such function, other settings, something else returned, splits that are not decoded, images to
            pre-train on of another shape.
    """
    reference, settings = _reference(section, "config.task", "digits")
    made = called(reference, TASKS, "config.task", settings, seed=seed, data_dir=data_dir)
    task, pretraining = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    pretraining = pretraining.get("train") if isinstance(pretraining, Mapping) else pretraining
    what = f"config.task {reference!r}"
    if not isinstance(task, Task) or not isinstance(pretraining, Dataset | None):
        kinds = f"({type(task).__name__}, {type(pretraining).__name__})" if task is not made else type(made).__name__
        raise ValueError(
            f"{what} must return a soups.data.Task, or a pair of one and {{'train': Dataset}} to pre-train on, not "
            f"{kinds}"
        )
    if not isinstance(task.train, Dataset):
        raise ValueError(
            f"{what}: train is a {type(task.train).__name__} whose images are not decoded: "
            "soups.data.decode(source, transform) keeps them in memory"
        )
    shape = task.test.images.shape[1:]
    if pretraining is not None and pretraining.images.shape[1:] != shape:
        raise ValueError(f"{what}: images to pre-train on are {list(pretraining.images.shape[1:])}, not {list(shape)}")
    return task, pretraining


def network_of(section: str | Mapping[str, Any], task: Task, *, probed: bool) -> Network:
    """Return the network of `config.model` for a task.

    The section is as that of `task_of` (default: "vit"); a function that takes `num_classes` or `image_shape` is given
    them. It returns a Linen module or a `soups.models.Network`. `probed`: it needs a head that can be replaced.

    Raises:
        ValueError: no such function, other settings, something else returned, a network that fails on the images of the
            task or gives other logits.
    """
    reference, settings = _reference(section, "config.model", "vit")
    shape, classes = task.test.images.shape[1:], len(task.class_names)
    made = called(reference, NETWORKS, "config.model", settings, num_classes=classes, image_shape=shape)
    what = f"config.model {reference!r}"
    if not isinstance(made, Network | nn.Module):
        raise ValueError(
            f"{what} must return a Linen module or a soups.models.Network, not a "
            f"{made.__name__ + ' itself' if isinstance(made, type) else type(made).__name__}"
        )
    network = Network.of(made) if isinstance(made, nn.Module) else made
    with blamed(what, named(reference, NETWORKS, "config.model")):
        network.check(shape, classes, probed=probed)
    return network


def contents(task: Task, pretraining: Dataset | None, network: Network) -> dict[str, str]:
    """Return digests of the "data", and of the programs and constants of the "network": names do not tell them."""
    sets = {"train": task.train, "held_out": task.held_out, "test": task.test, **task.shifts}
    sets |= {} if pretraining is None else {"pretraining": pretraining}
    data = {name: {"images": one.images, "labels": one.labels} for name, one in sets.items()}
    key, images = jax.random.key(0), jax.ShapeDtypeStruct((1, *task.test.images.shape[1:]), jnp.float32)

    def init(key):
        return network.init(key, images.shape[1:])

    params = jax.eval_shape(init, key)
    programs = [(init, key), (network.apply, params, images), (network.trained, params, images, key)]
    return {"data": digest(data), "network": "-".join(program_digest(*program) for program in programs)}


def _reference(section, field, default):
    """Return the name in a section of a config, and its other fields."""
    if not isinstance(section, Mapping):
        return section, {}
    return section.get("name", default), {name: value for name, value in section.items() if name != "name"}
