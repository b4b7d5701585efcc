"""How a product is split over devices: what each computes of it, and what they send to each other.

XLA's partitioner gets gradients of convolutions wrong where rows of an image or groups are split, and gathers the batch
for some. So it is told what to do (`jax.experimental.custom_partitioning`). Each axis of the three arrays is made of
factors, and each factor is split over mesh axes of its own:

    n         images: each device has its own; a kernel's gradient is summed over the devices
    h0, ..    rows: each device has its own, and gets from its neighbours those that its windows reach beyond them
    g         groups: each device has its own
    c         channels in, of one group: y is summed over the devices
    o         channels out, of one group: each device has its own
    v0, ..    what vmap maps over: each device has its own

What does not divide evenly is gathered, and so are a kernel's windows, and rows that outputs do not follow evenly or
whose windows reach beyond a neighbour.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from jaxnorm._lower.convolution.geometry import Geometry, Order, dilated
from jaxnorm._lower.convolution.product import Product

Factors = tuple[str, ...]  # of one axis of an array, from major to minor; only the first is ever split
Split = dict[str, tuple[str, ...]]  # the mesh axes that each factor is split over


@functools.partial(custom_partitioning, static_argnums=(0,))
def partitioned(product: Product, a: jax.Array, b: jax.Array) -> jax.Array:
    """The product, where it may be split over devices."""
    return product.compiled(a, b)


# --- factors --------------------------------------------------------------------------------------------------------


def _factors(product: Product) -> tuple[tuple[Factors, ...], ...]:
    """Those of each axis of the two arrays and the result, as they come."""
    geometry = product.geometry
    rows = [_of_rows(geometry, axis) for axis in range(geometry.space)]
    inputs, outputs = (((name,) if geometry.groups == 1 else ("g", name)) for name in "co")
    x = (("n",), *(of_x for of_x, _ in rows), inputs)
    y = (("n",), *(of_y for _, of_y in rows), outputs)
    kernel = (*((f"k{axis}",) for axis in range(geometry.space)), ("c",), outputs)
    a, b, result = (x, y, kernel) if product.formulations.sums_batch else (x, kernel, y)
    levels = [(f"v{i}",) for i in range(len(product.levels))]
    of_a, of_b = ([name for name, has in zip(levels, own, strict=True) if has] for own in _transposed(product.levels))
    return (
        (*of_a, *_in_order(a, product.a_order)),
        (*of_b, *_in_order(b, product.b_order)),
        (*levels, *_in_order(result, product.result_order)),
    )


def _transposed(levels: Sequence[tuple[bool, bool]]) -> tuple[Sequence[bool], Sequence[bool]]:
    return [of_a for of_a, _ in levels], [of_b for _, of_b in levels]


def _in_order(axes: Sequence[Factors], order: Order) -> list[Factors]:
    return [axes[order.index(axis)] for axis in range(len(axes))]


def _of_rows(geometry: Geometry, axis: int) -> tuple[Factors, Factors]:
    """Those of x's rows and of y's: where S e = T s, every S / h rows of x go with T / h rows of y."""
    size, outputs = geometry.input_size[axis], geometry.output_size[axis]
    stride, dilation = geometry.strides[axis], geometry.input_dilation[axis]
    if size * dilation != outputs * stride:
        return (f"x{axis}",), (f"y{axis}",)
    common = math.gcd(stride, dilation)
    return (
        (f"h{axis}", f"s{axis}") if stride > common else (f"h{axis}",),
        (f"h{axis}", f"e{axis}") if dilation > common else (f"h{axis}",),
    )


def _sizes(product: Product, factors: Sequence[Sequence[Factors]], shapes: Sequence[Sequence[int]]) -> dict[str, int]:
    """The factors' sizes."""
    geometry = product.geometry
    sizes = {"g": geometry.groups}
    for axis, (s, e) in enumerate(zip(geometry.strides, geometry.input_dilation, strict=True)):
        sizes |= {f"s{axis}": s // math.gcd(s, e), f"e{axis}": e // math.gcd(s, e)}
    for axes, shape in zip(factors, shapes, strict=True):
        for names, size in zip(axes, shape, strict=True):
            if names[0] == "g":
                sizes[names[1]] = size // geometry.groups
            else:
                sizes[names[0]] = size // math.prod(sizes[name] for name in names[1:])
    return sizes


def _sharding_rule(product: Product, mesh: Mesh, operands: Sequence[Any], results: Sequence[Any]) -> tuple[str, Any]:
    """For Shardy, which reads from it how shardings spread from one array to another."""
    del mesh
    factors = _factors(product)
    sizes = _sizes(product, factors, [kind.shape for kind in (*operands, *results)])
    arrays = [[[name for name in names if sizes[name] > 1] or names[:1] for names in axes] for axes in factors]
    texts = [" ".join(n[0] if len(n) == 1 else f"({' '.join(n)})" for n in axes) for axes in arrays]
    used = list(dict.fromkeys(name for axes in arrays for names in axes for name in names))
    whole = {names[0] for axes in arrays for names in axes if len(names) == 1}
    in_result = {name for names in arrays[2] for name in names}
    gathered = [name for name in used if name[0] in "kxyse"]
    return f"{texts[0]}, {texts[1]} -> {texts[2]}", {
        "reduction_factors": tuple(name for name in used if name not in in_result and name not in gathered),
        "need_replication_factors": tuple(gathered),
        **{name: sizes[name] for name in used if name not in whole},
    }


# --- the split ------------------------------------------------------------------------------------------------------


def _split(product: Product, mesh: Mesh, arrays: Sequence[Any]) -> Split:
    """Over which mesh axes each factor is split, from the arrays' shardings; no two factors are over the same one."""
    factors = _factors(product)
    sizes = _sizes(product, factors, [array.shape for array in arrays])
    given = [dict(_given(axes, array)) for axes, array in zip(factors, arrays, strict=True)]
    sums_batch = product.formulations.sums_batch
    split: Split = {}
    for name in sorted(sizes, key="vnhgco".find):
        if name[0] not in "vnhgco":
            continue
        # Channels in of x alone, since a kernel is small, and those of y may be on the same mesh axes.
        wanted = given[:1] if name == "c" and not sums_batch else given
        names = next((own[name] for own in wanted if own.get(name)), ())
        if name == "c" and product.geometry.groups > 1:
            names = ()
        taken = {axis for axes in split.values() for axis in axes}
        if name == "c":
            taken |= set(given[1].get("o", ()))
        split[name] = _even(product, name, sizes[name], mesh, tuple(n for n in names if n not in taken))
    return split


def _given(factors: Sequence[Factors], array: Any) -> Any:
    """The mesh axes of the first factor of each axis of an array."""
    spec = array.sharding.spec if isinstance(array.sharding, NamedSharding) else ()
    for names, entry in zip(factors, spec, strict=False):
        yield names[0], entry if isinstance(entry, tuple) else () if entry is None else (entry,)


def _even(product: Product, name: str, size: int, mesh: Mesh, axes: tuple[str, ...]) -> tuple[str, ...]:
    """The longest beginning of these mesh axes that splits the factor evenly."""
    for end in range(len(axes), 0, -1):
        count = math.prod(mesh.shape[axis] for axis in axes[:end])
        fits = name[0] != "h" or _local_rows(product.geometry, int(name[1:]), count) is not None
        if size % count == 0 and fits:
            return axes[:end]
    return ()


def _local_rows(geometry: Geometry, axis: int, count: int) -> tuple[Geometry, int, int] | None:
    """The geometry of one of `count` devices, and how many rows it needs of the one before and the one after.

    The device's first output is at t = 0 of its own, which meets x_e from -l on. The last one, T - 1, meets x_e up to
    s (T - 1) + D(K, d) - 1 - l. None if the rows that it needs are more than a neighbour has.
    """
    rows, outputs = geometry.input_size[axis] // count, geometry.output_size[axis] // count
    low, e, s = geometry.padding[axis][0], geometry.input_dilation[axis], geometry.strides[axis]
    reach = geometry.reach[axis]
    before = max(0, -(-low // e))
    after = max(0, (s * (outputs - 1) + reach - 1 - low) // e - (rows - 1))
    if max(before, after) > rows:
        return None
    (length,) = dilated((before + rows + after,), (e,))
    low -= e * before
    high = s * (outputs - 1) + reach - length - low
    return geometry.with_axis(axis, input_size=before + rows + after, padding=(low, high)), before, after


# --- what each device computes --------------------------------------------------------------------------------------


def _partition(product: Product, mesh: Mesh, operands: Any, result: Any) -> tuple[Mesh, Callable, Any, Any]:
    """For XLA: the mesh, one device's part, and how the result and the arrays are split for it."""
    arrays = (*operands, result)
    if mesh.empty:  # without a mesh of the caller's, all is gathered
        devices = sorted(operands[0].sharding.device_set, key=lambda device: device.id)
        mesh = Mesh(np.array(devices), ("devices",))
    split = _split(product, mesh, arrays)
    *of_operands, of_result = (
        NamedSharding(mesh, PartitionSpec(*(split.get(names[0], ()) or None for names in axes)))
        for axes in _factors(product)
    )

    def local(a: jax.Array, b: jax.Array) -> jax.Array:
        with jax.sharding.use_abstract_mesh(AbstractMesh((), ())):  # as the caller's mesh is no more
            return _local(product, mesh, split, a, b)

    return mesh, local, of_result, tuple(of_operands)


def _local(product: Product, mesh: Mesh, split: Split, a: jax.Array, b: jax.Array) -> jax.Array:
    """One device's part of the product, from its parts of the arrays."""
    counts = {name: math.prod(mesh.shape[axis] for axis in axes) for name, axes in split.items()}
    geometry = dataclasses.replace(product.geometry, groups=product.geometry.groups // counts["g"])
    for i in range(geometry.space):
        if split.get(f"h{i}"):
            local = _local_rows(geometry, i, counts[f"h{i}"])
            assert local is not None
            geometry, before, after = local
            axis = product.a_order[1 + i] + sum(of_a for of_a, _ in product.levels)
            a = _with_neighbours(a, axis, before, after, split[f"h{i}"], counts[f"h{i}"])
    y = dataclasses.replace(product, geometry=geometry).compiled(a, b)
    in_result = {names[0] for names in _factors(product)[2]}
    summed = tuple(axis for name, axes in split.items() if name not in in_result for axis in axes)
    return lax.psum(y, summed) if summed else y


def _infer(product: Product, mesh: Mesh, operands: Any, result: Any) -> Any:
    """For the partitioner that Shardy replaced: how the result is split, from the arrays alone."""
    result = jax.ShapeDtypeStruct(result.shape, result.dtype)
    return _partition(product, mesh, operands, result)[2]


def _with_neighbours(x: jax.Array, axis: int, before: int, after: int, names: tuple[str, ...], count: int) -> jax.Array:
    """x and, along the axis, the last rows of the device before and the first of the one after; 0 at the ends."""
    parts = [x]
    if before:
        last = lax.slice_in_dim(x, x.shape[axis] - before, None, axis=axis)
        parts.insert(0, lax.ppermute(last, names, [(i, i + 1) for i in range(count - 1)]))
    if after:
        first = lax.slice_in_dim(x, 0, after, axis=axis)
        parts.append(lax.ppermute(first, names, [(i + 1, i) for i in range(count - 1)]))
    return lax.concatenate(parts, axis) if len(parts) > 1 else x


partitioned.def_partition(_partition, infer_sharding_from_operands=_infer, sharding_rule=_sharding_rule)
