"""Strategies of hypothesis for `search`: arguments that are hard, small, and of few shapes.

hypothesis is imported when a strategy is made. Sizes come from a short list, since each new shape is compiled. Values
are of a kind each, drawn by a seed, so that a failing example shrinks in few steps: to the smallest shape and the
plainest kind.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

SIZES = (1, 2, 3, 5, 8, 0)
KINDS = ("ties", "normal", "wide", "constant", "large mean", "tiny")  # the plainest first; "infinite" for whoever asks
_EXTRA = ("infinite",)

__all__ = ["arrays", "classification", "convolution", "labels", "masks", "normalization"]


def arrays(
    shape: Sequence[int] | None = None,
    *,
    dims: Sequence[int] = (1, 2),
    sizes: Sequence[int] = SIZES,
    dtypes: Sequence[Any] = (np.float64,),
    kinds: Sequence[str] = KINDS,
) -> Any:
    """Floating-point arrays.

    Args:
      shape: their shape; None draws one.
      dims: how many axes a drawn shape has, the plainest first.
      sizes: of each axis of a drawn shape, the plainest first.
      dtypes: of the arrays, the plainest first. In a 16- or 32-bit one, `search` judges low precision too.
      kinds: of the values, the plainest first: `ties` (small integers), `normal`, `wide` (either sign, sizes from 0.1
        to 100), `constant`, `large mean` (1e4 with a spread of 1), `tiny` (around 1e-4), `infinite` (some -inf).

    Returns:
      A hypothesis strategy of NumPy arrays.

    Raises:
      ImportError: hypothesis is not installed.
      ValueError: a kind is unknown.

    Example:
      >>> from jaxnorm.check import strategies
      >>> strategies.arrays((2, 3), dtypes=["float32"])
      tuples(just((2, 3)), ...
    """
    st = _strategies()
    if unknown := [kind for kind in kinds if kind not in KINDS + _EXTRA]:
        raise ValueError(f"kinds must be among {', '.join(KINDS + _EXTRA)}, got {unknown[0]!r}")
    shapes = st.just(tuple(shape)) if shape is not None else _shapes(st, dims, sizes)
    drawn = st.tuples(shapes, st.sampled_from(kinds), st.integers(0, 9), st.sampled_from(list(dtypes)))
    return drawn.map(lambda drawn: _values(*drawn))


def labels(shape: Sequence[int], classes: int, *, invalid: bool = False) -> Any:
    """Integers below `classes`; with `invalid` also ones out of range: -1, -100 and `classes`.

    Args:
      shape: their shape.
      classes: how many there are; 0 leaves invalid ones alone.
      invalid: whether some are out of range.

    Returns:
      A hypothesis strategy of NumPy arrays of int32.

    Raises:
      ImportError: hypothesis is not installed.
    """
    st = _strategies()
    outside = [-1, -100, classes] if invalid or not classes else []

    def made(seed: int) -> np.ndarray:
        rng = np.random.default_rng(seed)
        found = rng.integers(0, max(classes, 1), shape, dtype=np.int32)
        bad = rng.random(shape) < (1 if not classes else 0.3)
        return np.where(bad, rng.choice(outside, shape), found).astype(np.int32) if outside else found

    return st.integers(0, 9).map(made)


def masks(shape: Sequence[int]) -> Any:
    """Masks: all selected, none, one row of none, and random ones.

    Args:
      shape: their shape.

    Returns:
      A hypothesis strategy of NumPy arrays of bool.

    Raises:
      ImportError: hypothesis is not installed.
    """
    st = _strategies()

    def made(kind: str, seed: int) -> np.ndarray:
        if kind in ("all", "none"):
            return np.full(shape, kind == "all")
        mask = np.random.default_rng(seed).random(shape) < 0.6
        if kind == "empty row" and len(shape) and shape[0]:
            mask[0] = False
        return mask

    kinds = st.sampled_from(["all", "none", "random", "empty row"])
    return st.builds(made, kinds, st.integers(0, 9))


def normalization(*, where: bool = False, dtypes: Sequence[Any] = (np.float64,), dims: Sequence[int] = (2, 3)) -> Any:
    """Arguments of a normalization over the last axis: `(x, scale, bias)`, or `(x, scale, bias, mask)`.

    Args:
      where: whether a mask of x's shape follows.
      dtypes: of the floating-point arrays, one for all.
      dims: how many axes x has.

    Returns:
      A hypothesis strategy of tuples.

    Raises:
      ImportError: hypothesis is not installed.
    """
    st = _strategies()

    def of(shape: tuple[int, ...], dtype: Any) -> Any:
        parameters = [arrays(shape[-1:], dtypes=[dtype], kinds=["ties", "normal"])] * 2
        mask = [masks(shape)] if where else []
        return st.tuples(arrays(shape, dtypes=[dtype]), *parameters, *mask)

    return st.tuples(_shapes(st, dims, SIZES), st.sampled_from(list(dtypes))).flatmap(lambda drawn: of(*drawn))


def classification(
    *, invalid: bool = False, infinite: bool = False, dtypes: Sequence[Any] = (np.float64,), dims: Sequence[int] = (2,)
) -> Any:
    """Arguments of a loss over integer labels: `(logits, labels)`, classes last.

    Args:
      invalid: whether labels may be out of range, or there may be no class.
      infinite: whether logits may be -inf.
      dtypes: of the logits.
      dims: how many axes the logits have.

    Returns:
      A hypothesis strategy of tuples.

    Raises:
      ImportError: hypothesis is not installed.
    """
    st = _strategies()
    kinds = KINDS + (_EXTRA if infinite else ())

    def of(batch: tuple[int, ...], classes: int) -> Any:
        logits = arrays((*batch, classes), dtypes=dtypes, kinds=kinds)
        return st.tuples(logits, labels(batch, classes, invalid=invalid))

    batches = _shapes(st, [d - 1 for d in dims], SIZES)
    classes = st.sampled_from([c for c in SIZES if c or invalid])
    return st.tuples(batches, classes).flatmap(lambda drawn: of(*drawn))


def convolution(*, spatial: int = 2, dtypes: Sequence[Any] = (np.float64,)) -> Any:
    """Arguments of a convolution, channels last: `(x, kernel, bias)`.

    Args:
      spatial: how many spatial axes there are.
      dtypes: of the arrays, one for all.

    Returns:
      A hypothesis strategy of tuples; windows are of size 1 to 3, images at least as large.

    Raises:
      ImportError: hypothesis is not installed.
    """
    st = _strategies()
    counts, windows = st.sampled_from([1, 2, 3]), st.tuples(*[st.sampled_from([1, 2, 3])] * spatial)
    sizes = st.tuples(*[st.sampled_from([3, 4, 5])] * spatial)

    def of(batch: int, size: Any, window: Any, channels: int, outputs: int, dtype: Any) -> Any:
        shapes = (batch, *size, channels), (*window, channels, outputs), (outputs,)
        return st.tuples(*(arrays(shape, dtypes=[dtype], kinds=["ties", "normal"]) for shape in shapes))

    drawn = st.tuples(counts, sizes, windows, counts, counts, st.sampled_from(list(dtypes)))
    return drawn.flatmap(lambda drawn: of(*drawn))


def _strategies() -> Any:
    try:
        from hypothesis import strategies
    except ImportError as error:
        raise ImportError("searching needs hypothesis: pip install 'jaxnorm[check]'") from error
    return strategies


def _shapes(st: Any, dims: Sequence[int], sizes: Sequence[int]) -> Any:
    one = st.sampled_from(list(sizes))
    return st.sampled_from(list(dims)).flatmap(lambda count: st.tuples(*[one] * count))


def _values(shape: tuple[int, ...], kind: str, seed: int, dtype: Any) -> np.ndarray:
    rng = np.random.default_rng(seed)
    plain = np.round(rng.normal(size=shape), 2)  # short to print
    values = {
        "ties": lambda: rng.integers(-2, 3, shape).astype(float),
        "normal": lambda: plain,
        "wide": lambda: np.round(rng.choice([-1, 1], shape) * 10 ** rng.uniform(-1, 2, shape), 2),
        "constant": lambda: np.full(shape, 1.5),
        "large mean": lambda: 1e4 + plain,
        "tiny": lambda: 1e-4 * plain,
        "infinite": lambda: np.where(rng.random(shape) < 0.3, -np.inf, plain),
    }[kind]()
    return np.asarray(values).astype(dtype)
