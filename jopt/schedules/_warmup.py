"""Schedules that start with a linear warm-up; a warm-up of no steps is valid everywhere."""
# ruff: noqa: N801  (a schedule is called like the function that it is elsewhere)

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jopt.scalars import POSITIVE
from jopt.schedules._arithmetic import at_least_one, between, cosine, powered, progress, real, whole
from jopt.schedules._decay import check_end_value, exponential_decay
from jopt.schedules._schedule import Number, Schedule, span_of


@dataclass(frozen=True, repr=False)
class warmup(Schedule):
    """Rise linearly to the start of any schedule, which then begins at its own step 0.

        value(t) = init_value + (schedule(0) − init_value)·t / warmup_steps      t < warmup_steps
                   schedule(t − warmup_steps)                                    afterwards

    Args:
        schedule: any function of the step.
        warmup_steps: length of the rise, at least 0; the whole is longer than `schedule` by that much.
        init_value: value at step 0.

    Reference: [goyal2017accurate], section 2.2.
    """

    schedule: Callable[..., Any]
    warmup_steps: int
    init_value: Number = 0.0

    def __post_init__(self) -> None:
        self._callable(self.schedule, "schedule")
        self._steps("warmup_steps")
        self._numbers("init_value")

    def _at(self, count: jax.Array) -> Any:
        peak = jnp.asarray(self.schedule(jnp.zeros((), jnp.int32)))
        return _warmed(count, self.init_value, peak, self.warmup_steps, self.schedule)

    def _span(self) -> int:
        return self.warmup_steps + span_of(self.schedule, otherwise=max(10 * self.warmup_steps, 100))


@dataclass(frozen=True, repr=False)
class warmup_constant_schedule(Schedule):
    """Rise linearly, then keep the value.

        value(t) = init_value + (peak_value − init_value)·min(t / warmup_steps, 1)

    Args:
        init_value: value at step 0.
        peak_value: value from step `warmup_steps` on.
        warmup_steps: length of the rise, at least 0.

    Differs: with `warmup_steps=0` optax stays at `init_value` for ever; here it is `peak_value` at once.
    """

    init_value: Number
    peak_value: Number
    warmup_steps: int

    def __post_init__(self) -> None:
        self._numbers("init_value", "peak_value")
        self._steps("warmup_steps")

    def _at(self, count: jax.Array) -> Any:
        return between(self.init_value, self.peak_value, *progress(count, whole(self.warmup_steps)))

    def _span(self) -> int:
        return max(2 * self.warmup_steps, 100)


@dataclass(frozen=True, repr=False)
class warmup_cosine_decay_schedule(Schedule):
    """Rise linearly, then fall along half a cosine.

        x        = clip((t − warmup_steps) / (decay_steps − warmup_steps), 0, 1)
        value(t) = init_value + (peak_value − init_value)·t / warmup_steps                     t < warmup_steps
                   end_value + (peak_value − end_value)·(½(1 + cos πx))^exponent               afterwards

    Args:
        init_value: value at step 0.
        peak_value: value at step `warmup_steps`.
        warmup_steps: length of the rise, at least 0.
        decay_steps: length of rise and fall together, above `warmup_steps`.
        end_value: value from step `decay_steps` on.
        exponent: above 0; more than 1 falls earlier.

    Differs: with `peak_value=0` optax ignores `end_value`; here it is reached.
    Reference: [loshchilov2017sgdr] for the fall, [goyal2017accurate] for the rise.
    """

    init_value: Number
    peak_value: Number
    warmup_steps: int
    decay_steps: int
    end_value: Number = 0.0
    exponent: Number = 1.0

    def __post_init__(self) -> None:
        self._numbers("init_value", "peak_value", "end_value")
        self._steps("warmup_steps")
        self._steps("decay_steps", at_least=1)
        self._numbers("exponent", domain=POSITIVE)
        warm, total = self.warmup_steps, self.decay_steps
        if isinstance(warm, int) and isinstance(total, int) and total <= warm:
            raise ValueError(
                f"warmup_cosine_decay_schedule: decay_steps={total} was given with warmup_steps={warm}, more "
                f"decay_steps than warmup_steps were expected, because decay_steps counts both phases. "
                f"To fall over {total} steps after the warm-up pass decay_steps={warm + total}."
            )

    def _at(self, count: jax.Array) -> Any:
        return _warmed(count, self.init_value, self.peak_value, self.warmup_steps, self._fall)

    def _fall(self, count: jax.Array) -> jax.Array:
        shares = cosine(*progress(count, whole(self.decay_steps) - whole(self.warmup_steps)))
        return between(self.peak_value, self.end_value, *powered(*shares, self.exponent))

    def _span(self) -> int:
        return self.decay_steps


