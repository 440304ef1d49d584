"""Hold every method to one contract: structure, dtypes, transformations, sharding, streaming, order, errors.

The methods are found by themselves, a user's too; cases are built from what they declare: members, base, settings.
"""

import dataclasses
import inspect
import pathlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import soups
from soups import engine
from soups.cli.plugins import load_plugin
from soups.pool import Pool
from soups.recipes import METHODS

load_plugin(str(pathlib.Path(__file__).with_name("plugin_example.py")))
PLUGIN = METHODS.pop("sign_mean")  # other tests are of this library's methods
# what needs a tree beside the base is called otherwise in Python: it is among the functions that are not declared
DECLARED = [*(method for method in METHODS.values() if not method.base_beside), PLUGIN]

NAMES = ("a", "b", "c")
SEEDS = {"base": 9} | {name: place for names in (NAMES, "012") for place, name in enumerate(names)}
WEIGHTS = [0.5, 0.25, 0.25]
QUICK = {"steps": 5}
NEEDED = {"t": 0.3}  # values of settings without a default, by name
OTHER = {"density": 0.5, "seed": 3, "select_topk": 0.5, "votes": 1, "favor": 1, "only": ".*kernel"}
ORDERED = {"dare", "della"}  # random by a member's place: the order of members matters
WHOLE = {"tsv_merge", "iso_c"}  # decompose matrices, which no device has a part of
AVERAGES = {"model_stock", "ram", "ram_plus"}  # have a base, which identical members do not lean on


def member(seed, dtype=np.float32, step=0.1):
    """Return weights near the base, as fine-tuning leaves them; the base itself with a step of 0."""
    base, rng = np.random.default_rng(99), np.random.default_rng(seed)

    def leaf(*shape):
        return (base.normal(size=shape) + step * rng.normal(size=shape)).astype(dtype)

    return {"Dense_0": {"kernel": leaf(8, 4), "bias": leaf(8)}, "head": {"kernel": leaf(8, 2)}}


BASE = member(0, step=0.0)


# --- Cases ------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Case:
    """State what holds for a method."""

    make: Callable  # (members: sequence, mapping or pool; base) -> weights
    number: int = 3  # of members
    oracle: Callable | None = None  # float64 arrays [K, ...] of one leaf -> array
    pure: bool = True  # may be traced
    ordered: bool = False  # the order of members matters
    average: bool = False  # identical members give that member, wherever the base is
    pool: bool = True  # takes a pool as it is
    method: soups.recipes.declare.Method | None = None
    has_base: bool = False
    other: tuple[str, ...] = ()  # settings that are not as declared


def gram(seed, size):
    """Return the Gram matrix of so many inputs that solving with it does not enlarge float32's rounding."""
    inputs = np.random.default_rng(seed).normal(size=(8 * size, size))
    return (inputs.T @ inputs / len(inputs)).astype(np.float32)


def beside(kind, seed, like):
    """Return the tree that goes in beside a member: positive numbers if nothing else is known of its name."""
    rng, flat = np.random.default_rng(seed + 50), soups.tree.flatten(like)
    if kind == "grams":
        return {name: gram(seed, leaf.shape[0]) for name, leaf in flat.items() if leaf.ndim == 2 and leaf.size}
    random = [rng.random(leaf.shape, np.float32) for leaf in flat.values()]
    made = [leaf > 0.5 if kind == "masks" else 0.5 + leaf for leaf in random]
    return jax.tree.unflatten(jax.tree.structure(like), made)


def values(members):
    return list(members.values() if hasattr(members, "values") else members)


def declared(method, settings, has_base):
    """Return the `make` of a method: with what goes in beside members, by their names where they have some."""

    def make(members, base=BASE, **more):
        by_name = hasattr(members, "values")
        names = [*members] if by_name else [*map(str, range(number_of(method)))]
        names = ["base", *names] if method.base == "first" else names
        extra = [{name: beside(kind, SEEDS[name], base) for name in names} for kind in method.beside]
        extra = extra if by_name else [list(trees.values()) for trees in extra]
        given = values(members)[0] if method.single else members
        return method(given, *extra, **({"base": base} if has_base else {}), **{**settings, **more})

    return make


