"""Low precision: errors against the truth at the rounded arguments, beside plain autodiff's and the arguments' own.

What a result may err by is what its arguments' own rounding would change. So the truth is also taken at points whose
arguments and incoming derivatives are moved by about one ulp, at random: `condition` is the largest change seen. It
is taken again at points that are moved by a few ulps of float64: what is no larger than that change is noise, such as a
gradient that is 0 on paper, and has no digits that a rule could lose.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnorm.check._cost import saved_bytes
from jaxnorm.check._exact import ROUNDED, Call
from jaxnorm.check._problem import cast, is_float
from jaxnorm.check._programs import Inputs, Low, Point, low_precision
from jaxnorm.check._report import Row, compare

FLOAT32 = float(jnp.finfo(jnp.float32).eps)
NEAR, NOISE = 8, 4  # how many points of each kind
LOST = 0.1  # a relative error of which the check of digits complains, where ...
ATTAINABLE = 32.0  # ... it is so many times what the arguments' rounding explains


def points_near(name: str, point: Point, seed: int) -> dict[str, Point]:
    """The point, and points that are moved from it by one ulp of float32, and by a few of float64."""
    rng = np.random.default_rng(seed)

    def moved(leaf: Any, by: float) -> Any:
        if not (isinstance(leaf, np.ndarray) and is_float(leaf)):
            return leaf
        # Normal, not signs alone: of two terms those would cancel each other at every other point.
        return (leaf * (1 + by * rng.normal(size=leaf.shape))).astype(leaf.dtype)

    def moved_all(by: float) -> Point:
        leaves, incoming = point
        return [moved(leaf, by) for leaf in leaves], [moved(c, by) for c in incoming]

    near = {f"{name} near {k}": moved_all(FLOAT32) for k in range(NEAR)}
    return {name: point} | near | {f"{name} noise {k}": moved_all(2.0**-50) for k in range(NOISE)}


def changes(name: str, kind: str, table: dict[str, Any]) -> list[np.ndarray]:
    """The largest change of each output and derivative among the points of a kind."""
    count = NEAR if kind == "near" else NOISE
    every = [[np.asarray(a) for a in (*p[0], *p[2])] for p in (table[name], *_table(name, kind, count, table))]
    with np.errstate(all="ignore"):
        found = [np.max([np.abs(a - right) for a in others], 0) for right, *others in zip(*every, strict=True)]
    return [np.where(np.isfinite(f), f, 0) for f in found]


def _table(name: str, kind: str, count: int, table: dict[str, Any]) -> list[Any]:
    return [table[f"{name} {kind} {k}"] for k in range(count)]


def condition(call: Call, name: str, table: dict[str, Any]) -> dict[str, float]:
    """By array, the largest change by one ulp of float32, relative to the array's largest entry."""
    values = [np.asarray(a) for a in (*table[name][0], *table[name][2])]
    sizes = [max(np.max(np.abs(a), initial=0.0, where=np.isfinite(a)), 1e-3) for a in values]
    found = [np.max(c, initial=0.0) / s for c, s in zip(changes(name, "near", table), sizes, strict=True)]
    return dict(zip((*call.outputs[0], *call.outgoing), map(float, found), strict=True))


def error_of(call: Call, plain: Low, name: str, table: dict[str, Any]) -> dict[str, float]:
    """By array, the reference's own error in a low precision, relative to the array's largest entry."""
    found = {}
    exact = (*table[name][0], *table[name][2])
    for about, result, right in zip((*call.outputs[0], *call.outgoing), plain.results, exact, strict=True):
        right = np.asarray(right).astype(np.float64)
        with np.errstate(all="ignore"):
            error = np.abs(result.astype(np.float64) - right)
        size = max(np.max(np.abs(right), initial=0.0, where=np.isfinite(right)), 1e-3)
        found[about] = float(np.max(error, initial=0.0, where=np.isfinite(error))) / size
    return found


def low_precisions(call: Call, inputs: Inputs, dtypes: Sequence[Any], *, quick: bool) -> list[tuple[Low, Low]]:
    """Function and reference in each dtype that the function takes."""
    functions = [f for f in (call.fun, call.reference) if f]
    at = functools.partial(low_precision, layout=call.layout, leaves=call.leaves, inputs=inputs, quick=quick)
    sides = [[at(call.mode, f, dtype=d) for f in functions] for d in dtypes]
    return [(low, plain) for low, plain in sides if low and plain]


class _Array(NamedTuple):
    """One output or derivative in a low precision; elements that are not judged are 0 in all."""

    got: np.ndarray
    autodiff: np.ndarray
    right: np.ndarray
    near: np.ndarray
    noise: np.ndarray
    epsilon: float  # of its own dtype
    judged: np.ndarray

    @classmethod
    def of(cls, dtype: Any, result: Any, other: Any, right: np.ndarray, near: Any, noise: Any) -> "_Array":
        got, autodiff = result.astype(np.float64), other.astype(np.float64)
        judged = np.isfinite(right) & np.isfinite(autodiff) & (np.abs(right) < float(jnp.finfo(dtype).max))
        got, autodiff, right, near, noise = (np.where(judged, a, 0) for a in (got, autodiff, right, near, noise))
        return cls(got, autodiff, right, near, noise, float(jnp.finfo(result.dtype).eps), judged)

    def allowed(self, term: float, largest: float, factor: float, ulps: float) -> np.ndarray:
        own = self.epsilon * np.abs(self.right) + term * largest + self.near * (term / FLOAT32)
        return factor * np.abs(self.autodiff - self.right) + ulps * own


