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

Caches are not modelled: an array that stays in a cache from one kernel to the next counts as if it did not.
"""

import argparse
import functools
import math
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "opt-barrier", "partition-id"}
NOTHING_MOVED = ("AllocateBuffer", "AssumeGatherIndicesInBound")  # custom calls
SLICES = {"slice", "dynamic-slice", "gather"}
UPDATES = {"dynamic-update-slice": 1, "scatter": 2}  # and which operand is the update
WHOLE = {"dot", "convolution", "custom-call", "sort", "reduce-window", "select-and-scatter", "fft"}
SAME_ELEMENTS = {"bitcast", "reshape", "convert", "copy", "transpose"}

_ARRAY = re.compile(r"(\w+)\[([\d,<=]*)\](?:\{([^}]*)\})?")
_INSTRUCTION = re.compile(r"\s+(ROOT )?%?([\w.-]+) = (.*)")
_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.-]+) \(.*\{$")
_CALLED = re.compile(
    r"(?:calls|to_apply|body|branch_computations|true_computation|false_computation)=(\{[^}]*\}|[^,\s]+)"
)
_CONDITION = re.compile(r"condition=%?([\w.-]+)")
_TRIPS = re.compile(r'known_trip_count":\{"n":"(\d+)"')
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_SOURCE = re.compile(r'op_name="([^"]*)"')


class Array(NamedTuple):
    """One array of an instruction's result: its elements, and its bytes in memory (0 where it is on the chip)."""

    elements: int
    bytes: int


class Instruction(NamedTuple):
    """One line of a computation."""

    name: str
    op: str
    results: tuple[Array, ...]
    operands: tuple[str, ...]
    inside: str  # the text between the parentheses: operands, a parameter's number, a constant's value
    attributes: str

    @property
    def elements(self) -> int:
        """Of all its results."""
        return sum(array.elements for array in self.results)

    @property
    def bytes(self) -> int:
        """Of all its results that are in memory."""
        return sum(array.bytes for array in self.results)

    @property
    def called(self) -> list[str]:
        """The computations that it runs (of a loop, the body)."""
        return [name for text in _CALLED.findall(self.attributes) for name in re.findall(r"[\w.-]+", text)]


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


def arrays_of(text: str) -> tuple[Array, ...]:
    """The arrays of a type such as `(f32[8,128]{1,0:T(8,128)}, s32[])`."""
    return tuple(_array(*match) for match in _ARRAY.findall(text))


