"""`jaxnorm.lowering`: windows of any program by this library's formulations, against JAX's own in float64."""

import functools
import re
from typing import Any

import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from support import assert_close, normal, value_and_vjp

from jaxnorm import lowering

KINDS: dict[str, tuple[Any, float]] = {"max": (lax.max, -np.inf), "min": (lax.min, np.inf), "sum": (lax.add, 0.0)}
X = normal(4, 7, 3)


@pytest.fixture(autouse=True)
def uninstalled():
    """Every test begins and ends with JAX as it was."""
    assert not lowering.report()["installed"]
    yield
    lowering.uninstall()


def windows(x, kind="max", window=(1, 3, 1), strides=(1, 2, 1), padding="SAME", **dilations):
    operation, start = KINDS[kind]
    return lax.reduce_window(x, x.dtype.type(start), operation, window, strides, padding, **dilations)


def pool(x):
    """A maximum and a sum, which XLA's own loop does not take since its window is long."""
    return jnp.sin(windows(x)) + windows(x, "sum", (1, 5, 1))


def check(function, *arrays, left=frozenset(), used=True):
    """The same function with the formulations and without, and that they were there."""
    wanted = jax.jit(function)(*arrays)
    with lowering.installed():
        got = jax.jit(function)(*arrays)
        report = lowering.report()
    assert bool(report["poolings"]) == used and set(report["left"]) <= set(left), report
    assert_close(jax.device_get(got), jax.device_get(wanted))


def test_uninstall_restores_jax_exactly():
    both = jax.jit(lambda x: value_and_vjp(pool, [x], pool(x)))

    def texts():
        lowered = both.lower(X)
        header, *computations = re.sub(r"stack_frame_id=\d+", "", lowered.compile().as_text()).split("\n\n%")
        assert computations and "file_name_id" in header  # where each line was traced, which depends on the order
        return lowered.as_text(), computations

    before = texts()
    lowering.install()
    ours, _ = texts()
    for name in ("stablehlo.reduce_window", "stablehlo.select_and_scatter"):
        assert name in before[0] and name not in ours
    lowering.uninstall()
    assert texts() == before


# --- geometries and dtypes --------------------------------------------------------------------------------------------


@st.composite
def calls(draw):
    """A shape and windows along any of its axes."""
    ndim = draw(st.integers(1, 4))

    def per_axis(low, high):
        return tuple(draw(st.integers(low, high)) for _ in range(ndim))

    window = per_axis(1, 3)
    ends = [(draw(st.integers(0, k)), draw(st.integers(0, k))) for k in window]
    padding = draw(st.sampled_from(["SAME", "VALID"]) | st.just(ends))
    return per_axis(3, 6), {"window": window, "strides": per_axis(1, 3), "padding": padding}


