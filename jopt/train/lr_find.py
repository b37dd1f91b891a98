"""The learning-rate range test: train with a rate that grows, and see where the loss falls and where it breaks."""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jopt.train.cache import cached
from jopt.train.losses import as_loss
from jopt.train.plots import COLOURS, PALE, STYLE, pyplot, require
from jopt.train.step import Carry
from jopt.train.trial import Operands, Trial, spaced, step_at, trial

RULES = ("valley", "steepest", "minimum")
LEAST_POINTS = 5
"""Fewer than these, after the ends are left out, say nothing."""
LAST_POINTS = 5
"""Left out at the end of a curve, where the loss shoots up."""


# The suggestions ----------------------------------------------------------------------------------


def judged(count: int) -> slice:
    """The points of a curve that suggestions look at: not the first tenth, not the last five."""
    return slice(count // 10, max(count - LAST_POINTS, 0))


def longest_descent(losses: np.ndarray) -> np.ndarray:
    """The places of the longest subsequence in which every loss is below the one before."""
    length, before = np.ones(len(losses), int), np.full(len(losses), -1)
    for i in range(1, len(losses)):
        above = np.flatnonzero(losses[:i] > losses[i])
        if len(above):
            before[i] = above[np.argmax(length[above])]
            length[i] = length[before[i]] + 1
    places = [int(np.argmax(length))]
    while before[places[-1]] >= 0:
        places.append(before[places[-1]])
    return np.array(places[::-1])


def valley(losses: np.ndarray) -> int:
    """Two thirds down the longest descent.

    A subsequence steps over bumps, and takes few points of a flat noisy part: these hardly move the result.
    """
    places = longest_descent(losses)
    return int(places[2 * (len(places) - 1) // 3])


def steepest(losses: np.ndarray, rates: np.ndarray) -> int:
    """Where the loss falls fastest in log rate."""
    return int(np.argmin(np.gradient(losses, np.log(rates))))


def noise(losses: np.ndarray) -> float:
    """Standard deviation of a loss around its trend, from the median difference of neighbours."""
    steps = np.diff(losses)
    return 1.4826 / math.sqrt(2) * float(np.median(np.abs(steps - np.median(steps))))


# The result ---------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class LRFind:
    """What a range test saw; ``float(found)`` is the suggestion.

    Attributes:
        rates: learning rate of each step, float64[n].
        losses: on each step's batch, before the step, float64[n].
        smoothed: their exponential mean, float64[n]; suggestions and the end of the test are read from it.
        diverged: the rate at which the test ended early; None if it did not.
        rule: of `suggestion`: "valley", "steepest" or "minimum".
    """

    rates: np.ndarray
    losses: np.ndarray
    smoothed: np.ndarray
    diverged: float | None
    rule: str = "valley"

    @property
    def valley(self) -> float | None:
        """Two thirds down the longest descent of the smoothed loss."""
        return self._at(lambda rates, losses: rates[valley(losses)])

    @property
    def steepest(self) -> float | None:
        """Where the smoothed loss falls fastest in log rate."""
        return self._at(lambda rates, losses: rates[steepest(losses, rates)])

    @property
    def minimum(self) -> float | None:
        """A tenth of the rate with the least smoothed loss."""
        return self._at(lambda rates, losses: rates[np.argmin(losses)] / 10)

    @property
    def suggestion(self) -> float | None:
        """The rate that `rule` chooses; None where the curve shows none."""
        return getattr(self, self.rule)

    def __float__(self) -> float:
        found = self.suggestion
        if found is None:
            raise ValueError(f"lr_find: a learning rate was asked for, but {self._missing()}")
        return found

    def plot(self, ax: Any = None) -> tuple[Any, Any]:
        """Draw the loss over the rate with the suggestions.

        Args:
            ax: axes to draw on; None: those of a new figure.

        Returns:
            The matplotlib figure and axes.
        """
        return _plot(self, ax)

    def __repr__(self) -> str:
        ended = "did not diverge" if self.diverged is None else f"diverged at {self.diverged:.3g}"
        span = f"{self.rates[0]:.3g} to {self.rates[-1]:.3g}" if len(self.rates) else "none"
        head = f"learning-rate range test: {len(self.rates)} steps, rates {span}, {ended}"
        if self._missing() is not None:
            return f"{head}\nno suggestion: {self._missing()}"
        shown = []
        for rule, rate in self._suggestions().items():
            loss = np.interp(math.log(rate), np.log(self.rates), self.smoothed)
            mark = "  ← suggestion" if rule == self.rule else ""
            shown.append(f"{TITLES[rule]:<14}{rate:>12.3g}{loss:>16.4g}{mark}")
        title = f"{'':<14}{'rate':>12}{'smoothed loss':>16}"
        return "\n".join([head, "", title, "─" * len(title), *shown])

    def _suggestions(self) -> dict[str, float]:
        return {rule: rate for rule in RULES if (rate := getattr(self, rule)) is not None}

    def _at(self, choose: Callable[[np.ndarray, np.ndarray], Any]) -> float | None:
        part = judged(len(self.rates))
        return None if self._missing() is not None else float(choose(self.rates[part], self.smoothed[part]))

    def _missing(self) -> str | None:
        """Why there is no suggestion, and what to do."""
        part = judged(len(self.rates))
        losses = self.smoothed[part]
        if len(losses) < LEAST_POINTS:
            early = "" if self.diverged is None else " before it diverged; lower low="
            return (
                f"the test has {len(losses)} points between its ends{early or '; raise steps='}, at least "
                f"{LEAST_POINTS} were expected."
            )
        places = longest_descent(losses)
        fall = losses[places[0]] - losses[places[-1]]
        if len(places) < LEAST_POINTS or not fall > noise(self.losses[part]):
            tip = "Lower low=." if self.diverged is not None else "Raise high=, or check that the loss can fall."
            return (
                f"the smoothed loss falls by {fall:.3g} at most, less than the noise of a batch "
                f"({noise(self.losses[part]):.3g}) or in fewer than {LEAST_POINTS} points; a descent was expected. "
                f"{tip}"
            )
        return None


TITLES = {"valley": "valley", "steepest": "steepest", "minimum": "minimum / 10"}


def _plot(found: LRFind, ax: Any) -> tuple[Any, Any]:
    matplotlib = require()
    plt = pyplot()

    with matplotlib.rc_context(STYLE):
        if ax is None:
            _, ax = plt.subplots(figsize=(8.6, 5), layout="constrained")
        ax.set_xscale("log")
        ax.plot(found.rates, found.losses, color=PALE, alpha=0.45, linewidth=1, label="loss of a batch")
        ax.plot(found.rates, found.smoothed, color=COLOURS[0], label="smoothed")
        known = found.losses[np.isfinite(found.losses)]
        if len(known):  # the end shoots up: what is to be seen lies below
            low, first = known.min(), known[0]
            room = max(first - low, 0.1 * abs(first), 1e-12)
            ax.set_ylim(low - 0.1 * room, first + 0.35 * room)
        for (rule, rate), colour in zip(
            found._suggestions().items(), (COLOURS[1], COLOURS[2], COLOURS[3]), strict=False
        ):
            loss = np.interp(math.log(rate), np.log(found.rates), found.smoothed)
            chosen = rule == found.rule
            label, size = f"{TITLES[rule]}: {rate:.2g}", 11 if chosen else 8
            ax.plot([rate], [loss], "o", color=colour, markersize=size, markeredgecolor="white", label=label, zorder=3)
            if chosen:
                ax.axvline(rate, color=colour, linewidth=1.2, linestyle=(0, (4, 3)))
        if found.diverged is not None:
            ax.axvspan(found.diverged, found.diverged * 8, color=COLOURS[1], alpha=0.12, linewidth=0)
            ax.set_xlim(right=found.diverged * 8)
            place = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points"}
            ax.annotate("diverged", (found.diverged, 1), (4, -14), fontsize=11, **place)
        ax.set(xlabel="learning rate", ylabel="loss", title="Learning-rate range test")
        ax.legend(frameon=False, loc="lower left")
    return ax.figure, ax


# The test -----------------------------------------------------------------------------------------


class Curve(NamedTuple):
    """What a test gives: its length, whether it diverged, and both losses."""

    count: Any
    stopped: Any
    losses: Any
    smoothed: Any


class _Test(NamedTuple):
    """A range test in progress.

    Attributes:
        i: steps done.
        carry: of training.
        mean: of the losses, exponential, not yet corrected for its start at 0.
        best: least smoothed loss.
        stopped: whether it diverged.
        losses, smoothed: of each step.
    """

    i: Any
    carry: Carry
    mean: Any
    best: Any
    stopped: Any
    losses: Any
    smoothed: Any


def lr_find(
    loss_fn: Any,
    params: Any,
    tx: Any,
    data: Any,
    *,
    low: float = 1e-7,
    high: float = 10.0,
    steps: int = 100,
    schedule: str = "exponential",
    batch_size: int = 32,
    key: Any = 0,
    loss: Any = None,
    metrics: Sequence[Any] = (),
    model_state: Any = None,
    shuffle: Any = True,
    accumulate: int | None = None,
    precision: str | None = None,
    smoothing: float = 0.9,
    stop_div: float = 4.0,
    name: str = "learning_rate",
    suggestion: str = "valley",
) -> LRFind:
    """Train with a learning rate that grows at every step, and suggest one from how the loss responds.

        rateᵢ = low (high / low)^(i / (steps − 1)),  or  low + (high − low) i / (steps − 1)
        mᵢ    = β mᵢ₋₁ + (1 − β) lossᵢ,   smoothedᵢ = mᵢ / (1 − βⁱ⁺¹)

    The test is one compiled loop, which ends where the smoothed loss is `stop_div` times its least value or not
    finite. It is pure: parameters, states and models are as they were.

    Args:
        loss_fn, params, batch_size, key, loss, metrics, model_state, shuffle, accumulate: as for `fit`; `batch_size`
            is a number.
        tx: a jopt or optax transform with a live number `name`, which is set at each step; or a function
            learning rate → transform, such as ``jopt.adamw``, called with a traced number.
        data: arrays, as for `fit`; more steps than they have batches begin further epochs.
        low, high: the first and the last rate, 0 < low < high.
        steps: at most.
        schedule: "exponential" or "linear" growth.
        precision: None or "bf16", as for `fit`.
        smoothing: β, in [0, 1). At 0.98 the mean of 100 steps lags so far behind that suggestions come out several
            times too high.
        stop_div: more than 1; infinity goes on until the loss is not finite.
        name: the hyper-parameter of `tx` to vary, by short or full name.
        suggestion: "valley", "steepest" or "minimum": the rule of the result's `suggestion`.

    Raises:
        TypeError, ValueError: arguments that cannot work; a number that `tx` lacks, has twice, or schedules.
    """
    rates = spaced("lr_find", low, high, steps, schedule)
    if not 0 <= smoothing < 1 or not stop_div > 1:
        raise ValueError(
            f"lr_find: smoothing={smoothing!r} and stop_div={stop_div!r} were given, a number in [0, 1) and one "
            f"above 1 were expected. Pass for example smoothing=0.9, stop_div=4."
        )
    if suggestion not in RULES:
        raise ValueError(f"lr_find: suggestion={suggestion!r} was given, one of {RULES} was expected. Choose one.")
    what, operands = trial(
        "lr_find",
        as_loss(loss_fn, loss, metrics),
        params,
        tx,
        data,
        rates=rates,
        steps=steps,
        batch_size=batch_size,
        key=key,
        model_state=model_state,
        shuffle=shuffle,
        accumulate=accumulate,
        precision=precision,
        name=name,
    )
    program = cached(what.recipe.objective.loss_fn, what, lambda: jax.jit(functools.partial(_run, what)))
    curve: Curve = jax.device_get(program(operands, np.float32(smoothing), np.float32(stop_div)))
    done = int(curve.count)
    return LRFind(
        rates[:done],
        np.asarray(curve.losses[:done], np.float64),
        np.asarray(curve.smoothed[:done], np.float64),
        float(rates[done - 1]) if curve.stopped else None,
        suggestion,
    )


def _run(what: Trial, operands: Operands, smoothing: Any, stop_div: Any) -> Curve:
    rates = operands.rates

    def going_on(test: _Test) -> Any:
        return (test.i < len(rates)) & ~test.stopped

    def body(test: _Test) -> _Test:
        carry, loss = step_at(what, operands, test.carry, rates[test.i], test.i)
        loss = loss.astype(jnp.float32)
        mean = smoothing * test.mean + (1 - smoothing) * loss
        smoothed = mean / (1 - smoothing ** (test.i + 1).astype(jnp.float32))
        best = jnp.minimum(test.best, smoothed)
        # For positive losses this is smoothed > stop_div · best; a negative loss has to rise as far.
        stopped = ~jnp.isfinite(smoothed) | (smoothed > best + (stop_div - 1) * jnp.abs(best))
        losses, means = test.losses.at[test.i].set(loss), test.smoothed.at[test.i].set(smoothed)
        return _Test(test.i + 1, carry, mean, best, stopped, losses, means)

    zero, empty = jnp.zeros((), jnp.float32), jnp.full(len(rates), jnp.nan, jnp.float32)
    first = _Test(jnp.zeros((), jnp.int32), operands.carry, zero, zero + jnp.inf, jnp.array(False), empty, empty)
    last = jax.lax.while_loop(going_on, body, first)
    return Curve(last.i, last.stopped, last.losses, last.smoothed)
