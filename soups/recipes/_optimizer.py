"""Call optax the one way that this library does."""

from soups.lazy import jax


def apply(optimizer, grads, state, params, multipliers=None):
    """Return the updated parameters and optimizer state; `multipliers` scale the update of each leaf."""
    import optax  # takes a third of a second to import; most of this library does without

    # optax mixes Python floats with integer counts, which a program with strict promotion would refuse
    with jax.numpy_dtype_promotion("standard"):
        updates, state = optimizer.update(grads, state, params)
        if multipliers is not None:
            updates = jax.tree.map(lambda multiplier, update: multiplier * update, multipliers, updates)
        return optax.apply_updates(params, updates), state
