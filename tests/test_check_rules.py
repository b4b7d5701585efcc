"""The checker on rules as others write them: their own precision, mixed dtypes, rounded residuals, forward mode."""

import re
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import normal
from test_check import add_bias, custom, matmul, plain

import jaxnorm as jn
from jaxnorm.check import Report, check_jvp, check_vjp
from jaxnorm.check._report import Row, compare

pytestmark = pytest.mark.usefixtures("quick_compilation")

LABELS = np.array([1, 4, 0, 6])


def cross_entropy(x, labels):
    """As most write it: right, and without digits for a confident prediction."""
    return jax.nn.logsumexp(x, -1) - jnp.take_along_axis(x, labels[:, None], -1)[:, 0]


def in_float32(wrong: str = "", cast: bool = True) -> Callable[..., Any]:
    """A cross-entropy that computes in float32 whatever it is given."""

    def value(x, labels):
        return cross_entropy(x.astype(jnp.float32), labels)

    def backward(residuals, g):
        x, labels = residuals
        p = jax.nn.softmax(x.astype(jnp.float32), -1)
        dx = (p - jax.nn.one_hot(labels, x.shape[-1], dtype=p.dtype)) * g[:, None].astype(p.dtype)
        dx = dx.at[0].multiply(1.001) if wrong == "row" else dx
        return dx.astype(x.dtype) if cast else dx, None

    return custom(value, lambda x, labels: (value(x, labels), (x, labels)), backward)


def test_a_rule_that_fixes_float32_is_judged_at_that_precision_and_said_to_be():
    for seed in range(2):
        report = check_vjp(in_float32(), normal(4, 7, seed=seed), LABELS, reference=cross_entropy)
        report.raise_if_failed()
    assert any(row.about == "precision" and "float32" in row.note for row in report.rows)
    assert check_vjp(in_float32(cast=False), normal(4, 7), LABELS, reference=cross_entropy, dtypes=[jnp.float32]).ok
    assert check_vjp(in_float32(), normal(4, 7), LABELS, checks=["differences"]).ok
    large = 1e4 + normal(4, 7)
    assert check_vjp(in_float32(), large, LABELS, reference=cross_entropy, checks=[]).ok  # its condition explains it


def test_a_real_error_of_such_a_rule_is_found():
    report = check_vjp(in_float32("row"), normal(4, 7), LABELS, reference=cross_entropy)
    assert report.failures[0].startswith("cotangent: x at [0") and "elements are wrong" in report.failures[0]
    alone = check_vjp(in_float32("row"), normal(4, 7), LABELS, checks=["differences"])
    assert alone.failures[0].startswith("differences: x at [0")


def test_mixed_dtypes_are_asked_where_the_arguments_are_mixed_and_never_hide_a_wrong_value():
    rule, args = add_bias("mixed"), (normal(5, 5), normal(5))

    def backward(residuals, g):
        return g.astype(residuals[0].dtype), g.sum(0)  # right for one dtype

    rule = custom(plain(rule), lambda x, bias: (x + bias[None], (x, bias)), backward)
    assert check_vjp(rule, *args, reference=plain(rule), checks=[]).ok
    mixed = normal(5, 5, dtype=jnp.bfloat16), normal(5, dtype=jnp.float32)
    for report in (
        check_vjp(rule, *mixed, reference=plain(rule)),
        check_vjp(rule, *args, reference=plain(rule), checks=["mixed dtypes"]),
    ):
        assert len(report.failures) == 1 and report.failures[0].startswith("mixed dtypes: ")
        assert "cast to the argument's dtype" in report.failures[0]

    def twice(residuals, g):
        return 2 * g.astype(jnp.float32), g.sum(0)

    wrong = custom(plain(rule), lambda x, bias: (x + bias[None], (x, bias)), twice)
    found = check_vjp(wrong, *mixed, reference=plain(rule)).failures
    assert found[0].startswith("cotangent: x at") and "it is 2 times" in found[0] and len(found) > 2


def keeps(dtype: Any) -> Callable[..., Any]:
    """Keeps its argument rounded."""

    def backward(kept, g):
        return (jnp.cos(kept.astype(g.dtype)) * g,)

    return custom(lambda x: jnp.sin(x), lambda x: (jnp.sin(x), x.astype(dtype)), backward)


