"""The divergence of a student from a teacher, whose last layers' logits never exist whole.

The rule is `jaxnorm._rules.linear_kl`.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxnorm._arguments import AxisName, as_layer, as_mask, static_float, static_int
from jaxnorm._cotangents import cast, compute_dtype, reshape, varying_axes, varying_like, written_dtype
from jaxnorm._lower.columns import over_blocks
from jaxnorm._lower.products import dot, dot_of_cotangent
from jaxnorm._lower.rows import OnePass
from jaxnorm._rules import linear_kl as rule
from jaxnorm._rules.linear_layer import (
    Layer,
    LayerGradients,
    Start,
    add_layer_gradients,
    layer_cotangents,
    no_layer_gradients,
)
from jaxnorm._sharding import spec_of, with_shardings


@dataclasses.dataclass(frozen=True)
class Options:
    """The static side: the temperature, the block's width, and the devices that share the vocabulary."""

    temperature: float
    block_size: int | None
    axis_name: AxisName


class Residuals(NamedTuple):
    """What is kept for the backward pass: the inputs and four numbers per token."""

    inputs: rule.Inputs  # the arguments, as they came
    row: rule.Row  # (N, 1) each, float32 or float64
    device: jax.Array | None  # its number, where devices share the vocabulary


def linear_softmax_kl_divergence(
    hidden: ArrayLike,
    kernel: ArrayLike,
    teacher_hidden: ArrayLike,
    teacher_kernel: ArrayLike,
    bias: ArrayLike | None = None,
    teacher_bias: ArrayLike | None = None,
    *,
    temperature: float = 1.0,
    where: ArrayLike | None = None,
    block_size: int | None = None,
    axis_name: AxisName = None,
) -> jax.Array:
    """`KL(softmax(teacher_logits / T) || softmax(logits / T))`, without logits of full size.

    The logits are `hidden @ kernel + bias`, the student's, and `teacher_hidden @ teacher_kernel + teacher_bias`; both
    are computed a block of columns at a time. No factor of `T**2` is applied.

    Args:
      hidden: floating-point array of shape `(..., H)`; differentiable.
      kernel: float array of shape `(H, V)`; differentiable.
      teacher_hidden: float array of shape `(..., G)`, of as many tokens as `hidden`; receives no gradient.
      teacher_kernel: float array of shape `(G, V)`; receives no gradient.
      bias: float array of shape `(V,)`, or None for 0; differentiable.
      teacher_bias: float array of shape `(V,)`, or None for 0; receives no gradient.
      temperature: T > 0 divides both models' logits; static.
      where: boolean mask that broadcasts to the tokens, the shape of `hidden` without its last axis: False gives a
        token loss 0 and gradient 0, whatever its hidden rows hold.
      block_size: how many columns of logits exist at a time, V a multiple of it or not; None chooses by the number of
        tokens and the platform; static.
      axis_name: a mapped axis over whose devices the vocabulary is split: both kernels and biases are this device's
        columns (as many on each); static.

    Returns:
      The divergence of each token, of the shape of `hidden` without its last axis, in the dtype of `hidden` (float32
      for 16-bit inputs). It is never negative, and keeps its digits where the two models agree closely. Where the
      teacher gives probability to a class whose logit the student has at -inf, it is +inf.

    Gradient:
      `dlogits = g * (softmax(logits / T) - softmax(teacher_logits / T)) / T`, with every digit where the two are close,
      then `dlogits @ kernel.T` for `hidden` and `hidden.T @ dlogits` for `kernel`, a block of columns at a time,
      accumulated in float32 or float64; NaN where the divergence is infinite. Kept for it: the inputs and four numbers
      per token; the backward pass computes each block of logits once more. A TPU or GPU rounds `dlogits` of bfloat16
      inputs to bfloat16 for the two products. The teacher's gradients are 0.

    Raises:
      TypeError: an array is not floating-point, or `where` not boolean.
      ValueError: a shape does not fit, or an option is out of its range.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxnorm as jn
      >>> hidden, teacher_hidden = jnp.ones((2, 3)), jnp.ones((2, 4))
      >>> kernel, teacher_kernel = jnp.zeros((3, 5)), jnp.zeros((4, 5)).at[:, 0].set(0.5)
      >>> print(jn.linear_softmax_kl_divergence(hidden, kernel, teacher_hidden, teacher_kernel).round(4))
      [0.4744 0.4744]

    References:
      Hinton, Vinyals and Dean 2015, https://arxiv.org/abs/1503.02531; Kullback and Leibler 1951, "On information and
      sufficiency".
    """
    student = as_layer("", hidden, kernel, bias)
    teacher = as_layer("teacher_", teacher_hidden, teacher_kernel, teacher_bias)
    tokens = student[0].shape[:-1]
    if teacher[0].shape[:-1] != tokens:
        raise ValueError(
            f"teacher_hidden must have the tokens {tokens} of hidden of shape {student[0].shape}, "
            f"got shape {teacher[0].shape}"
        )
    if teacher[1].shape[1] != student[1].shape[1]:
        raise ValueError(
            f"teacher_kernel must have the {student[1].shape[1]} columns of kernel, got shape {teacher[1].shape}"
        )
    mask = as_mask(where, tokens, "the tokens")
    temperature = static_float("temperature", temperature, 0.0)
    if not 0 < temperature < float("inf"):
        raise ValueError(f"temperature must be positive and finite, got {temperature}")
    width = None if block_size is None else static_int("block_size", block_size, minimum=1)
    of_arrays = functools.partial(_divergence, Options(temperature, width, axis_name))
    spec = spec_of(student[0], without=[len(tokens)])
    return with_shardings(of_arrays, spec, *student, *lax.stop_gradient(teacher), mask)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _divergence(options: Options, *arrays: Any) -> jax.Array:
    return _divergence_fwd(options, *arrays)[0]


