"""The command line: `python -m jaxnorm check [NAME ...]` checks this library on this machine's default backend."""

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax

import jaxnorm
from jaxnorm.check import Report
from jaxnorm.check._cases import Case, all_cases
from jaxnorm.check._library import brief, check_case
from jaxnorm.check._report import as_table


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the command line and runs it.

    Args:
      argv: the arguments; None takes the process's own.

    Returns:
      The exit status: 0 if all holds, 1 if something does not. Bad arguments leave with SystemExit(2).
    """
    options = _parser().parse_args(argv)
    cases = _by_function()
    if options.list:
        print("\n".join(f"{name}: {len(of_name)} cases" for name, of_name in cases.items()))
        return 0
    start, reports = time.perf_counter(), {}
    with _progress(sum(len(cases[name]) for name in options.names)) as advance, _workers() as pool:
        checked = {
            name: [pool.submit(check_case, c, **({} if options.full else brief(c, cases[name]))) for c in cases[name]]
            for name in options.names
        }
        for name, futures in checked.items():
            reports[name] = [future.result() for future in advance(name, futures)]
    rows = [_summary(name, of_name) for name, of_name in reports.items()]
    failures = [
        f"{c}: {f}" for n in options.names for c, r in zip(cases[n], reports[n], strict=True) for f in r.failures
    ]
    for failure in failures:
        print(failure)
    print(_table(rows))
    machine = f"jax {jax.__version__}, {jax.default_backend()} ({jax.devices()[0].device_kind})"
    count = sum(row["cases"] for row in rows)
    held = count - sum(row["failing"] for row in rows)
    print(f"{held} of {count} cases hold in float64 and in low precision")
    print(f"{machine}, {time.perf_counter() - start:.0f} s")
    if options.json:
        results = {str(c): r.to_dict() for n in options.names for c, r in zip(cases[n], reports[n], strict=True)}
        options.json.write_text(json.dumps({"machine": machine, "functions": rows, "cases": results}, indent=1) + "\n")
    return 1 if failures else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m jaxnorm", description=(jaxnorm.__doc__ or "").split("\n")[0])
    commands = parser.add_subparsers(required=True, metavar="check")
    check = commands.add_parser(
        "check",
        help="check every public function against float64 truth",
        description="Checks the functions of this library, each over its cases: values, every cotangent and dtypes in "
        "float64 against autodiff of a plain twin, and bfloat16; for each function's first case also transformations, "
        "second derivatives and float32. Exit status: 0 if all holds, 1 if not, 2 for bad arguments.",
    )
    check.add_argument("names", nargs="*", type=_function_name, metavar="NAME", help="a public function; default: all")
    check.add_argument("--json", type=_json_path, metavar="FILE", help="write every report here")
    check.add_argument("--full", action="store_true", help="every check for every case, not for the first alone")
    check.add_argument("--list", action="store_true", help="list the functions and leave")
    check.set_defaults(names=list(_by_function()))
    return parser


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
def _workers() -> Iterator[ThreadPoolExecutor]:
    """Two threads: while one waits for the compiler, the other traces. An interrupt drops what has not begun."""
    pool = ThreadPoolExecutor(2)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


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


if __name__ == "__main__":
    sys.exit(main())
