"""The audit of other libraries: it runs its lines, and says what holds and what does not."""

import json

import audit
import numpy as np
import pytest


def test_rows_and_their_lines(tmp_path, capsys: pytest.CaptureFixture[str]):
    rows = audit.main(["--only", "optax hinge", "--json", str(tmp_path / "rows.json")])
    assert {row["inputs"]: bool(row["found"]) for row in rows} == {"normal": False, "label V": True}
    printed = capsys.readouterr().out
    assert "all holds" in printed and "check_vjp(lambda x, labels: optax.losses.multiclass_hinge_loss" in printed
    assert json.loads((tmp_path / "rows.json").read_text())["rows"] == rows


def test_subjects_are_told_apart_and_missing_libraries_left_out(capsys: pytest.CaptureFixture[str]):
    subjects = audit.subjects()
    assert len({(s.name, s.inputs) for s in subjects}) == len(subjects) > 40
    assert audit.audit(
        audit.Subject("none", "any", "absent.f(x)", "x", {"x": "np.ones(2)"}), audit.names_in_code()
    ) == (
        "raises NameError: name 'absent' is not defined",
        0.0,
    )
    assert np.shape(audit.names_in_code()["normal"](2, 3)) == (2, 3)
    with pytest.raises(SystemExit) as error:
        audit.main(["--only", "nothing of this name"])
    assert error.value.code == 2 and "--only" in capsys.readouterr().err
