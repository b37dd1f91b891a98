"""Kronecker factors of a matrix: second moments of its sides, their eigenbases and roots."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from jopt import dtypes, lapack, linalg

PRECISE = jax.lax.Precision.HIGHEST  # products whose rounding an inverse root or a basis would amplify
_TINY = 1e-36  # below this, 1 / x overflows in float32


def entire(x: jax.Array) -> jax.Array:
    """The whole matrix on every device of an Explicit mesh: QR and eigenvalues know no sharding."""
    if not linalg.is_sharded(x):
        return x
    return jax.sharding.reshard(x, NamedSharding(jax.typeof(x).sharding.mesh, PartitionSpec(*(None,) * x.ndim)))


def zeros(p: jax.Array, *shape: int) -> jax.Array:
    """Zeros in the dtype of a parameter, whole on every device of its mesh."""
    x, mesh = jnp.zeros(shape, p.dtype), jax.typeof(p).sharding.mesh
    return x if mesh.empty else jax.sharding.reshard(x, NamedSharding(mesh, PartitionSpec(*(None,) * len(shape))))


def identity(p: jax.Array, n: int) -> jax.Array:
    """The identity matrix likewise."""
    return zeros(p, n, n) + jnp.eye(n, dtype=p.dtype)


def placed_like(x: jax.Array, like: jax.Array) -> jax.Array:
    """An entire matrix, sharded as another."""
    return jax.sharding.reshard(x, jax.typeof(like).sharding) if linalg.is_sharded(like) else x


def bounded(g: jax.Array) -> jax.Array:
    """A gradient with ‖g‖ ≤ 1e18, so that squares of sums over it are finite; nothing else moves."""
    bound = dtypes.SATURATION / max(g.size, 1) ** 0.5
    return jnp.where(jnp.isfinite(g), jnp.clip(g, -bound, bound), g)


def dot(a: jax.Array, b: jax.Array) -> jax.Array:
    """The product of two matrices at full precision, also where a device would round its factors."""
    return jnp.matmul(a, b, precision=PRECISE)


def normalised(a: jax.Array) -> jax.Array:
    """A matrix by its largest element; a vanishing one as it is."""
    top = jnp.max(jnp.abs(a), initial=0.0)
    return a / jnp.where(top > _TINY, top, 1.0)


def eigenbasis(a: jax.Array) -> jax.Array:
    """Orthonormal eigenvectors of a symmetric matrix (n, n), by falling eigenvalue.

    Where the matrix has no rank they are chosen by its null space alone, and each points to where
    its largest component is positive, so that rounding does not choose among equals.
    """
    n = a.shape[0]
    if n == 0:
        return a
    a = normalised(a)
    values, vectors = lapack.eigh(a)
    null = (values <= 8 * n**0.5 * float(jnp.finfo(a.dtype).eps) * jnp.max(values)).astype(a.dtype)
    onto_null = dot(vectors * null[None, :], vectors.T)
    # On the null space stands −3 + a fixed diagonal: distinct eigenvalues below all others.
    ramp = jnp.arange(n, 0, -1).astype(a.dtype) / n
    vectors = lapack.eigh(a - 3 * onto_null + dot(onto_null * ramp[None, :], onto_null))[1][:, ::-1]
    largest = jnp.take_along_axis(vectors, jnp.argmax(jnp.abs(vectors), axis=0)[None, :], axis=0)
    return vectors * jnp.where(largest < 0, -1.0, 1.0).astype(a.dtype)


def power_step(a: jax.Array, basis: jax.Array) -> jax.Array:
    """One step of orthogonal iteration towards the eigenvectors of a: QR of a·basis, with a positive diagonal."""
    if a.shape[0] == 0:
        return basis
    q, r = lapack.qr(dot(normalised(a), basis))
    return q * jnp.where(jnp.diagonal(r) < 0, -1.0, 1.0).astype(q.dtype)[None, :]


def rayleigh(a: jax.Array, basis: jax.Array) -> jax.Array:
    """Estimates of the eigenvalues of a along the columns of a basis: diag(QᵀaQ)."""
    return jnp.sum(basis * dot(a, basis), axis=0)


def inverse_root(a: jax.Array, exponent: Any, eps: Any) -> jax.Array:
    """a to the power −exponent, of symmetric matrices (..., n, n): zero for a zero matrix.

    Args:
        exponent: 1/4 for each of two sides, 1/2 for one.
        eps: eigenvalues count as at least this share of the largest.
    """
    if a.size == 0:
        return a
    top = jnp.max(jnp.abs(a), axis=(-2, -1), keepdims=True)
    values, vectors = lapack.eigh(a / jnp.where(top > _TINY, top, 1.0))
    largest = values[..., -1:]
    # (λ / λmax) ^ −e, then λmax ^ −e, both within the range of float32.
    shares = jnp.maximum(values / jnp.where(largest > 0, largest, 1.0), eps)
    scale = jnp.where(top > _TINY, top * largest[..., None], 1.0) ** -exponent
    root = dot(vectors * (shares**-exponent)[..., None, :], jnp.swapaxes(vectors, -1, -2)) * scale
    return jnp.where(top > _TINY, root, 0.0)


def moment(old: jax.Array, new: jax.Array, decay: Any) -> jax.Array:
    """The decaying mean of an array."""
    return decay * old + (1 - decay) * new
