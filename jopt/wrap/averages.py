"""Averages of the parameters, kept for evaluation."""

from typing import Any

import jax.numpy as jnp

from jopt.control import run_if
from jopt.partition import chain
from jopt.rule import Own, Whole
from jopt.rules.each import wide
from jopt.scalars import FRACTION, NONNEGATIVE, ScalarOrSchedule, size
from jopt.state import AVERAGED, check_kept
from jopt.transform import Transform, as_transform, rule, whole


def average_slots(p):
    return {AVERAGED: p}


def average_step(u, s, p, *, decay):
    return u, {AVERAGED: decay * s[AVERAGED] + (1 - decay) * (p + u)}


def average_params(decay: ScalarOrSchedule) -> Transform:
    """Keep an exponential moving average of the stepped parameters; the update passes unchanged.

        a ← δa + (1 − δ)(p + u),   a₀ = p₀
        u = u

    Last in a chain, after `scale_by_learning_rate`; `ema` puts it there.

    Args:
        decay: δ in [0, 1], a number or a schedule such as ``lambda n: jnp.minimum(0.999, (1 + n) / (10 + n))``.

    The average is float32 or wider, and of p + u before it is rounded to a narrower parameter.
    Reference: [polyak1992acceleration].
    """
    return rule("average_params", average_step, slots=average_slots, hyper={"decay": decay}, domain={"decay": FRACTION})


def ema(tx: Any, decay: ScalarOrSchedule = 0.999) -> Transform:
    """Keep an exponential moving average of the parameters beside a transform.

    Evaluate with ``eval_params(state, params)``.

    Args:
        tx: the transform that steps.
        decay: as for `average_params`.

    Differs: optax's `ema` averages the updates; that is our `scale_by_ema`.

    Raises:
        TypeError: `tx` is no transform.
    """
    if isinstance(tx, int | float) or tx is None:
        raise TypeError(
            f"ema: {tx!r} was given, a transform was expected. "
            f"For optax's ema of the updates call scale_by_ema({tx!r})."
        )
    return chain(tx, average_params(decay))


# Stochastic weight averaging -----------------------------------------------------------------------


def uniform_shared(*, count, start, every):
    since = (count + jnp.ones_like(count)).astype(start.dtype) - start
    n = jnp.floor(since / every)
    due = (since > 0) & (since == n * every)
    return {"c": jnp.where(since <= 0, 1, jnp.where(due, 1 / (n + 1), 0))}


def uniform_step(u, s, p, *, c):
    return u, {AVERAGED: (1 - c) * s[AVERAGED] + c * (p + u)}


def average_uniformly(start: ScalarOrSchedule, every: ScalarOrSchedule) -> Transform:
    """Keep the mean of the stepped parameters; the part of `swa` that averages."""
    return rule(
        "average_uniformly",
        uniform_step,
        slots=average_slots,
        shared=uniform_shared,
        hyper={"start": start, "every": every},
        domain={"start": NONNEGATIVE, "every": "[1, inf)"},
    )


def swa(tx: Any, start: ScalarOrSchedule, every: ScalarOrSchedule = 1) -> Transform:
    """Keep the uniform mean of the parameters from a step on (stochastic weight averaging).

        a ← p                        up to step `start`
        a ← a + (p − a) / (n + 1)    at steps start + every·n,   n = 1, 2, ...

    Evaluate with ``eval_params(state, params)``. It pays with a learning rate that stays high, constant
    or cyclic, from `start` on; statistics of a batch norm need a pass over data with the mean.

    Args:
        tx: the transform that steps.
        start: steps of `tx` before averaging begins; the parameters they end in are the first of the mean.
        every: steps between two that enter the mean, at least 1: the length of a cycle.

    Reference: [izmailov2018averaging].
    """
    return chain(as_transform(tx, "swa"), average_uniformly(start, every))


# The latest checkpoints ----------------------------------------------------------------------------


def latest_init(params, *, k):
    """Every place holds the first parameters."""
    slots = {path: jnp.broadcast_to(p, (k, *p.shape)) for path, p in params.items()}
    return Own({AVERAGED: slots}, {"taken": jnp.zeros((), jnp.int32)})


def latest_update(grads, own, params, *, k, every, count):
    """Take the parameters into the oldest place when it is time."""

    def take(held, operands):
        n, current = operands
        # Places without a checkpoint of their own repeat the latest, so that the mean is of real ones alone.
        place, rank = n % k, jnp.arange(k, dtype=n.dtype)
        fills = jnp.where(n < k, rank >= n, rank == place)
        return {path: jnp.where(fills.reshape(k, *[1] * p.ndim), p[None], held[path]) for path, p in current.items()}

    p = wide(params, "lawa")
    held, taken = own.slots.get(AVERAGED, {}), own.scalars["taken"]
    check_kept("lawa", held, grads, leading=(k,))
    steps = (count + jnp.ones_like(count)).astype(every.dtype)
    due = steps == jnp.floor(steps / every) * every
    held = run_if(take, due, held, (taken, {path: p[path] + u for path, u in grads.items()}))
    return grads, Own({AVERAGED: held}, {"taken": taken + due.astype(jnp.int32)})


LATEST = Whole("average_latest", latest_update, latest_init)


def average_latest(k: int, every: ScalarOrSchedule) -> Transform:
    """Keep checkpoints of the stepped parameters; the part of `lawa` that does so."""
    static = {"k": size(k, "lawa", "k")}
    return whole(LATEST, hyper={"every": every}, static=static, domain={"every": "[1, inf)"})


def lawa(tx: Any, k: int, every: ScalarOrSchedule) -> Transform:
    """Keep the last k checkpoints of the parameters, to evaluate with their mean (latest weight averaging).

        a = (pₜ + pₜ₋ₙ + ... + pₜ₋₍ₖ₋₁₎ₙ) / k,   n = every

    Evaluate with ``eval_params(state, params)``: it gives the initial parameters before the first
    checkpoint, and weighs the latest one for those that lack while there are fewer than k.

    Args:
        tx: the transform that steps.
        k: how many checkpoints, at least 1.
        every: steps of `tx` from one checkpoint to the next, at least 1; an epoch in the paper.

    Memory: k times the parameters, in float32 or wider. `ema` and `swa` keep one copy.
    Reference: [kaddour2022stop].
    """
    return chain(as_transform(tx, "lawa"), average_latest(k, every))
