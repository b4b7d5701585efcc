"""`search`: the smallest arguments for which a rule does not hold."""

import dataclasses
from collections.abc import Callable, Collection, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnorm.check._derivative import Options, name_of
from jaxnorm.check._problem import is_float
from jaxnorm.check._programs import Failed
from jaxnorm.check._report import Report, Row
from jaxnorm.check._vjp import check_vjp


def search(
    fun: Callable[..., Any],
    strategy: Any,
    *,
    reference: Callable[..., Any] | None = None,
    max_examples: int = 50,
    argnums: int | Sequence[int] | None = None,
    checks: Collection[str] = (),
    tolerance: float = 1e-10,
    rounded_residuals: bool = False,
    seed: int = 0,
    name: str | None = None,
) -> Report:
    """Looks for arguments for which `check_vjp` fails, and shrinks what it finds to the smallest.

    Examples that the reference itself raises for are no examples. Arguments that are drawn in a 16- or 32-bit dtype are
    also judged in it, as by the check `precision`; values and cotangents are compared in float64 in any case. Each new
    shape is compiled, which takes most of the time.

    Args:
      fun: function of arrays or pytrees of arrays; bind options by `functools.partial`.
      strategy: a hypothesis strategy of its arguments: of tuples, or of one array. `strategies` has some.
      reference: plain function of the same arguments; None checks by central differences, as `check_vjp` does.
      max_examples: how many are tried before it is said that they hold.
      argnums: the argument or arguments to differentiate; None is all.
      checks: names of checks of `check_vjp`, done besides values, cotangents, shapes and dtypes.
      tolerance: of float64 comparisons, relative to the largest entry of each array.
      rounded_residuals: as of `check_vjp`.
      seed: of the examples.
      name: of the report; None is the function's own.

    Returns:
      A `Report`: that of `check_vjp` for the smallest failing arguments, with the line of Python that makes it as its
      `code`; or one row that says how many examples hold.

    Raises:
      ImportError: hypothesis is not installed.
      ValueError: `max_examples` is not positive, a check is unknown, or there was no example without an error of the
        reference's.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from jaxnorm.check import search, strategies
      >>> @jax.custom_vjp
      ... def total(x):
      ...     return jnp.sum(x * x)
      >>> total.defvjp(lambda x: (total(x), x), lambda x, g: (2 * x * g / (x.shape[-1] != 3),))  # wrong for size 3
      >>> report = search(total, strategies.arrays(dims=[1]), reference=lambda x: jnp.sum(x * x))
      >>> print(report.rows[0].note.split(": ")[1], "|", report.code.split("[")[0])
      float64[3] | check_vjp(total, np.array(

    References:
      https://hypothesis.readthedocs.io (strategies and shrinking).
    """
    if max_examples < 1:
        raise ValueError(f"max_examples must be at least 1, got {max_examples}")
    examined = _Examined(fun, reference, argnums, tuple(checks), tolerance, rounded_residuals, name or name_of(fun))
    count, last = _shrunk(strategy, examined, max_examples, seed)
    if last is None and not count:
        raise ValueError("strategy must draw arguments that the reference takes: it raised for every example")
    if last is None:
        return Report(examined.name, (Row("search", "arguments", True, note=f"{count} examples hold"),))
    args, report = last
    kinds = ", ".join(f"{np.asarray(a).dtype}{list(np.shape(a))}" for a in jax.tree.leaves(args))
    row = Row("search", "arguments", True, note=f"the smallest failing of {count} examples: {kinds}")
    return dataclasses.replace(report, rows=(row, *report.rows), code=examined.code(args))


def _shrunk(strategy: Any, examined: "_Examined", max_examples: int, seed: int) -> tuple[int, Any]:
    """How many examples were examined, and the smallest that failed with its report."""
    try:
        import hypothesis
        from hypothesis.errors import Unsatisfiable
    except ImportError as error:
        raise ImportError("searching needs hypothesis: pip install 'jaxnorm[check]'") from error
    count, last = 0, None

    @hypothesis.seed(seed)
    @hypothesis.settings(parent=_quiet(hypothesis), max_examples=max_examples)
    @hypothesis.given(strategy)
    def run(example: Any) -> None:
        nonlocal count, last
        args = example if isinstance(example, tuple) else (example,)
        hypothesis.assume(examined.makes_sense(args))
        count += 1
        report = examined(args)
        if not report.ok:
            last = args, report  # hypothesis runs the smallest one last
            raise _Fails

    try:
        run()
    except _Fails:
        pass
    except Unsatisfiable:
        count = 0
    return count, last


