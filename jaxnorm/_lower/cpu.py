"""The groups of a normalization as XLA's CPU backend wants them."""

import functools
import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxnorm._cotangents import cast, reshape
from jaxnorm._lower.calls import outlined
from jaxnorm._lower.plain import Elementwise, Layout, Plain, Term

BLOCK = 1 << 15  # entries that lead to one sum: as many float32 fit into a core's cache
SAMPLE = 16  # one entry in so many is enough for a pivot, and more cost a cache nothing
SPAN = 1 << 18  # entries that a group may reach over in memory to be read once by one core


class Cpu(Plain):
    """The groups as XLA's CPU backend wants them.

    The backend reduces (N, H, W, C) over its first axes several times slower than (N, H W, C), so axes are merged. It
    computes a sum together with all that leads to it, group by group, unless a part has another use: then it writes
    that part out in full. So each sum is outlined, with operands of its own.
    """

    def __init__(self, layout: Layout, x_dtype: Any, dtype: Any, backward: bool = False):
        super().__init__(layout.merged, x_dtype, dtype, backward)
        self.unmerged = layout
        # Without shared axes the terms of the inner sums are materialized, so that the sums over them are plain ones.
        self.early = not self.layout.shared_axes
        self._materialized: dict[int, tuple[Term, jax.Array]] = {}  # by the id of a statistic: it, and its columns

    def at_once(self, of: Elementwise, epsilon: float, x: jax.Array, scale: Any, bias: Any) -> jax.Array | None:
        """For groups that lie together in memory and fit into a core's cache, in a YNNPACK fusion.

        Such a fusion has no selection (by a mask, of an epsilon of 0), no float64 and one result. Behind a reshape of
        (1, N, C) it would run on one core, but over two axes it takes many times as long as over them merged.
        """
        layout = self.layout
        together = 0 not in layout.axes and all(a + 1 == b for a, b in itertools.pairwise(layout.axes))
        span = math.prod(layout.view[min(layout.axes, default=0) :])
        if not together or not 0 < span < SPAN or self.dtype != jnp.float32 or layout.where_view:
            return None
        if epsilon <= float(jnp.finfo(self.dtype).tiny):
            return None
        groups = Plain(self.unmerged, self.x_dtype, self.dtype) if len(self.unmerged.axes) == 1 else self
        viewed = groups.views(x, scale, bias, where=None)[:3]
        return _outlined(functools.partial(groups.output, of), *viewed)

    # --- the seam ---

    def each(self, of: Elementwise, *terms: Term) -> jax.Array:
        """The forward pass is fused with its neighbours, and the backward pass is outlined.

        XLA would keep what it widened in the forward pass for the backward pass, and compute dx again within what
        transposes it.
        """
        if self.backward:
            return self._outlined_pass(of, terms)
        # XLA makes three passes of a 16-bit reshape whose result is cast in one place and handed on in another: x is
        # cast before it is reshaped.
        x, *others = terms
        assert self.x is not None and isinstance(x, jax.Array)
        wide = self._columns(reshape(self._wide(self.x), x.shape))
        return reshape(self._pass(of, wide, *self._ready(tuple(others))), self.layout.view)

    def total(self, of: Elementwise, *terms: Term) -> jax.Array:
        if self.layout.shared_axes:
            return super().total(of, *terms)
        axes = self.layout.axes
        return _outlined(
            lambda *terms: jnp.sum(of(*map(self._wide, terms)), axis=axes, keepdims=True), *self._ready(terms)
        )

    def inner(self, of: Elementwise, *terms: Term) -> Any:
        if self.layout.shared_axes:
            return self._over_shared(of, *terms)
        if len(terms) == 1:  # nothing to do: the array is read where it is summed
            return terms[0]
        return _outlined(lambda *terms: of(*map(self._wide, terms)), *self._ready(terms))

    def outer(self, of: Elementwise, *terms: Term) -> jax.Array:
        outer = functools.partial(super().outer, of)
        return outer(*terms) if self.layout.shared_axes else _outlined(outer, *terms)

    def like(self, parameter: Term, of: Elementwise, *terms: Term) -> jax.Array | None:
        like = functools.partial(super().like, parameter, of)
        if self.layout.shared_axes or not isinstance(parameter, jax.Array):
            return like(*terms)
        return _outlined(like, *self._ready(terms))

    def near_mean(self, x: jax.Array, where: Term) -> jax.Array:
        """Of a sample, found as its distance from one element: so a constant group has an exact mean at any size."""

        def sampled(x: jax.Array) -> jax.Array:
            axes, size = self.layout.axes, self.layout.view.__getitem__
            x = self._wide(x)
            first = lax.slice(x, [0] * x.ndim, self.layout.reduced)
            # Part of a batch that is sharded would have to be sent to the other devices.
            longest = max((axis for axis in axes if axis), key=size, default=None)
            part = x if longest is None else lax.slice_in_dim(x, 0, -(-size(longest) // SAMPLE), axis=longest)
            return cast(first + jnp.mean(part - first, axis=axes, keepdims=True), self.x_dtype)

        x, near_mean = lax.stop_gradient(x), super().near_mean
        if isinstance(where, jax.Array) and x.size:
            return _outlined(near_mean, x, where)
        return outlined(sampled, x) if x.size else near_mean(x, where)

    # --- parts ---

    def _outlined_pass(self, of: Elementwise, terms: tuple[Any, ...]) -> jax.Array:
        """A pass in columns, in a call that takes and returns arrays of x's shape.

        What computes g or uses dx is then not fused with a reshape, for which XLA would look up each element's indices.
        """
        assert self.x is not None
        x_shape, view = self.x.shape, self.layout.view
        whole = [isinstance(term, jax.Array) and term.shape == view for term in terms]
        others = iter(self._ready(tuple(term for term, is_whole in zip(terms, whole, strict=True) if not is_whole)))
        arguments = [reshape(term, x_shape) if w else next(others) for term, w in zip(terms, whole, strict=True)]

        def in_columns(*terms: Any) -> jax.Array:
            columns = [self._columns(reshape(t, view)) if w else t for t, w in zip(terms, whole, strict=True)]
            return reshape(self._pass(of, *columns), x_shape)

        return reshape(_outlined(in_columns, *arguments), view)

    def _ready(self, terms: tuple[Term, ...]) -> list[Any]:
        """The terms in columns; the numbers of each group as arrays of their own, in the compute dtype.

        Otherwise a pass over x would compute them again for each element, or look each element's group up.
        """
        fresh = [term for term in terms if self._is_statistic(term) and id(term) not in self._materialized]
        if fresh:
            columns = outlined(lambda *fresh: [self._columns(self._wide(term)) for term in fresh], *fresh)
            self._materialized |= {id(term): (term, c) for term, c in zip(fresh, columns, strict=True)}
        return [self._materialized[id(t)][1] if id(t) in self._materialized else self._columns(t) for t in terms]

    def _is_statistic(self, term: Term) -> bool:
        """Whether an array holds a number for each group: neither x's entries, nor a parameter's, nor a mask's."""
        if not isinstance(term, jax.Array) or term.dtype == jnp.bool_ or any(term is p for p in self.parameters):
            return False
        return term.size < math.prod(self.layout.view) and all(term.shape[axis] == 1 for axis in self.layout.axes)

    def _over_shared(self, of: Elementwise, *terms: Term) -> jax.Array:
        """The sums over the shared axes, of which there must be some."""
        shared, axes, columns = self.layout.shared_axes, self._column_axes, self._ready(terms)
        shape = jnp.broadcast_shapes(*(column.shape for column in columns if isinstance(column, jax.Array)))
        blocks = self._blocks(axes, shape)
        if blocks > 1:
            columns = [_cut(c, shape, blocks) if isinstance(c, jax.Array) else c for c in columns]
        total = _outlined(lambda *c: jnp.sum(of(*map(self._wide, c)), axis=axes, keepdims=True), *columns)
        if blocks > 1:
            total = jnp.sum(lax.reshape(total, (shape[0], blocks, shape[2])), axis=1, keepdims=True)
        return reshape(total, tuple(1 if axis in shared else size for axis, size in enumerate(self.layout.view)))

    def _blocks(self, axes: tuple[int, ...], shape: tuple[int, ...]) -> int:
        """Into how many blocks each entry of a batch is cut, whose sums are added in the end.

        YNNPACK holds all that leads to the sum for one entry, so a block is what fits into a core's cache.
        """
        if self.layout.where_view or axes != (1,) or len(shape) != 3:
            return 1
        _, length, channels = shape
        rows = min(length, BLOCK // channels) if channels else 0
        return next((length // n for n in range(rows, rows // 4, -1) if length % n == 0), 1)


def _outlined(function: Elementwise, *terms: Term) -> Any:
    """`function(*terms)`, outlined; neutral elements stay the numbers that they are.

    An array that is several terms is one argument, since XLA does not vectorize a loop over an argument given twice.
    """
    arrays = {id(term): term for term in terms if isinstance(term, jax.Array)}

    def of_arrays(*arguments: jax.Array) -> Any:
        known = dict(zip(arrays, arguments, strict=True))
        return function(*(known.get(id(term), term) for term in terms))

    return outlined(of_arrays, *arrays.values())


def _cut(values: jax.Array, shape: tuple[int, ...], blocks: int) -> jax.Array:
    """An array in columns of `shape`, or 1 along some of its axes, with each block as an entry of the batch."""
    batch, length, channels = shape
    if values.shape[1] == 1:
        values = lax.broadcast_in_dim(values, (batch, blocks, 1, channels), (0, 2, 3))
    return lax.reshape(values, (batch * blocks, length // blocks if values.ndim == 3 else 1, channels))
