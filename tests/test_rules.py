"""Every public rule by the library's own checker, over the whole table of cases."""

import jax.numpy as jnp
import pytest
from support import CASES, CHOSEN, is_float, over

import jaxnorm as jn
from jaxnorm.check import check_vjp
from jaxnorm.check._cases import Case
from jaxnorm.check._library import check_case


@pytest.mark.quick
@pytest.mark.thorough  # test_rule says more, and takes longer
@pytest.mark.usefixtures("quick_compilation")
@over([case for case in CASES if case is next(c for c in CASES if c.name == case.name)])
def test_first_case(case: Case):
    """Values and cotangents of every function in float64."""
    check_case(case, checks=["precision"], dtypes=[]).raise_if_failed()


FIRST = [case for case in CASES if case is next(c for c in CASES if c.name == case.name)]


@over(FIRST)
def test_rule(case: Case):
    """Values, cotangents, transformations and second derivatives in float64; bfloat16 against autodiff's."""
    check_case(case, dtypes=[jnp.bfloat16]).raise_if_failed()


@pytest.mark.thorough
@over([case for case in CHOSEN if case not in FIRST])
def test_rule_with_every_option(case: Case):
    check_case(case, dtypes=[jnp.bfloat16]).raise_if_failed()


@pytest.mark.thorough
@over(FIRST)
def test_rule_in_other_dtypes(case: Case):
    check_case(case, checks=["precision"], dtypes=[jnp.float32, jnp.float16]).raise_if_failed()


@pytest.mark.usefixtures("quick_compilation")
@over([case for case in CASES if case not in CHOSEN])
def test_options(case: Case):
    """Of the same rules: what differs by option. A mask takes its own way through vmap."""
    masked = ["transforms"] if "where" in case.args else []
    check_case(case, checks=["precision", *masked], dtypes=[]).raise_if_failed()


@pytest.mark.thorough
@pytest.mark.usefixtures("quick_compilation")
@over([case for case in CASES if case not in CHOSEN])
def test_options_in_bfloat16(case: Case):
    """Which computes in float32."""
    check_case(case, checks=["precision"], dtypes=[jnp.bfloat16]).raise_if_failed()


@pytest.mark.thorough
@pytest.mark.usefixtures("quick_compilation")
@over([case for case in CASES if case not in CHOSEN])
def test_second_order_of_options(case: Case):
    check_case(case, checks=["second order"], dtypes=[]).raise_if_failed()


@pytest.mark.thorough
@pytest.mark.usefixtures("quick_compilation")
@over(CHOSEN)
def test_gradients_against_central_differences(case: Case):
    """Not against the twin: of the function alone."""
    function = case.function(jn)
    # Running statistics and teachers have no gradient by convention; of batch norm the output alone is compared.
    constant = ("stats", "teacher_hidden", "teacher_kernel", "teacher_bias")
    moving = [i for i, (name, value) in enumerate(case.args.items()) if name not in constant and is_float(value)]
    output = (lambda *args: function(*args)[0]) if case.name == "batch_norm" else function
    check_vjp(output, *case.args.values(), argnums=moving, checks=["differences"]).raise_if_failed()
