"""Residuals in bfloat16: widened to the same numbers as by a conversion, and not before the backward pass."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import assert_close, random_like

import jaxnorm as jn
from jaxnorm._axes import cast_later

EVERY = jnp.asarray(np.arange(2**16, dtype=np.uint16).view(jnp.bfloat16))


@pytest.mark.parametrize("first", [0.0, -0.0, 1.0, jnp.inf, jnp.nan, np.uint32(2**32 - 1).view(np.float32)])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float64])
def test_every_number(first, dtype):
    got = np.asarray(jax.jit(cast_later, static_argnums=1)(EVERY, jnp.float32, jnp.full((2, 3), first, dtype)))
    wanted = np.asarray(EVERY).astype(np.float32)
    np.testing.assert_array_equal(got.view(np.uint32), np.asarray(EVERY).view(np.uint16).astype(np.uint32) << 16)
    np.testing.assert_array_equal(got, wanted)


def test_derivatives_and_vmap():
    x, g = random_like(jnp.zeros((3, 4), jnp.bfloat16)), random_like(jnp.zeros((3, 2)), 1)

    def f(cast, x, g):
        return jnp.sum(cast(x, g) ** 2 * g[0])

    def later(x, g):
        return cast_later(x, jnp.float32, g)

    def at_once(x, g):
        return x.astype(jnp.float32)

    for transform in (jax.grad, lambda f: jax.jacfwd(jax.grad(f))):
        got, wanted = (jax.vmap(transform(lambda x, g, cast=cast: f(cast, x, g)))(x, g) for cast in (later, at_once))
        assert got.dtype == wanted.dtype
        np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize(
    "rule, shape, kernel",
    [
        (lambda x, kernel: jn.layer_norm(x, kernel), (4, 6), (6,)),
        (jn.affine, (4, 6), (6, 5)),
        (jn.conv, (2, 5, 5, 3), (3, 3, 3, 4)),
    ],
    ids=["norm", "affine", "conv"],
)
def test_second_derivatives(rule, shape, kernel):
    """The derivative of a backward pass goes through the widening of its residuals."""
    arrays = [random_like(jnp.zeros(s, jnp.bfloat16), i) for i, s in enumerate((shape, kernel))]

    def cubes(*arrays):
        return jnp.sum(rule(*arrays).astype(jnp.float32) ** 3)

    def of_gradients(*arrays):
        return sum(jnp.sum(g.astype(jnp.float32) ** 2) for g in jax.grad(cubes, (0, 1))(*arrays))

    got = jax.jit(jax.grad(of_gradients, (0, 1)))(*arrays)
    wide = jax.jit(jax.grad(of_gradients, (0, 1)))(*(a.astype(jnp.float32) for a in arrays))
    assert_close([g.astype(jnp.float32) for g in got], list(wide), 0.04)


@pytest.mark.parametrize("kind", ["dense", "convolution"])
def test_a_bfloat16_network_needs_less_memory(kind):
    """On CPU too, where XLA computes in float32: no float32 arrays wait for the backward pass."""

    def network(parameters, x):
        for kernel in parameters:
            x = jn.conv(x, kernel) if kind == "convolution" else jn.affine(x, kernel)
            x = jn.relu(jn.layer_norm(x))
        return jnp.sum(x.astype(jnp.float32) ** 2)

    def temporary_bytes(dtype):
        x, kernel = ((8, 16, 16, 8), (3, 3, 8, 8)) if kind == "convolution" else ((512, 32), (32, 32))
        arrays = [jax.ShapeDtypeStruct(kernel, dtype)] * 8, jax.ShapeDtypeStruct(x, dtype)
        return jax.jit(jax.grad(network)).lower(*arrays).compile().memory_analysis().temp_size_in_bytes

    assert temporary_bytes(jnp.bfloat16) < 0.75 * temporary_bytes(jnp.float32)
