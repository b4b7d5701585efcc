"""`jaxnorm.lowering`: any program's convolutions by this library's formulations, against JAX's own in float64."""

import functools
import os
import subprocess
import sys
import threading
from typing import Any

import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jax import export, lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from support import assert_close, normal, value_and_vjp

import jaxnorm as jn
from jaxnorm import lowering

NHWC = ("NHWC", "HWIO", "NHWC")
DEPTHWISE: dict[str, Any] = {
    "window_strides": (1,), "padding": "SAME", "feature_group_count": 4, "dimension_numbers": ("NHC", "HIO", "NHC"),
}  # fmt: skip


@pytest.fixture(autouse=True)
def uninstalled():
    """Every test begins and ends with JAX as it was."""
    assert not lowering.report()["installed"]
    yield
    lowering.uninstall()


def depthwise(x, kernel):
    return lax.conv_general_dilated(x, kernel, **DEPTHWISE)


X, KERNEL = normal(2, 6, 4), normal(3, 1, 4, seed=1)


def check(function, *arrays, tolerance=1e-10, kinds=("convolutions",)):
    """The same function with the formulations and without, and that they were there."""
    wanted = jax.jit(function)(*arrays)
    with lowering.installed():
        got = jax.jit(function)(*arrays)
        report = lowering.report()
    assert all(report[kind] for kind in kinds) and not report["left"], report
    assert_close(got, wanted, tolerance)


# --- installing and undoing -------------------------------------------------------------------------------------------


def test_uninstall_restores_jax_exactly():
    compiled = jax.jit(depthwise).lower(X, KERNEL).compile().as_text()
    entry = {p: lowering._registered(p) for p in lowering._DESCRIBED}
    lowering.install()
    ours = jax.jit(depthwise).lower(X, KERNEL).compile().as_text()
    assert ours != compiled and "convolution(" not in ours
    lowering.install()  # twice is once
    lowering.uninstall()
    assert {p: lowering._registered(p) for p in lowering._DESCRIBED} == entry
    assert jax.jit(depthwise).lower(X, KERNEL).compile().as_text() == compiled
    lowering.uninstall()
    assert {p: lowering._registered(p) for p in lowering._DESCRIBED} == entry


def test_contexts_nest_and_restore_also_after_an_error():
    def now():
        return lowering.report()["installed"]

    with lowering.installed():
        with lowering.installed():
            assert now()
        assert now()
        lowering.uninstall()
        assert not now()
    assert not now()
    lowering.install()
    with pytest.raises(KeyError), lowering.installed():
        lowering.uninstall()
        raise KeyError
    assert now()


def test_the_report_counts_each_kind_and_says_what_was_left_and_why():
    def gradient(x, kernel):
        return jax.grad(lambda *a: jnp.sum(jnp.sin(depthwise(*a))), (0, 1))(x, kernel)

    with lowering.installed():
        gradient_of = jax.jit(gradient)
        gradient_of(X, KERNEL)
        assert lowering.report() == {
            "installed": True,
            "convolutions": 2,
            "kernel_gradients": 1,
            "poolings": 0,
            "left": {},
        }
        gradient_of(X, KERNEL)  # already compiled
        depthwise(X.astype(jnp.complex64), KERNEL.astype(jnp.complex64))
        depthwise(X[:0], KERNEL)
        report = lowering.report()
        assert report["left"] == {"a dtype that is not floating-point of 16 to 64 bits": 1, "an empty array": 1}
    with lowering.installed():
        assert lowering.report() == {
            "installed": True,
            "convolutions": 0,
            "kernel_gradients": 0,
            "poolings": 0,
            "left": {},
        }


def test_functions_that_are_compiled_already_are_compiled_again_but_not_those_ahead_of_time():
    jitted = jax.jit(depthwise)
    ahead, wanted = jitted.lower(X, KERNEL).compile(), jitted(X, KERNEL)
    lowering.install()
    assert_close(jitted(X, KERNEL), wanted)
    assert lowering.report()["convolutions"] == 1
    assert_close(ahead(X, KERNEL), wanted)
    assert_close(depthwise(X, KERNEL), wanted)  # outside jit
    ours = jitted.lower(X, KERNEL).compile()
    count = lowering.report()["convolutions"]
    lowering.uninstall()
    assert "convolution(" in ahead.as_text() and "convolution(" not in ours.as_text()
    assert_close((ours(X, KERNEL), jitted(X, KERNEL)), (wanted, wanted))
    assert lowering.report()["convolutions"] == count


