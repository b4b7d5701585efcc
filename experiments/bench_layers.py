"""The layers of four libraries under one interface, so that a network is written once for all of them.

The parameters have flax's names; haiku and equinox take the same, renamed, through `adapted`. Flax's layers are its own
modules with `dtype`; haiku's and equinox's are their modules on parameters cast to that dtype, as their mixed precision
has it. The head's loss is one per example, in float32: composed of a dense layer and optax's cross-entropy, except that
jaxnorm's is `linear_softmax_cross_entropy` where the vocabulary is large. Equinox has no convolutions here: its
channels come first, so that its networks would be others.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from bench_rivals import equinox, haiku, linen

import jaxnorm as jn

LARGE = 1000  # classes from which on jaxnorm's loss takes its logits in blocks
MASKED = -1e30


def attend(softmax: Any, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """Causal attention of (batch, length, heads, size), as haiku and equinox have it inside their modules."""
    scores = jnp.einsum("bqhd,bkhd->bhqk", q * jnp.asarray(q.shape[-1] ** -0.5, q.dtype), k)
    return jnp.einsum("bhqk,bkhd->bqhd", softmax(scores, jnp.tril(jnp.ones(scores.shape[-2:], bool))), v)


def plain_softmax(scores: jax.Array, mask: jax.Array) -> jax.Array:
    """With masked scores pushed far down."""
    return jax.nn.softmax(jnp.where(mask, scores, jnp.asarray(MASKED, scores.dtype)))


class Layers:
    """What all share; every method takes the layer's name first."""

    def __init__(self, dtype: Any) -> None:
        """The dtype of activations."""
        self.dtype = dtype

    def relu(self, x: jax.Array) -> jax.Array:
        """Rectified linear unit."""
        return jax.nn.relu(x)

    def attention(self, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        """Causal attention."""
        return attend(plain_softmax, q, k, v)

    def dense(self, name: str, x: jax.Array, features: int) -> jax.Array:
        """Affine layer over the last axis."""
        raise NotImplementedError  # abstract: each library below has its own, and `loss` calls it

    def loss(self, name: str, x: jax.Array, labels: jax.Array, classes: int) -> jax.Array:
        """The last layer's cross-entropy with integer labels."""
        logits = self.dense(name, x, classes).astype(jnp.float32)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


class LinenLayers(Layers):
    """Flax's; to be used inside a compact module."""

    def conv(self, name: str, x: jax.Array, features: int, window: int = 3, strides: int = 1, groups: int = 1) -> Any:
        """Convolution without a bias."""
        sizes = (window, window), (strides, strides)
        return linen.Conv(features, *sizes, feature_group_count=groups, use_bias=False, dtype=self.dtype, name=name)(x)

    def batch_norm(self, name: str, x: jax.Array) -> Any:
        """Batch norm in training."""
        return linen.BatchNorm(use_running_average=False, momentum=0.9, dtype=self.dtype, name=name)(x)

    def layer_norm(self, name: str, x: jax.Array) -> Any:
        """Layer norm over the last axis."""
        return linen.LayerNorm(epsilon=1e-5, dtype=self.dtype, name=name)(x)

    def dense(self, name: str, x: jax.Array, features: int) -> Any:
        """Affine layer over the last axis."""
        return linen.Dense(features, dtype=self.dtype, name=name)(x)

    def embed(self, name: str, tokens: jax.Array, rows: int, features: int) -> Any:
        """Rows of a table."""
        return linen.Embed(rows, features, dtype=self.dtype, name=name)(tokens)

    def relu(self, x: jax.Array) -> jax.Array:
        """Rectified linear unit."""
        return linen.relu(x)

    def attention(self, q: jax.Array, k: jax.Array, v: jax.Array) -> Any:
        """Causal attention."""
        mask = linen.make_causal_mask(jnp.ones(q.shape[:2]))
        return linen.dot_product_attention(q, k, v, mask=mask, dtype=self.dtype)


class HandLayers(Layers):
    """This library's functions; `new_stats` collects the running statistics."""

    def __init__(self, dtype: Any, params: Any, stats: Any) -> None:
        """Takes flax's collections."""
        super().__init__(dtype)
        self.params, self.stats, self.new_stats = params, stats, dict[str, Any]()

    def _cast(self, name: str) -> dict[str, Any]:
        return {key: value.astype(self.dtype) for key, value in self.params[name].items()}

    def conv(self, name: str, x: jax.Array, features: int, window: int = 3, strides: int = 1, groups: int = 1) -> Any:
        """Convolution without a bias."""
        return jn.conv(x, **self._cast(name), strides=strides, feature_group_count=groups)

    def batch_norm(self, name: str, x: jax.Array) -> Any:
        """Batch norm in training."""
        stats = jn.BatchStats(**self.stats[name])
        y, new = jn.batch_norm(x, **self.params[name], stats=stats, training=True, momentum=0.9)
        self.new_stats[name] = new._asdict()
        return y

    def layer_norm(self, name: str, x: jax.Array) -> Any:
        """Layer norm over the last axis."""
        return jn.layer_norm(x, **self.params[name])

    def dense(self, name: str, x: jax.Array, features: int) -> Any:
        """Affine layer over the last axis."""
        return jn.affine(x, **self._cast(name))

    def embed(self, name: str, tokens: jax.Array, rows: int, features: int) -> Any:
        """Rows of a table."""
        return self._cast(name)["embedding"][tokens]

    def relu(self, x: jax.Array) -> jax.Array:
        """Rectified linear unit."""
        return jn.relu(x)

    def attention(self, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        """Causal attention."""
        return attend(lambda scores, mask: jn.softmax(scores, where=mask), q, k, v)

    def loss(self, name: str, x: jax.Array, labels: jax.Array, classes: int) -> jax.Array:
        """The last layer's cross-entropy with integer labels."""
        if classes < LARGE:
            return jnp.asarray(jn.softmax_cross_entropy_with_integer_labels(self.dense(name, x, classes), labels))
        head = self._cast(name)
        return jnp.asarray(jn.linear_softmax_cross_entropy(x, head["kernel"], labels, head["bias"]))


class HaikuLayers(Layers):
    """Haiku's; to be used inside a transformed function."""

    def conv(self, name: str, x: jax.Array, features: int, window: int = 3, strides: int = 1, groups: int = 1) -> Any:
        """Convolution without a bias."""
        return haiku.Conv2D(features, window, strides, feature_group_count=groups, with_bias=False, name=name)(x)

    def batch_norm(self, name: str, x: jax.Array) -> Any:
        """Batch norm in training."""
        return haiku.BatchNorm(True, True, 0.9, name=name)(x, is_training=True)

    def layer_norm(self, name: str, x: jax.Array) -> Any:
        """Layer norm over the last axis."""
        return haiku.LayerNorm(-1, True, True, name=name, param_axis=-1)(x)

    def dense(self, name: str, x: jax.Array, features: int) -> Any:
        """Affine layer over the last axis."""
        return haiku.Linear(features, name=name)(x)

    def embed(self, name: str, tokens: jax.Array, rows: int, features: int) -> Any:
        """Rows of a table."""
        return haiku.Embed(rows, features, name=name)(tokens).astype(self.dtype)


class EquinoxLayers(Layers):
    """Equinox's modules around given parameters, under `vmap` over the positions."""

    def __init__(self, dtype: Any, params: Any) -> None:
        """Takes what `adapted` returns."""
        super().__init__(dtype)
        self.params = jax.tree.map(lambda p: p.astype(dtype), params)

    def _module(self, name: str, make: Any) -> Any:
        names = list(self.params[name])
        module = equinox.filter_eval_shape(make, key=jax.random.key(0))
        return equinox.tree_at(lambda m: [getattr(m, n) for n in names], module, [self.params[name][n] for n in names])

    def _over_positions(self, module: Any, x: jax.Array) -> jax.Array:
        return jax.vmap(module)(x.reshape(-1, x.shape[-1])).reshape(*x.shape[:-1], -1)

    def layer_norm(self, name: str, x: jax.Array) -> Any:
        """Layer norm over the last axis."""
        return self._over_positions(self._module(name, lambda key: equinox.nn.LayerNorm(x.shape[-1])), x)

    def dense(self, name: str, x: jax.Array, features: int) -> Any:
        """Affine layer over the last axis."""
        module = self._module(name, lambda key: equinox.nn.Linear(x.shape[-1], features, key=key))
        return self._over_positions(module, x)

    def embed(self, name: str, tokens: jax.Array, rows: int, features: int) -> Any:
        """Rows of a table."""
        module = self._module(name, lambda key: equinox.nn.Embedding(rows, features, key=key))
        return jax.vmap(module)(tokens.reshape(-1)).reshape(*tokens.shape, -1)


def adapted(library: str, params: Any) -> Any:
    """Flax's parameters under the names, and in the axis order, of another library."""
    names = {
        "haiku": {"kernel": "w", "bias": "b", "scale": "scale", "embedding": "embeddings"},
        "equinox": {"kernel": "weight", "bias": "bias", "scale": "weight", "embedding": "weight"},
    }[library]

    def layer(values: dict[str, jax.Array]) -> dict[str, jax.Array]:
        found = {names[key]: value for key, value in values.items()}
        if library == "haiku" and "scale" in values:
            found["offset"] = found.pop("b")
        if library == "equinox" and "kernel" in values:
            found["weight"] = values["kernel"].T
        return found

    return {name: layer(values) for name, values in params.items()}
