"""One device against many: planted faults that only meshes show, and right rules."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from support import normal
from test_check import custom

import jaxnorm as jn
from jaxnorm.check import check_mesh

pytestmark = pytest.mark.usefixtures("quick_compilation")

MESH = jax.make_mesh((4, 2), ("data", "model"))
SPECS = (P("data"), P())


def varying(g: Any, w: Any) -> tuple[str, ...]:
    """The axes that a cotangent must be summed over."""
    of = [getattr(jax.typeof(a), "vma", None) or jax.typeof(a).manual_axis_type.varying for a in (g, w)]
    return tuple(sorted(of[0] - of[1]))


def gain(wrong: str = "") -> Callable[..., Any]:
    """Multiplies rows by a replicated parameter."""

    def backward(residuals, g):
        x, w = residuals
        dw = (g * x).sum(0)
        axes = {"no psum": (), "two psums": ("data",), "wrong axis": ("model",)}.get(wrong, varying(dw, w))
        dw = jax.lax.psum(dw, axes) if axes else dw
        return g * w[None], dw / 4 if wrong == "mean" else dw

    return custom(lambda x, w: x * w[None], lambda x, w: (x * w[None], (x, w)), backward)


def gain_plain(x, w):
    return x * w[None]


def batch_norm(*axes: str) -> Callable[..., Any]:
    """Statistics over the rows of all devices of these axes."""

    def normalized(x):
        def mean(a):
            return jax.lax.pmean(a.mean(0), axes) if axes else a.mean(0)

        centred = x - mean(x)[None]
        return centred * jax.lax.rsqrt(mean(centred**2)[None] + 1e-5)

    return normalized


def batch_norm_plain(x):
    centred = x - x.mean(0)
    return centred * jax.lax.rsqrt((centred**2).mean(0) + 1e-5)


def check(fun: Any, *args: Any, specs: Any = SPECS, **options: Any) -> Any:
    return check_mesh(fun, *args, mesh=MESH, in_specs=specs, **options)


ROWS = {"checks": ["shard_map"]}
X, W = normal(8, 6), normal(6)


@pytest.mark.parametrize(
    ("wrong", "failure", "reason"),
    [
        ("no psum", "shard_map, check_vma on, gradient outside: x, w", "must be summed (psum)"),
        (
            "two psums",
            "shard_map, check_vma off, gradient outside: w at",
            "summed once too often over ('data',), 4 dev",
        ),
        ("mean", "shard_map, check_vma on, gradient outside: w at", "not summed over ('data',), 4 devices, or divided"),
        ("wrong axis", "shard_map, check_vma on, gradient outside: x, w", "must be summed (psum)"),
    ],
)
def test_a_wrong_sum_over_devices_is_rejected(wrong: str, failure: str, reason: str):
    found = check(gain(wrong), X, W, reference=gain_plain, **ROWS).failures
    assert found[0].startswith(failure) and reason in found[0], found


def test_per_device_statistics_and_a_wrong_axis_are_rejected():
    for axes in ((), ("model",)):
        found = check(batch_norm(*axes), X, specs=P("data"), reference=batch_norm_plain, **ROWS).failures
        assert found[0].startswith("shard_map, check_vma on, gradient outside: output at"), found
    averaged = check(lambda x: jnp.mean(x**2) + 0 * x, X, specs=P("data"), reference=lambda x: jnp.mean(x**2) + 0 * x)
    assert averaged.failures[0].startswith("shard_map, check_vma on, gradient outside: output at")
    assert {row.check for row in averaged.rows if row.ok} >= {"auto axes", "explicit axes", "unequal shards"}


def test_values_that_differ_between_replicas_are_rejected():
    def of_device(x):
        return x * (1.0 + jax.lax.axis_index("model"))

    found = check(of_device, X, specs=P("data"), out_specs=P("data"), reference=lambda x: x, **ROWS).failures
    assert any(f.startswith("shard_map, check_vma off, gradient inside: output at [1, ") for f in found), found


@pytest.mark.parametrize(
    ("fun", "args", "specs", "options"),
    [
        (gain(), (X, W), SPECS, {}),
        (gain_plain, (X, W), (P("data", "model"), P("model")), {}),
        (batch_norm("data"), (X,), P("data"), {"reference": batch_norm_plain}),
        (jn.layer_norm, (X, W, W), (P(("data", "model")), P(), P()), {}),
        (
            lambda x, w: (jax.lax.psum((x * w[None]).sum(), "data"), jnp.argmax(x, -1)),
            (X, W),
            SPECS,
            {"reference": lambda x, w: ((x * w[None]).sum(), jnp.argmax(x, -1))},
        ),
        (lambda tree, k: {"y": tree["a"] * tree["b"][None], "k": k}, ({"a": X, "b": W}, np.arange(8)), None, {}),
        (lambda x, w: jnp.sin((x * w[None]).astype(jnp.float32)), (X, W), SPECS, {}),
    ],
    ids=["psum", "both axes", "synced", "layer_norm", "scalar", "pytree", "float32"],
)
def test_right_rules_are_accepted(fun, args, specs, options):
    specs = specs if specs is not None else ({"a": P("data"), "b": P()}, P("data"))
    check(fun, *args, specs=specs, **options).raise_if_failed()


def test_a_function_that_needs_an_axis_is_left_out_under_jit_and_said_to_be():
    report = check(batch_norm("data"), X, specs=P("data"), reference=batch_norm_plain, checks=["auto axes"])
    assert report.ok and [row.note for row in report.rows if "left out: fun takes no whole arrays" in row.note]
    with pytest.raises(ValueError, match="reference must be given.*needs an axis"):
        check(batch_norm("data"), X, specs=P("data"))


def test_a_gather_is_noted_and_judged_where_asked():
    def gathered(x):
        whole = jax.lax.all_gather(x, "data", tiled=True)
        return jax.lax.dynamic_slice_in_dim(whole[::-1][::-1], jax.lax.axis_index("data") * 2, 2)

    options: dict[str, Any] = {"specs": P("data"), "reference": lambda x: x}
    report = check(gathered, X, checks=["shard_map"], **options)
    assert report.ok and any(row.check == "gathers" and "all-gathers" in row.note for row in report.rows)
    judged = check(gathered, X, checks=["shard_map", "gathers"], **options).failures
    assert judged and judged[0].startswith("gathers: shard_map")


def test_what_the_compiler_gets_wrong_is_said_to_be_wrong_in_the_reference_too():
    """XLA's kernel gradient of a grouped convolution, with the batch on one of two axes."""

    def conv(x, kernel):
        numbers = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=numbers, feature_group_count=4)

    report = check(conv, normal(8, 4, 4, 4), normal(3, 3, 1, 4), checks=["auto axes"])
    assert report.ok or "the plain reference is wrong there too" in report.failures[0]


def test_errors_name_the_argument():
    with pytest.raises(ValueError, match="checks must be among.*'speed'"):
        check(gain_plain, X, W, checks=["speed"])
    with pytest.raises(ValueError, match="in_specs must be one per argument, 2"):
        check(gain_plain, X, W, specs=(P("data"),))
    with pytest.raises(ValueError, match="out_specs must be given"):
        check(lambda x: x[:1, :1], X, specs=P("data"), reference=lambda x: x)
    with pytest.raises(ValueError, match="mesh must have several devices, got 1"):
        check_mesh(gain_plain, X, W, mesh=jax.make_mesh((1,), ("data",)), in_specs=SPECS)
