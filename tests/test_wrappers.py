"""Wrappers that step seldom, or beside: accumulate, skip_nonfinite, ema."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jopt

P = {"w": np.linspace(-1, 1, 6, dtype=np.float32).reshape(3, 2), "b": np.ones(2, np.float32)}


def gradients(n, seed=0):
    rng = np.random.default_rng(seed)
    return [{k: rng.normal(size=p.shape).astype(p.dtype) for k, p in P.items()} for _ in range(n)]


def mean(trees):
    return jax.tree.map(lambda *x: sum(x) / len(x), *trees)


def spoil(grads, value, where):
    """Gradients with a value that is not finite in one element, one leaf, or everywhere."""
    spoilt = jax.tree.map(np.array, grads)
    if where == "element":
        spoilt["w"][1, 0] = value
    else:
        for leaf in ("b",) if where == "leaf" else ("w", "b"):
            spoilt[leaf][...] = value
    return spoilt


def by_update(tx):
    def step(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return jopt.apply_updates(params, updates), state

    return step


def by_apply(tx):
    return lambda params, state, grads: jopt.apply_gradients(tx, grads, state, params)


def run(tx, sequence, step=by_apply, params=P):
    params = jax.tree.map(jnp.asarray, params)
    state = tx.init(params)
    step = jax.jit(step(tx))
    for grads in sequence:
        params, state = step(params, state, grads)
    return params, state


def assert_close(got, expected, rtol=1e-6, atol=1e-7):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=rtol, atol=atol), got, expected
    )


def assert_same_bits(got, expected):
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b)), got, expected)


# accumulate --------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [by_apply, by_update])
@pytest.mark.parametrize("every", [1, 2, 4])
def test_micro_batches_are_one_batch(every, step):
    grads = gradients(8)
    big = [mean(grads[i : i + every]) for i in range(0, 8, every)]
    got, state = run(jopt.accumulate(jopt.adamw(0.1), every), grads, step)
    assert_close(got, run(jopt.adamw(0.1), big)[0])
    assert int(state.count) == 8
    assert int(state.inner["accumulate"].state.count) == 8 // every


def test_between_steps_nothing_moves():
    tx = jopt.accumulate(jopt.adamw(0.1), 3)
    state = tx.init(P)
    for i, grads in enumerate(gradients(6)):
        updates, state = tx.update(grads, state, P)
        assert bool(np.any(np.asarray(updates["w"]))) == (i % 3 == 2)


def test_the_wrapped_transform_runs_once_a_step():
    calls = []

    def counting_step(g, s, p):
        jax.debug.callback(lambda: calls.append(1))
        return g, s

    run(jopt.accumulate(jopt.chain(jopt.rule("counting", counting_step), jopt.sgd(0.1)), 4), gradients(8)[:7] * 2)
    jax.effects_barrier()
    assert len(calls) == 3 * len(P)  # 14 calls of update, 3 steps, one execution a leaf


def test_every_may_follow_a_schedule_of_finished_calls():
    tx = jopt.accumulate(jopt.sgd(0.1), lambda count: jnp.where(count < 4, 2.0, 4.0))
    _, state = run(tx, gradients(12))
    assert int(state.inner["accumulate"].state.count) == 4  # after calls 2, 4, 8 and 12


def test_every_is_live():
    tx = jopt.accumulate(jopt.sgd(0.1), 4)
    params, state = run(tx, gradients(2))
    state = jopt.set_hyperparams(state, every=1)
    updates, state = tx.update(gradients(3)[2], state, params)
    assert_close(updates, jax.tree.map(lambda g: -0.1 * g, mean(gradients(3))))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_bad_micro_batch_is_left_out_of_the_mean(bad):
    grads = gradients(4)
    got, state = run(jopt.accumulate(jopt.adamw(0.1), 4), [grads[0], spoil(grads[1], bad, "element"), *grads[2:]])
    assert_close(got, run(jopt.adamw(0.1), [mean([grads[0], *grads[2:]])])[0])
    assert int(state.inner["accumulate"].skipped) == 1


def test_a_window_without_one_finite_gradient_is_prolonged():
    grads = gradients(3)
    bad = [spoil(g, np.nan, "leaf") for g in grads]
    tx = jopt.accumulate(jopt.adamw(0.1), 2)
    waiting, state = run(tx, bad)
    assert_same_bits(waiting, P)
    assert int(state.inner["accumulate"].state.count) == 0
    assert_close(run(tx, [*bad, grads[0]])[0], run(jopt.adamw(0.1), grads[:1])[0])


def test_extras_are_those_of_the_call_that_steps():
    tx = jopt.accumulate(jopt.chain(jopt.sgd(0.1), jopt.reduce_on_plateau()), 2)
    state = tx.init(P)
    for grads, value in zip(gradients(2), (7.0, 3.0), strict=True):
        _, state = tx.update(grads, state, P, value=value)
    assert float(state.inner["accumulate"].state.scalars["reduce_on_plateau"]["best_value"]) == 3.0


def test_complex_numbers_keep_their_imaginary_part():
    params = {"c": jnp.array([1 + 1j, 2 - 1j])}
    grads = [{"c": np.array([2 + 4j, 1j], np.complex64)}, {"c": np.array([4 + 0j, 3j], np.complex64)}]
    got, _ = run(jopt.accumulate(jopt.sgd(1.0), 2), grads, params=params)
    assert_close(got, {"c": params["c"] - np.array([3 + 2j, 2j], np.complex64)})


def test_double_precision_is_kept(x64):
    params = {"w": jnp.ones(3, jnp.float64)}
    grads = [{"w": np.full(3, 1.0)}, {"w": np.full(3, 1e-12)}]
    got, _ = run(jopt.accumulate(jopt.sgd(1.0), 2), grads, params=params)
    np.testing.assert_allclose(np.asarray(got["w"]) - 0.5, -0.5e-12, rtol=1e-3)


def test_narrow_gradients_are_summed_in_float32():
    params = {"w": jnp.zeros(3, jnp.bfloat16)}
    grads = [{"w": np.full(3, x, jnp.bfloat16)} for x in (1.0, 2**-10)]
    _, state = run(jopt.accumulate(jopt.sgd(0.1), 3), grads, params=params)
    np.testing.assert_array_equal(state.inner["accumulate"].total["w"], np.float32(1 + 2**-10))  # 1 in bfloat16


NESTED = {
    "guard outside": lambda tx: jopt.skip_nonfinite(jopt.accumulate(tx, 4)),
    "guard inside": lambda tx: jopt.accumulate(jopt.skip_nonfinite(tx), 4),
    "accumulate twice": lambda tx: jopt.accumulate(jopt.accumulate(tx, 2), 2),
    "in a chain": lambda tx: jopt.chain(jopt.accumulate(tx, 4), jopt.scale(1.0)),
    "in a partition": lambda tx: jopt.partition([("all", jopt.everything_else, jopt.accumulate(tx, 4))]),
    "averaged": lambda tx: jopt.ema(jopt.accumulate(tx, 4)),
    "monitored": lambda tx: jopt.monitor(jopt.accumulate(tx, 4)),
}


@pytest.mark.parametrize("nesting", NESTED)
def test_accumulate_nests(nesting):
    grads = gradients(8)
    expected, _ = run(jopt.adamw(0.1), [mean(grads[:4]), mean(grads[4:])])
    assert_close(run(NESTED[nesting](jopt.adamw(0.1)), grads)[0], expected)


def test_accumulate_inside_an_optax_chain():
    grads = gradients(4)
    tx = optax.chain(optax.identity(), jopt.accumulate(jopt.adamw(0.1), 4))
    assert_close(run(tx, grads, by_update)[0], run(jopt.adamw(0.1), [mean(grads)])[0])


REVERSIBLE = {
    "accumulate": lambda tx: jopt.accumulate(tx, 2),
    "skip_nonfinite": jopt.skip_nonfinite,
    "both": lambda tx: jopt.skip_nonfinite(jopt.accumulate(tx, 2)),
}


@pytest.mark.parametrize("step", [by_apply, by_update])
@pytest.mark.parametrize("wrapper", REVERSIBLE)
def test_reverse_mode_crosses_the_loop(wrapper, step, x64):
    """The derivative of the trained parameters by the rate and by the data, against differences."""

    def trained(rate, data):
        tx = REVERSIBLE[wrapper](jopt.sgd(rate, momentum=0.9))
        params, state = jnp.linspace(-1.0, 1.0, 4), tx.init(jnp.linspace(-1.0, 1.0, 4))
        for _ in range(4):
            params, state = step(tx)(params, state, jnp.sin(params * data))
        return jnp.sum(params**2)

    at, h = (jnp.asarray(0.1), jnp.asarray(0.7)), 1e-6
    trained = jax.jit(trained)
    by_rate, by_data = jax.jit(jax.grad(trained, (0, 1)))(*at)
    np.testing.assert_allclose(by_rate, (trained(at[0] + h, at[1]) - trained(at[0] - h, at[1])) / (2 * h), rtol=1e-6)
    np.testing.assert_allclose(by_data, (trained(at[0], at[1] + h) - trained(at[0], at[1] - h)) / (2 * h), rtol=1e-6)


@pytest.mark.parametrize("wrap", [lambda tx: jopt.accumulate(tx, 2), jopt.skip_nonfinite], ids=["acc", "guard"])
def test_wrappers_run_under_vmap_and_keep_a_bad_lane_to_itself(wrap):
    """Eight lanes, the fourth of which gets NaN for once: the others must not notice."""
    tx = wrap(jopt.adamw(0.1))
    grads = gradients(4)

    @jax.jit
    @jax.vmap
    def lane(factor):
        params = jax.tree.map(jnp.asarray, P)
        state = tx.init(params)
        for i, g in enumerate(grads):
            g = jax.tree.map(lambda x, i=i: x * jnp.where(i == 1, factor, 1.0), g)
            params, state = jopt.apply_gradients(tx, g, state, params)
        return params

    clean = lane(jnp.ones(8))
    one_bad = lane(jnp.ones(8).at[3].set(jnp.nan))
    others = np.delete(np.arange(8), 3)
    assert_same_bits(jax.tree.map(lambda x: x[others], one_bad), jax.tree.map(lambda x: x[others], clean))
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(one_bad))
    left_out = [grads[0], *grads[2:]] if wrap is jopt.skip_nonfinite else [grads[0], mean(grads[2:])]
    expected = run(jopt.adamw(0.1), left_out)[0]
    assert_close(jax.tree.map(lambda x: x[3], one_bad), expected, rtol=1e-5)


# skip_nonfinite ----------------------------------------------------------------------------------


@functools.cache
def guarded(step):
    tx = jopt.skip_nonfinite(jopt.ema(jopt.adamw(jopt.schedules.linear_schedule(0.1, 0.0, 20))), max_consecutive=2)
    return tx, jax.jit(step(tx))


@pytest.mark.parametrize("step", [by_apply, by_update])
@pytest.mark.parametrize("where", ["element", "leaf", "all"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_skipped_step_was_never_seen(bad, where, step):
    """Parameters, moments, averages and clocks are bit for bit those of a run without the step."""
    tx, go = guarded(step)
    grads = gradients(8)

    def train(sequence):
        params = jax.tree.map(jnp.asarray, P)
        state = tx.init(params)
        for g in sequence:
            params, state = go(params, state, g)
        return params, state.inner["skip_nonfinite"].state

    clean = train(grads)
    for at in (0, 1, 5):
        assert_same_bits(train([*grads[:at], spoil(grads[7], bad, where), *grads[at:]]), clean)


def test_the_alarm_rings_after_so_many_in_a_row_and_nan_never_gets_in():
    tx, go = guarded(by_apply)
    good, bad = gradients(1)[0], spoil(gradients(1)[0], np.nan, "leaf")
    params, state = go(jax.tree.map(jnp.asarray, P), tx.init(P), good)
    before = jax.tree.map(np.asarray, params)
    seen = []
    for grads in [bad, good, *[bad] * 4, good]:
        params, state = go(params, state, grads)
        report = jopt.nonfinite_report(state, params)
        seen.append((report["skipped"], report["consecutive"], report["alarm"]))
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(params))
    expected = [(1, 1, False), (1, 0, False), (2, 1, False), (3, 2, True), (4, 3, True), (5, 4, True), (5, 0, False)]
    assert seen == expected
    assert not np.array_equal(before["w"], params["w"])


def test_the_report_names_the_first_array_at_fault():
    tx = jopt.chain(jopt.skip_nonfinite(jopt.sgd(0.1)))
    params = {"layers": [{"kernel": np.ones(2, np.float32), "n": 3}, {"kernel": np.ones(2, np.float32)}], "bias": 1.0}
    grads = jax.tree.map(np.zeros_like, params)
    state = tx.init(params)
    assert jopt.nonfinite_report(state, params) == {
        "skipped": 0,
        "consecutive": 0,
        "alarm": False,
        "first_bad": None,
    }
    grads["layers"][1]["kernel"][0] = np.nan
    _, state = tx.update(grads, state, params)
    assert jopt.nonfinite_report(state, params)["first_bad"] == "layers/1/kernel"
    assert jopt.nonfinite_report(jopt.sgd(0.1).init(params), params) is None


GUARDED = jopt.skip_nonfinite(jopt.sgd(0.1))


@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize(
    "tx",
    [
        jopt.partition([("g", "z|m", GUARDED), ("r", "**", jopt.sgd(0.1))]),
        jopt.masked(GUARDED, where="z|m"),
        jopt.masked(jopt.partition([("g", "z", GUARDED), ("r", "m", jopt.sgd(0.1))]), where="z|m"),
    ],
    ids=["partition", "mask", "nested"],
)
def test_the_report_names_what_a_guard_of_a_part_of_the_tree_saw(tx, given):
    params = {"a": np.ones(2, np.float32), "m": np.ones(2, np.float32), "n": 3, "z": np.ones(2, np.float32)}
    grads = {name: np.zeros_like(p) for name, p in params.items()} | {"a": None if given else np.zeros(2, np.float32)}
    grads["z"][0] = np.nan
    _, state = jax.jit(tx.update)(grads, tx.init(params), params if given else None)
    assert jopt.nonfinite_report(state, params)["first_bad"] == "z"


def test_the_report_counts_parameters_without_a_gradient():
    params = {"a": jnp.ones(2), "m": jnp.ones(2), "z": jnp.ones(2)}
    _, state = GUARDED.update({"a": None, "m": jnp.full(2, np.nan), "z": jnp.ones(2)}, GUARDED.init(params), params)
    assert jopt.nonfinite_report(state, params)["first_bad"] == "m"


# ema and eval_params -----------------------------------------------------------------------------


def test_the_average_is_the_recursion_of_the_paper():
    grads, kept, at = gradients(5), jax.tree.map(np.float64, P), jax.tree.map(np.float64, P)
    for g in grads:
        at = jax.tree.map(lambda p, g: p - 0.1 * g, at, g)
        kept = jax.tree.map(lambda a, p: 0.8 * a + 0.2 * p, kept, at)
    params, state = run(jopt.ema(jopt.sgd(0.1), 0.8), grads)
    assert_close(jopt.eval_params(state, params), kept, rtol=1e-5)
    assert_close(params, at, rtol=1e-5)


def test_the_average_stays_in_the_hull_of_what_was_visited():
    grads, tx = gradients(20), jopt.ema(jopt.adamw(0.3), 0.7)
    params, state, step = jax.tree.map(jnp.asarray, P), tx.init(P), jax.jit(by_apply(tx))
    low = high = P
    for g in grads:
        params, state = step(params, state, g)
        low, high = jax.tree.map(np.minimum, low, params), jax.tree.map(np.maximum, high, params)
        average = jopt.eval_params(state, params)
        for path in P:
            assert np.all((average[path] >= low[path] - 1e-6) & (average[path] <= high[path] + 1e-6))


@pytest.mark.parametrize(
    "wrap", [lambda tx: jopt.accumulate(tx, 1), jopt.skip_nonfinite, jopt.monitor, lambda tx: optax.chain(tx)]
)
def test_averages_are_found_inside_wrappers(wrap):
    plain_params, plain = run(jopt.ema(jopt.sgd(0.1), 0.5), gradients(3), by_update)
    params, state = run(wrap(jopt.ema(jopt.sgd(0.1), 0.5)), gradients(3), by_update)
    assert_close(jopt.eval_params(state, params), jopt.eval_params(plain, plain_params))


def test_an_average_of_narrow_parameters_is_wide_and_comes_back_narrow():
    params = {"w": jnp.ones(4, jnp.bfloat16)}
    params, state = run(jopt.ema(jopt.sgd(1e-3), 0.5), [{"w": np.ones(4, jnp.bfloat16)}] * 3, params=params)
    kept = state.slots["average_params"]["averaged"]["w"]
    assert kept.dtype == jnp.float32
    assert jopt.eval_params(state, params)["w"].dtype == jnp.bfloat16
    # Each step rounds back to 1 in bfloat16; the average is of the parameters before they are rounded.
    assert float(kept[0]) < 1.0


def test_what_is_not_averaged_evaluates_as_it_is():
    tx = jopt.partition([("b", jopt.freeze()), (jopt.everything_else, jopt.ema(jopt.sgd(0.1), 0.5))])
    params, state = run(tx, gradients(2))
    averaged = jopt.eval_params(state, params)
    assert_same_bits(averaged["b"], params["b"])
    assert not np.array_equal(averaged["w"], params["w"])
    assert_same_bits(jopt.eval_params(jopt.sgd(0.1).init(P), P), P)


def test_two_averages_are_an_error_that_names_both():
    state = jopt.ema(jopt.ema(jopt.sgd(0.1))).init(P)
    with pytest.raises(jopt.StateMismatchError, match=r"'average_params', 'average_params_2'.*one was expected"):
        jopt.eval_params(state, P)


def test_ema_of_a_number_points_to_the_other_ema():
    with pytest.raises(TypeError, match=r"scale_by_ema\(0\.9\)"):
        jopt.ema(0.9)
