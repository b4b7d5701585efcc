"""Pooling: the rules against their twins and lax over random geometries, and the contract beside the numbers."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from support import assert_close, normal, value_and_vjp

import jaxnorm as jn
from jaxnorm import reference
from jaxnorm._lower.platforms import forced
from jaxnorm._lower.pooling.cpu import CpuWindows
from jaxnorm.check import saved_bytes

KINDS = pytest.mark.parametrize("kind", ["cpu", "cuda"])


def rounded(*shape: int, seed: int = 0, dtype: Any = np.float64) -> jax.Array:
    """Random numbers among which many are equal."""
    return jnp.round(normal(*shape, seed=seed), 0).astype(dtype)


# --- random geometries ----------------------------------------------------------------------------------------------


@st.composite
def geometries(draw):
    """A shape and options."""
    space = draw(st.integers(1, 3))

    def per_axis(low, high):
        return tuple(draw(st.integers(low, high)) for _ in range(space))

    axis = draw(st.integers(1, space + 1))
    window = per_axis(1, 6 - space)
    strides = draw(st.none() | st.just(per_axis(1, 3)))
    ends = st.integers(0, max(window) + 1)
    kinds = [st.sampled_from(["SAME", "SAME_LOWER", "VALID"]), ends, st.tuples(*[st.tuples(ends, ends)] * space)]
    shape = [draw(st.integers(1, 2)), *per_axis(1, 8 - space)]
    shape.insert(axis, draw(st.sampled_from([1, 2, 9])))
    feature_axis = draw(st.sampled_from([axis, axis - len(shape)]))
    options = {"strides": strides, "padding": draw(st.one_of(kinds)), "feature_axis": feature_axis}
    return tuple(shape), window, options


def by_lax(name, x, window, strides, padding, feature_axis):
    """lax's own pooling, padding included in the count."""
    axes = [axis for axis in range(1, x.ndim) if axis != feature_axis % x.ndim]
    sizes, steps = [x.shape[axis] for axis in axes], strides or window
    if isinstance(padding, str):
        pads = lax.padtype_to_pads(sizes, window, steps, padding)
    else:
        pads = [(padding, padding)] * len(axes) if isinstance(padding, int) else padding
    every = [[1] * x.ndim, [1] * x.ndim, [(0, 0)] * x.ndim]
    for values, all_axes in zip((window, steps, pads), every, strict=True):
        for axis, value in zip(axes, values, strict=True):
            all_axes[axis] = value
    if name == "max_pool":
        return lax.reduce_window(x, -np.inf, lax.max, *every)
    return lax.reduce_window(x, 0.0, lax.add, *every) / np.prod(window)


exploring = settings(
    max_examples=15,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.generate],  # each step of a reduction would compile anew
    suppress_health_check=[HealthCheck.too_slow],
)


@pytest.mark.thorough
@pytest.mark.usefixtures("quick_compilation")
@exploring
@given(geometries())
def test_pooling_matches_its_twin_and_lax_on_random_geometries(geometry):
    """Ties included, and but for lax, whose padding wins over it, -inf; on either formulation, in one compilation."""
    shape, window, options = geometry
    finite = rounded(*shape)
    infinite = jnp.where(normal(*shape, seed=1) < -1, -jnp.inf, finite)
    cases = [("max_pool", infinite, {}), ("max_pool", finite, None), ("avg_pool", finite, None)]
    cases += [("avg_pool", finite, {"count_include_pad": count}) for count in (True, False)]

    def all_results(arrays):
        results = []
        for (name, _, own), x in zip(cases, arrays, strict=True):
            if own is None:
                theirs = functools.partial(by_lax, name, window=window, **options)
            else:
                theirs = functools.partial(getattr(reference, name), window=window, **options, **own)
            ours = functools.partial(getattr(jn, name), window=window, **options, **(own or {}))
            g = normal(*jax.eval_shape(theirs, x).shape, seed=3)
            wanted = value_and_vjp(theirs, [x], g)
            for kind in ("cpu", "cuda"):
                with forced(kind):
                    results.append((value_and_vjp(ours, [x], g), wanted))
        return results

    for got, wanted in jax.jit(all_results)([x for _, x, _ in cases]):
        assert_close(got, wanted)


@pytest.mark.thorough
@pytest.mark.usefixtures("quick_compilation")
@KINDS
@pytest.mark.parametrize("window, stride", [((40,), 3), ((4, 7), 2)])
def test_long_windows(window, stride, kind):
    """Those that are taken pass by pass, in a loop."""
    x = rounded(2, *(2 * k + 1 for k in window), 2)
    for name in ("max_pool", "avg_pool"):
        ours, theirs = (functools.partial(getattr(m, name), window=window, strides=stride) for m in (jn, reference))
        g = normal(*jax.eval_shape(ours, x).shape, seed=1)
        with forced(kind):
            got = jax.jit(lambda x, g, f=ours: value_and_vjp(f, [x], g))(x, g)
        assert_close(got, value_and_vjp(theirs, [x], g))


