"""Central differences of order 6, for rules that come without a reference: in float64, or a rule's own precision.

Along a direction d, y(t) = f(x + t d) is taken at t = -3h, ..., 3h for three steps h. Each output element gets the
quotient of the step at which the quotients of order 4 and 6 agree best, and their difference as its error. An element
has a kink at x if |y(h) + y(-h) - 2 y(0)| / h does not fall with h; it has one nearby, or a jump, or is not finite, if
no step makes the two orders agree. Such elements get weight 0 in the sum that is compared, and are counted.

Directions are random signs times each argument's spread, one argument at a time. For errors e_i of a cotangent, the
sum of e_i d_i is smaller than the largest |e_i d_i| for at most half of all signs: of two sign patterns that differ in
that element alone, the sums differ by twice that much. So k directions miss an error above the tolerance with a
probability of at most 2^-k, whatever its pattern, and never if it is confined to one element.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnorm.check._problem import Layout, Leaves, shapes
from jaxnorm.check._programs import FORWARD, REVERSE, Failed, Mode
from jaxnorm.check._quick import quick_jit
from jaxnorm.check._report import Row

STEPS = (3e-3, 3e-4, 3e-5)  # in units of the direction, in float64
ELEMENTWISE = 128  # arrays up to this size are checked element by element as well

Measure = Callable[[Leaves, Leaves, Leaves], dict[str, Any]]  # of moving leaves, direction and weights


class Scale(NamedTuple):
    """What a precision makes of steps and tolerances."""

    epsilon: float
    steps: tuple[float, ...]
    resolved: float  # a larger relative error of a slope is none
    relative: float  # of the sum of slopes, allowed


def _scale(dtype: Any) -> Scale:
    epsilon, exact = (float(jnp.finfo(d).eps) for d in (dtype, np.float64))
    if epsilon == exact:
        return Scale(epsilon, STEPS, 1e-6, 1e-9)
    # Of an order 6, the best step goes with the seventh root of the rounding error.
    return Scale(epsilon, tuple(h * (epsilon / exact) ** (1 / 7) for h in STEPS), 1e-2, 64 * epsilon)


@quick_jit(static_argnums=(0, 1, 2, 3))
def _of_values(
    fun: Callable[..., Any], layout: Layout, scale: Scale, modes: tuple[Mode, ...], leaves: Leaves, *at: Leaves
) -> dict[str, Any]:
    """Along one direction: the sum of weighted slopes of the outputs, and what the derivatives make it."""
    flat = layout.flat(fun)
    return _measure(lambda moved: flat(layout.put(leaves, moved))[0], scale, modes, *at)


@quick_jit(static_argnums=(0, 1, 2, 3))
def _of_derivatives(
    fun: Callable[..., Any], layout: Layout, scale: Scale, mode: Mode, leaves: Leaves, g: Leaves, *at: Leaves
) -> dict[str, Any]:
    """The same of the derivatives for `g`: second derivatives, in reverse and in forward mode."""
    flat = layout.flat(fun)
    both = (REVERSE, FORWARD)
    return _measure(lambda moved: mode.at(layout, flat, layout.put(leaves, moved), g)[2], scale, both, *at)


def _measure(
    function: Callable[[Leaves], Leaves],
    scale: Scale,
    modes: tuple[Mode, ...],
    leaves: Leaves,
    direction: Leaves,
    weights: Leaves,
) -> dict[str, Any]:
    def at(t: Any) -> Leaves:
        return function([a + t * d for a, d in zip(leaves, direction, strict=True)])

    times = jnp.asarray([[h * i for i in range(-3, 4)] for h in scale.steps])
    values = [y.astype(np.float64) for y in jax.lax.map(at, times.ravel())]
    condition = jnp.max(jnp.stack([_condition(a, d) for a, d in zip(leaves, direction, strict=True)]))
    slopes = [_slope(y.reshape(*times.shape, *y.shape[1:]), condition, scale) for y in values]
    weights = [jnp.where(good, w, 0) for (_, _, good), w in zip(slopes, weights, strict=True)]
    terms = [(w * slope, jnp.abs(w) * error) for w, (slope, error, _) in zip(weights, slopes, strict=True)]
    result = {
        "numeric": sum(jnp.sum(s) for s, _ in terms),
        "tolerance": sum(10 * jnp.sum(e) + scale.relative * jnp.sum(jnp.abs(s)) for s, e in terms) + 1e-12,
        "left_out": sum(jnp.sum(~good) for _, _, good in slopes),
    }
    if REVERSE in modes:
        floats, pullback = jax.vjp(function, leaves)
        (cotangents,) = pullback([w.astype(f.dtype) for w, f in zip(weights, floats, strict=True)])
        result["pullback"] = sum(
            jnp.sum(jnp.where(d == 0, 0, c * d)) for c, d in zip(cotangents, direction, strict=True)
        )
    if FORWARD in modes:
        tangents = jax.jvp(function, (leaves,), (direction,))[1]
        pairs = zip(weights, tangents, strict=True)
        result["pushforward"] = sum(jnp.sum(jnp.where(w == 0, 0, w * t)) for w, t in pairs)
    return result


def _condition(a: Any, d: Any) -> Any:
    """How large the array is in units of its step: what rounding `a + t d` costs."""
    moves = (d != 0) & jnp.isfinite(a)
    return jnp.max(jnp.where(moves, jnp.abs(a), 0) / jnp.where(moves, jnp.abs(d), 1), initial=0.0)


def _slope(y: Any, condition: Any, scale: Scale) -> tuple[Any, Any, Any]:
    """From values of shape (steps, 7, ...): the derivative of each element, its error, and whether it is one."""
    finite = jnp.all(jnp.isfinite(y), (0, 1), keepdims=True)
    y, finite = jnp.where(finite, y, 0), finite[0, 0]
    h = jnp.asarray(scale.steps).reshape(-1, *[1] * (y.ndim - 2))
    one, two, three = (y[:, 3 + i] - y[:, 3 - i] for i in (1, 2, 3))
    fourth, sixth = (8 * one - two) / (12 * h), (45 * one - 9 * two + three) / (60 * h)
    largest = jnp.max(jnp.abs(sixth), initial=0.0)
    rounding = 4 * scale.epsilon * (jnp.max(jnp.abs(y), 1) + condition * largest) / h
    errors = jnp.abs(sixth - fourth) + rounding
    best = jnp.argmin(errors, 0)[None]
    slope, error = (jnp.take_along_axis(a, best, 0)[0] for a in (sixth, errors))
    bend = jnp.abs(y[:, 4] + y[:, 2] - 2 * y[:, 3]) / h
    kink = bend[-1] > 0.1 * bend[0] + 16 * rounding[-1] + scale.resolved * jnp.abs(slope)
    small = 1e-3 * scale.resolved * (1 + jnp.max(jnp.abs(y), (0, 1)))
    resolved = error <= scale.resolved * (jnp.abs(slope) + largest) + small
    return slope, error, finite & resolved & ~kink


def difference_rows(
    mode: Mode,
    fun: Callable[..., Any],
    layout: Layout,
    leaves: Leaves,
    g: Leaves,
    directions: int,
    seed: int,
    second: bool,
    dtype: Any,
) -> Iterator[Row]:
    """Rows of every argument: along random signs, element by element where it is small; then second derivatives."""
    moving, names, scale = layout.pick(leaves), layout.moving_names, _scale(dtype)
    outputs = jax.eval_shape(layout.flat(fun), shapes(leaves))[0]
    compiled = functools.partial(_of_values, fun, layout, scale, (mode,), leaves)
    yield from _rows("differences", compiled, outputs, names, moving, directions, seed, elementwise=True)
    if second:
        compiled = functools.partial(_of_derivatives, fun, layout, scale, mode, leaves, g)
        few, outgoing = min(directions, 4), mode.of(moving, outputs)[1]
        try:
            yield from list(_rows("second order", compiled, outgoing, names, moving, few, seed, elementwise=False))
        except Exception as error:
            yield Row("second order", ", ".join(names), False, note=f"fun {Failed.by(error).text}")


def _rows(
    check: str,
    compiled: Measure,
    outputs: Leaves,
    names: list[str],
    leaves: Leaves,
    directions: int,
    seed: int,
    *,
    elementwise: bool,
) -> Iterator[Row]:
    rng = np.random.default_rng(seed)
    count = sum(int(np.prod(s.shape)) for s in outputs)
    for i, (name, leaf) in enumerate(zip(names, leaves, strict=True)):
        spread = _spread(leaf)
        signs = [np.where(rng.random(leaf.shape) < 0.5, -spread, spread) for _ in range(directions)]
        tried, left_out = 0, 0
        for k, direction in enumerate(signs + (_elements(leaf, spread) if elementwise else [])):
            weights = [rng.normal(size=s.shape) for s in outputs]
            found = _along(compiled, leaves, i, direction, weights)
            tried, left_out = tried + count, left_out + int(found["left_out"])
            row = _row(check, name, found, direction)
            if not row.ok and k < directions and direction.any():
                direction = _narrow(compiled, leaves, i, direction, weights)
                row = _row(check, name, _along(compiled, leaves, i, direction, weights), direction)
            yield row
        note = f"left out {left_out} of {tried} slopes: kinks, jumps, not finite" if left_out else ""
        if tried and left_out == tried:
            yield Row(check, name, False, note="nothing to compare: every output has a kink, a jump or is not finite")
        elif left_out:
            yield Row("left out", name, True, note=note)


def _spread(leaf: np.ndarray) -> np.ndarray:
    """How far the elements move: the array's spread, else its size, else 1; infinite elements stay."""
    finite = leaf[np.isfinite(leaf)]
    size = next((s for s in (finite.std(), np.abs(finite).max(initial=0.0)) if s > 0), 1.0) if finite.size else 1.0
    return np.where(np.isfinite(leaf), size, 0.0)


