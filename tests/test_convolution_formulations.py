"""Each formulation of a convolution against XLA's own, on every geometry that it accepts; and what is chosen."""

import contextlib
import functools
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from jax import lax
from support import assert_close, normal, value_and_vjp

import jaxnorm as jn
from jaxnorm import reference
from jaxnorm._lower.convolution import forward, kernel_gradient
from jaxnorm._lower.convolution.geometry import Geometry, transposed_kernel

pytestmark = pytest.mark.usefixtures("quick_compilation")


def one_group(geometry):
    return geometry.groups == 1


def undilated(geometry):
    return set(geometry.input_dilation) == {1}


def pointwise(geometry):
    return set(geometry.kernel_size) == {1} and undilated(geometry) and one_group(geometry)


def leading(geometry):
    return geometry.space > 1 and geometry.input_dilation[0] == 1


def disjoint(geometry):
    """No two windows of the dilated input overlap."""
    fits = all(k <= e for k, e in zip(geometry.kernel_size, geometry.input_dilation, strict=True))
    return fits and one_group(geometry) and {*geometry.strides, *geometry.kernel_dilation} == {1}


def in_patches(geometry):
    fits = all(k <= s for k, s in zip(geometry.kernel_size, geometry.strides, strict=True))
    return fits and one_group(geometry) and undilated(geometry) and set(geometry.kernel_dilation) == {1}


def phased(geometry):
    """The first dilated axis has stride 1."""
    axis = next((i for i, e in enumerate(geometry.input_dilation) if e > 1), None)
    return axis is not None and geometry.strides[axis] == 1


FORWARD = [
    (forward.by_product, pointwise, False),
    (forward.by_blocks, disjoint, False),
    (forward.by_phases, phased, True),
    (forward.by_leading_taps, leading, True),
    (forward.by_shifts, undilated, False),
    (forward.by_groups, lambda geometry: True, True),
]
KERNEL_GRADIENT = [
    (kernel_gradient.by_batch_groups, lambda geometry: True, False),
    (kernel_gradient.by_product, pointwise, False),
    (kernel_gradient.by_patches, in_patches, False),
    (kernel_gradient.by_exchange, lambda geometry: True, True),
    (kernel_gradient.by_leading_taps, leading, True),
    (kernel_gradient.by_merged_groups, lambda geometry: True, True),
    (kernel_gradient.by_column_sums, undilated, False),  # and one input channel a group: see `inputs` below
]


@st.composite
def convolutions(draw):
    """A geometry with an output, batch size, in-group channels and outputs of a group."""
    space = draw(st.integers(1, 3))

    def per_axis(low, high):
        return tuple(draw(st.integers(low, high)) for _ in range(space))

    strides, dilation = (1,) * space, (1,) * space
    window = draw(st.sampled_from([per_axis(1, 5 - space), (1,) * space]))
    kind = draw(st.sampled_from(["plain", "strided", "patches", "dilated", "both"]))
    if kind in ("strided", "both"):
        strides = per_axis(1, 3)
    if kind == "patches":
        strides = tuple(k + draw(st.integers(0, 1)) for k in window)
    if kind in ("dilated", "both"):
        dilation = per_axis(1, 4)
    geometry = Geometry(
        input_size=per_axis(1, 8 - 2 * space + 2),
        kernel_size=window,
        strides=strides,
        padding=tuple((draw(st.integers(-2, 4)), draw(st.integers(-2, 4))) for _ in range(space)),
        input_dilation=dilation,
        kernel_dilation=draw(st.sampled_from([(1,) * space, per_axis(1, 3)])),
        groups=draw(st.sampled_from([1, 2, 3, 6])),
        precision=None,
        dtype=jnp.float64,
    )
    sizes = [(n - 1) * e + 1 + sum(p) for n, e, p in zip(geometry.input_size, dilation, geometry.padding, strict=True)]
    assume(min(sizes) >= 0 and 0 not in geometry.output_size)
    return geometry, draw(st.integers(1, 4)), draw(st.integers(1, 3)), draw(st.integers(1, 2))


