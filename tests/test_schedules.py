"""Laws, oracles and messages of jopt.schedules."""

import dataclasses
import inspect
import itertools
import math
import pickle
import sys

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jopt import schedules
from jopt.schedules import (
    Schedule,
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
    sgdr_schedule,
    step_decay_schedule,
    warmup,
    warmup_constant_schedule,
    warmup_cosine_decay_schedule,
    warmup_exponential_decay_schedule,
    warmup_stable_decay_schedule,
)

LAST = 2**31 - 1
BIG = [2**24 - 1, 2**24, 2**24 + 1, 2**25 + 1, 2**31 - 2, 2**31 - 1]
COUNTS = np.array([-3, 0, 1, 5, 7, 10, 12, 15, 20, 25, 29, 31, 39, 40, 70, *BIG], np.int32)
GO_ON = None

# For each public schedule: a factory, its lowest and highest value, and the step from which it holds.
SCHEDULES = {
    "constant_schedule": (lambda: constant_schedule(0.3), 0.3, 0.3, 0),
    "linear_schedule": (lambda: linear_schedule(0.1, 0.9, 20, 5), 0.1, 0.9, 25),
    "polynomial_schedule": (lambda: polynomial_schedule(0.9, 0.1, 2.5, 20, 5), 0.1, 0.9, 25),
    "exponential_decay": (lambda: exponential_decay(0.9, 10, 0.5, 5, end_value=0.1), 0.1, 0.9, 37),
    "cosine_decay_schedule": (lambda: cosine_decay_schedule(0.8, 30, 0.1, 1.5), 0.08, 0.8, 30),
    "step_decay_schedule": (lambda: step_decay_schedule(0.8, 10, 0.5), 0.0, 0.8, GO_ON),
    "inverse_time_decay_schedule": (lambda: inverse_time_decay_schedule(0.8, 0.5, 10), 0.0, 0.8, GO_ON),
    "piecewise_constant_schedule": (lambda: piecewise_constant_schedule(0.8, {20: 0.5, 10: 0.1}), 0.04, 0.8, 20),
    "piecewise_interpolate_schedule": (
        lambda: piecewise_interpolate_schedule("cosine", 0.1, {10: 8.0, 30: 0.5}),
        0.1,
        0.8,
        30,
    ),
    "join_schedules": (
        lambda: join_schedules([linear_schedule(0.0, 0.8, 10), cosine_decay_schedule(0.8, 20)], [10]),
        0.0,
        0.8,
        30,
    ),
    "warmup": (lambda: warmup(step_decay_schedule(0.8, 10, 0.5), 10, 0.01), 0.0, 0.8, GO_ON),
    "warmup_constant_schedule": (lambda: warmup_constant_schedule(0.1, 0.8, 10), 0.1, 0.8, 10),
    "warmup_cosine_decay_schedule": (lambda: warmup_cosine_decay_schedule(0.1, 0.8, 10, 40, 0.05), 0.05, 0.8, 40),
    "warmup_exponential_decay_schedule": (
        lambda: warmup_exponential_decay_schedule(0.1, 0.8, 10, 10, 0.5, 5, staircase=True, end_value=0.05),
        0.05,
        0.8,
        55,
    ),
    "inverse_sqrt_schedule": (lambda: inverse_sqrt_schedule(0.8, 10), 0.0, 0.8, GO_ON),
    "warmup_stable_decay_schedule": (
        lambda: warmup_stable_decay_schedule(0.8, 10, 20, 10, 0.1, 0.05, "sqrt"),
        0.05,
        0.8,
        40,
    ),
    "sgdr_schedule": (
        lambda: sgdr_schedule(
            [
                {"init_value": 0.1, "peak_value": 0.8, "warmup_steps": 5, "decay_steps": 20},
                {"init_value": 0.0, "peak_value": 0.4, "warmup_steps": 0, "decay_steps": 30, "end_value": 0.01},
            ]
        ),
        0.0,
        0.8,
        50,
    ),
    "cosine_restarts_schedule": (lambda: cosine_restarts_schedule(0.8, 10, 2, 0.5, 0.1), 0.08, 0.8, GO_ON),
    "cyclical_schedule": (lambda: cyclical_schedule(0.1, 0.8, 10, "exp_range", 0.9999), 0.1, 0.8, GO_ON),
    "linear_onecycle_schedule": (lambda: linear_onecycle_schedule(40, 0.8), 0.8 / 25e4, 0.8, 40),
    "cosine_onecycle_schedule": (lambda: cosine_onecycle_schedule(40, 0.8), 0.8 / 25e4, 0.8, 40),
    "one_cycle_momentum_schedule": (lambda: one_cycle_momentum_schedule(40), 0.85, 0.95, 40),
}
every = pytest.mark.parametrize("name", SCHEDULES)


