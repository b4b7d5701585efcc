"""Compiles one row's programs for a device that is not there, and counts what they move."""

import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from bench_compiled_cases import Row, Side
from compiled import Program
from jax.experimental import topologies
from jax.extend import core
from jax.sharding import SingleDeviceSharding

H100 = Path(__file__).parent / "h100.txtpb"  # what XLA must know of the card, as its own tools wrote it down
SUMS = ("read", "written", "bytes", "cycles", "kernels", "compile_s")
Numbers = dict[str, Any]


def device(platform: str, topology: str) -> Any:
    """A device to compile for."""
    if platform == "tpu":
        return topologies.get_topology_desc(topology, platform).devices[0]
    described = {"target_config": H100.read_text(), "topology": topology}
    return topologies.get_topology_desc(platform=platform, **described).devices[0]


def reason(error: Exception) -> str:
    """The first line of what went wrong."""
    text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    cudnn = "; cuDNN is not there, which XLA asks for convolutions" if "dnn" in str(error).lower() else ""
    return f"{text[:200]}{cudnn}"


class Compiler:
    """Compiles for a device; programs that were lowered to the same text are compiled once."""

    def __init__(self, device: Any, texts: Path | None = None):
        self.sharding = SingleDeviceSharding(device) if device is not None else None
        self.texts = texts
        self.known: dict[str, Numbers] = {}

    def __call__(self, name: str, function: Callable[..., Any], *arguments: Any) -> Numbers:
        """What the program moves and allocates, its arguments and results, and the seconds to compile."""
        placed = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=self.sharding), arguments)
        lowered = jax.jit(function).lower(*placed)
        if (text := lowered.as_text()) not in self.known:
            start = time.perf_counter()
            program: Any = lowered.compile()
            seconds = time.perf_counter() - start
            traffic = Program(program.as_text()).traffic()
            numbers = {key: round(value) for key, value in traffic._asdict().items()}
            numbers |= {"bytes": round(traffic.bytes), "compile_s": round(seconds, 2)}
            self.known[text] = numbers | {"temporary": program.memory_analysis().temp_size_in_bytes}
            if self.texts:
                (self.texts / f"{re.sub(r'[^a-zA-Z0-9.-]+', '_', name)}.txt").write_text(program.as_text())
        return self.known[text]


def pulled_back(side: Side) -> Callable[..., Any]:
    """The value, and a cotangent pulled back to the arguments."""

    def both(g: Any, constants: Sequence[Any], *arguments: Any) -> Any:
        y, pullback = jax.vjp(lambda *a: side.function(*a, *constants), *arguments)
        return y, pullback(g)

    return both


class Apart:
    """The two passes as functions of their own, and the residuals between them.

    A residual that is an argument or the result exists anyway, and is not kept a second time.
    """

    def __init__(self, side: Side):
        self.side = side
        self.tree: Any = None
        given = (tuple(side.arguments), tuple(side.constants))
        closed, (y, _) = jax.make_jaxpr(self._run, return_shape=True)(*given)
        outputs: list[Any] = closed.jaxpr.outvars
        results = len(jax.tree.leaves(y))
        self.there = [*closed.jaxpr.invars, *outputs[:results]]
        self.own = outputs[results:]
        self.closed_over = dict(zip(closed.jaxpr.constvars, closed.consts, strict=True))
        known = {*self.there, *self.closed_over}
        self.new: dict[Any, int] = {v: i for i, v in enumerate(self.own) if isinstance(v, core.Var) and v not in known}
        self.kept = sum(v.aval.size * v.aval.dtype.itemsize for v in self.new)
        self.residuals = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in self.new]

    def _run(self, arguments: Sequence[Any], constants: Sequence[Any]) -> tuple[Any, list[Any]]:
        y, pullback = jax.vjp(lambda *a: self.side.function(*a, *constants), *arguments)
        residuals, self.tree = jax.tree.flatten(pullback)
        return y, residuals

    def forward(self, arguments: Sequence[Any], constants: Sequence[Any]) -> Any:
        """The result and the residuals that are neither arguments nor the result."""
        y, residuals = self._run(arguments, constants)
        return y, [residuals[i] for i in self.new.values()]

    def backward(self, g: Any, arguments: Any, constants: Any, y: Any, kept: Sequence[Any]) -> Any:
        """The cotangent pulled back, by the residuals."""
        values = dict(zip(self.there, jax.tree.leaves((arguments, constants, y)), strict=True))
        values |= self.closed_over | dict(zip(self.new, kept, strict=True))
        residuals = [values[v] if isinstance(v, core.Var) else jnp.asarray(v.val, v.aval.dtype) for v in self.own]
        return jax.tree.unflatten(self.tree, residuals)(g)


def measured(compiler: Compiler, name: str, side: Side, program: str) -> Numbers:
    """One program of one side; `apart` is two, whose numbers are added: but the larger one's temporary memory."""
    arguments, constants = tuple(side.arguments), tuple(side.constants)
    if program == "step":
        return compiler(name, side.function, *arguments) | {"kept": side.kept}
    if program == "inference":
        return compiler(name, side.function, *arguments, *constants)
    g = jax.eval_shape(side.function, *arguments, *constants)
    if program == "both":
        return compiler(name, pulled_back(side), g, constants, *arguments)
    apart = Apart(side)
    first = compiler(f"{name} forward", apart.forward, arguments, constants)
    second = compiler(f"{name} backward", apart.backward, g, arguments, constants, g, apart.residuals)
    sums = {key: first[key] + second[key] for key in SUMS}
    return sums | {"temporary": max(first["temporary"], second["temporary"]), "kept": apart.kept}


def measure(compiler: Compiler, row: Row, rivals: Sequence[str], programs: Sequence[str]) -> list[dict[str, Any]]:
    """Each program of a row on every side: its numbers, or under `failed` why there are none; and the floor."""
    sides: Mapping[str, Side] = {}
    unbuilt: dict[str, str] = {}
    try:
        sides = row.build(rivals)
    except Exception as error:  # shown in the row, as the other reasons are
        unbuilt["jaxnorm"] = reason(error)
    found = []
    for program in ("step",) if row.section == "steps" else programs:
        numbers, failed = dict[str, Numbers](), dict(unbuilt)
        for name, side in sides.items():
            try:
                numbers[name] = measured(compiler, f"{row.title} {row.dtype} {program} {name}", side, program)
            except Exception as error:
                failed[name] = reason(error)
        labels = {"section": row.section, "name": row.title, "dtype": row.dtype, "program": program}
        found.append(labels | {"sides": numbers, "failed": failed})
    return with_floors(found)


def with_floors(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows with their floor: arguments read once and results written once; `apart`, once in each program."""
    least: dict[str, Numbers] = {}
    for row in found:
        whole = [numbers for numbers in row["sides"].values() if "inputs" in numbers]
        least[row["program"]] = {key: min((n[key] for n in whole), default=0) for key in ("inputs", "outputs")}
    for row in found:
        parts = least[row["program"]]
        row["floor"] = parts["inputs"] + parts["outputs"]
        if row["program"] == "apart" and {"both", "inference"} <= least.keys():
            # Both programs read the arguments; the forward pass's result leaves only one of them.
            row["floor"] = least["inference"]["inputs"] + least["both"]["inputs"] + least["both"]["outputs"]
    return found
