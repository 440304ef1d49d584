"""Hold every recipe to one contract: structure, dtypes, transformations, sharding, streaming, order, errors."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import soups
from soups.pool import Pool
from soups.recipes import sparsify

WEIGHTS = [0.5, 0.25, 0.25]


@dataclasses.dataclass(frozen=True)
class Case:
    """State what holds for one recipe of three members."""

    make: Callable  # members -> weights
    oracle: Callable | None  # float64 arrays [K, ...] of one leaf -> array
    pure: bool = True  # may be traced
    symmetric: bool = True  # the order of members does not matter
    pool: bool = True  # takes a pool as it is
    idempotent: bool = True  # identical members give that member


def squared_distance_to_mean_of_two(params):
    """Score weights by how near all their elements are to 0.6: an `evaluate` that needs no network."""
    return -sum(float(jnp.sum((leaf.astype(jnp.float32) - 0.6) ** 2)) for leaf in jax.tree.leaves(params))


def greedy(members):
    return soups.greedy(members, squared_distance_to_mean_of_two).params


def learned(per):
    def make(members):
        def loss(params, batch, temperature):
            return temperature * sum(
                jnp.sum((leaf.astype(jnp.float32) - batch) ** 2) for leaf in jax.tree.leaves(params)
            )

        return soups.learned(members, loss, [np.float32(0.6)] * 3, per=per).params

    return make


def pairwise(function):
    return lambda members: function(*list(members.values() if hasattr(members, "values") else members)[:2])


def member(seed, dtype=np.float32):
    rng = np.random.default_rng(seed)
    return {
        "Dense_0": {"kernel": rng.normal(size=(8, 4)).astype(dtype), "bias": rng.normal(size=8).astype(dtype)},
        "head": {"kernel": rng.normal(size=(8, 2)).astype(dtype)},
    }


BASE = member(99)
FISHERS = [jax.tree.map(lambda leaf, w=w: np.full_like(leaf, w), BASE) for w in (0.5, 1.0, 2.5)]


def fisher_oracle(x):
    return (0.5 * x[0] + 1.0 * x[1] + 2.5 * x[2]) / 4.0


def from_base(function, **settings):
    """Give the case's `make` for a method that needs the base and whose oracle is in a test file of its own."""
    return lambda members: function(members, base=BASE, **settings)


def near_base(function, **settings):
    """As `from_base`, with task vectors that are small beside the base, as fine-tuning leaves them."""

    def make(members):
        values = list(members.values() if hasattr(members, "values") else members)
        return function(
            [soups.tree.lerp(soups.tree.cast_like(BASE, member), member, 0.1) for member in values],
            base=BASE,
            **settings,
        )

    return make


def first_two(function):
    def make(members):
        values = list(members.values() if hasattr(members, "values") else members)
        return function(values[:2])

    return make


def only_second(function):
    """Give the case's `make` for a method that brings one member to the base."""
    return lambda members: function(list(members.values() if hasattr(members, "values") else members)[1:2], base=BASE)


def cast_at_the_end(make):
    """Give the case's `make` for an average that is kept in float32 or wider."""
    return lambda members: soups.tree.cast_like(make(members), members[0])


def second_by_emr(members):
    """Give what EMR's elected task vector, mask and rescaler make of the second member."""
    return soups.tree.cast_like(soups.emr_restore(soups.emr(members, base=BASE), 1, base=BASE), members[1])


def localize_and_stitch(members):
    masks = [soups.localize_dataless(member, base=BASE, density=0.5) for member in members]
    return soups.stitch(members, base=BASE, masks=masks)


def gram(seed):
    """Give the Gram matrix of 64 inputs: enough of them that solving with it does not enlarge float32's rounding."""
    inputs = np.random.default_rng(seed).normal(size=(64, 8))
    return (inputs.T @ inputs / 64).astype(np.float32)


GRAMS = [{"Dense_0/kernel": gram(seed), "head/kernel": gram(seed + 10)} for seed in range(3)]


