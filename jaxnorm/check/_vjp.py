"""`check_vjp`: the order of the checks, and the rows that their results make. Comparisons are made in NumPy."""

import dataclasses
import functools
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnorm.check._cost import saved_bytes
from jaxnorm.check._differences import difference_rows
from jaxnorm.check._problem import Layout, Leaves, cast, flatten, output_names, shapes
from jaxnorm.check._programs import MIX, Failed, Inputs, Low, low_precision, ours, points, truth, vjp_at
from jaxnorm.check._report import Report, Row, compare, exactly, summarize
from jaxnorm.check._structure import Names, mixed_rows, structure_rows

CHECKS = ("differences", "precision", "mixed dtypes", "transforms", "outside jit", "second order", "cost")


def check_vjp(
    fun: Callable[..., Any],
    *args: Any,
    reference: Callable[..., Any] | None = None,
    argnums: int | Sequence[int] | None = None,
    checks: Collection[str] | None = None,
    dtypes: Sequence[Any] = (jnp.float32, jnp.bfloat16),
    tolerance: float = 1e-10,
    factor: float = 1.0,
    ulps: float = 2.0,
    rounded_residuals: bool = False,
    directions: int = 16,
    seeds: int = 3,
    seed: int = 0,
) -> Report:
    """Checks the gradient rule of `fun` at `args`: `<g, J v> == <fun's cotangents of g, v>` for all g and v, and more.

    ====================  ============================================================================================
    check                 what must hold
    ====================  ============================================================================================
    primal                the reference's value; the same under `jax.vjp`
    structure             cotangents have their arguments' shapes and dtypes (integers: none), in float64 and `dtypes`
    mixed dtypes          the same where the first argument is of a 16-bit dtype and the others float32, and reversed
    cotangent             each element equals `jax.vjp(reference)`'s in float64, from all outputs and from each alone
    linear                the sum of two cotangents gives the sum of their results, and zero gives zero
    only ... used, alone  unused outputs, and arguments that are not differentiated, change nothing
    differences           the cotangents agree with central differences of `fun` itself, of order 6 in float64
    float32, ...          per element, the error against float64 is at most autodiff's of the reference, see `ulps`
    transforms            the same under checkpoint, scan, and vmap over each argument and over all
    outside jit           the same where every operation runs by itself; all else is compiled whole
    second order          grad of grad and jvp of grad equal the reference's, or central differences of the cotangents
    cost                  reported, not judged: bytes kept for the backward pass, temporary memory, FLOPs
    ====================  ============================================================================================

    Without a reference the gradients are checked by differences: along random signs, where an error above the
    tolerance, in whatever elements, is missed with a probability of at most `2**-directions` (and never if it is
    confined to one element), and element by element for arrays of up to 128 elements; second derivatives along at
    most 4. Outputs with a kink or a jump at, or next to, the point are left out; the report says how many. With a
    reference they are compared at kinks too. Low precision has no measure without a reference, and is then checked for
    shapes and dtypes only.

    Only the shapes and values given are checked: call it for even and odd sizes, ties, masks. The float arguments are
    taken in float64 whatever `jax_enable_x64` says; integers and booleans as they are.

    Args:
      fun: function of arrays or pytrees of arrays, with one or several outputs; bind options by `functools.partial`.
      *args: its arguments. Floats are differentiated; integers, booleans and keys are held.
      reference: plain function of the same arguments and outputs; None checks by central differences.
      argnums: the argument or arguments to differentiate; None is all.
      checks: names out of `differences`, `precision`, `mixed dtypes`, `transforms`, `outside jit`, `second order`,
        `cost`, done besides the values and cotangents; None is all, differences only where there is no reference.
      dtypes: the low precisions; one that `fun` raises for is noted and left out.
      tolerance: of float64 comparisons, relative to the largest entry of each array.
      factor: how many times autodiff's error a low precision may make.
      ulps: how many ulps more: of the element, and of float32 terms of the results' largest size (sums in another
        order).
      rounded_residuals: those terms are as rough as the low precision itself: for a rule that keeps an array in that
        dtype by design, as a softmax does its output.
      directions: random directions for each argument, for differences.
      seeds: random cotangents, at least 2.
      seed: of all random numbers.

    Returns:
      A `Report`: `ok`, `failures`, `rows`, `str()`, `to_dict()`, `raise_if_failed()`. What `fun` raises under a
      transformation is a failure of that check.

    Raises:
      TypeError: an argument is no real array, or none is floating-point.
      ValueError: an option is out of its range, or the reference's outputs are not as many as `fun`'s.
      Exception: whatever `fun` or the reference themselves raise for these arguments.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from jaxnorm.check import check_vjp
      >>> @jax.custom_vjp
      ... def cube(x):
      ...     return x**3
      >>> cube.defvjp(lambda x: (x**3, x), lambda x, g: (2 * x**2 * g,))  # 2 should be 3
      >>> report = check_vjp(cube, jnp.arange(1.0, 4.0), reference=lambda x: x * x * x, checks=())
      >>> report.ok
      False
      >>> print(report.failures[0].split("): ")[1])
      it is 0.666667 times what it should be

    References:
      https://github.com/JuliaDiff/ChainRulesTestUtils.jl (rules tested against differences, for random cotangents).
    """
    chosen = frozenset(CHECKS[reference is not None :] if checks is None else checks)
    if unknown := sorted(chosen - set(CHECKS)):
        raise ValueError(f"checks must be among {', '.join(CHECKS)}, got {unknown[0]!r}")
    for name, value, least in (("seeds", seeds, 2), ("directions", directions, 1)):
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
    cost: dict[str, Any] = {}
    name = _name(fun)
    with jax.enable_x64(True):
        layout, leaves = flatten(fun, args, argnums)
        fun, reference = _hashable(fun), None if reference is None else _hashable(reference)
        call = _Call(fun, reference, layout, _outputs(fun, reference, layout, leaves), leaves, tolerance)
        rows = list(structure_rows(fun, reference, layout, call.outputs, leaves, dtypes))
        if all(row.ok for row in rows):  # arrays of wrong shapes or dtypes cannot be compared
            inputs = Inputs.of(layout, leaves, jax.eval_shape(layout.flat(fun), shapes(leaves))[0], seeds, seed)
            rows += mixed_rows(fun, layout, leaves, dtypes) if "mixed dtypes" in chosen else ()
            lows = _lows(call, inputs, dtypes if reference and "precision" in chosen else ())
            rows += _exact(call, inputs, chosen, lows, (factor, ulps, rounded_residuals))
            if "differences" in chosen:
                second = "second order" in chosen and reference is None
                g = inputs.cotangents[0]
                rows += difference_rows(fun, layout, leaves, g, directions, seed, second=second)
            cost = _cost(call, inputs, lows, dtypes) if "cost" in chosen else {}
    return Report(name, summarize(rows), cost)


