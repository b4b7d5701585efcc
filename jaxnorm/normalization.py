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
LeVeque 1983, "Algorithms for computing the sample variance" (shifted sums, the merging of groups).
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxnorm._arguments import (
    Axes,
    AxisName,
    as_float_array,
    as_mask,
    canonical_axes,
    check_broadcastable,
    static_bool,
    static_float,
    static_int,
)
from jaxnorm._cotangents import cast, compute_dtype, cotangent_for, expand_rank, reshape, sum_to_shape
from jaxnorm._lower.groups import (
    Rule,
    by_platform,
    in_columns,
    in_one_pass,
    outlined,
    over_group,
    over_shared,
    reduced,
    shared_axes,
    written_out,
)


class Residuals(NamedTuple):
    """What the backward pass keeps: the inputs themselves, and for each group a few numbers, in one axis."""

    x: jax.Array  # the input, as it came
    mean: jax.Array | None  # (groups,), float32 or float64; None without centring
    correction: jax.Array | None  # (groups,), bfloat16 or float64: the mean's digits beyond its dtype
    rstd: jax.Array  # (groups,), float32 or float64: 1 / sqrt(var + epsilon)
    selected: jax.Array | None  # (groups,) or (1,): n; None with given statistics
    scale: jax.Array | None  # the parameter itself
    bias: jax.Array | None  # the parameter itself, for its dtype and shape
    where: jax.Array | None  # the mask itself


class Moments(NamedTuple):
    """The statistics of each group, for running averages; they carry no gradient."""

    mean: jax.Array | None
    sum_of_squares: jax.Array  # of the deviations from the mean
    selected: jax.Array  # n, of each group or of all


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
      Array of x's shape and dtype. Statistics are computed in float32 (float64 if an argument is float64), from
      sums about a value near the mean, so that a large common mean costs no digits.

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
    return by_platform(_output, rule, x, scale, bias, where, given)


def _normalize_fwd(rule, x, scale, bias, where, given):
    y, moments, statistics = by_platform(_forward, rule, x, scale, bias, where, given)
    mean, correction, rstd, selected = statistics
    return (y, moments), Residuals(x, mean, correction, rstd, selected, scale, bias, where)


def _normalize_bwd(rule, residuals, cotangents):
    dx, dscale, dbias = by_platform(_backward, rule, residuals, cotangents[0])  # the moments carry no gradient
    return dx, dscale, dbias, None, None


_normalize.defvjp(_normalize_fwd, _normalize_bwd)


def _output(rule, x, scale, bias, where, given):
    """What `_forward` returns where nothing is differentiated, and so no statistic is wanted."""
    dtype = compute_dtype(x, scale, bias)
    one_pass = None if given is not None else in_one_pass(rule, dtype)
    if one_pass is None:
        return _forward(rule, x, scale, bias, where, given)[:2]
    rule = one_pass
    n = math.prod(rule.view[a] for a in rule.axes)

    def mean(values: jax.Array) -> jax.Array:
        return jnp.sum(values, axis=rule.axes, keepdims=True) / n

    def output(x: jax.Array) -> jax.Array:
        y = cast(x, dtype)
        if rule.use_mean:
            # The deviations from a rounded mean, whose own mean is what rounding and summing cost it.
            y = y - mean(y)
            remainder = mean(y)
            variance = jnp.maximum(mean(y * y) - remainder * remainder, 0) * (n / (n - rule.ddof))  # (1)
            y = y - remainder
        else:
            variance = mean(y * y)
        y = y * lax.rsqrt(variance + rule.epsilon)
        if scale is not None:
            y = y * cast(reshape(scale, rule.scale_view), dtype)  # (2)
        if bias is not None:
            y = y + cast(reshape(bias, rule.bias_view), dtype)
        return cast(y, x.dtype)

    return reshape(outlined(rule, output, reshape(x, rule.view)), x.shape), None


def _forward(rule, x, scale, bias, where, given):
    dtype = compute_dtype(x, scale, bias, *(given or ()))
    mask = None if where is None else reshape(where, rule.where_view)
    if given is None:
        moments, correction = _moments(rule, x, mask, dtype)
        mean, sum_of_squares, count = moments
        rstd = _rstd(sum_of_squares / jnp.maximum(count - rule.ddof, 1), rule.epsilon)  # (1)
        rstd = jnp.where(count > rule.ddof, rstd, 0)
    else:
        mean, variance = (reshape(cast(statistic, dtype), reduced(rule, rule.view)) for statistic in given)
        moments, correction, count, rstd = None, None, None, _rstd(variance, rule.epsilon)
    centre, remainder, factor = written_out(rule, mean, correction, rstd, dtype=dtype)
    y = _x_hat(in_columns(rule, reshape(cast(x, dtype), rule.view)), centre, remainder, factor, where)
    if scale is not None:
        y = y * in_columns(rule, cast(reshape(scale, rule.scale_view), dtype))  # (2)
    if bias is not None:
        y = y + in_columns(rule, cast(reshape(bias, rule.bias_view), dtype))

    def flat(statistic: jax.Array | None) -> Any:
        return None if statistic is None else reshape(statistic, (statistic.size,))

    wanted = Moments(*(flat(m) for m in moments)) if moments and rule.with_moments else None
    return reshape(cast(y, x.dtype), x.shape), wanted, [flat(s) for s in (mean, correction, rstd, count)]


