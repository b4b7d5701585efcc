"""The table of operations, references and representative inputs that tests, the checker and the benchmarks share.

A `Case` names a public function, its array arguments by name and its static options. `case.function(jaxnorm)` is the
hand-derived rule and `case.function(jaxnorm.reference)` its plain twin, both as functions of the arrays alone, so one
loop can compare them under any transformation. Inputs are float64 NumPy arrays (integers and booleans as they are);
whoever wants another precision casts them.
"""

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Case:
    """One call of a public function: `name(**args, **options)`."""

    name: str  # of the public function
    label: str  # what this case is about, unique among the function's cases
    args: dict[str, Any]  # array arguments by name: NumPy arrays, or pytrees of them (batch_norm's stats)
    options: dict[str, Any] = field(default_factory=dict)  # static keyword options
    rounded_residuals: bool = False  # True: its output alone is kept, in a low precision rounded to that
    exact: dict[str, Any] | None = None  # other arrays for a proof: smaller ones, or without an approximation's branch

    def __str__(self) -> str:
        return f"{self.name}-{self.label}"

    def function(self, module: ModuleType) -> Callable[..., Any]:
        """The public function of `module` as a function of this case's arrays, in the order of `args`."""
        names = tuple(self.args)

        def call(*arrays: Any) -> Any:
            return getattr(module, self.name)(**dict(zip(names, arrays, strict=True)), **self.options)

        call.__name__ = self.name
        parameters = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_ONLY) for name in names]
        vars(call)["__signature__"] = inspect.Signature(parameters)  # so that a report can name the arguments
        return call


def _normal(*shape: int, seed: int = 0, loc: float = 0.0, spread: float = 1.0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).normal(loc, spread, shape)


def _labels(*shape: int, classes: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).integers(0, classes, shape)


def _mask(*shape: int, seed: int = 0, rate: float = 0.7) -> np.ndarray:
    """A random mask whose first row (or entry) is all True, so that no group, class or label is lost by accident."""
    mask = np.random.default_rng([seed, *shape]).random(shape) < rate
    mask[0] = True
    return mask


