"""The groups of a normalization as XLA's GPU backend wants them."""

from typing import Any

import jax

from jaxnorm._cotangents import reshape
from jaxnorm._lower.plain import Elementwise, Plain

ROW = 1 << 14  # entries of a row that XLA holds in one block of threads; it reads a longer row once for each sum


class Gpu(Plain):
    """The groups as XLA's GPU backend wants them: a sum over a row, and the pass that waits for it, are one kernel."""

    def at_once(self, of: Elementwise, epsilon: float, x: jax.Array, scale: Any, bias: Any) -> jax.Array | None:
        """For groups that are rows: the last axes of x. The kernel has one result, and no guard of an epsilon of 0."""
        layout = self.layout.with_one_row_axis
        if layout is None or not 0 < layout.view[-1] <= ROW or not epsilon:
            return None
        rows = Gpu(layout, self.x_dtype, self.dtype)
        return reshape(rows.output(of, *rows.views(x, scale, bias, where=None)[:3]), self.layout.view)
