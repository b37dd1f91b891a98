"""SOAP, Shampoo and PSGD beyond their transcriptions: turns, vectors, blocks, and what the factors learn."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jopt
from jopt.rules import factors
from jopt.rules.kron import UPDATE_PROBABILITY, lower_bound

EVERY = 4
MATRICES = {f"w{i}": (3, 2) for i in range(6)} | {f"v{i}": (2, 5) for i in range(3)}


def draws(shapes, steps, seed=0):
    source = np.random.default_rng(seed)
    return [{n: jnp.asarray(source.normal(size=s), jnp.float32) for n, s in shapes.items()} for _ in range(steps)]


def slots_over_time(tx, grads):
    """The slots of the only rule after every update."""
    params = jax.tree.map(jnp.zeros_like, grads[0])
    state, rows, step = tx.init(params), [], jax.jit(tx.update)
    for g in grads:
        _, state = step(g, state, params)
        rows.append(next(iter(state.slots.values())))
    return rows


# Turns -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tx", "slot"),
    [
        (jopt.scale_by_soap(precondition_frequency=EVERY), "left_basis"),
        (jopt.scale_by_kl_soap(precondition_frequency=EVERY), "right_basis"),
        (jopt.scale_by_shampoo(precondition_frequency=EVERY), "left_root"),
    ],
)
def test_dear_work_is_spread_evenly_over_the_updates(tx, slot):
    """Each matrix once in EVERY updates, and per update as many as that makes on average."""
    rows = slots_over_time(tx, draws(MATRICES, 1 + 3 * EVERY))
    changed = [
        [not np.array_equal(now[slot][n], before[slot][n]) for n in MATRICES]
        for before, now in itertools.pairwise(rows)
    ]
    for start in range(len(changed) - EVERY + 1):
        np.testing.assert_array_equal(np.sum(changed[start : start + EVERY], axis=0), 1)
    assert set(np.sum(changed, axis=1)) == {2, 3}  # 9 matrices over 4 updates


def test_kron_learns_as_often_as_its_probability_says():
    tx = jopt.scale_by_kron(preconditioner_update_probability=0.3)
    rows = slots_over_time(tx, draws({f"w{i}": (2, 2) for i in range(20)}, 41))
    changed = [
        not np.array_equal(now["left"][n], before["left"][n])
        for before, now in itertools.pairwise(rows)
        for n in now["left"]
    ]
    assert abs(np.mean(changed) - 0.3) < 5 * np.sqrt(0.3 * 0.7 / len(changed))
    never = slots_over_time(jopt.scale_by_kron(preconditioner_update_probability=0.0), draws({"w": (2, 2)}, 3))
    np.testing.assert_array_equal(never[0]["left"]["w"], never[2]["left"]["w"])  # but for the first


def test_the_probability_falls_from_one_to_three_per_cent():
    found = [float(UPDATE_PROBABILITY(jnp.asarray(n))) for n in (0, 500, 1500, 100_000)]
    np.testing.assert_allclose(found, [1.0, 1.0, np.exp(-1), 0.03], rtol=1e-5)


# SOAP --------------------------------------------------------------------------------------------


def test_the_first_update_of_soap_is_zero_and_builds_the_eigenbasis():
    (g,) = draws({"w": (4, 4)}, 1)
    tx = jopt.scale_by_soap()
    u, state = tx.update(g, tx.init(g), g)
    np.testing.assert_array_equal(u["w"], 0)
    basis, second = state.slots["scale_by_soap"]["left_basis"]["w"], state.slots["scale_by_soap"]["left"]["w"]
    np.testing.assert_allclose(basis.T @ basis, np.eye(4), atol=1e-5)
    found = np.asarray(basis.T @ second @ basis)
    np.testing.assert_allclose(found - np.diag(np.diag(found)), 0, atol=1e-5)
    assert (np.diff(np.diag(found)) <= 0).all()


def test_both_sides_too_long_is_adam_one_step_late():
    grads = draws({"w": (3, 2)}, 6)
    soap, adam = jopt.scale_by_soap(max_precond_dim=1), jopt.scale_by_adam(0.95, 0.95)
    params = grads[0]
    left, right = soap.init(params), adam.init(params)
    _, left = soap.update(grads[0], left, params)
    for g in grads[1:]:
        u, left = soap.update(g, left, params)
        expected, right = adam.update(g, right, params)
        np.testing.assert_allclose(u["w"], expected["w"], rtol=1e-5)


def test_an_eigenbasis_of_lost_rank_does_not_hang_on_rounding():
    x = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)
    one = factors.eigenbasis(jnp.asarray(x @ x.T))
    other = factors.eigenbasis(jnp.asarray((x @ x.T) * (1 + 1e-7 * np.sign(x @ x.T))))
    np.testing.assert_allclose(one, other, atol=1e-4)
    np.testing.assert_allclose(one.T @ one, np.eye(8), atol=1e-5)


# Shampoo -----------------------------------------------------------------------------------------


def test_one_sided_shampoo_of_a_vector_is_full_matrix_adagrad():
    grads = draws({"v": (5,)}, 8)
    settings = {"b1": 0.0, "b2": 1.0, "grafting": "none", "one_sided": True, "precondition_frequency": 1}
    tx = jopt.scale_by_shampoo(eps=1e-3, axes="any", **settings)
    state, total = tx.init(grads[0]), np.zeros((5, 5))
    for t, g in enumerate(grads):
        u, state = tx.update(g, state, g)
        if t:
            values, vectors = np.linalg.eigh(total)
            root = vectors / np.sqrt(np.maximum(values, 1e-3 * values[-1])) @ vectors.T
            np.testing.assert_allclose(u["v"], root @ np.asarray(g["v"]), rtol=2e-4, atol=1e-5)
        total += np.outer(g["v"], g["v"])


def test_a_grafted_step_has_the_length_of_the_other_optimizer():
    grads = draws({"w": (6, 4)}, 5)
    tx, adam = jopt.scale_by_shampoo(max_preconditioner_size=3, precondition_frequency=1), jopt.scale_by_adam()
    left, right = tx.init(grads[0]), adam.init(grads[0])
    for g in grads:
        u, left = tx.update(g, left, g)
        expected, right = adam.update(g, right, g)
        np.testing.assert_allclose(np.linalg.norm(u["w"]), np.linalg.norm(expected["w"]), rtol=1e-4)


def test_blocks_of_a_matrix_are_matrices():
    (g1, g2) = draws({"w": (4, 6)}, 2)
    tx = jopt.scale_by_shampoo(grafting="none", max_preconditioner_size=3, precondition_frequency=1)

    def run(*grads):
        state = tx.init(grads[0])
        for g in grads:
            u, state = tx.update(g, state, g)
        return u

    whole = run(g1, g2)["w"]
    cuts = {f"{i}{j}": (slice(2 * i, 2 * i + 2), slice(3 * j, 3 * j + 3)) for i in range(2) for j in range(2)}
    parts = run(*({n: g["w"][cut] for n, cut in cuts.items()} for g in (g1, g2)))
    for n, cut in cuts.items():
        np.testing.assert_allclose(whole[cut], parts[n], rtol=1e-4, atol=1e-5)


def test_an_unknown_graft_is_an_error():
    with pytest.raises(ValueError, match=r"scale_by_shampoo: grafting='adamax' was given, one of \('none'"):
        jopt.scale_by_shampoo(grafting="adamax")


# PSGD --------------------------------------------------------------------------------------------


def covariance_after(tx, mixes, steps=1500):
    """Of preconditioned gradients LXR with X normal, once the factors have learned; the identity is white."""
    left, right = (jnp.asarray(x, jnp.float32) for x in mixes)

    def step(carry, key):
        params, state = carry
        g = {"w": left @ jax.random.normal(key, (left.shape[0], right.shape[0])) @ right}
        u, state = tx.update(g, state, params)
        return (params, state), u["w"]

    params = {"w": jnp.zeros((left.shape[0], right.shape[0]))}
    keys = jax.random.split(jax.random.key(1), steps)
    _, updates = jax.lax.scan(step, (params, tx.init(params)), keys)
    flat = np.asarray(updates[steps // 3 :]).reshape(-1, params["w"].size)
    return flat.T @ flat / len(flat)


@pytest.mark.parametrize("max_size_triangular", [8192, 2])
def test_the_factors_of_kron_whiten_gradients(max_size_triangular):
    """Dense sides undo any mixing, diagonal ones (here the longer side) a scaling."""
    scales, mixing = np.diag([1.0, 0.1, 4.0]), np.array([[1.0, 0.8], [0.0, 0.3]])
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0] if max_size_triangular > 3 else np.eye(3)
    settings = {"preconditioner_update_probability": 1.0, "max_size_triangular": max_size_triangular}
    tx = jopt.scale_by_kron(b1=0.0, max_rms=1e3, **settings)
    found = covariance_after(tx, (rotation @ scales @ rotation.T, mixing))
    np.testing.assert_allclose(found, np.eye(6), atol=0.35)
    raw = covariance_after(jopt.identity(), (rotation @ scales @ rotation.T, mixing))
    assert np.abs(raw - np.eye(6)).max() > 5


def test_a_step_of_kron_is_no_larger_than_its_bound():
    tx = jopt.scale_by_kron(max_rms=0.5, axes="any")
    g = {"w": jnp.full((4, 3), 100.0), "v": jnp.full(5, 100.0)}
    u, _ = tx.update(g, tx.init(g), g)
    for x in u.values():
        np.testing.assert_allclose(np.sqrt(np.mean(np.square(x))), 0.5, rtol=1e-5)


def test_the_lower_bound_is_near_the_norm():
    for seed in range(5):
        x = np.random.default_rng(seed).normal(size=(20, 20))
        a = x @ x.T
        assert 0.7 < float(lower_bound(jnp.asarray(a, jnp.float32))) / np.linalg.norm(a, 2) <= 1.0001
