"""State what is compared with sd-mecha, and how the two differ."""

import numpy as np
from peers.case import FLOAT32, LARGE, Case, Statistic, members, with_base

import soups

VERSION = "1.1.8"
REQUIREMENTS = ("torch==2.13.0", f"sd-mecha=={VERSION}")
DENSITY, EPSILON = 0.3, 0.1
KEEP = soups.trim(0.25, surplus=1)  # 0.25 divides the sizes of all leaves


# --- Ours ---


def _ties(family, names="abc", leaves=None, **settings):
    settings = {"sparsify": KEEP, "elect": True, "normalize": True, "scope": "leaf"} | settings
    return with_base(soups.combine_task_vectors, family, names, leaves, **settings)


def _slerp(family, t):
    return soups.nuslerp(members(family, "ab"), weights=[1 - t, t])


def _difference(models):
    a, b, c = (models["plain"][name] for name in "abc")
    return soups.tree.add_scaled(a, soups.tree.sub(b, c), 0.75)


def _dared(models):
    return with_base(soups.dare, models["large"], ["a"], density=DENSITY)["x"] / models["large"]["a"]["x"]


def _tenth(models, part):
    found = with_base(soups.della, models["large"], ["a"], density=DENSITY, epsilon=EPSILON, scale=1.0)["x"]
    vector = models["large"]["a"]["x"]
    order, count = np.argsort(np.abs(vector)), vector.size // 10
    return (found / vector)[order[:count] if part == "smallest" else order[-count:]]


# --- Ours, with what theirs does otherwise ---


def _slerp_of_lengths(family, t):
    lengths = {name: {leaf: np.linalg.norm(x) for leaf, x in family[name].items()} for name in "ab"}
    units = {name: {leaf: x / lengths[name][leaf] for leaf, x in family[name].items()} for name in "ab"}
    arc = _slerp(units, t)
    return {leaf: ((1 - t) * lengths["a"][leaf] + t * lengths["b"][leaf]) * x for leaf, x in arc.items()}


def _trimmed(family, names="abc"):
    """Return for each leaf the trimmed task vectors, stacked."""
    kept = [with_base(soups.combine_task_vectors, family, [name], sparsify=KEEP, scope="leaf") for name in names]
    return {leaf: np.stack([tree[leaf] - base for tree in kept]) for leaf, base in family["base"].items()}


def _elected(family, names):
    vectors = _trimmed(family, names)
    return {leaf: rows * (np.sign(rows) == np.sign(rows.sum(0))) for leaf, rows in vectors.items()}


def _ties_with_one_more(family):
    return {
        leaf: _ties(family, leaves=[leaf], sparsify=soups.trim(0.2, surplus=2 if base.size % 5 else 1))[leaf]
        for leaf, base in family["base"].items()
    }


def _ties_by_count(family):
    merged = {}
    for leaf, vectors in _trimmed(family).items():
        elected = np.sign(np.sign(vectors).sum(0))
        agree = (np.sign(vectors) == elected) & (elected != 0)
        merged[leaf] = family["base"][leaf] + (vectors * agree).sum(0) / np.maximum(agree.sum(0), 1)
    return merged


def _stock(family, names, pairs, vectors=None):
    """Return t of Model Stock for each row, from the cosines of some pairs."""
    factors = {}
    for leaf, base in family["base"].items():
        rows = vectors[leaf] if vectors else np.stack([family[name][leaf] - base for name in names])
        norms = np.linalg.norm(rows, axis=-1)
        cosine = np.mean(
            [(rows[i] * rows[j]).sum(-1) / np.maximum(norms[i] * norms[j], 1e-6) for i, j in pairs], axis=0
        )
        factors[leaf] = (len(names) * cosine / (1 + (len(names) - 1) * cosine))[..., None]
    return factors


def _model_stock_of_neighbours(family):
    factors, mean = _stock(family, "abc", [(0, 1), (1, 2)]), soups.uniform(members(family))
    return {leaf: base + factors[leaf] * (mean[leaf] - base) for leaf, base in family["base"].items()}


def _ties_with_stock(family):
    factors, merged = _stock(family, "ab", [(0, 1)], _elected(family, "ab")), _ties(family, "ab")
    return {leaf: base + factors[leaf] * (merged[leaf] - base) for leaf, base in family["base"].items()}


