"""AdamW without loss spikes: updates bounded where the second moment lags behind."""

from typing import Any

import jax.numpy as jnp

from jopt import linalg
from jopt.rules.adam import adam_shared, adam_slots
from jopt.rules.slots import dtype_name
from jopt.scalars import DECAY, POSITIVE, ScalarOrSchedule
from jopt.transform import Transform, rule


def stable_adam_step(g, s, p, *, b1, b2, eps, c1, c2):
    m = b1 * s["mu"] + (1 - b1) * g
    v = b2 * s["nu"] + (1 - b2) * g * g
    root = jnp.sqrt(v / c2)
    surprise = linalg.rms(g / jnp.maximum(root, eps))
    return (m / c1) / (root + eps) / jnp.maximum(surprise, 1), {"mu": m, "nu": v}


def scale_by_stable_adam(
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.99,
    eps: ScalarOrSchedule = 1e-6,
    mu_dtype: Any = None,
) -> Transform:
    """Adam that shortens the step of an array whose gradient is larger than its second moment expects.

        m ← β₁m + (1 − β₁)g,   v ← β₂v + (1 − β₂)g²
        r = √mean(g² / max(v / c₂, ε²)),   over the array
        u = (m / c₁) / (√(v / c₂) + ε) / max(r, 1),   cᵢ = 1 − βᵢᵗ

    Args:
        b1: β₁ in [0, 1).
        b2: β₂ in [0, 1).
        eps: ε > 0.
        mu_dtype: dtype of m in the state; None is float32 or wider.

    Differs: the paper writes the corrections as decays that change with t, which is the same.
    Reference: [wortsman2023stable], Algorithm 2.
    """
    return rule(
        "scale_by_stable_adam",
        stable_adam_step,
        slots=adam_slots,
        shared=adam_shared,
        hyper={"b1": b1, "b2": b2, "eps": eps},
        static={"mu_dtype": dtype_name(mu_dtype, "scale_by_stable_adam", "mu_dtype")},
        domain={"b1": DECAY, "b2": DECAY, "eps": POSITIVE},
        reads="array",
        complex="pair",
    )