def _elements(leaf: np.ndarray, spread: np.ndarray) -> list[np.ndarray]:
    if leaf.size > ELEMENTWISE:
        return []
    return [np.where(np.arange(leaf.size).reshape(leaf.shape) == j, spread, 0) for j in np.flatnonzero(spread)]


def _along(compiled: Measure, leaves: Leaves, i: int, direction: np.ndarray, weights: Leaves) -> dict[str, Any]:
    directions = [direction if j == i else np.zeros_like(leaf) for j, leaf in enumerate(leaves)]
    return jax.tree.map(float, jax.device_get(compiled(leaves, directions, weights)))


def _narrow(compiled: Measure, leaves: Leaves, i: int, direction: np.ndarray, weights: Leaves) -> np.ndarray:
    """Halves the direction towards the larger error, down to one element."""
    at = np.flatnonzero(direction)
    while at.size > 1:
        halves = []
        for part in (at[: at.size // 2], at[at.size // 2 :]):
            half = np.zeros(direction.size)
            half[part] = direction.ravel()[part]
            found = _along(compiled, leaves, i, half.reshape(direction.shape), weights)
            halves.append((_row("", "", found, direction).ratio, part))
        at = max(halves, key=lambda half: half[0])[1]
    return np.where(np.arange(direction.size).reshape(direction.shape) == at[0], direction, 0)


def _row(check: str, name: str, found: dict[str, Any], direction: np.ndarray) -> Row:
    """The worse of pullback and pushforward against the differences; for one element per unit of it."""
    at = np.argwhere(direction)
    index, unit = (tuple(map(int, at[0])), float(direction[tuple(at[0])])) if len(at) == 1 else (None, 1.0)
    sides = [found[side] for side in ("pullback", "pushforward") if side in found]
    got = max(sides, key=lambda side: np.nan_to_num(abs(side - found["numeric"]), nan=np.inf))
    error = float(np.nan_to_num(abs(got - found["numeric"]), nan=np.inf))
    return Row(
        check,
        name,
        error <= found["tolerance"],
        index,
        got / unit,
        found["numeric"] / unit,
        error / abs(unit),
        found["tolerance"] / abs(unit),
        "" if index is not None else "along a direction of random signs",
    )
