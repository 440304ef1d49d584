"""The head from texts, against loops in float64; one shape in every call; errors."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from soups.models.zero_shot import zero_shot_head

NAMES = ("cat", "dog {}", "a café", "crane bird", "toilet paper")
TEMPLATES = ("a photo of a {}.", "{}", "the {} in a game")
WIDTH = 6


def tokenizer(texts):
    """Return int32 [N, 8] that differ for every text."""
    return np.stack([np.frombuffer(text.encode().ljust(64, b"\0"), np.int64) % 1009 for text in texts]).astype(np.int32)


@pytest.fixture
def tower(rng):
    """Return `text_apply` of random features that are not of norm 1, and the list of shapes that it was called with."""
    table, shapes = rng.normal(size=(1009, WIDTH)), []
    table[0] = 0  # padding, which a tower does not see

    def text_apply(tokens):
        shapes.append(tokens.shape)
        return table[tokens].sum(axis=1)

    return text_apply, shapes


def expected_kernel(text_apply, scale):
    columns = []
    for name in NAMES:
        mean = [0.0] * WIDTH
        for template in TEMPLATES:
            before, after = template.split("{}")
            (feature,) = text_apply(tokenizer([before + name + after]))
            norm = math.sqrt(math.fsum(x * x for x in feature))
            mean = [m + x / norm / len(TEMPLATES) for m, x in zip(mean, feature, strict=True)]
        norm = math.sqrt(math.fsum(x * x for x in mean))
        columns.append([scale * x / norm for x in mean])
    return np.array(columns).T


@pytest.mark.parametrize("batch_size", [1, 6, 7, 15, 256])
def test_head_is_the_formula_in_batches_of_any_size(tower, batch_size):
    text_apply, shapes = tower
    head = zero_shot_head(text_apply, tokenizer, NAMES, TEMPLATES, 50.0, batch_size=batch_size)
    (shape,) = set(shapes)  # a jitted tower compiles once
    assert shape[0] <= max(batch_size, len(TEMPLATES)) and shape[0] % len(TEMPLATES) == 0
    assert shape[1] == math.ceil(len("the toilet paper in a game") / 8)  # cut to the longest prompt
    assert head["kernel"].dtype == head["bias"].dtype == np.float32
    np.testing.assert_allclose(head["kernel"], expected_kernel(text_apply, 50.0), rtol=2e-7, atol=1e-6)
    np.testing.assert_array_equal(head["bias"], np.zeros(len(NAMES)))
    assert head["kernel"].flags.c_contiguous


def test_columns_are_of_norm_100_without_a_scale(tower):
    head = zero_shot_head(tower[0], tokenizer, NAMES, TEMPLATES)
    np.testing.assert_allclose(np.linalg.norm(head["kernel"], axis=0), 100, rtol=1e-6)


def test_features_of_jax_in_bfloat16_are_widened_before_the_mean(tower):
    text_apply, _ = tower

    def narrow(tokens):
        return jnp.asarray(text_apply(tokens), jnp.bfloat16)

    head = zero_shot_head(narrow, tokenizer, NAMES, TEMPLATES, 1.0)
    expected = expected_kernel(lambda tokens: np.asarray(narrow(tokens), np.float64), 1.0)
    np.testing.assert_allclose(head["kernel"], expected, rtol=2e-7, atol=1e-7)


def test_progress_counts_classes(tower):
    done = []
    zero_shot_head(tower[0], tokenizer, NAMES, TEMPLATES, batch_size=6, progress=done.append)
    assert done == [2, 2, 1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"class_names": ()}, "a zero-shot head needs class names, but none were given"),
        ({"class_names": "cat"}, "class names must be a sequence of strings, not the one string 'cat'"),
        ({"class_names": ("cat", " ", 3)}, r"must be non-empty strings, but those at \[1, 2\] are not"),
        ({"templates": []}, "a zero-shot head needs templates, but none were given"),
        ({"templates": "a {}"}, "templates must be a sequence of strings, not the one string 'a {}'"),
        (
            {"templates": ["a {}", "a cat", "{} {}", "{name}"]},
            "a template needs one {} for the name of the class, which these lack: 'a cat', '{} {}', '{name}'",
        ),
        ({"scale": 0.0}, "scale must be above 0, not 0.0"),
        ({"scale": math.nan}, "scale must be a finite number, not nan"),
        ({"batch_size": 0}, "batch_size must be at least 1, not 0"),
    ],
)
def test_bad_settings_are_named_before_the_tower_runs(tower, changes, message):
    text_apply, shapes = tower
    settings = {"class_names": NAMES, "templates": TEMPLATES} | changes
    with pytest.raises(ValueError, match=message):
        zero_shot_head(text_apply, tokenizer, **settings)
    assert shapes == []


@pytest.mark.parametrize("value", [math.nan, math.inf, 0.0])
def test_classes_without_a_finite_direction_are_named(tower, value):
    text_apply, _ = tower
    (spoilt,) = tokenizer(["the cat in a game"])

    def broken(tokens):
        features = text_apply(tokens)
        features[(tokens == spoilt[: tokens.shape[1]]).all(axis=1)] = value
        return features

    with pytest.raises(
        ValueError, match=r"the text tower gives features that are not finite, or all zeros, for 'cat'$"
    ):
        zero_shot_head(broken, tokenizer, NAMES, TEMPLATES)
