"""How the benchmarks measure: calls in random turns, floors, page faults, memory, and what the machine is.

All sides of a row run in one process. A turn is 2 ms of a side's own calls to warm up (idle threads of another side may
still spin), then two timed samples; turns come in random order, every side once in each round. Each result is compared
with the truth before anything is timed. Times are medians with quartiles, ratios are taken sample by sample.

Page faults: a large output is memory that the kernel must first map and clear, unless the allocator kept it from an
earlier call, and that can take longer than the computation. So glibc is told to keep what it has, for every side alike
(`ALLOCATOR`), and the page faults during each sample are counted: when at least `ENOUGH` samples of a side had
none, only these count for its time, and likewise pairs of samples without any for a ratio.

While a row is measured, other processes may compute too. How many cores they had on average is recorded, and the tables
mark a row where that is much.

On an accelerator a sample is a loop of calls of about 2 ms, waited for at its end, so that launching them is hidden
where the device is slower. A PyTorch without CUDA is left out there.
"""

import functools
import importlib
import importlib.util
import os
import platform
import resource
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import psutil

torch: Any = importlib.import_module("torch") if importlib.util.find_spec("torch") else None
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
if torch:
    torch.set_num_threads(CORES)  # as many as XLA has; PyTorch itself would leave out hyperthreads

ALLOCATOR = {
    "MALLOC_MMAP_THRESHOLD_": "8000000000",
    "MALLOC_TRIM_THRESHOLD_": "16000000000",
    "MALLOC_TOP_PAD_": "500000000",
    "MALLOC_ARENA_MAX": "1",
}
ENOUGH = 4
WARM_UP = 2e-3
PACKAGES = ("jaxnorm", "jax", "jaxlib", "numpy", "flax", "dm-haiku", "equinox", "optax", "torch", "tokamax")

Call = Callable[[], Any]


class Sample(NamedTuple):
    """One timed sample."""

    ms: float
    faults: int


class Sides(NamedTuple):
    """What one row measures: `jaxnorm`, its rivals, and perhaps a `floor`."""

    calls: dict[str, Call]
    truth: Any
    tolerance: float
    programs: dict[str, Any] = {}  # compiled, whose temporary memory is recorded
    moved: int | None = None  # bytes of the inputs and outputs
    flops: float | None = None
    dtype: str = "float32"  # of the matrix product whose rate gives the FLOPs' floor
    uncompared: tuple[str, ...] = ("floor",)


def wait(result: Any) -> None:
    """Until it is computed."""
    jax.block_until_ready(result)
    if torch and torch.cuda.is_initialized():
        torch.cuda.synchronize()


def repeated(call: Call, times: int) -> None:
    """`times` calls, waited for once."""
    result = None
    for _ in range(times):
        result = call()
    wait(result)


def in_turns(calls: Mapping[str, Call], seconds: float, rounds: int = 3) -> dict[str, list[Sample]]:
    """Samples of every call, round by round, for about `seconds` for each call and at least `rounds` rounds."""
    samples: dict[str, list[Sample]] = {name: [] for name in calls}
    times = dict.fromkeys(calls, 1)
    if jax.default_backend() != "cpu":
        for name, call in calls.items():
            wait(call())
            start = time.perf_counter()
            wait(call())
            times[name] = max(1, round(WARM_UP / (time.perf_counter() - start)))
    rng, end, names = np.random.default_rng(0), time.perf_counter() + seconds * len(calls), list(calls)
    while time.perf_counter() < end or len(samples[names[0]]) < 2 * rounds:
        for name in rng.permutation(names).tolist():
            warm = time.perf_counter() + WARM_UP
            while time.perf_counter() < warm:
                wait(calls[name]())
            for _ in range(2):
                faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
                start = time.perf_counter()
                repeated(calls[name], times[name])
                ms = 1e3 * (time.perf_counter() - start) / times[name]
                samples[name].append(Sample(ms, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults))
    return samples


def quartiles(values: Sequence[float]) -> list[float]:
    """First quartile, median, third quartile."""
    return statistics.quantiles(values, n=4, method="inclusive")


def without_faults(samples: Sequence[tuple[Sample, ...]]) -> Sequence[tuple[Sample, ...]]:
    """Those without page faults if there are enough of them, else all."""
    clean = [s for s in samples if not any(sample.faults for sample in s)]
    return clean if len(clean) >= ENOUGH else samples


def ratio(samples: Mapping[str, Sequence[Sample]], other: str, ours: str = "jaxnorm") -> list[float]:
    """How many times as long the other side takes: quartiles."""
    pairs = without_faults(list(zip(samples[other], samples[ours], strict=True)))
    return quartiles([other.ms / ours.ms for other, ours in pairs])


@jax.jit
def _distance(have: jax.Array, want: jax.Array) -> jax.Array:
    have, want = have.astype(want.dtype), want
    return jnp.max(jnp.abs(have - want)) / jnp.maximum(jnp.max(jnp.abs(want)), 1e-6)


def as_array(value: Any) -> jax.Array:
    """A JAX array of a result, PyTorch's too."""
    if torch and isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        value = (value.float() if value.dtype == torch.bfloat16 else value).contiguous().numpy()
    return jnp.asarray(value)


