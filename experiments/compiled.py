"""What an optimized XLA program moves through memory, read from its text (`compiled.as_text()`); nothing runs.

    python experiments/compiled.py program.txt        a line for each kernel, those that move most first, and the sums

Every kernel of the entry computation (a fusion, or an instruction outside one) reads its operands from memory and
writes its results to memory once. What the count makes of the rest:

    slices          an operand of which a kernel uses a slice, or gathers elements, counts by that part
    updates         a dynamic-update-slice or scatter into an operand works in place, and counts by the update
    loops           a body counts as often as it runs; calls are followed; of branches the one that moves most counts
    on-chip memory  an array with a memory space in its layout, such as a TPU's `S(1)`, counts nothing
    asynchronous    the start of a copy counts what it reads, its end what it writes
    layouts         a TPU's tiles pad arrays; the padding counts

Caches are not modelled: an array that stays in one from one kernel to the next counts as if it did not, and an operand
that a kernel reads in several rounds (a product in tiles, two reductions of a long row) counts once.
"""

import argparse
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from hlo import UPDATES, Computation, Instruction, computations_of

FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "opt-barrier", "partition-id"}
FREE_CALLS = re.compile(r'custom_call_target="(AllocateBuffer|AssumeGatherIndicesInBound|ConcatBitcast)"')
SLICES = {"slice", "dynamic-slice", "gather"}
WHOLE = {"dot", "convolution", "custom-call", "sort", "reduce-window", "select-and-scatter", "fft"}

_CONDITION = re.compile(r"condition=%?([\w.-]+)")
_TRIPS = re.compile(r'known_trip_count":\{"n":"(\d+)"')
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_SOURCE = re.compile(r'op_name="([^"]*)"')


class Kernel(NamedTuple):
    """What one kernel moves each time, how often it runs, and the compiler's own estimate, where there is one."""

    name: str
    op: str
    read: float
    written: float
    times: int
    cycles: int
    source: str

    @property
    def bytes(self) -> float:
        """All that it moves."""
        return (self.read + self.written) * self.times


class Traffic(NamedTuple):
    """The sums over a program, and what its arguments and results have in bytes."""

    read: float
    written: float
    cycles: int
    kernels: int
    inputs: int
    outputs: int

    @property
    def bytes(self) -> float:
        """Read and written."""
        return self.read + self.written


class Fused(NamedTuple):
    """The part of each parameter that a fused computation reads, and of each of its arrays that it writes."""

    reads: list[float]
    writes: list[float]