def number_of(method):
    low, high = method.members
    return max(low, min(3, high))


def other(method):
    """Return another value of each setting for which one is known: by its name, or its kind."""
    for name, default in method.defaults.items():
        if name in OTHER:
            yield name, OTHER[name]
        elif isinstance(default, bool):
            yield name, not default
        elif name == "scope":
            yield name, "model" if default == "leaf" else "leaf"
        elif name == "weights":
            yield name, [1.0, 2.0, 0.5][: number_of(method)]


def cases_of(method):
    """Yield a method's cases: as it is declared, and with other settings and the base that it may have."""
    needed = {name: value for name, value in {**QUICK, **NEEDED}.items() if name in method.defaults}
    options = {"number": number_of(method), "pool": not method.single, "method": method}
    average = method.base in ("none", "optional") or method.name in AVERAGES
    has_base = method.base in ("required", "first")
    plain = declared(method, needed, has_base)
    ordered = method.name in ORDERED
    yield method.name, Case(plain, ordered=ordered, average=average, has_base=has_base, **options)
    changed = dict(other(method))
    if changed or method.base == "optional":
        has_base = method.base != "none"
        make = declared(method, needed | changed, has_base)
        yield (
            f"{method.name}, other settings",
            Case(make, ordered=True, has_base=has_base, other=tuple(changed), **options),
        )


def distance_to(target):
    """Return an `evaluate` that needs no network: by how near all elements are to a number."""
    return lambda params: -sum(float(jnp.sum((leaf.astype(jnp.float32) - target) ** 2)) for leaf in leaves(params))


def leaves(weights):
    return jax.tree.leaves(weights)


def learned(per):
    def loss(params, batch, temperature):
        return temperature * sum(jnp.sum((leaf.astype(jnp.float32) - batch) ** 2) for leaf in leaves(params))

    return lambda members, base=BASE: soups.learned(members, loss, [np.float32(0.6)] * 3, per=per).params


def of_list(function):
    """Return the `make` of a function of a list of members."""
    return lambda members, base=BASE: function(values(members), base)


def cast(weights, members):
    return soups.tree.cast_like(weights, members[0])


def stitched(members, base):
    masks = [soups.localize_dataless(member, base=base, density=0.5) for member in members]
    return soups.stitch(members, base=base, masks=masks)


def fishers(members):
    return [beside("fishers", seed, member) for seed, member in enumerate(members[:2])]


UNDECLARED = {
    "weighted": Case(
        lambda m, base=BASE: soups.weighted(m, WEIGHTS), oracle=lambda x: np.tensordot(WEIGHTS, x, 1), ordered=True
    ),
    "running_mean": Case(
        of_list(lambda m, _: cast(soups.running_mean(soups.running_mean(m[0], m[1], 1), m[2], 2), m)),
        oracle=lambda x: x.mean(0),
        pool=False,
    ),
    "ema": Case(
        of_list(lambda m, _: cast(soups.ema(soups.ema(m[0], m[1], 0.75), m[2], 0.75), m)),
        oracle=lambda x: 0.75 * (0.75 * x[0] + 0.25 * x[1]) + 0.25 * x[2],
        ordered=True,
        pool=False,
    ),
    "interpolate": Case(
        of_list(lambda m, _: soups.interpolate(m[0], m[1], t=0.25)),
        number=2,
        oracle=lambda x: 0.75 * x[0] + 0.25 * x[1],
        ordered=True,
        average=True,
        pool=False,
    ),
    "wise_ft of two": Case(
        of_list(lambda m, _: soups.wise_ft(m[0], base=m[1], alpha=0.75)),
        number=2,
        oracle=lambda x: 0.75 * x[0] + 0.25 * x[1],
        ordered=True,
        average=True,
        pool=False,
    ),
    "fisher_interpolate of two": Case(
        of_list(lambda m, _: soups.fisher_interpolate(m[0], m[1], *fishers(m), alpha=0.25)),
        number=2,
        ordered=True,
        average=True,
        pool=False,
    ),
    "emr": Case(
        of_list(lambda m, base: cast(soups.emr_restore(soups.emr(m, base=base), 1, base=base), m)),
        ordered=True,
        pool=False,
    ),
    "localize_dataless and stitch": Case(of_list(stitched), pool=False),
    "greedy": Case(lambda m, base=BASE: soups.greedy(m, distance_to(0.6)).params, pure=False, average=True),
    "learned per model": Case(learned("model"), pure=False, average=True),
    "learned per leaf": Case(learned("leaf"), pure=False, average=True),
}
CASES = {name: case for method in DECLARED for name, case in cases_of(method)} | UNDECLARED
ONCE = [name for name in CASES if not name.endswith("other settings")]


