"""`check_mesh`: one device against many."""

import dataclasses
import itertools
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from jaxnorm.check import _mesh_programs as programs
from jaxnorm.check._derivative import name_of
from jaxnorm.check._inspect import rounds_to
from jaxnorm.check._mesh_programs import OnMesh, axes_of, broadcast_specs
from jaxnorm.check._problem import Layout, Leaves, flatten, is_float, shapes
from jaxnorm.check._programs import Failed, vjp_at
from jaxnorm.check._report import Report, Row, exactly, multiple, summarize
from jaxnorm.check._setting import exact_products

CHECKS = ("shard_map", "auto axes", "explicit axes", "unequal shards", "gathers")


def check_mesh(
    fun: Callable[..., Any],
    *args: Any,
    mesh: Mesh,
    in_specs: Any,
    out_specs: Any = None,
    reference: Callable[..., Any] | None = None,
    argnums: int | Sequence[int] | None = None,
    checks: Collection[str] | None = None,
    tolerance: float = 1e-10,
    seed: int = 0,
    name: str | None = None,
) -> Report:
    """Checks that `fun` on the devices of a mesh computes the values and gradients that one device does.

    ==================  ==============================================================================================
    check               what must hold, for a random cotangent of every output
    ==================  ==============================================================================================
    shard_map           with `check_vma` on and off, with the gradient taken inside and outside of `jax.shard_map`: the
                        reference's values and cotangents; without vma, on every replica
    auto axes           the same of `fun` as a function of whole arrays under `jit`, which the compiler divides
    explicit axes       the same on explicit axes; and each cotangent is sharded as its argument
    unequal shards      auto axes again, with one row less along each divided axis, so that the mesh does not divide it
    gathers             no program gathers an array as large as the largest divided argument
    ==================  ==============================================================================================

    `fun` is the function that runs on each device, inside of `jax.shard_map` with these specs, with collectives over
    the mesh's axis names where it needs them. `reference` is the function of the whole arrays on one device. The
    checks under `jit` call `fun` with whole arrays, so they need a `fun` without axis names; else they are left out,
    and the report says so.

    Inside of `shard_map` a gradient means what it means in JAX: with `check_vma=True` the sum over the devices for a
    replicated argument; with `False` this device's part, which is summed here, with each replica of an output taking
    its share of the cotangent.

    Args:
      fun: function of one device's parts of the arguments.
      *args: the whole arguments: arrays, or pytrees of them. Floats are taken in float64.
      mesh: any mesh of several devices; the type of its axes does not matter.
      in_specs: a `PartitionSpec` for each argument, or one for all; or pytrees of them, as `jax.shard_map` takes.
      out_specs: the same of the outputs; None finds them from the shapes of `fun`'s and the reference's outputs.
      reference: function of the whole arguments; None is `fun` itself, which then needs no axis name.
      argnums: the argument or arguments to differentiate; None is all.
      checks: names out of `shard_map`, `auto axes`, `explicit axes`, `unequal shards`, `gathers`; None is all, where
        gathers are reported and not judged.
      tolerance: of float64 comparisons, relative to the largest entry of each array.
      seed: of the random cotangents.
      name: of the report; None is the function's own.

    Returns:
      A `Report`. Where a gradient is a multiple of the right one by a number of devices, its note says of which axes.

    Raises:
      TypeError: an argument is no real array, or none is floating-point.
      ValueError: `mesh` has one device, `checks` are unknown, no out_specs can be found, or `fun` needs an axis name
        and there is no reference.
      Exception: whatever the reference raises for these arguments.

    Example:
      >>> import jax
      >>> import numpy as np
      >>> import jaxnorm as jn
      >>> from jax.sharding import PartitionSpec as P
      >>> from jaxnorm.check import check_mesh
      >>> if len(jax.devices()) > 1:
      ...     mesh = jax.make_mesh((2,), ("batch",), devices=jax.devices()[:2])
      ...     x, scale = np.arange(8.0).reshape(2, 4), np.ones(4)
      ...     check_mesh(jn.rms_norm, x, scale, mesh=mesh, in_specs=(P("batch"), P())).raise_if_failed()

    References:
      https://docs.jax.dev/en/latest/notebooks/shard_map.html (shard_map, and what `check_vma` tracks).
    """
    chosen = frozenset(CHECKS[:-1] if checks is None else checks)
    if unknown := sorted(chosen - set(CHECKS)):
        raise ValueError(f"checks must be among {', '.join(CHECKS)}, got {unknown[0]!r}")
    if mesh.size < 2:
        raise ValueError(f"mesh must have several devices, got {mesh.size}")
    with jax.enable_x64(True), exact_products() as setting:
        problem = _problem(fun, reference, args, argnums, mesh, in_specs, out_specs, tolerance, seed)
        rows = list(problem.rows(chosen))
    return Report(name or name_of(fun), summarize(rows), setting=setting)


