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
CheckpointError Checkpointer Fit LRFind LRSweep Leaf NonFiniteError Own Rule State StateMismatchError Transform
TreeMismatchError Whole accumulate adadelta adagrad adam adamax adamaxw adamw adaptive_grad_clip add_decayed_weights
add_l1_subgradient add_noise amsgrad apply_gradients apply_updates average_params centralize chain clip
clip_by_block_rms clip_by_global_norm clip_params ema eval_params evaluate everything_else explain fit freeze
hyperparams identity keep_params_nonnegative lamb lars linen_loss lion load lr_find lr_sweep masked
max_norm_constraint momentum monitor monitored muon nadam nadamw ndim nesterov nesterov_trace nnx_loss
nonfinite_report normalize_by_update_norm partition path predict read_meta reduce_on_plateau rmsprop rule save scale
scale_by_adadelta scale_by_adam scale_by_adamax scale_by_amsgrad scale_by_ema scale_by_learning_rate scale_by_lion
scale_by_muon scale_by_nadam scale_by_rms scale_by_root_sum scale_by_rss scale_by_schedule scale_by_shape
scale_by_sign scale_by_stddev scale_by_trust_ratio scale_by_uncorrected_adam set_hyperparams set_to_zero sgd sign_sgd
signum skip_nonfinite soft_threshold sweep_axes trace whole zero_nans
"""

NAMES = sorted(
    n for n, value in vars(jopt).items() if not n.startswith("_") and not isinstance(value, types.ModuleType)
)
CALLABLES = {n: getattr(jopt, n) for n in NAMES} | {
    f"schedules.{n}": getattr(jopt.schedules, n) for n in jopt.schedules.__all__
}
FUNCTIONS = {name: value for name, value in CALLABLES.items() if inspect.isfunction(value)}


def test_the_public_names_are_those_promised():
    assert PUBLIC.split() == NAMES


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
    definitions = [s for s in statements if not isinstance(s, ast.Import | ast.ImportFrom)]
    assert [ast.unparse(s).split("=")[0].strip() for s in definitions[1:]] == ["__version__"]


def test_functions_are_not_hidden_by_the_modules_of_their_names():
    for name in ("clip", "partition", "explain", "rule"):
        assert f"jopt.{name}" in sys.modules
        assert inspect.isfunction(getattr(jopt, name))


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
