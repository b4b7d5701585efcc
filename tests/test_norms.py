"""Normalization: conventions, numerics, masks, statistics, what is kept, errors."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import CASES, CHOSEN, assert_close, random_like, value_and_vjp

import jaxnorm as jn
from jaxnorm import reference
from jaxnorm._lower.platforms import forced
from jaxnorm.check import saved_bytes
from jaxnorm.check._library import check_case

NORMS = {
    "normalize": partial(jn.normalize, reduction_axes=-1),
    "layer": jn.layer_norm,
    "rms": jn.rms_norm,
    "group": partial(jn.group_norm, num_groups=2),
    "instance": jn.instance_norm,
    "batch": lambda x, *parameters, **options: jn.batch_norm(x, *parameters, training=True, **options)[0],
}
over_norms = pytest.mark.parametrize("norm", NORMS.values(), ids=NORMS)
CENTRED = {name: norm for name, norm in NORMS.items() if name != "rms"}
over_centred_norms = pytest.mark.parametrize("norm", CENTRED.values(), ids=CENTRED)


@over_norms
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
def test_kept_beyond_the_inputs_is_under_one_percent(norm, dtype):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(16, 64, 8, 512)), dtype)
    scale = jnp.ones(512, jnp.float32)
    for parameters in ((), (scale,)):
        assert saved_bytes(norm, x, *parameters) < 0.01 * x.nbytes


@pytest.mark.usefixtures("formulation")
@over_centred_norms
def test_large_mean_keeps_its_digits_in_float32(norm):
    x = jnp.asarray(1e4 + np.random.default_rng(0).normal(size=(32, 64, 512)), jnp.float32)
    truth = norm(jnp.asarray(x, jnp.float64))
    y, vjp = jax.vjp(norm, x)
    for value in (y, norm(x)):  # the rule's, and where nothing is differentiated
        np.testing.assert_allclose(np.std(value, dtype=np.float64), 1, atol=1e-3)
        np.testing.assert_allclose(value, truth, atol=2e-5)  # flax's batch norm: std 0.26
    g = random_like(x, seed=1)
    (dx,) = vjp(g)
    (exact,) = jax.vjp(norm, jnp.asarray(x, jnp.float64))[1](jnp.asarray(g, jnp.float64))
    np.testing.assert_allclose(dx, exact, atol=2e-5)


@over_centred_norms
@pytest.mark.parametrize("value", [0.0, 1.0, 1e4 / 3, -1e15 / 3, 1e-30])
def test_constant_groups_give_the_bias_and_gradient_zero(norm, value, formulation):
    x = jnp.full((2, 3, 6), value, jnp.float32)
    y, vjp = jax.vjp(norm, x)
    rounding = 0 if formulation is None else 1e-11 * abs(value)  # of the mean's mean, which no element is near
    assert np.abs(y).max() <= rounding and np.abs(norm(x)).max() <= rounding
    assert np.isfinite(vjp(random_like(y))[0]).all()


@pytest.mark.usefixtures("formulation")
@over_norms
def test_size_1e15_overflows_nowhere(norm):
    x = jnp.asarray(1e15 * np.random.default_rng(0).normal(size=(8, 6, 256)), jnp.float32)
    y, vjp = jax.vjp(norm, x)
    exact, exact_vjp = jax.vjp(norm, jnp.asarray(x, jnp.float64))
    g = random_like(x, seed=1)
    for value in (y, norm(x)):
        np.testing.assert_allclose(value, exact, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(1e15 * vjp(g)[0], 1e15 * exact_vjp(jnp.asarray(g, jnp.float64))[0], atol=1e-4)


@pytest.mark.usefixtures("formulation")
@over_norms
def test_an_outlier_costs_the_others_no_digits(norm):
    """A shift far from the mean would: the first element is where the search for the shift begins."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 64, 512)), jnp.float32).at[0, 0, 0].set(1e7)
    exact = np.asarray(norm(jnp.asarray(x, jnp.float64)))
    for value in (norm(x), jax.vjp(norm, x)[0]):
        np.testing.assert_allclose(value, exact, rtol=2e-6, atol=2.5e-7)


