"""Rows of classes: the sums over the class axis that every softmax rule shares, and the handling of integer labels.

With c = max_j l_j and e_j = exp(l_j - c):

    total = sum_j e_j        p_j = e_j / total        lse = c + log(total)        -log p_j = (c - l_j) + log(total)  (1)

Digits of confident predictions. When class k leads far, total = 1 + tiny, and both log(total) and p_k - 1 cancel. Let S
be the sum of e_j over the others. Then

    log(total) = log1p(S + (e_k - 1))        p_k - 1 = -S / total                                                    (2)

keep every digit when k leads, since then e_k = 1 exactly. Where there is a label it is k, and S costs no further pass:
it is the sum that total needs, with a compare. Otherwise k are the leaders (e_k = 1, several only in a tie), with their
count E, a sum more, in place of e_k.

c is held constant in every derivative (it cancels in (1)), so that derivatives of any order are those of (1). A row
whose classes are all masked, or all -inf, has total = 0; its p is 0, its lse -inf and its gradient 0.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxnorm._arguments import as_array, as_parameter
from jaxnorm._cotangents import cast, expand_rank, reshape
from jaxnorm._lower.rows import Axes, Operand, max_over, sum_over


class Leaders(NamedTuple):
    """A row's sums, split at its leaders; all with the class axes kept at size 1."""

    shift: jax.Array  # c, or 0 for a row without classes
    others: jax.Array  # S
    leading: jax.Array  # E


def masked(x: jax.Array, where: jax.Array | None) -> jax.Array:
    """`x` with -inf in place of the classes that `where` leaves out."""
    return x if where is None else jnp.where(where, x, -jnp.inf)


def keep(values: jax.Array, where: jax.Array | None) -> jax.Array:
    """`values` with 0 in place of the classes that `where` leaves out."""
    return values if where is None else jnp.where(where, values, 0)


def times(weight: jax.Array, value: jax.Array) -> jax.Array:
    """weight * value, where a weight of 0 leaves nothing of an infinite value."""
    void = (weight == 0) & jnp.isinf(value)
    return jnp.where(void, 0, weight * jnp.where(void, 0, value))


def shift_of(logits_of: Callable[..., jax.Array], axes: Axes, *operands: Operand) -> jax.Array:
    """c of (1) for the logits `logits_of(*operands)`, without derivative; 0 for a row without classes."""
    largest = max_over(logits_of, axes, *lax.stop_gradient(operands))
    return jnp.where(largest == -jnp.inf, 0, largest)


def finite_shift_of(logits_of: Callable[..., jax.Array], axes: Axes, *operands: Operand) -> jax.Array:
    """The same, but the lowest number for a row without classes.

    XLA's CPU backend takes a function of a row that has no select, sums and all, in one pass (a YNNPACK fusion): for
    results of x's size where nothing else is kept. (Where more is kept, that fusion would write out what is shared.)
    """
    largest = max_over(logits_of, axes, *lax.stop_gradient(operands))
    return jnp.maximum(largest, jnp.finfo(largest.dtype).min)


def leads(logits: jax.Array, shift: jax.Array) -> jax.Array:
    """[l = c]: 1 for a leader and 0 for the others, without derivative.

    A select in place of the maximum would be written out by XLA's CPU backend before it takes a sum. What is below c is
    so by at least the smallest number, of which this makes 1.
    """
    steep = 1 / jnp.finfo(logits.dtype).tiny
    return jnp.maximum(0, 1 + steep * lax.stop_gradient(logits - shift))


def leaders(
    logits_of: Callable[..., jax.Array], axes: Axes, shift: jax.Array, *operands: Operand, shared: bool = False
) -> Leaders:
    """The sums of (2), with the leaders for k, for the logits `logits_of(*operands)`; `shared` as in `sum_over`.

    Of the derivative of a leader's e all is in S and nothing in E; every equation takes their sum.
    """

    def other(shift: jax.Array, *operands: Operand) -> jax.Array:
        logits = logits_of(*operands)
        return jnp.exp(logits - shift) - leads(logits, shift)

    def leading(shift: jax.Array, *operands: Operand) -> jax.Array:
        return leads(logits_of(*operands), shift)

    return Leaders(shift, *(sum_over(part, axes, shift, *operands, shared=shared) for part in (other, leading)))


