"""The groups of a normalization: the static side of a rule, and how sums over its groups are taken.

Every norm has groups (the reduction axes), and parameters that vary along some axes. A sum over a group is a sum over
the axes along which no parameter varies, the shared ones, and of what is left over the others: where there are shared
axes, the first serves the parameters' gradients too, and the rest is small.

The views, the order of the sums, the blocks and what is compiled apart are for XLA's CPU backend, which is particular
about them; on a GPU or TPU nothing is outlined, and the rest changes nothing that matters.
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
from jaxnorm._cotangents import cast, reshape
from jaxnorm._lower import calls

BLOCK = 1 << 15  # numbers that lead to a sum at a time: 128 KB
SPAN = 1 << 18  # numbers that a group may reach over in memory: of 131,072 one pass was faster, of 262,144 slower


@dataclasses.dataclass(frozen=True)
class Rule:
    """The static side of one normalization: how arguments are viewed, what is reduced, which options hold."""

    view: tuple[int, ...]  # x is reshaped to this inside the rule, so that x itself is what is kept
    axes: tuple[int, ...]  # of the view: reduced for the statistics
    scale_view: tuple[int, ...] = ()
    bias_view: tuple[int, ...] = ()
    where_view: tuple[int, ...] = ()
    epsilon: float = 1e-5
    use_mean: bool = True
    ddof: int = 0
    axis_name: AxisName = None
    with_moments: bool = False  # whether the statistics are returned, for running averages
    on_cpu: bool = False  # whether this is for XLA's CPU backend alone
    sample: int = 1  # the mean of one element in so many is near enough to the mean to start from
    unmerged: "Rule | None" = None  # the rule that this one views with fewer axes


def by_platform(function: Callable[..., Any], rule: Rule, *arrays: Any) -> Any:
    """`function(rule, *arrays)`, on a CPU in a view of the fewest axes.

    XLA's CPU backend reduces (N, H, W, C) over its first axes several times slower than (N, H W, C). Elsewhere the axes
    stay apart: there it makes no difference to a reduction, but merged axes can no longer be sharded each on its own.
    """
    if rule.axis_name is not None:  # each device has an array of its own already
        return function(merged(rule), *arrays)
    return _chosen(function, rule, *arrays)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _chosen(function: Callable[..., Any], rule: Rule, *arrays: Any) -> Any:
    cpu = functools.partial(function, dataclasses.replace(merged(rule), on_cpu=True))
    default = functools.partial(function, rule)
    return lax.platform_dependent(*arrays, cpu=cpu, default=default)


def merged(rule: Rule) -> Rule:
    """The same rule with neighbouring axes merged wherever statistics, parameters and mask treat them alike.

    The first axis, a batch that may be sharded even on simulated CPU devices, stays apart.
    """
    others = [v for v in (rule.scale_view, rule.bias_view, rule.where_view) if v]

    def role(axis: int) -> tuple[bool, ...]:
        return axis == 0, axis in rule.axes, *(other[axis] == rule.view[axis] for other in others)

    longer = [axis for axis, size in enumerate(rule.view) if size != 1]
    parts = [list(part) for _, part in itertools.groupby(longer, role)]

    def view(sizes: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(math.prod(sizes[a] for a in part) for part in parts) if sizes else ()

    return dataclasses.replace(
        rule,
        view=view(rule.view),
        axes=tuple(i for i, part in enumerate(parts) if part[0] in rule.axes),
        scale_view=view(rule.scale_view),
        bias_view=view(rule.bias_view),
        where_view=view(rule.where_view),
        sample=16,
        unmerged=rule,
    )


def in_one_pass(rule: Rule, dtype: Any) -> Rule | None:
    """The rule by whose view XLA's CPU backend is to read x once for its output, if it is to.

    It takes sums and the elementwise arithmetic around them into one YNNPACK fusion, group by group, where groups lie
    together in memory and fit into a core's cache. Such a fusion has no selection (by a mask, of an epsilon of 0), no
    float64 and one result. Behind a reshape of (1, N, C) it would run on one core, but over two axes it would take 14
    times as long as over them merged.
    """
    whole = rule.unmerged
    if whole is None or dtype != jnp.float32 or rule.where_view or rule.axis_name is not None or rule.with_moments:
        return None
    together = 0 not in rule.axes and all(a + 1 == b for a, b in itertools.pairwise(rule.axes))
    span = math.prod(rule.view[min(rule.axes, default=0) :])
    if not together or not 0 < span < SPAN or rule.epsilon <= float(jnp.finfo(dtype).tiny):
        return None
    return dataclasses.replace(whole, on_cpu=True) if len(whole.axes) == 1 else rule


def reduced(rule: Rule, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of a sum over the reduction axes."""
    return tuple(1 if a in rule.axes else s for a, s in enumerate(shape))


