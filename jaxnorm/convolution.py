"""Convolution and its two gradients, each a correlation again.

Forward, along one spatial axis (several axes are independent), with stride s, input dilation d, kernel dilation t, low
padding l, an input of X entries, a kernel of K and an output of G; xd is x with d - 1 zeros between its entries, of
size Xd = (X - 1) d + 1, and Kd = (K - 1) t + 1 is the extent of the dilated kernel:

    y[o] = sum_k xd[o s + k t - l] w[k]        G = floor((Xd + l + h - Kd) / s) + 1                                  (1)

where xd is 0 outside, channels are summed within each group, and h is the high padding.

Gradient of the input. The entry xd[p] meets w[k] in y[o] where p = o s + k t - l. With gd the cotangent g with s - 1
zeros between its entries, of size Gd = (G - 1) s + 1, and the kernel turned around, w'[k] = w[K - 1 - k],

    dxd[p] = sum_k gd[p + l - k t] w[k] = sum_k gd[p + k t - (Kd - 1 - l)] w'[k]                                     (2)

which is (1) with input gd, stride 1 (d, to take only the entries of xd that are x's), low padding Kd - 1 - l, and the
high padding Xd + l - Gd that makes Xd positions of it. Channels: w' maps the group's outputs to its inputs.

Gradient of the kernel. w[k] meets xd[o s + k t - l] in each y[o], so

    dw[k] = sum_o xd[k t + o s - l] g[o]                                                                             (3)

which is (1) with kernel g dilated by s, stride t, low padding l, and the high padding Gd + Kd - 1 - Xd - l that makes K
positions of it. The batch is what is summed: channels of x become the batch, the batch becomes the channels.

The border. Where s does not divide Xd + l + h - Kd, the last entries of the padded input meet no window. (1) never
reads them; the high paddings of (2) and (3) are then smaller than Kd - 1 - h and h by that remainder, or negative (a
crop), so that they stay right without a special case. So do negative paddings.

All operands are brought to the canonical order first, batch, space, channels and space, inputs, outputs: other orders
fall to a naive loop inside `lax.scan` on XLA's CPU backend.

References: Dumoulin and Visin 2016, "A guide to convolution arithmetic for deep learning",
https://arxiv.org/abs/1603.07285.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike, DTypeLike

from jaxnorm._axes import as_float_array, as_parameter, cast, compute_dtype, cotangent_for, static_bool, static_int

Pairs = tuple[tuple[int, int], ...]
Padding = str | int | Sequence[int | tuple[int, int]]
CANONICAL = {1: ("NHC", "HIO", "NHC"), 2: ("NHWC", "HWIO", "NHWC"), 3: ("NHWDC", "HWDIO", "NHWDC")}


@dataclasses.dataclass(frozen=True)
class Geometry:
    """The static side of a convolution, in canonical order."""

    x_order: tuple[int, ...]  # the caller's axes of x as batch, space, channels
    kernel_order: tuple[int, ...]  # the caller's axes of the kernel as space, inputs, outputs
    output_order: tuple[int, ...]  # batch, space, channels as the caller's axes of the output
    turned: bool  # the caller's kernel is turned around in space (and its order swaps inputs and outputs)
    strides: tuple[int, ...]
    padding: Pairs
    input_dilation: tuple[int, ...]
    kernel_dilation: tuple[int, ...]
    groups: int
    precision: Any
    output_dtype: Any


class Residuals(NamedTuple):
    """What is kept: the inputs themselves, in the caller's order."""

    x: jax.Array
    kernel: jax.Array
    bias: jax.Array | None  # for its dtype


