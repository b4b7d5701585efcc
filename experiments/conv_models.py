"""Four small convolutional networks, each written once for two sets of layers: flax's own, and jaxnorm's functions.

A network is a function of `layers` and images. `FlaxLayers` makes flax modules, `HandLayers` calls jaxnorm with the
parameters that flax made, found by the same names: both sides are the same network with the same parameters.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

import jaxnorm as jn

Network = Callable[[Any, jax.Array], jax.Array]


class FlaxLayers:
    """Layers as flax has them; to be used inside a compact module."""

    def conv(self, name: str, x: jax.Array, features: int, window: int = 3, strides: int = 1, groups: int = 1) -> Any:
        """Convolution without a bias."""
        sizes = (window, window), (strides, strides)
        return nn.Conv(features, *sizes, feature_group_count=groups, use_bias=False, name=name)(x)

    def batch_norm(self, name: str, x: jax.Array) -> Any:
        """Batch norm in training."""
        return nn.BatchNorm(use_running_average=False, momentum=0.9, name=name)(x)

    def layer_norm(self, name: str, x: jax.Array) -> Any:
        """Layer norm over the channels."""
        return nn.LayerNorm(epsilon=1e-5, name=name)(x)

    def dense(self, name: str, x: jax.Array, features: int) -> Any:
        """Affine layer over the channels."""
        return nn.Dense(features, name=name)(x)

    def relu(self, x: jax.Array) -> jax.Array:
        """Rectified linear unit."""
        return nn.relu(x)


class HandLayers:
    """The same layers by this library's functions."""

    def __init__(self, params: Any, stats: Any) -> None:
        """Takes the collections that flax made; `new_stats` collects the running statistics."""
        self.params, self.stats, self.new_stats = params, stats, dict[str, Any]()

    def conv(self, name: str, x: jax.Array, features: int, window: int = 3, strides: int = 1, groups: int = 1) -> Any:
        """Convolution without a bias."""
        return jn.conv(x, self.params[name]["kernel"], strides=strides, feature_group_count=groups)

    def batch_norm(self, name: str, x: jax.Array) -> Any:
        """Batch norm in training."""
        y, stats = jn.batch_norm(
            x, **self.params[name], stats=jn.BatchStats(**self.stats[name]), training=True, momentum=0.9
        )
        self.new_stats[name] = stats._asdict()
        return y

    def layer_norm(self, name: str, x: jax.Array) -> Any:
        """Layer norm over the channels."""
        return jn.layer_norm(x, **self.params[name])

    def dense(self, name: str, x: jax.Array, features: int) -> Any:
        """Affine layer over the channels."""
        return jn.affine(x, **self.params[name])

    def relu(self, x: jax.Array) -> jax.Array:
        """Rectified linear unit."""
        return jn.relu(x)


def mobilenet(layers: Any, x: jax.Array) -> jax.Array:
    """Inverted residuals with depthwise 3x3 convolutions (Sandler et al. 2018, https://arxiv.org/abs/1801.04381)."""
    x = layers.relu(layers.batch_norm("stem_norm", layers.conv("stem", x, 24, strides=2)))
    for i, (features, strides) in enumerate([(24, 1), (40, 2), (40, 1), (80, 2), (80, 1)]):
        wide = 6 * x.shape[-1]
        h = layers.relu(layers.batch_norm(f"norm{i}a", layers.conv(f"expand{i}", x, wide, 1)))
        h = layers.conv(f"depthwise{i}", h, wide, 3, strides, groups=wide)
        h = layers.relu(layers.batch_norm(f"norm{i}b", h))
        h = layers.batch_norm(f"norm{i}c", layers.conv(f"project{i}", h, features, 1))
        x = x + h if x.shape == h.shape else h
    return layers.dense("head", x.mean((1, 2)), 10)


def convnext(layers: Any, x: jax.Array) -> jax.Array:
    """Depthwise 7x7 convolutions and layer norm (Liu et al. 2022, https://arxiv.org/abs/2201.03545)."""
    x = layers.layer_norm("stem_norm", layers.conv("stem", x, 64, 2, 2))
    for stage, features in enumerate([64, 128]):
        if stage:
            x = layers.conv("down", layers.layer_norm("down_norm", x), features, 2, 2)
        for i in range(2):
            h = layers.conv(f"depthwise{stage}{i}", x, features, 7, groups=features)
            h = layers.dense(f"wide{stage}{i}", layers.layer_norm(f"norm{stage}{i}", h), 4 * features)
            x = x + layers.dense(f"narrow{stage}{i}", jax.nn.gelu(h), features)
    return layers.dense("head", x.mean((1, 2)), 10)


