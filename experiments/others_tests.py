#!/usr/bin/env python
"""Runs tests that others wrote, of their own layers, with `jaxnorm.lowering` installed and without, and compares.

    python experiments/others_tests.py
    python experiments/others_tests.py --suites haiku "keras pooling"

keras and haiku ship their tests with their packages; flax's come from its source distribution, which pip downloads, of
the version that is installed. Each suite is run twice in a process of its own: as it is, and with the lowering
installed before the first test, as a program does that uses it. Exits with 1 if a test passes without and not with it,
or if no convolution and no pooling was lowered. Needs pytest and the libraries whose suites are asked for.
"""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from collections import Counter
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from common import folder

# The suites: the library's package, where its tests lie (in its module, or in its source distribution), and the files.
SUITES: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "keras convolutional": ("keras", "keras", ("src/layers/convolutional/*_test.py",)),
    "keras pooling": ("keras", "keras", ("src/layers/pooling/*_test.py",)),
    "flax linen": ("flax", "", ("tests/linen/linen_linear_test.py", "tests/linen/linen_test.py::PoolTest")),
    "flax nnx": ("flax", "", ("tests/nnx/nn/conv_test.py", "tests/nnx/nn/linear_test.py")),
    "haiku": ("dm-haiku", "haiku", tuple(f"_src/{name}_test.py" for name in ("conv", "depthwise_conv", "pool"))),
}
MODULES = {"dm-haiku": "haiku"}  # by another name than the package's
INSTALLED, RESULTS = "JAXNORM_OTHERS_TESTS_INSTALLED", "JAXNORM_OTHERS_TESTS_RESULTS"


# --- in the process that runs the tests: this file as a plugin of pytest ----------------------------------------------

_outcomes: dict[str, str] = {}


def pytest_configure() -> None:
    """Installs the lowering before anything is collected, in the runs that ask for it."""
    if INSTALLED in os.environ:
        from jaxnorm import lowering

        lowering.install()


def pytest_runtest_logreport(report: Any) -> None:
    """Notes how a test ended: its call, or what came before or after it if that did not pass."""
    if report.when == "call" or report.outcome != "passed":
        expected = "xfailed" if report.skipped and hasattr(report, "wasxfail") else report.outcome
        _outcomes[report.nodeid] = expected


def pytest_collectreport(report: Any) -> None:
    """Notes a file that could not be collected."""
    if report.failed:
        _outcomes[report.nodeid] = "not collected"


def pytest_unconfigure() -> None:
    """Writes down how all tests ended and what was lowered."""
    if RESULTS in os.environ:
        from jaxnorm import lowering

        found = {"outcomes": _outcomes, "lowered": lowering.report()}
        Path(os.environ[RESULTS]).write_text(json.dumps(found))


# --- in the process that compares ------------------------------------------------------------------------------------


def files_of(package: str, module: str, patterns: Sequence[str], scratch: Path) -> list[str]:
    """The files of a suite, or the one class of a file that `::` names."""
    if module:
        spec = importlib.util.find_spec(module)
        root = Path(next(iter(spec.submodule_search_locations or []))) if spec else scratch
    else:
        root = source_of(package, scratch)
    found = []
    for pattern in patterns:
        glob, *members = pattern.split("::")
        found += ["::".join([str(path), *members]) for path in sorted(root.glob(glob))]
    if not found:
        raise SystemExit(f"{package} {version(package)} has none of {', '.join(patterns)}")
    return found


def source_of(package: str, scratch: Path) -> Path:
    """The unpacked source distribution of the installed version."""
    name = f"{package}-{version(package)}"
    if not (scratch / name).exists():
        wanted = ["--no-deps", "--no-binary", ":all:", f"{package}=={version(package)}"]
        subprocess.run([sys.executable, "-m", "pip", "download", "-q", "-d", str(scratch), *wanted], check=True)
        with tarfile.open(scratch / f"{name}.tar.gz") as archive:
            archive.extractall(scratch, filter="data")
    return scratch / name


def run(files: Sequence[str], scratch: Path, installed: bool) -> dict[str, Any]:
    """How each test of these files ends, and what was lowered."""
    results = scratch / "results.json"
    results.unlink(missing_ok=True)
    here = Path(__file__).resolve().parent
    paths = [str(here), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu", "KERAS_BACKEND": "jax", "PYTHONPATH": os.pathsep.join(paths), RESULTS: str(results),
    }  # fmt: skip
    environment |= {INSTALLED: "1"} if installed else {}
    options = ["-q", "-p", Path(__file__).stem, "-p", "no:cacheprovider", "-c", os.devnull, "--rootdir", str(scratch)]
    command = [sys.executable, "-m", "pytest", *options, "-W", "ignore", "--no-header", "--tb=short"]
    done = subprocess.run([*command, *files], env=environment, cwd=scratch, capture_output=True, text=True)
    if not results.exists():
        raise SystemExit(f"pytest did not run:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    return json.loads(results.read_text()) | {"output": done.stdout}


def compared(name: str, scratch: Path) -> dict[str, Any]:
    """One suite both ways."""
    package, module, patterns = SUITES[name]
    files = files_of(package, module, patterns, scratch)
    without, inside = (run(files, scratch, installed) for installed in (False, True))
    differ = {
        test: [side["outcomes"].get(test, "did not run") for side in (without, inside)]
        for test in sorted({*without["outcomes"], *inside["outcomes"]})
        if without["outcomes"].get(test) != inside["outcomes"].get(test)
    }
    counts = [dict(sorted(Counter(side["outcomes"].values()).items())) for side in (without, inside)]
    row = {"suite": name, "package": f"{package} {version(package)}", "files": [Path(file).name for file in files]}
    row |= {"without": counts[0], "installed": counts[1], "lowered": inside["lowered"], "differ": differ}
    if differ:
        print(inside["output"][-6000:])
    return row


def is_right(row: dict[str, Any]) -> bool:
    """Whether every test ended as without the lowering, and some operation went through it."""
    lowered = row["lowered"]
    used = sum(lowered[kind] for kind in ("convolutions", "kernel_gradients", "poolings"))
    return not row["differ"] and row["without"].get("passed", 0) > 0 and used > 0


def main(arguments: Sequence[str] | None = None) -> int:
    """The whole run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suites", nargs="+", choices=SUITES, default=list(SUITES), metavar="SUITE")
    parser.add_argument("--output", type=folder, help="a folder for others_tests.json, such as experiments/results/zoo")
    options = parser.parse_args(arguments)
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for name in options.suites:
            package = SUITES[name][0]
            if importlib.util.find_spec(MODULES.get(package, package)) is None:
                print(f"{name}: {package} is not installed")
                continue
            rows.append(compared(name, Path(scratch)))
            row = rows[-1]
            print(
                f"{name} ({row['package']}): {row['without']} without, {row['installed']} installed; {row['lowered']}"
            )
            for test, outcomes in row["differ"].items():
                print("  differs:", test, *outcomes)
            if options.output:
                found = {"jax": version("jax"), "rows": rows}
                (options.output / "others_tests.json").write_text(json.dumps(found, indent=1) + "\n")
    return 0 if rows and all(map(is_right, rows)) else 1


if __name__ == "__main__":
    raise SystemExit(main())
