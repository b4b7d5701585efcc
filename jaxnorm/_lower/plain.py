"""How the groups of one normalization lie in x, and the sums and passes over them where a compiler needs no help.

`_rules.normalization.Groups` says what each method of the seam means.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxnorm._arguments import AxisName
from jaxnorm._cotangents import cast, reshape, sum_to_shape

Term = jax.Array | float | bool  # an array, or the neutral element in place of an absent one
Terms = tuple[Term, ...]
Elementwise = Callable[..., Any]


SAMPLE = 32  # one entry in so many is enough for a pivot


def itself(total: jax.Array) -> jax.Array:
    """The sum as it is."""
    return total


@dataclasses.dataclass(frozen=True)
class Layout:
    """The static side: how the arguments are viewed, at one rank, and which axes of the view are reduced."""

    view: tuple[int, ...]  # x is reshaped to this inside the rule, so that x itself is what is kept
    axes: tuple[int, ...]
    scale_view: tuple[int, ...] = ()  # () where there is no scale, and so on
    bias_view: tuple[int, ...] = ()
    where_view: tuple[int, ...] = ()
    axis_name: AxisName = None

    @property
    def reduced(self) -> tuple[int, ...]:
        """The shape of a sum over the reduction axes."""
        return tuple(1 if axis in self.axes else size for axis, size in enumerate(self.view))

    @property
    def group_size(self) -> int:
        """The number of elements in a group on this device, before any mask."""
        return math.prod(self.view[axis] for axis in self.axes)

    @property
    def shared_axes(self) -> tuple[int, ...]:
        """The reduction axes along which neither parameter varies."""
        views = [view for view in (self.scale_view, self.bias_view) if view]
        return tuple(axis for axis in self.axes if all(view[axis] == 1 for view in views))

    @property
    def with_one_row_axis(self) -> "Layout | None":
        """The same layout with the reduction axes as one, if they are the last ones and a parameter allows it."""
        first = len(self.view) - len(self.axes)
        views = [self.view, self.scale_view, self.bias_view]
        rows = [math.prod(view[first:]) for view in views]
        if not self.axes or self.axes[0] != first or any(row not in (1, rows[0]) for row in rows):
            return None
        merged = [(*view[:first], row) if view else () for view, row in zip(views, rows, strict=True)]
        return dataclasses.replace(self, axes=(first,), view=merged[0], scale_view=merged[1], bias_view=merged[2])

    @property
    def merged(self) -> "Layout":
        """The same layout with neighbouring axes merged wherever statistics, parameters and mask treat them alike.

        The first axis stays alone, since a batch may be sharded, even on simulated CPU devices.
        """
        others = [view for view in (self.scale_view, self.bias_view, self.where_view) if view]

        def role(axis: int) -> tuple[bool, ...]:
            return axis == 0, axis in self.axes, *(other[axis] == self.view[axis] for other in others)

        longer = [axis for axis, size in enumerate(self.view) if size != 1]
        parts = [list(part) for _, part in itertools.groupby(longer, role)]

        def view(sizes: tuple[int, ...]) -> tuple[int, ...]:
            return tuple(math.prod(sizes[axis] for axis in part) for part in parts) if sizes else ()

        return Layout(
            view(self.view),
            tuple(i for i, part in enumerate(parts) if part[0] in self.axes),
            view(self.scale_view),
            view(self.bias_view),
            view(self.where_view),
            self.axis_name,
        )


class Plain:
    """The groups where the compiler needs no help.

    Sums are taken over the shared axes first, and passes run in columns: their last axis is the channels' where the
    view's is part of them, which a TPU would pad to 128.
    """

    def __init__(self, layout: Layout, x_dtype: Any, dtype: Any, backward: bool = False):
        self.layout, self.x_dtype, self.dtype, self.backward = layout, x_dtype, dtype, backward
        self.synced = layout.axis_name is not None
        self.x: jax.Array | None = None  # the arguments as they came
        self.parameters: tuple[Term, Term] = (1.0, 0.0)
        self.early = False
        self.lone = layout.group_size == 1 and not self.synced

    # --- arrays on their way into the rule and out of it ---

    def views(self, x: Any, scale: Any, bias: Any, where: Any) -> tuple[Any, Any, Any, Any]:
        """The arguments at the rank of the view; neutral elements in place of those that are absent."""
        layout = self.layout
        scale = 1.0 if scale is None else reshape(scale, layout.scale_view)
        bias = 0.0 if bias is None else reshape(bias, layout.bias_view)
        self.x, self.parameters = x, (scale, bias)
        return reshape(x, layout.view), scale, bias, True if where is None else reshape(where, layout.where_view)

    def per_group(self, statistic: jax.Array | None, absent: Any = None) -> Any:
        """A statistic that was kept in one axis, with one number for each group or for all, at the view's rank."""
        if statistic is None:
            return absent
        shape = self.layout.reduced
        shape = shape if statistic.size == math.prod(shape) else (1,) * len(shape)
        return reshape(statistic, shape)

    def at_once(self, of: Elementwise, epsilon: float, x: jax.Array, scale: Any, bias: Any) -> jax.Array | None:
        """`output` as one pass over x, if the compiler makes it one; None if it does not."""
        del of, epsilon, x, scale, bias
        return None

    def output(self, of: Elementwise, x: jax.Array, scale: Term, bias: Term) -> jax.Array:
        """`of(mean_of, size, x, scale, bias)` in x's dtype, for a rule that reads and writes nothing but these."""
        layout = self.layout

        def mean_of(values: jax.Array) -> jax.Array:
            return jnp.sum(values, axis=layout.axes, keepdims=True) / layout.group_size

        return cast(of(mean_of, layout.group_size, *map(self._wide, (x, scale, bias))), self.x_dtype)

    # --- the seam ---

    def each(self, of: Elementwise, *terms: Term) -> jax.Array:
        return reshape(self._pass(of, *self._ready(terms)), self.layout.view)

    def total(self, of: Elementwise, *terms: Term) -> jax.Array:
        return jnp.sum(self._over_shared(of, *terms), axis=self._rest, keepdims=True)

    def inner(self, of: Elementwise, *terms: Term) -> Any:
        return self._over_shared(of, *terms)

    def outer(self, of: Elementwise, *terms: Term) -> jax.Array:
        return jnp.sum(of(*map(self._wide, terms)), axis=self._rest, keepdims=True)

    def like(self, parameter: Term, of: Elementwise, *terms: Term) -> jax.Array | None:
        if not isinstance(parameter, jax.Array):
            return None
        return sum_to_shape(of(*map(self._wide, terms)), parameter.shape)

    def count(self, where: Term) -> jax.Array:
        """A scalar unless a mask makes it data."""
        layout = self.layout
        if not isinstance(where, jax.Array):
            return jnp.asarray(layout.group_size, self.dtype)
        spread = math.prod(layout.view[axis] for axis in layout.axes if where.shape[axis] == 1)
        chosen = jnp.sum(where, axis=layout.axes, keepdims=True, dtype=self.dtype) * spread
        return jnp.broadcast_to(chosen, layout.reduced)

    def near_mean(self, x: jax.Array, where: Term) -> jax.Array:
        """The mean of part of a group, in x's dtype; of all that a mask selects, since a mask may select any part.

        By Cauchy and Schwarz the mean of a 1 / s of all is within sqrt(s) standard deviations of the mean of all. The
        part is cut before it is cast: XLA on a TPU would write all of x in float32 to read a slice of that.
        """
        x = lax.stop_gradient(x)
        if x.size == 0:
            return jnp.zeros(self.layout.reduced, self.x_dtype)
        if isinstance(where, jax.Array):
            return self._near_mean_of_selected(x, where)
        axes = [axis for axis in self._column_axes or self.layout.axes if axis]
        part = sample(self._columns(x), axes)
        total = jnp.sum(self._from_columns(self._wide(part)), axis=self._rest, keepdims=True)
        return cast(total * (total.size / part.size), self.x_dtype)

    def over_devices(self, *values: jax.Array) -> list[jax.Array]:
        """One collective for all."""
        return list(lax.psum(self._stacked(values), self.layout.axis_name)) if self.synced else list(values)

    def of_devices(self, *values: jax.Array) -> jax.Array:
        """An all-gather, written as a sum in which each device fills its own slot.

        The result is then known to be the same on all devices, and vmap takes it too.
        """
        devices, name = lax.psum(1, self.layout.axis_name), self.layout.axis_name
        own = lax.iota(jnp.int32, devices) == cast(lax.axis_index(name), jnp.int32)
        own = lax.reshape(own, (1, devices) + (1,) * len(self.layout.view))
        return lax.psum(jnp.where(own, jnp.expand_dims(self._stacked(values), 1), 0), name)

    # --- columns: the view for sums over the shared axes, and for passes ---

    @functools.cached_property
    def _parts(self) -> list[list[int]]:
        """The axes that are merged: neighbours among those that are not shared, but the first; a mask keeps all apart.

        So for group norm (N, H W, groups, channels of a group) becomes (N, H W, C).
        """
        axes, shared = range(len(self.layout.view)), self.layout.shared_axes
        if not shared or self.layout.where_view:
            return [[axis] for axis in axes]
        return [list(part) for _, part in itertools.groupby(axes, lambda axis: axis if axis in (0, *shared) else -1)]

    def _columns(self, term: Term) -> Any:
        """An array of the view, or of size 1 along some of its axes, in columns."""
        if not isinstance(term, jax.Array):
            return term
        shape = list(term.shape)
        for part in self._parts:
            if len(part) > 1 and any(shape[axis] != 1 for axis in part):
                shape[part[0] : part[-1] + 1] = self.layout.view[part[0] : part[-1] + 1]
        sizes = [math.prod(shape[axis] for axis in part) for part in self._parts]
        return reshape(jnp.broadcast_to(term, shape), tuple(sizes))

    @property
    def _column_axes(self) -> tuple[int, ...]:
        """The shared axes of the columns."""
        return tuple(i for i, part in enumerate(self._parts) if part[0] in self.layout.shared_axes)

    def _ready(self, terms: Terms) -> list[Any]:
        """The terms as a pass takes them."""
        return [self._columns(term) for term in terms]

    def _pass(self, of: Elementwise, *columns: Term) -> jax.Array:
        return cast(of(*map(self._wide, columns)), self.x_dtype)

    def _over_shared(self, of: Elementwise, *terms: Term) -> jax.Array:
        """The sums over the shared axes, in the view; the terms themselves if there are no shared axes."""
        return self._from_columns(of(*map(self._wide, self._ready(terms))))

    def _from_columns(self, values: jax.Array) -> jax.Array:
        """Columns summed over the shared axes, in the view."""
        shared = self.layout.shared_axes
        if not shared:
            return values
        total = jnp.sum(values, axis=self._column_axes, keepdims=True)
        return reshape(total, tuple(1 if axis in shared else size for axis, size in enumerate(self.layout.view)))

    # --- parts ---

    @property
    def _rest(self) -> tuple[int, ...]:
        """The reduction axes along which a parameter varies."""
        return tuple(axis for axis in self.layout.axes if axis not in self.layout.shared_axes)

    def _wide(self, term: Term) -> Any:
        """A number in the compute dtype; a mask as it is."""
        return cast(term, self.dtype) if isinstance(term, jax.Array) and term.dtype != jnp.bool_ else term

    def _stacked(self, values: tuple[jax.Array, ...]) -> jax.Array:
        shape = jnp.broadcast_shapes(*(value.shape for value in values))
        return jnp.stack([jnp.broadcast_to(value, shape) for value in values])

    def _near_mean_of_selected(self, x: jax.Array, where: jax.Array) -> jax.Array:
        """The mean of what a mask selects, found as its distance from the largest element; 0 if nothing is selected."""
        x, axes = self._wide(x), self.layout.axes
        largest = jnp.max(jnp.where(where, x, -jnp.inf), axis=axes, keepdims=True)
        first = jnp.where(largest == -jnp.inf, 0, largest)
        n = jnp.maximum(self.count(where), 1)
        return cast(first + jnp.sum(jnp.where(where, x - first, 0), axis=axes, keepdims=True) / n, self.x_dtype)


def sample(values: jax.Array, axes: list[int]) -> jax.Array:
    """The first of about SAMPLE parts along the given axes, the longest first.

    The caller leaves out the first axis: part of a sharded batch would have to be sent to the other devices.
    """
    wanted: float = SAMPLE
    for axis in sorted(axes, key=lambda axis: -values.shape[axis]):
        size = values.shape[axis]
        kept = max(1, int(size / wanted))
        values, wanted = lax.slice_in_dim(values, 0, kept, axis=axis), max(1.0, wanted * kept / size)
    return values
