"""Comparisons and what they amount to: one row per check and argument, and the report of all of them."""

import dataclasses
import io
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

# What a check's failure means for whoever uses the rule, gravest first: a wrong value, then a wrong value under some
# transformation, then lost digits, then a dtype. A check that is not here comes between the first two and the rest.
GRAVITY = (
    ("search", "primal"),
    (
        "cotangent",
        "tangent",
        "differences",
        "shard_map",
        "auto axes",
        "explicit axes",
        "unequal shards",
    ),
    ("linear", "reverse mode"),
    (),
    ("second order", "grad of grad", "jvp of grad", "grad of jvp", "jvp of jvp"),
    ("float", "bfloat"),
    ("digits",),
    ("structure",),
    ("mixed dtypes", "sharding", "gathers"),
)
_UNLISTED = GRAVITY.index(())


@dataclasses.dataclass(frozen=True)
class Row:
    """One check of one argument (or output): the worst element, and whether it holds."""

    check: str  # what was checked: "cotangent", "vmap over x", ...
    about: str  # the argument or output: "x", "params['kernel']", "output[1]"
    ok: bool
    index: tuple[int, ...] | None = None  # of the worst element, () for a scalar; None where no element is meant
    got: float | None = None
    wanted: float | None = None
    error: float = 0.0  # of the worst element: the one with the largest error in units of its tolerance
    tolerance: float | None = None
    note: str = ""
    comparable: bool = True  # whether values can be compared where this fails

    @property
    def ratio(self) -> float:
        """The error in units of the tolerance: above 1 it fails."""
        return 0.0 if self.tolerance is None else self.error / self.tolerance

    @property
    def gravity(self) -> int:
        """How grave a failure of this check is: 0 is the gravest."""
        return next((i for i, checks in enumerate(GRAVITY) if checks and self.check.startswith(checks)), _UNLISTED)

    def __str__(self) -> str:
        if self.got is None:
            return f"{self.check}: {self.about}: {self.note}"
        where = f" at {list(self.index)}" if self.index else ""
        text = f"{self.check}: {self.about}{where}: got {self.got:.8g}, wanted {self.wanted:.8g}"
        text += f" (error {self.error:.2g}, tolerance {self.tolerance:.2g})"
        return f"{text}: {self.note}" if self.note else text


