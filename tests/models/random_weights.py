"""Draw all weights of a network, of whose head, biases and statistics a fresh one has zeros and ones."""

import jax
import numpy as np

from soups import models, tree


def random_weights(model, shape, *, scaled=False):
    """Return random weights for inputs of a shape; statistics and scales are positive.

    `scaled`: by the number of inputs of each unit, as those of a trained network.
    """
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda key: models.init(model, key, shape), jax.random.key(0))

    def draw(name, leaf):
        values = rng.normal(size=leaf.shape)
        if scaled and leaf.ndim > 1:
            values /= np.sqrt(np.prod(leaf.shape[:-1]))
        return np.asarray(np.abs(values) + 0.5 if name.endswith(("var", "scale")) else values, np.float32)

    return tree.map_with_names(draw, shapes)
