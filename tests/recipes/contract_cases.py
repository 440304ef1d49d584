"""Build the cases of the contract test: all methods, found by themselves, a user's too, from what they declare."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import soups
from soups.plugins import load_plugin
from soups.recipes import METHODS
from soups.recipes.declare import Method

load_plugin(str(pathlib.Path(__file__).with_name("plugin_example.py")))
PLUGIN = METHODS.pop("sign_mean")  # other tests are of this library's methods
DECLARED = [*METHODS.values(), PLUGIN]

NAMES = ("a", "b", "c")
SEEDS = {"base": 9} | {name: place for names in (NAMES, "012") for place, name in enumerate(names)}
WEIGHTS = [0.5, 0.25, 0.25]
QUICK = {"steps": 5}
NEEDED = {"t": 0.3}  # values of settings without a default, by name
OTHER = {"density": 0.5, "seed": 3, "select_topk": 0.5, "votes": 1, "only": ".*kernel"}
ORDERED = {"dare", "della"}  # random by a member's place: the order of members matters
WHOLE = {"tsv_merge", "iso_c"}  # decompose matrices, which no device has a part of
AVERAGES = {"model_stock", "ram", "ram_plus"}  # have a base, which identical members do not lean on


SHAPES = {"Dense_0": {"kernel": (8, 4), "bias": (8,)}, "head": {"kernel": (8, 2)}}


def member(seed, dtype=np.float32, step=0.1, shapes=SHAPES):
    """Return weights near the base, as fine-tuning leaves them; the base itself with a step of 0."""
    base, rng = np.random.default_rng(99), np.random.default_rng(seed)

    def leaf(shape):
        return np.asarray(base.normal(size=shape) + step * rng.normal(size=shape), dtype)

    return jax.tree.map(leaf, shapes, is_leaf=lambda shape: isinstance(shape, tuple))


BASE = member(0, step=0.0)
wide = functools.partial(member, shapes={"kernel": (8, 4), "bias": (8,)})  # for four devices
narrow = functools.partial(member, shapes={"kernel": (3, 2), "bias": (5,), "one": (), "none": (0, 3)})


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
    method: Method | None = None
    has_base: bool = False
    other: tuple[str, ...] = ()  # settings that are not as declared
    labels: tuple[str, ...] = ("member 0", "member 1", "member 2")  # of the members in errors


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
        extra = [{name: beside(kind, SEEDS[name], base) for name in names} for kind in method.beside]
        extra = extra if by_name and not method.single else [list(trees.values()) for trees in extra]
        more = settings | more
        if method.base_beside:
            return method(base, *values(members), beside("fishers", SEEDS["base"], base), *extra[0], **more)
        given = values(members)[0] if method.single else members
        return method(given, *extra, **({"base": base} if has_base else {}), **more)

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
    options |= {"labels": ("member",)} if method.single else {}
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


UNDECLARED = {
    "weighted": Case(
        lambda m, base=BASE: soups.weighted(m, WEIGHTS), oracle=lambda x: np.tensordot(WEIGHTS, x, 1), ordered=True
    ),
    "running_mean": Case(
        of_list(lambda m, _: cast(soups.running_mean(soups.running_mean(m[0], m[1], 1), m[2], 2), m)),
        oracle=lambda x: x.mean(0),
        pool=False,
        labels=("mean", "member", "member"),
    ),
    "ema": Case(
        of_list(lambda m, _: cast(soups.ema(soups.ema(m[0], m[1], 0.75), m[2], 0.75), m)),
        oracle=lambda x: 0.75 * (0.75 * x[0] + 0.25 * x[1]) + 0.25 * x[2],
        ordered=True,
        pool=False,
        labels=("average", "params", "params"),
    ),
    "interpolate": Case(
        of_list(lambda m, _: soups.interpolate(m[0], m[1], t=0.25)),
        number=2,
        oracle=lambda x: 0.75 * x[0] + 0.25 * x[1],
        ordered=True,
        average=True,
        pool=False,
        labels=("a", "b"),
    ),
    "emr": Case(
        of_list(lambda m, base: cast(soups.emr_restore(soups.emr(m, base=base), 1, base=base), m)),
        ordered=True,
        pool=False,
    ),
    "localize_dataless and stitch": Case(of_list(stitched), pool=False, labels=("member",) * 3),
    "greedy": Case(lambda m, base=BASE: soups.greedy(m, distance_to(0.6)).params, pure=False, average=True),
    "learned per model": Case(learned("model"), pure=False, average=True),
    "learned per leaf": Case(learned("leaf"), pure=False, average=True),
}
CASES = {name: case for method in DECLARED for name, case in cases_of(method)} | UNDECLARED
ONCE = [name for name in CASES if not name.endswith("other settings")]
CHANGED = [name for name in CASES if f"{name}, other settings" not in CASES]


def every(names=tuple(CASES), **wanted):
    """Parametrize by the cases for which this holds."""
    chosen = [n for n in names if all(getattr(CASES[n], key) == value for key, value in wanted.items())]
    return pytest.mark.parametrize("case", [CASES[name] for name in chosen], ids=chosen)


every_method = every([method.name for method in DECLARED])


def members_of(case, dtype=np.float32, first=1):
    return [member(seed, dtype) for seed in range(first, first + case.number)]


def named(members):
    return dict(zip(NAMES, members, strict=False))


def close(a, b, rtol=1e-5, atol=1e-6):
    # A program that is compiled otherwise adds up in another order. In float32 that is at most n · 2⁻²⁴ of the n sizes
    # that are added: 3e-6 for the 56 elements of a member. What is made of such sums are factors of well-conditioned
    # leaves, and five smooth steps where a method iterates.
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(leaves(a), leaves(b), strict=True):
        np.testing.assert_allclose(np.asarray(x, np.float64), np.asarray(y, np.float64), rtol=rtol, atol=atol)


def equal(a, b):
    assert [leaf.dtype for leaf in leaves(a)] == [leaf.dtype for leaf in leaves(b)]
    close(a, b, rtol=0, atol=0)


def to_jax(weights):
    return jax.tree.map(jnp.asarray, weights)
