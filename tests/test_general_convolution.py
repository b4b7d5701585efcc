"""`conv_general_dilated`: lax's signature, meaning and errors, with this library's rule; flax's hook takes it."""

import inspect
from functools import partial
from typing import Any

import flax.linen
import flax.nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import PartitionSpec as P
from support import assert_close, normal, thorough, value_and_vjp

import jaxnorm as jn
from jaxnorm import reference

NHWC = ("NHWC", "HWIO", "NHWC")
NUMBERS = lax.ConvDimensionNumbers((1, 3, 0, 2), (2, 0, 3, 1), (3, 1, 2, 0))

# (lhs, rhs, window_strides, padding, options), one for each way to say it
CALLS: list[tuple[Any, Any, Any, Any, dict[str, Any]]] = [
    ((2, 3, 6), (4, 3, 3), (2,), "SAME", {}),
    ((2, 3, 6, 5), (4, 3, 3, 2), [2, 1], "SAME_LOWER", {"dimension_numbers": ("NCHW", "OIHW", "NCHW")}),
    ((2, 6, 5, 4), (3, 2, 2, 6), (1, 2), "VALID", {"dimension_numbers": list(NHWC), "feature_group_count": 2}),
    ((6, 2, 5, 3), (3, 2, 4, 3), (2, 1), ((1, -1), (0, 2)), {"dimension_numbers": NUMBERS, "rhs_dilation": (1, 2)}),
    ((2, 3, 4, 3, 3), (4, 3, 2, 2, 1), (1, 1, 2), [[1, 0]] * 3, {"lhs_dilation": [2, 1, 1], "precision": "highest"}),
    ((2, 3, 6), (4, 3, 3), np.array([2]), [(np.int64(1), 0)], {"precision": ["high", "default"]}),
    ((2, 4, 6), (4, 1, 3), (1,), "same", {"feature_group_count": 4}),
]
OTHERS: list[tuple[Any, Any, Any, Any, dict[str, Any]]] = [  # left to lax
    ((4, 3, 6), (4, 3, 3), (1,), "SAME", {"batch_group_count": 2}),
    ((2, 3), (4, 3), (), "VALID", {}),
    ((1, 2, 3, 3, 3, 3), (2, 2, 1, 2, 1, 2), (1,) * 4, "VALID", {}),
]


@pytest.mark.parametrize("lhs, rhs, strides, padding, options", CALLS + OTHERS)
def test_it_means_what_lax_means(lhs, rhs, strides, padding, options):
    arrays = normal(*lhs), normal(*rhs, seed=1)
    functions = [
        partial(f, window_strides=strides, padding=padding, **options)
        for f in (lax.conv_general_dilated, jn.conv_general_dilated, reference.conv_general_dilated)
    ]
    g = normal(*jax.eval_shape(functions[0], *arrays).shape, seed=2)
    wanted, *got = jax.jit(lambda g, *a: [value_and_vjp(f, a, g) for f in functions])(g, *arrays)
    for result in got:
        assert_close(result, wanted)


def test_the_signature_is_laxs_and_arguments_may_be_positional():
    def names(function):
        return [(p.name, p.default, p.kind) for p in inspect.signature(function).parameters.values()]

    assert names(jn.conv_general_dilated) == names(lax.conv_general_dilated)
    x, kernel = normal(4, 5, 5, 2), normal(3, 3, 1, 4)
    options = (1, 1), "SAME", None, (2, 1), NHWC, 2, 1, None, jnp.float64, None
    assert_close(jn.conv_general_dilated(x, kernel, *options), lax.conv_general_dilated(x, kernel, *options))
    assert_close(jn.conv_general_dilated(np.asarray(x), np.asarray(kernel), *options[:6]), jn.conv_general_dilated(
        x, kernel, *options[:6]))  # fmt: skip


@pytest.mark.parametrize("dtype", [jnp.int32, jnp.int8, jnp.complex64, jnp.float8_e4m3fn])
def test_other_dtypes_are_laxs(dtype):
    x, kernel = jnp.arange(12).reshape(1, 2, 6).astype(dtype), jnp.ones((3, 2, 2), dtype)
    ours, theirs = (f(x, kernel, (1,), "VALID") for f in (jn.conv_general_dilated, lax.conv_general_dilated))
    assert ours.dtype == theirs.dtype and (ours == theirs).all()


@pytest.mark.parametrize(
    "dtype, preferred",
    [(jnp.bfloat16, None), (jnp.bfloat16, jnp.float32), (jnp.float16, None), (jnp.float32, "float64")],
)
def test_dtypes_are_laxs_and_sums_are_wide(dtype, preferred):
    x, kernel = jnp.ones((1, 300, 6), dtype), jnp.ones((2, 300, 1), dtype)
    options = {"window_strides": (1,), "padding": "VALID", "preferred_element_type": preferred}
    y, vjp = jax.vjp(partial(jn.conv_general_dilated, **options), x, kernel)
    assert y.dtype == lax.conv_general_dilated(x, kernel, **options).dtype
    assert (y == jnp.asarray(300, y.dtype)).all()
    assert [d.dtype for d in vjp(jnp.ones_like(y))] == [dtype, dtype]


