"""flax's layers computed by these rules: linen's and nnx's have the same options under the same names.

Each function takes the layer, what gives its variables (`parameter`, `statistics`, `update`, `chosen`), and the
arguments of the layer's call. It raises where the layer has no equal here, and changes nothing before.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import lax

from jaxnorm._flax.convolution import conv, conv_transpose
from jaxnorm._flax.dense import dense, dense_general, einsum
from jaxnorm._flax.norms import batch_norm, group_norm, instance_norm, layer_norm, rms_norm
from jaxnorm._flax.options import axes_of, window_of

__all__ = [
    "batch_norm",
    "conv",
    "conv_transpose",
    "dense",
    "dense_general",
    "einsum",
    "group_norm",
    "instance_norm",
    "layer_norm",
    "rms_norm",
    "without_equal",
]

# What an option must be (or None, or absent) for a layer to have an equal here.
PLAIN = {
    "dot_general": lax.dot_general,
    "dot_general_cls": None,
    "einsum_op": jnp.einsum,
    "conv_general_dilated": lax.conv_general_dilated,
    "conv_general_dilated_cls": None,
    "axis_index_groups": None,
}


def without_equal(compute: Callable[..., Any], layer: Any, promote_dtype: Any) -> str | None:
    """Which option of a layer has no equal here; None if all have."""
    for name, plain in {**PLAIN, "promote_dtype": promote_dtype}.items():
        if getattr(layer, name, None) not in (None, plain):
            return f"{name} is given"
    if compute in (dense, dense_general, einsum) and getattr(layer, "preferred_element_type", None) is not None:
        return "preferred_element_type is given"
    if compute is dense_general and (getattr(layer, "batch_dims", ()) or getattr(layer, "batch_axis", ())):
        return "batch axes"
    if compute is conv_transpose and layer.padding == "CIRCULAR":
        return "padding is 'CIRCULAR'"
    if compute in (conv, conv_transpose) and not 1 <= len(window_of(layer)) <= 3:
        return f"{len(window_of(layer))} spatial axes"
    if compute is batch_norm and len(axes_of(layer.axis)) != 1:
        return f"axis is {layer.axis}"
    if compute is batch_norm and not (isinstance(layer.momentum, float | int) and 0 <= layer.momentum <= 1):
        return f"momentum is {layer.momentum}"
    return None
