"""Many devices: simulated ones, several processes on this machine, and what a compiled program sends between them."""

import math
import re
import socket
import subprocess
import time
from collections.abc import Sequence
from typing import NamedTuple

import jax


def simulate_devices(count: int) -> None:
    """Makes the CPU count as so many devices, where nothing has run yet; accelerators are what they are."""
    try:
        jax.config.update("jax_num_cpu_devices", count)
    except RuntimeError:  # the devices are in use already, and stay
        return


def join_processes(address: str, index: int, processes: int, devices: int) -> None:
    """Makes this process, with its share of the devices, one of several that `run_processes` started."""
    own = devices // processes
    simulate_devices(own)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    local = range(index * own, (index + 1) * own)
    # Bound to that address too: otherwise the first process would listen on every interface.
    jax.distributed.initialize(address, processes, index, local_device_ids=local, coordinator_bind_address=address)


def run_processes(command: Sequence[str], processes: int, timeout: float | None = None) -> None:
    """Runs `command ADDRESS INDEX` in so many processes at once and waits for them; leaves none running.

    Raises:
      TimeoutError: they took more than `timeout` seconds.
      RuntimeError: one of them failed, so that the others would wait for it.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    end = math.inf if timeout is None else time.monotonic() + timeout
    running: list[subprocess.Popen] = []
    try:
        for index in range(processes):
            running.append(subprocess.Popen([*command, address, str(index)]))
        while None in (codes := [process.poll() for process in running]) and not any(codes):
            if time.monotonic() > end:
                raise TimeoutError(f"{processes} processes took more than {timeout:g} seconds")
            time.sleep(0.05)
        if any(codes):
            raise RuntimeError(
                f"of {processes} processes some failed: their exit codes are {codes} (None: still running)"
            )
    finally:
        for process in running:
            process.kill()
            process.wait()


class Collective(NamedTuple):
    """One exchange between devices: its kind, as XLA calls it, and its result on each device."""

    kind: str
    elements: int
    bytes: int


_SENDS = re.compile(
    # An asynchronous one is counted where it ends, since its beginning lists its operands too.
    r" = (.*?) (all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute|collective-broadcast)(?:-done)?\("
)
_ARRAYS = re.compile(r"(\w+)\[([\d,]*)\]")  # dtype and shape
_BITS = re.compile(r"\d+")


def collectives(program: str) -> list[Collective]:
    """The collectives in a compiled program (`compiled.as_text()`); one in a loop's body counts once."""
    found = []
    for result, kind in _SENDS.findall(program):
        arrays = [
            (dtype, math.prod(map(int, filter(None, shape.split(","))))) for dtype, shape in _ARRAYS.findall(result)
        ]
        bits = sum(size * (8 if dtype == "pred" else int(_BITS.findall(dtype)[0])) for dtype, size in arrays)
        found.append(Collective(kind, sum(size for _, size in arrays), bits // 8))
    return found
