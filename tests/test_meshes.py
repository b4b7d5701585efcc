"""Every operation on a mesh with explicit axes, the default of `jax.make_mesh`: against one device, and what is sent."""

from functools import partial
from typing import Any

import jax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from parallel import SHARED, Problem, gradients, problem
from support import assert_close

pytestmark = pytest.mark.usefixtures("quick_compilation")

MESH = jax.make_mesh((4, 2), ("batch", "features"))

# How the axes of the data are split, from the first on; how the first and the last axis of the parameters are.
SPLITS = {
    "batch": ([("batch", "features")], None, None),
    "batch and sequence": (["batch", "features"], None, None),
    "features": ([None, "last"], None, "features"),
    "batch and features": (["batch", "last"], None, "features"),
    "batch, parameters by rows": (["batch"], "features", None),
    "batch, parameters by columns": (["batch"], None, "features"),
}

over_operations = pytest.mark.parametrize("index", range(len(SHARED)), ids=[str(c).replace(" ", "_") for c in SHARED])


def placed(array: Any, spec: P, mesh: jax.sharding.Mesh = MESH) -> jax.Array:
    return jax.device_put(array, NamedSharding(mesh, spec))


def spec_of_data(a: Any, first: list[Any], ndim: int) -> P:
    """The batch and the sequence over the first axes, or the features over the last one of the longest array."""
    entries = [None] * a.ndim
    for axis, name in enumerate(first):
        if name == "last":
            entries[-1] = "features" if a.ndim == ndim else None
        elif axis < a.ndim - (a.ndim == ndim):
            entries[axis] = name
    return P(*entries)


def spec_of_parameter(a: Any, first: Any, last: Any) -> P:
    return P(*(last if axis == a.ndim - 1 and last else first if axis == 0 else None for axis in range(a.ndim)))


def split(p: Problem, how: str) -> tuple[Any, Any, Any]:
    data, *parameters = SPLITS[how]
    ndim = max(a.ndim for a in p.data)
    of_data = partial(jax.tree.map, lambda a: placed(a, spec_of_data(a, data, ndim)))
    of_parameters = partial(jax.tree.map, lambda a: placed(a, spec_of_parameter(a, *parameters)))
    return of_data(p.data), of_parameters(p.parameters), of_data(p.others)


def shardings(tree: Any) -> Any:
    return jax.tree.map(lambda a: jax.typeof(a).sharding, tree)


def with_its_sharding(tree: Any, types: Any) -> Any:
    return jax.tree.map(lambda a, of: jax.device_put(a, NamedSharding(MESH, of.sharding.spec)), tree, types)


def check(function: Any, args: tuple[Any, Any, Any], cotangent: Any, wanted: Any, jit: bool) -> Any:
    """Value and gradients are one device's, each gradient split as its argument is; the compiled program if any."""
    with jax.set_mesh(MESH):
        cotangent = with_its_sharding(cotangent, jax.eval_shape(function, *args))
        run = partial(gradients, function)
        got = (jax.jit(run) if jit else run)(*args, cotangent)
    assert_close(got, wanted)
    assert shardings(got[1:]) == shardings(args[:2])


@pytest.mark.parametrize("how", SPLITS)
@over_operations
def test_explicit_axes_under_jit_equal_one_device(index: int, how: str):
    p = problem(index)
    check(p.function, split(p, how), p.cotangent, p.wanted, jit=True)


@pytest.mark.parametrize("how", ["batch and sequence"])
@over_operations
def test_explicit_axes_outside_jit_equal_one_device(index: int, how: str):
    p = problem(index)
    check(p.function, split(p, how), p.cotangent, p.wanted, jit=False)
