"""Cross-entropy on logits that exist a block of columns at a time.

Forward, for hidden rows X (N, H), kernel W (H, V), bias b and blocks of the vocabulary, with c, S and the loss of
`jaxnorm._rules.cross_entropy`, where k is the label's class y:

    L = cap(X W + b), a block of columns at a time                                                                   (1)
    c' = max(c, max_j l_j)        S' = S exp(c - c') + sum over j != y of exp(l_j - c')                              (2)
    Q' = Q + (c' - c) sum of the w seen so far + sum_j w_j (c' - l_j)        (for label smoothing)                   (3)

After each step of (2) and (3) the sums are those over all columns seen so far, since exp(l - c') = exp(l - c)
exp(c - c') and c' - l = (c - l) + (c' - c). c is held constant in derivatives.

The entropy (`jaxnorm._rules.entropy`) takes the sum R without the leaders, their number K, and G = sum_j e_j (c - l_j):

    R' = (R + [c' > c] K) exp(c - c') + R of the block        G' = (G + (c' - c) (R + K)) exp(c - c') + G of the block
    K' = [c' = c] K + K of the block                          S = R + (K - e_y)                                      (4)

S needs no sum of its own then: if y leads alone, K - e_y is exactly 0, and otherwise S holds a leader's 1, beside which
no digit is lost.

Backward. Each block of logits is computed again and turned into its cotangent D, by (7) and (8) of
`jaxnorm._rules.cross_entropy`. D feeds the products of `jaxnorm._rules.linear_layer` at once.

Where devices share the vocabulary, each has a slice of the columns; c is a pmax, and the sums and the label's logit are
one psum.

References: Milakov and Gimelshein 2018, https://arxiv.org/abs/1805.02867 (the running sums of (2)); Wijmans et al.
2024, https://arxiv.org/abs/2411.09009 (logits in blocks); Shoeybi et al. 2019, https://arxiv.org/abs/1909.08053.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxnorm._arguments import AxisName
from jaxnorm._cotangents import cast, compute_dtype, reshape
from jaxnorm._rules import entropy
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
    others,
    smooth_terms,
    softcapped,
)
from jaxnorm._rules.linear_layer import (
    Columns,
    Dot,
    Layer,
    LayerGradients,
    Start,
    add_layer_gradients,
    columns_of,
    no_layer_gradients,
    place,
)


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
    def layer(self) -> Layer:
        """The layer whose outputs are the logits."""
        return Layer(self.hidden, self.kernel, self.bias)

    @property
    def y(self) -> jax.Array:
        """The labels, (N, 1), in a signed dtype."""
        return reshape(widened(self.labels), (math.prod(self.labels.shape), 1))


class Block(NamedTuple):
    """Some columns of the logits, and what belongs to them."""

    columns: Columns  # the uncapped logits
    logits: jax.Array  # (N, size), capped
    label: jax.Array  # (N, 1): each token's label, counted from the block's first column
    own: jax.Array  # (N, size): [j = y]
    weights: jax.Array  # (1, size): the class weights, or (1, 1): 1 if there are none
    offset: jax.Array  # the class of the first column


def block_of(dot: Dot, options: LabelOptions, inputs: Inputs, start: Start, size: int) -> Block:
    """The logits (1) of `size` columns from `start` on."""
    dtype = inputs.dtype
    columns = columns_of(dot, inputs.layer, dtype, start, size)  # (1)
    offset = inputs.offset + start
    label = inputs.y - cast(offset, inputs.y.dtype)
    weights = jnp.ones((1, 1), dtype)
    if inputs.class_weights is not None:
        of_block = lax.dynamic_slice_in_dim(inputs.class_weights, offset, size)
        weights = reshape(cast(of_block, dtype), (1, size))
    capped, own = softcapped(options, columns.z), is_label(label, columns.z.shape, 1)
    return Block(columns, capped, label, own, weights, offset)


# --- forward --------------------------------------------------------------------------------------------------------


class Sums(NamedTuple):
    """The running sums of (2) to (4), each (N, 1); None for what is not asked for."""

    largest: jax.Array  # c, -inf before the first block
    others: jax.Array  # S, or with the entropy R
    logit: jax.Array  # the label's, 0 until its block is added
    smooth: jax.Array  # Q
    weights: jax.Array  # the sum of the w seen so far
    leading: jax.Array | None  # K
    gaps: jax.Array | None  # G
    top: jax.Array | None  # int32: the first class whose logit is c


def no_columns(options: LabelOptions, inputs: Inputs) -> Sums:
    """The sums before the first block."""
    zeros = jnp.zeros(inputs.y.shape, inputs.dtype)
    of_entropy = zeros if options.return_entropy else None
    top = jnp.zeros(inputs.y.shape, jnp.int32) if options.return_top else None
    return Sums(jnp.full_like(zeros, -jnp.inf), zeros, zeros, zeros, zeros, of_entropy, of_entropy, top)


def add_block(rows: Rows, options: LabelOptions, sums: Sums, block: Block) -> Sums:
    """One step of (2) to (4)."""
    block = block._replace(logits=entropy.capped_once(options, block.logits))
    here = rows.largest(_itself, block.logits)
    moved = shifted(sums, lax.stop_gradient(jnp.maximum(sums.largest, here)))
    shift = finite(moved.largest)
    # The label's logit is picked, since a sum over the block would take another pass.
    logit = jnp.where(in_range(block.label, block.logits.shape[1]), pick(block.logits, block.label, 1), 0)
    moved = moved._replace(logit=moved.logit + logit)
    if moved.top is not None:
        first = rows.first(block.logits, here) + cast(block.offset, jnp.int32)
        moved = moved._replace(top=jnp.where((here <= sums.largest) | jnp.isnan(sums.largest), moved.top, first))
    if moved.leading is None or moved.gaps is None:
        moved = moved._replace(others=moved.others + rows.total(exponentials, block.logits, shift, block.own))  # (2)
    else:
        moved = moved._replace(
            others=moved.others + rows.alone(functools.partial(others, rows), block.logits, shift),  # (4)
            leading=moved.leading + rows.alone(rows.leads, block.logits, shift),  # (4)
            gaps=moved.gaps + rows.alone(entropy.gap_terms, block.logits, shift),  # (4)
        )
    return _smoothed(rows, block, shift, moved) if options.label_smoothing else moved


def _smoothed(rows: Rows, block: Block, shift: jax.Array, moved: Sums) -> Sums:
    """The sums with the block's part of (3)."""
    weights = jnp.broadcast_to(block.weights, block.logits.shape)
    return moved._replace(
        smooth=moved.smooth + rows.total(smooth_terms, weights, shift, block.logits),  # (3)
        weights=moved.weights + rows.total(_itself, weights),
    )


