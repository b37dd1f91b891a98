"""Steps divided by the root of summed or averaged squares: AdaGrad, RMSProp, AdaDelta."""

import jax.numpy as jnp

from jopt.scalars import DECAY, NONNEGATIVE, ScalarOrSchedule
from jopt.transform import Transform, rule


def rss_slots(p, *, initial_accumulator_value):
    return {"sum_of_squares": jnp.full_like(p, initial_accumulator_value)}


def rss_step(g, s, p, *, eps):
    v = s["sum_of_squares"] + g * g
    seen = v > 0
    return jnp.where(seen, g / jnp.sqrt(jnp.where(seen, v, 1) + eps), 0), {"sum_of_squares": v}


def scale_by_rss(initial_accumulator_value: ScalarOrSchedule = 0.1, eps: ScalarOrSchedule = 1e-7) -> Transform:
    """Divide by the root of the sum of all squares so far (AdaGrad, ε inside the root).

        v ← v + g²,   v₀ = initial_accumulator_value
        u = g / √(v + ε), and 0 where v = 0

    Args:
        initial_accumulator_value: v₀ ≥ 0.
        eps: ε ≥ 0.

    Differs: the paper has v₀ = 0; v₀ = 0.1 is optax's default. For ε outside the root see
        docs/formulas.md.
    Reference: [duchi2011adaptive].
    """
    return rule(
        "scale_by_rss",
        rss_step,
        slots=rss_slots,
        hyper={"initial_accumulator_value": initial_accumulator_value, "eps": eps},
        domain={"initial_accumulator_value": NONNEGATIVE, "eps": NONNEGATIVE},
    )


def root_sum_step(g, s, p, *, eps):
    v = s["sum_of_squares"] + g * g
    return g / (jnp.sqrt(v) + eps), {"sum_of_squares": v}


def scale_by_root_sum(initial_accumulator_value: ScalarOrSchedule = 0.0, eps: ScalarOrSchedule = 1e-10) -> Transform:
    """Divide by the root of the sum of all squares so far (AdaGrad, ε outside the root).

        v ← v + g²,   v₀ = initial_accumulator_value
        u = g / (√v + ε)

    Args:
        initial_accumulator_value: v₀ ≥ 0.
        eps: ε ≥ 0; 0 divides 0 by 0 where a gradient was never seen.

    Differs: this is torch's and most textbooks' form; `scale_by_rss` is optax's.
    Reference: [duchi2011adaptive].
    """
    return rule(
        "scale_by_root_sum",
        root_sum_step,
        slots=rss_slots,
        hyper={"initial_accumulator_value": initial_accumulator_value, "eps": eps},
        domain={"initial_accumulator_value": NONNEGATIVE, "eps": NONNEGATIVE},
    )


_DOMAIN = {"decay": DECAY, "eps": NONNEGATIVE, "initial_scale": NONNEGATIVE}


def rms_shared(*, t, decay, eps, eps_in_sqrt, bias_correction):
    none, one = jnp.zeros_like(eps), jnp.ones_like(t)
    inside, outside = (eps, none) if eps_in_sqrt else (none, eps)
    return {"inside": inside, "outside": outside, "c": 1 - decay**t if bias_correction else one}


def rms_slots(p, *, initial_scale):
    return {"nu": jnp.full_like(p, initial_scale)}


def rms_step(g, s, p, *, decay, inside, outside, c):
    v = decay * s["nu"] + (1 - decay) * g * g
    return g / (jnp.sqrt(v / c + inside) + outside), {"nu": v}


def scale_by_rms(
    decay: ScalarOrSchedule = 0.9,
    eps: ScalarOrSchedule = 1e-8,
    initial_scale: ScalarOrSchedule = 0.0,
    eps_in_sqrt: bool = True,
    bias_correction: bool = False,
) -> Transform:
    """Divide by the root of a moving average of squares.

        v ← ρv + (1 − ρ)g²,   v₀ = initial_scale
        u = g / √(v / c + ε)  or  g / (√(v / c) + ε),   c = 1 or 1 − ρᵗ

    Args:
        decay: ρ in [0, 1).
        eps: ε ≥ 0.
        initial_scale: v₀ ≥ 0.
        eps_in_sqrt: whether ε stands inside the root (Keras, optax) or outside (torch).
        bias_correction: whether c corrects the start.

    Reference: [tieleman2012rmsprop].
    """
    return rule(
        "scale_by_rms",
        rms_step,
        slots=rms_slots,
        shared=rms_shared,
        hyper={"decay": decay, "eps": eps, "initial_scale": initial_scale},
        static={"eps_in_sqrt": bool(eps_in_sqrt), "bias_correction": bool(bias_correction)},
        domain=_DOMAIN,
    )


def stddev_slots(p, *, initial_scale):
    return {"mu": jnp.zeros_like(p), "nu": jnp.full_like(p, initial_scale)}


def stddev_step(g, s, p, *, decay, inside, outside, c):
    m = decay * s["mu"] + (1 - decay) * g
    v = decay * s["nu"] + (1 - decay) * g * g
    # Rounding can take the difference below zero, where the root is NaN.
    variance = jnp.maximum(v / c - (m / c) * (m / c), 0)
    return g / (jnp.sqrt(variance + inside) + outside), {"mu": m, "nu": v}


def scale_by_stddev(
    decay: ScalarOrSchedule = 0.9,
    eps: ScalarOrSchedule = 1e-8,
    initial_scale: ScalarOrSchedule = 0.0,
    eps_in_sqrt: bool = True,
    bias_correction: bool = False,
) -> Transform:
    """Divide by a moving estimate of the gradient's standard deviation (centered RMSProp).

        m ← ρm + (1 − ρ)g
        v ← ρv + (1 − ρ)g²
        u = g / √(v / c − (m / c)² + ε)  or with ε outside the root

    Args:
        decay, eps, initial_scale, eps_in_sqrt, bias_correction: as for `scale_by_rms`.

    Differs: the variance is kept from going below zero by rounding, which gives NaN in optax.
    Reference: [graves2013generating].
    """
    return rule(
        "scale_by_stddev",
        stddev_step,
        slots=stddev_slots,
        shared=rms_shared,
        hyper={"decay": decay, "eps": eps, "initial_scale": initial_scale},
        static={"eps_in_sqrt": bool(eps_in_sqrt), "bias_correction": bool(bias_correction)},
        domain=_DOMAIN,
    )


def adadelta_slots(p):
    return {"e_g": jnp.zeros_like(p), "e_x": jnp.zeros_like(p)}


def adadelta_step(g, s, p, *, rho, eps):
    v = rho * s["e_g"] + (1 - rho) * g * g
    u = jnp.sqrt(s["e_x"] + eps) / jnp.sqrt(v + eps) * g
    return u, {"e_g": v, "e_x": rho * s["e_x"] + (1 - rho) * u * u}


def scale_by_adadelta(rho: ScalarOrSchedule = 0.9, eps: ScalarOrSchedule = 1e-6) -> Transform:
    """Scale by the ratio of the averages of past steps and past gradients, which has a unit of length.

        v ← ρv + (1 − ρ)g²
        u = √(x + ε) / √(v + ε) · g
        x ← ρx + (1 − ρ)u²

    Args:
        rho: ρ in [0, 1).
        eps: ε > 0; it also sets the size of the first step.

    Reference: [zeiler2012adadelta], Algorithm 1.
    """
    return rule(
        "scale_by_adadelta",
        adadelta_step,
        slots=adadelta_slots,
        hyper={"rho": rho, "eps": eps},
        domain={"rho": DECAY, "eps": "(0, inf)"},
    )
