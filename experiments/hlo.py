"""The text of an optimized XLA program (`compiled.as_text()`) as computations of instructions.

An array's bytes are those that it has in memory: a TPU's tiles pad it, and they are 0 where its layout names a memory
space, such as `S(1)`, since it is on the chip then.
"""

import math
import re
from typing import NamedTuple

UPDATES = {"dynamic-update-slice": 1, "scatter": -1}  # and which operand is written into the first one
SAME_ELEMENTS = {"bitcast", "reshape", "convert", "copy", "transpose"}

_ARRAY = re.compile(r"(\w+)\[([\d,<=]*)\](?:\{([^}]*)\})?")
_INSTRUCTION = re.compile(r"\s+(ROOT )?%?([\w.-]+) = (.*)")
_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.-]+) \(.*\{$")
_CALLED = re.compile(r"(?:calls|to_apply|body|branch_computations|\w+_computation)=(\{[^}]*\}|[^,\s]+)")


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
    if len(tile) <= len(physical):
        for axis, size in enumerate(tile, len(physical) - len(tile)):
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

    def __init__(self) -> None:
        self.instructions: dict[str, Instruction] = {}
        self.root = ""

    @property
    def outputs(self) -> list[Instruction]:
        """What it returns: the root, or the members of a tuple."""
        root = self.instructions[self.root]
        return [self.instructions[name] for name in root.operands] if root.op == "tuple" else [root]

    def update_of(self, one: Instruction) -> Instruction:
        """What an update writes into its first operand."""
        return self.instructions[one.operands[UPDATES[one.op]]]

    def in_place(self, output: Instruction) -> Instruction | None:
        """The update of a parameter that an output is, but for bitcasts and conversions."""
        source = self._below(output)
        if source.op in UPDATES and self._below(self.instructions[source.operands[0]]).op == "parameter":
            return source
        return None

    def written(self, output: Instruction) -> list[float]:
        """The part of each of an output's arrays that is written."""
        update = self.in_place(output)
        return [self.update_of(update).elements / output.elements] if update else [1.0] * len(output.results)

    def _below(self, one: Instruction) -> Instruction:
        while one.op in SAME_ELEMENTS:
            one = self.instructions[one.operands[0]]
        return one


def computations_of(text: str) -> tuple[dict[str, Computation], str]:
    """A program's computations by name, and which of them is its entry."""
    found: dict[str, Computation] = {}
    computation, entry = Computation(), ""
    for line in text.splitlines():
        if head := _COMPUTATION.match(line):
            computation = found[head[2]] = Computation()
            entry = head[2] if head[1] else entry
        elif found and (match := _INSTRUCTION.match(line)):
            computation.instructions[match[2]] = _instruction(match[2], match[3])
            computation.root = match[2] if match[1] else computation.root
    return found, entry
