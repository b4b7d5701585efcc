"""Cross-entropy on logits that exist a block of columns at a time.

Forward, for hidden rows X (N, H), kernel W (H, V), bias b and blocks of the vocabulary, with c, S and the loss of
`jaxnorm._rules.cross_entropy`, where k is the label's class y:

    L = cap(X W + b), a block of columns at a time                                                                   (1)
    c' = max(c, max_j l_j)        S' = S exp(c - c') + sum over j != y of exp(l_j - c')                              (2)
    Q' = Q + (c' - c) sum of the w seen so far + sum_j w_j (c' - l_j)        (for label smoothing)                   (3)

After each step of (2) and (3) the sums are those over all columns seen so far, since exp(l - c') = exp(l - c)
exp(c - c') and c' - l = (c - l) + (c' - c). c is held constant in derivatives.

Backward. Each block of logits is computed again and turned into its cotangent D, by (7) and (8) of
`jaxnorm._rules.cross_entropy`. D feeds both products at once, since L is linear in each argument but for the cap:

    dX += D W^T        dW block = X^T D        db block = sum over rows of D                                         (4)

Where devices share the vocabulary, each has a slice of the columns; c is a pmax, and S, Q and the label's logit are one
psum.

References: Milakov and Gimelshein 2018, https://arxiv.org/abs/1805.02867 (the running sums of (2)); Wijmans et al.
2024, https://arxiv.org/abs/2411.09009 (logits in blocks); Shoeybi et al. 2019, https://arxiv.org/abs/1909.08053.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxnorm._arguments import AxisName
from jaxnorm._cotangents import cast, compute_dtype, reshape
from jaxnorm._rules.classes import in_range, is_label, pick, widened
from jaxnorm._rules.cross_entropy import (
    Factors,
    LabelOptions,
    Row,
    Rows,
    dlogits,
    dweights,
    exponentials,
    finite,
    smooth_terms,
    softcapped,
)

Dot = Callable[..., jax.Array]  # the product of two arrays over an axis of each, accumulated in a dtype
Start = jax.Array | int  # of a block: its first column


class Inputs(NamedTuple):
    """The arguments, as they came, and where this device's columns begin."""

    hidden: jax.Array  # (..., H)
    kernel: jax.Array  # (H, V)
    labels: jax.Array  # (...)
    bias: jax.Array | None  # (V,)
    class_weights: jax.Array | None  # of all devices' classes
    offset: jax.Array  # int32: the first column's class, 0 unless devices share the vocabulary

    @property
    def dtype(self) -> Any:
        """What logits and gradients accumulate in."""
        return compute_dtype(self.hidden, self.kernel, self.bias, self.class_weights)

    @property
    def x(self) -> jax.Array:
        """X: a row for each token, (N, H)."""
        return reshape(self.hidden, (math.prod(self.labels.shape), self.kernel.shape[0]))

    @property
    def y(self) -> jax.Array:
        """The labels, (N, 1), in a signed dtype."""
        return reshape(widened(self.labels), (math.prod(self.labels.shape), 1))


class Block(NamedTuple):
    """Some columns of the logits, and what belongs to them."""

    start: Start
    kernel: jax.Array  # (H, size)
    uncapped: jax.Array  # (N, size), in the compute dtype
    logits: jax.Array  # (N, size), capped
    label: jax.Array  # (N, 1): each token's label, counted from the block's first column
    own: jax.Array  # (N, size): [j = y]
    weights: jax.Array  # (1, size): the class weights, or (1, 1): 1 if there are none


def block_of(dot: Dot, options: LabelOptions, inputs: Inputs, start: Start, size: int) -> Block:
    """The logits (1) of `size` columns from `start` on."""
    dtype, kernel = inputs.dtype, lax.dynamic_slice_in_dim(inputs.kernel, start, size, 1)
    uncapped = dot(inputs.x, kernel, (1, 0), dtype)  # (1)
    if inputs.bias is not None:
        uncapped = uncapped + reshape(cast(lax.dynamic_slice_in_dim(inputs.bias, start, size), dtype), (1, size))  # (1)
    label = inputs.y - cast(inputs.offset + start, inputs.y.dtype)
    weights = jnp.ones((1, 1), dtype)
    if inputs.class_weights is not None:
        of_block = lax.dynamic_slice_in_dim(inputs.class_weights, inputs.offset + start, size)
        weights = reshape(cast(of_block, dtype), (1, size))
    capped, own = softcapped(options, uncapped), is_label(label, uncapped.shape, 1)
    return Block(start, kernel, uncapped, capped, label, own, weights)


# --- forward --------------------------------------------------------------------------------------------------------


class Sums(NamedTuple):
    """The running sums of (2) and (3), each (N, 1)."""

    largest: jax.Array  # c, -inf before the first block
    others: jax.Array  # S
    logit: jax.Array  # the label's, 0 until its block is added
    smooth: jax.Array  # Q
    weights: jax.Array  # the sum of the w seen so far