def x64():
    return jax.enable_x64(True) if hasattr(jax, "enable_x64") else jax.experimental.enable_x64()


@pytest.fixture(autouse=True)
def strict():
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield


def make(name):
    return SCHEDULES[name][0]()


def number_fields(schedule, kind):
    values = ((f.name, getattr(schedule, f.name)) for f in dataclasses.fields(schedule))
    return [name for name, value in values if type(value) is kind]


# Laws


def test_every_public_schedule_is_registered():
    assert set(SCHEDULES) == set(schedules.__all__) - {"Schedule"}
    assert all(isinstance(make(name), Schedule) and type(make(name)).__name__ == name for name in SCHEDULES)


@every
def test_equal_by_configuration(name):
    first, second = make(name), make(name)
    assert first == second and hash(first) == hash(second) and first is not second
    assert pickle.loads(pickle.dumps(first)) == first
    assert eval(repr(first), vars(schedules)) == first
    assert first != constant_schedule(0.123)
    for field in number_fields(first, float):
        other = dataclasses.replace(first, **{field: getattr(first, field) * 0.97 or 0.01})
        assert other != first and eval(repr(other), vars(schedules)) == other


@every
def test_equal_schedules_share_one_compilation(name):
    traces = []

    def value(schedule, count):
        traces.append(1)
        return schedule(count)

    compiled = jax.jit(value, static_argnums=0)
    compiled(make(name), 3)
    compiled(make(name), 4)
    assert len(traces) == 1


@every
def test_jit_and_vmap_are_the_loop(name):
    schedule = make(name)
    counts = COUNTS
    loop = np.stack([schedule(int(count)) for count in counts])
    for got in (schedule(counts), jax.jit(schedule)(counts), jax.jit(jax.vmap(schedule))(counts)):
        assert got.shape == counts.shape
        np.testing.assert_allclose(got, loop, rtol=1e-6, atol=1e-7)


@every
def test_value_is_a_strong_scalar_dtype_whatever_the_step_is(name):
    schedule = make(name)
    for count in (7, np.int64(7), np.uint8(7), np.array(7), jnp.int32(7), jnp.uint8(7), jnp.array([7, 7])):
        value = schedule(count)
        assert value.dtype == jnp.float32 and not value.weak_type
        np.testing.assert_allclose(value, np.broadcast_to(schedule(7), value.shape), rtol=1e-6)
    with x64():
        for count in (7, jnp.int32(7), jnp.int64(7)):
            assert schedule(count).dtype == jnp.float64 and not schedule(count).weak_type


INT64 = st.integers(-(2**63), 2**63 - 1)
NEAR = st.builds(lambda base, shift: base + shift, st.sampled_from([0, 2**24, 2**25, 2**31]), st.integers(-70, 70))


@every
@hypothesis.settings(max_examples=12, deadline=None, derandomize=True)
@hypothesis.given(data=st.data())
def test_value_is_within_its_bounds_at_any_step(name, data):
    _, low, high, end = SCHEDULES[name]
    schedule = jax.jit(make(name))
    counts = np.array(data.draw(st.lists(INT64 | NEAR, min_size=21, max_size=21)))
    saturated = np.clip(counts, -(2**31), LAST).astype(np.int32)
    values = np.asarray(schedule(saturated))
    np.testing.assert_allclose(make(name)(counts), values, rtol=1e-6, atol=1e-7)
    assert np.isfinite(values).all()
    assert (values >= np.float32(low)).all() and (values <= np.float32(high)).all()
    first, last, held = schedule(np.resize(np.array([0, LAST, end or 0], np.int32), 21))[:3]
    np.testing.assert_array_equal(values[counts < 0], first)
    np.testing.assert_array_equal(values[counts > LAST], last)
    if end is not GO_ON:
        np.testing.assert_array_equal(values[counts >= end], held)


