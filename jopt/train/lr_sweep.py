"""Many constant learning rates from one start, trained side by side: how wide the band of good rates is."""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jopt.state import set_hyperparams, sweep_axes
from jopt.train.cache import cached
from jopt.train.losses import as_loss
from jopt.train.plots import COLOURS, PALE, STYLE, pyplot, require
from jopt.train.step import Carry
from jopt.train.trial import Operands, Trial, spaced, step_at, trial


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class LRSweep:
    """What constant rates came to; ``float(swept)`` is the suggestion.

    A rate is good if it made at least 1 − `within` of the progress of the best one:

        final(rate) ≤ final(best) + within · (start − final(best))

    which does not change with the unit or the zero of the loss. The band is the good rates around the best one.
    Its suggestion is the geometric middle, as far from the rates that diverge as from those that crawl: the rate
    that stays good when the rest of the training moves the band most.

    Attributes:
        rates: that were tried, float64[n].
        losses: of each rate's steps, before the step, float64[n, steps]; not finite where it diverged.
        final: exponential mean at the last step, float64[n]; infinite where it diverged.
        start: loss of the first step, which all share.
        within: share of the best rate's progress that a good one may lack.
    """

    rates: np.ndarray
    losses: np.ndarray
    final: np.ndarray
    start: float
    within: float

    @property
    def best(self) -> float | None:
        """The rate with the least final loss; None where no rate lowered the loss."""
        return None if self._band() is None else float(self.rates[np.argmin(self.final)])

    @property
    def band(self) -> tuple[float, float] | None:
        """The lowest and the highest good rate around the best; None where no rate lowered the loss."""
        band = self._band()
        return None if band is None else (float(self.rates[band[0]]), float(self.rates[band[1]]))

    @property
    def decades(self) -> float:
        """Width of the band, log₁₀(highest / lowest)."""
        return math.log10(self.band[1] / self.band[0]) if self.band else 0.0

    @property
    def suggestion(self) -> float | None:
        """The geometric middle of the band."""
        return math.sqrt(self.band[0] * self.band[1]) if self.band else None

    def __float__(self) -> float:
        if self.suggestion is None:
            raise ValueError(
                f"lr_sweep: a learning rate was asked for, but none of the {len(self.rates)} rates from "
                f"{self.rates[0]:.3g} to {self.rates[-1]:.3g} lowered the loss from {self.start:.4g}; a rate that does "
                f"was expected. {'Lower low=' if np.isinf(self.final).any() else 'Raise high= or steps='}."
            )
        return self.suggestion

    def plot(self, ax: Any = None) -> tuple[Any, Any]:
        """Draw the final loss over the rate with the good band.

        Args:
            ax: axes to draw on; None: those of a new figure.

        Returns:
            The matplotlib figure and axes.
        """
        return _plot(self, ax)

    def __repr__(self) -> str:
        worse = int((self.final > self.start).sum())
        head = f"{len(self.rates)} constant rates, {self.losses.shape[1]} steps each; {worse} ended above the start"
        if self.band is None:
            return f"{head}; none lowered the loss from {self.start:.4g}"
        first, last = self._band() or (0, 0)
        lines = [f"{'':<8}{'rate':>10}{'final loss':>14}"]
        lines.append("─" * len(lines[0]))
        for i, (rate, loss) in enumerate(zip(self.rates, self.final, strict=True)):
            shown = "not finite" if math.isinf(loss) else f"{loss:.4g}"
            mark = "best" if rate == self.best else "good" if first <= i <= last else ""
            lines.append(f"{mark:<8}{rate:>10.3g}{shown:>14}")
        return "\n".join([head, "", *lines, "", self._verdict()])

    def _verdict(self) -> str:
        low, high = self.band or (math.nan, math.nan)
        open_ = [side for side, edge in (("lower", self.rates[0] == low), ("upper", self.rates[-1] == high)) if edge]
        more = f", at least: it reaches the {' and the '.join(open_)} end of the sweep" if open_ else ""
        return f"good band {low:.3g} to {high:.3g}, {self.decades:.1f} decades wide{more}; suggestion {float(self):.3g}"

    def _band(self) -> tuple[int, int] | None:
        """Places of the first and the last good rate around the best."""
        best = int(np.argmin(self.final))
        if not self.final[best] < self.start:
            return None
        good = self.final <= self.final[best] + self.within * (self.start - self.final[best])
        first = best - int(np.argmin([*good[:best][::-1], False]))
        last = best + int(np.argmin([*good[best + 1 :], False]))
        return first, last


