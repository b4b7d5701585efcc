"""The checker: planted wrong rules are rejected with the argument and the reason, right ones accepted; the command."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.custom_batching import custom_vmap
from support import normal

import jaxnorm as jn
from jaxnorm.__main__ import main
from jaxnorm.check import Report, check_vjp, saved_bytes
from jaxnorm.check._cases import all_cases

pytestmark = pytest.mark.usefixtures("quick_compilation")


def custom(primal: Callable[..., Any], forward: Callable[..., Any], backward: Callable[..., Any]) -> Callable[..., Any]:
    """A custom VJP with the primal's own parameters."""
    rule = jax.custom_vjp(primal)
    rule.defvjp(forward, backward)
    return rule


# --- the right rules, each with the way in which it can be made wrong -------------------------------------------------


def standardize_value(x):
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    centred = wide - wide.mean(-1, keepdims=True)
    return (centred * jax.lax.rsqrt((centred**2).mean(-1, keepdims=True) + 1e-5)).astype(x.dtype)


def standardize(wrong: str = "") -> Callable[..., Any]:
    def forward(x):
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        mean = wide.mean(-1, keepdims=True)
        rstd = jax.lax.rsqrt(((wide - mean) ** 2).mean(-1, keepdims=True) + 1e-5)
        if wrong == "statistics":
            mean, rstd = mean.astype(x.dtype), rstd.astype(x.dtype)
        value = standardize_value(x)
        return value * 1.0001 if wrong == "primal" else value, (x, mean, rstd)

    def backward(residuals, g):
        x, mean, rstd = residuals
        wide = g.astype(jnp.promote_types(g.dtype, jnp.float32))
        x_hat = (x - mean) * rstd
        last = 0 if wrong == "term" else x_hat * (wide * x_hat).mean(-1, keepdims=True)
        dx = rstd * (wide - wide.mean(-1, keepdims=True) - last)
        if wrong == "even" and x.shape[-1] % 2 == 0:
            dx = dx * 1.5
        if wrong == "vmap":
            dx = wrong_when_batched(dx)
        return (dx.astype(x.dtype),)

    return custom(standardize_value, forward, backward)


@jax.custom_jvp
def wrong_when_batched(dx):
    return _doubled_when_batched(dx)


wrong_when_batched.defjvp(lambda primals, tangents: (wrong_when_batched(*primals), tangents[0]))


@custom_vmap
def _doubled_when_batched(dx):
    return dx * 1.0


@_doubled_when_batched.def_vmap
def _(size, batched, dx):
    return dx * 2.0, True


def subtract(wrong: str = "") -> Callable[..., Any]:
    def x_minus_y(x, y):
        return x - y

    sign = 1.0 if wrong == "sign" else -1.0
    return custom(
        x_minus_y, lambda x, y: (x - y, (x, y)), lambda at, g: (g.astype(at[0].dtype), (g * sign).astype(at[1].dtype))
    )


def add_bias(wrong: str = "") -> Callable[..., Any]:
    def biased(x, bias):
        return x + bias[None]

    def backward(residuals, g):
        x, bias = residuals
        dbias = g.sum(1 if wrong == "axis" else 0)
        dtype = jnp.promote_types(bias.dtype, jnp.float32) if wrong == "dtype" else bias.dtype
        return g.astype(x.dtype), dbias.astype(dtype)

    return custom(biased, lambda x, bias: (biased(x, bias), (x, bias)), backward)


def matmul(wrong: str = "") -> Callable[..., Any]:
    def product(x, w):
        return jnp.dot(x, w, preferred_element_type=jnp.promote_types(x.dtype, jnp.float32)).astype(x.dtype)

    def backward(residuals, g):
        x, w = residuals
        if wrong == "accumulation":
            dw = jax.lax.scan(lambda dw, row: (dw + jnp.outer(*row).astype(w.dtype), None), jnp.zeros_like(w), (x, g))[
                0
            ]
        else:
            dw = product(x.T, g) / (x.shape[0] if wrong == "batch size" else 1)
        dx = product(g, w.T)
        return (dx[:, :-1] if wrong == "shape" else dx).astype(x.dtype), dw.astype(w.dtype)

    return custom(product, lambda x, w: (product(x, w), (x, w)), backward)