def resnext(layers: Any, x: jax.Array) -> jax.Array:
    """Bottlenecks with 32 groups (Xie et al. 2017, https://arxiv.org/abs/1611.05431)."""
    x = layers.relu(layers.batch_norm("stem_norm", layers.conv("stem", x, 64, strides=2)))
    for i, (features, strides) in enumerate([(128, 1), (128, 1), (256, 2)]):
        h = layers.relu(layers.batch_norm(f"norm{i}a", layers.conv(f"in{i}", x, features, 1)))
        h = layers.conv(f"grouped{i}", h, features, 3, strides, groups=32)
        h = layers.relu(layers.batch_norm(f"norm{i}b", h))
        h = layers.batch_norm(f"norm{i}c", layers.conv(f"out{i}", h, 2 * features, 1))
        if x.shape != h.shape:
            x = layers.batch_norm(f"norm{i}d", layers.conv(f"skip{i}", x, 2 * features, 1, strides))
        x = layers.relu(x + h)
    return layers.dense("head", x.mean((1, 2)), 10)


def resnet(layers: Any, x: jax.Array) -> jax.Array:
    """Dense 3x3 convolutions (He et al. 2016, https://arxiv.org/abs/1512.03385)."""
    x = layers.relu(layers.batch_norm("stem_norm", layers.conv("stem", x, 32)))
    for i, (features, strides) in enumerate([(32, 1), (64, 2), (128, 2)]):
        h = layers.relu(layers.batch_norm(f"norm{i}a", layers.conv(f"first{i}", x, features, 3, strides)))
        h = layers.batch_norm(f"norm{i}b", layers.conv(f"second{i}", h, features))
        if x.shape != h.shape:
            x = layers.batch_norm(f"norm{i}c", layers.conv(f"skip{i}", x, features, 1, strides))
        x = layers.relu(x + h)
    return layers.dense("head", x.mean((1, 2)), 10)


NETWORKS: dict[str, Network] = {"MobileNet": mobilenet, "ConvNeXt": convnext, "ResNeXt": resnext, "ResNet": resnet}


class FlaxNetwork(nn.Module):
    """A network of flax layers."""

    network: Network

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits."""
        return self.network(FlaxLayers(), x)


def training_steps(network: Network, images: jax.Array, labels: jax.Array) -> tuple[dict[str, Any], tuple[Any, ...]]:
    """Both sides' training step (loss, gradients, Adam), and the arguments that both take."""
    module, optimizer = FlaxNetwork(network), optax.adam(1e-3)
    variables = module.init(jax.random.key(0), images)
    params, stats = variables["params"], variables.get("batch_stats", {})

    def flax_loss(params: Any, stats: Any, images: jax.Array, labels: jax.Array) -> tuple[jax.Array, Any]:
        logits, new = module.apply({"params": params, "batch_stats": stats}, images, mutable=["batch_stats"])
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
        return loss, new.get("batch_stats", {})

    def hand_loss(params: Any, stats: Any, images: jax.Array, labels: jax.Array) -> tuple[jax.Array, Any]:
        layers = HandLayers(params, stats)
        losses = jn.softmax_cross_entropy_with_integer_labels(network(layers, images), labels)
        return jnp.mean(jnp.asarray(losses)), layers.new_stats

    def step(loss: Any, params: Any, stats: Any, state: Any, images: jax.Array, labels: jax.Array) -> tuple[Any, ...]:
        (value, stats), gradients = jax.value_and_grad(loss, has_aux=True)(params, stats, images, labels)
        updates, state = optimizer.update(gradients, state, params)
        return value, gradients, optax.apply_updates(params, updates), stats, state

    steps = {
        "flax": jax.jit(functools.partial(step, flax_loss)),
        "jaxnorm": jax.jit(functools.partial(step, hand_loss)),
    }
    return steps, (params, stats, optimizer.init(params), images, labels)
