"""A plain twin of every public function: same name, same signature, `jax.numpy` and autodiff only.

For forward mode (`jax.jvp`, `jax.jacfwd`, `jax.hessian`), which a custom VJP does not have, and as the truth that the
hand-derived rules are checked against. Written for reading: no attention to memory, speed or confident predictions,
and no argument checks. Arithmetic is in float32, or float64 if an argument is, as in the rules.
"""

from jaxnorm.reference._layers import affine, affine_relu, conv, conv_transpose, relu
from jaxnorm.reference._losses import (
    linear_softmax_cross_entropy,
    log_softmax,
    multiclass_hinge_loss,
    multiclass_svm_loss,
    softmax,
    softmax_cross_entropy,
    softmax_cross_entropy_with_integer_labels,
)
from jaxnorm.reference._normalization import (
    BatchStats,
    batch_norm,
    group_norm,
    init_batch_stats,
    instance_norm,
    layer_norm,
    normalize,
    rms_norm,
)
from jaxnorm.reference._pooling import avg_pool, max_pool

__all__ = [
    "BatchStats",
    "affine",
    "affine_relu",
    "avg_pool",
    "batch_norm",
    "conv",
    "conv_transpose",
    "group_norm",
    "init_batch_stats",
    "instance_norm",
    "layer_norm",
    "linear_softmax_cross_entropy",
    "log_softmax",
    "max_pool",
    "multiclass_hinge_loss",
    "multiclass_svm_loss",
    "normalize",
    "relu",
    "rms_norm",
    "softmax",
    "softmax_cross_entropy",
    "softmax_cross_entropy_with_integer_labels",
]


def __dir__() -> list[str]:
    return __all__
