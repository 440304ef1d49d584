"""Test what users give for members and settings: the right value, or one error in words."""

import collections
import inspect
import re

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import linen as nn
from flax.core import FrozenDict

import soups
from soups import arguments, models
from soups.recipes.declare import ELSEWHERE
from soups.train import fit, sweep

RNG = np.random.default_rng(0)
MEMBERS = [{"w": RNG.normal(size=(4, 3)).astype(np.float32)} for _ in range(3)]
BASE = {"w": np.zeros((4, 3), np.float32)}
METHODS = {n: m for n, m in soups.recipes.METHODS.items() if hasattr(getattr(soups, n, None), "method")}
FITTING = {bool: True, int: 2, float: 0.5, str: "model"}
WRONG = {
    bool: ["false", None, 2, [True]],
    int: ["1", None, 1.5, [1, 2], np.array([1, 2]), True, np.nan, {}, jax.random.key(0)],
    float: ["0.5", None, [0.5, 0.5, 0.5, 0.5], np.array([0.5]), True, np.nan, np.inf, 10**400, 1j, {}, {0.5}, abs],
    str: [None, 3, ["leaf"], b"leaf"],
}


def call(name, members=MEMBERS, **settings):
    method = METHODS[name]
    if method.base_beside:
        return getattr(soups, name)(settings.pop("base", BASE), *members, **settings)
    beside = [members for _ in method.beside]
    if method.base in ("required", "first"):
        settings.setdefault("base", BASE)
    members = members[0] if method.single else members[: method.members[1]]
    return getattr(soups, name)(members, *beside, **settings)


@pytest.mark.parametrize("container", [dict, FrozenDict, collections.OrderedDict])
def test_the_weights_of_one_network_are_no_members(container):
    with pytest.raises(ValueError, match="members must be trees, but 'b', 'w' are arrays"):
        soups.uniform(container(b=np.ones(3), w=np.ones(3)))
    numbered = [("params",), ("Dense_0", "Dense_1"), ("encoderblock_0", "head"), ("layers_0", "layers_1")]
    paths = [("mlp/~/linear_0", "mlp/~/linear_1"), ("net/linear_1", "head")]
    words = [("encoder", "decoder"), ("layer1", "layer2"), ("text_encoder", "vision_encoder"), ("head",), ("layers",)]
    for names in numbered + paths + words:
        part = names[0]
        with pytest.raises(ValueError, match=f"members must be trees, but '{part}'"):
            soups.uniform(container({name: {"w": np.ones(3)} for name in names}))
    for names in [("model_0", "head"), ("only_head", "frozen_encoder"), ("encoder", "all"), ("0", "1")]:
        assert soups.uniform(container({name: {"w": np.ones(3)} for name in names}))


@pytest.mark.parametrize(
    "given",
    [[{0: np.ones(1), "x": np.ones(1)}] * 2, {"a": MEMBERS[0], "b": {"w": {1: 2, "y": 3}}}],
)
def test_keys_that_cannot_be_sorted_are_an_error_in_words(given):
    for function in (soups.uniform, lambda members: soups.ties(members, base=BASE), soups.tree.flatten):
        with pytest.raises(
            ValueError, match="a dict has keys of several kinds, such as 0 and 'a', which have no order"
        ):
            function(given)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (3, "a sequence or mapping of trees, or a pool, not an int$"),
        (np.ones((2, 3), np.float32), r"a pool, not float32\[2, 3\]$"),
        ("a.npz", "a pool, not a str$"),
        (["a.npz", "b.npz"], "NumPy or JAX arrays(.|\n)*  member 0 is a str\n  member 1 is a str$"),
        ([{"w": 1}, {"w": object()}], "(.|\n)*  member 0: w is an int\n  member 1: w is an object$"),
    ],
)
def test_what_is_no_member_is_said_in_words(given, words):
    with pytest.raises(ValueError, match=words):
        soups.uniform(given)


@pytest.mark.parametrize(
    ("name", "setting", "value"),
    [
        (name, setting, value)
        for name, method in METHODS.items()
        for setting, default in method.defaults.items()
        for value in WRONG.get(type(default), ())
        if not (setting in method.per_member and isinstance(value, list | np.ndarray | dict | set))
    ],
)
def test_a_setting_of_another_kind_is_named(name, setting, value):
    with pytest.raises(ValueError, match=rf"^{setting} must be "):
        call(name, **{"t": 0.5} if name == "slerp" else {}, **{setting: value})