def every(names=tuple(CASES), **wanted):
    """Parametrize by the cases for which this holds."""
    chosen = [n for n in names if all(getattr(CASES[n], key) == value for key, value in wanted.items())]
    return pytest.mark.parametrize("case", [CASES[name] for name in chosen], ids=chosen)


every_method = pytest.mark.parametrize(
    "case", [CASES[method.name] for method in DECLARED], ids=[method.name for method in DECLARED]
)


def members_of(case, dtype=np.float32, first=1):
    return [member(seed, dtype) for seed in range(first, first + case.number)]


def named(members):
    return dict(zip(NAMES, members, strict=False))


def close(a, b, rtol=1e-5, atol=1e-6):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(leaves(a), leaves(b), strict=True):
        np.testing.assert_allclose(np.asarray(x, np.float64), np.asarray(y, np.float64), rtol=rtol, atol=atol)


def equal(a, b):
    assert [leaf.dtype for leaf in leaves(a)] == [leaf.dtype for leaf in leaves(b)]
    close(a, b, rtol=0, atol=0)


def to_jax(weights):
    return jax.tree.map(jnp.asarray, weights)


# --- Results ----------------------------------------------------------------------------------------------------------


def test_every_declared_method_is_public_and_documented():
    for name, method in METHODS.items():
        function = getattr(soups, name)
        assert name in soups.__all__ and getattr(soups.recipes, name) is function
        assert list(inspect.signature(function).parameters) and function.__doc__.endswith(("\n    ", "."))
        assert method.only_in_python or (method.summary and method.title)


@every(ONCE)
def test_equals_float64(case):
    if case.oracle:
        members = members_of(case)
        expected = jax.tree.map(lambda *x: case.oracle(np.stack(x).astype(np.float64)), *members)
        close(case.make(members), expected)
        close(case.make([to_jax(m) for m in members]), expected)


@every()
def test_keeps_structure_and_dtype(case):
    result = case.make(members_of(case, ml_dtypes.bfloat16), base=member(0, ml_dtypes.bfloat16, step=0.0))
    assert jax.tree.structure(result) == jax.tree.structure(BASE)
    assert {leaf.dtype for leaf in leaves(result)} == {np.dtype(ml_dtypes.bfloat16)}


@every(average=True)
def test_identical_members_give_that_member(case):
    close(case.make([member(1)] * case.number), member(1), rtol=1e-6, atol=1e-6)


@every_method
def test_members_that_are_the_base_give_the_base(case):
    close(case.make([BASE] * case.number), BASE, rtol=1e-6, atol=1e-6)


@every(ordered=False)
def test_order_does_not_matter(case):
    members = named(members_of(case))
    close(case.make(members), case.make(dict(reversed(members.items()))))


# --- Transformations --------------------------------------------------------------------------------------------------


def rounded_products(program):
    """List the lines of a StableHLO program that multiply float32 matrices in fewer bits where a device has fewer."""
    lines = [line for line in program.splitlines() if "dot_general" in line and "f32" in line.split(":", 1)[-1]]
    return [line.strip() for line in lines if "precision = [HIGHEST, HIGHEST]" not in line]