def _divergence_fwd(options: Options, *arrays: Any) -> tuple[jax.Array, Residuals]:
    inputs = rule.Inputs(Layer(*arrays[:3]), Layer(*arrays[3:6]), arrays[6])
    counted = inputs.counted()
    device = None if options.axis_name is None else lax.axis_index(options.axis_name)

    def add(sums: rule.Sums, start: Start, size: int) -> rule.Sums:
        return rule.add_block(OnePass((1,)), sums, rule.block_of(dot, counted, options.temperature, start, size))

    first = varying_like(rule.no_columns(inputs), *jax.tree.leaves((inputs, device)))
    sums = over_blocks(inputs.student.kernel.shape[1], options.block_size, 2 * inputs.tokens, add, first)
    if options.axis_name is not None:
        sums = rule.over_devices(sums, options.axis_name)
    row, kl = rule.row_of(sums)
    loss = kl if inputs.mask is None else jnp.where(inputs.mask, kl, 0)
    hidden = inputs.student.hidden
    loss = cast(reshape(loss, hidden.shape[:-1]), compute_dtype(hidden))
    return loss, Residuals(inputs, row, device)


def _divergence_bwd(options: Options, residuals: Residuals, g: jax.Array) -> tuple[jax.Array | None, ...]:
    inputs, row, device = residuals
    layer, dtype = inputs.student, row.total.dtype
    g = cast(reshape(g, row.total.shape), dtype)
    if device is not None and not varying_axes(device):  # as for the linear cross-entropy
        g = lax.psum(g, options.axis_name)
    if inputs.mask is not None:
        g = jnp.where(inputs.mask, g, 0)
    counted, back = inputs.counted(), dot_of_cotangent(layer.hidden, layer.kernel, dtype)

    def add(sums: LayerGradients, start: Start, size: int) -> LayerGradients:
        block = rule.block_of(dot, counted, options.temperature, start, size)
        d = rule.dlogits(row, options.temperature, g, block)
        return add_layer_gradients(back, counted.student.x, block.columns, d, sums)

    others = *jax.tree.leaves(residuals), g
    first = varying_like(no_layer_gradients(layer, dtype, written_dtype(layer.kernel, dtype, *others)), *others)
    sums = over_blocks(layer.kernel.shape[1], options.block_size, 2 * inputs.tokens, add, first)
    return *layer_cotangents(layer, sums), None, None, None, None


_divergence.defvjp(_divergence_fwd, _divergence_bwd)
