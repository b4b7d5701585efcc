"""Twins on explicit mesh axes, on which plain `jnp` would have to name the sharding of many results."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jaxnorm._sharding import explicit_mesh, with_shardings

Function = TypeVar("Function", bound=Callable[..., Any])


def split_like(function: Function, gathers: bool = False) -> Callable[[Callable[..., Any]], Function]:
    """A twin of `function` that runs with explicit axes automatic; its results are split as the function's are.

    To a type checker the twin is the function itself. With `gathers` it runs on whole arrays instead: XLA's partitioner
    gets gradients of split convolutions wrong.
    """

    def decorated(twin: Callable[..., Any]) -> Function:
        @functools.wraps(twin)
        def on_any_mesh(*args: Any, **kwargs: Any) -> Any:
            leaves, tree = jax.tree.flatten((args, kwargs))
            at = [i for i, leaf in enumerate(leaves) if isinstance(leaf, jax.Array | np.ndarray)]
            mesh = explicit_mesh([leaves[i] for i in at])
            if mesh is None:
                return twin(*args, **kwargs)

            def of_arrays(called: Callable[..., Any], *arrays: jax.Array) -> Any:
                given = dict(zip(at, arrays, strict=True))
                args, kwargs = jax.tree.unflatten(tree, [given.get(i, leaf) for i, leaf in enumerate(leaves)])
                return called(*args, **kwargs)

            arrays = [leaves[i] for i in at]
            results = jax.eval_shape(functools.partial(of_arrays, function), *arrays)
            specs = jax.tree.map(lambda result: result.sharding.spec, results)
            if not gathers:
                return with_shardings(functools.partial(of_arrays, twin), specs, *arrays)
            whole = NamedSharding(mesh, PartitionSpec())
            result = of_arrays(twin, *(jax.sharding.reshard(array, whole) for array in arrays))
            return jax.tree.map(
                lambda array, spec: jax.sharding.reshard(array, NamedSharding(mesh, spec)), result, specs
            )

        return cast(Function, on_any_mesh)

    return decorated
