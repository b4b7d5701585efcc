"""The models of `train_zoo.py`, as their libraries ship them, with random weights, and the images that they see."""

import functools
import importlib.util
import os
from collections.abc import Callable
from importlib.metadata import version
from typing import Any, NamedTuple

os.environ.setdefault("KERAS_BACKEND", "jax")

import jax
import jax.numpy as jnp
import numpy as np
import optax
from bench_models import TRAINED, LinenNetwork
from bench_rivals import haiku
from sklearn.datasets import load_sample_images

CLASSES = 10

Loss = Callable[[Any, jax.Array, jax.Array], tuple[jax.Array, Any]]  # of parameters, images, labels; state as aux


class Network(NamedTuple):
    """Where a model starts, and its mean loss."""

    parameters: Any
    loss: Loss


def mean_loss(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Plain cross-entropy, so that nothing but the convolutions differs."""
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))


def of_haiku(name: str, images: jax.Array, **options: Any) -> Network:
    """One of `haiku.nets`."""

    def logits(x: jax.Array) -> jax.Array:
        return getattr(haiku.nets, name)(num_classes=CLASSES, **options)(x, is_training=True)

    network = haiku.transform_with_state(logits)
    parameters, state = jax.jit(network.init)(jax.random.key(0), images)

    def loss(parameters: Any, images: jax.Array, labels: jax.Array) -> tuple[jax.Array, Any]:
        logits, new_state = network.apply(parameters, state, None, images)
        return mean_loss(logits, labels), new_state

    return Network(parameters, loss)


def of_linen(name: str, images: jax.Array) -> Network:
    """A network of `bench_models` in flax.linen's own layers."""
    module = LinenNetwork(TRAINED[name].network, jnp.float32)
    labels = jnp.zeros(images.shape[0], jnp.int32)
    variables = jax.jit(module.init)(jax.random.key(0), images, labels)
    stats = variables.get("batch_stats", {})

    def loss(parameters: Any, images: jax.Array, labels: jax.Array) -> tuple[jax.Array, Any]:
        variables = {"params": parameters, "batch_stats": stats}
        losses, new_stats = module.apply(variables, images, labels, mutable=["batch_stats"])
        return jnp.mean(losses), new_stats

    return Network(variables["params"], loss)


def keras_model(name: str, images: jax.Array) -> Any:
    """One of `keras.applications`."""
    keras: Any = importlib.import_module("keras")
    keras.utils.set_random_seed(0)
    return getattr(keras.applications, name)(
        weights=None, input_shape=images.shape[1:], classes=CLASSES, classifier_activation=None
    )


def of_keras(name: str, images: jax.Array) -> Network:
    """One of `keras.applications` through a step of its own."""
    model = keras_model(name, images)
    state = [v.value for v in model.non_trainable_variables]

    def loss(parameters: Any, images: jax.Array, labels: jax.Array) -> tuple[jax.Array, Any]:
        logits, new_state = model.stateless_call(parameters, state, images, training=True)
        return mean_loss(logits, labels), new_state

    return Network([v.value for v in model.trainable_variables], loss)


def of_equimo(name: str, images: jax.Array) -> Network:
    """One of `equimo.models`, of equinox."""
    equinox, models = importlib.import_module("equinox"), importlib.import_module("equimo.models")
    model = getattr(models, name)(num_classes=CLASSES, key=jax.random.key(0))
    parameters, static = equinox.partition(model, equinox.is_inexact_array)
    keys = jax.random.split(jax.random.key(1), images.shape[0])

    def loss(parameters: Any, images: jax.Array, labels: jax.Array) -> tuple[jax.Array, Any]:
        of_one = equinox.combine(parameters, static)
        logits = jax.vmap(lambda x, key: of_one(x, key=key))(jnp.moveaxis(images, -1, 1), keys)
        return mean_loss(logits, labels), None

    return Network(parameters, loss)


def of_transformers(name: str, images: jax.Array, **options: Any) -> Network:
    """An image classifier of transformers in flax, from a configuration."""
    transformers: Any = importlib.import_module("transformers")
    config = getattr(transformers, f"{name}Config")(num_labels=CLASSES, **options)
    shape = (1, *images.shape[1:])
    model = getattr(transformers, f"Flax{name}ForImageClassification")(config, input_shape=shape, seed=0)
    stats = model.params["batch_stats"]

    def loss(parameters: Any, images: jax.Array, labels: jax.Array) -> tuple[jax.Array, Any]:
        variables = {"params": parameters, "batch_stats": stats}
        outputs, new_stats = model(jnp.moveaxis(images, -1, 1), params=variables, train=True)
        return mean_loss(outputs.logits, labels), new_stats

    return Network(model.params["params"], loss)


def of_bert(_: str, images: jax.Array) -> Network:
    """BERT, which convolves nothing, on the bytes of the middle row of each image."""
    transformers: Any = importlib.import_module("transformers")
    sizes = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 512}
    config = transformers.BertConfig(vocab_size=256, num_labels=CLASSES, **sizes)
    model = transformers.FlaxBertForSequenceClassification(config, seed=0)

    def loss(parameters: Any, images: jax.Array, labels: jax.Array) -> tuple[jax.Array, Any]:
        tokens = jnp.round((images[:, images.shape[1] // 2, :, 0] + 1) * 127.5).astype(jnp.int32)
        outputs = model(tokens, params=parameters, train=False)
        return mean_loss(outputs.logits, labels), None

    return Network(model.params, loss)


# The sizes of RegNetY-400MF and of ResNet-18.
REGNET: dict[str, Any] = {
    "hidden_sizes": [48, 104, 208, 440], "depths": [1, 3, 6, 6], "groups_width": 8, "layer_type": "y"
}  # fmt: skip
RESNET: dict[str, Any] = {"hidden_sizes": [64, 128, 256, 512], "depths": [2, 2, 2, 2], "layer_type": "basic"}

MODELS: dict[str, tuple[Callable[..., Network], str]] = {
    "haiku MobileNetV1": (of_haiku, "MobileNetV1"),
    "haiku ResNet18": (of_haiku, "ResNet18"),
    "linen MobileNet": (of_linen, "MobileNet"),
    "linen ConvNeXt": (of_linen, "ConvNeXt"),
    "linen ResNeXt": (of_linen, "ResNeXt"),
    "linen ResNet": (of_linen, "ResNet"),
    "keras MobileNetV2": (of_keras, "MobileNetV2"),
    "keras EfficientNetB0": (of_keras, "EfficientNetB0"),
    "keras ConvNeXtTiny": (of_keras, "ConvNeXtTiny"),
    "keras Xception": (of_keras, "Xception"),
    "keras ResNet50": (of_keras, "ResNet50"),
    "equimo ConvNeXtTiny": (of_equimo, "convnext_t"),
    "transformers RegNetY": (functools.partial(of_transformers, **REGNET), "RegNet"),
    "transformers ResNet18": (functools.partial(of_transformers, **RESNET), "ResNet"),
    "transformers BERT": (of_bert, "Bert"),
}
SMALLEST = {"Xception": 71}  # the least size of an image that a model takes


def missing(name: str) -> bool:
    """Whether the model's library is not installed, or has no such model."""
    library = name.split()[0]
    if library == "linen" or library == "haiku":
        return False
    if importlib.util.find_spec(library) is None:
        return True
    return library == "transformers" and int(version("transformers").split(".")[0]) > 4  # the last with flax's


def photographs(batch: int, size: int) -> tuple[jax.Array, jax.Array]:
    """Random parts of scikit-learn's two photographs, and which one each is of."""
    rng, pictures = np.random.default_rng(0), load_sample_images().images
    labels = rng.integers(0, len(pictures), batch)
    parts = []
    for label in labels:
        height, width, _ = pictures[label].shape
        top, left = rng.integers(0, height - size), rng.integers(0, width - size)
        parts.append(pictures[label][top : top + size, left : left + size] / 127.5 - 1)
    return jnp.asarray(np.stack(parts), jnp.float32), jnp.asarray(labels, jnp.int32)
