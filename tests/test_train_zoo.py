"""The zoo, one small model: what it records and shows."""

import json
from pathlib import Path

import pytest
import train_zoo


@pytest.mark.thorough
def test_a_model_is_measured_with_and_without(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--models", "linen ConvNeXt", "--batch", "2", "--size", "8", "--seconds", "0.01", "--steps", "2"]
    (row,) = train_zoo.main([*arguments, "--output", str(tmp_path)])
    assert row["lowered"]["kernel_gradients"] and row["lowered"]["convolutions"] and not row["lowered"]["left"]
    assert row["difference"] < 1e-4
    for losses in row["losses"].values():
        assert losses[1] < losses[0]
    assert not train_zoo.lowering.report()["installed"]
    assert json.loads((tmp_path / "zoo.json").read_text())["rows"][0]["model"] == "linen ConvNeXt"
    assert (tmp_path / "zoo.png").stat().st_size > 1000
    assert "ConvNeXt" in capsys.readouterr().out


def test_models_whose_library_is_missing_are_named(capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    monkeypatch.setattr(train_zoo, "missing", lambda name: True)
    assert train_zoo.main(["--models", "keras ResNet50"]) == []
    assert "keras ResNet50: its library is not installed" in capsys.readouterr().out