@pytest.mark.usefixtures("quick_compilation")
@pytest.mark.parametrize("window, stride, padding", [(40, 1, 20), (61, 2, (0, 50))])
def test_a_long_window_is_two_passes_over_short_ones(window, stride, padding):
    """Of x with few numbers that are not -inf, so that whole short windows and the padding around them tie."""
    pads = (padding, padding) if isinstance(padding, int) else padding
    options = {"window": window, "strides": stride, "padding": (pads,)}
    x = rounded(2, 70, 2)
    sparse = jnp.where(normal(2, 70, 2, seed=1) < 2, -jnp.inf, x).at[0, 30, 0].set(jnp.nan)
    passes = list(CpuWindows((1,), (70,), (window,), (stride,), (pads,), 3)._passes())
    assert len(passes) == 2 and sum(one.window[0] for one in passes) < window / 2
    g = normal(*jax.eval_shape(functools.partial(jn.max_pool, **options), x).shape, seed=2)

    def results(module):
        cases = ("max_pool", x), ("max_pool", sparse), ("avg_pool", x)
        return [value_and_vjp(functools.partial(getattr(module, name), **options), [x], g) for name, x in cases]

    with forced("cpu"):
        ours = jax.jit(lambda: results(jn))()
    assert_close(ours, jax.jit(lambda: results(reference))())


# --- ties, NaN, padding ---------------------------------------------------------------------------------------------

NAN, INF = jnp.nan, jnp.inf


