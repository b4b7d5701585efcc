"""The last layer of a classifier and its cross-entropy in one, without the logits ever being whole.

Forward, for hidden rows X (N, H), kernel W (H, V), bias b and blocks of the vocabulary, with the sums of
`losses._rows` and the loss of `losses._integer_labels`:

    L = cap(X W + b), a block of columns at a time                                                                   (1)
    c' = max(c, max_j l_j)        S' = S exp(c - c') + sum over j != y of exp(l_j - c')                              (2)
    Q' = Q + (c' - c) sum of the w seen so far + sum_j w_j (c' - l_j)        (for label smoothing)                   (3)

Each step of (2) and (3) adds one block to sums that stay what they would be over all columns seen so far: c is the
shift, held constant in derivatives, and S leaves the label's class out so that confident predictions keep their digits.

Backward. Each block of logits is computed anew and turned into its cotangent D by the equations (5) and (6) of
`losses._integer_labels`; D feeds both products at once:

    dX += D W^T        dW block = X^T D        db block = sum over rows of D                                         (4)

Vocabulary-parallel: each device holds a slice of the columns; c is a pmax, and S, Q and the label's logit one psum.

References: Milakov and Gimelshein 2018, https://arxiv.org/abs/1805.02867 (the running sums of (2)); Wijmans et al.
2024, https://arxiv.org/abs/2411.09009 (logits in blocks); Shoeybi et al. 2019, https://arxiv.org/abs/1909.08053.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxnorm._arguments import AxisName, as_float_array, as_parameter, static_int
from jaxnorm._cotangents import cast, compute_dtype, cotangent_for, reshape, varying_axes, varying_like
from jaxnorm._lower.products import dot
from jaxnorm.losses import _integer_labels, _rows

# A block of logits has about this many elements unless the caller says otherwise: large enough for full-speed products,
# small enough (8 MB of float32) to stay near the processor. On a CPU, 512 to 1024 columns for 2048 tokens take no more
# time than 2048 columns do, and half their memory.
BLOCK_ELEMENTS = 1 << 21


@dataclasses.dataclass(frozen=True)
class Options:
    """The static side: the cross-entropy's own, the block's width, and the devices that share the vocabulary."""

    loss: _integer_labels.Options
    block_size: int
    axis_name: AxisName
    classes: int  # of all devices


class Residuals(NamedTuple):
    """What is kept: the inputs and three numbers per token."""

    hidden: jax.Array  # the input, as it came
    kernel: jax.Array  # the parameter itself
    labels: jax.Array  # the input, as it came
    bias: jax.Array | None  # the parameter itself
    class_weights: jax.Array | None  # the parameter itself
    shift: jax.Array  # c, (N, 1), float32 or float64
    others: jax.Array  # S, (N, 1), float32 or float64
    logit: jax.Array  # the label's, (N, 1), float32 or float64; -inf if the label is invalid
    offset: jax.Array  # the first column's class: 0 unless devices share the vocabulary


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
      Equation (4) of this module, accumulated in float32 or float64. Kept for it: the inputs and three numbers per
      token; the backward pass computes each block of logits once more.

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
    labels = _rows.as_labels(labels, hidden.shape, hidden.ndim - 1, "hidden")
    classes = columns * (1 if axis_name is None else lax.psum(1, axis_name))
    weights = _rows.as_class_weights(class_weights, classes)
    if block_size is None:
        block_size = max(BLOCK_ELEMENTS // max(math.prod(labels.shape), 1), 128)
    block_size = min(static_int("block_size", block_size, minimum=1), max(columns, 1))
    checked = _integer_labels.checked_options(label_smoothing, ignore_index, logit_softcap, return_lse)
    options = Options(_integer_labels.Options(1, *checked), block_size, axis_name, classes)
    loss, lse = _linear(options, hidden, kernel, labels, bias, weights)
    return (loss, lse) if options.loss.return_lse else loss


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _linear(options, hidden, kernel, labels, bias, class_weights):
    return _linear_fwd(options, hidden, kernel, labels, bias, class_weights)[0]


def _linear_fwd(options, hidden, kernel, labels, bias, class_weights):
    dtype = compute_dtype(hidden, kernel, bias, class_weights)
    tokens = math.prod(labels.shape)
    offset = jnp.zeros((), jnp.int32)
    if options.axis_name is not None:
        offset = kernel.shape[1] * cast(lax.axis_index(options.axis_name), jnp.int32)
    empty = jnp.full((tokens, 1), -jnp.inf, dtype)
    zeros = jnp.zeros((tokens, 1), dtype)
    residuals = Residuals(hidden, kernel, labels, bias, class_weights, empty, zeros, zeros, offset)

    def add(sums, start, size):
        return _add_block(options, sums, _block(options, residuals, start, size))

    first = varying_like(Sums(empty, zeros, zeros, zeros, zeros), *residuals)
    largest, others, logit, smooth, _ = _over_devices(options, _over_blocks(options, kernel.shape[1], add, first))
    logit = jnp.where(_valid(options, residuals), logit, -jnp.inf)
    residuals = residuals._replace(shift=_finite(largest), others=others, logit=logit)
    row = _row(options, residuals)
    row = row._replace(smooth=row.uniform * smooth)
    losses = _integer_labels.losses_of(options.loss, row)
    loss, lse = (cast(reshape(r, labels.shape), compute_dtype(hidden)) for r in losses)
    return (loss, lse), residuals


def _linear_bwd(options, residuals, cotangents):
    hidden, kernel, labels, bias, class_weights, shift, *_, offset = residuals
    dtype, tokens = shift.dtype, shift.shape[0]
    g, h = (cast(reshape(c, (tokens, 1)), dtype) for c in cotangents)
    if options.axis_name is not None and not varying_axes(offset):
        # Where nothing is known to vary, the transpose of the forward psum is a psum; where it is, g is the same on
        # all devices already and `cotangent_for` sums what the replicated arguments receive.
        g, h = lax.psum((g, h), options.axis_name)
    row = _row(options, residuals)
    of_e, of_w, at_label = _integer_labels.coefficients(options.loss, row, g, h)
    rows = cast(_flat(hidden), dtype)

    def add(sums, start, size):
        dhidden, *dcolumns = sums
        block = _block(options, residuals, start, size)
        d = of_e * jnp.exp(block.logits - shift)
        if options.loss.label_smoothing:
            d = d - of_w * block.weights
        d = jnp.where(block.own, at_label, d)
        terms = None
        if class_weights is not None:
            terms = jnp.sum(_integer_labels.dweights(options.loss, row, g, block.own, block.logits, None), axis=0)
        if options.loss.logit_softcap is not None:
            d = d * _integer_labels.softcap_slope(options.loss.logit_softcap, block.uncapped)
        if row.ignored is not None and not options.loss.return_lse:
            d = jnp.where(row.ignored, 0, d)  # whatever its logits hold: padding may be NaN
        dhidden = dhidden + dot(d, cast(block.kernel, dtype), (1, 1), dtype)  # (4)
        blocks = dot(rows, d, (0, 0), dtype), None if bias is None else jnp.sum(d, axis=0), terms
        return dhidden, *(_place(whole, part, start) for whole, part in zip(dcolumns, blocks, strict=True))

    # One block of columns is done at a time, so it is written where it belongs, and nothing is stacked or joined.
    like = (kernel, bias, None if class_weights is None else kernel[0])
    first = [
        jnp.zeros((tokens, kernel.shape[0]), dtype),
        *(None if a is None else jnp.zeros(a.shape, dtype) for a in like),
    ]
    first = varying_like(tuple(first), *residuals, g, h)
    dhidden, dkernel, dbias, dweights = _over_blocks(options, kernel.shape[1], add, first)
    dhidden = cotangent_for(hidden, reshape(dhidden, hidden.shape))
    dbias = None if bias is None else cotangent_for(bias, dbias)
    if dweights is not None:
        whole = varying_like(jnp.zeros(class_weights.shape, dtype), dweights)
        dweights = cotangent_for(class_weights, lax.dynamic_update_slice_in_dim(whole, dweights, offset, 0))
    return dhidden, cotangent_for(kernel, dkernel), None, dbias, dweights


_linear.defvjp(_linear_fwd, _linear_bwd)


class Block(NamedTuple):
    """Some columns of the logits, and what belongs to them."""

    kernel: jax.Array  # (H, size)
    uncapped: jax.Array  # (N, size), in the compute dtype
    logits: jax.Array  # (N, size), capped
    label: jax.Array  # (N, 1): each token's label, counted from the block's first column
    own: jax.Array  # (N, size): True at each token's label
    weights: jax.Array  # (1, size): the class weights, 1 if there are none


class Sums(NamedTuple):
    """The running sums of (2) and (3), each (N, 1)."""

    largest: jax.Array  # c, -inf before the first block
    others: jax.Array  # S
    logit: jax.Array  # the label's, 0 until it comes by
    smooth: jax.Array  # Q
    weights: jax.Array  # the sum of the w seen so far


def _block(options: Options, residuals: Residuals, start: jax.Array | int, size: int) -> Block:
    """The logits (1) of `size` columns from `start` on."""
    hidden, kernel, labels, bias, class_weights, shift, *_, offset = residuals
    dtype = shift.dtype
    kernel = lax.dynamic_slice_in_dim(kernel, start, size, 1)
    uncapped = dot(_flat(hidden), kernel, (1, 0), dtype)
    if bias is not None:
        uncapped = uncapped + reshape(cast(lax.dynamic_slice_in_dim(bias, start, size), dtype), (1, size))
    wide = _wide(labels)
    label = wide - cast(offset + start, wide.dtype)
    own = _rows.is_label(label, uncapped.shape, 1)
    weights = jnp.ones((1, 1), dtype)
    if class_weights is not None:
        weights = reshape(cast(lax.dynamic_slice_in_dim(class_weights, offset + start, size), dtype), (1, size))
    return Block(kernel, uncapped, _integer_labels.softcapped(options.loss, uncapped), label, own, weights)


def _over_blocks(options: Options, columns: int, add: Callable[..., Any], sums: Any) -> Any:
    """`add` over all blocks: the full ones in a scan, then the remainder as a narrower one.

    No column is padded or counted twice.
    """
    count, size = columns // options.block_size, options.block_size
    starts = size * jnp.arange(count, dtype=jnp.int32)
    sums, _ = lax.scan(lambda carry, start: (add(carry, start, size), None), sums, starts)
    return add(sums, count * size, columns - count * size) if columns % size else sums


def _add_block(options: Options, sums: Sums, block: Block) -> Sums:
    """One step of (2) and (3)."""
    largest, others, logit, smooth, seen = sums
    here = jnp.max(block.logits, axis=1, keepdims=True)
    sums = _shifted(sums, lax.stop_gradient(jnp.maximum(largest, here)))
    shift = _finite(sums.largest)
    others = sums.others + jnp.sum(jnp.where(block.own, 0, jnp.exp(block.logits - shift)), axis=1, keepdims=True)
    # Looked up, since a sum with a select would write one more block.
    inside = (block.label >= 0) & (block.label < block.logits.shape[1])
    logit = logit + jnp.where(inside, _rows.pick(block.logits, block.label, 1), 0)
    if options.loss.label_smoothing:
        weights = jnp.broadcast_to(block.weights, block.logits.shape)
        smooth = sums.smooth + jnp.sum(_rows.times(weights, shift - block.logits), axis=1, keepdims=True)
        seen = seen + jnp.sum(weights, axis=1, keepdims=True)
    return Sums(sums.largest, others, logit, smooth, seen)


def _shifted(sums: Sums, largest: jax.Array) -> Sums:
    """The same sums for a larger c."""
    nothing, step = sums.largest == -jnp.inf, _finite(largest) - _finite(sums.largest)
    return sums._replace(
        largest=largest,
        others=jnp.where(nothing, 0, sums.others * jnp.exp(jnp.where(nothing, 0, -step))),
        smooth=sums.smooth + jnp.where(nothing, 0, step) * sums.weights,
    )


def _over_devices(options: Options, sums: Sums) -> Sums:
    """The sums over all devices' columns: one pmax and one psum."""
    if options.axis_name is None:
        return sums
    sums = _shifted(sums, lax.pmax(lax.stop_gradient(sums.largest), options.axis_name))
    parts = jnp.stack([sums.others, sums.logit, sums.smooth])
    others, logit, smooth = lax.psum(parts, options.axis_name)
    return sums._replace(others=others, logit=logit, smooth=smooth)


