"""Points at which every root and logarithm exists: its argument is a square modulo every prime.

Half of all numbers are squares. So an unknown is drawn anew, in each draw apart, as long as something that depends on
it is none; unknowns on which nothing else depends come first. For a root s of u, what is linear in s over rational
functions, a + b s, is 0 only where the polynomial a^2 - b^2 u is, whose degree is about twice as high, and half of the
points are left out: so a root counts four times in the chance of error. That polynomial may be 0 itself if u is a
square of a rational function. Then u is a square at every point, which is looked for at points that are not chosen.
"""

import dataclasses
from typing import Any

import numpy as np

from jaxnorm.check._proof.dependencies import Dependencies
from jaxnorm.check._proof.machine import Facts, Machine, Undecided
from jaxnorm.check._proof.problem import Problem, Program
from jaxnorm.check._proof.residues import AllRoots, BadDraw, Field, Residues

PATIENCE = 60  # rounds of drawing without fewer bad roots
SURVEY = 128  # draws in which something that is no square by its form turns out to be none


@dataclasses.dataclass
class Run:
    """One program at some points."""

    problem: Problem
    program: Program
    places: list[Any]
    platform: str | None
    facts: Facts | None = None  # of its first run
    roots: int = 0  # how many operations need squares

    def outputs(self, domain: Any, drawn: Field) -> Any:
        """Its outputs; None if it stops after the last root. The first run decides all facts."""
        replay = self.facts is not None
        facts = self.facts or Facts()
        m = Machine(domain, self.platform, facts, replay=replay)
        domain.roots.clear()
        try:
            results = self.program.run(m, self.problem.inputs(m, drawn, self.places))
        except AllRoots:
            return None
        self.facts, self.roots = facts, len(domain.roots)
        return results

    def bad_roots(self, domain: Residues, drawn: Field) -> np.ndarray:
        """Of each prime, element and root, in order, the draws in which it does not exist."""
        if self.facts is not None:
            domain.stop_after = self.roots
        if self.facts is None or self.roots:
            self.outputs(domain, drawn)
        domain.stop_after = None
        bad = [~root.good.reshape(-1, domain.draws) for root in domain.roots]
        return np.concatenate([np.zeros((0, domain.draws), bool), *bad])

    def dependencies(self, domain: Residues, unknowns: int) -> list[np.ndarray]:
        """Of each root: on which unknowns, modulo which primes, each element modulo each prime depends."""
        levels = len(domain.primes)
        sets = Dependencies(unknowns, levels, self.roots)
        if self.roots:
            self.outputs(sets, sets.draw((unknowns,)))
        bits = [words[..., None] >> np.arange(64, dtype=np.uint64) & np.uint64(1) for words in sets.roots]
        return [b.reshape(*b.shape[:2], -1)[..., : unknowns * levels].astype(bool) for b in bits]


def find_points(runs: list[Run], domain: Residues, drawn: Field, unknowns: int) -> Field:
    """Changes what was drawn until every root of these programs exists, by changes that leave no fewer in a draw."""
    bad = np.concatenate([run.bad_roots(domain, drawn) for run in runs])
    if not bad.any():
        return drawn
    influence = [d.reshape(-1, d.shape[-1]) for run in runs for d in run.dependencies(domain, unknowns)]
    influence, since = np.concatenate(influence), 0
    while since < PATIENCE:
        again = np.split(_drawn_again(influence, bad), len(domain.primes))
        tried = tuple(map(np.where, again, domain.draw((unknowns,)), drawn))
        since += 1
        try:
            now = np.concatenate([run.bad_roots(domain, tried) for run in runs])
        except BadDraw:
            continue
        kept = now.sum(0) <= bad.sum(0)
        since = 0 if now[:, kept].sum() < bad[:, kept].sum() else since
        drawn = tuple(np.where(kept, t, d) for t, d in zip(tried, drawn, strict=True))
        bad = np.where(kept, now, bad)
        if not bad.any():
            return drawn
    raise Undecided("no points were found at which all roots and logarithms exist")


def _drawn_again(influence: np.ndarray, bad: np.ndarray) -> np.ndarray:
    """Of each unknown and draw, whether to draw it again: for a bad root those on which the fewest good ones depend."""
    harm = influence.T.astype(np.int64) @ (~bad).astype(np.int64)  # (unknowns, draws): good roots that depend on it
    again = np.zeros(harm.shape, bool)
    for root, draw in zip(*np.nonzero(bad), strict=True):
        of = np.flatnonzero(influence[root])
        if len(of):
            again[of[harm[of, draw] == harm[of, draw].min()], draw] = True
    return again


def look_for_squares(run: Run, domain: Residues, unknowns: int) -> None:
    """Raises Undecided if what stands under an even root of a program may be a square by its form."""
    survey = Residues(domain.tower, len(domain.primes), SURVEY, domain.rng)
    survey.stop_after = run.roots
    run.outputs(survey, survey.draw((unknowns,)))
    influence = np.concatenate([sets.any(0) for sets in run.dependencies(domain, unknowns)])
    owner = np.repeat(np.arange(run.roots), [len(root.constant) for root in survey.roots])
    arguments = np.concatenate([root.arguments for root in survey.roots])
    square = np.concatenate([root.good[0] for root in survey.roots])
    exists = np.concatenate([root.good.all(0) for root in survey.roots])
    open_ = np.concatenate([~r.constant & r.even for r in survey.roots])
    refuted: dict[bytes, bool] = {}
    for i in np.flatnonzero(open_):
        if (key := arguments[i].tobytes()) not in refuted:
            before = (owner < owner[i]) & ~(influence & ~influence[i]).any(1)
            before &= (arguments != arguments[i]).any(1)
            clean = exists[before].all(0)  # roots on which this one may depend exist
            refuted[key] = bool((clean & ~square[i]).any())
    if not all(refuted.values()):
        raise Undecided("an even root of what is a square, whose sign is not known")
