"""Every public rule by the library's own checker, over the whole table of cases."""

import jax.numpy as jnp
from support import CASES, CHOSEN, is_float, over

import jaxnorm as jn
from jaxnorm.cases import Case
from jaxnorm.check import check_vjp
from jaxnorm.check._library import check_case


@over(CASES)
def test_rule(case: Case):
    """Values, cotangents, transformations and second derivatives in float64; low precisions against autodiff's."""
    if case in CHOSEN:
        report = check_case(case, dtypes=(jnp.float32, jnp.bfloat16, jnp.float16))
    else:  # the other checks differ by rule, not by option; a mask takes its own way through vmap
        masked = ["transforms"] if "where" in case.args else []
        report = check_case(case, checks=["precision", "second order", *masked])
    report.raise_if_failed()


@over(CHOSEN)
def test_gradients_against_central_differences(case: Case):
    """Not against the twin: of the function alone."""
    function = case.function(jn)
    moving = [i for i, (name, value) in enumerate(case.args.items()) if name != "stats" and is_float(value)]
    # Running statistics have no gradient by convention: batch norm's output alone is compared.
    output = (lambda *args: function(*args)[0]) if case.name == "batch_norm" else function
    check_vjp(output, *case.args.values(), argnums=moving, checks=["differences"]).raise_if_failed()
