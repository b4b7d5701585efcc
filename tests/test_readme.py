"""The README's Python blocks run and type-check, each as a program of its own; tables and pictures are up to date."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import bench_tables
import pytest

ROOT = Path(__file__).parents[1]
PROGRAM = ROOT / "tests" / "typed_program.py"
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.S)


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_block_runs(number: int) -> None:
    subprocess.run([sys.executable, "-c", BLOCKS[number]], check=True, capture_output=True, timeout=120)


def pyright(*arguments: str) -> None:
    """Runs it, and shows its complaints; it takes the first Python on PATH, since --verifytypes takes no other."""
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    command = [sys.executable, "-m", "pyright", *arguments]
    found = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr


# The README's command installs the tests alone; .ci/run runs these once more with the linter.
needs_pyright = pytest.mark.skipif(not importlib.util.find_spec("pyright"), reason="no pyright: it is in the dev extra")


@needs_pyright
def test_types_of_blocks(tmp_path: Path) -> None:
    for number, block in enumerate(BLOCKS):
        (tmp_path / f"block_{number}.py").write_text(block, encoding="utf-8")
    pyright("--project", str(ROOT), str(tmp_path))


@needs_pyright
def test_types_of_a_program_in_strict_mode() -> None:
    pyright(str(PROGRAM))


@needs_pyright
def test_types_of_the_public_interface_are_complete() -> None:
    pyright("--verifytypes", "jaxnorm", "--ignoreexternal")


@pytest.mark.thorough
def test_the_typed_program_runs() -> None:
    subprocess.run([sys.executable, str(PROGRAM)], check=True)


def test_there_are_blocks_and_the_readme_is_short() -> None:
    assert len(BLOCKS) >= 1
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 160


def test_tables_are_those_recorded() -> None:
    bench_tables.main(["--check"])


def test_a_picture_of_other_numbers_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench_headlines.drawn_headlines", lambda path: "other numbers")
    with pytest.raises(SystemExit, match="shows other numbers"):
        bench_tables.main(["--check"])


def test_a_table_that_differs_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    text = bench_tables.TEXTS[0].read_text(encoding="utf-8")
    page.write_text(text.replace("<!-- end -->", "| 1.00 |\n<!-- end -->"), encoding="utf-8")
    with pytest.raises(SystemExit, match="differs from"):
        bench_tables.main(["--check", "--texts", str(page)])
    bench_tables.main(["--texts", str(page)])
    assert page.read_text(encoding="utf-8") == text
