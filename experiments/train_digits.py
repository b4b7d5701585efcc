#!/usr/bin/env python
"""Trains a small convolutional network on real handwritten digits, with backward rules derived by hand.

    conv 3x3 -> norm -> relu -> conv 3x3, stride 2 -> norm -> relu -> affine_relu -> affine -> loss

The data are scikit-learn's bundled digits: 1,797 scanned 8x8 images, 80% for training and 20% for the test. Every layer
and loss is jaxnorm's (`--rules hand`) or its plain twin, which JAX differentiates (`--rules autodiff`); the
optimizer is optax's AdamW. A whole epoch is one jitted `lax.scan` over shuffled minibatches.

    python experiments/train_digits.py --norm group --loss svm --plot curves.png
"""

import argparse
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, NamedTuple, cast, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
from common import png_path, positive_int, seed, timed
from jax import lax
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from sklearn.datasets import load_digits

import jaxnorm
import jaxnorm.reference

Norm = Literal["batch", "layer", "group", "instance", "rms", "none"]
Loss = Literal["softmax", "svm"]
Rules = Literal["hand", "autodiff"]
Dtype = Literal["float32", "bfloat16"]

NUM_CLASSES = 10
CHANNELS = (32, 64)
HIDDEN = 128
NUM_GROUPS = 8
LEARNING_RATE = 1.5e-3
WEIGHT_DECAY = 1e-2
# A step is 1/22 of an epoch here: a momentum of 0.99 would still remember the first epochs at the end.
RUNNING_MOMENTUM = 0.9
NORMS_WITH_BIAS = ("batch", "layer", "group", "instance")


class Config(NamedTuple):
    """What a run is; hashable, so a static argument of the jitted functions."""

    norm: Norm = "batch"
    loss: Loss = "softmax"
    rules: Rules = "hand"
    epochs: int = 20
    batch_size: int = 64
    seed: int = 0
    dtype: Dtype = "float32"
    axis_name: str | None = None  # not the command line's: the mapped axis over which a minibatch is split


class Data(NamedTuple):
    """Images (N, 8, 8, 1) in the dtype of the activations, labels (N,) int32."""

    images: jax.Array
    labels: jax.Array


# Parameters are a dict of layers, each the keyword arguments of its function; statistics a dict of BatchStats.
Params = dict[str, dict[str, jax.Array]]
Stats = dict[str, Any]


class State(NamedTuple):
    """What one training step hands to the next."""

    params: Params
    stats: Stats
    optimizer: optax.OptState


class Result(NamedTuple):
    """One run: losses (epochs, steps per epoch), accuracies after each epoch, and what it cost."""

    config: Config
    losses: np.ndarray
    train_accuracies: list[float]
    test_accuracies: list[float]
    compile_seconds: float
    epoch_seconds: list[float]
    num_parameters: int

    @property
    def test_accuracy(self) -> float:
        """The accuracy on the test images after the last epoch."""
        return self.test_accuracies[-1]


# --- data -----------------------------------------------------------------------------------------------------------


