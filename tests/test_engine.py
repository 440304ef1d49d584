"""Test what parts of leaves have in common for all recipes."""

import jax.numpy as jnp
import numpy as np
import pytest

from soups import engine
from soups.arrays import total
from soups.engine import Part, remembered

VALUES = np.random.default_rng(0).normal(size=(7, 13)).astype(np.float32)


def counted(function):
    """Return a function that counts its calls, and the list that they are counted in."""
    calls = []
    return lambda part: calls.append(part.start) or function(part), calls


@pytest.mark.parametrize("function", [lambda part: part.leaves[0] > 0, lambda part: 2.0 * part.leaves[0]])
def test_what_is_remembered_is_the_same_and_worked_out_once_for_each_part(function, monkeypatch):
    monkeypatch.setattr(engine, "BLOCK", 30)
    again, calls = counted(function)
    again = remembered(again)
    for _ in range(3):
        for part in engine.parts("w", [VALUES], None, "row"):
            found = again(part)
            assert found.shape == part.leaves[0].shape and found.dtype == function(part).dtype
            np.testing.assert_array_equal(found, function(part))
    assert calls == [0, 26, 52, 78]
    again(Part("other", [VALUES]))
    assert calls == [0, 26, 52, 78, 0]


def test_arrays_of_devices_are_worked_out_anew():
    again, calls = counted(lambda part: part.leaves[0] > 0)
    again = remembered(again)
    for value in (1.0, -1.0):  # under a transformation the same part may hold other numbers
        assert again(Part("w", [jnp.full(3, value)])).all() == (value > 0)
    assert len(calls) == 2


@pytest.mark.parametrize("shape", [(), (1,), (3, 5), (2**16,)])
def test_total(shape):
    array = np.random.default_rng(1).uniform(0.5, 1, size=shape).astype(np.float32)
    for xp in (np, jnp):
        np.testing.assert_allclose(total(xp, xp.asarray(array)), array.sum(dtype=np.float64), rtol=1e-6)


@pytest.mark.parametrize("xp", [np, jnp])
@pytest.mark.parametrize("scope", ["leaf", "model"])
def test_no_recipe_meets_a_leaf_without_elements(xp, scope):
    def met(part):
        assert part.leaves[0].size
        return part

    recipe = engine.Recipe(
        lambda part, found: met(part).leaves[0] * found,
        lambda parts: engine.sum_over(parts, lambda part: met(part).xp.max(part.leaves[0])),
        scope,
    )
    members = [{"empty": xp.zeros((0, 3), dtype), "full": xp.ones(2, dtype)} for dtype in (np.float16, np.float32)]
    merged = engine.merge(recipe, members, members[0])
    assert merged["empty"].shape == (0, 3) and merged["empty"].dtype == np.float32
    np.testing.assert_array_equal(merged["full"], [1, 1])
