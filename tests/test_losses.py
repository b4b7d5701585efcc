"""Softmax and losses: digits of confident predictions, masks and infinities, labels, peers, what is kept, errors."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import CASES, CHOSEN, assert_close, over, random_like, value_and_vjp

import jaxnorm as jn
from jaxnorm import reference
from jaxnorm._lower import rows
from jaxnorm._lower.platforms import forced
from jaxnorm._lower.rows import FEW, LONG_ROW, OnePass, Rows
from jaxnorm.check import saved_bytes
from jaxnorm.check._library import check_case

INTEGER = jn.softmax_cross_entropy_with_integer_labels


def integer(logits, labels, **options):
    return INTEGER(logits, labels, **options)


def dense(logits, labels, **options):
    return jn.softmax_cross_entropy(logits, jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype), **options)


def linear(logits, labels, **options):
    """The logits as the bias of a layer without input: nothing is rounded on the way to the loss."""
    rows = jax.vmap(
        lambda bias, label: jn.linear_softmax_cross_entropy(
            jnp.zeros(1, bias.dtype), jnp.zeros((1, bias.size), bias.dtype), label, bias, block_size=3, **options
        )
    )
    return rows(logits, labels)


CROSS_ENTROPIES = {"integer": integer, "dense": dense, "linear": linear}
over_cross_entropies = pytest.mark.parametrize("loss", CROSS_ENTROPIES.values(), ids=CROSS_ENTROPIES)


def confident(lead: float, classes: int) -> np.ndarray:
    """One row whose label 1 leads by `lead`; the others are spread below."""
    row = -np.random.default_rng(0).random((1, classes)) * 3
    row[0, 1] = row.max() + lead
    return row


@given(
    st.integers(0, 2**16),
    st.lists(st.integers(1, 4), min_size=1, max_size=3),
    st.integers(0, 2),
    st.sampled_from([1, 2, 7, FEW, FEW + 1]),
    st.sampled_from([Rows, OnePass]),
    st.booleans(),
    st.sampled_from([1, 1 << 30]),
)
@settings(max_examples=12, deadline=None, derandomize=True)
def test_every_form_of_a_reduction(seed, sizes, axis, classes, kind, shared, large):
    axis = min(axis, len(sizes) - 1)
    sizes[axis] = classes
    row = [1 if a == axis else size for a, size in enumerate(sizes)]
    arrays = random_like([jnp.zeros((2, *shape)) for shape in (sizes, sizes, row)], seed)

    def of(x, y, factor, absent):
        assert absent is None
        return jnp.where(y > 0, x, factor * x)

    def reduced(*arrays):
        of_rows, operands = kind((axis,)), (*arrays, None)
        total, largest = of_rows.total(of, *operands, shared=shared), of_rows.largest(of, *operands)
        return total, largest, *of_rows.totals((of, lambda x, *_: x * x), *operands)

    def plain(*arrays):
        terms, x = of(*arrays, None), arrays[0]
        total, squares = (jnp.sum(t, axis, keepdims=True) for t in (terms, x * x))
        return total, jnp.max(terms, axis, keepdims=True), total, squares

    def with_gradients(function):
        def of_one(*arrays):
            value, vjp = jax.vjp(function, *arrays)
            return value, vjp(jax.tree.map(jnp.cos, value))

        return jax.vmap(of_one)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows, "LARGE", large)
        assert_close(*jax.jit(lambda *a: [with_gradients(f)(*a) for f in (reduced, plain)])(*arrays))


@pytest.mark.parametrize("classes", [3, FEW + 1])
@pytest.mark.parametrize("near", [0, 1e-9, 1e-6])
@pytest.mark.parametrize("level", [1e-3, 1.0, 300.0])
def test_ties_and_near_ties(level, near, classes):
    """Also such as differ by less than what exp can tell from a tie."""
    logits = jnp.full((1, classes), level - 5, jnp.float32).at[0, 1].set(level)
    logits = logits.at[0, 2].set(np.float32(level - near) if near else level)
    labels = jnp.full((1, classes), 1e-7, jnp.float32).at[0, 1].set(1 - 1e-4)
    got, wanted = (
        value_and_vjp(jn.softmax_cross_entropy, [jnp.asarray(a, dtype) for a in (logits, labels)], jnp.ones(1, dtype))
        for dtype in (jnp.float32, jnp.float64)
    )
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)
    got, wanted = (jn.log_softmax(jnp.asarray(logits, dtype)) for dtype in (jnp.float32, jnp.float64))
    np.testing.assert_allclose(got, wanted, rtol=1e-5)


@over_cross_entropies
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("classes", [2, 7, 1000])
def test_confident_predictions_keep_their_digits(loss, classes, dtype):
    logits = jnp.concatenate([jnp.asarray(confident(lead, classes), dtype) for lead in (5, 17, 20, 40, 80)])
    labels = jnp.ones(len(logits), jnp.int32)
    exact_rows = np.asarray(logits, np.float64)
    others = np.exp(np.delete(exact_rows, 1, axis=1) - exact_rows[:, 1:2])
    total = others.sum(axis=1, keepdims=True)
    exact = np.log1p(total)[:, 0]  # numpy's own doubles: log(1 + sum over the other classes)
    value, vjp = jax.vjp(lambda logits: loss(logits, labels), logits)
    (gradient,) = vjp(jnp.ones_like(value))
    assert value.dtype == jnp.float32 and gradient.dtype == dtype
    np.testing.assert_allclose(value, exact, rtol=1e-5)
    rounding = 1e-5 if dtype == jnp.float32 else 2**-8
    gradient = np.asarray(gradient, np.float64)
    np.testing.assert_allclose(gradient[:, 1:2], -total / (1 + total), rtol=rounding)
    np.testing.assert_allclose(np.delete(gradient, 1, axis=1), others / (1 + total), rtol=rounding)


@pytest.mark.parametrize(
    "options", [{"label_smoothing": 0.1}, {"weighted": True}, {"label_smoothing": 0.1, "weighted": True}]
)
@pytest.mark.parametrize("lead", [20, 80])
def test_confident_predictions_with_smoothing_weights_and_mask(lead, options):
    options = dict(options)
    if options.pop("weighted", False):
        options["class_weights"] = jnp.linspace(0.5, 2.0, 7, dtype=jnp.float32)
    wide = {k: jnp.asarray(v, jnp.float64) if k == "class_weights" else v for k, v in options.items()}
    where = jnp.arange(7) != 4
    logits = jnp.asarray(confident(lead, 7), jnp.float32)
    for mask in (None, where):
        got = jax.value_and_grad(lambda x, m=mask: INTEGER(x, jnp.array([1]), where=m, **options)[0])(logits)
        exact = jax.value_and_grad(lambda x, m=mask: INTEGER(x, jnp.array([1]), where=m, **wide)[0])(
            jnp.asarray(logits, jnp.float64)
        )
        np.testing.assert_allclose(float(got[0]), float(exact[0]), rtol=1e-5)
        np.testing.assert_allclose(got[1], exact[1], rtol=1e-5)


@over_cross_entropies
def test_infinite_and_extreme_logits(loss):
    """Finite where the exact answer is finite, +inf where it is +inf, never NaN."""
    inf = np.inf
    logits, labels, exact = zip(
        ([0.0, 1.0, -inf], 0, np.log1p(np.e)),
        ([0.0, 1.0, -inf], 2, inf),
        ([-inf, -inf, -inf], 1, inf),
        ([1e4, -1e4, 0.0], 0, 0.0),
        ([1e4, -1e4, 0.0], 1, 2e4),
        ([1e30, -1e30, 0.0], 0, 0.0),
        ([1e30, -1e30, 0.0], 1, 2e30),
        ([-1e30, -1e30, -1e30], 2, np.log(3)),
        ([-1e4, -1e4, -inf], 0, np.log(2)),
        strict=True,
    )
    for dtype in (jnp.float32, jnp.bfloat16, jnp.float64):
        value, vjp = jax.vjp(lambda x: loss(x, jnp.array(labels)), jnp.asarray(logits, dtype))
        np.testing.assert_allclose(value, exact, rtol=1e-2 if dtype == jnp.bfloat16 else 1e-6)
        gradient = np.asarray(vjp(jnp.ones_like(value))[0], np.float64)
        assert np.isfinite(gradient).all()
        np.testing.assert_allclose(gradient.sum(axis=1), 0, atol=1e-2)
        assert not gradient[np.isinf(logits).all(axis=1)].any()


def test_the_twin_has_the_gradient_of_impossible_and_invalid_labels():
    """p - [j = y] where the label's own logit is -inf, 0 where its class is masked, NaN where there is none of it."""
    logits = np.array([[0.0, -np.inf, 1.0], [0.0, 2.0, 1.0], [0.0, 2.0, 1.0], [-np.inf] * 3])
    labels, where = np.array([1, 2, -1, 0]), np.array([[True] * 3, [True, True, False], [True] * 3, [True] * 3])
    p = np.exp([0.0, -np.inf, 1.0]) / (1 + np.e)
    for module in (jn, reference):
        of_integers = partial(module.softmax_cross_entropy_with_integer_labels, labels=labels, where=where)
        loss, gradient = jax.jit(lambda x, f=of_integers: value_and_vjp(f, [x], jnp.ones(4)))(logits)
        np.testing.assert_array_equal(loss, [np.inf, np.inf, np.nan, np.inf])
        np.testing.assert_allclose(gradient[0], [p - [0, 1, 0], [0] * 3, [np.nan] * 3, [0] * 3])
        of_dense = partial(module.softmax_cross_entropy, labels=np.eye(3)[:2])
        _, gradient = jax.jit(lambda x, f=of_dense: value_and_vjp(f, [x], jnp.ones(2)))(logits[[0, 0]])
        np.testing.assert_allclose(gradient[0], p - np.eye(3)[:2])


