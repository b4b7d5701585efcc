"""The last layer of a classifier and its cross-entropy in one, without the logits ever being whole.

The rule is `jaxnorm._rules.linear_cross_entropy`.
"""

import functools
from typing import Literal, TypedDict, Unpack, overload

import jax
from jax.typing import ArrayLike

from jaxnorm._arguments import (
    AxisName,
    as_class_weights,
    as_labels,
    as_layer,
    devices_along,
    static_bool,
    static_float,
    static_int,
    static_softcap,
)
from jaxnorm._rules.cross_entropy import LabelOptions
from jaxnorm._sharding import spec_of, with_shardings
from jaxnorm.losses._linear_vjp import Options, linear_loss


class OtherOptions(TypedDict, total=False):
    """The keyword arguments on which the type of the result does not depend."""

    ignore_index: int | None
    label_smoothing: float
    class_weights: ArrayLike | None
    logit_softcap: float | None
    block_size: int | None
    axis_name: AxisName


@overload
def linear_softmax_cross_entropy(
    hidden: ArrayLike,
    kernel: ArrayLike,
    labels: ArrayLike,
    bias: ArrayLike | None = ...,
    *,
    return_lse: Literal[False] = ...,
    return_entropy: Literal[False] = ...,
    return_top: Literal[False] = ...,
    **options: Unpack[OtherOptions],
) -> jax.Array: ...
@overload
def linear_softmax_cross_entropy(
    hidden: ArrayLike,
    kernel: ArrayLike,
    labels: ArrayLike,
    bias: ArrayLike | None = ...,
    *,
    return_lse: Literal[False] = ...,
    return_entropy: Literal[False] = ...,
    return_top: Literal[True],
    **options: Unpack[OtherOptions],
) -> tuple[jax.Array, jax.Array]: ...
@overload
def linear_softmax_cross_entropy(
    hidden: ArrayLike,
    kernel: ArrayLike,
    labels: ArrayLike,
    bias: ArrayLike | None = ...,
    *,
    return_lse: Literal[False] = ...,
    return_entropy: Literal[True],
    return_top: Literal[False] = ...,
    **options: Unpack[OtherOptions],
) -> tuple[jax.Array, jax.Array]: ...
@overload
def linear_softmax_cross_entropy(
    hidden: ArrayLike,
    kernel: ArrayLike,
    labels: ArrayLike,
    bias: ArrayLike | None = ...,
    *,
    return_lse: Literal[True],
    return_entropy: Literal[False] = ...,
    return_top: Literal[False] = ...,
    **options: Unpack[OtherOptions],
) -> tuple[jax.Array, jax.Array]: ...
@overload
def linear_softmax_cross_entropy(
    hidden: ArrayLike,
    kernel: ArrayLike,
    labels: ArrayLike,
    bias: ArrayLike | None = ...,
    *,
    return_lse: Literal[False] = ...,
    return_entropy: Literal[True],
    return_top: Literal[True],
    **options: Unpack[OtherOptions],
) -> tuple[jax.Array, jax.Array, jax.Array]: ...
@overload
def linear_softmax_cross_entropy(
    hidden: ArrayLike,
    kernel: ArrayLike,
    labels: ArrayLike,
    bias: ArrayLike | None = ...,
    *,
    return_lse: Literal[True],
    return_entropy: Literal[False] = ...,
    return_top: Literal[True],
    **options: Unpack[OtherOptions],
) -> tuple[jax.Array, jax.Array, jax.Array]: ...
@overload
def linear_softmax_cross_entropy(
    hidden: ArrayLike,
    kernel: ArrayLike,
    labels: ArrayLike,
    bias: ArrayLike | None = ...,
    *,
    return_lse: Literal[True],
    return_entropy: Literal[True],
    return_top: Literal[False] = ...,
    **options: Unpack[OtherOptions],
) -> tuple[jax.Array, jax.Array, jax.Array]: ...
@overload
def linear_softmax_cross_entropy(
    hidden: ArrayLike,
    kernel: ArrayLike,
    labels: ArrayLike,
    bias: ArrayLike | None = ...,
    *,
    return_lse: Literal[True],
    return_entropy: Literal[True],
    return_top: Literal[True],
    **options: Unpack[OtherOptions],
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]: ...
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
    return_entropy: bool = False,
    return_top: bool = False,
) -> jax.Array | tuple[jax.Array, ...]:
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
      block_size: how many columns of logits exist at a time, V a multiple of it or not; None chooses by the number of
        tokens and the platform; static.
      axis_name: a mapped axis over whose devices the vocabulary is split: `kernel` and `bias` are this device's
        columns (as many on each), `labels` and `class_weights` are of the whole vocabulary; static.
      return_lse: also return the log-sum-exp of each token's logits; static.
      return_entropy: also return the entropy of each token's prediction, `lse - sum(p * logits)`; static.
      return_top: also return the class of each token's largest logit, the first of several; static.

    Returns:
      The loss, of the shape of `labels`, in the dtype of `hidden` (float32 for 16-bit inputs), or a tuple of it and
      what was asked for, in this order: the log-sum-exp and the entropy, alike, and the top class, int32. These are the
      prediction's, whatever the label, with the soft cap and without weights and smoothing. Logits are accumulated and
      kept in float32, or float64 if an argument is.

    Gradient:
      `dlogits @ kernel.T` for `hidden` and `hidden.T @ dlogits` for `kernel`, a block of columns at a time, accumulated
      in float32 or float64; the entropy adds `-p * (logits - lse + entropy)` to `dlogits`, and the top class has no
      gradient. Kept for it: the inputs and three numbers per token, with the entropy four; the backward pass computes
      each block of logits once more. A TPU or GPU rounds `dlogits` of bfloat16 inputs to bfloat16 for the two products.

    Raises:
      TypeError: `hidden`, `kernel`, `bias` or `class_weights` is not floating-point, or `labels` not integer.
      ValueError: a shape does not fit, or an option is out of its range.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxnorm as jn
      >>> hidden, kernel = jnp.ones((2, 3)), jnp.zeros((3, 5))
      >>> print(jn.linear_softmax_cross_entropy(hidden, kernel, jnp.array([0, 4]), block_size=2))
      [1.609438 1.609438]
      >>> loss, entropy, top = jn.linear_softmax_cross_entropy(
      ...     hidden, kernel.at[:, 2].set(10.0), jnp.array([0, 4]), return_entropy=True, return_top=True
      ... )
      >>> print(entropy, top)
      [1.16e-11 1.16e-11] [2 2]

    References:
      Wijmans et al. 2024, https://arxiv.org/abs/2411.09009; Mnih et al. 2016, https://arxiv.org/abs/1602.01783 (the
      entropy's use).
    """
    hidden, kernel, bias = as_layer("", hidden, kernel, bias)
    columns = kernel.shape[1]
    labels = as_labels(labels, hidden.shape, hidden.ndim - 1, "hidden")
    classes = columns * devices_along(axis_name)
    weights = as_class_weights(class_weights, classes)
    label_options = LabelOptions(
        static_float("label_smoothing", label_smoothing, 0.0, 1.0),
        None if ignore_index is None else static_int("ignore_index", ignore_index),
        static_softcap(logit_softcap),
        static_bool("return_lse", return_lse),
        static_bool("return_entropy", return_entropy),
        static_bool("return_top", return_top),
    )
    width = None if block_size is None else static_int("block_size", block_size, minimum=1)
    options = Options(label_options, width, axis_name, classes)
    of_arrays = functools.partial(linear_loss, options)
    spec, arrays = spec_of(hidden, without=[hidden.ndim - 1]), (hidden, kernel, labels, bias, weights)
    loss, *others = with_shardings(of_arrays, spec, *arrays)
    wanted = [other for other, asked in zip(others, label_options.returned, strict=True) if asked]
    return (loss, *wanted) if wanted else loss
