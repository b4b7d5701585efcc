"""Right rules as others write them are accepted, whatever the seed: 28 of them."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import normal
from test_check import MAKERS, custom, plain
from test_check_rules import cross_entropy, in_float32, keeps, product, scaled_plain

import jaxnorm as jn
from jaxnorm.check import check_jvp, check_vjp

pytestmark = pytest.mark.usefixtures("quick_compilation")


@dataclass(frozen=True)
class Right:
    name: str
    fun: Callable[..., Any]
    reference: Callable[..., Any]
    args: Callable[[int], tuple[Any, ...]]  # of a seed
    options: dict[str, Any] = field(default_factory=dict)
    check: Callable[..., Any] = check_vjp


def mean_square_in_float32() -> Callable[..., Any]:
    def value(x):
        return jnp.mean(jnp.square(x.astype(jnp.float32)), -1)

    return custom(
        value,
        lambda x: (value(x), x),
        lambda x, g: ((2 / x.shape[-1] * x.astype(jnp.float32) * g[:, None].astype(jnp.float32)).astype(x.dtype),),
    )


def for_one_dtype() -> Callable[..., Any]:
    """Its author never mixes dtypes: a bias of another dtype would get a cotangent of x's."""

    def shifted(x, bias):
        return x + bias

    return custom(shifted, lambda x, bias: (shifted(x, bias), None), lambda _, g: (g, g.sum(0)))


def with_none() -> Callable[..., Any]:
    """A pytree with None in it, in and out."""

    def scaled(params, x):
        return {"y": x * params["scale"], "aux": None}

    def backward(kept, g):
        params, x = kept
        return {"scale": (g["y"] * x).sum(0), "bias": None}, g["y"] * params["scale"]

    return custom(scaled, lambda params, x: (scaled(params, x), (params, x)), backward)


class Extremes(NamedTuple):
    largest: Any
    smallest: Any
    where: Any  # integers


def extremes() -> Callable[..., Any]:
    """Several outputs, one of integers."""

    def value(x):
        return Extremes(x.max(-1), x.min(-1), jnp.argmax(x, -1))

    def backward(x, g):
        columns = jnp.arange(x.shape[-1])
        high, low = (columns == at(x, -1)[:, None] for at in (jnp.argmax, jnp.argmin))
        return (jnp.where(high, g.largest[:, None], 0) + jnp.where(low, g.smallest[:, None], 0),)

    return custom(value, lambda x: (value(x), x), backward)


def noisy() -> Callable[..., Any]:
    """A key of random numbers."""

    def value(key, x):
        return x * jax.random.normal(key, x.shape, x.dtype)

    return custom(value, lambda key, x: (value(key, x), key), lambda key, g: (None, value(key, g)))


def running_sum() -> Callable[..., Any]:
    """A scan in both passes, in float32 at least."""

    def value(x, reverse=False):
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        return jax.lax.scan(lambda c, row: (c + row,) * 2, jnp.zeros_like(wide[0]), wide, reverse=reverse)[1].astype(
            x.dtype
        )

    return custom(lambda x: value(x), lambda x: (value(x), None), lambda _, g: (value(g, reverse=True),))


def power() -> Callable[..., Any]:
    """A static argument that is not differentiated."""

    @partial(jax.custom_vjp, nondiff_argnums=(1,))
    def raised(x, exponent):
        return x**exponent

    raised.defvjp(
        lambda x, exponent: (raised(x, exponent), x), lambda exponent, x, g: (exponent * x ** (exponent - 1) * g,)
    )
    return lambda x: raised(x, 3)


def clipped() -> Callable[..., Any]:
    """A bound that is given and gets no gradient of its own."""

    def value(x, most):
        return jnp.minimum(x, jax.lax.stop_gradient(most))

    return custom(
        value,
        lambda x, most: (value(x, most), x < most),
        lambda below, g: (jnp.where(below, g, 0), jnp.zeros_like(g)),
    )


def product_of_all() -> Callable[..., Any]:
    """A list of scalars."""

    def value(factors):
        return factors[0] * factors[1] * factors[2]

    def backward(f, g):
        return ([g * f[1] * f[2], g * f[0] * f[2], g * f[0] * f[1]],)

    return custom(value, lambda factors: (value(factors), factors), backward)


