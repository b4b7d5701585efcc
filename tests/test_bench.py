"""The benchmarks run on tiny shapes, compare before they time, and reject bad arguments."""

import json
from pathlib import Path
from typing import Any

import bench
import bench_cases
import bench_choices
import bench_convolutions
import bench_examples
import bench_method
import bench_pooling
import bench_rivals
import bench_tables
import jax
import jax.numpy as jnp
import pytest
from support import thorough

from jaxnorm._lower.convolution import forward, kernel_gradient

SHAPES = {"layer": (6, 8), "rms": (6, 8), "batch": (3, 4, 2, 8), "instance": (3, 4, 2, 8), "group": (3, 4, 2, 8)}
JAX_RIVALS = tuple(bench_rivals.NORMS)
CAUSAL = next(row for row in bench_convolutions.ROWS if "k4 causal" in row[0])


@pytest.fixture(autouse=True)
def in_float32():
    with jax.enable_x64(False):
        yield


def compared(sides: bench_method.Sides) -> dict[str, float | None]:
    """Every side's error, and that something but jaxnorm took part."""
    names = [name for name in sides.calls if name not in sides.uncompared]
    assert len(names) > 1
    return {name: bench_method.error(sides.calls[name](), sides.truth) for name in names}


@pytest.mark.thorough
@pytest.mark.parametrize("kind", SHAPES)
def test_rivals_compute_the_same_norm(kind: str):
    rivals = (*JAX_RIVALS, *bench.PYTORCH)
    norm = bench_rivals.Norm(kind, SHAPES[kind], jnp.dtype(jnp.float32), groups=2)
    errors = compared(bench_cases.norm_sides(norm, "eager", rivals))
    assert set(errors) == {"jaxnorm", *rivals}
    assert all(error is not None and error < 1e-4 for error in errors.values()), errors


def test_a_norm_in_a_step_is_measured():
    norm = bench_rivals.Norm("layer", (6, 16), jnp.dtype(jnp.bfloat16))
    row = bench_method.measure(bench_cases.norm_sides(norm, "step", ["plain", *bench.PYTORCH]), 0.0, rounds=1)
    assert row["samples"] == 2 and row["ms"]["jaxnorm"][0] > 0 and row["ratio"]["floor"][0] > 0


@pytest.mark.parametrize("kind", bench_rivals.HAND_LOSSES)
def test_rivals_compute_the_same_loss(kind: str):
    rivals = (*bench_rivals.LOSSES, *bench.PYTORCH)
    errors = compared(bench_cases.loss_sides(kind, 7, 5, jnp.dtype(jnp.float32), rivals))
    assert all(error is not None and error < 1e-5 for error in errors.values()), errors


def test_rivals_compute_the_same_linear_cross_entropy():
    # tokamax 0.0.17 pads the kernel to blocks of 2048 columns, and counts those that it added in the log-sum-exp.
    of_linear = [name for name in bench.OF_LINEAR if name != "tokamax"]
    rivals = (*bench_rivals.LOSSES, "composed", *of_linear, *bench.PYTORCH)
    errors = compared(bench_cases.linear_sides(5, 4, 11, jnp.dtype(jnp.float32), rivals))
    assert set(errors) == {"jaxnorm", *rivals} - {"composed-float32"}
    assert all(error is not None and error < 1e-5 for error in errors.values()), errors


@pytest.mark.thorough
def test_whole_logits_of_16_bits_are_compared_in_both_dtypes():
    rivals = ("composed", "composed-float32")
    errors = compared(bench_cases.linear_sides(5, 4, 11, jnp.dtype(jnp.bfloat16), rivals))
    assert set(errors) == {"jaxnorm", *rivals}
    assert all(error is not None and error < 3e-2 for error in errors.values()), errors


