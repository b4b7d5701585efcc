"""Searching for the smallest arguments that fail, and the plugin of pytest."""

import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import normal
from test_check import custom

import jaxnorm as jn
from jaxnorm.check import check_vjp, search, strategies
from jaxnorm.check._search import literal

pytestmark = pytest.mark.usefixtures("quick_compilation")


def total(wrong_where: Callable[[Any], Any]) -> Callable[..., Any]:
    """A sum of squares whose gradient is wrong for some arguments alone."""
    return custom(
        squares,
        lambda x: (squares(x), x),
        lambda x, g: (jnp.where(wrong_where(x), 1.5, 1).astype(x.dtype) * 2 * x * g.astype(x.dtype),),
    )


def squares(x):
    return jnp.sum(x * x)


def has_ties(x):
    flat = x.reshape(-1)
    return jnp.any((flat[:, None] == flat[None]) & ~jnp.eye(x.size, dtype=bool))


WRONG = "cotangent: x at"
BOTH_DTYPES = {"dims": [1], "dtypes": [jnp.float64, jnp.bfloat16]}


@pytest.mark.parametrize(
    ("wrong_where", "options", "smallest", "first"),
    [
        (lambda x: x.shape[-1] == 3, {"dims": [1]}, (3,), WRONG),
        (lambda x: x.ndim == 2 and x.shape[0] == 2, {"dims": [1, 2]}, (2, 1), WRONG),
        (lambda x: jnp.max(jnp.abs(x), initial=0) > 100, {"dims": [1]}, (1,), WRONG),
        (has_ties, {"dims": [1]}, (2,), WRONG),
        (lambda x: x.dtype == jnp.bfloat16, BOTH_DTYPES, (1,), "bfloat16: x at"),
    ],
    ids=["one size", "one shape", "large values", "a tie", "one dtype"],
)
def test_the_smallest_arguments_are_found_and_reproduce(wrong_where, options, smallest, first):
    rule = total(wrong_where)
    report = search(rule, strategies.arrays(kinds=["ties", "large mean"], **options), reference=squares)
    assert not report.ok and report.code.startswith("check_vjp(squares, ") and report.code in str(report)
    assert report.failures[0].startswith(first), report
    names: dict[str, Any] = {"check_vjp": check_vjp, "squares": rule, "reference": squares, "np": np, "jnp": jnp}
    again = eval(report.code.replace("reference=squares", "reference=reference"), names)
    assert again.failures == report.failures
    assert f"{list(smallest)}" in report.rows[0].note, report.rows[0]


def masked_mean(wrong: bool) -> Callable[..., Any]:
    def value(x, where):
        return jnp.sum(jnp.where(where, x, 0)) / jnp.maximum(jnp.sum(where), 1)

    def backward(where, g):
        count = jnp.sum(where)
        dx = jnp.where(where, g / (count if not wrong else jnp.maximum(count, 2)), 0)
        return dx, None

    return custom(value, lambda x, where: (value(x, where), where), backward)


def test_a_fault_at_one_mask_and_at_one_label():
    from hypothesis import strategies as st

    strategy = st.tuples(strategies.arrays((2, 2)), strategies.masks((2, 2)))
    right, wrong = masked_mean(False), masked_mean(True)
    found = search(wrong, strategy, reference=right.fun, max_examples=30)
    assert found.failures and found.failures[0].startswith(WRONG)
    assert search(right, strategy, reference=right.fun, max_examples=10).ok

    def picked(x, labels):
        return jnp.take_along_axis(x, labels[:, None], 1)[:, 0]

    def backward(kept, g):  # a label out of range wraps to the last class here, and gives NaN in the value
        x, labels = kept
        return jnp.where(labels[:, None] % x.shape[1] == jnp.arange(x.shape[1])[None], g[:, None], 0), None

    rule = custom(picked, lambda x, labels: (picked(x, labels), (x, labels)), backward)
    options: dict[str, Any] = {"reference": picked, "max_examples": 15}
    assert search(rule, strategies.classification(), **options).ok
    found = search(rule, strategies.classification(invalid=True), **options)
    assert found.failures and found.failures[0].startswith(WRONG)


