"""Lookahead: slow parameters that follow the fast ones of another optimizer."""

from typing import Any

import jax.numpy as jnp
import optax

from jopt.control import run_if
from jopt.rule import Own, Whole
from jopt.rules.each import wide
from jopt.scalars import FRACTION, ScalarOrSchedule
from jopt.state import AVERAGED, check_kept, keep_hyperparams
from jopt.transform import Transform, as_transform, whole
from jopt.wrap.arrays import beside


def lookahead_init(params, *, layout, inner):
    """The slow parameters begin at the fast ones."""
    if isinstance(layout.tree(params), optax.LookaheadParams):
        raise TypeError(
            "init: lookahead was given LookaheadParams, the parameters of the model were expected: the slow ones are "
            "in the state. Pass its .fast, and evaluate with eval_params(state, params), which gives the slow ones."
        )
    return Own({AVERAGED: params}, {"steps_since_sync": jnp.zeros((), jnp.int32)}, inner(params))


def lookahead_update(grads, own, params, *, sync_period, slow_step_size, reset_state, inner):
    """Step the fast parameters, and now and then draw slow and fast ones together."""

    def synchronize(carry, operands):
        handle, p, alpha = inner.given(operands[0]), operands[1], operands[2]
        u, slow, state = carry
        slow = {path: x + beside(alpha, x) * (p[path] + u[path] - x) for path, x in slow.items()}
        if reset_state:
            state = keep_hyperparams(handle.init(p), state)
        return {path: x - p[path] for path, x in slow.items()}, slow, state

    p, slow = wide(params, "lookahead"), own.slots.get(AVERAGED, {})
    check_kept("lookahead", slow, grads)
    u, state = inner.update(grads, own.inner, params)
    steps = own.scalars["steps_since_sync"] + jnp.ones((), jnp.int32)
    due = steps.astype(sync_period.dtype) >= sync_period
    u, slow, state = run_if(synchronize, due, (u, slow, state), (inner.operands, p, slow_step_size))
    return u, Own({AVERAGED: slow}, {"steps_since_sync": jnp.where(due, 0, steps)}, state)


LOOKAHEAD = Whole("lookahead", lookahead_update, lookahead_init)


def lookahead(
    fast_optimizer: Any,
    sync_period: ScalarOrSchedule,
    slow_step_size: ScalarOrSchedule,
    reset_state: bool = False,
) -> Transform:
    """Let slow parameters follow those of a fast optimizer: k steps forward, one step back.

        p ← p + fast(g)
        every k steps:  s ← s + α(p − s),   p ← s

    The parameters are the fast ones p, as with any optimizer; the slow ones s are in the state.
    Evaluate with ``eval_params(state, params)``, which gives s.

    Args:
        fast_optimizer: the optimizer of the fast steps.
        sync_period: k, at least 1; 5 to 10 in the paper.
        slow_step_size: α in [0, 1]; 0.5 to 0.8 in the paper.
        reset_state: whether the fast optimizer forgets its state, clock included, at each synchronization.

    Differs: optax trains a pair `LookaheadParams`; here parameters, gradients and updates are those of
        the model.

    Raises:
        TypeError: at `init`, parameters that are optax's pair.

    Reference: [zhang2019lookahead].
    """
    return whole(
        LOOKAHEAD,
        hyper={"sync_period": sync_period, "slow_step_size": slow_step_size},
        static={"reset_state": bool(reset_state)},
        domain={"sync_period": "[1, inf)", "slow_step_size": FRACTION},
        inner=as_transform(fast_optimizer, "lookahead"),
    )
