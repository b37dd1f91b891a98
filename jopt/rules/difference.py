"""Rules that look at how the gradient has changed: Adan, MARS, optimistic gradients."""

from typing import Any

import jax.numpy as jnp

from jopt import linalg
from jopt.rules.slots import dtype_name
from jopt.scalars import DECAY, NONNEGATIVE, POSITIVE, ScalarOrSchedule
from jopt.transform import Transform, rule


def change(g, previous, t):
    """g minus the gradient before; zero at the first step."""
    return jnp.where(t == 1, jnp.zeros_like(g), g - previous)


def optimistic_slots(p):
    return {"previous_gradient": jnp.zeros_like(p)}


def optimistic_step(g, s, p, *, t, alpha, beta):
    return alpha * g + beta * change(g, s["previous_gradient"], t), {"previous_gradient": g}


def scale_by_optimistic_gradient(alpha: ScalarOrSchedule = 1.0, beta: ScalarOrSchedule = 1.0) -> Transform:
    """Add the change of the gradient, as a guess of the next: for games and other saddle points.

        u = αg + β(g − g′),   g′ the gradient before, g at the first step

    Args:
        alpha: α, the weight of the gradient.
        beta: β, the weight of its change.

    Reference: [mokhtari2020unified].
    """
    return rule(
        "scale_by_optimistic_gradient", optimistic_step, slots=optimistic_slots, hyper={"alpha": alpha, "beta": beta}
    )


def adan_slots(p):
    return {name: jnp.zeros_like(p) for name in ("m", "v", "n", "g")}


def adan_shared(*, t, b1, b2, b3):
    return {"c1": 1 - b1**t, "c2": 1 - b2**t, "c3": 1 - b3**t}


def adan_step(g, s, p, *, t, b1, b2, b3, eps, eps_root, c1, c2, c3):
    d = change(g, s["g"], t)
    m = b1 * s["m"] + (1 - b1) * g
    v = b2 * s["v"] + (1 - b2) * d
    n = b3 * s["n"] + (1 - b3) * (g + b2 * d) * (g + b2 * d)
    return (m / c1 + b2 * v / c2) / (jnp.sqrt(n / c3 + eps_root) + eps), {"m": m, "v": v, "n": n, "g": g}


def scale_by_adan(
    b1: ScalarOrSchedule = 0.98,
    b2: ScalarOrSchedule = 0.92,
    b3: ScalarOrSchedule = 0.99,
    eps: ScalarOrSchedule = 1e-8,
    eps_root: ScalarOrSchedule = 0.0,
) -> Transform:
    """Adam with Nesterov's momentum, from averages of the gradient and of its change.

        d = g − g′,   g′ the gradient before, g at the first step
        m ← β₁m + (1 − β₁)g,   v ← β₂v + (1 − β₂)d
        n ← β₃n + (1 − β₃)(g + β₂d)²
        u = (m / c₁ + β₂v / c₂) / (√(n / c₃ + ε_root) + ε),   cᵢ = 1 − βᵢᵗ

    Args:
        b1: β₁ in [0, 1).
        b2: β₂ in [0, 1), of the changes.
        b3: β₃ in [0, 1), of the squares.
        eps: ε ≥ 0, outside the root.
        eps_root: ε_root ≥ 0, inside the root.

    Differs: βᵢ are 1 − βᵢ of the paper, as in the authors' code and in optax. optax weights the changes
        by 1 − β₂ in n and u, where paper and authors have β₂ (0.08 for 0.92 at the defaults).
    Reference: [xie2024adan], Algorithm 1.
    """
    return rule(
        "scale_by_adan",
        adan_step,
        slots=adan_slots,
        shared=adan_shared,
        hyper={"b1": b1, "b2": b2, "b3": b3, "eps": eps, "eps_root": eps_root},
        domain={"b1": DECAY, "b2": DECAY, "b3": DECAY, "eps": NONNEGATIVE, "eps_root": NONNEGATIVE},
    )


def mars_slots(p, *, mu_dtype):
    return {"mu": jnp.zeros_like(p, dtype=mu_dtype), "nu": jnp.zeros_like(p), "g": jnp.zeros_like(p)}


def mars_shared(*, t, b1, b2, gamma):
    return {"weight": gamma * b1 / (1 - b1), "c1": 1 - b1**t, "c2": 1 - b2**t}


def mars_step(g, s, p, *, t, b1, b2, eps, max_norm, weight, c1, c2):
    c = g + weight * change(g, s["g"], t)
    c = c / jnp.maximum(linalg.norm(c) / max_norm, 1)
    m = b1 * s["mu"] + (1 - b1) * c
    v = b2 * s["nu"] + (1 - b2) * c * c
    return (m / c1) / (jnp.sqrt(v / c2) + eps), {"mu": m, "nu": v, "g": g}


def scale_by_mars(
    b1: ScalarOrSchedule = 0.95,
    b2: ScalarOrSchedule = 0.99,
    eps: ScalarOrSchedule = 1e-8,
    gamma: ScalarOrSchedule = 0.025,
    max_norm: ScalarOrSchedule = 1.0,
    mu_dtype: Any = None,
) -> Transform:
    """Adam on gradients corrected by their change, which lowers their variance.

        c = g + ηβ₁ / (1 − β₁) · (g − g′),   g′ the gradient before, g at the first step
        c ← c / max(‖c‖ / κ, 1)
        m ← β₁m + (1 − β₁)c,   v ← β₂v + (1 − β₂)c²
        u = (m / c₁) / (√(v / c₂) + ε),   cᵢ = 1 − βᵢᵗ

    Args:
        b1: β₁ in [0, 1).
        b2: β₂ in [0, 1).
        eps: ε ≥ 0.
        gamma: η ≥ 0, the strength of the correction.
        max_norm: κ > 0, the largest norm of an array of c.
        mu_dtype: dtype of m in the state; None is float32 or wider.

    Differs: the form that its authors call approximate, with the last step's gradient for that of the
        last parameters on this batch. Their code takes g′ = 0 at the first step.
    Reference: [yuan2025mars], Algorithm 2.
    """
    return rule(
        "scale_by_mars",
        mars_step,
        slots=mars_slots,
        shared=mars_shared,
        hyper={"b1": b1, "b2": b2, "eps": eps, "gamma": gamma, "max_norm": max_norm},
        static={"mu_dtype": dtype_name(mu_dtype, "scale_by_mars", "mu_dtype")},
        domain={"b1": DECAY, "b2": DECAY, "eps": NONNEGATIVE, "gamma": NONNEGATIVE, "max_norm": POSITIVE},
        reads="array",
    )
