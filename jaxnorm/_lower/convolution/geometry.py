"""The static side of one convolution in canonical order, and the geometries of its gradients.

Axes are channels last: x is `(N, *input_size, C)`, the kernel `(*kernel_size, C / groups, O)` and y
`(N, *output_size, O)`. The numbered equations are those of `jaxnorm.convolution`.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
from jax import lax

Pairs = tuple[tuple[int, int], ...]
Order = tuple[int, ...]  # of the caller's axes: canonical axis i is the caller's axis `order[i]`


@dataclasses.dataclass(frozen=True)
class Geometry:
    """Sizes and options; every tuple has one entry per spatial axis."""

    input_size: tuple[int, ...]
    kernel_size: tuple[int, ...]
    strides: tuple[int, ...]
    padding: Pairs
    input_dilation: tuple[int, ...]
    kernel_dilation: tuple[int, ...]
    groups: int
    precision: Any
    dtype: Any  # of the accumulation and the result: float32 or float64

    @property
    def space(self) -> int:
        """The number of spatial axes."""
        return len(self.input_size)

    @property
    def reach(self) -> tuple[int, ...]:
        """D(K, d): how far a window reaches."""
        return dilated(self.kernel_size, self.kernel_dilation)

    @property
    def output_size(self) -> tuple[int, ...]:
        """T of (2)."""
        sizes = dilated(self.input_size, self.input_dilation)
        rows = zip(sizes, self.padding, self.reach, self.strides, strict=True)
        return tuple(max(0, (size + sum(pads) - reach) // s + 1) for size, pads, reach, s in rows)

    @property
    def excess(self) -> tuple[int, ...]:
        """u of (5)."""
        sizes = dilated(self.input_size, self.input_dilation)
        spans = zip(sizes, self.padding, dilated(self.output_size, self.strides), strict=True)
        return tuple(size + low - span for size, (low, _), span in spans)

    @property
    def transposed(self) -> "Geometry":
        """The geometry of (3), which is a convolution of g: stride and input dilation exchanged, paddings by (5)."""
        ends = zip(self.padding, self.reach, self.excess, strict=True)
        return dataclasses.replace(
            self,
            input_size=self.output_size,
            strides=self.input_dilation,
            padding=tuple((reach - 1 - low, u) for (low, _), reach, u in ends),  # (3) and (5)
            input_dilation=self.strides,
        )

    @property
    def correlated(self) -> "Geometry":
        """The geometry of (4), a convolution of x with g: stride and kernel dilation exchanged, paddings by (5)."""
        ends = zip(self.padding, self.reach, self.excess, strict=True)
        return dataclasses.replace(
            self,
            kernel_size=self.output_size,
            strides=self.kernel_dilation,
            padding=tuple((low, reach - 1 - u) for (low, _), reach, u in ends),  # (4) and (5)
            kernel_dilation=self.strides,
        )

    def along(self, axes: slice) -> "Geometry":
        """The geometry along some of the spatial axes alone."""
        names = ("input_size", "kernel_size", "strides", "padding", "input_dilation", "kernel_dilation")
        chosen: dict[str, Any] = {name: getattr(self, name)[axes] for name in names}
        return dataclasses.replace(self, **chosen)

    def with_axis(self, axis: int, **entries: Any) -> "Geometry":
        """The geometry with other entries for one spatial axis."""
        changed: dict[str, Any] = {}
        for name, entry in entries.items():
            old = getattr(self, name)
            changed[name] = (*old[:axis], entry, *old[axis + 1 :])
        return dataclasses.replace(self, **changed)


def channels_last(space: int) -> tuple[str, str, str]:
    """The canonical axis orders in lax's notation."""
    axes = "HWD"[:space]
    return f"N{axes}C", f"{axes}IO", f"N{axes}C"


def to_canonical(array: jax.Array, order: Order) -> jax.Array:
    """The caller's array in canonical order. One that has it is left alone, since an eager copy takes memory."""
    return array if order == tuple(range(array.ndim)) else lax.transpose(array, order)


def from_canonical(array: jax.Array, order: Order) -> jax.Array:
    """The array in the caller's order."""
    return to_canonical(array, tuple(order.index(axis) for axis in range(array.ndim)))


def flipped(kernel: jax.Array) -> jax.Array:
    """A canonical kernel with its spatial axes reversed."""
    return lax.rev(kernel, tuple(range(kernel.ndim - 2)))


def transposed_kernel(kernel: jax.Array, groups: int) -> jax.Array:
    """The kernel of (3): flipped, in and out swapped within each group. Done twice, it is the kernel again."""
    *window, inputs, outputs = kernel.shape
    space = len(window)
    swapped = lax.reshape(kernel, (*window, inputs, groups, outputs // groups))
    swapped = lax.transpose(swapped, (*range(space), space + 2, space + 1, space))
    return flipped(lax.reshape(swapped, (*window, outputs // groups, groups * inputs)))


def dilated(sizes: Sequence[int], dilation: Sequence[int]) -> tuple[int, ...]:
    """D(n, f) of the equations, for each axis."""
    return tuple((n - 1) * f + 1 if n else 0 for n, f in zip(sizes, dilation, strict=True))
