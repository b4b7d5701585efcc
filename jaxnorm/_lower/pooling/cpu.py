"""Windows as XLA's CPU backend runs them fast: elementwise arithmetic over rows, not loops over windows.

The backend runs a `reduce_window` as a loop over the window for each output, a `select_and_scatter` as a search and a
scatter, and a padding as a test in front of each entry. A gather of whole rows along the axes of the windows, by
positions that are arithmetic on an iota, it turns into plain loads of neighbouring numbers, which fill a vector. So

- an entry of a window is a row of x, at a position that is moved into x: a window that reaches beyond x meets its
  outermost entry again, which changes no maximum and no first winner, and which a sum leaves out;
- the winner of each window is a number, found in one pass over x; then each entry of dx looks at the few windows that
  it lies in, and adds the cotangents of those that name it.

The maximum and the sum over a box are those over its first axes of those over its last axes, and the first winner of a
box, in row-major order, is that of the first row which attains the maximum. Large boxes are taken so, pass by pass.

A long window along one axis is two passes too: over short windows at every position, then over a few of these that
together cover the long one. A window of 64 then meets 8 + 8 entries. The short windows of a maximum may overlap, and
its first winner is that of the first of them which attains it. Those of a sum must not, so that a window whose size
has no two factors is one pass. Running sums would meet fewer entries, and lose digits.
"""

import dataclasses
import functools
import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxnorm._cotangents import cast, varying_like
from jaxnorm._lower.calls import outlined
from jaxnorm._lower.pooling.entries import Index, fold, rows_at
from jaxnorm._lower.pooling.windows import Elementwise, Windows
from jaxnorm._lower.sizes import at_most

TOGETHER = 9  # axes are taken in one pass if their windows have at most so many entries
SHORT = 4  # XLA's own loop over a window is taken for at most so many entries along an axis
WORTH = 16  # a second pass is worth as much as so many entries
LANES = 8  # so many examples of one channel are worth a transposition: they fill a vector


