"""Gathers and scatters: which elements they mean is worked out in integers, then moved."""

from typing import Any

import numpy as np

from jaxnorm.check._proof.arithmetic import mul
from jaxnorm.check._proof.contractions import added_at, reshaped
from jaxnorm.check._proof.machine import Machine, Undecided, Value
from jaxnorm.check._proof.order import choose, larger
from jaxnorm.check._proof.rules import rule

Parameters = dict[str, Any]


def _mode(parameters: Parameters) -> str:
    """What happens out of bounds: clip, fill or promise."""
    return str(parameters["mode"]).lower().rsplit(".", 1)[-1].split("_")[0]


def _places(
    shape: tuple[int, ...],
    sizes: tuple[int, ...],
    starts: np.ndarray,
    start_axes: tuple[int, ...],
    paired: dict[int, int],
    window_axes: list[int],
    spots: list[int],
    mode: str,
) -> tuple[np.ndarray, np.ndarray]:
    """The flat place in an array of `shape` of each element of the windows, and whether its window fits.

    `sizes` are the windows', `paired` the array's axes that go along with an axis of `starts`, `window_axes` the axes
    of the array along which windows extend, and `spots` the axes of the result for these; its other axes are those of
    `starts` but the last.
    """
    rank = starts.ndim - 1 + len(spots)
    batch = [axis for axis in range(rank) if axis not in spots]

    def spread(array: np.ndarray) -> np.ndarray:
        lies = [1] * rank
        for axis, size in zip(batch, array.shape, strict=True):
            lies[axis] = size
        return array.reshape(lies)

    fits, flat = np.ones((1,) * rank, bool), np.zeros((1,) * rank, int)
    for axis, size in enumerate(shape):
        at = np.zeros((1,) * rank, int)
        if axis in start_axes:
            start = spread(starts[..., start_axes.index(axis)].astype(np.int64))
            fits = fits & (start >= 0) & (start <= size - sizes[axis])
            at = at + np.clip(start, 0, max(size - sizes[axis], 0))
        if axis in paired:
            along = np.arange(size)
            lies = [1] * rank
            lies[batch[paired[axis]]] = size
            at = at + along.reshape(lies)
        if axis in window_axes:
            lies = [1] * rank
            lies[spots[window_axes.index(axis)]] = sizes[axis]
            at = at + np.arange(sizes[axis]).reshape(lies)
        flat = flat * size + at
    return flat, (fits if mode != "clip" else np.ones_like(fits))


@rule("gather")
def _gather(m: Machine, parameters: Parameters, a: Value, starts: Value) -> Value:
    numbers, sizes = parameters["dimension_numbers"], tuple(parameters["slice_sizes"])
    gone = (*numbers.collapsed_slice_dims, *numbers.operand_batching_dims)
    windows = [axis for axis in range(a.shadow.ndim) if axis not in gone]
    paired = dict(zip(numbers.operand_batching_dims, numbers.start_indices_batching_dims, strict=True))
    spots, mode = list(numbers.offset_dims), _mode(parameters)
    flat, fits = _places(a.shape, sizes, starts.shadow, tuple(numbers.start_index_map), paired, windows, spots, mode)
    batch = iter(starts.shape[:-1])
    extents = {spot: sizes[axis] for spot, axis in zip(spots, windows, strict=True)}
    rank = starts.shadow.ndim - 1 + len(spots)
    shape = tuple(extents[axis] if axis in extents else next(batch) for axis in range(rank))
    flat = np.broadcast_to(flat, shape)
    if not a.shadow.size:
        return _blank(m, a, shape, parameters)
    gathered = m.structural(lambda x: x[flat], reshaped(m, a, (a.shadow.size,)))
    if fits.all() or mode == "promise":
        return gathered
    return choose(m, np.broadcast_to(fits, shape), gathered, _blank(m, a, (), parameters))


def _blank(m: Machine, a: Value, shape: tuple[int, ...], parameters: Parameters) -> Value:
    """What a gather out of bounds gives."""
    fill = parameters.get("fill_value")
    if a.field is not None:
        return m.constant(np.full(shape, np.nan if fill is None else fill))
    dtype = a.shadow.dtype
    if fill is None:
        fill = True if dtype.kind == "b" else np.iinfo(dtype).min if dtype.kind == "i" else np.iinfo(dtype).max
    return m.exact(np.full(shape, fill, dtype))


@rule("scatter", "scatter-add", "scatter_add", "scatter-mul", "scatter_mul", "scatter-max", "scatter_max",
      "scatter-min", "scatter_min", "scatter-sub", "scatter_sub")  # fmt: skip
def _scatter(m: Machine, parameters: Parameters, a: Value, starts: Value, updates: Value) -> Value:
    numbers = parameters["dimension_numbers"]
    gone = (*numbers.inserted_window_dims, *numbers.operand_batching_dims)
    windows = [axis for axis in range(a.shadow.ndim) if axis not in gone]
    spots = list(numbers.update_window_dims)
    sizes = [1] * a.shadow.ndim
    for spot, axis in zip(spots, windows, strict=True):
        sizes[axis] = updates.shape[spot]
    paired = dict(zip(numbers.operand_batching_dims, numbers.scatter_indices_batching_dims, strict=True))
    axes = tuple(numbers.scatter_dims_to_operand_dims)
    flat, fits = _places(a.shape, tuple(sizes), starts.shadow, axes, paired, windows, spots, _mode(parameters))
    at = np.broadcast_to(flat, updates.shape).ravel()
    kept = np.flatnonzero(np.broadcast_to(fits, updates.shape).ravel())
    if not len(kept):
        return a
    flat_updates = m.structural(lambda x: x[kept], reshaped(m, updates, (updates.shadow.size,)))
    result = _combined(m, parameters, reshaped(m, a, (a.shadow.size,)), at[kept], flat_updates)
    return reshaped(m, result, a.shape)


def _combined(m: Machine, parameters: Parameters, a: Value, at: np.ndarray, updates: Value) -> Value:
    name = parameters["primitive"].replace("_", "-")
    if name == "scatter-add":
        return added_at(m, a, at, updates)
    if len(np.unique(at)) < len(at):
        raise Undecided(f"{name} with two updates of one element")
    old = m.structural(lambda x: x[at], a)
    if name == "scatter-mul":
        updates = mul(m, old, updates) if a.field is not None else m.exact(old.shadow * updates.shadow)
    elif name in ("scatter-max", "scatter-min") and a.field is not None:
        updates = larger(m, old, updates, name[-3:])
    elif name != "scatter":
        raise Undecided(name)

    def of(x: np.ndarray, updates: np.ndarray) -> np.ndarray:
        result = np.array(x)
        result[at] = updates
        return result

    return m.structural(of, a, updates)
