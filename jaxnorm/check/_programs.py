"""What is computed: the programs of the function under check, of the truth, and of a low precision.

One program of the function computes everything that is compared in float64 (values, derivatives for several incoming
ones, every transformation, both second derivatives). One of the reference computes the truth, in a loop over the points
that this needs: an argument list and an incoming derivative each. Functions are static arguments of these programs, so
that checking one function again, with other values of the same shapes, compiles nothing.

Reverse and forward mode differ in what comes in and what goes out: cotangents of the outputs and of the arguments, or
tangents of the arguments and of the outputs.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnorm.check._cost import compiled_cost
from jaxnorm.check._problem import Flat, Layout, Leaves, cast, is_float, stack, traced
from jaxnorm.check._quick import compiler_options, quick_jit

MIX = (0.75, -1.5)  # of two incoming derivatives, for linearity
Parts = dict[str, Callable[[], Any]]
Point = tuple[Leaves, Leaves]  # all leaves, incoming derivatives


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Failed:
    """What a part raised while it was traced, in the place of its result."""

    text: str

    @classmethod
    def by(cls, error: Exception) -> "Failed":
        """From an exception, in one line."""
        return cls(f"raises {type(error).__name__}: {(str(error).splitlines() or [''])[0]}")


def vjp_at(layout: Layout, flat: Flat, leaves: Leaves, cotangent: Leaves) -> tuple[Leaves, Leaves, Leaves]:
    """Floating-point outputs, other outputs, and the cotangents of the leaves that move."""
    moving = layout.pick(leaves)
    floats, pullback, others = jax.vjp(lambda moved: flat(layout.put(leaves, moved)), moving, has_aux=True)
    # A function and its reference may differ in the outputs' dtypes: one of them computes in float32 always.
    return floats, others, pullback([c.astype(f.dtype) for c, f in zip(cotangent, floats, strict=True)])[0]


def jvp_at(layout: Layout, flat: Flat, leaves: Leaves, tangent: Leaves) -> tuple[Leaves, Leaves, Leaves]:
    """Floating-point outputs, other outputs, and the tangents of the floating-point ones."""
    moving = layout.pick(leaves)
    floats, tangents, others = jax.jvp(
        lambda moved: flat(layout.put(leaves, moved)), (moving,), (tangent,), has_aux=True
    )
    return floats, others, tangents


@dataclasses.dataclass(frozen=True)
class Mode:
    """Reverse or forward: what comes in, and what goes out."""

    name: str
    at: Callable[[Layout, Flat, Leaves, Leaves], tuple[Leaves, Leaves, Leaves]]
    second: tuple[str, str]  # second derivatives: in reverse and in forward mode

    def of(self, moving: Any, outputs: Any) -> tuple[Any, Any]:
        """What comes in and what goes out: as the outputs and the arguments, or the other way round."""
        return (outputs, moving) if self is REVERSE else (moving, outputs)


@functools.lru_cache(maxsize=256)
def traced_at(mode: Mode, fun: Callable[..., Any], layout: Layout) -> Any:
    """`mode.at` of leaves and incoming derivatives as a program, whose trace is kept: every check uses it that does not
    ask what a rule makes of a transformation.
    """
    return jax.jit(functools.partial(mode.at, layout, layout.flat(fun)))


REVERSE = Mode("cotangent", vjp_at, ("grad of grad", "jvp of grad"))
FORWARD = Mode("tangent", jvp_at, ("grad of jvp", "jvp of jvp"))


class Inputs(NamedTuple):
    """Random numbers for one problem, all in float64."""

    second: Leaves  # other arguments of the same signs and order: nothing near a kink or a tie changes sides
    incoming: list[Leaves]  # one for each seed
    of_outgoing: Leaves  # cotangents of the outgoing derivatives
    tangents: tuple[Leaves, Leaves]  # of the arguments and of the incoming derivative

    @classmethod
    def of(cls, mode: Mode, layout: Layout, leaves: Leaves, outputs: Leaves, seeds: int, seed: int) -> "Inputs":
        """For outputs of these shapes."""
        rng = np.random.default_rng(seed)

        def normal(shapes: Leaves) -> Leaves:
            return [rng.normal(size=s.shape).astype(s.dtype) for s in shapes]  # some outputs are float32 always

        moving = layout.pick(leaves)
        incoming, outgoing = mode.of(moving, outputs)
        every = [normal(incoming) for _ in range(seeds)]
        return cls([_second(a) for a in leaves], every, normal(outgoing), (normal(moving), normal(incoming)))

    def alone(self) -> list[Leaves]:
        """The first incoming derivative of one array, zero for the others, for each of several arrays."""
        first = self.incoming[0]
        one_of = range(len(first)) if len(first) > 1 else ()
        return [[c if i == k else jnp.zeros_like(c) for i, c in enumerate(first)] for k in one_of]


def _second(leaf: Any) -> Any:
    if not isinstance(leaf, np.ndarray):  # a random key
        return leaf
    if is_float(leaf):
        return 0.75 * leaf
    return np.roll(leaf, 1, -1) if leaf.ndim else leaf  # the same integers or booleans elsewhere


def _first_order(mode: Mode, layout: Layout, fun: Any, names: Any, leaves: Leaves, inputs: Inputs) -> Parts:
    """The values, and the derivatives for many incoming ones, together and from parts."""
    flat, (first, second) = layout.flat(fun), inputs.incoming[:2]
    mixed = [MIX[0] * a + MIX[1] * b for a, b in zip(first, second, strict=True)]
    incoming = [*inputs.incoming, *inputs.alone(), mixed, [jnp.zeros_like(c) for c in first]]

    def output(k: int) -> Callable[[], Leaves]:
        return lambda: vjp_at(layout, lambda v: (flat(v)[0][k : k + 1], []), leaves, first[k : k + 1])[2]

    def argument(k: int, i: int) -> Callable[[], Leaves]:
        alone = first if mode is REVERSE else first[k : k + 1]
        return lambda: mode.at(dataclasses.replace(layout, moving=(i,)), flat, leaves, alone)[2]

    many = functools.partial(traced_at(mode, fun, layout), leaves)
    parts: Parts = {
        "plain": lambda: layout.flat(traced(fun))(leaves),
        "many": lambda: jax.lax.map(many, stack(incoming)),
    }
    if mode is REVERSE:
        parts |= {f"only {name} used": output(k) for k, name in enumerate(names) if len(names) > 1}
    else:
        parts["reverse mode"] = lambda: vjp_at(layout, flat, leaves, inputs.of_outgoing)[2]
    alone = {f"only {layout.names[i]}": argument(k, i) for k, i in enumerate(layout.moving)}
    return parts | (alone if len(alone) > 1 else {})


def _transforms(mode: Mode, layout: Layout, flat: Flat, leaves: Leaves, inputs: Inputs) -> Parts:
    """Value and derivatives under checkpoint, scan and vmap (and jit: all of this is)."""
    first, second = inputs.incoming[:2]

    def each(i: int) -> Callable[[], Any]:
        both = stack([leaves[i], inputs.second[i]])
        return lambda: jax.vmap(lambda v: mode.at(layout, flat, [*leaves[:i], v, *leaves[i + 1 :]], first))(both)

    together, pair = functools.partial(mode.at, layout, flat), ([leaves, inputs.second], [first, second])
    parts: Parts = {
        "checkpoint": lambda: mode.at(layout, jax.checkpoint(flat), leaves, first),
        "scan": lambda: jax.lax.scan(lambda c, p: (c, together(*p)), None, tuple(map(stack, pair)))[1],
        "vmap over all": lambda: jax.vmap(together, (-1, 0))(stack(pair[0], -1), stack(pair[1])),
    }
    return parts | {f"vmap over {name}": each(i) for i, name in enumerate(layout.names)}


def _second_order(mode: Mode, layout: Layout, fun: Any, leaves: Leaves, inputs: Inputs) -> Parts:
    """Both second derivatives: of the outgoing derivatives as a function of the arguments and the incoming ones."""

    def outgoing(moved: Leaves, incoming: Leaves) -> Leaves:
        found = traced_at(mode, fun, layout)(layout.put(leaves, moved), incoming)[2]
        return [d.astype(t.dtype) for d, t in zip(found, inputs.of_outgoing, strict=True)]

    at = layout.pick(leaves), inputs.incoming[0]
    results = (
        lambda: jax.vjp(outgoing, *at)[1](inputs.of_outgoing),
        lambda: jax.jvp(outgoing, at, inputs.tangents)[1],
    )
    return dict(zip(mode.second, results, strict=True))


def _run(parts: Parts) -> dict[str, Any]:
    """The results of all parts; whatever one raises under a transformation is its result."""
    results = {}
    for name, part in parts.items():
        try:
            results[name] = part()
        except Exception as error:
            results[name] = Failed.by(error)
    return results


@quick_jit(static_argnums=(0, 1, 2, 3, 4))
def ours(
    mode: Mode,
    fun: Callable[..., Any],
    layout: Layout,
    outputs: tuple[str, ...],
    chosen: frozenset[str],
    leaves: Leaves,
    inputs: Inputs,
) -> dict[str, Any]:
    """Everything that is asked of the function in float64."""
    parts = _first_order(mode, layout, fun, outputs, leaves, inputs)
    parts |= _transforms(mode, layout, layout.flat(fun), leaves, inputs) if "transforms" in chosen else {}
    return _run(parts | (_second_order(mode, layout, fun, leaves, inputs) if "second order" in chosen else {}))


@quick_jit(static_argnums=(0, 1, 2, 3))
def truth(
    mode: Mode,
    reference: Callable[..., Any],
    layout: Layout,
    chosen: frozenset[str],
    leaves: Leaves,
    inputs: Inputs,
    points: list[Point],
) -> dict[str, Any]:
    """Values and derivatives at every point, and second derivatives."""
    at = traced_at(mode, reference, layout)
    stacked = tuple(stack(list(side)) for side in zip(*points, strict=True))
    found = {"points": jax.lax.map(lambda point: at(*point), stacked)}
    if mode is FORWARD:
        found["reverse mode"] = vjp_at(layout, layout.flat(reference), leaves, inputs.of_outgoing)[2]
    parts = _second_order(mode, layout, reference, leaves, inputs) if "second order" in chosen else {}
    return found | {name: part() for name, part in parts.items()}


def points(layout: Layout, incoming: list[str], leaves: Leaves, inputs: Inputs) -> dict[str, Point]:
    """Where the truth is wanted, by the check that wants it."""
    first, second = inputs.incoming[:2]
    found: dict[str, Point] = {f"seed {s}": (leaves, g) for s, g in enumerate(inputs.incoming)}
    found |= {f"from {name}": (leaves, g) for name, g in zip(incoming, inputs.alone(), strict=False)}
    for i, name in enumerate(layout.names):
        found[f"vmap over {name}"] = [*leaves[:i], inputs.second[i], *leaves[i + 1 :]], first
    return found | {"second": (inputs.second, second)}


class Low(NamedTuple):
    """Results in a low precision."""

    dtype: np.dtype
    results: Leaves  # float outputs, then outgoing derivatives
    point: Point  # where they were computed: rounded, in float64
    cost: dict[str, float | None]


def low_precision(
    mode: Mode, fun: Callable[..., Any], layout: Layout, leaves: Leaves, inputs: Inputs, dtype: Any, *, quick: bool
) -> Low | None:
    """The function in a low precision, compiled `quick`ly or as anyone would; None if it does not take it."""
    rounded = cast(leaves, dtype)
    with jax.enable_x64(False):
        try:
            outputs = jax.eval_shape(layout.flat(traced(fun)), rounded)[0]
        except Exception:  # the check of structure has noted it
            return None
        taken = mode.of(layout.pick(rounded), outputs)[0]
        incoming = [np.asarray(c).astype(dtype) for c in inputs.incoming[0]]  # the same for function and reference
        incoming = [c.astype(t.dtype) for c, t in zip(incoming, taken, strict=True)]
        kinds = tuple((a.shape, a.dtype) for a in (*rounded, *incoming))
        products = getattr(jax.config, "jax_default_matmul_precision")  # noqa: B009
        try:
            compiled, cost = _compiled(mode, fun, layout, kinds, len(leaves), products, quick)
        except Exception:  # the same
            return None
        floats, _, outgoing = jax.device_get(compiled(rounded, incoming))
    wide = [r.astype(np.float64) if is_float(a) else a for a, r in zip(leaves, rounded, strict=True)]
    point = wide, [c.astype(g.dtype) for c, g in zip(incoming, inputs.incoming[0], strict=True)]
    return Low(np.dtype(dtype), [*floats, *outgoing], point, cost)


@functools.lru_cache(maxsize=64)
def _compiled(
    mode: Mode,
    fun: Callable[..., Any],
    layout: Layout,
    kinds: tuple[Any, ...],
    leaves: int,
    precision: Any,
    quick: bool,
) -> tuple[Any, Any]:
    """Value and derivatives as a compiled program, and what it costs; `precision` is that of products, in force."""
    arrays = [jax.ShapeDtypeStruct(*kind) for kind in kinds]
    options = compiler_options() if quick else None
    compiled = traced_at(mode, fun, layout).lower(arrays[:leaves], arrays[leaves:]).compile(options)
    return compiled, compiled_cost(compiled)
