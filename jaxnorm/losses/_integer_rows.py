"""The terms of each row of a cross-entropy with integer labels, from its arguments."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp

from jaxnorm._cotangents import cast, compute_dtype, varying_like
from jaxnorm._lower.rows import OnePass, Rows, where_rows_fit
from jaxnorm._rules import cross_entropy as rule
from jaxnorm._rules import entropy
from jaxnorm._rules.classes import class_index, is_label, mask_view, masked, per_class, pick, widened
from jaxnorm._rules.cross_entropy import LabelOptions

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Options:
    """The static side of a cross-entropy with integer labels."""

    axis: int
    loss: LabelOptions


class Arguments(NamedTuple):
    """The arguments at the rank of the logits."""

    logits: jax.Array  # as they came
    labels: jax.Array  # in a dtype that holds every class; the class axis has size 1
    mask: jax.Array | None
    class_weights: jax.Array | None  # as they came, (C,)

    @property
    def dtype(self) -> Any:
        """The dtype to compute in."""
        return compute_dtype(self.logits, self.class_weights)


class Centred(NamedTuple):
    """The logits of each row less the largest, for sums of which the results wait in one pass over the row."""

    shift: jax.Array  # c, the lowest finite number for a row without classes
    l: jax.Array  # l - c
    own: jax.Array  # [j = y]

    @property
    def e(self) -> jax.Array:
        """e_j, and 0 at the label."""
        return rule.exponentials(self.l, 0.0, self.own)


def arguments_of(options: Options, logits: Any, labels: Any, where: Any, class_weights: Any) -> Arguments:
    labels = widened(jnp.expand_dims(labels, options.axis))
    return Arguments(logits, labels, mask_view(where, logits.ndim), class_weights)


def where_fits(
    options: Options, fitting: Callable[..., T], otherwise: Callable[..., T], args: Arguments, *others: Any, **kw: bool
) -> T:
    """`where_rows_fit`, but not for a cap, weights or the entropy.

    XLA's GPU backend writes out the cap's tanh, the weights' gradient takes c, and the entropy a third sum.
    """
    if options.loss.logit_softcap is not None or args.class_weights is not None or options.loss.return_entropy:
        return otherwise(args, *others)
    return where_rows_fit((options.axis,), fitting, otherwise, args, *others, **kw)


def capped_once(options: Options, args: Arguments) -> tuple[Options, Arguments]:
    """The loss of logits that are capped already, if it has a cap and all passes must know the leaders."""
    if options.loss.logit_softcap is None or not options.loss.return_entropy:
        return options, args
    l = entropy.capped_once(options.loss, rule.softcapped(options.loss, cast(args.logits, args.dtype)))
    without_cap = dataclasses.replace(options, loss=dataclasses.replace(options.loss, logit_softcap=None))
    return without_cap, args._replace(logits=l)


def sums_of(
    options: Options, rows: Rows, logits_of: rule.Elementwise, args: Arguments
) -> tuple[jax.Array, jax.Array, jax.Array | None, jax.Array | None]:
    """What is kept, c, S and E, and the entropy; E and the entropy only if this is asked for."""
    if options.loss.return_entropy:
        sums = entropy.sums_of(rows, logits_of, args.logits, args.mask)
        e_y = row_of(options, args, sums.shift, sums.others).e_y
        return sums.shift, sums.without(e_y), sums.gap, sums.entropy
    index = class_index(args.labels.dtype, args.logits.shape, options.axis)
    return *rule.label_sums(rows, logits_of, index, args.labels, args.logits, args.mask), None, None


def capped_logits(options: Options, dtype: Any, logits: jax.Array, mask: jax.Array | None) -> jax.Array:
    """l: the logits in the compute dtype, capped, with -inf where masked."""
    return masked(rule.softcapped(options.loss, cast(logits, dtype)), mask)


def weights_of(options: Options, args: Arguments) -> jax.Array:
    """w along the class axis, or 1 if there are none."""
    ndim = args.logits.ndim
    if args.class_weights is None:
        return jnp.ones((1,) * ndim, args.dtype)
    return per_class(cast(args.class_weights, args.dtype), ndim, options.axis)


def row_of(
    options: Options, args: Arguments, shift: jax.Array, others: jax.Array, logit: jax.Array | None = None
) -> rule.Row:
    """The rule's terms of each row, from its sums; the label's logit is picked if it is not given."""
    logits, labels, axis, is_masked = args.logits, args.labels, options.axis, None
    if logit is None:
        logit = rule.softcapped(options.loss, cast(pick(logits, labels, axis), shift.dtype))
    if args.mask is not None:
        is_masked = ~pick(jnp.broadcast_to(args.mask, logits.shape), labels, axis)
        logit = jnp.where(is_masked, -jnp.inf, logit)
    label = rule.label_of(options.loss, labels, logits.shape[axis], args.class_weights, is_masked, shift.dtype)
    logit = jnp.where(label.valid, logit, -jnp.inf)
    smoothing = rule.smoothing_of(options.loss, weights_of(options, args), args.mask, logits.shape, axis)
    return rule.Row(shift, others, logit, label, smoothing)


def centred_of(options: Options, args: Arguments) -> tuple[Centred, rule.Row]:
    """l - c, and the terms of each row by it, so with 0 for c.

    XLA's GPU backend computes a row in one kernel only if every sum is over l - c, the label's logit too.
    """
    rows, logits_of = OnePass((options.axis,)), functools.partial(capped_logits, options, args.dtype)
    shift = rows.shift(logits_of, args.logits, args.mask)
    l = logits_of(args.logits, args.mask) - shift
    own = is_label(args.labels, args.logits.shape, options.axis)
    others = rows.total(lambda l, own: rule.exponentials(l, 0.0, own), l, own)
    logit = rows.total(lambda l, own: jnp.where(own, l, 0), l, own)
    none = varying_like(jnp.zeros(others.shape, others.dtype), others)
    return Centred(shift, l, own), row_of(options, args, none, others, logit)
