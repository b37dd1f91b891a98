"""Decompositions of matrices that run one at a time on CPU, also under `vmap`.

There jaxlib hands a batch to the threads that run the program and waits for them. Two batches at once,
as of two sides of a preconditioner, can occupy all threads waiting for each other, and the program
stands still (jaxlib 0.10.2 on two cores, within seconds). A batch of one does not wait.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def one_at_a_time(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function of matrices, which under `vmap` is a loop on CPU; leading axes are a batch as well.

    Derivatives take the function itself.
    """

    @jax.custom_batching.custom_vmap
    def alone(*matrices):
        return function(*matrices)

    @alone.def_vmap
    def batched(size, has_batch, *matrices):
        stacked = [
            x if has else jnp.broadcast_to(x, (size, *x.shape)) for x, has in zip(matrices, has_batch, strict=True)
        ]

        def in_turn(*stacked):
            return jax.lax.map(lambda xs: alone(*xs), stacked)

        found = jax.lax.platform_dependent(*stacked, cpu=in_turn, default=jax.vmap(function))
        return found, jax.tree.map(lambda _: True, found)

    @jax.custom_jvp
    def differentiable(*matrices):
        return alone(*matrices)

    @differentiable.defjvp
    def slope(primals, tangents):
        return jax.jvp(function, primals, tangents)

    @functools.wraps(function)
    def call(*matrices):
        over_all = differentiable
        for _ in matrices[0].shape[:-2]:
            over_all = jax.vmap(over_all)
        return over_all(*matrices)

    return call


@one_at_a_time
def eigh(a: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Eigenvalues from the smallest on, and eigenvectors as columns, of a symmetric matrix."""
    values, vectors = jnp.linalg.eigh(a)
    return values, vectors


@one_at_a_time
def qr(a: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Q of orthonormal columns and R upper triangular, with QR = a."""
    q, r = jnp.linalg.qr(a)
    return q, r


@one_at_a_time
def qr_factor(a: jax.Array) -> jax.Array:
    """R of `qr` alone."""
    return jnp.linalg.qr(a, mode="r")


@one_at_a_time
def svd(a: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """U, the singular values from the largest on, and Vᴴ, as many as the shorter side has."""
    u, values, vh = jnp.linalg.svd(a, full_matrices=False)
    return u, values, vh


@one_at_a_time
def singular_values(a: jax.Array) -> jax.Array:
    """The singular values from the largest on."""
    return jnp.linalg.svd(a, compute_uv=False)


@one_at_a_time
def solve_upper(r: jax.Array, b: jax.Array) -> jax.Array:
    """x with rx = b, for an upper triangular r and a matrix b."""
    return jax.lax.linalg.triangular_solve(r, b, left_side=True, lower=False)


@one_at_a_time
def solve_upper_transposed(r: jax.Array, b: jax.Array) -> jax.Array:
    """x with rᵀx = b, for an upper triangular r and a matrix b."""
    return jax.lax.linalg.triangular_solve(r, b, left_side=True, lower=False, transpose_a=True)
