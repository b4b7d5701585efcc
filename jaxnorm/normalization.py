"""The one normalization rule, and `normalize`, the function that every norm is a choice of axes on.

Forward, with m_i in {0, 1} from `where` and every sum over the reduction axes (and over the devices of `axis_name`):

    n = sum(m)    mean = sum(m x) / n    var = sum(m (x - mean)^2) / (n - ddof)                                      (1)
    r = (var + epsilon)^(-1/2)    x_hat = (x - mean) r    y = x_hat scale + bias                                     (2)

Backward, for the incoming cotangent g and g_hat = g scale:

    dscale = sum of g x_hat    dbias = sum of g    (over the axes along which each was broadcast)                    (3)
    dx_i = r (g_hat_i - m_i (sum(g_hat) / n + x_hat_i sum(g_hat x_hat) / (n - ddof)))                                (4)

Derivation of (4). x_i reaches every output of its group by three ways: itself, the mean and the variance.
    d x_hat_j / d x_i = r (delta_ij - dmean/dx_i) + (x_j - mean) dr/dx_i
    dmean/dx_i = m_i / n        dvar/dx_i = 2 m_i (x_i - mean) / (n - ddof)
(the mean's own part in dvar/dx_i drops out, since sum(m (x - mean)) = 0), and dr/dvar = -r^3 / 2, so that
    (x_j - mean) dr/dx_i = -r x_hat_j m_i x_hat_i / (n - ddof).
Multiply by g_hat_j and sum over j: (4). The sums run over all positions, since every output depends on the statistics;
only the selected ones feed back into them. Root mean square normalization (no centring, the mean of x^2 for the
variance) loses the mean's way, the first sum. Given statistics (running ones) lose both: dx = r g_hat, which is (4)
with m = 0.

Conventions: a group with n <= ddof, or with var + epsilon = 0, has r = 0, hence x_hat = 0, y = bias and dx = 0.

References: Ioffe and Szegedy 2015, https://arxiv.org/abs/1502.03167 (batch norm and its gradient); Chan, Golub and
LeVeque 1983, "Algorithms for computing the sample variance" (the corrected two-pass sum and the merging of groups).
"""

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxnorm._axes import (
    Axes,
    AxisName,
    as_float_array,
    as_mask,
    canonical_axes,
    cast,
    check_broadcastable,
    compute_dtype,
    cotangent_for,
    expand_rank,
    reshape,
    static_bool,
    static_float,
    static_int,
)


class Residuals(NamedTuple):
    """What the backward pass keeps: the inputs themselves, and statistics of the reduced shape."""

    x: jax.Array  # the input, as it came
    mean: jax.Array | None  # float32 or float64, reduced shape; None without centring
    correction: jax.Array | None  # bfloat16 (float64 for float64), reduced: the mean's digits beyond its own dtype
    rstd: jax.Array  # float32 or float64, reduced shape: 1 / sqrt(var + epsilon)
    selected: jax.Array | None  # n: a scalar, or of reduced shape where a mask makes it data; None if given
    scale: jax.Array | None  # the parameter itself
    bias: jax.Array | None  # the parameter itself, for its dtype and shape
    where: jax.Array | None  # the mask itself


class Moments(NamedTuple):
    """The statistics of each group, for running averages; they carry no gradient."""

    mean: jax.Array | None
    sum_of_squares: jax.Array  # of the deviations from the mean
    selected: jax.Array  # n


@dataclasses.dataclass(frozen=True)
class Rule:
    """The static side of one normalization: how arguments are viewed, what is reduced, which options hold."""

    view: tuple[int, ...]  # x is reshaped to this inside the rule, so that x itself is what is kept
    axes: tuple[int, ...]  # of the view: reduced for the statistics
    scale_view: tuple[int, ...] = ()
    bias_view: tuple[int, ...] = ()
    where_view: tuple[int, ...] = ()
    epsilon: float = 1e-5
    use_mean: bool = True
    ddof: int = 0
    axis_name: AxisName = None


