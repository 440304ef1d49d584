"""Write orbax-VERSION.zip of this folder with the Orbax that is installed; the tests know the values.

orbax-checkpoint 0.4.8 with jax 0.4.25 and flax 0.8.1, and orbax-checkpoint 0.9.1 with jax 0.4.35 and flax 0.10.2 were
used: pip install orbax-checkpoint==0.4.8 jax==0.4.25 jaxlib==0.4.25 flax==0.8.1 optax==0.1.9 numpy==1.26.4.
"""

import os
import pathlib
import shutil
import tempfile

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"

import flax.serialization
import flax.training.train_state
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp

FOLDER = pathlib.Path(__file__).parent


def params(shift=0):
    """Make weights of several kinds; `kernel` lies in shards, `count` is a number of Python."""
    mesh = jax.sharding.Mesh(np.array(jax.devices()).reshape(2, 2), ("a", "b"))
    cut = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("a", "b"))
    return {
        "dense": {
            "kernel": jax.device_put(jnp.arange(24, dtype=jnp.float32).reshape(4, 6) + shift, cut),
            "bias": np.arange(6, dtype=np.float16) + shift,
        },
        "blocks": [{"scale": jnp.arange(3, dtype=jnp.bfloat16) + shift}, {"zeros": jnp.zeros((5,), jnp.float32)}],
        "temperature": jnp.float32(2.5 + shift),
        "count": 3,
        "rate": 0.5,
    }


def state(shift=0):
    """Make the state of a training with Adam."""
    weights = {name: leaf for name, leaf in params(shift).items() if name not in ("count", "rate")}
    made = flax.training.train_state.TrainState.create(apply_fn=len, params=weights, tx=optax.adam(0.1))
    return made.replace(step=shift)


def save(folder):
    """Save what the tests read."""
    tree = {"params": params(), "note": "text", "nothing": None, "empty": {}}
    ocp.PyTreeCheckpointer().save(folder / "ocdbt", tree)
    plain = ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=False))
    plain.save(folder / "plain", {"params": params(), "nothing": None, "empty": {}})
    together = jax.tree_util.tree_map(lambda _: ocp.SaveArgs(aggregate=True), params())
    together["dense"]["kernel"] = ocp.SaveArgs()
    plain.save(folder / "aggregate", params(), save_args=together)
    one = {"a": jnp.arange(3.0)}
    options = ocp.CheckpointManagerOptions(step_prefix="checkpoint")
    manager = ocp.CheckpointManager(folder / "manager", ocp.PyTreeCheckpointer(), options)
    manager.save(9, one)
    manager.save(10, state(10))
    parts = {"params": ocp.PyTreeCheckpointer(), "opt_state": ocp.PyTreeCheckpointer()}
    parts["extra"] = ocp.Checkpointer(ocp.JsonCheckpointHandler())
    ocp.CheckpointManager(folder / "items", parts).save(5, {"params": one, "opt_state": one, "extra": {"loss": 1.0}})
    (folder / "flax").mkdir()
    (folder / "flax" / "checkpoint_7").write_bytes(flax.serialization.to_bytes(state(7)))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        save(pathlib.Path(folder))
        shutil.make_archive(str(FOLDER / f"orbax-{ocp.__version__}"), "zip", folder)
