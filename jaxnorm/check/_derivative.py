"""The order of the checks of a rule, in reverse and in forward mode. Comparisons are made in NumPy."""

import dataclasses
import functools
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from jaxnorm.check._differences import difference_rows
from jaxnorm.check._exact import Call, first_order, outside_jit, second_order, transforms
from jaxnorm.check._inspect import rounds_to, rule_of
from jaxnorm.check._invariance import invariance_rows
from jaxnorm.check._precision import condition, cost, error_of, low_precisions, points_near, precision_rows
from jaxnorm.check._problem import Layout, Leaves, flatten, mixed, output_names, shapes, traced
from jaxnorm.check._programs import (
    FORWARD,
    REVERSE,
    Failed,
    Inputs,
    Low,
    Mode,
    low_precision,
    ours,
    points,
    traced_at,
    truth,
)
from jaxnorm.check._report import Report, Row, summarize
from jaxnorm.check._setting import exact_products, hashable
from jaxnorm.check._structure import Names, mixed_rows, structure_rows

CHECKS = ("differences", "precision", "digits", "mixed dtypes", "transforms", "outside jit", "second order", "cost")


@dataclasses.dataclass(frozen=True)
class Options:
    """The options of `check_vjp` and `check_jvp`, checked."""

    reference: Callable[..., Any] | None
    argnums: int | Sequence[int] | None
    checks: Collection[str] | None
    dtypes: Sequence[Any]
    tolerance: float
    factor: float
    ulps: float
    rounded_residuals: bool
    directions: int
    seeds: int
    seed: int
    name: str | None
    batch_axes: int | Sequence[int | None] | None = None

    def __post_init__(self) -> None:
        if unknown := sorted(frozenset(self.checks or ()) - set(CHECKS)):
            raise ValueError(f"checks must be among {', '.join(CHECKS)}, got {unknown[0]!r}")
        for name, value, least in (("seeds", self.seeds, 2), ("directions", self.directions, 1)):
            if value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")

    def chosen(self, args: Any) -> frozenset[str]:
        """The checks that are asked for; by default all that make sense for these arguments."""
        if self.checks is not None:
            return frozenset(self.checks)
        left_out = {"differences"} if self.reference else set()
        return frozenset(CHECKS) - left_out - (set() if mixed(args) else {"mixed dtypes"})


def check_derivative(mode: Mode, fun: Callable[..., Any], args: tuple[Any, ...], options: Options) -> Report:
    """`check_vjp` or `check_jvp`."""
    chosen, name = options.chosen(args), options.name or name_of(fun)
    spent: dict[str, Any] = {}
    with jax.enable_x64(True), exact_products() as setting:
        layout, leaves = flatten(fun, args, options.argnums)
        fun, reference = hashable(fun), options.reference and hashable(options.reference)
        call = _call(mode, fun, reference, layout, leaves, options)
        rows = list(_kind(call))
        if all(row.ok for row in rows):
            fixed = call.judged != np.float64
            rows += structure_rows(mode, fun, reference, layout, call.outputs, leaves, options.dtypes, fixed)
        if all(row.ok or row.comparable for row in rows):
            outputs = jax.eval_shape(layout.flat(traced(fun)), shapes(leaves))[0]
            inputs = Inputs.of(mode, layout, leaves, outputs, options.seeds, options.seed)
            if "mixed dtypes" in chosen:
                rows += mixed_rows(mode, fun, layout, call.outputs, leaves, options.dtypes)
            low = options.dtypes if reference and "precision" in chosen else ()
            lows = low_precisions(call, inputs, low, quick="cost" not in chosen)
            rows += _judged(call, inputs, chosen, lows, options)
            spent = cost(call, inputs, lows, options.dtypes) if "cost" in chosen and mode is REVERSE else {}
    return Report(name, summarize(rows), spent, setting)


def name_of(fun: Callable[..., Any]) -> str:
    """The function's own name."""
    while isinstance(fun, functools.partial):
        fun = fun.func
    return getattr(fun, "__name__", type(fun).__name__)


def _call(mode: Mode, fun: Any, reference: Any, layout: Layout, leaves: Leaves, options: Options) -> Call:
    outputs = _outputs(fun, reference, layout, leaves)

    def run(leaves: Leaves) -> Any:
        values = layout.flat(traced(fun))(leaves)[0]
        return traced_at(mode, fun, layout)(leaves, mode.of(layout.pick(leaves), values)[0])

    try:
        rounds = rounds_to(run, shapes(leaves))
    except Exception:  # the check of structure says it
        rounds = []
    return Call(mode, fun, reference, layout, outputs, leaves, options.tolerance, rounds, options.rounded_residuals)


