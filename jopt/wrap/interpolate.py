"""Gradients taken between the iterate and its average: Schedule-Free, and Generalized Primal Averaging.

Three points: z, which the base optimizer steps; x, the average of z, to evaluate with; and between them
y, the parameters, where gradients are taken.
"""

from typing import Any

import jax.numpy as jnp

from jopt.dtypes import compute
from jopt.rule import Own, Whole
from jopt.rules.each import wide
from jopt.rules.slots import dtype_name
from jopt.scalars import FRACTION, NONNEGATIVE, ScalarOrSchedule, scalar_dtype
from jopt.state import AVERAGED, State, StateMismatchError, check_kept, eval_params, hyperparams, states
from jopt.transform import Transform, as_transform, leaves_of, whole
from jopt.wrap.arrays import beside, stored


def _start(params, state_dtype, inner, **scalars):
    z = {path: stored(p, state_dtype) for path, p in params.items()}
    return Own({"z": z, AVERAGED: params}, scalars, inner(params))


def _interpolate(own, params, u, state, c, b1, **scalars):
    """Step z, then move x a part c of the way to z, and y a part b1 of the way from z to x."""
    z, x, updates = {}, {}, {}
    for path, p in params.items():
        kept, average = own.slots["z"][path], own.slots[AVERAGED][path]
        new = compute(kept) + u[path]
        average = average + beside(c, average) * (new - average)
        updates[path] = new + beside(b1, average) * (average - new) - p
        z[path], x[path] = stored(new, None if kept.dtype == new.dtype else kept.dtype), average
    return updates, Own({"z": z, AVERAGED: x}, scalars, state)


# Schedule-Free -----------------------------------------------------------------------------------


def schedule_free_init(params, *, state_dtype, inner):
    """The average begins at the parameters, with no weight."""
    zero = jnp.zeros((), scalar_dtype())
    return _start(params, state_dtype, inner, weight_sum=zero, max_lr=zero)


def schedule_free_update(grads, own, params, *, learning_rate, b1, weight_lr_power, count, inner):
    """Step the base, and average by the weights of learning rates."""
    y = wide(params, "schedule_free")
    check_kept("schedule_free", own.slots.get(AVERAGED, {}), grads)
    u, state = inner.update(grads, own.inner, params)
    if learning_rate is None:
        learning_rate = _rate_of(state)
    elif callable(learning_rate):
        learning_rate = jnp.asarray(learning_rate(count + jnp.ones_like(count)), scalar_dtype())
    max_lr = jnp.maximum(own.scalars["max_lr"], learning_rate)
    weight = max_lr**weight_lr_power
    total = own.scalars["weight_sum"] + weight
    c = jnp.where(total > 0, weight / jnp.where(total > 0, total, 1), 0)
    return _interpolate(own, y, u, state, c, b1, weight_sum=total, max_lr=max_lr)


def _rate_of(state):
    """The learning rate that a base used in its last update."""
    (rate,) = [value for name, value in hyperparams(state).items() if name.rpartition("/")[2] == "learning_rate"]
    return rate


SCHEDULE_FREE = Whole("schedule_free", schedule_free_update, schedule_free_init)


