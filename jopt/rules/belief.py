"""Adam with another second moment: the spread about the mean (AdaBelief, ACProp), or a slower one (Yogi)."""

import jax.numpy as jnp

from jopt.rules.adam import adamax_slots, lookahead_weights
from jopt.scalars import DECAY, NONNEGATIVE, ScalarOrSchedule
from jopt.transform import Transform, rule

_DOMAIN = {"b1": DECAY, "b2": DECAY, "eps": NONNEGATIVE, "eps_root": NONNEGATIVE}


def belief_shared(*, t, b1, b2, nesterov):
    return {"c2": 1 - b2**t} | lookahead_weights(t, b1, nesterov)


def belief_step(g, s, p, *, b1, b2, eps, eps_root, of_m, of_g, c2):
    m = b1 * s["mu"] + (1 - b1) * g
    v = b2 * s["nu"] + (1 - b2) * (g - m) * (g - m) + eps_root
    return (of_m * m + of_g * g) / (jnp.sqrt(v / c2) + eps), {"mu": m, "nu": v}


def scale_by_belief(
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-16,
    eps_root: ScalarOrSchedule = 1e-16,
    *,
    nesterov: bool = False,
) -> Transform:
    """Scale by how far gradients stray from their mean: long steps where they are as expected.

        m ← β₁m + (1 − β₁)g
        v ← β₂v + (1 − β₂)(g − m)² + ε_root
        u = m̂ / (√(v / c₂) + ε),   m̂ = m / c₁,   cᵢ = 1 − βᵢᵗ

    Args:
        b1: β₁ in [0, 1).
        b2: β₂ in [0, 1).
        eps: ε ≥ 0.
        eps_root: ε_root ≥ 0, added at every step.
        nesterov: True looks a step ahead, m̂ = β₁m / (1 − β₁ᵗ⁺¹) + (1 − β₁)g / c₁, as `scale_by_nadam`.

    Differs: two ε, as in optax; the paper has one, in both places.
    Reference: [zhuang2020adabelief], Algorithm 2.
    """
    return rule(
        "scale_by_belief",
        belief_step,
        slots=adamax_slots,
        shared=belief_shared,
        hyper={"b1": b1, "b2": b2, "eps": eps, "eps_root": eps_root},
        static={"nesterov": bool(nesterov)},
        domain=_DOMAIN,
    )


_MOST = 1e4  # standard deviations


def acprop_shared(*, t, b2):
    return {"c2": 1 - b2 ** jnp.maximum(t - 1, 1)}  # of the moment before this step


def acprop_step(g, s, p, *, t, b1, b2, eps, eps_root, c2):
    v = jnp.where(t == 1, jnp.ones_like(g), s["nu"] / c2)
    strays = g - s["mu"]
    new = {"mu": b1 * s["mu"] + (1 - b1) * g, "nu": b2 * s["nu"] + (1 - b2) * strays * strays + eps_root}
    return jnp.clip(g / (jnp.sqrt(v) + eps), -_MOST, _MOST), new


def scale_by_acprop(
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-16,
    eps_root: ScalarOrSchedule = 1e-16,
) -> Transform:
    """Divide by the spread of the gradients before this one, so that each gradient is independent of its rate.

        u = g / (√(v / (1 − β₂ᵗ⁻¹)) + ε),   and g / (1 + ε) at t = 1
        v ← β₂v + (1 − β₂)(g − m)² + ε_root
        m ← β₁m + (1 − β₁)g

    Args:
        b1: β₁ in [0, 1).
        b2: β₂ in [0, 1).
        eps: ε ≥ 0.
        eps_root: ε_root ≥ 0, added at every step.

    Differs: the spread is about the mean of the gradients before this one, and the first update is the
        gradient itself, as in optax. |u| ≤ 10⁴: where no gradient was seen before, v is ε_root alone, and
        the first would move a parameter out of the range of its dtype.
    Reference: [zhuang2021momentum].
    """
    return rule(
        "scale_by_acprop",
        acprop_step,
        slots=adamax_slots,
        shared=acprop_shared,
        hyper={"b1": b1, "b2": b2, "eps": eps, "eps_root": eps_root},
        domain=_DOMAIN,
    )


def yogi_slots(p, *, initial_accumulator_value):
    return {name: jnp.full_like(p, initial_accumulator_value) for name in ("mu", "nu")}


def yogi_shared(*, t, b1, b2):
    return {"c1": 1 - b1**t, "c2": 1 - b2**t}


def yogi_step(g, s, p, *, b1, b2, eps, eps_root, c1, c2):
    m = b1 * s["mu"] + (1 - b1) * g
    v = s["nu"] - (1 - b2) * jnp.sign(s["nu"] - g * g) * g * g
    return (m / c1) / (jnp.sqrt(v / c2 + eps_root) + eps), {"mu": m, "nu": v}


def scale_by_yogi(
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-3,
    eps_root: ScalarOrSchedule = 0.0,
    initial_accumulator_value: ScalarOrSchedule = 1e-6,
) -> Transform:
    """Adam whose second moment moves by (1 − β₂)g² at most, so that rates grow back slowly.

        m ← β₁m + (1 − β₁)g
        v ← v − (1 − β₂) sign(v − g²) g²
        u = (m / c₁) / (√(v / c₂ + ε_root) + ε),   cᵢ = 1 − βᵢᵗ

    Args:
        b1: β₁ in [0, 1).
        b2: β₂ in [0, 1).
        eps: ε ≥ 0.
        eps_root: ε_root ≥ 0.
        initial_accumulator_value: m₀ = v₀ ≥ 0.

    Differs: bias corrections, and m₀ as large as v₀, as in optax; the paper has m₀ = 0 and no correction.
        A parameter that never gets a gradient so moves a little at first.
    Reference: [zaheer2018adaptive].
    """
    return rule(
        "scale_by_yogi",
        yogi_step,
        slots=yogi_slots,
        shared=yogi_shared,
        hyper={
            "b1": b1,
            "b2": b2,
            "eps": eps,
            "eps_root": eps_root,
            "initial_accumulator_value": initial_accumulator_value,
        },
        domain=_DOMAIN | {"initial_accumulator_value": NONNEGATIVE},
    )
