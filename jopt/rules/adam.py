"""The Adam family: steps scaled by decaying moments of the gradient."""

from typing import Any

import jax.numpy as jnp

from jopt.rules.slots import dtype_name
from jopt.scalars import DECAY, NONNEGATIVE, ScalarOrSchedule
from jopt.transform import Transform, rule

_DOMAIN = {"b1": DECAY, "b2": DECAY, "eps": NONNEGATIVE, "eps_root": NONNEGATIVE}


def adam_slots(p, *, mu_dtype):
    return {"mu": jnp.zeros_like(p, dtype=mu_dtype), "nu": jnp.zeros_like(p)}


def adam_shared(*, t, b1, b2):
    return {"c1": 1 - b1**t, "c2": 1 - b2**t}


def adam_step(g, s, p, *, b1, b2, eps, eps_root, c1, c2):
    m = b1 * s["mu"] + (1 - b1) * g
    v = b2 * s["nu"] + (1 - b2) * g * g
    return (m / c1) / (jnp.sqrt(v / c2 + eps_root) + eps), {"mu": m, "nu": v}


def scale_by_adam(
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-8,
    eps_root: ScalarOrSchedule = 0.0,
    mu_dtype: Any = None,
    *,
    nesterov: bool = False,
) -> Transform:
    """Scale by bias-corrected first and second moments.

        m ← β₁m + (1 − β₁)g
        v ← β₂v + (1 − β₂)g²
        u = (m / c₁) / (√(v / c₂ + ε_root) + ε),   cᵢ = 1 − βᵢᵗ

    Args:
        b1: β₁ in [0, 1).
        b2: β₂ in [0, 1).
        eps: ε ≥ 0, outside the root; 0 divides 0 by 0 where a gradient was never seen.
        eps_root: ε_root ≥ 0, inside the root; a positive one keeps derivatives finite at g = 0.
        mu_dtype: dtype of m in the state; None is float32 or wider.
        nesterov: True gives `scale_by_nadam`.

    Differs: optax keeps v in the parameter's dtype, where bf16(0.999) = 1 freezes it; here it is
        float32 or wider.
    Reference: [kingma2015adam], Algorithm 1.
    """
    if nesterov:
        return scale_by_nadam(b1, b2, eps, eps_root, mu_dtype)
    return rule(
        "scale_by_adam",
        adam_step,
        slots=adam_slots,
        shared=adam_shared,
        hyper={"b1": b1, "b2": b2, "eps": eps, "eps_root": eps_root},
        static={"mu_dtype": dtype_name(mu_dtype, "scale_by_adam", "mu_dtype")},
        domain=_DOMAIN,
    )


def uncorrected_adam_step(g, s, p, *, b1, b2, eps, eps_root):
    m = b1 * s["mu"] + (1 - b1) * g
    v = b2 * s["nu"] + (1 - b2) * g * g
    return m / (jnp.sqrt(v + eps_root) + eps), {"mu": m, "nu": v}


def scale_by_uncorrected_adam(
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-8,
    eps_root: ScalarOrSchedule = 0.0,
    mu_dtype: Any = None,
) -> Transform:
    """Scale by first and second moments without bias correction, as some textbooks write Adam.

        m ← β₁m + (1 − β₁)g
        v ← β₂v + (1 − β₂)g²
        u = m / (√(v + ε_root) + ε)

    Args:
        b1, b2, eps, eps_root, mu_dtype: as for `scale_by_adam`.

    Differs: its first steps are (1 − β₁)/√(1 − β₂) ≈ 3 times those of Adam at the defaults.
    """
    return rule(
        "scale_by_uncorrected_adam",
        uncorrected_adam_step,
        slots=adam_slots,
        hyper={"b1": b1, "b2": b2, "eps": eps, "eps_root": eps_root},
        static={"mu_dtype": dtype_name(mu_dtype, "scale_by_uncorrected_adam", "mu_dtype")},
        domain=_DOMAIN,
    )


def lookahead_weights(t, b1, nesterov):
    """The weights of m and g in the corrected mean: of Adam's, or of NAdam's that looks a step ahead."""
    if nesterov:
        return {"of_m": b1 / (1 - b1 ** (t + 1)), "of_g": (1 - b1) / (1 - b1**t)}
    return {"of_m": 1 / (1 - b1**t), "of_g": jnp.zeros_like(t)}


def nadam_shared(*, t, b1, b2):
    return {"c1": 1 - b1**t, "c1_next": 1 - b1 ** (t + 1), "c2": 1 - b2**t}


def nadam_step(g, s, p, *, b1, b2, eps, eps_root, c1, c1_next, c2):
    m = b1 * s["mu"] + (1 - b1) * g
    v = b2 * s["nu"] + (1 - b2) * g * g
    ahead = b1 * m / c1_next + (1 - b1) * g / c1
    return ahead / (jnp.sqrt(v / c2 + eps_root) + eps), {"mu": m, "nu": v}


