"""Which platform gets which windows: a GPU or TPU XLA's own operations on windows, a CPU passes over rows."""

import contextlib
import functools
from collections.abc import Callable, Iterator

import jax
from jax import lax

from jaxnorm._lower.pooling.cpu import CpuWindows
from jaxnorm._lower.pooling.windows import Windows

_forced: list[type[Windows]] = []


def by_platform(function: Callable[..., jax.Array], windows: Windows, *arrays: jax.Array) -> jax.Array:
    """`function(windows, *arrays)`, where the windows are run as the platform wants it."""
    kind = _forced[-1] if _forced else None
    if 0 in (*windows.output_size, *(size for array in arrays for size in array.shape)):
        kind = Windows  # whose operations take empty arrays
    return _chosen(function, windows, kind, *arrays)


@contextlib.contextmanager
def forced(kind: type[Windows]) -> Iterator[None]:
    """For tests: windows of this kind on every platform."""
    _forced.append(kind)
    try:
        yield
    finally:
        _forced.pop()


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _chosen(
    function: Callable[..., jax.Array], windows: Windows, kind: type[Windows] | None, *arrays: jax.Array
) -> jax.Array:
    if kind is not None:
        return function(kind(**vars(windows)), *arrays)
    on_cpu, default = (functools.partial(function, kind(**vars(windows))) for kind in (CpuWindows, Windows))
    return lax.platform_dependent(*arrays, cpu=on_cpu, default=default)
