"""Rules under vmap over examples: those that share their parameters are one call on a larger batch.

Under vmap a custom VJP forms the parameters' cotangents of each example, and JAX sums them afterwards. Plain autodiff
contracts over the examples at once, in less time and memory, and so does the one call. Where a parameter is mapped too,
as by an ensemble or for the gradient of each example, vmap does what it does to any custom VJP.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive, jaxpr_as_fun
from jax.interpreters import ad, batching, mlir

_call_p = Primitive("rule")


@dataclasses.dataclass(frozen=True)
class Call:
    """A rule's call.

    Attributes:
      rule: the custom VJP, of `options` and the arrays: x, and parameters or None.
      options: its static argument.
      x_axis: the batch axis of x, of which examples can become a part; None if they can be an axis of their own, in
        front of the others.
      y_axis: the same axis of the result.
      given: which of the arrays are not None.
      levels: for each other vmap, from the outermost on, which of the given arrays have an axis for it in front.
    """

    rule: Any  # whose call JAX types as no function
    options: Any
    x_axis: int | None
    y_axis: int
    given: tuple[bool, ...]
    levels: tuple[tuple[bool, ...], ...] = ()

    def __call__(self, *arrays: Any) -> jax.Array:
        """The rule, mapped."""

        def one(*arrays: jax.Array) -> jax.Array:
            rest = iter(arrays)
            return self.rule(self.options, *(next(rest) if is_given else None for is_given in self.given))

        for level in reversed(self.levels):
            one = jax.vmap(one, tuple(0 if has else None for has in level))
        return one(*arrays)


def shared(rule: Any, options: Any, *arrays: jax.Array | None, x_axis: int | None = None, y_axis: int = 0) -> jax.Array:
    """`rule(options, *arrays)`, as one call on the examples of all the vmaps over x alone.

    Under `jax_custom_vjp3` it is the rule itself, whose calls JAX lowers in no other operation then.
    """
    if getattr(jax.config, "jax_custom_vjp3", False):
        return rule(options, *arrays)
    call = Call(rule, options, x_axis, y_axis, tuple(array is not None for array in arrays))
    return _bind(call, *(array for array in arrays if array is not None))


def _bind(call: Call, *arrays: jax.Array) -> jax.Array:
    return _call_p.bind(*arrays, call=call, program=jax.make_jaxpr(functools.partial(_traced, call))(*arrays))


@functools.partial(jax.jit, static_argnums=0, inline=True)  # so that it is traced once
def _traced(call: Call, *arrays: jax.Array) -> jax.Array:
    return call(*arrays)


@_call_p.def_impl
def _evaluate(*arrays: jax.Array, call: Call, program: Any) -> jax.Array:
    del program
    return call(*arrays)


@_call_p.def_abstract_eval
def _type(*arrays: Any, call: Call, program: Any) -> Any:
    del arrays, call
    return program.out_avals[0]


def _lower(ctx: mlir.LoweringRuleContext, *arrays: Any, call: Call, program: Any) -> Any:
    del call
    return mlir.lower_fun(jaxpr_as_fun(program), multiple_results=True)(ctx, *arrays)


def _differentiate(primals: Sequence[Any], tangents: Sequence[Any], *, call: Call, program: Any) -> Any:
    """The custom VJP's own."""
    del program
    varying = [i for i, tangent in enumerate(tangents) if type(tangent) is not ad.Zero]

    def of_varying(*arrays: jax.Array) -> jax.Array:
        given = dict(zip(varying, arrays, strict=True))
        return call(*(given.get(i, primal) for i, primal in enumerate(primals)))

    return jax.jvp(of_varying, [primals[i] for i in varying], [tangents[i] for i in varying])


def _batch(arrays: Sequence[Any], axes: Sequence[int | None], *, call: Call, program: Any) -> tuple[jax.Array, int]:
    del program
    if all(axis is None for axis in axes[1:]):
        return _of_examples(call, axes[0], *arrays)
    arrays = [a if axis is None else jnp.moveaxis(a, axis, 0) for a, axis in zip(arrays, axes, strict=True)]
    level = tuple(axis is not None for axis in axes)
    return _bind(dataclasses.replace(call, levels=(level, *call.levels)), *arrays), 0


def _of_examples(call: Call, axis: Any, x: jax.Array, *parameters: jax.Array) -> tuple[jax.Array, int]:
    """The call on examples along this axis of x, behind what the outer vmaps map."""
    before = sum(level[0] for level in call.levels)
    if call.x_axis is None:
        return _bind(call, jnp.moveaxis(x, axis, before), *parameters), len(call.levels)
    start, end = before + call.x_axis, len(call.levels) + call.y_axis
    x = jnp.moveaxis(x, axis, start)
    y = _bind(call, jax.lax.collapse(x, start, start + 2), *parameters)
    return jax.lax.reshape(y, (*y.shape[:end], *x.shape[start : start + 2], *y.shape[end + 1 :])), end


ad.primitive_jvps[_call_p] = _differentiate
batching.primitive_batchers[_call_p] = _batch
mlir.register_lowering(_call_p, _lower)
