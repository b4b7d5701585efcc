"""Memory: what functions keep for their backward pass, and what whole training steps allocate; and steps timed.

What is kept is `jaxnorm.check.saved_bytes` of the function not jitted: the residuals that `jax.vjp` holds beside the
arguments. A step's temporary memory is its compiled program's; its arguments (parameters, optimizer's state, batch) and
results are recorded too. XLA's CPU backend computes bfloat16 products in float32, which needs temporary memory on every
side.
"""

import functools
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from bench_cases import LINEAR_SHAPES, LOSS_SHAPES, NORM_SHAPES
from bench_method import Call, Sides, error, measure
from bench_models import MEMORY, TRAINED, Model, batch_of, sides, training_step
from bench_rivals import HAND_LOSSES, LOSSES, NORMS, Function, Norm, hand_norm

import jaxnorm as jn
from jaxnorm.check import saved_bytes

# Of the loss and the gradients' norms: batch norms of few examples enlarge rounding.
TOLERANCES = {"float32": 5e-3, "bfloat16": 1e-1}


def kept_rows(size: str, dtype: str, rivals: Sequence[str]) -> Iterator[dict[str, Any]]:
    """What each norm and loss keeps, in units of its first argument's bytes; nothing runs."""

    def array(shape: tuple[int, ...], dtype: Any = dtype) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, jnp.dtype(dtype))

    def row(name: str, functions: dict[str, Any], first: Any, *arguments: Any, closed: Sequence[Any] = ()) -> Any:
        whole = {
            side: lambda *a, f=f: f(*a, *(jnp.zeros(c.shape, c.dtype) for c in closed)) for side, f in functions.items()
        }
        bytes_of = first.size * first.dtype.itemsize
        kept = {side: saved_bytes(f, first, *arguments) / bytes_of for side, f in whole.items()}
        return {"name": name, "size": size, "dtype": dtype, "shape": first.shape, "kept": kept}

    for kind, shapes in NORM_SHAPES.items():
        norm = Norm(kind, shapes[size], jnp.dtype(dtype))
        parameters = [array((norm.channels,), jnp.float32)] * (1 if kind == "rms" else 2)
        others = {name: NORMS[name](norm) for name in rivals if name in NORMS}
        functions: dict[str, Function] = {"jaxnorm": hand_norm(norm), **others}
        yield row(f"{kind} norm", functions, array(norm.shape), *parameters)
    rows, classes = LOSS_SHAPES[size][1]
    for kind, ours in HAND_LOSSES.items():
        functions = {"jaxnorm": ours} | {r: LOSSES[r][kind] for r in rivals if kind in LOSSES.get(r, {})}
        name, logits = f"{kind}, C = {classes}", array((rows, classes))
        if kind == "dense cross-entropy":  # labels of which a gradient may be asked
            yield row(name, functions, logits, logits)
        else:
            yield row(name, functions, logits, closed=[array((rows,), jnp.int32)])
    tokens, width, vocabulary = LINEAR_SHAPES[size]
    functions = {"jaxnorm": lambda *a: jnp.asarray(jn.linear_softmax_cross_entropy(*a))}
    for name in rivals:
        if name in LOSSES:
            functions[name] = lambda h, k, y, f=LOSSES[name]["cross-entropy"]: f(h @ k, y)
    labels = array((tokens,), jnp.int32)
    yield row(
        f"linear, V = {vocabulary}", functions, array((tokens, width)), array((width, vocabulary)), closed=[labels]
    )


def compiled_steps(model: Model, size: str, dtype: str, libraries: Sequence[str]) -> tuple[dict[str, Any], ...]:
    """The compiled step, its arguments, the seconds to compile, and the bytes kept, for each side."""
    inputs, labels = batch_of(model, size)
    programs, arguments, compile_s, kept = {}, {}, {}, {}
    for name, side in sides(model, jnp.dtype(dtype), inputs, labels, libraries).items():
        step, arguments[name] = training_step(side, inputs, labels, jnp.dtype(dtype))
        lowered = jax.jit(step).lower(*arguments[name])
        start = time.perf_counter()
        programs[name] = lowered.compile()
        compile_s[name] = time.perf_counter() - start
        x = inputs if model.inputs == "tokens" else inputs.astype(dtype)
        kept[name] = saved_bytes(
            lambda params, side=side, x=x: side.loss(params, side.stats, x, labels)[0], side.params
        )
    return programs, arguments, compile_s, kept


def memory_row(name: str, size: str, dtype: str, libraries: Sequence[str]) -> dict[str, Any]:
    """A model's training step on every side: compared, and its memory."""
    programs, arguments, compile_s, kept = compiled_steps(MEMORY[name], size, dtype, libraries)
    outcomes = {side: program(*arguments[side])[0] for side, program in programs.items()}
    truth = outcomes["linen"]
    errors = {side: error(outcome, truth) for side, outcome in outcomes.items()}
    row: dict[str, Any] = {"name": name, "size": size, "dtype": dtype, "error": errors, "compile_s": compile_s}
    row["differs"] = {side: e for side, e in errors.items() if e is None or e > TOLERANCES[dtype]}
    if "jaxnorm" in row["differs"]:
        raise AssertionError(f"{name}, {dtype}: jaxnorm's step differs from flax's by {errors['jaxnorm']}")
    analyses = {side: program.memory_analysis() for side, program in programs.items()}
    for kind in ("argument", "output", "temp"):
        key = "temporary_mb" if kind == "temp" else f"{kind}_mb"
        row[key] = {side: getattr(a, f"{kind}_size_in_bytes") / 1e6 for side, a in analyses.items()}
    return row | {"kept_mb": {side: value / 1e6 for side, value in kept.items()}}


def training_row(name: str, size: str, dtype: str, seconds: float, rounds: int = 3) -> dict[str, Any]:
    """A network's training step in flax's layers and in this library's functions: time, memory, time to compile."""
    programs, arguments, compile_s, kept = compiled_steps(TRAINED[name], size, dtype, ["linen"])
    calls: dict[str, Call] = {side: functools.partial(program, *arguments[side]) for side, program in programs.items()}
    truth = calls["linen"]()[0]
    # Compared here by the loss and the gradients' norms, so not again with the new parameters.
    if not (wrong := error(calls["jaxnorm"]()[0], truth)) or wrong > TOLERANCES[dtype]:
        raise AssertionError(f"{name}, {dtype}: jaxnorm's step differs from flax's by {wrong}")
    row = measure(Sides(calls, (), 0.0, programs, uncompared=tuple(calls)), seconds, rounds)
    row["kept_mb"] = {side: value / 1e6 for side, value in kept.items()}
    return {"name": name, "size": size, "dtype": dtype} | row | {"error": {"jaxnorm": wrong}, "compile_s": compile_s}
