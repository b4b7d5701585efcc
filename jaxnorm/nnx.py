"""flax.nnx models on these rules: `jaxnorm.nnx.hand_rules(model)`, in place.

A layer's class becomes one derived from it that computes by this library's functions. Its attributes stay what they
are, and so do `nnx.state`, what an optimizer holds, and checkpoints; the graph definition of `nnx.split` names the new
class, so that `nnx.jit` compiles again.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn.dtypes import promote_dtype

from jaxnorm import _flax
from jaxnorm._cotangents import cast
from jaxnorm._models import NOT_HERE, NoEqual, Report, own_class

__all__ = ["Replaced", "hand_rules"]

RULES: Mapping[type[nnx.Module], Callable[..., jax.Array]] = {
    nnx.Linear: _flax.dense,
    nnx.LinearGeneral: _flax.dense_general,
    nnx.Einsum: _flax.einsum,
    nnx.Conv: _flax.conv,
    nnx.ConvTranspose: _flax.conv_transpose,
    nnx.BatchNorm: _flax.batch_norm,
    nnx.LayerNorm: _flax.layer_norm,
    nnx.RMSNorm: _flax.rms_norm,
    nnx.GroupNorm: _flax.group_norm,
    nnx.InstanceNorm: _flax.instance_norm,
}


class Replaced(Report):
    """A `Report` on a model that was changed in place, which can be changed back."""

    def __init__(self, model: nnx.Module) -> None:
        super().__init__()
        self._model = model

    def restore(self) -> None:
        """Gives every layer of the model its own class again."""
        for _, module in nnx.iter_modules(self._model):
            if type(module) in _OWN:
                object.__setattr__(module, "__class__", _OWN[type(module)])


def hand_rules(model: nnx.Module) -> Replaced:
    """Lets nnx's norms, convolutions and dense layers in a model compute by this library's rules, in place.

    The layers are `Linear`, `LinearGeneral`, `Einsum`, `Conv`, `ConvTranspose`, `BatchNorm`, `LayerNorm`, `RMSNorm`,
    `GroupNorm` and `InstanceNorm`, where they are nnx's own classes and not classes derived from them. Parameters,
    statistics and the result's dtype are the layer's; each stays an instance of its nnx class.

    Args:
      model: the module, changed in place; a single layer is one too. A second call changes nothing.

    Returns:
      `Replaced`: `replaced` and `kept` by the layers' paths, and `restore()`, which undoes it. A call whose arguments
      have no equal here (complex numbers, a mask with `axis_name`, `out_sharding`) runs nnx's code.

    Gradient:
      That of `jaxnorm`'s functions. Running statistics carry none.

    Raises:
      TypeError: `model` is not an nnx module.

    Example:
      >>> from flax import nnx
      >>> import jaxnorm.nnx
      >>> rngs = nnx.Rngs(0)
      >>> model = nnx.Sequential(nnx.Linear(3, 4, rngs=rngs), nnx.LayerNorm(4, rngs=rngs))
      >>> print(jaxnorm.nnx.hand_rules(model))
      2 layers computed by jaxnorm, 0 by their own code
        layers.0: Linear
        layers.1: LayerNorm

    References:
      flax's nnx, https://flax.readthedocs.io.
    """
    if not isinstance(model, nnx.Module):
        raise TypeError(f"model must be an nnx.Module, got {type(model).__name__}")
    report = Replaced(model)
    for path, module in nnx.iter_modules(model):
        cls = _OWN.get(type(module), type(module))
        compute = RULES.get(cls)
        reason = own_class(module, RULES) if compute is None else _flax.without_equal(compute, module, promote_dtype)
        if compute is None and reason is None:
            continue
        if reason is None:
            object.__setattr__(module, "__class__", _HAND[cls])
        report.add(".".join(map(str, path)) or cls.__name__, cls, reason)
    return report


class _Variables:
    """The variables of a module, which are its attributes."""

    def __init__(self, module: Any) -> None:
        self._module = module

    def parameter(self, name: str, shape: tuple[int, ...]) -> Any:
        """A parameter, if the module has one of this name."""
        variable = getattr(self._module, name)
        if variable is None:
            return None
        value = variable[...]
        if name == "kernel" and jnp.shape(value) != shape:
            raise NoEqual(f"{name} has shape {jnp.shape(value)}, not {shape}")
        return jnp.reshape(value, shape)  # the ones in the shape of an einsum's bias are the caller's choice

    def statistics(self) -> tuple[Any, Any]:
        """The running mean and variance."""
        return self._module.mean[...], self._module.var[...]

    def update(self, mean: jax.Array, var: jax.Array) -> None:
        """Sets them; they keep their dtype."""
        for variable, value in ((self._module.mean, mean), (self._module.var, var)):
            variable[...] = cast(value, variable[...].dtype)

    def chosen(self, name: str, argument: Any) -> Any:
        """The option: the call's, or else the constructor's."""
        value = getattr(self._module, name) if argument is None else argument
        if value is None:
            raise NoEqual(f"{name} is not given")
        return value


def _hand(cls: Any) -> Any:
    """The class derived from a layer's whose calls go to its rule."""
    compute, own = RULES[cls], vars(cls)["__call__"]

    def __call__(self, *args: Any, **kwargs: Any) -> jax.Array:
        try:
            return compute(self, _Variables(self), *args, **kwargs)
        except NOT_HERE:
            return own(self, *args, **kwargs)

    members = {
        "__call__": __call__,
        "__doc__": f"`{cls.__name__}`, computed by jaxnorm.",
        "__module__": __name__,
        "__qualname__": cls.__name__,
    }
    return type(cls)(cls.__name__, (cls,), members)


_HAND = {cls: _hand(cls) for cls in RULES}
_OWN = {hand: cls for cls, hand in _HAND.items()}
globals().update({cls.__name__: hand for cls, hand in _HAND.items()})  # where a pickled layer finds its class