@every
def test_bounds_are_reached(name):
    _, low, high, end = SCHEDULES[name]
    values = np.asarray(make(name)(np.append(np.arange(200), BIG)))
    np.testing.assert_allclose([values.min(), values.max()], [low, high], rtol=1e-6, atol=1e-2)
    if end:
        assert make(name)(end) != make(name)(end - 1)


@pytest.mark.parametrize("count", [2**31, 2**32 + 5, 2**63, 2**70, np.uint32(2**32 - 1), np.int64(2**40)])
def test_steps_beyond_int32_are_the_last_one(count):
    schedule = cyclical_schedule(0.1, 0.8, 7)
    assert schedule(count) == schedule(LAST)
    assert schedule(-count if isinstance(count, int) else -5) == schedule(0)
    with x64():
        assert schedule(jnp.int64(2**40)) == schedule(LAST) and schedule(jnp.int64(-(2**40))) == schedule(0)


@every
def test_sweep_by_vmap_is_the_loop(name):
    schedule = make(name)
    for field in number_fields(schedule, float):
        value = getattr(schedule, field)
        values = np.array([value * 0.97, value], np.float32)
        swept = jax.vmap(lambda x, f=field: dataclasses.replace(schedule, **{f: x})(COUNTS))(values)
        loop = np.stack([dataclasses.replace(schedule, **{field: x})(COUNTS) for x in values])
        np.testing.assert_allclose(swept, loop, rtol=2e-5, atol=1e-6, err_msg=field)
    for field in set(number_fields(schedule, int)) - {"t_mul"}:
        values = np.array([getattr(schedule, field), getattr(schedule, field) + 3])
        swept = jax.vmap(lambda x, f=field: dataclasses.replace(schedule, **{f: x})(COUNTS))(values)
        loop = np.stack([dataclasses.replace(schedule, **{field: x})(COUNTS) for x in values])
        np.testing.assert_allclose(swept, loop, rtol=2e-6, atol=1e-7, err_msg=field)


@every
def test_derivative_in_every_number_is_that_of_the_curve(name):
    schedule = make(name)
    fields = number_fields(schedule, float)
    if not fields:
        return
    point = np.array([getattr(schedule, field) for field in fields])

    def values(numbers):
        return dataclasses.replace(schedule, **dict(zip(fields, numbers, strict=True)))(COUNTS)

    assert np.isfinite(jax.jit(jax.grad(lambda numbers: values(numbers).sum()))(point.astype(np.float32))).all()
    with x64():
        slopes = jax.jit(jax.jacfwd(values))(point)
        curve = jax.jit(jax.vmap(values))
        shifts = 1e-6 * np.eye(len(fields))
        differences = (curve(point + shifts) - curve(point - shifts)).T / 2e-6
    for field, slope, difference in zip(fields, slopes.T, differences.T, strict=True):
        # Shares move whole steps, and a lower bound switches sides: there the curve has corners.
        if not field.startswith("pct") and (name, field) != ("exponential_decay", "end_value"):
            np.testing.assert_allclose(slope, difference, rtol=1e-5, atol=1e-7, err_msg=field)


@every
def test_schedule_of_traced_numbers_compares_by_identity(name):
    schedule = make(name)
    for field in number_fields(schedule, float)[:1]:

        @jax.jit
        def check(x, y, field=field):
            one, again, other = (dataclasses.replace(schedule, **{field: z}) for z in (x, x, y))
            assert one == again and hash(one) == hash(again) and one != other and "traced" in repr(one)
            return one(3)

        value = getattr(schedule, field)
        np.testing.assert_allclose(check(value, value), schedule(3), rtol=1e-6)


def test_steps_may_have_any_shape():
    counts = np.arange(24).reshape(2, 3, 4)
    schedule = make("join_schedules")
    np.testing.assert_allclose(schedule(counts).ravel(), schedule(counts.ravel()), rtol=1e-6)
    assert constant_schedule(0.5)(counts).shape == (2, 3, 4) and schedule(np.zeros((0,), int)).shape == (0,)


