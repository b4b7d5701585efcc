"""Checks what other installed libraries do in this domain: their losses, norms and convolutions, over hard inputs.

Every row is one line of Python, printed for each that does not hold: `check_vjp` (or `check_mesh`) of the other
library's function and a plain one, over inputs with large means, confident predictions, infinite logits, labels out of
range, empty masks. A library that is not installed is left out. What a function does not promise is not a mistake of it
(a label out of range): the table says what happens, not who is right. In float64 an error of 1e-6 is let pass, so that
what a formula loses shows in float32, where it matters.

The rows on a mesh need eight devices: XLA_FLAGS=--xla_force_host_platform_device_count=8.
"""

import argparse
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from common import installed, setting_of, timed, writable
from jax.sharding import PartitionSpec as P
from rich.console import Console
from rich.progress import track
from rich.table import Table

from jaxnorm import reference
from jaxnorm.check import Report, check_mesh, check_vjp

MODULES = {
    "optax": "optax",
    "nn": "flax.linen",
    "hk": "haiku",
    "eqx": "equinox",
    "tokamax": "tokamax",
    "keras": "keras",
    "pallas_layer": "jax.experimental.pallas.ops.gpu.layer_norm",
    "pallas_rms": "jax.experimental.pallas.ops.gpu.rms_norm",
    "pallas_softmax": "jax.experimental.pallas.ops.gpu.softmax",
}
PACKAGES = dict.fromkeys(("pallas_layer", "pallas_rms", "pallas_softmax"), "jax") | {
    "nn": "flax",
    "hk": "dm-haiku",
    "eqx": "equinox",
}

NORMAL, LARGE_MEAN = "normal(8, 64)", "1e4 + normal(8, 64)"
LABELS, SOME_INFINITE = "integers(8, 64)", "np.where(np.arange(64) % 3 == 1, -np.inf, normal(8, 64))"
INTEGER = "optax.softmax_cross_entropy_with_integer_labels(x, labels)"
INTEGER_TRUTH = "reference.softmax_cross_entropy_with_integer_labels(x, labels).astype(x.dtype)"
CONFIDENT = "confident(x, labels).astype(x.dtype)"
WITH_MASK = "optax.softmax_cross_entropy_with_integer_labels(x, labels, where=where)"
WITH_MASK_TRUTH = "reference.softmax_cross_entropy_with_integer_labels(x, labels, where=where).astype(x.dtype)"
DENSE, DENSE_TRUTH = "optax.softmax_cross_entropy(x, p)", "reference.softmax_cross_entropy(x, p).astype(x.dtype)"
PARAMETERS = '{"params": {"scale": scale, "bias": bias}}'
RUNNING = '{"params": {"scale": scale, "bias": bias}, "batch_stats": {"mean": jnp.zeros(64), "var": jnp.ones(64)}}'
AFFINE = {"scale": "normal(64)", "bias": "normal(64)"}
BATCH = f"nn.BatchNorm(use_running_average=False).apply({RUNNING}, x, mutable=['batch_stats'])[0]"
MASKED_BATCH = f"nn.BatchNorm(use_running_average=False).apply({RUNNING}, x, mask=where, mutable=['batch_stats'])[0]"
BATCH_TRUTH = "reference.batch_norm(x, scale, bias, training=True)[0]"
MASKED_BATCH_TRUTH = "reference.batch_norm(x, scale, bias, training=True, where=where)[0]"
HAIKU = '{{"{}": {{"scale": scale{shape}, "offset": bias{shape}}}}}'
HAIKU_LAYER = (
    f"hk.without_apply_rng(hk.transform(lambda x: hk.LayerNorm(-1, True, True)(x)))"
    f".apply({HAIKU.format('layer_norm', shape='')}, x)"
)
HAIKU_GROUP = (
    f"hk.without_apply_rng(hk.transform(lambda x: hk.GroupNorm(4)(x))).apply({HAIKU.format('group_norm', shape='')}, x)"
)
HAIKU_BATCH = (
    f"(lambda f: f.apply({HAIKU.format('batch_norm', shape='.reshape(1, 64)')}, f.init(None, x)[1], x)[0])"
    "(hk.without_apply_rng(hk.transform_with_state(lambda x: hk.BatchNorm(True, True, 0.9)(x, True))))"
)
EMPTY_MASK = "np.zeros((8, 64), bool)"


