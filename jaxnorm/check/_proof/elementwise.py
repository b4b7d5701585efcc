"""Elementwise primitives: arithmetic, powers, exponentials, comparisons, selections."""

import math
import operator
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np

from jaxnorm.check._proof.constants import read
from jaxnorm.check._proof.machine import (
    Degree,
    Machine,
    Undecided,
    Value,
    degree_of_product,
    degree_of_sum,
    is_exact,
    is_special,
)
from jaxnorm.check._proof.rules import RULES, rule

# --- arithmetic -----------------------------------------------------------------------------------------------------


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
    zero = _zeros(m, b)
    if (zero & (b.shadow != 0) & ~is_special(b)).any():
        raise Undecided("div by what is 0 in exact arithmetic and not in floating point")
    field = m.domain.mul(a.field, m.domain.inverse(b.field))
    degree = degree_of_product(a.degree, b.degree[::-1])
    made = np.broadcast_to(zero & ~is_special(b), shadow.shape)
    quotient = m.result(shadow, field, (a, b), degree, made if made.any() else None)
    quotient.square = a.square and b.square
    return quotient


def _zeros(m: Machine, a: Value) -> np.ndarray:
    return m.fact(lambda: m.domain.is_zero(a.field) & ~is_special(a))


def total(m: Machine, a: Value, b: Value, sign: int, literals: tuple[bool, bool]) -> Value:
    """a + b or a - b, where a written constant that is lost in rounding is left out."""
    exact = add(m, a, b) if sign > 0 else sub(m, a, b)
    for constant, other, alone in ((a, b, b if sign > 0 else None), (b, a, a)):
        if alone is None or not literals[constant is b] or constant.shape or literals[other is b]:
            continue
        if 0 < abs(constant.shadow) < np.finfo(np.float64).eps / 2:
            lost = (exact.shadow == other.shadow) & (other.shadow != 0) & ~is_special(other)
            if lost.any():
                m.facts.lost.setdefault(repr(float(constant.shadow)))
                field = m.select(np.broadcast_to(lost, exact.shape), other.field, exact.field)
                return Value(exact.shadow, field, exact.special, exact.degree)
    return exact


_ARITHMETIC: dict[str, Callable[..., Value]] = {"mul": mul, "div": div, "neg": neg}
_INTEGERS: dict[str, Callable[..., Any]] = {
    "add": operator.add,
    "add_any": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "neg": operator.neg,
    "abs": abs,
    "sign": np.sign,
    "square": np.square,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
    "not": np.invert,
    "shift_left": np.left_shift,
    "shift_right_arithmetic": np.right_shift,
    "max": np.maximum,
    "min": np.minimum,
    "clamp": lambda low, x, high: np.minimum(np.maximum(x, low), high),
}


