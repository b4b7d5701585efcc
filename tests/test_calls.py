"""What is outlined: on a CPU it stays a call to the end, elsewhere it is none, and nothing else changes.

And what is put off: it comes after the other uses of the same array.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from support import normal

import jaxnorm as jn
from jaxnorm._lower.calls import later, outlined

X, KERNEL = normal(2, 4, 4, 6), normal(3, 3, 1, 6, seed=1)


def gradient(x, kernel):
    return jax.grad(lambda x: jnp.sum(jn.group_norm(jn.conv(x, kernel, feature_group_count=6), num_groups=2) ** 3))(x)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="a matter of the CPU backend")
def test_calls_survive_the_compiler():
    """Without them all would be right and slow."""
    program = jax.jit(gradient).lower(X, KERNEL).compile().as_text()
    assert sum(" call(" in line and 'inlineable="false"' in line for line in program.splitlines()) >= 8


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="a matter of the CPU backend")
@pytest.mark.parametrize("put_off", [0, 1])
def test_order(put_off):
    """The first of two uses comes second if it is put off, as the second does anyway."""

    def f(x):
        y = jnp.sin(x)
        return [outlined(use, later(y) if i == put_off else y) for i, use in enumerate([jnp.cosh, jnp.sinh])]

    program = jax.jit(f).lower(X).compile().as_text()
    entry = program[program.index("ENTRY") :]
    found = [entry.index(f"jit({name})") for name in ("cosh", "sinh")]
    assert (found[0] > found[1]) == (put_off == 0)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="a matter of the CPU backend")
@pytest.mark.parametrize(
    "norm", [jn.instance_norm, lambda x: jn.group_norm(x, num_groups=8)], ids=["instance", "group"]
)
def test_the_backward_pass_of_a_norm_takes_and_returns_arrays_of_the_shape_of_x(norm):
    """Else what computes its g and uses its dx is fused with a reshape, which is slower and holds more arrays."""
    x = normal(4, 28, 28, 16)
    program = jax.jit(jax.grad(lambda x: jnp.sum(jnp.sin(norm(jnp.cos(x)))))).lower(x).compile().as_text()
    calls = [line.split(" call(")[0] for line in program.splitlines() if " call(" in line]
    assert any("[4,28,28,16]" in result for result in calls)


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_no_calls_elsewhere(platform):
    module = export.export(jax.jit(gradient), platforms=[platform])(X, KERNEL).mlir_module()
    assert "inlineable" not in module


def test_transforms():
    def f(x, y):
        return jnp.sin(x) * y, jnp.sum(x * y)

    def alone(x, y):
        return outlined(f, x, y)

    def derivatives(f):
        return lambda x, y: (f(x, y), jax.jacrev(f)(x, y), jax.jacfwd(jax.jacrev(f))(x, y))

    x, y = X[0, 0], X[1, 1]
    for transform in (derivatives, lambda f: jax.vmap(derivatives(f)), lambda f: jax.checkpoint(derivatives(f))):
        got, wanted = (jax.jit(transform(g))(x, y) for g in (alone, f))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), got, wanted)
