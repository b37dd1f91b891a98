"""Whatever a user does between two updates, they are traced once.

`counting_step` counts how often the engine traces a rule: once for each distinct leaf of a program.
A tag that differs from test to test keeps one test from using what another has compiled.
"""

import functools
import gc
import itertools
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jopt
from jopt import engine, schedules

TRACES = []
_TAGS = itertools.count()


def counting_step(g, s, p, *, rate, tag):
    TRACES.append(tag)
    return rate * g, s


@pytest.fixture
def make():
    """A maker of transforms: equal calls make equal transforms, and nothing is compiled yet."""
    tag = next(_TAGS)
    TRACES.clear()

    def make_transform(learning_rate=0.1, rate=0.5):
        counting = jopt.rule("counting", counting_step, hyper={"rate": rate}, static={"tag": tag})
        return jopt.chain(counting, jopt.adamw(learning_rate))

    return make_transform


@pytest.fixture
def count_compilations():
    """Counts what XLA compiles while it is switched on."""
    events = []
    listening = [True]

    def listen(event, duration, **_):
        if listening[0] and event.endswith("backend_compile_duration"):
            events.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield events
    listening[0] = False  # jax 0.7.2 cannot unregister


def params():
    return {"w": jnp.ones((3, 2)), "b": jnp.zeros(2)}


GRADS = {"w": np.full((3, 2), 0.5, np.float32), "b": np.full(2, -0.5, np.float32)}
LEAVES = len(GRADS)


def user_step(traces, **options):
    """A step as users write it: jitted, with the transform as a static argument."""

    @functools.partial(jax.jit, static_argnums=0, **options)
    def step(tx, params, state):
        traces.append(1)
        updates, state = tx.update(GRADS, state, params)
        return jopt.apply_updates(params, updates), state

    return step


# Outside jit: one trace of the update, whatever the scenario --------------------------------------


def test_the_same_transform_twice(make):
    tx, p = make(), params()
    state = tx.init(p)
    for _ in range(4):
        _, state = tx.update(GRADS, state, p)
    assert len(TRACES) == LEAVES


def test_fifty_learning_rates_share_one_compilation(make, count_compilations):
    p = params()
    state = make().init(p)
    make(0.05).update(GRADS, state, p)
    count_compilations.clear()
    for rate in np.linspace(0.01, 0.5, 50):
        make(rate, rate=rate).update(GRADS, state, p)
    assert count_compilations == []
    assert len(TRACES) == LEAVES


@pytest.mark.parametrize(
    "value", [0.2, 1, np.float64(0.3), np.float32(0.4), jnp.asarray(0.5)], ids=["float", "int", "f64", "f32", "array"]
)
def test_a_hyperparameter_set_to_any_kind_of_number(make, value):
    tx, p = make(), params()
    state = tx.init(p)
    _, state = tx.update(GRADS, state, p)
    state = jopt.set_hyperparams(state, learning_rate=value)
    tx.update(GRADS, state, p)
    assert len(TRACES) == LEAVES


@pytest.mark.parametrize("rate", [0.25, np.float64(0.25), np.float32(0.25), np.asarray(0.25), jnp.asarray(0.25)])
def test_a_hyperparameter_given_as_any_kind_of_number(make, rate):
    tx, p = make(0.25), params()
    state = tx.init(p)
    tx.update(GRADS, state, p)
    assert make(rate) == tx
    assert hash(make(rate)) == hash(tx)
    make(rate).update(GRADS, make(rate).init(p), p)
    assert len(TRACES) == LEAVES


@pytest.mark.parametrize("step", ["update", "apply_gradients"])
def test_python_numbers_as_parameters(make, step):
    tx, p = make(), {"w": 1.0}
    state = tx.init(p)
    for _ in range(4):
        if step == "update":
            updates, state = tx.update({"w": 0.5}, state, p)
            p = jopt.apply_updates(p, updates)
        else:
            p, state = jopt.apply_gradients(tx, {"w": 0.5}, state, p)
    assert len(TRACES) == 1


