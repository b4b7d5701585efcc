"""Pooling: `max_pool` and `avg_pool`. `jaxnorm._rules.pooling` has the equations."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax import lax
from jax.typing import ArrayLike

from jaxnorm._arguments import as_float_array, channel_axis, static_bool
from jaxnorm._convolution_options import _pairs, _per_axis
from jaxnorm._cotangents import cotangent_for
from jaxnorm._lower.pooling.choice import with_windows
from jaxnorm._lower.pooling.windows import Pairs, Windows
from jaxnorm._rules.pooling import average, average_backward, maximum, maximum_backward
from jaxnorm._sharding import gathered, spec_of, with_shardings

Padding = str | int | Sequence[int | Sequence[int]]


def max_pool(
    x: ArrayLike,
    window: int | Sequence[int],
    *,
    strides: int | Sequence[int] | None = None,
    padding: Padding = "VALID",
    feature_axis: int = -1,
) -> jax.Array:
    """Max pooling: `y[n, t, c] = max over k of x[n, strides * t + k - low, c]`.

    Args:
      x: floating-point array with 1 to 3 spatial axes beside the batch, axis 0, and the channels; differentiable.
      window: size of the window, an int or one per spatial axis; static.
      strides: step of the window, an int or one per spatial axis, or None for the window's size; static.
      padding: `"SAME"`, `"SAME_LOWER"`, `"VALID"`, an int, or one int or `(low, high)` pair per spatial axis, none
        negative; static. What is added wins no maximum.
      feature_axis: the channels' axis, not 0; static.

    Returns:
      Array of x's dtype and axis order. A window that holds a NaN has the maximum NaN, and one that lies wholly in the
      padding has -inf.

    Gradient:
      Equation (3) of `jaxnorm._rules.pooling`: to the first entry of the window, in row-major order, that attains the
      maximum; to the first NaN if there is one; to none in a window of padding. Sums of 16-bit cotangents accumulate in
      float32. Kept for it: `x`.

    Raises:
      TypeError: `x` is not a floating-point array, or a size or step is no int.
      ValueError: `x` has no or more than 3 spatial axes, `window` or `strides` are not positive or do not fit them,
        `padding` is negative or none of the above, or `feature_axis` is 0 or out of range.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import jaxnorm as jn
      >>> x = jnp.array([1.0, 3.0, 3.0, 2.0, 0.0]).reshape(1, 5, 1)
      >>> y, vjp = jax.vjp(lambda x: jn.max_pool(x, 3, strides=2), x)
      >>> print(y[0, :, 0], vjp(jnp.ones_like(y))[0][0, :, 0])
      [3. 3.] [0. 1. 1. 0. 0.]

    References:
      Dumoulin and Visin 2016, "A guide to convolution arithmetic for deep learning", https://arxiv.org/abs/1603.07285.
    """
    x, windows = _checked(x, window, strides, padding, feature_axis)
    return _on_mesh(_max_pool, windows, x)


def avg_pool(
    x: ArrayLike,
    window: int | Sequence[int],
    *,
    strides: int | Sequence[int] | None = None,
    padding: Padding = "VALID",
    feature_axis: int = -1,
    count_include_pad: bool = True,
) -> jax.Array:
    """Average pooling: `y[n, t, c] = (sum over k of x[n, strides * t + k - low, c]) / count[t]`.

    Args:
      x: floating-point array with 1 to 3 spatial axes beside the batch, axis 0, and the channels; differentiable.
      window: size of the window, an int or one per spatial axis; static.
      strides: step of the window, an int or one per spatial axis, or None for the window's size; static.
      padding: `"SAME"`, `"SAME_LOWER"`, `"VALID"`, an int, or one int or `(low, high)` pair per spatial axis, none
        negative; static. What is added is 0.
      feature_axis: the channels' axis, not 0; static.
      count_include_pad: True divides by the window's size, False by the number of entries of x in the window; static.

    Returns:
      Array of x's dtype and axis order; sums accumulate in float32, or float64 if x is float64. A window that lies
      wholly in the padding has the average 0, whatever it is divided by.

    Gradient:
      Equation (4) of `jaxnorm._rules.pooling`, accumulated likewise. Nothing is kept for it.

    Raises:
      TypeError: `x` is not a floating-point array, a size or step is no int, or `count_include_pad` no bool.
      ValueError: `x` has no or more than 3 spatial axes, `window` or `strides` are not positive or do not fit them,
        `padding` is negative or none of the above, or `feature_axis` is 0 or out of range.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxnorm as jn
      >>> x = jnp.arange(1.0, 6.0).reshape(1, 5, 1)
      >>> print(jn.avg_pool(x, 2, padding=((1, 0),))[0, :, 0])
      [0.5 2.5 4.5]
      >>> print(jn.avg_pool(x, 2, padding=((1, 0),), count_include_pad=False)[0, :, 0])
      [1.  2.5 4.5]

    References:
      Dumoulin and Visin 2016, "A guide to convolution arithmetic for deep learning", https://arxiv.org/abs/1603.07285.
    """
    x, windows = _checked(x, window, strides, padding, feature_axis)
    windows = dataclasses.replace(windows, count_padding=static_bool("count_include_pad", count_include_pad))
    return _on_mesh(_avg_pool, windows, x)


def _checked(x: ArrayLike, window: Any, strides: Any, padding: Any, feature_axis: Any) -> tuple[jax.Array, Windows]:
    """The array, and how the windows lie in it."""
    x = as_float_array("x", x)
    if x.ndim not in (3, 4, 5):
        raise ValueError(f"x must have a batch, 1 to 3 spatial axes and channels, got shape {x.shape}")
    channels = channel_axis(x, feature_axis)
    axes = tuple(axis for axis in range(1, x.ndim) if axis != channels)
    sizes = tuple(x.shape[axis] for axis in axes)
    window = _per_axis("window", window, len(axes))
    strides = window if strides is None else _per_axis("strides", strides, len(axes))
    return x, Windows(axes, sizes, window, strides, _pads(padding, sizes, window, strides), x.ndim)


def _pads(padding: Any, sizes: tuple[int, ...], window: tuple[int, ...], strides: tuple[int, ...]) -> Pairs:
    """The padding as pairs that are not negative."""
    if isinstance(padding, str):
        if padding.upper() not in ("SAME", "SAME_LOWER", "VALID"):
            names = '"SAME", "SAME_LOWER", "VALID"'
            raise ValueError(f"padding must be {names}, an int, or ints or pairs of ints, got {padding!r}")
        return tuple((int(low), int(high)) for low, high in lax.padtype_to_pads(sizes, window, strides, padding))
    pads = _pairs(padding, len(sizes))
    if any(end < 0 for pair in pads for end in pair):
        raise ValueError(f"padding must not be negative, got {padding!r}")
    return pads


def _on_mesh(rule: Callable[..., Any], windows: Windows, x: jax.Array) -> jax.Array:
    """The pooling of a checked array, on explicit mesh axes of whole rows, as y's need not divide them."""
    x = gathered(x, windows.axes)
    return with_shardings(functools.partial(rule, windows), spec_of(x), x)


# --- the rules ------------------------------------------------------------------------------------------------------


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _max_pool(windows: Windows, x: jax.Array) -> jax.Array:
    return with_windows(maximum, windows, x)


def _max_pool_fwd(windows: Windows, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    return with_windows(maximum, windows, x), x


def _max_pool_bwd(windows: Windows, x: jax.Array, g: jax.Array) -> tuple[jax.Array]:
    return (cotangent_for(x, with_windows(maximum_backward, windows, lax.stop_gradient(x), g)),)


_max_pool.defvjp(_max_pool_fwd, _max_pool_bwd)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _avg_pool(windows: Windows, x: jax.Array) -> jax.Array:
    return with_windows(average, windows, x)


def _avg_pool_fwd(windows: Windows, x: jax.Array) -> tuple[jax.Array, None]:
    return with_windows(average, windows, x), None


def _avg_pool_bwd(windows: Windows, kept: None, g: jax.Array) -> tuple[jax.Array]:
    del kept
    return (with_windows(average_backward, windows, g),)


_avg_pool.defvjp(_avg_pool_fwd, _avg_pool_bwd)
