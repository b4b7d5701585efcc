"""Measures convolutions against `jax.lax` and PyTorch, and training steps of four networks against flax's layers.

Rows: forward, input gradient (dX) and kernel gradient (dW) of one convolution, each jitted alone. Loops: the three
together in `lax.scan` over several kernels, and under `vmap` over inputs and kernels, against the same written out.
Training: loss, gradients and an Adam step, the same network and parameters on both sides.

All sides run in one process, in random turns, each turn 2 ms to warm up (idle threads of another side may still spin)
and two timed calls. Results are compared before anything is timed. Times are medians, ratios the medians of the ratios
turn by turn; temporary memory is the compiled program's. glibc's allocator is told to keep what it has (else the fresh
pages of large outputs drown the rest), for every side alike.
"""

import argparse
import functools
import importlib.util
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from common import png_path
from jax import lax
from jax.flatten_util import ravel_pytree
from rich.console import Console
from rich.progress import track
from rich.table import Table

import jaxnorm as jn
from jaxnorm import reference

torch: Any = importlib.import_module("torch") if importlib.util.find_spec("torch") else None

ALLOCATOR = {
    "MALLOC_MMAP_THRESHOLD_": "8000000000",
    "MALLOC_TRIM_THRESHOLD_": "16000000000",
    "MALLOC_TOP_PAD_": "500000000",
    "MALLOC_ARENA_MAX": "1",
}
PARTS = ("forward", "dX", "dW")

# name, kind, shapes of x and kernel, options; "transposed" rows are `conv_transpose`
SPECIAL, PLAIN = "grouped, depthwise, patches", "dense, 1x1, 3-D, transposed"
Row = tuple[str, str, tuple[int, ...], tuple[int, ...], dict[str, Any]]
ROWS: list[Row] = [
    ("3x3 C64", PLAIN, (32, 32, 32, 64), (3, 3, 64, 64), {}),
    ("5x5 C32-48", PLAIN, (8, 28, 28, 32), (5, 5, 32, 48), {}),
    ("3x3 stride 2", PLAIN, (16, 32, 32, 64), (3, 3, 64, 128), {"strides": 2}),
    ("3x3 dilation 2", PLAIN, (8, 32, 32, 48), (3, 3, 48, 48), {"kernel_dilation": 2}),
    ("7x7 stride 2 C3", PLAIN, (8, 64, 64, 3), (7, 7, 3, 32), {"strides": 2}),
    ("1x1 C64-128", PLAIN, (32, 32, 32, 64), (1, 1, 64, 128), {}),
    ("1x1 stride 2", PLAIN, (32, 32, 32, 64), (1, 1, 64, 128), {"strides": 2}),
    ("1-D k5 C64", PLAIN, (8, 512, 64), (5, 64, 64), {}),
    ("3-D 3x3x3 C32", PLAIN, (2, 8, 16, 16, 32), (3, 3, 3, 32, 32), {}),
    ("3-D stride 2", PLAIN, (2, 8, 16, 16, 32), (3, 3, 3, 32, 32), {"strides": 2}),
    ("transposed 4x4 stride 2", PLAIN, (8, 16, 16, 32), (4, 4, 32, 32), {"strides": 2}),
    ("transposed 3-D stride 2", PLAIN, (2, 4, 8, 8, 32), (3, 3, 3, 32, 16), {"strides": 2}),
    ("3x3 4 groups C64", SPECIAL, (16, 32, 32, 64), (3, 3, 16, 64), {"feature_group_count": 4}),
    ("3x3 32 groups C128", SPECIAL, (16, 16, 16, 128), (3, 3, 4, 128), {"feature_group_count": 32}),
    ("3x3 8 groups stride 2", SPECIAL, (16, 32, 32, 64), (3, 3, 8, 64), {"feature_group_count": 8, "strides": 2}),
    ("depthwise 3x3 C64", SPECIAL, (32, 32, 32, 64), (3, 3, 1, 64), {"feature_group_count": 64}),
    ("depthwise 3x3 stride 2", SPECIAL, (32, 32, 32, 64), (3, 3, 1, 64), {"feature_group_count": 64, "strides": 2}),
    ("depthwise 3x3 C240 14x14", SPECIAL, (16, 14, 14, 240), (3, 3, 1, 240), {"feature_group_count": 240}),
    ("depthwise 7x7 C96", SPECIAL, (8, 28, 28, 96), (7, 7, 1, 96), {"feature_group_count": 96}),
    (
        "depthwise 5x5 dilation 2, multiplier 2",
        SPECIAL,
        (8, 20, 20, 24),
        (5, 5, 1, 48),
        {"feature_group_count": 24, "kernel_dilation": 2},
    ),
    ("1-D depthwise k31", SPECIAL, (8, 512, 64), (31, 1, 64), {"feature_group_count": 64}),
    ("1-D depthwise k4 causal", SPECIAL, (4, 1024, 96), (4, 1, 96), {"feature_group_count": 96, "padding": ((3, 0),)}),
    ("3-D depthwise", SPECIAL, (2, 8, 16, 16, 32), (3, 3, 3, 1, 32), {"feature_group_count": 32}),
    ("patches 16x16", SPECIAL, (4, 224, 224, 3), (16, 16, 3, 192), {"strides": 16, "padding": "VALID"}),
    ("patches 4x4", SPECIAL, (8, 56, 56, 24), (4, 4, 24, 48), {"strides": 4, "padding": "VALID"}),
    ("3x3 C64, NCHW", PLAIN, (16, 64, 32, 32), (64, 64, 3, 3), {"dimension_numbers": ("NCHW", "OIHW", "NCHW")}),
    (
        "depthwise 3x3 C64, NCHW",
        SPECIAL,
        (16, 64, 32, 32),
        (64, 1, 3, 3),
        {"feature_group_count": 64, "dimension_numbers": ("NCHW", "OIHW", "NCHW")},
    ),
]