@pytest.mark.usefixtures("formulation")
@over_norms
def test_empty_arrays(norm):
    for shape in ((0, 3, 4), (2, 0, 4)):
        y, vjp = jax.vjp(norm, jnp.zeros(shape))
        assert y.shape == vjp(y)[0].shape == shape
    y, vjp = jax.vjp(norm, jnp.zeros((0, 3, 4)), jnp.ones(4))
    assert not vjp(y)[1].any()


def test_running_statistics_pass_the_gradient_of_a_batch_of_one():
    x, stats = jnp.array([[1.0, -2.0, 3.0]]), jn.BatchStats(jnp.zeros(3), jnp.array([4.0, 1.0, 0.25]))
    _, vjp = jax.vjp(lambda x: jn.batch_norm(x, stats=stats, training=False, epsilon=0.0)[0], x)
    np.testing.assert_allclose(vjp(jnp.ones((1, 3)))[0], [[0.5, 1.0, 2.0]])


@pytest.mark.usefixtures("formulation")
def test_nan_is_not_swallowed():
    x = jnp.ones((2, 4)).at[0, 1].set(jnp.nan)
    for where in (None, jnp.ones((2, 4), bool)):
        assert np.isnan(jn.layer_norm(x, where=where)[0]).all()
    assert np.isfinite(jn.layer_norm(x, where=~jnp.isnan(x))[0, [0, 2, 3]]).all()


@pytest.mark.usefixtures("formulation")
def test_masked_positions_may_hold_anything():
    rng = np.random.default_rng(0)
    mask = rng.random((4, 7, 5)) < 0.6
    mask[2] = False  # an empty example
    x = rng.normal(size=mask.shape)
    clean = jn.group_norm(x, num_groups=1, where=mask)
    dirty = jn.group_norm(np.where(mask, x, np.inf), num_groups=1, where=mask)
    np.testing.assert_array_equal(np.asarray(clean)[mask], np.asarray(dirty)[mask])
    assert not dirty[2].any()


@pytest.mark.usefixtures("formulation")
def test_groups_with_too_few_selected_are_empty():
    x, mask = jnp.arange(12.0).reshape(3, 4), jnp.arange(4) < jnp.array([[0], [1], [3]])
    scale, bias = jnp.full(4, 2.0), jnp.arange(4.0)
    y, vjp = jax.vjp(lambda x: jn.normalize(x, scale, bias, reduction_axes=1, ddof=1, where=mask), x)
    np.testing.assert_array_equal(y[:2], np.broadcast_to(bias, (2, 4)))
    (dx,) = vjp(random_like(y))
    assert not dx[:2].any() and dx[2].any()


@given(
    st.lists(st.integers(1, 5), min_size=1, max_size=4).flatmap(
        lambda shape: st.tuples(st.just(shape), st.sets(st.integers(0, len(shape) - 1)), st.integers(0, 2**16))
    ),
    st.booleans(),
    st.booleans(),
    st.booleans(),
)
@settings(max_examples=14, deadline=None, derandomize=True)
def test_any_axes_any_parameter_shapes_any_mask(shape_axes_seed, use_mean, with_mask, bare):
    shape, axes, seed = shape_axes_seed
    rng = np.random.default_rng(seed)
    shapes = [tuple(s if rng.random() < 0.5 else 1 for s in shape)[rng.integers(0, len(shape) + 1) :] for _ in range(3)]
    x, scale, bias = (jnp.asarray(rng.normal(size=s)) for s in (shape, *shapes[:2]))
    where = jnp.asarray(rng.random(shapes[2]) < 0.6) if with_mask else None
    options = {"reduction_axes": tuple(axes), "use_mean": use_mean, "where": where}
    arguments = (x,) if bare else (x, scale, bias)

    @jax.jit  # one compilation instead of one for each operation
    def both(arguments, g):
        return [value_and_vjp(partial(m.normalize, **options), arguments, g) for m in (jn, reference)]

    assert_close(*both(arguments, random_like(x, seed=1)))


