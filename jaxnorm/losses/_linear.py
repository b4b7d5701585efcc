"""The last layer of a classifier and its cross-entropy in one, without the logits ever being whole.

The rule is `jaxnorm._rules.linear_cross_entropy`.
"""

import dataclasses
import functools
import math
from typing import Literal, NamedTuple, overload

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxnorm._arguments import (
    AxisName,
    as_class_weights,
    as_float_array,
    as_labels,
    as_parameter,
    devices_along,
    static_bool,
    static_float,
    static_int,
    static_softcap,
)
from jaxnorm._cotangents import cast, compute_dtype, cotangent_for, reshape, varying_axes, varying_like
from jaxnorm._lower.products import dot
from jaxnorm._lower.rows import OnePass, block_width, over_blocks
from jaxnorm._rules import cross_entropy
from jaxnorm._rules import linear_cross_entropy as rule
from jaxnorm._rules.classes import in_range, per_class
from jaxnorm._rules.cross_entropy import LabelOptions
from jaxnorm._sharding import spec_of, with_shardings


@dataclasses.dataclass(frozen=True)
class Options:
    """The static side: the cross-entropy's own, the block's width, and the devices that share the vocabulary."""

    loss: LabelOptions
    block_size: int
    axis_name: AxisName
    classes: int  # of all devices


class Residuals(NamedTuple):
    """What is kept for the backward pass: the inputs and three numbers per token, (N, 1), float32 or float64."""

    inputs: rule.Inputs  # the arguments, as they came
    shift: jax.Array  # c: e_j comes back from it and a block of logits
    others: jax.Array  # S: total is it and the label's e_y
    logit: jax.Array  # the label's, which stands in one block only; -inf if the label is invalid


