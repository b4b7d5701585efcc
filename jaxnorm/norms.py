"""Normalization over any axes, layer, RMS, instance and group normalization: each a choice of axes on one rule.

    layer, RMS   reduce `reduction_axes` (the features), one group per example
    instance     reduces every axis but the batch and the features
    group        the same after the features are split into consecutive groups of channels

Only the reshape of the parameters and, for groups, of x differ; both happen inside the rule, whose equations stand in
`_rules/normalization.py`. Batch normalization, with its running statistics, is in `_batch_norm.py`.
"""

import jax
from jax.typing import ArrayLike

from jaxnorm._arguments import (
    Axes,
    AxisName,
    as_float_array,
    as_mask,
    as_parameter,
    canonical_axes,
    channel_axis,
    check_broadcastable,
    static_int,
)
from jaxnorm._cotangents import expand_rank
from jaxnorm._lower.plain import Layout
from jaxnorm._normalized import Call, normalized, views
from jaxnorm._rules.normalization import Norm


def normalize(
    x: ArrayLike,
    scale: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    reduction_axes: Axes,
    epsilon: float = 1e-5,
    use_mean: bool = True,
    ddof: int = 0,
    where: ArrayLike | None = None,
    axis_name: AxisName = None,
) -> jax.Array:
    """Normalizes over any axes: `y = (x - mean) * rsqrt(var + epsilon) * scale + bias`.

    Args:
      x: floating-point array of any shape; differentiable.
      scale: float array that broadcasts to `x.shape`, or None for 1; differentiable.
      bias: float array that broadcasts to `x.shape`, or None for 0; differentiable.
      reduction_axes: the axis or axes over which the statistics are taken; static.
      epsilon: added to the variance, at least 0; static.
      use_mean: False leaves out the centring and takes `mean(x**2)` in place of the variance (RMS); static.
      ddof: the variance divides by `n - ddof`: 0 is the usual, 1 Bessel's correction; static.
      where: boolean mask that broadcasts to `x.shape`, True where a position enters the statistics. Outputs are
        computed for all positions. A group with `n <= ddof` selected has `y = bias` and gradient 0.
      axis_name: name, or tuple of names, of mapped axes (shard_map, `vmap(axis_name=...)`) whose devices share the
        statistics, each weighted by its count; static.

    Returns:
      Array of x's shape and dtype. Statistics are computed in float32 (float64 if an argument is float64), from
      sums about a value near the mean, so that a large common mean costs no digits.

    Gradient:
      Equations (3) and (4) of `_rules/normalization.py`. Kept for it: the inputs, and per group the mean and
      1/sqrt(var + epsilon).

    Raises:
      TypeError: an array is not floating-point, or `where` not boolean.
      ValueError: an axis out of range or named twice, a shape that does not broadcast, an option out of its range, or
        groups of a size n with `0 < n <= ddof`.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxnorm as jn
      >>> x = jnp.array([[1.0, 2.0, 3.0], [4.0, 4.0, 4.0]])
      >>> print(jn.normalize(x, reduction_axes=1, epsilon=0.0).round(3))
      [[-1.225  0.     1.225]
       [ 0.     0.     0.   ]]

    References:
      Ioffe and Szegedy 2015, https://arxiv.org/abs/1502.03167; Ba, Kiros and Hinton 2016,
      https://arxiv.org/abs/1607.06450; Zhang and Sennrich 2019, https://arxiv.org/abs/1910.07467.
    """
    x = as_float_array("x", x)
    axes = canonical_axes("reduction_axes", reduction_axes, x.ndim)
    scale, bias = (None if p is None else as_float_array(n, p) for n, p in (("scale", scale), ("bias", bias)))
    for name, parameter in (("scale", scale), ("bias", bias)):
        if parameter is not None:
            check_broadcastable(name, parameter.shape, x.shape, "x")
    mask = as_mask(where, x.shape, "x")

    def view(array: jax.Array | None) -> tuple[int, ...]:
        return () if array is None else expand_rank(array.shape, x.ndim)

    layout = Layout(x.shape, axes, view(scale), view(bias), view(mask), axis_name)
    return normalized(Call(Norm(epsilon, use_mean, ddof), layout), x, scale, bias, mask)[0]


