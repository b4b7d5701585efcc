"""A bilinear product of two arrays as JAX sees it: compiled for a platform, batched by vmap, differentiated.

A GPU or TPU gets XLA's convolution, with a 16-bit result where that is what the caller wants, and under vmap what vmap
makes of it (one with groups). A CPU gets a formulation of
its own, under vmap one after the other, since XLA's CPU backend runs grouped convolutions in a naive loop.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap

from jaxnorm._cotangents import cast
from jaxnorm._lower.calls import later, outlined
from jaxnorm._lower.convolution import forward
from jaxnorm._lower.convolution.geometry import Geometry, Order, from_canonical, to_canonical

Formulation = Callable[[Geometry, jax.Array, jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True, eq=False)  # equal only to itself, which JAX's caches see fast
class Formulations:
    """What is known of one kind of product.

    Attributes:
      on_cpu: the formulation for a CPU.
      elsewhere: the formulation for a GPU or TPU.
      derivative: a formulation that is right on any platform, for derivatives of the product.
      batches: whether `on_cpu` runs well when vmap has transformed it, by the geometry and the second argument.
      batch_folds: whether the first argument's batch is the result's, so that vmap's axis can become a part of it.
      waits: whether the other uses of the second argument come first.
    """

    on_cpu: Formulation
    elsewhere: Formulation
    derivative: Formulation
    batches: Callable[[Geometry, jax.Array], bool]
    batch_folds: bool
    waits: bool


@dataclasses.dataclass(frozen=True)
class Product:
    """A bilinear function of two arrays in the caller's axis orders; a formulation sees the canonical order."""

    formulations: Formulations
    geometry: Geometry
    wanted_dtype: Any  # to which the caller casts the result
    a_order: Order
    b_order: Order
    result_order: Order

    def __call__(self, a: jax.Array, b: jax.Array) -> jax.Array:
        """The product.

        XLA merges the transpositions from and to the canonical order with those of its own convolutions and products
        if it compiles them together. With groups they stay outside: y, dx and dkernel can share them there, XLA would
        compute them element by element within the padding of a sum over taps, and a loop over groups would repeat them.
        """
        if self.geometry.groups == 1:
            return _differentiable(self, a, b)
        canonical = tuple(range(a.ndim))
        inner = dataclasses.replace(self, a_order=canonical, b_order=canonical, result_order=canonical)
        return self.run(lambda _, a, b: _differentiable(inner, a, b), a, b)

    def run(self, formulation: Formulation, a: jax.Array, b: jax.Array) -> jax.Array:
        """The formulation's result for the caller's arrays, in the caller's order."""
        result = formulation(self.geometry, to_canonical(a, self.a_order), to_canonical(b, self.b_order))
        return from_canonical(result, self.result_order)

    def elsewhere(self, a: jax.Array, b: jax.Array) -> jax.Array:
        """The product on a GPU or TPU, which accumulate in float32 whatever the result's dtype is.

        A 16-bit result of theirs is half as much to write, and no less precise where it is rounded to 16 bits anyway.
        """

        def narrow(geometry: Geometry, a: jax.Array, b: jax.Array) -> jax.Array:
            dtype = self.wanted_dtype if self.wanted_dtype == a.dtype else geometry.dtype
            return self.formulations.elsewhere(dataclasses.replace(geometry, dtype=dtype), a, b)

        return cast(self.run(narrow, a, b), self.geometry.dtype)

    def derivative(self, a: jax.Array, b: jax.Array) -> jax.Array:
        """The product for any platform and any transformation."""
        return self.run(self.formulations.derivative, a, b)

    @functools.partial(jax.jit, static_argnums=0)  # so that eager calls compile it once
    def compiled(self, a: jax.Array, b: jax.Array) -> jax.Array:
        """The product, by platform."""
        return lax.platform_dependent(a, b, cpu=self.on_cpu, default=self.elsewhere)

    def on_cpu(self, a: jax.Array, b: jax.Array) -> jax.Array:
        """The product on a CPU, compiled in a call of its own."""

        def widened(geometry: Geometry, a: jax.Array, b: jax.Array) -> jax.Array:
            """16-bit arrays are widened here, once; XLA would widen them in each operation that reads them."""
            return self.formulations.on_cpu(geometry, cast(a, geometry.dtype), cast(b, geometry.dtype))

        return outlined(functools.partial(self.run, widened), a, later(b) if self.formulations.waits else b)

    def batched(self, size: int, mapped: Sequence[bool], a: jax.Array, b: jax.Array) -> jax.Array:
        """The product under vmap: those of `a` and `b` that are `mapped` have a new axis 0 of this size."""
        if self.formulations.batch_folds and not mapped[1]:
            return self.folded(a, b)
        axes = [0 if is_mapped else None for is_mapped in mapped]
        if self.formulations.batches(self.geometry, b):
            return jax.vmap(self.compiled, axes)(a, b)
        in_turn = functools.partial(self.in_turn, size, mapped)
        return lax.platform_dependent(a, b, cpu=in_turn, default=jax.vmap(self.elsewhere, axes))

    def folded(self, a: jax.Array, b: jax.Array) -> jax.Array:
        """One product of all of `a` and the same `b`: axis 0 of `a` becomes a part of the batch."""
        start, end = self.a_order[0], self.result_order[0]  # the batch axes
        a = jnp.moveaxis(a, 0, start)
        y = _batchable(self)(lax.collapse(a, start, start + 2), b)
        y = lax.reshape(y, (*y.shape[:end], *a.shape[start : start + 2], *y.shape[end + 1 :]))
        return jnp.moveaxis(y, end, 0)

    def in_turn(self, size: int, mapped: Sequence[bool], a: jax.Array, b: jax.Array) -> jax.Array:
        """One product after the other.

        A few with much arithmetic are unrolled, since XLA runs side by side what does not depend on each other, and a
        loop copies what it takes and yields. Light ones (1x1, depthwise) are a loop, since unrolled they need more
        memory, which takes longer than the copies.
        """

        def at(i: int | jax.Array) -> jax.Array:
            return _batchable(self)(a[i] if mapped[0] else a, b[i] if mapped[1] else b)

        channels = a.shape[self.a_order[-1] + mapped[0]]
        heavy = math.prod(self.geometry.kernel_size) > 1 and channels > self.geometry.groups
        if heavy and size <= forward.UNROLLED_CONVOLUTIONS:
            return jnp.stack([at(i) for i in range(size)])
        return lax.map(at, jnp.arange(size))


@functools.cache
def _batchable(product: Product) -> custom_vmap:
    """The product with its own rule under vmap."""

    @custom_vmap
    def one(a: jax.Array, b: jax.Array) -> jax.Array:
        return product.compiled(a, b)

    @one.def_vmap
    def many(size: int, mapped: list[bool], a: jax.Array, b: jax.Array) -> tuple[jax.Array, bool]:
        return product.batched(size, mapped, a, b), True

    return one


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _differentiable(product: Product, a: jax.Array, b: jax.Array) -> jax.Array:
    return _batchable(product)(a, b)


@_differentiable.defjvp
def _tangent(product: Product, primals: tuple, tangents: tuple) -> tuple[jax.Array, jax.Array]:
    """Only second-order derivatives need it, and XLA's convolution serves them."""
    (a, b), (da, db) = primals, tangents
    return _differentiable(product, a, b), product.derivative(da, b) + product.derivative(a, db)
