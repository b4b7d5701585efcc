"""The rows of models of one example under vmap: the loss and the parameters' gradients as one jitted function.

So equinox's models are batched: `jax.vmap` over the examples, the parameters shared. Every side runs the same model, of
this library's functions or of their plain twins in `jaxnorm.reference`, which autodiff differentiates.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from bench_cases import TOLERANCES, Case, compiled, normal
from bench_method import Sides

import jaxnorm as jn

# Of the functions of a library, parameters, one example and its label.
Model = Callable[[Any, dict[str, jax.Array], jax.Array, jax.Array], jax.Array]

DEPTH, CLASSES, VOCABULARY = 3, 10, 1003


def mlp(of: Any, p: dict[str, jax.Array], x: jax.Array, label: jax.Array) -> jax.Array:
    """Dense layers and layer norms."""
    for i in range(DEPTH):
        x = of.layer_norm(of.affine_relu(x, p[f"w{i}"], p["b"]), p["scale"], p["bias"])
    return of.softmax_cross_entropy_with_integer_labels(of.affine(x, p["head"]), label)


def convnext(of: Any, p: dict[str, jax.Array], x: jax.Array, label: jax.Array) -> jax.Array:
    """Patches, and residual blocks of a depthwise convolution, a layer norm and two 1x1 ones."""
    y = of.conv(x[None], p["patches"], strides=4)
    for i in range(DEPTH):
        h = of.conv(y, p[f"depthwise{i}"], feature_group_count=y.shape[-1])
        h = of.affine_relu(of.layer_norm(h, p["scale"], p["bias"]), p[f"up{i}"])
        y = y + of.affine(h, p[f"down{i}"])
    return of.softmax_cross_entropy_with_integer_labels(of.affine(jnp.mean(y[0], (0, 1)), p["head"]), label)


def transformer(of: Any, p: dict[str, jax.Array], x: jax.Array, label: jax.Array) -> jax.Array:
    """Blocks of attention with one head and two dense layers, and the linear cross-entropy of each token."""
    for i in range(DEPTH):
        h = of.rms_norm(x, p["scale"])
        q, k, v = jnp.split(of.affine(h, p[f"qkv{i}"]), 3, -1)
        x = x + of.softmax(q @ k.T / np.sqrt(x.shape[-1]).astype(x.dtype)) @ v
        h = of.layer_norm(x, p["scale"], p["bias"])
        x = x + of.affine(of.affine_relu(h, p[f"up{i}"]), p[f"down{i}"])
    return jnp.mean(of.linear_softmax_cross_entropy(x, p["head"], label))


def layers(**shapes: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """The shapes of every block's parameters."""
    return {f"{name}{i}": shape for name, shape in shapes.items() for i in range(DEPTH)}


def affine_of(size: int) -> dict[str, tuple[int, ...]]:
    """A norm's."""
    return {"scale": (size,), "bias": (size,)}


# The model, its batch, an example's shape and how many labels it has of how many classes, and the parameters' shapes.
MODELS: dict[str, tuple[Model, int, tuple[int, ...], tuple[tuple[int, ...], int], dict[str, tuple[int, ...]]]] = {
    "MLP": (
        mlp, 256, (256,), ((), CLASSES),
        layers(w=(256, 256)) | {"b": (256,), "head": (256, CLASSES)} | affine_of(256),
    ),
    "ConvNeXt": (
        convnext, 16, (32, 32, 3), ((), CLASSES),
        {"patches": (4, 4, 3, 64), "head": (64, CLASSES)} | affine_of(64)
        | layers(depthwise=(7, 7, 1, 64), up=(64, 256), down=(256, 64)),
    ),
    "transformer": (
        transformer, 16, (64, 64), ((64,), VOCABULARY),
        layers(qkv=(64, 192), up=(64, 256), down=(256, 64)) | {"head": (64, VOCABULARY)} | affine_of(64),
    ),
}  # fmt: skip


def example_sides(name: str, batch: int, dtype: Any, rivals: Sequence[str]) -> Sides:
    """The model on every side."""
    model, _, shape, (labelled, classes), shapes = MODELS[name]
    parameters = {
        key: normal(size, i, dtype, 1 / np.sqrt(max(np.prod(size[:-1]), 1)))
        for i, (key, size) in enumerate(shapes.items())
    }
    x = normal((batch, *shape), 0, dtype)
    labels = jnp.asarray(np.random.default_rng(0).integers(0, classes, (batch, *labelled)), jnp.int32)

    def step(of: Any, parameters: Any, x: jax.Array, labels: jax.Array) -> Any:
        def loss(parameters: Any) -> jax.Array:
            return jnp.mean(jax.vmap(functools.partial(model, of), (None, 0, 0))(parameters, x, labels))

        return jax.value_and_grad(loss)(parameters)

    calls, programs = {}, {}
    for side, of in {"jaxnorm": jn, "plain": jn.reference}.items():
        if side in ("jaxnorm", *rivals):
            calls[side], programs[side] = compiled(functools.partial(step, of), parameters, x, labels)
    wide = jax.tree.map(lambda a: a.astype(jnp.float32), (parameters, x))
    expected = jax.jit(functools.partial(step, jn.reference))(*wide, labels)
    # What one layer rounds enters the next ones.
    return Sides(calls, expected, 4 * TOLERANCES[str(jnp.dtype(dtype))], programs)


def example_cases(runs: Sequence[tuple[str, str]]) -> Iterator[Case]:
    """Every model for each (size, dtype): small is a quarter of the medium batch, large four times it."""
    for size, dtype in runs:
        for name, (_, medium, *_) in MODELS.items():
            batch = int(medium * {"small": 0.25, "medium": 1, "large": 4}[size])
            labels = {"name": f"{name} under vmap", "size": size, "mode": "jitted", "dtype": dtype, "shape": (batch,)}
            yield Case(labels, functools.partial(example_sides, name, batch, jnp.dtype(dtype)))