def _normalization_cases() -> list[Case]:
    x, c = _normal(4, 5, 6, loc=1.0), {"scale": _normal(6, seed=1), "bias": _normal(6, seed=2)}
    image, mask = _normal(3, 4, 5, 6, loc=-2.0), _mask(4, 5, 6)
    empty_row = _mask(4, 5, 6) & (np.arange(4) != 2)[:, None, None]
    stats = (_normal(6, seed=3), np.abs(_normal(6, seed=4)) + 0.5)
    cases = [
        Case("normalize", "one axis", {"x": x, **c}, {"reduction_axes": 1}),
        Case("normalize", "two axes", {"x": x, **c}, {"reduction_axes": (0, -1), "epsilon": 1e-3}),
        Case("normalize", "no axis", {"x": x, **c}, {"reduction_axes": ()}),
        Case("normalize", "rms", {"x": x, **c}, {"reduction_axes": 2, "use_mean": False}),
        Case("normalize", "ddof", {"x": x, **c}, {"reduction_axes": 2, "ddof": 1}),
        Case("normalize", "bare", {"x": x}, {"reduction_axes": 2}),
        Case(
            "normalize",
            "broadcast parameters",
            {"x": x, "scale": _normal(5, 1, seed=1), "bias": _normal(4, 1, 6, seed=2)},
            {"reduction_axes": (1, 2)},
        ),
        Case("normalize", "scalar parameters", {"x": x, "scale": _normal(), "bias": _normal()}, {"reduction_axes": 0}),
        Case("normalize", "masked", {"x": x, **c, "where": mask}, {"reduction_axes": 2, "ddof": 1}),
        Case("normalize", "masked rms", {"x": x, **c, "where": mask}, {"reduction_axes": 2, "use_mean": False}),
        Case("normalize", "broadcast mask", {"x": x, **c, "where": _mask(5, 1)}, {"reduction_axes": (0, 1)}),
        Case("normalize", "empty groups", {"x": x, **c, "where": empty_row}, {"reduction_axes": (1, 2)}),
        Case("normalize", "large mean", {"x": _normal(4, 33, loc=1e4), **{}}, {"reduction_axes": 1}),
        Case("layer_norm", "last axis", {"x": x, **c}),
        Case("layer_norm", "odd width", {"x": _normal(7, 13), "scale": _normal(13), "bias": _normal(13, seed=1)}),
        Case(
            "layer_norm",
            "spread axes",
            {"x": image, "scale": _normal(4, 6, seed=1), "bias": _normal(4, 6, seed=2)},
            {"reduction_axes": (-1, 1)},
        ),
        Case("layer_norm", "masked", {"x": x, **c, "where": mask}),
        Case("layer_norm", "without bias", {"x": x, "scale": c["scale"]}),
        Case("rms_norm", "last axis", {"x": x, "scale": c["scale"]}),
        Case("rms_norm", "spread axes", {"x": image, "scale": _normal(4, 6, seed=1)}, {"reduction_axes": (1, 3)}),
        Case("rms_norm", "masked", {"x": x, "scale": c["scale"], "where": mask}),
        Case("instance_norm", "channels last", {"x": image, **c}),
        Case("instance_norm", "channels first", {"x": np.moveaxis(image, -1, 1).copy(), **c}, {"feature_axis": 1}),
        Case("instance_norm", "masked", {"x": image, **c, "where": _mask(3, 4, 5, 1)}),
        Case("group_norm", "channels last", {"x": image, **c}, {"num_groups": 3}),
        Case(
            "group_norm",
            "channels first",
            {"x": np.moveaxis(image, -1, 1).copy(), **c},
            {"num_groups": 2, "feature_axis": 1},
        ),
        Case("group_norm", "features only", {"x": _normal(5, 6), **c}, {"num_groups": 2}),
        Case("group_norm", "masked", {"x": image, **c, "where": _mask(3, 4, 5, 6)}, {"num_groups": 2}),
        Case("group_norm", "broadcast mask", {"x": image, **c, "where": _mask(4, 1, 1)}, {"num_groups": 3}),
        Case("batch_norm", "training", {"x": image, **c, "stats": stats}, {"training": True, "momentum": 0.9}),
        Case("batch_norm", "inference", {"x": image, **c, "stats": stats}, {"training": False}),
        Case("batch_norm", "own statistics", {"x": x, **c}, {"training": True, "running_ddof": 1}),
        Case("batch_norm", "ddof", {"x": x, **c, "stats": stats}, {"training": True, "ddof": 1, "running_ddof": 2}),
        Case(
            "batch_norm",
            "channels first",
            {"x": np.moveaxis(image, -1, 1).copy(), **c},
            {"training": True, "feature_axis": 1},
        ),
        Case("batch_norm", "masked", {"x": x, **c, "stats": stats, "where": mask}, {"training": True}),
        Case(
            "batch_norm",
            "empty channel",
            {"x": x, **c, "stats": stats, "where": mask & (np.arange(6) != 3)},
            {"training": True, "momentum": 0.5},
        ),
    ]
    return cases


