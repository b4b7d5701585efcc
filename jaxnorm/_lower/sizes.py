"""Choices by size, for sizes that `jax.export` may leave open."""

from typing import Any


def at_most(size: Any, limit: int, unknown: bool) -> bool:
    """Whether a size is at most the limit; `unknown` for a symbolic size, which no comparison decides."""
    return size <= limit if isinstance(size, int) else unknown
