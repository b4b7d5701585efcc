"""Measures jaxnorm against flax, haiku, equinox, optax, plain JAX and PyTorch, as far as they are installed.

    python experiments/bench.py norms --size small medium --dtype float32
    python experiments/bench.py all --json experiments/results/cpu.json --plot experiments/results

Norms, losses and pooling run both passes; convolutions each of their three products, and in loops; `examples` models of
one example under vmap; `memory` compares what is kept for the backward pass and what compiled training steps allocate;
`train` times whole training steps of small networks in flax's own layers against these functions. `bench_method.py`
says how it is measured. A rival whose result differs by more than rounding is marked; so is a row during which other
processes computed. Ratios above 1 mean that the rival takes longer. `choices`, which is no part of `all`, takes no
rival: it times what the library does on a CPU against what it could do (`bench_choices.py`).

Accelerators take the same path: the achieved GB/s and GFLOP/s of each row are recorded beside the machine's own, that
of a copy and a float32 matrix product. This has been run on CPUs only.
"""

import argparse
import importlib.util
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
from bench_cases import Case, loss_cases, norm_cases
from bench_choices import choice_cases
from bench_convolutions import conv_cases, loop_cases
from bench_examples import example_cases
from bench_method import ALLOCATOR, load_average, machine, measure, torch
from bench_pooling import pool_cases
from bench_rivals import LINEAR_LOSSES, LOSSES, NORMS, linen
from bench_tables import Grid, grids, machine_text
from bench_torch import CHUNKED
from common import folder, seconds, writable
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

SIZES, DTYPES = ("small", "medium", "large"), ("float32", "bfloat16")
RIVALS = ("plain", "linen", "nnx", "haiku", "equinox", "optax", "composed", "torch")
OF_LINEAR_ALONE = ("composed-float32", "tokamax", "torch-chunked")
MODULES = {"linen": "flax", "nnx": "flax", "haiku": "haiku", "equinox": "equinox", "optax": "optax", "torch": "torch"}
MODULES |= {"tokamax": "tokamax", "torch-chunked": "torch"}
PYTORCH = ("torch",) if torch and (jax.default_backend() == "cpu" or torch.cuda.is_available()) else ()
OF_LINEAR = (*LINEAR_LOSSES, *(("torch-chunked",) if PYTORCH and CHUNKED else ()))


class Options(NamedTuple):
    """What one section measures."""

    runs: Sequence[tuple[str, str]]  # of a size and a dtype
    rivals: Sequence[str]
    seconds: float  # for each side of each row
    only: Sequence[str]

    def chosen(self, name: str) -> bool:
        """Whether the row is wanted."""
        return any(text in name for text in self.only)


Task = Callable[[], list[dict[str, Any]]]


def timed(cases: Iterator[Case], options: Options) -> list[tuple[str, Task]]:
    """One task for each case that is wanted."""

    def task(case: Case) -> Task:
        return lambda: [case.labels | measure(case.build(options.rivals), options.seconds)]

    return [(case.labels["name"], task(case)) for case in cases if options.chosen(case.labels["name"])]


def conv_tasks(options: Options) -> dict[str, list[tuple[str, Task]]]:
    """Single convolutions, and those in loops."""
    parts = timed(conv_cases(options.runs), options)
    return {"conv": parts, "loops": timed(loop_cases(options.runs), options)}


def memory_tasks(options: Options) -> dict[str, list[tuple[str, Task]]]:
    """Training steps of models, and what single functions keep."""
    from bench_memory import MEMORY, kept_rows, memory_row

    def model(name: str, size: str, dtype: str) -> Task:
        return lambda: [memory_row(name, size, dtype, options.rivals)]

    def kept(size: str, dtype: str) -> Task:
        return lambda: [row for row in kept_rows(size, dtype, options.rivals) if options.chosen(row["name"])]

    models = [(name, model(name, *run)) for run in options.runs for name in MEMORY if options.chosen(name)]
    return {"memory": models, "kept": [("kept", kept(*run)) for run in options.runs]}


