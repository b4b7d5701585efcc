"""The convolutions and pooling of any JAX program, on a CPU, by this library's formulations. Experimental.

`install()` changes in this process how JAX lowers `jax.lax.conv_general_dilated`, the maximum, minimum and sum over
windows (`jax.lax.reduce_window`) and the gradient of a maximum for a CPU: below automatic differentiation and every
other transformation, so that a model of any library keeps its code, forward mode and vmap. Gradients of convolutions,
which JAX writes as convolutions, are recognised. No other platform changes.

The lowering is no part of the keys of JAX's caches in memory, so `install` and `uninstall` clear these: a function
under `jax.jit` is compiled again at its next call. What was compiled ahead of time (`jit(f).lower(...).compile()`) or
exported (`jax.export`) keeps the convolutions that it was lowered with. The persistent compilation cache is keyed on
the lowered program, and so tells the two apart by itself.
"""

import contextlib
import functools
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
from jax import lax
from jax.interpreters import mlir

from jaxnorm import _general_pooling as pooling
from jaxnorm._cotangents import cast
from jaxnorm._general_convolution import General
from jaxnorm._lower.convolution.choice import convolve_in, correlate_in
from jaxnorm._sharding import with_shardings

Formulation = Callable[..., jax.Array]

_lock = threading.RLock()
_originals: dict[Any, Any] = {}  # the entries of JAX's tables of lowerings that ours took the place of
_is_installed = False
_counts: Counter[str] = Counter()
_left: Counter[str] = Counter()
_thread = threading.local()  # `within`: whether this thread is lowering one of our formulations


def install() -> None:
    """Lowers what every program that is compiled for a CPU from now on convolves and pools by these formulations.

    All threads see it at once. JAX's caches are cleared, and `report()` counts from 0. Installed twice is installed.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import jaxnorm.lowering
      >>> jaxnorm.lowering.install()
      >>> x, kernel = jnp.ones((2, 8, 8, 4)), jnp.ones((3, 3, 1, 4))
      >>> y = jax.lax.conv_general_dilated(
      ...     x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=4)
      >>> jaxnorm.lowering.report()["convolutions"]
      1
      >>> jaxnorm.lowering.uninstall()
    """
    global _is_installed
    with _lock:
        if not _is_installed:
            _counts.clear()
            _left.clear()
            for primitive in _DESCRIBED:
                _originals[primitive] = _registered(primitive)
                mlir.register_lowering(primitive, functools.partial(_lower, primitive), platform="cpu")
            _is_installed = True
            jax.clear_caches()


def uninstall() -> None:
    """Puts JAX's own lowerings back as they were, and clears JAX's caches. Without `install` it does nothing."""
    global _is_installed
    with _lock:
        if _is_installed:
            for primitive, entry in _originals.items():
                _restore(primitive, entry)
            _is_installed = False
            jax.clear_caches()


@contextlib.contextmanager
def installed() -> Iterator[None]:
    """A context with the formulations installed, after which it is as it was before; contexts may be nested.

    It holds for all threads, as `install` does. A function that was traced in it runs as it was compiled there, until
    the context ends and the caches are cleared.
    """
    was_installed = _is_installed
    install()
    try:
        yield
    finally:
        install() if was_installed else uninstall()


def report() -> dict[str, Any]:
    """What was lowered since `install`.

    Equal operations of one program are lowered once, and count once.

    Returns:
      A dict of: `"installed"`, whether the formulations are installed now; `"convolutions"`, how many were lowered by
      equation (1) of `jaxnorm.convolution`, gradients for the input among them; `"kernel_gradients"`, how many by
      equation (4); `"poolings"`, how many maxima, minima and sums over windows and gradients of these; `"left"`, a dict
      from the reason to how many were left to JAX's own lowering.
    """
    with _lock:
        counts = {kind: _counts[kind] for kind in ("convolutions", "kernel_gradients", "poolings")}
        return {"installed": _is_installed, **counts, "left": dict(_left)}


# --- the rule -------------------------------------------------------------------------------------------------------


def _lower(primitive: Any, ctx: mlir.LoweringRuleContext, *arrays: Any, **options: Any) -> Sequence[Any]:
    """JAX's lowering rule for a primitive.

    The convolutions in a formulation are JAX's own: without that, one that is XLA's convolution would never end.
    """
    original = _rule(primitive, _originals[primitive])
    if not _is_installed or getattr(_thread, "within", False):  # another thread may have uninstalled it since
        return original(ctx, *arrays, **options)
    described = _left_alone(ctx) or _DESCRIBED[primitive](ctx, options)
    kind, formulation = (described, None) if isinstance(described, str) else described
    with _lock:
        (_left if formulation is None else _counts).update([kind])
    if formulation is None:
        return original(ctx, *arrays, **options)
    out: Any = ctx.avals_out[0]
    function = functools.partial(with_shardings, formulation, out.sharding.spec)
    _thread.within = True
    try:
        return mlir.lower_fun(function, multiple_results=False)(ctx, *arrays)
    finally:
        _thread.within = False