@overload
def linear_softmax_cross_entropy(
    hidden: ArrayLike,
    kernel: ArrayLike,
    labels: ArrayLike,
    bias: ArrayLike | None = ...,
    *,
    ignore_index: int | None = ...,
    label_smoothing: float = ...,
    class_weights: ArrayLike | None = ...,
    logit_softcap: float | None = ...,
    block_size: int | None = ...,
    axis_name: AxisName = ...,
    return_lse: Literal[False] = ...,
) -> jax.Array: ...
@overload
def linear_softmax_cross_entropy(
    hidden: ArrayLike,
    kernel: ArrayLike,
    labels: ArrayLike,
    bias: ArrayLike | None = ...,
    *,
    ignore_index: int | None = ...,
    label_smoothing: float = ...,
    class_weights: ArrayLike | None = ...,
    logit_softcap: float | None = ...,
    block_size: int | None = ...,
    axis_name: AxisName = ...,
    return_lse: Literal[True],
) -> tuple[jax.Array, jax.Array]: ...
def linear_softmax_cross_entropy(
    hidden: ArrayLike,
    kernel: ArrayLike,
    labels: ArrayLike,
    bias: ArrayLike | None = None,
    *,
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    class_weights: ArrayLike | None = None,
    logit_softcap: float | None = None,
    block_size: int | None = None,
    axis_name: AxisName = None,
    return_lse: bool = False,
) -> jax.Array | tuple[jax.Array, jax.Array]:
    """`softmax_cross_entropy_with_integer_labels(hidden @ kernel + bias, labels)` without logits of full size.

    Peak memory is that of `tokens * block_size` logits and of the gradients, whatever the vocabulary.

    Args:
      hidden: floating-point array of shape `(..., H)`; differentiable.
      kernel: float array of shape `(H, V)`; differentiable.
      labels: integer array of the shape of `hidden` without its last axis. A label outside [0, V) that is not
        `ignore_index` gives NaN in its own loss and in the gradients that sum over the tokens.
      bias: float array of shape `(V,)`, or None for 0; differentiable.
      ignore_index: a label whose tokens have loss 0 and gradient 0; static.
      label_smoothing: a in [0, 1], spread over all classes as in PyTorch; static.
      class_weights: float array of shape `(V,)`, as in PyTorch's `cross_entropy(reduction="none")`; differentiable.
      logit_softcap: t > 0 takes `t * tanh(logits / t)` for the logits; static.
      block_size: how many columns of logits exist at a time, V a multiple of it or not; None chooses; static.
      axis_name: a mapped axis over whose devices the vocabulary is split: `kernel` and `bias` are this device's
        columns (as many on each), `labels` and `class_weights` are of the whole vocabulary; static.
      return_lse: also return the log-sum-exp of each token's logits; static.

    Returns:
      The loss, of the shape of `labels`, in the dtype of `hidden` (float32 for 16-bit inputs); with `return_lse` a pair
      of it and the log-sum-exp, alike. Logits are accumulated and kept in float32, or float64 if an argument is.

    Gradient:
      `dlogits @ kernel.T` for `hidden` and `hidden.T @ dlogits` for `kernel`, a block of columns at a time, accumulated
      in float32 or float64. Kept for it: the inputs and three numbers per token; the backward pass computes each block
      of logits once more.

    Raises:
      TypeError: `hidden`, `kernel`, `bias` or `class_weights` is not floating-point, or `labels` not integer.
      ValueError: a shape does not fit, or an option is out of its range.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxnorm as jn
      >>> hidden, kernel = jnp.ones((2, 3)), jnp.zeros((3, 5))
      >>> print(jn.linear_softmax_cross_entropy(hidden, kernel, jnp.array([0, 4]), block_size=2))
      [1.609438 1.609438]

    References:
      Wijmans et al. 2024, https://arxiv.org/abs/2411.09009.
    """
    hidden, kernel = as_float_array("hidden", hidden), as_float_array("kernel", kernel)
    if hidden.ndim < 1:
        raise ValueError(f"hidden must have a feature axis, got shape {hidden.shape}")
    if kernel.ndim != 2 or kernel.shape[0] != hidden.shape[-1]:
        raise ValueError(
            f"kernel must have shape ({hidden.shape[-1]}, V) for hidden of shape {hidden.shape}, got {kernel.shape}"
        )
    columns = kernel.shape[1]
    bias = as_parameter("bias", bias, (columns,), f"the columns of kernel of shape {kernel.shape}")
    labels = as_labels(labels, hidden.shape, hidden.ndim - 1, "hidden")
    classes = columns * devices_along(axis_name)
    weights = as_class_weights(class_weights, classes)
    if block_size is None:
        block_size = block_width(math.prod(labels.shape))
    block_size = min(static_int("block_size", block_size, minimum=1), max(columns, 1))
    label_options = LabelOptions(
        static_float("label_smoothing", label_smoothing, 0.0, 1.0),
        None if ignore_index is None else static_int("ignore_index", ignore_index),
        static_softcap(logit_softcap),
        static_bool("return_lse", return_lse),
    )
    options = Options(label_options, block_size, axis_name, classes)
    of_arrays = functools.partial(_linear, options)
    spec, arrays = spec_of(hidden, without=[hidden.ndim - 1]), (hidden, kernel, labels, bias, weights)
    results: tuple[jax.Array, jax.Array] = with_shardings(of_arrays, spec, *arrays)
    return results if return_lse else results[0]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _linear(
    options: Options,
    hidden: jax.Array,
    kernel: jax.Array,
    labels: jax.Array,
    bias: jax.Array | None,
    class_weights: jax.Array | None,
) -> tuple[jax.Array, jax.Array]:
    return _linear_fwd(options, hidden, kernel, labels, bias, class_weights)[0]


