"""Which formulation computes a convolution and its kernel's gradient, by shape and platform.

A GPU or TPU keeps XLA's convolutions. XLA's CPU backend runs 1-D and 2-D convolutions of one group well, on every core.
It runs 3-D ones slowly, and grouped ones, and 3-D ones with a dilated input, in naive loops. The choices below bring
these to convolutions that it runs well, to matrix products, or to elementwise arithmetic. `experiments/bench.py conv`
measures what that gains.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxnorm._cotangents import cast
from jaxnorm._lower.convolution import forward, kernel_gradient
from jaxnorm._lower.convolution.geometry import Geometry, Order, transposed_kernel
from jaxnorm._lower.convolution.primitive import apply, lowered
from jaxnorm._lower.convolution.product import Formulations, Product

# A group of up to this many channels in is summed tap by tap. A convolution for each group does more arithmetic with
# each entry that it reads, but where the channels are this few, its matrix products are too narrow to run fast.
SHIFTED_INPUTS = 4
# With few channels out the matrix products stay narrow up to more channels in.
FEW_OUTPUTS, SHIFTED_INPUTS_OF_FEW_OUTPUTS = 16, 8


def _convolve_on_cpu(geometry: Geometry, x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Equation (1) without the bias."""
    groups = geometry.groups
    if _is_left_to_xla(geometry):
        return forward.by_lax(geometry, x, kernel)
    if not _is_undilated(geometry):
        return _convolve_dilated_on_cpu(geometry, x, kernel)
    if groups > 1:  # XLA runs these in a naive loop
        inputs, outputs = kernel.shape[-2], kernel.shape[-1] // groups
        narrow = inputs <= SHIFTED_INPUTS_OF_FEW_OUTPUTS and outputs <= FEW_OUTPUTS
        if inputs <= SHIFTED_INPUTS or narrow:
            return forward.by_shifts(geometry, x, kernel)
        return forward.by_groups(geometry, x, kernel, _convolve_on_cpu)
    if _is_unstrided_product(geometry):
        return forward.by_product(geometry, x, kernel)
    return forward.by_leading_taps(geometry, x, kernel, _convolve_on_cpu)  # of 3-D ones


