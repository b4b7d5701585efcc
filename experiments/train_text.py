#!/usr/bin/env python
"""Trains a small transformer to predict the next word of real English, with backward rules derived by hand.

    embedding + position -> layers of x += attention(norm(x)), x += affine(affine_relu(norm(x))) -> norm -> loss

The text is the language reference that every Python ships (`pydoc_data.topics`), split by position: the last 10% are
held out. Norms, dense layers, the attention's softmax and the loss are jaxnorm's. `--loss linear` makes the projection
to the vocabulary a part of the loss, whose logits exist a block of columns at a time; `--loss full` computes them whole
and then the same loss. The optimizer is optax's AdamW; a chunk of steps is one jitted `lax.scan`.

`--distill` trains a teacher of twice the width first, then the model by its divergence from the teacher as well as by
the words (Hinton, Vinyals and Dean 2015, https://arxiv.org/abs/1503.02531). `--entropy-bonus` rewards undecided
predictions (Pereyra et al. 2017, https://arxiv.org/abs/1701.06548). With either, the temporary memory of both losses is
printed, from their compiled programs.

    python experiments/train_text.py --loss full --plot curves.png
    python experiments/train_text.py --distill --entropy-bonus 0.01
"""

import argparse
import math
import re
import statistics
from collections import Counter
from collections.abc import Sequence
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from platform import python_version
from pydoc_data.topics import topics
from typing import Any, Literal, NamedTuple, cast, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
from common import amount, png_path, positive_int, seed, timed
from jax import lax
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

import jaxnorm as jn

Loss = Literal["linear", "full"]
Norm = Literal["rms", "layer"]
Dtype = Literal["float32", "bfloat16"]

UNKNOWN = "<unk>"
# A word, or a run of one punctuation mark: lines under headings are one token each.
TOKEN = re.compile(r"\w+|([^\w\s])\1*")
HELD_OUT = 0.1
EMBEDDING_STD = 0.05
LEARNING_RATE = 4e-3
WARMUP = 0.1
WEIGHT_DECAY = 0.1
CLIP_NORM = 1.0
CHUNK_STEPS = 25
EVALUATIONS = 10
IGNORED = -1
SAMPLE_WORDS = 60
TEMPERATURE = 0.8
TEACHER_WIDTH = 2  # times the student's
DISTILL_TEMPERATURE = 2.0
DISTILL_SHARE = 0.5  # of the divergence in the loss; the rest is the words'


class Config(NamedTuple):
    """What the command line chooses; hashable, so a static argument of the jitted functions."""

    loss: Loss = "linear"
    norm: Norm = "rms"
    vocab: int = 4000
    steps: int = 500
    batch_size: int = 16
    seq_len: int = 64
    width: int = 128
    layers: int = 2
    heads: int = 4
    block_size: int | None = 512
    seed: int = 0
    dtype: Dtype = "float32"
    distill: bool = False
    entropy_bonus: float = 0.0

    @property
    def teacher(self) -> "Config":
        """The larger model that `distill` learns from, trained by the words alone."""
        return self._replace(width=TEACHER_WIDTH * self.width, distill=False, entropy_bonus=0.0)


class Text(NamedTuple):
    """The vocabulary, most frequent word first behind `<unk>`, and both parts of the text as int32 indices into it."""

    words: tuple[str, ...]
    train: np.ndarray
    held_out: np.ndarray


# Parameters are a dict of layers, each the keyword arguments of its function; the blocks' names end in their number.
Layer = dict[str, Any]
Params = dict[str, Layer]


class State(NamedTuple):
    """What one training step hands to the next."""

    params: Params
    optimizer: optax.OptState


