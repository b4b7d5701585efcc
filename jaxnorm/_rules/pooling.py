"""Pooling: the maximum and the average over windows that slide along the spatial axes.

For one spatial axis (several go alike): x has S entries, the window K, the stride is s, the padding (l, h). Output t
looks at the entries i = s t + k - l of x, k = 0 .. K - 1, of which only those with 0 <= i < S exist:

    I(t) = {s t + k - l : 0 <= k < K} and {0 .. S - 1}        t = 0 .. T - 1        T = floor((S + l + h - K) / s) + 1
    y[t] = max of x[i] over i in I(t)                                                                                (1)
    y[t] = (sum of x[i] over i in I(t)) / n(t)        n(t) = K, or the number of entries in I(t)                     (2)

With several axes I(t) is the product of the axes' own, in row-major order, and n(t) the product of theirs.

Backward, for the incoming cotangent g, where w(t) is the winner of window t, the first i of I(t) that attains (1):

    dx[i] = sum of g[t] over the t with w(t) = i                                                                     (3)
    dx[i] = sum of g[t] / n(t) over the t with i in I(t)                                                             (4)

Derivation. (2) is linear, with the coefficient 1 / n(t) of x[i] in y[t] where i is in I(t): (4) sums over the other
index. (1) is y[t] = x[w(t)], and w is locally constant wherever no two entries of a window are equal: there (3) is the
gradient. In a tie the maximum has no gradient, only one-sided derivatives, and (3) is the one along the first winner,
as if the earlier entry were a little larger. The derivative of (3) by x is 0, and by g it is the same selection:
second derivatives are those of y[t] = x[w(t)].

Conventions. A NaN is larger than any number, so that the first NaN of a window is its winner. Entries beyond x belong
to no window: they win nowhere, and are 0 in a sum. A window with no entry of x at all has the empty maximum, -inf, the
average 0, and no gradient. n(t) = 0 counts as 1, which makes 0 / 0 that 0.

`windows` knows the axes, K, s, l and h, and how the passes over windows are run. The winners are found again from x in
the backward pass: what is kept is x alone of a maximum, and nothing but x's shape of an average.

Reference: Dumoulin and Visin 2016, "A guide to convolution arithmetic for deep learning",
https://arxiv.org/abs/1603.07285 (chapter 3, pooling arithmetic).
"""

from collections.abc import Callable
from typing import Any, Protocol

import jax

from jaxnorm._cotangents import cast, compute_dtype

Elementwise = Callable[[jax.Array], jax.Array]


class Windows(Protocol):
    """How windows lie in x, and how the passes over them are run: the rule's only view of a platform."""

    def maximum(self, x: jax.Array) -> jax.Array: ...  # over each window
    def to_winners(self, x: jax.Array, g: jax.Array) -> jax.Array: ...  # sums of g over the windows each entry wins
    def total(self, of: Elementwise, x: jax.Array, dtype: Any) -> jax.Array: ...  # of(the sum over each window)
    def to_members(self, of: Elementwise, g: jax.Array) -> jax.Array: ...  # sums of of(g) over each entry's windows
    def count(self, dtype: Any) -> Any: ...  # n(t), a number or an array that broadcasts to y


def maximum(windows: Windows, x: jax.Array) -> jax.Array:
    """The y of (1)."""
    return windows.maximum(x)  # (1)


def maximum_backward(windows: Windows, x: jax.Array, g: jax.Array) -> jax.Array:
    """The dx of (3)."""
    return cast(windows.to_winners(x, cast(g, compute_dtype(g))), x.dtype)  # (3)


def average(windows: Windows, x: jax.Array) -> jax.Array:
    """The y of (2)."""
    return windows.total(lambda total: cast(total / windows.count(total.dtype), x.dtype), x, compute_dtype(x))  # (2)


def average_backward(windows: Windows, g: jax.Array) -> jax.Array:
    """The dx of (4)."""
    dtype = compute_dtype(g)
    return cast(windows.to_members(lambda g: cast(g, dtype) / windows.count(dtype), g), g.dtype)  # (4)
