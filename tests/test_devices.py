"""Rules on several devices: shard_map with and without varying types, synced statistics, automatic sharding."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from support import CHOSEN, assert_close, bound, differentiable, over, random_like, value_and_vjp

import jaxnorm as jn
from jaxnorm import reference
from jaxnorm.cases import Case

pytestmark = pytest.mark.usefixtures("quick_compilation")

MESH = jax.make_mesh((2,), ("devices",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:2])


@pytest.mark.parametrize("where_taken", ["inside", "outside"])
@pytest.mark.parametrize("check_vma", [True, False])
@over(CHOSEN)
def test_gradients_under_shard_map_equal_plain_autodiff(case: Case, check_vma: bool, where_taken: str):
    """The first argument differs between the devices; the others are replicated, and their cotangents summed."""
    first, *others = differentiable(case)
    firsts = jnp.stack([first, first * 1.25])
    outputs = jax.eval_shape(bound(case, jn), first, *others)
    cotangents = random_like(jax.tree.map(lambda a: jnp.zeros((2, *a.shape)), outputs), seed=1)

    def per_device(function, first, others, cotangent):
        unstack = partial(jax.tree.map, lambda a: a[0])
        value, vjp = jax.vjp(function, unstack(first), *others)
        if where_taken == "inside":
            dfirst, *dothers = vjp(unstack(cotangent))
            if not check_vma:  # each device has its own part
                dothers = jax.lax.psum(dothers, "devices")
            return dfirst[None], dothers
        value = jax.tree.map(lambda v, c: jnp.sum(jnp.where(jnp.isfinite(v), v * c, 0)), value, unstack(cotangent))
        return jax.lax.psum(sum(jax.tree.leaves(value)), "devices")

    def run(module):
        function = partial(per_device, bound(case, module))
        specs = (P("devices"), P(), P("devices"))
        if where_taken == "inside":
            out_specs = (P("devices"), P())
            return jax.jit(
                jax.shard_map(function, mesh=MESH, in_specs=specs, out_specs=out_specs, check_vma=check_vma)
            )(firsts, others, cotangents)
        loss = jax.shard_map(function, mesh=MESH, in_specs=specs, out_specs=P(), check_vma=check_vma)
        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(firsts, others, cotangents)

    assert_close(run(jn), run(reference))


def batch_norm_inputs(mask: bool):
    rng = np.random.default_rng(0)
    x = jnp.asarray(1e4 + rng.normal(size=(8, 3, 5)))
    where = jnp.asarray(rng.random((8, 3, 1)) < 0.6).at[2:4].set(False) if mask else None  # one device has nothing
    scale, bias, g = (jnp.asarray(rng.normal(size=s)) for s in ((5,), (5,), x.shape))
    return x, where, scale, bias, g


def step(norm, g, x, scale, bias, where):
    (y, extra), vjp = jax.vjp(lambda x, scale, bias: norm(x, scale, bias, where=where), x, scale, bias)
    return y, extra, vjp((g, jax.tree.map(jnp.zeros_like, extra)))


def synced(**options):
    return lambda *args, **kwargs: jn.batch_norm(*args, **kwargs, training=True, running_ddof=1, **options)


@pytest.mark.parametrize("mask", [False, True], ids=["all", "masked"])
@pytest.mark.parametrize("check_vma", [True, False])
def test_synced_batch_norm_under_shard_map_is_the_whole_batch(mask: bool, check_vma: bool):
    x, where, scale, bias, g = batch_norm_inputs(mask)
    mesh = jax.make_mesh((4,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:4])

    def device(g, x, scale, bias, where):
        y, stats, (dx, dscale, dbias) = step(synced(axis_name="batch"), g, x, scale, bias, where)
        if not check_vma:
            dscale, dbias = jax.lax.psum((dscale, dbias), "batch")
        return y, stats, (dx, dscale, dbias)

    specs = (P("batch"), P("batch"), P(), P(), None if where is None else P("batch"))
    out_specs = (P("batch"), P(), (P("batch"), P(), P()))
    sharded = jax.jit(jax.shard_map(device, mesh=mesh, in_specs=specs, out_specs=out_specs, check_vma=check_vma))
    assert_close(sharded(g, x, scale, bias, where), step(synced(), g, x, scale, bias, where), 1e-9)


def test_synced_over_two_mesh_axes_at_once():
    x, _, scale, bias, g = batch_norm_inputs(False)
    mesh = jax.make_mesh((2, 2), ("a", "b"), axis_types=(jax.sharding.AxisType.Auto,) * 2, devices=jax.devices()[:4])
    device = partial(step, synced(axis_name=("a", "b")), where=None)
    batch, specs = P(("a", "b")), (P(("a", "b")), P(("a", "b")), P(), P())
    sharded = jax.jit(jax.shard_map(device, mesh=mesh, in_specs=specs, out_specs=(batch, P(), (batch, P(), P()))))
    assert_close(sharded(g, x, scale, bias), step(synced(), g, x, scale, bias, None), 1e-9)


@pytest.mark.parametrize("mask", [False, True], ids=["all", "masked"])
def test_synced_batch_norm_under_vmap_is_the_whole_batch(mask: bool):
    x, where, scale, bias, g = batch_norm_inputs(mask)
    split = partial(jax.tree.map, lambda a: a.reshape(4, 2, *a.shape[1:]))
    mapped = jax.vmap(
        partial(step, synced(axis_name="batch")), (0, 0, None, None, None if where is None else 0), axis_name="batch"
    )
    y, stats, (dx, dscale, dbias) = mapped(split(g), split(x), scale, bias, split(where))
    got = y.reshape(x.shape), jax.tree.map(lambda s: s[0], stats), (dx.reshape(x.shape), dscale.sum(0), dbias.sum(0))
    assert_close(got, step(synced(), g, x, scale, bias, where), 1e-9)


def test_synced_statistics_keep_the_digits_of_a_large_mean_in_float32():
    x = jnp.asarray(1e4 + np.random.default_rng(0).normal(size=(4, 256, 3)), jnp.float32)
    y, stats = jax.vmap(partial(jn.batch_norm, training=True, axis_name="i"), axis_name="i")(x)
    np.testing.assert_allclose(np.std(np.asarray(y, np.float64), axis=(0, 1)), 1, atol=1e-3)
    constant, _ = jax.vmap(partial(jn.batch_norm, training=True, axis_name="i"), axis_name="i")(jnp.full_like(x, 1e15))
    assert not constant.any()


@pytest.mark.parametrize("norm", [jn.layer_norm, jn.rms_norm], ids=["layer", "rms"])
def test_second_derivatives_of_synced_statistics(norm):
    """Features split over a mapped axis: layer and RMS norm of the whole row, to second order."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 4)))

    def loss(x):
        return jnp.sum(jnp.sin(jax.vmap(partial(norm, axis_name="i"), axis_name="i")(x)))

    def whole(x):
        return jnp.sum(jnp.sin(norm(jnp.moveaxis(x, 0, 1).reshape(3, 8))))

    assert_close(*(jax.grad(lambda x, f=f: jnp.sum(jnp.sin(jax.grad(f)(x))))(x) for f in (loss, whole)))


def dividing(case: Case) -> list[int]:
    """The axes of the case's first argument that two devices can share."""
    return [axis for axis, size in enumerate(next(iter(case.args.values())).shape) if size % 2 == 0]


AUTOMATIC = [(case, axis) for case in CHOSEN for axis in dividing(case)]


@pytest.mark.parametrize(("case", "axis"), AUTOMATIC, ids=[f"{c}-axis{a}".replace(" ", "_") for c, a in AUTOMATIC])
def test_automatic_sharding_changes_nothing(case: Case, axis: int):
    """jit over an input sharded along any one axis: batch, features or space."""
    first, *others = differentiable(case)
    function = jax.jit(lambda *floats: value_and_vjp(bound(case, jn), list(floats[:-1]), floats[-1]))
    cotangent = random_like(jax.eval_shape(bound(case, jn), first, *others), seed=1)
    sharded = jax.device_put(first, NamedSharding(MESH, P(*[None] * axis, "devices")))
    assert_close(function(sharded, *others, cotangent), function(first, *others, cotangent))
