"""State what is compared with fusion-bench, and how the two differ."""

import numpy as np
from peers.case import CLASSES, FLOAT32, LARGE, MEMBERS, WIDTHS, Case, Statistic, members, with_base

import soups
from soups.models import MLP, apply_fn, gram_fn

VERSION = "0.2.33"
REQUIREMENTS = ("torch==2.13.0", f"fusion-bench=={VERSION}")
MODEL = MLP(CLASSES, WIDTHS)
BATCH, DENSITY = 16, 0.3
WEIGHTS = np.array([0.5, 0.3, 0.4])
FLAT, MATRICES = ["dense", "wide", "bias"], "dense|wide"
MIXED = [*FLAT, "conv"]


# --- Ours ---


def _emr(family, leaves, **changed):
    merged = with_base(soups.emr, family, leaves=leaves)._replace(**changed)
    base = members(family, ["base"], leaves)["base"]
    return {name: soups.emr_restore(merged, name, base=base) for name in MEMBERS}


def _tall_masks(family):
    return soups.tall_masks(members(family), base=family["base"], threshold=0.4)


def _with_masks(family, masks):
    """Return θ_base + m_i ⊙ Σ_j τ_j for each member."""
    total = {leaf: sum(family[name][leaf] - base for name in MEMBERS) for leaf, base in family["base"].items()}
    return {
        name: {leaf: base + mask[leaf] * total[leaf] for leaf, base in family["base"].items()}
        for name, mask in masks.items()
    }


def _as_vectors(family, masks):
    joined = {name: [np.ravel(mask[leaf]) for leaf in family["base"]] for name, mask in masks.items()}
    return {name: {"mask": np.concatenate(mask).astype(np.int8)} for name, mask in joined.items()}


def _fishers(models, **settings):
    apply, nets = apply_fn(MODEL), models["net"]
    return {
        name: soups.fisher_information(apply, nets[name], models["inputs"][name]["x"], **settings) for name in MEMBERS
    }


def _batches(models, name):
    inputs = models["inputs"][name]["x"]
    return [inputs[start : start + BATCH] for start in range(0, len(inputs), BATCH)]


def _grams_of(models):
    grams = gram_fn(MODEL, train=False)
    return {name: lambda params, name=name: grams(params, _batches(models, name)) for name in MEMBERS}


def _regmean(models):
    nets = members(models["net"])
    grams = {name: measure(nets[name]) for name, measure in _grams_of(models).items()}
    return soups.regmean(nets, grams, alpha=0.75)


def _regmean_pp(models):
    groups = ["layer_0/.*", "layer_1/.*", "head/.*"]
    return soups.regmean_pp(members(models["net"]), _grams_of(models), groups=groups, alpha=0.75)


def _adamerging(models, **settings):
    settings |= {"batches": {name: _batches(models, name) for name in MEMBERS}, "steps": 20, "learning_rate": 1e-2}
    return with_base(soups.adamerging, models["net"], apply_fn=apply_fn(MODEL), **settings).params


def _dared(models):
    return with_base(soups.dare, models["large"], ["a"], density=DENSITY)["x"] / models["large"]["a"]["x"]


# --- Ours, with what theirs does otherwise ---


def _fisher_with_sum(values, fishers, normalize=False):
    norms = {name: soups.tree.norm(fisher) + np.float32(1e-6) for name, fisher in fishers.items()}
    weights = {name: 1 / norm for name, norm in norms.items()} if normalize else 1.0
    return soups.fisher(members(values), _plus(fishers, 1e-6), weights=weights)


def _plus(nested, number):
    return {key: _plus(x, number) if isinstance(x, dict) else x + x.dtype.type(number) for key, x in nested.items()}


def _emr_of_means(family):
    merged = with_base(soups.emr, family, leaves=MIXED)
    rescalers = {}
    for name in MEMBERS:
        vectors = {leaf: family[name][leaf] - family["base"][leaf] for leaf in MIXED}
        kept = [np.abs(merged.unified[leaf] * merged.masks[name][leaf]).mean() for leaf in MIXED]
        rescalers[name] = sum(np.abs(vector).mean() for vector in vectors.values()) / sum(kept)
    return _emr(family, MIXED, rescalers=rescalers)


