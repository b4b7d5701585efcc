"""How a rule's sums and maxima over classes are taken.

`Rows` and `OnePass` are what a rule is handed. Most of what they do beyond plain `jnp` is for XLA's CPU backend:

- It reduces an array of few classes slowly, above all along another axis than the last. Such a reduction is unrolled:
  written as additions (or maxima) of one slice for each class.
- It computes a sum in one pass with the arithmetic that leads to it, unless a part of that arithmetic has another use:
  then it writes that part to memory first. A sum over a large array is therefore outlined, with operands of its own.
- It computes a whole function of a row, sums and all, in one pass (a YNNPACK fusion) if the function has no select.

XLA's other backends compute a row in one kernel too, each if it finds the form that it looks for:

- For a TPU this is exactly `exp(l - max(l)) / sum(exp(l - max(l)))`, with no guard on the maximum or on the sum.
- For a GPU it is a chain of two reductions over the row, of which the second waits for the first, with one result.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import lax

from jaxnorm._cotangents import cast, varying_like
from jaxnorm._lower.calls import outlined, outlined_on_cpu
from jaxnorm._lower.gpu import ROW
from jaxnorm._lower.platforms import by_platform
from jaxnorm._lower.sizes import at_most

Axes = tuple[int, ...]
Elementwise = Callable[..., jax.Array]
T = TypeVar("T")

FEW = 32  # a reduction over at most so many classes is unrolled
LARGE = 1 << 21  # a sum over at least so many numbers is outlined
LONG_ROW = 1024  # positive terms of rows of at least so many classes are counted by their signs


@dataclasses.dataclass(frozen=True)
class Rows:
    """Reductions over the class axes, which stay at size 1.

    Operands are arrays or pytrees of them, with None where an argument is absent; an array may have size 1 along the
    class axes. A function `of` them is elementwise.
    """

    axes: Axes

    def total(self, of: Elementwise, *operands: Any, shared: bool = False) -> jax.Array:
        """The sum of `of(*operands)`; `shared` if its terms serve another operation too, and are best computed once."""
        shape = _shape(operands)
        if self._is_few(shape):
            return self._unrolled(lax.add, self._sum, of, operands)
        if not at_most(math.prod(shape), LARGE - 1, unknown=False) and not shared:
            return outlined_on_cpu(functools.partial(self._sum, of), *operands)
        return self._sum(of, *operands)

    def totals(self, parts: Sequence[Elementwise], *operands: Any) -> tuple[jax.Array, ...]:
        """The sums of several functions of the same operands."""
        return tuple(self.total(part, *operands) for part in parts)

    def total_of_others(self, of: Elementwise, index: jax.Array, labels: jax.Array, *operands: Any) -> jax.Array:
        """The sum of `of(*operands)` over the classes but the label's: the sum of `others`."""
        if not self._is_few(_shape((index, operands))):
            return self._sum(lambda terms: terms, self.others(of(*operands), index, labels))

        def other(index: jax.Array, labels: jax.Array, *operands: Any) -> jax.Array:
            return self._selected(of(*operands), index, labels)

        return self.total(other, index, labels, *operands, shared=True)

    def others(self, terms: jax.Array, index: jax.Array, labels: jax.Array) -> jax.Array:
        """`terms`, and 0 at the label.

        XLA's CPU backend writes the terms to memory, since a sum and a later pass need them. To overwrite one term of
        each row there takes less time than to compare every class with the label, unless the classes are few.
        """
        (axis,) = self.axes

        def overwritten(terms: jax.Array, _: jax.Array, labels: jax.Array) -> jax.Array:
            return _put(terms, axis, labels, varying_like(jnp.zeros(labels.shape, terms.dtype), terms))

        if terms.shape[axis] == 0 or self._is_few(terms.shape):
            return self._selected(terms, index, labels)
        return by_platform(terms, index, labels, cpu=overwritten, default=self._selected)

    @staticmethod
    def _selected(terms: jax.Array, index: jax.Array, labels: jax.Array) -> jax.Array:
        return jnp.where(index == labels, 0, terms)

    def largest(self, of: Elementwise, *operands: Any) -> jax.Array:
        """The maximum of `of(*operands)`, -inf where there are no classes."""
        shape = _shape(operands)
        if self._is_few(shape) and not self._is_last(shape):  # the backend is fast at maxima along the last axis
            return self._unrolled(lax.max, self._maximum, of, operands)
        return self._maximum(of, *operands)

    def count_positive(self, of: Elementwise, *operands: Any, dtype: Any) -> jax.Array:
        """How many of the terms, none of which is negative, are positive; a NaN counts 0, or makes the count NaN.

        XLA's CPU backend writes the result of a comparison to memory before it sums it. It sums integers faster than
        floats then, and in long rows it sums signs fastest, since it need not write those.
        """

        def one_or_zero(*operands: Any) -> jax.Array:
            terms = of(*operands)
            is_long = not at_most(_shape((terms,))[self.axes[0]], LONG_ROW - 1, unknown=False)
            return jnp.sign(terms) if is_long else cast(terms > 0, jnp.int32)

        return cast(self.total(one_or_zero, *operands, shared=True), dtype)

    @staticmethod
    def positive(terms: jax.Array) -> jax.Array:
        """1 for a positive term and 0 for 0, in the terms' dtype; a NaN may stay one, since the terms' sum is NaN too.

        XLA's GPU backend would write the result of a comparison to memory if a sum and a pass both need it.
        """

        def compared(terms: jax.Array) -> jax.Array:
            return cast(terms > 0, terms.dtype)

        return by_platform(terms, cpu=compared, tpu=compared, default=jnp.sign)

    def opposed(
        self, weight: jax.Array, terms: jax.Array, total: jax.Array, own: jax.Array, labels: jax.Array, dtype: Any
    ) -> jax.Array:
        """`weight * terms` in `dtype`, and at the label, where a term is 0, minus their sum, given that of the terms.

        A pass that waits for no sum is one kernel with the sums of the forward pass on a GPU, so the label's entries
        are written afterwards there.
        """
        (axis,) = self.axes

        def selected(weight: jax.Array, terms: jax.Array, total: jax.Array, own: jax.Array, _: jax.Array) -> jax.Array:
            return cast(weight * jnp.where(own, -total, terms), dtype)

        def scattered(weight: jax.Array, terms: jax.Array, _: Any, __: Any, labels: jax.Array) -> jax.Array:
            values = weight * terms
            return _put(cast(values, dtype), axis, labels, cast(-self._sum(lambda v: v, values), dtype))

        operands = weight, terms, total, own, labels
        return by_platform(*operands, cpu=selected, tpu=selected, default=scattered)

    @staticmethod
    def leads(logits: jax.Array, shift: jax.Array) -> jax.Array:
        """[l = c]: 1 for a logit that equals the largest and 0 for the others, without derivative.

        XLA's CPU backend would write a select to memory before it sums it, so this has none: a smaller logit differs
        from c by at least the smallest normal number, and 1 minus that difference over this number is not positive.
        """
        steep = 1 / jnp.finfo(logits.dtype).tiny
        return jnp.maximum(0, 1 + steep * lax.stop_gradient(logits - shift))

    def alone(self, of: Elementwise, *operands: Any) -> jax.Array:
        """The sum of `of(*operands)`, which shares nothing with another sum of the same operands.

        XLA's CPU backend would compute an exponential that two sums need once, and write it to memory.
        """
        if self._is_few(_shape(operands)):
            return self._unrolled(lax.add, self._sum, of, operands)
        return outlined_on_cpu(functools.partial(self._sum, of), *operands)

    def first(self, logits: jax.Array, largest: jax.Array) -> jax.Array:
        """The first class, int32, whose logit is the largest; any class where that is infinite or NaN.

        XLA's CPU backend would write the indices to memory for an argmax, as it does a select's result. So the classes
        that lead are counted down from the number of classes, the others from 0, and the maximum is taken.
        """
        (axis,) = self.axes
        classes = logits.shape[axis]
        index = lax.broadcasted_iota(logits.dtype, [classes if a == axis else 1 for a in range(logits.ndim)], axis)

        def countdown(logits: jax.Array, largest: jax.Array, index: jax.Array) -> jax.Array:
            return self.leads(logits, largest) * classes - index

        count = functools.partial(self.largest, countdown)
        highest = outlined_on_cpu(count, *lax.stop_gradient((logits, largest)), index)
        return cast(jnp.clip(classes - highest, 0, max(classes - 1, 0)), jnp.int32)

    @staticmethod
    def per_row(of: Callable[..., T], *arrays: jax.Array) -> T:
        """`of(*arrays)` for arrays of one number per row.

        The function is outlined, since XLA's CPU backend would compute it again for each class that uses its result.
        """
        return outlined_on_cpu(of, *arrays)

    def _sum(self, of: Elementwise, *operands: Any) -> jax.Array:
        terms = of(*operands)
        return jnp.sum(terms, axis=self.axes, dtype=terms.dtype, keepdims=True)

    def _maximum(self, of: Elementwise, *operands: Any) -> jax.Array:
        return jnp.max(of(*operands), axis=self.axes, keepdims=True, initial=-jnp.inf)

    def _is_few(self, shape: tuple[int, ...]) -> bool:
        return len(self.axes) == 1 and shape[self.axes[0]] != 0 and at_most(shape[self.axes[0]], FEW, unknown=False)

    def _is_last(self, shape: tuple[int, ...]) -> bool:
        return self.axes[0] == len(shape) - 1

    def _unrolled(
        self, combine: Callable[..., jax.Array], reduction: Elementwise, of: Elementwise, operands: tuple[Any, ...]
    ) -> jax.Array:
        """`reduction(of, *operands)`, on a CPU as a tree of `combine` over the classes."""
        (axis,) = self.axes

        def of_class(k: int, operand: jax.Array) -> jax.Array:
            return operand if operand.shape[axis] == 1 else lax.slice_in_dim(operand, k, k + 1, axis=axis)

        def unrolled(*operands: Any) -> jax.Array:
            classes = range(_shape(operands)[axis])
            terms = [of(*jax.tree.map(functools.partial(of_class, k), operands)) for k in classes]
            while len(terms) > 1:  # in pairs, so that a sum's rounding errors grow with the logarithm of their number
                terms = [functools.reduce(combine, terms[i : i + 2]) for i in range(0, len(terms), 2)]
            return terms[0]

        cpu = functools.partial(outlined, unrolled)
        return by_platform(*operands, cpu=cpu, default=functools.partial(reduction, of))