def scale_by_nadam(
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-8,
    eps_root: ScalarOrSchedule = 0.0,
    mu_dtype: Any = None,
) -> Transform:
    """Adam with Nesterov's look-ahead in the first moment.

        m ← β₁m + (1 − β₁)g
        v ← β₂v + (1 − β₂)g²
        u = (β₁m / (1 − β₁ᵗ⁺¹) + (1 − β₁)g / (1 − β₁ᵗ)) / (√(v / c₂ + ε_root) + ε)

    Args:
        b1, b2, eps, eps_root, mu_dtype: as for `scale_by_adam`.

    Differs: β₁ is constant, as in optax; the paper and torch let it grow by a schedule (give `b1`
        one for that).
    Reference: [dozat2016incorporating].
    """
    return rule(
        "scale_by_nadam",
        nadam_step,
        slots=adam_slots,
        shared=nadam_shared,
        hyper={"b1": b1, "b2": b2, "eps": eps, "eps_root": eps_root},
        static={"mu_dtype": dtype_name(mu_dtype, "scale_by_nadam", "mu_dtype")},
        domain=_DOMAIN,
    )


def amsgrad_slots(p, *, mu_dtype):
    return {"mu": jnp.zeros_like(p, dtype=mu_dtype), "nu": jnp.zeros_like(p), "nu_max": jnp.zeros_like(p)}


def amsgrad_shared(*, t, b1, b2, bias_correction_mu, bias_correction_nu):
    one = jnp.ones_like(t)
    return {"c1": 1 - b1**t if bias_correction_mu else one, "c2": 1 - b2**t if bias_correction_nu else one}


def amsgrad_step(g, s, p, *, b1, b2, eps, eps_root, c1, c2):
    m = b1 * s["mu"] + (1 - b1) * g
    v = b2 * s["nu"] + (1 - b2) * g * g
    top = jnp.maximum(s["nu_max"], v / c2)
    return (m / c1) / (jnp.sqrt(top + eps_root) + eps), {"mu": m, "nu": v, "nu_max": top}


def scale_by_amsgrad(
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-8,
    eps_root: ScalarOrSchedule = 0.0,
    mu_dtype: Any = None,
    bias_correction_mu: bool = True,
    bias_correction_nu: bool = True,
) -> Transform:
    """Adam whose denominator never shrinks.

        m ← β₁m + (1 − β₁)g
        v ← β₂v + (1 − β₂)g²
        w ← max(w, v / c₂)
        u = (m / c₁) / (√(w + ε_root) + ε),   cᵢ = 1 − βᵢᵗ or 1

    Args:
        b1, b2, eps, eps_root, mu_dtype: as for `scale_by_adam`.
        bias_correction_mu: whether c₁ corrects; False is c₁ = 1.
        bias_correction_nu: whether c₂ corrects; False is c₂ = 1, as in the paper.

    Differs: the maximum is over corrected moments, as in optax; torch takes it before correcting.
    Reference: [reddi2018convergence], Algorithm 2.
    """
    return rule(
        "scale_by_amsgrad",
        amsgrad_step,
        slots=amsgrad_slots,
        shared=amsgrad_shared,
        hyper={"b1": b1, "b2": b2, "eps": eps, "eps_root": eps_root},
        static={
            "mu_dtype": dtype_name(mu_dtype, "scale_by_amsgrad", "mu_dtype"),
            "bias_correction_mu": bool(bias_correction_mu),
            "bias_correction_nu": bool(bias_correction_nu),
        },
        domain=_DOMAIN,
    )


def adamax_slots(p):
    return {"mu": jnp.zeros_like(p), "nu": jnp.zeros_like(p)}


def adamax_shared(*, t, b1):
    return {"c1": 1 - b1**t}


def adamax_step(g, s, p, *, b1, b2, eps, c1):
    m = b1 * s["mu"] + (1 - b1) * g
    v = jnp.maximum(b2 * s["nu"], jnp.abs(g) + eps)
    return (m / c1) / v, {"mu": m, "nu": v}


def scale_by_adamax(
    b1: ScalarOrSchedule = 0.9, b2: ScalarOrSchedule = 0.999, eps: ScalarOrSchedule = 1e-8
) -> Transform:
    """Adam with the decaying maximum of |g| in place of the second moment.

        m ← β₁m + (1 − β₁)g
        v ← max(β₂v, |g| + ε)
        u = (m / c₁) / v,   c₁ = 1 − β₁ᵗ

    Args:
        b1: β₁ in [0, 1).
        b2: β₂ in [0, 1).
        eps: ε ≥ 0.

    Differs: ε is inside the maximum, as in optax; the paper has none.
    Reference: [kingma2015adam], Algorithm 2.
    """
    return rule(
        "scale_by_adamax",
        adamax_step,
        slots=adamax_slots,
        shared=adamax_shared,
        hyper={"b1": b1, "b2": b2, "eps": eps},
        domain=_DOMAIN,
    )
