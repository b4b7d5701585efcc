"""Softmax cross-entropy with integer labels, on the rule in `jaxnorm._rules.cross_entropy`."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeVar, overload

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
from jaxnorm._cotangents import cast, compute_dtype, cotangent_for, varying_like
from jaxnorm._lower.rows import OnePass, Rows, where_rows_fit
from jaxnorm._rules import cross_entropy as rule
from jaxnorm._rules.classes import class_index, is_label, mask_view, masked, per_class, pick, widened
from jaxnorm._rules.cross_entropy import LabelOptions
from jaxnorm._sharding import spec_of, with_shardings

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Options:
    """The static side of a cross-entropy with integer labels."""

    axis: int
    loss: LabelOptions


class Residuals(NamedTuple):
    """What is kept for the backward pass: the inputs and two numbers per row."""

    logits: jax.Array  # the input, as it came
    labels: jax.Array  # the input, as it came: the logits' shape without the class axis
    where: jax.Array | None  # the mask itself
    class_weights: jax.Array | None  # the parameter itself, (C,)
    shift: jax.Array  # c, per row, float32 or float64: e_j comes back from it and the logits
    others: jax.Array  # S, per row, float32 or float64: total is it and the label's e_y, and (8) takes it alone


@overload
def softmax_cross_entropy_with_integer_labels(
    logits: ArrayLike,
    labels: ArrayLike,
    axis: int = ...,
    where: ArrayLike | None = ...,
    *,
    ignore_index: int | None = ...,
    label_smoothing: float = ...,
    class_weights: ArrayLike | None = ...,
    logit_softcap: float | None = ...,
    return_lse: Literal[False] = ...,
) -> jax.Array: ...
@overload
def softmax_cross_entropy_with_integer_labels(
    logits: ArrayLike,
    labels: ArrayLike,
    axis: int = ...,
    where: ArrayLike | None = ...,
    *,
    ignore_index: int | None = ...,
    label_smoothing: float = ...,
    class_weights: ArrayLike | None = ...,
    logit_softcap: float | None = ...,
    return_lse: Literal[True],
) -> tuple[jax.Array, jax.Array]: ...
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
    axis = canonical_axis("axis", axis, logits.shape, "logits")
    label_options = LabelOptions(
        static_float("label_smoothing", label_smoothing, 0.0, 1.0),
        None if ignore_index is None else static_int("ignore_index", ignore_index),
        static_softcap(logit_softcap),
        static_bool("return_lse", return_lse),
    )
    labels = as_labels(labels, logits.shape, axis, "logits")
    where = as_mask(where, logits.shape, "logits")
    weights = as_class_weights(class_weights, logits.shape[axis])
    of_arrays = functools.partial(_cross_entropy, Options(axis, label_options))
    spec = spec_of(logits, without=[axis])
    results: tuple[jax.Array, jax.Array] = with_shardings(of_arrays, spec, logits, labels, where, weights)
    return results if return_lse else results[0]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _cross_entropy(
    options: Options,
    logits: jax.Array,
    labels: jax.Array,
    where: jax.Array | None,
    class_weights: jax.Array | None,
) -> tuple[jax.Array, jax.Array]:
    return _cross_entropy_fwd(options, logits, labels, where, class_weights)[0]


def _cross_entropy_fwd(
    options: Options,
    logits: jax.Array,
    labels: jax.Array,
    where: jax.Array | None,
    class_weights: jax.Array | None,
) -> tuple[tuple[jax.Array, jax.Array], Residuals]:
    def with_sums(args: Arguments) -> tuple[jax.Array, ...]:
        rows, logits_of = Rows((options.axis,)), functools.partial(_logits, options, args.dtype)
        index = class_index(args.labels.dtype, logits.shape, options.axis)
        shift, others = rule.label_sums(rows, logits_of, index, args.labels, args.logits, args.mask)
        row, smooth = _row(options, args, shift, others), shift

        def smooth_of(weights: jax.Array, shift: jax.Array, logits: jax.Array, mask: jax.Array | None) -> jax.Array:
            return rule.smooth_terms(weights, shift, logits_of(logits, mask), mask)

        if options.loss.label_smoothing:
            weights = row.smoothing.uniform * _weights(options, args)
            smooth = rows.total(smooth_of, weights, shift, args.logits, args.mask)
        return *rule.losses(options.loss, row, smooth), shift, others

    def without_sums(args: Arguments) -> tuple[jax.Array, ...]:
        centred, row = _centred(options, args)
        smooth = row.shift
        if options.loss.label_smoothing:
            weights = row.smoothing.uniform * _weights(options, args)
            smooth = OnePass((options.axis,)).total(rule.smooth_terms, weights, row.shift, centred.l, args.mask)
        loss, log_total = rule.losses(options.loss, row, smooth)
        return loss, centred.shift + log_total, row.shift, row.shift

    args = _arguments(options, logits, labels, where, class_weights)
    loss, lse, shift, others = _where_rows_fit(options, without_sums, with_sums, args)
    loss, lse = (cast(jnp.squeeze(value, options.axis), compute_dtype(logits)) for value in (loss, lse))
    return (loss, lse), Residuals(logits, labels, where, class_weights, shift, others)


def _cross_entropy_bwd(
    options: Options, residuals: Residuals, cotangents: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, None, None, jax.Array | None]:
    logits, dtype = residuals.logits, residuals.shift.dtype

    def of_row(args: Arguments, row: rule.Row, l: jax.Array, own: jax.Array, g: jax.Array, h: jax.Array) -> jax.Array:
        factors, e = rule.factors_of(options.loss, row, g, h), rule.exponentials(l, row.shift, own)
        weights, uncapped = _weights(options, args), cast(args.logits, dtype)
        return rule.dlogits(options.loss, row, factors, e, own, weights, uncapped, args.mask)

    def with_sums(
        args: Arguments, g: jax.Array, h: jax.Array, shift: jax.Array, others: jax.Array
    ) -> tuple[jax.Array, jax.Array | None]:
        row, l = _row(options, args, shift, others), _logits(options, dtype, args.logits, args.mask)
        own, terms = is_label(args.labels, logits.shape, options.axis), None
        if args.class_weights is not None:
            terms = rule.dweights(options.loss, row, g, own, l, args.mask)
        return of_row(args, row, l, own, g, h), terms

    def without_sums(args: Arguments, g: jax.Array, h: jax.Array, *_: jax.Array) -> tuple[jax.Array, None]:
        centred, row = _centred(options, args)
        return of_row(args, row, centred.l, centred.own, g, h), None

    args = _arguments(options, logits, residuals.labels, residuals.where, residuals.class_weights)
    g, h = (jnp.expand_dims(cast(cotangent, dtype), options.axis) for cotangent in cotangents)
    operands = args, g, h, residuals.shift, residuals.others
    dlogits, terms = _where_rows_fit(options, without_sums, with_sums, *operands, again=True)
    dweights = None
    if residuals.class_weights is not None and terms is not None:
        dweights = cotangent_for(residuals.class_weights, terms, _weights(options, args).shape)
    return cotangent_for(logits, dlogits), None, None, dweights


_cross_entropy.defvjp(_cross_entropy_fwd, _cross_entropy_bwd)


class Arguments(NamedTuple):
    """The arguments at the rank of the logits."""

    logits: jax.Array  # as they came
    labels: jax.Array  # in a dtype that holds every class; the class axis has size 1
    mask: jax.Array | None
    class_weights: jax.Array | None  # as they came, (C,)

    @property
    def dtype(self) -> Any:
        """The dtype to compute in."""
        return compute_dtype(self.logits, self.class_weights)


class Centred(NamedTuple):
    """The logits of each row less the largest, for sums of which the results wait in one pass over the row."""

    shift: jax.Array  # c, the lowest finite number for a row without classes
    l: jax.Array  # l - c
    own: jax.Array  # [j = y]


def _arguments(options: Options, logits: Any, labels: Any, where: Any, class_weights: Any) -> Arguments:
    labels = widened(jnp.expand_dims(labels, options.axis))
    return Arguments(logits, labels, mask_view(where, logits.ndim), class_weights)


def _where_rows_fit(
    options: Options, fitting: Callable[..., T], otherwise: Callable[..., T], args: Arguments, *others: Any, **kw: bool
) -> T:
    """`where_rows_fit`, but for a cap, whose tanh XLA's GPU backend writes out, and weights, whose gradient takes c."""
    if options.loss.logit_softcap is not None or args.class_weights is not None:
        return otherwise(args, *others)
    return where_rows_fit((options.axis,), fitting, otherwise, args, *others, **kw)


