"""What is computed: the programs of the function under check, of the truth, and of a low precision.

One program of the function computes everything that is compared in float64 (values, cotangents of several incoming
ones, every transformation, both second derivatives). One of the reference computes the truth, in a loop over the points
that this needs: an argument list and an incoming cotangent each. Functions are static arguments of these programs, so
that checking one function again, with other values of the same shapes, compiles nothing.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnorm.check._cost import compiled_cost
from jaxnorm.check._problem import QUICK, Flat, Layout, Leaves, cast, is_float

MIX = (0.75, -1.5)  # of two cotangents, for linearity
Parts = dict[str, Callable[[], Any]]
Point = tuple[Leaves, Leaves]  # all leaves, incoming cotangents


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Failed:
    """What a part raised while it was traced, in the place of its result."""

    text: str

    @classmethod
    def by(cls, error: Exception) -> "Failed":
        """From an exception, in one line."""
        return cls(f"raises {type(error).__name__}: {(str(error).splitlines() or [''])[0]}")


class Inputs(NamedTuple):
    """Random numbers for one problem, all in float64."""

    second: Leaves  # other arguments of the same signs and order: nothing near a kink or a tie changes sides
    cotangents: list[Leaves]  # one for each seed
    of_cotangents: Leaves  # incoming cotangents of the outgoing ones
    tangents: tuple[Leaves, Leaves]  # of the arguments and of the incoming cotangent

    @classmethod
    def of(cls, layout: Layout, leaves: Leaves, outputs: Leaves, seeds: int, seed: int) -> "Inputs":
        """For outputs of these shapes."""
        rng = np.random.default_rng(seed)

        def normal(shapes: Leaves) -> Leaves:
            return [rng.normal(size=s.shape).astype(s.dtype) for s in shapes]  # some outputs are float32 always

        moving = layout.pick(leaves)
        cotangents = [normal(outputs) for _ in range(seeds)]
        return cls([_second(a) for a in leaves], cotangents, normal(moving), (normal(moving), normal(outputs)))

    def alone(self) -> list[Leaves]:
        """The first cotangent on one output, zero on the others, for each of several outputs."""
        first = self.cotangents[0]
        one_of = range(len(first)) if len(first) > 1 else ()
        return [[c if i == k else jnp.zeros_like(c) for i, c in enumerate(first)] for k in one_of]


def _second(leaf: Any) -> Any:
    if not isinstance(leaf, np.ndarray):  # a random key
        return leaf
    if is_float(leaf):
        return 0.75 * leaf
    return np.roll(leaf, 1, -1) if leaf.ndim else leaf  # the same integers or booleans elsewhere


def vjp_at(layout: Layout, flat: Flat, leaves: Leaves, cotangent: Leaves) -> tuple[Leaves, Leaves, Leaves]:
    """Floating-point outputs, other outputs, and the cotangents of the leaves that move."""
    moving = layout.pick(leaves)
    floats, pullback, others = jax.vjp(lambda moved: flat(layout.put(leaves, moved)), moving, has_aux=True)
    return floats, others, pullback(cotangent)[0]


def stack(trees: list[Any], axis: int = 0) -> Any:
    """Equal pytrees as one, along a new axis."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves, axis), *trees)


def _first_order(layout: Layout, flat: Flat, outputs: tuple[str, ...], leaves: Leaves, inputs: Inputs) -> Parts:
    """The values, and the cotangents of many incoming ones, together and from parts."""
    first, second = inputs.cotangents[:2]
    mixed = [MIX[0] * a + MIX[1] * b for a, b in zip(first, second, strict=True)]
    incoming = [*inputs.cotangents, *inputs.alone(), mixed, [jnp.zeros_like(c) for c in first]]

    def many() -> Leaves:
        moving = layout.pick(leaves)
        _, pullback, _ = jax.vjp(lambda moved: flat(layout.put(leaves, moved)), moving, has_aux=True)
        return jax.lax.map(lambda g: pullback(g)[0], stack(incoming))

    def output(k: int) -> Callable[[], Leaves]:
        return lambda: vjp_at(layout, lambda v: (flat(v)[0][k : k + 1], []), leaves, first[k : k + 1])[2]

    def argument(i: int) -> Callable[[], Leaves]:
        return lambda: vjp_at(dataclasses.replace(layout, moving=(i,)), flat, leaves, first)[2]

    parts: Parts = {"plain": lambda: flat(leaves), "vjp": lambda: vjp_at(layout, flat, leaves, first), "many": many}
    parts |= {f"only {name} used": output(k) for k, name in enumerate(outputs) if len(outputs) > 1}
    return parts | {f"only {layout.names[i]}": argument(i) for i in layout.moving if len(layout.moving) > 1}


def _transforms(layout: Layout, flat: Flat, leaves: Leaves, inputs: Inputs) -> Parts:
    """Value and cotangents under checkpoint, scan and vmap (and jit: all of this is)."""
    first, second = inputs.cotangents[:2]

    def each(i: int) -> Callable[[], Any]:
        both = stack([leaves[i], inputs.second[i]])
        return lambda: jax.vmap(lambda v: vjp_at(layout, flat, [*leaves[:i], v, *leaves[i + 1 :]], first))(both)

    together, pair = functools.partial(vjp_at, layout, flat), ([leaves, inputs.second], [first, second])
    parts: Parts = {
        "checkpoint": lambda: vjp_at(layout, jax.checkpoint(flat), leaves, first),
        "scan": lambda: jax.lax.scan(lambda c, p: (c, together(*p)), None, tuple(map(stack, pair)))[1],
        "vmap over all": lambda: jax.vmap(together, (-1, 0))(stack(pair[0], -1), stack(pair[1])),
    }
    return parts | {f"vmap over {name}": each(i) for i, name in enumerate(layout.names)}


