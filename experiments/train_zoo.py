#!/usr/bin/env python
"""Trains models of other libraries as they ship, with JAX's own convolutions and with `jaxnorm.lowering` installed.

    python experiments/train_zoo.py
    python experiments/train_zoo.py --models "haiku MobileNetV1" "keras ConvNeXtTiny" --seconds 20
    python experiments/train_zoo.py --models --fit MobileNetV2

Random weights, and random parts of the two photographs that scikit-learn ships, of which the network tells which one it
sees. Both programs, of loss and gradients, are compiled in one process and run in turns. Networks of keras are also
trained by its own `model.fit` (`--fit`), first all epochs of the one side, then of the other, since both are compiled
by keras. Needs dm-haiku and flax; models of keras, equimo (equinox) and transformers (flax, in a version before 5) are
measured where these are installed. For a CPU.
"""

import argparse
import contextlib
import importlib
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from bench_method import ALLOCATOR, in_turns, load_average, machine, quartiles, ratio, temporary_bytes
from common import folder, positive_int, seconds
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from zoo_models import MODELS, SMALLEST, Network, keras_model, missing, photographs

from jaxnorm import lowering

matplotlib.use("Agg")
from matplotlib import pyplot

LEARNING_RATE = 1e-3

SIDES = ("original", "jaxnorm")
FITTED = ("MobileNetV2", "EfficientNetB0", "ConvNeXtTiny", "Xception", "ResNet50")
FIT_ROUNDS = 5


# --- one row ----------------------------------------------------------------------------------------------------------


def compiled(network: Network, batch: tuple[jax.Array, jax.Array], side: str) -> tuple[Any, dict[str, Any]]:
    """The program of loss and gradients, the seconds it took to make it, and what the lowering did."""
    with lowering.installed() if side == "jaxnorm" else contextlib.nullcontext():
        jax.clear_caches()
        wall, processor = time.perf_counter(), time.process_time()
        step = jax.jit(jax.value_and_grad(network.loss, has_aux=True))
        program = step.lower(network.parameters, *batch).compile()
        seconds = {"compile_s": time.perf_counter() - wall, "compile_processor_s": time.process_time() - processor}
        return program, {**seconds, "lowered": lowering.report() if side == "jaxnorm" else None}


def norm(tree: Any) -> float:
    """The Euclidean norm of all of a tree's entries."""
    return float(np.sqrt(sum(float(np.sum(np.square(leaf, dtype=np.float64))) for leaf in jax.tree.leaves(tree))))


def distance(have: Any, want: Any) -> float:
    """The norm of the difference over the norm."""
    return norm(jax.tree.map(lambda a, b: np.asarray(a, np.float64) - np.asarray(b), have, want)) / norm(want)


def nudged(tree: Any, towards: float) -> Any:
    """Every entry's next number."""
    return jax.tree.map(lambda a: jnp.asarray(np.nextafter(np.asarray(a), np.asarray(towards, a.dtype))), tree)


def sensitivity(program: Any, network: Network, batch: tuple[jax.Array, jax.Array], gradients: Any) -> float:
    """The largest difference that the last digit makes: of the images, upwards or downwards, or of the parameters."""
    images, labels = batch
    inputs = [(network.parameters, nudged(images, towards)) for towards in (np.inf, -np.inf)]
    inputs.append((nudged(network.parameters, np.inf), images))
    return max(distance(program(*changed, labels)[1], gradients) for changed in inputs)


def losses(program: Any, network: Network, batch: tuple[jax.Array, jax.Array], steps: int) -> list[float]:
    """The losses of a few steps of plain gradient descent."""
    parameters, found = network.parameters, []
    for _ in range(steps):
        (loss, _), gradients = program(parameters, *batch)
        parameters = jax.tree.map(lambda p, g: p - LEARNING_RATE * g, parameters, gradients)
        found.append(float(loss))
    return found