def _softmax_cases() -> list[Case]:
    x, y = _normal(4, 5, 7, spread=3.0), _labels(4, 5, classes=7)
    mask = _mask(7, 4, 5).transpose(1, 2, 0).copy()
    np.put_along_axis(mask, y[..., None], True, -1)
    dense, weights = np.abs(_normal(4, 5, 7, seed=1)), np.abs(_normal(7, seed=2)) + 0.1
    ignored = np.where(_mask(4, 5, seed=3), y, -100)
    integer, both = "softmax_cross_entropy_with_integer_labels", {"return_lse": True, "return_entropy": True}
    return [
        Case("softmax", "last axis", {"x": x}, rounded_residuals=True),
        Case("softmax", "first axis", {"x": x}, {"axis": 0}, rounded_residuals=True),
        Case("softmax", "two axes", {"x": x}, {"axis": (0, 2)}, rounded_residuals=True),
        Case("softmax", "masked", {"x": x, "where": mask}, rounded_residuals=True),
        Case("softmax", "masked rows", {"x": x, "where": mask & (np.arange(5) != 1)[:, None]}, rounded_residuals=True),
        Case("log_softmax", "last axis", {"x": x}),
        Case("log_softmax", "middle axis", {"x": x}, {"axis": -2}),
        Case("softmax_cross_entropy", "dense", {"logits": x, "labels": dense}),
        Case("softmax_cross_entropy", "smoothed", {"logits": x, "labels": dense}, {"label_smoothing": 0.2}),
        Case("softmax_cross_entropy", "middle axis", {"logits": x, "labels": dense}, {"axis": 1}),
        Case("softmax_cross_entropy", "masked", {"logits": x, "labels": dense * mask, "where": mask}),
        Case(
            "softmax_cross_entropy",
            "masked and smoothed",
            {"logits": x, "labels": dense * mask, "where": mask},
            {"label_smoothing": 0.1},
        ),
        Case("softmax_cross_entropy", "one-hot", {"logits": x, "labels": np.eye(7)[y]}),
        Case(integer, "plain", {"logits": x, "labels": y}),
        Case(integer, "first axis", {"logits": x, "labels": _labels(5, 7, classes=4)}, {"axis": 0}),
        Case(integer, "lse", {"logits": x, "labels": y}, {"return_lse": True}),
        Case(integer, "entropy", {"logits": x, "labels": y}, {"return_entropy": True}),
        Case(integer, "ignored", {"logits": x, "labels": ignored}, {"ignore_index": -100, "return_lse": True}),
        Case(integer, "smoothed", {"logits": x, "labels": y}, {"label_smoothing": 0.1}),
        Case(integer, "weighted", {"logits": x, "labels": y, "class_weights": weights}),
        Case(integer, "soft cap", {"logits": x, "labels": y}, {"logit_softcap": 2.5}),
        Case(integer, "masked", {"logits": x, "labels": y, "where": mask}),
        Case(
            integer,
            "everything",
            {"logits": x, "labels": ignored, "where": mask, "class_weights": weights},
            {"ignore_index": -100, "label_smoothing": 0.3, "logit_softcap": 5.0, **both},
        ),
        Case(
            integer,
            "everything, middle axis",
            {"logits": x, "labels": _labels(4, 7, classes=5), "class_weights": weights[:5]},
            {"axis": 1, "label_smoothing": 0.3, "logit_softcap": 5.0, **both},
        ),
        Case("multiclass_svm_loss", "plain", {"scores": x, "labels": y}),
        Case("multiclass_svm_loss", "squared", {"scores": x, "labels": y}, {"power": 2, "margin": 0.5}),
        Case("multiclass_svm_loss", "weighted", {"scores": x, "labels": y, "class_weights": weights}, {"power": 2}),
        Case("multiclass_svm_loss", "first axis", {"scores": x, "labels": _labels(5, 7, classes=4)}, {"axis": 0}),
        Case("multiclass_hinge_loss", "plain", {"scores": x, "labels": y}),
        Case(
            "multiclass_hinge_loss",
            "margin",
            {"scores": x, "labels": _labels(4, 7, classes=5)},
            {"axis": 1, "margin": 2.0},
        ),
    ]


def _linear_loss_cases() -> list[Case]:
    name, y = "linear_softmax_cross_entropy", _labels(3, 5, classes=11)
    base = {"hidden": _normal(3, 5, 4), "kernel": _normal(4, 11, seed=1), "labels": y}
    bias, weights = _normal(11, seed=2), np.abs(_normal(11, seed=3)) + 0.1
    ignored = np.where(_mask(3, 5, seed=4), y, -100)
    everything = {"ignore_index": -100, "label_smoothing": 0.3, "logit_softcap": 3.0, "return_lse": True}
    teacher = {"teacher_hidden": _normal(3, 5, 6, seed=5), "teacher_kernel": _normal(6, 11, seed=6)}
    both = {"hidden": base["hidden"], "kernel": base["kernel"], **teacher}
    of_tokens = {"bias": bias, "teacher_bias": _normal(11, seed=7), "where": _mask(3, 5, seed=8)}
    few = {"hidden": _normal(2, 3), "kernel": _normal(3, 7, seed=1), "labels": np.array([4, -100])}
    few |= {"bias": _normal(7, seed=2), "class_weights": np.abs(_normal(7, seed=3)) + 0.1}
    return [
        Case(name, "plain", base),
        Case(name, "bias and lse", {**base, "bias": bias}, {"return_lse": True, "block_size": 4}),
        Case(name, "weighted", {**base, "class_weights": weights}, {"block_size": 1}),
        Case(name, "smoothed", base, {"label_smoothing": 0.1, "block_size": 10}),
        Case(name, "entropy and top", base, {"return_entropy": True, "return_top": True, "block_size": 4}),
        Case(
            name,
            "everything",
            {**base, "labels": ignored, "bias": bias, "class_weights": weights},
            {**everything, "return_entropy": True, "block_size": 3},
            exact=few,
        ),
        *(
            Case("linear_softmax_kl_divergence", label, args, options, exact=_far_apart(args, seed, classes))
            for label, args, options, seed, classes in (
                ("plain", both, {}, 8104, 5),
                ("in blocks", both, {"block_size": 4}, 3111, 6),
                ("everything", {**both, **of_tokens}, {"temperature": 2.0, "block_size": 3}, 863, 5),
            )
        ),
    ]


