"""Test every method of mergekit's vocabulary end to end, from files to files, against NumPy in float64."""

import itertools

import numpy as np
import pytest

from soups import merging
from soups.engine import Part
from soups.merging.methods import methods_of
from soups.recipes import _random

WEIGHTS = {"a": 1.0, "b": -0.5, "c": 0.75}
DENSITIES = {"a": 0.6, "b": 0.3, "c": 1.0}


# --- As mergekit does them: per tensor, weights before the election, L1 norms restored ---


def magnitude(tau, density, **_):
    kept = np.zeros(tau.size, bool)
    kept[np.argsort(-np.abs(tau).ravel())[: max(1, int(density * tau.size))]] = True
    return kept.reshape(tau.shape)


def crumbs(tau, density, gamma, **_):
    size, target, top = tau.size, int(density * tau.size), int(gamma * tau.size)
    bottom = max(0, size - target - top)
    kept = np.zeros(size, bool)
    kept[np.argsort(np.abs(tau).ravel())[bottom : bottom + target]] = True
    return kept.reshape(tau.shape)


def whole(name, index, tau):
    """Return the part that the random numbers of one tensor are drawn for."""
    return Part(name, [np.asarray(tau, np.float32)] * (index + 1))


def below(tau, *probabilities, name, index, seed, stream):
    part, shape = whole(name, index, tau), tau.shape or (1,)
    return [mask.reshape(tau.shape) for mask in _random.below(probabilities, seed, f"{stream}/{index}", part, shape)]


def bernoulli(tau, density, **drawn):
    return below(tau, density, stream="drop", **drawn)[0]


def by_rank(tau, density, epsilon, name, index, seed):
    """Keep surely below density - ε; up to density + ε what ranks above another element of its row, that is drawn."""
    rows = np.abs(tau).reshape(-1, tau.shape[-1] if tau.ndim else 1)
    number, drawn = rows.shape[1], {"name": name, "index": index, "seed": seed, "stream": "magprune"}
    if number == 1:
        return below(tau, density, **drawn)[0]
    kept, possible = (mask.reshape(rows.shape) for mask in below(tau, density - epsilon, density + epsilon, **drawn))
    part = whole(name, index, tau)
    steps = _random.further_bits(seed, f"magprune/{index}/other", part, np.arange(tau.size)).reshape(rows.shape)
    ranks = np.argsort(np.argsort(rows, axis=1, kind="stable"), axis=1)
    for row, column in np.argwhere(possible & ~kept):
        other = (column + 1 + int(steps[row, column] * np.float32(number - 1))) % number
        kept[row, column] = ranks[row, column] > ranks[row, other]
    return kept.reshape(tau.shape)


def task_vector_oracle(trees, name, mask, *, elect, normalize, rescale, scale, densities, **settings):
    base = trees["base"][name].astype(np.float64)
    vectors, weights = [], []
    for index, (member, density) in enumerate(densities.items()):
        # the order of magnitudes is that of float32
        tau = (trees[member][name] - trees["base"][name]).astype(np.float64)
        if density < 1 and mask:
            kept = tau * mask(tau, density=density, name=name, index=index, **settings)
            before, after = np.abs(tau).sum(), np.abs(kept).sum()
            tau = kept * before / after if rescale and before >= 1e-7 and after >= 1e-7 else kept
        vectors.append(tau)
        weights.append(WEIGHTS[member])
    result = np.zeros_like(base)
    for place in np.ndindex(base.shape):
        here = [(w * v[place], w) for w, v in zip(weights, vectors, strict=True)]
        positive = sum(x for x, _ in here) >= 0
        if elect:
            here = [(x, w) for x, w in here if x != 0 and (x > 0) == positive]
        divisor = sum(w for _, w in here) if normalize else 1.0
        result[place] = base[place] + scale * sum(x for x, _ in here) / (1.0 if abs(divisor) < 1e-8 else divisor)
    return result


