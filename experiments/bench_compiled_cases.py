"""The rows of `bench.py compiled`: shapes of an accelerator's size, and each side as a function of abstract arguments.

The first shape of each kind is the one of `--quick`. A training step is a whole function already: it has one program.
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from bench_models import TRAINED, batch_of, sides, training_step
from bench_rivals import HAND_LOSSES, LOSSES, NORMS, Function, Norm, hand_norm, linen

import jaxnorm as jn
from jaxnorm import reference
from jaxnorm.check import saved_bytes

Shape = tuple[int, ...]

ROWS: list[Shape] = [(8192, 4096), (256, 197, 768), (2048, 16384)]
IMAGES: list[Shape] = [(64, 56, 56, 256), (256, 14, 14, 1024), (32, 112, 112, 64)]
CLASSES = [(8192, 32000), (65536, 1000), (2048, 128256)]
NORM_SHAPES = {
    "layer": ROWS,
    "rms": ROWS,
    "batch": IMAGES,
    "group": IMAGES,
    "instance": IMAGES,
}
LOSS_SHAPES = {
    "log-softmax": CLASSES,
    "cross-entropy": CLASSES,
    "dense cross-entropy": CLASSES,
    "SVM": CLASSES[1:2],
    "hinge": CLASSES[1:2],
}
SOFTMAX_SHAPES = [(16, 16, 1024, 1024), (65536, 1000), (8192, 32000)]
LINEAR_SHAPES = [(8192, 2048, 128256)]  # tokens, width, vocabulary
AFFINE_SHAPES = [(8192, 4096, 4096)]  # rows, width, features
# name, whether transposed, x, kernel, options
CONVOLUTIONS: list[tuple[str, bool, Shape, Shape, dict[str, Any]]] = [
    ("dense 3x3", False, (32, 56, 56, 128), (3, 3, 128, 128), {}),
    ("strided 3x3", False, (32, 56, 56, 128), (3, 3, 128, 256), {"strides": 2}),
    ("grouped 3x3", False, (32, 56, 56, 128), (3, 3, 4, 128), {"feature_group_count": 32}),
    ("depthwise 7x7", False, (32, 56, 56, 96), (7, 7, 1, 96), {"feature_group_count": 96}),
    ("transposed 4x4", True, (32, 28, 28, 128), (4, 4, 128, 128), {"strides": 2}),
]
STEPS = ("transformer", "ConvNeXt", "ResNet")


class Side(NamedTuple):
    """What one side computes: a function of arguments that are differentiated and constants that are not."""

    function: Function
    arguments: Sequence[Any]
    constants: Sequence[Any] = ()
    kept: int | None = None  # of a training step, which is one program


Sides = dict[str, Side]


class Row(NamedTuple):
    """One row; `build` takes the rivals' names."""

    section: str
    name: str
    shape: Shape
    dtype: str
    build: Callable[[Sequence[str]], Sides]

    @property
    def title(self) -> str:
        """How it is called in the table, and by `--only`."""
        return f"{self.name} {'×'.join(map(str, self.shape))}"

    def wanted(self, only: Sequence[str]) -> bool:
        """Whether a text is the row's section or a part of its title."""
        return any(text == self.section or text in self.title for text in only)