def normalize(
    x: ArrayLike,
    scale: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    reduction_axes: Axes,
    epsilon: float = 1e-5,
    use_mean: bool = True,
    ddof: int = 0,
    where: ArrayLike | None = None,
    axis_name: AxisName = None,
) -> jax.Array:
    """Normalizes over any axes: `y = (x - mean) * rsqrt(var + epsilon) * scale + bias`.

    Args:
      x: floating-point array of any shape; differentiable.
      scale: float array that broadcasts to `x.shape`, or None for 1; differentiable.
      bias: float array that broadcasts to `x.shape`, or None for 0; differentiable.
      reduction_axes: the axis or axes over which the statistics are taken; static.
      epsilon: added to the variance, at least 0; static.
      use_mean: False leaves out the centring and takes `mean(x**2)` in place of the variance (RMS); static.
      ddof: the variance divides by `n - ddof`: 0 is the usual, 1 Bessel's correction; static.
      where: boolean mask that broadcasts to `x.shape`, True where a position enters the statistics. Outputs are
        computed for all positions. A group with `n <= ddof` selected has `y = bias` and gradient 0.
      axis_name: name, or tuple of names, of mapped axes (shard_map, `vmap(axis_name=...)`) whose devices share the
        statistics, each weighted by its count; static.

    Returns:
      Array of x's shape and dtype. Statistics are computed in float32 (float64 if an argument is float64), by a
      corrected two-pass sum, so that a large common mean costs no digits.

    Gradient:
      Equations (3) and (4) of this module. Kept for it: the inputs, and per group the mean and 1/sqrt(var + epsilon).

    Raises:
      TypeError: an array is not floating-point, or `where` not boolean.
      ValueError: an axis out of range or named twice, a shape that does not broadcast, an option out of its range, or
        groups of a size n with `0 < n <= ddof`.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxnorm as jn
      >>> x = jnp.array([[1.0, 2.0, 3.0], [4.0, 4.0, 4.0]])
      >>> print(jn.normalize(x, reduction_axes=1, epsilon=0.0).round(3))
      [[-1.225  0.     1.225]
       [ 0.     0.     0.   ]]

    References:
      Ioffe and Szegedy 2015, https://arxiv.org/abs/1502.03167; Ba, Kiros and Hinton 2016,
      https://arxiv.org/abs/1607.06450; Zhang and Sennrich 2019, https://arxiv.org/abs/1910.07467.
    """
    x = as_float_array("x", x)
    axes = canonical_axes("reduction_axes", reduction_axes, x.ndim)
    scale, bias = (None if p is None else as_float_array(n, p) for n, p in (("scale", scale), ("bias", bias)))
    for name, parameter in (("scale", scale), ("bias", bias)):
        if parameter is not None:
            check_broadcastable(name, parameter.shape, x.shape, "x")
    where = as_mask(where, x.shape, "x")

    def view(parameter: jax.Array | None) -> tuple[int, ...]:
        return () if parameter is None else expand_rank(parameter.shape, x.ndim)

    rule = Rule(x.shape, axes, view(scale), view(bias), view(where), epsilon, use_mean, ddof, axis_name)
    return apply(rule, x, scale, bias, where)[0]


def apply(
    rule: Rule,
    x: jax.Array,
    scale: jax.Array | None,
    bias: jax.Array | None,
    where: jax.Array | None,
    given: tuple[jax.Array, jax.Array] | None = None,
) -> tuple[jax.Array, Moments | None]:
    """Checks the options that all norms share, then applies the rule; `given` is a (mean, var) to use instead."""
    rule = dataclasses.replace(
        rule,
        epsilon=static_float("epsilon", rule.epsilon, minimum=0.0),
        use_mean=static_bool("use_mean", rule.use_mean),
        ddof=static_int("ddof", rule.ddof, minimum=0),
        axis_name=tuple(rule.axis_name) if isinstance(rule.axis_name, list) else rule.axis_name,
    )
    if rule.ddof and not rule.use_mean:
        raise ValueError(f"ddof must be 0 with use_mean=False (there is no centring to correct for), got {rule.ddof}")
    if given is None:
        check_ddof("ddof", rule.ddof, group_size(rule), rule)
    return _normalize(rule, x, scale, bias, where, given)


def group_size(rule: Rule) -> int:
    """The number of elements in a group, over all devices, before any mask: static."""
    devices = 1 if rule.axis_name is None else lax.psum(1, rule.axis_name)
    return devices * math.prod(rule.view[a] for a in rule.axes)


def check_ddof(name: str, ddof: int, size: int, rule: Rule) -> None:
    """Raises if every group is known to be too small for the correction."""
    if 0 < size <= ddof:
        raise ValueError(f"{name} must be below the {size} elements of a group (x viewed as {rule.view}), got {ddof}")


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _normalize(rule, x, scale, bias, where, given):
    return _normalize_fwd(rule, x, scale, bias, where, given)[0]


