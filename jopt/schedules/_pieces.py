"""Schedules made of pieces: boundaries with scales, and other schedules one after the other."""
# ruff: noqa: N801  (a schedule is called like the function that it is elsewhere)

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jopt.scalars import NONNEGATIVE, number
from jopt.schedules._arithmetic import cosine, joined, real, through, whole
from jopt.schedules._schedule import Number, Schedule, Table, span_of, steps


@dataclass(frozen=True, repr=False)
class piecewise_constant_schedule(Schedule):
    """Keep a value, and multiply it by a scale at each boundary.

        value(t) = init_value·∏ {scaleᵢ : boundaryᵢ ≤ t}

    Args:
        init_value: value before the first boundary.
        boundaries_and_scales: {step: scale}, with scales of at least 0.

    Differs: torch's MultiStepLR has one scale (gamma) for all of its milestones.
    """

    init_value: Number
    boundaries_and_scales: Mapping[int, Number] | None = None

    def __post_init__(self) -> None:
        self._numbers("init_value")
        self._set("boundaries_and_scales", _table(self.boundaries_and_scales, type(self).__name__))

    def _at(self, count: jax.Array) -> Any:
        level: Any = real(self.init_value)
        value = level
        for boundary, scale in dict(self.boundaries_and_scales or ()).items():
            level = level * real(scale)
            value = jnp.where(count >= boundary, level, value)
        return value

    def _span(self) -> int:
        return _last_boundary(self.boundaries_and_scales) * 5 // 4 or 100


@dataclass(frozen=True, repr=False)
class piecewise_interpolate_schedule(Schedule):
    """Go from boundary to boundary, along lines or half cosines.

        vᵢ = init_value·scale₁·…·scaleᵢ      is reached at step boundaryᵢ, and init_value at step 0

    Args:
        interpolate_type: "linear" or "cosine".
        init_value: value at step 0.
        boundaries_and_scales: {step: scale}, with scales of at least 0. The scales multiply up: they
            are not the values at the boundaries.

    Differs: optax returns 0 at steps below 0; here `init_value`.
    """

    interpolate_type: str
    init_value: Number
    boundaries_and_scales: Mapping[int, Number] | None = None

    def __post_init__(self) -> None:
        self._choice("interpolate_type", ("linear", "cosine"))
        self._numbers("init_value")
        self._set("boundaries_and_scales", _table(self.boundaries_and_scales, type(self).__name__))

    def _at(self, count: jax.Array) -> Any:
        points = [(0, real(self.init_value))]
        for boundary, scale in dict(self.boundaries_and_scales or ()).items():
            points.append((boundary, points[-1][1] * real(scale)))
        return through(count, points, cosine if self.interpolate_type == "cosine" else None)

    def _span(self) -> int:
        return _last_boundary(self.boundaries_and_scales) or 100


@dataclass(frozen=True, repr=False)
class join_schedules(Schedule):
    """Follow one schedule after the other; each counts from its own start.

        value(t) = schedules[i](t − boundaries[i − 1])      for boundaries[i − 1] ≤ t < boundaries[i]

    Args:
        schedules: any functions of the step, at least one.
        boundaries: first step of the second schedule, of the third, and so on: one fewer than
            schedules, and none below the one before it. Two equal ones skip a schedule.

    Differs: optax drops schedules or boundaries that have no partner; here that is an error. A schedule
    that is not yet due is called with 0 there, not with a negative step, so 1/t cannot divide by zero.
    """

    schedules: Sequence[Callable[..., Any]]
    boundaries: Sequence[int]

    def __post_init__(self) -> None:
        if callable(self.schedules):
            raise TypeError(
                f"join_schedules: schedules={self.schedules!r} was given, a list of schedules was expected. "
                f"Pass [first, second, ...]."
            )
        self._set("schedules", tuple(self._callable(s, f"schedules[{i}]") for i, s in enumerate(self.schedules)))
        bounds = tuple(steps(b, "join_schedules", f"boundaries[{i}]") for i, b in enumerate(self.boundaries))
        self._set("boundaries", bounds)
        if len(self.schedules) != len(bounds) + 1:
            raise ValueError(
                f"join_schedules: {len(self.schedules)} schedules and {len(bounds)} boundaries were given, one "
                f"boundary fewer than schedules was expected. Pass the first step of each schedule but the first."
            )
        for before, after in itertools.pairwise(bounds):
            if isinstance(before, int) and isinstance(after, int) and after < before:
                raise ValueError(
                    f"join_schedules: boundaries={list(bounds)} was given, steps that do not decrease were "
                    f"expected. Boundaries count from the start of training; use itertools.accumulate on lengths."
                )

    def _at(self, count: jax.Array) -> Any:
        return joined(count, self.schedules, [whole(boundary) for boundary in self.boundaries])

    def _span(self) -> int:
        last = self.boundaries[-1] if self.boundaries else 0
        return last + span_of(self.schedules[-1], otherwise=max(last, 100))


def _table(value: Any, call: str) -> Table | None:
    name = "boundaries_and_scales"
    if not value:
        return None
    try:
        items = dict(value).items()
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"{call}: {name}={value!r} was given, a dict was expected. Pass {{step: scale}}, such as {{1000: 0.1}}."
        ) from error
    pairs = ((steps(b, call, f"a boundary of {name}"), number(s, call, f"{name}[{b}]", NONNEGATIVE)) for b, s in items)
    return Table(sorted(pairs, key=lambda pair: pair[0]))


def _last_boundary(table: Any) -> int:
    return table[-1][0] if table else 0
