"""Cross-entropy: what dense labels, integer labels and the linear loss share.

Forward, for a row of logits l and labels t, with any class k (or several, with the sum of their e_j for e_k):

    c = max_j l_j        e_j = exp(l_j - c)        total = sum_j e_j        p_j = e_j / total                        (1)
    S = sum of e_j over j != k        log(total) = log1p(S + (e_k - 1))        lse = c + log(total)                  (2)
    loss = sum_j t_j nll_j        nll_j = -log p_j = (c - l_j) + log(total)                                          (3)

Backward, for the cotangents g of the loss and h of lse, with T = sum_j t_j:

    dl_j = g (T p_j - t_j) + h p_j        dt_j = g nll_j                                                             (4)

By the quotient rule dp_j/dl_i = p_j (delta_ij - p_i), so dnll_j/dl_i = p_i - delta_ij; times g t_j, summed over j, this
is (4). c is held constant in every derivative, since it cancels in (1): derivatives of any order are right without it.

Digits. If k leads far, total = 1 + tiny: then log(total) as it stands, p_k - 1 and T p_k - t_k lose the tiny part. (2)
and p_k - 1 = -S / total keep it, since e_k is exactly 1. With U the sum of t_j over j != k, so does

    T p_k - t_k = (U + t_k - t_k (S + 1)) / total = (U - t_k S) / total                                              (5)

An integer label y, class weights w and smoothing a over the n unmasked classes (PyTorch's definition) are the labels
t_j = A [j = y] + B_j. Then (3) and (4), the latter sorted for j = y by p_y - 1 and p_y, are

    loss = A nll_y + sum_j B_j nll_j        A = (1 - a) w_y        B_j = w_j a / n        B = sum_j B_j              (6)
    dl_j = (g (A + B) + h) p_j - g B_j  for j != y                                                                   (7)
    dl_y = g (A + B_y) (p_y - 1) + (g (B - B_y) + h) p_y        p_y - 1 = -S / total,  k = y                         (8)
    dw_j = sum over rows of g ([j = y] (1 - a) + a / n) nll_j                                                        (9)

A soft cap, l = cap tanh(z / cap), multiplies the gradient of the logits z by 1 - tanh^2, which loses digits where the
cap is reached, but not as

    dl/dz = 4 q / (1 + q)^2        q = exp(-2 |z / cap|)                                                            (10)

A row without classes (all masked, or all -inf) has total = 0: its p is 0, its lse -inf and its gradient 0.

References: Goodfellow, Bengio and Courville 2016, "Deep Learning", section 6.2.2; Szegedy et al. 2016,
https://arxiv.org/abs/1512.00567 (smoothing); Gemma Team 2024, https://arxiv.org/abs/2408.00118 (soft cap).
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax import lax

from jaxnorm._cotangents import cast
from jaxnorm._rules.classes import class_count, in_range, keep, label_weight, times

Elementwise = Callable[..., jax.Array]


class Rows(Protocol):
    """What a rule asks of the rows of classes; `of` is an elementwise function, and class axes stay at size 1."""

    def total(self, of: Elementwise, *operands: Any, shared: bool = False) -> jax.Array:
        """The sum of `of(*operands)` over the classes; `shared` if its terms serve another operation too."""
        ...

    def totals(self, parts: Sequence[Elementwise], *operands: Any) -> tuple[jax.Array, ...]:
        """The sums of several functions of the same operands."""
        ...

    def total_of_others(self, of: Elementwise, index: jax.Array, labels: jax.Array, *operands: Any) -> jax.Array:
        """The sum of `of(*operands)` over the classes but the label's, given the numbers of the classes."""
        ...

    def largest(self, of: Elementwise, *operands: Any) -> jax.Array:
        """The maximum of `of(*operands)`, -inf without classes."""
        ...

    def leads(self, logits: jax.Array, shift: jax.Array) -> jax.Array:
        """[l = c], without derivative."""
        ...

    def alone(self, of: Elementwise, *operands: Any) -> jax.Array:
        """The sum of `of(*operands)`, which shares nothing with another sum of the same operands."""
        ...

    def first(self, logits: jax.Array, largest: jax.Array) -> jax.Array:
        """The first class, int32, whose logit is the largest."""
        ...

    def per_row(self, of: Callable[..., Any], *arrays: jax.Array) -> Any:
        """`of(*arrays)` for arrays of one number per row."""
        ...


# --- the sums of a row ----------------------------------------------------------------------------------------------


class Leaders(NamedTuple):
    """The sums of (2) with the leaders for k: the classes with e_j = 1, several only in a tie."""

    shift: jax.Array  # c, or 0 for a row without classes
    others: jax.Array  # S
    leading: jax.Array  # the number of leaders, which is the sum of their e_j


def shift_of(rows: Rows, logits_of: Elementwise, *operands: Any) -> jax.Array:
    """c of (1) for the logits `logits_of(*operands)`, without derivative; 0 for a row without classes."""
    return finite(rows.largest(logits_of, *lax.stop_gradient(operands)))


