"""Calls that XLA's CPU backend compiles on their own, and what they keep it from.

No other platform needs any of this; what uses it is chosen by `by_platform`.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
from jax.experimental.xla_metadata import set_xla_metadata

from jaxnorm._lower.platforms import by_platform


def outlined(function: Callable[..., Any], *arrays: Any) -> Any:
    """`function(*arrays)`, compiled in a call of its own, which XLA does not inline.

    XLA's CPU backend computes a sum and the elementwise arithmetic that leads to it in one pass over their operands (a
    YNNPACK fusion), unless some of that arithmetic has another use too, be it a conversion or the broadcast of a mean.
    Then the backend writes the shared arithmetic out in full first, which takes longer than to compute it twice. A sum
    that is outlined has operands of its own. The backend also computes a long expression again for every element of
    what uses it in another order (a padding, a transposition), and inside a scan it looks up the scan's slices element
    by element. An outlined expression is computed once.

    `lax.optimization_barrier` does not serve, since the backend removes it before it fuses. JAX itself marks the calls
    of `compute_on` in this way.
    """
    return set_xla_metadata(jax.jit(function)(*arrays), inlineable="false")


def outlined_on_cpu(function: Callable[..., Any], *arrays: Any) -> Any:
    """`function(*arrays)`, outlined where it is compiled for a CPU."""
    return by_platform(*arrays, cpu=functools.partial(outlined, function), default=function)


def later(array: jax.Array) -> jax.Array:
    """`array`, for a use that nothing else waits for: XLA's CPU backend begins with the array's other uses.

    The backend orders operations by a breadth-first search from the arguments. An empty call in between takes no time,
    and puts its user behind all those that use the array itself.
    """
    return outlined(lambda array: array, array)
