"""Convolution: the rule against lax's autodiff over random geometries, and the contract beside the numbers."""

import functools
import itertools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jax import export, lax
from support import assert_close, normal, value_and_vjp

import jaxnorm as jn
from jaxnorm import reference
from jaxnorm.check import saved_bytes

NCHW = ("NCHW", "OIHW", "NCHW")


# --- random geometries ----------------------------------------------------------------------------------------------


@st.composite
def geometries(draw, transposed):
    """Shapes and options of one convolution that lax accepts."""
    space = draw(st.integers(1, 3))
    letters = "HWD"[:space]

    def per_axis(low, high):
        return tuple(draw(st.integers(low, high)) for _ in range(space))

    size, window = per_axis(1, 7 - space), per_axis(1, 5 - space)
    groups = 1 if transposed else draw(st.integers(1, 3))
    batch, inputs, outputs = draw(st.integers(1, 2)), draw(st.integers(1, 2)), draw(st.integers(1, 2)) * groups
    options: dict[str, Any] = {"strides": per_axis(1, 3), "kernel_dilation": per_axis(1, 3), "dimension_numbers": None}
    if transposed:
        dilation, options["transpose_kernel"] = options["strides"], draw(st.booleans())
        strings = ["SAME", "VALID"]
    else:
        dilation = draw(st.sampled_from([(1,) * space, per_axis(1, 3)]))
        options |= {"feature_group_count": groups, "input_dilation": dilation}
        strings = [] if any(f > 1 for f in dilation) else ["SAME", "SAME_LOWER", "VALID"]
    options["padding"] = draw(paddings(strings, [(n - 1) * f + 1 for n, f in zip(size, dilation, strict=True)]))
    names = f"N{letters}C", f"{letters}IO", f"N{letters}C"
    if draw(st.booleans()):
        names = options["dimension_numbers"] = draw(st.tuples(*[st.permutations(n).map("".join) for n in names]))
    spatial = [letter for letter in names[1] if letter in letters]  # strides and the rest follow the kernel's order
    ends = (outputs, inputs) if options.get("transpose_kernel") else (inputs, outputs)
    sizes = {"N": batch, "C": inputs * groups, **dict(zip(spatial, size, strict=True))}
    windows = dict(zip(["I", "O", *spatial], [*ends, *window], strict=True))
    return tuple(sizes[c] for c in names[0]), tuple(windows[c] for c in names[1]), outputs, options


@st.composite
def paddings(draw, strings, size):
    """Any kind of padding that crops no more than there is."""
    ends = st.integers(-3, 4)
    kinds = [ends, st.tuples(*[st.one_of(ends, st.tuples(ends, ends))] * len(size))]
    if strings:
        kinds.append(st.sampled_from(strings))
    padding = draw(st.one_of(kinds))
    if isinstance(padding, str):
        return padding
    pairs = [
        (p, p) if isinstance(p, int) else p for p in ([padding] * len(size) if isinstance(padding, int) else padding)
    ]
    return padding if all(n + sum(pair) >= 0 for n, pair in zip(size, pairs, strict=True)) else 0


def check_geometry(name, x, kernel, outputs, options):
    arrays = normal(*x), normal(*kernel, seed=1), normal(outputs, seed=2)
    ours, theirs = (functools.partial(getattr(module, name), **options) for module in (jn, reference))
    g = normal(*jax.eval_shape(theirs, *arrays).shape, seed=3)

    @jax.jit  # one compilation of both
    def both(g, *arrays):
        return value_and_vjp(ours, arrays, g), value_and_vjp(theirs, arrays, g)

    assert_close(*both(g, *arrays))


exploring = settings(
    max_examples=30, deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)


@pytest.mark.thorough
@exploring
@given(geometries(transposed=False))
def test_conv_matches_lax_on_random_geometries(geometry):
    check_geometry("conv", *geometry)


@pytest.mark.thorough
@exploring
@given(geometries(transposed=True))
def test_conv_transpose_matches_lax_on_random_geometries(geometry):
    check_geometry("conv_transpose", *geometry)