def precision_rows(
    call: Call, low: Low, plain: Low, table: dict[str, Any], factor: float, ulps: float, digits: bool
) -> Iterator[Row]:
    """Rows of every output and derivative in one low precision."""
    dtype = low.dtype.name
    exact = [np.asarray(a) for a in (*table[dtype][0], *table[dtype][2])]
    largest = max(float(np.max(np.abs(a), initial=0.0, where=np.isfinite(a))) for a in exact)
    digits = digits and all(isinstance(leaf, np.ndarray) for leaf in call.leaves)  # a key draws others in every dtype
    narrow = min((low.dtype, *call.rounds), key=lambda d: jnp.finfo(d).nmant)
    rough = float(jnp.finfo(narrow).eps)
    moved = (changes(dtype, kind, table) for kind in ("near", "noise"))
    sides = zip(low.results, plain.results, exact, *moved, strict=True)
    for name, side in zip((*call.outputs[0], *call.outgoing), sides, strict=True):
        a = _Array.of(low.dtype, *side)
        limits = largest, factor, ulps
        allowed = a.allowed(rough if call.rounded_residuals else FLOAT32, *limits)
        row = compare(dtype, name, a.got, a.right, allowed, "less exact than plain autodiff")
        notes = [row.note]
        if not row.ok and compare(dtype, name, a.got, a.right, a.allowed(rough, *limits)).ok:
            notes.append(ROUNDED.format(narrow.name))
        notes.append(_digits(a))
        if not a.judged.all():
            notes.append(f"{np.sum(~a.judged)} elements not judged: not finite in plain autodiff")
        yield dataclasses.replace(row, note="; ".join(filter(None, notes)))
        if digits:
            yield _lost(low.dtype, name, a, rough if call.rounded_residuals else float(jnp.finfo(low.dtype).eps))


def _digits(a: _Array) -> str:
    """How many digits of the array's largest entry are right throughout, in words."""
    largest = np.max(np.abs(a.right), initial=0.0)
    if not largest:
        return ""
    with np.errstate(all="ignore"):
        errors = [np.max(np.abs(side - a.right)) / largest for side in (a.got, a.autodiff)]
        ours, theirs = (np.clip(np.nan_to_num(-np.log10(e), nan=0.0, posinf=16.0), 0, 16) + 0.0 for e in errors)
    return f"{ours:.1f} correct digits, the reference {theirs:.1f}"


def _lost(dtype: np.dtype, name: str, a: _Array, epsilon: float) -> Row:
    """Elements that have no digit right, though the arguments determine several."""
    explained = ATTAINABLE * a.near * (epsilon / FLOAT32)
    known = (np.abs(a.right) > 1e3 * a.noise) & (np.abs(a.right) > 2.0**10 * float(jnp.finfo(dtype).tiny))
    got, autodiff, right = (np.where(known, side, 0) for side in (a.got, a.autodiff, a.right))
    allowed = np.maximum(LOST * np.abs(right), explained)
    row = compare(f"digits in {dtype.name}", name, got, right, allowed, "lost: the arguments determine them")
    if row.ok:
        return row
    same = bool(np.any((np.abs(got - right) > allowed) & (np.abs(autodiff - right) > allowed)))
    theirs = f"the reference in {dtype.name} {'loses them too' if same else 'has them'}"
    return dataclasses.replace(row, note=f"{row.note}; {theirs}")


def cost(call: Call, inputs: Inputs, lows: list[tuple[Low, Low]], dtypes: Sequence[Any]) -> dict[str, Any]:
    """Bytes kept, temporary memory and FLOPs, of function and reference, in the first of the dtypes that fits."""
    sides = {"fun": call.fun} | ({"reference": call.reference} if call.reference else {})
    found: list[Any] = list(lows[0]) if lows else []
    if not found:
        at = functools.partial(low_precision, layout=call.layout, leaves=call.leaves, inputs=inputs, quick=False)
        every = [at(call.mode, f, dtype=d) for f in sides.values() for d in dtypes[:1]]
        found = every if all(every) else []
    dtype = found[0].dtype if found else np.dtype(np.float64)
    leaves = cast(call.leaves, dtype)

    def kept(fun: Any) -> int:
        flat = call.layout.flat(fun)
        return saved_bytes(lambda *moved: flat(call.layout.put(leaves, list(moved)))[0], *call.layout.pick(leaves))

    with jax.enable_x64(dtype == np.float64):
        result: dict[str, Any] = {"dtype": dtype.name, "bytes kept": {side: kept(fun) for side, fun in sides.items()}}
    for what in found[0].cost if found else ():
        result[what] = {side: low.cost[what] for side, low in zip(sides, found, strict=True)}
    return result
