"""Formulations of equation (1) without its bias, and so of (3), which has the same form: y from x and the kernel.

Each is right for every geometry that its first line names, and leaves what remains to do to the given `convolve`.
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
from jaxnorm._lower.convolution.geometry import Geometry, channels_last, flipped
from jaxnorm._lower.sizes import at_most

Convolve = Callable[[Geometry, jax.Array, jax.Array], jax.Array]
Terms = list[tuple[int, tuple[int, ...]]]  # in-group channels and taps

# Each pass over y adds this many terms of its sum. A pass of more terms reads more places of x at a time, which are
# further apart than a core's cache is large; with fewer terms there are more passes. A y that no cache holds comes from
# memory in each pass, so that fewer passes are worth more.
TERMS_IN_CACHE, TERMS = 14, 28
IN_CACHE = 1 << 22  # the most entries of y that a cache holds from one pass to the next
# Each in-group channel of x is first copied once for each of its group's outputs, if at least this many taps read it.
# The copy is one more pass; without it each tap gathers the channel's entries again.
LAID_OUT_TAPS = 6
# A sum of up to this many terms is unrolled, and a longer one loops over the longest kernel axis, since each unrolled
# term takes time to compile.
UNROLLED_TERMS = 128
# Up to this many convolutions are unrolled, since XLA runs side by side what does not depend on each other, and more
# are a loop, since each takes time to compile.
UNROLLED_CONVOLUTIONS = 16


def by_lax(geometry: Geometry, x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Any geometry: XLA's own convolution.

    Its operands are in canonical order already. XLA's CPU backend puts them into that order itself only outside loops;
    in a scan, a convolution in any other order falls to a naive loop.

    XLA's CPU backend in jax 0.10 reads past a float32 array if the low padding is below 0. Autodiff makes such a
    padding from one that is as long as the window. In both cases x is padded by an operation of its own.
    """
    if not all(0 <= low < reach for (low, _), reach in zip(geometry.padding, geometry.reach, strict=True)):
        x, none, ones = padded(geometry, x), ((0, 0),) * geometry.space, (1,) * geometry.space
        geometry = dataclasses.replace(geometry, input_size=x.shape[1:-1], padding=none, input_dilation=ones)
    return lax.conv_general_dilated(
        x, kernel, geometry.strides, geometry.padding, geometry.input_dilation, geometry.kernel_dilation,
        channels_last(geometry.space), geometry.groups,
        precision=geometry.precision, preferred_element_type=geometry.dtype,  # else 16-bit operands round each sum
    )  # fmt: skip


