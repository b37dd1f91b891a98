"""Live hyper-parameters: read, set, swept and differentiated, at every nesting."""

import functools
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jopt
from jopt import schedules

P = {"w": np.linspace(-1, 1, 6, dtype=np.float32).reshape(3, 2), "b": np.ones(2, np.float32)}
G = {"w": np.full((3, 2), 0.5, np.float32), "b": np.array([1.0, -2.0], np.float32)}


def rate_of(state):
    return float(jopt.hyperparams(state)["learning_rate"])


def assert_close(got, expected, **tolerance):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(np.asarray(a), np.asarray(b), **tolerance), got, expected)


# Reading and setting -----------------------------------------------------------------------------

NESTINGS = {
    "bare": (lambda: jopt.adamw(0.1), "scale_by_learning_rate/learning_rate"),
    "partition": (
        lambda: jopt.partition([("mat", "w", jopt.adamw(0.1)), ("rest", "b", jopt.freeze())]),
        "mat/scale_by_learning_rate/learning_rate",
    ),
    "unnamed case": (
        lambda: jopt.partition([("w", jopt.adamw(0.1)), (jopt.everything_else, jopt.freeze())]),
        "w/scale_by_learning_rate/learning_rate",
    ),
    "masked": (lambda: jopt.masked(jopt.adamw(0.1), where="w"), "scale_by_learning_rate/learning_rate"),
    "accumulate": (lambda: jopt.accumulate(jopt.adamw(0.1), 1), "accumulate/scale_by_learning_rate/learning_rate"),
    "skip_nonfinite": (
        lambda: jopt.skip_nonfinite(jopt.adamw(0.1)),
        "skip_nonfinite/scale_by_learning_rate/learning_rate",
    ),
    "ema": (lambda: jopt.ema(jopt.adamw(0.1)), "scale_by_learning_rate/learning_rate"),
    "monitor": (lambda: jopt.monitor(jopt.adamw(0.1)), "scale_by_learning_rate/learning_rate"),
    "second instance": (
        lambda: jopt.chain(jopt.scale_by_learning_rate(1.0), jopt.scale(-1.0), jopt.adamw(0.1)),
        "scale_by_learning_rate_2/learning_rate",
    ),
    "deep": (
        lambda: jopt.skip_nonfinite(
            jopt.accumulate(jopt.partition([("w", jopt.masked(jopt.adamw(0.1), where="w")), ("b", jopt.freeze())]), 1)
        ),
        "skip_nonfinite/accumulate/w/scale_by_learning_rate/learning_rate",
    ),
    "foreign chain": (
        lambda: optax.chain(optax.clip(9.0), jopt.adamw(0.1)),
        "scale_by_learning_rate/learning_rate",
    ),
    "two in a foreign chain": (
        lambda: optax.chain(jopt.scale(1.0), jopt.adamw(0.1)),
        "1/scale_by_learning_rate/learning_rate",
    ),
    "foreign partition": (
        lambda: optax.partition({"x": jopt.adamw(0.1), "y": optax.set_to_zero()}, {"w": "x", "b": "y"}),
        "x/scale_by_learning_rate/learning_rate",
    ),
    "foreign in the middle": (
        lambda: jopt.chain(optax.chain(optax.identity(), jopt.adamw(0.1)), jopt.scale(1.0)),
        "foreign_chain/scale_by_learning_rate/learning_rate",
    ),
}


@pytest.mark.parametrize("nesting", NESTINGS)
def test_a_rate_is_read_and_set_by_its_full_name(nesting):
    make, full_name = NESTINGS[nesting]
    tx = make()
    state = tx.init(P)
    assert float(jopt.hyperparams(state)[full_name]) == pytest.approx(0.1)

    state = jopt.set_hyperparams(state, **{full_name: 0.25})
    assert float(jopt.hyperparams(state)[full_name]) == 0.25
    with jax.numpy_dtype_promotion("standard"):  # optax's parts are in it
        frozen, _ = tx.update(G, jopt.set_hyperparams(state, **{full_name: 0.0}), P)
        moving, after = tx.update(G, state, P)
    assert not np.any(np.asarray(frozen["w"]))
    assert np.all(np.asarray(moving["w"]) != 0)
    assert float(jopt.hyperparams(after)[full_name]) == 0.25