def _backward(rule, residuals, g):
    x, scale, where = residuals.x, residuals.scale, residuals.where
    groups, dtype = reduced(rule, rule.view), residuals.rstd.dtype

    def per_group(statistic: jax.Array | None) -> Any:
        if statistic is None:
            return None
        return reshape(statistic, groups if statistic.size == math.prod(groups) else (1,) * len(groups))

    mean, correction, rstd, count = (per_group(s) for s in residuals[1:5])
    columns = written_out(rule, mean, correction, rstd, dtype=dtype)
    centre, _, factor = columns
    scale_columns = None if scale is None else in_columns(rule, cast(reshape(scale, rule.scale_view), dtype))
    (s1, s2), dscale, dbias = _sums_over_g(rule, residuals, g, correction, rstd, columns)

    # x_hat s1 / (n - ddof) + s2 / n of (4), with what is constant in a group put together first
    slope = level = None
    if count is not None:
        if rule.axis_name is not None:
            s1, s2 = _psum(rule, s1, s2) if rule.use_mean else (*_psum(rule, s1), s2)
        slope = rstd * (s1 / jnp.maximum(count - rule.ddof, 1))
        if rule.use_mean:
            level = s2 / jnp.maximum(count, 1) - slope * cast(correction, dtype)
        slope, level = written_out(rule, slope, level, dtype=dtype)

    def input_gradient(x: jax.Array, g: jax.Array) -> jax.Array:
        x, g_hat = (in_columns(rule, reshape(cast(a, dtype), rule.view)) for a in (x, g))
        if scale_columns is not None:
            g_hat = g_hat * scale_columns
        if slope is not None:
            feedback = x * slope if mean is None else (x - centre) * slope + level
            g_hat = g_hat - (
                feedback if where is None else jnp.where(reshape(where, rule.where_view) & (factor > 0), feedback, 0)
            )
        return cast(reshape(factor * g_hat, residuals.x.shape), residuals.x.dtype)  # (4)

    if rule.use_mean and rule.axis_name is None and count is not None and x.size == math.prod(groups):
        dx = jnp.zeros_like(x)  # a lone element is its mean
    else:
        # Apart, or XLA would keep what it widened in the forward pass, and compute dx again within what transposes it.
        dx = outlined(rule, input_gradient, x, g)
    return cotangent_for(x, dx), dscale, dbias


def _sums_over_g(rule, residuals, g, correction, rstd, columns):
    """The sums of (4) over each group, s1 of g_hat x_hat and s2 of g_hat, and of (3): the parameters' gradients.

    `columns` are the mean, its correction and rstd in columns. With shared axes two passes over g serve both equations,
    and the factors r and the correction, the same for all of a group, stay outside. Without, there are four sums.
    """
    x, (scale, bias, where) = residuals.x, residuals[5:]
    dtype, (centre, remainder, factor) = rstd.dtype, columns

    def wide(values: jax.Array) -> jax.Array:
        return cast(values, dtype)

    def weighted(values: jax.Array) -> jax.Array:
        return values if scale is None else values * wide(reshape(scale, rule.scale_view))

    shared, rest = shared_axes(rule)
    x_columns, g_columns = (in_columns(rule, reshape(a, rule.view)) for a in (x, g))
    if shared:
        over_g = over_shared(rule, wide, g_columns)
        if centre is None:
            over_g_x_hat = over_shared(rule, lambda g, x: wide(g) * wide(x), g_columns, x_columns)
        else:
            over_g_x_hat = over_shared(rule, lambda g, x, c: wide(g) * (wide(x) - c), g_columns, x_columns, centre)
        if correction is not None:
            over_g_x_hat = over_g_x_hat - over_g * wide(correction)
        over_g_x_hat = jnp.where(rstd == 0, 0, over_g_x_hat * rstd)
        s1, s2 = (jnp.sum(weighted(s), axis=rest, keepdims=True) for s in (over_g_x_hat, over_g))
        dscale = None if scale is None else cotangent_for(scale, over_g_x_hat, rule.scale_view)  # (3)
        dbias = None if bias is None else cotangent_for(bias, over_g, rule.bias_view)
        return (s1, s2), dscale, dbias

    def over_others(parameter: jax.Array | None, view: tuple[int, ...], values: jax.Array) -> Any:
        if parameter is None:
            return None
        return cotangent_for(parameter, outlined(rule, lambda v: sum_to_shape(wide(v), view), values), view)

    def g_times_x_hat(g: jax.Array, x: jax.Array) -> jax.Array:
        return wide(g) * _x_hat(x, centre, remainder, factor, where)

    products = outlined(rule, g_times_x_hat, g_columns, x_columns)
    s1 = over_group(rule, weighted, products)
    s2 = over_group(rule, lambda g: weighted(wide(g)), g_columns)
    return (s1, s2), over_others(scale, rule.scale_view, products), over_others(bias, rule.bias_view, g_columns)


