"""The benchmarks' results as tables: in the terminal, and as Markdown in the documentation.

    python experiments/bench_tables.py          writes these tables and the README's picture from experiments/results
    python experiments/bench_tables.py --check  exits with 1 if a table differs from what is recorded there
    python experiments/bench_tables.py --record-check FILE   records what `python -m jaxnorm check --json FILE` wrote

A table's place in a text lies between `<!-- table: NAME -->` and `<!-- end -->`.
"""

import argparse
import datetime
import json
import re
import statistics
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "experiments" / "results" / "cpu.json"
PICTURE = RESULTS.parent / "headline.png"
ZOO = RESULTS.parent / "zoo" / "zoo.json"
ZOO_SHOWN = ("haiku MobileNetV1", "keras EfficientNetB0", "equimo ConvNeXtTiny", "transformers RegNetY")
CHECK = RESULTS.parent / "check.json"
PAGES = ("benchmarks.md", "accelerators.md", "howto/any_model.md", "howto/check.md")
TEXTS = [*(ROOT / "docs" / name for name in PAGES), ROOT / "README.md"]
COMPILED = {"compiled": ("v5e", "h100"), "compiled-others": ("v6e", "v5p")}  # by table; the picture is of the first
LOADED = 0.2  # a row is marked if other processes had more of a core than this while it was measured
NAMES = {
    "jaxnorm": "jaxnorm",
    "plain": "plain JAX",
    "composed": "composed",
    "linen": "flax",
    "nnx": "flax nnx",
    "haiku": "haiku",
    "equinox": "equinox",
    "optax": "optax",
    "torch": "PyTorch",
    "composed-float32": "composed, float32 logits",
    "tokamax": "tokamax",
    "torch-chunked": "PyTorch in chunks",
}
MEMORY_COLUMN = "temporary MB: jaxnorm, plain JAX"
Rows = Sequence[Mapping[str, Any]]


class Grid(NamedTuple):
    """A table: the first `words` columns are text, the others numbers."""

    title: str
    columns: list[str]
    rows: list[list[str]]
    words: int = 1


def markdown(grid: Grid) -> str:
    """The table without its title."""
    rule = ["---" if i < grid.words else "---:" for i in range(len(grid.columns))]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (grid.columns, rule, *grid.rows))


def digits(value: float) -> str:
    """Three of them, without an exponent."""
    places = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2 if abs(value) >= 0.1 else 3
    return f"{value:.{places}f}"


def times_cells(row: Mapping[str, Any], others: Iterable[str]) -> list[str]:
    """Milliseconds with quartiles, the median over the floor, and every rival's ratio, with what it differs by."""
    floor = row["ratio"].get("floor")
    loaded = ", under load" if row.get("cores_elsewhere", 0) > LOADED else ""  # the earliest results do not say
    cells = [quartile_text(row["ms"]["jaxnorm"]) + loaded, digits(1 / floor[1]) if floor else "–"]
    for name in others:
        cell = digits(row["ratio"][name][1]) if name in row["ratio"] else "–"
        if name in row["differs"]:
            error = row["differs"][name]
            cell += " (not finite)" if error is None else f" (differs by {error:.0e})"
        cells.append(cell)
    return cells


def sides_of(rows: Rows) -> list[str]:
    """The rivals in any of the rows, in the order of NAMES."""
    found = {name for row in rows for name in row["ratio"]}
    return [name for name in NAMES if name in found]


def shape_text(shape: Sequence[int]) -> str:
    """Its sizes with a multiplication sign."""
    return "×".join(map(str, shape))


def memory_cell(row: Mapping[str, Any]) -> str:
    """Temporary memory of jaxnorm's program and of plain JAX's."""
    return ", ".join(digits(row["temporary_mb"][s]) for s in ("jaxnorm", "plain") if s in row["temporary_mb"])


def timed_grid(title: str, rows: Rows, first: str) -> Grid:
    """One row of times for each measured row, and their temporary memory where programs were compiled."""
    others = sides_of(rows)
    columns = [first, "shape", "jaxnorm, ms (quartiles)", "÷ floor", *(NAMES[name] for name in others)]
    cells = [[row["name"], shape_text(row["shape"]), *times_cells(row, others)] for row in rows]
    if any(row["temporary_mb"] for row in rows):
        columns.append(MEMORY_COLUMN)
        cells = [[*line, memory_cell(row)] for line, row in zip(cells, rows, strict=True)]
    return Grid(title, columns, cells, 2)


