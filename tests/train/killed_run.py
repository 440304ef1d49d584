"""Fine-tune a small network and be killed on the way; started by test_resumable.py: `killed_run.py FOLDER STEP`."""

import os
import signal
import sys

import jax
import numpy as np

from soups.data import array_source, loader
from soups.train import Classification, Training, fit

STEPS, BATCH, CLASSES = 10, 8, 3
HYPERPARAMETERS = {"learning_rate": 0.03, "weight_decay": 0.1, "mixup": 0.4, "seed": 5, "num_steps": STEPS}
SAVE_EVERY = 3


def network(params, images, key):
    """Apply two layers with dropout."""
    hidden = jax.numpy.tanh(images.reshape(len(images), -1) @ params["hidden"]["kernel"])
    kept = jax.random.bernoulli(key, 0.9, hidden.shape).astype(hidden.dtype)
    return (hidden * kept) @ params["head"]["kernel"] + params["head"]["bias"][None], params


LOSS = Classification(network, CLASSES)
TRAINING = Training(loss=LOSS, clip_norm=1.0, accumulate=2, ema_decays=(0.9, 0.9999999))


def start_weights():
    """Return the weights that every run starts from."""
    rng = np.random.default_rng(0)
    kernels = {"hidden": (48, 16), "head": (16, CLASSES)}
    params = {name: {"kernel": rng.normal(size=shape).astype(np.float32) / 4} for name, shape in kernels.items()}
    params["head"]["bias"] = np.zeros(CLASSES, np.float32)
    return params


def make_loader(seed, batch_size=BATCH):
    """Load 20 images, so that epochs end within batches."""
    rng = np.random.default_rng(1)
    source = array_source(rng.integers(0, 256, (20, 4, 4, 3)).astype(np.uint8), np.arange(20) % CLASSES)
    return loader(source, batch_size, seed=seed)


def first_batch():
    """Return a batch."""
    return next(iter(make_loader(0)))


class Deadly:
    """Hand out a loader's batches, and kill the process when that of step `last` is asked for."""

    def __init__(self, batches, last):
        self._batches, self._left = iter(batches), last
        self.get_state, self.set_state = self._batches.get_state, self._batches.set_state

    def __iter__(self):
        return self

    def __next__(self):
        if self._left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        self._left -= 1
        return next(self._batches)


class Interrupted:
    """Hand out `limit` batches of an iterator, then raise; without end where it is -1."""

    def __init__(self, batches, limit, error=KeyboardInterrupt):
        self._batches, self._left, self._error = batches, limit, error
        self.get_state, self.set_state, self.close = batches.get_state, batches.set_state, batches.close

    def __iter__(self):
        return self

    def __next__(self):
        if self._left == 0:
            raise self._error
        self._left -= 1
        return next(self._batches)


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", 8)
    folder, last = sys.argv[1], int(sys.argv[2])
    batches = Deadly(make_loader(HYPERPARAMETERS["seed"]), last)
    options = {"hyperparameters": HYPERPARAMETERS, "directory": folder, "save_every": SAVE_EVERY}
    fit(TRAINING, start_weights(), batches, **options)