def finite(largest: jax.Array) -> jax.Array:
    """c as a shift: 0 for a row without classes, where it is -inf."""
    return jnp.where(largest == -jnp.inf, 0, largest)


def leaders(rows: Rows, logits_of: Elementwise, shift: jax.Array, *operands: Any) -> Leaders:
    """The sums of (2) for the logits `logits_of(*operands)`.

    A leader's e_j adds 0 to S and 1 to the number of leaders. Its derivative is in S alone, since every equation takes
    the sum of the two.
    """

    def other(shift: jax.Array, *operands: Any) -> jax.Array:
        return others(rows, logits_of(*operands), shift)

    def leading(shift: jax.Array, *operands: Any) -> jax.Array:
        return rows.leads(logits_of(*operands), shift)

    return Leaders(shift, *rows.totals((other, leading), shift, *operands))


def others(rows: Rows, l: jax.Array, shift: jax.Array) -> jax.Array:
    """e_j, without the leaders' 1."""
    return jnp.exp(l - shift) - rows.leads(l, shift)


def log_total(others: jax.Array, e_k: jax.Array) -> jax.Array:
    """log(total) by (2); 0 for a row without classes."""
    empty = others + e_k == 0
    return jnp.log1p(jnp.where(empty, 0, others + (e_k - 1)))


def reciprocal(total: jax.Array) -> jax.Array:
    """1 / total, and 0 for a row without classes."""
    return jnp.where(total == 0, 0, 1 / jnp.where(total == 0, 1, total))


# --- integer labels -------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class LabelOptions:
    """The static side of a cross-entropy with integer labels."""

    label_smoothing: float
    ignore_index: int | None
    logit_softcap: float | None
    return_lse: bool
    return_entropy: bool = False
    return_top: bool = False

    @property
    def returned(self) -> tuple[bool, bool, bool]:
        """What is returned after the loss: lse, entropy, top class."""
        return self.return_lse, self.return_entropy, self.return_top

    @property
    def loss_alone(self) -> bool:
        """Whether nothing else is returned that has a gradient."""
        return not (self.return_lse or self.return_entropy)


class Label(NamedTuple):
    """What a row's label says; the class axis has size 1."""

    valid: jax.Array  # whether the label lies in [0, C)
    ignored: jax.Array | None  # whether the label is ignore_index
    masked: jax.Array | None  # whether the label's class is masked, which makes the loss a constant +inf
    weight: jax.Array  # w_y


class Smoothing(NamedTuple):
    """What smoothing adds to a row; 0 without smoothing."""

    uniform: jax.Array | float  # a / n
    spread: jax.Array | float  # B


class Row(NamedTuple):
    """What (6) to (9) take of a row, whichever way its sums were taken; the class axis has size 1."""

    shift: jax.Array  # c
    others: jax.Array  # S, with the label's class for k
    logit: jax.Array  # the label's, -inf if the label is invalid or its class masked
    label: Label
    smoothing: Smoothing

    @property
    def e_y(self) -> jax.Array:
        """The label's exponential (1)."""
        return jnp.exp(self.logit - self.shift)

    @property
    def log_total(self) -> jax.Array:
        """log(total) by (2)."""
        return log_total(self.others, self.e_y)


class Factors(NamedTuple):
    """Per row, what multiplies e_j and -w_j in (7), and the label's own entry (8)."""

    of_e: jax.Array
    of_w: jax.Array
    at_label: jax.Array


def label_sums(
    rows: Rows, logits_of: Elementwise, index: jax.Array, labels: jax.Array, *operands: Any
) -> tuple[jax.Array, jax.Array]:
    """c and S for the logits `logits_of(*operands)`, given the numbers of the classes and the labels."""
    shift = shift_of(rows, logits_of, *operands)  # (1)
    return shift, rows.total_of_others(lambda c, *o: jnp.exp(logits_of(*o) - c), index, labels, shift, *operands)  # (2)


def exponentials(l: jax.Array, shift: jax.Array | float, own: jax.Array) -> jax.Array:
    """e_j, and 0 at the label, where that is known of each class."""
    return jnp.where(own, 0, jnp.exp(l - shift))


