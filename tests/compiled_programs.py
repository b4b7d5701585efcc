"""Compiles programs for a device that is not there, and prints what each does with arrays of its input's size.

    python tests/compiled_programs.py {v5e,h100}

Its own process, since the compilers' settings must be there before JAX is imported. Prints JSON: for each program its
reads and writes of memory and its temporary memory, in sizes of the input x, and whether an array of x's elements
stands in memory in a wider dtype.
"""

import json
import os
import sys
from functools import partial

from bench_compiled import ENVIRONMENT, TARGETS

target = sys.argv[1]
os.environ.update(ENVIRONMENT)

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
from bench_compiled_cases import Side  # noqa: E402
from bench_compiled_programs import device, pulled_back  # noqa: E402
from compiled import FREE, Program  # noqa: E402
from jax.sharding import SingleDeviceSharding  # noqa: E402

import jaxnorm as jn  # noqa: E402

ROWS, IMAGES, LOGITS, SCORES = (8192, 4096), (64, 56, 56, 256), (8192, 32000), (4, 16, 1024, 1024)
FEW_CLASSES = (65536, 1024)


def batch_norm(x, scale, bias):
    """In training, without the statistics."""
    return jn.batch_norm(x, scale, bias, training=True)[0]


FUNCTIONS = {
    "layer": (jn.layer_norm, ROWS, 2),
    "rms": (jn.rms_norm, ROWS, 1),
    "batch": (batch_norm, IMAGES, 2),
    "group": (partial(jn.group_norm, num_groups=32), IMAGES, 2),
    "instance": (jn.instance_norm, IMAGES, 2),
    "softmax": (jn.softmax, ROWS, 0),
    "attention": (jn.softmax, SCORES, 0),
    "log_softmax": (jn.log_softmax, LOGITS, 0),
    "cross_entropy": (jn.softmax_cross_entropy_with_integer_labels, LOGITS, None),
    "cross_entropy_few": (jn.softmax_cross_entropy_with_integer_labels, FEW_CLASSES, None),
    "svm": (jn.multiclass_svm_loss, FEW_CLASSES, None),
}


def compiled(name: str, dtype: str, both: bool):
    """The program: of the function, or of its value and gradients."""
    function, shape, parameters = FUNCTIONS[name]
    sharding = SingleDeviceSharding(device(TARGETS[target].platform, TARGETS[target].topology))
    array = partial(jax.ShapeDtypeStruct, sharding=sharding)
    x = array(shape, dtype)
    others = [array(shape[-1:], jnp.float32)] * (parameters or 0)
    constants = [array(shape[:-1], jnp.int32)] if parameters is None else []
    if not both:
        return x, jax.jit(function).lower(x, *others, *constants).compile()
    g = jax.eval_shape(function, x, *others, *constants)
    g = array(g.shape, g.dtype)
    return x, jax.jit(pulled_back(Side(function, (x, *others), constants))).lower(g, constants, x, *others).compile()


def measured(name: str, dtype: str, both: bool) -> dict:
    """One line of the table."""
    x, program = compiled(name, dtype, both)
    bytes_of_x = x.size * x.dtype.itemsize
    parsed = Program(program.as_text())
    arrays = [a for one in parsed.entry.instructions.values() if one.op not in FREE for a in one.results]
    return {
        "name": name,
        "dtype": dtype,
        "program": "both" if both else "inference",
        "passes": parsed.traffic().bytes / bytes_of_x,
        "temporary": program.memory_analysis().temp_size_in_bytes / bytes_of_x,
        "widened": any(a.elements == x.size and a.bytes > 1.1 * bytes_of_x for a in arrays),
    }


if __name__ == "__main__":
    print(json.dumps([measured(n, d, b) for n in FUNCTIONS for d in ("bfloat16", "float32") for b in (True, False)]))
