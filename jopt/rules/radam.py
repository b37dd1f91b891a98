"""RAdam: Adam that waits until its second moment is worth dividing by."""

import jax.numpy as jnp

from jopt.rules.adam import adamax_slots, lookahead_weights
from jopt.scalars import DECAY, NONNEGATIVE, ScalarOrSchedule
from jopt.transform import Transform, rule

_SMALL = 0.3
# h(x) − 1/2 by its Taylor series: the odd powers of x have B₂ₖ / (2k)! as coefficients, with the sign turned.
_SERIES = (-1 / 12, 1 / 720, -1 / 30240, 1 / 1209600, -1 / 47900160)


def _h(x):
    """1/x − 1/(eˣ − 1), without the cancellation at small x."""
    low, high = jnp.minimum(x, _SMALL), jnp.maximum(x, _SMALL)
    series = sum(a * low ** (2 * k + 1) for k, a in enumerate(_SERIES)) + 0.5
    return jnp.where(x < _SMALL, series, 1 / high - 1 / jnp.expm1(high))


def length_of_average(t, b2):
    """ρ = ρ∞ − 2tβᵗ/(1 − βᵗ), the number of equal weights an average of t gradients amounts to.

    As 1 + 2(t·h(−t ln β) − h(−ln β)): the terms of the usual formula are near 2000 and cancel to 1, which
    float32 cannot do.
    """
    rate = -jnp.log1p(b2 - 1)
    return 1 + 2 * (t * _h(t * rate) - _h(rate))


def radam_shared(*, t, b1, b2, threshold, nesterov):
    now, end = length_of_average(t, b2), 2 / (1 - b2) - 1
    rectified = now >= threshold
    ratio = (now - 4) * (now - 2) * end / ((end - 4) * (end - 2) * now)
    r = jnp.sqrt(jnp.where(rectified, ratio, jnp.ones_like(ratio)))
    return {"rectified": rectified.astype(r.dtype), "r": r, "c2": 1 - b2**t} | lookahead_weights(t, b1, nesterov)


def radam_step(g, s, p, *, b1, b2, eps, eps_root, of_m, of_g, c2, rectified, r):
    m = b1 * s["mu"] + (1 - b1) * g
    v = b2 * s["nu"] + (1 - b2) * g * g
    mean = of_m * m + of_g * g
    return jnp.where(rectified > 0, r * mean / (jnp.sqrt(v / c2 + eps_root) + eps), mean), {"mu": m, "nu": v}


def scale_by_radam(
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-8,
    eps_root: ScalarOrSchedule = 0.0,
    threshold: ScalarOrSchedule = 5.0,
    *,
    nesterov: bool = False,
) -> Transform:
    """Adam with steps as short as its second moment is uncertain: a warm-up that needs no tuning.

        m ← β₁m + (1 − β₁)g,   v ← β₂v + (1 − β₂)g²
        ρ = ρ∞ − 2tβ₂ᵗ / (1 − β₂ᵗ),   ρ∞ = 2 / (1 − β₂) − 1
        r = √((ρ − 4)(ρ − 2)ρ∞ / ((ρ∞ − 4)(ρ∞ − 2)ρ))
        u = r m̂ / (√(v / c₂ + ε_root) + ε) where ρ ≥ ρ₀, else m̂;   m̂ = m / c₁,   cᵢ = 1 − βᵢᵗ

    Args:
        b1: β₁ in [0, 1).
        b2: β₂ in [0, 1); up to 0.6 it never divides.
        eps: ε ≥ 0, outside the root.
        eps_root: ε_root ≥ 0, inside the root.
        threshold: ρ₀ ≥ 4, the length from which it divides.
        nesterov: True looks a step ahead, m̂ = β₁m / (1 − β₁ᵗ⁺¹) + (1 − β₁)g / c₁, as `scale_by_nadam`.

    Differs: the paper has ρ > 4; ρ is computed without the cancellation that costs optax two digits in
        float32.
    Reference: [liu2020variance], Algorithm 2.
    """
    return rule(
        "scale_by_radam",
        radam_step,
        slots=adamax_slots,
        shared=radam_shared,
        hyper={"b1": b1, "b2": b2, "eps": eps, "eps_root": eps_root, "threshold": threshold},
        static={"nesterov": bool(nesterov)},
        domain={"b1": DECAY, "b2": DECAY, "eps": NONNEGATIVE, "eps_root": NONNEGATIVE, "threshold": "[4, inf)"},
    )
