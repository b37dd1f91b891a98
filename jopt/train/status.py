"""Where a run is, and how that reads on one line."""

import math
import unicodedata
from collections.abc import Mapping
from typing import Any, NamedTuple

from jopt.train.tables import cell, title

BAR = 16  # characters
MEMORY = 5.0  # seconds over which the speed is averaged


class Status(NamedTuple):
    """Where a run is.

    Attributes:
        step, epoch: done.
        total: steps at the end; None if unknown.
        epochs: at the end; None if unknown.
        values: the numbers shown: loss, metrics, learning rate.
        rate: steps in a second; None before two moments are known.
    """

    step: int
    total: int | None = None
    epoch: float = 0.0
    epochs: float | None = None
    values: Mapping[str, Any] = {}
    rate: float | None = None

    @property
    def share(self) -> float | None:
        """How much is done, in [0, 1]; from the epochs where the steps are not known."""
        if self.total:
            return min(self.step / self.total, 1.0)
        return min(self.epoch / self.epochs, 1.0) if self.epochs else None

    @property
    def left(self) -> float | None:
        """Seconds to go at the present speed."""
        if not self.share or not self.rate:
            return None
        return max((self.total or self.step / self.share) - self.step, 0.0) / self.rate


class Speed(NamedTuple):
    """Steps a second, the recent ones weighing more: an exponential average over about `MEMORY` seconds."""

    step: int
    seconds: float
    weight: float = 0.0
    rate: float | None = None

    def at(self, step: int, seconds: float) -> "Speed":
        """The speed after more steps, at a later time."""
        passed = seconds - self.seconds
        if passed <= 0 or step <= self.step:
            return self
        keep = math.exp(-passed / MEMORY)
        weight = keep * self.weight + (1 - keep)  # below 1 at first: the average must not start from 0
        rate = (keep * self.weight * (self.rate or 0.0) + (1 - keep) * (step - self.step) / passed) / weight
        return Speed(step, seconds, weight, rate)


def bar(share: float, width: int = BAR) -> str:
    """A bar of which a share is filled."""
    filled = int(width * share)
    return "━" * filled + "─" * (width - filled)


def place(status: Status) -> str:
    """Epoch and step, of how many."""
    epoch = f"epoch {cell('epoch', status.epoch)}" + (f"/{status.epochs:g}" if status.epochs else "")
    return f"{epoch}  step {status.step}" + (f"/{status.total}" if status.total else "")


def pace(status: Status) -> str:
    """Speed and time to go, as far as known."""
    left = f"{_duration(status.left)} left" if status.left and status.left >= 1 else ""
    return "  ".join(filter(None, [left, _speed(status.rate) if status.rate else ""]))


def numbers(values: Mapping[str, Any]) -> str:
    """Names and values on one line, without epoch and step; what has a "/" in its name is left out."""
    return "  ".join(
        f"{'lr' if name == 'learning_rate' else title(name)} {cell(name, value)}"
        for name, value in values.items()
        if "/" not in name and name not in ("epoch", "step", "seconds")
    )


def line(status: Status) -> str:
    """All about a status; what matters least comes last, as the end may be cut off."""
    return "  ".join(filter(None, [pace(status), numbers(status.values), place(status)]))


def clipped(text: str, width: int) -> str:
    """The text cut to a width in columns of a terminal, in which some characters take two or none."""
    taken = 0
    for i, c in enumerate(text):
        taken += 0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1
        if taken > width:
            return text[:i]
    return text


def _duration(seconds: float) -> str:
    """Hours, minutes and seconds, as 1:02:03 or 2:03."""
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02}:{s:02}" if hours else f"{m}:{s:02}"


def _speed(rate: float) -> str:
    """A rate of steps, the other way round below one a second."""
    if rate < 1:
        return f"{1 / rate:.1f} s/it"
    return f"{rate:.1f} it/s" if rate < 10 else f"{rate:,.0f} it/s"
