"""jaxnorm: backward rules derived by hand for JAX.

Normalizations, softmax and its losses, dense layers and convolution as pure functions whose gradients are
`jax.custom_vjp` rules: they keep less for the backward pass, lose fewer digits, and choose forms that XLA runs well.
`jaxnorm.reference` holds a plain twin of every function, for forward mode and for checking.
"""

from jaxnorm import check, reference
from jaxnorm._batch_norm import BatchStats, batch_norm, init_batch_stats
from jaxnorm._version import __version__ as __version__
from jaxnorm.convolution import conv, conv_transpose
from jaxnorm.dense import affine, affine_relu, relu
from jaxnorm.losses import (
    log_softmax,
    multiclass_hinge_loss,
    multiclass_svm_loss,
    softmax,
    softmax_cross_entropy,
    softmax_cross_entropy_with_integer_labels,
)
from jaxnorm.losses._linear import linear_softmax_cross_entropy
from jaxnorm.norms import group_norm, instance_norm, layer_norm, normalize, rms_norm
from jaxnorm.pooling import avg_pool, max_pool

__all__ = [
    "BatchStats",
    "affine",
    "affine_relu",
    "avg_pool",
    "batch_norm",
    "check",
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
    "reference",
    "relu",
    "rms_norm",
    "softmax",
    "softmax_cross_entropy",
    "softmax_cross_entropy_with_integer_labels",
]


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
