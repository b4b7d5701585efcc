"""flax's convolutions."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from jaxnorm import convolution
from jaxnorm._cotangents import reshape
from jaxnorm._flax.options import Shape, Variables, features_of, promoted, refuse, window_of
from jaxnorm._models import as_array


def conv(layer: Any, variables: Variables, inputs: Any, out_sharding: Any = None) -> jax.Array:
    """`Conv`, with any number of batch axes."""
    refuse("out_sharding", out_sharding)
    x, window, features = as_array(inputs), window_of(layer), features_of(layer)
    kernel_shape = (*window, x.shape[-1] // layer.feature_group_count, *features)
    x, kernel, bias, batch = _convolved(layer, variables, x, kernel_shape)
    dilation = layer.kernel_dilation or 1
    dilations = (dilation,) * len(window) if isinstance(dilation, int) else tuple(dilation)
    x, padding = _padded(layer.padding, x, tuple((k - 1) * d for k, d in zip(window, dilations, strict=True)))
    y = convolution.conv(
        x,
        kernel,
        bias,
        strides=layer.strides or 1,
        padding=padding,
        input_dilation=layer.input_dilation or 1,
        kernel_dilation=dilations,
        feature_group_count=layer.feature_group_count,
        precision=layer.precision,
        preferred_element_type=_preferred(layer, bias),
    )
    return reshape(y, (*batch, *y.shape[1:]))


def conv_transpose(layer: Any, variables: Variables, inputs: Any) -> jax.Array:
    """`ConvTranspose`, with any number of batch axes, without circular padding."""
    x, window, features = as_array(inputs), window_of(layer), features_of(layer)
    channels = (x.shape[-1], *features)
    kernel_shape = (*window, *(reversed(channels) if layer.transpose_kernel else channels))
    x, kernel, bias, batch = _convolved(layer, variables, x, kernel_shape)
    y = convolution.conv_transpose(
        x,
        kernel,
        bias,
        strides=layer.strides or 1,
        padding=layer.padding,
        kernel_dilation=layer.kernel_dilation or 1,
        transpose_kernel=layer.transpose_kernel,
        precision=layer.precision,
        preferred_element_type=_preferred(layer, bias),
    )
    return reshape(y, (*batch, *y.shape[1:]))


def _convolved(layer: Any, variables: Variables, x: jax.Array, kernel_shape: Shape) -> tuple[Any, Any, Any, Shape]:
    """x with one batch axis, the kernel and the bias, in the layer's dtype, and the batch axes that x had."""
    batch = x.shape[: x.ndim - len(window_of(layer)) - 1]
    kernel, bias = variables.parameter("kernel", kernel_shape), variables.parameter("bias", features_of(layer))
    kernel = kernel if layer.mask is None else kernel * layer.mask
    x = reshape(x, (math.prod(batch), *x.shape[len(batch) :]))
    return *promoted(layer, x, kernel, bias), batch


def _padded(padding: Any, x: jax.Array, reach: Shape) -> tuple[jax.Array, Any]:
    """x after the paddings that are not zeros, and the padding that is left; `reach` is the dilated window less 1."""
    if padding in ("CIRCULAR", "REFLECT"):
        pads = [(0, 0), *((r // 2, (r + 1) // 2) for r in reach), (0, 0)]
        return jnp.pad(x, pads, mode="wrap" if padding == "CIRCULAR" else "reflect"), "VALID"
    if padding == "CAUSAL" and len(reach) == 1:
        return x, [(reach[0], 0)]
    return x, padding


def _preferred(layer: Any, bias: Any) -> Any:
    """The output's dtype where the layer names one for its products, to which the bias is added."""
    dtype = getattr(layer, "preferred_element_type", None)
    return dtype if dtype is None or bias is None else jnp.promote_types(dtype, bias.dtype)
