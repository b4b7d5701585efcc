"""How the passes over windows are run where XLA runs its own operations on windows well: on a GPU or TPU."""

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxnorm._cotangents import cast

Elementwise = Callable[[jax.Array], jax.Array]
Pairs = tuple[tuple[int, int], ...]


@dataclasses.dataclass(frozen=True)
class Windows:
    """Windows along some axes of x, run as XLA runs them; every tuple has one entry for each of these axes.

    The equations are those of `jaxnorm._rules.pooling`, and `to_winners` and `to_members` compute in g's dtype.
    """

    axes: tuple[int, ...]  # of x, ascending
    input_size: tuple[int, ...]  # S
    window: tuple[int, ...]  # K
    strides: tuple[int, ...]  # s
    padding: Pairs  # (l, h)
    ndim: int  # of x
    count_padding: bool = True  # whether n(t) counts what lies beyond x

    @property
    def output_size(self) -> tuple[int, ...]:
        """T."""
        rows = zip(self.input_size, self.padding, self.window, self.strides, strict=True)
        spans = [(size + low + high - k, s) for size, (low, high), k, s in rows]
        return tuple(span // s + 1 if not isinstance(span, int) or span >= 0 else 0 for span, s in spans)

    def maximum(self, x: jax.Array) -> jax.Array:
        """(1)."""
        return lax.reduce_window(x, x.dtype.type(-np.inf), lax.max, *self._of_all_axes(self.strides))

    def to_winners(self, x: jax.Array, g: jax.Array) -> jax.Array:
        """(3), by the derivative that JAX knows of (1)."""
        _, pullback = jax.vjp(self.maximum, _totally_ordered(cast(x, g.dtype)))
        return pullback(g)[0]

    def total(self, of: Elementwise, x: jax.Array, dtype: Any) -> jax.Array:
        """Of the sum of (2), which is accumulated in this dtype."""
        x = cast(x, dtype)
        return of(lax.reduce_window(x, np.dtype(dtype).type(0), lax.add, *self._of_all_axes(self.strides)))

    def to_members(self, of: Elementwise, g: jax.Array) -> jax.Array:
        """The sum of (4): that over windows of K entries of g, dilated by s."""
        g = of(g)
        ends = [(0, 0, 0)] * self.ndim
        for axis, size, k, s, (low, _), count in self._rows():
            reach = 0 if count == 0 else (count - 1) * s + 1
            ends[axis] = (k - 1 - low, size + low - reach, s - 1)
        g, none = lax.pad(g, jnp.zeros((), g.dtype), ends), ((0, 0),) * len(self.axes)
        once = dataclasses.replace(self, padding=none)
        return lax.reduce_window(g, g.dtype.type(0), lax.add, *once._of_all_axes((1,) * len(self.axes)))

    def count(self, dtype: Any) -> Any:
        """n(t): at least 1, and of size 1 along the other axes, if it differs between windows."""
        if self.count_padding:
            return math.prod(self.window)
        found = jnp.ones((1,) * self.ndim, dtype)
        for axis, size, k, s, (low, _), count in self._rows():
            start = s * lax.iota(jnp.int32, count) - low
            inside = jnp.minimum(start + k, size) - jnp.maximum(start, 0)
            view = [count if other == axis else 1 for other in range(self.ndim)]
            found = found * lax.broadcast_in_dim(cast(jnp.maximum(inside, 1), dtype), view, (axis,))
        return found

    def _rows(self) -> Iterator[tuple[int, int, int, int, tuple[int, int], int]]:
        """Axis, S, K, s, (l, h) and T of each axis."""
        return zip(self.axes, self.input_size, self.window, self.strides, self.padding, self.output_size, strict=True)

    def _of_all_axes(self, strides: tuple[int, ...]) -> tuple[Any, Any, Any]:
        """Windows, strides and padding as `lax.reduce_window` takes them."""
        window, steps, ends = [1] * self.ndim, [1] * self.ndim, [(0, 0)] * self.ndim
        for axis, k, s, pair in zip(self.axes, self.window, strides, self.padding, strict=True):
            window[axis], steps[axis], ends[axis] = k, s, pair
        return tuple(window), tuple(steps), tuple(ends)


def _totally_ordered(x: jax.Array) -> jax.Array:
    """x in float32 or float64 with the order of (1): a NaN is the largest, and padding, which is -inf, below -inf.

    Every number moves to the next one towards 0, which leaves infinity to NaN, and -inf to the padding. Only the two
    numbers next to 0 meet another one, 0 itself; no 16-bit number is so small.
    """
    return jnp.where(x != x, jnp.array(jnp.inf, x.dtype), lax.nextafter(x, jnp.zeros_like(x)))
