"""`jax.lax.conv_general_dilated` with this library's rule for its gradients."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec
from jax.typing import DTypeLike

from jaxnorm._arguments import as_array
from jaxnorm._convolution_options import Options
from jaxnorm._general_convolution import General
from jaxnorm.convolution import _on_mesh


def conv_general_dilated(
    lhs: jax.Array,
    rhs: jax.Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: lax.ConvGeneralDilatedDimensionNumbers = None,
    feature_group_count: int = 1,
    batch_group_count: int = 1,
    precision: lax.PrecisionLike = None,
    preferred_element_type: DTypeLike | None = None,
    out_sharding: NamedSharding | PartitionSpec | None = None,
) -> jax.Array:
    """`jax.lax.conv_general_dilated`, with its signature, its meaning and its errors, by the rule of `jaxnorm.conv`:
    `y[n, o, t] = sum over k, c of lhs[n, c, strides * t + k - low] * rhs[o, c, k]`.

    It serves where a library takes a convolution as an argument: `flax.linen.Conv(conv_general_dilated=...)` and
    `flax.nnx.Conv(conv_general_dilated=...)`. What the rule does not cover is lax's own call, gradients included:
    `batch_group_count` other than 1, integers, complex numbers, 8-bit floats, no spatial axis or more than three, and
    an empty window.

    Args:
      lhs: array of 1 to 3 spatial axes, a batch axis and a channel axis; differentiable.
      rhs: the kernel, of as many axes; differentiable.
      window_strides: step of the window, one int per spatial axis; static.
      padding: `"SAME"`, `"SAME_LOWER"`, `"VALID"`, or a `(low, high)` pair per spatial axis; static.
      lhs_dilation: `lhs_dilation - 1` zeros are put between neighbours of lhs; one int per spatial axis, or None for 1;
        static.
      rhs_dilation: the same for the kernel; static.
      dimension_numbers: axis orders as three strings, or a `jax.lax.ConvDimensionNumbers`; None is channels first, for
        two spatial axes `("NCHW", "OIHW", "NCHW")`; static.
      feature_group_count: number of groups of consecutive channels, each convolved by itself; static.
      batch_group_count: number of groups of consecutive images, each convolved with its own part of the kernel's
        outputs; static.
      precision: of the products, forward and backward; static.
      preferred_element_type: dtype of the result; None is that of lhs; static.
      out_sharding: of the result, on explicit mesh axes; None leaves it as `jaxnorm.conv` does; static.

    Returns:
      Array of the shape and dtype of lax's, whose sums the rule accumulates in at least float32.

    Gradient:
      Equations (3) to (5) of `jaxnorm.convolution`. Kept for it: `lhs` and `rhs`.

    Raises:
      TypeError: what lax raises as one: shapes, groups or dtypes that do not fit, unlike dtypes among them.
      ValueError: what lax raises as one: an unknown precision, or a string padding with a `lhs_dilation` other than 1.
      RuntimeError: lax's for an unknown string padding.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxnorm as jn
      >>> y = jn.conv_general_dilated(jnp.arange(5.0).reshape(1, 1, 5), jnp.ones((1, 1, 3)), (2,), "SAME")
      >>> print(y[0, 0])
      [1. 6. 7.]

    References:
      The operation: https://openxla.org/stablehlo/spec#convolution.
    """
    theirs = functools.partial(
        lax.conv_general_dilated,
        window_strides=window_strides,
        padding=padding,
        lhs_dilation=lhs_dilation,
        rhs_dilation=rhs_dilation,
        dimension_numbers=dimension_numbers,
        feature_group_count=feature_group_count,
        batch_group_count=batch_group_count,
        precision=precision,
        preferred_element_type=preferred_element_type,
        out_sharding=out_sharding,
    )
    lhs, rhs = as_array("lhs", lhs), as_array("rhs", rhs)
    # Raises what lax raises, but for the result's sharding, which is found as `jaxnorm.conv` finds it.
    bare = [jax.ShapeDtypeStruct(array.shape, array.dtype) for array in (lhs, rhs)]
    wanted = jax.eval_shape(functools.partial(theirs, out_sharding=None), *bare)
    general = _general(lhs, rhs, wanted, theirs.keywords)
    if batch_group_count != 1 or general.uncovered is not None:
        return theirs(lhs, rhs)
    options = Options(general.geometry, general.layout, wanted.dtype)
    y = _on_mesh(options, lhs, rhs, None)
    return y if out_sharding is None else jax.sharding.reshard(y, out_sharding)


def _general(lhs: jax.Array, rhs: jax.Array, wanted: jax.ShapeDtypeStruct, options: dict[str, Any]) -> General:
    """The arguments, which lax has accepted, spelled out as lax does it."""
    numbers = lax.conv_dimension_numbers(lhs.shape, rhs.shape, options["dimension_numbers"])
    ones = (1,) * (lhs.ndim - 2)
    strides, lhs_dilation, rhs_dilation = (
        ones if options[name] is None else tuple(int(n) for n in options[name])
        for name in ("window_strides", "lhs_dilation", "rhs_dilation")
    )
    general = General(
        lhs.shape, rhs.shape, wanted.shape, (lhs.dtype, rhs.dtype, wanted.dtype), strides, ((0, 0),) * len(ones),
        lhs_dilation, rhs_dilation, numbers, options["feature_group_count"], options["batch_group_count"],
        _precision(options["precision"]),
    )  # fmt: skip
    padding = options["padding"]
    if isinstance(padding, str):
        geometry = general.geometry
        padding = lax.padtype_to_pads(geometry.input_size, geometry.reach, strides, padding)
    return general._replace(padding=tuple((int(low), int(high)) for low, high in padding))


def _precision(precision: lax.PrecisionLike) -> Any:
    """A precision that can be hashed."""
    return tuple(precision) if isinstance(precision, list) else precision
