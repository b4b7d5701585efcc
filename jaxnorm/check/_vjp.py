"""`check_vjp`: a rule in reverse mode."""

from collections.abc import Callable, Collection, Sequence
from typing import Any

import jax.numpy as jnp

from jaxnorm.check._derivative import Options, check_derivative
from jaxnorm.check._programs import REVERSE
from jaxnorm.check._report import Report


def check_vjp(
    fun: Callable[..., Any],
    *args: Any,
    reference: Callable[..., Any] | None = None,
    argnums: int | Sequence[int] | None = None,
    checks: Collection[str] | None = None,
    dtypes: Sequence[Any] = (jnp.float32, jnp.bfloat16),
    tolerance: float = 1e-10,
    factor: float = 1.0,
    ulps: float = 2.0,
    rounded_residuals: bool = False,
    directions: int = 16,
    seeds: int = 3,
    seed: int = 0,
    name: str | None = None,
    batch_axes: int | Sequence[int | None] | None = None,
) -> Report:
    """Checks the gradient rule of `fun` at `args`: `<g, J v> == <fun's cotangents of g, v>` for all g and v, and more.

    ====================  ============================================================================================
    check                 what must hold
    ====================  ============================================================================================
    rule                  reported, not judged: whether `fun` has a custom VJP, and rounds to a precision of its own
    primal                the reference's value; the same under `jax.vjp`
    structure             cotangents have their arguments' shapes and dtypes (integers: none), in float64 and `dtypes`
    mixed dtypes          the same where the first argument is of a 16-bit dtype and the others float32, and reversed
    cotangent             each element equals `jax.vjp(reference)`'s in float64, from all outputs and from each alone
    linear                the sum of two cotangents gives the sum of their results, and zero gives zero
    only ... used, alone  unused outputs, and arguments that are not differentiated, change nothing
    differences           the cotangents agree with central differences of `fun` itself, of order 6 in float64
    float32, ...          per element, the error against float64 is at most autodiff's of the reference, see `ulps`
    digits in ...         no element has lost all digits (in that precision) that the rounded arguments determine
    rows permuted, ...    with `batch_axes`: permuted rows, two halves, and added rows give the same results
    transforms            the same under checkpoint, scan, and vmap over each argument and over all
    outside jit           the same where every operation runs by itself; all else is compiled whole
    second order          grad of grad and jvp of grad equal the reference's, or central differences of the cotangents
    cost                  reported, not judged: bytes kept for the backward pass, temporary memory, FLOPs; what runs in
                          a low precision is then compiled by the whole optimizer
    ====================  ============================================================================================

    Without a reference the gradients are checked by differences: along random signs, where an error above the
    tolerance, in whatever elements, is missed with a probability of at most `2**-directions` (and never if it is
    confined to one element), and element by element for arrays of up to 128 elements; second derivatives along at
    most 4. Outputs with a kink or a jump at, or next to, the point are left out; the report says how many. With a
    reference they are compared at kinks too. Low precision has no measure without a reference, and is then checked for
    shapes and dtypes only.

    A `fun` that rounds to float32 whatever its arguments' dtype (as its trace shows) is judged at that precision, and
    the report says so. The bounds then hold what one ulp of each argument changes.

    The truth of low precisions is the reference in float64 at the rounded arguments. The row says how many digits of
    the array's largest entry are right in `fun`, and in the reference. Digits that both lose, as `logsumexp - logit`
    does for a confident prediction, are found too, as far as the reference resolves them in float64.

    Only the shapes and values given are checked: call it for even and odd sizes, ties, masks (`search` does). The float
    arguments are taken in float64 whatever `jax_enable_x64` says; integers and booleans as they are. Products are taken
    at the highest precision, unless `jax_default_matmul_precision` is set; the report says at which.

    Args:
      fun: function of arrays or pytrees of arrays, with one or several outputs; bind options by `functools.partial`.
      *args: its arguments. Floats are differentiated; integers, booleans and keys are held.
      reference: plain function of the same arguments and outputs; None checks by central differences.
      argnums: the argument or arguments to differentiate; None is all.
      checks: names out of `differences`, `precision`, `digits` (of `precision`), `mixed dtypes`, `transforms`,
        `outside jit`, `second order`, `cost`, done besides the values and cotangents; None is all, differences only
        where there is no reference, mixed dtypes only where the arguments' are mixed.
      dtypes: the low precisions; one that `fun` raises for is noted and left out.
      tolerance: of float64 comparisons, relative to the largest entry of each array.
      factor: how many times autodiff's error a low precision may make.
      ulps: how many ulps more: of the element, of float32 terms of the results' largest size (sums in another order),
        and of each argument in float32 (what the point's condition makes of rounding).
      rounded_residuals: those terms are as rough as the low precision itself, or as the lowest that `fun` rounds to:
        for a rule that keeps an array in that dtype by design, as a softmax does its output.
      directions: random directions for each argument, for differences.
      seeds: random cotangents, at least 2.
      seed: of all random numbers.
      name: of the report; None is the function's own.
      batch_axes: the axis of each argument along which `fun` works row by row (an int for all, None for an argument
        without one); checks that it does. The outputs' axis is found from their shapes.

    Returns:
      A `Report`: `ok`, `failures`, `rows`, `str()`, `to_dict()`, `raise_if_failed()`. What `fun` raises under a
      transformation is a failure of that check.

    Raises:
      TypeError: an argument is no real array, or none is floating-point.
      ValueError: an option is out of its range, or the reference's outputs are not as many as `fun`'s.
      Exception: whatever `fun` or the reference themselves raise for these arguments.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from jaxnorm.check import check_vjp
      >>> @jax.custom_vjp
      ... def cube(x):
      ...     return x**3
      >>> cube.defvjp(lambda x: (x**3, x), lambda x, g: (2 * x**2 * g,))  # 2 should be 3
      >>> report = check_vjp(cube, jnp.arange(1.0, 4.0), reference=lambda x: x * x * x, checks=())
      >>> report.ok
      False
      >>> print(report.failures[0].split("): ")[1])
      it is 0.666667 times what it should be

    References:
      https://github.com/JuliaDiff/ChainRulesTestUtils.jl (rules tested against differences, for random cotangents).
    """
    options = Options(
        reference=reference,
        argnums=argnums,
        checks=checks,
        dtypes=dtypes,
        tolerance=tolerance,
        factor=factor,
        ulps=ulps,
        rounded_residuals=rounded_residuals,
        directions=directions,
        seeds=seeds,
        seed=seed,
        name=name,
        batch_axes=batch_axes,
    )
    return check_derivative(REVERSE, fun, args, options)
