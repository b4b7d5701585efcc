"""Convolution and its transpose: one linear rule, whatever the strides, padding, dilations, groups and axis order.

Forward, for one spatial axis (several go alike, each by itself). An array of n entries dilated by f, that is with f - 1
zeros between neighbours, has length D(n, f) = (n - 1) f + 1, or 0 for n = 0. The input x has S entries and dilation e,
the kernel w has K entries and dilation d, the stride is s, the padding (l, h); x_e is x dilated by e, and 0 outside:

    y[n, t, o] = sum over k, c of x_e[n, s t + d k - l, c] w[k, c, o] + b[o]        for t = 0 .. T - 1               (1)
    T = floor((D(S, e) + l + h - D(K, d)) / s) + 1, or 0 if that is negative                                         (2)

With groups, y's channels o of one group see that group's channels c of x alone. A negative l or h crops x_e.

Backward, for the incoming cotangent g, with g_s the cotangent dilated by s, 0 outside:

    dx[n, i, c] = sum over k, o of g_s[n, e i + d k - (D(K, d) - 1 - l), o] w[K - 1 - k, c, o]                       (3)
    dw[k, c, o] = sum over t, n of x_e[n, d k + s t - l, c] g[n, t, o]        db[o] = sum over n, t of g[n, t, o]    (4)

Derivation. In (1) the entry x[i] = x_e[e i] meets g[t] times w[k] where s t + d k - l = e i, so that dx[i] is the sum
over k of g_s[e i + l - d k] w[k]; counting k from the other end gives (3), which has the form of (1): a convolution of
g (dilated by s) with the flipped kernel (in and out swapped within each group), of stride e and low padding
D(K, d) - 1 - l. In the same way w[k] meets g[t] times x_e[s t + d k - l], which is (4): a convolution of x with g as
the kernel, dilation and stride exchanged, the batch as the channels summed over, and the low padding l as it was.

The high paddings follow from (2), as (3) must have S outputs and (4) K of them. With u = D(S, e) + l - D(T, s),

    high padding of (3) = u        high padding of (4) = D(K, d) - 1 - u                                             (5)

The border. Let r be the remainder of the division in (2): the rows at the end that no window reaches when the stride
does not divide. For T > 0, D(T, s) = D(S, e) + l + h - D(K, d) + 1 - r, hence u = D(K, d) - 1 - h + r: (3) pads both
ends alike, and r more zeros at the end are the gradient of the rows that were never read; (4) has h - r and crops them.
Nothing here asks for l, h or the new paddings to be positive: a negative one crops zeros or unread rows.

The transposed convolution is (1) with e for its stride and s = 1, and so are its gradients.

References: Dumoulin and Visin 2016, "A guide to convolution arithmetic for deep learning",
https://arxiv.org/abs/1603.07285 (chapter 4 is (3) and its paddings).
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike, DTypeLike

from jaxnorm._arguments import as_float_array, as_parameter, static_bool, static_int
from jaxnorm._cotangents import cast, compute_dtype, cotangent_for
from jaxnorm._lower.convolution.choice import convolve, correlate
from jaxnorm._lower.convolution.geometry import (
    Geometry,
    Order,
    Pairs,
    channels_last,
    dilated,
    flipped,
    from_canonical,
    to_canonical,
    transposed_kernel,
)

Padding = str | int | Sequence[int | Sequence[int]]


@dataclasses.dataclass(frozen=True)
class Layout:
    """The caller's axis orders: canonical axis i (NHWC, HWIO, NHWC and kin) is the caller's axis `x[i]`, and so on."""

    x: Order
    kernel: Order  # in and out exchanged if the kernel is a transposed one
    y: Order
    flip: bool  # whether the kernel's spatial axes are reversed too


@dataclasses.dataclass(frozen=True)
class Convolution:
    """The static side of one call."""

    geometry: Geometry
    output_dtype: Any
    layout: Layout


class Residuals(NamedTuple):
    """What the backward pass keeps: the inputs as they came, in the caller's axis order."""

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
    dimension_numbers: Sequence[str] | None = None,
    precision: lax.PrecisionLike = None,
    preferred_element_type: DTypeLike | None = None,
) -> jax.Array:
    """Convolution: `y[n, t, o] = sum over k, c of x[n, strides * t + k - low, c] * kernel[k, c, o] + bias[o]`.

    Args:
      x: float array of shape `(N, *spatial, C_in)` with 1 to 3 spatial axes; differentiable.
      kernel: float array of shape `(*window, C_in / feature_group_count, C_out)`; differentiable.
      bias: float array of shape `(C_out,)`, or None for 0; differentiable.
      strides: step of the window, an int or one per spatial axis; static.
      padding: `"SAME"`, `"SAME_LOWER"`, `"VALID"`, an int, or one int or `(low, high)` pair per spatial axis; a
        negative one crops; static.
      input_dilation: `input_dilation - 1` zeros are put between neighbours of x; as `strides`; static.
      kernel_dilation: the same for the kernel ("atrous"); static.
      feature_group_count: number of groups of consecutive channels, each convolved by itself; static.
      dimension_numbers: axis orders of x, kernel and output such as `("NCHW", "OIHW", "NCHW")`, as in
        `jax.lax.conv_general_dilated`; None is channels last, as in the shapes above; static.
      precision: of the products, forward and backward, as in `jax.lax.conv_general_dilated`; static.
      preferred_element_type: floating dtype of the output; None is x's dtype; static.

    Returns:
      Array of shape `(N, *output, C_out)`. Products are accumulated in float32, or float64 if an argument or the output
      is float64; arguments of different dtypes are multiplied in that dtype.

    Gradient:
      Equations (3) to (5) of this module, accumulated likewise. Kept for it: `x` and `kernel`.

    Raises:
      TypeError: an array is not floating-point, or `preferred_element_type` is no floating dtype.
      ValueError: ranks, channels or groups do not fit, a kernel has no entry, `padding` or `dimension_numbers` are none
        of the above, or `padding` is a string although `input_dilation` is not 1.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxnorm as jn
      >>> y = jn.conv(jnp.arange(5.0).reshape(1, 5, 1), jnp.ones((3, 1, 1)), strides=2)
      >>> print(y[0, :, 0])
      [1. 6. 7.]

    References:
      Dumoulin and Visin 2016, "A guide to convolution arithmetic for deep learning", https://arxiv.org/abs/1603.07285.
    """
    return _apply(
        False, x, kernel, bias, strides, padding, input_dilation, kernel_dilation, feature_group_count,
        dimension_numbers, False, precision, preferred_element_type,
    )  # fmt: skip


