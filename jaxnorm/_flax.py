"""flax's layers computed by these rules: linen's and nnx's have the same options under the same names.

Each function takes the layer, what gives its variables (`parameter`, `statistics`, `update`, `chosen`), and the
arguments of the layer's call. It raises where the layer has no equal here, and changes nothing before.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import opt_einsum
from jax import lax

from jaxnorm import _batch_norm, convolution, norms
from jaxnorm._batch_norm import BatchStats
from jaxnorm._cotangents import cast, reshape
from jaxnorm._models import NoEqual, as_array, in_dtype
from jaxnorm.dense import affine

Shape = tuple[int, ...]


class Variables(Protocol):
    """A layer's parameters and statistics, wherever its library keeps them."""

    def parameter(self, name: str, shape: Shape) -> Any:
        """A parameter of this shape; None if the layer has none of this name."""

    def statistics(self) -> tuple[Any, Any]:
        """The running mean and variance."""
        ...

    def update(self, mean: jax.Array, var: jax.Array) -> None:
        """Sets the running mean and variance."""

    def chosen(self, name: str, argument: Any) -> Any:
        """The value of an option that the constructor or the call gives."""


# --- options -------------------------------------------------------------------------------------------------------

# What an option must be (or None, or absent) for a layer to have an equal here.
PLAIN = {
    "dot_general": lax.dot_general,
    "dot_general_cls": None,
    "einsum_op": jnp.einsum,
    "conv_general_dilated": lax.conv_general_dilated,
    "conv_general_dilated_cls": None,
    "axis_index_groups": None,
}


def without_equal(compute: Callable[..., Any], layer: Any, promote_dtype: Any) -> str | None:
    """Which option of a layer has no equal here; None if all have."""
    for name, plain in {**PLAIN, "promote_dtype": promote_dtype}.items():
        if getattr(layer, name, None) not in (None, plain):
            return f"{name} is given"
    if compute in (dense, dense_general, einsum) and getattr(layer, "preferred_element_type", None) is not None:
        return "preferred_element_type is given"
    if compute is dense_general and (getattr(layer, "batch_dims", ()) or getattr(layer, "batch_axis", ())):
        return "batch axes"
    if compute is conv_transpose and layer.padding == "CIRCULAR":
        return "padding is 'CIRCULAR'"
    if compute in (conv, conv_transpose) and not 1 <= len(_window(layer)) <= 3:
        return f"{len(_window(layer))} spatial axes"
    if compute is batch_norm and len(_axes(layer.axis)) != 1:
        return f"axis is {layer.axis}"
    if compute is batch_norm and not (isinstance(layer.momentum, float | int) and 0 <= layer.momentum <= 1):
        return f"momentum is {layer.momentum}"
    return None


def _axes(axes: Any) -> tuple[int, ...]:
    return tuple(axes) if isinstance(axes, Iterable) else (axes,)


def _positive(axes: Any, ndim: int) -> tuple[int, ...]:
    """Axes counted from the front, in ascending order."""
    if not all(-ndim <= axis < ndim for axis in _axes(axes)):
        raise NoEqual(f"axes {axes} of an array of {ndim} axes")
    return tuple(sorted({axis % ndim for axis in _axes(axes)}))


def _features(layer: Any) -> tuple[int, ...]:
    """The output features: `features` in linen, `out_features` in nnx."""
    return _axes(layer.features if hasattr(layer, "features") else layer.out_features)


def _window(layer: Any) -> tuple[int, ...]:
    return _axes(layer.kernel_size)


def _dtype(layer: Any, *arrays: Any) -> Any:
    """The dtype of the layer's result: the one that it is given, or that of its arguments."""
    dtype = layer.dtype
    if dtype is None:
        dtype = jnp.result_type(*(array for array in arrays if array is not None))
        dtype = dtype if jnp.issubdtype(dtype, jnp.inexact) else jnp.promote_types(jnp.float32, dtype)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise NoEqual(f"dtype {jnp.dtype(dtype).name}")
    return jnp.dtype(dtype)


def _promoted(layer: Any, *arrays: Any) -> list[Any]:
    """The arrays in the dtype of the layer's result."""
    dtype = _dtype(layer, *arrays)
    return [None if array is None else cast(array, dtype) for array in arrays]


def _refuse(name: str, value: Any) -> None:
    if value is not None:
        raise NoEqual(f"{name} is given")


# --- dense layers --------------------------------------------------------------------------------------------------


def dense(layer: Any, variables: Variables, inputs: Any, out_sharding: Any = None) -> jax.Array:
    """`Dense`, `Linear`."""
    _refuse("out_sharding", out_sharding)
    x, features = as_array(inputs), _features(layer)
    kernel = variables.parameter("kernel", (x.shape[-1], *features))
    x, kernel, bias = _promoted(layer, x, kernel, variables.parameter("bias", features))
    return affine(x, kernel, bias, precision=layer.precision)


