"""Softmax cross-entropy with integer labels, on the rule in `jaxnorm._rules.cross_entropy`."""

import dataclasses
import functools
from typing import Any, Literal, NamedTuple, TypedDict, Unpack, overload

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxnorm._arguments import (
    as_class_weights,
    as_float_array,
    as_labels,
    as_mask,
    canonical_axis,
    static_bool,
    static_float,
    static_int,
    static_softcap,
)
from jaxnorm._cotangents import cast, compute_dtype, cotangent_for
from jaxnorm._lower.rows import Rows
from jaxnorm._rules import cross_entropy as rule
from jaxnorm._rules import entropy
from jaxnorm._rules.classes import class_index, is_label, mask_view, masked, per_class, pick, widened
from jaxnorm._rules.cross_entropy import LabelOptions
from jaxnorm._sharding import spec_of, with_shardings

Inputs = tuple[jax.Array, jax.Array, jax.Array | None, jax.Array | None]  # logits, labels, where, class weights
Results = tuple[jax.Array, jax.Array, jax.Array | None]  # loss, lse, entropy


@dataclasses.dataclass(frozen=True)
class Options:
    """The static side of a cross-entropy with integer labels."""

    axis: int
    loss: LabelOptions


class Residuals(NamedTuple):
    """What is kept for the backward pass: the inputs and two or three numbers per row."""

    logits: jax.Array  # the input, as it came
    labels: jax.Array  # the input, as it came: the logits' shape without the class axis
    where: jax.Array | None  # the mask itself
    class_weights: jax.Array | None  # the parameter itself, (C,)
    shift: jax.Array  # c, per row, float32 or float64: e_j comes back from it and the logits
    others: jax.Array  # S, per row, float32 or float64: total is it and the label's e_y, and (8) takes it alone
    gap: jax.Array | None  # E of the entropy, per row, float32 or float64, where that is returned


class OtherOptions(TypedDict, total=False):
    """The keyword arguments on which the type of the result does not depend."""

    ignore_index: int | None
    label_smoothing: float
    class_weights: ArrayLike | None
    logit_softcap: float | None


