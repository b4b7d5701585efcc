"""What a proof found."""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Difference:
    """The first element in which a function differs from its reference."""

    output: str  # "cotangent of x"
    index: tuple[int, ...]
    got: float  # in floating point, where a small difference may not be seen
    wanted: float
    platform: str | None = None  # whose formulation this is; None: of platforms that the program does not name

    def __str__(self) -> str:
        where = f" at {list(self.index)}" if self.index else ""
        on = f", as formulated for {self.platform}" if self.platform else ""
        return f"{self.output}{where}{on}: got {self.got!r}, wanted {self.wanted!r} (in floating point)"


@dataclasses.dataclass(frozen=True)
class Proof:
    """Whether two functions, and their cotangents, are equal in exact arithmetic.

    Attributes:
      name: the function's.
      holds: True, False, or None if it is not decided.
      error: the chance that `holds` is True of functions that differ, over the prover's random numbers.
      branch: the comparisons that the arguments decided: for each its operation and how many of its elements hold.
      difference: if it does not hold, the first element that differs.
      reason: if it is not decided, why: the operation that has no exact meaning.
      assumptions: what was taken for granted.
      platforms: the platforms whose formulations were proven, where the program has several.
      calls: with how many lists of arguments: more than 1 with `branches` or `shapes`.
      branches: how many branches these lie in: sets of decided comparisons, of integers and booleans, and of shapes.
      shapes: the shapes of the arguments, of each leaf, for which it was proven.
    """

    name: str
    holds: bool | None
    error: float
    branch: tuple[str, ...] = ()
    difference: Difference | None = None
    reason: str = ""
    assumptions: tuple[str, ...] = ()
    platforms: tuple[str, ...] = ()
    calls: int = 1
    branches: int = 1
    shapes: tuple[tuple[tuple[int, ...], ...], ...] = ()

    def raise_if_failed(self) -> None:
        """Raises AssertionError with this proof's text unless it holds."""
        if not self.holds:
            raise AssertionError(str(self))

    def to_dict(self) -> dict[str, Any]:
        """As plain data that JSON can hold."""
        found = dataclasses.asdict(self)
        if self.difference is not None:
            found["difference"] = str(self.difference)
        return found

    def __str__(self) -> str:
        if self.holds is None:
            lines = [f"{self.name}: undecided: {self.reason}"]
        elif self.holds:
            lines = [f"{self.name}: proven; a wrong one passes with a chance below {self.error:.1g}"]
        else:
            lines = [f"{self.name}: does not hold", f"  {self.difference}"]
            if any("no simple fraction" in text for text in self.assumptions):
                lines.append("  (a constant without a simple fraction may have been rounded more than once by Python)")
        if self.platforms:
            lines.append(f"  formulations: {', '.join(self.platforms)}")
        if self.calls > 1:
            lines.append(f"  with {self.calls} lists of arguments, on {self.branches} branches")
        if len(self.shapes) > 1:
            lines.append(f"  shapes: {'; '.join(' '.join(map(str, shapes)) for shapes in self.shapes)}")
        lines += [f"  assuming: {text}" for text in self.assumptions]
        lines += [f"  branch: {', '.join(self.branch)}"] if self.branch else []
        return "\n".join(lines)
