"""What every twin does to its arrays first."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp


def compute(*arrays: Any) -> tuple[Any, ...]:
    """The arrays (or None) as JAX arrays in the compute dtype."""
    arrays = tuple(None if a is None else jnp.asarray(a) for a in arrays)
    dtype = jnp.float64 if any(a is not None and a.dtype == jnp.float64 for a in arrays) else jnp.float32
    return tuple(None if a is None else a.astype(dtype) for a in arrays)


def features_view(parameter: Any, axes: Sequence[int], ndim: int) -> Any:
    """A parameter of the shape of x over `axes`, shaped to broadcast."""
    if parameter is None:
        return None
    parameter = jnp.asarray(parameter)
    sizes = dict(zip(axes, parameter.shape, strict=True))
    return parameter.reshape([sizes.get(a, 1) for a in range(ndim)])
