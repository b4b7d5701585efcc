"""The decision: both programs at the same points, compared element by element."""

import dataclasses
import hashlib
import itertools
import math
from collections.abc import Iterator

import numpy as np

from jaxnorm.check._proof.machine import Facts, Undecided, Value, is_special
from jaxnorm.check._proof.points import Run, find_points, look_for_squares
from jaxnorm.check._proof.problem import Problem, Program
from jaxnorm.check._proof.report import Difference
from jaxnorm.check._proof.residues import BadDraw, Field, Residues, TooFewLevels
from jaxnorm.check._proof.towers import LEVELS, towers

DRAWS, MOST_DRAWS = 4, 64
TOWERS = 8  # to be tried, if a constant has no root modulo the first
CLEAR = 1e-6  # a relative difference that is no rounding error


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Of one platform."""

    holds: bool | None
    error: float
    platform: str | None = None
    branch: tuple[str, ...] = ()
    difference: Difference | None = None
    reason: str = ""
    assumptions: tuple[str, ...] = ()
    decided: str = ""  # of all comparisons, in short: what tells this branch from others

    def on(self, platform: str | None) -> "Outcome":
        """The same of another platform."""
        difference = self.difference and dataclasses.replace(self.difference, platform=platform)
        return dataclasses.replace(self, platform=platform, difference=difference)


class _Ambiguous(Exception):
    """Rounding decides a comparison, if unknowns are independent."""


def decide(problem: Problem, error: float, rng: np.random.Generator) -> list[Outcome]:
    """One outcome for each platform that the programs name, and one for all others."""
    try:
        return _decided(problem, error, rng, ties=False)
    except _Ambiguous:
        pass
    try:
        return _decided(problem, error, rng, ties=True)
    except _Ambiguous as tie:
        raise Undecided(f"{tie}: equal in floating point and not in exact arithmetic") from None


def _decided(problem: Problem, error: float, rng: np.random.Generator, *, ties: bool) -> list[Outcome]:
    draws, levels = DRAWS, 1
    for tower in itertools.islice(towers(), TOWERS):
        while True:
            try:
                attempt = _Attempt(problem, Residues(tower, levels, draws, rng), ties)
                outcomes = attempt.outcomes()
            except TooFewLevels:
                levels += 1
                if levels > LEVELS:
                    raise Undecided("exponentials and logarithms that are nested too deeply") from None
                continue
            except BadDraw:
                break
            wanted = max((_draws(o.error, draws, error) for o in outcomes if o.holds), default=draws)
            if wanted <= draws:
                return outcomes
            if wanted > MOST_DRAWS:
                raise Undecided("its degree is too high for the primes")
            draws = wanted
    raise Undecided("division by 0, or a root of a constant that none of the primes has")


def _draws(found: float, draws: int, error: float) -> int:
    """How many draws make an error that small, if so many made the error that was found."""
    if found >= 1:
        return MOST_DRAWS + 1
    return draws if found <= error else math.ceil(draws * math.log(error) / math.log(found))


class _Attempt:
    """All programs over one domain."""

    def __init__(self, problem: Problem, domain: Residues, ties: bool):
        self._problem, self._domain, self._ties = problem, domain, ties
        self._unknowns, self._places = problem.unknowns(ties=ties)
        self._drawn: Field = domain.draw((self._unknowns,))
        self._known: set[bytes] = set()  # what stands under even roots, and is known to be no square by its form
        self._squares: set[bytes] = set()  # whatever has to be a square
        self._find([self._run(problem.value)])
        self._reference = self._run(problem.reference)
        self._wanted = self._outputs(self._reference)

    def _run(self, program: Program, platform: str | None = None) -> Run:
        return Run(self._problem, program, self._places, platform)

    def _find(self, runs: list[Run]) -> None:
        """Points at which the roots of programs exist; none in the last one is of a square by its form."""
        self._drawn = find_points(runs, self._domain, self._drawn, self._unknowns)
        if runs[-1].roots and not self._new_roots() <= self._known:
            look_for_squares(runs[-1], self._domain, self._unknowns)
            self._known |= self._new_roots()

    def _new_roots(self) -> set[bytes]:
        return {
            row.tobytes()
            for root in self._domain.roots
            if root.even
            for row, constant in zip(root.arguments, root.constant, strict=True)
            if not constant
        }

    def _outputs(self, run: Run) -> list[Value]:
        """A program's outputs, at points at which its roots and the reference's exist."""
        outputs = run.outputs(self._domain, self._drawn)
        if self._all_exist() and self._new_roots() <= self._known:
            return outputs
        self._find([self._reference] if run is self._reference else [self._reference, run])
        if run is not self._reference:
            self._wanted = self._reference.outputs(self._domain, self._drawn)
        run.facts = None  # what they say of a root is right only where it exists
        outputs = run.outputs(self._domain, self._drawn)
        if not self._all_exist():
            raise Undecided("no points were found at which all roots and logarithms exist")
        return outputs

    def _all_exist(self) -> bool:
        roots = self._domain.roots
        self._squares.update(row.tobytes() for root in roots for row in root.arguments[~root.constant])
        return all(root.good.all() for root in roots)

    def outcomes(self) -> list[Outcome]:
        """Of every platform that the programs name, after that of all others."""
        by_platform: dict[str | None, Outcome] = {}
        for platforms, program in self._problem.formulations.items():
            found = self._outcome(program, platforms[0])
            by_platform |= {platform: found.on(platform) for platform in platforms}
        return [by_platform[platform] for platform in sorted(by_platform, key=lambda platform: platform or "")]

    def _outcome(self, program: Program, platform: str | None) -> Outcome:
        """The function's program, as formulated for a platform, against the reference's."""
        run = self._run(program, platform)
        got = self._outputs(run)
        both = [run.facts or Facts(), self._reference.facts or Facts()]
        if doubtful := [name for facts in both for name in facts.ambiguous]:
            raise _Ambiguous(doubtful[0])
        assumptions, branch = tuple(_assumptions(both, self._ties)), tuple(_branch(both[0]))
        for name, ours, wanted in zip(self._problem.outputs, got, self._wanted, strict=True):
            agree, partly = self._agreement(ours, wanted)
            if agree.all():
                continue
            index = tuple(map(int, np.argwhere(~agree)[0]))
            difference = Difference(name, index, float(ours.shadow[index]), float(wanted.shadow[index]), platform)
            holds, reason = self._verdict(difference, bool(partly[index]), both)
            return Outcome(holds, 1.0, platform, branch, difference if holds is False else None, reason, assumptions)
        decided = _decided_in(self._problem, both)
        return Outcome(True, self._error(got), platform, branch, assumptions=assumptions, decided=decided)

    def _agreement(self, a: Value, b: Value) -> tuple[np.ndarray, np.ndarray]:
        """Where two arrays are equal, and where they are in some draws at least."""
        if a.field is None or b.field is None:
            equal = np.asarray(a.shadow == b.shadow)
            return equal, equal
        both = [x == y for x, y in zip(a.field, b.field, strict=True) if x is not None and y is not None]
        if not both:
            raise TooFewLevels
        every = np.all([level.all(-1) for level in both], 0)
        some = np.any([level.any(-1) for level in both], 0)
        special = is_special(a) | is_special(b)
        alike = (is_special(a) == is_special(b)) & ((a.shadow == b.shadow) | (np.isnan(a.shadow) & np.isnan(b.shadow)))
        return np.where(special, alike, every), np.where(special, alike, some)

    def _verdict(self, difference: Difference, partly: bool, facts: list[Facts]) -> tuple[bool | None, str]:
        """What a difference in exact arithmetic means."""
        got, wanted = difference.got, difference.wanted
        clear = not abs(got - wanted) <= CLEAR * max(abs(got), abs(wanted))
        if clear:
            return False, ""
        if opaque := [name for f in facts for name in f.opaque]:
            return None, f"{opaque[0]}, of which a relation may be needed: {difference.output}"
        if partly and self._known:
            return None, f"a root whose sign is not known: {difference.output}"
        return False, ""

    def _error(self, got: list[Value]) -> float:
        """By the degrees: the chance that functions which differ agree in all draws."""
        degree = 1
        for a, b in zip(got, self._wanted, strict=True):
            degree = max(degree, a.degree[0] + b.degree[1], b.degree[0] + a.degree[1])
        smallest = min(self._prime(a, b) for a, b in zip(got, self._wanted, strict=True))
        return min(1.0, degree * (4 * len(self._squares) + 1) / smallest) ** self._domain.draws

    def _prime(self, a: Value, b: Value) -> int:
        """The largest prime by which both are known."""
        if a.field is None or b.field is None:
            return self._domain.primes[0]
        levels = zip(self._domain.primes, a.field, b.field, strict=True)
        return next(p for p, x, y in levels if x is not None and y is not None)


def _assumptions(both: list[Facts], ties: bool) -> Iterator[str]:
    def of(key: str) -> list[str]:
        return list(dict.fromkeys(text for facts in both for text in getattr(facts, key)))

    if ties:
        yield "equal numbers of an argument are one unknown, and integers what they are, since comparisons meet ties"
    if constants := of("constants"):
        yield f"constants: {', '.join(constants)}"
    if lost := of("lost"):
        yield f"constants lost in rounding: {', '.join(lost)}"
    if opaque := of("opaque"):
        yield f"equal for equal arguments: {', '.join(opaque)}"
    yield from of("others")


def _branch(facts: Facts) -> Iterator[str]:
    for name, decided in facts.decisions:
        yield f"{name} {int(decided.sum())}/{decided.size}"


def _decided_in(problem: Problem, both: list[Facts]) -> str:
    """What the arguments decided: every comparison, integers and booleans, and where they are infinite."""
    digest = hashlib.sha256()
    for name, decided in (d for facts in both for d in facts.decisions):
        digest.update(f"{name}{decided.shape}".encode() + decided.tobytes())
    for shadow in problem.shadows[: problem.arguments]:
        kept = shadow if shadow.dtype.kind in "biu" else ~np.isfinite(shadow)
        digest.update(f"{kept.shape}".encode() + kept.tobytes())
    return digest.hexdigest()
