"""flax's dense layers."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from opt_einsum.parser import parse_einsum_input

from jaxnorm._cotangents import reshape
from jaxnorm._flax.options import Shape, Variables, features_of, positive, promoted, refuse
from jaxnorm._models import NoEqual, as_array
from jaxnorm.dense import affine


def dense(layer: Any, variables: Variables, inputs: Any, out_sharding: Any = None) -> jax.Array:
    """`Dense`, `Linear`."""
    refuse("out_sharding", out_sharding)
    x, features = as_array(inputs), features_of(layer)
    kernel = variables.parameter("kernel", (x.shape[-1], *features))
    x, kernel, bias = promoted(layer, x, kernel, variables.parameter("bias", features))
    return affine(x, kernel, bias, precision=layer.precision)


def dense_general(layer: Any, variables: Variables, inputs: Any, out_sharding: Any = None) -> jax.Array:
    """`DenseGeneral`, `LinearGeneral`, without batch axes."""
    refuse("out_sharding", out_sharding)
    x, features = as_array(inputs), features_of(layer)
    axes = positive(layer.axis, x.ndim)
    kernel = variables.parameter("kernel", (*(x.shape[axis] for axis in axes), *features))
    bias = variables.parameter("bias", features)
    kept = tuple(axis for axis in range(x.ndim) if axis not in axes)
    return _contract(layer, x, (*kept, *axes), kernel, bias, len(axes))


def einsum(
    layer: Any, variables: Variables, inputs: Any, einsum_str: str | None = None, out_sharding: Any = None
) -> jax.Array:
    """`Einsum`, where every index of the kernel is either summed over or an output's."""
    refuse("out_sharding", out_sharding)
    x = as_array(inputs)
    shape = tuple(layer.shape if hasattr(layer, "shape") else layer.kernel_shape)
    equation = variables.chosen("einsum_str", einsum_str).replace(" ", "")
    kernel = variables.parameter("kernel", shape)
    if "->" not in equation or equation.count(",") != 1:
        raise NoEqual(f"equation {equation}")
    terms, result, _ = parse_einsum_input((equation, x, kernel))
    of_x, of_kernel = terms.split(",")
    summed = [c for c in of_kernel if c in of_x]
    rows, columns = [c for c in of_x if c not in summed], [c for c in of_kernel if c not in summed]
    if len({*of_x, *of_kernel}) != len(of_x) + len(columns) or sorted(result) != sorted(rows + columns):
        raise NoEqual(f"equation {equation}")
    size = dict(zip(of_kernel, shape, strict=True))
    in_result = [c for c in result if c in columns]
    bias = variables.parameter("bias", tuple(size[c] for c in in_result))
    kernel = jnp.transpose(kernel, [of_kernel.index(c) for c in summed + columns])
    bias = None if bias is None else jnp.transpose(bias, [in_result.index(c) for c in columns])
    y = _contract(layer, x, tuple(of_x.index(c) for c in rows + summed), kernel, bias, len(summed))
    return jnp.transpose(y, [(rows + columns).index(c) for c in result])


def _contract(layer: Any, x: jax.Array, order: Shape, kernel: Any, bias: Any, summed: int) -> jax.Array:
    """x, its axes in this order, times the kernel over the last of them and the kernel's first."""
    x, kernel, bias = promoted(layer, x, kernel, bias)
    x = x if order == tuple(range(x.ndim)) else jnp.transpose(x, order)
    columns = kernel.shape[summed:]
    size = math.prod(columns)
    matrix = reshape(kernel, (math.prod(kernel.shape[:summed]), size))
    bias = None if bias is None else reshape(bias, (size,))
    if summed == 0:
        raise NoEqual("no axis is summed over")
    y = affine(x, matrix, bias, num_feature_axes=summed, precision=layer.precision)
    return reshape(y, (*x.shape[: x.ndim - summed], *columns))
