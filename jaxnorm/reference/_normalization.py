"""Normalizations in two passes over x."""

import jax.numpy as jnp
from jax import lax

from jaxnorm import _batch_norm, norms
from jaxnorm._batch_norm import BatchStats, init_batch_stats
from jaxnorm.reference._arrays import compute, features_view
from jaxnorm.reference._meshes import split_like


def _axes(axes, ndim):
    axes = (axes,) if isinstance(axes, int) else tuple(axes)
    return tuple(sorted(a % ndim for a in axes))


def _statistics(x, axes, use_mean, ddof, where, axis_name):
    """Count, mean, sum of squared deviations and variance of each group, two passes over the devices' union."""
    sync = (lambda v: v) if axis_name is None else (lambda v: lax.psum(v, axis_name))
    mask = jnp.ones(x.shape, bool) if where is None else jnp.broadcast_to(where, x.shape)
    count = sync(jnp.sum(mask, axes, keepdims=True, dtype=x.dtype))
    mean = sync(jnp.sum(jnp.where(mask, x, 0), axes, keepdims=True)) / jnp.maximum(count, 1) if use_mean else 0 * count
    squares = sync(jnp.sum(jnp.where(mask, jnp.square(x - mean), 0), axes, keepdims=True))
    return count, mean, squares, squares / jnp.maximum(count - ddof, 1)


def _x_hat(x, mean, var, epsilon, nonempty):
    v = var + epsilon
    valid = nonempty & (v != 0)
    return jnp.where(valid, (x - mean) * lax.rsqrt(jnp.where(valid, v, 1)), 0)


def _affine_map(x_hat, scale, bias):
    y = x_hat if scale is None else x_hat * jnp.broadcast_to(scale, x_hat.shape)
    return y if bias is None else y + jnp.broadcast_to(bias, x_hat.shape)


@split_like(norms.normalize)
def normalize(
    x, scale=None, bias=None, *, reduction_axes, epsilon=1e-5, use_mean=True, ddof=0, where=None, axis_name=None
):
    dtype = jnp.asarray(x).dtype
    x, scale, bias = compute(x, scale, bias)
    axes = _axes(reduction_axes, x.ndim)
    count, mean, _, var = _statistics(x, axes, use_mean, ddof, where, axis_name)
    return _affine_map(_x_hat(x, mean, var, epsilon, count > ddof), scale, bias).astype(dtype)


@split_like(norms.layer_norm)
def layer_norm(x, scale=None, bias=None, *, reduction_axes=-1, epsilon=1e-5, where=None, axis_name=None):
    x = jnp.asarray(x)
    axes = _axes(reduction_axes, x.ndim)
    scale, bias = (features_view(p, axes, x.ndim) for p in (scale, bias))
    return normalize(x, scale, bias, reduction_axes=axes, epsilon=epsilon, where=where, axis_name=axis_name)


@split_like(norms.rms_norm)
def rms_norm(x, scale=None, *, reduction_axes=-1, epsilon=1e-5, where=None, axis_name=None):
    x = jnp.asarray(x)
    axes = _axes(reduction_axes, x.ndim)
    scale = features_view(scale, axes, x.ndim)
    return normalize(x, scale, reduction_axes=axes, epsilon=epsilon, use_mean=False, where=where, axis_name=axis_name)


@split_like(norms.instance_norm)
def instance_norm(x, scale=None, bias=None, *, feature_axis=-1, epsilon=1e-5, where=None):
    x = jnp.asarray(x)
    axis = feature_axis % x.ndim
    scale, bias = (features_view(p, (axis,), x.ndim) for p in (scale, bias))
    axes = tuple(a for a in range(1, x.ndim) if a != axis)
    return normalize(x, scale, bias, reduction_axes=axes, epsilon=epsilon, where=where)


@split_like(norms.group_norm)
def group_norm(x, scale=None, bias=None, *, num_groups, feature_axis=-1, epsilon=1e-5, where=None):
    x = jnp.asarray(x)
    axis = feature_axis % x.ndim
    split = x.shape[:axis] + (num_groups, x.shape[axis] // num_groups) + x.shape[axis + 1 :]
    where = None if where is None else jnp.broadcast_to(where, x.shape).reshape(split)
    axes = tuple(a for a in range(1, x.ndim + 1) if a != axis)
    x_hat = normalize(*compute(x.reshape(split)), reduction_axes=axes, epsilon=epsilon, where=where)
    scale, bias = (features_view(p, (axis,), x.ndim) for p in (scale, bias))
    x_hat, scale, bias = compute(x_hat.reshape(x.shape), scale, bias)
    return _affine_map(x_hat, scale, bias).astype(x.dtype)


@split_like(_batch_norm.batch_norm)
def batch_norm(
    x,
    scale=None,
    bias=None,
    stats=None,
    *,
    training,
    feature_axis=-1,
    momentum=0.99,
    epsilon=1e-5,
    ddof=0,
    running_ddof=0,
    where=None,
    axis_name=None,
):
    dtype, axis = jnp.asarray(x).dtype, feature_axis % jnp.ndim(x)
    axes = tuple(a for a in range(jnp.ndim(x)) if a != axis)
    old = None if stats is None else lax.stop_gradient(BatchStats(*stats))
    x, scale, bias, old_mean, old_var = compute(x, scale, bias, *(old or (None, None)))
    scale, bias, mean, var = (features_view(p, (axis,), x.ndim) for p in (scale, bias, old_mean, old_var))
    if not training:
        x_hat = _x_hat(x, mean, var, epsilon, jnp.ones((), bool))
        return _affine_map(x_hat, scale, bias).astype(dtype), old
    count, mean, squares, var = _statistics(x, axes, True, ddof, where, axis_name)
    y = _affine_map(_x_hat(x, mean, var, epsilon, count > ddof), scale, bias).astype(dtype)
    count, mean, squares = (lax.stop_gradient(s).reshape(x.shape[axis]) for s in (count, mean, squares))
    if old is None:
        (old_mean, old_var), momentum = init_batch_stats(x.shape[axis], dtype=x.dtype), 0.0
    new_mean = momentum * old_mean + (1 - momentum) * mean
    new_var = momentum * old_var + (1 - momentum) * squares / jnp.maximum(count - running_ddof, 1)
    return y, BatchStats(
        jnp.where(count > ddof, new_mean, old_mean),
        jnp.where(count > max(ddof, running_ddof), new_var, old_var),
    )