class Result(NamedTuple):
    """One run: losses (steps,), held-out perplexities after the steps of `evaluated`, and what it cost."""

    config: Config
    vocabulary: tuple[str, ...]
    losses: np.ndarray
    evaluated: list[int]
    perplexities: list[float]
    unigram_perplexity: float
    sample: list[str]
    compile_seconds: float
    tokens_per_second: float
    num_parameters: int
    temporary_bytes: dict[str, int | None]  # of the loss of the run, and of the other to compare where both are asked
    teacher_perplexity: float | None = None

    @property
    def perplexity(self) -> float:
        """The perplexity of the held-out text after the last step."""
        return self.perplexities[-1]


# --- data -----------------------------------------------------------------------------------------------------------


def load_text(config: Config) -> Text:
    """The text in sorted order of its topics, as words; the vocabulary comes from the training part alone."""
    tokens = [match.group() for match in TOKEN.finditer("\n".join(topics[name] for name in sorted(topics)))]
    num_train = len(tokens) - int(HELD_OUT * len(tokens))
    counts = Counter(tokens[:num_train])
    ranked = sorted(counts, key=lambda word: (-counts[word], word))
    words = (UNKNOWN, *ranked[: config.vocab - 1])
    index = {word: i for i, word in enumerate(words)}
    ids = np.asarray([index.get(token, 0) for token in tokens], np.int32)
    return Text(words, ids[:num_train], ids[num_train:])


def unigram_perplexity(text: Text) -> float:
    """The held-out perplexity of the words' own frequencies, with add-one smoothing."""
    counts = np.bincount(text.train, minlength=len(text.words)) + 1.0
    return math.exp(-np.mean(np.log(counts / counts.sum())[text.held_out[1:]]))


def batch_starts(config: Config, key: jax.Array, num_tokens: int) -> jax.Array:
    """Where each step's windows of `seq_len + 1` words begin: (steps, batch_size)."""
    shape = (config.steps, config.batch_size)
    return jax.random.randint(key, shape, 0, num_tokens - config.seq_len, dtype=jnp.int32)


def held_out_windows(config: Config, text: Text) -> tuple[jax.Array, jax.Array]:
    """Inputs and labels (batches, batch_size, seq_len) that predict each held-out word but the first once; the
    rest of the last batch has the label IGNORED.
    """
    shape = (-1, config.batch_size, config.seq_len)
    padding = -(len(text.held_out) - 1) % (config.batch_size * config.seq_len)
    inputs = np.pad(text.held_out[:-1], (0, padding))
    labels = np.pad(text.held_out[1:], (0, padding), constant_values=IGNORED)
    return jnp.asarray(inputs.reshape(shape)), jnp.asarray(labels.reshape(shape))


# --- the network ----------------------------------------------------------------------------------------------------


def init_params(config: Config, vocabulary: int, key: jax.Array) -> Params:
    """Float32 parameters. What adds to the residual stream begins smaller the more layers do."""
    width = config.width
    keys = iter(jax.random.split(key, 3 + 4 * config.layers))
    residual = (2 * config.layers) ** -0.5

    def normal(shape: tuple[int, ...], std: float) -> jax.Array:
        return jax.random.normal(next(keys), shape, jnp.float32) * jnp.float32(std)

    def dense(inputs: int, outputs: int, gain: float = 1.0) -> Layer:
        return {"kernel": normal((inputs, outputs), gain * inputs**-0.5), "bias": jnp.zeros(outputs, jnp.float32)}

    def norm() -> Layer:
        scale = {"scale": jnp.ones(width, jnp.float32)}
        return scale | ({"bias": jnp.zeros(width, jnp.float32)} if config.norm == "layer" else {})

    words, positions = (normal((rows, width), EMBEDDING_STD) for rows in (vocabulary, config.seq_len))
    params = {
        "embedding": {"words": words, "positions": positions},
        "norm": norm(),
        "output": {"bias": jnp.zeros(vocabulary, jnp.float32)},
    }
    for number in range(config.layers):
        params |= {
            f"attention_norm{number}": norm(),
            f"queries_keys_values{number}": dense(width, 3 * width),
            f"attention_output{number}": dense(width, width, residual),
            f"mlp_norm{number}": norm(),
            f"mlp_hidden{number}": dense(width, 4 * width, 2**0.5),
            f"mlp_output{number}": dense(4 * width, width, residual),
        }
    return params