exploring = settings(
    max_examples=45,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.function_scoped_fixture],
)


def compare(calls, wanted, *arrays):
    """All calls in one compilation."""
    got, want = jax.jit(lambda *a: ([call(*a) for _, call in calls], wanted(*a)))(*arrays)
    for (name, _), value in zip(calls, got, strict=True):
        assert value.shape == want.shape and value.dtype == want.dtype, name
        np.testing.assert_allclose(value, want, rtol=1e-10, atol=1e-10 * max(1, np.abs(want).max()), err_msg=name)


def bind(table, by_lax, geometry, few):
    """The formulations that accept a geometry, each with XLA's for what it leaves to others."""

    def call(formulation, recursive, limits, a, b):
        with contextlib.ExitStack() as stack:
            for module, name in limits:  # what otherwise only large windows and arrays and many groups reach
                stack.enter_context(mock.patch.object(module, name, 1))
            return formulation(geometry, a, b, *([by_lax] if recursive else []))

    limits = LIMITS if few else []
    return [
        (formulation.__name__, functools.partial(call, formulation, recursive, limits))
        for formulation, accepts, recursive in table
        if accepts(geometry)
    ]


LIMITS = [
    (kernel_gradient, "CHUNK"),
    (forward, "IN_CACHE"),
    (forward, "UNROLLED_TERMS"),
    (forward, "UNROLLED_CONVOLUTIONS"),
    (kernel_gradient, "UNROLLED_TAPS"),
]


@pytest.mark.thorough
@exploring
@given(convolutions(), st.booleans())
def test_every_formulation_of_y(convolution, few):
    geometry, batch, inputs, outputs = convolution
    x = normal(batch, *geometry.input_size, geometry.groups * inputs)
    kernel = normal(*geometry.kernel_size, inputs, geometry.groups * outputs)
    calls = bind(FORWARD, forward.by_lax, geometry, few)
    compare(calls, functools.partial(forward.by_lax, geometry), x, kernel)


@pytest.mark.thorough
@exploring
@given(convolutions(), st.booleans())
def test_every_formulation_of_dkernel(convolution, few):
    geometry, batch, inputs, outputs = convolution
    x = normal(batch, *geometry.input_size, geometry.groups * inputs)
    g = normal(batch, *geometry.output_size, geometry.groups * outputs, seed=1)
    table = [row for row in KERNEL_GRADIENT if row[0] is not kernel_gradient.by_column_sums or inputs == 1]

    def autodiff(x, g):
        kernel = jnp.zeros((*geometry.kernel_size, inputs, geometry.groups * outputs))
        return jax.vjp(functools.partial(forward.by_lax, geometry, x), kernel)[1](g)[0]

    compare([*bind(table, kernel_gradient.by_lax, geometry, few)], autodiff, x, g)


@exploring
@given(convolutions())
def test_the_transposed_geometry_is_the_input_gradient(convolution):
    geometry, batch, inputs, outputs = convolution
    x = normal(batch, *geometry.input_size, geometry.groups * inputs)
    kernel = normal(*geometry.kernel_size, inputs, geometry.groups * outputs)
    g = normal(batch, *geometry.output_size, geometry.groups * outputs, seed=1)

    def ours(g, kernel):
        return forward.by_lax(geometry.transposed, g, transposed_kernel(kernel, geometry.groups))

    def autodiff(g, kernel):
        return jax.vjp(lambda x: forward.by_lax(geometry, x, kernel), x)[1](g)[0]

    compare([("transposed", ours)], autodiff, g, kernel)


