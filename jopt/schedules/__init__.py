"""Schedules: functions of the step for the learning rate, and for every other number.

    schedule = warmup_cosine_decay_schedule(0.0, 1e-3, warmup_steps=100, decay_steps=1000)
    schedule(0)         # the value of the first update
    schedule.plot()     # a picture

Names, arguments and defaults are optax's where optax has the schedule. All of them: take whole steps
and compute with them exactly up to 2³¹ − 1; hold the first value before step 0 and the last one after
the end (cycles go on for ever); return float32 (float64 under x64), never a weak type; compare, hash,
pickle and print by their arguments; and run under jit, vmap and grad, also over their own numbers.
Concrete arguments that make no sense are errors where the schedule is made.
"""

from jopt.schedules._cycle import (
    cosine_onecycle_schedule,
    cosine_restarts_schedule,
    cyclical_schedule,
    linear_onecycle_schedule,
    one_cycle_momentum_schedule,
    sgdr_schedule,
)
from jopt.schedules._decay import (
    constant_schedule,
    cosine_decay_schedule,
    exponential_decay,
    half_life_schedule,
    inverse_time_decay_schedule,
    linear_schedule,
    polynomial_schedule,
    step_decay_schedule,
)
from jopt.schedules._pieces import join_schedules, piecewise_constant_schedule, piecewise_interpolate_schedule
from jopt.schedules._schedule import Schedule
from jopt.schedules._warmup import (
    inverse_sqrt_schedule,
    warmup,
    warmup_constant_schedule,
    warmup_cosine_decay_schedule,
    warmup_exponential_decay_schedule,
    warmup_stable_decay_schedule,
)

__all__ = [
    "Schedule",
    "constant_schedule",
    "cosine_decay_schedule",
    "cosine_onecycle_schedule",
    "cosine_restarts_schedule",
    "cyclical_schedule",
    "exponential_decay",
    "half_life_schedule",
    "inverse_sqrt_schedule",
    "inverse_time_decay_schedule",
    "join_schedules",
    "linear_onecycle_schedule",
    "linear_schedule",
    "one_cycle_momentum_schedule",
    "piecewise_constant_schedule",
    "piecewise_interpolate_schedule",
    "polynomial_schedule",
    "sgdr_schedule",
    "step_decay_schedule",
    "warmup",
    "warmup_constant_schedule",
    "warmup_cosine_decay_schedule",
    "warmup_exponential_decay_schedule",
    "warmup_stable_decay_schedule",
]
