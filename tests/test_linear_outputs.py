"""The linear loss's entropy and top class: against the twin, digits, ties, memory, devices; and its wide blocks."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from support import assert_close, assert_confident, normal, random_like, value_and_vjp

import jaxnorm as jn
from jaxnorm import reference
from jaxnorm._lower import columns, products
from jaxnorm._lower.platforms import forced

TOKENS, H = (2, 3), 5
EVERYTHING = {"ignore_index": 2, "label_smoothing": 0.2, "logit_softcap": 1.5}
ALL = {"return_lse": True, "return_entropy": True, "return_top": True}


def inputs(v, tokens=TOKENS):
    rng = np.random.default_rng(v)
    arrays = normal(*tokens, H), normal(H, v), normal(v), jnp.asarray(rng.random(v) + 0.1)
    return *arrays, jnp.asarray(np.where(rng.random(tokens) < 0.3, 2, rng.integers(0, v, tokens)))


def outputs(module, labels, hidden, kernel, bias, weights, **options):
    return module.linear_softmax_cross_entropy(hidden, kernel, labels, bias, class_weights=weights, **ALL, **options)


def pulled_back(function, floats, seed=0):
    """The outputs, and random cotangents of the loss, the log-sum-exp and the entropy at once pulled back."""
    *_, top = function(*floats)
    value, vjp = jax.vjp(lambda *floats: function(*floats)[:3], *floats)
    return value, top, vjp(random_like(value, seed))


@pytest.mark.parametrize(
    ("v", "block_size", "options"),
    [(13, 1, {}), (37, 4, {}), (13, 20, EVERYTHING), (37, None, EVERYTHING), (61, 12, EVERYTHING)],
)
def test_equals_the_twin(options, v, block_size):
    *floats, labels = inputs(v)
    run = jax.jit(pulled_back, static_argnums=0)
    got = run(partial(outputs, jn, labels, block_size=block_size, **options), floats)
    assert_close(got, run(partial(outputs, reference, labels, **options), floats))


def test_what_is_asked_for_comes_in_order():
    hidden, kernel, _, _, labels = inputs(5)
    every = jn.linear_softmax_cross_entropy(hidden, kernel, labels, **ALL)
    assert every[3].dtype == jnp.int32 and [r.shape for r in every] == [TOKENS] * 4
    for n in (0, 1, 2, 4, 6):
        asked = {name: bool(n >> i & 1) for i, name in enumerate(ALL)}
        got = jn.linear_softmax_cross_entropy(hidden, kernel, labels, **asked)
        wanted = [every[0], *(r for r, name in zip(every[1:], ALL, strict=True) if asked[name])]
        assert_close(got, tuple(wanted) if n else wanted[0])


@pytest.mark.parametrize(("lead", "cap", "label"), [(20, None, 0), (40, 200.0, 1), (80, None, 1), (80, 200.0, 0)])
def test_confident_entropies_keep_their_digits(lead, cap, label):
    """Whether the label leads or another class; the loss's and the label's too."""
    hidden, kernel = jnp.zeros((1, 1), jnp.float32), jnp.zeros((1, 1000), jnp.float32)

    def entropy(bias):
        loss, entropy = jn.linear_softmax_cross_entropy(
            hidden, kernel, jnp.array([label]), bias, block_size=7, logit_softcap=cap,
            return_entropy=True,
        )  # fmt: skip
        return entropy[0], loss[0]

    rounding = 1e-5 if cap is None else 2e-4  # the soft cap rounds a logit of 80 by more than an exponential shows
    assert_confident(entropy, 1000, lead, cap, label, rounding)


def test_entropies_are_never_negative_and_infinite_logits_do_no_harm():
    inf = np.inf
    bias = jnp.array([[0, 1, -inf], [-inf, 3, -inf], [-inf] * 3, [1e4, -1e4, 0], [5, 5, 5], [-1e30, 0, 1e30]])
    p = np.array([1 / (1 + np.e), np.e / (1 + np.e)])
    wanted = [-(p * np.log(p)).sum(), 0, 0, 0, np.log(3), 0]

    def of_row(bias, g):
        def loss(bias):
            hidden, kernel = jnp.zeros(1, bias.dtype), jnp.zeros((1, 3), bias.dtype)
            _, *got = jn.linear_softmax_cross_entropy(
                hidden, kernel, 1, bias, block_size=2, return_entropy=True, return_top=True
            )
            return got

        value, vjp, top = jax.vjp(lambda b: (loss(b)[0], loss(b)[1]), bias, has_aux=True)
        return value, top, vjp(g)[0]

    for dtype in (jnp.float32, jnp.float64):
        entropy, top, gradient = jax.jit(jax.vmap(of_row))(bias.astype(dtype), jnp.ones(6, dtype))
        np.testing.assert_allclose(entropy, wanted, rtol=1e-6)
        assert (entropy >= 0).all() and np.isfinite(gradient).all()
        assert top.tolist() == [1, 1, 0, 0, 0, 2]


@pytest.mark.parametrize("block_size", [2, 40, 100])
def test_the_first_of_several_top_classes(block_size):
    bias = jnp.asarray(np.random.default_rng(0).integers(0, 3, (20, 71)), jnp.float32)
    of_row = partial(jn.linear_softmax_cross_entropy, jnp.zeros(1), jnp.zeros((1, 71)), 0)
    for cap in (None, 1.0):
        of = partial(of_row, block_size=block_size, return_top=True, logit_softcap=cap)
        assert jax.vmap(lambda b, of=of: of(b)[1])(bias).tolist() == np.argmax(bias, 1).tolist()


def test_padding_that_holds_anything():
    """An ignored token's loss and gradient are 0, its entropy its logits', whose gradient is asked for."""
    *floats, _ = inputs(13)
    labels = jnp.full(TOKENS, 2)
    function = partial(outputs, jn, labels, block_size=4, **EVERYTHING)
    value, _, cotangents = pulled_back(function, floats)
    assert not value[0].any() and (value[2] > 0).all() and cotangents[0].any()


def test_logits_are_never_whole_and_nothing_more_is_kept():
    # Compiled, and never run.
    hidden, kernel = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((2048, 64), (64, 32003)))
    labels = jnp.zeros(2048, int)

    def temporary(**options):
        def total(hidden, kernel):
            loss, *others = jn.linear_softmax_cross_entropy(hidden, kernel, labels, return_lse=True, **options)
            return sum(map(jnp.sum, [loss, others[0], *others[1 : 1 + options.get("return_entropy", 0)]])), others

        step = jax.jit(jax.value_and_grad(total, (0, 1), has_aux=True))
        return step.lower(hidden, kernel).compile().memory_analysis().temp_size_in_bytes

    assert temporary(return_entropy=True, return_top=True) < 1.15 * temporary()


MESH = jax.make_mesh((8,), ("vocabulary",), axis_types=(jax.sharding.AxisType.Auto,))
SPECS = (P(), P(None, "vocabulary"), P("vocabulary"), P())


@pytest.mark.usefixtures("quick_compilation")
@pytest.mark.parametrize(("check_vma", "taken"), [(True, "inside"), (False, "inside"), (True, "outside")])
def test_vocabulary_parallel_equals_one_device(check_vma, taken):
    *floats, labels = inputs(24)
    function = partial(outputs, jn, labels, block_size=2, axis_name="vocabulary", **EVERYTHING)
    shared = partial(jax.shard_map, mesh=MESH, check_vma=check_vma)

    def device(*floats):
        value, top, (dhidden, dkernel, dbias, dweights) = pulled_back(function, floats)
        if not check_vma:  # each device has its own part, and its part of g: the one loss is counted eight times
            dhidden, dweights = jax.lax.psum((dhidden, dweights), "vocabulary")
            dhidden, dkernel, dbias, dweights = (d / 8 for d in (dhidden, dkernel, dbias, dweights))
        return value, top, (dhidden, dkernel, dbias, dweights)

    if taken == "inside":
        run = shared(device, in_specs=SPECS, out_specs=((P(),) * 3, P(), SPECS))
    else:
        run = partial(lambda of, *floats: pulled_back(of, floats), shared(function, in_specs=SPECS, out_specs=P()))
    wanted = pulled_back(partial(outputs, jn, labels, **EVERYTHING), floats)
    assert_close(jax.jit(run)(*floats), wanted)


def test_vocabulary_parallel_entropy_moves_one_pmax_and_one_psum():
    *floats, labels = inputs(24)

    def function(hidden, kernel, bias, weights):
        return jn.linear_softmax_cross_entropy(
            hidden, kernel, labels, bias, class_weights=weights, axis_name="vocabulary", return_entropy=True
        )

    shared = jax.shard_map(function, mesh=MESH, in_specs=SPECS, out_specs=P())
    text = jax.jit(shared).lower(*floats).compile().as_text()
    assert text.count(" all-reduce(") == 2 and "all-gather" not in text


# --- what a GPU or TPU runs -----------------------------------------------------------------------------------------


def test_blocks_of_other_platforms(monkeypatch):
    """Two widths in one program, and the wider one alone.

    Without a soft cap, whose rounding a barrier fixes that XLA's CPU backend removes.
    """
    options = EVERYTHING | {"logit_softcap": None}
    arrays = inputs(61)

    def run():
        *floats, labels = arrays
        return jax.jit(lambda floats: pulled_back(partial(outputs, jn, labels, **options), floats))(floats)

    wanted = run()
    for name, value in (
        ("BLOCK_ELEMENTS", 60),
        ("MIN_COLUMNS", 1),
        ("WIDE_BLOCK_ELEMENTS", 120),
        ("WIDE_MIN_COLUMNS", 1),
    ):
        monkeypatch.setattr(columns, name, value)
    assert columns.block_widths(6) == (10, 20)
    assert_close(run(), wanted)
    with forced("cuda"):
        assert_close(run(), wanted)


def test_cotangents_are_rounded_where_both_operands_are_bfloat16():
    x, kernel, d = normal(4, 8, dtype=jnp.bfloat16), normal(8, 6, dtype=jnp.bfloat16), normal(4, 6, dtype=jnp.float32)
    exact = np.asarray(d, np.float64) @ np.asarray(kernel, np.float64).T
    for other, error in ((jnp.bfloat16, 2**-8), (jnp.float32, 1e-6)):
        back = products.dot_of_cotangent(x, kernel.astype(other), jnp.float32)
        with forced("cuda"):
            dx = back(d, kernel.astype(other), (1, 1), jnp.float32)
        assert dx.dtype == jnp.float32
        relative = np.max(np.abs(np.asarray(dx, np.float64) - exact)) / np.max(np.abs(exact))
        assert relative < error and (relative > 1e-5) == (other == jnp.bfloat16)


def test_a_kernels_gradient_summed_over_devices_is_rounded_once():
    """With the tokens split and the kernel whole, each device's part stays in float32 until all are added."""
    mesh = jax.make_mesh((8,), ("tokens",), axis_types=(jax.sharding.AxisType.Auto,))
    hidden, kernel = normal(512, 4, dtype=jnp.bfloat16), normal(4, 9, dtype=jnp.bfloat16)
    labels = jnp.asarray(np.random.default_rng(0).integers(0, 9, 512))
    sharded = jax.shard_map(
        partial(jn.linear_softmax_cross_entropy, block_size=4),
        mesh=mesh, in_specs=(P("tokens"), P(), P("tokens")), out_specs=P("tokens"),
    )  # fmt: skip

    def gradient(function, kernel):
        return jax.jit(value_and_vjp, static_argnums=0)(
            lambda k: function(hidden.astype(k.dtype), k, labels), [kernel], jnp.ones(512, jnp.float32)
        )[1][0]

    exact = gradient(lambda *a: reference.linear_softmax_cross_entropy(*a).astype(jnp.float32), kernel.astype(float))
    got = np.asarray(gradient(sharded, kernel), np.float64)
    np.testing.assert_allclose(got, exact, rtol=2**-8, atol=1e-5 * np.abs(exact).max())
