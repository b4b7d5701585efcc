"""A plugin of pytest with two fixtures; loading it imports nothing, neither jax nor jaxnorm.

`check_rule(fun, *args, reference=..., ...)` is `jaxnorm.check.check_vjp`, named after the test, and fails the test.
`rule_report` is the report of each parameter that `@jaxnorm.check.rule(...)` makes. What they print has the failing
rows alone, all rows with `-v`.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest


@pytest.fixture
def check_rule(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """Checks a rule's gradient and fails the test if it does not hold; returns the report."""

    def check(fun: Callable[..., Any], *args: Any, **options: Any) -> Any:
        from jaxnorm.check import check_vjp

        report = _shown(check_vjp(fun, *args, **{"name": request.node.name, **options}), request)
        report.raise_if_failed()
        return report

    return check


@pytest.fixture
def rule_report(request: pytest.FixtureRequest) -> Any:
    """The report of a parameter of `@jaxnorm.check.rule(...)`."""
    if not hasattr(request, "param"):
        pytest.fail("rule_report is for tests that @jaxnorm.check.rule(...) parametrizes")
    return _shown(request.param.run(), request)


def _shown(report: Any, request: pytest.FixtureRequest) -> Any:
    return dataclasses.replace(report, brief=request.config.get_verbosity() < 1)
