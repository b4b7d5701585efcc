"""`prove`: equality in exact arithmetic, by random points of finite fields."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from jaxnorm.check._proof.decide import Outcome, decide
from jaxnorm.check._proof.machine import Undecided
from jaxnorm.check._proof.problem import problem_of
from jaxnorm.check._proof.report import Proof
from jaxnorm.check._proof.several import drawn, of_shapes


def prove(
    fun: Callable[..., Any],
    *args: Any,
    reference: Callable[..., Any],
    argnums: Sequence[int] | int | None = None,
    error: float = 2**-40,
    order: int = 1,
    seed: int = 0,
    branches: Any = None,
    max_examples: int = 20,
    shapes: Sequence[Sequence[Sequence[int]]] = (),
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
      branches: draws further arguments, which may lie in other branches: a function of a `numpy.random.Generator` that
        returns a tuple of arguments, or a hypothesis strategy of such tuples. All are proven, or the first is named
        that is not.
      max_examples: how many `branches` draws.
      shapes: further shapes to prove it for: of each a sequence, with a shape for every argument. The elements are
        those of `args`, drawn again. Nothing follows for shapes that are not among these.

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
      >>> def positive_part(x):
      ...     return jnp.where(x > 0, x, 0)
      >>> proof = prove(jax.nn.relu, x, reference=positive_part, branches=lambda rng: (rng.normal(size=3),))
      >>> proof.holds, proof.calls, proof.branches
      (True, 21, 7)

    References:
      Schwartz 1980, https://doi.org/10.1145/322217.322225, and Zippel 1979 (polynomials at random points);
      Wu et al. 2025, https://arxiv.org/abs/2405.05751 (exponentials over two primes).
    """
    if not 0 < error < 1:
        raise ValueError(f"error must lie between 0 and 1, got {error}")
    if order not in (1, 2):
        raise ValueError(f"order must be 1 or 2, got {order}")
    calls = [args, *drawn(branches, max_examples, seed), *of_shapes(args, shapes, seed)]
    rng, traced = np.random.default_rng(seed), functools.partial(problem_of, fun, reference)
    problem, found = None, []
    with jax.enable_x64(True):
        for call in calls:
            try:
                problem = problem and problem.at(call) or traced(call, argnums, order, rng)
                found.append((call, decide(problem, error / len(calls), rng)))
            except Undecided as undecided:
                found.append((call, [Outcome(None, 1.0, reason=str(undecided))]))
            if any(outcome.holds is False for outcome in found[-1][1]):
                break
    return _proof(getattr(fun, "__name__", type(fun).__name__), found)


def _proof(name: str, found: list[tuple[tuple[Any, ...], list[Outcome]]]) -> Proof:
    """Of all platforms and calls: wrong if one is, undecided if one is."""
    outcomes = [outcome for _, of_call in found for outcome in of_call]
    worst = min(outcomes, key=lambda o: (o.holds is not False, o.holds is not None, -o.error))
    platforms = dict.fromkeys(o.platform or "others" for o in outcomes)
    shapes = dict.fromkeys(tuple(np.shape(leaf) for leaf in jax.tree.leaves(call)) for call, _ in found)
    return Proof(
        name,
        worst.holds,
        min(1.0, sum(max(outcome.error for outcome in of_call) for _, of_call in found)),
        worst.branch,
        worst.difference,
        worst.reason,
        tuple(dict.fromkeys(text for outcome in outcomes for text in outcome.assumptions)),
        tuple(platforms) if len(platforms) > 1 else (),
        len(found),
        len({tuple(outcome.decided for outcome in of_call) for _, of_call in found}),
        tuple(shapes),
    )