def conv(
    x: ArrayLike,
    kernel: ArrayLike,
    bias: ArrayLike | None = None,
    *,
    strides: int | Sequence[int] = 1,
    padding: Padding = "SAME",
    input_dilation: int | Sequence[int] = 1,
    kernel_dilation: int | Sequence[int] = 1,
    feature_group_count: int = 1,
    dimension_numbers: tuple[str, str, str] | None = None,
    precision: lax.PrecisionLike = None,
    preferred_element_type: DTypeLike | None = None,
) -> jax.Array:
    """Convolution over 1, 2 or 3 spatial axes, as `jax.lax.conv_general_dilated`, with a bias.

    Args:
      x: floating-point array of shape `(N, *space, C_in)`; differentiable.
      kernel: float array of shape `(*window, C_in / feature_group_count, C_out)`; differentiable.
      bias: float array of shape `(C_out,)`, or None for 0; differentiable.
      strides: of the window, one for all spatial axes or one for each; static.
      padding: "SAME", "SAME_LOWER", "VALID", one int for all sides, or for each spatial axis an int or a pair
        `(low, high)`; negative paddings crop; static.
      input_dilation: `d - 1` zeros go between the entries of `x`; static.
      kernel_dilation: `d - 1` zeros go between the entries of `kernel`; static.
      feature_group_count: groups of channels that do not see each other; C_in for a depthwise convolution; static.
      dimension_numbers: three strings for the axes of `x`, `kernel` and the output, as in `jax.lax`, such as
        `("NCHW", "OIHW", "NCHW")`; None is channels last as above; static.
      precision: of the products, forward and backward, as in `jax.lax.conv_general_dilated`; static.
      preferred_element_type: the output's dtype, None for x's; static.

    Returns:
      Array of shape `(N, *out_space, C_out)`. Sums are accumulated in float32, or float64 if an argument is float64.

    Gradient:
      Equations (2) and (3) of this module. Kept for it: `x` and `kernel`.

    Raises:
      TypeError: an array, or `preferred_element_type`, is not floating-point.
      ValueError: a shape, `dimension_numbers` or an option does not fit, or string padding meets an input dilation.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxnorm as jn
      >>> image, kernel = jnp.ones((1, 3, 3, 1)), jnp.ones((3, 3, 1, 1))
      >>> print(jn.conv(image, kernel)[0, :, :, 0])
      [[4. 6. 4.]
       [6. 9. 6.]
       [4. 6. 4.]]

    References:
      Dumoulin and Visin 2016, https://arxiv.org/abs/1603.07285.
    """
    x, kernel, orders, space, window = _arrays(x, kernel, dimension_numbers, False)
    strides = _per_axis("strides", strides, len(space))
    input_dilation = _per_axis("input_dilation", input_dilation, len(space))
    kernel_dilation = _per_axis("kernel_dilation", kernel_dilation, len(space))
    if isinstance(padding, str):
        if set(input_dilation) - {1}:
            raise ValueError(f"padding must be explicit with input_dilation {input_dilation}, got {padding!r}")
        if padding.upper() not in ("SAME", "SAME_LOWER", "VALID"):
            raise ValueError(f'padding must be "SAME", "SAME_LOWER", "VALID", ints or pairs, got {padding!r}')
        pads = tuple(lax.padtype_to_pads(space, _dilated(window, kernel_dilation), strides, padding))
    else:
        pads = _explicit_padding(padding, len(space))
    groups = static_int("feature_group_count", feature_group_count, minimum=1)
    dtype = _output_dtype(x, preferred_element_type)
    geometry = Geometry(*orders, False, strides, pads, input_dilation, kernel_dilation, groups, precision, dtype)
    return _checked_conv(geometry, x, kernel, bias)


