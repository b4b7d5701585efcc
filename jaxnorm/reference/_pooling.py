"""Pooling by way of every entry of every window, stacked along a new axis."""

import itertools

import jax.numpy as jnp
from jax import lax

from jaxnorm.reference._arrays import compute


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
    entries, are_in = [], []
    for offsets in itertools.product(*map(range, window)):
        entry, is_in = x, jnp.ones((1,) * x.ndim, bool)
        for axis, size, k, s, (low, high), offset in zip(axes, sizes, window, strides, pads, offsets, strict=True):
            at = s * jnp.arange(max(0, (size + low + high - k) // s + 1)) + offset - low
            view = [-1 if a == axis else 1 for a in range(x.ndim)]
            is_in = is_in & ((at >= 0) & (at < size)).reshape(view)
            ends = [(0, a == axis) for a in range(x.ndim)]  # so that an empty x has an entry too
            entry = jnp.take(jnp.pad(entry, ends), jnp.clip(at, 0, size), axis=axis)
        entries.append(jnp.where(is_in, entry, 0))
        are_in.append(jnp.broadcast_to(is_in, entry.shape))
    return jnp.stack(entries, -1), jnp.stack(are_in, -1)


def max_pool(x, window, *, strides=None, padding="VALID", feature_axis=-1):
    entries, are_in = _entries(x, window, strides, padding, feature_axis)
    largest = jnp.max(jnp.where(are_in, entries, -jnp.inf), axis=-1, keepdims=True)  # NaN if there is one
    wins = are_in & ((entries == largest) | jnp.isnan(entries))
    winner = jnp.take_along_axis(entries, jnp.argmax(wins, axis=-1, keepdims=True), axis=-1)
    return jnp.where(jnp.any(are_in, axis=-1), jnp.squeeze(winner, -1), -jnp.inf).astype(jnp.asarray(x).dtype)


def avg_pool(x, window, *, strides=None, padding="VALID", feature_axis=-1, count_include_pad=True):
    entries, are_in = _entries(x, window, strides, padding, feature_axis)
    count = jnp.sum(are_in, axis=-1, dtype=entries.dtype)
    count = entries.shape[-1] if count_include_pad else jnp.maximum(count, 1)
    return (jnp.sum(entries, axis=-1) / count).astype(jnp.asarray(x).dtype)