@pytest.mark.parametrize(
    "x, kernel, options",
    [
        ((2, 40, 3), (70, 1, 6), {"feature_group_count": 3, "kernel_dilation": 2}),  # a loop over taps
        ((3, 13, 9, 4), (7, 7, 1, 4), {"feature_group_count": 4, "strides": (2, 1)}),  # over rows of taps
        ((2, 6, 5, 68), (3, 2, 2, 34), {"feature_group_count": 34}),
        ((2, 5, 5, 340), (3, 3, 10, 340), {"feature_group_count": 34, "strides": 2}),  # over groups
        ((1, 7, 6, 5, 4), (3, 3, 3, 2, 4), {"feature_group_count": 2, "strides": (2, 1, 2)}),
        ((2, 9, 9, 3), (4, 4, 3, 5), {"strides": 4, "padding": "VALID"}),  # patches, a row left over
        ((2, 9, 7, 5, 3), (2, 2, 1, 3, 4), {"strides": (2, 3, 2)}),  # patches with gaps
    ],
)
def test_chosen_formulations_match_lax(x, kernel, options):
    x, kernel = normal(*x), normal(*kernel, seed=1)
    g = normal(*jax.eval_shape(functools.partial(reference.conv, **options), x, kernel).shape, seed=2)

    functions = [functools.partial(module.conv, **options) for module in (jn, reference)]
    assert_close(*jax.jit(lambda g, *arrays: [value_and_vjp(f, arrays, g) for f in functions])(g, x, kernel))


