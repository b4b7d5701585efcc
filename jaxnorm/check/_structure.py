"""Shapes and dtypes of values and derivatives, by tracing alone."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnorm.check._problem import Layout, Leaves, dtype_in, is_float, traced
from jaxnorm.check._programs import FORWARD, Failed, Mode, traced_at
from jaxnorm.check._report import Row

Names = tuple[tuple[str, ...], tuple[str, ...]]


def structure_rows(
    mode: Mode,
    fun: Callable[..., Any],
    reference: Callable[..., Any] | None,
    layout: Layout,
    outputs: Names,
    leaves: Leaves,
    dtypes: Sequence[Any],
    fixed: bool,
) -> Iterator[Row]:
    """Every derivative has its argument's (or output's) shape and dtype, integers too; every output the reference's.

    Of a function of a `fixed` precision dtypes are not asked in float64, nor those of its outputs at all.
    """
    for dtype in (np.float64, *dtypes):
        setting = np.dtype(dtype).name
        wide = setting == "float64"
        with jax.enable_x64(wide):
            typed = [_typed(leaf, dtype) for leaf in leaves]
            try:
                values = jax.eval_shape(layout.flat(traced(fun)), typed)
            except Exception as error:
                yield Row(setting, "arguments", True, note=f"not checked: fun {Failed.by(error).text}")
                continue
            if reference:
                truth = jax.eval_shape(layout.flat(traced(reference)), typed)
                for names, got, wanted in zip(outputs, values, truth, strict=True):
                    yield from _same("structure", setting, names, got, wanted, "the reference's", any_dtype=fixed)
            yield from _derivatives(mode, "structure", fun, layout, setting, typed, values, outputs, fixed and wide)


def mixed_rows(
    mode: Mode, fun: Callable[..., Any], layout: Layout, outputs: Names, leaves: Leaves, dtypes: Sequence[Any]
) -> Iterator[Row]:
    """The same where the first argument and the others differ in dtype, as far as `fun` takes that."""
    first = layout.moving[0]
    for dtype in dtypes if len(layout.moving) > 1 else ():
        for one, rest in ((dtype, np.float32), (np.float32, dtype)) if np.dtype(dtype) != np.float32 else ():
            typed = [_typed(leaf, one if i == first else rest) for i, leaf in enumerate(leaves)]
            with jax.enable_x64(False):
                try:
                    values = jax.eval_shape(layout.flat(traced(fun)), typed)
                except Exception:  # a function need not take mixtures
                    continue
                setting = f"{np.dtype(one).name} {layout.names[first]} and {np.dtype(rest).name} others"
                yield from _derivatives(mode, "mixed dtypes", fun, layout, setting, typed, values, outputs)


def _derivatives(
    mode: Mode,
    check: str,
    fun: Callable[..., Any],
    layout: Layout,
    setting: str,
    leaves: Leaves,
    values: tuple[Leaves, Leaves],
    outputs: Names,
    any_dtype: bool = False,
) -> Iterator[Row]:
    every = layout
    if mode is not FORWARD:
        every = dataclasses.replace(layout, moving=tuple(i for i, a in enumerate(leaves) if _has_tangent(a)))
    incoming = mode.of(every.pick(leaves), list(values[0]))[0]
    try:
        got = jax.eval_shape(traced_at(mode, fun, every), leaves, incoming)[2]
    except Exception as error:
        note = f"in {setting} the rule {Failed.by(error).text}"
        yield Row(check, ", ".join(layout.moving_names), False, note=note, comparable=setting != "float64")
        return
    moving = [a if is_float(a) else jax.ShapeDtypeStruct(a.shape, jax.dtypes.float0) for a in every.pick(leaves)]
    wanted = mode.of(moving, values[0])[1]
    names, whose = mode.of((every.moving_names, "the argument's"), (outputs[0], "the output's"))[1]
    yield from _same(check, setting, names, got, wanted, whose, any_dtype, cast=mode is not FORWARD)


def _typed(leaf: Any, dtype: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, dtype_in(leaf, dtype))


def _has_tangent(leaf: Any) -> bool:
    return not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _same(
    check: str,
    setting: str,
    names: Sequence[str],
    got: Leaves,
    wanted: Leaves,
    whose: str,
    any_dtype: bool = False,
    cast: bool = False,
) -> Iterator[Row]:
    for name, g, w in zip(names, got, wanted, strict=True):
        same = g.shape == w.shape and (any_dtype or g.dtype == w.dtype)
        note = "" if same else f"in {setting} it is {g.dtype}{list(g.shape)}, {whose} is {w.dtype}{list(w.shape)}"
        if not same and cast and g.shape == w.shape:
            note += ": a cotangent must be cast to the argument's dtype"
        # An array of another shape, unlike one of another dtype, cannot be compared.
        yield Row(check, name, same, note=note, comparable=g.shape == w.shape)
