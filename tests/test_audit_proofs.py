"""Proofs of other libraries' functions: one that is right, one with another epsilon, and what the command line says."""

import json
from pathlib import Path

import audit_proofs
import pytest


def test_a_norm_is_proven_and_with_another_epsilon_refuted(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    pytest.importorskip("flax")
    rows = audit_proofs.main(["--only", "nn.LayerNorm", "--json", str(tmp_path / "rows.json")])
    assert [row["verdict"] for row in rows] == ["proven", "refuted"]
    assert "output at [0, 0]" in rows[1]["why"] and json.loads((tmp_path / "rows.json").read_text())["rows"] == rows
    assert "refuted" in capsys.readouterr().out


def test_no_row_is_an_error(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        audit_proofs.main(["--only", "nothing"])
    assert "no row of the installed libraries" in capsys.readouterr().err