# (x, kernel), padding, options: low paddings below 0, or beyond the window, which makes that of dX negative.
CROPPED: list[tuple[Any, Any, dict[str, Any]]] = [
    (((2, 8, 4), (2, 4, 8)), ((-1, 1),), {}),
    (((2, 9, 4), (3, 4, 8)), ((-3, 3),), {"strides": 2}),
    (((2, 9, 4), (2, 4, 8)), ((-2, 1),), {"kernel_dilation": 2}),
    (((2, 9, 8), (2, 4, 8)), ((-2, 2),), {"feature_group_count": 2}),
    (((2, 9, 20), (2, 10, 40)), ((-2, 2),), {"feature_group_count": 2}),  # a convolution for each group
    (((2, 5, 4), (3, 4, 8)), ((-2, 3),), {"input_dilation": 2}),
    (((2, 4, 4), (3, 4, 8)), ((-5, 4),), {"input_dilation": 3, "strides": 2}),
    (((2, 9, 4), (3, 4, 8)), ((3, -1),), {}),
    (((2, 9, 4), (2, 4, 8)), ((4, 2),), {"strides": 2}),
    (((2, 5, 4), (3, 4, 8)), ((-5, 4),), {}),  # nothing of x is left
    (((2, 3, 4), (2, 4, 8)), ((-5, 4),), {"input_dilation": 2, "kernel_dilation": 2}),
    (((2, 8, 8, 4), (3, 3, 4, 8)), ((-1, 1), (0, 0)), {}),
    (((2, 8, 9, 4), (3, 2, 4, 8)), ((-1, 1), (-2, 2)), {}),
    (((2, 9, 9, 4), (3, 3, 4, 8)), ((-2, 2), (3, -1)), {"strides": 2}),
    (((2, 9, 9, 4), (2, 2, 4, 8)), ((-2, 1), (-1, -1)), {"kernel_dilation": (1, 2), "strides": (1, 2)}),
    (((2, 8, 8, 20), (2, 2, 10, 40)), ((-2, 2), (-1, 1)), {"feature_group_count": 2}),
    (((2, 5, 5, 4), (3, 3, 4, 8)), ((-2, 2), (4, -2)), {"input_dilation": (2, 1)}),
    (((1, 5, 5, 6, 4), (2, 2, 2, 4, 8)), ((-1, 1), (-2, 2), (3, 1)), {}),
]


