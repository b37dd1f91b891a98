"""Laws, oracles and messages of jopt.schedules."""

import dataclasses
import functools
import itertools
import pickle
import sys
import warnings

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
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
    half_life_schedule,
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
    "half_life_schedule": (lambda: half_life_schedule(0.5, 0.9, 20), 0.5, 0.9, 20),
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


def precision(double):
    return jax.enable_x64(double) if hasattr(jax, "enable_x64") else jax.experimental.enable_x64(double)


@pytest.fixture(autouse=True)
def single_precision():
    with precision(False):
        yield


def make(name):
    return SCHEDULES[name][0]()


@functools.cache
def compiled(name):
    return jax.jit(make(name))


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
    assert first == second
    assert hash(first) == hash(second)
    assert first is not second
    assert pickle.loads(pickle.dumps(first)) == first
    assert eval(repr(first), vars(schedules)) == first
    assert first != constant_schedule(0.123)
    for field in number_fields(first, float):
        other = dataclasses.replace(first, **{field: getattr(first, field) * 0.97 or 0.01})
        assert other != first
        assert eval(repr(other), vars(schedules)) == other


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
    for got in (schedule(counts), compiled(name)(counts), jax.vmap(schedule)(counts)):
        assert got.shape == counts.shape
        np.testing.assert_allclose(got, loop, rtol=1e-6, atol=1e-7)


@every
def test_value_is_a_strong_scalar_dtype_whatever_the_step_is(name):
    schedule = make(name)
    for count in (7, np.int64(7), np.uint8(7), np.array(7), jnp.int32(7), jnp.uint8(7), jnp.array([7, 7])):
        value = schedule(count)
        assert value.dtype == jnp.float32
        assert not value.weak_type
        np.testing.assert_allclose(value, np.broadcast_to(schedule(7), value.shape), rtol=1e-6)
    with precision(True):
        for count in (7, jnp.int32(7), jnp.int64(7)):
            assert schedule(count).dtype == jnp.float64
            assert not schedule(count).weak_type


INT64 = st.integers(-(2**63), 2**63 - 1)
NEAR = st.builds(lambda base, shift: base + shift, st.sampled_from([0, 2**24, 2**25, 2**31]), st.integers(-70, 70))


@every
@hypothesis.settings(max_examples=12, deadline=None, derandomize=True)
@hypothesis.given(data=st.data())
def test_value_is_within_its_bounds_at_any_step(name, data):
    _, low, high, end = SCHEDULES[name]
    schedule = compiled(name)
    counts = np.array(data.draw(st.lists(INT64 | NEAR, min_size=21, max_size=21)))
    saturated = np.clip(counts, -(2**31), LAST).astype(np.int32)
    values = np.asarray(schedule(saturated))
    np.testing.assert_allclose(make(name)(counts), values, rtol=1e-6, atol=1e-7)
    assert np.isfinite(values).all()
    assert (values >= np.float32(low)).all()
    assert (values <= np.float32(high)).all()
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
    with precision(True):
        assert schedule(jnp.int64(2**40)) == schedule(LAST)
        assert schedule(jnp.int64(-(2**40))) == schedule(0)


@every
def test_sweep_by_vmap_is_the_loop(name):
    schedule = make(name)
    reals = number_fields(schedule, float)
    wholes = [field for field in number_fields(schedule, int) if field != "t_mul"]
    for fields, rows in ((reals, np.float32([[0.97], [0.99]])), (wholes, np.array([[1], [2]]))):
        if fields:
            values = rows * np.array([getattr(schedule, field) for field in fields], rows.dtype)

            def value(numbers, fields=fields):
                return dataclasses.replace(schedule, **dict(zip(fields, numbers, strict=True)))(COUNTS)

            swept, loop = jax.vmap(value)(values), np.stack([value(row) for row in values])
            np.testing.assert_allclose(swept, loop, rtol=2e-6, atol=1e-6, err_msg=str(fields))


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
    with precision(True):
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
            assert one == again
            assert hash(one) == hash(again)
            assert one != other
            assert "traced" in repr(one)
            return one(3)

        value = getattr(schedule, field)
        np.testing.assert_allclose(check(value, value), schedule(3), rtol=1e-6)


def test_steps_may_have_any_shape():
    counts = np.arange(24).reshape(2, 3, 4)
    schedule = make("join_schedules")
    np.testing.assert_allclose(schedule(counts).ravel(), schedule(counts.ravel()), rtol=1e-6)
    assert constant_schedule(0.5)(counts).shape == (2, 3, 4)
    assert schedule(np.zeros((0,), int)).shape == (0,)


def test_gradient_reaches_the_numbers_of_nested_schedules():
    def value(peak, count):
        fall = warmup(cosine_decay_schedule(peak, 10), 5)
        return join_schedules([fall, piecewise_constant_schedule(peak, {3: 0.5})], [15])(count)

    np.testing.assert_allclose([jax.grad(value)(2.0, c) for c in (0, 4, 5, 10, 15, 18)], [0, 0.8, 1, 0.5, 1, 0.5])


