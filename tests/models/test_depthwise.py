"""Compare depthwise convolutions with NumPy in float64, in both forms and in the one that a platform gets."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from soups.models.depthwise import DepthwiseConv, depthwise, grouped_convolution, shifted_sum

CASES = [(3, 1, (5, 6)), (3, 2, (6, 5)), (5, 1, (4, 4)), (5, 2, (7, 8)), (5, 2, (1, 2)), (1, 2, (5, 4))]


def expected(x, kernel, stride):
    """Pad as TensorFlow's SAME, more behind than before, and sum the windows."""
    size, x, kernel = len(kernel), np.asarray(x, np.float64), np.asarray(kernel, np.float64)
    out = [-(-length // stride) for length in x.shape[1:3]]
    totals = [max((n - 1) * stride + size - length, 0) for n, length in zip(out, x.shape[1:3], strict=True)]
    sides = [(total // 2, total - total // 2) for total in totals]
    x = np.pad(x, [(0, 0), *sides, (0, 0)])
    found = np.zeros((x.shape[0], *out, x.shape[-1]))
    for row in range(out[0]):
        for column in range(out[1]):
            i, j = row * stride, column * stride
            found[:, row, column] = (x[:, i : i + size, j : j + size] * kernel[:, :, 0]).sum((1, 2))
    return found


def draw(size, shape, channels=3):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, *shape, channels)).astype(np.float32)
    return x, rng.normal(size=(size, size, 1, channels)).astype(np.float32)


@pytest.mark.parametrize("form", [shifted_sum, grouped_convolution, depthwise])
@pytest.mark.parametrize("shape", [(7, 8), (6, 9)])
def test_padding_may_be_given(form, shape):
    x, kernel = draw(5, shape)
    padding = ((1, 2), (2, 0))
    padded = np.pad(np.asarray(x, np.float64), ((0, 0), *padding, (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (5, 5), axis=(1, 2))[:, ::2, ::2]
    found = jax.jit(form, static_argnums=(2, 3))(x, kernel, 2, padding)
    np.testing.assert_allclose(found, np.einsum("bhwcij,ijc->bhwc", windows, kernel[:, :, 0]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("form", [shifted_sum, grouped_convolution, depthwise])
@pytest.mark.parametrize(("size", "stride", "shape"), CASES)
def test_each_channel_is_convolved_by_itself(form, size, stride, shape):
    x, kernel = draw(size, shape)
    found = jax.jit(form, static_argnums=2)(x, kernel, stride)
    np.testing.assert_allclose(found, expected(x, kernel, stride), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("padding", ["SAME", ((1, 2), (2, 0)), ((0, 0), (4, 5))])
@pytest.mark.parametrize(("size", "stride", "shape"), CASES)
def test_gradients_of_both_forms_are_equal(size, stride, shape, padding):
    x, kernel = draw(size, (max(shape[0], size), max(shape[1], size)) if padding != "SAME" else shape)
    like = jax.eval_shape(lambda: grouped_convolution(x, kernel, stride, padding))
    outer = np.random.default_rng(1).normal(size=like.shape).astype(np.float32)

    def gradients(form):
        return jax.jit(jax.grad(lambda x, kernel: jnp.sum(form(x, kernel, stride, padding) * outer), (0, 1)))(x, kernel)

    plain = gradients(grouped_convolution)
    for form in (shifted_sum, depthwise):
        for one, other in zip(gradients(form), plain, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("platform", "convolutions"), [("cpu", False), ("cuda", True), ("tpu", True)])
def test_the_platform_of_the_program_decides(platform, convolutions):
    x, kernel = draw(3, (4, 4))

    def step(x, kernel):
        return jax.value_and_grad(lambda kernel: jnp.sum(depthwise(x, kernel, 2)))(kernel)

    program = jax.jit(step).trace(x, kernel).lower(lowering_platforms=(platform,)).as_text()
    assert ("stablehlo.convolution" in program) is convolutions


def test_many_kernels_side_by_side_are_each_by_itself():
    x, kernel = draw(3, (4, 4))
    kernels = np.stack([kernel, -2 * kernel])
    found = jax.jit(jax.vmap(depthwise, (None, 0)))(x, kernels)
    one = expected(x, kernel, 1)
    np.testing.assert_allclose(found, np.stack([one, -2 * one]), rtol=1e-5, atol=1e-5)


def test_the_module_computes_in_its_dtype_with_a_float32_kernel():
    x, kernel = draw(3, (4, 4))
    module = DepthwiseConv(3, 2, jnp.bfloat16)
    made, params = module.init_with_output(jax.random.key(0), x)
    assert made.dtype == jnp.bfloat16 and params["params"]["kernel"].dtype == jnp.float32
    found = module.apply({"params": {"kernel": kernel}}, x)
    np.testing.assert_allclose(np.asarray(found, np.float64), expected(x, kernel, 2), rtol=0.05, atol=0.1)
