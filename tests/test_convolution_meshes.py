"""Convolutions whose arrays are split over eight devices: against one device, and what is sent."""

import math
from collections import Counter
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from devices import collectives
from jax import lax
from jax.sharding import AbstractMesh, AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from parallel import GRID, placed
from support import assert_close, normal, value_and_vjp

import jaxnorm as jn
from jaxnorm import reference
from jaxnorm._lower.platforms import forced

pytestmark = pytest.mark.usefixtures("quick_compilation")

CUBE = jax.make_mesh((2, 2, 2), ("x", "y", "z"), axis_types=(AxisType.Auto,) * 3)
CHANNELS_FIRST = ("NCHW", "OIHW", "NCHW")

# The function, and the shapes of x and the kernel.
GEOMETRIES = {
    "dense": (jn.conv, (8, 8, 4, 8), (3, 3, 8, 8)),
    "strided": (partial(jn.conv, strides=2), (8, 16, 8, 4), (3, 3, 4, 8)),
    "groups": (partial(jn.conv, feature_group_count=4), (8, 8, 4, 8), (3, 2, 2, 8)),
    "depthwise": (partial(jn.conv, feature_group_count=8), (8, 8, 4, 8), (5, 3, 1, 8)),
    "multiplied": (partial(jn.conv, feature_group_count=4, strides=2), (8, 16, 8, 4), (3, 3, 1, 8)),
    "patches": (partial(jn.conv, strides=2, padding="VALID"), (8, 16, 8, 4), (2, 2, 4, 8)),
    "uneven": (partial(jn.conv, padding=((3, -1), (0, 2))), (8, 8, 4, 4), (4, 2, 4, 8)),
    "transposed": (partial(jn.conv_transpose, strides=2), (8, 8, 4, 4), (3, 3, 4, 8)),
    "1-D": (partial(jn.conv, padding=[(4, 0)], kernel_dilation=2), (8, 16, 4), (3, 4, 8)),
    "channels first": (partial(jn.conv, dimension_numbers=CHANNELS_FIRST), (8, 8, 8, 4), (8, 8, 3, 3)),
}

# How the images, rows, columns and channels of x are split, the channels in and out of the kernel, those of g as of x.
SPLITS = {
    "batch": (GRID, ("batch", None, None, None), (None, None), "batch"),
    "batch over two": (GRID, (("batch", "features"), None, None, None), (None, None), "batch"),
    "minor batch": (GRID, ("features", None, None, None), (None, None), "batch"),
    "rows": (GRID, (None, "features", None, None), (None, None), "image"),
    "rows, g whole": (GRID, (None, "batch", None, None), (None, None), None),
    "batch and rows": (GRID, ("batch", "features", None, None), (None, None), "image"),
    "two image axes": (CUBE, (None, "x", "z", None), (None, None), "image"),
    "rows over two": (CUBE, (None, ("x", "y"), None, None), (None, None), "image"),
    "channels in": (GRID, ("batch", None, None, "features"), ("features", None), "batch"),
    "channels out": (GRID, ("batch", None, None, None), (None, "features"), "all"),
    "everything": (CUBE, ("x", "y", None, "z"), (None, "z"), "all"),
}


@cache
def problem(name: str, formulations: str) -> Any:
    """The function, its arguments, a cotangent, and what one device makes of them."""
    function, *shapes = GEOMETRIES[name]
    outputs = shapes[1][0 if name == "channels first" else -1]
    args = [normal(*shape) for shape in (*shapes, (outputs,))]
    g = normal(*jax.eval_shape(function, *args).shape, seed=1)
    with forced(formulations):
        return function, args, g, jax.jit(partial(value_and_vjp, function))(args, g)


def split(name: str, how: str, args: Any, g: Any) -> Any:
    mesh, of_x, of_kernel, like_x = SPLITS[how]
    x, kernel, bias = args

    def images(a: Any, batch: Any, rows: Any, columns: Any, channels: Any) -> jax.Array:
        image = [rows, columns][: a.ndim - 2]
        return where_even(mesh, a, [batch, channels, *image] if name == "channels first" else [batch, *image, channels])

    channels = of_kernel if name != "channels first" else of_kernel[::-1]
    window = [None] * (kernel.ndim - 2)
    of_kernel = [*channels, *window] if name == "channels first" else [*window, *channels]
    cut = {None: 0, "batch": 1, "image": 3, "all": 4}[like_x]
    return [images(x, *of_x), where_even(mesh, kernel, of_kernel), placed(mesh, bias, P())], images(
        g, *(of_x[:cut] + (None,) * (4 - cut))
    )


