"""Normalization: one rule for batch, layer, instance, group and RMS norm, which differ by their reduction axes alone.

Forward, with m_i in {0, 1} from `where` and every sum over the reduction axes (and over the devices of `axis_name`):

    n = sum(m)    mean = sum(m x) / n    var = sum(m (x - mean)^2) / (n - ddof)                                      (1)
    rstd = (var + epsilon)^(-1/2)    x_hat = (x - mean) rstd    y = x_hat scale + bias                               (2)

Backward, for the incoming cotangent g and g_hat = g scale:

    dscale = sum of g x_hat    dbias = sum of g    (over the axes along which each was broadcast)                    (3)
    dx_i = rstd (g_hat_i - m_i (sum(g_hat) / n + x_hat_i sum(g_hat x_hat) / (n - ddof)))                             (4)

Derivation of (4). x_i reaches every output of its group by three ways: itself, the mean and the variance.
    d x_hat_j / d x_i = rstd (delta_ij - dmean/dx_i) + (x_j - mean) drstd/dx_i
    dmean/dx_i = m_i / n        dvar/dx_i = 2 m_i (x_i - mean) / (n - ddof)
(the mean's own part in dvar/dx_i drops out, since sum(m (x - mean)) = 0), and drstd/dvar = -rstd^3 / 2, so that
    (x_j - mean) drstd/dx_i = -rstd x_hat_j m_i x_hat_i / (n - ddof).
Multiply by g_hat_j and sum over j: (4). The sums run over all positions, since every output depends on the statistics;
only the selected ones feed back into them. Root mean square normalization (no centring, the mean of x^2 for the
variance) loses the mean's way, the first sum. Given statistics (running ones) lose both: dx = rstd g_hat, which is (4)
with m = 0.

How (1) keeps its digits. All sums are taken about a pivot near the mean, so that a large common mean costs nothing:

    shift = sum(m (x - pivot)) / n    mean = pivot + shift                                                           (5)
    sum(m (x - mean)^2) = sum(m (x - pivot)^2) - n shift^2    x_hat = ((x - pivot) - shift) rstd
    sum(g x_hat) = (sum(g (x - pivot)) - shift sum(g)) rstd

The pivot and the shift are kept in place of the mean, whose dtype may be too short for it. The pivot cancels, so it
carries no derivative. No sum waits for another one, so a compiler can take several in one pass over x.

Conventions. A group with n <= ddof, or with var + epsilon = 0, has rstd = 0, hence x_hat = 0, y = bias and dx = 0. An
absent argument is its neutral element: scale 1.0, bias 0.0, where True, and without centring pivot and shift 0.0.
Every array has the rank of x and size 1 along the axes on which it does not vary; `groups` knows the reduction axes.

References: Ioffe and Szegedy 2015, https://arxiv.org/abs/1502.03167 (batch norm and its gradient); Chan, Golub and
LeVeque 1983, "Algorithms for computing the sample variance" (shifted sums, the merging of groups).
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax import lax

Term = jax.Array | float | bool  # an array, or the neutral element in place of an absent one
Elementwise = Callable[..., Any]


@dataclasses.dataclass(frozen=True)
class Norm:
    """The static side of the equations."""

    epsilon: float = 1e-5
    use_mean: bool = True
    ddof: int = 0


class Statistics(NamedTuple):
    """What (1) finds of each group; every array has size 1 along the reduction axes."""

    pivot: Term
    shift: Term  # the mean is pivot + shift
    rstd: jax.Array
    n: jax.Array | None  # of each group, or one number for all; None with given statistics
    squares: jax.Array | None  # sum(m (x - mean)^2); None with given statistics


class Residuals(NamedTuple):
    """What the backward pass keeps: the inputs themselves, and of each group a few numbers."""

    x: jax.Array  # the input, as it came
    pivot: Term  # (groups,), x's dtype: what is near enough to the mean for x's entries is so for their sums
    shift: Term  # (groups,), float32 or float64: the mean is pivot + shift
    rstd: jax.Array  # (groups,), float32 or float64
    n: jax.Array | None  # (groups,) or (1,)
    scale: Term  # the parameter itself
    bias: Term  # the parameter itself, for its dtype and shape
    where: Term  # the mask itself


class Groups(Protocol):
    """How this call's groups lie, and how sums over them are run: the rule's only view of a platform."""

    lone: bool  # whether every group is one element
    early: bool  # whether what is one number for a group enters sums over g before they are taken
    synced: bool  # whether devices share the groups

    def each(self, of: Elementwise, *terms: Term) -> jax.Array: ...  # of(*terms), elementwise, in x's dtype
    def total(self, of: Elementwise, *terms: Term) -> jax.Array: ...  # the sum over each group
    def inner(self, of: Elementwise, *terms: Term) -> jax.Array: ...  # over the axes on which no parameter varies
    def outer(self, of: Elementwise, *terms: Term) -> jax.Array: ...  # over the group's other axes
    def like(self, parameter: Term, of: Elementwise, *terms: Term) -> Any: ...  # summed to the parameter's shape
    def count(self, where: Term) -> jax.Array: ...  # n on this device
    def near_mean(self, x: jax.Array, where: Term) -> jax.Array: ...  # the pivot
    def over_devices(self, *values: jax.Array) -> list[jax.Array]: ...  # the sums over the devices
    def of_devices(self, *values: jax.Array) -> jax.Array: ...  # every device's values, along a new axis 1


def forward(
    norm: Norm, groups: Groups, x: jax.Array, scale: Term, bias: Term, where: Term, given: Any = None
) -> tuple[jax.Array, Statistics]:
    """y of (2) and the statistics that it took: those of (1), or the given mean and variance."""
    if given is None:
        found = statistics(norm, groups, x, where)
    else:
        found = Statistics(given[0], 0.0, rsqrt_or_zero(given[1] + norm.epsilon), None, None)

    def output(x, pivot, shift, rstd, scale, bias, where):
        return x_hat(x, pivot, shift, rstd, where) * scale + bias  # (2)

    return groups.each(output, x, found.pivot, found.shift, found.rstd, scale, bias, where), found


def backward(norm: Norm, groups: Groups, kept: Residuals, g: jax.Array) -> tuple[jax.Array, Any, Any]:
    """dx, dscale and dbias; None for the gradient of an absent parameter."""
    # shift and rstd are one number for a group, so they can enter the sums of g x_hat before or after (5).
    of_group, neutral = (kept.shift, kept.rstd, kept.where), (0.0, 1.0, True)
    before, after = (of_group, neutral) if groups.early else (neutral, of_group)
    # The inner sums, along the axes on which no parameter varies, serve (3) and (4) both.
    over_g = groups.inner(itself, g)
    over_g_x = groups.inner(lambda g, *terms: g * x_hat(*terms), g, kept.x, kept.pivot, *before)
    dbias = groups.like(kept.bias, itself, over_g)  # (3)
    dscale = groups.like(kept.scale, from_centred, over_g_x, over_g, *after)  # (3)
    if groups.lone and norm.use_mean and kept.n is not None:
        return jnp.zeros_like(kept.x), dscale, dbias  # a lone element is its own mean
    # x_hat s1 / (n - ddof) + s2 / n of (4) is (x - pivot) slope + level, of two numbers for each group.
    slope, level = 0.0, 0.0
    if kept.n is not None:
        s2 = groups.outer(jnp.multiply, over_g, kept.scale)
        s1 = from_centred(groups.outer(jnp.multiply, over_g_x, kept.scale), s2, *after)
        s1, s2 = groups.over_devices(s1, s2) if norm.use_mean else (*groups.over_devices(s1), s2)
        slope = kept.rstd * (s1 / jnp.maximum(kept.n - norm.ddof, 1))
        if norm.use_mean:
            level = s2 / jnp.maximum(kept.n, 1) - slope * kept.shift

    def dx(x, g, pivot, rstd, slope, level, scale, where):
        feedback = (x - pivot) * slope + level
        return rstd * (g * scale - selected(where, feedback, rstd))  # (4)

    return groups.each(dx, kept.x, g, kept.pivot, kept.rstd, slope, level, kept.scale, kept.where), dscale, dbias


def statistics(norm: Norm, groups: Groups, x: jax.Array, where: Term) -> Statistics:
    """Equation (1) by (5)."""

    def total(of: Elementwise, *terms: Term) -> jax.Array:
        return groups.total(lambda where, *terms: selected(where, of(*terms)), where, *terms)

    n = groups.count(where)
    if not norm.use_mean:
        squares, n = groups.over_devices(total(lax.square, x), n)
        return Statistics(0.0, 0.0, _rstd(norm, squares, n), n, squares)
    pivot = groups.near_mean(x, where)
    shift = total(jnp.subtract, x, pivot) / jnp.maximum(n, 1)  # (5)
    squares = total(lambda x, pivot: lax.square(x - pivot), x, pivot)
    squares = jnp.maximum(squares - n * shift * shift, 0)  # (5)
    if groups.synced:
        of_all, shift, squares, n = union(groups.of_devices(pivot, shift, squares, n))
        pivot = lax.convert_element_type(of_all, pivot.dtype)  # one of the devices' pivots
    return Statistics(pivot, shift, _rstd(norm, squares, n), n, squares)


def _rstd(norm: Norm, squares: jax.Array, n: jax.Array) -> jax.Array:
    return jnp.where(n > norm.ddof, rsqrt_or_zero(squares / jnp.maximum(n - norm.ddof, 1) + norm.epsilon), 0)  # (1)


def union(of_devices: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Pivot, shift, squares and n of all devices' groups together: (5) over their means (Chan, Golub and LeVeque)."""
    pivots, shifts, squares, counts = of_devices
    count = jnp.sum(counts, axis=0)
    n = jnp.maximum(count, 1)
    pivot = lax.stop_gradient(jnp.max(jnp.where(counts > 0, pivots, -jnp.inf), axis=0))
    pivot = jnp.where(count > 0, pivot, 0)
    distance = jnp.where(counts > 0, (pivots - pivot) + shifts, 0)  # of each device's mean
    shift = jnp.sum(counts * distance, axis=0) / n
    squares = jnp.sum(squares + counts * lax.square(distance - shift), axis=0)
    return pivot, shift, squares, count