def _normalize_fwd(rule, x, scale, bias, where, given):
    dtype = compute_dtype(x, scale, bias, *(given or ()))
    mask = None if where is None else reshape(where, rule.where_view)
    if given is None:
        moments, correction = _moments(rule, cast(reshape(x, rule.view), dtype), mask)
        mean, sum_of_squares, count = moments
        rstd = _rstd(sum_of_squares / jnp.maximum(count - rule.ddof, 1), rule.epsilon)  # (1)
        rstd = jnp.where(count > rule.ddof, rstd, 0)
    else:
        mean, variance = (cast(statistic, dtype) for statistic in given)
        moments, correction, count, rstd = None, None, None, _rstd(variance, rule.epsilon)
    residuals = Residuals(x, mean, correction, rstd, count, scale, bias, where)
    y = _x_hat(rule, residuals)
    if scale is not None:
        y = y * cast(reshape(scale, rule.scale_view), dtype)  # (2)
    if bias is not None:
        y = y + cast(reshape(bias, rule.bias_view), dtype)
    return (reshape(cast(y, x.dtype), x.shape), moments), residuals


def _normalize_bwd(rule, residuals, cotangents):
    x, _, _, rstd, count, scale, bias, where = residuals
    g = cast(reshape(cotangents[0], rule.view), rstd.dtype)  # the moments carry no gradient
    x_hat = _x_hat(rule, residuals)
    weight = None if scale is None else cast(reshape(scale, rule.scale_view), rstd.dtype)
    g_hat = g if weight is None else g * weight
    if count is None:
        sums = None
    elif weight is not None and weight.shape == rstd.shape:  # one for each group: the sums of (3) serve (4) as well
        over_g = _sums(rule, g, x_hat)
        sums = [weight * each for each in over_g]
    else:
        sums = _sums(rule, g_hat, x_hat)
    if sums is not None:
        feedback = _feedback(rule, sums, x_hat, count)
        g_hat = g_hat - (feedback if where is None else jnp.where(reshape(where, rule.where_view), feedback, 0))
    dscale = None if scale is None else cotangent_for(scale, g * x_hat, rule.scale_view)  # (3)
    dbias = None if bias is None else cotangent_for(bias, g, rule.bias_view)
    dx = cotangent_for(x, reshape(rstd * g_hat, x.shape))  # (4)
    return dx, dscale, dbias, None, None


_normalize.defvjp(_normalize_fwd, _normalize_bwd)


def _moments(rule: Rule, x: jax.Array, mask: jax.Array | None) -> tuple[Moments, jax.Array | None]:
    """Equation (1) without the division by n - ddof, and the mean's digits that its own dtype cannot hold."""

    def total(values: jax.Array) -> jax.Array:
        return jnp.sum(values if mask is None else jnp.where(mask, values, 0), axis=rule.axes, keepdims=True)

    count = _count(rule, mask, x.dtype)
    if not rule.use_mean:
        squares = total(x * x)
        if rule.axis_name is not None:
            squares, count = _psum(rule, squares, count)
        return Moments(None, squares, count), None
    n = jnp.maximum(count, 1)
    # Shifted by one of its own elements, a constant group has an exact mean at any size.
    pivot = _pivot(rule, x, mask)
    mean = pivot + total(x - pivot) / n
    # The corrected two-pass sum: what rounding left of the mean comes out of the sum of squares again. The correction
    # carries no derivative: the mean's own is complete.
    centred = x - mean
    correction = lax.stop_gradient(total(centred) / n)
    squares = total(centred * centred) - n * correction * correction
    moments = Moments(mean, squares, count)
    if rule.axis_name is not None:
        moments, correction = _merge(rule, mean, correction, squares, count)
    # A few bits of the correction are as good as all; float64 has digits to spare and must not lose range.
    return moments, correction if x.dtype == jnp.float64 else cast(correction, jnp.bfloat16)