def _logits(options: Options, dtype: Any, logits: jax.Array, mask: jax.Array | None) -> jax.Array:
    """l: the logits in the compute dtype, capped, with -inf where masked."""
    return masked(rule.softcapped(options.loss, cast(logits, dtype)), mask)


def _weights(options: Options, args: Arguments) -> jax.Array:
    """w along the class axis, or 1 if there are none."""
    ndim = args.logits.ndim
    if args.class_weights is None:
        return jnp.ones((1,) * ndim, args.dtype)
    return per_class(cast(args.class_weights, args.dtype), ndim, options.axis)


def _row(
    options: Options, args: Arguments, shift: jax.Array, others: jax.Array, logit: jax.Array | None = None
) -> rule.Row:
    """The rule's terms of each row, from its sums; the label's logit is picked if it is not given."""
    logits, labels, axis, is_masked = args.logits, args.labels, options.axis, None
    if logit is None:
        logit = rule.softcapped(options.loss, cast(pick(logits, labels, axis), shift.dtype))
    if args.mask is not None:
        is_masked = ~pick(jnp.broadcast_to(args.mask, logits.shape), labels, axis)
        logit = jnp.where(is_masked, -jnp.inf, logit)
    label = rule.label_of(options.loss, labels, logits.shape[axis], args.class_weights, is_masked, shift.dtype)
    logit = jnp.where(label.valid, logit, -jnp.inf)
    smoothing = rule.smoothing_of(options.loss, _weights(options, args), args.mask, logits.shape, axis)
    return rule.Row(shift, others, logit, label, smoothing)


def _centred(options: Options, args: Arguments) -> tuple[Centred, rule.Row]:
    """l - c, and the terms of each row by it, so with 0 for c.

    XLA's GPU backend computes a row in one kernel only if every sum is over l - c, the label's logit too.
    """
    rows, logits_of = OnePass((options.axis,)), functools.partial(_logits, options, args.dtype)
    shift = rows.shift(logits_of, args.logits, args.mask)
    l = logits_of(args.logits, args.mask) - shift
    own = is_label(args.labels, args.logits.shape, options.axis)
    others = rows.total(lambda l, own: rule.exponentials(l, 0.0, own), l, own)
    logit = rows.total(lambda l, own: jnp.where(own, l, 0), l, own)
    none = varying_like(jnp.zeros(others.shape, others.dtype), others)
    return Centred(shift, l, own), _row(options, args, none, others, logit)