def schedule_free(
    base_optimizer: Any,
    learning_rate: ScalarOrSchedule | None,
    b1: ScalarOrSchedule = 0.9,
    weight_lr_power: ScalarOrSchedule = 2.0,
    state_dtype: Any = None,
) -> Transform:
    """Replace a learning-rate schedule and momentum by averaging the iterates of a base optimizer.

        z ← z + base(∇f(y))
        x ← x + c (z − x),   c = w / Σw,   w = (max γ)ᵖ
        y = z + β₁(x − z)

    The parameters are y. Evaluate, save and ship x = ``eval_params(state, params)``; statistics of a
    batch norm need a pass over data with x before that.

    Args:
        base_optimizer: any optimizer; its own momentum should be off (``b1=0``).
        learning_rate: γ ≥ 0, which weighs the average: that of the base, warm-up included and without
            decay. None takes it from the base, if it has exactly one.
        b1: β₁ in [0, 1], 0.9 to 0.98: how close to the average gradients are taken. At 0 it is the
            base with Polyak's average beside it.
        weight_lr_power: p: steps of the warm-up count for less.
        state_dtype: dtype of z in the state; None is float32 or wider. A 16-bit z loses small steps.

    Differs: optax keeps z alone and solves for x, which divides by β₁ and takes the rounding of 16-bit
        parameters into the average. Here x is kept, one array more: β₁ may be 0, and be changed while
        training. As in optax, and unlike the paper, a schedule weighs each step by its next rate.
    Reference: [defazio2024road].

    Raises:
        ValueError: `learning_rate` is None, and the base has no learning rate or several.
    """
    base = as_transform(base_optimizer, "schedule_free")
    if learning_rate is None:
        rates = sum(name == "learning_rate" for part in leaves_of(base.parts) for name, _ in part.hyper)
        if rates != 1:
            raise ValueError(
                f"schedule_free: learning_rate=None was given and the base has {rates} learning rates, exactly one was "
                f"expected. Pass the rate that weighs the average."
            )
    numbers: dict[str, Any] = {"b1": b1, "weight_lr_power": weight_lr_power}
    static: dict[str, Any] = {"state_dtype": dtype_name(state_dtype, "schedule_free", "state_dtype")}
    # A schedule is called by the update itself, one step ahead of the clock.
    (static if learning_rate is None or callable(learning_rate) else numbers)["learning_rate"] = learning_rate
    domain = {"learning_rate": NONNEGATIVE, "b1": FRACTION}
    return whole(SCHEDULE_FREE, hyper=numbers, static=static, domain=domain, inner=base)


def schedule_free_eval_params(state: Any, params: Any) -> Any:
    """The average x of `schedule_free`: `eval_params`, for states that have one.

    Args:
        state: a state that holds one of `schedule_free`, at any nesting.
        params: the parameters y.

    Raises:
        StateMismatchError: the state holds none.
    """
    if not any(part.rpartition("/")[2].startswith("schedule_free") for _, s in states(state) for part in s.slots):
        kind = "without a schedule_free" if isinstance(state, State) else f"of type {type(state).__name__}"
        raise StateMismatchError(
            f"schedule_free_eval_params: a state {kind} was given, one of schedule_free was expected. "
            f"For any other state call eval_params(state, params)."
        )
    return eval_params(state, params)


# Generalized Primal Averaging ----------------------------------------------------------------------


def gpa_init(params, *, state_dtype, inner):
    """The average begins at the parameters."""
    return _start(params, state_dtype, inner)


def gpa_update(grads, own, params, *, mu_x, mu_y, inner):
    """Step the base, and average at a constant pace."""
    y = wide(params, "gpa")
    check_kept("gpa", own.slots.get(AVERAGED, {}), grads)
    u, state = inner.update(grads, own.inner, params)
    return _interpolate(own, y, u, state, 1 - mu_x, mu_y)


GPA = Whole("gpa", gpa_update, gpa_init)


def gpa(
    base_optimizer: Any,
    mu_x: ScalarOrSchedule = 0.9967,
    mu_y: ScalarOrSchedule = 0.7,
    state_dtype: Any = None,
) -> Transform:
    """Take gradients between the iterate of a base optimizer and its exponential average.

        z ← z + base(∇f(y))
        x ← μₓx + (1 − μₓ)z
        y = μᵧx + (1 − μᵧ)z

    The parameters are y; evaluate with x = ``eval_params(state, params)``. Unlike `schedule_free`, it
    goes with a learning-rate schedule.

    Args:
        base_optimizer: any optimizer, momentum and all.
        mu_x: μₓ in [0, 1]: averages over about 1 / (1 − μₓ) steps.
        mu_y: μᵧ in [0, 1]: how close to the average gradients are taken; 0 is the base itself with an
            average beside it.
        state_dtype: dtype of z in the state; None is float32 or wider.

    Differs: the authors' code keeps z alone and solves for x; here x is kept, one array more, for the
        same reasons as in `schedule_free`.
    Reference: [defazio2025smoothing].
    """
    return whole(
        GPA,
        hyper={"mu_x": mu_x, "mu_y": mu_y},
        static={"state_dtype": dtype_name(state_dtype, "gpa", "state_dtype")},
        domain={"mu_x": FRACTION, "mu_y": FRACTION},
        inner=as_transform(base_optimizer, "gpa"),
    )