def _far_apart(names: Iterable[str], seed: int, classes: int) -> dict[str, Any]:
    """Arguments for which no class is near its mean difference.

    Near it a series takes the place of exp(v) - 1 - v, and one that ends is equal to nothing in exact arithmetic.
    """
    student = {"hidden": _normal(1, 3, seed=9), "kernel": 2 * _normal(3, classes, seed=seed)}
    teacher = {"teacher_hidden": _normal(1, 2, seed=5), "teacher_kernel": 0.5 * _normal(2, classes, seed=6)}
    biases = {"bias": _normal(classes, seed=2), "teacher_bias": _normal(classes, seed=7)}
    return {name: {**student, **teacher, **biases, "where": np.array([True])}[name] for name in names}


def _dense_cases() -> list[Case]:
    x, kernel, bias = _normal(3, 4, 5), _normal(5, 7), _normal(7)
    flat = {"x": x, "kernel": _normal(20, 7), "bias": bias}
    return [
        Case("affine", "last axis", {"x": x, "kernel": kernel, "bias": bias}),
        Case("affine", "without bias", {"x": x, "kernel": kernel}),
        Case("affine", "flattened", flat, {"num_feature_axes": 2}),
        Case("affine", "no batch", {"x": x[0, 0], "kernel": kernel, "bias": bias}),
        Case("relu", "plain", {"x": x}),
        Case("affine_relu", "last axis", {"x": x, "kernel": kernel, "bias": bias}),
        Case("affine_relu", "flattened", flat, {"num_feature_axes": 2, "precision": "highest"}),
    ]


def _conv_case(
    name: str, label: str, x: tuple[int, ...], kernel: tuple[int, ...], outputs: int, **options: Any
) -> Case:
    arrays = {"x": _normal(*x), "kernel": _normal(*kernel, seed=1), "bias": _normal(outputs, seed=2)}
    return Case(name, label, arrays, options)