def array(shape: Sequence[int], dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
    """An array that is not there."""
    return jax.ShapeDtypeStruct(tuple(shape), jnp.dtype(dtype))


def every(functions: Mapping[str, Function], arguments: Sequence[Any], constants: Sequence[Any] = ()) -> Sides:
    """Sides that take the same arguments."""
    return {name: Side(function, arguments, constants) for name, function in functions.items()}


def norm_case(kind: str, shape: Shape, dtype: str, rivals: Sequence[str]) -> Sides:
    """A norm over x with parameters in float32."""
    norm = Norm(kind, shape, jnp.dtype(dtype))
    functions = {"jaxnorm": hand_norm(norm)} | {name: NORMS[name](norm) for name in rivals if name in NORMS}
    parameters = [array((norm.channels,))] * (1 if norm.kind == "rms" else 2)
    return every(functions, [array(norm.shape, norm.dtype), *parameters])


def softmax_case(shape: Shape, dtype: str, rivals: Sequence[str]) -> Sides:
    """The softmax alone."""
    functions: dict[str, Function] = {"jaxnorm": jn.softmax, "plain": jax.nn.softmax}
    return every({name: f for name, f in functions.items() if name in ("jaxnorm", *rivals)}, [array(shape, dtype)])


def in_float32(loss: Function) -> Function:
    """The loss, as it enters a mean."""
    return lambda *arguments: loss(*arguments).astype(jnp.float32)


def loss_case(kind: str, shape: Shape, dtype: str, rivals: Sequence[str]) -> Sides:
    """A loss of logits and labels; the log-softmax stays in its dtype."""
    functions = {"jaxnorm": HAND_LOSSES[kind]} | {r: LOSSES[r][kind] for r in rivals if kind in LOSSES.get(r, {})}
    if kind == "log-softmax":
        return every({name: lambda x, f=f: f(x, None) for name, f in functions.items()}, [array(shape, dtype)])
    labels = array(shape, dtype) if kind == "dense cross-entropy" else array(shape[:1], jnp.int32)
    return every({name: in_float32(f) for name, f in functions.items()}, [array(shape, dtype)], [labels])


def linear_case(shape: tuple[int, int, int], dtype: str, rivals: Sequence[str]) -> Sides:
    """The last layer and its loss: in blocks of the vocabulary, and composed."""
    tokens, width, vocabulary = shape

    def over(loss: Function) -> Function:
        return lambda hidden, kernel, labels: loss(hidden @ kernel, labels)

    functions: dict[str, Function] = {"jaxnorm": lambda *a: jnp.asarray(jn.linear_softmax_cross_entropy(*a))}
    functions |= {"composed": over(HAND_LOSSES["cross-entropy"])} if "composed" in rivals else {}
    functions |= {name: over(LOSSES[name]["cross-entropy"]) for name in rivals if name in LOSSES}
    arguments = [array((tokens, width), dtype), array((width, vocabulary), dtype)]
    return every({name: in_float32(f) for name, f in functions.items()}, arguments, [array((tokens,), jnp.int32)])


def affine_case(relu: bool, shape: tuple[int, int, int], dtype: str, rivals: Sequence[str]) -> Sides:
    """A dense layer with a bias, perhaps behind a ReLU."""
    rows, width, features = shape
    functions: dict[str, Function] = {"jaxnorm": jn.affine_relu if relu else jn.affine}
    theirs = jax.nn.relu if relu else lambda y: y
    if "plain" in rivals:
        functions["plain"] = lambda x, kernel, bias: theirs(x @ kernel + bias)
    if "linen" in rivals:
        dense = linen.Dense(features, dtype=dtype)
        functions["linen"] = lambda x, k, b: theirs(dense.apply({"params": {"kernel": k, "bias": b}}, x))
    return every(functions, [array(s, dtype) for s in ((rows, width), (width, features), (features,))])


def conv_case(index: int, shape: Shape, dtype: str, rivals: Sequence[str]) -> Sides:
    """A convolution with a bias, as a layer has it."""
    _, transposed, _, kernel, options = CONVOLUTIONS[index]

    def of(module: Any) -> Function:
        return functools.partial(module.conv_transpose if transposed else module.conv, **options)

    functions = {"jaxnorm": of(jn)} | ({"plain": of(reference)} if "plain" in rivals else {})
    if "linen" in rivals:
        make = linen.ConvTranspose if transposed else linen.Conv
        options = {key: (value,) * 2 if key == "strides" else value for key, value in options.items()}
        layer = make(kernel[-1], kernel[:2], **options, dtype=dtype)
        functions["linen"] = lambda x, k, b: layer.apply({"params": {"kernel": k, "bias": b}}, x)
    return every(functions, [array(a, dtype) for a in (shape, kernel, kernel[-1:])])


def step_case(name: str, shape: Shape, dtype: str, rivals: Sequence[str]) -> Sides:
    """A whole training step: loss, gradients and AdamW."""
    del shape  # the model's own
    model, kind = TRAINED[name], jnp.dtype(dtype)
    inputs, labels = batch_of(model, "large")
    x = inputs if model.inputs == "tokens" else inputs.astype(kind)
    found = {}
    for name_of_side, side in sides(model, kind, inputs, labels, rivals).items():
        step, values = training_step(side, inputs, labels, kind)
        kept = saved_bytes(lambda params, side=side: side.loss(params, side.stats, x, labels)[0], side.params)
        found[name_of_side] = Side(step, jax.tree.map(lambda a: array(a.shape, a.dtype), values), (), kept)
    return found


Kind = tuple[str, str, Sequence[Shape], Callable[..., Sides]]


def kinds() -> Iterator[Kind]:
    """Section, name and shapes of each kind of row, and what builds it from a shape, a dtype and the rivals."""
    for kind, shapes in NORM_SHAPES.items():
        yield "norms", f"{kind} norm", shapes, functools.partial(norm_case, kind)
    yield "softmax", "softmax", SOFTMAX_SHAPES, softmax_case
    for kind, sizes in LOSS_SHAPES.items():
        section = "softmax" if kind == "log-softmax" else "losses"
        yield section, kind, sizes, functools.partial(loss_case, kind)
    yield "linear", "linear loss", LINEAR_SHAPES, linear_case
    yield "affine", "affine", AFFINE_SHAPES, functools.partial(affine_case, False)
    yield "affine", "affine_relu", AFFINE_SHAPES, functools.partial(affine_case, True)
    for index, (name, _, x, kernel, _) in enumerate(CONVOLUTIONS):
        yield "conv", f"conv {name}, {kernel[-1]} channels,", [x], functools.partial(conv_case, index)
    for name in STEPS:
        shape = jax.eval_shape(lambda name=name: batch_of(TRAINED[name], "large")[0]).shape
        yield "steps", f"step {name}", [shape], functools.partial(step_case, name)


def rows(dtypes: Sequence[str], quick: bool) -> Iterator[Row]:
    """Every row, or of each kind the first."""
    for dtype in dtypes:
        for section, name, shapes, build in kinds():
            for shape in shapes[:1] if quick else shapes:
                yield Row(section, name, shape, dtype, functools.partial(build, shape, dtype))