@dataclass(frozen=True)
class Subject:
    """One call to check: everything as Python text, so that it can be printed as it runs."""

    name: str
    inputs: str  # in words
    call: str
    truth: str
    arguments: dict[str, str] = field(default_factory=dict)
    low: str = "float32"  # the low precision that is judged
    specs: str = ""  # of the arguments on a mesh; "" checks one device

    @property
    def code(self) -> str:
        """The line that is run."""
        names, values = ", ".join(self.arguments), ", ".join(self.arguments.values())
        if self.specs:
            options = f"mesh=jax.make_mesh((4, 2), ('data', 'model')), in_specs={self.specs}, checks=['auto axes']"
            return f"check_mesh(lambda {names}: {self.call}, {values}, {options})"
        options = f"checks=['precision', 'digits'], dtypes=[jnp.{self.low}], tolerance=1e-6"
        return f"check_vjp(lambda {names}: {self.call}, {values}, reference=lambda {names}: {self.truth}, {options})"

    @property
    def module(self) -> str:
        """The module that it needs, as it is named in the line; "" for jax alone."""
        return next((name for name in MODULES if re.search(rf"(?<![\w.]){name}\.", self.call)), "")


def subjects() -> list[Subject]:
    """What is looked at."""
    found = [
        Subject("optax integer cross-entropy", words, INTEGER, INTEGER_TRUTH, {"x": x, "labels": labels})
        for words, x, labels in (
            ("normal", NORMAL, LABELS),
            ("mean 1e4", LARGE_MEAN, LABELS),
            ("label leads by 25", "25.0 * np.eye(64)[integers(8, 64)]", LABELS),
            ("label -1", NORMAL, "np.full(8, -1)"),
            ("label -100", NORMAL, "np.full(8, -100)"),
            ("label V", NORMAL, "np.full(8, 64)"),
            ("-inf logits", SOME_INFINITE, "np.arange(8) * 3"),
        )
    ]
    for words, x in (("normal", NORMAL), ("label leads by 25", "25.0 * np.eye(64)[integers(8, 64)]")):
        call = "keras.losses.sparse_categorical_crossentropy(labels, x, from_logits=True)"
        found.append(Subject("keras integer cross-entropy", words, call, INTEGER_TRUTH, {"x": x, "labels": LABELS}))
    lead = "40.0 * np.eye(64)[integers(8, 64)]"
    arguments = {"x": lead, "labels": LABELS}  # here float64 has no digits of a difference of logarithms either
    found.append(Subject("optax integer cross-entropy", "label leads by 40", INTEGER, CONFIDENT, arguments))
    masks = (("empty class mask", EMPTY_MASK), ("label masked", "np.arange(64) != integers(8, 64)[:, None]"))
    for words, where in masks:
        arguments = {"x": NORMAL, "labels": LABELS, "where": where}
        found.append(Subject("optax integer cross-entropy", words, WITH_MASK, WITH_MASK_TRUTH, arguments))
    for words, x, p in (
        ("normal", NORMAL, "np.abs(normal(8, 64))"),
        ("one-hot", NORMAL, "np.eye(64)[integers(8, 64)]"),
        ("one-hot, label leads by 25", "25.0 * np.eye(64)[integers(8, 64)]", "np.eye(64)[integers(8, 64)]"),
        ("-inf logit of label 0", SOME_INFINITE, "np.where(np.arange(64) % 3 == 1, 0, 1 / 43) * np.ones((8, 1))"),
    ):
        found.append(Subject("optax cross-entropy", words, DENSE, DENSE_TRUTH, {"x": x, "p": p}))
    hinge = (
        "optax.losses.multiclass_hinge_loss(x, labels)",
        "reference.multiclass_hinge_loss(x, labels)",
    )
    for words, labels in (("normal", LABELS), ("label V", "np.full(8, 64)")):
        found.append(Subject("optax hinge loss", words, *hinge, {"x": NORMAL, "labels": labels}))
    leading = ("one logit leads by 25", "25.0 * np.eye(64)[integers(8, 64)]")
    for words, x in (("normal", NORMAL), ("mean 1e4", LARGE_MEAN), ("-inf logits", SOME_INFINITE), leading):
        for name in ("softmax", "log_softmax"):
            truth = f"reference.{name}(x)"
            found.append(Subject(f"jax.nn.{name}", words, f"jax.nn.{name}(x)", truth, {"x": x}))
    masked = {"x": NORMAL, "where": EMPTY_MASK}
    call, truth = "jax.nn.softmax(x, where=where)", "reference.softmax(x, where=where)"
    found.append(Subject("jax.nn.softmax", "empty mask", call, truth, masked))
    return found + _norms() + _kernels() + _convolutions()


