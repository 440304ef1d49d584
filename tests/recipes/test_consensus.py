"""Test the methods in which task vectors compete for each element against float64 written from the formulas."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import soups
from soups.recipes.consensus import _floor_of_product, consensus, pcb, sce
from soups.recipes.masks import Elected, emr, emr_restore, tall_masks

RNG = np.random.default_rng(11)
SHAPES = {"a": {"kernel": (6, 10)}, "b": (9,), "c": (2, 3, 4)}


def draw(scale=1.0):
    return jax.tree.map(
        lambda shape: (scale * RNG.normal(size=shape)).astype(np.float32),
        SHAPES,
        is_leaf=lambda x: isinstance(x, tuple),
    )


def moved(tree, step):
    return jax.tree.map(lambda b, d: b + d, tree, step)


BASE = draw()
MEMBERS = [moved(BASE, draw(0.1 * (1 + index))) for index in range(4)]


def flat(tree):
    return np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(tree)])


def vectors(members=None):
    return np.stack([flat(member) - flat(BASE) for member in members or MEMBERS])


def by_leaf(function, task_vectors):
    """Apply the oracle, from [K, n] to [n], to the columns of each leaf."""
    ends = np.cumsum([leaf.size for leaf in jax.tree.leaves(BASE)])[:-1]
    return np.concatenate([function(part) for part in np.split(task_vectors, ends, axis=1)])


def close(result, expected, tolerance=1e-6):
    np.testing.assert_allclose(flat(result), expected, rtol=tolerance, atol=tolerance)


def largest(scores, kept):
    result = np.zeros(scores.size, bool)
    for place in sorted(range(scores.size), key=lambda place: -scores[place])[:kept]:
        result[place] = True
    return result


def sce_of_leaf(select_topk):
    def oracle(steps):
        number, size = steps.shape
        if select_topk < 1:
            variance = [sum((v - sum(column) / number) ** 2 for v in column) / number for column in steps.T]
            kept = int(np.count_nonzero(variance) * select_topk)
            steps = steps * largest(np.array(variance), kept)
        energy = [sum(v * v for v in step) / size for step in steps]
        share = [e / sum(energy) for e in energy] if sum(energy) >= 1e-6 else [1 / number] * number
        merged = np.zeros(size)
        for place, column in enumerate(steps.T):
            sign = 1 if sum(column) >= 0 else -1
            mask = [np.sign(v) == sign for v in column]
            total = sum(c * m * v for c, m, v in zip(share, mask, column, strict=True))
            merged[place] = total / max(sum(c * m for c, m in zip(share, mask, strict=True)), 1e-6)
        return merged

    return oracle


@pytest.mark.parametrize("number", [2, 3, 4])
@pytest.mark.parametrize("select_topk", [0.1, 0.4, 1.0])
def test_sce(select_topk, number):
    result = sce(MEMBERS[:number], base=BASE, select_topk=select_topk)
    close(result, flat(BASE) + by_leaf(sce_of_leaf(select_topk), vectors(MEMBERS[:number])))


def test_sce_of_vectors_without_energy_weighs_all_alike():
    steps = (3e-4 * RNG.normal(size=(3, 20))).astype(np.float32)
    assert 1e-7 < (steps.astype(np.float64) ** 2).mean(1).sum() < 1e-6
    result = sce([{"w": step} for step in steps], base={"w": np.zeros(20, np.float32)})["w"]
    np.testing.assert_allclose(result, sce_of_leaf(1.0)(steps.astype(np.float64)), rtol=1e-5)


def test_sce_leaves_out_members_that_did_not_move():
    base, members = {"w": np.zeros(2, np.float32)}, [{"w": np.float32([3, 1])}, {"w": np.float32([0, 1])}]
    np.testing.assert_allclose(sce(members, base=base)["w"], [3, 1], rtol=1e-6)


def test_sce_counts_only_elements_that_vary():
    base = {"w": np.zeros(10, np.float32)}
    a, b = np.ones(10, np.float32), np.ones(10, np.float32)
    b[:4] = [1.5, 2, 3, 4]  # the other six do not vary: half of four stay
    for convert in (np.asarray, jnp.asarray):
        result = sce([{"w": convert(a)}, {"w": convert(b)}], base={"w": convert(base["w"])}, select_topk=0.5)["w"]
        assert (np.flatnonzero(result) == [2, 3]).all()
        nothing = sce([{"w": convert(a)}, {"w": convert(a)}], base={"w": convert(base["w"])}, select_topk=0.5)["w"]
        np.testing.assert_array_equal(nothing, 0)


@pytest.mark.parametrize("fraction", [0.1, 0.29, 0.3, 0.7, 1e-7, 0.999999])
def test_floor_of_product_needs_no_64_bits(fraction):
    counts = [0, 1, 3, 10, 70, 100, 65_535, 65_536, 123_456_789, 2**31, 2**32 - 1]
    traced = jax.jit(lambda count: _floor_of_product(count, fraction))(jnp.asarray(counts, jnp.uint32))
    assert traced.tolist() == [_floor_of_product(count, fraction) for count in counts]
    for count in counts[:7]:
        assert _floor_of_product(count, fraction) == count * Fraction(str(fraction)) // 1


def masks_of(steps, thresholds):
    total = steps.sum(0)
    pairs = zip(steps, thresholds, strict=True)
    return np.array([[abs(v) >= t * abs(s - v) for v, s in zip(step, total, strict=True)] for step, t in pairs])


def test_tall_masks():
    thresholds = [0.2, 0.4, 0.6, 1.0]
    found = tall_masks(dict(zip("wxyz", MEMBERS, strict=True)), base=BASE, threshold=thresholds)
    assert list(found) == list("wxyz")
    assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {np.dtype(bool)}
    np.testing.assert_array_equal([flat(found[name]) for name in found], masks_of(vectors(), thresholds))


@pytest.mark.parametrize("votes", [0, 1, 2, 4])
def test_consensus(votes):
    kept = masks_of(vectors(), [0.7] * 4).sum(0) >= votes
    assert votes == 0 or 0 < kept.sum() < kept.size
    result = consensus(MEMBERS, base=BASE, threshold=0.7, votes=votes, scale=0.4)
    close(result, flat(BASE) + 0.4 * kept * vectors().sum(0))


def test_consensus_without_votes_is_task_arithmetic():
    close(consensus(MEMBERS, base=BASE, votes=0), flat(soups.task_arithmetic(MEMBERS, base=BASE)))


def elected(steps):
    unified = np.zeros(steps.shape[1])
    for place, column in enumerate(steps.T):
        sign = np.sign(sum(column))
        unified[place] = sign * max([abs(v) for v in column if np.sign(v) == sign], default=0)
    masks = steps * unified > 0
    rescalers = [abs(v).sum() / abs(m * unified).sum() for v, m in zip(steps, masks, strict=True)]
    return unified, masks, rescalers


def test_emr():
    merged = emr(MEMBERS, base=BASE)
    unified, masks, rescalers = elected(vectors())
    close(merged.unified, unified)
    np.testing.assert_array_equal([flat(mask) for mask in merged.masks.values()], masks)
    np.testing.assert_allclose(list(merged.rescalers.values()), rescalers, rtol=1e-5)
    for index in (0, 3):
        close(emr_restore(merged, index, base=BASE), flat(BASE) + rescalers[index] * masks[index] * unified, 1e-5)


def test_emr_of_one_member_or_of_agreeing_ones_restores_them():
    close(emr_restore(emr({"x": MEMBERS[0]}, base=BASE), "x", base=BASE), flat(MEMBERS[0]))
    twice = moved(BASE, jax.tree.map(lambda m, b: 2 * (m - b), MEMBERS[0], BASE))
    merged = emr([MEMBERS[0], twice], base=BASE)
    close(emr_restore(merged, 0, base=BASE), flat(MEMBERS[0]))
    close(emr_restore(merged, 1, base=BASE), flat(twice))


def test_emr_of_signs_that_cancel_and_of_a_member_that_is_the_base():
    base = {"w": np.zeros(2, np.float32), "steps": np.int32(1)}
    members = [{"w": np.float32([1, 3]), "steps": np.int32(7)}, {"w": np.float32([-1, 1]), "steps": np.int32(7)}, base]
    members[2] = members[2] | {"steps": np.int32(7)}
    merged = emr(members, base=base)
    np.testing.assert_array_equal(merged.unified["w"], [0, 3])
    assert merged.rescalers["2"] == 0 and merged.unified["steps"] == 0 and not merged.masks["0"]["steps"]
    assert emr_restore(merged, 2, base=base) == {"w": pytest.approx([0, 0]), "steps": 1}
    assert not tall_masks(members, base=base)["0"]["steps"]


def test_emr_under_jit_and_in_bfloat16():
    members, base = jax.tree.map(jnp.asarray, (MEMBERS, BASE))
    expected = emr(MEMBERS, base=BASE)
    merged = jax.jit(lambda members, base: emr(members, base=base))(members, base)
    assert isinstance(merged, Elected)
    close(merged, flat(expected), 1e-5)
    low = jax.tree.map(lambda leaf: leaf.astype(ml_dtypes.bfloat16), MEMBERS)
    merged = emr(low, base=BASE)
    assert {leaf.dtype for leaf in jax.tree.leaves(merged.unified)} == {np.dtype(np.float32)}
    assert {leaf.dtype for leaf in jax.tree.leaves(emr_restore(merged, 1, base=low[0]))} == {low[0]["b"].dtype}


def normalized(values):
    return (values - values.min()) / (values.max() - values.min())


def softmax(values):
    return np.exp(values) / np.exp(values).sum()


def balanced(density, scales):
    def oracle(steps):
        number, size = steps.shape
        total, divisor = np.zeros(size), np.zeros(size)
        for step, scale in zip(steps, scales, strict=True):
            within = softmax(number * normalized(step * step))
            between = sum(softmax(normalized(step * other)) for other in steps)
            score = within * between
            score = score * largest(score, max(1, int(density * size)))
            total, divisor = total + score * scale * step, divisor + score
        return np.divide(total, divisor, out=np.zeros(size), where=divisor > 0)

    return oracle


@pytest.mark.parametrize("density", [0.1, 0.3, 1.0])
def test_pcb(density):
    scales = [1.0, 0.5, 1.5, 2.0]
    result = pcb(MEMBERS, base=BASE, density=density, scale=scales)
    close(result, flat(BASE) + balanced(density, scales)(vectors()), 1e-5)


def test_pcb_per_leaf():
    result = pcb(MEMBERS, base=BASE, density=0.3, scope="leaf", scale=0.7)
    close(result, flat(BASE) + by_leaf(balanced(0.3, [0.7] * 4), vectors()), 1e-5)


def test_pcb_of_many_members_does_not_overflow():
    members = [moved(BASE, draw(0.1)) for _ in range(90)]  # e^90 is no float32
    close(pcb(members, base=BASE, density=0.2), flat(BASE) + balanced(0.2, [1.0] * 90)(vectors(members)), 1e-5)


def test_pcb_of_many_members_whose_elements_are_all_equal():
    members = [{"w": np.full(2, index, np.float32)} for index in range(1, 111)]  # e^-110 is zero in float32
    close(pcb(members, base={"w": np.zeros(2, np.float32)}), np.full(2, 55.5), 1e-5)


def test_pcb_of_members_that_did_not_move():
    close(pcb([BASE] * 2, base=BASE), flat(BASE), 0)
    step = flat(pcb([BASE, MEMBERS[0]], base=BASE, density=0.5)) - flat(BASE)
    assert 0 < abs(step).max() <= abs(vectors()[0]).max()


def test_identical_members_give_that_member():
    close(sce([MEMBERS[0]] * 3, base=BASE), flat(MEMBERS[0]))
    close(pcb([MEMBERS[0]] * 3, base=BASE, density=1.0), flat(MEMBERS[0]))
    close(consensus([MEMBERS[0]] * 3, base=BASE, scale=1 / 3), flat(MEMBERS[0]))


@pytest.mark.parametrize("method", [consensus, pcb])
def test_scale_zero_gives_the_base(method):
    close(method(MEMBERS, base=BASE, scale=0.0), flat(BASE), 0)


NAN = [MEMBERS[0], jax.tree.map(lambda x: x * np.nan, BASE)]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sce(MEMBERS, base=BASE, select_topk=0.0), r"select_topk must be in \(0, 1\], not 0.0"),
        (lambda: sce(NAN, base=BASE), "member 1: a/kernel"),
        (lambda: consensus(MEMBERS, base=BASE, votes=5), "votes must be between 0 and 4, the number of members, not 5"),
        (lambda: consensus(MEMBERS, base=BASE, votes=-1), "votes must be between 0 and 4"),
        (
            lambda: consensus(MEMBERS, base=BASE, threshold=[0.4]),
            "need 4 values of threshold, but 1",
        ),
        (
            lambda: tall_masks(MEMBERS, base=BASE, threshold=[0.4]),
            "need 4 values of thresholds, but 1",
        ),
        (lambda: tall_masks(NAN, base=BASE), "member 1: a/kernel"),
        (lambda: tall_masks([], base=BASE), "no members"),
        (lambda: emr(MEMBERS, base={"a": BASE["a"]}), "base: b is missing"),
        (lambda: emr(NAN, base=BASE), "member 1: a/kernel"),
        (lambda: emr_restore(emr(MEMBERS, base=BASE), 4, base=BASE), "unknown member '4'.*there are: 0, 1, 2, 3"),
        (lambda: emr_restore(emr(MEMBERS, base=BASE), 0, base={"a": BASE["a"]}), "b is extra"),
        (lambda: pcb(MEMBERS, base=BASE, density=1.5), r"density must be in \(0, 1\], not 1.5"),
        (lambda: pcb(MEMBERS, base=BASE, scale=[1.0]), "4 members need 4 values of scale, but 1 were given"),
        (lambda: pcb(MEMBERS, base=BASE, scope="laef"), "unknown scope 'laef' .did you mean 'leaf'"),
        (lambda: pcb(NAN, base=BASE), "member 1: a/kernel"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()
