"""What the README says first: one number for each kind of program, as a table and as its picture."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bench_plots import on_log_axis, pyplot
from bench_tables import Grid, Rows, digits, markdown, over_best
from PIL import Image


class Headline(NamedTuple):
    """What the README says first: how many times the rival's number this library's is."""

    where: str  # the platform, and whether anything ran there
    what: str
    rival: str
    ratios: list[float]  # the rival's over this library's: above 1 this library takes less

    @property
    def ratio(self) -> float:
        """The geometric mean."""
        return statistics.geometric_mean(self.ratios)


NETWORKS = (("MobileNet", "ConvNeXt", "ResNeXt"), ("ResNet", "transformer"))
DEVICES = {"v5e": "TPU v5e, compiled, not run", "h100": "H100, compiled, not run"}
GROUPS = {"norms": ("norms",), "softmax and losses": ("softmax", "losses")}


def headlines(results: Mapping[str, Any], recorded: Sequence[Mapping[str, Any]]) -> list[Headline]:
    """Training steps, norms, losses and convolutions on a CPU; programs compiled for a TPU and a GPU."""

    def rows(section: str) -> Rows:
        return results[section]["rows"][section] if section in results else []

    def timed(section: str, side: str, **fields: str) -> list[float]:
        chosen = [row for row in rows(section) if all(row[name] == value for name, value in fields.items())]
        return [row["ratio"][side][1] for row in chosen if side in row["ratio"]]

    found = []
    for names in NETWORKS:
        steps = [row for row in rows("train") if row["name"] in names]
        times = [row["ratio"]["linen"][1] for row in steps]
        memory = [row["temporary_mb"]["linen"] / row["temporary_mb"]["jaxnorm"] for row in steps]
        what = f"training step of {', '.join(names)}"
        found += [
            Headline("CPU", f"{what}: {of}", "flax", ratios) for of, ratios in (("time", times), ("memory", memory))
        ]
    jitted = {"mode": "jitted", "dtype": "float32"}
    found.append(Headline("CPU", "norms: time", "flax", timed("norms", "linen", **jitted)))
    found.append(Headline("CPU", "losses: time", "optax", timed("losses", "optax", **jitted)))
    grouped = [ratio for row in ("forward", "dX", "dW") for ratio in timed("conv", "plain", **_GROUPED, part=row)]
    found.append(Headline("CPU", "grouped and depthwise convolutions: time", "lax", grouped))
    linear = [row["temporary_mb"] for row in rows("losses") if row["name"].startswith("linear") and row["temporary_mb"]]
    memory = [max(mb["plain"] / mb["jaxnorm"] for mb in linear)] if linear else []
    found.append(Headline("CPU", "last layer with its loss: memory", "whole logits", memory))
    found += [headline for compiled in recorded for headline in _compiled_headlines(compiled)]
    return [headline for headline in found if headline.ratios]


_GROUPED = {"kind": "grouped, depthwise, patches"}


def _compiled_headlines(compiled: Mapping[str, Any]) -> Iterable[Headline]:
    """Of one device that was not there: a TPU's estimated cycles, a GPU's bytes."""
    target = str(compiled["target"])
    key = "cycles" if any(n["cycles"] for row in compiled["rows"] for n in row["sides"].values()) else "bytes"
    for name, sections in GROUPS.items() if target in DEVICES else ():
        chosen = [row for row in compiled["rows"] if row["section"] in sections and row["program"] == "both"]
        ratios = [1 / ratio for row in chosen if (ratio := over_best(row, key))]
        what = f"{name}: {'estimated cycles' if key == 'cycles' else 'bytes moved'}"
        yield Headline(DEVICES[target], what, "best of 5", ratios)


def headline_grid(found: Sequence[Headline]) -> Grid:
    """The headlines as a table."""
    cells = []
    for line in found:
        span = f" ({digits(min(line.ratios))} to {digits(max(line.ratios))})" if len(line.ratios) > 1 else ""
        cells.append([line.where, line.what, line.rival, f"{digits(line.ratio)}{span}"])
    return Grid("", ["where", "what", "rival", "rival's ÷ jaxnorm's"], cells, 3)


def draw_headlines(found: Sequence[Headline], path: Path) -> None:
    """One bar for each headline: how many times what this library takes the rival takes."""
    colours = dict(zip(dict.fromkeys(line.where for line in found), ("#1f77b4", "#d62728", "#2ca02c"), strict=False))
    figure, axes = pyplot.subplots(figsize=(10, 0.7 + 0.32 * len(found)), layout="constrained")
    for y, line in enumerate(found):
        label = line.where if all(before.where != line.where for before in found[:y]) else None
        axes.barh(y, line.ratio - 1, 0.7, left=1, color=colours[line.where], label=label)
        axes.hlines(y, min(line.ratios), max(line.ratios), color="black", linewidth=0.8, alpha=0.6)
        axes.annotate(f" {digits(line.ratio)}", (max(line.ratios), y), va="center", fontsize=9)
    axes.set_yticks(range(len(found)), [f"{line.what} ({line.rival})" for line in found], fontsize=9)
    axes.set_ylim(len(found) - 0.5, -0.5)
    on_log_axis(axes)
    axes.set_xlabel("the rival's, in units of jaxnorm's (above 1 jaxnorm is ahead)", fontsize=9)
    axes.legend(loc="lower right", fontsize=9)
    figure.savefig(path, dpi=130, metadata={"Description": markdown(headline_grid(found))})
    pyplot.close(figure)


def drawn_headlines(path: Path) -> str | None:
    """The numbers that the picture was drawn from, which its file holds too."""
    with Image.open(path) as image:
        return image.info.get("Description")