@pytest.mark.parametrize("kind", FITTING)
def test_what_fits_is_taken(kind):
    value = FITTING[kind]
    assert arguments.setting(value, kind(), "it") == value
    if kind in (int, float):
        for array in (np.float32(value), np.array(value), jnp.asarray(value), ml_dtypes.bfloat16(value)):
            found = arguments.setting(array, kind(), "it")
            assert found == value and type(found) in (int, float)
        traced = jax.jit(lambda x: arguments.setting(x, kind(), "it") * 2)(value)
        assert traced == 2 * value
        with pytest.raises(ValueError, match="it must be"):
            jax.jit(lambda x: arguments.setting(x, kind(), "it"))(jnp.ones(3))


@pytest.mark.parametrize(
    ("interval", "inside", "outside"),
    [("(0, 1]", [1e-9, 0.5, 1], [0, 1.1, -1]), ("[0, 1)", [0, 0.5], [1, -1e-9]), ("[0, 1]", [0, 1], [2])],
)
def test_an_interval_with_or_without_its_ends(interval, inside, outside):
    for value in inside:
        arguments.check_within("it", value, interval)
    for value in outside:
        with pytest.raises(ValueError, match=re.escape(f"it must be in {interval}, not {value}")):
            arguments.check_within("it", value, interval)
    jax.jit(lambda x: arguments.check_within("it", x, interval))(2.0)  # nobody knows


@pytest.mark.parametrize(
    ("interval", "inside", "outside", "words"),
    [("[1, inf)", [1, 3.0], [0, -1], "at least 1"), ("(0, inf)", [1, 2], [0, -1], "above 0")],
)
def test_an_interval_without_an_upper_end(interval, inside, outside, words):
    assert [arguments.check_within("it", value, interval, whole=True) for value in inside] == inside
    for value in outside:
        with pytest.raises(ValueError, match=f"it must be {words}, not {value}"):
            arguments.check_within("it", value, interval)
    for value in (1.5, np.inf, "1", None):
        with pytest.raises(ValueError, match="it must be a whole number"):
            arguments.check_within("it", value, interval, whole=True)


@pytest.mark.parametrize(
    "container", [list, lambda members: {"a": members[0], "b": members[1]}, collections.OrderedDict]
)
def test_a_soup_stands_for_its_params(container):
    soup = soups.greedy(MEMBERS[:1], lambda params: 0.0)
    pairs = [("a", soup), ("b", MEMBERS[1])] if container is collections.OrderedDict else [soup, MEMBERS[1]]
    np.testing.assert_array_equal(soups.uniform(container(pairs))["w"], soups.uniform(MEMBERS[:2])["w"])


def test_a_member_goes_by_name_or_place():
    assert [arguments.place_of(member, ["a", "b", "0"]) for member in ("b", 1, np.int64(1), "0", 0)] == [1, 1, 1, 2, 2]
    for wrong in (3, -1, "c", None):
        with pytest.raises(ValueError, match=f"unknown member '{wrong}'"):
            arguments.place_of(wrong, ["a", "b", "0"])


@pytest.mark.parametrize("t", ["x", None, [0.1, 0.2, 0.3], np.nan])
def test_a_setting_without_a_default_is_a_number(t):
    with pytest.raises(ValueError, match=r"^t must be a finite number"):
        soups.slerp(MEMBERS[0], base=MEMBERS[1], t=t)


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.base in ("required", "first")])
def test_a_method_that_needs_a_base_says_so(name):
    with pytest.raises(ValueError, match="needs a base"):
        call(name, base=None, **{"t": 0.5} if name == "slerp" else {})


@pytest.mark.parametrize(
    "values",
    [
        [1, 2, 3],
        (1.0, 2.0, 3.0),
        range(1, 4),
        {"a": 1, "b": 2, "c": 3}.values(),
        (n for n in (1, 2, 3)),
        np.array([1, 2, 3]),
        np.array([1, 2, 3], ml_dtypes.bfloat16),
        jnp.array([1, 2, 3]),
        {"2": 3, "0": 1, "1": 2},
        {2: 3, 0: 1, 1: 2},
        FrozenDict({"0": 1, "1": 2, "2": 3}),
    ],
    ids=lambda values: type(values).__name__,
)
def test_a_value_for_each_member_in_any_container(values):
    assert list(map(float, arguments.per_member(values, ["0", "1", "2"], "weights"))) == [1, 2, 3]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1, 2], "3 members need 3 values of weights, but 2"),
        (np.ones((1, 3)), "3 members need 3 values of weights, but 1"),
        ({1, 2, 3}, "weights must be given in the order of the members or by their names, not as a set"),
        ({"0": 1, "x": 2}, "weights must be given by the names"),
        ({}, "weights must be given by the names"),
    ],
)
def test_values_that_are_not_one_for_each_member(values, message):
    with pytest.raises(ValueError, match=message):
        arguments.per_member(values, ["0", "1", "2"], "weights")