def test_batch_norm_running_statistics():
    x = jnp.asarray(np.random.default_rng(0).normal(3, 2, size=(10, 4)))
    _, own = jn.batch_norm(x, training=True, running_ddof=1)
    assert_close(tuple(own), (x.mean(0), x.var(0, ddof=1)))
    old = jn.BatchStats(jnp.full(4, 5.0), jnp.full(4, 7.0))
    _, new = jn.batch_norm(x, stats=old, training=True, momentum=0.75)
    assert_close(tuple(new), (0.75 * 5 + 0.25 * x.mean(0), 0.75 * 7 + 0.25 * x.var(0)))
    _, kept = jn.batch_norm(x, stats=old, training=True, where=jnp.array([True, True, False, True]))
    assert kept.mean[2] == 5 and kept.var[2] == 7 and kept.mean[1] != 5
    only_one = jnp.arange(10)[:, None] < jnp.array([1, 2, 3, 4])
    _, few = jn.batch_norm(x, stats=old, training=True, where=only_one, running_ddof=1)
    assert few.var[0] == 7 and few.mean[0] != 5 and few.var[1] != 7
    _, same = jn.batch_norm(x, stats=old, training=False)
    assert_close(tuple(same), tuple(old))
    assert type(own) is type(same) is jn.BatchStats


@pytest.mark.parametrize("training", [True, False])
def test_running_statistics_carry_no_gradient(training):
    x, stats = jnp.asarray(np.random.default_rng(0).normal(size=(6, 3))), jn.init_batch_stats(3, dtype=jnp.float64)
    (y, new), vjp = jax.vjp(lambda x, stats: jn.batch_norm(x, stats=stats, training=training), x, stats)
    dx, dstats = vjp((jnp.zeros_like(y), random_like(new)))
    assert not dx.any() and not dstats.mean.any() and not dstats.var.any()
    assert not any(leaf.any() for leaf in vjp((random_like(y), random_like(new)))[1])


@pytest.mark.parametrize(
    ("dtype", "wanted"), [(jnp.float32, jnp.float32), (jnp.bfloat16, jnp.float32), (jnp.float64, jnp.float64)]
)
def test_dtypes_of_outputs_and_statistics(dtype, wanted):
    x, scale = jnp.ones((4, 3), dtype), jnp.ones(3, jnp.float32)
    y, stats = jn.batch_norm(x, scale, training=True)
    assert y.dtype == dtype and stats.mean.dtype == stats.var.dtype == wanted
    assert jn.layer_norm(x, scale).dtype == dtype
    assert jn.init_batch_stats(3, dtype=wanted).mean.dtype == wanted


def test_statistics_of_bfloat16_are_float32():
    """With mean 10 the bfloat16 statistics of a rule that accumulated in bfloat16 would be off by percents."""
    x = jnp.asarray(np.random.default_rng(0).normal(10, 1, size=(4096, 2)), jnp.bfloat16)
    _, stats = jn.batch_norm(x, training=True)
    wide = np.asarray(x, np.float64)
    np.testing.assert_allclose(stats.mean, wide.mean(0), rtol=1e-5)
    np.testing.assert_allclose(stats.var, wide.var(0), rtol=1e-4)


