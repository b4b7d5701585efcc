"""The convolutions of any JAX program, on a CPU, by this library's formulations. Experimental.

`install()` changes in this process how JAX lowers `jax.lax.conv_general_dilated` for a CPU: below automatic
differentiation and every other transformation, so that a model of any library keeps its code, forward mode and vmap.
Gradients of convolutions, which JAX writes as convolutions, are recognised. No other platform changes.

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

from jaxnorm._cotangents import cast
from jaxnorm._general_convolution import General
from jaxnorm._lower.convolution.choice import convolve_in, correlate_in
from jaxnorm._sharding import with_shardings

_lock = threading.RLock()
_original: Any = None  # the entry of JAX's table of lowerings that ours took the place of
_is_installed = False
_counts: Counter[str] = Counter()
_left: Counter[str] = Counter()
_thread = threading.local()  # `within`: whether this thread is lowering one of our formulations


def install() -> None:
    """Lowers the convolutions of every program that is compiled for a CPU from now on by this library's formulations.

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
    global _original, _is_installed
    with _lock:
        if not _is_installed:
            _counts.clear()
            _left.clear()
            _original = _registered()
            mlir.register_lowering(lax.conv_general_dilated_p, _lower, platform="cpu")
            _is_installed = True
            jax.clear_caches()


def uninstall() -> None:
    """Puts JAX's own lowering back as it was, and clears JAX's caches. Without `install` it does nothing."""
    global _is_installed
    with _lock:
        if _is_installed:
            mlir.register_lowering(lax.conv_general_dilated_p, _original.rule, platform="cpu", inline=_original.inline)
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

    Equal convolutions of one program are lowered once, and count once.

    Returns:
      A dict of: `"installed"`, whether the formulations are installed now; `"convolutions"`, how many were lowered by
      equation (1) of `jaxnorm.convolution`, gradients for the input among them; `"kernel_gradients"`, how many by
      equation (4); `"left"`, a dict from the reason to how many were left to JAX's own lowering.
    """
    with _lock:
        return {
            "installed": _is_installed,
            "convolutions": _counts["convolutions"],
            "kernel_gradients": _counts["kernel_gradients"],
            "left": dict(_left),
        }


# --- the rule -------------------------------------------------------------------------------------------------------


def _lower(ctx: mlir.LoweringRuleContext, lhs: Any, rhs: Any, **options: Any) -> Sequence[Any]:
    """JAX's lowering rule for `conv_general_dilated_p`.

    The convolutions in a formulation are JAX's own: without that, one that is XLA's convolution would never end.
    """
    if not _is_installed or getattr(_thread, "within", False):  # another thread may have uninstalled it since
        return _original.rule(ctx, lhs, rhs, **options)
    general, reason = _described(ctx, options)
    with _lock:
        (_counts if reason is None else _left).update([reason or _kind(general)])
    if reason is not None:
        return _original.rule(ctx, lhs, rhs, **options)
    _thread.within = True
    try:
        return mlir.lower_fun(_formulation(general, ctx.module_context, ctx.avals_out[0]), multiple_results=False)(
            ctx, lhs, rhs
        )
    finally:
        _thread.within = False


def _described(ctx: mlir.LoweringRuleContext, options: dict[str, Any]) -> tuple[General, str | None]:
    """The convolution, and why it is left to JAX's lowering; None if it is not."""
    avals: tuple[Any, ...] = (*ctx.avals_in, *ctx.avals_out)
    lhs, rhs, out = avals
    names = (name for name in General._fields if name in options)
    general = General(
        lhs.shape, rhs.shape, out.shape, (lhs.dtype, rhs.dtype, out.dtype), **{name: options[name] for name in names}
    )
    if not all(isinstance(size, int) for shape in (lhs.shape, rhs.shape, out.shape) for size in shape):
        return general, "a size that is left open"
    if 0 in (*lhs.shape, *rhs.shape, *out.shape):
        return general, "an empty array"
    return general, general.uncovered or _sharded(ctx)


def _kind(general: General) -> str:
    return "kernel_gradients" if general.is_kernel_gradient else "convolutions"


def _formulation(general: General, module: Any, out: Any) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """The convolution as a function of its arrays; on explicit mesh axes its result is split as that of JAX's is."""

    def convolution(lhs: jax.Array, rhs: jax.Array) -> jax.Array:
        layout = general.layout
        return convolve_in(module, general.geometry, lhs, rhs, (layout.x, layout.kernel, layout.y))

    def kernel_gradient(lhs: jax.Array, rhs: jax.Array) -> jax.Array:
        geometry, (of_x, of_g, of_kernel) = general.differentiated, general.differentiated_orders
        if general.feature_group_count > 1:
            lhs, of_x = _grouped(general, lhs), tuple(range(lhs.ndim))
        return correlate_in(module, geometry, lhs, rhs, (of_x, of_g, of_kernel))

    chosen = kernel_gradient if general.is_kernel_gradient else convolution
    return functools.partial(
        with_shardings, lambda *arrays: cast(chosen(*arrays), general.dtypes[2]), out.sharding.spec
    )


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


# --- what is private in JAX -----------------------------------------------------------------------------------------
# `jax.interpreters.mlir` offers `register_lowering` and `lower_fun`. It has no way to read what is registered, and none
# to ask which mesh axes are manual where an equation is lowered.


def _registered() -> Any:
    """The entry of JAX's table of lowerings for a convolution on a CPU, with its `rule` and whether it is `inline`."""
    return mlir._platform_specific_lowerings["cpu"][lax.conv_general_dilated_p]


def _sharded(ctx: mlir.LoweringRuleContext) -> str | None:
    """Why a module is left to JAX for its mesh: where some axes are manual, the others would be the partitioner's."""
    axes: Any = ctx.module_context.axis_context
    if not hasattr(axes, "manual_axes") or axes.manual_axes == frozenset(axes.mesh.axis_names):
        return None
    return "mesh axes of which some are manual"
