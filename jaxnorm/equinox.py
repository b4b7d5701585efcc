"""equinox models on these rules: `model = jaxnorm.equinox.hand_rules(model)`.

The layers become instances of classes derived from equinox's, with the same fields. So leaves, their order and paths,
and files of `eqx.tree_serialise_leaves` stay what they are. The tree definition names the new classes, as it must:
`jax.jit` tells by it that it has another program to compile.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp

from jaxnorm import _batch_norm, convolution, norms, pooling
from jaxnorm._batch_norm import BatchStats
from jaxnorm._cotangents import cast, reshape
from jaxnorm._models import NOT_HERE, NoEqual, Report, axis_orders, in_dtype, own_class, result_dtype
from jaxnorm.dense import affine

__all__ = ["Report", "hand_rules", "report", "restore"]

Tree = TypeVar("Tree")


def hand_rules(model: Tree) -> Tree:
    """A model whose equinox norms, convolutions, pooling and dense layers compute by this library's rules.

    The layers are `Linear`, `Conv` and `ConvTranspose` of 1 to 3 spatial axes under all of their names, `MaxPool1d` and
    `AvgPool1d` to 3d, `BatchNorm` of mode "batch", `LayerNorm`, `RMSNorm` and `GroupNorm`, where they are equinox' own
    classes and not classes derived from them. Parameters, state and the result's dtype are the layer's. `report(model)`
    says which layers these are.

    Args:
      model: the model, or any tree that holds its layers, such as the state of an optimizer made for it.

    Returns:
      The same tree with the layers' classes exchanged; nothing else of it changes, and every leaf is the same object. A
      call whose arguments have no equal here (complex numbers) runs equinox' code.

    Gradient:
      That of `jaxnorm`'s functions. Running statistics carry none.

    Example:
      >>> import equinox as eqx
      >>> import jax
      >>> import jaxnorm.equinox
      >>> model = eqx.nn.Sequential([eqx.nn.Linear(3, 4, key=jax.random.key(0)), eqx.nn.LayerNorm(4)])
      >>> model = jaxnorm.equinox.hand_rules(model)
      >>> print(jaxnorm.equinox.report(model))
      2 layers computed by jaxnorm, 0 by their own code
        .layers[0]: Linear
        .layers[1]: LayerNorm

    References:
      equinox, https://docs.kidger.site/equinox.
    """
    return _exchanged(
        model, lambda layer: layer if _without_equal(layer) else _with_class(layer, _HAND.get(type(layer), type(layer)))
    )


def restore(model: Tree) -> Tree:
    """The model with equinox' own classes again: what `hand_rules` was given."""
    return _exchanged(model, lambda layer: _with_class(layer, _OWN.get(type(layer), type(layer))))


def report(model: Any) -> Report:
    """Which of a model's layers are computed by this library's rules, and why others keep equinox' code."""
    found = Report()

    def is_layer(path: Any, node: Any) -> bool:
        cls = _OWN.get(type(node), type(node))
        if isinstance(node, tuple(RULES)):
            reason = None if type(node) in _OWN else _without_equal(node) or "hand_rules was not called"
            found.add(jax.tree_util.keystr(path) or cls.__name__, cls, reason)
        return cls in RULES

    jax.tree_util.tree_map_with_path(lambda path, leaf: None, model, is_leaf=is_layer, is_leaf_takes_path=True)
    return found


def _without_equal(layer: Any) -> str | None:
    """Why a layer keeps its own code; None if it has an equal here or is one."""
    if type(layer) in _OWN:
        return None
    if type(layer) not in RULES:
        return own_class(layer, RULES)
    if isinstance(layer, eqx.nn.BatchNorm) and layer.mode != "batch":
        return f"mode {layer.mode!r} normalizes by the running average in training"
    if isinstance(layer, eqx.nn.Conv | eqx.nn.ConvTranspose) and not 1 <= layer.num_spatial_dims <= 3:
        return f"{layer.num_spatial_dims} spatial axes"
    weight = getattr(layer, "weight", None)
    if weight is not None and eqx.is_array(weight) and not jnp.issubdtype(weight.dtype, jnp.floating):
        return f"the weight is {weight.dtype}"
    return None


