"""The convolution benchmark runs, compares before it times, and rejects bad arguments."""

import json
from pathlib import Path

import bench_conv
import jax
import jax.numpy as jnp
import pytest


@pytest.fixture(autouse=True)
def in_float32():
    with jax.enable_x64(False):
        yield


def test_rows_are_measured_and_written(tmp_path: Path):
    table, bars = tmp_path / "found.json", tmp_path / "bars.png"
    found = bench_conv.main(
        ["rows", "--only", "k4 causal", "--seconds", "0", "--json", str(table), "--plot", str(bars)]
    )
    assert json.loads(table.read_text()) == json.loads(json.dumps(found))
    assert bars.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert [row["part"] for row in found["rows"]] == ["forward", "dX", "dW"]
    assert all(row["lax_ratio"] > 0 and row["jaxnorm_ms"][0] > 0 for row in found["rows"])


def test_loops_are_measured():
    (loop,) = bench_conv.main(["loops", "--only", "k4 causal", "--seconds", "0"])["loops"]
    assert loop["scan"] > 0 and loop["vmap"] > 0


def test_a_wrong_result_is_not_timed(monkeypatch: pytest.MonkeyPatch):
    row = next(row for row in bench_conv.ROWS if "k4 causal" in row[0])
    right = bench_conv.reference.conv
    monkeypatch.setattr(bench_conv.jn, "conv", lambda *args, **options: 1.01 * right(*args, **options))
    with pytest.raises(AssertionError, match="Not equal"):
        bench_conv.measure_row(row, jnp.dtype(jnp.float32), 0.0)


@pytest.mark.parametrize("network", ["MobileNet", "ResNet"])
def test_training_steps_agree_with_flax(network: str):
    pytest.importorskip("flax")
    assert bench_conv.measure_training(network, 2, 0.0)["ratio"] > 0


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["rows", "--only", "nothing"], "no such row; there are 3x3 C64"),
        (["loops", "--plot", "bars.png"], "--plot draws rows and training steps"),
    ],
)
def test_bad_arguments(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        bench_conv.main(arguments)
    assert message in capsys.readouterr().err
