"""A bilinear product of two arrays, and how a platform computes it, under vmap too.

A GPU or TPU gets XLA's convolution, with a 16-bit result where that is what the caller wants, and under vmap what vmap
makes of it (one with groups). A CPU gets a formulation of its own, under vmap one after the other, since XLA's CPU
backend runs grouped convolutions in a naive loop. What JAX sees of a product is in `primitive`.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxnorm._cotangents import cast
from jaxnorm._lower.calls import later, outlined
from jaxnorm._lower.convolution import forward
from jaxnorm._lower.convolution.geometry import Geometry, Order, from_canonical, to_canonical
from jaxnorm._lower.platforms import by_platform, forced_platform

Formulation = Callable[[Geometry, jax.Array, jax.Array], jax.Array]
Level = tuple[bool, bool]  # which of a product's arrays have the axis; its result has it always


@dataclasses.dataclass(frozen=True, eq=False, repr=False)  # equal only to itself, which JAX's caches see fast
class Formulations:
    """What is known of one kind of product.

    Attributes:
      on_cpu: the formulation for a CPU.
      elsewhere: the formulation for a GPU or TPU.
      anywhere: a formulation of slices and products, which XLA's partitioner gets right however the arrays are split.
      cotangents: of the two arrays, from the product, its own dtype, the result's cotangent and the other array.
      inlined: whether `on_cpu` is compiled with what surrounds it, by the geometry.
      batches: whether `on_cpu` runs well when vmap has transformed it, by the geometry and the second array's shape.
      sums_batch: whether the batch is summed over; else it is the result's too.
      waits: whether the other uses of the second array come first.
    """

    on_cpu: Formulation
    elsewhere: Formulation
    anywhere: Formulation
    cotangents: tuple[Callable[..., jax.Array], Callable[..., jax.Array]]
    inlined: Callable[[Geometry], bool]
    batches: Callable[[Geometry, tuple[int, ...]], bool]
    sums_batch: bool
    waits: bool

    def __repr__(self) -> str:
        return self.on_cpu.__name__


@dataclasses.dataclass(frozen=True)
class Product:
    """A bilinear function of two arrays in the caller's axis orders; a formulation sees the canonical order.

    Each of the `levels` that vmap adds is an axis in front of the arrays that it maps and of the result.
    """

    formulations: Formulations
    geometry: Geometry
    wanted_dtype: Any  # to which the caller casts the result
    a_order: Order
    b_order: Order
    result_order: Order
    levels: tuple[Level, ...] = ()
    forced: str | None = dataclasses.field(default_factory=forced_platform)  # by a test, which may end before a use

    @property
    def inner(self) -> "Product":
        """The product that the first level maps."""
        return dataclasses.replace(self, levels=self.levels[1:])

    def apart(
        self, of: "Callable[[Product, jax.Array, jax.Array], jax.Array]", a: jax.Array, b: jax.Array
    ) -> jax.Array:
        """`of(product, a, b)` in the caller's axis orders, with groups of a product in the canonical ones.

        XLA merges the transpositions from and to the canonical order with those of its own convolutions and products
        if it compiles them together. With groups they stay outside: y, dx and dkernel can share them there, XLA would
        compute them element by element within the padding of a sum over taps, and a loop over groups would repeat them.
        """
        if self.geometry.groups == 1:
            return of(self, a, b)
        canonical = tuple(range(a.ndim))
        inner = dataclasses.replace(self, a_order=canonical, b_order=canonical, result_order=canonical)
        return self.run(lambda _, a, b: of(inner, a, b), a, b)

    def run(self, formulation: Formulation, a: jax.Array, b: jax.Array) -> jax.Array:
        """The formulation's result for the caller's arrays, in the caller's order."""
        result = formulation(self.geometry, to_canonical(a, self.a_order), to_canonical(b, self.b_order))
        return from_canonical(result, self.result_order)

    def compiled(self, a: jax.Array, b: jax.Array) -> jax.Array:
        """The product, by platform."""
        if self.forced:
            return (self.on_cpu if self.forced == "cpu" else self.elsewhere)(a, b)
        return by_platform(a, b, cpu=self.on_cpu, default=self.elsewhere)

    def on_cpu(self, a: jax.Array, b: jax.Array) -> jax.Array:
        """The product on a CPU, which gets a formulation of its own, under vmap where that runs well."""

        def widened(geometry: Geometry, a: jax.Array, b: jax.Array) -> jax.Array:
            """16-bit arrays are widened here, once; XLA would widen them in each operation that reads them."""
            return self.formulations.on_cpu(geometry, cast(a, geometry.dtype), cast(b, geometry.dtype))

        if not self.levels:
            b = later(b) if self.formulations.waits else b
            formulation = functools.partial(self.run, widened)
            # XLA runs its own convolutions beside what does not depend on them, and does so less if they are in calls.
            return formulation(a, b) if self.formulations.inlined(self.geometry) else outlined(formulation, a, b)
        if self.formulations.batches(self.geometry, b.shape):
            return self._mapped(self.inner.on_cpu, a, b)
        return self._in_turn(a, b)

    def elsewhere(self, a: jax.Array, b: jax.Array) -> jax.Array:
        """The product on a GPU or TPU, which accumulate in float32 whatever the result's dtype is.

        A 16-bit result of theirs is half as much to write, and no less precise where it is rounded to 16 bits anyway.
        """

        def narrow(geometry: Geometry, a: jax.Array, b: jax.Array) -> jax.Array:
            dtype = self.wanted_dtype if self.wanted_dtype == a.dtype else geometry.dtype
            return self.formulations.elsewhere(dataclasses.replace(geometry, dtype=dtype), a, b)

        if self.levels:
            return self._mapped(self.inner.elsewhere, a, b)
        return cast(self.run(narrow, a, b), self.geometry.dtype)

    def anywhere(self, a: jax.Array, b: jax.Array) -> jax.Array:
        """The product for any platform and any partition."""
        if self.levels:
            return self._mapped(self.inner.anywhere, a, b)
        return self.run(self.formulations.anywhere, a, b)

    def _mapped(self, function: Callable[..., jax.Array], *arrays: jax.Array) -> jax.Array:
        return jax.vmap(function, axes_of(self.levels[0]))(*arrays)

    def _in_turn(self, a: jax.Array, b: jax.Array) -> jax.Array:
        """One product after the other.

        A few with much arithmetic are unrolled, since XLA runs side by side what does not depend on each other, and a
        loop copies what it takes and yields. Light ones (1x1, depthwise) are a loop, since unrolled they need more
        memory, which takes longer than the copies.
        """
        of_a, of_b = self.levels[0]
        size = (a if of_a else b).shape[0]

        def at(i: int | jax.Array) -> jax.Array:
            return self.inner.on_cpu(a[i] if of_a else a, b[i] if of_b else b)

        channels = a.shape[self.a_order[-1] + sum(of_a for of_a, _ in self.levels)]
        heavy = math.prod(self.geometry.kernel_size) > 1 and channels > self.geometry.groups
        if heavy and size <= forward.UNROLLED_CONVOLUTIONS:
            return jnp.stack([at(i) for i in range(size)])
        return lax.map(at, jnp.arange(size))


def axes_of(level: Level) -> tuple[int | None, int | None]:
    """vmap's `in_axes` of a level."""
    of_a, of_b = level
    return 0 if of_a else None, 0 if of_b else None
