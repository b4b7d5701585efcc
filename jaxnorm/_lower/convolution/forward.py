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

Convolve = Callable[[Geometry, jax.Array, jax.Array], jax.Array]
Terms = list[tuple[int, tuple[int, ...]]]  # in-group channels and taps

IN_CACHE = 1 << 22  # numbers of y that stay in a cache from one pass to the next: 16 MB
TERMS_IN_CACHE, TERMS = 14, 28  # of y's sum in one pass; of 7, 10, 14, 20, 28 and all the fastest for most shapes
UNROLLED_TERMS = 128  # of a sum, written out; beyond, the first kernel axis is a loop: a term compiles for about 1 ms
UNROLLED_CONVOLUTIONS = 16  # written out side by side; beyond, they are a loop


def by_lax(geometry: Geometry, x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Any geometry: XLA's own convolution.

    Its operands are in canonical order already. XLA's CPU backend puts only the entry computation's into that order
    itself: inside a scan, any other falls to a naive loop.

    For a low padding below 0, XLA's CPU backend in jax 0.10 reads past the array in float32, and of one as long as the
    window autodiff makes such: x is padded before there.
    """
    if not all(0 <= low < reach for (low, _), reach in zip(geometry.padding, geometry.reach, strict=True)):
        x, none, ones = padded(geometry, x), ((0, 0),) * geometry.space, (1,) * geometry.space
        geometry = dataclasses.replace(geometry, input_size=x.shape[1:-1], padding=none, input_dilation=ones)
    return lax.conv_general_dilated(
        x, kernel, geometry.strides, geometry.padding, geometry.input_dilation, geometry.kernel_dilation,
        channels_last(geometry.space), geometry.groups,
        precision=geometry.precision, preferred_element_type=geometry.dtype,  # else 16-bit operands round each sum
    )  # fmt: skip


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
    (e / gcd(d, e))-th from the first one, k_0; the entries they meet begin at q + (p + d k_0 - l) / e and lie
    d / gcd(d, e) apart.
    """
    axis = next(i for i, e in enumerate(geometry.input_dilation) if e > 1)
    e, d, low = geometry.input_dilation[axis], geometry.kernel_dilation[axis], geometry.padding[axis][0]
    window, length = geometry.kernel_size[axis], geometry.output_size[axis]
    step, rows = e // math.gcd(d, e), -(-length // e)
    phases = {}
    for p in range(e):
        taps = [k for k in range(window) if (p + d * k - low) % e == 0]
        if not taps:
            continue  # meets zeros alone
        first, dilation = (p + d * taps[0] - low) // e, d * step // e
        high = first + rows - 1 + (len(taps) - 1) * dilation + 1 - geometry.input_size[axis]
        part = geometry.with_axis(
            axis, kernel_size=len(taps), padding=(-first, high), input_dilation=1, kernel_dilation=dilation
        )
        phases[p] = convolve(part, x, lax.slice_in_dim(kernel, taps[0], window, step, axis))
    some = next(iter(phases.values()))
    if len(phases) == 1:
        ((p, y),) = phases.items()
        ends = [(0, 0, 0)] * y.ndim
        ends[axis + 1] = (p, length - p - ((rows - 1) * e + 1), e - 1)
        return lax.pad(y, _zero(y), ends)
    y = jnp.stack([phases.get(p, jnp.zeros_like(some)) for p in range(e)], axis + 2)
    y = lax.reshape(y, (*some.shape[: axis + 1], rows * e, *some.shape[axis + 2 :]))
    return lax.slice_in_dim(y, 0, length, axis=axis + 1)


def by_leading_taps(geometry: Geometry, x: jax.Array, kernel: jax.Array, convolve: Convolve) -> jax.Array:
    """No input dilation on the first of several axes: a sum over its taps, that axis being part of the batch.

    XLA's CPU backend runs 2-D convolutions 3 to 5 times faster than 3-D ones.
    """
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

    Elementwise arithmetic over y. A product per channel is what depthwise convolution is; with a few channels a group
    it still beats matrix products of that size.
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

    A pass of 49 terms reads as many places of x, further apart than a core's cache is large: a 7x7 kernel's took .75 ms
    on 16 x 16 x 16 x 64 and 1.25 on 4 x 14 x 14 x 384, passes of 13 take .5 and .7 to .8. A y that no cache holds comes
    from memory in each pass: fewer passes for that.
    """
    *window, inputs, outputs = kernel.shape
    taps = list(np.ndindex(*window))
    # Each channel's entries of x laid out first, once for each of its group's outputs: 1.2 to 2.7 times as fast where
    # enough taps read them, and read them all. The more outputs in a row read the same entry, the less is to be gained.
    repeats = outputs // geometry.groups
    laid_out = inputs * repeats > 1 and len(taps) >= max(6, 2 * repeats) and math.prod(geometry.strides) == 1
    in_cache = xp.shape[0] * math.prod(geometry.output_size) * outputs <= IN_CACHE

    def channel(c: int, xp: jax.Array) -> jax.Array:
        xc = lax.reshape(xp, (*xp.shape[:-1], geometry.groups, inputs))[..., c]
        return jnp.repeat(xc, repeats, axis=-1)

    def add(terms: Terms, x: jax.Array, kernel: jax.Array, y: jax.Array | None) -> jax.Array:
        for c, k in terms:
            met = tap(geometry, x if laid_out else channel(c, x), k)
            term = met * kernel[(*k, slice(c, c + 1))].reshape((1,) * (xp.ndim - 1) + (outputs,))
            y = term if y is None else y + term
        assert y is not None
        return y

    # Apart: XLA would compute it again for every entry of what it is fused into (a padding of y: 100 times slower).
    every: list[Terms] = [[(c, k) for k in taps] for c in range(inputs)]
    for terms in every if laid_out else [sum(every, [])]:
        x = outlined(functools.partial(channel, terms[0][0]), xp) if laid_out else xp
        passes = -(-len(terms) // (TERMS_IN_CACHE if in_cache else TERMS))
        for some in np.array_split(np.arange(len(terms)), passes):
            y = outlined(functools.partial(add, [terms[i] for i in some]), x, kernel, y)
    assert y is not None  # a kernel has a tap
    return y


def by_groups(geometry: Geometry, x: jax.Array, kernel: jax.Array, convolve: Convolve) -> jax.Array:
    """Any geometry: a convolution for each group."""
    one, count = dataclasses.replace(geometry, groups=1), geometry.groups
    if count <= UNROLLED_CONVOLUTIONS:
        parts = zip(jnp.split(x, count, -1), jnp.split(kernel, count, -1), strict=True)
        return lax.concatenate([convolve(one, *part) for part in parts], x.ndim - 1)
    y = lax.map(lambda part: convolve(one, *part), (channel_blocks(x, count), channel_blocks(kernel, count)))
    return lax.collapse(jnp.moveaxis(y, 0, -2), x.ndim - 1)


# --- what the formulations share ------------------------------------------------------------------------------------


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