def measured(name: str, batch: tuple[jax.Array, jax.Array], seconds: float, steps: int) -> dict[str, Any]:
    """One model: times in turns, memory, compile time, and the gradients' difference beside the original's own."""
    make, of = MODELS[name]
    network = make(of, batch[0])
    made = {side: compiled(network, batch, side) for side in SIDES}
    programs = {side: program for side, (program, _) in made.items()}
    arguments = network.parameters, *batch
    gradients = {side: program(*arguments)[1] for side, program in programs.items()}
    samples = in_turns({side: lambda p=p: p(*arguments) for side, p in programs.items()}, seconds)
    return {
        "model": name,
        "size": batch[0].shape[1],
        "ms": {side: quartiles([s.ms for s in samples[side]]) for side in SIDES},
        "ratio": ratio(samples, "original"),
        "temporary_mb": {side: temporary_bytes(program) / 1e6 for side, program in programs.items()},
        **{key: {side: info[key] for side, (_, info) in made.items()} for key in ("compile_s", "compile_processor_s")},
        "lowered": made["jaxnorm"][1]["lowered"],
        "difference": distance(gradients["jaxnorm"], gradients["original"]),
        "own_difference": sensitivity(programs["original"], network, batch, gradients["original"]),
        "losses": {side: losses(program, network, batch, steps) for side, program in programs.items()},
        "load": load_average(),
    }


# --- keras's own training loop ----------------------------------------------------------------------------------------


def fitted(name: str, batch: tuple[jax.Array, jax.Array], seconds: float) -> dict[str, Any]:
    """One model of keras through `model.fit`: milliseconds for each step, of several epochs of each side."""
    sides = {}
    for side in SIDES:
        with lowering.installed() if side == "jaxnorm" else contextlib.nullcontext():
            jax.clear_caches()
            sides[side] = epochs(name, batch, seconds)
    ms = {side: quartiles(found["ms"]) for side, found in sides.items()}
    return {
        "model": f"keras {name} fit",
        "ms": ms,
        "ratio": ms["original"][1] / ms["jaxnorm"][1],
        "first_epoch_s": {side: found["first_epoch_s"] for side, found in sides.items()},
        "losses": {side: found["losses"] for side, found in sides.items()},
        "load": load_average(),
    }


def epochs(name: str, batch: tuple[jax.Array, jax.Array], seconds: float) -> dict[str, Any]:
    """Epochs of some steps that take so many seconds together, after two of one step of which the first compiles."""
    keras: Any = importlib.import_module("keras")
    images, labels = map(np.asarray, batch)
    model = keras_model(name, batch[0])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(LEARNING_RATE), loss)

    def epoch(steps: int) -> tuple[float, float]:
        data = np.tile(images, (steps, 1, 1, 1)), np.tile(labels, steps)
        start = time.perf_counter()
        history = model.fit(*data, batch_size=len(images), epochs=1, shuffle=False, verbose=0)
        return time.perf_counter() - start, history.history["loss"][0]

    first, one = epoch(1), epoch(1)
    steps = max(1, min(100, int(seconds / FIT_ROUNDS / one[0])))
    rounds = [epoch(steps) for _ in range(FIT_ROUNDS)]
    return {
        "first_epoch_s": first[0],
        "ms": [1e3 * taken / steps for taken, _ in rounds],
        "losses": [loss for _, loss in (first, one, *rounds)],
    }


# --- what is shown ----------------------------------------------------------------------------------------------------


def table(rows: Sequence[dict[str, Any]]) -> Table:
    """All rows: original and installed side by side."""
    shown = Table(title="One step: original / installed")
    for column in ("model", "ms", "times faster (quartiles)", "temporary MB", "compile s", "difference", "its own"):
        shown.add_column(column, justify="left" if column == "model" else "right")
    for row in rows:
        pair = {key: [row[key][side] for side in SIDES] for key in ("ms", "temporary_mb", "compile_s")}
        shown.add_row(
            row["model"],
            " / ".join(f"{ms[1]:.4g}" for ms in pair["ms"]),
            "{1:.2f} ({0:.2f} to {2:.2f})".format(*row["ratio"]),
            " / ".join(f"{mb:.1f}" for mb in pair["temporary_mb"]),
            " / ".join(f"{s:.1f}" for s in pair["compile_s"]),
            f"{row['difference']:.1e}",
            f"{row['own_difference']:.1e}",
        )
    return shown


