"""Norms and losses of every rival as functions of the same arguments: (x, scale, bias) -> y, (logits, labels) -> loss.

Every adapter is configured to say the same: epsilon 1e-5, biased variance, statistics of the batch, parameters in
float32 (haiku's in x's dtype, as its mixed-precision policy has them), y in x's dtype. What users do not set is left as
it is, such as flax's fast variance. Running averages are not computed: nothing of them is returned.

x has its channels last. Equinox is written for one example of shape (C, ...): its norms run under `vmap`, batch norm
with each position an example, instance and group norm with the axes moved.
"""

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import jaxnorm as jn


def _installed(module: str) -> Any:
    """The module; without types, since it may not be there."""
    return importlib.import_module(module) if importlib.util.find_spec(module.split(".")[0]) else None


linen, nnx, haiku, equinox, optax = (_installed(m) for m in ("flax.linen", "flax.nnx", "haiku", "equinox", "optax"))
tokamax = _installed("tokamax")

EPSILON = 1e-5


class Norm(NamedTuple):
    """Which normalization of what."""

    kind: str
    shape: tuple[int, ...]
    dtype: Any
    groups: int = 32

    @property
    def channels(self) -> int:
        """The size of the last axis."""
        return self.shape[-1]


Function = Callable[..., jax.Array]


def hand_norm(norm: Norm) -> Function:
    """This library's."""
    functions: dict[str, Function] = {
        "layer": jn.layer_norm,
        "rms": jn.rms_norm,
        "instance": jn.instance_norm,
        "group": lambda *args: jn.group_norm(*args, num_groups=norm.groups),
        "batch": lambda *args: jn.batch_norm(*args, training=True)[0],
    }
    return functions[norm.kind]


def plain_norm(norm: Norm) -> Function:
    """As a person writes it, with a two-pass variance in float32."""

    def function(x: jax.Array, scale: jax.Array, bias: jax.Array | None = None) -> jax.Array:
        h = x.astype(jnp.float32)
        axes: tuple[int, ...] = (-1,)
        if norm.kind in ("batch", "instance"):
            axes = tuple(range(norm.kind == "instance", x.ndim - 1))
        if norm.kind == "group":
            axes = (1, 3)
            h = h.reshape(x.shape[0], -1, norm.groups, norm.channels // norm.groups)
        if norm.kind != "rms":
            h = h - h.mean(axes, keepdims=True)
        h = h * jax.lax.rsqrt((h * h).mean(axes, keepdims=True) + EPSILON)
        y = h.reshape(x.shape) * scale
        return (y if bias is None else y + bias).astype(x.dtype)

    return function


def linen_norm(norm: Norm) -> Function:
    """Flax's modules."""
    options = {"epsilon": EPSILON, "dtype": norm.dtype}
    module = {
        "layer": lambda: linen.LayerNorm(**options),
        "rms": lambda: linen.RMSNorm(**options),
        "instance": lambda: linen.InstanceNorm(**options),
        "group": lambda: linen.GroupNorm(norm.groups, **options),
        "batch": lambda: linen.BatchNorm(use_running_average=False, **options),
    }[norm.kind]()
    running = {"mean": jnp.zeros(norm.channels), "var": jnp.ones(norm.channels)}

    def function(x: jax.Array, *parameters: jax.Array) -> jax.Array:
        params = dict(zip(("scale", "bias"), parameters, strict=False))
        if norm.kind == "batch":
            return module.apply({"params": params, "batch_stats": running}, x, mutable=["batch_stats"])[0]
        return module.apply({"params": params}, x)

    return function


def nnx_norm(norm: Norm) -> Function:
    """Flax's newer modules, split and merged as nnx's own documentation has it for jax.jit."""
    options = {"epsilon": EPSILON, "dtype": norm.dtype, "rngs": nnx.Rngs(0)}
    module = {
        "layer": lambda: nnx.LayerNorm(norm.channels, **options),
        "rms": lambda: nnx.RMSNorm(norm.channels, **options),
        "instance": lambda: nnx.InstanceNorm(norm.channels, **options),
        "group": lambda: nnx.GroupNorm(norm.channels, norm.groups, **options),
        "batch": lambda: nnx.BatchNorm(norm.channels, use_running_average=False, **options),
    }[norm.kind]()
    graph, state = nnx.split(module)

    def function(x: jax.Array, *parameters: jax.Array) -> jax.Array:
        merged = nnx.merge(graph, state, copy=True)
        for name, value in zip(("scale", "bias"), parameters, strict=False):
            setattr(merged, name, nnx.Param(value))
        return merged(x)

    return function


def haiku_norm(norm: Norm) -> Function:
    """Haiku's modules."""
    both: dict[str, Any] = {"create_scale": True, "create_offset": True, "name": "norm"}

    def forward(x: jax.Array) -> jax.Array:
        if norm.kind == "batch":
            return haiku.BatchNorm(**both, decay_rate=0.9)(x, is_training=True)
        module = {
            "layer": lambda: haiku.LayerNorm(-1, **both, param_axis=-1),
            "rms": lambda: haiku.RMSNorm(-1, name="norm"),
            "instance": lambda: haiku.InstanceNorm(**both),
            "group": lambda: haiku.GroupNorm(norm.groups, **both),
        }[norm.kind]()
        return module(x)

    transformed = haiku.transform_with_state(forward)
    one_example = jnp.ones((2,) + (1,) * (len(norm.shape) - 2) + (norm.channels,), norm.dtype)
    made, state = transformed.init(jax.random.key(0), one_example)

    def function(x: jax.Array, *parameters: jax.Array) -> jax.Array:
        named = zip(("scale", "offset"), parameters, strict=False)
        params = {"norm": {name: p.astype(x.dtype).reshape(made["norm"][name].shape) for name, p in named}}
        return transformed.apply(params, state, None, x)[0]

    return function


def equinox_norm(norm: Norm) -> Function:
    """Equinox's modules."""
    size, options, state = norm.channels, {"eps": EPSILON}, None
    if norm.kind == "batch":
        module, state = equinox.nn.make_with_state(equinox.nn.BatchNorm)(size, "batch", mode="batch", **options)
    else:
        module = {
            "layer": lambda: equinox.nn.LayerNorm(size, **options),
            "rms": lambda: equinox.nn.RMSNorm(size, use_bias=False, **options),
            "instance": lambda: equinox.nn.GroupNorm(size, size, **options),
            "group": lambda: equinox.nn.GroupNorm(norm.groups, size, **options),
        }[norm.kind]()

    def function(x: jax.Array, *parameters: jax.Array) -> jax.Array:
        where = (lambda m: (m.weight,)) if norm.kind == "rms" else (lambda m: (m.weight, m.bias))
        with_ours = equinox.tree_at(where, module, parameters)
        if norm.kind in ("instance", "group"):
            return jax.vmap(lambda example: jnp.moveaxis(with_ours(jnp.moveaxis(example, -1, 0)), 0, -1))(x)
        rows = x.reshape(-1, size)
        if norm.kind == "batch":
            fresh = jax.tree.unflatten(*reversed(jax.tree.flatten(state)))  # a state may be used once
            y = jax.vmap(lambda row: with_ours(row, fresh)[0], axis_name="batch")(rows)  # float32 if parameters are
            return y.astype(x.dtype).reshape(x.shape)
        return jax.vmap(with_ours)(rows).reshape(x.shape)

    return function


NORMS: dict[str, Callable[[Norm], Function]] = {"plain": plain_norm} | {
    name: adapter
    for name, module, adapter in (
        ("linen", linen, linen_norm),
        ("nnx", nnx, nnx_norm),
        ("haiku", haiku, haiku_norm),
        ("equinox", equinox, equinox_norm),
    )
    if module
}


def _plain_cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], 1)[:, 0]


