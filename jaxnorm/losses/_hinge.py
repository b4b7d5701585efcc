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
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxnorm._arguments import as_float_array, canonical_axis, static_float, static_int
from jaxnorm._cotangents import cast, compute_dtype, cotangent_for
from jaxnorm._lower.rows import max_over, sum_over
from jaxnorm.losses import _rows

LONG_ROW = 1024  # classes


@dataclasses.dataclass(frozen=True)
class Options:
    """The static side of a hinge loss."""

    axis: int
    margin: float
    power: int = 1


class SvmResiduals(NamedTuple):
    """What the SVM loss keeps: the inputs and two numbers per row."""

    scores: jax.Array  # the input, as it came
    labels: jax.Array  # the input, as it came
    class_weights: jax.Array | None  # the parameter itself
    violation: jax.Array  # sum_j max(0, m_j)^power, per row
    slope: jax.Array  # sum_j d_j, per row


class HingeResiduals(NamedTuple):
    """What the hinge loss keeps: the inputs and one number per row."""

    scores: jax.Array  # the input, as it came
    labels: jax.Array  # the input, as it came
    worst: jax.Array  # max_j m_j, per row


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
    weights = _rows.as_class_weights(class_weights, scores.shape[options.axis])
    return _svm(options, scores, labels, weights)


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
    return _hinge(options, scores, labels)


def _checked(scores, labels, axis, margin, power=1) -> tuple[Options, jax.Array, jax.Array]:
    scores = as_float_array("scores", scores)
    axis = canonical_axis("axis", axis, scores.ndim)
    labels = _rows.as_labels(labels, scores.shape, axis, "scores")
    return Options(axis, static_float("margin", margin), power), scores, labels


class Terms(NamedTuple):
    """What m_j are computed from, elementwise."""

    classes: jax.Array  # j, all other axes of size 1
    labels: jax.Array  # y, the class axis of size 1
    label_score: jax.Array  # s_y, the class axis of size 1
    scores: jax.Array  # s_j


def _terms(options: Options, scores, labels, dtype) -> tuple[Terms, jax.Array]:
    """What m_j are computed from, and which labels are in range."""
    wide = _rows.widened(jnp.expand_dims(labels, options.axis))
    label_score = cast(_rows.pick(scores, wide, options.axis), dtype)
    classes = _rows.class_index(wide.dtype, scores.shape, options.axis)
    return Terms(classes, wide, label_score, scores), (wide >= 0) & (wide < scores.shape[options.axis])


def _margins(options: Options, classes, labels, label_score, scores) -> jax.Array:
    """m_j, with -inf at the label and at scores of -inf."""
    s = cast(scores, label_score.dtype)
    counts = (classes != labels) & (s != -jnp.inf)
    return jnp.where(counts, (s - label_score) + options.margin, -jnp.inf)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _svm(options, scores, labels, class_weights):
    return _svm_fwd(options, scores, labels, class_weights)[0]


def _svm_fwd(options, scores, labels, class_weights):
    dtype = compute_dtype(scores, class_weights)
    terms, valid = _terms(options, scores, labels, dtype)

    def violation_of(*terms: jax.Array) -> jax.Array:
        return _violations(_margins(options, *terms)) ** options.power

    violation = sum_over(violation_of, (options.axis,), *terms, shared=True)
    residuals = SvmResiduals(scores, labels, class_weights, violation, _slope_sum(options, terms))
    loss = violation
    if class_weights is not None:
        loss = _rows.class_weight(cast(class_weights, dtype), terms.labels) * violation
    loss = jnp.where(valid, loss, jnp.nan)  # (1)
    return cast(jnp.squeeze(loss, options.axis), compute_dtype(scores)), residuals


def _svm_bwd(options, residuals, g):
    scores, labels, class_weights, violation, total = residuals
    terms, valid = _terms(options, scores, labels, violation.dtype)
    own, g = terms.classes == terms.labels, jnp.expand_dims(cast(g, violation.dtype), options.axis)
    weighted, dweights = g, None
    if class_weights is not None:
        weighted = g * _rows.class_weight(cast(class_weights, g.dtype), terms.labels)
        view = _rows.per_class(class_weights, scores.ndim, options.axis).shape
        dweights = cotangent_for(class_weights, jnp.where(own, g * violation, 0), view)
    violations = _violations(_margins(options, *terms))
    slope = 2 * violations if options.power == 2 else cast(violations > 0, g.dtype)
    ds = jnp.where(valid, weighted, jnp.nan) * jnp.where(own, -total, slope)  # (3)
    return cotangent_for(scores, ds), None, dweights


_svm.defvjp(_svm_fwd, _svm_bwd)


def _violations(m: jax.Array) -> jax.Array:
    """max(0, m); 0 at the hinge, and NaN stays NaN."""
    return jnp.where(m <= 0, 0, m)


def _slope_sum(options: Options, terms: Terms) -> jax.Array:
    """sum_j d_j of (3) for each row, exactly for power 1.

    XLA's CPU backend sums the rows of a float array fast, but not of an array it has to compare first: 400,000 rows of
    10 took 22 ms that way, 7 as a sum of integers. Of long rows the sign, which it need not write down first, is
    faster than either: 2.9 ms against 4.0 for rows of 1024, but 4.4 against 3.3 for rows of 1000.
    """
    classes = terms.scores.shape[options.axis]

    def slope_of(*terms: jax.Array) -> jax.Array:
        """d_j, or half of it for power 2."""
        violations = _violations(_margins(options, *terms))
        if options.power == 2:
            return violations
        return cast(violations > 0, jnp.int32) if classes < LONG_ROW else jnp.sign(violations)

    return options.power * cast(sum_over(slope_of, (options.axis,), *terms, shared=True), terms.label_score.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _hinge(options, scores, labels):
    return _hinge_fwd(options, scores, labels)[0]


def _hinge_fwd(options, scores, labels):
    terms, valid = _terms(options, scores, labels, compute_dtype(scores))
    worst = max_over(functools.partial(_margins, options), (options.axis,), *terms)
    loss = jnp.where(valid, jnp.where(worst <= 0, 0, worst), jnp.nan)  # (2)
    return jnp.squeeze(loss, options.axis), HingeResiduals(scores, labels, worst)


def _hinge_bwd(options, residuals, g):
    scores, labels, worst = residuals
    terms, valid = _terms(options, scores, labels, worst.dtype)
    g = jnp.where(valid, jnp.expand_dims(g, options.axis), jnp.nan)

    def attains(worst: jax.Array, *terms: jax.Array) -> jax.Array:
        return (_margins(options, *terms) == worst) & (worst > 0)

    ties = sum_over(lambda *terms: cast(attains(*terms), worst.dtype), (options.axis,), worst, *terms, shared=True)
    own = terms.classes == terms.labels
    ds = jnp.where(own, -1, 1 / jnp.maximum(ties, 1)) * jnp.where(attains(worst, *terms) | (own & (worst > 0)), g, 0)
    return cotangent_for(scores, jnp.where(valid, ds, jnp.nan)), None  # (4)


_hinge.defvjp(_hinge_fwd, _hinge_bwd)