@pytest.mark.parametrize(
    "values", [[[1], [2], [3]], np.ones((3, 1)), ["1", "2", "3"], [None] * 3, b"abc", [1, np.nan, 1]]
)
def test_each_value_of_a_member_is_one_number(values):
    with pytest.raises(ValueError, match="weights must be a finite number"):
        soups.linear(MEMBERS, weights=values)


@pytest.mark.parametrize(
    "call",
    [
        lambda regex: soups.uniform(MEMBERS, keep_first=regex),
        lambda regex: soups.wise_ft(MEMBERS[0], base=BASE, only=regex),
        lambda regex: soups.localize_and_stitch(MEMBERS, base=BASE, only=regex),
        lambda regex: soups.tsv_merge(MEMBERS, base=BASE, only=regex),
        lambda regex: soups.diagnose(MEMBERS, base=BASE, head=regex),
        lambda regex: soups.tree.match(BASE, [(regex, 1)]),
        lambda regex: soups.tree.partition(BASE, regex),
    ],
)
@pytest.mark.parametrize("regex", ["(", "*", "a{99999999999}"])
def test_what_is_no_regular_expression_is_an_error_in_words(call, regex):
    with pytest.raises(ValueError, match=f"must be a regular expression, not '{re.escape(regex)}'"):
        call(regex)


@pytest.mark.parametrize("value", ["x", None, np.nan, [1, 2], jax.random.key(0)], ids=str)
@pytest.mark.parametrize(
    ("make", "setting"),
    [
        (soups.trim, "density"),
        (lambda value: soups.trim(0.5, surplus=value), "surplus"),
        (soups.drop, "density"),
        (lambda value: soups.drop(0.5, seed=value), "seed"),
        (soups.outliers, "density"),
        (lambda value: soups.outliers(0.5, value), "gamma"),
        (lambda value: soups.magprune(value, 0.1), "density"),
        (lambda value: soups.magprune(0.5, value), "epsilon"),
        (lambda value: soups.magprune(0.5, 0.1, seed=value), "seed"),
    ],
)
def test_settings_of_sparsifiers(make, setting, value):
    with pytest.raises(ValueError, match=f"^{setting} must be a "):
        make(value)


def grams():
    return [{"w": np.eye(4, dtype=np.float32)}] * 2


@pytest.mark.parametrize("size", [1e308, 1e-12, 5e-324])
@pytest.mark.parametrize(
    "merge",
    [
        lambda members, weights: soups.linear(members, weights=weights),
        lambda members, weights: soups.multislerp(members, weights=weights),
        lambda members, weights: soups.nuslerp(members, weights=weights),
        lambda members, weights: soups.geometric_median(members, weights=weights),
        lambda members, weights: soups.regmean(members, grams(), weights=weights),
    ],
    ids=["linear", "multislerp", "nuslerp", "geometric_median", "regmean"],
)
def test_weights_of_any_size_are_shares(merge, size):
    np.testing.assert_array_equal(merge(MEMBERS[:2], [size, size])["w"], merge(MEMBERS[:2], [1, 1])["w"])


@pytest.mark.parametrize("merge", [soups.linear, soups.multislerp])
def test_weights_that_cancel_are_named_as_given(merge):
    with pytest.raises(ValueError, match=r"weights that sum to zero cannot be normalized: \[3, -3\]"):
        merge(MEMBERS[:2], weights=[3, -3])


def test_diagnose_takes_the_members_that_methods_take():
    assert soups.diagnose((member for member in MEMBERS), base=BASE).names == ("0", "1", "2")
    for wrong in (MEMBERS[0], [member["w"] for member in MEMBERS]):
        with pytest.raises(ValueError, match=r"members must be trees, but .* are arrays"):
            soups.diagnose(wrong, base=BASE)


@pytest.mark.parametrize("value", ["x", None, np.nan, [1, 2, 3, 4]])
@pytest.mark.parametrize(
    "call",
    [
        lambda value: soups.ema(MEMBERS[0], MEMBERS[1], value),
        lambda value: soups.interpolate(MEMBERS[0], MEMBERS[1], t=value),
        lambda value: soups.tall_masks([MEMBERS[0]] * 3, base=BASE, threshold=value),
        lambda value: soups.combine_task_vectors(MEMBERS, base=BASE, sparsify=value),
    ],
    ids=["ema", "interpolate", "tall_masks", "combine_task_vectors"],
)
def test_settings_of_functions_that_declare_none(call, value):
    with pytest.raises(ValueError, match=r"must be (a finite number|made by)|3 members need 3 values"):
        call(value)


