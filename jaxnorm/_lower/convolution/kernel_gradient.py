"""Formulations of equation (4) without the bias's part: dkernel from x and the cotangent g.

Each is right for every geometry that its first line names, and leaves what remains to do to the given `correlate`.
"""

import dataclasses
import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxnorm._cotangents import varying_like
from jaxnorm._lower.calls import outlined
from jaxnorm._lower.convolution import forward
from jaxnorm._lower.convolution.forward import by_group, channel_blocks, padded, tap
from jaxnorm._lower.convolution.geometry import Geometry, transposed_kernel

Correlate = Callable[[Geometry, jax.Array, jax.Array], jax.Array]

# Up to this many taps are unrolled in one loop over the images, and for more the longest kernel axis is a loop, since
# each unrolled tap takes time to compile.
UNROLLED_TAPS = 16
# Groups are merged up to this many channels. Matrix products narrower than a vector register cost as much as one that
# fills it, and of wider ones a smaller part is kept.
MERGED_CHANNELS = 16
# This many rows are added in one pass. Fewer are more passes, and more are more streams from memory than a cache has
# ways.
ROWS = 8
# This many entries of g are in work at a time, so that each tap after the first finds them in a cache; fewer at a time
# are more turns of a loop.
CHUNK = 1 << 20


def by_lax(geometry: Geometry, x: jax.Array, g: jax.Array) -> jax.Array:
    """Any geometry: x convolved with g dilated by the strides, the batch being what is summed over.

    In-group channels take the place of the batch, and pairs of a group and an image that of the channels. So the groups
    are feature groups, since XLA's CPU backend runs batch groups in a naive loop.
    """
    batch, *size, channels = x.shape
    space, groups = geometry.space, geometry.groups
    images = lax.reshape(x, (batch, *size, groups, channels // groups))
    images = lax.transpose(images, (space + 2, *range(1, space + 1), space + 1, 0))
    images = lax.reshape(images, (channels // groups, *size, groups * batch))
    window = lax.transpose(g, (*range(1, space + 1), 0, space + 1))
    dkernel = forward.by_lax(geometry.correlated, images, window)
    return lax.transpose(dkernel, (*range(1, space + 1), 0, space + 1))


def by_batch_groups(geometry: Geometry, x: jax.Array, g: jax.Array) -> jax.Array:
    """Any geometry: the same convolution, with the groups as batch groups, as JAX's own rule has it.

    Nothing is transposed in memory: the axis orders say that x's channels are the batch, and its images the channels. A
    TPU's compiler knows this form of a depthwise kernel's gradient.
    """
    axes, exchanged = "HWD"[: geometry.space], geometry.correlated
    return lax.conv_general_dilated(
        x, g, exchanged.strides, exchanged.padding, exchanged.input_dilation, exchanged.kernel_dilation,
        (f"C{axes}N", f"I{axes}O", f"{axes}NC"), batch_group_count=geometry.groups,
        precision=geometry.precision, preferred_element_type=geometry.dtype,
    )  # fmt: skip


def by_taps(geometry: Geometry, x: jax.Array, g: jax.Array) -> jax.Array:
    """Any geometry: for each tap and group, the product of the entries that it meets and g, over all positions."""
    xp, groups, positions = padded(geometry, x), geometry.groups, tuple(range(g.ndim - 1))
    parts, matrices = by_group(g, groups), []
    for k in np.ndindex(*geometry.kernel_size):
        met = by_group(tap(geometry, xp, k), groups)
        matrix = lax.dot_general(
            met, parts, ((positions, positions), ((met.ndim - 2,), (met.ndim - 2,))),
            precision=geometry.precision, preferred_element_type=geometry.dtype,
        )  # fmt: skip
        matrices.append(lax.collapse(jnp.moveaxis(matrix, 0, 1), 1))
    return lax.reshape(jnp.stack(matrices), (*geometry.kernel_size, x.shape[-1] // groups, g.shape[-1]))


def by_product(geometry: Geometry, x: jax.Array, g: jax.Array) -> jax.Array:
    """One group, windows of one entry, no input dilation: a matrix product that sums over the rows."""
    entries = tap(geometry, padded(geometry, x), (0,) * geometry.space)
    dkernel = lax.dot_general(
        lax.collapse(entries, 0, x.ndim - 1), lax.collapse(g, 0, g.ndim - 1), (((0,), (0,)), ((), ())),
        precision=geometry.precision, preferred_element_type=geometry.dtype,
    )  # fmt: skip
    return lax.reshape(dkernel, (*geometry.kernel_size, x.shape[-1], g.shape[-1]))


def by_patches(geometry: Geometry, x: jax.Array, g: jax.Array) -> jax.Array:
    """One group, no dilation, windows no longer than the strides s: the product of a matrix of patches and g.

    Disjoint windows are the first K entries of the blocks of s that x is cut into. Moved to the front, these entries
    are the rows of the kernel.
    """
    space, window, lengths = geometry.space, geometry.kernel_size, geometry.output_size
    axes = zip(geometry.padding, lengths, geometry.strides, geometry.input_size, strict=True)
    ends = [(low, t * s - low - size, 0) for (low, _), t, s, size in axes]
    blocks = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *ends, (0, 0, 0)])
    split = [n for pair in zip(lengths, geometry.strides, strict=True) for n in pair]
    blocks = lax.reshape(blocks, (x.shape[0], *split, x.shape[-1]))
    for axis, size in enumerate(window):
        blocks = lax.slice_in_dim(blocks, 0, size, axis=2 * axis + 2)
    taps, places = range(2, 2 * space + 1, 2), range(1, 2 * space, 2)
    patches = lax.transpose(blocks, (*taps, 2 * space + 1, 0, *places))
    dkernel = lax.dot(
        lax.reshape(patches, (math.prod(window) * x.shape[-1], math.prod(g.shape[:-1]))),
        lax.collapse(g, 0, g.ndim - 1), precision=geometry.precision, preferred_element_type=geometry.dtype,
    )  # fmt: skip
    return lax.reshape(dkernel, (*window, x.shape[-1], g.shape[-1]))


def by_exchange(geometry: Geometry, x: jax.Array, g: jax.Array, correlate: Correlate) -> jax.Array:
    """Any geometry: x and g exchanged, which also exchanges stride and input dilation.

    (4) pairs x[i] with g[t] for e i = d k + s t - l, and so does the same sum of the transposed geometry, at the
    flipped tap: w is to the map from g to x what `transposed_kernel` makes of it.
    """
    return transposed_kernel(correlate(geometry.transposed, g, x), geometry.groups)


def by_leading_taps(geometry: Geometry, x: jax.Array, g: jax.Array, correlate: Correlate) -> jax.Array:
    """No input dilation on the first of several axes: its taps one by one, that axis being part of the batch."""
    lead, rest = geometry.along(slice(1)), geometry.along(slice(1, None))
    xp, rows = padded(lead, x), lax.collapse(g, 0, 2)
    return jnp.stack(
        [correlate(rest, lax.collapse(tap(lead, xp, (k,)), 0, 2), rows) for k in range(geometry.kernel_size[0])]
    )


def by_merged_groups(geometry: Geometry, x: jax.Array, g: jax.Array, correlate: Correlate) -> jax.Array:
    """Any geometry: for every few groups the gradient as if they were one, of which the diagonal blocks are kept."""
    groups, space = geometry.groups, geometry.space
    inputs, outputs = x.shape[-1] // groups, g.shape[-1] // groups
    wanted = max(1, MERGED_CHANNELS // max(inputs, outputs))
    merged = max(n for n in range(1, groups + 1) if groups % n == 0 and n <= wanted)
    count = groups // merged
    one = dataclasses.replace(geometry, groups=1)
    if count <= forward.UNROLLED_CONVOLUTIONS:
        pairs = zip(jnp.split(x, count, -1), jnp.split(g, count, -1), strict=True)
        blocks = jnp.stack([correlate(one, *pair) for pair in pairs])
    else:
        blocks = lax.map(lambda pair: correlate(one, *pair), (channel_blocks(x, count), channel_blocks(g, count)))
    window = geometry.kernel_size
    blocks = lax.reshape(blocks, (count, *window, merged, inputs, merged, outputs))
    diagonal = jnp.diagonal(blocks, axis1=space + 1, axis2=space + 3)  # (count, *window, inputs, outputs, merged)
    ordered = lax.transpose(diagonal, (*range(1, space + 2), 0, space + 3, space + 2))
    return lax.reshape(ordered, (*window, inputs, groups * outputs))


def by_column_sums(geometry: Geometry, x: jax.Array, g: jax.Array, unrolled_taps: int | None = None) -> jax.Array:
    """One input channel a group, no input dilation: for each tap, the sum over all positions of shifted x times g.

    XLA's sums read one array, so a tap's product of x and g would be materialized before it is summed. Therefore rows
    are added to each other in the pass that multiplies them, for a few images at a time, whose x and g a cache holds
    from one tap to the next.
    """
    outputs = g.shape[-1]
    xp = jnp.repeat(padded(geometry, x), outputs // geometry.groups, axis=-1)
    window, taps = geometry.kernel_size, math.prod(geometry.kernel_size)
    unrolled_taps = UNROLLED_TAPS if unrolled_taps is None else unrolled_taps
    # With one axis, a turn of the loop would be a single tap, so that more taps are unrolled.
    if taps <= unrolled_taps or (geometry.space == 1 and taps <= forward.UNROLLED_TERMS):
        return lax.reshape(_column_sums(geometry, xp, g), (*window, 1, outputs))
    axis = int(np.argmax(window))
    rows = 1 + geometry.strides[axis] * (geometry.output_size[axis] - 1)
    one = geometry.with_axis(axis, kernel_size=1, kernel_dilation=1, input_size=rows, padding=(0, 0))
    starts = geometry.kernel_dilation[axis] * jnp.arange(window[axis])
    met = functools.partial(lax.dynamic_slice_in_dim, xp, slice_size=rows, axis=axis + 1)
    sums = lax.map(lambda start: _column_sums(one, met(start), g, together=True), starts)
    sums = lax.reshape(sums, (window[axis], *window[:axis], *window[axis + 1 :], 1, outputs))
    return jnp.moveaxis(sums, 0, axis)


def _column_sums(geometry: Geometry, xp: jax.Array, g: jax.Array, together: bool = False) -> jax.Array:
    """The sums over all positions, `(taps, O)`, from the padded x.

    With `together` the taps' products are one array, of one pass and one sum, which pays for the few taps of a loop;
    for more taps on larger arrays it is slower.
    """
    batch, length, channels = g.shape[0], g.shape[1], g.shape[-1]
    images, rows = _images_at_a_time(g), _rows_at_a_time(length)
    whole = length // rows * rows
    taps, positions = list(np.ndindex(*geometry.kernel_size)), tuple(range(g.ndim - 1))

    def sums_of_rows(x: jax.Array, g: jax.Array) -> list[jax.Array]:
        sums = [_sum_of_rows(tap(geometry, x, k)[:, :whole], g[:, :whole], rows) for k in taps]
        return [jnp.stack(sums, -2)] if together else sums

    def add(totals: jax.Array, chunk: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        sums = [jnp.sum(s, axis=positions) for s in outlined(sums_of_rows, *chunk)]
        return totals + (sums[0] if together else jnp.stack(sums)), None

    def chunks(a: jax.Array) -> jax.Array:
        return lax.reshape(a, (batch // images, images, *a.shape[1:]))

    totals = jnp.zeros((len(taps), channels), geometry.dtype)
    totals = lax.scan(add, varying_like(totals, xp, g), (chunks(xp), chunks(g)))[0]
    if whole == length:
        return totals
    rest = [tap(geometry, xp, k)[:, whole:] * g[:, whole:] for k in taps]
    return totals + jnp.stack([jnp.sum(r, axis=positions) for r in rest])


def _images_at_a_time(g: jax.Array) -> int:
    """The most images of at most CHUNK entries that divide the batch; all of a batch whose size is left open."""
    batch = g.shape[0]
    if not isinstance(batch, int):
        return batch
    return max(n for n in range(1, batch + 1) if batch % n == 0 and (n == 1 or n * g[0].size <= CHUNK))


def _rows_at_a_time(length: int) -> int:
    """ROWS, or a few less if these divide the rows."""
    rows = min(length, ROWS)
    return next((r for r in range(rows, rows // 2, -1) if length % r == 0), rows)


def _sum_of_rows(x: jax.Array, g: jax.Array, rows: int) -> jax.Array:
    """The sum over blocks of rows (axis 1) of x g, in pairs as a tree: `(n, rows of x / rows, ...)`."""
    parts = [x[:, r::rows] * g[:, r::rows] for r in range(rows)]
    while len(parts) > 1:
        odd = parts[len(parts) // 2 * 2 :]
        parts = [a + b for a, b in zip(parts[0::2], parts[1::2], strict=False)] + odd
    return parts[0]