NAMED = {  # mask, elect, normalize, rescale by default
    "task_arithmetic": (None, False, False, False),
    "ties": (magnitude, True, True, False),
    "dare_linear": (bernoulli, False, False, True),
    "dare_ties": (bernoulli, True, False, True),
    "breadcrumbs": (crumbs, False, False, False),
    "breadcrumbs_ties": (crumbs, True, False, False),
    "della": (by_rank, True, True, True),
    "della_linear": (by_rank, False, False, True),
}


@pytest.mark.parametrize("given", [False, True], ids=["defaults", "settings"])
@pytest.mark.parametrize("method", NAMED)
def test_methods_of_task_vectors(small, run, trees, method, given):
    mask, elect, normalize, rescale = NAMED[method]
    densities = DENSITIES if mask is not by_rank else {"a": 0.6, "b": 0.35, "c": 1.0}
    settings = {"epsilon": 0.15} if mask is by_rank else {"gamma": 0.01} if mask is crumbs else {}
    parameters, own, scale = {}, {}, 1.0
    if given:
        normalize, rescale, scale, seed = not normalize, not rescale, 0.5, 11
        settings = {"epsilon": 0.3} if mask is by_rank else {"gamma": 0.2} if mask is crumbs else {}
        parameters = {"normalize": normalize, "rescale": rescale, "lambda": 0.5, "seed": seed}
        own = {name: dict.fromkeys("abc", value) for name, value in settings.items()}
    merged = run(method, weight=WEIGHTS, density=densities, parameters=parameters, **own)
    assert set(merged) == set(trees["base"])
    settings |= {"elect": elect, "normalize": normalize, "rescale": rescale, "scale": scale, "seed": 11 if given else 0}
    for name in merged:
        small.near(merged[name], task_vector_oracle(trees, name, mask, densities=densities, **settings))


@pytest.mark.parametrize(("density", "gamma"), [(0.9, 0.3), (1 / 3, 0.8)])
def test_breadcrumbs_whose_fractions_are_more_than_one_keep_the_smaller_ones(small, run, trees, density, gamma):
    densities = dict.fromkeys("abc", density)
    merged = run("breadcrumbs", weight=WEIGHTS, density=densities, gamma=dict.fromkeys("abc", gamma))
    settings = {"elect": False, "normalize": False, "rescale": False, "scale": 1.0, "gamma": gamma}
    for name in merged:
        small.near(merged[name], task_vector_oracle(trees, name, crumbs, densities=densities, **settings))


def test_a_density_of_zero_leaves_the_member_out(small, run, trees):
    merged = run("ties", "ab", weight=WEIGHTS, density={"a": 0, "b": 1})
    for name in merged:
        small.near(merged[name], trees["b"][name])  # normalized by its own weight alone


def test_a_density_has_no_effect_where_nothing_is_sparsified(small, run, trees):
    merged = run("task_arithmetic", "ab", weight=WEIGHTS, density={"a": 0, "b": 0.5})
    for name, base in trees["base"].items():
        small.near(merged[name], base + sum(WEIGHTS[member] * (trees[member][name] - base) for member in "ab"))


def test_a_sum_of_zero_elects_the_positive_sign(small, tmp_path):
    # by the majority of the elements it would be negative
    for name, values in {"base": [0, 0, 0], "a": [1, -3, -1], "b": [-1, 3, -1]}.items():
        small.write_model(tmp_path / name, {"x": np.asarray(values, np.float32)})
    members = [{"model": tmp_path / name, "parameters": {"weight": 1}} for name in "ab"]
    merged = small.merge({"merge_method": "ties", "base_model": tmp_path / "base", "models": members}, tmp_path / "out")
    np.testing.assert_array_equal(merged["x"], [1, 3, -1])


def unit(x):
    return x / np.linalg.norm(x)


def arc(a, b, t, parallel=1.0):
    cosine = float(np.sum(unit(a) * unit(b)))
    if abs(cosine) > parallel or a.size == 1:
        return (1 - t) * a + t * b
    omega = np.arccos(cosine)
    return (np.sin((1 - t) * omega) * a + np.sin(t * omega) * b) / np.sin(omega)


