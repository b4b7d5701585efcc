"""The divergence of a student from a teacher: against the twin, digits, extremes, masks, memory, devices."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from support import assert_close, normal, random_like, value_and_vjp

import jaxnorm as jn
from jaxnorm import reference

TOKENS, H, G = (2, 3), 5, 4
WHERE = jnp.array([[True, False, True]])
EVERYTHING = {"temperature": 2.5, "where": WHERE}


def inputs(v, spread=1.0):
    student, teacher = (spread * normal(*shape) for shape in ((H, v), (G, v)))
    return normal(*TOKENS, H), student, normal(*TOKENS, G), teacher, normal(v), normal(v, seed=1)


def of_logits(student, teacher, **options):
    """The divergence of rows of logits: as biases of layers without input, so that nothing is rounded on the way."""

    def of_row(s, t):
        hidden, kernel = jnp.zeros(1, s.dtype), jnp.zeros((1, s.size), s.dtype)
        return jn.linear_softmax_kl_divergence(hidden, kernel, hidden, kernel, s, t, block_size=301, **options)

    return jax.vmap(of_row)(student, teacher)


@pytest.mark.parametrize(
    ("v", "block_size", "spread", "options"),
    [(13, 1, 20, {}), (37, 4, 1, {}), (13, 20, 1, EVERYTHING), (37, None, 20, EVERYTHING), (61, 12, 1, EVERYTHING)],
)
def test_equals_the_twin(options, v, block_size, spread):
    floats, cotangent = inputs(v, spread), random_like(jnp.zeros(TOKENS))
    run = jax.jit(lambda function, *floats: value_and_vjp(function, floats, cotangent), static_argnums=0)
    got = run(partial(jn.linear_softmax_kl_divergence, block_size=block_size, **options), *floats)
    assert_close(got, run(partial(reference.linear_softmax_kl_divergence, **options), *floats))
    assert not any(got[1][i].any() for i in (2, 3, 5))  # the teacher's


def test_second_derivatives():
    hidden, kernel, *teacher, bias, teacher_bias = inputs(13)

    def twice(module, **options):
        def loss(hidden, kernel):
            kl = module.linear_softmax_kl_divergence(hidden, kernel, *teacher, bias, teacher_bias, **options)
            return jnp.sum(jnp.sin(kl))

        def of_gradient(*args):
            return sum(jnp.sum(jnp.sin(d)) for d in jax.grad(loss, (0, 1))(*args))

        return jax.jit(jax.grad(of_gradient, (0, 1)))(hidden, kernel)

    assert_close(twice(jn, block_size=4, temperature=0.5), twice(reference, temperature=0.5), 1e-9)


@pytest.mark.parametrize(
    ("apart", "spread", "offset"), [(1e-3, 1, 0), (1e-2, 10, 3), (1e-2, 1, 100), (1, 1, 0), (300, 10, 3)]
)
def test_digits_from_close_agreement_to_none(apart, spread, offset):
    """In float32, where the difference of two log-sum-exps has none left: of value and gradient."""
    rng = np.random.default_rng(0)
    teacher = np.float32(rng.normal(size=(3, 1000)) * spread)
    student = np.float32(teacher + offset + rng.normal(size=(3, 1000)) * apart)
    t, s = teacher.astype(np.longdouble), student.astype(np.longdouble)
    log_p, log_q = (l - l.max(-1, keepdims=True) for l in (t, s))
    log_p, log_q = (l - np.log(np.exp(l).sum(-1, keepdims=True)) for l in (log_p, log_q))
    kl, vjp = jax.vjp(lambda s: of_logits(s, jnp.asarray(teacher)), jnp.asarray(student))
    exact, gradient = (np.exp(log_p) * (log_p - log_q)).sum(-1), np.exp(log_q) - np.exp(log_p)
    rounding = 2e-4 if apart == 1e-3 else 1e-5  # 1e-3 of logits near 4 has 4 digits
    np.testing.assert_allclose(kl, exact.astype(float), rtol=rounding)
    np.testing.assert_allclose(
        vjp(jnp.ones(3, jnp.float32))[0], gradient.astype(float), atol=rounding * float(np.abs(gradient).max())
    )


def test_extreme_logits():
    inf = np.inf
    rows = [
        ([0, 0, 0], [0, 0, 0], 0),
        ([1e4, -1e4, 0], [1e4, -1e4, 0], 0),
        ([0, 1, -inf], [0, 1, -inf], 0),  # both exclude a class
        ([0, 0, 5], [0, 0, -inf], np.log(2 + np.exp(5)) - np.log(2)),
        ([0, 1, -inf], [0, 1, 2], inf),  # the student excludes what the teacher allows
        ([-1e4, 1e4, 0], [1e4, -1e4, 0], 2e4),
        ([-1e30, 1e30, 0], [1e30, -1e30, 0], 2e30),
    ]
    for dtype in (jnp.float32, jnp.float64):
        s, t, wanted = (jnp.asarray([row[i] for row in rows], dtype) for i in range(3))
        kl, vjp = jax.vjp(lambda s, t=t: of_logits(s, t), s)
        np.testing.assert_allclose(kl, wanted, rtol=1e-6)
        gradient = np.asarray(vjp(jnp.ones_like(kl))[0])
        assert not gradient[:3].any() and np.isnan(gradient[4]).any()
        assert np.isfinite(np.delete(gradient, 4, 0)).all()
        np.testing.assert_allclose(gradient[5:], [[-1, 1, 0]] * 2)


def test_maxima_that_jump_from_block_to_block():
    """In float32, by more than an exponential can follow; the divergence is the composed form's of float64."""
    rng = np.random.default_rng(0)
    s, t = (jnp.asarray(rng.normal(size=(20, 9)) * 200, jnp.float32) for _ in range(2))
    wide = [np.asarray(l, np.float64) for l in (s, t)]
    log_q, log_p = (np.asarray(jax.nn.log_softmax(l)) for l in wide)

    def of_row(s, t):
        hidden, kernel = jnp.zeros(1, s.dtype), jnp.zeros((1, 9), s.dtype)
        return jn.linear_softmax_kl_divergence(hidden, kernel, hidden, kernel, s, t, block_size=1)

    kl, gradient = jax.jit(jax.vmap(jax.value_and_grad(of_row)))(s, t)
    np.testing.assert_allclose(kl, (np.exp(log_p) * (log_p - log_q)).sum(-1), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(gradient, np.exp(log_q) - np.exp(log_p), atol=1e-5)


def test_it_is_never_negative():
    x = jnp.round(256 * normal(200, 50, dtype=jnp.float32)) / 256  # so that 8 more is not rounded
    near = x + 1e-7 * normal(200, 50, seed=1, dtype=jnp.float32)
    assert (of_logits(near, x) >= 0).all() and not of_logits(x, x).any() and not of_logits(x + 8, x).any()


@pytest.mark.parametrize("where", [jnp.array(False), jnp.array([[True], [False]])], ids=str)
def test_masked_tokens_may_hold_anything(where):
    hidden, kernel, teacher_hidden, *others = inputs(13)
    whole = jnp.broadcast_to(where, TOKENS)
    dirty = [jnp.where(whole[..., None], x, jnp.nan) for x in (hidden, teacher_hidden)]
    function = partial(jn.linear_softmax_kl_divergence, where=where, block_size=4)
    g = random_like(jnp.zeros(TOKENS))
    got = value_and_vjp(lambda h, k: function(h, k, dirty[1], *others), [dirty[0], kernel], g)
    assert_close(got, value_and_vjp(lambda h, k: function(h, k, teacher_hidden, *others), [hidden, kernel], g))
    assert not got[0][~whole].any() and not got[1][0][~whole].any()


def test_empty_arrays():
    for tokens, v in (((0,), 3), ((2, 0), 3), ((2,), 0)):
        args = [jnp.ones((*tokens, 4)), jnp.ones((4, v)), jnp.ones((*tokens, 5)), jnp.ones((5, v))]
        kl, cotangents = value_and_vjp(jn.linear_softmax_kl_divergence, args, jnp.ones(tokens))
        assert kl.shape == tokens and not kl.any()
        assert [c.shape for c in cotangents] == [a.shape for a in args] and not any(c.any() for c in cotangents)


def test_bfloat16_and_mixed_precision():
    floats = [a.astype(jnp.bfloat16 if i != 1 else jnp.float32) for i, a in enumerate(inputs(37))]
    wide = [a.astype(jnp.float64) for a in floats]
    g = random_like(jnp.zeros(TOKENS, jnp.float32))
    kl, cotangents = value_and_vjp(jn.linear_softmax_kl_divergence, floats, g)
    exact = value_and_vjp(reference.linear_softmax_kl_divergence, wide, g.astype(float))
    assert kl.dtype == jnp.float32 and [c.dtype for c in cotangents] == [a.dtype for a in floats]
    np.testing.assert_allclose(kl, exact[0], rtol=1e-5)
    for got, wanted, of in zip(cotangents, exact[1], floats, strict=True):
        rounding = 2**-8 if of.dtype == jnp.bfloat16 else 1e-5
        np.testing.assert_allclose(np.asarray(got, float), wanted, rtol=rounding, atol=1e-5)


def test_neither_models_logits_are_ever_whole():
    # Compiled, and never run.
    hidden, kernel = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((2048, 64), (64, 32003)))
    labels = jnp.zeros(2048, int)

    def temporary(function):
        step = jax.jit(jax.value_and_grad(lambda h, k: function(h, k).sum(), (0, 1)))
        return step.lower(hidden, kernel).compile().memory_analysis().temp_size_in_bytes

    kl = temporary(lambda h, k: jn.linear_softmax_kl_divergence(h, k, 2 * h, k))
    assert kl < 2 * temporary(lambda h, k: jn.linear_softmax_cross_entropy(h, k, labels))


