"""Casting, reshaping, replication, and their transposes: what a rule does to its arguments before its equations.

A parameter that was broadcast, cast or replicated over devices in the forward pass receives the sum over what it was
spread to, in its own dtype and shape (`cotangent_for`). `cast` and `reshape` leave an array alone that needs neither:
an eager copy would become a second buffer that the backward pass keeps.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


def compute_dtype(*arrays: jax.Array | None) -> Any:
    """The dtype to accumulate in: float64 if any array is float64, else float32."""
    return jnp.float64 if any(a is not None and a.dtype == jnp.float64 for a in arrays) else jnp.float32


def cast(x: jax.Array, dtype: Any) -> jax.Array:
    """`x.astype(dtype)` that never copies an array which has the dtype already."""
    return x if x.dtype == dtype else lax.convert_element_type(x, dtype)


def reshape(x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """`x.reshape(shape)` that never copies an array which has the shape already."""
    return x if x.shape == shape else lax.reshape(x, shape)


def expand_rank(shape: tuple[int, ...], ndim: int) -> tuple[int, ...]:
    """`shape` with ones in front, up to `ndim` axes: NumPy's broadcasting, spelt out for rank_promotion="raise"."""
    return (1,) * (ndim - len(shape)) + shape


def varying_axes(x: jax.Array) -> frozenset:
    """The mesh axes over which shard_map's type system (check_vma=True) knows `x` to vary; none anywhere else."""
    # The one place that knows the name: `.vma` became `.manual_axis_type.varying` in jax 0.10.
    return jax.typeof(x).manual_axis_type.varying


def varying_like(tree: Any, *others: jax.Array | None) -> Any:
    """`tree`, typed to vary wherever one of the others does, as the first carry of a scan over them must be."""
    wanted = frozenset().union(*(varying_axes(o) for o in others if o is not None))

    def vary(x: jax.Array) -> jax.Array:
        missing = tuple(sorted(wanted - varying_axes(x), key=str))
        return lax.pcast(x, missing, to="varying") if missing else x

    return jax.tree.map(vary, tree)


def written_dtype(primal: jax.Array, dtype: Any, *others: jax.Array | None) -> Any:
    """The dtype for a cotangent of `primal` of which each element is written once, computed in `dtype` from `others`.

    It is the primal's own, unless `cotangent_for` has still to sum it over devices.
    """
    spread = frozenset().union(*(varying_axes(o) for o in others if o is not None)) - varying_axes(primal)
    return dtype if spread else primal.dtype


def sum_to_shape(x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """The transpose of broadcasting `shape` to `x.shape`: sums over the axes that were added or stretched."""
    kept = expand_rank(shape, x.ndim)
    axes = tuple(i for i, (have, want) in enumerate(zip(x.shape, kept, strict=True)) if have != want)
    return reshape(jnp.sum(x, axis=axes) if axes else x, shape)


def cotangent_for(primal: jax.Array, cotangent: jax.Array, view: tuple[int, ...] | None = None) -> jax.Array:
    """`cotangent` as `primal` must receive it: summed over what `primal` was spread to, in its shape and dtype.

    `view` is the shape that `primal` was given before it was broadcast, where that was not its own.

    A parameter replicated over a mesh axis over which its cotangent varies was spread over the devices, and the sum
    over them (a psum) is due as for any broadcast. With check_vma=False nothing is known to vary and each device keeps
    its own part, as in plain autodiff.
    """
    total = reshape(sum_to_shape(cotangent, primal.shape if view is None else view), primal.shape)
    spread = tuple(sorted(varying_axes(total) - varying_axes(primal), key=str))
    return cast(lax.psum(total, spread) if spread else total, primal.dtype)