def _truncated(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Integer division towards 0."""
    safe = np.where(b == 0, 1, b)
    return np.where(b == 0, -1, np.sign(a) * np.sign(safe) * (abs(a) // abs(safe))).astype(a.dtype)


_INTEGERS["div"] = _truncated
_INTEGERS["rem"] = lambda a, b: (a - _truncated(a, b) * b).astype(a.dtype)


def _enter_arithmetic(name: str, floats: Callable[..., Value] | None) -> None:
    integers = _INTEGERS.get(name)

    @rule(name)
    def of_either(m: Machine, parameters: dict[str, Any], *values: Value) -> Value:
        if all(v.field is None for v in values) and integers is not None:
            return m.exact(integers(*(v.shadow for v in values)).astype(values[-1].shadow.dtype))
        if floats is None:
            raise Undecided(name)
        return floats(m, *values)


# --- powers, exponentials ---------------------------------------------------------------------------------------------


def power(m: Machine, a: Value, exponent: Fraction) -> Value:
    """a to a constant rational power."""
    with np.errstate(all="ignore"):
        shadow = _real_power(a.shadow, exponent)
    if exponent.denominator % 2 == 0 and (negative := (a.shadow < 0) & ~is_special(a)).any():
        return _with_special(m, a, negative, lambda a: power(m, a, exponent), shadow)
    zero = _zeros(m, a) if exponent < 0 or exponent.denominator > 1 else None
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
    result = m.result(shadow, m.domain.exp(a.field), (a,), (size, size) if any(a.degree) else (0, 0))
    result.square = result.special is None
    return result


def log(m: Machine, a: Value) -> Value:
    """The logarithm: -inf of 0, NaN of what is negative."""
    with np.errstate(all="ignore"):
        shadow = np.log(a.shadow)
    zero = _zeros(m, a)
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


def _accurate(value: Value, shadow: np.ndarray) -> Value:
    """The same value with a shadow that was computed more directly."""
    return Value(np.asarray(shadow), value.field, value.special, value.degree, value.square)


def _tanh(m: Machine, a: Value) -> Value:
    e = exp(m, add(m, a, a))
    result = div(m, sub(m, e, m.number(1)), add(m, e, m.number(1)))
    return _tidied(m, result, np.tanh(a.shadow), a)


def _logistic(m: Machine, a: Value) -> Value:
    one = m.number(1)
    with np.errstate(over="ignore"):
        shadow = 1 / (1 + np.exp(-a.shadow))
    return _tidied(m, div(m, one, add(m, one, exp(m, neg(m, a)))), shadow, a)


def _tidied(m: Machine, result: Value, shadow: np.ndarray, a: Value) -> Value:
    """The result of several operations as that of one: special operands give what the shadow says."""
    return m.result(shadow, result.field, (a,), result.degree)


def _log1p(m: Machine, a: Value) -> Value:
    with np.errstate(all="ignore"):
        shadow = np.log1p(a.shadow)
    return _accurate(log(m, add(m, a, m.number(1))), shadow)


def _expm1(m: Machine, a: Value) -> Value:
    with np.errstate(over="ignore"):
        shadow = np.expm1(a.shadow)
    return _tidied(m, sub(m, exp(m, a), m.number(1)), shadow, a)


def _exp2(m: Machine, a: Value) -> Value:
    with np.errstate(over="ignore"):
        shadow = np.exp2(a.shadow)
    return _tidied(m, exp(m, mul(m, a, m.constant(np.asarray(math.log(2))))), shadow, a)


def _hyperbolic(sign: int, of: Callable[..., Any]) -> Callable[[Machine, Value], Value]:
    def applied(m: Machine, a: Value) -> Value:
        e, back = exp(m, a), exp(m, neg(m, a))
        twice = add(m, e, back) if sign > 0 else sub(m, e, back)
        return _tidied(m, div(m, twice, m.number(2)), of(a.shadow), a)

    return applied


def _square(m: Machine, a: Value) -> Value:
    return mul(m, a, a)


def _one_minus_square(m: Machine, a: Value) -> Value:
    return sub(m, m.number(1), mul(m, a, a))


_POWERS = {"sqrt": Fraction(1, 2), "rsqrt": Fraction(-1, 2), "cbrt": Fraction(1, 3)}
_FUNCTIONS = {
    "exp": exp,
    "log": log,
    "tanh": _tanh,
    "logistic": _logistic,
    "log1p": _log1p,
    "expm1": _expm1,
    "exp2": _exp2,
    "sinh": _hyperbolic(-1, np.sinh),
    "cosh": _hyperbolic(1, np.cosh),
    "square": _square,
    "one_minus_square": _one_minus_square,
    **{name: (lambda m, a, exponent=exponent: power(m, a, exponent)) for name, exponent in _POWERS.items()},
}


@rule("integer_pow")
def _integer_pow(m: Machine, parameters: dict[str, Any], a: Value) -> Value:
    if a.field is None:
        return m.exact(a.shadow ** parameters["y"])
    return power(m, a, Fraction(parameters["y"]))


@rule("pow")
def _pow(m: Machine, parameters: dict[str, Any], a: Value, b: Value) -> Value:
    """By a rational number where the exponent is one small constant, else exp(b log(a))."""
    constant = b.field is None or b.degree == (0, 0)
    if constant and b.shadow.size and (b.shadow == b.shadow.flat[0]).all() and np.isfinite(b.shadow.flat[0]):
        exponent = read(float(b.shadow.flat[0]), "float64")
        if max(abs(exponent.numerator), exponent.denominator) <= 64:
            return power(m, a, exponent)
    result = exp(m, mul(m, m.as_float(b), log(m, a)))
    with np.errstate(all="ignore"):
        return _accurate(result, a.shadow**b.shadow)


# --- order ------------------------------------------------------------------------------------------------------------

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
    degree = max(yes.degree[0], no.degree[0]), max(yes.degree[1], no.degree[1])
    return Value(shadow, m.select(which, yes.field, no.field), special if special.any() else None, degree)


def _clamp(m: Machine, low: Value, x: Value, high: Value) -> Value:
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


def _step(of: Callable[..., Any]) -> Callable[[Machine, Value], Value]:
    """A function that is constant on the branch."""

    def applied(m: Machine, a: Value) -> Value:
        shadow = of(a.shadow)
        m.facts.others.setdefault("roundings to integers and signs are constant near the arguments")
        return m.constant(shadow)

    return applied


def _sign(m: Machine, a: Value) -> Value:
    signs = _signs(m, a, "sign")
    return m.constant(np.where(np.isnan(a.shadow), np.nan, signs))


@rule("is_finite")
def _is_finite(m: Machine, parameters: dict[str, Any], a: Value) -> Value:
    return m.exact(~is_special(a))


@rule("convert_element_type")
def _convert(m: Machine, parameters: dict[str, Any], a: Value) -> Value:
    """Between floating-point dtypes nothing happens, in exact arithmetic."""
    dtype = parameters["new_dtype"]
    if np.dtype(dtype).kind == "c":
        raise Undecided(f"convert_element_type to {np.dtype(dtype).name}")
    if not is_exact(dtype):
        return m.as_float(a)
    if a.field is None:
        return m.exact(a.shadow.astype(dtype))
    m.facts.others.setdefault("conversions to integers are constant near the arguments")
    with np.errstate(invalid="ignore"):
        return m.exact((a.shadow != 0) if np.dtype(dtype) == bool else a.shadow.astype(dtype))


@rule("round")
def _round(m: Machine, parameters: dict[str, Any], a: Value) -> Value:
    return _step(np.round)(m, a)


_FLOATS: dict[str, Callable[..., Value]] = {
    **_ARITHMETIC,
    **_FUNCTIONS,
    "max": larger,
    "min": lambda m, a, b: larger(m, a, b, "min"),
    "clamp": _clamp,
    "abs": absolute,
    "sign": _sign,
    "floor": _step(np.floor),
    "ceil": _step(np.ceil),
}
for _name in {*_FLOATS, *_INTEGERS} - {"add", "sub", "add_any"}:
    _enter_arithmetic(_name, _FLOATS.get(_name))
for _name, _comparison in _COMPARISONS.items():
    _enter_comparison(_name, _comparison)


def _enter_total(name: str, sign: int) -> None:
    @rule(name)
    def of_either(m: Machine, parameters: dict[str, Any], a: Value, b: Value) -> Value:
        if a.field is None:
            return m.exact(_INTEGERS[name](a.shadow, b.shadow).astype(b.shadow.dtype))
        return total(m, a, b, sign, parameters["literals"])


for _name, _sign_of in (("add", 1), ("add_any", 1), ("sub", -1)):
    _enter_total(_name, _sign_of)

# --- functions of which only equality is known ------------------------------------------------------------------------

_OPAQUE: dict[str, Callable[..., Any]] = {
    "sin": np.sin,
    "cos": np.cos,
    "tan": np.tan,
    "asin": np.arcsin,
    "acos": np.arccos,
    "atan": np.arctan,
    "atan2": np.arctan2,
    "asinh": np.arcsinh,
    "acosh": np.arccosh,
    "atanh": np.arctanh,
    "erf": np.vectorize(math.erf, otypes=[float]),
    "erfc": np.vectorize(math.erfc, otypes=[float]),
}


def _enter_opaque(name: str, of: Callable[..., Any]) -> None:
    @rule(name)
    def applied(m: Machine, parameters: dict[str, Any], *values: Value) -> Value:
        with np.errstate(all="ignore"):
            shadow = of(*(v.shadow for v in values)) if values[0].shadow.size else values[0].shadow
        return m.opaque(name, shadow, *values)


for _name, _function in _OPAQUE.items():
    _enter_opaque(_name, _function)


@rule("erf_inv")
def _erf_inv(m: Machine, parameters: dict[str, Any], a: Value) -> Value:
    """The shadow by Newton's method, from a start that is near enough everywhere."""
    x = a.shadow
    with np.errstate(all="ignore"):
        w = np.log1p(-x * x) / 2
        k = 2 / (0.147 * np.pi) + w
        y = np.sign(x) * np.sqrt(np.sqrt(k * k - 2 * w / 0.147) - k)
        for _ in range(4):
            y = y - (_OPAQUE["erf"](y) - x) * np.exp(y * y) * math.sqrt(np.pi) / 2 if x.size else y
    return m.opaque("erf_inv", np.where(np.abs(x) == 1, np.sign(x) * np.inf, y), a)


__all__ = ["Degree", "RULES"]
