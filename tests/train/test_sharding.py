"""Test that sharded fine-tuning gives the numbers of one device, and that each device holds its share alone."""

import collections
import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from soups import tree
from soups.train import Classification, Lanes, Training, param_shardings
from soups.train.lanes import with_lanes
from soups.train.sharding import LARGEST

CLASSES, BATCH, STEPS = 8, 32, 3
SHAPES = {"trunk": {"kernel": (48, 64), "bias": (64,)}, "head": {"kernel": (64, CLASSES), "bias": (CLASSES,)}}
IS_SHAPE = {"is_leaf": lambda node: isinstance(node, tuple)}


def network(params, images, key):
    """Apply two layers."""
    hidden = jnp.tanh(images.reshape(len(images), -1) @ params["trunk"]["kernel"] + params["trunk"]["bias"][None])
    return hidden @ params["head"]["kernel"] + params["head"]["bias"][None], params


TRAINING = Training(
    loss=Classification(network, CLASSES),
    clip_norm=1.0,
    sam=True,
    accumulate=2,
    ema_decay=0.9,
    ema_decays=(0.5, 0.9999999),
)


@pytest.fixture(scope="module")
def mesh():
    """Return the mesh ("pool": 1, "data": 4, "model": 2)."""
    return jax.make_mesh((1, 4, 2), ("pool", "data", "model"), axis_types=(AxisType.Auto,) * 3)


