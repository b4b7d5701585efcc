"""Checks of arguments: at trace time, with a message that names the argument and shows its shape or value.

Arrays are passed on as they came wherever possible: an eager copy (`jnp.asarray` of a tracer) would become a second
buffer that the backward pass keeps.
"""

import math
import numbers
import operator
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

Axes = int | Sequence[int]
AxisName = Any  # one hashable name of a mapped axis, or a tuple of them


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


# --- axes ------------------------------------------------------------------------------------------------


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


def channel_axis(x: jax.Array, feature_axis: Any) -> int:
    """The channels' axis of an array whose axis 0 is the batch."""
    axis = canonical_axis("feature_axis", feature_axis, x.ndim)
    if axis == 0:
        raise ValueError(f"feature_axis must not be 0, the batch's axis, got {feature_axis} for x of shape {x.shape}")
    return axis


# --- labels ----------------------------------------------------------------------------------------------


def as_labels(labels: ArrayLike, shape: tuple[int, ...], axis: int, of: str) -> jax.Array:
    """Integer labels, one for each row of the argument called `of`."""
    array = as_array("labels", labels)
    if not jnp.issubdtype(array.dtype, jnp.integer):
        raise TypeError(f"labels must be integers, got {array.dtype} of shape {array.shape}")
    rows = shape[:axis] + shape[axis + 1 :]
    if array.shape != rows:
        raise ValueError(
            f"labels must have shape {rows} ({of} of shape {shape} without axis {axis}), got {array.shape}"
        )
    return array


def as_class_weights(class_weights: ArrayLike | None, classes: int) -> jax.Array | None:
    """Optional weights, one for each class."""
    return as_parameter("class_weights", class_weights, (classes,), "one for each class")


def static_softcap(logit_softcap: Any) -> float | None:
    """An optional soft cap, positive and finite."""
    cap = None if logit_softcap is None else static_float("logit_softcap", logit_softcap, 0.0)
    if cap is not None and (cap == 0 or cap == math.inf):
        raise ValueError(f"logit_softcap must be positive and finite, got {logit_softcap}")
    return cap