def test_a_short_name_is_any_ending_at_a_slash():
    state = jopt.skip_nonfinite(jopt.adamw(0.1)).init(P)
    read = jopt.hyperparams(state)
    assert read["b1"] == read["scale_by_adam/b1"] == read["skip_nonfinite/scale_by_adam/b1"]
    with pytest.raises(KeyError, match=r"rate.*is not in this state"):
        read["rate"]


def test_a_short_name_may_leave_out_parts_between():
    for tx in (jopt.muon(0.1), jopt.skip_nonfinite(jopt.muon(0.1))):
        state = jopt.set_hyperparams(tx.init(P), **{"muon/learning_rate": 0.25})
        read = jopt.hyperparams(state)
        assert float(read["muon/learning_rate"]) == float(read["muon/scale_by_learning_rate/learning_rate"]) == 0.25
        assert float(read["adam/learning_rate"]) == pytest.approx(0.1)
    for wrong in ("learning_rate/muon", "muon/scale_by_learning_rate", "sgd/learning_rate"):
        with pytest.raises(KeyError, match=r"set_hyperparams: .* is not in this state"):
            jopt.set_hyperparams(state, **{wrong: 0.1})


def test_a_short_name_that_two_names_can_be_cut_to_is_ambiguous():
    tx = jopt.partition([("all", jopt.everything_else, jopt.muon(0.1))])
    full = r"'all/adam/scale_by_learning_rate/learning_rate', 'all/muon/scale_by_learning_rate/learning_rate'"
    with pytest.raises(KeyError, match=f"set_hyperparams: 'all/learning_rate' is ambiguous, one of .{full}. was"):
        jopt.set_hyperparams(tx.init(P), **{"all/learning_rate": 0.2})


@pytest.mark.parametrize("given", [optax.adam(0.1).init(P), optax.adam(0.1), jopt.adam(0.1), None, P])
def test_what_holds_no_state_of_jopt_cannot_be_set(given):
    with pytest.raises(jopt.StateMismatchError, match=r"set_hyperparams: .* no jopt state in it.* not the transform"):
        jopt.set_hyperparams(given, learning_rate=0.2)


def test_setting_one_number_leaves_the_others_and_the_old_state_alone():
    state = jopt.adamw(0.1).init(P)
    new = jopt.set_hyperparams(state, b1=0.5)
    before, after = jopt.hyperparams(state), jopt.hyperparams(new)
    assert float(before["b1"]) == pytest.approx(0.9)
    assert {name for name in before if before[name] != after[name]} == {"scale_by_adam/b1"}
    assert jax.tree.structure(new) == jax.tree.structure(state)


def test_an_ambiguous_name_is_an_error_that_lists_the_full_names():
    state = jopt.muon(0.1).init(P)
    full = r"'adam/scale_by_learning_rate/learning_rate', 'muon/scale_by_learning_rate/learning_rate'"
    with pytest.raises(KeyError, match=f"'learning_rate' is ambiguous, one of .{full}. was expected"):
        jopt.hyperparams(state)["learning_rate"]
    with pytest.raises(KeyError, match=r"set_hyperparams: .*ambiguous"):
        jopt.set_hyperparams(state, learning_rate=0.1)


def test_numbers_of_two_instances_in_a_foreign_chain_do_not_run_together():
    state = optax.chain(jopt.scale(2.0), jopt.scale(3.0)).init(P)
    read = jopt.hyperparams(state)
    assert {name: float(value) for name, value in read.items()} == {"0/scale/step_size": 2, "1/scale/step_size": 3}
    state = jopt.set_hyperparams(state, **{"1/scale/step_size": 5.0})
    assert [float(s.hyper["scale/step_size"]) for s in state] == [2.0, 5.0]


def test_an_unknown_name_is_an_error_that_lists_the_known_ones():
    with pytest.raises(KeyError, match=r"'momentum' is not in this state, which has \['scale_by_learning_rate/lea"):
        jopt.set_hyperparams(jopt.sgd(0.1).init(P), momentum=0.9)


def test_a_scheduled_number_is_read_but_cannot_be_set():
    tx = jopt.sgd(schedules.linear_schedule(1.0, 0.0, 10))
    state = tx.init(P)
    assert rate_of(state) == 1.0
    for expected in (1.0, 0.9, 0.8):
        _, state = tx.update(G, state, P)
        assert rate_of(state) == pytest.approx(expected)  # the value of the update just done
    with pytest.raises(KeyError, match=r"learning_rate' follows a schedule.*Build the transform with a number"):
        jopt.set_hyperparams(state, learning_rate=0.1)


