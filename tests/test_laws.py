"""Every law over every optimizer, rule and wrapper of the registry; and broken transforms, on which they fail."""

import functools
import inspect
import subprocess
import sys

import jax
import jax.numpy as jnp
import optax
import pytest
from zoo import EVERYTHING, OPTIMIZERS, RULES, WRAPPERS, classic

import jopt
from jopt.engine import walk
from jopt.testing import LAWS, NotApplicableError, Subject, check_transform

# Compiling is what takes the time. Of the laws about meshes and compiled code the fast tier takes those transforms that
# have something of their own to compile, and that soon; `-m slow` takes the rest.
PLAIN_RULES = {name for name, entry in RULES.items() if entry.elementwise} | {"add_noise", "adaptive_grad_clip"}
COUPLED = {name for name, entry in EVERYTHING.items() if entry.random or not entry.elementwise}
ON_EXPLICIT_MESH = COUPLED | {"adamw", *WRAPPERS}
ON_AUTO_MESH = {"adamw", "clip_by_global_norm", "muon", "skip_nonfinite"}
COMPILED = {"scan_is_a_loop", "vmap_over_models_is_a_loop", "sweep_is_separate_runs", "calls_outside_jit_trace_once"}
# What takes nine tenths of the time is left to the slow tier but for the classics and one of each other family.
COSTLY = COMPILED | {"leaf_names_are_free", "edge_leaves_are_leaves", "a_traced_number_is_a_number"}
COSTLY |= {"explicit_mesh_is_one_device", "auto_mesh_is_one_device"}
CARRIERS = {"adan", "adafactor", "soap", "prodigy", "schedule_free_adamw", "adamw_8bit", "lbfgs", "muon"}
CARRIERS |= {*classic.OPTIMIZERS, *classic.RULES, *classic.WRAPPERS}


@functools.cache
def rules_of_optimizers():
    """The rules that some optimizer is made of: the laws of that optimizer are theirs."""
    return {part.of.name for name in OPTIMIZERS for part in walk(subject(name).tx.parts)}


def is_slow(law, name):
    if name in RULES and name in rules_of_optimizers():
        return True
    is_variant = name in OPTIMIZERS and name not in jopt.optimizers.__all__
    if is_variant and name not in CARRIERS:
        return True
    if law in COSTLY and name not in CARRIERS:
        return True
    if law == "explicit_mesh_is_one_device":
        return name not in ON_EXPLICIT_MESH
    if law == "auto_mesh_is_one_device":
        return name not in ON_AUTO_MESH
    return law in COMPILED and name in PLAIN_RULES


@functools.cache
def subject(name):
    return EVERYTHING[name].subject()


@functools.cache
def compiled_subject(name):
    entry = EVERYTHING[name]
    return Subject(entry.make(), compiled=True, **entry.declared())


def cases():
    for name in EVERYTHING:
        for law in LAWS:
            if LAWS[law].applies(subject(name)):
                yield pytest.param(
                    name, law, marks=[pytest.mark.slow] if is_slow(law, name) else [], id=f"{name}-{law}"
                )


# Where the eager arithmetic of an older JAX rounds the other way, a stored number takes the next code, an eighth away.
OF_NEWER_JAX = {("store_float8", "jit_is_eager")}


@pytest.mark.parametrize(("name", "law"), list(cases()))
def test_law(name, law):
    if (name, law) in OF_NEWER_JAX and jax.__version_info__ < (0, 10):
        pytest.skip("compiled and eager arithmetic round differently in this JAX")
    try:
        LAWS[law](subject(name))
    except NotApplicableError as reason:
        pytest.skip(str(reason))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["adamw", "muon", "lamb", "add_noise", "accumulate_apply", "monitor", "partition"])
def test_laws_hold_compiled(name):
    for law in LAWS.values():
        if law.applies(compiled_subject(name)):
            law(compiled_subject(name))


# The registry is complete ------------------------------------------------------------------------


def test_every_public_factory_is_listed():
    makes_transforms = {
        name
        for name, value in vars(jopt).items()
        if inspect.isfunction(value) and value.__annotations__.get("return") in (jopt.Transform, "Transform")
    }
    assert len(makes_transforms) > 60
    assert makes_transforms - EVERYTHING.keys() == set()
    assert set(jopt.optimizers.__all__) - OPTIMIZERS.keys() == set()
    assert set(jopt.rules.__all__) - RULES.keys() == set()
    readers = {"monitored", "nonfinite_report", "schedule_free_eval_params", "skip_large_updates", "skip_not_finite"}
    readers |= {"inject_hyperparams", "measure_with_ema"}
    assert set(jopt.wrap.__all__) - WRAPPERS.keys() == readers


