"""The command line: `python -m jaxnorm check [NAME ...]` checks this library on this machine's default backend.

`python -m jaxnorm prove [NAME ...]` proves it in exact arithmetic, as formulated for every platform.
"""

import argparse
import functools
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax

import jaxnorm
from jaxnorm._lower.platforms import for_several_processes
from jaxnorm.check import Proof, Report
from jaxnorm.check._cases import Case, all_cases
from jaxnorm.check._library import check_case, check_in_brief, prove_case, share_memory
from jaxnorm.check._report import as_table


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the command line and runs it.

    Args:
      argv: the arguments; None takes the process's own.

    Returns:
      The exit status: 0 if all holds, 1 if something does not. Bad arguments leave with SystemExit(2).
    """
    options = _parser().parse_args(argv)
    if options.list:
        cases = _by_function()
        print("\n".join(f"{name}: {len(of_name)} cases" for name, of_name in cases.items()))
        return 0
    return options.run(options)


def _check(options: argparse.Namespace) -> int:
    with _pool(options.names) as pool:
        reports, seconds = _over_cases(pool, check_case if options.full else check_in_brief, options.names)
    rows = [_summary(name, list(of_name.values())) for name, of_name in reports.items()]
    failures = [f"{c}: {f}" for of_name in reports.values() for c, r in of_name.items() for f in r.failures]
    print("\n".join([*failures, _table(rows)]))
    machine = f"jax {jax.__version__}, {jax.default_backend()} ({jax.devices()[0].device_kind})"
    count = sum(row["cases"] for row in rows)
    held = count - sum(row["failing"] for row in rows)
    print(f"{held} of {count} cases hold in float64 and in low precision")
    print(f"{machine}, {seconds:.0f} s")
    _write(options.json, {"machine": machine, "functions": rows, "cases": _plain(reports)})
    return 1 if failures else 0


def _pool(names: Sequence[str]) -> Executor:
    """Processes where they can share the backend; else two threads: while one waits for the compiler, one traces."""
    if for_several_processes():
        return _processes(sum(len(_by_function()[name]) for name in names))
    return ThreadPoolExecutor(2)


def _prove(options: argparse.Namespace) -> int:
    with _processes(sum(len(_by_function()[name]) for name in options.names)) as pool:
        proofs, seconds = _over_cases(pool, prove_case, options.names)
    rows = [_proof_summary(name, list(of_name.values())) for name, of_name in proofs.items()]
    open_ = [f"{case}: {p}" for of_name in proofs.values() for case, p in of_name.items() if not p.holds]
    print("\n".join([*open_, _proof_table(rows)]))
    held, every = (sum(row[key] for row in rows) for key in ("proven", "cases"))
    print(f"{held} of {every} cases proven in exact arithmetic: values, cotangents, and the cotangents of those")
    print(f"jax {jax.__version__}, {seconds:.0f} s")
    _write(options.json, {"jax": jax.__version__, "functions": rows, "cases": _plain(proofs)})
    return 1 if open_ else 0


def _processes(cases: int) -> Executor:
    """For what holds Python's lock: a process for each processor, or this one where it is not worth while."""
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    count = min(processors, 8, cases // 4)
    if count < 2:
        return ThreadPoolExecutor(1)
    return ProcessPoolExecutor(count, multiprocessing.get_context("spawn"), share_memory)


def _over_cases(pool: Executor, of: Callable[[Case], Any], names: Sequence[str]) -> tuple[dict[str, Any], float]:
    """`of` every case of these functions, by function and case; and how long it took. An interrupt drops the rest."""
    cases, start = _by_function(), time.perf_counter()
    try:
        with _progress(sum(len(cases[name]) for name in names)) as advance:
            begun = {name: [pool.submit(of, case) for case in cases[name]] for name in names}
            found = {name: [f.result() for f in advance(name, futures)] for name, futures in begun.items()}
    finally:
        pool.shutdown(cancel_futures=True)
    by_case = {name: dict(zip(map(str, cases[name]), of_name, strict=True)) for name, of_name in found.items()}
    return by_case, time.perf_counter() - start


def _plain(by_function: dict[str, Any]) -> dict[str, Any]:
    return {case: found.to_dict() for of_name in by_function.values() for case, found in of_name.items()}


def _write(path: Path | None, results: dict[str, Any]) -> None:
    if path:
        path.write_text(json.dumps(results, indent=1) + "\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m jaxnorm", description=(jaxnorm.__doc__ or "").split("\n")[0])
    parser.add_argument("--version", action="version", version=f"jaxnorm {jaxnorm.__version__}")
    commands = parser.add_subparsers(required=True, metavar="check | prove")
    check = commands.add_parser(
        "check",
        help="check every public function against float64 truth",
        description="Checks the functions of this library, each over its cases: values, every cotangent and dtypes in "
        "float64 against autodiff of a plain twin, and bfloat16; for each function's first case also transformations, "
        "second derivatives, float32 and what is kept for the backward pass. "
        "Exit status: 0 if all holds, 1 if not, 2 for bad arguments.",
    )
    prove = commands.add_parser(
        "prove",
        help="prove every public function in exact arithmetic",
        description="Proves that the functions of this library, each over its cases and as formulated for every "
        "platform, have the values, cotangents and second derivatives of a plain twin in exact arithmetic. "
        "Exit status: 0 if all are proven, 1 if not, 2 for bad arguments.",
    )
    check.add_argument("--full", action="store_true", help="every check for every case, not for the first alone")
    for command, run in ((check, _check), (prove, _prove)):
        command.add_argument(
            "names", nargs="*", type=_function_name, metavar="NAME", help="a public function; default: all"
        )
        command.add_argument("--json", type=_json_path, metavar="FILE", help="write every report here")
        command.add_argument("--list", action="store_true", help="list the functions and leave")
        command.set_defaults(names=list(_by_function()), run=run)
    return parser


@functools.cache
def _by_function() -> dict[str, list[Case]]:
    cases: dict[str, list[Case]] = {}
    for case in all_cases():
        cases.setdefault(case.name, []).append(case)
    return cases


def _function_name(text: str) -> str:
    if text not in _by_function():
        raise argparse.ArgumentTypeError(f"no function {text!r}; there are {', '.join(_by_function())}")
    return text


def _json_path(text: str) -> Path:
    if not (path := Path(text)).parent.is_dir() or path.is_dir():
        raise argparse.ArgumentTypeError(f"must name a file in a folder that exists, got {text}")
    return path


@contextmanager
def _progress(total: int) -> Iterator[Any]:
    """Yields a function that goes through one function's cases and shows how far all are: on the error stream."""
    try:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
    except ImportError:

        def said(name: str, cases: list[Any]) -> Iterator[Any]:
            print(f"{name}: {len(cases)} cases", file=sys.stderr, flush=True)
            yield from cases

        yield said
        return
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=total)

        def shown(name: str, cases: list[Any]) -> Iterator[Any]:
            progress.update(task, description=name)
            for case in cases:
                yield case
                progress.advance(task)

        yield shown