@pytest.fixture(scope="module")
def params():
    """Return start weights."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda shape: rng.normal(size=shape).astype(np.float32) / 8, SHAPES, **IS_SHAPE)


@pytest.fixture(scope="module")
def compiled(mesh, params):
    """Return a function from a rule to the shardings of the state and the compiled step."""

    @functools.cache
    def compile_step(rule, mesh=mesh):
        lanes = lanes_of(params, mesh, rule)
        values = lanes.values([numbers()])
        arguments = (lanes.begin([params], values), lanes.place({0: batches()[0]}), values)
        return lanes, lanes.step.lower(*arguments).compile()

    return compile_step


def lanes_of(params, mesh, rule=LARGEST):
    """Return the one lane that is the mesh."""
    of_params = param_shardings(params, mesh, ((".*", rule),), min_size=64)
    mesh, of_params = with_lanes(mesh, of_params)
    return Lanes(TRAINING, params, mesh=mesh, shardings=of_params)


def batches():
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (STEPS, BATCH, 4, 4, 3), np.uint8)
    labels = rng.integers(0, CLASSES, (STEPS, BATCH)).astype(np.int32)
    return [{"image": image, "label": label} for image, label in zip(images, labels, strict=True)]


def numbers():
    given = {"learning_rate": 0.01, "weight_decay": 0.1, "mixup": 0.4, "sam_radius": 0.1, "num_steps": STEPS}
    known = {name: value for name, value in TRAINING.hyperparameters.items() if name not in TRAINING.loss.optional}
    return known | given


# --- Rules ---


def abstract(shapes):
    return jax.tree.map(lambda shape: jax.ShapeDtypeStruct(shape, np.float32), shapes, **IS_SHAPE)


def specs(shardings):
    return {name: sharding.spec for name, sharding in tree.flatten(shardings).items()}


def test_the_longest_dimension_that_divides_is_cut(mesh):
    shapes = {"a": (16, 64), "b": (100, 24), "c": (8, 3, 8), "d": (30, 30), "e": (8,), "f": ()}
    found = param_shardings(abstract(shapes), mesh, min_size=9)
    both = ("data", "model")
    expected = {"a": P(None, both), "b": P(None, both), "c": P(both), "d": P(), "e": P(), "f": P()}
    assert specs(found) == expected
    assert specs(param_shardings(abstract(shapes), mesh)) == dict.fromkeys(shapes, P())  # all too small


def test_the_largest_rule_uses_the_axes_that_the_mesh_has():
    def spec(*axes):
        sizes = (2, 4, 1)[: len(axes)]
        mesh = jax.make_mesh(sizes, axes, axis_types=(AxisType.Auto,) * len(axes), devices=jax.devices()[:8])
        return param_shardings(abstract({"a": (8, 12)}), mesh, min_size=1)["a"].spec

    assert spec("pool", "data", "model") == P(None, ("data",))
    assert spec("model", "pool") == P(None, ("model",))


def test_the_first_rule_decides(mesh, params):
    rules = ((r"trunk/kernel", P("model", None)), (r"trunk/.*", P()), (".*", LARGEST))
    expected = {
        "head/bias": P(),
        "head/kernel": P(("data", "model")),
        "trunk/bias": P(),
        "trunk/kernel": P("model", None),
    }
    assert specs(param_shardings(params, mesh, rules, min_size=9)) == expected


def test_rules_that_do_not_fit_are_listed(mesh, params):
    rules = (
        ("trunk/kernel", P("dat")),
        ("trunk/bias", P("data", "model")),
        ("head/kernel", P(None, ("data", "model", "pool"))),
        ("head/bias", "all"),
    )
    with pytest.raises(ValueError, match="rules do not fit the mesh") as error:
        param_shardings(abstract(SHAPES | {"head": {"kernel": (64, 6), "bias": (6,)}}), mesh, rules)
    lines = str(error.value).splitlines()[1:]
    assert lines == [
        "  head/bias has the rule 'all', which is neither a PartitionSpec nor 'largest'",
        f"  head/kernel has a dimension of 6, which 8 devices do not divide: {P(None, ('data', 'model', 'pool'))}",
        f"  trunk/bias has 1 dimensions, but {P('data', 'model')} has 2",
        "  trunk/kernel is to be sharded over 'dat', an axis that the mesh does not have",
    ]
    with pytest.raises(ValueError, match="no rule matches leaf 'head/bias'"):
        param_shardings(params, mesh, ((".*kernel", LARGEST),))


# --- A sharded run ---


def test_each_device_holds_its_share_of_weights_moments_and_averages(mesh, params):
    lanes = lanes_of(params, mesh)
    state = lanes.begin([params], lanes.values([numbers()]))
    held = {name: leaf.addressable_shards[0].data.size / leaf.size for name, leaf in tree.flatten(state).items()}
    cut = [name for name in held if name.endswith(("kernel", "trunk/bias"))]
    assert len(cut) == 3 * (1 + 2 + 1 + 3)  # weights, two moments, an average, the start and what two have moved
    assert all(held[name] == 1 / 8 for name in cut)
    assert all(held[name] == 1 for name in held if name not in cut)
    total = sum(leaf.size for leaf in jax.tree.leaves(state))
    mine = sum(leaf.addressable_shards[0].data.size for leaf in jax.tree.leaves(state))
    assert mine / total < 1.15 / 8


@pytest.mark.parametrize("rule", [LARGEST, P()])
def test_a_sharded_run_gives_the_numbers_of_one_device(mesh, params, compiled, rule):
    values = TRAINING.numbers(numbers())
    alone = TRAINING.begin(params, values)
    lanes, step = compiled(rule)
    of_lanes, losses = lanes.values([numbers()]), []
    state = lanes.begin([params], of_lanes)
    for batch in batches():
        alone, loss = TRAINING.step(alone, batch, values)
        state, sharded_loss = step(state, lanes.place({0: batch}), of_lanes)
        losses.append((float(loss), *lanes.losses(sharded_loss).values()))
    state = lanes.only(state)
    np.testing.assert_allclose(*zip(*losses, strict=True), rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), state, alone)
    assert tree.norm(tree.sub(alone["params"], params)) > 0.1
    for name, leaf in tree.flatten(state["params"]).items():
        spec = tree.flatten(lanes.shardings["params"])[name].spec
        assert leaf.sharding.is_equivalent_to(NamedSharding(lanes.mesh, P(*spec[1:])), leaf.ndim)


EXCHANGES = r"= (.*?) (all-\w+(?:-\w+)?|reduce-scatter|collective-permute)(?:-start)?\("


def exchanged(program):
    """Return the sizes of the arrays that devices exchange, by the kind of exchange."""
    sizes = collections.defaultdict(list)
    for results, kind in re.findall(EXCHANGES, program.as_text()):
        shapes = re.findall(r"\w\d+\[([\d,]*)\]", results)
        sizes[kind] += [math.prod(map(int, filter(None, shape.split(",")))) for shape in shapes]
    return sizes


def test_the_program_gathers_weights_and_reduces_gradients(params, compiled):
    flat = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    sharded, replicated = (exchanged(compiled(rule, flat)[1]) for rule in (LARGEST, P()))
    # to cut a batch into parts moves nothing: images and targets move once, to be mixed with the mirrored batch
    moved = [BATCH // 8 * size for size in (4 * 4 * 3, CLASSES)]
    of_weights = {leaf.size for leaf in jax.tree.leaves(params)}
    for sizes, kinds in ((sharded, {"all-gather", "all-reduce"}), (replicated, {"all-reduce"})):
        assert sizes.keys() == kinds | {"collective-permute"}
        assert sorted(sizes["collective-permute"]) == sorted(moved)
        assert set(sizes["all-reduce"]) <= of_weights | {1}
    # no activation: two kernels and a bias, for the gradient and again at the worst point nearby
    cut = [params["trunk"]["kernel"], params["trunk"]["bias"], params["head"]["kernel"]]
    assert sorted(sharded["all-gather"]) == sorted(2 * [leaf.size for leaf in cut])


def test_over_model_products_are_cut(compiled):
    cut, whole = (compiled(rule)[1].cost_analysis()["flops"] for rule in (LARGEST, P()))
    assert cut < 0.7 * whole  # of the two devices at one place of "data" each does its part


def test_batches_are_cut_over_data(mesh, params):
    batch, lanes = batches()[0], lanes_of(params, mesh)
    placed = lanes.place({0: batch})
    assert placed["image"].sharding == NamedSharding(mesh, P("pool", "data"))
    assert placed["image"].addressable_shards[0].data.shape[:2] == (1, BATCH // 4)
    np.testing.assert_array_equal(placed["image"][0], batch["image"])
    with pytest.raises(ValueError, match='4 devices of "data" cannot share a batch of 30'):
        lanes.place({0: jax.tree.map(lambda leaf: leaf[:30], batch)})