def train_tasks(options: Options) -> dict[str, list[tuple[str, Task]]]:
    """Training steps of networks."""
    from bench_memory import TRAINED, training_row

    def task(name: str, size: str, dtype: str) -> Task:
        return lambda: [training_row(name, size, dtype, 5 * options.seconds)]

    return {"train": [(name, task(name, *run)) for run in options.runs for name in TRAINED if options.chosen(name)]}


class Section(NamedTuple):
    """A subcommand: its defaults, the rivals that it knows, and its tasks by table."""

    sizes: tuple[str, ...]
    dtypes: tuple[str, ...]
    rivals: tuple[str, ...]
    tasks: Callable[[Options], dict[str, list[tuple[str, Task]]]]
    quick: tuple[str, ...] = ("",)  # the rows of --quick, by a part of their name


SECTIONS = {
    "norms": Section(SIZES, DTYPES, (*NORMS, *PYTORCH), lambda o: {"norms": timed(norm_cases(o.runs), o)}),
    "losses": Section(
        SIZES[:2],
        DTYPES,
        (*LOSSES, "composed", *OF_LINEAR, *PYTORCH),
        lambda o: {"losses": timed(loss_cases(o.runs), o)},
    ),
    "conv": Section(
        SIZES[1:2], DTYPES[:1], ("plain", *PYTORCH), conv_tasks, ("1x1", "groups C64", "depthwise 3x3", "4x4")
    ),
    "pooling": Section(
        SIZES[1:2],
        DTYPES[:1],
        ("plain", *(("linen",) if linen else ()), *PYTORCH),
        lambda o: {"pooling": timed(pool_cases(o.runs), o)},
    ),
    "examples": Section(SIZES[1:2], DTYPES[:1], ("plain",), lambda o: {"examples": timed(example_cases(o.runs), o)}),
    "memory": Section(SIZES[1:2], DTYPES, tuple({**NORMS, **LOSSES}), memory_tasks),
    "train": Section(SIZES[1:2], DTYPES[:1], ("linen",) if linen else (), train_tasks, ("MobileNet", "transformer")),
    "choices": Section(
        SIZES[1:2], DTYPES[:1], (), lambda o: {"choices": timed(choice_cases(o.runs), o)}, ("by_", "Cpu or", "FEW =")
    ),
}
ALL = [name for name in SECTIONS if name != "choices"]  # `all` compares with rivals


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    add = parser.add_argument
    defaults = "; ".join(f"{name}: {', '.join(s.sizes)} in {', '.join(s.dtypes)}" for name, s in SECTIONS.items())
    defaults += "; large in bfloat16 only where asked for; choices have dtypes of their own"
    add("what", choices=[*SECTIONS, "all"])
    add("--size", nargs="+", choices=SIZES, help=f"sizes of the arrays (batches of networks); defaults: {defaults}")
    add("--dtype", nargs="+", choices=DTYPES, help="dtypes; see --size for the defaults")
    add(
        "--rivals",
        nargs="+",
        choices=(*RIVALS, *OF_LINEAR_ALONE),
        help="who takes part; default: all that are installed",
    )
    add("--only", nargs="+", metavar="TEXT", help="rows with any of these in their name")
    add("--seconds", type=seconds, help="for each side of each row (five times that in train); default 0.1")
    add("--quick", action="store_true", help="small, float32, 0.02 seconds and fewer rows, where not said otherwise")
    add("--json", type=writable, metavar="FILE", help="write the results here; other sections in it stay")
    add("--plot", type=folder, metavar="DIR", help="draw into this folder, one picture for each section")
    return parser


