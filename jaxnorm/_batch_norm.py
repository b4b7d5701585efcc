"""Batch normalization: the rule over every axis but the features, and its running statistics."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import export, lax
from jax.typing import ArrayLike

from jaxnorm._arguments import (
    AxisName,
    as_float_array,
    as_mask,
    as_parameter,
    canonical_axis,
    static_bool,
    static_float,
    static_int,
)
from jaxnorm._cotangents import cast, compute_dtype, expand_rank
from jaxnorm._lower.plain import Layout
from jaxnorm._normalized import Call, check_ddof, normalized, views
from jaxnorm._rules.normalization import Norm
from jaxnorm._sharding import spec_of, with_shardings


class BatchStats(NamedTuple):
    """Batch normalization's running statistics: a mean and a variance per channel.

    Attributes:
      mean: array of shape `(C,)`, float32 (float64 for float64 inputs).
      var: array of shape `(C,)`, float32 (float64 for float64 inputs).
    """

    mean: jax.Array
    var: jax.Array


export.register_namedtuple_serialization(BatchStats, serialized_name="jaxnorm.BatchStats")


def init_batch_stats(num_features: int, *, dtype: jax.typing.DTypeLike = jnp.float32) -> BatchStats:
    """Running statistics to start from: mean 0, variance 1.

    Args:
      num_features: the number of channels C; static.
      dtype: the floating-point dtype; static.

    Returns:
      `BatchStats` of two arrays of shape `(C,)`.

    Gradient:
      None: running statistics carry no gradient.

    Raises:
      TypeError: `num_features` is not an int, or `dtype` not a floating-point dtype.
      ValueError: `num_features` is negative.

    Example:
      >>> import jaxnorm as jn
      >>> print(jn.init_batch_stats(2).var)
      [1. 1.]

    References:
      Ioffe and Szegedy 2015, https://arxiv.org/abs/1502.03167.
    """
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(f"dtype must be a floating-point dtype, got {dtype}")
    shape = (static_int("num_features", num_features, minimum=0),)
    return BatchStats(jnp.zeros(shape, dtype), jnp.ones(shape, dtype))


def batch_norm(
    x: ArrayLike,
    scale: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    stats: BatchStats | None = None,
    *,
    training: bool,
    feature_axis: int = -1,
    momentum: float = 0.99,
    epsilon: float = 1e-5,
    ddof: int = 0,
    running_ddof: int = 0,
    where: ArrayLike | None = None,
    axis_name: AxisName = None,
) -> tuple[jax.Array, BatchStats]:
    """Batch normalization: each channel by its mean and variance over the whole batch, or by running ones.

    Args:
      x: floating-point array of any shape with a channel axis; differentiable.
      scale: float array of shape `(C,)`, or None for 1; differentiable.
      bias: float array of shape `(C,)`, or None for 0; differentiable.
      stats: the running statistics, two float arrays of shape `(C,)`; without gradient. None starts from the batch's.
      training: True normalizes by the batch's statistics, False by `stats`; static.
      feature_axis: the channels' axis; every other axis is reduced; static.
      momentum: in [0, 1]; the new statistics are `momentum * old + (1 - momentum) * batch`; static.
      epsilon: added to the variance, at least 0; static.
      ddof: the variance that normalizes divides by `n - ddof`; static.
      running_ddof: the same for the running variance alone (1 is PyTorch's convention); static.
      where: boolean mask that broadcasts to `x.shape`: the positions that enter the batch's statistics.
      axis_name: mapped axes over whose devices the batch is spread (synced statistics); static.

    Returns:
      `(y, new_stats)`: y of x's shape and dtype; the statistics float32, or float64 if an argument is float64. With
      `training=False` they are `stats`, unchanged. A channel with nothing selected leaves its own unchanged (mean 0
      and variance 1 if there were none); one with `n <= running_ddof` selected leaves its variance unchanged.

    Gradient:
      In training as `layer_norm`, over the batch; with running statistics `dx = r * g_hat`. The statistics, old and
      new, carry none. Kept for it: the inputs and per channel two and a half numbers.

    Raises:
      TypeError: an array is not floating-point, `where` not boolean, `stats` no pair.
      ValueError: `training=False` without `stats`, a parameter's shape, an option out of its range, or a batch of a
        size n with `0 < n <= ddof` or `0 < n <= running_ddof`.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxnorm as jn
      >>> x = jnp.array([[1.0, 10.0], [3.0, 30.0]])
      >>> y, stats = jn.batch_norm(x, stats=jn.init_batch_stats(2), training=True, momentum=0.9)
      >>> print(y.round(3), stats.mean.round(3), stats.var.round(3))
      [[-1. -1.]
       [ 1.  1.]] [0.2 2. ] [ 1.  10.9]

    References:
      Ioffe and Szegedy 2015, https://arxiv.org/abs/1502.03167.
    """
    x = as_float_array("x", x)
    training = static_bool("training", training)
    axis = canonical_axis("feature_axis", feature_axis, x.shape, "x")
    axes = tuple(a for a in range(x.ndim) if a != axis)
    channels = (x.shape[axis],)
    meaning = f"the channels, axis {axis} of x of shape {x.shape}"
    scale, bias = as_parameter("scale", scale, channels, meaning), as_parameter("bias", bias, channels, meaning)
    old = None if stats is None else _as_stats(stats, channels, meaning)
    where = as_mask(where, x.shape, "x")
    momentum = static_float("momentum", momentum, 0.0, 1.0)
    running_ddof = static_int("running_ddof", running_ddof, minimum=0)
    view = tuple(s if a == axis else 1 for a, s in enumerate(x.shape))
    where_view = () if where is None else expand_rank(where.shape, x.ndim)
    layout = Layout(x.shape, axes, *views(scale, bias, view), where_view=where_view, axis_name=axis_name)
    call = Call(Norm(epsilon, ddof=ddof), layout, with_moments=training)
    if not training:
        if old is None:
            raise ValueError("stats must be given with training=False, got None")
        old = BatchStats(*(lax.stop_gradient(s) for s in old))
        given = (lax.reshape(old.mean, view), lax.reshape(old.var, view))
        return normalized(call, x, scale, bias, None, given)[0], old
    check_ddof("running_ddof", running_ddof, layout)
    y, moments = normalized(call, x, scale, bias, where)
    dtype = compute_dtype(x, *(old or ()))
    update = functools.partial(_update, channels[0], momentum, ddof, running_ddof, dtype)
    spec = spec_of(x, without=axes) if old is None else spec_of(old.mean)
    return y, with_shardings(update, spec, old, moments)


def _update(
    channels: int,
    momentum: float,
    ddof: int,
    running_ddof: int,
    dtype: Any,
    old: BatchStats | None,
    moments: Any,
) -> BatchStats:
    """The new running statistics: each channel's own again where the batch has nothing to say."""
    mean, squares, count = (cast(lax.stop_gradient(jnp.broadcast_to(m, channels)), dtype) for m in moments)
    var = squares / jnp.maximum(count - running_ddof, 1)
    if old is None:
        old, momentum = init_batch_stats(channels, dtype=dtype), 0.0
    old_mean, old_var = (cast(lax.stop_gradient(s), dtype) for s in old)
    new_mean, new_var = (momentum * o + (1 - momentum) * b for o, b in ((old_mean, mean), (old_var, var)))
    return BatchStats(
        jnp.where(count > ddof, new_mean, old_mean),
        jnp.where(count > max(ddof, running_ddof), new_var, old_var),
    )


def _as_stats(stats: Any, channels: tuple[int, ...], meaning: str) -> BatchStats:
    """`stats` as a checked `BatchStats`."""
    if not isinstance(stats, tuple | list) or len(stats) != 2:
        raise TypeError(f"stats must be a BatchStats (mean, var), got {type(stats).__name__}")
    mean, var = (
        as_parameter(f"stats.{n}", s, channels, meaning) for n, s in zip(BatchStats._fields, stats, strict=True)
    )
    if mean is None or var is None:
        raise TypeError("stats must be a BatchStats of two arrays, got None in it")
    return BatchStats(mean, var)
