"""Softmax and its losses by way of the log-probabilities, and the hinge losses."""

import jax.numpy as jnp
from jax import lax

from jaxnorm import losses
from jaxnorm.losses import _linear, _linear_kl
from jaxnorm.reference._arrays import compute, features_view
from jaxnorm.reference._meshes import split_like


def _loss_dtype(logits):
    return compute(logits)[0].dtype


def _row_log_softmax(logits, axis, where):
    """log_softmax and log-sum-exp with the class axis kept; rows without classes are -inf and have no gradient."""
    logits = _unmasked(logits, where, -jnp.inf)
    shift, log_total, lse = _row_terms(logits, axis)
    possible = logits != -jnp.inf
    return jnp.where(possible, jnp.where(possible, logits, 0) - shift - log_total, -jnp.inf), lse


def _unmasked(logits, where, fill):
    return logits if where is None else jnp.where(jnp.broadcast_to(where, logits.shape), logits, fill)


def _row_terms(logits, axis):
    """The largest logit, the logarithm of the sum of exponentials relative to it, and log-sum-exp."""
    top = lax.stop_gradient(jnp.max(logits, axis=axis, keepdims=True, initial=-jnp.inf))
    shift = jnp.where(top == -jnp.inf, 0, top)
    possible = logits != -jnp.inf
    exponents = jnp.where(possible, logits, shift) - shift
    total = jnp.sum(jnp.where(possible, jnp.exp(exponents), 0), axis=axis, keepdims=True)
    empty = total == 0
    log_total = jnp.where(empty, 0, jnp.log(jnp.where(empty, 1, total)))
    return shift, log_total, jnp.where(empty, -jnp.inf, shift + log_total)


def _row_nll(logits, axis, where):
    """The negative log-probability of each class, and log-sum-exp.

    A masked class, and one in a row without classes, is a constant +inf. One of logit -inf is +inf with the gradient
    p_i - [i = j], as everywhere else.
    """
    constant = jnp.zeros(logits.shape, bool) if where is None else ~jnp.broadcast_to(where, logits.shape)
    logits = _unmasked(logits, where, -jnp.inf)
    shift, log_total, lse = _row_terms(logits, axis)
    constant = constant | (lse == -jnp.inf)
    return jnp.where(constant, jnp.inf, log_total - jnp.where(constant, 0, logits - shift)), lse


@split_like(losses.softmax)
def softmax(x, axis=-1, where=None):
    dtype = jnp.asarray(x).dtype
    return jnp.exp(_row_log_softmax(compute(x)[0], axis, where)[0]).astype(dtype)


@split_like(losses.log_softmax)
def log_softmax(x, axis=-1, where=None):
    dtype = jnp.asarray(x).dtype
    return _row_log_softmax(compute(x)[0], axis, where)[0].astype(dtype)


def _weighted(weights, nll):
    """weights * nll, where a class of weight 0 counts 0 even at probability 0."""
    uncounted = (nll == jnp.inf) & (weights == 0)
    return jnp.where(uncounted, 0, weights * jnp.where(uncounted, 0, nll))


def _uniform(logits, axis, where):
    """1 / (number of unmasked classes), 0 at the masked ones."""
    mask = jnp.ones(logits.shape, bool) if where is None else jnp.broadcast_to(where, logits.shape)
    count = jnp.sum(mask, axis=axis, keepdims=True, dtype=logits.dtype)
    return jnp.where(mask, 1 / jnp.maximum(count, 1), 0)


@split_like(losses.softmax_cross_entropy)
def softmax_cross_entropy(logits, labels, axis=-1, where=None, *, label_smoothing=0.0):
    dtype = _loss_dtype(logits)
    logits, labels = compute(logits, labels)
    if label_smoothing:
        labels = (1 - label_smoothing) * labels + label_smoothing * _uniform(logits, axis, where)
    nll, _ = _row_nll(logits, axis, where)
    labels = jnp.where(nll == jnp.inf, lax.stop_gradient(labels), labels)
    return jnp.sum(_weighted(labels, nll), axis=axis).astype(dtype)


def _one_hot(labels, logits, axis):
    classes = lax.broadcasted_iota(labels.dtype, logits.shape, axis % logits.ndim)
    return classes == jnp.expand_dims(labels, axis)


def _class_view(weights, logits, axis):
    weights = jnp.ones(logits.shape[axis], logits.dtype) if weights is None else weights
    return jnp.broadcast_to(features_view(weights, (axis % logits.ndim,), logits.ndim), logits.shape)


@split_like(losses.softmax_cross_entropy_with_integer_labels)
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
    return_entropy=False,
):
    dtype, labels = _loss_dtype(logits), jnp.asarray(labels)
    logits, class_weights = compute(logits, class_weights)
    if logit_softcap is not None:
        logits = logit_softcap * jnp.tanh(logits / logit_softcap)
    nll, lse = _row_nll(logits, axis, where)
    weights, one_hot = _class_view(class_weights, logits, axis), _one_hot(labels, logits, axis)
    label_weight, label_nll = (jnp.sum(jnp.where(one_hot, v, 0), axis=axis) for v in (weights, nll))
    loss = (1 - label_smoothing) * _weighted(label_weight, label_nll)
    if label_smoothing:
        uniform = label_smoothing * _uniform(logits, axis, where)
        loss = loss + jnp.sum(_weighted(uniform * weights, nll), axis=axis)
    ignored = labels == ignore_index if ignore_index is not None else jnp.zeros(labels.shape, bool)
    invalid = ~(jnp.any(one_hot, axis=axis, keepdims=True) | jnp.expand_dims(ignored, axis))
    spoilt = _unmasked(logits, where, 0) * jnp.where(invalid, jnp.nan, 1)  # so that the gradient is NaN too
    loss = jnp.where(jnp.squeeze(invalid, axis), jnp.nan + jnp.sum(spoilt, axis=axis), loss)
    loss = jnp.where(ignored, 0, loss)
    others = [(return_lse, jnp.squeeze(lse, axis)), (return_entropy, _entropy(nll, axis))]
    wanted = [other.astype(dtype) for is_wanted, other in others if is_wanted]
    return (loss.astype(dtype), *wanted) if wanted else loss.astype(dtype)


