"""The public surface: what there is, that it is documented, and what `import jopt` costs."""

import ast
import inspect
import os
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest

import jopt

# What users may rely on. A change here is a change of the interface: say so in CHANGELOG.md.
PUBLIC = """
CheckpointError Checkpointer Fit LRFind LRSweep Leaf Minimum MultiSteps NonFiniteError OptaxStateError Own Rule State
StateMismatchError Transform TreeMismatchError Whole accumulate acprop adabelief adadelta adafactor adagrad adam
adam_mini adamax adamaxw adamc adamw adamw_8bit adamw_bf16 adan adaptive_grad_clip add_cautious_decay
add_decayed_weights add_l1_subgradient add_noise ademamix adopt amsgrad apply_every apply_gradients apply_if_finite
apply_updates asam average_params came cautious cautious_adamw cautious_lion centralize chain clip clip_by_block_rms
clip_by_global_norm clip_params cocob compensate conditionally_mask conditionally_transform dadapt_adamw
differentially_private_aggregate dog dowg dpsgd ema eval_params evaluate everything_else explain fit freeze from_optax
fromage gauss_newton_estimator_diag_hessian gpa gpa_adamw hutchinson_estimator_diag_hessian hyperball hyperparams
identity inject_hyperparams keep_params_nonnegative kl_soap kron lamb laprop lars lawa layerwise_decay lbfgs
linen_loss lion lion_8bit load lookahead lr_find lr_sweep madgrad mars masked max_norm_constraint measure_with_ema
mechanize minimize momentum momo momo_adam monitor monitored multi_transform muon nadam nadamw named_chain ndim
nesterov nesterov_trace nnx_loss noisy_sgd nonfinite_report normalize normalize_by_update_norm normuon novograd
optimistic_adam_v2 optimistic_gradient_descent orthogonality_error partition path per_example_global_norm_clip
per_example_layer_norm_clip polyak_sgd predict prodigy qk_clip radam read_meta reduce_on_plateau rms_lmo rmsprop
round_stochastically rprop rule sam save scale scale_by_acprop scale_by_adadelta scale_by_adam scale_by_adam_mini
scale_by_adamax scale_by_adan scale_by_adaptive_sharpness scale_by_ademamix scale_by_adopt scale_by_amsgrad
scale_by_backtracking_linesearch scale_by_belief scale_by_came scale_by_cocob scale_by_dadapt_adamw
scale_by_distance_over_gradients scale_by_dog scale_by_dowg scale_by_ema scale_by_factored_rms scale_by_hyperball_rate
scale_by_kl_soap scale_by_kron scale_by_laprop scale_by_lbfgs scale_by_learning_rate scale_by_lion scale_by_madgrad
scale_by_mars scale_by_momo scale_by_momo_adam scale_by_muon scale_by_nadam scale_by_normuon scale_by_novograd
scale_by_optimistic_gradient scale_by_param_block_norm scale_by_param_block_rms scale_by_polyak scale_by_prodigy
scale_by_radam scale_by_refined_lion scale_by_rms scale_by_root_sum scale_by_rprop scale_by_rss scale_by_schedule
scale_by_shampoo scale_by_shape scale_by_shrinking_rate scale_by_sign scale_by_simplified_ademamix scale_by_sm3
scale_by_smooth_lion scale_by_soap scale_by_sophia scale_by_stable_adam scale_by_stddev scale_by_trust_ratio
scale_by_uncorrected_adam scale_by_yogi scale_by_zoom_linesearch scale_with_corrected_decay schedule_free
schedule_free_adamw schedule_free_eval_params schedule_free_sgd scion selective_transform set_hyperparams set_to_zero
sgd shampoo sign_lmo sign_sgd signum simplified_ademamix skip_large_updates skip_nonfinite skip_not_finite sm3
snapshot soap soft_threshold sophia spectral_lmo stable_adamw store swa sweep_axes trace unitwise_clip unitwise_norm
value_and_grad_from_state whole yogi zero_nans
adahessian galore scale_by_adahessian scale_by_galore
"""

NAMES = sorted(
    n for n, value in vars(jopt).items() if not n.startswith("_") and not isinstance(value, types.ModuleType)
)
CALLABLES = {n: getattr(jopt, n) for n in NAMES} | {
    f"schedules.{n}": getattr(jopt.schedules, n) for n in jopt.schedules.__all__
}
FUNCTIONS = {name: value for name, value in CALLABLES.items() if inspect.isfunction(value)}


