"""Second moments kept by the slices they lie in: SM3."""

import functools

import jax.numpy as jnp

from jopt.scalars import DECAY, FRACTION, NONNEGATIVE, ScalarOrSchedule
from jopt.transform import Transform, rule


def _others(axis: int, ndim: int) -> tuple[int, ...]:
    """All axes but one; of a scalar, none."""
    return tuple(i for i in range(ndim) if i != axis)


def sm3_slots(p):
    covers = {f"mu_{i}": jnp.zeros_like(jnp.sum(p, axis=_others(i, p.ndim))) for i in range(max(p.ndim, 1))}
    return {"momentum": jnp.zeros_like(p)} | covers


def sm3_step(g, s, p, *, b1, b2, eps):
    axes = range(max(g.ndim, 1))
    least = functools.reduce(jnp.minimum, (jnp.expand_dims(s[f"mu_{i}"], _others(i, g.ndim)) for i in axes))
    v = b2 * least + jnp.where(b2 == 1, 1, 1 - b2) * g * g
    seen = v > 0
    u = jnp.where(seen, g / jnp.sqrt(jnp.where(seen, v, 1) + eps), 0)
    m = b1 * s["momentum"] + (1 - b1) * u
    return m, {"momentum": m} | {f"mu_{i}": jnp.max(v, axis=_others(i, g.ndim), initial=0) for i in axes}


def scale_by_sm3(b1: ScalarOrSchedule = 0.9, b2: ScalarOrSchedule = 1.0, eps: ScalarOrSchedule = 1e-8) -> Transform:
    """AdaGrad that keeps one number for each slice of an array, and the momentum of what it gives.

        v = b₂ min(μ₁[i], μ₂[j], ...) + c g²,   c = 1 − b₂, or 1 if b₂ = 1
        μₖ ← max of v over all axes but the k-th
        m ← b₁m + (1 − b₁) g / √(v + ε), with 0 / 0 = 0
        u = m

    Args:
        b1: b₁ in [0, 1); 0 is no momentum, though its array is kept.
        b2: b₂ in [0, 1]; 1 sums as AdaGrad does, less forgets.
        eps: ε ≥ 0.

    Differs: scalars are one-element vectors; in optax they are an error. Momentum after the
        division, as in optax; the paper's text has it before.
    Reference: [anil2019memory], Algorithm SM3-II.
    """
    return rule(
        "scale_by_sm3",
        sm3_step,
        slots=sm3_slots,
        hyper={"b1": b1, "b2": b2, "eps": eps},
        domain={"b1": DECAY, "b2": FRACTION, "eps": NONNEGATIVE},
        reads="array",
    )
