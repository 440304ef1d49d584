"""Find and replace heads."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from soups import models, tree

NETWORKS = {
    "without state": models.vit("mu/4", num_classes=3),
    "with state": models.ConvNet(num_classes=3, widths=(8,)),
}


@pytest.fixture(params=NETWORKS)
def network(request):
    model = NETWORKS[request.param]
    return model, models.init(model, jax.random.key(0), (8, 8, 1))


def test_rule_selects_exactly_the_head(network):
    _, params = network
    head = tree.select(params, models.head_rule(params))
    prefix = "params/" if "batch_stats" in params else ""
    assert tree.names(head) == [f"{prefix}head/bias", f"{prefix}head/kernel"]


def test_new_head_is_zero_and_the_trunk_stays(network):
    _, params = network
    model = network[0].clone(num_classes=5)
    replaced = models.replace_head(params, None, 5)
    logits = models.apply_fn(model)(replaced, jnp.ones((2, 8, 8, 1)))
    np.testing.assert_array_equal(logits, np.zeros((2, 5)))
    rule = models.head_rule(params)
    new, old = (tree.partition(p, rule)[1] for p in (replaced, params))
    assert all(a is b for a, b in zip(jax.tree.leaves(new), jax.tree.leaves(old), strict=True))


def test_drawn_head_has_the_variance_of_lecun(network):
    _, params = network
    replaced = tree.flatten(models.replace_head(params, jax.random.key(3), 1000, zero=False))
    kernel = next(leaf for name, leaf in replaced.items() if name.endswith("head/kernel"))
    bias = next(leaf for name, leaf in replaced.items() if name.endswith("head/bias"))
    np.testing.assert_allclose(np.var(kernel) * kernel.shape[0], 1.0, rtol=0.1)
    assert bias.shape == (1000,) and not np.any(bias)


def test_new_head_has_the_dtype_of_the_old():
    params = {"head": {"kernel": jnp.ones((4, 3), jnp.bfloat16), "bias": jnp.ones((3,), jnp.bfloat16)}}
    for zero in (True, False):
        new = models.replace_head(params, jax.random.key(0), 2, zero=zero)
        assert {leaf.dtype for leaf in jax.tree.leaves(new)} == {jnp.dtype(jnp.bfloat16)}


@pytest.mark.parametrize("function", [models.head_rule, lambda params: models.replace_head(params, None, 3)])
def test_weights_without_a_head_are_an_error(function):
    leaf = np.zeros((2, 2), np.float32)
    for params in ({"trunk": leaf, "header": leaf}, {"params": {"trunk": leaf, "header": leaf}}):
        with pytest.raises(ValueError, match="no module named 'head', only header, trunk"):
            function(params)


def test_drawn_head_without_a_key_is_an_error(network):
    with pytest.raises(ValueError, match="needs a key"):
        models.replace_head(network[1], None, 3, zero=False)


def test_fewer_than_two_classes_is_an_error(network):
    with pytest.raises(ValueError, match="at least two classes, not 1"):
        models.replace_head(network[1], None, 1)


@pytest.mark.parametrize("head", ["params/classifier/.*", "params/classifier"])
def test_a_head_of_another_name_is_replaced_by_its_place_or_a_regex(network, head):
    _, params = network
    top = params.get("params", params)
    renamed = {"params": {**{k: v for k, v in top.items() if k != "head"}, "classifier": top["head"]}}
    found = models.replace_head(renamed, jax.random.key(3), 7, zero=False, head=head)
    expected = models.replace_head(params, jax.random.key(3), 7, zero=False)
    expected = expected.get("params", expected)["head"]
    jax.tree.map(np.testing.assert_array_equal, found["params"]["classifier"], expected)
    assert found["params"]["classifier"]["kernel"].shape[1] == 7


def test_a_head_without_a_bias_stays_without():
    params = {"head": {"kernel": np.ones((4, 3), np.float32)}, "trunk": np.ones(2, np.float32)}
    new = models.replace_head(params, None, 2)
    assert tree.names(new) == ["head/kernel", "trunk"] and new["head"]["kernel"].shape == (4, 2)


@pytest.mark.parametrize(
    ("head", "message"),
    [
        ("tail/.*", "'tail/.*' is no leaf"),
        (".*", r"is head/bias \(3,\), head/kernel \(4, 3\), trunk"),
        ("(", "regular exp"),
    ],
)
def test_what_is_no_head_is_an_error(head, message):
    leaf = np.ones((4, 3), np.float32)
    with pytest.raises(ValueError, match=message):
        models.replace_head({"head": {"kernel": leaf, "bias": leaf[0]}, "trunk": leaf}, None, 2, head=head)
