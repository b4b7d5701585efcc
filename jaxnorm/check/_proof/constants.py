"""What number a floating-point constant stands for: 1/3 for 0.3333333333333333, 1/100000 for 1e-5."""

import functools
import math
from decimal import Decimal
from fractions import Fraction

import ml_dtypes
import numpy as np

_SIMPLE = 1 << 26  # a numerator or denominator above this is not one that anybody wrote


@functools.lru_cache(1 << 16)
def read(value: float, dtype: str) -> Fraction:
    """The number that a finite constant of this dtype stands for.

    That is the decimal number itself if half of the dtype's digits suffice to write it, a power of two itself, and else
    the fraction with the least denominator among those that round to the constant.
    """
    kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
    decimal = Decimal(str(kind.type(value)))
    if len(decimal.normalize().as_tuple().digits) <= _digits(kind) // 2:
        return Fraction(decimal)
    exact = abs(Fraction(value))
    if math.frexp(value)[0] in (0.5, -0.5):
        return Fraction(value)
    below, above = _next(abs(value), kind, 0), _next(abs(value), kind, math.inf)
    # Half-way between two numbers rounding goes to the even one, so the ends of the interval are left out.
    low = (exact + Fraction(below)) / 2
    high = (exact + Fraction(above)) / 2 if math.isfinite(above) else 2 * exact - low
    return _between(low, high) * (1 if value > 0 else -1)


def _digits(kind: np.dtype) -> int:
    return int((ml_dtypes.finfo(kind).nmant + 1) * math.log10(2))


def _next(value: float, kind: np.dtype, towards: float) -> float:
    with np.errstate(over="ignore"):
        return float(np.nextafter(np.asarray(value, kind), np.asarray(towards, kind)))


def _between(low: Fraction, high: Fraction) -> Fraction:
    """The simplest fraction strictly between two positive ones, by their continued fractions."""
    whole = low.numerator // low.denominator
    if whole + 1 < high:
        return Fraction(whole + 1)
    if low == whole:  # whole + 1 / n for the least n that fits
        return whole + Fraction(1, int(1 / (high - whole)) + 1)
    return whole + 1 / _between(1 / (high - whole), 1 / (low - whole))


def is_simple(fraction: Fraction) -> bool:
    """Whether somebody may have written this fraction."""
    return max(abs(fraction.numerator), fraction.denominator) < _SIMPLE


def is_smooth(fraction: Fraction) -> bool:
    """Whether a positive fraction has no prime factor above 11: it is a square modulo every prime of a tower."""
    return _smooth(fraction.numerator * fraction.denominator)


@functools.cache
def _smooth(n: int) -> bool:
    for p in (2, 3, 5, 7, 11):
        while n % p == 0:
            n //= p
    return n == 1
