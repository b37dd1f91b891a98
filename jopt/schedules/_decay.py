"""Schedules that go one way: constant, polynomial, exponential, cosine, steps, 1/t."""
# ruff: noqa: N801  (a schedule is called like the function that it is elsewhere)

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jopt.scalars import NONNEGATIVE, POSITIVE
from jopt.schedules._arithmetic import at_least_one, between, cosine, geometric, powered, progress, real, whole
from jopt.schedules._schedule import Number, Schedule

DROP = "(0, 1]"


@dataclass(frozen=True, repr=False)
class constant_schedule(Schedule):
    """Keep one value for ever.

        value(t) = value

    Args:
        value: any real number.
    """

    value: Number

    def __post_init__(self) -> None:
        self._numbers("value")

    def _at(self, count: jax.Array) -> Any:
        return real(self.value)

    def _span(self) -> int:
        return 100


@dataclass(frozen=True, repr=False)
class linear_schedule(Schedule):
    """Go from one value to another along a line.

        x        = clip((t − transition_begin) / transition_steps, 0, 1)
        value(t) = init_value + (end_value − init_value)·x

    Args:
        init_value: value up to step `transition_begin`.
        end_value: value from step `transition_begin + transition_steps` on.
        transition_steps: length of the line, at least 1.
        transition_begin: steps to wait before it, at least 0.

    Differs: optax returns `init_value` for ever if `transition_steps` < 1 and ignores a negative
    `transition_begin`; both are errors here.
    """

    init_value: Number
    end_value: Number
    transition_steps: int
    transition_begin: int = 0

    def __post_init__(self) -> None:
        self._numbers("init_value", "end_value")
        self._steps("transition_steps", at_least=1)
        self._steps("transition_begin")

    def _at(self, count: jax.Array) -> Any:
        shares = progress(count - whole(self.transition_begin), whole(self.transition_steps))
        return between(self.init_value, self.end_value, *shares)

    def _span(self) -> int:
        return self.transition_begin + self.transition_steps


@dataclass(frozen=True, repr=False)
class half_life_schedule(Schedule):
    """Go from one decay rate of an average to another, such that its half-life moves along a line.

        x        = clip(t / transition_steps, 0, 1)
        value(t) = exp(1 / ((1 − x) / ln init_value + x / ln end_value))

    For the `b3` of `scale_by_ademamix`, whose memory so grows by the same number of steps at each step.

    Args:
        init_value: decay rate at step 0, in (0, 1).
        end_value: decay rate from step `transition_steps` on, in (0, 1).
        transition_steps: length of the way, at least 1.

    Reference: [pagliardini2025ademamix], section 3.
    """

    init_value: Number
    end_value: Number
    transition_steps: int

    def __post_init__(self) -> None:
        self._numbers("init_value", "end_value", domain="(0, 1)")
        self._steps("transition_steps", at_least=1)

    def _at(self, count: jax.Array) -> Any:
        left, done = progress(count, whole(self.transition_steps))
        start, end = real(self.init_value), real(self.end_value)
        value = jnp.exp(1 / (left / jnp.log1p(start - 1) + done / jnp.log1p(end - 1)))
        return jnp.where(done <= 0, start, jnp.where(left <= 0, end, value))

    def _span(self) -> int:
        return self.transition_steps


@dataclass(frozen=True, repr=False)
class polynomial_schedule(Schedule):
    """Go from one value to another along a power of the steps left.

        x        = clip((t − transition_begin) / transition_steps, 0, 1)
        value(t) = end_value + (init_value − end_value)·(1 − x)^power

    Args:
        init_value: value up to step `transition_begin`.
        end_value: value from step `transition_begin + transition_steps` on.
        power: above 0; 1 is a line, more falls early, less falls late.
        transition_steps: length of the curve, at least 1.
        transition_begin: steps to wait before it, at least 0.

    Differs: optax returns `init_value` for ever if `transition_steps` < 1 or `power` is 0, infinity
    for a negative `power`, and ignores a negative `transition_begin`; all are errors here. Compiled, it
    is NaN after the end for fractional powers and many lengths (1000 steps; optax 0.2.8 on a CPU).
    """

    init_value: Number
    end_value: Number
    power: Number
    transition_steps: int
    transition_begin: int = 0

    def __post_init__(self) -> None:
        self._numbers("init_value", "end_value")
        self._numbers("power", domain=POSITIVE)
        self._steps("transition_steps", at_least=1)
        self._steps("transition_begin")

    def _at(self, count: jax.Array) -> Any:
        shares = progress(count - whole(self.transition_begin), whole(self.transition_steps))
        return between(self.init_value, self.end_value, *powered(*shares, self.power))

    def _span(self) -> int:
        return self.transition_begin + self.transition_steps