def _name(fun: Callable[..., Any]) -> str:
    while isinstance(fun, functools.partial):
        fun = fun.func
    return getattr(fun, "__name__", type(fun).__name__)


def _hashable(fun: Callable[..., Any]) -> Callable[..., Any]:
    """Programs are kept by the function that they are of; a module that holds arrays has no hash."""
    try:
        hash(fun)
    except TypeError:
        return lambda *args: fun(*args)
    return fun


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


@dataclasses.dataclass(frozen=True)
class _Call:
    """The function, what it is compared with, and its arguments."""

    fun: Callable[..., Any]
    reference: Callable[..., Any] | None
    layout: Layout
    outputs: Names  # of the floating-point outputs and of the others
    leaves: Leaves
    tolerance: float

    @property
    def arguments(self) -> str:
        """All that is differentiated, for what cannot be told apart."""
        return ", ".join(self.layout.moving_names)

    def rows(self, check: str, got: Any, wanted: Any, reason: str = "") -> Iterator[Row]:
        """Of (float outputs, other outputs, cotangents), each of which may be left out."""
        for names, left, right in zip((*self.outputs, self.layout.moving_names), got, wanted, strict=True):
            for name, g, w in zip(names if len(left) else (), left, right, strict=True):
                yield exactly(check, name, g, w, self.tolerance, reason)

    def cotangents(self, check: str, got: Any, wanted: Any, reason: str = "") -> Iterator[Row]:
        """Of cotangents alone."""
        yield from self.rows(check, ((), (), got), ((), (), wanted), reason)


