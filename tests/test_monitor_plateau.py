"""What a run shows of itself: recorded norms, and a rate that follows the loss."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jopt
from jopt.linalg import Gradients

P = {"w": np.linspace(-1, 1, 6, dtype=np.float32).reshape(3, 2), "b": np.ones(2, np.float32)}
G = {"w": np.arange(6, dtype=np.float32).reshape(3, 2), "b": np.array([3.0, -4.0], np.float32)}


def norm(tree):
    return np.sqrt(sum(np.sum(np.square(np.asarray(x, np.float64))) for x in jax.tree.leaves(tree)))


def recorded(tx, grads=G, params=P):
    updates, state = tx.update(grads, tx.init(params), params)
    return {name: float(value) for name, value in jopt.monitored(state).items()}, updates


# monitor -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("jitted", [False, True])
def test_recorded_norms_are_those_of_numpy(jitted):
    tx = jopt.monitor(jopt.chain(jopt.clip_by_global_norm(0.5), jopt.sgd(0.1)))
    update = jax.jit(tx.update) if jitted else tx.update
    updates, state = update(G, tx.init(P), P)
    seen = jopt.monitored(state)
    expected = {
        "grad_norm": norm(G),
        "update_norm": norm(updates),
        "param_norm": norm(P),
        "update_ratio": norm(updates) / norm(P),
        "clip_factor": 0.5 / norm(G),
    }
    assert seen.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(seen[name], value, rtol=1e-5, err_msg=name)
        assert seen[name].shape == ()


def test_updates_pass_unchanged():
    _, watched = recorded(jopt.monitor(jopt.adamw(0.1)))
    plain = jopt.adamw(0.1)
    updates, _ = plain.update(G, plain.init(P), P)
    jax.tree.map(np.testing.assert_array_equal, watched, updates)


def test_without_a_clip_the_factor_is_one():
    assert recorded(jopt.monitor(jopt.sgd(0.1)))[0]["clip_factor"] == 1.0
    loose = jopt.monitor(jopt.chain(jopt.clip_by_global_norm(1e6), jopt.sgd(0.1)))
    assert recorded(loose)[0]["clip_factor"] == 1.0


def test_parameters_at_zero_have_the_ratio_zero():
    zero = jax.tree.map(np.zeros_like, P)
    assert recorded(jopt.monitor(jopt.sgd(0.1)), params=zero)[0]["update_ratio"] == 0.0


def test_nothing_is_recorded_without_a_monitor():
    assert jopt.monitored(jopt.adamw(0.1).init(P)) == {}


def test_a_monitor_inside_another_keeps_its_own_numbers():
    """The inner one must not leave its gradient norm, nor a clip outside of it, to the other."""
    inner = jopt.monitor(jopt.scale(3.0))
    seen, _ = recorded(jopt.monitor(jopt.chain(jopt.clip_by_global_norm(1.0), inner, jopt.scale(2.0))))
    np.testing.assert_allclose(seen["grad_norm"], 1.0, rtol=1e-5)
    np.testing.assert_allclose(seen["update_norm"], 3.0, rtol=1e-5)
    assert seen["clip_factor"] == 1.0
    np.testing.assert_allclose(seen["monitor_2/grad_norm"], norm(G), rtol=1e-5)
    np.testing.assert_allclose(seen["monitor_2/update_norm"], 6.0, rtol=1e-5)
    np.testing.assert_allclose(seen["monitor_2/clip_factor"], 1 / norm(G), rtol=1e-5)


def test_monitors_of_groups_see_their_group_only():
    clipped = jopt.monitor(jopt.chain(jopt.clip_by_global_norm(1.0), jopt.scale(1.0)))
    seen, _ = recorded(jopt.partition([("w", clipped), ("rest", "b", jopt.monitor(jopt.scale(2.0)))]))
    np.testing.assert_allclose(seen["w/grad_norm"], norm(G["w"]), rtol=1e-5)
    np.testing.assert_allclose(seen["w/update_norm"], 1.0, rtol=1e-5)
    np.testing.assert_allclose(seen["rest/update_norm"], 2 * norm(G["b"]), rtol=1e-5)
    assert seen["rest/clip_factor"] == 1.0


@pytest.mark.parametrize(
    ("wrap", "prefix"),
    [(lambda tx: jopt.accumulate(tx, 1), "accumulate/"), (jopt.skip_nonfinite, "skip_nonfinite/"), (jopt.ema, "")],
)
def test_a_monitor_is_found_inside_wrappers(wrap, prefix):
    seen, _ = recorded(wrap(jopt.monitor(jopt.sgd(0.1))))
    np.testing.assert_allclose(seen[prefix + "grad_norm"], norm(G), rtol=1e-5)


def test_norms_beyond_the_range_of_squares_are_right():
    big = jax.tree.map(lambda g: g * np.float32(1e20), P)
    tiny = jax.tree.map(lambda g: g * np.float32(1e-30), P)
    saturated = {k: np.clip(g, -1e18, 1e18) for k, g in big.items()}  # gradients saturate as they enter
    np.testing.assert_allclose(recorded(jopt.monitor(jopt.scale(1.0)), big)[0]["grad_norm"], norm(saturated), rtol=1e-5)
    np.testing.assert_allclose(recorded(jopt.monitor(jopt.scale(1.0)), tiny)[0]["grad_norm"], norm(tiny), rtol=1e-5)


def test_the_norm_of_an_array_is_never_taken_for_that_of_another():
    """Outside of jit (where a callable extra sends an update) arrays die early, and their ids are used again."""
    norms = {}
    for i in range(10):
        measured = Gradients({"w": jnp.full(4, i, jnp.float32)}, norms).norm()
        np.testing.assert_allclose(measured, 2.0 * i, rtol=1e-6)


# reduce_on_plateau -------------------------------------------------------------------------------


def scales(values, **options):
    """The scale after each value."""
    tx = jopt.reduce_on_plateau(**options)
    state, seen = tx.init(P), []
    for value in values:
        updates, state = tx.update(G, state, P, value=value)
        seen.append(float(state.scalars["reduce_on_plateau"]["scale"]))
        np.testing.assert_allclose(updates["b"], seen[-1] * G["b"], rtol=1e-6)
    return seen


def test_a_metric_that_stands_still_reduces_the_scale():
    assert scales([1.0] * 6, factor=0.5, patience=2) == [1.0, 1.0, 0.5, 0.5, 0.25, 0.25]


def test_a_metric_that_falls_does_not():
    assert scales(np.linspace(3, 1, 12), factor=0.5, patience=1) == [1.0] * 12


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_negative_metrics_count_like_positive_ones(sign):
    """An ELBO of −1 that stands still is a plateau; one that falls by more than rtol is not."""
    assert scales([sign] * 5, factor=0.5, patience=2)[-1] < 1.0
    assert scales([sign - 0.01 * i for i in range(5)], factor=0.5, patience=1) == [1.0] * 5
    assert scales([sign - 1e-5 * i for i in range(4)], factor=0.5, patience=1, rtol=0.1)[-1] < 1.0


def test_a_cooldown_counts_nothing():
    without = scales([1.0] * 8, factor=0.5, patience=1)
    with_cooldown = scales([1.0] * 8, factor=0.5, patience=1, cooldown=2)
    assert without == [1.0, 0.5, 0.25, 0.125, 0.0625, 0.03125, 0.015625, 0.0078125]
    assert with_cooldown == [1.0, 0.5, 0.5, 0.5, 0.25, 0.25, 0.25, 0.125]


def test_several_values_are_averaged_before_they_are_judged():
    noisy = [0.0, 2.0] * 4  # of mean 1 throughout: a plateau, although single values fall
    assert scales(noisy, factor=0.5, patience=1, accumulation_size=2) == [1, 1, 1, 0.5, 0.5, 0.25, 0.25, 0.125]


def test_the_scale_stops_at_its_minimum():
    assert scales([1.0] * 6, factor=0.1, patience=1, min_scale=0.05) == pytest.approx([1, 0.1] + [0.05] * 4)


@pytest.mark.parametrize(
    "options",
    [
        {"factor": 0.5, "patience": 2},
        {"factor": 0.1, "patience": 3, "rtol": 0.01, "atol": 0.0},
        {"factor": 0.5, "patience": 1, "rtol": 0.0, "atol": 0.02},
        {"factor": 0.5, "patience": 2, "cooldown": 3},
        {"factor": 0.5, "patience": 1, "accumulation_size": 3, "min_scale": 0.2},
    ],
)
def test_positive_metrics_reduce_as_in_optax(options):
    rng = np.random.default_rng(3)
    values = (np.linspace(2, 1, 40) + 0.05 * rng.normal(size=40)).astype(np.float32)
    theirs = optax.contrib.reduce_on_plateau(**options)
    state, expected = theirs.init(P), []
    with jax.numpy_dtype_promotion("standard"):
        update = jax.jit(theirs.update)
        for value in values:
            _, state = update(G, state, value=value)
            expected.append(float(state.scale))
    assert min(expected) < 1.0  # the comparison means something
    np.testing.assert_allclose(scales(values, **options), expected, rtol=1e-6)


def test_the_scale_holds_while_the_metric_is_not_finite_or_reduces_as_for_any_bad_value():
    assert scales([1.0, np.nan, np.nan, np.nan], factor=0.5, patience=2) == [1.0, 1.0, 0.5, 0.5]
    assert scales([np.inf, np.inf, 1.0, 0.5], factor=0.5, patience=5) == [1.0] * 4


def test_its_numbers_are_live():
    tx = jopt.reduce_on_plateau(factor=0.5, patience=1)
    _, state = tx.update(G, tx.init(P), P, value=1.0)
    state = jopt.set_hyperparams(state, factor=0.1)
    _, state = tx.update(G, state, P, value=1.0)
    np.testing.assert_allclose(state.scalars["reduce_on_plateau"]["scale"], 0.1, rtol=1e-6)


def test_a_missing_metric_is_an_error_that_names_it():
    tx = jopt.chain(jopt.sgd(0.1), jopt.reduce_on_plateau())
    with pytest.raises(TypeError, match=r"reduce_on_plateau was called without \['value'\].*value=\.\.\."):
        tx.update(G, tx.init(P), P)


def test_it_runs_under_jit_and_scan():
    tx = jopt.chain(jopt.sgd(0.1), jopt.reduce_on_plateau(factor=0.5, patience=1))

    def step(carry, value):
        params, state = carry
        params, state = jopt.apply_gradients(tx, G, state, params, value=value)
        return (params, state), state.scalars["reduce_on_plateau"]["scale"]

    params = jax.tree.map(jnp.asarray, P)
    _, seen = jax.lax.scan(step, (params, tx.init(params)), jnp.ones(4))
    np.testing.assert_allclose(seen, [1.0, 0.5, 0.25, 0.125])
