"""Values that are exact and floating-point at once, and what a run of programs over them has in common.

A float is carried as a field of residues, which says what it is in exact arithmetic, and as a float64 array, its
shadow, which decides what depends on order: comparisons, maxima, signs. Infinities and NaN have no residue; they are
special. Integers and booleans are NumPy arrays and no more.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxnorm.check._proof.constants import is_simple, is_smooth, read
from jaxnorm.check._proof.residues import Field

Degree = tuple[int, int]  # of a rational function: its numerator's and its denominator's


class Undecided(Exception):
    """An operation has no exact meaning here."""


@dataclasses.dataclass(slots=True)
class Value:
    """One array of a program."""

    shadow: np.ndarray
    field: Any = None  # a `Field`; None for integers and booleans
    special: np.ndarray | None = (
        None  # where the shadow is infinite or NaN, and the value has no residue; None: nowhere
    )
    degree: Degree = (0, 0)
    square: bool = False  # whether it is positive and a square by its form, as exponentials and roots are

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the array."""
        return self.shadow.shape


def is_exact(dtype: Any) -> bool:
    """Whether a dtype's numbers are exact as they are: integers and booleans."""
    return np.dtype(dtype).kind in "biu"


class Facts:
    """What the shadows decided and the residues confirmed: recorded in a first run, the same in every other one."""

    def __init__(self) -> None:
        self.known: list[Any] = []
        self.decisions: list[tuple[str, np.ndarray]] = []
        self.ambiguous: dict[str, None] = {}  # operations that compare what is equal in the shadow alone
        self.constants: dict[str, None] = {}  # that stand for another number than their own
        self.lost: dict[str, None] = {}  # that were lost in rounding, and are left out
        self.opaque: dict[str, None] = {}
        self.others: dict[str, None] = {}  # further assumptions


