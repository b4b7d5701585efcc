"""What flax's layers have in common: how linen and nnx keep variables, name options and choose dtypes."""

from collections.abc import Iterable
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from jaxnorm._cotangents import cast
from jaxnorm._models import NoEqual

Shape = tuple[int, ...]


class Variables(Protocol):
    """A layer's parameters and statistics, wherever its library keeps them."""

    def parameter(self, name: str, shape: Shape) -> Any:
        """A parameter of this shape; None if the layer has none of this name."""

    def statistics(self) -> tuple[Any, Any]:
        """The running mean and variance."""
        ...

    def update(self, mean: jax.Array, var: jax.Array) -> None:
        """Sets the running mean and variance."""

    def chosen(self, name: str, argument: Any) -> Any:
        """The value of an option that the constructor or the call gives."""


def axes_of(axes: Any) -> tuple[int, ...]:
    return tuple(axes) if isinstance(axes, Iterable) else (axes,)


def positive(axes: Any, ndim: int) -> tuple[int, ...]:
    """Axes counted from the front, in ascending order."""
    if not all(-ndim <= axis < ndim for axis in axes_of(axes)):
        raise NoEqual(f"axes {axes} of an array of {ndim} axes")
    return tuple(sorted({axis % ndim for axis in axes_of(axes)}))


def features_of(layer: Any) -> tuple[int, ...]:
    """The output features: `features` in linen, `out_features` in nnx."""
    return axes_of(layer.features if hasattr(layer, "features") else layer.out_features)


def window_of(layer: Any) -> tuple[int, ...]:
    return axes_of(layer.kernel_size)


def dtype_of(layer: Any, *arrays: Any) -> Any:
    """The dtype of the layer's result: the one that it is given, or that of its arguments."""
    dtype = layer.dtype
    if dtype is None:
        dtype = jnp.result_type(*(array for array in arrays if array is not None))
        dtype = dtype if jnp.issubdtype(dtype, jnp.inexact) else jnp.promote_types(jnp.float32, dtype)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise NoEqual(f"dtype {jnp.dtype(dtype).name}")
    return jnp.dtype(dtype)


def promoted(layer: Any, *arrays: Any) -> list[Any]:
    """The arrays in the dtype of the layer's result."""
    dtype = dtype_of(layer, *arrays)
    return [None if array is None else cast(array, dtype) for array in arrays]


def refuse(name: str, value: Any) -> None:
    if value is not None:
        raise NoEqual(f"{name} is given")
