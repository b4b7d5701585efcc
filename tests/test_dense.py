"""Dense layers: kinks, what is kept, accumulation, dtypes, empties, errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import normal

import jaxnorm as jn
from jaxnorm.check import saved_bytes


def test_relu_at_zero_and_nan():
    x = jnp.array([-1.0, -0.0, 0.0, 1e-300, 2.0, jnp.nan, -jnp.inf, jnp.inf])
    y, vjp = jax.vjp(jn.relu, x)
    np.testing.assert_array_equal(y, [0, 0, 0, 1e-300, 2, np.nan, 0, np.inf])
    np.testing.assert_array_equal(vjp(jnp.full(8, 3.0))[0], [0, 0, 0, 3, 3, 0, 0, 3])


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
def test_nothing_is_kept_but_inputs_and_the_rectified_output(dtype):
    x, kernel, bias = (normal(*shape, dtype=dtype) for shape in ((64, 32), (32, 16), (16,)))
    assert saved_bytes(jn.affine, x, kernel, bias) == 0
    assert saved_bytes(jn.affine_relu, x, kernel, bias) == jn.affine(x, kernel).nbytes
    y, vjp = jax.vjp(jn.relu, x)
    assert saved_bytes(jn.relu, x) == x.nbytes
    assert [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(vjp)] == [y.unsafe_buffer_pointer()]


def test_gradients_of_bfloat16_accumulate_in_float32():
    ones = jnp.ones((4097, 1), jnp.bfloat16)
    _, vjp = jax.vjp(jn.affine, ones, jnp.ones((1, 1), jnp.float32), jnp.zeros(1, jnp.float32))
    _, dkernel, dbias = vjp(ones)
    assert dkernel.item() == dbias.item() == 4097  # a bfloat16 sum would stop at 256


@pytest.mark.parametrize("scan", [False, True], ids=["plain", "scan"])
@pytest.mark.parametrize("kernel_dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
def test_bfloat16_with_a_transposed_kernel_runs(kernel_dtype, scan):
    """A product of 16-bit operands with a float32 result, transposed inside a scan, fails on XLA's CPU backend."""
    w, x = normal(50, 8, dtype=kernel_dtype), normal(4, 3, 8, dtype=jnp.bfloat16)
    gradient = jax.grad(lambda w: jnp.sum(jnp.square(jn.affine(x, w.T).astype(jnp.float32))))
    step = (
        (lambda w: jax.lax.scan(lambda w, _: (w - gradient(w) / 128, None), w, None, length=3)[0]) if scan else gradient
    )
    assert np.isfinite(np.asarray(jax.jit(step)(w), np.float32)).all()


def test_mixed_dtypes():
    x, kernel = jnp.ones((2, 3), jnp.bfloat16), jnp.full((3, 4), 1 + 2**-10, jnp.float32)
    assert jn.affine(x, kernel).dtype == jnp.bfloat16  # the gradients' dtypes are the checker's, in test_rules.py
    assert jn.affine(x.astype(jnp.float32), kernel.astype(jnp.float64)).dtype == jnp.float32
    assert jn.relu(1.5).dtype == jnp.result_type(float) and jn.relu(np.float32(2)).dtype == jnp.float32


@pytest.mark.parametrize("shape", [(0, 3), (2, 0), (0, 0)])
def test_empty_arrays(shape):
    args = jnp.ones(shape), jnp.ones((shape[1], 4)), jnp.ones(4)
    for function in (jn.affine, jn.affine_relu):
        y, vjp = jax.vjp(function, *args)
        assert y.shape == (shape[0], 4) and (y == 1).all()
        dx, dkernel, _ = vjp(normal(*y.shape))
        assert dx.shape == shape and not dkernel.any()


X = jnp.ones((2, 3, 4))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: jn.relu([1.0]), TypeError, "x must be an array, got list"),
        (lambda: jn.relu(jnp.arange(3)), TypeError, "x must be a floating-point array"),
        (lambda: jn.affine(X, jnp.ones((3, 5))), ValueError, r"kernel must have shape \(4, M\).*got \(3, 5\)"),
        (lambda: jn.affine(X, jnp.ones((4, 5)), num_feature_axes=2), ValueError, r"kernel must have shape \(12, M\)"),
        (lambda: jn.affine(X, jnp.ones((4, 5)), num_feature_axes=4), ValueError, "num_feature_axes must be at most 3"),
        (lambda: jn.affine(X, jnp.ones((4, 5)), num_feature_axes=0), ValueError, "num_feature_axes must be at least 1"),
        (lambda: jn.affine_relu(X, jnp.ones((4, 5)), jnp.ones(4)), ValueError, r"bias must have shape \(5,\)"),
        (lambda: jn.affine(X, jnp.ones((4, 5), int)), TypeError, "kernel must be a floating-point"),
        (lambda: jn.affine(X, jnp.ones((4, 5)), precision="exact"), ValueError, "(?i)precision"),
    ],
)
def test_errors_name_the_argument(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_precisions_as_in_lax():
    x, kernel = jnp.ones((2, 3, 4)), jnp.ones((4, 5))
    for precision in ("highest", ("high", "highest"), ["high", "highest"]):
        gradient = jax.grad(lambda k, p=precision: jn.affine(x, k, precision=p).sum())(kernel)
        np.testing.assert_allclose(gradient, 6)
