"""The rows of pooling: both passes of a maximum or an average over windows as one jitted function.

The plain side is `jax.lax.reduce_window` and its autodiff. The floor is an elementwise kernel that reads and writes as
much as both passes must: x and g are read, y and dx written.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import bench_torch
import jax
import jax.numpy as jnp
import numpy as np
from bench_cases import TOLERANCES, Case, both_passes, compiled, normal
from bench_convolutions import batch_of
from bench_method import Sides, floor_of
from bench_rivals import linen
from jax import lax

import jaxnorm as jn

# name, the shape of x, the window's size, stride and padding along each spatial axis, the channels' axis
Row = tuple[str, tuple[int, ...], int, int, int, int]
ROWS: list[Row] = [
    ("2x2", (16, 32, 32, 64), 2, 2, 0, -1),
    ("3x3 stride 2", (16, 56, 56, 64), 3, 2, 1, -1),
    ("3x3 stride 1", (16, 28, 28, 128), 3, 1, 1, -1),
    ("7x7 stride 1", (16, 28, 28, 64), 7, 1, 3, -1),
    ("4x4", (16, 32, 32, 64), 4, 4, 0, -1),
    ("all of 7x7", (32, 7, 7, 512), 7, 7, 0, -1),
    ("3x3 stride 2 C3", (16, 112, 112, 3), 3, 2, 1, -1),
    ("3x3 stride 2, NCHW", (16, 64, 56, 56), 3, 2, 1, 1),
    ("1-D k3 stride 2", (16, 1024, 64), 3, 2, 1, -1),
    ("1-D k64 stride 1", (8, 512, 64), 64, 1, 32, -1),
    ("3-D 2x2x2", (4, 16, 28, 28, 32), 2, 2, 0, -1),
    ("3-D 3x3x3 stride 2", (4, 16, 28, 28, 32), 3, 2, 1, -1),
]
KINDS = ("max", "average")
Pool = Callable[[jax.Array], jax.Array]


def plain(kind: str, row: Row) -> Pool:
    """What XLA has for it."""
    _, shape, k, s, p, channels = row
    spatial = [axis not in (0, channels % len(shape)) for axis in range(len(shape))]
    window, strides = ([size if along else 1 for along in spatial] for size in (k, s))
    pads = [(p, p) if along else (0, 0) for along in spatial]

    def pool(x: jax.Array) -> jax.Array:
        if kind == "max":
            return lax.reduce_window(x, x.dtype.type(-np.inf), lax.max, window, strides, pads)
        return lax.reduce_window(x, x.dtype.type(0), lax.add, window, strides, pads) / np.prod(window)

    return pool


def hand(kind: str, row: Row) -> Pool:
    """This library's."""
    _, _, k, s, p, channels = row
    function = jn.max_pool if kind == "max" else jn.avg_pool
    return functools.partial(function, window=k, strides=s, padding=p, feature_axis=channels)


def of_flax(kind: str, row: Row) -> Pool | None:
    """flax's, whose channels come last."""
    _, shape, k, s, p, channels = row
    if linen is None or channels != -1:
        return None
    space = len(shape) - 2
    function = linen.max_pool if kind == "max" else linen.avg_pool
    options = {"window_shape": (k,) * space, "strides": (s,) * space, "padding": [(p, p)] * space}
    return functools.partial(function, **options)


def pool_sides(kind: str, row: Row, size: str, dtype: Any, rivals: Sequence[str]) -> Sides:
    """Both passes on every side."""
    x, truth = normal(batch_of(row[1], size), 0, dtype), plain(kind, row)
    g = normal(jax.eval_shape(truth, x).shape, 1, dtype)
    pools = {"jaxnorm": hand(kind, row), "plain": truth, "linen": of_flax(kind, row)}
    calls: dict[str, Any] = {}
    programs = {}
    for name, pool in pools.items():
        if pool is not None and name in ("jaxnorm", *rivals):
            calls[name], programs[name] = compiled(functools.partial(both_passes, pool), [x], g)
    if "torch" in rivals:
        pool = bench_torch.pooling(kind, *row[2:])
        calls["torch"] = bench_torch.pulled_back(pool, [x], g)
    wide = [x.astype(jnp.float32)], g.astype(jnp.float32)
    expected = jax.jit(functools.partial(both_passes, truth))(*wide)
    calls["floor"] = floor_of((x, x.dtype), (g, g.dtype))
    return Sides(calls, expected, TOLERANCES[str(x.dtype)], programs, 2 * (x.nbytes + g.nbytes))


def pool_cases(runs: Sequence[tuple[str, str]]) -> Iterator[Case]:
    """Every row of both kinds, for each (size, dtype)."""
    for size, dtype in runs:
        for kind in KINDS:
            for row in ROWS:
                labels = {"name": f"{kind} {row[0]}", "size": size, "mode": "jitted", "dtype": dtype}
                build = functools.partial(pool_sides, kind, row, size, jnp.dtype(dtype))
                yield Case(labels | {"shape": batch_of(row[1], size)}, build)
