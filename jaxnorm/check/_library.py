"""The checker and the prover over this library's own functions: what its tests and its command line share."""

import os
from typing import Any

import jax
import jax.numpy as jnp

import jaxnorm
from jaxnorm import reference
from jaxnorm.check._cases import Case, all_cases
from jaxnorm.check._derivative import CHECKS
from jaxnorm.check._proof.report import Proof
from jaxnorm.check._prove import prove
from jaxnorm.check._report import Report
from jaxnorm.check._vjp import check_vjp


def brief(case: Case, cases: list[Case]) -> dict[str, Any]:
    """The options of `check_case` that say the most in little time.

    Every check for the first case of each function; for the others values, cotangents, dtypes and bfloat16, since
    transformations and second derivatives differ by rule and not by option.
    """
    if case.label == next(c.label for c in cases if c.name == case.name):  # it may come of another process
        return {}
    return {"checks": ("precision", "digits", "mixed dtypes"), "dtypes": [jnp.bfloat16]}


def check_case(case: Case, **options: Any) -> Report:
    """`check_vjp` of a case against its plain twin; no rule may lean on implicit promotion, of dtypes or of ranks."""
    options = {"checks": CHECKS[1:], **options}  # mixed dtypes too
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        return check_vjp(
            case.function(jaxnorm),
            *case.args.values(),
            reference=case.function(reference),
            rounded_residuals=case.rounded_residuals,
            **options,
        )


def check_in_brief(case: Case) -> Report:
    """`check_case` with the options that say the most in little time."""
    return check_case(case, **brief(case, all_cases()))


def prove_case(case: Case) -> Proof:
    """`prove` of a case against its plain twin: values, cotangents, and the cotangents of those."""
    arrays = (case.args if case.exact is None else case.exact).values()
    return prove(case.function(jaxnorm), *arrays, reference=case.function(reference), order=2)


def share_memory() -> None:
    """Of several processes with one device none takes more of its memory than it needs. To be called first."""
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
