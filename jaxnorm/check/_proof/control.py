"""Running a jaxpr: equations in turn, calls, loops, choices."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from jaxnorm.check._proof import contractions, elementwise, indexing, reductions, structure
from jaxnorm.check._proof.choices import Choices, all_choices, choice, needed
from jaxnorm.check._proof.machine import Machine, Undecided, Value, is_exact
from jaxnorm.check._proof.rules import RULES, rule

Parameters = dict[str, Any]
BODIES = ("jaxpr", "call_jaxpr", "fun_jaxpr", "program", "call")
CALLS = (
    "jit",
    "pjit",
    "closed_call",
    "core_call",
    "checkpoint",
    "remat",
    "remat2",
    "custom_jvp_call",
    "custom_vjp_call",
    "custom_vjp_call_jaxpr",
    "custom_vmap_call",
    "custom_lin",
    "rule",  # this library's, of `jaxnorm._examples`
)
_MODULES = (contractions, elementwise, indexing, reductions, structure)  # each fills the table of rules


def run(m: Machine, jaxpr: Any, constants: Sequence[Any], arguments: Sequence[Value]) -> list[Value]:
    """The outputs of an open jaxpr for these arguments."""
    known: dict[Any, Value] = {}

    def value_of(atom: Any) -> Value:
        return literal(m, atom.val, atom.aval) if isinstance(atom, core.Literal) else known[atom]

    for variable, constant in zip(jaxpr.constvars, constants, strict=True):
        known[variable] = literal(m, constant, variable.aval)
    known.update(zip(jaxpr.invars, arguments, strict=True))
    for equation in needed(jaxpr, jaxpr.outvars):
        name = equation.primitive.name
        results = _apply(m, name, equation, [value_of(atom) for atom in equation.invars])
        for variable, result in zip(equation.outvars, results, strict=True):
            known[variable] = result
    return [value_of(atom) for atom in jaxpr.outvars]


def _apply(m: Machine, name: str, equation: Any, values: list[Value]) -> list[Value]:
    if name not in RULES:
        raise Undecided(name)
    parameters = equation.params
    if name in ("add", "sub", "add_any"):
        parameters = {"literals": tuple(isinstance(atom, core.Literal) for atom in equation.invars)}
    elif name.startswith("scatter"):
        parameters = {**parameters, "primitive": name}
    with np.errstate(all="ignore"):
        results = RULES[name](m, parameters, *values)
    return results if isinstance(results, list) else [results]


def literal(m: Machine, value: Any, aval: Any) -> Value:
    """A constant of a program."""
    dtype = aval.dtype
    if dtype == jax.dtypes.float0:  # the cotangent of an integer, which is 0
        return m.exact(np.zeros(aval.shape, bool))
    if jnp.issubdtype(dtype, jax.dtypes.prng_key) or np.dtype(dtype).kind == "c":
        raise Undecided(f"a constant of dtype {dtype}")
    array = np.asarray(value)
    return m.exact(array.astype(dtype)) if is_exact(dtype) else m.constant(array, dtype)


def closed(m: Machine, body: Any, values: Sequence[Value]) -> list[Value]:
    """Runs an open or closed jaxpr."""
    return run(m, body.jaxpr, body.consts, values) if isinstance(body, core.ClosedJaxpr) else run(m, body, (), values)


@rule(*CALLS)
def _call(m: Machine, parameters: Parameters, *values: Value) -> list[Value]:
    return closed(m, next(parameters[key] for key in BODIES if key in parameters), values)


@rule("convolution_product")
def _product(m: Machine, parameters: Parameters, *values: Value) -> list[Value]:
    """This library's own operation: as each platform computes it."""
    return closed(m, _formulated(parameters["product"], *(value.shape for value in values)), values)


@functools.cache
def _formulated(product: Any, *shapes: tuple[int, ...]) -> core.ClosedJaxpr:
    return jax.make_jaxpr(product.compiled)(*(jax.ShapeDtypeStruct(shape, np.float64) for shape in shapes))


@rule("platform_index")
def _platform_index(m: Machine, parameters: Parameters) -> Value:
    """The first choice that names the platform of this run, or that is for all others."""
    return m.exact(np.asarray(choice(parameters["platforms"], m.platform), np.int32))


@rule("cond")
def _cond(m: Machine, parameters: Parameters, which: Value, *values: Value) -> list[Value]:
    branches = parameters["branches"]
    at = min(max(int(which.shadow), 0), len(branches) - 1)
    return closed(m, branches[at], values)


@rule("while")
def _while(m: Machine, parameters: Parameters, *values: Value) -> list[Value]:
    n, k = parameters["cond_nconsts"], parameters["body_nconsts"]
    for_cond, for_body, carry = values[:n], values[n : n + k], list(values[n + k :])
    while bool(closed(m, parameters["cond_jaxpr"], [*for_cond, *carry])[0].shadow):
        carry = closed(m, parameters["body_jaxpr"], [*for_body, *carry])
    return carry


@rule("scan")
def _scan(m: Machine, parameters: Parameters, *values: Value) -> list[Value]:
    """Step by step; the outputs of the steps are stacked."""
    n, k = _scan_counts(parameters)
    length = parameters["length"]
    constants, carry, over = values[:n], list(values[n : n + k]), values[n + k :]
    steps: list[list[Value]] = []
    order = range(length)
    for i in reversed(order) if parameters["reverse"] else order:
        slices = [m.structural(lambda x, i=i: x[i], a) for a in over]
        results = closed(m, parameters["jaxpr"], [*constants, *carry, *slices])
        carry = results[:k]
        steps.append(results[k:])
    if parameters["reverse"]:
        steps.reverse()
    body = parameters["jaxpr"]
    outputs = [v.aval for v in getattr(body, "jaxpr", body).outvars[k:]]
    return carry + [_stacked(m, [step[j] for step in steps], aval) for j, aval in enumerate(outputs)]


def _scan_counts(parameters: Parameters) -> tuple[int, int]:
    """How many operands are constants, and how many are carried."""
    if "ft_in" in parameters:  # since jax 0.12
        constants, carry, _ = parameters["ft_in"].unpack()
        return len(list(constants)), len(list(carry))
    return parameters["num_consts"], parameters["num_carry"]


def _stacked(m: Machine, parts: list[Value], aval: Any) -> Value:
    if parts:
        return m.structural(lambda *xs: np.stack(xs), *parts)
    empty = np.zeros((0, *aval.shape))
    return m.exact(empty.astype(aval.dtype)) if is_exact(aval.dtype) else m.constant(empty)


def choices(jaxpr: Any) -> set[Choices]:
    """Every choice by platform that a program makes anywhere."""
    return set(all_choices(jaxpr, _formulated))