@pytest.mark.thorough
@pytest.mark.usefixtures("quick_compilation")
@pytest.mark.parametrize("platform", ["tpu", "cuda"])
@over([case for case in CASES if "softmax" in case.name and "linear" not in case.name])
def test_every_case_with_other_platforms_sums(case, platform):
    checks = ["precision", *(["transforms", "second order"] if case in CHOSEN else [])]
    with forced(platform):
        check_case(case, checks=checks, dtypes=[jnp.bfloat16]).raise_if_failed()


@pytest.mark.usefixtures("formulation")
def test_class_masks():
    rng = np.random.default_rng(0)
    x, labels = jnp.asarray(rng.normal(size=(3, 5))), jnp.array([1, 2, 0])
    where = jnp.array([[1, 1, 0, 1, 0], [1, 1, 0, 1, 1], [0, 0, 0, 0, 0]], bool)
    p, log_p = jn.softmax(x, where=where), jn.log_softmax(x, where=where)
    assert not p[~where].any() and (log_p[~where] == -jnp.inf).all()
    np.testing.assert_allclose(p.sum(-1), [1, 1, 0], rtol=1e-12)
    g = random_like(x)
    for function in (jn.softmax, jn.log_softmax):
        gradient = jax.vjp(lambda x, f=function: f(x, where=where), x)[1](g)[0]
        assert np.isfinite(gradient).all() and not gradient[~where].any() and not gradient[2].any()
    loss, vjp = jax.vjp(lambda x: INTEGER(x, labels, where=where), x)
    np.testing.assert_allclose(loss, [-float(log_p[0, 1]), np.inf, np.inf])
    gradient = vjp(jnp.ones(3))[0]
    assert np.isfinite(gradient).all() and not gradient[~where].any() and not gradient[2].any()


