"""Which inputs a value depends on: the same programs, run over sets in place of residues.

A set is a row of bits, one for each number that was drawn, in words of 64. A constant is the empty set, and of whatever
operation the result depends on what its operands depend on.
"""

from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from jaxnorm.check._proof.residues import AllRoots, Field


class Dependencies:
    """Fields of sets, with the methods of `Residues`."""

    def __init__(self, inputs: int, stop_after: int):
        self._words = -(-inputs // 64)
        self.draws = self._words
        self._drawn = 0
        self.roots: list[np.ndarray] = []  # of each operation that needs squares: (elements, words)
        self.stop_after = stop_after

    def draw(self, shape: tuple[int, ...]) -> Field:
        """Inputs, each of which depends on itself."""
        at = np.arange(int(np.prod(shape))) + self._drawn
        self._drawn += len(at)
        sets = np.zeros((len(at), self._words), np.uint64)
        sets[np.arange(len(at)), at // 64] = np.uint64(1) << (at % 64).astype(np.uint64)
        return (sets.reshape(*shape, self._words),)

    def constant(self, fractions: Sequence[Fraction], where: np.ndarray) -> Field:
        """No dependency."""
        return self.integers(where)

    def integers(self, values: np.ndarray) -> Field:
        """No dependency."""
        return (np.zeros((*values.shape, 1), np.uint64),)

    def each(self, of: Callable[..., Any], *fields: Field) -> Field:
        """`of` the arrays."""
        return (of(*(field[0] for field in fields)),)

    def add(self, a: Field, b: Field) -> Field:
        """The union."""
        return (a[0] | b[0],)

    sub = mul = add

    def neg(self, a: Field) -> Field:
        """The set itself."""
        return a

    inverse = exp = neg

    def sum(self, a: Field, axes: tuple[int, ...]) -> Field:
        """The union over axes."""
        return (np.bitwise_or.reduce(a[0], axes),)

    def cumulative_sum(self, a: Field, axis: int) -> Field:
        """The running union."""
        return (np.bitwise_or.accumulate(a[0], axis),)

    def matmul(self, a: Field, b: Field) -> Field:
        """Of each element the union of a row and a column."""
        rows, columns = np.bitwise_or.reduce(a[0], 2), np.bitwise_or.reduce(b[0], 1)
        return (rows[:, :, None] | columns[:, None],)

    def add_at(self, a: Field, at: np.ndarray, updates: Field) -> Field:
        """Unions at these places."""
        words = max(a[0].shape[-1], updates[0].shape[-1])
        result = np.array(np.broadcast_to(a[0], (*a[0].shape[:-1], words)))
        np.bitwise_or.at(result, at, updates[0])
        return (result,)

    def power(self, a: Field, exponent: Fraction, *, squares: bool = False) -> Field:
        """The set itself."""
        return self._root(a) if exponent.denominator % 2 == 0 and not squares else a

    def log(self, a: Field, *, squares: bool = False) -> Field:
        """The set itself."""
        return a if squares else self._root(a)

    def opaque(self, name: str, *arguments: Field) -> Field:
        """The union."""
        result = arguments[0]
        for argument in arguments[1:]:
            result = self.add(result, argument)
        return result

    def _root(self, a: Field) -> Field:
        sets = np.broadcast_to(a[0], (*a[0].shape[:-1], self._words))
        self.roots.append(sets.reshape(-1, self._words))
        if len(self.roots) == self.stop_after:
            raise AllRoots
        return a
