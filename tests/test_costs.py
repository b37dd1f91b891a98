"""Costs, pinned by counting equations, products, loops and compilations; nothing here is timed."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import optax
import pytest

import jopt


def inner_jaxprs(equation):
    """The jaxprs an equation calls: of a jit, a loop, a branch."""
    for value in equation.params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            jaxpr = getattr(item, "jaxpr", item)
            if hasattr(jaxpr, "eqns"):
                yield jaxpr


def equations(jaxpr, seen=None):
    """What there is to trace and lower: all equations, those of a function called often counted once."""
    seen = {} if seen is None else seen
    total = 0
    for equation in jaxpr.eqns:
        total += 1
        for inner in inner_jaxprs(equation):
            if id(inner) not in seen:
                seen[id(inner)] = inner  # kept alive, so that no id is used again
                total += equations(inner, seen)
    return total


def executions(jaxpr, test):
    """How often an equation that passes the test runs, if every loop runs once and every branch is taken."""
    return sum(
        int(test(equation)) + sum(executions(inner, test) for inner in inner_jaxprs(equation))
        for equation in jaxpr.eqns
    )


def count(jaxpr, primitive):
    return executions(jaxpr, lambda equation: equation.primitive.name == primitive)


def tree(n):
    """n leaves of two shapes, taking turns."""
    return {f"leaf_{i:04}": jax.ShapeDtypeStruct((4, 4) if i % 2 else (8,), jnp.float32) for i in range(n)}


def update_jaxpr(tx, params, **extra):
    state = jax.eval_shape(tx.init, params)
    return jax.make_jaxpr(lambda g, s, p: tx.update(g, s, p, **extra))(params, state, params).jaxpr


def clipped():
    return jopt.chain(jopt.clip_by_global_norm(1.0), jopt.adamw(1e-3))


# Equations per leaf ------------------------------------------------------------------------------


def test_clip_and_adamw_on_a_thousand_leaves_cost_at_most_three_equations_each():
    assert equations(update_jaxpr(clipped(), tree(1000))) <= 3 * 1000


def test_a_further_leaf_of_adamw_costs_one_equation():
    few, many = (equations(update_jaxpr(jopt.adamw(1e-3), tree(n))) for n in (200, 250))
    assert many - few == 50


def test_a_further_leaf_of_clip_and_adamw_costs_at_most_two_equations():
    few, many = (equations(update_jaxpr(clipped(), tree(n))) for n in (320, 640))
    assert many - few <= 2 * 320


@pytest.mark.parametrize(
    ("make", "most"),
    [
        (lambda: jopt.sgd(0.1), 1),
        (lambda: jopt.lion(0.1), 1),
        (lambda: jopt.ema(jopt.adamw(0.1)), 1),
        (lambda: jopt.partition([(jopt.ndim(1), jopt.sgd(0.1)), (jopt.everything_else, jopt.adamw(0.1))]), 1),
        (lambda: jopt.masked(jopt.adamw(0.1), where="leaf_*"), 1),
        (lambda: jopt.lamb(0.1), 1),
    ],
    ids=["sgd", "lion", "ema", "partition", "masked", "lamb"],
)
def test_a_further_leaf_of_a_rule_costs_one_equation(make, most):
    few, many = (equations(update_jaxpr(make(), tree(n))) for n in (100, 140))
    assert many - few <= 40 * most


def test_optax_needs_five_times_as_many_equations():
    """Not a boast but a check of the count itself: it must tell the two apart."""
    with jax.numpy_dtype_promotion("standard"):
        theirs = equations(update_jaxpr(optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3)), tree(300)))
    assert theirs > 5 * equations(update_jaxpr(clipped(), tree(300)))


# Shared work -------------------------------------------------------------------------------------


@pytest.mark.parametrize("leaves", [1, 40])
def test_bias_corrections_are_computed_once_for_all_leaves(leaves):
    assert count(update_jaxpr(jopt.adamw(1e-3), tree(leaves)), "pow") == 2  # b1**t and b2**t


def test_a_schedule_is_evaluated_once_for_all_leaves():
    tx = jopt.adamw(lambda step: jnp.tanh(jnp.asarray(step, jnp.float32)))
    assert count(update_jaxpr(tx, tree(40)), "tanh") == 1


def squares(jaxpr):
    """Whole passes over a leaf that sum it up: reductions to a scalar, and products with itself."""
    return executions(
        jaxpr,
        lambda e: e.primitive.name in ("reduce_sum", "dot_general") and e.outvars[0].aval.shape == (),
    )


def test_the_norm_that_monitor_records_and_clip_uses_is_computed_once():
    apart = squares(update_jaxpr(clipped(), tree(8)))
    monitored = squares(update_jaxpr(jopt.monitor(jopt.adamw(1e-3)), tree(8)))
    together = squares(update_jaxpr(jopt.monitor(clipped()), tree(8)))
    assert apart > 0
    assert together == monitored  # the clip adds nothing


def test_two_clips_of_the_same_gradients_would_be_two_norms():
    """The count above can tell: a second clip sees other gradients and needs a norm of its own."""
    once = squares(update_jaxpr(clipped(), tree(8)))
    twice = squares(update_jaxpr(jopt.chain(jopt.clip_by_global_norm(2.0), clipped()), tree(8)))
    assert twice == 2 * once


# Matrices ----------------------------------------------------------------------------------------


def matrices(n, *shape):
    return {f"layer_{i}": jax.ShapeDtypeStruct(shape, jnp.float32) for i in range(n)}


def lowered_products(tx, params):
    """Products in the program for this platform (the trace holds a variant for each)."""
    state = jax.eval_shape(tx.init, params)
    return jax.jit(tx.update).lower(params, state, params).as_text().count("stablehlo.dot_general")


@pytest.mark.parametrize("n", [1, 36])
def test_equal_matrices_run_as_one_batch(n):
    """A loop over Newton-Schulz steps of three products, for 1 matrix and for 36."""
    assert lowered_products(jopt.muon(0.02, ns_steps=5), matrices(n, 12, 8)) == 3


def test_matrices_of_two_shapes_run_as_two_batches():
    params = matrices(5, 12, 8) | {f"wide_{i}": jax.ShapeDtypeStruct((4, 6), jnp.float32) for i in range(7)}
    assert lowered_products(jopt.muon(0.02, ns_steps=5), params) == 6


def test_matrices_and_transposes_run_as_one_batch_where_the_rule_commutes_with_transposition():
    params = matrices(5, 12, 8) | {f"wide_{i}": jax.ShapeDtypeStruct((8, 12), jnp.float32) for i in range(7)}
    assert lowered_products(jopt.muon(0.02, ns_steps=5), params) == 3
    assert lowered_products(jopt.normuon(0.02, ns_steps=5), params) == 6


def test_a_further_matrix_is_turned_and_taken_apart_without_asking_for_signs():
    """A tall matrix that runs with wide ones: turned among its like, so back again alone is what it adds."""

    def lowered(n):
        params = matrices(n, 12, 8) | {f"wide_{i}": jax.ShapeDtypeStruct((8, 12), jnp.float32) for i in range(n)}
        state = jax.eval_shape(jopt.scale_by_muon().init, params)
        return jax.jit(jopt.scale_by_muon().update).lower(params, state, params).as_text()

    few, many = lowered(4), lowered(24)
    for operation, each in {"transpose": 2, "dynamic_slice": 4, "compare": 0, "select": 0}.items():
        added = many.count(f"stablehlo.{operation} ") - few.count(f"stablehlo.{operation} ")
        assert added == 20 * each, f"{operation}: {added} more for 20 more of each shape"


def test_long_matrices_run_on_their_gram_matrix():
    """Products with the long side at the start, at the one restart (two) and at the end: 4 of 18."""
    params = matrices(3, 40, 8)
    state = jax.eval_shape(jopt.muon(0.02).init, params)
    text = jax.jit(jopt.muon(0.02).update).lower(params, state, params).as_text()
    products = [line for line in text.splitlines() if "stablehlo.dot_general" in line]
    assert len(products) == 18
    assert sum("40" in line.split(" : ")[-1] for line in products) == 4


# Wrappers ----------------------------------------------------------------------------------------


def loops(jaxpr):
    return [e for e in jaxpr.eqns if e.primitive.name == "while"] + [
        loop for e in jaxpr.eqns if e.primitive.name != "while" for inner in inner_jaxprs(e) for loop in loops(inner)
    ]


def outside_loops(jaxpr, primitive):
    return sum(
        int(e.primitive.name == primitive) + sum(outside_loops(inner, primitive) for inner in inner_jaxprs(e))
        for e in jaxpr.eqns
        if e.primitive.name != "while"
    )


@pytest.mark.parametrize("wrap", [lambda tx: jopt.accumulate(tx, 4), jopt.skip_nonfinite], ids=["accumulate", "guard"])
@pytest.mark.parametrize("mode", ["update", "apply"])
def test_a_wrapped_update_runs_inside_one_loop_and_nowhere_else(wrap, mode):
    params = tree(6)
    tx = wrap(jopt.adamw(1e-3))
    state = jax.eval_shape(tx.init, params)
    step = tx.update if mode == "update" else lambda g, s, p: jopt.apply_gradients(tx, g, s, p)
    jaxpr = jax.make_jaxpr(step)(params, state, params).jaxpr
    assert len(loops(jaxpr)) == 1
    roots = count(jaxpr, "sqrt")
    assert roots >= 6  # Adam's, at least one a leaf
    assert outside_loops(jaxpr, "sqrt") <= 1  # at most one of a norm; none of Adam's
    assert outside_loops(jaxpr, "pow") == 0


def test_frozen_leaves_cost_no_state_and_no_arithmetic():
    tx = jopt.partition([("leaf_000*", jopt.adamw(1e-3)), (jopt.everything_else, jopt.freeze())])
    state = jax.eval_shape(tx.init, tree(100))
    slots = {path for kept in state.slots.values() for flat in kept.values() for path in flat}
    assert len(slots) == 10
    assert count(update_jaxpr(tx, tree(100)), "sqrt") == 10


# The eager update --------------------------------------------------------------------------------

EAGER = """
import jax, jax.numpy as jnp, numpy as np
import jopt
compiled = []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, duration, **_: compiled.append(event) if event.endswith("backend_compile_duration") else None)
params = {f"leaf_{i}": np.ones((3, 1 + i % 5), np.float32) for i in range(20)}
tx = jopt.chain(jopt.clip_by_global_norm(1.0), jopt.adamw(jopt.schedules.cosine_decay_schedule(1e-3, 10)))
state = jax.device_get(jax.jit(tx.init)(params))
compiled.clear()
for step, name in ((tx.update, "update"), (lambda g, s, p: jopt.apply_gradients(tx, g, s, p), "apply")):
    step(params, state, params)
    first = len(compiled)
    inside = tx.plan.compiled[name]
    calls = []
    tx.plan.compiled[name] = lambda *operands: calls.append(1) or inside(*operands)
    step(params, state, params)
    print(name, first, len(compiled) - first, len(calls))
    compiled.clear()
"""


def test_an_eager_update_is_one_dispatch():
    """Whatever XLA runs must be compiled first. In a fresh process the first update compiles one
    program, and the second, which compiles nothing, calls it once: nothing else can have run."""
    run = subprocess.run([sys.executable, "-c", EAGER], env=os.environ, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split("\n")[:2] == ["update 1 0 1", "apply 1 0 1"]