def _itself(array: jax.Array) -> jax.Array:
    return array


def shifted(sums: Sums, largest: jax.Array) -> Sums:
    """The same sums for c' in place of c: the first terms of (2) to (4)."""
    nothing, step = sums.largest == -jnp.inf, finite(largest) - finite(sums.largest)
    factor = jnp.where(nothing, 0, jnp.exp(jnp.where(nothing, 0, -step)))
    step = jnp.where(nothing, 0, step)
    rest, leading, gaps = sums.others, sums.leading, sums.gaps
    if leading is not None and gaps is not None:
        gaps = (gaps + step * (rest + leading)) * factor  # (4)
        rest = rest + jnp.where(step > 0, leading, 0)  # (4)
        leading = jnp.where(step > 0, 0, leading)  # (4)
    smooth = sums.smooth + step * sums.weights  # (3)
    return sums._replace(largest=largest, others=rest * factor, smooth=smooth, leading=leading, gaps=gaps)  # (2)


def over_devices(sums: Sums, axis_name: AxisName, classes: int) -> Sums:
    """The sums over all devices' columns: one pmax and one psum, and a pmin for the class of the largest logit."""
    largest = lax.pmax(lax.stop_gradient(sums.largest), axis_name)
    top = sums.top
    if top is not None:
        has_it = (sums.largest == largest) | jnp.isnan(sums.largest)
        top = lax.pmin(jnp.where(has_it, top, classes), axis_name)
    sums = shifted(sums, largest)
    parts = [part for part in (sums.others, sums.logit, sums.smooth, sums.leading, sums.gaps) if part is not None]
    rest, logit, smooth, *of_entropy = lax.psum(jnp.stack(parts), axis_name)
    leading, gaps = of_entropy or (None, None)
    return sums._replace(others=rest, logit=logit, smooth=smooth, leading=leading, gaps=gaps, top=top)


def without_label(sums: Sums, e_y: jax.Array) -> jax.Array:
    """S of (2), or by (4) if the sums are the entropy's."""
    return sums.others if sums.leading is None else sums.others + (sums.leading - e_y)  # (4)


def mean_gap(sums: Sums) -> jax.Array | None:
    """E of the entropy; None if that is not asked for."""
    if sums.leading is None or sums.gaps is None:
        return None
    return entropy.mean_gap(sums.others, sums.leading, sums.gaps)


def entropy_of(sums: Sums, gap: jax.Array | None) -> jax.Array | None:
    """The entropy; None if it is not asked for."""
    if sums.leading is None or gap is None:
        return None
    return entropy.entropy_of(sums.others, sums.leading, gap)


# --- backward -------------------------------------------------------------------------------------------------------


class Tokens(NamedTuple):
    """What every block of the backward pass takes of the tokens."""

    x: jax.Array  # (N, H)
    g: jax.Array  # (N, 1)
    row: Row
    factors: Factors
    entropy: entropy.Entropy | None


class Gradients(NamedTuple):
    """What the blocks of the backward pass add to or fill."""

    layer: LayerGradients
    class_weights: jax.Array | None  # (V,), this device's columns, in the compute dtype


def no_gradients(inputs: Inputs, written: Any) -> Gradients:
    """The gradients before the first block."""
    weights = None if inputs.class_weights is None else jnp.zeros(inputs.kernel.shape[1:], inputs.dtype)
    return Gradients(no_layer_gradients(inputs.layer, inputs.dtype, written), weights)


def add_gradients(dot: Dot, options: LabelOptions, tokens: Tokens, sums: Gradients, block: Block) -> Gradients:
    """One step of the products, and of (9) of the cross-entropy."""
    row, columns, dclass_weights = tokens.row, block.columns, sums.class_weights
    e, of_entropy = jnp.exp(block.logits - row.shift), None
    if tokens.entropy is not None:
        of_entropy = entropy.dlogits(tokens.entropy, e, block.logits, row.shift)
    d = dlogits(options, row, tokens.factors, e, block.own, block.weights, columns.z, others=of_entropy)
    if dclass_weights is not None:
        terms = dweights(options, row, tokens.g, block.own, block.logits)
        dclass_weights = place(dclass_weights, jnp.sum(terms, axis=0), columns.start)  # (9) of the cross-entropy
    return Gradients(add_layer_gradients(dot, tokens.x, columns, d, sums.layer), dclass_weights)
