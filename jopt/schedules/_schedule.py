"""What every schedule is: a frozen, comparable function of the integer step, which prints and plots."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import fields
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from jopt.scalars import FINITE, Traced, integer, number, raw, scalar_dtype
from jopt.schedules._arithmetic import LAST_STEP, step_count

# What a user may give for a number; it becomes a Python float, or `Traced`.
Number: TypeAlias = float | int | np.ndarray | jax.Array | Traced


class Schedule(ABC):
    """A function of the step: `schedule(count)`, where the first update has `count` 0.

    Subclasses are frozen dataclasses; they normalise their fields in `__post_init__` and compute in
    `_at`. In return they compare and hash by configuration, pickle, print as the call that makes
    them, and plot.
    """

    @abstractmethod
    def _at(self, count: jax.Array) -> Any:
        """The value at int32 steps that are already within 0 .. 2³¹ − 1, of their shape or a scalar."""

    @abstractmethod
    def _span(self) -> int:
        """How many steps show the whole shape; the default length of a plot."""

    def __call__(self, count: jax.typing.ArrayLike) -> jax.Array:
        """Value at each step of `count`, a whole number or an array of them of any shape.

        Steps below 0 are taken as 0, and steps above 2³¹ − 1 as 2³¹ − 1.
        """
        count = step_count(count, type(self).__name__)
        value = jax.lax.convert_element_type(self._at(count), scalar_dtype())
        return jnp.broadcast_to(value, count.shape)

    def __repr__(self) -> str:
        given = ((f.name, getattr(self, f.name), f.default) for f in fields(self))  # type: ignore[arg-type]
        arguments = ", ".join(f"{name}={show(value)}" for name, value, default in given if value != default)
        return f"{type(self).__name__}({arguments})"

    def plot(self, steps: int | None = None, ax: Any = None) -> Any:
        """Draw the schedule, and return the matplotlib axes.

        Args:
            steps: last step drawn; by default a little more than the shape needs.
            ax: axes to draw on, for several schedules in one picture (then call `ax.legend()`);
                by default those of a new figure.
        """
        name = type(self).__name__
        if "<traced " in repr(self):  # here, or in a schedule inside this one
            raise TypeError(
                f"{name}.plot(): {self!r} was given, a schedule of concrete numbers was expected. "
                f"Plot outside of jit, vmap and grad."
            )
        try:
            import matplotlib.pyplot as plt
        except ImportError as error:
            raise ImportError(f'{name}.plot() needs matplotlib. Install it with: pip install "jopt[plot]"') from error
        asked = self._span() * 11 // 10 + 1 if steps is None else integer(steps, f"{name}.plot", "steps", 1)
        last = min(int(raw(asked)), LAST_STEP)
        # A screen shows about two thousand points; below that every step is drawn, so jumps stay sharp.
        counts = np.unique(np.linspace(0, last, min(last + 1, 2001)).astype(np.int32))
        if ax is None:
            _, ax = plt.subplots(figsize=(7.0, 4.0), layout="constrained")
        title = _shortened(repr(self), 64)
        if not ax.lines:
            ax.set_title(title, fontsize=11, pad=14)  # clear of the "1e-4" above the axis
        ax.plot(counts, np.asarray(jax.jit(self)(jnp.asarray(counts))), linewidth=2.5, label=title)
        ax.set_xlabel("step", fontsize=13)
        ax.set_ylabel("value", fontsize=13)
        ax.ticklabel_format(axis="y", style="sci", scilimits=(-2, 4))
        ax.margins(x=0.02)
        ax.grid(alpha=0.25)
        ax.spines[["top", "right"]].set_visible(False)
        return ax

    def _numbers(self, *names: str, domain: str = FINITE) -> None:
        for name in names:
            self._set(name, number(getattr(self, name), type(self).__name__, name, domain))

    def _steps(self, *names: str, at_least: int = 0) -> None:
        for name in names:
            self._set(name, steps(getattr(self, name), type(self).__name__, name, at_least))

    def _flag(self, name: str) -> None:
        value = getattr(self, name)
        if not isinstance(value, bool | np.bool_):
            raise TypeError(
                f"{type(self).__name__}: {name}={value!r} was given, True or False was expected. "
                f"Pass a Python bool: it decides which program is compiled."
            )
        self._set(name, bool(value))

    def _choice(self, name: str, options: tuple[str, ...]) -> None:
        value = getattr(self, name)
        if value not in options:
            raise ValueError(
                f"{type(self).__name__}: {name}={value!r} was given, one of {', '.join(map(repr, options))} "
                f"was expected. Choose one of these."
            )

    def _callable(self, value: Any, name: str) -> Callable[..., Any]:
        if not callable(value):
            raise TypeError(
                f"{type(self).__name__}: {name}={value!r} was given, a schedule (a function of the step) was "
                f"expected. For a fixed number pass constant_schedule({value!r})."
            )
        return value

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)


class Table(tuple):
    """A dict as a hashable tuple of pairs, which prints as the dict."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "{" + ", ".join(f"{key!r}: {show(value)}" for key, value in self) + "}"


def show(value: Any) -> str:
    """How a field is printed inside a call: tuples as the lists that users write."""
    if type(value) is tuple:
        return "[" + ", ".join(map(show, value)) + "]"
    return repr(value)


def steps(value: Any, call: str, name: str, at_least: int = 0) -> Any:
    """Normalise one number of steps: whole, and small enough for int32 arithmetic."""
    result = integer(value, call, name, at_least)
    if isinstance(result, int) and result > LAST_STEP:
        raise ValueError(
            f"{call}: {name}={result} was given, at most {LAST_STEP} steps (2**31 - 1) were expected. "
            f"Steps are counted in int32; choose a smaller {name}."
        )
    return result


def span_of(schedule: Callable[..., Any], otherwise: int) -> int:
    """The span of a schedule that may be any function of the step."""
    return schedule._span() if isinstance(schedule, Schedule) else otherwise


def _shortened(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"
