# ruff: noqa: N801  (a rule is called like a function, and its repr is the call that makes it)
"""When to stop: pure functions of the history, which compare by configuration.

A rule is called with the history after every record and returns the reason to stop, a sentence, or
None. Any function `history -> bool | str | None` is a rule as well; `reason` reads them all.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from jopt.scalars import integer, number
from jopt.train.fragile import name_of
from jopt.train.history import History, mode_of
from jopt.train.tables import cell, measures

StoppingRule = Callable[[History], bool | str | None]


@dataclass(frozen=True)
class early_stopping:
    """Stop when a metric has not improved for a while.

        improved:  value < best − min_delta   (mode "min";  value > best + min_delta for "max")
        stop:      `patience` records in a row did not improve

    Only records that have the metric count. NaN and infinities never improve.

    Args:
        metric: its name in the history.
        patience: records without an improvement, at least 1.
        min_delta: an improvement must be larger than this, at least 0; in the metric's own unit.
        mode: "min", "max", or "auto" to take it from the metric's name.
        restore_best: whether `fit` returns the parameters of the best record, not of the last one.

    Raises:
        ValueError: a number outside its domain; "auto" does not know the metric.
    """

    metric: str = "eval_loss"
    patience: int = 5
    min_delta: float = 0.0
    mode: str = "auto"
    restore_best: bool = True

    def __post_init__(self) -> None:
        _set(self, "patience", integer(self.patience, "early_stopping", "patience", at_least=1))
        _set(self, "min_delta", number(self.min_delta, "early_stopping", "min_delta", "[0, inf)"))
        _set(self, "mode", mode_of(self.metric, self.mode, "early_stopping"))

    def __call__(self, history: History) -> str | None:
        values = _values(history, self.metric, "early_stopping")
        sign = 1.0 if self.mode == "min" else -1.0
        best, since = math.inf, 0
        for value in values:
            improved = math.isfinite(value) and sign * value < best - self.min_delta
            best, since = (sign * value, 0) if improved else (best, since + 1)
        if since < self.patience:
            return None
        count = f"{since} record{'s' * (since > 1)}"
        if best == math.inf:
            return f"{self.metric} was not finite in the last {count}"
        return f"{self.metric} has not improved on {cell(self.metric, sign * best)} for {count}"

    def best_index(self, history: History) -> int | None:
        """Where the best record is, whose parameters `restore_best` is about; None before the first one."""
        return history.best_index(self.metric, self.mode)


@dataclass(frozen=True)
class target:
    """Stop when a metric has reached a value.

    Args:
        metric: its name in the history.
        value: to reach; the last record that has the metric decides.
        mode: "min" (at most `value`), "max" (at least), or "auto" to take it from the metric's name.

    Raises:
        ValueError: `value` is not finite; "auto" does not know the metric.
    """

    metric: str
    value: float
    mode: str = "auto"

    def __post_init__(self) -> None:
        _set(self, "value", number(self.value, "target", "value"))
        _set(self, "mode", mode_of(self.metric, self.mode, "target"))

    def __call__(self, history: History) -> str | None:
        values = _values(history, self.metric, "target")
        if not values:
            return None
        reached = values[-1] <= self.value if self.mode == "min" else values[-1] >= self.value
        if not reached:
            return None
        return f"{self.metric} reached {cell(self.metric, values[-1])}, the target was {cell(self.metric, self.value)}"


@dataclass(frozen=True)
class max_seconds:
    """Stop when the run has taken this long.

    `fit` also reads `seconds` between records, so that the budget holds where they are far apart.

    Args:
        seconds: since the start of the run, at least 0; what a resumed run took before it was stopped counts.
    """

    seconds: float

    def __post_init__(self) -> None:
        _set(self, "seconds", number(self.seconds, "max_seconds", "seconds", "[0, inf)"))

    def __call__(self, history: History) -> str | None:
        if history and history[-1].get("seconds", 0.0) >= self.seconds:
            return f"the time budget of {self.seconds:g} s is used up"
        return None


@dataclass(frozen=True)
class plateau:
    """Stop when a metric's trend is flat, which noise between records does not hide.

        a, b = the least-squares line a + b·i through the last `window` values
        gain = −b (window − 1) for mode "min",  b (window − 1) for "max"
        stop:  gain < min_delta, or ≤ 0

    Values that are not finite are left out of the line; where fewer than two are left, nothing was gained.

    Args:
        metric: its name in the history.
        window: records that have the metric, at least 2.
        min_delta: the least gain over the window that is worth going on for, at least 0.
        mode: "min", "max", or "auto" to take it from the metric's name.

    Raises:
        ValueError: a number outside its domain; "auto" does not know the metric.
    """

    metric: str = "eval_loss"
    window: int = 10
    min_delta: float = 0.0
    mode: str = "auto"

    def __post_init__(self) -> None:
        _set(self, "window", integer(self.window, "plateau", "window", at_least=2))
        _set(self, "min_delta", number(self.min_delta, "plateau", "min_delta", "[0, inf)"))
        _set(self, "mode", mode_of(self.metric, self.mode, "plateau"))

    def __call__(self, history: History) -> str | None:
        values = np.array(_values(history, self.metric, "plateau")[-self.window :])
        if len(values) < self.window:
            return None
        gain = _slope(values) * (self.window - 1) * (-1.0 if self.mode == "min" else 1.0)
        if gain > 0 and gain >= self.min_delta:
            return None
        return f"{self.metric} is on a plateau: its trend over the last {self.window} records gained {gain:.3g}"


def reason(rule: StoppingRule, history: History) -> str | None:
    """The reason to stop, or None, of any function of the history.

    Args:
        rule: one of this module's, or a function that returns the reason, or whether to stop.
        history: so far.

    Raises:
        TypeError: the function returned something else.
    """
    answer = rule(history)
    if answer is None or isinstance(answer, str):
        return answer or None
    if isinstance(answer, bool | np.bool_) or (np.ndim(answer) == 0 and np.asarray(answer).dtype == bool):
        return name_of(rule) if answer else None
    raise TypeError(
        f"{name_of(rule)}(history): {answer!r} was returned, a reason (a string), True, False or None was expected. "
        f"Return why training should stop, else None."
    )


def _values(history: History, metric: str, call: str) -> list[float]:
    """The metric's values in the records that have it.

    Raises:
        KeyError: there were records of its kind, evaluations for an ``eval_...``, and none has it.
    """
    values = history.values(metric)
    if values:
        return values
    evaluated = metric.startswith("eval_")
    names = [name for name in measures(dict.fromkeys(history.names)) if name.startswith("eval_") == evaluated]
    if names:
        raise KeyError(
            f"{call}: metric={metric!r} was given, one of {', '.join(map(repr, history.names))} was expected. "
            f"Choose a name that is recorded."
        )
    return values


def _slope(values: np.ndarray) -> float:
    finite = np.isfinite(values)
    if finite.sum() < 2:
        return 0.0
    i, y = np.flatnonzero(finite), values[finite]
    i = i - i.mean()
    return float(i @ (y - y.mean()) / (i @ i))


def _set(rule: Any, name: str, value: Any) -> None:
    object.__setattr__(rule, name, value)
