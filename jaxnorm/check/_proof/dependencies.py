"""Which inputs a value depends on: the same programs, run over sets in place of residues.

A set is a row of bits, one for each number that was drawn, modulo each prime, in words of 64. A constant is the empty
set, and of whatever operation the result depends on what its operands depend on. As a residue an exponential comes from
its argument's modulo the next prime, and so does its set.
"""

from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from jaxnorm.check._proof.residues import AllRoots, Field


class Dependencies:
    """Fields of sets, with the methods of `Residues`."""

    def __init__(self, inputs: int, levels: int, stop_after: int):
        self._inputs, self._levels = inputs, levels
        self._words = -(-inputs * levels // 64)
        self._drawn = 0
        self.roots: list[np.ndarray] = []  # of each operation that needs squares: (primes, elements, words)
        self.stop_after = stop_after

    def draw(self, shape: tuple[int, ...]) -> Field:
        """Inputs, each of which depends on itself: the k-th modulo the i-th prime is bit i * inputs + k."""
        count = int(np.prod(shape))
        at = np.arange(count) + self._drawn
        self._drawn += count

        def level(bits: np.ndarray) -> np.ndarray:
            sets = np.zeros((count, self._words), np.uint64)
            sets[np.arange(count), bits // 64] = np.uint64(1) << (bits % 64).astype(np.uint64)
            return sets.reshape(*shape, self._words)

        return tuple(level(at + i * self._inputs) for i in range(self._levels))

    def constant(self, fractions: Sequence[Fraction], where: np.ndarray) -> Field:
        """No dependency."""
        return self.integers(where)

    def integers(self, values: np.ndarray) -> Field:
        """No dependency."""
        return (np.zeros((*values.shape, 1), np.uint64),) * self._levels

    def each(self, of: Callable[..., Any], *fields: Field) -> Field:
        """`of` the arrays of each level."""
        levels = zip(*fields, strict=True)
        return tuple(None if any(a is None for a in arrays) else of(*arrays) for arrays in levels)

    def add(self, a: Field, b: Field) -> Field:
        """The union."""
        return self.each(np.bitwise_or, a, b)

    sub = mul = add

    def neg(self, a: Field) -> Field:
        """The set itself."""
        return a

    inverse = neg

    def exp(self, a: Field) -> Field:
        """The set modulo the next prime."""
        return (*a[1:], None)

    def sum(self, a: Field, axes: tuple[int, ...]) -> Field:
        """The union over axes."""
        return self.each(lambda a: np.bitwise_or.reduce(a, axes), a)

    def cumulative_sum(self, a: Field, axis: int) -> Field:
        """The running union."""
        return self.each(lambda a: np.bitwise_or.accumulate(a, axis), a)

    def matmul(self, a: Field, b: Field) -> Field:
        """Of each element the union of a row and a column."""

        def product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
            return np.bitwise_or.reduce(a, 2)[:, :, None] | np.bitwise_or.reduce(b, 1)[:, None]

        return self.each(product, a, b)

    def add_at(self, a: Field, at: np.ndarray, updates: Field) -> Field:
        """Unions at these places."""

        def added(a: np.ndarray, updates: np.ndarray) -> np.ndarray:
            result = np.array(np.broadcast_to(a, (*a.shape[:-1], max(a.shape[-1], updates.shape[-1]))))
            np.bitwise_or.at(result, at, updates)
            return result

        return self.each(added, a, updates)

    def power(self, a: Field, exponent: Fraction, *, squares: bool = False) -> Field:
        """The set itself."""
        if exponent.denominator % 2 == 0 and not squares:
            self._root(a)
        return a

    def log(self, a: Field, *, squares: bool = False) -> Field:
        """The set modulo the prime before."""
        if not squares:
            self._root(a)
        return (None, *a[:-1])

    def opaque(self, name: str, *arguments: Field) -> Field:
        """The union."""
        result = arguments[0]
        for argument in arguments[1:]:
            result = self.add(result, argument)
        return result

    def _root(self, a: Field) -> None:
        sets = [np.broadcast_to(level, (*level.shape[:-1], self._words)) for level in a if level is not None]
        self.roots.append(np.stack([level.reshape(-1, self._words) for level in sets]))
        if len(self.roots) == self.stop_after:
            raise AllRoots
