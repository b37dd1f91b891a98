"""jopt and optax inside each other, in both directions."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jopt

# Double precision, where our live b2 and optax's Python constant are one number.
P = {"w": np.linspace(-1, 1, 6).reshape(3, 2), "b": np.ones(2)}


@pytest.fixture(autouse=True)
def optax_promotes(x64):
    """optax is not written for strict promotion; what runs here is its code and the border to it."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def gradients(n=4):
    rng = np.random.default_rng(0)
    return [{k: rng.normal(size=p.shape) for k, p in P.items()} for _ in range(n)]


def run(tx, extra=lambda i: {}, params=P):
    tx = optax.with_extra_args_support(tx)
    state = tx.init(params)
    update = jax.jit(tx.update)
    for i, grads in enumerate(gradients()):
        updates, state = update(grads, state, params, **extra(i))
        params = optax.apply_updates(params, updates)
    return params, state


def assert_same(got, expected, rtol=1e-10):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol / 100), got, expected)


# Here a sum of ours is compared with that of optax's MultiSteps, which is kept in float32 whatever comes.
FLOAT32 = ("accumulated by us", "the object itself", "a wrapper")


# optax inside jopt -------------------------------------------------------------------------------

MASK = {"w": True, "b": False}
INSIDE_JOPT = {
    "adam": (
        lambda: jopt.chain(optax.scale_by_adam(), jopt.scale_by_learning_rate(0.1)),
        lambda: optax.adam(0.1),
    ),
    "a whole optimizer": (
        lambda: jopt.chain(jopt.clip_by_global_norm(0.5), optax.adam(0.1)),
        lambda: optax.chain(optax.clip_by_global_norm(0.5), optax.adam(0.1)),
    ),
    "in the middle": (
        lambda: jopt.chain(jopt.trace(0.9), optax.scale_by_rms(), jopt.scale(-0.1)),
        lambda: optax.chain(optax.trace(0.9), optax.scale_by_rms(), optax.scale(-0.1)),
    ),
    "masked by a tree": (
        lambda: jopt.chain(optax.masked(optax.scale(2.0), MASK), jopt.sgd(0.1)),
        lambda: optax.chain(optax.masked(optax.scale(2.0), MASK), optax.sgd(0.1)),
    ),
    "masked by us": (
        lambda: jopt.chain(jopt.masked(optax.adam(0.1), where="w"), jopt.scale(1.0)),
        lambda: optax.masked(optax.adam(0.1), MASK),
    ),
    "a partition of ours": (
        lambda: jopt.partition([("w", optax.adam(0.1)), ("b", jopt.sgd(0.2))]),
        lambda: optax.partition({"x": optax.adam(0.1), "y": optax.sgd(0.2)}, {"w": "x", "b": "y"}),
    ),
    "a partition of theirs": (
        lambda: jopt.chain(
            optax.partition({"x": optax.adam(0.1), "y": optax.sgd(0.2)}, {"w": "x", "b": "y"}), jopt.scale(0.5)
        ),
        lambda: optax.chain(
            optax.partition({"x": optax.adam(0.1), "y": optax.sgd(0.2)}, {"w": "x", "b": "y"}), optax.scale(0.5)
        ),
    ),
    "MultiSteps": (
        lambda: jopt.chain(optax.MultiSteps(optax.adam(0.1), 2).gradient_transformation(), jopt.scale(1.0)),
        lambda: optax.MultiSteps(optax.adam(0.1), 2).gradient_transformation(),
    ),
    "injected hyper-parameters": (
        lambda: jopt.chain(optax.inject_hyperparams(optax.adam)(learning_rate=0.1), jopt.scale(1.0)),
        lambda: optax.adam(0.1),
    ),
    "accumulated by us": (
        lambda: jopt.accumulate(optax.adam(0.1), 2),
        lambda: optax.MultiSteps(optax.adam(0.1), 2).gradient_transformation(),
    ),
    "guarded by us": (lambda: jopt.skip_nonfinite(optax.adam(0.1)), lambda: optax.adam(0.1)),
    "averaged by us": (lambda: jopt.ema(optax.adam(0.1)), lambda: optax.adam(0.1)),
    "stateless": (
        lambda: jopt.chain(optax.stateless(lambda u, p: jax.tree.map(jnp.negative, u)), jopt.scale(0.1)),
        lambda: optax.sgd(0.1),
    ),
    "the object itself": (
        lambda: jopt.chain(optax.MultiSteps(optax.sgd(0.1), 2), jopt.identity()),
        lambda: jopt.accumulate(jopt.sgd(0.1), 2),
    ),
}


@pytest.mark.parametrize("name", INSIDE_JOPT)
def test_optax_inside_jopt(name):
    ours, theirs = INSIDE_JOPT[name]
    tx = ours()
    assert isinstance(tx, jopt.Transform)
    assert_same(run(tx)[0], run(theirs())[0], rtol=1e-10 if name not in FLOAT32 else 1e-6)