def conv_by_taps(x, kernel, padding, strides=1, input_dilation=1, kernel_dilation=1, feature_group_count=1):
    """Equation (1) as a sum of slices: no convolution of lax's."""
    space, groups = x.ndim - 2, feature_group_count
    strides, input_dilation, kernel_dilation = (
        (v,) * space if isinstance(v, int) else v for v in (strides, input_dilation, kernel_dilation)
    )
    xp, sizes = x, []
    for i, ((low, high), s, e, d) in enumerate(zip(padding, strides, input_dilation, kernel_dilation, strict=True)):
        shape = [*xp.shape]
        shape[i + 1] = (shape[i + 1] - 1) * e + 1
        xp = jnp.zeros(shape, x.dtype).at[(slice(None),) * (i + 1) + (slice(None, None, e),)].set(xp)
        xp = jnp.pad(xp, [(max(low, 0), max(high, 0)) if axis == i + 1 else (0, 0) for axis in range(x.ndim)])
        rows = slice(max(-low, 0), xp.shape[i + 1] - max(-high, 0))
        xp = xp[(slice(None),) * (i + 1) + (rows,)]
        sizes.append((xp.shape[i + 1] - (kernel.shape[i] - 1) * d - 1) // s + 1)
    y = 0
    for k in np.ndindex(*kernel.shape[:space]):
        rows = zip(k, strides, kernel_dilation, sizes, strict=True)
        met = xp[(slice(None), *(slice(d * i, d * i + s * (n - 1) + 1, s) for i, s, d, n in rows))]
        met = met.reshape(*met.shape[:-1], groups, -1)
        y += jnp.einsum("...gc,cgo->...go", met, kernel[k].reshape(kernel.shape[-2], groups, -1))
    return y.reshape(*y.shape[:-2], -1)


@pytest.mark.usefixtures("quick_compilation")
def test_cropping_paddings_match_sums_over_taps():
    """Against sums, not lax alone: for a low padding below 0 in float32, jax 0.10 reads past the array on CPU."""
    cases, dtype = [], jnp.float32
    for shapes, padding, options in CROPPED:
        funs = [functools.partial(f, padding=padding, **options) for f in (conv_by_taps, jn.conv, reference.conv)]
        arrays = [normal(*s, dtype=dtype) for s in shapes]
        cases.append((funs, (arrays, normal(*jax.eval_shape(funs[0], *arrays).shape, seed=1, dtype=dtype))))

    @jax.jit  # one compilation of all; of arguments, as XLA would compute with constants itself, and rightly
    def results(arrays):
        return [[value_and_vjp(f, *a) for f in funs] for (funs, _), a in zip(cases, arrays, strict=True)]

    for truth, ours, theirs in results([arrays for _, arrays in cases]):
        assert_close(ours, truth, 2e-5)
        assert_close(theirs, truth, 2e-5)


@pytest.mark.parametrize("stride, window", list(itertools.product((1, 2, 3), (1, 2, 3, 4))))
def test_named_paddings_match_lax(stride, window):
    """Every remainder of the stride, in one compilation."""
    kernel, sizes = normal(window, 2, 3), (1, 2, 5, 6, 7)

    @jax.jit
    def both():
        pairs = []
        for size, padding in itertools.product(sizes, ("SAME", "SAME_LOWER", "VALID", "same")):
            x = normal(2, size, 2)
            pairs.append([m.conv(x, kernel, strides=stride, padding=padding) for m in (jn, reference)])
            if padding in ("SAME", "VALID"):
                pairs.append([m.conv_transpose(x, kernel, strides=stride, padding=padding) for m in (jn, reference)])
        return pairs

    for ours, theirs in both():
        assert_close(ours, theirs)


def test_conv_transpose_is_the_input_gradient_of_conv():
    x, kernel = normal(2, 7, 8, 3), normal(3, 4, 3, 5)
    for padding in ("SAME", "VALID"):
        y, vjp = jax.vjp(lambda x, p=padding: jn.conv(x, kernel, strides=(2, 3), padding=p), x)
        g = normal(*y.shape, seed=4)
        up = jn.conv_transpose(g, kernel, strides=(2, 3), padding=padding, transpose_kernel=True)
        (dx,) = vjp(g)
        if padding == "VALID":  # the shortest input with that output; the unread border has gradient 0
            dx, border = dx[:, : up.shape[1], : up.shape[2]], dx[:, up.shape[1] :]
            assert not border.any()
            assert_close(up[:, : dx.shape[1], : dx.shape[2]], dx)


@pytest.mark.parametrize(
    "names",
    [NCHW, ("CHWN", "HWOI", "HWNC"), ("NHWC", "WHIO", "NWHC"), ("NXYC", "XYIO", "NXYC"), ["NHWC", "HWIO", "NCHW"]],
)
def test_dimension_numbers_are_transpositions(names):
    sizes = {"N": 2, "C": 4, "H": 6, "W": 5, "X": 6, "Y": 5}
    window = {"H": 3, "W": 2, "X": 3, "Y": 2, "I": 2, "O": 6}
    x, kernel = normal(*(sizes[c] for c in names[0])), normal(*(window[c] for c in names[1]), seed=1)
    spatial = "".join(c for c in names[1] if c not in "IO")
    last = (f"N{spatial}C", f"{spatial}IO", f"N{spatial}C")

    def moved(array, have, want):
        return jnp.transpose(array, [have.index(c) for c in want])

    options: dict[str, Any] = {"strides": (2, 1), "padding": ((1, 0), (0, 2)), "feature_group_count": 2}
    y, vjp = jax.vjp(functools.partial(jn.conv, **options, dimension_numbers=names), x, kernel)
    canonical, vjp_last = jax.vjp(
        functools.partial(jn.conv, **options), moved(x, names[0], last[0]), moved(kernel, names[1], last[1])
    )
    assert_close(moved(y, names[2], last[2]), canonical)
    g = normal(*y.shape, seed=2)
    dx, dkernel = vjp(g)
    assert_close(
        (moved(dx, names[0], last[0]), moved(dkernel, names[1], last[1])), vjp_last(moved(g, names[2], last[2]))
    )


# --- dtypes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "dtypes", list(itertools.product((jnp.float32, jnp.bfloat16), (jnp.float16, jnp.float32), (jnp.float64,)))
)
@pytest.mark.parametrize("preferred", [None, jnp.float32, "bfloat16"])
def test_each_cotangent_has_the_dtype_and_shape_of_its_primal(dtypes, preferred):
    arrays = [normal(*s, dtype=d) for s, d in zip(((2, 5, 3), (2, 3, 4), (4,)), dtypes, strict=True)]
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        for arguments in (arrays, arrays[:2]):
            for name in ("conv", "conv_transpose"):
                fun = functools.partial(getattr(jn, name), strides=2, preferred_element_type=preferred)
                y, vjp = jax.vjp(fun, *arguments)
                assert y.dtype == (preferred or dtypes[0])
                for primal, cotangent in zip(arguments, vjp(jnp.ones_like(y)), strict=True):
                    assert (cotangent.dtype, cotangent.shape) == (primal.dtype, primal.shape)


