"""Cross-entropy with dense labels: equations (3) to (5) of `jaxnorm._rules.cross_entropy`.

In (2) and (5) the leaders are k: the classes with e_j = 1, several only in a tie.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxnorm._cotangents import cast, compute_dtype
from jaxnorm._rules.classes import keep, masked, times
from jaxnorm._rules.cross_entropy import Leaders, Rows, leaders, log_total, reciprocal, shift_of


class Terms(NamedTuple):
    """What l_j and t_j are computed from, elementwise."""

    logits: jax.Array
    labels: jax.Array
    mask: jax.Array | None
    uniform: jax.Array | None  # a / n, None without smoothing


class Sums(NamedTuple):
    """The sums of a row, with the class axis at size 1."""

    leaders: Leaders  # c, S and the number of leaders
    label_total: jax.Array  # T
    label_others: jax.Array  # U


class Factors(NamedTuple):
    """Per row, what multiplies e_j and -t_j in (4), and 1 and -t_k in (5)."""

    of_e: jax.Array
    of_t: jax.Array
    of_one: jax.Array
    of_t_k: jax.Array


def logits_and_labels(smoothing: float, terms: Terms) -> tuple[jax.Array, jax.Array]:
    """l_j, -inf where masked, and the smoothed labels t_j, in the compute dtype."""
    dtype = compute_dtype(terms.logits, terms.labels)
    l, t = masked(cast(terms.logits, dtype), terms.mask), cast(terms.labels, dtype)
    t = jnp.where(l == -jnp.inf, lax.stop_gradient(t), t)  # dt_j is the constant 0 there, without derivative
    if terms.uniform is not None:
        t = (1 - smoothing) * t + keep(jnp.broadcast_to(terms.uniform, t.shape), terms.mask)
    return l, t


def leaders_of(rows: Rows, terms: Terms, shift_of: Callable[..., jax.Array]) -> Leaders:
    """c by a form of `shift_of`, and the sums of (2)."""
    dtype = compute_dtype(terms.logits, terms.labels)

    def logits_of(logits: jax.Array, mask: jax.Array | None) -> jax.Array:
        return masked(cast(logits, dtype), mask)

    shift = shift_of(rows, logits_of, terms.logits, terms.mask)  # (1)
    return leaders(rows, logits_of, shift, terms.logits, terms.mask)


def sums_of(rows: Rows, smoothing: float, terms: Terms, shift_of: Callable[..., jax.Array] = shift_of) -> Sums:
    """The sums of (2), (4) and (5); T and U leave masked classes out, since their labels move no logit."""

    def label(terms: Terms) -> jax.Array:
        return keep(logits_and_labels(smoothing, terms)[1], terms.mask)

    def other_label(terms: Terms, shift: jax.Array) -> jax.Array:
        l, t = logits_and_labels(smoothing, terms)
        possible = keep(t, terms.mask)
        return possible - possible * rows.leads(l, shift)

    of_leaders = leaders_of(rows, terms, shift_of)  # (2)
    shift = of_leaders.shift
    return Sums(of_leaders, rows.total(label, terms), rows.total(other_label, terms, shift))  # (4), (5)


def loss_of(
    rows: Rows, smoothing: float, terms: Terms, sums: Sums, log_total: Callable[..., jax.Array] = log_total
) -> jax.Array:
    """The loss (3), by a form of `log_total`: +inf if a class that is masked or of logit -inf has a label."""

    def term(terms: Terms, shift: jax.Array) -> jax.Array:
        l, t = logits_and_labels(smoothing, terms)
        return times(t, shift - l)

    row = sums.leaders
    return rows.total(term, terms, row.shift) + sums.label_total * log_total(row.others, row.leading)  # (3)


def loss_alone(
    rows: Rows,
    smoothing: float,
    terms: Terms,
    shift_of: Callable[..., jax.Array],
    log_total: Callable[..., jax.Array],
) -> jax.Array:
    """The loss (3) where no sum is kept, by forms of `shift_of` and `log_total`, as one sum that waits for the others.

    It takes l - c as the sums of (2) do, so that a compiler which looks for a chain of sums over one array finds it.
    """

    def term(terms: Terms, shift: jax.Array, of_total: jax.Array) -> jax.Array:
        l, t = logits_and_labels(smoothing, terms)
        return times(t, of_total - (l - shift))

    row = leaders_of(rows, terms, shift_of)
    return rows.total(term, terms, row.shift, log_total(row.others, row.leading))  # (3)


def factors_of(
    others: jax.Array, leading: jax.Array, label_total: jax.Array, label_others: jax.Array, g: jax.Array
) -> Factors:
    """The factors of (4) and (5); in a tie nothing cancels, and a leader's are those of (4)."""
    total, alone = others + leading, leading == 1
    over_total = g * reciprocal(total)
    of_e, of_t = over_total * label_total, jnp.where(total == 0, 0, g)  # (4)
    of_one = jnp.where(alone, over_total * label_others, of_e)  # (5)
    return Factors(of_e, of_t, of_one, jnp.where(alone, over_total * others, of_t))  # (5)


def dlogits(rows: Rows, sums: Sums, l: jax.Array, t: jax.Array, mask: jax.Array | None, g: jax.Array) -> jax.Array:
    """The logits' cotangent, by (4), and at the leaders by (5)."""
    row = sums.leaders
    factors = rows.per_row(factors_of, row.others, row.leading, sums.label_total, sums.label_others, g)
    below = l - row.shift
    e = jnp.exp(below)
    # e - 1 is 0 at a leader, and there for its derivative: that of e in (4).
    at_leader = (factors.of_e * (e - 1) + factors.of_one) - t * factors.of_t_k  # (5)
    return keep(jnp.where(below == 0, at_leader, factors.of_e * e - t * factors.of_t), mask)  # (4)


def dlabels(smoothing: float, row: Leaders, l: jax.Array, g: jax.Array) -> jax.Array:
    """The cotangent of the labels before smoothing, by (4); 0 where the logit is -inf."""
    nll = log_total(row.others, row.leading) - (l - row.shift)  # (3)
    return (1 - smoothing) * g * jnp.where(l == -jnp.inf, 0, nll)  # (4)