def _left_alone(ctx: mlir.LoweringRuleContext) -> str | None:
    """Why an operation is left to JAX's lowering whatever it is; None if it is not."""
    avals: tuple[Any, ...] = (*ctx.avals_in, *ctx.avals_out)
    if not all(isinstance(size, int) for aval in avals for size in aval.shape):
        return "a size that is left open"
    if any(0 in aval.shape for aval in avals):
        return "an empty array"
    return _sharded(ctx)


def _convolution(ctx: mlir.LoweringRuleContext, options: dict[str, Any]) -> tuple[str, Formulation] | str:
    """How it counts and the convolution as a function of its arrays, or why it is left to JAX's lowering."""
    avals: tuple[Any, ...] = (*ctx.avals_in, *ctx.avals_out)
    lhs, rhs, out = avals
    dtypes, names = (lhs.dtype, rhs.dtype, out.dtype), (name for name in General._fields if name in options)
    general = General(lhs.shape, rhs.shape, out.shape, dtypes, **{name: options[name] for name in names})
    if general.uncovered:
        return general.uncovered
    module = ctx.module_context

    def convolution(lhs: jax.Array, rhs: jax.Array) -> jax.Array:
        layout = general.layout
        return cast(convolve_in(module, general.geometry, lhs, rhs, (layout.x, layout.kernel, layout.y)), dtypes[2])

    def kernel_gradient(lhs: jax.Array, rhs: jax.Array) -> jax.Array:
        geometry, (of_x, of_g, of_kernel) = general.differentiated, general.differentiated_orders
        if general.feature_group_count > 1:
            lhs, of_x = _grouped(general, lhs), tuple(range(lhs.ndim))
        return cast(correlate_in(module, geometry, lhs, rhs, (of_x, of_g, of_kernel)), dtypes[2])

    return ("kernel_gradients", kernel_gradient) if general.is_kernel_gradient else ("convolutions", convolution)


def _grouped(general: General, lhs: jax.Array) -> jax.Array:
    """Canonical x of a kernel gradient with feature groups, which vmap over x and the cotangent makes.

    lax has the groups beside the batch that is summed over, and (4) beside the channels.
    """
    groups = general.feature_group_count
    (channels, batch, *space), *_ = general.dimension_numbers
    x = lax.transpose(lhs, (batch, *space, channels))
    images, *sizes, channels = x.shape
    x = lax.reshape(x, (groups, images // groups, *sizes, channels))
    x = lax.transpose(x, (*range(1, x.ndim - 1), 0, x.ndim - 1))
    return lax.reshape(x, (images // groups, *sizes, groups * channels))


def _reduction(primitive: Any, ctx: mlir.LoweringRuleContext, options: dict[str, Any]) -> tuple[str, Formulation] | str:
    """The same of a maximum, minimum or sum over windows."""
    x: Any = ctx.avals_in[0]
    reason = pooling.uncovered(x.dtype, options)
    return reason or ("poolings", pooling.reduction(primitive, pooling.windows_of(x.shape, options)))


def _selection(ctx: mlir.LoweringRuleContext, options: dict[str, Any]) -> tuple[str, Formulation] | str:
    """The same of the gradient of a maximum or minimum over windows."""
    x: Any = ctx.avals_in[1]
    reason = pooling.uncovered(x.dtype, options)
    return reason or ("poolings", pooling.selection(options["select_prim"], pooling.windows_of(x.shape, options)))


_DESCRIBED: dict[Any, Callable[..., tuple[str, Formulation] | str]] = {
    lax.conv_general_dilated_p: _convolution,
    **{primitive: functools.partial(_reduction, primitive) for primitive in pooling.REDUCTIONS},
    lax.select_and_scatter_add_p: _selection,
}


# --- what is private in JAX -----------------------------------------------------------------------------------------
# `jax.interpreters.mlir` offers `register_lowering` and `lower_fun`. It has no way to read what is registered or to
# remove it, and none to ask which mesh axes are manual where an equation is lowered.


def _registered(primitive: Any) -> Any:
    """The entry of JAX's table of lowerings for a CPU, with its `rule` and whether it is `inline`, or None."""
    return mlir._platform_specific_lowerings["cpu"].get(primitive)


def _rule(primitive: Any, entry: Any) -> Callable[..., Sequence[Any]]:
    """The rule of an entry, or without one that for every platform."""
    return (entry or mlir._lowerings[primitive]).rule


def _restore(primitive: Any, entry: Any) -> None:
    """JAX's table as it was with this entry, or with none."""
    if entry is None:
        mlir._platform_specific_lowerings["cpu"].pop(primitive, None)
    else:
        mlir.register_lowering(primitive, entry.rule, platform="cpu", inline=entry.inline)


def _sharded(ctx: mlir.LoweringRuleContext) -> str | None:
    """Why a module is left to JAX for its mesh: where some axes are manual, the others would be the partitioner's."""
    axes: Any = ctx.module_context.axis_context
    if not hasattr(axes, "manual_axes") or axes.manual_axes == frozenset(axes.mesh.axis_names):
        return None
    return "mesh axes of which some are manual"