def _norms() -> list[Subject]:
    found = []
    plain_layer, plain_rms = "reference.layer_norm(x{}, epsilon={})", "reference.rms_norm(x{}, epsilon={})"
    for words, x in (("normal", NORMAL), ("mean 1e4", LARGE_MEAN), ("constant rows", "np.ones((8, 64)) / 3")):
        both, one = {"x": x, **AFFINE}, {"x": x, "scale": AFFINE["scale"]}
        group = "reference.group_norm(x, scale, bias, num_groups=4, epsilon=1e-6)"
        rms = 'nn.RMSNorm().apply({"params": {"scale": scale}}, x)'
        layer = f"nn.LayerNorm().apply({PARAMETERS}, x)"
        found += [
            Subject("jax.nn.standardize", words, "jax.nn.standardize(x)", plain_layer.format("", 1e-5), {"x": x}),
            Subject("flax LayerNorm", words, layer, plain_layer.format(", scale, bias", 1e-6), both),
            Subject("flax RMSNorm", words, rms, plain_rms.format(", scale", 1e-6), one),
            Subject("flax GroupNorm", words, f"nn.GroupNorm(4).apply({PARAMETERS}, x)", group, both),
            Subject("flax BatchNorm", words, BATCH, BATCH_TRUTH, both),
            Subject("haiku LayerNorm", words, HAIKU_LAYER, plain_layer.format(", scale, bias", 1e-5), both),
            Subject("haiku GroupNorm", words, HAIKU_GROUP, group.replace("1e-6", "1e-5"), both),
            Subject("haiku BatchNorm", words, HAIKU_BATCH, BATCH_TRUTH, both),
            Subject(
                "equinox LayerNorm", words, "jax.vmap(eqx.nn.LayerNorm(64))(x)", plain_layer.format("", 1e-5), {"x": x}
            ),
            Subject("equinox RMSNorm", words, "jax.vmap(eqx.nn.RMSNorm(64))(x)", plain_rms.format("", 1e-5), {"x": x}),
        ]
        layer = "keras.layers.{}(epsilon=1e-3)"
        for kind, truth in (
            ("LayerNormalization", plain_layer.format(", scale, bias", 1e-3)),
            ("GroupNormalization", group.replace("1e-6", "1e-3")),
        ):
            made = layer.format(kind).replace("(", "(groups=4, " if kind.startswith("Group") else "(")
            call = f"(lambda f: (f.build((8, 64)), f.stateless_call([scale, bias], [], x)[0])[1])({made})"
            found.append(Subject(f"keras {kind}", words, call, truth, both))
    masked = {"x": NORMAL, **AFFINE, "where": EMPTY_MASK}
    found.append(Subject("flax BatchNorm", "empty mask", MASKED_BATCH, MASKED_BATCH_TRUTH, masked))
    layer = f"nn.LayerNorm().apply({PARAMETERS}, x, mask=where)"
    truth = "reference.layer_norm(x, scale, bias, epsilon=1e-6, where=where)"
    found.append(Subject("flax LayerNorm", "empty mask", layer, truth, masked))
    blocks = "tokamax.linear_softmax_cross_entropy_loss(h, labels, w, reduction='sum', implementation='chunked_xla')"
    whole = "jnp.sum(reference.linear_softmax_cross_entropy(h, w, labels)).astype(jnp.float32)"
    for words, size in (("V a multiple of 1024", 2048), ("V not a multiple of 1024", 2000)):
        arrays = {"h": "normal(16, 32)", "w": f"normal(32, {size})", "labels": f"integers(16, {size})"}
        for low in ("float32", "bfloat16"):
            found.append(Subject("tokamax linear cross-entropy", f"{words}, {low}", blocks, whole, arrays, low))
    return found


def _kernels() -> list[Subject]:
    """JAX's own Pallas kernels for a GPU, in interpret mode, which runs on any device. Blocks are powers of two."""
    found = []
    for words, x in (("normal", "normal(2, 4, 64)"), ("mean 1e4", "1e4 + normal(2, 4, 64)")):
        arrays = {"x": x, **AFFINE}
        for kind, truth in (
            ("layer", "reference.layer_norm(x, scale, bias, epsilon=1e-5)"),
            ("rms", "reference.rms_norm(x, scale, epsilon=1e-5) + bias.astype(x.dtype)"),
        ):
            call = f"pallas_{kind}.{kind}_norm(x, scale, bias, interpret=True)"
            found.append(Subject(f"jax.experimental.pallas {kind}_norm", words, call, truth, arrays))
        call = "pallas_softmax.softmax(x, interpret=True)"
        found.append(Subject("jax.experimental.pallas softmax", words, call, "reference.softmax(x)", {"x": x}))
    return found


