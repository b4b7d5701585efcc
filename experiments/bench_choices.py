"""What `jaxnorm/_lower/` chooses for a CPU, measured against what it could have chosen instead.

    python experiments/bench.py choices --seconds 0.3
    python experiments/bench.py choices --only MERGED_CHANNELS "layer norm"

A choice is an attribute of a module of `jaxnorm/_lower/`: a constant, a formulation, the groups of a platform. The same
public function is compiled twice, once as it is (`jaxnorm` in the results) and once with another value in the
attribute's place (`instead`), and both are timed in turns. The two results are compared: one that differs by more than
rounding is marked. With `--size small` the arrays have a batch of one, which shows only that every row runs.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from bench_cases import TOLERANCES, Case, both_passes, normal
from bench_convolutions import batch_of, part_of
from bench_method import Sides
from bench_tables import shape_text
from jax import lax

import jaxnorm as jn
import jaxnorm.dense
from jaxnorm._lower import columns, cpu, groups, products, rows
from jaxnorm._lower.convolution import choice, forward, kernel_gradient
from jaxnorm._lower.plain import Plain

NEVER = 1 << 62  # a threshold that nothing reaches
Shape = tuple[int, ...]


class Measured(NamedTuple):
    """A public function, the pass or passes that are timed, and the shapes of its arrays."""

    name: str
    function: Callable[..., jax.Array]
    part: str  # forward, dX, dW, both
    shapes: tuple[Shape, ...]
    batched: int = 1  # how many of the arrays begin with the batch
    dtype: str = "float32"

    def sized(self, size: str) -> list[Shape]:
        """The shapes for a size of the batch."""
        return [batch_of(shape, size) if i < self.batched else shape for i, shape in enumerate(self.shapes)]

    def arguments(self, size: str) -> list[jax.ShapeDtypeStruct]:
        """What the arrays are like; a cotangent is the last one."""
        arrays = [jax.ShapeDtypeStruct(shape, jnp.dtype(self.dtype)) for shape in self.sized(size)]
        return [*arrays, jax.eval_shape(self.function, *arrays)]

    def run(self, *arguments: jax.Array) -> Any:
        """What is timed."""
        *arrays, g = arguments
        if self.part == "both":
            return both_passes(self.function, arrays, g)
        return part_of(self.function, self.part)(*arrays, g) if self.part != "forward" else self.function(*arrays)


class Choice(NamedTuple):
    """One row: an attribute of a module, the value in its place, both in words, and what is measured."""

    module: ModuleType
    attribute: str
    value: Any
    taken: str
    instead: str
    measured: Measured
    looked_up: ModuleType | None = None  # where the attribute is looked up, if not in that module

    def labels(self, size: str = "medium") -> dict[str, Any]:
        """What the row is called."""
        file = self.module.__name__.removeprefix("jaxnorm._lower.").replace(".", "/") + ".py"
        kind = next(kind for kind, modules in KINDS.items() if self.module in modules)
        kind = "kernel gradients" if self.attribute == "_CORRELATE" else kind
        m, shape = self.measured, ", ".join(map(shape_text, self.measured.sized(size)))
        on = f"{m.name}, {'forward and backward' if m.part == 'both' else m.part}, {m.dtype}"
        words = {"kind": kind, "file": file, "taken": self.taken, "instead": self.instead, "on": on}
        return {"name": f"{kind}, {file}: {self.taken} or {self.instead}; {on} {shape}", **words, "shape": shape}


def lowered(chosen: Choice, size: str) -> dict[str, Any]:
    """The program as it is, and with the other value. Traces of the one must not serve the other."""
    arguments = chosen.measured.arguments(size)

    def lower() -> Any:
        jax.clear_caches()
        return jax.jit(lambda *arguments: chosen.measured.run(*arguments)).lower(*arguments)

    programs = {"jaxnorm": lower()}
    with mock.patch(f"{(chosen.looked_up or chosen.module).__name__}.{chosen.attribute}", chosen.value):
        programs["instead"] = lower()
    jax.clear_caches()
    return programs


def sides(chosen: Choice, size: str, rivals: Sequence[str] = ()) -> Sides:
    """Both programs, compiled, on random arrays."""
    del rivals
    programs = {name: program.compile() for name, program in lowered(chosen, size).items()}
    arguments = [normal(a.shape, seed, a.dtype) for seed, a in enumerate(chosen.measured.arguments(size))]
    calls = {name: functools.partial(program, *arguments) for name, program in programs.items()}
    return Sides(calls, calls["jaxnorm"](), TOLERANCES[chosen.measured.dtype], programs)


def choice_cases(runs: Sequence[tuple[str, str]]) -> Iterator[Case]:
    """Every choice; each has its own dtype."""
    for (size, _), chosen in itertools.product(runs, CHOICES):
        yield Case(chosen.labels(size), functools.partial(sides, chosen, size))


# --- how rows are written ---------------------------------------------------------------------------------------------


def constant(module: ModuleType, name: str, value: int, *measured: Measured) -> list[Choice]:
    """Another value for a constant."""
    taken, instead = (f"{name} = {_power(n)}" for n in (getattr(module, name), value))
    return [Choice(module, name, value, taken, instead, m) for m in measured]


def _power(value: int) -> str:
    """A number, powers of two from 4096 on as such."""
    if value == NEVER:
        return "∞"
    return f"2^{value.bit_length() - 1}" if value >= 4096 and value & (value - 1) == 0 else str(value)


def formulation(name: str, *measured: Measured) -> list[Choice]:
    """XLA's own convolution in place of a formulation."""
    attribute, module = ("_CORRELATE", kernel_gradient) if measured[0].part == "dW" else ("_CONVOLVE", forward)
    value = dataclasses.replace(getattr(choice, attribute), on_cpu=module.by_lax)
    return [Choice(choice, attribute, value, name, "by_lax", m) for m in measured]