def conv_transpose(
    x: ArrayLike,
    kernel: ArrayLike,
    bias: ArrayLike | None = None,
    *,
    strides: int | Sequence[int] = 1,
    padding: Padding = "SAME",
    kernel_dilation: int | Sequence[int] = 1,
    dimension_numbers: Sequence[str] | None = None,
    transpose_kernel: bool = False,
    precision: lax.PrecisionLike = None,
    preferred_element_type: DTypeLike | None = None,
) -> jax.Array:
    """Transposed (fractionally strided) convolution: `conv(x, kernel, bias, input_dilation=strides, strides=1)`.

    Args:
      x: float array of shape `(N, *spatial, C_in)` with 1 to 3 spatial axes; differentiable.
      kernel: float array of shape `(*window, C_in, C_out)`; differentiable.
      bias: float array of shape `(C_out,)`, or None for 0; differentiable.
      strides: `strides - 1` zeros are put between neighbours of x; an int or one per spatial axis; static.
      padding: of the dilated x, an int, or one int or `(low, high)` pair per spatial axis (lax's meaning, not
        PyTorch's); or `"SAME"` (the output is `strides` times as long) or `"VALID"`, which undo the convolution of that
        padding; static.
      kernel_dilation: `kernel_dilation - 1` zeros are put between neighbours of the kernel; as `strides`; static.
      dimension_numbers: axis orders as in `conv`; None is channels last; static.
      transpose_kernel: True takes a kernel of shape `(*window, C_out, C_in)` and flips its spatial axes, so that the
        result is the input gradient of a convolution with that kernel; static.
      precision: of the products, forward and backward, as in `jax.lax.conv_transpose`; static.
      preferred_element_type: floating dtype of the output; None is x's dtype; static.

    Returns:
      Array of shape `(N, *output, C_out)`, accumulated as in `conv`.

    Gradient:
      Equations (3) to (5) of this module. Kept for it: `x` and `kernel`.

    Raises:
      TypeError: an array is not floating-point, or `preferred_element_type` is no floating dtype.
      ValueError: ranks or channels do not fit, a kernel has no entry, or `padding` or `dimension_numbers` are none of
        the above.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxnorm as jn
      >>> y = jn.conv_transpose(jnp.array([[[1.0], [2.0]]]), jnp.ones((2, 1, 1)), strides=2)
      >>> print(y[0, :, 0])
      [1. 1. 2. 2.]

    References:
      Dumoulin and Visin 2016, "A guide to convolution arithmetic for deep learning", https://arxiv.org/abs/1603.07285.
    """
    return _apply(
        True, x, kernel, bias, 1, padding, strides, kernel_dilation, 1,
        dimension_numbers, transpose_kernel, precision, preferred_element_type,
    )  # fmt: skip