@every(pure=True)
def test_is_a_program_for_gpus_and_tpus_with_products_at_full_precision(case):
    given = [to_jax(m) for m in members_of(case)]
    program = jax.export.export(jax.jit(case.make), platforms=["cuda", "tpu"])(given).mlir_module()
    assert "lapack" not in program  # what a CPU would call
    assert not rounded_products(program)


def test_products_in_fewer_bits_are_found():
    function = jax.jit(lambda a, b: (jnp.dot(a, b), jnp.dot(a, b, precision="highest")))
    program = jax.export.export(function, platforms=["cuda", "tpu"])(*[jnp.ones((2, 2))] * 2).mlir_module()
    assert len(set(rounded_products(program))) == 1  # for each platform


@every(ONCE, pure=True)
def test_under_pmap_and_vmap(case):
    groups = [[members_of(case, first=10 * device + 3 * row) for row in range(2)] for device in range(8)]
    stacked = jax.tree.map(lambda *x: np.stack(x).reshape(8, 2, *x[0].shape), *(m for group in groups for m in group))
    result = jax.pmap(jax.vmap(case.make))(stacked)
    for device, row in ((0, 0), (0, 1), (7, 1)):
        close(jax.tree.map(lambda leaf, at=(device, row): leaf[at], result), case.make(groups[device][row]))


def test_pmean_of_members_on_devices_is_the_uniform_soup():
    members = [member(seed) for seed in range(8)]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *members)
    soup = jax.pmap(lambda m: jax.lax.pmean(m, "pool"), axis_name="pool")(stacked)
    close(jax.tree.map(lambda leaf: leaf[3], soup), soups.uniform(members))


@every(ONCE)
def test_on_sharded_members(case, mesh):
    shard = NamedSharding(mesh, P("pool"))
    sharded = [jax.tree.map(lambda leaf: jax.device_put(leaf, shard), m) for m in members_of(case)]
    result = (jax.jit(case.make) if case.pure else case.make)(sharded)
    close(result, case.make(members_of(case)))
    if case.method is None or case.method.name not in WHOLE:
        assert all(leaf.sharding.is_equivalent_to(shard, leaf.ndim) for leaf in leaves(result))


# --- Members ----------------------------------------------------------------------------------------------------------


@every()
def test_streamed_from_a_pool_equals_in_memory_across_blocks(case, tmp_path, monkeypatch):
    members = named(members_of(case))
    whole = case.make(members)
    monkeypatch.setattr(engine, "BLOCK", 7)  # elements, of leaves of 8, 16 and 32
    cut = case.make(members)
    close(cut, whole)
    if case.pool:
        pool = Pool(tmp_path / "pool")
        for name, weights in members.items():
            pool.add(name, weights)
        streamed = case.make(pool)
        equal(streamed, cut) if case.pure else close(streamed, cut)


@every_method
def test_takes_mappings_and_generators(case):
    expected = case.make(members_of(case))
    equal(case.make(named(members_of(case))), expected)
    if not case.method.single:
        equal(case.make(iter(members_of(case))), expected)


PER_MEMBER = {"sparsify": soups.trim(0.5), "gamma": 0.2}  # of settings whose defaults are no numbers, or too small


@pytest.mark.parametrize(
    ("case", "name"),
    [pytest.param(CASES[m.name], name, id=f"{m.name}, {name}") for m in DECLARED for name in m.per_member],
)
def test_settings_of_members_are_one_value_a_sequence_or_a_mapping(case, name):
    members, value = members_of(case), PER_MEMBER.get(name, case.method.defaults[name])
    expected = case.make(members, **{name: value})
    equal(case.make(members, **{name: [value] * case.number}), expected)
    by_name = dict.fromkeys(NAMES[: case.number], value)
    equal(case.make(named(members), **{name: dict(reversed(by_name.items()))}), expected)
    if isinstance(value, float):
        different = [value * share for share in (0.5, 0.8, 0.9)[: case.number]]
        expected = case.make(members, **{name: different})
        equal(case.make(named(members), **{name: dict(zip(NAMES, different, strict=False))}), expected)
        assert any((x != y).any() for x, y in zip(leaves(expected), leaves(case.make(members)), strict=True))
    for wrong in ([value] * (case.number + 1), {**by_name, "d": value}, dict.fromkeys(by_name.keys() - {"a"}, value)):
        with pytest.raises(ValueError, match=name):
            case.make(named(members), **{name: wrong})