def by_taps(geometry: Geometry, x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Any geometry: for each tap and group, the product of the entries that it meets and a matrix."""
    xp, groups, y = padded(geometry, x), geometry.groups, None
    for k in np.ndindex(*geometry.kernel_size):
        met, matrix = by_group(tap(geometry, xp, k), groups), by_group(kernel[k], groups)
        term = lax.dot_general(
            met, matrix, (((met.ndim - 1,), (0,)), ((met.ndim - 2,), (1,))),
            precision=geometry.precision, preferred_element_type=geometry.dtype,
        )  # fmt: skip
        y = term if y is None else y + term
    assert y is not None  # a kernel has a tap
    return lax.collapse(jnp.moveaxis(y, 0, -2), x.ndim - 1)


def by_product(geometry: Geometry, x: jax.Array, kernel: jax.Array) -> jax.Array:
    """One group, windows of one entry, no input dilation: a matrix product."""
    entries = tap(geometry, padded(geometry, x), (0,) * geometry.space)
    y = _product(geometry, entries, lax.reshape(kernel, kernel.shape[-2:]))
    return lax.reshape(y, (x.shape[0], *geometry.output_size, kernel.shape[-1]))


def by_blocks(geometry: Geometry, x: jax.Array, kernel: jax.Array) -> jax.Array:
    """One group, stride 1, no kernel dilation, windows no longer than the input dilation e: products side by side.

    Entry i of x meets y[t] at t = e i + l - k alone, and no other entry does: y is made of blocks of e, block i being
    the K products x[i] w[k] for k = K - 1 .. 0 and e - K zeros, the first block starting at l - (K - 1).
    """
    space, (*window, inputs, outputs), dilation = geometry.space, kernel.shape, geometry.input_dilation
    w = lax.transpose(flipped(kernel), (space, *range(space), space + 1))
    blocks = _product(geometry, x, lax.reshape(w, (inputs, math.prod(window) * outputs)))
    blocks = lax.reshape(blocks, (*x.shape[:-1], *window, outputs))
    gaps = [(0, e - k, 0) for e, k in zip(dilation, window, strict=True)]
    blocks = lax.pad(blocks, _zero(blocks), [(0, 0, 0)] * (1 + space) + [*gaps, (0, 0, 0)])
    order = [axis for i in range(space) for axis in (1 + i, 1 + space + i)]
    lengths = [size * e for size, e in zip(geometry.input_size, dilation, strict=True)]
    y = lax.reshape(lax.transpose(blocks, (0, *order, 1 + 2 * space)), (x.shape[0], *lengths, outputs))
    lows = [low - (k - 1) for (low, _), k in zip(geometry.padding, window, strict=True)]
    rows = zip(lows, lengths, geometry.output_size, strict=True)
    return lax.pad(y, _zero(y), [(0, 0, 0), *((low, size - length - low, 0) for low, length, size in rows), (0, 0, 0)])


def by_phases(geometry: Geometry, x: jax.Array, kernel: jax.Array, convolve: Convolve) -> jax.Array:
    """Stride 1 on the first axis with an input dilation e: a convolution without it for each t modulo e.

    y[e q + p] meets x[i] for e i = e q + p + d k - l. So phase p has the taps k with e | p + d k - l, every
    (e / gcd(d, e))-th from the first one, k_0; the entries they meet begin at q + (p + d k_0 - l) / e and follow each
    other at a distance of d / gcd(d, e).
    """
    axis = next(i for i, e in enumerate(geometry.input_dilation) if e > 1)
    e, d, low = geometry.input_dilation[axis], geometry.kernel_dilation[axis], geometry.padding[axis][0]
    window, step = geometry.kernel_size[axis], e // math.gcd(d, e)
    phases = {}
    for p in range(e):
        first = next((k for k in range(window) if (p + d * k - low) % e == 0), None)
        if first is not None:  # else the phase meets zeros alone
            part = _phase(geometry, axis, p, range(first, window, step))
            phases[p] = convolve(part, x, lax.slice_in_dim(kernel, first, window, step, axis))
    return _interleaved(phases, e, axis + 1, geometry.output_size[axis])


def _phase(geometry: Geometry, axis: int, p: int, taps: range) -> Geometry:
    """The geometry of the outputs that are p modulo e along the axis, which meet these taps alone."""
    e, d, low = geometry.input_dilation[axis], geometry.kernel_dilation[axis], geometry.padding[axis][0]
    rows = -(-geometry.output_size[axis] // e)
    first, dilation = (p + d * taps[0] - low) // e, d * taps.step // e
    high = first + rows - 1 + (len(taps) - 1) * dilation + 1 - geometry.input_size[axis]
    return geometry.with_axis(
        axis, kernel_size=len(taps), padding=(-first, high), input_dilation=1, kernel_dilation=dilation
    )


def _interleaved(phases: dict[int, jax.Array], e: int, axis: int, length: int) -> jax.Array:
    """The array of this length whose entry e q + p along the axis is entry q of phase p, 0 where there is no phase."""
    some = next(iter(phases.values()))
    rows = some.shape[axis]
    if len(phases) == 1:
        ((p, y),) = phases.items()
        ends = [(0, 0, 0)] * y.ndim
        ends[axis] = (p, length - p - ((rows - 1) * e + 1), e - 1)
        return lax.pad(y, _zero(y), ends)
    y = jnp.stack([phases.get(p, jnp.zeros_like(some)) for p in range(e)], axis + 1)
    y = lax.reshape(y, (*some.shape[:axis], rows * e, *some.shape[axis + 1 :]))
    return lax.slice_in_dim(y, 0, length, axis=axis)


def by_leading_taps(geometry: Geometry, x: jax.Array, kernel: jax.Array, convolve: Convolve) -> jax.Array:
    """No input dilation on the first of several axes: a sum over its taps, that axis being part of the batch."""
    lead, rest = geometry.along(slice(1)), geometry.along(slice(1, None))
    xp = padded(lead, x)
    y: jax.Array | None = None
    for k in range(geometry.kernel_size[0]):
        term = convolve(rest, lax.collapse(tap(lead, xp, (k,)), 0, 2), kernel[k])
        y = term if y is None else y + term
    assert y is not None  # a kernel has a tap
    return lax.reshape(y, (x.shape[0], *geometry.output_size, kernel.shape[-1]))


def by_shifts(geometry: Geometry, x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Any groups, no input dilation: the sum over taps and in-group channels of shifted x times the kernel's entry.

    This is elementwise arithmetic over y, as a depthwise convolution is by itself.
    """
    *window, inputs, outputs = kernel.shape
    xp = padded(geometry, x)
    if math.prod(window) * inputs <= UNROLLED_TERMS:
        return _add_shifts(geometry, xp, kernel)

    # One tap of the longest axis at a time, from the rows that it meets.
    axis = int(np.argmax(window))
    rows = 1 + geometry.strides[axis] * (geometry.output_size[axis] - 1)
    one = geometry.with_axis(axis, kernel_size=1, kernel_dilation=1, input_size=rows, padding=(0, 0))

    def step(y: jax.Array, k: jax.Array) -> tuple[jax.Array, None]:
        met = lax.dynamic_slice_in_dim(xp, k * geometry.kernel_dilation[axis], rows, axis + 1)
        return _add_shifts(one, met, lax.dynamic_slice_in_dim(kernel, k, 1, axis), y), None

    y = jnp.zeros((x.shape[0], *geometry.output_size, outputs), geometry.dtype)
    return lax.scan(step, varying_like(y, x, kernel), jnp.arange(window[axis]))[0]


def _add_shifts(geometry: Geometry, xp: jax.Array, kernel: jax.Array, y: jax.Array | None = None) -> jax.Array:
    """The sum from the padded x, added to y: a few terms in each pass over y.

    Each pass is outlined, as XLA would compute it again for every entry of what it is fused into, such as a padding.
    """
    *window, inputs, outputs = kernel.shape
    taps, repeats = list(np.ndindex(*window)), outputs // geometry.groups
    # A copy gains less where strided taps leave out some of its entries, and the more outputs in a row read one entry.
    read_often = len(taps) >= max(LAID_OUT_TAPS, 2 * repeats) and math.prod(geometry.strides) == 1
    lays_out = inputs * repeats > 1 and read_often
    in_cache = at_most(xp.shape[0] * math.prod(geometry.output_size) * outputs, IN_CACHE, unknown=False)
    for channels in [[c] for c in range(inputs)] if lays_out else [list(range(inputs))]:
        lay_out = functools.partial(_channel, geometry, channels[0], outputs)
        x = outlined(lay_out, xp) if lays_out else xp
        terms = [(c, k) for c in channels for k in taps]
        passes = -(-len(terms) // (TERMS_IN_CACHE if in_cache else TERMS))
        for chosen in np.array_split(np.arange(len(terms)), passes):
            add = functools.partial(_add_terms, geometry, [terms[i] for i in chosen], lays_out)
            y = outlined(add, x, kernel, y)
    assert y is not None  # a kernel has a tap
    return y


def _add_terms(
    geometry: Geometry, terms: Terms, laid_out: bool, x: jax.Array, kernel: jax.Array, y: jax.Array | None
) -> jax.Array:
    """Some terms of the sum, added to y. Where it is laid out, x is what `_channel` made for the terms' one channel."""
    outputs = kernel.shape[-1]
    for c, k in terms:
        met = tap(geometry, x if laid_out else _channel(geometry, c, outputs, x), k)
        term = met * kernel[(*k, slice(c, c + 1))].reshape((1,) * (x.ndim - 1) + (outputs,))
        y = term if y is None else y + term
    assert y is not None
    return y


def _channel(geometry: Geometry, c: int, outputs: int, xp: jax.Array) -> jax.Array:
    """In-group channel c of the padded x, once for each of its group's outputs: `(..., outputs)`."""
    groups = geometry.groups
    channel = lax.reshape(xp, (*xp.shape[:-1], groups, xp.shape[-1] // groups))[..., c]
    return jnp.repeat(channel, outputs // groups, axis=-1)


def by_groups(geometry: Geometry, x: jax.Array, kernel: jax.Array, convolve: Convolve) -> jax.Array:
    """Any geometry: a convolution for each group."""
    one, count = dataclasses.replace(geometry, groups=1), geometry.groups
    if count <= UNROLLED_CONVOLUTIONS:
        parts = zip(jnp.split(x, count, -1), jnp.split(kernel, count, -1), strict=True)
        return lax.concatenate([convolve(one, *part) for part in parts], x.ndim - 1)
    y = lax.map(lambda part: convolve(one, *part), (channel_blocks(x, count), channel_blocks(kernel, count)))
    return lax.collapse(jnp.moveaxis(y, 0, -2), x.ndim - 1)


# --- what the formulations share ------------------------------------------------------------------------------------


def by_group(x: jax.Array, groups: int) -> jax.Array:
    """`(..., C)` as `(..., groups, C / groups)`."""
    return lax.reshape(x, (*x.shape[:-1], groups, x.shape[-1] // groups))


def channel_blocks(x: jax.Array, count: int) -> jax.Array:
    """`(..., C)` as `(count, ..., C / count)`."""
    return jnp.moveaxis(lax.reshape(x, (*x.shape[:-1], count, x.shape[-1] // count)), -2, 0)


def padded(geometry: Geometry, x: jax.Array) -> jax.Array:
    """X as the window slides over it: dilated, padded and cropped."""
    ends = [(low, high, e - 1) for (low, high), e in zip(geometry.padding, geometry.input_dilation, strict=True)]
    others = [(0, 0, 0)] * (x.ndim - 1 - geometry.space)
    return x if set(ends) == {(0, 0, 0)} else lax.pad(x, _zero(x), [(0, 0, 0), *ends, *others])


def tap(geometry: Geometry, xp: jax.Array, k: tuple[int, ...]) -> jax.Array:
    """The entries of the padded x that tap k meets: `(N, *output_size, ...)`."""
    starts = [d * i for d, i in zip(geometry.kernel_dilation, k, strict=True)]
    rows = zip(starts, geometry.strides, geometry.output_size, strict=True)
    others = xp.shape[1 + len(k) :]
    ends = (xp.shape[0], *(start + s * (size - 1) + 1 for start, s, size in rows), *others)
    return lax.slice(xp, (0, *starts, *(0 for _ in others)), ends, (1, *geometry.strides, *(1 for _ in others)))


def _zero(x: jax.Array) -> jax.Array:
    return jnp.zeros((), x.dtype)


def _product(geometry: Geometry, x: jax.Array, matrix: jax.Array) -> jax.Array:
    """The rows of `x` `(..., C)` times a matrix, `(rows, O)`."""
    return lax.dot(
        lax.collapse(x, 0, x.ndim - 1), matrix, precision=geometry.precision, preferred_element_type=geometry.dtype
    )