@pytest.mark.parametrize("options", [{}, {"power": 2}, {"margin": 0.0, "weighted": True}])
@pytest.mark.parametrize("dtype, tolerance", [(jnp.float32, 1e-5), (jnp.float64, 1e-10)])
def test_svm_of_long_rows(dtype, tolerance, options):
    """Violations of rows beyond LONG_ROW are counted in another way."""
    options, classes = dict(options), LONG_ROW + 5
    if options.pop("weighted", False):
        options["class_weights"] = jnp.linspace(0.5, 2.0, classes)
    scores, labels = random_like(jnp.zeros((3, classes), dtype)), jnp.array([7, 0, classes - 1])
    scores = scores.at[1, 2:].set(-9).at[2, 5].set(-jnp.inf)  # few violations; none by a score of -inf
    wide, g = scores.astype(jnp.float64), random_like(jnp.zeros(3, dtype), 1)
    got = value_and_vjp(lambda s: jn.multiclass_svm_loss(s, labels, **options), [scores], g)
    wanted = value_and_vjp(lambda s: reference.multiclass_svm_loss(s, labels, **options), [wide], g.astype(jnp.float64))
    assert_close(jax.tree.map(lambda a: a.astype(jnp.float64), got), wanted, tolerance)


def test_dense_label_zero_at_minus_infinity_contributes_nothing():
    logits, labels = jnp.array([[0.0, -jnp.inf, 1.0]]), jnp.array([[0.5, 0.0, 0.5]])
    loss, vjp = jax.vjp(jn.softmax_cross_entropy, logits, labels)
    np.testing.assert_allclose(loss, np.log1p(np.e) - 0.5)
    dlogits, dlabels = vjp(jnp.ones(1))
    assert np.isfinite(dlogits).all() and dlabels[0, 1] == 0 and dlabels[0, 0] > 0


