"""Call optax the one way that this library does."""

import jax
import optax


def apply(optimizer: optax.GradientTransformation, grads, state, params):
    """Give the updated parameters and optimizer state."""
    # optax mixes Python floats with integer counts, which a program with strict promotion would refuse
    with jax.numpy_dtype_promotion("standard"):
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state
