"""The arguments of `conv` and `conv_transpose`, checked: arrays, sizes along each spatial axis, axis orders."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike, DTypeLike

from jaxnorm._arguments import as_float_array, as_parameter, static_bool, static_int
from jaxnorm._cotangents import compute_dtype
from jaxnorm._lower.convolution.geometry import (
    Geometry,
    Order,
    Pairs,
    channels_last,
    dilated,
    flipped,
    from_canonical,
    to_canonical,
)

Names = tuple[str, ...]  # axis orders of x, kernel and y, such as ("NHWC", "HWIO", "NHWC")


@dataclasses.dataclass(frozen=True)
class Layout:
    """The caller's axis orders: canonical axis i (NHWC, HWIO, NHWC and kin) is the caller's axis `x[i]`, and so on."""

    x: Order
    kernel: Order  # in and out exchanged if the kernel is a transposed one
    y: Order
    flip: bool  # whether the kernel's spatial axes are reversed too, as a transposed kernel's are

    @classmethod
    def of(cls, x: jax.Array, kernel: jax.Array, names: Names, transpose_kernel: bool) -> "Layout":
        """The axis orders of these names; a TypeError of lax's if they are none."""
        of_x, of_kernel, of_y = lax.conv_dimension_numbers(x.shape, kernel.shape, names)
        outputs, inputs, *window = of_kernel
        channels = (outputs, inputs) if transpose_kernel else (inputs, outputs)
        return cls(
            x=(of_x[0], *of_x[2:], of_x[1]),
            kernel=(*window, *channels),
            y=(of_y[0], *of_y[2:], of_y[1]),
            flip=transpose_kernel,
        )

    def canonical_kernel(self, kernel: jax.Array) -> jax.Array:
        """The caller's kernel in canonical order."""
        canonical = to_canonical(kernel, self.kernel)
        return flipped(canonical) if self.flip else canonical

    def callers_kernel(self, kernel: jax.Array) -> jax.Array:
        """A canonical kernel in the caller's order."""
        return from_canonical(flipped(kernel) if self.flip else kernel, self.kernel)


@dataclasses.dataclass(frozen=True)
class Options:
    """The static side of one call."""

    geometry: Geometry
    layout: Layout
    output_dtype: Any


def checked(
    x: ArrayLike,
    kernel: ArrayLike,
    bias: ArrayLike | None,
    *,
    strides: Any = 1,
    padding: Any,
    input_dilation: Any = 1,
    kernel_dilation: Any,
    feature_group_count: Any = 1,
    dimension_numbers: Sequence[str] | None,
    precision: lax.PrecisionLike,
    preferred_element_type: DTypeLike | None,
    transposed: bool = False,
    transpose_kernel: bool = False,
) -> tuple[Options, jax.Array, jax.Array, jax.Array | None]:
    """What the rule takes, from `conv`'s arguments, or `conv_transpose`'s with its strides as `input_dilation`."""
    x, kernel = as_float_array("x", x), as_float_array("kernel", kernel)
    groups = static_int("feature_group_count", feature_group_count, minimum=1)
    layout = _layout(x, kernel, dimension_numbers, static_bool("transpose_kernel", transpose_kernel), groups)
    outputs = kernel.shape[layout.kernel[-1]]
    bias = as_parameter("bias", bias, (outputs,), f"the output channels of kernel of shape {kernel.shape}")
    output_dtype = _output_dtype(x, preferred_element_type)
    space = x.ndim - 2
    unpadded = Geometry(
        input_size=_sizes(x, layout.x[1:-1]),
        kernel_size=_sizes(kernel, layout.kernel[:-2]),
        strides=_per_axis("strides", strides, space),
        padding=((0, 0),) * space,
        input_dilation=_per_axis("strides" if transposed else "input_dilation", input_dilation, space),
        kernel_dilation=_per_axis("kernel_dilation", kernel_dilation, space),
        groups=groups,
        precision=tuple(precision) if isinstance(precision, list) else precision,
        dtype=jnp.float64 if output_dtype == jnp.float64 else compute_dtype(x, kernel, bias),
    )
    pads = _string_padding(padding, transposed, unpadded) if isinstance(padding, str) else _pairs(padding, space)
    size = dilated(unpadded.input_size, unpadded.input_dilation)
    if any(n + low + high < 0 for n, (low, high) in zip(size, pads, strict=True)):
        raise ValueError(f"padding {padding!r} crops more than there is of x of shape {x.shape}")
    return Options(dataclasses.replace(unpadded, padding=pads), layout, output_dtype), x, kernel, bias


# --- axis orders and channels ---------------------------------------------------------------------------------------


def _sizes(array: jax.Array, axes: Sequence[int]) -> tuple[int, ...]:
    return tuple(array.shape[axis] for axis in axes)


