"""Test which buffers do not block a merge: those that carry nothing, by their names and by what they hold."""

import numpy as np
import pytest


def weights(*values):
    return np.array(values, np.float32)


CAUSAL = np.tril(np.ones((1, 1, 4, 4), bool))
FAR = np.where(CAUSAL[0, 0], 0, -np.inf).astype(np.float32)
BUFFERS = {
    "embeddings.position_ids": np.arange(5)[None],
    "embeddings.token_type_ids": np.zeros((1, 5), np.int64),
    "layers.0.rotary_emb.inv_freq": (1e4 ** -(np.arange(4) / 4)).astype(np.float32),
    "layers.0.rotary_emb.cos_cached": np.cos(np.outer(np.arange(5), weights(1, 0.1)))[None, None].astype(np.float32),
    "layers.0.rotary_emb.sin_cached": np.sin(np.outer(np.arange(5), weights(1, 0.1)))[None, None].astype(np.float32),
    "h.0.attn.bias": CAUSAL,
    "h.0.attn.masked_bias": np.float32(-1e9),
    "attn_mask": FAR,
    "bn.num_batches_tracked": np.asarray(3),
}


@pytest.mark.parametrize("name", BUFFERS)
@pytest.mark.parametrize("has", [0, 1])
def test_buffers_that_only_one_side_has_do_not_block(linear_of, small, tmp_path, name, has):
    models = [{"w": weights(1)}, {"w": weights(3)}]
    models[has][name] = BUFFERS[name]
    recipe = linear_of(*models)
    (note,) = small.plan(recipe).notes
    assert name in note and "carries no information" in note
    merged = small.merge(recipe, tmp_path / "out")
    assert merged["w"] == 2 and set(merged) == ({"w", name} if has == 0 else {"w"})
    if has == 0:
        np.testing.assert_array_equal(merged[name], BUFFERS[name])


@pytest.mark.parametrize("name", [name for name in BUFFERS if "num_batches" not in name])  # that is any number
@pytest.mark.parametrize("has", [0, 1])
def test_a_buffer_that_carries_something_is_named(linear_of, small, name, has):
    models = [{"w": weights(1)}, {"w": weights(3)}]
    models[has][name] = np.asarray(BUFFERS[name] + 1).astype(BUFFERS[name].dtype)
    if name.endswith("masked_bias"):
        models[has][name] = np.float32(0.5)
    with pytest.raises(ValueError, match=f"{name} is {'missing' if has == 0 else 'extra'}"):
        small.plan(linear_of(*models))


def test_masks_of_infinity_that_all_have_alike_are_copied(linear_of, small, tmp_path):
    recipe = linear_of(*({"w": weights(i), "attn_mask": FAR} for i in (1, 3)))
    np.testing.assert_array_equal(small.merge(recipe, tmp_path / "out")["attn_mask"], FAR)
