"""Values, derivatives, transformations and second derivatives in float64: the rows that their results make."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnorm.check._problem import Layout, Leaves
from jaxnorm.check._programs import MIX, REVERSE, Failed, Inputs, Mode
from jaxnorm.check._report import Row, exactly
from jaxnorm.check._structure import Names

ROUNDED = "as large as the error of an array rounded to {}: if that is by design, rounded_residuals=True allows it"


@dataclasses.dataclass(frozen=True)
class Call:
    """The function, what it is compared with, its arguments, and how exactly it is judged."""

    mode: Mode
    fun: Callable[..., Any]
    reference: Callable[..., Any] | None
    layout: Layout
    outputs: Names  # of the floating-point outputs and of the others
    leaves: Leaves
    tolerance: float
    rounds: Sequence[np.dtype]  # the precisions below float64 that `fun` rounds to, the widest first
    rounded_residuals: bool
    # Of each array, how far the truth moves, relative to its largest entry, by one ulp of each argument in float32.
    condition: dict[str, float] = dataclasses.field(default_factory=dict)
    autodiff: dict[str, float] = dataclasses.field(default_factory=dict)  # the reference's error in that precision

    @property
    def arguments(self) -> str:
        """All that is differentiated, for what cannot be told apart."""
        return ", ".join(self.layout.moving_names)

    @property
    def incoming(self) -> Sequence[str]:
        """Names of what incoming derivatives are of."""
        return self.mode.of(self.layout.moving_names, self.outputs[0])[0]

    @property
    def outgoing(self) -> Sequence[str]:
        """Names of what outgoing derivatives are of."""
        return self.mode.of(self.layout.moving_names, self.outputs[0])[1]

    @property
    def judged(self) -> np.dtype:
        """The precision at which results in float64 are judged."""
        if self.rounded_residuals:
            return self.rounds[-1] if self.rounds else _FLOAT64
        return next((d for d in self.rounds if d == np.float32), _FLOAT64)

    def row(self, check: str, name: str, got: Any, wanted: Any, reason: str = "", loss: float = 1.0) -> Row:
        """Of one array; `loss` is how many times the precision's error a check may make."""
        row = exactly(check, name, got, wanted, self._tolerance(self.judged, name, loss), reason)
        narrow = self.rounds[-1] if self.rounds else self.judged
        if row.ok or narrow == self.judged:
            return row
        rough = exactly(check, name, got, wanted, self._tolerance(narrow, name, loss))
        notes = [row.note, ROUNDED.format(narrow.name) if rough.ok else ""]
        return dataclasses.replace(row, note="; ".join(filter(None, notes)))

    def _tolerance(self, dtype: np.dtype, name: str, loss: float) -> float:
        if dtype == np.float64:
            return self.tolerance
        epsilon = float(jnp.finfo(dtype).eps)
        condition, autodiff = (
            by_name.get(name, max(by_name.values(), default=0.0)) for by_name in (self.condition, self.autodiff)
        )
        ulps = 64 + 8 * condition / float(jnp.finfo(jnp.float32).eps)
        return max(self.tolerance, loss * (ulps * epsilon + 4 * autodiff))

    def rows(self, check: str, got: Any, wanted: Any, reason: str = "") -> Iterator[Row]:
        """Of (float outputs, other outputs, outgoing derivatives), each of which may be left out."""
        for names, left, right in zip((*self.outputs, self.outgoing), got, wanted, strict=True):
            for name, g, w in zip(names if len(left) else (), left, right, strict=True):
                yield self.row(check, name, g, w, reason)

    def derivatives(self, check: str, got: Any, wanted: Any, reason: str = "") -> Iterator[Row]:
        """Of outgoing derivatives alone."""
        yield from self.rows(check, ((), (), got), ((), (), wanted), reason)


_FLOAT64 = np.dtype(np.float64)


