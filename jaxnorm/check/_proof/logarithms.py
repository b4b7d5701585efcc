"""Powers of 4 modulo a prime of a tower, and the exponents of such powers (Shanks' baby steps and giant steps).

4 is a square, and so generates the squares modulo P = 2 Q + 1: they are Q in number, and Q is prime. To find x in
u = 4^x, the powers 4^0, ..., 4^(B-1) are kept in order of size. Of u, u 4^-B, u 4^-2B, ... one is among them.
"""

import functools

import numpy as np

_BABY = 1 << 20  # steps that are kept
_DIGIT = 8  # bits of an exponent that one table of powers serves
_SIEVE = 24  # bits: most values that are not kept are told by a table of 2^24 entries
_QUERIES = 1 << 16  # at a time


@functools.cache
def _tables(p: int) -> list[np.ndarray]:
    """4^(d 256^k) for every digit d, and every k."""
    base, tables = 4, []
    for _ in range(32 // _DIGIT):
        tables.append(_powers(p, base, 1 << _DIGIT))
        base = pow(base, 1 << _DIGIT, p)
    return tables


def _powers(p: int, base: int, count: int) -> np.ndarray:
    """base^0, ..., base^(count - 1)."""
    powers = np.ones(1, np.uint64)
    while len(powers) < count:
        powers = np.concatenate([powers, powers * np.uint64(pow(base, len(powers), p)) % np.uint64(p)])
    return powers[:count]


def power_of_four(p: int, exponents: np.ndarray) -> np.ndarray:
    """4^x modulo p."""
    result = np.ones((), np.uint64)
    for k, table in enumerate(_tables(p)):
        digit = exponents >> np.uint64(k * _DIGIT) & np.uint64((1 << _DIGIT) - 1)
        result = result * table[digit] % np.uint64(p)
    return result


class _Logarithms:
    """Of one prime: the baby steps, and what was found before."""

    def __init__(self, p: int):
        self._p = p
        powers = _powers(p, 4, min(_BABY, (p - 1) // 2))
        self._exponents = np.argsort(powers)
        self._powers = powers[self._exponents]
        self._maybe = np.zeros(1 << _SIEVE, bool)
        self._maybe[self._low(powers)] = True
        self._found: dict[int, int] = {}

    @staticmethod
    def _low(values: np.ndarray) -> np.ndarray:
        return values & np.uint64((1 << _SIEVE) - 1)

    def of(self, values: np.ndarray) -> np.ndarray:
        """Exponents of 4; 0 for what is no power of 4."""
        distinct, inverse = np.unique(values, return_inverse=True)
        new = np.array([u for u in distinct.tolist() if u not in self._found], np.uint64)
        for start in range(0, len(new), _QUERIES):
            self._search(new[start : start + _QUERIES])
        return np.array([self._found[u] for u in distinct.tolist()], np.uint64)[inverse].reshape(values.shape)

    def _search(self, values: np.ndarray) -> None:
        p, baby = self._p, len(self._powers)
        giant, current, left = np.uint64(pow(pow(4, -1, p), baby, p)), values, values
        self._found.update(dict.fromkeys(values.tolist(), 0))
        for step in range(-(-((p - 1) // 2) // baby)):
            candidates = np.flatnonzero(self._maybe[self._low(current)])
            at = np.minimum(np.searchsorted(self._powers, current[candidates]), baby - 1)
            hits = self._powers[at] == current[candidates]
            exponents = step * baby + self._exponents[at[hits]]
            self._found.update(zip(left[candidates[hits]].tolist(), exponents.tolist(), strict=True))
            keep = np.ones(len(current), bool)
            keep[candidates[hits]] = False
            current, left = current[keep] * giant % np.uint64(p), left[keep]
            if not len(left):
                return


_logarithms = functools.cache(_Logarithms)


def discrete_logarithm(p: int, values: np.ndarray) -> np.ndarray:
    """x with 4^x = u modulo p, for each u; 0 where there is none."""
    return _logarithms(p).of(values)