def _second_order(layout: Layout, flat: Flat, leaves: Leaves, inputs: Inputs) -> Parts:
    """grad of grad and jvp of grad, of the cotangents as a function of the arguments and the incoming cotangent."""

    def cotangents(moved: Leaves, g: Leaves) -> Leaves:
        return vjp_at(layout, flat, layout.put(leaves, moved), g)[2]

    at = layout.pick(leaves), inputs.cotangents[0]
    return {
        "grad of grad": lambda: jax.vjp(cotangents, *at)[1](inputs.of_cotangents),
        "jvp of grad": lambda: jax.jvp(cotangents, at, inputs.tangents)[1],
    }


def _run(parts: Parts) -> dict[str, Any]:
    """The results of all parts; whatever one raises under a transformation is its result."""
    results = {}
    for name, part in parts.items():
        try:
            results[name] = part()
        except Exception as error:
            results[name] = Failed.by(error)
    return results


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3), compiler_options=QUICK)
def ours(
    fun: Callable[..., Any],
    layout: Layout,
    outputs: tuple[str, ...],
    chosen: frozenset[str],
    leaves: Leaves,
    inputs: Inputs,
) -> dict[str, Any]:
    """Everything that is asked of the function in float64."""
    flat = layout.flat(fun)
    parts = _first_order(layout, flat, outputs, leaves, inputs)
    parts |= _transforms(layout, flat, leaves, inputs) if "transforms" in chosen else {}
    return _run(parts | (_second_order(layout, flat, leaves, inputs) if "second order" in chosen else {}))


@functools.partial(jax.jit, static_argnums=(0, 1, 2), compiler_options=QUICK)
def truth(
    reference: Callable[..., Any],
    layout: Layout,
    chosen: frozenset[str],
    leaves: Leaves,
    inputs: Inputs,
    points: list[Point],
) -> dict[str, Any]:
    """Values and cotangents at every point, and second derivatives."""
    flat = layout.flat(reference)
    stacked = tuple(stack(list(side)) for side in zip(*points, strict=True))
    found = {"points": jax.lax.map(lambda point: vjp_at(layout, flat, *point), stacked)}
    parts = _second_order(layout, flat, leaves, inputs) if "second order" in chosen else {}
    return found | {name: part() for name, part in parts.items()}


def points(layout: Layout, outputs: tuple[str, ...], leaves: Leaves, inputs: Inputs) -> dict[str, Point]:
    """Where the truth is wanted, by the check that wants it."""
    first, second = inputs.cotangents[:2]
    found: dict[str, Point] = {f"seed {s}": (leaves, g) for s, g in enumerate(inputs.cotangents)}
    found |= {f"from {name}": (leaves, g) for name, g in zip(outputs, inputs.alone(), strict=False)}
    for i, name in enumerate(layout.names):
        found[f"vmap over {name}"] = [*leaves[:i], inputs.second[i], *leaves[i + 1 :]], first
    return found | {"second": (inputs.second, second)}


class Low(NamedTuple):
    """Results in a low precision."""

    dtype: np.dtype
    results: Leaves  # float outputs, then cotangents
    point: Point  # where they were computed: rounded, in float64
    cost: dict[str, float | None]


def low_precision(fun: Callable[..., Any], layout: Layout, leaves: Leaves, inputs: Inputs, dtype: Any) -> Low | None:
    """The function in a low precision, compiled as anyone would; None if it does not take it."""
    rounded = cast(leaves, dtype)
    with jax.enable_x64(False):
        try:
            outputs = jax.eval_shape(layout.flat(fun), rounded)[0]
        except Exception:  # the check of structure has noted it
            return None
        cotangent = [np.asarray(c).astype(o.dtype) for c, o in zip(inputs.cotangents[0], outputs, strict=True)]
        kinds = tuple((a.shape, a.dtype) for a in (*rounded, *cotangent))
        compiled, cost = _compiled(fun, layout, kinds, len(leaves))
        floats, _, cotangents = jax.device_get(compiled(rounded, cotangent))
    wide = [r.astype(np.float64) if is_float(a) else a for a, r in zip(leaves, rounded, strict=True)]
    point = wide, [c.astype(g.dtype) for c, g in zip(cotangent, inputs.cotangents[0], strict=True)]
    return Low(np.dtype(dtype), [*floats, *cotangents], point, cost)


@functools.lru_cache(maxsize=16)
def _compiled(fun: Callable[..., Any], layout: Layout, kinds: tuple[Any, ...], leaves: int) -> tuple[Any, Any]:
    """Value and cotangents as a compiled program, and what it costs."""
    arrays = [jax.ShapeDtypeStruct(*kind) for kind in kinds]
    program = jax.jit(functools.partial(vjp_at, layout, layout.flat(fun)))
    compiled = program.lower(arrays[:leaves], arrays[leaves:]).compile()
    return compiled, compiled_cost(compiled)