def layer_norm(
    x: ArrayLike,
    scale: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    reduction_axes: Axes = -1,
    epsilon: float = 1e-5,
    where: ArrayLike | None = None,
    axis_name: AxisName = None,
) -> jax.Array:
    """Layer normalization: `y = (x - mean) * rsqrt(var + epsilon) * scale + bias` over the feature axes.

    Args:
      x: floating-point array; differentiable.
      scale: float array of the shape of `x` over `reduction_axes`, in ascending axis order, or None for 1;
        differentiable.
      bias: float array of the same shape as `scale`, or None for 0; differentiable.
      reduction_axes: the feature axis or axes, anywhere in `x`; static.
      epsilon: added to the variance, at least 0; static.
      where: boolean mask that broadcasts to `x.shape`: the positions that enter the statistics.
      axis_name: mapped axes whose devices share the statistics (features split over devices); static.

    Returns:
      Array of x's shape and dtype; statistics in float32, or float64 if an argument is float64.

    Gradient:
      `dx = r * (g_hat - mean(g_hat) - x_hat * mean(g_hat * x_hat))` with `g_hat = g * scale`. Kept for it: the inputs,
      and two and a half numbers per example.

    Raises:
      TypeError: an array is not floating-point, or `where` not boolean.
      ValueError: bad axes, a parameter's shape, or a negative `epsilon`.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxnorm as jn
      >>> print(jn.layer_norm(jnp.array([[1.0, 2.0, 3.0, 6.0]]), jnp.full(4, 2.0), jnp.ones(4)).round(2))
      [[-1.14 -0.07  1.    4.21]]

    References:
      Ba, Kiros and Hinton 2016, https://arxiv.org/abs/1607.06450.
    """
    return _over_features(Norm(epsilon), x, scale, bias, reduction_axes, where, axis_name)


def rms_norm(
    x: ArrayLike,
    scale: ArrayLike | None = None,
    *,
    reduction_axes: Axes = -1,
    epsilon: float = 1e-5,
    where: ArrayLike | None = None,
    axis_name: AxisName = None,
) -> jax.Array:
    """Root mean square normalization: `y = x * rsqrt(mean(x**2) + epsilon) * scale` over the feature axes.

    Args:
      x: floating-point array; differentiable.
      scale: float array of the shape of `x` over `reduction_axes`, in ascending axis order, or None for 1;
        differentiable.
      reduction_axes: the feature axis or axes, anywhere in `x`; static.
      epsilon: added to the mean square, at least 0; static.
      where: boolean mask that broadcasts to `x.shape`: the positions that enter the mean square.
      axis_name: mapped axes whose devices share the mean square; static.

    Returns:
      Array of x's shape and dtype; the mean square in float32, or float64 if an argument is float64.

    Gradient:
      `dx = r * (g_hat - x_hat * mean(g_hat * x_hat))` with `g_hat = g * scale`. Kept for it: the inputs, and one number
      per example.

    Raises:
      TypeError: an array is not floating-point, or `where` not boolean.
      ValueError: bad axes, a parameter's shape, or a negative `epsilon`.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxnorm as jn
      >>> print(jn.rms_norm(jnp.array([[2.0, 2.0, -2.0]])).round(2))
      [[ 1.  1. -1.]]

    References:
      Zhang and Sennrich 2019, https://arxiv.org/abs/1910.07467.
    """
    return _over_features(Norm(epsilon, use_mean=False), x, scale, None, reduction_axes, where, axis_name)


def instance_norm(
    x: ArrayLike,
    scale: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    feature_axis: int = -1,
    epsilon: float = 1e-5,
    where: ArrayLike | None = None,
) -> jax.Array:
    """Instance normalization: each channel of each example by its own mean and variance.

    Args:
      x: floating-point array of at least two axes, axis 0 the batch; differentiable.
      scale: float array of shape `(C,)`, or None for 1; differentiable.
      bias: float array of shape `(C,)`, or None for 0; differentiable.
      feature_axis: the channels' axis, not 0; static.
      epsilon: added to the variance, at least 0; static.
      where: boolean mask that broadcasts to `x.shape`: the positions that enter the statistics.

    Returns:
      Array of x's shape and dtype; statistics in float32, or float64 if an argument is float64.

    Gradient:
      As `layer_norm`, over the spatial axes. Kept for it: the inputs and the statistics.

    Raises:
      TypeError: an array is not floating-point, or `where` not boolean.
      ValueError: `feature_axis` is 0 or out of range, a parameter's shape, or a negative `epsilon`.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxnorm as jn
      >>> x = jnp.array([[[1.0, 10.0], [3.0, 30.0]]])
      >>> print(jn.instance_norm(x).round(2))
      [[[-1. -1.]
        [ 1.  1.]]]

    References:
      Ulyanov, Vedaldi and Lempitsky 2016, https://arxiv.org/abs/1607.08022.
    """
    array = as_float_array("x", x)
    channels = array.shape[channel_axis(array, feature_axis)]
    return _over_groups(array, scale, bias, max(channels, 1), feature_axis, epsilon, where)


