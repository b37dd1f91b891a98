"""Estimators of curvature by what they draw, Sophia against optax, and estimates that can be read."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracles
import pytest
from zoo.cases import PARITY_SHAPES

import jopt

PARAMS, GRADS, _ = oracles.record(PARITY_SHAPES, 40, seed=3)


def tree(arrays):
    return {name: jnp.asarray(x) for name, x in arrays.items()}


def bent(params):
    """Its Hessian is diagonal, of both signs, and not constant: Hutchinson's estimate of it is exact."""
    return sum(jnp.sum(jnp.sin(3 * x) + jnp.square(x)) for x in params.values())


@pytest.mark.parametrize(
    "numbers",
    [{}, {"b1": 0.8, "b2": 0.9, "gamma": 0.2, "update_interval": 3, "clip_threshold": 0.3, "weight_decay": 0.1}],
    ids=["defaults", "others"],
)
def test_sophia_is_that_of_optax(numbers, x64):
    ours, other = jopt.sophia(0.01, **numbers), optax.contrib.sophia(0.01, **numbers)
    mine = his = tree(PARAMS)

    def step(carry, g):
        (mine, state), (his, held) = carry
        u, state = ours.update(g, state, mine, obj_fn=bent)
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            v, held = other.update(g, held, his, obj_fn=bent)
        mine, his = jopt.apply_updates(mine, u), optax.apply_updates(his, v)
        return ((mine, state), (his, held)), (u, mine, v, his)

    start = (mine, ours.init(mine)), (his, other.init(his))
    u, mine, v, his = jax.jit(lambda *args: jax.lax.scan(step, *args)[1])(start, tree(GRADS))
    for name in u:
        np.testing.assert_allclose(u[name], v[name], rtol=1e-10, atol=1e-15)
        np.testing.assert_allclose(mine[name], his[name], rtol=1e-12)


def test_sophia_reads_the_curvature_in_turn(x64):
    """h ← β₂h + (1 − β₂)ĥ at the first update and every third after it, in NumPy."""
    b1, b2, gamma, rho = 0.9, 0.5, 0.3, 0.4
    tx = jopt.scale_by_sophia(b1, b2, gamma=gamma, clip_threshold=rho, update_interval=3)
    p, m, h = PARAMS["kernel"], 0.0, 0.0
    state = tx.init({"kernel": jnp.asarray(p)})
    update = jax.jit(lambda g, state, p: tx.update(g, state, p, obj_fn=bent))
    for t in range(1, 9):
        g = GRADS["kernel"][t]
        m = b1 * m + (1 - b1) * g
        raw = m / (1 - b1**t) / np.maximum(gamma * h, 1e-8)
        u, state = update({"kernel": jnp.asarray(g)}, state, {"kernel": jnp.asarray(p)})
        np.testing.assert_allclose(u["kernel"], np.clip(raw, -rho, rho), rtol=1e-12)
        np.testing.assert_allclose(state.scalars["scale_by_sophia"]["win_rate"], np.mean(np.abs(raw) < rho))
        if (t - 1) % 3 == 0:
            h = b2 * h + (1 - b2) * (2 - 9 * np.sin(3 * p))
        np.testing.assert_allclose(state.slots["scale_by_sophia"]["nu"]["kernel"], h, rtol=1e-12)
        p = p - 0.1 * np.asarray(u["kernel"])