def outlined(rule: Rule, function: Callable[..., Any], *arrays: Any) -> Any:
    """`function(*arrays)`, on a CPU compiled on its own."""
    return calls.outlined(function, *arrays) if rule.on_cpu else function(*arrays)


def shared_axes(rule: Rule) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The reduction axes along which neither parameter varies, and the others."""
    views = [v for v in (rule.scale_view, rule.bias_view) if v]
    shared = tuple(a for a in rule.axes if all(view[a] == 1 for view in views))
    return shared, tuple(a for a in rule.axes if a not in shared)


def _columns(rule: Rule) -> list[list[int]]:
    """The axes in the view for sums over the shared ones: neighbours among the others are merged, but the first axis.

    So for group norm (N, H W, groups, channels) becomes (N, H W, C): twice as fast on a CPU. A mask keeps all apart.
    """
    shared, _ = shared_axes(rule)
    axes = range(len(rule.view))
    if not shared or rule.where_view:
        return [[axis] for axis in axes]
    return [list(part) for _, part in itertools.groupby(axes, lambda axis: axis if axis in (0, *shared) else -1)]


def in_columns(rule: Rule, values: jax.Array) -> jax.Array:
    """`values` of the rule's view, or 1 along some of its axes, in the columns' view, or 1 along some of that one's."""
    shape = list(values.shape)
    for part in _columns(rule):
        if any(shape[a] != 1 for a in part):
            shape[part[0] : part[-1] + 1] = rule.view[part[0] : part[-1] + 1]
    wide = jnp.broadcast_to(values, shape)
    return reshape(wide, tuple(math.prod(shape[a] for a in part) for part in _columns(rule)))


def written_out(rule: Rule, *statistics: jax.Array | None, dtype: Any) -> list[Any]:
    """Numbers for each group, in columns and of one dtype, on a CPU as arrays of their own.

    Otherwise an elementwise pass over x would compute them again for each element, or look each element's group up:
    group norm took 1.1 to 2.2 times as long.
    """

    def columns(*statistics: jax.Array | None) -> list[Any]:
        return [None if s is None else in_columns(rule, cast(s, dtype)) for s in statistics]

    return outlined(rule, columns, *statistics)


def over_group(rule: Rule, of: Callable[..., jax.Array], *arrays: jax.Array) -> jax.Array:
    """The sums over each group of `of(*arrays)`, elementwise, of arrays in columns; themselves in the rule's view."""
    shared, rest = shared_axes(rule)
    if shared:
        return jnp.sum(over_shared(rule, of, *arrays), axis=rest, keepdims=True)
    return outlined(rule, lambda *arrays: jnp.sum(of(*arrays), axis=rest, keepdims=True), *arrays)


def over_shared(rule: Rule, of: Callable[..., jax.Array], *arrays: jax.Array) -> jax.Array:
    """The same over the shared axes alone, of which there must be some."""
    shared, _ = shared_axes(rule)
    axes = tuple(i for i, part in enumerate(_columns(rule)) if part[0] in shared)
    shape = jnp.broadcast_shapes(*(a.shape for a in arrays))
    blocks = _blocks(rule, axes, shape)
    if blocks > 1:
        arrays = tuple(_cut(a, shape, blocks) for a in arrays)
    total = outlined(rule, lambda *arrays: jnp.sum(of(*arrays), axis=axes, keepdims=True), *arrays)
    if blocks > 1:
        total = jnp.sum(lax.reshape(total, (shape[0], blocks, shape[2])), axis=1, keepdims=True)
    return reshape(total, tuple(1 if a in shared else s for a, s in enumerate(rule.view)))


def _blocks(rule: Rule, axes: tuple[int, ...], shape: tuple[int, ...]) -> int:
    """Into how many blocks each entry of a batch is cut, whose sums are added in the end.

    YNNPACK holds all that leads to the sum for one entry: 32 entries of 1024 x 128 took 3.5 ms, and 2.3 as 256 of
    128 x 128, which fit into a core's cache.
    """
    if not rule.on_cpu or rule.where_view or axes != (1,) or len(shape) != 3:
        return 1
    _, length, channels = shape
    rows = min(length, BLOCK // channels) if channels else 0
    return next((length // n for n in range(rows, rows // 4, -1) if length % n == 0), 1)


def _cut(values: jax.Array, shape: tuple[int, ...], blocks: int) -> jax.Array:
    """An array in columns of `shape`, or 1 along some of its axes, with each block as an entry of the batch."""
    batch, length, channels = shape
    if values.shape[1] == 1:
        values = lax.broadcast_in_dim(values, (batch, blocks, 1, channels), (0, 2, 3))
    return lax.reshape(values, (batch * blocks, length // blocks if values.ndim == 3 else 1, channels))