def test_names_are_listed_once():
    assert len(EVERYTHING) == len(OPTIMIZERS) + len(RULES) + len(WRAPPERS)


# check_transform ---------------------------------------------------------------------------------


def double_step(g, s, p):
    return g * 2, s


def double():
    return jopt.rule("double", double_step)


def test_check_transform_passes_a_users_rule_and_says_what_it_left_out():
    left_out = check_transform(double(), namespace={"double": double})
    assert left_out == {
        "non_matrices_are_refused": "it is not declared to take matrices alone",
        "extras_are_asked_for": "it is not declared to need an extra",
        "sweep_is_separate_runs": "it has no hyper-parameter to set",
        "a_traced_number_is_a_number": "no factory of one number was given",
        "hyperparams_can_be_set": "it has no hyper-parameter to set",
        "a_zero_learning_rate_moves_nothing": "it has no learning rate to set",
    }


def test_check_transform_passes_a_foreign_transform():
    tx = jopt.chain(optax.trace(0.9), jopt.scale_by_learning_rate(0.1))
    with jax.numpy_dtype_promotion("standard"):
        check_transform(tx, plain=False, laws=["jit_is_eager", "leaf_names_are_free", "steps_are_pure"])


def test_check_transform_takes_parameters():
    params = {"a": jnp.ones((3, 2)), "b": {"c": jnp.full((5,), -0.5)}}
    check_transform(jopt.adam(0.1), params=params, laws=["steps_are_pure", "mismatches_name_the_leaf"])


def test_testing_needs_no_test_runner():
    code = "import sys, jopt.testing; sys.exit(bool({'pytest', 'hypothesis'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_check_transform_refuses_an_unknown_law():
    with pytest.raises(ValueError, match=r"laws=\['no_such_law'\] were given"):
        check_transform(double(), laws=["no_such_law"])


def test_check_transform_refuses_an_unknown_kind_of_complex():
    with pytest.raises(ValueError, match="complex='real' was given"):
        check_transform(double(), complex="real")


# Broken transforms -------------------------------------------------------------------------------


def broken_rule(step, **options):
    return jopt.rule("broken", step, **options)


def broken_whole(update, init=None):
    return jopt.whole(jopt.Whole("broken", update, init))


def a_number(params):
    return jopt.Own(scalars={"n": jnp.zeros((), jnp.int32)})


def drifting(grads, own, params):
    return grads, own._replace(scalars={"n": own.scalars["n"].astype(jnp.float32) + 1})


def first_leaf_only(grads, own, params):
    return {path: g * 2 if i == 0 else g for i, (path, g) in enumerate(grads.items())}, own


CALLS = []


def impure(g, s, p):
    CALLS.append(None)
    return g * len(CALLS), s


def same_noise(g, s, p, *, key):
    noise = jax.random.normal(jax.random.key(0), g.shape, g.dtype)
    return g + noise + 0 * jax.random.normal(key, g.shape, g.dtype), s


def loses_bits_under_jit(g, s, p):
    # Inside a trace the value is another, as where a library asks whether it is traced.
    return g * (1 if isinstance(g, jax.core.Tracer) else 2), s


def static_step(g, s, p, *, rate, other):
    return g * (rate * other), s


def static_rate(rate):
    """Its rate is part of the program, so that another is another program."""
    return jopt.rule("static_rate", static_step, static={"rate": rate}, hyper={"other": 1.0})


def computes_in_the_parameters_dtype(grads, own, params):
    return {path: (g.astype(params[path].dtype) / 3 * 3).astype(g.dtype) for path, g in grads.items()}, own


def shifts_by_its_rate(g, s, p, *, learning_rate):
    return g + learning_rate, s


def overflows(g, s, p, *, count):
    return g * jnp.sqrt((count + 1).astype(g.dtype)), s


def reads_numbers(params):
    total = sum(float(jnp.sum(p)) for p in params.values())
    return jopt.Own(scalars={"n": jnp.asarray(total, float)})


def reads_parameters(grads, own, params):
    return {path: g + params[path].astype(g.dtype) for path, g in grads.items()}, own


def passes(grads, own, params):
    return grads, own


def unclear(grads, own, params):
    return {path: g + own.slots["kept"][path] for path, g in grads.items()}, own


def kept(params):
    return jopt.Own(slots={"kept": {path: jnp.zeros_like(p) for path, p in params.items()}})