def total(wrong: str = "") -> Callable[..., Any]:
    def sum_of_squares(x):
        return jnp.sum(x * x)

    return custom(
        sum_of_squares, lambda x: (sum_of_squares(x), x), lambda x, g: (2 * x if wrong == "one" else 2 * x * g,)
    )


def two_outputs(wrong: str = "") -> Callable[..., Any]:
    def sine_and_square(x):
        return {"sine": jnp.sin(x), "square": x * x}

    def backward(x, g):
        dx = jnp.cos(x) * g["sine"]
        return (dx if wrong == "second" else dx + 2 * x * g["square"],)

    return custom(sine_and_square, lambda x: (sine_and_square(x), x), backward)


def cube(wrong: str = "") -> Callable[..., Any]:
    def cubed(x):
        return x * x * x

    def backward(x, g):
        kept = jax.lax.stop_gradient(x) if wrong == "second derivative" else x
        dx = 3 * kept * kept * g
        if wrong == "element":
            dx = dx.reshape(-1).at[7321].multiply(1.001).reshape(x.shape)
        return (dx,)

    return custom(cubed, lambda x: (cubed(x), x), backward)


def masked_exp(wrong: str = "") -> Callable[..., Any]:
    def exp_where(x, where):
        return jnp.where(where, jnp.exp(x), x)

    def backward(residuals, g):
        y, where = residuals
        return g * jnp.where(where, y, y * 0 + 1 if wrong != "masked" else y), None

    def forward(x, where):
        y = exp_where(x, where)
        return y, (y, where)

    return custom(exp_where, forward, backward)


def pick(wrong: str = "") -> Callable[..., Any]:
    """A pytree, a closed-over option, integers."""

    def gathered(params, labels):
        return jnp.take_along_axis(params["table"], labels[:, None], 1)[:, 0] * params["gain"]

    def backward(residuals, g):
        params, labels = residuals
        picked = jnp.take_along_axis(params["table"], labels[:, None], 1)[:, 0]
        where = labels[:, None] == jnp.arange(params["table"].shape[1])[None]
        dtable = jnp.where(where, (g * params["gain"])[:, None], 0)
        dgain = jnp.sum(g * picked) * (0 if wrong == "gain" else 1)
        return {"table": dtable.astype(params["table"].dtype), "gain": dgain.astype(params["gain"].dtype)}, None

    return custom(gathered, lambda params, labels: (gathered(params, labels), (params, labels)), backward)


def plain(rule: Callable[..., Any]) -> Callable[..., Any]:
    """The function without its rule, differentiated by JAX."""
    return rule.fun


@dataclass(frozen=True)
class Plant:
    make: Callable[..., Any]
    wrong: str
    args: Callable[[int], tuple[Any, ...]]  # of a seed
    failure: str  # in the failures: the check and the argument
    reason: str = ""
    first: str = ""  # what the first failure says, if not this one
    alone: str = ""  # the same without a reference; "" where low precision, or nothing, tells

    def __str__(self) -> str:
        return f"{self.make.__name__}-{self.wrong}".replace(" ", "_")


def rows(n: int, d: int, loc: float = 0.5) -> Callable[[int], tuple[Any, ...]]:
    return lambda seed: (loc + normal(n, d, seed=seed),)


def picked(seed: int) -> tuple[Any, ...]:
    labels = np.random.default_rng(seed).integers(0, 4, 6)
    return {"table": normal(6, 4, seed=seed), "gain": normal(seed=seed)}, labels


def arrays(*shapes: tuple[int, ...]) -> Callable[[int], tuple[Any, ...]]:
    return lambda seed: tuple(normal(*shape, seed=seed + i) for i, shape in enumerate(shapes))


def masked(seed: int) -> tuple[Any, ...]:
    return normal(6, 8, seed=seed), normal(6, 8, seed=seed + 1) > 0