def _convolutions() -> list[Subject]:
    """On a mesh of 4 by 2 devices, one of whose axes does not divide the batch."""
    numbers = "('NHWC', 'HWIO', 'NHWC')"
    image, found = "normal(8, 6, 6, 4)", []
    for words, kernel, groups in (("dense", "normal(3, 3, 4, 4)", 1), ("depthwise", "normal(3, 3, 1, 4)", 4)):
        count = f"feature_group_count={groups}"
        lax = f"jax.lax.conv_general_dilated(x, k, (1, 1), 'SAME', dimension_numbers={numbers}, {count})"
        flax = f"nn.Conv(4, (3, 3), use_bias=False, {count}).apply({{'params': {{'kernel': k}}}}, x)"
        arrays = {"x": image, "k": kernel}
        for sharded, spec in (("batch over one axis", "P('data')"), ("batch and rows", "P('data', 'model')")):
            about = f"{words}, {sharded}"
            found.append(Subject("jax.lax convolution on a mesh", about, lax, "", arrays, specs=f"({spec}, P())"))
            found.append(Subject("flax Conv on a mesh", about, flax, "", arrays, specs=f"({spec}, P())"))
    return found


def confident(x: Any, labels: Any) -> Any:
    """Cross-entropy that keeps its digits where the label's logit leads, and overflows where it trails by much."""
    lead = x - jnp.take_along_axis(x, labels[:, None], -1)
    return jnp.log1p(jnp.sum(jnp.where(jnp.arange(x.shape[-1]) == labels[:, None], 0, jnp.exp(lead)), -1))


def names_in_code() -> dict[str, Any]:
    """What the lines may use; modules that are not installed are missing."""

    def normal(*shape: int) -> np.ndarray:
        return np.random.default_rng(0).normal(size=shape)

    def integers(count: int, below: int) -> np.ndarray:
        return np.random.default_rng(0).integers(0, below, count)

    names: dict[str, Any] = {"jax": jax, "jnp": jnp, "np": np, "reference": reference, "check_vjp": check_vjp}
    names |= {"normal": normal, "integers": integers, "confident": confident, "check_mesh": check_mesh, "P": P}
    os.environ.setdefault("KERAS_BACKEND", "jax")
    return names | installed(MODULES)


def audit(subject: Subject, names: dict[str, Any]) -> tuple[str, float]:
    """What `check_vjp` says of one subject, in a few words ("" if all holds), and the seconds it took."""
    try:
        report, seconds = timed(lambda: eval(subject.code, names))
    except Exception as error:  # of the library, or of its version
        return f"raises {type(error).__name__}: {(str(error).splitlines() or [''])[0]}", 0.0
    assert isinstance(report, Report)
    checks = dict.fromkeys(re.sub(r" \(error [^)]*\)", "", failure) for failure in report.failures)
    return "; ".join(checks), seconds


def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Parses the command line, checks, prints the table; returns its rows."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--only", default="", metavar="TEXT", help="rows whose name or inputs hold this text")
    parser.add_argument("--json", type=writable, metavar="FILE", help="write the rows here")
    options = parser.parse_args(argv)
    names = names_in_code()
    named = [s for s in subjects() if options.only in f"{s.name}, {s.inputs}" and (not s.module or s.module in names)]
    chosen = [s for s in named if not s.specs or len(jax.devices()) >= 8]
    if not chosen:
        parser.error(f"argument --only: no row of the installed libraries holds {options.only!r}")
    rows = []
    for subject in track(chosen, description="checking", transient=True):
        found, seconds = audit(subject, names)
        rows.append(
            {"name": subject.name, "inputs": subject.inputs, "found": found, "seconds": seconds, "code": subject.code}
        )
    console = Console(width=150)
    table = Table(title="Values and cotangents in float64 and float32 against plain functions")
    for column in ("function", "inputs", "what does not hold"):
        table.add_column(column)
    for row in rows:
        table.add_row(str(row["name"]), str(row["inputs"]), str(row["found"]) or "all holds")
    console.print(table)
    for row in rows:
        if row["found"]:
            console.print(
                f"{row['name']}, {row['inputs']}:\n  {row['code']}", markup=False, highlight=False, soft_wrap=True
            )
    packages = [PACKAGES.get(name, name) for name in MODULES if name in names]
    setting = setting_of(packages)
    console.print(", ".join(f"{package} {number}" for package, number in setting["versions"].items()))
    if len(chosen) < len(named):
        console.print(f"left out: {len(named) - len(chosen)} rows on a mesh of eight devices")
    if options.json:
        options.json.write_text(json.dumps({**setting, "rows": rows}, indent=1) + "\n")
    return rows


if __name__ == "__main__":
    main()