def in_turns(calls: dict[str, Callable[[], Any]], seconds: float) -> dict[str, list[float]]:
    """Milliseconds of every call, turn by turn."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    rng, end = np.random.default_rng(0), time.perf_counter() + seconds * len(calls)
    while time.perf_counter() < end or len(times[next(iter(calls))]) < 6:
        for i in rng.permutation(len(calls)):
            name = list(calls)[i]
            warm = time.perf_counter() + 2e-3
            while time.perf_counter() < warm:
                jax.block_until_ready(calls[name]())
            for _ in range(2):
                start = time.perf_counter()
                jax.block_until_ready(calls[name]())
                times[name].append(1e3 * (time.perf_counter() - start))
    return times


def ratio(times: dict[str, list[float]], other: str, ours: str = "jaxnorm") -> float:
    """How many times as long the other side takes."""
    return statistics.median(a / b for a, b in zip(times[other], times[ours], strict=True))


def normal(shape: tuple[int, ...], seed: int, dtype: Any) -> jax.Array:
    """Random numbers whose products do not grow."""
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def parts_of(conv: Callable[..., jax.Array]) -> dict[str, Callable[..., jax.Array]]:
    """The three computations of a convolution, as functions of (x, kernel, g)."""
    return {
        "forward": lambda x, kernel, g: conv(x, kernel),
        "dX": lambda x, kernel, g: jax.vjp(lambda x: conv(x, kernel), x)[1](g)[0],
        "dW": lambda x, kernel, g: jax.vjp(lambda kernel: conv(x, kernel), kernel)[1](g)[0],
    }


def in_torch(x: Any, kernel: Any, g: Any, options: dict[str, Any]) -> dict[str, Callable[[], Any]]:
    """PyTorch's three computations, in its channels-last layout (1-D has none), where its padding can say the same."""
    first, space = "dimension_numbers" in options, x.ndim - 2
    if not first:
        x, g, kernel = jnp.moveaxis(x, -1, 1), jnp.moveaxis(g, -1, 1), jnp.moveaxis(kernel, (-1, -2), (0, 1))
    strides, dilation = ((options.get(name, 1),) * space for name in ("strides", "kernel_dilation"))
    pads = options.get("padding", "SAME")
    if isinstance(pads, str):
        reach = [(k - 1) * d + 1 for k, d in zip(kernel.shape[2:], dilation, strict=True)]
        pads = lax.padtype_to_pads(x.shape[2:], reach, strides, pads)
    # One more row at the end than PyTorch's symmetric padding asks for changes the time by less than a row.
    padding = [max(pair) for pair in pads]
    layout = torch.contiguous_format
    if space > 1 and not first:
        layout = torch.channels_last if space == 2 else torch.channels_last_3d
    tx, tk, tg = (torch.from_numpy(np.array(a)).contiguous(memory_format=layout) for a in (x, kernel, g))
    groups = options.get("feature_group_count", 1)
    static = (list(strides), padding, list(dilation), False, [0] * space, groups)
    with torch.no_grad():
        y = torch.convolution(tx, tk, None, *static)
        if y.shape != tg.shape:
            tg = torch.randn_like(y)

    def backward(*mask: bool) -> Callable[[], Any]:
        return lambda: torch.ops.aten.convolution_backward(tg, tx, tk, [0], *static, [*mask, False])

    def forward() -> Any:
        with torch.no_grad():
            return torch.convolution(tx, tk, None, *static)

    return {"forward": forward, "dX": backward(True, False), "dW": backward(False, True)}


