"""A layer whose outputs exist a block of columns at a time.

Forward, for hidden rows X (N, H), kernel W (H, V) and bias b:

    Z = X W + b, a block of columns at a time                                                                        (1)

Backward, for a block's cotangent D, since Z is linear in each argument:

    dX += D W^T        dW block = X^T D        db block = sum over rows of D                                         (2)
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxnorm._cotangents import cast, cotangent_for, reshape

Dot = Callable[..., jax.Array]  # the product of two arrays over an axis of each, accumulated in a dtype
Start = jax.Array | int  # of a block: its first column


class Layer(NamedTuple):
    """The arguments, as they came."""

    hidden: jax.Array  # (..., H)
    kernel: jax.Array  # (H, V)
    bias: jax.Array | None  # (V,)

    @property
    def x(self) -> jax.Array:
        """X: a row for each token, (N, H)."""
        return reshape(self.hidden, (math.prod(self.hidden.shape[:-1]), self.kernel.shape[0]))


class Columns(NamedTuple):
    """Some columns of a layer."""

    start: Start
    kernel: jax.Array  # (H, size)
    z: jax.Array  # (N, size), in the dtype to accumulate in


class LayerGradients(NamedTuple):
    """What the blocks of the backward pass add to (dX) or fill (the columns)."""

    x: jax.Array  # (N, H), in the dtype to accumulate in
    kernel: jax.Array  # (H, V), in the dtype in which it is written: each block once
    bias: jax.Array | None  # (V,), in the dtype to accumulate in


def columns_of(dot: Dot, layer: Layer, dtype: Any, start: Start, size: int) -> Columns:
    """The outputs (1) of `size` columns from `start` on."""
    kernel = lax.dynamic_slice_in_dim(layer.kernel, start, size, 1)
    z = dot(layer.x, kernel, (1, 0), dtype)  # (1)
    if layer.bias is not None:
        z = z + reshape(cast(lax.dynamic_slice_in_dim(layer.bias, start, size), dtype), (1, size))  # (1)
    return Columns(start, kernel, z)


def no_layer_gradients(layer: Layer, dtype: Any, written: Any) -> LayerGradients:
    """The gradients before the first block; the kernel's needs no zeros, since the blocks write all of it."""
    bias = None if layer.bias is None else jnp.zeros(layer.bias.shape, dtype)
    return LayerGradients(jnp.zeros(layer.x.shape, dtype), lax.empty(layer.kernel.shape, written), bias)


def add_layer_gradients(dot: Dot, x: jax.Array, columns: Columns, d: jax.Array, sums: LayerGradients) -> LayerGradients:
    """One step of (2)."""
    dx = sums.x + dot(d, columns.kernel, (1, 1), d.dtype)  # (2)
    dkernel = place(sums.kernel, dot(x, d, (0, 0), d.dtype), columns.start)  # (2)
    dbias = None if sums.bias is None else place(sums.bias, jnp.sum(d, axis=0), columns.start)  # (2)
    return LayerGradients(dx, dkernel, dbias)


def layer_cotangents(layer: Layer, sums: LayerGradients) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """The gradients as the arguments must receive them."""
    dhidden = cotangent_for(layer.hidden, reshape(sums.x, layer.hidden.shape))
    dkernel = cotangent_for(layer.kernel, sums.kernel)
    if layer.bias is None or sums.bias is None:
        return dhidden, dkernel, None
    return dhidden, dkernel, cotangent_for(layer.bias, sums.bias)


def place(whole: jax.Array, part: jax.Array, start: Start) -> jax.Array:
    """`whole` with `part` in place of its columns from `start` on: written once, and nothing is stacked or joined."""
    return lax.dynamic_update_slice_in_dim(whole, cast(part, whole.dtype), start, whole.ndim - 1)