def dense_general(layer: Any, variables: Variables, inputs: Any, out_sharding: Any = None) -> jax.Array:
    """`DenseGeneral`, `LinearGeneral`, without batch axes."""
    _refuse("out_sharding", out_sharding)
    x, features = as_array(inputs), _features(layer)
    axes = _positive(layer.axis, x.ndim)
    kernel = variables.parameter("kernel", (*(x.shape[axis] for axis in axes), *features))
    bias = variables.parameter("bias", features)
    kept = tuple(axis for axis in range(x.ndim) if axis not in axes)
    return _contract(layer, x, (*kept, *axes), kernel, bias, len(axes))


def einsum(
    layer: Any, variables: Variables, inputs: Any, einsum_str: str | None = None, out_sharding: Any = None
) -> jax.Array:
    """`Einsum`, where every index of the kernel is either summed over or an output's."""
    _refuse("out_sharding", out_sharding)
    x = as_array(inputs)
    shape = tuple(layer.shape if hasattr(layer, "shape") else layer.kernel_shape)
    equation = variables.chosen("einsum_str", einsum_str).replace(" ", "")
    kernel = variables.parameter("kernel", shape)
    if "->" not in equation or equation.count(",") != 1:
        raise NoEqual(f"equation {equation}")
    terms, result, _ = opt_einsum.parser.parse_einsum_input((equation, x, kernel))
    of_x, of_kernel = terms.split(",")
    summed = [c for c in of_kernel if c in of_x]
    rows, columns = [c for c in of_x if c not in summed], [c for c in of_kernel if c not in summed]
    if len({*of_x, *of_kernel}) != len(of_x) + len(columns) or sorted(result) != sorted(rows + columns):
        raise NoEqual(f"equation {equation}")
    size = dict(zip(of_kernel, shape, strict=True))
    in_result = [c for c in result if c in columns]
    bias = variables.parameter("bias", tuple(size[c] for c in in_result))
    kernel = jnp.transpose(kernel, [of_kernel.index(c) for c in summed + columns])
    bias = None if bias is None else jnp.transpose(bias, [in_result.index(c) for c in columns])
    y = _contract(layer, x, tuple(of_x.index(c) for c in rows + summed), kernel, bias, len(summed))
    return jnp.transpose(y, [(rows + columns).index(c) for c in result])


def _contract(layer: Any, x: jax.Array, order: Shape, kernel: Any, bias: Any, summed: int) -> jax.Array:
    """x, its axes in this order, times the kernel over the last of them and the kernel's first."""
    x, kernel, bias = _promoted(layer, x, kernel, bias)
    x = x if order == tuple(range(x.ndim)) else jnp.transpose(x, order)
    columns = kernel.shape[summed:]
    size = math.prod(columns)
    matrix = reshape(kernel, (math.prod(kernel.shape[:summed]), size))
    bias = None if bias is None else reshape(bias, (size,))
    if summed == 0:
        raise NoEqual("no axis is summed over")
    y = affine(x, matrix, bias, num_feature_axes=summed, precision=layer.precision)
    return reshape(y, (*x.shape[: x.ndim - summed], *columns))


# --- convolutions --------------------------------------------------------------------------------------------------