WRONG_DTYPE = "in bfloat16 it is float32[5], the argument's is bfloat16[5]"
SOME, ALL_ZERO, LESS = "elements are wrong", "it is 0 everywhere", "less exact than plain autodiff"
DX = "differences: x at"
PLANTS = [
    Plant(standardize, "term", rows(6, 8), "cotangent: x at", SOME, alone=DX),
    Plant(subtract, "sign", arrays((3, 4), (3, 4)), "cotangent: y at", "it is -1 times", alone="differences: y at"),
    Plant(add_bias, "axis", arrays((5, 5), (5,)), "cotangent: bias at", SOME, alone="differences: bias at"),
    Plant(
        matmul, "batch size", arrays((4, 3), (3, 5)), "cotangent: w at", "it is 0.25 times", alone="differences: w at"
    ),
    Plant(add_bias, "dtype", arrays((5, 5), (5,)), "structure: bias", WRONG_DTYPE, alone="structure: bias"),
    Plant(matmul, "shape", arrays((4, 3), (3, 5)), "structure: x, w", "raises ValueError", alone="structure: x, w"),
    Plant(
        standardize,
        "primal",
        rows(6, 8),
        "primal under vjp: output at",
        "it is 1.0001 times",
        alone="primal: output at",
    ),
    Plant(
        total,
        "one",
        rows(6, 8),
        "linear: x at",
        "not linear in the incoming cotangent",
        first="cotangent: x at",
        alone="linear: x at",
    ),
    Plant(
        two_outputs,
        "second",
        rows(6, 8),
        "cotangent from output['square']: x at",
        ALL_ZERO,
        first="cotangent: x at",
        alone=DX,
    ),
    Plant(standardize, "even", rows(6, 8), "cotangent: x at", "it is 1.5 times", alone=DX),
    Plant(cube, "element", rows(100, 100), "cotangent: x at [73, 21]", f"1 of 10000 {SOME}", alone=f"{DX} [73, 21]"),
    Plant(masked_exp, "masked", masked, "cotangent: x at", SOME, alone=DX),
    Plant(standardize, "statistics", rows(6, 48, 3.0), "bfloat16: x at", LESS),
    Plant(matmul, "accumulation", arrays((64, 3), (3, 5)), "bfloat16: w at", LESS),
    Plant(
        standardize,
        "vmap",
        rows(6, 8),
        "vmap over x: x at",
        "it is 2 times",
        first="vmap over all: x at",
        alone="vmap over x: x at",
    ),
    Plant(cube, "second derivative", rows(6, 8), "grad of grad: x at", ALL_ZERO, alone="second order: x"),
    Plant(pick, "gain", picked, "cotangent: params['gain']", "wanted", alone="differences: params['gain']"),
]


@pytest.mark.parametrize("plant", PLANTS, ids=str)
def test_a_wrong_rule_is_rejected_with_the_argument_and_the_reason(plant: Plant):
    rule = plant.make(plant.wrong)
    report = check_vjp(rule, *plant.args(0), reference=plain(rule))
    found = [failure for failure in report.failures if failure.startswith(plant.failure)]
    assert found and not report.ok and report.failures[0].startswith(plant.first or plant.failure), report
    assert plant.reason in found[0]
    with pytest.raises(AssertionError, match="checks fail"):
        report.raise_if_failed()


@pytest.mark.thorough
@pytest.mark.parametrize("plant", [p for p in PLANTS if p.alone], ids=str)
def test_a_wrong_rule_is_rejected_without_a_reference(plant: Plant):
    report = check_vjp(plant.make(plant.wrong), *plant.args(0))
    assert any(failure.startswith(plant.alone) for failure in report.failures), report


MAKERS = {plant.make: plant for plant in PLANTS if plant.wrong != "element"}.values()  # right ones: test_check_right


@pytest.mark.thorough
@pytest.mark.parametrize("plant", MAKERS, ids=lambda plant: plant.make.__name__)
def test_right_rules_are_accepted_without_a_reference(plant: Plant):
    for seed in range(3):
        check_vjp(plant.make(), *plant.args(seed), seed=seed).raise_if_failed()


def test_a_rule_wrong_for_even_sizes_holds_for_odd_ones():
    check_vjp(standardize("even"), normal(6, 7), reference=standardize_value).raise_if_failed()