COMPLEX = [{"w": (leaf["w"] * (1 + 1j)).astype(np.complex64)} for leaf in MEMBERS]
TAKE_NO_COMPLEX = {
    "tall_masks": lambda: soups.tall_masks(COMPLEX, base=COMPLEX[0]),
    "emr": lambda: soups.emr(COMPLEX, base=COMPLEX[0]),
    "localize": lambda: soups.localize_dataless(COMPLEX[0], base=COMPLEX[1]),
    "learned": lambda: soups.learned(COMPLEX, lambda params, batch, temperature: 0.0, [0.0]),
    "adamerging": lambda: soups.adamerging(COMPLEX, base=COMPLEX[0], apply_fn=abs, batches=[[0]] * 3),
    "fisher_information": lambda: soups.fisher_information(
        lambda params, x: x, COMPLEX[0], np.ones((2, 2), np.float32)
    ),
    "re-basin": lambda: soups.align(COMPLEX, {"w": (None, "units")}, key=jax.random.key(0)),
}


@pytest.mark.parametrize("name", TAKE_NO_COMPLEX)
def test_what_orders_or_differentiates_takes_no_complex_leaves(name):
    with pytest.raises(ValueError, match=f"{name} does not take complex leaves: w"):
        TAKE_NO_COMPLEX[name]()


SETTINGS = ("learning_rate", "steps", "epochs", "budget", "population", "seed", "batch_size", "l1_strength", "momentum")
TAKERS = [
    (name, setting)
    for name in [*ELSEWHERE, "straight_through_matching"]
    for setting in SETTINGS
    if setting in inspect.signature(getattr(soups, name)).parameters and name not in METHODS
]


@pytest.mark.parametrize(("name", "setting"), TAKERS)
def test_numbers_are_checked_before_all_else(name, setting):
    function = getattr(soups, name)
    needed = [one.name for one in inspect.signature(function).parameters.values() if one.default is one.empty]
    for wrong in (-1.0, np.nan, np.inf, "1e-2", True):
        with pytest.raises(ValueError, match=f"{setting} must be "):
            function(**{**dict.fromkeys(needed), setting: wrong})


def test_which_functions_take_numbers():
    assert {name for name, _ in TAKERS} == {
        *("adamerging", "adamerge", "learned", "evolve", "localize", "fisher_information", "straight_through_matching")
    }


def _one(*given):
    return {"w": np.ones((2, 2), np.float32)}


LOSSES = {  # from a loss of any number of arguments to a call that takes it
    "learned": lambda loss: soups.learned([_one(), _one()], loss, [1.0]),
    "localize": lambda loss: soups.localize(loss, [1.0], base={"w": np.zeros((2, 2), np.float32)}, member=_one()),
    "straight_through_matching": lambda loss: soups.straight_through_matching(
        _one(), _one(), {"w": (None, "p")}, loss, [1.0], key=jax.random.key(0)
    ),
    "fit": lambda loss: fit(loss, _one(), np.ones(4, np.float32), batch_size=2, steps=1),
    "sweep": lambda loss: sweep(loss, _one(), np.ones(4, np.float32), [{"num_steps": 1}], batch_size=2),
}


@pytest.mark.parametrize("name", LOSSES)
def test_what_is_no_loss(name):
    with pytest.raises(ValueError, match=r"is called as loss\w*\(params, batch.*\), but takes \(params\)"):
        LOSSES[name](lambda params: 0.0)
    with pytest.raises(ValueError, match=r"must be a function loss\w*\(params, batch.*\), not a int"):
        LOSSES[name](3)
    for returned, words in [
        (lambda params: params["w"], r"float32\[2, 2\]"),
        (lambda params: None, "a NoneType"),
        (lambda params: {"loss": params["w"].sum()}, "a dict"),
        (lambda params: params["w"].sum().astype(int), r"int\d+\[\]"),
    ]:
        with pytest.raises(ValueError, match=f"a loss must return one float, such as a mean, not {words}"):
            LOSSES[name](lambda params, *rest, returned=returned: returned(params))


