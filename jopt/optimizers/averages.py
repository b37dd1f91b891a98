"""Optimizers that average their iterates."""

from typing import Any

from jopt.optimizers.classic import adamw, sgd
from jopt.partition import chain
from jopt.regularize import add_decayed_weights
from jopt.rules import scale_by_learning_rate, scale_by_rms
from jopt.scalars import ScalarOrSchedule
from jopt.schedules import warmup_constant_schedule
from jopt.transform import Transform
from jopt.wrap.interpolate import gpa, schedule_free

__all__ = ["gpa_adamw", "schedule_free_adamw", "schedule_free_sgd"]


def _warmed_up(learning_rate, warmup_steps):
    if warmup_steps is None:
        return learning_rate
    return warmup_constant_schedule(init_value=0.0, peak_value=learning_rate, warmup_steps=warmup_steps)


def _weighing(rate):
    """What weighs the average: a schedule itself; of a number, the live one of the base."""
    return rate if callable(rate) else None


def schedule_free_sgd(
    learning_rate: ScalarOrSchedule = 1.0,
    warmup_steps: int | None = None,
    b1: ScalarOrSchedule = 0.9,
    weight_decay: ScalarOrSchedule | None = None,
    weight_lr_power: ScalarOrSchedule = 2.0,
    state_dtype: Any = None,
) -> Transform:
    """Schedule-Free gradient descent: no schedule but a warm-up, the averaged parameters for evaluation.

    See `schedule_free`; the decay is taken at y.
    """
    rate = _warmed_up(learning_rate, warmup_steps)
    decay = [] if weight_decay is None else [add_decayed_weights(weight_decay)]
    return schedule_free(chain(*decay, sgd(rate)), _weighing(rate), b1, weight_lr_power, state_dtype)


def schedule_free_adamw(
    learning_rate: ScalarOrSchedule = 0.0025,
    warmup_steps: int | None = None,
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-8,
    weight_decay: ScalarOrSchedule = 0.0,
    weight_lr_power: ScalarOrSchedule = 2.0,
    state_dtype: Any = None,
) -> Transform:
    """Schedule-Free AdamW: no schedule but a warm-up, the averaged parameters for evaluation.

    See `schedule_free`; the base is AdamW without first moment, its decay taken at y.
    """
    rate = _warmed_up(learning_rate, warmup_steps)
    base = chain(
        scale_by_rms(b2, eps, eps_in_sqrt=False, bias_correction=True),
        add_decayed_weights(weight_decay),
        scale_by_learning_rate(rate),
    )
    return schedule_free(base, _weighing(rate), b1, weight_lr_power, state_dtype)


def gpa_adamw(
    learning_rate: ScalarOrSchedule,
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-8,
    weight_decay: ScalarOrSchedule = 1e-4,
    mask: Any = None,
    *,
    mu_x: ScalarOrSchedule = 0.9967,
    mu_y: ScalarOrSchedule = 0.7,
    state_dtype: Any = None,
    where: Any = None,
) -> Transform:
    """AdamW with Generalized Primal Averaging: an exponential average that gradients are taken close to.

    See `gpa`.
    """
    base = adamw(learning_rate, b1, b2, eps, weight_decay=weight_decay, mask=mask, where=where)
    return gpa(base, mu_x, mu_y, state_dtype)
