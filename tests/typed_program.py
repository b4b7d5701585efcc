# pyright: strict
"""A user's program, which pyright accepts in strict mode; `test_readme.py` checks it, and runs it."""

from typing import assert_type

import jax

import jaxnorm as jn
from jaxnorm import check, lowering

Parameters = dict[str, jax.Array]


def model(
    parameters: Parameters, stats: jn.BatchStats, x: jax.Array, training: bool
) -> tuple[jax.Array, jn.BatchStats]:
    h = jn.affine_relu(x, parameters["kernel"], parameters["bias"])
    h, stats = jn.batch_norm(h, parameters["scale"], parameters["bias"], stats=stats, training=training)
    return jn.softmax(jn.rms_norm(jn.layer_norm(h), parameters["scale"]), where=None), stats


def losses(logits: jax.Array, labels: jax.Array, kernel: jax.Array) -> jax.Array:
    loss = assert_type(jn.softmax_cross_entropy_with_integer_labels(logits, labels), jax.Array)
    both = jn.softmax_cross_entropy_with_integer_labels(logits, labels, label_smoothing=0.1, return_lse=True)
    assert_type(both, tuple[jax.Array, jax.Array])
    fused = assert_type(jn.linear_softmax_cross_entropy(logits, kernel, labels), jax.Array)
    several = jn.linear_softmax_cross_entropy(logits, kernel, labels, return_lse=True, return_entropy=True)
    assert_type(several, tuple[jax.Array, jax.Array, jax.Array])
    distilled = assert_type(jn.linear_softmax_kl_divergence(logits, kernel, logits, kernel), jax.Array)
    return loss + both[0] + fused + several[0] + distilled + jn.multiclass_svm_loss(logits, labels)


def images(x: jax.Array, kernel: jax.Array) -> jax.Array:
    y = jn.conv(x, kernel, strides=2, padding="SAME")
    y = jn.group_norm(jn.max_pool(y, 2) + jn.avg_pool(y, 2), num_groups=2)
    return jn.instance_norm(jn.conv_transpose(y, kernel))


def checked(x: jax.Array) -> bool:
    report = assert_type(check.check_vjp(jn.relu, x, reference=jn.reference.relu, checks=()), check.Report)
    with lowering.installed():
        counted = lowering.report()
    return report.ok and bool(counted["installed"])


if __name__ == "__main__":
    keys = jax.random.split(jax.random.key(0), 3)
    x, kernel, window = (
        jax.random.normal(key, shape) for key, shape in zip(keys, [(4, 6), (6, 6), (3, 3, 2, 2)], strict=True)
    )
    parameters = {"kernel": kernel, "bias": kernel[0], "scale": kernel[1]}
    h, _ = model(parameters, jn.init_batch_stats(6), x, training=True)
    assert losses(h, h.argmax(axis=1), kernel).shape == (4,)
    assert images(h.reshape(1, 4, 3, 2), window).ndim == 4
    assert checked(x)
