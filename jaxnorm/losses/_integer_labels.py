"""Softmax cross-entropy with integer labels.

Forward, for a label y, with the row's sums of `_rows`, and backward, for the cotangents g of the loss and h of lse; it
is the case t_j = [j = y] of `_dense_labels`:

    loss = nll_y        nll_j = -log p_j = (c - l_j) + log(total)        lse = c + log(total)                        (1)
    dl_j = g (p_j - [j = y]) + h p_j                                                                                 (2)

where p_y - 1 is -S / total and keeps its digits in that form. (Equation (3) is of dense labels alone.)

With class weights w and smoothing a over the n unmasked classes (PyTorch's definition):

    loss = A nll_y + sum_j B_j nll_j        A = (1 - a) w_y        B_j = w_j a / n        B = sum_j B_j              (4)
    dl_j = g ((A + B) p_j - B_j)  for j != y                                                                         (5)
    dl_y = g ((A + B_y) (p_y - 1) + (B - B_y) p_y)                                                                   (6)
    dw_j = sum over rows of g ([j = y] (1 - a) + a / n) nll_j                                                        (7)

A soft cap, l = cap tanh(z / cap), multiplies the gradient by

    1 - tanh^2 = 4 q / (1 + q)^2        q = exp(-2 |z / cap|)                                                        (8)

References: Goodfellow, Bengio and Courville 2016, "Deep Learning", section 6.2.2; Szegedy et al. 2016,
https://arxiv.org/abs/1512.00567 (smoothing); Gemma Team 2024, https://arxiv.org/abs/2408.00118 (soft cap).
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxnorm._arguments import as_float_array, as_mask, canonical_axis, static_bool, static_float, static_int
from jaxnorm._cotangents import cast, compute_dtype, cotangent_for
from jaxnorm._lower.rows import sum_over
from jaxnorm.losses import _rows


@dataclasses.dataclass(frozen=True)
class Options:
    """The static side of a cross-entropy."""

    axis: int
    label_smoothing: float
    ignore_index: int | None
    logit_softcap: float | None
    return_lse: bool


class Residuals(NamedTuple):
    """What is kept for the backward pass: the inputs and two numbers per row."""

    logits: jax.Array  # the input, as it came
    labels: jax.Array  # the input, as it came
    where: jax.Array | None  # the mask itself
    class_weights: jax.Array | None  # the parameter itself
    shift: jax.Array  # c, per row, float32 or float64
    others: jax.Array  # S without the label's class, per row, float32 or float64


def softmax_cross_entropy_with_integer_labels(
    logits: ArrayLike,
    labels: ArrayLike,
    axis: int = -1,
    where: ArrayLike | None = None,
    *,
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    class_weights: ArrayLike | None = None,
    logit_softcap: float | None = None,
    return_lse: bool = False,
) -> jax.Array | tuple[jax.Array, jax.Array]:
    """Softmax cross-entropy with integer labels: `-log_softmax(logits)[label]`.

    Args:
      logits: floating-point array with C classes along `axis`; differentiable.
      labels: integer array of the shape of `logits` without `axis`. A label outside [0, C) that is not `ignore_index`
        gives NaN in its own loss and gradient, and touches no other example.
      axis: the class axis; static.
      where: boolean mask that broadcasts to `logits.shape`: False gives a class probability 0, so that the loss is +inf
        if it is the label's.
      ignore_index: a label whose examples have loss 0 and gradient 0; static.
      label_smoothing: a in [0, 1], spread over the unmasked classes as in PyTorch; static.
      class_weights: float array of shape `(C,)`, as in PyTorch's `cross_entropy(reduction="none")`; differentiable.
      logit_softcap: t > 0 takes `t * tanh(logits / t)` for the logits; static.
      return_lse: also return the log-sum-exp of each row; static.

    Returns:
      The loss, of the shape of `labels`, in the dtype of `logits` (float32 for 16-bit logits); with `return_lse` a pair
      of it and the log-sum-exp, alike, so that the z-loss is `loss + k * lse**2`.

    Gradient:
      `g * (softmax(logits) - one_hot(label))`, in the dtype of `logits`; the label's own entry as minus the sum of the
      others, which keeps its relative precision when the prediction is confident. Kept for it: the inputs and two
      numbers per row.

    Raises:
      TypeError: `logits` is not floating-point, `labels` not integer, or `where` not boolean.
      ValueError: a shape does not fit, or an option is out of its range.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxnorm as jn
      >>> logits = jnp.array([[40.0, 0.0], [0.0, 0.0]])
      >>> labels = jnp.array([0, -1])
      >>> loss = jn.softmax_cross_entropy_with_integer_labels(logits, labels, ignore_index=-1)
      >>> print(f"{loss[0]:.2e} {loss[1]:.2e}")
      4.25e-18 0.00e+00

    References:
      Goodfellow, Bengio and Courville 2016, "Deep Learning", section 6.2.2; Szegedy et al. 2016,
      https://arxiv.org/abs/1512.00567.
    """
    logits = as_float_array("logits", logits)
    axis = canonical_axis("axis", axis, logits.ndim)
    options = Options(axis, *checked_options(label_smoothing, ignore_index, logit_softcap, return_lse))
    labels = _rows.as_labels(labels, logits.shape, axis, "logits")
    where = as_mask(where, logits.shape, "logits")
    weights = _rows.as_class_weights(class_weights, logits.shape[axis])
    loss, lse = _cross_entropy(options, logits, labels, where, weights)
    return (loss, lse) if options.return_lse else loss


def checked_options(label_smoothing, ignore_index, logit_softcap, return_lse):
    """The options of integer labels in the order of `Options`, checked."""
    softcap = None if logit_softcap is None else static_float("logit_softcap", logit_softcap, 0.0)
    if softcap is not None and (softcap == 0 or softcap == float("inf")):
        raise ValueError(f"logit_softcap must be positive and finite, got {logit_softcap}")
    ignored = None if ignore_index is None else static_int("ignore_index", ignore_index)
    smoothing = static_float("label_smoothing", label_smoothing, 0.0, 1.0)
    return smoothing, ignored, softcap, static_bool("return_lse", return_lse)


class Row(NamedTuple):
    """What (4) to (7) need to know of each row, whichever way its sums were taken; class axes have size 1."""

    shift: jax.Array  # c
    others: jax.Array  # S without the label's class
    logit: jax.Array  # the label's, -inf if the label is invalid
    valid: jax.Array  # the label lies in [0, C)
    ignored: jax.Array | None  # the label is ignore_index
    masked: jax.Array | None  # the label's class is masked: the loss is a constant +inf
    weight: jax.Array  # w_y
    uniform: jax.Array | float  # a / n
    spread: jax.Array | float  # B
    smooth: jax.Array | float  # sum_j B_j (c - l_j), for the forward pass alone


def losses_of(options: Options, row: Row) -> tuple[jax.Array, jax.Array]:
    """The loss (4) and the log-sum-exp of each row."""
    e_y = jnp.exp(row.logit - row.shift)
    log_total, empty = _rows.log_total(row.others, e_y), row.others + e_y == 0
    nll = jnp.where(row.valid, label_nll(row), 0)  # not inf: 0 * inf would reach the weights' second derivatives
    loss = _rows.times((1 - options.label_smoothing) * row.weight, nll)
    if options.label_smoothing:
        loss = loss + jnp.where(empty, jnp.inf, row.smooth + row.spread * log_total)
    loss = jnp.where(row.valid, loss, jnp.nan)
    if row.ignored is not None:
        loss = jnp.where(row.ignored, 0, loss)
    return loss, jnp.where(empty, -jnp.inf, row.shift + log_total)


def label_nll(row: Row) -> jax.Array:
    """-log p_y by (1), +inf for a label of probability 0."""
    impossible = row.logit == -jnp.inf
    logit = jnp.where(impossible, row.shift, row.logit)
    nll = (row.shift - logit) + _rows.log_total(row.others, jnp.exp(row.logit - row.shift))
    return jnp.where(impossible, jnp.inf, nll)


def coefficients(options: Options, row: Row, g: jax.Array, h: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Per row: the factor of e_j and that of w_j in (5) with (2)'s h p_j, and the label's own entry (6)."""
    g = jnp.where(row.valid, g, jnp.nan)
    if row.ignored is not None:
        g = jnp.where(row.ignored, 0, g)
    e_y = jnp.exp(row.logit - row.shift)
    total = row.others + e_y
    divisor = jnp.where(total == 0, jnp.inf, total)  # no factors that XLA would multiply anew for every class
    weight = row.weight if row.masked is None else jnp.where(row.masked, 0, row.weight)
    label, own = (1 - options.label_smoothing) * weight, row.uniform * weight  # A, B_y
    of_e = (g * (label + row.spread) + h) / divisor
    of_w = jnp.where(total == 0, 0, g * row.uniform)
    at_label = ((g * (row.spread - own) + h) * e_y - g * (label + own) * row.others) / divisor
    return of_e, of_w, at_label


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _cross_entropy(options, logits, labels, where, class_weights):
    return _cross_entropy_fwd(options, logits, labels, where, class_weights)[0]


