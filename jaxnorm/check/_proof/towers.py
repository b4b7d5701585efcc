"""Towers of primes, in each of which the exponentials of one level are powers modulo the level above.

A tower is P_0 > P_1 > ... > P_k with P_i = 2 P_{i+1} + 1. The squares modulo P_i are a cyclic group of P_{i+1}
elements, so w^x, for a square w other than 1, depends on x modulo P_{i+1} alone, and every square is such a power of w.
What a program computes is carried modulo every prime of the tower: then

    exp(x) modulo P_i is w^x, from x modulo P_{i+1}        log(u) modulo P_{i+1} is the power of w that u modulo P_i is

and exp(x + y) = exp(x) exp(y), log(u v) = log(u) + log(v), exp(log(u)) = u, log(exp(x)) = x hold, as for real numbers.
Of u and -u exactly one is a square modulo P_i. If every prime of a tower is -1 modulo 8 and modulo 3, 5, 7 and 11,
these numbers are squares modulo all of them, by quadratic reciprocity: then the root of a number without larger prime
factors that is a square itself is its positive one, as sqrt(4) = 2 and sqrt(6) = sqrt(2) sqrt(3).
"""

import functools
from collections.abc import Iterator

LEVELS = 5  # primes of a tower
_TOP = 1 << 32  # products of two residues fit in 64 bits
_SQUARES = 8 * 3 * 5 * 7 * 11
_WITNESSES = (2, 7, 61)  # enough for the test of Miller and Rabin below 4,759,123,141 (Jaeschke 1993)

Tower = tuple[int, ...]


def towers() -> Iterator[Tower]:
    """The towers of primes below 2^32, the largest first."""
    top = _TOP >> (LEVELS - 1)
    start = top // _SQUARES * _SQUARES - 1
    while tower := _next_tower(start):
        yield tower
        start = tower[-1] - _SQUARES


@functools.cache
def _next_tower(start: int) -> Tower | None:
    """The first tower whose lowest prime is `start` or less."""
    for bottom in range(start, _SQUARES, -_SQUARES):
        tower = tuple((bottom + 1 << i) - 1 for i in range(LEVELS - 1, -1, -1))
        if all(pow(2, p - 1, p) == 1 for p in reversed(tower)) and all(map(is_prime, tower)):
            return tower
    return None


def is_prime(n: int) -> bool:
    """Whether an odd number between 61 and 2^32 is prime."""
    odd = n - 1
    while odd % 2 == 0:
        odd //= 2
    return all(_passes(n, odd, base) for base in _WITNESSES)


def _passes(n: int, odd: int, base: int) -> bool:
    power = pow(base, odd, n)
    while odd != n - 1 and power not in (1, n - 1):
        power, odd = power * power % n, 2 * odd
    return power == n - 1 or (power == 1 and odd % 2 == 1)