def _exchanged(tree: Any, exchange: Callable[[Any], Any]) -> Any:
    """The tree with its layers exchanged."""

    def is_layer(node: Any) -> bool:
        return type(node) in RULES or type(node) in _OWN

    return jax.tree.map(lambda node: exchange(node) if is_layer(node) else node, tree, is_leaf=is_layer)


def _with_class(layer: Any, cls: type) -> Any:
    """An instance of a class with the fields of a layer."""
    if type(layer) is cls:
        return layer
    new = object.__new__(cls)
    for field in dataclasses.fields(layer):
        object.__setattr__(new, field.name, getattr(layer, field.name))
    return new


# --- the layers ----------------------------------------------------------------------------------------------------


def _linear(layer: Any, x: jax.Array) -> jax.Array:
    """`Linear`, of vectors and of scalars."""
    x = reshape(x, (1,)) if layer.in_features == "scalar" else x
    if x.ndim != 1:
        raise NoEqual(f"x has {x.ndim} axes")
    y = in_dtype(affine, result_dtype(x, layer.weight, layer.bias), x, layer.weight.T, layer.bias)
    return reshape(y, ()) if layer.out_features == "scalar" else y


def _conv(layer: Any, x: jax.Array) -> jax.Array:
    """`Conv` and its kin."""
    padding = layer.padding
    if layer.padding_mode != "ZEROS":
        x, padding = layer._nonzero_pad(x), "VALID"
    return _convolved(layer, x, strides=layer.stride, padding=padding)


def _conv_transpose(layer: Any, x: jax.Array) -> jax.Array:
    """`ConvTranspose` and its kin, whose kernel has the axis order of a convolution's."""
    padding = layer._padding_transpose()
    if layer.padding_mode == "CIRCULAR":
        x, padding = layer._circular_pad(x, padding)
    return _convolved(layer, x, input_dilation=layer.stride, padding=padding)


def _convolved(layer: Any, x: jax.Array, **options: Any) -> jax.Array:
    """A convolution of one example, channels first."""
    if x.ndim != layer.num_spatial_dims + 1 or x.dtype != layer.weight.dtype:
        raise NoEqual(f"x is {x.dtype}{x.shape}")
    bias = layer.bias if layer.use_bias else None
    y = convolution.conv(
        reshape(x, (1, *x.shape)),
        layer.weight,
        None if bias is None else reshape(bias, (bias.size,)),
        kernel_dilation=layer.dilation,
        feature_group_count=layer.groups,
        dimension_numbers=axis_orders(layer.num_spatial_dims, "OI*", channels_last=False),
        preferred_element_type=result_dtype(x, bias),
        **options,
    )
    return reshape(y, y.shape[1:])


def _max_pool(layer: Any, x: jax.Array) -> jax.Array:
    """`MaxPool1d` and its kin."""
    return _pooled(pooling.max_pool, layer, x)


def _avg_pool(layer: Any, x: jax.Array) -> jax.Array:
    """`AvgPool1d` and its kin, which divide by the window's size."""
    return _pooled(pooling.avg_pool, layer, x)


def _pooled(pool: Callable[..., jax.Array], layer: Any, x: jax.Array) -> jax.Array:
    """A pooling of one example, channels first."""
    padding = layer._update_padding_for_ceil(x.shape) if layer.use_ceil else layer.padding
    layer._check_is_padding_valid(padding)
    batch = reshape(x, (1, *x.shape))
    y = pool(batch, layer.kernel_size, strides=layer.stride, padding=padding, feature_axis=1)
    return reshape(y, y.shape[1:])


def _layer_norm(layer: Any, x: jax.Array) -> jax.Array:
    """`LayerNorm` and `RMSNorm`, over all axes of one example."""
    if x.shape != layer.shape:
        raise NoEqual(f"x has shape {x.shape}")
    return norms.normalize(
        x,
        layer.weight if layer.use_weight else None,
        layer.bias if layer.use_bias else None,
        reduction_axes=tuple(range(x.ndim)),
        epsilon=layer.eps,
        use_mean=isinstance(layer, eqx.nn.LayerNorm),
    )


