"""The programs of a proof, and their inputs: unknowns in place of the arguments' numbers."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend import core

from jaxnorm.check._problem import Layout, Leaves, flatten, is_float
from jaxnorm.check._programs import vjp_at
from jaxnorm.check._proof import meshes
from jaxnorm.check._proof.choices import Choices, choice, on_platform
from jaxnorm.check._proof.control import choices, run
from jaxnorm.check._proof.machine import Machine, Undecided, Value
from jaxnorm.check._proof.residues import Field

_MODULES = (meshes,)  # it fills the table of rules
Platforms = tuple[str | None, ...]  # None: whatever the programs do not name


@dataclasses.dataclass(frozen=True)
class Program:
    """Traced functions, each of the first so many of all inputs, and their outputs one after the other."""

    parts: tuple[core.ClosedJaxpr, ...]

    def run(self, m: Machine, inputs: list[Value]) -> list[Value]:
        """Its outputs."""
        outputs = [run(m, part.jaxpr, part.consts, inputs[: len(part.jaxpr.invars)]) for part in self.parts]
        return [value for values in outputs for value in values]

    def choices(self) -> set[Choices]:
        """Every choice by platform that it makes."""
        return set().union(*(choices(part.jaxpr) for part in self.parts))


@dataclasses.dataclass(frozen=True)
class Problem:
    """Two programs that should agree."""

    outputs: tuple[str, ...]  # names of what both compute
    formulations: dict[Platforms, Program]  # the function's, by the platforms for which they are
    reference: Program
    value: Program  # the reference's value alone, which takes most roots that the others take
    shadows: list[np.ndarray]  # of the inputs: arguments, then incoming cotangents
    arguments: int  # how many of them are arguments
    tree: Any  # that these make

    def at(self, args: tuple[Any, ...]) -> "Problem | None":
        """The same for other arguments; None if these have other shapes."""
        arrays, tree = jax.tree.flatten(args)
        leaves = [np.asarray(leaf) for leaf in arrays]
        wide = [leaf.astype(np.float64) if is_float(leaf) else leaf for leaf in leaves]
        old = self.shadows[: self.arguments]
        kinds = [[(a.shape, a.dtype) for a in arrays] for arrays in (wide, old)]
        if tree != self.tree or kinds[0] != kinds[1]:
            return None
        return dataclasses.replace(self, shadows=[*wide, *self.shadows[self.arguments :]])

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
    (ours, outputs), (theirs, wanted) = (_value(layout, f, leaves) for f in (fun, reference))
    if (got := _shapes(outputs)) != _shapes(wanted):
        raise ValueError(f"reference must return arrays of fun's shapes, {got}, got {_shapes(wanted)}")
    g = [rng.normal(size=s.shape).astype(s.dtype) for s in outputs.values() if is_float(s)]
    h = [rng.normal(size=leaves[i].shape) for i in layout.moving] if order > 1 else []
    base, of_theirs = (_differentiated(layout, f, leaves, g) for f in (fun, reference))
    second = functools.partial(_differentiated_again, layout, leaves, g, h)
    whole = Program((theirs, of_theirs, *second(of_theirs, None)))
    formulations = _formulations(Program((ours, base)), functools.partial(second, base), whole.choices())
    wide = [a.astype(np.float64) if is_float(a) else a for a in (*leaves, *g, *h)]
    return Problem(
        _names(layout, outputs, order), formulations, whole, Program((theirs,)), wide, len(leaves), layout.tree
    )


def _value(layout: Layout, fun: Callable[..., Any], leaves: Leaves) -> tuple[core.ClosedJaxpr, dict[str, Any]]:
    """A function traced, and the shapes of its outputs by name: those that are floating-point come first in both."""
    of_leaves = jax.make_jaxpr(lambda leaves: fun(*jax.tree.unflatten(layout.tree, leaves)), return_shape=True)
    traced, outputs = of_leaves(leaves)
    named = [(f"output{jax.tree_util.keystr(path)}", s) for path, s in jax.tree_util.tree_flatten_with_path(outputs)[0]]
    order = sorted(range(len(named)), key=lambda i: not is_float(named[i][1]))
    outvars = [traced.jaxpr.outvars[i] for i in order]
    return traced.replace(jaxpr=traced.jaxpr.replace(outvars=outvars)), dict(named[i] for i in order)


def _shapes(outputs: dict[str, Any]) -> list[list[tuple[int, ...]]]:
    return [[s.shape for s in outputs.values() if is_float(s) == floating] for floating in (True, False)]


def _differentiated(layout: Layout, fun: Callable[..., Any], leaves: Leaves, g: Leaves) -> core.ClosedJaxpr:
    """The value and cotangents under `jax.vjp`."""
    return jax.make_jaxpr(functools.partial(vjp_at, layout, layout.flat(fun)))(leaves, g)


def _differentiated_again(
    layout: Layout, leaves: Leaves, g: Leaves, h: Leaves, first: core.ClosedJaxpr, platform: str | None
) -> tuple[core.ClosedJaxpr, ...]:
    """The cotangents of the cotangents, where there is `h`: JAX's derivative of what was traced for the first."""
    if not h:
        return ()

    def second(leaves: Leaves, g: Leaves, h: Leaves) -> Any:
        def cotangents(moved: Leaves, g: Leaves) -> Leaves:
            return on_platform(first, platform, [*layout.put(leaves, moved), *g], slice(-len(moved), None))

        return jax.vjp(cotangents, layout.pick(leaves), g)[1](h)

    return (jax.make_jaxpr(second)(leaves, g, h),)


def _formulations(
    base: Program, second: Callable[[str | None], tuple[core.ClosedJaxpr, ...]], more: set[Choices]
) -> dict[Platforms, Program]:
    """A program for each set of platforms that make the same choices; `more` may name further ones."""
    named = _named(base.choices() | more)
    found: dict[Platforms, Program] = {}
    for group in _alike([None, *sorted(named)], base.choices()):
        whole = Program((*base.parts, *second(group[0])))
        every = whole.choices()
        late = sorted(_named(every) - named) if group[0] is None else []
        found |= dict.fromkeys(_alike([*group, *late], every), whole)
    return found


def _named(every: set[Choices]) -> set[str]:
    return {name for choices in every for names in choices if names is not None for name in names}


def _alike(platforms: Sequence[str | None], every: set[Choices]) -> list[Platforms]:
    """Platforms that make the same choices, together."""
    groups: dict[tuple[int, ...], list[str | None]] = {}
    for platform in platforms:
        groups.setdefault(tuple(choice(choices, platform) for choices in every), []).append(platform)
    return [tuple(group) for group in groups.values()]


def _names(layout: Layout, outputs: dict[str, Any], order: int) -> tuple[str, ...]:
    names = list(outputs)
    moving = [f"cotangent of {name}" for name in layout.moving_names]
    names = [*names, *(f"{name} under vjp" for name in names), *moving]
    if order > 1:
        incoming = [*layout.moving_names, *(f"the cotangent of {name}" for name, s in outputs.items() if is_float(s))]
        names += [f"second cotangent of {name}" for name in incoming]
    return tuple(names)
