"""Data-parallel training, shortened: one device's steps, what it sends, several processes, and nothing left running."""

import os
import re
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import train_parallel
from devices import run_processes
from train_digits import CHANNELS
from train_parallel import main


def test_eight_devices_take_one_devices_steps(capsys: pytest.CaptureFixture[str]) -> None:
    outcome = main(["--devices", "8", "--epochs", "8"])
    assert outcome is not None
    assert outcome.result.test_accuracy >= 0.98
    assert outcome.difference <= 1e-4
    # Of each channel four numbers of each device forward and two sums backward; the gradients; the loss.
    elements = (4 * 8 + 2) * sum(CHANNELS) + outcome.result.num_parameters + 1
    sent = sum(c.bytes for c in outcome.sent)
    assert {c.kind for c in outcome.sent} == {"all-reduce"} and sent == 4 * elements
    printed = capsys.readouterr().out
    for text in ("8 in 1 process", f"{outcome.difference:.1e}", f"{len(outcome.sent)} (all-reduce)", f"{sent:,}"):
        assert text in printed


@pytest.mark.thorough
def test_two_processes_train(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(train_parallel, "run_processes", partial(run_processes, timeout=100))
    # Few steps: each waits for the other process, which may wait for a processor.
    assert main(["--processes", "2", "--epochs", "5", "--batch-size", "128"]) is None  # it was measured there
    printed = capfd.readouterr().out
    (accuracy,) = re.findall(r"│ test accuracy +│ (\d\.\d+)", printed)  # by one of them
    assert float(accuracy) >= 0.98
    assert "2 in 2 process" in printed


def test_a_difference_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_parallel, "step_losses", lambda *args: train_parallel.TOLERANCE + 9.0)
    with pytest.raises(SystemExit, match="differ from one device's"):
        main(["--devices", "2", "--epochs", "1"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--devices", "0"], "argument --devices: must be a whole number and at least 1"),
        (["--devices", "8", "--processes", "3"], "argument --processes: 8 devices"),
        (["--devices", "8", "--batch-size", "60"], "argument --batch-size: 60 images"),
        (["--devices", "8", "--batch-size", "1440"], "argument --batch-size: there are 1437"),
        (["--devices", "32"], "argument --devices: there are 8 (cpu), got 32"),
    ],
)
def test_bad_options_are_refused(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        main(arguments)
    assert error.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("exits", "timeout", "error"),
    [("import sys; sys.exit(int(sys.argv[-1]))", 60, RuntimeError), ("", 3, TimeoutError)],
    ids=["failed", "time limit"],
)
def test_no_process_is_left_running(exits: str, timeout: float, error: type[Exception], tmp_path: Path) -> None:
    """Both write who they are; the first sleeps, and so does the second unless it fails."""
    program = f"""
import os, sys, time
open(os.path.join({str(tmp_path)!r}, str(os.getpid())), "w").close()
if sys.argv[-1] == "1":
    while len(os.listdir({str(tmp_path)!r})) < 2:
        time.sleep(0.01)
    {exits or "pass"}
time.sleep(600)
"""
    start = time.monotonic()
    with pytest.raises(error):
        run_processes([sys.executable, "-c", program], 2, timeout)
    assert time.monotonic() - start < 60
    pids = [int(path.name) for path in tmp_path.iterdir()]
    assert len(pids) == 2
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