@pytest.mark.parametrize(("bad", "error"), [(float("nan"), ValueError), ("fast", TypeError), (None, TypeError)])
def test_a_value_that_is_no_number_cannot_be_set(bad, error):
    with pytest.raises(error, match="set_hyperparams: learning_rate="):
        jopt.set_hyperparams(jopt.sgd(0.1).init(P), learning_rate=bad)


def test_a_state_prints_each_number_once_and_no_arrays():
    state = jopt.sgd(0.25, momentum=0.5).init(P)
    shown = (
        "State(count=0, hyper=(scale_by_learning_rate/learning_rate=0.25, trace/decay=0.5), "
        "slots=(trace/trace: 2 arrays (32 bytes)))"
    )
    assert repr(state) == str(state) == shown
    assert repr(state._replace(count=jnp.int32(12345678))).startswith("State(count=12345678, ")
    wrapped = repr(jopt.chain(optax.scale_by_adam(), jopt.skip_nonfinite(jopt.sgd(0.25))).init(P))
    assert "skip_nonfinite/scale_by_learning_rate/learning_rate=0.25), inner=(foreign" in wrapped
    assert "foreign_scale_by_adam: 5 arrays (68 bytes), skip_nonfinite: " in wrapped
    assert pickle.loads(pickle.dumps(state)).count == 0
    assert len(jax.tree.leaves(state)) == 7


def test_a_state_without_values_prints_shapes():
    tx = jopt.chain(jopt.add_noise(0.1, 0.5, key=0), jopt.sgd(0.25))
    state = tx.init(P)
    name = "scale_by_learning_rate/learning_rate"
    assert f"{name}=0.25" in repr(state)
    assert "count=int32[], hyper=(add_noise/eta=float32[]" in repr(jax.eval_shape(tx.init, P))
    shown = []
    jax.eval_shape(lambda state: shown.append(repr(state)), state)
    assert f"{name}=float32[]" in shown[0]
    batch = jax.vmap(lambda rate: jopt.set_hyperparams(state, learning_rate=rate))(jnp.ones(3))
    assert f"{name}=float32[3]" in repr(batch)
    assert repr(jopt.sweep_axes(state)).startswith("State(count=0 arrays")
    for tree in (jax.tree.map(str, state), jax.tree.map(lambda _: None, state)):
        assert repr(tree).startswith("State(count=")
    state.count.delete()
    assert repr(state).startswith("State(count=int32[], ")


# Whoever spoke last wins -------------------------------------------------------------------------


def speak(state, words):
    """Replay words: ("tx", rate) is an update by a transform of that rate, ("set", rate) a hand at work."""
    used = []
    for speaker, rate in words:
        if speaker == "set":
            state = jopt.set_hyperparams(state, learning_rate=rate)
        else:
            updates, state = jopt.sgd(rate).update({"x": jnp.ones(())}, state, {"x": jnp.ones(())})
            used.append(round(-float(updates["x"]), 6))
            assert rate_of(state) == pytest.approx(used[-1])
    return used


@pytest.mark.parametrize(
    ("words", "used"),
    [
        ([("tx", 0.1), ("tx", 0.1)], [0.1, 0.1]),
        ([("tx", 0.2)], [0.2]),  # another transform on a fresh state
        ([("set", 0.5), ("tx", 0.1)], [0.5]),  # set before the first update
        ([("tx", 0.1), ("set", 0.5), ("tx", 0.1), ("tx", 0.1)], [0.1, 0.5, 0.5]),  # a hand's value stays
        ([("set", 0.5), ("tx", 0.2), ("tx", 0.2)], [0.2, 0.2]),  # a new transform wins over it
        ([("tx", 0.2), ("set", 0.5), ("tx", 0.2)], [0.2, 0.5]),  # and the hand over the new transform
        ([("set", 0.5), ("tx", 0.2), ("tx", 0.1)], [0.2, 0.1]),  # back to the first one
        ([("set", 0.5), ("tx", 0.2), ("set", 0.5), ("tx", 0.2)], [0.2, 0.5]),
        ([("set", 0.1), ("tx", 0.2), ("tx", 0.2), ("set", 0.1), ("tx", 0.2)], [0.2, 0.2, 0.1]),
        ([("set", 0.5), ("set", 0.6), ("tx", 0.1)], [0.6]),
    ],
)
def test_whoever_spoke_last_wins(words, used):
    assert speak(jopt.sgd(0.1).init({"x": jnp.ones(())}), words) == used