def test_the_message_of_a_rounded_residual_names_the_option():
    x = normal(6, 8)
    for found in (
        check_vjp(keeps(jnp.bfloat16), x, reference=jnp.sin, checks=[], dtypes=[jnp.float32]),
        check_vjp(keeps(jnp.float16), x, reference=jnp.sin, checks=["precision"], dtypes=[jnp.float32]),
    ):
        assert not found.ok and all("rounded_residuals=True" in failure for failure in found.failures), found
    option = {"reference": jnp.sin, "rounded_residuals": True, "dtypes": [jnp.float32]}
    assert check_vjp(keeps(jnp.bfloat16), x, **option).ok
    wrong = custom(jnp.sin, lambda x: (jnp.sin(x), x), lambda x, g: (1.1 * jnp.cos(x) * g,))
    assert check_vjp(wrong, x, **option).failures[0].startswith("cotangent: x at")


def test_only_what_every_element_says_is_said():
    def says(got, wanted):
        return compare("a", "b", np.asarray(got), np.asarray(wanted), 1e-10).note

    assert says([2.0, 4.0], [1.0, 2.0]) == "it is 2 times what it should be"
    assert says([2e6, 4e6, 0.5], [1e6, 2e6, 0.5]) == "2 of 3 elements are wrong"
    assert says([0.0, 0.0], [1.0, 2.0]) == "it is 0 everywhere"
    assert "times" not in says([1.0 + 1e-8, 2.0], [1.0, 2.0])
    assert says([2.0, 0.0], [1.0, 0.0]) == "1 of 2 elements are wrong"  # one element says nothing of a factor


@pytest.mark.parametrize(
    ("fun", "note"),
    [(jnp.sin, "no custom VJP: its gradient is JAX's"), (jax.nn.relu, "a custom JVP, and no custom VJP")],
)
def test_a_function_without_a_rule_is_said_to_have_none(fun, note: str):
    report = check_vjp(fun, normal(3), checks=["differences"], name="mine")
    assert report.ok and report.name == "mine" and report.rows[0].about == "fun" and note in report.rows[0].note
    assert not any(row.check == "rule" for row in check_vjp(jax.jit(jn.relu), normal(3), checks=[]).rows)
    assert re.search(r"jax [\d.]+, \w+ .*precision 'highest', forced", str(report))


# --- digits -----------------------------------------------------------------------------------------------------------


def leads(by: float) -> np.ndarray:
    x = np.array(normal(4, 7) / 4)
    x[np.arange(4), LABELS] += by
    return x


def test_digits_that_the_reference_loses_too_are_found():
    rule = in_float32()
    report = check_vjp(rule, leads(25.0), LABELS, reference=cross_entropy, checks=["precision", "digits"])
    lost = [f for f in report.failures if f.startswith("digits in float32: x at")]
    assert lost and "the reference in float32 loses them too" in lost[0] and report.failures[0].startswith("digits")
    assert any("0.0 correct digits, the reference 0.0" in row.note for row in report.rows if row.check == "float32")
    mine = jn.softmax_cross_entropy_with_integer_labels
    options: dict[str, Any] = {"checks": ["precision", "digits"], "dtypes": [jnp.float32]}
    check_vjp(mine, leads(25.0), LABELS, reference=cross_entropy, **options).raise_if_failed()
    check_vjp(rule, normal(4, 7), LABELS, reference=cross_entropy, **options).raise_if_failed()


def test_what_is_zero_on_paper_has_no_digits_to_lose():
    rule = custom(lambda x: jax.nn.softmax(x).sum(-1), lambda x: (jax.nn.softmax(x).sum(-1), x), lambda x, g: (0 * x,))
    reference = plain(rule)
    check_vjp(rule, normal(4, 7), reference=reference, dtypes=[jnp.float32]).raise_if_failed()


def test_a_one_pass_variance_is_found():
    def one_pass(x):
        variance = (x * x).mean(-1, keepdims=True) - x.mean(-1, keepdims=True) ** 2
        return (x - x.mean(-1, keepdims=True)) * jax.lax.rsqrt(jnp.maximum(variance, 0) + 1e-5)

    options: dict[str, Any] = {"checks": ["precision", "digits"], "dtypes": [jnp.float32], "tolerance": 1e-6}
    assert check_vjp(one_pass, normal(4, 32), reference=one_pass, **options).ok
    found = check_vjp(one_pass, 1e4 + normal(4, 32), reference=one_pass, **options).failures
    assert found and found[0].startswith("digits in float32: ")


# --- forward mode -----------------------------------------------------------------------------------------------------


