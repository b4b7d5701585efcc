"""What compiled programs move, on short programs with known answers; no accelerator's compiler is needed."""

import functools
import json
import subprocess
from pathlib import Path
from typing import Any

import bench
import bench_compiled
import bench_compiled_cases as cases
import bench_compiled_programs as programs
import bench_compiled_report as report
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled import Program, Traffic
from hlo import arrays_of

MAIN = "ENTRY %main (x: f32[64,128]) -> f32[64,128] {\n  %x = f32[64,128]{1,0} parameter(0)\n"
ALL = 4 * 64 * 128  # bytes of x
ROW = 4 * 128


@pytest.fixture(autouse=True)
def in_float32():
    with jax.enable_x64(False):
        yield


def traffic(entry: str, *computations: str) -> Traffic:
    """Of an entry computation that begins with x, without its brace."""
    return Program("HloModule test\n\n" + "\n}\n\n".join((*computations, MAIN + entry)) + "\n}\n").traffic()


@pytest.mark.parametrize(
    "text, elements, in_memory",
    [
        ("f32[64,128]{1,0}", 64 * 128, ALL),
        ("pred[10]{0}", 10, 10),
        ("bf16[]", 1, 2),
        ("s4[6]{0:E(4)}", 6, 3),
        ("f32[8192,1]{1,0:T(8,128)}", 8192, 4 * 8192 * 128),  # a tile's row has 128
        ("f32[8192,1]{0,1:T(1,128)}", 8192, 4 * 8192),
        ("bf16[30,100]{1,0:T(8,128)(2,1)}", 3000, 2 * 32 * 128),
        ("f32[64]{0:T(1024)S(1)}", 64, 0),
        ("f32[]{:T(128)}", 1, 4),
    ],
)
def test_arrays(text: str, elements: int, in_memory: int):
    assert [(array.elements, array.bytes) for array in arrays_of(text)] == [(elements, in_memory)]


def test_a_fusion_reads_each_operand_and_writes_each_result_once():
    fused = """%fused (p: f32[64,128], q: f32[]) -> (f32[64], f32[64,128]) {
  %p = f32[64,128]{1,0} parameter(0)
  %q = f32[] parameter(1)
  %sum = f32[64]{0} reduce(%p, %q), dimensions={1}, to_apply=%add
  ROOT %both = (f32[64]{0}, f32[64,128]{1,0}) tuple(%sum, %twice)"""
    fused = fused.replace("  ROOT", "  %twice = f32[64,128]{1,0} add(%p, %p)\n  ROOT")
    found = traffic(
        """  %zero = f32[] constant(0)
  %both = (f32[64]{0}, f32[64,128]{1,0}) fusion(%x, %zero), kind=kLoop, calls=%fused, metadata={op_name="f(x)"}
  %sum = f32[64]{0} get-tuple-element(%both), index=0
  %view = f32[1,64]{1,0} bitcast(%sum)
  ROOT %y = f32[64,128]{1,0} get-tuple-element(%both), index=1""",
        fused,
    )
    assert found == Traffic(read=ALL + 4, written=ALL + 256, cycles=0, kernels=1, inputs=ALL, outputs=ALL)


SLICED = """%fused (p: f32[64,128], i: s32[]) -> f32[1,128] {
  %p = f32[64,128]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %zero = s32[] constant(0)
  %row = f32[1,128]{1,0} dynamic-slice(%p, %i, %zero), dynamic_slice_sizes={1,128}
  ROOT %y = f32[1,128]{1,0} exponential(%row)"""
BEHIND = SLICED.replace("dynamic-slice(%p,", "dynamic-slice(%e,").replace(
    "  %i", "  %e = f32[64,128]{1,0} exponential(%p)\n  %i", 1
)
GATHERED = """%fused (p: f32[64,128], i: s32[5,1]) -> f32[5,128] {
  %p = f32[64,128]{1,0} parameter(0)
  %i = s32[5,1]{1,0} parameter(1)
  ROOT %rows = f32[5,128]{1,0} gather(%p, %i), offset_dims={1}, slice_sizes={1,128}"""


