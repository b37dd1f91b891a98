"""What the moment family does that no law and no transcription sees."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

import jopt
from jopt import schedules
from jopt.rules.radam import length_of_average

P = {"w": jnp.asarray([1.0, -2.0, 3.0]), "b": jnp.asarray([0.5])}
G = {"w": jnp.asarray([0.1, 0.2, -0.3]), "b": jnp.asarray([-1.0])}


def updates(tx, grads, params, **numbers):
    """The updates of a sequence of gradients at fixed parameters."""
    state, seen = tx.init(params), []
    if numbers:
        state = jopt.set_hyperparams(state, **numbers)
    for g in grads:
        u, state = tx.update(g, state, params)
        seen.append(u)
    return seen, state


# Against optax where its numbers are not ours -----------------------------------------------------


def gradients(steps, seed=0):
    return [jnp.asarray(g, jnp.float32) for g in np.random.default_rng(seed).standard_normal((steps, 6))]


def test_rprop_takes_the_step_that_optax_takes_one_step_later():
    grads, p = gradients(30), jnp.zeros(6)
    ours, _ = updates(jopt.rprop(0.01), grads, p)
    with jax.numpy_dtype_promotion("standard"):
        other = optax.rprop(0.01)
        state = other.init(p)
        for g, u in zip(grads, ours, strict=True):
            before = state[0].prev_updates
            late, state = other.update(g, state, p)
            turned = np.asarray(g * before) < 0
            np.testing.assert_array_equal(late, np.where(turned, 0, -before))
            np.testing.assert_allclose(u, -state[0].prev_updates, rtol=1e-5, atol=0)


def test_adan_weights_changes_by_b2_where_optax_has_one_minus_b2():
    grads, p = [jnp.asarray([1.0]), jnp.asarray([3.0])], jnp.zeros(1)
    b1, b2, b3 = 0.98, 0.92, 0.99

    def second(weight):
        m = (b1 * (1 - b1) * 1 + (1 - b1) * 3) / (1 - b1**2)
        v = (1 - b2) * 2 / (1 - b2**2)
        n = (b3 * (1 - b3) * 1 + (1 - b3) * (3 + weight * 2) ** 2) / (1 - b3**2)
        return -(m + weight * v) / math.sqrt(n)

    ours, _ = updates(jopt.adan(1.0), grads, p)
    with jax.numpy_dtype_promotion("standard"):
        theirs, _ = updates(optax.adan(1.0), grads, p)
    np.testing.assert_allclose(ours[1], second(b2), rtol=1e-5)
    np.testing.assert_allclose(theirs[1], second(1 - b2), rtol=1e-5)
    np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-5)


@pytest.mark.parametrize("beta", [0.0, 0.5, 0.9, 0.99, 0.999, 0.9999])
def test_the_length_of_an_average_is_exact_where_its_usual_formula_cancels(beta):
    beta = float(np.float32(beta))
    for t in (1, 2, 5, 6, 100, 3000):
        powers = beta ** np.arange(t)
        exact = 1 + 2 * np.sum(np.arange(t) * powers) / np.sum(powers)
        got = length_of_average(jnp.asarray(t, jnp.float32), jnp.asarray(beta, jnp.float32))
        np.testing.assert_allclose(got, exact, rtol=3e-6)


@pytest.mark.parametrize("numbers", [(0.01,), (schedules.exponential_decay(0.05, 30, 0.5), 0.5, 0.03, 1e-4)])
def test_madgrad_goes_where_that_of_optax_goes(numbers):
    mine = his = jnp.asarray(np.linspace(-1, 1, 6), jnp.float32)
    ours, other = jopt.madgrad(*numbers), optax.contrib.madgrad(*numbers)
    state, theirs = ours.init(mine), other.init(his)
    for g in gradients(100):
        u, state = ours.update(g, state, mine)
        mine = mine + u
        with jax.numpy_dtype_promotion("standard"):
            v, theirs = other.update(g, theirs, his)
        his = his + v
        np.testing.assert_allclose(mine, his, rtol=1e-5, atol=1e-5)


def test_a_learning_rate_of_zero_is_one_in_madgrad():
    (first, second), state = updates(jopt.madgrad(0.1), [G, G], P, learning_rate=0.0)
    for u in jax.tree.leaves((first, second)):
        np.testing.assert_array_equal(u, 0)
    assert all(not np.any(x) for x in state.slots["scale_by_madgrad"]["s"].values())


# Rates that are inside a rule ----------------------------------------------------------------------


def test_rprop_scales_all_its_steps_with_a_live_learning_rate():
    tx, grads = jopt.rprop(0.01), [G] * 3
    _, state = updates(tx, grads, P)
    one, _ = tx.update(G, state, P)
    two, _ = tx.update(G, jopt.set_hyperparams(state, learning_rate=0.02), P)
    np.testing.assert_allclose(two["w"], 2 * one["w"], rtol=1e-6)


def test_rprop_rests_at_a_rate_of_zero_and_goes_on_within_its_bounds():
    tx = jopt.rprop(lambda n: jnp.where(n < 20, 0.0, 0.1), max_step_size=1.0)
    seen, _ = updates(tx, [G] * 22, P)
    for u in seen[:20]:
        np.testing.assert_array_equal(u["w"], 0)
    assert np.all(np.abs(seen[-1]["w"]) <= 1.0)
    assert np.all(seen[-1]["w"] * G["w"] < 0)


# Corrected decay -----------------------------------------------------------------------------------


def test_adamc_decays_by_the_square_of_the_rate():
    still = jax.tree.map(jnp.zeros_like, G)
    schedule = schedules.linear_schedule(0.1, 0.0, 4)
    seen, _ = updates(jopt.adamc(schedule, weight_decay=0.5, max_learning_rate=0.1), [still] * 5, P)
    for n, u in enumerate(seen):
        rate = 0.1 * (1 - n / 4)
        np.testing.assert_allclose(u["w"], -(rate**2) / 0.1 * 0.5 * P["w"], rtol=1e-5, atol=1e-9)


def test_adamc_is_adamw_at_a_constant_rate_and_has_one_live_rate():
    tx, other = jopt.adamc(0.1, weight_decay=0.5), jopt.adamw(0.1, weight_decay=0.5)
    np.testing.assert_allclose(updates(tx, [G], P)[0][0]["w"], updates(other, [G], P)[0][0]["w"], rtol=1e-6)
    still = jax.tree.map(jnp.zeros_like, G)
    _, state = updates(tx, [still], P)
    u, _ = tx.update(still, jopt.set_hyperparams(state, learning_rate=0.05), P)
    np.testing.assert_allclose(u["w"], -0.05 * 0.5 * 0.5 * P["w"], rtol=1e-6)


def test_adamc_without_a_maximum_takes_the_largest_rate_so_far():
    still = jax.tree.map(jnp.zeros_like, G)
    rates = [0.0, 0.1, 0.2, 0.1, 0.05, 0.0]
    schedule = schedules.join_schedules([schedules.constant_schedule(rate) for rate in rates], [1, 2, 3, 4, 5])
    seen, _ = updates(jopt.adamc(schedule, weight_decay=0.5), [still] * 6, P)
    for n, u in enumerate(seen):
        expected = rates[n] ** 2 / max(rates[: n + 1]) * 0.5 if n else 0.0
        np.testing.assert_allclose(u["w"], -expected * P["w"], rtol=1e-5)


def test_adamc_decays_only_what_is_chosen():
    still = jax.tree.map(jnp.zeros_like, G)
    by_path, by_mask = jopt.adamc(0.1, where="w"), jopt.adamc(0.1, mask={"w": True, "b": False})
    for tx in (by_path, by_mask):
        (u,), _ = updates(tx, [still], P)
        assert np.all(u["w"] != 0)
        assert np.all(u["b"] == 0)


# Caution -------------------------------------------------------------------------------------------


def test_cautious_keeps_what_agrees_and_makes_up_for_the_rest():
    tx = jopt.cautious(jopt.trace(0.9))
    (_, u), _ = updates(tx, [jnp.asarray([1.0, 1.0, 1.0, 1.0]), jnp.asarray([1.0, -0.1, 1.0, 0.0])], jnp.zeros(4))
    np.testing.assert_allclose(u, [3.8, 0, 3.8, 0], rtol=1e-6)  # 1.9 · 4/2 where they agree


def test_cautious_divides_by_no_less_than_its_floor():
    p = jnp.zeros(4)
    sequence = [jnp.ones(4), jnp.asarray([0.1, -0.1, -0.1, -0.1])]
    (_, u), _ = updates(jopt.cautious(jopt.trace(0.9), floor=0.5), sequence, p)
    np.testing.assert_allclose(u, [1.0 / 0.5, 0, 0, 0], rtol=1e-6)
    (_, u), _ = updates(jopt.cautious(jopt.trace(0.9)), [jnp.ones(4), -0.1 * jnp.ones(4)], p)
    np.testing.assert_array_equal(u, 0)


def test_cautious_keeps_the_names_of_the_state():
    plain, careful = jopt.adamw(0.1), jopt.cautious_adamw(0.1)
    state = plain.init(P)
    assert careful.init(P).slots.keys() == state.slots.keys()
    assert jopt.hyperparams(careful.init(P)).keys() - jopt.hyperparams(state).keys() == {"cautious_updates/floor"}


DOWNHILL = (
    jopt.adamw(0.1),
    jopt.madgrad(0.1),
    jopt.adamc(0.1),
    jopt.rprop(0.1),
    jopt.prodigy(),
    jopt.fromage(0.1),
    jopt.adafactor(),
    jopt.cocob(),
    jopt.hyperball(jopt.scale_by_adam(), 0.1),
    jopt.chain(jopt.scale_by_adam(), jopt.scale(-1e-2)),
    jopt.chain(jopt.scale_by_adam(), jopt.scale(jnp.float32(-1))),
    jopt.accumulate(jopt.sgd(0.1, momentum=0.9), 1),
    jopt.lookahead(jopt.adam(0.1), 5, 0.5),
    jopt.masked(jopt.skip_nonfinite(jopt.sgd(0.1)), where="w"),
    jopt.partition([("w", "w", jopt.trace(0.9)), ("b", "b", jopt.sgd(0.1))]),
)


@pytest.mark.parametrize("tx", DOWNHILL)
def test_cautious_refuses_what_points_downhill(tx):
    with pytest.raises(ValueError, match=r"cautious: .* rules that point uphill were expected"):
        jopt.cautious(tx)


def test_cautious_works_inside_itself_groups_and_other_wrappers():
    inside = jopt.cautious(jopt.cautious(jopt.scale_by_adam()))
    assert np.all(np.isfinite(updates(inside, [G, G], P)[0][-1]["w"]))
    groups = jopt.partition([("w", jopt.cautious_adamw(0.1)), ("b", jopt.cautious_lion(0.1))])
    alone = jopt.cautious_adamw(0.1)
    (_, u), _ = updates(groups, [G, G], P)
    (_, v), _ = updates(alone, [G, G], P)
    np.testing.assert_array_equal(u["w"], v["w"])
    halved = jopt.cautious(jopt.accumulate(jopt.chain(jopt.scale_by_adam(), jopt.scale(0.5)), every=1))
    assert np.all(np.isfinite(updates(halved, [G, G], P)[0][-1]["w"]))
    held = jopt.accumulate(jopt.monitor(jopt.cautious_adamw(0.1)), every=1)
    np.testing.assert_allclose(updates(held, [G, G], P)[0][-1]["w"], v["w"], rtol=1e-6)


def test_cautious_decay_spares_what_the_update_takes_away_from_zero():
    p, g = jnp.asarray([1.0, -1.0, 1.0, -1.0]), jnp.asarray([1e-30, -1e-30, -1e-30, 0.0])
    (u,), _ = updates(jopt.add_cautious_decay(0.5), [g], p)
    np.testing.assert_allclose(u - g, [0.5, -0.5, 0.0, -0.5])


# Others --------------------------------------------------------------------------------------------


def test_a_stable_adamw_shortens_the_step_of_a_surprising_gradient():
    calm, spike = [jnp.full(4, 0.01)] * 20, [jnp.full(4, 10.0)]
    stable, _ = updates(jopt.scale_by_stable_adam(), calm + spike, jnp.zeros(4))
    plain, _ = updates(jopt.scale_by_adam(b2=0.99, eps=1e-6), calm + spike, jnp.zeros(4))
    np.testing.assert_allclose(stable[19], plain[19], rtol=1e-5)
    assert np.all(stable[20] < 0.5 * plain[20])


def test_lion_has_the_modes_of_optax():
    assert jopt.scale_by_lion(mode="smooth", smooth_beta=2.0) == jopt.scale_by_smooth_lion(smooth_beta=2.0)
    assert jopt.scale_by_lion(mode="refined") == jopt.scale_by_refined_lion()
    with pytest.raises(ValueError, match="mode='soft' was given"):
        jopt.scale_by_lion(mode="soft")


def test_mars_corrects_matrices_and_leaves_the_rest_to_adamw():
    params = {"w": jnp.ones((2, 3)), "b": jnp.ones(3)}
    state = jopt.mars(0.01).init(params)
    assert state.slots["mars/scale_by_mars"]["g"].keys() == {"w"}
    assert state.slots["adam/scale_by_adam"]["mu"].keys() == {"b"}


def test_mars_masks_the_decay_of_both_halves():
    params = {"w": jnp.ones((2, 3)), "v": jnp.ones((2, 3)), "b": jnp.ones(3), "c": jnp.ones(3)}
    tx = jopt.mars(0.01, weight_decay=0.1, mask={"w": True, "v": False, "b": True, "c": False})
    (u,), _ = updates(tx, [jax.tree.map(jnp.zeros_like, params)], params)
    for decayed, spared in (("w", "v"), ("b", "c")):
        np.testing.assert_allclose(u[decayed], -1e-3, rtol=1e-6)
        np.testing.assert_array_equal(u[spared], 0)


def test_novograd_keeps_one_number_for_an_array():
    state = jopt.novograd(0.01).init({"w": jnp.ones((50, 3))})
    assert state.slots["scale_by_novograd"]["nu"]["w"].shape == ()


@pytest.mark.skipif(jax.config.jax_enable_x64, reason="float64 does not overflow")
def test_novograd_of_a_large_array_of_huge_gradients_is_finite():
    p = jnp.zeros(10_000)
    seen, state = updates(jopt.novograd(0.01), [jnp.full(10_000, 3e38), jnp.ones(10_000)], p)
    for x in jax.tree.leaves((seen, state.slots)):
        assert np.all(np.isfinite(x))