@KINDS
@pytest.mark.parametrize("dtype", [jnp.float64, jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize(
    "row, y, dx",
    [
        ([1, 1, 1, 1], [1, 1], [1, 0, 2, 0]),
        ([0.0, -0.0, -0.0, 0.0], [0, 0], [1, 0, 2, 0]),
        ([1, NAN, NAN, INF], [NAN, NAN], [0, 1, 2, 0]),
        ([INF, NAN, INF, NAN], [NAN, NAN], [0, 1, 0, 2]),
        ([-NAN, 1, INF, INF], [NAN, INF], [1, 0, 2, 0]),
        ([-INF, -INF, -INF, -1], [-INF, -1], [1, 0, 0, 2]),
        ([3e38, INF, 3e38, 3e38], [INF, 3e38], [0, 1, 2, 0]),
    ],
)
def test_ties_and_nan(row, y, dx, dtype, kind):
    x = jnp.array(row, dtype)
    y = jnp.array(y, dtype)
    with forced(kind):
        got, vjp = jax.vjp(lambda x: jn.max_pool(x.reshape(1, 4, 1), 2)[0, :, 0], x)
        np.testing.assert_array_equal(np.asarray(got, float), np.asarray(y, float))
        if dtype != jnp.float16 or 3e38 not in row:  # else it is infinity, and ties
            np.testing.assert_array_equal(np.asarray(vjp(jnp.array([1, 2], dtype))[0], float), dx)


@KINDS
def test_the_first_in_row_major_order_wins(kind):
    """Where the first row that attains the maximum attains it later than another row does."""
    x = jnp.array([[0.0, 5, 5], [5, 1, 1], [5, 5, 5]]).reshape(1, 3, 3, 1)
    for window in (3, (2, 3), (3, 2)):
        with forced(kind):
            dx = jax.grad(lambda x, w=window: jn.max_pool(x, w).sum())(x)
        assert dx[0, 0, 1, 0] == 1 and dx.sum() == 1
    tall = jnp.zeros((1, 12, 12, 1)).at[0, 3, 7].set(1).at[0, 4, 0].set(1)  # in two passes
    with forced(kind):
        assert jax.grad(lambda x: jn.max_pool(x, 12).sum())(tall)[0, 3, 7, 0] == 1


@KINDS
def test_windows_of_padding_alone(kind):
    x = jnp.full((1, 3, 1), -jnp.inf).at[0, 1, 0].set(-2.0)
    options: Any = {"strides": 2, "padding": ((3, 4),)}
    with forced(kind):
        y, vjp = jax.vjp(lambda x: jn.max_pool(x, 2, **options), x)
        assert y[0, :, 0].tolist() == [-INF, -INF, -2, -INF, -INF]
        assert vjp(jnp.ones_like(y))[0][0, :, 0].tolist() == [1, 1, 0]  # padding never wins
        for count_include_pad in (True, False):
            average = functools.partial(jn.avg_pool, window=2, count_include_pad=count_include_pad, **options)
            y, vjp = jax.vjp(average, jnp.ones((1, 3, 1)))
            assert y[0, :, 0].tolist() == [0, 0.5 if count_include_pad else 1, 1, 0, 0]
            assert np.isfinite(vjp(jnp.ones_like(y))[0]).all()


def test_infinities_of_other_windows_stay_there():
    x = jnp.array([INF, 1, 2, NAN, 3, 4]).reshape(1, 6, 1)
    y, vjp = jax.vjp(lambda x: jn.avg_pool(x, 2), x)
    np.testing.assert_array_equal(y[0, :, 0], [INF, NAN, 3.5])
    np.testing.assert_array_equal(
        vjp(jnp.array([INF, 2, NAN]).reshape(1, 3, 1))[0][0, :, 0], [INF, INF, 1, 1, NAN, NAN]
    )


# --- dtypes, what is kept, empties ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32, jnp.float64])
@pytest.mark.parametrize("name", ["max_pool", "avg_pool"])
def test_dtypes_and_what_is_kept(name, dtype):
    x = normal(2, 6, 7, 3, dtype=dtype)
    pool = functools.partial(getattr(jn, name), window=3, strides=2, padding="SAME")
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        y, vjp = jax.vjp(pool, x)
        (dx,) = vjp(jnp.ones_like(y))
    assert y.dtype == dx.dtype == dtype and dx.shape == x.shape
    assert saved_bytes(pool, x) == 0
    kept = jax.tree.leaves(vjp)
    assert len(kept) == (name == "max_pool")


def test_16_bit_sums_accumulate_in_float32():
    x = jnp.ones((1, 4096, 1), jnp.bfloat16)
    y, vjp = jax.vjp(lambda x: jn.avg_pool(x, 4096), x)
    assert y == 1  # a sum of ones in bfloat16 stops at 256
    peak = jnp.zeros((1, 1023, 1), jnp.bfloat16).at[0, 511].set(1)  # in every window
    for name, share in (("max_pool", 1), ("avg_pool", 1 / 512)):
        y, vjp = jax.vjp(lambda x, name=name: getattr(jn, name)(x, 512, strides=1), peak)
        assert vjp(jnp.ones_like(y))[0][0, 511, 0] == 512 * share


@pytest.mark.parametrize(
    "shape, options",
    [
        ((0, 5, 3), {}),
        ((2, 5, 0), {}),
        ((2, 0, 3), {}),
        ((2, 0, 3), {"padding": "SAME"}),
        ((2, 0, 3), {"padding": 2}),
        ((2, 2, 3), {}),
        ((0, 3, 5), {"feature_axis": 1, "strides": 1}),
    ],
)
def test_empty_arrays(shape, options):
    x = normal(*shape)
    for name in ("max_pool", "avg_pool"):
        pool, twin = (functools.partial(getattr(m, name), window=3, **options) for m in (jn, reference))
        y, vjp = jax.vjp(pool, x)
        assert y.shape == twin(x).shape and (y == (0 if name == "avg_pool" else -jnp.inf)).all()
        (dx,) = vjp(jnp.ones_like(y))
        assert dx.shape == x.shape and not dx.any()
        assert jax.vmap(pool)(jnp.stack([x] * 2)).shape == (2, *y.shape)


# --- transformations --------------------------------------------------------------------------------------------------


def curved(fun):
    """A scalar whose derivatives of every order depend on every output."""
    return lambda x: jnp.sum(jnp.sin(fun(x)))


@pytest.mark.usefixtures("quick_compilation")
@KINDS
@pytest.mark.parametrize("name", ["max_pool", "avg_pool"])
def test_transformations(name, kind):
    """vmap over every axis, scan, remat, grad of grad, jvp of grad."""
    x, tangent = normal(3, 4, 5, 6), normal(3, 4, 5, 6, seed=1)

    def results(module):
        pool = functools.partial(getattr(module, name), window=(2, 3), strides=(1, 2), padding=1)
        rows = functools.partial(getattr(module, name), window=3, strides=2, padding="SAME")
        gradient = jax.grad(curved(pool))
        return [
            jax.grad(lambda x: jnp.sum(gradient(x) ** 3))(x),
            jax.jvp(gradient, (x,), (tangent,)),
            jax.grad(curved(jax.checkpoint(lambda x: pool(jnp.sin(x)))))(x),
            *(jax.vmap(jax.grad(curved(rows)), axis, axis)(x) for axis in range(4)),
            jax.grad(lambda x: lax.scan(lambda carry, x: (carry + rows(x).sum() * carry, rows(x)), 1.0, x)[0])(x / 9),
        ]

    with forced(kind):
        ours = jax.jit(lambda: results(jn))()
    assert_close(ours, jax.jit(lambda: results(reference))())


@pytest.mark.thorough
def test_second_derivatives_outside_jit():
    x = normal(2, 5, 4)
    for name in ("max_pool", "avg_pool"):
        gradients = [
            jax.grad(curved(functools.partial(getattr(m, name), window=3, strides=2))) for m in (jn, reference)
        ]
        results = [jax.grad(lambda x, g=g: jnp.sum(g(x) ** 3))(x) for g in gradients]
        assert_close(*results)


SPLIT = [P("a", "b"), P("a", None, "b"), P(("a", "b")), P(None, "a", "b", None), P("b", None, None, "a")]


@pytest.mark.usefixtures("quick_compilation")
@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
@pytest.mark.parametrize("name", ["max_pool", "avg_pool"])
def test_batch_rows_or_channels_split_over_a_mesh(name, axis_type):
    x, mesh = normal(8, 12, 8, 4), jax.make_mesh((4, 2), ("a", "b"), axis_types=(axis_type,) * 2)
    pool = functools.partial(getattr(jn, name), window=3, strides=2, padding="SAME")
    g = normal(8, 6, 4, 4, seed=1)
    both = jax.jit(lambda x, g: value_and_vjp(pool, [x], g))
    wanted = both(x, g)
    for spec in SPLIT:
        split = jax.device_put(x, NamedSharding(mesh, spec))
        with jax.set_mesh(mesh):
            rows_whole = P(spec[0], None, None, *spec[3:])
            got = both(split, jax.device_put(g, NamedSharding(mesh, rows_whole)))
        assert_close(jax.device_get(got), jax.device_get(wanted))
        if axis_type == AxisType.Explicit:
            assert got[1][0].sharding.is_equivalent_to(split.sharding, 4)


@pytest.mark.usefixtures("quick_compilation")
@pytest.mark.parametrize("check_vma", [True, False])
@pytest.mark.parametrize("name", ["max_pool", "avg_pool"])
def test_shard_map(name, check_vma):
    """A long window too, which is a loop."""
    x, mesh = normal(8, 60, 2), jax.make_mesh((8,), ("a",), axis_types=(AxisType.Auto,))

    def both(x):
        results = []
        for window in (3, 40):
            y, vjp = jax.vjp(lambda x, k=window: getattr(jn, name)(x, k, strides=2, padding="SAME"), x)
            results.append((y, vjp(jnp.cos(y))))
        return results

    mapped = jax.shard_map(both, mesh=mesh, in_specs=P("a"), out_specs=P("a"), check_vma=check_vma)
    assert_close(jax.jit(mapped)(x), jax.jit(both)(x))


# --- errors -----------------------------------------------------------------------------------------------------------

max_pool: Any = jn.max_pool  # typed loosely: wrong types are the point here
X = np.ones((2, 6, 5, 4))


@pytest.mark.parametrize(
    "error, match, call",
    [
        (TypeError, "x must be an array", lambda: max_pool([[[1.0]]], 1)),
        (TypeError, "x must be a floating-point array, got int", lambda: max_pool(X.astype(int), 2)),
        (TypeError, "window must be a static int", lambda: max_pool(X, 1.5)),
        (TypeError, "strides must be a static int", lambda: max_pool(X, 2, strides="2")),
        (TypeError, "feature_axis", lambda: max_pool(X, 2, feature_axis=1.0)),
        (TypeError, "count_include_pad", lambda: jn.avg_pool(X, 2, count_include_pad=1)),  # pyright: ignore
        (ValueError, r"x must have .*\(2, 6\)", lambda: max_pool(X[:, :, 0, 0], 2)),
        (ValueError, "x must have", lambda: max_pool(X[..., None, None], 2)),
        (ValueError, "window must be an int or 2", lambda: max_pool(X, (2,))),
        (ValueError, "window must be at least 1", lambda: max_pool(X, 0)),
        (ValueError, "strides must be at least 1", lambda: max_pool(X, 2, strides=(1, 0))),
        (ValueError, "padding must not be negative, got -1", lambda: max_pool(X, 2, padding=-1)),
        (ValueError, "padding must not be negative", lambda: max_pool(X, 2, padding=((0, 1), (-1, 0)))),
        (ValueError, "padding must be .*'FULL'", lambda: max_pool(X, 2, padding="FULL")),
        (ValueError, "padding must be", lambda: max_pool(X, 2, padding=(1, 2, 3))),
        (ValueError, "feature_axis must not be 0", lambda: max_pool(X, 2, feature_axis=-4)),
        (ValueError, "feature_axis 4 is out of range", lambda: max_pool(X, 2, feature_axis=4)),
    ],
)
def test_errors_name_the_argument(error, match, call):
    with pytest.raises(error, match=match):
        call()


def test_forward_mode_is_jaxs_own_type_error():
    with pytest.raises(TypeError):
        jax.jvp(lambda x: jn.max_pool(x, 2), (X,), (X,))
    assert jax.jvp(lambda x: reference.max_pool(x, 2), (X,), (2 * X,))[1].shape == (2, 3, 2, 4)