def _linear_fwd(
    options: Options,
    hidden: jax.Array,
    kernel: jax.Array,
    labels: jax.Array,
    bias: jax.Array | None,
    class_weights: jax.Array | None,
) -> tuple[tuple[jax.Array, jax.Array], Residuals]:
    offset = jnp.zeros((), jnp.int32)
    if options.axis_name is not None:
        offset = kernel.shape[1] * cast(lax.axis_index(options.axis_name), jnp.int32)
    inputs = rule.Inputs(hidden, kernel, labels, bias, class_weights, offset)

    def add(sums: rule.Sums, start: rule.Start, size: int) -> rule.Sums:
        return rule.add_block(OnePass((1,)), options.loss, sums, rule.block_of(dot, options.loss, inputs, start, size))

    first = varying_like(rule.no_columns(inputs), *jax.tree.leaves(inputs))
    sums = over_blocks(kernel.shape[1], options.block_size, add, first)
    if options.axis_name is not None:
        sums = rule.over_devices(sums, options.axis_name)
    logit = jnp.where(in_range(inputs.y, options.classes), sums.logit, -jnp.inf)
    residuals = Residuals(inputs, cross_entropy.finite(sums.largest), sums.others, logit)
    row = _row(options, residuals)
    losses = cross_entropy.losses(options.loss, row, row.smoothing.uniform * sums.smooth)
    loss, lse = (cast(reshape(value, labels.shape), compute_dtype(hidden)) for value in losses)
    return (loss, lse), residuals


def _linear_bwd(
    options: Options, residuals: Residuals, cotangents: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array, None, jax.Array | None, jax.Array | None]:
    inputs, dtype = residuals.inputs, residuals.shift.dtype
    g, h = (cast(reshape(cotangent, residuals.shift.shape), dtype) for cotangent in cotangents)
    if options.axis_name is not None and not varying_axes(inputs.offset):
        # With check_vma=False each device has its own part of the cotangents, and the transpose of the forward pass's
        # psum is the psum of these parts. With check_vma=True every device has the whole cotangents already, and
        # `cotangent_for` sums what the replicated arguments receive.
        g, h = lax.psum((g, h), options.axis_name)
    row = _row(options, residuals)
    tokens = rule.Tokens(cast(inputs.x, dtype), g, row, cross_entropy.factors_of(options.loss, row, g, h))

    def add(sums: rule.Gradients, start: rule.Start, size: int) -> rule.Gradients:
        block = rule.block_of(dot, options.loss, inputs, start, size)
        return rule.add_gradients(dot, options.loss, tokens, sums, block)

    first = varying_like(rule.no_gradients(inputs), *jax.tree.leaves(residuals), g, h)
    sums = over_blocks(inputs.kernel.shape[1], options.block_size, add, first)
    dhidden = cotangent_for(inputs.hidden, reshape(sums.x, inputs.hidden.shape))
    dkernel, dbias, dweights = cotangent_for(inputs.kernel, sums.kernel), None, None
    if inputs.bias is not None and sums.bias is not None:
        dbias = cotangent_for(inputs.bias, sums.bias)
    if inputs.class_weights is not None and sums.class_weights is not None:
        whole = varying_like(jnp.zeros(inputs.class_weights.shape, dtype), sums.class_weights)
        dweights = cotangent_for(inputs.class_weights, rule.place(whole, sums.class_weights, inputs.offset))
    return dhidden, dkernel, None, dbias, dweights


_linear.defvjp(_linear_fwd, _linear_bwd)


def _row(options: Options, residuals: Residuals) -> cross_entropy.Row:
    """The cross-entropy's terms of each token, from what is kept."""
    inputs, dtype = residuals.inputs, residuals.shift.dtype
    weights = inputs.class_weights
    label = cross_entropy.label_of(options.loss, inputs.y, options.classes, weights, None, dtype)
    of_classes = jnp.ones((1, 1), dtype) if weights is None else per_class(cast(weights, dtype), 2, 1)
    smoothing = cross_entropy.smoothing_of(options.loss, of_classes, None, (1, options.classes), 1)
    return cross_entropy.Row(residuals.shift, residuals.others, residuals.logit, label, smoothing)
