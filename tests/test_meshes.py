"""Every operation on explicit mesh axes, the default of `jax.make_mesh`: against one device, and what is sent."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from devices import collectives
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from parallel import SHARED, Problem, gradients, over_operations, problem
from support import assert_close, normal, random_like, thorough, value_and_vjp

import jaxnorm as jn
from jaxnorm import reference

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


TWO_AXES = ["batch and sequence", "batch and features"]
BY_DEFAULT = [*TWO_AXES, "batch, parameters by rows"]  # of the ways above, those that say most


def shardings(tree: Any) -> Any:
    return jax.tree.map(lambda a: jax.typeof(a).sharding, tree)


def with_its_sharding(tree: Any, types: Any) -> Any:
    return jax.tree.map(lambda a, of: jax.device_put(a, NamedSharding(MESH, of.sharding.spec)), tree, types)


def check(function: Any, args: tuple[Any, Any, Any], cotangent: Any, wanted: Any, jit: bool) -> None:
    """Value and gradients are one device's, and each gradient is split as its argument is."""
    with jax.set_mesh(MESH):
        cotangent = with_its_sharding(cotangent, jax.eval_shape(function, *args))
        run = partial(gradients, function)
        got = (jax.jit(run) if jit else run)(*args, cotangent)
    assert_close(got, wanted)
    assert shardings(got[1:]) == shardings(args[:2])


@pytest.mark.parametrize("how", [how if how in BY_DEFAULT else thorough(how) for how in SPLITS])
@over_operations
def test_explicit_axes_under_jit_equal_one_device(index: int, how: str):
    p = problem(index)
    check(p.function, split(p, how), p.cotangent, p.wanted, jit=True)


@pytest.mark.thorough
@pytest.mark.parametrize("how", TWO_AXES)
@over_operations
def test_twins_on_explicit_axes_equal_one_device(index: int, how: str):
    p = problem(index)
    check(partial(p.function, library=reference), split(p, how), p.cotangent, p.wanted, jit=True)


# Of each function, the ways of splitting that plain `jnp` refuses; what it takes, it gets right.
PARAMETERS = {"features", "batch and features", "batch, parameters by rows", "batch, parameters by columns"}
REFUSED_BY_PLAIN_JNP = {
    "group_norm": {"features", "batch and features"},  # a reshape of split features
    "batch_norm": PARAMETERS,  # a selection by the whole count from split statistics
    "conv": PARAMETERS,  # it asks for `out_sharding`
    "conv_transpose": PARAMETERS,
    "conv_general_dilated": {"batch and sequence", *PARAMETERS},
    "max_pool": {"batch and sequence"},  # rows that do not divide
    "avg_pool": {"batch and sequence"},
}


FIRST = [i for i, case in enumerate(SHARED) if case is next(c for c in SHARED if c.name == case.name)]


@pytest.mark.thorough
@pytest.mark.parametrize("index", FIRST, ids=[SHARED[i].name for i in FIRST])
def test_what_plain_jnp_refuses(index: int, monkeypatch: pytest.MonkeyPatch):
    """So that the list above is true. These are the twins without what splits them; a later JAX may take more."""
    monkeypatch.setattr(reference._meshes, "explicit_mesh", lambda arrays: None)
    p, refused = problem(index), set()
    for how in SPLITS:
        try:
            check(partial(p.function, library=reference), split(p, how), p.cotangent, p.wanted, jit=True)
        except Exception as error:  # its type has no public name
            assert type(error).__name__ == "ShardingTypeError"
            refused.add(how)
    listed = REFUSED_BY_PLAIN_JNP.get(SHARED[index].name, set())
    assert refused <= listed
    assert refused == listed or jax.__version_info__ >= (0, 13)


@pytest.mark.parametrize("index", FIRST, ids=[SHARED[i].name for i in FIRST])
def test_explicit_axes_outside_jit_equal_one_device(index: int):
    p = problem(index)
    check(p.function, split(p, "batch and sequence"), p.cotangent, p.wanted, jit=False)


@pytest.mark.parametrize("conv", [jn.conv, partial(jn.conv_transpose, strides=2)], ids=["conv", "transposed"])
def test_the_pullback_of_a_jitted_convolution_outside_jit(conv: Any):
    """It is given the arguments as they are split, not as they are where the axes are automatic."""
    args, specs = [normal(8, 6, 6, 4), normal(3, 3, 4, 4)], [P("batch"), P(None, None, None, "features")]
    cotangent = random_like(jax.eval_shape(conv, *args))
    with jax.set_mesh(MESH):
        on_mesh = [placed(a, spec) for a, spec in zip(args, specs, strict=True)]
        value, pullback = jax.vjp(jax.jit(conv), *on_mesh)
        got = pullback(placed(cotangent, jax.typeof(value).sharding.spec))
    assert_close((value, got), value_and_vjp(conv, args, cotangent))
    assert shardings(list(got)) == shardings(on_mesh)


@pytest.mark.parametrize("index", FIRST, ids=[SHARED[i].name for i in FIRST])
def test_a_batch_on_explicit_axes_sends_sums_alone(index: int):
    """No array of the data's size crosses between devices."""
    p = problem(index)
    with jax.set_mesh(MESH):
        args = split(p, "batch")
        cotangent = with_its_sharding(p.cotangent, jax.eval_shape(p.function, *args))
        program = jax.jit(partial(gradients, p.function)).lower(*args, cotangent).compile().as_text()
    assert {c.kind for c in collectives(program)} <= {"all-reduce"}


