"""Dense layers: affine, ReLU, and the two in one.

Forward, with X the input flattened to (N, D):

    Y = X W + b                                                                                                      (1)
    A = max(Y, 0)                                                                                                    (2)

Backward, for the incoming cotangent G of the output:

    dX = G W^T        dW = X^T G        db = sum over the N rows of G                                                (3)
    dY = G where A > 0, else 0                                                                                       (4)

Derivation. Y_nm = sum_d X_nd W_dm + b_m is linear in each argument, so that each cotangent sums G_nm times the other
factor over the index which that argument lacks: m for X_nd, n for W_dm, n for b_m. The rectifier passes G where its
input is positive, and the input is positive exactly where the output is: the output alone is kept, which the next layer
keeps as its input anyway. Its gradient at 0 is 0.

Reference: Goodfellow, Bengio and Courville 2016, "Deep Learning", section 6.5.
"""

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxnorm._arguments import as_float_array, as_parameter, static_int
from jaxnorm._cotangents import cast, compute_dtype, cotangent_for, reshape
from jaxnorm._examples import shared
from jaxnorm._lower.products import dot, over_kept, sum_over_rows
from jaxnorm._sharding import entries_of, spec_of, spec_of_entries, with_shardings


@dataclasses.dataclass(frozen=True)
class Options:
    """The static side of an affine layer."""

    rectify: bool
    num_feature_axes: int
    precision: Any


class Residuals(NamedTuple):
    """What the backward pass keeps: the inputs, and after a ReLU its output."""

    x: jax.Array  # the input, as it came
    kernel: jax.Array  # the parameter itself
    bias: jax.Array | None  # the parameter itself, for its dtype
    output: jax.Array | None  # of affine_relu; None for affine


def affine(
    x: ArrayLike,
    kernel: ArrayLike,
    bias: ArrayLike | None = None,
    *,
    num_feature_axes: int = 1,
    precision: lax.PrecisionLike = None,
) -> jax.Array:
    """Affine (dense, fully connected) layer: `y = x @ kernel + bias`.

    Args:
      x: floating-point array; its last `num_feature_axes` axes are flattened to D, the others stay; differentiable.
      kernel: float array of shape `(D, M)`; differentiable.
      bias: float array of shape `(M,)`, or None for 0; differentiable.
      num_feature_axes: how many axes make up the features, at least 1; static.
      precision: of the matrix products, forward and backward, as in `jax.lax.dot_general`; static.

    Returns:
      Array of shape `(*batch, M)` and x's dtype. Products are accumulated in float32, or float64 if an argument is
      float64; arguments of different dtypes are multiplied in that dtype.

    Gradient:
      Equations (3) of this module. Kept for it: `x` and `kernel`.

    Raises:
      TypeError: an array is not floating-point.
      ValueError: `x` has too few axes, or a parameter's shape does not fit.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxnorm as jn
      >>> print(jn.affine(jnp.ones((2, 3)), jnp.ones((3, 2)), jnp.array([0.0, 1.0])))
      [[3. 4.]
       [3. 4.]]

    References:
      Goodfellow, Bengio and Courville 2016, "Deep Learning", section 6.5.
    """
    return _of_options(_options(False, num_feature_axes, precision), x, kernel, bias)


def relu(x: ArrayLike) -> jax.Array:
    """Rectified linear unit: `max(x, 0)`.

    Args:
      x: floating-point array of any shape; differentiable.

    Returns:
      Array of x's shape and dtype. NaN stays NaN.

    Gradient:
      `g` where `x > 0`, else 0 (at 0 too). Kept for it: the output, neither the input nor a mask.

    Raises:
      TypeError: `x` is not a floating-point array.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import jaxnorm as jn
      >>> y, vjp = jax.vjp(jn.relu, jnp.array([-1.0, 0.0, 2.0]))
      >>> print(y, vjp(jnp.ones(3))[0])
      [0. 0. 2.] [0. 0. 1.]

    References:
      Nair and Hinton 2010, "Rectified linear units improve restricted Boltzmann machines".
    """
    x = as_float_array("x", x)
    return with_shardings(_relu, spec_of(x), x)


