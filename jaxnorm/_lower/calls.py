"""What XLA's CPU backend must be kept from: putting into one pass, sharing, or starting first, what it had better not.

On no other platform is anything here of use; each rule chooses it by `lax.platform_dependent`.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
from jax import lax
from jax.experimental.xla_metadata import set_xla_metadata


def outlined(function: Callable[..., Any], *arrays: Any) -> Any:
    """`function(*arrays)`, compiled on its own: a call that XLA does not inline.

    XLA's CPU backend computes a sum and the elementwise arithmetic that leads to it in one pass over their operands (a
    YNNPACK fusion), unless some of that has another use too, be it a conversion or the broadcast of a mean: then it
    writes that out in full first, which takes longer than to compute it again. Each sum apart has operands of its own.
    The other way round it computes a long expression again for every element of what uses it in another order (a
    padding, a transposition), or in a scan looks up the scan's slices element by element: outlined, neither happens.

    `lax.optimization_barrier` does not do, since the backend removes it before it looks. JAX itself marks calls like
    this for `compute_on`.
    """
    return set_xla_metadata(jax.jit(function)(*arrays), inlineable="false")


def outlined_on_cpu(function: Callable[..., Any], *arrays: Any) -> Any:
    """`function(*arrays)`, apart where it is compiled for a CPU."""
    return lax.platform_dependent(*arrays, cpu=functools.partial(outlined, function), default=function)


def later(array: jax.Array) -> jax.Array:
    """`array`, for what nothing else waits for: XLA's CPU backend begins with the array's other uses.

    It orders operations by a breadth-first search from the arguments. An empty call in between, which takes no time,
    puts a use behind all those that need the array itself.
    """
    return outlined(lambda array: array, array)
