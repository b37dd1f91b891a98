"""A line search as a state machine: one evaluation a turn, so that the loop around it need not nest.

A nested loop would make all lanes of a `vmap` wait for the longest search at every step.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp

DECREASE, CURVATURE = 1e-4, 0.9  # c₁ and c₂ of the Wolfe conditions, as usual for quasi-Newton directions
MOST_TRIALS = 20


class Trial(NamedTuple):
    """A point on the line: its step α, and value φ and slope φ′ there."""

    step: Any
    value: Any
    slope: Any


class Search(NamedTuple):
    """A search under way.

    Attributes:
        start: the trial of step 0.
        low: of all trials with enough decrease, the one with the lowest value; at first `start`.
        high: the other end of a bracket; its step is infinite while there is none.
        step: the step to try next.
        trials: int32, how many were tried.
        settles: whether the next trial, which is `low` again, is taken as it is.
    """

    start: Trial
    low: Trial
    high: Trial
    step: Any
    trials: Any
    settles: Any


def start(value: Any, slope: Any, step: Any) -> Search:
    """A new search from a value and a slope < 0."""
    here, nowhere = jnp.zeros_like(value), jnp.full_like(value, jnp.inf)
    first = Trial(here, value, slope)
    return Search(first, first, Trial(nowhere, nowhere, nowhere), step, jnp.zeros((), jnp.int32), jnp.zeros((), bool))


def judge(search: Search, value: Any, slope: Any) -> tuple[Any, Any, Search]:
    """What follows from the trial of ``search.step``.

    Returns:
        (accepted, failed, search): the search goes on where neither holds. A search that has run out
        of trials settles for its lowest point; it has failed if no trial lowered the value.

    The strong Wolfe conditions by bracketing and cubic interpolation, algorithms 3.5 and 3.6 of
    Nocedal and Wright. Within the rounding of the value, the approximate condition of Hager and Zhang
    stands for the decrease. What is not finite counts as too high.
    Reference: [nocedal2006numerical], [hager2006algorithm].
    """
    first, low, high, trial = search.start, search.low, search.high, Trial(search.step, value, slope)
    finite = jnp.isfinite(value) & jnp.isfinite(slope)
    rounding = 10 * jnp.finfo(value.dtype).eps * jnp.abs(first.value)
    flat = (value <= first.value + rounding) & (slope <= (2 * DECREASE - 1) * first.slope)
    lower = finite & ((value <= first.value + DECREASE * trial.step * first.slope) | flat)
    accepted = (lower & (jnp.abs(slope) <= -CURVATURE * first.slope)) | (search.settles & finite)

    # Near the minimum all values are equal but for rounding, and then only slopes tell where it is.
    too_high = ~lower | ((value > low.value) & ~flat)
    turns = ~too_high & (slope * jnp.where(jnp.isfinite(high.step), high.step - low.step, 1) >= 0)
    new_low = _choose(too_high, low, trial)
    new_high = _choose(too_high, trial._replace(value=jnp.where(finite, value, jnp.inf)), _choose(turns, low, high))

    trials = search.trials + jnp.ones((), jnp.int32)
    out = (trials >= MOST_TRIALS) & ~accepted
    settles = out & (new_low.step > 0)
    failed = (out & ~settles) | (search.settles & ~accepted)
    bracketed = jnp.isfinite(new_high.step)
    step = jnp.where(bracketed, _inside(new_low, new_high), _beyond(low, new_low))
    step = jnp.where(settles, new_low.step, step)
    return accepted, failed, Search(first, new_low, new_high, step, trials, settles)


def _choose(condition: Any, one: Trial, other: Trial) -> Trial:
    return Trial(*(jnp.where(condition, a, b) for a, b in zip(one, other, strict=True)))


def _cubic(a: Trial, b: Trial) -> Any:
    """The minimizer of the cubic through two values and slopes (Nocedal and Wright, 3.59); may be NaN."""
    width = b.step - a.step
    d1 = a.slope + b.slope - 3 * (b.value - a.value) / width
    d2 = jnp.sign(width) * jnp.sqrt(jnp.maximum(d1 * d1 - a.slope * b.slope, 0))
    return b.step - width * (b.slope + d2 - d1) / (b.slope - a.slope + 2 * d2)


def _inside(low: Trial, high: Trial) -> Any:
    """A step in the bracket, a tenth of its width off the ends; towards `low` if `high` is not finite."""
    width = high.step - low.step
    share = (_cubic(low, high) - low.step) / width
    share = jnp.where(jnp.isnan(share), 0.5, jnp.clip(share, 0.1, 0.9))
    return low.step + width * jnp.where(jnp.isfinite(high.value), share, 0.25)


def _beyond(before: Trial, last: Trial) -> Any:
    """A step beyond the last of two, by one to four times what lies between them."""
    width = last.step - before.step
    share = (_cubic(before, last) - last.step) / width
    return last.step + width * jnp.where(jnp.isnan(share) | (share <= 0), 4.0, jnp.clip(share, 1.1, 4.0))