def test_gradient_reaches_the_numbers_of_nested_schedules():
    def value(peak, count):
        fall = warmup(cosine_decay_schedule(peak, 10), 5)
        return join_schedules([fall, piecewise_constant_schedule(peak, {3: 0.5})], [15])(count)

    np.testing.assert_allclose([jax.grad(value)(2.0, c) for c in (0, 4, 5, 10, 15, 18)], [0, 0.8, 1, 0.5, 1, 0.5])


def test_concrete_scalars_become_python_numbers():
    plain = cosine_decay_schedule(0.5, 100)
    for init, length in itertools.product((np.float32(0.5), jnp.float32(0.5), np.array(0.5)), (1e2, np.int64(100))):
        schedule = cosine_decay_schedule(init, length)
        assert schedule == plain and repr(schedule) == repr(plain) == (
            "cosine_decay_schedule(init_value=0.5, decay_steps=100)"
        )
        assert type(schedule.init_value) is float and type(schedule.decay_steps) is int


def test_dicts_are_sorted_and_print_as_dicts():
    schedule = piecewise_constant_schedule(1.0, {200: 0.5, 100: 0.1})
    assert schedule == piecewise_constant_schedule(1.0, {100: np.float64(0.1), 200: 0.5})
    assert repr(schedule) == "piecewise_constant_schedule(init_value=1.0, boundaries_and_scales={100: 0.1, 200: 0.5})"
    assert piecewise_constant_schedule(1.0, {}) == piecewise_constant_schedule(1.0)
    cycle = {"decay_steps": 9, "init_value": 0, "peak_value": 1, "warmup_steps": 2, "end_value": 0.0}
    assert repr(sgdr_schedule([cycle])) == (
        "sgdr_schedule(cosine_kwargs=[{'init_value': 0.0, 'peak_value': 1.0, 'warmup_steps': 2, 'decay_steps': 9}])"
    )


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
        with x64():
            np.testing.assert_allclose(schedule(np.array(counts)), expected, 1e-12, 1e-14 * scale, err_msg=repr(kwargs))


def test_every_schedule_has_a_transcription_or_is_made_of_others():
    assert set(SCHEDULES) - set(ORACLES) == {"join_schedules", "warmup"}


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
            assert schedule(0) == np.float32(low) and schedule(last) == np.float32(high), repr(schedule)


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
    "schedule, joins",
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
        assert abs(at - before) < 2e-3 and abs(after - at) < 2e-3


def test_rate_and_momentum_of_one_cycle_line_up():
    counts = np.arange(1001)
    rate = np.asarray(cosine_onecycle_schedule(1000, 1.0, pct_start=0.4)(counts))
    momentum = np.asarray(one_cycle_momentum_schedule(1000, pct_start=0.4)(counts))
    assert rate.argmax() == momentum.argmin() == 400
    assert (np.sign(np.diff(rate[2:399])) == -np.sign(np.diff(momentum[2:399]))).all()
    assert (np.diff(rate[401:999]) <= 0).all() and (np.diff(momentum[401:999]) >= 0).all()


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
    ("polynomial_schedule", {"init_value": 0.9, "end_value": 0.1, "power": 2.5, "transition_steps": 20}),
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
        # Not compiled: its polynomial is NaN there, as a rounded 1 − x is negative past the end.
        return np.asarray(jax.vmap(schedule)(np.arange(80)), np.float32)


@pytest.mark.parametrize("name, kwargs", OPTAX)
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
    # Coinciding phases lose a scale: the end is the peak.
    assert in_optax("cosine_onecycle_schedule", transition_steps=10, peak_value=1.0, pct_start=1.0)[10] < 1e-5
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


# Messages