def _summary(name: str, reports: list[Report]) -> dict[str, Any]:
    kept = [report.cost["bytes kept"] for report in reports if report.cost]
    return {
        "function": name,
        "cases": len(reports),
        "failing": sum(not report.ok for report in reports),
        "worst": max(report.worst for report in reports),
        "bytes_kept": sum(sides["fun"] for sides in kept),
        "bytes_kept_by_autodiff": sum(sides["reference"] for sides in kept),
    }


def _table(rows: list[dict[str, Any]]) -> str:
    columns = ("function", "cases", "worst error / tolerance", "bytes kept", "autodiff's", "")
    cells = []
    for row in rows:
        verdict = f"{row['failing']} FAIL" if row["failing"] else "ok"
        kept = (f"{row[key]:,}" for key in ("bytes_kept", "bytes_kept_by_autodiff"))
        cells.append((row["function"], str(row["cases"]), f"{row['worst']:.2g}", *kept, verdict))
    return as_table(columns, cells).rstrip()


def _proof_summary(name: str, proofs: list[Proof]) -> dict[str, Any]:
    return {
        "function": name,
        "cases": len(proofs),
        "proven": sum(proof.holds is True for proof in proofs),
        "undecided": sum(proof.holds is None for proof in proofs),
        "formulations": sum(max(len(proof.platforms), 1) for proof in proofs),
        "error": max(proof.error for proof in proofs),
    }


def _proof_table(rows: list[dict[str, Any]]) -> str:
    columns = ("function", "cases", "formulations", "chance of error", "")
    cells = []
    for row in rows:
        wrong = row["cases"] - row["proven"] - row["undecided"]
        counts = ((wrong, "WRONG"), (row["undecided"], "undecided"))
        verdict = ", ".join(f"{count} {what}" for count, what in counts if count) or "proven"
        chance = "" if row["proven"] < row["cases"] else f"{row['error']:.0e}"
        cells.append((row["function"], str(row["cases"]), str(row["formulations"]), chance, verdict))
    return as_table(columns, cells).rstrip()


if __name__ == "__main__":
    sys.exit(main())
