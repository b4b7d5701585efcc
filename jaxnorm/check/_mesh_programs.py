"""One function on a mesh, in every manner of sharing: under `shard_map`, and under `jit` on auto and explicit axes."""

import dataclasses
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxnorm.check._problem import Flat, Layout, Leaves
from jaxnorm.check._programs import vjp_at
from jaxnorm.check._quick import compiler_options

Specs = Sequence[Any]  # a PartitionSpec for each leaf
_GATHER = re.compile(r"= (\S+|\(.*?\)) all-gather(?:-start)?\(")
_ARRAY = re.compile(r"[a-z]\w*\[([\d,]*)\]")


def axes_of(spec: Any) -> list[str]:
    """The mesh axes that a spec names."""
    return [name for entry in spec for name in (entry if isinstance(entry, tuple) else (entry,)) if name is not None]


def broadcast_specs(specs: Any, tree: Any) -> list[Any]:
    """A spec for each leaf, from a pytree of them that is a prefix of the leaves' tree."""

    def is_spec(node: Any) -> bool:
        return isinstance(node, P) or node is None

    whole = jax.tree.map(lambda s, sub: jax.tree.map(lambda _: s or P(), sub), specs, tree, is_leaf=is_spec)
    return jax.tree.leaves(whole, is_leaf=lambda node: isinstance(node, P))


@dataclasses.dataclass(frozen=True)
class OnMesh:
    """A per-device function, its whole arguments, and where they lie."""

    flat: Flat
    layout: Layout
    mesh: Mesh
    specs: Specs  # of all leaves
    out_specs: tuple[Specs, Specs]  # of floating-point outputs and of the others

    def with_axes(self, kind: Any) -> Mesh:
        """The same mesh with axes of another type."""
        return Mesh(self.mesh.devices, self.mesh.axis_names, axis_types=(kind,) * len(self.mesh.axis_names))

    def others(self, spec: Any) -> tuple[str, ...]:
        """The mesh axes that a spec does not name: an array is the same on all devices along them."""
        return tuple(name for name in self.mesh.axis_names if name not in axes_of(spec))

    def count(self, names: Sequence[str]) -> int:
        """How many devices there are along these axes."""
        return math.prod(self.mesh.shape[name] for name in names)

    def shard_map(self, fun: Callable[..., Any], in_specs: Any, out_specs: Any, check_vma: bool) -> Callable[..., Any]:
        """The per-device function on whole arrays."""
        mesh = self.with_axes(AxisType.Auto)
        return jax.shard_map(fun, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=check_vma)

    def local_outputs(self, fun: Callable[..., Any], leaves: Leaves) -> Any:
        """Shapes of what each device returns."""
        return jax.eval_shape(self.shard_map(fun, (list(self.specs),), P(), False), leaves)

    def placed(self, arrays: Leaves, specs: Specs, mesh: Mesh) -> Leaves:
        """Arrays where their specs say."""
        return [jax.device_put(a, NamedSharding(mesh, s)) for a, s in zip(arrays, specs, strict=True)]


def taken_outside(m: OnMesh, check_vma: bool) -> Callable[..., Any]:
    """The gradient of the mapped function."""
    mapped = m.shard_map(m.flat, (list(m.specs),), tuple(map(list, m.out_specs)), check_vma)
    return lambda leaves, g: vjp_at(m.layout, mapped, leaves, g)


def taken_inside(m: OnMesh, check_vma: bool) -> Callable[..., Any]:
    """The gradient on each device. Without vma, it is this device's part, and every replica's value is returned."""
    moving = m.layout.pick(m.specs)

    def device(leaves: Leaves, g: Leaves) -> Any:
        if check_vma:
            return vjp_at(m.layout, m.flat, leaves, g)
        # Replicas of an output count together, not each.
        parts = [c / m.count(m.others(s)) for c, s in zip(g, m.out_specs[0], strict=True)]
        floats, others, cotangents = vjp_at(m.layout, m.flat, leaves, parts)
        sums = [jax.lax.psum(c, m.others(s)) if m.others(s) else c for c, s in zip(cotangents, moving, strict=True)]
        return [f[None] for f in floats], [o[None] for o in others], sums

    values = tuple(list(specs) if check_vma else [P(m.others(s) or None, *s) for s in specs] for specs in m.out_specs)
    return m.shard_map(device, (list(m.specs), list(m.out_specs[0])), (*values, moving), check_vma)


