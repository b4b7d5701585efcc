"""Measures the linear cross-entropy against the composed form: `softmax_cross_entropy(hidden @ kernel)`.

Both sides are this library's, jitted, forward and backward (the loss's mean and the gradients of hidden and kernel), in
one process. Their results are compared first; then they run in turns (A B A B ...), and the medians with the quartiles
are printed, the ratio as the median of the ratios pair by pair. Memory is the compiled temporary memory, which is exact
and does not depend on the machine's load.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

import jaxnorm as jn


def composed(hidden: jax.Array, kernel: jax.Array, labels: jax.Array) -> jax.Array:
    """The mean loss from logits that exist whole."""
    return jnp.mean(jnp.asarray(jn.softmax_cross_entropy_with_integer_labels(jn.affine(hidden, kernel), labels)))


def in_blocks(hidden: jax.Array, kernel: jax.Array, labels: jax.Array, block_size: int | None) -> jax.Array:
    """The mean loss from logits in blocks."""
    return jnp.mean(jnp.asarray(jn.linear_softmax_cross_entropy(hidden, kernel, labels, block_size=block_size)))


def compile_step(loss: Callable[..., jax.Array], arguments: Sequence[jax.Array]) -> Any:
    """The loss and its gradients, compiled."""
    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1))).lower(*arguments).compile()


def seconds(step: Callable[..., Any], arguments: Sequence[jax.Array]) -> float:
    """One timed call."""
    start = time.perf_counter()
    jax.block_until_ready(step(*arguments))
    return time.perf_counter() - start


def measure(
    tokens: int, width: int, vocabulary: int, block_size: int | None, dtype: Any, repeats: int
) -> dict[str, Any]:
    """One row: both sides compared, then run in turns."""
    rng = np.random.default_rng(0)
    hidden = jnp.asarray(rng.normal(size=(tokens, width)), dtype)
    kernel = jnp.asarray(rng.normal(0, width**-0.5, size=(width, vocabulary)), dtype)
    arguments = hidden, kernel, jnp.asarray(rng.integers(0, vocabulary, tokens), jnp.int32)
    steps = {
        "composed": compile_step(composed, arguments),
        "blocks": compile_step(lambda h, k, y: in_blocks(h, k, y, block_size), arguments),
    }
    results = [jax.tree.map(np.asarray, step(*arguments)) for step in steps.values()]
    for ours, theirs in zip(jax.tree.leaves(results[1]), jax.tree.leaves(results[0]), strict=True):
        scale = np.abs(theirs.astype(np.float64)).max()
        np.testing.assert_allclose(ours.astype(np.float64), theirs.astype(np.float64), rtol=2e-2, atol=1e-2 * scale)
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in track(range(repeats), description=f"tokens {tokens}, H {width}, V {vocabulary}", transient=True):
        for name, step in steps.items():
            times[name].append(seconds(step, arguments))
    ratios = [b / a for a, b in zip(times["composed"], times["blocks"], strict=True)]
    row: dict[str, Any] = {"tokens": tokens, "width": width, "vocabulary": vocabulary, "block_size": block_size}
    for name, step in steps.items():
        row[f"{name}_ms"] = [1e3 * q for q in statistics.quantiles(times[name], n=4)]
        row[f"{name}_temporary_mb"] = step.memory_analysis().temp_size_in_bytes / 1e6
    return row | {"time_ratio": statistics.quantiles(ratios, n=4)}


def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Parses the command line, measures, prints the table; returns its rows."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--width", type=int, default=64, help="H, the hidden size")
    parser.add_argument("--vocabulary", type=int, nargs="+", default=[32003, 128256], help="V, one row each")
    parser.add_argument("--block-size", type=int, nargs="+", default=[2048, 0], help="0 lets the library choose")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows here")
    options = parser.parse_args(argv)
    rows = [
        measure(options.tokens, options.width, v, size or None, jnp.dtype(options.dtype), options.repeats)
        for v in options.vocabulary
        for size in options.block_size
    ]
    table = Table(title="Linear cross-entropy, forward and backward: median (quartiles)")
    for column in ("tokens", "H", "V", "block", "composed ms", "blocks ms", "time ratio", "composed MB", "blocks MB"):
        table.add_column(column, justify="right")
    for row in rows:
        low, median, high = row["time_ratio"]
        table.add_row(
            *(str(row[key]) for key in ("tokens", "width", "vocabulary")),
            str(row["block_size"] or "chosen"),
            *("{1:.0f} ({0:.0f}-{2:.0f})".format(*row[f"{name}_ms"]) for name in ("composed", "blocks")),
            f"{median:.2f} ({low:.2f}-{high:.2f})",
            *(f"{row[f'{name}_temporary_mb']:.0f}" for name in ("composed", "blocks")),
        )
    console = Console(width=120)
    console.print(table)
    machine = f"{jax.devices()[0].device_kind}, {platform.machine()}, jax {jax.__version__}, {options.dtype}"
    console.print(machine)
    if options.json:
        options.json.write_text(json.dumps({"machine": machine, "rows": rows}, indent=2) + "\n")
    return rows


if __name__ == "__main__":
    main()