def test_gradients_in_double_precision_from_numpy(make):
    tx, p = make(), params()
    state = tx.init(p)
    for dtype in (np.float32, np.float64):
        tx.update({path: g.astype(dtype) for path, g in GRADS.items()}, state, p)
    assert len(TRACES) == LEAVES


def test_a_resumed_state(make):
    tx, p = make(), params()
    state = tx.init(p)
    for restore in (
        lambda s: s,
        jax.device_get,
        lambda s: jax.tree.map(jnp.asarray, jax.device_get(s)),
        jax.device_put,
        lambda s: pickle.loads(pickle.dumps(jax.device_get(s))),
    ):
        _, state = tx.update(GRADS, restore(state), p)
    assert len(TRACES) == LEAVES
    assert int(state.count) == 5


def test_a_schedule_made_anew(make):
    p = params()
    state = make(schedules.cosine_decay_schedule(0.1, 10)).init(p)
    for _ in range(3):
        _, state = make(schedules.cosine_decay_schedule(0.1, 10)).update(GRADS, state, p)
    assert len(TRACES) == LEAVES


def test_a_notebook_cell_run_again(make):
    for _ in range(3):
        tx, p = make(), params()
        state = tx.init(p)
        for _ in range(2):
            _, state = tx.update(GRADS, state, p)
        del tx
        gc.collect()
    assert len(TRACES) == LEAVES


def test_a_pickled_transform(make):
    tx, p = make(), params()
    state = tx.init(p)
    _, state = tx.update(GRADS, state, p)
    copy = pickle.loads(pickle.dumps(tx))
    assert copy == tx
    copy.update(GRADS, state, p)
    assert len(TRACES) == LEAVES


def test_a_wrapper_put_on_and_taken_off(make):
    p = params()
    for wrap in (lambda tx: tx, jopt.ema, lambda tx: tx, jopt.ema):
        tx = wrap(make())
        state = tx.init(p)
        for _ in range(2):
            _, state = tx.update(GRADS, state, p)
    assert len(TRACES) == 2 * LEAVES  # two programs, each once


def test_update_and_apply_gradients_are_one_trace_each(make):
    tx, p = make(), params()
    state = tx.init(p)
    for _ in range(2):
        tx.update(GRADS, state, p)
        jopt.apply_gradients(tx, GRADS, state, p)
    assert len(TRACES) == 2 * LEAVES


def test_leaves_of_one_shape_are_traced_once(make):
    p = {f"layer_{i}": jnp.ones((3, 2)) for i in range(12)}
    tx = make()
    tx.update(p, tx.init(p), p)
    assert len(TRACES) == 1


def test_equal_code_in_two_chains_is_traced_apart_only_where_it_differs(make):
    p = params()
    for rate in (0.1, 0.2):
        for tx in (make(rate), jopt.chain(make(rate), jopt.clip_params(-1, rate))):
            tx.update(GRADS, tx.init(p), p)
    assert len(TRACES) == 2 * LEAVES


# Inside the user's jit ----------------------------------------------------------------------------


def test_a_recreated_equal_transform_as_static_argument(make):
    traces = []
    step = user_step(traces)
    p, state = params(), make().init(params())
    for _ in range(4):
        p, state = step(make(), p, state)
    assert len(traces) == 1
    assert len(TRACES) == LEAVES


def test_a_recreated_transform_with_other_numbers_as_static_argument(make):
    """jax.jit keys a static argument by equality, so that other numbers must trace the user's step
    again (then the number inside must not stay); the leaves themselves are not traced again."""
    traces = []
    step = user_step(traces)
    p, state = params(), make().init(params())
    for rate in (0.1, 0.2, 0.3, 0.1):
        p, state = step(make(rate), p, state)
        assert float(jopt.hyperparams(state)["learning_rate"]) == pytest.approx(rate)
    assert len(traces) == 3
    assert len(TRACES) == LEAVES


