"""Programs over a mesh of devices, simulated: every device's block lies along axes of one array, by `jax.vmap`.

`vmap` with an axis name turns collectives into reductions, gathers and indices along that axis.
"""

import functools
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.extend import core

from jaxnorm.check._proof.control import BODIES, CALLS, run
from jaxnorm.check._proof.machine import Machine, Undecided, Value, is_special
from jaxnorm.check._proof.reductions import extreme, pick, total
from jaxnorm.check._proof.rules import rule

Parameters = dict[str, Any]
Axes = tuple[tuple[str, int], ...]  # names and sizes of a mesh's axes
_SAME = ("pvary", "pcast", "sharding_constraint", "reshard", "mesh_cast")  # of what each device holds
_SUMS = {"psum": lax.psum, "psum_invariant": lax.psum}


@rule("shard_map")
def _shard_map(m: Machine, parameters: Parameters, *values: Value) -> list[Value]:
    manual = parameters["newly_manual_axes"]
    axes = tuple((name, size) for name, size in parameters["mesh"].shape.items() if name in manual)
    blocks = [_split(m, v, spec, axes) for v, spec in zip(values, parameters["in_specs"], strict=True)]
    body = _on_every_device(parameters["jaxpr"], axes)
    outputs = run(m, body.jaxpr, body.consts, blocks)
    return [_joined(m, v, spec, axes) for v, spec in zip(outputs, parameters["out_specs"], strict=True)]


@functools.lru_cache(64)
def _on_every_device(body: Any, axes: Axes) -> core.ClosedJaxpr:
    """The body for all devices at once: a leading axis for each of the mesh's."""
    body, constants = _opened(body)

    def of(*arguments: Any) -> list[Any]:
        return _evaluated(body, constants, arguments)

    for name, size in reversed(axes):
        of = jax.vmap(of, axis_name=name, axis_size=size)
    sizes = tuple(size for _, size in axes)
    blocks = [jax.ShapeDtypeStruct(sizes + v.aval.shape, v.aval.dtype) for v in body.invars]
    try:
        return jax.make_jaxpr(of)(*blocks)
    except (NotImplementedError, TypeError, ValueError) as error:  # of `vmap`: an operation without a rule for it
        raise Undecided(f"shard_map, whose body has no simulation: {str(error).splitlines()[0]}") from None


def _opened(body: Any) -> tuple[Any, Any]:
    return (body.jaxpr, body.consts) if isinstance(body, core.ClosedJaxpr) else (body, ())


def _evaluated(jaxpr: Any, constants: Any, arguments: Any) -> list[Any]:
    """A body for JAX to trace, without what it says of the mesh."""
    known: dict[Any, Any] = dict(zip(jaxpr.constvars, constants, strict=True))
    known.update(zip(jaxpr.invars, arguments, strict=True))

    def value_of(atom: Any) -> Any:
        return atom.val if isinstance(atom, core.Literal) else known[atom]

    for equation in jaxpr.eqns:
        values, parameters = [value_of(atom) for atom in equation.invars], equation.params
        name, primitive = equation.primitive.name, equation.primitive
        if name in _SAME:
            results = values
        elif name in _SUMS and parameters.get("axis_index_groups") is None:
            results = [_SUMS[name](value, parameters["axes"]) for value in values]
        elif name in CALLS:
            inner = next(parameters[key] for key in BODIES if key in parameters)
            results = _evaluated(*_opened(inner), values)
        elif name == "cond":
            branches = [functools.partial(_on_values, *_opened(branch)) for branch in parameters["branches"]]
            results = lax.switch(values[0], branches, *values[1:])
        else:
            found = primitive.bind(*values, **primitive.get_bind_params(parameters))
            results = found if primitive.multiple_results else [found]
        known.update(zip(equation.outvars, results, strict=True))
    return [value_of(atom) for atom in jaxpr.outvars]