def others(module: ModuleType, attribute: str, texts: tuple[str, str], value: Any, *measured: Measured) -> list[Choice]:
    """Another function or class, with words for what is taken and what instead."""
    return [Choice(module, attribute, value, *texts, m) for m in measured]


def conv(part: str, x: Shape, kernel: Shape, transposed: bool = False, **options: Any) -> Measured:
    """One product of a convolution; the groups follow from the channels."""
    groups = x[-1] // kernel[-2]
    function = jn.conv_transpose if transposed else functools.partial(jn.conv, feature_group_count=groups)
    words = {"stride": options.get("strides", 1), "groups": groups}
    name = ", ".join(["conv_transpose" if transposed else "conv", *(f"{w} {n}" for w, n in words.items() if n > 1)])
    return Measured(name, functools.partial(function, **options), part, (x, kernel))


def mapped(x: Shape, kernel: Shape) -> Measured:
    """The forward pass under vmap over kernels."""
    groups = x[-1] // kernel[-2]
    function = jax.vmap(functools.partial(jn.conv, feature_group_count=groups), (None, 0))
    return Measured(f"vmap of conv over kernels, groups {groups}", function, "forward", (x, kernel))


def norm(kind: str, x: Shape, part: str = "both") -> Measured:
    """A norm with all its parameters."""
    functions: dict[str, Callable[..., jax.Array]] = {
        "layer": jn.layer_norm,
        "instance": jn.instance_norm,
        "group": functools.partial(jn.group_norm, num_groups=32),
        "batch": lambda *arrays: jn.batch_norm(*arrays, training=True)[0],
    }
    return Measured(f"{kind} norm", functions[kind], part, (x, x[-1:], x[-1:]))


def labelled(loss: Callable[..., jax.Array], logits: Shape) -> Measured:
    """A loss of integer labels."""

    def function(logits: jax.Array) -> jax.Array:
        return loss(logits, np.random.default_rng(0).integers(logits.shape[-1], size=logits.shape[0]))

    return Measured(loss.__name__, function, "both", (logits,))


