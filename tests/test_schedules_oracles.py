"""Values of jopt.schedules against float64 transcriptions of their formulas, and against optax."""

import inspect
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jopt import schedules
from jopt.schedules import (
    constant_schedule,
    cosine_decay_schedule,
    cosine_onecycle_schedule,
    cosine_restarts_schedule,
    cyclical_schedule,
    exponential_decay,
    inverse_sqrt_schedule,
    inverse_time_decay_schedule,
    join_schedules,
    linear_onecycle_schedule,
    linear_schedule,
    one_cycle_momentum_schedule,
    piecewise_constant_schedule,
    piecewise_interpolate_schedule,
    polynomial_schedule,
    step_decay_schedule,
    warmup,
    warmup_constant_schedule,
    warmup_cosine_decay_schedule,
    warmup_exponential_decay_schedule,
    warmup_stable_decay_schedule,
)

LAST = 2**31 - 1
BIG = [2**24 - 1, 2**24, 2**24 + 1, 2**25 + 1, 2**31 - 2, 2**31 - 1]


def precision(double):
    return jax.enable_x64(double) if hasattr(jax, "enable_x64") else jax.experimental.enable_x64(double)


@pytest.fixture(autouse=True)
def single_precision():
    with precision(False):
        yield


# Oracles: float64, one step at a time, written from the formulas


def ramp(t, start, end, steps):
    x = 1.0 if steps == 0 else min(max(t / steps, 0.0), 1.0)
    return start + (end - start) * x


def half_cosine(t, start, end, steps, exponent=1.0):
    x = 1.0 if steps == 0 else min(max(t / steps, 0.0), 1.0)
    return end + (start - end) * (0.5 * (1 + math.cos(math.pi * x))) ** exponent


def oracle_linear(t, init_value, end_value, transition_steps, transition_begin=0):
    return ramp(t - transition_begin, init_value, end_value, transition_steps)


def oracle_polynomial(t, init_value, end_value, power, transition_steps, transition_begin=0):
    x = min(max((t - transition_begin) / transition_steps, 0), 1)
    return end_value + (init_value - end_value) * (1 - x) ** power


def oracle_exponential(
    t, init_value, transition_steps, decay_rate, transition_begin=0, staircase=False, end_value=None
):
    elapsed = max(t - transition_begin, 0)
    exponent = elapsed // transition_steps if staircase else elapsed / transition_steps
    value = init_value * math.exp(min(exponent * math.log(decay_rate), 700.0))
    if end_value is not None:
        value = max(value, end_value) if decay_rate < 1 else min(value, end_value)
    return value


def oracle_half_life(t, init_value, end_value, transition_steps):
    half_lives = [math.log(0.5) / math.log(value) for value in (init_value, end_value)]
    x = min(t / transition_steps, 1.0)
    return 0.5 ** (1 / ((1 - x) * half_lives[0] + x * half_lives[1]))


def oracle_cosine(t, init_value, decay_steps, alpha=0.0, exponent=1.0):
    return half_cosine(t, init_value, alpha * init_value, decay_steps, exponent)


