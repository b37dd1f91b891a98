"""Adam whose rate is estimated from inner products over the whole tree: Prodigy and D-Adaptation."""

from typing import Any

import jax.numpy as jnp

from jopt import linalg
from jopt.dtypes import SATURATION
from jopt.rule import Own, Whole
from jopt.rules.each import each, opened, over, reals, unpaired, zeros
from jopt.scalars import DECAY, NONNEGATIVE, POSITIVE, ScalarOrSchedule, scalar_dtype
from jopt.transform import Transform, whole

_DOMAIN = {
    "learning_rate": NONNEGATIVE,
    "b1": DECAY,
    "b2": DECAY,
    "beta3": DECAY,
    "eps": NONNEGATIVE,
    "estim_lr0": POSITIVE,
    "estim_lr_coef": POSITIVE,
    "weight_decay": NONNEGATIVE,
}


def _bias_correction(t, b1, b2):
    return jnp.sqrt(1 - b2**t) / (1 - b1**t)


def prodigy_init(params, *, estim_lr0):
    """The first parameters, zero moments, and the first guess of d."""
    x = reals(params)
    slots = {"mu": zeros(x), "nu": zeros(x), "grad_sum": zeros(x), "x0": x}
    return Own(slots, {"d": estim_lr0, "numerator": jnp.zeros((), scalar_dtype())})


def prodigy_moments(g, s, p, *, b1, b2, beta3, d, weight):
    """Adam's moments of d·g, and the weighted sum of these gradients."""
    dg = jnp.clip(d * g, -SATURATION, SATURATION)  # else its square could overflow where d > 1
    m = b1 * s["mu"] + (1 - b1) * dg
    v = b2 * s["nu"] + (1 - b2) * dg * dg
    return g, s | {"mu": m, "nu": v, "grad_sum": beta3 * s["grad_sum"] + weight * dg}


def prodigy_direction(g, s, p, *, rate, weight_decay, eps_d):
    """The step by the moments, with decay."""
    return rate * (s["mu"] / (jnp.sqrt(s["nu"]) + eps_d) + weight_decay * p), s


def prodigy_update(
    grads,
    own,
    params,
    *,
    t,
    learning_rate,
    b1,
    b2,
    beta3,
    eps,
    estim_lr0,
    estim_lr_coef,
    weight_decay,
    safeguard_warmup,
):
    """A step of Adam of length d, and d grown by what the gradients say of the distance."""
    g, x = opened("scale_by_prodigy", grads, own, params)
    d, beta3 = own.scalars["d"], jnp.sqrt(b2) if beta3 is None else beta3
    rate = d * learning_rate * _bias_correction(t, b1, b2)
    r = beta3 * own.scalars["numerator"] + d / estim_lr0 * rate * linalg.total(linalg.along, g, own.slots["x0"], x)
    weight = (d if safeguard_warmup else rate) / estim_lr0
    _, slots = each(prodigy_moments, g, own.slots, x, b1=b1, b2=b2, beta3=beta3, d=d, weight=weight)
    d = jnp.maximum(d, estim_lr_coef * over(r, linalg.sum_abs(slots["grad_sum"])))
    u, slots = each(prodigy_direction, g, slots, x, rate=rate, weight_decay=weight_decay, eps_d=d * eps)
    return unpaired(u, grads), Own(slots, {"d": d, "numerator": r})


PRODIGY = Whole("scale_by_prodigy", prodigy_update, prodigy_init)


def scale_by_prodigy(
    learning_rate: ScalarOrSchedule = 1.0,
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    beta3: ScalarOrSchedule | None = None,
    eps: ScalarOrSchedule = 1e-8,
    estim_lr0: ScalarOrSchedule = 1e-6,
    estim_lr_coef: ScalarOrSchedule = 1.0,
    weight_decay: ScalarOrSchedule = 0.0,
    safeguard_warmup: bool = False,
) -> Transform:
    """Adam times an estimate d of the distance to the solution, which grows as the steps agree (Prodigy).

        m ← β₁m + (1 − β₁)dg,   v ← β₂v + (1 − β₂)(dg)²
        r ← β₃r + (d/d₀)η⟨g, x₀ − x⟩,   s ← β₃s + (η/d₀)dg,   η = dγ√(1 − β₂ᵗ) / (1 − β₁ᵗ)
        d ← max(d, κ r / ‖s‖₁)
        u = η (m / (√v + dε) + λx)

    ⟨·⟩ and ‖·‖₁ are over the whole tree, and η has the d of the step before. d can be read as
    ``state.scalars["scale_by_prodigy"]["d"]``. The rate is inside, because d is estimated from it.

    Args:
        learning_rate: γ ≥ 0, a factor of what is estimated: 1, or a schedule with the peak 1.
        b1: β₁ in [0, 1).
        b2: β₂ in [0, 1).
        beta3: β₃ in [0, 1); None is √β₂.
        eps: ε ≥ 0.
        estim_lr0: d₀ > 0, the first estimate; far too small is meant.
        estim_lr_coef: κ > 0.
        weight_decay: λ ≥ 0.
        safeguard_warmup: s ← β₃s + (d/d₀)dg, so that small rates of a warm-up do not inflate d.

    Differs: where s is zero d stays (0/0 in optax).
    Reference: [mishchenko2024prodigy].
    """
    numbers = {
        "learning_rate": learning_rate,
        "b1": b1,
        "b2": b2,
        "beta3": beta3,
        "eps": eps,
        "estim_lr0": estim_lr0,
        "estim_lr_coef": estim_lr_coef,
        "weight_decay": weight_decay,
    }
    flags: dict[str, Any] = {"safeguard_warmup": bool(safeguard_warmup)}
    if beta3 is None:
        flags["beta3"] = numbers.pop("beta3")
    return whole(PRODIGY, hyper=numbers, static=flags, domain=_DOMAIN)