def _convolve_dilated_on_cpu(geometry: Geometry, x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Equation (1) without the bias of a dilated x: dx of a strided convolution, or a transposed convolution."""
    if _has_disjoint_windows(geometry):
        return forward.by_blocks(geometry, x, kernel)
    return forward.by_phases(geometry, x, kernel, _convolve_on_cpu)  # of grouped and 3-D ones


def _is_left_to_xla(geometry: Geometry) -> bool:
    """Whether XLA's own convolution computes equation (1).

    XLA runs 1-D and 2-D ones of one group on every core, those of a dilated x too, although it multiplies zeros.
    """
    if not _is_undilated(geometry) and set(geometry.strides) != {1}:  # the formulations take no such x
        return True
    if geometry.groups > 1 or geometry.space == 3:
        return False
    return not (_is_unstrided_product(geometry) or _has_disjoint_windows(geometry))


def _is_unstrided_product(geometry: Geometry) -> bool:
    """XLA runs a 1x1 convolution faster as the matrix product that it is.

    A strided one would copy the entries that it meets first, which takes as long as the product saves.
    """
    return _is_product(geometry) and math.prod(geometry.strides) == 1


def _has_disjoint_windows(geometry: Geometry) -> bool:
    """Of a dilated x, no two windows overlap (patches, 1x1).

    Each entry of y meets at most one entry of x then, and nearly all that a convolution would multiply are zeros.
    """
    disjoint = all(k <= e for k, e in zip(geometry.kernel_size, geometry.input_dilation, strict=True))
    dilated = not _is_undilated(geometry)
    return dilated and geometry.groups == 1 and disjoint and set(geometry.kernel_dilation) == {1}


def _correlate_on_cpu(geometry: Geometry, x: jax.Array, g: jax.Array, unrolled_taps: int | None = None) -> jax.Array:
    """Equation (4) without the bias's part."""
    correlate = functools.partial(_correlate_on_cpu, unrolled_taps=unrolled_taps)
    if not _is_undilated(geometry):
        if any(s > 1 for s in geometry.strides):  # x and g exchanged would have strides and a dilation again
            return kernel_gradient.by_lax(geometry, x, g)
        return kernel_gradient.by_exchange(geometry, x, g, correlate)  # a transposed convolution's
    if geometry.groups > 1:  # XLA runs all of these in a naive loop
        if x.shape[-1] == geometry.groups:  # depthwise
            return kernel_gradient.by_column_sums(geometry, x, g, unrolled_taps)
        return kernel_gradient.by_merged_groups(geometry, x, g, correlate)
    if math.prod(geometry.kernel_size) == 1:
        return kernel_gradient.by_product(geometry, x, g)
    # Of disjoint windows, each entry of x is in one patch at most, so that the matrix of patches is no larger than x.
    disjoint = all(k <= s for k, s in zip(geometry.kernel_size, geometry.strides, strict=True))
    if disjoint and set(geometry.kernel_dilation) == {1}:
        return kernel_gradient.by_patches(geometry, x, g)
    if geometry.space == 3:  # XLA runs 2-D convolutions far better than 3-D ones
        return kernel_gradient.by_leading_taps(geometry, x, g, correlate)
    return kernel_gradient.by_lax(geometry, x, g)


def _is_undilated(geometry: Geometry) -> bool:
    return set(geometry.input_dilation) == {1}


# --- under vmap -----------------------------------------------------------------------------------------------------


def _is_product(geometry: Geometry) -> bool:
    """Windows of one entry of one group: what x is multiplied by is a matrix (`by_product`)."""
    return geometry.groups == 1 and math.prod(geometry.kernel_size) == 1 and _is_undilated(geometry)


def _convolve_batches(geometry: Geometry, kernel: tuple[int, ...]) -> bool:
    """Matrix products of every entry of x, and depthwise sums over taps, in phases or not, which are elementwise."""
    depthwise = geometry.groups > 1 and kernel[-2] == 1 and not _is_left_to_xla(geometry)
    return depthwise or _is_unstrided_product(geometry)


def _correlate_batches(geometry: Geometry, g: tuple[int, ...]) -> bool:
    """Matrix products."""
    return _is_product(geometry)


# --- the entry points -----------------------------------------------------------------------------------------------


def convolve(
    geometry: Geometry, x: jax.Array, kernel: jax.Array, x_order: Order, y_order: Order, dtype: Any
) -> jax.Array:
    """Equation (1) without the bias, accumulated and returned in the geometry's dtype; the kernel is canonical.

    `dtype` is the one to which the caller casts the result.
    """
    product = Product(_CONVOLVE, geometry, dtype, x_order, tuple(range(kernel.ndim)), y_order)
    x, kernel = _of_one_dtype(geometry, x, kernel)
    if x.size == 0 or kernel.size == 0 or 0 in geometry.output_size:
        return product.run(forward.by_lax, x, kernel)
    return apply(product, x, kernel)


def correlate(geometry: Geometry, x: jax.Array, g: jax.Array, x_order: Order, y_order: Order, dtype: Any) -> jax.Array:
    """Equation (4) without the bias's part, accumulated and returned in the geometry's dtype, canonical.

    `dtype` is the one to which the caller casts the result.
    """
    product = Product(_CORRELATE, geometry, dtype, x_order, y_order, tuple(range(x.ndim)))
    x, g = _of_one_dtype(geometry, x, g)
    if g.size == 0:  # XLA takes no window of size 0; the empty sum varies over the devices as g does
        channels = x.shape[x_order[-1]] // geometry.groups, g.shape[y_order[-1]]
        return lax.broadcast(cast(jnp.sum(g), geometry.dtype), (*geometry.kernel_size, *channels))
    if x.size == 0:
        return product.run(kernel_gradient.by_lax, x, g)
    return apply(product, x, g)


def _of_one_dtype(geometry: Geometry, a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Both as they are if their dtypes agree, or in the dtype of the accumulation."""
    if a.dtype == b.dtype and geometry.dtype != jnp.float64:
        return a, b
    return cast(a, geometry.dtype), cast(b, geometry.dtype)


# --- the cotangents of each product, for derivatives of higher order ------------------------------------------------


def _x_of_y(product: Product, dtype: Any, g: jax.Array, kernel: jax.Array) -> jax.Array:
    exchanged = transposed_kernel(kernel, product.geometry.groups)
    return convolve(product.geometry.transposed, g, exchanged, product.result_order, product.a_order, dtype)  # (3)


def _kernel_of_y(product: Product, dtype: Any, g: jax.Array, x: jax.Array) -> jax.Array:
    return correlate(product.geometry, x, g, product.a_order, product.result_order, dtype)  # (4)


def _x_of_dkernel(product: Product, dtype: Any, kernel: jax.Array, g: jax.Array) -> jax.Array:
    exchanged = transposed_kernel(kernel, product.geometry.groups)
    return convolve(product.geometry.transposed, g, exchanged, product.b_order, product.a_order, dtype)  # (3)


def _g_of_dkernel(product: Product, dtype: Any, kernel: jax.Array, x: jax.Array) -> jax.Array:
    return convolve(product.geometry, x, kernel, product.a_order, product.b_order, dtype)  # (1)


_CONVOLVE = Formulations(
    on_cpu=_convolve_on_cpu,
    elsewhere=forward.by_lax,
    anywhere=forward.by_taps,
    cotangents=(_x_of_y, _kernel_of_y),
    batches=_convolve_batches,
    inlined=_is_left_to_xla,
    sums_batch=False,
    waits=False,
)
# The rest of a backward pass waits for dx, and nothing waits for dkernel, so dkernel comes after the other uses of g.
_CORRELATE = Formulations(
    on_cpu=_correlate_on_cpu,
    elsewhere=kernel_gradient.by_batch_groups,
    anywhere=kernel_gradient.by_taps,
    cotangents=(_x_of_dkernel, _g_of_dkernel),
    batches=_correlate_batches,
    inlined=lambda _: False,
    sums_batch=True,
    waits=True,
)


def _correlate_in_loops(geometry: Geometry, x: jax.Array, g: jax.Array) -> jax.Array:
    """For programs that were written without this library in mind, whose compile time counts too.

    Such a program may have depthwise convolutions of many shapes, and a loop over the taps takes a little longer to run
    than all of them unrolled, and about half as long to compile.
    """
    return _correlate_on_cpu(geometry, x, g, unrolled_taps=0)


_CORRELATE_IN_LOOPS = dataclasses.replace(_CORRELATE, on_cpu=_correlate_in_loops)


# --- where a CPU's program is being written -------------------------------------------------------------------------


def convolve_in(
    module: Any, geometry: Geometry, x: jax.Array, kernel: jax.Array, orders: tuple[Order, Order, Order]
) -> jax.Array:
    """`convolve` in a module for a CPU; `orders` are those of x, the kernel and y, of which none is empty."""
    product = Product(_CONVOLVE, geometry, geometry.dtype, *orders)
    return product.apart(functools.partial(lowered, module), *_of_one_dtype(geometry, x, kernel))


def correlate_in(
    module: Any, geometry: Geometry, x: jax.Array, g: jax.Array, orders: tuple[Order, Order, Order]
) -> jax.Array:
    """`correlate` in a module for a CPU; `orders` are those of x, g and dkernel, of which none is empty."""
    product = Product(_CORRELATE_IN_LOOPS, geometry, geometry.dtype, *orders)
    return product.apart(functools.partial(lowered, module), *_of_one_dtype(geometry, x, g))
