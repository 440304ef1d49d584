"""State what is compared with a peer, and make the random models that both sides get."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

MEMBERS = ("a", "b", "c")
SHAPES = {"dense": (24, 16), "wide": (12, 40), "conv": (8, 3, 3, 3), "bias": (24,)}
INPUTS, WIDTHS, CLASSES, EXAMPLES = 9, (12, 10), 5, 64
FLOAT32 = ("float32",)
LARGE = 2**18  # elements of a tensor for random methods


@dataclasses.dataclass(frozen=True)
class Case:
    """Hold one comparison.

    Attributes:
        name: the key of the peer's side too.
        ours: from the models to a nested dict of arrays.
        why: why the two differ; without it they must be equal up to rounding.
        changed: ours with that difference put in, which must be equal up to rounding: the proof of `why`.
        dtypes: of the models. The last decides, for in float64 what is left cannot be rounding; it is float32 where
            either side computes a part in float32 whatever it gets.
    """

    name: str
    ours: Callable[[dict], dict]
    why: str = ""
    changed: Callable[[dict], dict] | None = None
    dtypes: tuple[str, ...] = ("float32", "float64")


@dataclasses.dataclass(frozen=True)
class Statistic:
    """Hold a mean over random elements, which both sides must meet; the peer's side gives {"value": mean}.

    Attributes:
        name: the key of the peer's side too.
        ours: from the models to the mean.
        expected: what it should be.
        deviation: the standard deviation of the mean.
        theirs: what the peer's should be, where it differs, and `why`.
    """

    name: str
    ours: Callable[[dict], Any]
    expected: float
    deviation: float
    theirs: float | None = None
    why: str = ""


def members(family: dict, names=MEMBERS, leaves=None) -> dict:
    """Return some members, or some leaves of them."""
    return {name: {leaf: x for leaf, x in family[name].items() if leaf in (leaves or family[name])} for name in names}


def with_base(merge: Callable, family: dict, names=MEMBERS, leaves=None, **settings) -> dict:
    """Merge some members of a family with its base."""
    base = members(family, ["base"], leaves)["base"]
    return merge(members(family, names, leaves), base=base, **settings)


def make_models(dtype: str) -> dict:
    """Draw the models: leaves of mixed shapes, with ties, nearly parallel, of one length, large, and a small MLP."""
    rng = np.random.default_rng(0)
    plain = _family(rng, {name: rng.normal(size=shape) for name, shape in SHAPES.items()})
    cancel = {"base": np.zeros(8), "a": np.full(8, 0.5), "b": np.full(8, -0.5), "c": np.zeros(8)}
    noise = {name: rng.normal(size=shape) for name, shape in SHAPES.items()}
    large = rng.normal(size=LARGE)
    models = {
        "plain": plain,
        "tied": {name: tree | {"tied": cancel[name]} for name, tree in plain.items()},
        "near": {"a": plain["a"], "b": {name: plain["a"][name] + 0.01 * noise[name] for name in SHAPES}},
        "equal": {name: {leaf: x / np.linalg.norm(x) for leaf, x in plain[name].items()} for name in MEMBERS},
        "large": {"base": {"x": np.zeros_like(large)}, "a": {"x": large}},
        "net": _nets(rng),
        "inputs": {name: {"x": rng.normal(size=(EXAMPLES, INPUTS))} for name in MEMBERS},
    }
    models["fishers"] = {
        name: {leaf: rng.gamma(0.3, 1e-2, shape) for leaf, shape in SHAPES.items()} for name in MEMBERS
    }
    models["grams"] = {name: _grams(rng) for name in MEMBERS}
    return _cast(models, np.dtype(dtype))


def _family(rng, base):
    shared = {name: rng.normal(size=leaf.shape) for name, leaf in base.items()}
    moved = {
        member: {name: leaf + 0.1 * (shared[name] + rng.normal(size=leaf.shape)) for name, leaf in base.items()}
        for member in MEMBERS
    }
    return {"base": base, **moved}


def _nets(rng):
    names, sizes = [*(f"layer_{i}" for i in range(len(WIDTHS))), "head"], [INPUTS, *WIDTHS, CLASSES]
    flat = {}
    for name, rows, columns in zip(names, sizes[:-1], sizes[1:], strict=True):
        flat[f"{name}/kernel"] = rng.normal(size=(rows, columns)) / np.sqrt(rows)
        flat[f"{name}/bias"] = 0.1 * rng.normal(size=columns)
    nets = {}
    for member, tree in _family(rng, flat).items():
        nets[member] = {name: {kind: tree[f"{name}/{kind}"] for kind in ("kernel", "bias")} for name in names}
    return nets


def _grams(rng):
    grams = {}
    for name in ("dense", "wide"):  # kernels [in, out] on our side
        rows = rng.normal(size=(100, SHAPES[name][0]))
        grams[name] = rows.T @ rows / len(rows)
    return grams


def _cast(nested, dtype):
    return {key: _cast(x, dtype) if isinstance(x, dict) else np.asarray(x, dtype) for key, x in nested.items()}
