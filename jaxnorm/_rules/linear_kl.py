"""The divergence of a student's prediction from a teacher's, on logits that exist a block of columns at a time.

Forward, for logits t of the teacher and s of the student, both divided by the temperature T, with p = softmax(t) and
q = softmax(s). Let c = max_j t_j and a = max_j s_j, which cancel, and u_j = (s_j - a) - (t_j - c). Since
log(sum_j p_j exp(u_j)) = (lse(s) - a) - (lse(t) - c), with m = sum_j p_j u_j

    KL = sum_j p_j (log(p_j) - log(q_j)) = log(sum_j p_j exp(u_j)) - m = log1p(sum_j p_j phi(u_j - m))               (1)
    phi(v) = exp(v) - 1 - v >= 0

for sum_j p_j (u_j - m) = 0. Every term is positive or 0, and small where teacher and student agree; the difference of
two log-sum-exps, which are large, appears nowhere. phi is its series where it would cancel.

Block by block, with w_j = exp(t_j - c), P = sum_j w_j and F = sum_j w_j phi(u_j - m): other maxima c' and a' change P
and F by the factor exp(c - c') and m by (a - a') - (c - c'). Then what was summed is one term more, as if all its
classes were one of weight P and difference m, by phi(v + d) = exp(d) phi(v) + phi(d) + (exp(d) - 1) v:

    P' = P + P of the block        m' = (P m + sum over the block of w_j u_j) / P'                                   (2)
    F' = F exp(m - m') + P phi(m - m') + sum over the block of w_j phi(u_j - m')                                     (3)

A class that the student prefers by far would overflow in F. So F is kept times exp(-r), where

    r = max(0, -m - 10)        KL = r + log(F exp(-r) / P + exp(-r))  if r > 0                                       (4)

and w_j phi(v_j) exp(-r) is taken as exp(s_j - a - (m + r)) - w_j (1 + v_j) exp(-r) where v_j is large. r is 0 but where
the KL is large. c, a and r are held constant in derivatives.

Backward, for the cotangent g of the loss, by dKL/ds_j = q_j - p_j. The teacher receives none.

    dz_j = g (q_j - p_j) / T        q_j - p_j = p_j (exp(d_j) - 1),  d_j = log(q_j) - log(p_j) = u_j - (m + KL)      (5)

which keeps its digits too; where d_j is large, q_j - p_j is a difference without cancellation. dz then feeds the
products of `jaxnorm._rules.linear_layer`.

Where devices share the vocabulary, c and a are one pmax, P and m one psum, and F is one more.

References: Kullback and Leibler 1951, "On information and sufficiency"; Hinton, Vinyals and Dean 2015,
https://arxiv.org/abs/1503.02531 (distillation, temperature); Chan, Golub and LeVeque 1983,
https://doi.org/10.1080/00031305.1983.10483115 (sums about a moving mean).
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxnorm._arguments import AxisName
from jaxnorm._cotangents import compute_dtype, reshape
from jaxnorm._rules.classes import times
from jaxnorm._rules.cross_entropy import Rows, finite, reciprocal
from jaxnorm._rules.linear_layer import Columns, Dot, Layer, Start, columns_of

HEADROOM = 10.0  # how large a class's part of F may become, as an exponent, before r grows
NEAR = 0.5  # below which phi is its series


class Inputs(NamedTuple):
    """The arguments, as they came."""

    student: Layer
    teacher: Layer
    where: jax.Array | None  # broadcasts to the tokens: which of them count

    @property
    def dtype(self) -> Any:
        """What logits and gradients accumulate in."""
        return compute_dtype(*self.student, *self.teacher)

    @property
    def tokens(self) -> int:
        """How many there are."""
        return math.prod(self.student.hidden.shape[:-1])

    @property
    def mask(self) -> jax.Array | None:
        """`where` for each token, (N, 1)."""
        if self.where is None:
            return None
        return reshape(jnp.broadcast_to(self.where, self.student.hidden.shape[:-1]), (self.tokens, 1))

    def counted(self) -> "Inputs":
        """The same with hidden rows of 0 for tokens that do not count: theirs may hold anything."""
        mask = self.mask
        if mask is None:
            return self
        student, teacher = (of._replace(hidden=jnp.where(mask, of.x, 0)) for of in (self.student, self.teacher))
        return Inputs(student, teacher, self.where)


class Block(NamedTuple):
    """Some columns of both models' logits."""

    columns: Columns  # the student's, before the temperature
    s: jax.Array  # (N, size)
    t: jax.Array  # (N, size)