def conv(layer: Any, variables: Variables, inputs: Any, out_sharding: Any = None) -> jax.Array:
    """`Conv`, with any number of batch axes."""
    _refuse("out_sharding", out_sharding)
    x, window, features = as_array(inputs), _window(layer), _features(layer)
    kernel_shape = (*window, x.shape[-1] // layer.feature_group_count, *features)
    x, kernel, bias, batch = _convolved(layer, variables, x, kernel_shape)
    dilation = layer.kernel_dilation or 1
    dilations = (dilation,) * len(window) if isinstance(dilation, int) else tuple(dilation)
    x, padding = _padded(layer.padding, x, tuple((k - 1) * d for k, d in zip(window, dilations, strict=True)))
    y = convolution.conv(
        x,
        kernel,
        bias,
        strides=layer.strides or 1,
        padding=padding,
        input_dilation=layer.input_dilation or 1,
        kernel_dilation=dilations,
        feature_group_count=layer.feature_group_count,
        precision=layer.precision,
        preferred_element_type=_preferred(layer, bias),
    )
    return reshape(y, (*batch, *y.shape[1:]))


def conv_transpose(layer: Any, variables: Variables, inputs: Any) -> jax.Array:
    """`ConvTranspose`, with any number of batch axes, without circular padding."""
    x, window, features = as_array(inputs), _window(layer), _features(layer)
    channels = (x.shape[-1], *features)
    kernel_shape = (*window, *(reversed(channels) if layer.transpose_kernel else channels))
    x, kernel, bias, batch = _convolved(layer, variables, x, kernel_shape)
    y = convolution.conv_transpose(
        x,
        kernel,
        bias,
        strides=layer.strides or 1,
        padding=layer.padding,
        kernel_dilation=layer.kernel_dilation or 1,
        transpose_kernel=layer.transpose_kernel,
        precision=layer.precision,
        preferred_element_type=_preferred(layer, bias),
    )
    return reshape(y, (*batch, *y.shape[1:]))


def _convolved(layer: Any, variables: Variables, x: jax.Array, kernel_shape: Shape) -> tuple[Any, Any, Any, Shape]:
    """x with one batch axis, the kernel and the bias, in the layer's dtype, and the batch axes that x had."""
    batch = x.shape[: x.ndim - len(_window(layer)) - 1]
    kernel, bias = variables.parameter("kernel", kernel_shape), variables.parameter("bias", _features(layer))
    kernel = kernel if layer.mask is None else kernel * layer.mask
    x = reshape(x, (math.prod(batch), *x.shape[len(batch) :]))
    return *_promoted(layer, x, kernel, bias), batch


def _padded(padding: Any, x: jax.Array, reach: Shape) -> tuple[jax.Array, Any]:
    """x after the paddings that are not zeros, and the padding that is left; `reach` is the dilated window less 1."""
    if padding in ("CIRCULAR", "REFLECT"):
        pads = [(0, 0), *((r // 2, (r + 1) // 2) for r in reach), (0, 0)]
        return jnp.pad(x, pads, mode="wrap" if padding == "CIRCULAR" else "reflect"), "VALID"
    if padding == "CAUSAL" and len(reach) == 1:
        return x, [(reach[0], 0)]
    return x, padding


def _preferred(layer: Any, bias: Any) -> Any:
    """The output's dtype where the layer names one for its products, to which the bias is added."""
    dtype = getattr(layer, "preferred_element_type", None)
    return dtype if dtype is None or bias is None else jnp.promote_types(dtype, bias.dtype)


# --- norms ---------------------------------------------------------------------------------------------------------


def layer_norm(layer: Any, variables: Variables, x: Any, *, mask: Any = None) -> jax.Array:
    """`LayerNorm`."""
    return _norm(layer, variables, as_array(x), mask, layer.reduction_axes, layer.feature_axes)


def rms_norm(layer: Any, variables: Variables, x: Any, mask: Any = None) -> jax.Array:
    """`RMSNorm`."""
    return _norm(layer, variables, as_array(x), mask, layer.reduction_axes, layer.feature_axes, use_mean=False)


def instance_norm(layer: Any, variables: Variables, x: Any, *, mask: Any = None) -> jax.Array:
    """`InstanceNorm`."""
    x = as_array(x)
    features = _positive(layer.feature_axes, x.ndim)
    if 0 in features:
        raise NoEqual("feature_axes holds the batch's axis")
    axes = tuple(axis for axis in range(1, x.ndim) if axis not in features)
    return _norm(layer, variables, x, mask, axes, features)


def group_norm(layer: Any, variables: Variables, x: Any, *, mask: Any = None) -> jax.Array:
    """`GroupNorm`: a norm of x whose channels are split into groups."""
    x = as_array(x)
    given = layer.reduction_axes
    axes = _positive((*range(1, x.ndim - 1), -1) if given is None else given, x.ndim)
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
    features = _positive(feature_axes, x.ndim)
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
        reduction_axes=_positive(reduction_axes, len(rows)),
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
        x, scale, bias = _promoted(layer, x, scale, bias)
    elif not layer.force_float32_reductions:
        scale, bias = (None if p is None else cast(p, layer.param_dtype) for p in (scale, bias))
    return x, scale, bias, _dtype(layer, x, scale, bias)


def batch_norm(
    layer: Any, variables: Variables, x: Any, use_running_average: bool | None = None, *, mask: Any = None
) -> jax.Array:
    """`BatchNorm` over every axis but one, with its running statistics."""
    x, (axis,) = as_array(x), _axes(layer.axis)
    average = variables.chosen("use_running_average", use_running_average)
    channels = (x.shape[axis],)
    parameters = [variables.parameter(name, channels) for name in ("scale", "bias")]
    old = BatchStats(*variables.statistics())
    stats = old
    if hasattr(layer, "promote_dtype"):  # nnx
        x, *of_stats, scale, bias = _promoted(layer, x, *old, *parameters)
        stats, dtype = BatchStats(*of_stats), _dtype(layer, x, scale, bias)
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
        computed = jnp.dtype(layer.dtype or x.dtype)
        if getattr(layer, "force_float32_reductions", True):
            computed = jnp.promote_types(computed, jnp.float32)
        variables.update(*(cast(n, jnp.promote_types(o.dtype, computed)) for n, o in zip(new, old, strict=True)))
    return cast(y, dtype)
