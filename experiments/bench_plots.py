"""Pictures of the benchmarks' results: ratio bars with the floor marked, and memory stacked."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from bench_tables import NAMES, digits, sides_of

matplotlib.use("Agg")
from matplotlib import pyplot, ticker

Rows = Sequence[Mapping[str, Any]]
COLOURS = {
    "jaxnorm": "#222222",
    "plain": "#8c8c8c",
    "linen": "#1f77b4",
    "nnx": "#17becf",
    "haiku": "#9467bd",
    "equinox": "#2ca02c",
    "optax": "#e0a800",
    "composed": "#c49c94",
    "torch": "#d62728",
    "composed-float32": "#8c564b",
    "tokamax": "#e377c2",
    "torch-chunked": "#ff9896",
}
TICKS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
INCHES_PER_BAR = 0.11


def on_log_axis(axes: Any) -> None:
    """Ticks that are read without exponents, a line at jaxnorm's own time."""
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    low, high = min(low, 0.8), max(high, 1.25)
    ticks = [t for t in TICKS if low <= t <= high]
    if len(ticks) > 7:
        ticks = [t for t in ticks if f"{t:e}"[0] == "1"]
    axes.set_xlim(low, high)
    axes.xaxis.set_major_locator(ticker.FixedLocator(ticks))
    axes.xaxis.set_major_formatter(ticker.FuncFormatter(lambda t, _: f"{t:g}"))
    axes.xaxis.set_minor_locator(ticker.NullLocator())
    axes.axvline(1, color="black", linewidth=1)
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def ratio_bars(axes: Any, rows: Rows, labels: Sequence[str], sides: Sequence[str]) -> None:
    """A group for each row, a bar for each rival, from 1 to how many times as long it takes; the floor is marked."""
    height = 0.8 / max(len(sides), 1)
    for i, side in enumerate(sides):
        have = [(y, row["ratio"][side]) for y, row in enumerate(rows) if side in row["ratio"]]
        if not have:
            continue
        at = np.array([y for y, _ in have]) - 0.4 + height * (i + 0.5)
        quartiles = np.array([ratio for _, ratio in have])
        axes.barh(at, quartiles[:, 1] - 1, height * 0.9, left=1, color=COLOURS[side], label=NAMES[side])
        axes.hlines(at, quartiles[:, 0], quartiles[:, 2], color="black", linewidth=0.7, alpha=0.6)
    floors = [(y, row["ratio"]["floor"][1]) for y, row in enumerate(rows) if "floor" in row["ratio"]]
    for number, (y, floor) in enumerate(floors):
        label = "floor" if number == 0 else None
        axes.vlines(floor, y - 0.42, y + 0.42, color="black", linewidth=2, linestyle=(0, (1.5, 1)), label=label)
    axes.set_yticks(range(len(rows)), labels)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    for y in np.arange(len(rows) - 1) + 0.5:
        axes.axhline(y, color="#eeeeee", linewidth=0.8)
    on_log_axis(axes)


def legend(figure: Any, panels: Iterable[Any], columns: int = 8) -> None:
    """One for the whole figure, below it."""
    found: dict[str, Any] = {}
    for panel in panels:
        found |= dict(zip(*reversed(panel.get_legend_handles_labels()), strict=True))
    figure.legend(
        found.values(), found.keys(), loc="outside lower center", ncols=min(len(found), columns), frameon=False
    )