@pytest.mark.parametrize("enabled", [False, True])
def test_float64_whatever_x64_says_and_float32_arguments(enabled: bool):
    with jax.enable_x64(enabled):
        x = jnp.arange(1, 5, dtype=jnp.float32)
        assert check_vjp(cube(), x, reference=plain(cube())).ok
        assert not check_vjp(cube("second derivative"), x).ok
        assert jnp.ones(1).dtype == (np.float64 if enabled else np.float32)  # left as it was


def test_kinks_are_left_out_and_said_to_be():
    x = np.array([-1.0, 0.0, 2.0, 1e-9, -1e-7])
    report = check_vjp(jn.relu, x)
    report.raise_if_failed()
    assert any(row.check == "left out" and row.about == "x" and "kinks" in row.note for row in report.rows)
    assert not check_vjp(lambda x: jnp.abs(x).sum(), np.zeros(3), checks=["differences"]).ok  # nothing is left
    step = custom(jn.relu, lambda x: (jn.relu(x), x), lambda x, g: (jnp.where(x > 1, g, 0),))
    assert any(f.startswith("differences: x at") for f in check_vjp(step, np.array([-1.0, 0.0, 0.5, 2.0])).failures)
    check_vjp(jn.relu, normal(40, 500), checks=["differences"]).raise_if_failed()  # kinks near in any direction
    check_vjp(lambda x: jnp.log(x), np.array([1e-8, 1.0, 1e8])).raise_if_failed()
    check_vjp(jn.log_softmax, np.array([[0.0, -np.inf, 1.0]]), reference=None, checks=["differences"]).raise_if_failed()


def test_arguments_by_position_options_by_partial_and_closures():
    w = normal(4, dtype=jnp.float32)
    bound = partial(jn.layer_norm, epsilon=0.1)
    report = check_vjp(lambda x, shift: bound(x * w) + shift, normal(3, 4), normal(4), argnums=-1)
    report.raise_if_failed()
    assert {row.about for row in report.rows if row.check == "differences"} == {"shift"}
    named = check_vjp(bound, normal(3, 4), normal(4), reference=partial(jn.reference.layer_norm, epsilon=0.1))
    named.raise_if_failed()
    assert named.name == "layer_norm" and {"x", "scale"} <= {row.about for row in named.rows}
    wrong = check_vjp(bound, normal(3, 4), reference=jn.reference.layer_norm, checks=[])
    assert any(f.startswith("primal: output at") for f in wrong.failures)


def test_integer_outputs_keys_and_functions_that_refuse_low_precision():
    def noisy(key, x):
        y = x * jax.random.normal(key, x.shape, x.dtype)
        return y, jnp.argmax(y)

    check_vjp(noisy, jax.random.key(0), normal(5), checks=["differences", "transforms"]).raise_if_failed()

    def only_float32_and_up(x):
        if x.dtype == jnp.bfloat16:
            raise TypeError("no bfloat16")
        return jnp.sin(x)

    report = check_vjp(only_float32_and_up, normal(5), reference=jnp.sin)
    report.raise_if_failed()
    assert any(row.check == "bfloat16" and "no bfloat16" in row.note for row in report.rows)


def test_empty_arrays_scalars_and_callables_without_a_hash():
    class Scale:
        __hash__ = None

        def __call__(self, x):
            return 3.0 * x

    check_vjp(Scale(), 2.0).raise_if_failed()
    check_vjp(Scale(), normal(3), reference=lambda x: x * 3).raise_if_failed()
    check_vjp(jn.layer_norm, np.zeros((0, 4)), np.ones(4), reference=jn.reference.layer_norm).raise_if_failed()
    check_vjp(jn.layer_norm, np.zeros((0, 4)), np.ones(4)).raise_if_failed()


def test_what_a_rule_raises_under_a_transformation_is_a_failure():
    def backward(x, g):
        if isinstance(x, jax.core.Tracer) and type(x).__name__ == "BatchTracer":
            raise NotImplementedError("no batching")  # the planted fault
        return (2 * x * g,)

    square = custom(lambda x: x * x, lambda x: (x * x, x), backward)
    report = check_vjp(square, normal(3), reference=lambda x: x * x)
    assert any(f.startswith("vmap over x: x") and "no batching" in f for f in report.failures), report

    def once(x, g):
        return (jax.pure_callback(lambda x, g: np.asarray(2 * x * g), jax.typeof(x), x, g),)

    square = custom(lambda x: x * x, lambda x: (x * x, x), once)
    report = check_vjp(square, normal(3), checks=["differences", "second order"])
    assert [f for f in report.failures if not f.startswith("second order: x: fun raises")] == [] != report.failures


