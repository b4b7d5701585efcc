"""The products of dense layers, accumulated in a wider dtype than their operands', and passes over kept outputs."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxnorm._arguments import Axes
from jaxnorm._cotangents import cast
from jaxnorm._lower.calls import outlined, outlined_on_cpu
from jaxnorm._lower.platforms import by_platform


def dot(
    a: jax.Array, b: jax.Array, axes: tuple[Axes, Axes], dtype: Any, precision: lax.PrecisionLike = None
) -> jax.Array:
    """The matrix product over `axes` (of a, of b), accumulated in `dtype`, to which only unequal operands are cast."""
    left, right = ((axis,) if isinstance(axis, int) else tuple(axis) for axis in axes)

    def product(a: jax.Array, b: jax.Array) -> jax.Array:
        return lax.dot_general(a, b, ((left, right), ((), ())), precision=precision, preferred_element_type=dtype)

    def widened(a: jax.Array, b: jax.Array) -> jax.Array:
        return product(cast(a, dtype), cast(b, dtype))

    if a.dtype == b.dtype == dtype:
        return product(a, b)
    # XLA's CPU backend computes 16-bit products in float32 anyway, and fails at run time on some of them that have a
    # float32 result (a transposed one inside a scan: "DotThunk: BF16 x BF16 = F32"). The product is
    # outlined, since XLA would keep the operands that it widened in the forward pass until the backward pass.
    otherwise = product if a.dtype == b.dtype else widened
    return by_platform(a, b, cpu=functools.partial(outlined, widened), default=otherwise)


def dot_of_cotangent(x: jax.Array, kernel: jax.Array, dtype: Any) -> Callable[..., jax.Array]:
    """`dot` for the products of a layer's cotangent, which is in `dtype`, with its `x` and its `kernel`.

    If both are bfloat16, the cotangent is rounded to it where that doubles the rate of a product and halves what it
    reads, which is anywhere but on a CPU. float16 has too few exponents for a cotangent.
    """

    def widened(a: jax.Array, b: jax.Array, axes: tuple[Axes, Axes]) -> jax.Array:
        return dot(cast(a, dtype), cast(b, dtype), axes, dtype)

    def rounded(a: jax.Array, b: jax.Array, axes: tuple[Axes, Axes]) -> jax.Array:
        return dot(cast(a, x.dtype), cast(b, x.dtype), axes, dtype)

    def either(a: jax.Array, b: jax.Array, axes: tuple[Axes, Axes], dtype: Any) -> jax.Array:
        del dtype
        wide, narrow = (functools.partial(form, axes=axes) for form in (widened, rounded))
        return by_platform(a, b, cpu=wide, default=narrow)

    def in_dtype(a: jax.Array, b: jax.Array, axes: tuple[Axes, Axes], dtype: Any) -> jax.Array:
        del dtype
        return widened(a, b, axes)

    return either if x.dtype == kernel.dtype == jnp.bfloat16 and dtype == jnp.float32 else in_dtype


@functools.partial(jax.jit, static_argnums=(2, 3))
def sum_over_rows(x: jax.Array, g: jax.Array, dtype: Any, precision: lax.PrecisionLike = None) -> jax.Array:
    """The sum over all axes but the last of x and g, of which it makes a matrix: the gradient of a kernel.

    A CPU takes the product of two matrices, since XLA would transpose further axes away by a copy, and compute what
    leads to x within that copy. Elsewhere the axes stay as they are, since each may be sharded on its own.
    """

    def product(x: jax.Array, g: jax.Array) -> jax.Array:
        rows = tuple(range(g.ndim - 1))
        return dot(x, g, (rows, rows), dtype, precision)

    def of_matrices(x: jax.Array, g: jax.Array) -> jax.Array:
        return product(lax.collapse(x, 0, g.ndim - 1), lax.collapse(g, 0, g.ndim - 1))

    if g.ndim <= 2:
        return product(x, g)
    return by_platform(x, g, cpu=of_matrices, default=product)


def over_kept(function: Callable[..., Any], kept: jax.Array, *arrays: Any) -> Any:
    """`function(kept, *arrays)`, elementwise, for an output that the forward pass kept.

    XLA's CPU backend would keep a 16-bit output in float32, as it was before it was rounded, for its use in the
    backward pass; an outlined use needs the rounded one.
    """
    return function(kept, *arrays) if kept.dtype.itemsize > 2 else outlined_on_cpu(function, kept, *arrays)
