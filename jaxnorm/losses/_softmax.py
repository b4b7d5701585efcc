"""Softmax and its logarithm.

Forward, over the class axes, with c, e_j, total and log(total) of `jaxnorm._rules.cross_entropy`:

    softmax y_j = e_j / total        log_softmax y_j = (l_j - c) - log(total)                                        (1)

Backward, for the incoming cotangent g. The softmax's Jacobian is dp_j/dl_i = p_j (delta_ij - p_i), so that

    softmax      dx = y (g - sum(g y))                                                                               (2)
    log_softmax  dx = g - p sum(g),  p = e / total                                                                   (3)

References: Goodfellow, Bengio and Courville 2016, "Deep Learning", section 6.2.2; Bridle 1990, "Probabilistic
interpretation of feedforward classification network outputs".
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxnorm._arguments import Axes, as_float_array, as_mask, canonical_axes
from jaxnorm._cotangents import cast, compute_dtype, cotangent_for, varying_like
from jaxnorm._lower.rows import OnePass, Rows, where_rows_fit
from jaxnorm._rules.classes import keep, mask_view, masked
from jaxnorm._rules.cross_entropy import leaders, log_total, shift_of
from jaxnorm._sharding import spec_of, with_shardings


class SoftmaxResiduals(NamedTuple):
    """What softmax's backward pass keeps: its output, which attention's next product keeps anyway."""

    y: jax.Array  # the output, in x's dtype
    where: jax.Array | None  # the mask itself


class LogSoftmaxResiduals(NamedTuple):
    """What log_softmax's backward pass keeps: its input, from which p has more digits than from a 16-bit output."""

    x: jax.Array  # the input, as it came
    shift: jax.Array  # c, per row, float32 or float64: e_j comes back from it and x; 0 where both are computed again
    total: jax.Array  # sum_j e_j, per row, float32 or float64: p_j is e_j divided by it; 0 likewise
    where: jax.Array | None  # the mask itself


def softmax(x: ArrayLike, axis: Axes = -1, where: ArrayLike | None = None) -> jax.Array:
    """Softmax: `exp(x) / sum(exp(x))` over the class axis.

    Args:
      x: floating-point array; differentiable.
      axis: the class axis (or axes); static.
      where: boolean mask that broadcasts to `x.shape`: False gives a class probability 0.

    Returns:
      Array of x's shape and dtype, computed in float32 (float64 for float64). A row without classes (all masked or all
      -inf) is 0.

    Gradient:
      `y * (g - sum(g * y))`, 0 where masked. Kept for it: the output.

    Raises:
      TypeError: `x` is not floating-point, or `where` not boolean.
      ValueError: `axis` is out of range, or `where` does not broadcast.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxnorm as jn
      >>> print(jn.softmax(jnp.log(jnp.array([1.0, 2.0, 1.0]))))
      [0.25 0.5  0.25]
      >>> print(jn.softmax(jnp.zeros(3), where=jnp.array([True, True, False])))
      [0.5 0.5 0. ]

    References:
      Goodfellow, Bengio and Courville 2016, "Deep Learning", section 6.2.2.
    """
    x, axes, where = _checked(x, axis, where)
    return with_shardings(functools.partial(_softmax, axes), spec_of(x), x, where)


def log_softmax(x: ArrayLike, axis: Axes = -1, where: ArrayLike | None = None) -> jax.Array:
    """Logarithm of the softmax: `x - log(sum(exp(x)))` over the class axis.

    Args:
      x: floating-point array; differentiable.
      axis: the class axis (or axes); static.
      where: boolean mask that broadcasts to `x.shape`: False gives a class log-probability -inf.

    Returns:
      Array of x's shape and dtype, computed in float32 (float64 for float64). A row without classes (all masked or all
      -inf) is -inf.

    Gradient:
      `g - softmax(x) * sum(g)`, 0 where masked or -inf. Kept for it: the input and two numbers per row.

    Raises:
      TypeError: `x` is not floating-point, or `where` not boolean.
      ValueError: `axis` is out of range, or `where` does not broadcast.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxnorm as jn
      >>> print(jn.log_softmax(jnp.array([0.0, 0.0])).round(4))
      [-0.6931 -0.6931]

    References:
      Goodfellow, Bengio and Courville 2016, "Deep Learning", section 6.2.2.
    """
    x, axes, where = _checked(x, axis, where)
    return with_shardings(functools.partial(_log_softmax, axes), spec_of(x), x, where)


def _checked(x: ArrayLike, axis: Axes, where: ArrayLike | None) -> tuple[jax.Array, tuple[int, ...], jax.Array | None]:
    x = as_float_array("x", x)
    return x, canonical_axes("axis", axis, x.shape, "x"), as_mask(where, x.shape, "x")