def _row(options: Options, residuals: Residuals) -> _integer_labels.Row:
    """The per-token terms of the cross-entropy, all but `smooth`."""
    *_, class_weights, shift, others, logit, _ = residuals
    wide, ignore_index = _wide(residuals.labels), options.loss.ignore_index
    ignored = None if ignore_index is None else wide == ignore_index
    weight, uniform = jnp.ones((1, 1), shift.dtype), options.loss.label_smoothing / max(options.classes, 1)
    spread: Any = options.loss.label_smoothing
    if class_weights is not None:
        weights = cast(class_weights, shift.dtype)
        weight, spread = _rows.class_weight(weights, wide), uniform * jnp.sum(weights)
    return _integer_labels.Row(
        shift, others, logit, _valid(options, residuals), ignored, None, weight, uniform, spread, 0.0
    )


def _valid(options: Options, residuals: Residuals) -> jax.Array:
    wide = _wide(residuals.labels)
    return (wide >= 0) & (wide < options.classes)


def _wide(labels: jax.Array) -> jax.Array:
    return reshape(_rows.widened(labels), (math.prod(labels.shape), 1))


def _flat(hidden: jax.Array) -> jax.Array:
    return reshape(hidden, (math.prod(hidden.shape[:-1]), hidden.shape[-1]))


def _finite(largest: jax.Array) -> jax.Array:
    """c as a shift: 0 where there is no class yet."""
    return jnp.where(largest == -jnp.inf, 0, largest)


def _place(whole: jax.Array | None, part: jax.Array | None, start: jax.Array | int) -> jax.Array | None:
    """`whole` with `part` in place of its columns from `start` on."""
    if whole is None or part is None:
        return None
    return lax.dynamic_update_slice_in_dim(whole, part, start, whole.ndim - 1)
