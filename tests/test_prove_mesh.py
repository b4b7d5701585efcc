"""Proofs of programs over a mesh, which is simulated: no device is needed but the one at hand."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.sharding import PartitionSpec as P
from support import normal

import jaxnorm as jn
from jaxnorm import reference
from jaxnorm.check import prove

MESH = jax.sharding.AbstractMesh((2, 2), ("data", "model"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
X, SCALE, BIAS = normal(4, 3), normal(3, seed=1), normal(3, seed=2)


def batch_norm(module: Any, **options: Any) -> Callable[..., Any]:
    return lambda x, scale, bias: module.batch_norm(x, scale, bias, training=True, **options)[0]


def sharded(fun: Callable[..., Any], specs: Any, out: Any, **options: Any) -> Callable[..., Any]:
    return jax.shard_map(fun, mesh=MESH, in_specs=specs, out_specs=out, **options)


def test_a_synced_batch_norm_is_proven_and_one_that_is_not_synced_refuted():
    of_rows = (P("data"), P(), P()), P("data")
    synced = sharded(batch_norm(jn, axis_name="data"), *of_rows)
    proof = prove(synced, X, SCALE, BIAS, reference=batch_norm(reference), order=2)
    assert proof.holds is True, proof
    proof = prove(sharded(batch_norm(jn), *of_rows), X, SCALE, BIAS, reference=batch_norm(reference))
    assert proof.holds is False and proof.difference and proof.difference.output == "output", proof


def test_a_synced_batch_norm_under_vmap_is_proven():
    one = batch_norm(jn, axis_name="i")
    each = jax.vmap(one, in_axes=(0, None, None), axis_name="i")
    proof = prove(
        lambda x, scale, bias: each(x.reshape(2, 2, 3), scale, bias).reshape(4, 3),
        *(X, SCALE, BIAS),
        reference=batch_norm(reference),
    )
    assert proof.holds is True, proof


def moved(x):
    right = lax.ppermute(x, "data", [(0, 1), (1, 0)])
    everything = lax.all_gather(x, "data", axis=0, tiled=True)
    largest = lax.pmax(lax.stop_gradient(x), ("data", "model"))
    return right * (1 + lax.axis_index("model")) + everything.sum(0) + lax.pmean(x, "model") + largest


def moved_on_one_device(x):
    blocks = x.reshape(2, 2, 2, 2)  # data, rows, model, columns
    right = jnp.roll(blocks, 1, 0) * jnp.arange(1.0, 3)[:, None]
    every = blocks.sum((0, 1))
    result = right + every + blocks.mean(2, keepdims=True) + lax.stop_gradient(blocks).max((0, 2))[None, :, None]
    return result.reshape(4, 4)


def test_collectives_mean_what_they_do_on_devices():
    x = normal(4, 4)
    proof = prove(sharded(moved, P("data", "model"), P("data", "model")), x, reference=moved_on_one_device)
    assert proof.holds is True, proof


@pytest.mark.parametrize("check_vma", [True, False])
def test_a_psum_and_its_cotangent(check_vma: bool):
    total = sharded(lambda x: lax.psum(x * x, ("data", "model")), P(("data", "model")), P(), check_vma=check_vma)
    assert prove(total, normal(8), reference=lambda x: (x * x).reshape(4, 2).sum(0)).holds is True


def test_what_devices_do_not_agree_on_is_undecided():
    fun = sharded(lambda x: x, P("data"), P(), check_vma=False)
    proof = prove(fun, normal(4), reference=lambda x: x[:2])
    assert proof.holds is None and "devices return different values" in proof.reason
