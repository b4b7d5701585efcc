"""The entropy beside the cross-entropy of whole logits: against the twin, digits, rows of any content, what is kept."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import CASES, assert_close, assert_confident, normal, over, random_like, value_and_vjp

import jaxnorm as jn
from jaxnorm import reference
from jaxnorm.check import saved_bytes
from jaxnorm.check._library import check_case

LOSS = jn.softmax_cross_entropy_with_integer_labels
EVERYTHING = {"ignore_index": 2, "label_smoothing": 0.2, "logit_softcap": 1.5, "return_lse": True}


@pytest.mark.parametrize(("options", "classes", "axis"), [({}, 7, -1), (EVERYTHING, 37, -1), (EVERYTHING, 5, 0)])
def test_equals_the_twin(options, classes, axis):
    """Random cotangents of the loss, the log-sum-exp and the entropy at once."""
    rng = np.random.default_rng(classes)
    logits, weights = normal(6, classes) * 2, jnp.asarray(rng.random(classes) + 0.1)
    labels = jnp.asarray(rng.integers(0, classes, 6)).at[1].set(2).at[3].set(0)
    where = jnp.asarray(rng.random((6, classes)) < 0.7).at[jnp.arange(6), labels].set(True)
    where = where.at[3].set(False)  # a row without classes, whose loss is +inf
    if axis == 0:
        logits, where = logits.T, where.T

    def pulled_back(module, logits, weights):
        extra = {"where": where, "class_weights": weights} if options else {}
        loss = module.softmax_cross_entropy_with_integer_labels
        value, vjp = jax.vjp(
            lambda x, w: loss(x, labels, axis, **options, **(extra | {"class_weights": w}), return_entropy=True),
            logits, weights,
        )  # fmt: skip
        return value, vjp(random_like(value, 0))

    run = jax.jit(pulled_back, static_argnums=0)
    got, wanted = run(jn, logits, weights), run(reference, logits, weights)
    assert len(got[0]) == (3 if options else 2)
    assert_close(got, wanted)


@pytest.mark.parametrize(
    ("classes", "lead", "cap", "label"),
    [(8, 20, None, 0), (1000, 40, 200.0, 1), (1000, 80, None, 1), (8, 80, 200.0, 0)],
)
def test_confident_entropies_keep_their_digits(classes, lead, cap, label):
    """Whether the label leads or another class; the loss's and the gradient's too."""

    def entropy(row):
        loss, entropy = LOSS(row[None], jnp.array([label]), logit_softcap=cap, return_entropy=True)
        return entropy[0], loss[0]

    assert_confident(entropy, classes, lead, cap, label, 1e-5)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64, jnp.bfloat16])
def test_entropies_are_never_negative_and_infinite_logits_do_no_harm(dtype):
    inf = np.inf
    logits = jnp.array([[0, 1, -inf], [-inf, 3, -inf], [-inf] * 3, [1e4, -1e4, 0], [5, 5, 5], [-1e30, 0, 1e30]], dtype)
    p = np.array([1 / (1 + np.e), np.e / (1 + np.e)])
    of = partial(LOSS, labels=jnp.ones(6, int), return_entropy=True)
    value, gradient = jax.jit(lambda x: value_and_vjp(lambda x: of(x)[1], [x], jnp.ones(6, of(x)[1].dtype)))(logits)
    assert value.dtype == (jnp.float64 if dtype == jnp.float64 else jnp.float32)
    np.testing.assert_allclose(value, [-(p * np.log(p)).sum(), 0, 0, 0, np.log(3), 0], rtol=1e-6)
    assert (value >= 0).all() and jnp.isfinite(gradient[0]).all()


def test_an_ignored_row_has_its_entropy_and_an_invalid_label_touches_no_other():
    logits, labels = normal(3, 5), jnp.array([2, 7, 0])
    of = partial(LOSS, labels=labels, ignore_index=2, return_entropy=True)
    ones = (jnp.zeros(3), jnp.ones(3))
    (loss, entropy), (gradient,) = jax.jit(lambda x: value_and_vjp(of, [x], ones))(logits)
    wanted = jax.jit(lambda x: -jnp.sum(jax.nn.softmax(x) * jax.nn.log_softmax(x), -1))(logits)
    np.testing.assert_allclose(entropy, wanted)
    assert loss[0] == 0 and np.isnan(loss[1]) and np.isfinite(loss[2])
    np.testing.assert_array_equal(np.isnan(gradient).any(-1), [False, True, False])
    assert np.asarray(gradient[0]).any()


def test_one_more_number_of_each_row_is_kept():
    logits, labels = normal(64, 512, dtype=jnp.float32), jnp.arange(64)
    alone, both = (saved_bytes(partial(LOSS, labels=labels, return_entropy=r), logits) for r in (False, True))
    assert both - alone == 64 * 4


@over([case for case in CASES if case.name == LOSS.__name__ and case.label.startswith("everything")])
def test_a_cap_is_the_same_in_every_pass(case):
    """Passes that each compute the cap may differ by a digit in some programs: then no logit leads, and all is NaN."""
    check_case(case, checks=["precision"], dtypes=[jnp.float32, jnp.bfloat16]).raise_if_failed()