@pytest.mark.thorough
@pytest.mark.usefixtures("quick_compilation")
@settings(max_examples=6, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(calls())
def test_random_windows_match_jaxs_own(call):
    """Ties included: half of the numbers are rounded. The result, the gradient and a second derivative."""
    shape, options = call
    x = jnp.where(normal(*shape, seed=1) > 0, jnp.round(normal(*shape)), normal(*shape))

    def derivatives(x):
        results = []
        for kind in KINDS:
            function = functools.partial(windows, kind=kind, **options)
            finite = jnp.where(jnp.isfinite(y := function(x)), y, 0)  # of windows beyond x
            results.append((y, value_and_vjp(function, [x], jnp.cos(finite))[1]))
            gradient = jax.grad(lambda x, f=function: jnp.sum(jnp.sin(jnp.nan_to_num(f(x)))))
            results.append(jax.grad(lambda x, g=gradient: jnp.sum(g(x) ** 2))(x))
        return results

    wanted = jax.jit(derivatives)(x)
    with lowering.installed():
        assert_close(jax.jit(derivatives)(x), wanted)
        assert set(lowering.report()["left"]) <= {
            "a window of one entry", "a maximum over windows that may lie beyond the array"
        }  # fmt: skip


LEFT = {
    "a dilated window": lambda x: (windows(x, window_dilation=(1, 2, 1)), windows(x, "sum", base_dilation=(1, 2, 1))),
    "a negative padding": lambda x: windows(x, padding=((0, 0), (-1, 1), (0, 0))),
    "a window of one entry": lambda x: windows(x, window=(1, 1, 1), strides=(1, 1, 1)),
    "an empty array": lambda x: windows(x[:0]),
    "a maximum over windows that may lie beyond the array": lambda x: value_and_vjp(
        lambda x: windows(x, padding=((0, 0), (3, 0), (0, 0))), [x], x[:, :4]
    )[1],
    "a dtype that is not floating-point of 16 to 64 bits": lambda x: lax.reduce_window(
        jnp.round(4 * x).astype(int), 0, lax.add, (1, 3, 1), (1, 1, 1), "SAME"
    ),
}


@pytest.mark.parametrize("reason", LEFT)
def test_what_no_equation_is_for_is_left_to_jax(reason):
    wanted = LEFT[reason](X)
    with lowering.installed():
        got = LEFT[reason](X)
        assert list(lowering.report()["left"]) == [reason]
    assert_close(got, wanted)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_narrow_dtypes(dtype):
    """The maximum and its gradient where no digit is lost; sums of 16-bit numbers are accumulated in float32."""
    x = jnp.round(4 * X).astype(dtype)
    check(lambda x: value_and_vjp(windows, [x], windows(x)), x)
    with lowering.installed():
        ones = jnp.ones((1, 4096, 1), dtype)
        assert windows(ones, "sum", (1, 4096, 1), (1, 1, 1), "VALID").item() == 4096


def test_a_nan_is_the_maximum_of_its_window():
    x = X.at[0, 3, 0].set(jnp.nan)
    check(lambda x: (windows(x), windows(x, "min"), windows(x, "sum")), x)


# --- transformations --------------------------------------------------------------------------------------------------


def loss(x):
    return jnp.sum(jnp.sin(pool(x)))


@jax.custom_vjp
def wrapped(x):
    return pool(x)


wrapped.defvjp(lambda x: (wrapped(x), x), lambda kept, g: jax.vjp(pool, kept)[1](2 * g))


@jax.custom_jvp
def forward(x):
    return pool(x)


forward.defjvp(lambda primals, tangents: (forward(*primals), windows(tangents[0], "sum")))

gradient = jax.grad(loss)
FUNCTIONS = {
    "scan": lambda x: lax.scan(lambda c, _: (c - 0.1 * gradient(c), loss(c)), x, None, length=3),
    "while": lambda x: lax.while_loop(lambda c: jnp.sum(c**2) > 9, lambda c: c / 2 - 0.01 * gradient(c), x),
    "cond": lambda x: lax.cond(jnp.sum(x) > 0, gradient, lambda x: 2 * gradient(x), x),
    "remat": jax.grad(lambda x: jnp.sum(jax.checkpoint(pool)(jnp.sin(x)) ** 2)),
    "jvp": lambda x: jax.jvp(pool, (x,), (x**2,)),
    "jvp of grad": lambda x: jax.jvp(gradient, (x,), (x**2,)),
    "grad of grad": jax.grad(lambda x: jnp.sum(gradient(x) ** 2)),
    "custom_vjp": jax.grad(lambda x: jnp.sum(jnp.sin(wrapped(x)))),
    "custom_jvp": lambda x: jax.jvp(forward, (x,), (x,)),
    "linearize": lambda x: jax.linearize(pool, x)[1](x),
    "debug callback": lambda x: (jax.debug.callback(lambda y: None, y := pool(x)), y)[1],
    "vmap": lambda x: [jax.vmap(gradient, axis, axis)(jnp.stack([x, 1 - x], axis)) for axis in (0, -1)],
    "vmap over the cotangent": lambda x: jax.vmap(lambda g: jax.vjp(windows, x)[1](g))(jnp.stack(2 * [windows(x)])),
}


@pytest.mark.usefixtures("quick_compilation")
@pytest.mark.parametrize("name", FUNCTIONS)
def test_transformations(name):
    check(FUNCTIONS[name], X)


def test_donation():
    function = functools.partial(windows, strides=(1, 1, 1))  # the result fits into x
    x, wanted = jnp.array(X), function(X)
    with lowering.installed():
        assert_close(jax.jit(function, donate_argnums=0)(x), wanted)
    assert x.is_deleted()


IMAGES = normal(8, 8, 4, seed=2)


@pytest.mark.parametrize("check_vma", [True, False])
def test_shard_map(check_vma):
    mesh = jax.make_mesh((8,), ("a",), axis_types=(AxisType.Auto,))
    mapped = jax.shard_map(gradient, mesh=mesh, in_specs=P("a"), out_specs=P("a"), check_vma=check_vma)
    check(mapped, IMAGES)


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_sharded_jit(axis_type):
    """The batch, the rows or the channels split; on explicit axes JAX itself refuses split rows."""
    mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(axis_type,) * 2)
    wanted = jax.device_get(jax.jit(gradient)(IMAGES))
    specs = [P("a"), P("a", None, "b")] + ([P(None, "a")] if axis_type == AxisType.Auto else [])
    with lowering.installed():
        for spec in specs:
            split = jax.device_put(IMAGES, NamedSharding(mesh, spec))
            got = jax.jit(gradient)(split)
            assert_close(jax.device_get(got), wanted)
            assert axis_type == AxisType.Auto or got.sharding.is_equivalent_to(split.sharding, 3)
        assert lowering.report()["poolings"] and not lowering.report()["left"]


def test_a_mesh_of_which_some_axes_are_manual_is_left_to_jax():
    mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
    mapped = jax.shard_map(windows, mesh=mesh, in_specs=P("a"), out_specs=P("a"), axis_names={"a"}, check_vma=False)
    check(mapped, IMAGES, left={"mesh axes of which some are manual"}, used=False)


def test_pooling_layers_of_flax():
    def layers(x):
        pools = flax.linen.max_pool(x, (2, 3), (2, 2)), flax.linen.avg_pool(x, (2, 3), (2, 2), count_include_pad=False)
        return jnp.sum(jnp.sin(pools[0]) * pools[1])

    check(jax.value_and_grad(layers), normal(2, 8, 9, 3))