@pytest.mark.parametrize(("power", "decay"), [(1.0, 0.0), (0.5, 0.1)])
def test_adahessian_is_its_transcription(power, decay, x64):
    """Yao et al. 2021, Algorithm 1, in NumPy: of a kernel the curvature is averaged over height and width."""
    shapes = {"kernel": (2, 3, 4, 5), "bias": (5,)}
    start, grads, _ = oracles.record(shapes, 8, seed=3)
    tx = jopt.adahessian(0.1, 0.8, 0.9, 1e-3, decay, hessian_power=power)
    params, memory = tree(start), dict.fromkeys(shapes, (0.0, 0.0))
    state = tx.init(params)
    update = jax.jit(lambda g, state, p: tx.update(g, state, p, obj_fn=bent))
    for t in range(1, 9):
        u, state = update({name: jnp.asarray(g[t - 1]) for name, g in grads.items()}, state, params)
        for name in shapes:
            p, (m, v) = np.asarray(params[name]), memory[name]
            d = 2 - 9 * np.sin(3 * p)
            d = d.mean(axis=(0, 1)) if name == "kernel" else d
            m, v = 0.8 * m + 0.2 * grads[name][t - 1], 0.9 * v + 0.1 * d**2
            memory[name] = m, v
            wanted = -0.1 * (m / (1 - 0.8**t) / ((v / (1 - 0.9**t)) ** (power / 2) + 1e-3) + decay * p)
            np.testing.assert_allclose(u[name], wanted, rtol=1e-11, atol=1e-15)
        params = jopt.apply_updates(params, u)


def test_adahessian_descends_a_valley_at_one_rate_for_both_slopes():
    def valley(params):
        return params["x"] ** 2 / 2 + 1e4 * params["y"] ** 2 / 2

    tx, params = jopt.adahessian(0.1, b1=0.0), {"x": jnp.ones(()), "y": jnp.ones(())}
    state = tx.init(params)
    for _ in range(50):
        params, state = jopt.apply_gradients(tx, jax.grad(valley)(params), state, params, obj_fn=valley)
    np.testing.assert_allclose([params["x"], params["y"]], 0.9**50, rtol=2e-2)


def test_sophia_runs_inside_jit_with_a_loss_of_the_batch():
    def loss(params, batch):
        return jnp.mean(jnp.square(batch @ params["w"] - 1.0))

    tx = jopt.sophia(0.05, update_interval=2)

    @jax.jit
    def step(params, state, batch):
        g = jax.grad(loss)(params, batch)
        return jopt.apply_gradients(tx, g, state, params, obj_fn=lambda p: loss(p, batch))

    params = {"w": jnp.zeros(4)}
    state, batch = tx.init(params), jax.random.normal(jax.random.key(0), (32, 4)) + 1.0
    for _ in range(60):
        params, state = step(params, state, batch)
    assert loss(params, batch) < 0.5 * loss({"w": jnp.zeros(4)}, batch)


def estimates(tx, params, n, **extra):
    """n estimates in a row."""
    state = tx.init(params)

    def step(state, _):
        u, state = tx.update(params, state, params, **extra)
        return state, u

    return jax.lax.scan(step, state, None, n)[1]


def test_hutchinson_is_unbiased_and_draws_anew(x64):
    A = np.random.default_rng(0).normal(size=(5, 5))
    H = A @ A.T

    def quadratic(params):
        x = jnp.concatenate([params["a"], params["b"]])
        return x @ jnp.asarray(H) @ x / 2

    params = {"a": jnp.ones(2), "b": jnp.ones(3)}
    n = 2000
    seen = estimates(jopt.hutchinson_estimator_diag_hessian(), params, n, obj_fn=quadratic)
    drawn = np.concatenate([seen["a"], seen["b"]], axis=1)
    deviation = np.sqrt(np.sum((H - np.diag(np.diag(H))) ** 2, axis=1))
    assert np.all(np.abs(drawn.mean(0) - np.diag(H)) < 5 * deviation / np.sqrt(n))
    np.testing.assert_allclose(drawn.std(0), deviation, rtol=0.1)
    other = estimates(jopt.hutchinson_estimator_diag_hessian(jax.random.key(1)), params, 5, obj_fn=quadratic)
    assert not np.array_equal(other["a"], seen["a"][:5])