# --- the core -------------------------------------------------------------------------------------------------------


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _convolution(static, x, kernel, bias):
    return _convolution_fwd(static, x, kernel, bias)[0]


def _convolution_fwd(static, x, kernel, bias):
    layout = static.layout
    y = convolve(static.geometry, x, _canonical_kernel(kernel, layout), layout.x, layout.y)  # (1)
    if bias is not None:
        y = y + lax.broadcast_in_dim(cast(bias, y.dtype), y.shape, layout.y[-1:])
    return cast(y, static.output_dtype), Residuals(x, kernel, bias)


def _convolution_bwd(static, residuals, g):
    x, kernel, bias = residuals
    geometry, layout = static.geometry, static.layout
    swapped = transposed_kernel(_canonical_kernel(kernel, layout), geometry.groups)
    dx = convolve(geometry.transposed, g, swapped, layout.y, layout.x)  # (3) and (5)
    dkernel = correlate(geometry, x, g, layout.x, layout.y)  # (4)
    dbias = None
    if bias is not None:
        dbias = cotangent_for(bias, jnp.sum(cast(g, geometry.dtype), axis=layout.y[:-1]))  # (4)
    return (
        cotangent_for(x, dx),
        cotangent_for(kernel, from_canonical(flipped(dkernel) if layout.flip else dkernel, layout.kernel)),
        dbias,
    )


_convolution.defvjp(_convolution_fwd, _convolution_bwd)


# --- axis orders and sizes ------------------------------------------------------------------------------------------


def _canonical_kernel(kernel: jax.Array, layout: Layout) -> jax.Array:
    canonical = to_canonical(kernel, layout.kernel)
    return flipped(canonical) if layout.flip else canonical


def _spatial(array: jax.Array, axes: Sequence[int]) -> tuple[int, ...]:
    return tuple(array.shape[axis] for axis in axes)


# --- arguments ------------------------------------------------------------------------------------------------------


def _layout(x: jax.Array, kernel: jax.Array, dimension_numbers: Sequence[str] | None, transpose: bool) -> Layout:
    if x.ndim not in (3, 4, 5):
        raise ValueError(f"x must have a batch, 1 to 3 spatial axes and channels, got shape {x.shape}")
    if kernel.ndim != x.ndim:
        raise ValueError(f"kernel must have as many axes as x of shape {x.shape}, got shape {kernel.shape}")
    names = channels_last(x.ndim - 2) if dimension_numbers is None else dimension_numbers
    try:
        if not isinstance(names, tuple | list) or not all(isinstance(name, str) for name in names):
            raise TypeError("not strings")
        of_x, of_kernel, of_y = lax.conv_dimension_numbers(x.shape, kernel.shape, tuple(names))
    except TypeError as error:
        raise ValueError(
            f"dimension_numbers must be three strings like {channels_last(x.ndim - 2)} for x of shape {x.shape} and "
            f"kernel of shape {kernel.shape}, got {dimension_numbers!r}: {error}"
        ) from None
    outputs, inputs, *window = of_kernel
    channels = (outputs, inputs) if transpose else (inputs, outputs)
    return Layout(
        x=(of_x[0], *of_x[2:], of_x[1]),
        kernel=(*window, *channels),
        y=(of_y[0], *of_y[2:], of_y[1]),
        flip=transpose,
    )


def _check_channels(x: jax.Array, kernel: jax.Array, layout: Layout, groups: int) -> None:
    *window, inputs, outputs = _spatial(kernel, layout.kernel)
    channels = x.shape[layout.x[-1]]
    if channels != inputs * groups or outputs % groups:
        raise ValueError(
            f"kernel of shape {kernel.shape} has {inputs} input and {outputs} output channels, but needs "
            f"{channels} / {groups} and a multiple of {groups}: x has shape {x.shape}, feature_group_count is {groups}"
        )
    if 0 in window:
        raise ValueError(f"kernel must have at least one entry along each spatial axis, got shape {kernel.shape}")