@pytest.mark.parametrize(
    "lhs, rhs, options",
    [
        ((2, 5, 6), (4, 3, 3), {}),  # channels
        ((2, 3, 6), (4, 3), {}),
        ((2, 3, 6), (4, 3, 3), {"padding": "FULL"}),
        ((2, 3, 6), (4, 3, 3), {"padding": (1, 1)}),
        ((2, 3, 6), (4, 3, 3), {"padding": "SAME", "lhs_dilation": (2,)}),
        ((2, 3, 6), (4, 3, 3), {"window_strides": (1, 1)}),
        ((2, 3, 6), (4, 3, 3), {"feature_group_count": 0}),
        ((2, 3, 6), (4, 3, 3), {"dimension_numbers": ("NCW", "OIW")}),
        ((2, 3, 6), (4, 3, 3), {"precision": "exact"}),
    ],
)
def test_errors_are_laxs(lhs, rhs, options):
    arrays, options = (np.ones(lhs, np.float32), np.ones(rhs, np.float32)), {
        "window_strides": (1,), "padding": "VALID"} | options  # fmt: skip
    with pytest.raises((TypeError, ValueError, RuntimeError)) as theirs:
        lax.conv_general_dilated(*arrays, **options)
    with pytest.raises(theirs.type) as ours:
        jn.conv_general_dilated(*arrays, **options)
    assert str(ours.value) == str(theirs.value)


def test_unlike_dtypes_and_lists_are_type_errors():
    with pytest.raises(TypeError):
        jn.conv_general_dilated(np.ones((1, 1, 3), np.float32), np.ones((1, 1, 3), np.float64), (1,), "SAME")
    with pytest.raises(TypeError, match="lhs must be an array"):
        jn.conv_general_dilated([[[1.0]]], np.ones((1, 1, 3)), (1,), "SAME")  # pyright: ignore


def test_empty_arrays():
    for lhs, rhs, padding in [
        ((0, 3, 5), (4, 3, 3), "SAME"),
        ((2, 0, 5), (4, 0, 3), "SAME"),
        ((2, 3, 2), (4, 3, 3), "VALID"),
    ]:
        y, vjp = jax.vjp(lambda a, b, p=padding: jn.conv_general_dilated(a, b, (1,), p), normal(*lhs), normal(*rhs))
        assert y.shape == lax.conv_general_dilated(normal(*lhs), normal(*rhs), (1,), padding).shape
        assert not any(d.any() for d in vjp(jnp.ones_like(y)))


@pytest.mark.parametrize("spec", [P("data"), P("data", "model"), P(None, None, "model")])
def test_out_sharding(spec):
    """On explicit mesh axes the result is split as asked for, and the gradients as their arguments."""
    mesh = jax.make_mesh((4, 2), ("data", "model"))
    x, kernel = normal(8, 4, 8, seed=0), normal(6, 4, 3, seed=1)
    plain = partial(reference.conv_general_dilated, window_strides=(1,), padding="SAME")
    g = normal(8, 6, 8, seed=2)
    wanted = value_and_vjp(plain, [x, kernel], g)
    with jax.set_mesh(mesh):
        split = [jax.device_put(x, P("data")), jax.device_put(kernel, P())]
        ours = partial(jn.conv_general_dilated, window_strides=(1,), padding="SAME", out_sharding=spec)
        y, _ = got = jax.jit(partial(value_and_vjp, ours))(split, jax.device_put(g, spec))
        assert jax.typeof(y).sharding.spec == P(*spec, *[None] * (3 - len(spec)))
        assert [jax.typeof(d).sharding.spec for d in got[1]] == [P("data", None, None), P(None, None, None)]
    assert_close(jax.device_get(got), jax.device_get(wanted))


@pytest.mark.parametrize("options", [thorough({}), {"feature_group_count": 4, "strides": 2, "padding": "CIRCULAR"}])
def test_flax_takes_it(options):
    """`Conv(conv_general_dilated=...)` of linen and nnx, against their own."""
    x, values = normal(2, 6, 6, 4), {}
    for name, hook in {"ours": jn.conv_general_dilated, "theirs": lax.conv_general_dilated}.items():
        layer = flax.linen.Conv(8, (3, 3), conv_general_dilated=hook, param_dtype=jnp.float64, **options)
        params = layer.init(jax.random.key(0), x)
        linen = value_and_vjp(layer.apply, [params, x], normal(*layer.apply(params, x).shape, seed=1))
        module = flax.nnx.Conv(
            4, 8, (3, 3), conv_general_dilated=hook, param_dtype=jnp.float64, rngs=flax.nnx.Rngs(0), **options
        )
        nnx = flax.nnx.value_and_grad(lambda module: jnp.sum(jnp.sin(module(x))))(module)
        values[name] = linen, jax.tree.leaves(nnx)
    assert_close(values["ours"], values["theirs"])
    with pytest.raises(TypeError, match="custom_vjp"):  # it is the rule that flax calls
        jax.jvp(partial(flax.linen.Conv(8, (3, 3), conv_general_dilated=jn.conv_general_dilated).apply,
            flax.linen.Conv(8, (3, 3)).init(jax.random.key(0), x)), (x,), (x,))  # fmt: skip