@pytest.mark.parametrize("loss", [INTEGER, jn.multiclass_svm_loss, jn.multiclass_hinge_loss], ids=lambda f: f.__name__)
@pytest.mark.parametrize("dtype", [jnp.int8, jnp.int32, jnp.int64, jnp.uint8, jnp.uint32], ids=lambda d: d.__name__)
def test_invalid_labels_are_nan_and_touch_no_other_example(loss, dtype):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 5)))
    bad = -1 if jnp.issubdtype(dtype, jnp.signedinteger) else 200
    labels = jnp.asarray(np.array([1, 5, 4, bad]), dtype)
    value, vjp = jax.vjp(lambda x: loss(x, labels), x)
    gradient = vjp(jnp.ones_like(value))[0]
    np.testing.assert_array_equal(np.isnan(value), [False, True, False, True])
    np.testing.assert_array_equal(np.isnan(gradient).all(-1), [False, True, False, True])
    clean = jax.vjp(lambda x: loss(x, labels[::2]), x[::2])
    assert_close((value[::2], gradient[::2]), (clean[0], clean[1](jnp.ones(2))[0]))


@pytest.mark.parametrize("ignore_index", [-100, 3, 255])
def test_ignored_labels(ignore_index):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 5))).at[1].set(jnp.nan)  # padding may hold anything
    labels = jnp.array([0, ignore_index, 2])
    loss, vjp = jax.vjp(lambda x: INTEGER(x, labels, ignore_index=ignore_index), x)
    gradient = vjp(jnp.ones(3))[0]
    assert loss[1] == 0 and not gradient[1].any() and np.isfinite(loss).all() and np.isfinite(gradient).all()
    x = jnp.nan_to_num(x)
    _, lse = INTEGER(x, labels, ignore_index=ignore_index, return_lse=True)
    np.testing.assert_allclose(lse, jax.nn.logsumexp(x, axis=-1))


def test_integer_labels_match_optax():
    x, labels = jnp.asarray(np.random.default_rng(0).normal(size=(6, 7))), jnp.arange(6)
    theirs = optax.softmax_cross_entropy_with_integer_labels
    np.testing.assert_allclose(INTEGER(x, labels), theirs(x, labels))
    np.testing.assert_allclose(INTEGER(x.T, labels, 0), theirs(x.T, labels, 0))
    where = jnp.broadcast_to(jnp.arange(7) != 6, x.shape)
    np.testing.assert_allclose(INTEGER(x, labels, -1, where), theirs(x, labels, -1, where))
    soft = jax.nn.softmax(x[::-1])
    np.testing.assert_allclose(jn.softmax_cross_entropy(x, soft), optax.softmax_cross_entropy(x, soft))
    np.testing.assert_allclose(jn.multiclass_hinge_loss(x, labels), optax.losses.multiclass_hinge_loss(x, labels))


def test_weights_and_smoothing_are_pytorchs():
    """The formula of torch.nn.functional.cross_entropy(weight, label_smoothing, reduction="none"), in numpy."""
    rng = np.random.default_rng(0)
    x, labels, w, a = rng.normal(size=(4, 5)), np.array([0, 3, 4, 1]), rng.random(5) + 0.1, 0.3
    log_p = x - np.log(np.exp(x).sum(-1, keepdims=True))
    exact = (1 - a) * w[labels] * -log_p[np.arange(4), labels] + a / 5 * (-log_p * w).sum(-1)
    np.testing.assert_allclose(INTEGER(x, labels, class_weights=w, label_smoothing=a), exact)


