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
import itertools
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
    sample: int = 1  # the pivot is the mean of a group's first 1/sample


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
    y, moments, statistics = _by_platform(_forward, rule, x, scale, bias, where, given)
    return (y, moments), Residuals(x, *statistics, scale, bias, where)


def _normalize_bwd(rule, residuals, cotangents):
    dx, dscale, dbias = _by_platform(_backward, rule, residuals, cotangents[0])  # the moments carry no gradient
    return dx, dscale, dbias, None, None


_normalize.defvjp(_normalize_fwd, _normalize_bwd)


def _by_platform(function, rule, *arrays):
    """`function(rule, *arrays)`, on a CPU in a view of the fewest axes.

    XLA's CPU backend reduces (N, H, W, C) over its first axes several times slower than (N, H W, C). Elsewhere the axes
    stay apart: there it makes no difference to a reduction, but merged axes can no longer be sharded each on its own.
    """
    if rule.axis_name is not None:  # each device has an array of its own already
        return function(_merged(rule), *arrays)
    return _chosen(function, rule, *arrays)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _chosen(function, rule, *arrays):
    cpu, default = functools.partial(function, _merged(rule)), functools.partial(function, rule)
    return lax.platform_dependent(*arrays, cpu=cpu, default=default)


def _merged(rule: Rule) -> Rule:
    """The same rule with neighbouring axes merged wherever statistics, parameters and mask treat them alike.

    The first axis, a batch that may be sharded even on simulated CPU devices, stays apart.
    """
    others = [v for v in (rule.scale_view, rule.bias_view, rule.where_view) if v]

    def role(axis: int) -> tuple[bool, ...]:
        return axis == 0, axis in rule.axes, *(other[axis] == rule.view[axis] for other in others)

    longer = [axis for axis, size in enumerate(rule.view) if size != 1]
    parts = [list(part) for _, part in itertools.groupby(longer, role)]

    def view(sizes: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(math.prod(sizes[a] for a in part) for part in parts) if sizes else ()

    axes = tuple(i for i, part in enumerate(parts) if part[0] in rule.axes)
    views = {name: view(getattr(rule, name)) for name in ("view", "scale_view", "bias_view", "where_view")}
    return dataclasses.replace(rule, axes=axes, sample=16, **views)


def _forward(rule, x, scale, bias, where, given):
    dtype = compute_dtype(x, scale, bias, *(given or ()))
    mask = None if where is None else reshape(where, rule.where_view)
    if given is None:
        moments, correction = _moments(rule, x, mask, dtype)
        mean, sum_of_squares, count = moments
        rstd = _rstd(sum_of_squares / jnp.maximum(count - rule.ddof, 1), rule.epsilon)  # (1)
        rstd = jnp.where(count > rule.ddof, rstd, 0)
    else:
        mean, variance = (reshape(cast(statistic, dtype), _reduced(rule, rule.view)) for statistic in given)
        moments, correction, count, rstd = None, None, None, _rstd(variance, rule.epsilon)
    y = _x_hat(rule, x, mean, correction, rstd, where)
    if scale is not None:
        y = y * cast(reshape(scale, rule.scale_view), dtype)  # (2)
    if bias is not None:
        y = y + cast(reshape(bias, rule.bias_view), dtype)
    flat = [None if s is None else reshape(s, (s.size,)) for s in (mean, correction, rstd, count)]
    moments = None if moments is None else Moments(flat[0], reshape(moments.sum_of_squares, flat[2].shape), flat[3])
    return reshape(cast(y, x.dtype), x.shape), moments, flat


def _backward(rule, residuals, g):
    *statistics, scale, bias, where = residuals[1:]
    groups = _reduced(rule, rule.view)
    mean, correction, rstd, count = (
        None if s is None else reshape(s, groups if s.size == math.prod(groups) else (1,) * len(groups))
        for s in statistics
    )
    dtype, mask = rstd.dtype, None if where is None else reshape(where, rule.where_view)
    x, g = (cast(reshape(a, rule.view), dtype) for a in (residuals.x, g))
    mean, correction = (jnp.zeros_like(rstd) if s is None else cast(s, dtype) for s in (mean, correction))

    def weighted(value: jax.Array, power: float = 1) -> jax.Array:
        if scale is None:
            return value
        return value * _own(cast(reshape(scale, rule.scale_view), dtype), power)

    # The sums of (3) and (4), s1 and s2 those of g_hat x_hat and g_hat. Axes of the groups along which no parameter
    # varies are summed once, for both; without such axes there are four sums, each a pass over x or g.
    shared, rest = _shared_axes(rule)
    if shared:
        over_g = _over_shared(rule, _in_columns(rule, g))
        centred = _in_columns(rule, x) + _own(_for_columns(rule, mean), -1)
        over_g_x_hat = _over_shared(rule, _in_columns(rule, g) * centred)
        over_g_x_hat = jnp.where(rstd == 0, 0, (over_g_x_hat - over_g * correction) * rstd)
        s1, s2 = (jnp.sum(weighted(s), axis=rest, keepdims=True) for s in (over_g_x_hat, over_g))
    else:
        over_g, over_g_x_hat = g, g * _x_hat(rule, x + x, _own(mean, 2), _own(correction, 2), _own(rstd, 0.5), where)
        s2 = jnp.sum(weighted(g, 2), axis=rest, keepdims=True)
        s1 = jnp.sum(weighted(g * (x + _own(mean, -1)), 0.5), axis=rest, keepdims=True)
        s1, s2 = (s1, s2) if scale is None else (2 * s1, s2 / 2)
        s1 = jnp.where(rstd == 0, 0, (s1 - s2 * correction) * rstd)
    dscale = None if scale is None else cotangent_for(scale, over_g_x_hat, rule.scale_view)  # (3)
    dbias = None if bias is None else cotangent_for(bias, over_g, rule.bias_view)

    g_hat = weighted(g)
    if rule.use_mean and rule.axis_name is None and math.prod(rule.view) == math.prod(groups):
        g_hat = jnp.zeros_like(g)  # a lone element is its mean
    elif count is not None:
        sums = [s1, s2] if rule.use_mean else [s1]
        if rule.axis_name is not None:
            sums = _psum(rule, *sums)
        # x_hat s1 / (n - ddof) + s2 / n, with what is constant in a group put together first
        slope = rstd * (sums[0] / jnp.maximum(count - rule.ddof, 1))
        level = sums[1] / jnp.maximum(count, 1) - slope * correction if rule.use_mean else 0
        feedback = (x - mean) * slope + level
        g_hat = g_hat - (feedback if mask is None else jnp.where(mask & (rstd > 0), feedback, 0))
    return cotangent_for(residuals.x, reshape(rstd * g_hat, residuals.x.shape)), dscale, dbias  # (4)


def _moments(rule: Rule, x: jax.Array, mask: jax.Array | None, dtype: Any) -> tuple[Moments, jax.Array | None]:
    """Equation (1) without the division by n - ddof, and the mean's digits that its own dtype cannot hold."""
    x = cast(reshape(x, rule.view), dtype)
    columns = _in_columns(rule, x)

    def total(values: jax.Array) -> jax.Array:
        values = values if mask is None else jnp.where(mask, values, 0)
        return jnp.sum(_over_shared(rule, values), axis=_shared_axes(rule)[1], keepdims=True)

    count = _count(rule, mask, dtype)
    if not rule.use_mean:
        squares = total(columns * columns)
        if rule.axis_name is not None:
            squares, count = _psum(rule, squares, count)
        return Moments(None, squares, count), None
    n = jnp.maximum(count, 1)
    # Both sums are about a pivot within 4 standard deviations of the mean, so that neither waits for the other. What
    # cancels is at most 16 times the variance, and usually nothing: the pivot is then as good as the mean.
    pivot = _pivot(rule, x, mask)
    about = _for_columns(rule, pivot)
    shift = total(columns - about) / n
    squares = total(lax.square(columns + _own(about, -1))) - n * shift * shift
    mean = pivot + shift
    # What rounding cost in this sum (Knuth's two-sum). It carries no derivative: the mean's own is complete.
    rounded = mean - pivot
    correction = lax.stop_gradient((pivot - (mean - rounded)) + (shift - rounded))
    moments = Moments(mean, jnp.maximum(squares, 0), count)
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
    return jnp.broadcast_to(selected, _reduced(rule, rule.view))


def _reduced(rule: Rule, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of a sum over the reduction axes."""
    return tuple(1 if a in rule.axes else s for a, s in enumerate(shape))


def _pivot(rule: Rule, x: jax.Array, mask: jax.Array | None) -> jax.Array:
    """A value near the mean of each group (0 if nothing is selected), without derivative, since every shift cancels.

    It is the mean of the group or of part of it, found as its distance from one element: so a constant group has an
    exact mean at any size. The mean of a 16th of the elements, whichever they are, is within 4 standard deviations of
    the mean of all (by Cauchy and Schwarz), and costs a CPU little to read. A GPU reads all in one pass with the sums.
    """
    if x.size == 0:
        return jnp.zeros(_reduced(rule, x.shape), x.dtype)
    x = lax.stop_gradient(x)
    if mask is None:
        first = lax.slice(x, [0] * x.ndim, _reduced(rule, x.shape))
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


def _x_hat(rule, x, mean, correction, rstd, where) -> jax.Array:
    """x_hat of (2), computed anew from the input: nothing of x's size but x is kept."""
    x_hat = cast(reshape(x, rule.view), rstd.dtype)
    if mean is not None:
        x_hat = x_hat - mean
    if correction is not None:
        x_hat = x_hat - cast(correction, rstd.dtype)
    x_hat = x_hat * rstd
    # Positions that a mask leaves out may hold anything; an empty group is 0 there even so.
    return x_hat if where is None else jnp.where(rstd == 0, 0, x_hat)


def _own(values: jax.Array, power: float) -> jax.Array:
    """`values` times a power of two, which costs no digits: an operand for one sum alone.

    XLA's CPU backend computes a sum and all that leads to it in one pass (a YNNPACK fusion), unless some of that has
    another use too, be it the broadcast of a mean: then it is written out in full first, which takes as long again. To
    XLA, values and their multiples have nothing in common. (Barriers do not help: it removes them before it looks.)
    """
    return values * power


def _shared_axes(rule: Rule) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The reduction axes along which neither parameter varies, and the others."""
    views = [v for v in (rule.scale_view, rule.bias_view) if v]
    shared = tuple(a for a in rule.axes if all(view[a] == 1 for view in views))
    return shared, tuple(a for a in rule.axes if a not in shared)


def _columns(rule: Rule) -> list[list[int]]:
    """The axes in the view for sums over the shared ones: neighbours among the others are merged.

    So for group norm (N, H W, groups, channels) becomes (N, H W, C): twice as fast on a CPU. A mask keeps all apart.
    """
    shared, _ = _shared_axes(rule)
    axes = range(len(rule.view))
    if not shared or rule.where_view:
        return [[axis] for axis in axes]
    return [list(part) for _, part in itertools.groupby(axes, lambda axis: axis if axis in shared else -1)]


def _in_columns(rule: Rule, values: jax.Array) -> jax.Array:
    """`values` of the rule's view, or 1 along some of its axes, in the columns' view."""
    return reshape(values, tuple(math.prod(values.shape[a] for a in part) for part in _columns(rule)))


def _for_columns(rule: Rule, statistic: jax.Array) -> jax.Array:
    """A number for each group, repeated for each of its columns."""
    shared, rest = _shared_axes(rule)
    if not shared:
        return statistic
    shape = [s if a in rest else statistic.shape[a] for a, s in enumerate(rule.view)]
    return _in_columns(rule, jnp.broadcast_to(statistic, shape))


def _over_shared(rule: Rule, values: jax.Array) -> jax.Array:
    """The sums over the shared axes of `values` in the columns' view; theirs is the rule's again."""
    shared, _ = _shared_axes(rule)
    axes = tuple(i for i, part in enumerate(_columns(rule)) if part[0] in shared)
    total = jnp.sum(values, axis=axes, keepdims=True) if axes else values
    return reshape(total, tuple(1 if a in shared else s for a, s in enumerate(rule.view)))


def _psum(rule: Rule, *values: jax.Array) -> list[jax.Array]:
    """The sums over the devices, by one collective."""
    shape = jnp.broadcast_shapes(*(v.shape for v in values))
    return list(lax.psum(jnp.stack([jnp.broadcast_to(v, shape) for v in values]), rule.axis_name))
