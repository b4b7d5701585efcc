"""A function and its arguments as flat lists of named leaves, some of which are differentiated."""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Leaves = list[Any]
Flat = Callable[[Leaves], tuple[Leaves, Leaves]]  # leaves -> the floating-point outputs, the other outputs


def is_float(leaf: Any) -> bool:
    """Whether a leaf is a floating-point array (bfloat16 too)."""
    return jnp.issubdtype(leaf.dtype, np.floating)


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a call's arguments lie in a flat list of leaves: hashable, so that programs are compiled once for each."""

    names: tuple[str, ...]  # of all leaves
    moving: tuple[int, ...]  # which leaves are differentiated
    tree: Any

    @property
    def moving_names(self) -> list[str]:
        """Names of the leaves that move."""
        return self.pick(self.names)

    def flat(self, fun: Callable[..., Any]) -> Flat:
        """`fun` as a function of all leaves."""

        def call(leaves: Leaves) -> tuple[Leaves, Leaves]:
            values = [jnp.asarray(v) for v in jax.tree.leaves(fun(*jax.tree.unflatten(self.tree, leaves)))]
            return [v for v in values if is_float(v)], [v for v in values if not is_float(v)]

        return call

    def put(self, leaves: Sequence[Any], moved: Leaves) -> Leaves:
        """The leaves with those that move replaced."""
        replaced = dict(zip(self.moving, moved, strict=True))
        return [replaced.get(i, leaf) for i, leaf in enumerate(leaves)]

    def pick(self, leaves: Sequence[Any]) -> Leaves:
        """The leaves that move."""
        return [leaves[i] for i in self.moving]


def flatten(
    fun: Callable[..., Any], args: tuple[Any, ...], argnums: Sequence[int] | int | None
) -> tuple[Layout, Leaves]:
    """The layout of a call, differentiated by the floats in the arguments at `argnums`, and its leaves in float64."""
    chosen = range(len(args)) if argnums is None else (argnums,) if isinstance(argnums, int) else tuple(argnums)
    if wrong := [n for n in chosen if not -len(args) <= n < len(args)]:
        raise ValueError(f"argnums must lie in [0, {len(args)}), the number of arguments, got {wrong[0]}")
    differentiated = {n % len(args) for n in chosen}
    parameters = _parameters(fun, len(args))
    paths, tree = jax.tree_util.tree_flatten_with_path(args)
    names = tuple(parameters[path[0].idx] + jax.tree_util.keystr(path[1:]) for path, _ in paths)
    leaves = [_leaf(name, leaf) for name, (_, leaf) in zip(names, paths, strict=True)]
    moving = [i for i, (path, _) in enumerate(paths) if path[0].idx in differentiated and is_float(leaves[i])]
    if not moving:
        kinds = ", ".join(f"{n}: {leaf.dtype}{list(leaf.shape)}" for n, leaf in zip(names, leaves, strict=True))
        raise TypeError(f"args must hold a floating-point array to differentiate, got {kinds or 'none'}")
    return Layout(names, tuple(moving), tree), leaves


@functools.lru_cache(maxsize=256)
def traced(fun: Callable[..., Any]) -> Callable[..., Any]:
    """`fun` as a program, whose trace is kept: for whoever asks again for its outputs' shapes, or its equations.

    A rule that is differentiated must see what differentiates it, and is called as it is.
    """
    return jax.jit(fun)


def mixed(args: Any) -> bool:
    """Whether the floating-point arrays among arguments, as they were given, have several dtypes."""
    dtypes = {np.dtype(a.dtype) for a in jax.tree.leaves(args) if hasattr(a, "dtype") and is_float(a)}
    return len(dtypes) > 1


def cast(leaves: Leaves, dtype: Any) -> Leaves:
    """The floats among the leaves rounded to `dtype`; below float64 integers have 32 bits, as without x64."""
    return [leaf.astype(dtype_in(leaf, dtype)) if isinstance(leaf, np.ndarray) else leaf for leaf in leaves]


def dtype_in(leaf: Any, dtype: Any) -> Any:
    """The dtype that a leaf has where floats have `dtype`."""
    if is_float(leaf):
        return dtype
    narrow = {"int64": np.dtype(np.int32), "uint64": np.dtype(np.uint32)} if dtype != np.float64 else {}
    return narrow.get(str(leaf.dtype), leaf.dtype)


def shapes(leaves: Leaves) -> Leaves:
    """Shapes and dtypes alone."""
    return [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves]


def stack(trees: list[Any], axis: int = 0) -> Any:
    """Equal pytrees as one, along a new axis."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves, axis), *trees)


def output_names(fun: Callable[..., Any], layout: Layout, leaves: Leaves) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of the floating-point outputs and of the others."""
    outputs = jax.eval_shape(lambda leaves: traced(fun)(*jax.tree.unflatten(layout.tree, leaves)), shapes(leaves))
    paths, _ = jax.tree_util.tree_flatten_with_path(outputs)
    named = [(f"output{jax.tree_util.keystr(path)}", is_float(leaf)) for path, leaf in paths]
    return tuple(n for n, known in named if known), tuple(n for n, known in named if not known)


def _leaf(name: str, leaf: Any) -> Any:
    dtype = getattr(leaf, "dtype", None)
    if dtype is None and not isinstance(leaf, bool | int | float):
        raise TypeError(f"{name} must be an array, got {type(leaf).__name__}")
    if dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key):
        return leaf
    leaf = np.asarray(leaf)
    if np.issubdtype(leaf.dtype, np.complexfloating):
        raise TypeError(f"{name} must be real, got {leaf.dtype}{leaf.shape}")
    return leaf.astype(np.float64) if is_float(leaf) else leaf


def _parameters(fun: Callable[..., Any], count: int) -> list[str]:
    """The names under which `fun` takes its first `count` positional arguments."""
    try:
        parameters = list(inspect.signature(fun).parameters.values())
    except (TypeError, ValueError):  # a callable that does not say
        parameters = []
    plain = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return [plain[i] if i < len(plain) else f"args[{i}]" for i in range(count)]
