"""Which platform gets which windows: a GPU or TPU XLA's own operations on windows, a CPU passes over rows."""

import functools
from collections.abc import Callable

import jax

from jaxnorm._lower.platforms import by_platform, forced_platform
from jaxnorm._lower.pooling.cpu import CpuWindows
from jaxnorm._lower.pooling.windows import Windows


def with_windows(function: Callable[..., jax.Array], windows: Windows, *arrays: jax.Array) -> jax.Array:
    """`function(windows, *arrays)`, where the windows are run as the platform wants it."""
    if 0 in (*windows.output_size, *(size for array in arrays for size in array.shape)):
        return function(windows, *arrays)  # whose operations take empty arrays
    return _chosen(function, windows, forced_platform(), *arrays)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _chosen(function: Callable[..., jax.Array], windows: Windows, forced: str | None, *arrays: jax.Array) -> jax.Array:
    """The choice; what is forced is an argument since JAX keeps what it has traced for these arguments."""
    del forced
    on_cpu, default = (functools.partial(function, kind(**vars(windows))) for kind in (CpuWindows, Windows))
    return by_platform(*arrays, cpu=on_cpu, default=default)