@overload
def softmax_cross_entropy_with_integer_labels(
    logits: ArrayLike,
    labels: ArrayLike,
    axis: int = ...,
    where: ArrayLike | None = ...,
    *,
    return_lse: Literal[False] = ...,
    return_entropy: Literal[False] = ...,
    **options: Unpack[OtherOptions],
) -> jax.Array: ...
@overload
def softmax_cross_entropy_with_integer_labels(
    logits: ArrayLike,
    labels: ArrayLike,
    axis: int = ...,
    where: ArrayLike | None = ...,
    *,
    return_lse: Literal[False] = ...,
    return_entropy: Literal[True],
    **options: Unpack[OtherOptions],
) -> tuple[jax.Array, jax.Array]: ...
@overload
def softmax_cross_entropy_with_integer_labels(
    logits: ArrayLike,
    labels: ArrayLike,
    axis: int = ...,
    where: ArrayLike | None = ...,
    *,
    return_lse: Literal[True],
    return_entropy: Literal[False] = ...,
    **options: Unpack[OtherOptions],
) -> tuple[jax.Array, jax.Array]: ...
@overload
def softmax_cross_entropy_with_integer_labels(
    logits: ArrayLike,
    labels: ArrayLike,
    axis: int = ...,
    where: ArrayLike | None = ...,
    *,
    return_lse: Literal[True],
    return_entropy: Literal[True],
    **options: Unpack[OtherOptions],
) -> tuple[jax.Array, jax.Array, jax.Array]: ...
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
    return_entropy: bool = False,
) -> jax.Array | tuple[jax.Array, ...]:
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
      return_entropy: also return the entropy of each row's prediction, `lse - sum(p * logits)`; static.

    Returns:
      The loss, of the shape of `labels`, in the dtype of `logits` (float32 for 16-bit logits), or a tuple of it and
      what was asked for, alike: the log-sum-exp, so that the z-loss is `loss + k * lse**2`, and the entropy. These are
      the prediction's, whatever the label, with mask and soft cap and without weights and smoothing. The entropy is
      never negative, and 0 for a row without classes.

    Gradient:
      `g * (softmax(logits) - one_hot(label))`, in the dtype of `logits`; the label's own entry as minus the sum of the
      others, which keeps its relative precision when the prediction is confident. The entropy adds
      `-p * (logits - lse + entropy)` times its own g. Kept for it: the inputs and two numbers per row, with the entropy
      three.

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
      >>> _, entropy = jn.softmax_cross_entropy_with_integer_labels(logits, jnp.array([1, 1]), return_entropy=True)
      >>> print(f"{entropy[0]:.2e} {entropy[1]:.4f}")
      1.74e-16 0.6931

    References:
      Goodfellow, Bengio and Courville 2016, "Deep Learning", section 6.2.2; Szegedy et al. 2016,
      https://arxiv.org/abs/1512.00567.
    """
    logits = as_float_array("logits", logits)
    axis = canonical_axis("axis", axis, logits.shape, "logits")
    label_options = LabelOptions(
        static_float("label_smoothing", label_smoothing, 0.0, 1.0),
        None if ignore_index is None else static_int("ignore_index", ignore_index),
        static_softcap(logit_softcap),
        static_bool("return_lse", return_lse),
        static_bool("return_entropy", return_entropy),
    )
    labels = as_labels(labels, logits.shape, axis, "logits")
    where = as_mask(where, logits.shape, "logits")
    weights = as_class_weights(class_weights, logits.shape[axis])
    of_arrays = functools.partial(_cross_entropy, Options(axis, label_options))
    spec = spec_of(logits, without=[axis])
    loss, lse, entropy = with_shardings(of_arrays, spec, logits, labels, where, weights)
    wanted = [other for other, asked in ((lse, return_lse), (entropy, return_entropy)) if asked]
    return (loss, *wanted) if wanted else loss


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _cross_entropy(
    options: Options,
    logits: jax.Array,
    labels: jax.Array,
    where: jax.Array | None,
    class_weights: jax.Array | None,
) -> Results:
    return _cross_entropy_fwd(options, logits, labels, where, class_weights)[0]


def _cross_entropy_fwd(
    options: Options,
    logits: jax.Array,
    labels: jax.Array,
    where: jax.Array | None,
    class_weights: jax.Array | None,
) -> tuple[Results, Residuals]:
    rows, mask = Rows((options.axis,)), mask_view(where, logits.ndim)
    logits_of = functools.partial(_logits, options, compute_dtype(logits, class_weights))
    residuals, of_prediction = _sums(options, rows, logits_of, (logits, labels, where, class_weights))
    shift, row = residuals.shift, _row(options, residuals)
    smooth = shift

    def smooth_of(weights: jax.Array, shift: jax.Array, logits: jax.Array, mask: jax.Array | None) -> jax.Array:
        return rule.smooth_terms(weights, shift, logits_of(logits, mask), mask)

    if options.loss.label_smoothing:
        smooth = rows.total(smooth_of, row.smoothing.uniform * _weights(options, residuals), shift, logits, mask)

    def of_rows(result: jax.Array) -> jax.Array:
        return cast(jnp.squeeze(result, options.axis), compute_dtype(logits))

    loss, lse = map(of_rows, rule.losses(options.loss, row, smooth))
    return (loss, lse, None if of_prediction is None else of_rows(of_prediction)), residuals


def _sums(
    options: Options, rows: Rows, logits_of: rule.Elementwise, inputs: Inputs
) -> tuple[Residuals, jax.Array | None]:
    """What is kept, and the entropy if it is asked for."""
    logits, labels, where, _ = inputs
    mask, wide = mask_view(where, logits.ndim), widened(jnp.expand_dims(labels, options.axis))
    if options.loss.return_entropy:
        sums = entropy.sums_of(rows, logits_of, logits, mask)
        kept = Residuals(*inputs, sums.shift, sums.others, sums.gap)
        return kept._replace(others=sums.without(_row(options, kept).e_y)), sums.entropy
    index = class_index(wide.dtype, logits.shape, options.axis)
    return Residuals(*inputs, *rule.label_sums(rows, logits_of, index, wide, logits, mask), None), None


def _cross_entropy_bwd(
    options: Options, residuals: Residuals, cotangents: Results
) -> tuple[jax.Array, None, None, jax.Array | None]:
    logits, axis, dtype = residuals.logits, options.axis, residuals.shift.dtype
    row, mask, weights = _row(options, residuals), mask_view(residuals.where, logits.ndim), _weights(options, residuals)
    l = _logits(options, dtype, logits, mask)
    own = is_label(widened(jnp.expand_dims(residuals.labels, axis)), logits.shape, axis)
    g, h, *k = (jnp.expand_dims(cast(cotangent, dtype), axis) for cotangent in cotangents if cotangent is not None)
    factors, e, others = rule.factors_of(options.loss, row, g, h), rule.exponentials(l, row.shift, own), None
    if residuals.gap is not None:
        of_entropy = entropy.entropy_factors(row.others + row.e_y, residuals.gap, *k)
        others = entropy.dlogits(of_entropy, jnp.exp(l - row.shift), l, row.shift)
    dlogits = rule.dlogits(options.loss, row, factors, e, own, weights, cast(logits, dtype), mask, others)
    dweights = None
    if residuals.class_weights is not None:
        terms = rule.dweights(options.loss, row, g, own, l, mask)
        dweights = cotangent_for(residuals.class_weights, terms, weights.shape)
    return cotangent_for(logits, dlogits), None, None, dweights


_cross_entropy.defvjp(_cross_entropy_fwd, _cross_entropy_bwd)


def _logits(options: Options, dtype: Any, logits: jax.Array, mask: jax.Array | None) -> jax.Array:
    """l: the logits in the compute dtype, capped, with -inf where masked."""
    return masked(rule.softcapped(options.loss, cast(logits, dtype)), mask)


def _weights(options: Options, residuals: Residuals) -> jax.Array:
    """w along the class axis, or 1 if there are none."""
    ndim, dtype = residuals.logits.ndim, residuals.shift.dtype
    if residuals.class_weights is None:
        return jnp.ones((1,) * ndim, dtype)
    return per_class(cast(residuals.class_weights, dtype), ndim, options.axis)


def _row(options: Options, residuals: Residuals) -> rule.Row:
    """The rule's terms of each row, from what is kept."""
    logits, axis, shift = residuals.logits, options.axis, residuals.shift
    wide, mask = widened(jnp.expand_dims(residuals.labels, axis)), mask_view(residuals.where, logits.ndim)
    logit, is_masked = rule.softcapped(options.loss, cast(pick(logits, wide, axis), shift.dtype)), None
    if mask is not None:
        is_masked = ~pick(jnp.broadcast_to(mask, logits.shape), wide, axis)
        logit = jnp.where(is_masked, -jnp.inf, logit)
    label = rule.label_of(options.loss, wide, logits.shape[axis], residuals.class_weights, is_masked, shift.dtype)
    logit = jnp.where(label.valid, logit, -jnp.inf)
    smoothing = rule.smoothing_of(options.loss, _weights(options, residuals), mask, logits.shape, axis)
    return rule.Row(shift, residuals.others, logit, label, smoothing)