@dataclasses.dataclass(frozen=True)
class _Problem:
    """Function and reference on a mesh, and what one device makes of the arguments."""

    ours: OnMesh
    plain: OnMesh  # the reference as a function of whole arrays
    names: tuple[Sequence[str], Sequence[str], Sequence[str]]  # of floating outputs, other outputs, cotangents
    leaves: Leaves
    incoming: Leaves
    wanted: Any
    tolerance: float
    unbound: str  # why fun cannot be called with whole arrays; "" if it can

    def rows(self, chosen: frozenset[str]) -> Iterator[Row]:
        found: dict[str, str] = {}  # programs
        for check_vma, (place, run) in itertools.product(
            (True, False), (("outside", programs.taken_outside), ("inside", programs.taken_inside))
        ):
            if "shard_map" in chosen:
                check = f"shard_map, check_vma {'on' if check_vma else 'off'}, gradient {place}"
                yield from self._on_auto(
                    check,
                    lambda m, r=run, v=check_vma: programs.compiled(m, r(m, v), self.leaves, self.incoming),
                    found,
                )
        whole = [check for check in ("auto axes", "explicit axes", "unequal shards") if check in chosen]
        if self.unbound:
            for check in whole:
                yield Row(check, "fun", True, note=f"left out: fun takes no whole arrays, it {self.unbound}")
        else:
            for check in whole:
                yield from self._whole(check, found)
        yield from self._gathers(found, judged="gathers" in chosen)

    def _whole(self, check: str, found: dict[str, str]) -> Iterator[Row]:
        if check == "auto axes":
            yield from self._on_auto(check, lambda m: programs.on_auto_axes(m, self.leaves, self.incoming), found)
        elif check == "explicit axes":
            yield from self._on_explicit_axes()
        elif (leaves := programs.trimmed(self.ours, self.leaves)) is None:
            yield Row(check, "fun", True, note="left out: no argument is divided, or one has a single row")
        else:
            yield from self._unequal(leaves)

    def _on_auto(self, check: str, run: Callable[[OnMesh], tuple[Any, str]], found: dict[str, str]) -> Iterator[Row]:
        try:
            got, found[check] = run(self.ours)
        except Exception as error:
            yield Row(check, ", ".join(self.names[2]), False, note=f"fun {_explained(error)}")
            return
        rows = list(self._compared(check, got, self.wanted))
        if check == "auto axes" and not all(row.ok for row in rows):
            rows = self._beside_plain(rows, check)
        yield from rows

    def _beside_plain(self, rows: list[Row], check: str) -> list[Row]:
        """Whether the plain reference is wrong there too, which is then the compiler's doing."""
        plain = self._compared(check, programs.on_auto_axes(self.plain, self.leaves, self.incoming)[0], self.wanted)
        wrong = {row.about for row in plain if not row.ok}
        verdict = {True: "the plain reference is wrong there too", False: "the plain reference is right there"}
        return [
            row if row.ok else dataclasses.replace(row, note=f"{row.note}; {verdict[row.about in wrong]}")
            for row in rows
        ]

    def _on_explicit_axes(self) -> Iterator[Row]:
        check = "explicit axes"
        try:
            got, specs = programs.on_explicit_axes(self.ours, self.leaves, self.incoming)
        except Exception as error:
            note = f"fun {Failed.by(error).text}"
            try:
                programs.on_explicit_axes(self.plain, self.leaves, self.incoming)
            except Exception:
                yield Row(check, "fun", True, note=f"left out: the reference raises there too; {note}")
            else:
                yield Row(check, ", ".join(self.names[2]), False, note=note)
            return
        yield from self._compared(check, got, self.wanted)
        for name, got_spec, spec in zip(self.names[2], specs, self.ours.layout.pick(self.ours.specs), strict=True):
            same = _entries(got_spec) == _entries(spec)
            note = "" if same else f"the cotangent is sharded as {got_spec}, the argument as {spec}"
            yield Row("sharding on explicit axes", name, same, note=note)

    def _unequal(self, leaves: Leaves) -> Iterator[Row]:
        check, one = "unequal shards", self.plain
        try:
            outputs = jax.eval_shape(one.flat, leaves)[0]
            g = programs.random_cotangents(outputs, 1)
            wanted = jax.device_get(jax.jit(lambda v, c: vjp_at(one.layout, one.flat, v, c))(leaves, g))
        except Exception as error:
            yield Row(check, "fun", True, note=f"left out: with one row less, the reference {Failed.by(error).text}")
            return
        try:
            got = programs.with_unequal_shards(self.ours, leaves, g)
        except Exception as error:
            yield Row(check, ", ".join(self.names[2]), False, note=f"fun {Failed.by(error).text}")
            return
        yield from self._compared(check, got, wanted)

    def _compared(self, check: str, got: Any, wanted: Any) -> Iterator[Row]:
        for names, left, right in zip(self.names, got, wanted, strict=True):
            for name, g, w in zip(names, left, right, strict=True):
                g, w = np.asarray(g), np.asarray(w)
                w = np.broadcast_to(w, g.shape) if g.ndim == w.ndim + 1 and g.shape[1:] == w.shape else w
                row = exactly(check, name, g, w, self.tolerance)
                yield row if row.ok else dataclasses.replace(row, note=self._meaning(row, g, w))

    def _meaning(self, row: Row, got: np.ndarray, wanted: np.ndarray) -> str:
        notes, mesh = [row.note], self.ours.mesh
        factor = multiple(got, wanted, 1e-6 * np.abs(wanted)) if got.shape == wanted.shape else None
        for size in range(1, len(mesh.axis_names) + 1) if factor else ():
            for names in itertools.combinations(mesh.axis_names, size):
                count = self.ours.count(names)
                if count > 1 and factor and abs(factor / count - 1) < 1e-6:
                    notes.append(f"summed once too often over {names}, {count} devices")
                elif count > 1 and factor and abs(factor * count - 1) < 1e-6:
                    notes.append(f"not summed over {names}, {count} devices, or divided by their number")
        return "; ".join(filter(None, notes))

    def _gathers(self, found: dict[str, str], judged: bool) -> Iterator[Row]:
        divided = [np.size(a) for a, s in zip(self.leaves, self.ours.specs, strict=True) if axes_of(s)]
        for check, program in found.items():
            if sizes := programs.gathers(program, max(divided, default=1)) if divided else []:
                note = f"{len(sizes)} all-gathers of up to {max(sizes):,} elements: as large as a divided argument"
                yield Row("gathers", check, not judged, note=note)