X = jnp.ones((2, 3, 4))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: jn.layer_norm([1.0, 2.0]), TypeError, "x must be an array, got list"),
        (lambda: jn.layer_norm(jnp.ones(3, int)), TypeError, r"x must be a floating-point array.*\(3,\)"),
        (lambda: jn.layer_norm(X, jnp.ones(3)), ValueError, r"scale must have shape \(4,\).*got \(3,\)"),
        (lambda: jn.layer_norm(X, bias=jnp.ones((3, 4))), ValueError, r"bias must have shape \(4,\)"),
        (lambda: jn.layer_norm(X, jnp.ones((4, 3)), reduction_axes=(2, 1)), ValueError, r"scale.*\(3, 4\)"),
        (lambda: jn.layer_norm(X, reduction_axes=3), ValueError, r"reduction_axes 3 is out of range for x of shape"),
        (lambda: jn.layer_norm(1.0), ValueError, r"x must have at least one axis, got a scalar"),
        (lambda: jn.layer_norm(X, reduction_axes=(1, -2)), ValueError, r"names an axis of x of shape .* twice"),
        (lambda: jn.layer_norm(X, reduction_axes=1.0), TypeError, "reduction_axes must be a static int"),
        (lambda: jn.layer_norm(X, epsilon=-1e-5), ValueError, "epsilon"),
        (lambda: jn.rms_norm(X, epsilon=float("nan")), ValueError, "epsilon"),
        (lambda: jn.layer_norm(X, epsilon=np.inf), ValueError, r"epsilon must lie in \[0, inf\), got inf"),
        (lambda: jn.layer_norm(X, axis_name="d"), ValueError, "axis_name must name axes mapped.*got 'd'"),
        (lambda: jn.batch_norm(X, training=True, axis_name=["d", "e"]), ValueError, "axis_name must name axes"),
        (lambda: jn.layer_norm(X, where=jnp.ones((3, 3), bool)), ValueError, r"where of shape \(3, 3\)"),
        (lambda: jn.layer_norm(X, where=jnp.ones((2, 3, 4))), TypeError, "where must be boolean"),
        (lambda: jn.normalize(X, jnp.ones((2, 1, 3, 4)), reduction_axes=0), ValueError, "scale of shape"),
        (lambda: jn.normalize(X, reduction_axes=1, ddof=3), ValueError, "ddof must be below the 3 elements"),
        (lambda: jn.normalize(X, reduction_axes=1, ddof=-1), ValueError, "ddof must be at least 0"),
        (lambda: jn.normalize(X, reduction_axes=1, ddof=1, use_mean=False), ValueError, "ddof must be 0"),
        (lambda: jn.group_norm(X, num_groups=3), ValueError, "num_groups must divide the 4 channels"),
        (lambda: jn.group_norm(X, num_groups=0), ValueError, "num_groups must be at least 1"),
        (lambda: jn.group_norm(X, num_groups=1, feature_axis=0), ValueError, "feature_axis must not be 0"),
        (lambda: jn.instance_norm(X, feature_axis=-3), ValueError, "feature_axis must not be 0"),
        (lambda: jn.batch_norm(X, training=False), ValueError, "stats must be given with training=False"),
        (lambda: jn.batch_norm(X, training=True, momentum=1.5), ValueError, "momentum must lie in"),
        (lambda: jn.batch_norm(X, training=True, running_ddof=6), ValueError, "running_ddof must be below the 6"),
        (lambda: jn.batch_norm(X, training=1), TypeError, "training must be a static bool"),
        (lambda: jn.batch_norm(X, stats=(jnp.ones(3), jnp.ones(4)), training=True), ValueError, r"stats.mean.*\(4,\)"),
        (lambda: jn.batch_norm(X, stats=jnp.ones((2, 4)), training=True), TypeError, "stats must be a BatchStats"),
        (lambda: jn.init_batch_stats(-1), ValueError, "num_features"),
        (lambda: jn.init_batch_stats(3, dtype=int), TypeError, "dtype"),
        (lambda: jax.jit(jn.layer_norm, static_argnames=())(X, epsilon=jnp.ones(())), TypeError, "epsilon.*static"),
    ],
)
def test_errors_name_the_argument(call, error, message):
    with pytest.raises(error, match=message):
        call()


OTHERS = [("tpu", case) for case in CASES if "norm" in case.name]
OTHERS += [("cuda", case) for case in CHOSEN if "norm" in case.name]  # which differs from a TPU's in inference alone


@pytest.mark.thorough
@pytest.mark.usefixtures("quick_compilation")
@pytest.mark.parametrize(("platform", "case"), OTHERS, ids=[f"{p}-{c}".replace(" ", "_") for p, c in OTHERS])
def test_every_case_with_other_platforms_sums(platform, case):
    checks = ["precision", *(["transforms", "second order"] if case in CHOSEN and platform == "tpu" else [])]
    with forced(platform):
        check_case(case, checks=checks, dtypes=[jnp.bfloat16]).raise_if_failed()