def first_order(call: Call, seeds: int, got: dict[str, Any], table: dict[str, Any], wanted: Any) -> Iterator[Row]:
    """Values and derivatives for several incoming ones, and their linearity."""
    if "plain" in got:
        yield from call.rows("primal", (*got["plain"], ()), (*table["seed 0"][:2], ()))
    if "reverse mode" in got:
        for name, g, w in zip(call.layout.moving_names, got["reverse mode"], wanted["reverse mode"], strict=True):
            yield call.row("reverse mode", name, g, w)
    if "many" not in got:
        return
    floats, others, outgoing = got["many"]
    value = ([a[0] for a in floats], [a[0] for a in others], ())
    under = "vjp" if call.mode is REVERSE else "jvp"
    yield from call.rows(f"primal under {under}", value, (*table["seed 0"][:2], ()))
    *single, mixed, zero = zip(*outgoing, strict=True)
    first = single[0]
    if call.reference:  # else differences are what the derivatives are checked against
        for name, found in zip(table, single, strict=False):
            check = call.mode.name if name.startswith("seed") else f"{call.mode.name} {name}"
            yield from call.derivatives(check, found, table[name][2])
    reason = f"not linear in the incoming {call.mode.name}"
    with np.errstate(invalid="ignore"):
        sums = [MIX[0] * a + MIX[1] * b for a, b in zip(first, single[1], strict=True)]
    yield from call.derivatives("linear", mixed, sums, reason)
    finite = [np.where(np.isfinite(a), z, 0) for a, z in zip(first, zero, strict=True)]
    yield from call.derivatives("linear", finite, [np.zeros_like(z) for z in finite], f"{reason}: zero gives this")
    yield from _alone(call, got, first, single[seeds:])


def _alone(call: Call, got: dict[str, Any], first: Any, alone: Any) -> Iterator[Row]:
    """Unused outputs, and arguments that are not differentiated, change nothing."""
    for name, of_one in zip(call.incoming, alone, strict=False):
        if f"only {name} used" in got:
            yield from call.derivatives(f"only {name} used", got[f"only {name} used"], of_one)
        elif f"only {name}" in got and call.mode is not REVERSE:
            yield from call.derivatives(f"only {name} differentiated", got[f"only {name}"], of_one)
    if call.mode is REVERSE:
        for name, cotangent in zip(call.outgoing, first, strict=True):
            if f"only {name}" in got:
                yield call.row("differentiated alone", name, got[f"only {name}"][0], cotangent)


def transforms(call: Call, got: dict[str, Any], table: dict[str, Any]) -> Iterator[Row]:
    """Under checkpoint, scan and vmap."""

    def stacked(name: str) -> Any:
        return jax.tree.map(lambda *leaves: np.stack(leaves), table["seed 0"], table[name])

    for check, results in got.items():
        if check == "checkpoint":
            yield from call.rows(check, results, table["seed 0"])
        elif check in ("scan", "vmap over all"):
            yield from call.rows(check, results, stacked("second"))
        elif check.startswith("vmap over"):
            yield from call.rows(check, results, stacked(check))


def second_order(call: Call, got: dict[str, Any], wanted: dict[str, Any]) -> Iterator[Row]:
    """Both second derivatives, against the reference's."""
    for check in call.mode.second:
        reverse = check == call.mode.second[0]
        of_incoming = [f"{call.mode.name} of {name}" for name in call.incoming]
        names = [*call.layout.moving_names, *of_incoming] if reverse else call.outgoing
        sides = jax.tree.leaves(got[check]), jax.tree.leaves(wanted[check])
        for about, g, w in zip(names, *sides, strict=True):
            yield call.row(check, about, g, w, loss=16.0)


def outside_jit(call: Call, inputs: Inputs, truth: Any) -> Iterator[Row]:
    """Where every operation runs by itself."""
    arrays = [jnp.asarray(leaf) for leaf in call.leaves]
    try:
        incoming = [jnp.asarray(c) for c in inputs.incoming[0]]
        got = call.mode.at(call.layout, call.layout.flat(call.fun), arrays, incoming)
    except Exception as error:
        yield Row("outside jit", call.arguments, False, note=f"fun {Failed.by(error).text}")
    else:
        yield from call.rows("outside jit", jax.device_get(got), truth)
