"""Fine-tune, keep and soup on a mesh over two processes; started twice by test_two_processes.py: ID PORT FOLDER."""

import functools
import pathlib
import sys

import jax
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import soups
from soups import models
from soups.data import array_source, loader
from soups.evaluate import Evaluator
from soups.train import Training, finetune
from soups.train.loop import jit_step

MODEL = models.ViT(num_classes=3, patch_size=7, width=8, depth=1, mlp_dim=16, num_heads=2)
# Plain descent: Adam would turn the rounding of a gradient that is zero, as that of attention's key bias, into a step.
TRAINING = Training(
    train_apply=models.train_apply_fn(MODEL), num_classes=3, optimizer=lambda rate, decay, mask: optax.sgd(rate)
)
MEMBERS = [{"learning_rate": rate, "seed": seed, "mixup": 0.3} for seed, rate in enumerate((1.0, 0.3, 0.1))]
STEPS, BATCH = 4, 8


def make_data():
    """Give 24 images in three classes, and start weights."""
    rng = np.random.default_rng(0)
    labels = np.arange(24) % 3
    images = rng.integers(0, 100, (24, 14, 14, 1)) + 50 * labels[:, None, None, None]
    return array_source(images.astype(np.uint8), labels), models.init(MODEL, jax.random.key(0), (14, 14, 1))


def fine_tune(member, start, source, place):
    """Fine-tune one member from a loader whose batches `place` puts on the devices."""
    batches = map(place, loader(source, BATCH, seed=member["seed"]))
    return finetune(TRAINING, start, batches, member | {"num_steps": STEPS}, step=compiled_step())["params"]


@functools.cache
def compiled_step():
    """Give the step that all members share; made when first called, because it starts JAX."""
    return jit_step(TRAINING)


def main():
    """Do what each of the two processes does."""
    process, port, folder = int(sys.argv[1]), sys.argv[2], pathlib.Path(sys.argv[3])
    jax.config.update("jax_num_cpu_devices", 2)
    jax.distributed.initialize(f"localhost:{port}", num_processes=2, process_id=process)
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    everywhere, split = NamedSharding(mesh, P()), NamedSharding(mesh, P("data"))
    source, start = make_data()
    start = jax.device_put(jax.device_get(start), everywhere)

    def place(batch):
        return {name: jax.make_array_from_process_local_data(split, np.asarray(part)) for name, part in batch.items()}

    pool = soups.Pool(folder / "pool")
    for member in MEMBERS:
        params = fine_tune(member, start, source, place)
        # the patch embedding is sharded over both processes, all else is replicated
        params["embedding"]["kernel"] = jax.device_put(
            params["embedding"]["kernel"], NamedSharding(mesh, P(None, None, None, "data"))
        )
        pool.add(f"member_{member['seed']}", params, member)
    like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=everywhere), pool.structure)
    members = {name: pool.load(name, like=like) for name in pool}
    evaluator = Evaluator(models.apply_fn(MODEL), source, batch_size=12, mesh=mesh)
    soup = soups.greedy(members, evaluator, metric="nll", mode="min")
    leaves = {name.replace("/", "."): np.asarray(leaf) for name, leaf in soups.tree.flatten(soup.params).items()}
    np.savez(folder / f"soup{process}.npz", ingredients=list(soup.ingredients), score=soup.score, **leaves)


if __name__ == "__main__":
    main()