def rows(*shape: int) -> Callable[[int], tuple[Any, ...]]:
    return lambda seed: (normal(*shape, seed=seed),)


def with_labels(seed: int) -> tuple[Any, ...]:
    return normal(4, 7, seed=seed), np.random.default_rng(seed).integers(0, 7, 4)


def parameters(seed: int) -> tuple[Any, ...]:
    return {"scale": normal(3, seed=seed), "bias": None}, normal(4, 3, seed=seed)


def two(seed: int) -> tuple[Any, ...]:
    return normal(4, 3, seed=seed), normal(3, seed=seed)


def normed(seed: int) -> tuple[Any, ...]:
    return 1.0 + normal(6, 8, seed=seed), normal(8, seed=seed), normal(8, seed=seed + 1)


ROUNDED = {"rounded_residuals": True}
INTEGER = "softmax_cross_entropy_with_integer_labels"
RIGHT = [
    *(Right(p.make.__name__, p.make(), plain(p.make()), p.args) for p in MAKERS),
    Right("in float32", in_float32(), cross_entropy, with_labels),
    Right("in float32, not cast", in_float32(cast=False), cross_entropy, with_labels, {"dtypes": [jnp.float32]}),
    Right("mean square in float32", mean_square_in_float32(), lambda x: jnp.mean(x * x, -1), rows(4, 6)),
    Right("keeps bfloat16", keeps(jnp.bfloat16), jnp.sin, rows(6, 8), {**ROUNDED, "dtypes": [jnp.float32]}),
    Right("keeps float16", keeps(jnp.float16), jnp.sin, rows(6, 8), {**ROUNDED, "dtypes": [jnp.float32]}),
    Right("keeps its output", jn.softmax, jn.reference.softmax, rows(6, 8), ROUNDED),
    Right("for one dtype", for_one_dtype(), lambda x, bias: x + bias, two),
    Right("with None", with_none(), plain(with_none()), parameters),
    Right("extremes", extremes(), plain(extremes()), rows(4, 5)),
    Right("noisy", noisy(), plain(noisy()), lambda seed: (jax.random.key(seed), normal(5, seed=seed))),
    Right("running sum", running_sum(), lambda x: jnp.cumsum(x, 0), rows(5, 3)),
    Right("power", power(), lambda x: x * x * x, rows(4, 3)),
    Right("clipped", clipped(), plain(clipped()), lambda seed: (normal(9, seed=seed), normal(9, seed=seed + 1))),
    Right("list of scalars", product_of_all(), plain(product_of_all()), lambda seed: (list(normal(3, seed=seed)),)),
    Right("jitted", jax.jit(jn.layer_norm), jn.reference.layer_norm, normed),
    Right("integer labels", getattr(jn, INTEGER), getattr(jn.reference, INTEGER), with_labels),
    Right("no rule", jnp.tanh, lambda x: jnp.sinh(x) / jnp.cosh(x), rows(4, 3), ROUNDED),  # it keeps its output
    Right("tangent rule", product(), scaled_plain, two, {}, check_jvp),
    Right("relu's tangent rule", jax.nn.relu, lambda x: jnp.maximum(x, 0), rows(4, 3), {}, check_jvp),
]
over_rules = pytest.mark.parametrize("right", RIGHT, ids=lambda right: right.name.replace(" ", "_"))


@over_rules
def test_a_right_rule_is_accepted(right: Right):
    """Values, derivatives, shapes and dtypes; a second seed compiles nothing."""
    for seed in range(2):
        report = right.check(
            right.fun, *right.args(seed), reference=right.reference, checks=(), seed=seed, **right.options
        )
        report.raise_if_failed()


@pytest.mark.thorough
@over_rules
def test_a_right_rule_is_accepted_over_50_seeds(right: Right):
    """Every check."""
    for seed in range(50):
        right.check(
            right.fun, *right.args(seed), reference=right.reference, seed=seed, **right.options
        ).raise_if_failed()


def test_there_are_enough():
    assert len({right.name for right in RIGHT}) == len(RIGHT) >= 25