def oracle_linear(base, members, normalize=True):
    total = sum(WEIGHTS.values()) if normalize else 1.0
    return sum(w * x for w, x in zip(WEIGHTS.values(), members, strict=True)) / total


def oracle_multislerp(base, members, weights, normalize=True, eps=1e-8):
    """Follow the tangents at the mean direction; they cancel, up to rounding."""
    total = sum(weights)
    share = [w / total if normalize else w for w in weights]
    vectors = [x - base for x in members]
    units = [v / (np.linalg.norm(v) + eps) for v in vectors]
    mean = unit(sum(w * u for w, u in zip(share, units, strict=True)))
    tangent = sum(w * (u - np.sum(u * mean) * mean) for w, u in zip(share, units, strict=True))
    length = np.linalg.norm(tangent) + eps
    point = mean * np.cos(length) + tangent * np.sin(length) / length
    return base + point * sum(w * np.linalg.norm(v) for w, v in zip(share, vectors, strict=True))


def oracle_karcher(base, members, iterations=10, tol=1e-5):
    long = [x for x in members if np.linalg.norm(x) > tol]
    if not long:
        return np.zeros_like(members[0])
    units = [unit(x) for x in long]
    mean = sum(units) / len(units)
    mean = units[0] if np.linalg.norm(mean) < tol else unit(mean)
    for _ in range(iterations):
        tangent = np.zeros_like(mean)
        for u in units:
            cosine = np.clip(np.sum(u * mean), -1, 1)
            angle = np.arccos(cosine)
            if angle >= tol:
                tangent += angle / np.sin(angle) * (u - cosine * mean) / len(units)
        length = np.linalg.norm(tangent)
        if length < tol:
            break
        mean = unit(np.cos(length) * mean + np.sin(length) * tangent / length)
    return mean * np.mean([np.linalg.norm(x) for x in members])


def by_filter(oracle):
    """Apply an oracle to each row along the last axis, a vector being one."""

    def rows(x):
        return x.reshape(-1, x.shape[-1] if x.ndim else 1)

    def apply(base, members):
        each = zip(rows(base), zip(*map(rows, members), strict=True), strict=True)
        return np.array([oracle(start, list(ends)) for start, ends in each]).reshape(base.shape)

    return apply


def by_column(oracle):
    """Apply an oracle to each column along the first axis."""
    rows = by_filter(oracle)
    return lambda base, members: rows(base.T, [x.T for x in members]).T


def oracle_model_stock(base, members):
    vectors = [x - base for x in members]
    pairs = list(itertools.combinations(vectors, 2))
    cosine = np.mean([np.sum(unit(a) * unit(b)) for a, b in pairs])
    number, divisor = len(members), 1 + (len(members) - 1) * cosine
    t = number * cosine / divisor if abs(divisor) >= 1e-6 else 0.0
    return t * np.mean(members, axis=0) + (1 - t) * base


def oracle_sce(base, members, topk=1.0):
    vectors = np.array([x - base for x in members])
    if topk < 1:
        variance = vectors.var(axis=0)
        kept = np.zeros(variance.size, bool)
        kept[np.argsort(-variance.ravel())[: int(np.count_nonzero(variance) * topk)]] = True
        vectors = vectors * kept.reshape(base.shape)
    energy = np.array([np.mean(v**2) for v in vectors])
    share = energy / energy.sum() if energy.sum() >= 1e-6 else np.full(len(vectors), 1 / len(vectors))
    sign = np.where(vectors.sum(axis=0) >= 0, 1, -1)
    weight = share.reshape(-1, *[1] * base.ndim) * (np.sign(vectors) == sign)
    return base + (weight * vectors).sum(axis=0) / np.maximum(weight.sum(axis=0), 1e-6)


def oracle_arcee(base, member):
    rows = [x.reshape(-1, x.shape[-1] if x.ndim else 1) for x in (member, base)]
    p, q = (np.exp(x) / np.exp(x).sum(axis=1, keepdims=True) + 1e-8 for x in rows)
    importance = (np.abs(rows[0] - rows[1]) * (p * np.log(p / q)).sum(axis=1, keepdims=True)).reshape(base.shape)
    ordered = np.sort(importance.ravel())
    low, middle, high = (ordered[int(f * (base.size - 1))] for f in (0.25, 0.5, 0.75))
    return np.where(importance >= middle + 1.5 * (high - low), member, base)


