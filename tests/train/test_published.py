"""Test that the published recipes are hyper-parameters, and that their optimizer is the published one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from soups.train import Classification, Training
from soups.train.loop import num_steps
from soups.train.published import DECAY_ALL, MODEL_SOUPS, MODEL_SOUPS_BATCH, WISE_FT, WISE_FT_BATCH


@pytest.mark.parametrize(
    ("recipe", "batch", "steps"), [(WISE_FT, WISE_FT_BATCH, 25_023), (MODEL_SOUPS, MODEL_SOUPS_BATCH, 40_037)]
)
def test_on_imagenet_a_recipe_takes_as_many_steps(recipe, batch, steps):
    assert num_steps(recipe, 1_281_167, batch) == steps


def test_every_weight_decays_by_the_rate_of_the_step():
    def constant(params, images, key):
        return jnp.broadcast_to(0.0 * params["head"]["bias"][None], (len(images), 2)), params

    training = Training(loss=Classification(constant, 2), decay_rules=DECAY_ALL)
    params = {"head": {"bias": np.float32([1.0, -2.0])}}
    batch = {"image": np.zeros((4, 2, 2, 1), np.uint8), "label": np.zeros(4, np.int32)}
    numbers = training.numbers(training.hyperparameters | WISE_FT | {"num_steps": 1000})
    state = training.begin(params, numbers) | {"step": jnp.int32(249)}
    state, _ = training.step(state, batch, numbers)
    rate = 3e-5 * 250 / 500  # no gradient, so the weights only shrink
    np.testing.assert_allclose(state["params"]["head"]["bias"], [1 - rate * 0.1, -2 + 2 * rate * 0.1], rtol=1e-7)
    assert jax.tree.leaves(state["params"])[0].dtype == jnp.float32
