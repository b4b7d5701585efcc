"""The rows of convolutions: forward, input gradient (dX) and kernel gradient (dW) of one, each jitted alone.

The plain side is `jax.lax` and its autodiff. The floor is an elementwise kernel that moves as many bytes as the inputs
and outputs have, or the FLOPs at the measured rate of a large matrix product, whichever takes longer. Loops take the
three products together in `lax.scan` over several kernels, and under `vmap` over inputs and kernels, against the same
written out.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import bench_torch
import jax
import jax.numpy as jnp
from bench_cases import TOLERANCES, Case, compiled, normal
from bench_method import Call, Sides, floor_of
from jax import lax

import jaxnorm as jn
from jaxnorm import reference

PARTS = ("forward", "dX", "dW")
STEPS = 4  # of a loop

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


def batch_of(shape: tuple[int, ...], size: str) -> tuple[int, ...]:
    """x's shape: small is one example, large four times the batch."""
    return ({"small": 1, "medium": shape[0], "large": 4 * shape[0]}[size], *shape[1:])


def function_of(row: Row, module: Any) -> Callable[..., jax.Array]:
    """The row's convolution in this library or its plain twin."""
    return functools.partial(module.conv_transpose if row[0].startswith("transposed") else module.conv, **row[4])


def part_of(conv: Callable[..., jax.Array], part: str) -> Callable[..., jax.Array]:
    """One of the three products, as a function of (x, kernel, g)."""
    parts: dict[str, Callable[..., jax.Array]] = {
        "forward": lambda x, kernel, g: conv(x, kernel),
        "dX": lambda x, kernel, g: jax.vjp(lambda x: conv(x, kernel), x)[1](g)[0],
        "dW": lambda x, kernel, g: jax.vjp(lambda kernel: conv(x, kernel), kernel)[1](g)[0],
    }
    return parts[part]


def conv_sides(row: Row, part: str, size: str, dtype: Any, rivals: Sequence[str]) -> Sides:
    """One product on every side; PyTorch's result is not compared, since its padding may be off by a row."""
    x, kernel = normal(batch_of(row[2], size), 0, dtype), normal(row[3], 1, dtype)
    plain, transposed = function_of(row, reference), row[0].startswith("transposed")
    g = normal(jax.eval_shape(plain, x, kernel).shape, 2, dtype)
    convs = {"jaxnorm": function_of(row, jn)} | ({"plain": plain} if "plain" in rivals else {})
    calls: dict[str, Call] = {}
    programs = {}
    for name, conv in convs.items():
        calls[name], programs[name] = compiled(part_of(conv, part), x, kernel, g)
    truth = jax.jit(part_of(plain, part))(*(a.astype(jnp.float32) for a in (x, kernel, g)))
    if "torch" in rivals and dtype == jnp.float32 and not transposed:
        calls["torch"] = bench_torch.convolution(x, kernel, g, row[4])[part]
    moved = x.nbytes + kernel.nbytes + g.nbytes
    calls["floor"] = floor_of((jnp.ones(moved // 2 // x.dtype.itemsize, dtype), dtype))
    # Each position of y (of x where transposed) meets every number of the kernel.
    meeting = x if transposed else g
    flops = 2.0 * meeting.size / meeting.shape[1 if "dimension_numbers" in row[4] else -1] * kernel.size
    tolerance = TOLERANCES[str(x.dtype)]
    return Sides(calls, truth, tolerance, programs, moved, flops, str(x.dtype), ("floor", "torch"))


def loop_sides(row: Row, size: str, dtype: Any, rivals: Sequence[str]) -> Sides:
    """The three products of several kernels: written out (under the name jaxnorm), in a scan and under vmap.

    No rival takes part.
    """
    del rivals
    conv = function_of(row, jn)
    x = normal((STEPS, *batch_of(row[2], size)), 0, dtype)
    kernels = normal((STEPS, *row[3]), 1, dtype)

    def one(x: jax.Array, kernel: jax.Array) -> Any:
        y, pullback = jax.vjp(conv, x, kernel)
        return pullback(y)

    def written_out(x: jax.Array, kernels: jax.Array) -> Any:
        return jax.tree.map(lambda *a: jnp.stack(a), *(one(x[i], kernels[i]) for i in range(STEPS)))

    forms = {
        "jaxnorm": written_out,
        "scan": lambda *a: lax.scan(lambda carry, a: (carry, one(*a)), None, a)[1],
        "vmap": jax.vmap(one),
    }
    calls = {form: compiled(f, x, kernels)[0] for form, f in forms.items()}
    return Sides(calls, calls["jaxnorm"](), TOLERANCES[str(x.dtype)])


def conv_cases(runs: Sequence[tuple[str, str]]) -> Iterator[Case]:
    """Every part of every row, for each (size, dtype)."""
    for size, dtype in runs:
        for row in ROWS:
            for part in PARTS:
                labels = {"name": row[0], "kind": row[1], "part": part, "size": size, "dtype": dtype}
                build = functools.partial(conv_sides, row, part, size, jnp.dtype(dtype))
                yield Case(labels | {"shape": batch_of(row[2], size), "kernel": row[3]}, build)


def loop_cases(runs: Sequence[tuple[str, str]]) -> Iterator[Case]:
    """Every row in loops, for each (size, dtype)."""
    for size, dtype in runs:
        for row in ROWS:
            build = functools.partial(loop_sides, row, size, jnp.dtype(dtype))
            yield Case({"name": row[0], "size": size, "dtype": dtype}, build)
