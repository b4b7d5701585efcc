"""Reductions over windows as `jax.lax` describes them, in this library's terms.

`jax.lax.reduce_window` is equation (1) of `jaxnorm._rules.pooling` or the sum of (2), and along every axis of its
array. The gradient of a maximum or a minimum, which JAX writes as one operation, is equation (3). A minimum is the
maximum of the numbers with the other sign, which changes no digit of them.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxnorm._cotangents import cast, compute_dtype
from jaxnorm._lower.pooling.cpu import CpuWindows
from jaxnorm._rules import pooling

REDUCTIONS = (lax.reduce_window_max_p, lax.reduce_window_min_p, lax.reduce_window_sum_p)


def uncovered(dtype: Any, options: dict[str, Any]) -> str | None:
    """Why these windows over an array of this dtype are for no equation; None if they are for one."""
    window, strides, padding = (options[name] for name in ("window_dimensions", "window_strides", "padding"))
    if not jnp.issubdtype(dtype, jnp.floating) or jnp.dtype(dtype).itemsize == 1:
        return "a dtype that is not floating-point of 16 to 64 bits"
    if {*options.get("base_dilation", ()), *options.get("window_dilation", ())} - {1}:
        return "a dilated window"
    if any(end < 0 for pair in padding for end in pair):
        return "a negative padding"
    if options.get("select_prim", lax.ge_p) not in (lax.ge_p, lax.le_p):
        return "a selection that is no maximum or minimum"
    if "select_prim" in options and any(max(pair) >= k for pair, k in zip(padding, window, strict=True)):
        return "a maximum over windows that may lie beyond the array"
    if not _axes(window, strides, padding):
        return "a window of one entry"
    return None


def windows_of(shape: Sequence[int], options: dict[str, Any]) -> CpuWindows:
    """How the windows lie: along the axes on which they have more than one entry, a stride or a padding."""
    lists = [options[name] for name in ("window_dimensions", "window_strides", "padding")]
    axes = _axes(*lists)
    window, strides, padding = (tuple(values[axis] for axis in axes) for values in lists)
    return CpuWindows(axes, tuple(shape[axis] for axis in axes), window, strides, padding, len(shape))


def reduction(primitive: Any, windows: CpuWindows) -> Callable[[jax.Array], jax.Array]:
    """One of `REDUCTIONS` over these windows."""

    def total(x: jax.Array) -> jax.Array:
        return windows.total(lambda total: cast(total, x.dtype), x, compute_dtype(x))

    if primitive is lax.reduce_window_sum_p:
        return total
    if primitive is lax.reduce_window_max_p:
        return lambda x: pooling.maximum(windows, x)
    return lambda x: -pooling.maximum(windows, -x)


def selection(select: Any, windows: CpuWindows) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """The gradient of a maximum (`select` is then at least) or of a minimum, of the cotangent and the array."""
    if select is lax.ge_p:
        return lambda g, x: pooling.maximum_backward(windows, x, g)
    return lambda g, x: pooling.maximum_backward(windows, -x, g)


def _axes(window: Sequence[int], strides: Sequence[int], padding: Sequence[tuple[int, int]]) -> tuple[int, ...]:
    alike = [(k, s, tuple(pair)) == (1, 1, (0, 0)) for k, s, pair in zip(window, strides, padding, strict=True)]
    return tuple(axis for axis, same in enumerate(alike) if not same)