def _per_axis(name: str, value: Any, space: int) -> tuple[int, ...]:
    """A positive int, or one per spatial axis, as a tuple."""
    if not isinstance(value, Sequence | np.ndarray) or isinstance(value, str):
        return (static_int(name, value, minimum=1),) * space
    values = tuple(static_int(name, v, minimum=1) for v in value)
    if len(values) != space:
        raise ValueError(f"{name} must be an int or {space} of them, one per spatial axis, got {value!r}")
    return values


def _pairs(padding: Any, space: int) -> Pairs:
    """Explicit padding as (low, high) pairs."""
    given = tuple(padding) if isinstance(padding, Sequence | np.ndarray) else (padding,) * space
    pads = [tuple(p) if isinstance(p, Sequence | np.ndarray) else (p, p) for p in given]
    if len(pads) != space or any(len(pair) != 2 for pair in pads):
        raise ValueError(
            f"padding must be a string, an int, or one int or (low, high) pair for each of the {space} spatial axes, "
            f"got {padding!r}"
        )
    return tuple((static_int("padding", low), static_int("padding", high)) for low, high in pads)


def _string_padding(name, transposed, sizes, reach, strides, input_dilation) -> Pairs:
    """lax's meaning of a string; `conv_transpose` undoes the convolution of that padding."""
    if transposed and name == "VALID":
        return tuple((k - 1, max(k, s) - 1) for k, s in zip(reach, input_dilation, strict=True))
    if transposed and name == "SAME":
        lows = tuple(min(k - 1, (k + s - 1) // 2) for k, s in zip(reach, input_dilation, strict=True))
        return tuple((low, k + s - 2 - low) for low, k, s in zip(lows, reach, input_dilation, strict=True))
    if transposed or name.upper() not in ("SAME", "SAME_LOWER", "VALID"):
        names = '"SAME", "VALID"' if transposed else '"SAME", "SAME_LOWER", "VALID"'
        raise ValueError(f"padding must be {names}, an int, or ints or pairs of ints, got {name!r}")
    if any(f != 1 for f in input_dilation):
        raise ValueError(f"padding must be ints or pairs where input_dilation is {input_dilation}, got {name!r}")
    return tuple((int(low), int(high)) for low, high in lax.padtype_to_pads(sizes, reach, strides, name))


def _output_dtype(x: jax.Array, preferred_element_type: DTypeLike | None) -> Any:
    dtype = x.dtype if preferred_element_type is None else jax.dtypes.canonicalize_dtype(preferred_element_type)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(f"preferred_element_type must be a floating-point dtype, got {dtype}")
    return dtype


def _apply(
    transposed, x, kernel, bias, strides, padding, input_dilation, kernel_dilation, groups,
    dimension_numbers, transpose_kernel, precision, preferred_element_type,
) -> jax.Array:  # fmt: skip
    """Both public functions: the arguments checked, then the core."""
    x, kernel = as_float_array("x", x), as_float_array("kernel", kernel)
    layout = _layout(x, kernel, dimension_numbers, static_bool("transpose_kernel", transpose_kernel))
    groups = static_int("feature_group_count", groups, minimum=1)
    input_size, kernel_size = _spatial(x, layout.x[1:-1]), _spatial(kernel, layout.kernel[:-2])
    _check_channels(x, kernel, layout, groups)
    outputs = kernel.shape[layout.kernel[-1]]
    bias = as_parameter("bias", bias, (outputs,), f"the output channels of kernel of shape {kernel.shape}")
    space = x.ndim - 2
    strides = _per_axis("strides", strides, space)
    input_dilation = _per_axis("strides" if transposed else "input_dilation", input_dilation, space)
    kernel_dilation = _per_axis("kernel_dilation", kernel_dilation, space)
    if isinstance(padding, str):
        reach = dilated(kernel_size, kernel_dilation)
        pads = _string_padding(padding, transposed, input_size, reach, strides, input_dilation)
    else:
        pads = _pairs(padding, space)
    if any(size + sum(ends) < 0 for size, ends in zip(dilated(input_size, input_dilation), pads, strict=True)):
        raise ValueError(f"padding {padding!r} crops more than there is of x of shape {x.shape}")
    precision = tuple(precision) if isinstance(precision, list) else precision
    output_dtype = _output_dtype(x, preferred_element_type)
    dtype = jnp.float64 if output_dtype == jnp.float64 else compute_dtype(x, kernel, bias)
    geometry = Geometry(
        input_size, kernel_size, strides, pads, input_dilation, kernel_dilation, groups, precision, dtype
    )
    return _convolution(Convolution(geometry, output_dtype, layout), x, kernel, bias)