def _exact(
    call: _Call,
    inputs: Inputs,
    chosen: frozenset[str],
    lows: list[tuple[Low, Low]],
    precision: tuple[float, float, bool],
) -> Iterator[Row]:
    """Values, cotangents, transformations, second derivatives and low precisions against float64."""
    eager = "outside jit" in chosen
    chosen = chosen & {"transforms"} | (chosen & {"second order"} if call.reference else frozenset())
    got = jax.device_get(ours(call.fun, call.layout, call.outputs[0], chosen, call.leaves, inputs))
    at = points(call.layout, call.outputs[0], call.leaves, inputs)
    at |= {low.dtype.name: low.point for low, _ in lows}
    wanted = truth(call.reference or call.fun, call.layout, chosen, call.leaves, inputs, list(at.values()))
    wanted = jax.device_get(wanted)
    table = {name: jax.tree.map(lambda a, p=p: a[p], wanted["points"]) for p, name in enumerate(at)}
    failed = {name: result.text for name, result in got.items() if isinstance(result, Failed)}
    got = {name: result for name, result in got.items() if name not in failed}
    rows = [Row(name, call.arguments, False, note=f"fun {text}") for name, text in failed.items()]
    rows += _first_order(call, len(inputs.cotangents), got, table)
    yield from rows
    if wrong := [row.about for row in rows if not row.ok]:
        note = f"not judged until this holds: {', '.join(dict.fromkeys(wrong))}"  # it would only be said again
        yield Row("all else", "arguments", True, note=note)
        return
    if "transforms" in chosen:
        yield from _transforms(call, got, table)
    if eager:
        yield from _outside_jit(call, inputs, table["seed 0"])
    for name in ("grad of grad", "jvp of grad") if "second order" in chosen else ():
        incoming = [f"cotangent of {output}" for output in call.outputs[0] if name == "grad of grad"]
        names = [*call.layout.moving_names, *incoming]  # of grad of grad, both are differentiated
        for about, g, w in zip(names, jax.tree.leaves(got[name]), jax.tree.leaves(wanted[name]), strict=True):
            yield exactly(name, about, g, w, call.tolerance)
    for low, plain in lows:
        yield from _precision(call, low, plain, table[low.dtype.name], *precision)


def _first_order(call: _Call, seeds: int, got: dict[str, Any], table: dict[str, Any]) -> Iterator[Row]:
    if "plain" in got:
        yield from call.rows("primal", (*got["plain"], ()), (*table["seed 0"][:2], ()))
    if "vjp" in got:
        yield from call.rows("primal under vjp", (*got["vjp"][:2], ()), (*table["seed 0"][:2], ()))
    if "many" not in got:
        return
    *single, mixed, zero = zip(*got["many"], strict=True)
    first = single[0]
    if call.reference:  # else differences are what the cotangents are checked against
        for name, cotangents in zip(table, single, strict=False):
            check = "cotangent" if name.startswith("seed") else f"cotangent {name}"
            yield from call.cotangents(check, cotangents, table[name][2])
    reason = "not linear in the incoming cotangent"
    with np.errstate(invalid="ignore"):
        sums = [MIX[0] * a + MIX[1] * b for a, b in zip(first, single[1], strict=True)]
    yield from call.cotangents("linear", mixed, sums, reason)
    finite = [np.where(np.isfinite(a), z, 0) for a, z in zip(first, zero, strict=True)]
    yield from call.cotangents("linear", finite, [np.zeros_like(z) for z in finite], f"{reason}: zero gives this")
    for name, alone in zip(call.outputs[0], single[seeds:], strict=False):
        if f"only {name} used" in got:
            yield from call.cotangents(f"only {name} used", got[f"only {name} used"], alone)
    for name, cotangent in zip(call.layout.moving_names, first, strict=True):
        if f"only {name}" in got:
            yield exactly("differentiated alone", name, got[f"only {name}"][0], cotangent, call.tolerance)