def _group_norm(layer: Any, x: jax.Array) -> jax.Array:
    """`GroupNorm` of one example, channels first."""
    parameters = (layer.weight, layer.bias) if layer.channelwise_affine else (None, None)
    batch = reshape(x, (1, *x.shape))
    y = norms.group_norm(batch, *parameters, num_groups=layer.groups, feature_axis=1, epsilon=layer.eps)
    return reshape(y, x.shape)


def _batch_norm_layer(layer: Any, x: jax.Array, state: Any, inference: bool | None = None) -> tuple[jax.Array, Any]:
    """`BatchNorm` of mode "batch", of one example of a batch that is mapped over `axis_name`."""
    inference = layer.inference if inference is None else inference
    hidden = BatchStats(*state.get(layer.batch_state_index))
    counter = state.get(layer.batch_counter)
    stats = hidden
    if inference:  # the averages without the share of the zeros that they started from
        share = jnp.where(counter == 0, 1, 1 - layer.momentum**counter)
        stats = BatchStats(*(average / share for average in hidden))
    parameters = (layer.weight, layer.bias) if layer.channelwise_affine else (None, None)
    dtype = result_dtype(x, *parameters, stats.mean if inference else None)
    y, new = _batch_norm.batch_norm(
        cast(x, jnp.promote_types(x.dtype, dtype)),
        *parameters,
        stats,
        training=not inference,
        feature_axis=0,
        momentum=layer.momentum,
        epsilon=layer.eps,
        axis_name=None if inference else layer.axis_name,
    )
    if not inference:
        of_state = jnp.promote_types(hidden.mean.dtype, x.dtype)
        state = state.set(layer.batch_counter, counter + 1)
        state = state.set(layer.batch_state_index, tuple(cast(n, of_state) for n in new))
    return cast(y, dtype), state


RULES: Mapping[type, Callable[..., Any]] = {
    eqx.nn.Linear: _linear,
    **dict.fromkeys((eqx.nn.Conv, eqx.nn.Conv1d, eqx.nn.Conv2d, eqx.nn.Conv3d), _conv),
    **dict.fromkeys(
        (eqx.nn.ConvTranspose, eqx.nn.ConvTranspose1d, eqx.nn.ConvTranspose2d, eqx.nn.ConvTranspose3d),
        _conv_transpose,
    ),
    **dict.fromkeys((eqx.nn.MaxPool1d, eqx.nn.MaxPool2d, eqx.nn.MaxPool3d), _max_pool),
    **dict.fromkeys((eqx.nn.AvgPool1d, eqx.nn.AvgPool2d, eqx.nn.AvgPool3d), _avg_pool),
    eqx.nn.LayerNorm: _layer_norm,
    eqx.nn.RMSNorm: _layer_norm,
    eqx.nn.GroupNorm: _group_norm,
    eqx.nn.BatchNorm: _batch_norm_layer,
}


def _hand(cls: Any) -> Any:
    """The class derived from a layer's whose calls go to its rule."""
    compute, own = RULES[cls], cls.__call__

    def plain(self, x, *, key=None):
        try:
            return compute(self, x)
        except NOT_HERE:
            return own(self, x, key=key)

    def stateful(self, x, *state, key=None, **options):
        try:
            y = compute(self, x, *state, **options) if compute is _batch_norm_layer else (compute(self, x), *state)
        except NOT_HERE:
            return own(self, x, *state, key=key, **options)
        return y if state else y[0]

    norm = compute in (_layer_norm, _group_norm, _batch_norm_layer)
    members = {"__call__": stateful if norm else plain, "__doc__": f"`{cls.__name__}`, computed by jaxnorm."}
    members |= {"__module__": __name__, "__qualname__": cls.__name__}
    return type(cls)(cls.__name__, (cls,), members)


_HAND = {cls: _hand(cls) for cls in RULES}
_OWN = {hand: cls for cls, hand in _HAND.items()}
globals().update({cls.__name__: hand for cls, hand in _HAND.items()})  # where a pickled layer finds its class
