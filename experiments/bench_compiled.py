"""Compiles this library and its rivals for a TPU or a GPU that is not there, and counts what the programs move.

    python experiments/bench.py compiled --target v5e --quick
    python experiments/bench.py compiled --target h100 --only "layer norm" softmax --dtype bfloat16
    python experiments/bench.py compiled --target all --results experiments/results

Nothing runs: XLA compiles ahead of time for the target, and `compiled.py` counts the bytes that the optimized program's
kernels read and write. Each row has three programs:

    both       forward and backward in one program
    apart      the two as programs of their own, between which the residuals cross memory (`kept`)
    inference  the forward pass alone

The floor reads each argument once and writes each result once (of `apart`, once in each program, with nothing kept). A
TPU's compiler also estimates cycles; the sum leaves out what it gives no estimate for, such as copies that run beside
computation. A rival's best is its least, number by number. Convolutions and training steps take minutes to compile for
a TPU: `--only conv` and `--only steps` ask for them.
"""

import argparse
import importlib.util
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import version
from typing import NamedTuple

from common import folder

ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "XLA_FLAGS": "--xla_gpu_autotune_level=0",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}
PROGRAMS = ("both", "apart", "inference")
DEFAULT = ("norms", "softmax", "losses", "linear", "affine")
RIVALS = ("plain", "linen", "nnx", "haiku", "equinox", "optax", "composed")
DTYPES = ("bfloat16", "float32")
SECTIONS = (*DEFAULT, "conv", "steps")


class Target(NamedTuple):
    """A device that XLA compiles for, and the package that brings the compiler."""

    platform: str
    topology: str
    package: str
    module: str


TARGETS = {
    "v5e": Target("tpu", "v5e:2x2", "libtpu", "libtpu"),
    "v6e": Target("tpu", "v6e:2x2", "libtpu", "libtpu"),
    "v5p": Target("tpu", "v5p:2x2x1", "libtpu", "libtpu"),
    "h100": Target("cuda", "1x1x1", "jax-cuda13-pjrt", "jax_plugins.xla_cuda13"),
}


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="bench.py compiled", description=(__doc__ or "").split("\n")[0])
    add = parser.add_argument
    add("--target", required=True, choices=[*TARGETS, "all"], help="the device that the programs are compiled for")
    add("--only", nargs="+", metavar="TEXT", help=f"sections ({', '.join(SECTIONS)}), or rows with this in their name")
    add("--dtype", nargs="+", choices=DTYPES, help="default: both; with --quick bfloat16")
    add("--programs", nargs="+", choices=PROGRAMS, default=PROGRAMS, help="default: all")
    add("--rivals", nargs="+", choices=RIVALS, default=RIVALS, help="default: all that are installed")
    add("--quick", action="store_true", help="one shape and dtype of each kind, where not said otherwise")
    add("--results", type=folder, metavar="DIR", help="write compiled-TARGET.json and .png here; rows in it stay")
    add("--hlo", type=folder, metavar="DIR", help="write every optimized program's text here")
    return parser


def missing(target: Target) -> str | None:
    """What stops a target from being compiled for here."""
    try:
        found = importlib.util.find_spec(target.module)
    except ModuleNotFoundError:
        found = None
    if found is None:
        return f'its compiler is not installed: pip install -e ".[aot]" ({target.package}; Linux, Python 3.12 or newer)'
    ours, theirs = version("jaxlib"), version(target.package)
    if target.platform == "cuda" and ours != theirs:
        return f"{target.package} {theirs} is not of jaxlib's version: pip install --no-deps {target.package}=={ours}"
    return None


def compile_rows(options: argparse.Namespace, target: Target) -> int:
    """Compiles what was asked for, prints the table, writes the file and the picture; returns the exit status."""
    import bench_compiled_programs as programs  # imports JAX, which reads the environment
    import bench_compiled_report as report
    from bench import terminal
    from bench_compiled_cases import rows
    from rich.console import Console
    from rich.progress import track

    dtypes = options.dtype or DTYPES[: 1 if options.quick else 2]
    chosen = [row for row in rows(dtypes, options.quick) if row.wanted(options.only or DEFAULT)]
    if not chosen:
        print(f"--only {' '.join(options.only)}: there is no such row", file=sys.stderr)
        return 2
    compiler = programs.Compiler(programs.device(target.platform, target.topology), options.hlo)
    command = f"python experiments/bench.py compiled {shlex.join(options.words)}"
    path = options.results and options.results / f"compiled-{options.target}.json"
    found: list[dict] = []
    for row in track(chosen, options.target, console=Console(stderr=True), transient=True):
        found += programs.measure(compiler, row, options.rivals, options.programs)
        if path:  # after each row: a long run that is cut short has kept the earlier ones
            report.write(path, options.target, target.package, command, found)
    console = Console(width=200)
    console.print(terminal(report.grid(options.target, found)))
    for line in [*report.failures(found), report.versions_text(target.package)]:
        console.print(line)
    if path:
        written = report.write(path, options.target, target.package, command, found)
        report.plot(path.with_suffix(".png"), options.target, written["rows"])
    return 0


def main(argv: Sequence[str]) -> int:
    """Each target in a process of its own, since JAX reads the environment once; returns the exit status."""
    options = make_parser().parse_args(argv, argparse.Namespace(words=argv))
    started = all(os.environ.get(name) == value for name, value in ENVIRONMENT.items())
    status = 0
    for name in TARGETS if options.target == "all" else [options.target]:
        if reason := missing(TARGETS[name]):
            print(f"{name}: {reason}", file=sys.stderr)
            status = max(status, 1)
        elif started and options.target != "all":
            return compile_rows(options, TARGETS[name])
        else:
            command = [sys.executable, __file__, *argv, "--target", name]  # the last one counts
            status = max(status, abs(subprocess.run(command, env=os.environ | ENVIRONMENT, check=False).returncode))
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