@dataclasses.dataclass(frozen=True)
class CpuWindows(Windows):
    """The windows as XLA's CPU backend wants them.

    Those of the second of two passes have entries that are `dilation` apart, of which the first `empty` are the maxima
    of short windows with no entry of x.
    """

    dilation: int = 1  # other than 1 along one axis alone, without padding
    empty: int = 0

    @property
    def output_size(self) -> tuple[int, ...]:
        """T."""
        if self.dilation == 1:
            return super().output_size
        reach = (self.window[0] - 1) * self.dilation + 1
        return ((self.input_size[0] - reach) // self.strides[0] + 1,)

    def maximum(self, x: jax.Array) -> jax.Array:
        """(1)."""
        view = self._view(x)
        x = view.rows(x)
        for one in view.windows._passes():
            x = outlined(one._maximum, x)
        return view.back(x)

    def to_winners(self, x: jax.Array, g: jax.Array) -> jax.Array:
        """(3)."""
        view = self._view(x)
        passes, reached, g = list(view.windows._passes()), [view.rows(x)], view.rows(g)
        for one in passes[:-1]:
            reached.append(outlined(one._maximum, reached[-1]))
        for one, x in zip(reversed(passes), reversed(reached), strict=True):
            g = outlined(one._to_winners, outlined(one._winners, x), g)
        return view.back(g)

    def total(self, of: Elementwise, x: jax.Array, dtype: Any) -> jax.Array:
        """Of the sum of (2), which is accumulated in this dtype."""
        if x.dtype == dtype and self._are_short(x):
            return super().total(of, x, dtype)
        view = self._view(x)
        x = view.rows(x)
        for one in view.windows._passes(exact=True):
            x = outlined(functools.partial(one._total, dtype=dtype), x)
        return of(view.back(x))

    def to_members(self, of: Elementwise, g: jax.Array) -> jax.Array:
        """The sum of (4)."""
        view = self._view(g)
        g = view.rows(outlined(of, g))
        for one in reversed(list(view.windows._passes(self._overlaps, exact=True))):
            g = outlined(one._to_members, g)
        return view.back(g)

    def _are_short(self, x: jax.Array) -> bool:
        """Whether XLA's own loop over a window of x is as fast as a pass or faster.

        So it is for few entries along one axis, and along two if no windows overlap and the channels fill vectors. But
        a conversion of x it would first write to memory.
        """
        if max(self.window) > SHORT or len(self.axes) > 2:
            return False
        if len(self.axes) == 1:
            return True
        apart = all(k <= s for k, s in zip(self.window, self.strides, strict=True))
        return apart and x.ndim - 1 not in self.axes and not at_most(x.shape[-1], 2 * LANES - 1, unknown=True)

    def _along(self, axes: slice) -> "CpuWindows":
        """The windows along some of their axes alone."""
        names = ("axes", "input_size", "window", "strides", "padding")
        chosen: dict[str, Any] = {name: getattr(self, name)[axes] for name in names}
        return dataclasses.replace(self, **chosen)

    def _passes(self, counts: tuple[int, ...] | None = None, exact: bool = False) -> Iterator["CpuWindows"]:
        """These windows as windows along fewer axes, one after the other: the last axes first.

        A pass along several axes meets at each position as many entries as the product of their counts (the windows'
        sizes, if not given). With `exact` each entry of x is met once.
        """
        counts, end = counts or self.window, len(self.axes)
        while end:
            start = end - 1
            while start and math.prod(counts[start - 1 : end]) <= TOGETHER:
                start -= 1
            one = self._along(slice(start, end))
            yield from one._stages(exact) if end - start == 1 else [one]
            end = start

    def _stages(self, exact: bool) -> Iterator["CpuWindows"]:
        """Windows along one axis as they are, or as two passes if these meet fewer entries."""
        (size,), (k,), (s,), ((low, _),), (count,) = (
            self.input_size, self.window, self.strides, self.padding, self.output_size
        )  # fmt: skip
        split = [(k - (m - 1) * (k // m), m, k // m) for m in range(2, k) if not (exact and k % m)]
        short, m, apart = min(split, key=lambda found: s * found[0] + found[1], default=(k, 1, 1))
        if not isinstance(count, int) or s * short + m + WORTH > k:
            yield self
            return
        length = s * (count - 1) + (m - 1) * apart + 1  # so many short windows, one at each position
        ends = ((low, length - 1 + short - low - size),)
        yield dataclasses.replace(self, window=(short,), strides=(1,), padding=ends)
        yield dataclasses.replace(
            self, input_size=(length,), window=(m,), padding=((0, 0),), dilation=apart, empty=max(0, low - short + 1)
        )

    # --- one pass over the windows --------------------------------------------------------------------------------

    def _maximum(self, x: jax.Array) -> jax.Array:
        y = fold(self.window, lambda k: self._entry(x, k), lambda y, k: lax.max(y, self._entry(x, k)))
        for axis, size, k, s, (low, high), count in self._rows():
            if low >= k or high >= k:  # else every window has an entry of x
                start = s * lax.iota(jnp.int32, count) - low
                is_empty = self._along_axis(axis, (start + k <= 0) | (start >= size), y.shape)
                y = jnp.where(is_empty, jnp.array(-jnp.inf, y.dtype), y)
        return y

    def _winners(self, x: jax.Array) -> jax.Array:
        """For each window, which of its entries is w(t), counted in row-major order."""

        def first(k: Index) -> tuple[jax.Array, jax.Array]:
            entry = self._entry(x, k)
            return entry, varying_like(self._number_of_entry(k, entry.shape), entry)

        def later(found: tuple[jax.Array, jax.Array], k: Index) -> tuple[jax.Array, jax.Array]:
            best, winner = found
            entry = self._entry(x, k)
            wins = (entry > best) | ((entry != entry) & (best == best)) | self._is_first(k, best.shape)
            return jnp.where(wins, entry, best), jnp.where(wins, self._number_of_entry(k, best.shape), winner)

        return fold(self.window, first, later)[1]

    def _is_first(self, k: Index, shape: tuple[int, ...]) -> jax.Array | bool:
        """Whether all entries of a window before this one are empty, and this is not, though both may be -inf."""
        if not self.empty:
            return False
        position = self._position(0, k[0])
        return self._along_axis(self.axes[0], (position >= self.empty) & (position < self.empty + self.dilation), shape)

    def _to_winners(self, winner: jax.Array, g: jax.Array) -> jax.Array:
        def term(d: Index) -> jax.Array:
            wins = self._of_windows(winner, d) == self._number_in_window(d, self._shape_of_x(g))
            return jnp.where(wins, self._of_windows(g, d), 0)

        return fold(self._overlaps, term, lambda dx, d: dx + term(d))

    def _total(self, x: jax.Array, dtype: Any) -> jax.Array:
        def term(k: Index) -> jax.Array:
            entry = cast(self._entry(x, k), dtype)
            for i, (axis, size, *_) in enumerate(self._rows()):
                if not self._is_inside(i, k[i]):
                    position = self._position(i, k[i])
                    inside = self._along_axis(axis, (position >= 0) & (position < size), entry.shape)
                    entry = jnp.where(inside, entry, 0)
            return entry

        return fold(self.window, term, lambda y, k: y + term(k))

    def _to_members(self, g: jax.Array) -> jax.Array:
        def term(d: Index) -> jax.Array:
            is_in = self._number_in_window(d, self._shape_of_x(g)) >= 0
            return jnp.where(is_in, self._of_windows(g, d), 0)

        return fold(self._overlaps, term, lambda dx, d: dx + term(d))

    # --- the entries k of every window --------------------------------------------------------------------------------

    def _entry(self, x: jax.Array, k: Index) -> jax.Array:
        """Entry k of every window, or the entry of x next to it."""
        for i, (axis, size, *_) in enumerate(self._rows()):
            x = rows_at(x, axis, jnp.clip(self._position(i, k[i]), 0, size - 1))
        return x

    def _position(self, i: int, k: Any) -> jax.Array:
        """Where entry k of every window lies along the i-th axis."""
        return self.strides[i] * lax.iota(jnp.int32, self.output_size[i]) + (self.dilation * k - self.padding[i][0])

    def _is_inside(self, i: int, k: Any) -> bool:
        """Whether it is known that entry k of every window lies in x along the i-th axis."""
        (low, high), (size, count) = self.padding[i], (self.input_size[i], self.output_size[i])
        if not (low or high):
            return True
        first = self.dilation * k - low
        known = all(isinstance(number, int) for number in (first, size, count))
        return known and first >= 0 and first + self.strides[i] * (count - 1) < size

    def _number_of_entry(self, k: Index, shape: tuple[int, ...]) -> jax.Array:
        """The number in its window, in row-major order, of the entry that `_entry` finds."""
        number = jnp.zeros(shape, jnp.int32)
        for i, (axis, size, window, *_) in enumerate(self._rows()):
            position = self._position(i, k[i])
            found = jnp.clip(position, 0, size - 1) - position + k[i]
            number = number * window + self._along_axis(axis, found, shape)
        return number

    # --- the windows of every entry -----------------------------------------------------------------------------------

    @property
    def _overlaps(self) -> tuple[int, ...]:
        """The largest number of windows that an entry lies in, along each axis."""
        if self.dilation > 1:
            return self.window  # each has a stride of its own in the order of the windows
        return tuple(-(-k // s) for k, s in zip(self.window, self.strides, strict=True))

    def _of_windows(self, g: jax.Array, d: Index) -> jax.Array:
        """What belongs to the window that is d before the last one which each entry of x lies in, or to one near it."""
        for i, (axis, *_, count) in enumerate(self._rows()):
            g = rows_at(g, axis, jnp.clip(self._window_of(i, d[i])[0], 0, count - 1))
        return g

    def _window_of(self, i: int, d: Any) -> tuple[jax.Array, jax.Array]:
        """That window's t along the i-th axis, and which of its entries each entry of x is; there may be none."""
        s = self.strides[i]
        position = lax.iota(jnp.int32, self.input_size[i]) + self.padding[i][0]
        if self.dilation > 1:
            start = position - self.dilation * d
            t = lax.div(start, jnp.int32(s))
            return t, jnp.where(start == s * t, d, self.window[i])
        last = position if s == 1 else lax.div(position, jnp.int32(s))
        return last - d, position - s * (last - d)

    def _number_in_window(self, d: Index, shape: tuple[int, ...]) -> jax.Array:
        """Which entry of that window each entry of x is, in row-major order; negative if there is no such window."""
        number, is_in = jnp.zeros(shape, jnp.int32), jnp.ones(shape, bool)
        for i, (axis, _, window, _, _, count) in enumerate(self._rows()):
            t, k = self._window_of(i, d[i])
            is_in &= self._along_axis(axis, (t >= 0) & (t < count) & (k < window), shape)
            number = number * window + self._along_axis(axis, k, shape)
        return jnp.where(is_in, number, -1)

    def _shape_of_x(self, g: jax.Array) -> tuple[int, ...]:
        sizes = dict(zip(self.axes, self.input_size, strict=True))
        return tuple(sizes.get(axis, size) for axis, size in enumerate(g.shape))

    # --- what these share ---------------------------------------------------------------------------------------------

    @staticmethod
    def _along_axis(axis: int, values: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        return lax.broadcast_in_dim(values, shape, (axis,))

    def _view(self, x: jax.Array) -> "View":
        """How the passes see x: with numbers that they treat alike side by side: channels, or examples of one."""
        others = [axis for axis in range(x.ndim) if axis not in self.axes]
        sizes = tuple(x.shape[axis] for axis in others)
        if others and at_most(sizes[-1], 1, unknown=False) and not at_most(math.prod(sizes), LANES - 1, unknown=False):
            return View((*self.axes, *others), sizes, self)
        return View((*others[:-1], *self.axes, *others[-1:]), (), self)


@dataclasses.dataclass(frozen=True)
class View:
    """An array with its axes in another order, and the last ones as one."""

    order: tuple[int, ...]
    merged: tuple[Any, ...]  # the sizes of the last axes, if they are one
    caller: CpuWindows

    @property
    def windows(self) -> CpuWindows:
        """The windows in this view."""
        axes = tuple(self.order.index(axis) for axis in self.caller.axes)
        return dataclasses.replace(self.caller, axes=axes, ndim=len(self.order) - max(len(self.merged) - 1, 0))

    def rows(self, x: jax.Array) -> jax.Array:
        """The caller's array in this view."""

        def viewed(x: jax.Array) -> jax.Array:
            x = lax.transpose(x, self.order)
            return lax.collapse(x, x.ndim - len(self.merged)) if self.merged else x

        return x if self._is_plain else outlined(viewed, x)

    def back(self, x: jax.Array) -> jax.Array:
        """An array in this view as the caller's."""

        def unviewed(x: jax.Array) -> jax.Array:
            x = lax.reshape(x, (*x.shape[:-1], *self.merged)) if self.merged else x
            return lax.transpose(x, np.argsort(self.order))

        return x if self._is_plain else outlined(unviewed, x)

    @property
    def _is_plain(self) -> bool:
        return self.order == tuple(range(len(self.order))) and len(self.merged) < 2
