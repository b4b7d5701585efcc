"""The linear cross-entropy: blocks of every width, accumulation, memory, and the vocabulary split over devices."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from support import assert_close, random_like, value_and_vjp

import jaxnorm as jn

V, H, TOKENS = 13, 5, (2, 3)
EVERYTHING = {"ignore_index": 2, "label_smoothing": 0.2, "logit_softcap": 1.5}


def inputs(tokens=TOKENS, h=H, v=V, dtype=jnp.float64):
    rng = np.random.default_rng(0)
    arrays = (rng.normal(size=(*tokens, h)), rng.normal(size=(h, v)), rng.normal(size=v), rng.random(v) + 0.1)
    labels = jnp.asarray(np.where(rng.random(tokens) < 0.3, 2, rng.integers(0, v, tokens)))
    return *(jnp.asarray(a, dtype) for a in arrays), labels


def composed(labels, hidden, kernel, bias, class_weights, **options):
    """The same from logits that exist whole."""
    return jn.softmax_cross_entropy_with_integer_labels(
        jn.affine(hidden, kernel, bias), labels, class_weights=class_weights, return_lse=True, **options
    )


def in_blocks(labels, hidden, kernel, bias, class_weights, **options):
    return jn.linear_softmax_cross_entropy(
        hidden, kernel, labels, bias, class_weights=class_weights, return_lse=True, **options
    )


@pytest.mark.parametrize("block_size", [1, 4, V - 1, V, V + 1, None])
def test_equals_the_composed_form(block_size):
    *floats, labels = inputs()
    cotangent = random_like((jnp.zeros(TOKENS), jnp.zeros(TOKENS)))
    run = jax.jit(lambda function, *floats: value_and_vjp(function, floats, cotangent), static_argnums=0)
    got = run(partial(in_blocks, labels, block_size=block_size, **EVERYTHING), *floats)
    assert_close(got, run(partial(composed, labels, **EVERYTHING), *floats))


def test_edges():
    *floats, labels = inputs()
    grad = jax.grad(lambda *floats: in_blocks(labels * 0 + 2, *floats, ignore_index=2)[0].sum(), (0, 1, 2, 3))
    assert not any(g.any() for g in grad(*floats))  # all ignored
    for shape in ((0,), (3, 0)):
        *floats, labels = inputs(tokens=shape)
        value, cotangents = value_and_vjp(partial(in_blocks, labels), floats, random_like((jnp.zeros(shape),) * 2))
        assert value[0].shape == value[1].shape == shape
        assert [c.shape for c in cotangents] == [f.shape for f in floats] and not any(c.any() for c in cotangents)
    hidden, kernel, *_ = inputs()
    loss = jn.linear_softmax_cross_entropy(hidden[0], kernel, jnp.array([0, V, -1]), block_size=4)
    np.testing.assert_array_equal(np.isnan(loss), [False, True, True])
    assert jn.linear_softmax_cross_entropy(hidden[0, 0], kernel, 3).shape == ()


def test_bfloat16_accumulates_in_float32():
    """Gradients that sum 4,096 tokens: their error is that of one final rounding."""
    rng = np.random.default_rng(0)
    hidden, kernel = (jnp.asarray(rng.normal(size=s), jnp.bfloat16) for s in ((4096, 8), (8, 33)))
    labels = jnp.asarray(rng.integers(0, 33, 4096))

    def grad(hidden, kernel):
        loss = lambda h, k: jn.linear_softmax_cross_entropy(h, k, labels, block_size=10).sum()  # noqa: E731
        return jax.grad(loss, (0, 1))(hidden, kernel)

    got, exact = grad(hidden, kernel), grad(*(a.astype(jnp.float64) for a in (hidden, kernel)))
    for g, e in zip(got, exact, strict=True):
        assert g.dtype == jnp.bfloat16
        np.testing.assert_allclose(np.asarray(g, np.float64), e, rtol=2**-8, atol=1e-4 * np.abs(e).max())
    assert jn.linear_softmax_cross_entropy(hidden, kernel, labels).dtype == jnp.float32


def test_logits_are_never_whole():
    """Compiled forward and backward: the temporary memory does not grow with the vocabulary's logits."""
    hidden, kernel, labels = jnp.ones((512, 16), jnp.float32), jnp.ones((16, 8009), jnp.float32), jnp.zeros(512, int)

    def temporary(function):
        step = jax.jit(jax.value_and_grad(function, (0, 1)))
        return step.lower(hidden, kernel).compile().memory_analysis().temp_size_in_bytes

    block = temporary(lambda h, k: jn.linear_softmax_cross_entropy(h, k, labels, block_size=512).sum())
    whole = temporary(lambda h, k: jn.softmax_cross_entropy_with_integer_labels(jn.affine(h, k), labels).sum())
    assert block < whole / 4 and block < 4 * 8009 * 512 / 2