def _layout(
    x: jax.Array, kernel: jax.Array, dimension_numbers: Sequence[str] | None, transpose_kernel: bool, groups: int
) -> Layout:
    """The axis orders, in which the channels of x and kernel must fit together."""
    if x.ndim not in (3, 4, 5):
        raise ValueError(f"x must have a batch, 1 to 3 spatial axes and channels, got shape {x.shape}")
    if kernel.ndim != x.ndim:
        raise ValueError(f"kernel must have as many axes as x of shape {x.shape}, got shape {kernel.shape}")
    names = channels_last(x.ndim - 2) if dimension_numbers is None else dimension_numbers
    try:
        if not isinstance(names, tuple | list) or not all(isinstance(name, str) for name in names):
            raise TypeError("not strings")
        layout = Layout.of(x, kernel, tuple(names), transpose_kernel)
    except TypeError as error:
        raise ValueError(
            f"dimension_numbers must be three strings like {channels_last(x.ndim - 2)} for x of shape {x.shape} and "
            f"kernel of shape {kernel.shape}, got {dimension_numbers!r}: {error}"
        ) from None
    if not _channels_fit(x, kernel, layout, groups):
        raise ValueError(_misfit(x, kernel, tuple(names), layout, groups))
    if 0 in _sizes(kernel, layout.kernel[:-2]):
        raise ValueError(f"kernel must have at least one entry along each spatial axis, got shape {kernel.shape}")
    return layout


def _channels_fit(x: jax.Array, kernel: jax.Array, layout: Layout, groups: int) -> bool:
    *_, inputs, outputs = _sizes(kernel, layout.kernel)
    return x.shape[layout.x[-1]] == inputs * groups and outputs % groups == 0


def _misfit(x: jax.Array, kernel: jax.Array, names: Names, layout: Layout, groups: int) -> str:
    """What is wrong with the channels, how the axes were read, and another common order in which they would fit."""
    *_, inputs, outputs = _sizes(kernel, layout.kernel)
    of_x, of_kernel, _ = names
    exchanged = ", of which transpose_kernel exchanges I and O" if layout.flip else ""
    message = (
        f"kernel of shape {kernel.shape} has {inputs} input and {outputs} output channels, but needs "
        f"{x.shape[layout.x[-1]]} / {groups} and a multiple of {groups} for x of shape {x.shape}, as "
        f"feature_group_count is {groups}. With dimension_numbers={names}, x was read as {_read(of_x, x)} and the "
        f"kernel as {_read(of_kernel, kernel)}{exchanged}"
    )
    for others in _common_names(x.ndim - 2):
        if _channels_fit(x, kernel, Layout.of(x, kernel, others, layout.flip), groups):
            return f"{message}; with dimension_numbers={others} they would fit"
    return message


def _read(letters: str, array: jax.Array) -> str:
    """The size of each axis after its letter: `N=2, H=6, W=5, C=4`."""
    return ", ".join(f"{letter}={size}" for letter, size in zip(letters, array.shape, strict=True))


def _common_names(space: int) -> Iterator[Names]:
    """PyTorch's axis orders, this library's, and either's kernels with the other's arrays."""
    of_x, of_kernel, _ = channels_last(space)
    axes = of_kernel[:space]
    first, kernel_first = f"NC{axes}", f"OI{axes}"
    yield from ((first, kernel_first, first), (of_x, of_kernel, of_x))
    yield from ((of_x, kernel_first, of_x), (first, of_kernel, first))


# --- sizes and dtypes -----------------------------------------------------------------------------------------------


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


def _string_padding(name: str, transposed: bool, geometry: Geometry) -> Pairs:
    """lax's meaning of a string; `conv_transpose` undoes the convolution of that padding."""
    reach, dilation = geometry.reach, geometry.input_dilation
    if transposed and name == "VALID":
        return tuple((k - 1, max(k, s) - 1) for k, s in zip(reach, dilation, strict=True))
    if transposed and name == "SAME":
        lows = tuple(min(k - 1, (k + s - 1) // 2) for k, s in zip(reach, dilation, strict=True))
        return tuple((low, k + s - 2 - low) for low, k, s in zip(lows, reach, dilation, strict=True))
    if transposed or name.upper() not in ("SAME", "SAME_LOWER", "VALID"):
        names = '"SAME", "VALID"' if transposed else '"SAME", "SAME_LOWER", "VALID"'
        raise ValueError(f"padding must be {names}, an int, or ints or pairs of ints, got {name!r}")
    if any(e != 1 for e in dilation):
        raise ValueError(f"padding must be ints or pairs where input_dilation is {dilation}, got {name!r}")
    return tuple(
        (int(low), int(high)) for low, high in lax.padtype_to_pads(geometry.input_size, reach, geometry.strides, name)
    )


def _output_dtype(x: jax.Array, preferred_element_type: DTypeLike | None) -> Any:
    dtype = x.dtype if preferred_element_type is None else jax.dtypes.canonicalize_dtype(preferred_element_type)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(f"preferred_element_type must be a floating-point dtype, got {dtype}")
    return dtype