def _problem(
    fun: Any,
    reference: Any,
    args: Any,
    argnums: Any,
    mesh: Mesh,
    in_specs: Any,
    out_specs: Any,
    tolerance: float,
    seed: int,
) -> _Problem:
    layout, leaves = flatten(fun, args, argnums)
    each = (in_specs,) * len(args) if isinstance(in_specs, P) else tuple(in_specs or ())
    if len(each) != len(args):
        raise ValueError(f"in_specs must be one per argument, {len(args)}, got {in_specs}")
    specs = broadcast_specs(each, args)
    unbound = _unbound(layout, layout.flat(fun), leaves)
    if reference is None and unbound:
        raise ValueError(f"reference must be given, the function of whole arrays: fun {unbound}")
    flat = layout.flat(reference or fun)
    bare = OnMesh(layout.flat(fun), layout, mesh, specs, ((), ()))
    names, of_outputs = _outputs(bare, fun, flat, leaves, out_specs)
    ours = dataclasses.replace(bare, out_specs=of_outputs)
    g = programs.random_cotangents(jax.eval_shape(flat, shapes(leaves))[0], seed)
    wanted = jax.device_get(jax.jit(lambda v, c: vjp_at(layout, flat, v, c))(leaves, g))
    if _rounds(ours, leaves, g):
        tolerance = max(tolerance, 256 * float(jnp.finfo(jnp.float32).eps))
    plain = dataclasses.replace(ours, flat=flat)
    return _Problem(ours, plain, (*names, layout.moving_names), leaves, g, wanted, tolerance, unbound)


