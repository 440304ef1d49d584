"""Hold every method to one contract: structure, dtypes, transformations, sharding, streaming, order, errors.

The cases are built in `contract_cases.py`, from what methods declare.
"""

import inspect
import pathlib

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import soups
from soups import engine
from soups.plugins import load_plugin
from soups.pool import Pool
from soups.recipes import METHODS

cases = load_plugin(pathlib.Path(__file__).with_name("contract_cases.py"))
close, equal, leaves, members_of = cases.close, cases.equal, cases.leaves, cases.members_of
named, narrow, to_jax = cases.named, cases.narrow, cases.to_jax


# --- Results ----------------------------------------------------------------------------------------------------------


def test_every_declared_method_is_public_and_documented():
    for name, method in METHODS.items():
        function = getattr(soups, name)
        assert name in soups.__all__ and getattr(soups.recipes, name) is function
        assert list(inspect.signature(function).parameters) and function.__doc__.rstrip().endswith(".")
        assert method.only_in_python or (method.summary and method.title)
        assert "no members" in function.__doc__
        assert method.signature == inspect.signature(function)  # most tests here call the entry


@cases.every([name for name, case in cases.CASES.items() if case.oracle])
def test_equals_float64(case):
    members = members_of(case)
    expected = jax.tree.map(lambda *x: case.oracle(np.stack(x).astype(np.float64)), *members)
    close(case.make(members), expected)
    close(case.make([to_jax(m) for m in members]), expected)


@cases.every()
def test_keeps_structure_and_dtype(case):
    result = case.make(members_of(case, ml_dtypes.bfloat16), base=cases.member(0, ml_dtypes.bfloat16, step=0.0))
    assert jax.tree.structure(result) == jax.tree.structure(cases.BASE)
    assert {leaf.dtype for leaf in leaves(result)} == {np.dtype(ml_dtypes.bfloat16)}


@cases.every(average=True)
def test_identical_members_give_that_member(case):
    close(case.make([cases.member(1)] * case.number), cases.member(1), rtol=1e-6, atol=1e-6)


@cases.every_method
def test_members_that_are_the_base_give_the_base(case):
    close(case.make([cases.BASE] * case.number), cases.BASE, rtol=1e-6, atol=1e-6)


@cases.every(ordered=False)
def test_order_does_not_matter(case):
    members = named(members_of(case))
    close(case.make(members), case.make(dict(reversed(members.items()))))


# --- Transformations --------------------------------------------------------------------------------------------------


def check_program(jitted, *given):
    """Compile nothing, and look at the program that GPUs and TPUs would be given."""
    program = jitted.trace(*given).lower(lowering_platforms=("cuda", "tpu")).as_text()
    assert "lapack" not in program  # what a CPU would call
    assert not rounded_products(program)


def rounded_products(program):
    """List the lines of a StableHLO program that multiply float32 matrices in fewer bits where a device has fewer."""
    lines = [line for line in program.splitlines() if "dot_general" in line and "f32" in line.split(":", 1)[-1]]
    return [line.strip() for line in lines if "precision = [HIGHEST, HIGHEST]" not in line]


def test_products_in_fewer_bits_are_found():
    given = [np.ones((2, 2), np.float32)] * 2
    check_program(jax.jit(lambda a, b: jnp.dot(a, b, precision="highest")), *given)
    with pytest.raises(AssertionError):
        check_program(jax.jit(jnp.dot), *given)


@cases.every(cases.ONCE)
def test_on_sharded_members(case, mesh):
    shard, members = NamedSharding(mesh, P("pool")), [cases.wide(seed) for seed in range(1, 1 + case.number)]
    sharded, base = jax.device_put((members, cases.wide(0)), shard)
    if case.pure:
        jitted = jax.jit(case.make)
        check_program(jitted, sharded, base)
        result = jitted.lower(sharded, base).compile()(sharded, base)
    else:
        result = case.make(sharded)
    close(result, case.make(members, cases.wide(0)))
    if case.method is None or case.method.name not in cases.WHOLE:
        assert all(leaf.sharding.is_equivalent_to(shard, leaf.ndim) for leaf in leaves(result))


