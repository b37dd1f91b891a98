"""Coin betting: parameters as wealth, and no rate at all."""

import jax.numpy as jnp

from jopt.scalars import POSITIVE, ScalarOrSchedule
from jopt.transform import Transform, rule


def cocob_slots(p, *, eps):
    return {
        "x0": p,
        "sum": jnp.zeros_like(p),
        "scale": jnp.full_like(p, eps.astype(p.dtype)),
        "sum_abs": jnp.zeros_like(p),
        "reward": jnp.zeros_like(p),
    }


def cocob_step(g, s, p, *, alpha):
    top = jnp.maximum(s["scale"], jnp.abs(g))
    total_abs, total = s["sum_abs"] + jnp.abs(g), s["sum"] - g
    reward = jnp.maximum(s["reward"] - g * (p - s["x0"]), 0)
    bet = total / top * ((top + reward) / jnp.maximum(total_abs + top, alpha * top))
    new = {"x0": s["x0"], "sum": total, "scale": top, "sum_abs": total_abs, "reward": reward}
    return s["x0"] - p + bet, new


def scale_by_cocob(alpha: ScalarOrSchedule = 100.0, eps: ScalarOrSchedule = 1e-8) -> Transform:
    """Bet on the sign of each gradient, and stand at the first parameters plus the bet (COCOB-Backprop).

        L ← max(L, |g|),   G ← G + |g|,   θ ← θ − g
        R ← max(R − g(p − p₀), 0)
        u = p₀ − p + θ / (L max(G + L, αL)) · (L + R)

    u is the step itself, to be added: put it last in a chain, and no learning rate after it.

    Args:
        alpha: α > 0; larger begins with smaller bets.
        eps: the first L > 0.

    Reference: [orabona2017training], Algorithm 2.
    """
    return rule(
        "scale_by_cocob",
        cocob_step,
        slots=cocob_slots,
        hyper={"alpha": alpha, "eps": eps},
        domain={"alpha": POSITIVE, "eps": POSITIVE},
    )
