"""What crosses between devices, read from compiled programs: how many collectives, of which kind and size."""

from functools import partial

import jax
import jax.numpy as jnp
import pytest
from devices import Collective, collectives
from jax.sharding import PartitionSpec as P
from parallel import LINE, gradients, placed

import jaxnorm as jn

DEVICES, C = 8, 32
X, SCALE, BIAS = jnp.ones((64, 4, 4, C), jnp.float32), jnp.ones(C, jnp.float32), jnp.zeros(C, jnp.float32)


def sent(function, *args) -> list[Collective]:
    return collectives(jax.jit(function).lower(*args).compile().as_text())


def batch_norm(data, parameters, where, **options):
    return jn.batch_norm(*data, *parameters, training=True, where=where, **options)[0]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("check_vma", [True, False])
def test_synced_batch_norm_sends_one_of_group_size_forward_and_one_backward(check_vma: bool, masked: bool):
    synced, specs = partial(batch_norm, axis_name="devices"), (P("devices"), P(), P("devices"))
    where = jnp.ones((64, 4, 4, 1), bool) if masked else None
    sharded = partial(jax.shard_map, mesh=LINE, check_vma=check_vma)
    whole = [X], [SCALE, BIAS], where

    # Of each device: mean, its correction, sum of squares, count.
    forward = Collective("all-reduce", DEVICES * 4 * C, DEVICES * 4 * C * 4)
    assert sent(sharded(synced, in_specs=specs, out_specs=P("devices")), *whole) == [forward]

    # The two sums; without parameters there is nothing else to send.
    bare = sharded(partial(gradients, synced), in_specs=(*specs, P("devices")), out_specs=(P("devices"),) * 3)
    assert sent(bare, [X], [], where, X) == [forward, Collective("all-reduce", 2 * C, 2 * C * 4)]

    # The replicated parameters' own gradients go with them, at most one more collective for each.
    outside = partial(gradients, sharded(synced, in_specs=specs, out_specs=P("devices")))
    first, *backward = sent(outside, *whole, X)
    assert first == forward and {c.kind for c in backward} == {"all-reduce"} and len(backward) <= 3
    assert sum(c.elements for c in backward) == 4 * C


@pytest.mark.parametrize("norm", [jn.layer_norm, jn.rms_norm], ids=["layer", "rms"])
def test_features_split_over_devices_send_one_of_row_size_forward_and_one_backward(norm):
    columns = P(None, "devices")
    x = jnp.ones((64, DEVICES * 16), jnp.float32)
    parts, sums = (DEVICES * 4, 2) if norm is jn.layer_norm else (2, 1)

    def device(x, g):
        y, vjp = jax.vjp(partial(norm, axis_name="devices"), x)
        return y, vjp(g)[0]

    got = sent(jax.shard_map(device, mesh=LINE, in_specs=(columns,) * 2, out_specs=(columns,) * 2), x, x)
    assert [(c.kind, c.elements) for c in got] == [("all-reduce", parts * 64), ("all-reduce", sums * 64)]


NORMS = {
    "batch": batch_norm,
    "layer": lambda d, p, where: jn.layer_norm(*d, *p, where=where),
    "rms": lambda d, p, where: jn.rms_norm(*d, p[0], where=where),
    "group": lambda d, p, where: jn.group_norm(*d, *p, num_groups=4, where=where),
    "instance": lambda d, p, where: jn.instance_norm(*d, *p, where=where),
}


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("norm", NORMS)
def test_automatic_sharding_of_the_batch_sends_no_activations(norm: str, masked: bool):
    """Value and gradients: sums of the parameters' size, and for batch norm a few numbers per channel.

    The compiler knows nothing of Chan's formula: it sends each pass's sums, and the pivot more than once.
    """
    where = placed(LINE, jnp.ones((64, 4, 4, 1), bool), P("devices")) if masked else None
    x = placed(LINE, X, P("devices"))
    found = sent(partial(gradients, NORMS[norm]), [x], [SCALE, BIAS], where, x)
    assert {c.kind for c in found} == {"all-reduce"}
    assert 0 < sum(c.elements for c in found) <= (18 * C if norm == "batch" else 2 * C)


def test_collectives_are_read_from_a_program():
    """Tuples, asynchronous ones (counted once) and dtypes; a name alone is none."""
    program = """
      %a = (f32[2,3]{1,0}, /*index=1*/bf16[]) all-reduce(%x, %y), channel_id=1
      ROOT %b = s8[5]{0:T(128)} all-gather(%a), metadata={op_name="all-reduce(x)"}
      %s = (f32[4]{0}, f32[4]{0}) collective-permute-start(%b)
      %d = f32[4]{0} collective-permute-done(%s)
      %all-reduce.1 = pred[7]{0} copy(%all-reduce)
    """
    assert collectives(program) == [
        Collective("all-reduce", 7, 26),
        Collective("all-gather", 5, 5),
        Collective("collective-permute", 4, 16),
    ]
