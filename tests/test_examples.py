"""Layers under vmap over examples that share their parameters: as plain autodiff has it, in no more arithmetic."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
from parallel import placed
from support import assert_close, normal

import jaxnorm as jn
from jaxnorm import reference

pytestmark = pytest.mark.usefixtures("quick_compilation")

NCHW = ("NCHW", "OIHW", "HNWC")
# The name, its options, the shapes of x, the kernel and the bias.
LAYERS = {
    "affine": ("affine", {"num_feature_axes": 2}, (2, 3), (6, 4), (4,)),
    "affine_relu": ("affine_relu", {}, (2, 3), (3, 4), None),
    "conv": ("conv", {"feature_group_count": 2}, (1, 5, 4), (3, 2, 4), (4,)),
    "depthwise": ("conv", {"feature_group_count": 4, "dimension_numbers": NCHW}, (1, 4, 5, 4), (4, 1, 3, 3), (4,)),
    "conv_transpose": ("conv_transpose", {"strides": 2}, (2, 5, 3), (3, 3, 2), None),
}
over_layers = pytest.mark.parametrize("name", LAYERS)


def arguments(name: str, *examples: int, parameters: tuple[int, ...] = ()) -> list[Any]:
    """x with these axes in front, the kernel and the bias with those."""
    *_, x, kernel, bias = LAYERS[name]
    shapes = [(*examples, *x), (*parameters, *kernel), None if bias is None else (*parameters, *bias)]
    return [None if shape is None else normal(*shape, seed=i) for i, shape in enumerate(shapes)]


def loss(f: Any, *args: Any) -> jax.Array:
    return jnp.sum(jnp.sin(f(*args)))


def gradients(f: Any, *args: Any) -> Any:
    return jax.grad(partial(loss, f), tuple(i for i, a in enumerate(args) if a is not None))(*args)


def second(f: Any, *args: Any) -> Any:
    of = [a for a in args if a is not None]
    rest = [None] * (len(args) - len(of))
    return jax.grad(lambda *a: sum(map(jnp.sum, map(jnp.sin, gradients(f, *a, *rest)))), tuple(range(len(of))))(*of)


def each(f: Any, x: Any = 0, parameters: Any = None) -> Any:
    return jax.vmap(f, (x, parameters, parameters))


EXAMPLES = {
    "of a batch": (each, (4,), ()),
    "of nested batches": (lambda f: each(each(f), 1), (4, 3), ()),
    "compiled": (lambda f: each(jax.jit(f)), (4,), ()),
    "with remat": (lambda f: each(jax.checkpoint(f)), (4,), ()),
    "of an ensemble": (lambda f: each(each(f), None, 0), (4,), (2,)),
    "of ensembles of its members' examples": (lambda f: each(each(f), 0, 0), (2, 4), (2,)),
    "each with an ensemble": (lambda f: each(each(f, None, 0)), (4,), (2,)),
    "each with an ensemble of pairs": (lambda f: each(each(f, 0, 0), 1), (2, 4), (2,)),
}


@pytest.mark.parametrize("how", EXAMPLES)
@over_layers
def test_gradients_of_examples(name: str, how: str):
    mapped, examples, parameters = EXAMPLES[how]
    function, options = LAYERS[name][:2]
    args = arguments(name, *examples, parameters=parameters)
    ours, theirs = (mapped(partial(getattr(m, function), **options)) for m in (jn, reference))
    got, wanted = jax.jit(lambda *a: [gradients(f, *a) for f in (ours, theirs)])(*args)
    assert_close(got, wanted)


@over_layers
def test_other_transformations(name: str):
    """Of one example, of each example's gradient, of the second order; inside of jit and outside."""
    function, options = LAYERS[name][:2]
    one, many = arguments(name), arguments(name, 3)

    def results(module: Any) -> Any:
        f = partial(getattr(module, function), **options)
        scan = jax.lax.scan(lambda total, x: (total + loss(f, x, *many[1:]), None), 0.0, many[0])[0]
        return [gradients(f, *one), each(partial(gradients, f))(*many), second(each(f), *many), scan]

    wanted = jax.jit(partial(results, reference))()
    assert_close(jax.jit(partial(results, jn))(), wanted)
    if name in ("affine", "conv"):
        assert_close(results(jn), wanted)


@over_layers
def test_forward_mode_has_jaxs_own_error(name: str):
    function, options = LAYERS[name][:2]
    args = [a for a in arguments(name, 3) if a is not None]
    f = jax.vmap(partial(getattr(jn, function), **options), (0, *[None] * (len(args) - 1)))
    for run in (f, jax.jit(f)):
        with pytest.raises(TypeError, match="forward-mode"):
            jax.jvp(run, args, args)


@pytest.mark.parametrize("check_vma", [True, False])
def test_examples_on_devices(check_vma: bool):
    mesh = jax.make_mesh((4,), ("devices",), axis_types=(AxisType.Auto,))
    args = arguments("conv", 8)

    def device(*args: Any) -> Any:
        dx, *rest = gradients(each(partial(jn.conv, feature_group_count=2)), *args)
        return dx, *(rest if check_vma else jax.lax.psum(rest, "devices"))

    specs = P("devices"), P(), P()
    run = jax.shard_map(device, mesh=mesh, in_specs=specs, out_specs=specs, check_vma=check_vma)
    wanted = gradients(each(partial(reference.conv, feature_group_count=2)), *args)
    assert_close(jax.jit(run)(*args), wanted)


def test_examples_on_explicit_axes():
    mesh = jax.make_mesh((4, 2), ("batch", "features"))
    args = arguments("affine", 8)
    wanted = gradients(each(partial(reference.affine, num_feature_axes=2)), *args)
    with jax.set_mesh(mesh):
        on_mesh = [placed(mesh, args[0], P("batch")), *(placed(mesh, a, P()) for a in args[1:])]
        got = jax.jit(partial(gradients, each(partial(jn.affine, num_feature_axes=2))))(*on_mesh)
    assert_close(got, wanted)


COSTS = {
    "affine": ("affine", {}, (6, 32), (32, 48), (48,)),
    "affine_relu": ("affine_relu", {}, (32,), (32, 48), (48,)),
    "conv": ("conv", {}, (1, 8, 8, 8), (3, 3, 8, 16), (16,)),
    "depthwise": ("conv", {"feature_group_count": 16}, (1, 12, 12, 16), (3, 3, 1, 16), (16,)),
}


@pytest.mark.parametrize("name", COSTS)
def test_examples_cost_no_more_than_by_autodiff(name: str):
    """Arithmetic and temporary memory of the parameters' gradients."""
    function, options, x, *parameters = COSTS[name]
    args = [normal(64, *x, dtype=jnp.float32), *(normal(*shape, dtype=jnp.float32) for shape in parameters)]

    def cost(module: Any) -> tuple[float, int]:
        f = each(partial(getattr(module, function), **options))
        program = jax.jit(jax.grad(partial(loss, f), (1, 2))).lower(*args).compile()
        analysis = program.cost_analysis()
        return analysis["flops"], program.memory_analysis().temp_size_in_bytes

    jax.config.update("jax_disable_most_optimizations", False)
    (flops, memory), (their_flops, their_memory) = cost(jn), cost(reference)
    assert flops <= 1.05 * their_flops and memory <= 1.05 * their_memory
