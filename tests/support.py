"""What tests share: the table of cases, random numbers, comparisons."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnorm.check._cases import Case, all_cases

CASES = all_cases()
# The first case of every function and those with the most options: for tests that differ by rule, not by every option.
CHOSEN = [
    case
    for case in CASES
    if case.label.startswith("everything") or case is next(c for c in CASES if c.name == case.name)
]


def normal(*shape: int, seed: int = 0, dtype: Any = np.float64) -> jax.Array:
    """Random numbers of this shape, others for every shape and seed."""
    return jnp.asarray(np.random.default_rng([seed, *shape]).normal(size=shape), dtype)


def over(cases: list[Case]) -> pytest.MarkDecorator:
    """A test over these cases."""
    return pytest.mark.parametrize("case", cases, ids=[str(case).replace(" ", "_") for case in cases])


def thorough(*values: Any) -> Any:
    """A parameter of a test that `.ci/run` runs and the README's command leaves out."""
    return pytest.param(*values, marks=pytest.mark.thorough)


def is_float(tree: Any) -> bool:
    return all(jnp.issubdtype(np.asarray(leaf).dtype, np.floating) for leaf in jax.tree.leaves(tree))


def random_like(tree: Any, seed: int = 0) -> Any:
    """Random arrays of the shapes and dtypes of a tree: cotangents, tangents."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape), a.dtype), tree)


def value_and_vjp(function: Callable[..., Any], floats: list[Any], cotangent: Any) -> tuple[Any, Any]:
    value, vjp = jax.vjp(function, *floats)
    return value, vjp(cotangent)


def assert_close(got: Any, wanted: Any, tolerance: float = 1e-10) -> None:
    """Equal structures, shapes and dtypes; values within the tolerance relative to each array's largest entry."""
    assert jax.tree.structure(got) == jax.tree.structure(wanted)
    for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        assert g.shape == w.shape and g.dtype == w.dtype, f"{g.dtype}{g.shape} against {w.dtype}{w.shape}"
        g, w = np.asarray(g, np.float64), np.asarray(w, np.float64)
        largest = np.max(np.abs(w), initial=0.0, where=np.isfinite(w))
        np.testing.assert_allclose(g, w, rtol=tolerance, atol=tolerance * max(largest, 1e-3))


def assert_confident(
    entropy: Callable[..., Any], classes: int, lead: float, cap: float | None, label: int, rounding: float
) -> None:
    """A row whose class 1 leads: the entropy, its gradient, and the label's loss against NumPy's own doubles.

    `entropy` takes the row, and returns the entropy and the loss.
    """
    row = -np.random.default_rng(0).random(classes) * 3
    row[1] = row.max() + lead
    logits = jnp.asarray(row, jnp.float32)
    z = np.asarray(logits, np.float64)
    l, slope = (z, 1.0) if cap is None else (cap * np.tanh(z / cap), 1 - np.tanh(z / cap) ** 2)
    gap, e = l[1] - l, np.exp(l - l[1])
    others = np.delete(e, 1).sum()
    mean = (e * gap).sum() / (1 + others)
    (value, loss), gradient = jax.jit(jax.value_and_grad(entropy, has_aux=True))(logits)
    np.testing.assert_allclose(value, np.log1p(others) + mean, rtol=rounding)
    np.testing.assert_allclose(gradient, slope * e / (1 + others) * (gap - mean), rtol=max(rounding, 3e-5))
    np.testing.assert_allclose(loss, np.log1p(others) + gap[label], rtol=rounding)
