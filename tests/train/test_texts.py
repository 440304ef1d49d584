"""Train and measure an encoder of texts: batches of few lengths give what arrays give, whatever was cut or padded."""

import dataclasses

import jax
import numpy as np
import pytest

import soups
from soups import models
from soups.data import text_batches
from soups.evaluate import Evaluator
from soups.models.architectures import architecture
from soups.train import Classification, fit

SIZES = {"width": 8, "depth": 1, "mlp_dim": 8, "num_heads": 2, "vocabulary_size": 20, "context_length": 8}
SETTINGS = {"learning_rate": 0.05, "seed": 3}


@pytest.fixture(scope="module")
def arch():
    """Return a small MiniLM."""
    arch = architecture("minilm-l6")
    return dataclasses.replace(arch, feature_dim=8, features=arch.features.clone(**SIZES))


@pytest.fixture(scope="module")
def data():
    """Return 24 texts of 2 to 8 tokens, whose class is that of their second token."""
    rng = np.random.default_rng(0)
    mask = np.arange(8)[None] < rng.permuted(np.array([2, 3, 4, 4] * 5 + [5, 6, 7, 8]))[:, None]
    labels = rng.integers(0, 2, 24).astype(np.int32)
    tokens = np.where(mask, rng.integers(5, 20, mask.shape), 0).astype(np.int32)
    tokens[:, 1] = 3 + labels
    return {"tokens": tokens, "mask": mask}, labels


def test_batches_of_few_lengths_train_as_arrays_do_and_their_members_make_a_soup(arch, data):
    (inputs, labels), traced = data, []
    start = models.init(arch.model(2), jax.random.key(0), inputs)
    train_apply = arch.train_apply_fn(2)

    def watched(params, given, key):
        traced.append(given["tokens"].shape)
        return train_apply(params, given, key)

    loss = Classification(watched, 2, preprocess=None)
    made = fit(loss, start, text_batches(inputs, labels, 4, seed=3, lengths=(4, 8)), steps=30, hyperparameters=SETTINGS)
    assert set(traced) == {(4, 4), (4, 8)}
    plain = Classification(train_apply, 2, preprocess=None)
    arrays = fit(plain, start, {"image": inputs, "label": labels}, batch_size=4, steps=30, hyperparameters=SETTINGS)
    np.testing.assert_allclose(made["losses"], arrays["losses"], rtol=1e-4, atol=1e-5)
    evaluator = Evaluator(arch.apply_fn(2), (inputs, labels))
    assert evaluator(soups.uniform([made["params"], arrays["params"]]))["accuracy"] > 0.9


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mixup": 0.2}, r"inputs by name, such as tokens, cannot be mixed or augmented \(mixup\)"),
        ({"augment_operations": 1}, r"cannot be mixed or augmented \(augment_operations\)"),
    ],
)
def test_tokens_cannot_be_mixed(arch, data, settings, message):
    inputs, labels = data
    loss = Classification(arch.train_apply_fn(2), 2, preprocess=None)
    with pytest.raises(ValueError, match=message):
        fit(loss, arch.abstract(2), {"image": inputs, "label": labels}, batch_size=4, hyperparameters=settings)


def test_tokens_are_not_bytes_of_images(arch, data):
    inputs, labels = data
    with pytest.raises(ValueError, match="images and labels of a batch must be arrays, not a dict"):
        fit(Classification(arch.train_apply_fn(2), 2), arch.abstract(2), (inputs, labels), batch_size=4)
