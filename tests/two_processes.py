"""Fine-tune, keep and soup on a mesh over two processes; started twice by test_two_processes.py: ID PORT FOLDER."""

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
from soups.train import Classification, Training, fit

MODEL = models.ViT(num_classes=3, patch_size=7, width=8, depth=1, mlp_dim=16, num_heads=2)
# Plain descent: Adam would turn the rounding of a gradient that is zero, as that of attention's key bias, into a step.
TRAINING = Training(
    loss=Classification(models.train_apply_fn(MODEL), 3),
    optimizer=lambda learning_rate: optax.sgd(learning_rate),
    clip_norm=1.0,
)
MEMBERS = [{"learning_rate": rate, "seed": seed, "mixup": 0.3} for seed, rate in enumerate((1.0, 0.3, 0.1))]
STEPS, BATCH = 4, 8


def make_data():
    """Return 24 images in three classes, and start weights."""
    rng = np.random.default_rng(0)
    labels = np.arange(24) % 3
    images = rng.integers(0, 100, (24, 14, 14, 1)) + 50 * labels[:, None, None, None]
    return array_source(images.astype(np.uint8), labels), models.init(MODEL, jax.random.key(0), (14, 14, 1))


def fine_tune(member, start, source, mesh=None):
    """Fine-tune one member from a loader."""
    batches = loader(source, BATCH, seed=member["seed"])
    return fit(TRAINING, start, batches, steps=STEPS, hyperparameters=member, mesh=mesh)["params"]


def main():
    """Do what each of the two processes does."""
    process, port, folder = int(sys.argv[1]), sys.argv[2], pathlib.Path(sys.argv[3])
    jax.config.update("jax_num_cpu_devices", 2)
    jax.distributed.initialize(f"localhost:{port}", num_processes=2, process_id=process)
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    everywhere = NamedSharding(mesh, P())
    source, start = make_data()
    pool = soups.Pool(folder / "pool")
    for member in MEMBERS:
        params = fine_tune(member, start, source, mesh)
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