def dadapt_init(params, *, estim_lr0):
    """Zero moments, and the first guess of d."""
    x = reals(params)
    slots = {"mu": zeros(x), "nu": zeros(x), "grad_sum": zeros(x)}
    return Own(slots, {"d": estim_lr0, "numerator": jnp.zeros((), scalar_dtype())})


def dadapt_scaled_sum(g, s, p, *, eps):
    """The sum of gradients over the root of the second moment."""
    return over(s["grad_sum"], jnp.sqrt(s["nu"]) + eps), s


def dadapt_step(g, s, p, *, b1, b2, root, share, eps, rate, weight_decay):
    m = b1 * s["mu"] + (1 - b1) * rate * g
    v = b2 * s["nu"] + (1 - b2) * g * g
    u = m / (jnp.sqrt(v) + eps) + weight_decay * rate * p
    return u, {"mu": m, "nu": v, "grad_sum": root * s["grad_sum"] + share * rate * g}


def dadapt_update(grads, own, params, *, t, learning_rate, b1, b2, eps, weight_decay):
    """A step of Adam of length d, and d grown by the sum of scaled gradients."""
    g, x = opened("scale_by_dadapt_adamw", grads, own, params)
    d, root = own.scalars["d"], jnp.sqrt(b2)
    share = (1 - b2) / (1 + root)  # 1 − σ, without the cancellation
    rate = d * learning_rate * _bias_correction(t, b1, b2)
    ahead = linalg.vdot(g, each(dadapt_scaled_sum, g, own.slots, x, eps=eps)[0])
    r = root * own.scalars["numerator"] + share * rate * ahead
    u, slots = each(
        dadapt_step,
        g,
        own.slots,
        x,
        b1=b1,
        b2=b2,
        root=root,
        share=share,
        eps=eps,
        rate=rate,
        weight_decay=weight_decay,
    )
    total = linalg.sum_abs(slots["grad_sum"])
    d = jnp.maximum(d, over(r, share * total))
    return unpaired(u, grads), Own(slots, {"d": d, "numerator": r})


DADAPT = Whole("scale_by_dadapt_adamw", dadapt_update, dadapt_init)


def scale_by_dadapt_adamw(
    learning_rate: ScalarOrSchedule = 1.0,
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-8,
    estim_lr0: ScalarOrSchedule = 1e-6,
    weight_decay: ScalarOrSchedule = 0.0,
) -> Transform:
    """Adam times a lower bound d of the distance to the solution, which grows (D-Adaptation).

        r ← σr + (1 − σ)η⟨g, s / (√v + ε)⟩,   η = dγ√(1 − β₂ᵗ) / (1 − β₁ᵗ),   σ = √β₂
        m ← β₁m + (1 − β₁)ηg,   v ← β₂v + (1 − β₂)g²,   s ← σs + (1 − σ)ηg
        d ← max(d, r / ((1 − σ)‖s‖₁))
        u = m / (√v + ε) + ηλx

    ⟨·⟩ and ‖·‖₁ are over the whole tree; η has the d of the step before, and r the s and v of it. d
    can be read as ``state.scalars["scale_by_dadapt_adamw"]["d"]``.

    Args:
        learning_rate: γ ≥ 0, a factor of what is estimated: 1, or a schedule with the peak 1.
        b1: β₁ in [0, 1).
        b2: β₂ in [0, 1).
        eps: ε ≥ 0.
        estim_lr0: d₀ > 0, the first estimate; far too small is meant.
        weight_decay: λ ≥ 0.

    Differs: η has Adam's bias correction, as in optax; where s is zero d stays (0/0 in optax).
    Reference: [defazio2023learningratefree].
    """
    return whole(
        DADAPT,
        hyper={
            "learning_rate": learning_rate,
            "b1": b1,
            "b2": b2,
            "eps": eps,
            "estim_lr0": estim_lr0,
            "weight_decay": weight_decay,
        },
        domain=_DOMAIN,
    )
