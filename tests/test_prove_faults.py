"""Planted algebraic slips are refuted, one by one; the rules without them are proven; further branches and shapes."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from jax import lax
from support import normal

import jaxnorm as jn
from jaxnorm import reference
from jaxnorm.check import prove, strategies
from jaxnorm.check._cases import all_cases

LABELS, N = jax.nn.one_hot(np.array([0, 2]), 3), 3


def rooted(x: Any) -> Any:
    return lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-5)


def margin(x: Any) -> Any:
    return (1 + x - (x * LABELS).sum(-1, keepdims=True)) * (1 - LABELS)


# Of each rule the function, its cotangents with a coefficient c before each term (1 if it is right), how many there
# are, and the arguments' shapes.
RULES: dict[str, tuple[Callable[..., Any], Callable[..., Any], int, tuple[tuple[int, ...], ...]]] = {
    "softmax": (
        jax.nn.softmax,
        lambda c, g, x: (c[0] * (y := jax.nn.softmax(x)) * g - c[1] * y * (y * g).sum(-1, keepdims=True),),
        2,
        ((2, N),),
    ),
    "cross entropy": (
        lambda x: jax.nn.logsumexp(x, -1) - (x * LABELS).sum(-1),
        lambda c, g, x: (g[:, None] * (c[0] * jax.nn.softmax(x) - c[1] * LABELS),),
        2,
        ((2, N),),
    ),
    "root mean square": (
        lambda x: x * rooted(x),
        lambda c, g, x: (c[0] * g * (r := rooted(x)) - c[1] * x * r**3 * (g * x).mean(-1, keepdims=True),),
        2,
        ((2, N),),
    ),
    "variance": (
        lambda x: x.var(-1, ddof=1),
        lambda c, g, x: ((c[0] * x - c[1] * x.mean(-1, keepdims=True)) * 2 / (N - 1) * g[:, None],),
        2,
        ((2, N),),
    ),
    "sigmoid": (
        jax.nn.sigmoid,
        lambda c, g, x: (g * (c[0] * (p := jax.nn.sigmoid(x)) - c[1] * p * p),),
        2,
        ((2, N),),
    ),
    "silu": (
        jax.nn.silu,
        lambda c, g, x: (g * (c[0] * (p := jax.nn.sigmoid(x)) + c[1] * x * p * (1 - p)),),
        2,
        ((2, N),),
    ),
    "softplus": (lambda x: jnp.logaddexp(x, 0), lambda c, g, x: (c[0] * g * jax.nn.sigmoid(x),), 1, ((2, N),)),
    "affine": (
        lambda x, k, b: x @ k + b,
        lambda c, g, x, k, b: (c[0] * g @ k.T, c[1] * x.T @ g, c[2] * g.sum(0)),
        3,
        ((2, N), (N, 2), (2,)),
    ),
    "unit length": (
        lambda x: x / jnp.sqrt((x * x).sum(-1, keepdims=True)),
        lambda c, g, x: (
            c[0] * g / (r := jnp.sqrt((x * x).sum(-1, keepdims=True)))
            - c[1] * x * (x * g).sum(-1, keepdims=True) / r**3,
        ),
        2,
        ((2, N),),
    ),
    "weighted mean": (
        lambda x, w: (w * x).sum() / w.sum(),
        lambda c, g, x, w: (c[0] * w * g / w.sum(), (c[1] * x / w.sum() - c[2] * (w * x).sum() / w.sum() ** 2) * g),
        3,
        ((N,), (N,)),
    ),
    "hinge": (
        lambda x: jnp.maximum(margin(x), 0).sum(-1),
        lambda c, g, x: (
            g[:, None] * (c[0] * (inside := (margin(x) > 0) * 1.0) - c[1] * LABELS * inside.sum(-1, keepdims=True)),
        ),
        2,
        ((2, N),),
    ),
}
SLIPS = {
    "dropped": 0.0,
    "sign": -1.0,
    "1 + 1e-13": 1 + 1e-13,
    "an ulp more": float(np.nextafter(1, 2)),
    "twice": 2.0,
    "n / (n - 1)": N / (N - 1),
}
PLANTED = [(rule, term, slip) for rule in RULES for term in range(RULES[rule][2]) for slip in SLIPS]
QUICK = len(SLIPS) + 1  # every so-manyth: each term once, or nearly, each slip equally often


def with_slip(rule: str, term: int | None, factor: float, arrays: Any = None) -> Any:
    """The proof of a rule in which one term has a factor."""
    primal, cotangents, terms, shapes = RULES[rule]
    coefficients = [factor if i == term else 1.0 for i in range(terms)]
    ruled = jax.custom_vjp(lambda *args: primal(*args))
    ruled.defvjp(lambda *args: (primal(*args), args), lambda args, g: cotangents(coefficients, g, *args))
    arrays = arrays or [normal(*shape, seed=i) for i, shape in enumerate(shapes)]
    return prove(ruled, *arrays, reference=lambda *args: primal(*args))


@pytest.mark.parametrize("rule", RULES)
def test_the_rules_without_a_slip_are_proven(rule: str):
    proof = with_slip(rule, None, 1.0)
    assert proof.holds is True and proof.error <= 2**-40, proof


@pytest.mark.parametrize(
    ("rule", "term", "slip"),
    [pytest.param(*planted, marks=[] if i % QUICK == 0 else pytest.mark.thorough) for i, planted in enumerate(PLANTED)],
)
def test_a_slip_in_one_term_is_refuted(rule: str, term: int, slip: str):
    proof = with_slip(rule, term, SLIPS[slip])
    assert proof.holds is False and proof.difference and proof.difference.output.startswith("cotangent of"), proof


# --- further arguments and shapes -------------------------------------------------------------------------------------


def clipped(below: float) -> Callable[..., Any]:
    """relu whose gradient is wrong below `below`."""
    rule = jax.custom_vjp(lambda x: jnp.maximum(x, 0))
    rule.defvjp(lambda x: (jnp.maximum(x, 0), x), lambda x, g: (jnp.where((x > 0) | (x < below), g, 0),))
    return rule


@pytest.mark.parametrize(
    "branches", [lambda rng: (rng.normal(size=2),), st.tuples(strategies.arrays((2,)))], ids=["function", "strategy"]
)
def test_arguments_are_drawn_and_their_branches_counted(branches: Any):
    x = np.array([1.0, 2.0])
    proof = prove(jn.relu, x, reference=reference.relu, branches=branches, max_examples=12)
    assert proof.holds and proof.calls == 13 and 2 <= proof.branches <= 13 and proof.error <= 2**-40
    assert f"with 13 lists of arguments, on {proof.branches} branches" in str(proof)


def test_a_fault_on_a_branch_that_is_drawn_is_found():
    x = np.array([1.0, 2.0])
    assert prove(clipped(-1.0), x, reference=reference.relu).holds  # on this branch alone
    proof = prove(clipped(-1.0), x, reference=reference.relu, branches=lambda rng: (rng.normal(size=2) - 1,))
    assert (
        proof.holds is False and proof.calls < 21 and proof.difference and proof.difference.output == "cotangent of x"
    )


def test_every_sign_of_two_numbers_is_a_branch():
    signs = iter([(1, 1), (1, -1), (-1, 1), (-1, -1)] * 2)
    proof = prove(
        jn.relu, np.ones(2) / 3, reference=reference.relu, branches=lambda rng: (next(signs) * rng.uniform(1, 2, 2),),
        max_examples=8,
    )  # fmt: skip
    assert proof.holds and (proof.calls, proof.branches) == (9, 4)


def test_further_shapes_are_proven_and_listed():
    def centred(x):
        return x - x.sum(-1, keepdims=True) / (x.shape[-1] - (x.shape[-1] == 5))

    def right(x):
        return x - x.mean(-1, keepdims=True)

    proof = prove(centred, normal(2, 3), reference=right, shapes=[[(4,)], [(0, 2)]])
    assert (
        proof.holds and proof.shapes == (((2, 3),), ((4,),), ((0, 2),)) and "shapes: (2, 3); (4,); (0, 2)" in str(proof)
    )
    proof = prove(centred, normal(2, 3), reference=right, shapes=[[(4,)], [(1, 5)]])
    assert proof.holds is False and proof.difference and proof.difference.index == (0, 0)


def test_bad_branches_and_shapes_are_named():
    x = normal(2)
    with pytest.raises(TypeError, match="branches must be a function"):
        prove(jnp.sin, x, reference=jnp.sin, branches=[x])
    with pytest.raises(ValueError, match="max_examples must be at least 1, got 0"):
        prove(jnp.sin, x, reference=jnp.sin, branches=lambda rng: (x,), max_examples=0)
    with pytest.raises(ValueError, match="one shape for each of the 1 arguments"):
        prove(jnp.sin, x, reference=jnp.sin, shapes=[[(2,), (3,)]])
    with pytest.raises(ValueError, match="shapes must be empty where"):
        prove(jnp.sin, normal(0), reference=jnp.sin, shapes=[[(2,)]])


PAGES = Path(__file__).parents[1] / "docs" / "derivations"


@pytest.mark.parametrize("page", sorted({page.stem for page in PAGES.glob("*.md")} - {"index", "notes"}))
def test_a_derivation_page_says_what_proves_it(page: str):
    (names,) = re.findall(r"`python -m jaxnorm prove ([a-z_ ]+)`", (PAGES / f"{page}.md").read_text())
    assert {*names.split()} <= {case.name for case in all_cases()}


def test_every_function_is_proven_on_a_derivation_page():
    text = " ".join(page.read_text() for page in PAGES.glob("*.md"))
    named = {name for names in re.findall(r"`python -m jaxnorm prove ([a-z_ ]+)`", text) for name in names.split()}
    assert named == {case.name for case in all_cases()}