def conv_transpose(
    x: ArrayLike,
    kernel: ArrayLike,
    bias: ArrayLike | None = None,
    *,
    strides: int | Sequence[int] = 1,
    padding: Padding = "SAME",
    kernel_dilation: int | Sequence[int] = 1,
    dimension_numbers: tuple[str, str, str] | None = None,
    transpose_kernel: bool = False,
    precision: lax.PrecisionLike = None,
    preferred_element_type: DTypeLike | None = None,
) -> jax.Array:
    """Transposed convolution, as `jax.lax.conv_transpose`, with a bias: a convolution of the dilated input.

    Args:
      x: floating-point array of shape `(N, *space, C_in)`; differentiable.
      kernel: float array of shape `(*window, C_in, C_out)`; differentiable.
      bias: float array of shape `(C_out,)`, or None for 0; differentiable.
      strides: by how much the output is larger: the dilation of `x`, for all spatial axes or for each; static.
      padding: "SAME" (the output is `strides` times the input), "VALID", or ints and pairs that pad the dilated input
        (lax's meaning, not PyTorch's); static.
      kernel_dilation: `d - 1` zeros go between the entries of `kernel`; static.
      dimension_numbers: three strings as in `jax.lax`, None for channels last; static.
      transpose_kernel: turn the kernel around and swap its input and output channels first, so that the result is the
        gradient of a convolution with this kernel, of shape `(*window, C_out, C_in)`; static.
      precision: of the products, forward and backward; static.
      preferred_element_type: the output's dtype, None for x's; static.

    Returns:
      Array of shape `(N, *out_space, C_out)`. Sums are accumulated in float32, or float64 if an argument is float64.

    Gradient:
      Equations (2) and (3) of this module. Kept for it: `x` and `kernel`.

    Raises:
      TypeError: an array, or `preferred_element_type`, is not floating-point.
      ValueError: a shape, `dimension_numbers` or an option does not fit.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxnorm as jn
      >>> x, kernel = jnp.array([1.0, 2.0]).reshape(1, 2, 1), jnp.ones((2, 1, 1))
      >>> print(jn.conv_transpose(x, kernel, strides=2)[0, :, 0])
      [1. 1. 2. 2.]

    References:
      Dumoulin and Visin 2016, https://arxiv.org/abs/1603.07285, chapter 4.
    """
    turned = static_bool("transpose_kernel", transpose_kernel)
    x, kernel, orders, space, window = _arrays(x, kernel, dimension_numbers, turned)
    strides = _per_axis("strides", strides, len(space))
    kernel_dilation = _per_axis("kernel_dilation", kernel_dilation, len(space))
    if isinstance(padding, str):
        if padding.upper() not in ("SAME", "VALID"):
            raise ValueError(f'padding must be "SAME", "VALID", ints or pairs, got {padding!r}')
        extents = zip(_dilated(window, kernel_dilation), strides, strict=True)
        pads = tuple(_transpose_padding(k, s, padding.upper() == "SAME") for k, s in extents)
    else:
        pads = _explicit_padding(padding, len(space))
    ones, dtype = (1,) * len(space), _output_dtype(x, preferred_element_type)
    geometry = Geometry(*orders, turned, ones, pads, strides, kernel_dilation, 1, precision, dtype)
    return _checked_conv(geometry, x, kernel, bias)


# --- the rule -------------------------------------------------------------------------------------------------------


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _conv(geometry, x, kernel, bias):
    return _conv_fwd(geometry, x, kernel, bias)[0]


def _conv_fwd(geometry, x, kernel, bias):
    dtype = compute_dtype(x, kernel, bias)
    y = conv_forward(geometry, *_canonical(geometry, x, kernel), dtype)
    if bias is not None:
        y = y + lax.broadcast_in_dim(cast(bias, dtype), y.shape, (y.ndim - 1,))
    return _transposed(cast(y, geometry.output_dtype), geometry.output_order), Residuals(x, kernel, bias)


def _conv_bwd(geometry, residuals, g):
    x, kernel, bias = residuals
    dtype = compute_dtype(x, kernel, bias)
    g = _transposed(g, _inverse(geometry.output_order))
    canonical_x, canonical_kernel = _canonical(geometry, x, kernel)
    dx = conv_dx(geometry, g, canonical_kernel, canonical_x.shape, dtype)
    dkernel = conv_dkernel(geometry, canonical_x, g, canonical_kernel.shape, dtype)
    dx = _transposed(dx, _inverse(geometry.x_order))
    dkernel = _transposed(_turned(geometry, dkernel), _inverse(geometry.kernel_order))
    dbias = None if bias is None else cotangent_for(bias, cast(g, dtype))
    return cotangent_for(x, dx), cotangent_for(kernel, dkernel), dbias


_conv.defvjp(_conv_fwd, _conv_bwd)


def conv_forward(geometry: Geometry, x: jax.Array, kernel: jax.Array, dtype: Any) -> jax.Array:
    """Equation (1) on canonical operands: `(N, *space, C_in)` and `(*window, C_in / groups, C_out)`."""
    return _correlate(
        x,
        kernel,
        geometry.strides,
        geometry.padding,
        geometry.input_dilation,
        geometry.kernel_dilation,
        geometry.groups,
        geometry.precision,
        dtype,
    )


