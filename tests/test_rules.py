"""Every public rule against its plain twin, over the whole table of cases."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import CASES, CHOSEN, assert_close, bound, differentiable, over, random_like, value_and_vjp

import jaxnorm as jn
from jaxnorm import reference
from jaxnorm.cases import Case


@pytest.fixture(autouse=True)
def strict():
    """No rule may lean on implicit promotion, of dtypes or of ranks."""
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield


def first_and_second_order(function, floats, cotangent, tangent):
    """The value, every cotangent, and both second-order transforms of a nonlinear loss."""

    def loss(*floats):
        finite = (jnp.where(jnp.isfinite(leaf), leaf, 0) for leaf in jax.tree.leaves(function(*floats)))
        return sum(jnp.sum(jnp.sin(leaf) + jnp.square(leaf)) for leaf in finite)

    arguments = tuple(range(len(floats)))
    of_cotangents = jax.grad(
        lambda *floats: sum(jnp.sum(jnp.sin(c)) for c in jax.tree.leaves(jax.vjp(function, *floats)[1](cotangent))),
        arguments,
    )
    return (
        value_and_vjp(function, floats, cotangent),
        of_cotangents(*floats),
        jax.jvp(jax.value_and_grad(loss, arguments), floats, tangent)[1],
    )


@pytest.mark.usefixtures("quick_compilation")
@over(CASES)
def test_value_gradients_and_second_derivatives_in_float64(case: Case):
    floats = tuple(differentiable(case))
    cotangent = random_like(jax.eval_shape(bound(case, jn), *floats), seed=1)
    tangent = random_like(floats, seed=2)
    got, wanted = (
        jax.jit(partial(first_and_second_order, bound(case, module)))(floats, cotangent, tangent)
        for module in (jn, reference)
    )
    assert_close(got, wanted)


@pytest.mark.usefixtures("quick_compilation")
@over([case for case in CHOSEN if case.smooth])
def test_gradients_against_central_differences(case: Case):
    """Along random directions, by a difference quotient of order 4."""

    def function(*floats):
        value = bound(case, jn)(*floats)
        return value[0] if case.name == "batch_norm" else value  # its statistics have no gradient by convention

    floats = tuple(differentiable(case))
    held = [i for i, n in enumerate(case.args) if n == "stats"]

    def quotients(floats, cotangent, directions):
        def along(t, direction):
            moved = jax.tree.map(lambda a, d: a + t * d, floats, direction)
            values = jax.tree.leaves(function(*moved))
            pairs = zip(values, jax.tree.leaves(cotangent), strict=True)
            return sum(jnp.sum(jnp.where(jnp.isfinite(v), v * c, 0)) for v, c in pairs)

        def one(direction):
            h = 1e-3
            value = partial(along, direction=direction)
            numeric = (8 * (value(h) - value(-h)) - (value(2 * h) - value(-2 * h))) / (12 * h)
            cotangents = jax.vjp(function, *floats)[1](cotangent)
            products = jax.tree.map(lambda a, b: jnp.sum(a * b), cotangents, tuple(direction))
            return numeric, sum(jax.tree.leaves(products)), sum(jnp.abs(p) for p in jax.tree.leaves(products))

        return jax.lax.map(one, directions)

    cotangent = random_like(jax.eval_shape(function, *floats), seed=3)
    directions = jax.tree.map(lambda a: random_like(jnp.zeros((4, *a.shape)), seed=4), floats)
    directions = tuple(jax.tree.map(jnp.zeros_like, d) if i in held else d for i, d in enumerate(directions))
    numeric, ours, size = jax.jit(quotients)(floats, cotangent, directions)
    np.testing.assert_array_less(np.abs(numeric - ours), 1e-7 * (size + 1))


@pytest.mark.usefixtures("quick_compilation")
@over(CASES)
def test_transforms(case: Case):
    """vmap over each argument, scan and checkpoint give what calls one by one give."""
    function = bound(case, jn)
    floats = tuple(differentiable(case))
    # Twice the same signs and order, so that nothing near a kink or a tie changes sides.
    stacked = jax.tree.map(lambda a: jnp.stack([a, a * 1.25]), floats)
    second = jax.tree.map(lambda a: a[1], stacked)
    cotangent = random_like(jax.eval_shape(function, *floats), seed=5)

    def transformed(floats, stacked, cotangent):
        vjp = partial(value_and_vjp, cotangent=cotangent)
        each = [
            jax.vmap(lambda v, i=i: vjp(function, [*floats[:i], v, *floats[i + 1 :]]))(stacked[i])
            for i in range(len(floats))
        ]
        together = jax.vmap(lambda *floats: vjp(function, floats))(*stacked)
        scanned = jax.lax.scan(lambda carry, floats: (carry, vjp(function, floats)), None, stacked)[1]
        checkpointed = vjp(jax.checkpoint(function), floats)
        return each, together, scanned, checkpointed

    def one_by_one(floats, second, cotangent):
        vjp = partial(value_and_vjp, bound(case, reference), cotangent=cotangent)
        stack = partial(jax.tree.map, lambda a, b: jnp.stack([a, b]))
        first = vjp(floats=floats)
        each = [stack(first, vjp(floats=[*floats[:i], second[i], *floats[i + 1 :]])) for i in range(len(floats))]
        both = stack(first, vjp(floats=second))
        return each, both, both, first

    got = jax.jit(transformed)(floats, stacked, cotangent)
    assert_close(got, jax.jit(one_by_one)(floats, second, cotangent))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
@over(CASES)
def test_low_precision_loses_no_more_than_autodiff(case: Case, dtype):
    check_low_precision(case, dtype)


@over(CHOSEN)
def test_float16_loses_no_more_than_autodiff(case: Case):
    check_low_precision(case, jnp.float16)


def check_low_precision(case: Case, dtype):
    """Error against float64 at most plain autodiff's in the same dtype, plus a few ulps; each dtype its primal's."""
    floats = tuple(differentiable(case, dtype))
    with jax.enable_x64(False):
        cotangent = random_like(jax.eval_shape(bound(case, jn), *floats), seed=6)
        got, plain = (
            jax.jit(partial(value_and_vjp, bound(case, module)))(floats, cotangent) for module in (jn, reference)
        )
    for primal, dual in zip(jax.tree.leaves(floats), jax.tree.leaves(got[1]), strict=True):
        assert dual.dtype == primal.dtype and dual.shape == primal.shape
    wide = partial(jax.tree.map, lambda a: jnp.asarray(a, jnp.float64))
    truth = jax.jit(partial(value_and_vjp, bound(case, reference)))(wide(floats), wide(cotangent))
    largest = max(np.max(np.abs(a), initial=0.0, where=np.isfinite(a)) for a in map(np.asarray, jax.tree.leaves(truth)))
    for ours, theirs, exact in zip(*map(jax.tree.leaves, (got, plain, truth)), strict=True):
        assert ours.dtype == theirs.dtype
        epsilon = float(jnp.finfo(ours.dtype).eps)
        ours, theirs, exact = (np.asarray(a, np.float64) for a in (ours, theirs, exact))
        finite = np.isfinite(exact) & (np.abs(exact) < float(jnp.finfo(dtype).max))
        error, allowed = np.abs(ours - exact)[finite], np.abs(theirs - exact)[finite]
        # A few ulps of the element, and of float32 terms of the largest size: sums in another order. Softmax keeps its
        # output alone, so that the terms of its gradient are as exact as a 16-bit output is.
        term = epsilon if case.name == "softmax" else float(jnp.finfo(jnp.float32).eps)
        np.testing.assert_array_less(error, allowed + 4 * epsilon * np.abs(exact)[finite] + 4 * term * largest)