def test_hinge_kinks_and_ties():
    scores, label = jnp.array([[2.0, 1.0, 1.0, 0.0]]), jnp.array([0])  # margin exactly met by the others
    for loss in (jn.multiclass_svm_loss, jn.multiclass_hinge_loss):
        value, vjp = jax.vjp(lambda s, f=loss: f(s, label), scores)
        assert value[0] == 0 and not vjp(jnp.ones(1))[0].any()
    tied = jnp.array([[1.0, 2.0, 2.0, 0.0]])
    np.testing.assert_allclose(jax.grad(lambda s: jn.multiclass_hinge_loss(s, label)[0])(tied), [[-1, 0.5, 0.5, 0]])
    masked = jnp.array([[1.0, -jnp.inf, 1.5]])
    np.testing.assert_allclose(jn.multiclass_svm_loss(masked, label), [1.5])
    for loss in (jn.multiclass_svm_loss, jn.multiclass_hinge_loss):
        assert loss(jnp.ones((2, 1)), jnp.zeros(2, int)).tolist() == [0, 0]
        assert np.isnan(loss(jnp.array([[1.0, jnp.nan]]), label)).all()


@pytest.mark.parametrize(("rows", "classes"), [(2, 16), (8192, 16), (8192, 64)])
def test_nan_fills_its_row(rows, classes):
    """Of many rows XLA's CPU backend makes fusions in which a maximum would lose it."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(rows, classes)), jnp.float32).at[1, 3].set(jnp.nan)
    dense = partial(jn.softmax_cross_entropy, labels=jnp.full(x.shape, 1 / classes))
    for function in (jn.softmax, jn.log_softmax, dense, partial(INTEGER, labels=jnp.zeros(rows, int))):
        for call in (function, lambda x, f=function: jax.vjp(f, x)[0]):
            is_nan = np.isnan(jax.jit(call)(x)).reshape(rows, -1)
            assert is_nan[1].all() and not is_nan[0].any()


@pytest.mark.usefixtures("formulation")
def test_empty_arrays():
    for loss in (INTEGER, jn.multiclass_svm_loss, jn.multiclass_hinge_loss):
        assert jax.grad(lambda x, f=loss: f(x, jnp.zeros(0, int)).sum())(jnp.zeros((0, 3))).shape == (0, 3)
        assert np.isnan(loss(jnp.zeros((2, 0)), jnp.zeros(2, int))).all()
    for function in (jn.softmax, jn.log_softmax):
        for shape in ((0, 3), (2, 0)):
            y, vjp = jax.vjp(function, jnp.zeros(shape))
            assert y.shape == vjp(y)[0].shape == shape
    assert jn.softmax_cross_entropy(jnp.zeros((2, 0)), jnp.zeros((2, 0))).tolist() == [0, 0]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
def test_kept_beyond_the_inputs_are_rows(dtype):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(64, 4096)), dtype)
    labels, soft = jnp.arange(64), jnp.full(x.shape, 1 / 4096, dtype)

    assert saved_bytes(jn.softmax, x) == x.nbytes  # its output
    assert saved_bytes(jn.log_softmax, x) < 0.01 * x.nbytes
    assert saved_bytes(jn.softmax_cross_entropy, x, soft) < 0.01 * x.nbytes
    for loss in (INTEGER, jn.multiclass_svm_loss, jn.multiclass_hinge_loss):
        assert saved_bytes(lambda x, loss=loss: loss(x, labels), x) < 0.01 * x.nbytes


@given(st.integers(0, 2**16), st.integers(1, 6), st.integers(1, 9), st.booleans(), st.booleans(), st.booleans())
@settings(max_examples=12, deadline=None, derandomize=True)
def test_any_mixture_of_options(seed, rows, classes, smooth, weighted, masked):
    rng = np.random.default_rng(seed)
    x, labels = jnp.asarray(rng.normal(0, 3, size=(rows, classes))), jnp.asarray(rng.integers(0, classes, rows))
    options = {"label_smoothing": 0.2 * smooth, "return_lse": True}
    if masked:
        options["where"] = jnp.asarray(rng.random((rows, classes)) < 0.7).at[jnp.arange(rows), labels].set(True)
    weights = (jnp.asarray(rng.random(classes)),) if weighted else ()

    def of(module, x, *weights):
        def function(x, *w):
            extra = {"class_weights": w[0]} if w else {}
            return module.softmax_cross_entropy_with_integer_labels(x, labels, **options, **extra)

        value, vjp = jax.vjp(function, x, *weights)
        return value, vjp(random_like(value, seed))

    assert_close(*jax.jit(lambda *args: [of(jn, *args), of(reference, *args)])(x, *weights))


X, Y = jnp.ones((2, 3)), jnp.zeros(2, int)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: INTEGER([[1.0]], Y), TypeError, "logits must be an array, got list"),
        (lambda: INTEGER(X, jnp.zeros(2)), TypeError, "labels must be integers, got float64"),
        (lambda: INTEGER(X, jnp.zeros(3, int)), ValueError, r"labels must have shape \(2,\).*got \(3,\)"),
        (lambda: INTEGER(X, Y, 2), ValueError, r"axis 2 is out of range for logits of shape \(2, 3\)"),
        (lambda: INTEGER(X, Y, where=jnp.ones((3, 3), bool)), ValueError, "where of shape"),
        (lambda: INTEGER(X, Y, label_smoothing=1.5), ValueError, "label_smoothing must lie in"),
        (lambda: INTEGER(X, Y, logit_softcap=0.0), ValueError, "logit_softcap must be positive"),
        (lambda: INTEGER(X, Y, logit_softcap=jnp.inf), ValueError, r"logit_softcap must lie in \[0, inf\)"),
        (lambda: INTEGER(X, Y, class_weights=jnp.ones(2)), ValueError, r"class_weights must have shape \(3,\)"),
        (lambda: INTEGER(X, Y, ignore_index=1.5), TypeError, "ignore_index must be a static int"),
        (lambda: jn.softmax_cross_entropy(X, jnp.ones(3)), ValueError, "labels must have the shape of logits"),
        (lambda: jn.softmax_cross_entropy(jnp.ones((2, 3), int), X), TypeError, "logits must be a floating-point"),
        (lambda: jn.softmax(X, axis=5), ValueError, "axis 5"),
        (lambda: jn.softmax(X, where=jnp.ones(3)), TypeError, "where must be boolean"),
        (lambda: jn.multiclass_svm_loss(X, Y, power=3), ValueError, "power must be 1 or 2"),
        (lambda: jn.multiclass_svm_loss(X, Y, margin=jnp.nan), ValueError, "margin"),
        (lambda: jn.multiclass_hinge_loss(X, Y[:1]), ValueError, "labels must have shape"),
        (
            lambda: jn.linear_softmax_cross_entropy(X, jnp.ones((2, 5)), Y),
            ValueError,
            r"kernel must have shape \(3, V\)",
        ),
        (lambda: jn.linear_softmax_cross_entropy(X, jnp.ones((3, 5)), Y, block_size=0), ValueError, "block_size"),
        (lambda: jn.linear_softmax_cross_entropy(X, jnp.ones((3, 5)), Y, axis_name="v"), ValueError, "axis_name.*'v'"),
        (lambda: jn.linear_softmax_cross_entropy(X, X.T, Y, return_entropy=1), TypeError, "return_entropy"),
        (
            lambda: jn.linear_softmax_kl_divergence(X, X.T, X[:1], X.T),
            ValueError,
            "teacher_hidden must have the tokens",
        ),
        (
            lambda: jn.linear_softmax_kl_divergence(X, X.T, X, jnp.ones((3, 4))),
            ValueError,
            "teacher_kernel .* 2 columns",
        ),
        (lambda: jn.linear_softmax_kl_divergence(X, X.T, X, X), ValueError, r"teacher_kernel must have shape \(3, V\)"),
        (lambda: jn.linear_softmax_kl_divergence(X, X.T, X, X.T, temperature=0), ValueError, "temperature must be"),
        (lambda: jn.linear_softmax_kl_divergence(X, X.T, X, X.T, where=X[0] > 0), ValueError, "where of shape"),
        (lambda: jn.linear_softmax_kl_divergence(X, X.T, X, X.T, where=X), TypeError, "where must be boolean"),
        (lambda: jn.linear_softmax_kl_divergence(X, X.T, Y, X.T), TypeError, "teacher_hidden must be a floating"),
        (lambda: jn.linear_softmax_cross_entropy(X, jnp.ones((3, 5)), Y, jnp.ones(3)), ValueError, "bias must have"),
    ],
)
def test_errors_name_the_argument(call, error, message):
    with pytest.raises(error, match=message):
        call()