def conv_dx(
    geometry: Geometry, g: jax.Array, kernel: jax.Array, x_shape: tuple[int, ...], dtype: Any
) -> jax.Array:
    """Equation (2): the dilated cotangent correlated with the kernel turned around."""
    if 0 in x_shape or 0 in g.shape or 0 in kernel.shape:
        return jnp.zeros(x_shape, dtype)
    groups, window = geometry.groups, kernel.shape[:-2]
    x_extent = _dilated(x_shape[1:-1], geometry.input_dilation)
    g_extent = _dilated(g.shape[1:-1], geometry.strides)
    window_extent = _dilated(window, geometry.kernel_dilation)
    pads = tuple(
        (k - 1 - low, xd + low - gd)
        for k, xd, gd, (low, _) in zip(window_extent, x_extent, g_extent, geometry.padding, strict=True)
    )
    inputs, outputs = kernel.shape[-2], kernel.shape[-1] // groups
    turned = lax.rev(kernel, tuple(range(len(window)))).reshape(*window, inputs, groups, outputs)
    turned = jnp.swapaxes(turned, -3, -1).reshape(*window, outputs, groups * inputs)
    return _correlate(
        g,
        turned,
        geometry.input_dilation,
        pads,
        geometry.strides,
        geometry.kernel_dilation,
        groups,
        geometry.precision,
        dtype,
    )


def conv_dkernel(
    geometry: Geometry, x: jax.Array, g: jax.Array, kernel_shape: tuple[int, ...], dtype: Any
) -> jax.Array:
    """Equation (3): the input correlated with the dilated cotangent, the batch as the channels that are summed."""
    if 0 in x.shape or 0 in g.shape or 0 in kernel_shape:
        return jnp.zeros(kernel_shape, dtype)
    groups, space, batch = geometry.groups, x.shape[1:-1], x.shape[0]
    x_extent = _dilated(space, geometry.input_dilation)
    g_extent = _dilated(g.shape[1:-1], geometry.strides)
    window_extent = _dilated(kernel_shape[:-2], geometry.kernel_dilation)
    pads = tuple(
        (low, gd + k - 1 - xd - low)
        for k, xd, gd, (low, _) in zip(window_extent, x_extent, g_extent, geometry.padding, strict=True)
    )
    # Each group's channels become the batch; the groups' batches stand side by side as groups of channels.
    x = x.reshape(batch, *space, groups, kernel_shape[-2])
    x = jnp.swapaxes(x, 0, -1).reshape(kernel_shape[-2], *space, groups * batch)
    g = jnp.moveaxis(g, 0, -2)
    dkernel = _correlate(
        x,
        g,
        geometry.kernel_dilation,
        pads,
        geometry.input_dilation,
        geometry.strides,
        groups,
        geometry.precision,
        dtype,
    )
    return jnp.moveaxis(dkernel, 0, -2)


def _correlate(
    x: jax.Array,
    kernel: jax.Array,
    strides: tuple[int, ...],
    padding: Pairs,
    input_dilation: tuple[int, ...],
    kernel_dilation: tuple[int, ...],
    groups: int,
    precision: Any,
    dtype: Any,
) -> jax.Array:
    """The one call of lax: canonical operands, accumulated in `dtype`, to which only unequal operands are cast."""
    if x.dtype != kernel.dtype:
        x, kernel = cast(x, dtype), cast(kernel, dtype)
    return lax.conv_general_dilated(
        x,
        kernel,
        strides,
        padding,
        input_dilation,
        kernel_dilation,
        CANONICAL[len(strides)],
        groups,
        precision=precision,
        preferred_element_type=dtype,
    )


# --- orders and checks ----------------------------------------------------------------------------------------------


def _canonical(geometry: Geometry, x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, jax.Array]:
    kernel = _transposed(kernel, geometry.kernel_order)
    return _transposed(x, geometry.x_order), _turned(geometry, kernel)


def _turned(geometry: Geometry, kernel: jax.Array) -> jax.Array:
    """A canonical kernel turned around if the geometry says so; its own inverse and transpose."""
    return lax.rev(kernel, tuple(range(kernel.ndim - 2))) if geometry.turned else kernel


def _transposed(x: jax.Array, order: tuple[int, ...]) -> jax.Array:
    """`x.transpose(order)` that never copies an array which is in order already."""
    return x if order == tuple(range(x.ndim)) else lax.transpose(x, order)