@every_method
def test_the_marked_member_goes_by_name_or_place(case):
    for name in case.method.marks:
        by_place = case.make(members_of(case), **{name: 1})
        equal(case.make(named(members_of(case)), **{name: "b"}), by_place)
        for wrong in ("d", case.number):
            with pytest.raises(ValueError, match="unknown member"):
                case.make(named(members_of(case)), **{name: wrong})


EMPTY = {"none": (0,), "no rows": (0, 3), "no columns": (3, 0)}
SMALL = {**EMPTY, "scalar": (), "one": (1,), "one of one": (1, 1)}


def small(seed, shapes):
    rng = np.random.default_rng(seed)
    return {name: np.asarray(rng.normal(size=shape), np.float32) for name, shape in shapes.items()}


def alike(seed):
    """Return leaves that are parallel, opposite, zero or the same in all members: nothing to divide by."""
    line = np.linspace(0.1, 0.6, 6, dtype=np.float32)
    opposite = (line if seed % 2 else -line).reshape(3, 2)
    zero = np.zeros((2, 2), np.float32)
    return {"parallel": (1 + seed) * line, "opposite": opposite, "zero": zero, "same": line, "number": np.float32(seed)}


@every()
def test_leaves_without_elements_and_with_one(case):
    if "only" not in case.other:
        for shapes in (SMALL, EMPTY):
            result = case.make([small(seed, shapes) for seed in range(1, 1 + case.number)], small(0, shapes))
            assert {name: leaf.shape for name, leaf in result.items()} == shapes
            assert not soups.tree.nonfinite_names(result)


@every_method
def test_leaves_that_are_alike_have_finite_results(case):
    given = [[{**alike(seed), **small(seed, SMALL)} for seed in range(1, 1 + case.number)], alike(0) | small(0, SMALL)]
    on_host = case.make(*given)
    traced = jax.jit(case.make, compiler_options={"xla_backend_optimization_level": 0})(*given)
    for result in (on_host, traced):
        assert {n: (x.shape, x.dtype) for n, x in result.items()} == {
            n: (x.shape, x.dtype) for n, x in given[0][0].items()
        }
        assert not soups.tree.nonfinite_names(result)
    close({name: traced[name] for name in SMALL}, {name: on_host[name] for name in SMALL})


SPARSIFIERS = {
    "trim": soups.trim(0.5, rescale=True),
    "drop": soups.drop(0.5, rescale="norm"),
    "outliers": soups.outliers(0.5, rescale=True),
    "magprune": soups.magprune(0.5, 0.1, rescale="norm"),
}


@pytest.mark.parametrize("scope", ["model", "leaf"])
@pytest.mark.parametrize("kind", SPARSIFIERS)
def test_sparsifiers_of_leaves_without_elements_and_with_one(kind, scope):
    for shapes in (SMALL, EMPTY):
        members, base = [small(seed, shapes) for seed in range(3)], small(9, shapes)
        settings = {"sparsify": SPARSIFIERS[kind], "elect": True, "scope": scope}
        on_host = soups.combine_task_vectors(members, base=base, **settings)
        close(soups.combine_task_vectors([to_jax(m) for m in members], base=to_jax(base), **settings), on_host)


# --- Errors -----------------------------------------------------------------------------------------------------------