def log_total(others: jax.Array, e_k: jax.Array) -> jax.Array:
    """log(total) by (2); 0 for a row without classes."""
    empty = others + e_k == 0
    return jnp.log1p(jnp.where(empty, 0, others + (e_k - 1)))


def log_total_in_one_pass(others: jax.Array, e_k: jax.Array) -> jax.Array:
    """`log_total` without a select, see `finite_shift_of`: for a row without classes it is a finite number too.

    And without a maximum, in which the fusion would lose a NaN.
    """
    return jnp.log1p(others + (e_k - 1) * (1 - jnp.finfo(others.dtype).eps / 2))


def reciprocal(total: jax.Array) -> jax.Array:
    """1 / total, and 0 for a row without classes."""
    return jnp.where(total == 0, 0, 1 / jnp.where(total == 0, 1, total))


def per_class(weights: jax.Array, ndim: int, axis: int) -> jax.Array:
    """A vector over the classes, shaped to broadcast along the class axis."""
    return lax.reshape(weights, (1,) * axis + weights.shape + (1,) * (ndim - 1 - axis))


def mask_view(where: jax.Array | None, ndim: int) -> jax.Array | None:
    """The mask at the logits' rank."""
    return None if where is None else reshape(where, expand_rank(where.shape, ndim))


def class_count(mask: jax.Array | None, dtype: Any, shape: tuple[int, ...], axis: int) -> jax.Array | float:
    """n: the unmasked classes of each row, at least 1."""
    if mask is None:
        return float(max(shape[axis], 1))
    spread = shape[axis] if mask.shape[axis] == 1 else 1
    return jnp.maximum(jnp.sum(mask, axis=axis, keepdims=True, dtype=dtype) * spread, 1)


# --- integer labels -------------------------------------------------------------------------------------------------


def as_labels(labels: ArrayLike, shape: tuple[int, ...], axis: int, of: str) -> jax.Array:
    """Integer labels, one for each row of the argument called `of`."""
    array = as_array("labels", labels)
    if not jnp.issubdtype(array.dtype, jnp.integer):
        raise TypeError(f"labels must be integers, got {array.dtype} of shape {array.shape}")
    rows = shape[:axis] + shape[axis + 1 :]
    if array.shape != rows:
        raise ValueError(
            f"labels must have shape {rows} ({of} of shape {shape} without axis {axis}), got {array.shape}"
        )
    return array


def as_class_weights(class_weights: ArrayLike | None, classes: int) -> jax.Array | None:
    """Optional weights, one for each class."""
    return as_parameter("class_weights", class_weights, (classes,), "one for each class")


def widened(labels: jax.Array) -> jax.Array:
    """Labels in a dtype that holds any class, with what no signed integer holds moved out of range."""
    if labels.dtype in (jnp.uint32, jnp.uint64):
        labels = jnp.minimum(labels, jnp.iinfo(jnp.int32).max)
    return labels if labels.dtype == jnp.int64 else cast(labels, jnp.int32)


def class_index(dtype: Any, shape: tuple[int, ...], axis: int) -> jax.Array:
    """The number of each class, to compare with labels; all other axes have size 1."""
    return lax.broadcasted_iota(dtype, [size if a == axis else 1 for a, size in enumerate(shape)], axis)


def is_label(labels: jax.Array, shape: tuple[int, ...], axis: int) -> jax.Array:
    """True at each row's own class; labels have the class axis at size 1."""
    return class_index(labels.dtype, shape, axis) == labels


def pick(values: jax.Array, labels: jax.Array, axis: int) -> jax.Array:
    """Each row's value at its label; some value of the row where the label is out of range, 0 without classes."""
    if values.shape[axis] == 0:
        return jnp.zeros(labels.shape, values.dtype)
    return jnp.take_along_axis(values, jnp.clip(labels, 0, values.shape[axis] - 1), axis, mode="clip")


def class_weight(weights: jax.Array, labels: jax.Array) -> jax.Array:
    """Each row's w_y; some weight where the label is out of range, 1 without classes."""
    if weights.size == 0:
        return jnp.ones(labels.shape, weights.dtype)
    return jnp.take(weights, jnp.clip(labels, 0, weights.size - 1), mode="clip")