def error(result: Any, truth: Any) -> float | None:
    """The largest difference in units of each array's largest entry, over all arrays; None if it is not finite."""
    leaves = zip(jax.tree.leaves(result), jax.tree.leaves(truth), strict=True)
    found = [float(_distance(as_array(have), want)) for have, want in leaves]
    return max(found) if np.all(np.isfinite(found)) else None


def measure(sides: Sides, seconds: float, rounds: int = 3) -> dict[str, Any]:
    """Compares, then times: milliseconds and ratios to jaxnorm (quartiles), errors, page faults, temporary memory.

    Raises:
      AssertionError: jaxnorm's own result is wrong. A rival's is recorded under `differs`.
    """
    compared = {name: call for name, call in sides.calls.items() if name not in sides.uncompared}
    errors = {name: error(call(), sides.truth) for name, call in compared.items()}
    differs = {name: e for name, e in errors.items() if e is None or e > sides.tolerance}
    if "jaxnorm" in differs:
        raise AssertionError(f"jaxnorm is wrong by {differs['jaxnorm']}, more than {sides.tolerance}")
    before = cpu_seconds_elsewhere(), time.perf_counter()
    samples = in_turns(sides.calls, seconds, rounds)
    elsewhere = (cpu_seconds_elsewhere() - before[0]) / (time.perf_counter() - before[1])
    row: dict[str, Any] = {
        "ms": {
            name: quartiles([s.ms for (s,) in without_faults([(s,) for s in side])]) for name, side in samples.items()
        },
        "ratio": {name: ratio(samples, name) for name in samples if name != "jaxnorm"},
        "error": errors,
        "differs": differs,
        "samples": len(samples["jaxnorm"]),
        "cores_elsewhere": max(0.0, round(elsewhere, 2)),
        "without_page_faults": {name: sum(s.faults == 0 for s in side) for name, side in samples.items()},
        "temporary_mb": {name: temporary_bytes(program) / 1e6 for name, program in sides.programs.items()},
    }
    if (
        sides.flops is not None
        and (least := sides.flops / matrix_rate(sides.dtype) / 1e6) > row["ms"].get("floor", [0] * 3)[1]
    ):
        row["ms"]["floor"] = [least] * 3
        row["ratio"]["floor"] = [least / ms for ms in reversed(row["ms"]["jaxnorm"])]
    if sides.moved is not None:
        row["gb_s"] = {name: sides.moved / ms[1] / 1e6 for name, ms in row["ms"].items()}
    if sides.flops is not None:
        row["gflop_s"] = {name: sides.flops / ms[1] / 1e6 for name, ms in row["ms"].items()}
    return row


def cpu_seconds_elsewhere() -> float:
    """What other processes have computed since the machine started, in seconds of one core."""
    of_all, own = psutil.cpu_times(), psutil.Process().cpu_times()
    return of_all.user + getattr(of_all, "nice", 0.0) + of_all.system - own.user - own.system


def temporary_bytes(program: Any) -> int:
    """What a compiled program allocates beside its arguments and results."""
    return program.memory_analysis().temp_size_in_bytes


def floor_of(*outputs: tuple[jax.Array, Any]) -> Call:
    """An elementwise kernel that reads each array and writes an array like it, of the dtype beside it."""
    arrays, dtypes = zip(*outputs, strict=True)
    kernel = jax.jit(lambda arrays: [(a * 1.5).astype(dtype) for a, dtype in zip(arrays, dtypes, strict=True)])
    return functools.partial(kernel, arrays)


@functools.cache
def matrix_rate(dtype: str) -> float:
    """GFLOP/s of a large matrix product."""
    size = 2048 if jax.default_backend() == "cpu" else 8192
    a = jnp.ones((size, size), dtype)
    samples = in_turns({"product": functools.partial(jax.jit(jnp.matmul), a, a)}, 0.5)
    return 2 * size**3 / min(s.ms for s in samples["product"]) / 1e6


@functools.cache
def copy_rate() -> float:
    """GB/s, read and written, of an elementwise kernel on 64 MB (on an accelerator 1 GB)."""
    a = jnp.ones((2**24 if jax.default_backend() == "cpu" else 2**28,), jnp.float32)
    samples = in_turns({"copy": floor_of((a, a.dtype))}, 0.5)
    return 2 * a.nbytes / min(s.ms for (s,) in without_faults([(s,) for s in samples["copy"]])) / 1e6


def processor() -> str:
    """Its name, as far as the system tells."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def versions() -> dict[str, str]:
    """Of what takes part, where installed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def load_average() -> float | None:
    """Of the last minute, this process included: how many processes waited for a core or had one."""
    return round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None


def machine() -> dict[str, Any]:
    """What the numbers depend on: versions, processor, threads, allocator."""
    return {
        "backend": jax.default_backend(),
        "device": jax.devices()[0].device_kind,
        "processor": processor(),
        "architecture": platform.machine(),
        "cores": CORES,
        "torch_threads": torch.get_num_threads() if torch else None,
        "versions": versions(),
        "environment": {name: os.environ[name] for name in (*ALLOCATOR, "XLA_FLAGS") if name in os.environ},
        "matrix_gflop_s": matrix_rate("float32"),
        "copy_gb_s": copy_rate(),
    }
