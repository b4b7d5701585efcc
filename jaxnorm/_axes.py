"""Axes, arguments and cotangents: what every rule file needs before and after its equations.

Before: arguments are checked at trace time, and the message names the argument and shows its shape. Arrays are passed
on as they came wherever possible: an eager copy (a same-dtype cast, `jnp.asarray` of a tracer) would become a second
buffer that the backward pass keeps.

After: the transpose of broadcasting. A parameter that was broadcast, cast or replicated over devices in the forward
pass receives the sum over what it was spread to, in its own dtype and shape (`cotangent_for`).
"""

import functools
import math
import numbers
import operator
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from jaxnorm._xla import apart

Axes = int | Sequence[int]
AxisName = Any  # one hashable name of a mapped axis, or a tuple of them


# --- arguments ------------------------------------------------------------------------------------------------------


def as_array(name: str, value: ArrayLike) -> jax.Array:
    """`value` as a JAX array, untouched if it is one already; a TypeError names the argument otherwise."""
    if isinstance(value, jax.Array):
        return value
    if isinstance(value, np.ndarray | np.generic | numbers.Number):
        return jnp.asarray(value)
    if hasattr(value, "__jax_array__"):
        return jnp.asarray(value)
    raise TypeError(f"{name} must be an array, got {type(value).__name__}: {value!r:.80}")


def as_float_array(name: str, value: ArrayLike) -> jax.Array:
    """`value` as a real floating-point array."""
    array = as_array(name, value)
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise TypeError(f"{name} must be a floating-point array, got {array.dtype} of shape {array.shape}")
    return array


def as_parameter(name: str, value: ArrayLike | None, shape: tuple[int, ...], meaning: str) -> jax.Array | None:
    """An optional floating-point parameter of exactly this shape; `meaning` says where the shape comes from."""
    if value is None:
        return None
    array = as_float_array(name, value)
    if array.shape != shape:
        raise ValueError(f"{name} must have shape {shape} ({meaning}), got {array.shape}")
    return array


def as_mask(where: ArrayLike | None, shape: tuple[int, ...], of: str) -> jax.Array | None:
    """An optional boolean mask that broadcasts to `shape`, the shape of the argument called `of`."""
    if where is None:
        return None
    mask = as_array("where", where)
    if mask.dtype != jnp.bool_:
        raise TypeError(f"where must be boolean, got {mask.dtype} of shape {mask.shape}")
    check_broadcastable("where", mask.shape, shape, of)
    return mask


def check_broadcastable(name: str, shape: tuple[int, ...], target: tuple[int, ...], of: str) -> None:
    """Raises unless `shape` broadcasts to `target` by NumPy's rules."""
    trailing = target[len(target) - len(shape) :]
    if len(shape) > len(target) or any(s not in (1, t) for s, t in zip(shape, trailing, strict=True)):
        raise ValueError(f"{name} of shape {shape} does not broadcast to {of} of shape {target}")


def static_int(name: str, value: Any, minimum: int | None = None) -> int:
    """A static Python int (a bool is none), not below `minimum`."""
    try:
        if isinstance(value, bool | np.bool_):
            raise TypeError
        result = operator.index(value)
    except (TypeError, jax.errors.JAXTypeError):
        raise TypeError(f"{name} must be a static int, got {type(value).__name__}: {value!r:.80}") from None
    if minimum is not None and result < minimum:
        raise ValueError(f"{name} must be at least {minimum}, got {result}")
    return result


def static_float(name: str, value: Any, minimum: float = -math.inf, maximum: float = math.inf) -> float:
    """A static Python float in [minimum, maximum]; NaN is outside."""
    try:
        if isinstance(value, bool | np.bool_ | str):
            raise TypeError
        result = float(value)
    except (TypeError, ValueError, jax.errors.JAXTypeError):
        raise TypeError(f"{name} must be a static float, got {type(value).__name__}: {value!r:.80}") from None
    if not minimum <= result <= maximum:
        raise ValueError(f"{name} must lie in [{minimum:g}, {maximum:g}], got {result}")
    return result


def static_bool(name: str, value: Any) -> bool:
    """A static Python bool."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name} must be a static bool, got {type(value).__name__}: {value!r:.80}")
    return bool(value)


# --- axes and dtypes ------------------------------------------------------------------------------------------------


def canonical_axis(name: str, axis: Any, ndim: int) -> int:
    """One axis as an int in [0, ndim)."""
    index = static_int(name, axis)
    if not -ndim <= index < ndim:
        raise ValueError(f"{name} {index} is out of range for an array of {ndim} dimensions")
    return index % ndim


def canonical_axes(name: str, axes: Axes, ndim: int) -> tuple[int, ...]:
    """One axis or several as an ascending tuple without repeats."""
    given = tuple(axes) if isinstance(axes, Sequence) and not isinstance(axes, str) else (axes,)
    canonical = tuple(sorted(canonical_axis(name, axis, ndim) for axis in given))
    if len(set(canonical)) != len(canonical):
        raise ValueError(f"{name} names an axis twice: {tuple(given)} of {ndim} dimensions")
    return canonical


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


def dot(
    a: jax.Array, b: jax.Array, axes: tuple[Axes, Axes], dtype: Any, precision: lax.PrecisionLike = None
) -> jax.Array:
    """The matrix product over `axes` (of a, of b), accumulated in `dtype`, to which only unequal operands are cast."""
    left, right = ((axis,) if isinstance(axis, int) else tuple(axis) for axis in axes)

    def product(a: jax.Array, b: jax.Array) -> jax.Array:
        return lax.dot_general(a, b, ((left, right), ((), ())), precision=precision, preferred_element_type=dtype)

    def widened(a: jax.Array, b: jax.Array) -> jax.Array:
        return product(cast(a, dtype), cast(b, dtype))

    if a.dtype == b.dtype == dtype:
        return product(a, b)
    # XLA's CPU backend computes 16-bit products in float32 anyway, and fails at run time on some of them that have a
    # float32 result (a transposed one inside a scan: "DotThunk: BF16 x BF16 = F32"). Apart, since it would keep what it
    # widened in the forward pass for the backward pass: twelve layers needed 1.6 to 5 times the temporary memory.
    otherwise = product if a.dtype == b.dtype else widened
    return lax.platform_dependent(a, b, cpu=functools.partial(apart, widened), default=otherwise)


# --- cotangents -----------------------------------------------------------------------------------------------------


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