CASES = {
    "uniform": Case(soups.uniform, lambda x: x.mean(0)),
    "weighted": Case(lambda m: soups.weighted(m, WEIGHTS), lambda x: np.tensordot(WEIGHTS, x, 1), symmetric=False),
    "running_mean": Case(
        cast_at_the_end(lambda m: soups.running_mean(soups.running_mean(m[0], m[1], 1), m[2], 2)),
        lambda x: x.mean(0),
        pool=False,
    ),
    "ema": Case(
        cast_at_the_end(lambda m: soups.ema(soups.ema(m[0], m[1], 0.75), m[2], 0.75)),
        lambda x: 0.75 * (0.75 * x[0] + 0.25 * x[1]) + 0.25 * x[2],
        symmetric=False,
        pool=False,
    ),
    "interpolate": Case(
        pairwise(lambda a, b: soups.interpolate(a, b, t=0.25)), lambda x: 0.75 * x[0] + 0.25 * x[1], symmetric=False
    ),
    "wise_ft": Case(
        pairwise(lambda a, b: soups.wise_ft(a, base=b, alpha=0.75)),
        lambda x: 0.75 * x[0] + 0.25 * x[1],
        symmetric=False,
    ),
    "task_arithmetic": Case(from_base(soups.task_arithmetic, scale=0.5), None, idempotent=False),
    "ties": Case(from_base(soups.ties), None, idempotent=False),
    "ties, all kept": Case(from_base(soups.ties, density=1.0), None),
    "ties per leaf": Case(from_base(soups.ties, density=0.5, scope="leaf"), None, idempotent=False),
    "dare": Case(from_base(soups.dare, density=0.5), None, symmetric=False, idempotent=False),
    "della": Case(from_base(soups.della), None, symmetric=False, idempotent=False),
    "breadcrumbs": Case(from_base(soups.breadcrumbs), None, idempotent=False),
    "nuslerp": Case(first_two(lambda m: soups.nuslerp(m, weights=[1.0, 3.0])), None, symmetric=False),
    "multislerp": Case(from_base(soups.multislerp), None),
    "karcher": Case(soups.karcher, None),
    "model_stock": Case(from_base(soups.model_stock), None),
    "geometric_median": Case(soups.geometric_median, None),
    "sce": Case(from_base(soups.sce, select_topk=0.5), None, idempotent=False),
    "consensus": Case(from_base(soups.consensus), None, idempotent=False),
    "pcb": Case(from_base(soups.pcb), None, idempotent=False),
    "magmax": Case(from_base(soups.magmax, scale=1.0), None),
    "ram": Case(from_base(soups.ram), None),
    "ram_plus": Case(from_base(soups.ram_plus), None),
    "nearswap": Case(only_second(soups.nearswap), None, symmetric=False, idempotent=False),
    "arcee_fusion": Case(only_second(soups.arcee_fusion), None, symmetric=False, idempotent=False),
    "emr": Case(second_by_emr, None, symmetric=False, pool=False, idempotent=False),
    "tsv_merge": Case(near_base(soups.tsv_merge), None, idempotent=False),
    "iso_c": Case(near_base(soups.iso_c), None, idempotent=False),
    "wudi": Case(near_base(soups.wudi, steps=5), None, idempotent=False),
    "fisher": Case(lambda m: soups.fisher(m, FISHERS), fisher_oracle, symmetric=False),
    "fisher_interpolate": Case(
        pairwise(lambda a, b: soups.fisher_interpolate(a, b, FISHERS[0], FISHERS[2], alpha=0.25)),
        lambda x: (0.75 * 0.5 * x[0] + 0.25 * 2.5 * x[1]) / (0.75 * 0.5 + 0.25 * 2.5),
        symmetric=False,
    ),
    "regmean": Case(lambda m: soups.regmean(m, GRAMS), None, symmetric=False),
    "localize_and_stitch": Case(localize_and_stitch, None, pool=False, idempotent=False),
    "stitch": Case(
        from_base(soups.stitch, masks=[jax.tree.map(lambda leaf: leaf > 0, BASE)] * 3), None, idempotent=False
    ),
    "greedy": Case(greedy, None, pure=False),
    "learned per model": Case(learned("model"), None, pure=False),
    "learned per leaf": Case(learned("leaf"), None, pure=False),
}
PURE = [name for name, case in CASES.items() if case.pure]
POOLED = [name for name, case in CASES.items() if case.pool]
ALL = list(CASES)
PAIRS = ("interpolate", "wise_ft", "nuslerp", "fisher_interpolate")  # of given members, never of a list


@pytest.fixture
def members():
    return [member(seed) for seed in range(3)]


def close(a, b, rtol=1e-5, atol=1e-6):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(np.asarray(x, np.float64), np.asarray(y, np.float64), rtol=rtol, atol=atol)


def equal(a, b):
    close(a, b, rtol=0, atol=0)


def to_jax(weights):
    return jax.tree.map(jnp.asarray, weights)


@pytest.mark.parametrize("name", [name for name in PURE if CASES[name].oracle])
def test_equals_float64(name, members):
    expected = jax.tree.map(lambda *x: CASES[name].oracle(np.stack(x).astype(np.float64)), *members)
    close(CASES[name].make(members), expected)
    close(CASES[name].make([to_jax(m) for m in members]), expected)