def test_without_x64_nothing_is_float64():
    with jax.enable_x64(False):
        x, kernel = np.ones((1, 4, 2)), np.ones((3, 2, 2))
        y, vjp = jax.vjp(lambda x, k: jn.conv(x, k, preferred_element_type=jnp.float64), x, kernel)
        assert {a.dtype for a in (y, *vjp(y))} == {jnp.dtype(jnp.float32)}


def test_16_bit_gradients_are_summed_in_float32():
    """A sum of ones in bfloat16 stops at 256."""
    x, kernel, bias = (jnp.ones(s, jnp.bfloat16) for s in ((8, 8, 64, 2), (1, 1, 2, 3), (3,)))
    for fun in (jn.conv, jn.conv_transpose):
        y, vjp = jax.vjp(fun, x, kernel, bias)
        _, dkernel, dbias = vjp(jnp.ones_like(y))
        assert (dkernel == 4096).all() and (dbias == 4096).all()
    grouped, vjp = jax.vjp(lambda k: jn.conv(x, k, feature_group_count=2), jnp.ones((1, 1, 1, 2), jnp.bfloat16))
    assert (vjp(jnp.ones_like(grouped))[0] == 4096).all()
    wide = jn.conv(jnp.ones((1, 1, 4096), jnp.bfloat16), jnp.ones((1, 4096, 1), jnp.bfloat16))
    assert wide == 4096


def test_preferred_element_type_is_the_dtype_of_the_sums():
    x, kernel = normal(2, 6, 5, dtype=jnp.float32), normal(3, 5, 4, dtype=jnp.float32)
    y = jn.conv(x, kernel, preferred_element_type=jnp.float64)
    assert_close(y, jn.conv(x.astype(jnp.float64), kernel.astype(jnp.float64)), 1e-14)
    halved = jn.conv(x, kernel, preferred_element_type=jnp.float16)
    assert_close(halved, jn.conv(x, kernel).astype(jnp.float16), 1e-3)


@pytest.mark.parametrize("precision", ["highest", lax.Precision.HIGH, ("high", "default"), ["high", "high"]])
def test_precision_reaches_every_product(precision):
    def gradient(x, kernel):
        return jax.grad(lambda *a: jnp.sum(jnp.sin(jn.conv(*a, precision=precision))), (0, 1))(x, kernel)

    for window in (3, 1):  # convolutions, and matrix products on CPU
        text = str(jax.make_jaxpr(gradient)(normal(1, 4, 2), normal(window, 2, 2)))
        assert "conv_general_dilated[" in text and "precision=None" not in text
        assert ("dot_general[" in text) == (window == 1)


# --- what is kept, empties, transformations ---------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(
    "name, x, kernel, options",
    [
        ("conv", (2, 6, 6, 4), (3, 3, 2, 4), {"strides": 2, "feature_group_count": 2}),
        ("conv", (2, 4, 6, 6), (5, 4, 3, 3), {"dimension_numbers": NCHW}),
        ("conv_transpose", (2, 6, 6, 4), (3, 3, 5, 4), {"strides": 2, "transpose_kernel": True}),
        ("conv_transpose", (2, 4, 6, 6), (5, 4, 3, 3), {"strides": 2, "dimension_numbers": NCHW}),
    ],
)
def test_the_inputs_are_all_that_is_kept(name, x, kernel, options, dtype):
    arrays = normal(*x, dtype=dtype), normal(*kernel, seed=1, dtype=dtype)
    assert saved_bytes(functools.partial(getattr(jn, name), **options), *arrays) == 0


