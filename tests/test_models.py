"""Models of linen, nnx, haiku and equinox on these rules: values, gradients, states, dtypes of their own code."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import assert_close, normal, random_like

F64, F32, BF16 = jnp.float64, jnp.float32, jnp.bfloat16
KEY = jax.random.key(0)


def filled(shapes):
    """Arrays of these shapes, no scale of which is 1 and no bias 0: nothing is compiled to make them."""
    rng = np.random.default_rng(1)

    def fill(leaf):
        if not hasattr(leaf, "shape") or not jnp.issubdtype(leaf.dtype, jnp.floating):
            return leaf
        return jnp.asarray(rng.uniform(0.2, 1.8, leaf.shape), leaf.dtype)

    return jax.tree.map(fill, shapes)


def results(function, arguments, g):
    """The value, the gradients and the new state, as leaves: the classes in two trees may differ."""
    y, vjp, state = jax.vjp(function, *arguments, has_aux=True)
    return jax.tree.leaves((y, vjp(g), state))


def compare(own, hand, arguments, tolerance=1e-6):
    """Equal results of the library's code and of this one's, in one compiled program."""
    g = random_like(jax.eval_shape(own, *arguments)[0])
    wanted, got = jax.jit(lambda *a: [results(function, a, g) for function in (own, hand)])(*arguments)
    assert_close(got, wanted, tolerance)


def compare_dtypes(layer):
    """Equal shapes and dtypes of the value, the gradients and the state; nothing is computed."""
    own, hand, arguments = layer.own, layer.hand, layer.arguments
    y = jax.eval_shape(own, *arguments)[0]
    wanted, got = (
        jax.eval_shape(lambda *a, f=f: results(f, a, jnp.ones(y.shape, y.dtype)), *arguments) for f in (own, hand)
    )
    assert [(a.shape, a.dtype) for a in got] == [(a.shape, a.dtype) for a in wanted]


# --- what each library's cases become: its own function, the one with rules, the arguments, the report ---------------


class Linen:
    """A linen layer as a function of parameters and input."""

    def __init__(self, make, shape, dtype=F64, **call):
        nn = pytest.importorskip("flax.linen")
        import jaxnorm.linen

        layer, x = make(nn), normal(*shape, dtype=dtype)
        state = filled(dict(jax.eval_shape(lambda: layer.init(KEY, x, **call))))
        params = state.pop("params", {})

        def own(params, x):
            return layer.apply({"params": params, **state}, x, mutable=["batch_stats"], **call)

        def hand(params, x):
            with jaxnorm.linen.hand_rules() as self.report:
                return own(params, x)

        self.own, self.hand, self.arguments = own, hand, (params, x)


class Nnx:
    """An nnx layer as a function of parameters and input."""

    def __init__(self, make, shape, dtype=F64, **call):
        nnx = pytest.importorskip("flax.nnx")
        import jaxnorm.nnx

        layer, x = nnx.eval_shape(lambda: make(nnx, nnx.Rngs(0))), normal(*shape, dtype=dtype)
        nnx.update(layer, filled(nnx.state(layer)))

        def function():
            graph, _, rest = nnx.split(layer, nnx.Param, ...)

            def apply(params, x):
                merged = nnx.merge(graph, params, jax.tree.map(lambda a: a, rest))
                return merged(x, **call), nnx.state(merged, nnx.BatchStat)

            return apply

        self.own = function()
        self.report = jaxnorm.nnx.hand_rules(layer)
        self.hand, self.arguments = function(), (nnx.state(layer, nnx.Param), x)


class Haiku:
    """A haiku layer as a function of parameters and input."""

    def __init__(self, make, shape, dtype=F64, params_dtype=None, training=None, **call):
        hk = pytest.importorskip("haiku")
        import jaxnorm.haiku

        x = normal(*shape, dtype=dtype)

        def forward(x, *is_training):
            return make(hk)(x, *is_training, **call)

        transformed = hk.without_apply_rng(hk.transform_with_state(forward))
        init = () if training is None else (True,)
        params, state = filled(jax.eval_shape(lambda: transformed.init(KEY, x, *init)))
        state = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype) if isinstance(a, jax.ShapeDtypeStruct) else a, state)
        if params_dtype is not None:
            params = jax.tree.map(lambda p: p.astype(params_dtype), params)

        def own(params, x):
            return transformed.apply(params, state, x, *(() if training is None else (training,)))

        def hand(params, x):
            with jaxnorm.haiku.hand_rules() as self.report:
                return own(params, x)

        self.own, self.hand, self.arguments = own, hand, (params, x)


class Equinox:
    """An equinox layer, mapped over a batch, as a function of parameters and input."""

    def __init__(self, make, shape, dtype=F64, stateful=False, **call):
        eqx = pytest.importorskip("equinox")
        import jaxnorm.equinox

        state = None
        if stateful:
            layer, state = eqx.nn.make_with_state(make)(eqx.nn)
        else:
            layer = eqx.filter_eval_shape(make, eqx.nn)
        layer, state = filled(layer), filled(state)
        hand = jaxnorm.equinox.hand_rules(layer)
        assert all(a is b for a, b in zip(jax.tree.leaves(hand), jax.tree.leaves(layer), strict=True))
        assert jax.tree.structure(jaxnorm.equinox.restore(hand)) == jax.tree.structure(layer)
        self.report = jaxnorm.equinox.report(hand)
        params = jax.tree.leaves(eqx.filter(layer, eqx.is_inexact_array))

        def function(layer):
            found, rest = eqx.partition(layer, eqx.is_inexact_array)

            def apply(params, x):
                model = eqx.combine(jax.tree.unflatten(jax.tree.structure(found), params), rest)
                if state is None:
                    return jax.vmap(lambda x: model(x, **call))(x), ()
                axes = {"in_axes": (0, None), "out_axes": (0, None), "axis_name": "batch"}
                y, new = jax.vmap(lambda x, s: model(x, s, **call), **axes)(x, state)
                return y, jax.tree.leaves(new)

            return apply

        self.own, self.hand, self.arguments = function(layer), function(hand), (params, normal(*shape, dtype=dtype))


MASK = jnp.array([[[True], [False], [True]], [[True], [True], [True]]])
TRIL = jnp.tril(jnp.ones((3, 3, 2, 4)))

REPLACED = [
    (Linen, lambda nn: nn.Dense(5), (2, 3)),
    (Linen, lambda nn: nn.Dense(5, use_bias=False), (3,)),
    (Linen, lambda nn: nn.DenseGeneral((4, 5), axis=(1, -1)), (2, 3, 4, 6)),
    (Linen, lambda nn: nn.Einsum((5, 6, 7), "abc,cde->aebd"), (3, 4, 5)),
    (Linen, lambda nn: nn.Einsum((5, 6), "...c,cd->...d", use_bias=False), (3, 4, 5)),
    (Linen, lambda nn: nn.Conv(4, (3, 4), strides=2, padding="CIRCULAR", kernel_dilation=(1, 2)), (2, 9, 10, 3)),
    (Linen, lambda nn: nn.Conv(4, (4, 3), padding="REFLECT"), (2, 9, 10, 3)),
    (Linen, lambda nn: nn.Conv(4, (3,), padding="CAUSAL", kernel_dilation=2, use_bias=False), (2, 9, 3)),
    (Linen, lambda nn: nn.Conv(4, 3, padding=[(1, 2)], input_dilation=2, feature_group_count=2), (2, 3, 9, 4)),
    (Linen, lambda nn: nn.Conv(4, (3, 3), mask=TRIL, strides=None), (5, 6, 2)),
    (Linen, lambda nn: nn.Conv(4, (1, 2, 2), padding="VALID"), (1, 3, 4, 4, 2)),
    (Linen, lambda nn: nn.ConvTranspose(4, (3, 2), strides=(2, 1)), (2, 5, 5, 3)),
    (Linen, lambda nn: nn.ConvTranspose(4, 3, padding="VALID", transpose_kernel=True, kernel_dilation=2), (2, 5, 3)),
    (Linen, lambda nn: nn.LayerNorm(), (2, 3, 8), {"mask": jnp.arange(8) != 3}),
    (Linen, lambda nn: nn.LayerNorm(reduction_axes=(1, 2), feature_axes=1, use_bias=False), (2, 3, 4)),
    (Linen, lambda nn: nn.RMSNorm(epsilon=1e-2), (2, 8)),
    (Linen, lambda nn: nn.GroupNorm(2), (2, 3, 8), {"mask": jnp.broadcast_to(MASK, (2, 3, 8))}),
    (Linen, lambda nn: nn.GroupNorm(None, group_size=2, reduction_axes=(0, -1), use_scale=False), (2, 3, 8)),
    (Linen, lambda nn: nn.InstanceNorm(use_scale=False), (2, 5, 4)),
    (Linen, lambda nn: nn.BatchNorm(momentum=0.8), (2, 3, 4), {"use_running_average": False, "mask": MASK}),
    (Linen, lambda nn: nn.BatchNorm(True, axis=1), (2, 3, 4)),
    (Nnx, lambda nnx, r: nnx.Linear(3, 5, rngs=r), (2, 3)),
    (Nnx, lambda nnx, r: nnx.LinearGeneral((3, 6), (4, 5), axis=(1, -1), rngs=r), (2, 3, 4, 6)),
    (Nnx, lambda nnx, r: nnx.Einsum("abc,cde->aebd", (5, 6, 7), (7, 1, 6), rngs=r), (3, 4, 5)),
    (Nnx, lambda nnx, r: nnx.Conv(4, 8, (3, 3), 2, padding="CIRCULAR", feature_group_count=4, rngs=r), (2, 6, 7, 4)),
    (Nnx, lambda nnx, r: nnx.Conv(3, 4, 3, padding="CAUSAL", rngs=r), (2, 9, 3)),
    (Nnx, lambda nnx, r: nnx.ConvTranspose(3, 4, (3, 2), 2, transpose_kernel=True, rngs=r), (2, 5, 5, 3)),
    (Nnx, lambda nnx, r: nnx.LayerNorm(8, rngs=r), (2, 3, 8), {"mask": jnp.arange(8) != 3}),
    (Nnx, lambda nnx, r: nnx.RMSNorm(8, rngs=r), (2, 3, 8)),
    (Nnx, lambda nnx, r: nnx.GroupNorm(8, 2, use_bias=False, rngs=r), (2, 3, 8)),
    (Nnx, lambda nnx, r: nnx.InstanceNorm(4, rngs=r), (2, 5, 4)),
    (Nnx, lambda nnx, r: nnx.BatchNorm(4, momentum=0.8, rngs=r), (2, 3, 4), {"mask": MASK}),
    (Nnx, lambda nnx, r: nnx.BatchNorm(3, axis=1, use_scale=False, rngs=r), (2, 3, 4), {"use_running_average": True}),
    (Haiku, lambda hk: hk.Linear(5), (2, 3)),
    (Haiku, lambda hk: hk.Conv2D(4, (3, 4), stride=2, rate=(1, 2), data_format="NCHW"), (2, 3, 9, 8)),
    (Haiku, lambda hk: hk.Conv2D(4, 3, mask=TRIL, padding=hk.pad.causal, with_bias=False), (5, 6, 2)),
    (Haiku, lambda hk: hk.Conv1D(4, 3, feature_group_count=2, padding=[(2, 1)]), (2, 7, 4)),
    (Haiku, lambda hk: hk.Conv2DTranspose(4, 3, stride=2), (2, 5, 5, 3)),
    (Haiku, lambda hk: hk.Conv1DTranspose(4, 3, stride=2, data_format="NCW", padding="VALID"), (3, 5)),
    (Haiku, lambda hk: hk.DepthwiseConv2D(2, 3, stride=2), (2, 5, 5, 3)),
    (Haiku, lambda hk: hk.LayerNorm(slice(1, None), True, True, param_axis=(1, 2)), (2, 3, 4)),
    (Haiku, lambda hk: hk.LayerNorm(-1, False, False), (2, 4), {"scale": jnp.arange(4.0), "offset": jnp.ones((2, 1))}),
    (Haiku, lambda hk: hk.RMSNorm(-1), (2, 3, 8)),
    (Haiku, lambda hk: hk.MaxPool((3, 2, 1), (2, 1, 1), "SAME"), (6, 5, 3)),
    (Haiku, lambda hk: hk.MaxPool(2, 2, "VALID", channel_axis=1), (2, 3, 7)),
    (Haiku, lambda hk: hk.AvgPool((1, 3, 3, 1), (1, 2, 2, 1), "SAME"), (2, 6, 5, 3)),
    (Haiku, lambda hk: hk.InstanceNorm(True, True, data_format="channels_first"), (2, 3, 4, 5)),
    (Haiku, lambda hk: hk.GroupNorm(2, data_format="channels_first"), (2, 4, 3, 3)),
    (Haiku, lambda hk: hk.GroupNorm(2, axis=(1,), create_scale=False), (2, 3, 8)),
    (Haiku, lambda hk: hk.BatchNorm(True, True, 0.9, data_format="channels_first"), (2, 3, 4), {"training": True}),
    (Haiku, lambda hk: hk.BatchNorm(True, False, 0.9), (2, 3, 4), {"training": False}),
    (Haiku, lambda hk: hk.BatchNorm(False, True, 0.9), (2, 3, 4), {"training": False, "test_local_stats": True}),
    (Equinox, lambda nn: nn.Linear(3, 4, key=KEY), (2, 3)),
    (Equinox, lambda nn: nn.Linear("scalar", "scalar", use_bias=False, key=KEY), (2,)),
    (Equinox, lambda nn: nn.Conv2d(4, 6, 3, 2, 1, groups=2, padding_mode="REFLECT", key=KEY), (2, 4, 7, 8)),
    (Equinox, lambda nn: nn.Conv1d(4, 4, 3, padding="SAME_LOWER", dilation=2, groups=4, key=KEY), (2, 4, 7)),
    (Equinox, lambda nn: nn.ConvTranspose2d(4, 6, 3, 2, 1, padding=1, groups=2, key=KEY), (2, 4, 5, 5)),
    (
        Equinox,
        lambda nn: nn.ConvTranspose1d(4, 6, 3, padding="SAME", padding_mode="CIRCULAR", use_bias=False, key=KEY),
        (2, 4, 5),
    ),
    (Equinox, lambda nn: nn.MaxPool2d(3, 2, 1, use_ceil=True), (2, 3, 6, 5)),
    (Equinox, lambda nn: nn.AvgPool1d(3, 2, padding=1), (2, 3, 6)),
    (Equinox, lambda nn: nn.LayerNorm((3, 4)), (2, 3, 4)),
    (Equinox, lambda nn: nn.LayerNorm(4, use_weight=False), (2, 4)),
    (Equinox, lambda nn: nn.RMSNorm((3, 4)), (2, 3, 4)),
    (Equinox, lambda nn: nn.GroupNorm(2, 4), (2, 4, 3, 3)),
    (Equinox, lambda nn: nn.GroupNorm(2, channelwise_affine=False), (2, 4, 3, 3)),
    (Equinox, lambda nn: nn.BatchNorm(4, "batch", momentum=0.8, mode="batch"), (3, 4, 5), {"stateful": True}),
    (
        Equinox,
        lambda nn: nn.BatchNorm(4, "batch", channelwise_affine=False, mode="batch"),
        (3, 4),
        {"stateful": True, "inference": True},
    ),
]

KEPT = [
    (Linen, lambda nn: nn.Dense(5, dot_general=lambda *a, **k: jax.lax.dot_general(*a, **k)), (2, 3), "dot_general"),
    (Linen, lambda nn: nn.Dense(5, promote_dtype=lambda *a, **k: a), (2, 3), "promote_dtype"),
    (Linen, lambda nn: nn.DenseGeneral(4, batch_dims=(0,)), (2, 3, 4), "batch axes"),
    (Linen, lambda nn: nn.Einsum((2, 5, 6), "abc,acd->abd"), (2, 4, 5), "equation"),
    (Linen, lambda nn: nn.Conv(4, (1, 2, 1, 2)), (1, 3, 3, 3, 3, 2), "4 spatial axes"),
    (
        Linen,
        lambda nn: nn.Conv(4, 3, conv_general_dilated=lambda *a, **k: jax.lax.conv_general_dilated(*a, **k)),
        (1, 5, 2),
        "conv_general",
    ),
    (Linen, lambda nn: nn.ConvTranspose(4, 3, padding="CIRCULAR"), (1, 5, 2), "CIRCULAR"),
    (Linen, lambda nn: nn.BatchNorm(False, axis=(1, 2)), (2, 3, 4), "axis is"),
    (Linen, lambda nn: nn.BatchNorm(False, momentum=-0.5), (2, 3, 4), "momentum"),
    (Linen, lambda nn: nn.LayerNorm(dtype=jnp.complex128), (2, 3), "complex"),
    (Linen, lambda nn: type("Mine", (nn.Dense,), {})(5), (2, 3), "a class of its own, derived from Dense"),
    (Nnx, lambda nnx, r: nnx.Linear(3, 5, preferred_element_type=F32, rngs=r), (2, 3), "preferred_element_type"),
    (Nnx, lambda nnx, r: nnx.LinearGeneral(4, 5, batch_axis={0: 2}, rngs=r), (2, 3, 4), "batch axes"),
    (Nnx, lambda nnx, r: nnx.ConvTranspose(2, 4, 3, padding="CIRCULAR", rngs=r), (1, 5, 2), "CIRCULAR"),
    (Nnx, lambda nnx, r: type("Mine", (nnx.Linear,), {})(3, 5, rngs=r), (2, 3), "a class of its own"),
    (Haiku, lambda hk: hk.ConvND(4, 4, 2), (1, 3, 3, 3, 3, 2), "4 spatial axes"),
    (Haiku, lambda hk: hk.Conv1DTranspose(4, 3, output_shape=10, stride=2), (2, 5, 3), "output_shape"),
    (Haiku, lambda hk: hk.GroupNorm(2, axis=(-1,)), (2, 3, 8), "axis is"),
    (Haiku, lambda hk: hk.AvgPool((1, 2, 2, 2), 1, "VALID"), (3, 3, 3, 3), "window_shape"),
    (Haiku, lambda hk: hk.BatchNorm(True, True, 0.9, axis=(0,)), (2, 3, 4), "axis is", {"training": True}),
    (Haiku, lambda hk: type("Mine", (hk.Linear,), {})(5), (2, 3), "a class of its own"),
    (Equinox, lambda nn: nn.Conv(4, 2, 4, 2, key=KEY), (1, 2, 3, 3, 3, 3), "4 spatial axes"),
    (Equinox, lambda nn: nn.BatchNorm(4, "batch", mode="ema"), (3, 4, 5), "running average", {"stateful": True}),
    (Equinox, lambda nn: type("Mine", (nn.Linear,), {})(3, 4, key=KEY), (2, 3), "a class of its own"),
]


def called(library, make, shape, *options):
    return library(make, shape, **(options[0] if options else {}))


@pytest.mark.parametrize("case", REPLACED, ids=lambda case: case[0].__name__)
def test_layers_equal_the_librarys_own(case, quick_compilation):
    layer = called(*case)
    compare(layer.own, layer.hand, layer.arguments)
    assert len(layer.report.replaced) == 1 and not layer.report.kept


@pytest.mark.parametrize("case", KEPT, ids=lambda case: case[0].__name__)
def test_layers_without_an_equal_keep_their_code_and_are_reported(case):
    library, make, shape, reason, *options = case
    layer = called(library, make, shape, *options)
    own, hand = (str(jax.make_jaxpr(function)(*layer.arguments)) for function in (layer.own, layer.hand))
    assert own == hand
    assert not layer.report.replaced and reason in next(iter(layer.report.kept.values()))
    assert reason in str(layer.report)


# --- dtypes ----------------------------------------------------------------------------------------------------------

DTYPES = [
    (F64, {}),
    (F32, {}),
    (BF16, {}),
    (jnp.int32, {"param_dtype": BF16}),
    (F32, {"dtype": BF16}),
    (BF16, {"dtype": F32}),
    (BF16, {"param_dtype": BF16}),
    (F64, {"dtype": jnp.float16, "param_dtype": F64}),
]


@pytest.mark.parametrize(("dtype", "options"), DTYPES, ids=str)
def test_dtypes_of_flax_layers(dtype, options):
    training = {"use_running_average": False}
    for make, shape, *call in (
        (lambda nn, **o: nn.Dense(5, **o), (2, 3)),
        (lambda nn, **o: nn.Conv(4, 3, **o), (2, 5, 3)),
        (lambda nn, **o: nn.ConvTranspose(4, 3, preferred_element_type=F64, **o), (2, 5, 3)),
        (lambda nn, **o: nn.LayerNorm(**o), (2, 3)),
        (lambda nn, **o: nn.RMSNorm(force_float32_reductions=False, **o), (2, 3)),
        (lambda nn, **o: nn.GroupNorm(1, **o), (2, 3)),
        (lambda nn, **o: nn.BatchNorm(**o), (2, 3), training),
        (lambda nn, **o: nn.BatchNorm(force_float32_reductions=False, **o), (2, 3), training),
        (lambda nn, **o: nn.BatchNorm(True, **o), (2, 3)),
    ):
        layer = Linen(lambda nn, make=make: make(nn, **options), shape, dtype, **(call[0] if call else {}))
        compare_dtypes(layer)
    for make, shape in (
        (lambda nnx, r, **o: nnx.Linear(3, 5, rngs=r, **o), (2, 3)),
        (lambda nnx, r, **o: nnx.Conv(3, 4, 3, preferred_element_type=F64, rngs=r, **o), (2, 5, 3)),
        (lambda nnx, r, **o: nnx.LayerNorm(3, rngs=r, **o), (2, 3)),
        (lambda nnx, r, **o: nnx.BatchNorm(3, rngs=r, **o), (2, 3)),
        (lambda nnx, r, **o: nnx.BatchNorm(3, use_running_average=True, rngs=r, **o), (2, 3)),
    ):
        compare_dtypes(Nnx(lambda nnx, r, make=make: make(nnx, r, **options), shape, dtype))


@pytest.mark.parametrize("params_dtype", [F32, BF16])
@pytest.mark.parametrize("dtype", [F64, F32, BF16])
def test_dtypes_of_haiku_and_equinox_layers(dtype, params_dtype):
    for make, shape, *call in (
        (lambda hk: hk.Linear(5), (2, 3)),
        (lambda hk: hk.LayerNorm(-1, True, True), (2, 3)),
        (lambda hk: hk.RMSNorm(-1), (2, 3)),
        (lambda hk: hk.GroupNorm(1), (2, 3)),
        (lambda hk: hk.BatchNorm(True, True, 0.9), (2, 3), {"training": True}),
        (lambda hk: hk.BatchNorm(True, True, 0.9), (2, 3), {"training": False}),
    ):
        compare_dtypes(Haiku(make, shape, dtype, params_dtype, **(call[0] if call else {})))
    for make, shape, *call in (
        (lambda nn: nn.Linear(3, 4, dtype=params_dtype, key=KEY), (2, 3)),
        (lambda nn: nn.LayerNorm(3, dtype=params_dtype), (2, 3)),
        (lambda nn: nn.RMSNorm(3, dtype=params_dtype), (2, 3)),
        (lambda nn: nn.GroupNorm(1, 3, dtype=params_dtype), (2, 3)),
        (lambda nn: nn.BatchNorm(3, "batch", mode="batch", dtype=params_dtype), (2, 3), {"inference": True}),
    ):
        compare_dtypes(Equinox(make, shape, dtype, stateful=bool(call), **(call[0] if call else {})))


def test_bfloat16_values(quick_compilation):
    for layer in (
        Linen(lambda nn: nn.Dense(5, dtype=BF16), (2, 3), F32),
        Linen(lambda nn: nn.BatchNorm(False, dtype=BF16), (4, 3), F32),
        Nnx(lambda nnx, r: nnx.LayerNorm(8, dtype=BF16, rngs=r), (2, 8), F32),
        Haiku(lambda hk: hk.Conv1D(4, 3), (2, 9, 3), BF16, BF16),
        Equinox(lambda nn: nn.Conv1d(3, 4, 3, dtype=BF16, key=KEY), (2, 3, 9), BF16),
    ):
        compare(layer.own, layer.hand, layer.arguments, 0.05)
        assert layer.report.replaced


# --- models ----------------------------------------------------------------------------------------------------------


def steps(loss, params, state, batch, optimizer):
    """Two training steps, compiled: the parameters and the state after them."""
    memory = optimizer.init(params)

    @jax.jit
    def step(params, state, memory, batch):
        gradients, state = jax.grad(loss, has_aux=True)(params, state, *batch)
        updates, memory = optimizer.update(gradients, memory, params)
        return jax.tree.map(jnp.add, params, updates), state, memory

    for _ in range(2):
        params, state, memory = step(params, state, memory, batch)
    return jax.tree.leaves((params, state))


def images():
    return normal(4, 6, 6, 3), normal(4, 5, seed=1)


def test_a_linen_network_trains_as_it_did(quick_compilation):
    nn = pytest.importorskip("flax.linen")
    optax = pytest.importorskip("optax")
    import jaxnorm.linen

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            x = nn.Conv(8, (3, 3))(x)
            x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.5)(x))
            x = nn.remat(nn.Conv)(8, (3, 3), feature_group_count=8, name="depthwise")(x)
            x = nn.GroupNorm(2)(x).reshape(x.shape[0], -1, 8)
            x = x + nn.MultiHeadDotProductAttention(2)(nn.LayerNorm()(x))
            return nn.Dense(5)(x.mean(1))

    net, (x, y) = Net(), images()
    variables = jax.tree.map(lambda a: a / 4, filled(jax.eval_shape(lambda: net.init(KEY, x, False))))

    def loss(params, stats, x, y):
        out, new = net.apply({"params": params, "batch_stats": stats}, x, True, mutable=["batch_stats"])
        return jnp.mean((out - y) ** 2), new["batch_stats"]

    arguments = variables["params"], variables["batch_stats"], (x, y), optax.sgd(0.01, 0.9)
    wanted = steps(loss, *arguments)
    with jaxnorm.linen.hand_rules() as report:
        got = steps(loss, *arguments)
    assert_close(got, wanted, 1e-5)
    attention = {f"MultiHeadDotProductAttention_0/{name}" for name in ("query", "key", "value", "out")}
    layers = {"Conv_0", "depthwise", "BatchNorm_0", "GroupNorm_0", "LayerNorm_0", "Dense_0"}
    assert layers | attention == set(report.replaced) and not report.kept


def test_an_nnx_network_trains_as_it_did(quick_compilation):
    nnx = pytest.importorskip("flax.nnx")
    optax = pytest.importorskip("optax")
    import jaxnorm.nnx

    class Net(nnx.Module):
        def __init__(self, rngs):
            self.layers = nnx.List([nnx.Conv(3, 8, 3, rngs=rngs), nnx.BatchNorm(8, momentum=0.5, rngs=rngs)])
            self.attention = nnx.MultiHeadAttention(2, 8, decode=False, rngs=rngs)
            self.out = nnx.Linear(8, 5, rngs=rngs)

        def __call__(self, x):
            for layer in self.layers:
                x = layer(x)
            return self.out(self.attention(x).mean((1, 2)))

    x, y = images()

    def trained(hand):
        net = Net(nnx.Rngs(0))
        before, report = nnx.state(net), None
        structure = jax.tree.structure(before)
        if hand:
            report = jaxnorm.nnx.hand_rules(net)
            assert not jaxnorm.nnx.hand_rules(net).kept  # a second call changes nothing
        assert jax.tree.structure(nnx.state(net)) == structure
        optimizer = nnx.Optimizer(net, optax.sgd(0.01, 0.9), wrt=nnx.Param)

        @nnx.jit
        def step(net, optimizer, x, y):
            optimizer.update(net, nnx.grad(lambda net: jnp.mean((net(x) - y) ** 2))(net))

        for _ in range(2):
            step(net, optimizer, x, y)
        assert jax.tree.structure(nnx.state(net)) == structure
        return net, report

    (wanted, _), (got, report) = trained(False), trained(True)
    assert {"layers.0", "layers.1", "attention.query", "out"} < set(report.replaced) and not report.kept
    assert_close(jax.tree.leaves(nnx.state(got)), jax.tree.leaves(nnx.state(wanted)), 1e-5)
    assert jnp.any(got.layers[1].mean[...] != 0) and isinstance(got.out, nnx.Linear)
    graph, state = nnx.split(got)
    assert_close(nnx.merge(graph, state)(x), got(x), 1e-12)
    graph, _ = nnx.split(wanted)
    assert_close(nnx.merge(graph, state)(x), got(x), 1e-6)  # a state goes from either model to the other
    report.restore()
    assert type(got.out) is nnx.Linear and nnx.split(got)[0] == nnx.split(wanted)[0]
    with pytest.raises(TypeError, match="nnx.Module"):
        jaxnorm.nnx.hand_rules(state)


def test_a_haiku_network_trains_as_it_did(quick_compilation):
    hk = pytest.importorskip("haiku")
    optax = pytest.importorskip("optax")
    import jaxnorm.haiku

    def forward(x):
        x = hk.Conv2D(8, 3)(x)
        x = jax.nn.relu(hk.BatchNorm(True, True, 0.5)(x, is_training=True))
        x = hk.SeparableDepthwiseConv2D(1, 3)(x).reshape(x.shape[0], -1, 8)
        attended = hk.MultiHeadAttention(2, 4, w_init=hk.initializers.VarianceScaling())(x, x, x)
        return hk.Linear(5)(hk.LayerNorm(-1, True, True)(attended).mean(1))

    net, (x, y) = hk.without_apply_rng(hk.transform_with_state(forward)), images()
    params, state = filled(jax.eval_shape(lambda: net.init(KEY, x)))
    state = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), state)

    def loss(params, state, x, y):
        out, state = net.apply(params, state, x)
        return jnp.mean((out - y) ** 2), state

    arguments = params, state, (x, y), optax.sgd(0.01, 0.9)
    wanted = steps(loss, *arguments)
    with jaxnorm.haiku.hand_rules() as report:
        got = steps(loss, *arguments)
    assert_close(got, wanted, 1e-5)
    assert len(report.replaced) == 10 and not report.kept


def test_an_equinox_network_trains_as_it_did(quick_compilation, tmp_path):
    eqx = pytest.importorskip("equinox")
    optax = pytest.importorskip("optax")
    import jaxnorm.equinox

    class Block(eqx.Module):
        conv: eqx.nn.Conv2d
        norm: eqx.nn.BatchNorm
        attention: eqx.nn.MultiheadAttention
        mlp: eqx.nn.MLP

        def __init__(self, key):
            self.conv = eqx.nn.Conv2d(3, 8, 3, padding=1, groups=1, key=key)
            self.norm = eqx.nn.BatchNorm(8, "batch", mode="batch", momentum=0.5)
            self.attention = eqx.nn.MultiheadAttention(2, 8, key=key)
            self.mlp = eqx.nn.MLP(8, 5, 8, 1, key=key)

        def __call__(self, x, state):
            x, state = self.norm(self.conv(x), state)
            x = x.reshape(8, -1).T
            return self.mlp(self.attention(x, x, x).mean(0)), state

    (x, y), (block, state) = images(), eqx.nn.make_with_state(Block)(KEY)
    hand = jaxnorm.equinox.hand_rules(block)
    assert {".conv", ".norm", ".attention.query_proj", ".mlp.layers[0]"} < set(jaxnorm.equinox.report(hand).replaced)
    assert jaxnorm.equinox.report(block).kept[".conv"] == "Conv2d: hand_rules was not called"

    def trained(model):
        params, rest = eqx.partition(model, eqx.is_inexact_array)

        def loss(params, state, x, y):
            model = eqx.combine(params, rest)
            out, state = jax.vmap(model, (0, None), (0, None), axis_name="batch")(x, state)
            return jnp.mean((out - y) ** 2), state

        return steps(loss, params, state, (jnp.moveaxis(x, -1, 1), y), optax.adam(0.01))

    assert_close(trained(hand), trained(block), 1e-5)
    paths = [[jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(model)] for model in (hand, block)]
    assert paths[0] == paths[1]
    assert jax.tree.structure(hand) != jax.tree.structure(block)  # jit tells the two apart by it
    assert jaxnorm.equinox.hand_rules(hand).conv is hand.conv
    eqx.tree_serialise_leaves(tmp_path / "model.eqx", hand)
    read = eqx.tree_deserialise_leaves(tmp_path / "model.eqx", jax.tree.map(lambda a: a, block))
    assert eqx.tree_equal(read, block) and eqx.tree_equal(jaxnorm.equinox.restore(hand), block)
    memory = jaxnorm.equinox.hand_rules(optax.adam(0.01).init(eqx.filter(block, eqx.is_inexact_array)))
    assert jax.tree.structure(memory) == jax.tree.structure(
        optax.adam(0.01).init(eqx.filter(hand, eqx.is_inexact_array))
    )


# --- where the rules are in effect -----------------------------------------------------------------------------------


def test_statistics_over_devices():
    nn = pytest.importorskip("flax.linen")
    import jaxnorm.linen

    x = normal(4, 3, 5) + normal(4, 1, 1)
    layer = nn.BatchNorm(False, axis_name="batch")
    variables = filled(jax.eval_shape(lambda: nn.BatchNorm(False).init(KEY, x[0])))

    def apply(x, **call):
        return layer.apply(variables, x, mutable=["batch_stats"], **call)

    mapped = {"axis_name": "batch"}
    wanted = jax.vmap(apply, **mapped)(x)
    with jaxnorm.linen.hand_rules() as report:
        assert_close(jax.vmap(apply, **mapped)(x), wanted, 1e-6)
        assert report.replaced and not report.kept
        jax.vmap(lambda x: apply(x, mask=x > 0), **mapped)(x)
    assert "mask" in report.kept["BatchNorm"]


@pytest.mark.parametrize("library", ["linen", "haiku"])
def test_a_compiled_function_is_compiled_again_within_the_context(library):
    layer = Linen(lambda nn: nn.LayerNorm(), (2, 3)) if library == "linen" else Haiku(lambda hk: hk.RMSNorm(-1), (2, 3))
    module = __import__(f"jaxnorm.{library}", fromlist=["hand_rules"])
    compiled = jax.jit(layer.own)
    wanted = compiled(*layer.arguments)
    with module.hand_rules() as first:
        assert_close(compiled(*layer.arguments), wanted, 1e-6)
    with module.hand_rules() as second:
        compiled(*layer.arguments)
    assert first.replaced and not second.replaced  # what was compiled within the context is used there
    assert compiled._cache_size() == 2


def test_the_package_imports_none_of_these_libraries():
    code = "import jaxnorm, sys; assert not {'flax', 'haiku', 'equinox'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