def _unbound(layout: Layout, flat: Any, leaves: Leaves) -> str:
    """Why a function, or its rule, cannot be called with whole arrays; "" if it can."""
    try:
        outputs = jax.eval_shape(flat, shapes(leaves))[0]
    except Exception as error:
        return _axis(error) or Failed.by(error).text
    try:
        jax.eval_shape(lambda v, g: vjp_at(layout, flat, v, g), shapes(leaves), outputs)
    except Exception as error:  # any other is a failure of the checks that run it
        return _axis(error)
    return ""


def _axis(error: Exception) -> str:
    first = (str(error).splitlines() or [""])[0]
    return f"needs an axis: {first}" if isinstance(error, NameError) and "axis" in first else ""


def _rounds(ours: OnMesh, leaves: Leaves, g: Leaves) -> bool:
    """Whether the function computes in float32 whatever its arguments."""
    try:
        return bool(rounds_to(programs.taken_outside(ours, False), leaves, g))
    except Exception:  # said where it is run
        return False


def _outputs(m: OnMesh, fun: Any, flat: Any, leaves: Leaves, out_specs: Any) -> tuple[Any, Any]:
    """Names and specs of the floating-point outputs and of the others."""
    tree = m.layout.tree
    local = m.local_outputs(lambda v: fun(*jax.tree.unflatten(tree, v)), leaves)
    paths = jax.tree_util.tree_flatten_with_path(local)[0]
    if out_specs is None:
        whole = jax.eval_shape(flat, shapes(leaves))
        mine = (
            [o for o in jax.tree.leaves(local) if is_float(o)],
            [o for o in jax.tree.leaves(local) if not is_float(o)],
        )
        if tuple(map(len, whole)) != tuple(map(len, mine)):
            raise ValueError(f"reference must return as many arrays as fun, {len(paths)}, got {sum(map(len, whole))}")
        specs = iter(
            [[_spec_of(m, a, b) for a, b in zip(*side, strict=True)] for side in zip(mine, whole, strict=True)]
        )
        found = tuple(specs)
    else:
        every = broadcast_specs(out_specs, local)
        pairs = list(zip(every, jax.tree.leaves(local), strict=True))
        found = [s for s, o in pairs if is_float(o)], [s for s, o in pairs if not is_float(o)]
    named = [(f"output{jax.tree_util.keystr(path)}", is_float(leaf)) for path, leaf in paths]
    return ([n for n, known in named if known], [n for n, known in named if not known]), found


def _spec_of(m: OnMesh, part: Any, whole: Any) -> Any:
    """The spec that makes a whole array of a device's part: along each axis the one entry of `in_specs` that fits."""
    entries = dict.fromkeys(e for spec in m.specs for e in spec if e is not None)
    found = []
    for of_part, of_whole in zip(part.shape, whole.shape, strict=len(part.shape) == len(whole.shape)):
        fits = [e for e in entries if of_part * m.count(axes_of((e,))) == of_whole and e not in found]
        if of_part == of_whole:
            found.append(None)
        elif len(fits) == 1:
            found.append(fits[0])
        else:
            raise ValueError(f"out_specs must be given: no one spec makes {whole.shape} of a device's {part.shape}")
    return P(*found)


def _entries(spec: Any) -> list[Any]:
    """A spec without what says nothing."""
    entries = [e[0] if isinstance(e, tuple) and len(e) == 1 else e or None for e in spec]
    while entries and entries[-1] is None:
        entries.pop()
    return entries


def _explained(error: Exception) -> str:
    text = Failed.by(error).text
    if "manual axis types" in text or "varying" in text or "vma" in text:
        return f"{text}; a cotangent must be summed (psum) over the axes that its argument does not vary over"
    return text
