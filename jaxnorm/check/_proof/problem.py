"""The programs of a proof, and their inputs: unknowns in place of the arguments' numbers."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jaxnorm.check._problem import Layout, Leaves, flatten, is_float, output_names
from jaxnorm.check._programs import vjp_at
from jaxnorm.check._proof.control import run
from jaxnorm.check._proof.machine import Machine, Undecided, Value
from jaxnorm.check._proof.residues import Field


@dataclasses.dataclass(frozen=True)
class Program:
    """A traced function of all inputs."""

    closed: Any

    def run(self, m: Machine, inputs: list[Value]) -> list[Value]:
        """Its outputs."""
        return run(m, self.closed.jaxpr, self.closed.consts, inputs)


@dataclasses.dataclass(frozen=True)
class Problem:
    """Two programs that should agree."""

    outputs: tuple[str, ...]  # names of what both compute
    fun: Program
    reference: Program
    value: Program  # the reference's value alone, which takes most roots that the others take
    shadows: list[np.ndarray]  # of the inputs: arguments, then incoming cotangents
    arguments: int  # how many of them are arguments

    def unknowns(self, *, ties: bool) -> tuple[int, list[np.ndarray | None]]:
        """How many unknowns there are, and for each input the unknown of each element, -1 where it is none.

        Every number is an unknown of its own; with `ties` equal numbers of an argument are one, and integers are what
        they are.
        """
        count, places = 0, []
        for i, shadow in enumerate(self.shadows):
            if not is_float(shadow):
                places.append(None)
            elif ties and i < self.arguments:
                distinct, at = np.unique(shadow, return_inverse=True)
                of = count + np.arange(len(distinct))
                of[distinct == np.round(distinct)] = -1
                places.append(of[at].reshape(shadow.shape))
                count += len(distinct)
            else:
                places.append(count + np.arange(shadow.size).reshape(shadow.shape))
                count += shadow.size
        return count, places

    def inputs(self, m: Machine, drawn: Field, places: list[np.ndarray | None]) -> list[Value]:
        """The inputs as values, with the unknowns replaced by what was drawn for them."""
        values = []
        for shadow, at in zip(self.shadows, places, strict=True):
            if at is None:
                values.append(m.exact(shadow))
                continue
            special, fixed = ~np.isfinite(shadow), at < 0
            field = m.domain.each(lambda level, at=at: level[at], drawn)
            if fixed.any():
                field = m.select(fixed, m.constant(np.where(fixed & ~special, shadow, 0.0)).field, field)
            values.append(Value(shadow, field, special if special.any() else None, (1, 0)))
        return values


def problem_of(
    fun: Callable[..., Any],
    reference: Callable[..., Any],
    args: tuple[Any, ...],
    argnums: Any,
    order: int,
    rng: np.random.Generator,
) -> Problem:
    """Traces both sides, in float64."""
    layout, leaves = flatten(fun, args, argnums)
    if any(not isinstance(leaf, np.ndarray) for leaf in leaves):
        raise Undecided("a random key")
    names = output_names(fun, layout, leaves)
    structs, wanted = (jax.eval_shape(layout.flat(f), leaves) for f in (fun, reference))
    if (got := _shapes(structs)) != _shapes(wanted):
        raise ValueError(f"reference must return arrays of fun's shapes, {got}, got {_shapes(wanted)}")
    g = [rng.normal(size=s.shape).astype(s.dtype) for s in structs[0]]
    h = [rng.normal(size=leaves[i].shape) for i in layout.moving] if order > 1 else []
    ours, theirs = (Program(jax.make_jaxpr(_whole(layout, f, order))(leaves, g, h)) for f in (fun, reference))
    value = Program(jax.make_jaxpr(lambda leaves, g, h: layout.flat(reference)(leaves)[0])(leaves, g, h))
    wide = [a.astype(np.float64) if is_float(a) else a for a in (*leaves, *g, *h)]
    return Problem(_names(layout, names, order), ours, theirs, value, wide, len(leaves))


def _shapes(structs: Any) -> list[list[tuple[int, ...]]]:
    return [[s.shape for s in part] for part in structs]


def _whole(layout: Layout, fun: Callable[..., Any], order: int) -> Callable[..., Any]:
    """The value, the value and cotangents under `jax.vjp`, and for order 2 the cotangents of those cotangents."""
    flat = layout.flat(fun)

    def whole(leaves: Leaves, g: Leaves, h: Leaves) -> Any:
        first = *flat(leaves), *vjp_at(layout, flat, leaves, g)
        if order == 1:
            return first
        moving = layout.pick(leaves)
        pullback = jax.vjp(lambda moved, g: vjp_at(layout, flat, layout.put(leaves, moved), g)[2], moving, g)[1]
        return *first, pullback(h)

    return whole


def _names(layout: Layout, outputs: tuple[tuple[str, ...], tuple[str, ...]], order: int) -> tuple[str, ...]:
    floats, others = outputs
    names = [*floats, *others]
    moving = [f"cotangent of {name}" for name in layout.moving_names]
    names = [*names, *(f"{name} under vjp" for name in names), *moving]
    if order > 1:
        incoming = [*layout.moving_names, *(f"the cotangent of {name}" for name in floats)]
        names += [f"second cotangent of {name}" for name in incoming]
    return tuple(names)
