"""Norms of trees and products of matrices: the arithmetic that several rules share."""

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from jopt import dtypes
from jopt.scalars import scalar_dtype

# Squares of what is smaller than 2⁻⁶⁰ vanish in float32; below this sum they may have mattered.
_TINY = 1e-22
_SCALE = 2.0**60


@jax.jit
def _add_squares(total: jax.Array, scale: jax.Array, g: jax.Array) -> jax.Array:
    g = dtypes.enter(g)
    parts = (g.real, g.imag) if jnp.iscomplexobj(g) else (g,)
    for part in parts:
        scaled = part * scale.astype(part.dtype)
        total = total + jnp.sum(scaled * scaled).astype(total.dtype)
    return total


@jax.jit
def _sum_squares(scale: jax.Array, leaves: list[jax.Array]) -> jax.Array:
    total = jnp.zeros((), scale.dtype)
    for leaf in leaves:  # a running total: one equation a leaf
        total = _add_squares(total, scale, leaf)
    return total


def global_norm(leaves: list[Any], axis_name: Any = None) -> jax.Array:
    """The Euclidean norm of all arrays together, finite wherever they are.

    One pass; a second one, rescaled, runs only where the sum of squares overflowed or all but
    vanished. Complex arrays count by their absolute values. No arrays have the norm 0.

    Args:
        leaves: real or complex arrays of any shapes.
        axis_name: mesh axes of an enclosing `shard_map` to sum over; None is local.
    """
    if not leaves:
        return jnp.zeros((), scalar_dtype())

    def measure(scale):
        total = _sum_squares(scale, leaves)
        return total if axis_name is None else jax.lax.psum(total, axis_name)

    one = jnp.ones((), scalar_dtype())
    total = measure(one)
    fine = (total >= _TINY) & jnp.isfinite(total)
    scale = jnp.where(total <= 1, one * _SCALE, one / _SCALE)
    # sqrt inside the branches: its slope at 0 is infinite, and only the branch taken is differentiated.
    return jax.lax.cond(fine, lambda: jnp.sqrt(total), lambda: _safe_sqrt(measure(scale)) / scale)


def _safe_sqrt(x: jax.Array) -> jax.Array:
    """√x with slope 0 at 0."""
    positive = x != 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, x, jnp.ones_like(x))), jnp.zeros_like(x))


def norm(x: jax.Array) -> jax.Array:
    """The Euclidean norm of one array, finite wherever it is, with slope 0 at 0."""
    top = jnp.max(jnp.abs(x), initial=0.0)
    scale = jax.lax.stop_gradient(jnp.where((top > 0) & jnp.isfinite(top), top, jnp.ones_like(top)))
    y = x / scale
    squares = y.real * y.real + y.imag * y.imag if jnp.iscomplexobj(y) else y * y
    return scale * _safe_sqrt(jnp.sum(squares))


def rms(x: jax.Array) -> jax.Array:
    """The root mean square of one array; 0 of an empty one."""
    return norm(x) / jnp.sqrt(jnp.asarray(max(x.size, 1), norm_dtype(x)))


def norm_dtype(x: jax.Array) -> Any:
    """The real dtype of the norms of x."""
    return jnp.finfo(x.dtype).dtype


class Gradients(Mapping[str, jax.Array]):
    """The gradients a tree rule sees: leaves in the compute dtype, and their norm, computed once."""

    def __init__(self, leaves: Mapping[str, Any], norms: dict[Any, jax.Array]):
        self._leaves, self._norms = leaves, norms

    def __getitem__(self, path: str) -> jax.Array:
        return dtypes.enter(self._leaves[path])

    def __iter__(self) -> Iterator[str]:
        return iter(self._leaves)

    def __len__(self) -> int:
        return len(self._leaves)

    def norm(self, axis_name: Any = None) -> jax.Array:
        """`global_norm` of all leaves; asked twice of the same arrays, it is computed once."""
        leaves = list(self._leaves.values())
        asked = (axis_name, *map(id, leaves))
        if asked not in self._norms:
            self._norms[asked] = global_norm(leaves, axis_name)
        return self._norms[asked]


def matmul(a: jax.Array, b: jax.Array) -> jax.Array:
    """The product of two matrices; on an Explicit mesh its rows lie as a's and its columns as b's.

    Where both would lie on one mesh axis the rows keep it.
    """
    rows, columns = _spec(a)[0], _spec(b)[1]
    if rows is None and columns is None and not (_sharded(a) or _sharded(b)):
        return a @ b
    if rows is not None and _names(rows) & _names(columns):
        columns = None
    # The mesh of the operands: outside of `jax.set_mesh` a bare PartitionSpec means nothing.
    mesh = jax.typeof(a if _sharded(a) else b).sharding.mesh
    return jnp.einsum("ik,kj->ij", a, b, out_sharding=NamedSharding(mesh, PartitionSpec(rows, columns)))


def _spec(x: jax.Array) -> tuple[Any, Any]:
    spec = jax.typeof(x).sharding.spec
    entries = tuple(spec) + (None,) * (x.ndim - len(spec))
    return entries[-2], entries[-1]


def _sharded(x: jax.Array) -> bool:
    return any(entry is not None for entry in jax.typeof(x).sharding.spec)


def _names(entry: Any) -> set[Any]:
    return set(entry) if isinstance(entry, tuple) else {entry} - {None}


# Quintic Newton-Schulz coefficients, tuned for slope at 0 and not for convergence: σ lands in about
# [0.7, 1.2], which is all Muon needs [jordan2024muon].
MUON_COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def newton_schulz(x: jax.Array, steps: int, coefficients: tuple[Any, ...], eps: Any) -> jax.Array:
    """Approximate the orthogonal polar factor of one matrix (m, n).

        X ← X / (‖X‖ + eps),  then per step:  A = XXᵀ,  X ← aX + (bA + cA²)X

    Args:
        steps: how many iterations.
        coefficients: one triple (a, b, c) for all steps, or a triple per step.
        eps: added to the norm, so that a zero matrix stays zero.

    Complex matrices use the conjugate transpose.
    """
    tall = x.shape[0] > x.shape[1]
    x = _adjoint(x) if tall else x
    x = x / (norm(x) + jnp.asarray(eps, norm_dtype(x))).astype(x.dtype)
    per_step = coefficients if isinstance(coefficients[0], tuple) else (coefficients,) * steps
    for a, b, c in per_step[:steps]:
        gram = matmul(x, _adjoint(x))
        x = _cast(a, x) * x + matmul(_cast(b, x) * gram + _cast(c, x) * matmul(gram, gram), x)
    return _adjoint(x) if tall else x


def _cast(number: Any, x: jax.Array) -> jax.Array:
    return jnp.asarray(number, x.dtype)


def _adjoint(x: jax.Array) -> jax.Array:
    return x.T.conj() if jnp.iscomplexobj(x) else x.T
