"""Rprop: steps that know the gradient by its sign alone, and its changes of sign."""

import jax.numpy as jnp

from jopt.scalars import NONNEGATIVE, POSITIVE, ScalarOrSchedule
from jopt.transform import Transform, rule


def rprop_slots(p):
    return {"ratio": jnp.ones_like(p), "sign": jnp.zeros_like(p)}


def rprop_shared(*, learning_rate, min_step_size, max_step_size):
    # A learning rate of 0 stops all steps; the ratios then keep bounds that mean something later.
    moves = learning_rate > 0
    rate = jnp.where(moves, learning_rate, jnp.ones_like(learning_rate))
    return {
        "low": jnp.where(moves, min_step_size / rate, jnp.zeros_like(rate)),
        "high": max_step_size / rate,
    }


def rprop_step(g, s, p, *, learning_rate, eta_minus, eta_plus, low, high):
    sign = jnp.sign(g)
    agrees = sign * s["sign"]
    scaled = jnp.clip(s["ratio"] * jnp.where(agrees > 0, eta_plus, eta_minus), low, high)
    ratio = jnp.where(agrees == 0, s["ratio"], scaled)
    sign = jnp.where(agrees < 0, jnp.zeros_like(sign), sign)
    return learning_rate * ratio * sign, {"ratio": ratio, "sign": sign}


def scale_by_rprop(
    learning_rate: ScalarOrSchedule,
    eta_minus: ScalarOrSchedule = 0.5,
    eta_plus: ScalarOrSchedule = 1.2,
    min_step_size: ScalarOrSchedule = 1e-6,
    max_step_size: ScalarOrSchedule = 50.0,
) -> Transform:
    """Give each element a step size that grows while its gradient keeps its sign, and shrinks when it turns.

        σ = sign(g)σ′,   Δ ← clip(Δη⁺, Δ₋, Δ₊) where σ > 0, clip(Δη⁻, Δ₋, Δ₊) where σ < 0
        u = Δ sign(g), and 0 where σ < 0
        σ′ ← sign(u),   Δ₀ = γ

    Args:
        learning_rate: γ ≥ 0, the first step size. Steps are kept relative to it, so that changing it
            scales them all.
        eta_minus: η⁻ in (0, 1].
        eta_plus: η⁺ ≥ 1.
        min_step_size: Δ₋ ≥ 0.
        max_step_size: Δ₊ > 0.

    Differs: optax's update is the one computed a step earlier. An element whose gradient turned rests for
        a step, and does not go back where it came from (the paper's first version did).
    Reference: [riedmiller1993direct].
    """
    return rule(
        "scale_by_rprop",
        rprop_step,
        slots=rprop_slots,
        shared=rprop_shared,
        hyper={
            "learning_rate": learning_rate,
            "eta_minus": eta_minus,
            "eta_plus": eta_plus,
            "min_step_size": min_step_size,
            "max_step_size": max_step_size,
        },
        domain={
            "learning_rate": NONNEGATIVE,
            "eta_minus": "(0, 1]",
            "eta_plus": "[1, inf)",
            "min_step_size": NONNEGATIVE,
            "max_step_size": POSITIVE,
        },
    )
