"""Gradients of single examples: clipping, noise, and the axis that no other gradient may have."""

import contextlib
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

import jopt

PARAMS = {"w": jnp.full((4, 3), 0.5), "b": jnp.zeros(3), "s": jnp.ones(())}
N = 6


def examples(n=N, dtype=jnp.float32, seed=0):
    source = np.random.default_rng(seed)
    return {k: jnp.asarray(source.normal(size=(n, *p.shape)) * 2.0, dtype) for k, p in PARAMS.items()}


def same(got, expected, rtol=1e-5):
    for path, x in jopt.paths.flatten(expected)[0].items():
        np.testing.assert_allclose(jopt.paths.flatten(got)[0][path], x, rtol=rtol, atol=1e-6)


@contextlib.contextmanager
def lenient():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@pytest.mark.parametrize("bound", [0.0, 3.0, 7.0, math.inf])
@pytest.mark.parametrize("kind", ["global", "uniform", "weighted"])
def test_clipping_is_that_of_optax(bound, kind):
    name = "per_example_global_norm_clip" if kind == "global" else "per_example_layer_norm_clip"
    given = (examples(), bound) if kind == "global" else (examples(), bound, kind == "uniform")
    sums, clipped = getattr(jopt, name)(*given)
    with lenient():
        expected = getattr(optax, name)(*given)
    same(sums, expected[0])
    assert jax.tree.map(int, clipped) == jax.tree.map(int, expected[1])


def test_one_example_has_at_most_the_bound():
    grads = {k: x * 1e17 for k, x in examples(1).items()}
    for clip in (jopt.per_example_global_norm_clip, jopt.per_example_layer_norm_clip):
        sums, _ = clip(grads, 2.0)
        norm = math.sqrt(sum(float(jnp.sum(x**2)) for x in sums.values()))
        assert norm <= 2.0 * (1 + 1e-6)
        assert norm == pytest.approx(2.0, rel=1e-5)


def test_sixteen_bit_gradients_are_summed_in_float32():
    grads = {"w": jnp.full((4096, 1), 0.01, jnp.bfloat16)}
    sums, _ = jopt.per_example_global_norm_clip(grads, 1.0)
    assert sums["w"].dtype == jnp.float32
    np.testing.assert_allclose(sums["w"], 4096 * float(jnp.bfloat16(0.01)), rtol=1e-5)


def test_arrays_without_the_axis_are_named():
    with pytest.raises(jopt.TreeMismatchError, match=r"'s' has the shape \(\)"):
        jopt.per_example_global_norm_clip(examples() | {"s": jnp.ones(())}, 1.0)
    with pytest.raises(jopt.TreeMismatchError, match="'w'"):
        jopt.per_example_layer_norm_clip(examples() | {"w": examples(5)["w"]}, 1.0)


@pytest.mark.parametrize("momentum", [None, 0.9])
def test_dpsgd_without_noise_is_that_of_optax(momentum):
    ours = jopt.dpsgd(0.1, 3.0, 0.0, 1, momentum, True)
    with pytest.warns(DeprecationWarning, match="seed"):
        theirs = optax.contrib.dpsgd(0.1, 3.0, 0.0, 1, momentum, True)
    state, other, params = ours.init(PARAMS), theirs.init(PARAMS), PARAMS
    for t in range(3):
        u, state = ours.update(examples(seed=t), state, params)
        with lenient():
            v, other = theirs.update(examples(seed=t), other, params)
        same(u, v)
        params = jopt.apply_updates(params, u)


def test_it_runs_jitted_scanned_and_fused():
    tx = jopt.dpsgd(0.1, 3.0, 0.5, 1, 0.9)
    seen = jax.tree.map(lambda *xs: jnp.stack(xs), *(examples(seed=t) for t in range(3)))

    def step(carry, g):
        params, state = jopt.apply_gradients(tx, g, carry[1], carry[0])
        return (params, state), None

    params, state = PARAMS, tx.init(PARAMS)
    for t in range(3):
        u, state = tx.update(examples(seed=t), state, params)
        params = jopt.apply_updates(params, u)
    (scanned, _), _ = jax.jit(lambda: jax.lax.scan(step, (PARAMS, tx.init(PARAMS)), seen))()
    same(scanned, params)