def modes(section: str, first: str, rows: Rows) -> dict[str, Grid]:
    """A table for each mode and dtype: the jitted float32 one is called as its section is."""
    found = {}
    for mode, dtype in dict.fromkeys((row["mode"], row["dtype"]) for row in rows):
        chosen = [row for row in rows if (row["mode"], row["dtype"]) == (mode, dtype)]
        name = "-".join([section, *([] if mode == "jitted" else [mode]), *([] if dtype == "float32" else [dtype])])
        title = f"{section}, {mode}, {dtype}: jaxnorm's ms, and how many times as long the others take"
        found[name] = timed_grid(title, chosen, first)
    return found


def conv_summary(rows: Rows) -> Grid:
    """Geometric means by kind and part."""
    others = sides_of(rows)
    cells = []
    for kind, part in dict.fromkeys((row["kind"], row["part"]) for row in rows):
        chosen = [row for row in rows if (row["kind"], row["part"]) == (kind, part)]
        line = [kind, part, digits(statistics.geometric_mean([1 / row["ratio"]["floor"][1] for row in chosen]))]
        for name in others:
            ratios = [row["ratio"][name][1] for row in chosen if name in row["ratio"]]
            span = f"{digits(statistics.geometric_mean(ratios))} ({digits(min(ratios))} to {digits(max(ratios))})"
            line.append(span)
        cells.append(line)
    title = "conv: how many times as long the others take, geometric means (and range)"
    return Grid(title, ["convolutions", "part", "÷ floor", *(NAMES[name] for name in others)], cells, 2)


def conv_rows(rows: Rows) -> Grid:
    """Every part of every convolution."""
    others = sides_of(rows)
    columns = ["convolution", "part", "jaxnorm, ms (quartiles)", "÷ floor", *(NAMES[n] for n in others), MEMORY_COLUMN]
    cells = [[row["name"], row["part"], *times_cells(row, others), memory_cell(row)] for row in rows]
    return Grid("conv: ms, and how many times as long the others take", columns, cells, 2)


def loops(rows: Rows) -> Grid:
    """Scan and vmap."""
    cells = [
        [r["name"], digits(r["ms"]["jaxnorm"][1]), *(digits(r["ratio"][f][1]) for f in ("scan", "vmap"))] for r in rows
    ]
    title = "forward, dX and dW of several kernels: time in units of the same written out"
    return Grid(title, ["convolution", "written out, ms", "scan", "vmap"], cells)


def memory_models(rows: Rows) -> Grid:
    """Compiled temporary memory and bytes kept of training steps."""
    sides = [name for name in NAMES if any(name in row["temporary_mb"] for row in rows)]
    columns = ["training step", "dtype", *(f"{NAMES[s]}, MB (kept)" for s in sides)]
    cells = [
        [row["name"], row["dtype"]]
        + [
            f"{digits(row['temporary_mb'][s])} ({digits(row['kept_mb'][s])})" if s in row["temporary_mb"] else "–"
            for s in sides
        ]
        for row in rows
    ]
    return Grid("memory: temporary MB of a training step (kept for the backward pass)", columns, cells, 2)


def memory_kept(rows: Rows) -> Grid:
    """Bytes kept by each function."""
    sides = [name for name in NAMES if any(name in row["kept"] for row in rows)]
    cells = [
        [row["name"], row["dtype"], *(f"{row['kept'][s]:.2f}" if s in row["kept"] else "–" for s in sides)]
        for row in rows
    ]
    title = "memory: kept for the backward pass beside the arguments, in units of the first one's bytes"
    return Grid(title, ["function", "dtype", *(NAMES[s] for s in sides)], cells, 2)


def training(rows: Rows) -> Grid:
    """Whole steps."""
    columns = ["network", "dtype", "flax, ms", "jaxnorm, ms", "times as fast", "temporary MB: flax, jaxnorm"]
    columns.append("to compile, s: flax, jaxnorm")
    cells = []
    for row in rows:
        ms = [digits(row["ms"][side][1]) for side in ("linen", "jaxnorm")]
        pairs = [", ".join(digits(row[key][s]) for s in ("linen", "jaxnorm")) for key in ("temporary_mb", "compile_s")]
        cells.append([row["name"], row["dtype"], *ms, digits(row["ratio"]["linen"][1]), *pairs])
    return Grid("train: loss, gradients and Adam", columns, cells, 2)


def zoo(rows: Rows) -> Grid:
    """Other libraries' models: JAX's convolutions, and this library's installed."""
    columns = ["one step", "times faster (quartiles)", "temporary MB: JAX, installed"]
    columns += ["processor seconds to compile: JAX, installed"]
    columns += ["difference of the gradients", "after a last-digit change of the input or parameters"]
    cells = []
    for row in rows:
        first, median, third = map(digits, row["ratio"])
        pairs = [
            ", ".join(digits(row[k][s]) for s in ("original", "jaxnorm"))
            for k in ("temporary_mb", "compile_processor_s")
        ]
        differences = [f"{row[key]:.0e}" for key in ("difference", "own_difference")]
        cells.append([row["model"], f"{median} ({first} to {third})", *pairs, *differences])
    return Grid("", columns, cells)


