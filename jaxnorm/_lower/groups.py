"""Which platform gets which groups."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
from jax import lax

from jaxnorm._lower.cpu import Cpu
from jaxnorm._lower.plain import Plain


def by_platform(function: Callable[..., Any], call: Any, *arrays: Any) -> Any:
    """`function(call, groups, *arrays)`, where `groups(call.layout, ...)` makes the groups of the platform."""
    if call.layout.axis_name is not None:
        # Each device has an array of its own, whose axes are not sharded and can be merged on every platform.
        return function(dataclasses.replace(call, layout=call.layout.merged), Plain, *arrays)
    return _chosen(function, call, *arrays)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _chosen(function: Callable[..., Any], call: Any, *arrays: Any) -> Any:
    return lax.platform_dependent(
        *arrays, cpu=functools.partial(function, call, Cpu), default=functools.partial(function, call, Plain)
    )