def _convolution_cases() -> list[Case]:
    first, nchw = ("NCHW", "OIHW", "NCHW"), ("NCH", "OIH", "NHC")
    return [
        _conv_case("conv", "3x3", (2, 5, 6, 3), (3, 3, 3, 4), 4),
        _conv_case("conv", "stride does not divide", (2, 6, 7, 3), (3, 2, 3, 4), 4, strides=(2, 3), padding="VALID"),
        _conv_case("conv", "same lower, stride", (2, 7, 6, 2), (4, 3, 2, 3), 3, strides=2, padding="SAME_LOWER"),
        _conv_case("conv", "negative padding", (2, 8, 7, 2), (3, 3, 2, 3), 3, strides=2, padding=((-1, 2), (1, -2))),
        _conv_case("conv", "dilated kernel", (2, 9, 8, 2), (3, 2, 2, 3), 3, kernel_dilation=(2, 3), padding=(2, 0)),
        _conv_case("conv", "dilated input", (2, 4, 3, 2), (3, 4, 2, 3), 3, input_dilation=(2, 3), padding=1, strides=2),
        _conv_case("conv", "groups", (2, 5, 5, 6), (3, 3, 2, 9), 9, feature_group_count=3, strides=2),
        _conv_case("conv", "depthwise, multiplier", (2, 5, 6, 3), (3, 3, 1, 6), 6, feature_group_count=3),
        _conv_case("conv", "1x1", (2, 4, 5, 3), (1, 1, 3, 4), 4),
        _conv_case("conv", "patches", (2, 8, 8, 3), (4, 4, 3, 5), 5, strides=4, padding="VALID"),
        _conv_case("conv", "channels first", (2, 3, 6, 5), (4, 3, 3, 3), 4, dimension_numbers=first, strides=2),
        _conv_case("conv", "1-D, mixed order", (2, 3, 9), (4, 3, 3), 4, dimension_numbers=nchw, padding=((2, 0),)),
        _conv_case("conv", "1-D, causal", (2, 9, 3), (4, 3, 5), 5, padding=((6, 0),), kernel_dilation=2),
        _conv_case("conv", "3-D", (1, 4, 5, 3, 2), (3, 2, 2, 2, 3), 3, strides=(1, 2, 1)),
        _conv_case("conv_transpose", "same, stride 2", (2, 3, 4, 3), (4, 4, 3, 2), 2, strides=2),
        _conv_case("conv_transpose", "valid, odd", (2, 3, 4, 3), (3, 2, 3, 2), 2, strides=(2, 3), padding="VALID"),
        _conv_case("conv_transpose", "stride above window", (2, 3, 3, 2), (2, 2, 2, 2), 2, strides=3),
        _conv_case(
            "conv_transpose",
            "transposed kernel",
            (2, 3, 5, 3),
            (3, 3, 4, 3),
            4,
            strides=2,
            padding=((1, 2), (2, 0)),
            transpose_kernel=True,
        ),
        _conv_case(
            "conv_transpose",
            "channels first, dilated",
            (2, 3, 4, 5),
            (4, 3, 3, 2),
            4,
            strides=2,
            kernel_dilation=2,
            dimension_numbers=first,
        ),
        _conv_case("conv_transpose", "1-D", (2, 5, 3), (3, 3, 4), 4, strides=2),
        _general_case("channels first", (2, 3, 6, 5), (4, 3, 3, 2), (2, 1), "SAME_LOWER"),
        _general_case("dilations", (2, 3, 6), (4, 3, 2), (2,), ((1, -1),), lhs_dilation=(2,), rhs_dilation=(3,)),
        _general_case(
            "groups", (2, 6, 5, 4), (3, 3, 2, 6), (1, 2), "VALID", feature_group_count=2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"), precision="highest",
        ),
    ]  # fmt: skip


def _general_case(
    label: str, lhs: tuple[int, ...], rhs: tuple[int, ...], window_strides: Any, padding: Any, **options: Any
) -> Case:
    options |= {"window_strides": window_strides, "padding": padding}
    return Case("conv_general_dilated", label, {"lhs": _normal(*lhs), "rhs": _normal(*rhs, seed=1)}, options)


def _pooling_cases() -> list[Case]:
    image, volume, signal = _normal(2, 7, 8, 3), _normal(2, 4, 5, 3, 3), _normal(3, 11, 4)
    first, ends = np.moveaxis(image, -1, 1).copy(), ((1, 0), (2, 1))
    cases = []
    for name in ("max_pool", "avg_pool"):
        cases += [
            Case(name, "3x3, stride 2, same", {"x": image}, {"window": 3, "strides": 2, "padding": "SAME"}),
            Case(name, "overlaps", {"x": image}, {"window": (4, 3), "strides": (1, 2), "padding": ends}),
            Case(name, "channels first", {"x": first}, {"window": 3, "strides": 2, "padding": 1, "feature_axis": 1}),
            Case(name, "1-D, causal", {"x": signal}, {"window": 4, "strides": 1, "padding": ((3, 0),)}),
            Case(name, "3-D", {"x": volume}, {"window": (2, 3, 2), "strides": (1, 2, 1), "padding": (0, 1, 0)}),
        ]
    without = {"strides": 2, "padding": "SAME", "count_include_pad": False}
    return [
        *cases,
        Case("avg_pool", "without padding", {"x": image}, {"window": 3, **without}),
        Case(
            "avg_pool", "wide padding", {"x": signal}, {"window": 2, "padding": ((3, 2),), "count_include_pad": False}
        ),
    ]


def all_cases() -> list[Case]:
    """Every case of every public function."""
    return [
        *_normalization_cases(),
        *_softmax_cases(),
        *_linear_loss_cases(),
        *_dense_cases(),
        *_convolution_cases(),
        *_pooling_cases(),
    ]