def test_the_command_measures_draws_and_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(bench_cases, "LOSS_SHAPES", {"small": [(8, 10)]})
    monkeypatch.setattr(bench_cases, "LINEAR_SHAPES", {"small": (8, 4, 11)})
    path = tmp_path / "found.json"
    path.write_text('{"train": "kept"}')
    arguments = ["losses", "--quick", "--seconds", "0", "--rivals", "plain", "--only", "cross", "linear"]
    found = bench.main([*arguments, "--json", str(path), "--plot", str(tmp_path)])
    assert json.loads(path.read_text()) == json.loads(json.dumps({"train": "kept"} | found))
    assert (tmp_path / f"{jax.default_backend()}_losses.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    rows = found["losses"]["rows"]["losses"]
    assert [row["name"] for row in rows] == ["cross-entropy, C = 10", "dense cross-entropy, C = 10", "linear, V = 11"]
    assert all(row["ratio"]["plain"][1] > 0 and row["ratio"]["floor"][1] > 0 for row in rows)
    machine = found["losses"]["machine"]
    assert machine["versions"]["jax"] == jax.__version__ and machine["cores"] and "environment" in machine


@pytest.mark.parametrize("model", bench_examples.MODELS)
def test_models_of_one_example_are_compared(model: str):
    errors = compared(bench_examples.example_sides(model, 2, jnp.dtype(jnp.float32), ["plain"]))
    assert set(errors) == {"jaxnorm", "plain"}
    assert all(error is not None and error < 1e-4 for error in errors.values()), errors


@pytest.mark.parametrize("part", bench_convolutions.PARTS)
def test_convolutions_are_compared(part: str):
    errors = compared(bench_convolutions.conv_sides(CAUSAL, part, "small", jnp.dtype(jnp.float32), ["plain"]))
    assert all(error is not None and error < 1e-4 for error in errors.values()), errors


@pytest.mark.parametrize("kind", bench_pooling.KINDS)
@pytest.mark.parametrize("channels", [-1, 1])
def test_rivals_pool_the_same(kind: str, channels: int):
    row = ("3x3 stride 2", (2, 5, 7, 4), 3, 2, 1, channels)
    rivals = ("plain", "linen", *bench.PYTORCH)
    errors = compared(bench_pooling.pool_sides(kind, row, "medium", jnp.dtype(jnp.float32), rivals))
    assert all(error is not None and error < 1e-5 for error in errors.values()), errors


def test_loops_are_measured():
    row = bench_method.measure(bench_convolutions.loop_sides(CAUSAL, "small", jnp.dtype(jnp.float32), []), 0.0, 1)
    assert row["ratio"]["scan"][1] > 0 and row["ratio"]["vmap"][1] > 0


def test_a_wrong_result_is_not_timed(monkeypatch: pytest.MonkeyPatch):
    right = bench_convolutions.reference.conv
    monkeypatch.setattr(bench_convolutions.jn, "conv", lambda *args, **options: 1.01 * right(*args, **options))
    sides = bench_convolutions.conv_sides(CAUSAL, "dX", "small", jnp.dtype(jnp.float32), [])
    with pytest.raises(AssertionError, match="jaxnorm is wrong"):
        bench_method.measure(sides, 0.0)


def test_a_rival_that_differs_is_marked():
    one = jnp.ones(3)
    calls: dict[str, Any] = {"jaxnorm": lambda: one, "far": lambda: 2 * one, "void": lambda: jnp.nan * one}
    row = bench_method.measure(bench_method.Sides(calls, one, 1e-3), 0.0, rounds=1)
    assert row["differs"] == {"far": 1.0, "void": None}


def test_samples_with_page_faults_count_only_where_there_are_no_others():
    clean, faulty = bench_method.Sample(1.0, 0), bench_method.Sample(9.0, 5)
    samples = {"jaxnorm": [clean] * 5 + [faulty] * 5, "a": [faulty] * 10, "b": [clean] * 10}
    assert bench_method.ratio(samples, "b") == [1.0, 1.0, 1.0]
    assert bench_method.ratio(samples, "a")[0] == 1.0 and bench_method.ratio(samples, "a")[2] == 9.0


def test_a_row_under_load_is_marked():
    row = {"ms": {"jaxnorm": [1.0, 2.0, 3.0]}, "ratio": {}, "differs": {}}
    cells = [bench_tables.times_cells(row | {"cores_elsewhere": cores}, [])[0] for cores in (0.0, 1.0)]
    assert cells == ["2.00 (1.00 to 3.00)", "2.00 (1.00 to 3.00), under load"]


def test_training_steps_agree_with_flax(monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("flax")
    import bench_memory
    from bench_models import Model, transformer

    tiny = Model(lambda *a: transformer(*a, depth=1, width=16), 4, "tokens")
    monkeypatch.setitem(bench_memory.TRAINED, "tiny", tiny)
    row = bench_memory.training_row("tiny", "small", "float32", 0.0, rounds=1)
    assert row["ratio"]["linen"][1] > 0 and row["temporary_mb"]["jaxnorm"] > 0


def dense_network(layers: Any, x: jax.Array, labels: jax.Array) -> jax.Array:
    x = layers.relu(layers.layer_norm("norm", layers.dense("dense", x, 16)))
    return layers.loss("head", x, labels, 10)


def conv_network(layers: Any, x: jax.Array, labels: jax.Array) -> jax.Array:
    x = layers.conv("depthwise", layers.conv("stem", x, 8, strides=4), 8, groups=8)
    return layers.loss("head", layers.relu(layers.batch_norm("norm", x)).mean((1, 2)), labels, 10)


@pytest.mark.parametrize("network, inputs", [(dense_network, "features"), thorough(conv_network, "images")])
def test_memory_of_every_library(network: Any, inputs: str, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("flax")
    import bench_memory
    from bench_models import Model

    monkeypatch.setitem(bench_memory.MEMORY, "tiny", Model(network, 32, inputs, equinox=inputs == "features"))
    row = bench_memory.memory_row("tiny", "small", "float32", JAX_RIVALS)
    assert row["kept_mb"]["jaxnorm"] < row["kept_mb"]["linen"] and not row["differs"]
    without = {"plain", "nnx"} | ({"equinox"} if inputs == "images" else set())
    assert set(row["temporary_mb"]) == {"jaxnorm", *JAX_RIVALS} - without


def test_what_functions_keep():
    pytest.importorskip("flax")
    import bench_memory

    kept = list(bench_memory.kept_rows("small", "float32", ["plain"]))
    assert all(row["kept"]["jaxnorm"] < 0.1 for row in kept) and kept[0]["kept"]["plain"] > 1


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["norms", "--only", "nothing"], "--only nothing: norms has no such row"),
        (["norms", "--rivals", "composed"], "norms is measured against plain"),
        (["losses", "--json", "nowhere/found.json"], "must be a folder that exists"),
        (["losses", "--seconds", "-1"], "must be a number of at least 0, got -1"),
        (["losses", "--plot", "nowhere"], "must be a folder that exists"),
    ],
)
def test_bad_arguments(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        bench.main(arguments)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("kind", bench_choices.KINDS)
def test_a_choice_of_each_kind_is_measured(kind: str):
    chosen = next(chosen for chosen in bench_choices.CHOICES if chosen.labels()["kind"] == kind)
    row = chosen.labels("small") | bench_method.measure(bench_choices.sides(chosen, "small"), 0.0, rounds=1)
    assert row["ratio"]["instead"][1] > 0 and not row["differs"]
    (grid,) = bench_tables.choices([row]).values()
    assert grid.rows[0][:3] == [row[name] for name in ("file", "taken", "instead")]
    assert len(grid.rows[0]) == len(grid.columns)


@pytest.mark.thorough
@pytest.mark.parametrize("chosen", bench_choices.CHOICES, ids=lambda chosen: chosen.labels()["name"])
def test_every_choice_matters_where_it_is_measured(chosen: bench_choices.Choice, monkeypatch: pytest.MonkeyPatch):
    called = []
    module = kernel_gradient if chosen.attribute == "_CORRELATE" else forward
    if original := getattr(module, chosen.taken, None):  # a formulation: the choice must take it
        monkeypatch.setattr(module, chosen.taken, lambda *arguments: (called.append(1), original(*arguments))[1])
    programs = bench_choices.lowered(chosen, "medium")
    assert programs["jaxnorm"].as_text() != programs["instead"].as_text()
    assert called or original is None
