"""Measure next tokens against NumPy, and refuse other batches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from soups.train import NextToken

TABLE = np.random.default_rng(0).normal(size=(5, 5)).astype(np.float32)


def logits(params, inputs, key):
    assert inputs.keys() == {"tokens", "mask"}
    return params[inputs["tokens"]]


def test_the_loss_is_the_mean_over_learned_tokens(rng):
    tokens = rng.integers(0, 5, (3, 6)).astype(np.int32)
    mask = np.arange(6)[None] < np.array([6, 4, 2])[:, None]
    learned = rng.random((3, 6)) < 0.6
    batch = {"tokens": tokens, "mask": mask, "learned": learned}
    found, params = jax.jit(NextToken(logits))(jnp.asarray(TABLE), batch, jax.random.key(0))
    logs = TABLE.astype(np.float64) - np.log(np.exp(TABLE.astype(np.float64)).sum(axis=1, keepdims=True))
    losses = [
        -logs[a[t - 1], a[t]]
        for a, m, w in zip(tokens, mask, learned, strict=True)
        for t in range(1, 6)
        if m[t] and w[t]
    ]
    assert float(found) == pytest.approx(np.mean(losses), rel=1e-5)
    np.testing.assert_array_equal(params, TABLE)
    nothing, _ = NextToken(logits)(jnp.asarray(TABLE), batch | {"learned": np.zeros_like(mask)}, jax.random.key(0))
    assert float(nothing) == 0.0


def test_other_batches_and_logits_are_errors():
    batch = {"tokens": np.zeros((1, 2), np.int32), "mask": np.ones((1, 2), bool)}
    with pytest.raises(ValueError, match="needs tokens, mask and learned, and lacks learned"):
        NextToken(logits)(TABLE, batch, jax.random.key(0))
    batch["learned"] = batch["mask"]
    for changes, message in [
        (
            {"mask": batch["mask"].astype(int)},
            "tokens must be whole numbers .*, mask and learned booleans .* mask int64",
        ),
        ({"learned": batch["mask"][:, :1]}, r"learned booleans \[B, T\], not .*learned bool \[1, 1\]"),
        ({"tokens": np.zeros((1, 2))}, r"tokens must be whole numbers \[B, T\], .* not tokens float64 \[1, 2\]"),
        ({"tokens": np.full((1, 2), -100)}, "tokens must be at least 0, but one is -100"),
        ({"tokens": [0, 1]}, "lacks tokens"),
    ]:
        with pytest.raises(ValueError, match=message):
            NextToken(logits).check(batch | changes, {})
    with pytest.raises(ValueError, match="must be a mapping, not a tuple"):
        NextToken(logits).check((batch["tokens"], batch["mask"]), {})
    with pytest.raises(ValueError, match=r"logits for each token, not \[1, 5\] for tokens \[1, 2\]"):
        NextToken(lambda *_: jnp.zeros((1, 5)))(TABLE, batch | {"learned": batch["mask"]}, jax.random.key(0))
