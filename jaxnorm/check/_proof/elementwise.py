"""Elementwise primitives, of floats and of integers."""

import math
import operator
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np

from jaxnorm.check._proof.arithmetic import add, div, exp, log, mul, neg, power, sub, with_shadow
from jaxnorm.check._proof.constants import read
from jaxnorm.check._proof.machine import Machine, Undecided, Value, is_exact, is_special
from jaxnorm.check._proof.order import absolute, clamp, larger, near_edges, sign, step
from jaxnorm.check._proof.rules import rule

# --- integers, and what is entered for both ---------------------------------------------------------------------------

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


# --- powers and exponentials ------------------------------------------------------------------------------------------


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
    return with_shadow(log(m, add(m, a, m.number(1))), shadow)


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
        return with_shadow(result, a.shadow**b.shadow)


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
    if np.dtype(dtype).kind == "b":
        return m.exact(~m.watch_ties("convert_element_type", a, m.number(0)))
    return m.exact(near_edges(m, a, "convert_element_type").astype(dtype))


_FLOATS: dict[str, Callable[..., Value]] = {
    **_ARITHMETIC,
    **_FUNCTIONS,
    "max": larger,
    "min": lambda m, a, b: larger(m, a, b, "min"),
    "clamp": clamp,
    "abs": absolute,
    "sign": sign,
    "floor": step(np.floor),
    "ceil": step(np.ceil),
}
for _name in {*_FLOATS, *_INTEGERS} - {"add", "sub", "add_any"}:
    _enter_arithmetic(_name, _FLOATS.get(_name))


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
