"""What a function is, read from its trace: which custom rule it has, and which precisions it rounds to."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from jaxnorm.check._problem import Leaves, is_float, shapes


def equations(jaxpr: Any) -> Iterator[Any]:
    """Every equation of a trace, of inner ones too."""
    for eqn in jaxpr.eqns:
        yield eqn
        for inner in _inner(eqn):
            yield from equations(inner)


def _inner(eqn: Any) -> list[Any]:
    """The traces that an equation holds."""
    values = [v for value in eqn.params.values() for v in (value if isinstance(value, list | tuple) else (value,))]
    held = [v for v in values if isinstance(v, core.ClosedJaxpr | core.Jaxpr) or hasattr(v, "eqns")]
    return [getattr(v, "jaxpr", v) for v in held]


def rule_of(fun: Callable[..., Any], *args: Any) -> str:
    """Which rule of its own a function has: "custom VJP", "custom JVP", or "" if its gradient is JAX's."""
    names = {_kind(eqn) for eqn in equations(jax.make_jaxpr(fun)(*args).jaxpr)}
    return next((kind for kind in ("custom VJP", "custom JVP") if kind in names), "")


def _kind(eqn: Any) -> str:
    name = eqn.primitive.name
    if name.startswith("custom_vjp") or "CustomVJP" in type(eqn.params.get("_prim")).__name__:
        return "custom VJP"
    return "custom JVP" if name.startswith("custom_jvp") else ""


def rounds_to(run: Callable[..., Any], *args: Any) -> list[np.dtype]:
    """The precisions below its floating-point arguments' own that a function rounds arrays to, the widest first.

    A rule that computes in float32 whatever it is given, called in float64, rounds to float32.
    """
    leaves: Leaves = shapes([a for a in jax.tree.leaves(args) if is_float(a)])
    widest = max((jnp.finfo(a.dtype).nmant for a in leaves), default=0)
    found: set[np.dtype] = set()
    for eqn in equations(jax.make_jaxpr(run)(*args).jaxpr):
        if _inner(eqn):  # its own equations tell which of its outputs come of which arguments
            continue
        if any(is_float(v.aval) and jnp.finfo(v.aval.dtype).nmant == widest for v in eqn.invars if _is_array(v)):
            found |= {v.aval.dtype for v in eqn.outvars if _is_array(v) and is_float(v.aval)}
    below = {d for d in found if jnp.finfo(d).nmant < widest}
    return sorted(below, key=lambda d: -jnp.finfo(d).nmant)


def _is_array(v: Any) -> bool:
    return not isinstance(v, core.Literal) and hasattr(v.aval, "dtype")
