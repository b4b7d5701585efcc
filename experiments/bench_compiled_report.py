"""The compiled programs' numbers as a table, a file and a picture."""

import datetime
import json
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from bench_plots import legend, on_log_axis, pyplot
from bench_tables import NAMES, Grid, best, digits, over_best

KEYS = {"bytes": "#1f77b4", "cycles": "#e0a800"}
TICKS = (0.1, 0.2, 0.3, 0.5, 0.7, 1, 1.4, 2, 3, 5, 10, 20)
PACKAGES = ("jaxnorm", "jax", "jaxlib", "flax", "dm-haiku", "equinox", "optax")
Rows = Sequence[Mapping[str, Any]]


def versions(compiler: str) -> dict[str, str]:
    """Of what takes part, where installed."""
    found = {}
    for package in (*PACKAGES, compiler):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def versions_text(compiler: str) -> str:
    """The same in a line."""
    return "; ".join(f"{name} {number}" for name, number in versions(compiler).items())


def _text(value: float | None, unit: float = 1.0) -> str:
    return "–" if value is None else digits(value / unit)


def _pair(row: Mapping[str, Any], key: str, unit: float = 1.0) -> str:
    ours, theirs = row["sides"].get("jaxnorm", {}).get(key), best(row, key)
    return f"{_text(ours, unit)}, {_text(theirs and theirs[1], unit)}"


def _cells(row: Mapping[str, Any], cycles: bool) -> list[str]:
    labels = [row["name"], row["dtype"], row["program"]]
    if "jaxnorm" in row["failed"]:
        return [*labels, f"failed: {row['failed']['jaxnorm']}"]
    ours, rival = row["sides"]["jaxnorm"], best(row, "bytes")
    cells = [*labels, _text(ours["bytes"], 1e6), _text(ours["bytes"] / row["floor"] if row["floor"] else None)]
    cells += [_text(over_best(row, "bytes")), NAMES[rival[0]] if rival else "–"]
    if cycles:
        cells += [_text(ours["cycles"], 1e6), _text(over_best(row, "cycles"))]
    kept = _pair(row, "kept", 1e6) if "kept" in ours else ""
    return [*cells, _pair(row, "temporary", 1e6), kept, _pair(row, "compile_s")]


def grid(target: str, rows: Rows) -> Grid:
    """One line for each program."""
    cycles = any(numbers["cycles"] for row in rows for numbers in row["sides"].values())
    columns = ["row", "dtype", "program", "MB moved", "÷ floor", "÷ best", "best is"]
    columns += ["Mcycles", "÷ best"] if cycles else []
    columns += ["temporary MB", "kept MB", "compile s"]
    title = (
        f"compiled for {target}, not run: jaxnorm's programs, and over (or beside, after the comma) the best rival's"
    )
    cells = [line + [""] * (len(columns) - len(line)) for line in (_cells(row, cycles) for row in rows)]
    return Grid(title, columns, cells, 3)


def failures(rows: Rows) -> list[str]:
    """Rivals that did not compile."""
    return [
        f"{row['name']}, {row['dtype']}, {row['program']}: {NAMES[side]} failed: {reason}"
        for row in rows
        for side, reason in row["failed"].items()
        if side != "jaxnorm"
    ]


def write(path: Path, target: str, compiler: str, command: str, rows: Rows) -> Mapping[str, Any]:
    """Writes the rows into the file; others in it stay if compilers and rivals had the same versions.

    This library's own version says little, since what is measured is its source: the file names each that is in it.
    """
    key = lambda row: (row["section"], row["name"], row["dtype"], row["program"])  # noqa: E731
    used = versions(compiler)
    before = json.loads(path.read_text()) if path.exists() else {}
    earlier = before.get("versions", {})
    kept = before.get("rows", []) if used == earlier | {"jaxnorm": used["jaxnorm"]} else []
    if kept:
        used["jaxnorm"] = ", ".join(dict.fromkeys([*earlier["jaxnorm"].split(", "), used["jaxnorm"]]))
    merged = {key(row): row for row in (*kept, *rows)}
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    head = {"target": target, "compiled, not run": True, "date": today, "command": command, "versions": used}
    lines = ",\n  ".join(json.dumps(row) for row in merged.values())
    text = json.dumps(head, indent=1, ensure_ascii=False).removesuffix("\n}")
    path.write_text(f'{text},\n "rows": [\n  {lines}\n ]\n}}\n')
    return head | {"rows": list(merged.values())}


def bars(axes: Any, rows: Rows) -> None:
    """Bytes, and a TPU's estimated cycles, over the best rival's: from 1 to the ratio."""
    for i, (key, colour) in enumerate(KEYS.items()):
        if have := [(y, ratio) for y, row in enumerate(rows) if (ratio := over_best(row, key))]:
            at, ratios = np.array([y for y, _ in have]) - 0.2 + 0.4 * i, np.array([ratio for _, ratio in have])
            axes.barh(at, ratios - 1, 0.36, left=1, color=colour, label=key)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    on_log_axis(axes)
    low, high = axes.get_xlim()
    ticks = [tick for tick in TICKS if low <= tick <= high]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks], fontsize=8)
    axes.set_xlabel("jaxnorm's over the best rival's", fontsize=9)


def plot(path: Path, target: str, rows: Rows) -> None:
    """A panel for each kind of program."""
    panels = {name: [r for r in rows if r["program"] == name] for name in dict.fromkeys(r["program"] for r in rows)}
    size = (2.2 + 3.4 * len(panels), 1.5 + 0.17 * max(len(chosen) for chosen in panels.values()))
    figure, grid = pyplot.subplots(1, len(panels), figsize=size, layout="constrained", squeeze=False)
    before: list[str] = []
    for axes, (name, chosen) in zip(grid.flat, panels.items(), strict=True):
        bars(axes, chosen)
        labels = [f"{row['name']}, {row['dtype']}" for row in chosen]
        axes.set_yticks(range(len(chosen)), labels if labels != before else [""] * len(labels), fontsize=7)
        axes.set_title(name, fontsize=11)
        before = labels
    legend(figure, grid.flat)
    figure.suptitle(
        f"compiled for {target}, not run: what jaxnorm's programs move (left of the line: less)", fontsize=13
    )
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
