"""What the doors to other libraries' models share: the report, arrays in a layer's dtype, convolution's axis orders."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp

from jaxnorm._cotangents import cast

# Whether a model is traced with these rules is part of the key under which `jax.jit` keeps what it has compiled.
in_effect = jax.make_user_context(default_value=False)


class NoEqual(ValueError):
    """An option or an argument of a layer that has no equal here: the layer's own code runs."""


# What a rule raises where it does not fit. The library's own code then runs, and raises where the call is wrong.
NOT_HERE = (ValueError, TypeError)


@dataclasses.dataclass
class Report:
    """Which layers are computed by these rules, and which keep their library's code.

    Attributes:
      replaced: the class of each layer that is computed here, by the layer's name.
      kept: why a layer keeps its own code, by the layer's name. A layer called more than once can be in both.
    """

    replaced: dict[str, str] = dataclasses.field(default_factory=dict)
    kept: dict[str, str] = dataclasses.field(default_factory=dict)

    def add(self, name: str, layer: type, reason: str | None) -> None:
        """Notes one layer, which keeps its own code if there is a reason."""
        if reason is None:
            self.replaced[name] = layer.__name__
        else:
            self.kept[name] = f"{layer.__name__}: {reason}"

    def __str__(self) -> str:
        lines = [f"{len(self.replaced)} layers computed by jaxnorm, {len(self.kept)} by their own code"]
        lines += [f"  {name}: {layer}" for name, layer in self.replaced.items()]
        lines += [f"  {name} keeps its own code ({reason})" for name, reason in self.kept.items()]
        return "\n".join(lines)


def own_class(layer: Any, classes: Iterable[type]) -> str | None:
    """Why a layer of a class derived from one of these keeps its own code; None if it is of no such class."""
    parent = next((cls for cls in classes if isinstance(layer, cls)), None)
    return None if parent is None else f"a class of its own, derived from {parent.__name__}"


def as_array(x: Any) -> jax.Array:
    """x as a JAX array. An array stays the one that it is: an eager copy of a tracer would be kept beside it."""
    return x if isinstance(x, jax.Array) else jnp.asarray(x)


def in_dtype(function: Callable[..., jax.Array], dtype: Any, x: jax.Array, *parameters: Any, **options: Any) -> Any:
    """`function(x, *parameters, **options)` of this output dtype, computed from x in no fewer digits than x has."""
    return cast(function(cast(x, jnp.promote_types(x.dtype, dtype)), *parameters, **options), dtype)


def result_dtype(*arrays: Any) -> Any:
    """The dtype of an operation between these arrays, of which any may be None."""
    return jnp.result_type(*(array for array in arrays if array is not None))


def axis_orders(space: int, kernel: str, channels_last: bool) -> tuple[str, str, str]:
    """`dimension_numbers` of a convolution; `kernel` writes its spatial axes as an asterisk: `"*IO"`."""
    axes = "DHW"[3 - space :]
    if not axes or space > 3:
        raise NoEqual(f"{space} spatial axes")
    of_x = f"N{axes}C" if channels_last else f"NC{axes}"
    return of_x, kernel.replace("*", axes), of_x