def _cross_entropy_fwd(options, logits, labels, where, class_weights):
    axis, (l, mask, weights) = options.axis, _capped(options, logits, where, class_weights)
    wide = _rows.widened(jnp.expand_dims(labels, axis))
    index = _rows.class_index(wide.dtype, l.shape, axis)
    logits_of = functools.partial(_logits, options, l.dtype)

    def other(index, wide, shift, logits, mask):
        return _exponentials(logits_of(logits, mask), shift, index == wide)

    def smooth(weights, shift, logits, mask):
        l = logits_of(logits, mask)
        return _rows.times(_rows.keep(jnp.broadcast_to(weights, l.shape), mask), shift - l)

    shift = _rows.shift_of(logits_of, (axis,), logits, mask)
    others = sum_over(other, (axis,), index, wide, shift, logits, mask, shared=True)
    residuals = Residuals(logits, labels, where, class_weights, shift, others)
    row = _row(options, residuals)
    if options.label_smoothing:
        row = row._replace(smooth=sum_over(smooth, (axis,), row.uniform * weights, shift, logits, mask))
    loss, lse = (cast(jnp.squeeze(r, axis), compute_dtype(logits)) for r in losses_of(options, row))
    return (loss, lse), residuals


def _cross_entropy_bwd(options, residuals, cotangents):
    logits, labels, where, class_weights, shift, _ = residuals
    axis, (l, mask, weights) = options.axis, _capped(options, logits, where, class_weights)
    g, h = (jnp.expand_dims(cast(c, l.dtype), axis) for c in cotangents)
    row = _row(options, residuals)
    own = _rows.is_label(_rows.widened(jnp.expand_dims(labels, axis)), l.shape, axis)
    of_e, of_w, at_label = coefficients(options, row, g, h)
    dl = of_e * _exponentials(l, shift, own)
    if options.label_smoothing:
        dl = dl - of_w * weights
    dl = _rows.keep(jnp.where(own, at_label, dl), mask)  # (5), (6)
    if options.logit_softcap is not None:
        dl = dl * softcap_slope(options.logit_softcap, cast(logits, l.dtype))
    if row.ignored is not None and not options.return_lse:
        dl = jnp.where(row.ignored, 0, dl)  # whatever its logits hold: padding may be NaN
    terms = None if class_weights is None else dweights(options, row, g, own, l, mask)
    dclass_weights = None if terms is None else cotangent_for(class_weights, terms, weights.shape)
    return cotangent_for(logits, dl), None, None, dclass_weights


