"""Runs every derivation of the notes and compares it with `jax.vjp` of plain code and with the library's rules.

Cotangents are random, arrays float64. A right derivation must agree to a relative error of 1e-10, per array the largest
difference over the largest entry; a mistaken one must be off by 1e-3 or more, and it is said why. Anything else ends in
exit status 1. Derivation and truth are compiled apart, so that the compiler cannot make one of the two.

With --exact `jaxnorm.check.prove` decides them too, in exact arithmetic and without a tolerance, but for the formula of
sizes, which is one of integers: a right derivation must be proven and a mistaken one refuted.

Then the three ways to write dscale that the second note weighs are timed in float32: compared first, then run in random
turns over all sizes. How a median grows with N and D is the slope of a straight line through the logarithms, over the
sizes measured, with all that a call costs.
"""

import argparse
import dataclasses
import functools
import json
import platform
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import derivation_notes as notes
import jax
import jax.numpy as jnp
import numpy as np
from common import png_path, positive_int, timed, writable
from derivation_notes import EPSILON, VECTORISATIONS
from jax import lax
from rich.console import Console
from rich.progress import track
from rich.table import Table

import jaxnorm as jn
from jaxnorm import reference
from jaxnorm.check import prove

NOTES = ("first", "second", "third", "fourth", "fifth")
RIGHT, WRONG = 1e-10, 1e-3  # the largest error of what is right, the least of what is mistaken


@dataclasses.dataclass(frozen=True)
class Derivation:
    """One row: a derivation, what it should equal, and the arrays that both are run on."""

    name: str
    equations: str  # the numbers of its formulas in docs/derivations/notes.md, whose first digit is the note's
    derive: Callable[..., Any]  # inputs to a tree of arrays
    truths: Sequence[Callable[..., Any]]  # each to a like tree
    inputs: Sequence[jax.Array]
    why: str = ""  # of a mistaken one: why it is wrong

    @property
    def first(self) -> tuple[int, int]:
        """The number of its first formula: of the note, and within it."""
        note, number = self.equations[1:].split(")")[0].split(".")
        return int(note), int(number)

    @property
    def note(self) -> str:
        """Which note it is from."""
        return NOTES[self.first[0] - 1]

    @property
    def right(self) -> bool:
        """Whether it should hold."""
        return not self.why

    def error(self) -> float:
        """The largest relative error over all arrays and truths."""
        derived = jax.jit(self.derive)(*self.inputs)
        found = [jax.tree.map(relative_error, derived, jax.jit(truth)(*self.inputs)) for truth in self.truths]
        return float(np.max(jax.tree.leaves(found)))  # unlike max(), NaN if one of them is

    def exact(self) -> str:
        """What exact arithmetic says: proven, refuted or undecided; nothing of what has no real arguments."""
        found = [prove(self.derive, *self.inputs, reference=truth).holds for truth in self.truths if self.inputs]
        return "refuted" if False in found else "undecided" if None in found else "proven" if found else ""


def relative_error(derived: jax.Array, truth: jax.Array) -> float:
    """The largest difference over the largest entry of the truth."""
    if derived.shape != truth.shape:
        raise ValueError(f"derived has shape {derived.shape}, and should have {truth.shape}")
    return float(np.max(np.abs(derived - truth)) / np.max(np.abs(truth)))


def verdict(error: float) -> str:
    """What an error says of a derivation."""
    return "right" if error <= RIGHT else "wrong" if error >= WRONG else "unclear"


def normal(seed: int, *shape: int) -> jax.Array:
    """Random numbers, the same in every run."""
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


# --- truths ---------------------------------------------------------------------------------------------------------


def vjp(function: Callable[..., Any], *primals_and_g: jax.Array) -> tuple[jax.Array, ...]:
    """The value and the cotangents of the primals, for the cotangent g that comes last."""
    *primals, g = primals_and_g
    y, backward = jax.vjp(function, *primals)
    return y, *backward(g)


