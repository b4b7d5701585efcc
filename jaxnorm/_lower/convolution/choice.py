"""Which formulation computes a convolution and its kernel's gradient, by shape and platform.

A GPU or TPU keeps XLA's convolutions. XLA's CPU backend runs 2-D convolutions of one group well; what it runs badly is
brought to them, to matrix products, or to elementwise arithmetic, by the choices below. The figures beside them are
milliseconds, XLA's and ours, of one shape each when the choice was made, on 2 cores with jax 0.10.2 and 0.12.0;
`experiments/bench.py conv` measures shapes like them again.

`convolve` and `correlate` are bilinear, and JAX is told so: the derivatives of a formulation, which only second-order
derivatives need, are XLA's convolutions. Under vmap over both arguments a GPU or TPU gets what vmap makes of XLA's
convolution (one with groups); on a CPU they run one by one, but matrix products and depthwise sums as a batch.
"""

import dataclasses
import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap

from jaxnorm._cotangents import cast
from jaxnorm._lower.calls import later, outlined
from jaxnorm._lower.convolution import forward, kernel_gradient
from jaxnorm._lower.convolution.geometry import Geometry, Order, from_canonical, to_canonical

Formulation = Callable[[Geometry, jax.Array, jax.Array], jax.Array]


def _convolve_on_cpu(geometry: Geometry, x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Equation (1) without the bias."""
    *window, inputs, outputs = kernel.shape
    groups = geometry.groups
    if any(e > 1 for e in geometry.input_dilation):  # dX of a stride, or a transposed convolution
        if any(s > 1 for s in geometry.strides):
            return forward.by_lax(geometry, x, kernel)
        # No two windows overlap (patches, 1x1): 35 to 66 -> 1.5 to 4 ms for 16x16 patches of 3 channels.
        disjoint = all(k <= e for k, e in zip(window, geometry.input_dilation, strict=True))
        if groups == 1 and disjoint and set(geometry.kernel_dilation) == {1}:
            return forward.by_blocks(geometry, x, kernel)
        # XLA runs these naively: 20 -> 0.2 (depthwise), 26 -> 0.4 (3-D). A 1-D or 2-D one of one group it runs well, on
        # every core, though it multiplies zeros: phases take 1.0 to 1.6 times as long.
        if groups > 1 or geometry.space == 3:
            return forward.by_phases(geometry, x, kernel, _convolve_on_cpu)
        return forward.by_lax(geometry, x, kernel)
    if groups > 1:
        # 14 -> 0.3 (depthwise 3x3), 11 -> 1.2 (32 groups of 4). From 4 channels in on, the matrix products of a
        # convolution for each group overtake the shifts as the channels out grow: even at 4 in and 32 out, or 8 and 16.
        if inputs <= 4 or (inputs <= 8 and outputs // groups <= 16):
            return forward.by_shifts(geometry, x, kernel)
        return forward.by_groups(geometry, x, kernel, _convolve_on_cpu)
    if math.prod(window) == 1 and math.prod(geometry.strides) == 1:
        return forward.by_product(geometry, x, kernel)  # 7.3 -> 3.5; a strided one spends the gain on its slice
    if geometry.space == 3:
        return forward.by_leading_taps(geometry, x, kernel, _convolve_on_cpu)  # 6.3 -> 2.0
    return forward.by_lax(geometry, x, kernel)


def _correlate_on_cpu(geometry: Geometry, x: jax.Array, g: jax.Array) -> jax.Array:
    """Equation (4) without the bias's part."""
    if any(e > 1 for e in geometry.input_dilation):
        if any(s > 1 for s in geometry.strides):
            return kernel_gradient.by_lax(geometry, x, g)
        return kernel_gradient.by_exchange(geometry, x, g, _correlate_on_cpu)  # a transposed convolution: 17 -> 0.9
    if geometry.groups > 1:
        if x.shape[-1] == geometry.groups:  # depthwise: 43 -> 3 to 5 (7x7), 350 -> 2 (two a channel)
            return kernel_gradient.by_column_sums(geometry, x, g)
        return kernel_gradient.by_merged_groups(geometry, x, g, _correlate_on_cpu)  # 400 to 1200 -> 2.5 to 5.5
    if math.prod(geometry.kernel_size) == 1:
        return kernel_gradient.by_product(geometry, x, g)  # 15 -> 4.3
    disjoint = all(k <= s for k, s in zip(geometry.kernel_size, geometry.strides, strict=True))
    if disjoint and set(geometry.kernel_dilation) == {1}:
        return kernel_gradient.by_patches(geometry, x, g)  # 19 -> 9.5 (2x2 of 96 channels), 2.7 -> 1.8 (16x16 of 3)
    if geometry.space == 3:
        return kernel_gradient.by_leading_taps(geometry, x, g, _correlate_on_cpu)  # 12 -> 2.7
    return kernel_gradient.by_lax(geometry, x, g)


# --- as JAX sees them -----------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Call:
    """The static side of a call: its geometry, and the axis orders of its two arguments and its result.

    A formulation sees the canonical order. Where XLA is to merge the transpositions with those of its own convolutions
    and products they are compiled with it (NCHW, 3x3: dW 17 -> 15); see `_in_order`.
    """

    geometry: Geometry
    orders: tuple[Order, Order, Order]

    def of(self, formulation: Formulation, a: jax.Array, b: jax.Array) -> jax.Array:
        """The formulation's result for the caller's arrays."""
        of_a, of_b, of_result = self.orders
        return from_canonical(formulation(self.geometry, to_canonical(a, of_a), to_canonical(b, of_b)), of_result)


Product = Callable[[Call, jax.Array, jax.Array], jax.Array]


def _bilinear(
    on_cpu: Formulation,
    elsewhere: Formulation,
    batches: Callable[[Geometry, jax.Array], bool],
    batch_folds: bool,
    waits: bool,
) -> Product:
    """A bilinear function of two arrays with a formulation for the CPU and one that any platform and transform takes.

    `batches` says for which second arguments vmap makes a good formulation of the CPU's; `batch_folds`, that the first
    argument's axis 0 and the result's are one batch; `waits`, that other uses of the second argument come first.
    """

    @functools.partial(jax.jit, static_argnums=0)  # eager calls compile it once
    def compiled(call: Call, a: jax.Array, b: jax.Array) -> jax.Array:
        def widened(geometry: Geometry, a: jax.Array, b: jax.Array) -> jax.Array:  # once, as XLA would many times
            return on_cpu(geometry, cast(a, geometry.dtype), cast(b, geometry.dtype))

        def alone(a: jax.Array, b: jax.Array) -> jax.Array:
            return outlined(functools.partial(call.of, widened), a, later(b) if waits else b)

        return lax.platform_dependent(a, b, cpu=alone, default=functools.partial(call.of, elsewhere))

    @functools.cache
    def batchable(call: Call) -> custom_vmap:
        @custom_vmap
        def one(a: jax.Array, b: jax.Array) -> jax.Array:
            return compiled(call, a, b)

        @one.def_vmap
        def many(size: int, batched: list[bool], a: jax.Array, b: jax.Array) -> tuple[jax.Array, bool]:
            if batch_folds and not batched[1]:
                start, end = call.orders[0][0], call.orders[2][0]  # the batch axes
                a = jnp.moveaxis(a, 0, start)
                y = one(lax.collapse(a, start, start + 2), b)
                y = lax.reshape(y, (*y.shape[:end], *a.shape[start : start + 2], *y.shape[end + 1 :]))
                return jnp.moveaxis(y, end, 0), True

            def in_turn(a: jax.Array, b: jax.Array) -> jax.Array:
                def at(i: int | jax.Array) -> jax.Array:
                    return one(a[i] if batched[0] else a, b[i] if batched[1] else b)

                # A few with much arithmetic are written out: a loop copies what it takes and yields, and XLA runs side
                # by side what does not depend on each other (4 kernels of 7x7, stride 2: 150 -> 110). Of light ones
                # (1x1, dW of depthwise) it is the larger memory that shows: 17 -> 26, 73 -> 95.
                channels = a.shape[call.orders[0][-1] + batched[0]]
                heavy = math.prod(call.geometry.kernel_size) > 1 and channels > call.geometry.groups
                if heavy and size <= forward.UNROLLED_CONVOLUTIONS:
                    return jnp.stack([at(i) for i in range(size)])
                return lax.map(at, jnp.arange(size))

            axes = [0 if is_batched else None for is_batched in batched]
            if batches(call.geometry, b):
                return jax.vmap(functools.partial(compiled, call), axes)(a, b), True
            together = jax.vmap(functools.partial(call.of, elsewhere), axes)
            return lax.platform_dependent(a, b, cpu=in_turn, default=together), True

        return one

    @functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
    def apply(call: Call, a: jax.Array, b: jax.Array) -> jax.Array:
        return batchable(call)(a, b)

    @apply.defjvp
    def tangent(call, primals, tangents):
        (a, b), (da, db) = primals, tangents
        return apply(call, a, b), call.of(elsewhere, da, b) + call.of(elsewhere, a, db)

    return apply


def _is_product(geometry: Geometry) -> bool:
    """Windows of one entry of one group: what x is multiplied by is a matrix (`by_product`)."""
    undilated = set(geometry.input_dilation) == {1}
    return geometry.groups == 1 and math.prod(geometry.kernel_size) == 1 and undilated


def _convolve_batches(geometry: Geometry, kernel: jax.Array) -> bool:
    """Matrix products of every entry of x, and depthwise sums over taps, in phases or not, which are elementwise."""
    left_to_xla = set(geometry.input_dilation) != {1} and set(geometry.strides) != {1}
    depthwise = geometry.groups > 1 and kernel.shape[-2] == 1 and not left_to_xla
    return depthwise or (_is_product(geometry) and math.prod(geometry.strides) == 1)


def _correlate_batches(geometry: Geometry, g: jax.Array) -> bool:
    """Matrix products."""
    return _is_product(geometry)


_convolve = _bilinear(_convolve_on_cpu, forward.by_lax, _convolve_batches, batch_folds=True, waits=False)
# The rest of a backward pass waits for dX, and nothing for dW: a ResNet-like step took 58 ms with dX first, 61 with dW
# mostly first, and 60 with dW still later; of a quarter and four times the batch it gained 1 to 2%.
_correlate = _bilinear(_correlate_on_cpu, kernel_gradient.by_lax, _correlate_batches, batch_folds=False, waits=True)


def convolve(geometry: Geometry, x: jax.Array, kernel: jax.Array, x_order: Order, y_order: Order) -> jax.Array:
    """Equation (1) without the bias, accumulated and returned in the geometry's dtype; the kernel is canonical."""
    call = Call(geometry, (x_order, tuple(range(kernel.ndim)), y_order))
    x, kernel = _of_one_dtype(geometry, x, kernel)
    if x.size == 0 or kernel.size == 0 or 0 in geometry.output_size:
        return call.of(forward.by_lax, x, kernel)
    return _in_order(_convolve, call, x, kernel)


def correlate(geometry: Geometry, x: jax.Array, g: jax.Array, x_order: Order, y_order: Order) -> jax.Array:
    """Equation (4) without the bias's part, accumulated and returned in the geometry's dtype, canonical."""
    call = Call(geometry, (x_order, y_order, tuple(range(x.ndim))))
    x, g = _of_one_dtype(geometry, x, g)
    if g.size == 0:  # XLA takes no window of size 0; the empty sum varies over the devices as g does
        channels = x.shape[x_order[-1]] // geometry.groups, g.shape[y_order[-1]]
        return lax.broadcast(cast(jnp.sum(g), geometry.dtype), (*geometry.kernel_size, *channels))
    if x.size == 0:
        return call.of(kernel_gradient.by_lax, x, g)
    return _in_order(_correlate, call, x, g)


def _in_order(product: Product, call: Call, a: jax.Array, b: jax.Array) -> jax.Array:
    """The product in the caller's axis order.

    With groups, the transpositions stay outside, where y, dX and dW can share them: within the padding of a sum over
    taps XLA computes them element by element (depthwise: y 2.0 -> 3.0), and a loop would repeat them.
    """
    if call.geometry.groups == 1:
        return product(call, a, b)
    canonical = Call(call.geometry, (tuple(range(a.ndim)),) * 3)
    return call.of(lambda _, a, b: product(canonical, a, b), a, b)


def _of_one_dtype(geometry: Geometry, a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Both as they are if their dtypes agree, or in the dtype of the accumulation."""
    if a.dtype == b.dtype and geometry.dtype != jnp.float64:
        return a, b
    return cast(a, geometry.dtype), cast(b, geometry.dtype)