_cross_entropy.defvjp(_cross_entropy_fwd, _cross_entropy_bwd)


def _exponentials(l: jax.Array, shift: jax.Array, own: jax.Array) -> jax.Array:
    """e_j, and 0 at the label: in both passes the same, so that one that is compiled with the other finds it there."""
    return jnp.where(own, 0, jnp.exp(l - shift))


def dweights(options: Options, row: Row, g, own, l, mask) -> jax.Array:
    """The terms of (7), before the sum over the rows; an invalid or ignored label has none."""
    g = jnp.where(row.valid if row.ignored is None else row.valid & ~row.ignored, g, 0)
    terms = jnp.where(own, _rows.times((1 - options.label_smoothing) * g, label_nll(row)), 0)
    if options.label_smoothing:
        nll = (row.shift - l) + _rows.log_total(row.others, jnp.exp(row.logit - row.shift))
        terms = terms + _rows.times(_rows.keep(jnp.broadcast_to(g * row.uniform, l.shape), mask), nll)
    return terms


def _capped(options: Options, logits, where, class_weights) -> tuple[jax.Array, jax.Array | None, jax.Array]:
    """The logits, capped, with -inf where masked; the mask; the weights along the class axis (1 if there are none)."""
    dtype = compute_dtype(logits, class_weights)
    mask = _rows.mask_view(where, logits.ndim)
    if class_weights is None:
        weights = jnp.ones((1,) * logits.ndim, dtype)
    else:
        weights = _rows.per_class(cast(class_weights, dtype), logits.ndim, options.axis)
    return _logits(options, dtype, logits, mask), mask, weights