def _tall_masks_by(family, distance):
    """Compare the distance with that of each task vector to their sum."""
    vectors = {name: {leaf: family[name][leaf] - base for leaf, base in family["base"].items()} for name in MEMBERS}
    masks = {}
    for name, vector in vectors.items():
        rest = {leaf: 0.4 * abs(sum(v[leaf] for v in vectors.values()) - vector[leaf]) for leaf in vector}
        masks[name] = {leaf: distance(vector[leaf], family["base"][leaf]) > rest[leaf] for leaf in vector}
    return masks


def _model_stock_of_mean_angle(family):
    mean, merged = soups.uniform(members(family)), {}
    for leaf, base in family["base"].items():
        vectors = [np.ravel(family[name][leaf] - base).astype(np.float64) for name in MEMBERS]
        units = np.stack([vector / np.linalg.norm(vector) for vector in vectors])
        cosine = np.cos(np.arccos((units @ units.T)[np.triu_indices(3, 1)]).mean())
        merged[leaf] = base + 3 * cosine / (1 + 2 * cosine) * (mean[leaf] - base)
    return merged


CASES = [
    Case("simple average", lambda m: soups.uniform(members(m["plain"]))),
    Case("weighted average", lambda m: soups.weighted(members(m["plain"]), WEIGHTS)),
    Case("weighted average, normalized", lambda m: soups.weighted(members(m["plain"]), WEIGHTS / WEIGHTS.sum())),
    Case("linear interpolation", lambda m: soups.interpolate(m["plain"]["a"], m["plain"]["b"], t=0.3)),
    Case(
        "linear interpolation, their class",
        lambda m: soups.interpolate(m["plain"]["a"], m["plain"]["b"], t=0.3),
        "theirs always fails: it asks whether the list of names is the number 2",
    ),
    Case("ExPO", lambda m: soups.interpolate(m["plain"]["base"], m["plain"]["a"], t=1.3)),
    Case("task arithmetic", lambda m: with_base(soups.task_arithmetic, m["plain"], scale=0.3)),
    Case("TIES, sum", lambda m: with_base(soups.ties, m["tied"], density=0.2, scale=0.3, normalize=False)),
    Case("TIES, mean", lambda m: with_base(soups.ties, m["tied"], density=0.2)),
    Case("DARE, nothing dropped", lambda m: with_base(soups.dare, m["plain"], density=1.0, scale=0.3)),
    Case("DARE and TIES, nothing dropped", lambda m: with_base(soups.ties, m["plain"], density=0.2)),
    Case("SLERP", lambda m: soups.nuslerp(members(m["plain"], "ab"), weights=[0.7, 0.3])),
    Case(
        "SLERP, nearly parallel",
        lambda m: soups.nuslerp(members(m["near"], "ab"), weights=[0.7, 0.3]),
        "theirs is straight where abs(cos Ω) > 0.9995, ours where sin² Ω vanishes; `slerp` in a recipe file does as "
        "theirs",
        lambda m: soups.slerp(m["near"]["b"], base=m["near"]["a"], t=0.3, parallel=0.9995),
    ),
    Case("model stock, two members", lambda m: with_base(soups.model_stock, m["plain"], "ab"), dtypes=FLOAT32),
    Case(
        "model stock, three members",
        lambda m: with_base(soups.model_stock, m["plain"]),
        "theirs takes the cosine of the mean angle, ours the mean cosine; the paper has one angle for all pairs",
        lambda m: _model_stock_of_mean_angle(m["plain"]),
        FLOAT32,
    ),
    Case("MagMax", lambda m: with_base(soups.magmax, m["tied"], scale=0.5)),
    Case("EMR, one tensor", lambda m: _emr(m["plain"], ["dense"]), dtypes=FLOAT32),
    Case(
        "EMR",
        lambda m: _emr(m["plain"], MIXED),
        "theirs rescales by the means of the tensors, added up whatever their sizes; ours by sums over all elements",
        lambda m: _emr_of_means(m["plain"]),
        FLOAT32,
    ),
    Case("TALL masks", lambda m: _as_vectors(m["plain"], _tall_masks(m["plain"]))),
    Case(
        "TALL masks, elements that no member moves",
        lambda m: _as_vectors(m["tied"], _tall_masks(m["tied"])),
        "theirs compares by >, ours by ≥; τ_i = τ = 0 there, so the weights are the same",
        lambda m: _as_vectors(m["tied"], _tall_masks_by(m["tied"], lambda vector, base: abs(vector))),
    ),
    Case(
        "TALL masks, their class",
        lambda m: _with_masks(m["plain"], _tall_masks(m["plain"])),
        "theirs always fails: it adds tensors to parameters, which its check of types refuses",
    ),
    Case(
        "TALL masks, as their class makes them",
        lambda m: _with_masks(m["plain"], _tall_masks(m["plain"])),
        "theirs takes abs(θ_base − τ_i) for abs(τ_i), a task vector for weights, which its utilities above do not",
        lambda m: _with_masks(m["plain"], _tall_masks_by(m["plain"], lambda vector, base: abs(base - vector))),
    ),
    Case("TSV-Merge", lambda m: with_base(soups.tsv_merge, m["plain"], leaves=FLAT)),
    Case(
        "TSV-Merge, with a convolution",
        lambda m: with_base(soups.tsv_merge, m["plain"], leaves=MIXED),
        "theirs averages kernels of more than two axes, ours takes them as matrices, but for `only`",
        lambda m: with_base(soups.tsv_merge, m["plain"], leaves=MIXED, only=MATRICES),
    ),
    Case("Iso-C", lambda m: with_base(soups.iso_c, m["plain"], leaves=FLAT, scale=0.7)),
    Case(
        "Iso-C, with a convolution",
        lambda m: with_base(soups.iso_c, m["plain"], leaves=MIXED, scale=0.7),
        "as TSV-Merge",
        lambda m: with_base(soups.iso_c, m["plain"], leaves=MIXED, scale=0.7, only=MATRICES),
    ),
    Case("WUDI", lambda m: with_base(soups.wudi, m["plain"], leaves=FLAT, inputs="last")),
    Case(
        "Fisher, diagonals given",
        lambda m: soups.fisher(members(m["plain"]), m["fishers"]),
        "theirs adds 1e-6 to F, ours takes max(F, 1e-6), as the program of the paper",
        lambda m: _fisher_with_sum(m["plain"], m["fishers"]),
    ),
    Case(
        "Fisher, diagonals given, normalized",
        lambda m: soups.fisher(members(m["plain"]), m["fishers"], normalize=True),
        "as before; theirs also adds 1e-6 to the norm",
        lambda m: _fisher_with_sum(m["plain"], m["fishers"], normalize=True),
    ),
    Case(
        "Fisher, measured",
        lambda m: soups.fisher(members(m["net"]), _fishers(m), normalize=True),
        'theirs squares the gradients of a batch and of all classes after adding them, as estimator="batch" of ours, '
        "which is no Fisher diagonal; and the floor",
        lambda m: _fisher_with_sum(m["net"], _fishers(m, estimator="batch", batch_size=BATCH), normalize=True),
        FLOAT32,
    ),
    Case(
        "RegMean, Gram matrices given",
        lambda m: soups.regmean(members(m["plain"], leaves=m["grams"]["a"]), m["grams"], alpha=0.75),
    ),
    Case("RegMean, measured", _regmean, dtypes=FLOAT32),
    Case("RegMean++, measured", _regmean_pp, dtypes=FLOAT32),
    Case("AdaMerging, task-wise", lambda m: _adamerging(m, clip=False), dtypes=FLOAT32),
    Case("AdaMerging, task-wise, clamped", lambda m: _adamerging(m), dtypes=FLOAT32),
    Case("AdaMerging, layer-wise", lambda m: _adamerging(m, clip=False, per="leaf"), dtypes=FLOAT32),
]
STATISTICS = [
    Statistic(
        "share of elements that DARE keeps",
        lambda m: np.mean(_dared(m) != 0),
        DENSITY,
        np.sqrt(DENSITY * (1 - DENSITY) / LARGE),
    ),
    Statistic(
        "mean factor of an element in DARE",
        lambda m: np.mean(_dared(m)),
        1.0,
        np.sqrt((1 / DENSITY - 1) / LARGE),
    ),
]
