"""Steps of one size in every coordinate."""

from typing import Any

import jax.numpy as jnp

from jopt.rules.slots import dtype_name
from jopt.scalars import DECAY, POSITIVE, ScalarOrSchedule
from jopt.transform import Transform, rule


def sign_step(g, s, p):
    return jnp.sign(g), s


def scale_by_sign() -> Transform:
    """Keep the sign of the gradient alone.

        u = sign(g)

    A complex parameter is taken as (real, imaginary), each with its own sign.

    Reference: [bernstein2018signsgd], Algorithm 1.
    """
    return rule("scale_by_sign", sign_step)


def lion_slots(p, *, mu_dtype):
    return {"mu": jnp.zeros_like(p, dtype=mu_dtype)}


def lion_step(g, s, p, *, b1, b2):
    u = jnp.sign(b1 * s["mu"] + (1 - b1) * g)
    return u, {"mu": b2 * s["mu"] + (1 - b2) * g}


def scale_by_lion(
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.99,
    mu_dtype: Any = None,
    *,
    mode: str = "hard",
    smooth_beta: ScalarOrSchedule = 1.0,
) -> Transform:
    """Step by the sign of an interpolated momentum.

        u = sign(β₁m + (1 − β₁)g)
        m ← β₂m + (1 − β₂)g

    Args:
        b1: β₁ in [0, 1): weight of the memory inside the sign.
        b2: β₂ in [0, 1): how slowly the memory moves; keep b2 > b1.
        mu_dtype: dtype of m in the state; None is float32 or wider.
        mode: "smooth" gives `scale_by_smooth_lion`, "refined" `scale_by_refined_lion`.
        smooth_beta: for `scale_by_smooth_lion`.

    Raises:
        ValueError: another mode.

    Differs: no weight decay inside. A step has the size of the learning rate in every coordinate,
        so take 3 to 10 times less than with Adam.
    Reference: [chen2023lion], Algorithm 2.
    """
    if mode == "smooth":
        return scale_by_smooth_lion(b1, b2, smooth_beta, mu_dtype)
    if mode == "refined":
        return scale_by_refined_lion(b1, b2, mu_dtype)
    if mode != "hard":
        raise ValueError(
            f"scale_by_lion: mode={mode!r} was given, 'hard', 'smooth' or 'refined' was expected. "
            f"Leave it out for the sign of the paper."
        )
    return rule(
        "scale_by_lion",
        lion_step,
        slots=lion_slots,
        hyper={"b1": b1, "b2": b2},
        static={"mu_dtype": dtype_name(mu_dtype, "scale_by_lion", "mu_dtype")},
        domain={"b1": DECAY, "b2": DECAY},
    )


def smooth_lion_step(g, s, p, *, b1, b2, smooth_beta):
    u = jnp.tanh(smooth_beta * (b1 * s["mu"] + (1 - b1) * g))
    return u, {"mu": b2 * s["mu"] + (1 - b2) * g}


def scale_by_smooth_lion(
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.99,
    smooth_beta: ScalarOrSchedule = 1.0,
    mu_dtype: Any = None,
) -> Transform:
    """Lion with a smooth sign, so that steps shrink where the momentum does.

        u = tanh(κ(β₁m + (1 − β₁)g))
        m ← β₂m + (1 − β₂)g

    Args:
        b1, b2, mu_dtype: as for `scale_by_lion`.
        smooth_beta: κ > 0, one over the size that counts as large; gradients set its unit.
    """
    return rule(
        "scale_by_smooth_lion",
        smooth_lion_step,
        slots=lion_slots,
        hyper={"b1": b1, "b2": b2, "smooth_beta": smooth_beta},
        static={"mu_dtype": dtype_name(mu_dtype, "scale_by_smooth_lion", "mu_dtype")},
        domain={"b1": DECAY, "b2": DECAY, "smooth_beta": POSITIVE},
    )


def refined_lion_step(g, s, p, *, b1, b2):
    u = jnp.clip(b1 * s["mu"] + (1 - b1) * g, -1, 1)
    return u, {"mu": b2 * s["mu"] + (1 - b2) * g}


def scale_by_refined_lion(b1: ScalarOrSchedule = 0.9, b2: ScalarOrSchedule = 0.99, mu_dtype: Any = None) -> Transform:
    """Lion that takes the momentum itself where that is smaller than 1.

        u = clip(β₁m + (1 − β₁)g, −1, 1)
        m ← β₂m + (1 − β₂)g

    Args:
        b1, b2, mu_dtype: as for `scale_by_lion`.

    Gradients must be about 1 for this to differ from momentum at one end and from Lion at the other.
    """
    return rule(
        "scale_by_refined_lion",
        refined_lion_step,
        slots=lion_slots,
        hyper={"b1": b1, "b2": b2},
        static={"mu_dtype": dtype_name(mu_dtype, "scale_by_refined_lion", "mu_dtype")},
        domain={"b1": DECAY, "b2": DECAY},
    )