@pytest.mark.parametrize("fused", [SLICED, BEHIND])
def test_a_slice_counts_by_its_size(fused: str):
    entry = """  %i = s32[] constant(3)
  ROOT %y = f32[1,128]{1,0} fusion(%x, %i), kind=kLoop, calls=%fused"""
    found = traffic(entry, fused)
    assert (found.read, found.written) == (ROW + 4, ROW)


def test_gathered_elements_count():
    entry = """  %i = s32[5,1]{1,0} constant({...})
  ROOT %y = f32[5,128]{1,0} fusion(%x, %i), kind=kLoop, calls=%fused"""
    found = traffic(entry, GATHERED)
    assert (found.read, found.written) == (5 * ROW + 20, 5 * ROW)


UPDATED = """%fused (p: f32[64,128], u: f32[1,128], i: s32[]) -> f32[64,128] {
  %p = f32[64,128]{1,0} parameter(0)
  %u = f32[1,128]{1,0} parameter(1)
  %i = s32[] parameter(2)
  ROOT %y = f32[64,128]{1,0} dynamic-update-slice(%p, %u, %i, %i)"""
FRESH = UPDATED.replace("dynamic-update-slice(%p,", "dynamic-update-slice(%all,").replace(
    "  ROOT", "  %zero = f32[] constant(0)\n  %all = f32[64,128]{1,0} broadcast(%zero), dimensions={}\n  ROOT"
)
ENTRY = """  %u = f32[1,128]{1,0} constant({...})
  %i = s32[] constant(3)
"""


def test_an_update_in_place_counts_by_its_size():
    fusion = ENTRY + "  ROOT %y = f32[64,128]{1,0} fusion(%x, %u, %i), kind=kLoop, calls=%fused"
    alone = ENTRY + "  ROOT %y = f32[64,128]{1,0} dynamic-update-slice(%x, %u, %i, %i)"
    for found in (traffic(fusion, UPDATED), traffic(alone)):
        assert (found.read, found.written) == (ROW + 4, ROW)
    assert traffic(fusion, FRESH).written == ALL  # nothing was there that could stay


def test_a_scatter_reads_and_writes_what_it_adds_to():
    entry = """  %i = s32[5,1]{1,0} constant({...})
  %u = f32[5,128]{1,0} constant({...})
  ROOT %y = f32[64,128]{1,0} scatter(%x, %i, %u), update_window_dims={1}, to_apply=%add"""
    found = traffic(entry)
    assert (found.read, found.written) == (2 * 5 * ROW + 20, 5 * ROW)


BODY = """%body (carry: (s32[], f32[64,128])) -> (s32[], f32[64,128]) {
  %carry = (s32[], f32[64,128]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%carry), index=0
  %p = f32[64,128]{1,0} get-tuple-element(%carry), index=1
  %q = f32[64,128]{1,0} negate(%p), backend_config={"window_config":{"estimated_cycles":"70"}}
  ROOT %next = (s32[], f32[64,128]{1,0}) tuple(%i, %q)"""
CONDITION = """%condition (carry: (s32[], f32[64,128])) -> pred[] {
  %carry = (s32[], f32[64,128]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%carry), index=0
  %end = s32[] constant(6)
  ROOT %more = pred[] compare(%i, %end), direction=LT"""
LOOP = """  %zero = s32[] constant(0)
  %start = (s32[], f32[64,128]{1,0}) tuple(%zero, %x)
  %loop = (s32[], f32[64,128]{1,0}) while(%start), condition=%condition, body=%body
  ROOT %y = f32[64,128]{1,0} get-tuple-element(%loop), index=1"""


def test_a_loop_counts_as_often_as_it_runs():
    found = traffic(LOOP, BODY, CONDITION)
    assert (found.read, found.written, found.cycles, found.kernels) == (6 * ALL, 6 * ALL, 6 * 70, 6)
    said = LOOP.replace("body=%body", 'body=%body, backend_config={"known_trip_count":{"n":"9"}}')
    assert traffic(said, BODY, CONDITION).read == 9 * ALL
    with pytest.raises(ValueError, match="how often the loop loop runs is not known"):
        traffic(LOOP, BODY, CONDITION.replace("constant(6)", "negate(%i)"))


