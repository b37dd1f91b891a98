"""Schedules that rise again: restarts, cycles, and the one cycle of rate and momentum."""
# ruff: noqa: N801  (a schedule is called like the function that it is elsewhere)

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jopt.scalars import DECAY, FRACTION, POSITIVE, Traced
from jopt.schedules._arithmetic import (
    LAST_STEP,
    at_least_one,
    between,
    cosine,
    geometric,
    joined,
    real,
    through,
    whole,
)
from jopt.schedules._schedule import Number, Schedule, Table
from jopt.schedules._warmup import warmup_cosine_decay_schedule


@dataclass(frozen=True, repr=False)
class sgdr_schedule(Schedule):
    """Run several warm-up and cosine cycles, one after the other.

        value(t) = warmup_cosine_decay_schedule(**cosine_kwargs[i])(t − Tᵢ)      for Tᵢ ≤ t < Tᵢ₊₁
        Tᵢ       = decay_steps of the cycles before cycle i, added up

    Args:
        cosine_kwargs: for each cycle the arguments of `warmup_cosine_decay_schedule`, as a dict.

    Differs: the paper has no warm-up and its cycles share their numbers; `cosine_restarts_schedule` is that.
    Reference: [loshchilov2017sgdr].
    """

    cosine_kwargs: Iterable[Mapping[str, Any]]

    def __post_init__(self) -> None:
        cycles = tuple(_cycle_arguments(kwargs, i) for i, kwargs in enumerate(self.cosine_kwargs))
        if not cycles:
            raise ValueError(
                "sgdr_schedule: cosine_kwargs=[] was given, at least one cycle was expected. "
                "Pass a dict of the arguments of warmup_cosine_decay_schedule for each."
            )
        self._set("cosine_kwargs", cycles)

    def _at(self, count: jax.Array) -> Any:
        cycles = self._cycles()
        boundaries = [whole(cycles[0].decay_steps)]
        for cycle in cycles[1:]:
            boundaries.append(boundaries[-1] + whole(cycle.decay_steps))
        return joined(count, cycles, boundaries[:-1])

    def _span(self) -> int:
        return sum(cycle.decay_steps for cycle in self._cycles())

    def _cycles(self) -> list[warmup_cosine_decay_schedule]:
        return [warmup_cosine_decay_schedule(**dict(kwargs)) for kwargs in self.cosine_kwargs]


@dataclass(frozen=True, repr=False)
class cosine_restarts_schedule(Schedule):
    """Fall along half a cosine again and again, each time longer and from a lower start.

        Lᵢ       = first_decay_steps·t_mulⁱ,      Tᵢ = L₀ + … + Lᵢ₋₁
        value(t) = init_value·(alpha + (1 − alpha)·m_mulⁱ·½(1 + cos π(t − Tᵢ)/Lᵢ))      for Tᵢ ≤ t < Tᵢ₊₁

    Args:
        init_value: value at step 0.
        first_decay_steps: length of the first cycle, at least 1.
        t_mul: a cycle is that many times as long as the one before; whole, at least 1.
        m_mul: a cycle is that many times as high as the one before; above 0.
        alpha: lowest value as a share of `init_value`, not lowered by `m_mul`.

    Differs: Keras' CosineDecayRestarts is the same curve, but takes a fractional t_mul, and finds the
    cycle with a rounded logarithm; here each restart is at its very step.
    Reference: [loshchilov2017sgdr], equation 5.
    """

    init_value: Number
    first_decay_steps: int
    t_mul: int = 2
    m_mul: Number = 1.0
    alpha: Number = 0.0

    def __post_init__(self) -> None:
        self._numbers("init_value", "alpha")
        self._steps("first_decay_steps", "t_mul", at_least=1)
        self._numbers("m_mul", domain=POSITIVE)
        if isinstance(self.t_mul, Traced):
            raise TypeError(
                f"cosine_restarts_schedule: t_mul={self.t_mul!r} was given, a Python int was expected. "
                f"It decides how many cycles there are; keep it out of jit and vmap."
            )

    def _at(self, count: jax.Array) -> Any:
        first = at_least_one(whole(self.first_decay_steps))
        turns = count // first
        if self.t_mul == 1:
            cycle, done = turns, real(count % first) / real(first)
        else:
            # Tᵢ = first·(t_mulⁱ − 1)/(t_mul − 1), so turns ≥ Tᵢ/first exactly if t ≥ Tᵢ: no logarithm.
            starts = [0]
            while starts[-1] * self.t_mul + 1 <= LAST_STEP:
                starts.append(starts[-1] * self.t_mul + 1)
            table = jnp.asarray(np.array(starts, np.int32))
            cycle = jnp.searchsorted(table, turns, side="right", method="compare_all").astype(jnp.int32) - 1
            lengths = jnp.asarray(np.array([float(self.t_mul) ** i for i in range(len(starts))]), real(turns).dtype)
            done = real(count - first * table[cycle]) / (real(first) * lengths[cycle])
        left, done = cosine(1.0 - done, done)
        init, alpha = real(self.init_value), real(self.alpha)
        return between(init * (alpha + (1.0 - alpha) * geometric(self.m_mul, real(cycle))), init * alpha, left, done)

    def _span(self) -> int:
        return self.first_decay_steps * sum(self.t_mul**i for i in range(4 if self.t_mul == 1 else 3))