MESH = jax.make_mesh((8,), ("vocabulary",), axis_types=(jax.sharding.AxisType.Auto,))
COLUMNS = P(None, "vocabulary")
SPECS = (P(), COLUMNS, P(), COLUMNS, P("vocabulary"), P("vocabulary"))


@pytest.mark.usefixtures("quick_compilation")
@pytest.mark.parametrize(("check_vma", "taken"), [(True, "inside"), (False, "inside"), (True, "outside")])
def test_vocabulary_parallel_equals_one_device(check_vma, taken):
    floats, cotangent = inputs(24, spread=8), random_like(jnp.zeros(TOKENS))
    options = {"temperature": 1.5, "where": WHERE}
    function = partial(jn.linear_softmax_kl_divergence, block_size=2, axis_name="vocabulary", **options)
    shared = partial(jax.shard_map, mesh=MESH, check_vma=check_vma)

    def device(*floats):
        value, (dhidden, *others) = value_and_vjp(function, floats, cotangent)
        if not check_vma:  # each device has its own part, and its part of g: the one loss is counted eight times
            dhidden, *others = (d / 8 for d in (jax.lax.psum(dhidden, "vocabulary"), *others))
        return value, (dhidden, *others)

    if taken == "inside":
        run = shared(device, in_specs=SPECS, out_specs=(P(), SPECS))
    else:
        sharded = shared(function, in_specs=SPECS, out_specs=P())
        run = lambda *floats: value_and_vjp(sharded, floats, cotangent)  # noqa: E731
    wanted = value_and_vjp(partial(jn.linear_softmax_kl_divergence, **options), floats, cotangent)
    assert_close(jax.jit(run)(*floats), wanted)
