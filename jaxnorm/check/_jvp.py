"""`check_jvp`: a rule in forward mode."""

from collections.abc import Callable, Collection, Sequence
from typing import Any

import jax.numpy as jnp

from jaxnorm.check._derivative import Options, check_derivative
from jaxnorm.check._programs import FORWARD
from jaxnorm.check._report import Report


def check_jvp(
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
) -> Report:
    """Checks the forward mode of `fun` at `args`: `J v == <fun's tangents for v>` for all v, and more.

    The checks are those of `check_vjp`, of tangents in place of cotangents: values, linearity in the tangent, tangents
    of one argument alone, shapes and dtypes, transformations, low precision and lost digits, both second derivatives
    (`grad of jvp`, `jvp of jvp`). `reverse mode` is what JAX makes of the rule by transposing it. Without a reference,
    tangents are checked by central differences. A function with a custom VJP has no forward mode: JAX raises.

    Args:
      fun: function of arrays or pytrees of arrays, with a custom JVP or without; bind options by `functools.partial`.
      *args: its arguments. Floats are differentiated; integers, booleans and keys are held.
      reference: plain function of the same arguments and outputs; None checks by central differences.
      argnums: the argument or arguments to differentiate; None is all.
      checks: as of `check_vjp`, without `cost`: forward mode keeps nothing for a backward pass.
      dtypes: the low precisions; one that `fun` raises for is noted and left out.
      tolerance: of float64 comparisons, relative to the largest entry of each array.
      factor: how many times the error of the reference's own tangents a low precision may make.
      ulps: how many ulps more, as of `check_vjp`.
      rounded_residuals: the terms counted in ulps are as rough as the low precision itself.
      directions: random directions for each argument, for differences.
      seeds: random tangents, at least 2.
      seed: of all random numbers.
      name: of the report; None is the function's own.

    Returns:
      A `Report`.

    Raises:
      TypeError: an argument is no real array, or none is floating-point.
      ValueError: an option is out of its range, or the reference's outputs are not as many as `fun`'s.
      Exception: whatever `fun` or the reference themselves raise for these arguments.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from jaxnorm.check import check_jvp
      >>> @jax.custom_jvp
      ... def cube(x):
      ...     return x**3
      >>> @cube.defjvp
      ... def _(at, tangents):
      ...     return cube(*at), 2 * at[0] ** 2 * tangents[0]  # 2 should be 3
      >>> report = check_jvp(cube, jnp.arange(1.0, 4.0), reference=lambda x: x * x * x, checks=())
      >>> report.ok
      False
      >>> print(report.failures[0].split("): ")[1])
      it is 0.666667 times what it should be

    References:
      https://docs.jax.dev/en/latest/notebooks/Custom_derivative_rules_for_Python_code.html (custom JVPs).
    """
    if "cost" in (checks or ()):
        raise ValueError("checks must not ask for the cost of forward mode, which keeps nothing for a backward pass")
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
    )
    return check_derivative(FORWARD, fun, args, options)