def load_data(config: Config) -> tuple[Data, Data]:
    """The training and the test images: an 80/20 split by the seed, standardized by the training part's statistics."""
    digits = cast(Any, load_digits())  # by its type it might be a tuple
    images = (digits.images / 16.0).astype(np.float32)[..., None]  # scanned as counts from 0 to 16
    labels = digits.target.astype(np.int32)
    order = np.random.default_rng(config.seed).permutation(len(labels))
    train, test = np.split(order, [len(labels) * 4 // 5])
    images = (images - images[train].mean()) / images[train].std()

    def data(part: np.ndarray) -> Data:
        return Data(jnp.asarray(images[part], config.dtype), jnp.asarray(labels[part]))

    return data(train), data(test)


def shuffled_batches(key: jax.Array, num_examples: int, batch_size: int) -> jax.Array:
    """One epoch's minibatches as indices (steps, batch_size); the remainder is dropped, another one in each epoch."""
    steps = num_examples // batch_size
    return jax.random.permutation(key, num_examples)[: steps * batch_size].reshape(steps, batch_size)


# --- the network ----------------------------------------------------------------------------------------------------


def rules_of(config: Config) -> ModuleType:
    """The module whose functions the network calls; the two have the same names and signatures."""
    return jaxnorm if config.rules == "hand" else jaxnorm.reference


def he_normal(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Normal weights of variance 2 / fan-in (He et al., 2015), the fan-in being every axis but the last."""
    fan_in = float(np.prod(shape[:-1]))
    return jax.random.normal(key, shape, jnp.float32) * jnp.float32((2.0 / fan_in) ** 0.5)


def init_params(config: Config, key: jax.Array) -> Params:
    """Float32 parameters. A convolution has its own bias only where the norm behind it has none."""
    first, second = CHANNELS
    norm_has_bias = config.norm in NORMS_WITH_BIAS
    keys = jax.random.split(key, 4)

    def weights(key: jax.Array, *shape: int, bias: bool = True) -> dict[str, jax.Array]:
        kernel = {"kernel": he_normal(key, shape)}
        return kernel | ({"bias": jnp.zeros(shape[-1], jnp.float32)} if bias else {})

    def norm(channels: int) -> dict[str, jax.Array]:
        scale = {} if config.norm == "none" else {"scale": jnp.ones(channels, jnp.float32)}
        return scale | ({"bias": jnp.zeros(channels, jnp.float32)} if norm_has_bias else {})

    return {
        "conv1": weights(keys[0], 3, 3, 1, first, bias=not norm_has_bias),
        "norm1": norm(first),
        "conv2": weights(keys[1], 3, 3, first, second, bias=not norm_has_bias),
        "norm2": norm(second),
        "hidden": weights(keys[2], 4 * 4 * second, HIDDEN),
        "output": weights(keys[3], HIDDEN, NUM_CLASSES),
    }


def init_stats(config: Config) -> Stats:
    """Running statistics of the two batch norms; empty for the norms that need none."""
    if config.norm != "batch":
        return {}
    first, second = CHANNELS
    ops = rules_of(config)
    return {"norm1": ops.init_batch_stats(first), "norm2": ops.init_batch_stats(second)}


def normalized(
    config: Config, x: jax.Array, params: dict[str, jax.Array], stats: Any, training: bool
) -> tuple[jax.Array, Any]:
    """`x` (N, H, W, C) through the chosen norm, and the running statistics, which only batch norm changes."""
    ops = rules_of(config)
    match config.norm:
        case "batch":
            return ops.batch_norm(
                x, **params, stats=stats, training=training, momentum=RUNNING_MOMENTUM, axis_name=config.axis_name
            )
        case "layer":
            return ops.layer_norm(x, **params, reduction_axes=-1), stats
        case "group":
            return ops.group_norm(x, **params, num_groups=NUM_GROUPS), stats
        case "instance":
            return ops.instance_norm(x, **params), stats
        case "rms":
            return ops.rms_norm(x, **params, reduction_axes=-1), stats
        case "none":
            return x, stats


def predict(config: Config, params: Params, stats: Stats, x: jax.Array, training: bool) -> tuple[jax.Array, Stats]:
    """Logits (N, 10) in the dtype of the images, and the new running statistics."""
    ops = rules_of(config)
    new_stats = dict(stats)
    for number, strides in ((1, 1), (2, 2)):
        name = f"norm{number}"
        x = ops.conv(x, **params[f"conv{number}"], strides=strides)
        x, new = normalized(config, x, params[name], stats.get(name), training)
        new_stats |= {name: new} if name in stats else {}
        x = ops.relu(x)
    x = ops.affine_relu(x, **params["hidden"], num_feature_axes=3)
    return ops.affine(x, **params["output"]), new_stats


def mean_loss(config: Config, params: Params, stats: Stats, batch: Data) -> tuple[jax.Array, Stats]:
    """The mean loss of a minibatch in training, and the new running statistics."""
    ops = rules_of(config)
    logits, stats = predict(config, params, stats, batch.images, training=True)
    if config.loss == "softmax":
        losses = ops.softmax_cross_entropy_with_integer_labels(logits, batch.labels)
    else:
        losses = ops.multiclass_svm_loss(logits, batch.labels)
    loss = jnp.mean(losses)
    return loss if config.axis_name is None else lax.pmean(loss, config.axis_name), stats


@partial(jax.jit, static_argnums=0)
def accuracy(config: Config, params: Params, stats: Stats, data: Data) -> jax.Array:
    """The share of the images whose largest logit is the right class; batch norm uses its running statistics."""
    logits, _ = predict(config, params, stats, data.images, training=False)
    return jnp.mean(jnp.argmax(logits, axis=-1) == data.labels, dtype=jnp.float32)


# --- training -------------------------------------------------------------------------------------------------------


def make_optimizer(config: Config, steps_per_epoch: int) -> optax.GradientTransformation:
    """AdamW whose learning rate falls to zero along a cosine over the whole run."""
    schedule = optax.cosine_decay_schedule(LEARNING_RATE, config.epochs * steps_per_epoch)
    return optax.adamw(schedule, weight_decay=WEIGHT_DECAY)


def init_state(config: Config, key: jax.Array, steps_per_epoch: int) -> State:
    """The state before the first step."""
    params = init_params(config, key)
    return State(params, init_stats(config), make_optimizer(config, steps_per_epoch).init(params))


def train_steps(
    config: Config, steps_per_epoch: int, state: State, data: Data, batches: jax.Array
) -> tuple[State, jax.Array]:
    """A scan over minibatches, given as indices (steps, batch_size). Returns the new state and the losses (steps,)."""
    optimizer = make_optimizer(config, steps_per_epoch)

    def step(state: State, indices: jax.Array) -> tuple[State, jax.Array]:
        batch = Data(data.images[indices], data.labels[indices])
        loss_and_stats = jax.value_and_grad(partial(mean_loss, config), has_aux=True)
        (loss, stats), gradients = loss_and_stats(state.params, state.stats, batch)
        updates, optimizer_state = optimizer.update(gradients, state.optimizer, state.params)
        params = cast(Params, optax.apply_updates(state.params, updates))
        return State(params, stats, optimizer_state), loss

    return lax.scan(step, state, batches)


# `train_steps`, or what does the same on several devices.
Steps = Callable[[Config, int, State, Data, jax.Array], tuple[State, jax.Array]]


@partial(jax.jit, static_argnums=(0, 4))
def train_epoch(
    config: Config, state: State, data: Data, key: jax.Array, steps: Steps = train_steps
) -> tuple[State, jax.Array]:
    """One epoch over freshly shuffled minibatches, as one compiled program."""
    batches = shuffled_batches(key, len(data.labels), config.batch_size)
    return steps(config, len(batches), state, data, batches)


def first_steps(config: Config, count: int) -> tuple[int, State, Data, jax.Array]:
    """What `train_steps` takes after `config` for exactly the first steps of a whole run."""
    data, _ = load_data(config)
    steps_per_epoch = len(data.labels) // config.batch_size
    init_key, shuffle_key = jax.random.split(jax.random.key(config.seed))
    state = init_state(config, init_key, steps_per_epoch)
    epochs = range(-(-count // steps_per_epoch))
    batches = jnp.concatenate(
        [shuffled_batches(jax.random.fold_in(shuffle_key, e), len(data.labels), config.batch_size) for e in epochs]
    )
    return steps_per_epoch, state, data, batches[:count]


def step_losses(config: Config, count: int) -> np.ndarray:
    """The losses (count,) of the run's first steps: for comparing rules and devices, step by step."""
    return np.asarray(jax.jit(train_steps, static_argnums=(0, 1))(config, *first_steps(config, count))[1])


def train(
    config: Config, console: Console, steps: Steps = train_steps, sharding: jax.sharding.Sharding | None = None
) -> Result:
    """The whole run, with a progress bar on `console`; `sharding` says where everything lies, if not on one device."""
    train_data, test_data = load_data(config)
    init_key, shuffle_key = jax.random.split(jax.random.key(config.seed))
    state = init_state(config, init_key, len(train_data.labels) // config.batch_size)
    num_parameters = sum(p.size for p in jax.tree.leaves(state.params))
    state, train_data, test_data = jax.device_put((state, train_data, test_data), sharding)
    # Compiled apart from the first run, so that no epoch's time holds the compiler's.
    lowered = partial(train_epoch.lower, config, state, train_data, shuffle_key, steps)
    epoch, compile_seconds = timed(lambda: lowered().compile())

    losses, train_accuracies, test_accuracies, epoch_seconds = [], [], [], []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("training", total=config.epochs)
        for number in range(config.epochs):
            key = jax.random.fold_in(shuffle_key, number)
            (state, epoch_losses), seconds = timed(partial(epoch, state, train_data, key))
            losses.append(np.asarray(epoch_losses))
            epoch_seconds.append(seconds)
            train_accuracies.append(float(accuracy(config, state.params, state.stats, train_data)))
            test_accuracies.append(float(accuracy(config, state.params, state.stats, test_data)))
            description = f"loss {losses[-1].mean():.4f}, test accuracy {test_accuracies[-1]:.4f}"
            progress.update(task, advance=1, description=description)
    return Result(
        config=config,
        losses=np.stack(losses),
        train_accuracies=train_accuracies,
        test_accuracies=test_accuracies,
        compile_seconds=compile_seconds,
        epoch_seconds=epoch_seconds,
        num_parameters=num_parameters,
    )


# --- reports --------------------------------------------------------------------------------------------------------


def summary(result: Result) -> Table:
    """The table at the end of a run."""
    config = result.config
    device = jax.devices()[0]
    rows = {
        "test accuracy": f"{result.test_accuracy:.4f}",
        "train accuracy": f"{result.train_accuracies[-1]:.4f}",
        "loss, last epoch": f"{result.losses[-1].mean():.4f}",
        "time per epoch (median)": f"{statistics.median(result.epoch_seconds) * 1e3:.0f} ms",
        "compile time": f"{result.compile_seconds:.1f} s",
        "parameters": f"{result.num_parameters:,}",
        "epochs x steps": f"{result.losses.shape[0]} x {result.losses.shape[1]}",
        "versions": f"jax {jax.__version__}, optax {optax.__version__}",
        "backend": f"{jax.default_backend()} ({device.device_kind})",
    }
    title = f"{config.norm} norm, {config.loss} loss, {config.rules} rules, {config.dtype}, seed {config.seed}"
    table = Table(title=title, show_header=False)
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def plot(result: Result, path: Path) -> None:
    """Writes the curves of loss and accuracy as a PNG picture."""
    import matplotlib

    matplotlib.use("Agg")  # no display needed
    import matplotlib.pyplot as plt
    from matplotlib.ticker import MaxNLocator

    config = result.config
    num_epochs, steps = result.losses.shape
    step_position = np.arange(1, num_epochs * steps + 1) / steps
    epochs = np.arange(1, num_epochs + 1)
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), dpi=150, layout="constrained")
    left.plot(step_position, result.losses.ravel(), color="tab:blue", alpha=0.3, linewidth=0.8, label="each minibatch")
    left.plot(epochs, result.losses.mean(axis=1), color="tab:blue", marker="o", markersize=3, label="mean of the epoch")
    left.set(title="Training loss", xlabel="epoch", ylabel=f"{config.loss} loss")
    # Near zero the scale is linear, because a minibatch's SVM loss reaches zero itself.
    left.set_yscale("symlog", linthresh=1e-3)
    left.set_ylim(bottom=0)
    right.plot(epochs, result.train_accuracies, color="tab:gray", linestyle="--", label="training images")
    right.plot(epochs, result.test_accuracies, color="tab:orange", marker="o", markersize=3, label="test images")
    right.set(title=f"Accuracy (test, at the end: {result.test_accuracy:.4f})", xlabel="epoch", ylabel="accuracy")
    for axes in (left, right):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.legend()
    figure.suptitle(f"Handwritten digits: {config.norm} norm, {config.loss} loss, {config.rules} rules, {config.dtype}")
    figure.savefig(path, format="png")
    plt.close(figure)


# --- command line ---------------------------------------------------------------------------------------------------


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """The options of every way to run this network."""
    default = Config()
    add = parser.add_argument
    add("--epochs", type=positive_int, default=default.epochs, help="passes over the training images")
    add("--batch-size", type=positive_int, default=default.batch_size, help="images in a minibatch")
    add("--seed", type=seed, default=default.seed, help="of the split, the weights and the order of the images")


def check_batch_size(parser: argparse.ArgumentParser, config: Config) -> None:
    """Ends the program, with its reason, if there are not enough images for one minibatch."""
    num_train = len(load_data(config)[0].labels)
    if config.batch_size > num_train:
        parser.error(f"argument --batch-size: there are {num_train} training images, got {config.batch_size}")


def make_parser() -> argparse.ArgumentParser:
    """The command line, whose defaults are Config's."""
    default = Config()
    parser = argparse.ArgumentParser(
        description="Train a small convolutional network on scikit-learn's handwritten digits.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--norm", choices=get_args(Norm), default=default.norm, help="normalization after each convolution")
    add("--loss", choices=get_args(Loss), default=default.loss, help="cross-entropy or multiclass SVM loss")
    rules_help = "backward rules derived by hand, or JAX's differentiation of the plain twin"
    add("--rules", choices=get_args(Rules), default=default.rules, help=rules_help)
    add_run_options(parser)
    dtype_help = "of the images and activations; parameters are float32"
    add("--dtype", choices=get_args(Dtype), default=default.dtype, help=dtype_help)
    plot_help = "write the curves of loss and accuracy to this picture"
    add("--plot", type=png_path, metavar="FILE.png", default=argparse.SUPPRESS, help=plot_help)
    return parser


def main(argv: Sequence[str] | None = None) -> Result:
    """Runs the command line `argv` (default: the program's own) and returns what was measured."""
    parser = make_parser()
    options = vars(parser.parse_args(argv))
    plot_path: Path | None = options.pop("plot", None)
    config = Config(**options)
    check_batch_size(parser, config)
    console = Console()
    result = train(config, console)
    console.print(summary(result))
    if plot_path is not None:
        plot(result, plot_path)
        console.print(f"curves written to {plot_path}")
    return result


if __name__ == "__main__":
    main()
