"""MADGRAD: dual averaging with cube roots and momentum."""

import jax.numpy as jnp

from jopt.scalars import DECAY, NONNEGATIVE, ScalarOrSchedule
from jopt.transform import Transform, rule


def madgrad_slots(p):
    return {"grad_sum_sq": jnp.zeros_like(p), "s": jnp.zeros_like(p), "x0": p}


def madgrad_shared(*, t, learning_rate, eps):
    rate = jnp.where(learning_rate > 0, learning_rate + eps, jnp.zeros_like(learning_rate))
    return {"weight": rate * jnp.sqrt(t)}


def madgrad_step(g, s, p, *, momentum, eps, weight):
    v = s["grad_sum_sq"] + weight * g * g
    total = s["s"] + weight * g
    from_start = s["x0"] - p  # their difference first: equal ones give exactly 0
    u = (1 - momentum) * (from_start - total / (jnp.cbrt(v) + eps))
    return u, {"grad_sum_sq": v, "s": total, "x0": s["x0"]}


def scale_by_madgrad(
    learning_rate: ScalarOrSchedule, momentum: ScalarOrSchedule = 0.9, eps: ScalarOrSchedule = 1e-6
) -> Transform:
    """Step towards the point that dual averaging of all gradients reaches from the start.

        λ = (γ + ε)√t,   s ← s + λg,   v ← v + λg²
        z = x₀ − s / (∛v + ε)
        u = (1 − μ)(z − p)

    Last in a chain: u is the step itself, downhill and with the learning rate in it.

    Args:
        learning_rate: γ ≥ 0; 0 adds nothing to the sums.
        momentum: μ in [0, 1), the part of the way to z that is not gone.
        eps: ε > 0; 0 divides 0 by 0 where a gradient was never seen.

    Differs: γ = 0 is a rate of 0; in optax and in the authors' code it is one of ε.
    Reference: [defazio2021adaptivity], Algorithm 1.
    """
    return rule(
        "scale_by_madgrad",
        madgrad_step,
        slots=madgrad_slots,
        shared=madgrad_shared,
        hyper={"learning_rate": learning_rate, "momentum": momentum, "eps": eps},
        domain={"learning_rate": NONNEGATIVE, "momentum": DECAY, "eps": NONNEGATIVE},
    )
