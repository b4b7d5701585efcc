"""Proves or refutes other installed libraries' losses and norms in exact arithmetic, with their derivatives.

Every row is one call and a plain one, of this library's twins. What is refuted is printed with the numbers of the first
element that differs; what is undecided with the operation that has no exact meaning. A library that is not installed
is left out. `experiments/audit.py` measures what rounding does to the same functions.
"""

import argparse
import json
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from common import installed, setting_of, writable
from rich.console import Console
from rich.table import Table

from jaxnorm import reference
from jaxnorm.check import prove

MODULES = {"optax": "optax", "nn": "flax.linen", "hk": "haiku"}
PACKAGES = {"nn": "flax", "hk": "dm-haiku"}
X, SCALE, BIAS = (np.random.default_rng(i).normal(size=size) for i, size in enumerate(((4, 6), 6, 6)))
LABELS, P = np.array([0, 2, 5, 1]), np.full((4, 6), 1 / 6)
PARAMETERS = '{"params": {"scale": scale, "bias": bias}}'
RUNNING = f'{{**{PARAMETERS}, "batch_stats": {{"mean": jnp.zeros(6), "var": jnp.ones(6)}}}}'
AFFINE = {"x": X, "scale": SCALE, "bias": BIAS}
HAIKU = (
    "hk.without_apply_rng(hk.transform(lambda x: hk.LayerNorm(-1, True, True)(x)))"
    ".apply({'layer_norm': {'scale': scale, 'offset': bias}}, x)"
)
BINARY = "-(p * jnp.log(jax.nn.sigmoid(x)) + (1 - p) * jnp.log(jax.nn.sigmoid(-x)))"
INTEGER = "softmax_cross_entropy_with_integer_labels(x, labels)"
BATCH = f"nn.BatchNorm(use_running_average=False).apply({RUNNING}, x, mutable=['batch_stats'])[0]"
LAYER, GROUP = "reference.layer_norm(x, scale, bias)", "reference.group_norm(x, scale, bias, num_groups=2)"
RMS = "nn.RMSNorm(epsilon=1e-5).apply({'params': {'scale': scale}}, x)"
# The call, the plain one, and the arguments. One row has another epsilon, and is to be refuted.
ROWS: list[tuple[str, str, dict[str, Any]]] = [
    (f"optax.{INTEGER}", f"reference.{INTEGER}", {"x": X, "labels": LABELS}),
    ("optax.softmax_cross_entropy(x, p)", "reference.softmax_cross_entropy(x, p)", {"x": X, "p": P}),
    ("optax.sigmoid_binary_cross_entropy(x, p)", BINARY, {"x": X, "p": P}),
    ("optax.kl_divergence(x, p)", "(p * (jnp.log(p) - x)).sum(-1)", {"x": X, "p": P}),
    (f"nn.LayerNorm(epsilon=1e-5).apply({PARAMETERS}, x)", LAYER, AFFINE),
    (f"nn.LayerNorm(epsilon=1e-6).apply({PARAMETERS}, x)", LAYER, AFFINE),
    (RMS, "reference.rms_norm(x, scale)", {"x": X, "scale": SCALE}),
    (f"nn.GroupNorm(2, epsilon=1e-5).apply({PARAMETERS}, x)", GROUP, AFFINE),
    (BATCH, "reference.batch_norm(x, scale, bias, training=True)[0]", AFFINE),
    (HAIKU, LAYER, AFFINE),
]


def decided(call: str, truth: str, arguments: dict[str, Any], names: dict[str, Any]) -> dict[str, Any]:
    """A row of the table: the verdict, and what it is by."""
    fun, plain = (eval(f"lambda {', '.join(arguments)}: {code}", names) for code in (call, truth))
    try:
        proof = prove(fun, *arguments.values(), reference=plain, order=2)
    except Exception as error:  # of the library, or of its version
        return {"call": call, "truth": truth, "verdict": f"raises {type(error).__name__}", "why": str(error)[:200]}
    verdict = {True: "proven", False: "refuted", None: "undecided"}[proof.holds]
    why = str(proof.difference) if proof.difference else proof.reason
    return {"call": call, "truth": truth, "verdict": verdict, "why": why}


def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Parses the command line, proves, prints the table; returns its rows."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--only", default="", metavar="TEXT", help="rows whose call holds this text")
    parser.add_argument("--json", type=writable, metavar="FILE", help="write the rows here")
    options = parser.parse_args(argv)
    names = {"jax": jax, "jnp": jnp, "reference": reference, **installed(MODULES)}
    chosen = [row for row in ROWS if options.only in row[0] and row[0].split(".")[0] in names]
    if not chosen:
        parser.error(f"argument --only: no row of the installed libraries holds {options.only!r}")
    rows = [decided(*row, names) for row in chosen]
    console, table = Console(width=150), Table("call", "plain function", "verdict", "why")
    for row in rows:
        table.add_row(*(str(cell).replace("[", "\\[") for cell in row.values()))
    console.print(table)
    setting = setting_of(PACKAGES.get(name, name) for name in MODULES if name in names)
    console.print(", ".join(f"{package} {number}" for package, number in setting["versions"].items()))
    if options.json:
        options.json.write_text(json.dumps({**setting, "rows": rows}, indent=1) + "\n")
    return rows


if __name__ == "__main__":
    main()