def test_concrete_scalars_become_python_numbers():
    plain = cosine_decay_schedule(0.5, 100)
    for init, length in itertools.product((np.float32(0.5), jnp.float32(0.5), np.array(0.5)), (1e2, np.int64(100))):
        schedule = cosine_decay_schedule(init, length)
        assert schedule == plain
        assert repr(schedule) == repr(plain) == ("cosine_decay_schedule(init_value=0.5, decay_steps=100)")
        assert type(schedule.init_value) is float
        assert type(schedule.decay_steps) is int


def test_dicts_are_sorted_and_print_as_dicts():
    schedule = piecewise_constant_schedule(1.0, {200: 0.5, 100: 0.1})
    assert schedule == piecewise_constant_schedule(1.0, {100: np.float64(0.1), 200: 0.5})
    assert repr(schedule) == "piecewise_constant_schedule(init_value=1.0, boundaries_and_scales={100: 0.1, 200: 0.5})"
    assert piecewise_constant_schedule(1.0, {}) == piecewise_constant_schedule(1.0)
    cycle = {"decay_steps": 9, "init_value": 0, "peak_value": 1, "warmup_steps": 2, "end_value": 0.0}
    assert repr(sgdr_schedule([cycle])) == (
        "sgdr_schedule(cosine_kwargs=[{'init_value': 0.0, 'peak_value': 1.0, 'warmup_steps': 2, 'decay_steps': 9}])"
    )


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
    (lambda: half_life_schedule(0.5, 1.0, 9), ValueError, ["half_life_schedule", "end_value=1.0", "(0, 1)"]),
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


@pytest.mark.parametrize(("call", "kind", "fragments"), ERRORS)
def test_error_names_call_value_expectation_and_remedy(call, kind, fragments):
    with pytest.raises(kind) as error:
        call()
    assert all(fragment in str(error.value) for fragment in fragments), str(error.value)
    assert "was given" in str(error.value) or "were given" in str(error.value)


def test_shape_of_the_program_may_not_be_traced():
    with pytest.raises(TypeError, match=r"t_mul.*Python int"):
        jax.vmap(lambda t: cosine_restarts_schedule(1.0, 10, t)(3))(np.array([1, 2]))
    with pytest.raises(TypeError, match=r"staircase.*True or False"):
        jax.vmap(lambda s: exponential_decay(1.0, 10, 0.5, 0, s)(3))(np.array([True, False]))


# Pictures


@pytest.fixture(scope="module")
def pyplot():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # matplotlib's own use of its dependencies
        matplotlib = pytest.importorskip("matplotlib")
        matplotlib.use("Agg")
        import matplotlib.pyplot as plt
    yield plt
    plt.close("all")


@every
def test_default_plot_shows_the_whole_shape(name):
    assert (SCHEDULES[name][3] or 1) <= make(name)._span() < 1000


@pytest.mark.parametrize("name", ["sgdr_schedule", "step_decay_schedule", "warmup_stable_decay_schedule"])
def test_plot_draws_the_values(name, pyplot):
    schedule, ax = make(name), pyplot.gca()
    ax.clear()
    assert schedule.plot(steps=50, ax=ax) is ax
    x, y = ax.lines[0].get_data()
    np.testing.assert_array_equal(x, np.arange(51))
    np.testing.assert_allclose(y, schedule(np.arange(51)), rtol=1e-6, atol=1e-7)
    assert ax.get_xlabel() == "step"
    assert ax.get_ylabel() == "value"
    assert ax.get_title().startswith(name)
    assert len(ax.get_title()) <= 64


def test_plot_draws_several_schedules_on_one_axes(pyplot):
    ax = linear_schedule(0.0, 1.0, 10).plot()
    assert cosine_decay_schedule(1.0, 10).plot(ax=ax) is ax
    assert ax.lines[0].get_xdata()[-1] == 12
    assert len(ax.lines) == 2
    assert ax.get_title().startswith("linear")
    assert [text.get_text().split("(")[0] for text in ax.legend().get_texts()] == [
        "linear_schedule",
        "cosine_decay_schedule",
    ]


def test_plot_of_a_long_schedule_is_thinned(pyplot):
    x = cosine_decay_schedule(1.0, LAST).plot().lines[0].get_xdata()
    assert len(x) == 2001
    assert x[0] == 0
    assert x[-1] == LAST


def test_plot_says_what_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(ImportError, match=r'pip install "jopt\[plot\]"'):
        constant_schedule(1.0).plot()
    with pytest.raises(TypeError, match="concrete numbers"):
        jax.jit(lambda x: warmup(constant_schedule(x), 5).plot())(1.0)
