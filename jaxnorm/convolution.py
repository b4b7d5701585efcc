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

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike, DTypeLike

from jaxnorm._convolution_options import Options, checked
from jaxnorm._cotangents import cast, cotangent_for
from jaxnorm._examples import shared
from jaxnorm._lower.convolution.choice import convolve, correlate
from jaxnorm._lower.convolution.geometry import transposed_kernel
from jaxnorm._sharding import entries_of, gathered, spec_of_entries, with_shardings

Padding = str | int | Sequence[int | Sequence[int]]


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
    arguments = checked(
        x,
        kernel,
        bias,
        strides=strides,
        padding=padding,
        input_dilation=input_dilation,
        kernel_dilation=kernel_dilation,
        feature_group_count=feature_group_count,
        dimension_numbers=dimension_numbers,
        precision=precision,
        preferred_element_type=preferred_element_type,
    )
    return _on_mesh(*arguments)


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
    arguments = checked(
        x,
        kernel,
        bias,
        padding=padding,
        input_dilation=strides,
        kernel_dilation=kernel_dilation,
        dimension_numbers=dimension_numbers,
        precision=precision,
        preferred_element_type=preferred_element_type,
        transposed=True,
        transpose_kernel=transpose_kernel,
    )
    return _on_mesh(*arguments)


def _on_mesh(options: Options, x: jax.Array, kernel: jax.Array, bias: jax.Array | None) -> jax.Array:
    """The convolution of checked arrays, on explicit mesh axes of whole rows.

    The result's type says how it is split, and not every number of rows divides: so x is gathered along its rows.
    """
    of_x, of_y = options.layout.x, options.layout.y
    x = gathered(x, of_x[1:-1])
    entries: list[Any] = [None] * x.ndim
    entries[of_y[0]] = entries_of(x)[of_x[0]]
    entries[of_y[-1]] = entries_of(kernel)[options.layout.kernel[-1]]
    rule = functools.partial(shared, _convolution, options, x_axis=of_x[0], y_axis=of_y[0])
    return with_shardings(rule, spec_of_entries(*entries), x, kernel, bias, keeps_arguments=True)


# --- the rule -------------------------------------------------------------------------------------------------------


class Residuals(NamedTuple):
    """What the backward pass keeps: the arguments as they came, so that nothing is copied."""

    x: jax.Array  # in the caller's shape and dtype, for (4); its dtype is also dx's
    kernel: jax.Array  # in the caller's shape and dtype, for (3); its dtype is also dkernel's
    bias: jax.Array | None  # (C_out,), for its dtype, which is also dbias's


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _convolution(options: Options, x: jax.Array, kernel: jax.Array, bias: jax.Array | None) -> jax.Array:
    return _convolution_fwd(options, x, kernel, bias)[0]


def _convolution_fwd(
    options: Options, x: jax.Array, kernel: jax.Array, bias: jax.Array | None
) -> tuple[jax.Array, Residuals]:
    geometry, layout = options.geometry, options.layout
    # (1), as long as (2) says
    y = convolve(geometry, x, layout.canonical_kernel(kernel), layout.x, layout.y, options.output_dtype)
    if bias is not None:
        y = y + lax.broadcast_in_dim(cast(bias, y.dtype), y.shape, layout.y[-1:])  # (1), its b
    return cast(y, options.output_dtype), Residuals(x, kernel, bias)


def _convolution_bwd(
    options: Options, residuals: Residuals, g: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    geometry, layout = options.geometry, options.layout
    exchanged = transposed_kernel(layout.canonical_kernel(residuals.kernel), geometry.groups)  # w[K - 1 - k, c, o]
    dx = convolve(geometry.transposed, g, exchanged, layout.y, layout.x, residuals.x.dtype)  # (3), padded by (5)
    dkernel = correlate(geometry, residuals.x, g, layout.x, layout.y, residuals.kernel.dtype)  # (4), padded by (5)
    dbias = None
    if residuals.bias is not None:
        dbias = cotangent_for(residuals.bias, jnp.sum(cast(g, geometry.dtype), axis=layout.y[:-1]))  # (4), its db
    return (
        cotangent_for(residuals.x, dx),
        cotangent_for(residuals.kernel, layout.callers_kernel(dkernel)),
        dbias,
    )


_convolution.defvjp(_convolution_fwd, _convolution_bwd)
