"""flax.linen models on these rules: `with jaxnorm.linen.hand_rules(): model.apply(...)`.

The layers are intercepted by linen's own `intercept_methods`; the model, its variables and its checkpoints stay what
they are.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import meta
from flax.linen.dtypes import promote_dtype

from jaxnorm import _flax
from jaxnorm._models import NOT_HERE, NoEqual, Report, in_effect, own_class

__all__ = ["Report", "hand_rules"]

RULES: Mapping[type, Callable[..., jax.Array]] = {
    nn.Dense: _flax.dense,
    nn.DenseGeneral: _flax.dense_general,
    nn.Einsum: _flax.einsum,
    nn.Conv: _flax.conv,
    nn.ConvTranspose: _flax.conv_transpose,
    nn.BatchNorm: _flax.batch_norm,
    nn.LayerNorm: _flax.layer_norm,
    nn.RMSNorm: _flax.rms_norm,
    nn.GroupNorm: _flax.group_norm,
    nn.InstanceNorm: _flax.instance_norm,
}


@contextlib.contextmanager
def hand_rules() -> Iterator[Report]:
    """Computes linen's norms, convolutions and dense layers by this library's rules, within the context.

    The layers are `Dense`, `DenseGeneral`, `Einsum`, `Conv`, `ConvTranspose`, `BatchNorm`, `LayerNorm`, `RMSNorm`,
    `GroupNorm` and `InstanceNorm`, where they are linen's own classes and not classes derived from them. Parameters,
    statistics and the result's dtype are the layer's. `init` runs linen's code, so that the variables are the same.

    What counts is where the model is traced: a function that `jax.jit` has compiled outside is compiled again within,
    and the other way round. The context belongs to the thread.

    Returns:
      A context manager. It yields a `Report`: `replaced` and `kept` by the layers' names, filled as they are traced.

    Gradient:
      That of `jaxnorm`'s functions. Running statistics carry none, in either mode.

    Example:
      >>> import flax.linen as nn
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import jaxnorm.linen
      >>> model = nn.Sequential([nn.Dense(4), nn.LayerNorm()])
      >>> variables = model.init(jax.random.key(0), jnp.ones((2, 3)))
      >>> with jaxnorm.linen.hand_rules() as report:
      ...     y = model.apply(variables, jnp.ones((2, 3)))
      >>> print(report)
      2 layers computed by jaxnorm, 0 by their own code
        layers_0: Dense
        layers_1: LayerNorm

    References:
      flax's `intercept_methods`, https://flax.readthedocs.io.
    """
    report = Report()

    def interceptor(own: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
        module = context.module
        if context.method_name != "__call__" or not isinstance(module, tuple(RULES)) or module.is_initializing():
            return own(*args, **kwargs)
        name, cls = "/".join(module.path) or type(module).__name__, type(module)
        if cls not in RULES:
            y = own(*args, **kwargs)
            if name not in report.replaced:  # a layer under `nn.remat` and its kin calls linen's own class
                report.add(name, cls, own_class(module, RULES))
            return y
        try:
            y = _computed(RULES[cls], module, *args, **kwargs)
        except NOT_HERE as error:
            report.add(name, cls, str(error))
            return own(*args, **kwargs)
        report.add(name, cls, None)
        return y

    with nn.intercept_methods(interceptor), in_effect(True):
        yield report


def _computed(compute: Callable[..., jax.Array], module: nn.Module, *args: Any, **kwargs: Any) -> jax.Array:
    """What a layer's call returns, by its rule."""
    reason = _flax.without_equal(compute, module, promote_dtype)
    if reason is not None:
        raise NoEqual(reason)
    return compute(module, _Variables(module), *args, **kwargs)


class _Variables:
    """The variables of a bound module. Reading them so reserves no name: the module's own code can still run."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module

    def parameter(self, name: str, shape: tuple[int, ...]) -> Any:
        """A parameter, if the module uses one of this name."""
        if not getattr(self._module, f"use_{name}", True):
            return None
        value = self._read("params", name)
        if jnp.shape(value) != shape:
            raise NoEqual(f"{name} has shape {jnp.shape(value)}, not {shape}")
        return value

    def statistics(self) -> tuple[Any, Any]:
        """The running mean and variance."""
        return self._read("batch_stats", "mean"), self._read("batch_stats", "var")

    def update(self, mean: jax.Array, var: jax.Array) -> None:
        """Sets them, in the box of metadata that they may lie in."""
        for name, value in (("mean", mean), ("var", var)):
            boxed = self._module.get_variable("batch_stats", name)
            self._module.put_variable("batch_stats", name, meta.replace_boxed(boxed, value))

    def chosen(self, name: str, argument: Any) -> Any:
        """The option, which linen takes from one place only."""
        return nn.merge_param(name, getattr(self._module, name), argument)

    def _read(self, collection: str, name: str) -> Any:
        if not self._module.has_variable(collection, name):
            raise NoEqual(f"there is no {name} in {collection}")
        return meta.unbox(self._module.get_variable(collection, name))