def block_of(dot: Dot, inputs: Inputs, temperature: float, start: Start, size: int) -> Block:
    """The logits of `size` columns from `start` on; the layers of `inputs` are `counted`."""
    student, teacher = (columns_of(dot, of, inputs.dtype, start, size) for of in (inputs.student, inputs.teacher))
    return Block(student, student.z / temperature, teacher.z / temperature)


# --- forward --------------------------------------------------------------------------------------------------------


class Maxima(NamedTuple):
    """What is subtracted from the logits, (N, 1)."""

    t: jax.Array  # c, -inf before the first block
    s: jax.Array  # a, likewise


class Sums(NamedTuple):
    """The running sums of (2) to (4), each (N, 1)."""

    maxima: Maxima
    total: jax.Array  # P
    mean: jax.Array  # m
    excess: jax.Array  # F exp(-r)

    @property
    def scale(self) -> jax.Array:
        """r of (4)."""
        return lax.stop_gradient(jnp.maximum(-self.mean - HEADROOM, 0))


def no_columns(inputs: Inputs) -> Sums:
    """The sums before the first block."""
    zeros = jnp.zeros((inputs.tokens, 1), inputs.dtype)
    nothing = jnp.full_like(zeros, -jnp.inf)
    return Sums(Maxima(nothing, nothing), zeros, zeros, zeros)


class Seen(NamedTuple):
    """What was summed, as one class: with other maxima, (N, 1)."""

    maxima: Maxima
    weight: jax.Array  # P exp(c - c')
    log_weight: jax.Array  # its logarithm, where it is not 0
    difference: jax.Array  # m + (a - a') - (c - c')
    change: jax.Array  # of the exponents in F by the maxima


def seen(sums: Sums, maxima: Maxima) -> Seen:
    """The sums for other maxima."""
    maxima = lax.stop_gradient(maxima)
    of_t, of_s = (finite(old) - finite(new) for old, new in zip(sums.maxima, maxima, strict=True))
    has_mean = (sums.maxima.t != -jnp.inf) & (sums.maxima.s != -jnp.inf)
    of_t = jnp.minimum(of_t, 0)  # 0 before the first block
    log_weight = jnp.log(jnp.where(sums.total == 0, 1, sums.total)) + of_t
    difference = jnp.where(has_mean, sums.mean + (of_s - of_t), 0)
    return Seen(maxima, sums.total * jnp.exp(of_t), log_weight, difference, of_s)


def excess_seen(sums: Sums, old: Seen, moved: Sums) -> jax.Array:
    """F exp(-r) for another mean and other maxima: the first two terms of (3)."""
    step, scale = jnp.where(sums.total == 0, 0, old.difference - moved.mean), moved.scale
    growth = old.change + ((sums.mean + sums.scale) - (moved.mean + scale))
    growth = jnp.minimum(growth, 60)  # only that of a sum which is 0 could overflow
    return sums.excess * jnp.exp(growth) + excess(old.weight, step, old.log_weight + (step - scale), scale)  # (3)


def add_block(rows: Rows, sums: Sums, block: Block) -> Sums:
    """One step of (2) to (4)."""
    here = Maxima(rows.largest(_itself, block.t), rows.largest(_itself, block.s))
    old = seen(sums, Maxima(*map(jnp.maximum, sums.maxima, here)))
    logits = block.t, block.s, *map(finite, old.maxima)
    total = old.weight + rows.alone(_weights, block.t, logits[2])  # (2)
    mean = (times(old.weight, old.difference) + rows.alone(_weighted, *logits)) * reciprocal(total)  # (2)
    moved = Sums(old.maxima, total, mean, sums.excess)
    of_block = rows.alone(_excesses, *logits, mean, moved.scale)
    return moved._replace(excess=excess_seen(sums, old, moved) + of_block)  # (3)


def over_devices(sums: Sums, axis_name: AxisName) -> Sums:
    """The sums over all devices' columns."""
    old = seen(sums, Maxima(*lax.pmax(lax.stop_gradient(jnp.stack(sums.maxima)), axis_name)))
    total, weighted = lax.psum(jnp.stack([old.weight, times(old.weight, old.difference)]), axis_name)
    moved = Sums(old.maxima, total, weighted * reciprocal(total), sums.excess)
    return moved._replace(excess=lax.psum(excess_seen(sums, old, moved), axis_name))