def no_columns(inputs: Inputs) -> Sums:
    """The sums before the first block."""
    zeros = jnp.zeros(inputs.y.shape, inputs.dtype)
    return Sums(jnp.full(inputs.y.shape, -jnp.inf, inputs.dtype), zeros, zeros, zeros, zeros)


def add_block(rows: Rows, options: LabelOptions, sums: Sums, block: Block) -> Sums:
    """One step of (2) and (3)."""
    here = rows.largest(lambda logits: logits, block.logits)
    moved = shifted(sums, lax.stop_gradient(jnp.maximum(sums.largest, here)))
    shift = finite(moved.largest)
    # The label's logit is picked, since a sum over the block would take another pass.
    logit = jnp.where(in_range(block.label, block.logits.shape[1]), pick(block.logits, block.label, 1), 0)
    moved = moved._replace(
        others=moved.others + rows.total(exponentials, block.logits, shift, block.own),  # (2)
        logit=moved.logit + logit,
    )
    if not options.label_smoothing:
        return moved
    weights = jnp.broadcast_to(block.weights, block.logits.shape)
    return moved._replace(
        smooth=moved.smooth + rows.total(smooth_terms, weights, shift, block.logits),  # (3)
        weights=moved.weights + rows.total(lambda weights: weights, weights),
    )


def shifted(sums: Sums, largest: jax.Array) -> Sums:
    """The same sums for c' in place of c: the first terms of (2) and (3)."""
    nothing, step = sums.largest == -jnp.inf, finite(largest) - finite(sums.largest)
    return sums._replace(
        largest=largest,
        others=jnp.where(nothing, 0, sums.others * jnp.exp(jnp.where(nothing, 0, -step))),  # (2)
        smooth=sums.smooth + jnp.where(nothing, 0, step) * sums.weights,  # (3)
    )


def over_devices(sums: Sums, axis_name: AxisName) -> Sums:
    """The sums over all devices' columns: one pmax and one psum."""
    sums = shifted(sums, lax.pmax(lax.stop_gradient(sums.largest), axis_name))
    others, logit, smooth = lax.psum(jnp.stack([sums.others, sums.logit, sums.smooth]), axis_name)
    return sums._replace(others=others, logit=logit, smooth=smooth)


# --- backward -------------------------------------------------------------------------------------------------------


class Tokens(NamedTuple):
    """What every block of the backward pass takes of the tokens."""

    x: jax.Array  # (N, H), in the compute dtype
    g: jax.Array  # (N, 1)
    row: Row
    factors: Factors


class Gradients(NamedTuple):
    """What the blocks of the backward pass add to (dX) or fill (this device's columns), in the compute dtype."""

    x: jax.Array  # (N, H)
    kernel: jax.Array  # (H, V)
    bias: jax.Array | None  # (V,)
    class_weights: jax.Array | None  # (V,)


def no_gradients(inputs: Inputs) -> Gradients:
    """The gradients before the first block."""
    columns, dtype = inputs.kernel.shape[1:], inputs.dtype
    return Gradients(
        jnp.zeros(inputs.x.shape, dtype),
        jnp.zeros(inputs.kernel.shape, dtype),
        None if inputs.bias is None else jnp.zeros(columns, dtype),
        None if inputs.class_weights is None else jnp.zeros(columns, dtype),
    )


def add_gradients(dot: Dot, options: LabelOptions, tokens: Tokens, sums: Gradients, block: Block) -> Gradients:
    """One step of (4)."""
    row, dtype, start = tokens.row, tokens.x.dtype, block.start
    e = jnp.exp(block.logits - row.shift)
    d = dlogits(options, row, tokens.factors, e, block.own, block.weights, block.uncapped)
    dx = sums.x + dot(d, cast(block.kernel, dtype), (1, 1), dtype)  # (4)
    dkernel = place(sums.kernel, dot(tokens.x, d, (0, 0), dtype), start)  # (4)
    dbias, dclass_weights = sums.bias, sums.class_weights
    if dbias is not None:
        dbias = place(dbias, jnp.sum(d, axis=0), start)  # (4)
    if dclass_weights is not None:
        terms = dweights(options, row, tokens.g, block.own, block.logits)
        dclass_weights = place(dclass_weights, jnp.sum(terms, axis=0), start)  # (9) of the cross-entropy
    return Gradients(dx, dkernel, dbias, dclass_weights)


def place(whole: jax.Array, part: jax.Array, start: Start) -> jax.Array:
    """`whole` with `part` in place of its columns from `start` on: written once, and nothing is stacked or joined."""
    return lax.dynamic_update_slice_in_dim(whole, part, start, whole.ndim - 1)