def test_without_the_axis_it_is_one_example():
    tx, g = jopt.differentially_private_aggregate(1.0, 0.7, key=5), examples(1)
    with_axis, _ = tx.update(g, tx.init(PARAMS), PARAMS)
    without, _ = tx.update({k: x[0] for k, x in g.items()}, tx.init(PARAMS), PARAMS)
    same(without, with_axis)


def test_an_empty_batch_gives_noise_alone():
    tx = jopt.differentially_private_aggregate(1.0, 0.7)
    u, _ = tx.update(examples(0), tx.init(PARAMS), PARAMS)
    assert all(bool(jnp.all(jnp.isfinite(x))) and bool(jnp.all(x != 0)) for x in u.values())


def test_noise_has_its_deviation_and_is_independent():
    """N(0, (σc)²) over the number of examples, anew for each leaf, step and key."""
    n, batch, sigma, clip = 40_000, 4, 1.5, 2.0
    zeros = {"a": jnp.zeros(n), "b": jnp.zeros(n)}
    grads = {k: jnp.zeros((batch, n)) for k in zeros}
    draws = []
    for key in (0, 1):
        tx = jopt.differentially_private_aggregate(clip, sigma, key)
        state = tx.init(zeros)
        for _ in range(2):
            u, state = tx.update(grads, state, zeros)
            draws += [np.asarray(u["a"]), np.asarray(u["b"])]
    for x in draws:
        x = x * batch / (sigma * clip)
        for moment, expected, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
            assert abs(np.mean(x**moment) - expected) < 5 * math.sqrt(variance / n)
    assert np.max(np.abs(np.corrcoef(draws) - np.eye(len(draws)))) < 5 / math.sqrt(n)


def test_the_axis_is_refused_everywhere_else():
    private, g = jopt.dpsgd(0.1, 1.0, 0.0, 0), examples()
    for tx in (
        jopt.sgd(0.1),
        jopt.chain(jopt.clip(1.0), private),
        jopt.accumulate(private, 2),
        jopt.skip_nonfinite(private),
        jopt.partition([("rest", jopt.everything_else, private)]),
    ):
        with pytest.raises(jopt.TreeMismatchError, match="Nothing broadcasts"):
            tx.update(g, tx.init(PARAMS), PARAMS)


def test_the_axis_must_be_one_for_all():
    tx = jopt.dpsgd(0.1, 1.0, 0.0, 0)
    with pytest.raises(jopt.TreeMismatchError, match="one number of examples"):
        tx.update(examples() | {"b": PARAMS["b"]}, tx.init(PARAMS), PARAMS)
    with pytest.raises(jopt.TreeMismatchError, match="one number of examples"):
        tx.update(examples() | {"w": examples(5)["w"]}, tx.init(PARAMS), PARAMS)
    with pytest.raises(TypeError, match="params=None"):
        tx.update(examples(), tx.init(PARAMS))


def test_it_is_the_first_of_an_optax_chain():
    tx = optax.chain(jopt.differentially_private_aggregate(3.0, 0.0), optax.scale(-0.1))
    u, _ = tx.update(examples(), tx.init(PARAMS), PARAMS)
    sums, _ = jopt.per_example_global_norm_clip(examples(), 3.0)
    same(u, {k: -0.1 * x / N for k, x in sums.items()})


@pytest.mark.parametrize("shape", [(5,), (4, 3), (2, 4, 3), (2, 2, 4, 3), (1, 1, 2, 4, 3)])
def test_unitwise_norms_and_clipping_are_those_of_optax(shape):
    x = jnp.asarray(np.random.default_rng(2).normal(size=shape), jnp.float32)
    norm = jopt.unitwise_norm(x)
    bound = jnp.full_like(norm, float(jnp.median(norm)))
    with lenient():
        np.testing.assert_allclose(norm, optax.transforms.unitwise_norm(x), rtol=1e-6)
        expected = optax.transforms.unitwise_clip(norm, bound, x)
    np.testing.assert_allclose(jopt.unitwise_clip(norm, bound, x), expected, rtol=1e-6)
    with pytest.raises(ValueError, match="equal shapes were expected"):
        jopt.unitwise_clip(norm[..., :1], bound, x)