def options_of(parser: argparse.ArgumentParser, chosen: argparse.Namespace, name: str) -> Options:
    """The section's options, checked."""
    section = SECTIONS[name]
    if missing := [r for r in chosen.rivals or () if r in MODULES and not importlib.util.find_spec(MODULES[r])]:
        parser.error(f'--rivals {" ".join(missing)}: not installed; pip install -e ".[bench]", and torch if wanted')
    if name in ("memory", "train") and linen is None:
        parser.error(f'{name}: networks are compared with flax\'s; pip install -e ".[bench]"')
    rivals = [r for r in section.rivals if r in (chosen.rivals or (*RIVALS, *OF_LINEAR_ALONE))]
    expected = section.rivals or chosen.rivals
    if (expected and not rivals) or (name in ("memory", "train") and "linen" not in rivals):
        against = ", ".join(section.rivals) or "itself"
        parser.error(f"--rivals {' '.join(chosen.rivals)}: {name} is measured against {against}")
    if chosen.plot and name == "choices":
        parser.error("--plot: choices has no picture")
    sizes = chosen.size or (("small",) if chosen.quick else section.sizes)
    dtypes = chosen.dtype or (("float32",) if chosen.quick else section.dtypes)
    every = [(size, dtype) for dtype in dtypes for size in sizes]
    runs = [run for run in every if chosen.size or run != ("large", "bfloat16")]
    seconds = chosen.seconds if chosen.seconds is not None else 0.02 if chosen.quick else 0.1
    return Options(runs, rivals, seconds, chosen.only or (section.quick if chosen.quick else ("",)))


def command_of(name: str, chosen: argparse.Namespace) -> str:
    """The command that measures this section so."""
    lists = {"--size": chosen.size, "--dtype": chosen.dtype, "--rivals": chosen.rivals, "--only": chosen.only}
    words = [word for option, values in lists.items() if values for word in (option, *values)]
    words += ["--seconds", str(chosen.seconds)] if chosen.seconds is not None else []
    return " ".join(["python experiments/bench.py", name, *words, *(["--quick"] if chosen.quick else [])])


def terminal(grid: Grid) -> Table:
    """The table for rich."""
    table = Table(title=grid.title)
    for i, column in enumerate(grid.columns):
        table.add_column(column, justify="left" if i < grid.words else "right")
    for cells in grid.rows:
        table.add_row(*cells)
    return table


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Parses the command line, measures, prints the tables; returns what was measured, by section."""
    given = list(sys.argv[1:] if argv is None else argv)
    if given[:1] == ["compiled"]:
        import bench_compiled

        sys.exit(bench_compiled.main(given[1:]))
    parser = make_parser()
    chosen = parser.parse_args(given)
    names = ALL if chosen.what == "all" else [chosen.what]
    plans = {name: (options := options_of(parser, chosen, name), SECTIONS[name].tasks(options)) for name in names}
    if not any(tasks for _, tables in plans.values() for tasks in tables.values()):
        parser.error(f"--only {' '.join(chosen.only or ())}: {chosen.what} has no such row")
    found: dict[str, Any] = {}
    console = Console(width=160)
    columns = TextColumn("{task.description:32}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    for name, (_, tables) in plans.items():
        before = load_average()
        rows: dict[str, list[dict[str, Any]]] = {table: [] for table in tables}
        with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
            bar = progress.add_task(name, total=sum(len(tasks) for tasks in tables.values()))
            for table, tasks in tables.items():
                for row_name, task in tasks:
                    progress.update(bar, description=f"{name}: {row_name}")
                    rows[table] += task()
                    progress.advance(bar)
                jax.clear_caches()
        measured = machine() | {"load_average": [before, load_average()]}
        found[name] = {"machine": measured, "command": command_of(name, chosen), "rows": rows}
        for grid in grids({name: found[name]}).values():
            console.print(terminal(grid))
        rates = "matrix product {matrix_gflop_s:.0f} GFLOP/s, copy {copy_gb_s:.0f} GB/s".format(**measured)
        console.print(f"{machine_text(measured)}; {rates}")
        if chosen.json:  # after each section: a long run that is cut short has kept the earlier ones
            earlier = json.loads(chosen.json.read_text()) if chosen.json.exists() else {}
            chosen.json.write_text(json.dumps(earlier | {name: found[name]}, indent=1) + "\n")
        if chosen.plot:
            from bench_plots import plot

            plot(chosen.plot, name, found[name])
    return found


if __name__ == "__main__":
    if any(os.environ.get(name) != value for name, value in ALLOCATOR.items()):  # read when a process starts
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | ALLOCATOR)
    main()