def test_a_foreign_part_keeps_its_own_state_under_its_name():
    tx = jopt.chain(optax.scale_by_adam(), jopt.scale(-0.1), optax.trace(0.9))
    _, state = run(tx)
    assert set(state.inner) == {"foreign_scale_by_adam", "foreign_trace"}
    assert int(state.inner["foreign_scale_by_adam"].count) == int(state.count) == 4
    assert set(state.hyper) == {"scale/step_size"}


def test_two_foreign_parts_of_one_kind_have_two_states():
    tx = jopt.chain(optax.trace(0.9), optax.trace(0.5))
    assert_same(run(tx)[0], run(optax.chain(optax.trace(0.9), optax.trace(0.5)))[0])
    assert set(run(tx)[1].inner) == {"foreign_trace", "foreign_trace_2"}


def test_a_foreign_part_sees_the_users_tree_where_it_gets_some_leaves_only():
    """None stands where a leaf is an integer, or belongs to another group."""
    params = {"net": [{"w": P["w"], "step": np.arange(2)}, {"w": P["w"] + 1}], "b": P["b"]}
    mask = {"net": [{"w": True, "step": False}, {"w": False}], "b": True}
    tx = jopt.partition([("net", optax.masked(optax.scale(3.0), mask)), ("b", jopt.scale(5.0))])
    updates, _ = tx.update(params, tx.init(params), params)
    expected = {"net": [{"w": P["w"] * 3, "step": np.arange(2)}, {"w": P["w"] + 1}], "b": P["b"] * 5}
    jax.tree.map(np.testing.assert_array_equal, updates, expected)


def test_a_foreign_part_sees_the_users_tree_and_gives_back_its_dtypes():
    seen = []

    def look(updates, params):
        seen.append((jax.tree.structure(updates), jax.tree.structure(params)))
        return jax.tree.map(lambda u: u.astype(jnp.float16), updates)

    tx = jopt.chain(jopt.scale(2.0), optax.stateless(look))
    updates, _ = tx.update(gradients()[0], tx.init(P), P)
    assert seen == [(jax.tree.structure(P), jax.tree.structure(P))]
    assert {u.dtype for u in jax.tree.leaves(updates)} == {jnp.dtype(jnp.float64)}


def test_lbfgs_gets_its_extras_through_a_chain():
    def loss(params):
        return sum(jnp.sum((x - 0.3) ** 2 * (1 + jnp.arange(x.size).reshape(x.shape))) for x in jax.tree.leaves(params))

    def minimise(tx):
        @jax.jit
        def step(params, state):
            value, grads = jax.value_and_grad(loss)(params)
            updates, state = tx.update(grads, state, params, value=value, grad=grads, value_fn=loss)
            return optax.apply_updates(params, updates), state

        params, state = P, tx.init(P)
        for _ in range(15):
            params, state = step(params, state)
        return params

    search = optax.scale_by_backtracking_linesearch(max_backtracking_steps=10)  # cheaper to compile than zoom
    found = minimise(jopt.chain(optax.lbfgs(linesearch=search)))
    assert float(loss(found)) < 1e-8
    assert_same(found, minimise(optax.lbfgs(linesearch=search)), rtol=1e-6)


def test_a_callable_extra_reaches_a_foreign_part_outside_of_jit():
    def ask(updates, state, params=None, *, value_fn, **extra):
        return jax.tree.map(lambda u: u * value_fn(params), updates), state

    tx = jopt.chain(optax.GradientTransformationExtraArgs(lambda params: (), ask), jopt.scale(2.0))
    updates, _ = tx.update(gradients()[0], tx.init(P), P, value_fn=lambda params: params["b"][0] * 3)
    assert_same(updates, jax.tree.map(lambda g: 6 * g, gradients()[0]))


def test_extras_that_no_part_names_reach_foreign_parts_only_where_they_take_them():
    tx = jopt.chain(optax.scale_by_adam(), jopt.scale(-0.1))  # takes none, and must not choke on one
    state = tx.init(P)
    with_extra, _ = tx.update(gradients()[0], state, P, value=jnp.ones(()), anything=3)
    without, _ = tx.update(gradients()[0], state, P)
    jax.tree.map(np.testing.assert_array_equal, with_extra, without)


def test_a_metric_reaches_their_plateau_inside_ours():
    tx = jopt.chain(jopt.sgd(0.1), optax.contrib.reduce_on_plateau(factor=0.5, patience=1))
    _, state = run(tx, extra=lambda i: {"value": 1.0})
    assert float(state.inner["foreign_reduce_on_plateau"].scale) == 0.125