@pytest.mark.parametrize(
    "name, x, kernel, options",
    [
        ("conv", (0, 5, 3), (3, 3, 4), {}),
        ("conv", (2, 5, 0), (3, 0, 4), {}),
        ("conv", (2, 5, 3), (3, 3, 0), {}),
        ("conv", (2, 0, 3), (3, 3, 4), {}),
        ("conv", (2, 0, 3), (3, 3, 4), {"padding": 2}),
        ("conv", (2, 2, 3), (3, 3, 4), {"padding": "VALID"}),
        ("conv", (2, 5, 3), (3, 3, 4), {"padding": -2, "strides": 3}),
        ("conv", (2, 5, 3), (3, 3, 4), {"padding": ((-5, 0),), "kernel_dilation": 2}),
        ("conv", (2, 0, 6), (3, 2, 3), {"feature_group_count": 3, "strides": 2}),
        ("conv", (2, 5, 0), (3, 0, 4), {"feature_group_count": 2}),
        ("conv_transpose", (0, 5, 3), (3, 3, 4), {"strides": 2}),
        ("conv_transpose", (2, 0, 3), (3, 3, 4), {"strides": 2}),
        ("conv_transpose", (2, 5, 0), (3, 4, 0), {"transpose_kernel": True}),
        ("conv_transpose", (2, 2, 3), (3, 3, 4), {"padding": -1, "strides": 2}),
    ],
)
def test_empty_arrays_have_zero_outputs_and_gradients(name, x, kernel, options):
    channels = kernel[-2] if "transpose_kernel" in options else kernel[-1]
    arrays = normal(*x), normal(*kernel), jnp.zeros(channels)
    ours, theirs = (functools.partial(getattr(module, name), **options) for module in (jn, reference))
    y, vjp = jax.vjp(ours, *arrays)
    assert y.shape == theirs(*arrays).shape
    dx, dkernel, dbias = vjp(jnp.ones_like(y))
    assert [a.shape for a in (dx, dkernel, dbias)] == [a.shape for a in arrays]
    assert not y.any() and not dx.any() and not dkernel.any()
    assert (dbias == y.size / max(1, channels)).all()  # a constant output still has its bias
    assert jax.vmap(ours, (0, None, None))(jnp.stack([arrays[0]] * 2), *arrays[1:]).shape == (2, *y.shape)


def curved(fun):
    """A scalar whose derivatives of every order depend on every output."""
    return lambda *arrays: jnp.sum(jnp.sin(fun(*arrays)))


@pytest.mark.parametrize("in_axes", [(0, None, None), (None, 0, None), (1, 2, 0), (3, -1, None), (None, None, 0)])
@pytest.mark.parametrize(
    "options, shapes",
    [
        ({"strides": 2}, ((2, 6, 4), (3, 4, 5), (5,))),
        ({"strides": 2, "feature_group_count": 4}, ((2, 6, 4), (3, 1, 4), (4,))),
        ({"feature_group_count": 2, "dimension_numbers": ("NCH", "OIH", "NCH")}, ((2, 4, 6), (4, 2, 3), (4,))),
    ],
)
def test_vmap_matches_a_loop(in_axes, options, shapes):
    rows = [[normal(*s, seed=10 * i + j) for j, s in enumerate(shapes)] for i in range(3)]
    stacked = [
        rows[0][j] if axis is None else jnp.stack([row[j] for row in rows], axis) for j, axis in enumerate(in_axes)
    ]
    each = [[rows[0][j] if axis is None else row[j] for j, axis in enumerate(in_axes)] for row in rows]
    gradient = jax.value_and_grad(curved(functools.partial(jn.conv, **options)), (0, 1, 2))
    ours = jax.jit(jax.vmap(gradient, in_axes))(*stacked)
    single = jax.jit(gradient)
    assert_close(ours, jax.tree.map(lambda *a: jnp.stack(a), *[single(*row) for row in each]))


