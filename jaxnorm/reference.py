"""A plain twin of every public function: same name, same signature, `jax.numpy` and autodiff only.

For forward mode (`jax.jvp`, `jax.jacfwd`, `jax.hessian`), which a custom VJP does not have, and as the truth that the
hand-derived rules are checked against. Written for reading: no attention to memory, speed or confident predictions,
and no argument checks. Arithmetic is in float32, or float64 if an argument is, as in the rules.
"""

import jax.numpy as jnp
from jax import lax

from jaxnorm._batch_norm import BatchStats as BatchStats
from jaxnorm._batch_norm import init_batch_stats as init_batch_stats


def _compute(*arrays):
    """The arrays (or None) as JAX arrays in the compute dtype."""
    arrays = tuple(None if a is None else jnp.asarray(a) for a in arrays)
    dtype = jnp.float64 if any(a is not None and a.dtype == jnp.float64 for a in arrays) else jnp.float32
    return tuple(None if a is None else a.astype(dtype) for a in arrays)


def _loss_dtype(logits):
    return _compute(logits)[0].dtype


# --- normalization --------------------------------------------------------------------------------------------------


def _axes(axes, ndim):
    axes = (axes,) if isinstance(axes, int) else tuple(axes)
    return tuple(sorted(a % ndim for a in axes))


def _statistics(x, axes, use_mean, ddof, where, axis_name):
    """Count, mean, sum of squared deviations and variance of each group, two passes over the devices' union."""
    sync = (lambda v: v) if axis_name is None else (lambda v: lax.psum(v, axis_name))
    mask = jnp.ones(x.shape, bool) if where is None else jnp.broadcast_to(where, x.shape)
    count = sync(jnp.sum(mask, axes, keepdims=True, dtype=x.dtype))
    mean = sync(jnp.sum(jnp.where(mask, x, 0), axes, keepdims=True)) / jnp.maximum(count, 1) if use_mean else 0 * count
    squares = sync(jnp.sum(jnp.where(mask, jnp.square(x - mean), 0), axes, keepdims=True))
    return count, mean, squares, squares / jnp.maximum(count - ddof, 1)


def _x_hat(x, mean, var, epsilon, nonempty):
    v = var + epsilon
    valid = nonempty & (v != 0)
    return jnp.where(valid, (x - mean) * lax.rsqrt(jnp.where(valid, v, 1)), 0)


def _affine_map(x_hat, scale, bias):
    y = x_hat if scale is None else x_hat * jnp.broadcast_to(scale, x_hat.shape)
    return y if bias is None else y + jnp.broadcast_to(bias, x_hat.shape)


def normalize(
    x, scale=None, bias=None, *, reduction_axes, epsilon=1e-5, use_mean=True, ddof=0, where=None, axis_name=None
):
    dtype = jnp.asarray(x).dtype
    x, scale, bias = _compute(x, scale, bias)
    axes = _axes(reduction_axes, x.ndim)
    count, mean, _, var = _statistics(x, axes, use_mean, ddof, where, axis_name)
    return _affine_map(_x_hat(x, mean, var, epsilon, count > ddof), scale, bias).astype(dtype)


def _features_view(parameter, axes, ndim):
    """A parameter of the shape of x over `axes`, shaped to broadcast."""
    if parameter is None:
        return None
    parameter = jnp.asarray(parameter)
    sizes = dict(zip(axes, parameter.shape, strict=True))
    return parameter.reshape([sizes.get(a, 1) for a in range(ndim)])


def layer_norm(x, scale=None, bias=None, *, reduction_axes=-1, epsilon=1e-5, where=None, axis_name=None):
    x = jnp.asarray(x)
    axes = _axes(reduction_axes, x.ndim)
    scale, bias = (_features_view(p, axes, x.ndim) for p in (scale, bias))
    return normalize(x, scale, bias, reduction_axes=axes, epsilon=epsilon, where=where, axis_name=axis_name)


def rms_norm(x, scale=None, *, reduction_axes=-1, epsilon=1e-5, where=None, axis_name=None):
    x = jnp.asarray(x)
    axes = _axes(reduction_axes, x.ndim)
    scale = _features_view(scale, axes, x.ndim)
    return normalize(x, scale, reduction_axes=axes, epsilon=epsilon, use_mean=False, where=where, axis_name=axis_name)


def instance_norm(x, scale=None, bias=None, *, feature_axis=-1, epsilon=1e-5, where=None):
    x = jnp.asarray(x)
    axis = feature_axis % x.ndim
    scale, bias = (_features_view(p, (axis,), x.ndim) for p in (scale, bias))
    axes = tuple(a for a in range(1, x.ndim) if a != axis)
    return normalize(x, scale, bias, reduction_axes=axes, epsilon=epsilon, where=where)


