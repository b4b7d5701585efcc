"""PyTorch's side of the benchmarks, eager as it is used: functions of tensors, and thunks that run both passes.

Images are channels-last in memory, as PyTorch recommends: the axes are permuted, the data is not. Only to be called
where PyTorch is installed.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from bench_method import torch
from bench_rivals import EPSILON, Norm
from jax import lax

Call = Callable[[], Any]


def available() -> bool:
    """On an accelerator PyTorch takes part only if it can use it."""
    return bool(torch) and (jax.default_backend() == "cpu" or torch.cuda.is_available())


def tensor(array: Any) -> Any:
    """A copy as a tensor, on the device that JAX uses; a tensor is one already."""
    if torch.is_tensor(array):
        return array
    bfloat16 = array.dtype == jnp.bfloat16
    found = torch.from_numpy(np.array(array.astype(jnp.float32) if bfloat16 else array))
    found = found.to(torch.bfloat16) if bfloat16 else found
    return found if jax.default_backend() == "cpu" else found.cuda()


def pulled_back(function: Callable[..., Any], arguments: Sequence[Any], g: Any, constants: Sequence[Any] = ()) -> Call:
    """Runs `function(*arguments, *constants)` and pulls `g` back to the arguments."""
    arguments = [tensor(a).requires_grad_() for a in arguments]
    constants, g = [tensor(c) for c in constants], tensor(g)

    def call() -> Any:
        y = function(*arguments, *constants)
        return y.detach(), torch.autograd.grad(y, arguments, g)

    return call


def norm(spec: Norm) -> Callable[..., Any]:
    """(x, scale, bias) -> y, x with its channels last."""
    functional, channels = torch.nn.functional, (spec.channels,)

    def function(x: Any, scale: Any, bias: Any = None) -> Any:
        if spec.kind == "layer":
            return functional.layer_norm(x, channels, scale, bias, EPSILON)
        if spec.kind == "rms":
            return functional.rms_norm(x, channels, scale.to(x.dtype), EPSILON)
        images = x.movedim(-1, 1)
        if spec.kind == "batch":
            y = functional.batch_norm(images, None, None, scale, bias, training=True, eps=EPSILON)
        elif spec.kind == "instance":
            y = functional.instance_norm(images, weight=scale, bias=bias, eps=EPSILON)
        else:
            y = functional.group_norm(images, spec.groups, scale, bias, EPSILON)
        return y.movedim(1, -1)

    return function


def in_step(function: Callable[..., Any]) -> Callable[..., Any]:
    """The residual block of `bench_cases.in_step`."""

    def step(x: Any, w1: Any, w2: Any, *parameters: Any) -> Any:
        return x + torch.nn.functional.gelu(function(x @ w1, *parameters), approximate="tanh") @ w2

    return step


def loss(kind: str) -> Callable[..., Any]:
    """(logits, labels) -> float32 losses."""
    functional = torch.nn.functional

    def function(logits: Any, labels: Any) -> Any:
        if kind == "log-softmax":
            return functional.log_softmax(logits, -1)
        if kind == "dense cross-entropy":
            return functional.cross_entropy(logits, labels, reduction="none").float()
        if kind == "cross-entropy":
            return functional.cross_entropy(logits, labels.long(), reduction="none").float()
        # It divides by the number of classes, and on the CPU it has no bfloat16.
        return functional.multi_margin_loss(logits.float(), labels.long(), reduction="none") * logits.shape[-1]

    return function


def linear_cross_entropy(hidden: Any, kernel: Any, labels: Any) -> Any:
    """The last layer and its loss, logits whole."""
    return torch.nn.functional.cross_entropy(hidden @ kernel, labels.long(), reduction="none").float()


CHUNKED = bool(torch) and hasattr(torch.nn.functional, "linear_cross_entropy")  # from PyTorch 2.13 on


def transposed(kernel: Any) -> Any:
    """The kernel as PyTorch's layers keep it in memory: a row for each output."""
    return tensor(kernel).mT.contiguous().mT


def chunked_linear_cross_entropy(hidden: Any, kernel: Any, labels: Any) -> Any:
    """The same, logits of some tokens at a time: PyTorch's own choice of how many, and of the sums' dtype."""
    chunks = torch.nn.LinearCrossEntropyOptions()
    functional = torch.nn.functional
    return functional.linear_cross_entropy(hidden, kernel.mT, labels.long(), reduction="none", options=chunks).float()


def pooling(kind: str, window: int, stride: int, padding: int, channels: int) -> Callable[..., Any]:
    """x -> y, x with its channels last in memory wherever they are last in its shape."""

    def function(x: Any) -> Any:
        images = x.movedim(channels, 1)
        name = f"{'max' if kind == 'max' else 'avg'}_pool{x.ndim - 2}d"
        return getattr(torch.nn.functional, name)(images, window, stride, padding).movedim(1, channels)

    return function


def convolution(x: Any, kernel: Any, g: Any, options: dict[str, Any]) -> dict[str, Call]:
    """The three computations of a convolution (1-D has no channels-last layout), if its padding can say the same."""
    first, space = "dimension_numbers" in options, x.ndim - 2
    if not first:
        x, g, kernel = jnp.moveaxis(x, -1, 1), jnp.moveaxis(g, -1, 1), jnp.moveaxis(kernel, (-1, -2), (0, 1))
    strides, dilation = ((options.get(name, 1),) * space for name in ("strides", "kernel_dilation"))
    pads = options.get("padding", "SAME")
    if isinstance(pads, str):
        reach = [(k - 1) * d + 1 for k, d in zip(kernel.shape[2:], dilation, strict=True)]
        pads = lax.padtype_to_pads(x.shape[2:], reach, strides, pads)
    # One more row at the end than PyTorch's symmetric padding asks for changes the time by less than a row.
    padding = [max(pair) for pair in pads]
    layout = torch.contiguous_format
    if space > 1 and not first:
        layout = torch.channels_last if space == 2 else torch.channels_last_3d
    tx, tk, tg = (tensor(a).contiguous(memory_format=layout) for a in (x, kernel, g))
    static = (list(strides), padding, list(dilation), False, [0] * space, options.get("feature_group_count", 1))
    with torch.no_grad():
        y = torch.convolution(tx, tk, None, *static)
        if y.shape != tg.shape:
            tg = torch.randn_like(y)

    def backward(*mask: bool) -> Call:
        return lambda: torch.ops.aten.convolution_backward(tg, tx, tk, [0], *static, [*mask, False])

    def forward() -> Any:
        with torch.no_grad():
            return torch.convolution(tx, tk, None, *static)

    return {"forward": forward, "dX": backward(True, False), "dW": backward(False, True)}