def fit_table(rows: Sequence[dict[str, Any]]) -> Table:
    """All rows of `model.fit`."""
    shown = Table(title="One step of keras's model.fit: original / installed")
    for column in ("model", "ms", "times faster", "first epoch s"):
        shown.add_column(column, justify="left" if column == "model" else "right")
    for row in rows:
        ms, first = ([row[key][side] for side in SIDES] for key in ("ms", "first_epoch_s"))
        ms, first = " / ".join(f"{m[1]:.4g}" for m in ms), " / ".join(f"{s:.1f}" for s in first)
        shown.add_row(row["model"], ms, f"{row['ratio']:.2f}", first)
    return shown


def picture(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """How many times as fast each model's step is, on a logarithmic axis, with quartiles."""
    figure, axes = pyplot.subplots(figsize=(7, 0.8 + 0.35 * len(rows)), layout="constrained")
    medians = np.array([row["ratio"][1] for row in rows])
    spread = np.abs(np.array([row["ratio"] for row in rows])[:, [0, 2]].T - medians)
    axes.barh([row["model"] for row in rows], medians - 1, left=1, xerr=spread, color="#222222", ecolor="#8c8c8c")
    axes.set_xscale("log")
    ticks = [t for t in (0.5, 1, 2, 5, 10, 20, 50, 100) if t <= 1.2 * max(medians.max(), 1.7)]
    axes.set_xticks(ticks, [f"{t:g}" for t in ticks])
    axes.minorticks_off()
    axes.axvline(1, color="black", linewidth=1)
    axes.invert_yaxis()
    axes.set_xlabel("training step, times faster with jaxnorm.lowering installed (median, quartiles)")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """The whole run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--models", nargs="*", choices=MODELS, default=list(MODELS), metavar="MODEL", help="default: all"
    )
    parser.add_argument(
        "--fit",
        nargs="*",
        choices=FITTED,
        default=[],
        metavar="MODEL",
        help="of keras, through model.fit; default: none",
    )
    parser.add_argument("--batch", type=positive_int, default=8)
    parser.add_argument("--size", type=positive_int, default=64, help="of an image's sides")
    parser.add_argument("--seconds", type=seconds, default=5.0, help="of timing for each side of a model")
    parser.add_argument("--steps", type=positive_int, default=3, help="of gradient descent whose losses are recorded")
    parser.add_argument(
        "--output", type=folder, help="a folder for zoo.json and zoo.png, such as experiments/results/zoo"
    )
    options = parser.parse_args(arguments)
    console, rows, fits = Console(), [], []
    chosen = [name for name in options.models if not missing(name)]
    chosen_fits = [] if missing("keras") else options.fit
    for name in [name for name in options.models if name not in chosen]:
        console.print(f"{name}: its library is not installed")
    if len(chosen_fits) < len(options.fit):
        console.print("model.fit: keras is not installed")
    jax.jit(jnp.sum).lower(jnp.zeros(3)).compile()  # what the first compilation sets up
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("models", total=len(chosen) + len(chosen_fits))
        for name in [*chosen, *(f"fit {name}" for name in chosen_fits)]:
            progress.update(task, description=name)
            batch = photographs(options.batch, max(options.size, SMALLEST.get(name.split()[-1], 0)))
            if name in MODELS:
                rows.append(measured(name, batch, options.seconds, options.steps))
            else:
                fits.append(fitted(name.removeprefix("fit "), batch, options.seconds))
            progress.advance(task)
            if options.output:
                record(options, rows, fits)
    if rows:
        console.print(table(rows))
    if fits:
        console.print(fit_table(fits))
    return rows + fits


def record(options: argparse.Namespace, rows: list[dict[str, Any]], fits: list[dict[str, Any]]) -> None:
    """What was measured so far."""
    found = {"batch": options.batch, "size": options.size, "machine": machine(), "rows": rows, "fits": fits}
    (options.output / "zoo.json").write_text(json.dumps(found, indent=1) + "\n")
    if rows:
        picture(rows, options.output / "zoo.png")


if __name__ == "__main__":
    if any(os.environ.get(name) != value for name, value in ALLOCATOR.items()):  # glibc reads them as Python starts
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | ALLOCATOR)
    main()
