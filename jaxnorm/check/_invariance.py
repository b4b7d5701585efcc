"""Row by row: permuted rows, two halves of a batch and added rows give the same results, along a named axis."""

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnorm.check._exact import Call
from jaxnorm.check._problem import Leaves, shapes
from jaxnorm.check._programs import Failed, Inputs
from jaxnorm.check._report import Row

Axes = list[int | None]


def invariance_rows(call: Call, inputs: Inputs, batch_axes: int | Sequence[int | None]) -> Iterator[Row]:
    """Values and cotangents of changed batches against those of the batch that was given."""
    of_leaves = _leaf_axes(call, batch_axes)
    (count,) = {leaf.shape[axis] for leaf, axis in zip(call.leaves, of_leaves, strict=True) if axis is not None}
    of_outputs = _output_axes(call, of_leaves)
    axes = of_leaves, [a for a, leaf in zip(of_outputs, inputs.incoming[0], strict=False)]
    order = np.random.default_rng(0).permutation(count)
    batches = {"rows permuted": [order], "batch split": [np.arange(count // 2), np.arange(count // 2, count)]}
    batches["padding added"] = [np.concatenate([np.arange(count), np.zeros(max(count // 2, 1), int)])]
    whole = call.mode.at(call.layout, call.layout.flat(call.fun), call.leaves, inputs.incoming[0])
    for check, parts in batches.items():
        try:
            found = [_at(call, inputs, axes, rows, count, check) for rows in parts if len(rows)]
        except Exception as error:
            yield Row(check, call.arguments, False, note=f"fun {Failed.by(error).text}")
            continue
        yield from _compared(call, check, found, whole, axes, np.argsort(order), count)


def _leaf_axes(call: Call, batch_axes: int | Sequence[int | None]) -> Axes:
    """The axis of each leaf: that of its argument."""
    arguments = call.layout.tree.num_leaves and jax.tree.unflatten(call.layout.tree, range(len(call.leaves)))
    every = [batch_axes] * len(arguments) if isinstance(batch_axes, int) else list(batch_axes)
    if len(every) != len(arguments):
        raise ValueError(f"batch_axes must be an int or one per argument, {len(arguments)}, got {batch_axes}")
    axes = [axis for axis, of_one in zip(every, arguments, strict=True) for _ in jax.tree.leaves(of_one)]
    for name, leaf, axis in zip(call.layout.names, call.leaves, axes, strict=True):
        if axis is not None and not -leaf.ndim <= axis < leaf.ndim:
            raise ValueError(f"batch_axes must be axes of the arguments, got {axis} for {name} of shape {leaf.shape}")
    sizes = {n: a.shape[x] for n, a, x in zip(call.layout.names, call.leaves, axes, strict=True) if x is not None}
    if len({*sizes.values()}) != 1:
        raise ValueError(f"batch_axes must name axes of one size, got {sizes or batch_axes}")
    return [None if axis is None else axis % leaf.ndim for axis, leaf in zip(axes, call.leaves, strict=True)]


def _output_axes(call: Call, axes: Axes) -> Axes:
    """The axis of each floating-point output that grows with the batch."""
    grown = [
        a if x is None else np.concatenate([a, np.take(a, [0], x)], x) for a, x in zip(call.leaves, axes, strict=True)
    ]
    sides = [jax.eval_shape(call.layout.flat(call.fun), shapes(leaves))[0] for leaves in (call.leaves, grown)]
    return [
        next((i for i, (a, b) in enumerate(zip(before.shape, after.shape, strict=True)) if a != b), None)
        for before, after in zip(*sides, strict=True)
    ]


def _taken(arrays: Leaves, axes: Axes, rows: np.ndarray) -> Leaves:
    return [a if x is None else jnp.take(a, rows, x) for a, x in zip(arrays, axes, strict=True)]


def _at(call: Call, inputs: Inputs, axes: tuple[Axes, Axes], rows: np.ndarray, count: int, check: str) -> Any:
    """Values and cotangents at these rows; added rows have a cotangent of zero."""
    incoming = _taken(inputs.incoming[0], axes[1], rows)
    if check == "padding added":
        kept = np.arange(len(rows)) < count
        incoming = [
            c if x is None else jnp.where(kept.reshape([-1 if i == x else 1 for i in range(c.ndim)]), c, 0)
            for c, x in zip(incoming, axes[1], strict=True)
        ]
    return call.mode.at(call.layout, call.layout.flat(call.fun), _taken(call.leaves, axes[0], rows), incoming)


def _compared(
    call: Call, check: str, found: list[Any], whole: Any, axes: tuple[Axes, Axes], back: np.ndarray, count: int
) -> Iterator[Row]:
    """Outputs and cotangents put together again; a cotangent of what has no rows is the sum over the parts."""
    moving = call.layout.pick(axes[0])
    rows = back if check == "rows permuted" else np.arange(count)
    for side, names, of_side in ((0, call.outputs[0], axes[1]), (2, call.outgoing, moving)):
        for i, (name, axis) in enumerate(zip(names, of_side, strict=True)):
            parts = [np.asarray(part[side][i]) for part in found]
            if axis is None and side == 0:
                continue  # of outputs without rows nothing is known
            got = sum(parts) if axis is None else np.take(np.concatenate(parts, axis), rows, axis)
            yield call.row(check, name, got, whole[side][i])