def _merge(rule: Rule, *local: jax.Array) -> tuple[Moments, jax.Array]:
    """The moments of the union of all devices' groups from one collective (Chan, Golub and LeVeque 1983).

    `local` is this device's mean, correction, sum of squares and count.
    """
    parts = [jnp.broadcast_to(part, local[0].shape) for part in local]
    # An all-gather, written as a sum in which each device fills its own slot: the result is then known to be the same
    # on all devices, and it works under vmap too.
    devices = lax.psum(1, rule.axis_name)
    own = lax.iota(jnp.int32, devices) == cast(lax.axis_index(rule.axis_name), jnp.int32)
    slots = jnp.where(lax.reshape(own, (1, devices) + (1,) * len(rule.view)), jnp.expand_dims(jnp.stack(parts), 1), 0)
    mean, correction, squares, counts = lax.psum(slots, rule.axis_name)
    count = jnp.sum(counts, axis=0)
    n = jnp.maximum(count, 1)
    # As within one device: a shift that is one of the means (the largest of a device with elements), then a correction.
    pivot = lax.stop_gradient(jnp.max(jnp.where(counts > 0, mean, -jnp.inf), axis=0))
    pivot = jnp.where(count > 0, pivot, 0)
    merged = pivot + jnp.sum(counts * (mean - pivot), axis=0) / n
    distance = jnp.where(counts > 0, (mean - merged) + correction, 0)
    remainder = lax.stop_gradient(jnp.sum(counts * distance, axis=0) / n)
    squares = jnp.sum(squares + counts * distance * distance, axis=0) - n * remainder * remainder
    return Moments(merged, squares, count), remainder


def _count(rule: Rule, mask: jax.Array | None, dtype: Any) -> jax.Array:
    """How many elements of each group are selected on this device: a scalar unless a mask makes it data."""
    if mask is None:
        return jnp.asarray(math.prod(rule.view[a] for a in rule.axes), dtype)
    spread = math.prod(rule.view[a] for a in rule.axes if mask.shape[a] == 1)
    return jnp.sum(mask, axis=rule.axes, keepdims=True, dtype=dtype) * spread


def _pivot(rule: Rule, x: jax.Array, mask: jax.Array | None) -> jax.Array:
    """One selected element of each group (0 if there is none), without derivative, since every shift cancels."""
    if x.size == 0:
        return jnp.zeros([1 if a in rule.axes else s for a, s in enumerate(x.shape)], x.dtype)
    if mask is None:
        first = lax.slice(x, [0] * x.ndim, [1 if a in rule.axes else s for a, s in enumerate(x.shape)])
        return lax.stop_gradient(first)
    largest = jnp.max(jnp.where(mask, x, -jnp.inf), axis=rule.axes, keepdims=True)
    return lax.stop_gradient(jnp.where(largest == -jnp.inf, 0, largest))


def _rstd(variance: jax.Array, epsilon: float) -> jax.Array:
    """(var + epsilon)^(-1/2), and 0 where that would divide by zero; NaN stays NaN."""
    v = variance + epsilon
    return jnp.where(v == 0, 0, lax.rsqrt(jnp.where(v == 0, 1, v)))


def _x_hat(rule: Rule, residuals: Residuals) -> jax.Array:
    """x_hat of (2), computed anew from the input: nothing of x's size but x is kept."""
    x, mean, correction, rstd, *_, where = residuals
    x_hat = cast(reshape(x, rule.view), rstd.dtype)
    if mean is not None:
        x_hat = x_hat - mean
    if correction is not None:
        x_hat = x_hat - cast(correction, rstd.dtype)
    x_hat = x_hat * rstd
    # Positions that a mask leaves out may hold anything; an empty group is 0 there even so.
    return x_hat if where is None else jnp.where(rstd == 0, 0, x_hat)


def _sums(rule: Rule, g: jax.Array, x_hat: jax.Array) -> list[jax.Array]:
    """The sums of (4) over each group on this device: of g x_hat and, with centring, of g."""
    terms = [g * x_hat, g] if rule.use_mean else [g * x_hat]
    return [jnp.sum(term, axis=rule.axes, keepdims=True) for term in terms]


def _feedback(rule: Rule, sums: list[jax.Array], x_hat: jax.Array, count: jax.Array) -> jax.Array:
    """The statistics' part of (4), before m and r: sum(g_hat) / n + x_hat sum(g_hat x_hat) / (n - ddof)."""
    if rule.axis_name is not None:
        sums = _psum(rule, *sums)
    feedback = x_hat * (sums[0] / jnp.maximum(count - rule.ddof, 1))
    return feedback + sums[1] / jnp.maximum(count, 1) if rule.use_mean else feedback


def _psum(rule: Rule, *values: jax.Array) -> list[jax.Array]:
    """The sums over the devices, by one collective."""
    shape = jnp.broadcast_shapes(*(v.shape for v in values))
    return list(lax.psum(jnp.stack([jnp.broadcast_to(v, shape) for v in values]), rule.axis_name))
