"""Programs for exact comparisons in float64, compiled quickly: their time is the compiler's, not their own."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax

# The optimizer is most of the compiler's time, and nothing of the point of such a comparison.
_PLAIN = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
# Fused loops by way of MLIR take twice as long to compile. Newer versions of XLA know no other way.
_SIMPLE_LOOPS = {"xla_cpu_use_fusion_emitters": False}


@functools.cache
def compiler_options() -> dict[str, Any]:
    """What XLA is told, as far as this version knows the options; it says so only when it compiles."""
    every = _PLAIN | _SIMPLE_LOOPS
    try:
        jax.jit(lambda: 0, compiler_options=every).lower().compile()
    except Exception:
        return _PLAIN
    return every


def quick_jit(static_argnums: Sequence[int]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """`jax.jit` with these options, which are asked for when the program is first called."""

    def decorate(fun: Callable[..., Any]) -> Callable[..., Any]:
        @functools.cache
        def program() -> Callable[..., Any]:
            return jax.jit(fun, static_argnums=static_argnums, compiler_options=compiler_options())

        @functools.wraps(fun)
        def call(*args: Any) -> Any:
            return program()(*args)

        return call

    return decorate
