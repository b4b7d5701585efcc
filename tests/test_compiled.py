"""The programs that XLA compiles for a TPU and an H100 that are not there: how often they pass over x, and no copies.

Needs the extra `aot`. Nothing runs: the table says how many reads and writes of an array of x's size the program of
each function has, forward and backward together, and in inference. A number that falls is good news: write it down.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from bench_compiled import TARGETS

# passes over x: (bfloat16 both, inference, float32 both, inference)
PASSES = {
    "v5e": {
        "layer": (6, 3, 7, 3),
        "rms": (6, 3, 7, 3),
        "batch": (6, 3, 6, 3),
        "group": (6, 3, 6, 3),
        "instance": (6, 3, 6, 3),
        "softmax": (7, 3, 8, 4),
        "attention": (5, 2, 5, 2),
        "log_softmax": (7, 4, 7, 4),
        "cross_entropy": (4, 2, 4, 2),
        "cross_entropy_few": (4, 2, 4, 2),
        "svm": (3, 1, 3, 1),
    },
    "h100": {
        "layer": (6, 2, 6, 2),
        "rms": (6, 2, 6, 2),
        "batch": (7, 3, 7, 3),
        "group": (7, 3, 7, 3),
        "instance": (7, 3, 7, 3),
        "softmax": (5, 2, 5, 2),
        "attention": (5, 2, 5, 2),
        "log_softmax": (7, 4, 7, 4),
        "cross_entropy": (4, 2, 4, 2),
        "cross_entropy_few": (3, 1, 3, 1),
        "svm": (2, 1, 2, 1),
    },
}
SAMPLED = 0.12  # a pivot reads a 32nd of x; parameters, statistics and their partial sums come to less than a 16th


@pytest.mark.parametrize("target", PASSES)
def test_passes_over_x(target):
    if importlib.util.find_spec(TARGETS[target].module.split(".")[0]) is None or sys.version_info < (3, 12):
        pytest.skip('the compiler is not installed: pip install -e ".[aot]"')
    script = Path(__file__).with_name("compiled_programs.py")
    paths = [str(script.parents[1]), str(script.parents[1] / "experiments")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run([sys.executable, script, target], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    found = {(row["name"], row["dtype"], row["program"]): row for row in json.loads(done.stdout.splitlines()[-1])}
    wrong = []
    for name, passes in PASSES[target].items():
        programs = [(d, p) for d in ("bfloat16", "float32") for p in ("both", "inference")]
        for (dtype, program), wanted in zip(programs, passes, strict=True):
            row = found[name, dtype, program]
            if abs(row["passes"] - wanted) > SAMPLED or row["temporary"] > 0.05 or row["widened"]:
                wrong.append(f"{wanted} passes wanted: {row}")
    assert not wrong, "\n".join(wrong)