@dataclasses.dataclass(frozen=True)
class OnePass(Rows):
    """The same, for functions of rows of which nothing but the result is kept: forms that XLA puts into one pass.

    Where more than the result is kept, XLA's CPU backend would write to memory what its fusion and the rest share.
    """

    def total(self, of: Elementwise, *operands: Any, shared: bool = False) -> jax.Array:
        """The sum of `of(*operands)`, in one pass with what leads to it and what follows."""
        shape = _shape(operands)
        if self._is_few(shape) and (shared or not self._is_last(shape)):
            return self._unrolled(lax.add, self._sum, of, operands)
        return self._sum(of, *operands)

    def totals(self, parts: Sequence[Elementwise], *operands: Any) -> tuple[jax.Array, ...]:
        """The sums of several functions of the same operands, which share what they can."""
        return tuple(self.total(part, *operands, shared=True) for part in parts)

    def shift(self, logits_of: Elementwise, *operands: Any) -> jax.Array:
        """The largest logit, without derivative; the lowest finite number for a row without classes.

        It is bounded by a maximum, since a select would end XLA's fusion.
        """
        largest = self.largest(logits_of, *lax.stop_gradient(operands))
        return jnp.maximum(largest, jnp.finfo(largest.dtype).min)

    @staticmethod
    def log_total(others: jax.Array, leading: jax.Array) -> jax.Array:
        """log(total) of the others' and the leaders' exponentials; some finite number for a row without classes.

        A select would end XLA's fusion, and in a maximum the fusion would lose a NaN. So a factor just below 1 keeps
        log1p's argument above -1 for a row without classes; for any other it moves the result by less than rounding.
        """
        return jnp.log1p(others + (leading - 1) * (1 - jnp.finfo(others.dtype).eps / 2))

    def probabilities(self, logits_of: Elementwise, *operands: Any) -> jax.Array:
        """e / total for the logits `logits_of(*operands)`, 0 in a row without classes."""

        def guarded(*operands: Any) -> jax.Array:
            shift = self.shift(logits_of, *operands)
            total = self.total(lambda *o: jnp.exp(logits_of(*o[:-1]) - o[-1]), *operands, shift)
            # A row without classes has total 0. A select would end XLA's fusion, so something is added that is lost in
            # rounding wherever the total is not 0, since it is at least 1 there.
            return jnp.exp(logits_of(*operands) - shift) / (total + jnp.finfo(total.dtype).eps / 4)

        def clipped(*operands: Any) -> jax.Array:
            logits = logits_of(*operands)
            finite = jnp.maximum(logits, jnp.finfo(logits.dtype).min)  # so that no row needs a guard
            e = jnp.exp(finite - self._maximum(lambda l: l, lax.stop_gradient(finite)))
            return jnp.where(logits == -jnp.inf, 0, e / self._sum(lambda e: e, e))

        return by_platform(*operands, tpu=clipped, default=guarded)

    def held(self, values: jax.Array) -> jax.Array:
        """`values`, all finite, which a sum over the row and the pass that waits for it then read from memory once.

        XLA's GPU backend looks for two reductions, so this adds one, which changes nothing. A row that no kernel holds
        would be read once more for it.
        """
        if self.axes != (values.ndim - 1,) or not at_most(values.shape[-1], ROW, unknown=False):
            return values

        def twice_reduced(values: jax.Array) -> jax.Array:
            return values + 0 * self._maximum(lambda v: v, lax.stop_gradient(values))

        return by_platform(values, cpu=lambda v: v, tpu=lambda v: v, default=twice_reduced)


