"""flax's norms. nnx casts what a norm is given to one dtype by `promote_dtype`, which linen's norms do not have."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxnorm import _batch_norm, norms
from jaxnorm._batch_norm import BatchStats
from jaxnorm._cotangents import cast, reshape
from jaxnorm._flax.options import Shape, Variables, axes_of, dtype_of, positive, promoted
from jaxnorm._models import NoEqual, as_array, in_dtype


def layer_norm(layer: Any, variables: Variables, x: Any, *, mask: Any = None) -> jax.Array:
    """`LayerNorm`."""
    return _norm(layer, variables, as_array(x), mask, layer.reduction_axes, layer.feature_axes)


def rms_norm(layer: Any, variables: Variables, x: Any, mask: Any = None) -> jax.Array:
    """`RMSNorm`."""
    return _norm(layer, variables, as_array(x), mask, layer.reduction_axes, layer.feature_axes, use_mean=False)


def instance_norm(layer: Any, variables: Variables, x: Any, *, mask: Any = None) -> jax.Array:
    """`InstanceNorm`."""
    x = as_array(x)
    features = positive(layer.feature_axes, x.ndim)
    if 0 in features:
        raise NoEqual("feature_axes holds the batch's axis")
    axes = tuple(axis for axis in range(1, x.ndim) if axis not in features)
    return _norm(layer, variables, x, mask, axes, features)


def group_norm(layer: Any, variables: Variables, x: Any, *, mask: Any = None) -> jax.Array:
    """`GroupNorm`: a norm of x whose channels are split into groups."""
    x = as_array(x)
    given = layer.reduction_axes
    axes = positive((*range(1, x.ndim - 1), -1) if given is None else given, x.ndim)
    if axes[-1] != x.ndim - 1 or (given is not None and hasattr(layer, "promote_dtype")):
        raise NoEqual(f"reduction_axes is {given}")  # nnx repeats the statistics along axis 1, which fits its default
    channels, size = x.shape[-1], layer.group_size
    if hasattr(layer, "promote_dtype"):
        groups = layer.num_groups  # nnx has computed the other of the two
    elif (layer.num_groups is None) == (size is None):
        raise NoEqual("one of num_groups and group_size must be given")
    else:
        groups = layer.num_groups if size is None else channels // size
    split = (groups, channels // groups)
    mask = None if mask is None else jnp.reshape(mask, (*mask.shape[:-1], *split))
    return _norm(layer, variables, x, mask, (*axes[:-1], x.ndim), -1, split=split)


def _norm(
    layer: Any,
    variables: Variables,
    x: jax.Array,
    mask: Any,
    reduction_axes: Any,
    feature_axes: Any,
    use_mean: bool = True,
    split: Shape | None = None,
) -> jax.Array:
    """A norm of x, or of x with its channels split, whose parameters lie along `feature_axes` of x."""
    features = positive(feature_axes, x.ndim)
    shape = tuple(x.shape[axis] for axis in features)
    parameters = [variables.parameter("scale", shape), variables.parameter("bias", shape) if use_mean else None]
    x, scale, bias, dtype = _in_norms_dtypes(layer, x, *parameters)
    view = tuple(size if axis in features else 1 for axis, size in enumerate(x.shape))
    rows, view = ((*s[:-1], *split) if split else s for s in (x.shape, view))
    scale, bias = (None if p is None else reshape(p, view) for p in (scale, bias))
    y = in_dtype(
        norms.normalize,
        dtype,
        reshape(x, rows),
        scale,
        bias,
        reduction_axes=positive(reduction_axes, len(rows)),
        epsilon=layer.epsilon,
        use_mean=use_mean,
        where=_where(layer, mask),
        axis_name=layer.axis_name,
    )
    return reshape(y, x.shape)


def _where(layer: Any, mask: Any) -> Any:
    """The mask, in linen's and nnx's meaning the same as here, but that their means over devices do not count it."""
    if mask is not None and layer.axis_name is not None:
        raise NoEqual("a mask together with axis_name")
    return None if mask is None else jnp.asarray(mask, bool)


def _in_norms_dtypes(layer: Any, x: jax.Array, scale: Any, bias: Any) -> tuple[Any, Any, Any, Any]:
    """x and the parameters as the library's norms take them, and the dtype of the result."""
    if hasattr(layer, "promote_dtype"):  # nnx
        x, scale, bias = promoted(layer, x, scale, bias)
    elif not layer.force_float32_reductions:
        scale, bias = (None if p is None else cast(p, layer.param_dtype) for p in (scale, bias))
    return x, scale, bias, dtype_of(layer, x, scale, bias)


def batch_norm(
    layer: Any, variables: Variables, x: Any, use_running_average: bool | None = None, *, mask: Any = None
) -> jax.Array:
    """`BatchNorm` over every axis but one, with its running statistics."""
    x, (axis,) = as_array(x), axes_of(layer.axis)
    average = variables.chosen("use_running_average", use_running_average)
    channels = (x.shape[axis],)
    parameters = [variables.parameter(name, channels) for name in ("scale", "bias")]
    old = BatchStats(*variables.statistics())
    stats = old
    if hasattr(layer, "promote_dtype"):  # nnx
        x, *of_stats, scale, bias = promoted(layer, x, *old, *parameters)
        stats, dtype = BatchStats(*of_stats), dtype_of(layer, x, scale, bias)
    else:
        x, scale, bias, dtype = _in_norms_dtypes(layer, x, *parameters)
        if not layer.force_float32_reductions:
            stats = BatchStats(*(cast(s, layer.param_dtype) for s in old))
    y, new = _batch_norm.batch_norm(
        cast(x, jnp.promote_types(x.dtype, dtype)),
        scale,
        bias,
        stats if average else old,
        training=not average,
        feature_axis=axis,
        momentum=layer.momentum,
        epsilon=layer.epsilon,
        where=_where(layer, mask),
        axis_name=layer.axis_name,
    )
    if not average:
        computed = _statistics_dtype(layer, x)
        variables.update(*(cast(n, jnp.promote_types(o.dtype, computed)) for n, o in zip(new, old, strict=True)))
    return cast(y, dtype)


def _statistics_dtype(layer: Any, x: jax.Array) -> Any:
    """The dtype in which the library computes the statistics of x."""
    dtype = jnp.dtype(layer.dtype or x.dtype)
    dtype = dtype if jnp.issubdtype(dtype, jnp.inexact) else jnp.promote_types(dtype, jnp.float32)
    return jnp.promote_types(dtype, jnp.float32) if getattr(layer, "force_float32_reductions", True) else dtype
