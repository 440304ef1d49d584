"""Evaluate on a mesh over two processes; started twice by test_evaluator.py: `two_processes.py ID PORT OUT`."""

import sys
import types

import jax
import numpy as np
from jax.sharding import AxisType

from soups.evaluate import Evaluator

if __name__ == "__main__":
    process, port, out = int(sys.argv[1]), sys.argv[2], sys.argv[3]
    jax.config.update("jax_num_cpu_devices", 2)
    jax.distributed.initialize(f"localhost:{port}", num_processes=2, process_id=process)
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (37, 3, 2, 1), np.uint8)
    dataset = types.SimpleNamespace(images=images, labels=np.arange(37) % 5, class_groups=None)
    params = {"w": rng.normal(size=(6, 5)).astype(np.float32)}
    evaluator = Evaluator(lambda p, x: x.reshape(len(x), -1) @ p["w"], dataset, batch_size=16, mesh=mesh)
    logits = evaluator.logits(params)
    on_device = evaluator.logits(jax.device_put(params, jax.local_devices()[0]))
    np.testing.assert_array_equal(logits, on_device)
    np.save(f"{out}/{process}.npy", logits)
