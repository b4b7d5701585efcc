"""A convolution as `jax.lax.conv_general_dilated` describes it, in this library's terms.

lax's result is equation (1) of `jaxnorm.convolution`. It is also equation (4), the gradient of a kernel, of another
convolution: what lax calls channels is then the batch that is summed over, and lax's window is the cotangent.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax

from jaxnorm._convolution_options import Layout
from jaxnorm._lower.convolution.geometry import Geometry, Order, dilated

Axes = tuple[int, ...]


class General(NamedTuple):
    """lax's static arguments of one convolution, spelled out, and the shapes and dtypes of its arrays."""

    lhs_shape: Axes
    rhs_shape: Axes
    out_shape: Axes
    dtypes: tuple[Any, Any, Any]  # of lhs, rhs and the result
    window_strides: Axes
    padding: tuple[tuple[int, int], ...]
    lhs_dilation: Axes
    rhs_dilation: Axes
    dimension_numbers: lax.ConvDimensionNumbers
    feature_group_count: int
    batch_group_count: int
    precision: Any

    @property
    def layout(self) -> Layout:
        """The axis orders of lhs, rhs and the result, as (1) reads them."""
        (batch, channels, *space), (outputs, inputs, *window), (rows, features, *output) = self.dimension_numbers
        return Layout((batch, *space, channels), (*window, inputs, outputs), (rows, *output, features), flip=False)

    @property
    def geometry(self) -> Geometry:
        """The geometry of (1)."""
        return Geometry(
            input_size=_sizes(self.lhs_shape, self.dimension_numbers.lhs_spec[2:]),
            kernel_size=_sizes(self.rhs_shape, self.dimension_numbers.rhs_spec[2:]),
            strides=self.window_strides,
            padding=self.padding,
            input_dilation=self.lhs_dilation,
            kernel_dilation=self.rhs_dilation,
            groups=self.feature_group_count,
            precision=self.precision,
            dtype=jnp.float64 if jnp.float64 in self.dtypes else jnp.float32,
        )

    @property
    def uncovered(self) -> str | None:
        """Why neither equation is for it; None if one is."""
        if not all(jnp.issubdtype(dtype, jnp.floating) and jnp.dtype(dtype).itemsize > 1 for dtype in self.dtypes):
            return "a dtype that is not floating-point of 16 to 64 bits"
        if self.dtypes[0] != self.dtypes[1]:
            return "arrays of two dtypes"
        if not 3 <= len(self.lhs_shape) <= 5:
            return "no spatial axis, or more than three"
        if 0 in _sizes(self.rhs_shape, self.dimension_numbers.rhs_spec[2:]):
            return "an empty window"
        return None

    @property
    def is_kernel_gradient(self) -> bool:
        """Whether it looks like one, of which autodiff makes a convolution with the cotangent as its window.

        Autodiff turns groups into batch groups, and exchanges the axes of the batch and the channels, of which the
        batch comes first in every library. Both equations are right for either, so that a wrong guess costs time alone.
        """
        batch, channels, *_ = self.dimension_numbers.lhs_spec
        return self.batch_group_count > 1 or batch > channels

    @property
    def differentiated(self) -> Geometry:
        """The geometry of the convolution whose kernel's gradient (4) this is; it has `batch_group_count` groups.

        Stride and kernel dilation are exchanged again. The high padding is the least that (2) needs for an output of
        the window's size.
        """
        one = self.geometry
        reach = dilated(one.output_size, one.strides)
        sizes = zip(dilated(one.input_size, one.input_dilation), one.padding, one.reach, reach, strict=True)
        return Geometry(
            input_size=one.input_size,
            kernel_size=one.output_size,
            strides=one.kernel_dilation,
            padding=tuple((low, window + kernel - 1 - size - low) for size, (low, _), window, kernel in sizes),
            input_dilation=one.input_dilation,
            kernel_dilation=one.strides,
            groups=max(self.batch_group_count, self.feature_group_count),
            precision=one.precision,
            dtype=one.dtype,
        )

    @property
    def differentiated_orders(self) -> tuple[Order, Order, Order]:
        """The canonical orders of x, the cotangent and the kernel's gradient: batch and channels are exchanged."""
        (x_channels, x_batch, *space), (g_outputs, g_batch, *window), (inputs, outputs, *kernel) = (
            self.dimension_numbers
        )
        return (x_batch, *space, x_channels), (g_batch, *window, g_outputs), (*kernel, inputs, outputs)


def _sizes(shape: Sequence[int], axes: Sequence[int]) -> Axes:
    return tuple(shape[axis] for axis in axes)