@pytest.mark.parametrize("groups", [1, 2, 8])
@pytest.mark.parametrize("dilation", [1, 2])
def test_infinities_reach_what_lax_lets_them_reach(groups, dilation):
    """No formulation multiplies an entry by a zero of its own making."""
    x = normal(1, 9, 9, 8).at[0, 8, 0, 1].set(jnp.inf).at[0, 2, 3, 5].set(jnp.nan)
    kernel = normal(2, 2, 8 // groups, 8, seed=1)
    options = {"strides": 3, "padding": "VALID", "kernel_dilation": dilation, "feature_group_count": groups}
    g = normal(*jax.eval_shape(functools.partial(jn.conv, **options), x, kernel).shape, seed=2)

    def parts(conv):
        y, vjp = jax.vjp(functools.partial(conv, **options), x, kernel)
        return y, vjp(g)[1]

    for ours, theirs in zip(parts(jn.conv), parts(reference.conv), strict=True):
        assert np.isfinite(theirs).any()
        np.testing.assert_array_equal(np.isfinite(ours) | ~np.isfinite(theirs), True)


def stacked(results):
    """Several results of one structure as one, as vmap gives it."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *results)


@pytest.mark.parametrize("batched", [(0, None), (None, 0), (0, 0)], ids=str)
def test_no_grouped_convolution_under_vmap(batched):
    """XLA's CPU backend would run it in a naive loop."""

    def gradients(x, kernel):
        return jax.grad(lambda *a: jnp.sum(jnp.sin(jn.conv(*a))), (0, 1))(x, kernel)

    arrays = [
        normal(*([3] if axis == 0 else []), *shape)
        for axis, shape in zip(batched, [(2, 5, 5, 3), (3, 3, 3, 4)], strict=True)
    ]
    text = jax.jit(jax.vmap(gradients, batched)).lower(*arrays).compile().as_text()
    assert "convolution" in text and "feature_group_count" not in text and "batch_group_count" not in text


@pytest.mark.parametrize("strides", [1, 2])
@pytest.mark.parametrize("batched", [(0, None), (None, 0), (0, 0)], ids=str)
def test_one_by_one_under_vmap(batched, strides):
    """A batch of matrix products, one after the other in no loop."""
    x, kernel = normal(3, 2, 5, 4, 3), normal(3, 1, 1, 3, 4, seed=1)
    arrays = [a if axis == 0 else a[0] for a, axis in zip((x, kernel), batched, strict=True)]

    def gradients(conv, x, kernel):
        return jax.value_and_grad(lambda *a: jnp.sum(jnp.sin(conv(*a, strides=strides))), (0, 1))(x, kernel)

    program = jax.jit(jax.vmap(functools.partial(gradients, jn.conv), batched)).lower(*arrays).compile()
    if strides == 1:
        assert "while" not in program.as_text()
    wanted = [gradients(reference.conv, *(a[i] if axis == 0 else a for a, axis in zip(arrays, batched, strict=True)))
              for i in range(3)]  # fmt: skip
    assert_close(program(*arrays), stacked(wanted))


@pytest.mark.parametrize("strides", [1, 2])
def test_depthwise_under_vmap(strides):
    """y and dX are elementwise for all kernels at once, in no loop."""
    x, kernel = normal(3, 2, 7, 6, 4), normal(3, 3, 3, 1, 4, seed=1)

    def both(conv, x, kernel):
        y, vjp = jax.vjp(lambda x: conv(x, kernel, strides=strides, feature_group_count=4), x)
        return y, vjp(jnp.cos(y))[0]

    program = jax.jit(jax.vmap(functools.partial(both, jn.conv))).lower(x, kernel).compile()
    assert "while" not in program.as_text()
    assert_close(program(x, kernel), stacked([both(reference.conv, *pair) for pair in zip(x, kernel, strict=True)]))


@pytest.mark.thorough
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("names", [("NHC", "HIO", "NHC"), ("NCH", "OIH", "HNC")], ids=str)
@pytest.mark.parametrize("size", [2, 17])
def test_unrolled_or_a_loop_under_vmap(size, names, groups):
    """A few convolutions with more than a tap and a channel a group are unrolled, others and more are a loop."""
    options = {"dimension_numbers": names, "feature_group_count": groups}
    x, kernel = normal(size, 2, 5, 4), normal(size, 3, 4 // groups, 4, seed=1)
    canonical = (("NHC", "HIO"), (x, kernel))
    x, kernel = (
        jnp.transpose(a, (0, *(1 + of.index(c) for c in order)))
        for of, a, order in zip(*canonical, names[:2], strict=True)
    )

    def gradients(x, kernel):
        y, vjp = jax.vjp(functools.partial(jn.conv, **options), x, kernel)
        return y, vjp(jnp.cos(y))

    program = jax.jit(jax.vmap(gradients)).lower(x, kernel).compile()
    if groups < 4:
        assert ("while" in program.as_text()) == (size == 17)
    each = [jax.jit(gradients)(*pair) for pair in zip(x, kernel, strict=True)]
    assert_close(program(x, kernel), stacked(each))


@pytest.mark.parametrize("strides", [1, 2])
def test_channels_first_copies_no_images(strides):
    """XLA merges our transpositions with its own: the kernel's gradient needs no more memory than lax's."""
    names = ("NCHW", "OIHW", "NCHW")
    x, kernel = normal(4, 16, 24, 24, dtype=jnp.float32), normal(12, 16, 3, 3, dtype=jnp.float32)
    g = normal(4, 12, 24 // strides, 24 // strides, dtype=jnp.float32)

    def needed(conv):
        def gradient(x, g):
            return jax.vjp(lambda kernel: conv(x, kernel), kernel)[1](g)

        return jax.jit(gradient).lower(x, g).compile().memory_analysis().temp_size_in_bytes

    theirs = needed(lambda x, k: lax.conv_general_dilated(x, k, (strides,) * 2, "SAME", dimension_numbers=names))
    assert needed(functools.partial(jn.conv, strides=strides, dimension_numbers=names)) <= theirs


def test_other_platforms_keep_xlas_convolution():
    def gradients(x, kernel):
        return jax.grad(lambda *a: jnp.sum(jnp.sin(jn.conv(*a, feature_group_count=4))), (0, 1))(x, kernel)

    arrays = normal(2, 5, 5, 4, dtype=jnp.float32), normal(3, 3, 1, 4, dtype=jnp.float32)
    traced = jax.jit(gradients).trace(*arrays)
    assert "stablehlo.convolution" in traced.lower(lowering_platforms=("cuda",)).as_text()
    assert "stablehlo.convolution" not in traced.lower(lowering_platforms=("cpu",)).as_text()