KINDS = {  # leaves with nothing to divide by, of a member's number and the leaf at the base
    "parallel": lambda seed, leaf: np.float32(1 + seed) * leaf,
    "opposite": lambda seed, leaf: np.float32(1 if seed % 2 else -1) * leaf,
    "zero": lambda seed, leaf: 0 * leaf,
    "same": lambda seed, leaf: leaf,
}


def alike(kind, seed):
    return jax.tree.map(lambda leaf: np.asarray(KINDS[kind](seed, leaf)), narrow(0))


@cases.every(cases.CHANGED, pure=True)
def test_under_pmap_and_vmap_also_where_leaves_are_alike(case):
    groups = [([alike(kind, 1 + place) for place in range(case.number)], alike(kind, 0)) for kind in KINDS]
    random = [([narrow(3 * at + place) for place in range(1, 1 + case.number)], narrow(20 + at)) for at in range(12)]
    stacked = jax.tree.map(lambda *x: np.stack(x).reshape(8, 2, *x[0].shape), *groups, *random)
    function = jax.jit(jax.vmap(case.make))
    check_program(function, *jax.tree.map(lambda leaf: leaf[0], stacked))
    result = jax.device_get(jax.pmap(function).lower(*stacked).compile()(*stacked))
    assert not soups.tree.nonfinite_names(result)
    for device, row in ((2, 0), (2, 1), (7, 1)):
        expected = case.make(*random[2 * device + row - len(groups)])
        close(jax.tree.map(lambda leaf, at=(device, row): leaf[at], result), expected)


def test_pmean_of_members_on_devices_is_the_uniform_soup():
    members = [cases.member(seed) for seed in range(8)]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *members)
    soup = jax.pmap(lambda m: jax.lax.pmean(m, "pool"), axis_name="pool")(stacked)
    close(jax.tree.map(lambda leaf: leaf[3], soup), soups.uniform(members))


# --- Members ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    """Return a pool of as many members as any case has."""
    made = Pool(tmp_path_factory.mktemp("pools") / "pool")
    for seed, name in enumerate(cases.NAMES, start=1):
        made.add(name, cases.member(seed))
    return made


@cases.every()
def test_streamed_from_a_pool_equals_in_memory_across_blocks(case, pool, monkeypatch):
    members = named(members_of(case))
    whole = case.make(members)
    monkeypatch.setattr(engine, "BLOCK", 7)  # elements, of leaves of 8, 16 and 32
    cut = case.make(members)
    close(cut, whole)
    if case.pool:
        streamed = case.make(pool.select(cases.NAMES[: case.number]))
        equal(streamed, cut) if case.pure else close(streamed, cut)


@cases.every_method
def test_takes_mappings_and_generators(case):
    expected = case.make(members_of(case))
    equal(case.make(named(members_of(case))), expected)
    if not case.method.single:
        equal(case.make(iter(members_of(case))), expected)


PER_MEMBER = {"sparsify": soups.trim(0.5), "gamma": 0.2, "floor": 9.0}  # where defaults are no numbers, or too small


@pytest.mark.parametrize(
    ("case", "name"),
    [pytest.param(cases.CASES[m.name], name, id=f"{m.name}, {name}") for m in cases.DECLARED for name in m.per_member],
)
def test_settings_of_members_are_one_value_a_sequence_or_a_mapping(case, name):
    members, value = members_of(case), PER_MEMBER.get(name, case.method.defaults[name])
    expected = case.make(members, **{name: value})
    for several in ([value] * case.number, iter([value] * case.number), dict.fromkeys(range(case.number), value)):
        equal(case.make(members, **{name: several}), expected)
    by_name = dict.fromkeys(cases.NAMES[: case.number], value)
    equal(case.make(named(members), **{name: dict(reversed(by_name.items()))}), expected)
    if isinstance(value, float):
        different = [value * share for share in (0.5, 0.8, 0.9)[: case.number]]
        expected = case.make(members, **{name: different})
        equal(case.make(named(members), **{name: dict(zip(cases.NAMES, different, strict=False))}), expected)
        assert any((x != y).any() for x, y in zip(leaves(expected), leaves(case.make(members)), strict=True))
    for wrong in ([value] * (case.number + 1), {**by_name, "d": value}, dict.fromkeys(by_name.keys() - {"a"}, value)):
        with pytest.raises(ValueError, match=name):
            case.make(named(members), **{name: wrong})


