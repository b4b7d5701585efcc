"""The classes of a row: which of them are masked, and which one is the label's."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxnorm._cotangents import cast, expand_rank, reshape


def mask_view(where: jax.Array | None, ndim: int) -> jax.Array | None:
    """The mask at the logits' rank."""
    return None if where is None else reshape(where, expand_rank(where.shape, ndim))


def masked(logits: jax.Array, mask: jax.Array | None) -> jax.Array:
    """`logits` with -inf in place of the masked classes."""
    return logits if mask is None else jnp.where(mask, logits, -jnp.inf)


def keep(values: jax.Array, mask: jax.Array | None) -> jax.Array:
    """`values` with 0 in place of the masked classes."""
    return values if mask is None else jnp.where(mask, values, 0)


def class_count(mask: jax.Array | None, dtype: Any, shape: tuple[int, ...], axis: int) -> jax.Array:
    """n: how many classes of each row are not masked, at least 1."""
    if mask is None:
        return jnp.full((1,) * len(shape), max(shape[axis], 1), dtype)
    spread = shape[axis] if mask.shape[axis] == 1 else 1
    return jnp.maximum(jnp.sum(mask, axis=axis, keepdims=True, dtype=dtype) * spread, 1)


def times(weight: jax.Array, value: jax.Array) -> jax.Array:
    """weight * value, which is 0 for a weight of 0 even if the value is infinite."""
    void = (weight == 0) & jnp.isinf(value)
    return jnp.where(void, 0, weight * jnp.where(void, 0, value))


def per_class(weights: jax.Array, ndim: int, axis: int) -> jax.Array:
    """A vector over the classes, shaped to broadcast along the class axis."""
    return lax.reshape(weights, (1,) * axis + weights.shape + (1,) * (ndim - 1 - axis))


# --- integer labels; they and what is picked by them have the class axis at size 1 ----------------------------------


def widened(labels: jax.Array) -> jax.Array:
    """Labels in a signed dtype that holds every class; an unsigned label beyond it becomes its largest number."""
    if labels.dtype in (jnp.uint32, jnp.uint64):
        labels = jnp.minimum(labels, jnp.iinfo(jnp.int32).max)
    return labels if labels.dtype == jnp.int64 else cast(labels, jnp.int32)


def in_range(labels: jax.Array, classes: int) -> jax.Array:
    """True for a label in [0, classes)."""
    return (labels >= 0) & (labels < classes)


def class_index(dtype: Any, shape: tuple[int, ...], axis: int) -> jax.Array:
    """The number of each class, to compare with labels; all other axes have size 1."""
    return lax.broadcasted_iota(dtype, [size if a == axis else 1 for a, size in enumerate(shape)], axis)


def is_label(labels: jax.Array, shape: tuple[int, ...], axis: int) -> jax.Array:
    """[j = y]: True at each row's own class."""
    return class_index(labels.dtype, shape, axis) == labels


def pick(values: jax.Array, labels: jax.Array, axis: int) -> jax.Array:
    """Each row's value at its label; another value of the row if the label is out of range, 0 without classes."""
    if values.shape[axis] == 0:
        return jnp.zeros(labels.shape, values.dtype)
    # Clipped without the class axis, so that XLA sees that forward and backward pass pick the same value.
    index = jnp.clip(jnp.squeeze(labels, axis), 0, values.shape[axis] - 1)
    return jnp.take_along_axis(values, jnp.expand_dims(index, axis), axis, mode="clip")


def label_weight(weights: jax.Array, labels: jax.Array) -> jax.Array:
    """w_y: each row's weight; another class's if the label is out of range, 1 without classes."""
    if weights.size == 0:
        return jnp.ones(labels.shape, weights.dtype)
    return jnp.take(weights, jnp.clip(labels, 0, weights.size - 1), mode="clip")