def test_what_the_reference_does_not_take_is_no_example():
    def divided(x):
        if x.size % 2:
            raise ValueError("odd")
        return x.reshape(2, -1).sum(0)

    report = search(divided, strategies.arrays(dims=[1]), reference=divided, max_examples=10)
    assert report.ok and "examples hold" in report.rows[0].note
    only_odd = strategies.arrays((3,))
    with pytest.raises(ValueError, match="strategy must draw arguments that the reference takes"):
        search(divided, only_odd, reference=divided, max_examples=5)
    found = search(divided, strategies.arrays((3,)), reference=squares, max_examples=5)
    assert "fun raises ValueError: odd" in found.failures[0]
    with pytest.raises(ValueError, match="max_examples must be at least 1, got 0"):
        search(divided, only_odd, max_examples=0)
    with pytest.raises(ValueError, match="checks must be among.*'speed'"):
        search(divided, only_odd, checks=["speed"])
    with pytest.raises(ValueError, match="kinds must be among.*'odd'"):
        strategies.arrays(kinds=["odd"])


def test_this_librarys_rules_hold_over_strategies():
    for name, strategy in (
        ("layer_norm", strategies.normalization(dims=[2])),
        ("softmax_cross_entropy_with_integer_labels", strategies.classification(invalid=True, infinite=True)),
        ("conv", strategies.convolution()),
    ):
        report = search(getattr(jn, name), strategy, reference=getattr(jn.reference, name), max_examples=3)
        assert report.ok, report


def test_literals_are_python():
    for value in (
        np.array([[1.5, -np.inf, np.nan]], np.float32),
        np.zeros((0, 3), np.int32),
        np.array([True, False]),
        np.array([1.0, 2.0]).astype(jnp.bfloat16),
        {"a": (np.ones(2), [np.float32(3)])},
        2.5,
    ):
        again = eval(literal(value), {"np": np, "jnp": jnp})
        assert jax.tree.structure(again) == jax.tree.structure(value)
        for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(value), strict=True):
            np.testing.assert_array_equal(np.asarray(a, np.float64), np.asarray(b, np.float64))
            assert np.asarray(a).dtype == np.asarray(b).dtype


# --- the plugin -------------------------------------------------------------------------------------------------------

TESTS = """
import sys
def test_nothing_is_imported_early(): assert "jax" not in sys.modules
def test_fixture(check_rule):
    import jax, numpy as np
    check_rule(jax.numpy.sin, np.ones(3), reference=jax.numpy.sin, checks=[])
def test_wrong(check_rule):
    import jax, numpy as np
    check_rule(lambda x: x * x, np.ones(3), reference=jax.numpy.sin, checks=[])
"""

RULES = """
import jax.numpy as jnp, numpy as np, jaxnorm as jn
from jaxnorm.check import rule, strategies
over = {"odd": (np.ones(3),), "drawn": strategies.arrays((2,))}
@rule(jn.relu, over=over, reference=jn.reference.relu, dtypes=[jnp.float32, jnp.bfloat16], checks=["precision"])
def test_relu(rule_report):
    rule_report.raise_if_failed()
def test_alone(rule_report): pass
"""


def test_the_plugin_is_lazy_and_gives_both_fixtures(tmp_path):
    (tmp_path / "test_first.py").write_text(TESTS)
    (tmp_path / "test_second.py").write_text(RULES)
    loaded = any(point.name == "jaxnorm" for point in entry_points(group="pytest11"))
    plugin = [] if loaded else ["-p", "jaxnorm_pytest"]
    # A file at a time: pytest collects all before it runs any.
    for file, wanted in (("test_first.py", "2 passed"), ("test_second.py", "3 passed")):
        command = [sys.executable, "-m", "pytest", "-p", "no:xdist", *plugin, file, "-rA", "-p", "no:cacheprovider"]
        printed = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300).stdout
        assert wanted in printed, printed
        if file == "test_first.py":
            assert "test_wrong: " in printed and "primal: x" not in printed and "holds" not in printed
        else:
            names = ("odd-float32", "odd-bfloat16", "drawn")
            assert all(f"test_relu[{name}]" in printed for name in names)
            assert "rule_report is for tests that" in printed


def test_rule_makes_parameters():
    from jaxnorm.check import rule

    mark = rule(jn.relu, over={"a": (normal(3),)}, reference=jn.reference.relu, checks=())
    (parameter,) = mark.mark.args[1]
    assert parameter.id == "a" and parameter.values[0].run().ok


def test_a_fault_beyond_ordinary_numbers():
    """A wrong branch that numbers about 0 and large means do not reach."""
    rule = custom(lambda x: x * x, lambda x: (x * x, x), lambda x, g: (jnp.where(x < -5, x, 2 * x) * g,))
    report = search(rule, strategies.arrays(dims=[1]), reference=lambda x: x * x)
    assert not report.ok and report.failures[0].startswith(WRONG) and "np.array([-" in report.code