def plain_and_library(call: Callable[..., Any]) -> list[Callable[..., Any]]:
    """`vjp` of call(library, ...) for the plain twins, which JAX differentiates, and for the library's own rules."""
    return [functools.partial(vjp, functools.partial(call, library)) for library in (reference, jn)]


def plain_gradients(*arguments: jax.Array, ddof: int = 0) -> tuple[jax.Array, ...]:
    """Batch norm's dx, dscale and dbias as JAX finds them in the plain forward pass."""
    return vjp(functools.partial(notes.plain_batch_norm, ddof=ddof), *arguments)[1:]


def library_gradients(*arguments: jax.Array, ddof: int = 0) -> tuple[jax.Array, ...]:
    """The same by the library's rule."""
    return vjp(lambda *a: jn.batch_norm(*a, training=True, epsilon=EPSILON, ddof=ddof)[0], *arguments)[1:]


def node_cotangents(x: jax.Array, scale: jax.Array, bias: jax.Array, g: jax.Array) -> notes.Nodes:
    """The cotangent of every node of batch norm's graph, as JAX finds them."""
    zeros = jax.tree.map(jnp.zeros_like, notes.standardized(x)[0])
    _, backward = jax.vjp(lambda taps: notes.plain_batch_norm(x, scale, bias, taps=taps), zeros)
    return backward(g)[0]


# --- the table ------------------------------------------------------------------------------------------------------


def derivations() -> list[Derivation]:
    """All rows in the order of their formulas; to be made and run in float64."""
    rows = [*batch_norm_rows(), *norm_rows(), *softmax_rows(), *cache_rows(), *convolution_rows()]
    return sorted(rows, key=lambda row: row.first)