def test_a_report_is_plain_data_and_text_with_and_without_rich(monkeypatch: pytest.MonkeyPatch):
    bad = custom(lambda x: x * x, lambda x: (x * x, x), lambda x, g: (g / (x - x),))
    report = check_vjp(bad, np.array([1.0, 2.0]), reference=lambda x: x * x)
    assert type(report) is Report and not report.ok
    data = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert data["failures"] == report.failures and data["ok"] is False and data["cost"]["bytes kept"]["fun"] == 0
    assert any(row["got"] in ("inf", "-inf", "nan") for row in data["rows"])
    assert "┃" in str(report) and report.failures[0] in str(report)
    monkeypatch.setitem(sys.modules, "rich.console", None)
    assert "┃" not in str(report) and "cotangent  " in str(report)
    with pytest.raises(AttributeError):
        report.rows = ()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: check_vjp(jnp.sin, np.arange(3)), TypeError, r"args must hold a floating-point array.*int64\[3\]"),
        (lambda: check_vjp(jnp.sin, "text"), TypeError, "x must be an array, got str"),
        (lambda: check_vjp(jnp.sin, np.ones(2, complex)), TypeError, r"x must be real, got complex128\(2,\)"),
        (lambda: check_vjp(jnp.sin, np.ones(2), argnums=1), ValueError, r"argnums must lie in \[0, 1\).*got 1"),
        (lambda: check_vjp(jnp.sin, np.ones(2), checks=["speed"]), ValueError, "checks must be among.*'speed'"),
        (lambda: check_vjp(jnp.sin, np.ones(2), seeds=1), ValueError, "seeds must be at least 2, got 1"),
        (lambda: check_vjp(jnp.sin, np.ones(2), directions=0), ValueError, "directions must be at least 1, got 0"),
        (
            lambda: check_vjp(jnp.sin, np.ones(2), reference=lambda x: (x, x)),
            ValueError,
            "reference must return as many",
        ),
        (lambda: check_vjp(jnp.argmax, np.ones(2)), TypeError, "fun must return a floating-point array"),
    ],
)
def test_errors_name_the_argument(call, error, message):
    with pytest.raises(error, match=message):
        call()


# --- what is kept -----------------------------------------------------------------------------------------------------


def test_saved_bytes_of_known_functions():
    x, w = jnp.ones((8, 16), jnp.float32), jnp.ones((16, 4), jnp.float32)
    assert saved_bytes(lambda x: x + 1, x) == saved_bytes(lambda x: x * x, x) == 0
    assert saved_bytes(jnp.sin, x) == saved_bytes(jnp.exp, x) == x.nbytes
    assert saved_bytes(lambda x, w: x @ w, x, w) == saved_bytes(jn.affine, x, w) == 0
    assert saved_bytes(lambda x, w: jnp.sin(x @ w), x, w) == 8 * 4 * 4
    assert saved_bytes(jn.relu, x) == x.nbytes  # its output
    assert saved_bytes(jnp.sin, jax.ShapeDtypeStruct((1 << 20, 1 << 20), jnp.bfloat16)) == 1 << 41  # nothing runs
    assert saved_bytes(lambda tree, n: tree["a"] * tree["b"] * n, {"a": x, "b": x}, 3) == 4  # n as a float32
    with pytest.raises(TypeError):
        saved_bytes(jnp.sin, "x")


def test_saved_bytes_under_jit_is_the_same():
    x = jnp.ones((8, 16), jnp.float32)
    for function in (jnp.sin, jn.relu, jn.layer_norm, jn.softmax, lambda x: x * x, lambda x: jnp.sin(x) * jnp.exp(x)):
        assert saved_bytes(jax.jit(function), x) == saved_bytes(function, x)
    twice = jax.jit(lambda x: (jnp.exp(x), 3 * jnp.exp(x)))  # one array, used twice
    assert saved_bytes(lambda x: (lambda e: e * e)(jnp.exp(x)), x) == x.nbytes
    assert saved_bytes(twice, x) <= 2 * x.nbytes


