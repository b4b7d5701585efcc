"""Pooling by way of every entry of every window, along a new axis."""

import math

import jax.numpy as jnp
from jax import lax

from jaxnorm import pooling
from jaxnorm.reference._arrays import compute
from jaxnorm.reference._meshes import split_like


def _entries(x, window, strides, padding, feature_axis):
    """The entries of each window along a new last axis, in row-major order, 0 in the padding; and which are x's."""
    (x,) = compute(x)
    axes = [axis for axis in range(1, x.ndim) if axis != feature_axis % x.ndim]
    window = (window,) * len(axes) if isinstance(window, int) else tuple(window)
    strides = window if strides is None else (strides,) * len(axes) if isinstance(strides, int) else tuple(strides)
    sizes = [x.shape[axis] for axis in axes]
    padding = lax.padtype_to_pads(sizes, window, strides, padding) if isinstance(padding, str) else padding
    padding = (padding,) * len(axes) if isinstance(padding, int) else padding
    pads = [(p, p) if isinstance(p, int) else p for p in padding]
    entries, are_in = x, jnp.ones((1,) * x.ndim, bool)
    for n, (axis, size, k, s, (low, high)) in enumerate(zip(axes, sizes, window, strides, pads, strict=True)):
        count = max(0, (size + low + high - k) // s + 1)
        at = s * jnp.arange(count)[:, None] + jnp.arange(k)[None, :] - low
        is_in = ((at >= 0) & (at < size)).reshape([count if a == axis else 1 for a in range(x.ndim)] + [1] * n + [k])
        are_in = are_in[..., None] & is_in
        entries = jnp.pad(entries, [(0, a == axis) for a in range(x.ndim + n)])  # so that an empty x has an entry too
        entries = jnp.take(entries, jnp.clip(at, 0, size).reshape(-1), axis=axis)
        entries = entries.reshape(*entries.shape[:axis], count, k, *entries.shape[axis + 1 :])
        entries = jnp.moveaxis(entries, axis + 1, -1)
    are_in = jnp.broadcast_to(are_in, entries.shape)
    shape = (*entries.shape[: x.ndim], math.prod(window))
    return jnp.where(are_in, entries, 0).reshape(shape), are_in.reshape(shape)


@split_like(pooling.max_pool, gathers=True)  # padding of split rows that do not divide raises
def max_pool(x, window, *, strides=None, padding="VALID", feature_axis=-1):
    entries, are_in = _entries(x, window, strides, padding, feature_axis)
    is_nan = are_in & jnp.isnan(entries)  # asked of each entry, since XLA's maximum of many may lose a NaN on a CPU
    largest = jnp.max(jnp.where(are_in, entries, -jnp.inf), axis=-1, keepdims=True)
    wins = jnp.where(jnp.any(is_nan, axis=-1, keepdims=True), is_nan, are_in & (entries == largest))
    winner = jnp.take_along_axis(entries, jnp.argmax(wins, axis=-1, keepdims=True), axis=-1)
    return jnp.where(jnp.any(are_in, axis=-1), jnp.squeeze(winner, -1), -jnp.inf).astype(jnp.asarray(x).dtype)


@split_like(pooling.avg_pool, gathers=True)
def avg_pool(x, window, *, strides=None, padding="VALID", feature_axis=-1, count_include_pad=True):
    entries, are_in = _entries(x, window, strides, padding, feature_axis)
    count = jnp.sum(are_in, axis=-1, dtype=entries.dtype)
    count = entries.shape[-1] if count_include_pad else jnp.maximum(count, 1)
    return (jnp.sum(entries, axis=-1) / count).astype(jnp.asarray(x).dtype)
