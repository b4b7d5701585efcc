"""Products of arrays: dots, convolutions, and reductions over windows."""

import itertools
from typing import Any

import numpy as np

from jaxnorm.check._proof.machine import Machine, Undecided, Value, degree_of_product, degree_of_total
from jaxnorm.check._proof.order import choose
from jaxnorm.check._proof.reductions import extreme, pick, total
from jaxnorm.check._proof.rules import rule

Parameters = dict[str, Any]


def matmul(m: Machine, a: Value, b: Value) -> Value:
    """(batch, m, k) times (batch, k, n)."""
    if a.field is None and b.field is None:
        return m.exact(np.matmul(a.shadow, b.shadow))
    a, b = m.as_float(a), m.as_float(b)
    with np.errstate(invalid="ignore"):
        shadow = np.matmul(a.shadow, b.shadow)
    degree = degree_of_total(degree_of_product(a.degree, b.degree), a.shape[-1])
    return m.result(shadow, m.domain.matmul(a.field, b.field), (a, b), degree)


@rule("dot_general")
def _dot_general(m: Machine, parameters: Parameters, a: Value, b: Value) -> Value:
    (contract_a, contract_b), (batch_a, batch_b) = parameters["dimension_numbers"]
    free_a = [i for i in range(a.shadow.ndim) if i not in (*contract_a, *batch_a)]
    free_b = [i for i in range(b.shadow.ndim) if i not in (*contract_b, *batch_b)]
    batch = [a.shape[i] for i in batch_a]
    shape = (*batch, *(a.shape[i] for i in free_a), *(b.shape[i] for i in free_b))
    left = _arranged(m, a, (batch_a, free_a, contract_a))
    right = _arranged(m, b, (batch_b, contract_b, free_b))
    return reshaped(m, matmul(m, left, right), shape)


def _arranged(m: Machine, a: Value, parts: Any) -> Value:
    """With its axes merged into three."""
    order = tuple(itertools.chain(*parts))
    sizes = tuple(int(np.prod([a.shape[i] for i in part], dtype=int)) for part in parts)
    n = a.shadow.ndim
    return m.structural(lambda x: x.transpose((*order, *range(n, x.ndim))).reshape(sizes + x.shape[n:]), a)


def reshaped(m: Machine, a: Value, shape: tuple[int, ...]) -> Value:
    """The same elements in another shape."""
    n = a.shadow.ndim
    return m.structural(lambda x: x.reshape(shape + x.shape[n:]), a)


# --- convolutions -----------------------------------------------------------------------------------------------------


