"""Rows by their positions, and what is found entry by entry of a window, as XLA's CPU backend runs it fast."""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

T = TypeVar("T")
Index = tuple[Any, ...]  # one int for each axis of the windows, traced in a loop

UNROLLED = 32  # so many entries are unrolled, and more are a loop
CHUNK = 8  # entries of one turn of a loop


def rows_at(x: jax.Array, axis: int, positions: jax.Array) -> jax.Array:
    """The rows of x at these positions along an axis."""
    others = tuple(other for other in range(x.ndim) if other != axis)
    numbers = lax.GatherDimensionNumbers(others, collapsed_slice_dims=(axis,), start_index_map=(axis,))
    sizes = (*x.shape[:axis], 1, *x.shape[axis + 1 :])
    return lax.gather(x, positions[:, None], numbers, sizes, mode=lax.GatherScatterMode.PROMISE_IN_BOUNDS)


def fold(counts: tuple[int, ...], first: Callable[[Index], T], later: Callable[[T, Index], T]) -> T:
    """`first` of the first index and `later` of what was found and of each other one, in row-major order."""
    indices = list(np.ndindex(*counts))
    found = first(indices[0])
    if len(indices) <= UNROLLED:
        for index in indices[1:]:
            found = later(found, index)
        return found

    (count,) = counts  # several axes have few entries together

    def turn(found: T, start: jax.Array) -> tuple[T, None]:
        for i in range(CHUNK):
            found = later(found, (start + i,))
        return found, None

    turns = (count - 1) // CHUNK
    found, _ = lax.scan(turn, found, 1 + CHUNK * jnp.arange(turns, dtype=jnp.int32))
    for k in range(1 + CHUNK * turns, count):
        found = later(found, (k,))
    return found
