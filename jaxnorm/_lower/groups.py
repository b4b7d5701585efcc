"""Which platform gets which groups."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax import lax

from jaxnorm._lower.cpu import Cpu
from jaxnorm._lower.gpu import Gpu
from jaxnorm._lower.plain import Plain

_forced: list[type[Plain]] = []


def by_platform(function: Callable[..., Any], call: Any, *arrays: Any) -> Any:
    """`function(call, groups, *arrays)`, where `groups(call.layout, ...)` makes the groups of the platform."""
    if call.layout.axis_name is not None:
        # Each device has an array of its own, whose axes are not sharded and can be merged on every platform.
        return function(dataclasses.replace(call, layout=call.layout.merged), Plain, *arrays)
    return _chosen(function, call, _forced[-1] if _forced else None, *arrays)


@contextlib.contextmanager
def forced(groups: type[Plain]) -> Iterator[None]:
    """For tests: these groups on every platform."""
    _forced.append(groups)
    try:
        yield
    finally:
        _forced.pop()


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _chosen(function: Callable[..., Any], call: Any, forced: type[Plain] | None, *arrays: Any) -> Any:
    if forced is not None:
        return function(call, forced, *arrays)
    cpu, tpu, default = (functools.partial(function, call, groups) for groups in (Cpu, Plain, Gpu))
    return lax.platform_dependent(*arrays, cpu=cpu, tpu=tpu, default=default)