@rule("conv_general_dilated")
def _convolution(m: Machine, parameters: Parameters, lhs: Value, rhs: Value) -> Value:
    """The input's patches, as a matrix for each group, times the kernel."""
    numbers, n = parameters["dimension_numbers"], lhs.shadow.ndim
    groups, batch_groups = parameters["feature_group_count"], parameters["batch_group_count"]
    x, kernel = (_transposed(m, v, spec) for v, spec in ((lhs, numbers.lhs_spec), (rhs, numbers.rhs_spec)))
    batch, features = x.shape[:2]
    outputs, inputs, *window = kernel.shape
    at, inside = _patches(x.shape[2:], window, parameters)
    spatial, taps = at.shape[: n - 2], int(np.prod(window))
    # Patches lie as (batch groups, batch, groups, inputs, outputs' positions, taps).
    shape = (batch_groups, batch // batch_groups, groups, features // groups)
    flat = reshaped(m, x, (*shape, int(np.prod(x.shape[2:]))))
    patches = _gathered(m, flat, at.reshape(-1, taps), inside.reshape(-1, taps))
    count = max(groups, batch_groups)
    left = _arranged(m, patches, ((0, 2), (1, 4), (3, 5)))
    right = _arranged(m, reshaped(m, kernel, (count, outputs // count, inputs * taps)), ((0,), (2,), (1,)))
    product = matmul(m, left, right)  # (groups, batch * positions, outputs of a group)
    product = reshaped(m, product, (count, batch // batch_groups, *spatial, outputs // count))
    order = (1, 0, n, *range(2, n))
    product = m.structural(lambda v: v.transpose((*order, *range(n + 1, v.ndim))), product)
    product = reshaped(m, product, (batch // batch_groups, outputs, *spatial))
    back = np.argsort(numbers.out_spec)
    return m.structural(lambda v: v.transpose((*back, *range(n, v.ndim))), product)


def _transposed(m: Machine, a: Value, order: tuple[int, ...]) -> Value:
    return m.structural(lambda v: v.transpose((*order, *range(len(order), v.ndim))), a)


def _patches(sizes: tuple[int, ...], window: list[int], parameters: Parameters) -> tuple[np.ndarray, np.ndarray]:
    """For each output position and tap, which element of the flat image it reads, and whether there is one."""
    at, inside = np.zeros((), int), np.ones((), bool)
    n = len(sizes)
    keys = ("window_strides", "padding", "lhs_dilation", "rhs_dilation")
    for d, (size, taps, stride, (low, high), spread, dilation) in enumerate(
        zip(sizes, window, *(parameters[key] for key in keys), strict=True)
    ):
        padded = low + high + max((size - 1) * spread + 1, 0) * (size > 0)
        reach = (taps - 1) * dilation + 1 if taps else 0
        count = max((padded - reach) // stride + 1, 0)
        position = np.arange(count)[:, None] * stride + np.arange(taps) * dilation - low
        source = position // spread
        there = (position % spread == 0) & (source >= 0) & (source < size)
        shape = [1] * (2 * n)
        shape[d], shape[n + d] = count, taps
        at = at * size + np.where(there, source, 0).reshape(shape)
        inside = inside & there.reshape(shape)
    shape = np.broadcast_shapes(at.shape, inside.shape)
    return np.broadcast_to(at, shape), np.broadcast_to(inside, shape)


def _gathered(m: Machine, a: Value, at: np.ndarray, inside: np.ndarray, fill: float = 0.0) -> Value:
    """Elements of the last axis at these places; a fill where there is none."""
    n = a.shadow.ndim
    if not a.shape[-1]:
        shape = (*a.shape[:-1], *at.shape)
        return m.constant(np.full(shape, fill)) if a.field is not None else m.exact(np.zeros(shape, a.shadow.dtype))

    def of(x: np.ndarray) -> np.ndarray:
        before = (slice(None),) * (n - 1)
        return x[(*before, at)]

    gathered = m.structural(of, a)
    if inside.all():
        return gathered
    blank = m.constant(np.asarray(fill)) if a.field is not None else m.exact(np.asarray(fill).astype(a.shadow.dtype))
    return choose(m, np.broadcast_to(inside, gathered.shape), gathered, blank)


# --- windows ----------------------------------------------------------------------------------------------------------


def _windows(a: Value, parameters: Parameters) -> tuple[np.ndarray, np.ndarray, tuple[int, ...]]:
    n = a.shadow.ndim
    ones = (1,) * n
    lax_names = {
        "window_strides": parameters["window_strides"],
        "padding": parameters["padding"],
        "lhs_dilation": parameters.get("base_dilation", ones),
        "rhs_dilation": parameters.get("window_dilation", ones),
    }
    window = list(parameters["window_dimensions"])
    at, inside = _patches(a.shape, window, lax_names)
    shape, taps = at.shape[:n], int(np.prod(window))
    return at.reshape(-1, taps), inside.reshape(-1, taps), shape


def _in_windows(m: Machine, a: Value, parameters: Parameters, fill: float) -> tuple[Value, np.ndarray, tuple[int, ...]]:
    at, inside, shape = _windows(a, parameters)
    return _gathered(m, reshaped(m, a, (a.shadow.size,)), at, inside, fill), at, shape


@rule("reduce_window_sum")
def _window_sum(m: Machine, parameters: Parameters, a: Value) -> Value:
    windows, _, shape = _in_windows(m, a, parameters, 0.0)
    return reshaped(m, total(m, windows, (1,)), shape)


def _enter_window_extreme(name: str, fill: float) -> None:
    @rule(name)
    def reduced(m: Machine, parameters: Parameters, a: Value) -> Value:
        if a.field is None:
            raise Undecided(f"{name} of integers")
        windows, _, shape = _in_windows(m, a, parameters, fill)
        return reshaped(m, pick(m, windows, extreme(m, windows, 1, name), 1), shape)


_enter_window_extreme("reduce_window_max", -np.inf)
_enter_window_extreme("reduce_window_min", np.inf)


def _selected(m: Machine, a: Value, parameters: Parameters, name: str) -> tuple[np.ndarray, tuple[int, ...]]:
    """Which element of the flat array each window selects: the first of the largest, or smallest."""
    largest = str(getattr(parameters["select_prim"], "name", parameters["select_prim"])) in ("ge", "gt")
    fill, kind = (-np.inf, f"{name}_max") if largest else (np.inf, f"{name}_min")
    windows, at, shape = _in_windows(m, a, parameters, fill)
    chosen = extreme(m, windows, 1, kind)
    return np.take_along_axis(at, chosen, 1)[:, 0], shape


@rule("select_and_scatter_add")
def _select_and_scatter_add(m: Machine, parameters: Parameters, source: Value, operand: Value) -> Value:
    at, _ = _selected(m, operand, parameters, "select_and_scatter_add")
    zeros = m.constant(np.zeros(operand.shadow.size))
    return reshaped(m, added_at(m, zeros, at, reshaped(m, source, (len(at),))), operand.shape)


@rule("select_and_gather_add")
def _select_and_gather_add(m: Machine, parameters: Parameters, tangents: Value, operand: Value) -> Value:
    at, shape = _selected(m, operand, parameters, "select_and_gather_add")
    flat = reshaped(m, tangents, (tangents.shadow.size,))
    return reshaped(m, m.structural(lambda x: x[at], flat), shape)


def added_at(m: Machine, a: Value, at: np.ndarray, updates: Value) -> Value:
    """A flat array with updates added at these places."""
    shadow = np.array(a.shadow)
    np.add.at(shadow, at, updates.shadow)
    if a.field is None:
        return m.exact(shadow)
    came = [Value(shadow, None, a.special)]
    if updates.special is not None:
        touched = np.zeros(shadow.shape, bool)
        touched[at[updates.special]] = True
        came.append(Value(shadow, None, touched))
    count = int(np.bincount(at).max(initial=0)) + 1
    degree = degree_of_total((max(a.degree[0], updates.degree[0]), max(a.degree[1], updates.degree[1])), count)
    return m.result(shadow, m.domain.add_at(a.field, at, updates.field), came, degree)
