"""haiku models on these rules: `with jaxnorm.haiku.hand_rules(): forward.apply(...)`.

The layers are intercepted by haiku's own `intercept_methods`; the model, its parameters and its state stay what they
are.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp

from jaxnorm import _batch_norm, convolution, norms, pooling
from jaxnorm._batch_norm import BatchStats
from jaxnorm._cotangents import cast, reshape
from jaxnorm._models import (
    NOT_HERE,
    NoEqual,
    Report,
    as_array,
    axis_orders,
    in_dtype,
    in_effect,
    own_class,
    result_dtype,
)
from jaxnorm.dense import affine

__all__ = ["Report", "hand_rules"]


@contextlib.contextmanager
def hand_rules() -> Iterator[Report]:
    """Computes haiku's norms, convolutions, pooling and dense layers by this library's rules, within the context.

    The layers are `Linear`, `ConvND`, `ConvNDTranspose`, `DepthwiseConv` of 1 to 3 spatial axes and under all of their
    names, `MaxPool`, `AvgPool`, `BatchNorm`, `LayerNorm`, `RMSNorm`, `GroupNorm` and `InstanceNorm`, where they are
    haiku's own classes and not classes derived from them. Parameters, state and the result's dtype are the layer's.
    `init` runs haiku's code, so that parameters and state are the same.

    What counts is where the model is traced: a function that `jax.jit` has compiled outside is compiled again within,
    and the other way round. The context belongs to the thread.

    Returns:
      A context manager. It yields a `Report`: `replaced` and `kept` by the layers' names, filled as they are traced.

    Gradient:
      That of `jaxnorm`'s functions. Running statistics carry none, in either mode.

    Example:
      >>> import haiku as hk
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import jaxnorm.haiku
      >>> model = hk.without_apply_rng(hk.transform(lambda x: hk.LayerNorm(-1, True, True)(hk.Linear(4)(x))))
      >>> params = model.init(jax.random.key(0), jnp.ones((2, 3)))
      >>> with jaxnorm.haiku.hand_rules() as report:
      ...     y = model.apply(params, jnp.ones((2, 3)))
      >>> print(report)
      2 layers computed by jaxnorm, 0 by their own code
        linear: Linear
        layer_norm: LayerNorm

    References:
      haiku's `intercept_methods`, https://dm-haiku.readthedocs.io.
    """
    report = Report()

    def interceptor(own: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
        module = context.module
        if context.method_name != "__call__" or not isinstance(module, tuple(RULES)) or hk.running_init():
            return own(*args, **kwargs)
        try:
            compute = RULES.get(type(module))
            if compute is None:
                raise NoEqual(own_class(module, RULES))
            y = compute(module, *args, **kwargs)
        except NOT_HERE as error:
            report.add(module.module_name, type(module), str(error))
            return own(*args, **kwargs)
        report.add(module.module_name, type(module), None)
        return y

    with hk.intercept_methods(interceptor), in_effect(True):
        yield report


# --- dense layers and convolutions ---------------------------------------------------------------------------------


def _linear(layer: hk.Linear, inputs: Any, *, precision: Any = None) -> jax.Array:
    x = as_array(inputs)
    w = hk.get_parameter("w", [x.shape[-1], layer.output_size], x.dtype, init=layer.w_init or jnp.zeros)
    b = hk.get_parameter("b", [layer.output_size], x.dtype, init=layer.b_init) if layer.with_bias else None
    return in_dtype(affine, result_dtype(x, w, b), x, w, b, precision=precision)


def _conv(layer: hk.ConvND, inputs: Any, *, precision: Any = None) -> jax.Array:
    """`ConvND`, which takes images without a batch axis too."""
    names = axis_orders(layer.num_spatial_dims, "*IO", layer.channel_index == -1)
    x, unbatched = _batched(layer, as_array(inputs))
    inputs_of_group = x.shape[layer.channel_index] // layer.feature_group_count
    w, b = _weights(layer, x, (*layer.kernel_shape, inputs_of_group, layer.output_channels), layer.output_channels)
    y = convolution.conv(
        x,
        w,
        b,
        strides=layer.stride,
        padding=layer.padding,
        kernel_dilation=layer.kernel_dilation,
        feature_group_count=layer.feature_group_count,
        dimension_numbers=names,
        precision=precision,
        preferred_element_type=result_dtype(x, b),
    )
    return reshape(y, y.shape[1:]) if unbatched else y


def _conv_transpose(layer: hk.ConvNDTranspose, inputs: Any, *, precision: Any = None) -> jax.Array:
    """`ConvNDTranspose`, which takes images without a batch axis too."""
    if layer.output_shape is not None:
        raise NoEqual("output_shape is given")
    names = axis_orders(layer.num_spatial_dims, "*OI", layer.channel_index == -1)
    x, unbatched = _batched(layer, as_array(inputs))
    channels = (layer.output_channels, x.shape[layer.channel_index])
    w, b = _weights(layer, x, (*layer.kernel_shape, *channels), layer.output_channels)
    y = convolution.conv_transpose(
        x,
        w,
        b,
        strides=layer.stride,
        padding=layer.padding,
        dimension_numbers=names,
        precision=precision,
        preferred_element_type=result_dtype(x, b),
    )
    return reshape(y, y.shape[1:]) if unbatched else y


def _depthwise_conv(layer: Any, inputs: Any) -> jax.Array:
    """`DepthwiseConv1D` and its kin."""
    names = axis_orders(layer.num_spatial_dims, "*IO", layer.channel_index == -1)
    x = as_array(inputs)
    channels = x.shape[layer.channel_index]
    w, b = _weights(layer, x, (*layer.kernel_shape, 1, layer.channel_multiplier * channels))
    return convolution.conv(
        x,
        w,
        b,
        strides=layer.stride,
        padding=layer.padding,
        kernel_dilation=layer.rhs_dilation,
        feature_group_count=channels,
        dimension_numbers=names,
        preferred_element_type=result_dtype(x, b),
    )


def _batched(layer: Any, x: jax.Array) -> tuple[jax.Array, bool]:
    """x with a batch axis, and whether it had none."""
    unbatched = x.ndim == layer.num_spatial_dims + 1
    return (reshape(x, (1, *x.shape)), True) if unbatched else (x, False)


def _weights(layer: Any, x: jax.Array, shape: tuple[int, ...], outputs: int | None = None) -> tuple[Any, Any]:
    """The kernel, masked if the layer has a mask, and the bias as a vector."""
    outputs = shape[-1] if outputs is None else outputs
    w = hk.get_parameter("w", shape, x.dtype, init=layer.w_init or jnp.zeros)
    mask = getattr(layer, "mask", None)
    w = w if mask is None else w * mask
    if w.dtype != x.dtype:
        raise NoEqual(f"x is {x.dtype} and the kernel {w.dtype}")
    if not layer.with_bias:
        return w, None
    b_shape = (outputs, *(1,) * (0 if layer.channel_index == -1 else layer.num_spatial_dims))
    return w, reshape(hk.get_parameter("b", b_shape, x.dtype, init=layer.b_init), (outputs,))


# --- pooling -------------------------------------------------------------------------------------------------------


def _max_pool(layer: hk.MaxPool, value: Any) -> jax.Array:
    return _pooled(pooling.max_pool, layer, value)


def _avg_pool(layer: hk.AvgPool, value: Any) -> jax.Array:
    return _pooled(functools.partial(pooling.avg_pool, count_include_pad=False), layer, value)


def _pooled(pool: Callable[..., jax.Array], layer: Any, value: Any) -> jax.Array:
    """A pooling of x, to which a batch axis is added if the window counts its first axis as a spatial one."""
    x = as_array(value)
    if layer.padding not in ("SAME", "VALID"):
        raise NoEqual(f"padding is {layer.padding!r}")
    sizes = [_per_axis(size, x.ndim, layer.channel_axis) for size in (layer.window_shape, layer.strides)]
    if any(size[0] != 1 for size in sizes):
        y = _pooled_batch(pool, layer, reshape(x, (1, *x.shape)), *((1, *size) for size in sizes))
        return reshape(y, y.shape[1:])
    return _pooled_batch(pool, layer, x, *sizes)


def _pooled_batch(pool: Callable[..., jax.Array], layer: Any, x: jax.Array, window: Any, strides: Any) -> jax.Array:
    """A pooling of a batch, whose channels are the last axis, or else the first, that the window leaves alone."""
    channel = next((axis for axis in (x.ndim - 1, 1) if window[axis] == strides[axis] == 1), None)
    if channel is None:
        raise NoEqual(f"window_shape is {layer.window_shape}")
    spatial = [axis for axis in range(1, x.ndim) if axis != channel]
    window, strides = ([size[axis] for axis in spatial] for size in (window, strides))
    return pool(x, window, strides=strides, padding=layer.padding, feature_axis=channel)


def _per_axis(size: Any, ndim: int, channel_axis: int | None) -> tuple[int, ...]:
    """The window or the strides along every axis, as haiku reads an int or fewer numbers than there are axes."""
    if not isinstance(size, int):
        return (*(1,) * (ndim - len(size)), *size)
    channel = channel_axis % ndim if channel_axis else None
    return (1, *(1 if axis == channel else size for axis in range(1, ndim)))


# --- norms ---------------------------------------------------------------------------------------------------------


def _layer_norm(layer: hk.LayerNorm, inputs: Any, scale: Any = None, offset: Any = None) -> jax.Array:
    """`LayerNorm` and `InstanceNorm`."""
    x = as_array(inputs)
    axes, param_axes = (_positive(axis, x.ndim) for axis in (layer.axis, layer.param_axis))
    scale, offset = _scale_and_offset(layer, x, _param_shape(x, param_axes), scale, offset)
    dtype = result_dtype(x, scale, offset)
    return in_dtype(norms.normalize, dtype, x, scale, offset, reduction_axes=axes, epsilon=layer.eps)


def _rms_norm(layer: hk.RMSNorm, inputs: Any) -> jax.Array:
    x = as_array(inputs)
    axes, param_axes = (_positive(axis, x.ndim) for axis in (layer.axis, layer.param_axis))
    scale = None
    if layer.create_scale:
        scale = hk.get_parameter("scale", _param_shape(x, param_axes), x.dtype, init=layer.scale_init)
    dtype = result_dtype(x, scale)
    return in_dtype(norms.normalize, dtype, x, scale, reduction_axes=axes, epsilon=layer.eps, use_mean=False)


def _group_norm(layer: hk.GroupNorm, x: Any, scale: Any = None, offset: Any = None) -> jax.Array:
    """`GroupNorm`: a norm of x whose channels are split into groups."""
    x = as_array(x)
    if layer.rank is not None or (not isinstance(layer.axis, slice) and min(layer.axis) < 0):
        raise NoEqual(f"axis is {layer.axis}")  # negative axes count after the split, and so do all after haiku's call
    channel = layer.channel_index % x.ndim
    axes = tuple(axis + (axis >= channel) for axis in _positive(layer.axis, x.ndim))
    split = (layer.groups, x.shape[channel] // layer.groups)
    shape = (x.shape[channel], *(1,) * (0 if layer.channel_index == -1 else x.ndim - 2))
    scale, offset = _scale_and_offset(layer, x, shape, scale, offset)
    rows = (*x.shape[:channel], *split, *x.shape[channel + 1 :])
    view = tuple(size if axis in (channel, channel + 1) else 1 for axis, size in enumerate(rows))
    parameters = [None if p is None else reshape(jnp.broadcast_to(p, shape), view) for p in (scale, offset)]
    dtype = result_dtype(x, scale, offset)
    y = in_dtype(norms.normalize, dtype, reshape(x, rows), *parameters, reduction_axes=axes, epsilon=layer.eps)
    return reshape(y, x.shape)


def _batch_norm_layer(
    layer: hk.BatchNorm,
    inputs: Any,
    is_training: bool,
    test_local_stats: bool = False,
    scale: Any = None,
    offset: Any = None,
) -> jax.Array:
    """`BatchNorm` over every axis but the channels'; haiku's own modules keep the averages."""
    x = as_array(inputs)
    channel = layer.channel_index % x.ndim
    if layer.cross_replica_axis_index_groups is not None:
        raise NoEqual("cross_replica_axis_index_groups is given")
    if layer.axis is not None and sorted(layer.axis) != [axis for axis in range(x.ndim) if axis != channel]:
        raise NoEqual(f"axis is {layer.axis}")
    of_batch, view = is_training or test_local_stats, [s if a == channel else 1 for a, s in enumerate(x.shape)]
    channels = (x.shape[channel],)
    stats = None
    if not of_batch:
        averages = (cast(ema.average, x.dtype) for ema in (layer.mean_ema, layer.var_ema))
        stats = BatchStats(*(reshape(average, channels) for average in averages))
    parameters = _scale_and_offset(layer, x, view, scale, offset)
    dtype = result_dtype(x, *parameters)
    scale, offset = (None if p is None else reshape(jnp.broadcast_to(p, view), channels) for p in parameters)
    y, new = _batch_norm.batch_norm(
        cast(x, jnp.promote_types(x.dtype, dtype)),
        scale,
        offset,
        stats,
        training=bool(of_batch),
        feature_axis=channel,
        epsilon=layer.eps,
        axis_name=layer.cross_replica_axis,
    )
    if is_training:
        layer.mean_ema(reshape(cast(new.mean, x.dtype), tuple(view)))
        layer.var_ema(reshape(cast(new.var, x.dtype), tuple(view)))
    return cast(y, dtype)


def _positive(axes: Any, ndim: int) -> tuple[int, ...]:
    """A slice of the axes, or some of them, counted from the front."""
    return tuple(range(ndim)[axes]) if isinstance(axes, slice) else tuple(sorted({axis % ndim for axis in axes}))


def _param_shape(x: jax.Array, axes: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of the parameters along these axes: a vector along the last axis, ones along the others else."""
    if axes == (x.ndim - 1,):
        return x.shape[-1:]
    return tuple(size if axis in axes else 1 for axis, size in enumerate(x.shape))


