"""Scaling by a number: the only place where an update is turned downhill."""

import jax.numpy as jnp

from jopt.scalars import NONNEGATIVE, POSITIVE, ScalarOrSchedule, Schedule
from jopt.transform import Transform, make_transform, rule


def learning_rate_step(g, s, p, *, learning_rate):
    return -learning_rate * g, s


def scale_by_learning_rate(learning_rate: ScalarOrSchedule | None, *, flip_sign: bool = True) -> Transform:
    """Turn the update downhill and scale it by the learning rate.

        u = −γ g

    Args:
        learning_rate: γ ≥ 0, a number or a schedule; None leaves the update as it is.
        flip_sign: False keeps the sign, which is `scale`.
    """
    if learning_rate is None:
        return identity()
    if not flip_sign:
        return scale(learning_rate)
    return rule(
        "scale_by_learning_rate",
        learning_rate_step,
        hyper={"learning_rate": learning_rate},
        domain={"learning_rate": NONNEGATIVE},
    )


def corrected_decay_step(g, s, p, *, learning_rate, weight_decay, max_learning_rate):
    return -learning_rate * (g + weight_decay * (learning_rate / max_learning_rate) * p), s


def peak_slots(p):
    return {"peak": jnp.zeros((), jnp.finfo(p.dtype).dtype)}


def peak_decay_step(g, s, p, *, learning_rate, weight_decay):
    peak = jnp.maximum(s["peak"], learning_rate)
    share = learning_rate / jnp.where(peak > 0, peak, jnp.ones_like(peak))
    return -learning_rate * (g + weight_decay * share * p), {"peak": peak}


def scale_with_corrected_decay(
    learning_rate: ScalarOrSchedule,
    weight_decay: ScalarOrSchedule,
    max_learning_rate: ScalarOrSchedule | None = None,
) -> Transform:
    """Turn the update downhill and decay the weights, by less as the learning rate falls (AdamC).

        u = −γ (g + λ(γ / γ_max) p)

    In the place of `add_decayed_weights` and `scale_by_learning_rate`: one rule, so that one learning rate
    sets both.

    Args:
        learning_rate: γ ≥ 0, a number or a schedule.
        weight_decay: λ.
        max_learning_rate: γ_max > 0, the largest value of γ over the run; None takes the largest so far,
            which differs from it in a warm-up alone.

    With λγ² for λγ a normalised layer keeps its norm, and its gradient does not grow, where γ falls to zero.
    Reference: [defazio2025gradients].
    """
    numbers = {"learning_rate": learning_rate, "weight_decay": weight_decay}
    name, domain = "scale_with_corrected_decay", {"learning_rate": NONNEGATIVE, "max_learning_rate": POSITIVE}
    if max_learning_rate is None:
        return rule(name, peak_decay_step, slots=peak_slots, hyper=numbers, domain=domain)
    return rule(name, corrected_decay_step, hyper=numbers | {"max_learning_rate": max_learning_rate}, domain=domain)


def scale_step(g, s, p, *, step_size):
    return step_size * g, s


def scale(step_size: ScalarOrSchedule) -> Transform:
    """Multiply the update by a number of any sign.

        u = c g

    Args:
        step_size: c.
    """
    return rule("scale", scale_step, hyper={"step_size": step_size})


def scale_by_schedule(step_size_fn: Schedule) -> Transform:
    """Multiply the update by a schedule; the same as `scale`, under optax's name.

    u = c(count) g

    Args:
        step_size_fn: a callable of the integer step, which is 0 at the first update.
    """
    return scale(step_size_fn)


def set_to_zero_step(g, s, p):
    return jnp.zeros_like(g), s


def set_to_zero() -> Transform:
    """Replace the update by zero, whatever the gradient is.

    u = 0
    """
    return rule("set_to_zero", set_to_zero_step)


def identity() -> Transform:
    """Leave the update as it is: the chain of nothing.

    u = g
    """
    return make_transform(())