def oracle_ram(base, members, epsilon, r=0.0, alpha=0.0):
    vectors = [x - base for x in members]
    active = [np.abs(v) > epsilon for v in vectors]
    count = sum(a.astype(int) for a in active)
    total = np.zeros_like(base)
    for vector, on in zip(vectors, active, strict=True):
        shared, alone = np.sum(on & (count > 1)), np.sum(on & (count == 1))
        factor = 1 + r * np.clip(shared / max(alone, epsilon), 0, alpha)
        total += on * vector * np.where(count == 1, factor, 1.0)
    return base + total / np.maximum(count, 1)


OTHERS = {
    "linear": (dict(base=None, weight=WEIGHTS), oracle_linear),
    "linear, not normalized": (
        dict(base=None, weight=WEIGHTS, parameters={"normalize": False}),
        lambda base, members: oracle_linear(base, members, normalize=False),
    ),
    "slerp": (dict(members=["base", "a"], parameters={"t": 0.3}), lambda base, m: arc(base, m[-1], 0.3, 0.9995)),
    "nuslerp": (
        dict(members="ac", base=None, weight=WEIGHTS),
        lambda base, m: arc(m[0], m[1], 0.75 / 1.75),
    ),
    "nuslerp, with a base": (
        dict(members="ac", weight=WEIGHTS),
        lambda base, m: base + arc(m[0] - base, m[1] - base, 0.75 / 1.75),
    ),
    "multislerp": (
        dict(members="ac", weight=WEIGHTS),
        lambda base, m: oracle_multislerp(base, m, [1.0, 0.75]),
    ),
    "multislerp, without a base": (
        dict(members="ac", base=None, weight=WEIGHTS),
        lambda base, m: oracle_multislerp(0 * base, m, [1.0, 0.75]),
    ),
    "multislerp, not normalized": (
        dict(members="ac", weight=WEIGHTS, parameters={"normalize_weights": False}),
        lambda base, m: oracle_multislerp(base, m, [1.0, 0.75], normalize=False),
    ),
    "karcher": (dict(base=None), oracle_karcher),
    "karcher, one step": (
        dict(base=None, parameters={"max_iter": 1}),
        lambda base, members: oracle_karcher(base, members, 1),
    ),
    "karcher, short vectors left out": (
        dict(base=None, parameters={"tol": 2.3}),  # of tensors that all are shorter nothing is left
        lambda base, members: oracle_karcher(base, members, tol=2.3),
    ),
    "multislerp, eps": (
        dict(members="ac", weight=WEIGHTS, parameters={"eps": 0.1}),
        lambda base, m: oracle_multislerp(base, m, [1.0, 0.75], eps=0.1),
    ),
    "nuslerp, row-wise is of no account while all is flat": (
        dict(members="ac", weight=WEIGHTS, base=None, parameters={"nuslerp_row_wise": True}),
        lambda base, m: arc(m[0], m[1], 0.75 / 1.75),
    ),
    "nuslerp, along the last axis": (
        dict(members="ac", weight=WEIGHTS, base=None, parameters={"nuslerp_flatten": False}),
        lambda base, m: by_filter(lambda _, x: arc(x[0], x[1], 0.75 / 1.75))(base, m),
    ),
    "nuslerp, along the first axis": (
        dict(members="ac", weight=WEIGHTS, parameters={"nuslerp_flatten": False, "nuslerp_row_wise": True}),
        by_column(lambda start, x: start + arc(x[0] - start, x[1] - start, 0.75 / 1.75)),
    ),
    "model_stock": (dict(), oracle_model_stock),
    "model_stock, by filter": (dict(parameters={"filter_wise": True}), by_filter(oracle_model_stock)),
    "sce": (dict(), oracle_sce),
    "sce, selecting": (dict(parameters={"select_topk": 0.4}), lambda base, m: oracle_sce(base, m, 0.4)),
    "nearswap": (
        dict(members="a", parameters={"t": 0.1}),
        lambda base, m: base + np.clip(0.1 / np.maximum(np.abs(m[0] - base), 1e-6), 0, 1) * (m[0] - base),
    ),
    "arcee_fusion": (dict(members="a"), lambda base, m: oracle_arcee(base, m[0])),
    "ram": (dict(parameters={"epsilon": 0.2}), lambda base, m: oracle_ram(base, m, 0.2)),
    "ramplus_tl": (
        dict(parameters={"epsilon": 0.2, "r": 0.5, "alpha": 0.3}),
        lambda base, m: oracle_ram(base, m, 0.2, 0.5, 0.3),
    ),
    "passthrough": (dict(members="a", base=None, scale={"a": 0.5}), lambda base, m: 0.5 * m[0]),
}