@dataclasses.dataclass(frozen=True)
class Report:
    """What a check found: truthy `ok`, `failures` as sentences, and every row."""

    name: str
    rows: tuple[Row, ...]
    cost: dict[str, Any] = dataclasses.field(default_factory=dict)  # of this function and of its reference, if measured
    setting: str = ""  # device, version of JAX, precision of products
    code: str = ""  # a line of Python that fails in the same way, where `search` found one
    brief: bool = False  # whether the text has the failing rows alone

    @property
    def ok(self) -> bool:
        """Whether every check holds."""
        return all(row.ok for row in self.rows)

    @property
    def failures(self) -> list[str]:
        """A sentence for every check that does not hold, gravest first: the check, the argument, element, reason."""
        return [str(row) for row in sorted(self.rows, key=lambda row: row.gravity) if not row.ok]

    @property
    def worst(self) -> float:
        """The largest error in units of its tolerance: at most 1 if all holds."""
        return max((row.ratio for row in self.rows), default=0.0)

    def raise_if_failed(self) -> None:
        """Raises AssertionError with this report's text if a check does not hold."""
        if not self.ok:
            raise AssertionError(str(self))

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data that JSON can hold: numbers that are not finite become text."""
        rows = [{**dataclasses.asdict(row), "index": row.index and list(row.index)} for row in self.rows]
        known = {"name": self.name, "ok": self.ok, "failures": self.failures, "setting": self.setting}
        return {**known, "code": self.code, "rows": _plain(rows), "cost": self.cost}

    def __str__(self) -> str:
        failures = self.failures
        verdict = f"{len(self.rows)} checks hold" if self.ok else f"{len(failures)} of {len(self.rows)} checks fail"
        cells = [_cells(row) for row in self.rows if not (self.brief and row.ok)]
        table = as_table(("check", "of", "worst at", "got", "wanted", "error / tolerance", "note"), cells)
        lines = [f"{self.name}: {verdict}", *(f"  {f}" for f in failures), table.rstrip() if cells else ""]
        lines += [
            f"reproduce: {self.code}" if self.code else "",
            *([] if self.brief else _cost(self.cost)),
            self.setting,
        ]
        return "\n".join(filter(None, lines))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _cells(row: Row) -> tuple[str, ...]:
    where = "" if row.index is None else str(list(row.index)) if row.index else "scalar"
    numbers = ("", "") if row.got is None else (f"{row.got:.6g}", f"{row.wanted:.6g}")
    # A row with nothing but a note says what was left out.
    verdict = "FAILS" if not row.ok else "" if row.note else "holds"
    ratio = verdict if row.tolerance is None else f"{row.ratio:.2g}"
    return row.check, row.about, where, *numbers, ratio if row.ok else f"{ratio} !", row.note


def _cost(cost: dict[str, Any]) -> Iterator[str]:
    for what, sides in cost.items():
        if isinstance(sides, dict):
            known = [f"{side} {value:,.0f}" for side, value in sides.items() if value is not None]
            yield f"{what} ({cost['dtype']}): {', '.join(known) or 'this backend does not tell'}"


def as_table(columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """Rows of text as a table: by rich where it is installed, else in plain columns."""
    try:
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text
    except ImportError:
        widths = [max(map(len, column)) for column in zip(columns, *rows, strict=True)]
        lines = [columns, tuple("-" * w for w in widths), *rows]
        return "\n".join("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines)
    table = Table()
    for column in columns:
        table.add_column(column)
    for row in rows:
        table.add_row(*map(Text, row))
    console = Console(width=120, file=io.StringIO(), color_system=None)
    console.print(table)
    return str(getattr(console.file, "getvalue", str)())


def compare(check: str, about: str, got: Any, wanted: Any, allowed: Any, reason: str = "") -> Row:
    """The row of one array against another, whose element `i` may err by `allowed[i]`. NaN and infinities must agree.

    `reason` is what it means if they differ.
    """
    if np.shape(got) != np.shape(wanted):
        return Row(check, about, False, note=f"shape {np.shape(got)} instead of {np.shape(wanted)}")
    got, wanted = np.asarray(got).astype(np.float64), np.asarray(wanted).astype(np.float64)
    if not got.size:
        return Row(check, about, True, note="empty")
    allowed = np.broadcast_to(np.maximum(allowed, np.finfo(np.float64).tiny), got.shape)
    with np.errstate(all="ignore"):
        error = np.where((got == wanted) | (np.isnan(got) & np.isnan(wanted)), 0.0, np.abs(got - wanted))
        error = np.where(np.isnan(error), np.inf, error)
        ratio = error / allowed
    at = np.unravel_index(np.argmax(ratio), ratio.shape)
    wrong = int(np.sum(ratio > 1))
    note = "; ".join(filter(None, (reason, _pattern(got, wanted, allowed, wrong)))) if wrong else ""
    numbers = (float(a[at]) for a in (got, wanted, error, allowed))
    return Row(check, about, not wrong, tuple(map(int, at)), *numbers, note=note)


def _pattern(got: np.ndarray, wanted: np.ndarray, allowed: np.ndarray, wrong: int) -> str:
    """What a wrong array looks like: a multiple of the right one, NaN, or wrong in so many elements."""
    count = f"{wrong} of {got.size} elements are wrong" if got.size > 1 else ""
    if np.isfinite(wanted).all() and not np.isfinite(got).all():
        return f"{count or 'it'}: not finite"
    factor = multiple(got, wanted, allowed)
    return (
        count
        if factor is None
        else "it is 0 everywhere"
        if not factor
        else f"it is {factor:.6g} times what it should be"
    )


def multiple(got: np.ndarray, wanted: np.ndarray, allowed: np.ndarray) -> float | None:
    """The number that every element is a multiple of the wanted one by; None if there is none, or some do not tell."""
    tells = wanted != 0
    if not np.isfinite([got, wanted]).all() or np.sum(tells) < 2:
        return None
    factor = float(np.vdot(wanted, got) / np.vdot(wanted, wanted))
    factor = 0.0 if abs(factor) < 1e-6 else factor
    off = np.abs(got - factor * wanted)
    apart = np.abs((1 - factor) * wanted) > 2 * allowed  # else right and wrong look alike here
    agrees = off <= allowed + min(1e-6 * max(abs(factor), 1), 1e-3 * abs(1 - factor)) * np.abs(wanted)
    return factor if np.all(agrees) and np.all(apart[tells]) else None


def exactly(check: str, about: str, got: Any, wanted: Any, tolerance: float, reason: str = "") -> Row:
    """The row of an array against the truth: an error up to `tolerance` times the largest entry is allowed."""
    finite = np.abs(np.asarray(wanted).astype(np.float64))
    finite = np.where(np.isfinite(finite), finite, 0)
    # Below 1e-3 the cotangents' own size, which is 1, stands in: a gradient that is 0 on paper has rounding errors.
    largest = max(float(np.max(finite, initial=0.0)), 1e-3)
    return compare(check, about, got, wanted, tolerance * (largest + finite), reason)


def summarize(rows: list[Row]) -> tuple[Row, ...]:
    """One row per check and argument: of several comparisons the worst."""
    worst: dict[tuple[str, str], Row] = {}
    for row in rows:
        before = worst.setdefault((row.check, row.about), row)
        if (not row.ok, row.ratio) > (not before.ok, before.ratio):
            worst[row.check, row.about] = row
    return tuple(worst.values())
