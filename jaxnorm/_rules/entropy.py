"""The entropy of a prediction, and its gradient.

Forward, with c, e_j, total and p_j of `jaxnorm._rules.cross_entropy`, where the leaders are the classes with l_j = c:

    H = -sum_j p_j log(p_j) = log(total) + E        E = sum_j p_j (c - l_j)                                          (1)
    log(total) = log1p(R + (leaders - 1))        R = sum of e_j over all classes but the leaders                     (2)

Backward, for the cotangent k of H. By dp_i/dl_j = p_i (delta_ij - p_j), dE/dl_j = p_j ((c - l_j) - 1 - E), and
d log(total)/dl_j = p_j. So

    dl_j = k p_j ((c - l_j) - E)                                                                                     (3)

which is k p_j (-log(p_j) - H), without a difference of log(total) and itself. c is held constant.

Digits. Every term of (1) and (2) is positive or 0. So H is never negative, and where one class leads far, and H goes to
0, every digit of R and E stays. lse - sum_j p_j l_j is a difference of large numbers there.

References: Shannon 1948, "A mathematical theory of communication"; Mnih et al. 2016,
https://arxiv.org/abs/1602.01783 (the entropy in reinforcement learning).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxnorm._rules import cross_entropy
from jaxnorm._rules.classes import times
from jaxnorm._rules.cross_entropy import Elementwise, Rows, log_total, reciprocal, shift_of


class Sums(NamedTuple):
    """What (1) and (2) take of a row."""

    shift: jax.Array  # c, or 0 for a row without classes
    others: jax.Array  # R
    leading: jax.Array  # the number of leaders
    gaps: jax.Array  # the sum of e_j (c - l_j)

    @property
    def gap(self) -> jax.Array:
        """E of (1)."""
        return mean_gap(self.others, self.leading, self.gaps)

    @property
    def entropy(self) -> jax.Array:
        """H of (1)."""
        return entropy_of(self.others, self.leading, self.gap)

    def without(self, e_k: jax.Array) -> jax.Array:
        """The sum of e_j over all classes but k.

        If k leads alone, the difference is exactly 0. Otherwise the sum holds a leader's 1, beside which no digit is
        lost.
        """
        return self.others + (self.leading - e_k)


class Entropy(NamedTuple):
    """Per row, what the gradient (3) takes."""

    of_e: jax.Array  # k / total
    gap: jax.Array  # E


def capped_once(options: cross_entropy.LabelOptions, logits: jax.Array) -> jax.Array:
    """Logits after the cap, the same for all passes that look for the leaders, those that equal c.

    XLA could compute tanh in each pass, by other digits: hence the barrier. Where it sees through the barrier, it could
    multiply by the cap and subtract c with one rounding: hence the minimum, which changes no logit. Either way no logit
    would equal c.
    """
    cap = options.logit_softcap
    if cap is None or not (options.return_entropy or options.return_top):
        return logits
    return lax.optimization_barrier(jnp.minimum(logits, cap))


def sums_of(rows: Rows, logits_of: Elementwise, *operands: Any) -> Sums:
    """The sums for the logits `logits_of(*operands)`; all but c wait for c alone, and for nothing else."""
    shift = shift_of(rows, logits_of, *operands)

    def other(shift: jax.Array, *operands: Any) -> jax.Array:
        return cross_entropy.others(rows, logits_of(*operands), shift)

    def leading(shift: jax.Array, *operands: Any) -> jax.Array:
        return rows.leads(logits_of(*operands), shift)

    def gap(shift: jax.Array, *operands: Any) -> jax.Array:
        return gap_terms(logits_of(*operands), shift)

    return Sums(shift, *(rows.alone(of, shift, *operands) for of in (other, leading, gap)))


def gap_terms(l: jax.Array, shift: jax.Array) -> jax.Array:
    """e_j (c - l_j): the terms of E, not yet divided by the total.

    A logit of -inf, whose e_j is 0, has a finite difference here in place of an infinite one, without a select.
    """
    return jnp.exp(l - shift) * jnp.minimum(shift - l, jnp.finfo(l.dtype).max)


def mean_gap(others: jax.Array, leading: jax.Array, gaps: jax.Array) -> jax.Array:
    """E of (1), from R, the number of leaders, and the sum of `gap_terms`; 0 for a row without classes."""
    return gaps * reciprocal(others + leading)


def entropy_of(others: jax.Array, leading: jax.Array, gap: jax.Array) -> jax.Array:
    """H of (1) and (2); 0 for a row without classes."""
    return log_total(others, leading) + gap  # (1), (2)


def entropy_factors(total: jax.Array, gap: jax.Array, k: jax.Array) -> Entropy:
    """The factors of (3)."""
    return Entropy(k * reciprocal(total), gap)


def dlogits(entropy: Entropy, e: jax.Array, l: jax.Array, shift: jax.Array) -> jax.Array:
    """The cotangent (3) of the logits, of which e_j is the exponential."""
    return entropy.of_e * times(e, (shift - l) - entropy.gap)  # (3)
