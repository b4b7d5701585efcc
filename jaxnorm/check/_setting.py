"""Where a check ran, and at which precision products were taken."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax


@contextmanager
def exact_products() -> Iterator[str]:
    """Takes float32 products at the highest precision, unless the caller chose another; yields the setting in words.

    Accelerators multiply float32 in TF32 or bfloat16 otherwise, which would be taken for the rule's own error.
    """
    chosen = getattr(jax.config, "jax_default_matmul_precision")  # noqa: B009
    with jax.default_matmul_precision(chosen or "highest"):
        device = f"{jax.default_backend()} ({jax.devices()[0].device_kind})"
        whose = "as jax_default_matmul_precision says" if chosen else "forced"
        yield f"jax {jax.__version__}, {device}; products at precision {chosen or 'highest'!r}, {whose}"


def hashable(fun: Callable[..., Any]) -> Callable[..., Any]:
    """Programs are kept by the function that they are of; a module that holds arrays has no hash."""
    try:
        hash(fun)
    except TypeError:
        return lambda *args: fun(*args)
    return fun