def group_norm(x, scale=None, bias=None, *, num_groups, feature_axis=-1, epsilon=1e-5, where=None):
    x = jnp.asarray(x)
    axis = feature_axis % x.ndim
    split = x.shape[:axis] + (num_groups, x.shape[axis] // num_groups) + x.shape[axis + 1 :]
    where = None if where is None else jnp.broadcast_to(where, x.shape).reshape(split)
    axes = tuple(a for a in range(1, x.ndim + 1) if a != axis)
    x_hat = normalize(*_compute(x.reshape(split)), reduction_axes=axes, epsilon=epsilon, where=where)
    scale, bias = (_features_view(p, (axis,), x.ndim) for p in (scale, bias))
    x_hat, scale, bias = _compute(x_hat.reshape(x.shape), scale, bias)
    return _affine_map(x_hat, scale, bias).astype(x.dtype)


def batch_norm(
    x,
    scale=None,
    bias=None,
    stats=None,
    *,
    training,
    feature_axis=-1,
    momentum=0.99,
    epsilon=1e-5,
    ddof=0,
    running_ddof=0,
    where=None,
    axis_name=None,
):
    dtype, axis = jnp.asarray(x).dtype, feature_axis % jnp.ndim(x)
    axes = tuple(a for a in range(jnp.ndim(x)) if a != axis)
    old = None if stats is None else lax.stop_gradient(BatchStats(*stats))
    x, scale, bias, old_mean, old_var = _compute(x, scale, bias, *(old or (None, None)))
    scale, bias, mean, var = (_features_view(p, (axis,), x.ndim) for p in (scale, bias, old_mean, old_var))
    if not training:
        x_hat = _x_hat(x, mean, var, epsilon, jnp.ones((), bool))
        return _affine_map(x_hat, scale, bias).astype(dtype), old
    count, mean, squares, var = _statistics(x, axes, True, ddof, where, axis_name)
    y = _affine_map(_x_hat(x, mean, var, epsilon, count > ddof), scale, bias).astype(dtype)
    count, mean, squares = (lax.stop_gradient(s).reshape(x.shape[axis]) for s in (count, mean, squares))
    if old is None:
        (old_mean, old_var), momentum = init_batch_stats(x.shape[axis], dtype=x.dtype), 0.0
    new_mean = momentum * old_mean + (1 - momentum) * mean
    new_var = momentum * old_var + (1 - momentum) * squares / jnp.maximum(count - running_ddof, 1)
    return y, BatchStats(
        jnp.where(count > ddof, new_mean, old_mean),
        jnp.where(count > max(ddof, running_ddof), new_var, old_var),
    )


# --- softmax and losses ---------------------------------------------------------------------------------------------


def _row_log_softmax(logits, axis, where):
    """log_softmax and log-sum-exp with the class axis kept; rows without classes are -inf and have no gradient."""
    if where is not None:
        logits = jnp.where(jnp.broadcast_to(where, logits.shape), logits, -jnp.inf)
    top = lax.stop_gradient(jnp.max(logits, axis=axis, keepdims=True, initial=-jnp.inf))
    shift = jnp.where(top == -jnp.inf, 0, top)
    possible = logits != -jnp.inf
    exponents = jnp.where(possible, logits, 0) - shift
    total = jnp.sum(jnp.where(possible, jnp.exp(jnp.where(possible, exponents, 0)), 0), axis=axis, keepdims=True)
    empty = total == 0
    log_total = jnp.where(empty, 0, jnp.log(jnp.where(empty, 1, total)))
    log_p = jnp.where(possible, exponents - log_total, -jnp.inf)
    return log_p, jnp.where(empty, -jnp.inf, shift + log_total)


def softmax(x, axis=-1, where=None):
    dtype = jnp.asarray(x).dtype
    return jnp.exp(_row_log_softmax(_compute(x)[0], axis, where)[0]).astype(dtype)


def log_softmax(x, axis=-1, where=None):
    dtype = jnp.asarray(x).dtype
    return _row_log_softmax(_compute(x)[0], axis, where)[0].astype(dtype)


def _weighted_nll(weights, log_p):
    """-weights * log_p, where a class of weight 0 counts 0 even at probability 0."""
    impossible = log_p == -jnp.inf
    nll = jnp.where(impossible, jnp.inf, -jnp.where(impossible, 0, log_p))
    return jnp.where(impossible & (weights == 0), 0, weights * jnp.where(impossible & (weights == 0), 0, nll))


def _uniform(logits, axis, where):
    """1 / (number of unmasked classes), 0 at the masked ones."""
    mask = jnp.ones(logits.shape, bool) if where is None else jnp.broadcast_to(where, logits.shape)
    count = jnp.sum(mask, axis=axis, keepdims=True, dtype=logits.dtype)
    return jnp.where(mask, 1 / jnp.maximum(count, 1), 0)


def softmax_cross_entropy(logits, labels, axis=-1, where=None, *, label_smoothing=0.0):
    dtype = _loss_dtype(logits)
    logits, labels = _compute(logits, labels)
    if label_smoothing:
        labels = (1 - label_smoothing) * labels + label_smoothing * _uniform(logits, axis, where)
    log_p, _ = _row_log_softmax(logits, axis, where)
    labels = jnp.where(log_p == -jnp.inf, lax.stop_gradient(labels), labels)
    return jnp.sum(_weighted_nll(labels, log_p), axis=axis).astype(dtype)


def _one_hot(labels, logits, axis):
    classes = lax.broadcasted_iota(labels.dtype, logits.shape, axis % logits.ndim)
    return classes == jnp.expand_dims(labels, axis)


def _class_view(weights, logits, axis):
    weights = jnp.ones(logits.shape[axis], logits.dtype) if weights is None else weights
    return jnp.broadcast_to(_features_view(weights, (axis % logits.ndim,), logits.ndim), logits.shape)


def softmax_cross_entropy_with_integer_labels(
    logits,
    labels,
    axis=-1,
    where=None,
    *,
    ignore_index=None,
    label_smoothing=0.0,
    class_weights=None,
    logit_softcap=None,
    return_lse=False,
):
    dtype, labels = _loss_dtype(logits), jnp.asarray(labels)
    logits, class_weights = _compute(logits, class_weights)
    if logit_softcap is not None:
        logits = logit_softcap * jnp.tanh(logits / logit_softcap)
    log_p, lse = _row_log_softmax(logits, axis, where)
    weights, one_hot = _class_view(class_weights, logits, axis), _one_hot(labels, logits, axis)
    label_weight, label_log_p = (jnp.sum(jnp.where(one_hot, v, 0), axis=axis) for v in (weights, log_p))
    loss = (1 - label_smoothing) * _weighted_nll(label_weight, label_log_p)
    if label_smoothing:
        uniform = label_smoothing * _uniform(logits, axis, where)
        loss = loss + jnp.sum(_weighted_nll(uniform * weights, log_p), axis=axis)
    ignored = labels == ignore_index if ignore_index is not None else jnp.zeros(labels.shape, bool)
    loss = loss * jnp.where(jnp.any(one_hot, axis=axis) | ignored, 1, jnp.nan)  # so that the gradient is NaN too
    loss = jnp.where(ignored, 0, loss)
    loss, lse = loss.astype(dtype), jnp.squeeze(lse, axis).astype(dtype)
    return (loss, lse) if return_lse else loss


def linear_softmax_cross_entropy(
    hidden,
    kernel,
    labels,
    bias=None,
    *,
    ignore_index=None,
    label_smoothing=0.0,
    class_weights=None,
    logit_softcap=None,
    block_size=None,
    axis_name=None,
    return_lse=False,
):
    del block_size  # how the rule goes about it; the result is the same
    dtype = _loss_dtype(hidden)
    hidden, kernel, bias = _compute(hidden, kernel, bias)
    logits = jnp.matmul(hidden, kernel)
    if bias is not None:
        logits = logits + jnp.broadcast_to(bias, logits.shape)
    if axis_name is not None:
        logits = lax.all_gather(logits, axis_name, axis=logits.ndim - 1, tiled=True)
    loss, lse = softmax_cross_entropy_with_integer_labels(
        logits,
        labels,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        class_weights=class_weights,
        logit_softcap=logit_softcap,
        return_lse=True,
    )
    return (loss.astype(dtype), lse.astype(dtype)) if return_lse else loss.astype(dtype)


def _wrong_margins(scores, labels, axis, margin):
    one_hot = _one_hot(labels, scores, axis)
    valid = jnp.any(one_hot, axis=axis)
    label_score = jnp.sum(jnp.where(one_hot, scores, 0), axis=axis, keepdims=True)
    counts = ~one_hot & (scores != -jnp.inf)
    return one_hot, counts, jnp.where(counts, scores - label_score + margin, 0), jnp.where(valid, 1, jnp.nan)


def multiclass_svm_loss(scores, labels, *, axis=-1, margin=1.0, power=1, class_weights=None):
    dtype, labels = _loss_dtype(scores), jnp.asarray(labels)
    scores, class_weights = _compute(scores, class_weights)
    one_hot, counts, margins, valid = _wrong_margins(scores, labels, axis, margin)
    loss = jnp.sum(jnp.where(counts & (margins > 0), margins**power, 0), axis=axis)
    weight = jnp.sum(jnp.where(one_hot, _class_view(class_weights, scores, axis), 0), axis=axis)
    return (weight * loss * valid).astype(dtype)


def multiclass_hinge_loss(scores, labels, *, axis=-1, margin=1.0):
    dtype, labels = _loss_dtype(scores), jnp.asarray(labels)
    (scores,) = _compute(scores)
    _, counts, margins, valid = _wrong_margins(scores, labels, axis, margin)
    worst = jnp.max(jnp.where(counts, margins, -jnp.inf), axis=axis, initial=-jnp.inf)
    return (jnp.where(worst > 0, worst, 0) * valid).astype(dtype)


# --- dense layers ---------------------------------------------------------------------------------------------------


def affine(x, kernel, bias=None, *, num_feature_axes=1, precision=None):
    dtype = jnp.asarray(x).dtype
    x, kernel, bias = _compute(x, kernel, bias)
    flat = x.reshape(*x.shape[: x.ndim - num_feature_axes], kernel.shape[0])
    y = jnp.matmul(flat, kernel, precision=precision)
    return (y if bias is None else y + jnp.broadcast_to(bias, y.shape)).astype(dtype)


def relu(x):
    x = jnp.asarray(x)
    return jnp.where(x <= 0, 0, x)


def affine_relu(x, kernel, bias=None, *, num_feature_axes=1, precision=None):
    return relu(affine(x, kernel, bias, num_feature_axes=num_feature_axes, precision=precision))


# --- convolution ----------------------------------------------------------------------------------------------------


def _biased(y, bias, channel_axis, dtype):
    return (y if bias is None else y + jnp.broadcast_to(_features_view(bias, (channel_axis,), y.ndim), y.shape)).astype(
        dtype
    )


def _conv_arguments(x, kernel, bias, dimension_numbers, padding, dilation, preferred_element_type):
    """The arrays in the compute dtype, and the static arguments spelled out.

    An explicit padding, and the dilation with it, is applied to x here: XLA's CPU backend of jax 0.10 reads past the
    array in float32 if a convolution's low padding is negative, as autodiff's is too for one longer than the window.
    """
    dtype, space = preferred_element_type or jnp.asarray(x).dtype, jnp.ndim(x) - 2
    axes = "HWD"[:space]
    names = dimension_numbers or (f"N{axes}C", f"{axes}IO", f"N{axes}C")
    dilation = (dilation,) * space if isinstance(dilation, int) else dilation
    x, kernel, bias = _compute(x, kernel, bias)
    if not isinstance(padding, str):
        padding = (padding,) * space if isinstance(padding, int) else padding
        ends = {"N": (0, 0, 0), "C": (0, 0, 0)}
        for axis, p, f in zip((a for a in names[1] if a not in "IO"), padding, dilation, strict=True):
            ends[axis] = (*((p, p) if isinstance(p, int) else p), f - 1)
        x = lax.pad(x, jnp.zeros((), x.dtype), [ends[axis] for axis in names[0]])
        padding, dilation = [(0, 0)] * space, (1,) * space
    return x, kernel, bias, names, padding, dilation, dtype, space


def conv(
    x,
    kernel,
    bias=None,
    *,
    strides=1,
    padding="SAME",
    input_dilation=1,
    kernel_dilation=1,
    feature_group_count=1,
    dimension_numbers=None,
    precision=None,
    preferred_element_type=None,
):
    x, kernel, bias, names, padding, input_dilation, dtype, space = _conv_arguments(
        x, kernel, bias, dimension_numbers, padding, input_dilation, preferred_element_type
    )
    strides, kernel_dilation = ((v,) * space if isinstance(v, int) else v for v in (strides, kernel_dilation))
    y = lax.conv_general_dilated(
        x, kernel, strides, padding, input_dilation, kernel_dilation, names, feature_group_count, precision=precision
    )
    return _biased(y, bias, names[2].index("C"), dtype)


def conv_transpose(
    x,
    kernel,
    bias=None,
    *,
    strides=1,
    padding="SAME",
    kernel_dilation=1,
    dimension_numbers=None,
    transpose_kernel=False,
    precision=None,
    preferred_element_type=None,
):
    x, kernel, bias, names, padding, strides, dtype, space = _conv_arguments(
        x, kernel, bias, dimension_numbers, padding, strides, preferred_element_type
    )
    kernel_dilation = (kernel_dilation,) * space if isinstance(kernel_dilation, int) else kernel_dilation
    y = lax.conv_transpose(x, kernel, strides, padding, kernel_dilation, names, transpose_kernel, precision)
    return _biased(y, bias, names[2].index("C"), dtype)