def test_saved_bytes_of_closures_and_constants():
    x, w = jnp.ones((8, 16), jnp.float32), jnp.full((8, 16), 2, jnp.float32)
    for function in (lambda x: x * w, jax.jit(lambda x: x * w), lambda x: x * np.asarray(w)):
        assert saved_bytes(function, x) == 0
    assert saved_bytes(lambda x: x * (w + 1), x) == saved_bytes(jax.jit(lambda x: x * (w + 1)), x) == x.nbytes
    labels = jnp.arange(8) % 16
    loss = partial(jn.softmax_cross_entropy_with_integer_labels, labels=labels)
    assert saved_bytes(loss, x) == saved_bytes(jn.softmax_cross_entropy_with_integer_labels, x, labels) < x.nbytes / 2


def test_saved_bytes_are_what_jax_holds():
    """Against the buffers of a pullback that ran."""
    x = normal(8, 16, dtype=jnp.float32)
    for function in (jnp.sin, jn.relu, jn.layer_norm, jn.softmax, jax.nn.relu, jax.nn.softmax, jax.nn.standardize):
        leaves = [leaf for leaf in jax.tree.leaves(jax.vjp(function, x)[1]) if leaf.ndim]  # a scalar is a constant here
        buffers = {leaf.unsafe_buffer_pointer(): leaf.nbytes for leaf in leaves if leaf is not x}
        assert saved_bytes(function, x) == sum(buffers.values())


def test_saved_bytes_of_a_layer_norm_written_as_flax_does():
    def layer_norm(x, scale):
        mean = x.mean(-1, keepdims=True)
        variance = jnp.maximum(0, (x * x).mean(-1, keepdims=True) - mean * mean)
        return (x - mean) * (jax.lax.rsqrt(variance + 1e-6) * scale)

    x, scale = jnp.ones((32, 64), jnp.float32), jnp.ones(64, jnp.float32)
    assert 2 * x.nbytes <= saved_bytes(layer_norm, x, scale) <= 2.2 * x.nbytes
    assert saved_bytes(jn.layer_norm, x, scale) < 0.05 * x.nbytes


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_command_exits_0_where_all_holds(tmp_path, capsys: pytest.CaptureFixture[str]):
    assert main(["check", "relu", "multiclass_hinge_loss", "--json", str(tmp_path / "report.json")]) == 0
    printed = capsys.readouterr().out
    assert "3 of 3 cases hold" in printed and "multiclass_hinge_loss" in printed
    data = json.loads((tmp_path / "report.json").read_text())
    assert [row["function"] for row in data["functions"]] == ["relu", "multiclass_hinge_loss"]
    assert data["cases"]["relu-plain"]["ok"] is True
    assert data["functions"][0]["bytes_kept"] < data["functions"][0]["bytes_kept_by_autodiff"]


def test_the_command_exits_1_where_a_rule_is_wrong(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    wrong = custom(jn.relu, lambda x: (jn.relu(x), x), lambda x, g: (jnp.where(x > 0, g, 0) * 1.01,))
    monkeypatch.setattr(jn, "relu", wrong)
    assert main(["check", "relu"]) == 1
    printed = capsys.readouterr().out
    assert "relu-plain: cotangent: x at" in printed and "it is 1.01 times what it should be" in printed
    assert "1 FAIL" in printed and "0 of 1 cases hold" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["check", "relo"], "no function 'relo'; there are normalize, layer_norm"),
        (["check", "--json", "absent/x"], "--json"),
    ],
)
def test_the_command_exits_2_on_bad_arguments(arguments, message, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as error:
        main(arguments)
    assert error.value.code == 2 and message in capsys.readouterr().err


def test_the_command_lists_and_is_a_module():
    listed = subprocess.run(
        [sys.executable, "-m", "jaxnorm", "check", "--list"], check=True, capture_output=True, text=True, timeout=120
    ).stdout
    assert "relu: 1 cases" in listed and len(listed.splitlines()) == len({case.name for case in all_cases()})
