"""Multiclass hinge losses: every violated margin (Weston and Watkins), or the worst (Crammer and Singer).

With m_j = s_j - s_y + margin over the wrong classes j != y:

    svm     loss = w_y sum_j max(0, m_j)^power                                                                       (1)
    hinge   loss = max(0, max_j m_j)                                                                                 (2)

Backward, for the incoming cotangent g; each m_j moves s_j by +1 and s_y by -1:

    svm     ds_j = g w_y d_j,  ds_y = -sum_j ds_j,  dw_y = g sum_j max(0, m_j)^power                                 (3)
            d_j = [m_j > 0] for power 1, 2 max(0, m_j) for power 2
    hinge   ds_j = g / k for each of the k classes that attain a positive maximum,  ds_y = -g                        (4)

At the hinge itself, m_j = 0, the gradient is 0. A wrong class with score -inf violates no margin.

References: Weston and Watkins 1999, "Support vector machines for multi-class pattern recognition"; Crammer and Singer
2001, "On the algorithmic implementation of multiclass kernel-based vector machines".
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxnorm._arguments import as_class_weights, as_float_array, as_labels, canonical_axis, static_float, static_int
from jaxnorm._cotangents import cast, compute_dtype, cotangent_for
from jaxnorm._lower.rows import Rows
from jaxnorm._rules.classes import class_index, in_range, label_weight, per_class, pick, widened
from jaxnorm._sharding import spec_of, with_shardings


@dataclasses.dataclass(frozen=True)
class Options:
    """The static side of a hinge loss."""

    axis: int
    margin: float
    power: int = 1


class SvmResiduals(NamedTuple):
    """What the SVM loss keeps: the inputs and two numbers per row."""

    scores: jax.Array  # the input, as it came
    labels: jax.Array  # the input, as it came: the scores' shape without the class axis
    class_weights: jax.Array | None  # the parameter itself, (C,)
    violation: jax.Array  # sum_j max(0, m_j)^power, per row, float32 or float64: dw_y is its multiple
    slope: jax.Array  # sum_j d_j, per row, float32 or float64: ds_y is its multiple


class HingeResiduals(NamedTuple):
    """What the hinge loss keeps: the inputs and one number per row."""

    scores: jax.Array  # the input, as it came
    labels: jax.Array  # the input, as it came: the scores' shape without the class axis
    worst: jax.Array  # max_j m_j, per row, float32 or float64: tells which classes attain it


def multiclass_svm_loss(
    scores: ArrayLike,
    labels: ArrayLike,
    *,
    axis: int = -1,
    margin: float = 1.0,
    power: int = 1,
    class_weights: ArrayLike | None = None,
) -> jax.Array:
    """Multiclass SVM loss: the sum over the wrong classes of `max(0, s_j - s_y + margin) ** power`.

    Args:
      scores: floating-point array with C classes along `axis`; differentiable.
      labels: integer array of the shape of `scores` without `axis`. A label outside [0, C) gives NaN in its own loss
        and gradient, and touches no other example.
      axis: the class axis; static.
      margin: by how much the label's score must lead; static.
      power: 1 (hinge) or 2 (squared hinge); static.
      class_weights: float array of shape `(C,)`; the example's loss is multiplied by its label's; differentiable.

    Returns:
      Array of the shape of `labels`, in the dtype of `scores` (float32 for 16-bit scores), not divided by C.

    Gradient:
      Equation (3) of this module; 0 exactly at the hinge. Kept for it: the inputs and two numbers per row.

    Raises:
      TypeError: `scores` is not floating-point, or `labels` not integer.
      ValueError: a shape does not fit, `axis` is out of range, or `power` is neither 1 nor 2.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxnorm as jn
      >>> scores = jnp.array([[3.2, 5.1, -1.7], [1.3, 4.9, 2.0]])
      >>> print(jn.multiclass_svm_loss(scores, jnp.array([0, 1])).round(4))
      [2.9 0. ]

    References:
      Weston and Watkins 1999, "Support vector machines for multi-class pattern recognition".
    """
    if static_int("power", power) not in (1, 2):
        raise ValueError(f"power must be 1 or 2, got {power}")
    options, scores, labels = _checked(scores, labels, axis, margin, int(power))
    weights = as_class_weights(class_weights, scores.shape[options.axis])
    rule = functools.partial(_svm, options)
    return with_shardings(rule, spec_of(scores, without=[options.axis]), scores, labels, weights)


def multiclass_hinge_loss(scores: ArrayLike, labels: ArrayLike, *, axis: int = -1, margin: float = 1.0) -> jax.Array:
    """Multiclass hinge loss: `max(0, max over the wrong classes of s_j - s_y + margin)`.

    Args:
      scores: floating-point array with C classes along `axis`; differentiable.
      labels: integer array of the shape of `scores` without `axis`. A label outside [0, C) gives NaN in its own loss
        and gradient, and touches no other example.
      axis: the class axis; static.
      margin: by how much the label's score must lead; static.

    Returns:
      Array of the shape of `labels`, in the dtype of `scores` (float32 for 16-bit scores).

    Gradient:
      Equation (4) of this module; 0 exactly at the hinge, and a tie of the maximum splits its part evenly. Kept for it:
      the inputs and one number per row.

    Raises:
      TypeError: `scores` is not floating-point, or `labels` not integer.
      ValueError: a shape does not fit, or `axis` is out of range.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxnorm as jn
      >>> print(jn.multiclass_hinge_loss(jnp.array([[1.0, 2.0, 3.0]]), jnp.array([0])))
      [3.]

    References:
      Crammer and Singer 2001, "On the algorithmic implementation of multiclass kernel-based vector machines".
    """
    options, scores, labels = _checked(scores, labels, axis, margin)
    rule = functools.partial(_hinge, options)
    return with_shardings(rule, spec_of(scores, without=[options.axis]), scores, labels)


def _checked(
    scores: ArrayLike, labels: ArrayLike, axis: int, margin: float, power: int = 1
) -> tuple[Options, jax.Array, jax.Array]:
    scores = as_float_array("scores", scores)
    axis = canonical_axis("axis", axis, scores.shape, "scores")
    labels = as_labels(labels, scores.shape, axis, "scores")
    return Options(axis, static_float("margin", margin), power), scores, labels


class Terms(NamedTuple):
    """What m_j are computed from, elementwise."""

    classes: jax.Array  # j, all other axes of size 1
    labels: jax.Array  # y, the class axis of size 1
    label_score: jax.Array  # s_y, the class axis of size 1, in the compute dtype
    scores: jax.Array  # s_j

    @property
    def own(self) -> jax.Array:
        """[j = y]."""
        return self.classes == self.labels


def _terms(options: Options, scores: jax.Array, labels: jax.Array, dtype: Any) -> Terms:
    wide = widened(jnp.expand_dims(labels, options.axis))
    label_score = cast(pick(scores, wide, options.axis), dtype)
    return Terms(class_index(wide.dtype, scores.shape, options.axis), wide, label_score, scores)


def _valid(options: Options, terms: Terms) -> jax.Array:
    return in_range(terms.labels, terms.scores.shape[options.axis])


def _margins(options: Options, terms: Terms) -> jax.Array:
    """m_j, with -inf at the label and at scores of -inf."""
    s = cast(terms.scores, terms.label_score.dtype)
    counts = (terms.classes != terms.labels) & (s != -jnp.inf)
    return jnp.where(counts, (s - terms.label_score) + options.margin, -jnp.inf)


def _violations(options: Options, terms: Terms) -> jax.Array:
    """max(0, m_j); 0 at the hinge, and NaN stays NaN."""
    m = _margins(options, terms)
    return jnp.where(m <= 0, 0, m)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _svm(options: Options, scores: jax.Array, labels: jax.Array, class_weights: jax.Array | None) -> jax.Array:
    return _svm_fwd(options, scores, labels, class_weights)[0]


def _svm_fwd(
    options: Options, scores: jax.Array, labels: jax.Array, class_weights: jax.Array | None
) -> tuple[jax.Array, SvmResiduals]:
    rows, dtype = Rows((options.axis,)), compute_dtype(scores, class_weights)
    terms, violations_of = _terms(options, scores, labels, dtype), functools.partial(_violations, options)
    violation = rows.total(lambda terms: violations_of(terms) ** options.power, terms, shared=True)
    if options.power == 2:
        slope = 2 * rows.total(violations_of, terms, shared=True)  # (3)
    else:
        slope = rows.count_positive(violations_of, terms, dtype=dtype)  # (3)
    weight = 1 if class_weights is None else label_weight(cast(class_weights, dtype), terms.labels)
    loss = jnp.where(_valid(options, terms), weight * violation, jnp.nan)  # (1)
    residuals = SvmResiduals(scores, labels, class_weights, violation, slope)
    return cast(jnp.squeeze(loss, options.axis), compute_dtype(scores)), residuals


def _svm_bwd(options: Options, residuals: SvmResiduals, g: jax.Array) -> tuple[jax.Array, None, jax.Array | None]:
    scores, class_weights, violation = residuals.scores, residuals.class_weights, residuals.violation
    terms = _terms(options, scores, residuals.labels, violation.dtype)
    g = jnp.expand_dims(cast(g, violation.dtype), options.axis)
    weighted, dweights = g, None
    if class_weights is not None:
        weighted = g * label_weight(cast(class_weights, g.dtype), terms.labels)
        view = per_class(class_weights, scores.ndim, options.axis).shape
        dweights = cotangent_for(class_weights, jnp.where(terms.own, g * violation, 0), view)  # (3)
    violations = _violations(options, terms)
    rows = Rows((options.axis,))
    d = 2 * violations if options.power == 2 else rows.positive(violations)
    weighted = jnp.where(_valid(options, terms), weighted, jnp.nan)
    ds = rows.opposed(weighted, d, residuals.slope, terms.own, terms.labels, scores.dtype)  # (3)
    return cotangent_for(scores, ds), None, dweights


_svm.defvjp(_svm_fwd, _svm_bwd)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _hinge(options: Options, scores: jax.Array, labels: jax.Array) -> jax.Array:
    return _hinge_fwd(options, scores, labels)[0]


def _hinge_fwd(options: Options, scores: jax.Array, labels: jax.Array) -> tuple[jax.Array, HingeResiduals]:
    terms = _terms(options, scores, labels, compute_dtype(scores))
    worst = Rows((options.axis,)).largest(functools.partial(_margins, options), terms)
    loss = jnp.where(_valid(options, terms), jnp.where(worst <= 0, 0, worst), jnp.nan)  # (2)
    return jnp.squeeze(loss, options.axis), HingeResiduals(scores, labels, worst)


def _hinge_bwd(options: Options, residuals: HingeResiduals, g: jax.Array) -> tuple[jax.Array, None]:
    scores, worst = residuals.scores, residuals.worst
    terms = _terms(options, scores, residuals.labels, worst.dtype)
    valid = _valid(options, terms)
    g = jnp.where(valid, jnp.expand_dims(g, options.axis), jnp.nan)

    def attains(worst: jax.Array, terms: Terms) -> jax.Array:
        return (_margins(options, terms) == worst) & (worst > 0)

    count = Rows((options.axis,)).total
    k = count(lambda *operands: cast(attains(*operands), worst.dtype), worst, terms, shared=True)
    share = jnp.where(terms.own, -1, 1 / jnp.maximum(k, 1))
    ds = share * jnp.where(attains(worst, terms) | (terms.own & (worst > 0)), g, 0)  # (4)
    return cotangent_for(scores, jnp.where(valid, ds, jnp.nan)), None


_hinge.defvjp(_hinge_fwd, _hinge_bwd)
