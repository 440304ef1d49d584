"""Make the task and the network that a config names, and see that they are what a study takes."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from soups import tree
from soups.data import Dataset, Task
from soups.lazy import extra
from soups.models import Network
from soups.models.architectures import Architecture, architecture, encoder_of
from soups.models.import_weights import import_weights
from soups.models.pretrained import minilm_folder
from soups.plugins import blamed, called, named
from soups.pool import Pool, digest, load_checkpoint
from soups.studies.digests import program_digest
from soups.studies.study import Scene

with extra("train"):
    from flax import linen as nn

TASKS = {"digits": "soups.data:digits_task", "glyphs": "soups.data:glyphs_task"}
TASK_SETS = {"digits": "soups.data.digit_tasks:tasks_from_digits"}
NETWORKS = {
    "convnet": "soups.models:ConvNet",
    "efficientnet_lite0": "soups.models:efficientnet_lite0",
    "glyph_vit": "soups.models:glyph_vit",
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
        ValueError: no such function, or one that does not take these settings, or returns something else; splits that
            are not decoded; images to pre-train on whose shape is not that of the task's.
    """
    reference, settings = section_of(section, "digits")
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


def tasks_of(
    section: str | Mapping[str, Any], *, seed: int, data_dir: str | None
) -> tuple[dict[str, Task], Dataset | None]:
    """Return the tasks of `config.tasks` by name, and the images to pre-train on: see `task_of`.

    Raises:
        ValueError: as `task_of`; fewer than two tasks; images that do not all have the same shape.
    """
    reference, settings = section_of(section, "digits")
    made = called(reference, TASK_SETS, "config.tasks", settings, seed=seed, data_dir=data_dir)
    tasks, earlier = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    what, fits = f"config.tasks {reference!r}", isinstance(tasks, Mapping) and len(tasks) > 1
    if not fits or not all(isinstance(task, Task) for task in tasks.values()) or not isinstance(earlier, Dataset):
        raise ValueError(f"{what} must return a pair: a mapping of at least two soups.data.Task by name, and a Dataset")
    shapes = {name: list(task.test.images.shape[1:]) for name, task in tasks.items()}
    shapes["to pre-train on"] = list(earlier.images.shape[1:])
    if any(shape != shapes["to pre-train on"] for shape in shapes.values()):
        raise ValueError(f"{what}: all images must have the same shape, but they have {shapes}")
    return dict(tasks), earlier


def network_of(section: str | Mapping[str, Any], task: Task, *, probed: bool) -> Network:
    """Return the network of `config.model` for a task.

    The section is as that of `task_of` (default: "vit"); a function that takes `num_classes`, `class_names` or
    `image_shape` is given them. It returns a Linen module or a `soups.models.Network`. `probed`: it needs a head that
    can be replaced.

    Raises:
        ValueError: no such function, or one that does not take these settings, or returns something else; a network
            that fails on the images of the task, or does not give one logit for each class.
    """
    reference, settings = section_of(section, "vit")
    shape, names = task.test.images.shape[1:], tuple(task.class_names)
    return _checked(reference, NETWORKS, "config.model", settings, shape, len(names), probed, class_names=names)[1]


def module_of(
    reference: str,
    field: str,
    settings: Mapping[str, Any],
    image_shape: Sequence[int],
    num_classes: int,
    registered: Mapping[str, str] = NETWORKS,
) -> nn.Module:
    """Return the Linen module that a field of a config names, for so many classes: see `network_of`.

    Raises:
        ValueError: as `network_of`; the function returns a `soups.models.Network`.
    """
    return _checked(reference, registered, field, settings, image_shape, num_classes, kinds=(nn.Module,))[0]


def _checked(
    reference, registered, field, settings, shape, classes, probed=False, kinds=(nn.Module, Network), **offered
):
    made = called(reference, registered, field, settings, num_classes=classes, image_shape=shape, **offered)
    what = f"{field} {reference!r}"
    if not isinstance(made, kinds):
        wanted = " or a ".join({nn.Module: "Linen module", Network: "soups.models.Network"}[kind] for kind in kinds)
        given = f"{made.__name__} itself" if isinstance(made, type) else type(made).__name__
        raise ValueError(f"{what} must return a {wanted}, not a {given}")
    network = Network.of(made) if isinstance(made, nn.Module) else made
    with blamed(what, named(reference, registered, field)):
        network.check(shape, classes, probed=probed)
    return made, network