def smooth_terms(weights: jax.Array, shift: jax.Array, l: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """B_j (c - l_j) of (6), for the weights B_j."""
    return times(keep(jnp.broadcast_to(weights, l.shape), mask), shift - l)


def label_of(
    options: LabelOptions,
    labels: jax.Array,
    classes: int,
    weights: jax.Array | None,
    masked: jax.Array | None,
    dtype: Any,
) -> Label:
    """What the labels say, given the vector of the class weights if there is one."""
    weight = jnp.ones((1,) * labels.ndim, dtype) if weights is None else label_weight(cast(weights, dtype), labels)
    ignored = None if options.ignore_index is None else labels == options.ignore_index
    return Label(in_range(labels, classes), ignored, masked, weight)


def smoothing_of(
    options: LabelOptions, weights: jax.Array, mask: jax.Array | None, shape: tuple[int, ...], axis: int
) -> Smoothing:
    """a / n and B, for weights that broadcast along the class axis."""
    if not options.label_smoothing:
        return Smoothing(0.0, 0.0)
    uniform = options.label_smoothing / class_count(mask, weights.dtype, shape, axis)
    row = [size if a == axis else 1 for a, size in enumerate(shape)]
    return Smoothing(uniform, uniform * jnp.sum(keep(jnp.broadcast_to(weights, row), mask), axis=axis, keepdims=True))


def losses(options: LabelOptions, row: Row, smooth: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The loss (6) and the log-sum-exp (2) of each row; `smooth` is the sum of B_j (c - l_j)."""
    e_y = row.e_y
    of_total, empty = log_total(row.others, e_y), row.others + e_y == 0
    nll = jnp.where(row.label.valid, label_nll(row), 0)  # an inf here would be multiplied by 0 in second derivatives
    loss = times((1 - options.label_smoothing) * row.label.weight, nll)  # (6)
    if options.label_smoothing:
        loss = loss + jnp.where(empty, jnp.inf, smooth + row.smoothing.spread * of_total)  # (6)
    loss = jnp.where(row.label.valid, loss, jnp.nan)
    if row.label.ignored is not None:
        loss = jnp.where(row.label.ignored, 0, loss)
    return loss, jnp.where(empty, -jnp.inf, row.shift + of_total)  # (2)


def label_nll(row: Row) -> jax.Array:
    """nll_y of (3), +inf for a label of probability 0."""
    impossible = row.logit == -jnp.inf
    logit = jnp.where(impossible, row.shift, row.logit)
    nll = (row.shift - logit) + row.log_total  # (3)
    return jnp.where(impossible, jnp.inf, nll)


def factors_of(options: LabelOptions, row: Row, g: jax.Array, h: jax.Array) -> Factors:
    """The factors of (7), and (8)."""
    g = jnp.where(row.label.valid, g, jnp.nan)
    if row.label.ignored is not None:
        g = jnp.where(row.label.ignored, 0, g)
    e_y = row.e_y
    total = row.others + e_y
    divisor = jnp.where(total == 0, jnp.inf, total)  # p is 0 in a row without classes
    weight = row.label.weight if row.label.masked is None else jnp.where(row.label.masked, 0, row.label.weight)
    uniform, spread = row.smoothing.uniform, row.smoothing.spread  # a / n, B
    label, own = (1 - options.label_smoothing) * weight, uniform * weight  # A, B_y
    of_e = (g * (label + spread) + h) / divisor  # (7)
    of_w = jnp.where(total == 0, 0, g * uniform)  # (7)
    at_label = ((g * (spread - own) + h) * e_y - g * (label + own) * row.others) / divisor  # (8)
    return Factors(of_e, of_w, at_label)


def dlogits(
    options: LabelOptions,
    row: Row,
    factors: Factors,
    e: jax.Array,
    own: jax.Array,
    weights: jax.Array,
    logits: jax.Array,
    mask: jax.Array | None = None,
    others: jax.Array | None = None,
) -> jax.Array:
    """The cotangent of the uncapped logits, from e_j (anything at the label), [j = y] and w_j.

    `others` is the cotangent of the capped logits by what else is returned.
    """
    dl = factors.of_e * e
    if options.label_smoothing:
        dl = dl - factors.of_w * weights  # (7)
    dl = keep(jnp.where(own, factors.at_label, dl), mask)  # (8)
    if others is not None:
        dl = dl + others
    if options.logit_softcap is not None:
        dl = dl * softcap_slope(options.logit_softcap, logits)  # (10)
    if row.label.ignored is not None and options.loss_alone:
        dl = jnp.where(row.label.ignored, 0, dl)  # the logits of padding may be NaN, and 0 * NaN is not 0
    return dl


def dweights(
    options: LabelOptions, row: Row, g: jax.Array, own: jax.Array, l: jax.Array, mask: jax.Array | None = None
) -> jax.Array:
    """The terms of (9), before the sum over the rows; an invalid or ignored label has none."""
    label = row.label
    g = jnp.where(label.valid if label.ignored is None else label.valid & ~label.ignored, g, 0)
    terms = jnp.where(own, times((1 - options.label_smoothing) * g, label_nll(row)), 0)  # (9)
    if options.label_smoothing:
        nll = (row.shift - l) + row.log_total  # (3)
        terms = terms + times(keep(jnp.broadcast_to(g * row.smoothing.uniform, l.shape), mask), nll)  # (9)
    return terms


def softcapped(options: LabelOptions, logits: jax.Array) -> jax.Array:
    """The logits of (10), if there is a cap."""
    cap = options.logit_softcap
    return logits if cap is None else cap * jnp.tanh(logits / cap)


def softcap_slope(cap: float, logits: jax.Array) -> jax.Array:
    """The slope of (10) at uncapped logits."""
    q = jnp.exp(-2 * jnp.abs(logits / cap))
    return 4 * q / jnp.square(1 + q)