@dataclass(frozen=True, repr=False)
class exponential_decay(Schedule):
    """Multiply by a fixed rate every `transition_steps` steps, smoothly or as a staircase.

        k        = max(t − transition_begin, 0) / transition_steps      rounded down if `staircase`
        value(t) = init_value·decay_rate^k                              not beyond `end_value`

    Args:
        init_value: value up to step `transition_begin`.
        transition_steps: steps in which the value changes by the factor `decay_rate`, at least 1.
        decay_rate: above 0; a rate above 1 grows, and growth stops before it overflows.
        transition_begin: steps to wait, at least 0.
        staircase: change only at whole multiples of `transition_steps`.
        end_value: where the value stops: the lowest if `decay_rate` < 1, else the highest.

    Differs: optax returns a constant if `transition_steps` < 1, if `decay_rate` is 0, or if
    `end_value` lies on the wrong side of `init_value`; all are errors here. Its staircase divides in
    float32, which misplaces jumps beyond step 2²⁴.
    """

    init_value: Number
    transition_steps: int
    decay_rate: Number
    transition_begin: int = 0
    staircase: bool = False
    end_value: Number | None = None

    def __post_init__(self) -> None:
        self._numbers("init_value")
        self._steps("transition_steps", at_least=1)
        self._numbers("decay_rate", domain=POSITIVE)
        self._steps("transition_begin")
        self._flag("staircase")
        if self.end_value is not None:
            self._numbers("end_value")
            check_end_value(type(self).__name__, "init_value", self.init_value, self.decay_rate, self.end_value)

    def _at(self, count: jax.Array) -> Any:
        elapsed = jnp.maximum(count - whole(self.transition_begin), 0)
        exponent = _turns(elapsed, self.transition_steps, self.staircase)
        value = real(self.init_value) * geometric(self.decay_rate, exponent)
        if self.end_value is None:
            return value
        end = real(self.end_value)
        return jnp.where(real(self.decay_rate) < 1, jnp.maximum(value, end), jnp.minimum(value, end))

    def _span(self) -> int:
        return self.transition_begin + 10 * self.transition_steps


@dataclass(frozen=True, repr=False)
class cosine_decay_schedule(Schedule):
    """Fall along half a cosine.

        x        = min(t / decay_steps, 1)
        value(t) = init_value·(alpha + (1 − alpha)·(½(1 + cos πx))^exponent)

    Args:
        init_value: value at step 0.
        decay_steps: length of the fall, at least 1.
        alpha: last value as a share of the first.
        exponent: above 0; more than 1 falls earlier.

    Reference: [loshchilov2017sgdr], equation 5, without restarts.
    """

    init_value: Number
    decay_steps: int
    alpha: Number = 0.0
    exponent: Number = 1.0

    def __post_init__(self) -> None:
        self._numbers("init_value", "alpha")
        self._steps("decay_steps", at_least=1)
        self._numbers("exponent", domain=POSITIVE)

    def _at(self, count: jax.Array) -> Any:
        shares = powered(*cosine(*progress(count, whole(self.decay_steps))), self.exponent)
        return between(self.init_value, real(self.init_value) * real(self.alpha), *shares)

    def _span(self) -> int:
        return self.decay_steps


@dataclass(frozen=True, repr=False)
class step_decay_schedule(Schedule):
    """Drop by a fixed factor every `step_size` steps.

        value(t) = init_value·decay_rate^⌊t / step_size⌋

    Args:
        init_value: value of the first `step_size` steps.
        step_size: steps between two drops, at least 1.
        decay_rate: factor of each drop, in (0, 1].

    Differs: torch's StepLR is the same curve; its unit is what you call a step (there, an epoch).
    """

    init_value: Number
    step_size: int
    decay_rate: Number

    def __post_init__(self) -> None:
        self._numbers("init_value")
        self._steps("step_size", at_least=1)
        self._numbers("decay_rate", domain=DROP)

    def _at(self, count: jax.Array) -> Any:
        return real(self.init_value) * geometric(self.decay_rate, _turns(count, self.step_size, True))

    def _span(self) -> int:
        return 5 * self.step_size


@dataclass(frozen=True, repr=False)
class inverse_time_decay_schedule(Schedule):
    """Decay as 1/t: the values have an infinite sum, their squares a finite one.

        k        = t / transition_steps                  rounded down if `staircase`
        value(t) = init_value / (1 + decay_rate·k)

    Args:
        init_value: value at step 0.
        decay_rate: at least 0; after `transition_steps / decay_rate` steps the value has halved.
        transition_steps: the unit of time, in steps, at least 1.
        staircase: change only at whole multiples of `transition_steps`.

    Reference: [robbins1951stochastic], whose conditions on the steps it meets.
    """

    init_value: Number
    decay_rate: Number
    transition_steps: int = 1
    staircase: bool = False

    def __post_init__(self) -> None:
        self._numbers("init_value")
        self._numbers("decay_rate", domain=NONNEGATIVE)
        self._steps("transition_steps", at_least=1)
        self._flag("staircase")

    def _at(self, count: jax.Array) -> Any:
        turns = _turns(count, self.transition_steps, self.staircase)
        return real(self.init_value) / (1.0 + real(self.decay_rate) * turns)

    def _span(self) -> int:
        return 10 * self.transition_steps


def check_end_value(call: str, name: str, value: Any, decay_rate: Any, end_value: Any) -> None:
    """Refuse an `end_value` that the decay starts beyond: the value would never change."""
    if not all(isinstance(x, float) for x in (value, decay_rate, end_value)):
        return
    side = "at most" if decay_rate < 1 else "at least"
    if end_value > value if decay_rate < 1 else end_value < value:
        raise ValueError(
            f"{call}: end_value={end_value!r} was given with {name}={value!r} and decay_rate={decay_rate!r}, an "
            f"end_value of {side} {name} was expected. Choose another end_value, or leave it out."
        )


def _turns(count: jax.Array, steps: Any, staircase: bool) -> jax.Array:
    steps = at_least_one(whole(steps))
    return real(count // steps) if staircase else real(count) / real(steps)
