"""Several calls of one function: arguments that are drawn, for other branches, or of other shapes."""

from collections.abc import Sequence
from typing import Any

import numpy as np

Arguments = tuple[Any, ...]


def drawn(branches: Any, count: int, seed: int) -> list[Arguments]:
    """Arguments from a function of a `numpy.random.Generator`, or from a hypothesis strategy: tuples, or one array."""
    if branches is None:
        return []
    if count < 1:
        raise ValueError(f"max_examples must be at least 1, got {count}")
    if callable(branches):
        rng = np.random.default_rng(seed)
        examples = [branches(rng) for _ in range(count)]
    elif hasattr(branches, "example"):
        examples = _examples(branches, count, seed)
    else:
        kind = type(branches).__name__
        raise TypeError(f"branches must be a function of a random generator or a hypothesis strategy, got {kind}")
    return [example if isinstance(example, tuple) else (example,) for example in examples]


def _examples(strategy: Any, count: int, seed: int) -> list[Any]:
    import hypothesis

    found: list[Any] = []
    settings = {"deadline": None, "database": None, "suppress_health_check": list(hypothesis.HealthCheck)}

    @hypothesis.seed(seed)
    @hypothesis.settings(max_examples=count, phases=(hypothesis.Phase.generate,), **settings)
    @hypothesis.given(strategy)
    def keep(example: Any) -> None:
        found.append(example)

    keep()
    return found


def of_shapes(args: Arguments, shapes: Sequence[Sequence[Sequence[int]]], seed: int) -> list[Arguments]:
    """The arguments in other shapes: their elements in any order, floating-point ones moved a little against ties."""
    rng = np.random.default_rng(seed)
    return [_resized(args, [tuple(shape) for shape in of_all], rng) for of_all in shapes]


def _resized(args: Arguments, shapes: list[tuple[int, ...]], rng: np.random.Generator) -> Arguments:
    if len(shapes) != len(args) or not all(hasattr(arg, "shape") for arg in args):
        wanted = f"one shape for each of the {len(args)} arguments, which must be arrays"
        raise ValueError(f"shapes must hold sequences of {wanted}, got {shapes}")
    resized = []
    for arg, shape in zip(map(np.asarray, args), shapes, strict=True):
        if not arg.size and np.prod(shape):
            raise ValueError(f"shapes must be empty where an argument of shape {arg.shape} is, got {shape}")
        elements = rng.choice(arg.ravel(), shape) if arg.size else np.zeros(shape, arg.dtype)
        moved = elements if arg.dtype.kind in "biu" else (elements * rng.uniform(0.9, 1.1, shape)).astype(arg.dtype)
        resized.append(moved)
    return tuple(resized)
