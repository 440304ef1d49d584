"""Evaluate on a mesh over two processes; started twice by test_evaluator.py: `two_processes.py ID PORT OUT`."""

import sys
import types

import jax
import numpy as np
from jax.sharding import AxisType

from soups.evaluate import Evaluator


class Counting:
    """Hold images, of which slices are taken, and count what was asked for."""

    def __init__(self, images):
        self._images, self.rows = images, 0
        self.dtype, self.nbytes = images.dtype, images.nbytes

    def __len__(self):
        return len(self._images)

    def __getitem__(self, rows):
        self.rows += len(self._images[rows])
        return self._images[rows]


if __name__ == "__main__":
    process, port, out = int(sys.argv[1]), sys.argv[2], sys.argv[3]
    jax.config.update("jax_num_cpu_devices", 2)
    jax.distributed.initialize(f"localhost:{port}", num_processes=2, process_id=process)
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (37, 3, 2, 1), np.uint8)
    dataset = types.SimpleNamespace(images=images, labels=np.arange(37) % 5, class_groups=None)
    params = {"w": rng.normal(size=(6, 5)).astype(np.float32)}

    def network(p, x):
        return x.reshape(len(x), -1) @ p["w"]

    evaluator = Evaluator(network, dataset, batch_size=16, mesh=mesh)
    logits = evaluator.logits(params)
    on_device = evaluator.logits(jax.device_put(params, jax.local_devices()[0]))
    np.testing.assert_array_equal(logits, on_device)
    read = Counting(images)
    dataset.images = read
    again = Evaluator(network, dataset, batch_size=16, mesh=mesh).logits(params)
    np.testing.assert_array_equal(logits, again)
    assert read.rows <= 37 // 2 + 3, read.rows  # its part of each batch, at least one image
    np.save(f"{out}/{process}.npy", logits)
