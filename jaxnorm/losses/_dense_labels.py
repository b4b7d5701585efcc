"""Softmax cross-entropy with dense labels.

Forward, for labels t, with the row's sums of `_rows`:

    nll_j = -log p_j = (c - l_j) + log(total)        loss = sum_j t_j nll_j                                          (1)

Backward, for the incoming cotangent g and T = sum t, from dp_j/dl_i = p_j (delta_ij - p_i):

    dl_j = g (T p_j - t_j)        dt_j = g nll_j                                                                     (2)

Where k leads alone this would cancel: e_k = 1 and total = S + 1. With U the sum of t over the others, T = U + t_k and

    T p_k - t_k = (U - t_k S) / total                                                                                (3)

References: Goodfellow, Bengio and Courville 2016, "Deep Learning", section 6.2.2.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxnorm._arguments import as_array, as_float_array, as_mask, canonical_axis, static_float
from jaxnorm._cotangents import cast, compute_dtype, cotangent_for
from jaxnorm._lower.calls import outlined_on_cpu
from jaxnorm._lower.rows import sum_over
from jaxnorm.losses import _rows


@dataclasses.dataclass(frozen=True)
class Options:
    """The static side of a cross-entropy."""

    axis: int
    label_smoothing: float


class Residuals(NamedTuple):
    """What is kept for the backward pass: the inputs and per-row sums."""

    logits: jax.Array  # the input, as it came
    labels: jax.Array  # the input, as it came
    where: jax.Array | None  # the mask itself
    sums: _rows.Leaders  # c, S, E: per row, float32 or float64
    label_total: jax.Array  # T, per row
    label_others: jax.Array  # U, per row


def softmax_cross_entropy(
    logits: ArrayLike,
    labels: ArrayLike,
    axis: int = -1,
    where: ArrayLike | None = None,
    *,
    label_smoothing: float = 0.0,
) -> jax.Array:
    """Softmax cross-entropy with dense labels: `-sum(labels * log_softmax(logits))` over the class axis.

    Args:
      logits: floating-point array; differentiable.
      labels: array of the shape of `logits`: probabilities, summing to 1 or not; differentiable if floating-point.
      axis: the class axis; static.
      where: boolean mask that broadcasts to `logits.shape`: False gives a class probability 0, so that the loss is +inf
        if its label is positive.
      label_smoothing: a in [0, 1]; the labels are `(1 - a) * labels + a / C`, C the number of unmasked classes; static.

    Returns:
      Array of the shape of `logits` without `axis`, in the dtype of `logits` (float32 for 16-bit logits). A class with
      label 0 contributes 0, even where its logit is -inf.

    Gradient:
      `g * (sum(labels) * softmax(logits) - labels)` for the logits and `-g * log_softmax(logits)` for the labels (0
      where masked or -inf). Both keep their relative precision when a prediction is confident. Kept for it: the inputs
      and five numbers per row.

    Raises:
      TypeError: `logits` is not floating-point, or `where` not boolean.
      ValueError: the shapes differ, or an option is out of its range.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxnorm as jn
      >>> loss = jn.softmax_cross_entropy(jnp.array([[0.0, 0.0], [40.0, 0.0]]), jnp.array([[1.0, 0.0], [1.0, 0.0]]))
      >>> print(f"{loss[0]:.4f} {loss[1]:.2e}")
      0.6931 4.25e-18

    References:
      Goodfellow, Bengio and Courville 2016, "Deep Learning", section 6.2.2.
    """
    logits, labels = as_float_array("logits", logits), as_array("labels", labels)
    if jnp.issubdtype(labels.dtype, jnp.complexfloating):
        raise TypeError(f"labels must be real, got {labels.dtype} of shape {labels.shape}")
    if labels.shape != logits.shape:
        raise ValueError(f"labels must have the shape of logits, {logits.shape}, got {labels.shape}")
    options = Options(
        canonical_axis("axis", axis, logits.ndim), static_float("label_smoothing", label_smoothing, 0.0, 1.0)
    )
    return _cross_entropy(options, logits, labels, as_mask(where, logits.shape, "logits"))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _cross_entropy(options, logits, labels, where):
    return _cross_entropy_fwd(options, logits, labels, where, _rows.log_total_in_one_pass)[0]


def _cross_entropy_fwd(options, logits, labels, where, log_total=_rows.log_total):
    axes, dtype = (options.axis,), compute_dtype(logits, labels)
    mask, uniform = _rows.mask_view(where, logits.ndim), _uniform(options, dtype, logits, where)

    def logits_of(logits: jax.Array, mask: jax.Array | None) -> jax.Array:
        return _rows.masked(cast(logits, dtype), mask)

    shift = _rows.shift_of(logits_of, axes, logits, mask)
    sums = _rows.leaders(logits_of, axes, shift, logits, mask)

    def total(of: Callable[..., jax.Array]) -> jax.Array:
        def of_smoothed(logits, labels, mask, uniform, shift):
            l, t = _smoothed(options, logits, labels, mask, uniform)
            return of(l, t, _rows.keep(t, mask), shift)

        return sum_over(of_smoothed, axes, logits, labels, mask, uniform, shift)

    # A masked class adds +inf to the loss or nothing, and no gradient: the other sums take what is possible.
    label_total = total(lambda l, t, possible, shift: possible)
    label_others = total(lambda l, t, possible, shift: possible - possible * _rows.leads(l, shift))
    loss = total(lambda l, t, possible, shift: _rows.times(t, shift - l))  # (1)
    loss = jnp.squeeze(loss + label_total * log_total(sums.others, sums.leading), axes)
    return cast(loss, compute_dtype(logits)), Residuals(logits, labels, where, sums, label_total, label_others)


def _cross_entropy_bwd(options, residuals, g):
    logits, labels, where, (shift, others, leading), label_total, label_others = residuals
    mask, uniform = _rows.mask_view(where, logits.ndim), _uniform(options, shift.dtype, logits, where)
    l, t = _smoothed(options, logits, labels, mask, uniform)
    g = jnp.expand_dims(cast(g, l.dtype), options.axis)

    def factors(g, others, leading, label_total, label_others):
        """Of e and -t in (2), and of 1 and -t in (3), which in a tie is (2) as well."""
        total, alone = others + leading, leading == 1
        over_total = g * _rows.reciprocal(total)
        of_e, of_t = over_total * label_total, jnp.where(total == 0, 0, g)
        return (
            of_e,
            of_t,
            jnp.where(alone, over_total * label_others, of_e),
            jnp.where(alone, over_total * others, of_t),
        )

    # Apart, or XLA's CPU backend would compute them again for each element.
    of_e, of_t, leader, leader_of_t = outlined_on_cpu(factors, g, others, leading, label_total, label_others)
    e = jnp.exp(l - shift)
    # A leader's e - 1 is 0, but its derivative is not.
    dlogits = jnp.where(l == shift, (of_e * (e - 1) + leader) - t * leader_of_t, of_e * e - t * of_t)
    dlogits = cotangent_for(logits, _rows.keep(dlogits, mask))
    if not jnp.issubdtype(labels.dtype, jnp.floating):
        return dlogits, None, None
    nll = jnp.where(l == -jnp.inf, 0, (shift - l) + _rows.log_total(others, leading))
    return dlogits, cotangent_for(labels, (1 - options.label_smoothing) * g * nll), None


_cross_entropy.defvjp(_cross_entropy_fwd, _cross_entropy_bwd)


def _uniform(options: Options, dtype, logits, where) -> jax.Array | None:
    """a / C, of the rank of the logits, if there is smoothing."""
    if not options.label_smoothing:
        return None
    mask = _rows.mask_view(where, logits.ndim)
    uniform = options.label_smoothing / _rows.class_count(mask, dtype, logits.shape, options.axis)
    return jnp.full((1,) * logits.ndim, uniform, dtype) if isinstance(uniform, float) else uniform


def _smoothed(options: Options, logits, labels, mask, uniform) -> tuple[jax.Array, jax.Array]:
    """The logits with -inf where masked and the smoothed labels, in the compute dtype."""
    dtype = compute_dtype(logits, labels)
    l, t = _rows.masked(cast(logits, dtype), mask), cast(labels, dtype)
    t = jnp.where(l == -jnp.inf, lax.stop_gradient(t), t)  # no gradient there, so no second derivative either
    if uniform is not None:
        t = (1 - options.label_smoothing) * t + _rows.keep(jnp.broadcast_to(uniform, t.shape), mask)
    return l, t
