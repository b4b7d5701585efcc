"""jaxnorm: backward rules derived by hand for JAX.

Normalizations, softmax and its losses, dense layers and convolution as pure functions whose gradients are
`jax.custom_vjp` rules: they keep less for the backward pass, lose fewer digits, and choose forms that XLA runs well.
`jaxnorm.reference` holds a plain twin of every function, for forward mode and for checking.
"""

from jaxnorm._batch_norm import BatchStats as BatchStats
from jaxnorm._batch_norm import batch_norm as batch_norm
from jaxnorm._batch_norm import init_batch_stats as init_batch_stats
from jaxnorm.convolution import conv as conv
from jaxnorm.convolution import conv_transpose as conv_transpose
from jaxnorm.dense import affine as affine
from jaxnorm.dense import affine_relu as affine_relu
from jaxnorm.dense import relu as relu
from jaxnorm.losses import log_softmax as log_softmax
from jaxnorm.losses import multiclass_hinge_loss as multiclass_hinge_loss
from jaxnorm.losses import multiclass_svm_loss as multiclass_svm_loss
from jaxnorm.losses import softmax as softmax
from jaxnorm.losses import softmax_cross_entropy as softmax_cross_entropy
from jaxnorm.losses import (
    softmax_cross_entropy_with_integer_labels as softmax_cross_entropy_with_integer_labels,
)
from jaxnorm.losses._linear import linear_softmax_cross_entropy as linear_softmax_cross_entropy
from jaxnorm.norms import group_norm as group_norm
from jaxnorm.norms import instance_norm as instance_norm
from jaxnorm.norms import layer_norm as layer_norm
from jaxnorm.norms import normalize as normalize
from jaxnorm.norms import rms_norm as rms_norm
