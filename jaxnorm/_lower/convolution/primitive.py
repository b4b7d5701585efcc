"""A product as JAX sees it: one operation with its derivatives, its rule under vmap and its partition over devices.

The derivatives of a bilinear product are such products themselves, so that derivatives of every order are computed by
these formulations. (JAX's `custom_vmap` and `custom_partitioning` on their own cannot be transposed.)
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.xla_metadata import set_xla_metadata
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from jaxnorm._cotangents import cast, varying_like
from jaxnorm._lower.convolution.partition import partitioned
from jaxnorm._lower.convolution.product import Level, Product, axes_of

product_p = Primitive("convolution_product")


def apply(product: Product, a: jax.Array, b: jax.Array) -> jax.Array:
    """The product."""
    a, b = varying_like((a, b), a, b)  # so that the transposes sum over the devices that share an array
    return product.apart(_applied, a, b)


def _applied(product: Product, a: jax.Array, b: jax.Array) -> jax.Array:
    program = jax.make_jaxpr(functools.partial(_program, product))(a, b)
    return product_p.bind(a, b, product=product, program=program)


@functools.partial(jax.jit, static_argnums=0)  # so that it is traced once
def _program(product: Product, a: jax.Array, b: jax.Array) -> jax.Array:
    """What a product says of itself: its type, and that it asks for its devices when it is lowered, if there are any.

    An abstract mesh, for export, has none.
    """
    meshes = (jax.typeof(array).sharding.mesh for array in (a, b))
    if any(not mesh.empty and mesh.abstract_device is None for mesh in meshes):
        return product.anywhere(a, b)
    return partitioned(product, a, b)


@functools.partial(jax.jit, static_argnums=0)
def _evaluated(product: Product, a: jax.Array, b: jax.Array) -> jax.Array:
    return _applied(product, a, b)


@product_p.def_impl
def _evaluate(a: jax.Array, b: jax.Array, *, product: Product, program: Any) -> jax.Array:
    del program
    return _evaluated(product, a, b)


@product_p.def_abstract_eval
def _type(a: Any, b: Any, *, product: Product, program: Any) -> Any:
    del a, b, product
    return program.out_avals[0]


def _lower(ctx: mlir.LoweringRuleContext, a: Any, b: Any, *, product: Product, program: Any) -> Any:
    del program
    return mlir.lower_fun(_for_devices(ctx.module_context, product), multiple_results=False)(ctx, a, b)


def _for_devices(module: mlir.ModuleContext, product: Product) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """What computes the product on one device, on each of several by itself, or on several together."""
    over = module.axis_context
    if isinstance(over, mlir.SPMDAxisContext):
        # Inside of a shard_map over some of a mesh's axes alone, XLA asks nobody how to split over the others.
        return product.compiled if set(over.manual_axes) == set(over.mesh.axis_names) else product.anywhere
    if over.num_devices == 1:
        return product.compiled
    if module.lowering_parameters.for_export or not over.device_assignment:  # and so without functions of this process
        return product.anywhere
    return functools.partial(_marked, product)


def lowered(module: mlir.ModuleContext, product: Product, a: jax.Array, b: jax.Array) -> jax.Array:
    """The product in a module for a CPU, where nothing is left to choose by platform."""
    function = _for_devices(module, product)
    return product.on_cpu(a, b) if function == product.compiled else function(a, b)


def _marked(product: Product, a: jax.Array, b: jax.Array) -> Any:
    """The product, marked with what it is: JAX's cache of compiled programs sees the mark, and not how it is split."""
    return set_xla_metadata(partitioned(product, a, b), product=str(product))


# --- derivatives ----------------------------------------------------------------------------------------------------


def _transpose(which: int, g: jax.Array, a: Any, b: Any, *, product: Product, program: Any) -> jax.Array:
    """The cotangent of the first or second array, from the result's and the other array."""
    del program
    own, other = ((a, b), (b, a))[which]
    innermost = dataclasses.replace(product, levels=())
    cotangent = functools.partial(product.formulations.cotangents[which], innermost, own.aval.dtype)
    for level in reversed(product.levels):
        cotangent = _over(cotangent, level, which)
    return cast(cotangent(g, other), own.aval.dtype)


def _over(cotangent: Callable[..., jax.Array], level: Level, which: int) -> Callable[..., jax.Array]:
    """The cotangent under vmap: summed over the level if the array does not have it."""
    mapped = jax.vmap(cotangent, (0, axes_of(level)[1 - which]))
    return mapped if level[which] else lambda *arrays: jnp.sum(mapped(*arrays), axis=0)


ad.defbilinear(product_p, functools.partial(_transpose, 0), functools.partial(_transpose, 1))


# --- under vmap -----------------------------------------------------------------------------------------------------


def _batch(arrays: Any, axes: Any, *, product: Product, program: Any) -> tuple[jax.Array, int]:
    del program
    a, b = (array if axis is None else jnp.moveaxis(array, axis, 0) for array, axis in zip(arrays, axes, strict=True))
    of_a, of_b = (axis is not None for axis in axes)
    if not of_b and not product.formulations.sums_batch:
        return _folded(product, a, b), 0
    return _applied(dataclasses.replace(product, levels=((of_a, of_b), *product.levels)), a, b), 0


def _folded(product: Product, a: jax.Array, b: jax.Array) -> jax.Array:
    """One product of all of `a` and the same `b`: axis 0 of `a` becomes a part of the batch."""
    start = product.a_order[0] + sum(of_a for of_a, _ in product.levels)  # the batch axes
    end = product.result_order[0] + len(product.levels)
    a = jnp.moveaxis(a, 0, start)
    y = _applied(product, lax.collapse(a, start, start + 2), b)
    y = lax.reshape(y, (*y.shape[:end], *a.shape[start : start + 2], *y.shape[end + 1 :]))
    return jnp.moveaxis(y, end, 0)


batching.primitive_batchers[product_p] = _batch
mlir.register_lowering(product_p, _lower)