def _plot(swept: LRSweep, ax: Any) -> tuple[Any, Any]:
    matplotlib = require()
    plt = pyplot()

    with matplotlib.rc_context(STYLE):
        if ax is None:
            _, ax = plt.subplots(figsize=(8.6, 5), layout="constrained")
        ax.set_xscale("log")
        worse = swept.final > swept.start
        floor = swept.final.min(initial=swept.start)
        room = max(swept.start - floor, 0.1 * abs(swept.start), 1e-12)
        top = swept.start + 0.25 * room
        ax.plot(swept.rates[~worse], swept.final[~worse], "o-", color=COLOURS[0], markersize=6, label="after training")
        ax.axhline(swept.start, color=PALE, linewidth=1.2, linestyle=(0, (1, 2)), label="before training")
        if worse.any():  # how much worse does not matter, and would squeeze the rest
            high = np.full(worse.sum(), swept.start + 0.12 * room)
            ax.plot(swept.rates[worse], high, "x", color=COLOURS[1], markersize=9, label="worse than before")
        if swept.band is not None:
            label = f"good band, {swept.decades:.1f} decades"
            ax.axvspan(*swept.band, color=COLOURS[2], alpha=0.15, linewidth=0, label=label)
            ax.axvline(float(swept), color=COLOURS[2], label=f"suggestion: {float(swept):.2g}")
        ax.set_ylim(floor - 0.15 * room, top)
        steps = swept.losses.shape[1]
        ax.set(xlabel="learning rate", ylabel="smoothed loss", title=f"Constant learning rates, {steps} steps each")
        ax.legend(frameon=False, loc="best")
    return ax.figure, ax


# The runs -----------------------------------------------------------------------------------------


def lr_sweep(
    loss_fn: Any,
    params: Any,
    tx: Any,
    data: Any,
    *,
    low: float = 1e-5,
    high: float = 10.0,
    n: int = 25,
    steps: int = 100,
    batch_size: int = 32,
    key: Any = 0,
    loss: Any = None,
    metrics: Sequence[Any] = (),
    model_state: Any = None,
    shuffle: Any = True,
    accumulate: int | None = None,
    precision: str | None = None,
    smoothing: float = 0.9,
    within: float = 0.1,
    name: str = "learning_rate",
) -> LRSweep:
    """Train at `n` constant learning rates from the same start on the same batches, and compare.

    All runs are one compiled loop, mapped over the rates: it needs the memory of `n` models. A run that
    diverges does not touch the others. The call is pure, as `lr_find` is.

    Args:
        loss_fn, params, batch_size, key, loss, metrics, model_state, shuffle, accumulate: as for `fit`; `batch_size`
            is a number.
        tx, data, precision, name: as for `lr_find`.
        low, high, n: the least rate, the greatest, and how many; they are evenly spaced in log rate.
        steps: of each run.
        smoothing: of the losses, in [0, 1); what is compared is their exponential mean at the last step.
        within: share of the best rate's progress that a good rate may lack, in [0, 1).

    Raises:
        TypeError, ValueError: arguments that cannot work; a number that `tx` lacks, has twice, or schedules.
    """
    rates = spaced("lr_sweep", low, high, n)
    if not 0 <= smoothing < 1 or not 0 <= within < 1:
        raise ValueError(
            f"lr_sweep: smoothing={smoothing!r} and within={within!r} were given, numbers in [0, 1) were expected. "
            f"Pass for example smoothing=0.9, within=0.1."
        )
    what, operands = trial(
        "lr_sweep",
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
    sweep = ("sweep", what, steps)
    program = cached(what.recipe.objective.loss_fn, sweep, lambda: jax.jit(functools.partial(_run, what, steps)))
    losses = np.asarray(jax.device_get(program(operands)), np.float64).T
    weights = (1 - smoothing) * smoothing ** np.arange(steps)[::-1]
    # Once a run is not finite it is lost, even where later losses are.
    finite = np.isfinite(losses)
    means = np.where(finite, losses, 0) @ weights / weights.sum()
    final = np.where(finite.all(1), means, np.inf)
    return LRSweep(rates, losses, final, float(losses[0, 0]), within)


# The axis of the runs in all but the optimizer's state.
AXES: Any = {"params": 0, "model_state": 0, "step": None, "guard": 0, "scale": None, "means": 0}


def _run(what: Trial, steps: int, operands: Operands) -> Any:
    """The losses of all runs, [steps, n]."""
    # One clock for all: with a clock each, periodic work would be done at every step.
    axes = operands.carry._replace(**AXES, state=sweep_axes(operands.carry.state))

    def begin(rate: Any) -> Carry:
        if what.make is not None:
            return operands.carry
        return operands.carry._replace(state=set_hyperparams(operands.carry.state, **{what.name: rate}))

    def step(carry: Carry, i: Any) -> tuple[Carry, Any]:
        return jax.vmap(lambda c, rate: step_at(what, operands, c, rate, i), in_axes=(axes, 0), out_axes=(axes, 0))(
            carry, operands.rates
        )

    first = jax.vmap(begin, out_axes=axes)(operands.rates)
    return jax.lax.scan(step, first, jnp.arange(steps))[1]