def group_norm(
    x: ArrayLike,
    scale: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    num_groups: int,
    feature_axis: int = -1,
    epsilon: float = 1e-5,
    where: ArrayLike | None = None,
) -> jax.Array:
    """Group normalization: consecutive channels of each example share one mean and variance.

    Args:
      x: floating-point array of at least two axes, axis 0 the batch; differentiable.
      scale: float array of shape `(C,)`, or None for 1; differentiable.
      bias: float array of shape `(C,)`, or None for 0; differentiable.
      num_groups: the number of groups; divides `C`; static.
      feature_axis: the channels' axis, not 0; static.
      epsilon: added to the variance, at least 0; static.
      where: boolean mask that broadcasts to `x.shape`: the positions that enter the statistics.

    Returns:
      Array of x's shape and dtype; statistics in float32, or float64 if an argument is float64.

    Gradient:
      As `layer_norm`, over the spatial axes and a group's channels. Kept for it: the inputs and the statistics.

    Raises:
      TypeError: an array is not floating-point, or `where` not boolean.
      ValueError: `num_groups` does not divide `C`, `feature_axis` is 0 or out of range, a parameter's shape, or a
        negative `epsilon`.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxnorm as jn
      >>> x = jnp.array([[1.0, 3.0, 10.0, 30.0]])
      >>> print(jn.group_norm(x, num_groups=2).round(3))
      [[-1.  1. -1.  1.]]

    References:
      Wu and He 2018, https://arxiv.org/abs/1803.08494.
    """
    return _over_groups(as_float_array("x", x), scale, bias, num_groups, feature_axis, epsilon, where)


def _over_features(
    norm: Norm,
    x: ArrayLike,
    scale: ArrayLike | None,
    bias: ArrayLike | None,
    reduction_axes: Axes,
    where: ArrayLike | None,
    axis_name: AxisName,
) -> jax.Array:
    """The norms whose parameters have the shape of x over the reduced axes."""
    x = as_float_array("x", x)
    axes = canonical_axes("reduction_axes", reduction_axes, x.ndim)
    features = tuple(x.shape[a] for a in axes)
    meaning = f"x of shape {x.shape} over axes {axes}"
    scale, bias = as_parameter("scale", scale, features, meaning), as_parameter("bias", bias, features, meaning)
    mask = as_mask(where, x.shape, "x")
    view = tuple(s if a in axes else 1 for a, s in enumerate(x.shape))
    where_view = () if mask is None else expand_rank(mask.shape, x.ndim)
    layout = Layout(x.shape, axes, *views(scale, bias, view), where_view=where_view, axis_name=axis_name)
    return normalized(Call(norm, layout), x, scale, bias, mask)[0]


def _over_groups(
    x: jax.Array,
    scale: ArrayLike | None,
    bias: ArrayLike | None,
    num_groups: int,
    feature_axis: int,
    epsilon: float,
    where: ArrayLike | None,
) -> jax.Array:
    """The norms of each example over its spatial axes and one group of consecutive channels."""
    axis = channel_axis(x, feature_axis)
    channels, groups = x.shape[axis], static_int("num_groups", num_groups, minimum=1)
    if channels % groups:
        raise ValueError(f"num_groups must divide the {channels} channels (axis {axis} of x {x.shape}), got {groups}")

    def split(shape: tuple[int, ...]) -> tuple[int, ...]:
        inner = (1, 1) if shape[axis] == 1 != channels else (groups, channels // groups)
        return *shape[:axis], *inner, *shape[axis + 1 :]

    meaning = f"the channels, axis {axis} of x of shape {x.shape}"
    scale, bias = (as_parameter(n, p, (channels,), meaning) for n, p in (("scale", scale), ("bias", bias)))
    mask = as_mask(where, x.shape, "x")
    view = split(tuple(s if a == axis else 1 for a, s in enumerate(x.shape)))
    where_view = () if mask is None else split(expand_rank(mask.shape, x.ndim))
    axes = tuple(a for a in range(1, x.ndim + 1) if a != axis)
    layout = Layout(split(x.shape), axes, *views(scale, bias, view), where_view=where_view)
    return normalized(Call(Norm(epsilon), layout), x, scale, bias, mask)[0]