def _logits(options: Options, dtype, logits, mask) -> jax.Array:
    """The logits in the compute dtype, capped, with -inf where masked."""
    return _rows.masked(softcapped(options, cast(logits, dtype)), mask)


def _row(options: Options, residuals: Residuals) -> Row:
    """The per-row terms, all but `smooth`, from what is kept."""
    logits, labels, where, class_weights, shift, others = residuals
    axis, classes = options.axis, logits.shape[options.axis]
    wide = _rows.widened(jnp.expand_dims(labels, axis))
    valid = (wide >= 0) & (wide < classes)
    logit = softcapped(options, cast(_rows.pick(logits, wide, axis), shift.dtype))
    mask, masked = _rows.mask_view(where, logits.ndim), None
    if mask is not None:
        masked = ~_rows.pick(jnp.broadcast_to(mask, logits.shape), wide, axis)
        logit = jnp.where(masked, -jnp.inf, logit)
    weight = jnp.ones((1,) * logits.ndim, shift.dtype)
    spread: jax.Array | float = 0.0
    uniform: jax.Array | float = 0.0
    if class_weights is not None:
        weight = _rows.class_weight(cast(class_weights, shift.dtype), wide)
    if options.label_smoothing:
        uniform = options.label_smoothing / _rows.class_count(mask, shift.dtype, logits.shape, axis)
        weights = _capped(options, logits, where, class_weights)[2]
        spread = uniform * jnp.sum(_rows.keep(jnp.broadcast_to(weights, logits.shape), mask), axis=axis, keepdims=True)
    logit = jnp.where(valid, logit, -jnp.inf)
    ignored = None if options.ignore_index is None else wide == options.ignore_index
    return Row(shift, others, logit, valid, ignored, masked, weight, uniform, spread, 0.0)


def softcapped(options: Options, logits: jax.Array) -> jax.Array:
    """The logits of (8), if there is a cap."""
    cap = options.logit_softcap
    return logits if cap is None else cap * jnp.tanh(logits / cap)


def softcap_slope(cap: float, logits: jax.Array) -> jax.Array:
    """The slope of (8), in a form that keeps its digits where the cap is reached."""
    q = jnp.exp(-2 * jnp.abs(logits / cap))
    return 4 * q / jnp.square(1 + q)