def compiled(m: OnMesh, run: Callable[..., Any], leaves: Leaves, g: Leaves) -> tuple[Any, str]:
    """The results on the mesh's auto axes, and the program."""
    mesh = m.with_axes(AxisType.Auto)
    args = m.placed(leaves, m.specs, mesh), m.placed(g, m.out_specs[0], mesh)
    program = jax.jit(run).lower(*args).compile(compiler_options=compiler_options())
    return jax.device_get(program(*args)), program.as_text() or ""


def on_auto_axes(m: OnMesh, leaves: Leaves, g: Leaves) -> tuple[Any, str]:
    """The function of whole arrays, which the compiler divides."""
    return compiled(m, lambda leaves, g: vjp_at(m.layout, m.flat, leaves, g), leaves, g)


def on_explicit_axes(m: OnMesh, leaves: Leaves, g: Leaves) -> tuple[Any, list[Any]]:
    """The same where types hold the sharding; and the cotangents' specs."""
    mesh = m.with_axes(AxisType.Explicit)
    with jax.set_mesh(mesh):
        leaves = m.placed(leaves, m.specs, mesh)
        outputs = jax.eval_shape(m.flat, leaves)[0]
        g = m.placed(g, [jax.typeof(o).sharding.spec if hasattr(o, "sharding") else P() for o in outputs], mesh)
        got = jax.jit(lambda leaves, g: vjp_at(m.layout, m.flat, leaves, g))(leaves, g)
        return jax.device_get(got), [jax.typeof(c).sharding.spec for c in got[2]]


def with_unequal_shards(m: OnMesh, leaves: Leaves, g: Leaves) -> Any:
    """The function of whole arrays whose sizes the mesh does not divide."""
    mesh = m.with_axes(AxisType.Auto)

    def run(leaves: Leaves, g: Leaves) -> Any:
        def constrain(arrays: Leaves, specs: Specs) -> Leaves:
            pairs = zip(arrays, specs, strict=True)
            return [jax.lax.with_sharding_constraint(a, NamedSharding(mesh, s)) for a, s in pairs]

        return vjp_at(m.layout, m.flat, constrain(leaves, m.specs), constrain(g, m.out_specs[0]))

    return jax.device_get(jax.jit(run)(leaves, g))


def trimmed(m: OnMesh, leaves: Leaves) -> Leaves | None:
    """The leaves with one row less along every divided axis; None if there is nothing to take."""

    def trim(leaf: Any, spec: Any) -> Any:
        cut = [slice(None, -1) if entry is not None else slice(None) for entry in spec]
        return leaf[tuple(cut)] if cut else leaf

    found = [trim(leaf, spec) for leaf, spec in zip(leaves, m.specs, strict=True)]
    divided = any(axes_of(spec) for spec in m.specs)
    return found if divided and all(np.size(a) or not np.size(b) for a, b in zip(found, leaves, strict=True)) else None


def gathers(program: str, at_least: int) -> list[int]:
    """How many elements each all-gather of a compiled program makes, of those that make so many."""
    sizes = [
        max((math.prod(map(int, filter(None, shape.split(",")))) for shape in _ARRAY.findall(result)), default=0)
        for result in _GATHER.findall(program)
    ]
    return [size for size in sizes if size >= at_least]


def random_cotangents(outputs: Leaves, seed: int) -> Leaves:
    """Random numbers of the outputs' shapes."""
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.normal(size=o.shape), o.dtype) for o in outputs]