def test_a_recreated_transform_takes_effect_inside_wrappers():
    def make(rate):
        return jopt.skip_nonfinite(jopt.accumulate(jopt.sgd(rate), 1))

    state = make(0.1).init(P)
    for rate in (0.1, 0.2, 0.2, 0.1):
        updates, state = make(rate).update(G, state, P)
        assert_close(updates["b"], -rate * G["b"], rtol=1e-6)


# Sweeps ------------------------------------------------------------------------------------------


def train(tx, params=P, steps=5):
    """Steps on a quadratic; the same code inside vmap, grad and alone."""

    def step(carry, _):
        params, state = carry
        updates, state = tx.update(jax.tree.map(lambda p: p + 1, params), state, params)
        return (jopt.apply_updates(params, updates), state), None

    carry = (jax.tree.map(jnp.asarray, params), tx.init(params))
    return jax.lax.scan(step, carry, None, length=steps)[0][0]


SWEEP = {
    "learning_rate": [0.01, 0.1, 0.3],
    "b1": [0.0, 0.5, 0.99],
    "weight_decay": [0.0, 0.01, 1.0],
}


@pytest.mark.parametrize("name", SWEEP)
def test_a_vmapped_construction_is_a_loop(name):
    def run(value):
        return train(jopt.adamw(**({"learning_rate": 0.1} | {name: value})))

    together = jax.vmap(run)(jnp.array(SWEEP[name]))
    alone = [run(value) for value in SWEEP[name]]
    assert_close(together, jax.tree.map(lambda *x: jnp.stack(x), *alone), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", SWEEP)
def test_a_sweep_of_states_is_a_loop_and_keeps_one_clock(name):
    tx = jopt.adamw(0.1)
    fresh = tx.init(P)
    axes = jopt.sweep_axes(fresh)
    values = jnp.array(SWEEP[name])
    states = jax.vmap(lambda value: jopt.set_hyperparams(fresh, **{name: value}), out_axes=axes)(values)

    @functools.partial(jax.vmap, in_axes=(0, axes), out_axes=(0, axes))
    def step(params, state):
        return jopt.apply_gradients(tx, jax.tree.map(lambda p: p + 1, params), state, params)

    params = jax.tree.map(lambda p: jnp.stack([p] * len(values)), P)
    for _ in range(5):
        params, states = step(params, states)
    assert states.count.shape == ()
    assert int(states.count) == 5
    alone = [train(jopt.adamw(**({"learning_rate": 0.1} | {name: value}))) for value in SWEEP[name]]
    assert_close(params, jax.tree.map(lambda *x: jnp.stack(x), *alone), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(jopt.hyperparams(states)[name], values)


def test_only_clocks_that_the_data_decides_are_batched():
    axes = jopt.sweep_axes(jopt.chain(jopt.skip_nonfinite(jopt.adam(0.1)), jopt.adam(0.1)).init(P))
    assert axes.count is None
    assert axes.inner["skip_nonfinite"].state.count == 0


# Derivatives and arguments -----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["learning_rate", "b1"])
def test_the_gradient_through_a_hyperparameter_agrees_with_optax(name, x64):
    p = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), P)

    def ours(value):
        return loss(train(jopt.adamw(**({"learning_rate": 0.1} | {name: value})), p))

    def loss(params):
        return sum(jnp.sum(jnp.sin(x)) for x in jax.tree.leaves(params))

    def theirs(value):
        tx = optax.adamw(**({"learning_rate": 0.1} | {name: value}))
        params, state = p, tx.init(p)
        for _ in range(5):
            updates, state = tx.update(jax.tree.map(lambda x: x + 1, params), state, params)
            params = optax.apply_updates(params, updates)
        return loss(params)

    value = jnp.asarray({"learning_rate": 0.1, "b1": 0.9}[name])
    with jax.numpy_dtype_promotion("standard"):
        expected = jax.jit(jax.grad(theirs))(value)
    ours = jax.jit(ours)
    got = jax.grad(ours)(value)
    assert abs(float(expected)) > 1e-3
    np.testing.assert_allclose(got, expected, rtol=1e-10)
    h = 1e-6
    np.testing.assert_allclose(got, (ours(value + h) - ours(value - h)) / (2 * h), rtol=1e-5)