NETWORKS = {
    "adamerging": lambda apply_fn: soups.adamerging([_one()], base=_one(), apply_fn=apply_fn, batches=[[np.ones(2)]]),
    "fisher_information": lambda apply_fn: soups.fisher_information(apply_fn, _one(), np.ones((2, 2), np.float32)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_what_is_no_network(name):
    with pytest.raises(ValueError, match=r"apply_fn is called as apply_fn\(params, inputs\), but takes \(params\)"):
        NETWORKS[name](lambda params: params["w"])
    for returned, words in [(lambda params: None, "a NoneType"), (lambda params: params["w"][0], r"float32\[2\]")]:
        with pytest.raises(ValueError, match=rf"apply_fn must give logits \[B, C\], but it gave {words}"):
            NETWORKS[name](lambda params, inputs, returned=returned: returned(params))


@pytest.mark.parametrize("name", METHODS)
def test_arguments_that_a_method_does_not_take(name):
    method = METHODS[name]
    with pytest.raises(TypeError, match=rf"^{name}: unknown argument 'keep_frist' .did you mean 'keep_first'."):
        method(MEMBERS, keep_frist=1)
    if method.base == "none":
        with pytest.raises(TypeError, match=f"^{name}: too many positional arguments; it takes .*keep_first$"):
            method(*MEMBERS)
    if method.base == "required":
        with pytest.raises(TypeError, match=f"^{name}: it needs base=, the weights that the members were"):
            method(MEMBERS, *[MEMBERS] * len(method.beside))


TAKE_POOLS = {
    "uniform": soups.uniform,
    "greedy": lambda members: soups.greedy(members, lambda params: 1.0),
    "learned": lambda members: soups.learned(members, lambda params, batch, temperature: 0.0, [1]),
    "evolve": lambda members: soups.evolve(soups.linear, members, lambda params: 1.0, weights=(0.0, 1.0)),
}


@pytest.mark.parametrize("name", TAKE_POOLS)
def test_a_pool_without_usable_members(name, tmp_path):
    pool = soups.Pool(tmp_path / "pool")
    with pytest.raises(ValueError, match=f"there is no pool at {pool.path}: no members were given"):
        TAKE_POOLS[name](pool)
    pool.add("bad", {"w": np.float32([np.nan])})
    with pytest.raises(ValueError, match=r"all 1 members of Pool.* diverged: each holds NaN or infinity"):
        TAKE_POOLS[name](pool)
    pool.remove("bad")
    with pytest.raises(ValueError, match=f"the pool {pool.path} is empty: no members were given"):
        TAKE_POOLS[name](pool)


# --- Batches ----------------------------------------------------------------------------------------------------------


def mean_loss(params, batch, *temperature):
    return jnp.mean(batch @ params["w"])


STATISTICS = {"w": BASE["w"], "batch_stats": {"mean": np.zeros(3, np.float32)}}
TAKE_BATCHES = {
    "learned": lambda given: soups.learned(MEMBERS, mean_loss, given),
    "adamerging": lambda given: soups.adamerging(
        MEMBERS, base=BASE, apply_fn=lambda params, inputs: inputs @ params["w"], batches=[given] * 3, steps=1
    ),
    "localize": lambda given: soups.localize(mean_loss, given, base=BASE, member=MEMBERS[0], density=0.5, epochs=1),
    "straight_through_matching": lambda given: soups.straight_through_matching(
        MEMBERS[0], MEMBERS[1], {"w": (None, "units")}, mean_loss, given, key=jax.random.key(0)
    ),
    "gram_fn": lambda given: models.gram_fn(nn.Dense(3))({"kernel": BASE["w"], "bias": np.zeros(3)}, given),
    "repair": lambda given: models.repair(nn.Dense(3), BASE, MEMBERS, given),
    "activation_statistics": lambda given: models.activation_statistics(nn.Dense(3), BASE, given),
    "reestimate_batch_stats": lambda given: models.reestimate_batch_stats(
        lambda params, inputs: params["batch_stats"], STATISTICS, given
    ),
}


@pytest.mark.parametrize("name", TAKE_BATCHES)
@pytest.mark.parametrize(
    ("given", "kind"),
    [
        (np.zeros((4, 4), np.float32), r"float32\[4, 4\]"),
        (jnp.zeros((2, 4, 4)), r"float32\[2, 4, 4\]"),
        (np.float32(1), r"float32\[\]"),
        ({"image": np.zeros((4, 4))}, "a dict"),
        (None, "a NoneType"),
        (3, "an int"),
        ("batches.npz", "a str"),
    ],
)
def test_one_batch_or_none_in_the_place_of_batches(name, given, kind):
    message = f"batches must be a list or another iterable of batches, not {kind}: give \\[batch\\]$"
    with pytest.raises(ValueError, match=message):
        TAKE_BATCHES[name](given)


@pytest.mark.parametrize("name", ["learned", "adamerging", "localize", "straight_through_matching"])
def test_batches_in_a_list_are_taken(name):
    assert TAKE_BATCHES[name]([np.ones((2, 4), np.float32)])