def zoo_shown(rows: Rows) -> Grid:
    """One model of each library that ships some, for the README."""
    columns = ["one training step, as the package ships it", "times faster", "temporary memory, of JAX's own"]
    cells = []
    for row in rows:
        if row["model"] in ZOO_SHOWN:
            memory = row["temporary_mb"]["jaxnorm"] / row["temporary_mb"]["original"]
            cells.append([row["model"], digits(row["ratio"][1]), digits(memory)])
    return Grid("", columns, cells)


def quartile_text(values: Sequence[float]) -> str:
    """The median, and the quartiles around it."""
    first, median, third = map(digits, values)
    return f"{median} ({first} to {third})"


def choice_cells(row: Mapping[str, Any]) -> list[str]:
    """What is taken and what could be, their times and temporary memory."""
    words = [*(row[name] for name in ("file", "taken", "instead")), f"{row['on']}: {row['shape']}"]
    times = [quartile_text(row["ms"][side]) for side in ("jaxnorm", "instead")]
    ratio = quartile_text(row["ratio"]["instead"])
    if "instead" in row["differs"]:
        ratio += f" (differs by {row['differs']['instead']})"
    return [*words, *times, ratio, ", ".join(digits(row["temporary_mb"][side]) for side in ("jaxnorm", "instead"))]


def choices(rows: Rows) -> dict[str, Grid]:
    """A table for each kind of choice."""
    columns = ["file", "taken", "instead", "measured on", "taken, ms", "instead, ms", "instead ÷ taken"]
    columns.append("temporary MB: taken, instead")
    found = {}
    for kind in dict.fromkeys(row["kind"] for row in rows):
        cells = [choice_cells(row) for row in rows if row["kind"] == kind]
        title = f"choices, {kind}: medians (and quartiles)"
        found[f"choices-{kind.replace(' ', '-')}"] = Grid(title, columns, cells, 4)
    return found


MAKERS: dict[str, Callable[[Rows], dict[str, Grid]]] = {
    "norms": lambda rows: modes("norms", "norm", rows),
    "losses": lambda rows: modes("losses", "loss", rows),
    "pooling": lambda rows: modes("pooling", "pooling", rows),
    "examples": lambda rows: modes("examples", "model", rows),
    "conv": lambda rows: {"conv": conv_summary(rows), "conv-rows": conv_rows(rows)},
    "loops": lambda rows: {"loops": loops(rows)},
    "memory": lambda rows: {"memory": memory_models(rows)},
    "kept": lambda rows: {"kept": memory_kept(rows)},
    "train": lambda rows: {"train": training(rows)},
    "choices": choices,
}


def best(row: Mapping[str, Any], key: str) -> tuple[str, float] | None:
    """The rival with the least, and what it has."""
    rivals = [(name, numbers[key]) for name, numbers in row["sides"].items() if name != "jaxnorm" and key in numbers]
    return min(rivals, key=lambda pair: pair[1], default=None)


def over_best(row: Mapping[str, Any], key: str) -> float | None:
    """How many times the best rival's number this library's is."""
    ours, theirs = row["sides"].get("jaxnorm"), best(row, key)
    return ours[key] / theirs[1] if ours and theirs and theirs[1] else None


def compiled_summary(recorded: Sequence[Mapping[str, Any]]) -> Grid:
    """Programs compiled for devices that were not there, over the best rival's: geometric means of the rows."""
    programs = {("both", "step"): "forward and backward", ("inference",): "inference"}
    columns, kept = ["function"], list[tuple[Rows, tuple[str, ...], str]]()
    for found in recorded:
        key = "cycles" if any(n["cycles"] for row in found["rows"] for n in row["sides"].values()) else "bytes"
        for program, text in programs.items():
            columns.append(f"{found['target']}, {text}: {'estimated cycles' if key == 'cycles' else 'bytes moved'}")
            kept.append((found["rows"], program, key))
    names = dict.fromkeys(_function_of(row) for found in recorded for row in found["rows"])
    cells = []
    for name in names:
        line = [name]
        for rows, program, key in kept:
            chosen = [row for row in rows if _function_of(row) == name and row["program"] in program]
            ratios = [ratio for row in chosen if (ratio := over_best(row, key))]
            line.append(digits(statistics.geometric_mean(ratios)) if ratios else "–")
        cells.append(line)
    return Grid("compiled, not run: jaxnorm's programs over the best rival's", columns, cells)


def _function_of(row: Mapping[str, Any]) -> str:
    """A row's name without its shape."""
    return str(row["name"]).rpartition(" ")[0] if row["section"] != "steps" else str(row["name"])


