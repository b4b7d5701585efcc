"""Proves a custom VJP: values, every cotangent, both second derivatives, transformations, low precision and cost.

    from jaxnorm.check import check_vjp
    check_vjp(my_function, x, labels, reference=plain_function).raise_if_failed()

`reference` is a plain `jax.numpy` function of the same arguments; without one the rule is checked against central
differences of the function itself. `python -m jaxnorm check` does it to this library.
"""

from jaxnorm.check import strategies
from jaxnorm.check._cost import saved_bytes
from jaxnorm.check._jvp import check_jvp
from jaxnorm.check._mesh import check_mesh
from jaxnorm.check._proof.report import Difference, Proof
from jaxnorm.check._prove import prove
from jaxnorm.check._report import Report, Row
from jaxnorm.check._rule import rule
from jaxnorm.check._search import search
from jaxnorm.check._vjp import check_vjp

__all__ = [
    "Difference",
    "Proof",
    "Report",
    "Row",
    "check_jvp",
    "check_mesh",
    "check_vjp",
    "prove",
    "rule",
    "saved_bytes",
    "search",
    "strategies",
]


def __dir__() -> list[str]:
    return __all__