def log_ratio(sums: Sums) -> jax.Array:
    """KL - r of (1) and (4)."""
    mean_excess, is_scaled = sums.excess * reciprocal(sums.total), sums.scale > 0
    scaled = jnp.where(is_scaled, mean_excess + jnp.exp(-sums.scale), 1)
    return jnp.where(is_scaled, jnp.log(scaled), jnp.log1p(jnp.where(is_scaled, 0, mean_excess)))


# --- their terms ----------------------------------------------------------------------------------------------------


def _itself(array: jax.Array) -> jax.Array:
    return array


def _weights(t: jax.Array, c: jax.Array) -> jax.Array:
    """w_j."""
    return jnp.exp(t - c)


def _differences(t: jax.Array, s: jax.Array, c: jax.Array, a: jax.Array) -> jax.Array:
    """u_j, 0 for a class that both exclude."""
    excluded = jnp.maximum(s, t) == -jnp.inf
    return jnp.where(excluded, 0, (s - a) - (jnp.where(excluded, 0, t) - c))


def _weighted(t: jax.Array, s: jax.Array, c: jax.Array, a: jax.Array) -> jax.Array:
    """w_j u_j, without a class that the student excludes, whose term in F is infinite already."""
    return jnp.where(s == -jnp.inf, 0, times(_weights(t, c), _differences(t, s, c, a)))


def _excesses(t: jax.Array, s: jax.Array, c: jax.Array, a: jax.Array, mean: jax.Array, scale: jax.Array) -> jax.Array:
    """w_j phi(u_j - m) exp(-r)."""
    return excess(_weights(t, c), _differences(t, s, c, a) - mean, (s - a) - (mean + scale), scale)


def excess(w: jax.Array, v: jax.Array, exponent: jax.Array, scale: jax.Array) -> jax.Array:
    """w phi(v) exp(-r), given log(w) + v - r."""
    is_large, factor = v > 1, jnp.exp(-scale)
    near = times(w, phi(jnp.where(is_large, 0, v))) * factor
    far = jnp.exp(jnp.where(is_large, exponent, 0)) - times(w, 1 + v) * factor
    return jnp.where(is_large, far, near)


def phi(v: jax.Array) -> jax.Array:
    """exp(v) - 1 - v, by its series where that would cancel."""
    is_near = jnp.abs(v) < NEAR
    x, series = jnp.where(is_near, v, 0), jnp.zeros_like(v)
    for power in range(_terms(float(jnp.finfo(v.dtype).eps)), 1, -1):
        series = series * x + 1 / math.factorial(power)
    return jnp.where(is_near, series * x * x, jnp.expm1(v) - v)


def _terms(precision: float) -> int:
    """The power at which the series of phi may end: the next term is below rounding."""
    power = 2
    while 2 * NEAR ** (power - 1) / math.factorial(power + 1) > precision / 4:
        power += 1
    return power


# --- backward -------------------------------------------------------------------------------------------------------


class Row(NamedTuple):
    """What (5) takes of a token, (N, 1)."""

    maxima: Maxima
    total: jax.Array  # P
    change: jax.Array  # m + KL; NaN where that is infinite


def row_of(sums: Sums) -> tuple[Row, jax.Array]:
    """The same, and the KL."""
    ratio = log_ratio(sums)
    change = (sums.mean + sums.scale) + ratio
    row = Row(Maxima(*map(finite, sums.maxima)), sums.total, jnp.where(ratio == jnp.inf, jnp.nan, change))
    return row, sums.scale + ratio


def dlogits(row: Row, temperature: float, g: jax.Array, block: Block) -> jax.Array:
    """The cotangent (5) of the student's logits before the temperature."""
    p = _weights(block.t, row.maxima.t) * reciprocal(row.total)
    d = _differences(block.t, block.s, *row.maxima) - row.change
    is_large = d > 1
    log_total = jnp.log(jnp.where(row.total == 0, 1, row.total))
    q = jnp.exp(jnp.where(is_large, (block.s - row.maxima.s) - (row.change + log_total), 0))
    return g / temperature * jnp.where(is_large, q - p, p * jnp.expm1(jnp.where(is_large, 0, d)))  # (5)