def agree(ours: Any, theirs: Any, tolerance: float) -> None:
    """Raises if the results differ by more than rounding."""
    for have, want in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        want = np.asarray(want, np.float64)
        scale = tolerance * max(np.abs(want).max(), 1e-6)
        np.testing.assert_allclose(np.asarray(have, np.float64), want, rtol=tolerance, atol=scale)


def temporary_bytes(program: Any) -> int:
    """What the compiled program allocates beside its arguments and results."""
    return program.memory_analysis().temp_size_in_bytes


def measure_row(row: Row, dtype: Any, seconds: float) -> list[dict[str, Any]]:
    """The three parts of one convolution on every side."""
    name, kind, x_shape, kernel_shape, options = row
    function = "conv_transpose" if name.startswith("transposed") else "conv"
    sides = {"jaxnorm": jn, "lax": reference}
    convs = {side: functools.partial(getattr(module, function), **options) for side, module in sides.items()}
    x, kernel = normal(x_shape, 0, dtype), normal(kernel_shape, 1, dtype)
    g = normal(jax.eval_shape(convs["lax"], x, kernel).shape, 2, dtype)
    theirs = in_torch(x, kernel, g, options) if torch and function == "conv" and dtype == jnp.float32 else {}
    results = []
    for part in PARTS:
        programs = {side: jax.jit(parts_of(conv)[part]).lower(x, kernel, g).compile() for side, conv in convs.items()}
        hand, plain = (program(x, kernel, g) for program in programs.values())
        agree(hand, plain, 1e-4 if dtype == jnp.float32 else 3e-2)
        calls = {side: functools.partial(program, x, kernel, g) for side, program in programs.items()}
        times = in_turns(calls | ({"torch": theirs[part]} if theirs else {}), seconds)
        results.append(
            {"name": name, "kind": kind, "part": part}
            | {f"{side}_ms": statistics.quantiles(ms, n=4) for side, ms in times.items()}
            | {f"{side}_ratio": ratio(times, side) for side in times if side != "jaxnorm"}
            | {f"{side}_temporary": temporary_bytes(p) for side, p in programs.items()}
        )
    return results


def measure_loop(row: Row, seconds: float, steps: int = 4) -> dict[str, Any]:
    """The three parts together: in a scan and under vmap, against the same written out."""
    name, _, x_shape, kernel_shape, options = row
    conv = functools.partial(jn.conv_transpose if name.startswith("transposed") else jn.conv, **options)
    x, kernels = normal((steps, *x_shape), 0, jnp.float32), normal((steps, *kernel_shape), 1, jnp.float32)

    def one(x: jax.Array, kernel: jax.Array) -> Any:
        y, pullback = jax.vjp(conv, x, kernel)
        return pullback(y)

    def written_out(x: jax.Array, kernels: jax.Array) -> Any:
        return jax.tree.map(lambda *a: jnp.stack(a), *(one(x[i], kernels[i]) for i in range(steps)))

    forms = {
        "written out": written_out,
        "scan": lambda *a: lax.scan(lambda carry, a: (carry, one(*a)), None, a)[1],
        "vmap": jax.vmap(one),
    }
    programs = {form: jax.jit(f).lower(x, kernels).compile() for form, f in forms.items()}
    outcomes = [program(x, kernels) for program in programs.values()]
    for outcome in outcomes[1:]:
        agree(outcome, outcomes[0], 1e-4)
    times = in_turns({form: functools.partial(p, x, kernels) for form, p in programs.items()}, seconds)
    found = {form: ratio(times, form, "written out") for form in ("scan", "vmap")}
    return {"name": name, "written_out_ms": statistics.median(times["written out"]), **found}