@every_method
def test_another_number_of_members_is_an_error(case, tmp_path):
    method, (low, high) = case.method, case.method.members
    if method.single:
        return
    for empty in ([], {}, Pool(tmp_path / "empty")):
        with pytest.raises(ValueError, match=r"no members|takes (exactly|at least)"):
            method(empty, *[[]] * len(method.beside), base=BASE)
    for wrong in {low - 1, high + 1} - {0, 10**6 + 1}:
        with pytest.raises(ValueError, match=f"{method.name} takes (exactly|at least) {low} member"):
            method([BASE] * wrong, *[[BASE] * wrong] * len(method.beside), base=BASE)


@every_method
def test_members_that_are_one_tree_or_arrays_are_an_error(case):
    if not case.method.single:
        for wrong in (np.ones(3), {"w": np.ones(3), "b": np.ones(2)}, "members", 3):
            with pytest.raises(ValueError, match="members are"):
                case.method(wrong, *[[]] * len(case.method.beside), base=BASE)


@every(ONCE)
def test_mismatched_structures_are_an_error(case):
    members, base = members_of(case), member(0)
    (members[1] if case.number > 1 else base)["head"]["kernel"] = np.zeros((8, 3), np.float32)
    if case.number > 1 or case.has_base:
        with pytest.raises(ValueError, match=r"head/kernel has shape"):
            case.make(members, base)


@every([*(method.name for method in DECLARED), "weighted", "learned per model", "learned per leaf"])
def test_each_nan_is_named(case):
    for place in range(case.number):
        members = members_of(case)
        members[place]["Dense_0"]["bias"][1] = members[place]["head"]["kernel"][2, 1] = np.nan
        label = "member" if case.method and case.method.single else place
        for given in (members, [to_jax(m) for m in members]):
            with pytest.raises(ValueError, match=rf"(member )?{label}: Dense_0/bias, head/kernel"):
                case.make(given)


@every(has_base=True)
def test_a_nan_in_the_base_is_named(case):
    base = member(0)
    base["Dense_0"]["bias"][1] = np.inf
    with pytest.raises(ValueError, match="base: Dense_0/bias"):
        case.make(members_of(case), base)


@every_method
def test_integers_are_copied(case):
    base = {**BASE, "ids": np.arange(3), "step": np.array(0)}
    members = [{**m, "ids": np.arange(3), "step": np.array(i)} for i, m in enumerate(members_of(case))]
    result = case.make(members, base)
    np.testing.assert_array_equal(result["ids"], np.arange(3))
    assert result["step"] == 0 and result["step"].dtype == int  # a counter: the first member's
    members[-1]["ids"] = np.arange(3) + 1
    if case.number > 1 or case.method.base == "first":
        with pytest.raises(ValueError, match="these differ: ids"):
            case.make(members, base)
    first = base if case.method.base == "first" else members[0]
    np.testing.assert_array_equal(case.make(members, base, keep_first="ids|.*bias")["ids"], first["ids"])
    kept = case.make(members, base, keep_first="ids|.*bias")["Dense_0"]["bias"]
    np.testing.assert_array_equal(kept, first["Dense_0"]["bias"])


@every_method
def test_leaves_that_are_no_arrays_are_one_error(case):
    members = members_of(case)
    members[0]["Dense_0"]["bias"], members[-1]["head"]["kernel"] = 1.0, "text"
    with pytest.raises(ValueError, match=r"leaves must be (.|\n)*Dense_0/bias is a float(.|\n)*head/kernel is a str"):
        case.make(members)


@every_method
def test_complex_leaves_are_kept_or_named(case):
    members, base = members_of(case), member(0)
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


@pytest.mark.parametrize("name", ["uniform", "greedy", "learned per model"])
def test_pool_leaves_out_members_that_diverged(name, tmp_path, caplog):
    case, pool = CASES[name], Pool(tmp_path / "pool")
    for member_name, weights in named(members_of(case)).items():
        pool.add(member_name, weights)
    pool.add("diverged", jax.tree.map(lambda leaf: leaf * np.nan, BASE))
    close(case.make(pool), case.make(members_of(case)))
    assert "diverged" in caplog.text