class Machine:
    """A run: the domain that fields belong to, the platform whose formulation is taken, and the facts."""

    def __init__(self, domain: Any, platform: str | None, facts: Facts, *, replay: bool):
        self.domain = domain
        self.platform = platform
        self.facts = facts
        self._replay = iter(facts.known) if replay else None

    # --- facts ---

    def fact(self, find: Callable[[], Any]) -> Any:
        """What `find` finds by the residues of the first run, in every run."""
        if self._replay is not None:
            return next(self._replay)
        self.facts.known.append(found := find())
        return found

    def decide(self, name: str, decided: np.ndarray) -> None:
        """Records what the shadows decided."""
        if self._replay is None:
            self.facts.decisions.append((name, np.asarray(decided, bool)))

    # --- making values ---

    def exact(self, array: Any) -> Value:
        """An array of integers or booleans."""
        return Value(np.asarray(array))

    def constant(self, array: np.ndarray, dtype: Any = None) -> Value:
        """A constant of a program, which stands for a simple number that rounds to it."""
        name = "float64" if is_exact(dtype or array.dtype) else np.dtype(dtype or array.dtype).name
        shadow = np.asarray(array).astype(np.float64)
        distinct, where = np.unique(shadow, return_inverse=True)
        fractions = [read(v, name) if np.isfinite(v) else read(0.0, name) for v in distinct.tolist()]
        for value, fraction in zip(distinct.tolist(), fractions, strict=True):
            if np.isfinite(value) and (fraction != value or not is_simple(fraction)):
                text = f"{value!r} = {fraction}" if is_simple(fraction) else f"{value!r} (no simple fraction)"
                self.facts.constants.setdefault(text)
        special = ~np.isfinite(shadow)
        square = all(f > 0 and is_smooth(f) for f in fractions)
        return Value(shadow, self.domain.constant(fractions, where.reshape(shadow.shape)), _any(special), square=square)

    def as_float(self, value: Value) -> Value:
        """An integer or boolean array as a float."""
        if value.field is not None:
            return value
        return Value(value.shadow.astype(np.float64), self.domain.integers(value.shadow))

    def number(self, n: int) -> Value:
        """A scalar that is an integer."""
        return self.as_float(self.exact(np.asarray(n)))

    # --- applying operations ---

    def structural(self, of: Callable[..., Any], *values: Value) -> Value:
        """`of`, which moves elements about, applied to the arrays; a field's last axis is no axis to it."""
        shadow = of(*(v.shadow for v in values))
        if values[0].field is None:
            return Value(shadow)
        fields = [v.field for v in values]
        special = None
        if any(v.special is not None for v in values):
            special = _any(of(*(np.zeros(v.shape, bool) if v.special is None else v.special for v in values)))
        field = self.domain.each(of, *self.same_draws(fields) if len(values) > 1 else fields)
        return Value(shadow, field, special, _largest(*(v.degree for v in values)), all(v.square for v in values))

    def same_draws(self, fields: Sequence[Any]) -> list[Field]:
        """The fields with axes of draws of one size."""

        def widened(*level: np.ndarray) -> list[np.ndarray]:
            draws = max(a.shape[-1] for a in level)
            return [np.broadcast_to(a, (*a.shape[:-1], draws)) for a in level]

        known = [level if all(a is not None for a in level) else None for level in zip(*fields, strict=True)]
        levels = [[None] * len(fields) if level is None else widened(*level) for level in known]
        return [tuple(level[i] for level in levels) for i in range(len(fields))]

    def result(
        self,
        shadow: np.ndarray,
        field: Field,
        operands: Sequence[Value],
        degree: Degree,
        made: np.ndarray | None = None,
    ) -> Value:
        """A value of an operation. Of a special operand it is what the shadow says: special again, or a number.

        `made` is where the operation makes something special of operands that are not.
        """
        shadow = np.asarray(shadow)
        special = made
        if any(v.special is not None for v in operands):
            if all(v.special is None or v.shape in ((), shadow.shape) for v in operands):
                came = np.any([np.broadcast_to(v.special, shadow.shape) for v in operands if v.special is not None], 0)
            else:
                came = ~np.isfinite(shadow)
            if (settled := came & np.isfinite(shadow)).any():
                field = self.select(settled, self.constant(np.where(settled, shadow, 0.0)).field, field)
            special = came & ~settled if made is None else came & ~settled | made
        return Value(shadow, field, None if special is None else _any(special), degree)

    def select(self, which: np.ndarray, yes: Any, no: Any) -> Field:
        """Elements of one field where `which`, else of another."""
        yes, no = self.same_draws([yes, no])
        return self.domain.each(lambda y, n: np.where(which[..., None], y, n), yes, no)

    def opaque(self, name: str, shadow: np.ndarray, *values: Value) -> Value:
        """A function about which nothing is known but that equal arguments have equal values."""
        self.facts.opaque.setdefault(name)
        field = self.domain.opaque(name, *(v.field for v in values))
        return self.result(shadow, field, values, (sum(map(sum, (v.degree for v in values))) or 1, 0))

    def equal(self, a: Value, b: Value) -> np.ndarray:
        """Where two floats are equal in exact arithmetic; special ones are by their shadows."""

        def find() -> np.ndarray:
            equal = np.broadcast_to(self.domain.are_equal(a.field, b.field), np.broadcast_shapes(a.shape, b.shape))
            special = is_special(a) | is_special(b)
            return np.where(special, a.shadow == b.shadow, equal)

        return self.fact(find)

    def watch_ties(self, name: str, a: Value, b: Value) -> np.ndarray:
        """Where two floats are equal; if they are so in their shadows alone, rounding would decide `name`."""
        equal = self.equal(a, b)
        doubtful = (a.shadow == b.shadow) & ~equal | _lost(a) | _lost(b)
        if doubtful.any():
            self.facts.ambiguous.setdefault(name)
        return equal


def is_special(value: Value) -> np.ndarray:
    """Where a value is."""
    return np.zeros(value.shape, bool) if value.special is None else value.special


def _lost(value: Value) -> np.ndarray:
    """Where the shadow is NaN and the value is not: an overflow took its order."""
    lost = np.isnan(value.shadow)
    return lost & ~is_special(value) if lost.any() else lost


def _any(special: np.ndarray) -> np.ndarray | None:
    return special if special.any() else None


def _largest(*degrees: Degree) -> Degree:
    return max(d[0] for d in degrees), max(d[1] for d in degrees)


def degree_of_sum(a: Degree, b: Degree) -> Degree:
    """Over a common denominator."""
    return max(a[0] + b[1], b[0] + a[1]), a[1] + b[1]


def degree_of_total(a: Degree, count: int) -> Degree:
    """Of a sum of so many."""
    return a[0] + max(count - 1, 0) * a[1], max(count, 1) * a[1]


def degree_of_product(a: Degree, b: Degree) -> Degree:
    """Of a b."""
    return a[0] + b[0], a[1] + b[1]