ERRORS = [
    (lambda: linear_schedule(0.0, 1.0, 0), ValueError, ["linear_schedule", "transition_steps=0", "at least 1"]),
    (lambda: linear_schedule(0.0, 1.0, 9, -1), ValueError, ["transition_begin=-1", "at least 0"]),
    (lambda: linear_schedule(0.0, 1.0, 2.5), ValueError, ["transition_steps=2.5", "whole"]),
    (lambda: linear_schedule(0.0, 1.0, 2**31), ValueError, ["linear_schedule", "2147483648", "2147483647"]),
    (lambda: linear_schedule(float("nan"), 1.0, 9), ValueError, ["init_value=nan"]),
    (lambda: linear_schedule("1e-3", 1.0, 9), TypeError, ["linear_schedule", "init_value='1e-3'"]),
    (lambda: linear_schedule(np.ones(3), 1.0, 9), TypeError, ["shape (3,)", "vmap"]),
    (lambda: linear_schedule(constant_schedule(1.0), 1.0, 9), TypeError, ["init_value=constant_schedule"]),
    (lambda: polynomial_schedule(0.0, 1.0, -1.0, 9), ValueError, ["polynomial_schedule", "power=-1.0", "(0, inf)"]),
    (lambda: exponential_decay(1.0, 0, 0.5), ValueError, ["exponential_decay", "transition_steps=0"]),
    (lambda: exponential_decay(1.0, 9, 0.0), ValueError, ["decay_rate=0.0", "(0, inf)"]),
    (lambda: exponential_decay(1.0, 9, 0.5, end_value=2.0), ValueError, ["end_value=2.0", "at most init_value"]),
    (lambda: exponential_decay(1.0, 9, 1.5, end_value=0.5), ValueError, ["end_value=0.5", "at least init_value"]),
    (lambda: exponential_decay(1.0, 9, 0.5, staircase="yes"), TypeError, ["staircase='yes'", "True or False"]),
    (lambda: cosine_decay_schedule(1.0, 0), ValueError, ["cosine_decay_schedule", "decay_steps=0"]),
    (lambda: step_decay_schedule(1.0, 10, 1.5), ValueError, ["step_decay_schedule", "decay_rate=1.5", "(0, 1]"]),
    (lambda: inverse_time_decay_schedule(1.0, -1.0), ValueError, ["decay_rate=-1.0", "[0, inf)"]),
    (lambda: piecewise_constant_schedule(1.0, {10: -1.0}), ValueError, ["boundaries_and_scales[10]=-1.0"]),
    (lambda: piecewise_constant_schedule(1.0, {2.5: 1.0}), ValueError, ["a boundary", "2.5", "whole"]),
    (lambda: piecewise_constant_schedule(1.0, [10]), TypeError, ["piecewise_constant_schedule", "[10]", "dict"]),
    (lambda: piecewise_interpolate_schedule("cubic", 1.0), ValueError, ["'cubic'", "'linear'", "'cosine'"]),
    (lambda: join_schedules([constant_schedule(1.0)], [5]), ValueError, ["1 schedules and 1 boundaries"]),
    (lambda: join_schedules([], []), ValueError, ["0 schedules and 0 boundaries"]),
    (lambda: join_schedules(constant_schedule(1.0), []), TypeError, ["join_schedules", "list of schedules"]),
    (
        lambda: join_schedules([constant_schedule(1.0), 0.5], [5]),
        TypeError,
        ["schedules[1]=0.5", "constant_schedule(0.5)"],
    ),
    (lambda: join_schedules([constant_schedule(1.0)] * 3, [9, 5]), ValueError, ["[9, 5]", "do not decrease"]),
    (lambda: warmup(0.1, 5), TypeError, ["warmup", "schedule=0.1", "constant_schedule(0.1)"]),
    (lambda: warmup(constant_schedule(0.1), -5), ValueError, ["warmup_steps=-5"]),
    (lambda: warmup_cosine_decay_schedule(0.0, 1.0, 10, 10), ValueError, ["decay_steps=10", "decay_steps=20"]),
    (
        lambda: warmup_exponential_decay_schedule(0.0, 1.0, 10, 10, 0.5, end_value=2.0),
        ValueError,
        ["warmup_exponential_decay_schedule", "end_value=2.0", "peak_value=1.0"],
    ),
    (lambda: inverse_sqrt_schedule(1.0, 10, timescale=0), ValueError, ["timescale=0.0"]),
    (lambda: warmup_stable_decay_schedule(1.0, 1, 1, 1, decay="exp"), ValueError, ["decay='exp'", "'sqrt'"]),
    (lambda: sgdr_schedule([]), ValueError, ["sgdr_schedule", "at least one cycle"]),
    (lambda: sgdr_schedule([{"decay_steps": 5}]), TypeError, ["cosine_kwargs[0]", "peak_value"]),
    (lambda: cosine_restarts_schedule(1.0, 10, t_mul=1.5), ValueError, ["t_mul=1.5", "whole"]),
    (lambda: cyclical_schedule(0.0, 1.0, 10, "sine"), ValueError, ["mode='sine'", "'triangular2'"]),
    (lambda: cyclical_schedule(0.0, 1.0, 10, "exp_range"), ValueError, ["gamma=None", "0.9999"]),
    (lambda: cyclical_schedule(0.0, 1.0, 10, gamma=0.9), ValueError, ["gamma=0.9", "mode='triangular'"]),
    (lambda: linear_onecycle_schedule(10, 1.0, 0.9, 0.5), ValueError, ["pct_final=0.5", "pct_start=0.9"]),
    (lambda: cosine_onecycle_schedule(10, 1.0, 1.5), ValueError, ["pct_start=1.5", "[0, 1]"]),
    (lambda: one_cycle_momentum_schedule(10, 0.8, 0.9), ValueError, ["low_value=0.9", "Swap"]),
    (lambda: constant_schedule(1.0)(0.5), TypeError, ["constant_schedule(count)", "float64", "whole numbers"]),
    (lambda: constant_schedule(1.0)(True), TypeError, ["bool", "whole numbers"]),
    (lambda: constant_schedule(1.0)(jnp.float32(3)), TypeError, ["float32", "whole numbers"]),
    (lambda: constant_schedule(1.0)("7"), TypeError, ["whole numbers"]),
]


