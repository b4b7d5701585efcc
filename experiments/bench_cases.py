"""The rows of norms and losses: shapes by size, and for each row what every side runs.

A row of norms pulls a random cotangent back through `y = norm(x, scale, bias)`, and returns y and the three gradients:

    jitted  the two passes as one jitted function
    eager   `jax.vjp` and its pullback, not jitted
    step    x + gelu(norm(x @ w1)) @ w2, x narrower than the norm, and its gradients as one jitted function

The floor is an elementwise kernel that reads x and g and writes two arrays like them; of a step, the same step with
`x * scale + bias` for the norm. A row of losses returns the losses and the logits' gradient; its floor reads the logits
and writes an array like them (two of each for the log-softmax). The floor of the linear cross-entropy is its three
matrix products at the measured rate of a large one.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import bench_torch
import jax
import jax.numpy as jnp
import numpy as np
from bench_method import Call, Sides, floor_of
from bench_rivals import HAND_LOSSES, LINEAR_LOSSES, LOSSES, NORMS, Function, Norm, hand_norm, plain_norm

import jaxnorm as jn

# x in float32: about 1 MB, 16 MB, 256 MB
NORM_SHAPES: dict[str, dict[str, tuple[int, ...]]] = {
    "layer": {"small": (340, 768), "medium": (4096, 1024), "large": (16384, 4096)},
    "rms": {"small": (480, 544), "medium": (5456, 768), "large": (20480, 3200)},
    "batch": {"small": (8, 14, 14, 160), "medium": (64, 32, 32, 64), "large": (256, 56, 56, 80)},
    "instance": {"small": (8, 24, 24, 56), "medium": (16, 56, 56, 84), "large": (64, 112, 112, 80)},
    "group": {"small": (4, 20, 20, 160), "medium": (16, 28, 28, 320), "large": (64, 56, 56, 320)},
}
MODES = {"small": ("jitted", "eager"), "medium": ("jitted", "step"), "large": ("jitted",)}

# rows, classes: 1 to 2 MB, 16 to 66 MB, 256 MB
LOSS_SHAPES: dict[str, list[tuple[int, int]]] = {
    "small": [(25000, 10), (256, 1000), (16, 32000), (4, 128256)],
    "medium": [(400000, 10), (4096, 1000), (512, 32000), (128, 128256)],
    "large": [(6400000, 10), (65536, 1000), (2048, 32000), (512, 128256)],
}
# tokens, hidden size, vocabulary
LINEAR_SHAPES = {"small": (256, 64, 4003), "medium": (2048, 64, 32003), "large": (2048, 64, 128256)}
NARROW = 8  # how many times wider the norm of a step is than its input
TOLERANCES = {"float32": 1e-4, "bfloat16": 3e-2}


class Case(NamedTuple):
    """One row: what it is called, and what makes its sides from the names of the rivals that take part."""

    labels: dict[str, Any]
    build: Callable[[Sequence[str]], Sides]


def normal(shape: tuple[int, ...], seed: int, dtype: Any, scale: float = 1.0) -> jax.Array:
    """Random numbers."""
    return jnp.asarray(scale * np.random.default_rng(seed).standard_normal(shape, np.float32), dtype)


def both_passes(function: Function, arguments: Sequence[Any], g: jax.Array, *constants: jax.Array) -> Any:
    """The value, and g pulled back to the arguments."""
    y, pullback = jax.vjp(lambda *args: function(*args, *constants), *arguments)
    return y, pullback(g)


def compiled(function: Callable[..., Any], *arguments: Any) -> tuple[Callable[[], Any], Any]:
    """The jitted call, and its program."""
    jitted = jax.jit(function)
    return functools.partial(jitted, *arguments), jitted.lower(*arguments).compile()


def in_step(function: Function) -> Function:
    """A residual block around a norm."""

    def step(x: jax.Array, w1: jax.Array, w2: jax.Array, *parameters: jax.Array) -> jax.Array:
        return x + jax.nn.gelu(function(x @ w1, *parameters)) @ w2

    return step


def norm_sides(norm: Norm, mode: str, rivals: Sequence[str]) -> Sides:
    """Both passes of a norm on every side."""
    x, g = normal(norm.shape, 0, norm.dtype), normal(norm.shape, 1, norm.dtype)
    parameters = [1 + normal((norm.channels,), 2, jnp.float32, 0.1), normal((norm.channels,), 3, jnp.float32)]
    arguments = [x, *parameters[: 1 if norm.kind == "rms" else 2]]
    functions = {"jaxnorm": hand_norm(norm)} | {name: NORMS[name](norm) for name in rivals if name in NORMS}
    truth, around, moved = plain_norm(norm), (lambda f: f), 2 * (x.nbytes + g.nbytes)
    floor = floor_of((x, x.dtype), (g, g.dtype))
    if mode == "step":
        narrow = max(norm.channels // NARROW, 1)
        x, g = (normal((*norm.shape[:-1], narrow), seed, norm.dtype) for seed in (0, 1))
        w1 = normal((narrow, norm.channels), 4, norm.dtype, narrow**-0.5)
        w2 = normal((norm.channels, narrow), 5, norm.dtype, norm.channels**-0.5)
        arguments[:1], around = [x, w1, w2], in_step
        affine = in_step(lambda x, scale, bias=0.0: (x * scale + bias).astype(x.dtype))
        floor = compiled(functools.partial(both_passes, affine), arguments, g)[0]
    wide = [a.astype(jnp.float32) for a in arguments]
    calls: dict[str, Call] = {}
    programs = {}
    for name, function in functions.items():
        run = functools.partial(both_passes, around(function))
        if mode == "eager":
            calls[name] = functools.partial(run, arguments, g)
        else:
            calls[name], programs[name] = compiled(run, arguments, g)
    if "torch" in rivals:
        function = bench_torch.norm(norm)
        function = bench_torch.in_step(function) if mode == "step" else function
        calls["torch"] = bench_torch.pulled_back(function, arguments, g)
    expected = jax.jit(functools.partial(both_passes, around(truth)))(wide, g.astype(jnp.float32))
    return Sides(
        calls | {"floor": floor}, expected, TOLERANCES[str(x.dtype)], programs, moved if mode != "step" else None
    )


def norm_cases(runs: Sequence[tuple[str, str]]) -> Iterator[Case]:
    """Every norm and mode of each (size, dtype)."""
    for size, dtype in runs:
        for mode in MODES[size]:
            for kind, shapes in NORM_SHAPES.items():
                norm = Norm(kind, shapes[size], jnp.dtype(dtype))
                labels = {"name": kind, "size": size, "mode": mode, "dtype": dtype, "shape": norm.shape}
                yield Case(labels, functools.partial(norm_sides, norm, mode))


def loss_sides(kind: str, rows: int, classes: int, dtype: Any, rivals: Sequence[str]) -> Sides:
    """Both passes of a loss on every side."""
    logits = normal((rows, classes), 0, dtype)
    if kind == "dense cross-entropy":
        labels = jax.nn.softmax(normal((rows, classes), 2, jnp.float32)).astype(dtype)
    else:
        labels = jnp.asarray(np.random.default_rng(2).integers(0, classes, rows), jnp.int32)
    functions = {"jaxnorm": HAND_LOSSES[kind]} | {
        name: LOSSES[name][kind] for name in rivals if kind in LOSSES.get(name, {})
    }
    g = normal(jax.eval_shape(LOSSES["plain"][kind], logits, labels).shape, 1, jnp.float32)
    calls: dict[str, Call] = {}
    programs = {}
    for name, function in functions.items():
        run = functools.partial(both_passes, lambda *a, f=function: f(*a).astype(jnp.float32))
        calls[name], programs[name] = compiled(run, [logits], g, labels)
    if "torch" in rivals and kind != "hinge":
        calls["torch"] = bench_torch.pulled_back(bench_torch.loss(kind), [logits], g, [labels])
    truth = jax.jit(functools.partial(both_passes, LOSSES["plain"][kind]))
    expected = truth([logits.astype(jnp.float32)], g, labels)
    moved = [(a, a.dtype) for a in (logits, g)[: g.ndim]]
    floor = floor_of(*moved)
    return Sides(
        calls | {"floor": floor}, expected, TOLERANCES[str(logits.dtype)], programs, 2 * sum(a.nbytes for a, _ in moved)
    )


def linear_sides(tokens: int, width: int, vocabulary: int, dtype: Any, rivals: Sequence[str]) -> Sides:
    """Both passes of the last layer and its loss: in blocks of the vocabulary or the tokens, and with whole logits."""
    hidden, kernel = normal((tokens, width), 0, dtype), normal((width, vocabulary), 1, dtype, width**-0.5)
    labels = jnp.asarray(np.random.default_rng(2).integers(0, vocabulary, tokens), jnp.int32)
    g = normal((tokens,), 3, jnp.float32)

    def over(loss: Function) -> Function:
        return lambda hidden, kernel, labels: loss(hidden @ kernel, labels).astype(jnp.float32)

    functions = {"jaxnorm": lambda *a: jnp.asarray(jn.linear_softmax_cross_entropy(*a))}
    if "composed" in rivals:
        functions["composed"] = over(HAND_LOSSES["cross-entropy"])
    functions |= {name: over(LOSSES[name]["cross-entropy"]) for name in rivals if name in LOSSES}
    functions |= {name: LINEAR_LOSSES[name] for name in rivals if name in LINEAR_LOSSES}
    if dtype == jnp.float32:  # where it is the composed one
        functions.pop("composed-float32", None)
    calls: dict[str, Call] = {}
    programs = {}
    for name, function in functions.items():
        calls[name], programs[name] = compiled(functools.partial(both_passes, function), [hidden, kernel], g, labels)
    if "torch" in rivals:
        calls["torch"] = bench_torch.pulled_back(bench_torch.linear_cross_entropy, [hidden, kernel], g, [labels])
    if "torch-chunked" in rivals:
        arguments, loss = [hidden, bench_torch.transposed(kernel)], bench_torch.chunked_linear_cross_entropy
        calls["torch-chunked"] = bench_torch.pulled_back(loss, arguments, g, [labels])
    truth = jax.jit(functools.partial(both_passes, over(LOSSES["plain"]["cross-entropy"])))
    expected = truth([hidden.astype(jnp.float32), kernel.astype(jnp.float32)], g, labels)
    tolerance = TOLERANCES[str(hidden.dtype)]
    flops = 6.0 * tokens * width * vocabulary
    return Sides(calls, expected, tolerance, programs, flops=flops, dtype=str(hidden.dtype))


def loss_cases(runs: Sequence[tuple[str, str]]) -> Iterator[Case]:
    """Every loss of each (size, dtype)."""
    for size, dtype in runs:
        labels: dict[str, Any] = {"size": size, "mode": "jitted", "dtype": dtype}
        for kind in HAND_LOSSES:
            for rows, classes in LOSS_SHAPES[size]:
                # bfloat16 scores tie at the hinge, where libraries take different subgradients.
                if kind == "cross-entropy" or (classes <= 1000 and dtype == "float32"):
                    build = functools.partial(loss_sides, kind, rows, classes, jnp.dtype(dtype))
                    yield Case({"name": f"{kind}, C = {classes}", "shape": (rows, classes)} | labels, build)
        shape = LINEAR_SHAPES[size]
        build = functools.partial(linear_sides, *shape, jnp.dtype(dtype))
        yield Case({"name": f"linear, V = {shape[-1]}", "shape": shape} | labels, build)
