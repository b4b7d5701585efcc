"""The custom VJP of the linear cross-entropy, on the rule in `jaxnorm._rules.linear_cross_entropy`."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxnorm._arguments import AxisName
from jaxnorm._cotangents import cast, compute_dtype, cotangent_for, reshape, varying_axes, varying_like, written_dtype
from jaxnorm._lower.columns import over_blocks
from jaxnorm._lower.products import dot, dot_of_cotangent
from jaxnorm._lower.rows import OnePass
from jaxnorm._rules import cross_entropy, entropy
from jaxnorm._rules import linear_cross_entropy as rule
from jaxnorm._rules.classes import in_range, per_class
from jaxnorm._rules.cross_entropy import LabelOptions
from jaxnorm._rules.linear_layer import Start, layer_cotangents, place

Results = tuple[jax.Array, jax.Array | None, jax.Array | None, jax.Array | None]  # loss, lse, entropy, top


@dataclasses.dataclass(frozen=True)
class Options:
    """The static side: the cross-entropy's own, the block's width, and the devices that share the vocabulary."""

    loss: LabelOptions
    block_size: int | None
    axis_name: AxisName
    classes: int  # of all devices


class Residuals(NamedTuple):
    """What is kept for the backward pass: the inputs and three or four numbers per token, (N, 1), at least float32."""

    inputs: rule.Inputs  # the arguments, as they came
    shift: jax.Array  # c: e_j comes back from it and a block of logits
    others: jax.Array  # S: total is it and the label's e_y
    logit: jax.Array  # the label's, which stands in one block only; -inf if the label is invalid
    gap: jax.Array | None  # E of the entropy, where that is returned


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def linear_loss(
    options: Options,
    hidden: jax.Array,
    kernel: jax.Array,
    labels: jax.Array,
    bias: jax.Array | None,
    class_weights: jax.Array | None,
) -> Results:
    """The loss and the log-sum-exp, and the entropy and the top class or None, of arguments that were checked."""
    return _linear_fwd(options, hidden, kernel, labels, bias, class_weights)[0]


def _linear_fwd(
    options: Options,
    hidden: jax.Array,
    kernel: jax.Array,
    labels: jax.Array,
    bias: jax.Array | None,
    class_weights: jax.Array | None,
) -> tuple[Results, Residuals]:
    offset = jnp.zeros((), jnp.int32)
    if options.axis_name is not None:
        offset = kernel.shape[1] * cast(lax.axis_index(options.axis_name), jnp.int32)
    inputs = rule.Inputs(hidden, kernel, labels, bias, class_weights, offset)

    def add(sums: rule.Sums, start: Start, size: int) -> rule.Sums:
        return rule.add_block(OnePass((1,)), options.loss, sums, rule.block_of(dot, options.loss, inputs, start, size))

    first = varying_like(rule.no_columns(options.loss, inputs), *jax.tree.leaves(inputs))
    sums = over_blocks(kernel.shape[1], options.block_size, inputs.y.shape[0], add, first)
    if options.axis_name is not None:
        sums = rule.over_devices(sums, options.axis_name, options.classes)
    shift, logit = cross_entropy.finite(sums.largest), sums.logit
    logit = jnp.where(in_range(inputs.y, options.classes), logit, -jnp.inf)
    others, gap = rule.without_label(sums, jnp.exp(logit - shift)), rule.mean_gap(sums)
    residuals = Residuals(inputs, shift, others, logit, gap)
    row = _row(options, residuals)
    losses = cross_entropy.losses(options.loss, row, row.smoothing.uniform * sums.smooth)
    results = (*losses, rule.entropy_of(sums, gap), sums.top)
    return _shaped(labels, compute_dtype(hidden), results), residuals


def _shaped(labels: jax.Array, dtype: Any, results: tuple[jax.Array | None, ...]) -> Any:
    """The results in the shape of the labels, and floats in this dtype."""
    return tuple(
        None if r is None else reshape(r if r.dtype == jnp.int32 else cast(r, dtype), labels.shape) for r in results
    )


def _linear_bwd(
    options: Options, residuals: Residuals, cotangents: Results
) -> tuple[jax.Array, jax.Array, None, jax.Array | None, jax.Array | None]:
    inputs, dtype = residuals.inputs, residuals.shift.dtype
    given = [cotangent for cotangent in cotangents[:3] if cotangent is not None]  # without the entropy two
    g, h, *k = (cast(reshape(cotangent, residuals.shift.shape), dtype) for cotangent in given)
    if options.axis_name is not None and not varying_axes(inputs.offset):
        # With check_vma=False each device has its own part of the cotangents, and the transpose of the forward pass's
        # psum is the psum of these parts. With check_vma=True every device has the whole cotangents already, and
        # `cotangent_for` sums what the replicated arguments receive.
        g, h, k = lax.psum((g, h, k), options.axis_name)
    tokens = _tokens(options, residuals, g, h, *k)
    back = dot_of_cotangent(inputs.hidden, inputs.kernel, dtype)

    def add(sums: rule.Gradients, start: Start, size: int) -> rule.Gradients:
        block = rule.block_of(dot, options.loss, inputs, start, size)
        return rule.add_gradients(back, options.loss, tokens, sums, block)

    others = *jax.tree.leaves(residuals), g
    first = varying_like(rule.no_gradients(inputs, written_dtype(inputs.kernel, dtype, *others)), *others)
    sums = over_blocks(inputs.kernel.shape[1], options.block_size, inputs.y.shape[0], add, first)
    dhidden, dkernel, dbias = layer_cotangents(inputs.layer, sums.layer)
    dweights = None
    if inputs.class_weights is not None and sums.class_weights is not None:
        whole = varying_like(jnp.zeros(inputs.class_weights.shape, dtype), sums.class_weights)
        dweights = cotangent_for(inputs.class_weights, place(whole, sums.class_weights, inputs.offset))
    return dhidden, dkernel, None, dbias, dweights


linear_loss.defvjp(_linear_fwd, _linear_bwd)


def _tokens(
    options: Options, residuals: Residuals, g: jax.Array, h: jax.Array, k: jax.Array | None = None
) -> rule.Tokens:
    """What the backward pass takes of each token, from what is kept and the cotangents."""
    row, of_entropy = _row(options, residuals), None
    if k is not None and residuals.gap is not None:
        of_entropy = entropy.entropy_factors(row.others + row.e_y, residuals.gap, k)
    return rule.Tokens(residuals.inputs.layer.x, g, row, cross_entropy.factors_of(options.loss, row, g, h), of_entropy)


def _row(options: Options, residuals: Residuals) -> cross_entropy.Row:
    """The cross-entropy's terms of each token, from what is kept."""
    inputs, dtype = residuals.inputs, residuals.shift.dtype
    weights = inputs.class_weights
    label = cross_entropy.label_of(options.loss, inputs.y, options.classes, weights, None, dtype)
    of_classes = jnp.ones((1, 1), dtype) if weights is None else per_class(cast(weights, dtype), 2, 1)
    smoothing = cross_entropy.smoothing_of(options.loss, of_classes, None, (1, options.classes), 1)
    return cross_entropy.Row(residuals.shift, residuals.others, residuals.logit, label, smoothing)
