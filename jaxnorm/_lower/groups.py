"""Which platform gets which groups."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax

from jaxnorm._lower.cpu import Cpu
from jaxnorm._lower.gpu import Gpu
from jaxnorm._lower.plain import Plain
from jaxnorm._lower.platforms import by_platform, forced_platform


def with_groups(function: Callable[..., Any], call: Any, *arrays: Any) -> Any:
    """`function(call, groups, *arrays)`, where `groups(call.layout, ...)` makes the groups of the platform."""
    if call.layout.axis_name is not None:
        # Each device has an array of its own, whose axes are not sharded and can be merged on every platform.
        return function(dataclasses.replace(call, layout=call.layout.merged), Plain, *arrays)
    return _chosen(function, call, forced_platform(), *arrays)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _chosen(function: Callable[..., Any], call: Any, forced: str | None, *arrays: Any) -> Any:
    """The choice; what is forced is an argument since JAX keeps what it has traced for these arguments."""
    del forced
    cpu, tpu, default = (functools.partial(function, call, groups) for groups in (Cpu, Plain, Gpu))
    return by_platform(*arrays, cpu=cpu, tpu=tpu, default=default)
