"""Make small networks that a diagnosis is given: a base, a healthy family, and the accuracy of their classes."""

import jax
import numpy as np
import pytest

STEP = 0.1


class Networks:
    """Draw networks of three dense layers."""

    def __init__(self, rng):
        self._rng = rng

    def new(self, classes=3):
        """Draw a network of its own start."""

        def dense(inputs, outputs):
            kernel = self._rng.normal(size=(inputs, outputs)).astype(np.float32)
            return {"kernel": kernel, "bias": 0.1 * self._rng.normal(size=outputs).astype(np.float32)}

        return {"Dense_0": dense(12, 16), "Dense_1": dense(16, 16), "head": dense(16, classes)}

    def near(self, base, step=STEP):
        """Move a network at random by `step` of its norm."""
        draw = self._rng.normal
        return jax.tree.map(lambda b: (b + step * b.std() * draw(size=b.shape)).astype(b.dtype), base)

    def permuted(self, params, order=None):
        """Permute the hidden units of the first layer: the same function."""
        order = self._rng.permutation(16) if order is None else order
        first, second = params["Dense_0"], params["Dense_1"]
        return {
            **params,
            "Dense_0": {"kernel": first["kernel"][:, order], "bias": first["bias"][order]},
            "Dense_1": {**second, "kernel": second["kernel"][order]},
        }


@pytest.fixture
def nets(rng):
    """Draw networks with the test's generator."""
    return Networks(rng)


@pytest.fixture
def base(nets):
    """Return the weights that the family starts from."""
    return nets.new()


@pytest.fixture
def family(nets, base):
    """Return six healthy members."""
    return {f"m{index}": nets.near(base) for index in range(6)}


@pytest.fixture
def accuracy(rng, base):
    """Score agreement with the base's classes on random inputs."""
    inputs = rng.normal(size=(200, 12)).astype(np.float32)

    def classes(params):
        hidden = inputs
        for name in ("Dense_0", "Dense_1"):
            hidden = np.tanh(hidden @ np.asarray(params[name]["kernel"]) / 3 + np.asarray(params[name]["bias"]))
        return (hidden @ np.asarray(params["head"]["kernel"]) + np.asarray(params["head"]["bias"])).argmax(axis=1)

    labels = classes(base)
    return lambda params: float(np.mean(classes(params) == labels))