def _moments(rule: Rule, x: jax.Array, mask: jax.Array | None, dtype: Any) -> tuple[Moments, jax.Array | None]:
    """Equation (1) without the division by n - ddof, and the mean's digits that its own dtype cannot hold."""
    x = reshape(x, rule.view)
    columns = in_columns(rule, x)

    def total(of: Callable[..., jax.Array], *arrays: jax.Array) -> jax.Array:
        def selected(*arrays: jax.Array) -> jax.Array:
            values = of(*(cast(a, dtype) for a in arrays))
            return values if mask is None else jnp.where(mask, values, 0)

        return over_group(rule, selected, *arrays)

    count = _count(rule, mask, dtype)
    if not rule.use_mean:
        squares = total(lax.square, columns)
        if rule.axis_name is not None:
            squares, count = _psum(rule, squares, count)
        return Moments(None, squares, count), None
    n = jnp.maximum(count, 1)
    # Both sums are about a pivot within 4 standard deviations of the mean, so that neither waits for the other. What
    # cancels is at most 16 times the variance, and usually nothing: the pivot is then as good as the mean.
    pivot = outlined(rule, lambda x: _pivot(rule, cast(x, dtype), mask), lax.stop_gradient(x))
    (about,) = written_out(rule, pivot, dtype=dtype)
    shift = total(lax.sub, columns, about) / n
    squares = total(lambda x, about: lax.square(x - about), columns, about)
    squares = jnp.maximum(squares - n * shift * shift, 0)
    mean = pivot + shift
    # What rounding cost in this sum (Knuth's two-sum). It carries no derivative: the mean's own is complete.
    rounded = mean - pivot
    correction = lax.stop_gradient((pivot - (mean - rounded)) + (shift - rounded))
    moments = Moments(mean, squares, count)
    if rule.axis_name is not None:
        moments, correction = _merge(rule, mean, correction, squares, count)
    # A few bits of the correction are as good as all; float64 has digits to spare and must not lose range.
    return moments, correction if dtype == jnp.float64 else cast(correction, jnp.bfloat16)


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
    selected = jnp.sum(mask, axis=rule.axes, keepdims=True, dtype=dtype) * spread
    return jnp.broadcast_to(selected, reduced(rule, rule.view))


def _pivot(rule: Rule, x: jax.Array, mask: jax.Array | None) -> jax.Array:
    """A value near the mean of each group (0 if nothing is selected), without derivative, since every shift cancels.

    It is the mean of the group or of part of it, found as its distance from one element: so a constant group has an
    exact mean at any size. The mean of a 16th of the elements, whichever they are, is within 4 standard deviations of
    the mean of all (by Cauchy and Schwarz), and costs a CPU little to read.
    """
    if x.size == 0:
        return jnp.zeros(reduced(rule, x.shape), x.dtype)
    x = lax.stop_gradient(x)
    if mask is None:
        first = lax.slice(x, [0] * x.ndim, reduced(rule, x.shape))
        # Part of a batch that is sharded would have to be sent to the other devices.
        longest = max((axis for axis in rule.axes if axis), key=lambda axis: x.shape[axis], default=None)
        if longest is not None:
            x = lax.slice_in_dim(x, 0, -(-x.shape[longest] // rule.sample), axis=longest)
        return first + jnp.mean(x - first, axis=rule.axes, keepdims=True)
    # A mask may select anything: all of it, then.
    largest = jnp.max(jnp.where(mask, x, -jnp.inf), axis=rule.axes, keepdims=True)
    first = jnp.where(largest == -jnp.inf, 0, largest)
    selected = jnp.maximum(_count(rule, mask, x.dtype), 1)
    return first + jnp.sum(jnp.where(mask, x - first, 0), axis=rule.axes, keepdims=True) / selected


def _rstd(variance: jax.Array, epsilon: float) -> jax.Array:
    """(var + epsilon)^(-1/2), and 0 where that would divide by zero; NaN stays NaN."""
    v = variance + epsilon
    return jnp.where(v == 0, 0, lax.rsqrt(jnp.where(v == 0, 1, v)))


def _x_hat(x, mean, correction, rstd, where) -> jax.Array:
    """x_hat of (2), computed anew from the input: nothing of x's size but x is kept."""
    x_hat = cast(x, rstd.dtype)
    if mean is not None:
        x_hat = x_hat - mean
    if correction is not None:
        x_hat = x_hat - cast(correction, rstd.dtype)
    x_hat = x_hat * rstd
    # Positions that a mask leaves out may hold anything; an empty group is 0 there even so.
    return x_hat if where is None else jnp.where(rstd == 0, 0, x_hat)


def _psum(rule: Rule, *values: jax.Array) -> list[jax.Array]:
    """The sums over the devices, by one collective."""
    shape = jnp.broadcast_shapes(*(v.shape for v in values))
    return list(lax.psum(jnp.stack([jnp.broadcast_to(v, shape) for v in values]), rule.axis_name))