def _inverse(order: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(int(i) for i in np.argsort(order))


def _dilated(sizes: Sequence[int], dilation: Sequence[int]) -> tuple[int, ...]:
    """Sizes with `dilation - 1` entries between their own."""
    return tuple(max((size - 1) * d + 1, 0) for size, d in zip(sizes, dilation, strict=True))


def _transpose_padding(extent: int, stride: int, same: bool) -> tuple[int, int]:
    """The padding of the dilated input with which lax.conv_transpose's "SAME" and "VALID" are plain convolutions."""
    if not same:
        return extent - 1, stride - 1 + max(extent - stride, 0)
    total = extent + stride - 2
    low = extent - 1 if stride > extent - 1 else math.ceil(total / 2)
    return low, total - low


def _arrays(x, kernel, dimension_numbers, swapped: bool):
    """The arrays, the orders of `Geometry`, the spatial sizes of x and of the kernel."""
    x, kernel = as_float_array("x", x), as_float_array("kernel", kernel)
    if x.ndim not in (3, 4, 5):
        raise ValueError(f"x must have 1, 2 or 3 spatial axes besides batch and channels, got shape {x.shape}")
    if kernel.ndim != x.ndim:
        raise ValueError(f"kernel must have as many axes as x of shape {x.shape}, got {kernel.shape}")
    names = CANONICAL[x.ndim - 2] if dimension_numbers is None else dimension_numbers
    if not (isinstance(names, tuple | list) and len(names) == 3 and all(isinstance(n, str) for n in names)):
        raise ValueError(f"dimension_numbers must be three strings, got {dimension_numbers!r}")
    try:
        numbers = lax.conv_dimension_numbers(x.shape, kernel.shape, tuple(names))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"dimension_numbers {dimension_numbers!r} do not fit x {x.shape} and kernel {kernel.shape}: {error}"
        ) from None
    (batch, channels, *space), (outputs, inputs, *window) = numbers.lhs_spec, numbers.rhs_spec
    out_batch, out_channels, *out_space = numbers.out_spec
    if swapped:
        inputs, outputs = outputs, inputs
    orders = (
        (batch, *space, channels),
        (*window, inputs, outputs),
        _inverse((out_batch, *out_space, out_channels)),
    )
    return x, kernel, orders, [x.shape[a] for a in space], [kernel.shape[a] for a in window]


def _checked_conv(geometry: Geometry, x: jax.Array, kernel: jax.Array, bias: ArrayLike | None) -> jax.Array:
    """Checks the channels against each other, and applies the rule."""
    channels, groups = x.shape[geometry.x_order[-1]], geometry.groups
    inputs, outputs = (kernel.shape[a] for a in geometry.kernel_order[-2:])
    if channels % groups or outputs % groups:
        raise ValueError(
            f"feature_group_count must divide the {channels} channels of x of shape {x.shape} and the {outputs} "
            f"outputs of kernel of shape {kernel.shape}, got {groups}"
        )
    if inputs != channels // groups:
        raise ValueError(
            f"kernel must have {channels // groups} input channels (x of shape {x.shape} in {groups} groups), "
            f"got {inputs} in shape {kernel.shape}"
        )
    bias = as_parameter("bias", bias, (outputs,), f"the outputs of kernel of shape {kernel.shape}")
    return _conv(geometry, x, kernel, bias)


def _per_axis(name: str, value: int | Sequence[int], ndim: int) -> tuple[int, ...]:
    """One positive int for each spatial axis."""
    values = tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else (value,) * ndim
    if len(values) != ndim:
        raise ValueError(f"{name} must be an int or {ndim} ints, one for each spatial axis, got {value!r}")
    return tuple(static_int(name, v, minimum=1) for v in values)


def _explicit_padding(padding: int | Sequence[int | tuple[int, int]], ndim: int) -> Pairs:
    """A (low, high) pair for each spatial axis."""
    if not isinstance(padding, Sequence):
        padding = (padding,) * ndim
    if len(padding) != ndim:
        raise ValueError(f"padding must have an int or a pair for each of {ndim} spatial axes, got {padding!r}")
    pairs = [tuple(p) if isinstance(p, Sequence) else (p, p) for p in padding]
    if any(len(pair) != 2 for pair in pairs):
        raise ValueError(f"padding must have an int or a pair for each of {ndim} spatial axes, got {padding!r}")
    return tuple((static_int("padding", low), static_int("padding", high)) for low, high in pairs)


def _output_dtype(x: jax.Array, preferred_element_type: DTypeLike | None) -> Any:
    if preferred_element_type is None:
        return x.dtype
    if not jnp.issubdtype(preferred_element_type, jnp.floating):
        raise TypeError(f"preferred_element_type must be a floating-point dtype, got {preferred_element_type}")
    return jnp.dtype(preferred_element_type)