@pytest.mark.parametrize("name", ALL)
def test_keeps_structure_and_dtype(name):
    members = [member(seed, ml_dtypes.bfloat16) for seed in range(3)]
    result = CASES[name].make(members)
    assert jax.tree.structure(result) == jax.tree.structure(members[0])
    assert {leaf.dtype for leaf in jax.tree.leaves(result)} == {np.dtype(ml_dtypes.bfloat16)}


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.idempotent])
def test_identical_members_give_that_member(name, members):
    close(CASES[name].make([members[0]] * 3), members[0], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.symmetric])
def test_order_does_not_matter(name, members):
    close(CASES[name].make(members), CASES[name].make(members[::-1]))


@pytest.mark.parametrize("name", PURE)
def test_is_a_program_for_gpus_and_tpus(name, members):
    exported = jax.export.export(jax.jit(CASES[name].make), platforms=["cuda", "tpu"])([to_jax(m) for m in members])
    assert "lapack" not in exported.mlir_module()  # what a CPU would call


def rounded_products(program):
    """List the lines of a StableHLO program that multiply float32 matrices in fewer bits where a device has fewer."""
    lines = [line for line in program.splitlines() if "dot_general" in line and "f32" in line.split(":", 1)[-1]]
    return [line.strip() for line in lines if "precision = [HIGHEST, HIGHEST]" not in line]


SMALL = {"none": (0,), "no rows": (0, 3), "no columns": (3, 0), "scalar": (), "one": (1,), "one of one": (1, 1)}


def small(names, seed):
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=SMALL[name]).astype(np.float32) for name in names}


METHODS_OF_BASE = {
    "task_arithmetic": soups.task_arithmetic,
    "ties": soups.ties,
    "ties per leaf": lambda m, base: soups.ties(m, base=base, scope="leaf"),
    "dare": soups.dare,
    "della": soups.della,
    "breadcrumbs": soups.breadcrumbs,
    "nuslerp rows": lambda m, base: soups.nuslerp(m[:2], base=base, scope="row"),
    "nuslerp columns": lambda m, base: soups.nuslerp(m[:2], base=base, scope="column"),
    "multislerp": soups.multislerp,
    "karcher": soups.karcher,
    "model_stock": soups.model_stock,
    "model_stock rows": lambda m, base: soups.model_stock(m, base=base, scope="row"),
    "geometric_median": lambda m, base: soups.geometric_median(m),
    "sce": lambda m, base: soups.sce(m, base=base, select_topk=0.5),
    "consensus": soups.consensus,
    "pcb": soups.pcb,
    "pcb per leaf": lambda m, base: soups.pcb(m, base=base, scope="leaf"),
    "magmax": soups.magmax,
    "ram": soups.ram,
    "ram_plus": soups.ram_plus,
    "nearswap": lambda m, base: soups.nearswap(m[:1], base=base),
    "arcee_fusion": lambda m, base: soups.arcee_fusion(m[:1], base=base),
    "emr": lambda m, base: soups.emr_restore(soups.emr(m, base=base), 0, base=base),
    "tsv_merge": soups.tsv_merge,
    "iso_c": soups.iso_c,
    "wudi": lambda m, base: soups.wudi(m, base=base, steps=2),
    "wudi of torch": lambda m, base: soups.wudi(m, base=base, steps=2, inputs="last"),
    "fisher": lambda m, base: soups.fisher(m, [jax.tree.map(abs, member) for member in m]),
    "localize_and_stitch": lambda m, base: soups.stitch(
        m, [soups.localize_dataless(member, base=base, density=0.5) for member in m], base=base
    ),
    **{
        f"{kind}, {scope}": lambda m, base, scope=scope, make=make: soups.combine_task_vectors(
            m, base=base, sparsify=make(), elect=True, scope=scope
        )
        for scope in ("model", "leaf")
        for kind, make in {
            "trim": lambda: sparsify.trim(0.5, rescale=True),
            "drop": lambda: sparsify.drop(0.5, rescale="norm"),
            "outliers": lambda: sparsify.outliers(0.5, rescale=True),
            "magprune": lambda: sparsify.magprune(0.5, 0.1, rescale="norm"),
        }.items()
    },
}


@pytest.mark.parametrize("names", [list(SMALL), ["none", "no rows", "no columns"]], ids=["few", "none"])
@pytest.mark.parametrize("name", METHODS_OF_BASE)
def test_leaves_without_elements_and_with_one(name, names):
    members, base = [small(names, seed) for seed in range(3)], small(names, 9)
    on_host = METHODS_OF_BASE[name](members, base=base)
    on_device = METHODS_OF_BASE[name]([to_jax(member) for member in members], base=to_jax(base))
    assert {leaf: on_host[leaf].shape for leaf in names} == {leaf: SMALL[leaf] for leaf in names}
    close(on_device, on_host)


