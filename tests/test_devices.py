"""Rules on eight devices: shard_map with and without varying types, vmap, automatic sharding, synced statistics."""

import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from devices import run_processes
from jax.sharding import PartitionSpec as P
from parallel import LINE, by_jit, by_shard_map, by_vmap, gradients, over_operations, problem
from support import assert_close, normal, thorough

import jaxnorm as jn

pytestmark = pytest.mark.usefixtures("quick_compilation")


# How a gradient is summed depends on where it is taken and on the types, hardly on the function: two by default.
SHARD_MAPS = [(True, "inside"), (False, "outside"), thorough(True, "outside"), thorough(False, "inside")]


@pytest.mark.parametrize("check_vma, taken", SHARD_MAPS)
@over_operations
def test_batch_split_by_shard_map_equals_one_device(index: int, check_vma: bool, taken: str):
    assert_close(by_shard_map(problem(index), check_vma, taken), problem(index).wanted)


@pytest.mark.parametrize("taken", ["inside", thorough("outside")])
@over_operations
def test_batch_split_by_vmap_equals_one_device(index: int, taken: str):
    assert_close(by_vmap(problem(index), taken), problem(index).wanted)


@pytest.mark.parametrize("split", [*map(thorough, ("batch", "batch and space", "features")), "batch and features"])
@over_operations
def test_automatic_sharding_equals_one_device(index: int, split: str):
    assert_close(by_jit(problem(index), split), problem(index).wanted)


@pytest.mark.thorough
def test_two_processes_equal_one_device():
    """jax.distributed, four devices in each: see two_processes.py."""
    run_processes([sys.executable, str(Path(__file__).with_name("two_processes.py"))], 2, timeout=100)


@pytest.mark.parametrize("taken", ["inside", "outside"])
@pytest.mark.parametrize("check_vma", [True, False])
@pytest.mark.parametrize("norm", [jn.layer_norm, jn.rms_norm], ids=["layer", "rms"])
def test_features_split_by_shard_map_equal_one_device(norm, check_vma: bool, taken: str):
    """Statistics of rows whose features lie on all devices; the linear loss's vocabulary is in test_linear_loss.py."""
    args = [normal(5, 24), normal(24), normal(24, seed=1)][: 3 if norm is jn.layer_norm else 2]
    where = (normal(5, 24, seed=1) < 0.25).at[:, :3].set(False)  # the first device has nothing
    columns = P(None, "devices")

    def function(data, parameters, where, axis_name=None):
        return norm(*data, *parameters, where=where, axis_name=axis_name)

    split_function = partial(function, axis_name="devices")

    specs = ([columns], [P("devices")] * (len(args) - 1), columns)
    sharded = partial(jax.shard_map, mesh=LINE, check_vma=check_vma)
    if taken == "inside":
        device = partial(gradients, split_function)
        run = sharded(device, in_specs=(*specs, columns), out_specs=(columns, *specs[:2]))
    else:
        run = partial(gradients, sharded(split_function, in_specs=specs, out_specs=columns))
    whole = args[:1], args[1:], where, normal(5, 24, seed=2)
    assert_close(jax.jit(run)(*whole), jax.jit(partial(gradients, function))(*whole))


def batch_norm_inputs(mask: bool):
    where = (normal(8, 3, 1) < 0.25).at[2:4].set(False) if mask else None  # one device has nothing
    return 1e4 + normal(8, 3, 5), where, normal(5), normal(5, seed=1), normal(8, 3, 5, seed=1)


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
    device = partial(step, synced(axis_name="batch"))
    mapped = jax.jit(jax.vmap(device, (0, 0, None, None, None if where is None else 0), axis_name="batch"))
    y, stats, (dx, dscale, dbias) = mapped(split(g), split(x), scale, bias, split(where))
    got = y.reshape(x.shape), jax.tree.map(lambda s: s[0], stats), (dx.reshape(x.shape), dscale.sum(0), dbias.sum(0))
    assert_close(got, step(synced(), g, x, scale, bias, where), 1e-9)


def test_synced_statistics_keep_the_digits_of_a_large_mean_in_float32():
    x = (1e4 + normal(4, 256, 3)).astype(jnp.float32)
    y, stats = jax.vmap(partial(jn.batch_norm, training=True, axis_name="i"), axis_name="i")(x)
    np.testing.assert_allclose(np.std(np.asarray(y, np.float64), axis=(0, 1)), 1, atol=1e-3)
    constant, _ = jax.vmap(partial(jn.batch_norm, training=True, axis_name="i"), axis_name="i")(jnp.full_like(x, 1e15))
    assert not constant.any()


@pytest.mark.parametrize("norm", [jn.layer_norm, jn.rms_norm], ids=["layer", "rms"])
def test_second_derivatives_of_synced_statistics(norm):
    """Features split over a mapped axis: layer and RMS norm of the whole row, to second order."""
    x = normal(2, 3, 4)

    def loss(x):
        return jnp.sum(jnp.sin(jax.vmap(partial(norm, axis_name="i"), axis_name="i")(x)))

    def whole(x):
        return jnp.sum(jnp.sin(norm(jnp.moveaxis(x, 0, 1).reshape(3, 8))))

    assert_close(*(jax.jit(jax.grad(lambda x, f=f: jnp.sum(jnp.sin(jax.grad(f)(x)))))(x) for f in (loss, whole)))
