"""What a function keeps for its backward pass, and what XLA makes of the two passes."""

from collections.abc import Callable
from typing import Any

import jax
from jax.extend import core


def saved_bytes(fun: Callable[..., Any], *args: Any) -> int:
    """Bytes that wait between forward and backward: the residuals of `jax.vjp(fun, *args)` that `fun` itself made.

    The forward pass is traced, not run. The pullback of `jax.vjp` is a pytree whose leaves are the residuals, so each
    residual is a variable of the trace. A variable that is an argument, or an array that `fun` closes over, exists
    anyway and counts nothing; every other one is counted once, however often the backward pass uses it. The output
    counts if the backward pass needs it (a ReLU that keeps its output), since the caller may drop it. Under `jax.jit`
    JAX forwards arguments to the backward pass instead of copying them, and so does this. It is what JAX holds on to
    between the passes when they are separate programs; one jit over both leaves XLA free to keep less.

    Args:
      fun: any function that `jax.vjp` takes: pytrees in and out, jitted or not, with or without a custom rule.
      *args: its arguments, or a `jax.ShapeDtypeStruct` for each, since nothing runs.

    Returns:
      The number of bytes, 0 if the inputs suffice.

    Raises:
      TypeError: an argument is no array, or `fun` cannot be differentiated in reverse mode.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import jaxnorm as jn
      >>> from jaxnorm.check import saved_bytes
      >>> x = jnp.ones((8, 128), jnp.float32)
      >>> saved_bytes(jnp.sin, x), saved_bytes(jax.jit(lambda x: x * x), x)  # cos(x); x itself
      (4096, 0)
      >>> saved_bytes(jax.nn.relu, x), saved_bytes(jn.relu, x)
      (5120, 4096)

    References:
      https://docs.jax.dev/en/latest/notebooks/autodiff_remat.html (residuals of the two passes).
    """

    def residuals(*args: Any) -> list[Any]:
        return jax.tree.leaves(jax.vjp(fun, *args)[1])

    jaxpr = jax.make_jaxpr(residuals)(*args).jaxpr
    outside = {*jaxpr.invars, *jaxpr.constvars}
    made: set[Any] = {v for v in jaxpr.outvars if isinstance(v, core.Var) and v not in outside}  # a literal is a number
    return sum(v.aval.size * v.aval.dtype.itemsize for v in made)


def compiled_cost(compiled: Any) -> dict[str, float | None]:
    """Temporary memory and FLOPs of a compiled program, as far as this backend tells."""
    memory, flops = compiled.memory_analysis(), (compiled.cost_analysis() or {}).get("flops")
    return {
        "temporary bytes": None if memory is None else int(memory.temp_size_in_bytes),
        "FLOPs": None if flops is None else float(flops),
    }
