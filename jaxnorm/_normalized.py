"""The normalization rule as a `jax.custom_vjp`, for every public norm: what is static, kept and checked."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
from jax.sharding import PartitionSpec

from jaxnorm._arguments import devices_along, static_bool, static_float, static_int
from jaxnorm._cotangents import cast, compute_dtype, cotangent_for, reshape
from jaxnorm._lower.groups import with_groups
from jaxnorm._lower.plain import Layout
from jaxnorm._rules import normalization
from jaxnorm._rules.normalization import Norm, Residuals
from jaxnorm._sharding import spec_of, with_shardings


@dataclasses.dataclass(frozen=True)
class Call:
    """The static side of one call: the equations' options, how the arguments lie, whether statistics are returned."""

    norm: Norm
    layout: Layout
    with_moments: bool = False


class Moments(NamedTuple):
    """The statistics of each group, for running averages; they carry no gradient."""

    mean: jax.Array
    squares: jax.Array  # the sum of the squared deviations from the mean
    n: jax.Array  # of each group, or one number for all


def normalized(
    call: Call,
    x: jax.Array,
    scale: jax.Array | None,
    bias: jax.Array | None,
    where: jax.Array | None,
    given: tuple[jax.Array, jax.Array] | None = None,
) -> tuple[jax.Array, Moments | None]:
    """The rule, after the checks that all norms share; `given` is a (mean, var) to use instead of the batch's."""
    norm, layout = call.norm, call.layout
    norm = Norm(
        epsilon=static_float("epsilon", norm.epsilon, minimum=0.0),
        use_mean=static_bool("use_mean", norm.use_mean),
        ddof=static_int("ddof", norm.ddof, minimum=0),
    )
    if norm.ddof and not norm.use_mean:
        raise ValueError(f"ddof must be 0 with use_mean=False (there is no centring to correct for), got {norm.ddof}")
    name = tuple(layout.axis_name) if isinstance(layout.axis_name, list) else layout.axis_name
    layout = dataclasses.replace(layout, axis_name=name)
    if given is None:
        check_ddof("ddof", norm.ddof, layout)
    rule = functools.partial(_normalize, dataclasses.replace(call, norm=norm, layout=layout))
    of_group = spec_of(x, without=layout.axes)  # only batch norm asks for moments, and its x is its own view
    moments = Moments._make([of_group, of_group, PartitionSpec(None)]) if call.with_moments else None
    return with_shardings(rule, (spec_of(x), moments), x, scale, bias, where, given)


def views(scale: Any, bias: Any, view: tuple[int, ...]) -> list[tuple[int, ...]]:
    """The views of the parameters, () for an absent one."""
    return [() if parameter is None else view for parameter in (scale, bias)]


def check_ddof(name: str, ddof: int, layout: Layout) -> None:
    """Raises if every group, over all devices, is known to be too small for the correction."""
    size = layout.group_size * devices_along(layout.axis_name)
    if 0 < size <= ddof:
        raise ValueError(f"{name} must be below the {size} elements of a group (x viewed as {layout.view}), got {ddof}")


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _normalize(call: Call, x, scale, bias, where, given) -> tuple[jax.Array, Moments | None]:
    return with_groups(_output, call, x, scale, bias, where, given)


def _normalize_fwd(call: Call, x, scale, bias, where, given) -> tuple[tuple[jax.Array, Moments | None], Residuals]:
    y, moments, (pivot, shift, rstd, n) = with_groups(_forward, call, x, scale, bias, where, given)
    return (y, moments), Residuals(x, pivot, shift, rstd, n, scale, bias, where)


def _normalize_bwd(call: Call, kept: Residuals, cotangents: tuple[jax.Array, Any]) -> tuple[Any, ...]:
    dx, dscale, dbias = with_groups(_backward, call, kept, cotangents[0])  # the moments carry no gradient
    return dx, dscale, dbias, None, None


_normalize.defvjp(_normalize_fwd, _normalize_bwd)


def _output(call: Call, platform, x, scale, bias, where, given) -> tuple[jax.Array, Moments | None]:
    """What `_forward` returns where nothing is differentiated, and so no statistic is kept."""
    if given is None and where is None and not call.with_moments and call.layout.axis_name is None:
        at_once = functools.partial(normalization.at_once, call.norm)
        y = platform(call.layout, x.dtype, compute_dtype(x, scale, bias)).at_once(
            at_once, call.norm.epsilon, x, scale, bias
        )
        if y is not None:
            return reshape(y, x.shape), None
    return _forward(call, platform, x, scale, bias, where, given)[:2]


def _forward(call: Call, platform, x, scale, bias, where, given) -> tuple[jax.Array, Moments | None, list[Any]]:
    dtype = compute_dtype(x, scale, bias, *(given or ()))
    groups = platform(call.layout, x.dtype, dtype)
    given = None if given is None else [groups.per_group(cast(statistic, dtype)) for statistic in given]
    y, found = normalization.forward(call.norm, groups, *groups.views(x, scale, bias, where), given=given)
    pivot, shift, rstd, n, squares = (_flat(statistic) for statistic in found)
    moments = Moments(cast(pivot, shift.dtype) + shift, squares, n) if call.with_moments else None
    return reshape(y, x.shape), moments, [pivot, shift, rstd, n]


def _backward(call: Call, platform, kept: Residuals, g: jax.Array) -> tuple[Any, Any, Any]:
    layout = call.layout
    groups = platform(layout, kept.x.dtype, kept.rstd.dtype, backward=True)
    x, scale, bias, where = groups.views(kept.x, kept.scale, kept.bias, kept.where)
    pivot, shift = (groups.per_group(s, absent=0.0) for s in (kept.pivot, kept.shift))
    viewed = Residuals(x, pivot, shift, groups.per_group(kept.rstd), groups.per_group(kept.n), scale, bias, where)
    dx, dscale, dbias = normalization.backward(call.norm, groups, viewed, reshape(g, x.shape))
    dx = cotangent_for(kept.x, reshape(dx, kept.x.shape))
    return dx, _cotangent_for(kept.scale, dscale), _cotangent_for(kept.bias, dbias)


def _cotangent_for(parameter: Any, value: Any) -> jax.Array | None:
    """A parameter's cotangent from one of the view's rank; None for an absent parameter."""
    return None if parameter is None else cotangent_for(parameter, value, value.shape)


def _flat(statistic: Any) -> Any:
    """A statistic in one axis, in which the view of every platform can hand it on; None for a neutral element."""
    return reshape(statistic, (statistic.size,)) if isinstance(statistic, jax.Array) else None