def where_rows_fit(
    axes: Axes, fitting: Callable[..., T], otherwise: Callable[..., T], *operands: Any, again: bool = False
) -> T:
    """`fitting(*operands)` where one kernel can hold a row, which is cheaper to compute again than to keep sums of.

    Such a kernel of XLA's GPU backend has one result. The sums would take a second kernel, which reads the row again.
    In a backward pass that computes the sums `again`, XLA must not find them in the forward one, since it would write
    to memory what the two have in common.
    """
    shape = _shape(operands)

    def apart(*operands: Any) -> T:
        return fitting(*lax.optimization_barrier(operands))

    if axes != (len(shape) - 1,) or not at_most(shape[-1], ROW, unknown=False):
        return otherwise(*operands)
    return by_platform(*operands, cpu=otherwise, tpu=otherwise, default=apart if again else fitting)


def _put(values: jax.Array, axis: int, labels: jax.Array, entries: jax.Array) -> jax.Array:
    """`values` with each row's entry at its label replaced; none where the label is no class."""
    others = tuple(a for a in range(values.ndim) if a != axis)
    rows = tuple(range(len(others)))
    numbers = lax.ScatterDimensionNumbers((), (axis,), (axis,), others, rows)
    index, entries = jnp.expand_dims(jnp.squeeze(labels, axis), -1), jnp.squeeze(entries, axis)
    mode = lax.GatherScatterMode.FILL_OR_DROP
    return lax.scatter(values, index, entries, numbers, unique_indices=True, mode=mode)


def _shape(operands: tuple[Any, ...]) -> Any:
    return jnp.broadcast_shapes(*(operand.shape for operand in jax.tree.leaves(operands)))