def _logits(x: jax.Array, mask: jax.Array | None) -> jax.Array:
    """l: x in the compute dtype with -inf where masked."""
    return masked(cast(x, compute_dtype(x)), mask)


def _exponentials(x: jax.Array, mask: jax.Array | None, shift: jax.Array) -> jax.Array:
    """e_j."""
    return jnp.exp(_logits(x, mask) - shift)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _softmax(axes: tuple[int, ...], x: jax.Array, where: jax.Array | None) -> jax.Array:
    return _softmax_fwd(axes, x, where)[0]


def _softmax_fwd(axes: tuple[int, ...], x: jax.Array, where: jax.Array | None) -> tuple[jax.Array, SoftmaxResiduals]:
    y = cast(OnePass(axes).probabilities(_logits, x, mask_view(where, x.ndim)), x.dtype)  # (1)
    return y, SoftmaxResiduals(y, where)


def _softmax_bwd(axes: tuple[int, ...], residuals: SoftmaxResiduals, g: jax.Array) -> tuple[jax.Array, None]:
    y, mask = residuals.y, mask_view(residuals.where, residuals.y.ndim)
    dtype = compute_dtype(y)

    def kept(g: jax.Array, mask: jax.Array | None) -> jax.Array:
        return keep(cast(g, dtype), mask)

    rows = OnePass(axes)
    p = rows.held(cast(y, dtype))
    along_p = rows.total(lambda p, g, mask: kept(g, mask) * p, p, g, mask)
    return cotangent_for(y, p * (kept(g, mask) - along_p)), None  # (2)


_softmax.defvjp(_softmax_fwd, _softmax_bwd)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _log_softmax(axes: tuple[int, ...], x: jax.Array, where: jax.Array | None) -> jax.Array:
    return _log_probabilities(axes, x, mask_view(where, x.ndim))


def _log_probabilities(axes: tuple[int, ...], x: jax.Array, mask: jax.Array | None) -> jax.Array:
    rows = OnePass(axes)
    sums = leaders(rows, _logits, rows.shift(_logits, x, mask), x, mask)
    return cast((_logits(x, mask) - sums.shift) - rows.log_total(sums.others, sums.leading), x.dtype)  # (1)


def _log_softmax_fwd(
    axes: tuple[int, ...], x: jax.Array, where: jax.Array | None
) -> tuple[jax.Array, LogSoftmaxResiduals]:
    def with_sums(x: jax.Array, mask: jax.Array | None) -> tuple[jax.Array, jax.Array, jax.Array]:
        rows = Rows(axes)
        sums = leaders(rows, _logits, shift_of(rows, _logits, x, mask), x, mask)
        y = cast((_logits(x, mask) - sums.shift) - log_total(sums.others, sums.leading), x.dtype)  # (1)
        return y, sums.shift, sums.others + sums.leading

    def without_sums(x: jax.Array, mask: jax.Array | None) -> tuple[jax.Array, jax.Array, jax.Array]:
        y = _log_probabilities(axes, x, mask)
        none = jnp.zeros([1 if a in axes else size for a, size in enumerate(x.shape)], compute_dtype(x))
        none = varying_like(none, y)
        return y, none, none

    y, shift, total = where_rows_fit(axes, without_sums, with_sums, x, mask_view(where, x.ndim))
    return y, LogSoftmaxResiduals(x, shift, total, where)


def _log_softmax_bwd(axes: tuple[int, ...], residuals: LogSoftmaxResiduals, g: jax.Array) -> tuple[jax.Array, None]:
    x, mask = residuals.x, mask_view(residuals.where, residuals.x.ndim)

    def with_sums(x: jax.Array, mask: jax.Array | None, g: jax.Array, shift: jax.Array, total: jax.Array) -> jax.Array:
        logits = _logits(x, mask)

        def kept(g: jax.Array, mask: jax.Array | None) -> jax.Array:
            return keep(cast(g, logits.dtype), mask)

        over_g = Rows(axes).total(kept, g, mask)
        of_e = jnp.where(total == 0, 0, over_g / total)  # p is 0 in a row without classes
        dx = kept(g, mask) - jnp.exp(logits - shift) * of_e  # (3)
        return jnp.where(logits == -jnp.inf, 0, dx)

    def without_sums(x: jax.Array, mask: jax.Array | None, g: jax.Array, *_: jax.Array) -> jax.Array:
        rows = OnePass(axes)
        shift = rows.shift(_logits, x, mask)
        return with_sums(x, mask, g, shift, rows.total(_exponentials, x, mask, shift))

    operands = x, mask, g, residuals.shift, residuals.total
    dx = where_rows_fit(axes, without_sums, with_sums, *operands, again=True)
    return cotangent_for(x, dx), None


_log_softmax.defvjp(_log_softmax_fwd, _log_softmax_bwd)
