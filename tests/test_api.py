"""The public interface: every name, its exact signature, its twin in `reference`, its docstring."""

import inspect
import re
import subprocess
import sys
from importlib.metadata import version

import jax
import pytest

import jaxnorm as jn
from jaxnorm import check, reference
from jaxnorm.check._cases import all_cases

SIGNATURES = """
normalize(x, scale=None, bias=None, *, reduction_axes, epsilon=1e-05, use_mean=True, ddof=0, where=None, axis_name=None)
layer_norm(x, scale=None, bias=None, *, reduction_axes=-1, epsilon=1e-05, where=None, axis_name=None)
rms_norm(x, scale=None, *, reduction_axes=-1, epsilon=1e-05, where=None, axis_name=None)
instance_norm(x, scale=None, bias=None, *, feature_axis=-1, epsilon=1e-05, where=None)
group_norm(x, scale=None, bias=None, *, num_groups, feature_axis=-1, epsilon=1e-05, where=None)
init_batch_stats(num_features, *, dtype=<class 'jax.numpy.float32'>)
batch_norm(x, scale=None, bias=None, stats=None, *, training, feature_axis=-1, momentum=0.99, epsilon=1e-05, ddof=0,\
 running_ddof=0, where=None, axis_name=None)
softmax(x, axis=-1, where=None)
log_softmax(x, axis=-1, where=None)
softmax_cross_entropy(logits, labels, axis=-1, where=None, *, label_smoothing=0.0)
softmax_cross_entropy_with_integer_labels(logits, labels, axis=-1, where=None, *, ignore_index=None,\
 label_smoothing=0.0, class_weights=None, logit_softcap=None, return_lse=False, return_entropy=False)
linear_softmax_cross_entropy(hidden, kernel, labels, bias=None, *, ignore_index=None, label_smoothing=0.0,\
 class_weights=None, logit_softcap=None, block_size=None, axis_name=None, return_lse=False, return_entropy=False,\
 return_top=False)
linear_softmax_kl_divergence(hidden, kernel, teacher_hidden, teacher_kernel, bias=None, teacher_bias=None, *,\
 temperature=1.0, where=None, block_size=None, axis_name=None)
multiclass_svm_loss(scores, labels, *, axis=-1, margin=1.0, power=1, class_weights=None)
multiclass_hinge_loss(scores, labels, *, axis=-1, margin=1.0)
affine(x, kernel, bias=None, *, num_feature_axes=1, precision=None)
relu(x)
affine_relu(x, kernel, bias=None, *, num_feature_axes=1, precision=None)
conv(x, kernel, bias=None, *, strides=1, padding='SAME', input_dilation=1, kernel_dilation=1, feature_group_count=1,\
 dimension_numbers=None, precision=None, preferred_element_type=None)
conv_general_dilated(lhs, rhs, window_strides, padding, lhs_dilation=None, rhs_dilation=None, dimension_numbers=None,\
 feature_group_count=1, batch_group_count=1, precision=None, preferred_element_type=None, out_sharding=None)
conv_transpose(x, kernel, bias=None, *, strides=1, padding='SAME', kernel_dilation=1, dimension_numbers=None,\
 transpose_kernel=False, precision=None, preferred_element_type=None)
max_pool(x, window, *, strides=None, padding='VALID', feature_axis=-1)
avg_pool(x, window, *, strides=None, padding='VALID', feature_axis=-1, count_include_pad=True)
"""
CHECK = ["Difference", "Proof", "Report", "Row", "check_jvp", "check_mesh", "check_vjp", "prove", "rule", "saved_bytes"]
CHECK += ["search", "strategies"]
WANTED = dict(line.split("(", 1) for line in SIGNATURES.strip().splitlines())


def signature(function) -> str:
    """The parameters without annotations, after the opening parenthesis."""
    bare = [p.replace(annotation=inspect.Parameter.empty) for p in inspect.signature(function).parameters.values()]
    text = str(inspect.Signature(bare)).removeprefix("(")
    return re.sub(r"<class 'jax\.[\w.]*float32'>", "<class 'jax.numpy.float32'>", text)


@pytest.mark.parametrize("name", WANTED)
def test_signatures_are_the_contracts_and_reference_mirrors_them(name):
    assert signature(getattr(jn, name)) == WANTED[name]
    assert signature(getattr(reference, name)) == WANTED[name]


def public(module) -> set[str]:
    return {n for n, v in vars(module).items() if inspect.isfunction(v) and not n.startswith("_")}


def test_nothing_else_is_public_and_no_submodule_shares_a_functions_name():
    assert public(jn) == public(reference) == set(WANTED)
    assert jn.BatchStats._fields == ("mean", "var")
    assert not {n for n in WANTED if inspect.ismodule(getattr(jn, n))}


def test_dir_offers_public_names_alone():
    assert (
        dir(jn)
        == sorted([*jn.__all__, "__version__"])
        == sorted([*WANTED, "BatchStats", "check", "lowering", "reference", "__version__"])
    )
    assert dir(reference) == sorted(reference.__all__) == sorted([*WANTED, "BatchStats"])
    assert dir(check) == sorted(check.__all__) == CHECK
    assert jn.__version__ == version("jaxnorm")
    every = "import jaxnorm; print(*(type(getattr(jaxnorm, name)).__name__ for name in dir(jaxnorm)))"
    kinds = subprocess.run([sys.executable, "-c", every], check=True, capture_output=True, text=True).stdout.split()
    assert sorted({*kinds}) == ["function", "module", "str", "type"] and kinds.count("module") == 3


def test_every_function_with_a_gradient_has_cases():
    assert {case.name for case in all_cases()} == set(WANTED) - {"init_batch_stats"}
    labels = [str(case) for case in all_cases()]
    assert len(set(labels)) == len(labels)


@pytest.mark.parametrize("name", WANTED)
def test_docstrings_have_every_section_and_name_every_parameter(name):
    function = getattr(jn, name)
    text = inspect.getdoc(function)
    for section in ("Args", "Returns", "Gradient", "Raises", "Example", "References"):
        assert f"\n{section}:\n" in text, section
    for parameter in inspect.signature(function).parameters:
        assert f"\n  {parameter}: " in text, parameter
    assert ">>> " in text


def test_forward_mode_is_jaxs_own_error():
    with pytest.raises(TypeError, match="custom_vjp"):
        jax.jvp(jn.relu, (1.0,), (1.0,))
    assert jax.jvp(reference.relu, (1.0,), (1.0,)) == (1.0, 1.0)
