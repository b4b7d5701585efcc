"""Arithmetic of values, which the rules of primitives are written in: sums, products, powers, exponentials."""

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np

from jaxnorm.check._proof.machine import Machine, Undecided, Value, degree_of_product, degree_of_sum, is_special


def add(m: Machine, a: Value, b: Value) -> Value:
    """a + b."""
    return m.result(a.shadow + b.shadow, m.domain.add(a.field, b.field), (a, b), degree_of_sum(a.degree, b.degree))


def sub(m: Machine, a: Value, b: Value) -> Value:
    """a - b."""
    return m.result(a.shadow - b.shadow, m.domain.sub(a.field, b.field), (a, b), degree_of_sum(a.degree, b.degree))


def mul(m: Machine, a: Value, b: Value) -> Value:
    """a b."""
    degree = degree_of_product(a.degree, b.degree)
    product = m.result(a.shadow * b.shadow, m.domain.mul(a.field, b.field), (a, b), degree)
    product.square = a.square and b.square
    return product


def neg(m: Machine, a: Value) -> Value:
    """-a."""
    return m.result(-a.shadow, m.domain.neg(a.field), (a,), a.degree)


def div(m: Machine, a: Value, b: Value) -> Value:
    """a / b; infinite or NaN where b is 0."""
    with np.errstate(all="ignore"):
        shadow = a.shadow / b.shadow
    zero = zeros(m, b)
    if (zero & (b.shadow != 0) & ~is_special(b)).any():
        raise Undecided("div by what is 0 in exact arithmetic and not in floating point")
    field = m.domain.mul(a.field, m.domain.inverse(b.field))
    degree = degree_of_product(a.degree, (b.degree[1], b.degree[0]))
    made = np.broadcast_to(zero & ~is_special(b), shadow.shape)
    quotient = m.result(shadow, field, (a, b), degree, made if made.any() else None)
    quotient.square = a.square and b.square
    return quotient


def zeros(m: Machine, a: Value) -> np.ndarray:
    return m.fact(lambda: m.domain.is_zero(a.field) & ~is_special(a))


# --- powers, exponentials, logarithms ---------------------------------------------------------------------------------


def power(m: Machine, a: Value, exponent: Fraction) -> Value:
    """a to a constant rational power."""
    with np.errstate(all="ignore"):
        shadow = _real_power(a.shadow, exponent)
    if exponent.denominator % 2 == 0 and (negative := (a.shadow < 0) & ~is_special(a)).any():
        return _with_special(m, a, negative, lambda a: power(m, a, exponent), shadow)
    zero = zeros(m, a) if exponent < 0 or exponent.denominator > 1 else None
    if zero is not None and (zero & (a.shadow != 0)).any():
        raise Undecided("a power of what is 0 in exact arithmetic and not in floating point")
    made = zero if exponent < 0 and zero is not None and zero.any() else None
    field = m.domain.power(a.field, exponent, squares=a.square)
    if exponent.denominator > 1 and a.degree == (0, 0):
        field = _rational_root(m, a, exponent, shadow, field)
    n, d = (a.degree[0] * abs(exponent.numerator), a.degree[1] * abs(exponent.numerator))
    result = m.result(shadow, field, (a,), (n, d) if exponent >= 0 else (d, n), made)
    result.square = a.square or exponent.denominator % 2 == 0
    return result


def _rational_root(m: Machine, a: Value, exponent: Fraction, shadow: np.ndarray, field: Any) -> Any:
    """The power of a constant, where it is rational after all: then its sign is known."""
    root = m.constant(np.where(np.isfinite(shadow), shadow, 1.0))
    one = Fraction(exponent.denominator)
    base = m.domain.power(a.field, Fraction(exponent.numerator))
    rational = m.fact(lambda: m.domain.are_equal(m.domain.power(root.field, one), base))
    return m.select(rational, root.field, field)


def _real_power(a: np.ndarray, exponent: Fraction) -> np.ndarray:
    size = np.abs(a) ** float(exponent)
    if exponent.denominator % 2 == 0:
        return np.where(a < 0, np.nan, size)
    return np.where((a < 0) & (exponent.numerator % 2 == 1), -size, size)


def _with_special(m: Machine, a: Value, where: np.ndarray, of: Callable[[Value], Value], shadow: np.ndarray) -> Value:
    """`of(a)`, special where said; there the operation sees 1."""
    one = m.number(1)
    tamed = Value(np.where(where, 1.0, a.shadow), m.select(where, one.field, a.field), a.special, a.degree)
    result = of(tamed)
    return Value(np.asarray(shadow), result.field, is_special(result) | where, result.degree)


def exp(m: Machine, a: Value) -> Value:
    """The exponential."""
    with np.errstate(over="ignore"):
        shadow = np.exp(a.shadow)
    size = max(sum(a.degree), 1)
    field = m.domain.exp(a.field)
    if (gone := (a.shadow < -1e30) & ~is_special(a)).any():
        m.facts.others.setdefault("exponentials of numbers below -1e30, which stand for -inf, are 0")
        field = m.select(gone, m.constant(np.zeros(shadow.shape)).field, field)
    result = m.result(shadow, field, (a,), (size, size) if any(a.degree) else (0, 0))
    result.square = result.special is None
    return result


def log(m: Machine, a: Value) -> Value:
    """The logarithm: -inf of 0, NaN of what is negative."""
    with np.errstate(all="ignore"):
        shadow = np.log(a.shadow)
    zero = zeros(m, a)
    if (zero & (a.shadow != 0)).any() or (~zero & (a.shadow == 0) & ~is_special(a)).any():
        raise Undecided("log of what is 0 by rounding alone")
    if (outside := (zero | (a.shadow < 0)) & ~is_special(a)).any():
        return _with_special(m, a, outside, lambda a: log(m, a), shadow)
    if a.special is not None:
        settled = a.special & np.isfinite(a.shadow)
        assert not settled.any()
        one = m.number(1)
        a = Value(np.where(a.special, 1.0, a.shadow), m.select(a.special, one.field, a.field), a.special, a.degree)
    return m.result(
        shadow, m.domain.log(a.field, squares=a.square), (Value(shadow, None, a.special),), (max(sum(a.degree), 1), 0)
    )


def with_shadow(value: Value, shadow: np.ndarray) -> Value:
    """The same value with a shadow that was computed more directly."""
    return Value(np.asarray(shadow), value.field, value.special, value.degree, value.square)