@pytest.mark.parametrize("spec", [P(None, "batch"), P("batch", "features"), P("batch", None, "features")], ids=str)
@pytest.mark.parametrize("groups", [1, 2, 4], ids="{} groups".format)
def test_convolutions_gather_rows_on_explicit_axes(groups: int, spec: P):
    """The result's type would have to say whether its rows divide."""
    x, kernel = normal(8, 8, 6, 4), normal(3, 3, 4 // groups, 8)
    conv = partial(jn.conv, feature_group_count=groups)
    cotangent = random_like(jax.eval_shape(conv, x, kernel))
    wanted = jax.jit(partial(value_and_vjp, conv))([x, kernel], cotangent)
    args = [placed(x, spec), placed(kernel, P())]
    with jax.set_mesh(MESH):
        got = jax.jit(partial(value_and_vjp, conv))(args, placed(cotangent, P(spec[0])))
    assert_close(got, wanted)
    assert jax.typeof(got[0]).sharding.spec == P(spec[0], None, None, None)
    assert shardings(list(got[1])) == shardings(args)


@pytest.mark.parametrize("jit", [True, False])
@pytest.mark.parametrize("types", [(AxisType.Explicit, AxisType.Auto), (AxisType.Auto, AxisType.Explicit)], ids=str)
def test_explicit_beside_automatic_axes(types: tuple[AxisType, AxisType], jit: bool):
    mesh = jax.make_mesh((4, 2), ("batch", "features"), axis_types=types)
    args = [placed(normal(8, 4, 6), P("batch", "features"), mesh), placed(normal(6), P("features"), mesh)]
    run = partial(value_and_vjp, jn.rms_norm)
    with jax.set_mesh(mesh):
        got = (jax.jit(run) if jit else run)(args, args[0])
    assert_close(got, run([normal(8, 4, 6), normal(6)], normal(8, 4, 6)))
    assert shardings(list(got[1])) == shardings(args)


def test_explicit_beside_manual_axes():
    """The batch by shard_map, with synced statistics, and the features by their type."""
    norm = partial(jn.batch_norm, training=True)
    whole = [normal(8, 4, 6), normal(6), normal(6, seed=1)], normal(8, 4, 6, seed=2)

    def run(norm, args, g):
        return value_and_vjp(lambda *args: norm(*args)[0], args, g)

    batch, specs = P("batch"), ([P("batch"), P(), P()])
    device = partial(run, partial(norm, axis_name="batch"))
    x = P("batch", None, "features")
    args = [placed(a, spec) for a, spec in zip(whole[0], [x, P("features"), P()], strict=True)]
    with jax.set_mesh(MESH):
        shared = jax.shard_map(device, in_specs=(specs, batch), out_specs=(batch, tuple(specs)), axis_names={"batch"})
        got = jax.jit(shared)(args, placed(whole[1], x))
    assert_close(got, run(norm, *whole))
    assert shardings(list(got[1])) == shardings(args)


def looped(x, scale):
    """A loop that carries the output, with remat, below vmap."""
    layer = jax.checkpoint(lambda x: x + jax.vmap(jn.rms_norm, (0, None))(x, scale))
    return jnp.sum(jnp.sin(jax.lax.scan(lambda x, _: (layer(x), None), x, None, length=2)[0]))


def second(x, scale):
    """Second derivatives. (Of a scan, JAX raises: its zeros have the other mesh.)"""

    def loss(x, scale):
        return jnp.sum(jnp.sin(jax.checkpoint(jax.vmap(jn.rms_norm, (0, None)))(x, scale)))

    return sum(map(jnp.sum, map(jnp.sin, jax.grad(loss, (0, 1))(x, scale))))


@pytest.mark.parametrize("function", [looped, second])
def test_transformations_keep_explicit_axes(function: Any):
    args = normal(8, 4, 6), normal(6)
    on_mesh = placed(args[0], P("batch", "features")), placed(args[1], P("features"))
    gradient = jax.jit(jax.grad(function, (0, 1)))
    with jax.set_mesh(MESH):
        got = gradient(*on_mesh)
    assert_close(got, gradient(*args))
    assert shardings(got) == shardings(on_mesh)


@pytest.mark.parametrize("stats", [P(), P("features")], ids=str)
def test_running_statistics_keep_their_sharding(stats: P):
    """So that a loop can carry them."""
    old = jax.tree.map(lambda s: placed(s, stats), jn.init_batch_stats(6))
    with jax.set_mesh(MESH):
        x = placed(normal(8, 6), P("batch", "features"))
        _, new = jax.jit(partial(jn.batch_norm, training=True))(x, stats=old)
        _, own = jax.jit(partial(jn.batch_norm, training=True))(x)
    assert shardings(new) == shardings(old)
    assert jax.typeof(own.mean).sharding.spec == P("features")


@pytest.mark.parametrize(
    "mesh", [None, jax.make_mesh((8,), ("batch",), axis_types=(AxisType.Auto,))], ids=["one", "auto"]
)
def test_nothing_is_added_without_explicit_axes(mesh: jax.sharding.Mesh | None):
    x = normal(8, 6) if mesh is None else placed(normal(8, 6), P("batch"), mesh)
    assert "reshard" not in str(jax.make_jaxpr(jn.rms_norm)(x))
    with jax.set_mesh(MESH):
        assert "reshard" in str(jax.make_jaxpr(jn.rms_norm)(placed(normal(8, 6), P("batch"))))
