"""How the columns of logits of a linear loss are cut into blocks, and how wide these are."""

import functools
from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax import lax

from jaxnorm._cotangents import cast
from jaxnorm._lower.platforms import by_platform
from jaxnorm._lower.sizes import at_most

T = TypeVar("T")

BLOCK_ELEMENTS = 1 << 21  # logits of one block of the linear loss on a CPU
MIN_COLUMNS = 128  # columns of such a block, however many tokens there are
WIDE_BLOCK_ELEMENTS = 1 << 23  # the same two on a GPU or TPU
WIDE_MIN_COLUMNS = 1024
SYMBOLIC_COLUMNS = 1024  # columns of a block where the number of tokens is left open


def block_widths(tokens: int) -> tuple[int, int]:
    """How many columns of logits to compute at a time: on a CPU, and on a GPU or TPU.

    On a CPU a block is large enough for products at full speed and small enough to stay in the cache. A GPU or TPU
    reads all hidden rows and their running gradient once for each block, which few columns would not outweigh.
    """
    if not isinstance(tokens, int):
        return SYMBOLIC_COLUMNS, SYMBOLIC_COLUMNS
    of_cpu = max(BLOCK_ELEMENTS // max(tokens, 1), MIN_COLUMNS)
    return of_cpu, max(WIDE_BLOCK_ELEMENTS // max(tokens, 1), WIDE_MIN_COLUMNS)


def over_blocks(
    columns: int, width: int | None, tokens: int, add: Callable[[T, jax.Array | int, int], T], sums: T
) -> T:
    """`add(sums, start, size)` over all blocks of columns; without a width, of one that suits the platform."""

    def in_blocks(width: int, sums: T) -> T:
        return _over_blocks(columns, min(width, max(columns, 1)), add, sums)

    def in_blocks_on_cpu(width: int, sums: T) -> T:
        """A 16-bit array of which each block fills a part is float32 until all of it is written."""
        filled = in_blocks(width, jax.tree.map(lambda a: cast(a, jnp.float32) if _is_widened(a) else a, sums))
        return jax.tree.map(lambda a, of: cast(a, of.dtype), filled, sums)

    narrow, wide = block_widths(tokens) if width is None else (width, width)
    if any(map(_is_widened, jax.tree.leaves(sums))):
        cpu = functools.partial(in_blocks_on_cpu, narrow)
    elif narrow == wide or not at_most(narrow, columns - 1, unknown=True):
        return in_blocks(narrow, sums)
    else:
        cpu = functools.partial(in_blocks, narrow)
    return by_platform(sums, cpu=cpu, default=functools.partial(in_blocks, wide))


def _over_blocks(columns: int, width: int, add: Callable[[T, jax.Array | int, int], T], sums: T) -> T:
    """The full blocks in a scan, then the remainder as a narrower one: no column is padded or counted twice."""
    count = columns // width
    starts = width * jnp.arange(count, dtype=jnp.int32)
    if count:
        sums, _ = lax.scan(lambda carry, start: (add(carry, start, width), None), sums, starts)
    return add(sums, count * width, columns - count * width) if columns % width else sums


def _is_widened(array: jax.Array) -> bool:
    """Whether XLA's CPU backend widens all of an array to update a part of it: one of 16 bits, before jax 0.12."""
    return array.dtype.itemsize == 2 and jax.__version_info__ < (0, 12)
