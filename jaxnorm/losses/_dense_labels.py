"""Softmax cross-entropy with dense labels, on the rule in `jaxnorm._rules.dense_labels`."""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxnorm._arguments import as_array, as_float_array, as_mask, canonical_axis, static_float
from jaxnorm._cotangents import cast, compute_dtype, cotangent_for
from jaxnorm._lower.rows import OnePass, Rows, where_rows_fit
from jaxnorm._rules import dense_labels as rule
from jaxnorm._rules.classes import class_count, mask_view
from jaxnorm._rules.cross_entropy import log_total
from jaxnorm._sharding import spec_of, with_shardings


@dataclasses.dataclass(frozen=True)
class Options:
    """The static side of a cross-entropy with dense labels."""

    axis: int
    label_smoothing: float


class Residuals(NamedTuple):
    """What is kept for the backward pass: the inputs and five numbers per row."""

    logits: jax.Array  # the input, as it came
    labels: jax.Array  # the input, as it came
    where: jax.Array | None  # the mask itself
    sums: rule.Sums  # c, S, the number of leaders, T and U per row, float32 or float64: what p_j and (5) are made of


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
        canonical_axis("axis", axis, logits.shape, "logits"), static_float("label_smoothing", label_smoothing, 0.0, 1.0)
    )
    arguments = logits, labels, as_mask(where, logits.shape, "logits")
    of_arrays = functools.partial(_cross_entropy, options)
    return with_shardings(of_arrays, spec_of(logits, without=[options.axis]), *arguments)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _cross_entropy(options: Options, logits: jax.Array, labels: jax.Array, where: jax.Array | None) -> jax.Array:
    return _cross_entropy_fwd(options, logits, labels, where, OnePass.log_total)[0]  # nothing but the loss is kept


def _cross_entropy_fwd(
    options: Options,
    logits: jax.Array,
    labels: jax.Array,
    where: jax.Array | None,
    log_total: Callable[..., jax.Array] = log_total,
) -> tuple[jax.Array, Residuals]:
    axes, smoothing, terms = (options.axis,), options.label_smoothing, _terms(options, logits, labels, where)

    def with_sums(terms: rule.Terms) -> tuple[jax.Array, rule.Sums]:
        rows = Rows(axes)
        sums = rule.sums_of(rows, smoothing, terms)
        return rule.loss_of(rows, smoothing, terms, sums, log_total), sums

    def without_sums(terms: rule.Terms) -> tuple[jax.Array, rule.Sums]:
        loss = rule.loss_alone(OnePass(axes), smoothing, terms, OnePass.shift, OnePass.log_total)
        none = jnp.zeros_like(loss)
        return loss, rule.Sums(rule.Leaders(none, none, none), none, none)

    loss, sums = where_rows_fit(axes, without_sums, with_sums, terms)
    return cast(jnp.squeeze(loss, options.axis), compute_dtype(logits)), Residuals(logits, labels, where, sums)


def _cross_entropy_bwd(
    options: Options, residuals: Residuals, g: jax.Array
) -> tuple[jax.Array, jax.Array | None, None]:
    logits, labels = residuals.logits, residuals.labels
    axes, smoothing, terms = (options.axis,), options.label_smoothing, _terms(options, logits, labels, residuals.where)
    g = jnp.expand_dims(cast(g, compute_dtype(logits, labels)), options.axis)

    def dlogits(terms: rule.Terms, g: jax.Array, sums: rule.Sums) -> jax.Array:
        l, t = rule.logits_and_labels(smoothing, terms)
        return rule.dlogits(Rows(axes), sums, l, t, terms.mask, g)

    def dlogits_anew(terms: rule.Terms, g: jax.Array, _: rule.Sums) -> jax.Array:
        return dlogits(terms, g, rule.sums_of(OnePass(axes), smoothing, terms, OnePass.shift))

    def dlabels(terms: rule.Terms, g: jax.Array, row: rule.Leaders) -> jax.Array:
        l, _ = rule.logits_and_labels(smoothing, terms)
        return rule.dlabels(smoothing, row, l, g)

    def dlabels_anew(terms: rule.Terms, g: jax.Array, _: rule.Leaders) -> jax.Array:
        return dlabels(terms, g, rule.leaders_of(OnePass(axes), terms, OnePass.shift))

    chosen = functools.partial(where_rows_fit, axes, again=True)
    of_logits = cotangent_for(logits, chosen(dlogits_anew, dlogits, terms, g, residuals.sums))
    if not jnp.issubdtype(labels.dtype, jnp.floating):
        return of_logits, None, None
    of_labels = chosen(dlabels_anew, dlabels, terms, g, residuals.sums.leaders)
    return of_logits, cotangent_for(labels, of_labels), None


_cross_entropy.defvjp(_cross_entropy_fwd, _cross_entropy_bwd)


def _terms(options: Options, logits: jax.Array, labels: jax.Array, where: jax.Array | None) -> rule.Terms:
    """What the rule takes, with a / n at the rank of the logits if there is smoothing."""
    mask, dtype = mask_view(where, logits.ndim), compute_dtype(logits, labels)
    if not options.label_smoothing:
        return rule.Terms(logits, labels, mask, None)
    uniform = options.label_smoothing / class_count(mask, dtype, logits.shape, options.axis)
    if not isinstance(uniform, jax.Array):
        uniform = jnp.full((1,) * logits.ndim, uniform, dtype)
    return rule.Terms(logits, labels, mask, uniform)
