"""Primitives that depend on order, which the shadows decide: comparisons, maxima, signs, selections."""

import operator
from collections.abc import Callable
from typing import Any

import numpy as np

from jaxnorm.check._proof.arithmetic import neg
from jaxnorm.check._proof.machine import Machine, Value, is_special
from jaxnorm.check._proof.rules import rule

_COMPARISONS = {
    "eq": operator.eq,
    "ne": operator.ne,
    "lt": operator.lt,
    "le": operator.le,
    "gt": operator.gt,
    "ge": operator.ge,
}


def _enter_comparison(name: str, of: Callable[..., Any]) -> None:
    @rule(name, f"{name}_to")
    def compared(m: Machine, parameters: dict[str, Any], a: Value, b: Value) -> Value:
        if a.field is None and b.field is None:
            return m.exact(of(a.shadow, b.shadow))
        equal = m.watch_ties(name, a, b)
        decided = np.where(equal, of(0, 0), of(a.shadow, b.shadow))
        m.decide(name, decided)
        return m.exact(decided)


def larger(m: Machine, a: Value, b: Value, name: str = "max") -> Value:
    """The larger of two floats, or with another name the smaller; NaN if one is."""
    m.watch_ties(name, a, b)
    order = operator.ge if name == "max" else operator.le
    first = np.broadcast_to((order(a.shadow, b.shadow) | np.isnan(a.shadow)) & ~np.isnan(b.shadow), _shape(a, b))
    m.decide(name, first)
    return choose(m, first, a, b)


def _shape(*values: Value) -> tuple[int, ...]:
    return np.broadcast_shapes(*(v.shape for v in values))


def choose(m: Machine, which: np.ndarray, yes: Value, no: Value) -> Value:
    """Elements of one array where `which`, else of another."""
    shadow = np.where(which, yes.shadow, no.shadow)
    if yes.field is None and no.field is None:
        return Value(shadow)
    special = np.where(which, is_special(yes), is_special(no))
    taken = [v.degree for v, is_taken in ((yes, which.any()), (no, not which.all())) if is_taken] or [(0, 0)]
    degree = max(d[0] for d in taken), max(d[1] for d in taken)
    return Value(shadow, m.select(which, yes.field, no.field), special if special.any() else None, degree)


def clamp(m: Machine, low: Value, x: Value, high: Value) -> Value:
    return larger(m, larger(m, x, low), high, "min")


def absolute(m: Machine, a: Value) -> Value:
    """|a|, by the sign of the shadow."""
    negative = np.broadcast_to(_signs(m, a, "abs") < 0, a.shape)
    return choose(m, negative, neg(m, a), a)


def _signs(m: Machine, a: Value, name: str) -> np.ndarray:
    equal = m.watch_ties(name, a, m.number(0))
    signs = np.where(equal, 0, np.sign(a.shadow))
    m.decide(name, signs < 0)
    return signs


@rule("select_n")
def _select_n(m: Machine, parameters: dict[str, Any], which: Value, *cases: Value) -> Value:
    result = cases[0]
    for i, case in enumerate(cases[1:], 1):
        result = choose(m, np.broadcast_to(which.shadow == i, case.shape), case, result)
    return result


def near_edges(m: Machine, a: Value, name: str, edges: float = 0.0) -> np.ndarray:
    """The shadow for a function that jumps at the integers, or beside them by `edges`: exact where a value is there."""
    nearest = np.round(a.shadow - edges) + edges
    equal = m.watch_ties(name, a, m.constant(nearest))
    m.facts.others.setdefault("roundings to integers are constant near the arguments")
    return np.where(equal, nearest, a.shadow)


def step(of: Callable[..., Any]) -> Callable[[Machine, Value], Value]:
    """A function to the integers."""

    def applied(m: Machine, a: Value) -> Value:
        return m.constant(of(near_edges(m, a, of.__name__)))

    return applied


def sign(m: Machine, a: Value) -> Value:
    signs = _signs(m, a, "sign")
    return m.constant(np.where(np.isnan(a.shadow), np.nan, signs))


@rule("nextafter")
def _nextafter(m: Machine, parameters: dict[str, Any], a: Value, towards: Value) -> Value:
    """A number and its neighbour are one in exact arithmetic."""
    del parameters, towards
    m.facts.others.setdefault("a number and the next one in floating point are equal")
    return a


@rule("round")
def _round(m: Machine, parameters: dict[str, Any], a: Value) -> Value:
    x = near_edges(m, a, "round", 0.5)
    to_even = "EVEN" in str(parameters["rounding_method"])
    return m.constant(np.round(x) if to_even else np.sign(x) * np.floor(np.abs(x) + 0.5))


for _name, _comparison in _COMPARISONS.items():
    _enter_comparison(_name, _comparison)