@pytest.mark.parametrize("call, kind, fragments", ERRORS)
def test_error_names_call_value_expectation_and_remedy(call, kind, fragments):
    with pytest.raises(kind) as error:
        call()
    assert all(fragment in str(error.value) for fragment in fragments), str(error.value)
    assert "was given" in str(error.value) or "were given" in str(error.value)


def test_shape_of_the_program_may_not_be_traced():
    with pytest.raises(TypeError, match="t_mul.*Python int"):
        jax.vmap(lambda t: cosine_restarts_schedule(1.0, 10, t)(3))(np.array([1, 2]))
    with pytest.raises(TypeError, match="staircase.*True or False"):
        jax.vmap(lambda s: exponential_decay(1.0, 10, 0.5, 0, s)(3))(np.array([True, False]))


# Pictures


@pytest.fixture
def pyplot():
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    yield plt
    plt.close("all")


@every
def test_plot_draws_the_values(name, pyplot):
    schedule = make(name)
    ax = schedule.plot(steps=50)
    x, y = ax.lines[0].get_data()
    np.testing.assert_array_equal(x, np.arange(51))
    np.testing.assert_allclose(y, schedule(np.arange(51)), rtol=1e-6, atol=1e-7)
    assert ax.get_xlabel() == "step" and ax.get_ylabel() == "value" and ax.get_title().startswith(name)
    assert len(ax.get_title()) <= 64
    assert (SCHEDULES[name][3] or 0) <= schedule._span() < 1000


def test_plot_draws_several_schedules_on_one_axes(pyplot):
    ax = linear_schedule(0.0, 1.0, 10).plot()
    assert cosine_decay_schedule(1.0, 10).plot(ax=ax) is ax
    assert ax.lines[0].get_xdata()[-1] == 12
    assert len(ax.lines) == 2 and ax.get_title().startswith("linear")
    assert [text.get_text().split("(")[0] for text in ax.legend().get_texts()] == [
        "linear_schedule",
        "cosine_decay_schedule",
    ]


def test_plot_of_a_long_schedule_is_thinned(pyplot):
    x = cosine_decay_schedule(1.0, LAST).plot().lines[0].get_xdata()
    assert len(x) == 2001 and x[0] == 0 and x[-1] == LAST


def test_plot_says_what_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(ImportError, match=r'pip install "jopt\[plot\]"'):
        constant_schedule(1.0).plot()
    with pytest.raises(TypeError, match="concrete numbers"):
        jax.jit(lambda x: constant_schedule(x).plot())(1.0)
