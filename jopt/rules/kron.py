"""PSGD: triangular preconditioners of each side, learned so that preconditioned gradients are white."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from jopt import lapack, linalg
from jopt.axes import matrix_axes
from jopt.rules import factors
from jopt.scalars import DECAY, FRACTION, NONNEGATIVE, POSITIVE, ScalarOrSchedule, size
from jopt.schedules import exponential_decay
from jopt.transform import Transform, rule

SIDES = ("left", "right")


# 1 for 500 steps, then e^(−(count − 500) / 1000), but at least 0.03.
UPDATE_PROBABILITY = exponential_decay(1.0, 1000, math.exp(-1), transition_begin=500, end_value=0.03)


def kron_slots(p, *, preconditioner_init_scale, max_size_triangular):
    slots = {"mu": jnp.zeros_like(p)}
    scale = jnp.sqrt(preconditioner_init_scale).astype(p.dtype)
    for side, n in zip(SIDES, p.shape, strict=True):
        dense = min(p.shape) > 1 and n <= max_size_triangular
        slots[side] = scale * (factors.identity(p, n) if dense else factors.zeros(p, n) + 1)
    return slots


def kron_shared(*, t, b1):
    return {"c1": 1 - b1**t}


def times(q, x):
    """QX of a triangular Q, or of a diagonal one."""
    return q @ x if q.ndim == 2 else q[:, None] * x


def times_transposed(q, x):
    """QᵀX."""
    return q.T @ x if q.ndim == 2 else q[:, None] * x


def solved_transposed(q, x):
    """Q⁻ᵀX."""
    if q.ndim == 1:
        return x / q[:, None]
    return lapack.solve_upper_transposed(q, x)


def lower_bound(a):
    """A lower bound of the spectral norm of a symmetric matrix, and near it: one step from its largest row."""
    top = jnp.max(jnp.abs(a), initial=0.0)
    a = a / jnp.where(top > 0, top, 1.0)
    x = a[jnp.argmax(jnp.sum(a * a, axis=1))] @ a
    return top * linalg.norm((x / jnp.maximum(linalg.norm(x), 1e-30)) @ a)


def learned(q, a, b, rate):
    """Q by one step of relative gradient descent, from what it makes of a gradient (a) and of noise (b), by rows."""
    if q.ndim == 1:
        a, b = jnp.sum(a * a, axis=1), jnp.sum(b * b, axis=1)
        return q - rate * (a - b) * q / jnp.maximum(jnp.max(a + b, initial=0.0), 1e-30)
    a, b = a @ a.T, b @ b.T
    return q - rate * (jnp.triu(a - b) @ q) / jnp.maximum(lower_bound(a + b), 1e-30)


def whitened(left, right, m, key, rate):
    """Both factors after one step towards E[QG(QG)ᵀ] = I, balanced."""
    v = jax.random.normal(key, m.shape, m.dtype)
    small = float(jnp.finfo(m.dtype).eps) ** 0.5
    g = m + small * jnp.mean(jnp.abs(m)) * v if m.size else m
    a = times(right, times(left, g).T).T
    b = solved_transposed(right, solved_transposed(left, v).T).T
    new = learned(left, a, b, rate), learned(right, a.T, b.T, rate)
    sizes = [jnp.max(jnp.abs(q), initial=0.0) for q in new]
    safe = [jnp.where(size > 0, size, 1.0) for size in sizes]
    balance = jnp.sqrt(safe[1] / safe[0])
    # A zero gradient says nothing; learning from it, Q would grow without end.
    learns = jnp.any(m != 0)
    return jnp.where(learns, new[0] * balance, left), jnp.where(learns, new[1] / balance, right)


def kron_step(g, s, p, *, count, key, b1, c1, precond_lr, max_rms):
    m = b1 * factors.entire(s["mu"]) + (1 - b1) * factors.entire(factors.bounded(g))
    left, right = jax.lax.cond(count == 0, whitened, _kept, s["left"], s["right"], m / c1, key, precond_lr)
    u = times_transposed(left, times(left, m / c1))
    u = times_transposed(right, times(right, u.T)).T
    u = u * jnp.minimum(1.0, max_rms / jnp.maximum(linalg.rms(u), 1e-30))
    return factors.placed_like(u, g), {"mu": factors.placed_like(m, s["mu"]), "left": left, "right": right}


def _kept(left, right, m, key, rate):
    return left, right


def kron_refresh(s, p, *, count, key, c1, precond_lr, preconditioner_update_probability):
    """The factors for the next update, learned from the momentum, in some updates by chance."""
    chance, noise = jax.random.split(jax.random.fold_in(key, 1))
    drawn = jax.random.uniform(chance, dtype=jnp.float32)
    wanted = (drawn < preconditioner_update_probability.astype(jnp.float32)) & (count > 0)
    m = factors.entire(s["mu"]) / c1
    left, right = jax.lax.cond(wanted, whitened, _kept, s["left"], s["right"], m, noise, precond_lr)
    return s | {"left": left, "right": right}


def scale_by_kron(
    b1: ScalarOrSchedule = 0.9,
    preconditioner_update_probability: ScalarOrSchedule = UPDATE_PROBABILITY,
    precond_lr: ScalarOrSchedule = 0.1,
    max_rms: ScalarOrSchedule = 1.1,
    preconditioner_init_scale: ScalarOrSchedule = 1.0,
    max_size_triangular: int = 8192,
    precondition_frequency: int = 1,
    key: Any = 0,
    *,
    axes: Any = "any",
) -> Transform:
    """PSGD Kron: precondition the momentum by triangular factors of each side that make it white.

        m ← β₁m + (1 − β₁)G,   V ~ N(0, 1)
        A = QₗMQᵣᵀ,   B = Qₗ⁻ᵀVQᵣ⁻¹,   M = m̂ + √eps·mean|m̂|·V,   m̂ = m / c₁,   c₁ = 1 − β₁ᵗ
        Qₗ ← Qₗ − η triu(AAᵀ − BBᵀ)Qₗ / ℓ,   and Qᵣ with AᵀA, BᵀB      with a probability
        U = QₗᵀQₗm̂QᵣᵀQᵣ,   then U ← U min(1, max_rms / RMS(U))

    Args:
        b1: β₁ in [0, 1).
        preconditioner_update_probability: in [0, 1], by default a schedule from 1 to 0.03.
        precond_lr: η ≥ 0.
        max_rms: > 0, the largest root mean square of a step; part of the algorithm.
        preconditioner_init_scale: > 0, of QᵀQ at the start.
        max_size_triangular: a longer side has a diagonal factor; so has a vector, and a matrix of one row or column.
        precondition_frequency: each matrix may learn once in so many updates, one after another.
        key: seed or key of V and of the draws.
        axes: which axes of an array are rows and columns, as for `scale_by_muon`; "any" takes every
            parameter, a vector as a column.

    ℓ is a lower bound of ‖AAᵀ + BBᵀ‖. Every matrix draws for itself whether it learns, so that the
    work spreads over the updates.

    Differs: the original learns before each step, from its momentum; here that is so for the first
        step, and the factors of the others were learned from the momentum of the step before. Both
        factors are balanced whenever they learn, there once in about a hundred times.
    Reference: [li2018preconditioned].
    """
    return rule(
        "scale_by_kron",
        kron_step,
        slots=kron_slots,
        shared=kron_shared,
        refresh=kron_refresh,
        every="precondition_frequency",
        hyper={
            "b1": b1,
            "preconditioner_update_probability": preconditioner_update_probability,
            "precond_lr": precond_lr,
            "max_rms": max_rms,
            "preconditioner_init_scale": preconditioner_init_scale,
        },
        static={
            "max_size_triangular": size(max_size_triangular, "scale_by_kron", "max_size_triangular", 0),
            "precondition_frequency": size(precondition_frequency, "scale_by_kron", "precondition_frequency"),
            "axes": matrix_axes("scale_by_kron", axes),
        },
        domain={
            "b1": DECAY,
            "preconditioner_update_probability": FRACTION,
            "precond_lr": NONNEGATIVE,
            "max_rms": POSITIVE,
            "preconditioner_init_scale": POSITIVE,
        },
        reads="matrix",
        axes="axes",
        key=key,
    )
