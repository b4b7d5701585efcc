"""Proofs in exact arithmetic: right rules are proven, planted faults refuted, what has no exact meaning is named."""

import functools
import itertools
import json
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from jax import lax
from support import normal

import jaxnorm as jn
from jaxnorm import reference
from jaxnorm.__main__ import main
from jaxnorm.check import prove
from jaxnorm.check._cases import all_cases
from jaxnorm.check._proof.constants import read
from jaxnorm.check._proof.control import run
from jaxnorm.check._proof.decide import _Attempt
from jaxnorm.check._proof.logarithms import discrete_logarithm, power_of_four
from jaxnorm.check._proof.machine import Facts, Machine, Value
from jaxnorm.check._proof.problem import problem_of
from jaxnorm.check._proof.residues import Residues, TooFewLevels
from jaxnorm.check._proof.towers import LEVELS, is_prime, towers


def custom(primal: Callable[..., Any], forward: Callable[..., Any], backward: Callable[..., Any]) -> Callable[..., Any]:
    """A custom VJP with the primal's own parameters."""
    rule = jax.custom_vjp(primal)
    rule.defvjp(forward, backward)
    return rule


# --- arithmetic -------------------------------------------------------------------------------------------------------


def test_towers_are_of_primes_for_which_small_numbers_are_squares():
    for tower in itertools.islice(towers(), 4):
        assert len(tower) == LEVELS and all(p == 2 * q + 1 for p, q in itertools.pairwise(tower))
        for p in tower:
            assert all(p % d for d in range(2, int(p**0.5) + 1))
            assert all(pow(n, (p - 1) // 2, p) == 1 for n in (2, 3, 5, 7, 11))
    sieve = [n for n in range(63, 2000, 2) if all(n % d for d in range(3, int(n**0.5) + 1, 2))]
    assert [n for n in range(63, 2000, 2) if is_prime(n)] == sieve


@pytest.mark.parametrize("level", range(LEVELS))
def test_logarithms_undo_powers(level: int):
    p = next(towers())[level]
    x = np.random.default_rng(level).integers(0, (p - 1) // 2, 20, dtype=np.uint64)
    u = power_of_four(p, x)
    assert [pow(4, int(e), p) for e in x] == u.tolist()
    np.testing.assert_array_equal(discrete_logarithm(p, u), x)


def test_constants_stand_for_simple_numbers():
    for a, b in itertools.product(range(1, 40), range(1, 40)):
        assert read(a / b, "float64") == read(-a / b, "float64") * -1 == Fraction(a, b)
        assert read(float(np.float32(a / b)), "float32") == Fraction(a, b)
    assert read(1e-5, "float64") == Fraction(1, 10**5) and read(3e-17, "float64") == Fraction(3, 10**17)
    assert read(2.0**-1022, "float64") == Fraction(1, 2**1022) and read(0.0, "float64") == 0
    for value in (0.1, 1.0, 1e-5, 2 / 3):
        off = float(np.nextafter(value, 2))
        assert float(read(off, "float64")) == off and read(off, "float64") != read(value, "float64")


def test_exponentials_logarithms_and_roots_obey_their_laws():
    domain = Residues(next(towers()), 4, 6, np.random.default_rng(0))
    x, y = domain.draw((3,)), domain.draw((3,))
    u = domain.exp(x)
    laws = (
        (domain.exp(domain.add(x, y)), domain.mul(u, domain.exp(y))),
        (domain.log(domain.mul(u, domain.exp(y))), domain.add(x, y)),
        (domain.exp(domain.log(u)), u),
        (
            domain.power(u, Fraction(3, 2)),
            domain.exp(domain.mul(x, domain.constant([Fraction(3, 2)], np.zeros(3, int)))),
        ),
        (domain.power(domain.power(x, Fraction(1, 3)), Fraction(3)), x),
        (domain.mul(x, domain.inverse(x)), domain.integers(np.ones(3, int))),
    )
    assert all(domain.are_equal(*law).all() for law in laws)
    assert not domain.are_equal(domain.exp(x), domain.exp(y)).any()


# --- the interpreter --------------------------------------------------------------------------------------------------

X, Y = normal(3, 4, seed=1), normal(4, 5, seed=2)
INDICES = np.array([[0, 3], [2, 9], [1, 1]])


def convolution(x, kernel, **options):
    numbers = ("NHC", "HIO", "NHC")
    return lax.conv_general_dilated(x, kernel, dimension_numbers=numbers, **{"window_strides": (1,), **options})


PROGRAMS = {
    "gather, clipped": lambda x: x.at[INDICES[:, 0], INDICES[:, 1]].get(mode="clip"),
    "gather, filled": lambda x: jnp.nan_to_num(x.at[INDICES[:, 0], INDICES[:, 1]].get(mode="fill")),
    "take along axis": lambda x: jnp.take_along_axis(x, INDICES % 4, 1),
    "scatter-add, dropped": lambda x: x.at[INDICES[:, 0], INDICES[:, 1]].add(x[:, 0]),
    "scatter": lambda x: x.at[1:, ::2].set(x[:2, :2]),
    "scatter-max": lambda x: x.at[0].max(0.1),
    "scatter-mul": lambda x: x.at[:, 1].multiply(x[:, 2]),
    "pad": lambda x: lax.pad(x, 0.5, ((-1, 2, 1), (3, -2, 2))),
    "cumulative": lambda x: jnp.cumsum(x, 0) + lax.cummax(x, 1) + lax.cumprod(x, 1) + lax.cumsum(x, 1, reverse=True),
    "sort": lambda x: jnp.concatenate([jnp.sort(x, 0), x[:, jnp.argsort(x[0])], lax.top_k(x, 4)[0]]),
    "argmax": lambda x: x + jnp.argmax(x, 1, keepdims=True) - jnp.argmin(x),
    "max pool": lambda x: lax.reduce_window(x, -jnp.inf, lax.max, (2, 2), (1, 2), "SAME"),
    "sum pool": lambda x: lax.reduce_window(x, 0.0, lax.add, (2, 3), (1, 2), "SAME", window_dilation=(1, 1)),
    "dots": lambda x: jnp.einsum("ij,kj->ik", x, x) @ x + jnp.einsum("ij,ij->j", x, x),
    "convolution": lambda x: convolution(
        x.reshape(1, 6, 2), x.reshape(2, 2, 3), padding=[(2, -1)], lhs_dilation=(2,), rhs_dilation=(3,)
    ),
    "convolution, groups": lambda x: convolution(
        x.reshape(1, 3, 4), x.reshape(3, 2, 2), padding="SAME", feature_group_count=2, window_strides=(2,)
    ),
    "convolution, batch groups": lambda x: convolution(
        x.reshape(2, 3, 2), x.reshape(1, 2, 6), padding="VALID", batch_group_count=2
    ),
    "scan": lambda x: lax.scan(lambda c, r: (c + r, c * r), x[0], x, reverse=True),
    "while": lambda x: lax.while_loop(lambda c: jnp.sum(c) < 50, lambda c: c * c + 1, x),
    "cond": lambda x: lax.cond(x[0, 0] > 0, jnp.sin, jnp.cos, x),
    "switch": lambda x: lax.switch(7, [jnp.tan, jnp.exp, jnp.tanh], x),
    "functions": lambda x: (
        jnp.log1p(x * x) + jnp.expm1(x) + jax.nn.sigmoid(x) + jnp.exp2(x) + jnp.cbrt(x) + jnp.cosh(x)
    ),
    "roundings": lambda x: jnp.floor(x) + jnp.round(2 * x) + jnp.sign(x) + x.astype(int) % 2 + jnp.isfinite(x),
    "powers": lambda x: jnp.abs(x) ** 1.5 + x**-3 + jnp.abs(x[:1, :2]).sum() ** x[0, 0] + lax.rsqrt(x * x + 1),
    "reductions": lambda x: jnp.prod(x, 0) + jnp.max(x, 0) - jnp.min(x, (0, 1)) + jnp.var(x) + jnp.any(x > 1, 0),
    "moves": lambda x: jnp.roll(jnp.flip(jnp.stack(jnp.split(x.T, 2)), 1), 1, 2) + jnp.tile(x[0, :2, None], 3),
    "clamp": lambda x: jnp.clip(x, -0.5, x.T.reshape(3, 4)),
    "infinities": lambda x: (
        jnp.nan_to_num(jnp.log(x) / jnp.where(x > 0, x, 0)) + jnp.exp(jnp.where(x > 0, x, -jnp.inf))
    ),
    "slices": lambda x: lax.dynamic_update_slice(x, lax.dynamic_slice(x, (9, 1), (1, 2)), (0, -1)),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_interpreter_computes_what_jax_does(name: str):
    """By the shadows; what residues say is compared with the same function, which is equal to itself."""
    got = []
    with jax.enable_x64(True):
        traced, wanted = jax.make_jaxpr(PROGRAMS[name])(X), jax.tree.leaves(jax.jit(PROGRAMS[name])(X))
        for levels in range(1, LEVELS):
            domain = Residues(next(towers()), levels, 2, np.random.default_rng(0))
            try:
                m = Machine(domain, None, Facts(), replay=False)
                got = run(m, traced.jaxpr, traced.consts, [Value(np.asarray(X), domain.draw(X.shape), degree=(1, 0))])
                break
            except TooFewLevels:
                pass
    for g, w in zip(got, wanted, strict=True):
        np.testing.assert_allclose(g.shadow, w, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", sorted({*PROGRAMS} - {"while"}))
def test_every_program_and_its_cotangents_equal_themselves(name: str):
    proof = prove(PROGRAMS[name], X, reference=lambda x: PROGRAMS[name](x))
    assert proof.holds is True, proof


# --- right rules ------------------------------------------------------------------------------------------------------

CASES = {str(case): case for case in all_cases()}


@pytest.mark.parametrize(
    "name",
    [
        "normalize-masked",
        "batch_norm-empty channel",
        "group_norm-channels first",
        "softmax-masked rows",
        "softmax_cross_entropy_with_integer_labels-soft cap",
        pytest.param("softmax_cross_entropy_with_integer_labels-entropy", marks=pytest.mark.thorough),
        "linear_softmax_cross_entropy-smoothed",
        "multiclass_hinge_loss-margin",
        "conv-groups",
        "conv_transpose-channels first, dilated",
    ],
)
def test_rules_of_this_library_are_proven_on_every_platform(name: str):
    case = CASES[name]
    proof = prove(case.function(jn), *case.args.values(), reference=case.function(reference))
    assert proof.holds is True and proof.error <= 2**-40, proof
    assert "chance below" in str(proof) and proof.difference is None
    if not name.startswith(("softmax-", "linear")):
        assert len(proof.platforms) > 1


def layer_norm(x, scale, epsilon=1e-5):
    centred = x - x.mean(-1, keepdims=True)
    return scale * centred * lax.rsqrt((centred**2).mean(-1, keepdims=True) + epsilon)


def test_second_derivatives_are_proven_and_wrong_ones_refuted():
    x, scale = normal(2, 4), normal(4)
    assert prove(jn.rms_norm, x, scale, reference=reference.rms_norm, order=2).holds

    once = custom(lambda x: x**3, lambda x: (x**3, x), lambda x, g: (3 * lax.stop_gradient(x) ** 2 * g,))
    assert prove(once, x, reference=lambda x: x**3).holds
    proof = prove(once, x, reference=lambda x: x**3, order=2)
    assert proof.holds is False and proof.difference and proof.difference.output == "second cotangent of x"


E = st.deferred(
    lambda: st.sampled_from([("x",), ("y",), ("1",), ("2",), ("0.3",)]) | st.tuples(st.sampled_from("+-*/"), E, E)
)
UNARY = {"exp": jnp.exp, "tanh": jnp.tanh, "log": lambda v: jnp.log(v * v + 1), "sqrt": lambda v: jnp.sqrt(v * v + 2)}
E = E | st.tuples(st.sampled_from(sorted(UNARY)), st.sampled_from([("x",), ("y",)]))


def value_of(expression: Any, x: Any, y: Any) -> Any:
    """An expression as written."""
    op, *parts = expression
    if not parts:
        return {"x": x, "y": y}[op] if op in "xy" else jnp.full(x.shape, float(op))
    a, *b = (value_of(part, x, y) for part in parts)
    if op in UNARY:
        return UNARY[op](a)
    return {"+": lambda: a + b[0], "-": lambda: a - b[0], "*": lambda: a * b[0], "/": lambda: a / (b[0] * b[0] + 1)}[
        op
    ]()


def rewritten(expression: Any, x: Any, y: Any) -> Any:
    """The same number by other operations."""
    op, *parts = expression
    if not parts:
        return value_of(expression, x, y)
    a, *b = (rewritten(part, x, y) for part in parts)
    return {
        "+": lambda: b[0] + a,
        "-": lambda: -(b[0] - a),
        "*": lambda: ((a + b[0]) ** 2 - a * a - b[0] ** 2) / 2,
        "/": lambda: a * (1 / (1 + b[0] ** 2)),
        "exp": lambda: 1 / jnp.exp(-a / 2) ** 2,
        "tanh": lambda: 2 / (1 + jnp.exp(-2 * a)) - 1,
        "log": lambda: -jnp.log(1 / (1 + a**2)),
        "sqrt": lambda: (2 + a**2) * lax.rsqrt(2 + a**2),
    }[op]()


def identity(expression: Any) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """An expression as written, and rewritten."""
    as_written, otherwise = (lambda x, y, of=of: of(expression, x, y) + 0 * x for of in (value_of, rewritten))
    return as_written, otherwise


@settings(max_examples=12, deadline=None)
@given(E)
def test_random_identities_are_proven(expression: Any):
    x, y = normal(2, seed=4), normal(2, seed=5)
    fun, same = identity(expression)
    proof = prove(fun, x, y, reference=same)
    assert proof.holds is True or (proof.holds is None and proof.reason), proof
    off = prove(lambda x, y: fun(x, y) + 1e-13 * x, x, y, reference=same)
    assert off.holds is not True


@pytest.mark.thorough
def test_200_random_identities_are_proven_and_of_1000_none_is_refuted():
    found: dict[Any, bool | None] = {}

    @settings(max_examples=1000, deadline=None, database=None, phases=[Phase.generate], derandomize=True)
    @given(E)
    def examine(expression: Any) -> None:
        if expression not in found:
            fun, same = identity(expression)
            found[expression] = prove(fun, np.array([0.7]), np.array([-1.3]), reference=same).holds

    examine()
    verdicts = list(found.values())
    assert verdicts.count(True) >= 200 and verdicts.count(False) == 0, [verdicts.count(v) for v in (True, None, False)]


# --- planted faults ---------------------------------------------------------------------------------------------------


def norm_with(change: Callable[..., Any], ddof: int = 0, epsilon: float = 1e-5) -> Callable[..., Any]:
    """Layer norm with the closed form of its gradient; `change` has its say on the terms."""

    def parts(x):
        mean = x.mean(-1, keepdims=True)
        rstd = lax.rsqrt(((x - mean) ** 2).sum(-1, keepdims=True) / (x.shape[-1] - ddof) + epsilon)
        return (x - mean) * rstd, rstd

    def backward(kept, g):
        x, scale = kept
        x_hat, rstd = parts(x)
        terms = {"g": g * scale, "x_hat": x_hat, "rstd": rstd, "n": x.shape[-1], "m": x.shape[-1] - ddof, "raw": g}
        terms |= {"first": terms["g"].sum(-1, keepdims=True), "second": (terms["g"] * x_hat).sum(-1, keepdims=True)}
        terms |= change(terms)
        dx = terms["rstd"] * (terms["g"] - terms["first"] / terms["n"] - terms["x_hat"] * terms["second"] / terms["m"])
        return dx * terms.get("dx", 1), (terms["raw"] * terms["x_hat"]).sum(0) * terms.get("dscale", 1)

    return custom(lambda x, scale: parts(x)[0] * scale, lambda x, s: (parts(x)[0] * s, (x, s)), backward)


def on_other_platforms(value: Any) -> Any:
    return lax.platform_dependent(jnp.ones(()), cpu=lambda one: one, default=lambda one: one * value)


FAULTS: dict[str, Callable[..., Any]] = {
    "first sum dropped": lambda t: {"first": 0 * t["first"]},
    "second sum dropped": lambda t: {"second": 0 * t["second"]},
    "sign of the first": lambda t: {"first": -t["first"]},
    "sign of the second": lambda t: {"second": -t["second"]},
    "sign of dscale": lambda t: {"dscale": -1},
    "n - 1 for n": lambda t: {"n": t["n"] - 1},
    "n - 1 in the second": lambda t: {"m": t["m"] - 1},
    "n + 1 at this size": lambda t: {"n": t["n"] + (t["n"] == 5)},
    "factor": lambda t: {"dx": 1 + 1e-13},
    "factor of dscale": lambda t: {"dscale": 1 + 1e-13},
    "an ulp": lambda t: {"dx": float(np.nextafter(1, 2))},
    "an ulp below": lambda t: {"dx": float(np.nextafter(1, 0))},
    "rstd squared": lambda t: {"rstd": t["rstd"] ** 2},
    "scale forgotten": lambda t: {"g": t["raw"]},
    "g of one": lambda t: {"raw": jnp.ones_like(t["raw"])},
    "first not of the scaled": lambda t: {"first": t["raw"].sum(-1, keepdims=True)},
    "second not of the scaled": lambda t: {"second": (t["raw"] * t["x_hat"]).sum(-1, keepdims=True)},
    "one element": lambda t: {"g": t["g"].at[1, 2].multiply(1 + 1e-12)},
    "only one of a sum": lambda t: {"first": t["g"][..., :-1].sum(-1, keepdims=True)},
    "wrong where x is large": lambda t: {"g": jnp.where(t["x_hat"] > 1, t["g"] * (1 + 1e-13), t["g"])},
    "wrong elsewhere than on a CPU": lambda t: {"dx": on_other_platforms(1 + 1e-13)},
    "a constant added": lambda t: {"first": t["first"] + 1e-14},
}
EPSILONS = {"epsilon by an ulp": float(np.nextafter(1e-5, 1)), "epsilon by an ulp below": float(np.nextafter(1e-5, 0))}


def test_the_norm_without_a_fault_is_proven():
    x, scale = normal(3, 5), normal(5)
    for ddof in (0, 1):
        wanted = functools.partial(reference.normalize, reduction_axes=1, ddof=ddof)
        assert prove(norm_with(lambda t: {}, ddof), x, scale, reference=wanted).holds is True


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_are_refuted(fault: str):
    proof = prove(norm_with(FAULTS[fault]), normal(3, 5), normal(5), reference=layer_norm)
    assert proof.holds is False and proof.difference is not None
    assert proof.difference.output in ("cotangent of x", "cotangent of scale")
    assert "does not hold" in str(proof) and "cotangent of" in str(proof)
    with pytest.raises(AssertionError, match="does not hold"):
        proof.raise_if_failed()


@pytest.mark.parametrize("fault", [*EPSILONS, "ddof"])
def test_planted_faults_of_the_value_are_refuted(fault: str):
    rule = norm_with(lambda t: {}, int(fault == "ddof"), EPSILONS.get(fault, 1e-5))
    proof = prove(rule, normal(3, 5), normal(5), reference=layer_norm)
    assert proof.holds is False and proof.difference and proof.difference.output == "output"


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        (lambda x: jax.nn.softmax(lax.stop_gradient(x)), jax.nn.softmax),
        (lambda x: jax.nn.softmax(x * (1 + 1e-13)), jax.nn.softmax),
        (lambda x: jnp.log1p(jnp.exp(x)) + 1e-12, lambda x: jnp.logaddexp(x, 0)),
        (lambda x: jnp.tanh(x) ** 2, lambda x: 1 - jnp.cosh(x) ** -2 * (1 + 1e-13)),
        (lambda x: jnp.exp(2 * x), lambda x: jnp.exp(x) ** 3),
        (lambda x: jnp.sqrt(x**2 + 1), lambda x: jnp.sqrt(x**2 + 1.0000000000000002)),
        (lambda x: -jnp.sqrt(jnp.exp(x)), lambda x: jnp.exp(x / 2)),
        (lambda x: jnp.where(x > 0, x, 0.01 * x), lambda x: jnp.where(x > 0, x, 0.0100000000000001 * x)),
        (lambda x: jnp.max(x, -1), lambda x: jnp.mean(x, -1)),
        (lambda x: jnp.sort(x, -1)[:, 0], lambda x: -jnp.max(x, -1)),
        (lambda x: jnp.argmax(x, -1) + x[:, 0], lambda x: jnp.argmin(x, -1) + x[:, 0]),
        (lambda x: jnp.where(x > 0, jnp.log(jnp.abs(x)), jnp.nan), lambda x: jnp.log(jnp.abs(x))),
        (lambda x: jnp.sin(x) * 1.001, jnp.sin),
        (jnp.arctan, lambda x: jnp.tanh(x)),
    ],
)
def test_functions_that_differ_are_told_apart(wrong: Callable[..., Any], right: Callable[..., Any]):
    proof = prove(wrong, X, reference=right)
    assert proof.holds is False, proof


# --- what is not decided ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fun", "same", "named"),
    [
        (lambda x: jnp.sqrt(x * x), jnp.abs, "root of what is a square"),
        (lambda x: jnp.sqrt((x + 1) * (x + 1)), lambda x: x + 1, "root of what is a square"),
        (lambda x: jnp.sin(x) ** 2 + jnp.cos(x) ** 2 + x, lambda x: 1 + x, "relation"),
        (lambda x: jax.scipy.special.digamma(x), lambda x: jax.scipy.special.digamma(x), "digamma"),
        (lambda x: jnp.where(1e30 + x > 1e30, x, -x), jnp.abs, "gt: equal in floating point"),
        (lambda x: x * jax.random.normal(jax.random.key(0), x.shape), lambda x: x, "random"),
    ],
)
def test_what_has_no_exact_meaning_is_named_and_undecided(fun: Any, same: Any, named: str):
    proof = prove(fun, X, reference=same)
    assert proof.holds is None and named in str(proof) and "undecided" in str(proof)
    with pytest.raises(AssertionError, match="undecided"):
        proof.raise_if_failed()


def test_ties_are_a_branch_of_their_own():
    x = np.array([[0.0, -1.5, 0.0], [2.0, 0.7, 0.7]])
    assert prove(jn.relu, x, reference=reference.relu).holds
    half = custom(
        lambda x: jnp.maximum(x, 0), lambda x: (jnp.maximum(x, 0), x), lambda x, g: (jnp.where(x >= 0, g, 0),)
    )
    assert prove(half, x + 0.1, reference=reference.relu).holds  # the fault is at 0 alone
    proof = prove(half, x, reference=reference.relu)
    assert proof.holds is False and proof.difference and proof.difference.index == (0, 0)
    assert "ties" in str(proof)
    assert prove(lambda x: jnp.max(x, -1), x, reference=lambda x: jnp.sort(x, -1)[:, -1], argnums=0).holds is not True


def test_assumptions_are_listed():
    proof = prove(lambda x: jnp.sin(x / 3 + 0.1), X, reference=lambda x: jnp.sin(x * 0.3333333333333333 + 1 / 10))
    assert proof.holds and "0.3333333333333333 = 1/3" in str(proof) and "equal arguments: sin" in str(proof)
    assert "chance below" in str(proof) and proof.to_dict()["holds"] is True


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="error must lie"):
        prove(jnp.sin, X, reference=jnp.sin, error=0)
    with pytest.raises(ValueError, match="order must be 1 or 2, got 3"):
        prove(jnp.sin, X, reference=jnp.sin, order=3)
    with pytest.raises(ValueError, match=r"\(3, 4\).*\(3,\)"):
        prove(jnp.sin, X, reference=lambda x: x.sum(-1))
    with pytest.raises(TypeError, match="floating-point"):
        prove(jnp.abs, np.arange(3), reference=jnp.abs)


# --- the bound --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("prime", "degree"), [(1439, 2), (1439, 6), (1439, 24), (719, 6)])
def test_false_proofs_are_as_rare_as_the_bound_says(prime: int, degree: int):
    """Modulo a tiny prime: x (x - 1) ... is 0 at as many of its residues as its degree."""
    tries = 3000

    def product(x):
        return functools.reduce(jnp.multiply, [x - k for k in range(degree)])

    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        problem = problem_of(product, lambda x: 0 * x, (np.asarray(7.5),), None, 1, rng)
        domain, single = (Residues((prime,), 1, draws, rng) for draws in (tries, 1))
        attempt, one = (_Attempt(problem, d, ties=False) for d in (domain, single))
        (program,) = problem.formulations.values()
        got, alone = (a._outputs(a._run(program)) for a in (attempt, one))
    zeros = int((got[0].field[0] == 0).sum())
    expected = tries * degree / prime
    assert abs(zeros - expected) < 4 * expected**0.5 + 1
    assert degree / prime <= one._error(alone) <= 2 * degree / prime


def test_more_draws_make_smaller_errors():
    proofs = [prove(layer_norm, normal(3, 5), normal(5), reference=layer_norm, error=e) for e in (1e-3, 1e-60)]
    assert all(p.holds and p.error <= e for p, e in zip(proofs, (1e-3, 1e-60), strict=True))


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_command_proves(tmp_path, capsys: pytest.CaptureFixture[str]):
    assert main(["prove", "relu", "affine_relu", "--json", str(tmp_path / "proofs.json")]) == 0
    assert "3 of 3 cases proven" in capsys.readouterr().out
    data = json.loads((tmp_path / "proofs.json").read_text())
    assert data["cases"]["relu-plain"]["holds"] is True and data["functions"][1]["formulations"] > 2


def test_the_command_exits_1_where_a_rule_is_not_proven(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    wrong = custom(jn.relu, lambda x: (jn.relu(x), x), lambda x, g: (jnp.where(x > 0, g, 0) * (1 + 1e-13),))
    monkeypatch.setattr(jn, "relu", wrong)
    assert main(["prove", "relu"]) == 1
    printed = capsys.readouterr().out
    assert "relu-plain: relu: does not hold" in printed and "1 WRONG" in printed and "0 of 1 cases proven" in printed


def test_the_command_tells_its_version(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as left:
        main(["--version"])
    assert left.value.code == 0 and capsys.readouterr().out == f"jaxnorm {jn.__version__}\n"