def _scale_and_offset(layer: Any, x: jax.Array, shape: Any, scale: Any, offset: Any) -> list[Any]:
    """The layer's parameters, or the call's, or None."""
    parameters = []
    for name, create, given in (("scale", layer.create_scale, scale), ("offset", layer.create_offset, offset)):
        if create and given is not None:
            raise NoEqual(f"{name} is created and given")
        init = getattr(layer, f"{name}_init", None)
        made = hk.get_parameter(name, shape, x.dtype, init=init) if create else given
        parameters.append(None if made is None else as_array(made))
    return parameters


RULES: Mapping[type[hk.Module], Callable[..., jax.Array]] = {
    hk.Linear: _linear,
    **dict.fromkeys((hk.ConvND, hk.Conv1D, hk.Conv2D, hk.Conv3D), _conv),
    **dict.fromkeys((hk.ConvNDTranspose, hk.Conv1DTranspose, hk.Conv2DTranspose, hk.Conv3DTranspose), _conv_transpose),
    **dict.fromkeys((hk.DepthwiseConv1D, hk.DepthwiseConv2D, hk.DepthwiseConv3D), _depthwise_conv),
    hk.MaxPool: _max_pool,
    hk.AvgPool: _avg_pool,
    **dict.fromkeys((hk.LayerNorm, hk.InstanceNorm), _layer_norm),
    hk.RMSNorm: _rms_norm,
    hk.GroupNorm: _group_norm,
    hk.BatchNorm: _batch_norm_layer,
}
