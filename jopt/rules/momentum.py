"""Momentum: sums and averages of past gradients."""

from typing import Any

import jax.numpy as jnp

from jopt.rules.slots import dtype_name
from jopt.scalars import FRACTION, ScalarOrSchedule
from jopt.transform import Transform, rule


def trace_slots(p, *, accumulator_dtype):
    return {"trace": jnp.zeros_like(p, dtype=accumulator_dtype)}


def trace_step(g, s, p, *, decay):
    m = g + decay * s["trace"]
    return m, {"trace": m}


def trace(decay: ScalarOrSchedule, nesterov: bool = False, accumulator_dtype: Any = None) -> Transform:
    """Accumulate gradients in a decaying sum (heavy-ball momentum).

        m ← g + μm
        u = m

    Args:
        decay: μ in [0, 1].
        nesterov: True gives `nesterov_trace`.
        accumulator_dtype: dtype of m in the state; None is float32 or wider.

    Differs: before a changing learning rate this is torch's momentum; put it behind
        `scale_by_learning_rate` for Polyak's heavy ball (see docs/formulas.md).
    Reference: [polyak1964some].
    """
    make = nesterov_trace if nesterov else _trace
    return make(decay, accumulator_dtype)


def _trace(decay, accumulator_dtype):
    return rule(
        "trace",
        trace_step,
        slots=trace_slots,
        hyper={"decay": decay},
        static={"accumulator_dtype": dtype_name(accumulator_dtype, "trace", "accumulator_dtype")},
        domain={"decay": FRACTION},
    )


def nesterov_trace_step(g, s, p, *, decay):
    m = g + decay * s["trace"]
    return g + decay * m, {"trace": m}


def nesterov_trace(decay: ScalarOrSchedule, accumulator_dtype: Any = None) -> Transform:
    """Accumulate gradients and look one step ahead (Nesterov momentum).

        m ← g + μm
        u = g + μm

    Args:
        decay: μ in [0, 1].
        accumulator_dtype: dtype of m in the state; None is float32 or wider.

    Differs: the parameters it moves are the look-ahead points, as in torch and optax, so that the
        gradient is taken at the parameters themselves.
    Reference: [sutskever2013importance].
    """
    return rule(
        "nesterov_trace",
        nesterov_trace_step,
        slots=trace_slots,
        hyper={"decay": decay},
        static={"accumulator_dtype": dtype_name(accumulator_dtype, "nesterov_trace", "accumulator_dtype")},
        domain={"decay": FRACTION},
    )


def ema_slots(p, *, accumulator_dtype):
    return {"ema": jnp.zeros_like(p, dtype=accumulator_dtype)}


def ema_shared(*, t, decay, debias):
    return {"c": 1 - decay**t if debias else jnp.ones_like(t)}


def ema_step(g, s, p, *, decay, c):
    m = decay * s["ema"] + (1 - decay) * g
    return m / c, {"ema": m}


def scale_by_ema(decay: ScalarOrSchedule, debias: bool = True, accumulator_dtype: Any = None) -> Transform:
    """Replace the gradient by its exponential moving average.

        m ← βm + (1 − β)g
        u = m / c,   c = 1 − βᵗ or 1

    Args:
        decay: β in [0, 1).
        debias: whether c corrects the start from zero.
        accumulator_dtype: dtype of m in the state; None is float32 or wider.

    Differs: optax calls this `ema`; our `ema` averages the parameters.
    """
    return rule(
        "scale_by_ema",
        ema_step,
        slots=ema_slots,
        shared=ema_shared,
        hyper={"decay": decay},
        static={
            "debias": bool(debias),
            "accumulator_dtype": dtype_name(accumulator_dtype, "scale_by_ema", "accumulator_dtype"),
        },
        domain={"decay": "[0, 1)"},
    )