CASES = [
    Case("weighted sum", lambda m: soups.interpolate(m["plain"]["a"], m["plain"]["b"], t=0.25)),
    Case("n-average", lambda m: soups.uniform(members(m["plain"]))),
    Case("add difference", _difference),
    Case("SLERP, members of one length", lambda m: _slerp(m["equal"], 0.25)),
    Case("SLERP, halfway", lambda m: soups.multislerp(members(m["plain"], "ab"))),
    Case(
        "SLERP",
        lambda m: _slerp(m["plain"], 0.25),
        "theirs turns the directions and interpolates the lengths, ours is Shoemake's formula on the vectors as they "
        "are; halfway `multislerp` does as theirs",
        lambda m: _slerp_of_lengths(m["plain"], 0.25),
    ),
    Case("TIES, votes by sums", lambda m: _ties(m["plain"], scale=0.75), dtypes=FLOAT32),
    Case(
        "TIES, votes by sums, k n not whole",
        lambda m: _ties(m["plain"], sparsify=soups.trim(0.2, surplus=1)),
        "theirs keeps n − int((1 − k) n) + 1 elements of n, ours int(k n) + 1, as the paper's program",
        lambda m: _ties_with_one_more(m["plain"]),
        FLOAT32,
    ),
    Case(
        "TIES, votes by sums, exact ties",
        lambda m: _ties(m["tied"]),
        "where the sum is exactly zero theirs takes nothing, ours the sign of most elements, as the paper's program",
        lambda m: _ties(m["tied"]) | {"tied": m["tied"]["base"]["tied"]},
        FLOAT32,
    ),
    Case(
        "TIES",
        lambda m: _ties(m["plain"]),
        "theirs elects the sign that more members have (its default), ours that of the sum, as the paper",
        lambda m: _ties_by_count(m["plain"]),
        FLOAT32,
    ),
    Case("TIES with DARE, nothing dropped", lambda m: _ties(m["plain"]), dtypes=FLOAT32),
    Case(
        "TIES with DARE, nothing dropped, its default",
        lambda m: _ties(m["plain"], "ab"),
        "theirs multiplies by Model Stock's t unless `apply_stock` is set: the flag is the wrong way round",
        lambda m: _ties_with_stock(m["plain"]),
        FLOAT32,
    ),
    Case(
        "dropout, nothing dropped",
        lambda m: with_base(soups.combine_task_vectors, m["plain"], normalize=True, scale=0.5),
    ),
    Case("model stock, two members", lambda m: with_base(soups.model_stock, m["plain"], "ab", scope="row")),
    Case(
        "model stock, three members",
        lambda m: with_base(soups.model_stock, m["plain"], scope="row"),
        "theirs takes the cosines of neighbours alone, (a, b) and (b, c), ours of all pairs",
        lambda m: _model_stock_of_neighbours(m["plain"]),
    ),
    Case(
        "geometric median",
        lambda m: soups.geometric_median(members(m["plain"])),
        "theirs takes Weiszfeld's steps until the sum of distances stays the same in its dtype, ours Newton's",
    ),
]


def _of_share(share, number):
    return np.sqrt(share * (1 - share) / number)


SMALL, BIG = DENSITY - 0.9 * EPSILON, DENSITY + 0.9 * EPSILON  # what DELLA keeps of the outer tenths, on average
STATISTICS = [
    Statistic(
        "share of elements that DARE keeps", lambda m: np.mean(_dared(m) != 0), DENSITY, _of_share(DENSITY, LARGE)
    ),
    Statistic(
        "mean factor of an element in DARE", lambda m: np.mean(_dared(m)), 1.0, _of_share(DENSITY, LARGE) / DENSITY
    ),
    Statistic(
        "share of the smallest tenth that DELLA keeps",
        lambda m: np.mean(_tenth(m, "smallest") != 0),
        SMALL,
        _of_share(SMALL, LARGE // 10),
    ),
    Statistic(
        "share of the largest tenth that DELLA keeps",
        lambda m: np.mean(_tenth(m, "largest") != 0),
        BIG,
        _of_share(BIG, LARGE // 10),
    ),
    Statistic(
        "mean factor of the smallest tenth in DELLA",
        lambda m: np.mean(_tenth(m, "smallest")),
        1.0,
        _of_share(SMALL, LARGE // 10) / SMALL,
        theirs=SMALL / DENSITY,
        why="ours divides each element by its own probability, as published, theirs all by the density",
    ),
]
