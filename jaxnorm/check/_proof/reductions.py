"""Reductions, running sums and maxima, sorting."""

from collections.abc import Callable
from typing import Any

import numpy as np

from jaxnorm.check._proof.arithmetic import exp, log, mul
from jaxnorm.check._proof.machine import Machine, Value, degree_of_total
from jaxnorm.check._proof.order import larger
from jaxnorm.check._proof.rules import rule

Parameters = dict[str, Any]

# --- reductions -------------------------------------------------------------------------------------------------------


@rule("reduce_sum")
def _reduce_sum(m: Machine, parameters: Parameters, a: Value) -> Value:
    return total(m, a, tuple(parameters["axes"]))


def total(m: Machine, a: Value, axes: tuple[int, ...]) -> Value:
    """The sum over axes."""
    if a.field is None:
        return m.exact(a.shadow.sum(axes, dtype=a.shadow.dtype))
    count = int(np.prod([a.shape[axis] for axis in axes]))
    with np.errstate(invalid="ignore"):
        shadow = a.shadow.sum(axes)
    came = a if a.special is None else Value(shadow, None, np.asarray(a.special.any(axes)))
    return m.result(shadow, m.domain.sum(a.field, axes), (came,), degree_of_total(a.degree, count))


@rule("reduce_prod")
def _reduce_prod(m: Machine, parameters: Parameters, a: Value) -> Value:
    for axis in sorted(parameters["axes"], reverse=True):
        parts = [m.structural(lambda x, i=i, axis=axis: x.take(i, axis), a) for i in range(a.shape[axis])]
        one = m.structural(lambda x, axis=axis: np.ones_like(x.sum(axis)), a)
        a = one if a.field is None else _ones(m, one)
        for part in parts:
            a = m.exact(a.shadow * part.shadow) if a.field is None else mul(m, a, part)
    return a


def _ones(m: Machine, like: Value) -> Value:
    return m.constant(np.ones(like.shape))


def extreme(m: Machine, a: Value, axis: int, name: str) -> np.ndarray:
    """Where the first of the largest (or smallest) elements lies along an axis, which stays at size 1."""
    key = a.shadow if name.endswith("max") else -a.shadow
    key = np.where(np.isnan(key), np.inf, key)
    at = np.argmax(key, axis)
    at = np.expand_dims(at, axis)
    if a.field is not None:
        chosen = pick(m, a, at, axis)
        m.watch_ties(name, chosen, a)
        m.decide(name, np.arange(a.shape[axis]).reshape([-1 if i == axis else 1 for i in range(a.shadow.ndim)]) == at)
    return at


def pick(m: Machine, a: Value, at: np.ndarray, axis: int) -> Value:
    """`take_along_axis`."""
    n = a.shadow.ndim

    def of(x: np.ndarray) -> np.ndarray:
        return np.take_along_axis(x, at.reshape(at.shape + (1,) * (x.ndim - n)), axis)

    return m.structural(of, a)


def _enter_extreme(name: str) -> None:
    @rule(name)
    def reduced(m: Machine, parameters: Parameters, a: Value) -> Value:
        axes = tuple(parameters["axes"])
        if a.field is None:
            return m.exact((np.max if name == "reduce_max" else np.min)(a.shadow, axes))
        rest = [axis for axis in range(a.shadow.ndim) if axis not in axes]
        shape = tuple(a.shape[axis] for axis in rest)
        order, n = (*rest, *axes), a.shadow.ndim
        rows = m.structural(
            lambda x: x.transpose((*order, *range(n, x.ndim))).reshape((*shape, -1, *x.shape[n:])) if x.size else
            x.reshape((*shape, int(np.prod([a.shape[i] for i in axes])), *x.shape[n:])), a)  # fmt: skip
        if not rows.shape[-1]:
            return m.constant(np.full(shape, -np.inf if name == "reduce_max" else np.inf))
        at = extreme(m, rows, len(shape), name) if rows.shadow.size else np.zeros((*shape, 1), int)
        picked = pick(m, rows, at, len(shape))
        return m.structural(lambda x: x.squeeze(len(shape)), picked)


_enter_extreme("reduce_max")
_enter_extreme("reduce_min")


def _enter_argument(name: str) -> None:
    @rule(name)
    def argument(m: Machine, parameters: Parameters, a: Value) -> Value:
        (axis,) = parameters["axes"]
        at = extreme(m, a, axis, name)
        return m.exact(at.squeeze(axis).astype(parameters["index_dtype"]))


