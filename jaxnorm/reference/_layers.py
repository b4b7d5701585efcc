"""Dense layers and convolutions."""

import jax.numpy as jnp
from jax import lax

from jaxnorm import _conv_general_dilated, convolution, dense
from jaxnorm.reference._arrays import compute, features_view
from jaxnorm.reference._meshes import split_like


@split_like(dense.affine)
def affine(x, kernel, bias=None, *, num_feature_axes=1, precision=None):
    dtype = jnp.asarray(x).dtype
    x, kernel, bias = compute(x, kernel, bias)
    flat = x.reshape(*x.shape[: x.ndim - num_feature_axes], kernel.shape[0])
    y = jnp.matmul(flat, kernel, precision=precision)
    return (y if bias is None else y + jnp.broadcast_to(bias, y.shape)).astype(dtype)


@split_like(dense.relu)
def relu(x):
    x = jnp.asarray(x)
    return jnp.where(x <= 0, 0, x)


@split_like(dense.affine_relu)
def affine_relu(x, kernel, bias=None, *, num_feature_axes=1, precision=None):
    return relu(affine(x, kernel, bias, num_feature_axes=num_feature_axes, precision=precision))


def _biased(y, bias, channel_axis, dtype):
    return (y if bias is None else y + jnp.broadcast_to(features_view(bias, (channel_axis,), y.ndim), y.shape)).astype(
        dtype
    )


def _conv_arguments(x, kernel, bias, dimension_numbers, padding, dilation, preferred_element_type):
    """The arrays in the compute dtype, and the static arguments spelled out.

    An explicit padding, and the dilation with it, is applied to x here: XLA's CPU backend of jax 0.10 reads past the
    array in float32 if a convolution's low padding is negative, as autodiff's is too for one longer than the window.
    """
    dtype, space = preferred_element_type or jnp.asarray(x).dtype, jnp.ndim(x) - 2
    axes = "HWD"[:space]
    names = dimension_numbers or (f"N{axes}C", f"{axes}IO", f"N{axes}C")
    dilation = (dilation,) * space if isinstance(dilation, int) else dilation
    x, kernel, bias = compute(x, kernel, bias)
    if not isinstance(padding, str):
        padding = (padding,) * space if isinstance(padding, int) else padding
        ends = {"N": (0, 0, 0), "C": (0, 0, 0)}
        for axis, p, f in zip((a for a in names[1] if a not in "IO"), padding, dilation, strict=True):
            ends[axis] = (*((p, p) if isinstance(p, int) else p), f - 1)
        x = lax.pad(x, jnp.zeros((), x.dtype), [ends[axis] for axis in names[0]])
        padding, dilation = [(0, 0)] * space, (1,) * space
    return x, kernel, bias, names, padding, dilation, dtype, space


@split_like(convolution.conv, gathers=True)
def conv(
    x,
    kernel,
    bias=None,
    *,
    strides=1,
    padding="SAME",
    input_dilation=1,
    kernel_dilation=1,
    feature_group_count=1,
    dimension_numbers=None,
    precision=None,
    preferred_element_type=None,
):
    x, kernel, bias, names, padding, input_dilation, dtype, space = _conv_arguments(
        x, kernel, bias, dimension_numbers, padding, input_dilation, preferred_element_type
    )
    strides, kernel_dilation = ((v,) * space if isinstance(v, int) else v for v in (strides, kernel_dilation))
    y = lax.conv_general_dilated(
        x, kernel, strides, padding, input_dilation, kernel_dilation, names, feature_group_count, precision=precision
    )
    return _biased(y, bias, names[2].index("C"), dtype)


@split_like(_conv_general_dilated.conv_general_dilated, gathers=True)
def conv_general_dilated(
    lhs,
    rhs,
    window_strides,
    padding,
    lhs_dilation=None,
    rhs_dilation=None,
    dimension_numbers=None,
    feature_group_count=1,
    batch_group_count=1,
    precision=None,
    preferred_element_type=None,
    out_sharding=None,
):
    dtype = jnp.dtype(preferred_element_type or lhs.dtype)
    if jnp.issubdtype(dtype, jnp.floating):  # others keep their dtype
        lhs, rhs = compute(lhs, rhs)
    numbers = lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
    if not isinstance(padding, str):  # as in _conv_arguments
        ends = [(0, 0, 0)] * lhs.ndim
        ones = (1,) * len(padding)
        for axis, (low, high), f in zip(numbers.lhs_spec[2:], padding, lhs_dilation or ones, strict=True):
            ends[axis] = (low, high, f - 1)
        lhs = lax.pad(lhs, jnp.zeros((), lhs.dtype), ends)
        padding, lhs_dilation = ((0, 0),) * len(ones), ones
    y = lax.conv_general_dilated(
        lhs, rhs, window_strides, padding, lhs_dilation, rhs_dilation, numbers, feature_group_count, batch_group_count,
        precision, out_sharding=out_sharding,
    )  # fmt: skip
    return y.astype(dtype)


@split_like(convolution.conv_transpose, gathers=True)
def conv_transpose(
    x,
    kernel,
    bias=None,
    *,
    strides=1,
    padding="SAME",
    kernel_dilation=1,
    dimension_numbers=None,
    transpose_kernel=False,
    precision=None,
    preferred_element_type=None,
):
    x, kernel, bias, names, padding, strides, dtype, space = _conv_arguments(
        x, kernel, bias, dimension_numbers, padding, strides, preferred_element_type
    )
    kernel_dilation = (kernel_dilation,) * space if isinstance(kernel_dilation, int) else kernel_dilation
    y = lax.conv_transpose(x, kernel, strides, padding, kernel_dilation, names, transpose_kernel, precision)
    return _biased(y, bias, names[2].index("C"), dtype)