def test_every_method_of_mergekit_is_tested():
    assert {name.split(",")[0] for name in OTHERS} | set(NAMED) == set(merging.methods_of("mergekit"))


@pytest.mark.parametrize("case", OTHERS)
def test_other_methods(small, run, trees, case):
    options, oracle = OTHERS[case]
    members = options.get("members", "abc")
    if case == "slerp":
        members = ["base", "a"]
    merged = run(case.split(",")[0], **options)
    assert set(merged) == set(trees["base"])
    for name in merged:
        wide = [trees[x][name].astype(np.float64) for x in members]
        small.near(merged[name], oracle(trees["base"][name].astype(np.float64), wide))


# --- Mistakes ---


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("ties", dict(vocabulary="published", density={"a": 1.5, "b": 1, "c": 1}), r"density must be in \(0, 1\]"),
        (
            "ties",
            dict(vocabulary="published", parameters={"scope": "leav"}),
            "unknown scope 'leav'",
        ),
        ("linear", dict(weight={"a": 1, "b": -0.5, "c": -0.5}, base=None), "weights that sum to zero cannot be"),
        ("della", dict(weight=WEIGHTS, density=dict.fromkeys("abc", 0.9)), r"density ± epsilon must lie in \(0, 1\]"),
        (
            "breadcrumbs",
            dict(weight=WEIGHTS, density=dict.fromkeys("abc", 0.9), gamma=dict.fromkeys("abc", 1.0)),
            r"gamma must be in \[0, 1\), not 1.0",
        ),
        ("sce", dict(parameters={"select_topk": 0.0}), r"select_topk must be in \(0, 1\]"),
        ("nearswap", dict(members="a", parameters={"t": -1.0}), "t must be at least 0"),
    ],
)
def test_settings_that_cannot_be_are_errors_before_any_output(run, tmp_path, method, options, message):
    with pytest.raises(ValueError, match=message):
        run(method, **options)
    assert not list(tmp_path.iterdir())


def test_multislerp_takes_two_whose_directions_cancel_for_a_line(small, tmp_path):
    values = {"a": [3.0, 4.0], "b": [-6.0, -8.0], "c": [0.0, 0.0]}
    for name, value in values.items():
        small.write_model(tmp_path / name, {"x": np.asarray(value, np.float32)})

    def multislerp(members, out):
        entries = [{"model": tmp_path / name, "parameters": {"weight": 1}} for name in members]
        return small.merge({"merge_method": "multislerp", "models": entries}, tmp_path / out)["x"]

    np.testing.assert_allclose(multislerp("ab", "out"), [-1.5, -2.0], rtol=1e-6)
    with pytest.raises(ValueError, match="the members' directions cancel"):
        multislerp("abc", "never")


def test_int8_mask_is_known_to_have_no_effect():
    taking = [method for method in merging.methods_of("mergekit").values() if "int8_mask" in method.of_merge]
    assert len(taking) == 9 and all(method.idle.keys() == {"int8_mask"} for method in taking)


def test_summaries_say_what_a_method_does_not_what_a_function_returns():
    for vocabulary in ("published", "mergekit"):
        assert not [n for n, found in methods_of(vocabulary).items() if found.summary.startswith("return")]