_enter_argument("argmax")
_enter_argument("argmin")


def _enter_logical(name: str, of: Callable[..., Any]) -> None:
    @rule(name)
    def reduced(m: Machine, parameters: Parameters, a: Value) -> Value:
        return m.exact(of.reduce(a.shadow, tuple(parameters["axes"])))  # type: ignore[attr-defined]


for _name, _ufunc in (("reduce_or", np.bitwise_or), ("reduce_and", np.bitwise_and), ("reduce_xor", np.bitwise_xor)):
    _enter_logical(_name, _ufunc)

# --- running ones -----------------------------------------------------------------------------------------------------


@rule("cumsum")
def cumulative_sum(m: Machine, parameters: Parameters, a: Value) -> Value:
    """Along one axis, from either end."""
    axis = parameters["axis"]
    if parameters["reverse"]:
        flipped = m.structural(lambda x: np.flip(x, axis), a)
        result = cumulative_sum(m, {**parameters, "reverse": False}, flipped)
        return m.structural(lambda x: np.flip(x, axis), result)
    if a.field is None:
        return m.exact(a.shadow.cumsum(axis, dtype=a.shadow.dtype))
    with np.errstate(invalid="ignore"):
        shadow = a.shadow.cumsum(axis)
    came = a if a.special is None else Value(shadow, None, np.logical_or.accumulate(a.special, axis))
    degree = degree_of_total(a.degree, a.shape[axis])
    return m.result(shadow, m.domain.cumulative_sum(a.field, axis), (came,), degree)


@rule("cumlogsumexp")
def _cumulative_logsumexp(m: Machine, parameters: Parameters, a: Value) -> Value:
    return log(m, cumulative_sum(m, parameters, exp(m, a)))


def _enter_running(name: str, combine: Callable[[Machine, Value, Value], Value]) -> None:
    @rule(name)
    def running(m: Machine, parameters: Parameters, a: Value) -> Value:
        axis, steps = parameters["axis"], range(a.shape[parameters["axis"]])
        if parameters["reverse"]:
            steps = reversed(steps)
        results: dict[int, Value] = {}
        before: Value | None = None
        for i in steps:
            part = m.structural(lambda x, i=i: x.take(i, axis), a)
            before = results[i] = part if before is None else combine(m, before, part)
        parts = [results[i] for i in sorted(results)]
        return m.structural(lambda *xs: np.stack(xs, axis), *parts) if parts else a


def _larger_of(name: str) -> Callable[[Machine, Value, Value], Value]:
    def combined(m: Machine, a: Value, b: Value) -> Value:
        if a.field is None:
            return m.exact((np.maximum if name == "max" else np.minimum)(a.shadow, b.shadow))
        return larger(m, a, b, name)

    return combined


_enter_running("cummax", _larger_of("max"))
_enter_running("cummin", _larger_of("min"))
_enter_running("cumprod", lambda m, a, b: m.exact(a.shadow * b.shadow) if a.field is None else mul(m, a, b))


def _watch_neighbours(m: Machine, ranked: Value, axis: int, name: str) -> None:
    before = (slice(None),) * axis
    ends = [m.structural(lambda x, s=s: x[(*before, s)], ranked) for s in (slice(1, None), slice(-1))]
    m.watch_ties(name, *ends)


@rule("sort")
def _sort(m: Machine, parameters: Parameters, *operands: Value) -> list[Value]:
    """All operands by the first ones' order; equal keys stay in order."""
    axis, keys = parameters["dimension"], operands[: parameters["num_keys"]]
    order = np.lexsort([k.shadow for k in reversed(keys)], axis)
    results = [pick(m, a, order, axis) for a in operands]
    for key in results[: len(keys)]:
        if key.field is not None and key.shape[axis] > 1:
            _watch_neighbours(m, key, axis, "sort")
            m.decide("sort", np.diff(order, axis=axis) > 0)
    return results


@rule("top_k")
def _top_k(m: Machine, parameters: Parameters, a: Value) -> list[Value]:
    """The largest along an axis, in order, and where they lie; equal ones in order."""
    axis = parameters.get("axis", -1) % a.shadow.ndim
    order = np.argsort(-a.shadow, axis, kind="stable")
    if a.field is not None:
        _watch_neighbours(m, pick(m, a, order, axis), axis, "top_k")
        m.decide("top_k", np.diff(order, axis=axis) > 0)
    at = order.take(np.arange(parameters["k"]), axis)
    return [pick(m, a, at, axis), m.exact(at.astype(np.int32))]