@pytest.mark.parametrize(
    "name, x, kernel, options",
    [
        ("conv", (2, 5, 4), (3, 2, 4), {"strides": 2, "padding": ((-1, 3),), "feature_group_count": 2}),
        ("conv_transpose", (2, 3, 3), (3, 4, 3), {"strides": 2, "transpose_kernel": True}),
    ],
)
def test_second_derivatives_outside_jit(name, x, kernel, options):
    """Under jit, where what is not used is removed, `test_rules.py` has them."""
    arrays = normal(*x), normal(*kernel, seed=1), normal(4, seed=2)
    tangents = tuple(normal(*a.shape, seed=5) for a in arrays)

    def second(module):
        gradient = jax.grad(curved(functools.partial(getattr(module, name), **options)), (0, 1, 2))

        def squared(*arrays):
            return sum(jnp.sum(d**2) for d in gradient(*arrays))

        return lambda *a: (jax.grad(squared, (0, 1, 2))(*a), jax.jvp(gradient, a, tangents))

    assert_close(second(jn)(*arrays), jax.jit(second(reference))(*arrays))


def test_forward_mode_is_jaxs_own_type_error():
    with pytest.raises(TypeError):
        jax.jvp(jn.conv, (normal(1, 4, 2), normal(3, 2, 2)), (normal(1, 4, 2), normal(3, 2, 2)))


# --- errors ---------------------------------------------------------------------------------------------------------

conv: Any = jn.conv  # typed loosely: wrong types are the point here
conv_transpose: Any = jn.conv_transpose
X, X6, K = np.ones((2, 6, 5, 4)), np.ones((2, 6, 5, 6)), np.ones((3, 3, 4, 6))


@pytest.mark.parametrize(
    "error, match, call",
    [
        (TypeError, "x must be an array", lambda: conv([[[1.0]]], K)),
        (TypeError, "kernel must be an array", lambda: conv(X, [[[1.0]]])),
        (TypeError, "x must be a floating-point array, got int", lambda: conv(X.astype(int), K)),
        (TypeError, "bias must be a floating-point", lambda: conv(X, K, np.ones(6, int))),
        (TypeError, "preferred_element_type", lambda: conv(X, K, preferred_element_type=jnp.int32)),
        (TypeError, "preferred_element_type", lambda: conv(X, K, preferred_element_type=jnp.complex64)),
        (TypeError, "strides must be a static int", lambda: conv(X, K, strides=1.5)),
        (TypeError, "transpose_kernel", lambda: conv_transpose(X, K, transpose_kernel=1)),
        (ValueError, r"x must have .*\(2, 6\)", lambda: conv(X[:, :, 0, 0], K)),
        (ValueError, "x must have", lambda: conv(X[..., None, None], K[..., None, None])),
        (ValueError, r"kernel must have as many axes.*\(3, 4, 6\)", lambda: conv(X, K[0])),
        (ValueError, r"kernel of shape \(3, 3, 4, 6\)", lambda: conv(X[..., :3], K)),
        (ValueError, "a multiple of 1 for x of", lambda: conv(X[..., :3], K)),
        (ValueError, "feature_group_count is 3", lambda: conv(X, K, feature_group_count=3)),
        (ValueError, "multiple of 4", lambda: conv(X, K[:, :, :1], feature_group_count=4)),
        (ValueError, "feature_group_count", lambda: conv(X, K, feature_group_count=0)),
        (ValueError, r"kernel must have at least one entry.*\(0, 3, 4, 6\)", lambda: conv(X, K[:0])),
        (ValueError, r"bias must have shape \(6,\)", lambda: conv(X, K, np.ones(4))),
        (ValueError, r"bias must have shape \(6,\)", lambda: conv(X, K, np.ones((1, 6)))),
        (ValueError, r"bias must have shape \(4,\)", lambda: conv_transpose(X6, K, np.ones(6), transpose_kernel=True)),
        (ValueError, "strides must be at least 1", lambda: conv(X, K, strides=0)),
        (ValueError, "strides must be an int or 2", lambda: conv(X, K, strides=(1, 1, 1))),
        (ValueError, "strides must be at least 1", lambda: conv_transpose(X, K, strides=(1, -1))),
        (ValueError, "kernel_dilation", lambda: conv(X, K, kernel_dilation=(2,))),
        (ValueError, "input_dilation", lambda: conv(X, K, input_dilation=0, padding=0)),
        (ValueError, r"input_dilation is \(2, 1\)", lambda: conv(X, K, input_dilation=(2, 1))),
        (ValueError, "padding must be .*'FULL'", lambda: conv(X, K, padding="FULL")),
        (ValueError, "padding must be .*'SAME_LOWER'", lambda: conv_transpose(X, K, padding="SAME_LOWER")),
        (ValueError, "padding must be", lambda: conv(X, K, padding=(1, 2, 3))),
        (ValueError, "padding must be", lambda: conv(X, K, padding=((1, 2, 3), (1, 2)))),
        (ValueError, "padding must be", lambda: conv(X[:, 0], K[0], padding=(1, 2))),
        (ValueError, r"padding -4 crops .*\(2, 6, 5, 4\)", lambda: conv(X, K, padding=-4)),
        (ValueError, "Precision", lambda: conv(X, K, precision="exact")),
        *(
            (ValueError, "dimension_numbers must be", functools.partial(conv, X, K, dimension_numbers=names))
            for names in [
                "NHWC", ("NHWC", "HWIO"), ("NHWC", "HWIO", "NHC"), ("NHWC", "HWIO", "NHHC"), ("NHWC", "HWIO", "NHWD"),
                ("NHWC", "HWXO", "NHWC"), ("NHWC", "HDIO", "NHWC"), ("nhwc", "hwio", "nhwc"), (1, 2, 3),
                lax.conv_dimension_numbers(X.shape, K.shape, ("NHWC", "HWIO", "NHWC")),
            ]
        ),
    ],
)  # fmt: skip
def test_errors_name_the_argument(error, match, call):
    with pytest.raises(error, match=match):
        call()