def _entropy(nll, axis):
    nll, possible = jnp.where(nll == jnp.inf, 0, nll), nll != jnp.inf  # p log(p) is 0 for p = 0
    return jnp.sum(jnp.where(possible, jnp.exp(-nll) * nll, 0), axis=axis)


@split_like(_linear.linear_softmax_cross_entropy)
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
    return_entropy=False,
    return_top=False,
):
    del block_size  # how the rule goes about it; the result is the same
    dtype = _loss_dtype(hidden)
    hidden, kernel, bias = compute(hidden, kernel, bias)
    logits = jnp.matmul(hidden, kernel)
    if bias is not None:
        logits = logits + jnp.broadcast_to(bias, logits.shape)
    if axis_name is not None:
        logits = lax.all_gather(logits, axis_name, axis=logits.ndim - 1, tiled=True)
    loss, lse, entropy = softmax_cross_entropy_with_integer_labels(
        logits,
        labels,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        class_weights=class_weights,
        logit_softcap=logit_softcap,
        return_lse=True,
        return_entropy=True,
    )
    logits = logits if logit_softcap is None else logit_softcap * jnp.tanh(logits / logit_softcap)
    top = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    others = [(return_lse, lse.astype(dtype)), (return_entropy, entropy.astype(dtype)), (return_top, top)]
    wanted = [other for is_wanted, other in others if is_wanted]
    return (loss.astype(dtype), *wanted) if wanted else loss.astype(dtype)


@split_like(_linear_kl.linear_softmax_kl_divergence)
def linear_softmax_kl_divergence(
    hidden,
    kernel,
    teacher_hidden,
    teacher_kernel,
    bias=None,
    teacher_bias=None,
    *,
    temperature=1.0,
    where=None,
    block_size=None,
    axis_name=None,
):
    del block_size  # how the rule goes about it; the result is the same
    dtype = _loss_dtype(hidden)
    arrays = compute(hidden, kernel, bias, teacher_hidden, teacher_kernel, teacher_bias)

    def log_probabilities(hidden, kernel, bias):
        if where is not None:
            hidden = jnp.where(jnp.expand_dims(jnp.broadcast_to(where, hidden.shape[:-1]), -1), hidden, 0)
        logits = jnp.matmul(hidden, kernel)
        if bias is not None:
            logits = logits + jnp.broadcast_to(bias, logits.shape)
        if axis_name is not None:
            logits = lax.all_gather(logits, axis_name, axis=logits.ndim - 1, tiled=True)
        return _row_log_softmax(logits / temperature, -1, None)[0]

    log_q, log_p = log_probabilities(*arrays[:3]), lax.stop_gradient(log_probabilities(*arrays[3:]))
    possible = log_p != -jnp.inf
    log_q, log_p = (jnp.where(possible, value, 0) for value in (log_q, log_p))
    loss = jnp.sum(jnp.where(possible, jnp.exp(log_p) * (log_p - log_q), 0), axis=-1)
    return (loss if where is None else jnp.where(where, loss, 0)).astype(dtype)


def _wrong_margins(scores, labels, axis, margin):
    one_hot = _one_hot(labels, scores, axis)
    valid = jnp.any(one_hot, axis=axis)
    label_score = jnp.sum(jnp.where(one_hot, scores, 0), axis=axis, keepdims=True)
    counts = ~one_hot & (scores != -jnp.inf)
    return one_hot, counts, jnp.where(counts, scores - label_score + margin, 0), jnp.where(valid, 1, jnp.nan)


@split_like(losses.multiclass_svm_loss)
def multiclass_svm_loss(scores, labels, *, axis=-1, margin=1.0, power=1, class_weights=None):
    dtype, labels = _loss_dtype(scores), jnp.asarray(labels)
    scores, class_weights = compute(scores, class_weights)
    one_hot, counts, margins, valid = _wrong_margins(scores, labels, axis, margin)
    loss = jnp.sum(jnp.where(counts & (margins > 0), margins**power, 0), axis=axis)
    weight = jnp.sum(jnp.where(one_hot, _class_view(class_weights, scores, axis), 0), axis=axis)
    return (weight * loss * valid).astype(dtype)


@split_like(losses.multiclass_hinge_loss)
def multiclass_hinge_loss(scores, labels, *, axis=-1, margin=1.0):
    dtype, labels = _loss_dtype(scores), jnp.asarray(labels)
    (scores,) = compute(scores)
    _, counts, margins, valid = _wrong_margins(scores, labels, axis, margin)
    worst = jnp.max(jnp.where(counts, margins, -jnp.inf), axis=axis, initial=-jnp.inf)
    return (jnp.where(worst > 0, worst, 0) * valid).astype(dtype)