def where_even(mesh: jax.sharding.Mesh, a: jax.Array, entries: list[Any]) -> jax.Array:
    """The array, split where that is even: not the channel of a depthwise kernel, or the rows of an odd result."""

    def count(entry: Any) -> int:
        return math.prod(mesh.shape[axis] for axis in ((entry,) if isinstance(entry, str) else entry or ()))

    even = (None if size % count(entry) else entry for size, entry in zip(a.shape, entries, strict=True))
    return placed(mesh, a, P(*even))


# Of the pairs every second one, and of these each half with one platform's formulations: each formulation, geometry
# and split is met several times.
PAIRS = [
    pytest.param(name, how, ("cpu", "cuda")[(i + j) // 2 % 2], marks=pytest.mark.thorough if (i + j) % 8 > 3 else ())
    for i, name in enumerate(GEOMETRIES)
    for j, how in enumerate(SPLITS)
    if (i + j) % 2 == 0
]


@pytest.mark.parametrize("name, how, formulations", PAIRS)
def test_every_geometry_and_split_equals_one_device(name: str, how: str, formulations: str):
    """A split batch sends sums of the kernel's and the bias's size; split rows, besides, rows to their neighbours."""
    function, args, g, wanted = problem(name, formulations)
    args, g = split(name, how, args, g)
    with forced(formulations):
        program = jax.jit(partial(value_and_vjp, function)).lower(args, g).compile()
    assert_close(program(args, g), wanted)
    sent = collectives(program.as_text())
    kinds = {c.kind for c in sent}
    if "batch" in how and "rows" not in how:
        assert kinds == {"all-reduce"} and sum(c.elements for c in sent) == args[1].size + args[2].size
    elif how in ("rows", "batch and rows") and name != "uneven":
        assert kinds <= {"all-reduce", "collective-permute"}


# Of each geometry, the splits for which plain JAX's value or gradients are wrong; it raises for none.
ROWS = {"rows", "two image axes", "rows over two"}
WRONG_IN_PLAIN_JAX: dict[str, set[str]] = {
    "dense": ROWS,
    "strided": ROWS,
    "groups": {"batch", "minor batch", "channels out", *ROWS},
    "depthwise": {"batch", "minor batch", "channels out", *ROWS},
    "multiplied": {"batch", "minor batch", "channels out", *ROWS},
    "patches": ROWS,
    "uneven": set(),  # padded first
    "transposed": set(),  # padded first
    "1-D": ROWS,
    "channels first": ROWS,
}


def is_wrong(plain: Any, name: str, how: str) -> bool:
    _, args, g, wanted = problem(name, "cpu")
    try:
        assert_close(jax.jit(partial(value_and_vjp, plain))(*split(name, how, args, g)), wanted)
    except AssertionError:
        return True
    return False


@pytest.mark.thorough
@pytest.mark.parametrize("name", GEOMETRIES)
def test_what_plain_jax_gets_wrong(name: str):
    """So that the list above is true. A later JAX may be right more often, and must not be wrong more often."""
    function = GEOMETRIES[name][0]
    name_of, options = (function.func, function.keywords) if isinstance(function, partial) else (function, {})
    plain = partial(getattr(reference, name_of.__name__), **options)
    wrong = {how for how in SPLITS if is_wrong(plain, name, how)}
    assert wrong <= WRONG_IN_PLAIN_JAX[name]
    assert wrong == WRONG_IN_PLAIN_JAX[name] or jax.__version_info__ >= (0, 13)


def conv(x: jax.Array, kernel: jax.Array, module: Any = jn) -> jax.Array:
    return module.conv(x, kernel, feature_group_count=2)


def first(conv: Any, x: jax.Array, kernel: jax.Array) -> Any:
    return jax.grad(lambda *args: jnp.sum(jnp.sin(conv(*args))), (0, 1))(x, kernel)


def second(conv: Any, x: jax.Array, kernel: jax.Array) -> Any:
    return jax.grad(lambda *args: sum(jnp.sum(jnp.sin(d)) for d in first(conv, *args)), (0, 1))(x, kernel)


def looped(conv: Any, x: jax.Array, kernel: jax.Array) -> Any:
    """Through a scan with remat."""

    def layers(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return lax.scan(lambda x, _: (jnp.tanh(jax.checkpoint(conv)(x, kernel)), None), x, None, length=2)[0]

    return first(layers, x, kernel)


TRANSFORMED = {
    "first": (first, P("batch", "features"), P()),
    "second": (second, P("batch", "features"), P()),
    "looped": (looped, P("batch", "features"), P()),
    "each x": (lambda c, *a: jax.vmap(partial(first, c), (0, None))(*a), P(None, "batch", "features"), P()),
    "each kernel": (lambda c, *a: jax.vmap(partial(first, c), (None, 0))(*a), P("batch", "features"), P("features")),
    "each pair": (lambda c, *a: jax.vmap(partial(first, c))(*a), P("features", None, "batch"), P("features")),
}
X, KERNEL = (8, 8, 4, 4), (3, 3, 2, 4)


@pytest.mark.parametrize("name", TRANSFORMED)
def test_transformations_of_split_arrays(name: str):
    function, *specs = TRANSFORMED[name]
    mapped = {"each x": (2, 0), "each kernel": (0, 2), "each pair": (2, 2)}.get(name, (0, 0))
    args = [normal(*([size] if size else []), *shape) for size, shape in zip(mapped, (X, KERNEL), strict=True)]
    wanted = jax.jit(partial(function, partial(conv, module=reference)))(*args)
    got = jax.jit(partial(function, conv))(*(placed(GRID, a, s) for a, s in zip(args, specs, strict=True)))
    assert_close(got, wanted)


@pytest.mark.parametrize("manual", ["batch", "features"])
def test_automatic_axes_beside_manual_ones(manual: str):
    args = normal(*X), normal(*KERNEL)
    (other,) = {"batch", "features"} - {manual}
    device = jax.shard_map(
        partial(first, conv), mesh=GRID, in_specs=(P(manual), P()), out_specs=(P(manual), P()), axis_names={manual}
    )
    got = jax.jit(device)(placed(GRID, args[0], P(manual, other)), placed(GRID, args[1], P()))
    assert_close(got, first(partial(conv, module=reference), *args))


@pytest.mark.parametrize("abstract", [False, True])
def test_exported_over_devices(abstract: bool):
    """Without functions of this process, and right however XLA splits it."""
    args = [placed(GRID, normal(*X), P("batch", "features")), placed(GRID, normal(*KERNEL), P())]
    mesh = AbstractMesh((4, 2), GRID.axis_names, axis_types=GRID.axis_types) if abstract else GRID
    types = [jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=NamedSharding(mesh, a.sharding.spec)) for a in args]
    exported = jax.export.export(jax.jit(partial(first, conv)))(*types)
    again = jax.export.deserialize(exported.serialize())
    assert_close(jax.jit(again.call)(*args), first(partial(conv, module=reference), *args))


@pytest.mark.parametrize("padding", [(2, 0), (0, 2), (1, 1)])
def test_programs_of_equal_shapes_are_told_apart(padding: tuple[int, int]):
    """By JAX's cache of compiled programs, which tests use: how a product is split is no part of its key."""
    x, kernel = normal(8, 16, 4), normal(3, 4, 4)
    args = placed(GRID, x, P("batch", "features")), placed(GRID, kernel, P())
    got = jax.jit(partial(jn.conv, padding=[padding]))(*args)
    assert_close(got, reference.conv(x, kernel, padding=[padding]))


def test_what_the_rest_of_a_program_has_split_is_sent_once():
    """Two layers with split rows: y of the first stays split, and nothing is gathered."""

    def layers(x, kernel):
        return jn.conv(jnp.tanh(jn.conv(x, kernel)), kernel)

    args = placed(GRID, normal(8, 8, 4, 4), P(None, "batch")), placed(GRID, normal(3, 3, 4, 4), P())
    kinds = Counter(c.kind for c in collectives(jax.jit(layers).lower(*args).compile().as_text()))
    assert kinds == {"collective-permute": 4}


def test_arrays_without_a_mesh_are_gathered():
    x, kernel = normal(*X), normal(*KERNEL)
    split = placed(GRID, x, P("batch", "features"))
    with jax.set_mesh(GRID):
        got = jax.jit(partial(first, conv))(split, np.asarray(kernel))
    assert_close(got, first(partial(conv, module=reference), x, kernel))