def batch_norm_rows() -> list[Derivation]:
    """Batch norm's backward pass by every way that the notes take, then by every wrong turn."""
    inputs = 1 + 2 * normal(0, 8, 5), 1 + normal(1, 5) / 4, normal(2, 5), normal(3, 8, 5)  # x, scale, bias, g
    truths = plain_gradients, library_gradients
    # Made once, so that each is compiled once.
    true_dx = [[lambda *a, truth=truth, ddof=ddof: truth(*a, ddof=ddof)[0] for truth in truths] for ddof in (0, 1)]
    true_parameters = [lambda *a, truth=truth: truth(*a)[1:] for truth in truths]

    def dx(name: str, equations: str, derive: Callable[..., Any], why: str = "", ddof: int = 0) -> Derivation:
        return Derivation(name, equations, lambda x, scale, bias, g: derive(x, scale, g), true_dx[ddof], inputs, why)

    def dscale(equations: str, name: str) -> Derivation:
        def parameters(x, scale, bias, g):
            return VECTORISATIONS[name](g, notes.standardized(x)[0].x_hat), g.sum(0)

        return Derivation(f"dscale = {name}, dbias = sum(g)", equations, parameters, true_parameters, inputs)

    def own(x_hat: Callable[[jax.Array], jax.Array]) -> Callable[[jax.Array], jax.Array]:
        return lambda x: jnp.einsum("idid->id", jax.jacrev(x_hat)(x))

    normalized = (
        own(lambda x: notes.standardized(x)[0].x_hat),
        own(lambda x: jn.batch_norm(x, training=True, epsilon=EPSILON)[0]),
    )

    def dvar(name: str, equations: str, derive: Callable[..., Any], why: str = "") -> Derivation:
        def truth(*a: jax.Array) -> jax.Array:
            return node_cotangents(*a).var

        return Derivation(name, equations, lambda x, scale, bias, g: derive(x, scale, g), [truth], inputs, why)

    def square(x: jax.Array) -> jax.Array:
        return jnp.broadcast_to(notes.standardized(x)[0].var + EPSILON, x.shape)

    return [
        dvar("dvar, sample by sample", "(1.4)", notes.dvar_sample_by_sample),
        Derivation("dx_hat, dvar, dx', dmean, dx: node by node", "(2.1) to (2.5)",
                   lambda x, scale, bias, g: notes.node_by_node(x, scale, g),
                   [lambda *a, truth=truth: (node_cotangents(*a), truth(*a)[0]) for truth in truths], inputs),
        dx("dx by three ways, mean through var being 0", "(5.1), (5.2), (5.4), (5.6), (5.11), (5.13)",
           notes.by_three_ways),
        dx("dx by three ways, Bessel's m - 1", "(3.3), (3.4), (3.6) to (3.8)",
           functools.partial(notes.by_three_ways, ddof=1), ddof=1),
        dx("dx in closed form", "(5.17)", notes.closed_form),
        dx("dx in closed form, Bessel's m - 1", "(3.10)", notes.closed_form_bessel, ddof=1),
        dx("dx by the standard deviation", "(4.6), (4.7)", notes.by_standard_deviation),
        Derivation("each x_hat's derivative by its own x", "(4.8)", notes.own_derivative, normalized, inputs[:1]),
        dx("dx with the quotient rule, its sum kept", "(5.10)", notes.by_quotient_rule),
        *map(dscale, ("(2.6)", "(2.7)", "(5.7)"), VECTORISATIONS),
        dvar("dvar, its exponent on a root", "(1.3)", notes.dvar_with_exponent_on_a_root,
             "the derivative of (var + epsilon)^(-1/2) has the exponent -3/2; on the root it is half of that"),
        dx("dx with the quotient rule, its sum dropped", "(5.8)", notes.quotient_rule_without_sum,
           "mean moves sigma by -sum(x') / (m sigma) = 0; without the sum, each sample has a slope of its own"),
        dx("dx with the quotient rule's last line", "(5.9)", notes.quotient_rule_last_line,
           "the sum, then m, then one sigma of sigma^3 were lost: the result no longer has the dimension of 1 / x"),
        dx("dx, var by x with the factor -1/m", "(5.12)", notes.var_by_x_with_extra_factor,
           "x enters var directly (factor 1) and through mean (factor -1/m, summed 0): factors to add were multiplied"),
        dx("dx, mean through var without brackets", "(5.5)", notes.mean_through_var_without_brackets,
           "dvar (-2) (mean - m mean / m) is 0 and right; without the brackets nothing cancels"),
        dx("dx, dvar summed before it meets g", "(5.3)", notes.dvar_summed_too_early,
           "each sample's derivative must meet its own dx_hat; summed by themselves they are 0, and var's way is lost"),
        dx("dx, var's way with its sign lost", "(5.14)", notes.var_with_its_sign_lost,
           "dvar has -1/2, and the scan has 1/Z: x_hat shrinks as var grows; the note's next line has the minus"),
        dx("dx multiplied out, x_hat r of var's way lost", "(5.15)", notes.multiplied_out_without_x_hat,
           "of the second term 1/m and of the third x_hat_i r were lost; the note's last line has both"),
        dx("dx multiplied out, one r of var's way lost", "(5.16)", notes.multiplied_out_without_r,
           "of the second term 1/m and of the third one of three r were lost; the note's last line has both"),
        Derivation("sigma^2 for each sample, without its sum", "(4.9)", notes.square_without_sum, [square], inputs[:1],
                   "the variance is one number for all samples, the sum of these, to which epsilon is added"),
        dx("dx, mean through var with g in its sum", "(3.5)", notes.mean_through_var_by_cotangent,
           "the note's 0 is right, not its reason: g cannot leave sum(x' g), which is not 0; the true term is dvar's",
           ddof=1),
        dx("dx, g_i for g_j in the sum over j", "(3.9)", notes.bessel_with_wrong_index,
           "with g_i outside, the sum of x'_j is 0 and var's way is lost; the note's next line has g_j", ddof=1),
    ]  # fmt: skip


