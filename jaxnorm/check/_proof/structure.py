"""Primitives that move elements about."""

from typing import Any

import numpy as np

from jaxnorm.check._proof.machine import Machine, Value, is_exact
from jaxnorm.check._proof.rules import rule

Parameters = dict[str, Any]

# --- moving elements --------------------------------------------------------------------------------------------------


@rule(
    "stop_gradient",
    "copy",
    "copy_p",
    "optimization_barrier",
    "reduce_precision",
    "xla_metadata_value",
    "sharding_constraint",
    "reshard",
    "mesh_cast",
    "layout_constraint",
    "pvary",
    "device_put",
    "name",
)
def _same(m: Machine, parameters: Parameters, *values: Value) -> list[Value]:
    return list(values)


@rule("reshape")
def _reshape(m: Machine, parameters: Parameters, a: Value) -> Value:
    if (order := parameters.get("dimensions")) is not None:
        a = _transpose(m, {"permutation": order}, a)
    n, sizes = a.shadow.ndim, tuple(parameters["new_sizes"])
    return m.structural(lambda x: x.reshape(sizes + x.shape[n:]), a)


@rule("squeeze", "expand_dims")
def _squeeze(m: Machine, parameters: Parameters, a: Value) -> Value:
    axes = tuple(parameters["dimensions"])
    return m.structural(lambda x: x.squeeze(axes), a)


@rule("transpose")
def _transpose(m: Machine, parameters: Parameters, a: Value) -> Value:
    order = tuple(parameters["permutation"])
    return m.structural(lambda x: x.transpose(order + tuple(range(len(order), x.ndim))), a)


@rule("broadcast_in_dim")
def _broadcast(m: Machine, parameters: Parameters, a: Value, *sizes: Value) -> Value:
    shape, axes, n = tuple(parameters["shape"]), parameters["broadcast_dimensions"], a.shadow.ndim
    spread = [1] * len(shape)
    for axis, size in zip(axes, a.shape, strict=True):
        spread[axis] = size

    def of(x: np.ndarray) -> np.ndarray:
        return np.broadcast_to(x.reshape((*spread, *x.shape[n:])), shape + x.shape[n:])

    return m.structural(of, a)


@rule("tile")
def _tile(m: Machine, parameters: Parameters, a: Value) -> Value:
    times = tuple(parameters["reps"])
    return m.structural(lambda x: np.tile(x, times + (1,) * (x.ndim - len(times))), a)


@rule("rev")
def _rev(m: Machine, parameters: Parameters, a: Value) -> Value:
    return m.structural(lambda x: np.flip(x, tuple(parameters["dimensions"])), a)


@rule("slice")
def _slice(m: Machine, parameters: Parameters, a: Value) -> Value:
    steps = parameters["strides"] or (1,) * a.shadow.ndim
    parts = tuple(map(slice, parameters["start_indices"], parameters["limit_indices"], steps))
    return m.structural(lambda x: x[parts], a)


@rule("concatenate")
def _concatenate(m: Machine, parameters: Parameters, *values: Value) -> Value:
    return m.structural(lambda *xs: np.concatenate(xs, parameters["dimension"]), *values)


@rule("stack")
def _stack(m: Machine, parameters: Parameters, *values: Value) -> Value:
    return m.structural(lambda *xs: np.stack(xs, parameters["axis"]), *values)


@rule("unstack")
def _unstack(m: Machine, parameters: Parameters, a: Value) -> list[Value]:
    axis = parameters["axis"]
    return [m.structural(lambda x, i=i: x.take(i, axis), a) for i in range(a.shape[axis])]


@rule("split")
def _split(m: Machine, parameters: Parameters, a: Value) -> list[Value]:
    ends = np.cumsum(parameters["sizes"])
    spans = [slice(int(end) - size, int(end)) for end, size in zip(ends, parameters["sizes"], strict=True)]
    before = (slice(None),) * parameters["axis"]
    return [m.structural(lambda x, span=span: x[(*before, span)], a) for span in spans]


@rule("pad")
def _pad(m: Machine, parameters: Parameters, a: Value, fill: Value) -> Value:
    """Interior padding, then what is added or cut at both ends."""
    config = parameters["padding_config"]
    sizes = [max(low + high + size + max(size - 1, 0) * inner, 0)
             for size, (low, high, inner) in zip(a.shape, config, strict=True)]  # fmt: skip
    positions = [low + np.arange(size) * (inner + 1) for size, (low, _, inner) in zip(a.shape, config, strict=True)]
    kept = [np.flatnonzero((at >= 0) & (at < size)) for at, size in zip(positions, sizes, strict=True)]
    to = np.ix_(*(at[k] for at, k in zip(positions, kept, strict=True)))
    source = np.ix_(*kept)

    def of(x: np.ndarray, fill: np.ndarray) -> np.ndarray:
        result = np.array(np.broadcast_to(fill, (*sizes, *x.shape[a.shadow.ndim :])))
        result[to] = x[source]
        return result

    return m.structural(of, a, fill)


def starts_of(a: Value, indices: tuple[Value, ...], sizes: tuple[int, ...]) -> tuple[slice, ...]:
    """Where a dynamic slice lies: clamped into the array."""
    starts = [min(max(int(i.shadow), 0), n - size) for i, n, size in zip(indices, a.shape, sizes, strict=True)]
    return tuple(slice(start, start + size) for start, size in zip(starts, sizes, strict=True))


@rule("dynamic_slice")
def _dynamic_slice(m: Machine, parameters: Parameters, a: Value, *indices: Value) -> Value:
    parts = starts_of(a, indices[: a.shadow.ndim], tuple(parameters["slice_sizes"]))
    return m.structural(lambda x: x[parts], a)


@rule("dynamic_update_slice")
def _dynamic_update_slice(m: Machine, parameters: Parameters, a: Value, update: Value, *indices: Value) -> Value:
    parts = starts_of(a, indices, update.shape)

    def of(x: np.ndarray, update: np.ndarray) -> np.ndarray:
        result = np.array(x)
        result[parts] = update
        return result

    return m.structural(of, a, update)


@rule("iota")
def _iota(m: Machine, parameters: Parameters) -> Value:
    shape, axis = parameters["shape"], parameters["dimension"]
    along = np.arange(shape[axis]).reshape([-1 if i == axis else 1 for i in range(len(shape))])
    return _as_dtype(m, np.broadcast_to(along, shape), parameters["dtype"])


def _as_dtype(m: Machine, integers: np.ndarray, dtype: Any) -> Value:
    return m.exact(integers.astype(dtype)) if is_exact(dtype) else m.as_float(m.exact(integers))


@rule("empty", "empty2")
def _empty(m: Machine, parameters: Parameters) -> Value:
    """An array that the program overwrites: where it does not, NaN."""
    shape = parameters.get("shape", ())
    if is_exact(parameters["dtype"]):
        return m.exact(np.zeros(shape, parameters["dtype"]))
    return m.constant(np.full(shape, np.nan))