def dense_labels(logits: Shape, part: str = "both") -> Measured:
    """The cross-entropy of dense labels, whose labels are differentiated too."""
    return Measured("softmax_cross_entropy", jn.softmax_cross_entropy, part, (logits, logits), batched=2)


def linear(tokens: int, hidden: int, columns: int) -> Measured:
    """The last layer and its loss."""

    def function(hidden: jax.Array, kernel: jax.Array) -> jax.Array:
        labels = np.random.default_rng(0).integers(columns, size=hidden.shape[0])
        return jn.linear_softmax_cross_entropy(hidden, kernel, labels)

    return Measured("linear_softmax_cross_entropy", function, "both", ((tokens, hidden), (hidden, columns)))


def dense(function: Callable[..., jax.Array], x: Shape, columns: int, dtype: str = "float32") -> Measured:
    """A dense layer behind a gelu."""
    shapes = x, (x[-1], columns), (columns,)
    behind = lambda x, *parameters: function(jax.nn.gelu(x), *parameters)  # noqa: E731
    return Measured(f"{function.__name__} of a gelu", behind, "both", shapes, dtype=dtype)


# --- what could be otherwise ------------------------------------------------------------------------------------------


def inlined(function: Callable[..., Any], *arrays: Any) -> Any:
    """In place of `outlined`."""
    return function(*arrays)


def select(logits: jax.Array, shift: jax.Array) -> jax.Array:
    """In place of `Rows.leads`."""
    return jnp.where(lax.stop_gradient(logits) == lax.stop_gradient(shift), 1, 0).astype(logits.dtype)


def over_axes(x: jax.Array, g: jax.Array, dtype: Any, precision: lax.PrecisionLike = None) -> jax.Array:
    """In place of `sum_over_rows`."""
    axes = tuple(range(g.ndim - 1))
    return products.dot(x, g, (axes, axes), dtype, precision)


def two_layers(x: jax.Array, first: jax.Array, second: jax.Array) -> jax.Array:
    """Two convolutions, whose backward pass has an order to choose."""
    return jn.conv(jnp.tanh(jn.conv(x, first)), second)


