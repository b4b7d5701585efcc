"""Every operation on a batch that eight devices share, in every manner of sharing, and what one device makes of it."""

from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from support import CASES, CHOSEN, is_float, random_like, value_and_vjp

import jaxnorm as jn

LINE = jax.make_mesh((8,), ("devices",), axis_types=(AxisType.Auto,))
GRID = jax.make_mesh((4, 2), ("batch", "features"), axis_types=(AxisType.Auto,) * 2)

# Every function, and the mask of the statistics of every function that has synced ones.
SHARED = [*CHOSEN, *(c for c in CASES if c.label == "masked" and c.name in ("layer_norm", "rms_norm", "batch_norm"))]


def _operation(index: int) -> Any:
    """The first case of each function, and the others as thorough tests."""
    case = SHARED[index]
    is_first = case is next(c for c in SHARED if c.name == case.name)
    return pytest.param(index, id=str(case).replace(" ", "_"), marks=() if is_first else pytest.mark.thorough)


over_operations = pytest.mark.parametrize("index", [_operation(index) for index in range(len(SHARED))])

# The arguments that do not grow with the batch: every device has them whole, or its slice of their features.
PARAMETERS = ("scale", "bias", "kernel", "rhs", "stats", "class_weights", "teacher_kernel", "teacher_bias")


class Problem(NamedTuple):
    """A case with a batch that eight devices can share."""

    function: Callable[..., Any]  # of data, parameters, others
    data: list[Any]  # floating-point arguments that are split with the batch
    parameters: list[Any]  # floating-point arguments that are not
    others: list[Any]  # integers and masks, split with the batch
    cotangent: Any
    wanted: Any  # what one device makes of it: value, gradients of the data, gradients of the parameters
    synced: bool  # the statistics are the whole batch's, and whole on every device


def gradients(function: Callable[..., Any], data: Any, parameters: Any, others: Any, cotangent: Any) -> Any:
    """The value, the gradients of the data and those of the parameters."""
    value, cotangents = value_and_vjp(lambda d, p: function(d, p, others), [data, parameters], cotangent)
    return value, *cotangents


@cache
def problem(index: int) -> Problem:
    """The case of this index in SHARED, enlarged."""
    case = SHARED[index]
    kinds = {name: (name in PARAMETERS, is_float(value)) for name, value in case.args.items()}
    groups = [[n for n in kinds if kinds[n] == kind] for kind in ((False, True), (True, True), (False, False))]
    names = sum(groups, [])
    assert sorted(names) == sorted(kinds)
    whole = [[enlarged(case.args[n], n not in PARAMETERS, names.index(n)) for n in group] for group in groups]

    def function(data, parameters, others, library=jn, **options):
        arrays = dict(zip(names, [*data, *parameters, *others], strict=True))
        return getattr(library, case.name)(**arrays, **case.options, **options)

    cotangent = random_like(jax.eval_shape(function, *whole), seed=9)
    wanted = jax.jit(partial(gradients, function))(*whole, cotangent)
    return Problem(function, *whole, cotangent, wanted, case.name == "batch_norm")


def enlarged(value: Any, batched: bool, seed: int) -> Any:
    """Eight times the batch and twice every other axis, so that devices can share any of them."""
    rng = np.random.default_rng(seed)

    def enlarge(a: np.ndarray) -> np.ndarray:
        tiled = np.tile(a, [8 if batched and axis == 0 else 2 for axis in range(a.ndim)])
        if a.dtype == bool:  # other counts on each device, but no label's class left out
            return tiled | (rng.random(tiled.shape) < 0.2)
        return tiled * rng.uniform(0.5, 1.5, tiled.shape) if is_float(a) else tiled

    return jax.tree.map(enlarge, value)


def per_device(p: Problem) -> tuple[Callable[..., Any], Any]:
    """The function on one device's part of the batch, and which of its outputs are parts too."""
    return (partial(p.function, axis_name="devices"), (True, False)) if p.synced else (p.function, True)


def by_shard_map(p: Problem, check_vma: bool, taken: str) -> Any:
    """The batch split over eight devices, the parameters on each; gradients taken inside or outside of shard_map."""
    function, parts = per_device(p)
    outputs = jax.tree.map(lambda part: P("devices") if part else P(), parts)
    specs = (P("devices"), P(), P("devices"))
    sharded = partial(jax.shard_map, mesh=LINE, check_vma=check_vma)

    def device(*args):
        value, ddata, dparameters = gradients(function, *args)
        # The trap: with check_vma=False a replicated parameter's gradient is this device's part of it.
        return value, ddata, dparameters if check_vma else jax.lax.psum(dparameters, "devices")

    if taken == "inside":
        run = sharded(device, in_specs=(*specs, outputs), out_specs=(outputs, *specs[:2]))
    else:
        run = partial(gradients, sharded(function, in_specs=specs, out_specs=outputs))
    args = p.data, p.parameters, p.others, p.cotangent
    return jax.jit(run)(*(placed(LINE, a, s) for a, s in zip(args, (*specs, outputs), strict=True)))


def by_vmap(p: Problem, taken: str) -> Any:
    """The same with a named axis of vmap in place of the devices."""
    function, parts = per_device(p)
    outputs, axes = jax.tree.map(lambda part: 0 if part else None, parts), (0, None, 0)
    fold = partial(jax.tree.map, lambda a: a.reshape(8, -1, *a.shape[1:]))
    unfold = partial(jax.tree.map, lambda a: a.reshape(-1, *a.shape[2:]))

    def to_parts(change, tree):
        return (change(tree[0]), tree[1]) if p.synced else change(tree)

    def run(data, parameters, others, cotangent):
        args = fold(data), parameters, fold(others), to_parts(fold, cotangent)
        if taken == "inside":
            device = jax.vmap(partial(gradients, function), (*axes, outputs), (outputs, 0, 0), axis_name="devices")
            value, ddata, dparameters = device(*args)
            dparameters = jax.tree.map(lambda d: d.sum(0), dparameters)
        else:
            value, ddata, dparameters = gradients(jax.vmap(function, axes, outputs, axis_name="devices"), *args)
        return to_parts(unfold, value), unfold(ddata), dparameters

    return jax.jit(run)(p.data, p.parameters, p.others, p.cotangent)


def by_jit(p: Problem, split: str) -> Any:
    """jit alone, over inputs that say where they are: the compiler divides the rules, which know nothing of it."""
    first = {
        "batch": (("batch", "features"),),
        "batch and space": ("batch", "features"),
        "features": (),
        "batch and features": ("batch",),
    }[split]
    last = "features" if split.endswith("features") else None

    def spec(a, first, last):
        return P(*[*first, *[None] * a.ndim][: a.ndim - 1], last)

    def place(tree, first, last):
        return jax.tree.map(lambda a: placed(GRID, a, spec(a, first, last)), tree)

    args = place(p.data, first, last), place(p.parameters, (), last), place(p.others, first, None)
    return jax.jit(partial(gradients, p.function))(*args, placed(GRID, p.cotangent, P()))


def placed(mesh: jax.sharding.Mesh, tree: Any, specs: Any) -> Any:
    return jax.device_put(tree, jax.tree.map(lambda s: NamedSharding(mesh, s), specs))