def test_every_thread_sees_it_at_once():
    texts = {}

    def text(name):
        texts[name] = jax.jit(lambda *a: depthwise(*a)).lower(X, KERNEL).as_text()

    def run(name):
        threads = [threading.Thread(target=text, args=((name, i),)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    lowering.install()
    run("installed")
    lowering.uninstall()
    run("plain")
    assert {name: "stablehlo.convolution" in text for name, text in texts.items()} == {
        (name, i): name == "plain" for name in ("installed", "plain") for i in range(4)
    }


def test_an_exported_function_keeps_the_convolutions_that_it_was_exported_with():
    wanted = depthwise(X, KERNEL)
    lowering.install()
    ours = export.export(jax.jit(depthwise))(X, KERNEL)
    several = export.export(jax.jit(depthwise), platforms=["cpu", "cuda", "tpu"])(X, KERNEL)
    shapes = export.symbolic_args_specs((X, KERNEL), ("b, ...", "..."))
    symbolic = export.export(jax.jit(depthwise))(*shapes)
    assert lowering.report()["left"] == {"a size that is left open": 1}
    lowering.uninstall()
    assert "stablehlo.convolution" not in ours.mlir_module()
    assert several.mlir_module().count("stablehlo.convolution") == 2  # the GPU's and the TPU's
    for exported in (ours, several, symbolic):
        assert_close(export.deserialize(exported.serialize()).call(X, KERNEL), wanted)


def test_the_persistent_cache_tells_the_two_apart(tmp_path):
    """Its key is the lowered program: what one process stored with the formulations, none without them reads."""
    program = """
import sys, jax, jax.numpy as jnp, numpy as np
from jaxnorm import lowering
installed = sys.argv[1] == "installed"
if installed:
    lowering.install()
call = jax.jit(lambda x, k: jax.lax.conv_general_dilated(
    x, k, (1,), "SAME", dimension_numbers=("NHC", "HIO", "NHC"), feature_group_count=4))
x, k = np.ones((2, 6, 4), np.float32), np.ones((3, 1, 4), np.float32)
print("convolution(" in call.lower(x, k).compile().as_text(), float(call(x, k).sum()))
"""
    environment = {
        **os.environ, "JAX_COMPILATION_CACHE_DIR": str(tmp_path), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }  # fmt: skip
    printed = [
        subprocess.run(
            [sys.executable, "-c", program, how], env=environment, check=True, capture_output=True, text=True
        )
        for how in ("installed", "plain", "installed")
    ]
    assert [p.stdout.split() for p in printed] == [[str(how), "128.0"] for how in (False, True, False)]


# --- geometries and dtypes --------------------------------------------------------------------------------------------


@st.composite
def calls(draw):
    """Shapes and options of one call of lax's, groups of either kind among them."""
    space = draw(st.integers(1, 3))

    def per_axis(low, high):
        return tuple(draw(st.integers(low, high)) for _ in range(space))

    size, window = per_axis(2, 7 - space), per_axis(1, 5 - space)
    groups, kind = draw(st.integers(1, 3)), draw(st.sampled_from(["feature_group_count", "batch_group_count"]))
    batch, inputs, outputs = draw(st.integers(1, 2)), draw(st.integers(1, 2)), draw(st.integers(1, 2)) * groups
    of_features = kind == "feature_group_count"
    dilation, reach = per_axis(1, 2), per_axis(1, 2)
    padding = [(draw(st.integers(-1, 3)), draw(st.integers(-1, 3))) for _ in range(space)]
    padding = [(low + d * (k - 1), high) for (low, high), k, d in zip(padding, window, reach, strict=True)]
    letters = "HWD"[:space]
    names = (f"NC{letters}", f"OI{letters}", f"NC{letters}")
    if draw(st.booleans()):
        names = draw(st.tuples(*[st.permutations(n).map("".join) for n in names]))
    spatial = dict(zip([c for c in names[1] if c in letters], zip(size, window, strict=True), strict=True))
    sizes = {"N": batch if of_features else batch * groups, "C": inputs * groups if of_features else inputs}
    windows = {"O": outputs, "I": inputs}
    shapes = (
        tuple(sizes[c] if c in sizes else spatial[c][0] for c in names[0]),
        tuple(windows[c] if c in windows else spatial[c][1] for c in names[1]),
    )
    return *shapes, {
        "window_strides": per_axis(1, 2), "padding": padding, "lhs_dilation": dilation, "rhs_dilation": reach,
        "dimension_numbers": names, kind: groups,
    }  # fmt: skip


@pytest.mark.thorough
@pytest.mark.usefixtures("quick_compilation")
@settings(max_examples=10, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(calls())
def test_random_calls_match_jaxs_own(call):
    """The result, both gradients and a second derivative, of which each is a convolution of another kind."""
    lhs, rhs, options = call
    arrays = normal(*lhs), normal(*rhs, seed=1)
    function = functools.partial(lax.conv_general_dilated, **options)
    out = jax.eval_shape(function, *arrays)

    def derivatives(lhs, rhs, g):
        value = value_and_vjp(function, [lhs, rhs], g)
        of_lhs = jax.jvp(lambda lhs: jax.vjp(lambda rhs: function(lhs, rhs), rhs)[1](jnp.sin(g)), (lhs,), (lhs,))
        return value, of_lhs

    wanted = jax.jit(derivatives)(*arrays, normal(*out.shape, seed=2))
    with lowering.installed():
        assert_close(jax.jit(derivatives)(*arrays, normal(*out.shape, seed=2)), wanted)
        assert set(lowering.report()["left"]) <= {"an empty array"}


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16, jnp.int32, jnp.int8, jnp.complex64])
@pytest.mark.parametrize("precision", [None, "highest", ("default", "highest")])
def test_dtypes(dtype, precision):
    """The dtype of the result is JAX's, its value as near to the truth; integers and complex numbers are JAX's own."""
    x, kernel = (jnp.round(4 * a).astype(dtype) for a in (X, KERNEL))  # exact in every dtype
    options = {**DEPTHWISE, "precision": precision}
    wide = jnp.promote_types(dtype, jnp.float32)
    for preferred in (None, wide):
        function = jax.jit(functools.partial(lax.conv_general_dilated, **options, preferred_element_type=preferred))
        wanted = function(x, kernel)
        with lowering.installed():
            got = function(x, kernel)
            covered = jnp.issubdtype(dtype, jnp.floating)
            assert bool(lowering.report()["left"]) == (not covered)
        assert got.dtype == wanted.dtype and (got == wanted).all()


def test_16_bit_sums_are_wide():
    x, kernel = jnp.ones((1, 4096, 1), jnp.bfloat16), jnp.ones((1, 1, 1), jnp.bfloat16)
    with lowering.installed():
        gradient = jax.grad(lambda k: jnp.sum(lax.conv_general_dilated(
            x, k, (1,), "VALID", dimension_numbers=("NHC", "HIO", "NHC")).astype(jnp.float32)))  # fmt: skip
        assert gradient(kernel) == 4096


@pytest.mark.parametrize("shapes", [((0, 6, 4), (3, 1, 4)), ((2, 0, 4), (3, 1, 4)), ((2, 6, 0), (3, 0, 0))])
def test_empty_arrays_are_jaxs(shapes):
    options = {**DEPTHWISE, "feature_group_count": 4 if shapes[0][-1] else 1}
    arrays = [jnp.zeros(s) for s in shapes]
    function = functools.partial(lax.conv_general_dilated, **options)
    g = jnp.ones(jax.eval_shape(function, *arrays).shape)
    wanted = value_and_vjp(function, arrays, g)
    with lowering.installed():
        assert_close(value_and_vjp(function, arrays, g), wanted)


# --- transformations --------------------------------------------------------------------------------------------------


def loss(x, kernel):
    return jnp.sum(jnp.sin(depthwise(x, kernel)))


@jax.custom_vjp
def wrapped(x, kernel):
    return depthwise(x, kernel)


wrapped.defvjp(lambda x, k: (wrapped(x, k), (x, k)), lambda kept, g: jax.vjp(depthwise, *kept)[1](2 * g))


@jax.custom_jvp
def forward(x, kernel):
    return depthwise(x, kernel)


forward.defjvp(lambda primals, tangents: (forward(*primals), depthwise(tangents[0], primals[1])))

gradient = jax.grad(loss, (0, 1))
FUNCTIONS = {
    "gradient": gradient,
    "scan": lambda x, k: lax.scan(lambda c, _: (depthwise(c, k) / 4, jnp.sum(c)), x, None, length=3),
    "gradient in scan": lambda x, k: lax.scan(
        lambda c, _: (c - 0.1 * gradient(x, c)[1], loss(x, c)), k, None, length=3
    ),
    "while": lambda x, k: lax.while_loop(lambda c: jnp.sum(c**2) > 0.1, lambda c: depthwise(c, k) / 9, x),
    "cond": lambda x, k: lax.cond(jnp.sum(x) > 0, depthwise, lambda x, k: depthwise(x, -k), x, k),
    "remat": jax.grad(lambda x, k: jnp.sum(jax.checkpoint(depthwise)(jnp.sin(x), k) ** 2), (0, 1)),
    "jvp": lambda x, k: jax.jvp(depthwise, (x, k), (k.sum() * x, k)),
    "hessian": lambda x, k: jax.hessian(lambda k: loss(x, k))(k),
    "grad of grad": jax.grad(lambda x, k: sum(jnp.sum(d**2) for d in gradient(x, k)), (0, 1)),
    "custom_vjp": jax.grad(lambda x, k: jnp.sum(jnp.sin(wrapped(x, k))), (0, 1)),
    "custom_jvp": lambda x, k: jax.jvp(lambda x: forward(x, k), (x,), (x,)),
    "linearize": lambda x, k: jax.linearize(depthwise, x, k)[1](x, k),
    "debug callback": lambda x, k: (jax.debug.callback(lambda y: None, y := depthwise(x, k)), y)[1],
}


@pytest.mark.usefixtures("quick_compilation")
@pytest.mark.parametrize("name", FUNCTIONS)
def test_transformations(name):
    check(FUNCTIONS[name], X, KERNEL)


@pytest.mark.usefixtures("quick_compilation")
@pytest.mark.parametrize("in_axes", [(0, None), (None, 0), (2, 1), (3, -1)])
@pytest.mark.parametrize("groups", [1, 4])
def test_vmap(in_axes, groups):
    options = {**DEPTHWISE, "feature_group_count": groups}

    def each(x, kernel, g):
        return value_and_vjp(functools.partial(lax.conv_general_dilated, **options), [x, kernel], g)

    x, kernel = (
        a if axis is None else jnp.moveaxis(jnp.stack([a, 2 * a + 1, a**2]), 0, axis)
        for a, axis in zip((X, normal(3, 4 // groups, 4, seed=1)), in_axes, strict=True)
    )
    check(
        jax.vmap(each, (*in_axes, 0)), x, kernel, normal(3, 2, 6, 4, seed=2), kinds=("convolutions", "kernel_gradients")
    )


def test_donation():
    x, kernel = jnp.array(X), jnp.array(KERNEL)
    wanted = depthwise(x, kernel)
    with lowering.installed():
        assert_close(jax.jit(depthwise, donate_argnums=0)(x, kernel), wanted)
    assert x.is_deleted()


# --- meshes -----------------------------------------------------------------------------------------------------------

GROUPED: dict[str, Any] = {
    "window_strides": (1, 1), "padding": "SAME", "dimension_numbers": NHWC, "feature_group_count": 2
}  # fmt: skip


def grouped(x, kernel):
    y, vjp = jax.vjp(functools.partial(lax.conv_general_dilated, **GROUPED), x, kernel)
    return y, *vjp(jnp.cos(y))


IMAGES, KERNELS = normal(8, 4, 4, 4), normal(3, 3, 2, 4, seed=1)


@pytest.mark.parametrize("check_vma", [True, False])
def test_shard_map(check_vma):
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)

    def part(x, kernel):
        y, dx, dkernel = grouped(x, kernel)
        return y, dx, dkernel if check_vma else lax.psum(dkernel, "data")

    mapped = jax.shard_map(
        part, mesh=mesh, in_specs=(P("data"), P()), out_specs=(P("data"), P("data"), P()), check_vma=check_vma
    )
    wanted = jax.jit(grouped)(IMAGES, KERNELS)
    with lowering.installed():
        assert_close(jax.device_get(jax.jit(mapped)(IMAGES, KERNELS)), jax.device_get(wanted))
        assert not lowering.report()["left"]


def test_a_mesh_of_which_some_axes_are_manual_is_left_to_jax():
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    one = functools.partial(lax.conv_general_dilated, **GROUPED)
    mapped = jax.shard_map(
        one, mesh=mesh, in_specs=(P("data"), P()), out_specs=P("data"), axis_names={"data"}, check_vma=False
    )
    with lowering.installed():
        assert_close(jax.device_get(jax.jit(mapped)(IMAGES, KERNELS)), jax.device_get(one(IMAGES, KERNELS)))
        assert lowering.report()["left"] == {"mesh axes of which some are manual": 1}


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("spec", [P("data"), P("data", None, None, "model"), P(None, "model")])
def test_sharded_jit(axis_type, spec):
    """Also where XLA's partitioner gets JAX's own kernel gradient wrong: the batch, or rows, over one axis of two."""
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(axis_type,) * 2)
    if axis_type == AxisType.Explicit:
        spec = P("data")  # JAX itself refuses channels that are split against a kernel that is not
    wanted = jax.jit(grouped)(IMAGES, KERNELS)
    arrays = jax.device_put(IMAGES, NamedSharding(mesh, spec)), jax.device_put(KERNELS, NamedSharding(mesh, P()))
    with lowering.installed():
        got = jax.jit(grouped)(*arrays)
        assert not lowering.report()["left"]
    assert_close(jax.device_get(got), jax.device_get(wanted))


def test_flax_gets_the_right_kernel_gradient_on_a_mesh_of_two_axes():
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    layer = flax.linen.Conv(4, (3, 3), feature_group_count=2, param_dtype=jnp.float64)
    params = layer.init(jax.random.key(0), IMAGES)

    def loss(params, x):
        return jnp.sum(jnp.sin(layer.apply(params, x)))

    wanted = jax.jit(jax.grad(loss))(params, IMAGES)
    arrays = jax.device_put(params, NamedSharding(mesh, P())), jax.device_put(IMAGES, NamedSharding(mesh, P("data")))
    with lowering.installed():
        got = jax.jit(jax.grad(loss))(*arrays)
    assert_close(jax.device_get(got), jax.device_get(wanted))


# --- what it is for ---------------------------------------------------------------------------------------------------


def test_a_depthwise_step_has_no_naive_loop_left():
    """XLA runs a grouped convolution, and its gradients, element by element."""
    options = {**DEPTHWISE, "feature_group_count": 4}
    step = jax.grad(lambda *a: jnp.sum(jnp.sin(lax.conv_general_dilated(*a, **options))), (0, 1))
    with lowering.installed():
        text = jax.jit(step).lower(X, KERNEL).compile().as_text()
        report = lowering.report()
    assert "convolution(" not in text
    assert report["kernel_gradients"] == 1


def test_this_librarys_own_convolutions_stay_right():
    x, kernel = normal(2, 6, 6, 4), normal(3, 3, 2, 4, seed=1)
    check(
        lambda *a: value_and_vjp(functools.partial(jn.conv, feature_group_count=2), a, jnp.cos(x)), x, kernel, kinds=()
    )
    np.testing.assert_array_equal(jn.lowering.report()["installed"], False)