def _quiet(hypothesis: Any) -> Any:
    """Settings that keep nothing and print nothing: the report says it all."""
    return hypothesis.settings(
        deadline=None,
        database=None,
        report_multiple_bugs=False,
        suppress_health_check=list(hypothesis.HealthCheck),
        phases=(hypothesis.Phase.generate, hypothesis.Phase.shrink),
        verbosity=hypothesis.Verbosity.quiet,
    )


class _Fails(Exception):
    """The rule does not hold for an example."""


@dataclasses.dataclass(frozen=True)
class _Examined:
    """A rule, and how it is judged."""

    fun: Callable[..., Any]
    reference: Callable[..., Any] | None
    argnums: Any
    checks: tuple[str, ...]
    tolerance: float
    rounded_residuals: bool
    name: str

    def __post_init__(self) -> None:
        # Raises for what no example could make right.
        Options(self.reference, self.argnums, self.checks, (), 0, 0, 0, False, 1, 2, 0, None)

    def makes_sense(self, args: Any) -> bool:
        """Whether the reference takes the arguments."""
        if self.reference is None:
            return True
        try:
            jax.eval_shape(self.reference, *args)
        except Exception:
            return False
        return True

    def __call__(self, args: Any) -> Report:
        try:
            jax.eval_shape(self.fun, *args)
        except Exception as error:
            return Report(self.name, (Row("primal", "arguments", False, note=f"fun {Failed.by(error).text}"),))
        return check_vjp(self.fun, *args, name=self.name, **self._options(args))

    def _options(self, args: Any) -> dict[str, Any]:
        found = {np.dtype(a.dtype) for a in jax.tree.leaves(args) if is_float(a)}
        low = sorted((d for d in found if jnp.finfo(d).bits < 64), key=str)
        by = () if self.reference else ("differences",)
        checks = [*self.checks, *by, *(["precision"] if low and self.reference else [])]
        options: dict[str, Any] = {"reference": self.reference, "checks": list(dict.fromkeys(checks))}
        options |= {"dtypes": low, "argnums": self.argnums, "tolerance": self.tolerance}
        return options | {"rounded_residuals": self.rounded_residuals}

    def code(self, args: Any) -> str:
        """A line that does to these arguments what the search did."""
        options = self._options(args)
        dtypes = ", ".join(_dtype(d) for d in options["dtypes"])
        plain = {k: v for k, v in options.items() if k in ("argnums", "rounded_residuals") and v not in (None, False)}
        plain |= {"tolerance": self.tolerance} if self.tolerance != 1e-10 else {}
        shown = [_name(self.fun, "fun"), *map(literal, args)]
        shown += [f"reference={_name(self.reference, 'reference')}"] if self.reference else []
        shown += [f"checks={options['checks']}", f"dtypes=[{dtypes}]", *(f"{k}={v}" for k, v in plain.items())]
        return f"check_vjp({', '.join(shown)})"


def _name(fun: Any, otherwise: str) -> str:
    name = name_of(fun)
    return name if name.isidentifier() else otherwise


def literal(value: Any) -> str:
    """An argument as Python: an array, or a pytree of them."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key!r}: {literal(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        inner = ", ".join(map(literal, value))
        return f"[{inner}]" if isinstance(value, list) else f"({inner}{',' * (len(value) == 1)})"
    if not hasattr(value, "dtype"):
        return repr(value)
    array = np.asarray(value)
    module = "jnp" if array.dtype.kind == "V" or array.dtype.name.startswith(("bfloat", "float8")) else "np"
    if not array.size:
        return f"{module}.zeros({array.shape}, {_dtype(array.dtype)})"
    text = repr(array.tolist()).replace("inf", "np.inf").replace("nan", "np.nan")
    return f"{module}.array({text}, {_dtype(array.dtype)})"


def _dtype(dtype: Any) -> str:
    name = np.dtype(dtype).name
    return f"np.{name}" if hasattr(np, name) and name != "bool" else f"jnp.{name}" if name != "bool" else "bool"