def oracle_step_decay(t, init_value, step_size, decay_rate):
    return init_value * decay_rate ** (t // step_size)


def oracle_inverse_time(t, init_value, decay_rate, transition_steps=1, staircase=False):
    return init_value / (1 + decay_rate * (t // transition_steps if staircase else t / transition_steps))


def oracle_piecewise_constant(t, init_value, boundaries_and_scales):
    return init_value * math.prod(scale for boundary, scale in boundaries_and_scales.items() if boundary <= t)


def oracle_piecewise_interpolate(t, interpolate_type, init_value, boundaries_and_scales):
    curve = {"linear": ramp, "cosine": half_cosine}[interpolate_type]
    begin, value = 0, init_value
    for boundary in sorted(boundaries_and_scales):
        target = value * boundaries_and_scales[boundary]
        if t < boundary:
            return curve(t - begin, value, target, boundary - begin)
        begin, value = boundary, target
    return value


def oracle_warmup_constant(t, init_value, peak_value, warmup_steps):
    return ramp(t, init_value, peak_value, warmup_steps)


def oracle_warmup_cosine(t, init_value, peak_value, warmup_steps, decay_steps, end_value=0.0, exponent=1.0):
    if t < warmup_steps:
        return ramp(t, init_value, peak_value, warmup_steps)
    return half_cosine(t - warmup_steps, peak_value, end_value, decay_steps - warmup_steps, exponent)


def oracle_warmup_exponential(t, init_value, peak_value, warmup_steps, transition_steps, decay_rate, **rest):
    if t < warmup_steps:
        return ramp(t, init_value, peak_value, warmup_steps)
    return oracle_exponential(t - warmup_steps, peak_value, transition_steps, decay_rate, **rest)


def oracle_inverse_sqrt(t, peak_value, warmup_steps, init_value=0.0, timescale=None):
    if t < warmup_steps:
        return ramp(t, init_value, peak_value, warmup_steps)
    if timescale is None and warmup_steps:
        return peak_value * math.sqrt(warmup_steps / t)
    return peak_value / math.sqrt(1 + (t - warmup_steps) / (timescale or 1))


def oracle_warmup_stable_decay(
    t, peak_value, warmup_steps, stable_steps, decay_steps, init_value=0.0, end_value=0.0, decay="linear"
):
    if t < warmup_steps:
        return ramp(t, init_value, peak_value, warmup_steps)
    x = 0.0
    if t >= warmup_steps + stable_steps:
        x = 1.0 if decay_steps == 0 else min((t - warmup_steps - stable_steps) / decay_steps, 1.0)
    f = {"linear": 1 - x, "cosine": 0.5 + 0.5 * math.cos(math.pi * x), "sqrt": 1 - math.sqrt(x)}[decay]
    return end_value + (peak_value - end_value) * f


def oracle_sgdr(t, cosine_kwargs):
    for kwargs in cosine_kwargs[:-1]:
        if t < kwargs["decay_steps"]:
            return oracle_warmup_cosine(t, **kwargs)
        t -= kwargs["decay_steps"]
    return oracle_warmup_cosine(t, **cosine_kwargs[-1])


def oracle_cosine_restarts(t, init_value, first_decay_steps, t_mul=2, m_mul=1.0, alpha=0.0):
    if t_mul == 1:
        cycle, t, length = t // first_decay_steps, t % first_decay_steps, first_decay_steps
    else:
        cycle, length = 0, first_decay_steps
        while t >= length:
            t, length, cycle = t - length, length * t_mul, cycle + 1
    return init_value * (alpha + (1 - alpha) * m_mul**cycle * 0.5 * (1 + math.cos(math.pi * t / length)))


def oracle_cyclical(t, init_value, peak_value, half_cycle_steps, mode="triangular", gamma=None):
    cycle = 1 + t // (2 * half_cycle_steps)
    # |t/h − 2·cycle + 1| in whole numbers, as float64 loses the place within a cycle of three steps
    x = abs(t - (2 * cycle - 1) * half_cycle_steps) / half_cycle_steps
    height = {"triangular": 1.0, "triangular2": 0.5 ** (cycle - 1), "exp_range": (gamma or 1.0) ** t}[mode]
    return init_value + (peak_value - init_value) * max(0.0, 1 - x) * height


def oracle_linear_onecycle(
    t, transition_steps, peak_value, pct_start=0.3, pct_final=0.85, div_factor=25.0, final_div_factor=1e4
):
    up, back = int(pct_start * transition_steps), int(pct_final * transition_steps)
    first = peak_value / div_factor
    if t < up:
        return ramp(t, first, peak_value, up)
    if t < back:
        return ramp(t - up, peak_value, first, back - up)
    return ramp(t - back, first, first / final_div_factor, transition_steps - back)


def oracle_cosine_onecycle(t, transition_steps, peak_value, pct_start=0.3, div_factor=25.0, final_div_factor=1e4):
    up, first = int(pct_start * transition_steps), peak_value / div_factor
    if t < up:
        return half_cosine(t, first, peak_value, up)
    return half_cosine(t - up, peak_value, first / final_div_factor, transition_steps - up)


def oracle_one_cycle_momentum(t, transition_steps, high_value=0.95, low_value=0.85, pct_start=0.3):
    up = int(pct_start * transition_steps)
    if t < up:
        return half_cosine(t, high_value, low_value, up)
    return half_cosine(t - up, low_value, high_value, transition_steps - up)


# For each: the transcription, and arguments; later ones have phases that end where float32 fails.
CYCLE = {"init_value": 0.1, "peak_value": 0.8, "warmup_steps": 5, "decay_steps": 20}
ORACLES = {
    "constant_schedule": (lambda t, value: value, [{"value": 0.3}, {"value": -1.5}]),
    "linear_schedule": (
        oracle_linear,
        [
            {"init_value": 0.1, "end_value": 0.9, "transition_steps": 20, "transition_begin": 5},
            {"init_value": 0.0, "end_value": 0.9, "transition_steps": 2**26},
            {"init_value": 1.0, "end_value": 0.0, "transition_steps": 2, "transition_begin": 2**25},
            {"init_value": 1.0, "end_value": 0.0, "transition_steps": LAST, "transition_begin": LAST - 3},
        ],
    ),
    "polynomial_schedule": (
        oracle_polynomial,
        [
            {"init_value": 0.1, "end_value": 0.9, "power": 3, "transition_steps": 20, "transition_begin": 5},
            {"init_value": 0.9, "end_value": 0.1, "power": 0.5, "transition_steps": 20},
            {"init_value": 0.9, "end_value": 0.0, "power": 2.0, "transition_steps": 2**25 + 3},
        ],
    ),
    "exponential_decay": (
        oracle_exponential,
        [
            {"init_value": 0.9, "transition_steps": 10, "decay_rate": 0.5, "transition_begin": 5, "end_value": 0.1},
            {"init_value": 0.9, "transition_steps": 7, "decay_rate": 0.96, "staircase": True},
            {"init_value": 1e-3, "transition_steps": 1, "decay_rate": 0.9999},
            {"init_value": 1e-3, "transition_steps": 10, "decay_rate": 1.5, "end_value": 0.1},
            {"init_value": 1.0, "transition_steps": 2**24 + 1, "decay_rate": 0.5, "staircase": True},
            {"init_value": 1.0, "transition_steps": 3, "decay_rate": 0.1, "transition_begin": 2**25},
        ],
    ),
    "half_life_schedule": (
        oracle_half_life,
        [
            {"init_value": 0.9, "end_value": 0.9999, "transition_steps": 1000},
            {"init_value": 0.8, "end_value": 0.2, "transition_steps": 20},
            {"init_value": 0.9, "end_value": 0.99, "transition_steps": LAST},
        ],
    ),
    "cosine_decay_schedule": (
        oracle_cosine,
        [
            {"init_value": 0.8, "decay_steps": 30},
            {"init_value": 0.8, "decay_steps": 30, "alpha": 0.1, "exponent": 2.5},
            {"init_value": 0.8, "decay_steps": 2**25 + 3},
            {"init_value": 0.8, "decay_steps": LAST},
        ],
    ),
    "step_decay_schedule": (
        oracle_step_decay,
        [
            {"init_value": 0.8, "step_size": 10, "decay_rate": 0.5},
            {"init_value": 0.8, "step_size": 2**24 + 1, "decay_rate": 0.1},
        ],
    ),
    "inverse_time_decay_schedule": (
        oracle_inverse_time,
        [
            {"init_value": 0.8, "decay_rate": 0.5},
            {"init_value": 0.8, "decay_rate": 0.5, "transition_steps": 10, "staircase": True},
            {"init_value": 0.8, "decay_rate": 0.5, "transition_steps": 2**24 + 1, "staircase": True},
            {"init_value": 0.8, "decay_rate": 0.0},
        ],
    ),
    "piecewise_constant_schedule": (
        oracle_piecewise_constant,
        [
            {"init_value": 0.8, "boundaries_and_scales": {20: 0.5, 10: 0.1}},
            {"init_value": 0.8, "boundaries_and_scales": {2**24 + 1: 0.5, 2**25 + 1: 0.0, 0: 2.0}},
            {"init_value": 0.8, "boundaries_and_scales": {}},
        ],
    ),
    "piecewise_interpolate_schedule": (
        oracle_piecewise_interpolate,
        [
            {"interpolate_type": "linear", "init_value": 0.1, "boundaries_and_scales": {10: 8.0, 30: 0.5}},
            {"interpolate_type": "cosine", "init_value": 0.1, "boundaries_and_scales": {10: 8.0, 30: 0.0}},
            {"interpolate_type": "linear", "init_value": 0.1, "boundaries_and_scales": {0: 8.0, 2**24: 1.0}},
            {"interpolate_type": "linear", "init_value": 0.1, "boundaries_and_scales": {2**25: 1.0, 2**25 + 2: 9.0}},
        ],
    ),
    "warmup_constant_schedule": (
        oracle_warmup_constant,
        [
            {"init_value": 0.1, "peak_value": 0.8, "warmup_steps": 10},
            {"init_value": 0.1, "peak_value": 0.8, "warmup_steps": 0},
            {"init_value": 0.0, "peak_value": 0.8, "warmup_steps": LAST},
        ],
    ),
    "warmup_cosine_decay_schedule": (
        oracle_warmup_cosine,
        [
            {"init_value": 0.1, "peak_value": 0.8, "warmup_steps": 10, "decay_steps": 40, "end_value": 0.05},
            {"init_value": 0.1, "peak_value": 0.8, "warmup_steps": 0, "decay_steps": 40, "exponent": 2.0},
            {"init_value": 0.1, "peak_value": 0.8, "warmup_steps": 2**24, "decay_steps": 2**24 + 2},
            {"init_value": 0.1, "peak_value": 0.8, "warmup_steps": LAST - 1, "decay_steps": LAST},
        ],
    ),
    "warmup_exponential_decay_schedule": (
        oracle_warmup_exponential,
        [
            {"init_value": 0.1, "peak_value": 0.8, "warmup_steps": 10, "transition_steps": 10, "decay_rate": 0.5},
            {
                "init_value": 0.1,
                "peak_value": 0.8,
                "warmup_steps": 0,
                "transition_steps": 10,
                "decay_rate": 0.5,
                "transition_begin": 7,
                "staircase": True,
                "end_value": 0.15,
            },
            {"init_value": 0.1, "peak_value": 0.8, "warmup_steps": 2**25, "transition_steps": 1, "decay_rate": 0.5},
        ],
    ),
    "inverse_sqrt_schedule": (
        oracle_inverse_sqrt,
        [
            {"peak_value": 0.8, "warmup_steps": 10, "init_value": 0.1},
            {"peak_value": 0.8, "warmup_steps": 0},
            {"peak_value": 0.8, "warmup_steps": 10, "timescale": 1000},
            {"peak_value": 0.8, "warmup_steps": LAST - 1},
        ],
    ),
    "warmup_stable_decay_schedule": (
        oracle_warmup_stable_decay,
        [
            *(
                {"peak_value": 0.8, "warmup_steps": w, "stable_steps": s, "decay_steps": d, "decay": decay}
                for decay in ("linear", "cosine", "sqrt")
                for w, s, d in [(10, 20, 15), (0, 20, 15), (10, 0, 15), (10, 20, 0), (0, 0, 0), (9, 2**25 - 9, 3)]
            ),
            {"peak_value": 0.8, "warmup_steps": LAST, "stable_steps": LAST, "decay_steps": LAST, "end_value": 0.1},
            {"peak_value": 0.8, "warmup_steps": 5, "stable_steps": LAST, "decay_steps": LAST, "init_value": 0.1},
        ],
    ),
    "sgdr_schedule": (
        oracle_sgdr,
        [
            {"cosine_kwargs": [CYCLE, CYCLE | {"peak_value": 0.4, "warmup_steps": 0, "end_value": 0.01}]},
            {"cosine_kwargs": [CYCLE | {"decay_steps": 2**24 - 1}, CYCLE | {"decay_steps": LAST}, CYCLE, CYCLE]},
        ],
    ),
    "cosine_restarts_schedule": (
        oracle_cosine_restarts,
        [
            *(
                {"init_value": 0.8, "first_decay_steps": first, "t_mul": t_mul, "m_mul": m_mul, "alpha": alpha}
                for first in (1, 7, 2**24 + 1, LAST)
                for t_mul, m_mul, alpha in [(1, 0.9, 0.0), (2, 1.0, 0.1), (3, 0.5, 0.2), (2**20, 0.5, 0.0)]
            ),
        ],
    ),
    "cyclical_schedule": (
        oracle_cyclical,
        [
            {"init_value": 0.1, "peak_value": 0.8, "half_cycle_steps": 10},
            {"init_value": 0.1, "peak_value": 0.8, "half_cycle_steps": 3},
            {"init_value": 0.1, "peak_value": 0.8, "half_cycle_steps": 1},
            {"init_value": 0.1, "peak_value": 0.8, "half_cycle_steps": 10, "mode": "triangular2"},
            {"init_value": 0.1, "peak_value": 0.8, "half_cycle_steps": 10, "mode": "exp_range", "gamma": 0.99},
            {"init_value": 0.1, "peak_value": 0.8, "half_cycle_steps": LAST, "mode": "triangular2"},
        ],
    ),
    "linear_onecycle_schedule": (
        oracle_linear_onecycle,
        [
            {"transition_steps": 40, "peak_value": 0.8},
            {"transition_steps": 40, "peak_value": 0.8, "pct_final": 1.0},
            {"transition_steps": 40, "peak_value": 0.8, "pct_start": 0.0, "pct_final": 0.0},
            {"transition_steps": 1, "peak_value": 0.8},
            {"transition_steps": 2**25 + 7, "peak_value": 0.8, "final_div_factor": 2.0},
        ],
    ),
    "cosine_onecycle_schedule": (
        oracle_cosine_onecycle,
        [
            {"transition_steps": 40, "peak_value": 0.8},
            {"transition_steps": 40, "peak_value": 0.8, "pct_start": 1.0},
            {"transition_steps": 40, "peak_value": 0.8, "pct_start": 0.0, "div_factor": 2.0},
            {"transition_steps": 2**25 + 7, "peak_value": 0.8},
        ],
    ),
    "one_cycle_momentum_schedule": (
        oracle_one_cycle_momentum,
        [
            {"transition_steps": 40},
            {"transition_steps": 2**25 + 7, "high_value": 0.99, "low_value": 0.5, "pct_start": 0.5},
        ],
    ),
}


@pytest.mark.parametrize("name", ORACLES)
def test_schedule_is_its_transcription(name):
    oracle, arguments = ORACLES[name]
    near = [count + shift for count in BIG for shift in (-3, -2, 0, 1, 2)]
    counts = [*range(130), 1000, 12345, *(count for count in near if count <= LAST)]
    for kwargs in arguments:
        schedule = getattr(schedules, name)(**kwargs)
        expected = np.array([oracle(count, **kwargs) for count in counts])
        scale = np.abs(expected).max()
        np.testing.assert_allclose(schedule(np.array(counts)), expected, 2e-6, 2e-7 * scale, err_msg=repr(schedule))
        with precision(True):
            np.testing.assert_allclose(schedule(np.array(counts)), expected, 1e-12, 1e-14 * scale, err_msg=repr(kwargs))


def test_every_schedule_has_a_transcription_or_is_made_of_others():
    assert set(schedules.__all__) - set(ORACLES) == {"Schedule", "join_schedules", "warmup"}


def test_join_and_warmup_pass_each_schedule_its_own_step():
    asked = lambda count: count.astype(jnp.float32)  # noqa: E731
    joined = join_schedules([asked, asked, asked, asked], [3, 3, 2**24 + 1])
    np.testing.assert_array_equal(joined(np.array([0, 2, 3, 10])), [0, 2, 0, 7])
    np.testing.assert_array_equal(joined(np.array([2**24 + 1, 2**24 + 3])), [0, 2])
    fall = linear_schedule(1.0, 0.0, 10)
    for steps in (0, 4, 2**24 + 1):
        warmed = warmup(fall, steps, 0.2)
        counts = steps + np.arange(12)
        np.testing.assert_array_equal(warmed(counts), fall(np.arange(12)))
        np.testing.assert_allclose(warmed(0), 0.2 if steps else 1.0, rtol=1e-6)
    np.testing.assert_allclose(warmup(fall, 4, 0.2)(np.arange(5)), [0.2, 0.4, 0.6, 0.8, 1.0], rtol=1e-6)


def test_join_never_asks_for_a_negative_step():
    schedule = join_schedules([constant_schedule(1.0), lambda count: 1.0 / (1.0 + count.astype(jnp.float32))], [5])
    assert float(jax.grad(lambda x: x * schedule(4))(1.0)) == 1.0
    seen = []
    join_schedules([constant_schedule(1.0), lambda count: seen.append(int(count)) or 1.0], [5])(2)
    assert seen == [0]


def test_jumps_are_at_the_very_step():
    for step in (7, 2**24 - 1, 2**24 + 1, 2**25 + 1, 2**31 - 2, 2**31 - 1):
        for schedule in (
            exponential_decay(1.0, step, 0.5, staircase=True),
            step_decay_schedule(1.0, step, 0.5),
            piecewise_constant_schedule(1.0, {step: 0.5}),
            join_schedules([constant_schedule(1.0), constant_schedule(0.5)], [step]),
            inverse_time_decay_schedule(1.0, 1.0, step, staircase=True),
        ):
            np.testing.assert_array_equal(schedule(np.array([step - 1, step])), [1.0, 0.5], err_msg=repr(schedule))


def test_first_and_last_values_are_exact():
    rates = (0.1, 1e-3, 3e-4)
    for low, high in itertools.permutations(rates, 2):
        for schedule, last in (
            (linear_schedule(low, high, 7), 7),
            (polynomial_schedule(low, high, 3.0, 7), 7),
            (warmup_stable_decay_schedule(0.5, 3, 2, 2, low, high, "sqrt"), 7),
            (warmup_cosine_decay_schedule(low, 0.5, 3, 7, high), 7),
        ):
            ends = schedule(np.array([0, last]))
            np.testing.assert_array_equal(ends, np.float32([low, high]), err_msg=repr(schedule))


@pytest.mark.parametrize("steps", [7, 20, 41, 47, 1000])
def test_compiled_values_are_exact_at_the_ends_too(steps):
    # x/steps is compiled to x·(1/steps), and 41·(1/41) is not 1 in float32.
    low, high = 0.1, 0.9
    ends = np.array([-1, 0, steps, steps + 1, LAST], np.int32)
    for schedule in (
        linear_schedule(low, high, steps),
        polynomial_schedule(low, high, 2.5, steps),
        warmup_cosine_decay_schedule(low, 0.5, 3, steps, high, 0.5),
        piecewise_interpolate_schedule("cosine", low, {steps: 9.0}),
    ):
        values = jax.jit(schedule)(ends)
        np.testing.assert_array_equal(values, np.float32([low, low, high, high, high]), err_msg=repr(schedule))


@pytest.mark.parametrize(
    ("schedule", "joins"),
    [
        (warmup_cosine_decay_schedule(0.0, 1.0, 1000, 3000), [1000, 3000]),
        (warmup_exponential_decay_schedule(0.0, 1.0, 1000, 1000, 0.5, 500), [1000, 1500]),
        (warmup(inverse_time_decay_schedule(1.0, 1.0, 1000), 1000), [1000]),
        (inverse_sqrt_schedule(1.0, 1000), [1000]),
        (warmup_stable_decay_schedule(1.0, 1000, 1000, 1000), [1000, 2000, 3000]),
        (cyclical_schedule(0.0, 1.0, 1000, "triangular2"), [1000, 2000, 3000, 4000]),
        (linear_onecycle_schedule(4000, 1.0), [1200, 3400, 4000]),
        (cosine_onecycle_schedule(4000, 1.0), [1200, 4000]),
        (one_cycle_momentum_schedule(4000), [1200, 4000]),
        (piecewise_interpolate_schedule("linear", 1.0, {1000: 0.1, 2000: 5.0}), [1000, 2000]),
    ],
    ids=lambda x: type(x).__name__,
)
def test_schedule_is_continuous_at_its_joins(schedule, joins):
    for join in joins:
        before, at, after = schedule(np.array([join - 1, join, join + 1]))
        assert abs(at - before) < 2e-3
        assert abs(after - at) < 2e-3


def test_rate_and_momentum_of_one_cycle_line_up():
    counts = np.arange(1001)
    rate = np.asarray(cosine_onecycle_schedule(1000, 1.0, pct_start=0.4)(counts))
    momentum = np.asarray(one_cycle_momentum_schedule(1000, pct_start=0.4)(counts))
    assert rate.argmax() == momentum.argmin() == 400
    assert (np.sign(np.diff(rate[2:399])) == -np.sign(np.diff(momentum[2:399]))).all()
    assert (np.diff(rate[401:999]) <= 0).all()
    assert (np.diff(momentum[401:999]) >= 0).all()


def test_growth_stops_before_it_overflows():
    for schedule in (exponential_decay(1e-3, 1, 2.0), cosine_restarts_schedule(1.0, 5, 1, m_mul=3.0)):
        assert np.isfinite(schedule(np.array(BIG))).all()
    slope = jax.grad(lambda rate: exponential_decay(1e-3, 1, rate)(LAST))(2.0)
    assert np.isfinite(slope)
    assert exponential_decay(1.0, 1, 1e-60)(np.array([0, 1, LAST])).tolist() == [1.0, 0.0, 0.0]


# Optax


OPTAX = [
    ("constant_schedule", {"value": 0.3}),
    ("linear_schedule", {"init_value": 0.1, "end_value": 0.9, "transition_steps": 20, "transition_begin": 5}),
    ("polynomial_schedule", {"init_value": 0.9, "end_value": 0.1, "power": 3, "transition_steps": 20}),
    ("exponential_decay", {"init_value": 0.9, "transition_steps": 7, "decay_rate": 0.5, "transition_begin": 3}),
    ("exponential_decay", {"init_value": 0.9, "transition_steps": 7, "decay_rate": 0.5, "staircase": True}),
    ("exponential_decay", {"init_value": 0.9, "transition_steps": 7, "decay_rate": 1.5, "end_value": 20.0}),
    ("exponential_decay", {"init_value": 0.9, "transition_steps": 7, "decay_rate": 0.5, "end_value": 0.2}),
    ("cosine_decay_schedule", {"init_value": 0.8, "decay_steps": 30}),
    ("cosine_decay_schedule", {"init_value": 0.8, "decay_steps": 30, "alpha": 0.1, "exponent": 2.0}),
    ("piecewise_constant_schedule", {"init_value": 0.8, "boundaries_and_scales": {20: 0.5, 10: 0.1}}),
    ("piecewise_constant_schedule", {"init_value": 0.8}),
    (
        "piecewise_interpolate_schedule",
        {"interpolate_type": "linear", "init_value": 0.8, "boundaries_and_scales": {9: 0.5, 20: 3.0}},
    ),
    (
        "piecewise_interpolate_schedule",
        {"interpolate_type": "cosine", "init_value": 0.8, "boundaries_and_scales": {9: 0.5, 20: 3.0}},
    ),
    ("sgdr_schedule", {"cosine_kwargs": [CYCLE, CYCLE | {"peak_value": 0.4, "exponent": 2.0}, CYCLE]}),
    ("warmup_constant_schedule", {"init_value": 0.1, "peak_value": 0.8, "warmup_steps": 10}),
    ("warmup_cosine_decay_schedule", CYCLE | {"end_value": 0.05}),
    ("warmup_cosine_decay_schedule", CYCLE | {"warmup_steps": 0}),
    (
        "warmup_exponential_decay_schedule",
        {"init_value": 0.1, "peak_value": 0.8, "warmup_steps": 10, "transition_steps": 7, "decay_rate": 0.5},
    ),
    ("linear_onecycle_schedule", {"transition_steps": 50, "peak_value": 0.8}),
    ("cosine_onecycle_schedule", {"transition_steps": 50, "peak_value": 0.8, "pct_start": 0.25}),
]


def in_optax(name, **kwargs):
    """Values of optax at steps 0 .. 79, under the promotion rules that it needs."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        schedule = getattr(optax, name)(**kwargs)
        return np.asarray(jax.jit(jax.vmap(schedule))(np.arange(80)), np.float32)


@pytest.mark.parametrize(("name", "kwargs"), OPTAX)
def test_schedule_is_that_of_optax(name, kwargs):
    ours = np.asarray(getattr(schedules, name)(**kwargs)(np.arange(80)))
    theirs = in_optax(name, **kwargs)
    # Relative to the peak: near the end of a cosine optax cancels, and keeps fewer digits.
    np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=2e-7 * np.abs(theirs).max())


def test_join_is_that_of_optax():
    with jax.numpy_dtype_promotion("standard"):
        theirs = optax.join_schedules([optax.linear_schedule(0.0, 1.0, 10), optax.cosine_decay_schedule(1.0, 20)], [10])
        expected = jax.jit(theirs)(np.arange(40))
    ours = join_schedules([linear_schedule(0.0, 1.0, 10), cosine_decay_schedule(1.0, 20)], [10])
    np.testing.assert_allclose(ours(np.arange(40)), expected, rtol=1e-6, atol=2e-7)


def test_names_arguments_and_defaults_are_those_of_optax():
    shared = [
        name
        for name in optax.schedules.__dict__
        if name[0] != "_" and name.endswith(("_schedule", "_schedules", "_decay"))
    ]
    assert len(shared) == 14
    for name in shared:
        ours = inspect.signature(getattr(schedules, name)).parameters
        theirs = inspect.signature(getattr(optax.schedules, name)).parameters
        assert [(p.name, p.default) for p in ours.values()] == [(p.name, p.default) for p in theirs.values()], name


def test_where_we_differ_from_optax():
    # A warm-up of no steps never ends.
    assert in_optax("warmup_constant_schedule", init_value=0.1, peak_value=0.8, warmup_steps=0)[50] == np.float32(0.1)
    assert warmup_constant_schedule(0.1, 0.8, 0)(0) == np.float32(0.8)
    # Where two phases end at one step, one scale is lost: the peak is not reached, and the end is too low.
    assert in_optax("cosine_onecycle_schedule", transition_steps=10, peak_value=1.0, pct_start=1.0).max() < 0.05
    ours = cosine_onecycle_schedule(10, 1.0, pct_start=1.0)(np.arange(11))
    np.testing.assert_allclose(ours[9:], [0.9765, 4e-6], rtol=1e-2)
    # end_value is dropped if the peak is 0.
    kwargs = {"init_value": 0.1, "peak_value": 0.0, "warmup_steps": 5, "decay_steps": 10, "end_value": 0.3}
    assert in_optax("warmup_cosine_decay_schedule", **kwargs)[20] == 0.0
    assert warmup_cosine_decay_schedule(**kwargs)(20) == np.float32(0.3)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        assert optax.piecewise_interpolate_schedule("linear", 0.8, {9: 0.5})(-1) == 0.0
        # Integers beyond 2²⁴ are rounded: the second of two steps is taken for the first.
        late = optax.exponential_decay(1.0, 2**24 + 1, 0.5, staircase=True)
        assert late(jnp.int32(2**24)) == 0.5
    assert piecewise_interpolate_schedule("linear", 0.8, {9: 0.5})(-1) == np.float32(0.8)
    assert exponential_decay(1.0, 2**24 + 1, 0.5, staircase=True)(2**24) == 1.0