def _plain_dense_cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    return -jnp.sum(labels * jax.nn.log_softmax(logits), -1)


def _plain_log_softmax(logits: jax.Array, labels: jax.Array) -> jax.Array:
    return jax.nn.log_softmax(logits)


def _plain_svm(scores: jax.Array, labels: jax.Array) -> jax.Array:
    margins = jnp.maximum(scores - jnp.take_along_axis(scores, labels[:, None], 1) + 1, 0)
    return margins.sum(-1) - 1  # the label's own margin is 1


def _plain_hinge(scores: jax.Array, labels: jax.Array) -> jax.Array:
    own = jax.nn.one_hot(labels, scores.shape[-1], dtype=bool)
    margins = jnp.where(own, -jnp.inf, scores).max(-1) - jnp.where(own, scores, 0).sum(-1) + 1
    return jnp.maximum(margins, 0)


HAND_LOSSES: dict[str, Function] = {
    "cross-entropy": lambda *args: jnp.asarray(jn.softmax_cross_entropy_with_integer_labels(*args)),
    "dense cross-entropy": jn.softmax_cross_entropy,
    "log-softmax": lambda logits, labels: jn.log_softmax(logits),
    "SVM": jn.multiclass_svm_loss,
    "hinge": jn.multiclass_hinge_loss,
}
LOSSES: dict[str, dict[str, Function]] = {
    "plain": {
        "cross-entropy": _plain_cross_entropy,
        "dense cross-entropy": _plain_dense_cross_entropy,
        "log-softmax": _plain_log_softmax,
        "SVM": _plain_svm,
        "hinge": _plain_hinge,
    }
}
if optax:
    LOSSES["optax"] = {
        "cross-entropy": optax.softmax_cross_entropy_with_integer_labels,
        "dense cross-entropy": optax.softmax_cross_entropy,
        "hinge": optax.losses.multiclass_hinge_loss,
    }


def tokamax_linear_cross_entropy(hidden: jax.Array, kernel: jax.Array, labels: jax.Array) -> jax.Array:
    """The last layer and its loss without whole logits: tokamax's kernel for a TPU, elsewhere its blocks by XLA."""
    implementation = "mosaic_tpu" if jax.default_backend() == "tpu" else "chunked_xla"
    return tokamax.linear_softmax_cross_entropy_loss(
        hidden, labels, kernel, reduction="none", implementation=implementation
    )


def composed_in_float32(hidden: jax.Array, kernel: jax.Array, labels: jax.Array) -> jax.Array:
    """This library's loss of whole logits that are float32 even of 16-bit inputs, as the linear loss's are."""
    logits = jnp.matmul(hidden, kernel, preferred_element_type=jnp.float32)
    return HAND_LOSSES["cross-entropy"](logits, labels)


LINEAR_LOSSES: dict[str, Function] = {"composed-float32": composed_in_float32}
if tokamax:
    LINEAR_LOSSES["tokamax"] = tokamax_linear_cross_entropy