@dataclass(frozen=True, repr=False)
class warmup_exponential_decay_schedule(Schedule):
    """Rise linearly, then decay by a fixed rate.

        k        = max(t − warmup_steps − transition_begin, 0) / transition_steps      rounded down if `staircase`
        value(t) = init_value + (peak_value − init_value)·t / warmup_steps             t < warmup_steps
                   peak_value·decay_rate^k                                             not beyond `end_value`

    Args:
        init_value: value at step 0.
        peak_value: value at step `warmup_steps`.
        warmup_steps: length of the rise, at least 0.
        transition_steps: steps in which the value changes by the factor `decay_rate`, at least 1.
        decay_rate: above 0; a rate above 1 grows, and growth stops before it overflows.
        transition_begin: steps to wait at the peak, at least 0.
        staircase: change only at whole multiples of `transition_steps`.
        end_value: where the value stops: the lowest if `decay_rate` < 1, else the highest.

    Differs: as `exponential_decay`.
    """

    init_value: Number
    peak_value: Number
    warmup_steps: int
    transition_steps: int
    decay_rate: Number
    transition_begin: int = 0
    staircase: bool = False
    end_value: Number | None = None

    def __post_init__(self) -> None:
        self._numbers("init_value", "peak_value")
        self._steps("warmup_steps", "transition_begin")
        self._steps("transition_steps", at_least=1)
        self._numbers("decay_rate", domain=POSITIVE)
        self._flag("staircase")
        if self.end_value is not None:
            self._numbers("end_value")
            check_end_value(type(self).__name__, "peak_value", self.peak_value, self.decay_rate, self.end_value)

    def _at(self, count: jax.Array) -> Any:
        return _warmed(count, self.init_value, self.peak_value, self.warmup_steps, self._decay())

    def _decay(self) -> exponential_decay:
        return exponential_decay(
            self.peak_value,
            self.transition_steps,
            self.decay_rate,
            self.transition_begin,
            self.staircase,
            self.end_value,
        )

    def _span(self) -> int:
        return self.warmup_steps + self._decay()._span()


@dataclass(frozen=True, repr=False)
class inverse_sqrt_schedule(Schedule):
    """Rise linearly, then decay as one over the square root of the step: the schedule of the Transformer.

        τ        = timescale or max(warmup_steps, 1)
        value(t) = init_value + (peak_value − init_value)·t / warmup_steps      t < warmup_steps
                   peak_value·√(τ / (τ + t − warmup_steps))                     afterwards

    With the default τ the second line is peak_value·√(warmup_steps / t).

    Args:
        peak_value: value at step `warmup_steps`, the highest.
        warmup_steps: length of the rise, at least 0.
        init_value: value at step 0.
        timescale: τ, in steps, above 0: after 3τ steps of decay the value has halved.

    Differs: the paper counts from 1 and sets peak_value = (d_model·warmup_steps)^−½.
    Reference: [vaswani2017attention], equation 3.
    """

    peak_value: Number
    warmup_steps: int
    init_value: Number = 0.0
    timescale: Number | None = None

    def __post_init__(self) -> None:
        self._numbers("peak_value", "init_value")
        self._steps("warmup_steps")
        if self.timescale is not None:
            self._numbers("timescale", domain=POSITIVE)

    def _at(self, count: jax.Array) -> Any:
        return _warmed(count, self.init_value, self.peak_value, self.warmup_steps, self._decay)

    def _decay(self, count: jax.Array) -> jax.Array:
        timescale = at_least_one(whole(self.warmup_steps)) if self.timescale is None else self.timescale
        return real(self.peak_value) * jax.lax.rsqrt(1.0 + real(count) / real(timescale))

    def _span(self) -> int:
        return max(10 * self.warmup_steps, 100)


@dataclass(frozen=True, repr=False)
class warmup_stable_decay_schedule(Schedule):
    """Rise linearly, stay at the peak, then fall at the end: a run can be prolonged before it falls.

        x        = clip((t − warmup_steps − stable_steps) / decay_steps, 0, 1)
        value(t) = init_value + (peak_value − init_value)·t / warmup_steps      t < warmup_steps
                   end_value + (peak_value − end_value)·f(x)                    afterwards
        f(x)     = 1 − x  (linear),  ½(1 + cos πx)  (cosine),  1 − √x  (sqrt)

    Args:
        peak_value: value between rise and fall.
        warmup_steps: length of the rise, at least 0.
        stable_steps: steps at the peak, at least 0.
        decay_steps: length of the fall, at least 0; a fall of no steps jumps to `end_value`.
        init_value: value at step 0.
        end_value: value after the fall.
        decay: shape of the fall: "linear", "cosine" or "sqrt".

    Differs: MiniCPM falls exponentially; the 1 − √x shape is that of Hägele et al.
    Reference: [hu2024minicpm], section 4; [hagele2024scaling] for the shapes of the fall.
    """

    peak_value: Number
    warmup_steps: int
    stable_steps: int
    decay_steps: int
    init_value: Number = 0.0
    end_value: Number = 0.0
    decay: str = "linear"

    def __post_init__(self) -> None:
        self._numbers("peak_value", "init_value", "end_value")
        self._steps("warmup_steps", "stable_steps", "decay_steps")
        self._choice("decay", ("linear", "cosine", "sqrt"))

    def _at(self, count: jax.Array) -> Any:
        return _warmed(count, self.init_value, self.peak_value, self.warmup_steps, self._fall)

    def _fall(self, count: jax.Array) -> jax.Array:
        left, done = progress(count - whole(self.stable_steps), whole(self.decay_steps))
        if self.decay == "cosine":
            left, done = cosine(left, done)
        elif self.decay == "sqrt":
            # (1 − √x) = (1 − x)/(1 + √x): the right side keeps its digits near the end.
            root = jnp.sqrt(done)
            left, done = left / (1.0 + root), root
        return between(self.peak_value, self.end_value, left, done)

    def _span(self) -> int:
        return self.warmup_steps + self.stable_steps + self.decay_steps


def _warmed(count: jax.Array, init: Any, peak: Any, warmup_steps: Any, after: Callable[[jax.Array], Any]) -> jax.Array:
    steps = whole(warmup_steps)
    rise = between(init, peak, *progress(count, steps))
    fall = jnp.asarray(after(jnp.maximum(count - steps, 0)), rise.dtype)
    return jnp.where(count < steps, rise, fall)