def _on_values(jaxpr: Any, constants: Any, *values: Any) -> list[Any]:
    return _evaluated(jaxpr, constants, values)


# --- blocks -----------------------------------------------------------------------------------------------------------


def _named(spec: Any, rank: int) -> list[tuple[str, ...]]:
    """Of each axis of an array the mesh's axes that it is split over."""
    entries = [() if e is None else (e,) if isinstance(e, str) else tuple(e) for e in spec]
    return entries + [()] * (rank - len(entries))


def _split(m: Machine, a: Value, spec: Any, axes: Axes) -> Value:
    """The blocks of an array, with an axis in front for each of the mesh's."""
    sizes, shape, at, local = dict(axes), [], {}, []
    for size, names in zip(a.shape, _named(spec, a.shadow.ndim), strict=True):
        for name in names:
            at[name] = len(shape)
            shape.append(sizes[name])
        local.append(len(shape))
        shape.append(size // int(np.prod([sizes[name] for name in names], dtype=int)))
    order = [at[name] for name, _ in axes if name in at] + local
    spread = [sizes[name] if name in at else 1 for name, _ in axes] + [shape[i] for i in local]
    full = (*sizes.values(), *(shape[i] for i in local))
    n = a.shadow.ndim

    def of(x: np.ndarray) -> np.ndarray:
        more = x.shape[n:]
        moved = x.reshape((*shape, *more)).transpose((*order, *range(len(shape), len(shape) + len(more))))
        return np.broadcast_to(moved.reshape((*spread, *more)), (*full, *more))

    return m.structural(of, a)


def _joined(m: Machine, a: Value, spec: Any, axes: Axes) -> Value:
    """The array of these blocks: along an axis that it is not split over all devices must hold the same."""
    names = [name for name, _ in axes]
    rank = a.shadow.ndim - len(names)
    split = _named(spec, rank)
    used = [name for entry in split for name in entry]
    for i, name in enumerate(names):
        if name not in used:
            first = m.structural(lambda x, i=i: x[(slice(None),) * i + (slice(0, 1),)], a)
            if not _same(m, first, a).all():
                raise Undecided("shard_map, of which devices return different values for one")
            a = first
    order = [i for i, name in enumerate(names) if name not in used]
    for axis, entry in enumerate(split):
        order += [*(names.index(name) for name in entry), len(names) + axis]
    sizes = dict(axes)
    shape = tuple(a.shape[len(names) + k] * int(np.prod([sizes[s] for s in e], dtype=int)) for k, e in enumerate(split))
    n = a.shadow.ndim
    return m.structural(lambda x: x.transpose((*order, *range(n, x.ndim))).reshape((*shape, *x.shape[n:])), a)


def _same(m: Machine, a: Value, b: Value) -> np.ndarray:
    return a.shadow == b.shadow if a.field is None else m.equal(a, b) | is_special(a) & np.isnan(a.shadow)


# --- collectives that `vmap` has resolved -----------------------------------------------------------------------------


def _enter_collective(name: str) -> None:
    @rule(name)
    def reduced(m: Machine, parameters: Parameters, *values: Value) -> list[Value]:
        axes = parameters["axes"]
        if not all(isinstance(axis, int) for axis in axes) or parameters.get("axis_index_groups") is not None:
            raise Undecided(f"{name} over the named axes {axes}")
        return [_reduced(m, value, name, tuple(axes)) for value in values]


def _reduced(m: Machine, a: Value, name: str, axes: tuple[int, ...]) -> Value:
    if name == "psum":
        return total(m, a, axes)
    for axis in sorted(axes, reverse=True):
        if a.field is None:
            a = m.exact((np.max if name == "pmax" else np.min)(a.shadow, axis))
        else:
            chosen = pick(m, a, extreme(m, a, axis, name), axis)
            a = m.structural(lambda x, axis=axis: x.squeeze(axis), chosen)
    return a


for _name in ("psum", "pmax", "pmin"):
    _enter_collective(_name)