def product(wrong: str = "") -> Callable[..., Any]:
    @jax.custom_jvp
    def scaled(x, w):
        return {"product": x * w[None], "sum": jnp.sum(x)}

    @scaled.defjvp
    def _(at, tangents):
        (x, w), (dx, dw) = at, tangents
        change = dx * w[None] + x * dw[None]
        change = {"term": dx * w[None], "affine": change + 1, "factor": 1.5 * change}.get(wrong, change)
        if wrong == "second":
            change = dx * w[None] + jax.lax.stop_gradient(x) * dw[None]
        if wrong == "bfloat16" and x.dtype == jnp.bfloat16:
            change = change * jnp.asarray(1.1, x.dtype)
        return scaled(x, w), {"product": change.astype(x.dtype), "sum": jnp.sum(dx)}

    return scaled


def scaled_plain(x, w):
    return {"product": x * w[None], "sum": jnp.sum(x)}


@pytest.mark.parametrize(
    ("wrong", "failure"),
    [
        ("term", "tangent: output['product'] at"),
        ("affine", "tangent: output['product'] at"),
        ("factor", "tangent: output['product'] at"),
        ("second", "grad of jvp: x at"),
        ("bfloat16", "bfloat16: output['product'] at"),
    ],
)
def test_a_wrong_tangent_rule_is_rejected(wrong: str, failure: str):
    found = check_jvp(product(wrong), normal(4, 3), normal(3), reference=scaled_plain).failures
    assert found[0].startswith(failure), found
    if wrong in ("term", "factor"):
        alone = check_jvp(product(wrong), normal(4, 3), normal(3), checks=["differences"]).failures
        assert alone and all(f.startswith("differences: ") for f in alone)


def test_right_tangent_rules_are_accepted():
    for seed in range(2):
        args = normal(4, 3, seed=seed), normal(3, seed=seed)
        check_jvp(product(), *args, reference=scaled_plain, seed=seed).raise_if_failed()
    check_jvp(product(), normal(4, 3), normal(3)).raise_if_failed()
    check_jvp(jax.nn.softmax, normal(4, 3), reference=jn.reference.softmax, checks=[]).raise_if_failed()
    assert "no custom JVP" in check_jvp(jnp.sin, normal(3), checks=[]).rows[0].note
    assert "no forward mode" in check_jvp(jn.relu, normal(3), reference=jn.reference.relu).failures[0]


# --- row by row, other settings ---------------------------------------------------------------------------------------


def test_rows_permuted_split_and_padded():
    rule, args = matmul(), (normal(4, 3), normal(3, 5))
    check_vjp(rule, *args, reference=plain(rule), checks=[], batch_axes=(0, None)).raise_if_failed()
    centred = partial(check_vjp, lambda x: x - x.mean(0), normal(4, 3), checks=[])
    assert {f.split(":")[0] for f in centred(batch_axes=0).failures} == {"batch split", "padding added"}

    def wrong(x):  # depends on the place of a row
        return x * jnp.arange(x.shape[0], dtype=x.dtype)[:, None]

    assert check_vjp(wrong, normal(4, 3), checks=[], batch_axes=-2).failures[0].startswith("rows permuted: ")
    for axes, message in (((0,), "one per argument"), ((0, 1), "axes of one size"), ((2, None), "axes of the arg")):
        with pytest.raises(ValueError, match=f"batch_axes must .*{message}"):
            check_vjp(rule, *args, batch_axes=axes)


def test_under_the_successor_of_custom_vjp():
    code = """if True:
        import jax, jax.numpy as jnp, numpy as np
        jax.config.update("jax_custom_vjp3", True)
        from jaxnorm.check import check_vjp
        for factor in (1, 2):
            rule = jax.custom_vjp(lambda x, w: x * w)
            rule.defvjp(lambda x, w: (x * w, (x, w)), lambda kept, g: (g * kept[1], factor * (g * kept[0]).sum(0)))
            report = check_vjp(rule, np.ones((4, 3)), np.ones(3), reference=lambda x, w: x * w)
            print(report.ok, report.rows[0].check, *report.failures)
    """
    lines = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.splitlines()
    assert lines[0] == "True structure" and lines[1].startswith("False structure cotangent: w at"), lines


def test_failures_come_in_order_of_gravity():
    names = ("mixed dtypes", "structure", "bfloat16", "digits in bfloat16", "vmap over x", "cotangent", "primal")
    rows = tuple(Row(name, "x", False, note="n") for name in names)
    found = [f.split(":")[0] for f in Report("r", rows).failures]
    assert found == [
        "primal",
        "cotangent",
        "vmap over x",
        "bfloat16",
        "digits in bfloat16",
        "structure",
        "mixed dtypes",
    ]


def test_forward_mode_has_no_cost_to_report():
    with pytest.raises(ValueError, match="checks must not ask for the cost of forward mode"):
        check_jvp(jnp.sin, np.ones(2), reference=jnp.sin, checks=["cost"])