def test_the_public_names_are_those_promised():
    assert sorted(PUBLIC.split()) == NAMES


def test_the_version_is_one():
    assert re.fullmatch(r"\d+\.\d+\.\d+\w*", jopt.__version__)


@pytest.mark.parametrize("name", CALLABLES)
def test_a_public_name_has_a_docstring_that_starts_with_a_sentence(name):
    doc = inspect.getdoc(CALLABLES[name])
    assert doc
    first, *rest = doc.splitlines()
    assert first.endswith((".", ":")), first
    assert not rest or rest[0] == "", "a blank line after the first sentence"


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_public_function_is_annotated(name):
    signature = inspect.signature(FUNCTIONS[name])
    bare = [p.name for p in signature.parameters.values() if p.annotation is p.empty]
    assert bare == []
    assert signature.return_annotation is not signature.empty


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_arguments_a_docstring_explains_exist(name):
    """A renamed argument must not live on in the text."""
    doc = inspect.getdoc(FUNCTIONS[name])
    section = re.search(r"^Args:\n(.*?)(?=^\S|\Z)", doc, re.MULTILINE | re.DOTALL)
    if section is None:
        return
    explained = re.findall(r"^    (\S[\w*, ]*):", section[1], re.MULTILINE)
    named = {word.strip().lstrip("*") for words in explained for word in words.split(",")}
    assert named <= set(inspect.signature(FUNCTIONS[name]).parameters)


def test_an_object_has_one_public_name():
    seen = {}
    for name in NAMES:
        assert seen.setdefault(id(getattr(jopt, name)), name) == name
    for package in (jopt.schedules,):
        assert set(package.__all__).isdisjoint(NAMES)


def test_the_package_file_defines_nothing():
    statements = ast.parse(Path(jopt.__file__).read_text()).body
    statements = [s for found in statements for s in (found.body if isinstance(found, ast.If) else [found])]
    definitions = [s for s in statements if not isinstance(s, ast.Import | ast.ImportFrom)]
    assert [ast.unparse(s).split("=")[0].strip() for s in definitions[1:]] == ["__version__"]


def test_functions_are_not_hidden_by_the_modules_of_their_names():
    for name in ("clip", "partition", "explain", "rule"):
        assert f"jopt.{name}" in sys.modules
        assert inspect.isfunction(getattr(jopt, name))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("cosine_decay_schedule", "; it is jopt.schedules.cosine_decay_schedule"),
        ("join_schedules", "; it is jopt.schedules.join_schedules"),
        ("contrib", "; what jopt has of it is jopt.NAME, without contrib"),
        ("global_norm", "; it stays in optax: import optax and use optax.global_norm"),
        ("softmax_cross_entropy", "; it stays in optax: import optax and use optax.softmax_cross_entropy"),
        ("tree_utils", "; it stays in optax: import optax and use optax.tree_utils"),
        ("GradientTransformation", "; it stays in optax: import optax and use optax.GradientTransformation"),
        ("adamm", ""),
        ("_src", ""),
        ("__wrapped__", ""),
    ],
)
def test_a_name_that_is_elsewhere_is_an_error_that_says_where(name, words):
    assert not hasattr(jopt, name)
    with pytest.raises(AttributeError) as raised:
        getattr(jopt, name)
    assert str(raised.value) == f"module 'jopt' has no attribute {name!r}{words}"
    with pytest.raises(ImportError):
        exec(f"from jopt import {name}")
    exec("from jopt import testing, adam")


IMPORT = """
import sys, jax, numpy, optax
before = set(sys.modules)
import jopt
new = {name.partition(".")[0] for name in set(sys.modules) - before} - {"jopt"} - set(sys.stdlib_module_names)
print(sorted(new))
print(sorted({name.partition(".")[0] for name in sys.modules} & set(sys.argv[1:])))
"""
EXTRAS = ("flax", "matplotlib", "sklearn", "orbax", "tensorboardX", "qwix", "IPython", "pandas", "hypothesis", "pytest")


def test_importing_jopt_loads_jax_optax_and_numpy_only():
    command = [sys.executable, "-c", IMPORT, *EXTRAS]
    run = subprocess.run(command, env=os.environ, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split("\n")[:2] == ["[]", "[]"]


def test_importing_jopt_starts_no_backend():
    """A backend that is already there cannot be configured any more."""
    code = "import jopt, jax; jax.config.update('jax_num_cpu_devices', 3); print(jax.device_count())"
    env = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    run = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == "3"
