"""Small networks, each written once for the layers of any library, and their training steps.

A network is a function of `layers` (see `bench_layers`), inputs and labels, to one loss per example or token. A step is
loss, gradients and AdamW; it returns the loss, the norm of each parameter's gradient, and the new state. All sides
start from the same parameters, whose shapes and names are flax's.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from bench_layers import EquinoxLayers, HaikuLayers, HandLayers, LinenLayers, adapted
from bench_rivals import haiku, linen

Network = Callable[[Any, jax.Array, jax.Array], jax.Array]
CLASSES, WORDS = 10, 8000


def mobilenet(layers: Any, x: jax.Array, labels: jax.Array) -> jax.Array:
    """Inverted residuals with depthwise 3x3 convolutions (Sandler et al. 2018, https://arxiv.org/abs/1801.04381)."""
    x = layers.relu(layers.batch_norm("stem_norm", layers.conv("stem", x, 24, strides=2)))
    for i, (features, strides) in enumerate([(24, 1), (40, 2), (40, 1), (80, 2), (80, 1)]):
        wide = 6 * x.shape[-1]
        h = layers.relu(layers.batch_norm(f"norm{i}a", layers.conv(f"expand{i}", x, wide, 1)))
        h = layers.conv(f"depthwise{i}", h, wide, 3, strides, groups=wide)
        h = layers.relu(layers.batch_norm(f"norm{i}b", h))
        h = layers.batch_norm(f"norm{i}c", layers.conv(f"project{i}", h, features, 1))
        x = x + h if x.shape == h.shape else h
    return layers.loss("head", x.mean((1, 2)), labels, CLASSES)


def convnext(layers: Any, x: jax.Array, labels: jax.Array) -> jax.Array:
    """Depthwise 7x7 convolutions and layer norm (Liu et al. 2022, https://arxiv.org/abs/2201.03545)."""
    x = layers.layer_norm("stem_norm", layers.conv("stem", x, 64, 2, 2))
    for stage, features in enumerate([64, 128]):
        if stage:
            x = layers.conv("down", layers.layer_norm("down_norm", x), features, 2, 2)
        for i in range(2):
            h = layers.conv(f"depthwise{stage}{i}", x, features, 7, groups=features)
            h = layers.dense(f"wide{stage}{i}", layers.layer_norm(f"norm{stage}{i}", h), 4 * features)
            x = x + layers.dense(f"narrow{stage}{i}", jax.nn.gelu(h), features)
    return layers.loss("head", x.mean((1, 2)), labels, CLASSES)


def resnext(layers: Any, x: jax.Array, labels: jax.Array) -> jax.Array:
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
    return layers.loss("head", x.mean((1, 2)), labels, CLASSES)


def resnet(layers: Any, x: jax.Array, labels: jax.Array) -> jax.Array:
    """Dense 3x3 convolutions (He et al. 2016, https://arxiv.org/abs/1512.03385)."""
    x = layers.relu(layers.batch_norm("stem_norm", layers.conv("stem", x, 32)))
    for i, (features, strides) in enumerate([(32, 1), (64, 2), (128, 2)]):
        h = layers.relu(layers.batch_norm(f"norm{i}a", layers.conv(f"first{i}", x, features, 3, strides)))
        h = layers.batch_norm(f"norm{i}b", layers.conv(f"second{i}", h, features))
        if x.shape != h.shape:
            x = layers.batch_norm(f"norm{i}c", layers.conv(f"skip{i}", x, features, 1, strides))
        x = layers.relu(x + h)
    return layers.loss("head", x.mean((1, 2)), labels, CLASSES)


def mlp(layers: Any, x: jax.Array, labels: jax.Array) -> jax.Array:
    """Twelve dense layers, each with layer norm and ReLU."""
    for i in range(12):
        x = layers.relu(layers.layer_norm(f"norm{i}", layers.dense(f"dense{i}", x, x.shape[-1])))
    return layers.loss("head", x, labels, CLASSES)


def cnn(layers: Any, x: jax.Array, labels: jax.Array) -> jax.Array:
    """Twelve 3x3 convolutions, each with batch norm and ReLU."""
    for i in range(12):
        x = layers.conv(f"conv{i}", x, 32 * 2 ** (i // 4), strides=2 if i in (4, 8) else 1)
        x = layers.relu(layers.batch_norm(f"norm{i}", x))
    return layers.loss("head", x.mean((1, 2)), labels, CLASSES)


def transformer(layers: Any, tokens: jax.Array, labels: jax.Array, depth: int = 12, width: int = 128) -> jax.Array:
    """Causal attention and MLPs, layer norm first (Radford et al. 2019), and a large vocabulary."""
    x = layers.embed("embedding", tokens, WORDS, width)
    for i in range(depth):
        h = layers.dense(f"qkv{i}", layers.layer_norm(f"attention_norm{i}", x), 3 * width)
        q, k, v = jnp.split(h.reshape(*h.shape[:-1], 12, width // 4), 3, axis=-2)
        x = x + layers.dense(f"attention{i}", layers.attention(q, k, v).reshape(x.shape), width)
        h = layers.relu(layers.dense(f"wide{i}", layers.layer_norm(f"norm{i}", x), 4 * width))
        x = x + layers.dense(f"narrow{i}", h, width)
    return layers.loss("head", layers.layer_norm("last_norm", x), labels, WORDS)


class Model(NamedTuple):
    """A network and its medium batch: images (of 32x32), rows of 512 features, or windows of 128 tokens."""

    network: Network
    batch: int
    inputs: str = "images"
    equinox: bool = False  # whether it is written for equinox's layers too


TRAINED = {
    "MobileNet": Model(mobilenet, 16),
    "ConvNeXt": Model(convnext, 16),
    "ResNeXt": Model(resnext, 16),
    "ResNet": Model(resnet, 16),
    "transformer": Model(functools.partial(transformer, depth=4), 8, "tokens"),
}
MEMORY = {
    "12-layer MLP": Model(mlp, 1024, "features", equinox=True),
    "12-layer transformer": Model(transformer, 8, "tokens", equinox=True),
    "12-layer CNN": Model(cnn, 32),
}
SHAPES = {"images": (32, 32, 3), "features": (512,), "tokens": (128,)}


def batch_of(model: Model, size: str) -> tuple[jax.Array, jax.Array]:
    """Random inputs and labels; small is a quarter of the medium batch, large four times it."""
    rng = np.random.default_rng(0)
    shape = (max(1, int(model.batch * {"small": 0.25, "medium": 1, "large": 4}[size])), *SHAPES[model.inputs])
    if model.inputs == "tokens":
        inputs, labels = (jnp.asarray(rng.integers(0, WORDS, shape), jnp.int32) for _ in range(2))
        return inputs, labels
    images = jnp.asarray(rng.standard_normal(shape, np.float32))
    return images, jnp.asarray(rng.integers(0, CLASSES, shape[:1]), jnp.int32)


class LinenNetwork(linen.Module if linen else object):  # type: ignore[misc]
    """A network of flax layers."""

    network: Network
    dtype: Any

    @(linen.compact if linen else lambda call: call)
    def __call__(self, x: jax.Array, labels: jax.Array) -> jax.Array:
        """Losses."""
        return self.network(LinenLayers(self.dtype), x, labels)


class Side(NamedTuple):
    """A library's mean loss, of (params, stats, inputs, labels) to (loss, new stats), and where it starts."""

    loss: Callable[..., tuple[jax.Array, Any]]
    params: Any
    stats: Any


def started(variables: Any) -> Any:
    """Parameters of the given shapes (flax's names say which): drawn here, since flax's initialization takes long."""
    rng = np.random.default_rng(1)

    def start(path: Any, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        name = path[-1].key
        if name in ("kernel", "embedding"):
            scale = 0.05 if name == "embedding" else (2 * leaf.shape[-1] / leaf.size) ** 0.5
            return jnp.asarray(scale * rng.standard_normal(leaf.shape, np.float32))
        return jnp.full(leaf.shape, float(name in ("scale", "var")))

    return jax.tree_util.tree_map_with_path(start, variables)


def sides(model: Model, dtype: Any, inputs: jax.Array, labels: jax.Array, libraries: Sequence[str]) -> dict[str, Side]:
    """The model in jaxnorm's functions and in each library's layers, with the same parameters."""
    network = model.network
    x = inputs if model.inputs == "tokens" else inputs.astype(dtype)
    module = LinenNetwork(network, dtype)
    variables = started(jax.eval_shape(module.init, jax.random.key(0), x[:1], labels[:1]))
    params, stats = variables["params"], variables.get("batch_stats", {})

    def linen_loss(params: Any, stats: Any, x: jax.Array, labels: jax.Array) -> tuple[jax.Array, Any]:
        losses, new = module.apply({"params": params, "batch_stats": stats}, x, labels, mutable=["batch_stats"])
        return losses.mean(), new.get("batch_stats", {})

    def hand_loss(params: Any, stats: Any, x: jax.Array, labels: jax.Array) -> tuple[jax.Array, Any]:
        layers = HandLayers(dtype, params, stats)
        return jnp.mean(network(layers, x, labels)), layers.new_stats

    found = {"jaxnorm": Side(hand_loss, params, stats)}
    if "linen" in libraries:
        found["linen"] = Side(linen_loss, params, stats)
    if "haiku" in libraries:
        transformed = haiku.transform_with_state(lambda x, labels: network(HaikuLayers(dtype), x, labels).mean())
        made, state = jax.eval_shape(transformed.init, jax.random.key(0), x[:1], labels[:1])
        theirs = jax.tree.map(lambda have, want: have.reshape(want.shape), adapted("haiku", params), made)

        def haiku_loss(params: Any, state: Any, x: jax.Array, labels: jax.Array) -> tuple[jax.Array, Any]:
            params = jax.tree.map(lambda p: p.astype(dtype), params)
            return transformed.apply(params, state, None, x, labels)

        found["haiku"] = Side(haiku_loss, theirs, jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), state))
    if "equinox" in libraries and model.equinox:

        def equinox_loss(params: Any, stats: Any, x: jax.Array, labels: jax.Array) -> tuple[jax.Array, Any]:
            return network(EquinoxLayers(dtype, params), x, labels).mean(), stats

        found["equinox"] = Side(equinox_loss, adapted("equinox", params), {})
    return found


def training_step(side: Side, inputs: jax.Array, labels: jax.Array, dtype: Any) -> tuple[Callable[..., Any], tuple]:
    """The step, and the arguments of its first call."""
    optimizer = optax.adamw(1e-3)

    def step(params: Any, stats: Any, state: Any, inputs: jax.Array, labels: jax.Array) -> tuple[Any, ...]:
        x = inputs.astype(dtype) if jnp.issubdtype(inputs.dtype, jnp.floating) else inputs
        (loss, stats), gradients = jax.value_and_grad(side.loss, has_aux=True)(params, stats, x, labels)
        updates, state = optimizer.update(gradients, state, params)
        # Sorted, since libraries name, and so order, their parameters differently.
        norms = jnp.sort(jnp.stack([jnp.linalg.norm(leaf.ravel()) for leaf in jax.tree.leaves(gradients)]))
        return (loss, norms), optax.apply_updates(params, updates), stats, state

    return step, (side.params, side.stats, optimizer.init(side.params), inputs, labels)
