"""`prove`: equality in exact arithmetic, by random points of finite fields."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from jaxnorm.check._proof.decide import Outcome, decide
from jaxnorm.check._proof.machine import Undecided
from jaxnorm.check._proof.problem import problem_of
from jaxnorm.check._proof.report import Proof


def prove(
    fun: Callable[..., Any],
    *args: Any,
    reference: Callable[..., Any],
    argnums: Sequence[int] | int | None = None,
    error: float = 2**-40,
    order: int = 1,
    seed: int = 0,
) -> Proof:
    """Proves that a function and its cotangents are those of a reference, in exact arithmetic.

    Both programs, `fun` with its custom VJP and `reference` with JAX's autodiff, are run over residues modulo primes
    instead of floating-point numbers, at random points. On the branch that the arguments lie in, that is as long as
    every comparison has the outcome that it has for them, both are made of rational functions, roots, exponentials and
    logarithms. Two such expressions that differ agree at a random point with a chance of no more than their degree over
    the size of a prime; agreement at several points is a proof, up to the chance `error`. No tolerance is involved: a
    rule that is wrong by a factor of 1 + 1e-13 does not pass. What is proven is proven for these shapes and this
    branch, for every value of the arguments and of the incoming cotangents, and with `order=2` of theirs.

    It rests on these assumptions, of which those that matter are listed in the proof:

    - A floating-point constant stands for the simplest number that rounds to it: 0.3333333333333333 for 1/3.
    - A constant that is lost in rounding wherever it is added is left out.
    - Functions without an exact meaning here (sine, the error function) are equal for equal arguments; a relation that
      holds among them otherwise is not known. If it would be needed, the proof is undecided.
    - Exponentials of different exponents, and logarithms without a multiplicative relation, are as independent as
      random numbers. For exponents that are linear in the arguments that is a theorem.
    - Rounding to another dtype changes nothing.

    Args:
      fun: the function under proof: any pytrees of arrays in and out, of which floating-point ones are differentiated.
      *args: arguments that lie in the branch of interest. Their values matter for comparisons alone.
      reference: a function of the same arguments whose value and derivatives are right.
      argnums: which arguments to differentiate; None is all that hold floating-point arrays.
      error: the largest chance that functions which differ pass.
      order: 1 for the value and its VJP; 2 also for the VJP of the VJP.
      seed: of all random numbers.

    Returns:
      A `Proof`. Where a program chooses by platform, every choice is proven. `holds` is None where an operation has no
      exact meaning, or rounding decides a comparison: `str()` names it.

    Raises:
      TypeError: an argument is no real array, or none is floating-point.
      ValueError: an option is out of its range, or the reference's outputs have other shapes than `fun`'s.
      Exception: whatever `fun` or the reference themselves raise for these arguments.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from jaxnorm.check import prove
      >>> def rule(factor):
      ...     cube = jax.custom_vjp(lambda x: x**3)
      ...     cube.defvjp(lambda x: (x**3, x), lambda x, g: (factor * x**2 * g,))
      ...     return cube
      >>> x = jnp.arange(1.0, 4.0)
      >>> prove(rule(3.0), x, reference=lambda x: x * x * x).holds
      True
      >>> prove(rule(3.0000000000001), x, reference=lambda x: x * x * x).holds
      False

    References:
      Schwartz 1980, https://doi.org/10.1145/322217.322225, and Zippel 1979 (polynomials at random points);
      Wu et al. 2025, https://arxiv.org/abs/2405.05751 (exponentials over two primes).
    """
    if not 0 < error < 1:
        raise ValueError(f"error must lie between 0 and 1, got {error}")
    if order not in (1, 2):
        raise ValueError(f"order must be 1 or 2, got {order}")
    name, rng = getattr(fun, "__name__", type(fun).__name__), np.random.default_rng(seed)
    with jax.enable_x64(True):
        try:
            outcomes = decide(problem_of(fun, reference, args, argnums, order, rng), error, rng)
        except Undecided as undecided:
            outcomes = [Outcome(None, 1.0, reason=str(undecided))]
    return _proof(name, outcomes)


def _proof(name: str, outcomes: list[Outcome]) -> Proof:
    """Of all platforms: wrong if one is, undecided if one is."""
    worst = min(outcomes, key=lambda o: (o.holds is not False, o.holds is not None, -o.error))
    assumptions = dict.fromkeys(text for outcome in outcomes for text in outcome.assumptions)
    platforms = tuple(o.platform or "others" for o in outcomes) if len(outcomes) > 1 else ()
    return Proof(
        name, worst.holds, worst.error, worst.branch, worst.difference, worst.reason, tuple(assumptions), platforms
    )
