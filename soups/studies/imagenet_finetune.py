"""Fine-tune a pool on ImageNet by a random search from one linear probe, read from top to bottom.

The search is that of Wortsman et al., "Model soups", 2022, arXiv 2203.05482, appendix J.2.1; where the ranges of
configs/imagenet come from is said there.
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from soups import tree
from soups.data.imagenet import evaluation_sets, train_source
from soups.data.random_transforms import MINIMAL
from soups.files import from_here
from soups.names import check_name
from soups.processes import all_or_none
from soups.progress import progress, say
from soups.studies.named import architecture_of, start_weights
from soups.studies.search_space import choices
from soups.studies.streamed import FIRST, Streamed, mesh_of
from soups.studies.study import Study, check_fields
from soups.train import Classification, Training, search
from soups.train.probe import with_head
from soups.train.published import DECAY_ALL

FIELDS = {
    "": "study name seed data_dir cache_dir arch start",
    "probe": "strengths max_iterations",
    "finetune": "batch_size accumulate dtype remat shard mesh clip_norm sam_radius ema_decays warmup_steps save_every "
    "num_threads num_workers",
    "sweep": "members learning_rate weight_decay label_smoothing mixup epochs minimal magnitude operations",
    "evaluate": "batch_size",
}
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}  # of the network; weights are in float32


def draw_members(config: Mapping[str, Any], seed: int) -> list[dict[str, Any]]:
    """Draw the members of `config.sweep`; the first ones of a longer search are those of a shorter one."""
    magnitude, operations = search.integers(*config["magnitude"]), search.integers(*config["operations"])

    def augmentation(generator):
        minimal = generator.uniform() < config["minimal"]
        policy = f"rand-m{magnitude(generator)}-n{operations(generator)}"
        return MINIMAL if minimal else policy

    drawn = {"augmentation": augmentation, "seed": search.integers(0, 2**31 - 1)}
    return search.random(config["members"], seed, **choices(config, epochs=search.integers), **drawn)


def _check(config):
    check_fields(config, FIELDS)
    check_name(config["finetune"]["dtype"], DTYPES, "dtype")
    if missing := [name for name in ("data_dir", "start") if not config[name]]:
        raise ValueError(f"{' and '.join(missing)} must be given: where the images are, what to fine-tune")
    if not config["finetune"]["sam_radius"] >= 0:
        raise ValueError(f"finetune.sam_radius must be at least 0, not {config['finetune']['sam_radius']}")


def _scenes(config, workdir) -> list[Streamed]:
    arch, mesh = architecture_of(config["arch"]), mesh_of(config["finetune"])
    cache_dir = workdir.shared(config["cache_dir"], "decoded")
    train = all_or_none(lambda: train_source(config["data_dir"], cache_dir=cache_dir))
    training = _training(config["finetune"], arch, len(train.class_names))
    start = all_or_none(lambda: _start(config, arch, len(train.class_names)))
    sets = evaluation_sets(
        config["data_dir"], cache_dir, image_size=arch.image_size, sets=["held_out"], progress=progress
    )
    scene = Streamed(
        config=config,
        workdir=workdir,
        seed=config["seed"],
        arch=arch,
        start=start,
        train=train,
        held_out=sets["held_out"],
        mesh=mesh,
        training=training,
        pool=workdir.pool("pool"),
        averages={f"ema_{decay}": workdir.pool(f"pool_ema_{decay}") for decay in training.ema_decays},
    )
    return [scene]


def _training(config, arch, num_classes) -> Training:
    fields = {"dtype": DTYPES[config["dtype"]]} | ({"remat": True} if config["remat"] else {})
    return Training(
        loss=Classification(arch.train_apply_fn(num_classes, **fields), num_classes),
        clip_norm=config["clip_norm"],
        decay_rules=DECAY_ALL,
        sam=config["sam_radius"] > 0,
        ema_decays=tuple(config["ema_decays"]),
        accumulate=config["accumulate"],
    )


def _start(config, arch, num_classes):
    """Read start weights: a published file, or a checkpoint of soups zero-shot; a probe replaces their head."""
    params = start_weights(config["start"], arch)
    if config["probe"]["strengths"]:
        kernel = np.zeros((arch.feature_dim, num_classes), np.float32)
        params = with_head(params, arch.head, {"kernel": kernel, "bias": kernel[0]})
    labels = [f"{arch.name}, {num_classes} classes", config["start"]]
    tree.check_same_structure([arch.abstract(num_classes), params], labels)
    return params


def _cook(scene: Streamed) -> dict[str, Any]:
    """Make the pools, say what to cook from them, and describe their members."""
    first = scene.timed("first_member", scene.first_member)
    drawn = scene.stage("search", lambda: draw_members(scene.config["sweep"], scene.config["seed"]))
    names = [FIRST, *scene.timed("fine_tuning", lambda: scene.fill(first, drawn))]
    for pool in (scene.pool, *scene.averages.values()):
        say(f"\nCook from {from_here(pool.path)} with\n  {_next_command(scene, pool)}")
    # nothing is selected here, so the held-out images are what reports
    split = {"role": "test", "examples": len(scene.held_out), "title": "held-out"}
    return {"splits": {"held_out": split}, "rows": scene.rows(names), "members": scene.described(names)}


def _next_command(scene, pool):
    config, workdir = scene.config, from_here(scene.workdir.path)
    flags = [f"data_dir={config['data_dir']}", f"arch={config['arch']}", f"pool={workdir}/{pool.path.name}"]
    given = " ".join(f"--config.{flag}" for flag in [*flags, f"wise_ft.base={FIRST}"])
    own = workdir + pool.path.name.replace("pool", "_soups", 1)
    return f"python scripts/run.py --config configs/imagenet/clip_vit_b32_soups.py --workdir {own} {given}"


run = Study(check=_check, scenes=_scenes, cook=_cook, packages=("pillow",), folders=("pool",))