@pytest.mark.parametrize("name", PURE)
def test_products_are_at_full_precision(name, members):
    assert not rounded_products(jax.jit(CASES[name].make).lower([to_jax(m) for m in members]).as_text())


def test_products_in_fewer_bits_are_found():
    program = jax.jit(lambda a, b: (jnp.dot(a, b), jnp.dot(a, b, precision="highest"))).lower(*[jnp.ones((2, 2))] * 2)
    assert len(rounded_products(program.as_text())) == 1


@pytest.mark.parametrize("name", PURE)
def test_under_jit_and_vmap(name, members):
    make = CASES[name].make
    expected = make(members)
    close(jax.jit(make)([to_jax(m) for m in members]), expected)
    two = jax.tree.map(lambda x, y: jnp.stack([x, y]), members, [member(seed) for seed in range(10, 13)])
    both = jax.vmap(make)(two)
    close(jax.tree.map(lambda leaf: leaf[0], both), expected)
    close(jax.tree.map(lambda leaf: leaf[1], both), make([member(seed) for seed in range(10, 13)]))


@pytest.mark.parametrize("name", PURE)
def test_under_pmap(name):
    groups = [[member(10 * device + seed) for seed in range(3)] for device in range(8)]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *groups)
    result = jax.pmap(CASES[name].make)(stacked)
    for device in range(8):
        close(jax.tree.map(lambda leaf, d=device: leaf[d], result), CASES[name].make(groups[device]))


def test_pmean_of_members_on_devices_is_the_uniform_soup():
    members = [member(seed) for seed in range(8)]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *members)
    soup = jax.pmap(lambda m: jax.lax.pmean(m, "pool"), axis_name="pool")(stacked)
    close(jax.tree.map(lambda leaf: leaf[3], soup), soups.uniform(members))


@pytest.mark.parametrize("name", ALL)
def test_on_sharded_members(name, members, mesh):
    make = CASES[name].make
    shard = NamedSharding(mesh, P("pool"))
    sharded = [jax.tree.map(lambda leaf: jax.device_put(leaf, shard), m) for m in members]
    result = make(sharded)
    close(result, make(members))
    assert all(leaf.sharding.is_equivalent_to(shard, leaf.ndim) for leaf in jax.tree.leaves(result))


@pytest.mark.parametrize("name", POOLED)
def test_streamed_from_a_pool_equals_in_memory(name, members, tmp_path):
    pool = Pool(tmp_path / "pool")
    for index, weights in enumerate(members):
        pool.add(f"member_{index}", weights)
    result = CASES[name].make(pool)
    if CASES[name].pure:
        equal(result, CASES[name].make(members))  # element-wise: the same to the bit
    else:
        close(result, CASES[name].make(members), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", [name for name in POOLED if name not in PAIRS])
def test_no_members_is_an_error(name, tmp_path):
    for empty in ([], {}, Pool(tmp_path / "empty")):
        with pytest.raises(ValueError, match="no members"):
            CASES[name].make(empty)


@pytest.mark.parametrize("name", ALL)
def test_other_structure_is_an_error(name, members):
    members[1]["head"]["kernel"] = np.zeros((8, 3), np.float32)
    with pytest.raises(ValueError, match=r"head/kernel has shape"):
        CASES[name].make(members)


@pytest.mark.parametrize("name", ["uniform", "weighted", "learned per model"])
def test_nan_is_named(name, members):
    members[2]["Dense_0"]["bias"][1] = np.nan
    with pytest.raises(ValueError, match=r"member 2: Dense_0/bias"):
        CASES[name].make(members)


def test_members_that_overflow_together_are_told_apart_from_nan():
    huge = [{"w": np.float32([3e38])}] * 2
    with pytest.raises(ValueError, match="merged w overflows float32, though no member does"):
        soups.weighted(huge, [1.0, 1.0])


@pytest.mark.parametrize("name", ["uniform", "greedy", "learned per model"])
def test_pool_leaves_out_members_that_diverged(name, members, tmp_path, caplog):
    pool = Pool(tmp_path / "pool")
    for index, weights in enumerate(members):
        pool.add(f"member_{index}", weights)
    pool.add("diverged", jax.tree.map(lambda leaf: leaf * np.nan, members[0]))
    close(CASES[name].make(pool), CASES[name].make(members))
    assert "diverged" in caplog.text
