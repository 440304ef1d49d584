"""Test the methods that merge task vectors as matrices against float64 written from the formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from soups.recipes.spectral import iso_c, tsv_merge, wudi

RNG = np.random.default_rng(17)
SHAPES = {"kernel": (9, 6), "wide": (4, 8), "cube": (3, 2, 5), "bias": (6,), "scalar": ()}
MATRICES = ("kernel", "wide", "cube")
METHODS = {
    "tsv_merge": tsv_merge,
    "iso_c": iso_c,
    "wudi": lambda members, *, base, **settings: wudi(members, base=base, steps=20, learning_rate=1e-3, **settings),
}


def draw(scale=1.0):
    return {name: np.float32(scale * RNG.normal(size=shape)) for name, shape in SHAPES.items()}


def moved(tree, step):
    return {name: leaf + step[name] for name, leaf in tree.items()}


BASE = draw()
MEMBERS = [moved(BASE, draw(0.1 * (1 + index))) for index in range(3)]


def steps_of(name, members):
    return [member[name].astype(np.float64) - BASE[name] for member in members]


def expected(matrix_oracle, members=MEMBERS, scale=1.0, matrices=MATRICES):
    """Return base + scale times what the oracle makes of the matrices of one leaf; the mean in leaves that are none."""
    result = {}
    for name, base in BASE.items():
        steps = steps_of(name, members)
        if name in matrices:
            step = matrix_oracle([s.reshape(-1, s.shape[-1]) for s in steps]).reshape(base.shape)
        else:
            step = sum(steps) / len(steps)
        result[name] = base + scale * step
    return result


def close(result, oracle, tolerance=1e-6):
    assert set(result) == set(oracle)
    for name in oracle:
        np.testing.assert_allclose(
            np.asarray(result[name], np.float64), oracle[name], rtol=tolerance, atol=tolerance, err_msg=name
        )


def inverse_root(gram):
    values, vectors = np.linalg.eigh(gram)
    return vectors @ np.diag(values**-0.5) @ vectors.T


def tsv_oracle(matrices, rank=None):
    # another way to the nearest orthogonal matrix than the program's: U (UᵀU)^(-1/2)
    rank = rank or max(1, min(matrices[0].shape) // len(matrices))
    parts = [np.linalg.svd(matrix, full_matrices=False) for matrix in matrices]
    left = np.hstack([u[:, :rank] for u, _, _ in parts])
    right = np.vstack([v[:rank] for _, _, v in parts])
    values = np.concatenate([s[:rank] for _, s, _ in parts])
    return left @ inverse_root(left.T @ left) @ np.diag(values) @ inverse_root(right @ right.T) @ right


def iso_oracle(matrices):
    u, s, v = np.linalg.svd(sum(matrices), full_matrices=False)
    return sum(s.mean() * np.outer(u[:, i], v[i]) for i in range(len(s)))


def wudi_loss(merged, matrices, xp=np):
    # in the paper's words the weights are [out, in]
    return sum(xp.sum(((merged.T - m.T) @ m) ** 2) / xp.sum(m**2) for m in matrices)


def wudi_oracle(steps, learning_rate):
    def oracle(matrices):
        merged = sum(matrices)
        first, second = np.zeros_like(merged), np.zeros_like(merged)
        for step in range(1, steps + 1):
            slope = sum(2 * m @ (m.T @ (merged - m)) / np.sum(m**2) for m in matrices)
            first, second = 0.9 * first + 0.1 * slope, 0.999 * second + 0.001 * slope**2
            merged = merged - learning_rate * (first / (1 - 0.9**step)) / (np.sqrt(second / (1 - 0.999**step)) + 1e-8)
        return merged

    return oracle


@pytest.mark.parametrize("scale", [0.0, 0.7, 1.0])
def test_tsv_merge(scale):
    close(tsv_merge(MEMBERS, base=BASE, scale=scale), expected(tsv_oracle, scale=scale))


def test_tsv_merge_of_one_member_is_that_member():
    close(tsv_merge(MEMBERS[:1], base=BASE), MEMBERS[0])


def test_tsv_merge_of_identical_members_is_their_first_directions():
    def truncated(matrices):
        u, s, v = np.linalg.svd(matrices[0], full_matrices=False)
        rank = len(s) // 3
        return u[:, :rank] @ np.diag(s[:rank]) @ v[:rank]

    same = [MEMBERS[0]] * 3
    close(tsv_merge(same, base=BASE), expected(truncated, same))
    kernel = {"kernel": jnp.asarray(MEMBERS[0]["kernel"])}
    on_device = tsv_merge([kernel] * 3, base={"kernel": jnp.asarray(BASE["kernel"])})
    close(on_device, {"kernel": expected(truncated, same)["kernel"]}, 1e-5)


def test_tsv_merge_is_not_disturbed_by_a_matrix_that_did_not_move():
    members = [*MEMBERS[:2], BASE]
    step = tsv_oracle(steps_of("kernel", members)[:2], rank=2)
    np.testing.assert_allclose(tsv_merge(members, base=BASE)["kernel"], BASE["kernel"] + step, atol=1e-6)


@pytest.mark.parametrize("array", [np.asarray, jnp.asarray], ids=["host", "device"])
@pytest.mark.parametrize("shape", [(1, 6), (5, 1), (4, 5), (40, 30)])
def test_tsv_merge_of_parallel_task_vectors_up_to_the_rounding_of_their_dtype(shape, array):
    rng = np.random.default_rng(0)
    base, step = rng.standard_normal((2, *shape))
    exact = [base + factor * step for factor in (1.0, -0.7, 2.3)]
    rounded = [{"w": array(member.astype(np.float32))} for member in exact]
    found = tsv_merge(rounded, base={"w": array(base.astype(np.float32))})["w"]
    expected = tsv_merge([{"w": member} for member in exact], base={"w": base})["w"]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_tsv_merge_of_more_members_than_directions_takes_one_of_each():
    members = [moved(BASE, draw(0.1)) for _ in range(7)]
    step = tsv_merge(members, base=BASE)["wide"].astype(np.float64) - BASE["wide"]
    assert np.linalg.matrix_rank(step, tol=1e-5) == 4 < 7


@pytest.mark.parametrize("scale", [0.0, 1.3])
def test_iso_c(scale):
    close(iso_c(MEMBERS, base=BASE, scale=scale), expected(iso_oracle, scale=scale), 2e-6)


def test_iso_c_has_one_length_in_all_directions_that_there_are():
    step = iso_c(MEMBERS, base=BASE)["kernel"].astype(np.float64) - BASE["kernel"]
    values = np.linalg.svd(sum(steps_of("kernel", MEMBERS)), compute_uv=False)
    np.testing.assert_allclose(np.linalg.svd(step, compute_uv=False), values.mean(), rtol=1e-5)
    base, member = {"w": np.zeros((3, 4), np.float32)}, {"w": np.outer([1, 2, 2], [0, 3, 0, 4]).astype(np.float32)}
    for convert in (np.asarray, jnp.asarray):
        flat = iso_c([{"w": convert(member["w"])}], base={"w": convert(base["w"])})["w"]
        np.testing.assert_allclose(flat, member["w"] / 3, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("settings", [(0, 1e-3), (1, 1e-3), (50, 2e-3), (300, 1e-5)])
def test_wudi(settings):
    result = wudi(MEMBERS, base=BASE, steps=settings[0], learning_rate=settings[1], scale=0.8)
    close(result, expected(wudi_oracle(*settings), scale=0.8), 2e-6)


def test_wudi_is_adam_on_the_loss_of_the_paper():
    matrices = [jnp.asarray(step, jnp.float32) for step in steps_of("kernel", MEMBERS)]
    optimizer = optax.adam(1e-3)
    merged = sum(matrices)
    with jax.numpy_dtype_promotion("standard"):
        state = optimizer.init(merged)
        slope = jax.jit(jax.grad(lambda merged: wudi_loss(merged, matrices, jnp)))
        for _ in range(30):
            updates, state = optimizer.update(slope(merged), state)
            merged = optax.apply_updates(merged, updates)
    result = wudi(MEMBERS, base=BASE, steps=30, learning_rate=1e-3)["kernel"]
    np.testing.assert_allclose(result - BASE["kernel"], merged, rtol=1e-4, atol=1e-5)


def test_wudi_lowers_the_interference():
    matrices = steps_of("kernel", MEMBERS)
    result = wudi(MEMBERS, base=BASE, steps=300, learning_rate=1e-2)["kernel"].astype(np.float64) - BASE["kernel"]
    assert wudi_loss(result, matrices) < 0.6 * wudi_loss(sum(matrices), matrices)


def test_wudi_of_one_member_and_of_separate_inputs_stays_where_nothing_interferes():
    close(wudi(MEMBERS[:1], base=BASE, learning_rate=0.1), MEMBERS[0])
    base = {"w": np.zeros((6, 4), np.float32)}
    members = [{"w": np.zeros((6, 4), np.float32)} for _ in range(3)]
    for index, member in enumerate(members):
        member["w"][2 * index : 2 * index + 2] = RNG.normal(size=(2, 4))
    whole = sum(member["w"] for member in members)
    np.testing.assert_array_equal(wudi(members, base=base, learning_rate=0.1)["w"], whole)
    # as PyTorch has them the inputs are the columns, and these members share those
    assert abs(wudi(members, base=base, learning_rate=0.1, inputs="last")["w"] - whole).max() > 0.1
    turned = [{"w": member["w"].T} for member in members]
    result = wudi(turned, base={"w": base["w"].T}, learning_rate=0.1, inputs="last")["w"]
    np.testing.assert_array_equal(result, whole.T)


def test_wudi_with_the_inputs_last_is_that_of_the_transposed_kernel():
    other = [{"w": np.moveaxis(member["cube"], -1, 0)} for member in [BASE, *MEMBERS]]
    result = wudi(other[1:], base=other[0], steps=20, learning_rate=1e-3, inputs="last")["w"]
    same = wudi(MEMBERS, base=BASE, steps=20, learning_rate=1e-3)["cube"]
    np.testing.assert_allclose(np.moveaxis(result, 0, -1), same, rtol=1e-5, atol=1e-6)


def test_wudi_of_tall_matrices_takes_the_shorter_way_to_the_same():
    base = {"w": np.zeros((40, 2), np.float32)}
    members = [{"w": RNG.normal(size=(40, 2)).astype(np.float32)} for _ in range(2)]
    oracle = wudi_oracle(20, 1e-2)([member["w"].astype(np.float64) for member in members])
    np.testing.assert_allclose(
        wudi(members, base=base, steps=20, learning_rate=1e-2)["w"], oracle, rtol=1e-4, atol=1e-5
    )


def test_wudi_of_gradients_as_small_as_the_epsilon_of_adam():
    steps = (1e-8 * RNG.normal(size=(2, 6, 4))).astype(np.float32)
    result = wudi([{"w": s} for s in steps], base={"w": np.zeros((6, 4), np.float32)}, steps=5, learning_rate=1e-9)["w"]
    np.testing.assert_allclose(result, wudi_oracle(5, 1e-9)(list(steps.astype(np.float64))), rtol=1e-3, atol=1e-13)


def test_wudi_of_a_matrix_that_did_not_move():
    close(wudi([BASE] * 2, base=BASE), BASE)


@pytest.mark.parametrize(("name", "oracle"), [("tsv_merge", tsv_oracle), ("wudi", wudi_oracle(20, 1e-3))])
def test_leaves_that_are_not_named_are_averaged(name, oracle):
    result = METHODS[name](MEMBERS, base=BASE, only="kernel|cube")
    close(result, expected(oracle, matrices=("kernel", "cube")), 2e-6)


@pytest.mark.parametrize("name", METHODS)
def test_the_same_on_sharded_members(name, mesh):
    base, *steps = RNG.normal(size=(4, 8, 4)).astype(np.float32)
    members = [base + np.float32(0.1) * step for step in steps]
    shard = NamedSharding(mesh, P("pool"))
    result = METHODS[name]([{"w": jax.device_put(member, shard)} for member in members], base={"w": base})["w"]
    host = METHODS[name]([{"w": member} for member in members], base={"w": base})["w"]
    # a product of 8 x 4 matrices adds up 8 numbers, in float32 to 8 · 2⁻²⁴ = 5e-7 of their size, and steps are 0.1
    np.testing.assert_allclose(result, host, rtol=1e-5, atol=1e-6)
    assert result.sharding.is_equivalent_to(shard, 2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: tsv_merge([], base=BASE), "no members"),
        (lambda: tsv_merge([], base=BASE, only="kernel"), "no members"),
        (lambda: iso_c(MEMBERS, base=BASE, only="kernels"), "'kernels' matches no leaf .did you mean 'kernel'"),
        (lambda: iso_c(MEMBERS, base={"kernel": BASE["kernel"]}), "base: bias is missing"),
        (lambda: iso_c([{key: leaf * np.nan for key, leaf in BASE.items()}], base=BASE), "member 0: bias"),
        (lambda: wudi(MEMBERS, base=BASE, steps=-1), "steps must be at least 0, not -1"),
        (lambda: wudi(MEMBERS, base=BASE, learning_rate=0.0), "learning_rate must be above 0, not 0.0"),
        (lambda: wudi(MEMBERS, base=BASE, inputs="frist"), "unknown axis of the inputs 'frist' .did you mean 'first'"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()
