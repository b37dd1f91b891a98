"""Averages of the parameters, kept for evaluation."""

from typing import Any

from jopt.partition import chain
from jopt.scalars import FRACTION, ScalarOrSchedule
from jopt.state import AVERAGED
from jopt.transform import Transform, rule


def average_slots(p):
    return {AVERAGED: p}


def average_step(u, s, p, *, decay):
    return u, {AVERAGED: decay * s[AVERAGED] + (1 - decay) * (p + u)}


def average_params(decay: ScalarOrSchedule) -> Transform:
    """Keep an exponential moving average of the stepped parameters; the update passes unchanged.

        a ← δa + (1 − δ)(p + u),   a₀ = p₀
        u = u

    Last in a chain, after `scale_by_learning_rate`; `ema` puts it there.

    Args:
        decay: δ in [0, 1], a number or a schedule such as ``lambda n: jnp.minimum(0.999, (1 + n) / (10 + n))``.

    The average is float32 or wider, and of p + u before it is rounded to a narrower parameter.
    Reference: [polyak1992acceleration].
    """
    return rule("average_params", average_step, slots=average_slots, hyper={"decay": decay}, domain={"decay": FRACTION})


def ema(tx: Any, decay: ScalarOrSchedule = 0.999) -> Transform:
    """Keep an exponential moving average of the parameters beside a transform.

    Evaluate with ``eval_params(state, params)``.

    Args:
        tx: the transform that steps.
        decay: as for `average_params`.

    Differs: optax's `ema` averages the updates; that is our `scale_by_ema`.

    Raises:
        TypeError: `tx` is no transform.
    """
    if isinstance(tx, int | float) or tx is None:
        raise TypeError(
            f"ema: {tx!r} was given, a transform was expected. "
            f"For optax's ema of the updates call scale_by_ema({tx!r})."
        )
    return chain(tx, average_params(decay))
