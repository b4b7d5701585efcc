"""The README's Python blocks run, each as a program of its own, and its tables are those that were recorded."""

import re
import subprocess
import sys
from pathlib import Path

import bench_tables
import pytest

BLOCKS = re.findall(r"```python\n(.*?)```", (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8"), re.S)


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_block_runs(number: int) -> None:
    subprocess.run([sys.executable, "-c", BLOCKS[number]], check=True, capture_output=True, timeout=120)


def test_there_are_blocks() -> None:
    assert len(BLOCKS) >= 3


def test_tables_are_those_recorded() -> None:
    with pytest.raises(SystemExit) as exit_:
        bench_tables.main(["--check"])
    assert not exit_.value.code, exit_.value.code


def test_a_table_that_differs_is_found(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    text = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    readme.write_text(text.replace("<!-- end -->", "| 1.00 |\n<!-- end -->"), encoding="utf-8")
    with pytest.raises(SystemExit, match="differs from"):
        bench_tables.main(["--check", "--readme", str(readme)])
    bench_tables.main(["--readme", str(readme)])
    assert readme.read_text(encoding="utf-8") == text