def test_a_gradient_flows_through_a_value_set_by_hand():
    tx = jopt.sgd(0.1)

    def loss(rate):
        state = jopt.set_hyperparams(tx.init(P), learning_rate=rate)
        updates, _ = tx.update(G, state, P)
        return jnp.sum(updates["w"])

    np.testing.assert_allclose(jax.grad(loss)(jnp.asarray(0.3)), -np.sum(G["w"]), rtol=1e-6)


def test_every_number_is_an_argument_of_jit():
    @jax.jit
    def run(learning_rate, b1, b2, eps, weight_decay):
        return train(jopt.adamw(learning_rate, b1, b2, eps, weight_decay=weight_decay))

    numbers = (0.1, 0.8, 0.9, 1e-6, 0.01)
    assert_close(run(*numbers), train(jopt.adamw(*numbers[:4], weight_decay=numbers[4])), rtol=1e-6)


def test_hyperparameters_leave_a_jitted_function_and_enter_one():
    state = jopt.adamw(0.1).init(P)
    read = jax.jit(jopt.hyperparams)(state)
    assert isinstance(read, jopt.state.Hyperparams)
    assert float(read["learning_rate"]) == pytest.approx(0.1)
    assert float(jax.jit(lambda read: read["b1"] * 2)(read)) == pytest.approx(1.8)
    assert jax.tree.structure(jax.tree.map(lambda x: x, read)) == jax.tree.structure(read)


# What a number may be ----------------------------------------------------------------------------


@pytest.mark.parametrize("rates", [np.array([0.1, 0.2]), jnp.array([0.1, 0.2]), [0.1, 0.2]])
def test_several_values_at_once_point_to_vmap(rates):
    with pytest.raises(TypeError, match=r"learning_rate of shape \(2,\).*jax\.vmap\(lambda learning_rate"):
        jopt.sgd(rates)


def test_several_traced_values_at_once_point_to_vmap():
    with pytest.raises(TypeError, match=r"b1 of shape \(2,\).*jax\.vmap\(lambda b1"):
        jax.jit(lambda b1: jopt.adam(0.1, b1).init(P))(jnp.array([0.1, 0.2]))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: jopt.adam(0.1, b1=1.5), r"scale_by_adam: b1=1\.5 .* \[0, 1\)"),
        (lambda: jopt.adam(0.1, b1=1.0), r"scale_by_adam: b1=1\.0"),
        (lambda: jopt.adam(0.1, b2=-0.1), r"b2=-0\.1"),
        (lambda: jopt.adam(0.1, eps=-1e-8), r"eps=-1e-08"),
        (lambda: jopt.sgd(float("nan")), "learning_rate=nan"),
        (lambda: jopt.sgd(-0.1), r"scale_by_learning_rate: learning_rate=-0\.1 .* \[0, inf\)"),
        (lambda: jopt.sgd(float("inf")), "learning_rate=inf"),
        (lambda: jopt.sgd(np.float32(-1)), r"learning_rate=-1\.0"),
        (lambda: jopt.sgd(jnp.asarray(-1.0)), r"learning_rate=-1\.0"),
    ],
)
def test_numbers_out_of_range_are_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_traced_numbers_are_not_checked_and_compare_by_identity():
    @jax.jit
    def run(a, b):
        assert jopt.sgd(a) == jopt.sgd(a)
        assert hash(jopt.sgd(a)) == hash(jopt.sgd(a))
        assert jopt.sgd(a) != jopt.sgd(b)
        assert "traced" in repr(jopt.sgd(a))
        return train(jopt.sgd(a))

    assert np.isfinite(np.asarray(run(-0.1, 0.1)["w"])).all()  # a negative rate, allowed inside


@pytest.mark.parametrize("number", [1, np.int32(1), np.float64(1), np.asarray(1.0), jnp.asarray(1, jnp.bfloat16)])
def test_every_real_scalar_becomes_a_python_number(number):
    assert jopt.sgd(number) == jopt.sgd(1.0)
    assert repr(jopt.sgd(number)) == "scale_by_learning_rate(learning_rate=1.0)"


def test_scalars_of_the_state_are_never_narrower_than_float32():
    state = jopt.adam(0.1).init({"w": jnp.ones(2, jnp.bfloat16)})
    assert {x.dtype for x in jopt.hyperparams(state).values()} == {jnp.dtype(jnp.float32)}
    assert float(jopt.hyperparams(state)["b2"]) != 1.0