def affine_relu(
    x: ArrayLike,
    kernel: ArrayLike,
    bias: ArrayLike | None = None,
    *,
    num_feature_axes: int = 1,
    precision: lax.PrecisionLike = None,
) -> jax.Array:
    """Affine layer with a rectifier behind it: `max(x @ kernel + bias, 0)`.

    Args:
      x: floating-point array; its last `num_feature_axes` axes are flattened to D, the others stay; differentiable.
      kernel: float array of shape `(D, M)`; differentiable.
      bias: float array of shape `(M,)`, or None for 0; differentiable.
      num_feature_axes: how many axes make up the features, at least 1; static.
      precision: of the matrix products, forward and backward, as in `jax.lax.dot_general`; static.

    Returns:
      Array of shape `(*batch, M)` and x's dtype, accumulated as in `affine`.

    Gradient:
      Equations (4) and (3) of this module; 0 where the output is 0. Kept for it: `x`, `kernel` and the output.

    Raises:
      TypeError: an array is not floating-point.
      ValueError: `x` has too few axes, or a parameter's shape does not fit.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxnorm as jn
      >>> print(jn.affine_relu(jnp.ones((1, 3)), jnp.array([[1.0, -1.0]] * 3), jnp.array([0.5, 0.5])))
      [[3.5 0. ]]

    References:
      Goodfellow, Bengio and Courville 2016, "Deep Learning", section 6.5.
    """
    return _of_options(_options(True, num_feature_axes, precision), x, kernel, bias)


@jax.custom_vjp
def _relu(x: jax.Array) -> jax.Array:
    return _relu_fwd(x)[0]


def _relu_fwd(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    y = lax.max(x, lax.full_like(x, 0))  # (2)
    return y, y


def _relu_bwd(y: jax.Array, g: jax.Array) -> tuple[jax.Array]:
    return (cotangent_for(y, _rectify(y, g)),)


_relu.defvjp(_relu_fwd, _relu_bwd)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _affine(options: Options, x: jax.Array, kernel: jax.Array, bias: jax.Array | None) -> jax.Array:
    return _affine_fwd(options, x, kernel, bias)[0]


def _affine_fwd(
    options: Options, x: jax.Array, kernel: jax.Array, bias: jax.Array | None
) -> tuple[jax.Array, Residuals]:
    batch = x.shape[: x.ndim - options.num_feature_axes]
    rows = reshape(x, (*batch, kernel.shape[0]))
    y = dot(rows, kernel, (len(batch), 0), compute_dtype(x, kernel, bias), options.precision)  # (1)
    if bias is not None:
        y = y + lax.broadcast_in_dim(cast(bias, y.dtype), y.shape, (y.ndim - 1,))
    y = cast(y, x.dtype)
    if not options.rectify:
        return y, Residuals(x, kernel, bias, None)
    y = lax.max(y, lax.full_like(y, 0))  # (2)
    return y, Residuals(x, kernel, bias, y)


def _affine_bwd(options: Options, kept: Residuals, g: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    x, kernel, bias = kept.x, kept.kernel, kept.bias
    if kept.output is not None:
        g = _rectify(kept.output, g)  # (4)
    dtype = compute_dtype(x, kernel, bias)
    dx = dot(g, kernel, (g.ndim - 1, 1), dtype, options.precision)  # (3)
    dkernel = sum_over_rows(reshape(x, (*g.shape[:-1], kernel.shape[0])), g, dtype, options.precision)  # (3)
    dbias = None if bias is None else cotangent_for(bias, cast(g, dtype))
    return cotangent_for(x, reshape(dx, x.shape)), cotangent_for(kernel, dkernel), dbias


_affine.defvjp(_affine_fwd, _affine_bwd)


def _rectify(output: jax.Array, g: jax.Array) -> jax.Array:
    """Equation (4)."""
    return over_kept(lambda output, g: jnp.where(output > 0, g, 0), output, g)


def _options(rectify: bool, num_feature_axes: int, precision: Any) -> Options:
    """The options, hashable: lax takes a list of two precisions too."""
    return Options(rectify, num_feature_axes, tuple(precision) if isinstance(precision, list) else precision)


def _of_options(options: Options, x: ArrayLike, kernel: ArrayLike, bias: ArrayLike | None) -> jax.Array:
    """An affine layer of checked arrays; its columns are split as the kernel's are, if the rows leave them an axis."""
    x, kernel, bias = _checked(x, kernel, bias, options.num_feature_axes)
    spec = spec_of_entries(*entries_of(x)[: -options.num_feature_axes], entries_of(kernel)[1])
    return with_shardings(functools.partial(shared, _affine, options), spec, x, kernel, bias)


def _checked(x, kernel, bias, num_feature_axes) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """The arrays of an affine layer, checked against each other."""
    x, kernel = as_float_array("x", x), as_float_array("kernel", kernel)
    if static_int("num_feature_axes", num_feature_axes, minimum=1) > x.ndim:
        raise ValueError(f"num_feature_axes must be at most {x.ndim} for x of shape {x.shape}, got {num_feature_axes}")
    features = math.prod(x.shape[x.ndim - num_feature_axes :])
    if kernel.ndim != 2 or kernel.shape[0] != features:
        raise ValueError(
            f"kernel must have shape ({features}, M), the last {num_feature_axes} axes of x of shape {x.shape} "
            f"flattened, got {kernel.shape}"
        )
    return x, kernel, as_parameter("bias", bias, kernel.shape[1:], f"the columns of kernel of shape {kernel.shape}")
