"""Softmax, its logarithm, and the classification losses that stand on them or on a hinge."""

from jaxnorm.losses._dense_labels import softmax_cross_entropy as softmax_cross_entropy
from jaxnorm.losses._hinge import multiclass_hinge_loss as multiclass_hinge_loss
from jaxnorm.losses._hinge import multiclass_svm_loss as multiclass_svm_loss
from jaxnorm.losses._integer_labels import (
    softmax_cross_entropy_with_integer_labels as softmax_cross_entropy_with_integer_labels,
)
from jaxnorm.losses._linear import linear_softmax_cross_entropy as linear_softmax_cross_entropy
from jaxnorm.losses._linear_kl import linear_softmax_kl_divergence as linear_softmax_kl_divergence
from jaxnorm.losses._softmax import log_softmax as log_softmax
from jaxnorm.losses._softmax import softmax as softmax
