"""Arithmetic of arrays of residues: modulo each prime of a tower, in several independent draws at once.

A `Field` holds one array for each prime, of the shape of the array that it stands for and one axis more: the draws. The
axis has size 1 where all draws agree, as they do on constants. An exponential is not known modulo the lowest prime that
its argument is known by, a logarithm not modulo the highest: there a field has None.
"""

import hashlib
import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np

from jaxnorm.check._proof.logarithms import discrete_logarithm, power_of_four
from jaxnorm.check._proof.towers import Tower

Level = Any  # an array, or None
Field = tuple[Level, ...]
_LIMB = np.uint64(16)  # bits


class TooFewLevels(Exception):
    """A value is known modulo no prime any more: the tower must be higher."""


class BadDraw(Exception):
    """A draw divides by 0, or a constant has no root modulo these primes: another one may not."""


class Root(NamedTuple):
    """One operation that needs squares: an even root, or a logarithm."""

    even: bool  # an even root
    arguments: np.ndarray  # (elements, draws), modulo the first prime by which it is known
    good: np.ndarray  # (primes by which it is known, elements, draws): whether it is a square
    constant: np.ndarray  # (elements,): whether all draws agree


class Residues:
    """Fields modulo the first primes of a tower."""

    def __init__(self, tower: Tower, levels: int, draws: int, rng: np.random.Generator):
        self.tower = tower
        self.primes = tower[:levels]
        self.draws = draws
        self.rng = rng
        # The base of the exponential differs from draw to draw, so that exp(1) is no particular number.
        self._scales = [rng.integers(1, p, draws, dtype=np.uint64) for p in self.primes]
        self._salt = rng.integers(1, 1 << 62, draws, dtype=np.uint64)
        self.roots: list[Root] = []
        self.stop_after: int | None = None  # so many roots, where nothing but these is of interest

    def draw(self, shape: tuple[int, ...]) -> Field:
        """Independent random residues."""
        return tuple(self.rng.integers(0, p, (*shape, self.draws), dtype=np.uint64) for p in self.primes)

    def constant(self, fractions: Sequence[Fraction], where: np.ndarray) -> Field:
        """The fraction `fractions[i]` at every place of `where` that holds i."""
        tables = []
        for p in self.primes:
            if any(f.denominator % p == 0 for f in fractions):
                raise BadDraw
            tables.append(np.array([f.numerator * pow(f.denominator, -1, p) % p for f in fractions], np.uint64))
        return tuple(table[where][..., None] for table in tables)

    def integers(self, values: np.ndarray) -> Field:
        """Integers or booleans."""
        if values.dtype == np.uint64:
            return tuple((values % np.uint64(p))[..., None] for p in self.primes)
        return tuple((values.astype(np.int64) % p).astype(np.uint64)[..., None] for p in self.primes)

    # --- what every domain has in common ---

    def each(self, of: Callable[..., Any], *fields: Field) -> Field:
        """`of` the arrays of each level."""
        return _known(
            tuple(None if any(a is None for a in level) else of(*level) for level in zip(*fields, strict=True))
        )

    def with_prime(self, of: Callable[..., Any], *fields: Field) -> Field:
        """`of` each prime and the arrays of its level."""
        levels = zip(self.primes, *fields, strict=True)
        return _known(tuple(None if any(a is None for a in arrays) else of(p, *arrays) for p, *arrays in levels))

    # --- arithmetic ---

    def add(self, a: Field, b: Field) -> Field:
        """a + b."""
        return self.with_prime(_add, a, b)

    def sub(self, a: Field, b: Field) -> Field:
        """a - b."""
        return self.with_prime(_sub, a, b)

    def mul(self, a: Field, b: Field) -> Field:
        """a b."""
        return self.with_prime(_mul, a, b)

    def neg(self, a: Field) -> Field:
        """-a."""
        return self.with_prime(lambda p, a: _sub(p, np.zeros((), np.uint64), a), a)

    def inverse(self, a: Field) -> Field:
        """1 / a; 0 has none, which the caller looks for."""
        return self.with_prime(lambda p, a: _power(p, a, p - 2), a)

    def sum(self, a: Field, axes: tuple[int, ...]) -> Field:
        """The sum over axes."""
        return self.with_prime(lambda p, a: a.sum(axes, dtype=np.uint64) % np.uint64(p), a)

    def cumulative_sum(self, a: Field, axis: int) -> Field:
        """The running sum."""
        return self.with_prime(lambda p, a: a.cumsum(axis, dtype=np.uint64) % np.uint64(p), a)

    def matmul(self, a: Field, b: Field) -> Field:
        """Products of matrices (batch, m, k) and (batch, k, n)."""
        return self.with_prime(_matmul, a, b)

    def add_at(self, a: Field, at: np.ndarray, updates: Field) -> Field:
        """`a`, of one axis, with the updates added at these places."""

        def added(p: int, a: np.ndarray, updates: np.ndarray) -> np.ndarray:
            result = np.array(np.broadcast_to(a, (*a.shape[:-1], max(a.shape[-1], updates.shape[-1]))))
            np.add.at(result, at, updates)
            return result % np.uint64(p)

        return self.with_prime(added, a, updates)

    def is_zero(self, a: Field) -> np.ndarray:
        """Where the value is 0 in every draw; BadDraw if it is in some only."""
        some = [(level == 0) for level in a if level is not None]
        zero = np.all([s.all(-1) for s in some], 0)
        if np.any([s.any(-1) & ~zero for s in some]):
            raise BadDraw
        return zero

    def are_equal(self, a: Field, b: Field) -> np.ndarray:
        """Where two values agree in every draw, modulo all primes by which both are known."""
        both = [(x == y).all(-1) for x, y in zip(a, b, strict=True) if x is not None and y is not None]
        if not both:
            raise TooFewLevels
        return np.all(both, 0)

    # --- roots, exponentials and opaque functions ---

    def power(self, a: Field, exponent: Fraction, *, squares: bool = False) -> Field:
        """a to a constant power; even roots are the roots that are squares, which stand for the positive ones.

        `squares` says that there are nothing but squares in a.
        """
        even = exponent.denominator % 2 == 0
        if even and not squares:
            self._needs_squares(a, even=True)

        def raised(p: int, a: np.ndarray) -> np.ndarray:
            order = (p - 1) // 2 if even else p - 1
            if math.gcd(exponent.denominator, order) != 1:
                raise BadDraw
            return _power(p, a, exponent.numerator * pow(exponent.denominator, -1, order) % order)

        return self.with_prime(raised, a)

    def exp(self, a: Field) -> Field:
        """The power of a level's base that the argument is modulo the next prime."""
        levels: list[Level] = []
        for i, p in enumerate(self.primes):
            below = a[i + 1] if i + 1 < len(a) else None
            levels.append(None if below is None else power_of_four(p, _mul((p - 1) // 2, below, self._scale(i))))
        return _known(tuple(levels))

    def log(self, a: Field, *, squares: bool = False) -> Field:
        """The exponent of a level's base, modulo the next prime; of nothing but squares, if so said."""
        if not squares:
            self._needs_squares(a, even=False)
        levels: list[Level] = [None]
        for i, p in enumerate(self.primes[:-1]):
            level, q = a[i], (p - 1) // 2
            inverse = _power(q, self._scale(i), q - 2)
            levels.append(None if level is None else _mul(q, discrete_logarithm(p, level), inverse))
        return _known(tuple(levels))

    def opaque(self, name: str, *arguments: Field) -> Field:
        """Some function of the arguments: random, but the same for the same arguments."""
        seed = np.uint64(int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little"))

        def mixed(p: int, *arrays: np.ndarray) -> np.ndarray:
            state = self._salt ^ seed
            for array in arrays:
                state = _scramble(state ^ _scramble(array + np.uint64(p)))
            return state % np.uint64(p)

        return self.with_prime(mixed, *arguments)

    def _scale(self, level: int) -> np.ndarray:
        q = (self.primes[level] - 1) // 2
        return self._scales[level] % np.uint64(q - 1) + np.uint64(1)

    def _needs_squares(self, a: Field, *, even: bool) -> None:
        levels = [
            (p, level.reshape(-1, level.shape[-1]))
            for p, level in zip(self.primes, a, strict=True)
            if level is not None
        ]
        good = np.stack([_power(p, level, (p - 1) // 2) <= 1 for p, level in levels])
        constant = np.all([(level == level[:, :1]).all(-1) for _, level in levels], 0)
        if not good[:, constant].all():
            raise BadDraw
        shape = (len(constant), self.draws)
        arguments, good = np.broadcast_to(levels[0][1], shape), np.broadcast_to(good, (len(good), *shape))
        self.roots.append(Root(even, arguments, good, constant))
        if len(self.roots) == self.stop_after:
            raise AllRoots


class AllRoots(Exception):
    """All roots of interest were taken."""


def _known(levels: Field) -> Field:
    if all(level is None for level in levels):
        raise TooFewLevels
    return levels


def _add(p: int, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    total = a + b
    return np.minimum(total, total - np.uint64(p))  # what is below 0 wraps round to a large number


def _sub(p: int, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    difference = a - b
    return np.minimum(difference, difference + np.uint64(p))


def _mul(p: int, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    product = a * b
    return product - product // np.uint64(p) * np.uint64(p)  # NumPy divides faster than it takes remainders


def _power(p: int, a: np.ndarray, exponent: int) -> np.ndarray:
    result = np.ones_like(a)
    for bit in bin(exponent)[2:]:
        result = _mul(p, result, result)
        if bit == "1":
            result = _mul(p, result, a)
    return result


def _matmul(p: int, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """In two parts of 16 bits, whose sums of up to 2^16 products fit in 64."""
    a, b = np.moveaxis(a, -1, 0), np.moveaxis(b, -1, 0)
    prime, total = np.uint64(p), np.zeros((), np.uint64)
    for start in range(0, a.shape[-1], 1 << 16):
        left, right = a[..., start : start + (1 << 16)], b[..., start : start + (1 << 16), :]
        high = np.matmul(left >> _LIMB, right) % prime
        low = np.matmul(left & np.uint64((1 << 16) - 1), right) % prime
        total = (total + (high << _LIMB) % prime + low) % prime
    if not a.shape[-1]:
        total = np.matmul(a, b)
    return np.moveaxis(total, 0, -1)


def _scramble(x: np.ndarray) -> np.ndarray:
    """A bijection of 64-bit words without structure (splitmix64, Steele, Lea and Flood 2014)."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