@dataclass(frozen=True, repr=False)
class cyclical_schedule(Schedule):
    """Go up and down between two values for ever.

        h, i     = half_cycle_steps, ⌊t / 2h⌋
        x        = 1 − |t/h − 2i − 1|                            rises from 0 to 1, falls to 0
        value(t) = init_value + (peak_value − init_value)·x·a
        a        = 1  (triangular),  2^−i  (triangular2),  gamma^t  (exp_range)

    Args:
        init_value: value at the start of each cycle.
        peak_value: value in the middle of the first.
        half_cycle_steps: length of the rise and of the fall, at least 1; the paper advises 2 to 10 epochs.
        mode: how the height shrinks: "triangular", "triangular2" (halves with each cycle) or "exp_range".
        gamma: in (0, 1], the factor per step; needed by, and only for, "exp_range".

    Reference: [smith2017cyclical], section 3.
    """

    init_value: Number
    peak_value: Number
    half_cycle_steps: int
    mode: str = "triangular"
    gamma: Number | None = None

    def __post_init__(self) -> None:
        self._numbers("init_value", "peak_value")
        self._steps("half_cycle_steps", at_least=1)
        self._choice("mode", ("triangular", "triangular2", "exp_range"))
        if (self.gamma is None) == (self.mode == "exp_range"):
            wanted = "a gamma such as 0.9999" if self.gamma is None else "no gamma"
            raise ValueError(
                f"cyclical_schedule: gamma={self.gamma!r} was given with mode={self.mode!r}, {wanted} was expected. "
                f"gamma is the factor per step of mode='exp_range'."
            )
        if self.gamma is not None:
            self._numbers("gamma", domain="(0, 1]")

    def _at(self, count: jax.Array) -> Any:
        half = at_least_one(whole(self.half_cycle_steps))
        halves, since = count // half, count % half
        share = real(since) / real(half)
        rising = halves % 2 == 0
        down, up = jnp.where(rising, 1.0 - share, share), jnp.where(rising, share, 1.0 - share)
        init, peak = real(self.init_value), real(self.peak_value)
        if self.mode == "triangular2":
            peak = init + (peak - init) * geometric(0.5, real(halves // 2))
        elif self.mode == "exp_range":
            peak = init + (peak - init) * geometric(self.gamma, real(count))
        return between(init, peak, down, up)

    def _span(self) -> int:
        return 6 * self.half_cycle_steps


@dataclass(frozen=True, repr=False)
class linear_onecycle_schedule(Schedule):
    """Rise, fall back, and then fall much further, along three lines.

        step     0            ⌊pct_start·T⌋      ⌊pct_final·T⌋      T = transition_steps
        value    peak/div     peak               peak/div           peak/(div·final_div)

    Args:
        transition_steps: T, at least 1.
        peak_value: the highest value.
        pct_start: end of the rise as a share of T, in [0, 1].
        pct_final: end of the first fall as a share of T, in [pct_start, 1].
        div_factor: peak over first value, above 0.
        final_div_factor: first over last value, above 0.

    Differs: where two of the steps coincide (`pct_final=1`, or few steps), optax loses a phase and ends
    at another value; here a phase of no steps is passed over. The same holds for the cosine version.
    Reference: [smith2018superconvergence].
    """

    transition_steps: int
    peak_value: Number
    pct_start: Number = 0.3
    pct_final: Number = 0.85
    div_factor: Number = 25.0
    final_div_factor: Number = 1e4

    def __post_init__(self) -> None:
        self._steps("transition_steps", at_least=1)
        self._numbers("peak_value")
        self._numbers("pct_start", "pct_final", domain=FRACTION)
        self._numbers("div_factor", "final_div_factor", domain=POSITIVE)
        start, final = self.pct_start, self.pct_final
        if isinstance(start, float) and isinstance(final, float) and final < start:
            raise ValueError(
                f"linear_onecycle_schedule: pct_final={final!r} was given with pct_start={start!r}, a pct_final of "
                f"at least pct_start was expected. Both count from the start: the fall ends after the rise."
            )

    def _at(self, count: jax.Array) -> Any:
        steps, peak = whole(self.transition_steps), real(self.peak_value)
        first = peak / real(self.div_factor)
        points = [
            (0, first),
            (_share(self.pct_start, steps), peak),
            (_share(self.pct_final, steps), first),
            (steps, first / real(self.final_div_factor)),
        ]
        return through(count, points)

    def _span(self) -> int:
        return self.transition_steps


@dataclass(frozen=True, repr=False)
class cosine_onecycle_schedule(Schedule):
    """Rise and then fall much further, along two half cosines.

        step     0            ⌊pct_start·T⌋      T = transition_steps
        value    peak/div     peak               peak/(div·final_div)

    Args:
        transition_steps: T, at least 1.
        peak_value: the highest value.
        pct_start: end of the rise as a share of T, in [0, 1].
        div_factor: peak over first value, above 0.
        final_div_factor: first over last value, above 0.

    Differs: as `linear_onecycle_schedule`. fastai's defaults are pct_start=0.25, final_div_factor=4e3.
    Reference: [smith2018superconvergence]; the cosine shape is fastai's.
    """

    transition_steps: int
    peak_value: Number
    pct_start: Number = 0.3
    div_factor: Number = 25.0
    final_div_factor: Number = 1e4

    def __post_init__(self) -> None:
        self._steps("transition_steps", at_least=1)
        self._numbers("peak_value")
        self._numbers("pct_start", domain=FRACTION)
        self._numbers("div_factor", "final_div_factor", domain=POSITIVE)

    def _at(self, count: jax.Array) -> Any:
        steps, peak = whole(self.transition_steps), real(self.peak_value)
        first = peak / real(self.div_factor)
        last = first / real(self.final_div_factor)
        return through(count, [(0, first), (_share(self.pct_start, steps), peak), (steps, last)], cosine)

    def _span(self) -> int:
        return self.transition_steps


@dataclass(frozen=True, repr=False)
class one_cycle_momentum_schedule(Schedule):
    """Momentum for one cycle of the rate: low where the rate is high.

        step     0             ⌊pct_start·T⌋      T = transition_steps
        value    high_value    low_value          high_value                 along half cosines

    It lines up with `cosine_onecycle_schedule` of the same `transition_steps` and `pct_start`.

    Args:
        transition_steps: T, at least 1.
        high_value: momentum (or b1) at both ends, in [0, 1).
        low_value: momentum where the rate peaks, in [0, high_value].
        pct_start: end of the first phase as a share of T, in [0, 1].

    Reference: [smith2018superconvergence].
    """

    transition_steps: int
    high_value: Number = 0.95
    low_value: Number = 0.85
    pct_start: Number = 0.3

    def __post_init__(self) -> None:
        self._steps("transition_steps", at_least=1)
        self._numbers("high_value", "low_value", domain=DECAY)
        self._numbers("pct_start", domain=FRACTION)
        high, low = self.high_value, self.low_value
        if isinstance(high, float) and isinstance(low, float) and low > high:
            raise ValueError(
                f"one_cycle_momentum_schedule: low_value={low!r} was given with high_value={high!r}, a low_value of "
                f"at most high_value was expected. Swap the two: momentum is low while the rate is high."
            )

    def _at(self, count: jax.Array) -> Any:
        steps = whole(self.transition_steps)
        points = [(0, self.high_value), (_share(self.pct_start, steps), self.low_value), (steps, self.high_value)]
        return through(count, points, cosine)

    def _span(self) -> int:
        return self.transition_steps


def _cycle_arguments(kwargs: Any, index: int) -> Table:
    try:
        cycle = warmup_cosine_decay_schedule(**dict(kwargs))
    except TypeError as error:
        raise TypeError(
            f"sgdr_schedule: cosine_kwargs[{index}]={kwargs!r} was given, the arguments of "
            f"warmup_cosine_decay_schedule were expected. Pass a dict with init_value, peak_value, warmup_steps "
            f"and decay_steps ({error})."
        ) from error
    given = ((f.name, getattr(cycle, f.name), f.default) for f in fields(cycle))
    return Table((name, value) for name, value, default in given if default is MISSING or value != default)


def _share(fraction: Any, steps: Any) -> Any:
    """⌊fraction·steps⌋, as optax rounds it: 0.29 of 100 steps are 28."""
    if isinstance(fraction, float) and isinstance(steps, int):
        return math.floor(fraction * steps)
    part = jnp.floor(real(fraction) * real(steps)).astype(jnp.int32)
    return jnp.minimum(part, steps)