def machine_text(machine: Mapping[str, Any]) -> str:
    """One line on what the numbers were measured with."""
    used = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    device = "" if machine["backend"] == "cpu" else f"{machine['device']}; "
    allocator = "allocator told to keep its memory" if machine["environment"].get("MALLOC_TRIM_THRESHOLD_") else ""
    loads = machine.get("load_average")  # the earliest results do not say
    load = "load average {} before and {} after the run".format(*loads) if loads else ""
    parts = (f"{device}{machine['processor']}", f"{machine['cores']} cores", load, allocator, used)
    return "; ".join(part for part in parts if part)


def grids(results: Mapping[str, Any]) -> dict[str, Grid]:
    """Every table of the recorded sections, by name."""
    found: dict[str, Grid] = {}
    for recorded in results.values():
        for name, rows in recorded["rows"].items():
            if rows:
                found |= MAKERS[name](rows)
    return found


def tables(results: Mapping[str, Any]) -> dict[str, str]:
    """Markdown of every table, by name; `machine` is a line on the machine of each section that was recorded."""
    lines = dict.fromkeys(machine_text(recorded["machine"]) for recorded in results.values())
    found = {name: markdown(grid) for name, grid in grids(results).items()} | {"machine": "\n\n".join(lines)}
    from bench_headlines import headline_grid, headlines

    if ZOO.exists():
        rows = json.loads(ZOO.read_text(encoding="utf-8"))["rows"]
        found |= {"zoo": markdown(zoo(rows)), "zoo-shown": markdown(zoo_shown(rows))}
    if CHECK.exists():
        recorded = json.loads(CHECK.read_text(encoding="utf-8"))
        found["check"] = markdown(check_grid(recorded))
        found["check-machine"] = f"Recorded on {recorded['date']}: {recorded['machine']}."
    else:
        found |= {"check": "", "check-machine": "Nothing is recorded."}
    found["headline"] = markdown(headline_grid(headlines(results, compiled_results())))
    return found | {name: markdown(compiled_summary(compiled_results(name))) for name in COMPILED}


def check_grid(recorded: Mapping[str, Any]) -> Grid:
    """What `python -m jaxnorm check` found of each function."""
    columns = ["function", "cases", "failing", "worst error / tolerance", "bytes kept", "autodiff's"]
    rows = []
    for row in recorded["functions"]:
        kept = [f"{row[key]:,}" for key in ("bytes_kept", "bytes_kept_by_autodiff")]
        rows.append([f"`{row['function']}`", str(row["cases"]), str(row["failing"]), f"{row['worst']:.2g}", *kept])
    return Grid("check", columns, rows)


def record_check(report: Path) -> None:
    """Keeps of a report of `python -m jaxnorm check` what its table needs, without the rows of every case."""
    found = json.loads(report.read_text(encoding="utf-8"))
    kept = {"date": datetime.date.today().isoformat(), "machine": found["machine"], "functions": found["functions"]}
    CHECK.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


def compiled_results(table: str = "compiled") -> list[dict[str, Any]]:
    """What is recorded of programs for devices that were not there."""
    paths = [RESULTS.parent / f"compiled-{target}.json" for target in COMPILED[table]]
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths]


def rendered(text: str, found: Mapping[str, str]) -> str:
    """`text` with each marked place filled.

    Raises:
      KeyError: a place asks for a table that was not recorded.
    """
    place = re.compile(r"(<!-- table: (\S+) -->\n).*?(<!-- end -->)", re.S)
    return place.sub(lambda m: f"{m[1]}\n{found[m[2]]}\n\n{m[3]}", text)


def main(argv: Sequence[str] | None = None) -> None:
    """Writes or checks the tables in the README and the documentation."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a table differs")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FILE", help="what bench.py --json wrote")
    parser.add_argument("--texts", type=Path, nargs="+", default=TEXTS, metavar="FILE", help="texts with places")
    parser.add_argument("--record-check", type=Path, metavar="FILE", help="a report of python -m jaxnorm check")
    options = parser.parse_args(argv)
    if options.record_check:
        record_check(options.record_check)
    results = json.loads(options.results.read_text(encoding="utf-8"))
    found = tables(results)
    for path in options.texts:
        text = path.read_text(encoding="utf-8")
        new = rendered(text, found)
        if options.check and new != text:
            sys.exit(f"{path} differs from {options.results}: run {Path(__file__).name}")
        path.write_text(new, encoding="utf-8")
    if options.texts == TEXTS:
        from bench_headlines import draw_headlines, drawn_headlines, headlines

        if not options.check:
            draw_headlines(headlines(results, compiled_results()), PICTURE)
        elif drawn_headlines(PICTURE) != found["headline"]:
            sys.exit(f"{PICTURE} shows other numbers than {options.results}: run {Path(__file__).name}")


if __name__ == "__main__":
    main()