def at_once(norm: Norm, mean_of: Elementwise, size: int, x: jax.Array, scale: Term, bias: Term) -> jax.Array:
    """y of (1) and (2) where nothing is kept: sums of deviations, and no selection, so that a compiler can read x once.

    `mean_of` is the mean over a group of `size` elements; epsilon is positive.
    """
    if norm.use_mean:
        x = x - mean_of(x)
        rest = mean_of(x)  # what rounding and summing cost the mean
        var = jnp.maximum(mean_of(x * x) - rest * rest, 0) * (size / (size - norm.ddof))  # (1)
        x = x - rest
    else:
        var = mean_of(x * x)
    return x * lax.rsqrt(var + norm.epsilon) * scale + bias  # (2)


def x_hat(x: jax.Array, pivot: Term, shift: Term, rstd: Term, where: Term) -> jax.Array:
    """x_hat of (5), computed anew from the input in both passes."""
    hat = (x - pivot - shift) * rstd
    # A position that a mask leaves out may hold anything, and is 0 in an empty group even so.
    return hat if where is True else jnp.where(rstd == 0, 0, hat)


def from_centred(total: jax.Array, over_g: jax.Array, shift: Term, rstd: Term, where: Term) -> jax.Array:
    """sum(g x_hat) of (5), from sum(g (x - pivot))."""
    total = total * rstd if isinstance(shift, float) else (total - over_g * shift) * rstd
    return total if where is True else jnp.where(rstd == 0, 0, total)


def selected(where: Any, values: jax.Array, rstd: jax.Array | float = 1.0) -> jax.Array:
    """m times the values, and 0 in an empty group, whatever the values are."""
    return values if where is True else jnp.where(where & (rstd > 0), values, 0)


def itself(value: jax.Array) -> jax.Array:
    """The value, for sums of nothing but an array."""
    return value


def rsqrt_or_zero(v: jax.Array) -> jax.Array:
    """v^(-1/2), and 0 where that would divide by zero; NaN stays NaN."""
    return jnp.where(v == 0, 0, lax.rsqrt(jnp.where(v == 0, 1, v)))