def measure_training(name: str, batch: int, seconds: float) -> dict[str, Any]:
    """A training step on both sides: time, temporary memory, time to compile."""
    from conv_models import NETWORKS, training_steps

    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.normal(size=(batch, 32, 32, 3)), jnp.float32)
    steps, arguments = training_steps(NETWORKS[name], images, jnp.asarray(rng.integers(0, 10, batch)))
    programs, compile_s = {}, {}
    for side, step in steps.items():
        lowered = step.lower(*arguments)
        start = time.perf_counter()
        programs[side] = lowered.compile()
        compile_s[side] = time.perf_counter() - start
    ours, theirs = (program(*arguments)[:2] for program in reversed(programs.values()))
    flat = [ravel_pytree(side)[0] for side in (ours, theirs)]  # the loss and its gradients, some of them 0 but rounding
    if (error := jnp.linalg.norm(flat[0] - flat[1]) / jnp.linalg.norm(flat[1])) > 1e-3:
        raise AssertionError(f"{name}: gradients differ from flax's by {error:.1e} of their norm")
    times = in_turns({side: functools.partial(p, *arguments) for side, p in programs.items()}, seconds)
    return {
        "name": name,
        "ratio": ratio(times, "flax"),
        "ms": {side: statistics.quantiles(ms, n=4) for side, ms in times.items()},
        "temporary_mb": {side: temporary_bytes(p) / 1e6 for side, p in programs.items()},
        "compile_s": compile_s,
    }


def geometric_mean(values: Sequence[float]) -> float:
    """Of ratios."""
    return statistics.geometric_mean(values)


def print_rows(console: Console, rows: list[dict[str, Any]]) -> None:
    """Times in milliseconds, ratios, and their geometric means by kind."""
    table = Table(title="Convolutions: median ms (ratio to jaxnorm: above 1, jaxnorm is faster)")
    for column in ("", "part", "jaxnorm", "lax", "PyTorch", "temporary MB", "lax's"):
        table.add_column(column, justify="left" if column in ("", "part") else "right")
    for row in rows:
        sides = [
            f"{row[f'{side}_ms'][1]:.2f} ({row[f'{side}_ratio']:.2f})" if f"{side}_ms" in row else "-"
            for side in ("lax", "torch")
        ]
        memory = (f"{row[f'{side}_temporary'] / 1e6:.1f}" for side in ("jaxnorm", "lax"))
        first = row["name"] if row["part"] == PARTS[0] else ""
        table.add_row(first, row["part"], f"{row['jaxnorm_ms'][1]:.2f}", *sides, *memory)
    console.print(table)
    for kind in (SPECIAL, PLAIN):
        for side in ("lax", "torch"):
            ratios = [row[f"{side}_ratio"] for row in rows if row["kind"] == kind and f"{side}_ratio" in row]
            if ratios:
                mean, worst = geometric_mean(ratios), min(ratios)
                console.print(f"{kind}: {mean:.2f} times as fast as {side} in geometric mean, at worst {worst:.2f}")


def print_loops(console: Console, loops: list[dict[str, Any]]) -> None:
    """Ratios to the same work written out."""
    table = Table(title="Forward, dX and dW of 4 kernels: time in units of the same written out")
    for column in ("", "written out, ms", "scan", "vmap"):
        table.add_column(column, justify="right" if column else "left")
    for loop in loops:
        cells = f"{loop['written_out_ms']:.2f}", f"{loop['scan']:.2f}", f"{loop['vmap']:.2f}"
        table.add_row(loop["name"], *cells)
    console.print(table)