def panels_of_ratios(path: Path, title: str, panels: Mapping[str, tuple[Rows, list[str]]], columns: int) -> None:
    """A picture of several panels that share their rivals."""
    sides = [s for s in sides_of([row for rows, _ in panels.values() for row in rows]) if s in COLOURS]
    lines = -(-len(panels) // columns)
    tallest = max(len(rows) for rows, _ in panels.values())
    height = lines * (0.75 + INCHES_PER_BAR * tallest * (len(sides) + 1)) + 0.8
    figure, grid = pyplot.subplots(lines, columns, figsize=(4.6 * columns, height), layout="constrained", squeeze=False)
    for axes, (name, (rows, labels)) in zip(grid.flat, panels.items(), strict=False):
        ratio_bars(axes, rows, labels, sides)
        axes.set_title(name, fontsize=11)
        axes.set_xlabel("time (jaxnorm = 1)", fontsize=9)
        axes.tick_params(labelsize=9)
    for axes in list(grid.flat)[len(panels) :]:
        axes.remove()
    legend(figure, grid.flat[: len(panels)], 3 * columns)
    figure.suptitle(title if columns > 1 else title.replace(": ", ":\n"), fontsize=13)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def labelled(rows: Rows) -> list[str]:
    """Names, with jaxnorm's own time."""
    return [f"{row['name']}\n{digits(row['ms']['jaxnorm'][1])} ms" for row in rows]


def plot_modes(path: Path, rows: Rows) -> None:
    """Norms, losses, pooling and models of one example: a panel for each size, mode and dtype."""
    panels = {}
    for key in dict.fromkeys((row["dtype"], row["size"], row["mode"]) for row in rows):
        chosen = [row for row in rows if (row["dtype"], row["size"], row["mode"]) == key]
        panels[", ".join((key[1], key[2], key[0]))] = (chosen, labelled(chosen))
    per_dtype = max(sum(row_dtype in name for name in panels) for row_dtype in ("float32", "bfloat16"))
    title = f"{path.stem.partition('_')[2]}, forward and backward: how many times as long the others take"
    panels_of_ratios(path, title, panels, min(per_dtype, 3))


def plot_conv(path: Path, rows: Rows) -> None:
    """Convolutions: a panel for each product (and size and dtype)."""
    panels = {}
    for key in dict.fromkeys((row["dtype"], row["size"], row["part"]) for row in rows):
        chosen = [row for row in rows if (row["dtype"], row["size"], row["part"]) == key]
        labels = [f"{row['name']}, {digits(row['ms']['jaxnorm'][1])} ms" for row in chosen]
        panels[f"{key[2]} ({key[1]}, {key[0]})"] = (chosen, labels)
    panels_of_ratios(path, "convolutions: how many times as long the others take", panels, min(len(panels), 3))


class Bar(NamedTuple):
    """A side's value; a pale part of it at the left, and what is written beside it, if that is not the value."""

    side: str
    value: float
    pale: float = 0.0
    text: str = ""


def horizontal(axes: Any, groups: Sequence[tuple[str, Sequence[Bar]]], unit: str, limit: float = np.inf) -> None:
    """Groups of bars with numbers beside them; those beyond the limit end there."""
    at, middles = 0.0, []
    for _, bars in groups:
        middles.append(at + (len(bars) - 1) / 2)
        for bar in bars:
            length, colour = min(bar.value, limit), COLOURS[bar.side]
            axes.barh(at, length - bar.pale, 0.85, left=bar.pale, color=colour, label=NAMES[bar.side])
            axes.barh(at, bar.pale, 0.85, color=colour, alpha=0.35)
            axes.text(length, at, f" {bar.text or digits(bar.value)}", va="center", fontsize=8)
            at += 1
        at += 0.8
    axes.set_yticks(middles, [name for name, _ in groups], fontsize=9)
    axes.set_ylim(at - 1, -0.8)
    axes.set_xlim(0, 1.18 * min(limit, max(bar.value for _, bars in groups for bar in bars)))
    axes.set_xlabel(unit, fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)


def bars_of(values: Mapping[str, float]) -> list[Bar]:
    """In the order of the colours."""
    return [Bar(side, values[side]) for side in COLOURS if side in values]


def stacked(row: Mapping[str, Any]) -> list[Bar]:
    """A training step's arguments and temporary memory."""
    found = []
    for side, temporary, *_ in bars_of(row["temporary_mb"]):
        arguments = row["argument_mb"][side]
        found.append(Bar(side, arguments + temporary, arguments, f"{digits(arguments)} + {digits(temporary)}"))
    return found


def plot_memory(path: Path, recorded: Mapping[str, Rows]) -> None:
    """Left: what a training step needs, its arguments and its temporary memory stacked. Right: what functions keep."""
    rows, kept = recorded["memory"], recorded["kept"]
    bars = max(sum(len(row["temporary_mb"]) + 0.8 for row in rows), sum(len(row["kept"]) + 0.8 for row in kept), 8)
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(12, 1.6 + 0.17 * bars), layout="constrained")
    if rows:
        totals = [(f"{row['name']}\n{row['dtype']}", stacked(row)) for row in rows]
        horizontal(left, totals, "MB: pale parameters, optimizer's state and batch; dark temporary")
    left.set_title("training step", fontsize=11)
    if kept:
        groups = [(f"{row['name']}\n{row['dtype']}", bars_of(row["kept"])) for row in kept]
        horizontal(right, groups, "units of x (or of the logits, or of hidden)", 6.5)
    right.set_title("kept for the backward pass, beside the arguments", fontsize=11)
    legend(figure, (left, right))
    figure.suptitle("memory", fontsize=13)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def plot_training(path: Path, rows: Rows) -> None:
    """How many times as long flax's layers take, and both sides' temporary memory."""
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 1.6 + 0.55 * len(rows)), layout="constrained")
    several = len({(row["dtype"], row["size"]) for row in rows}) > 1
    names = [f"{row['name']}, {row['size']}, {row['dtype']}" if several else row["name"] for row in rows]
    labels = [f"{name}\n{digits(row['ms']['jaxnorm'][1])} ms" for name, row in zip(names, rows, strict=True)]
    ratio_bars(left, rows, labels, ["linen"])
    left.set_title("time of a step", fontsize=11)
    left.set_xlabel("time (jaxnorm = 1)", fontsize=9)
    horizontal(right, [(n, bars_of(row["temporary_mb"])) for n, row in zip(names, rows, strict=True)], "MB")
    right.set_title("temporary memory of a step", fontsize=11)
    legend(figure, (left, right))
    figure.suptitle("training steps: loss, gradients and AdamW", fontsize=13)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def plot(folder: Path, section: str, recorded: Mapping[str, Any]) -> Path:
    """Draws a section's picture into the folder, named after the platform and the section."""
    path, rows = folder / f"{recorded['machine']['backend']}_{section}.png", recorded["rows"]
    if section in ("norms", "losses", "pooling", "examples"):
        plot_modes(path, rows[section])
    elif section == "conv":
        plot_conv(path, rows["conv"])
    elif section == "memory":
        plot_memory(path, rows)
    else:
        plot_training(path, rows["train"])
    return path
