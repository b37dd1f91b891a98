"""Decompositions on CPU run one matrix at a time: batches of jaxlib can wait for each other for ever."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jopt
from jopt import lapack

CALLS = r"@lapack_\w+\(.*?\) *\{.*?\} *: *\(([^)]*)\)"
KINDS = {
    "eigh": (lapack.eigh, jnp.linalg.eigh),
    "qr": (lapack.qr, jnp.linalg.qr),
    "qr_factor": (lapack.qr_factor, lambda a: jnp.linalg.qr(a, mode="r")),
    "svd": (lapack.svd, lambda a: jnp.linalg.svd(a, full_matrices=False)),
    "singular_values": (lapack.singular_values, lambda a: jnp.linalg.svd(a, compute_uv=False)),
}


def symmetric(*shape):
    x = jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)
    return x + jnp.swapaxes(x, -1, -2)


def batches(function, *arguments):
    """How many matrices each call of LAPACK in a compiled program takes."""
    text = jax.jit(function).lower(*arguments).as_text()
    found = []
    for operands in re.findall(CALLS, text):
        first = re.match(r"tensor<((?:\d+x)*)", operands).group(1).split("x")[:-1]
        found.append(int(np.prod([int(n) for n in first[:-2]])))
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(4, 4), (3, 4, 4), (2, 3, 4, 4), (0, 4, 4)])
def test_they_are_those_of_jax_at_any_rank_and_under_vmap(kind, shape):
    ours, theirs = KINDS[kind]
    a = symmetric(*shape)
    for function in (ours, jax.vmap(ours)) if len(shape) > 2 else (ours,):
        for got, expected in zip(jax.tree.leaves(function(a)), jax.tree.leaves(theirs(a)), strict=True):
            np.testing.assert_allclose(got, expected, atol=1e-5)


def test_solutions_of_triangles():
    r, b = jnp.triu(symmetric(3, 4, 4)) + 3 * jnp.eye(4)[None], symmetric(3, 4, 4)
    np.testing.assert_allclose(r @ lapack.solve_upper(r, b), b, atol=1e-4)
    np.testing.assert_allclose(jnp.swapaxes(r, -1, -2) @ lapack.solve_upper_transposed(r, b), b, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_is_a_loop_on_cpu(kind):
    ours, theirs = KINDS[kind]
    assert set(batches(theirs, symmetric(5, 4, 4))) == {5}
    assert set(batches(ours, symmetric(5, 4, 4))) == {1}
    assert set(batches(jax.vmap(jax.vmap(ours)), symmetric(5, 2, 4, 4))) == {1}


def test_one_operand_alone_may_have_a_batch():
    r, b = jnp.eye(4) * 2, symmetric(3, 4, 4)
    np.testing.assert_allclose(jax.vmap(lapack.solve_upper, (None, 0))(r, b), b / 2)


def test_derivatives_are_those_of_jax():
    a = symmetric(2, 4, 4)
    ours, theirs = (jax.grad(lambda a, f=f: jnp.sum(jax.vmap(f)(a)[0] ** 3)) for f in KINDS["eigh"])
    np.testing.assert_allclose(ours(a), theirs(a), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["soap", "kl_soap", "shampoo", "kron", "galore"])
def test_a_sweep_of_an_optimizer_decomposes_one_matrix_at_a_time(name):
    params = {"w": symmetric(6, 6), "v": symmetric(4, 4)}

    def run(rate):
        tx = getattr(jopt, name)(rate)
        return jopt.apply_gradients(tx, params, tx.init(params), params)

    found = batches(jax.vmap(run), jnp.asarray([0.1, 0.2, 0.3]))
    assert found
    assert set(found) == {1}


def test_several_starts_of_least_squares_decompose_one_matrix_at_a_time():
    def residuals(x):
        return jnp.stack([x[0] - 1, 10 * (x[1] - x[0] ** 2)])

    def run(x):
        return jopt.minimize(residuals, x, method="levenberg_marquardt").x

    found = batches(jax.vmap(run), jnp.ones((3, 2)))
    assert found
    assert set(found) == {1}


@pytest.mark.slow
def test_two_batches_at_once_come_to_an_end():
    def one(a, b):
        def both(carry, _):
            return tuple(lapack.solve_upper(x + jnp.eye(len(x)), x) for x in carry), None

        return jax.lax.scan(both, (a, b), None, length=2000)[0]

    run = jax.jit(jax.vmap(one))
    assert jax.block_until_ready(run(symmetric(25, 48, 48), symmetric(25, 32, 32)))[0].shape == (25, 48, 48)