def test_a_transform_as_argument_is_made_inside_from_its_rate(make):
    traces = []

    @jax.jit
    def step(rate, params, state):
        traces.append(1)
        updates, state = make(rate).update(GRADS, state, params)
        return jopt.apply_updates(params, updates), state

    p, state = params(), make().init(params())
    for rate in (0.1, 0.2, 0.3):
        p, state = step(rate, p, state)
        assert float(jopt.hyperparams(state)["learning_rate"]) == pytest.approx(rate)
    assert len(traces) == 1
    assert len(TRACES) == LEAVES


def test_a_closure_over_the_transform(make):
    traces = []
    tx = make()

    @jax.jit
    def step(params, state):
        traces.append(1)
        return jopt.apply_gradients(tx, GRADS, state, params)

    p, state = params(), tx.init(params())
    for rate in (0.1, 0.2, 0.3):
        p, state = step(p, jopt.set_hyperparams(state, learning_rate=rate))
    assert len(traces) == 1


def test_donated_buffers(make):
    traces = []
    step = user_step(traces, donate_argnums=(1, 2))
    p = params()
    state = make().init(p)
    for _ in range(4):
        p, state = step(make(), p, state)
    assert len(traces) == 1
    assert bool(jnp.isfinite(p["w"]).all())


def test_a_resumed_state_in_the_users_jit(make):
    traces = []
    step = user_step(traces)
    p = params()
    state = make().init(p)
    for restore in (lambda x: x, jax.device_get, jax.device_put):
        p, state = step(make(), restore(p), restore(state))
    assert len(traces) == 1


def test_a_state_made_under_jit_or_from_shapes_has_the_type_of_an_eager_one(make):
    traces = []
    step = user_step(traces)
    tx, p = make(), params()
    for state in (tx.init(p), jax.jit(tx.init)(p)):
        step(tx, p, state)
    structs = jax.eval_shape(tx.init, p)
    assert len(traces) == 1
    assert jax.tree.map(lambda s: (s.shape, s.dtype), structs) == jax.tree.map(lambda x: (x.shape, x.dtype), tx.init(p))


def test_python_numbers_as_parameters_of_the_users_jit(make):
    """Two traces: jax.jit itself gives the first Python number a weak type, which no update keeps."""
    traces = []

    @functools.partial(jax.jit, static_argnums=0)
    def step(tx, params, state):
        traces.append(1)
        updates, state = tx.update({"w": jnp.full((), 0.5)}, state, params)
        return jopt.apply_updates(params, updates), state

    p = {"w": 1.0}
    state = make().init(p)
    for _ in range(4):
        p, state = step(make(), p, state)
    assert len(traces) == 2
    assert not p["w"].weak_type


def test_optax_chain_around_a_recreated_transform_is_keyed_by_optax(make):
    """optax's chain compares by identity: keep the object, and it traces once."""
    traces = []
    step = user_step(traces)
    tx = optax.chain(optax.clip(1.0), make())
    p = params()
    state = tx.init(p)
    for _ in range(3):
        p, state = step(tx, p, state)
    assert len(traces) == 1


# The cache ----------------------------------------------------------------------------------------


def test_a_rule_of_a_closure_is_compiled_as_long_as_a_transform_of_it_lives():
    count = []

    def local_step(g, s, p, *, rate):
        count.append(1)
        return rate * g, s

    def make(rate):
        return jopt.rule("local", local_step, hyper={"rate": rate})

    p = params()
    tx = make(0.1)
    state = tx.init(p)
    for rate in (0.1, 0.2, 0.3):
        tx = make(rate)  # the old one is still there while this is made
        _, state = tx.update(GRADS, state, p)
    assert len(count) == LEAVES


def test_the_cache_of_plans_is_bounded():
    for tag in range(engine._MOST_PLANS + 20):
        jopt.rule("counting", counting_step, hyper={"rate": 1.0}, static={"tag": f"bounded {tag}"})
    assert len(engine._RECENT) <= engine._MOST_PLANS
    assert not any("bounded 0" in repr(parts) for parts in engine._RECENT)