def norm_rows() -> list[Derivation]:
    """The other norms as batch norm of the same numbers in other places: value, dx, dscale, dbias."""

    def row(name: str, shape: tuple[int, ...], columns: Callable[..., Any], norm: Callable[..., Any]) -> Derivation:
        inputs = normal(0, *shape), 1 + normal(1, 4) / 4, normal(2, 4), normal(3, *shape)
        derive = functools.partial(notes.as_batch_norm, columns)
        return Derivation(f"{name} norm as batch norm", "(2.8)", derive, plain_and_library(norm), inputs)

    images = {"feature_axis": 1, "epsilon": EPSILON}  # N C H W
    return [
        row("layer", (6, 4), lambda x: x.T, lambda lib, *a: lib.layer_norm(*a, epsilon=EPSILON)),
        row("group", (3, 4, 5, 2), lambda x: x.reshape(3 * 2, -1).T,
            lambda lib, *a: lib.group_norm(*a, num_groups=2, **images)),
        row("instance", (3, 4, 5, 2), lambda x: x.reshape(3 * 4, -1).T,
            lambda lib, *a: lib.instance_norm(*a, **images)),
        row("spatial batch", (3, 4, 5, 2), lambda x: x.transpose(0, 2, 3, 1).reshape(-1, 4),
            lambda lib, *a: lib.batch_norm(*a, training=True, **images)[0]),
    ]  # fmt: skip


def softmax_rows() -> list[Derivation]:
    """Softmax's Jacobian, and the two cases of its cross-entropy."""
    logits, labels = 3 * normal(0, 6, 5), jnp.asarray([0, 4, 1, 2, 2, 3])
    own = jnp.arange(5) == labels[:, None]

    def jacobian(x, g):
        return notes.softmax(x), notes.softmax_jacobian(x), g @ notes.softmax_jacobian(x)

    def loss(lib, logits):
        return lib.softmax_cross_entropy_with_integer_labels(logits, labels)

    def case(derive: Callable[..., jax.Array], where: jax.Array) -> dict[str, Any]:
        return {
            "derive": lambda logits, g: jnp.where(where, g[:, None] * derive(logits, labels), 0),
            "truths": [lambda *a, of=of: jnp.where(where, of(*a)[1], 0) for of in plain_and_library(loss)],
            "inputs": (logits, normal(1, 6)),
        }

    true_jacobians = [lambda x, g, f=lib.softmax: (f(x), jax.jacrev(f)(x), vjp(f, x, g)[1]) for lib in (reference, jn)]
    return [
        Derivation("softmax and its Jacobian", "(1.1), (1.2)", jacobian, true_jacobians, (logits[0], normal(1, 5))),
        Derivation("softmax cross-entropy, i = y", "(3.2)", **case(notes.cross_entropy_at_label, own)),
        Derivation("softmax cross-entropy, i != y", "(3.1)", **case(notes.cross_entropy_elsewhere, ~own)),
    ]


def cache_rows() -> list[Derivation]:
    """Forward and backward functions with a cache, against `jax.vjp`, whose second result is such a cache."""
    x, kernel, bias, g, labels = normal(0, 4, 3, 2), normal(1, 6, 5), normal(2, 5), normal(3, 4, 5), jnp.arange(4)

    def layer(name: str, equations: str, *inputs: jax.Array, **options: int) -> Derivation:
        forward, backward = (getattr(notes, f"{name}_{way}") for way in ("forward", "backward"))

        def derive(*primals_and_g):
            *primals, g = primals_and_g
            y, cache = forward(*primals)
            return y, *backward(g, cache)

        truths = plain_and_library(lambda lib, *a: getattr(lib, name)(*a, **options))
        return Derivation(f"{name}, with a cache", equations, derive, truths, inputs)

    def loss(name: str, equations: str, hand: Callable[..., Any], function: str) -> Derivation:
        def derive(scores, g):
            value, dscores = hand(scores, labels)
            return value, g * dscores

        truths = plain_and_library(lambda lib, scores: getattr(lib, function)(scores, labels).mean())
        inputs = 2 * normal(0, 4, 5), normal(1)
        return Derivation(f"{name} loss and its gradient", equations, derive, truths, inputs)

    return [
        layer("affine", "(4.1), (4.2)", x, kernel, bias, g, num_feature_axes=2),
        layer("relu", "(4.3)", normal(4, 4, 5), g),
        layer("affine_relu", "(4.1) to (4.3)", x, kernel, bias, g, num_feature_axes=2),
        loss("SVM", "(4.4)", notes.svm_loss, "multiclass_svm_loss"),
        loss("softmax", "(4.5)", notes.softmax_loss, "softmax_cross_entropy_with_integer_labels"),
    ]


