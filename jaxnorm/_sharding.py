"""Explicit mesh axes, the default of `jax.make_mesh`: there an array's type says over which axes it is split.

On such axes every slice, reshape, product and loop would have to name the sharding of its result. So a rule runs with
these axes automatic (`jax.sharding.auto_axes`), which leaves its operations to the compiler, and only its results are
given a sharding again. The cotangents go the same way back, and each gets its argument's sharding.
"""

from collections.abc import Callable, Collection
from typing import Any

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

Entry = Any  # of a PartitionSpec: None, a mesh axis, or a tuple of them


def with_shardings(rule: Callable[..., Any], specs: Any, *arguments: Any, keeps_arguments: bool = False) -> Any:
    """`rule(*arguments)`, split as `specs` say if an argument has explicit mesh axes.

    The arguments are arrays or pytrees of them, and `specs` is a `PartitionSpec` for each result, or one for all of a
    pytree. Without explicit axes nothing is added to the call.

    With `keeps_arguments` the backward pass is handed the arguments themselves, as `jax.checkpoint` does, and not what
    they are inside of the call, where the axes are automatic. JAX refuses a program that gets both kinds if one of its
    operations asks for its devices, as a convolution does.
    """
    mesh = explicit_mesh(arguments)
    if mesh is None:
        return rule(*arguments)
    shardings = jax.tree.map(lambda s: NamedSharding(mesh, s), specs, is_leaf=lambda s: isinstance(s, PartitionSpec))
    on_mesh = jax.sharding.auto_axes(rule, axes=_explicit_axes(mesh), out_sharding=shardings)
    return (jax.checkpoint(on_mesh, prevent_cse=False) if keeps_arguments else on_mesh)(*arguments)


def gathered(x: jax.Array, axes: Collection[int]) -> jax.Array:
    """x, whole along these axes on explicit mesh axes."""
    if not any(entries_of(x)[axis] for axis in axes):
        return x
    spec = PartitionSpec(*(None if axis in axes else entry for axis, entry in enumerate(entries_of(x))))
    return jax.sharding.reshard(x, NamedSharding(jax.typeof(x).sharding.mesh, spec))


def spec_of(x: jax.Array, without: Collection[int] = ()) -> PartitionSpec:
    """How x is split over explicit mesh axes, `without` some of its axes."""
    return PartitionSpec(*(entry for axis, entry in enumerate(entries_of(x)) if axis not in without))


def entries_of(x: jax.Array) -> list[Entry]:
    """What each axis of x is split over; None for one that is whole."""
    entries = list(jax.typeof(x).sharding.spec)
    return entries + [None] * (x.ndim - len(entries))


def spec_of_entries(*entries: Entry) -> PartitionSpec:
    """The spec of these entries, where a mesh axis that two of them name stays with the first."""
    taken: set[str] = set()
    kept: list[Entry] = []
    for entry in entries:
        names = entry if isinstance(entry, tuple) else () if entry is None else (entry,)
        free = tuple(name for name in names if name not in taken)
        taken.update(free)
        kept.append(free if len(free) > 1 else free[0] if free else None)
    return PartitionSpec(*kept)


def explicit_mesh(arguments: Any) -> Any:
    """The mesh of the first argument that has explicit axes; None if none has."""
    meshes = (jax.typeof(array).sharding.mesh for array in jax.tree.leaves(arguments))
    return next((mesh for mesh in meshes if _explicit_axes(mesh)), None)


def _explicit_axes(mesh: Any) -> tuple[str, ...]:
    types = zip(mesh.axis_names, mesh.axis_types, strict=True)
    return tuple(name for name, axis_type in types if axis_type == AxisType.Explicit)