class Program:
    """An optimized program's computations."""

    def __init__(self, text: str):
        self.computations, entry = computations_of(text)
        self.entry = self.computations[entry]
        self.known: dict[str, Fused] = {}

    def _called(self, one: Instruction) -> Computation:
        return self.computations[one.called[0]]

    def fused(self, name: str) -> Fused:
        """What a fused computation reads and writes, from its outputs backwards."""
        if name not in self.known:
            computation, wanted = self.computations[name], defaultdict[str, float](float)
            in_place = {one.name for one in map(computation.in_place, computation.outputs) if one}
            for output in computation.outputs:
                wanted[output.name] = output.elements
            reads: dict[int, float] = {}
            for one in reversed(computation.instructions.values()):
                want = min(wanted[one.name], one.elements)
                if one.op == "parameter":
                    reads[int(one.inside)] = want / max(one.elements, 1)
                elif want and one.op != "tuple":
                    for operand, part in self._wanted(computation, one, want, one.name in in_place):
                        wanted[operand.name] += part
            writes = [share for output in computation.outputs for share in computation.written(output)]
            self.known[name] = Fused([reads[number] for number in sorted(reads)], writes)
        return self.known[name]

    def _wanted(
        self, computation: Computation, one: Instruction, want: float, in_place: bool
    ) -> Iterator[tuple[Instruction, float]]:
        """How many elements of each operand an instruction needs for so many elements of its result."""
        reads = self.fused(one.called[0]).reads if one.op == "fusion" else []
        for position, name in enumerate(one.operands):
            operand = computation.instructions[name]
            size = operand.elements
            if one.op in SLICES and position == 0:
                yield operand, want
            elif in_place and position == 0:  # a scatter adds to what is there
                yield operand, computation.update_of(one).elements if one.op == "scatter" else 0
            elif one.op == "fusion":
                yield operand, size * reads[position]
            elif one.op == "reduce":
                yield operand, size * want / one.elements
            else:
                yield operand, size if want >= one.elements or one.op in WHOLE else min(size, want)

    def _read(self, computation: Computation, one: Instruction) -> float:
        parts = defaultdict[str, float](float)
        for operand, part in self._wanted(computation, one, one.elements, one.op in UPDATES):
            parts[operand.name] += part
        operands = ((computation.instructions[name], part) for name, part in parts.items())
        return sum(operand.bytes * min(part / max(operand.elements, 1), 1) for operand, part in operands)

    def _written(self, computation: Computation, one: Instruction) -> float:
        if one.op == "fusion":
            shares = self.fused(one.called[0]).writes
            return sum(array.bytes * share for array, share in zip(one.results, shares, strict=True))
        if one.op in UPDATES:
            return one.bytes * computation.update_of(one).elements / one.elements
        # A library's call has more results, which are its room to work.
        return float(one.results[0].bytes if 'custom_call_target="__cu' in one.attributes else one.bytes)

    def _kernel(self, computation: Computation, one: Instruction, times: int) -> Kernel:
        read = written = 0.0
        if one.op.endswith("-start"):
            # Its results are its operands, what it makes, and a handle.
            made = one.results[len(one.operands) : len(one.operands) + 1]
            op = "fusion" if one.op == "async-start" else one.op.removesuffix("-start")
            read = self._read(computation, one._replace(op=op, results=made))
        elif one.op.endswith("-done"):
            written = float(one.bytes)
        else:
            read, written = self._read(computation, one), self._written(computation, one)
        cycles, source = (pattern.findall(one.attributes) or [""] for pattern in (_CYCLES, _SOURCE))
        return Kernel(one.name, one.op, read, written, times, int(cycles[0] or 0), source[0])

    def _trips(self, loop: Instruction) -> int:
        """How often a loop runs: what the compiler says, else the number that its condition compares with."""
        if found := _TRIPS.search(loop.attributes):
            return int(found[1])
        condition = _CONDITION.search(loop.attributes)
        lines = self.computations[condition[1]].instructions.values() if condition else ()
        limits = [int(one.inside) for one in lines if one.op == "constant" and re.fullmatch(r"\d+", one.inside)]
        if len(limits) != 1:
            raise ValueError(f"how often the loop {loop.name} runs is not known")
        return limits[0]

    def kernels(self, computation: Computation | None = None, times: int = 1) -> Iterator[Kernel]:
        """Every kernel that the entry computation runs, those of loops and calls too.

        Raises:
          ValueError: a loop's number of trips is not known.
        """
        computation = computation or self.entry
        for one in computation.instructions.values():
            if one.op in FREE or FREE_CALLS.search(one.attributes):
                continue
            if one.op == "while":
                yield from self.kernels(self._called(one), times * self._trips(one))
            elif one.op == "call":
                yield from self.kernels(self._called(one), times)
            elif one.op == "conditional":
                branches = [list(self.kernels(self.computations[name], times)) for name in one.called]
                yield from max(branches, key=lambda kernels: sum(kernel.bytes for kernel in kernels))
            elif not one.op.endswith("-update"):
                yield self._kernel(computation, one, times)

    def traffic(self) -> Traffic:
        """The sums."""
        kernels = list(self.kernels())
        read, written = (sum(getattr(k, part) * k.times for k in kernels) for part in ("read", "written"))
        inputs = sum(one.bytes for one in self.entry.instructions.values() if one.op == "parameter")
        outputs = self.entry.instructions[self.entry.root].bytes
        cycles, runs = sum(k.cycles * k.times for k in kernels), sum(k.times for k in kernels)
        return Traffic(read, written, cycles, runs, inputs, outputs)


def main() -> None:
    """Lists the kernels of a program's text."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("file", type=Path, help="the text that `compiled.as_text()` gave")
    program = Program(parser.parse_args().file.read_text())
    line = "{:>10} {:>10} {:>6} {:>12}  {}"
    print(line.format("MB read", "MB written", "times", "cycles", "kernel, source"))
    for k in sorted(program.kernels(), key=lambda k: -k.bytes):
        numbers = (f"{k.read * k.times / 1e6:.3f}", f"{k.written * k.times / 1e6:.3f}", k.times, k.cycles * k.times)
        print(line.format(*numbers, f"{k.name} ({k.op}) {k.source}"))
    total = program.traffic()
    sums = (f"{total.read / 1e6:.3f}", f"{total.written / 1e6:.3f}", total.kernels, total.cycles)
    print(line.format(*sums, f"sums; arguments {total.inputs / 1e6:.3f} MB, results {total.outputs / 1e6:.3f} MB"))


if __name__ == "__main__":
    main()