def test_calls_are_followed_and_the_larger_branch_counts():
    little = """%little (p: f32[64,128]) -> f32[64,128] {
  ROOT %p = f32[64,128]{1,0} parameter(0)"""
    much = """%much (p: f32[64,128]) -> f32[64,128] {
  %p = f32[64,128]{1,0} parameter(0)
  ROOT %q = f32[64,128]{1,0} negate(%p)"""
    branch = "  %i = s32[] constant(0)\n  ROOT %y = f32[64,128]{1,0} conditional(%i, %x, %x)"
    found = traffic(branch + ", branch_computations={%little, %much}", little, much)
    assert (found.read, found.kernels) == (ALL, 1)
    assert traffic("  ROOT %y = f32[64,128]{1,0} call(%x), to_apply=%much", much).read == ALL


def test_asynchronous_copies_and_memory_on_the_chip():
    entry = """  %start = (f32[64,128]{1,0:S(1)}, f32[64,128]{1,0}, u32[]{:S(2)}) copy-start(%x)
  %part = ((f32[64,128]{1,0}), f32[1,128]{1,0:S(1)}, s32[]{:S(2)}) slice-start(%x), slice={[0:1], [0:128]}
  %near = f32[64,128]{1,0:S(1)} copy-done(%start)
  %row = f32[1,128]{1,0:S(1)} slice-done(%part)
  %kept = f32[64,128]{1,0:S(1)} negate(%near)
  %back = (f32[64,128]{1,0}, f32[64,128]{1,0:S(1)}, u32[]{:S(2)}) copy-start(%kept)
  ROOT %y = f32[64,128]{1,0} copy-done(%back)"""
    found = traffic(entry)
    assert (found.read, found.written) == (ALL + ROW, ALL)


def test_a_librarys_room_to_work_is_not_written():
    target = 'custom_call_target="__cublas$gemm"'
    call = f"  %both = (f32[64,128]{{1,0}}, s8[4194304]{{0}}) custom-call(%x, %x), {target}"
    found = traffic(call + "\n  ROOT %y = f32[64,128]{1,0} get-tuple-element(%both), index=0")
    assert (found.read, found.written) == (ALL, ALL)


def test_programs_of_this_machine():
    x = jnp.ones((256, 512))
    once = Program(jax.jit(lambda x: 2 * x + 1).lower(x).compile().as_text()).traffic()
    assert (once.read, once.written, once.inputs, once.outputs) == (x.nbytes,) * 4

    def in_blocks(x: jax.Array) -> jax.Array:
        step = lambda i: jnp.exp(jax.lax.dynamic_slice_in_dim(x, 8 * i, 8)).sum(0)  # noqa: E731
        return jax.lax.map(step, jnp.arange(32))

    blocks = Program(jax.jit(in_blocks).lower(x).compile().as_text()).traffic()
    assert x.nbytes <= blocks.read < 4 * x.nbytes  # 32 times a 32nd of x, not 32 times x


def test_the_passes_apart():
    side = cases.Side(
        lambda x, s, c: jnp.tanh(x) * s + c, [cases.array((8, 16)), cases.array((16,))], [cases.array(())]
    )
    apart = programs.Apart(side)
    rng = np.random.default_rng(0)
    x, s, g = (jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in ((8, 16), (16,), (8, 16)))
    given = ((x, s), (jnp.float32(3.0),))
    y, kept = apart.forward(*given)
    assert sum(k.nbytes for k in kept) == apart.kept > 0
    expected = jax.vjp(lambda x, s: side.function(x, s, 3.0), x, s)[1](g)
    for have, want in zip(apart.backward(g, *given, y, kept), expected, strict=True):
        np.testing.assert_allclose(have, want, rtol=1e-6)


FUNCTIONS = [row for row in cases.rows(["bfloat16"], quick=True) if row.section != "steps"]


@pytest.mark.parametrize("row", FUNCTIONS, ids=lambda row: row.title)
def test_rows_are_of_the_same_results(row: cases.Row):
    sides = row.build(["plain", *(["linen"] if bench.linen else [])])
    shapes = {n: jax.eval_shape(side.function, *side.arguments, *side.constants) for n, side in sides.items()}
    assert "jaxnorm" in shapes and len(shapes) > 1
    assert len({(shape.shape, shape.dtype) for shape in shapes.values()}) == 1, shapes


