"""AdEMAMix: Adam with a second, much slower first moment; and its form with one."""

from typing import Any

import jax.numpy as jnp

from jopt.rules.slots import dtype_name
from jopt.scalars import DECAY, NONNEGATIVE, ScalarOrSchedule
from jopt.transform import Transform, rule


def ademamix_slots(p, *, mu_dtype):
    return {
        "m1": jnp.zeros_like(p, dtype=mu_dtype),
        "m2": jnp.zeros_like(p, dtype=mu_dtype),
        "nu": jnp.zeros_like(p),
    }


def ademamix_shared(*, t, b1, b2):
    return {"c1": 1 - b1**t, "c2": 1 - b2**t}


def ademamix_step(g, s, p, *, b1, b2, b3, alpha, eps, eps_root, c1, c2):
    m1 = b1 * s["m1"] + (1 - b1) * g
    m2 = b3 * s["m2"] + (1 - b3) * g
    v = b2 * s["nu"] + (1 - b2) * g * g
    return (m1 / c1 + alpha * m2) / (jnp.sqrt(v / c2 + eps_root) + eps), {"m1": m1, "m2": m2, "nu": v}


def scale_by_ademamix(
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    b3: ScalarOrSchedule = 0.9999,
    alpha: ScalarOrSchedule = 6.0,
    eps: ScalarOrSchedule = 1e-8,
    eps_root: ScalarOrSchedule = 0.0,
    mu_dtype: Any = None,
) -> Transform:
    """Adam with a fast and a slow average of the gradient.

        m₁ ← β₁m₁ + (1 − β₁)g,   m₂ ← β₃m₂ + (1 − β₃)g
        v ← β₂v + (1 − β₂)g²
        u = (m₁ / c₁ + αm₂) / (√(v / c₂ + ε_root) + ε),   cᵢ = 1 − βᵢᵗ

    Args:
        b1: β₁ in [0, 1), of the fast average.
        b2: β₂ in [0, 1).
        b3: β₃ in [0, 1), of the slow average, which fills slowly: it has no correction.
        alpha: α ≥ 0, the weight of the slow average.
        eps: ε ≥ 0, outside the root.
        eps_root: ε_root ≥ 0, inside the root.
        mu_dtype: dtype of m₁ and m₂ in the state; None is float32 or wider.

    The paper raises both over a run of T steps, and long runs need it:

        alpha=jopt.schedules.linear_schedule(0.0, 6.0, T)
        b3=jopt.schedules.half_life_schedule(0.9, 0.9999, T)

    Differs: v is float32 or wider whatever `mu_dtype` is.
    Reference: [pagliardini2025ademamix], Algorithm 1.
    """
    return rule(
        "scale_by_ademamix",
        ademamix_step,
        slots=ademamix_slots,
        shared=ademamix_shared,
        hyper={"b1": b1, "b2": b2, "b3": b3, "alpha": alpha, "eps": eps, "eps_root": eps_root},
        static={"mu_dtype": dtype_name(mu_dtype, "scale_by_ademamix", "mu_dtype")},
        domain={
            "b1": DECAY,
            "b2": DECAY,
            "b3": DECAY,
            "alpha": NONNEGATIVE,
            "eps": NONNEGATIVE,
            "eps_root": NONNEGATIVE,
        },
    )


def simplified_ademamix_slots(p):
    return {"m": jnp.zeros_like(p), "n": jnp.zeros_like(p)}


def simplified_ademamix_shared(*, t, b2):
    return {"c2": 1 - b2**t}


def simplified_ademamix_step(g, s, p, *, b1, b2, alpha, eps, eps_root, c2):
    m = b1 * s["m"] + g
    v = b2 * s["n"] + (1 - b2) * g * g
    return (m + alpha * g) / (jnp.sqrt(v / c2 + eps_root) + eps), {"m": m, "n": v}


def scale_by_simplified_ademamix(
    b1: ScalarOrSchedule = 0.99,
    b2: ScalarOrSchedule = 0.95,
    alpha: ScalarOrSchedule = 0.0,
    eps: ScalarOrSchedule = 1e-8,
    eps_root: ScalarOrSchedule = 0.0,
) -> Transform:
    """AdEMAMix with the gradient itself for its fast average, and a sum for its slow one.

        m ← β₁m + g
        v ← β₂v + (1 − β₂)g²
        u = (m + αg) / (√(v / c₂ + ε_root) + ε),   c₂ = 1 − β₂ᵗ

    Args:
        b1: β₁ in [0, 1).
        b2: β₂ in [0, 1).
        alpha: α ≥ 0, the weight of the gradient against the sum.
        eps: ε ≥ 0, outside the root.
        eps_root: ε_root ≥ 0, inside the root.

    Differs: m is a sum, so that learning rates are about 1 − β₁ times those of Adam.
    Reference: [morwani2025connections].
    """
    return rule(
        "scale_by_simplified_ademamix",
        simplified_ademamix_step,
        slots=simplified_ademamix_slots,
        shared=simplified_ademamix_shared,
        hyper={"b1": b1, "b2": b2, "alpha": alpha, "eps": eps, "eps_root": eps_root},
        domain={"b1": DECAY, "b2": DECAY, "alpha": NONNEGATIVE, "eps": NONNEGATIVE, "eps_root": NONNEGATIVE},
    )
