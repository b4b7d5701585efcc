"""The README's Python blocks run, each as a program of its own."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

BLOCKS = re.findall(r"```python\n(.*?)```", (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8"), re.S)


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_block_runs(number: int) -> None:
    subprocess.run([sys.executable, "-c", BLOCKS[number]], check=True, capture_output=True, timeout=120)


def test_there_are_blocks() -> None:
    assert len(BLOCKS) >= 3