def test_gauss_newton_bartlett_is_unbiased_for_cross_entropy(x64):
    """Its mean is the diagonal of the Gauss-Newton matrix, which for a linear softmax is the Hessian of the loss."""
    source = np.random.default_rng(0)
    inputs, labels = jnp.asarray(source.normal(size=(6, 2))), jnp.asarray(source.integers(3, size=6))
    params = {"w": jnp.asarray(source.normal(size=(2, 3)))}

    def loss(params, labels):
        logits = jax.nn.log_softmax(inputs @ params["w"])
        return -jnp.mean(jnp.take_along_axis(logits, labels[:, None], axis=1))

    def sampled(params, key):
        return loss(params, jax.random.categorical(key, inputs @ params["w"]))

    hessian = jax.hessian(lambda w: loss({"w": w.reshape(2, 3)}, labels))(params["w"].ravel())
    n = 4000
    seen = np.asarray(estimates(jopt.gauss_newton_estimator_diag_hessian(6), params, n, sampled_obj_fn=sampled)["w"])
    error = seen.mean(0).ravel() - np.diag(hessian)
    assert np.all(np.abs(error) < 5 * seen.reshape(n, -1).std(0) / np.sqrt(n))
    assert np.all(seen >= 0)


def test_sophia_g_trains():
    inputs = jax.random.normal(jax.random.key(0), (64, 5))
    labels = (inputs[:, 0] > 0).astype(jnp.int32)

    def loss(params, labels):
        logits = jax.nn.log_softmax(inputs @ params["w"])
        return -jnp.mean(jnp.take_along_axis(logits, labels[:, None], axis=1))

    def sampled(params, key):
        return loss(params, jax.random.categorical(key, inputs @ params["w"]))

    tx = jopt.sophia(0.05, gamma=0.05, hessian_diagonal_fn=jopt.gauss_newton_estimator_diag_hessian(64))

    @jax.jit
    def step(params, state):
        return jopt.apply_gradients(tx, jax.grad(loss)(params, labels), state, params, sampled_obj_fn=sampled)

    params = {"w": jnp.zeros((5, 2))}
    state = tx.init(params)
    for _ in range(60):
        params, state = step(params, state)
    assert loss(params, labels) < 0.3


@pytest.mark.parametrize(("name", "part"), [("prodigy", "scale_by_prodigy"), ("dadapt_adamw", "scale_by_dadapt_adamw")])
def test_the_estimate_of_the_rate_can_be_read_and_grows(name, part):
    tx, params = getattr(jopt, name)(), {"x": jnp.full(3, 5.0)}

    def step(carry, _):
        params, state = carry
        carry = jopt.apply_gradients(tx, {"x": jnp.sign(params["x"])}, state, params)
        return carry, carry[1].scalars[part]["d"]

    seen = jax.lax.scan(step, (params, tx.init(params)), None, 200)[1]
    assert seen[0] == pytest.approx(1e-6)
    assert jnp.all(jnp.diff(seen) >= 0)
    assert 0.05 < seen[-1] < 20  # the distance to the solution is 5


@pytest.mark.parametrize("name", ["prodigy", "dadapt_adamw"])
def test_a_first_step_of_zero_leaves_the_estimate(name):
    """optax divides 0 by 0."""
    zero, g = {"x": jnp.zeros(3)}, {"x": jnp.ones(3)}
    for library, finite in ((jopt, True), (optax.contrib, False)):
        tx = getattr(library, name)()
        state, _ = tx.init(g), None
        _, state = tx.update(zero, state, g)
        u, _ = tx.update(g, state, g)
        assert bool(jnp.all(jnp.isfinite(u["x"]))) == finite


def test_wrong_starts_are_errors():
    with pytest.raises(ValueError, match=r"init_step=.* was given"):
        jopt.dog(init_step=("far", 1.0))
    with pytest.raises(ValueError, match="variant='max' was given"):
        jopt.polyak_sgd(variant="max")
    with pytest.raises(ValueError, match="update_interval=0 was given"):
        jopt.sophia(0.1, update_interval=0)


def test_the_loss_sees_frozen_parameters_too():
    def loss(params):
        return params["scale"] * jnp.sum(jnp.square(params["w"]))

    tx = jopt.partition([("w", jopt.hutchinson_estimator_diag_hessian()), ("scale", jopt.freeze())])
    params = {"w": jnp.ones(3), "scale": jnp.asarray(5.0)}
    u, _ = tx.update(params, tx.init(params), params, obj_fn=loss)
    np.testing.assert_allclose(u["w"], 10.0)
    np.testing.assert_array_equal(u["scale"], 0.0)