def print_training(console: Console, steps: list[dict[str, Any]]) -> None:
    """Both sides of each network."""
    table = Table(title="Training steps: flax's layers, jaxnorm's functions")
    for column in ("", "flax ms", "jaxnorm ms", "ratio", "temporary MB", "time to compile, s"):
        table.add_column(column, justify="right" if column else "left")
    for step in steps:
        times = (f"{step['ms'][side][1]:.1f}" for side in ("flax", "jaxnorm"))
        pairs = ("{flax:.1f}, {jaxnorm:.1f}".format(**step[key]) for key in ("temporary_mb", "compile_s"))
        table.add_row(step["name"], *times, f"{step['ratio']:.2f}", *pairs)
    console.print(table)


def plot(path: Path, rows: list[dict[str, Any]], steps: list[dict[str, Any]]) -> None:
    """How many times as fast as lax and PyTorch, as bars on a logarithmic axis."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    labels = [f"{row['name']}, {row['part']}" for row in rows] + [
        f"{step['name']}-like training step" for step in steps
    ]
    against = {
        "lax (flax for training steps)": [row["lax_ratio"] for row in rows] + [step["ratio"] for step in steps],
        "PyTorch": [row.get("torch_ratio", np.nan) for row in rows] + [np.nan] * len(steps),
    }
    figure, axes = pyplot.subplots(figsize=(8, 1 + 0.22 * len(labels)), layout="constrained")
    positions = np.arange(len(labels))
    for i, (side, ratios) in enumerate(against.items()):
        axes.barh(positions + 0.4 * i - 0.2, np.asarray(ratios) - 1, 0.4, left=1, label=side)
    axes.set(xscale="log", xlabel="times as fast", yticks=positions, yticklabels=labels, ylim=(len(labels) - 0.4, -0.6))
    axes.axvline(1, color="black", linewidth=0.8)
    axes.tick_params(axis="y", labelsize=7)
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=150)


def machine() -> str:
    """Versions and processor."""
    versions = f"jax {jax.__version__}" + (
        f", torch {torch.__version__}, {torch.get_num_threads()} threads" if torch else ""
    )
    return f"{jax.devices()[0].device_kind}, {platform.machine()}, {os.cpu_count()} cores, {versions}"


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Parses the command line, measures, prints the tables; returns their rows."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", nargs="?", choices=["rows", "loops", "training", "all"], default="all")
    parser.add_argument("--only", nargs="+", default=[""], metavar="TEXT", help="rows with any of these in their name")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="of the rows")
    parser.add_argument("--batch", type=int, default=16, help="images in a training step")
    parser.add_argument(
        "--seconds", type=float, default=0.2, help="for each side of each row; 5 times that in training"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything here")
    parser.add_argument("--plot", type=png_path, metavar="FILE.png", help="draw the ratios")
    options = parser.parse_args(argv)
    if not (chosen := [row for row in ROWS if any(text in row[0] for text in options.only)]):
        parser.error(f"--only {' '.join(options.only)}: no such row; there are {', '.join(row[0] for row in ROWS)}")
    if options.what in ("training", "all") and importlib.util.find_spec("flax") is None:
        parser.error(f'{options.what}: training steps are measured against flax; pip install -e ".[bench]"')
    if options.what == "loops" and options.plot:
        parser.error("--plot draws rows and training steps, not loops")
    dtype, console, what = jnp.dtype(options.dtype), Console(width=120), options.what
    follow = functools.partial(track, transient=True, console=Console(stderr=True))
    found: dict[str, Any] = {"machine": machine(), "dtype": options.dtype, "rows": [], "loops": [], "training": []}
    if what in ("rows", "all"):
        found["rows"] = [r for row in follow(chosen) for r in measure_row(row, dtype, options.seconds)]
        print_rows(console, found["rows"])
    if what in ("loops", "all"):
        found["loops"] = [measure_loop(row, options.seconds) for row in follow(chosen)]
        print_loops(console, found["loops"])
    if what in ("training", "all"):
        names = ("MobileNet", "ConvNeXt", "ResNeXt", "ResNet")
        found["training"] = [measure_training(name, options.batch, 5 * options.seconds) for name in follow(names)]
        print_training(console, found["training"])
    console.print(found["machine"])
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    if options.plot:
        plot(options.plot, found["rows"], found["training"])
    return found


if __name__ == "__main__":
    if any(os.environ.get(name) != value for name, value in ALLOCATOR.items()):  # read when a process starts
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | ALLOCATOR)
    main()
