"""Residuals in bfloat16: on a CPU too they wait for the backward pass as they are."""

import jax
import jax.numpy as jnp
import pytest
from support import assert_close, normal

import jaxnorm as jn


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
    """The derivative of a backward pass goes through what is outlined in it."""
    arrays = [normal(*shape, dtype=jnp.bfloat16), normal(*kernel, seed=1, dtype=jnp.bfloat16)]

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
