"""Softmax cross-entropy with integer labels, on the rule in `jaxnorm._rules.cross_entropy`."""

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
from jaxnorm._lower.rows import OnePass, Rows
from jaxnorm._rules import cross_entropy as rule
from jaxnorm._rules import entropy
from jaxnorm._rules.classes import class_index
from jaxnorm._rules.cross_entropy import LabelOptions
from jaxnorm._sharding import spec_of, with_shardings
from jaxnorm.losses._integer_rows import (
    Arguments,
    Options,
    arguments_of,
    capped_logits,
    capped_once,
    centred_of,
    row_of,
    sums_of,
    weights_of,
    where_fits,
)

Results = tuple[jax.Array, jax.Array, jax.Array | None]  # loss, lse, entropy


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
    def with_sums(args: Arguments) -> tuple[Any, ...]:
        once, args = capped_once(options, args)
        rows, logits_of = Rows((options.axis,)), functools.partial(capped_logits, once, args.dtype)
        shift, others, gap, of_prediction = sums_of(once, rows, logits_of, args)
        row, smooth = row_of(once, args, shift, others), shift

        def smooth_of(weights: jax.Array, shift: jax.Array, logits: jax.Array, mask: jax.Array | None) -> jax.Array:
            return rule.smooth_terms(weights, shift, logits_of(logits, mask), mask)

        if options.loss.label_smoothing:
            weights = row.smoothing.uniform * weights_of(options, args)
            smooth = rows.total(smooth_of, weights, shift, args.logits, args.mask)
        return *rule.losses(options.loss, row, smooth), of_prediction, shift, others, gap

    def without_sums(args: Arguments) -> tuple[Any, ...]:
        centred, row = centred_of(options, args)
        smooth = row.shift
        if options.loss.label_smoothing:
            weights = row.smoothing.uniform * weights_of(options, args)
            smooth = OnePass((options.axis,)).total(rule.smooth_terms, weights, row.shift, centred.l, args.mask)
        loss, log_total = rule.losses(options.loss, row, smooth)
        return loss, centred.shift + log_total, None, row.shift, row.shift, None

    args = arguments_of(options, logits, labels, where, class_weights)
    *results, shift, others, gap = where_fits(options, without_sums, with_sums, args)
    loss, lse, of_prediction = jax.tree.map(
        lambda result: cast(jnp.squeeze(result, options.axis), compute_dtype(logits)), tuple(results)
    )
    return (loss, lse, of_prediction), Residuals(logits, labels, where, class_weights, shift, others, gap)


def _cross_entropy_bwd(
    options: Options, residuals: Residuals, cotangents: Results
) -> tuple[jax.Array, None, None, jax.Array | None]:
    logits, dtype = residuals.logits, residuals.shift.dtype

    def of_row(args: Arguments, row: rule.Row, e: jax.Array, own: jax.Array, g: Any, more: Any = None) -> jax.Array:
        factors = rule.factors_of(options.loss, row, *g[:2])
        weights, uncapped = weights_of(options, args), cast(args.logits, dtype)
        return rule.dlogits(options.loss, row, factors, e, own, weights, uncapped, args.mask, more)

    def with_sums(
        args: Arguments, g: Any, shift: jax.Array, others: jax.Array, gap: jax.Array | None
    ) -> tuple[jax.Array, jax.Array | None]:
        once, capped = capped_once(options, args)
        row, l = row_of(once, capped, shift, others), capped_logits(once, dtype, capped.logits, args.mask)
        index, terms, more = class_index(args.labels.dtype, logits.shape, options.axis), None, None
        own, e = index == args.labels, Rows((options.axis,)).others(jnp.exp(l - row.shift), index, args.labels)
        if args.class_weights is not None:
            terms = rule.dweights(options.loss, row, g[0], own, l, args.mask)
        if gap is not None:
            factors = entropy.entropy_factors(row.others + row.e_y, gap, g[2])
            more = entropy.dlogits(factors, jnp.exp(l - shift), l, shift)
        return of_row(args, row, e, own, g, more), terms

    def without_sums(args: Arguments, g: Any, *_: Any) -> tuple[jax.Array, None]:
        centred, row = centred_of(options, args)
        return of_row(args, row, centred.e, centred.own, g), None

    args = arguments_of(options, logits, residuals.labels, residuals.where, residuals.class_weights)
    g = jax.tree.map(lambda g: jnp.expand_dims(cast(g, dtype), options.axis), cotangents)
    operands = args, g, residuals.shift, residuals.others, residuals.gap
    dlogits, terms = where_fits(options, without_sums, with_sums, *operands, again=True)
    dweights = None
    if residuals.class_weights is not None and terms is not None:
        dweights = cotangent_for(residuals.class_weights, terms, weights_of(options, args).shape)
    return cotangent_for(logits, dlogits), None, None, dweights


_cross_entropy.defvjp(_cross_entropy_fwd, _cross_entropy_bwd)