def test_equality_of_a_chain_with_a_foreign_part_is_that_of_the_part():
    adam = optax.scale_by_adam()
    assert jopt.chain(adam, jopt.scale(0.1)) == jopt.chain(adam, jopt.scale(0.1))
    assert hash(jopt.chain(adam)) == hash(jopt.chain(adam))
    assert jopt.chain(adam) != jopt.chain(optax.scale_by_adam())


@pytest.mark.parametrize("thing", [optax.adam, jopt.adamw, 0.1, None, "adam", {"a": jopt.sgd(0.1)}])
def test_what_is_no_transform_is_an_error_that_says_what_it_was(thing):
    with pytest.raises(TypeError, match=r"chain: .* was given, a transform \(with init and update\) was expected"):
        jopt.chain(thing)


# jopt inside optax -------------------------------------------------------------------------------

INSIDE_OPTAX = {
    "chain": (
        lambda: optax.chain(optax.clip_by_global_norm(0.5), jopt.adamw(0.1)),
        lambda: optax.chain(optax.clip_by_global_norm(0.5), optax.adamw(0.1)),
    ),
    "a chain of rules": (
        lambda: optax.chain(jopt.scale_by_adam(), optax.add_decayed_weights(0.1), jopt.scale_by_learning_rate(0.1)),
        lambda: optax.adamw(0.1, weight_decay=0.1),
    ),
    "masked": (lambda: optax.masked(jopt.adam(0.1), MASK), lambda: optax.masked(optax.adam(0.1), MASK)),
    "masked by a function": (
        lambda: optax.masked(jopt.adam(0.1), lambda p: jax.tree.map(lambda x: x.ndim > 1, p)),
        lambda: optax.masked(optax.adam(0.1), MASK),
    ),
    "MultiSteps": (
        lambda: optax.MultiSteps(jopt.adam(0.1), 2).gradient_transformation(),
        lambda: optax.MultiSteps(optax.adam(0.1), 2).gradient_transformation(),
    ),
    "partition": (
        lambda: optax.partition({"x": jopt.adam(0.1), "y": jopt.lion(0.2)}, {"w": "x", "b": "y"}),
        lambda: optax.partition({"x": optax.adam(0.1), "y": optax.lion(0.2)}, {"w": "x", "b": "y"}),
    ),
    "apply_if_finite": (
        lambda: optax.apply_if_finite(jopt.adam(0.1), 3),
        lambda: optax.apply_if_finite(optax.adam(0.1), 3),
    ),
    "lookahead of nothing": (lambda: optax.named_chain(("a", jopt.adam(0.1))), lambda: optax.adam(0.1)),
    "wrapped twice": (
        lambda: optax.chain(jopt.chain(optax.chain(jopt.adam(0.1)))),
        lambda: optax.adam(0.1),
    ),
    "a wrapper": (
        lambda: optax.chain(jopt.accumulate(jopt.adam(0.1), 2)),
        lambda: optax.MultiSteps(optax.adam(0.1), 2).gradient_transformation(),
    ),
}


@pytest.mark.parametrize("name", INSIDE_OPTAX)
def test_jopt_inside_optax(name):
    ours, theirs = INSIDE_OPTAX[name]
    assert_same(run(ours())[0], run(theirs())[0], rtol=1e-10 if name not in FLOAT32 else 1e-6)


def test_a_transform_is_one_of_optax():
    tx = jopt.adamw(0.1)
    assert isinstance(tx, optax.GradientTransformation)
    assert isinstance(tx, optax.GradientTransformationExtraArgs)
    assert optax.with_extra_args_support(tx) is tx
    init, update = tx
    assert init == tx.init
    assert update == tx.update


def test_extras_reach_us_through_optax():
    tx = optax.chain(optax.identity(), jopt.reduce_on_plateau(factor=0.5, patience=1))
    _, state = run(tx, extra=lambda i: {"value": 1.0})
    assert float(state[1].scalars["reduce_on_plateau"]["scale"]) == 0.125


def test_their_tools_read_our_states():
    state = optax.chain(optax.clip(1.0), jopt.adamw(0.1)).init(P)
    assert int(optax.tree.get(state[1], "count")) == 0


def test_our_schedules_drive_their_optimizers_and_theirs_ours():
    ours, theirs = jopt.schedules.cosine_decay_schedule(0.1, 4), optax.cosine_decay_schedule(0.1, 4)
    expected = run(optax.adam(theirs))[0]
    assert_same(run(optax.adam(ours))[0], expected)
    assert_same(run(jopt.adam(theirs))[0], expected)
    assert_same(run(jopt.adam(ours))[0], expected)


def test_apply_gradients_takes_any_transform():
    for tx in (optax.adam(0.1), jopt.adam(0.1), optax.chain(jopt.adam(0.1))):
        params, _ = jopt.apply_gradients(tx, gradients()[0], tx.init(P), P)
        updates, _ = tx.update(gradients()[0], tx.init(P), P)
        assert_same(params, optax.apply_updates(P, updates), rtol=1e-6)