KINDS = {
    "convolutions": (choice, forward),
    "kernel gradients": (kernel_gradient,),
    "losses": (rows, columns),
    "norms": (cpu, groups),
    "dense layers": (products,),
}
CONVOLVE, CORRELATE = choice._CONVOLVE, choice._CORRELATE
IMAGES, WIDE, VOLUMES = (32, 32, 32, 64), (16, 16, 16, 128), (2, 8, 16, 16, 32)
DEPTHWISE, CUBES = (IMAGES, (3, 3, 1, 64)), (VOLUMES, (3, 3, 3, 32, 32))
NARROW_GROUPS, FOUR_GROUPS = (WIDE, (3, 3, 4, 128)), ((16, 32, 32, 64), (3, 3, 16, 64))
SEVEN, DOUBLED = ((8, 28, 28, 96), (7, 7, 1, 96)), ((8, 20, 20, 24), (5, 5, 1, 48))
POINTWISE = (IMAGES, (1, 1, 64, 128)), ((8, 14, 14, 256), (1, 1, 256, 256))
PATCHES = ((4, 224, 224, 3), (16, 16, 3, 192), 16), ((8, 56, 56, 24), (4, 4, 24, 48), 4)
TRANSPOSED = ((8, 16, 16, 32), (4, 4, 32, 32)), ((2, 4, 8, 8, 32), (3, 3, 3, 32, 16))
KERNELS = (8, 32, 32, 64), (4, 3, 3, 64, 64)
LAYER, BATCH = norm("layer", (4096, 1024)), norm("batch", (64, 32, 32, 64))
GROUP, INSTANCE = norm("group", (16, 28, 28, 320)), norm("instance", (16, 56, 56, 84))
FEW_CLASSES, CLASSES = (400000, 10), (4096, 1000)
INTEGER, SVM = jn.softmax_cross_entropy_with_integer_labels, jn.multiclass_svm_loss
SOFTMAX = [Measured("softmax", jn.softmax, "forward", (x,)) for x in (CLASSES, FEW_CLASSES)]
TOKENS = 2048, 64, 32003
IN_TURN = "one after the other"
CHOICES: list[Choice] = [
    # formulations of y and dx, and their thresholds
    *formulation("by_shifts", conv("forward", *DEPTHWISE), conv("forward", *NARROW_GROUPS)),
    *formulation("by_groups", conv("forward", *FOUR_GROUPS), conv("forward", *FOUR_GROUPS, strides=2)),
    *formulation("by_product", *(conv("forward", *shapes) for shapes in POINTWISE)),
    *formulation("by_leading_taps", conv("forward", *CUBES), conv("forward", *CUBES, strides=2)),
    *formulation("by_blocks", *(conv("dX", x, k, strides=s, padding="VALID") for x, k, s in PATCHES)),
    *formulation("by_phases", conv("dX", *DEPTHWISE, strides=2), conv("dX", *CUBES, strides=2)),
    *constant(choice, "SHIFTED_INPUTS", 0, conv("forward", (8, 16, 16, 64), (3, 3, 4, 384))),
    *constant(choice, "FEW_OUTPUTS", 32, conv("forward", (8, 16, 16, 64), (3, 3, 8, 256))),
    *constant(choice, "SHIFTED_INPUTS_OF_FEW_OUTPUTS", 4, conv("forward", IMAGES, (3, 3, 8, 64))),
    *constant(choice, "SHIFTED_INPUTS_OF_FEW_OUTPUTS", 16, conv("forward", *FOUR_GROUPS)),
    *constant(forward, "TERMS_IN_CACHE", 49, conv("forward", *SEVEN)),
    *constant(forward, "TERMS", 14, conv("forward", (8, 80, 80, 96), (7, 7, 1, 96))),
    *constant(forward, "LAID_OUT_TAPS", NEVER, conv("forward", *NARROW_GROUPS), conv("forward", *DOUBLED)),
    *constant(forward, "UNROLLED_TERMS", 16, conv("forward", (8, 512, 64), (31, 1, 64))),
    *constant(forward, "UNROLLED_CONVOLUTIONS", 1, conv("forward", *FOUR_GROUPS), mapped(*KERNELS)),
    *constant(forward, "UNROLLED_CONVOLUTIONS", 32, conv("forward", (4, 16, 16, 512), (3, 3, 16, 512))),
    *others(
        choice, "_CONVOLVE", (IN_TURN, "by_lax under vmap"),
        dataclasses.replace(CONVOLVE, on_cpu=forward.by_lax, batches=lambda geometry, kernel: True),
        mapped(*KERNELS),
    ),
    *others(
        choice, "_CONVOLVE", ("all kernels at once", IN_TURN),
        dataclasses.replace(CONVOLVE, batches=lambda geometry, kernel: False),
        mapped(IMAGES, (4, 3, 3, 1, 64)), mapped(IMAGES, (4, 1, 1, 64, 64)),
    ),
    # formulations of dkernel, and their thresholds
    *formulation("by_column_sums", conv("dW", *DEPTHWISE), conv("dW", *SEVEN)),
    *formulation("by_merged_groups", conv("dW", *FOUR_GROUPS), conv("dW", *NARROW_GROUPS)),
    *formulation("by_product", *(conv("dW", *shapes) for shapes in POINTWISE)),
    *formulation("by_patches", *(conv("dW", x, k, strides=s, padding="VALID") for x, k, s in PATCHES)),
    *formulation("by_leading_taps", conv("dW", *CUBES), conv("dW", *CUBES, strides=2)),
    *formulation("by_exchange", *(conv("dW", *shapes, transposed=True, strides=2) for shapes in TRANSPOSED)),
    *constant(kernel_gradient, "MERGED_CHANNELS", 4, conv("dW", *NARROW_GROUPS)),
    *constant(kernel_gradient, "MERGED_CHANNELS", 64, conv("dW", *NARROW_GROUPS)),
    *constant(kernel_gradient, "ROWS", 1, conv("dW", *DEPTHWISE)),
    *constant(kernel_gradient, "ROWS", 32, conv("dW", *DEPTHWISE)),
    *constant(kernel_gradient, "CHUNK", NEVER, conv("dW", *DEPTHWISE)),
    *constant(kernel_gradient, "UNROLLED_TAPS", 64, conv("dW", *SEVEN)),
    *others(
        choice, "_CORRELATE", ("dkernel after dx", "in any order"), dataclasses.replace(CORRELATE, waits=False),
        Measured("two convolutions", two_layers, "both", ((16, 32, 32, 64), (3, 3, 64, 64), (3, 3, 64, 64))),
    ),
    # sums over classes, and blocks of the linear loss
    *constant(rows, "FEW", 0, labelled(INTEGER, FEW_CLASSES), dense_labels(FEW_CLASSES)),
    *constant(rows, "FEW", 64, dense_labels((60000, 64))),
    *others(
        rows, "Rows._is_last", ("maxima along the last axis as they are", "unrolled"), lambda rows, shape: False,
        labelled(INTEGER, FEW_CLASSES),
    ),
    *constant(rows, "LARGE", NEVER, dense_labels(CLASSES)),
    *constant(rows, "LARGE", 0, dense_labels((256, 1000))),
    *constant(rows, "LONG_ROW", NEVER, labelled(SVM, (4096, 1024))),
    *constant(rows, "LONG_ROW", 0, labelled(SVM, CLASSES)),
    *others(
        rows, "Rows.leads", ("leads without a select", "with a select"), staticmethod(select),
        dense_labels(CLASSES, "forward"),
    ),
    *others(rows, "Rows.per_row", ("per_row outlined", "inlined"), staticmethod(inlined), dense_labels(CLASSES)),
    *others(rows, "OnePass.total", ("OnePass", "Rows"), rows.Rows.total, *SOFTMAX),
    *constant(columns, "BLOCK_ELEMENTS", 1 << 18, linear(*TOKENS)),
    *constant(columns, "BLOCK_ELEMENTS", 1 << 24, linear(*TOKENS)),
    *constant(columns, "MIN_COLUMNS", 32, linear(32768, 32, 1003)),
    # groups of a norm
    *others(groups, "Cpu", ("Cpu", "Plain"), Plain, LAYER, BATCH, GROUP, INSTANCE),
    *others(
        cpu, "Cpu.at_once", ("at_once", "two passes"), Plain.at_once,
        LAYER._replace(part="forward"), norm("instance", (64, 14, 14, 84), "forward"),
    ),
    *constant(cpu, "SPAN", NEVER, norm("instance", (16, 64, 64, 96), "forward")),
    *constant(cpu, "SAMPLE", 1, LAYER, BATCH),
    *constant(cpu, "BLOCK", NEVER, norm("instance", (32, 32, 32, 128))),
    *others(cpu, "outlined", ("sums outlined", "inlined"), inlined, LAYER, BATCH),
    *others(cpu, "Cpu._ready", ("statistics materialized", "in the pass"), Plain._ready, GROUP, BATCH),
    # products and what follows them
    *(
        Choice(products, "sum_over_rows", over_axes, "sum_over_rows of matrices", "over several axes", m, jaxnorm.dense)
        for m in (dense(jn.affine, (32, 14, 14, 192), 768), dense(jn.affine_relu, (16, 196, 256), 256))
    ),
    *others(
        products, "outlined", ("16-bit products outlined", "inlined"), inlined,
        dense(jn.affine, (4096, 256), 256, "bfloat16"),
    ),
    *others(
        products, "outlined_on_cpu", ("over_kept outlined", "inlined"), inlined,
        dense(jn.affine_relu, (4096, 256), 256, "bfloat16"),
    ),
]  # fmt: skip
