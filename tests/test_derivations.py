"""The derivation study: what is right in the notes holds, what is mistaken is shown wrong, and neither by accident."""

import json
import re
from pathlib import Path

import derivation_notes as notes
import derivations
import jax
import jax.numpy as jnp
import numpy as np
import pytest

PAGE = Path(__file__).parents[1] / "docs" / "derivations" / "notes.md"
SMALL = ["--samples", "8", "16", "--features", "4", "8", "--repeats", "2"]


@pytest.fixture
def rows(quick_compilation) -> list[dict]:
    return derivations.compared()


def test_every_right_derivation_holds_and_every_mistaken_one_does_not(rows: list[dict]):
    assert derivations.unexpected(rows) == []
    assert all(row["error"] <= 1e-10 for row in rows if row["right"])
    assert all(row["error"] > 1e-2 and row["why"] for row in rows if not row["right"])
    assert [sum(row["right"] == right for row in rows) for right in (True, False)] == [29, 13]
    assert len({row["name"] for row in rows}) == len(rows)
    assert [total["derivations"] for total in derivations.totals(rows)] == [29, 13]


def numbers(equations: str) -> list[str]:
    """The numbers in a row's "(3.4), (3.6) to (3.8)"."""
    found = []
    for note, first, last in re.findall(r"\((\d)\.(\d+)\)(?: to \(\1\.(\d+)\))?", equations):
        found += [f"{note}.{i}" for i in range(int(first), int(last or first) + 1)]
    return found


def test_every_numbered_formula_of_the_page_is_evaluated_and_its_note_named():
    with jax.enable_x64(True):
        rows = derivations.derivations()
    evaluated = {number: row.note for row in rows for number in numbers(row.equations)}
    on_page = re.findall(r"\\tag\{([\d.]+)\}", PAGE.read_text(encoding="utf-8"))
    assert on_page == sorted(evaluated, key=lambda number: [int(part) for part in number.split(".")])
    assert all(derivations.NOTES[int(number[0]) - 1] == note for number, note in evaluated.items())
    assert numbers("(3.3), (3.6) to (3.8)") == ["3.3", "3.6", "3.7", "3.8"]


def test_the_page_shows_the_rows_of_every_note():
    shown = re.findall(r"^:only: note (\w+)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert tuple(shown) == derivations.NOTES


def only(monkeypatch: pytest.MonkeyPatch, *names: str):
    """Leaves these rows alone in the table."""
    every = derivations.derivations
    monkeypatch.setattr(derivations, "derivations", lambda: [row for row in every() if row.name in names])


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch):
    chosen = "dx in closed form", "dx, var by x with the factor -1/m"
    only(monkeypatch, *chosen)
    table, picture = tmp_path / "found.json", tmp_path / "growth.png"
    with jax.enable_x64(False):
        found = derivations.main([*SMALL, "--json", str(table), "--plot", str(picture)])
        assert jnp.ones(1).dtype == jnp.float32  # float64 did not leak
    assert json.loads(table.read_text()) == found
    assert picture.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert {row["name"]: row["verdict"] for row in found["derivations"]} == {chosen[0]: "right", chosen[1]: "wrong"}
    assert len(found["timings"]) == 3 * (2 + 2) and all(np.isfinite(row["N"] + row["D"]) for row in found["growth"])
    printed = capsys.readouterr().out
    assert "1 right (to 1e-10)\n1 wrong (by 0.001 or more)\n" in printed and "factors to add were multiplied" in printed


def test_a_right_derivation_is_proven_and_a_mistaken_one_refuted(monkeypatch: pytest.MonkeyPatch):
    chosen = "dx, var by x with the factor -1/m", "dx in closed form", "rows of dX, with the remainder"
    only(monkeypatch, *chosen)
    rows = derivations.compared(exact=True)
    assert {row["name"]: row["exact"] for row in rows} == dict(zip(chosen, ("refuted", "proven", ""), strict=True))
    assert derivations.unexpected(rows) == []
    counted = [(total["proven"], total["refuted"]) for total in derivations.totals(rows)]
    assert counted == [(1, 0), (0, 1)]  # of two right ones, one is a formula of sizes
    assert derivations.unexpected([{**row, "exact": "undecided"} for row in rows if row["exact"]]) == list(chosen[:2])


def planted(monkeypatch: pytest.MonkeyPatch, name: str, value):
    """The exit's message when the notes' function of this name gives another value."""
    monkeypatch.setattr(notes, name, value)
    with pytest.raises(SystemExit) as error:
        derivations.main(SMALL)
    return str(error.value.code)


@pytest.mark.parametrize("factor", [1 + 1e-9, np.nan], ids=str)
def test_a_planted_error_is_found(factor: float, monkeypatch: pytest.MonkeyPatch):
    only(monkeypatch, "dx in closed form")
    right = notes.closed_form
    assert "dx in closed form" in planted(monkeypatch, "closed_form", lambda *a: factor * right(*a))


def test_a_mistake_that_is_none_is_found(monkeypatch: pytest.MonkeyPatch):
    only(monkeypatch, "dx, var by x with the factor -1/m")
    assert "var by x" in planted(monkeypatch, "var_by_x_with_extra_factor", notes.closed_form)


def test_other_shapes_are_not_compared():
    with pytest.raises(ValueError, match="should have"):
        derivations.relative_error(jnp.ones((2, 1)), jnp.ones(2))


def test_growth_is_the_slope():
    timings = [
        {"form": form, "grows": size, size: at, "median_us": 3.0 * at**power}
        for form in notes.VECTORISATIONS
        for size, power in (("N", 1), ("D", 2))
        for at in (2, 8, 32)
    ]
    for row in derivations.growth(timings):
        np.testing.assert_allclose([row["N"], row["D"]], [1, 2])


@pytest.mark.parametrize(
    "arguments, message", [(["--samples", "8"], "--samples: a growth needs two sizes"), (["--plot", "a.pdf"], ".png")]
)
def test_bad_arguments(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        derivations.main(arguments)
    assert message in capsys.readouterr().err
