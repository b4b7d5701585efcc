"""Every function exported for every platform with a symbolic batch, serialized, read again, run with two batches."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from support import assert_close

import jaxnorm as jn

PLATFORMS = ["cpu", "cuda", "rocm", "tpu"]
IMAGE = ("b", 8, 8, 6)


def batch_norm(x, scale, bias):
    return jn.batch_norm(x, scale, bias, training=True)


def with_labels(loss, *arrays):
    """The first class is every example's."""
    return loss(*arrays, jnp.zeros(arrays[0].shape[:1], jnp.int32))


LOSSES = {
    "integer labels": jn.softmax_cross_entropy_with_integer_labels,
    "integer labels, entropy": partial(jn.softmax_cross_entropy_with_integer_labels, return_entropy=True),
    "SVM": jn.multiclass_svm_loss,
    "hinge": jn.multiclass_hinge_loss,
}
FUNCTIONS = {
    "normalize": (partial(jn.normalize, reduction_axes=-1), [("b", 6)]),
    "layer norm": (jn.layer_norm, [("b", 6), (6,), (6,)]),
    "RMS norm": (jn.rms_norm, [("b", 6), (6,)]),
    "batch norm": (batch_norm, [IMAGE, (6,), (6,)]),
    "group norm": (partial(jn.group_norm, num_groups=2), [IMAGE, (6,), (6,)]),
    "instance norm": (jn.instance_norm, [IMAGE, (6,), (6,)]),
    "softmax": (jn.softmax, [("b", 6)]),
    "softmax over a symbolic axis": (jn.softmax, [("b", "b")]),
    "log-softmax": (jn.log_softmax, [("b", 6)]),
    "dense labels": (jn.softmax_cross_entropy, [("b", 6), ("b", 6)]),
    **{name: (partial(with_labels, loss), [("b", 6)]) for name, loss in LOSSES.items()},
    "linear loss": (partial(with_labels, jn.linear_softmax_cross_entropy), [("b", 6), (6, 40)]),
    "linear KL": (jn.linear_softmax_kl_divergence, [("b", 6), (6, 40), ("b", 5), (5, 40)]),
    "affine": (jn.affine, [("b", 5, 6), (6, 4), (4,)]),
    "affine and ReLU": (jn.affine_relu, [("b", 6), (6, 4), (4,)]),
    "ReLU": (jn.relu, [("b", 6)]),
    "conv": (jn.conv, [IMAGE, (3, 3, 6, 4), (4,)]),
    "conv, strides": (partial(jn.conv, strides=2), [IMAGE, (3, 3, 6, 4)]),
    "conv, patches": (partial(jn.conv, strides=2, padding="VALID"), [IMAGE, (2, 2, 6, 4)]),
    "conv, groups": (partial(jn.conv, feature_group_count=2), [IMAGE, (3, 3, 3, 4)]),
    "conv, depthwise": (partial(jn.conv, feature_group_count=6, strides=2), [IMAGE, (3, 3, 1, 6)]),
    "conv, 3-D": (jn.conv, [("b", 4, 4, 4, 3), (3, 3, 3, 3, 2)]),
    "max pool": (partial(jn.max_pool, window=3, strides=2, padding="SAME"), [IMAGE]),
    "average pool": (partial(jn.avg_pool, window=3, strides=1, padding=1, count_include_pad=False), [IMAGE]),
    "general conv": (
        partial(
            jn.conv_general_dilated, window_strides=(1, 2), padding="SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        ),
        [IMAGE, (3, 3, 6, 4)],
    ),
    "transposed conv": (partial(jn.conv_transpose, strides=2), [IMAGE, (3, 3, 6, 4)]),
}


def arguments(shapes: list[tuple[Any, ...]], batch: int) -> list[jax.Array]:
    rng = np.random.default_rng(0)
    sizes = [[batch if size == "b" else size for size in shape] for shape in shapes]
    return [jnp.asarray(rng.normal(size=size), jnp.float32) for size in sizes]


@pytest.mark.usefixtures("quick_compilation")
@pytest.mark.parametrize("name", FUNCTIONS)
def test_symbolic_batch(name):
    """Value and gradients."""
    function, shapes = FUNCTIONS[name]

    def run(*arrays):
        y, vjp = jax.vjp(function, *arrays)
        return y, vjp(jax.tree.map(jnp.sin, y))

    scope = export.SymbolicScope()
    abstract = [
        jax.ShapeDtypeStruct(export.symbolic_shape(", ".join(map(str, shape)), scope=scope), jnp.float32)
        for shape in shapes
    ]
    exported = export.export(jax.jit(run), platforms=PLATFORMS)(*abstract)
    read = export.deserialize(exported.serialize())
    for batch in (1, 3):
        arrays = arguments(shapes, batch)
        assert_close(read.call(*arrays), jax.jit(run)(*arrays), 1e-5)


def test_batch_stats_as_an_argument():
    x, stats = jnp.ones((2, 3)), jn.init_batch_stats(3)
    step = jax.jit(lambda x, stats: jn.batch_norm(x, stats=stats, training=True))
    read = export.deserialize(export.export(step)(x, stats).serialize())
    assert_close(read.call(x, stats), step(x, stats))