def normalized(config: Config, x: jax.Array, params: Layer) -> jax.Array:
    """`x` (..., width) through the chosen norm."""
    return jn.rms_norm(x, **params) if config.norm == "rms" else jn.layer_norm(x, **params)


def attention(config: Config, x: jax.Array, inner: Layer, outer: Layer) -> jax.Array:
    """Causal self-attention of `x` (batch, length, width)."""
    batch, length, width = x.shape
    split = jn.affine(x, **inner).reshape(batch, length, 3, config.heads, width // config.heads)
    queries, keys, values = (split[:, :, i] for i in range(3))
    scale = jnp.asarray((width // config.heads) ** -0.5, x.dtype)
    scores = jnp.einsum("bqhd,bkhd->bhqk", queries * scale, keys)
    weights = jn.softmax(scores, where=jnp.tril(jnp.ones((length, length), bool)))
    mixed = jnp.einsum("bhqk,bkhd->bqhd", weights, values)
    return jn.affine(mixed.reshape(batch, length, width), **outer)


def hidden_states(config: Config, params: Params, words: jax.Array) -> jax.Array:
    """What the projection to the vocabulary receives: (batch, length, width) for `words` (batch, length)."""
    embedding = params["embedding"]
    x = (embedding["words"][words] + embedding["positions"][: words.shape[1]]).astype(config.dtype)
    for n in range(config.layers):
        y = normalized(config, x, params[f"attention_norm{n}"])
        x = x + attention(config, y, params[f"queries_keys_values{n}"], params[f"attention_output{n}"])
        y = normalized(config, x, params[f"mlp_norm{n}"])
        x = x + jn.affine(jn.affine_relu(y, **params[f"mlp_hidden{n}"]), **params[f"mlp_output{n}"])
    return normalized(config, x, params["norm"])


def projection(config: Config, params: Params) -> Layer:
    """The last layer, whose columns are the embeddings of the words: they learn from both ends."""
    # In the dtype of the activations, as in mixed-precision training; with float32 activations the cast does nothing.
    return {"kernel": params["embedding"]["words"].astype(config.dtype).T, "bias": params["output"]["bias"]}


class Last(NamedTuple):
    """What the last layer takes, of the model or of its teacher."""

    hidden: jax.Array  # (batch, length, width)
    layer: Layer  # the projection to the vocabulary

    @property
    def logits(self) -> jax.Array:
        """The logits whole, (batch, length, vocabulary)."""
        return jn.affine(self.hidden, **self.layer)


def last_of(config: Config, params: Params, inputs: jax.Array) -> Last:
    """What the network makes of `inputs` (batch, length) before its last layer."""
    return Last(hidden_states(config, params, inputs), projection(config, params))


def losses_and_entropies(config: Config, last: Last, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The loss of each word (batch, length), float32, 0 where the label is IGNORED, and the prediction's entropy."""
    if config.loss == "full":
        return jn.softmax_cross_entropy_with_integer_labels(
            last.logits, labels, ignore_index=IGNORED, return_entropy=True
        )
    kernel, bias = last.layer["kernel"], last.layer["bias"]
    return jn.linear_softmax_cross_entropy(
        last.hidden, kernel, labels, bias, ignore_index=IGNORED, block_size=config.block_size, return_entropy=True
    )


def word_losses(config: Config, last: Last, labels: jax.Array) -> jax.Array:
    """The losses alone."""
    if config.loss == "full":
        return jn.softmax_cross_entropy_with_integer_labels(last.logits, labels, ignore_index=IGNORED)
    kernel, bias = last.layer["kernel"], last.layer["bias"]
    return jn.linear_softmax_cross_entropy(
        last.hidden, kernel, labels, bias, ignore_index=IGNORED, block_size=config.block_size
    )


def divergences(config: Config, student: Last, teacher: Last) -> jax.Array:
    """How far the student's prediction of each word is from the teacher's, at DISTILL_TEMPERATURE: (batch, length)."""
    if config.loss == "full":
        log_q, log_p = (
            jn.log_softmax(last.logits.astype(jnp.float32) / jnp.float32(DISTILL_TEMPERATURE))
            for last in (student, teacher)
        )
        return jnp.sum(jnp.exp(log_p) * (log_p - log_q), -1)
    return jn.linear_softmax_kl_divergence(
        student.hidden,
        student.layer["kernel"],
        teacher.hidden,
        teacher.layer["kernel"],
        student.layer["bias"],
        teacher.layer["bias"],
        temperature=DISTILL_TEMPERATURE,
        block_size=config.block_size,
    )


def objective(config: Config, last: Last, labels: jax.Array, teacher: Last | None) -> jax.Array:
    """What is minimized, of each word (batch, length)."""
    if config.entropy_bonus:
        losses, entropies = losses_and_entropies(config, last, labels)
        losses = losses - jnp.float32(config.entropy_bonus) * entropies
    else:
        losses = word_losses(config, last, labels)
    if teacher is None:
        return losses
    # The square of the temperature keeps the size of the divergence's gradient.
    share, squared = jnp.float32(DISTILL_SHARE), jnp.float32(DISTILL_TEMPERATURE**2)
    return share * squared * divergences(config, last, teacher) + (1 - share) * losses


def mean_loss(config: Config, params: Params, windows: jax.Array, teacher: Params | None = None) -> jax.Array:
    """The mean of the objective over a minibatch of windows (batch, seq_len + 1)."""
    inputs, labels = windows[:, :-1], windows[:, 1:]
    of_teacher = None if teacher is None else last_of(config.teacher, lax.stop_gradient(teacher), inputs)
    return jnp.mean(objective(config, last_of(config, params, inputs), labels, of_teacher))


@partial(jax.jit, static_argnums=0)
def perplexity(config: Config, params: Params, inputs: jax.Array, labels: jax.Array) -> jax.Array:
    """The exponential of the mean loss of the batches (batches, batch_size, seq_len), one at a time."""
    losses = lax.map(lambda b: jnp.sum(word_losses(config, last_of(config, params, b[0]), b[1])), (inputs, labels))
    return jnp.exp(jnp.sum(losses) / jnp.sum(labels != IGNORED, dtype=jnp.float32))


@partial(jax.jit, static_argnums=0)
def sample(config: Config, params: Params, prompt: jax.Array, key: jax.Array) -> jax.Array:
    """SAMPLE_WORDS words that continue `prompt` (seq_len,), each drawn given the seq_len words before it."""

    def draw(window: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        last = hidden_states(config, params, window[None])[0, -1]
        logits = jn.affine(last[None], **projection(config, params))[0].astype(jnp.float32)
        logits = logits.at[0].set(-jnp.inf)  # never <unk>
        word = jax.random.categorical(key, logits / jnp.float32(TEMPERATURE)).astype(jnp.int32)
        return jnp.append(window[1:], word), word

    return lax.scan(draw, prompt, jax.random.split(key, SAMPLE_WORDS))[1]


# --- training -------------------------------------------------------------------------------------------------------


def make_optimizer(config: Config) -> optax.GradientTransformation:
    """AdamW with clipped gradients; the learning rate rises linearly, then falls along a cosine over the whole run."""
    warmup = max(int(WARMUP * config.steps), 1)
    decay_steps = max(config.steps, warmup + 1)
    schedule = optax.warmup_cosine_decay_schedule(LEARNING_RATE / warmup, LEARNING_RATE, warmup, decay_steps)
    adamw = optax.adamw(schedule, b2=0.98, weight_decay=WEIGHT_DECAY)
    return optax.chain(optax.clip_by_global_norm(CLIP_NORM), adamw)


def init_state(config: Config, vocabulary: int, key: jax.Array) -> State:
    """The state before the first step."""
    params = init_params(config, vocabulary, key)
    return State(params, make_optimizer(config).init(params))


@partial(jax.jit, static_argnums=0)
def train_steps(
    config: Config, state: State, text: jax.Array, starts: jax.Array, teacher: Params | None = None
) -> tuple[State, jax.Array]:
    """A scan over minibatches of windows into `text`, given by their starts (steps, batch_size), as one compiled
    program. Returns the new state and the losses (steps,).
    """
    optimizer = make_optimizer(config)
    within = jnp.arange(config.seq_len + 1, dtype=jnp.int32)

    def step(state: State, starts: jax.Array) -> tuple[State, jax.Array]:
        windows = text[starts[:, None] + within[None]]
        loss, gradients = jax.value_and_grad(partial(mean_loss, config))(state.params, windows, teacher)
        updates, optimizer_state = optimizer.update(gradients, state.optimizer, state.params)
        return State(cast(Params, optax.apply_updates(state.params, updates)), optimizer_state), loss

    return lax.scan(step, state, starts)


def start_of(config: Config, text: Text) -> tuple[State, jax.Array, jax.Array]:
    """All that a run begins with: its state, its words for training, and the starts of all its windows."""
    init_key, batch_key = jax.random.split(jax.random.key(config.seed))
    state = init_state(config, len(text.words), init_key)
    return state, jnp.asarray(text.train), batch_starts(config, batch_key, len(text.train))


def step_losses(config: Config, steps: int) -> np.ndarray:
    """The losses (steps,) of the run's first steps, those of a whole run: for comparing `full` and `linear`."""
    state, words, starts = start_of(config, load_text(config))
    return np.asarray(train_steps(config, state, words, starts[:steps])[1])


def temporary_bytes(config: Config, params: Params, teacher: Params | None = None) -> int | None:
    """What the compiled loss and gradient of one minibatch need at most beside arguments and results; None where the
    backend does not tell.
    """
    windows = jax.ShapeDtypeStruct((config.batch_size, config.seq_len + 1), jnp.int32)
    compiled = jax.jit(jax.value_and_grad(partial(mean_loss, config))).lower(params, windows, teacher).compile()
    analysis = compiled.memory_analysis()
    return None if analysis is None else int(analysis.temp_size_in_bytes)


def train(config: Config, console: Console) -> Result:
    """The whole run, with a progress bar on `console`, and that of its teacher first with `config.distill`."""
    if not config.distill:
        return train_one(config, console)[0]
    taught, teacher = train_one(config.teacher, console)
    return train_one(config, console, teacher)[0]._replace(teacher_perplexity=taught.perplexity)


def train_one(config: Config, console: Console, teacher: Params | None = None) -> tuple[Result, Params]:
    """One run, and the parameters that it ends with."""
    text = load_text(config)
    held_out = held_out_windows(config, text)
    state, words, starts = start_of(config, text)
    num_parameters = sum(p.size for p in jax.tree.leaves(state.params))
    compared: tuple[Loss, ...] = get_args(Loss) if config.distill or config.entropy_bonus else (config.loss,)
    memory = {loss: temporary_bytes(config._replace(loss=loss), state.params, teacher) for loss in compared}
    # Chunks of one length are one program, compiled apart from its first run, so that no chunk's time holds that.
    length = max(n for n in range(1, CHUNK_STEPS + 1) if config.steps % n == 0)
    lowered = partial(train_steps.lower, config, state, words, starts[:length], teacher)
    chunk, compile_seconds = timed(lambda: lowered().compile())

    losses, evaluated, perplexities, chunk_seconds = [], [], [], []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(f"training, width {config.width}", total=config.steps)
        for done in range(length, config.steps + 1, length):
            (state, chunk_losses), seconds = timed(partial(chunk, state, words, starts[done - length : done], teacher))
            losses.append(np.asarray(chunk_losses))
            chunk_seconds.append(seconds)
            if done * EVALUATIONS // config.steps > (done - length) * EVALUATIONS // config.steps:
                evaluated.append(done)
                perplexities.append(float(perplexity(config, state.params, *held_out)))
            description = f"loss {losses[-1].mean():.4f}"
            description += f", held-out perplexity {perplexities[-1]:.1f}" if perplexities else ""
            progress.update(task, advance=length, description=description)

    prompt, key = jnp.asarray(text.held_out[: config.seq_len]), jax.random.key(config.seed)
    result = Result(
        config=config,
        vocabulary=text.words,
        losses=np.concatenate(losses),
        evaluated=evaluated,
        perplexities=perplexities,
        unigram_perplexity=unigram_perplexity(text),
        sample=[text.words[i] for i in np.asarray(sample(config, state.params, prompt, key))],
        compile_seconds=compile_seconds,
        tokens_per_second=length * config.batch_size * config.seq_len / statistics.median(chunk_seconds),
        num_parameters=num_parameters,
        temporary_bytes=memory,
    )
    return result, state.params


# --- reports --------------------------------------------------------------------------------------------------------


def jaxnorm_version() -> str:
    """Of the installed package; a checkout on the path alone has none."""
    try:
        return version("jaxnorm")
    except PackageNotFoundError:
        return "(not installed)"


def summary(result: Result) -> Table:
    """The table at the end of a run."""
    config = result.config
    device = jax.devices()[0]
    memory = {
        f"temporary memory, {loss} loss and gradient": "unknown" if size is None else f"{size / 1e6:.1f} MB"
        for loss, size in result.temporary_bytes.items()
    }
    teacher = result.teacher_perplexity
    rows = {
        "held-out perplexity": f"{result.perplexity:.1f}",
        "the unigram model's": f"{result.unigram_perplexity:.1f}",
        **({} if teacher is None else {"the teacher's": f"{teacher:.1f}"}),
        "loss, last 20 steps": f"{result.losses[-20:].mean():.4f}",
        "tokens per second (median)": f"{result.tokens_per_second:,.0f}",
        **memory,
        "compile time": f"{result.compile_seconds:.1f} s",
        "parameters": f"{result.num_parameters:,}",
        "vocabulary": f"{len(result.vocabulary):,} words",
        "steps x batch x length": f"{config.steps} x {config.batch_size} x {config.seq_len}",
        "versions": f"jaxnorm {jaxnorm_version()}, jax {jax.__version__}, optax {optax.__version__}, "
        f"Python {python_version()}",
        "backend": f"{jax.default_backend()} ({device.device_kind})",
    }
    title = f"{config.norm} norm, {config.loss} loss, {config.dtype}, seed {config.seed}"
    title += f", entropy bonus {config.entropy_bonus:g}" if config.entropy_bonus else ""
    title += ", distilled" if config.distill else ""
    table = Table(title=title, show_header=False)
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def as_prose(words: Sequence[str]) -> str:
    """The words joined by spaces, without those that English leaves out around its punctuation."""
    prose = re.sub(r" ([.,;:!?)\]}'’])", r"\1", " ".join(words))
    return re.sub(r"([(\[{'’]) ", r"\1", prose)


def plot(result: Result, path: Path) -> None:
    """Writes the curves of loss and perplexity as a PNG picture."""
    import matplotlib

    matplotlib.use("Agg")  # no display needed
    import matplotlib.pyplot as plt

    config = result.config
    steps = np.arange(1, len(result.losses) + 1)
    window = max(min(20, len(steps) // 5), 1)
    smooth = np.convolve(result.losses, np.full(window, 1 / window), mode="valid")
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), dpi=150, layout="constrained")
    left.plot(steps, result.losses, color="tab:blue", alpha=0.3, linewidth=0.8, label="each minibatch")
    left.plot(steps[window - 1 :], smooth, color="tab:blue", label=f"mean of the last {window}")
    left.set(title="Training loss", xlabel="step", ylabel="nats per word")
    right.plot(result.evaluated, result.perplexities, color="tab:orange", marker="o", markersize=3, label="transformer")
    right.axhline(result.unigram_perplexity, color="tab:gray", linestyle="--", label="unigram model")
    right.set(title=f"Held-out perplexity (at the end: {result.perplexity:.1f})", xlabel="step", ylabel="perplexity")
    right.set_yscale("log")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend()
    figure.suptitle(f"Python's language reference: {config.norm} norm, {config.loss} loss, {config.dtype}")
    figure.savefig(path, format="png")
    plt.close(figure)


# --- command line ---------------------------------------------------------------------------------------------------


def make_parser() -> argparse.ArgumentParser:
    """The command line, whose defaults are Config's."""
    default = Config()
    parser = argparse.ArgumentParser(
        description="Train a small transformer on the language reference that every Python ships.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    loss_help = "logits in blocks inside the loss, or whole before it"
    add("--loss", choices=get_args(Loss), default=default.loss, help=loss_help)
    add("--norm", choices=get_args(Norm), default=default.norm, help="normalization before attention and MLP")
    add("--vocab", type=positive_int, default=default.vocab, help="at most this many words, <unk> among them")
    add("--steps", type=positive_int, default=default.steps, help="minibatches to train on")
    add("--batch-size", type=positive_int, default=default.batch_size, help="windows in a minibatch")
    add("--seq-len", type=positive_int, default=default.seq_len, help="words in a window")
    add("--width", type=positive_int, default=default.width, help="features of the residual stream")
    add("--layers", type=positive_int, default=default.layers, help="pairs of attention and MLP")
    add("--heads", type=positive_int, default=default.heads, help="attention heads; they divide the width")
    add("--block-size", type=positive_int, default=default.block_size, help="columns of logits at a time, linear loss")
    add("--seed", type=seed, default=default.seed, help="of the weights, the minibatches and the sample")
    add("--dtype", choices=get_args(Dtype), default=default.dtype, help="of the activations; parameters are float32")
    add(
        "--distill", action="store_true", help=f"train a teacher of {TEACHER_WIDTH} times the width, then learn from it"
    )
    add(
        "--entropy-bonus",
        type=amount,
        default=default.entropy_bonus,
        help="times the predictions' entropy, off the loss",
    )
    add("--plot", type=png_path, metavar="FILE.png", help="write the curves of loss and perplexity to this picture")
    return parser


def main(argv: Sequence[str] | None = None) -> Result:
    """Runs the command line `argv` (default: the program's own) and returns what was measured."""
    parser = make_parser()
    options = vars(parser.parse_args(argv))
    plot_path: Path | None = options.pop("plot")
    config = Config(**options)
    if config.width % config.heads:
        parser.error(f"argument --heads: must divide the width {config.width}, got {config.heads}")
    if config.vocab < 2:
        parser.error(f"argument --vocab: {UNKNOWN} alone is no vocabulary, got {config.vocab}")
    if config.seq_len >= (num_held_out := len(load_text(config).held_out)):
        parser.error(f"argument --seq-len: there are {num_held_out} held-out words, got {config.seq_len}")
    console = Console()
    result = train(config, console)
    console.print(summary(result))
    console.print("[bold]sample:[/bold]", end=" ")
    console.print(as_prose(result.sample), markup=False, highlight=False)
    if plot_path is not None:
        plot(result, plot_path)
        console.print(f"curves written to {plot_path}")
    return result


if __name__ == "__main__":
    main()
