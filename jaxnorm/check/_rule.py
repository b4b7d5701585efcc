"""`rule`: a rule's checks as parameters of a test."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxnorm.check._report import Report
from jaxnorm.check._search import search
from jaxnorm.check._vjp import check_vjp


@dataclasses.dataclass(frozen=True)
class Checked:
    """One parameter: run when its test runs."""

    fun: Callable[..., Any]
    arguments: Any  # a tuple of arguments, or a strategy of them
    options: dict[str, Any]

    def run(self) -> Report:
        """The check, or the search."""
        if not _is_strategy(self.arguments):
            return check_vjp(self.fun, *self.arguments, **self.options)
        return search(self.fun, self.arguments, **{k: v for k, v in self.options.items() if k != "dtypes"})


def rule(
    fun: Callable[..., Any],
    *,
    over: Mapping[str, Any],
    reference: Callable[..., Any] | None = None,
    dtypes: Sequence[Any] | None = None,
    **options: Any,
) -> Any:
    """Parametrizes a test of pytest by a rule, its arguments and dtypes; the test gets a `rule_report` for each.

    The plugin that provides `rule_report` comes with this library; it does nothing for tests that do not ask for it.
    Programs in float64 are compiled once for all dtypes.

    Args:
      fun: the rule.
      over: by name, tuples of arguments for `check_vjp`, or hypothesis strategies of them for `search`.
      reference: plain function of the same arguments.
      dtypes: low precisions, each a parameter of its own; None is those of `check_vjp`, as one. A strategy draws its
        own.
      **options: of `check_vjp`, or of `search` for strategies: `checks=()` makes it fast.

    Returns:
      A `pytest.mark.parametrize` of `rule_report`.

    Raises:
      ImportError: pytest is not installed.

    Example:
      >>> import jax.numpy as jnp
      >>> import numpy as np
      >>> import jaxnorm as jn
      >>> from jaxnorm.check import rule
      >>> @rule(jn.relu, over={"odd": (np.ones(3),)}, reference=jn.reference.relu)
      ... def test_relu(rule_report):
      ...     rule_report.raise_if_failed()

    References:
      https://docs.pytest.org/en/stable/how-to/parametrize.html (parametrization).
    """
    try:
        import pytest
    except ImportError as error:
        raise ImportError("rule parametrizes tests of pytest: pip install 'jaxnorm[check]'") from error
    options = {"reference": reference, **options}
    every = []
    for label, arguments in over.items():
        for dtype in dtypes if dtypes is not None and not _is_strategy(arguments) else (None,):
            of_dtype = options if dtype is None else {**options, "dtypes": [dtype]}
            ident = label if dtype is None else f"{label}-{np.dtype(dtype).name}"
            every.append(pytest.param(Checked(fun, arguments, of_dtype), id=ident))
    return pytest.mark.parametrize("rule_report", every, indirect=True)


def _is_strategy(arguments: Any) -> bool:
    return hasattr(arguments, "flatmap")