def convolution_rows() -> list[Derivation]:
    """The convolution's gradients against `jax.vjp` of lax's and the library's rule, and the formula of their sizes."""

    def gradients(name: str, size: tuple[int, int], window: tuple[int, int], stride: int, pad: int) -> Derivation:
        out = [(n + 2 * pad - k) // stride + 1 for n, k in zip(size, window, strict=True)]
        inputs = normal(0, 2, *size, 3), normal(1, *window, 3, 4), normal(2, 2, *out, 4)

        def derive(x, kernel, g):
            return notes.conv_dx(kernel, g, size, stride, pad), notes.conv_dkernel(x, g, window, stride, pad)

        names = ("NHWC", "HWIO", "NHWC")
        truths = (
            lambda x, kernel: lax.conv_general_dilated(
                x, kernel, [stride] * 2, [(pad, pad)] * 2, dimension_numbers=names
            ),
            lambda x, kernel: jn.conv(x, kernel, strides=stride, padding=pad),
        )
        expected = [lambda *a, truth=truth: vjp(truth, *a)[1:] for truth in truths]
        return Derivation(f"convolution: dX and dW, {name}", "(2.9), (2.10)", derive, expected, inputs)

    def sizes(name: str, equations: str, divides: bool, missing: Callable[..., int], why: str = "") -> Derivation:
        grid = [(h, k, s, p) for h in range(5, 12) for k in range(1, 6) for s in range(2, 5) for p in range(k)]
        chosen = np.array([case for case in grid if (notes.remainder(*case) == 0) == divides])
        rows = [notes.size_of_padded_dx(*case) + missing(*case) for case in chosen.tolist()]
        shares = np.array(rows) / (chosen[:, 0] + 2 * chosen[:, 3])
        return Derivation(name, equations, lambda: jnp.asarray(shares), [lambda: jnp.ones(len(rows))], (), why)

    return [
        gradients("stride 1", (6, 5), (3, 2), 1, 1),
        gradients("stride 2 divides", (7, 9), (3, 5), 2, 1),
        gradients("stride 3 does not divide", (9, 8), (3, 3), 3, 1),
        sizes("rows of dX, the stride divides", "(2.11), (2.12)", True, lambda *_: 0),
        sizes("rows of dX, with the remainder", "(2.13)", False, notes.remainder),
        sizes("rows of dX, the stride does not divide", "(2.12)", False, lambda *_: 0,
              "H' is rounded down, so (H' - 1) S + K misses H + 2P by the remainder: as many rows of zeros at the end"),
    ]  # fmt: skip


# --- timing ---------------------------------------------------------------------------------------------------------


def measure(samples: Sequence[int], features: Sequence[int], repeats: int) -> list[dict[str, Any]]:
    """Medians and quartiles of the three forms of dscale, with N or D growing and the other at its middle value."""
    middle = samples[len(samples) // 2], features[len(features) // 2]
    sizes = [("N", n, middle[1]) for n in samples] + [("D", middle[0], d) for d in features]
    calls = []
    for grows, n, d in sizes:
        g, x_hat = (normal(seed, n, d).astype(jnp.float32) for seed in (0, 1))
        truth = np.sum(np.asarray(g, np.float64) * np.asarray(x_hat, np.float64), axis=0)
        for name, form in VECTORISATIONS.items():
            compiled = jax.jit(form).lower(g, x_hat).compile()
            np.testing.assert_allclose(compiled(g, x_hat), truth, rtol=0, atol=1e-3 * np.abs(truth).max())
            calls.append(({"form": name, "grows": grows, "N": n, "D": d}, functools.partial(compiled, g, x_hat)))
    times: list[list[float]] = [[] for _ in calls]
    for _ in track(range(repeats), description="timing dscale", transient=True):
        for i in random.sample(range(len(calls)), len(calls)):  # a slow spell of the machine falls on all alike
            times[i].append(timed(calls[i][1])[1])
    rows = []
    for (row, _), seconds in zip(calls, times, strict=True):
        low, median, high = (1e6 * np.percentile(seconds, (25, 50, 75))).tolist()
        rows.append(row | {"median_us": median, "quartiles_us": [low, high]})
    return rows


def growth(timings: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The exponent of each form's time in N and in D."""
    found = []
    for form in VECTORISATIONS:
        row: dict[str, Any] = {"form": form}
        for size in ("N", "D"):
            points = [(t[size], t["median_us"]) for t in timings if t["form"] == form and t["grows"] == size]
            sizes, medians = np.log(points).T
            row[size] = float(np.polyfit(sizes, medians, deg=1)[0])
        found.append(row)
    return found


def plot(path: Path, timings: list[dict[str, Any]], exponents: list[dict[str, Any]]) -> None:
    """The medians on logarithmic axes, one panel for each size that grows, with the quartiles as a band."""
    import matplotlib

    matplotlib.use("Agg")  # no display needed
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, 2, figsize=(11, 4.4), dpi=150, sharey=True, layout="constrained")
    for panel, size, fixed in zip(panels, "ND", "DN", strict=True):
        for row, color in zip(exponents, ("tab:red", "tab:orange", "tab:blue"), strict=True):
            chosen = [t for t in timings if t["form"] == row["form"] and t["grows"] == size]
            at = [t[size] for t in chosen]
            label = f"{row['form']}: grows as ${size}^{{{row[size]:.2f}}}$"
            panel.plot(at, [t["median_us"] for t in chosen], color=color, marker="o", markersize=4, label=label)
            panel.fill_between(at, *zip(*(t["quartiles_us"] for t in chosen), strict=True), color=color, alpha=0.15)
        held = next(t[fixed] for t in timings if t["grows"] == size)
        panel.set(title=f"{fixed} = {held:,}", xscale="log", yscale="log", xlabel=f"{size}")
        ticks = sorted({t[size] for t in timings if t["grows"] == size})
        panel.set_xticks(ticks, [f"{value:,}" for value in ticks])
        panel.minorticks_off()
        panel.grid(alpha=0.3)
        panel.legend(frameon=False, loc="upper left")
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylim(top=4 * max(t["median_us"] for t in timings))  # room for the legends
    panels[0].set_ylabel("microseconds, median and quartiles")
    figure.suptitle(f"dscale of batch norm three ways, float32, {jax.devices()[0].device_kind}, jax {jax.__version__}")
    figure.savefig(path)
    plt.close(figure)


# --- command line ---------------------------------------------------------------------------------------------------


def compared(*, exact: bool = False) -> list[dict[str, Any]]:
    """Every derivation run in float64, and if asked proven or refuted, as the rows of the table."""
    with jax.enable_x64(True):
        rows = []
        for each in track(derivations(), description="comparing", transient=True):
            error = each.error()
            row = {"name": each.name, "note": each.note, "equations": each.equations}
            row |= {"error": error, "verdict": verdict(error)}
            row |= {"exact": each.exact()} if exact else {}
            rows.append(row | {"right": each.right, "why": each.why})
    return rows


def unexpected(rows: list[dict[str, Any]]) -> list[str]:
    """The rows whose verdict is not the one that they should have."""
    expected = {True: ("right", "proven"), False: ("wrong", "refuted")}
    return [
        row["name"]
        for row in rows
        if row["verdict"] != expected[row["right"]][0] or row.get("exact", "") not in ("", expected[row["right"]][1])
    ]


def totals(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of each verdict: how many derivations have it, within which errors, and how many exact arithmetic decides."""
    found = []
    for name in ("right", "wrong", "unclear"):
        of_verdict = [row for row in rows if row["verdict"] == name]
        if not of_verdict:
            continue
        errors, exact = [row["error"] for row in of_verdict], [row.get("exact") for row in of_verdict]
        total = {"verdict": name, "derivations": len(of_verdict), "smallest error": min(errors)}
        total |= {"largest error": max(errors), "proven": exact.count("proven"), "refuted": exact.count("refuted")}
        found.append(total)
    return found


def show(console: Console, found: dict[str, Any]) -> None:
    """Prints the two tables, and below the first why what is wrong is wrong."""
    table = Table(title="Derivations of the notes, float64, random cotangents")
    table.add_column("derivation")
    table.add_column("equations")
    table.add_column("largest relative error", justify="right")
    table.add_column("verdict")
    exact = any("exact" in row for row in found["derivations"])
    if exact:
        table.add_column("exactly")
    bad = unexpected(found["derivations"])
    for row in found["derivations"]:
        style = "bold red" if row["name"] in bad else "yellow" if row["verdict"] == "wrong" else None
        cells = [row["name"], row["equations"], f"{row['error']:.1e}", row["verdict"]]
        cells += [row["exact"]] if exact else []
        table.add_row(*cells, style=style)
    console.print(table)
    for row in found["totals"]:
        bound = {"right": f" (to {RIGHT:g})", "wrong": f" (by {WRONG:g} or more)"}.get(row["verdict"], "")
        decided = f", {row['proven']} proven, {row['refuted']} refuted" if exact else ""
        console.print(f"{row['derivations']} {row['verdict']}{bound}{decided}", highlight=False)
    for row in found["derivations"]:
        if row["why"]:
            console.print(f"{row['name']} ({row['note']} note): {row['why']}.", highlight=False)
    if not found["timings"]:
        return
    table = Table(title="dscale, float32: median, in microseconds, as N or D grows")
    for column in ("form", "grows", "from", "to", "at the smallest", "at the largest", "exponent"):
        table.add_column(column, justify="left" if column == "form" else "right")
    for row in found["growth"]:
        for size in ("N", "D"):
            chosen = [t for t in found["timings"] if t["form"] == row["form"] and t["grows"] == size]
            ends = chosen[0], chosen[-1]
            medians = (f"{end['median_us']:,.0f}" for end in ends)
            table.add_row(
                row["form"], size, *(f"{end['N']:,} x {end['D']:,}" for end in ends), *medians, f"{row[size]:.2f}"
            )
    console.print(table)
    console.print(found["machine"])


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Parses the command line, compares, times, prints; returns it all, or exits with 1 if a verdict is unexpected."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument(
        "--samples", type=positive_int, nargs="+", default=[512, 1024, 2048, 4096, 8192], metavar="N",
        help="sizes of N to time, at the middle one of D",
    )  # fmt: skip
    parser.add_argument(
        "--features", type=positive_int, nargs="+", default=[128, 256, 512, 1024], metavar="D",
        help="sizes of D to time, at the middle one of N",
    )  # fmt: skip
    parser.add_argument("--repeats", type=positive_int, default=25, help="calls of each form at each size")
    parser.add_argument("--exact", action="store_true", help="also prove or refute every derivation")
    parser.add_argument("--json", type=writable, metavar="FILE", help="write everything here")
    parser.add_argument("--plot", type=png_path, metavar="FILE", help="draw the timings here, a .png file")
    options = parser.parse_args(argv)
    for name in ("samples", "features"):
        if len(set(getattr(options, name))) < 2:
            parser.error(f"argument --{name}: a growth needs two sizes")
    rows = compared(exact=options.exact)
    timings = measure(options.samples, options.features, options.repeats)
    found: dict[str, Any] = {
        "derivations": rows,
        "totals": totals(rows),
        "timings": timings,
        "growth": growth(timings),
        "machine": f"{jax.devices()[0].device_kind}, {platform.machine()}, jax {jax.__version__}",
    }
    show(Console(width=120), found)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    if options.plot:
        plot(options.plot, timings, found["growth"])
    if bad := unexpected(rows):
        raise SystemExit(f"not as expected: {'; '.join(bad)}")
    return found


if __name__ == "__main__":
    main()