def concatenates(grads, own, params):
    """Refused by an Explicit mesh, whose axes do not concatenate."""
    joined = jnp.concatenate([jnp.ravel(g) for g in grads.values()]) if grads else jnp.zeros(())
    return {path: g + 0 * jnp.max(joined, initial=0.0).astype(g.dtype) for path, g in grads.items()}, own


def need_all(grads, own, params, *, layout):
    if set(layout.paths) != set(grads):
        raise RuntimeError("every leaf of the tree has to be there")
    return grads, own


BROKEN = {
    "updates_have_the_types_of_parameters": broken_rule(lambda g, s, p: (g.astype(jnp.bfloat16), s)),
    "state_type_is_fixed": broken_whole(drifting, a_number),
    "a_zero_gradient_moves_nothing": broken_rule(lambda g, s, p: (g / jnp.abs(g), s)),
    "equal_leaves_get_equal_updates": broken_whole(first_leaf_only),
    "leaf_names_are_free": broken_whole(first_leaf_only),
    "elements_are_free": broken_rule(lambda g, s, p: (g - jnp.mean(g), s)),
    "steps_are_pure": broken_rule(impure),
    "jit_is_eager": broken_rule(loses_bits_under_jit),
    "finite_in_finite_out": broken_rule(lambda g, s, p: (1 / g, s)),
    "float16_stays_finite": broken_rule(lambda g, s, p: (1 / (g.astype(jnp.float16) * 300).astype(g.dtype), s)),
    "complex_leaves_have_a_meaning": broken_rule(lambda g, s, p: (g * jnp.abs(g).astype(g.dtype), s), complex="native"),
    "equal_by_configuration": broken_rule(lambda g, s, p: (g, s)),
    "repr_is_the_call": double(),
    "extras_are_asked_for": double(),
    "explicit_mesh_is_one_device": broken_whole(concatenates),
    "mismatches_name_the_leaf": broken_whole(unclear, kept),
    "edge_leaves_are_leaves": broken_rule(lambda g, s, p: (g / jnp.std(g), s)),
    "untrained_leaves_pass": broken_whole(need_all),
    "masks_choose_leaves": broken_whole(need_all),
    "sixteen_bit_leaves_are_computed_in_float32": broken_whole(computes_in_the_parameters_dtype),
    "hyperparams_can_be_set": static_rate(0.05),
    "calls_outside_jit_trace_once": static_rate(0.05),
    "a_traced_number_is_a_number": static_rate(0.05),
    "compiled_steps_trace_once": broken_whole(drifting, a_number),
    "abstract_init_has_the_types_of_init": broken_whole(passes, reads_numbers),
    "parameters_are_asked_for": broken_whole(reads_parameters),
    "a_zero_learning_rate_moves_nothing": broken_rule(shifts_by_its_rate, hyper={"learning_rate": 0.1}),
    "clocks_saturate": broken_rule(overflows),
}
DECLARED = {
    "extras_are_asked_for": {"extra": {"value": 1.0}},
    "hyperparams_can_be_set": {"factory": static_rate},
    "calls_outside_jit_trace_once": {"factory": static_rate},
    "a_traced_number_is_a_number": {"factory": static_rate},
}


@pytest.mark.parametrize("law", BROKEN)
def test_a_broken_transform_fails_the_law(law):
    with pytest.raises(AssertionError, match=f"the law '{law}' does not hold"):
        check_transform(BROKEN[law], laws=[law], **DECLARED.get(law, {}))


def test_noise_that_all_leaves_share_fails():
    tx = jopt.rule("same_noise", same_noise, key=0)
    with pytest.raises(AssertionError, match=r"equal_leaves_get_equal_updates(.|\n)*100% equal updates"):
        check_transform(tx, laws=["equal_leaves_get_equal_updates"], random=True)


@pytest.mark.parametrize(
    ("law", "declared"),
    [
        ("a_zero_gradient_moves_nothing", {"zero_gradient": False}),
        ("elements_are_free", {"elementwise": False}),
        ("complex_leaves_have_a_meaning", {"complex": None}),
        ("non_matrices_are_refused", {"matrices_only": True}),
        ("leaf_names_are_free", {"random": True}),
        ("equal_leaves_get_equal_updates", {"random": True}),
        ("extras_are_asked_for", {"extra": {"value": 1.0}}),
        ("equal_by_configuration", {"plain": False}),
        ("repr_is_the_call", {"plain": False}),
        ("equal_by_configuration", {"factory": lambda rate: jopt.adam(0.1)}),
    ],
)
def test_a_wrong_declaration_fails_the_law(law, declared):
    with pytest.raises(AssertionError, match=f"the law '{law}' does not hold"):
        check_transform(jopt.adam(0.1), laws=[law], **declared)
