"""The choice of a formulation by the platform that a program is compiled for."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax import lax

_forced: list[str] = []


def by_platform(*operands: Any, default: Callable[..., Any], **of_platform: Callable[..., Any]) -> Any:
    """`of_platform[name](*operands)` where the program is compiled for that platform, else `default(*operands)`."""
    if _forced:
        return of_platform.get(_forced[-1], default)(*operands)
    return lax.platform_dependent(*operands, default=default, **of_platform)


@contextlib.contextmanager
def forced(platform: str) -> Iterator[None]:
    """For tests: the formulations of this platform ("cpu", "tpu", or "cuda" for the rest) on every platform."""
    _forced.append(platform)
    try:
        yield
    finally:
        _forced.pop()


def for_several_processes() -> bool:
    """Whether several processes may compute on the default backend at once. Some accelerators belong to one alone."""
    return jax.default_backend() == "cpu"


def forced_platform() -> str | None:
    """The platform whose formulations are forced, which is part of a trace's key; None in use."""
    return _forced[-1] if _forced else None