EMPTY = {"none": (0,), "no rows": (0, 3), "no columns": (3, 0)}
SMALL = {**EMPTY, "scalar": (), "one": (1,), "one of one": (1, 1)}


def small(seed, shapes):
    rng = np.random.default_rng(seed)
    return {name: np.asarray(rng.normal(size=shape), np.float32) for name, shape in shapes.items()}


# they compare with a number in the units of the weights, or take their exponentials
OF_UNITS = {"ram", "ram_plus", "nearswap", "sce", "arcee_fusion", "wudi"}


@pytest.mark.parametrize("exponent", [-100, 100])
@cases.every_method
def test_members_of_any_size_are_merged_alike(case, exponent):
    if case.method.beside or case.method.name in OF_UNITS:
        return
    found, scaled = (
        case.make(*jax.tree.map(to_size, (members_of(case), cases.BASE)))
        for to_size in (lambda leaf: leaf, lambda leaf: np.ldexp(leaf, exponent))
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(np.ldexp(b, -exponent), a, 1e-5, 1e-5), found, scaled)


@cases.every()
def test_leaves_without_elements_and_with_one(case):
    if "only" not in case.other:
        for shapes in (SMALL, EMPTY):
            result = case.make([small(seed, shapes) for seed in range(1, 1 + case.number)], small(0, shapes))
            assert {name: leaf.shape for name, leaf in result.items()} == shapes
            assert not soups.tree.nonfinite_names(result)


@pytest.mark.parametrize("kind", KINDS)
@cases.every_method
def test_leaves_that_are_alike_have_finite_results(case, kind):
    result = case.make([alike(kind, 1 + place) for place in range(case.number)], alike(kind, 0))
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), result) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), narrow(0)
    )
    assert not soups.tree.nonfinite_names(result)


SPARSIFIERS = {
    "trim": soups.trim(0.5, rescale=True),
    "drop": soups.drop(0.5, rescale="norm"),
    "outliers": soups.outliers(0.5, rescale=True),
    "magprune": soups.magprune(0.5, 0.1, rescale="norm"),
}


@pytest.mark.parametrize("scope", ["model", "leaf"])
@pytest.mark.parametrize("kind", SPARSIFIERS)
def test_sparsifiers_of_leaves_without_elements_and_with_one(kind, scope):
    def merge(members, base):
        return soups.combine_task_vectors(members, base=base, sparsify=SPARSIFIERS[kind], elect=True, scope=scope)

    for shapes in (SMALL, EMPTY):
        members, base = [small(seed, shapes) for seed in range(3)], small(9, shapes)
        close(jax.jit(merge)(members, base), merge(members, base))


# --- Errors -----------------------------------------------------------------------------------------------------------


@cases.every_method
def test_another_number_of_members_is_an_error(case, tmp_path):
    method, (low, high) = case.method, case.method.members
    if method.single:
        return
    base = {"base": cases.BASE} if case.has_base else {}
    for empty in ([], {}, Pool(tmp_path / "empty")):
        with pytest.raises(ValueError, match=r"no members|takes (exactly|at least)"):
            method(empty, *[[]] * len(method.beside), **base)
    for wrong in {low - 1, high + 1} - {0, 10**6 + 1}:
        with pytest.raises(ValueError, match=f"{method.name} takes (exactly|at least) {low} member"):
            method([cases.BASE] * wrong, *[[cases.BASE] * wrong] * len(method.beside), **base)


@cases.every_method
def test_members_that_are_one_tree_or_arrays_are_an_error(case):
    if not case.method.single:
        for wrong in (np.ones(3), {"w": np.ones(3), "b": np.ones(2)}, [None, None], "members", 3):
            with pytest.raises(ValueError, match="members must be"):
                case.method(wrong, *[[]] * len(case.method.beside), **({"base": cases.BASE} if case.has_base else {}))


@cases.every(cases.ONCE)
def test_mismatched_structures_are_an_error(case):
    members, base = members_of(case), cases.member(0)
    (members[1] if case.number > 1 else base)["head"]["kernel"] = np.zeros((8, 3), np.float32)
    if case.number > 1 or case.has_base:
        with pytest.raises(ValueError, match=r"head/kernel has shape"):
            case.make(members, base)