def architecture_of(reference: str) -> Architecture:
    """Return the architecture that `config.arch` names: one of the library's, or what a "module:function" returns.

    Raises:
        ValueError: no such name or function; an architecture that takes texts; a function that returns something else,
            or an architecture whose network does not take its images, does not give features [B, feature_dim], or has
            no fields `num_classes` and `dtype`.
    """
    own = ":" in reference
    made = called(reference, {}, "config.arch", {}) if own else architecture(reference)
    what = f"config.arch {reference!r}"
    if isinstance(made, Architecture) and made.image_size is None:
        raise ValueError(f"{what} takes texts, where images are given")
    if not own:
        return made
    if not isinstance(made, Architecture):
        of = "soups.models.architectures.Architecture"
        raise ValueError(f"{what} must return a {of}, not a {type(made).__name__}")
    images = jax.ShapeDtypeStruct((1, made.image_size, made.image_size, 3), jnp.float32)
    with blamed(what, named(reference, {}, "config.arch")):
        features = jax.eval_shape(made.apply_fn(None, dtype=jnp.float32), made.abstract(None), images)
        made.abstract(2)
    if features.shape != (1, made.feature_dim):
        raise ValueError(f"{what}: feature_dim is {made.feature_dim}, but the features are {list(features.shape)}")
    return made


def start_weights(path: str | pathlib.Path, arch: Architecture) -> tree.Tree:
    """Read the weights that a config starts from: published ones, or a checkpoint of this library."""
    path = pathlib.Path(path).expanduser()
    is_orbax = (path / "_CHECKPOINT_METADATA").exists()
    return load_checkpoint(path) if is_orbax else import_weights(path, arch)


def encoder_at(model: Mapping[str, Any], **fields: Any) -> tuple[pathlib.Path, Architecture]:
    """Return where the weights and the tokenizer of a section "model" of texts are, and the network, with fields.

    Without a `start` it is the encoder of a package; without an `arch` the folder says what it is.

    Raises:
        ValueError: another network without a folder; one of images.
    """
    path, name = model["start"], model["arch"]
    if path is None and name not in (None, "minilm-l6"):
        raise ValueError(f"config.model.start must say where the weights and the tokenizer of {name} are")
    path = minilm_folder() if path is None else path
    arch = encoder_of(path, **fields) if name is None else architecture(name)
    if arch.image_size is not None:
        raise ValueError(f"config.model.arch {name!r} is not an encoder of texts")
    return path, arch


def architecture_of_member(pool: Pool, name: str, otherwise: str) -> Architecture:
    """Return the architecture that a pool says a member is of, in its metadata.

    Raises:
        ValueError: it says none; the message ends with what to do `otherwise`. Or as `architecture_of`.
    """
    reference = pool.record(name)["metadata"].get("arch")
    if not isinstance(reference, str):
        raise ValueError(f"the pool {pool.path} does not say of what architecture {name!r} is: {otherwise}")
    return architecture_of(reference)


def num_classes_of(params: tree.Tree, where: str) -> int:
    """Return the number of classes of the head of weights of one of the library's architectures.

    Raises:
        ValueError: they have no head.
    """
    biases = [leaf for name, leaf in tree.flatten(params).items() if f"/{name}".endswith("/head/bias")]
    if not biases:
        raise ValueError(f"{where} has no head, so it gives no logits")
    return biases[0].shape[0]


def check_unchanged(scene: Scene, network: Network, task: Task, earlier: Dataset | None = None) -> None:
    """Refuse to go on with what was made of other data, or by another network, of the same name.

    Names do not tell them: digests of the data and of the programs and constants of the network are kept.

    Raises:
        ValueError: the data or the network has changed.
    """
    check_contents(scene, _contents(task, earlier, network))


def check_contents(scene: Scene, here: Mapping[str, str]) -> None:
    """Refuse to go on where the digests of "data" and "network" are others than those that a scene began with.

    Raises:
        ValueError: the data or the network has changed.
    """
    there = scene.stage("contents", lambda: here)
    words = {"data": "other data", "network": "another network"}
    if changed := [words[name] for name in here if here[name] != there[name]]:
        raise ValueError(
            f"the workdir {scene.workdir.path} was made with {' and '.join(changed)} under the same name: use another "
            "workdir, or remove this one"
        )


def _contents(task, earlier, network) -> dict[str, str]:
    sets = {"train": task.train, "held_out": task.held_out, "test": task.test, **task.shifts}
    sets |= {} if earlier is None else {"pretraining": earlier}
    data = {name: {"images": one.images, "labels": one.labels} for name, one in sets.items()}
    key, images = jax.random.key(0), jax.ShapeDtypeStruct((1, *task.test.images.shape[1:]), jnp.float32)

    def init(key):
        return network.init(key, images.shape[1:])

    params = jax.eval_shape(init, key)
    programs = [(init, key), (network.apply, params, images), (network.trained, params, images, key)]
    return {"data": digest(data), "network": "-".join(program_digest(*program) for program in programs)}


def section_of(section: str | Mapping[str, Any], default: str) -> tuple[str, dict[str, Any]]:
    """Return the name in a section of a config, or that is all of it, and its other fields."""
    if not isinstance(section, Mapping):
        return section, {}
    return section.get("name", default), {name: value for name, value in section.items() if name != "name"}