MESH = jax.make_mesh((8,), ("vocabulary",), axis_types=(jax.sharding.AxisType.Auto,))
SPECS = (P(), P(None, "vocabulary"), P("vocabulary"), P())


@pytest.mark.parametrize("taken", ["inside", "outside"])
@pytest.mark.parametrize("check_vma", [True, False])
@pytest.mark.parametrize("options", [{}, EVERYTHING], ids=["plain", "everything"])
def test_vocabulary_parallel_equals_one_device(options, check_vma, taken):
    *floats, labels = inputs(v=24)
    cotangent = random_like((jnp.zeros(TOKENS), jnp.zeros(TOKENS)))
    function = partial(in_blocks, labels, block_size=2, axis_name="vocabulary", **options)

    def device(*floats):
        value, (dhidden, dkernel, dbias, dweights) = value_and_vjp(function, floats, cotangent)
        if not check_vma:  # each device has its own part, and its part of g: the one loss is counted eight times
            dhidden, dweights = jax.lax.psum((dhidden, dweights), "vocabulary")
            dhidden, dkernel, dbias, dweights = (d / 8 for d in (dhidden, dkernel, dbias, dweights))
        return value, (dhidden, dkernel, dbias, dweights)

    if taken == "inside":
        sharded = jax.shard_map(device, mesh=MESH, in_specs=SPECS, out_specs=((P(), P()), SPECS), check_vma=check_vma)
        got = jax.jit(sharded)(*floats)
    else:
        sharded = jax.shard_map(function, mesh=MESH, in_specs=SPECS, out_specs=(P(), P()), check_vma=check_vma)
        got = jax.jit(lambda *floats: value_and_vjp(sharded, floats, cotangent))(*floats)
    wanted = value_and_vjp(partial(in_blocks, labels, **options), floats, cotangent)
    assert_close(got, wanted)


def test_vocabulary_parallel_moves_one_pmax_and_one_psum_forward():
    *floats, labels = inputs(v=24)
    function = partial(in_blocks, labels, axis_name="vocabulary", **EVERYTHING)
    sharded = jax.shard_map(function, mesh=MESH, in_specs=SPECS, out_specs=(P(), P()))
    text = jax.jit(sharded).lower(*floats).compile().as_text()
    assert text.count(" all-reduce(") == 2 and "all-gather" not in text


def test_vocabulary_split_over_two_mesh_axes_at_once():
    *floats, labels = inputs(v=24)
    mesh = jax.make_mesh((2, 4), ("a", "b"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    columns = P(("a", "b"))
    specs = (P(), P(None, ("a", "b")), columns, P())
    function = partial(in_blocks, labels, axis_name=("a", "b"))
    sharded = jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=(P(), P()))
    cotangent = random_like((jnp.zeros(TOKENS), jnp.zeros(TOKENS)))
    got = jax.jit(lambda *floats: value_and_vjp(sharded, floats, cotangent))(*floats)
    assert_close(got, value_and_vjp(partial(in_blocks, labels), floats, cotangent))