@cases.every([name for name in cases.ONCE if name != "greedy"])
def test_each_nan_is_named(case):
    for place in range(case.number):
        members = members_of(case)
        members[place]["Dense_0"]["bias"][1] = members[place]["head"]["kernel"][2, 1] = np.nan
        for given in [members, [to_jax(m) for m in members]][: 1 + bool(case.method)]:
            with pytest.raises(soups.tree.NonFiniteError, match=f"  {case.labels[place]}: Dense_0/bias, head/kernel"):
                case.make(given)


@cases.every(has_base=True)
def test_a_nan_in_the_base_is_named(case):
    base = cases.member(0)
    base["Dense_0"]["kernel"][1, 1] = np.inf
    with pytest.raises(ValueError, match="  base: Dense_0/kernel"):
        case.make(members_of(case), base)


@cases.every_method
def test_integers_are_copied(case):
    base = {**cases.BASE, "ids": np.arange(3), "step": np.array(7)}
    members = [{**m, "ids": np.arange(3), "step": np.array(i)} for i, m in enumerate(members_of(case))]
    result = case.make(members, base)
    np.testing.assert_array_equal(result["ids"], np.arange(3))
    assert result["step"] == 0 and result["step"].dtype == int  # a counter: the first member's, and no base's
    members[-1]["ids"] = np.arange(3) + 1
    if case.number > 1 or case.method.base == "first":
        with pytest.raises(ValueError, match="these differ: ids"):
            case.make(members, base)
    kept = case.make(members, base, keep_first="ids|.*bias")
    np.testing.assert_array_equal(kept["ids"], members[0]["ids"])
    np.testing.assert_array_equal(kept["Dense_0"]["bias"], members[0]["Dense_0"]["bias"])


@cases.every_method
def test_leaves_that_are_no_arrays_are_one_error(case):
    members = members_of(case)
    members[0]["Dense_0"]["bias"], members[-1]["head"]["kernel"] = 1.0, "text"
    with pytest.raises(ValueError, match=r"leaves must be (.|\n)*Dense_0/bias is a float(.|\n)*head/kernel is a str"):
        case.make(members)
    members = members_of(case)
    members[-1]["Dense_0"]["bias"] = jax.ShapeDtypeStruct(np.shape(members[0]["Dense_0"]["bias"]), np.float32)
    with pytest.raises(ValueError, match=r"Dense_0/bias is a jax.*ShapeDtypeStruct"):
        case.make(members)


@cases.every_method
def test_complex_leaves_are_kept_or_named(case):
    members, base = members_of(case), cases.member(0)
    for weights in (base, *members):
        weights["Dense_0"]["bias"] = (1 + 1j) * weights["Dense_0"]["bias"].astype(np.complex64)
    if case.method.takes_complex:
        assert case.make(members, base)["Dense_0"]["bias"].dtype == np.complex64
    else:
        with pytest.raises(ValueError, match="complex leaves: Dense_0/bias"):
            case.make(members, base)


def test_members_that_overflow_together_are_told_apart_from_nan():
    huge = [{"w": np.float32([3e38])}] * 2
    with pytest.raises(ValueError, match="merged w overflows float32, though no member does"):
        soups.weighted(huge, [1.0, 1.0])
    assert soups.weighted(huge, [10.0, -10.0])["w"] == 0  # the host has wider floats for what overflows midway
    with pytest.raises(ValueError, match=r"merged w holds NaN, though no member does: .* overflows float32 midway"):
        soups.weighted(list(map(to_jax, huge)), [10.0, -10.0])


@pytest.mark.parametrize("name", ["uniform", "greedy", "learned per model"])
def test_pool_leaves_out_members_that_diverged(name, tmp_path, caplog):
    case, pool = cases.CASES[name], Pool(tmp_path / "pool")
    for member_name, weights in named(members_of(case)).items():
        pool.add(member_name, weights)
    pool.add("diverged", jax.tree.map(lambda leaf: leaf * np.nan, cases.BASE))
    close(case.make(pool), case.make(members_of(case)))
    assert "diverged" in caplog.text