def _array(dtype: str, shape: str, layout: str) -> Array:
    sizes = [int(size.lstrip("<=")) for size in shape.split(",") if size]
    elements = math.prod(sizes)
    bits = 8 if dtype == "pred" else int(found[0]) if (found := re.findall(r"\d+", dtype)) else 0
    if re.search(r"S\(\d+\)", layout):
        return Array(elements, 0)
    order, _, tiles = layout.partition(":")
    physical = [sizes[int(axis)] for axis in reversed(order.split(",")) if axis]
    tile = [int(size) for size in found[0].split(",")] if (found := re.findall(r"^T\(([\d,]+)\)", tiles)) else []
    for axis, size in enumerate(tile, len(physical) - len(tile)):
        if len(physical) >= len(tile):
            physical[axis] = -(-physical[axis] // size) * size
    return Array(elements, math.prod(physical or sizes) * bits // 8)


def _balanced(text: str) -> int:
    """Where the parenthesis that opens the text is closed; a constant may go on in the next line."""
    depth = 0
    for at, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if not depth:
            return at
    return len(text)


def _instruction(name: str, text: str) -> Instruction:
    text = re.sub(r"/\*.*?\*/", "", text)
    end = _balanced(text) + 1 if text.startswith("(") else text.index(" ")
    kind, rest = text[:end], text[end:].strip()
    op, _, rest = rest.partition("(")
    end = _balanced("(" + rest) - 1
    inside = rest[:end]
    operands = () if op in ("parameter", "constant") else tuple(re.findall(r"%([\w.-]+)", inside))
    return Instruction(name, op, arrays_of(kind), operands, inside, rest[end + 1 :])


class Computation:
    """Instructions by name, each after its operands."""

    def __init__(self, name: str):
        self.name = name
        self.instructions: dict[str, Instruction] = {}
        self.root = ""

    @property
    def outputs(self) -> list[Instruction]:
        """What it returns: the root, or the members of a tuple."""
        root = self.instructions[self.root]
        return [self.instructions[name] for name in root.operands] if root.op == "tuple" else [root]

    def below(self, instruction: Instruction) -> Instruction:
        """What an instruction has its elements from, where bitcasts and conversions lie between."""
        while instruction.op in SAME_ELEMENTS:
            instruction = self.instructions[instruction.operands[0]]
        return instruction

    def update(self, instruction: Instruction) -> Instruction | None:
        """The operand that an instruction writes into another one, if that is what it does."""
        if instruction.op not in UPDATES or (instruction.op == "scatter" and len(instruction.operands) != 3):
            return None
        return self.instructions[instruction.operands[UPDATES[instruction.op]]]


class Program:
    """An optimized program's computations."""

    def __init__(self, text: str):
        self.computations: dict[str, Computation] = {}
        for line in text.splitlines():
            if found := _COMPUTATION.match(line):
                computation = self.computations[found[2]] = Computation(found[2])
                if found[1]:
                    self.entry = computation
            elif self.computations and (found := _INSTRUCTION.match(line)):
                computation.instructions[found[2]] = _instruction(found[2], found[3])
                if found[1]:
                    computation.root = found[2]

    def _fused(self, instruction: Instruction) -> Computation:
        return self.computations[instruction.called[0]]

    @functools.cache  # noqa: B019: a program lives as long as its count
    def _fusion(self, name: str) -> tuple[list[float], list[float]]:
        """The part of each parameter that a fused computation reads, and of each output that it writes."""
        computation = self.computations[name]
        written, in_place = [], set()
        for output in computation.outputs:
            source = computation.below(output)
            update = computation.update(source)
            if update and computation.below(computation.instructions[source.operands[0]]).op == "parameter":
                in_place.add(source.name)
                written.append(update.elements / output.elements)
            else:
                written.append(1.0)
        wanted: dict[str, float] = defaultdict(float)
        for output in computation.outputs:
            wanted[output.name] = output.elements
        parameters: dict[int, float] = {}
        for one in reversed(computation.instructions.values()):
            want = min(wanted[one.name], one.elements)
            if one.op == "parameter":
                parameters[int(one.inside)] = want / max(one.elements, 1)
            elif want and one.op != "tuple":
                for operand, part in self._wanted(computation, one, want, one.name in in_place):
                    wanted[operand.name] += part
        return [parameters[number] for number in sorted(parameters)], written

    def _wanted(
        self, computation: Computation, one: Instruction, want: float, in_place: bool
    ) -> Iterator[tuple[Instruction, float]]:
        """How many elements of each operand an instruction needs for so many elements of its result."""
        fused = self._fusion(one.called[0])[0] if one.op == "fusion" else []
        for position, name in enumerate(one.operands):
            operand = computation.instructions[name]
            size = operand.elements
            if one.op in SLICES and position == 0:
                yield operand, want
            elif in_place and position == 0:
                update = computation.update(one)
                yield operand, update.elements if update and one.op == "scatter" else 0
            elif one.op == "fusion":
                yield operand, size * fused[position]
            elif one.op == "reduce":
                yield operand, size * want / one.elements
            else:
                yield operand, size if want >= one.elements or one.op in WHOLE else min(size, want)

    def _kernel(self, computation: Computation, one: Instruction, times: int) -> Kernel:
        results, want = one.results, float(one.elements)
        if one.op == "custom-call" and 'custom_call_target="__cu' in one.attributes:
            results = results[:1]  # the others are room to work in
        start, end = one.op.endswith("-start"), one.op.endswith("-done")
        if start:
            one = one._replace(op="fusion" if one.called else one.op.removesuffix("-start"))
            want = one.results[min(len(one.operands), len(one.results) - 1)].elements
        update = computation.update(one)
        parts: dict[str, float] = defaultdict(float)
        for operand, part in () if end else self._wanted(computation, one, want, update is not None):
            parts[operand.name] += part
        operands = ((computation.instructions[name], part) for name, part in parts.items())
        read = sum(operand.bytes * min(part / max(operand.elements, 1), 1) for operand, part in operands)
        written = float(sum(array.bytes for array in results))
        if one.op == "fusion":
            shares = self._fusion(one.called[0])[1]
            written = sum(array.bytes * share for array, share in zip(results, shares, strict=not start))
        elif update:
            written *= update.elements / one.elements
        cycles = int(found[1]) if (found := _CYCLES.search(one.attributes)) else 0
        source = found[1] if (found := _SOURCE.search(one.attributes)) else ""
        return Kernel(one.name, one.op, read, 0.0 if start else written, times, cycles, source)

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
            if one.op in FREE or any(f'custom_call_target="{t}"' in one.attributes for t in NOTHING_MOVED):
                continue
            if one.op == "while":
                yield from self.kernels(self._fused(one), times * self._trips(one))
            elif one.op == "call":
                yield from self.kernels(self._fused(one), times)
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
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
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