def _transforms(call: _Call, got: dict[str, Any], table: dict[str, Any]) -> Iterator[Row]:
    def stacked(name: str) -> Any:
        return jax.tree.map(lambda *leaves: np.stack(leaves), table["seed 0"], table[name])

    for check, results in got.items():
        if check == "checkpoint":
            yield from call.rows(check, results, table["seed 0"])
        elif check in ("scan", "vmap over all"):
            yield from call.rows(check, results, stacked("second"))
        elif check.startswith("vmap over"):
            yield from call.rows(check, results, stacked(check))


def _outside_jit(call: _Call, inputs: Inputs, truth: Any) -> Iterator[Row]:
    arrays = [jnp.asarray(leaf) for leaf in call.leaves]
    try:
        got = vjp_at(call.layout, call.layout.flat(call.fun), arrays, [jnp.asarray(c) for c in inputs.cotangents[0]])
    except Exception as error:
        yield Row("outside jit", call.arguments, False, note=f"fun {Failed.by(error).text}")
    else:
        yield from call.rows("outside jit", jax.device_get(got), truth)


def _lows(call: _Call, inputs: Inputs, dtypes: Sequence[Any]) -> list[tuple[Low, Low]]:
    """Function and reference in each dtype that the function takes."""
    sides = [
        [low_precision(f, call.layout, call.leaves, inputs, d) for f in (call.fun, call.reference) if f] for d in dtypes
    ]
    return [(low, plain) for low, plain in sides if low and plain]


def _precision(
    call: _Call, low: Low, plain: Low, exact: Any, factor: float, ulps: float, rounded: bool
) -> Iterator[Row]:
    rights = [np.asarray(a) for a in (*exact[0], *exact[2])]
    largest = max(np.max(np.abs(a), initial=0.0, where=np.isfinite(a)) for a in rights)
    names = [*call.outputs[0], *call.layout.moving_names]
    for name, result, other, right in zip(names, low.results, plain.results, rights, strict=True):
        epsilon = float(jnp.finfo(result.dtype).eps)
        term = epsilon if rounded else float(jnp.finfo(jnp.float32).eps)
        got, autodiff = result.astype(np.float64), other.astype(np.float64)
        judged = np.isfinite(right) & np.isfinite(autodiff) & (np.abs(right) < float(jnp.finfo(low.dtype).max))
        got, autodiff, right = (np.where(judged, a, 0) for a in (got, autodiff, right))
        allowed = factor * np.abs(autodiff - right) + ulps * (epsilon * np.abs(right) + term * largest)
        row = compare(low.dtype.name, name, got, right, allowed, "less exact than plain autodiff")
        note = "" if judged.all() else f"{np.sum(~judged)} elements not judged: not finite in plain autodiff"
        yield dataclasses.replace(row, note="; ".join(filter(None, (row.note, note))))


def _cost(call: _Call, inputs: Inputs, lows: list[tuple[Low, Low]], dtypes: Sequence[Any]) -> dict[str, Any]:
    """Bytes kept, temporary memory and FLOPs, of function and reference, in the first of the dtypes that fits."""
    sides = {"fun": call.fun} | ({"reference": call.reference} if call.reference else {})
    found: list[Any] = list(lows[0]) if lows else []
    if not found:
        found = [
            low
            for f in sides.values()
            for d in dtypes[:1]
            if (low := low_precision(f, call.layout, call.leaves, inputs, d))
        ]
    dtype = found[0].dtype if found else np.dtype(np.float64)
    leaves = cast(call.leaves, dtype)

    def kept(fun: Any) -> int:
        flat = call.layout.flat(fun)
        return saved_bytes(lambda *moved: flat(call.layout.put(leaves, list(moved)))[0], *call.layout.pick(leaves))

    with jax.enable_x64(dtype == np.float64):
        cost: dict[str, Any] = {"dtype": dtype.name, "bytes kept": {side: kept(fun) for side, fun in sides.items()}}
    for what in found[0].cost if found else ():
        cost[what] = {side: low.cost[what] for side, low in zip(sides, found, strict=True)}
    return cost