@pytest.mark.parametrize(
    "x, kernel, options, read, suggested",
    [
        ((2, 3, 8, 9), (5, 3, 2, 2), {}, "N=2, H=3, W=8, C=9 and the kernel as H=5, W=3, I=2, O=2", NCHW),
        ((2, 3, 8, 9), (2, 2, 3, 5), {}, "N=2, H=3, W=8, C=9", ("NCHW", "HWIO", "NCHW")),
        ((2, 8, 9, 4), (5, 4, 3, 3), {}, "H=5, W=4, I=3, O=3", ("NHWC", "OIHW", "NHWC")),
        ((2, 9, 9, 3), (2, 2, 3, 5), {"dimension_numbers": NCHW}, "N=2, C=9, H=9, W=3", ("NHWC", "HWIO", "NHWC")),
        ((2, 6, 9, 9), (6, 1, 3, 3), {"feature_group_count": 6}, "H=6, W=1, I=3, O=3", NCHW),
        ((2, 3, 9), (5, 3, 4), {}, "N=2, H=3, C=9", ("NCH", "OIH", "NCH")),
        ((2, 3, 9), (3, 4, 5), {"dimension_numbers": ("NXC", "XIO", "NXC")}, "X=3, I=4, O=5", None),
        ((2, 6, 5, 4), (3, 3, 6, 7), {"transpose_kernel": True}, "I=6, O=7, of which transpose_kernel exchanges", None),
        ((2, 7, 5, 6), (7, 4, 3, 3), {"transpose_kernel": True}, "H=7, W=4, I=3, O=3", NCHW),
    ],
)
def test_axes_in_another_order_are_told(x, kernel, options, read, suggested):
    """How x and kernel were read, and in which common order their channels would fit."""
    function = conv_transpose if "transpose_kernel" in options else conv
    with pytest.raises(ValueError, match="dimension_numbers=") as error:
        function(np.ones(x), np.ones(kernel), **options)
    message = str(error.value)
    assert f" {read}" in message
    if suggested is None:
        assert "would fit" not in message
    else:
        assert message.endswith(f"with dimension_numbers={suggested} they would fit")
        function(np.ones(x), np.ones(kernel), **options | {"dimension_numbers": suggested})


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
@pytest.mark.parametrize("groups", [1, 4])
def test_16_bit_convolutions_write_16_bits_on_accelerators(platform, groups):
    """A result in float32 would be twice as much to write before it is rounded."""
    x, kernel, bias = (normal(*s, dtype=jnp.bfloat16) for s in ((2, 6, 6, 8), (3, 3, 8 // groups, 8), (8,)))

    def loss(x, kernel, bias):
        return jnp.sum(jn.conv(x, kernel, bias, strides=2, feature_group_count=groups))

    gradient = jax.jit(jax.grad(loss, (0, 1, 2)))
    module = export.export(gradient, platforms=[platform])(x, kernel, bias).mlir_module()
    results = re.findall(r"stablehlo\.convolution.*-> tensor<[\dx]*(\w+)>", module)
    assert results == ["bf16"] * 2  # the value of a sum that is linear in it is not needed
