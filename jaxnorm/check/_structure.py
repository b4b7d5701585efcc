"""Shapes and dtypes of values and cotangents, by tracing alone."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnorm.check._problem import Layout, Leaves, dtype_in, is_float
from jaxnorm.check._programs import Failed, vjp_at
from jaxnorm.check._report import Row

Names = tuple[tuple[str, ...], tuple[str, ...]]


def structure_rows(
    fun: Callable[..., Any],
    reference: Callable[..., Any] | None,
    layout: Layout,
    outputs: Names,
    leaves: Leaves,
    dtypes: Sequence[Any],
) -> Iterator[Row]:
    """Every cotangent has its argument's shape and dtype, integers too; every output the reference's."""
    for dtype in (np.float64, *dtypes):
        setting = np.dtype(dtype).name
        with jax.enable_x64(setting == "float64"):
            typed = [_typed(leaf, dtype) for leaf in leaves]
            try:
                values = jax.eval_shape(layout.flat(fun), typed)
            except Exception as error:
                yield Row(setting, "arguments", True, note=f"not checked: fun {Failed.by(error).text}")
                continue
            if reference:
                truth = jax.eval_shape(layout.flat(reference), typed)
                for names, got, wanted in zip(outputs, values, truth, strict=True):
                    yield from _same("structure", setting, names, got, wanted, "the reference's")
            yield from _cotangents("structure", fun, layout, setting, typed, values[0])


def mixed_rows(fun: Callable[..., Any], layout: Layout, leaves: Leaves, dtypes: Sequence[Any]) -> Iterator[Row]:
    """The same of cotangents where the first argument and the others differ in dtype, as far as `fun` takes that."""
    first = layout.moving[0]
    for dtype in dtypes if len(layout.moving) > 1 else ():
        for one, rest in ((dtype, np.float32), (np.float32, dtype)) if np.dtype(dtype) != np.float32 else ():
            typed = [_typed(leaf, one if i == first else rest) for i, leaf in enumerate(leaves)]
            with jax.enable_x64(False):
                try:
                    values = jax.eval_shape(layout.flat(fun), typed)
                except Exception:  # a function need not take mixtures
                    continue
                setting = f"{np.dtype(one).name} {layout.names[first]} and {np.dtype(rest).name} others"
                yield from _cotangents("mixed dtypes", fun, layout, setting, typed, values[0])


def _cotangents(
    check: str, fun: Callable[..., Any], layout: Layout, setting: str, leaves: Leaves, outputs: Leaves
) -> Iterator[Row]:
    everything = dataclasses.replace(layout, moving=tuple(i for i, a in enumerate(leaves) if _has_tangent(a)))
    try:
        got = jax.eval_shape(functools.partial(vjp_at, everything, everything.flat(fun)), leaves, list(outputs))[2]
    except Exception as error:
        note = f"in {setting} the rule {Failed.by(error).text}"
        yield Row(check, ", ".join(layout.moving_names), False, note=note)
        return
    wanted = [a if is_float(a) else jax.ShapeDtypeStruct(a.shape, jax.dtypes.float0) for a in everything.pick(leaves)]
    yield from _same(check, setting, everything.moving_names, got, wanted, "the argument's")


def _typed(leaf: Any, dtype: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, dtype_in(leaf, dtype))


def _has_tangent(leaf: Any) -> bool:
    return not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _same(check: str, setting: str, names: Sequence[str], got: Leaves, wanted: Leaves, whose: str) -> Iterator[Row]:
    for name, g, w in zip(names, got, wanted, strict=True):
        same = g.shape == w.shape and g.dtype == w.dtype
        note = "" if same else f"in {setting} it is {g.dtype}{list(g.shape)}, {whose} is {w.dtype}{list(w.shape)}"
        yield Row(check, name, same, note=note)