def measured() -> list[dict[str, Any]]:
    """A small row, compiled for this machine."""
    build = functools.partial(cases.norm_case, "rms", (64, 96), "float32")
    row = cases.Row("norms", "rms norm", (64, 96), "float32", build)
    return programs.measure(programs.Compiler(None), row, ["plain"], bench_compiled.PROGRAMS)


def test_a_row_is_compiled_written_and_drawn(tmp_path: Path):
    found = measured()
    assert [row["program"] for row in found] == list(bench_compiled.PROGRAMS) and not any(r["failed"] for r in found)
    both, apart, inference = found
    x, scale = 4 * 64 * 96, 4 * 96
    assert (both["floor"], inference["floor"]) == (4 * x + 2 * scale, 2 * x + scale)
    assert apart["floor"] == 5 * x + 3 * scale
    assert apart["sides"]["jaxnorm"]["kept"] < x <= apart["sides"]["plain"]["kept"]
    assert all(n["bytes"] >= row["floor"] for row in found for n in row["sides"].values())
    path = tmp_path / "compiled-here.json"
    other = {**both, "name": "another"}
    report.write(path, "here", "numpy", "command", [other, both])
    written = report.write(path, "here", "numpy", "command", found)
    assert json.loads(path.read_text()) == json.loads(json.dumps(written))
    assert [row["name"] for row in written["rows"]] == ["another"] + ["rms norm 64×96"] * 3
    report.plot(tmp_path / "found.png", "here", found)
    assert (tmp_path / "found.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    grid = report.grid("here", found)
    assert "not run" in grid.title and {len(line) for line in grid.rows} == {len(grid.columns)}


def test_what_does_not_compile_is_shown():
    def fails(*arguments: Any) -> jax.Array:
        raise ValueError("no such dnn algorithm\nand more")

    whole = [cases.array((4, 4))]
    row = cases.Row(
        "norms", "n", (4, 4), "float32", lambda rivals: cases.every({"jaxnorm": fails, "plain": jnp.sin}, whole)
    )
    found = programs.measure(programs.Compiler(None), row, [], ["both"])
    reason = "no such dnn algorithm; cuDNN is not there, which XLA asks for convolutions"
    assert found[0]["failed"] == {"jaxnorm": reason} and "plain" in found[0]["sides"]
    assert report.grid("here", found).rows[0][3] == f"failed: {reason}"
    unbuilt = programs.measure(programs.Compiler(None), row._replace(build=fails), [], ["both"])
    assert report.grid("here", unbuilt).rows[0][3] == f"failed: {reason}"


def test_a_compiler_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    absent = bench_compiled.Target("tpu", "v5e:2x2", "libtpu", "no_such_module.inner")
    monkeypatch.setattr(bench_compiled, "TARGETS", {"v5e": absent})
    with pytest.raises(SystemExit) as end:
        bench.main(["compiled", "--target", "v5e"])
    assert end.value.code == 1
    assert 'v5e: its compiler is not installed: pip install -e ".[aot]"' in capsys.readouterr().err


def test_each_target_has_a_process_with_its_environment(monkeypatch: pytest.MonkeyPatch):
    started = []

    def run(command: list[str], env: dict[str, str], check: bool) -> subprocess.CompletedProcess:
        started.append((command[-1], env["JAX_PLATFORMS"], env["XLA_FLAGS"]))
        return subprocess.CompletedProcess(command, 3)

    monkeypatch.setattr(bench_compiled.subprocess, "run", run)
    monkeypatch.setattr(bench_compiled, "missing", lambda target: "absent" if target.platform == "cuda" else None)
    assert bench_compiled.main(["--target", "all", "--quick"]) == 3
    assert started == [(name, "cpu", "--xla_gpu_autotune_level=0") for name in ("v5e", "v6e", "v5p")]


def test_rows_that_are_not_there(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(bench_compiled, "missing", lambda target: None)
    for name, value in bench_compiled.ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    assert bench_compiled.main(["--target", "v5e", "--only", "nothing"]) == 2
    assert "--only nothing: there is no such row" in capsys.readouterr().err
