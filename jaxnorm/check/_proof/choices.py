"""Programs that choose by platform: which platforms they name, and what is left of them on one.

The choices are taken before a program is differentiated once more. The derivative of the chosen branch is the chosen
one among the branches' derivatives, and JAX finds the first in a fraction of the time.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from jax.extend import core

from jaxnorm.check._proof.machine import Undecided

Choices = tuple[tuple[str, ...] | None, ...]  # for each branch the platforms that take it, None: all others
_INLINED = ("jit", "pjit", "closed_call")


def choice(choices: Choices, platform: str | None) -> int:
    """The first branch that names the platform, or that is for all others."""
    return next(i for i, names in enumerate(choices) if names is None or platform in names)


def all_choices(jaxpr: Any, formulated: Callable[..., core.ClosedJaxpr]) -> Iterator[Choices]:
    """Every choice that a program makes anywhere; `formulated` is what this library's own operation computes."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "platform_index":
            yield tuple(equation.params["platforms"])
        if equation.primitive.name == "convolution_product":
            shapes = (atom.aval.shape for atom in equation.invars)
            yield from all_choices(formulated(equation.params["product"], *shapes).jaxpr, formulated)
        for parameter in equation.params.values():
            for body in parameter if isinstance(parameter, list | tuple) else (parameter,):
                body = getattr(body, "jaxpr", body)
                if hasattr(body, "eqns"):
                    yield from all_choices(body, formulated)


def needed(jaxpr: Any, outputs: Sequence[Any]) -> Iterator[Any]:
    """The equations that these of its variables need."""
    wanted = {v for v in outputs if isinstance(v, core.Var)}
    kept = []
    for equation in reversed(jaxpr.eqns):
        if equation.effects:
            raise Undecided(f"{equation.primitive.name}, which has an effect")
        if any(v in wanted for v in equation.outvars):
            kept.append(equation)
            wanted.update(v for v in equation.invars if isinstance(v, core.Var))
    return reversed(kept)


def on_platform(
    closed: core.ClosedJaxpr, platform: str | None, arguments: Sequence[Any], outputs: slice = slice(None)
) -> list[Any]:
    """These of a program's outputs, for JAX to trace: with the branches that one platform takes, and calls inlined."""
    jaxpr = closed.jaxpr
    known: dict[Any, Any] = dict(zip(jaxpr.constvars, closed.consts, strict=True))
    known.update(zip(jaxpr.invars, arguments, strict=True))
    for equation in needed(jaxpr, jaxpr.outvars[outputs]):
        if equation.primitive.name == "platform_index":
            results = [choice(equation.params["platforms"], platform)]
        else:
            values = [atom.val if isinstance(atom, core.Literal) else known[atom] for atom in equation.invars]
            with equation.ctx.manager:
                results = _results(equation, platform, values)
        known.update(zip(equation.outvars, results, strict=True))
    return [atom.val if isinstance(atom, core.Literal) else known[atom] for atom in jaxpr.outvars[outputs]]


def _results(equation: Any, platform: str | None, values: list[Any]) -> Sequence[Any]:
    primitive, parameters = equation.primitive, equation.params
    if primitive.name == "cond" and isinstance(values[0], int):
        return on_platform(parameters["branches"][values[0]], platform, values[1:])
    if primitive.name in _INLINED and isinstance(body := parameters.get("jaxpr"), core.ClosedJaxpr):
        return on_platform(body, platform, values)
    results = primitive.bind(*values, **primitive.get_bind_params(parameters))
    return results if primitive.multiple_results else [results]