def _outputs(fun: Any, reference: Any, layout: Layout, leaves: Leaves) -> Names:
    """Names of the outputs, which the reference must have too."""
    names = output_names(fun, layout, leaves)
    if not names[0]:
        raise TypeError("fun must return a floating-point array")
    if reference and tuple(map(len, theirs := output_names(reference, layout, leaves))) != tuple(map(len, names)):
        raise ValueError(
            f"reference must return as many arrays as fun, {names[0] + names[1]}, got {theirs[0] + theirs[1]}"
        )
    return names


def _kind(call: Call) -> Iterator[Row]:
    """What the function is, where that says what this check is worth."""
    rule = rule_of(call.layout.flat(traced(call.fun)), shapes(call.leaves))
    if call.mode is FORWARD and rule == "custom VJP":
        note = "fun has a custom VJP, which has no forward mode: JAX raises"
        yield Row("tangent", call.arguments, False, note=note, comparable=False)
    elif call.mode is REVERSE and rule != "custom VJP":
        has = f"a {rule}, and no custom VJP: check_jvp checks it" if rule else "no custom VJP: its gradient is JAX's"
        yield Row("rule", "fun", True, note=f"fun has {has}")
    elif call.mode is FORWARD and not rule:
        yield Row("rule", "fun", True, note="fun has no custom JVP: its derivative is JAX's")
    if call.judged != np.float64:
        note = f"fun rounds to {call.judged.name} whatever its arguments: judged at that precision"
        yield Row("rule", "precision", True, note=note)


def _judged(call: Call, inputs: Inputs, chosen: frozenset[str], lows: list[Any], options: Options) -> Iterator[Row]:
    """Values, derivatives, transformations, second derivatives, low precisions; and differences."""
    yield from _exact(call, inputs, chosen, lows, options)
    if options.batch_axes is not None and call.mode is REVERSE:
        yield from invariance_rows(call, inputs, options.batch_axes)
    if "differences" in chosen:
        second = "second order" in chosen and call.reference is None
        g = inputs.incoming[0]
        few = options.directions, options.seed
        yield from difference_rows(call.mode, call.fun, call.layout, call.leaves, g, *few, second, call.judged)


def _exact(call: Call, inputs: Inputs, chosen: frozenset[str], lows: list[Any], options: Options) -> Iterator[Row]:
    """Everything that is compared with the truth in float64."""
    parts = chosen & {"transforms"} | (chosen & {"second order"} if call.reference else frozenset())
    got = jax.device_get(ours(call.mode, call.fun, call.layout, call.outputs[0], parts, call.leaves, inputs))
    fixed = call.judged != np.float64
    mode, reference, layout = call.mode, call.reference or call.fun, call.layout
    plain = low_precision(mode, reference, layout, call.leaves, inputs, np.float32, quick=True) if fixed else None
    wanted, table = _truth(call, inputs, parts, lows, plain)
    if fixed:
        call = dataclasses.replace(
            call,
            condition=condition(call, "seed 0", table),
            autodiff=error_of(call, plain, "judged", table) if plain and call.reference else {},
        )
    failed = {name: result.text for name, result in got.items() if isinstance(result, Failed)}
    got = {name: result for name, result in got.items() if name not in failed}
    rows = [Row(name, call.arguments, False, note=f"fun {text}") for name, text in failed.items()]
    rows += first_order(call, len(inputs.incoming), got, table, wanted)
    yield from rows
    if wrong := [row.about for row in rows if not row.ok]:
        note = f"not judged until this holds: {', '.join(dict.fromkeys(wrong))}"  # it would only be said again
        yield Row("all else", "arguments", True, note=note)
        return
    if "transforms" in parts:
        yield from transforms(call, got, table)
    if "outside jit" in chosen:
        yield from outside_jit(call, inputs, table["seed 0"])
    if "second order" in parts:
        yield from second_order(call, got, wanted)
    for low, plain in lows:
        yield from precision_rows(call, low, plain, table, options.factor, options.ulps, "digits" in chosen)


def _truth(
    call: Call, inputs: Inputs, parts: frozenset[str], lows: list[Any], plain: Low | None
) -> tuple[Any, dict[str, Any]]:
    """What the reference makes of it, or the function itself; and its values at each point, by the point's name."""
    at = points(call.layout, list(call.incoming), call.leaves, inputs)
    if call.judged != np.float64:
        at |= points_near("seed 0", at["seed 0"], 0) | ({"judged": plain.point} if plain else {})
    for low, _ in lows:
        at |= points_near(low.dtype.name, low.point, 0)
    reference = call.reference or call.fun
    wanted = truth(call.mode, reference, call.layout, parts, call.leaves, inputs, list(at.values()))
    wanted = jax.device_get(wanted)
    return wanted, {name: jax.tree.map(lambda a, p=p: a[p], wanted["points"]) for p, name in enumerate(at)}
